//! How fast steps become durable, beside an append-only log that does one `write` and one `fdatasync` a step.
//!
//! The store's time is that of [`Store::commit`](gardu::store::Store::commit) awaited step by step by a task of the
//! daemon's runtime: making the stored form of each record, the way to the committer's thread and back, sled, the
//! generation's own upkeep, the sync. The log is handed bytes that are ready, as many as the store keeps for the event,
//! and adds length and checksum; it is called directly. Both take turns in slices of a few syncs: a shared disk changes
//! its pace within a second.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use gardu::store::Commit;

use super::{
    filled::{EVENT_BYTES, Outbox},
    folder,
};
use crate::{percentile, table::Table};

const ROUNDS: usize = 11;
/// Turns of each in one round.
const SLICES: usize = 20;

struct Size {
    /// Events a sync.
    group: usize,
    /// Syncs of each in one slice. With 32 and more a round begins a generation about once.
    syncs: usize,
    ratio_min: f64,
}

const SIZES: [Size; 3] = [
    Size { group: 1, syncs: 10, ratio_min: 0.85 },
    Size { group: 32, syncs: 25, ratio_min: 0.8 },
    Size { group: 256, syncs: 4, ratio_min: 0.5 },
];

pub(super) fn measure(table: &mut Table) {
    for Size { group, syncs, ratio_min } in SIZES {
        let (mut ratios, ours, log) = rounds(group, syncs, Outbox::steps);
        let ratio = percentile(&mut ratios, 50);
        let (least, most) = (percentile(&mut ratios, 0), percentile(&mut ratios, 100));
        let what = format!("durable append, {group} events a sync, beside a log");
        table.target(&what, &format!("{ratio:.2} ({least:.2}–{most:.2})"), &format!("{ratio_min}"), ratio >= ratio_min);
        table.figure("the same, events a second", &format!("{ours:.0} (log {log:.0})"));
    }
    let (mut ratios, ours, log) = rounds(32, 25, Outbox::alarm_steps);
    let ratio = percentile(&mut ratios, 50);
    let what = "32 alarms a sync with their states, beside such a log";
    table.figure(what, &format!("{ratio:.2}; {ours:.0} (log {log:.0})"));
}

/// The ratio of every round, and the median events a second of both.
fn rounds(group: usize, syncs: usize, steps: fn(&mut Outbox, usize, usize) -> Vec<Commit>) -> (Vec<f64>, f64, f64) {
    let dir = folder();
    let (mut outbox, mut log) = (Outbox::open(&dir.path().join("outbox")), Log::open(&dir.path().join("log")));
    let (mut ratios, mut ours, mut logs) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let (mut our_time, mut log_time) = (Duration::ZERO, Duration::ZERO);
        for slice in 0..SLICES {
            let steps = steps(&mut outbox, syncs, group);
            let of_us = |steps| timed(|| outbox.commit(steps));
            let of_log = |log: &mut Log| timed(|| (0..syncs).for_each(|_| log.append(group)));
            if (round + slice).is_multiple_of(2) {
                our_time += of_us(steps);
                log_time += of_log(&mut log);
            } else {
                log_time += of_log(&mut log);
                our_time += of_us(steps);
            }
        }
        let events = (SLICES * syncs * group) as f64;
        ratios.push(log_time.as_secs_f64() / our_time.as_secs_f64());
        ours.push(events / our_time.as_secs_f64());
        logs.push(events / log_time.as_secs_f64());
        eprintln!("  {group} a sync, round {}: {:.2}", round + 1, ratios[round]);
    }
    outbox.close();
    (ratios, percentile(&mut ours, 50), percentile(&mut logs, 50))
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// The plainest durable thing.
struct Log {
    file: File,
    event: Vec<u8>,
}

impl Log {
    fn open(path: &Path) -> Self {
        let file = File::options().create_new(true).append(true).open(path).expect("a file");
        Self { file, event: vec![b'x'; EVENT_BYTES] }
    }

    fn append(&mut self, group: usize) {
        let mut bytes = Vec::with_capacity(group * (EVENT_BYTES + 8));
        for _ in 0..group {
            bytes.extend((EVENT_BYTES as u32).to_le_bytes());
            bytes.extend(crc32fast::hash(&self.event).to_le_bytes());
            bytes.extend(&self.event);
        }
        let written: io::Result<()> = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        written.expect("the disk takes it");
    }
}
