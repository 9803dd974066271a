//! Named tasks: the only place that spawns. A task that ends or panics before shutdown stops the daemon with its name;
//! systemd starts it again, and state is durable, so a restart is cheap.
//!
//! Every stage marks its progress on a [`Beat`]; the watchdog speaks to systemd only while each stage makes some.
//! Progress never depends on the network or the field being well.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// How a task ended.
pub type TaskResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Tells everyone that it is time to stop.
pub type Shutdown = CancellationToken;

/// A stage's pulse: when it last made progress.
#[derive(Debug, Clone)]
pub struct Beat {
    clock: Clock,
    last_mono_ms: Arc<AtomicU64>,
}

impl Beat {
    /// The stage is alive and has just done a step (or waited in vain for one).
    pub fn mark(&self) {
        self.last_mono_ms.store(self.clock.now().mono_ms, Ordering::Relaxed);
    }

    /// Waits for something, alive as long as waiting is excused: a restart would not make it come.
    pub async fn excused<T>(&self, is_excused: impl Fn() -> bool, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(BEAT_EVERY) => if is_excused() { self.mark() },
            }
        }
    }
}

/// How often every stage must mark its beat even when nothing happens.
pub const BEAT_EVERY: Duration = Duration::from_secs(5);

/// A stage without progress for this long is stuck: three beats, so that one long sync on a slow card is no alarm.
pub const STALLED_AFTER: Duration = Duration::from_secs(15);

/// Every stage's pulse.
#[derive(Debug, Clone)]
pub struct Pulse {
    clock: Clock,
    stages: Arc<Mutex<Stages>>,
}

/// Each with its name, in the order they were started.
type Stages = Vec<(Arc<str>, Beat)>;

impl Pulse {
    /// No stages yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, stages: Arc::default() }
    }

    /// A new stage, counted as alive from now.
    #[must_use]
    pub fn stage(&self, name: impl Into<Arc<str>>) -> Beat {
        let beat = Beat { clock: self.clock.clone(), last_mono_ms: Arc::default() };
        beat.mark();
        self.stages.lock().expect("no panic while stages are listed").push((name.into(), beat.clone()));
        beat
    }

    /// How long each stage has made no progress.
    #[must_use]
    pub fn idle(&self) -> Vec<(Arc<str>, Duration)> {
        let now_ms = self.clock.now().mono_ms;
        let stages = self.stages.lock().expect("no panic while stages are listed");
        let idle = |beat: &Beat| now_ms.saturating_sub(beat.last_mono_ms.load(Ordering::Relaxed));
        stages.iter().map(|(name, beat)| (name.clone(), Duration::from_millis(idle(beat)))).collect()
    }

    /// The stage that has been stuck longest, if any is: what the watchdog and `/healthz` judge by.
    #[must_use]
    pub fn stalled(&self) -> Option<(Arc<str>, Duration)> {
        self.idle().into_iter().filter(|(_, idle)| *idle >= STALLED_AFTER).max_by_key(|(_, idle)| *idle)
    }
}

/// The first task that ended before it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It returned an error.
    #[error("{task}: {reason}")]
    Failed {
        /// Its name.
        task: Arc<str>,
        /// What it said.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It returned although nobody asked it to.
    #[error("{task}: ended unexpectedly")]
    Ended {
        /// Its name.
        task: Arc<str>,
    },
    /// It panicked: a bug.
    #[error("{task}: panicked: {reason}")]
    Panicked {
        /// Its name.
        task: Arc<str>,
        /// The panic's message.
        reason: JoinError,
    },
    /// It did not stop within the drain's bound.
    #[error("{tasks}: did not stop within {bound:?}")]
    Stuck {
        /// Their names.
        tasks: String,
        /// The bound.
        bound: Duration,
    },
}

/// Runs named tasks and stops them all when one fails.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<(Arc<str>, Result<TaskResult, JoinError>)>,
    running: Vec<Arc<str>>,
    shutdown: Shutdown,
}

impl Supervisor {
    /// Nothing runs yet.
    #[must_use]
    pub fn new() -> Self {
        Self { tasks: JoinSet::new(), running: Vec::new(), shutdown: Shutdown::new() }
    }

    /// The signal every task must heed.
    #[must_use]
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Starts a task.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn task(&mut self, name: impl Into<Arc<str>>, work: impl Future<Output = TaskResult> + Send + 'static) {
        let name = name.into();
        self.running.push(name.clone());
        let work = tokio::spawn(work);
        self.tasks.spawn(async move { (name, work.await) });
    }

    /// Starts a thread for work that blocks.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn thread(&mut self, name: impl Into<Arc<str>>, work: impl FnOnce() -> TaskResult + Send + 'static) {
        let name = name.into();
        self.running.push(name.clone());
        let work = tokio::task::spawn_blocking(work);
        self.tasks.spawn(async move { (name, work.await) });
    }

    /// Waits until `stop` resolves or a task ends, then lets the others drain, at most `drain_max`, and no longer than until
    /// `in_vain` resolves: who waits then would wait for ever.
    ///
    /// Returns the first failure, if any.
    pub async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        drain_max: Duration,
        in_vain: impl Future<Output = ()>,
    ) -> Result<(), Failure> {
        let mut first = None;
        tokio::pin!(stop);
        tokio::select! {
            () = &mut stop => {}
            Some(ended) = self.tasks.join_next() => first = Some(self.judge(ended, false)),
        }
        self.shutdown.cancel();
        let drained = tokio::time::timeout(drain_max, async {
            while let Some(ended) = self.tasks.join_next().await {
                let verdict = self.judge(ended, true);
                if verdict.is_err() && first.as_ref().is_none_or(Result::is_ok) {
                    first = Some(verdict);
                }
            }
        });
        let is_stuck = tokio::select! {
            drained = drained => drained.is_err(),
            () = in_vain => false,
        };
        if is_stuck && first.as_ref().is_none_or(Result::is_ok) {
            first = Some(Err(Failure::Stuck { tasks: self.running.join(", "), bound: drain_max }));
        }
        first.unwrap_or(Ok(()))
    }

    fn judge(
        &mut self,
        ended: Result<(Arc<str>, Result<TaskResult, JoinError>), JoinError>,
        may_end: bool,
    ) -> Result<(), Failure> {
        let (task, result) = ended.expect("the wrapper neither panics nor is aborted");
        if let Some(i) = self.running.iter().position(|name| *name == task) {
            self.running.swap_remove(i);
        }
        match result {
            Err(reason) => Err(Failure::Panicked { task, reason }),
            Ok(Err(reason)) => Err(Failure::Failed { task, reason }),
            Ok(Ok(())) if may_end => Ok(()),
            Ok(Ok(())) => Err(Failure::Ended { task }),
        }
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

/// Does work that blocks on a thread of its own. The caller bounds how often: work that hangs keeps its thread.
#[expect(clippy::disallowed_methods, reason = "this is where it belongs")]
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime ends, and whoever asked with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// A few short-lived tasks inside one stage (connections of a listener); they end with the stage that owns them.
#[derive(Debug, Default)]
pub struct Children(JoinSet<()>);

impl Children {
    /// Starts one.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }

    /// How many run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits for the next one to end; true if it panicked. Never resolves while none runs.
    pub async fn next_ended(&mut self) -> bool {
        match self.0.join_next().await {
            Some(ended) => ended.is_err_and(|e| e.is_panic()),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn never() -> impl Future<Output = ()> {
        std::future::pending()
    }

    /// A supervisor with one task that heeds shutdown.
    fn with_a_patient_task() -> Supervisor {
        let mut supervisor = Supervisor::new();
        let shutdown = supervisor.shutdown();
        supervisor.task("patient", async move {
            shutdown.cancelled().await;
            Ok(())
        });
        supervisor
    }

    #[tokio::test]
    async fn a_stop_drains_every_task() {
        with_a_patient_task().run(async {}, LONG, never()).await.expect("it stops in peace");
    }

    #[tokio::test]
    async fn a_task_that_ends_fails_or_panics_stops_the_others_and_is_named() {
        let mut supervisor = with_a_patient_task();
        supervisor.task("ends", async { Ok(()) });
        assert_eq!(
            supervisor.run(never(), LONG, never()).await.expect_err("it ended").to_string(),
            "ends: ended unexpectedly"
        );

        let mut supervisor = with_a_patient_task();
        supervisor.thread("fails", || Err("the card is gone".into()));
        let failure = supervisor.run(never(), LONG, never()).await.expect_err("it failed");
        assert_eq!(failure.to_string(), "fails: the card is gone");

        let mut supervisor = with_a_patient_task();
        supervisor.task("panics", async { panic!("a bug") });
        let failure = supervisor.run(never(), LONG, never()).await.expect_err("it panicked");
        assert!(matches!(&failure, Failure::Panicked { task, .. } if &**task == "panics"), "{failure}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_is_named_when_the_drain_is_over() {
        let mut supervisor = with_a_patient_task();
        supervisor.task("deaf", async {
            never().await;
            Ok(())
        });
        let failure = supervisor.run(async {}, LONG, never()).await.expect_err("it is stuck");
        assert_eq!(failure.to_string(), "deaf: did not stop within 60s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_in_vain_ends_and_hides_no_failure() {
        let deaf = |supervisor: &mut Supervisor| {
            supervisor.task("deaf", async {
                never().await;
                Ok(())
            });
        };
        let mut supervisor = Supervisor::new();
        deaf(&mut supervisor);
        supervisor.run(async {}, LONG, async {}).await.expect("nobody is to blame");
        let mut supervisor = Supervisor::new();
        deaf(&mut supervisor);
        supervisor.task("ends", async { Ok(()) });
        let failure = supervisor.run(never(), LONG, async {}).await.expect_err("it ended");
        assert_eq!(failure.to_string(), "ends: ended unexpectedly");
    }

    #[test]
    fn a_stage_without_progress_is_seen() {
        let now = |mono_ms| crate::clock::Now { mono_ms, wall_ms: 0, trusted: false };
        let clock = Clock::manual("boot", now(0));
        let pulse = Pulse::new(clock.clone());
        let (moving, still) = (pulse.stage("moving"), pulse.stage("still"));
        clock.set(now(u64::try_from(STALLED_AFTER.as_millis()).expect("small") + 1));
        moving.mark();
        assert_eq!(pulse.stalled().map(|(stage, _)| stage).as_deref(), Some("still"));
        still.mark();
        assert_eq!(pulse.stalled(), None);
    }
}
