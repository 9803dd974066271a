//! One task owns one bus: it asks one request at a time, and hands each finished poll to the pipeline.

use std::{future::Future, time::Duration};

use tokio::time::{sleep, timeout};

use super::{
    link::Wire,
    poll::{News, Poller, Report, Step, Trouble},
    schedule::{End, Schedule, Turn},
    timing::Medium,
};
use crate::{
    clock::Clock,
    config::Bus,
    metrics::Metrics,
    pipeline::Input,
    reading::{Reading, Reason, Segment},
    source::outlet::{Handed, Outlet},
    supervise::{BEAT_EVERY, Beat, TaskResult},
};

/// The owner of a bus.
pub struct BusTask {
    bus: Segment,
    wire: Wire,
    schedule: Schedule,
    pollers: Vec<Poller>,
    clock: Clock,
    metrics: Metrics,
    outlet: Outlet,
}

impl BusTask {
    /// Every device is due at once; nothing is opened before [`BusTask::run`].
    ///
    /// While the pipeline has no room the bus waits, polls become late and say so, and nothing is dropped.
    #[must_use]
    pub fn new(bus: Bus, clock: Clock, metrics: Metrics, outlet: Outlet) -> Self {
        metrics.modbus_connects.with_label_values(&[bus.name.as_str()]);
        for device in &bus.devices {
            // A series that exists from the start can be seen not to grow.
            metrics.readings.with_label_values(&[device.name.as_str()]);
        }
        let medium = Medium::of(&bus.link);
        Self {
            wire: Wire::new(bus.clone(), clock.clone(), metrics.clone()),
            schedule: Schedule::new(bus.devices.iter().map(|device| device.poll), clock.now().mono_ms),
            pollers: bus.devices.into_iter().map(|device| Poller::new(device, medium)).collect(),
            bus: bus.name,
            clock,
            metrics,
            outlet,
        }
    }

    /// Polls until shutdown. Field trouble never ends it.
    pub async fn run(mut self) -> TaskResult {
        let outlet = self.outlet.clone();
        // A request given up by a stop is a read: nothing is left half done.
        outlet.work(self.poll_on()).await
    }

    /// Returns only when nobody takes readings any more.
    async fn poll_on(&mut self) {
        loop {
            self.outlet.beat.mark();
            let now_ms = self.clock.now().mono_ms;
            match self.schedule.turn(now_ms) {
                Turn::Rest { until_ms } => {
                    sleep(Duration::from_millis(until_ms.saturating_sub(now_ms)).min(BEAT_EVERY / 2)).await;
                }
                Turn::Serve(device) => {
                    let readings = self.serve(device).await;
                    if !readings.is_empty() && self.outlet.send(Input::Readings(readings)).await == Handed::Stopping {
                        return;
                    }
                }
            }
        }
    }

    /// Asks the next request of a device; returns what is to be passed on, at the end of its poll.
    async fn serve(&mut self, index: usize) -> Vec<Reading> {
        let poller = &mut self.pollers[index];
        let before = self.clock.now();
        if !self.schedule.is_under_way(index) {
            let late = self.schedule.begin(index, before.mono_ms);
            let late_seconds = self.metrics.modbus_poll_late_seconds.with_label_values(&[self.bus.as_str()]);
            late_seconds.observe(late.as_secs_f64());
        }
        let Some(request) = poller.request() else {
            self.schedule.end(index, End::Answered, before.mono_ms); // a device without points has nothing to say
            return Vec::new();
        };
        let result = beating(&self.outlet.beat, self.wire.ask(poller.device().unit, request)).await;
        let now = self.clock.now();
        let trouble = result.as_ref().err().copied();
        match trouble {
            None | Some(Trouble::Refused(_) | Trouble::NoLink | Trouble::Babble) => {}
            Some(Trouble::Timeout | Trouble::Unreachable | Trouble::Malformed | Trouble::Broken) => {
                self.schedule.failed(index, now.since(before), now.mono_ms);
            }
        }
        match poller.take(result, now) {
            Step::More { news } => {
                self.log(index, news);
                Vec::new()
            }
            Step::Over(Report { readings, bad, missed, news }) => {
                let silent_from = poller.device().missed_polls;
                let end = match trouble {
                    _ if missed == 0 => End::Answered,
                    Some(trouble) if trouble.is_of_the_bus() => End::NoLink,
                    _ if missed < silent_from => End::Missed,
                    _ => End::Silent,
                };
                self.schedule.end(index, end, now.mono_ms);
                self.count(index, &bad);
                self.log(index, news);
                readings
            }
        }
    }

    fn count(&self, index: usize, bad: &[Reason]) {
        let device = self.pollers[index].device();
        let points = u64::try_from(device.points.len()).unwrap_or(u64::MAX);
        self.metrics.readings.with_label_values(&[device.name.as_str()]).inc_by(points);
        for reason in bad {
            self.metrics.read_errors.with_label_values(&[device.name.as_str(), reason.as_str()]).inc();
        }
    }

    fn log(&self, index: usize, news: Option<News>) {
        let (bus, device) = (&self.bus, self.pollers[index].device());
        let (unit, device) = (device.unit, &device.name);
        match news {
            None => {}
            // A bus that cannot be reached or used has its own line.
            Some(News::Lost(lost) | News::Back { lost, .. }) if lost.is_of_the_bus() => {}
            Some(News::Lost(trouble)) => {
                let reason = trouble.reason().as_str();
                tracing::warn!(%bus, %device, unit, reason, "the device does not answer");
            }
            Some(News::Back { missed, .. }) => {
                tracing::info!(%bus, %device, unit, missed_polls = missed, "the device answers again");
            }
            Some(News::Refuses { table, address, count, code }) => {
                tracing::warn!(%bus, %device, unit, ?table, address, count, exception = code, "the device refuses a request");
            }
            Some(News::HolesLeftOut { table, address }) => {
                tracing::info!(%bus, %device, unit, ?table, address, "the device refuses unused addresses; reading around them");
            }
        }
    }
}

/// Waits for the field, however long, and marks the beat meanwhile: this task is well even if the field is not.
async fn beating<T>(beat: &Beat, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        match timeout(BEAT_EVERY / 2, &mut work).await {
            Ok(done) => return done,
            Err(_elapsed) => beat.mark(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Now, supervise::Pulse};

    #[tokio::test(start_paused = true)]
    async fn a_wait_without_end_goes_on_marking_the_beat() {
        let at = |mono_ms| Now { mono_ms, wall_ms: 0, trusted: false };
        let clock = Clock::manual("boot", at(0));
        let pulse = Pulse::new(clock.clone());
        let beat = pulse.stage("modbus");
        clock.set(at(60_000));
        let endless = beating(&beat, std::future::pending::<()>());
        assert!(timeout(BEAT_EVERY, endless).await.is_err(), "it waits");
        assert_eq!(pulse.idle(), [("modbus".into(), Duration::ZERO)]);
    }
}
