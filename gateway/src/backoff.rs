//! How long to wait before the next connection: pure, for every client of a broker.
//!
//! Two wishes pull apart. After the usual short outage (a broker restarts, a modem dials again) a gateway must be back
//! within a second; after a long one a city of gateways must not return in one second. So the first attempts of an outage
//! come quickly, for at least 6 s, and only then pauses grow: doubling to a minute, half of each fixed and half at random.
//! Wholly random pauses would spread no better: their mean is shorter, so that a third more gateways would return in the
//! first second after an outage.
//!
//! Pauses start again only after a connection that held for a minute: a broker that accepts and then kicks is met ever
//! more slowly too, and two gateways of one name do not fight for ever.

use std::time::Duration;

/// A connection that held this long shows that the trouble is over.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Attempts of an outage that come quickly: with the shortest pauses they last 6 s, longer than a broker's restart.
const QUICK_ATTEMPTS: u32 = 15;
/// Their pauses, in milliseconds: always back within a second, and never in step.
const QUICK_MS: (u64, u64) = (400, 900);
/// A connection that was accepted and did not hold counts as so many quick attempts: whoever is kicked three times in a row
/// is not the victim of a restart.
const KICK_COUNTS: u32 = 5;
/// Then pauses double from here, to [`LONG_MAX`].
const LONG_FIRST: Duration = Duration::from_secs(2);
/// A thousand gateways return over a minute after a long outage, no more than 50 in any second.
const LONG_MAX: Duration = Duration::from_secs(60);

/// How urgent the next attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// The network or the broker is away: below a second at first, then up to 60 s.
    Normal,
    /// Somebody must change a configuration (login refused, client id taken): 30 s to 5 min, so that two gateways of one
    /// name or a lock-out after wrong passwords are not made worse.
    Slow,
    /// Something beside us on the same network, or an address of our own: 100 ms to 30 s.
    Near,
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

    /// This part of the way from `least` to `most`.
    #[must_use]
    pub fn between(self, least: Duration, most: Duration) -> Duration {
        least + self.of(most.saturating_sub(least))
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
        let kicked = pace == Pace::Normal && !up_for.is_zero() && up_for < STABLE_AFTER;
        self.failures = if kicked && self.failures < QUICK_ATTEMPTS {
            (self.failures + KICK_COUNTS).min(QUICK_ATTEMPTS)
        } else {
            self.failures.saturating_add(1)
        };
        let doubled = |first: Duration, times: u32| first.saturating_mul(2_u32.saturating_pow(times));
        let grown = |least: Duration, most: Duration| jitter.between(least, doubled(least, self.failures).min(most));
        match pace {
            Pace::Normal if self.failures <= QUICK_ATTEMPTS => {
                jitter.between(Duration::from_millis(QUICK_MS.0), Duration::from_millis(QUICK_MS.1))
            }
            Pace::Normal => {
                let ceiling = doubled(LONG_FIRST, self.failures - QUICK_ATTEMPTS - 1).min(LONG_MAX);
                jitter.between(ceiling / 2, ceiling)
            }
            Pace::Slow => grown(Duration::from_secs(30), Duration::from_secs(300)),
            Pace::Near => grown(Duration::from_millis(100), Duration::from_secs(30)),
        }
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
    fn the_first_pauses_are_short_and_then_they_grow_to_a_minute() {
        let (mut least, mut most) = (Backoff::default(), Backoff::default());
        for _ in 0..QUICK_ATTEMPTS {
            assert!((seconds(&mut least, 0, Pace::Normal, 0.0) - 0.4).abs() < 1e-6);
            assert!((seconds(&mut most, 0, Pace::Normal, 1.0) - 0.9).abs() < 1e-6);
        }
        for expected in [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            assert!((seconds(&mut most, 0, Pace::Normal, 1.0) - expected).abs() < 1e-6);
            assert!((seconds(&mut least, 0, Pace::Normal, 0.0) - expected / 2.0).abs() < 1e-6);
        }
        for _ in 0..100 {
            assert!(seconds(&mut most, 0, Pace::Normal, 1.0) <= 60.0);
        }
    }

    #[test]
    fn only_a_stable_connection_starts_the_pauses_again() {
        let mut backoff = Backoff::default();
        let kicked: Vec<f64> = (0..9).map(|_| seconds(&mut backoff, 59, Pace::Normal, 1.0)).collect();
        let expected = [0.9, 0.9, 0.9, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0];
        assert!(kicked.iter().zip(expected).all(|(is, should)| (is - should).abs() < 1e-6), "{kicked:?}");
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
    fn something_near_is_met_again_soon() {
        let mut backoff = Backoff::default();
        for expected in [0.2, 0.4, 0.8, 1.6] {
            assert!((seconds(&mut backoff, 0, Pace::Near, 1.0) - expected).abs() < 1e-6);
        }
        for _ in 0..20 {
            assert!(seconds(&mut backoff, 0, Pace::Near, 1.0) <= 30.0);
        }
    }

    #[test]
    fn jitter_is_a_part_of_one() {
        for bad in [-0.1, 1.1, f64::NAN] {
            assert_eq!(Jitter::new(bad), None);
        }
        assert!((0..1000).all(|_| Jitter::new(Jitter::random().0).is_some()));
    }

    const FLEET: usize = 1_000;

    /// When each gateway of a city is back, in seconds after its broker is: all lost it at once, and attempts in vain take
    /// no time, which is what keeps them in step longest. `waited` is how often each has already failed.
    fn returns_s(outage_s: f64, waited: u32, mut part: impl FnMut() -> f64) -> Vec<f64> {
        let mut back: Vec<f64> = (0..FLEET)
            .map(|_| {
                let mut backoff = Backoff { failures: waited };
                let mut at_s = 0.0;
                while at_s < outage_s {
                    at_s += seconds(&mut backoff, 0, Pace::Normal, part());
                }
                at_s - outage_s
            })
            .collect();
        back.sort_by(f64::total_cmp);
        back
    }

    /// The most connects in any one second.
    fn peak(back: &[f64]) -> usize {
        let within = |from: f64| back.iter().filter(|at| (from..from + 1.0).contains(*at)).count();
        back.iter().map(|at| within(*at)).max().unwrap_or(0)
    }

    #[test]
    fn a_city_returns_within_a_second_of_a_short_outage_and_spread_after_a_long_one() {
        for seed in 0..10 {
            let mut random = fastrand::Rng::with_seed(seed);
            for outage_s in [0.0, 1.0, 5.0] {
                let back = returns_s(outage_s, 0, || random.f64());
                assert!(back.iter().all(|at| *at <= 1.0), "{outage_s} s: {:?}", back.last());
            }
            let back = returns_s(600.0, 0, || random.f64());
            assert!(peak(&back) <= FLEET / 20, "{} in one second", peak(&back));
            assert!(back.iter().all(|at| *at <= 60.0), "{:?}", back.last());
        }
    }

    /// The twins of the test above: without jitter the city returns in one second, and without quick attempts the first to
    /// return after a short outage are not there within a second.
    #[test]
    fn it_is_jitter_that_spreads_and_quick_attempts_that_return() {
        assert_eq!(peak(&returns_s(600.0, 0, || 1.0)), FLEET);
        let mut random = fastrand::Rng::with_seed(1);
        let back = returns_s(5.0, QUICK_ATTEMPTS, || random.f64());
        assert!(back.iter().any(|at| *at > 1.0));
    }
}
