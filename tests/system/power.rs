//! The power is cut: everything that was acknowledged to a publisher reaches the command center, and every alarm's last
//! state is exact.
//!
//! Each island is a park whose outbox lies on a new card; its first cut comes in the first second of its first boot, the
//! others under load and while the store is opened, every second time without a broker: then nothing but the card has
//! what was acknowledged. Every second island has a small outbox, whose power goes while a new generation begins and while
//! something is given up for want of room: what does not arrive then was declared. `GARDU_CUTS` asks for another number of
//! cuts; `tests/long/power` for a thousand.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    PATIENCE,
    card::{Card, on_cards},
    island::{GivesUp, Island, Proof, Uplink, side_by_side},
    load::{MOMENT_MAX, dice, random_moment},
    witnesses::Witnesses,
};

/// Without `GARDU_CUTS`.
const CUTS: usize = 60;
/// Messages that are confirmed before the power is cut under load: they meet any step of commits under way.
const CONFIRMED_MIN: u64 = 20;
const CONFIRMED_MORE: u64 = 60;
/// One load of so many is long: the store grows over several of sled's segments (512 KiB).
const LONG_LOAD_OF: u64 = 12;
const LONG_LOAD_CONFIRMED: u64 = 1_500;
/// Opening a small store takes about this long.
const OPEN_MAX: Duration = Duration::from_millis(40);
/// Between two looks at what it does: a small part of it.
const GLANCE: Duration = Duration::from_millis(1);
/// A new generation takes about this long.
const ROTATION_MAX: Duration = Duration::from_millis(30);
/// From the first generation that is sealed to give way to the last that is gone.
const KEEPER_MAX: Duration = Duration::from_millis(600);
/// Levels of each sensor that wait when there is no room: a summary of them pays.
const LEVELS: u64 = 4;
/// An outbox of the usual size, whose generations no round fills, and one with generations of a MiB.
const LARGE: &str = "256MiB";
const SMALL: &str = "16MiB";

/// When the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// In the first second of the first boot, with publishers at the door.
    FirstSecond,
    /// In the middle of commits.
    Load,
    /// While the store is opened after a kill: sled writes a snapshot then.
    Open,
    /// The same with snapshots that cannot be read: the gateway has to find another way to what the store holds.
    Salvage,
    /// While a new generation begins.
    Rotation,
    /// While this is thinned, declared and removed.
    Keeper(GivesUp),
}

/// Cuts of one island, in turn, on an outbox of this size.
type Cuts = (&'static str, [(Aim, Uplink); 6]);

/// Islands in turn. After a salvage nothing can be said of what the gateway set aside, and what may be given up may be
/// from then on: these come last.
const CUTS_OF_ISLANDS: [Cuts; 2] = [
    (
        LARGE,
        [
            (Aim::FirstSecond, Uplink::Here),
            (Aim::Load, Uplink::Away),
            (Aim::Load, Uplink::Here),
            (Aim::Open, Uplink::Away),
            (Aim::Load, Uplink::Here),
            (Aim::Salvage, Uplink::Away),
        ],
    ),
    (
        SMALL,
        [
            (Aim::FirstSecond, Uplink::Here),
            (Aim::Rotation, Uplink::Away),
            (Aim::Rotation, Uplink::Here),
            (Aim::Keeper(GivesUp::Telemetry), Uplink::Away),
            (Aim::Rotation, Uplink::Away),
            (Aim::Keeper(GivesUp::All), Uplink::Away),
        ],
    ),
];

#[test]
fn no_power_cut_takes_what_was_acknowledged() {
    on_cards("power::no_power_cut_takes_what_was_acknowledged", || {
        let cuts = std::env::var("GARDU_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(CUTS);
        let mut dice = dice("power cuts");
        let per_island = CUTS_OF_ISLANDS[0].1.len();
        let turns = (0..cuts).step_by(per_island).zip(CUTS_OF_ISLANDS.iter().cycle());
        let islands: Vec<_> = turns
            .map(|(before, (max_size, rounds))| {
                let (mut rounds, mut dice) = (rounds[..per_island.min(cuts - before)].to_vec(), dice.fork());
                if dice.bool() {
                    rounds[0].1 = Uplink::Away;
                }
                (max_size, rounds, dice)
            })
            .collect();
        let proof =
            side_by_side(&islands, |(max_size, rounds, dice)| on_an_island(max_size, rounds, dice.clone(), &[]));
        eprintln!("cuts{}\n{proof}", Proof::HEADER);
        proof.assert_kept();
        assert_eq!(proof.blows, cuts as u64);
    });
}

/// The twin: syncs that are never made, and said to be.
#[test]
fn without_syncs_a_power_cut_takes_what_was_acknowledged() {
    on_cards("power::without_syncs_a_power_cut_takes_what_was_acknowledged", || {
        let lie = "--inject=fdatasync,fsync:retval=0";
        let under = ["strace", "-D", "-f", "--seccomp-bpf", "-o/dev/null", "--trace=fdatasync,fsync", lie];
        let mut dice = dice("twin: power cuts without syncs");
        let islands: [fastrand::Rng; 4] = std::array::from_fn(|_| dice.fork());
        let proof =
            side_by_side(&islands, |dice| on_an_island(LARGE, &[(Aim::Load, Uplink::Away)], dice.clone(), &under));
        eprintln!("twin: cuts{}\n{proof}", Proof::HEADER);
        assert!(proof.lost() > 0, "it is not the syncs that make the proof pass: {proof}");
    });
}

/// Cuts the power of one park again and again.
fn on_an_island(max_size: &str, rounds: &[(Aim, Uplink)], dice: fastrand::Rng, under: &[&str]) -> Proof {
    let mut island = Island::furnish_on(Card::insert(), max_size, dice);
    // The moment between the death of the card and that of everything else is too short to deliver anything from memory, but
    // here it lasts: events would be told from there, and their states forgotten with it.
    island.park.gateway.take_memory_away();
    island.under = under.iter().map(|word| (*word).to_owned()).collect();
    let witnesses = Witnesses::default();
    witnesses.beside(island.park.gateway.ingest, || {
        if !rounds.iter().any(|(aim, _)| *aim == Aim::FirstSecond) {
            island.start();
        }
        let (mut lost, mut faults) = (0, Vec::new());
        for (aim, uplink) in rounds {
            island.set_uplink(*uplink);
            strike(&mut island, &witnesses, *aim);
            island.recover(&witnesses);
            island.card.clean();
            // A power cut damages nothing that was stored; a garbled snapshot may lie there afterwards.
            if *aim != Aim::Salvage {
                faults.extend(island.set_aside());
            }
            let lost_now = island.lost_without_reason(&witnesses.look(&island.park.center.ledger()));
            if lost_now > lost {
                faults.push(format!("{aim:?}, broker {uplink:?}: {} of the promised are lost", lost_now - lost));
                lost = lost_now;
            }
        }
        let mut proof = island.proof(&witnesses, rounds.len() as u64);
        proof.faults.extend(faults);
        proof
    })
}

/// One cut, and the card is back.
fn strike(island: &mut Island, witnesses: &Witnesses, aim: Aim) {
    let moment_max = match aim {
        Aim::FirstSecond => {
            island.launch();
            witnesses.work();
            Duration::from_secs(1)
        }
        Aim::Load => {
            work(island, witnesses);
            MOMENT_MAX
        }
        Aim::Rotation => {
            let before = generations(&island.card.outbox(), "alarm");
            witnesses.work();
            wait_until(island, "begins a generation", |outbox| generations(outbox, "alarm") != before);
            ROTATION_MAX
        }
        Aim::Keeper(what) => {
            work(island, witnesses);
            // Cameras would begin generations by themselves.
            witnesses.measure();
            witnesses.wait_for_levels(LEVELS);
            // Alarms go last.
            let chain = if what == GivesUp::All { "alarm" } else { "telemetry" };
            let before = generations(&island.card.outbox(), chain);
            island.press(what);
            wait_until(island, "gives something up", |outbox| generations(outbox, chain) != before);
            witnesses.work();
            KEEPER_MAX
        }
        Aim::Open | Aim::Salvage => {
            work(island, witnesses);
            island.park.gateway.kill9();
            if aim == Aim::Salvage {
                garble_snapshots(&island.card.outbox());
            }
            island.launch();
            wait_until_it_opens(island);
            OPEN_MAX
        }
    };
    random_moment(&mut island.dice, moment_max);
    island.cut();
}

fn work(island: &mut Island, witnesses: &Witnesses) {
    let before = witnesses.acknowledged();
    let is_long = island.dice.u64(..LONG_LOAD_OF) == 0;
    let most = if is_long { LONG_LOAD_CONFIRMED } else { CONFIRMED_MORE };
    witnesses.work();
    witnesses.wait_for(before + CONFIRMED_MIN + island.dice.u64(most / 2..most));
}

/// Makes every snapshot unreadable; sled's log has all that they hold.
fn garble_snapshots(outbox: &Path) {
    let inside = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = inside(outbox).flat_map(|chain| inside(&chain).collect::<Vec<_>>());
    let is_snapshot = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("snap."));
    let garbled = files.filter(is_snapshot).map(|file| fs::write(file, "garbled").expect("ours to write")).count();
    assert!(garbled > 0, "no snapshot was there to be garbled");
}

/// The generations of a chain that lie there.
fn generations(outbox: &Path, chain: &str) -> BTreeSet<String> {
    let names = fs::read_dir(outbox).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    names.filter(|name| name.strip_prefix(chain).is_some_and(|rest| rest.starts_with('-'))).collect()
}

/// Waits until the gateway has a file of its outbox open.
fn wait_until_it_opens(island: &Island) {
    let files = format!("/proc/{}/fd", island.park.gateway.pid());
    wait_until(island, "opens its outbox", |outbox| {
        let files = fs::read_dir(&files).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.starts_with(outbox))
    });
}

/// Waits until its outbox shows that the gateway does something.
fn wait_until(island: &Island, what: &str, so: impl Fn(&Path) -> bool) {
    let (outbox, deadline) = (island.card.outbox(), Instant::now() + PATIENCE);
    while !so(&outbox) {
        assert!(Instant::now() < deadline, "it never {what}\n{}", island.park.gateway.log());
        thread::sleep(GLANCE);
    }
}
