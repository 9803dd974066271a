//! When the outbox will be full if it goes on growing like this: pure.
//!
//! The growth is the steeper of the last hour's and the last six hours', each the slope of the straight line that fits
//! what was measured best: an outage that has just begun is not watered down by a quiet morning before it.

use std::{collections::VecDeque, time::Duration};

use super::quota::{Measured, Shares};

/// Between two samples.
const SAMPLE_EVERY_MS: u64 = 60_000;
/// The spans that are looked at.
const SPANS_MS: [u64; 2] = [60 * 60_000, 6 * 60 * 60_000];
/// A shorter history says nothing yet: files grow in steps.
const SPAN_MIN_MS: u64 = 15 * 60_000;
/// Six hours of minutes.
const SAMPLES_MAX: usize = 361;
/// Further away it is as good as never.
const FULL_MAX: Duration = Duration::from_secs(366 * 86_400);

/// What was measured lately, oldest first.
#[derive(Debug, Default)]
pub struct Forecast(VecDeque<Sample>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    mono_ms: u64,
    used: u64,
    telemetry: u64,
}

impl Forecast {
    /// Takes a measurement, one a minute.
    pub fn note(&mut self, mono_ms: u64, measured: &Measured) {
        if self.0.back().is_some_and(|last| mono_ms < last.mono_ms + SAMPLE_EVERY_MS) {
            return;
        }
        if self.0.len() == SAMPLES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Sample { mono_ms, used: measured.used(), telemetry: measured.telemetry });
    }

    /// Forgets what was measured: something was given up, and the line is broken.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// How long until the first share is full; `None` while nothing grows or too little is known.
    #[must_use]
    pub fn full_in(&self, measured: &Measured, shares: &Shares) -> Option<Duration> {
        let all = self.reached(|sample| sample.used, shares.all.saturating_sub(measured.used()));
        let telemetry = self.reached(|sample| sample.telemetry, shares.telemetry.saturating_sub(measured.telemetry));
        all.into_iter().chain(telemetry).min().filter(|full| *full <= FULL_MAX)
    }

    fn reached(&self, bytes: impl Fn(&Sample) -> u64 + Copy, room: u64) -> Option<Duration> {
        let last_ms = self.0.back()?.mono_ms;
        let slopes = SPANS_MS.into_iter().filter_map(|span_ms| {
            let first = self.0.partition_point(|sample| sample.mono_ms + span_ms < last_ms);
            slope(self.0.range(first..), bytes)
        });
        let steepest = slopes.reduce(f64::max).filter(|bytes_a_second| *bytes_a_second > 0.0)?;
        #[expect(clippy::cast_precision_loss, reason = "a forecast")]
        let seconds = room as f64 / steepest;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// Bytes a second of the line that fits best (least squares); `None` if the samples span too little.
#[expect(clippy::cast_precision_loss, reason = "a forecast")]
fn slope<'a>(samples: impl Iterator<Item = &'a Sample> + Clone, bytes: impl Fn(&Sample) -> u64) -> Option<f64> {
    let (first, last) = (samples.clone().next()?, samples.clone().last()?);
    if last.mono_ms - first.mono_ms < SPAN_MIN_MS {
        return None;
    }
    let point = |sample: &Sample| ((sample.mono_ms - first.mono_ms) as f64 / 1_000.0, bytes(sample) as f64);
    let count = samples.clone().count() as f64;
    let (sum_x, sum_y) = samples.clone().map(point).fold((0.0, 0.0), |(x, y), (dx, dy)| (x + dx, y + dy));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let sums = samples
        .map(point)
        .fold((0.0, 0.0), |(xy, xx), (x, y)| (xy + (x - mean_x) * (y - mean_y), xx + (x - mean_x) * (x - mean_x)));
    Some(sums.0 / sums.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const HOUR: Duration = Duration::from_secs(3_600);

    /// After `minutes` in which `telemetry` MiB followed the time, of 160 MiB: 120 for telemetry, 148 for all.
    fn full_in(minutes: u64, telemetry: impl Fn(u64) -> u64) -> Option<Duration> {
        let mut forecast = Forecast::default();
        let measured = |minute| Measured { telemetry: telemetry(minute), alarm: MIB, other: 0, free: 1 << 40 };
        for minute in 0..=minutes {
            forecast.note(minute * 60_000, &measured(minute));
            forecast.note(minute * 60_000 + 30_000, &measured(0));
        }
        assert!(forecast.0.len() <= SAMPLES_MAX);
        let last = measured(minutes);
        forecast.full_in(&last, &Shares::of(160 * MIB, &last))
    }

    fn about(found: Option<Duration>, hours: u64) {
        let found = found.expect("it grows");
        assert!(found.abs_diff(hours as u32 * HOUR) < HOUR / 10, "{found:?} is not about {hours} h");
    }

    #[test]
    fn steady_growth_is_carried_on_to_the_first_share_that_is_full() {
        about(full_in(120, |minute| minute * MIB / 6), 10); // 20 MiB in 2 h, 100 to go
        about(full_in(600, |minute| minute * MIB / 6), 2); // 100 MiB in 10 h, of which six are remembered
    }

    #[test]
    fn growth_in_steps_is_growth() {
        about(full_in(120, |minute| minute / 12 * 2 * MIB), 10);
    }

    #[test]
    fn an_outage_that_has_just_begun_is_not_watered_down() {
        about(full_in(360, |minute| minute.saturating_sub(300) * MIB), 1);
    }

    #[test]
    fn nothing_is_foretold_of_what_shrinks_stands_still_or_is_hardly_known() {
        assert_eq!(full_in(120, |_| MIB), None);
        assert_eq!(full_in(120, |minute| (200 - minute) * MIB), None);
        assert_eq!(full_in(14, |minute| minute * MIB), None);
        assert_eq!(full_in(120, |minute| minute), None, "in a thousand years");
    }

    #[test]
    fn what_is_full_is_full_now() {
        assert_eq!(full_in(120, |minute| minute * 2 * MIB), Some(Duration::ZERO));
    }
}
