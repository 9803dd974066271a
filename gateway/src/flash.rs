//! How much this process really writes to its storage: cards wear out by it.
//!
//! The kernel counts what a process causes to be written (`/proc/self/io`, proc_pid_io(5)): `write_bytes`, pages as they
//! become dirty, less `cancelled_write_bytes`, pages dropped before they were written (a deleted file). What the card's own
//! controller adds is not in it; vendors' endurance figures (TBW) mean the same number.
//!
//! The forecast slides over [`WINDOW_MS`], so that a rush counts as what it is over a day, not as a day of its own.
//!
//! Limit: a kernel built without `TASK_IO_ACCOUNTING` counts nothing; then nothing is shown and nothing is alarmed.

use std::{collections::VecDeque, fs};

use tokio::{sync::mpsc, time::MissedTickBehavior};

use crate::{
    alarm::AlarmId,
    clock::{Clock, Now},
    metrics::Metrics,
    pipeline::Input,
    reading::{PointId, Reading, Value},
    status::{StatusBoard, Written},
    supervise::{BEAT_EVERY, Beat, Shutdown, TaskResult},
};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Long enough for the quiet and the busy part of an evening.
const WINDOW_MS: u64 = 6 * HOUR_MS;
/// A mark so often: 37 of them span the window.
const MARK_EVERY_MS: u64 = 10 * 60 * 1_000;
/// Nothing is foretold before: opening the store, and a backlog that goes out, are not the usual.
const OBSERVED_MIN_MS: u64 = HOUR_MS;
/// The alarm ends below so much of the budget: a forecast at its edge must not make an alarm an hour.
const ENDS_BELOW_PERCENT: u64 = 90;

/// What a day will see at the rate of the last hours: pure.
#[derive(Debug, Default)]
struct Forecast {
    /// When, and how much was written by then; oldest first.
    marks: VecDeque<(u64, u64)>,
}

impl Forecast {
    /// Takes the count as it is; returns bytes a day, once enough is known.
    fn note(&mut self, mono_ms: u64, written_bytes: u64) -> Option<u64> {
        if self.marks.back().is_none_or(|(at_ms, _)| mono_ms >= at_ms + MARK_EVERY_MS) {
            self.marks.push_back((mono_ms, written_bytes));
        }
        // One mark at or beyond the window's edge stays: the forecast spans at least the window.
        while self.marks.get(1).is_some_and(|(at_ms, _)| at_ms + WINDOW_MS <= mono_ms) {
            self.marks.pop_front();
        }
        let (since_ms, before_bytes) = *self.marks.front()?;
        let observed_ms = mono_ms.saturating_sub(since_ms);
        let written = u128::from(written_bytes.saturating_sub(before_bytes));
        let day = written * u128::from(DAY_MS) / u128::from(observed_ms.max(1));
        (observed_ms >= OBSERVED_MIN_MS).then(|| u64::try_from(day).unwrap_or(u64::MAX))
    }
}

/// Whether the alarm stands, given whether it stood.
const fn exceeds(stood: bool, day_bytes: u64, budget_bytes: u64) -> bool {
    if stood { day_bytes > budget_bytes / 100 * ENDS_BELOW_PERCENT } else { day_bytes > budget_bytes }
}

/// Bytes written, in the text of `/proc/self/io`.
fn written(io: &str) -> Option<u64> {
    let field = |name| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some(field("write_bytes:")?.saturating_sub(field("cancelled_write_bytes:")?))
}

/// The task that watches.
#[derive(Debug)]
pub struct FlashTask {
    /// Bytes a day that may be written, if somebody set a bound.
    pub budget_bytes: Option<u64>,
    /// Where the alarm goes.
    pub pipeline: mpsc::Sender<Input>,
    /// Where people see it.
    pub board: StatusBoard,
    /// Numbers for Prometheus.
    pub metrics: Metrics,
    /// The clock.
    pub clock: Clock,
    /// This stage's pulse.
    pub beat: Beat,
}

/// What the pipeline is to know of the budget.
#[derive(Debug, Default)]
struct Budget {
    stands: Option<bool>,
    told: Option<bool>,
}

impl FlashTask {
    /// Runs until shutdown.
    pub async fn run(self, shutdown: Shutdown) -> TaskResult {
        let mut tick = tokio::time::interval(BEAT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut forecast, mut budget, mut silent) = (Forecast::default(), Budget::default(), false);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tick.tick() => self.beat.mark(),
            }
            match fs::read_to_string("/proc/self/io").ok().as_deref().and_then(written) {
                Some(total_bytes) => self.saw(total_bytes, &mut forecast, &mut budget),
                None if !silent => {
                    silent = true;
                    tracing::warn!(
                        "the kernel does not count what is written (/proc/self/io): no forecast for the card"
                    );
                }
                None => {}
            }
        }
    }

    fn saw(&self, total_bytes: u64, forecast: &mut Forecast, budget: &mut Budget) {
        let now = self.clock.now();
        let day_bytes = forecast.note(now.mono_ms, total_bytes);
        let before = self.metrics.process_written_bytes.get();
        self.metrics.process_written_bytes.inc_by(total_bytes.saturating_sub(before));
        self.metrics.process_written_bytes_per_day.set(i64::try_from(day_bytes.unwrap_or(0)).unwrap_or(i64::MAX));
        self.board.set_written(Written { total_bytes, day_bytes, budget_day_bytes: self.budget_bytes });
        let (Some(day_bytes), Some(budget_bytes)) = (day_bytes, self.budget_bytes) else { return };
        let stands = exceeds(budget.stands == Some(true), day_bytes, budget_bytes);
        if budget.stands.replace(stands).unwrap_or(false) != stands {
            tracing::warn!(day_bytes, budget_bytes, exceeded = stands, "forecast of what is written a day");
        }
        // A full queue is no reason to wait: the next time tells.
        if budget.told != budget.stands && self.pipeline.try_send(reading(stands, now)).is_ok() {
            budget.told = budget.stands;
        }
    }
}

/// The reading that raises or clears the alarm.
fn reading(stands: bool, now: Now) -> Input {
    let point = PointId::parse(AlarmId::flash_budget().as_str()).expect("a built-in alarm's name is that of its point");
    Input::Readings(vec![Reading::good(point, Value::Bool(stands), now)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::supervise::Pulse;

    const MIB: u64 = 1024 * 1024;
    const MINUTE_MS: u64 = 60_000;

    #[test]
    fn what_was_cancelled_was_not_written() {
        let io = |text: &str| written(text);
        let all = "rchar: 9\nwchar: 8\nsyscr: 1\nsyscw: 1\nread_bytes: 4096\nwrite_bytes: 12288\ncancelled_write_bytes: 4096\n";
        assert_eq!(io(all), Some(8_192));
        assert_eq!(io("write_bytes: 1\ncancelled_write_bytes: 5\n"), Some(0));
        for bad in ["", "write_bytes: 1\n", "write_bytes: x\ncancelled_write_bytes: 0\n"] {
            assert_eq!(io(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_kernel_counts_for_this_process() {
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        assert!(io.is_empty() || written(&io).is_some(), "{io}");
    }

    #[test]
    fn an_hour_foretells_a_day_and_a_rush_is_forgotten_after_the_window() {
        let mut forecast = Forecast::default();
        let mut total = 0;
        let mut at = |minute: u64, written: u64| {
            total += written;
            forecast.note(minute * MINUTE_MS, total)
        };
        assert_eq!(
            (at(0, 500 * MIB), at(59, MIB)),
            (None, None),
            "what was written before the first look is not counted"
        );
        assert_eq!(at(60, 0), Some(24 * MIB));
        for minute in 61..360 {
            at(minute, 0);
        }
        assert_eq!(at(360, 0), Some(4 * MIB));
        for minute in 361..430 {
            at(minute, 0);
        }
        assert_eq!(at(430, 0), Some(0), "the rush is older than the window");
    }

    #[test]
    fn the_alarm_ends_well_below_the_budget() {
        let timeline = [(90, false), (101, true), (100, true), (91, true), (90, false), (100, false), (101, true)];
        let mut stands = false;
        for (day, expected) in timeline {
            stands = exceeds(stands, day * MIB, 100 * MIB);
            assert_eq!(stands, expected, "{day}");
        }
    }

    #[test]
    fn the_pipeline_is_told_once_a_change_and_again_if_it_had_no_room() {
        let clock = Clock::manual("boot", Now { mono_ms: 0, wall_ms: 0, trusted: true });
        let (pipeline, mut inputs) = mpsc::channel(1);
        let pulse = Pulse::new(clock.clone());
        let board = crate::status::tests::board(&clock, &pulse);
        let metrics = Metrics::new();
        let task = FlashTask {
            budget_bytes: Some(100 * MIB),
            pipeline: pipeline.clone(),
            board: board.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            beat: pulse.stage("flash"),
        };
        let (mut forecast, mut budget) = (Forecast::default(), Budget::default());
        let mut saw = |minute: u64, total_mib: u64| {
            clock.set(Now { mono_ms: minute * MINUTE_MS, wall_ms: 0, trusted: true });
            task.saw(total_mib * MIB, &mut forecast, &mut budget);
        };
        let mut told = || match inputs.try_recv() {
            Ok(Input::Readings(readings)) => readings.first().map(|reading| reading.value.clone()),
            _ => None,
        };
        saw(0, 10);
        assert_eq!(told(), None, "nothing is known yet");
        pipeline.try_send(Input::Readings(vec![])).expect("room for one");
        saw(60, 20);
        let Some(Written { total_bytes, day_bytes, .. }) = board.snapshot().written else { panic!("nothing is shown") };
        assert_eq!((total_bytes, day_bytes), (20 * MIB, Some(240 * MIB)));
        assert_eq!(metrics.process_written_bytes.get(), 20 * MIB);
        assert_eq!(told(), None, "there was no room for it");
        saw(61, 20);
        assert_eq!(told(), Some(Some(Value::Bool(true))));
        saw(62, 20);
        assert_eq!(told(), None, "it knows");
        saw(5 * 60, 20);
        assert_eq!(told(), Some(Some(Value::Bool(false))));
    }

    proptest! {
        #[test]
        fn marks_are_bounded_and_a_steady_rate_is_foretold(rate in 0_u64..1_000_000, pauses in proptest::collection::vec(1_u64..3_000, 1..400)) {
            let (mut forecast, mut at_s) = (Forecast::default(), 0);
            for pause_s in pauses {
                let day = forecast.note(at_s * 1_000, at_s * rate);
                prop_assert!(forecast.marks.len() <= 38);
                prop_assert!(day.is_none_or(|day| day == rate * 86_400), "{day:?}");
                at_s += pause_s;
            }
        }
    }
}
