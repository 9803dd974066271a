//! The thread that alone touches a chain: it gathers what is queued, commits it as one group with one sync, then answers
//! everyone in it. A chain nobody writes to sleeps.

use std::{
    collections::VecDeque,
    fs::File,
    sync::{
        Arc, OnceLock, Weak,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::warn;

use super::{Generation, Lost, StoreError, Stored, ballast::Ballast, chain::Chain, layout::Write};
use crate::{
    alarm::{AlarmId, AlarmState},
    clock::Clock,
    supervise::TaskResult,
};

/// What may wait for one chain, in KiB; each job counts as at least one. Full means that the disk is slower than the
/// field: senders wait then, and nothing is dropped. As much again are records, which may have to wait for room on the
/// disk without keeping others. Two chains of 1 MiB fit the daemon's memory.
const QUEUE_KIB: u32 = 512;
/// A group is closed at this size: beyond it a sync costs little more a record, and the first of it waits longer.
const GROUP_SIZE_MAX: usize = 256 * 1024;
/// A group is closed at this many waiting jobs, for the same reason.
const GROUP_JOBS_MAX: usize = 64;
/// Jobs looked at before the clock is: a reader that asks without a pause must not hold back a writer.
const JOBS_A_TURN_MAX: usize = 256;
/// Confirmations are written with the next group, at the latest after this or …
const CONFIRM_WAIT_MAX_MS: u64 = 1_000;
/// … when there are so many: what is delivered twice after a power cut is bounded by both. Fewer make more syncs of a
/// backlog that goes out; more keep readers waiting longer than what they have read ahead lasts.
const CONFIRMS_MAX: usize = 256;

/// How often a chain without room tries again.
const FULL_PAUSE_MS: u64 = 1_000;
/// How often it sees meanwhile whether anybody still waits for that.
const LOOK_WHETHER_LEFT_EVERY_MS: u64 = 100;
/// How often it is seen whether the disk has room again.
const LOOK_FOR_ROOM_EVERY_MS: u64 = 10_000;

/// Runs when what a job wrote is on stable storage; is dropped unrun if it never will be.
pub(super) type Done = Box<dyn FnOnce() + Send>;

/// What a chain is asked.
pub(super) enum Job {
    Write { write: Write, done: Done },
    Session(oneshot::Sender<u64>),
    Confirm(Vec<u64>),
    Settle { positions: Vec<(u64, u64)>, done: Done },
    Rotate(Done),
    Compact { number: u64, done: Done },
    Generations(oneshot::Sender<Vec<Generation>>),
    Lost(oneshot::Sender<Vec<Lost>>),
    Read { position: u64, records_max: usize, answer: oneshot::Sender<Vec<Stored>> },
    AlarmsOf(Vec<AlarmId>, oneshot::Sender<Vec<AlarmState>>),
    Alarms(oneshot::Sender<Vec<AlarmState>>),
}

/// The way to a chain's thread.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    chain: &'static str,
    jobs: Sender<(Job, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    room_for_records: Arc<Semaphore>,
    failure: Arc<OnceLock<StoreError>>,
    /// Counts the handles.
    _alive: Arc<()>,
}

impl Handle {
    /// Queues a job of so many bytes, once there is room for it.
    pub(super) async fn send(&self, job: Job, size: usize) -> Result<(), StoreError> {
        let kib = u32::try_from(1 + size / 1024).unwrap_or(QUEUE_KIB).min(QUEUE_KIB);
        let room = if matches!(job, Job::Write { .. }) { &self.room_for_records } else { &self.room };
        let room = room.clone().acquire_many_owned(kib).await.map_err(|_| self.failure())?;
        self.jobs.send((job, room)).map_err(|_| self.failure())
    }

    /// Queues a job and waits for its answer.
    pub(super) async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<T>) -> Job,
        size: usize,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.send(job(answer), size).await?;
        answered.await.map_err(|_| self.failure())
    }

    /// Why the chain no longer answers.
    fn failure(&self) -> StoreError {
        self.failure.get().cloned().unwrap_or(StoreError::Closed { chain: self.chain })
    }
}

/// The thread's own side.
pub(super) struct Committer {
    jobs: Receiver<(Job, OwnedSemaphorePermit)>,
    failure: Arc<OnceLock<StoreError>>,
    handles: Weak<()>,
    clock: Clock,
    /// How long the first job of a group waits for others.
    gather: Duration,
    /// What the group in the making writes, for the case that it has to be written again.
    group: Vec<Write>,
    /// Whom it will answer.
    waiting: Vec<Done>,
    /// When the group in the making must be written, by the monotonic clock.
    due_ms: Option<u64>,
    /// Confirmations since the last group.
    confirms: usize,
    ballast: Arc<Ballast>,
    /// How often it had given room up when the last group was begun.
    releases: u32,
    /// Records that wait for room on the disk.
    held_back: VecDeque<(Job, OwnedSemaphorePermit)>,
    /// When to look next whether the disk has room again; none while this chain has met no full one.
    look_for_room_at_ms: Option<u64>,
    // In this order: the database is closed before the store's lock is given up.
    chain: Chain,
    _lock: Arc<File>,
}

impl Committer {
    /// A thread to be run, and the way to it.
    pub(super) fn new(chain: Chain, gather: Duration, lock: Arc<File>, ballast: Arc<Ballast>) -> (Handle, Self) {
        let (sender, jobs) = channel();
        let failure = Arc::<OnceLock<StoreError>>::default();
        let alive = Arc::new(());
        let handles = Arc::downgrade(&alive);
        let handle = Handle {
            chain: chain.name(),
            jobs: sender,
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            room_for_records: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            failure: failure.clone(),
            _alive: alive,
        };
        let committer = Self {
            jobs,
            failure,
            handles,
            clock: Clock::system(),
            gather,
            group: Vec::new(),
            waiting: Vec::new(),
            due_ms: None,
            confirms: 0,
            ballast,
            releases: 0,
            held_back: VecDeque::new(),
            look_for_room_at_ms: None,
            chain,
            _lock: lock,
        };
        (handle, committer)
    }

    /// Serves until every handle is gone, then writes what is left. An error is the end of the chain.
    pub(super) fn run(mut self) -> TaskResult {
        let result = match self.serve() {
            // Only when nobody is left who could wait for room. What is not written was promised to nobody; what was
            // delivered is delivered again.
            Err(StoreError::Full { chain }) if self.is_left() => {
                warn!(chain, "stopped without room: what waited for it is not stored");
                Ok(())
            }
            served => served,
        };
        if let Err(error) = &result {
            // Before the waiting are dropped with us: they ask for it.
            let _ = self.failure.set(error.clone());
        }
        Ok(result?)
    }

    fn serve(&mut self) -> Result<(), StoreError> {
        loop {
            self.ballast.set_delivered(self.chain_index(), !self.chain.has_waiting());
            self.look_for_room();
            match self.wait() {
                Ok((job, room)) => self.admit(job, room)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // Without room nobody was promised what is held back.
                    self.let_go()?;
                    self.write()?;
                    return self.chain.close();
                }
            }
            for _ in 1..JOBS_A_TURN_MAX {
                if self.full() {
                    break;
                }
                let Ok((job, room)) = self.jobs.try_recv() else { break };
                self.admit(job, room)?;
            }
            self.let_go()?;
            if self.full() || self.due_ms.is_some_and(|due_ms| self.now_ms() >= due_ms) {
                self.write()?;
            }
        }
    }

    fn wait(&self) -> Result<(Job, OwnedSemaphorePermit), RecvTimeoutError> {
        let held_back = (!self.held_back.is_empty()).then(|| self.now_ms() + FULL_PAUSE_MS);
        match self.due_ms.into_iter().chain(held_back).chain(self.look_for_room_at_ms).min() {
            None => self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due_ms) => self.jobs.recv_timeout(Duration::from_millis(due_ms.saturating_sub(self.now_ms()))),
        }
    }

    /// Takes a job, or holds records back while what room there is must serve those that are stored.
    fn admit(&mut self, job: Job, room: OwnedSemaphorePermit) -> Result<(), StoreError> {
        let is_record = matches!(job, Job::Write { .. });
        if is_record && (self.ballast.is_used_up() || !self.held_back.is_empty()) {
            self.held_back.push_back((job, room));
            return Ok(());
        }
        self.take(job)
    }

    /// Takes what was held back, if there is room.
    fn let_go(&mut self) -> Result<(), StoreError> {
        if !self.held_back.is_empty() && self.ballast.is_used_up() {
            self.ballast.hold_reserve();
        }
        // What was delivered takes its room along, also where the other chain waits for that.
        if self.ballast.is_used_up()
            && self.chain.is_delivered()
            && self.ballast.fits(self.chain.new_generation_size()?)
        {
            self.take(Job::Rotate(Box::new(|| {})))?;
            self.write()?;
            self.ballast.hold_reserve();
        }
        while !self.ballast.is_used_up() && !self.full() {
            let Some((job, _room)) = self.held_back.pop_front() else { break };
            self.take(job)?;
        }
        Ok(())
    }

    fn take(&mut self, job: Job) -> Result<(), StoreError> {
        let failure = self.failure.clone();
        // Before the job is dropped: who waits for its answer then asks why there is none.
        let note = |error: &StoreError| drop(failure.set(error.clone()));
        // An answer nobody waits for any more is no failure.
        match job {
            Job::Write { write, done } => {
                self.chain.stage(&write).inspect_err(note)?;
                self.group.push(write);
                self.answer_with_group(done);
            }
            Job::Session(answer) => {
                let session = self.chain.next_session();
                self.answer_with_group(Box::new(move || {
                    let _ = answer.send(session);
                }));
            }
            Job::Confirm(positions) => {
                self.chain.confirm(&positions);
                self.chain.publish()?;
                self.confirms += positions.len();
                self.write_within(CONFIRM_WAIT_MAX_MS);
            }
            Job::Settle { positions, done } => {
                positions.iter().for_each(|(first, last)| self.chain.give_up(*first, *last));
                self.answer_with_group(done);
            }
            Job::Rotate(done) => {
                self.write()?;
                self.releases = self.ballast.releases();
                if let Err(error) = self.chain.rotate() {
                    self.make_room(error).inspect_err(note)?;
                }
                done();
            }
            Job::Compact { number, done } => {
                // What is settled must be so on stable storage before its records go.
                self.write()?;
                match self.chain.compact(number) {
                    // The generation is as it was.
                    Err(StoreError::Full { .. }) => {}
                    compacted => compacted.inspect_err(note)?,
                }
                self.answer_with_group(done);
            }
            Job::Generations(answer) => drop(answer.send(self.chain.generations())),
            Job::Lost(answer) => drop(answer.send(self.chain.lost())),
            Job::Read { position, records_max, answer } => {
                drop(answer.send(self.chain.read(position, records_max).inspect_err(note)?));
            }
            Job::AlarmsOf(ids, answer) => drop(answer.send(self.chain.alarms_of(&ids).inspect_err(note)?)),
            Job::Alarms(answer) => drop(answer.send(self.chain.alarms().inspect_err(note)?)),
        }
        Ok(())
    }

    fn answer_with_group(&mut self, done: Done) {
        self.waiting.push(done);
        self.write_within(u64::try_from(self.gather.as_millis()).unwrap_or(0));
    }

    fn write_within(&mut self, wait_ms: u64) {
        let due_ms = self.now_ms() + wait_ms;
        self.due_ms = Some(self.due_ms.map_or(due_ms, |earlier_ms| earlier_ms.min(due_ms)));
    }

    fn full(&self) -> bool {
        self.waiting.len() >= GROUP_JOBS_MAX
            || self.chain.staged_size() >= GROUP_SIZE_MAX
            || self.confirms >= CONFIRMS_MAX
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.due_ms = None;
        self.confirms = 0;
        self.releases = self.ballast.releases();
        if let Err(error) = self.chain.commit() {
            self.make_room(error)?;
        }
        self.chain.publish()?;
        self.group.clear();
        for done in self.waiting.drain(..) {
            done();
        }
        Ok(())
    }

    /// After a write met a full disk: gives up the room that was kept, opens the chain again and writes the group. Where
    /// that was not enough it waits until there is room; who waits for the group waits as well.
    fn make_room(&mut self, mut error: StoreError) -> Result<(), StoreError> {
        while matches!(error, StoreError::Full { .. }) {
            let released = self.ballast.release(self.releases);
            self.releases = self.ballast.releases();
            if !released {
                self.ballast.set_waiting(self.chain_index(), true);
                for _ in 0..FULL_PAUSE_MS / LOOK_WHETHER_LEFT_EVERY_MS {
                    if self.is_left() {
                        return Err(error);
                    }
                    std::thread::sleep(Duration::from_millis(LOOK_WHETHER_LEFT_EVERY_MS));
                }
            }
            match self.chain.reopen(&self.group) {
                Ok(()) => {
                    self.ballast.set_waiting(self.chain_index(), false);
                    if self.ballast.is_used_up() {
                        self.ballast.hold_reserve();
                    }
                    self.look_for_room_at_ms = Some(self.now_ms() + self.look_again_in_ms());
                    return Ok(());
                }
                Err(again) => error = again,
            }
        }
        Err(error)
    }

    /// Whether the last handle is gone: the daemon ends.
    fn is_left(&self) -> bool {
        self.handles.strong_count() == 0
    }

    fn look_for_room(&mut self) {
        let now_ms = self.now_ms();
        if self.look_for_room_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
            let is_tight = !self.ballast.hold();
            self.chain.set_tight(is_tight);
            self.look_for_room_at_ms = is_tight.then_some(now_ms + self.look_again_in_ms());
        }
    }

    /// What is kept for a full disk is taken back before others take it.
    fn look_again_in_ms(&self) -> u64 {
        if self.ballast.is_used_up() { FULL_PAUSE_MS } else { LOOK_FOR_ROOM_EVERY_MS }
    }

    /// Which of the chains this is.
    fn chain_index(&self) -> usize {
        usize::from(self.chain.name() != "alarm")
    }

    fn now_ms(&self) -> u64 {
        self.clock.now().mono_ms
    }
}
