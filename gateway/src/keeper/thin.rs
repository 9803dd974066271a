//! Telemetry records to summaries of 15 minutes: pure.
//!
//! A **window** is a quarter of an hour of the wall clock, of one device, in one boot and one epoch; a record belongs to
//! the one it was recorded in. Records come in the order of the lane, so a device's window is complete when its next
//! record belongs to another: one window a device is held at a time. Summaries pass unchanged, they are never thinned again.

use std::collections::BTreeMap;

use crate::{
    clock::{BootId, Boots, Dated, Now},
    pipeline::Summarised,
    reading::{PointId, Quality, Segment, Value},
    record::{Batch, Body, Epoch, Record, Replaces, Sample, Summary},
    store::Stored,
    telemetry::cut,
};

/// Length of a window.
const WINDOW_MS: i64 = 15 * 60 * 1_000;

/// What a stored record takes beside its batch.
const RECORD_OVERHEAD: usize = 300;

/// Makes summaries of records.
#[derive(Debug, Default)]
pub struct Thinner(BTreeMap<Segment, Window>);

#[derive(Debug)]
struct Window {
    which: Which,
    /// When its last record was recorded.
    recorded: Now,
    points: BTreeMap<PointId, Sample>,
    ranges: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Which {
    epoch: Epoch,
    boot: BootId,
    /// Windows since 1970 UTC.
    index: i64,
}

/// Whether a record is a summary already.
#[must_use]
pub const fn is_summary(record: &Record) -> bool {
    matches!(&record.body, Body::Telemetry(Batch { replaces: Some(_), .. }))
}

impl Thinner {
    /// Takes a record that is no summary; returns the window it completes.
    pub fn take(&mut self, record: &Record, boots: &Boots) -> Vec<Summarised> {
        let Body::Telemetry(batch) = &record.body else { return Vec::new() };
        let wall_ms = match boots.date(&record.boot, record.recorded) {
            Dated::Known { wall_ms } | Dated::Between { claimed_ms: wall_ms, .. } => wall_ms,
        };
        let index = wall_ms.div_euclid(WINDOW_MS);
        let which = Which { epoch: record.epoch.clone(), boot: record.boot.clone(), index };
        let complete = self.0.get(&batch.device).is_some_and(|window| window.which != which);
        let complete = complete.then(|| self.0.remove_entry(&batch.device)).flatten();
        let window = self.0.entry(batch.device.clone()).or_insert_with(|| Window {
            which,
            recorded: record.recorded,
            points: BTreeMap::new(),
            ranges: Vec::new(),
        });
        window.recorded = record.recorded;
        window.replace(record.sequence);
        for sample in &batch.readings {
            window.sample(sample);
        }
        complete.map_or_else(Vec::new, |(device, window)| window.summaries(&device))
    }

    /// What is left.
    #[must_use]
    pub fn finish(self) -> Vec<Summarised> {
        self.0.into_iter().flat_map(|(device, window)| window.summaries(&device)).collect()
    }
}

impl Window {
    /// Adds a number, the highest yet, and keeps the ranges few.
    fn replace(&mut self, sequence: u64) {
        match self.ranges.last_mut() {
            Some((_, last)) if *last + 1 == sequence => *last = sequence,
            Some(_) | None => self.ranges.push((sequence, sequence)),
        }
        if self.ranges.len() > Replaces::RANGES_MAX {
            let gap = |i: &usize| self.ranges[i + 1].0 - self.ranges[*i].1;
            let nearest = (0..self.ranges.len() - 1).min_by_key(gap).expect("there are several");
            let (_, last) = self.ranges.remove(nearest + 1);
            self.ranges[nearest].1 = last;
        }
    }

    fn sample(&mut self, new: &Sample) {
        let Some(kept) = self.points.get_mut(&new.point) else {
            let summary = Some(counted(Summary::default(), new));
            self.points.insert(new.point.clone(), Sample { summary, ..new.clone() });
            return;
        };
        let summary = Some(counted(kept.summary.take().unwrap_or_default(), new));
        // The last good value stands for the window; only where there is none, the last word on why.
        if trust(new.quality) >= trust(kept.quality) {
            *kept = Sample { summary, ..new.clone() };
        } else {
            kept.summary = summary;
        }
    }

    fn summaries(self, device: &Segment) -> Vec<Summarised> {
        let Self { which: Which { epoch, boot, .. }, recorded, points, ranges } = self;
        let replaces = Replaces { epoch, ranges };
        let batches = cut(device, points.into_values().collect(), Some(&replaces));
        batches.into_iter().map(|batch| Summarised { boot: boot.clone(), recorded, batch }).collect()
    }
}

fn counted(summary: Summary, sample: &Sample) -> Summary {
    let Some(value) = sample.value.as_ref().filter(|_| sample.quality == Quality::Good) else { return summary };
    let beyond = |kept: Option<Value>, beyond: fn(f64, f64) -> bool| match (
        kept.as_ref().and_then(Value::as_f64),
        value.as_f64(),
    ) {
        (Some(old), Some(new)) if !beyond(new, old) => kept,
        (_, new) => new.map(|_| value.clone()).or(kept),
    };
    Summary {
        count: summary.count + 1,
        min: beyond(summary.min, |new, old| new < old),
        max: beyond(summary.max, |new, old| new > old),
    }
}

const fn trust(quality: Quality) -> u8 {
    match quality {
        Quality::Bad => 0,
        Quality::Uncertain => 1,
        Quality::Good => 2,
    }
}

/// Whether thinning is worth it: it must more than halve what the records take.
#[derive(Debug, Default)]
pub struct Survey {
    thinner: Thinner,
    before_bytes: usize,
    after_bytes: usize,
}

impl Survey {
    /// Looks at a record.
    pub fn take(&mut self, stored: &Stored, boots: &Boots) {
        if !is_summary(&stored.record) {
            self.before_bytes += stored.size;
            let summaries = self.thinner.take(&stored.record, boots);
            self.add(&summaries);
        }
    }

    /// Whether the records seen would shrink to less than half.
    #[must_use]
    pub fn pays(mut self) -> bool {
        let rest = std::mem::take(&mut self.thinner).finish();
        self.add(&rest);
        2 * self.after_bytes < self.before_bytes
    }

    fn add(&mut self, summaries: &[Summarised]) {
        let size = |summary: &Summarised| serde_json::to_vec(&summary.batch).map_or(0, |json| json.len());
        self.after_bytes += summaries.iter().map(|summary| RECORD_OVERHEAD + size(summary)).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{reading::Reason, record::Lane};

    /// A quarter past ten, in wall milliseconds.
    const QUARTER_MS: i64 = 1_795_256_100_000;

    fn epoch(letter: char) -> Epoch {
        Epoch::parse(&letter.to_string().repeat(Epoch::LEN)).expect("an epoch")
    }

    fn at(seconds: u64) -> Now {
        Now {
            mono_ms: seconds * 1_000,
            wall_ms: QUARTER_MS + i64::try_from(seconds).expect("small") * 1_000,
            trusted: true,
        }
    }

    fn sample(point: &str, value: Option<Value>, seconds: u64) -> Sample {
        let (quality, reason) =
            if value.is_some() { (Quality::Good, None) } else { (Quality::Bad, Some(Reason::Timeout)) };
        let point = PointId::parse(point).expect("a point");
        Sample { point, value, quality, reason, at: at(seconds), source_time_ms: None, summary: None }
    }

    fn record(sequence: u64, seconds: u64, readings: Vec<Sample>) -> Record {
        let device = Segment::parse(readings[0].point.device()).expect("a device");
        let body = Body::Telemetry(Batch { device, readings, replaces: None });
        let (lane, epoch, boot, recorded) = (Lane::Telemetry, epoch('a'), BootId::new("boot"), at(seconds));
        Record { lane, epoch, sequence, boot, recorded, body }
    }

    fn thinned(records: &[Record]) -> Vec<Summarised> {
        let mut thinner = Thinner::default();
        let mut found: Vec<Summarised> =
            records.iter().flat_map(|record| thinner.take(record, &Boots::default())).collect();
        found.extend(thinner.finish());
        found
    }

    fn summary(count: u64, min: impl Into<Option<Value>>, max: impl Into<Option<Value>>) -> Option<Summary> {
        Some(Summary { count, min: min.into(), max: max.into() })
    }

    #[test]
    fn a_quarter_of_an_hour_becomes_the_last_good_value_and_what_the_good_ones_were() {
        let float = |x: f64| Some(Value::Float(x));
        let records = [
            record(
                7,
                10,
                vec![sample("meter/v", float(230.0), 9), sample("meter/mode", Some(Value::Text("auto".into())), 9)],
            ),
            record(8, 300, vec![sample("meter/v", float(225.5), 299), sample("meter/on", Some(true.into()), 299)]),
            record(9, 600, vec![sample("meter/v", float(228.0), 599), sample("meter/on", Some(false.into()), 599)]),
            record(10, 899, vec![sample("meter/v", None, 898), sample("meter/i", None, 898)]),
            record(11, 900, vec![sample("meter/v", float(1.0), 899)]),
        ];
        let [first, second] = &thinned(&records)[..] else { panic!("two windows") };
        let kept = |name, value, seconds, summary| Sample { summary, ..sample(name, value, seconds) };
        assert_eq!(
            first.batch.readings,
            [
                kept("meter/i", None, 898, summary(0, None, None)),
                kept("meter/mode", Some(Value::Text("auto".into())), 9, summary(1, None, None)),
                kept("meter/on", Some(false.into()), 599, summary(2, Value::Bool(false), Value::Bool(true))),
                kept("meter/v", float(228.0), 599, summary(3, float(225.5), float(230.0))),
            ]
        );
        assert_eq!(first.batch.replaces, Some(Replaces { epoch: epoch('a'), ranges: vec![(7, 10)] }));
        assert_eq!((first.recorded, &first.boot), (at(899), &BootId::new("boot")));
        assert_eq!(second.batch.replaces.as_ref().map(|of| of.ranges.clone()), Some(vec![(11, 11)]));
    }

    #[test]
    fn devices_epochs_and_boots_have_windows_of_their_own() {
        let one = |sequence, device: &str| {
            record(sequence, sequence, vec![sample(&format!("{device}/x"), Some(true.into()), sequence)])
        };
        let mut records = vec![one(1, "a"), one(2, "b"), one(3, "a"), one(4, "a"), one(5, "b"), one(6, "b")];
        records[3].boot = BootId::new("next");
        records[5].epoch = epoch('b');
        let mut found: Vec<_> = thinned(&records).into_iter().map(|of| of.batch.replaces.expect("a summary")).collect();
        found.sort_by(|a, b| (&a.epoch, &a.ranges).cmp(&(&b.epoch, &b.ranges)));
        let replaces = |letter, ranges: &[(u64, u64)]| Replaces { epoch: epoch(letter), ranges: ranges.to_vec() };
        let expected = [
            replaces('a', &[(1, 1), (3, 3)]),
            replaces('a', &[(2, 2), (5, 5)]),
            replaces('a', &[(4, 4)]),
            replaces('b', &[(6, 6)]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_untrusted_clock_is_corrected_by_what_is_known_of_its_boot() {
        let mut boots = Boots::default();
        boots.enter(&BootId::new("boot"));
        boots.trust(&BootId::new("boot"), at(0));
        let untrusted = |sequence, seconds| {
            let mut record = record(sequence, seconds, vec![sample("a/x", Some(true.into()), seconds)]);
            record.recorded = Now { wall_ms: 1_000, trusted: false, ..record.recorded };
            record
        };
        let mut thinner = Thinner::default();
        assert_eq!(thinner.take(&untrusted(1, 899), &boots), []);
        assert_eq!(thinner.take(&untrusted(2, 900), &boots).len(), 1, "the quarter is over");
        let mut thinner = Thinner::default();
        thinner.take(&untrusted(1, 899), &Boots::default());
        assert_eq!(thinner.take(&untrusted(2, 900), &Boots::default()), [], "both claim to be of 1970");
    }

    #[test]
    fn many_runs_are_joined_where_they_are_nearest() {
        let numbers = (0..40_u64).flat_map(|i| [10 * i + 1, 10 * i + 3]);
        let records: Vec<Record> = numbers.map(|n| record(n, 1, vec![sample("a/x", Some(true.into()), 1)])).collect();
        let found = thinned(&records).remove(0).batch.replaces.expect("a summary").ranges;
        assert_eq!(found.len(), Replaces::RANGES_MAX);
        assert!(records.iter().all(|r| found.iter().any(|(first, last)| (first..=last).contains(&&r.sequence))));
        assert!(found.is_sorted_by(|a, b| a.1 < b.0), "{found:?}");
    }

    #[test]
    fn summaries_of_many_points_fit_records() {
        let readings =
            (0..300).map(|i| sample(&format!("a/{i}-{}", "x".repeat(50)), Some(Value::Float(0.1 + 0.2)), 1)).collect();
        let found = thinned(&[record(1, 1, readings)]);
        assert_eq!(found.iter().map(|of| of.batch.readings.len()).sum::<usize>(), 300);
        for of in &found {
            let stored = serde_json::to_vec(&of.batch).expect("JSON").len();
            assert!(stored + 300 <= crate::record::RECORD_SIZE_MAX, "{stored} bytes");
        }
    }

    #[test]
    fn thinning_pays_where_it_more_than_halves_and_never_for_summaries() {
        let pays = |every_s: usize, summary: bool| {
            let mut survey = Survey::default();
            for (sequence, seconds) in (1..).zip((0..7_200).step_by(every_s)) {
                let mut record =
                    record(sequence, seconds, vec![sample("meter/voltage", Some(Value::Float(230.5)), seconds)]);
                if let (Body::Telemetry(batch), true) = (&mut record.body, summary) {
                    batch.replaces = Some(Replaces { epoch: epoch('a'), ranges: vec![(1, 1)] });
                }
                let size = serde_json::to_vec(&record).expect("JSON").len() + 80;
                survey.take(&Stored { position: sequence, size, record }, &Boots::default());
            }
            survey.pays()
        };
        assert!(pays(60, false) && pays(300, false));
        assert!(!pays(900, false) && !pays(600, false), "hardly any smaller");
        assert!(!pays(60, true));
    }
}
