//! The disk is full, or does not let us write: what was acknowledged stays, what cannot be stored is not acknowledged, and
//! the gateway goes on by itself when there is room.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::{
    card::{Card, Disk, on_cards},
    island::{Island, Uplink},
    load::dice,
    until,
    witnesses::Witnesses,
};

/// Of the disks here: a journal, the outbox, and somebody else's files.
const DISK_MIB: u64 = 64;
/// A small quota: four MiB are kept for a full disk, two of them for what is stored.
const MAX_SIZE: &str = "32MiB";
/// Messages confirmed between two looks: far more than what is queued anywhere.
const SOME: u64 = 300;
/// Longer than a stage may be silent before the watchdog acts.
const WITHOUT_ROOM: Duration = Duration::from_secs(20);
/// Longer than the keeper needs to make room.
const STANDS_STILL: Duration = Duration::from_secs(5);

const FULL: &str = "gardu_outbox_disk_full";
const WAITS: &str = "gardu_outbox_waits_for_room";
const ALARM: &str = "gateway/outbox-full";

#[test]
fn a_full_card_robs_nobody_and_needs_no_restart() {
    on_cards("full::a_full_card_robs_nobody_and_needs_no_restart", || fills(Disk::Ext4));
}

#[test]
fn a_full_tmpfs_robs_nobody_and_needs_no_restart() {
    on_cards("full::a_full_tmpfs_robs_nobody_and_needs_no_restart", || fills(Disk::Tmpfs));
}

fn fills(disk: Disk) {
    let mut island = Island::furnish_on(Card::small(disk, DISK_MIB), MAX_SIZE, dice("a full disk"));
    let witnesses = Witnesses::default();
    witnesses.beside(island.park.gateway.ingest, || {
        island.start();
        let pid = island.park.gateway.pid();
        witnesses.work();
        witnesses.wait_for(SOME);

        // Full, with the center there: what is delivered gives its room back, and all goes on.
        island.card.fill();
        island.park.gateway.wait_for_metric(FULL, |full| full > 0.0);
        island.park.center.wait_for_transition("raised", ALARM);
        witnesses.wait_for(witnesses.acknowledged() + SOME);
        let space =
            |space: &'static str| move |status: &serde_json::Value| status["vitals"]["outbox"]["space"] == space;
        island.park.center.wait_for_status("a full disk in the status", space("tight"));
        let status = island.park.gateway.run(&["status"]);
        assert!(String::from_utf8_lossy(&status.stdout).contains("THE DISK IS FULL"), "{status:?}");

        // Full, without the center: nobody is told a lie, and nobody is restarted.
        witnesses.rest();
        witnesses.wait_until_idle();
        island.settle();
        island.set_uplink(Uplink::Away);
        island.card.fill();
        witnesses.work();
        wait_until_nothing_is_stored(&island, &witnesses, WITHOUT_ROOM);

        // What is stored goes out as soon as anybody is there, and the room it took is for what has waited.
        let before = witnesses.acknowledged();
        island.set_uplink(Uplink::Here);
        witnesses.wait_for(before + SOME);
        assert!(island.park.gateway.metric(FULL) > 0.0, "nobody has made room");

        // Room again.
        island.card.clean();
        island.park.gateway.wait_for_metric(FULL, |full| full < 1.0);
        witnesses.wait_for(witnesses.acknowledged() + SOME);
        witnesses.rest();
        witnesses.wait_until_idle();
        island.park.center.wait_for_transition("cleared", ALARM);
        island.park.center.wait_for_status("room in the status", space("enough"));
        assert!(island.card.outbox().join("ballast").exists());
        assert!(island.park.gateway.runs() && island.park.gateway.pid() == pid);
        island.settle();
        assert_kept(&mut island, &witnesses);
        assert!(island.set_aside().is_empty());
    });
}

/// Far below the bound of a stop, also on a busy machine: an idle one takes a second.
const STOP_MAX: Duration = Duration::from_secs(5);

#[test]
fn a_stop_without_room_waits_for_nobody_and_loses_nothing_promised() {
    on_cards("full::a_stop_without_room_waits_for_nobody_and_loses_nothing_promised", || {
        let mut island = Island::furnish_on(Card::small(Disk::Ext4, DISK_MIB), MAX_SIZE, dice("a full disk"));
        let witnesses = Witnesses::default();
        witnesses.beside(island.park.gateway.ingest, || {
            island.start();
            island.set_uplink(Uplink::Away);
            // The first takes what is free, the second what was kept for that day.
            island.card.fill();
            witnesses.work();
            island.park.gateway.wait_for_metric(FULL, |full| full > 0.0);
            island.card.fill();
            wait_until_nothing_is_stored(&island, &witnesses, STANDS_STILL);
            let status = island.park.gateway.run(&["outbox", "status"]);
            assert!(String::from_utf8_lossy(&status.stdout).contains("NOTHING CAN BE RECORDED"), "{status:?}");
            let ended = island.park.gateway.sigterm();
            let log = island.park.gateway.log();
            assert!(ended.code == Some(0) && ended.took < STOP_MAX, "{ended:?}\n{log}");
            let status = island.park.gateway.run(&["outbox", "status"]);
            assert!(String::from_utf8_lossy(&status.stdout).contains("THE DISK IS FULL"), "{status:?}");

            island.card.clean();
            island.recover(&witnesses);
            assert_kept(&mut island, &witnesses);
            assert!(island.set_aside().is_empty());
        });
    });
}

/// Waits until nothing could be stored for so long. Telemetry gives way to alarms first, until nothing of it is left.
fn wait_until_nothing_is_stored(island: &Island, witnesses: &Witnesses, so_long: Duration) {
    let mut seen = (0, Instant::now());
    until("nothing can be stored", || {
        assert!(island.park.gateway.is_healthy(), "{}", island.park.gateway.log());
        let acknowledged = witnesses.acknowledged();
        if island.park.gateway.metric(WAITS) < 1.0 || acknowledged != seen.0 {
            seen = (acknowledged, Instant::now());
        }
        seen.1.elapsed() > so_long
    });
}

/// Every alarm arrived; of the telemetry what did not was declared.
fn assert_kept(island: &mut Island, witnesses: &Witnesses) {
    let kept = island.wait_for_states(witnesses);
    // Its last status says how far it has come.
    island.park.stop();
    let summary = island.park.center.assert_complete();
    eprintln!("{kept:?} {summary:?}");
    assert_eq!((kept.alarms_lost, kept.wrong_states), (0, 0), "{kept:?}\n{}", island.park.gateway.log());
    // A record of telemetry holds one message of a sensor or more.
    assert!(kept.lost() == 0 || summary.declared_lost > 0, "{kept:?} {summary:?}");
}

/// `sysexits.h`: an error occurred while doing I/O. systemd tries again in ten seconds.
const IO_ERROR: i32 = 74;

#[test]
fn a_start_on_a_full_card_uses_what_was_kept_and_without_it_says_what_to_do() {
    on_cards("full::a_start_on_a_full_card_uses_what_was_kept_and_without_it_says_what_to_do", || {
        for left in [0, 4 << 10, 16 << 10] {
            let mut island = Island::furnish_on(Card::small(Disk::Ext4, DISK_MIB), MAX_SIZE, dice("a full disk"));
            let witnesses = Witnesses::default();
            witnesses.beside(island.park.gateway.ingest, || {
                if left == 0 {
                    // Nothing was ever kept here.
                    island.card.fill();
                    let said = refuses(&mut island);
                    assert!(said.contains("the disk is full; remove what does not belong there"), "{said}");
                    island.card.clean();
                }

                island.start();
                island.set_uplink(Uplink::Away);
                witnesses.work();
                witnesses.wait_for(SOME);
                witnesses.rest();
                witnesses.wait_until_idle();
                island.park.gateway.kill9();
                island.card.fill();
                island.card.give_back(left);
                island.set_uplink(Uplink::Here);
                island.start();
                assert!(island.park.gateway.metric(FULL) > 0.0, "{left}: {}", island.park.gateway.log());
                island.settle();
                assert_kept(&mut island, &witnesses);
            });
        }
    });
}

#[test]
fn a_card_that_dies_or_cannot_be_written_ends_the_gateway_with_a_reason_and_takes_nothing() {
    on_cards("full::a_card_that_dies_or_cannot_be_written_ends_the_gateway_with_a_reason_and_takes_nothing", || {
        let mut island = Island::furnish_on(Card::small(Disk::Ext4, DISK_MIB), MAX_SIZE, dice("a dead card"));
        let witnesses = Witnesses::default();
        witnesses.beside(island.park.gateway.ingest, || {
            island.start();
            island.set_uplink(Uplink::Away);
            witnesses.work();
            witnesses.wait_for(SOME);

            // Every write is an I/O error from now on.
            island.card.cut_power();
            let code = island.park.gateway.wait_until_ended();
            let said = island.park.gateway.log();
            assert_eq!(code, Some(70), "{said}");
            assert!(said.contains("cannot write") && said.contains("check that the disk has room"), "{said}");
            let said = refuses(&mut island);
            assert!(said.contains("Input/output error") || said.contains("Read-only"), "{said}");
            island.card.reinsert();

            // As the kernel leaves a card that it has given up.
            island.card.remount("ro");
            let said = refuses(&mut island);
            assert!(said.contains("Read-only file system") && said.contains("is not read-only"), "{said}");
            island.card.remount("rw");

            // The folder belongs to somebody else.
            let dir = island.park.gateway.config().parent().expect("it lies in a folder").to_path_buf();
            set_mode(&dir, 0o755);
            set_mode(&island.card.outbox(), 0o700);
            island.under = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(str::to_owned).to_vec();
            let said = refuses(&mut island);
            assert!(said.contains("Permission denied") && said.contains("belongs to us"), "{said}");
            island.under.clear();

            // A file in its place.
            let (outbox, aside) = (island.card.outbox(), island.card.path().join("aside"));
            fs::rename(&outbox, &aside).expect("ours to move");
            fs::write(&outbox, "no folder").expect("ours to write");
            let said = refuses(&mut island);
            assert!(said.contains("is not a folder") || said.contains("File exists"), "{said}");
            assert_eq!(fs::read_to_string(&outbox).expect("still a file"), "no folder");
            fs::remove_file(&outbox).expect("ours to remove");
            fs::rename(&aside, &outbox).expect("ours to move");

            island.recover(&witnesses);
            assert_kept(&mut island, &witnesses);
            assert!(island.set_aside().is_empty());
        });
    });
}

/// A start that must fail, with what it says: it names the folder.
fn refuses(island: &mut Island) -> String {
    island.launch();
    let code = island.park.gateway.wait_until_ended();
    let log = island.park.gateway.log();
    assert_eq!(code, Some(IO_ERROR), "{log}");
    let said = log.lines().last().expect("it says why").to_owned();
    assert!(said.contains(&island.card.outbox().display().to_string()), "{said}");
    said
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours to change");
}
