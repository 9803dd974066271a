//! Which broker is tried next, and when to look whether an earlier one is back: pure.
//!
//! Terms: a **round** tries every broker once, in the order of the configuration, without a pause after one that cannot be
//! reached; after the round comes a pause, so that this is never a busy loop. A connection that was accepted and ended is
//! always followed by a pause. A broker that refuses us until a person helps (a wrong password, a certificate) **rests**,
//! longer each time, and rounds leave it out: the others do not wait for it, and it is not asked ten times a second. A
//! **look** asks an earlier broker, while a later one serves us, whether it is back.

use std::time::Duration;

use crate::{
    backoff::{Backoff, Jitter, Pace, STABLE_AFTER},
    clock::Now,
};

/// Looks at an earlier broker are at first this far apart, half a keep alive if that is less, but never closer than
/// [`LOOK_MIN`]: whoever pays for a short keep alive wants to be back early.
const LOOK_FIRST_MAX: Duration = Duration::from_secs(60);
/// A TLS handshake costs 6 KiB; the shortest keep alive allowed gives this.
const LOOK_MIN: Duration = Duration::from_secs(5);
/// A look every ten minutes at a broker that was given up costs 1 MiB a day.
const LOOK_MAX: Duration = Duration::from_secs(600);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Connect to this broker.
    Try(usize),
    /// Wait.
    Pause(Duration),
}

/// The way through the brokers. Outlives connections.
#[derive(Debug)]
pub(super) struct Route {
    /// After whole rounds and accepted connections.
    backoff: Backoff,
    /// After another gateway drove us out.
    driven_out: Backoff,
    /// No broker is tried before this.
    pause_until_ms: u64,
    /// The next of this round.
    cursor: usize,
    rests: Vec<Rest>,
    /// Half a keep alive, within bounds.
    look_first: Duration,
    /// Looks since a connection last held.
    looks: u32,
}

#[derive(Debug, Clone, Default)]
struct Rest {
    backoff: Backoff,
    until_ms: u64,
}

impl Rest {
    const fn over(&self, now: Now) -> bool {
        self.until_ms <= now.mono_ms
    }
}

impl Route {
    /// Begins with the first of `brokers`.
    pub(super) fn new(brokers: usize, keep_alive: Duration) -> Self {
        Self {
            backoff: Backoff::default(),
            driven_out: Backoff::default(),
            pause_until_ms: 0,
            cursor: 0,
            rests: vec![Rest::default(); brokers],
            look_first: (keep_alive / 2).clamp(LOOK_MIN, LOOK_FIRST_MAX),
            looks: 0,
        }
    }

    /// What to do now.
    pub(super) fn next(&mut self, now: Now, jitter: Jitter) -> Step {
        if self.pause_until_ms > now.mono_ms {
            return Step::Pause(Duration::from_millis(self.pause_until_ms - now.mono_ms));
        }
        let mut left = self.rests.iter().enumerate().skip(self.cursor);
        if let Some((broker, _)) = left.find(|(_, rest)| rest.over(now)) {
            self.cursor = broker + 1;
            return Step::Try(broker);
        }
        self.cursor = 0;
        let soonest_ms = self.rests.iter().map(|rest| rest.until_ms).min().unwrap_or(0);
        let pause = match soonest_ms.checked_sub(now.mono_ms) {
            Some(ms) if ms > 0 => Duration::from_millis(ms), // all of them rest
            _ => self.backoff.after(Duration::ZERO, Pace::Normal, jitter),
        };
        self.pause(now, pause)
    }

    fn pause(&mut self, now: Now, pause: Duration) -> Step {
        self.pause_until_ms = now.mono_ms + millis(pause);
        Step::Pause(pause)
    }

    /// A broker could not be reached or refused us.
    pub(super) fn failed(&mut self, broker: usize, needs_person: bool, now: Now, jitter: Jitter) {
        if needs_person {
            self.rest(broker, Duration::ZERO, now, jitter);
        }
    }

    fn rest(&mut self, broker: usize, up_for: Duration, now: Now, jitter: Jitter) {
        let rest = &mut self.rests[broker];
        rest.until_ms = now.mono_ms + millis(rest.backoff.after(up_for, Pace::Slow, jitter));
    }

    /// A connection that was accepted has ended. After one that held, the first broker is first again.
    pub(super) fn ended(&mut self, broker: usize, up_for: Duration, needs_person: bool, now: Now, jitter: Jitter) {
        let held = up_for >= STABLE_AFTER;
        if held {
            self.looks = 0;
        }
        self.cursor = if held || broker + 1 == self.rests.len() { 0 } else { broker + 1 };
        if needs_person {
            self.rest(broker, up_for, now, jitter);
        }
        let pause = self.backoff.after(up_for, Pace::Normal, jitter);
        self.pause(now, pause);
    }

    /// Another gateway took our id: no broker is tried for a while, as they may all be one cluster.
    pub(super) fn driven_out(&mut self, up_for: Duration, now: Now, jitter: Jitter) {
        let pause = self.driven_out.after(up_for, Pace::Slow, jitter);
        self.pause(now, pause);
    }

    /// We left in good order for this broker: it is tried at once, and then those after it.
    pub(super) const fn move_to(&mut self, broker: usize) {
        self.cursor = broker;
        self.pause_until_ms = 0;
    }

    /// What pauses waited for has changed: everything is tried at once.
    pub(super) fn hurry(&mut self) {
        self.move_to(0);
        for rest in &mut self.rests {
            rest.until_ms = 0;
        }
    }

    /// How long to wait before the next look at earlier brokers: longer each time, until a connection ends that held.
    pub(super) fn look_after(&mut self, jitter: Jitter) -> Duration {
        let ceiling = self.look_first.saturating_mul(2_u32.saturating_pow(self.looks)).min(LOOK_MAX);
        self.looks = self.looks.saturating_add(1);
        jitter.between(ceiling / 2, ceiling)
    }

    /// The brokers before this one that do not rest, in order.
    pub(super) fn earlier(&self, broker: usize, now: Now) -> Vec<usize> {
        (0..broker).filter(|earlier| self.rests[*earlier].over(now)).collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: f64 = 1.0;

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, wall_ms: 0, trusted: true }
    }

    fn jitter() -> Jitter {
        Jitter::new(FULL).expect("0 to 1")
    }

    /// What happens to an attempt, and how long it then held.
    #[derive(Clone, Copy)]
    enum Fate {
        Unreachable,
        WrongPassword,
        Held(u64),
    }
    use Fate::{Held, Unreachable, WrongPassword};

    /// Runs until `until_ms`, each broker with one fate for all attempts; returns who was tried when.
    fn tried(fates: &[Fate], until_ms: u64) -> Vec<(u64, usize)> {
        let (mut route, mut now_ms, mut tried) = (Route::new(fates.len(), Duration::from_secs(120)), 0, Vec::new());
        while now_ms < until_ms {
            match route.next(at(now_ms), jitter()) {
                Step::Pause(pause) => now_ms += millis(pause),
                Step::Try(broker) => {
                    tried.push((now_ms, broker));
                    match fates[broker] {
                        Unreachable => route.failed(broker, false, at(now_ms), jitter()),
                        WrongPassword => route.failed(broker, true, at(now_ms), jitter()),
                        Held(s) => {
                            now_ms += s * 1_000;
                            route.ended(broker, Duration::from_secs(s), false, at(now_ms), jitter());
                        }
                    }
                }
            }
        }
        tried
    }

    #[test]
    fn a_round_tries_every_broker_at_once_and_then_pauses() {
        let expected = [(0, 0), (0, 1), (0, 2), (900, 0), (900, 1), (900, 2), (1_800, 0), (1_800, 1), (1_800, 2)];
        assert_eq!(tried(&[Unreachable; 3], 2_000), expected);
    }

    #[test]
    fn never_a_busy_loop_whatever_brokers_do() {
        for fates in [
            vec![Unreachable],
            vec![WrongPassword],
            vec![Held(0)],
            vec![WrongPassword, Unreachable],
            vec![Held(0), Held(0), WrongPassword],
        ] {
            let tries = tried(&fates, 600_000).len();
            // 15 quick rounds, and then at most one a second while pauses grow.
            assert!(tries <= 60 * fates.len(), "{tries} tries in 10 min");
        }
    }

    #[test]
    fn after_a_connection_that_held_the_first_broker_is_first_again() {
        let tries = tried(&[Unreachable, Held(3_600), Held(3_600)], 7_300_000);
        let order: Vec<usize> = tries.iter().map(|(_, broker)| *broker).collect();
        assert_eq!(order[..6], [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_broker_that_accepts_and_kicks_does_not_hide_the_next_one() {
        let tries = tried(&[Held(1), Held(3_600)], 100_000);
        assert_eq!(tries[..2].iter().map(|(_, broker)| *broker).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_broker_that_refuses_the_login_rests_and_the_others_do_not_wait_for_it() {
        let tries = tried(&[WrongPassword, Unreachable], 40_000);
        let first = tries.iter().filter(|(_, broker)| *broker == 0).count();
        assert!(first <= 2, "asked {first} times in 40 s with a wrong password");
        assert!(tries.iter().filter(|(_, broker)| *broker == 1).count() > 15);
        let alone = tried(&[WrongPassword], 200_000);
        assert!(alone.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 30_000), "{alone:?}");
    }

    #[test]
    fn what_a_pause_waited_for_ends_it() {
        let mut route = Route::new(1, Duration::from_secs(120));
        assert_eq!(route.next(at(0), jitter()), Step::Try(0));
        route.failed(0, true, at(0), jitter());
        assert_eq!(route.next(at(0), jitter()), Step::Pause(Duration::from_secs(60)));
        route.hurry();
        assert_eq!(route.next(at(2_000), jitter()), Step::Try(0));
    }

    #[test]
    fn a_move_is_tried_at_once_and_falls_back_in_order() {
        let mut route = Route::new(3, Duration::from_secs(120));
        route.move_to(1);
        assert_eq!(route.next(at(0), jitter()), Step::Try(1));
        route.failed(1, false, at(0), jitter());
        assert_eq!(route.next(at(0), jitter()), Step::Try(2));
    }

    #[test]
    fn two_gateways_of_one_id_connect_at_most_twelve_times_in_ten_minutes() {
        // The other one drives us out the moment we are connected, which is worse than any real one.
        let (mut route, mut now_ms, mut connects) = (Route::new(2, Duration::from_secs(120)), 0, 0);
        let least = Jitter::new(0.0).expect("0 to 1");
        while now_ms < 600_000 {
            match route.next(at(now_ms), least) {
                Step::Pause(pause) => now_ms += millis(pause),
                Step::Try(_) => {
                    connects += 1;
                    now_ms += 30_000; // the other one's shortest pause
                    route.driven_out(Duration::ZERO, at(now_ms), least);
                }
            }
        }
        assert!(connects <= 12, "{connects}");
    }

    #[test]
    fn looks_come_ever_more_slowly_until_a_connection_that_held_has_ended() {
        let mut route = Route::new(2, Duration::from_secs(120));
        let look_s = |route: &mut Route| route.look_after(jitter()).as_secs();
        let looks: Vec<u64> = (0..6).map(|_| look_s(&mut route)).collect();
        assert_eq!(looks, [60, 120, 240, 480, 600, 600]);
        route.ended(1, Duration::from_secs(59), false, at(0), jitter());
        assert_eq!(look_s(&mut route), 600);
        route.ended(1, STABLE_AFTER, false, at(0), jitter());
        assert_eq!(look_s(&mut route), 60);
        let mut route = Route::new(2, Duration::from_secs(10));
        assert_eq!(route.look_after(Jitter::new(0.0).expect("0 to 1")), Duration::from_millis(2_500));
    }

    #[test]
    fn a_resting_broker_is_not_looked_at() {
        let mut route = Route::new(3, Duration::from_secs(120));
        assert_eq!(route.earlier(2, at(0)), [0, 1]);
        route.failed(0, true, at(0), jitter());
        assert_eq!(route.earlier(2, at(0)), [1]);
        assert_eq!(route.earlier(2, at(60_000)), [0, 1]);
    }
}
