//! The alarms the outbox itself raises: `gateway/outbox-filling` before anything is lost, `gateway/outbox-evicting` while
//! records are given up, `gateway/outbox-full` while the disk is full, `gateway/outbox-unusable` while its
//! folder cannot be used and records are kept in memory. Pure.

use std::time::Duration;

use crate::{
    alarm::AlarmId,
    clock::Now,
    reading::{PointId, Reading, Value},
    store::{Medium, Space},
};

const HOUR: Duration = Duration::from_secs(3_600);
/// So full, or full so soon, that somebody should look; and when that is over, with room in between against flutter.
const FILLING_PERCENT: (u64, u64) = (80, 75);
const FILLING_IN: (Duration, Duration) = (HOUR.saturating_mul(24), HOUR.saturating_mul(30));
/// Eviction makes room down to nine tenths and begins again when that is full: it has ended when the link makes more.
const EVICTION_OVER_PERCENT: u64 = 80;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Warning {
    Filling,
    Evicting,
    Full,
    Unusable,
}

impl Warning {
    /// The reading that raises or clears it.
    pub(super) fn reading(self, stands: bool, now: Now) -> Reading {
        let alarm = match self {
            Self::Filling => AlarmId::outbox_filling(),
            Self::Evicting => AlarmId::outbox_evicting(),
            Self::Full => AlarmId::outbox_full(),
            Self::Unusable => AlarmId::outbox_unusable(),
        };
        let point = PointId::parse(alarm.as_str()).expect("a built-in alarm's name is that of its point");
        Reading::good(point, Value::Bool(stands), now)
    }
}

/// How the outbox is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) evicting: bool,
    pub(super) filled_percent: u64,
    pub(super) full_in: Option<Duration>,
    pub(super) space: Space,
    pub(super) medium: Medium,
}

/// What was said of each last; nothing after a start, when it may still stand from before.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    filling: Option<bool>,
    evicting: Option<bool>,
    full: Option<bool>,
    unusable: Option<bool>,
}

impl Warnings {
    /// What is to be said now: what changed.
    pub(super) fn judge(&mut self, seen: &Seen) -> Vec<(Warning, bool)> {
        let Seen { evicting, filled_percent, full_in, space, medium } = *seen;
        let soon = |within: Duration| full_in.is_some_and(|full| full <= within);
        let filling = if filled_percent >= FILLING_PERCENT.0 || soon(FILLING_IN.0) {
            Some(true)
        } else {
            (filled_percent < FILLING_PERCENT.1 && !soon(FILLING_IN.1)).then_some(false)
        };
        let evicting = if evicting { Some(true) } else { (filled_percent < EVICTION_OVER_PERCENT).then_some(false) };
        let changed = |last: &mut Option<bool>, now: Option<bool>| {
            let now = now.filter(|now| *last != Some(*now))?;
            *last = Some(now);
            Some(now)
        };
        let filling = changed(&mut self.filling, filling).map(|stands| (Warning::Filling, stands));
        let evicting = changed(&mut self.evicting, evicting).map(|stands| (Warning::Evicting, stands));
        // Room that is taken back only when there is plenty does not flutter.
        let full = changed(&mut self.full, Some(space != Space::Enough)).map(|stands| (Warning::Full, stands));
        let unusable = changed(&mut self.unusable, Some(medium == Medium::Memory));
        let unusable = unusable.map(|stands| (Warning::Unusable, stands));
        filling.into_iter().chain(evicting).chain(full).chain(unusable).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_said_once_a_change_and_does_not_flutter() {
        let mut warnings = Warnings::default();
        let timeline = [
            // evicting, percent, hours, space; what is said
            (false, 90, None, Space::Enough, "+filling -full -unusable"), // eviction may stand from before the start
            (false, 79, None, Space::Enough, "-evicting"),
            (false, 74, None, Space::Enough, "-filling"),
            (false, 74, Some(31), Space::Enough, ""),
            (false, 30, Some(24), Space::Enough, "+filling"),
            (false, 30, Some(29), Space::Enough, ""),
            (false, 30, Some(31), Space::Enough, "-filling"),
            (false, 80, None, Space::Tight, "+filling +full"),
            (true, 101, Some(0), Space::Tight, "+evicting"),
            (false, 90, None, Space::None, ""),
            (true, 101, None, Space::Tight, ""),
            (false, 80, None, Space::Tight, ""),
            (false, 60, None, Space::Tight, "-filling -evicting"),
            (false, 60, None, Space::Enough, "-full"),
        ];
        for (evicting, filled_percent, hours, space, expected) in timeline {
            let full_in = hours.map(|hours| hours * HOUR);
            let seen = Seen { evicting, filled_percent, full_in, space, medium: Medium::Disk };
            let said: Vec<&str> = warnings
                .judge(&seen)
                .into_iter()
                .map(|said| match said {
                    (Warning::Filling, true) => "+filling",
                    (Warning::Filling, false) => "-filling",
                    (Warning::Evicting, true) => "+evicting",
                    (Warning::Evicting, false) => "-evicting",
                    (Warning::Full, true) => "+full",
                    (Warning::Full, false) => "-full",
                    (Warning::Unusable, true) => "+unusable",
                    (Warning::Unusable, false) => "-unusable",
                })
                .collect();
            assert_eq!(said.join(" "), expected, "{seen:?}");
        }
    }

    #[test]
    fn an_outbox_in_memory_is_said_until_it_is_one_no_more() {
        let mut warnings = Warnings::default();
        let seen = |medium| Seen { evicting: false, filled_percent: 1, full_in: None, space: Space::Enough, medium };
        for (medium, said) in
            [(Medium::Memory, Some(true)), (Medium::Memory, None), (Medium::Disk, Some(false)), (Medium::Disk, None)]
        {
            let judged = warnings.judge(&seen(medium)).into_iter();
            let mut unusable = judged.filter(|(warning, _)| *warning == Warning::Unusable).map(|(_, stands)| stands);
            assert_eq!(unusable.next(), said, "{medium:?}");
        }
    }
}
