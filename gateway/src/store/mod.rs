//! What must survive a power cut: records until they are delivered, alarm states, counters, answers to commands.
//!
//! Two chains, each with one thread that alone touches it: `alarm` (lane a and every state) is synced before anything is
//! sent or acknowledged, `telemetry` (lane t) is synced in groups. A chain is a row of **generations**, `alarm-1`,
//! `alarm-2` and so on: the last is **open**, a sled database with the newest records and all states; those before it are
//! **sealed**, hold records only, are read like logs, and go when nothing in them waits any more.
//!
//! Where the folder cannot be used, a store in [`memory`] stands in until it can.
//!
//! Promises: a commit that returned survives a power cut, whole; one that did not is there whole or not at all. No
//! number is given twice, also after a crash. Damage never prevents the start: what is whole is kept, what was there and
//! is not is [`Lost`] and to be declared, and where numbers may be missing a new epoch begins. Limits: a stored value has
//! at most [`RECORD_SIZE_MAX`] bytes; one process at a time.
//!
//! Reading order: `settled`, `envelope`, `layout`, `mark` (pure: what lies on the disk), `disk`, `place`, `ballast`,
//! `durable` (sled, made safe), `raw` and `sealed` (bytes without sled), `guard` (what is there), `chain` (one lane),
//! `committer` (its thread), `open` (both chains, epochs), `inspect` (a look from outside), `memory` (what stands in).

mod ballast;
mod chain;
mod committer;
pub mod disk;
mod durable;
pub mod envelope;
mod guard;
pub mod inspect;
mod layout;
mod mark;
pub mod memory;
mod open;
mod place;
mod raw;
mod sealed;
mod settled;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

pub use self::{
    ballast::Space,
    open::{Committers, Opened, can_be_opened, open, open_in_memory},
};
use self::{
    committer::{Handle, Job},
    layout::Write,
};
use crate::{
    alarm::{AlarmId, AlarmState},
    clock::{BootId, Boots, Now},
    command::Answer,
    machine::Machine,
    reading::{PointId, Value},
    record::{Epoch, Lane, LaneStatus, RECORD_SIZE_MAX, Record, StartReason},
};

/// Where and for whom a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder of the outbox; made if it does not exist.
    pub path: PathBuf,
    /// This machine: a store of another one starts a new epoch.
    pub machine: Machine,
    /// This boot.
    pub boot: BootId,
    /// A generation is sealed when it has grown by so many bytes.
    pub generation_size: u64,
    /// Where a store in memory lies, for the time `path` cannot be used; none: then there is none.
    pub memory: Option<PathBuf>,
}

/// Size of a generation unless the quota is small, in bytes: what one damage can take, and what a drained one gives back.
pub const GENERATION_SIZE: u64 = 16 * 1024 * 1024;

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
    /// Numberings nobody has confirmed yet, see [`Unproven`].
    pub unproven: Vec<Unproven>,
    /// Alarms whose last transition waits in a store that cannot be used: it is told again in an epoch that begins.
    pub untold: Vec<AlarmId>,
}

/// A numbering that the command center has not confirmed since the store was opened: should the store be a copy of an
/// earlier one, numbers from here on may have been used before for other records.
///
/// Stands from the open until a read-back agrees. That of an epoch which is no longer the present one stands until every
/// record of it that still waits has a number of the present one. At most one an epoch, and no epoch begins before the
/// connection that follows: a handful at the very most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unproven {
    /// Of which epoch.
    pub epoch: Epoch,
    /// The first numbers that are in doubt.
    pub from: Next,
    /// CONNECTs counted before: a later one was counted by another life of this store.
    pub session: u64,
}

impl Unproven {
    /// Whether a record's number is in doubt.
    #[must_use]
    pub fn covers(&self, record: &Record) -> bool {
        record.epoch == self.epoch && record.sequence >= self.from_in(record.lane)
    }

    /// The first number of a lane that is in doubt.
    #[must_use]
    pub const fn from_in(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Alarm => self.from.a,
            Lane::Telemetry => self.from.t,
        }
    }
}

/// A new epoch, and what it replaces. Told at every open until the first record of the epoch is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Why.
    pub reason: StartReason,
    /// The epoch replaced and the numbers its next records would have got, 1 where none is known.
    pub replaces: Option<(Epoch, Next)>,
}

/// The next number of each lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// Lane a.
    pub a: u64,
    /// Lane t.
    pub t: u64,
}

/// An answer to an acting command, kept 24 hours or 10,000 commands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Positions of lane a whose records are replaced by `records`: settled in the same group.
    pub replaced: Vec<u64>,
    /// The numberings in doubt, when that changed.
    pub unproven: Option<Vec<Unproven>>,
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
    /// Epoch, next number, settled number: the last of the present epoch up to which all are confirmed, whatever still
    /// waits of earlier epochs.
    pub status: LaneStatus,
    /// The position the next record gets; everything below is durable.
    pub next_position: u64,
    /// Records waiting.
    pub records: u64,
    /// Their bytes, about.
    pub bytes: u64,
    /// Records that are lost and not yet declared, see [`Store::lost`].
    pub missing: u64,
    /// Runs settled by [`Store::settle`] since the store was opened: what never arrives, and nothing can follow from.
    pub given_up: u64,
    /// When the oldest waiting one was recorded.
    pub oldest: Option<(BootId, Now)>,
}

/// One generation of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Its number: in the name of its folder.
    pub number: u64,
    /// Its first position.
    pub first: u64,
    /// The first position after it.
    pub end: u64,
    /// Records in it that wait.
    pub waiting: u64,
    /// What it takes on the disk, in bytes.
    pub disk_bytes: u64,
    /// Whether it is not written any more.
    pub sealed: bool,
}

/// Records that were stored and are not there any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Their lane.
    pub lane: Lane,
    /// Their epoch.
    pub epoch: Epoch,
    /// First and last number of each run.
    pub ranges: Vec<(u64, u64)>,
    /// The same as positions: to be settled when the loss is declared.
    pub positions: Vec<(u64, u64)>,
    /// False where it is not known whether these numbers were ever given.
    pub certain: bool,
}

/// Why a store cannot be opened. What lies there is left as it is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// Another process holds it.
    #[error("{}: another gardu uses this store; stop it first (`systemctl stop gardu`)", path.display())]
    InUse {
        /// The store's folder.
        path: PathBuf,
    },
    /// Written by a version with another layout.
    #[error(
        "{}: stored in format {found}, this version knows format {}; install the version that wrote it, or move the \
         folder away to begin anew",
        path.display(),
        layout::FORMAT
    )]
    Format {
        /// The chain's folder.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The machine does not let us read or write there.
    #[error("{}: {reason}; check that the disk has room, is not read-only, and that the folder belongs to us", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        reason: Arc<str>,
    },
    /// The disk is full, and no room was kept.
    #[error("{}: the disk is full; remove what does not belong there, or take a larger card", path.display())]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// The kernel has no random numbers for a new epoch.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// The first write failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why the store refuses a job or cannot go on. After all but [`StoreError::TooLarge`] the chain is dead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Something to be stored exceeds [`RECORD_SIZE_MAX`]; nothing of its commit was written and its numbers are free.
    #[error("{what}: {size} bytes stored, at most {RECORD_SIZE_MAX} are possible; split or shorten it")]
    TooLarge {
        /// Id of the record, or name of the state.
        what: Arc<str>,
        /// What it would take, in bytes.
        size: usize,
    },
    /// A record does not carry the next number of its lane: a bug of the sender.
    #[error("record {found} is out of order, {expected} is next")]
    Misnumbered {
        /// Its id.
        found: Arc<str>,
        /// The id the next record must have.
        expected: Arc<str>,
    },
    /// The disk or sled refused.
    #[error("{chain}: cannot write: {reason}; check that the disk has room and is not read-only")]
    Write {
        /// Which chain's folder.
        chain: &'static str,
        /// What the system said.
        reason: Arc<str>,
    },
    /// The disk is full. The chain makes room and goes on.
    #[error("{chain}: the disk is full; remove what does not belong there, or take a larger card")]
    Full {
        /// Which chain.
        chain: &'static str,
    },
    /// What was written does not come back. The next start repairs or sets it aside.
    #[error("{chain}: cannot read: {reason}; the store is damaged, restart to repair it")]
    Read {
        /// Which chain's folder.
        chain: &'static str,
        /// What sled said.
        reason: Arc<str>,
    },
    /// The chain's thread has ended.
    #[error("{chain}: closed")]
    Closed {
        /// Which chain's folder.
        chain: &'static str,
    },
}

/// A handle to the open store; clones share it. When the last is dropped, what is confirmed is written and the store
/// closed.
#[derive(Debug, Clone)]
pub struct Store {
    alarm: Lines,
    telemetry: Lines,
    boots: Arc<watch::Sender<Boots>>,
    unproven: Arc<watch::Sender<Vec<Unproven>>>,
    space: watch::Receiver<Space>,
    medium: Medium,
}

/// What a store lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Stable storage.
    Disk,
    /// Memory, see [`memory`].
    Memory,
}

/// What leads to one chain and from it.
#[derive(Debug, Clone)]
struct Lines {
    jobs: Handle,
    head: watch::Receiver<Head>,
}

impl Store {
    /// Writes one step of the pipeline and returns when it is on stable storage.
    ///
    /// When it begins an epoch, lane t has begun it too when this returns.
    pub async fn commit(&self, commit: Commit) -> Result<(), StoreError> {
        let write = Write::of(&commit)?;
        let size = write.size();
        let boots = commit.boots.map(|boots| (self.boots.clone(), boots));
        let unproven = commit.unproven.map(|unproven| (self.unproven.clone(), unproven));
        let job = |durable: oneshot::Sender<()>| {
            let done = move || {
                if let Some((watch, boots)) = boots {
                    watch.send_replace(boots);
                }
                if let Some((watch, unproven)) = unproven {
                    watch.send_replace(unproven);
                }
                let _ = durable.send(());
            };
            Job::Write { write, done: Box::new(done) }
        };
        self.alarm.jobs.ask(job, size).await?;
        let epoch = self.alarm.head.borrow().status.epoch.clone();
        if self.telemetry.head.borrow().status.epoch != epoch {
            let adopt = Write { adopt: Some(epoch), ..Write::default() };
            self.telemetry.jobs.ask(|durable| writing(adopt, durable), 0).await?;
        }
        Ok(())
    }

    /// Hands lane-t records over; returns when they are queued, and the receiver resolves when they are on stable
    /// storage.
    pub async fn commit_telemetry(&self, records: Vec<Record>) -> Result<oneshot::Receiver<()>, StoreError> {
        let write = Write::of_records(&records)?;
        let size = write.size();
        let (durable, written) = oneshot::channel();
        self.telemetry.jobs.send(writing(write, durable), size).await?;
        Ok(written)
    }

    /// Writes lane-t records in the place of those at `replaced`, whole or not at all; returns when that is on stable
    /// storage.
    pub async fn replace_telemetry(&self, records: Vec<Record>, replaced: Vec<u64>) -> Result<(), StoreError> {
        let write = Write { replaced, ..Write::of_records(&records)? };
        let size = write.size();
        self.telemetry.jobs.ask(|durable| writing(write, durable), size).await
    }

    /// Waiting records of a lane from `position` on, oldest first, at most `records_max` and 256; those already
    /// confirmed are passed over.
    pub async fn read(&self, lane: Lane, position: u64, records_max: usize) -> Result<Vec<Stored>, StoreError> {
        self.lines(lane).jobs.ask(|answer| Job::Read { position, records_max, answer }, 0).await
    }

    /// Confirms records; durable with the next group. Confirming twice is harmless.
    pub async fn confirm(&self, lane: Lane, positions: Vec<u64>) -> Result<(), StoreError> {
        let size = size_of_val(&*positions);
        self.lines(lane).jobs.send(Job::Confirm(positions), size).await
    }

    /// Settles runs of positions, first and last of each: they were confirmed, or declared lost. Returns when that is on
    /// stable storage.
    pub async fn settle(&self, lane: Lane, positions: Vec<(u64, u64)>) -> Result<(), StoreError> {
        let size = size_of_val(&*positions);
        let job = |durable: oneshot::Sender<()>| Job::Settle { positions, done: telling(durable) };
        self.lines(lane).jobs.ask(job, size).await
    }

    /// Seals the open generation of a lane, if there is a record in it; returns when the next is in use.
    pub async fn rotate(&self, lane: Lane) -> Result<(), StoreError> {
        self.lines(lane).jobs.ask(|durable| Job::Rotate(telling(durable)), 0).await
    }

    /// Rewrites a sealed generation with only what waits in it.
    pub async fn compact(&self, lane: Lane, number: u64) -> Result<(), StoreError> {
        self.lines(lane).jobs.ask(|durable| Job::Compact { number, done: telling(durable) }, 0).await
    }

    /// The generations of a lane, oldest first.
    pub async fn generations(&self, lane: Lane) -> Result<Vec<Generation>, StoreError> {
        self.lines(lane).jobs.ask(Job::Generations, 0).await
    }

    /// What is lost of a lane and not yet settled.
    pub async fn lost(&self, lane: Lane) -> Result<Vec<Lost>, StoreError> {
        self.lines(lane).jobs.ask(Job::Lost, 0).await
    }

    /// State of these alarms, without those that have none.
    pub async fn alarms_of(&self, ids: Vec<AlarmId>) -> Result<Vec<AlarmState>, StoreError> {
        self.alarm.jobs.ask(|answer| Job::AlarmsOf(ids, answer), 0).await
    }

    /// State of every alarm kept.
    pub async fn alarms(&self) -> Result<Vec<AlarmState>, StoreError> {
        self.alarm.jobs.ask(Job::Alarms, 0).await
    }

    /// Counts one CONNECT of the uplink, durably; returns its number, from 1.
    pub async fn next_session(&self) -> Result<u64, StoreError> {
        self.alarm.jobs.ask(Job::Session, 0).await
    }

    /// How far a lane has come; changes when records become durable or confirmed.
    #[must_use]
    pub fn head(&self, lane: Lane) -> watch::Receiver<Head> {
        self.lines(lane).head.clone()
    }

    /// What is known of the clock in each boot.
    #[must_use]
    pub fn boots(&self) -> watch::Receiver<Boots> {
        self.boots.subscribe()
    }

    /// The numberings in doubt.
    #[must_use]
    pub fn unproven(&self) -> watch::Receiver<Vec<Unproven>> {
        self.unproven.subscribe()
    }

    /// How much room the disk has for the store.
    #[must_use]
    pub fn space(&self) -> watch::Receiver<Space> {
        self.space.clone()
    }

    /// What it lies on.
    #[must_use]
    pub const fn medium(&self) -> Medium {
        self.medium
    }

    /// Returns when everything stored so far may be acknowledged to who sent it: at once if it is on stable storage, else
    /// when the command center has it.
    pub async fn safe(&self) {
        if self.medium == Medium::Disk {
            return;
        }
        for lines in [&self.alarm, &self.telemetry] {
            let mut head = lines.head.clone();
            let stored = head.borrow().status.clone();
            let delivered = |head: &Head| head.status.epoch != stored.epoch || head.status.settled + 1 >= stored.next;
            if head.wait_for(delivered).await.is_err() {
                // The store has ended, and nothing more is delivered from it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether nothing can be stored before there is room on the disk.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        *self.space.borrow() == Space::None
    }

    const fn lines(&self, lane: Lane) -> &Lines {
        match lane {
            Lane::Alarm => &self.alarm,
            Lane::Telemetry => &self.telemetry,
        }
    }
}

fn writing(write: Write, durable: oneshot::Sender<()>) -> Job {
    Job::Write { write, done: telling(durable) }
}

fn telling(durable: oneshot::Sender<()>) -> committer::Done {
    Box::new(move || {
        let _ = durable.send(());
    })
}
