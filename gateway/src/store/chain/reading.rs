//! Reading what a chain holds: records wherever they lie, and states.

use std::ops::Bound;

use tracing::error;

use super::Chain;
use crate::{
    alarm::{AlarmId, AlarmState},
    store::{
        StoreError, Stored,
        envelope::{Envelope, Kind},
        layout::{States, database_key, parse, record_key},
        raw::is_absent,
        sealed::Sealed,
    },
};

/// Most records handed out at once: 1 MiB if each is as large as can be.
const READ_RECORDS_MAX: usize = 256;
/// Sealed generations open at once: the oldest that waits, and where live telemetry is read.
const READERS_MAX: usize = 2;

/// Sealed generations that are open, the last used last.
#[derive(Debug, Default)]
pub(super) struct Readers(Vec<(u64, Sealed)>);

impl Readers {
    /// Forgets one whose file changes.
    pub(super) fn close(&mut self, number: u64) {
        self.0.retain(|(open, _)| *open != number);
    }
}

/// A record as it was read.
enum Line {
    There(Stored),
    Gone,
}

impl Chain {
    /// Waiting records from `position` on, oldest first. One that cannot be read is missing from then on.
    pub(in crate::store) fn read(&mut self, position: u64, records_max: usize) -> Result<Vec<Stored>, StoreError> {
        let mut found = Vec::new();
        let mut at = position.max(1);
        while found.len() < records_max.min(READ_RECORDS_MAX)
            && let Some(next) = self.next_waiting(at)
        {
            match self.line(next)? {
                Line::There(stored) => {
                    found.push(stored);
                    at = next + 1;
                }
                // It is missing now, or it was found elsewhere.
                Line::Gone => {
                    self.lose(next)?;
                    at = next;
                }
            }
        }
        Ok(found)
    }

    /// The first position from `at` on that waits.
    fn next_waiting(&self, mut at: u64) -> Option<u64> {
        loop {
            at = self.settled.run_from(at) + 1;
            match self.missing.get(&at) {
                Some(run) => at = run.end() + 1,
                None => return (at < self.durable.next_position).then_some(at),
            }
        }
    }

    fn line(&mut self, position: u64) -> Result<Line, StoreError> {
        let part = self.parts.partition_point(|part| part.end <= position);
        let (part, is_open) = (&self.parts[part], part + 1 == self.parts.len());
        let line = if is_open { self.line_of_open(position)? } else { self.line_of_sealed(part.number, position)? };
        let record = line.as_deref().and_then(|line| Some((line.len(), Envelope::read(line)?.0.record()?)));
        Ok(match record {
            Some((size, (at, record))) if at == position => Line::There(Stored { position, size, record }),
            _ => Line::Gone,
        })
    }

    fn line_of_open(&self, position: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((_, chunk)) = self.database().up_to(&record_key(position))? else { return Ok(None) };
        let mut at = 0;
        for line in Envelope::lines(&chunk) {
            let size = line.size();
            if line.record_key().is_some_and(|key| key.position == position) {
                return Ok(Some(chunk[at..at + size].to_vec()));
            }
            at += size;
        }
        Ok(None)
    }

    fn line_of_sealed(&mut self, number: u64, position: u64) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(at) = self.readers.0.iter().position(|(open, _)| *open == number) {
            self.readers.0[at..].rotate_left(1);
        } else {
            let sealed = match Sealed::open(&self.place.data(number), self.lane) {
                Ok(sealed) => sealed,
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => {
                    return Err(StoreError::Read { chain: self.name(), reason: error.to_string().into() });
                }
            };
            if self.readers.0.len() == READERS_MAX {
                self.readers.0.remove(0);
            }
            self.readers.0.push((number, sealed));
        }
        Ok(self.readers.0.last().and_then(|(_, sealed)| sealed.line(position)))
    }

    /// A record that should be there is not: all other generations are asked, then it is missing.
    fn lose(&mut self, position: u64) -> Result<(), StoreError> {
        error!(chain = self.name(), position, "a record that waits cannot be read");
        self.survey()?;
        if !self.missing.contains(&position) && matches!(self.line(position)?, Line::Gone) {
            let part = self.parts.partition_point(|part| part.end <= position);
            self.parts[part].waiting -= 1;
            self.missing.insert(position..=position);
        }
        Ok(())
    }

    /// Looks for the oldest waiting record, if it is not known.
    pub(super) fn find_oldest(&mut self) -> Result<(), StoreError> {
        let from = match &self.oldest {
            Some((position, ..)) if !self.settled.contains(*position) => return Ok(()),
            Some((position, ..)) => *position,
            None => 0,
        };
        self.oldest = None;
        if self.waiting() > 0 {
            let oldest = self.read(from, 1)?.pop();
            self.oldest = oldest.map(|found| (found.position, found.record.boot, found.record.recorded));
        }
        Ok(())
    }

    /// State of these alarms, without those that have none.
    pub(in crate::store) fn alarms_of(&self, ids: &[AlarmId]) -> Result<Vec<AlarmState>, StoreError> {
        let mut found = Vec::new();
        for id in ids {
            let value = self.database().get(&database_key(Kind::Alarm, id.as_str()))?;
            let line = value.as_deref().and_then(Envelope::read);
            found.extend(line.and_then(|(line, _)| parse(line.payload)));
        }
        Ok(found)
    }

    /// State of every alarm.
    pub(in crate::store) fn alarms(&self) -> Result<Vec<AlarmState>, StoreError> {
        let mut states = States::default();
        let mut key = sled::IVec::from(&[Kind::Alarm.letter()]);
        while let Some((at, value)) = self.database().after(Bound::Excluded(&key))?
            && at[0] == Kind::Alarm.letter()
        {
            if let Some((line, _)) = Envelope::read(&value) {
                states.take(line.kind, line.key, line.payload);
            }
            key = at;
        }
        Ok(states.alarms)
    }
}
