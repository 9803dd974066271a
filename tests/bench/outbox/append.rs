//! How fast steps become durable, beside an append-only log that does one `write` and one `fdatasync` a step.
//!
//! The store's time is that of [`Store::commit`](gardu::store::Store::commit) awaited step by step by a task of the
//! daemon's runtime: making the stored form of each record, the way to the committer's thread and back, sled, the
//! generation's own upkeep, the sync. The log is handed bytes that are ready, as many as the store keeps for the event,
//! and adds length and checksum; it is called directly by the same task. Both append to a growing file in one folder, so
//! that each sync is data, the file's new size in the file system's journal and a flush of the device.
//!
//! They take turns step by step, and a round compares the median step of each: a shared disk changes its pace within a
//! second and then holds single steps up for milliseconds. What medians leave out, such as the store's new generations, is
//! in the events a second, which come from all steps. What the ratio can be depends on the device: the faster its flush,
//! the more the store's own work shows, so that the log's step is told as well.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    sync::Arc,
};

use gardu::store::Commit;

use super::{
    filled::{EVENT_BYTES, Outbox},
    folder,
};
use crate::{ms, percentile, table::Table};

const ROUNDS: usize = 11;

struct Size {
    /// Events a sync.
    group: usize,
    /// Syncs of each in one round.
    syncs: usize,
    ratio_min: f64,
}

const SIZES: [Size; 3] = [
    Size { group: 1, syncs: 200, ratio_min: 0.85 },
    Size { group: 32, syncs: 200, ratio_min: 0.8 },
    Size { group: 256, syncs: 80, ratio_min: 0.5 },
];

pub(super) fn measure(table: &mut Table) {
    for Size { group, syncs, ratio_min } in SIZES {
        let mut beside = rounds(group, syncs, Outbox::steps);
        let ratio = percentile(&mut beside.ratios, 50);
        let (least, most) = (percentile(&mut beside.ratios, 0), percentile(&mut beside.ratios, 100));
        let what = format!("durable append, {group} events a sync, beside a log");
        table.target(&what, &format!("{ratio:.2} ({least:.2}–{most:.2})"), &format!("{ratio_min}"), ratio >= ratio_min);
        beside.tell(table);
    }
    let mut beside = rounds(32, 200, Outbox::alarm_steps);
    let ratio = percentile(&mut beside.ratios, 50);
    table.figure("32 alarms a sync with their states, beside such a log", &format!("{ratio:.2}"));
    beside.tell(table);
}

/// The store and the log.
#[derive(Default)]
struct Beside {
    /// The ratio of the median steps of every round.
    ratios: Vec<f64>,
    /// The median step of every round, of the store and of the log.
    steps_ms: [Vec<f64>; 2],
    /// Events a second of every round.
    rates: [Vec<f64>; 2],
}

impl Beside {
    fn tell(&mut self, table: &mut Table) {
        let [ours, log] = self.steps_ms.each_mut().map(|values| percentile(values, 50));
        table.figure("the same, median step", &format!("{ours:.2} ms (log {log:.2})"));
        let [ours, log] = self.rates.each_mut().map(|values| percentile(values, 50));
        table.figure("the same, events a second with all upkeep", &format!("{ours:.0} (log {log:.0})"));
    }
}

fn rounds(group: usize, syncs: usize, steps: fn(&mut Outbox, usize, usize) -> Vec<Commit>) -> Beside {
    let dir = folder();
    let (mut outbox, log) = (Outbox::open(&dir.path().join("outbox")), Arc::new(Log::open(&dir.path().join("log"))));
    let mut beside = Beside::default();
    for round in 0..ROUNDS {
        let steps = steps(&mut outbox, syncs, group);
        let log = log.clone();
        let (ours, logs) = outbox.commit_beside(steps, move || log.append(group));
        let [mut ours_ms, mut logs_ms] = [ours, logs].map(|times| times.into_iter().map(ms).collect::<Vec<f64>>());
        for (rates, times_ms) in beside.rates.iter_mut().zip([&ours_ms, &logs_ms]) {
            rates.push((syncs * group) as f64 * 1000.0 / times_ms.iter().sum::<f64>());
        }
        let medians = [percentile(&mut ours_ms, 50), percentile(&mut logs_ms, 50)];
        beside.steps_ms.iter_mut().zip(medians).for_each(|(all, median)| all.push(median));
        beside.ratios.push(medians[1] / medians[0]);
        eprintln!("  {group} a sync, round {}: {:.2} ({:.2} ms)", round + 1, beside.ratios[round], medians[0]);
    }
    outbox.close();
    beside
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

    fn append(&self, group: usize) {
        let mut bytes = Vec::with_capacity(group * (EVENT_BYTES + 8));
        for _ in 0..group {
            bytes.extend((EVENT_BYTES as u32).to_le_bytes());
            bytes.extend(crc32fast::hash(&self.event).to_le_bytes());
            bytes.extend(&self.event);
        }
        let written: io::Result<()> = (&self.file).write_all(&bytes).and_then(|()| self.file.sync_data());
        written.expect("the disk takes it");
    }
}
