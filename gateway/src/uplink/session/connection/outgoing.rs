//! What a connection does after each event: tell the store what arrived, and publish what may go.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{
    CONFIRMS_AT_ONCE, Connection, Done, Phase, REFUSED_AGAIN_MS, Side, SideSent, SideWaits,
    beginning::{number, record_of, unconfirmed},
    index, publish,
};
use crate::{
    alarm::{AlarmId, AlarmState, Told},
    clock::Now,
    pipeline::Input,
    record::{Body, Epoch, Lane, Record, Refused},
    store::{StoreError, Stored},
    uplink::{
        delivery::Queue,
        message::{self, CONTENT_TYPE_EVENT, Sent},
    },
    wire::{Publish, Retain},
};

impl Connection<'_> {
    /// Tells the store what has arrived, and makes ready what follows from it.
    pub(super) async fn settle(&mut self) -> Result<(), StoreError> {
        // At most once a second: all alarms are looked at.
        let given_up = self.settle_now && self.heads[index(Lane::Alarm)].borrow().given_up != self.given_up;
        let more_to_come = self.delivery.in_flight() > 0 && self.delivered.len() < CONFIRMS_AT_ONCE;
        let delivered = if more_to_come && !self.settle_now { Vec::new() } else { std::mem::take(&mut self.delivered) };
        self.settle_now = false;
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
        self.arrived(delivered);
        for stored in std::mem::take(&mut self.aside) {
            self.declare(&stored);
        }
        if self.phase == Phase::Beginning {
            self.begin().await?;
        } else if self.phase == Phase::Delivering && given_up {
            self.look_at_given_up();
        }
        if matches!(self.phase, Phase::Draining { .. }) && self.delivery.in_flight() == 0 {
            self.leave();
        }
        Ok(())
    }

    /// Counts what has arrived, and remembers which retained topics follow from it.
    fn arrived(&mut self, delivered: Vec<Stored>) {
        if delivered.is_empty() {
            return;
        }
        let now = self.task.clock.now();
        for stored in delivered {
            let record = &stored.record;
            if record.boot == *self.task.clock.boot() {
                let seconds = now.since(field_time(record)).as_secs_f64();
                self.end_to_end_seconds[index(record.lane)].observe(seconds);
            }
            if let Body::Alarm(transition) = &record.body
                && !self.is_outdated(&transition.alarm, record)
                && self.to_follow.get(&transition.alarm).is_none_or(|older| older.position < stored.position)
            {
                self.to_follow.insert(transition.alarm.clone(), stored);
            }
        }
        self.follow();
    }

    /// Whether the store has already told of something newer: of a backlog only the last event of each alarm is followed,
    /// and the store need not be asked about the others.
    fn is_outdated(&self, alarm: &AlarmId, record: &Record) -> bool {
        let newer = |told: &Told| told.epoch == record.epoch && told.sequence > record.sequence;
        self.told.get(alarm).is_some_and(newer)
    }

    /// The retained topics of alarms follow their events, where nothing newer has happened since. One question at a time:
    /// an older answer must not come after a newer one.
    fn follow(&mut self) {
        if self.following || self.to_follow.is_empty() {
            return;
        }
        self.following = true;
        let (store, newest) = (self.task.store.clone(), std::mem::take(&mut self.to_follow));
        self.pending.push(Box::pin(async move {
            let present = store.alarms_of(newest.keys().cloned().collect()).await;
            // A store that cannot answer ends the daemon by itself.
            Done::Followed { newest, present: present.unwrap_or_default() }
        }));
    }

    pub(super) fn followed(&mut self, mut newest: BTreeMap<AlarmId, Stored>, present: Vec<AlarmState>) {
        self.following = false;
        for state in present {
            let alarm = &state.last.alarm;
            let is_present = |stored: &Stored| matches!(&stored.record.body, Body::Alarm(of) if **of == state.last);
            if newest.get(alarm).is_some_and(|stored| !is_present(stored)) {
                newest.remove(alarm);
            }
            if let Some(told) = state.told {
                self.told.insert(state.last.alarm, told);
            }
        }
        let now = self.task.clock.now();
        for stored in newest.values() {
            self.queue_state(&stored.record, now);
        }
        self.follow();
    }

    /// An event that was given up takes no retained topic along: asks the store what they should show.
    fn look_at_given_up(&mut self) {
        let head = self.heads[index(Lane::Alarm)].clone();
        self.given_up = head.borrow().given_up;
        let (store, beat) = (self.task.store.clone(), self.task.beat.clone());
        self.pending.push(Box::pin(async move {
            let settled = async {
                let mut alarms = store.alarms().await?;
                let head = head.borrow().clone();
                let unconfirmed = unconfirmed(&store, &beat, &head, &alarms).await?;
                alarms.retain(|state| state.told.as_ref().is_some_and(|told| !unconfirmed.contains(&number(told))));
                Ok::<_, StoreError>(alarms)
            };
            // A store that cannot answer ends the daemon by itself.
            Done::LookedAtGivenUp(settled.await.unwrap_or_default())
        }));
    }

    /// Retained topics of alarms whose last event is not on its way show their states.
    pub(super) fn looked_at_given_up(&mut self, settled: &[AlarmState]) {
        let now = self.task.clock.now();
        for state in settled {
            let told = state.told.as_ref().map(number);
            if self.shown.get(&state.last.alarm) != told.as_ref()
                && let Some(record) = record_of(state)
            {
                self.queue_state(&record, now);
            }
        }
    }

    pub(super) fn queue_state(&mut self, record: &Record, now: Now) {
        let Body::Alarm(transition) = &record.body else { return };
        let newer = |(epoch, sequence): &(Epoch, u64)| *epoch == record.epoch && *sequence > record.sequence;
        if self.shown.get(&transition.alarm).is_some_and(newer) {
            return;
        }
        self.shown.insert(transition.alarm.clone(), (record.epoch.clone(), record.sequence));
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
        let now = self.task.clock.now();
        loop {
            self.feed();
            let mut sent = false;
            while self.send(Lane::Alarm, now) {
                sent = true;
            }
            while self.wire.has_room()
                && let Some((_, state)) = self.states.pop_first()
            {
                self.publish_side(Side::Retained, state);
            }
            while self.send(Lane::Telemetry, now) {
                sent = true;
            }
            if !sent {
                return Ok(());
            }
        }
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
        let (token, since) = (self.last_token, self.task.clock.now());
        let bytes = publish.topic.len() + publish.payload.len();
        let again = matches!(side, Side::Retained).then(|| publish.clone());
        self.refused.remove(&publish.topic); // this one is newer
        if !self.wire.publish(token, publish) {
            if let Some(again) = again {
                self.refused(again, since);
            }
            return;
        }
        self.task.metrics.uplink_sent_bytes.inc_by(bytes as u64);
        let what = match (side, again) {
            (Side::Marker, _) => SideWaits::Marker,
            (Side::Farewell, _) => SideWaits::Farewell,
            (Side::Reply(receipt), _) => {
                self.wire.acknowledge(receipt);
                SideWaits::Reply
            }
            (Side::Retained, again) => SideWaits::Retained(again.expect("cloned above")),
        };
        self.side_tokens.insert(token, SideSent { since, what });
    }

    /// The broker does not take a retained publish now: it is tried again, unless a newer one is on its way.
    pub(super) fn refused(&mut self, publish: Publish, now: Now) {
        let newer = |sent: &SideSent| matches!(&sent.what, SideWaits::Retained(of) if of.topic == publish.topic);
        if !self.states.contains_key(&publish.topic) && !self.side_tokens.values().any(newer) {
            self.refused.insert(publish.topic.clone(), publish);
            self.refused_again_at_ms.get_or_insert(now.mono_ms + REFUSED_AGAIN_MS);
        }
    }

    /// Asks the store for what will be sent next, while what is there already goes out.
    fn feed(&mut self) {
        for queue in Queue::ALL {
            let next_position = self.heads[index(queue.lane())].borrow().next_position;
            if !self.reading.contains(&queue)
                && let Some(want) = self.delivery.wants(queue, next_position)
            {
                self.reading.push(queue);
                let store = self.task.store.clone();
                self.pending.push(Box::pin(async move {
                    let records = store.read(queue.lane(), want.from, want.records_max).await;
                    // A store that cannot answer ends the daemon by itself.
                    Done::Read { want, records: records.unwrap_or_default(), next_position }
                }));
            }
        }
    }

    fn send(&mut self, lane: Lane, now: Now) -> bool {
        if !self.wire.has_room() {
            return false;
        }
        self.last_token += 1;
        let token = self.last_token;
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
        self.publishes[index(lane)].inc();
        metrics.uplink_sent_bytes.inc_by(bytes as u64);
        metrics.uplink_in_flight.set(i64::try_from(self.delivery.in_flight()).unwrap_or(i64::MAX));
        true
    }
}

fn field_time(record: &Record) -> Now {
    match &record.body {
        Body::Alarm(transition) => transition.at,
        Body::Telemetry(batch) => batch.readings.last().map_or(record.recorded, |sample| sample.at),
        Body::Stream(_) | Body::Command(_) => record.recorded,
    }
}
