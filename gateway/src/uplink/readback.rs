//! What the gateway finds in its own retained topics when it connects: pure.
//!
//! The broker sends every retained message before it echoes the marker of this connection, so after the marker the
//! picture is complete.
//!
//! After a start it also shows whether the store is a copy of an earlier one that went on without it. A life of the store
//! that the copy knows nothing of has left one of these under our epoch: a status with a number that was not given before
//! this start, or of a connection that was not counted before; a standing alarm with such a number.
//!
//! Limits: what says nothing does not contradict. A broker that lost its retained messages, or has never seen us, knows of
//! no other life; then the numbers go on. Nor can it tell of a life that ended by a crash within the very connection in
//! which the copy was made: the will of that connection, which the status then holds, was written when it began.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::message::PAYLOAD_SIZE_MAX;
use crate::{
    clock::BootId,
    record::{Epoch, LaneStatus, LastKnown},
    store::Unproven,
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

    /// What the center knows of a numbering that we do not: then the store is a copy of an earlier one. Holds only before
    /// anything was published under it.
    #[must_use]
    pub(super) fn contradicts(&self, unproven: &Unproven) -> Option<LastKnown> {
        let lanes = self.status.as_ref().map(|status| &status.lanes);
        let next = |seen: &SeenLane| if seen.epoch == unproven.epoch { seen.next } else { 0 };
        let standing = self.alarms.values().flatten().filter_map(|id| alarm_sequence(id, &unproven.epoch)).max();
        let known = LastKnown {
            a: lanes.map_or(0, |lanes| next(&lanes.a)).saturating_sub(1).max(standing.unwrap_or(0)),
            t: lanes.map_or(0, |lanes| next(&lanes.t)).saturating_sub(1),
        };
        let later = |status: &SeenStatus| status.lanes.a.epoch == unproven.epoch && status.session > unproven.session;
        let ahead = known.a >= unproven.from.a || known.t >= unproven.from.t;
        (ahead || self.status.as_ref().is_some_and(later)).then_some(known)
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

/// The number in an event's id, if it is one of lane a in that epoch.
fn alarm_sequence(id: &str, epoch: &Epoch) -> Option<u64> {
    id.strip_prefix(epoch.as_str())?.strip_prefix("-a-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Next;

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
    fn whatever_another_life_of_the_store_left_contradicts_and_silence_does_not() {
        let status = |epoch: &str, session: u64, a: u64, t: u64| {
            let lane = |next| format!(r#"{{"epoch":"{epoch}","next":{next},"settled":0}}"#);
            let (a, t) = (lane(a), lane(t));
            format!(r#"{{"state":"online","session":{session},"lanes":{{"a":{a},"t":{t}}}}}"#)
        };
        let unproven =
            Unproven { epoch: Epoch::parse(OURS).expect("an epoch"), from: Next { a: 10, t: 20 }, session: 5 };
        let (ours, theirs) = (|n| format!("{OURS}-a-{n}"), |n| format!("another0another0-a-{n}"));
        for (status, alarm, expected) in [
            (None, None, None),
            (None, Some(ours(9)), None),
            (None, Some(theirs(99)), None),
            (None, Some("junk".to_owned()), None),
            (Some(status(OURS, 5, 10, 20)), Some(ours(9)), None),
            (Some(status("another0another0", 9, 99, 99)), None, None),
            (Some(status(OURS, 5, 11, 20)), None, Some((10, 19))),
            (Some(status(OURS, 5, 10, 21)), None, Some((9, 20))),
            (Some(status(OURS, 6, 8, 15)), None, Some((7, 14))),
            (Some(status(OURS, 5, 10, 20)), Some(ours(12)), Some((12, 19))),
            (None, Some(ours(10)), Some((10, 0))),
        ] {
            let parsed = status.as_ref().and_then(|text| SeenStatus::parse(text.as_bytes()));
            let mut seen = ReadBack { status: parsed, ..ReadBack::default() };
            assert_eq!(seen.status.is_some(), status.is_some());
            if let Some(id) = &alarm {
                seen.saw_alarm("panel/door/open", format!(r#"{{"id":"{id}"}}"#).as_bytes());
            }
            let expected = expected.map(|(a, t)| LastKnown { a, t });
            assert_eq!(seen.contradicts(&unproven), expected, "{status:?} {alarm:?}");
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
