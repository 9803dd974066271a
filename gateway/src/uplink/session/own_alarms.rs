//! Alarms that the uplink itself raises (DESIGN.md §5.3): `gateway/delivery-refused`, while the broker denies us a lane, and
//! `gateway/identity-conflict`, while another gateway uses our id.
//!
//! They travel like any other, so a broker that denies the alarm lane hears of it only afterwards; the gateway's own
//! status and page say it at once.

use super::{conflict::Conflict, connection::index};
use crate::{
    alarm::AlarmId,
    clock::Now,
    reading::{PointId, Reading, Value},
    record::Lane,
    wire::Verdict,
};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnAlarm {
    DeliveryRefused,
    IdentityConflict,
}

impl OwnAlarm {
    const ALL: [Self; 2] = [Self::DeliveryRefused, Self::IdentityConflict];

    /// The reading that raises or clears it.
    pub(super) fn reading(self, stands: bool, now: Now) -> Reading {
        let alarm = match self {
            Self::DeliveryRefused => AlarmId::delivery_refused(),
            Self::IdentityConflict => AlarmId::identity_conflict(),
        };
        let point = PointId::parse(alarm.as_str()).expect("a built-in alarm's name is that of its point");
        Reading::good(point, Value::Bool(stands), now)
    }
}

/// What is known of each, and what the pipeline was told. Outlives connections.
#[derive(Debug)]
pub(super) struct OwnAlarms {
    /// What the last verdicts said.
    denied: [Option<bool>; 2],
    pub(super) conflict: Conflict,
    told: [Option<bool>; 2],
}

impl OwnAlarms {
    pub(super) const fn new(conflict: Conflict) -> Self {
        Self { denied: [None; 2], conflict, told: [None; 2] }
    }

    /// A record's verdict came.
    pub(super) const fn note(&mut self, lane: Lane, verdict: Verdict) {
        match verdict {
            Verdict::NotAuthorised => self.denied[index(lane)] = Some(true),
            Verdict::Accepted | Verdict::NoSubscriber => self.denied[index(lane)] = Some(false),
            Verdict::Later(_) | Verdict::Invalid(_) => {}
        }
    }

    /// What the pipeline is still to be told; [`OwnAlarms::told`] follows when it was.
    pub(super) fn untold(&self) -> Option<(OwnAlarm, bool)> {
        let stands = |alarm| match alarm {
            OwnAlarm::DeliveryRefused => self.denied.iter().flatten().copied().reduce(|a, b| a | b),
            OwnAlarm::IdentityConflict => self.conflict.stands(),
        };
        OwnAlarm::ALL.into_iter().find_map(|alarm| {
            let stands = stands(alarm)?;
            (self.told[alarm as usize] != Some(stands)).then_some((alarm, stands))
        })
    }

    /// The pipeline was told.
    pub(super) const fn told(&mut self, alarm: OwnAlarm, stands: bool) {
        self.told[alarm as usize] = Some(stands);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::BootId;

    #[test]
    fn each_is_told_until_it_was_and_once_a_change() {
        let mut own = OwnAlarms::new(Conflict::new(BootId::new("b"), 1));
        assert_eq!(own.untold(), None, "nothing is known yet");
        own.note(Lane::Telemetry, Verdict::NotAuthorised);
        own.note(Lane::Alarm, Verdict::Accepted);
        let refused = |stands| Some((OwnAlarm::DeliveryRefused, stands));
        assert_eq!((own.untold(), own.untold()), (refused(true), refused(true)));
        own.told(OwnAlarm::DeliveryRefused, true);
        own.note(Lane::Telemetry, Verdict::Later(0x97));
        assert_eq!(own.untold(), None, "busy says nothing about rights");
        for mono_ms in [1, 2, 3] {
            own.conflict.taken_over(Now { mono_ms, wall_ms: 0, trusted: false });
        }
        assert_eq!(own.untold(), Some((OwnAlarm::IdentityConflict, true)));
        own.told(OwnAlarm::IdentityConflict, true);
        own.note(Lane::Telemetry, Verdict::NoSubscriber);
        assert_eq!(own.untold(), refused(false));
    }
}
