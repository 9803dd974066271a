//! Giving records up, safe at every moment: read, declare, and only when that is on stable storage settle.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{
    KeeperTask, quota,
    thin::{Survey, Thinner, is_summary},
};
use crate::{
    alarm::Severity,
    clock::{BootId, Now},
    pipeline::{Certainty, Input, Summarised},
    record::{Epoch, Lane, LossReason},
    store::{Generation, Lost, StoreError, Stored, Unproven},
};

/// Records read at once: at most a MiB.
const PAGE: usize = 256;
/// Runs declared in one step of the pipeline: ten records of a declaration, so that alarms do not wait behind them.
const RUNS_AT_ONCE: usize = 800;
/// Summaries handed to the pipeline at once, for the same reason: at most 256 KiB.
const SUMMARIES_AT_ONCE: usize = 64;

/// Why it does not go on.
#[derive(Debug)]
pub(super) enum Halt {
    /// The daemon stops.
    Stopped,
    /// The store has failed.
    Store(StoreError),
    /// What was read has other numbers by now, or is about to get them: it is looked at again later.
    Outdated,
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Records of one lane to be declared for one reason.
#[derive(Debug)]
struct Losses {
    lane: Lane,
    reason: LossReason,
    /// The present epoch when they were looked at.
    present: Epoch,
    numbers: BTreeMap<Epoch, Vec<(u64, u64)>>,
    positions: Vec<(u64, u64)>,
}

impl Losses {
    const fn new(lane: Lane, reason: LossReason, present: Epoch) -> Self {
        Self { lane, reason, present, numbers: BTreeMap::new(), positions: Vec::new() }
    }

    /// Adds a record; they come in order.
    fn add(&mut self, stored: &Stored) {
        lengthen(self.numbers.entry(stored.record.epoch.clone()).or_default(), stored.record.sequence);
        lengthen(&mut self.positions, stored.position);
    }
}

fn lengthen(runs: &mut Vec<(u64, u64)>, number: u64) {
    match runs.last_mut() {
        Some((_, last)) if *last + 1 == number => *last = number,
        Some(_) | None => runs.push((number, number)),
    }
}

/// Of what something is declared.
struct Of<'a> {
    lane: Lane,
    reason: LossReason,
    certain: Certainty,
    epoch: &'a Epoch,
    present: &'a Epoch,
}

/// What became of an alarm generation.
pub(super) struct GivenUp {
    /// Whether there was anything of that severity.
    pub(super) any: bool,
    /// The lowest severity left in it.
    pub(super) lowest_left: Option<Severity>,
}

/// The records that wait in a generation, page by page; without those that are about to be numbered anew, for a declaration
/// would name numbers that another life of the store has used.
struct Pages {
    lane: Lane,
    from: u64,
    end: u64,
}

impl Pages {
    const fn of(lane: Lane, generation: &Generation) -> Self {
        Self { lane, from: generation.first, end: generation.end }
    }

    /// The next page; empty after the last.
    async fn next(&mut self, task: &KeeperTask) -> Result<Vec<Stored>, Halt> {
        loop {
            if task.shutdown.is_cancelled() {
                return Err(Halt::Stopped);
            }
            task.beat.mark();
            if self.from >= self.end {
                return Ok(Vec::new());
            }
            let mut page = task.store.read(self.lane, self.from, PAGE).await?;
            page.retain(|stored| stored.position < self.end);
            self.from = page.last().map_or(self.end, |last| last.position + 1);
            let doubted = task.doubted();
            page.retain(|stored| !doubted.iter().any(|of| of.covers(&stored.record)));
            if !page.is_empty() {
                return Ok(page);
            }
        }
    }
}

impl KeeperTask {
    /// Gives up a sealed telemetry generation whole.
    pub(super) async fn give_up_telemetry(&self, generation: &Generation, reason: LossReason) -> Result<(), Halt> {
        let mut losses = Losses::new(Lane::Telemetry, reason, self.present());
        let mut pages = Pages::of(Lane::Telemetry, generation);
        loop {
            let page = pages.next(self).await?;
            if page.is_empty() {
                return self.declare(losses).await;
            }
            page.iter().for_each(|stored| losses.add(stored));
        }
    }

    /// Replaces the records of a sealed telemetry generation by summaries, and gives up the summaries in it. False, and
    /// nothing is done, where it would hardly shrink.
    pub(super) async fn thin(&self, generation: &Generation) -> Result<bool, Halt> {
        let (boots, present) = (self.store.boots(), self.present());
        let mut survey = Survey::default();
        let mut pages = Pages::of(Lane::Telemetry, generation);
        loop {
            let page = pages.next(self).await?;
            if page.is_empty() {
                break;
            }
            page.iter().for_each(|stored| survey.take(stored, &boots.borrow()));
        }
        if !survey.pays() {
            return Ok(false);
        }
        let (mut thinner, mut ready) = (Thinner::default(), Vec::new());
        let mut thinned = Losses::new(Lane::Telemetry, LossReason::Thinned, present.clone());
        let mut evicted = Losses::new(Lane::Telemetry, LossReason::Quota, present.clone());
        let mut pages = Pages::of(Lane::Telemetry, generation);
        loop {
            let page = pages.next(self).await?;
            if page.is_empty() {
                break;
            }
            for stored in &page {
                if is_summary(&stored.record) {
                    evicted.add(stored);
                } else {
                    thinned.add(stored);
                    ready.extend(thinner.take(&stored.record, &boots.borrow()));
                }
            }
            while ready.len() >= SUMMARIES_AT_ONCE {
                self.record(ready.drain(..SUMMARIES_AT_ONCE).collect(), &present).await?;
            }
        }
        ready.extend(thinner.finish());
        while !ready.is_empty() {
            self.record(ready.drain(..ready.len().min(SUMMARIES_AT_ONCE)).collect(), &present).await?;
        }
        self.declare(thinned).await?;
        self.declare(evicted).await?;
        Ok(true)
    }

    /// Compacts a sealed alarm generation where that at least halves it: what was compacted before is not written again.
    pub(super) async fn compact_alarms(&self, generation: &Generation) -> Result<(), Halt> {
        let (mut waiting, mut pages) = (0, Pages::of(Lane::Alarm, generation));
        loop {
            let page = pages.next(self).await?;
            if page.is_empty() {
                break;
            }
            waiting += page.iter().map(|stored| stored.size as u64).sum::<u64>();
        }
        if waiting <= generation.disk_bytes / 2 {
            self.store.compact(Lane::Alarm, generation.number).await?;
        }
        Ok(())
    }

    /// Gives up what has at most this severity in a sealed alarm generation, and compacts it.
    pub(super) async fn give_up_alarms(&self, generation: &Generation, severity: Severity) -> Result<GivenUp, Halt> {
        let mut losses = Losses::new(Lane::Alarm, LossReason::Quota, self.present());
        let mut lowest_left = None;
        let mut pages = Pages::of(Lane::Alarm, generation);
        loop {
            let page = pages.next(self).await?;
            if page.is_empty() {
                break;
            }
            for stored in &page {
                match quota::severity(&stored.record) {
                    Some(found) if found <= severity => losses.add(stored),
                    Some(found) => lowest_left = Some(lowest_left.map_or(found, |lowest: Severity| lowest.min(found))),
                    None => {}
                }
            }
        }
        let any = !losses.positions.is_empty();
        if any {
            self.declare(losses).await?;
            self.store.compact(Lane::Alarm, generation.number).await?;
        }
        Ok(GivenUp { any, lowest_left })
    }

    /// Finds a record that is not too old among those that wait in a telemetry generation, the last first: mostly it is.
    pub(super) async fn find_young(&self, generation: &Generation, now: Now) -> Result<Option<(BootId, Now)>, Halt> {
        let last = Pages { from: generation.end - 1, ..Pages::of(Lane::Telemetry, generation) };
        for mut pages in [last, Pages::of(Lane::Telemetry, generation)] {
            loop {
                let page = pages.next(self).await?;
                if page.is_empty() {
                    break;
                }
                let mut times = page.iter().map(|stored| (&stored.record.boot, stored.record.recorded));
                if let Some((boot, recorded)) = times.find(|(boot, recorded)| !self.is_too_old(boot, *recorded, now)) {
                    return Ok(Some((boot.clone(), recorded)));
                }
            }
        }
        Ok(None)
    }

    /// Declares what the store has lost by damage, then settles it. Of numbers in doubt the pipeline does.
    pub(super) async fn declare_damage(&self) -> Result<(), Halt> {
        for lane in Lane::ALL {
            if self.store.head(lane).borrow().missing == 0 {
                continue;
            }
            let (present, doubted) = (self.present(), self.doubted());
            for Lost { epoch, ranges, positions, certain, .. } in self.store.lost(lane).await? {
                if doubted.iter().any(|of| of.epoch == epoch) {
                    continue;
                }
                let certain = if certain { Certainty::Known } else { Certainty::Bounded };
                let of = Of { lane, reason: LossReason::Damaged, certain, epoch: &epoch, present: &present };
                self.say_lost(of, &ranges).await?;
                self.store.settle(lane, positions).await?;
            }
        }
        Ok(())
    }

    /// The present epoch.
    fn present(&self) -> Epoch {
        self.store.head(Lane::Alarm).borrow().status.epoch.clone()
    }

    /// What is about to be numbered anew. Numbers of the present epoch that are in doubt may yet be proven; should they not
    /// be, what was declared under them is said anew.
    fn doubted(&self) -> Vec<Unproven> {
        let present = self.present();
        self.store.unproven().borrow().iter().filter(|of| of.epoch != present).cloned().collect()
    }

    /// Declares losses, then settles them; where nothing waits any more, settling nothing lets a drained generation go.
    async fn declare(&self, losses: Losses) -> Result<(), Halt> {
        let Losses { lane, reason, present, numbers, positions } = losses;
        for (epoch, runs) in &numbers {
            self.say_lost(Of { lane, reason, certain: Certainty::Known, epoch, present: &present }, runs).await?;
        }
        Ok(self.store.settle(lane, positions).await?)
    }

    async fn say_lost(&self, of: Of<'_>, runs: &[(u64, u64)]) -> Result<(), Halt> {
        let Of { lane, reason, certain, .. } = of;
        for ranges in runs.chunks(RUNS_AT_ONCE) {
            let (epoch, present, ranges) = (of.epoch.clone(), of.present.clone(), ranges.to_vec());
            self.durably(|durable| Input::Lost { lane, epoch, ranges, reason, certain, present, durable }).await?;
        }
        Ok(())
    }

    async fn record(&self, summaries: Vec<Summarised>, present: &Epoch) -> Result<(), Halt> {
        let present = present.clone();
        self.durably(|durable| Input::Summaries { summaries, present, durable }).await
    }

    /// Hands something to the pipeline and waits until it is on stable storage.
    async fn durably(&self, input: impl FnOnce(oneshot::Sender<()>) -> Input) -> Result<(), Halt> {
        let (durable, done) = oneshot::channel();
        self.pipeline.send(input(durable)).await.map_err(|_| Halt::Stopped)?;
        self.beat.mark();
        done.await.map_err(|_| if self.pipeline.is_closed() { Halt::Stopped } else { Halt::Outdated })
    }
}
