//! A full disk: what is acknowledged is there, and the chain goes on when there is room.

use std::sync::atomic::AtomicBool;

use super::*;

/// A disk that says it is full as long as it is told to.
fn disk_that_fills(is_full: &Arc<AtomicBool>) -> SyncFile {
    let is_full = is_full.clone();
    Arc::new(
        move |_, _| {
            if is_full.load(Ordering::SeqCst) { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        },
    )
}

async fn until(space: &mut watch::Receiver<Space>, wanted: Space) {
    let seen = tokio::time::timeout(DEADLINE, space.wait_for(|space| *space == wanted)).await;
    assert!(seen.expect("in time").is_ok());
}

#[tokio::test]
async fn the_room_that_was_kept_lets_both_chains_go_on() {
    let (dir, is_full) = (folder(), Arc::new(AtomicBool::new(false)));
    // Full once for each chain: the second write has room.
    let (full, met) = (is_full.clone(), Arc::new(AtomicUsize::new(0)));
    let disk: SyncFile = Arc::new(move |folder, _| {
        let bit = if folder.to_string_lossy().contains("alarm-") { 1 } else { 2 };
        let first = full.load(Ordering::SeqCst) && met.fetch_or(bit, Ordering::SeqCst) & bit == 0;
        if first { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    let rig = Rig::open_on(&options(dir.path()), &disk);
    let mut space = rig.store.space();
    assert_eq!(*space.borrow(), Space::Enough);
    rig.append(1..=3).await;
    rig.append_telemetry(1..=3).await;
    rig.store.confirm(Lane::Alarm, vec![1]).await.expect("queued");
    is_full.store(true, Ordering::SeqCst);
    rig.append(4..=6).await;
    rig.append_telemetry(4..=6).await;
    until(&mut space, Space::Tight).await;
    assert!(!dir.path().join("ballast").exists());
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [2, 3, 4, 5, 6], "what was confirmed stays so");
    assert_eq!(sequences(&rig.waiting(Lane::Telemetry).await), [1, 2, 3, 4, 5, 6]);
    rig.append(7..=7).await;
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [2, 3, 4, 5, 6, 7]);
    assert_eq!(*rig.store.space().borrow(), Space::Enough, "there is plenty of room");
    rig.close();
}

#[tokio::test]
async fn without_any_room_a_commit_waits_and_then_is_there_once() {
    let (dir, is_full) = (folder(), Arc::default());
    let rig = Rig::open_on(&options(dir.path()), &disk_that_fills(&is_full));
    let mut space = rig.store.space();
    rig.append(1..=2).await;
    is_full.store(true, Ordering::SeqCst);
    {
        let waits = rig.append(3..=4);
        tokio::pin!(waits);
        tokio::select! {
            () = &mut waits => panic!("there is no room"),
            () = until(&mut space, Space::None) => {}
        }
        assert!(rig.store.waits_for_room());
        assert_eq!(rig.store.head(Lane::Alarm).borrow().next_position, 3, "what is not durable is not shown");
        is_full.store(false, Ordering::SeqCst);
        waits.await;
    }
    until(&mut space, Space::Tight).await;
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [1, 2, 3, 4]);
    rig.close();
}

#[tokio::test]
async fn what_a_record_replaces_waits_for_room_with_it() {
    let (dir, killed, is_full) = (folder(), folder(), Arc::default());
    let rig = Rig::open_on(&options(dir.path()), &disk_that_fills(&is_full));
    let mut space = rig.store.space();
    rig.append(1..=3).await;
    let epoch = rig.recovered.epoch.clone();
    is_full.store(true, Ordering::SeqCst);
    {
        let records = vec![raised(&epoch, 4, "panel/door/door-open"), raised(&epoch, 5, "panel/door/door-open")];
        let waits = rig.store.commit(Commit { records, replaced: vec![2, 3], ..Commit::default() });
        tokio::pin!(waits);
        tokio::select! {
            done = &mut waits => panic!("there is no room: {done:?}"),
            () = until(&mut space, Space::None) => {}
        }
        assert_eq!(rig.store.head(Lane::Alarm).borrow().records, 3, "what is not durable is not shown");
        copy(dir.path(), killed.path());
        is_full.store(false, Ordering::SeqCst);
        waits.await.expect("commits");
    }
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [1, 4, 5]);
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [1, 4, 5]);
    rig.close();
    let rig = Rig::open(killed.path());
    let found = sequences(&rig.waiting(Lane::Alarm).await);
    assert!(found == [1, 2, 3] || found == [1, 4, 5], "{found:?}");
    rig.close();
}

#[tokio::test]
async fn a_disk_that_is_full_when_a_generation_begins_gets_nothing_twice() {
    let dir = folder();
    let (met, full_once) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (begun, is_full) = (met.clone(), full_once.clone());
    let disk: SyncFile = Arc::new(move |folder, _| {
        let now = folder.ends_with("alarm-2") && is_full.load(Ordering::SeqCst) && !begun.swap(true, Ordering::SeqCst);
        if now { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    let small = Options { generation_size: 1024 * 1024, ..options(dir.path()) };
    let rig = Rig::open_on(&small, &disk);
    full_once.store(true, Ordering::SeqCst);
    let mut next = 1;
    while !met.load(Ordering::SeqCst) {
        rig.append(next..=next + 99).await;
        next += 100;
    }
    rig.append(next..=next).await;
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), (1..=next).collect::<Vec<_>>());
    rig.close();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_room() {
    let (dir, is_full) = (folder(), Arc::default());
    let rig = Rig::open_on(&options(dir.path()), &disk_that_fills(&is_full));
    rig.append(1..=1).await;
    is_full.store(true, Ordering::SeqCst);
    rig.store.confirm(Lane::Alarm, vec![1]).await.expect("queued");
    let mut space = rig.store.space();
    until(&mut space, Space::None).await;
    drop(rig.store);
    for thread in rig.threads {
        drop(thread.join().expect("ends, and does not panic"));
    }
    let rig = Rig::open(dir.path());
    assert_eq!(rig.store.head(Lane::Alarm).borrow().next_position, 2);
    rig.close();
}

#[tokio::test]
async fn a_start_on_a_full_disk_uses_the_room_that_was_kept() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=2).await;
    rig.close();
    let asked = AtomicUsize::new(0);
    let disk: SyncFile = Arc::new(move |_, _| match asked.fetch_add(1, Ordering::SeqCst) {
        0 => Err(std::io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    });
    let rig = Rig::open_on(&options(dir.path()), &disk);
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [1, 2]);
    rig.close();
}
