//! What a connection says of the gateway.

use super::{Connection, Side, publish};
use crate::{
    alarm::{AlarmState, State},
    clock::Now,
    record::{Epoch, Lane},
    store::{Space, StoreError},
    uplink::{
        message::{self, CONTENT_TYPE_JSON, OfflineReason, Presence, Status},
        session::UplinkTask,
    },
    wire::Retain,
};

/// A change of this is said at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StatusKey {
    trusted: bool,
    epochs: [Epoch; 2],
    space: Space,
}

impl Connection<'_> {
    pub(super) async fn say_online(&mut self) -> Result<(), StoreError> {
        self.alarms_standing = standing(&self.task.store.alarms().await?);
        let now = self.task.clock.now();
        let status = status(self.task, self.session, self.alarms_standing, Presence::Online, None);
        let message = message::status(&self.task.about, &status);
        let conflict = &mut self.kept.own.conflict;
        conflict.speak_in(&status.lanes.a.epoch);
        conflict.said_online(self.broker);
        self.sides.push_front((Side::Retained, publish(message, Retain::Yes, CONTENT_TYPE_JSON)));
        self.status_said = Some((now, self.status_key(now)));
        self.status_due = false;
        Ok(())
    }

    pub(super) fn status_key(&self, now: Now) -> StatusKey {
        let epochs = self.heads.each_ref().map(|head| head.borrow().status.epoch.clone());
        StatusKey { trusted: now.trusted, epochs, space: *self.task.store.space().borrow() }
    }
}

pub(super) fn stands(state: &AlarmState) -> bool {
    state.configured && state.last.state != State::Norm
}

pub(in crate::uplink::session) fn standing(alarms: &[AlarmState]) -> u64 {
    alarms.iter().filter(|state| stands(state)).count() as u64
}

/// The status as it is now.
pub(in crate::uplink::session) fn status(
    task: &UplinkTask,
    session: u64,
    alarms_standing: u64,
    state: Presence,
    reason: Option<OfflineReason>,
) -> Status {
    let (now, boot) = (task.clock.now(), task.clock.boot());
    let [a, t] = Lane::ALL.map(|lane| task.store.head(lane));
    let (a, t) = (a.borrow(), t.borrow());
    Status {
        state,
        reason,
        boot: boot.clone(),
        session,
        version: env!("CARGO_PKG_VERSION"),
        config: task.fingerprint.clone(),
        site: task.about.site.clone(),
        started: message::time_of(&task.store.boots().borrow(), boot, task.started),
        clock: message::clock_now(boot, now),
        language: task.about.language.code(),
        lanes: message::Lanes { a: a.status.clone(), t: t.status.clone() },
        vitals: message::Vitals {
            uptime_s: now.since(task.started).as_secs(),
            backlog: message::Backlog { a: a.records, t: t.records },
            alarms_standing,
            written_day_bytes: task.board.written().and_then(|written| written.day_bytes),
            outbox: task.board.outbox().map(|outbox| message::OutboxVitals {
                disk_bytes: outbox.disk_bytes,
                quota_bytes: outbox.quota_bytes,
                full_in_s: outbox.full_in_s,
                space: outbox.space,
                unusable: outbox.unusable,
            }),
        },
    }
}
