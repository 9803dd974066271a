//! Numbers begin anew only where they must, and everyone is told.

use super::*;
use crate::{
    machine::Machine,
    record::{Body, StreamEvent},
};

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
    record.body = Body::Stream(started);
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
async fn numbers_are_in_doubt_from_an_open_on_until_somebody_agrees() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    let of = rig.recovered.epoch.clone();
    assert_eq!(rig.recovered.unproven, [], "nobody else can know an epoch that begins now");
    rig.append(1..=3).await;
    rig.append_telemetry(1..=5).await;
    assert_eq!(rig.store.next_session().await, Ok(1));
    rig.close();
    let doubt = [Unproven { epoch: of.clone(), from: Next { a: 4, t: 6 }, session: 1 }];
    for more in [4..=4, 5..=5] {
        let rig = Rig::open(dir.path());
        assert_eq!((&rig.recovered.unproven[..], &rig.store.unproven().borrow()[..]), (&doubt[..], &doubt[..]));
        rig.append(more).await;
        rig.close();
    }
    let rig = Rig::open(dir.path());
    let agreed = Commit { unproven: Some(vec![]), ..Commit::default() };
    rig.store.commit(agreed).await.expect("commits");
    assert_eq!(rig.store.unproven().borrow()[..], []);
    rig.close();
    let other = Options { machine: "machine-2".into(), ..options(dir.path()) };
    let rig = Rig::open_on(&other, &sync_file());
    assert_eq!(rig.recovered.unproven, [], "that they were agreed to is durable");
    rig.close();
    let rig = Rig::open_on(&other, &sync_file());
    let undeclared = Unproven { epoch: rig.recovered.epoch.clone(), from: Next { a: 1, t: 1 }, session: 1 };
    assert_eq!(
        rig.recovered.unproven,
        std::slice::from_ref(&undeclared),
        "a copy may have been made before the first record"
    );
    rig.close();
    let rig = Rig::open(dir.path());
    assert_ne!(rig.recovered.epoch, undeclared.epoch);
    assert_eq!(rig.recovered.unproven, [undeclared], "of a former epoch it stands until its records are numbered anew");
    rig.close();
}

#[tokio::test]
async fn a_doubt_and_the_machine_move_along_into_new_generations_and_out_of_damaged_ones() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=3).await;
    rig.close();
    let rig = Rig::open(dir.path());
    let doubt = rig.recovered.unproven.clone();
    assert_eq!(doubt.iter().map(|of| of.from).collect::<Vec<_>>(), [Next { a: 4, t: 1 }]);
    rig.append(4..=6).await;
    rig.store.rotate(Lane::Alarm).await.expect("rotates");
    rig.store.settle(Lane::Alarm, vec![(1, 6)]).await.expect("settles");
    assert!(!dir.path().join("alarm-1").exists(), "what was said there is gone");
    rig.append(7..=9).await;
    rig.close();
    let db = dir.path().join("alarm-2/db");
    let mut bytes = fs::read(&db).expect("a generation");
    // Behind the header of the first segment, where sled notices it first.
    bytes[30..60].fill(0xff);
    fs::write(&db, bytes).expect("writes");
    for _ in 0..2 {
        let rig = Rig::open(dir.path());
        assert_eq!((&rig.recovered.unproven, rig.recovered.next.a), (&doubt, 10), "no line was hurt");
        rig.close();
    }
    assert!(dir.path().join("bad-1-alarm-2").exists());
    let other = Options { machine: "machine-2".into(), ..options(dir.path()) };
    let rig = Rig::open_on(&other, &sync_file());
    assert_eq!(rig.recovered.started.as_ref().map(|s| s.reason), Some(StartReason::OtherMachine));
    assert_eq!(rig.recovered.unproven, doubt);
    rig.close();
}

#[tokio::test]
async fn a_record_and_the_one_it_replaces_change_places_in_one_write() {
    let (dir, killed) = (folder(), folder());
    let rig = Rig::open(dir.path());
    rig.append(1..=3).await;
    rig.append_telemetry(1..=3).await;
    let epoch = rig.recovered.epoch.clone();
    let commit = Commit {
        records: vec![raised(&epoch, 4, "panel/door/door-open"), raised(&epoch, 5, "panel/door/door-open")],
        replaced: vec![2, 3],
        ..Commit::default()
    };
    rig.store.commit(commit).await.expect("commits");
    rig.store.replace_telemetry(vec![batch(&epoch, 4, "1.5")], vec![1]).await.expect("commits");
    copy(dir.path(), killed.path());
    rig.close();
    for path in [dir.path(), killed.path()] {
        let rig = Rig::open(path);
        assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [1, 4, 5]);
        assert_eq!(sequences(&rig.waiting(Lane::Telemetry).await), [2, 3, 4]);
        rig.close();
    }
}

#[tokio::test]
async fn the_same_machine_seen_with_less_goes_on_and_another_board_does_not() {
    let parsed = |json: &str| serde_json::from_str::<Machine>(json).expect("a machine");
    let dir = folder();
    let open = |json: &str| {
        let machine = parsed(json);
        Rig::open_on(&Options { machine, ..options(dir.path()) }, &sync_file())
    };
    let rig = open(r#"{"machine-id":"aa","device-tree-serial":"b1"}"#);
    let epoch = rig.recovered.epoch.clone();
    rig.append(1..=1).await;
    rig.close();
    for same in [r#"{"machine-id":"aa"}"#, "{}", r#"{"machine-id":"aa","device-tree-serial":"b1","cpu-serial":"b1"}"#] {
        let rig = open(same);
        assert_eq!(rig.recovered.epoch, epoch, "{same}");
        rig.close();
    }
    let rig = open(r#"{"machine-id":"aa","device-tree-serial":"b2"}"#);
    assert_eq!(rig.recovered.started.as_ref().map(|s| s.reason), Some(StartReason::OtherMachine));
    rig.close();
}

#[tokio::test]
async fn what_is_numbered_anew_does_not_come_back_however_many_islands_lie_below() {
    let (dir, killed, again) = (folder(), folder(), folder());
    let rig = Rig::open(dir.path());
    let below = 2 * RANGES_MAX as u64 + 20;
    let islands = || (1..=below / 2).map(|n| (2 * n, 2 * n)).collect::<Vec<_>>();
    rig.append(1..=below + 4).await;
    rig.store.settle(Lane::Alarm, islands()).await.expect("settles");
    let (old, epoch) = ([below + 2, below + 3, below + 4], rig.recovered.epoch.clone());
    let records = (below + 5..=below + 7).map(|n| raised(&epoch, n, "panel/door/door-open")).collect();
    rig.store.commit(Commit { records, replaced: old.into(), ..Commit::default() }).await.expect("commits");
    copy(dir.path(), killed.path());
    rig.close();

    let rig = Rig::open(killed.path());
    let waiting = |found: &[Stored]| old.iter().filter(|n| sequences(found).contains(n)).count();
    assert_eq!(waiting(&rig.waiting(Lane::Alarm).await), 0, "each would get a second number");
    // What came back of the islands goes once more.
    rig.store.settle(Lane::Alarm, islands()).await.expect("settles");
    rig.append(below + 8..=below + 8).await;
    copy(killed.path(), again.path());
    rig.close();
    for path in [killed.path(), again.path()] {
        let rig = Rig::open(path);
        assert_eq!(waiting(&rig.waiting(Lane::Alarm).await), 0);
        rig.close();
    }
}
