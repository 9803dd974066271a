//! What must survive a power cut: records until they are delivered, alarm states, counters, answers to commands.
//!
//! Two chains, each a sled database with one thread that alone touches it: `alarm-1` (lane a and every state) is
//! synced before anything is sent or acknowledged, `telemetry-1` (lane t) is synced in groups.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{oneshot, watch};

use crate::{
    alarm::{AlarmId, AlarmState},
    clock::{BootId, Boots, Now},
    command::Answer,
    reading::{PointId, Value},
    record::{Epoch, Lane, LaneStatus, Record, StartReason},
};

/// Where and for whom a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the outbox; made if it does not exist.
    pub path: PathBuf,
    /// Names this machine (`/etc/machine-id`): a store of another machine starts a new epoch.
    pub machine: String,
    /// This boot.
    pub boot: BootId,
}

/// What an open store holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovered {
    /// The present epoch.
    pub epoch: Epoch,
    /// Set when the epoch is new: the pipeline records `stream.started` as its first record.
    pub started: Option<Started>,
    /// Whether it ever replaced another epoch of this store.
    pub epoch_replaced: bool,
    /// The number the next record of each lane gets.
    pub next: Next,
    /// Every alarm state kept, quiet and removed ones included.
    pub alarms: Vec<AlarmState>,
    /// Last values of event points.
    pub counts: Vec<(PointId, Value)>,
    /// Answers given, oldest first.
    pub answers: Vec<StoredAnswer>,
    /// What is known of the clock in each boot, this one included.
    pub boots: Boots,
}

/// A new epoch, and what it replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// Why.
    pub reason: StartReason,
    /// The epoch replaced and the last numbers used in it.
    pub replaces: Option<(Epoch, Next)>,
}

/// The next number of each lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// Lane a.
    pub a: u64,
    /// Lane t.
    pub t: u64,
}

/// An answer to an acting command, kept 24 hours or 10,000 commands.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StoredAnswer {
    /// When it was given.
    pub at: Now,
    /// In which boot.
    pub boot: BootId,
    /// The answer; its `id` is the key.
    pub answer: Answer,
}

/// What one step of the pipeline changes, written whole or not at all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Commit {
    /// Lane-a records, numbered by the pipeline without gaps. A record of another epoch begins that epoch.
    pub records: Vec<Record>,
    /// Alarm states after it.
    pub alarms: Vec<AlarmState>,
    /// Alarms whose state is forgotten.
    pub forgotten_alarms: Vec<AlarmId>,
    /// Last values of event points.
    pub counts: Vec<(PointId, Value)>,
    /// Answers to commands.
    pub answers: Vec<StoredAnswer>,
    /// Ids of answers that are forgotten.
    pub forgotten_answers: Vec<Arc<str>>,
    /// What is known of the clock, when that changed.
    pub boots: Option<Boots>,
}

impl Commit {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A record as it lies in its lane.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Orders the lane across epochs.
    pub position: u64,
    /// Stored size in bytes.
    pub size: usize,
    /// The record.
    pub record: Record,
}

/// How far a lane has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Epoch, next number, settled number.
    pub status: LaneStatus,
    /// The position the next record gets; everything below is durable.
    pub next_position: u64,
    /// Records waiting.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest waiting one was recorded.
    pub oldest: Option<(BootId, Now)>,
}

/// Why the store cannot go on. Every handle is dead after one of these.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk or sled refused.
    #[error("{chain}: cannot write: {reason}; check that the disk has room and is not read-only")]
    Write {
        /// Which chain's folder.
        chain: &'static str,
        /// What the system said.
        reason: Arc<str>,
    },
    /// The chain's thread has ended.
    #[error("{chain}: closed")]
    Closed {
        /// Which chain's folder.
        chain: &'static str,
    },
}

/// A handle to the open store; clones share it.
#[derive(Debug, Clone)]
pub struct Store {}

impl Store {
    /// Writes one step of the pipeline and returns when it is on stable storage.
    pub async fn commit(&self, _commit: Commit) -> Result<(), StoreError> {
        todo!()
    }

    /// Hands lane-t records over; returns when they are queued, and the receiver resolves when they are on stable
    /// storage.
    pub async fn commit_telemetry(&self, _records: Vec<Record>) -> Result<oneshot::Receiver<()>, StoreError> {
        todo!()
    }

    /// Waiting records of a lane from `position` on, oldest first, at most `records_max`; those already confirmed are
    /// passed over.
    pub async fn read(&self, _lane: Lane, _position: u64, _records_max: usize) -> Result<Vec<Stored>, StoreError> {
        todo!()
    }

    /// Confirms records; durable with the next group. Confirming twice is harmless.
    pub async fn confirm(&self, _lane: Lane, _positions: Vec<u64>) -> Result<(), StoreError> {
        todo!()
    }

    /// State of one alarm.
    pub async fn alarm(&self, _id: AlarmId) -> Result<Option<AlarmState>, StoreError> {
        todo!()
    }

    /// State of every alarm kept.
    pub async fn alarms(&self) -> Result<Vec<AlarmState>, StoreError> {
        todo!()
    }

    /// Counts one CONNECT of the uplink, durably; returns its number, from 1.
    pub async fn next_session(&self) -> Result<u64, StoreError> {
        todo!()
    }

    /// How far a lane has come; changes when records become durable or confirmed.
    #[must_use]
    pub fn head(&self, _lane: Lane) -> watch::Receiver<Head> {
        todo!()
    }

    /// What is known of the clock in each boot.
    #[must_use]
    pub fn boots(&self) -> watch::Receiver<Boots> {
        todo!()
    }
}
