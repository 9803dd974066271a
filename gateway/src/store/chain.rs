//! One chain: a lane of records and the states that change with it, in generations of one database each.
//!
//! Terms: a **group** is what several jobs stage and one [`Chain::commit`] writes, in one batch, whole or not at all.
//! What is staged shows nowhere before that. Confirmations show at once: they only say what need not be sent again.
//!
//! A position is `base + sequence`, `base` being where its epoch begins. The **settled** number of the present epoch
//! counts from its own first record; records of earlier epochs that still wait do not hold it back. A position below the
//! next that is neither settled nor in any generation is **missing**: lost, and to be declared.

mod generations;
mod reading;
mod taking_in;

use std::collections::BTreeMap;

use rangemap::RangeInclusiveSet;
use tokio::sync::watch;

use self::reading::Readers;
use super::{
    Head, OpenError, StoreError,
    durable::{Database, SyncFile, unwritable},
    envelope::{Envelope, Kind, RecordKey},
    guard::{Found, Looker},
    layout::{Chunks, EpochMeta, MadeMeta, NextMeta, Numbered, Put, SealedMeta, Write, record_key, word},
    mark::{Mark, MarkFile, RESERVED_AT_ONCE, SETTLED_RUNS_MAX},
    place::Place,
    settled::Settled,
};
use crate::{
    clock::{BootId, Now},
    metrics::Metrics,
    record::{Epoch, Lane, LaneStatus},
};

/// What a chain is opened with, besides what it holds.
pub(super) struct Setup<'a> {
    pub(super) lane: Lane,
    pub(super) boot: &'a BootId,
    pub(super) generation_size: u64,
    pub(super) sync_file: &'a SyncFile,
    pub(super) metrics: &'a Metrics,
}

/// Where the numbers of a chain stand.
#[derive(Debug, Clone)]
struct Numbering {
    epoch: EpochMeta,
    next_position: u64,
}

impl Numbering {
    /// The number the next record gets.
    const fn next(&self) -> u64 {
        self.next_position - self.epoch.base
    }
}

/// A generation that is read from, the open one included.
#[derive(Debug, Clone)]
struct Part {
    number: u64,
    first: u64,
    /// The first position after it.
    end: u64,
    /// Records that wait, and bytes of all its records.
    waiting: u64,
    bytes: u64,
    /// Whether some of the positions are not in it.
    has_holes: bool,
}

impl Part {
    /// Bytes of those that wait, if all are of one size.
    fn waiting_bytes(&self) -> u64 {
        let all = (self.end - self.first).max(1);
        u64::try_from(u128::from(self.bytes) * u128::from(self.waiting) / u128::from(all)).unwrap_or(self.bytes)
    }

    const fn meta(&self) -> SealedMeta {
        SealedMeta { first: self.first, end: self.end, bytes: self.bytes, has_holes: self.has_holes }
    }
}

/// When the oldest waiting record was recorded, with its position.
type Oldest = (u64, BootId, Now);

/// An open chain.
pub(super) struct Chain {
    lane: Lane,
    place: Place,
    boot: BootId,
    generation_size: u64,
    sync_file: SyncFile,
    metrics: Metrics,
    /// None only while the chain is opened again.
    database: Option<Database>,
    /// Whether the disk was full.
    is_tight: bool,
    made: MadeMeta,
    mark: MarkFile,
    /// The last commit on stable storage, and the number the next one gets.
    commit: u64,
    next_commit: u64,
    session: u64,
    /// As on stable storage, and as it will be after the group in the making.
    durable: Numbering,
    staged: Numbering,
    /// Epochs before the present one of which records wait, by where they begin.
    earlier: Vec<EpochMeta>,
    puts: BTreeMap<(Kind, String), Vec<u8>>,
    chunks: Chunks,
    /// Positions that are settled with the group in the making.
    replaced: Vec<u64>,
    staged_size: usize,
    /// Records and bytes of the group in the making, and the oldest of them.
    joining: (u64, u64, Option<Oldest>),
    /// By where they begin; the open one is the last.
    parts: Vec<Part>,
    settled: Settled,
    /// As many of its ranges as the last commit wrote.
    settled_saved: Vec<(u64, u64)>,
    /// Positions of records that are gone: never handed out, not settled before that is declared.
    missing: RangeInclusiveSet<u64>,
    given_up: u64,
    oldest: Option<Oldest>,
    readers: Readers,
    head: watch::Sender<Head>,
}

impl Chain {
    /// A chain over what was found; `epoch` is the present one, `carried` what it starts with. Returns when both are on
    /// stable storage.
    pub(super) fn open(
        found: Found,
        epoch: &EpochMeta,
        carried: Vec<Put>,
        setup: &Setup<'_>,
    ) -> Result<Self, StoreError> {
        let numbering = Numbering { epoch: epoch.clone(), next_position: found.next_position };
        let status = LaneStatus { epoch: epoch.epoch.clone(), next: numbering.next(), settled: 0 };
        let (next_position, oldest) = (found.next_position, None);
        let head = Head { status, next_position, records: 0, bytes: 0, missing: 0, given_up: 0, oldest };
        let session = found.word(word::SESSION).unwrap_or(0);
        let (earlier, empty): (Vec<_>, Vec<_>) =
            found.epochs.iter().filter(|known| known.epoch != epoch.epoch).cloned().partition(|e| e.base < epoch.base);
        let begins = found.epoch() != Some(epoch);
        let (made, open_bytes) = (found.made, found.open_bytes);
        let sealed = found.sealed.iter().map(|(number, meta)| Part::sealed(*number, *meta));
        let mut parts: Vec<Part> = sealed.collect();
        let is_new = found.open.is_none();
        let (open, database) = match found.open {
            Some((number, database)) => (number, database),
            None => (found.next_generation, generations::make(&found.place, found.next_generation, setup)?),
        };
        let (first, end, bytes) = (made.first, next_position, open_bytes);
        parts.push(Part { number: open, first, end, waiting: 0, bytes, has_holes: false });
        let mut chain = Self {
            lane: setup.lane,
            place: found.place,
            boot: setup.boot.clone(),
            generation_size: setup.generation_size,
            sync_file: setup.sync_file.clone(),
            metrics: setup.metrics.clone(),
            database: Some(database),
            is_tight: false,
            made,
            mark: found.mark,
            commit: found.commit,
            next_commit: found.newest_commit.max(found.commit) + 1,
            session,
            durable: numbering.clone(),
            staged: numbering,
            earlier,
            puts: BTreeMap::new(),
            chunks: Chunks::default(),
            replaced: Vec::new(),
            staged_size: 0,
            joining: (0, 0, None),
            parts,
            settled_saved: found.settled.runs().collect(),
            settled: found.settled,
            missing: RangeInclusiveSet::new(),
            given_up: 0,
            oldest: None,
            readers: Readers::default(),
            head: watch::Sender::new(head),
        };
        chain.find_gaps();
        carried.into_iter().for_each(|put| chain.put(put));
        if is_new {
            chain.furnish(generations::carried(found.entries))?;
        } else {
            if chain.next_commit > chain.commit + 1 {
                chain.put(Put::word(word::VOID, &[(chain.commit + 1, chain.next_commit - 1)]));
            }
            if begins {
                chain.put(Put::epoch(epoch));
            }
            empty.iter().for_each(|epoch| chain.put(Put::no_epoch(&epoch.epoch)));
            chain.put(Put::word(word::SETTLED, &chain.settled_saved));
        }
        if found.damage.is_some() || chain.parts.iter().any(|part| part.has_holes) {
            chain.survey()?;
        }
        chain.commit()?;
        chain.sync_mark(false)?;
        chain.publish()?;
        Ok(chain)
    }

    /// How far the chain has come, for everyone to see.
    pub(super) fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Its name.
    pub(super) const fn name(&self) -> &'static str {
        self.place.chain
    }

    /// Stages what one job writes. After an error the group must not be committed.
    pub(super) fn stage(&mut self, write: &Write) -> Result<(), StoreError> {
        if let Some(epoch) = write.adopt.as_ref().filter(|epoch| **epoch != self.staged.epoch.epoch) {
            self.begin(epoch);
        }
        for record in &write.records {
            self.stage_record(record)?;
        }
        write.puts.iter().for_each(|put| self.put(put.clone()));
        self.replaced.extend(&write.replaced);
        Ok(())
    }

    fn stage_record(&mut self, record: &Numbered) -> Result<(), StoreError> {
        if record.sequence == 1 && record.epoch != self.staged.epoch.epoch {
            self.begin(&record.epoch);
        }
        let expected = (self.lane, &self.staged.epoch.epoch, self.staged.next());
        if (record.lane, &record.epoch, record.sequence) != expected {
            let id = |(lane, epoch, sequence): (Lane, _, _)| format!("{epoch}-{}-{sequence}", lane.as_str()).into();
            return Err(StoreError::Misnumbered {
                found: id((record.lane, &record.epoch, record.sequence)),
                expected: id(expected),
            });
        }
        if self.staged.epoch.started.take().is_some() {
            self.put(Put::epoch(&self.staged.epoch));
        }
        let position = self.staged.next_position;
        self.staged.next_position += 1;
        let Numbered { lane, epoch, sequence, boot, recorded, payload } = record;
        let key = RecordKey { lane: *lane, epoch: epoch.clone(), sequence: *sequence, position }.to_string();
        let line = Envelope { kind: Kind::Record, commit: self.next_commit, key: &key, payload }.to_bytes();
        self.chunks.push(position, &line);
        self.staged_size += line.len();
        self.joining.0 += 1;
        self.joining.1 += line.len() as u64;
        self.joining.2.get_or_insert_with(|| (position, boot.clone(), *recorded));
        Ok(())
    }

    fn begin(&mut self, epoch: &Epoch) {
        let base = self.staged.next_position - 1;
        let replaced = Some(self.staged.epoch.epoch.clone());
        let new = EpochMeta { epoch: epoch.clone(), base, replaced, started: None, uncertain_from: None };
        self.put(Put::epoch(&new));
        let before = std::mem::replace(&mut self.staged.epoch, new);
        if before.base < base {
            self.earlier.push(before);
        } else {
            // No record was ever numbered in it.
            self.put(Put::no_epoch(&before.epoch));
        }
    }

    /// Stages a value; of two with one key the later holds.
    pub(super) fn put(&mut self, put: Put) {
        self.staged_size += put.key.len() + put.payload.len();
        self.puts.insert((put.kind, put.key), put.payload);
    }

    /// Stages one more CONNECT; returns its number.
    pub(super) fn next_session(&mut self) -> u64 {
        self.session += 1;
        self.put(Put::word(word::SESSION, &self.session));
        self.session
    }

    /// Settles positions. Those of no durable record are ignored.
    pub(super) fn confirm(&mut self, positions: &[u64]) {
        for &position in positions {
            self.settle(position, position);
        }
    }

    /// Settles a run of positions that were not delivered.
    pub(super) fn give_up(&mut self, first: u64, last: u64) {
        self.settle(first, last);
        self.given_up += 1;
    }

    /// Settles a run of positions, missing ones included.
    pub(super) fn settle(&mut self, first: u64, last: u64) {
        let last = last.min(self.durable.next_position - 1);
        let gaps: Vec<(u64, u64)> = self.settled.gaps(first.max(1), last).collect();
        for (first, last) in gaps {
            let from = self.parts.partition_point(|part| part.end <= first);
            for part in self.parts[from..].iter_mut().take_while(|part| part.first <= last) {
                let (first, last) = (first.max(part.first), last.min(part.end - 1));
                part.waiting -= last - first + 1 - generations::count_within(&self.missing, first, last);
            }
            self.settled.insert_all(first, last);
            self.missing.remove(first..=last);
        }
    }

    /// Whether the disk has little room: generations stay small then.
    pub(super) const fn set_tight(&mut self, is_tight: bool) {
        self.is_tight = is_tight;
    }

    /// Size of the group in the making, in bytes.
    pub(super) const fn staged_size(&self) -> usize {
        self.staged_size
    }

    /// Writes the group and returns when it is on stable storage. After an error the chain is dead.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        let replaced = std::mem::take(&mut self.replaced);
        self.confirm(&replaced);
        let drained = self.stage_settled(&replaced);
        if self.puts.is_empty() && self.joining.0 == 0 {
            return Ok(());
        }
        self.reserve()?;
        self.write()?;
        self.durable = self.staged.clone();
        let (records, bytes, oldest) = std::mem::take(&mut self.joining);
        if self.waiting() == 0 {
            self.oldest = oldest;
        }
        let open = self.parts.last_mut().expect("one is open");
        open.end += records;
        open.waiting += records;
        open.bytes += bytes;
        self.note_mark()?;
        self.remove_drained(&drained);
        self.rotate_if_full()
    }

    /// Writes what is staged.
    fn write(&mut self) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        let records = self.joining.0;
        let lines = self.puts.len() as u64 + 1 + records;
        let next = NextMeta { next: self.staged.next_position, lines, after: self.commit };
        self.put(Put::word(word::NEXT, &next));
        let mut size = 0;
        for ((kind, key), payload) in std::mem::take(&mut self.puts) {
            let put = Put { kind, key, payload };
            let line = put.line(self.next_commit);
            size += line.len();
            batch.insert(put.database_key(), line);
        }
        for (first, chunk) in self.chunks.take() {
            size += chunk.len();
            batch.insert(record_key(first), chunk);
        }
        self.staged_size = 0;
        self.database().commit(batch, size)?;
        self.commit = self.next_commit;
        self.next_commit += 1;
        Ok(())
    }

    /// Stages what is settled, if that changed, and takes leave of what it makes needless; returns drained generations.
    fn stage_settled(&mut self, replaced: &[u64]) -> Vec<u64> {
        let ranges = self.settled.saved(&self.settled_saved, replaced);
        let covered = |first: u64, end: u64| ranges.iter().any(|(from, to)| *from <= first && end <= to + 1);
        let (_, sealed) = self.parts.split_last().expect("one is open");
        let drained: Vec<u64> =
            sealed.iter().filter(|part| covered(part.first, part.end)).map(|part| part.number).collect();
        // One may have been drained before it was sealed.
        if ranges == self.settled_saved && drained.is_empty() {
            return drained;
        }
        let ends = self.earlier.iter().skip(1).map(|next| next.base).chain([self.staged.epoch.base]);
        let over: Vec<Put> = self
            .earlier
            .iter()
            .zip(ends)
            .filter(|(epoch, end)| covered(epoch.base + 1, end + 1))
            .map(|(epoch, _)| Put::no_epoch(&epoch.epoch))
            .collect();
        self.earlier.retain(|epoch| over.iter().all(|put| put.key != epoch.epoch.as_str()));
        over.into_iter().for_each(|put| self.put(put));
        drained.iter().for_each(|number| self.put(Put::generation(*number, None)));
        self.put(Put::word(word::SETTLED, &ranges));
        self.settled_saved = ranges;
        drained
    }

    /// Makes sure that the mark covers what is about to be written.
    fn reserve(&mut self) -> Result<(), StoreError> {
        if self.mark.covers(self.staged.next_position) { Ok(()) } else { self.sync_mark(false) }
    }

    fn mark(&self, closed: bool) -> Mark {
        Mark {
            commit: self.commit,
            epoch: self.durable.epoch.epoch.clone(),
            base: self.durable.epoch.base,
            next: self.durable.next_position,
            settled: self.settled_saved.iter().take(SETTLED_RUNS_MAX).copied().collect(),
            reserved: self.mark.reserved().max(self.staged.next_position),
            boot: self.boot.clone(),
            closed,
        }
    }

    fn note_mark(&mut self) -> Result<(), StoreError> {
        let mark = self.mark(false);
        self.mark.note(&mark).map_err(|e| self.failed(&e))
    }

    fn sync_mark(&mut self, closed: bool) -> Result<(), StoreError> {
        let mut mark = self.mark(closed);
        mark.reserved = self.staged.next_position + RESERVED_AT_ONCE;
        self.mark.sync(&mark).map_err(|e| self.failed(&e))
    }

    /// Writes what is left and notes that nothing follows.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        self.commit()?;
        self.sync_mark(true)
    }

    fn failed(&self, error: &std::io::Error) -> StoreError {
        unwritable(self.name(), error)
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("nothing is asked of a chain that could not be opened again")
    }

    fn setup(&self) -> Setup<'_> {
        Setup {
            lane: self.lane,
            boot: &self.boot,
            generation_size: self.generation_size,
            sync_file: &self.sync_file,
            metrics: &self.metrics,
        }
    }

    /// Opens the chain again after a write failed and writes the group of these jobs; what is settled in memory stays so.
    /// After an error the chain can only be opened again.
    pub(super) fn reopen(&mut self, group: &[Write]) -> Result<(), StoreError> {
        // sled lets nobody else in before it is gone.
        self.database = None;
        let looker = Looker { lane: self.lane, boot: &self.boot, sync_file: &self.sync_file, metrics: &self.metrics };
        let found = looker.look(&self.place).map_err(|error| match error {
            OpenError::Full { .. } => StoreError::Full { chain: self.name() },
            other => StoreError::Write { chain: self.name(), reason: other.to_string().into() },
        })?;
        if found.damage.as_ref().is_some_and(|damage| !damage.numbers_known) {
            // The next start begins a new epoch.
            return Err(StoreError::Write { chain: self.name(), reason: "it is damaged as well".into() });
        }
        let epoch = found.epoch().unwrap_or(&self.durable.epoch).clone();
        let mut chain = Self::open(found, &epoch, Vec::new(), &self.setup())?;
        for (first, last) in self.settled.runs() {
            chain.settle(first, last);
        }
        if chain.session < self.session {
            chain.session = self.session;
            chain.put(Put::word(word::SESSION, &self.session));
        }
        chain.head = self.head.clone();
        (chain.is_tight, chain.given_up) = (true, self.given_up);
        // What failed may have come after it, such as the next generation; without records it can be written again.
        let has_records = group.iter().any(|write| !write.records.is_empty());
        let written = has_records && chain.durable.next_position == self.staged.next_position;
        *self = chain;
        if !written {
            group.iter().try_for_each(|write| self.stage(write))?;
        }
        self.commit()
    }

    /// Whether everything stored was delivered, and still takes room.
    pub(super) fn is_delivered(&self) -> bool {
        !self.has_waiting() && self.parts.last().is_some_and(|open| open.first < open.end)
    }

    /// Whether anything stored is still to be delivered.
    pub(super) fn has_waiting(&self) -> bool {
        self.parts.iter().any(|part| part.waiting > 0)
    }

    /// Records that wait.
    fn waiting(&self) -> u64 {
        self.parts.iter().map(|part| part.waiting).sum()
    }

    fn waiting_bytes(&self) -> u64 {
        self.parts.iter().map(Part::waiting_bytes).sum()
    }

    /// Tells everyone how far the chain has come, if that changed.
    pub(super) fn publish(&mut self) -> Result<(), StoreError> {
        self.find_oldest()?;
        let Numbering { epoch: EpochMeta { epoch, base, .. }, next_position } = &self.durable;
        let head = Head {
            status: LaneStatus {
                epoch: epoch.clone(),
                next: self.durable.next(),
                settled: self.settled.run_from(base + 1) - base,
            },
            next_position: *next_position,
            records: self.waiting(),
            bytes: self.waiting_bytes(),
            missing: generations::count(&self.missing),
            given_up: self.given_up,
            oldest: self.oldest.as_ref().map(|(_, boot, recorded)| (boot.clone(), *recorded)),
        };
        let lane = [self.lane.as_str()];
        self.metrics.outbox_records.with_label_values(&lane).set(head.records.cast_signed());
        self.metrics.outbox_bytes.with_label_values(&lane).set(head.bytes.cast_signed());
        self.head.send_if_modified(|old| {
            let changed = *old != head;
            *old = head;
            changed
        });
        Ok(())
    }
}
