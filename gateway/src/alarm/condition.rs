//! What one reading says about a condition, before any delay.
//!
//! Only a good reading speaks about a value. A bad or uncertain one leaves a value condition *unconfirmed*: it neither
//! holds nor ends by it. `bad` and `stale` are about the reading itself.
//!
//! Counters (`increments`): the width of a counter is not known here, so it is taken from the last count: the smallest
//! of 16, 32 and 64 bits that holds it. A smaller count is a wrap only if few steps led to it; otherwise the device was
//! reset or replaced, and its count is the new base and no event: a reset must not invent an alarm. The price: a press
//! between a reset and the first reading after it is not told apart from the reset.

use super::rule::Condition;
use crate::reading::{Quality, Reading, Reason, Value};

/// Whether a condition holds, before delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It does not.
    Off,
    /// It does.
    On,
}

/// What a reading did to the counter of its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// Went forward.
    Rose,
    /// Did not, or is no counter, or was reset.
    Stayed,
}

/// More steps than this across a wrap are a reset: 1/64 of the narrowest counter, far above what people or rain cause
/// between two readings; a counter reset that close to its end is as unlikely.
const WRAP_STEPS_MAX: u64 = 1 << 10;

/// Integers above this are not exact in a double.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

impl Phase {
    const fn when(holds: bool) -> Self {
        if holds { Self::On } else { Self::Off }
    }
}

impl Condition {
    /// Whether it holds after `reading`, having been in phase `was`; `None` if the reading cannot tell.
    pub(super) fn judge(&self, was: Phase, reading: &Reading, count: Count) -> Option<Phase> {
        let value = match reading.quality {
            Quality::Good => reading.value.as_ref(),
            Quality::Uncertain | Quality::Bad => None,
        };
        match self {
            Self::Is(wanted) => value.map(|v| Phase::when(same(v, wanted))),
            Self::Above { limit, deadband } => {
                let end = match was {
                    Phase::Off => *limit,
                    Phase::On => limit - deadband,
                };
                value?.as_f64().map(|x| Phase::when(x > end))
            }
            Self::Below { limit, deadband } => {
                let end = match was {
                    Phase::Off => *limit,
                    Phase::On => limit + deadband,
                };
                value?.as_f64().map(|x| Phase::when(x < end))
            }
            Self::Increments => value.and_then(as_count).map(|_| Phase::when(count == Count::Rose)),
            Self::Stale(_) => Some(if was_heard(reading) { Phase::Off } else { was }),
            Self::Bad => match reading.quality {
                Quality::Good => Some(Phase::Off),
                Quality::Uncertain => None,
                Quality::Bad => Some(Phase::On),
            },
        }
    }
}

/// Whether the device said anything at all, be it nonsense: what `stale` waits for.
pub(super) const fn was_heard(reading: &Reading) -> bool {
    match reading.reason {
        Some(Reason::NotYetRead | Reason::Timeout | Reason::LinkDown | Reason::Stale) => false,
        Some(Reason::Exception | Reason::Malformed | Reason::Sentinel | Reason::OutOfRange | Reason::NotANumber)
        | None => true,
    }
}

/// The value as an unsigned count.
pub(super) fn as_count(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(i) => u64::try_from(*i).ok(),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, positive, within 2^53")]
        Value::Float(x) => (x.fract() == 0.0 && (0.0..=EXACT_MAX).contains(x)).then_some(*x as u64),
        Value::Bool(_) | Value::Text(_) => None,
    }
}

/// What the counter did from `last` to `next`.
pub(super) const fn count(last: u64, next: u64) -> Count {
    let width_mask = match last {
        0..=0xffff => 0xffff,
        0x1_0000..=0xffff_ffff => 0xffff_ffff,
        0x1_0000_0000..=u64::MAX => u64::MAX,
    };
    let wrapped = next < last && next.wrapping_sub(last) & width_mask <= WRAP_STEPS_MAX;
    if next > last || wrapped { Count::Rose } else { Count::Stayed }
}

/// Whether a value is the one of the rule: a whole number equals its double, a contact equals 0 or 1.
fn same(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Integer(a), Value::Integer(b)) => a == b,
        (Value::Text(_), _) | (_, Value::Text(_)) => value == wanted,
        (
            Value::Bool(_) | Value::Integer(_) | Value::Float(_),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_),
        ) => value.as_f64() == wanted.as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_counter_rises_wraps_or_is_reset() {
        let table = [
            (5, 5, Count::Stayed, "no press"),
            (5, 6, Count::Rose, "one press"),
            (5, 60_000, Count::Rose, "any step forward"),
            (65_535, 0, Count::Rose, "16-bit wrap"),
            (65_530, 1_000, Count::Rose, "16-bit wrap with many presses"),
            (40_000, 0, Count::Stayed, "reset"),
            (40_000, 3, Count::Stayed, "reset, then counted: not told apart from an older count"),
            (70_000, 3, Count::Stayed, "reset of a wider counter"),
            (4_294_967_295, 4, Count::Rose, "32-bit wrap"),
            (4_294_967_290, 4_000_000_000, Count::Stayed, "replaced by one that counted less"),
            (u64::MAX, 0, Count::Rose, "64-bit wrap"),
        ];
        for (last, next, expected, why) in table {
            assert_eq!(count(last, next), expected, "{last} -> {next}: {why}");
        }
    }

    #[test]
    fn values_compare_by_what_they_mean() {
        let text = |t: &str| Value::Text(t.into());
        assert!(same(&Value::Float(3.0), &Value::Integer(3)));
        assert!(same(&Value::Integer(1), &Value::Bool(true)));
        assert!(!same(&Value::Integer(2), &Value::Bool(true)));
        assert!(!same(&Value::Integer(1 << 60), &Value::Integer((1 << 60) + 1)));
        assert!(same(&text("OPEN"), &text("OPEN")) && !same(&text("1"), &Value::Integer(1)));
    }

    proptest! {
        #[test]
        fn presses_are_noticed_at_every_width_and_never_twice(start: u64, width in 0_usize..3, presses in 0_u64..1_000) {
            let mask = [0xffff, 0xffff_ffff, u64::MAX][width];
            let last = start & mask;
            // A counter that has not yet outgrown a narrower width wraps like that one does.
            prop_assume!(last > mask >> 16 || last.checked_add(presses).is_some_and(|n| n <= mask));
            let next = last.wrapping_add(presses) & mask;
            prop_assert_eq!(count(last, next), if presses == 0 { Count::Stayed } else { Count::Rose });
        }

        #[test]
        fn a_reset_to_zero_invents_nothing_away_from_a_wrap(last in 0_u64..64_000) {
            prop_assert_eq!(count(last, 0), Count::Stayed);
        }
    }
}
