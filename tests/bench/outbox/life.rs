//! What an event costs the card from its first byte to its last, and what is left on the disk when all have gone.
//!
//! A process that does nothing else reads its own counters (proc(5), `/proc/PID/io`): `wchar` is what was passed to write,
//! `write_bytes` what became dirty in whole pages. Counted from the open store to the closed one, over several
//! generations, each deleted when its last event is confirmed.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use gardu::record::Lane;

use super::{filled::Outbox, folder, number, run_child};
use crate::{mib, table::Table};

pub(super) const CHILD: &str = "life";

const EVENTS: usize = 100_000;
const GROUP: usize = 32;
/// One generation of a chain.
const DISK_MAX_MIB: f64 = 16.0;
const WCHAR_MAX: f64 = 1_600.0;
const WRITE_BYTES_MAX: f64 = 2_500.0;
/// The last generation goes when the confirmations before it are durable, a second at most; then some.
const DELETED_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at the disk.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// By the name the child is told.
const LIVES: [(&str, &str); 4] = [
    ("at-once", "each group of 32 delivered at once"),
    ("waiting", "in groups of 32 after all have waited"),
    ("states", "real alarms with their states, at once"),
    ("telemetry", "telemetry after all has waited"),
];

pub(super) fn measure(table: &mut Table) {
    for (life, what) in LIVES {
        let dir = folder();
        let outbox = dir.path().join("outbox");
        let output = run_child(&[], CHILD, &outbox, &[life.to_owned(), EVENTS.to_string()]);
        let told = String::from_utf8(output.stdout).expect("numbers");
        let told: Vec<usize> = told.split_whitespace().map(number).collect();
        let [wchar, write_bytes, disk, disk_full] = told[..] else { panic!("four numbers, not {told:?}") };
        let [wchar, write_bytes] = [wchar, write_bytes].map(|bytes| bytes as f64 / EVENTS as f64);
        let bytes = format!("{wchar:.0}; {write_bytes:.0} B");
        let row = format!("wchar; write_bytes an event, {what}");
        if matches!(life, "at-once" | "waiting") {
            let meets = wchar <= WCHAR_MAX && write_bytes <= WRITE_BYTES_MAX;
            table.target(&row, &bytes, "1.6; 2.5k", meets);
        } else {
            table.figure(&row, &bytes);
        }
        let [disk, disk_full] = [disk, disk_full].map(|bytes| mib(bytes as u64));
        let row = format!("the chain's disk after it, of most {disk_full:.0} MiB");
        table.target(&row, &format!("{disk:.1} MiB"), "16 MiB", disk <= DISK_MAX_MIB);
    }
}

/// Lives the life of so many events and prints: bytes written, bytes in whole pages, bytes left on the disk, bytes there
/// before the first was confirmed.
#[expect(clippy::print_stdout, reason = "it answers its parent")]
pub(super) fn child(folder: &Path, life: &str, events: usize) {
    let mut outbox = Outbox::open(folder);
    let before = Written::so_far();
    let (lane, chain) = if life == "telemetry" { (Lane::Telemetry, "telemetry-") } else { (Lane::Alarm, "alarm-") };
    let groups = events / GROUP;
    let mut disk_full = 0;
    if life == "at-once" || life == "states" {
        // Some at a time: a million steps are not kept in memory.
        const AT_A_TIME: usize = 100;
        for _ in 0..groups / AT_A_TIME {
            let steps = if life == "states" { Outbox::alarm_steps } else { Outbox::steps };
            let steps = steps(&mut outbox, AT_A_TIME, GROUP);
            outbox.pass_through(steps, GROUP);
            disk_full = disk_full.max(disk_bytes(folder, chain));
        }
    } else {
        match lane {
            Lane::Alarm => {
                let steps = outbox.steps(groups, GROUP);
                outbox.commit(steps);
            }
            Lane::Telemetry => {
                let steps = outbox.telemetry(groups, GROUP);
                outbox.commit_telemetry(steps);
            }
        }
        disk_full = disk_bytes(folder, chain);
        outbox.drain(lane, GROUP);
    }
    let began = Instant::now();
    while mib(disk_bytes(folder, chain)) > DISK_MAX_MIB && began.elapsed() < DELETED_WITHIN {
        std::thread::sleep(LOOK_EVERY);
    }
    let disk = disk_bytes(folder, chain);
    outbox.close();
    let after = Written::so_far();
    println!("{} {} {disk} {disk_full}", after.wchar - before.wchar, after.write_bytes - before.write_bytes);
}

/// What the chain's folders take on the disk, by the blocks they hold.
fn disk_bytes(outbox: &Path, chain: &str) -> u64 {
    let folders = fs::read_dir(outbox).expect("the store's folder").flatten();
    folders.filter(|f| f.file_name().to_string_lossy().starts_with(chain)).map(|folder| blocks(&folder.path())).sum()
}

/// What is deleted meanwhile counts as nothing.
fn blocks(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    metadata.blocks() * 512 + inside.map(|entry| blocks(&entry.path())).sum::<u64>()
}

/// This process's counters.
struct Written {
    wchar: u64,
    write_bytes: u64,
}

impl Written {
    fn so_far() -> Self {
        let io = fs::read_to_string("/proc/self/io").expect("the kernel counts (CONFIG_TASK_IO_ACCOUNTING)");
        let field = |name| {
            let line = io.lines().find_map(|line| line.strip_prefix(name)).expect("proc(5) has it");
            line.trim().parse().expect("a number")
        };
        Self { wchar: field("wchar:"), write_bytes: field("write_bytes:") }
    }
}
