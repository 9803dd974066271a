//! Which positions of a lane need no delivery any more: pure.
//!
//! Terms: positions up to the **watermark** are settled without a gap; those above it form **islands**, because
//! confirmations come back in any order. Both are one set of ranges, of which the first begins at 0 (no record lies
//! there) and ends at the watermark. What is neither settled nor present was lost.

use std::collections::BTreeSet;

use rangemap::RangeInclusiveSet;

/// Ranges written at most: 64 pairs of 20 digits stay below 4 KiB. Confirmations beyond wait in memory for those below;
/// after a crash their records are delivered once more.
pub(super) const RANGES_MAX: usize = 64;
/// The same with those that must not be forgotten, of which there is mostly one in all: records numbered anew are
/// neighbours. 88 pairs of 20 digits still fit a line.
const RANGES_WITH_REPLACED_MAX: usize = 88;

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

    /// Settles a run of positions; nothing if it ends before it begins.
    pub(super) fn insert_all(&mut self, first: u64, last: u64) {
        if first <= last {
            self.0.insert(first..=last);
        }
    }

    /// The runs from `first` to `last` that are not settled.
    pub(super) fn gaps(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
        let outer = first..=last.max(first);
        let gaps: Vec<_> = self.0.gaps(&outer).map(|gap| (*gap.start(), *gap.end())).collect();
        gaps.into_iter().filter(move |_| first <= last)
    }

    /// Whether a position is settled.
    pub(super) fn contains(&self, position: u64) -> bool {
        self.0.contains(&position)
    }

    /// The last of the unbroken run that begins at `first`; the position before it if `first` is not settled.
    pub(super) fn run_from(&self, first: u64) -> u64 {
        self.0.get(&first).map_or(first.saturating_sub(1), |run| *run.end())
    }

    /// All of it, the lowest first.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|run| (*run.start(), *run.end()))
    }

    /// What is to be written: what was written `before`, for that was promised to stay; the ranges of the `replaced`, whose
    /// records have other numbers by now and must not come back under the old ones; and while there is room, the lowest.
    pub(super) fn saved(&self, before: &[(u64, u64)], replaced: &[u64]) -> Vec<(u64, u64)> {
        let kept = before.iter().map(|(first, _)| first).chain(replaced);
        let kept = kept.filter_map(|position| self.0.get(position)).map(|run| (*run.start(), *run.end()));
        let mut saved: BTreeSet<(u64, u64)> = kept.collect();
        for run in self.runs() {
            if saved.len() >= RANGES_MAX {
                break;
            }
            saved.insert(run);
        }
        saved.into_iter().take(RANGES_WITH_REPLACED_MAX).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_run_says_how_far_an_epoch_has_come() {
        let mut settled = Settled::new();
        assert_eq!(settled.run_from(1), 0);
        for (first, last) in [(1, 2), (4, 5), (4, 4), (9, 8)] {
            settled.insert_all(first, last);
        }
        assert_eq!((settled.run_from(1), settled.run_from(3), settled.run_from(4)), (2, 2, 5));
        assert_eq!(settled.saved(&[], &[]), [(0, 2), (4, 5)]);
        assert_eq!(settled.gaps(1, 7).collect::<Vec<_>>(), [(3, 3), (6, 7)]);
        assert_eq!(settled.gaps(7, 6).collect::<Vec<_>>(), []);
    }

    #[test]
    fn ranges_that_no_lane_can_have_are_refused() {
        assert_eq!(Settled::load(&[(0, 2), (4, 4)], 5).map(|s| s.run_from(4)), Some(4));
        for bad in [&[(3, 1)][..], &[(0, 5)], &[(0, 1), (9, 9)]] {
            assert_eq!(Settled::load(bad, 5), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_positions(runs in proptest::collection::vec((1_u64..300, 0_u64..4), 0..300)) {
            let (mut settled, mut model) = (Settled::new(), BTreeSet::from([0]));
            for (first, more) in runs {
                settled.insert_all(first, first + more);
                model.extend(first..=first + more);
            }
            for first in 1..310 {
                let end = (first..).take_while(|p| model.contains(p)).last().unwrap_or(first - 1);
                prop_assert_eq!(settled.run_from(first), end);
                prop_assert_eq!(settled.contains(first), model.contains(&first));
            }
            let gaps: BTreeSet<u64> = settled.gaps(1, 310).flat_map(|(first, last)| first..=last).collect();
            prop_assert!((1..=310).all(|p| gaps.contains(&p) != model.contains(&p)));
            let before = settled.saved(&[], &[]);
            prop_assert!(before.len() <= RANGES_MAX);
            settled.insert_all(1, 5);
            settled.insert_all(400, 409);
            model.extend((1..=5).chain(400..=409));
            let saved = settled.saved(&before, &[402]);
            prop_assert!(saved.len() <= RANGES_MAX + 1 && saved.is_sorted_by(|a, b| a.1 < b.0));
            let covers = |first, last| saved.iter().any(|(from, to)| *from <= first && last <= *to);
            prop_assert!(before.iter().all(|(first, last)| covers(*first, *last)) && covers(400, 409));
            prop_assert!(saved.iter().all(|(first, last)| (*first..=*last).all(|p| model.contains(&p))));
        }
    }
}
