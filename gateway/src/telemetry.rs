//! Which readings become telemetry, and when: pure logic.
//!
//! With `interval` the latest value of each point read since the last report is sent once an interval, one batch a
//! device. With `change` every change is a sample, sent within [`CHANGE_DELAY_MS`]. A batch is cut where a record would
//! grow beyond what the store takes.

use std::collections::{BTreeMap, HashMap};

use crate::{
    clock::Now,
    config::{
        Report,
        points::{About, Points},
    },
    reading::{PointId, Reading, Segment, Value},
    record::{Batch, RECORD_SIZE_MAX, Replaces, Sample},
};

/// How long changes are gathered into one record: the contract's 1 s, with room for the commit.
pub const CHANGE_DELAY_MS: u64 = 800;

/// Points of which the latest reading is kept. A park has hundreds; a flood of invented MQTT names must not fill memory.
pub const POINTS_MAX: usize = 20_000;

/// Bytes of a stored sample beside its point's name and its value's text, and of a record around its samples; both
/// rounded up from the stored JSON.
const SAMPLE_OVERHEAD: usize = 160;
const RECORD_OVERHEAD: usize = 640;
/// The same of a summary beside its values, and of one pair of numbers below 10^13.
const SUMMARY_OVERHEAD: usize = 64;
const RANGE_SIZE: usize = 32;

/// The latest reading of every point, and the samples waiting to be sent.
#[derive(Debug)]
pub struct Telemetry {
    points: Points,
    interval_ms: u64,
    latest: HashMap<PointId, Latest>,
    changed: BTreeMap<Segment, Vec<Sample>>,
    changes_due_ms: Option<u64>,
    interval_due_ms: u64,
}

#[derive(Debug)]
struct Latest {
    about: About,
    device: Segment,
    sample: Sample,
    /// Read since the last interval report.
    fresh: bool,
    /// What the last change sample said.
    told: Option<Sample>,
}

/// What a reading did here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A sample waits to be stored: its publisher is acknowledged after that.
    Sampled,
    /// Nothing but the latest value changed.
    Noted,
    /// The point is one too many and is not kept.
    TooMany,
}

impl Telemetry {
    /// Nothing read yet; the first interval report is due after one interval.
    #[must_use]
    pub fn new(points: Points, interval_ms: u64, now: Now) -> Self {
        Self {
            points,
            interval_ms,
            latest: HashMap::new(),
            changed: BTreeMap::new(),
            changes_due_ms: None,
            interval_due_ms: now.mono_ms + interval_ms,
        }
    }

    /// Takes one reading.
    pub fn reading(&mut self, reading: &Reading, now: Now) -> Effect {
        let sample = Sample {
            point: reading.point.clone(),
            value: reading.value.clone(),
            quality: reading.quality,
            reason: reading.reason,
            at: reading.at,
            source_time_ms: reading.source_time_ms,
            summary: None,
        };
        if !self.latest.contains_key(&reading.point) {
            if self.latest.len() >= POINTS_MAX {
                return Effect::TooMany;
            }
            let about = self.points.about(&reading.point);
            let device = Segment::parse(reading.point.device()).expect("a point's first segment is a segment");
            let first = Latest { about, device, sample: sample.clone(), fresh: false, told: None };
            self.latest.insert(reading.point.clone(), first);
        }
        let latest = self.latest.get_mut(&reading.point).expect("inserted above");
        latest.sample = sample;
        latest.fresh = true;
        let Report::Change { deadband } = latest.about.report else { return Effect::Noted };
        if latest.told.as_ref().is_some_and(|told| !differs(told, &latest.sample, deadband)) {
            return Effect::Noted;
        }
        latest.told = Some(latest.sample.clone());
        self.changed.entry(latest.device.clone()).or_default().push(latest.sample.clone());
        self.changes_due_ms.get_or_insert(now.mono_ms + CHANGE_DELAY_MS);
        Effect::Sampled
    }

    /// The latest reading of a point, with its unit.
    #[must_use]
    pub fn latest(&self, point: &PointId) -> Option<(&Sample, &About)> {
        self.latest.get(point).map(|latest| (&latest.sample, &latest.about))
    }

    /// When [`Telemetry::take`] next has something to do, in monotonic milliseconds.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        self.changes_due_ms.map_or(self.interval_due_ms, |due| due.min(self.interval_due_ms))
    }

    /// The batches that are due now.
    pub fn take(&mut self, now: Now) -> Vec<Batch> {
        let mut batches = Vec::new();
        if self.changes_due_ms.is_some_and(|due| due <= now.mono_ms) {
            batches = self.take_changes();
        }
        if self.interval_due_ms <= now.mono_ms {
            // Whole intervals from the first one on: a late report does not move the next.
            let late_ms = now.mono_ms - self.interval_due_ms;
            self.interval_due_ms = now.mono_ms - late_ms % self.interval_ms + self.interval_ms;
            batches.extend(self.take_interval());
        }
        batches
    }

    /// Every change that waits, due or not: someone waits for it to be stored, or the daemon stops.
    pub fn take_changes(&mut self) -> Vec<Batch> {
        self.changes_due_ms = None;
        std::mem::take(&mut self.changed)
            .into_iter()
            .flat_map(|(device, samples)| cut(&device, samples, None))
            .collect()
    }

    fn take_interval(&mut self) -> Vec<Batch> {
        let mut by_device: BTreeMap<Segment, Vec<Sample>> = BTreeMap::new();
        for latest in self.latest.values_mut() {
            if latest.about.report == Report::Interval && std::mem::take(&mut latest.fresh) {
                by_device.entry(latest.device.clone()).or_default().push(latest.sample.clone());
            }
        }
        let sorted = by_device.into_iter().map(|(device, mut samples)| {
            samples.sort_by(|a, b| a.point.cmp(&b.point));
            (device, samples)
        });
        sorted.flat_map(|(device, samples)| cut(&device, samples, None)).collect()
    }
}

fn differs(told: &Sample, now: &Sample, deadband: f64) -> bool {
    if told.quality != now.quality || told.reason != now.reason {
        return true;
    }
    match (&told.value, &now.value) {
        (Some(Value::Bool(a)), Some(Value::Bool(b))) => a != b,
        (Some(a), Some(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(x), Some(y)) if deadband > 0.0 => (x - y).abs() > deadband,
            _ => a != b,
        },
        (a, b) => a != b,
    }
}

/// Cuts one device's samples into batches that fit a record; each says what it stands for.
#[must_use]
pub fn cut(device: &Segment, samples: Vec<Sample>, replaces: Option<&Replaces>) -> Vec<Batch> {
    let overhead = RECORD_OVERHEAD + replaces.map_or(0, |replaces| 64 + RANGE_SIZE * replaces.ranges.len());
    let mut batches: Vec<Batch> = Vec::new();
    let mut room = 0;
    for sample in samples {
        let size = size_of_stored(&sample);
        if size > room || batches.is_empty() {
            batches.push(Batch { device: device.clone(), readings: Vec::new(), replaces: replaces.cloned() });
            room = RECORD_SIZE_MAX - overhead;
        }
        room = room.saturating_sub(size);
        batches.last_mut().expect("pushed above").readings.push(sample);
    }
    batches
}

fn size_of_stored(sample: &Sample) -> usize {
    let summary = sample.summary.as_ref().map_or(0, |summary| {
        SUMMARY_OVERHEAD + size_of_value(summary.min.as_ref()) + size_of_value(summary.max.as_ref())
    });
    SAMPLE_OVERHEAD + sample.point.as_str().len() + size_of_value(sample.value.as_ref()) + summary
}

fn size_of_value(value: Option<&Value>) -> usize {
    match value {
        Some(Value::Text(text)) => 2 * text.len(), // quotes and backslashes take two bytes; control characters never get here
        Some(_) => 40,
        None => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{alarm::rule::Selector, reading::Reason};

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, wall_ms: 1_700_000_000_000 + i64::try_from(mono_ms).expect("small"), trusted: true }
    }

    fn telemetry(report: Report) -> Telemetry {
        let about = About { unit: None, report };
        let points = Points::for_tests(vec![(Selector::parse("panel/#").expect("selector"), about)]);
        Telemetry::new(points, 10_000, at(0))
    }

    fn good(point: &str, value: f64, ms: u64) -> Reading {
        Reading::good(PointId::parse(point).expect("point"), Value::Float(value), at(ms))
    }

    fn values(batches: &[Batch]) -> Vec<f64> {
        let samples = batches.iter().flat_map(|batch| &batch.readings);
        samples.map(|s| s.value.as_ref().and_then(Value::as_f64).unwrap_or(f64::NAN)).collect()
    }

    #[test]
    fn an_interval_report_holds_the_latest_value_of_what_was_read_since() {
        let mut t = telemetry(Report::Interval);
        for (ms, value) in [(0, 1.0), (5_000, 2.0), (9_000, 3.0)] {
            assert_eq!(t.reading(&good("panel/temp", value, ms), at(ms)), Effect::Noted);
        }
        assert_eq!(t.due_ms(), 10_000);
        assert_eq!(t.take(at(9_999)), []);
        assert_eq!(values(&t.take(at(10_400))), [3.0]);
        assert_eq!(t.due_ms(), 20_000, "a late report does not move the next");
        assert_eq!(t.take(at(20_000)), [], "nothing was read since");
    }

    #[test]
    fn every_change_is_a_sample_in_order_and_leaves_within_the_delay() {
        let mut t = telemetry(Report::Change { deadband: 0.5 });
        let effects: Vec<Effect> = [(0, 1.0), (10, 1.4), (20, 1.6), (30, 1.0)]
            .into_iter()
            .map(|(ms, value)| t.reading(&good("panel/temp", value, ms), at(ms)))
            .collect();
        assert_eq!(effects, [Effect::Sampled, Effect::Noted, Effect::Sampled, Effect::Sampled]);
        assert_eq!(t.due_ms(), CHANGE_DELAY_MS);
        assert_eq!(values(&t.take(at(CHANGE_DELAY_MS))), [1.0, 1.6, 1.0]);
        assert_eq!(t.due_ms(), 10_000);
    }

    #[test]
    fn losing_and_regaining_quality_are_changes() {
        let mut t = telemetry(Report::Change { deadband: 0.0 });
        let point = PointId::parse("panel/temp").expect("point");
        t.reading(&good("panel/temp", 1.0, 0), at(0));
        assert_eq!(t.reading(&Reading::bad(point.clone(), Reason::Timeout, at(1)), at(1)), Effect::Sampled);
        assert_eq!(t.reading(&Reading::bad(point, Reason::Timeout, at(2)), at(2)), Effect::Noted);
        assert_eq!(t.reading(&good("panel/temp", 1.0, 3), at(3)), Effect::Sampled);
    }

    #[test]
    fn a_batch_never_outgrows_a_record() {
        let mut t = telemetry(Report::Interval);
        for i in 0..500 {
            let name = format!("panel/{}-{i}", "x".repeat(40));
            let text = Value::Text("\\\"".repeat(100).into());
            t.reading(&Reading::good(PointId::parse(&name).expect("point"), text, at(1)), at(1));
        }
        let batches = t.take(at(10_000));
        assert_eq!(batches.iter().map(|b| b.readings.len()).sum::<usize>(), 500);
        for batch in batches {
            let stored = serde_json::to_vec(&batch).expect("json").len();
            assert!(stored + 300 <= RECORD_SIZE_MAX, "{stored} bytes");
        }
    }

    #[test]
    fn points_beyond_the_limit_are_refused_and_unconfigured_ones_never_reported() {
        let mut t = telemetry(Report::Interval);
        t.reading(&good("elsewhere/x", 1.0, 0), at(0));
        assert_eq!(t.take(at(10_000)), []);
        for i in 1..POINTS_MAX {
            t.reading(&good(&format!("panel/{i}"), 0.0, 0), at(0));
        }
        assert_eq!(t.reading(&good("panel/one-too-many", 0.0, 0), at(0)), Effect::TooMany);
        assert_eq!(t.reading(&good("panel/7", 0.0, 0), at(0)), Effect::Noted, "known points go on");
    }
}
