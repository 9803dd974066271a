//! How long to wait before the next connection: pure, for every client of a broker.
//!
//! Pauses grow from half a second to a minute and are spread at random, so that a city of gateways does not return in
//! one second after an outage. They start again only after a connection that held for a minute: a broker that accepts
//! and then kicks is met ever more slowly too.

use std::time::Duration;

/// A connection that held this long shows that the trouble is over.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// How urgent the next attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// The network or the broker is away: 0.5 s to 60 s.
    Normal,
    /// Somebody must change a configuration (login refused, client id taken): 30 s to 5 min, so that two gateways of one
    /// name or a lock-out after wrong passwords are not made worse.
    Slow,
    /// Something beside us on the same network, or an address of our own: 100 ms to 30 s.
    Near,
}

impl Pace {
    const fn bounds(self) -> (Duration, Duration) {
        match self {
            Self::Normal => (Duration::from_millis(500), Duration::from_secs(60)),
            Self::Slow => (Duration::from_secs(30), Duration::from_secs(300)),
            Self::Near => (Duration::from_millis(100), Duration::from_secs(30)),
        }
    }
}

/// Where between its bounds a pause falls: 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter(f64);

impl Jitter {
    /// A fixed one; `None` outside 0 to 1.
    #[must_use]
    pub fn new(part: f64) -> Option<Self> {
        (0.0..=1.0).contains(&part).then_some(Self(part))
    }

    /// A random one.
    #[must_use]
    pub fn random() -> Self {
        Self(fastrand::f64())
    }

    /// This part of `whole`.
    #[must_use]
    pub fn of(self, whole: Duration) -> Duration {
        whole.mul_f64(self.0)
    }
}

/// Counts attempts that led to nothing lasting.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a connection, or an attempt, that ended; `up_for` is how long it was accepted.
    #[must_use]
    pub fn after(&mut self, up_for: Duration, pace: Pace, jitter: Jitter) -> Duration {
        if up_for >= STABLE_AFTER {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let (least, most) = pace.bounds();
        let ceiling = least.saturating_mul(2_u32.saturating_pow(self.failures)).min(most);
        least + jitter.of(ceiling.saturating_sub(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(backoff: &mut Backoff, up_for_s: u64, pace: Pace, part: f64) -> f64 {
        let jitter = Jitter::new(part).expect("0 to 1");
        backoff.after(Duration::from_secs(up_for_s), pace, jitter).as_secs_f64()
    }

    #[test]
    fn pauses_grow_to_a_minute_and_are_never_below_half_a_second() {
        let (mut least, mut most) = (Backoff::default(), Backoff::default());
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            assert!((seconds(&mut most, 0, Pace::Normal, 1.0) - expected).abs() < 1e-6);
            assert!((seconds(&mut least, 0, Pace::Normal, 0.0) - 0.5).abs() < 1e-6);
        }
        for _ in 0..100 {
            assert!(seconds(&mut most, 0, Pace::Normal, 1.0) <= 60.0);
        }
    }

    #[test]
    fn only_a_stable_connection_starts_the_pauses_again() {
        let mut backoff = Backoff::default();
        let kicked = [0, 1, 59, 59].map(|up_for_s| seconds(&mut backoff, up_for_s, Pace::Normal, 1.0));
        assert!(kicked.is_sorted_by(|a, b| a < b), "{kicked:?}");
        assert!(seconds(&mut backoff, 60, Pace::Normal, 1.0) <= 1.0);
    }

    #[test]
    fn a_wrong_login_or_a_taken_name_is_tried_slowly() {
        let mut backoff = Backoff::default();
        assert!(seconds(&mut backoff, 0, Pace::Slow, 0.0) >= 30.0);
        for _ in 0..10 {
            assert!(seconds(&mut backoff, 0, Pace::Slow, 1.0) <= 300.0);
        }
    }

    #[test]
    fn jitter_is_a_part_of_one() {
        for bad in [-0.1, 1.1, f64::NAN] {
            assert_eq!(Jitter::new(bad), None);
        }
        assert!((0..1000).all(|_| Jitter::new(Jitter::random().0).is_some()));
    }
}
