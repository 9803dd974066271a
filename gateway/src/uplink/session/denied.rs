//! Whether the broker denies us a lane: the alarm `gateway/delivery-refused` (DESIGN.md §5.3).
//!
//! The alarm travels like any other, so a broker that denies the alarm lane hears of it only afterwards; the gateway's
//! own status and page say it at once.

use super::connection::index;
use crate::{
    alarm::AlarmId,
    clock::Now,
    reading::{PointId, Reading, Value},
    record::Lane,
    wire::Verdict,
};

/// What the last verdicts said, and what the pipeline was told of it. Outlives connections.
#[derive(Debug, Default)]
pub(super) struct Denied {
    lanes: [Option<bool>; 2],
    told: Option<bool>,
}

impl Denied {
    /// A record's verdict came.
    pub(super) const fn note(&mut self, lane: Lane, verdict: Verdict) {
        match verdict {
            Verdict::NotAuthorised => self.lanes[index(lane)] = Some(true),
            Verdict::Accepted | Verdict::NoSubscriber => self.lanes[index(lane)] = Some(false),
            Verdict::Later(_) | Verdict::Invalid(_) => {}
        }
    }

    /// What the pipeline is still to be told; [`Denied::told`] follows when it was.
    pub(super) fn untold(&self) -> Option<bool> {
        let is = self.lanes.iter().flatten().copied().reduce(|a, b| a | b)?;
        (self.told != Some(is)).then_some(is)
    }

    /// The pipeline was told.
    pub(super) const fn told(&mut self, is: bool) {
        self.told = Some(is);
    }
}

/// The reading that carries it.
pub(super) fn reading(denied: bool, now: Now) -> Reading {
    let point = PointId::parse(AlarmId::delivery_refused().as_str()).expect("two segments");
    Reading::good(point, Value::Bool(denied), now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_until_it_was_and_once_a_change() {
        let mut denied = Denied::default();
        assert_eq!(denied.untold(), None, "nothing is known yet");
        denied.note(Lane::Telemetry, Verdict::NotAuthorised);
        denied.note(Lane::Alarm, Verdict::Accepted);
        assert_eq!((denied.untold(), denied.untold()), (Some(true), Some(true)));
        denied.told(true);
        denied.note(Lane::Telemetry, Verdict::Later(0x97));
        assert_eq!(denied.untold(), None, "busy says nothing about rights");
        denied.note(Lane::Telemetry, Verdict::NoSubscriber);
        assert_eq!(denied.untold(), Some(false));
    }
}
