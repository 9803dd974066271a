//! Which positions of a lane need no delivery any more: pure.
//!
//! Terms: positions up to the **watermark** are settled without a gap; those above it form **islands**, because
//! confirmations come back in any order. Both are one set of ranges, of which the first begins at 0 (no record lies
//! there) and ends at the watermark. What is neither settled nor present was lost.

use rangemap::RangeInclusiveSet;

/// Ranges written at most: 64 pairs of 20 digits stay below 4 KiB. Confirmations beyond wait in memory for those below;
/// after a crash their records are delivered once more.
pub(super) const RANGES_MAX: usize = 64;

/// The settled positions of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled(RangeInclusiveSet<u64>);

impl Settled {
    /// Nothing is settled.
    pub(super) fn new() -> Self {
        Self(RangeInclusiveSet::from_iter([0..=0]))
    }

    /// What [`Settled::saved`] wrote; `None` if it cannot be that of a lane whose next position is `next`.
    pub(super) fn load(ranges: &[(u64, u64)], next: u64) -> Option<Self> {
        let sound = ranges.iter().all(|(first, last)| first <= last && *last < next);
        let mut settled = Self::new();
        settled.0.extend(ranges.iter().filter(|_| sound).map(|(first, last)| *first..=*last));
        sound.then_some(settled)
    }

    /// Settles one position; true if it was not settled before.
    pub(super) fn insert(&mut self, position: u64) -> bool {
        let new = !self.contains(position);
        if new {
            self.0.insert(position..=position);
        }
        new
    }

    /// Whether a position is settled.
    pub(super) fn contains(&self, position: u64) -> bool {
        self.0.contains(&position)
    }

    /// The last of the unbroken run that begins at `first`; the position before it if `first` is not settled.
    pub(super) fn run_from(&self, first: u64) -> u64 {
        self.0.get(&first).map_or(first.saturating_sub(1), |run| *run.end())
    }

    /// How many positions are settled.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|run| run.end() - run.start() + 1).sum::<u64>() - 1
    }

    /// What is to be written: at most [`RANGES_MAX`] ranges, the lowest.
    pub(super) fn saved(&self) -> Vec<(u64, u64)> {
        self.0.iter().take(RANGES_MAX).map(|run| (*run.start(), *run.end())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_run_says_how_far_an_epoch_has_come() {
        let mut settled = Settled::new();
        assert_eq!((settled.run_from(1), settled.count()), (0, 0));
        for position in [1, 2, 4, 5] {
            assert!(settled.insert(position));
        }
        assert!(!settled.insert(4), "confirmed twice");
        assert_eq!((settled.run_from(1), settled.run_from(3), settled.run_from(4)), (2, 2, 5));
        assert_eq!(settled.saved(), [(0, 2), (4, 5)]);
    }

    #[test]
    fn ranges_that_no_lane_can_have_are_refused() {
        assert_eq!(Settled::load(&[(0, 2), (4, 4)], 5).map(|s| s.count()), Some(3));
        for bad in [&[(3, 1)][..], &[(0, 5)], &[(0, 1), (9, 9)]] {
            assert_eq!(Settled::load(bad, 5), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_positions(positions in proptest::collection::vec(1_u64..300, 0..300)) {
            let (mut settled, mut model) = (Settled::new(), BTreeSet::from([0]));
            for position in positions {
                prop_assert_eq!(settled.insert(position), model.insert(position));
            }
            prop_assert_eq!(settled.count(), model.len() as u64 - 1);
            for first in 1..300 {
                let end = (first..).take_while(|p| model.contains(p)).last().unwrap_or(first - 1);
                prop_assert_eq!(settled.run_from(first), end);
            }
            let saved = settled.saved();
            prop_assert!(saved.len() <= RANGES_MAX);
            prop_assert!(saved.iter().all(|(first, last)| (*first..=*last).all(|p| model.contains(&p))));
        }
    }
}
