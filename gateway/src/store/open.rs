//! Opens both chains and decides whether the epoch goes on.
//!
//! A new epoch is written before anyone hears of it, together with why it began; that note stands until the record that
//! declares it (`stream.started`, sequence 1 of lane a) is stored. A crash in between changes nothing: the next open
//! tells the same.

use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::watch;
use tracing::info;

use super::{
    Lines, Next, OpenError, Options, Recovered, Started, Store, Unproven,
    chain::{Chain, Found, scan},
    committer::{Committer, Handle},
    durable::{Database, SyncFile, sync_file},
    layout::{EpochMeta, boot_entries, json, meta},
    place::Place,
};
use crate::{
    clock::Boots,
    machine::Machine,
    metrics::Metrics,
    record::{Epoch, Lane, StartReason},
    supervise::TaskResult,
};

/// How long telemetry is gathered for one sync. A publisher waits this long for its acknowledgement; shorter groups wear
/// the card: a sync costs at least 4 KiB of flash, ten records share one at 100 records a second.
const TELEMETRY_GATHER: Duration = Duration::from_millis(100);
/// Alarms are gathered only while the sync before is under way.
const ALARM_GATHER: Duration = Duration::ZERO;

/// The threads of an open store, by name, for `Supervisor::thread`. Each ends when the last [`Store`] is dropped.
pub type Committers = Vec<(&'static str, Box<dyn FnOnce() -> TaskResult + Send>)>;

/// Opens the store, or makes it. Blocks, at most for the time it takes to read all of it once.
///
/// Nothing is answered before the committers run.
pub fn open(options: &Options, metrics: &Metrics) -> Result<(Store, Recovered, Committers), OpenError> {
    open_on(options, metrics, &sync_file())
}

/// [`open`] on a disk that syncs as told.
pub(super) fn open_on(
    options: &Options,
    metrics: &Metrics,
    sync_file: &SyncFile,
) -> Result<(Store, Recovered, Committers), OpenError> {
    let lock = lock(&options.path)?;
    let open = |chain: &'static str| {
        let place = Place { chain, folder: options.path.join(chain) };
        Database::open(&place, sync_file, metrics, scan)
    };
    let (alarm_database, mut alarm_found) = open("alarm-1")?;
    let (telemetry_database, telemetry_found) = open("telemetry-1")?;
    let suspect = alarm_database.place().suspect() || telemetry_database.place().suspect();
    let epoch = match decide(&options.machine, suspect, &alarm_found, &telemetry_found) {
        Decision::GoOn(epoch) => epoch,
        Decision::Begin(started) => EpochMeta {
            epoch: Epoch::random().map_err(OpenError::Random)?,
            base: alarm_found.next_position - 1,
            replaced: started.replaces.as_ref().map(|(epoch, _)| epoch.clone()),
            started: Some(started),
        },
    };
    let numbers = Next { a: next(&alarm_found, &epoch.epoch), t: next(&telemetry_found, &epoch.epoch) };
    let before = alarm_found.machine.clone();
    let (unproven_before, session) = (std::mem::take(&mut alarm_found.unproven), alarm_found.session);
    let states = std::mem::take(&mut alarm_found.states);
    let mut boots = states.boots();
    let entered = boots.enter(&options.boot);
    let begins = alarm_found.epoch.as_ref() != Some(&epoch);
    let machine = machine(&options.machine, before.clone());
    let mut unproven = unproven_before.clone();
    if !begins && unproven.iter().all(|of| of.epoch != epoch.epoch) {
        unproven.push(Unproven { epoch: epoch.epoch.clone(), from: numbers, session });
    }
    let started = epoch.started.clone();

    let mut alarm = Chain::new(Lane::Alarm, alarm_database, alarm_found, epoch.clone(), metrics);
    if begins {
        info!(epoch = %epoch.epoch, reason = ?started.as_ref().map(|s| s.reason), "a new epoch begins");
        alarm.put(meta::EPOCH, json(&epoch));
    }
    if before.as_ref() != Some(&machine) {
        alarm.put(meta::MACHINE, json(&machine));
    }
    if unproven != unproven_before {
        alarm.put(meta::UNPROVEN, json(&unproven));
    }
    for (key, value) in boot_entries(&boots).into_iter().filter(|_| entered) {
        alarm.put(&key, value);
    }
    alarm.commit()?;
    alarm.publish()?;
    let telemetry = open_telemetry(telemetry_database, telemetry_found, &epoch.epoch, metrics)?;
    for chain in [&alarm, &telemetry] {
        chain.database().place().trust().map_err(|e| refused(&options.path, &e))?;
    }

    let mut answers = states.answers;
    answers.sort_by_key(|answer| (boots.rank(&answer.boot), answer.at.mono_ms));
    let next = Next { a: alarm.head().borrow().status.next, t: telemetry.head().borrow().status.next };
    let recovered = Recovered {
        epoch_replaced: epoch.replaced.is_some(),
        epoch: epoch.epoch,
        started,
        next,
        alarms: states.alarms,
        counts: states.counts,
        answers,
        boots: boots.clone(),
        unproven: unproven.clone(),
    };
    let (store, committers) = start(alarm, telemetry, boots, unproven, lock);
    Ok((store, recovered, committers))
}

/// What is to be kept of this machine: of the same one what was known before as well.
fn machine(this: &Machine, before: Option<Machine>) -> Machine {
    let same = before.filter(|before| !before.differs_from(this));
    this.clone().and_before(same.unwrap_or_default())
}

fn start(alarm: Chain, telemetry: Chain, boots: Boots, unproven: Vec<Unproven>, lock: File) -> (Store, Committers) {
    let lock = Arc::new(lock);
    let (alarm_head, telemetry_head) = (alarm.head(), telemetry.head());
    let (alarm_jobs, alarm) = Committer::new(alarm, ALARM_GATHER, lock.clone());
    let (telemetry_jobs, telemetry) = Committer::new(telemetry, TELEMETRY_GATHER, lock);
    let lines = |jobs: Handle, head| Lines { jobs, head };
    let store = Store {
        alarm: lines(alarm_jobs, alarm_head),
        telemetry: lines(telemetry_jobs, telemetry_head),
        boots: Arc::new(watch::Sender::new(boots)),
        unproven: Arc::new(watch::Sender::new(unproven)),
    };
    (store, vec![("store-alarm", Box::new(|| alarm.run())), ("store-telemetry", Box::new(|| telemetry.run()))])
}

/// One process at a time, over both chains and the repair of them. The lock goes with the process, however it ends.
fn lock(path: &Path) -> Result<File, OpenError> {
    fs::create_dir_all(path).map_err(|e| refused(path, &e))?;
    let file = File::options().create(true).truncate(false).write(true).open(path.join("lock"));
    let file = file.map_err(|e| refused(path, &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { path: path.into() }),
        Err(e) => Err(refused(path, &e.into())),
    }
}

fn refused(path: &Path, error: &std::io::Error) -> OpenError {
    OpenError::Io { path: path.into(), reason: error.to_string().into() }
}

/// The telemetry chain in the epoch of the alarm chain, durably.
fn open_telemetry(database: Database, found: Found, epoch: &Epoch, metrics: &Metrics) -> Result<Chain, OpenError> {
    let stored = found.epoch.clone();
    let base = found.next_position - 1;
    let replaced = stored.as_ref().map(|stored| stored.epoch.clone());
    let goes_on = stored.filter(|stored| stored.epoch == *epoch);
    let begins = goes_on.is_none();
    let epoch = goes_on.unwrap_or(EpochMeta { epoch: epoch.clone(), base, replaced, started: None });
    let mut chain = Chain::new(Lane::Telemetry, database, found, epoch.clone(), metrics);
    if begins {
        chain.put(meta::EPOCH, json(&epoch));
    }
    chain.commit()?;
    chain.publish()?;
    Ok(chain)
}

/// The number the next record of a lane gets in an epoch.
fn next(found: &Found, epoch: &Epoch) -> u64 {
    match &found.epoch {
        Some(of) if of.epoch == *epoch => found.next_position - of.base,
        _ => 1,
    }
}

/// Whether the epoch found goes on.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    GoOn(EpochMeta),
    Begin(Started),
}

/// An epoch goes on only where none of its numbers can be given again: on the same machine, with both chains whole and
/// of one mind. Where in doubt a new one begins; that costs one record, a number given twice costs an alarm.
fn decide(machine: &Machine, suspect: bool, alarm: &Found, telemetry: &Found) -> Decision {
    let begin = |reason, replaces| Decision::Begin(Started { reason, replaces });
    let Some(known) = alarm.epoch.as_ref().or(telemetry.epoch.as_ref()) else {
        return begin(StartReason::NewStore, None);
    };
    let next = |found| next(found, &known.epoch);
    let last = Some((known.epoch.clone(), Next { a: next(alarm), t: next(telemetry) }));
    let Some(epoch) = &alarm.epoch else { return begin(StartReason::Damaged, last) };
    // An epoch that was never declared is replaced without a word: what it would have replaced still is.
    let replaces = epoch.started.as_ref().map_or(last, |started| started.replaces.clone());
    if alarm.machine.as_ref().is_some_and(|of| of.differs_from(machine)) {
        return begin(StartReason::OtherMachine, replaces);
    }
    let agreed = match &telemetry.epoch {
        Some(of) if of.epoch == epoch.epoch => true,
        // A crash after the alarm chain began it and before the telemetry chain did.
        Some(of) => epoch.replaced.as_ref() == Some(&of.epoch),
        None => epoch.started.as_ref().is_some_and(|started| started.replaces.is_none()),
    };
    if suspect || !agreed { begin(StartReason::Damaged, replaces) } else { Decision::GoOn(epoch.clone()) }
}
