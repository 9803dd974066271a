#![expect(clippy::disallowed_methods, reason = "tests run the store's threads and the pipeline themselves")]
//! The keeper on a real store and a real pipeline: what was declared is exactly what can no longer arrive.

mod month;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread::JoinHandle,
};

use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;
use crate::{
    alarm::{
        AlarmId, Severity, Texts,
        rule::{Acknowledgement, Condition, Latch, Naming, Rule, Selector},
    },
    config::{
        Report,
        points::{About, Points},
    },
    pipeline::{Pipeline, Raised, core::Core},
    reading::{PointId, Reading, Segment, Value},
    record::{Body, Epoch, LastKnown, StreamEvent},
    status::tests::board,
    store::{self, Options, Stored},
    supervise::Pulse,
};

const KIB: u64 = 1 << 10;
/// Far below the configuration's minimum, so that a test writes little.
const MAX_SIZE: u64 = 4 << 20;
/// A generation of that quota.
const GENERATION: u64 = 128 * KIB;
const HOUR: Duration = Duration::from_secs(3_600);
/// A store, a pipeline and a keeper that is told when to look.
struct Rig {
    keeper: Keeper,
    clock: Clock,
    pipeline: tokio::task::JoinHandle<TaskResult>,
    threads: Vec<JoinHandle<TaskResult>>,
    barriers: AtomicU32,
    folder: TempDir,
}

/// A folder; in memory where there is such, the test is about what is declared and not about the disk.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder")
}

fn at(seconds: u64) -> Now {
    let mono_ms = seconds * 1_000;
    Now { mono_ms, wall_ms: 1_795_256_100_000 + i64::try_from(mono_ms).expect("small"), trusted: true }
}

fn point(text: &str) -> PointId {
    PointId::parse(text).expect("a point")
}

/// An alarm that comes and goes with `panel/{severity}`.
fn rule(severity: Severity) -> Rule {
    Rule {
        name: Segment::parse("on").expect("a name"),
        select: Selector::parse(&format!("panel/{}", severity.as_str())).expect("a point"),
        naming: Naming::PointAndRule,
        when: Condition::Is(Value::Bool(true)),
        severity,
        on_delay: Duration::ZERO,
        off_delay: Duration::ZERO,
        latch: Latch::NonLatching,
        acknowledgement: Acknowledgement::NotRequired,
        message: Texts::default(),
    }
}

impl Rig {
    fn new() -> Self {
        Self::of(MAX_SIZE, GENERATION, 24 * HOUR)
    }

    fn of(max_size: u64, generation_size: u64, telemetry_max_age: Duration) -> Self {
        Self::on(folder(), max_size, generation_size, telemetry_max_age)
    }

    fn on(folder: TempDir, max_size: u64, generation_size: u64, telemetry_max_age: Duration) -> Self {
        let (clock, metrics) = (Clock::manual("boot", at(0)), Metrics::new());
        let (path, boot) = (folder.path().to_owned(), clock.boot().clone());
        let options =
            Options { path: path.clone(), machine: "m".into(), boot: boot.clone(), generation_size, memory: None };
        let (store, recovered, committers) = store::open(&options, &metrics).expect("opens");
        let threads = committers.into_iter().map(|(_, work)| std::thread::spawn(work)).collect();
        let report = |pattern, report| (Selector::parse(pattern).expect("a pattern"), About { unit: None, report });
        let points = Points::for_tests(vec![
            report("panel/#", Report::Off),
            report("gateway/#", Report::Off),
            report("+/x", Report::Change { deadband: 0.0 }),
        ]);
        let built_in = |alarm, severity| Rule::built_in(alarm, severity, Texts::default());
        let mut rules: Vec<Rule> = Severity::ALL.map(rule).into();
        rules.push(built_in(AlarmId::outbox_evicting(), Severity::High));
        rules.push(built_in(AlarmId::outbox_filling(), Severity::Medium));
        rules.push(built_in(AlarmId::outbox_full(), Severity::Critical));
        rules.push(built_in(AlarmId::outbox_unusable(), Severity::Critical));
        let (core, first) = Core::new(recovered, rules, points, 1_000_000_000, boot, clock.now());
        let (inputs, queue) = mpsc::channel(16);
        let pulse = Pulse::new(clock.clone());
        let board = board(&clock, &pulse);
        let pipeline = Pipeline {
            core,
            first,
            inputs: queue,
            store: store.clone(),
            board: board.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            beat: pulse.stage("pipeline"),
            raised: Raised::default(),
        };
        let keeper = Keeper::new(KeeperTask {
            outbox: Outbox { path, max_size, telemetry_max_age, write_budget_bytes: None },
            store,
            pipeline: inputs,
            board,
            clock: clock.clone(),
            metrics,
            beat: pulse.stage("keeper"),
            shutdown: Shutdown::new(),
        });
        Self { keeper, clock, pipeline: tokio::spawn(pipeline.run()), threads, barriers: AtomicU32::new(0), folder }
    }

    /// One record of each of so many devices, `seconds` after the start.
    async fn telemetry(&self, devices: usize, seconds: u64) {
        self.clock.set(at(seconds));
        let value = Value::Float(f64::from(u32::try_from(seconds).expect("small")) + 0.5);
        let reading = |i| Reading::good(point(&format!("d{i}/x")), value.clone(), at(seconds));
        let readings = Input::Readings((0..devices).map(reading).collect());
        self.keeper.task.pipeline.send(readings).await.expect("the pipeline runs");
        self.barrier("panel/barrier").await;
        // Changes are gathered for less than that.
        self.clock.set(at(seconds + 1));
        self.barrier("panel/barrier").await;
    }

    /// Waits until all telemetry is on stable storage, with one more record.
    async fn flush(&self) {
        self.barrier("flush/x").await;
    }

    /// Waits until everything before is done; of a point that is reported, until it is on stable storage.
    async fn barrier(&self, name: &str) {
        let count = self.barriers.fetch_add(1, Ordering::Relaxed);
        self.message(vec![Reading::good(point(name), Value::Integer(count.into()), self.clock.now())]).await;
    }

    /// Each alarm comes and goes so often.
    async fn alarms(&self, times: usize) {
        let now = self.clock.now();
        let all = (0..2 * times).flat_map(|i| Severity::ALL.map(|severity| (i % 2 == 0, severity)));
        let reading = |(on, severity): (bool, Severity)| {
            Reading::good(point(&format!("panel/{}", severity.as_str())), Value::Bool(on), now)
        };
        self.message(all.map(reading).collect()).await;
    }

    /// Hands readings to the pipeline and waits until what they caused is on stable storage.
    async fn message(&self, readings: Vec<Reading>) {
        let (durable, done) = oneshot::channel();
        self.keeper.task.pipeline.send(Input::Message { readings, durable }).await.expect("the pipeline runs");
        done.await.expect("durable");
    }

    async fn turn(&mut self) {
        self.keeper.turn().await.map_err(|_| ()).expect("the store works");
        self.barrier("panel/barrier").await;
    }

    async fn waiting(&self, lane: Lane) -> Vec<Stored> {
        self.waiting_from(lane, 0).await
    }

    async fn waiting_from(&self, lane: Lane, position: u64) -> Vec<Stored> {
        let mut found: Vec<Stored> = Vec::new();
        loop {
            let from = found.last().map_or(position, |last| last.position + 1);
            let more = self.keeper.task.store.read(lane, from, 256).await.expect("reads");
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }

    /// Every number declared, with the reason: no number twice.
    async fn declared(&self, lane: Lane) -> BTreeMap<u64, LossReason> {
        let mut declared = BTreeMap::new();
        for stored in self.waiting(Lane::Alarm).await {
            let Body::Stream(StreamEvent::Lost { lane: of, ranges, count, reason, certain, .. }) = stored.record.body
            else {
                continue;
            };
            assert!(certain);
            assert_eq!(count, ranges.iter().map(|(first, last)| last - first + 1).sum::<u64>());
            for number in ranges.into_iter().filter(|_| of == lane).flat_map(|(first, last)| first..=last) {
                assert_eq!(declared.insert(number, reason), None, "{number} is declared twice");
            }
        }
        declared
    }

    /// Whether what was declared is exactly what will not arrive.
    async fn audit(&self) -> Result<(), String> {
        for lane in Lane::ALL {
            let next = self.keeper.task.store.head(lane).borrow().status.next;
            let waiting: Vec<u64> = self.waiting(lane).await.iter().map(|stored| stored.record.sequence).collect();
            let missing: Vec<u64> = (1..next).filter(|number| waiting.binary_search(number).is_err()).collect();
            let declared: Vec<u64> = self.declared(lane).await.into_keys().collect();
            if missing != declared {
                return Err(format!("{}: {} missing, {} declared", lane.as_str(), missing.len(), declared.len()));
            }
        }
        Ok(())
    }

    fn measured(&self) -> (Measured, Shares) {
        let measured = disk::measure(&self.keeper.task.outbox.path).expect("measures");
        (measured, Shares::of(self.keeper.task.outbox.max_size, &measured))
    }

    /// Generations from which something was given up for this reason.
    fn evictions(&self, lane: Lane, reason: LossReason) -> u64 {
        let labels = [lane.as_str(), reason.as_str()];
        self.keeper.task.metrics.outbox_evictions.with_label_values(&labels).get()
    }

    async fn close(self) -> TempDir {
        drop(self.keeper);
        self.pipeline.await.expect("no panic").expect("no error");
        for thread in self.threads {
            thread.join().expect("no panic").expect("no error");
        }
        self.folder
    }
}

#[tokio::test]
async fn telemetry_goes_first_then_the_least_severe_alarms_and_all_of_it_is_declared() {
    let mut rig = Rig::new();
    // Ten minutes between two reports: summaries would hardly be smaller.
    let (mut seconds, mut seen, mut of_number) = (0, 0, BTreeMap::new());
    for _ in 0..8 {
        for _ in 0..12 {
            seconds += 600;
            rig.telemetry(100, seconds).await;
        }
        rig.flush().await;
        rig.alarms(20).await;
        rig.turn().await;
    }
    let (measured, shares) = rig.measured();
    assert!(measured.telemetry <= shares.telemetry && measured.used() <= shares.all, "{measured:?} {shares:?}");
    let declared = rig.declared(Lane::Telemetry).await;
    assert!(declared.values().all(|reason| *reason == LossReason::Quota) && !declared.is_empty());
    assert_eq!(rig.declared(Lane::Alarm).await, BTreeMap::new(), "there was telemetry to take");
    assert_eq!(rig.audit().await, Ok(()));

    for _ in 0..40 {
        rig.alarms(20).await;
        for stored in rig.waiting_from(Lane::Alarm, seen).await {
            seen = stored.position + 1;
            of_number.insert(stored.record.sequence, quota::severity(&stored.record));
        }
        rig.turn().await;
    }
    let (measured, shares) = rig.measured();
    assert!(measured.used() <= shares.all, "{measured:?} {shares:?}");
    assert_eq!(rig.waiting(Lane::Telemetry).await, [], "it goes before any alarm");
    let mut given_up: BTreeMap<Severity, usize> = BTreeMap::new();
    for number in rig.declared(Lane::Alarm).await.into_keys() {
        *given_up.entry(of_number[&number].expect("stream events are never given up")).or_default() += 1;
    }
    assert!(given_up.contains_key(&Severity::Info) && !given_up.contains_key(&Severity::Critical), "{given_up:?}");
    assert_eq!(rig.audit().await, Ok(()));
    let shown = rig.keeper.task.board.outbox().expect("measured");
    assert!(shown.disk_bytes <= MAX_SIZE && shown.quota_bytes == MAX_SIZE, "{shown:?}");
    assert!(Lane::ALL.into_iter().all(|lane| rig.evictions(lane, LossReason::Quota) > 0));
    rig.close().await;
}

#[tokio::test]
async fn alarms_are_packed_before_any_is_given_up() {
    let mut rig = Rig::new();
    let (_, shares) = rig.measured();
    // What waits needs a third of the room; with all states in between it would not fit.
    while rig.keeper.task.store.head(Lane::Alarm).borrow().bytes < shares.all / 3 {
        for on in [true, false].repeat(10) {
            rig.message(vec![Reading::good(point("panel/high"), Value::Bool(on), at(0))]).await;
        }
        rig.turn().await;
    }
    let generations = rig.keeper.task.store.generations(Lane::Alarm).await.expect("answers");
    let sealed = generations.last().expect("one is open").number - 1;
    assert!(sealed * GENERATION > shares.all, "{sealed} were full: there was room for all of them");
    assert_eq!(rig.declared(Lane::Alarm).await, BTreeMap::new());
    assert_eq!(rig.audit().await, Ok(()));
    let (measured, shares) = rig.measured();
    assert!(measured.used() <= shares.all, "{measured:?} {shares:?}");
    rig.close().await;
}

#[tokio::test]
async fn what_is_settled_without_a_declaration_is_noticed_by_these_tests() {
    let rig = Rig::new();
    rig.telemetry(100, 1).await;
    rig.flush().await;
    rig.keeper.task.store.settle(Lane::Telemetry, vec![(3, 9)]).await.expect("settles");
    assert_eq!(rig.audit().await, Err("t: 7 missing, 0 declared".into()));
    rig.close().await;
}

#[tokio::test]
async fn frequent_telemetry_is_thinned_before_it_is_lost() {
    let mut rig = Rig::new();
    let mut seconds = 0;
    while rig.evictions(Lane::Telemetry, LossReason::Thinned) == 0 {
        for _ in 0..30 {
            seconds += 10;
            rig.telemetry(4, seconds).await;
        }
        rig.flush().await;
        rig.turn().await;
    }
    assert_eq!(rig.evictions(Lane::Telemetry, LossReason::Quota), 0);
    assert_eq!(rig.audit().await, Ok(()));
    let declared = rig.declared(Lane::Telemetry).await;
    assert!(declared.values().all(|reason| *reason == LossReason::Thinned), "{declared:?}");
    let mut count = 0;
    for stored in rig.waiting(Lane::Telemetry).await {
        let Body::Telemetry(batch) = stored.record.body else { panic!("lane t") };
        let Some(replaces) = batch.replaces else { continue };
        let [sample] = &batch.readings[..] else { panic!("one point a device") };
        let summary = sample.summary.as_ref().expect("a summary");
        assert!(summary.min.is_some() && summary.max == sample.value, "values rise: the last is the greatest");
        assert!(
            replaces.ranges.iter().all(|(first, last)| declared.contains_key(first) && declared.contains_key(last))
        );
        count += summary.count;
    }
    assert_eq!(count, declared.len() as u64, "every reading that was declared is in one summary");
    rig.close().await;
}

#[tokio::test]
async fn what_is_too_old_goes_by_age() {
    let mut rig = Rig::new();
    rig.telemetry(100, 1).await;
    rig.flush().await;
    rig.clock.set(at(24 * 3_600));
    rig.turn().await;
    assert_eq!(rig.declared(Lane::Telemetry).await, BTreeMap::new(), "not a day yet");
    rig.clock.set(at(24 * 3_600 + 3));
    rig.turn().await;
    let declared = rig.declared(Lane::Telemetry).await;
    assert_eq!((declared.len(), declared.values().all(|reason| *reason == LossReason::Age)), (101, true));
    assert_eq!(rig.audit().await, Ok(()));
    rig.close().await;
}

#[tokio::test]
async fn the_alarms_of_the_outbox_follow_how_full_it_is() {
    let mut rig = Rig::new();
    let mut seconds = 0;
    while rig.evictions(Lane::Telemetry, LossReason::Quota) == 0 {
        for _ in 0..4 {
            seconds += 600;
            rig.telemetry(100, seconds).await;
        }
        rig.flush().await;
        rig.turn().await;
    }
    // The link is back, and everything is delivered.
    let end = rig.keeper.task.store.head(Lane::Telemetry).borrow().next_position;
    rig.keeper.task.store.settle(Lane::Telemetry, vec![(1, end - 1)]).await.expect("settles");
    rig.turn().await;
    let mut told = Vec::new();
    for stored in rig.waiting(Lane::Alarm).await {
        if let Body::Alarm(transition) = stored.record.body {
            told.push(format!("{} {}", transition.kind.as_str(), transition.alarm));
        }
    }
    let expected = [
        "raised gateway/outbox-filling",
        "raised gateway/outbox-evicting",
        "cleared gateway/outbox-evicting",
        "cleared gateway/outbox-filling",
    ];
    // A generation is large beside this quota: giving it up may have ended the eviction, or both in one measurement.
    told[2..].sort_unstable();
    assert_eq!(told, expected);
    rig.close().await;
}

#[tokio::test]
async fn what_was_given_up_under_numbers_in_doubt_names_none_of_them_once_they_are_void() {
    let rig = Rig::new();
    rig.telemetry(4, 600).await;
    rig.flush().await;
    // The center has not confirmed the numbers from here on.
    let mut rig = Rig::on(rig.close().await, MAX_SIZE, 128 * KIB, 24 * HOUR);
    let store = rig.keeper.task.store.clone();
    let unproven = store.unproven().borrow()[0].clone();
    let mut seconds = 600;
    while rig.evictions(Lane::Telemetry, LossReason::Quota) < 3 {
        for _ in 0..12 {
            seconds += 600;
            rig.telemetry(100, seconds).await;
        }
        rig.flush().await;
        rig.turn().await;
    }
    assert_eq!(rig.audit().await, Ok(()), "what is in doubt gives way as well, and mostly is proven");
    let given_up = rig.declared(Lane::Telemetry).await.into_keys().filter(|n| *n >= unproven.from.t).count() as u64;
    assert!(given_up > 0);

    let present = Epoch::parse(&"z".repeat(Epoch::LEN)).expect("an epoch");
    let (known, (durable, done)) = (LastKnown { a: 100_000, t: 100_000 }, oneshot::channel());
    let rolled_back = Input::RolledBack { known, epoch: present.clone(), durable };
    rig.keeper.task.pipeline.send(rolled_back).await.expect("the pipeline runs");
    done.await.expect("durable");
    // The keeper looks while records are numbered anew, and may find that it must look again.
    let _outdated = rig.keeper.turn().await;
    store.unproven().wait_for(Vec::is_empty).await.expect("the store is open");

    let (mut unnumbered, mut declared) = (0, Vec::new());
    for stored in rig.waiting(Lane::Alarm).await {
        match stored.record.body {
            Body::Stream(StreamEvent::Lost { epoch, ranges, count, .. }) if epoch == present => {
                unnumbered += if ranges.is_empty() { count } else { 0 };
                declared.extend(ranges.into_iter().flat_map(|(first, last)| first..=last));
            }
            Body::Stream(StreamEvent::Lost { ranges, .. }) => {
                assert!(
                    ranges.iter().all(|(_, last)| *last < unproven.from.t),
                    "another life has used them: {ranges:?}"
                );
            }
            _ => {}
        }
    }
    assert_eq!(unnumbered, given_up);
    let waiting = rig.waiting(Lane::Telemetry).await;
    assert!(waiting.iter().all(|stored| !unproven.covers(&stored.record)));
    declared.extend(waiting.iter().filter(|of| of.record.epoch == present).map(|of| of.record.sequence));
    declared.sort_unstable();
    let next = store.head(Lane::Telemetry).borrow().status.next;
    assert_eq!(declared, (1..next).collect::<Vec<_>>(), "each number waits or is declared, once");
    drop(store);
    rig.close().await;
}
