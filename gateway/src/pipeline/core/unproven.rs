//! New numbers for records whose own may have been used before: pure.
//!
//! Terms: a numbering is **unproven** from the moment a store is opened until the command center's retained topics agree
//! with it. When they contradict, the store is a copy of an earlier one, and what was recorded under numbers in doubt gets
//! numbers of the epoch that begins. Records before them keep theirs: their content is what the center has seen, or will.
//!
//! What is said of numbers in doubt is said anew as well. A loss under them never had a number that the center could know:
//! only its count is declared, without a range.
//!
//! A record and the note that the old one is settled are one write, so that neither is lost and none goes out twice. The
//! numbering stays unproven until the last one is done: after a crash the search begins anew and finds what is left.

use super::{Core, Loss, Step, count};
use crate::{
    alarm::Told,
    clock::Now,
    pipeline::Certainty,
    record::{Body, Epoch, Lane, LastKnown, LossReason, StartReason, StreamEvent},
    store::{Commit, Lost, Next, Started, Stored},
};

impl Core {
    /// The center's topics agree with the numbers of the present epoch.
    pub(super) fn proven(&mut self, step: &mut Step) {
        self.unproven.retain(|of| of.epoch != self.epoch);
        step.commit.unproven = Some(self.unproven.clone());
    }

    /// The center's topics contradict: a new epoch begins. What waits is numbered anew afterwards, page by page.
    pub(super) fn begin_epoch(&mut self, step: &mut Step, epoch: Epoch, known: LastKnown, now: Now) {
        let replaces = std::mem::replace(&mut self.epoch, epoch);
        let doubted = self.unproven.iter().find(|of| of.epoch == replaces);
        // Numbers in doubt are given back: of the replaced epoch there will be none that the center does not know.
        let ours = doubted.map_or(self.next, |of| of.from);
        let last = Next { a: ours.a.max(known.a.saturating_add(1)), t: ours.t.max(known.t.saturating_add(1)) };
        self.next = Next { a: 1, t: 1 };
        self.epoch_replaced = true;
        let started = Started { reason: StartReason::RolledBack, replaces: Some((replaces, last)) };
        self.record(step, super::stream_started(started), now);
    }

    /// Whether records of a former epoch have to be numbered anew.
    pub(in crate::pipeline) fn must_renumber(&self) -> bool {
        self.unproven.iter().any(|of| of.epoch != self.epoch)
    }

    /// Numbers those of a page anew that have to be; false once the page holds the present epoch, the last of its lane.
    pub(in crate::pipeline) fn renumber(&mut self, page: Vec<Stored>) -> (Renumbered, bool) {
        let (mut renumbered, mut step) = (Renumbered::default(), Step::default());
        let mut more = !page.is_empty();
        for Stored { position, record, .. } in page {
            more &= record.epoch != self.epoch;
            if record.epoch == self.epoch || !self.unproven.iter().any(|of| of.covers(&record)) {
                continue;
            }
            renumbered.replaced.push(position);
            // The beginning of an epoch cannot be told in another one; the event that opened the present one names it.
            if matches!(record.body, Body::Stream(StreamEvent::Started { .. })) {
                continue;
            }
            let alarm = match &record.body {
                Body::Alarm(transition) => Some(transition.alarm.clone()),
                Body::Stream(_) | Body::Command(_) | Body::Telemetry(_) => None,
            };
            let before = (record.epoch, record.sequence);
            let [said, more_said] = self.said_anew(record.body);
            let origin = (record.boot, record.recorded);
            if let Some(more_said) = more_said {
                self.record_of(&mut step, more_said, origin.clone());
            }
            let Some(said) = said else { continue };
            let told = self.record_of(&mut step, said, origin);
            if let Some(alarm) = alarm
                && self.engine.alarm(&alarm).and_then(|state| state.told.as_ref()).is_some_and(|of| is(of, &before))
            {
                self.engine.recorded(&alarm, told);
                step.touched.insert(alarm);
            }
        }
        let states = std::mem::take(&mut step.touched).into_iter().filter_map(|alarm| self.engine.alarm(&alarm));
        step.commit.alarms.extend(states.cloned());
        renumbered.telemetry = step.telemetry;
        renumbered.commit = step.commit;
        (renumbered, more)
    }

    /// What a record says without numbers in doubt: those of a former epoch name nothing of ours any more.
    fn said_anew(&self, body: Body) -> [Option<Body>; 2] {
        match body {
            Body::Stream(StreamEvent::Lost { epoch, lane, ranges, count: all, reason, certain, refused })
                if self.is_in_doubt(&epoch) =>
            {
                let known = self.without_doubt(&epoch, lane, &ranges);
                let known_count = count(&known);
                let lost = |epoch, ranges, count| {
                    let refused = refused.clone();
                    Body::Stream(StreamEvent::Lost { epoch, lane, ranges, count, reason, certain, refused })
                };
                let unnumbered = all.saturating_sub(known_count);
                let known = (known_count > 0).then(|| lost(epoch, known, known_count));
                [known, (unnumbered > 0).then(|| lost(self.epoch.clone(), Vec::new(), unnumbered))]
            }
            Body::Telemetry(mut batch) => {
                if let Some(of) = batch.replaces.as_mut().filter(|of| self.is_in_doubt(&of.epoch)) {
                    of.ranges = self.without_doubt(&of.epoch, Lane::Telemetry, &of.ranges);
                }
                [Some(Body::Telemetry(batch)), None]
            }
            body => [Some(body), None],
        }
    }

    /// Whether numbers of a former epoch are in doubt.
    pub(in crate::pipeline) fn is_in_doubt(&self, epoch: &Epoch) -> bool {
        *epoch != self.epoch && self.unproven.iter().any(|of| of.epoch == *epoch)
    }

    /// What of these runs was never in doubt.
    fn without_doubt(&self, epoch: &Epoch, lane: Lane, ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let from = self.unproven.iter().find(|of| of.epoch == *epoch).map_or(u64::MAX, |of| of.from_in(lane));
        ranges.iter().filter(|(first, _)| *first < from).map(|(first, last)| (*first, (*last).min(from - 1))).collect()
    }

    /// Declares what the store lost of an epoch in doubt; with the positions that are then to be settled.
    pub(in crate::pipeline) fn lost_in_doubt(&mut self, lost: Lost, now: Now) -> (Step, Vec<(u64, u64)>) {
        let Lost { lane, epoch, ranges, positions, certain } = lost;
        let (reason, mut step) = (LossReason::Damaged, Step::default());
        let known = self.without_doubt(&epoch, lane, &ranges);
        let unnumbered = count(&ranges) - count(&known);
        let certainty = if certain { Certainty::Known } else { Certainty::Bounded };
        self.lost(&mut step, Loss { lane, epoch: &epoch, ranges: &known, reason, certain: certainty }, now);
        if unnumbered > 0 {
            let (epoch, ranges, count, refused) = (self.epoch.clone(), Vec::new(), unnumbered, None);
            let lost = StreamEvent::Lost { epoch, lane, ranges, count, reason, certain, refused };
            self.record(&mut step, Body::Stream(lost), now);
        }
        (step, positions)
    }

    /// Nothing of a former epoch waits under a number in doubt any more.
    pub(in crate::pipeline) fn renumbered(&mut self) -> Commit {
        self.unproven.retain(|of| of.epoch == self.epoch);
        Commit { unproven: Some(self.unproven.clone()), ..Commit::default() }
    }
}

fn is(told: &Told, (epoch, sequence): &(Epoch, u64)) -> bool {
    told.epoch == *epoch && told.sequence == *sequence
}

/// A page of records under their new numbers.
#[derive(Debug, Default)]
pub(in crate::pipeline) struct Renumbered {
    /// Of lane a, with the states that name them.
    pub(in crate::pipeline) commit: Commit,
    /// Of lane t.
    pub(in crate::pipeline) telemetry: Vec<crate::record::Record>,
    /// Where the old ones lie.
    pub(in crate::pipeline) replaced: Vec<u64>,
}

/// The search for records that have to be numbered anew, oldest first, lane a before lane t.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pipeline) struct Search {
    /// Where it is.
    pub(in crate::pipeline) lane: Lane,
    /// The next position to look at.
    pub(in crate::pipeline) from: u64,
}

impl Search {
    /// Where every search begins.
    pub(in crate::pipeline) const START: Self = Self { lane: Lane::Alarm, from: 0 };

    /// Where it goes on in the other lane; none after the last.
    pub(in crate::pipeline) const fn next_lane(self) -> Option<Self> {
        match self.lane {
            Lane::Alarm => Some(Self { lane: Lane::Telemetry, from: 0 }),
            Lane::Telemetry => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::super::tests::{at, core, door, epoch, point, said};
    use super::*;
    use crate::{
        alarm::AlarmId,
        clock::BootId,
        pipeline::Input,
        reading::{Quality, Segment},
        record::{Batch, Record, Replaces, Sample},
        store::Unproven,
    };

    /// As they lie in the store after a step.
    fn stored(records: &[Record]) -> Vec<Stored> {
        (100..).zip(records).map(|(position, record)| Stored { position, size: 400, record: record.clone() }).collect()
    }

    fn in_doubt(of: char, a: u64, t: u64) -> Vec<Unproven> {
        vec![Unproven { epoch: epoch(of), from: Next { a, t }, session: 1 }]
    }

    fn rolled_back(a: u64, t: u64) -> Input {
        Input::RolledBack { known: LastKnown { a, t }, epoch: epoch('b'), durable: oneshot::channel().0 }
    }

    fn opened(step: &Step) -> (Option<Epoch>, Option<LastKnown>) {
        match &step.commit.records[0].body {
            Body::Stream(StreamEvent::Started { replaces, last, .. }) => (replaces.clone(), *last),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_recorded_under_numbers_in_doubt_gets_new_ones_and_what_was_before_keeps_its_own() {
        let (mut core, _) = core(None);
        let before = core.apply(vec![door(true, 1)], at(1)).commit.records;
        core.unproven = in_doubt('a', 8, 3);
        let step = core.apply(vec![door(false, 2), door(true, 3)], at(3));
        let records = [before, step.commit.records].concat();
        let step = core.apply(vec![rolled_back(90, 1)], at(4));
        assert_eq!(
            (said(&step), opened(&step)),
            (vec!["a-1 started RolledBack".to_owned()], (Some(epoch('a')), Some(LastKnown { a: 90, t: 2 })),)
        );
        assert!(core.must_renumber());
        let (page, more) = core.renumber(stored(&records));
        let numbers: Vec<_> = page.commit.records.iter().map(|r| (r.epoch.clone(), r.sequence)).collect();
        assert_eq!(numbers, [(epoch('b'), 2), (epoch('b'), 3)]);
        assert_eq!((page.replaced, more), (vec![101, 102], true));
        assert!(
            page.commit
                .records
                .iter()
                .zip(&records[1..])
                .all(|(new, old)| { (&new.body, &new.recorded, &new.boot) == (&old.body, &old.recorded, &old.boot) })
        );
        let [state] = &page.commit.alarms[..] else { panic!("{:?}", page.commit.alarms) };
        assert_eq!(state.told.as_ref().map(|told| (told.epoch.clone(), told.sequence)), Some((epoch('b'), 3)));
        assert_eq!(core.renumbered().unproven, Some(vec![]));
        assert!(!core.must_renumber());
    }

    #[test]
    fn of_the_replaced_epoch_the_last_number_is_the_centers_or_the_last_one_never_in_doubt() {
        for (known, from, last) in [((90, 90), (8, 3), (90, 90)), ((2, 1), (8, 3), (7, 2))] {
            let (mut core, _) = core(None);
            core.unproven = in_doubt('a', from.0, from.1);
            core.apply(vec![door(true, 1), door(false, 2), door(true, 3)], at(3));
            let step = core.apply(vec![rolled_back(known.0, known.1)], at(4));
            assert_eq!(opened(&step).1, Some(LastKnown { a: last.0, t: last.1 }));
        }
    }

    #[test]
    fn the_opening_of_a_former_epoch_is_not_told_in_the_present_one() {
        let (mut core, first) = core(Some(Started { reason: StartReason::NewStore, replaces: None }));
        core.unproven = in_doubt('a', 1, 1);
        core.apply(vec![rolled_back(90, 0)], at(1));
        let (page, _) = core.renumber(stored(&first.commit.records));
        assert_eq!((page.commit.records.len(), page.replaced), (0, vec![100]));
    }

    #[test]
    fn telemetry_is_numbered_anew_and_the_search_ends_at_the_present_epoch() {
        let (mut core, _) = core(None);
        core.unproven = in_doubt('a', 7, 3);
        core.apply(vec![rolled_back(90, 90)], at(1));
        let sample = Sample {
            point: point("meter/volts"),
            value: None,
            quality: Quality::Bad,
            reason: None,
            at: at(1),
            source_time_ms: None,
            summary: None,
        };
        let batch = Batch { device: Segment::parse("meter").expect("a name"), readings: vec![sample], replaces: None };
        let record = |of, sequence| Record {
            lane: Lane::Telemetry,
            epoch: epoch(of),
            sequence,
            boot: BootId::new("earlier"),
            recorded: at(1),
            body: Body::Telemetry(batch.clone()),
        };
        let (page, more) = core.renumber(stored(&[record('z', 9), record('a', 2), record('a', 3), record('b', 1)]));
        assert_eq!((page.telemetry.len(), page.replaced, more), (1, vec![102], false));
        assert_eq!(
            (page.telemetry[0].id(), &page.telemetry[0].boot),
            ("b".repeat(16) + "-t-1", &BootId::new("earlier"))
        );
        assert!(!core.renumber(vec![]).1, "an empty page is the end of a lane");
    }

    fn lost(of: char, lane: Lane, ranges: &[(u64, u64)]) -> StreamEvent {
        StreamEvent::Lost {
            epoch: epoch(of),
            lane,
            ranges: ranges.to_vec(),
            count: count(ranges),
            reason: LossReason::Quota,
            certain: true,
            refused: None,
        }
    }

    fn declared(of: char, present: char, lane: Lane, ranges: &[(u64, u64)]) -> (Input, oneshot::Receiver<()>) {
        let (durable, done) = oneshot::channel();
        let (epoch, ranges, present) = (epoch(of), ranges.to_vec(), epoch(present));
        let (reason, certain) = (LossReason::Quota, Certainty::Known);
        (Input::Lost { lane, epoch, ranges, reason, certain, present, durable }, done)
    }

    #[test]
    fn a_loss_declared_under_numbers_in_doubt_names_none_of_them_in_the_end() {
        let unnumbered = |lane, count| match lost('b', lane, &[]) {
            StreamEvent::Lost { epoch, lane, ranges, reason, certain, refused, .. } => {
                StreamEvent::Lost { epoch, lane, ranges, count, reason, certain, refused }
            }
            other => panic!("{other:?}"),
        };
        let (a, t) = (Lane::Alarm, Lane::Telemetry);
        for (of, lane, ranges, said) in [
            ('a', t, vec![(1, 2)], vec![lost('a', t, &[(1, 2)])]),
            ('a', t, vec![(3, 9)], vec![unnumbered(t, 7)]),
            ('a', t, vec![(1, 1), (2, 5), (8, 9)], vec![unnumbered(t, 5), lost('a', t, &[(1, 1), (2, 2)])]),
            ('a', a, vec![(3, 6)], vec![lost('a', a, &[(3, 6)])]),
            ('z', t, vec![(3, 9)], vec![lost('z', t, &[(3, 9)])]), // never in doubt
        ] {
            let (mut core, _) = core(None);
            core.unproven = in_doubt('a', 7, 3);
            let step = core.apply(vec![declared(of, 'a', lane, &ranges).0], at(1));
            core.apply(vec![rolled_back(90, 90)], at(2));
            let (page, _) = core.renumber(stored(&step.commit.records));
            let bodies: Vec<_> = page.commit.records.iter().map(|record| record.body.clone()).collect();
            assert_eq!(bodies, said.into_iter().map(Body::Stream).collect::<Vec<_>>(), "{of} {ranges:?}");
            assert_eq!(page.replaced, [100]);
        }
    }

    #[test]
    fn what_was_looked_at_in_a_former_epoch_is_not_declared() {
        let (mut core, _) = core(None);
        core.unproven = in_doubt('a', 7, 3);
        core.apply(vec![rolled_back(90, 90)], at(1));
        let (outdated, mut done) = declared('a', 'a', Lane::Telemetry, &[(3, 9)]);
        let step = core.apply(vec![outdated], at(2));
        assert!(step.commit.records.is_empty() && step.after_commit.is_empty());
        assert_eq!(done.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn a_summary_of_records_in_doubt_keeps_no_number_of_theirs() {
        let (mut core, _) = core(None);
        core.unproven = in_doubt('a', 7, 3);
        core.apply(vec![rolled_back(90, 90)], at(1));
        let replaces = Some(Replaces { epoch: epoch('a'), ranges: vec![(1, 4), (6, 8)] });
        let batch = Batch { device: Segment::parse("meter").expect("a name"), readings: vec![], replaces };
        let record = Record {
            lane: Lane::Telemetry,
            epoch: epoch('a'),
            sequence: 9,
            boot: BootId::new("earlier"),
            recorded: at(1),
            body: Body::Telemetry(batch),
        };
        let (page, _) = core.renumber(stored(&[record]));
        let Body::Telemetry(batch) = &page.telemetry[0].body else { panic!("lane t") };
        assert_eq!(batch.replaces.as_ref().map(|of| of.ranges.clone()), Some(vec![(1, 2)]));
    }

    #[test]
    fn damage_under_numbers_in_doubt_is_counted_and_not_numbered() {
        let (mut core, _) = core(None);
        core.unproven = in_doubt('a', 7, 3);
        assert!(!core.is_in_doubt(&epoch('a')), "the present one may yet be proven");
        core.apply(vec![rolled_back(90, 90)], at(1));
        assert!(core.is_in_doubt(&epoch('a')) && !core.is_in_doubt(&epoch('z')));
        let (ranges, positions) = (vec![(2, 4), (9, 9)], vec![(2, 4), (9, 9)]);
        let damaged =
            Lost { lane: Lane::Telemetry, epoch: epoch('a'), ranges, positions: positions.clone(), certain: true };
        let (step, settled) = core.lost_in_doubt(damaged, at(2));
        assert_eq!((said(&step), settled), (vec!["a-2 lost [(2, 2)]".into(), "a-3 lost []".into()], positions));
        let counts = step.commit.records.iter().map(|record| match &record.body {
            Body::Stream(StreamEvent::Lost { count, .. }) => *count,
            other => panic!("{other:?}"),
        });
        assert_eq!(counts.collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_state_that_a_newer_record_tells_keeps_it() {
        let (mut core, _) = core(None);
        core.unproven = in_doubt('a', 7, 3);
        let old = core.apply(vec![door(true, 1)], at(1)).commit.records;
        core.apply(vec![rolled_back(90, 90)], at(2));
        core.apply(vec![door(false, 3)], at(3));
        let (page, _) = core.renumber(stored(&old));
        assert_eq!((page.commit.records.len(), page.commit.alarms.len()), (1, 0));
        let told =
            core.engine.alarm(&AlarmId::parse("panel/door/open").expect("an alarm")).and_then(|s| s.told.clone());
        assert_eq!(told.map(|told| told.sequence), Some(2));
    }

    #[test]
    fn a_read_back_that_agrees_ends_the_doubt() {
        let (mut core, _) = core(None);
        core.unproven = in_doubt('a', 7, 3);
        assert!(!core.must_renumber(), "not before something contradicts");
        let step = core.apply(vec![Input::Proven { durable: oneshot::channel().0 }], at(1));
        assert_eq!((step.commit.unproven, step.after_commit.len()), (Some(vec![]), 1));
    }
}
