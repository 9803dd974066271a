#![expect(clippy::disallowed_methods, reason = "tests run the committers themselves")]
//! The whole store on a real folder: what is acknowledged comes back, whatever happened in between.

mod damage;
mod damage_table;
mod epochs;
mod full;
mod generations;
mod memory;
mod model;

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

use tempfile::TempDir;

use super::{
    durable::{SyncFile, sync_file},
    envelope::Kind,
    open::open_on,
    settled::RANGES_MAX,
    testing::{batch, epoch, now, raised, state},
    *,
};
use crate::{
    command::Outcome,
    metrics::Metrics,
    record::{Body, RECORD_SIZE_MAX},
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
    let generation_size = GENERATION_SIZE;
    Options {
        path: path.into(),
        machine: "machine-1".into(),
        boot: BootId::new("boot-1"),
        generation_size,
        memory: None,
    }
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
        Self::run(open_on(options, &metrics, disk).expect("opens"), metrics)
    }

    fn run((store, recovered, committers): Opened, metrics: Metrics) -> Self {
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
    let mut entries: Vec<_> = fs::read_dir(from).expect("folder").map(|entry| entry.expect("entry")).collect();
    // The marks first: what a kill leaves never lacks what the mark knows, even if a commit is under way.
    entries.sort_by_key(|entry| entry.path().is_dir());
    for entry in entries {
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
        ..Commit::default()
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
        assert_eq!(rig.store.alarms_of(vec![id.clone()]).await, Ok(vec![alarms[0].clone()]));
        let forgotten = Commit { forgotten_alarms: vec![id.clone()], ..Commit::default() };
        rig.store.commit(forgotten).await.expect("commits");
        let (of, all) = (rig.store.alarms_of(vec![id]).await, rig.store.alarms().await);
        assert_eq!((of, all), (Ok(Vec::new()), Ok(vec![alarms[1].clone()])));
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

/// A disk that keeps only what was synced: at each of the first `syncs` the folder is copied.
fn disk_that_keeps_what_was_synced(image: &Path, syncs: usize) -> SyncFile {
    let (image, count) = (image.to_owned(), AtomicUsize::new(0));
    Arc::new(move |folder, _| {
        if count.fetch_add(1, Ordering::SeqCst) < syncs {
            copy(folder, &image.join(folder.file_name().expect("a name")));
        }
        Ok(())
    })
}

/// How many of the records acknowledged are there after a power cut behind each; on a disk that is synced so often.
async fn kept_after_power_cuts(syncs: usize) -> Vec<(usize, usize)> {
    let (dir, image) = (folder(), folder());
    let rig = Rig::open_on(&options(dir.path()), &disk_that_keeps_what_was_synced(image.path(), syncs));
    let mut kept = Vec::new();
    for n in 1..=5 {
        rig.append(n..=n).await;
        rig.append_telemetry(n..=n).await;
        let cut = folder();
        copy(image.path(), cut.path());
        let after = Rig::open(cut.path());
        kept.push((after.waiting(Lane::Alarm).await.len(), after.waiting(Lane::Telemetry).await.len()));
        after.close();
    }
    rig.close();
    kept
}

#[tokio::test]
async fn after_a_power_cut_everything_acknowledged_is_there() {
    assert_eq!(kept_after_power_cuts(usize::MAX).await, [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]);
}

#[tokio::test]
async fn a_disk_that_only_pretends_to_sync_loses_it() {
    // Opening takes one sync a chain.
    assert_eq!(kept_after_power_cuts(4).await, [(1, 1); 5]);
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
    assert!(matches!(&error, StoreError::Write { chain: "alarm", reason } if reason.contains("the card is gone")));
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
    let before = syncs(&metrics, "alarm");
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
    assert_eq!(syncs(&metrics, "alarm") - before, 4, "200 commits in groups of 64");
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
    record.body = Body::Alarm(Box::new(large.last.clone()));
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
            let Body::Alarm(transition) = &mut record.body else { unreachable!("an alarm") };
            transition.comment = Some("x".repeat(3_300).into());
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
        let format = envelope::Envelope { kind: Kind::Word, commit: 99, key: "format", payload: b"3" };
        let next = layout::Put::word(layout::word::NEXT, &layout::NextMeta { next: 1, lines: 2, after: 98 });
        db.insert("mformat", format.to_bytes()).expect("inserts");
        db.insert(next.database_key(), next.line(99)).expect("inserts");
        db.insert("mfuture", "kept").expect("inserts");
        drop(db);
        for _ in 0..2 {
            let refused = refusal(dir.path());
            assert!(matches!(refused, OpenError::Format { found: 3, .. }), "{refused}");
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
