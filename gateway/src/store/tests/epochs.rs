//! Numbers begin anew only where they must, and everyone is told.

use super::*;
use crate::record::{Body, StreamEvent};

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
