//! The disk is full: what was acknowledged stays, what cannot be stored is not acknowledged, and the gateway goes on by
//! itself when there is room.

use std::time::{Duration, Instant};

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
const UNUSABLE: &str = "gateway/outbox-unusable";

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
        // With all delivered it has kept what it could of the room for such a day again.
        island.park.gateway.wait_for_metric(WAITS, |waits| waits < 1.0);
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

#[test]
fn a_start_on_a_full_card_uses_what_was_kept_or_goes_on_in_memory() {
    on_cards("full::a_start_on_a_full_card_uses_what_was_kept_or_goes_on_in_memory", || {
        for left in [0, 4 << 10, 16 << 10] {
            let mut island = Island::furnish_on(Card::small(Disk::Ext4, DISK_MIB), MAX_SIZE, dice("a full disk"));
            let witnesses = Witnesses::default();
            witnesses.beside(island.park.gateway.ingest, || {
                if left == 0 {
                    // Nothing was ever kept here.
                    island.card.fill();
                    island.start();
                    island.park.center.wait_for_transition("raised", UNUSABLE);
                    let said = island.park.gateway.log();
                    assert!(said.contains("the disk is full; remove what does not belong there"), "{said}");
                    island.card.clean();
                    until("the outbox is used", || island.park.gateway.log().contains("has taken in what was kept"));
                    assert_eq!(island.park.gateway.sigterm().code, Some(0));
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
