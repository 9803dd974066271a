//! PURE: which points have been quiet for longer than their `stale`.
//!
//! A broker or a device that dies sends nothing, so silence must become a reading of its own. A quiet point is told
//! once and then forgotten until it speaks again. The table holds only points that have a name already, so it is
//! bounded by the configuration and by the table of names.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use crate::{clock::Now, reading::PointId};

/// When each point becomes stale.
#[derive(Debug, Default)]
pub struct Silence {
    due: BTreeSet<(u64, PointId)>,
    of: HashMap<PointId, u64>,
}

impl Silence {
    /// `point` has just spoken and may now be quiet for `stale`.
    pub fn heard(&mut self, point: &PointId, stale: Duration, now: Now) {
        let due_ms = now.mono_ms.saturating_add(u64::try_from(stale.as_millis()).unwrap_or(u64::MAX));
        if let Some(before) = self.of.insert(point.clone(), due_ms) {
            self.due.remove(&(before, point.clone()));
        }
        self.due.insert((due_ms, point.clone()));
    }

    /// The points that are quiet too long by now.
    pub fn expired(&mut self, now: Now) -> Vec<PointId> {
        let mut quiet = Vec::new();
        while self.due.first().is_some_and(|(due_ms, _)| *due_ms <= now.mono_ms) {
            let (_, point) = self.due.pop_first().expect("there is a first");
            self.of.remove(&point);
            quiet.push(point);
        }
        quiet
    }

    /// How long until the next one, if any speaks at all.
    #[must_use]
    pub fn next_in(&self, now: Now) -> Option<Duration> {
        self.due.first().map(|(due_ms, _)| Duration::from_millis(due_ms.saturating_sub(now.mono_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_point_is_told_once_and_again_only_after_it_spoke() {
        let at = |s: u64| Now { mono_ms: s * 1_000, wall_ms: 0, trusted: false };
        let point = |name: &str| PointId::parse(name).expect(name);
        let (a, b) = (point("a/x"), point("b/x"));
        let mut silence = Silence::default();
        silence.heard(&a, Duration::from_secs(10), at(0));
        silence.heard(&b, Duration::from_secs(20), at(0));
        silence.heard(&a, Duration::from_secs(10), at(5));
        for (now, next_in, expected) in [
            (14, Some(1), vec![]),
            (15, Some(0), vec![&a]),
            (19, Some(1), vec![]),
            (99, Some(0), vec![&b]),
            (100, None, vec![]),
        ] {
            assert_eq!(silence.next_in(at(now)), next_in.map(Duration::from_secs), "{now} s");
            assert_eq!(silence.expired(at(now)).iter().collect::<Vec<_>>(), expected, "{now} s");
        }
        silence.heard(&a, Duration::MAX, at(100));
        assert_eq!(silence.expired(at(1_000_000)), []);
    }
}
