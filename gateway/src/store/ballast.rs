//! Room kept for the day the disk is full: a file that holds space and nothing else.
//!
//! Anything may fill the disk, not only we. sled cannot even be opened then, and a chain that met a full disk has to be
//! opened again. So the space of that file is given up first, and taken back when there is plenty.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::metrics::Metrics;

/// Free bytes beside the ballast before it is taken back: what evicting and sealing need at once.
const SPARE: u64 = 8 * 1024 * 1024;

/// How much room the disk has for the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// As much as the quota wants.
    Enough,
    /// The disk was full: the store lives on what it had kept for that day.
    Tight,
    /// That is used up too: nothing can be stored before there is room.
    None,
}

/// The file, shared by both chains.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    size: u64,
    /// One chain at a time.
    turn: Mutex<()>,
    waiting: [AtomicBool; 2],
    space: watch::Sender<Space>,
    metrics: Metrics,
}

impl Ballast {
    pub(super) fn new(root: &std::path::Path, size: u64, metrics: &Metrics) -> Self {
        let (path, space) = (root.join("ballast"), watch::Sender::new(Space::Enough));
        Self { path, size, turn: Mutex::new(()), waiting: Default::default(), space, metrics: metrics.clone() }
    }

    /// How much room there is.
    pub(super) fn space(&self) -> watch::Receiver<Space> {
        self.space.subscribe()
    }

    /// Gives the room up; false if that was done before.
    pub(super) fn release(&self) -> bool {
        let _turn = self.turn();
        let released = fs::remove_file(&self.path).is_ok();
        if released {
            error!("the disk is full: the store goes on with the room it had kept; make room soon");
        }
        self.tell();
        released
    }

    /// Notes whether a chain can store nothing now.
    pub(super) fn set_waiting(&self, chain: usize, waiting: bool) {
        self.waiting[chain].store(waiting, Ordering::Relaxed);
        self.tell();
    }

    /// Takes the room back, if there is plenty of it; true if it is held.
    pub(super) fn hold(&self) -> bool {
        let _turn = self.turn();
        let held = self.held()
            || self.take().unwrap_or_else(|error| {
                warn!("no room can be kept for a full disk: {error}");
                false
            });
        self.tell();
        held
    }

    fn held(&self) -> bool {
        self.path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == self.size)
    }

    fn take(&self) -> io::Result<bool> {
        let root = self.path.parent().expect("it lies in the outbox");
        let disk = statvfs(root)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < self.size + SPARE {
            return Ok(false);
        }
        let taken = File::create(&self.path).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, self.size)?;
            file.sync_all()
        });
        if taken.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        taken.map(|()| true)
    }

    fn tell(&self) {
        let waits = self.waiting.iter().any(|waiting| waiting.load(Ordering::Relaxed));
        let space = match (waits, self.held()) {
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
        assert!(ballast.path.metadata().expect("there").blocks() * 512 >= 1024 * 1024, "blocks are taken");
        assert_eq!(*space.borrow_and_update(), Space::Enough);
        assert!(ballast.release());
        assert_eq!(*space.borrow_and_update(), Space::Tight);
        assert!(!ballast.release());
        ballast.set_waiting(1, true);
        assert_eq!(*space.borrow_and_update(), Space::None);
        ballast.set_waiting(1, false);
        assert!(ballast.hold());
        assert_eq!(*space.borrow_and_update(), Space::Enough);
    }

    #[test]
    fn where_there_is_no_room_none_is_kept() {
        let dir = tempfile::tempdir().expect("folder");
        let ballast = Ballast::new(dir.path(), u64::MAX / 2, &Metrics::new());
        assert!(!ballast.hold());
        assert!(!ballast.path.exists());
        assert_eq!(*ballast.space().borrow(), Space::Tight);
    }
}
