//! What a connection does after each event: tell the store what arrived, and publish what may go.

use std::collections::HashSet;

use tokio::sync::oneshot;

use super::{Connection, Done, Phase, SCAN_PAGE, SIDE_SLOTS, Side, index, publish, standing, stands, status};
use crate::{
    alarm::{AlarmState, Told},
    clock::Now,
    pipeline::Input,
    record::{Body, Epoch, Lane, Record, Refused},
    store::{Head, StoreError, Stored},
    uplink::{
        delivery::{Hold, Queue},
        message::{self, CONTENT_TYPE_EVENT, CONTENT_TYPE_JSON, Presence, Sent},
        session::{UplinkTask, WINDOW},
    },
    wire::{Publish, Retain},
};

impl Connection<'_> {
    /// Tells the store what has arrived, and makes ready what follows from it.
    pub(super) async fn settle(&mut self) -> Result<(), StoreError> {
        let delivered = std::mem::take(&mut self.delivered);
        for lane in Lane::ALL {
            let of_lane = delivered.iter().filter(|stored| stored.record.lane == lane);
            let mut positions: Vec<u64> = of_lane.map(|stored| stored.position).collect();
            positions.extend(self.declared.iter().filter(|(of, _)| *of == lane).map(|(_, position)| *position));
            if !positions.is_empty() {
                self.task.store.confirm(lane, positions).await?;
            }
        }
        for (lane, position) in std::mem::take(&mut self.declared) {
            self.delivery.forget(lane, position);
        }
        for stored in &delivered {
            self.arrived(&stored.record).await?;
        }
        for stored in std::mem::take(&mut self.aside) {
            self.declare(&stored);
        }
        if self.phase == Phase::Beginning {
            self.begin().await?;
        }
        if matches!(self.phase, Phase::Draining { .. }) && self.delivery.in_flight() == 0 {
            self.leave();
        }
        Ok(())
    }

    /// The retained topic of an alarm follows its event, if nothing newer has happened to it since.
    async fn arrived(&mut self, record: &Record) -> Result<(), StoreError> {
        let now = self.task.clock.now();
        if record.boot == *self.task.clock.boot() {
            let field = field_time(record);
            let seconds = now.since(field).as_secs_f64();
            self.task.metrics.end_to_end_seconds.with_label_values(&[record.lane.as_str()]).observe(seconds);
        }
        let Body::Alarm(transition) = &record.body else { return Ok(()) };
        let present = self.task.store.alarm(transition.alarm.clone()).await?;
        if present.is_none_or(|state| state.last == **transition) {
            self.queue_state(record, now);
        }
        Ok(())
    }

    fn queue_state(&mut self, record: &Record, now: Now) {
        let sent = Sent { boot: self.task.clock.boot(), at: now };
        if let Some(message) = message::alarm_state(record, &self.boots.borrow(), &self.task.about, sent) {
            self.states.insert(message.topic.clone(), publish(message, Retain::Yes, CONTENT_TYPE_EVENT));
        }
    }

    fn declare(&mut self, stored: &Stored) {
        let Record { lane, epoch, sequence, body, .. } = &stored.record;
        let (subject, severity) = match body {
            Body::Alarm(transition) => (transition.alarm.to_string(), Some(transition.severity)),
            Body::Telemetry(batch) => (batch.device.to_string(), None),
            Body::Stream(_) => ("stream".to_owned(), None),
            Body::Command(result) => (result.id.to_string(), None),
        };
        let refused = Refused { id: stored.record.id(), subject, severity };
        let (lane, epoch, sequence, position) = (*lane, epoch.clone(), *sequence, stored.position);
        let pipeline = self.task.pipeline.clone();
        self.pending.push(Box::pin(async move {
            let (durable, done) = oneshot::channel();
            let _ = pipeline.send(Input::Refused { lane, epoch, sequence, refused, durable }).await;
            Done::Declared { lane, position, durable: done.await.is_ok() }
        }));
    }

    /// Says online, corrects the retained alarms, and opens the window.
    async fn begin(&mut self) -> Result<(), StoreError> {
        let about = &self.task.about;
        // From here on these would only bring our own publishes back.
        for filter in [about.topic("alarm/#"), self.marker_topic()] {
            if !self.wire.unsubscribe(&filter) {
                tracing::debug!(filter, "cannot unsubscribe now");
            }
        }
        self.status_due = true;
        for device in &self.task.devices {
            let message = message::device(about, device);
            self.sides.push_back((Side::Other, publish(message, Retain::Yes, CONTENT_TYPE_JSON)));
        }
        self.correct_alarms().await?;
        let limits = self.limits.expect("the phase follows CONNACK");
        let allowed = WINDOW.min(limits.receive_maximum.saturating_sub(1)).saturating_sub(SIDE_SLOTS).max(1);
        let live_from = self.heads[index(Lane::Telemetry)].borrow().next_position;
        self.delivery.up(usize::from(allowed), live_from);
        self.delivery.set_hold(if self.kept.center_away_since.is_some() { Hold::AllButCritical } else { Hold::None });
        self.phase = Phase::Delivering;
        Ok(())
    }

    async fn correct_alarms(&mut self) -> Result<(), StoreError> {
        let alarms = self.task.store.alarms().await?;
        let head = self.heads[index(Lane::Alarm)].borrow().clone();
        let unconfirmed = unconfirmed(self.task, &head, &alarms).await?;
        let read_back = std::mem::take(&mut self.read_back);
        let mut follows = HashSet::new();
        let now = self.task.clock.now();
        for state in &alarms {
            if state.told.as_ref().is_some_and(|told| unconfirmed.contains(&number(told))) {
                follows.insert(state.last.alarm.as_str()); // its event is on the way, and this topic goes after it
            } else if stands(state) {
                follows.insert(state.last.alarm.as_str());
                // Unnumbered states cannot be published: no receiver could tell which of two is newer.
                if let Some(record) = record_of(state)
                    && !read_back.holds(state.last.alarm.as_str(), &record.id())
                {
                    self.queue_state(&record, now);
                }
            }
        }
        for alarm in read_back.alarms().filter(|alarm| !follows.contains(alarm)) {
            let message = message::no_alarm(&self.task.about, alarm);
            self.states.insert(message.topic.clone(), publish(message, Retain::Yes, CONTENT_TYPE_EVENT));
        }
        Ok(())
    }

    /// Publishes what may go: replies and status, alarms, retained alarms, telemetry.
    pub(super) async fn pump(&mut self) -> Result<(), StoreError> {
        let delivering = self.phase == Phase::Delivering;
        if delivering && self.status_due {
            self.say_online().await?;
        }
        self.pump_sides();
        if !delivering {
            return Ok(());
        }
        loop {
            self.feed().await?;
            let mut sent = false;
            while self.send(Lane::Alarm) {
                sent = true;
            }
            while self.wire.has_room()
                && let Some((_, state)) = self.states.pop_first()
            {
                self.publish_side(Side::Other, state);
            }
            while self.send(Lane::Telemetry) {
                sent = true;
            }
            if !sent {
                return Ok(());
            }
        }
    }

    async fn say_online(&mut self) -> Result<(), StoreError> {
        self.alarms_standing = standing(&self.task.store.alarms().await?);
        let now = self.task.clock.now();
        let status = status(self.task, self.session, self.alarms_standing, Presence::Online, None);
        let message = message::status(&self.task.about, &status);
        self.sides.push_front((Side::Other, publish(message, Retain::Yes, CONTENT_TYPE_JSON)));
        self.status_said = Some((now, self.status_key(now)));
        self.status_due = false;
        Ok(())
    }

    fn pump_sides(&mut self) {
        while self.wire.has_room()
            && let Some((side, publish)) = self.sides.pop_front()
        {
            self.publish_side(side, publish);
        }
    }

    fn publish_side(&mut self, side: Side, publish: Publish) {
        self.last_token += 1;
        let bytes = publish.topic.len() + publish.payload.len();
        if self.wire.publish(self.last_token, publish) {
            self.task.metrics.uplink_sent_bytes.inc_by(bytes as u64);
            let side = match side {
                Side::Reply(receipt) => {
                    self.wire.acknowledge(receipt);
                    Side::Other
                }
                other => other,
            };
            self.side_tokens.insert(self.last_token, side);
        }
    }

    async fn feed(&mut self) -> Result<(), StoreError> {
        for queue in Queue::ALL {
            let next = self.heads[index(queue.lane())].borrow().next_position;
            if let Some(want) = self.delivery.wants(queue, next) {
                let records = self.task.store.read(queue.lane(), want.from, want.records_max).await?;
                self.delivery.offer(want, records, next);
            }
        }
        Ok(())
    }

    fn send(&mut self, lane: Lane) -> bool {
        if !self.wire.has_room() {
            return false;
        }
        self.last_token += 1;
        let (token, now) = (self.last_token, self.task.clock.now());
        let handed = match lane {
            Lane::Alarm => self.delivery.next_alarm(token, now),
            Lane::Telemetry => self.delivery.next_telemetry(token, now),
        };
        let Some(handed) = handed else { return false };
        let sent = Sent { boot: self.task.clock.boot(), at: handed.first_sent };
        let message = message::encode(&handed.stored.record, &self.boots.borrow(), &self.task.about, sent);
        let bytes = message.topic.len() + message.payload.len();
        if !self.wire.publish(token, publish(message, Retain::No, CONTENT_TYPE_EVENT)) {
            self.delivery.not_sent(token);
            return false;
        }
        self.sent_at.insert(token, (lane, now));
        let metrics = &self.task.metrics;
        metrics.uplink_publishes.with_label_values(&[lane.as_str()]).inc();
        metrics.uplink_sent_bytes.inc_by(bytes as u64);
        metrics.uplink_in_flight.set(i64::try_from(self.delivery.in_flight()).unwrap_or(i64::MAX));
        true
    }
}

/// Which alarms' last events still wait in the store.
async fn unconfirmed(
    task: &UplinkTask,
    head: &Head,
    alarms: &[AlarmState],
) -> Result<HashSet<(Epoch, u64)>, StoreError> {
    let open = |id: &(Epoch, u64)| id.0 != head.status.epoch || id.1 > head.status.settled;
    let numbered = alarms.iter().filter_map(|state| state.told.as_ref().map(number));
    let asked: HashSet<(Epoch, u64)> = numbered.filter(open).collect();
    let (mut found, mut from) = (HashSet::new(), 0);
    while found.len() < asked.len() && from < head.next_position {
        let page = task.store.read(Lane::Alarm, from, SCAN_PAGE).await?;
        let Some(last) = page.last() else { break };
        from = last.position + 1;
        task.beat.mark();
        let ids = page.into_iter().map(|stored| (stored.record.epoch, stored.record.sequence));
        found.extend(ids.filter(|id| asked.contains(id)));
    }
    Ok(found)
}

fn number(told: &Told) -> (Epoch, u64) {
    (told.epoch.clone(), told.sequence)
}

/// The record that carried an alarm's last transition.
fn record_of(state: &AlarmState) -> Option<Record> {
    let Told { epoch, sequence, boot, recorded } = state.told.clone()?;
    let body = Body::Alarm(Box::new(state.last.clone()));
    Some(Record { lane: Lane::Alarm, epoch, sequence, boot, recorded, body })
}

fn field_time(record: &Record) -> Now {
    match &record.body {
        Body::Alarm(transition) => transition.at,
        Body::Telemetry(batch) => batch.readings.last().map_or(record.recorded, |sample| sample.at),
        Body::Stream(_) | Body::Command(_) => record.recorded,
    }
}
