//! How a connection begins: subscribe, read the own retained topics back, correct what is wrong in them.

use std::collections::HashSet;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Connection, Done, Phase, SCAN_PAGE, SIDE_SLOTS, Side, index, publish, status::stands};
use crate::{
    alarm::{AlarmState, Told},
    pipeline::Input,
    record::{Body, Epoch, Lane, LaneStatus, LastKnown, Record},
    status::Link,
    store::{Head, Store, StoreError},
    supervise::Beat,
    uplink::{
        READBACK,
        delivery::Hold,
        message::{self, CONTENT_TYPE_EVENT, CONTENT_TYPE_JSON, Message},
        session::WINDOW,
    },
    wire::{Limits, Retain},
};

impl Connection<'_> {
    pub(super) fn up(&mut self, limits: Limits) {
        let now = self.task.clock.now();
        let about = &self.task.about;
        let mut filters: Vec<String> = ["status", "alarm/#"].map(|topic| about.topic(topic)).into();
        filters.push(self.marker_topic());
        if self.unproven.is_none() {
            filters.extend(["command", "receipt"].map(|topic| about.topic(topic)));
            filters.extend(self.task.center.hold_when_center_offline.then(|| about.center_status_topic()));
        }
        self.limits = Some(limits);
        self.up_since = Some(now);
        self.phase = Phase::Subscribing { since: now };
        if !self.wire.subscribe(&filters) {
            tracing::warn!("the subscription did not fit a new connection's queue");
        }
        if self.unproven.is_some() {
            tracing::info!(broker = %self.url, "asking the command center which of our numbers it knows");
            return;
        }
        self.task.metrics.uplink_connected.set(1);
        self.task.post(self.url, Some(self.session), Link::Connected);
        tracing::info!(broker = %self.url, session = self.session, receive_maximum = limits.receive_maximum, "uplink is up");
    }

    pub(super) fn subscribed(&mut self, granted: &[bool]) {
        if !matches!(self.phase, Phase::Subscribing { .. }) {
            return;
        }
        if granted.contains(&false) {
            tracing::warn!(
                ?granted,
                "the broker refuses some subscriptions: status, alarm/#, reply/readback, command, receipt"
            );
        }
        self.phase = Phase::ReadingBack { since: self.task.clock.now() };
        let marker = Message { topic: self.marker_topic(), payload: self.marker() };
        self.sides.push_back((Side::Marker, publish(marker, Retain::No, CONTENT_TYPE_JSON)));
    }

    pub(super) fn marker_topic(&self) -> String {
        self.task.about.topic(&format!("reply/{READBACK}"))
    }

    /// A valid reply, so that whoever listens to all replies understands it.
    pub(super) fn marker(&self) -> Bytes {
        format!(r#"{{"id":"{READBACK}-{}","command":"{READBACK}","result":"ok"}}"#, self.session).into()
    }

    pub(super) fn read_back_complete(&mut self) {
        if !matches!(self.phase, Phase::ReadingBack { .. }) {
            return;
        }
        let [a, t] = self.heads.each_ref().map(|head| head.borrow().status.clone());
        let (durable, done) = oneshot::channel();
        let input = match &self.unproven {
            None => self.read_back.rolled_back(&a, &t).map(|known| rolled_back(known, durable)),
            Some(unproven) => Some(match self.read_back.contradicts(unproven) {
                Some(known) => rolled_back(known, durable),
                None => Input::Proven { durable },
            }),
        };
        let Some(input) = input else {
            self.phase = Phase::Beginning;
            return;
        };
        self.phase = Phase::Numbering;
        let pipeline = self.task.pipeline.clone();
        self.pending.push(Box::pin(async move {
            let _ = pipeline.send(input).await;
            match done.await {
                Ok(()) => Done::Numbered,
                // Without a pipeline the daemon is about to end, and nothing may be sent under the old numbers.
                Err(_) => std::future::pending().await,
            }
        }));
    }

    /// Says online, corrects the retained alarms, and opens the window.
    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
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
            self.sides.push_back((Side::Retained, publish(message, Retain::Yes, CONTENT_TYPE_JSON)));
        }
        self.correct_alarms().await?;
        let limits = self.limits.expect("the phase follows CONNACK");
        let allowed = WINDOW.min(limits.receive_maximum.saturating_sub(1)).saturating_sub(SIDE_SLOTS).max(1);
        let live_from = self.heads[index(Lane::Telemetry)].borrow().next_position;
        self.delivery.up(usize::from(allowed), live_from);
        self.delivery.set_hold(if self.kept.center_away_since.is_some() { Hold::AllButCritical } else { Hold::None });
        self.phase = Phase::Delivering;
        self.plan_look_back();
        Ok(())
    }

    async fn correct_alarms(&mut self) -> Result<(), StoreError> {
        self.given_up = self.heads[index(Lane::Alarm)].borrow().given_up;
        let alarms = self.task.store.alarms().await?;
        let head = self.heads[index(Lane::Alarm)].borrow().clone();
        let unconfirmed = unconfirmed(&self.task.store, &self.task.beat, &head, &alarms).await?;
        let read_back = std::mem::take(&mut self.read_back);
        let mut follows = HashSet::new();
        let now = self.task.clock.now();
        for state in &alarms {
            if state.told.as_ref().is_some_and(|told| unconfirmed.contains(&number(told))) {
                follows.insert(state.last.alarm.as_str()); // its event is on the way, and this topic goes after it
                continue;
            }
            if let Some(told) = &state.told {
                self.shown.insert(state.last.alarm.clone(), number(told));
            }
            if stands(state) {
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
}

/// The center knows more of our numbers than the store.
fn rolled_back(known: LastKnown, durable: oneshot::Sender<()>) -> Input {
    tracing::error!(known.a, known.t, "the center knows other records under our numbers: beginning a new epoch");
    let epoch = Epoch::random().expect("a kernel that runs us gives random numbers");
    Input::RolledBack { known, epoch, durable }
}

/// Which alarms' last events still wait in the store.
pub(super) async fn unconfirmed(
    store: &Store,
    beat: &Beat,
    head: &Head,
    alarms: &[AlarmState],
) -> Result<HashSet<(Epoch, u64)>, StoreError> {
    let LaneStatus { epoch, next, settled } = &head.status;
    let base = head.next_position - next;
    let numbered = alarms.iter().filter_map(|state| state.told.as_ref().map(number));
    let (present, asked): (HashSet<_>, HashSet<_>) = numbered.partition(|(of, _)| of == epoch);
    let mut found = HashSet::new();
    for id in present.into_iter().filter(|(_, sequence)| sequence > settled) {
        let waits = store.read(Lane::Alarm, base + id.1, 1).await?;
        found.extend(waits.iter().any(|stored| stored.position == base + id.1).then_some(id));
    }
    // Where numbers of older epochs lie is not known; all of them lie before the present ones.
    let (mut missing, mut from) = (asked.len(), 0);
    while missing > 0 && from <= base {
        let page = store.read(Lane::Alarm, from, SCAN_PAGE).await?;
        let Some(last) = page.last() else { break };
        from = last.position + 1;
        beat.mark();
        let ids = page.into_iter().map(|stored| (stored.record.epoch, stored.record.sequence));
        for id in ids.filter(|id| asked.contains(id)) {
            missing -= 1;
            found.insert(id);
        }
    }
    Ok(found)
}

pub(super) fn number(told: &Told) -> (Epoch, u64) {
    (told.epoch.clone(), told.sequence)
}

/// The record that carried an alarm's last transition.
pub(super) fn record_of(state: &AlarmState) -> Option<Record> {
    let Told { epoch, sequence, boot, recorded } = state.told.clone()?;
    let body = Body::Alarm(Box::new(state.last.clone()));
    Some(Record { lane: Lane::Alarm, epoch, sequence, boot, recorded, body })
}
