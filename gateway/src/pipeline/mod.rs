//! The one task that owns the alarm engine: select (async), then apply (plain fn), then commit.
//!
//! One step takes everything that waits, so that a slow card makes larger steps, not a longer queue. Nobody hears of a
//! step before it is on stable storage: then publishers are acknowledged, commands answered, and the uplink sees it.

mod answers;
pub mod core;

use std::{collections::VecDeque, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use self::core::{Core, Renumbered, Search, Step};
use crate::{
    alarm::{Kind, State},
    clock::{BootId, Clock, Now},
    command::{Answer, Request},
    metrics::Metrics,
    reading::Reading,
    record::{Batch, Body, Epoch, Lane, LastKnown, LossReason, Refused, StreamEvent},
    status::StatusBoard,
    store::{Commit, Medium, Store, StoreError},
    supervise::{BEAT_EVERY, Beat, TaskResult},
    telemetry::POINTS_MAX,
};

/// How many inputs may wait for the pipeline. Full means the store is slower than the field: sources then wait, which
/// slows polling and stops MQTT acknowledgements, and nothing is dropped.
pub const INPUT_QUEUE: usize = 256;

/// What reaches the pipeline.
#[derive(Debug)]
pub enum Input {
    /// Readings of a poll.
    Readings(Vec<Reading>),
    /// Readings of a message whose publisher waits for its acknowledgement.
    Message {
        /// At least one.
        readings: Vec<Reading>,
        /// Sent when what they caused is on stable storage; dropped unsent if it never will be.
        durable: oneshot::Sender<()>,
    },
    /// A request; answered once, after what it changed is on stable storage.
    Command {
        /// What is asked.
        request: Request,
        /// The uplink session it came by.
        session: u64,
        /// Where the answer goes.
        answer: oneshot::Sender<Answer>,
    },
    /// The broker refuses a record for good: it is declared lost.
    Refused {
        /// Its lane.
        lane: Lane,
        /// Its epoch.
        epoch: Epoch,
        /// Its number.
        sequence: u64,
        /// What it was.
        refused: Refused,
        /// Sent when the declaration is on stable storage; only then may the record leave the outbox.
        durable: oneshot::Sender<()>,
    },
    /// Records of one lane and epoch are given up: they are declared lost.
    Lost {
        /// Their lane.
        lane: Lane,
        /// Their epoch.
        epoch: Epoch,
        /// First and last number of each run, both included, in any number.
        ranges: Vec<(u64, u64)>,
        /// Why.
        reason: LossReason,
        /// Whether all of them existed and are gone.
        certain: Certainty,
        /// The epoch that was the present one when they were looked at. With another they may have got other numbers:
        /// nothing is declared then, and `durable` dropped unsent.
        present: Epoch,
        /// Sent when the declaration is on stable storage; only then may they leave the outbox.
        durable: oneshot::Sender<()>,
    },
    /// Summaries that take the place of older telemetry.
    Summaries {
        /// At least one.
        summaries: Vec<Summarised>,
        /// As with [`Input::Lost`].
        present: Epoch,
        /// Sent when they are on stable storage; only then may what they replace be declared.
        durable: oneshot::Sender<()>,
    },
    /// The command center's retained status shows higher numbers of our epoch: the store was rolled back.
    RolledBack {
        /// What it knows.
        known: LastKnown,
        /// The epoch to begin.
        epoch: Epoch,
        /// Sent when the new epoch is on stable storage; records of the old one are numbered anew after that.
        durable: oneshot::Sender<()>,
    },
    /// The command center's retained topics agree with the numbers of our epoch.
    Proven {
        /// Sent when that is on stable storage; only then may anything be published under them.
        durable: oneshot::Sender<()>,
    },
}

/// Whether what is declared lost is known or only bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certainty {
    /// Every number of it existed and is gone.
    Known,
    /// The loss lies within it.
    Bounded,
}

/// A summary of telemetry, dated like what it replaces.
#[derive(Debug, Clone, PartialEq)]
pub struct Summarised {
    /// The boot of all times in it.
    pub boot: BootId,
    /// When the last of what it replaces was recorded.
    pub recorded: Now,
    /// What it says.
    pub batch: Batch,
}

/// The task that owns the engine.
#[derive(Debug)]
pub struct Pipeline {
    /// What it decides.
    pub core: Core,
    /// What the restart itself changed; committed first.
    pub first: Step,
    /// Where everything comes from.
    pub inputs: mpsc::Receiver<Input>,
    /// Where it is kept.
    pub store: Store,
    /// What people see.
    pub board: StatusBoard,
    /// Clocks.
    pub clock: Clock,
    /// Numbers.
    pub metrics: Metrics,
    /// Its pulse.
    pub beat: Beat,
    /// When the alarms of the last ten minutes were raised.
    pub raised: Raised,
}

/// Records numbered anew at once: so long may what comes meanwhile have to wait.
const RENUMBERED_AT_ONCE: usize = 256;

/// When alarms were raised, in monotonic milliseconds, oldest first: at most [`RAISED_MAX`] within [`RAISED_WINDOW_MS`].
#[derive(Debug, Default)]
pub struct Raised(VecDeque<u64>);

/// ISA-18.2 counts alarms in 10 minutes; more than 10 of them are a flood.
const RAISED_WINDOW_MS: u64 = 10 * 60 * 1_000;
/// A thousand floods: beyond that the exact number says nothing more.
const RAISED_MAX: usize = 10_000;

impl Raised {
    /// Notes one; [`Raised::count`] lets go of those that are too old.
    fn note(&mut self, now_ms: u64) {
        if self.0.len() < RAISED_MAX {
            self.0.push_back(now_ms);
        }
    }

    fn count(&mut self, now_ms: u64) -> usize {
        let old = self.0.partition_point(|ms| ms + RAISED_WINDOW_MS <= now_ms);
        self.0.drain(..old);
        self.0.len()
    }
}

/// Publishers that wait: for a telemetry group, or, where the store lies in memory, for the command center. No publisher
/// has more under way than its receive maximum.
type Waiting = FuturesUnordered<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>;

impl Pipeline {
    /// Runs until every source and the uplink have let go of the queue, and takes what they left in it.
    pub async fn run(mut self) -> TaskResult {
        let mut waiting = Waiting::new();
        let first = std::mem::take(&mut self.first);
        self.carry_out(first, &mut waiting).await?;
        let mut search = None;
        while let Some(mut inputs) = self.select(search, &mut waiting).await {
            if self.store.medium() == Medium::Memory {
                inputs.iter_mut().for_each(|input| self.acknowledge_when_delivered(input, &waiting));
            }
            for input in &inputs {
                if let Input::Readings(readings) | Input::Message { readings, .. } = input {
                    self.board.heard(readings, "mqtt");
                }
            }
            let step = self.core.apply(inputs, self.clock.now());
            self.carry_out(step, &mut waiting).await?;
            let (beat, store) = (self.beat.clone(), self.store.clone());
            search = beat.excused(|| store.waits_for_room(), self.renumber(search)).await?;
            self.beat.mark();
        }
        let step = self.core.last_step(self.clock.now());
        self.carry_out(step, &mut waiting).await?;
        // What lies in memory is not acknowledged at the end: the uplink has gone, and delivers nothing more.
        while self.store.medium() == Medium::Disk && waiting.next().await.is_some() {}
        Ok(())
    }

    /// Memory is no stable storage: the publisher of a message hears nothing before the command center has what it caused.
    fn acknowledge_when_delivered(&self, input: &mut Input, waiting: &Waiting) {
        let Input::Message { durable, .. } = input else { return };
        let (stored, is_stored) = oneshot::channel();
        let publisher = std::mem::replace(durable, stored);
        let store = self.store.clone();
        waiting.push(Box::pin(async move {
            if is_stored.await.is_ok() {
                store.safe().await;
                let _gone = publisher.send(());
            }
        }));
    }

    /// Waits for inputs, a deadline or the next heartbeat; `None` when everybody has let go of the queue.
    async fn select(&mut self, search: Option<Search>, waiting: &mut Waiting) -> Option<Vec<Input>> {
        let idle = search.is_none() && !self.core.must_renumber();
        let due_ms = if idle { self.core.due_ms().saturating_sub(self.clock.now().mono_ms) } else { 0 };
        let pause = Duration::from_millis(due_ms).min(BEAT_EVERY);
        let mut inputs = Vec::new();
        tokio::select! {
            received = self.inputs.recv_many(&mut inputs, INPUT_QUEUE) => (received > 0).then_some(inputs),
            Some(()) = waiting.next() => Some(inputs),
            () = tokio::time::sleep(pause) => Some(inputs),
        }
    }

    /// Numbers one page of records anew, if any have to be: the rest waits for what the field has to say meanwhile.
    async fn renumber(&mut self, search: Option<Search>) -> Result<Option<Search>, StoreError> {
        if !self.core.must_renumber() {
            return Ok(None);
        }
        let search = search.unwrap_or(Search::START);
        let page = self.store.read(search.lane, search.from, RENUMBERED_AT_ONCE).await?;
        let from = page.last().map_or(search.from, |last| last.position + 1);
        let (Renumbered { commit, telemetry, replaced }, more) = self.core.renumber(page);
        if !replaced.is_empty() {
            tracing::info!(lane = search.lane.as_str(), records = replaced.len(), "numbered anew in the present epoch");
            match search.lane {
                Lane::Alarm => self.store.commit(Commit { replaced, ..commit }).await?,
                Lane::Telemetry => self.store.replace_telemetry(telemetry, replaced).await?,
            }
            self.show_alarms();
        }
        let next = if more { Some(Search { from, ..search }) } else { search.next_lane() };
        if next.is_none() {
            self.declare_in_doubt().await?;
            self.store.commit(self.core.renumbered()).await?;
        }
        Ok(next)
    }

    /// Declares what was damaged under numbers in doubt: afterwards nobody could tell that they were. A crash before it is
    /// settled means that it is declared twice.
    async fn declare_in_doubt(&mut self) -> Result<(), StoreError> {
        for lane in Lane::ALL {
            let mut lost = self.store.lost(lane).await?;
            lost.retain(|lost| self.core.is_in_doubt(&lost.epoch));
            for lost in lost {
                let (step, positions) = self.core.lost_in_doubt(lost, self.clock.now());
                self.count(&step);
                self.store.commit(step.commit).await?;
                self.store.settle(lane, positions).await?;
            }
        }
        Ok(())
    }

    /// Makes a step durable, then tells those who wait for it.
    async fn carry_out(&mut self, step: Step, waiting: &mut Waiting) -> Result<(), StoreError> {
        self.count(&step);
        let alarms_changed = !step.commit.alarms.is_empty();
        if !step.commit.is_empty() {
            self.beat.excused(|| self.store.waits_for_room(), self.store.commit(step.commit)).await?;
        }
        if alarms_changed {
            self.show_alarms();
        }
        // Whoever has gone meanwhile (a connection that ended) is told nothing.
        for publisher in step.after_commit {
            let _gone = publisher.send(());
        }
        for (asker, answer) in step.answers {
            let _gone = asker.send(answer);
        }
        if !step.telemetry.is_empty() {
            let queued = self.store.commit_telemetry(step.telemetry);
            let durable = self.beat.excused(|| self.store.waits_for_room(), queued).await?;
            if !step.after_telemetry.is_empty() {
                waiting.push(Box::pin(async move {
                    if durable.await.is_ok() {
                        for publisher in step.after_telemetry {
                            let _gone = publisher.send(());
                        }
                    }
                }));
            }
        }
        Ok(())
    }

    fn count(&mut self, step: &Step) {
        let now_ms = self.clock.now().mono_ms;
        for record in &step.commit.records {
            match &record.body {
                Body::Alarm(t) => {
                    let labels = [t.severity.as_str(), t.kind.as_str()];
                    self.metrics.alarm_transitions.with_label_values(&labels).inc();
                    if t.kind == Kind::Raised {
                        self.raised.note(now_ms);
                    }
                }
                Body::Stream(StreamEvent::Lost { lane, reason, count, .. }) => {
                    self.metrics.outbox_lost.with_label_values(&[lane.as_str(), reason.as_str()]).inc_by(*count);
                }
                Body::Stream(StreamEvent::Started { .. }) | Body::Command(_) | Body::Telemetry(_) => {}
            }
        }
        let raised = i64::try_from(self.raised.count(now_ms)).expect("at most RAISED_MAX");
        self.metrics.alarms_raised_10m.set(raised);
        if step.points_refused > 0 {
            if self.metrics.points_refused.get() == 0 {
                tracing::error!(limit = POINTS_MAX, "too many points: a further one is not kept; who invents names?");
            }
            self.metrics.points_refused.inc_by(step.points_refused);
        }
        for (_, answer) in &step.answers {
            self.metrics.commands.with_label_values(&[&*answer.command, answer.result.as_str()]).inc();
        }
    }

    /// Puts every alarm where people and Prometheus see it; also before the first step, for those that stood.
    pub fn show_alarms(&self) {
        self.board.set_alarms(self.core.alarms().filter(|s| s.configured).map(|s| &s.last));
        for state in State::ALL {
            let count = self.core.alarms().filter(|s| s.state() == state).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.metrics.alarms.with_label_values(&[state.as_str()]).set(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_count_for_ten_minutes() {
        let mut raised = Raised::default();
        for ms in [0, 1_000, 599_999] {
            raised.note(ms);
        }
        assert_eq!([599_999, 600_000, 601_000, 1_199_999].map(|ms| raised.count(ms)), [3, 2, 1, 0]);
    }
}
