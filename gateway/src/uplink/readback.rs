//! What the gateway finds in its own retained topics when it connects: pure.
//!
//! The broker sends every retained message before it echoes the marker of this connection, so after the marker the
//! picture is complete.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::message::PAYLOAD_SIZE_MAX;
use crate::{
    clock::BootId,
    record::{Epoch, LaneStatus, LastKnown},
};

/// Retained alarm topics that are remembered; a broker that has more of ours is cleaned at later connections.
const ALARMS_MAX: usize = 10_000;

/// The retained topics, as far as they were read.
#[derive(Debug, Default)]
pub(super) struct ReadBack {
    status: Option<SeenStatus>,
    /// The event id each alarm topic holds, by alarm; none where the payload is not one of ours.
    alarms: BTreeMap<String, Option<String>>,
}

/// The part of a status that matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct SeenStatus {
    state: String,
    boot: Option<BootId>,
    session: u64,
    lanes: SeenLanes,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct SeenLanes {
    a: SeenLane,
    t: SeenLane,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct SeenLane {
    epoch: Epoch,
    next: u64,
}

/// Who says something under our id: one connection of one boot over one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Voice {
    pub(super) boot: Option<BootId>,
    pub(super) epoch: Epoch,
    pub(super) session: u64,
}

impl SeenStatus {
    /// Reads a status; none if it is not one.
    #[must_use]
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        (payload.len() <= PAYLOAD_SIZE_MAX).then(|| serde_json::from_slice(payload).ok())?
    }

    /// Who says this.
    #[must_use]
    pub(super) fn voice(&self) -> Voice {
        Voice { boot: self.boot.clone(), epoch: self.lanes.a.epoch.clone(), session: self.session }
    }

    /// Whether it says offline.
    #[must_use]
    pub(super) fn is_offline(&self) -> bool {
        self.state == "offline"
    }
}

impl ReadBack {
    /// The retained status.
    pub(super) fn saw_status(&mut self, status: SeenStatus) {
        self.status = Some(status);
    }

    /// A retained alarm.
    pub(super) fn saw_alarm(&mut self, alarm: &str, payload: &[u8]) {
        #[derive(Deserialize)]
        struct Identity {
            id: String,
        }
        if !payload.is_empty() && self.alarms.len() < ALARMS_MAX {
            let identity = serde_json::from_slice::<Identity>(payload).ok();
            self.alarms.insert(alarm.to_owned(), identity.map(|identity| identity.id));
        }
    }

    /// The numbers the center knows of our present epochs, if they are higher than ours: the store was rolled back.
    #[must_use]
    pub(super) fn rolled_back(&self, a: &LaneStatus, t: &LaneStatus) -> Option<LastKnown> {
        let lanes = &self.status.as_ref()?.lanes;
        let ahead = |seen: &SeenLane, ours: &LaneStatus| seen.epoch == ours.epoch && seen.next > ours.next;
        let known = LastKnown { a: lanes.a.next.saturating_sub(1), t: lanes.t.next.saturating_sub(1) };
        (ahead(&lanes.a, a) || ahead(&lanes.t, t)).then_some(known)
    }

    /// Alarms whose topic holds something.
    pub(super) fn alarms(&self) -> impl Iterator<Item = &str> {
        self.alarms.keys().map(String::as_str)
    }

    /// Whether the alarm's topic already holds this event.
    #[must_use]
    pub(super) fn holds(&self, alarm: &str, event_id: &str) -> bool {
        self.alarms.get(alarm).is_some_and(|id| id.as_deref() == Some(event_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "0123456789abcdef";

    fn lane(epoch: &str, next: u64) -> LaneStatus {
        LaneStatus { epoch: Epoch::parse(epoch).expect("an epoch"), next, settled: 0 }
    }

    #[test]
    fn a_higher_number_of_our_own_epoch_means_the_store_was_rolled_back() {
        let status = |epoch: &str, a: u64, t: u64| {
            format!(
                r#"{{"state":"offline","session":3,"lanes":{{"a":{{"epoch":"{epoch}","next":{a},"settled":1}},
                "t":{{"epoch":"{epoch}","next":{t},"settled":1}}}}}}"#
            )
        };
        let cases = [
            (status(OURS, 10, 20), None),
            (status(OURS, 11, 20), Some(LastKnown { a: 10, t: 19 })),
            (status(OURS, 9, 21), Some(LastKnown { a: 8, t: 20 })),
            (status("another0another0", 99, 99), None),
            ("{}".to_owned(), None),
            ("\u{0}".to_owned(), None),
        ];
        for (payload, expected) in cases {
            let seen = ReadBack { status: SeenStatus::parse(payload.as_bytes()), ..ReadBack::default() };
            assert_eq!(seen.rolled_back(&lane(OURS, 10), &lane(OURS, 20)), expected, "{payload}");
        }
    }

    #[test]
    fn an_alarm_topic_is_known_by_the_event_it_holds() {
        let mut seen = ReadBack::default();
        seen.saw_alarm("panel/door/open", br#"{"id":"x-a-1"}"#);
        seen.saw_alarm("panel/lamp/open", b"junk");
        seen.saw_alarm("panel/gone/open", b"");
        assert_eq!(seen.alarms().collect::<Vec<_>>(), ["panel/door/open", "panel/lamp/open"]);
        assert!(seen.holds("panel/door/open", "x-a-1") && !seen.holds("panel/door/open", "x-a-2"));
        assert!(!seen.holds("panel/lamp/open", ""));
    }
}
