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
    telling: bool,
}

impl Denied {
    /// A new connection begins: a word under way on the last one may not have arrived.
    pub(super) const fn reconnect(&mut self) {
        self.telling = false;
    }

    /// A record's verdict came.
    pub(super) const fn note(&mut self, lane: Lane, verdict: Verdict) {
        match verdict {
            Verdict::NotAuthorised => self.lanes[index(lane)] = Some(true),
            Verdict::Accepted | Verdict::NoSubscriber => self.lanes[index(lane)] = Some(false),
            Verdict::Later(_) | Verdict::Invalid(_) => {}
        }
    }

    /// What the pipeline is to be told now; [`Denied::told`] follows when it was.
    pub(super) fn tell(&mut self) -> Option<bool> {
        let is = self.lanes.iter().flatten().copied().reduce(|a, b| a | b)?;
        let due = !self.telling && self.told != Some(is);
        self.telling |= due;
        due.then_some(is)
    }

    /// The pipeline was told.
    pub(super) const fn told(&mut self, is: bool) {
        (self.told, self.telling) = (Some(is), false);
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
    fn it_is_told_once_a_change_and_again_after_a_connection_that_broke() {
        let mut denied = Denied::default();
        assert_eq!(denied.tell(), None, "nothing is known yet");
        denied.note(Lane::Telemetry, Verdict::NotAuthorised);
        denied.note(Lane::Alarm, Verdict::Accepted);
        assert_eq!((denied.tell(), denied.tell()), (Some(true), None));
        denied.reconnect();
        assert_eq!(denied.tell(), Some(true));
        denied.told(true);
        denied.note(Lane::Telemetry, Verdict::Later(0x97));
        assert_eq!(denied.tell(), None, "busy says nothing about rights");
        denied.note(Lane::Telemetry, Verdict::NoSubscriber);
        assert_eq!(denied.tell(), Some(false));
    }
}
