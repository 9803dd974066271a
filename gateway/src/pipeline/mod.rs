//! The one task that owns the alarm engine: select (async), then apply (plain fn), then commit.
//!
//! One step takes everything that waits, so that a slow card makes larger steps, not a longer queue. Nobody hears of a
//! step before it is on stable storage: then publishers are acknowledged, commands answered, and the uplink sees it.

mod answers;
pub mod core;

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use self::core::{Core, Step};
use crate::{
    alarm::State,
    clock::Clock,
    command::{Answer, Request},
    metrics::Metrics,
    reading::Reading,
    record::{Body, Epoch, Lane, LastKnown, Refused},
    status::StatusBoard,
    store::{Store, StoreError},
    supervise::{BEAT_EVERY, Beat, TaskResult},
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
    /// The command center's retained status shows higher numbers of our epoch: the store was rolled back.
    RolledBack {
        /// What it knows.
        known: LastKnown,
        /// The epoch to begin.
        epoch: Epoch,
        /// Sent when the new epoch is on stable storage.
        durable: oneshot::Sender<()>,
    },
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
}

/// Publishers that wait for a telemetry group.
type Waiting = FuturesUnordered<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>;

impl Pipeline {
    /// Runs until every source and the uplink have let go of the queue, and takes what they left in it.
    pub async fn run(mut self) -> TaskResult {
        let mut waiting = Waiting::new();
        let first = std::mem::take(&mut self.first);
        self.carry_out(first, &mut waiting).await?;
        while let Some(inputs) = self.select(&mut waiting).await {
            let step = self.core.apply(inputs, self.clock.now());
            self.carry_out(step, &mut waiting).await?;
            self.beat.mark();
        }
        let step = self.core.last_step(self.clock.now());
        self.carry_out(step, &mut waiting).await?;
        while waiting.next().await.is_some() {}
        Ok(())
    }

    /// Waits for inputs, a deadline or the next heartbeat; `None` when everybody has let go of the queue.
    async fn select(&mut self, waiting: &mut Waiting) -> Option<Vec<Input>> {
        let due_ms = self.core.due_ms().saturating_sub(self.clock.now().mono_ms);
        let pause = Duration::from_millis(due_ms).min(BEAT_EVERY);
        let mut inputs = Vec::new();
        tokio::select! {
            received = self.inputs.recv_many(&mut inputs, INPUT_QUEUE) => (received > 0).then_some(inputs),
            Some(()) = waiting.next() => Some(inputs),
            () = tokio::time::sleep(pause) => Some(inputs),
        }
    }

    /// Makes a step durable, then tells those who wait for it.
    async fn carry_out(&self, step: Step, waiting: &mut Waiting) -> Result<(), StoreError> {
        self.count(&step);
        if !step.commit.is_empty() {
            self.store.commit(step.commit).await?;
        }
        // Whoever has gone meanwhile (a connection that ended) is told nothing.
        for publisher in step.after_commit {
            let _gone = publisher.send(());
        }
        for (asker, answer) in step.answers {
            let _gone = asker.send(answer);
        }
        if !step.telemetry.is_empty() {
            let durable = self.store.commit_telemetry(step.telemetry).await?;
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

    fn count(&self, step: &Step) {
        for record in &step.commit.records {
            if let Body::Alarm(t) = &record.body {
                let labels = [t.severity.as_str(), t.kind.as_str()];
                self.metrics.alarm_transitions.with_label_values(&labels).inc();
            }
        }
        if !step.commit.alarms.is_empty() {
            self.board.set_alarms(self.core.alarms().filter(|s| s.configured).map(|s| &s.last));
            for state in State::ALL {
                let count = self.core.alarms().filter(|s| s.state() == state).count();
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.metrics.alarms.with_label_values(&[state.as_str()]).set(count);
            }
        }
    }
}
