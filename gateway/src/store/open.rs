//! Opens both chains and decides whether the epoch goes on.
//!
//! A new epoch is written before anyone hears of it, together with why it began; that note stands until the record that
//! declares it (`stream.started`, sequence 1 of lane a) is stored. A crash in between changes nothing: the next open
//! tells the same.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    Lines, Medium, Next, OpenError, Options, Recovered, Started, Store, StoreError, Unproven,
    ballast::Ballast,
    chain::{Chain, Setup},
    committer::{Committer, Handle},
    durable::{SyncFile, sync_file},
    guard::{Found, Looker},
    inspect::{self, Which},
    layout::{EpochMeta, Put, States, boot_entries, chain_of, word},
    memory::{self, Left},
    place::Place,
};
use crate::{
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

/// Room kept for a full disk, in bytes: some ten thousand events, a new generation and what sled needs to be opened.
const BALLAST_SIZE_MAX: u64 = 8 * 1024 * 1024;

/// The threads of an open store, by name, for `Supervisor::thread`. Each ends when the last [`Store`] is dropped.
pub type Committers = Vec<(&'static str, Box<dyn FnOnce() -> TaskResult + Send>)>;

/// Opens the store, or makes it, and takes in what one in memory holds. Blocks, at most for the time it takes to read
/// all of it once.
///
/// Nothing is answered before the committers run.
pub fn open(options: &Options, metrics: &Metrics) -> Result<Opened, OpenError> {
    open_on(options, metrics, &sync_file())
}

/// An open store, what it held, and the threads that serve it.
pub type Opened = (Store, Recovered, Committers);

/// Opens or makes the store in memory, which begins with the states of the one that cannot be used.
pub fn open_in_memory(options: &Options, folder: &Path, metrics: &Metrics) -> Result<Opened, OpenError> {
    memory::make(folder)?;
    let in_memory = Options { path: folder.into(), memory: None, ..options.clone() };
    let (store, mut recovered, committers) =
        open_as(Medium::Memory, &in_memory, metrics, &sync_file(), || memory::seed(&options.path))?;
    if recovered.started.is_some() {
        recovered.untold = memory::untold(&options.path);
    }
    Ok((store, recovered, committers))
}

/// Whether the store can be opened, found out by opening it.
pub fn can_be_opened(options: &Options) -> Result<(), OpenError> {
    let options = Options { memory: None, ..options.clone() };
    let (store, _, committers) = open(&options, &Metrics::new())?;
    drop(store);
    // Each finds that nobody asks anything any more, and closes its chain.
    committers
        .into_iter()
        .try_for_each(|(_, work)| work())
        .map_err(|error| refused(&options.path, &io::Error::other(error)))
}

/// [`open`] on a disk that syncs as told.
pub(super) fn open_on(options: &Options, metrics: &Metrics, sync_file: &SyncFile) -> Result<Opened, OpenError> {
    open_as(Medium::Disk, options, metrics, sync_file, Vec::new)
}

fn open_as(
    medium: Medium,
    options: &Options,
    metrics: &Metrics,
    sync_file: &SyncFile,
    seed: impl Fn() -> Vec<Put>,
) -> Result<Opened, OpenError> {
    let lock = lock(&options.path)?;
    let size = (2 * options.generation_size).min(BALLAST_SIZE_MAX);
    let ballast = Arc::new(Ballast::new(&options.path, size, metrics));
    let is_full =
        |error: &OpenError| matches!(error, OpenError::Full { .. } | OpenError::Store(StoreError::Full { .. }));
    let site = Site { options, metrics, sync_file };
    let attempt = || {
        site.take_in()?;
        site.open(medium, &seed)
    };
    let mut opened = attempt();
    while opened.as_ref().is_err_and(is_full) && ballast.release(ballast.releases()) {
        opened = attempt();
    }
    // Which folder is full is more use than which chain met it.
    let full = |error| if is_full(&error) { OpenError::Full { path: options.path.clone() } } else { error };
    let (alarm, telemetry, recovered) = opened.map_err(full)?;
    ballast.hold();
    let (store, committers) = start(alarm, telemetry, &recovered, (medium, lock), &ballast);
    Ok((store, recovered, committers))
}

/// A folder to be opened, and with what.
struct Site<'a> {
    options: &'a Options,
    metrics: &'a Metrics,
    sync_file: &'a SyncFile,
}

impl Site<'_> {
    fn look(&self, lane: Lane) -> Result<Found, OpenError> {
        let place = Place { chain: chain_of(lane), root: self.options.path.clone() };
        let Self { options, metrics, sync_file } = *self;
        Looker { lane, boot: &options.boot, sync_file, metrics }.look(&place)
    }

    fn setup(&self, lane: Lane) -> Setup<'_> {
        let Self { options, metrics, sync_file } = *self;
        Setup { lane, boot: &options.boot, generation_size: options.generation_size, sync_file, metrics }
    }

    /// Takes in what the store in memory holds, if there is one. A crash on the way leaves it there for the next start.
    fn take_in(&self) -> Result<(), OpenError> {
        let Some(folder) = self.options.memory.as_deref().filter(|folder| folder.is_dir()) else { return Ok(()) };
        let _lock = lock(folder)?;
        // The alarm chain says which epoch goes on; it comes last, when the other has begun it.
        let left = [Lane::Telemetry, Lane::Alarm].map(|lane| (lane, Left::of(folder, lane)));
        let there = left.iter().any(|(_, left)| left.is_some()).then(|| inspect::look(folder, |_, _| {})).transpose();
        let there = there.map_err(|error| refused(folder, &io::Error::other(error)))?;
        for (lane, left) in left {
            let (Some(left), Some(there)) = (left, &there) else {
                error!(folder = %folder.display(), "what was kept in memory cannot be read and is lost");
                continue;
            };
            let found = self.look(lane)?;
            let present = left.epochs.last().expect("a store has an epoch");
            let new = EpochMeta { base: found.next_position - 1, ..present.clone() };
            let epoch = found.epoch().cloned().unwrap_or(new);
            let mut chain = Chain::open(found, &epoch, Vec::new(), &self.setup(lane))?;
            let records = there.records(lane, 0, Which::Waiting).filter_map(|found| {
                found.inspect_err(|(path, error)| error!(path = %path.display(), "cannot be taken in: {error}")).ok()
            });
            chain.take_in(&left, records)?;
            chain.close()?;
        }
        memory::remove(folder).map_err(|error| refused(folder, &error))?;
        info!("the outbox can be used again, and has taken in what was kept in memory");
        Ok(())
    }

    fn open(&self, medium: Medium, seed: impl Fn() -> Vec<Put>) -> Result<(Chain, Chain, Recovered), OpenError> {
        let options = self.options;
        let (mut alarm, telemetry) = (self.look(Lane::Alarm)?, self.look(Lane::Telemetry)?);
        let seeds = if alarm.epoch().is_none() { seed() } else { Vec::new() };
        alarm.entries.extend(seeds.iter().map(|put| ((put.kind, put.key.clone()), (0, put.payload.clone()))));
        let epoch = match decide(&options.machine, &alarm, &telemetry) {
            Decision::GoOn(epoch) => epoch,
            Decision::Begin(Started { reason: StartReason::NewStore, replaces }) if medium == Medium::Memory => {
                new_epoch(&alarm, Started { reason: StartReason::InMemory, replaces })?
            }
            Decision::Begin(started) => new_epoch(&alarm, started)?,
        };
        let states = States::of(&alarm.entries);
        if !states.unreadable.is_empty() {
            error!(states = states.unreadable.join(", "), "states of the store cannot be understood and are left out");
        }
        let mut boots = states.boots();
        let entered = boots.enter(&options.boot);
        let started = epoch.started.clone();
        if alarm.epoch() != Some(&epoch) {
            info!(epoch = %epoch.epoch, reason = ?started.as_ref().map(|s| s.reason), "a new epoch begins");
        }
        let machine = Put::word(word::MACHINE, &machine(&options.machine, alarm.word(word::MACHINE)));
        let unproven = unproven(&epoch, &alarm, &telemetry);
        let words = [machine, Put::word(word::UNPROVEN, &unproven)];
        let boot_entries = boot_entries(&boots).into_iter().filter(|_| entered);
        let carried = seeds.into_iter().chain(boot_entries).chain(words).collect();
        let alarm = Chain::open(alarm, &epoch, carried, &self.setup(Lane::Alarm))?;
        let telemetry_epoch = telemetry_epoch(&telemetry, &epoch.epoch);
        let telemetry = Chain::open(telemetry, &telemetry_epoch, Vec::new(), &self.setup(Lane::Telemetry))?;

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
            boots,
            unproven,
            untold: Vec::new(),
        };
        Ok((alarm, telemetry, recovered))
    }
}

fn new_epoch(alarm: &Found, started: Started) -> Result<EpochMeta, OpenError> {
    Ok(EpochMeta {
        epoch: Epoch::random().map_err(OpenError::Random)?,
        base: alarm.next_position - 1,
        replaced: started.replaces.as_ref().map(|(epoch, _)| epoch.clone()),
        started: Some(started),
        uncertain_from: None,
    })
}

/// What is to be kept of this machine: of the same one what was known before as well.
fn machine(this: &Machine, before: Option<Machine>) -> Machine {
    let same = before.filter(|before| !before.differs_from(this));
    this.clone().and_before(same.unwrap_or_default())
}

/// The numberings in doubt from now on: an epoch that goes on is, from its next numbers.
fn unproven(epoch: &EpochMeta, alarm: &Found, telemetry: &Found) -> Vec<Unproven> {
    let mut unproven: Vec<Unproven> = alarm.word(word::UNPROVEN).unwrap_or_default();
    let goes_on = alarm.epoch() == Some(epoch);
    if goes_on && unproven.iter().all(|of| of.epoch != epoch.epoch) {
        let from = Next { a: next(alarm, &epoch.epoch), t: next(telemetry, &epoch.epoch) };
        unproven.push(Unproven { epoch: epoch.epoch.clone(), from, session: alarm.word(word::SESSION).unwrap_or(0) });
    }
    unproven
}

fn start(
    alarm: Chain,
    telemetry: Chain,
    recovered: &Recovered,
    (medium, lock): (Medium, File),
    ballast: &Arc<Ballast>,
) -> (Store, Committers) {
    let lock = Arc::new(lock);
    let (alarm_head, telemetry_head) = (alarm.head(), telemetry.head());
    let (alarm_jobs, alarm) = Committer::new(alarm, ALARM_GATHER, lock.clone(), ballast.clone());
    let (telemetry_jobs, telemetry) = Committer::new(telemetry, TELEMETRY_GATHER, lock, ballast.clone());
    let lines = |jobs: Handle, head| Lines { jobs, head };
    let store = Store {
        alarm: lines(alarm_jobs, alarm_head),
        telemetry: lines(telemetry_jobs, telemetry_head),
        boots: Arc::new(watch::Sender::new(recovered.boots.clone())),
        unproven: Arc::new(watch::Sender::new(recovered.unproven.clone())),
        space: ballast.space(),
        medium,
    };
    (store, vec![("store-alarm", Box::new(|| alarm.run())), ("store-telemetry", Box::new(|| telemetry.run()))])
}

/// One process at a time, over both chains and the repair of them. The lock goes with the process, however it ends.
fn lock(path: &Path) -> Result<File, OpenError> {
    fs::create_dir_all(path).map_err(|e| refused(path, &e))?;
    let lock = path.join("lock");
    if lock.is_dir() {
        warn!(path = %lock.display(), "a folder lies where the lock should be and is removed");
        fs::remove_dir_all(&lock).map_err(|e| refused(path, &e))?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(lock);
    let file = file.map_err(|e| refused(path, &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { path: path.into() }),
        Err(e) => Err(refused(path, &e.into())),
    }
}

fn refused(path: &Path, error: &io::Error) -> OpenError {
    if error.kind() == io::ErrorKind::StorageFull {
        return OpenError::Full { path: path.into() };
    }
    OpenError::Io { path: path.into(), reason: error.to_string().into() }
}

/// The epoch of the alarm chain as the telemetry chain has it, or will have it.
fn telemetry_epoch(found: &Found, epoch: &Epoch) -> EpochMeta {
    let stored = found.epoch().cloned();
    let replaced = stored.as_ref().map(|stored| stored.epoch.clone());
    let begins = || EpochMeta {
        epoch: epoch.clone(),
        base: found.next_position - 1,
        replaced,
        started: None,
        uncertain_from: None,
    };
    stored.filter(|stored| stored.epoch == *epoch).unwrap_or_else(begins)
}

/// The number the next record of a lane gets in an epoch.
fn next(found: &Found, epoch: &Epoch) -> u64 {
    match found.epoch() {
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
fn decide(machine: &Machine, alarm: &Found, telemetry: &Found) -> Decision {
    let begin = |reason, replaces| Decision::Begin(Started { reason, replaces });
    let Some(known) = alarm.epoch().or(telemetry.epoch()) else {
        let damaged = alarm.damage.is_some() || telemetry.damage.is_some();
        return begin(if damaged { StartReason::Damaged } else { StartReason::NewStore }, None);
    };
    let next = |found| next(found, &known.epoch);
    let last = Some((known.epoch.clone(), Next { a: next(alarm), t: next(telemetry) }));
    let Some(epoch) = alarm.epoch() else { return begin(StartReason::Damaged, last) };
    // An epoch that was never declared is replaced without a word: what it would have replaced still is.
    let replaces = epoch.started.as_ref().map_or(last, |started| started.replaces.clone());
    if alarm.word::<Machine>(word::MACHINE).is_some_and(|of| of.differs_from(machine)) {
        return begin(StartReason::OtherMachine, replaces);
    }
    let agreed = match telemetry.epoch() {
        Some(of) if of.epoch == epoch.epoch => true,
        // A crash after the alarm chain began it and before the telemetry chain did.
        Some(of) => epoch.replaced.as_ref() == Some(&of.epoch),
        None => epoch.started.as_ref().is_some_and(|started| started.replaces.is_none()),
    };
    let numbers_unknown = |found: &Found| found.damage.as_ref().is_some_and(|damage| !damage.numbers_known);
    let suspect = numbers_unknown(alarm) || numbers_unknown(telemetry);
    if suspect || !agreed { begin(StartReason::Damaged, replaces) } else { Decision::GoOn(epoch.clone()) }
}
