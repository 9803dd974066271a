//! The store in memory: it stands in for a folder that cannot be used, and everything in it comes to that folder later.

use super::*;
use crate::{alarm::Told, record::StartReason};

/// A folder and its store in memory, which lies beside it here.
struct Pair {
    root: TempDir,
    memory: TempDir,
}

impl Pair {
    fn new() -> Self {
        let pair = Self { root: folder(), memory: folder() };
        fs::remove_dir(pair.memory.path()).expect("free");
        pair
    }

    fn options(&self) -> Options {
        Options { memory: Some(self.memory.path().into()), ..options(self.root.path()) }
    }

    fn disk(&self) -> Rig {
        Rig::open_on(&self.options(), &sync_file())
    }

    fn memory(&self) -> Rig {
        let metrics = Metrics::new();
        Rig::run(open_in_memory(&self.options(), self.memory.path(), &metrics).expect("opens"), metrics)
    }

    /// Copies of files and folders of the outbox whose names begin so.
    fn keep(&self, names: &str) -> TempDir {
        let kept = folder();
        copy(self.root.path(), kept.path(), names);
        kept
    }

    /// Puts them back as they were.
    fn put_back(&self, kept: &TempDir, names: &str) {
        for entry in fs::read_dir(self.root.path()).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(names)) {
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removed");
            }
        }
        copy(kept.path(), self.root.path(), names);
    }
}

fn copy(from: &Path, to: &Path, names: &str) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let (path, name) = (entry.path(), entry.file_name());
        if !name.to_string_lossy().starts_with(names) {
        } else if path.is_dir() {
            fs::create_dir(to.join(&name)).expect("made");
            copy(&path, &to.join(&name), "");
        } else {
            fs::copy(&path, to.join(&name)).expect("copied");
        }
    }
}

/// Epoch and number of everything that waits.
async fn waiting(rig: &Rig, lane: Lane) -> Vec<(Epoch, u64)> {
    rig.waiting(lane).await.into_iter().map(|stored| (stored.record.epoch, stored.record.sequence)).collect()
}

fn of(epoch: &Epoch, sequences: impl IntoIterator<Item = u64>) -> Vec<(Epoch, u64)> {
    sequences.into_iter().map(|sequence| (epoch.clone(), sequence)).collect()
}

async fn standing(rig: &Rig, alarm: &str) {
    let alarms = vec![state(alarm, 1)];
    rig.store.commit(Commit { alarms, ..Commit::default() }).await.expect("commits");
}

fn alarms(rig: &Rig) -> BTreeSet<String> {
    rig.recovered.alarms.iter().map(|state| state.last.alarm.to_string()).collect()
}

#[tokio::test]
async fn it_begins_with_the_states_of_the_other_and_in_an_epoch_of_its_own() {
    let pair = Pair::new();
    let disk = pair.disk();
    disk.append(1..=3).await;
    let epoch = disk.recovered.epoch.clone();
    let told = |sequence| Told { epoch: epoch.clone(), sequence, boot: BootId::new("boot-1"), recorded: now(1) };
    let alarms_told = [("panel/door/open", 1), ("panel/lamp/broken", 2), ("pole/float/flood", 3)]
        .map(|(alarm, sequence)| AlarmState { told: Some(told(sequence)), ..state(alarm, 1) });
    disk.store.commit(Commit { alarms: alarms_told.into(), ..Commit::default() }).await.expect("commits");
    disk.store.settle(Lane::Alarm, vec![(1, 1), (3, 3)]).await.expect("settles");
    assert_eq!(disk.store.next_session().await, Ok(1));
    disk.close();
    let memory = pair.memory();
    assert_eq!(alarms(&memory).len(), 3);
    assert_eq!(memory.recovered.untold, [AlarmId::parse("panel/lamp/broken").expect("a name")]);
    assert_ne!(memory.recovered.epoch, epoch);
    let started = Started { reason: StartReason::InMemory, replaces: None };
    assert_eq!(memory.recovered.started, Some(started));
    assert_eq!((memory.recovered.next, memory.recovered.epoch_replaced), (Next { a: 1, t: 1 }, false));
    assert_eq!(memory.store.next_session().await, Ok(2));
    assert_eq!(memory.store.medium(), Medium::Memory);
    memory.append(1..=2).await;
    let epoch = memory.recovered.epoch.clone();
    memory.close();
    // The daemon fell and was started again.
    let memory = pair.memory();
    assert_eq!((&memory.recovered.epoch, memory.recovered.next.a), (&epoch, 3));
    assert_eq!(memory.recovered.untold, [], "the first record was stored with them");
    memory.close();
}

#[tokio::test]
async fn what_waits_in_it_is_taken_in_under_its_own_numbers() {
    let pair = Pair::new();
    let disk = pair.disk();
    let before = disk.recovered.epoch.clone();
    disk.append(1..=9).await;
    disk.append_telemetry(1..=5).await;
    disk.store.settle(Lane::Alarm, vec![(1, 4)]).await.expect("settles");
    standing(&disk, "panel/door/open").await;
    standing(&disk, "panel/lamp/broken").await;
    disk.close();

    let memory = pair.memory();
    let epoch = memory.recovered.epoch.clone();
    memory.append(1..=7).await;
    memory.append_telemetry(1..=300).await;
    memory.store.settle(Lane::Alarm, vec![(1, 3), (5, 5)]).await.expect("settles");
    memory.store.settle(Lane::Telemetry, vec![(1, 300)]).await.expect("settles");
    let forgotten = vec![AlarmId::parse("panel/lamp/broken").expect("a name")];
    memory.store.commit(Commit { forgotten_alarms: forgotten, ..Commit::default() }).await.expect("commits");
    standing(&memory, "pole/float/flood").await;
    assert_eq!(memory.store.next_session().await, Ok(1));
    memory.close();

    // Once as it is taken in, and once more from the disk alone.
    let mut next = 8;
    for _ in 0..2 {
        let disk = pair.disk();
        assert!(!pair.memory.path().exists());
        assert_eq!((&disk.recovered.epoch, disk.store.medium()), (&epoch, Medium::Disk));
        assert_eq!(disk.recovered.started, None);
        assert_eq!(disk.recovered.next, Next { a: next, t: 301 });
        assert_eq!(alarms(&disk), ["panel/door/open".to_owned(), "pole/float/flood".to_owned()].into());
        assert_eq!(disk.status(Lane::Alarm), (next, 3));
        assert_eq!(disk.status(Lane::Telemetry), (301, 300));
        let expected = [of(&before, 5..=9), of(&epoch, [4, 6]), of(&epoch, 7..next)].concat();
        assert_eq!(waiting(&disk, Lane::Alarm).await, expected);
        assert_eq!(waiting(&disk, Lane::Telemetry).await, of(&before, 1..=5));
        assert_eq!(disk.store.lost(Lane::Alarm).await, Ok(vec![]));
        disk.append(next..=next).await;
        next += 1;
        disk.close();
    }
    let disk = pair.disk();
    assert_eq!(disk.store.next_session().await, Ok(2));
    // Delivered, the generations go.
    let end = disk.store.head(Lane::Alarm).borrow().next_position;
    disk.store.settle(Lane::Alarm, vec![(1, end - 1)]).await.expect("settles");
    disk.append(next..=next).await;
    assert_eq!(disk.store.generations(Lane::Alarm).await.expect("listed").len(), 1);
    assert_eq!(waiting(&disk, Lane::Alarm).await, of(&epoch, [next]));
    disk.close();
}

#[tokio::test]
async fn a_crash_while_it_is_taken_in_changes_nothing() {
    let pair = Pair::new();
    let disk = pair.disk();
    let before = disk.recovered.epoch.clone();
    disk.append(1..=3).await;
    disk.append_telemetry(1..=3).await;
    disk.close();
    let memory = pair.memory();
    let epoch = memory.recovered.epoch.clone();
    memory.append(1..=4).await;
    memory.append_telemetry(1..=4).await;
    memory.close();
    let (alarm_before, in_memory) = (pair.keep("alarm"), folder());
    copy(pair.memory.path(), in_memory.path(), "");
    pair.disk().close();
    // The telemetry chain has taken it in, the alarm chain has not, and memory still holds it.
    pair.put_back(&alarm_before, "alarm");
    fs::create_dir(pair.memory.path()).expect("made");
    copy(in_memory.path(), pair.memory.path(), "");
    let all = |n: u64| [of(&before, 1..=3), of(&epoch, 1..=n)].concat();
    let half = (pair.keep(""), pair.memory.path());
    let disk = pair.disk();
    for lane in Lane::ALL {
        assert_eq!(waiting(&disk, lane).await, all(4));
    }
    assert_eq!((&disk.recovered.epoch, disk.recovered.next), (&epoch, Next { a: 5, t: 5 }));
    disk.close();

    // The same, but the folder could not be used again at once, and the daemon went on in memory.
    pair.put_back(&half.0, "");
    fs::create_dir(half.1).expect("made");
    copy(in_memory.path(), half.1, "");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(half.1, mode).expect("private");
    let memory = pair.memory();
    memory.append(5..=6).await;
    memory.append_telemetry(5..=6).await;
    memory.store.settle(Lane::Telemetry, vec![(1, 2)]).await.expect("settles");
    memory.close();
    let disk = pair.disk();
    assert_eq!(waiting(&disk, Lane::Alarm).await, all(6));
    assert_eq!(waiting(&disk, Lane::Telemetry).await, [of(&before, 1..=3), of(&epoch, 3..=6)].concat());
    assert_eq!(disk.recovered.next, Next { a: 7, t: 7 });
    disk.append(7..=7).await;
    disk.close();
}

#[tokio::test]
async fn a_new_card_goes_on_where_memory_was() {
    let pair = Pair::new();
    let memory = pair.memory();
    let epoch = memory.recovered.epoch.clone();
    memory.append(1..=3).await;
    standing(&memory, "panel/door/open").await;
    memory.close();
    let disk = pair.disk();
    assert_eq!((&disk.recovered.epoch, disk.recovered.next), (&epoch, Next { a: 4, t: 1 }));
    assert_eq!(waiting(&disk, Lane::Alarm).await, of(&epoch, 1..=3));
    assert_eq!(alarms(&disk).len(), 1);
    disk.append_telemetry(1..=1).await;
    disk.close();
}

#[tokio::test]
async fn what_is_lost_in_memory_stays_to_be_declared() {
    let pair = Pair::new();
    pair.disk().close();
    let memory = pair.memory();
    let epoch = memory.recovered.epoch.clone();
    memory.append(1..=3).await;
    memory.store.rotate(Lane::Alarm).await.expect("rotates");
    memory.append(4..=5).await;
    memory.close();
    fs::remove_dir_all(pair.memory.path().join("alarm-1")).expect("a finger slips");
    let disk = pair.disk();
    assert_eq!(waiting(&disk, Lane::Alarm).await, of(&epoch, 4..=5));
    let lost = disk.store.lost(Lane::Alarm).await.expect("listed");
    assert_eq!(lost.len(), 1);
    assert_eq!((&lost[0].epoch, &lost[0].ranges), (&epoch, &vec![(1, 3)]));
    disk.close();
}

#[tokio::test]
async fn nothing_in_it_is_safe_before_it_is_delivered() {
    let pair = Pair::new();
    let (disk, memory) = (pair.disk(), pair.memory());
    for rig in [&disk, &memory] {
        rig.append(1..=2).await;
        rig.append_telemetry(1..=1).await;
    }
    disk.store.safe().await;
    let mut safe = Box::pin(memory.store.safe());
    let confirms = [(Lane::Alarm, 1), (Lane::Telemetry, 1), (Lane::Alarm, 2)];
    for (lane, position) in confirms {
        assert_eq!(futures_util::poll!(&mut safe), Poll::Pending, "{lane:?} {position}");
        memory.store.settle(lane, vec![(position, position)]).await.expect("settles");
    }
    tokio::time::timeout(DEADLINE, safe).await.expect("delivered");
    disk.close();
    memory.close();
}

#[test]
fn a_folder_that_others_could_change_is_not_used() {
    let pair = Pair::new();
    fs::create_dir(pair.memory.path()).expect("made");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o770);
    fs::set_permissions(pair.memory.path(), mode).expect("ours");
    let refused = open_in_memory(&pair.options(), pair.memory.path(), &Metrics::new()).map(|_| ());
    assert!(matches!(refused, Err(OpenError::Io { .. })), "{refused:?}");
}
