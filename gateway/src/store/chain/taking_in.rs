//! A chain takes in what a store in memory holds, when its own folder can be used again.
//!
//! Its records become a sealed generation, under their own numbers and epochs, behind all that is here already; their
//! positions are shifted by one distance for all. The epoch of the store in memory is the present one from then on. A
//! crash leaves all of it or nothing, and a store that was taken in once and went on in memory is taken in further.

use rangemap::RangeInclusiveSet;

use super::{Chain, Part, generations};
use crate::store::{
    StoreError, Stored,
    envelope::{Envelope, Kind, RecordKey},
    layout::{EpochMeta, Write},
    memory::Left,
};

impl Chain {
    /// Takes in what waits of it, `records`, and the states. Nothing may be staged.
    pub(in crate::store) fn take_in(
        &mut self,
        left: &Left,
        records: impl Iterator<Item = Stored>,
    ) -> Result<(), StoreError> {
        let from = self.durable.next_position;
        let distance = self.distance(left);
        let end = (distance + left.next).max(from);
        let old = self.parts.last().expect("one is open").clone();

        let mut taken = Part { number: old.number + 1, first: end, end, waiting: 0, bytes: 0, has_holes: false };
        let mut positions = RangeInclusiveSet::new();
        let new = records.map(|stored| Stored { position: stored.position + distance, ..stored });
        let mut new = new.filter(|stored| (from..end).contains(&stored.position)).peekable();
        if new.peek().is_some() {
            let commit = self.commit;
            let write = |file: &mut dyn std::io::Write| {
                for stored in new {
                    let line = line(&stored, commit).map_err(std::io::Error::other)?;
                    file.write_all(&line)?;
                    positions.insert(stored.position..=stored.position);
                    taken.first = taken.first.min(stored.position);
                    taken.end = stored.position + 1;
                    taken.waiting += 1;
                    taken.bytes += line.len() as u64;
                }
                Ok(())
            };
            self.place.replace(old.number + 1, write).map_err(|error| self.failed(&error))?;
            taken.has_holes = taken.waiting != taken.end - taken.first;
        }
        self.staged.next_position = end;
        self.reserve()?;

        let next = Part { number: old.number + 2, first: end, end, waiting: 0, bytes: 0, has_holes: false };
        let database = generations::make(&self.place, next.number, &self.setup())?;
        let old_database = self.database.replace(database).expect("one is open");
        if old.first == old.end {
            // A sealed one without records would never be drained.
            self.parts.pop();
        }
        if taken.waiting > 0 {
            self.parts.push(taken);
        }
        self.parts.push(next);
        self.settle_as_in(left, distance);
        self.settled.gaps(from, end - 1).for_each(|(first, last)| self.missing.insert(first..=last));
        positions.iter().for_each(|run| self.missing.remove(run.clone()));
        self.enter_epochs(left, distance);
        self.durable.next_position = end;
        self.staged = self.durable.clone();
        self.session = self.session.max(left.session);
        left.states.iter().for_each(|put| self.put(put.clone()));
        self.furnish(generations::states(&old_database))?;
        drop(old_database);
        if old.first == old.end {
            self.place.remove(old.number).map_err(|error| self.failed(&error))?;
        }
        self.note_mark()
    }

    /// How far its positions are moved: where an epoch of it is known here, it stays where it is.
    fn distance(&self, left: &Left) -> u64 {
        let here =
            |of: &EpochMeta| self.epochs().find(|known| known.epoch == of.epoch).map(|known| (known.base, of.base));
        let known = left.epochs.iter().find_map(here).and_then(|(here, there)| here.checked_sub(there));
        known.unwrap_or(self.durable.next_position - 1)
    }

    fn epochs(&self) -> impl Iterator<Item = &EpochMeta> {
        self.earlier.iter().chain([&self.durable.epoch])
    }

    /// What needs no delivery there needs none here.
    fn settle_as_in(&mut self, left: &Left, distance: u64) {
        for (first, last) in left.settled.runs() {
            let (first, last) = (distance + first.max(1), distance + last);
            // Of what was taken in before, some may wait here.
            let until = self.durable.next_position - 1;
            self.settle(first, last.min(until));
            self.settled.insert_all(first.max(until + 1), last);
        }
    }

    fn enter_epochs(&mut self, left: &Left, distance: u64) {
        for of in &left.epochs {
            if self.epochs().any(|known| known.epoch == of.epoch) {
                continue;
            }
            let base = of.base + distance;
            let new = EpochMeta { base, uncertain_from: of.uncertain_from.map(|from| from + distance), ..of.clone() };
            let before = std::mem::replace(&mut self.durable.epoch, new);
            if before.base < base {
                self.earlier.push(before);
            }
        }
    }
}

/// A record as it lies in a sealed generation.
fn line(stored: &Stored, commit: u64) -> Result<Vec<u8>, StoreError> {
    let Write { records, .. } = Write::of_records(std::slice::from_ref(&stored.record))?;
    let record = records.first().expect("of one record one");
    let (lane, sequence, position) = (record.lane, record.sequence, stored.position);
    let key = RecordKey { lane, epoch: record.epoch.clone(), sequence, position }.to_string();
    Ok(Envelope { kind: Kind::Record, commit, key: &key, payload: &record.payload }.to_bytes())
}
