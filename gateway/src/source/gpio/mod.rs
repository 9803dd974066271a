//! Dry contacts on the gateway's own header: one thread owns the lines of one GPIO chip.
//!
//! Terms: a **chip** has numbered **lines**; a contact is wired to one. Between two polls the kernel reports every **edge**
//! with its time, so a short press is neither missed nor counted twice; a poll looks at the levels themselves, proves that
//! the chip is still there, and passes on the state and the event counter of every contact.
//!
//! [`contacts`] decides (pure), [`lines`] is the kernel's interface, [`GpioTask`] waits. The counters begin at 0 when the
//! gateway starts, wrap, and are never cleared. A chip or line that cannot be had stops nothing: its points are bad, and it is
//! tried again.

pub mod contacts;
pub mod lines;

use std::time::Duration;

use gardu_node::time::Instant;
use tokio::time::sleep;

use self::contacts::{Contacts, Report};
pub use self::lines::Header;
use super::{
    outlet::{Handed, Outlet},
    polled::Change,
};
use crate::{
    backoff::{Backoff, Jitter, Pace},
    clock::Clock,
    config::Gpio,
    metrics::Metrics,
    pipeline::Input,
    reading::{Reading, Reason},
    supervise::{BEAT_EVERY, TaskResult},
};

/// How long edges are waited for before it is looked whether to stop.
const GLANCE: Duration = Duration::from_millis(100);

/// Why lines cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No such file.
    #[error("there is no such chip: write the path that `gpiodetect` shows, or plug it in")]
    NotThere,
    /// No right to it.
    #[error("no permission to open it: its group must be gpio, which systemd/99-gardu.rules sees to")]
    NotAllowed,
    /// Another kind of file.
    #[error("it is no GPIO chip: write the path that `gpiodetect` shows")]
    NotAChip,
    /// The chip is smaller.
    #[error("it has no line {line}, only 0 to {}: correct `line`", lines.saturating_sub(1))]
    NoLine {
        /// As configured.
        line: u32,
        /// How many it has.
        lines: u32,
    },
    /// Somebody else has a line.
    #[error(
        "line {line} is in use by `{by}`: free it (an overlay in config.txt, another program) or wire to another line"
    )]
    InUse {
        /// Which.
        line: u32,
        /// Who, as the kernel calls it.
        by: String,
    },
    /// Anything else, in the system's words.
    #[error("{0}")]
    Failed(String),
}

/// A line that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Which contact's.
    pub index: usize,
    /// To what.
    pub high: bool,
    /// When, by the kernel's monotonic clock.
    pub at: Instant,
}

/// Opens the lines of a chip; tests have their own.
pub trait Opener {
    /// What it opens.
    type Lines: Lines;
    /// All lines, or why not.
    fn open(&mut self) -> Result<Self::Lines, Trouble>;
}

/// Lines that are open.
pub trait Lines {
    /// Which are high.
    fn levels(&mut self) -> Result<Vec<bool>, Trouble>;
    /// Waits for edges, at most so long; gives none in time.
    fn edges(&mut self, patience: Duration) -> Result<Vec<Edge>, Trouble>;
}

/// The owner of the lines of one chip.
pub struct GpioTask<O: Opener> {
    gpio: Gpio,
    opener: O,
    lines: Option<O::Lines>,
    contacts: Contacts,
    /// Why the lines are not open; what the log has said of it.
    trouble: Option<Trouble>,
    said: Option<Trouble>,
    backoff: Backoff,
    /// Nothing is opened before.
    retry_at_ms: u64,
    next_poll_ms: u64,
    clock: Clock,
    metrics: Metrics,
    outlet: Outlet,
}

impl<O: Opener> GpioTask<O> {
    /// Nothing is opened before [`GpioTask::run`].
    ///
    /// While the pipeline has no room edges wait in the kernel, which keeps their times.
    #[must_use]
    pub fn new(gpio: Gpio, opener: O, clock: Clock, metrics: Metrics, outlet: Outlet) -> Self {
        metrics.readings.with_label_values(&[gpio.name.as_str()]);
        Self {
            contacts: Contacts::new(&gpio),
            next_poll_ms: clock.now().mono_ms,
            gpio,
            opener,
            lines: None,
            trouble: None,
            said: None,
            backoff: Backoff::default(),
            retry_at_ms: 0,
            clock,
            metrics,
            outlet,
        }
    }

    /// Watches until shutdown. Runs on a thread of its own, for waiting for edges blocks it.
    pub async fn run(mut self) -> TaskResult {
        let outlet = self.outlet.clone();
        outlet.work(self.watch()).await
    }

    /// Returns only when nobody takes readings any more, or at shutdown.
    async fn watch(&mut self) {
        while !self.outlet.shutdown.is_cancelled() {
            self.outlet.beat.mark();
            let now_ms = self.clock.now().mono_ms;
            let readings = if now_ms >= self.next_poll_ms {
                self.next_poll_ms = now_ms.saturating_add(millis(self.gpio.poll));
                self.poll().await
            } else {
                self.wait(self.pause(now_ms)).await;
                self.contacts.settle(self.instant());
                self.contacts.changed(self.clock.now())
            };
            if !readings.is_empty() && self.outlet.send(Input::Readings(readings)).await == Handed::Stopping {
                return;
            }
        }
    }

    /// How long nothing is to be done, unless an edge comes.
    fn pause(&self, now_ms: u64) -> Duration {
        let poll = Duration::from_millis(self.next_poll_ms.saturating_sub(now_ms));
        let due = self.contacts.due().map(|due| due.ticks().saturating_sub(self.clock.kernel_us()));
        due.map_or(poll, |due| poll.min(Duration::from_micros(due)))
    }

    async fn wait(&mut self, pause: Duration) {
        let Some(lines) = &mut self.lines else { return sleep(pause.min(BEAT_EVERY / 2)).await };
        match lines.edges(pause.min(GLANCE)) {
            Ok(edges) => edges.iter().for_each(|edge| self.contacts.edge(edge.index, edge.high, edge.at)),
            Err(trouble) => self.lose(trouble),
        }
    }

    async fn poll(&mut self) -> Vec<Reading> {
        if self.lines.is_none() && self.clock.now().mono_ms >= self.retry_at_ms {
            match self.opener.open() {
                Ok(lines) => self.lines = Some(lines),
                Err(trouble) => self.lose(trouble),
            }
            if let Some(high) = self.levels() {
                self.contacts.opened(&high, self.instant());
            }
        } else if let Some(high) = self.levels() {
            // Edges that are still to be read came first.
            self.wait(Duration::ZERO).await;
            self.contacts.levels(&high, self.instant());
        }
        let now = self.clock.now();
        let Report { readings, change } = match (&self.lines, &self.trouble) {
            (Some(_), _) => {
                self.backoff = Backoff::default();
                self.contacts.present(now)
            }
            (None, trouble) => {
                let trouble = trouble.clone().unwrap_or(Trouble::NotThere);
                let errors = &self.metrics.read_errors;
                let device = [self.gpio.name.as_str(), Reason::LinkDown.as_str()];
                errors.with_label_values(&device).inc_by(count(self.contacts.points()));
                self.contacts.absent(trouble, now)
            }
        };
        self.metrics.readings.with_label_values(&[self.gpio.name.as_str()]).inc_by(count(self.contacts.points()));
        self.log(change.as_ref());
        readings
    }

    fn levels(&mut self) -> Option<Vec<bool>> {
        match self.lines.as_mut()?.levels() {
            Ok(high) => Some(high),
            Err(trouble) => {
                self.lose(trouble);
                None
            }
        }
    }

    /// The lines are closed, and opened again after a pause.
    fn lose(&mut self, trouble: Trouble) {
        self.lines = None;
        self.trouble = Some(trouble);
        let pause = self.backoff.after(Duration::ZERO, Pace::Near, Jitter::random());
        self.retry_at_ms = self.clock.now().mono_ms.saturating_add(millis(pause));
    }

    fn instant(&self) -> Instant {
        Instant::from_ticks(self.clock.kernel_us())
    }

    fn log(&mut self, change: Option<&Change<Trouble>>) {
        let (device, chip) = (&self.gpio.name, self.gpio.chip.display());
        if let Some(Change::Back { missed, .. }) = change {
            tracing::info!(%device, %chip, missed_polls = missed, "the contacts can be read again");
        }
        match &self.trouble {
            Some(reason) if self.lines.is_none() && self.said != self.trouble => {
                tracing::warn!(%device, %chip, %reason, "the contacts cannot be read");
                self.said.clone_from(&self.trouble);
            }
            Some(_) if self.lines.is_some() => self.said = None,
            Some(_) | None => {}
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn count(points: usize) -> u64 {
    u64::try_from(points).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
