//! One chain: a lane of records and the states that change with it, in one database.
//!
//! Terms: a **group** is what several jobs stage and one [`Chain::commit`] writes, in one batch, whole or not at all.
//! What is staged shows nowhere before that. Confirmations show at once: they only say what need not be sent again.
//!
//! A position is `base + sequence`, `base` being where its epoch begins. The **settled** number of the present epoch
//! counts from its own first record; records of earlier epochs that still wait do not hold it back.

use std::{collections::BTreeSet, ops::Bound};

use rangemap::RangeInclusiveSet;
use tokio::sync::watch;
use tracing::error;

use super::{
    Head, StoreError, Stored, Unproven,
    durable::{Database, Fault},
    envelope,
    layout::{self, EpochMeta, FORMAT, Numbered, States, Write, json, meta, parse, record_key, record_position},
    settled::Settled,
};
use crate::{
    alarm::{AlarmId, AlarmState},
    clock::{BootId, Now},
    machine::Machine,
    metrics::Metrics,
    record::{Lane, LaneStatus},
};

/// Most records handed out at once: 1 MiB if each is as large as can be.
const READ_RECORDS_MAX: usize = 256;

/// Where the numbers of a chain stand.
#[derive(Debug, Clone)]
pub(super) struct Numbering {
    pub(super) epoch: EpochMeta,
    pub(super) next_position: u64,
}

impl Numbering {
    /// The number the next record gets.
    pub(super) const fn next(&self) -> u64 {
        self.next_position - self.epoch.base
    }
}

/// What lies in a database when it is opened.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) machine: Option<Machine>,
    pub(super) unproven: Vec<Unproven>,
    pub(super) epoch: Option<EpochMeta>,
    pub(super) next_position: u64,
    pub(super) states: States,
    pub(super) session: u64,
    format: Option<u32>,
    settled: Settled,
    waiting: Waiting,
    unreadable: RangeInclusiveSet<u64>,
}

/// The records that wait for delivery.
#[derive(Debug, Default)]
struct Waiting {
    records: u64,
    bytes: u64,
    /// Position of the oldest and when it was recorded; looked up when it is asked for and missing.
    oldest: Option<(u64, BootId, Now)>,
}

/// Reads all of a database once, in bounded memory.
pub(super) fn scan(database: &Database) -> Result<Found, Fault> {
    fn read<T: serde::de::DeserializeOwned>(database: &Database, key: &[u8]) -> Result<Option<T>, Fault> {
        let Some(value) = database.get(key)? else { return Ok(None) };
        let garbled = || Fault::Damaged(format!("{} is garbled", String::from_utf8_lossy(key)));
        parse(&value).map(Some).ok_or_else(garbled)
    }
    let format: Option<u32> = read(database, meta::FORMAT)?;
    if let Some(found) = format.filter(|found| *found != FORMAT) {
        return Err(Fault::Refused(database.of_another_format(found)));
    }
    let mut next_position = read(database, meta::NEXT)?.unwrap_or(1);
    let ranges: Vec<(u64, u64)> = read(database, meta::SETTLED)?.unwrap_or_default();
    let settled = Settled::load(&ranges, next_position).ok_or_else(|| Fault::Damaged("impossible ranges".into()))?;
    let (mut states, mut waiting, mut unreadable) = (States::default(), Waiting::default(), RangeInclusiveSet::new());
    let (mut present, mut after) = (0, Bound::Unbounded);
    while let Some((key, value)) = database.after(after.as_ref().map(|key: &sled::IVec| &**key))? {
        if let Some(position) = record_position(&key) {
            next_position = next_position.max(position.saturating_add(1));
            if !settled.contains(position) {
                present += 1;
                if envelope::check(&value).is_some() {
                    waiting.records += 1;
                    waiting.bytes += value.len() as u64;
                } else {
                    unreadable.insert(position..=position);
                }
            }
        } else {
            states.take(&key, &value);
        }
        after = Bound::Excluded(key);
    }
    let epoch: Option<EpochMeta> = read(database, meta::EPOCH)?;
    if epoch.as_ref().is_some_and(|epoch| epoch.base >= next_position) {
        return Err(Fault::Damaged("the epoch begins after the last record".into()));
    }
    let missing = (next_position - 1).saturating_sub(settled.count() + present);
    let garbled = present - waiting.records;
    if missing > 0 || garbled > 0 || !states.unreadable.is_empty() {
        let states = states.unreadable.join(", ");
        error!(chain = database.chain(), missing, garbled, states, "records or states of the store are lost");
    }
    Ok(Found {
        machine: read(database, meta::MACHINE)?,
        unproven: read(database, meta::UNPROVEN)?.unwrap_or_default(),
        epoch,
        session: read(database, meta::SESSION)?.unwrap_or(0),
        next_position,
        states,
        format,
        settled,
        waiting,
        unreadable,
    })
}

/// An open chain.
pub(super) struct Chain {
    lane: Lane,
    database: Database,
    session: u64,
    /// As on stable storage, and as it will be after the group in the making.
    durable: Numbering,
    staged: Numbering,
    batch: sled::Batch,
    batch_size: usize,
    /// Records of the group in the making.
    joining: Waiting,
    waiting: Waiting,
    settled: Settled,
    /// Settled in memory, not yet on disk; their records are still there.
    unsaved: BTreeSet<u64>,
    /// Positions of records that cannot be read: never handed out, never settled.
    unreadable: RangeInclusiveSet<u64>,
    head: watch::Sender<Head>,
    metrics: Metrics,
}

impl Chain {
    /// A chain over what was found; `epoch` is the present one.
    pub(super) fn new(lane: Lane, database: Database, found: Found, epoch: EpochMeta, metrics: &Metrics) -> Self {
        let numbering = Numbering { epoch, next_position: found.next_position };
        let status = LaneStatus { epoch: numbering.epoch.epoch.clone(), next: numbering.next(), settled: 0 };
        let head = Head { status, next_position: numbering.next_position, records: 0, bytes: 0, oldest: None };
        let mut chain = Self {
            lane,
            database,
            session: found.session,
            durable: numbering.clone(),
            staged: numbering,
            batch: sled::Batch::default(),
            batch_size: 0,
            joining: Waiting::default(),
            waiting: found.waiting,
            settled: found.settled,
            unsaved: BTreeSet::new(),
            unreadable: found.unreadable,
            head: watch::Sender::new(head),
            metrics: metrics.clone(),
        };
        if found.format.is_none() {
            chain.put(meta::FORMAT, json(&FORMAT));
        }
        chain
    }

    /// How far the chain has come, for everyone to see.
    pub(super) fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// The database, for what concerns its files.
    pub(super) const fn database(&self) -> &Database {
        &self.database
    }

    /// Stages what one job writes. After an error the group must not be committed.
    pub(super) fn stage(&mut self, write: Write) -> Result<(), StoreError> {
        if let Some(epoch) = write.adopt.filter(|epoch| *epoch != self.staged.epoch.epoch) {
            self.begin(epoch);
        }
        for record in write.records {
            self.stage_record(record)?;
        }
        for (key, value) in write.puts {
            self.put(&key, value);
        }
        for key in write.removes {
            self.batch_size += key.len();
            self.batch.remove(key);
        }
        self.confirm(&write.replaced)
    }

    fn stage_record(&mut self, record: Numbered) -> Result<(), StoreError> {
        if record.sequence == 1 && record.epoch != self.staged.epoch.epoch {
            self.begin(record.epoch.clone());
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
            self.put(meta::EPOCH, json(&self.staged.epoch));
        }
        let position = self.staged.next_position;
        self.staged.next_position += 1;
        self.joining.records += 1;
        self.joining.bytes += record.bytes.len() as u64;
        self.joining.oldest.get_or_insert((position, record.boot, record.recorded));
        self.put(&record_key(position), record.bytes);
        Ok(())
    }

    fn begin(&mut self, epoch: crate::record::Epoch) {
        let base = self.staged.next_position - 1;
        let replaced = Some(std::mem::replace(&mut self.staged.epoch.epoch, epoch));
        self.staged.epoch.base = base;
        self.staged.epoch.replaced = replaced;
        self.staged.epoch.started = None;
        self.put(meta::EPOCH, json(&self.staged.epoch));
    }

    /// Stages one of the chain's own values.
    pub(super) fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.batch_size += key.len() + value.len();
        self.batch.insert(key, value);
    }

    /// Stages one more CONNECT; returns its number.
    pub(super) fn next_session(&mut self) -> u64 {
        self.session += 1;
        self.put(meta::SESSION, json(&self.session));
        self.session
    }

    /// Settles positions. Those of no durable record are ignored.
    pub(super) fn confirm(&mut self, positions: &[u64]) -> Result<(), StoreError> {
        for &position in positions.iter().filter(|p| (1..self.durable.next_position).contains(*p)) {
            if !self.settled.insert(position) {
                continue;
            }
            self.unsaved.insert(position);
            if let Some(record) = self.database.get(&record_key(position))?
                && !self.unreadable.contains(&position)
            {
                self.waiting.records -= 1;
                self.waiting.bytes -= record.len() as u64;
            }
        }
        Ok(())
    }

    /// Size of the group in the making, in bytes.
    pub(super) const fn staged_size(&self) -> usize {
        self.batch_size
    }

    /// Writes the group and returns when it is on stable storage. After an error the chain is dead.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        if self.durable.next_position != self.staged.next_position {
            self.put(meta::NEXT, json(&self.staged.next_position));
        }
        self.stage_confirmations();
        if self.batch_size == 0 {
            return Ok(());
        }
        self.database.commit(std::mem::take(&mut self.batch), std::mem::take(&mut self.batch_size))?;
        self.durable = self.staged.clone();
        let joined = std::mem::take(&mut self.joining);
        if self.waiting.records == 0 {
            self.waiting.oldest = joined.oldest;
        }
        self.waiting.records += joined.records;
        self.waiting.bytes += joined.bytes;
        Ok(())
    }

    fn stage_confirmations(&mut self) {
        let ranges = self.settled.saved();
        let last = ranges.last().map_or(0, |(_, last)| *last);
        let rest = self.unsaved.split_off(&(last + 1));
        let saved = std::mem::replace(&mut self.unsaved, rest);
        if saved.is_empty() {
            return;
        }
        for position in saved {
            self.batch_size += record_key(position).len();
            self.batch.remove(&record_key(position));
        }
        self.put(meta::SETTLED, json(&ranges));
    }

    /// Tells everyone how far the chain has come, if that changed.
    pub(super) fn publish(&mut self) -> Result<(), StoreError> {
        self.find_oldest()?;
        let Numbering { epoch: EpochMeta { epoch, base, .. }, next_position } = &self.durable;
        let settled = self.settled.run_from(base + 1) - base;
        let Waiting { records, bytes, ref oldest } = self.waiting;
        let head = Head {
            status: LaneStatus { epoch: epoch.clone(), next: self.durable.next(), settled },
            next_position: *next_position,
            records,
            bytes,
            oldest: oldest.as_ref().map(|(_, boot, recorded)| (boot.clone(), *recorded)),
        };
        let lane = [self.lane.as_str()];
        self.metrics.outbox_records.with_label_values(&lane).set(records.cast_signed());
        self.metrics.outbox_bytes.with_label_values(&lane).set(bytes.cast_signed());
        self.head.send_if_modified(|old| {
            let changed = *old != head;
            *old = head;
            changed
        });
        Ok(())
    }

    fn find_oldest(&mut self) -> Result<(), StoreError> {
        let from = match &self.waiting.oldest {
            Some((position, ..)) if !self.settled.contains(*position) => return Ok(()),
            Some((position, ..)) => *position,
            None => 0,
        };
        self.waiting.oldest = None;
        if self.waiting.records > 0 {
            let oldest = self.read(from, 1)?.pop();
            self.waiting.oldest = oldest.map(|found| (found.position, found.record.boot, found.record.recorded));
        }
        Ok(())
    }

    /// Waiting records from `position` on, oldest first. One that cannot be read is passed over and named once.
    pub(super) fn read(&mut self, position: u64, records_max: usize) -> Result<Vec<Stored>, StoreError> {
        let mut found = Vec::new();
        // What is settled may still lie there until the next group.
        let mut from = self.settled.run_from(position) + 1;
        while found.len() < records_max.min(READ_RECORDS_MAX)
            && let Some((position, value)) = self.record_from(from)?
        {
            if !self.settled.contains(position) && !self.unreadable.contains(&position) {
                match envelope::decode(&value) {
                    Some(record) => found.push(Stored { position, size: value.len(), record }),
                    None => self.pass_over(position, value.len()),
                }
            }
            from = self.settled.run_from(position + 1) + 1;
        }
        Ok(found)
    }

    /// The record at a position, nearly always there, or the next one after it.
    fn record_from(&self, position: u64) -> Result<Option<(u64, sled::IVec)>, StoreError> {
        let key = record_key(position);
        if let Some(value) = self.database.get(&key)? {
            return Ok(Some((position, value)));
        }
        let next = self.database.after(Bound::Excluded(&key))?;
        Ok(next.and_then(|(at, value)| Some((record_position(&at)?, value))))
    }

    fn pass_over(&mut self, position: u64, size: usize) {
        error!(chain = self.database.chain(), position, "a stored record cannot be read and is kept back");
        self.unreadable.insert(position..=position);
        self.waiting.records -= 1;
        self.waiting.bytes -= size as u64;
    }

    /// State of these alarms, without those that have none.
    pub(super) fn alarms_of(&self, ids: &[AlarmId]) -> Result<Vec<AlarmState>, StoreError> {
        let mut found = Vec::new();
        for id in ids {
            let value = self.database.get(&layout::named(layout::prefix::ALARM, id.as_str()))?;
            found.extend(value.and_then(|value| parse(&value)));
        }
        Ok(found)
    }

    /// State of every alarm.
    pub(super) fn alarms(&self) -> Result<Vec<AlarmState>, StoreError> {
        let mut states = States::default();
        let mut key = sled::IVec::from(&[layout::prefix::ALARM]);
        while let Some((at, value)) = self.database.after(Bound::Excluded(&key))?
            && at[0] == layout::prefix::ALARM
        {
            states.take(&at, &value);
            key = at;
        }
        Ok(states.alarms)
    }
}
