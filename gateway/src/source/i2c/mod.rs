//! Sensors on the gateway's own I2C bus: one thread polls one chip, with the drivers of the sensor node.
//!
//! Several threads may have one bus: the kernel lets one transfer at a time through. A bus whose lines are stuck makes a
//! transfer wait for as long as its adapter is patient (a second, as a rule), and only that thread.
//!
//! [`chip`] decides (pure), [`bus`] is the kernel's interface, [`I2cTask`] waits. A chip that is missing stops nothing: its
//! points are bad, and it is looked for at each poll.

pub mod bus;
pub mod chip;

use std::time::Duration;

use embedded_hal::i2c::I2c;
use gardu_node::{sensors::Trouble as Fault, time::Instant};
use tokio::time::sleep;

pub use self::bus::open;
use self::chip::{Chip, Points, Report};
use super::{
    outlet::{Handed, Outlet},
    polled::Change,
};
use crate::{
    clock::Clock,
    config::I2cDevice,
    metrics::Metrics,
    pipeline::Input,
    supervise::{BEAT_EVERY, TaskResult},
};

/// Between two looks at a chip that is measuring: a converter gives 860 samples a second, and enough of them must be fetched.
const LOOK_EVERY: Duration = Duration::from_micros(500);

/// A poll whose chip has not reported by then is given up; a round of the converter takes 0.9 s, each stuck transfer 1 s.
const POLL_MAX: Duration = Duration::from_secs(10);

/// Why a chip cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No such file.
    #[error(
        "there is no such bus: enable I2C (`sudo raspi-config nonint do_i2c 0`, or load the module i2c-dev), or correct `bus`"
    )]
    NotThere,
    /// No right to it.
    #[error("no permission to open it: its group must be i2c, which systemd/99-gardu.rules sees to")]
    NotAllowed,
    /// Another kind of file.
    #[error("it is no I2C bus: write one of /dev/i2c-*")]
    NotABus,
    /// A driver of the kernel has the address.
    #[error("a driver of the kernel holds address {address:#04x}: remove its dtoverlay from config.txt")]
    InUse {
        /// Which.
        address: u8,
    },
    /// The chip itself.
    #[error("{}", advice(*.0))]
    Chip(Fault),
    /// Anything else, in the system's words.
    #[error("{0}")]
    Failed(String),
}

const fn advice(fault: Fault) -> &'static str {
    match fault {
        Fault::NoAnswer => {
            "nobody answers at its address: check its supply and wires; `i2cdetect -y N` shows who is there"
        }
        Fault::Bus => "the bus fails: look for a short, or SDA and SCL swapped, or missing pull-ups",
        Fault::Checksum => "its answers are garbled: shorten the wires or slow the bus down",
        Fault::TimedOut => "it does not get ready in time, or this machine is too busy to ask it often enough",
    }
}

/// The one who asks one chip.
pub struct I2cTask<O, I> {
    device: I2cDevice,
    open: O,
    /// Gone after a missed poll: a bus that was unplugged must be opened anew.
    chip: Option<Chip<I>>,
    points: Points,
    next_poll_ms: u64,
    clock: Clock,
    metrics: Metrics,
    outlet: Outlet,
}

impl<O: FnMut(&I2cDevice) -> Result<I, Trouble>, I: I2c> I2cTask<O, I> {
    /// Nothing is opened before [`I2cTask::run`].
    ///
    /// While the pipeline has no room polls become late, and nothing is dropped.
    #[must_use]
    pub fn new(device: I2cDevice, open: O, clock: Clock, metrics: Metrics, outlet: Outlet) -> Self {
        metrics.readings.with_label_values(&[device.name.as_str()]);
        Self {
            points: Points::new(&device),
            next_poll_ms: clock.now().mono_ms,
            device,
            open,
            chip: None,
            clock,
            metrics,
            outlet,
        }
    }

    /// Polls until shutdown. Runs on a thread of its own, for transfers block it.
    pub async fn run(mut self) -> TaskResult {
        let outlet = self.outlet.clone();
        outlet.work(self.poll_on()).await
    }

    /// Returns only when nobody takes readings any more, or at shutdown.
    async fn poll_on(&mut self) {
        while !self.outlet.shutdown.is_cancelled() {
            self.outlet.beat.mark();
            let now_ms = self.clock.now().mono_ms;
            if now_ms < self.next_poll_ms {
                sleep(Duration::from_millis(self.next_poll_ms - now_ms).min(BEAT_EVERY / 2)).await;
                continue;
            }
            let poll_ms = u64::try_from(self.device.poll.as_millis()).unwrap_or(u64::MAX);
            // In step with the first poll, unless one was missed.
            self.next_poll_ms = self.next_poll_ms.saturating_add(poll_ms).max(now_ms);
            let trouble = self.ask().err();
            if self.outlet.shutdown.is_cancelled() {
                return; // a poll that was cut short says nothing of the chip
            }
            let report = self.points.end(trouble, self.clock.now());
            if report.missed {
                self.chip = None;
            }
            self.count(&report);
            self.log(report.change.as_ref());
            if self.outlet.send(Input::Readings(report.readings)).await == Handed::Stopping {
                return;
            }
        }
    }

    /// Asks the chip until every point has been measured.
    fn ask(&mut self) -> Result<(), Trouble> {
        if self.chip.is_none() {
            self.chip = Some(Chip::new(self.device.chip, (self.open)(&self.device)?));
        }
        let Some(chip) = &mut self.chip else { return Ok(()) };
        let begun = self.clock.now();
        loop {
            let measured = chip.step(self.device.transformer_a, Instant::from_ticks(self.clock.kernel_us()));
            if self.points.take(&measured) {
                return Ok(());
            }
            self.outlet.beat.mark();
            if self.outlet.shutdown.is_cancelled() || self.clock.now().since(begun) > POLL_MAX {
                return Err(Trouble::Chip(Fault::TimedOut));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn count(&self, report: &Report) {
        let device = self.device.name.as_str();
        let points = u64::try_from(self.points.count()).unwrap_or(u64::MAX);
        self.metrics.readings.with_label_values(&[device]).inc_by(points);
        for reason in &report.bad {
            self.metrics.read_errors.with_label_values(&[device, reason.as_str()]).inc();
        }
    }

    fn log(&self, change: Option<&Change<Trouble>>) {
        let (device, bus) = (&self.device.name, self.device.bus.display());
        match change {
            None => {}
            Some(Change::Lost(reason)) => tracing::warn!(%device, %bus, %reason, "the sensor cannot be read"),
            Some(Change::Back { missed, .. }) => {
                tracing::info!(%device, %bus, missed_polls = missed, "the sensor can be read again");
            }
        }
    }
}

#[cfg(test)]
mod tests;
