//! PURE: how long to wait before the next attempt.
//!
//! Full jitter: a random time up to a bound that doubles, so that a city of gateways does not come back in step. A
//! connection that was accepted and soon lost is no success: the bound falls back only after a stable minute.

use std::time::Duration;

use crate::clock::Now;

/// A connection that lasted so long was a good one.
const STABLE: Duration = Duration::from_secs(60);

/// The waits of one connection's owner.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    bound: Duration,
    since: Option<Now>,
}

impl Backoff {
    /// Waits up to `min` first, up to `max` in the end.
    #[must_use]
    pub const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, bound: min, since: None }
    }

    /// How long to wait now.
    #[expect(clippy::should_implement_trait, reason = "it never ends, and waits are not a collection")]
    pub fn next(&mut self) -> Duration {
        let wait = self.bound.mul_f64(fastrand::f64());
        self.bound = self.bound.saturating_mul(2).min(self.max);
        wait
    }

    /// The attempt succeeded.
    pub const fn connected(&mut self, now: Now) {
        self.since = Some(now);
    }

    /// The connection ended.
    pub fn lost(&mut self, now: Now) {
        if self.since.take().is_some_and(|since| now.since(since) >= STABLE) {
            self.bound = self.min;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_maximum_and_fall_back_after_a_stable_minute() {
        let at = |s: u64| Now { mono_ms: s * 1_000, wall_ms: 0, trusted: false };
        let [min, max] = [1, 60].map(Duration::from_secs);
        let mut backoff = Backoff::new(min, max);
        for bound in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(backoff.bound, Duration::from_secs(bound));
            assert!(backoff.next() <= Duration::from_secs(bound));
        }
        backoff.connected(at(0));
        backoff.lost(at(59));
        assert_eq!(backoff.bound, max, "kicked out again");
        backoff.connected(at(100));
        backoff.lost(at(160));
        assert_eq!(backoff.bound, min);
    }
}
