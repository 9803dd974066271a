//! How the generations of a chain come and go.

use std::ops::Bound;

use rangemap::RangeInclusiveSet;
use tracing::{debug, error, warn};

use super::{Chain, Part, Setup};
use crate::record::Lane;
use crate::store::{
    Generation, Lost, StoreError,
    durable::{Database, Fault, unwritable},
    envelope::{Envelope, Kind},
    guard::survey,
    layout::{Entries, FORMAT, MadeMeta, Put, SealedMeta, word},
    place::Place,
    raw::{Bytes, View, is_absent},
    sealed::Sealed,
};

/// Size of a small generation, in bytes: two of sled's segments.
const SMALL_GENERATION_SIZE: u64 = 1024 * 1024;
/// With so many bytes waiting, telemetry goes out as it comes.
const LIVE_BYTES_MAX: u64 = 256 * 1024;
/// A new generation without states, in bytes. 10 KiB were measured on ext4, 32 KiB where blocks are large: sled makes no
/// whole segment at once.
const NEW_GENERATION: u64 = 64 * 1024;
/// What a state takes in it, in its own sizes: sled writes pages anew while they fill. 3.4 were measured of 3,000 alarms.
const NEW_STATES_TIMES: u64 = 4;
/// States are carried into a new generation in batches of this size, in bytes.
const CARRY_AT_ONCE: usize = 256 * 1024;

impl Part {
    pub(super) const fn sealed(number: u64, meta: SealedMeta) -> Self {
        let SealedMeta { first, end, bytes, has_holes } = meta;
        Self { number, first, end, waiting: 0, bytes, has_holes }
    }
}

/// Makes the database of a generation, empty.
pub(super) fn make(place: &Place, number: u64, setup: &Setup<'_>) -> Result<Database, StoreError> {
    // What lies there was never used.
    place.remove(number).map_err(|e| unwritable(place.chain, &e))?;
    let opened = Database::open(place.chain, &place.folder(number), setup.sync_file, setup.metrics);
    opened.map_err(|fault| unopened(place.chain, fault))
}

fn unopened(chain: &'static str, fault: Fault) -> StoreError {
    let failed = |reason: String| StoreError::Write { chain, reason: reason.into() };
    match fault {
        Fault::Damaged(reason) => failed(reason),
        Fault::Machine(error) => unwritable(chain, &error),
        Fault::Refused(error) => failed(error.to_string()),
    }
}

/// What of these entries a new generation starts with, in their lines.
pub(super) fn carried(entries: Entries) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>> {
    let alive = entries.into_iter().filter(|((kind, key), (_, payload))| is_carried(*kind, key, payload));
    alive.map(|((kind, key), (commit, payload))| {
        let put = Put { kind, key, payload };
        Ok((put.database_key(), put.line(commit)))
    })
}

/// What the chain itself keeps account of is written anew, and records stay where they are.
fn is_carried(kind: Kind, key: &str, payload: &[u8]) -> bool {
    let state = match kind {
        Kind::Epoch | Kind::Fence | Kind::Generation | Kind::Record => false,
        Kind::Word => matches!(key, word::MACHINE | word::UNPROVEN),
        Kind::Alarm | Kind::Answer | Kind::Boot | Kind::Count => true,
    };
    state && !payload.is_empty()
}

impl Chain {
    /// Furnishes the open generation, which is empty, with what was carried over and the chain's own values. Returns when
    /// it and every folder above it are on stable storage.
    pub(super) fn furnish(
        &mut self,
        carried: impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>>,
    ) -> Result<(), StoreError> {
        let (mut batch, mut size) = (sled::Batch::default(), 0);
        for entry in carried {
            let (key, line) = entry?;
            size += key.len() + line.len();
            batch.insert(key, line);
            if size >= CARRY_AT_ONCE {
                self.database().write(std::mem::take(&mut batch))?;
                size = 0;
            }
        }
        self.database().write(batch)?;
        self.settled_saved = self.settled.saved(&self.settled_saved, &[]);
        let sealed = &self.parts[..self.parts.len() - 1];
        let generations: Vec<Put> =
            sealed.iter().map(|part| Put::generation(part.number, Some(&part.meta()))).collect();
        let epochs: Vec<Put> = self.earlier.iter().chain([&self.durable.epoch]).map(Put::epoch).collect();
        self.made = MadeMeta { size: self.database().size(), first: self.durable.next_position };
        let words = [
            Put::word(word::FORMAT, &FORMAT),
            Put::word(word::SESSION, &self.session),
            Put::word(word::SETTLED, &self.settled_saved),
            Put::word(word::MADE, &self.made),
        ];
        generations.into_iter().chain(epochs).chain(words).chain(Put::fence()).for_each(|put| self.put(put));
        self.write()?;
        let number = self.parts.last().expect("one is open").number;
        self.place.make_durable(number).map_err(|e| self.failed(&e))
    }

    pub(super) fn rotate_if_full(&mut self) -> Result<(), StoreError> {
        let grown = self.database().size().saturating_sub(self.made.size);
        // Small ones give their room back soon, on the disk and, as sled keeps pages, in memory. Those with states cost
        // more than that, and of a backlog there would be too many.
        let is_live = self.lane == Lane::Telemetry && self.waiting_bytes() < LIVE_BYTES_MAX;
        let is_small = self.is_tight || is_live;
        let size = if is_small { self.generation_size.min(SMALL_GENERATION_SIZE) } else { self.generation_size };
        if grown >= size { self.rotate() } else { Ok(()) }
    }

    /// What a new generation takes on the disk at most.
    pub(in crate::store) fn new_generation_size(&self) -> Result<u64, StoreError> {
        let states = states(self.database()).try_fold(0, |sum, entry| {
            let (key, line) = entry?;
            Ok(sum + (key.len() + line.len()) as u64)
        })?;
        Ok(NEW_GENERATION + NEW_STATES_TIMES * states)
    }

    /// Seals the open generation and goes on in a new one. Nothing may be staged.
    pub(in crate::store) fn rotate(&mut self) -> Result<(), StoreError> {
        let old = self.parts.last().expect("one is open").clone();
        if old.first == old.end {
            // No record is in it: a sealed one would never be drained.
            return Ok(());
        }
        let next =
            Part { number: old.number + 1, first: old.end, end: old.end, waiting: 0, bytes: 0, has_holes: false };
        let database = make(&self.place, next.number, &self.setup())?;
        let old_database = self.database.replace(database).expect("one is open");
        debug!(chain = self.name(), generation = next.number, "a new generation of the store begins");
        self.parts.push(next);
        self.furnish(states(&old_database))?;
        if old_database.has_blobs() {
            error!(
                chain = self.name(),
                "the store has blob files, which a power cut can destroy: a value was too large"
            );
            self.metrics.outbox_blobs.with_label_values(&[self.name()]).inc();
        }
        drop(old_database);
        self.note_mark()
    }

    /// Removes generations nobody needs any more.
    pub(super) fn remove_drained(&mut self, drained: &[u64]) {
        for number in drained {
            self.readers.close(*number);
            self.parts.retain(|part| part.number != *number);
            if let Err(error) = self.place.remove(*number) {
                // The next start removes what is left.
                warn!(chain = self.name(), number, "a drained generation cannot be removed: {error}");
            }
        }
    }

    /// What lies in no generation is missing.
    pub(super) fn find_gaps(&mut self) {
        let present = self.parts.iter().filter(|part| part.first < part.end).map(|part| part.first..=part.end - 1);
        self.miss_all_but(&present.collect());
    }

    fn miss_all_but(&mut self, present: &RangeInclusiveSet<u64>) {
        let mut all = RangeInclusiveSet::new();
        for (first, last) in self.settled.gaps(1, self.durable.next_position - 1) {
            all.insert(first..=last);
        }
        for run in present.iter() {
            all.remove(run.clone());
        }
        self.missing = all;
        for part in &mut self.parts {
            let last = part.end.max(1) - 1;
            let waiting = self.settled.gaps(part.first, last).map(|(first, last)| last - first + 1).sum::<u64>();
            part.waiting = waiting - count_within(&self.missing, part.first, last);
        }
        if !self.missing.is_empty() {
            error!(chain = self.name(), missing = count(&self.missing), "records of the store are lost");
        }
    }

    /// Looks which sealed generation holds what, and what is missing: someone has changed them.
    pub(super) fn survey(&mut self) -> Result<(), StoreError> {
        let numbers = self.place.generations().map_err(|e| self.unreadable(&e))?;
        let open = self.parts.last().expect("one is open").clone();
        let sealed: Vec<u64> = numbers.into_iter().filter(|number| *number != open.number).collect();
        let bytes: Vec<Bytes> = sealed.iter().map(|number| Bytes::File(self.place.data(*number))).collect();
        let view = View::of(self.lane, &bytes, u64::MAX, self.commit).map_err(|e| self.unreadable(&e))?;
        let found = survey(&sealed, &view.records, &self.settled);
        let gone: Vec<u64> = self.parts.iter().map(|part| part.number).filter(|n| *n != open.number).collect();
        for number in gone.into_iter().filter(|number| !found.iter().any(|(known, _)| known == number)) {
            self.put(Put::generation(number, None));
        }
        let mut present: RangeInclusiveSet<u64> = RangeInclusiveSet::new();
        for (number, meta) in &found {
            let at = sealed.iter().position(|known| known == number).expect("it was looked at");
            let runs = view.records[at].positions.overlapping(meta.first..=meta.end - 1);
            present.extend(runs.map(|run| (*run.start()).max(meta.first)..=(*run.end()).min(meta.end - 1)));
        }
        if open.first < open.end {
            present.insert(open.first..=open.end - 1);
        }
        self.parts = found.into_iter().map(|(number, meta)| Part::sealed(number, meta)).collect();
        self.parts.push(open);
        self.miss_all_but(&present);
        let last = self.parts.len() - 1;
        for at in 0..last {
            let part = &mut self.parts[at];
            part.has_holes = count_within(&self.missing, part.first, part.end - 1) > 0;
            let (number, meta) = (part.number, part.meta());
            self.readers.close(number);
            self.put(Put::generation(number, Some(&meta)));
        }
        Ok(())
    }

    /// Rewrites a sealed generation with only what still waits in it.
    pub(in crate::store) fn compact(&mut self, number: u64) -> Result<(), StoreError> {
        let (_, sealed) = self.parts.split_last().expect("one is open");
        let Some(part) = sealed.iter().find(|part| part.number == number).cloned() else { return Ok(()) };
        let old = match Sealed::open(&self.place.data(number), self.lane) {
            Ok(old) => old,
            // Someone has taken it away.
            Err(error) if is_absent(&error) => return self.survey(),
            Err(error) => return Err(self.unreadable(&error)),
        };
        let waits = |position: &u64| (part.first..part.end).contains(position) && !self.settled.contains(*position);
        let lines = old.positions().filter(waits).filter_map(|position| old.line(position));
        let mut bytes = 0;
        let write = |file: &mut dyn std::io::Write| {
            for line in lines {
                bytes += line.len() as u64;
                file.write_all(&line)?;
            }
            Ok(())
        };
        self.place.replace(number, write).map_err(|e| self.failed(&e))?;
        self.readers.close(number);
        // What is settled lies in no file now: the generation begins and ends with what waits.
        let waiting: Vec<_> = self.settled.gaps(part.first, part.end - 1).collect();
        let of_number = self.parts.iter_mut().find(|part| part.number == number).expect("it was just there");
        of_number.bytes = bytes;
        if let (Some((first, _)), Some((_, last))) = (waiting.first(), waiting.last()) {
            (of_number.first, of_number.end) = (*first, last + 1);
        }
        let meta = of_number.meta();
        self.put(Put::generation(number, Some(&meta)));
        Ok(())
    }

    /// The generations, oldest first.
    pub(in crate::store) fn generations(&self) -> Vec<Generation> {
        let open = self.parts.len() - 1;
        let generation = |(at, part): (usize, &Part)| Generation {
            number: part.number,
            first: part.first,
            end: part.end,
            waiting: part.waiting,
            disk_bytes: self.place.disk_bytes(part.number),
            sealed: at != open,
        };
        self.parts.iter().enumerate().map(generation).collect()
    }

    /// What is lost and not yet declared, by epoch.
    pub(in crate::store) fn lost(&self) -> Vec<Lost> {
        let epochs: Vec<_> = self.earlier.iter().chain([&self.durable.epoch]).collect();
        let mut lost = Vec::new();
        for (at, epoch) in epochs.iter().enumerate() {
            let end = epochs.get(at + 1).map_or(self.durable.next_position, |next| next.base + 1);
            let uncertain_from = epoch.uncertain_from.unwrap_or(u64::MAX);
            let within = |from: u64, to: u64, certain| {
                let positions: Vec<(u64, u64)> = runs_within(&self.missing, from, to.max(1) - 1).collect();
                let ranges = positions.iter().map(|(first, last)| (first - epoch.base, last - epoch.base)).collect();
                Lost { lane: self.lane, epoch: epoch.epoch.clone(), ranges, positions, certain }
            };
            let split = uncertain_from.clamp(epoch.base + 1, end);
            lost.push(within(epoch.base + 1, split, true));
            lost.push(within(split, end, false));
        }
        lost.retain(|lost: &Lost| !lost.positions.is_empty());
        lost
    }

    fn unreadable(&self, error: &std::io::Error) -> StoreError {
        StoreError::Read { chain: self.name(), reason: error.to_string().into() }
    }
}

/// The states in a database, in their lines.
pub(super) fn states(database: &Database) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>> {
    let mut after: Option<sled::IVec> = None;
    std::iter::from_fn(move || {
        loop {
            let bound = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&**key));
            let (key, line) = match database.after(bound) {
                Ok(Some(found)) => found,
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            };
            after = Some(if key[0] == Kind::Record.letter() {
                sled::IVec::from(&[Kind::Record.letter() + 1])
            } else {
                key.clone()
            });
            let alive = Envelope::read(&line).is_some_and(|(line, _)| is_carried(line.kind, line.key, line.payload));
            if alive {
                return Some(Ok((key.to_vec(), line.to_vec())));
            }
        }
    })
}

/// The runs of a set from `first` to `last`; none if it ends before it begins.
fn runs_within(set: &RangeInclusiveSet<u64>, first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
    let runs = (first <= last).then(|| set.overlapping(first..=last));
    runs.into_iter().flatten().map(move |run| ((*run.start()).max(first), (*run.end()).min(last)))
}

/// How many of these positions are in a set.
pub(super) fn count_within(set: &RangeInclusiveSet<u64>, first: u64, last: u64) -> u64 {
    runs_within(set, first, last).map(|(first, last)| last - first + 1).sum()
}

/// How many positions are in a set.
pub(super) fn count(set: &RangeInclusiveSet<u64>) -> u64 {
    set.iter().map(|run| run.end() - run.start() + 1).sum()
}
