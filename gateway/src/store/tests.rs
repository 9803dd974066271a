#![expect(clippy::disallowed_methods, reason = "tests run the committers themselves")]
//! The whole store on a real folder: what is acknowledged comes back, whatever happened in between.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::Poll,
    thread::JoinHandle,
    time::Duration,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    durable::{SyncFile, sync_file},
    open::open_on,
    settled::RANGES_MAX,
    testing::{batch, epoch, now, raised, state},
    *,
};
use crate::{
    command::Outcome,
    metrics::Metrics,
    record::{RECORD_SIZE_MAX, StreamEvent},
    supervise::TaskResult,
};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A folder; in memory where there is such, the tests are about order and not about the disk.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder")
}

fn options(path: &Path) -> Options {
    Options { path: path.into(), machine: "machine-1".into(), boot: BootId::new("boot-1") }
}

/// An open store whose committers run.
struct Rig {
    store: Store,
    recovered: Recovered,
    threads: Vec<JoinHandle<TaskResult>>,
    metrics: Metrics,
}

impl Rig {
    fn open(path: &Path) -> Self {
        Self::open_on(&options(path), &sync_file())
    }

    fn open_on(options: &Options, disk: &SyncFile) -> Self {
        let metrics = Metrics::new();
        let (store, recovered, committers) = open_on(options, &metrics, disk).expect("opens");
        let threads = committers.into_iter().map(|(_, work)| std::thread::spawn(work)).collect();
        Self { store, recovered, threads, metrics }
    }

    fn close(self) {
        drop(self.store);
        for thread in self.threads {
            thread.join().expect("no panic").expect("no error");
        }
    }

    fn status(&self, lane: Lane) -> (u64, u64) {
        let head = self.store.head(lane).borrow().clone();
        (head.status.next, head.status.settled)
    }

    async fn waiting(&self, lane: Lane) -> Vec<Stored> {
        let mut found: Vec<Stored> = Vec::new();
        loop {
            let from = found.last().map_or(0, |last| last.position + 1);
            let more = self.store.read(lane, from, usize::MAX).await.expect("reads");
            if more.is_empty() {
                return found;
            }
            assert!(more.len() <= 256, "{} records at once", more.len());
            found.extend(more);
        }
    }

    async fn append(&self, sequences: std::ops::RangeInclusive<u64>) {
        let epoch = self.store.head(Lane::Alarm).borrow().status.epoch.clone();
        let records = sequences.map(|n| raised(&epoch, n, "panel/door/door-open")).collect();
        self.store.commit(Commit { records, ..Commit::default() }).await.expect("commits");
    }

    async fn append_telemetry(&self, sequences: std::ops::RangeInclusive<u64>) {
        let epoch = self.store.head(Lane::Telemetry).borrow().status.epoch.clone();
        let records = sequences.map(|n| batch(&epoch, n, "31.5")).collect();
        self.store.commit_telemetry(records).await.expect("queued").await.expect("durable");
    }
}

fn refusal(path: &Path) -> OpenError {
    open(&options(path), &Metrics::new()).map(|_| ()).expect_err("cannot be opened")
}

fn syncs(metrics: &Metrics, chain: &str) -> u64 {
    metrics.outbox_sync_seconds.with_label_values(&[chain]).get_sample_count()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for entry in fs::read_dir(from).expect("folder") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

fn sequences(found: &[Stored]) -> Vec<u64> {
    found.iter().map(|s| s.record.sequence).collect()
}

fn answer(id: &str, mono_ms: u64, boot: &str) -> StoredAnswer {
    let data = Some(serde_json::json!({ "n": mono_ms }));
    let answer = Answer { id: id.into(), command: "test".into(), result: Outcome::Ok, code: None, text: None, data };
    StoredAnswer { at: now(mono_ms), boot: BootId::new(boot), answer }
}

fn everything(epoch: &Epoch) -> Commit {
    let point = |name: &str| PointId::parse(name).expect("point");
    let mut boots = Boots::default();
    boots.enter(&BootId::new("boot-1"));
    boots.trust(&BootId::new("boot-1"), Now { trusted: true, ..now(7) });
    Commit {
        records: vec![raised(epoch, 1, "panel/door/door-open")],
        alarms: vec![state("panel/door/door-open", 1), state("panel/temp/hot", 4)],
        forgotten_alarms: vec![],
        counts: vec![(point("panel/rain"), Value::Integer(u64::MAX.into())), (point("panel/flow"), Value::Float(0.1))],
        answers: vec![answer("later", 9, "boot-1"), answer("earlier", 8, "boot-1")],
        forgotten_answers: vec![],
        boots: Some(boots),
    }
}

#[tokio::test]
async fn what_a_commit_wrote_is_there_after_a_clean_stop_and_after_a_kill() {
    let (dir, killed) = (folder(), folder());
    let rig = Rig::open(dir.path());
    let commit = everything(&rig.recovered.epoch);
    rig.store.commit(commit.clone()).await.expect("commits");
    rig.append_telemetry(1..=3).await;
    assert_eq!((rig.store.next_session().await, rig.store.next_session().await), (Ok(1), Ok(2)));
    assert_eq!(Some(rig.store.boots().borrow().clone()), commit.boots);
    copy(dir.path(), killed.path());
    let (epoch, alarm) = (rig.recovered.epoch.clone(), rig.waiting(Lane::Alarm).await);
    rig.close();

    for path in [dir.path(), killed.path()] {
        let rig = Rig::open(path);
        let Recovered { started, next, mut alarms, mut counts, answers, boots, .. } = rig.recovered.clone();
        alarms.sort_by_key(|state| state.last.occurrence);
        counts.reverse();
        assert_eq!((&rig.recovered.epoch, started, next), (&epoch, None, Next { a: 2, t: 4 }));
        assert_eq!((&alarms, counts, Some(boots)), (&commit.alarms, commit.counts.clone(), commit.boots.clone()));
        assert_eq!(answers, [answer("earlier", 8, "boot-1"), answer("later", 9, "boot-1")]);
        assert_eq!(rig.waiting(Lane::Alarm).await, alarm);
        assert_eq!(sequences(&rig.waiting(Lane::Telemetry).await), [1, 2, 3]);
        let id = alarms[0].last.alarm.clone();
        assert_eq!(rig.store.alarm(id.clone()).await, Ok(Some(alarms[0].clone())));
        let forgotten = Commit { forgotten_alarms: vec![id.clone()], ..Commit::default() };
        rig.store.commit(forgotten).await.expect("commits");
        assert_eq!((rig.store.alarm(id).await, rig.store.alarms().await), (Ok(None), Ok(vec![alarms[1].clone()])));
        assert_eq!(rig.store.next_session().await, Ok(3));
        rig.close();
    }
}

#[tokio::test]
async fn a_head_says_what_waits() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=5).await;
    let waiting = rig.waiting(Lane::Alarm).await;
    let size = |found: &[Stored]| found.iter().map(|s| s.size as u64).sum::<u64>();
    let head = rig.store.head(Lane::Alarm).borrow().clone();
    let oldest = |mono_ms| Some((BootId::new("boot-1"), now(mono_ms)));
    assert_eq!((head.records, head.bytes, head.oldest, head.next_position), (5, size(&waiting), oldest(1), 6));

    let positions = [0, 2].map(|i: usize| waiting[i].position);
    rig.store.confirm(Lane::Alarm, positions.into()).await.expect("queued");
    rig.store.confirm(Lane::Alarm, vec![positions[0], 0, 6, u64::MAX]).await.expect("queued");
    let waiting = rig.waiting(Lane::Alarm).await;
    assert_eq!(sequences(&waiting), [2, 4, 5]);
    let head = rig.store.head(Lane::Alarm).borrow().clone();
    assert_eq!((head.records, head.bytes, &head.oldest, head.status.settled), (3, size(&waiting), &oldest(2), 1));
    assert_eq!(sequences(&rig.store.read(Lane::Alarm, waiting[1].position, 1).await.expect("reads")), [4]);
    assert_eq!(rig.metrics.outbox_records.with_label_values(&["a"]).get(), 3);
    rig.close();

    let rig = Rig::open(dir.path());
    assert_eq!(*rig.store.head(Lane::Alarm).borrow(), head, "the same is found by the scan");
    rig.close();
}

/// A disk that keeps only what was synced: at every sync the folder is copied.
fn disk_that_keeps_what_was_synced(image: &Path) -> SyncFile {
    let image = image.to_owned();
    Arc::new(move |folder, _| {
        copy(folder, &image.join(folder.file_name().expect("a name")));
        Ok(())
    })
}

#[tokio::test]
async fn after_a_power_cut_everything_acknowledged_is_there() {
    let (dir, image) = (folder(), folder());
    let rig = Rig::open_on(&options(dir.path()), &disk_that_keeps_what_was_synced(image.path()));
    for n in 1..=5 {
        rig.append(n..=n).await;
        rig.append_telemetry(n..=n).await;
        let cut = folder();
        copy(image.path(), cut.path());
        let after = Rig::open(cut.path());
        let wanted: Vec<_> = (1..=n).collect();
        assert_eq!(sequences(&after.waiting(Lane::Alarm).await), wanted);
        assert_eq!(sequences(&after.waiting(Lane::Telemetry).await), wanted);
        after.close();
    }
    rig.close();
}

#[tokio::test]
async fn nothing_is_acknowledged_that_could_not_be_synced() {
    let (dir, calls) = (folder(), Arc::new(AtomicUsize::new(0)));
    let count = calls.clone();
    let disk: SyncFile = Arc::new(move |_, _| {
        // The first two open the chains.
        if count.fetch_add(1, Ordering::SeqCst) < 2 { Ok(()) } else { Err(std::io::Error::other("the card is gone")) }
    });
    let rig = Rig::open_on(&options(dir.path()), &disk);
    let epoch = rig.recovered.epoch.clone();
    let commit = || Commit { records: vec![raised(&epoch, 1, "panel/door/door-open")], ..Commit::default() };
    let error = rig.store.commit(commit()).await.expect_err("not durable");
    assert!(matches!(&error, StoreError::Write { chain: "alarm-1", reason } if reason.contains("the card is gone")));
    assert_eq!(rig.store.head(Lane::Alarm).borrow().next_position, 1, "what is not durable is not shown");
    assert_eq!(rig.store.commit(commit()).await, Err(error.clone()), "the chain is dead");
    assert_eq!(rig.store.alarms().await, Err(error));
    let durable = rig.store.commit_telemetry(vec![batch(&epoch, 1, "1.0")]).await.expect("queued");
    assert!(durable.await.is_err(), "never resolves");
    assert_eq!(calls.load(Ordering::SeqCst), 4);
    for thread in rig.threads {
        assert!(thread.join().expect("no panic").is_err(), "the daemon hears of it");
    }
}

#[test]
fn the_real_disk_is_asked_and_its_refusal_heeded() {
    let dir = folder();
    let file = File::create(dir.path().join("file")).expect("file");
    sync_file()(dir.path(), &file).expect("a file can be synced");
    let (pipe, _writer) = std::io::pipe().expect("pipe");
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    assert!(sync_file()(dir.path(), &pipe).is_err(), "fdatasync(2) refuses a pipe");
}

#[tokio::test]
async fn commits_that_wait_together_share_a_sync() {
    let dir = folder();
    let metrics = Metrics::new();
    let (store, recovered, committers) = open(&options(dir.path()), &metrics).expect("opens");
    let before = syncs(&metrics, "alarm-1");
    let mut commits: Vec<_> = (1..=200)
        .map(|n| {
            let records = vec![raised(&recovered.epoch, n, "panel/door/door-open")];
            let store = store.clone();
            Box::pin(async move { store.commit(Commit { records, ..Commit::default() }).await })
        })
        .collect();
    let queue_all = std::future::poll_fn(|context| {
        assert!(commits.iter_mut().all(|commit| commit.as_mut().poll(context).is_pending()));
        Poll::Ready(())
    });
    tokio::task::unconstrained(queue_all).await;
    let threads: Vec<_> = committers.into_iter().map(|(_, work)| std::thread::spawn(work)).collect();
    for commit in commits {
        commit.await.expect("durable");
    }
    assert_eq!(syncs(&metrics, "alarm-1") - before, 4, "200 commits in groups of 64");
    Rig { store, recovered, threads, metrics }.close();
}

#[tokio::test]
async fn a_chain_at_rest_syncs_nothing_and_confirmations_do_not_wait_for_a_commit() {
    let (dir, (synced, syncs_of_telemetry)) = (folder(), mpsc::channel());
    let disk: SyncFile = Arc::new(move |folder, _| {
        let _ = folder.ends_with("telemetry-1").then(|| synced.send(()));
        Ok(())
    });
    let rig = Rig::open_on(&options(dir.path()), &disk);
    rig.append_telemetry(1..=3).await;
    let before = syncs_of_telemetry.try_iter().count();
    for _ in 0..100 {
        assert_eq!(rig.waiting(Lane::Telemetry).await.len(), 3);
    }
    rig.store.confirm(Lane::Telemetry, vec![99]).await.expect("queued");
    assert_eq!((before, syncs_of_telemetry.try_iter().count()), (2, 0), "opening, one group, and then none");
    rig.store.confirm(Lane::Telemetry, vec![1]).await.expect("queued");
    syncs_of_telemetry.recv_timeout(DEADLINE).expect("written without a commit");
    let killed = folder();
    copy(dir.path(), killed.path());
    let after = Rig::open(killed.path());
    assert_eq!(sequences(&after.waiting(Lane::Telemetry).await), [2, 3]);
    after.close();
    rig.close();
}

#[tokio::test]
async fn a_new_epoch_is_told_until_its_first_record_is_stored() {
    let dir = folder();
    let new = Some(Started { reason: StartReason::NewStore, replaces: None });
    let rig = Rig::open(dir.path());
    let first = rig.recovered.epoch.clone();
    assert_eq!((rig.recovered.started.clone(), rig.recovered.next), (new.clone(), Next { a: 1, t: 1 }));
    assert_eq!(rig.store.next_session().await, Ok(1), "other writes do not declare it");
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!((&rig.recovered.epoch, &rig.recovered.started), (&first, &new));
    rig.append(1..=2).await;
    rig.append_telemetry(1..=4).await;
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!((&rig.recovered.epoch, &rig.recovered.started), (&first, &None));
    rig.close();

    let other = Options { machine: "machine-2".into(), boot: BootId::new("boot-2"), ..options(dir.path()) };
    let rig = Rig::open_on(&other, &sync_file());
    let second = rig.recovered.epoch.clone();
    let replaces = Some((first.clone(), Next { a: 3, t: 5 }));
    assert_eq!(rig.recovered.started, Some(Started { reason: StartReason::OtherMachine, replaces: replaces.clone() }));
    assert_eq!((rig.recovered.next, rig.status(Lane::Alarm)), (Next { a: 1, t: 1 }, (1, 0)));
    rig.close();
    let third = Options { machine: "machine-3".into(), ..other };
    let rig = Rig::open_on(&third, &sync_file());
    assert!(![first.clone(), second].contains(&rig.recovered.epoch));
    assert_eq!(rig.recovered.started.as_ref().map(|s| &s.replaces), Some(&replaces), "the second was never declared");
    rig.append(1..=1).await;
    let epochs: Vec<_> = rig.waiting(Lane::Alarm).await.into_iter().map(|s| s.record.epoch).collect();
    assert_eq!(epochs, [first.clone(), first, rig.recovered.epoch.clone()], "the backlog keeps its ids");
    rig.close();
}

#[tokio::test]
async fn an_epoch_that_begins_at_run_time_begins_in_both_lanes() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=3).await;
    rig.append_telemetry(1..=3).await;
    let started = StreamEvent::Started { reason: StartReason::RolledBack, replaces: None, last: None };
    let mut record = raised(&epoch('z'), 1, "panel/door/door-open");
    record.body = crate::record::Body::Stream(started);
    rig.store.commit(Commit { records: vec![record], ..Commit::default() }).await.expect("commits");
    assert_eq!((rig.status(Lane::Alarm), rig.status(Lane::Telemetry)), ((2, 0), (1, 0)));
    rig.append_telemetry(1..=2).await;
    rig.store.confirm(Lane::Telemetry, vec![2, 4]).await.expect("queued");
    assert_eq!(sequences(&rig.waiting(Lane::Telemetry).await), [1, 3, 2]);
    assert_eq!(rig.status(Lane::Telemetry), (3, 1), "the backlog of the old epoch does not hold it back");
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!((&rig.recovered.epoch, &rig.recovered.started), (&epoch('z'), &None));
    assert_eq!((rig.status(Lane::Alarm), rig.status(Lane::Telemetry)), ((2, 0), (3, 1)));
    rig.close();
}

#[tokio::test]
async fn telemetry_follows_when_a_crash_came_between_the_two_chains() {
    let (dir, killed) = (folder(), folder());
    let rig = Rig::open(dir.path());
    rig.append(1..=1).await;
    rig.append_telemetry(1..=2).await;
    copy(&dir.path().join("telemetry-1"), &killed.path().join("telemetry-1"));
    let records = vec![raised(&epoch('z'), 1, "panel/door/door-open")];
    rig.store.commit(Commit { records, ..Commit::default() }).await.expect("commits");
    copy(&dir.path().join("alarm-1"), &killed.path().join("alarm-1"));
    rig.close();
    let rig = Rig::open(killed.path());
    assert_eq!((&rig.recovered.epoch, &rig.recovered.started), (&epoch('z'), &None));
    assert_eq!(rig.recovered.next, Next { a: 2, t: 1 });
    rig.append_telemetry(1..=1).await;
    assert_eq!(sequences(&rig.waiting(Lane::Telemetry).await), [1, 2, 1]);
    rig.close();
}

#[tokio::test]
async fn a_number_out_of_order_is_a_bug_and_stops_the_chain() {
    for wrong in [0, 2, 7] {
        let dir = folder();
        let rig = Rig::open(dir.path());
        let records = vec![raised(&rig.recovered.epoch, wrong, "panel/door/door-open")];
        let refused = rig.store.commit(Commit { records, ..Commit::default() }).await;
        assert!(matches!(refused, Err(StoreError::Misnumbered { .. })), "{refused:?}");
        drop(rig);
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_next_takes_its_number() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    let comment: Arc<str> = "x".repeat(RECORD_SIZE_MAX).into();
    let mut large = state("panel/door/door-open", 1);
    large.last.comment = Some(comment.clone());
    let mut record = raised(&rig.recovered.epoch, 1, "panel/door/door-open");
    record.body = crate::record::Body::Alarm(Box::new(large.last.clone()));
    let text = (PointId::parse("panel/text").expect("point"), Value::Text(comment));
    for commit in [
        Commit { records: vec![record], ..Commit::default() },
        Commit { alarms: vec![large], ..Commit::default() },
        Commit { counts: vec![text], ..Commit::default() },
    ] {
        let refused = rig.store.commit(commit).await;
        assert!(matches!(refused, Err(StoreError::TooLarge { size, .. }) if size > RECORD_SIZE_MAX), "{refused:?}");
    }
    rig.append(1..=1).await;
    rig.close();
}

#[tokio::test]
async fn the_largest_records_in_a_very_large_commit_are_written_whole_and_without_blob_files() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    let epoch = rig.recovered.epoch.clone();
    let records: Vec<_> = (1..=700)
        .map(|n| {
            let mut record = raised(&epoch, n, "panel/door/door-open");
            let crate::record::Body::Alarm(transition) = &mut record.body else { unreachable!("an alarm") };
            transition.comment = Some("x".repeat(3_500).into());
            record
        })
        .collect();
    rig.store.commit(Commit { records: records.clone(), ..Commit::default() }).await.expect("commits");
    rig.close();
    assert_eq!(fs::read_dir(dir.path().join("alarm-1/blobs")).expect("folder").count(), 0);
    let rig = Rig::open(dir.path());
    let found = rig.waiting(Lane::Alarm).await;
    assert!(found.into_iter().map(|s| s.record).eq(records));
    rig.close();
}

#[tokio::test]
async fn confirmations_with_many_gaps_lose_nothing_but_may_be_delivered_again() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=400).await;
    let odd: Vec<u64> = (1..=400).filter(|n| n % 2 == 1).collect();
    rig.store.confirm(Lane::Alarm, odd).await.expect("queued");
    let even: Vec<u64> = (1..=400).filter(|n| n % 2 == 0).collect();
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), even);
    rig.close();
    let rig = Rig::open(dir.path());
    let found: BTreeSet<_> = sequences(&rig.waiting(Lane::Alarm).await).into_iter().collect();
    assert!(even.iter().all(|n| found.contains(n)));
    assert_eq!(400 - found.len(), RANGES_MAX, "the first range begins at 0 and holds the first");
    rig.store.confirm(Lane::Alarm, (1..=400).collect()).await.expect("queued");
    assert_eq!(rig.waiting(Lane::Alarm).await, []);
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!((rig.waiting(Lane::Alarm).await, rig.status(Lane::Alarm)), (vec![], (401, 400)));
    rig.close();
}

#[test]
fn a_second_process_is_told_who_is_there() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    let refused = refusal(dir.path());
    assert!(matches!(refused, OpenError::InUse { .. }));
    assert!(refused.to_string().contains("another gardu uses this store"), "{refused}");
    rig.close();
    Rig::open(dir.path()).close();
}

#[test]
fn a_store_of_another_format_is_refused_and_left_alone() {
    for chain in ["alarm-1", "telemetry-1"] {
        let dir = folder();
        Rig::open(dir.path()).close();
        let db = sled::Config::new().path(dir.path().join(chain)).open().expect("sled");
        db.insert("mformat", "2").expect("inserts");
        db.insert("mfuture", "kept").expect("inserts");
        drop(db);
        for _ in 0..2 {
            let refused = refusal(dir.path());
            assert!(matches!(refused, OpenError::Format { found: 2, .. }), "{refused}");
        }
        let db = sled::Config::new().path(dir.path().join(chain)).open().expect("sled");
        assert_eq!(db.get("mfuture").expect("reads").as_deref(), Some(&b"kept"[..]));
    }
}

#[test]
fn a_folder_we_cannot_use_is_named_and_left_alone() {
    let dir = folder();
    let path = dir.path().join("file");
    fs::write(&path, "not a folder").expect("writes");
    let refused = refusal(&path);
    assert!(refused.to_string().contains("file"), "{refused}");
    assert_eq!(fs::read(&path).expect("reads"), b"not a folder");
}

/// What a damage leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Left {
    /// Every record, and the epoch.
    All,
    /// Every record; whether the end of the log is missing cannot be known, so a new epoch begins.
    RecordsInNewEpoch,
    /// A store that works and gives no number twice.
    Unknown,
}

fn change(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&path).expect("reads");
    change(&mut bytes);
    fs::write(path, bytes).expect("writes");
}

fn snapshot(chain: &Path) -> PathBuf {
    let mut entries = fs::read_dir(chain).expect("folder").map(|e| e.expect("entry").path());
    entries.find(|p| p.file_name().expect("name").to_string_lossy().starts_with("snap.")).expect("a snapshot")
}

#[tokio::test]
async fn no_damage_prevents_the_start_and_no_number_is_given_twice() {
    type Damage = fn(&Path);
    let table: &[(&str, Left, Damage)] = &[
        ("nothing", Left::All, |_| {}),
        ("half-written snapshot", Left::All, |c| {
            fs::write(c.join("snap.00FFFFFFFFFFFFFF.generating"), "x").expect("writes");
        }),
        ("bit in conf", Left::All, |c| change(c.join("conf"), |b| b[3] ^= 1)),
        ("number in conf", Left::All, |c| change(c.join("conf"), |b| b[15] = b'9')),
        ("conf cut", Left::All, |c| change(c.join("conf"), |b| b.truncate(20))),
        ("conf empty", Left::All, |c| change(c.join("conf"), Vec::clear)),
        ("conf gone", Left::All, |c| fs::remove_file(c.join("conf")).expect("removes")),
        ("conf a folder", Left::All, |c| {
            fs::remove_file(c.join("conf")).expect("removes");
            fs::create_dir(c.join("conf")).expect("folder");
        }),
        ("bit in snapshot", Left::RecordsInNewEpoch, |c| change(snapshot(c), |b| b[7] ^= 4)),
        ("snapshot empty", Left::RecordsInNewEpoch, |c| change(snapshot(c), Vec::clear)),
        ("bits in conf and snapshot", Left::RecordsInNewEpoch, |c| {
            change(snapshot(c), |b| b[7] ^= 4);
            change(c.join("conf"), |b| b[3] ^= 1);
        }),
        ("db cut at 0", Left::Unknown, |c| change(c.join("db"), Vec::clear)),
        ("db cut at 100", Left::Unknown, |c| change(c.join("db"), |b| b.truncate(100))),
        ("db cut at half", Left::Unknown, |c| change(c.join("db"), |b| b.truncate(b.len() / 2))),
        ("db cut at 5/8", Left::Unknown, |c| change(c.join("db"), |b| b.truncate(b.len() / 8 * 5))),
        ("db zeroed in the middle", Left::Unknown, |c| {
            change(c.join("db"), |b| {
                let half = b.len() / 2;
                b[half - 4096..half].fill(0);
            });
        }),
        ("db speckled", Left::Unknown, |c| {
            change(c.join("db"), |b| b.iter_mut().step_by(1_999).for_each(|b| *b ^= 0x5a));
        }),
        ("db all ones", Left::Unknown, |c| change(c.join("db"), |b| b.fill(0xff))),
        ("db gone", Left::Unknown, |c| fs::remove_file(c.join("db")).expect("removes")),
        ("db a folder", Left::Unknown, |c| {
            fs::remove_file(c.join("db")).expect("removes");
            fs::create_dir(c.join("db")).expect("folder");
        }),
        ("blobs a file", Left::Unknown, |c| {
            fs::remove_dir(c.join("blobs")).expect("removes");
            fs::write(c.join("blobs"), "").expect("writes");
        }),
        ("chain a file", Left::Unknown, |c| {
            fs::remove_dir_all(c).expect("removes");
            fs::write(c, "not a folder").expect("writes");
        }),
        ("chain gone", Left::Unknown, |c| fs::remove_dir_all(c).expect("removes")),
    ];
    let whole = folder();
    let rig = Rig::open(whole.path());
    for n in 0..20 {
        rig.append(n * 20 + 1..=n * 20 + 20).await;
    }
    rig.append_telemetry(1..=200).await;
    rig.append_telemetry(201..=400).await;
    let epoch = rig.recovered.epoch.clone();
    rig.close();
    Rig::open(whole.path()).close();

    for (name, left, damage) in table {
        for (chain, lane) in [("alarm-1", Lane::Alarm), ("telemetry-1", Lane::Telemetry)] {
            let dir = folder();
            copy(whole.path(), dir.path());
            damage(&dir.path().join(chain));
            let rig = Rig::open(dir.path());
            let same_epoch = rig.recovered.epoch == epoch;
            let next = if lane == Lane::Alarm { rig.recovered.next.a } else { rig.recovered.next.t };
            assert!(!same_epoch || next == 401, "{name} of {chain}: number {next} is given again");
            assert_eq!(rig.recovered.started.is_none(), same_epoch, "{name} of {chain}: a new epoch is told");
            if *left != Left::Unknown {
                assert_eq!(same_epoch, *left == Left::All, "{name} of {chain}");
                assert_eq!(rig.store.head(lane).borrow().records, 400, "{name} of {chain}");
            }
            let Next { a, t } = rig.recovered.next;
            rig.append(a..=a + 4).await;
            rig.append_telemetry(t..=t + 4).await;
            let heads = Lane::ALL.map(|lane| rig.store.head(lane).borrow().clone());
            let epoch = rig.recovered.epoch.clone();
            rig.close();
            let rig = Rig::open(dir.path());
            assert_eq!((&rig.recovered.epoch, &rig.recovered.started), (&epoch, &None), "{name} of {chain}");
            assert_eq!(Lane::ALL.map(|lane| rig.store.head(lane).borrow().clone()), heads, "{name} of {chain}");
            rig.close();
        }
    }
}

/// How many whole records a byte scan finds.
fn salvageable(db: &Path) -> usize {
    let bytes = fs::read(db).expect("reads");
    let starts = (0..bytes.len()).filter(|i| bytes[*i..].starts_with(b"gardu1 "));
    let lines = starts.filter_map(|i| Some(&bytes[i..=i + bytes[i..].iter().position(|b| *b == b'\n')?]));
    lines.filter_map(envelope::decode).map(|r| r.sequence).collect::<BTreeSet<_>>().len()
}

#[tokio::test]
async fn a_damaged_chain_is_kept_for_salvage_with_all_that_is_whole_in_it() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    for n in 0..20 {
        rig.append(n * 20 + 1..=n * 20 + 20).await;
    }
    rig.close();
    Rig::open(dir.path()).close();
    let db = dir.path().join("alarm-1/db");
    assert_eq!(salvageable(&db), 400);
    // Behind the header of the first segment, where sled notices it first.
    change(db, |b| b[30..60].fill(0xff));
    for _ in 0..2 {
        let rig = Rig::open(dir.path());
        assert!(rig.store.head(Lane::Alarm).borrow().records < 400);
        rig.close();
        assert_eq!(salvageable(&dir.path().join("bad-1-alarm-1/db")), 400, "untouched");
        assert!(!dir.path().join("bad-2-alarm-1").exists(), "damage is found once");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Lane, u64),
    Confirm(Lane, Vec<prop::sample::Index>),
    Epoch,
    State(u8, u64),
    Forget(u8),
    Reopen,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = prop_oneof![Just(Lane::Alarm), Just(Lane::Telemetry)];
    prop_oneof![
        4 => (lane.clone(), 1_u64..8).prop_map(|(lane, n)| Step::Append(lane, n)),
        4 => (lane, prop::collection::vec(any::<prop::sample::Index>(), 1..8)).prop_map(|(lane, i)| Step::Confirm(lane, i)),
        1 => Just(Step::Epoch),
        2 => (0_u8..4, 1_u64..9).prop_map(|(alarm, n)| Step::State(alarm, n)),
        1 => (0_u8..4).prop_map(Step::Forget),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

/// What one lane should be.
#[derive(Debug, Default, Clone)]
struct LaneModel {
    /// Every record ever appended; its position is its place, from 1.
    records: Vec<Record>,
    confirmed: BTreeSet<u64>,
    /// Confirmed before the last group that is known to be durable.
    saved: BTreeSet<u64>,
}

impl LaneModel {
    fn append(&mut self, records: &[Record]) {
        self.records.extend_from_slice(records);
        self.saved = self.confirmed.clone();
    }

    fn waiting(&self) -> Vec<(u64, Record)> {
        (1..).zip(self.records.clone()).filter(|(position, _)| !self.confirmed.contains(position)).collect()
    }

    fn status(&self, epoch: &Epoch) -> LaneStatus {
        let (positions, count) = ((1..).zip(&self.records), self.records.iter().filter(|r| r.epoch == *epoch).count());
        let settled =
            positions.filter(|(_, r)| r.epoch == *epoch).take_while(|(p, _)| self.confirmed.contains(p)).count();
        LaneStatus { epoch: epoch.clone(), next: count as u64 + 1, settled: settled as u64 }
    }
}

async fn check_steps(steps: Vec<Step>) {
    let mut dir = folder();
    let mut rig = Rig::open(dir.path());
    let mut model = [LaneModel::default(), LaneModel::default()];
    let mut alarms = std::collections::BTreeMap::new();
    let mut epoch = rig.recovered.epoch.clone();
    let place = |lane: Lane| Lane::ALL.iter().position(|l| *l == lane).expect("a lane");
    for step in steps {
        match step {
            Step::Append(lane, n) => {
                let first = model[place(lane)].status(&epoch).next;
                let make = |n| if lane == Lane::Alarm { raised(&epoch, n, "a/b/c") } else { batch(&epoch, n, "1.5") };
                let records: Vec<_> = (first..first + n).map(make).collect();
                model[place(lane)].append(&records);
                if lane == Lane::Alarm {
                    rig.store.commit(Commit { records, ..Commit::default() }).await.expect("commits");
                } else {
                    rig.store.commit_telemetry(records).await.expect("queued").await.expect("durable");
                }
            }
            Step::Confirm(lane, indices) => {
                let len = model[place(lane)].records.len();
                if len > 0 {
                    let positions: Vec<u64> = indices.iter().map(|i| i.index(len) as u64 + 1).collect();
                    model[place(lane)].confirmed.extend(&positions);
                    rig.store.confirm(lane, positions).await.expect("queued");
                }
            }
            Step::Epoch => {
                epoch = Epoch::random().expect("random");
                let record = raised(&epoch, 1, "a/b/c");
                model[place(Lane::Alarm)].append(std::slice::from_ref(&record));
                model[place(Lane::Telemetry)].append(&[]);
                rig.store.commit(Commit { records: vec![record], ..Commit::default() }).await.expect("commits");
            }
            Step::State(n, occurrence) => {
                let state = state(&format!("a/b/n{n}"), occurrence);
                alarms.insert(state.last.alarm.clone(), state.clone());
                rig.store.commit(Commit { alarms: vec![state], ..Commit::default() }).await.expect("commits");
                model[place(Lane::Alarm)].append(&[]);
            }
            Step::Forget(n) => {
                let id = AlarmId::parse(&format!("a/b/n{n}")).expect("alarm");
                alarms.remove(&id);
                rig.store.commit(Commit { forgotten_alarms: vec![id], ..Commit::default() }).await.expect("commits");
                model[place(Lane::Alarm)].append(&[]);
            }
            Step::Reopen => {
                rig.close();
                rig = Rig::open(dir.path());
                for lane in &mut model {
                    lane.saved = lane.confirmed.clone();
                }
            }
            Step::Kill => {
                let killed = folder();
                copy(dir.path(), killed.path());
                rig.close();
                dir = killed;
                rig = Rig::open(dir.path());
                for lane in Lane::ALL {
                    let found: BTreeSet<_> = rig.waiting(lane).await.into_iter().map(|s| s.position).collect();
                    let model = &mut model[place(lane)];
                    let gone: BTreeSet<_> = (1..=model.records.len() as u64).filter(|p| !found.contains(p)).collect();
                    assert!(model.saved.is_subset(&gone) && gone.is_subset(&model.confirmed), "{gone:?} {model:?}");
                    model.saved = gone.clone();
                    model.confirmed = gone;
                }
                let mut found = rig.recovered.alarms.clone();
                found.sort_by_key(|state| state.last.alarm.clone());
                assert_eq!(found, alarms.values().cloned().collect::<Vec<_>>());
            }
        }
        for lane in Lane::ALL {
            let found = rig.waiting(lane).await.into_iter().map(|s| (s.position, s.record)).collect::<Vec<_>>();
            let model = &model[place(lane)];
            assert_eq!(found, model.waiting());
            let head = rig.store.head(lane).borrow().clone();
            assert_eq!(head.status, model.status(&epoch));
            assert_eq!((head.records, head.next_position), (found.len() as u64, model.records.len() as u64 + 1));
            assert_eq!(head.oldest, found.first().map(|(_, r)| (r.boot.clone(), r.recorded)));
        }
    }
    assert_eq!(rig.store.alarms().await.expect("reads"), alarms.into_values().collect::<Vec<_>>());
    rig.close();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn it_is_what_a_small_model_says_through_any_steps(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(check_steps(steps));
    }
}
