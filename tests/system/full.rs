//! The disk is full, or does not let us write: what was acknowledged stays, what cannot be stored is not acknowledged, and
//! the gateway goes on by itself when there is room.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    card::{Card, Disk, on_cards},
    island::{Island, Uplink},
    load::dice,
    pause, until,
    witnesses::Witnesses,
};

/// Of the disks here: a journal, the outbox, and somebody else's files.
const DISK_MIB: u64 = 64;
/// The smallest quota: two MiB are kept for a full disk.
const MAX_SIZE: &str = "16MiB";
/// Messages confirmed between two looks: far more than what is queued anywhere.
const SOME: u64 = 300;
/// Longer than a stage may be silent before the watchdog acts.
const WITHOUT_ROOM: Duration = Duration::from_secs(20);

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
        let space = |space: &'static str| move |status: &serde_json::Value| status["vitals"]["outbox"]["space"] == space;
        island.park.center.wait_for_status("a full disk in the status", space("tight"));
        let status = island.park.gateway.run(&["status"]);
        assert!(String::from_utf8_lossy(&status.stdout).contains("THE DISK IS FULL"), "{status:?}");

        // Full, without the center, and somebody takes whatever is given back: nobody is told a lie, and nobody is restarted.
        island.set_uplink(Uplink::Away);
        greedily(&island.card, || {
            island.park.gateway.wait_for_metric(WAITS, |waits| waits > 0.0);
            let began = Instant::now();
            until("the time in which a watchdog would have acted", || {
                assert!(island.park.gateway.is_healthy(), "{}", island.park.gateway.log());
                began.elapsed() > WITHOUT_ROOM
            });
        });
        assert!(island.park.gateway.runs() && island.park.gateway.pid() == pid);

        // Room again.
        island.card.clean();
        let before = witnesses.acknowledged();
        island.park.gateway.wait_for_metric(WAITS, |waits| waits < 1.0);
        witnesses.wait_for(before + SOME);
        island.park.gateway.wait_for_metric(FULL, |full| full < 1.0);
        witnesses.rest();
        island.set_uplink(Uplink::Here);
        witnesses.wait_until_idle();
        island.park.center.wait_for_transition("cleared", ALARM);
        island.park.center.wait_for_status("room in the status", space("enough"));
        assert!(island.card.outbox().join("ballast").exists());
        assert!(island.park.gateway.runs() && island.park.gateway.pid() == pid);
        island.settle();
        island.proof(&witnesses, 1).assert_kept();
        assert!(island.set_aside().is_empty());
    });
}

/// Does something while somebody else takes every block that becomes free.
fn greedily<T>(card: &Card, work: impl FnOnce() -> T) -> T {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                card.fill();
                pause();
            }
        });
        work()
    })
}
