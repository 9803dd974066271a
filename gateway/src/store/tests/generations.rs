//! Generations come and go, and nobody notices but the disk.

use super::*;

const MIB: u64 = 1 << 20;

/// The folders of a chain's generations.
fn folders(root: &Path, chain: &str) -> Vec<u64> {
    let names = fs::read_dir(root).expect("folder").map(|entry| entry.expect("entry").file_name());
    let mut numbers: Vec<u64> =
        names.filter_map(|name| name.to_str()?.strip_prefix(chain)?.strip_prefix('-')?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn a_full_generation_is_sealed_and_goes_when_it_is_drained() {
    let dir = folder();
    let small = Options { generation_size: 1024 * 1024, ..options(dir.path()) };
    let rig = Rig::open_on(&small, &sync_file());
    let (alarms, mut next) = (vec![state("panel/door/door-open", 1), state("panel/temp/hot", 4)], 1);
    rig.store.commit(Commit { alarms: alarms.clone(), ..Commit::default() }).await.expect("commits");
    while folders(dir.path(), "alarm").len() < 4 {
        rig.append(next..=next + 99).await;
        next += 100;
    }
    let generations = rig.store.generations(Lane::Alarm).await.expect("answers");
    assert_eq!(generations.iter().map(|g| g.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(generations.iter().map(|g| g.sealed).collect::<Vec<_>>(), [true, true, true, false]);
    assert!(generations.windows(2).all(|pair| pair[0].end == pair[1].first));
    assert_eq!(generations.iter().map(|g| g.waiting).sum::<u64>(), next - 1);
    assert!(generations.iter().all(|g| g.disk_bytes > 0));
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), (1..next).collect::<Vec<_>>());
    assert_eq!(rig.store.alarms().await, Ok(alarms.clone()), "states move along");
    rig.close();

    let rig = Rig::open_on(&small, &sync_file());
    assert_eq!(rig.recovered.alarms, alarms);
    let waiting = rig.waiting(Lane::Alarm).await;
    assert_eq!(sequences(&waiting), (1..next).collect::<Vec<_>>());
    let head = rig.store.head(Lane::Alarm).borrow().clone();
    let size = waiting.iter().map(|stored| stored.size as u64).sum::<u64>();
    assert_eq!((head.records, head.bytes), (next - 1, size));
    // All but one of the first, and all of the second.
    let second = generations[1].end;
    rig.store.settle(Lane::Alarm, vec![(2, second - 1)]).await.expect("settles");
    assert_eq!(folders(dir.path(), "alarm"), [1, 3, 4]);
    assert_eq!(rig.store.head(Lane::Alarm).borrow().records, next - second + 1);
    rig.store.settle(Lane::Alarm, vec![(1, 1)]).await.expect("settles");
    assert_eq!(folders(dir.path(), "alarm"), [3, 4]);
    rig.close();

    let rig = Rig::open_on(&small, &sync_file());
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), (second..next).collect::<Vec<_>>());
    assert_eq!((rig.recovered.next.a, rig.status(Lane::Alarm)), (next, (next, second - 1)));
    rig.close();
}

#[tokio::test]
async fn telemetry_that_goes_out_as_it_comes_lies_in_small_generations_and_a_backlog_in_large_ones() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    let (mut next, mut written) = (1, 0);
    // Delivered at once, until three small generations were full.
    while written < 3 * MIB {
        rig.append_telemetry(next..=next + 499).await;
        written += rig.store.head(Lane::Telemetry).borrow().bytes;
        rig.store.settle(Lane::Telemetry, vec![(1, next + 499)]).await.expect("settles");
        next += 500;
    }
    let generations = rig.store.generations(Lane::Telemetry).await.expect("listed");
    let last = generations.last().expect("one is open").number;
    assert!(last >= 3, "{last}");
    assert!(generations.len() <= 2, "those before are gone: {generations:?}");
    // Nobody takes it any more.
    let from = next;
    while rig.store.head(Lane::Telemetry).borrow().bytes < 6 * MIB {
        rig.append_telemetry(next..=next + 1_999).await;
        next += 2_000;
    }
    let generations = rig.store.generations(Lane::Telemetry).await.expect("listed");
    assert!(generations.last().expect("one is open").number <= last + 2, "{generations:?}");
    assert_eq!(sequences(&rig.waiting(Lane::Telemetry).await), (from..next).collect::<Vec<_>>());
    rig.close();
}

#[tokio::test]
async fn a_generation_can_be_sealed_at_any_time_but_not_without_a_record() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.store.rotate(Lane::Telemetry).await.expect("nothing to do");
    rig.append_telemetry(1..=3).await;
    rig.store.rotate(Lane::Telemetry).await.expect("rotates");
    rig.store.rotate(Lane::Telemetry).await.expect("nothing to do");
    rig.append_telemetry(4..=5).await;
    assert_eq!(folders(dir.path(), "telemetry"), [1, 2]);
    assert_eq!(sequences(&rig.waiting(Lane::Telemetry).await), [1, 2, 3, 4, 5]);
    rig.store.confirm(Lane::Telemetry, vec![1, 2, 3]).await.expect("queued");
    rig.store.settle(Lane::Telemetry, vec![(4, 4)]).await.expect("settles");
    assert_eq!(folders(dir.path(), "telemetry"), [2]);
    rig.close();
}

#[tokio::test]
async fn a_compacted_generation_holds_only_what_waits() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    for n in 0..50 {
        rig.append(n * 10 + 1..=n * 10 + 10).await;
    }
    rig.store.rotate(Lane::Alarm).await.expect("rotates");
    let kept = [7, 300, 301];
    rig.store.settle(Lane::Alarm, vec![(1, 6), (8, 299), (302, 500)]).await.expect("settles");
    let before = rig.store.generations(Lane::Alarm).await.expect("answers")[0].disk_bytes;
    rig.store.compact(Lane::Alarm, 1).await.expect("compacts");
    let generations = rig.store.generations(Lane::Alarm).await.expect("answers");
    assert_eq!((generations[0].first, generations[0].end, generations[0].waiting), (7, 302, 3));
    assert!(generations[0].disk_bytes <= 8192 && before > 100_000, "{before} bytes before: {generations:?}");
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), kept);
    rig.store.compact(Lane::Alarm, 99).await.expect("there is no such generation");
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), kept);
    assert_eq!(rig.store.lost(Lane::Alarm).await, Ok(vec![]));
    rig.close();
}

#[tokio::test]
async fn many_starts_change_nothing() {
    let dir = folder();
    for n in 1..=5 {
        let rig = Rig::open(dir.path());
        assert_eq!(rig.recovered.next, Next { a: n, t: n });
        rig.append(n..=n).await;
        rig.append_telemetry(n..=n).await;
        rig.close();
        Rig::open(dir.path()).close();
    }
    assert_eq!((folders(dir.path(), "alarm"), folders(dir.path(), "telemetry")), (vec![1], vec![1]));
    assert!(folders(dir.path(), "bad-1-alarm").is_empty());
}

#[tokio::test]
async fn a_generation_that_was_drained_before_it_was_sealed_goes_with_the_next_commit() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=3).await;
    rig.store.settle(Lane::Alarm, vec![(1, 3)]).await.expect("settles");
    rig.store.rotate(Lane::Alarm).await.expect("rotates");
    rig.store.settle(Lane::Alarm, vec![]).await.expect("nothing to settle");
    assert_eq!(folders(dir.path(), "alarm"), [2]);
    rig.close();
}

#[tokio::test]
async fn what_is_settled_is_durable_before_a_compaction_drops_it() {
    let (dir, (seen, sizes)) = (folder(), mpsc::channel());
    let sealed = dir.path().join("alarm-1/db");
    let disk: SyncFile = Arc::new(move |_, _| {
        let _ = seen.send(sealed.metadata().map_or(0, |metadata| metadata.len()));
        Ok(())
    });
    let rig = Rig::open_on(&options(dir.path()), &disk);
    rig.append(1..=30).await;
    rig.store.rotate(Lane::Alarm).await.expect("rotates");
    let before = sizes.try_iter().last().expect("synced");
    rig.store.confirm(Lane::Alarm, (1..=29).collect()).await.expect("queued");
    rig.store.compact(Lane::Alarm, 1).await.expect("compacts");
    let (first, last) = (sizes.recv().expect("synced"), sizes.try_iter().last().expect("synced"));
    // sled may write on a little while it closes a file.
    assert!(first >= before && last < before, "{first} then {last} bytes, {before} before");
    rig.close();
}

#[tokio::test]
async fn a_generation_that_was_never_finished_is_not_missed() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=3).await;
    rig.close();
    // The power went while the next one was made: sled has begun it, and no line is in it.
    drop(sled::Config::new().path(dir.path().join("alarm-2")).open().expect("sled"));
    let rig = Rig::open(dir.path());
    assert_eq!((rig.recovered.started.as_ref(), rig.recovered.next.a), (None, 4));
    assert_eq!(folders(dir.path(), "alarm"), [1]);
    rig.append(4..=4).await;
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [1, 2, 3, 4]);
    rig.close();
}

#[tokio::test]
async fn a_new_generation_takes_little_more_than_the_states_in_it() {
    for count in [0, 1, 300, 3_000] {
        let dir = folder();
        let rig = Rig::open(dir.path());
        let alarms: Vec<_> = (0..count).map(|n| state(&format!("panel/p{n}/hot"), 1)).collect();
        let states: usize = alarms.iter().map(|state| serde_json::to_vec(state).expect("JSON").len()).sum();
        rig.store.commit(Commit { alarms, ..Commit::default() }).await.expect("commits");
        rig.append(1..=3).await;
        rig.store.rotate(Lane::Alarm).await.expect("rotates");
        let generations = rig.store.generations(Lane::Alarm).await.expect("answers");
        // What `new_generation_size` allows for.
        let (taken, allowed) = (generations[1].disk_bytes, 64 * 1024 + 4 * states as u64);
        assert!(taken <= allowed, "{count} states of {states} bytes: {taken} bytes, {allowed} allowed");
        rig.close();
    }
}
