//! Room kept for the day the disk is full: files that hold space and nothing else.
//!
//! Anything may fill the disk, not only we. sled cannot even be opened then, and a chain that met a full disk has to be
//! opened again. So the space of the **ballast** is given up first, and taken back when there is plenty. When that is used
//! up too, the **reserve** goes, a part of all that: new records wait then, and what is stored goes on being delivered and
//! confirmed, which gives room back.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::disk;
use crate::metrics::Metrics;

/// Free bytes beside the ballast before it is taken back: what evicting and sealing need at once.
const SPARE: u64 = 8 * 1024 * 1024;
/// The reserve, in bytes, at most: some hundred groups of confirmations, and a new generation.
const RESERVE_SIZE_MAX: u64 = 2 * 1024 * 1024;
/// The part of it that serves as one: what it gave up does not all come back, since some of it lies in files by then. Half
/// is still what confirming needs, and not to insist on more lets new records in.
const RESERVE_PART: u64 = 2;
/// The same where nothing waits to be confirmed: whatever comes in then is as little as the room it finds, and others may
/// have taken the rest of what was given up.
const RESERVE_PART_DELIVERED: u64 = 8;
/// Free bytes that remain beside the reserve: a new generation, which takes 10 KiB and its states (sled allocates no whole
/// segment at once), and the commits until it is seen that the room is used up again.
const BESIDE_RESERVE: u64 = 256 * 1024;

/// The files' names.
const BALLAST: &str = "ballast";
const RESERVE: &str = "reserve";

/// How much room the disk has for the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// As much as the quota wants.
    Enough,
    /// The disk was full: the store lives on what it had kept for that day.
    Tight,
    /// That is used up too: no record can be stored before there is room.
    None,
}

/// The files, shared by both chains.
#[derive(Debug)]
pub(super) struct Ballast {
    ballast: Kept,
    reserve: Kept,
    /// One chain at a time.
    turn: Mutex<()>,
    /// How often room was given up.
    releases: AtomicU32,
    /// Whether new records must wait for room: the reserve was given up, or the disk has none for it.
    used_up: AtomicBool,
    /// Of each chain, whether it can store nothing now, and whether all that it stored was delivered.
    waiting: [AtomicBool; 2],
    delivered: [AtomicBool; 2],
    space: watch::Sender<Space>,
    metrics: Metrics,
}

impl Space {
    /// What the files say of a store that nobody has open, with all in it delivered or not: what was given up is not there.
    pub fn left_by(root: &Path, delivered: bool) -> io::Result<Self> {
        let held = |name| root.join(name).is_file();
        root.symlink_metadata()?;
        Ok(match (held(BALLAST), held(RESERVE)) {
            (true, _) => Self::Enough,
            (false, true) => Self::Tight,
            (false, false) => {
                if disk::free(root)? < RESERVE_SIZE_MAX / reserve_parts(delivered) + BESIDE_RESERVE {
                    Self::None
                } else {
                    Self::Tight
                }
            }
        })
    }
}

/// The smallest part of the reserve that serves as one.
const fn reserve_parts(delivered: bool) -> u64 {
    if delivered { RESERVE_PART_DELIVERED } else { RESERVE_PART }
}

impl Ballast {
    pub(super) fn new(root: &Path, size: u64, metrics: &Metrics) -> Self {
        let reserve = (size / 2).min(RESERVE_SIZE_MAX);
        Self {
            ballast: Kept { path: root.join(BALLAST), size: size - reserve },
            reserve: Kept { path: root.join(RESERVE), size: reserve },
            turn: Mutex::new(()),
            releases: AtomicU32::new(0),
            used_up: AtomicBool::new(false),
            waiting: Default::default(),
            delivered: Default::default(),
            space: watch::Sender::new(Space::Enough),
            metrics: metrics.clone(),
        }
    }

    /// How much room there is.
    pub(super) fn space(&self) -> watch::Receiver<Space> {
        self.space.subscribe()
    }

    /// How often room was given up.
    pub(super) fn releases(&self) -> u32 {
        self.releases.load(Ordering::Relaxed)
    }

    /// Gives room up, unless another chain did since `seen` was counted; false if there is none left to give.
    pub(super) fn release(&self, seen: u32) -> bool {
        let _turn = self.turn();
        if self.releases() != seen {
            return true;
        }
        let released = if self.ballast.give_up() {
            error!("the disk is full: the store goes on with the room it had kept; make room soon");
            true
        } else {
            let given_up = self.reserve.give_up();
            self.set_used_up(true);
            given_up
        };
        if released {
            self.releases.fetch_add(1, Ordering::Relaxed);
        }
        self.tell();
        released
    }

    /// Whether new records must wait for room, what is left being for those that are stored.
    pub(super) fn is_used_up(&self) -> bool {
        self.used_up.load(Ordering::Relaxed)
    }

    /// Notes whether a chain can store nothing now.
    pub(super) fn set_waiting(&self, chain: usize, waiting: bool) {
        self.waiting[chain].store(waiting, Ordering::Relaxed);
        self.tell();
    }

    /// Notes whether all that a chain stored was delivered.
    pub(super) fn set_delivered(&self, chain: usize, delivered: bool) {
        self.delivered[chain].store(delivered, Ordering::Relaxed);
    }

    /// Takes the reserve back, if there is more than that.
    pub(super) fn hold_reserve(&self) {
        let _turn = self.turn();
        self.take_reserve();
        self.tell();
    }

    fn take_reserve(&self) -> bool {
        let delivered = self.delivered.iter().all(|delivered| delivered.load(Ordering::Relaxed));
        // What was enough when it was taken stays so until it is given up, whatever came in since.
        let parts = reserve_parts(delivered || (!self.is_used_up() && self.reserve.is_held(RESERVE_PART_DELIVERED)));
        let held = self.reserve.hold(BESIDE_RESERVE, parts);
        // Where no room can be kept, that alone holds nobody up.
        self.set_used_up(held.as_ref().is_ok_and(|held| !held));
        said(held)
    }

    fn set_used_up(&self, used_up: bool) {
        if self.used_up.swap(used_up, Ordering::Relaxed) != used_up && used_up {
            error!("the disk is full and the room kept for that is used up: new records wait for room");
        }
    }

    /// Whether the disk has so much left.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        self.reserve.free().is_ok_and(|free| free >= bytes)
    }

    /// Takes all the room back, if there is plenty of it; true if it is held.
    pub(super) fn hold(&self) -> bool {
        let _turn = self.turn();
        let held = self.take_reserve() && said(self.ballast.hold(SPARE, 1));
        self.tell();
        held
    }

    fn tell(&self) {
        let waits = self.waiting.iter().any(|waiting| waiting.load(Ordering::Relaxed));
        let space = match (waits || self.is_used_up(), self.ballast.is_held(1)) {
            (true, _) => Space::None,
            (false, true) => Space::Enough,
            (false, false) => Space::Tight,
        };
        self.metrics.outbox_disk_full.set(i64::from(space != Space::Enough));
        self.metrics.outbox_waits_for_room.set(i64::from(space == Space::None));
        self.space.send_if_modified(|old| {
            if *old > space && space == Space::Enough {
                info!("there is room on the disk again");
            }
            std::mem::replace(old, space) != space
        });
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect("nobody panics in his turn")
    }
}

/// Whether room is held; that it cannot be is said.
fn said(held: io::Result<bool>) -> bool {
    held.unwrap_or_else(|error| {
        warn!("no room can be kept for a full disk: {error}");
        false
    })
}

/// A file that holds space.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    size: u64,
}

impl Kept {
    /// Whether one of so many parts of it is held.
    fn is_held(&self, parts: u64) -> bool {
        self.bytes() >= (self.size / parts).max(1)
    }

    fn bytes(&self) -> u64 {
        self.path.metadata().map_or(0, |metadata| if metadata.is_file() { metadata.len() } else { 0 })
    }

    /// False if it was given up before.
    fn give_up(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }

    /// Takes it, or the half of it and so on down to one of so many parts, if so much remains free; true if that is held.
    fn hold(&self, spare: u64, parts: u64) -> io::Result<bool> {
        let bytes = self.bytes();
        if bytes == self.size {
            return Ok(true);
        }
        let room = bytes + self.free()?.saturating_sub(spare);
        let mut halves = (0..=parts.ilog2()).map(|halvings| self.size >> halvings);
        match halves.find(|size| *size <= room) {
            Some(size) if size > bytes || bytes > self.size => self.take(size),
            _ => Ok(self.is_held(parts)),
        }
    }

    /// What the disk has for us.
    fn free(&self) -> io::Result<u64> {
        disk::free(self.path.parent().expect("it lies in the outbox"))
    }

    fn take(&self, size: u64) -> io::Result<bool> {
        if self.path.is_dir() {
            fs::remove_dir_all(&self.path)?;
        }
        // What is held of it already is kept: others would be quicker to take it.
        let taken = File::options().create(true).truncate(false).write(true).open(&self.path).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, size)?;
            file.set_len(size)?;
            file.sync_all()
        });
        if taken.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        taken.map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_given_up_once_and_taken_back() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("folder");
        let ballast = Ballast::new(dir.path(), 1024 * 1024, &Metrics::new());
        let mut space = ballast.space();
        assert!(ballast.hold() && ballast.hold());
        assert!(ballast.ballast.path.metadata().expect("there").blocks() * 512 >= 512 * 1024, "blocks are taken");
        assert_eq!(*space.borrow_and_update(), Space::Enough);
        assert!(ballast.release(0));
        assert_eq!(*space.borrow_and_update(), Space::Tight);
        assert!(ballast.release(0), "the other chain met the same full disk");
        assert!(!ballast.is_used_up());
        ballast.set_waiting(1, true);
        assert_eq!(*space.borrow_and_update(), Space::None);
        ballast.set_waiting(1, false);
        assert_eq!(*space.borrow_and_update(), Space::Tight);
        assert!(ballast.release(1) && ballast.is_used_up());
        assert_eq!(*space.borrow_and_update(), Space::None);
        assert!(!ballast.release(2), "nothing is left");
        ballast.hold_reserve();
        assert_eq!((*space.borrow_and_update(), ballast.is_used_up()), (Space::Tight, false));
        assert!(ballast.hold());
        assert_eq!(*space.borrow_and_update(), Space::Enough);
    }

    #[test]
    fn where_something_else_lies_in_its_place_nobody_waits() {
        let dir = tempfile::tempdir().expect("folder");
        for name in ["ballast", "reserve"] {
            fs::create_dir(dir.path().join(name)).expect("folder");
        }
        let ballast = Ballast::new(dir.path(), 1024 * 1024, &Metrics::new());
        assert!(ballast.hold() && !ballast.is_used_up());
        let nowhere = Ballast::new(&dir.path().join("gone"), 1024 * 1024, &Metrics::new());
        assert!(!nowhere.hold() && !nowhere.is_used_up());
    }

    #[test]
    fn a_part_will_do_and_grows_when_there_is_room() {
        let dir = tempfile::tempdir().expect("folder");
        let kept = Kept { path: dir.path().join("kept"), size: 256 << 10 };
        let but_for = |bytes: u64| kept.bytes() + kept.free().expect("asks") - bytes;
        let (half, quarter) = (kept.size / 2, kept.size / 4);
        // Others write meanwhile: half of the next step is left to them.
        assert!(!kept.hold(but_for(half + quarter / 2), 1).expect("asks"), "not whole, or not at all");
        assert!(!kept.hold(but_for(quarter + quarter / 2), 2).expect("asks"), "not half");
        assert!(kept.hold(but_for(quarter + quarter / 2), 8).expect("takes a quarter"));
        assert_eq!(kept.bytes(), quarter);
        assert!(kept.hold(u64::MAX, 4).expect("asks"), "what is held stays held");
        assert!(!kept.hold(u64::MAX, 2).expect("asks"), "a quarter is no half");
        assert!(kept.hold(0, 2).expect("takes all"));
        assert_eq!(kept.bytes(), kept.size);
    }

    #[test]
    fn a_part_that_was_taken_stays_enough_until_it_is_given_up() {
        let dir = tempfile::tempdir().expect("folder");
        // So large that the disk has no room for more than the part of it that is there, a hole.
        let size = 9 * disk::free(dir.path()).expect("asks");
        let reserve = Kept { path: dir.path().join(RESERVE), size };
        let ballast = Ballast { reserve, ..Ballast::new(dir.path(), 1024 * 1024, &Metrics::new()) };
        let part = size / RESERVE_PART_DELIVERED;
        File::create(&ballast.reserve.path).and_then(|file| file.set_len(part)).expect("a hole takes no room");
        ballast.hold_reserve();
        assert!(!ballast.is_used_up());
        assert!(ballast.release(0) && ballast.is_used_up());
        ballast.hold_reserve();
        assert!(ballast.is_used_up(), "with records that wait half of it is wanted anew");
    }

    #[test]
    fn what_lies_there_says_how_much_room_there_was() {
        let dir = tempfile::tempdir().expect("folder");
        let said = || Space::left_by(dir.path(), false).expect("reads");
        assert_ne!(said(), Space::Enough);
        for (name, space) in [(RESERVE, Space::Tight), (BALLAST, Space::Enough)] {
            fs::write(dir.path().join(name), "x").expect("writes");
            assert_eq!(said(), space);
        }
        assert!(Space::left_by(&dir.path().join("gone"), true).is_err());
    }

    #[test]
    fn where_there_is_no_room_none_is_kept() {
        let dir = tempfile::tempdir().expect("folder");
        let ballast = Ballast::new(dir.path(), u64::MAX / 2, &Metrics::new());
        assert!(!ballast.hold());
        assert!(!ballast.ballast.path.exists());
        assert_eq!(*ballast.space().borrow(), Space::Tight);
    }
}
