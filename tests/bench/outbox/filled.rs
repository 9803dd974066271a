//! The store as pipeline and uplink use it, without them: steps are committed, waiting records read and confirmed.

use std::{
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use gardu::{
    alarm::{AlarmId, AlarmState, Kind, Severity, State, Texts, Transition},
    clock::{BootId, Clock, Now},
    machine::Machine,
    metrics::Metrics,
    reading::{PointId, Quality, Segment, Value},
    record::{Batch, Body, CommandResult, Epoch, Lane, Record, Sample},
    store::{self, Commit, Next, Options, Started, Store},
    supervise::TaskResult,
};
use tokio::runtime::{Builder, Runtime};

/// What an event takes in the store, in bytes.
pub(super) const EVENT_BYTES: usize = 400;
/// Alarms whose events come in turn, where they are real ones.
const ALARMS: u64 = 10;

/// An open store with what stands around it.
pub(super) struct Outbox {
    runtime: Runtime,
    store: Store,
    committers: Vec<JoinHandle<TaskResult>>,
    epoch: Epoch,
    next: Next,
    boot: BootId,
    now: Now,
    /// Makes an event as large as it is to be.
    padding: usize,
    /// Set where the store began a new epoch at this open.
    pub(super) started: Option<Started>,
}

impl Outbox {
    /// Opens or makes the store, as this machine's daemon does.
    pub(super) fn open(path: &Path) -> Self {
        let clock = Clock::system();
        let machine = Machine::this();
        let generation_size = store::GENERATION_SIZE;
        let options = Options { path: path.into(), machine, boot: clock.boot().clone(), generation_size, memory: None };
        let (store, recovered, committers) = store::open(&options, &Metrics::new()).expect("the store opens");
        // Two workers, as the daemon has.
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let mut outbox = Self {
            runtime,
            store,
            committers: committers.into_iter().map(|(_, work)| std::thread::spawn(work)).collect(),
            epoch: recovered.epoch,
            next: recovered.next,
            boot: clock.boot().clone(),
            now: clock.now(),
            padding: 0,
            started: recovered.started,
        };
        outbox.padding = EVENT_BYTES - outbox.bare_event_bytes();
        outbox
    }

    /// What an event without padding takes: one is stored, looked at and confirmed.
    fn bare_event_bytes(&mut self) -> usize {
        let position = self.store.head(Lane::Alarm).borrow().next_position;
        let step = self.steps(1, 1);
        self.commit(step);
        self.runtime.block_on(async {
            let found = self.store.read(Lane::Alarm, position, 1).await.expect("it can be read");
            self.store.confirm(Lane::Alarm, vec![position]).await.expect("the store runs");
            // Jobs are served in turn: what is answered after it knows that it is confirmed.
            let none = self.store.read(Lane::Alarm, position, 1).await.expect("nothing is damaged");
            assert!(none.is_empty(), "it no longer waits");
            found.first().expect("it waits").size
        })
    }

    /// Steps of `group` events each, numbered on from what was made before; each must be committed.
    pub(super) fn steps(&mut self, count: usize, group: usize) -> Vec<Commit> {
        let mut step = || Commit { records: (0..group).map(|_| self.next_event()).collect(), ..Commit::default() };
        (0..count).map(|_| step()).collect()
    }

    /// The same with real alarms: each event a transition, and in each step the states of the alarms that it changed.
    pub(super) fn alarm_steps(&mut self, count: usize, group: usize) -> Vec<Commit> {
        (0..count).map(|_| self.alarm_step(group)).collect()
    }

    /// Steps of `group` telemetry records, about as large as events.
    pub(super) fn telemetry(&mut self, count: usize, group: usize) -> Vec<Vec<Record>> {
        let mut record = || {
            let sequence = self.next.t;
            self.next.t += 1;
            let sample = Sample {
                point: PointId::parse("panel/note").expect("a point"),
                value: Some(Value::Text("x".repeat(100).into())),
                quality: Quality::Good,
                reason: None,
                at: self.now,
                source_time_ms: None,
                summary: None,
            };
            let batch =
                Batch { device: Segment::parse("panel").expect("a device"), readings: vec![sample], replaces: None };
            self.record(Lane::Telemetry, sequence, Body::Telemetry(batch))
        };
        (0..count).map(|_| (0..group).map(|_| record()).collect()).collect()
    }

    /// Commits steps one after the other, from a task of the runtime, as the pipeline does.
    pub(super) fn commit(&self, steps: Vec<Commit>) {
        let store = self.store.clone();
        let all = async move {
            for step in steps {
                store.commit(step).await.expect("the disk takes it");
            }
        };
        self.runtime.block_on(self.runtime.spawn(all)).expect("no panic");
    }

    /// Commits steps one after the other, from a task of the runtime, with something else after each; how long each took.
    pub(super) fn commit_beside(
        &self,
        steps: Vec<Commit>,
        beside: impl Fn() + Send + 'static,
    ) -> (Vec<Duration>, Vec<Duration>) {
        let store = self.store.clone();
        let all = async move {
            let mut times = (Vec::new(), Vec::new());
            for step in steps {
                let began = Instant::now();
                store.commit(step).await.expect("the disk takes it");
                times.0.push(began.elapsed());
                let began = Instant::now();
                beside();
                times.1.push(began.elapsed());
            }
            times
        };
        self.runtime.block_on(self.runtime.spawn(all)).expect("no panic")
    }

    /// Hands telemetry over as fast as it is taken, and waits until all of it is durable.
    pub(super) fn commit_telemetry(&self, steps: Vec<Vec<Record>>) {
        self.runtime.block_on(async {
            let mut last = None;
            for step in steps {
                last = Some(self.store.commit_telemetry(step).await.expect("the disk takes it"));
            }
            if let Some(durable) = last {
                durable.await.expect("the disk takes it");
            }
        });
    }

    /// Reads and confirms everything that waits, in groups: a broker that confirms at once.
    pub(super) fn drain(&self, lane: Lane, group: usize) {
        self.runtime.block_on(async {
            let mut position = 0;
            while let Some(last) = self.deliver(lane, position, group).await {
                position = last + 1;
            }
        });
    }

    /// Commits steps, each delivered and confirmed before the next.
    pub(super) fn pass_through(&self, steps: Vec<Commit>, group: usize) {
        self.runtime.block_on(async {
            let mut position = 0;
            for step in steps {
                self.store.commit(step).await.expect("the disk takes it");
                position = self.deliver(Lane::Alarm, position, group).await.expect("they wait") + 1;
            }
        });
    }

    async fn deliver(&self, lane: Lane, position: u64, group: usize) -> Option<u64> {
        let waiting = self.store.read(lane, position, group).await.expect("what is stored can be read");
        let positions: Vec<u64> = waiting.iter().map(|stored| stored.position).collect();
        let last = positions.last().copied();
        if last.is_some() {
            self.store.confirm(lane, positions).await.expect("the store runs");
        }
        last
    }

    /// Appends until so many events wait.
    pub(super) fn fill_to(&mut self, waiting: u64) {
        /// A group of the committer's own size.
        const GROUP: usize = 512;
        while let missing @ 1.. = waiting.saturating_sub(self.waiting()) {
            let group = usize::try_from(missing).map_or(GROUP, |missing| missing.min(GROUP));
            let steps = self.steps(1, group);
            self.commit(steps);
        }
    }

    /// Events that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.store.head(Lane::Alarm).borrow().records
    }

    /// Closes the store and waits until it is.
    pub(super) fn close(self) {
        drop(self.store);
        for committer in self.committers {
            committer.join().expect("no panic").expect("no error");
        }
    }

    fn next_event(&mut self) -> Record {
        let sequence = self.next.a;
        self.next.a += 1;
        let result = CommandResult {
            id: "b0a7".into(),
            command: "acknowledge".into(),
            alarm: AlarmId::parse("cam1/motion/intruder"),
            by: "x".repeat(self.padding).into(),
        };
        self.record(Lane::Alarm, sequence, Body::Command(result))
    }

    fn alarm_step(&mut self, group: usize) -> Commit {
        let mut commit = Commit::default();
        for _ in 0..group {
            let sequence = self.next.a;
            self.next.a += 1;
            let last = self.transition(sequence);
            commit.alarms.retain(|state| state.last.alarm != last.alarm);
            commit.alarms.push(AlarmState { configured: true, told: None, last: last.clone() });
            commit.records.push(self.record(Lane::Alarm, sequence, Body::Alarm(Box::new(last))));
        }
        commit
    }

    fn transition(&self, sequence: u64) -> Transition {
        let text = |text: &str| Some(Arc::from(text));
        Transition {
            kind: Kind::Raised,
            alarm: AlarmId::parse(&format!("cam{}/motion/intruder", sequence % ALARMS)).expect("an alarm"),
            occurrence: sequence / ALARMS + 1,
            state: State::Unack,
            active: true,
            acknowledged: false,
            latched: false,
            severity: Severity::High,
            value: Some(Value::Bool(true)),
            unit: None,
            quality: Quality::Good,
            reason: None,
            limit: None,
            test: false,
            message: Texts { id: text("Orang di pagar utara"), en: text("Person at the north fence") },
            by: None,
            comment: None,
            evidence: None,
            at: self.now,
            source_time_ms: None,
        }
    }

    fn record(&self, lane: Lane, sequence: u64, body: Body) -> Record {
        Record { lane, epoch: self.epoch.clone(), sequence, boot: self.boot.clone(), recorded: self.now, body }
    }
}
