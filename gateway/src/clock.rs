//! The only file that reads a clock.
//!
//! Durations and order come from the monotonic clock (`CLOCK_BOOTTIME`, which goes on through suspend); the wall clock
//! only labels what happened, and says whether it could be trusted then (DESIGN.md §8). Logic never reads a clock: it
//! is handed a [`Now`].

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One moment: where both clocks stood, and whether the wall clock was synchronised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Milliseconds since this boot; never goes back.
    pub mono_ms: u64,
    /// Milliseconds since 1970-01-01 UTC as the wall clock had it; may jump.
    pub wall_ms: i64,
    /// Whether the kernel called the wall clock synchronised.
    pub trusted: bool,
}

impl Now {
    /// How long ago `earlier` was, by the monotonic clock; zero if it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.mono_ms.saturating_sub(earlier.mono_ms))
    }
}

/// The kernel's random name of this boot (`/proc/sys/kernel/random/boot_id`): monotonic times compare only within it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(Arc<str>);

impl BootId {
    /// A boot id as stored or received.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the clocks, or, in tests and simulations, is set by hand.
#[derive(Debug, Clone)]
pub struct Clock {
    boot: BootId,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    System,
    Manual(Arc<Mutex<Now>>),
}

impl Clock {
    /// The clocks of this machine.
    #[must_use]
    pub fn system() -> Self {
        // A kernel without this file (a container that hides /proc) gives every start its own boot: safe, only blunter.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| format!("{:016x}", fastrand::u64(..)), |text| text.trim().to_owned());
        Self { boot: BootId::new(&boot), source: Source::System }
    }

    /// A clock that stands at `now` until [`Clock::set`] moves it.
    #[must_use]
    pub fn manual(boot: &str, now: Now) -> Self {
        Self { boot: BootId::new(boot), source: Source::Manual(Arc::new(Mutex::new(now))) }
    }

    /// Moves a manual clock; the system's cannot be set from here.
    pub fn set(&self, now: Now) {
        if let Source::Manual(cell) = &self.source {
            *cell.lock().expect("no panic while the clock is held") = now;
        }
    }

    /// Which boot this is.
    #[must_use]
    pub const fn boot(&self) -> &BootId {
        &self.boot
    }

    /// Microseconds of `CLOCK_MONOTONIC`, by which the kernel stamps the edges of GPIO lines: only for comparing with them, and
    /// for spans below a millisecond.
    #[must_use]
    pub fn kernel_us(&self) -> u64 {
        match &self.source {
            Source::System => micros(clock_gettime(ClockId::Monotonic)),
            Source::Manual(_) => self.now().mono_ms.saturating_mul(1_000),
        }
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Now {
        match &self.source {
            Source::System => {
                let mono = clock_gettime(ClockId::Boottime);
                let wall = clock_gettime(ClockId::Realtime);
                Now {
                    mono_ms: u64::try_from(millis(mono)).unwrap_or(0),
                    wall_ms: millis(wall),
                    trusted: kernel_says_synchronised(),
                }
            }
            Source::Manual(cell) => *cell.lock().expect("no panic while the clock is held"),
        }
    }
}

fn micros(t: rustix::time::Timespec) -> u64 {
    let micros = t.tv_sec.saturating_mul(1_000_000).saturating_add(t.tv_nsec / 1_000);
    u64::try_from(micros).unwrap_or(0)
}

fn millis(t: rustix::time::Timespec) -> i64 {
    t.tv_sec.saturating_mul(1_000).saturating_add(t.tv_nsec / 1_000_000)
}

/// The kernel's synchronised flag: `adjtimex(2)` in read-only mode, `STA_UNSYNC` clear. Not being allowed to ask
/// counts as not synchronised.
fn kernel_says_synchronised() -> bool {
    let mut timex = rtime_clock::adjtime::Timex::new();
    rtime_clock::adjtime::adjtimex(&mut timex).is_ok() && timex.0.status & libc::STA_UNSYNC == 0
}

/// What is known of the wall clock in each boot, oldest first; at most [`Boots::KEPT`].
///
/// When the clock becomes trusted, where it stood at the boot's monotonic zero is noted once; times recorded before
/// are then labelled from it when they are sent (DESIGN.md §8). Stored records are never rewritten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boots(Vec<Boot>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Boot {
    id: BootId,
    /// Wall clock at monotonic zero, milliseconds since 1970 UTC, once trusted.
    zero_ms: Option<i64>,
}

/// When something happened, as well as can be said now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dated {
    /// By a trusted clock, then or since.
    Known {
        /// Milliseconds since 1970 UTC.
        wall_ms: i64,
    },
    /// Only what the untrusted clock said, and between which trusted moments it must lie.
    Between {
        /// What the clock said.
        claimed_ms: i64,
        /// Start of the last earlier boot with a trusted clock.
        not_before_ms: Option<i64>,
        /// Start of the next later boot with a trusted clock.
        not_after_ms: Option<i64>,
    },
}

impl Boots {
    /// A gateway that restarts all day still dates a week of backlog.
    pub const KEPT: usize = 256;

    /// Adds a boot, unless it is known; forgets the oldest beyond the limit. True if it was new.
    pub fn enter(&mut self, boot: &BootId) -> bool {
        if self.rank(boot).is_some() {
            return false;
        }
        self.0.push(Boot { id: boot.clone(), zero_ms: None });
        let surplus = self.0.len().saturating_sub(Self::KEPT);
        self.0.drain(..surplus);
        true
    }

    /// Notes where the wall clock stands, the first time it is trusted in a boot. True if this was that time.
    pub fn trust(&mut self, boot: &BootId, now: Now) -> bool {
        let Some(entry) = self.0.iter_mut().find(|b| b.id == *boot && b.zero_ms.is_none()) else { return false };
        if now.trusted {
            entry.zero_ms = Some(now.wall_ms.saturating_sub_unsigned(now.mono_ms));
        }
        now.trusted
    }

    /// Where a boot stands among those kept, the oldest first; `None` is older than all of them.
    #[must_use]
    pub fn rank(&self, boot: &BootId) -> Option<usize> {
        self.0.iter().position(|b| b.id == *boot)
    }

    /// Dates a moment of `boot`.
    #[must_use]
    pub fn date(&self, boot: &BootId, at: Now) -> Dated {
        if at.trusted {
            return Dated::Known { wall_ms: at.wall_ms };
        }
        let index = self.rank(boot);
        if let Some(zero) = index.and_then(|i| self.0[i].zero_ms) {
            return Dated::Known { wall_ms: zero.saturating_add_unsigned(at.mono_ms) };
        }
        let (earlier, later) = index.map_or((&self.0[..], &[][..]), |i| (&self.0[..i], &self.0[i + 1..]));
        Dated::Between {
            claimed_ms: at.wall_ms,
            // An unknown boot is older than all that are kept: nothing bounds it from below.
            not_before_ms: index.and_then(|_| earlier.iter().rev().find_map(|b| b.zero_ms)),
            not_after_ms: index
                .map_or_else(|| self.0.iter().find_map(|b| b.zero_ms), |_| later.iter().find_map(|b| b.zero_ms)),
        }
    }
}

/// RFC 3339 in UTC with milliseconds, as every payload spells a time.
#[must_use]
pub fn rfc3339(wall_ms: i64) -> String {
    // A clock beyond year 9999 is as wrong as one at the limit; the text must stay valid.
    let at = jiff::Timestamp::from_millisecond(wall_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{at:.3}")
}

/// Parses RFC 3339 to milliseconds since 1970 UTC.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_milliseconds_and_read_back() {
        assert_eq!(rfc3339(1_795_262_671_220), "2026-11-21T12:04:31.220Z");
        assert_eq!(parse_rfc3339("2026-11-21T19:04:31.22+07:00"), Some(1_795_262_671_220));
        assert_eq!(parse_rfc3339("kemarin"), None);
        assert_eq!(rfc3339(i64::MAX), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_boot_is_dated_once_its_clock_is_trusted() {
        let at = |mono_ms, wall_ms, trusted| Now { mono_ms, wall_ms, trusted };
        let (first, second, third) = (BootId::new("first"), BootId::new("second"), BootId::new("third"));
        let mut boots = Boots::default();
        assert!(boots.enter(&first) && boots.enter(&second) && !boots.enter(&first));
        assert!(!boots.trust(&first, at(5, 99, false)));
        assert!(boots.trust(&first, at(1_000, 51_000, true)));
        assert!(!boots.trust(&first, at(1_000, 90_000, true)), "only the first time counts");
        assert_eq!(boots.date(&first, at(400, 7, false)), Dated::Known { wall_ms: 50_400 });
        assert_eq!(boots.date(&second, at(1, 9, true)), Dated::Known { wall_ms: 9 });
        let unknown_end = Dated::Between { claimed_ms: 7, not_before_ms: Some(50_000), not_after_ms: None };
        assert_eq!(boots.date(&second, at(400, 7, false)), unknown_end);
        boots.enter(&third);
        boots.trust(&third, at(0, 80_000, true));
        let bounded = Dated::Between { claimed_ms: 7, not_before_ms: Some(50_000), not_after_ms: Some(80_000) };
        assert_eq!(boots.date(&second, at(400, 7, false)), bounded);
        let forgotten = Dated::Between { claimed_ms: 7, not_before_ms: None, not_after_ms: Some(50_000) };
        assert_eq!(boots.date(&BootId::new("before all"), at(400, 7, false)), forgotten);
    }

    #[test]
    fn the_monotonic_clock_of_this_machine_moves_on() {
        let clock = Clock::system();
        let (a, b) = (clock.now(), clock.now());
        assert!(b.mono_ms >= a.mono_ms && a.wall_ms > 1_700_000_000_000, "{a:?} {b:?}");
        assert!(!clock.boot().as_str().is_empty());
    }
}
