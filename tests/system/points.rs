//! The gateway dies, or its card's power, at a named point of its store: as it enters the first, some middle or the last
//! of its writes, syncs, renames and so on, in its first boot and in one that finds a store. strace(1) is the hand that
//! strikes there; the product knows nothing of it.
//!
//! `GARDU_POINTS` asks for so many occurrences of each system call, spread evenly, and strikes each both ways, also in a
//! boot that begins a new generation; without it the first and the last are struck one way or the other. The broker is away: nothing but the card has what was
//! acknowledged.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use tempfile::TempDir;

use crate::support::{
    card::{Card, on_cards},
    island::{Island, Proof, Uplink, side_by_side},
    load::dice,
    until,
    witnesses::Witnesses,
};

/// How a store changes its files. Some of them only some kernels have: `?`.
const CALLS: [&str; 12] = [
    "pwrite64",
    "fdatasync",
    "fsync",
    "sync_file_range",
    "ftruncate",
    "fallocate",
    "?rename",
    "?renameat2",
    "?mkdir",
    "mkdirat",
    "?unlink",
    "unlinkat",
];
/// Messages that are confirmed in a boot that is struck, if it gets that far: a dozen commits of what nine publish at once.
const LOAD: u64 = 120;
/// Messages that nearly fill a generation of the smallest outbox, a MiB: those above fill it.
const NEARLY_FULL: u64 = 280;
/// Occurrences of each call without `GARDU_POINTS`: the first and the last.
const OCCURRENCES: u64 = 2;

/// What the gateway finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    /// An empty card.
    First,
    /// What a gateway left that was killed under load.
    Again,
    /// The same with a generation that is nearly full.
    Rotating,
}

#[derive(Debug, Clone, Copy)]
enum Blow {
    /// kill -9 as the call is entered.
    Kill,
    /// The power is cut right after the call.
    Cut,
}

#[derive(Debug, Clone)]
struct Point {
    boot: Boot,
    call: &'static str,
    /// Which of one thread's calls, from 1.
    nth: u64,
    blow: Blow,
    dice: fastrand::Rng,
}

#[test]
fn nothing_acknowledged_is_lost_at_any_named_point_of_the_store() {
    on_cards("points::nothing_acknowledged_is_lost_at_any_named_point_of_the_store", || {
        let mut dice = dice("points of the store");
        let points = points(&mut dice);
        let reached = AtomicUsize::new(0);
        let proof = side_by_side(&points, |point| {
            let (proof, was_reached) = strike(point);
            reached.fetch_add(usize::from(was_reached), Ordering::Relaxed);
            proof
        });
        let reached = reached.into_inner();
        eprintln!("points | reached | blows{}\n{:>6} | {reached:>7} | {proof}", Proof::HEADER, points.len());
        proof.assert_kept();
        // Each run is a little different: its last call of a kind may not come.
        assert!(reached * 2 > points.len(), "only {reached} of {} points were reached", points.len());
    });
}

/// Every point to strike: calls are counted in a boot of each kind that nobody disturbs.
fn points(dice: &mut fastrand::Rng) -> Vec<Point> {
    let asked: Option<u64> = std::env::var("GARDU_POINTS").ok().and_then(|text| text.parse().ok());
    let mut points = Vec::new();
    for boot in [Boot::First, Boot::Again].into_iter().chain(asked.map(|_| Boot::Rotating)) {
        let calls = count(boot, dice.fork());
        eprintln!("{boot:?} boot: {calls:?}");
        for (call, most) in calls {
            for nth in spread(most, asked.unwrap_or(OCCURRENCES)) {
                let blows = match asked {
                    Some(_) => vec![Blow::Kill, Blow::Cut],
                    None => vec![if points.len() % 2 == 0 { Blow::Kill } else { Blow::Cut }],
                };
                points.extend(blows.into_iter().map(|blow| Point { boot, call, nth, blow, dice: dice.fork() }));
            }
        }
    }
    points
}

/// `count` of the numbers from 1 to `most`, the first and the last among them.
fn spread(most: u64, count: u64) -> Vec<u64> {
    let steps = count.saturating_sub(1).max(1);
    let mut numbers: Vec<u64> = (0..count).map(|i| 1 + (most - 1) * i / steps).collect();
    numbers.dedup();
    numbers
}

/// How often the busiest thread makes each call.
fn count(boot: Boot, dice: fastrand::Rng) -> BTreeMap<&'static str, u64> {
    let folder = tempfile::tempdir().expect("a folder for the trace");
    let trace = folder.path().join("trace");
    let mut island = furnish(boot, dice);
    let witnesses = Witnesses::default();
    witnesses.beside(island.park.gateway.ingest, || {
        boot_under(&mut island, &witnesses, boot, strace(&trace, &[]));
        witnesses.wait_for(witnesses.acknowledged() + LOAD);
        island.park.gateway.kill9();
        island.under.clear();
        island.recover(&witnesses);
    });
    let trace = fs::read_to_string(trace).expect("strace wrote it");
    let made = |call: &str| {
        let mut threads = BTreeMap::<&str, u64>::new();
        // `4711 pwrite64(3, …`
        let lines = trace.lines().filter_map(|line| line.split_once(' '));
        for (thread, _) in lines.filter(|(_, what)| what.trim_start().starts_with(&format!("{call}("))) {
            *threads.entry(thread).or_default() += 1;
        }
        threads.into_values().max()
    };
    let calls = CALLS.iter().map(|call| call.trim_start_matches('?'));
    calls.filter_map(|call| Some((call, made(call)?))).collect()
}

/// Strikes one point; returns the proof and whether the gateway got there.
fn strike(point: &Point) -> (Proof, bool) {
    let folder: TempDir = tempfile::tempdir().expect("a folder for the trace");
    let trace = folder.path().join("trace");
    let mut island = furnish(point.boot, point.dice.clone());
    let witnesses = Witnesses::default();
    witnesses.beside(island.park.gateway.ingest, || {
        let signal = match point.blow {
            Blow::Kill => "SIGKILL",
            Blow::Cut => "SIGSTOP",
        };
        let inject = format!("--inject={}:signal={signal}:when={}", point.call, point.nth);
        boot_under(&mut island, &witnesses, point.boot, strace(&trace, &[&inject]));
        let enough = witnesses.acknowledged() + LOAD;
        let mut reached = false;
        until("the point, or the end of its load", || {
            reached = is_struck(&island, &trace, point.blow);
            reached || witnesses.acknowledged() >= enough
        });
        match point.blow {
            Blow::Cut if reached => island.cut_frozen(),
            // Its work is over, and a kill is all it gets.
            Blow::Cut | Blow::Kill => island.park.gateway.kill9(),
        }
        island.under.clear();
        island.recover(&witnesses);
        let mut proof = island.proof(&witnesses, 1);
        proof.faults.extend(island.set_aside());
        if proof.lost() > 0 || proof.wrong_states > 0 || !proof.faults.is_empty() {
            eprintln!("{point:?}: {proof}");
        }
        (proof, reached)
    })
}

fn furnish(boot: Boot, dice: fastrand::Rng) -> Island {
    let max_size = if boot == Boot::Rotating { "16MiB" } else { "256MiB" };
    Island::furnish_on(Card::insert(), max_size, dice)
}

/// Starts the boot under strace, with publishers at the door.
fn boot_under(island: &mut Island, witnesses: &Witnesses, boot: Boot, strace: Vec<String>) {
    island.set_uplink(Uplink::Away);
    let load_before = match boot {
        Boot::First => None,
        Boot::Again => Some(LOAD),
        Boot::Rotating => Some(NEARLY_FULL),
    };
    if let Some(load) = load_before {
        island.start();
        witnesses.work();
        witnesses.wait_for(load);
        island.park.gateway.kill9();
    }
    island.under = strace;
    island.launch();
    witnesses.work();
}

/// Whether strace has struck, and nothing of the gateway moves any more.
fn is_struck(island: &Island, trace: &Path, blow: Blow) -> bool {
    let trace = fs::read_to_string(trace).unwrap_or_default();
    let lines = |what: &str| trace.lines().filter(|line| line.contains(what)).count();
    match blow {
        Blow::Kill => lines("+++ killed by SIGKILL +++") > 0,
        Blow::Cut => {
            // Each thread stops by itself, after the call that it is in.
            let threads = fs::read_dir(format!("/proc/{}/task", island.park.gateway.pid())).into_iter().flatten();
            let stopped = lines("--- stopped by SIGSTOP ---");
            stopped > 0 && stopped >= threads.count()
        }
    }
}

/// `-D`: the gateway stays our child. Not `--seccomp-bpf`, with which strace 6.1 sends no signals.
fn strace(trace: &Path, more: &[&str]) -> Vec<String> {
    let mut words = vec!["strace".to_owned(), "-D".into(), "-f".into(), format!("-o{}", trace.display())];
    words.push(format!("--trace={}", CALLS.join(",")));
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words
}
