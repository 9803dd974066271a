//! Keeps the outbox within its quota: what gives way, when, and that it is declared first (DESIGN.md §5.3).
//!
//! What the store has found damaged is declared at once. Every few seconds the keeper measures what the store takes on the
//! disk and lets `quota` decide. What gives way is read, declared through the pipeline, and settled when the declaration is
//! on stable storage: a power cut in between means that it is declared twice, never that it is missing and undeclared. A
//! record that is on the wire meanwhile may arrive although it was declared; the receiver then has more than was promised.
//!
//! Reading order: `quota` (what gives way), `thin` (telemetry to summaries), `forecast` (when it will be full),
//! `warning` (the gateway's own alarms), `disk` (what is measured), `giving_up` (read, declare, settle).

mod disk;
pub mod forecast;
mod giving_up;
pub mod quota;
pub mod thin;
mod warning;

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use self::{
    forecast::Forecast,
    giving_up::Halt,
    quota::{Act, Measured, Quota, Shares},
    warning::{Seen, Warning, Warnings},
};
use crate::{
    clock::{BootId, Clock, Now},
    config::Outbox,
    metrics::Metrics,
    pipeline::Input,
    record::{Lane, LossReason},
    status::{OutboxState, StatusBoard},
    store::{GENERATION_SIZE, Generation, Store},
    supervise::{Beat, Shutdown, TaskResult},
};

/// Between two measurements: what arrives meanwhile is far below what is kept for it (a sixteenth of the quota).
const MEASURE_EVERY: Duration = Duration::from_secs(2);

/// Smallest generation: below it the folders and files of the database itself would outweigh the records.
const GENERATION_SIZE_MIN: u64 = 1 << 20;

/// How large a generation may grow in an outbox of this size: a sixteenth, so that what gives way at once is little.
#[must_use]
pub const fn generation_size(max_size: u64) -> u64 {
    let sixteenth = max_size / 16;
    if sixteenth < GENERATION_SIZE_MIN {
        GENERATION_SIZE_MIN
    } else if sixteenth > GENERATION_SIZE {
        GENERATION_SIZE
    } else {
        sixteenth
    }
}

/// The task that keeps the outbox within its quota.
#[derive(Debug)]
pub struct KeeperTask {
    /// Where it lies and how large it may be.
    pub outbox: Outbox,
    /// What is kept.
    pub store: Store,
    /// Who numbers and declares.
    pub pipeline: mpsc::Sender<Input>,
    /// What people see.
    pub board: StatusBoard,
    /// The clock.
    pub clock: Clock,
    /// Numbers.
    pub metrics: Metrics,
    /// Its pulse.
    pub beat: Beat,
    /// When to stop.
    pub shutdown: Shutdown,
}

/// The task at work.
#[derive(Debug)]
struct Keeper {
    task: KeeperTask,
    quota: Quota,
    forecast: Forecast,
    warnings: Warnings,
    /// A telemetry generation with a waiting record that was not too old when last seen.
    young: Option<(u64, BootId, Now)>,
    /// Generations given up since eviction began.
    evicted: u64,
    unmeasurable: bool,
}

impl KeeperTask {
    /// Runs until shutdown. Fails only if the store does.
    pub async fn run(self) -> TaskResult {
        let (beat, store) = (self.beat.clone(), self.store.clone());
        let mut space = store.space();
        let mut keeper = Keeper::new(self);
        loop {
            match beat.excused(|| store.waits_for_room(), keeper.turn()).await {
                Ok(()) | Err(Halt::Outdated) => {}
                Err(Halt::Stopped) => return Ok(()),
                Err(Halt::Store(error)) => return Err(error.into()),
            }
            tokio::select! {
                () = keeper.task.shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(MEASURE_EVERY) => {}
                Ok(()) = space.changed() => {}
            }
        }
    }
}

impl Keeper {
    fn new(task: KeeperTask) -> Self {
        Self {
            task,
            quota: Quota::default(),
            forecast: Forecast::default(),
            warnings: Warnings::default(),
            young: None,
            evicted: 0,
            unmeasurable: false,
        }
    }

    /// Measures and acts until nothing is to be done.
    async fn turn(&mut self) -> Result<(), Halt> {
        loop {
            self.task.beat.mark();
            self.task.declare_damage().await?;
            let Some(measured) = self.measure() else { return Ok(()) };
            let shares = Shares::of(self.task.outbox.max_size, &measured);
            let alarm = self.task.store.generations(Lane::Alarm).await?;
            let telemetry = self.task.store.generations(Lane::Telemetry).await?;
            let aged = self.aged(&telemetry).await?;
            let act = self.quota.next(&measured, &shares, &alarm, &telemetry, aged);
            self.tell(&measured, &shares).await?;
            match act {
                Act::Nothing => return Ok(()),
                Act::RotateTelemetry => self.task.store.rotate(Lane::Telemetry).await?,
                Act::RotateAlarms => self.task.store.rotate(Lane::Alarm).await?,
                Act::CompactAlarms(generation) => {
                    self.task.compact_alarms(&generation).await?;
                    self.quota.alarms_compacted(generation.number);
                }
                Act::Telemetry(generation, reason) => {
                    // Summaries are less than half of what they replace, but must be written before it goes.
                    let room = measured.free >= generation.disk_bytes;
                    let reason = if room && reason == LossReason::Quota && self.task.thin(&generation).await? {
                        LossReason::Thinned
                    } else {
                        self.task.give_up_telemetry(&generation, reason).await?;
                        reason
                    };
                    self.quota.telemetry_taken(generation.number);
                    self.note(Lane::Telemetry, reason);
                }
                Act::Alarms(generation, severity) => {
                    let given_up = self.task.give_up_alarms(&generation, severity).await?;
                    self.quota.alarms_taken(generation.number, given_up.lowest_left);
                    if given_up.any {
                        self.note(Lane::Alarm, LossReason::Quota);
                    }
                }
            }
        }
    }

    fn measure(&mut self) -> Option<Measured> {
        match disk::measure(&self.task.outbox.path) {
            Ok(measured) => {
                self.unmeasurable = false;
                self.forecast.note(self.task.clock.now().mono_ms, &measured);
                Some(measured)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.unmeasurable, true) {
                    let path = self.task.outbox.path.display();
                    warn!(%path, %error, "cannot measure the outbox: nothing is given up until it can be read");
                }
                None
            }
        }
    }

    /// The oldest telemetry generation, if even the youngest record that waits in it is too old.
    async fn aged(&mut self, telemetry: &[Generation]) -> Result<Option<u64>, Halt> {
        let now = self.task.clock.now();
        let oldest = self.task.store.head(Lane::Telemetry).borrow().oldest.clone();
        let Some(generation) = telemetry.iter().find(|generation| generation.waiting > 0) else { return Ok(None) };
        let young = self.young.take().filter(|(number, ..)| *number == generation.number);
        let young = young.filter(|(_, boot, at)| !self.task.is_too_old(boot, *at, now));
        if young.is_some() || oldest.is_none_or(|(boot, at)| !self.task.is_too_old(&boot, at, now)) {
            self.young = young;
            return Ok(None);
        }
        self.young = self.task.find_young(generation, now).await?.map(|(boot, at)| (generation.number, boot, at));
        Ok(self.young.is_none().then_some(generation.number))
    }

    /// Shows people and Prometheus how full it is, and raises or clears the alarms.
    async fn tell(&mut self, measured: &Measured, shares: &Shares) -> Result<(), Halt> {
        let full_in = self.forecast.full_in(measured, shares);
        let filled_percent = shares.filled_percent(measured);
        let space = *self.task.store.space().borrow();
        let state = OutboxState {
            disk_bytes: measured.used(),
            quota_bytes: shares.quota,
            filled_percent,
            full_in_s: full_in.map(|full| full.as_secs()),
            evicting: self.quota.evicting(),
            space,
            unusable: None,
        };
        let metrics = &self.task.metrics;
        metrics.outbox_disk_bytes.set(state.disk_bytes.cast_signed());
        metrics.outbox_quota_bytes.set(state.quota_bytes.cast_signed());
        metrics.outbox_full_in_seconds.set(full_in.map_or(f64::INFINITY, |full| full.as_secs_f64()));
        self.task.board.set_outbox(state);
        if self.evicted > 0 && !self.quota.evicting() {
            info!(generations = std::mem::take(&mut self.evicted), "the outbox has room again");
        }
        let medium = self.task.store.medium();
        let seen = Seen { evicting: self.quota.evicting(), filled_percent, full_in, space, medium };
        for (warning, stands) in self.warnings.judge(&seen) {
            self.task.raise(warning, stands).await?;
        }
        Ok(())
    }

    /// Something was given up.
    fn note(&mut self, lane: Lane, reason: LossReason) {
        self.forecast.forget();
        self.task.metrics.outbox_evictions.with_label_values(&[lane.as_str(), reason.as_str()]).inc();
        if reason != LossReason::Age {
            if self.evicted == 0 {
                warn!(lane = lane.as_str(), "the outbox is full: what matters least is given up, and declared");
            }
            self.evicted += 1;
        }
    }
}

impl KeeperTask {
    fn is_too_old(&self, boot: &BootId, recorded: Now, now: Now) -> bool {
        let boots = self.store.boots();
        let boots = boots.borrow();
        quota::is_older(self.outbox.telemetry_max_age, (boot, recorded), (self.clock.boot(), now), &boots)
    }

    async fn raise(&self, warning: Warning, stands: bool) -> Result<(), Halt> {
        let reading = warning.reading(stands, self.clock.now());
        self.pipeline.send(Input::Readings(vec![reading])).await.map_err(|_| Halt::Stopped)
    }
}

#[cfg(test)]
mod tests;
