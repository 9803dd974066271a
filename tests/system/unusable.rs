//! The outbox cannot be used: the card is dead or read-only, its folder is somebody else's or a file. Alarms travel from
//! memory then, loudly, nobody is told that memory is stable storage, and the card gets everything when it is well again.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use serde_json::json;

use crate::support::{
    card::{Card, Disk, on_cards},
    island::{Island, Uplink},
    load::dice,
    mqtt::Retain,
    until,
    witnesses::Witnesses,
};

const DISK_MIB: u64 = 64;
const MAX_SIZE: &str = "32MiB";
/// Messages confirmed between two looks: far more than what is queued anywhere.
const SOME: u64 = 100;
/// That an epoch began and that it is in memory, and of the six cameras, which have one message under way each, some.
const HEARD: f64 = 5.0;

const IN_MEMORY: &str = "gardu_outbox_in_memory";
const WAITING: &str = "gardu_outbox_records{lane=\"a\"}";
const ALARM: &str = "gateway/outbox-unusable";
/// Something to be stored.
const TEST: &str = r#"{"id":"before-the-end","command":"test","severity":"high","by":"operator"}"#;

#[test]
fn an_outbox_that_cannot_be_used_stops_no_alarm_and_loses_none() {
    on_cards("unusable::an_outbox_that_cannot_be_used_stops_no_alarm_and_loses_none", || {
        let mut island = Island::furnish_on(Card::small(Disk::Ext4, DISK_MIB), MAX_SIZE, dice("a dead card"));
        let witnesses = Witnesses::default();
        witnesses.beside(island.park.gateway.ingest, || {
            island.start();
            witnesses.work();
            witnesses.wait_for(SOME);

            // As the kernel leaves a card that it has given up, and the center is away.
            leaves(&mut island, &witnesses);
            witnesses.wait_for(witnesses.acknowledged() + SOME);
            island.park.gateway.kill9();
            island.card.remount("ro");
            stands_in(&mut island, &["Read-only file system"]);
            let acknowledged = witnesses.acknowledged();
            island.park.gateway.wait_for_metric(WAITING, |waiting| waiting >= HEARD);
            assert_eq!(witnesses.acknowledged(), acknowledged, "memory is no stable storage");
            // A restart loses nothing.
            island.park.gateway.kill9();
            stands_in(&mut island, &["Read-only file system"]);
            island.set_uplink(Uplink::Here);
            witnesses.wait_for(witnesses.acknowledged() + SOME);
            island.park.center.wait_for_transition("raised", ALARM);
            let unusable = |status: &serde_json::Value| status["vitals"]["outbox"]["unusable"].is_string();
            island.park.center.wait_for_status("an unusable outbox in the status", unusable);
            let status = island.park.gateway.run(&["status"]);
            assert!(String::from_utf8_lossy(&status.stdout).contains("THE OUTBOX CANNOT BE USED"), "{status:?}");
            let outbox = island.park.gateway.run(&["outbox", "status"]);
            assert!(String::from_utf8_lossy(&outbox.stdout).contains("THE OUTBOX CANNOT BE USED"), "{outbox:?}");

            // What waits in memory when the card is well again comes to the card, and goes out from there.
            leaves(&mut island, &witnesses);
            island.park.gateway.wait_for_metric(WAITING, |waiting| waiting >= HEARD);
            island.card.remount("rw");
            is_back(&mut island);
            witnesses.wait_for(witnesses.acknowledged() + SOME);
            island.set_uplink(Uplink::Here);
            island.park.center.wait_for_transition("cleared", ALARM);
            witnesses.rest();
            witnesses.wait_until_idle();
            island.settle();

            // Every read and every write is an I/O error from now on.
            island.card.cut_power();
            island.park.center.publish("command", TEST, Retain::No);
            assert_eq!(island.park.gateway.wait_until_ended(), Some(70), "{}", island.park.gateway.log());
            stands_in(&mut island, &["Input/output error", "Read-only file system"]);
            tells(&mut island);
            island.card.reinsert();
            is_back(&mut island);
            assert_eq!(island.park.gateway.sigterm().code, Some(0));

            // The folder belongs to somebody else.
            let dir = island.park.gateway.config().parent().expect("it lies in a folder").to_path_buf();
            let memory = dir.join("run");
            set_mode(&dir, 0o755);
            set_mode(&memory, 0o777);
            set_mode(&island.card.outbox(), 0o700);
            island.under = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned).to_vec();
            stands_in(&mut island, &["Permission denied"]);
            tells(&mut island);
            island.under.clear();
            assert_eq!(island.park.gateway.sigterm().code, Some(0));

            // A file in its place.
            let (outbox, aside) = (island.card.outbox(), island.card.path().join("aside"));
            fs::rename(&outbox, &aside).expect("ours to move");
            fs::write(&outbox, "no folder").expect("ours to write");
            give_to_us(&memory);
            stands_in(&mut island, &["is not a folder", "File exists"]);
            tells(&mut island);
            assert_eq!(fs::read_to_string(&outbox).expect("still a file"), "no folder");
            fs::remove_file(&outbox).expect("ours to remove");
            fs::rename(&aside, &outbox).expect("ours to move");
            is_back(&mut island);
            witnesses.work();
            witnesses.wait_for(witnesses.acknowledged() + SOME);

            witnesses.rest();
            island.set_uplink(Uplink::Here);
            witnesses.wait_until_idle();
            island.settle();
            let kept = island.wait_for_states(&witnesses);
            island.park.stop();
            let summary = island.park.center.assert_complete();
            eprintln!("{kept:?} {summary:?}");
            assert_eq!((kept.lost(), kept.wrong_states, summary.declared_lost), (0, 0, 0), "{kept:?} {summary:?}");
            assert!(island.set_aside().is_empty());
            assert_eq!(fs::read_dir(memory).expect("a folder").count(), 0, "everything was taken in");
        });
    });
}

/// The center goes away, with nothing under way to it; the witnesses go on.
fn leaves(island: &mut Island, witnesses: &Witnesses) {
    witnesses.rest();
    witnesses.wait_until_idle();
    island.settle();
    island.set_uplink(Uplink::Away);
    witnesses.work();
}

/// A start on an outbox that cannot be used: it goes on in memory, and says why.
fn stands_in(island: &mut Island, reasons: &[&str]) {
    let told = island.park.gateway.log().len();
    island.launch();
    let gateway = &island.park.gateway;
    gateway.wait_for_metric(IN_MEMORY, |in_memory| in_memory > 0.0);
    let log = gateway.log();
    let said = log[told..].lines().find(|line| line.contains("the outbox cannot be used")).expect("it says so");
    assert!(reasons.iter().any(|reason| said.contains(reason)), "{said}");
    assert!(said.contains(&island.card.outbox().display().to_string()), "{said}");
}

/// What happens now reaches the center.
fn tells(island: &mut Island) {
    let answer = island.park.center.ask(json!({"command": "test", "severity": "high"}));
    assert_eq!(answer["result"], "ok", "{answer}");
    island.settle();
}

/// Waits until it uses its outbox again, by itself.
fn is_back(island: &mut Island) {
    let gateway = &mut island.park.gateway;
    let pid = gateway.pid();
    let taken_in = |log: &str| log.lines().rev().take_while(|line| !line.contains("cannot be used")).any(is_taken_in);
    until("the outbox is used again", || taken_in(&gateway.log()));
    // The page is there again.
    gateway.wait_for_metric("gardu_outbox_quota_bytes", |quota| quota > 0.0);
    assert_eq!(gateway.metric(IN_MEMORY), 0.0);
    assert!(gateway.runs() && gateway.pid() == pid);
}

fn is_taken_in(line: &str) -> bool {
    line.contains("has taken in what was kept in memory")
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours to change");
}

/// What somebody else made in memory is ours from now on.
fn give_to_us(memory: &Path) {
    for entry in fs::read_dir(memory).expect("a folder") {
        std::os::unix::fs::chown(entry.expect("an entry").path(), Some(0), Some(0)).expect("we are root");
    }
}
