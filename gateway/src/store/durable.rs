//! One sled database used so that it keeps what it acknowledged: an open that survives damage, a commit that ends with a
//! real sync, a walk of bounded memory. The only file that names sled's own types of failure.
//!
//! Why sled 0.34.7 needs this (measured by power-cut simulation): its `flush` writes with `sync_file_range`, which
//! leaves data in the drive's cache; nobody syncs its `conf` and its directories; a half-written
//! `snap.*.generating` is taken for a snapshot and makes every later open fail; damage panics as often as it is
//! reported; and its cache forgets nothing that is looked at only once.
//!
//! Limits: the file does not shrink, and every open writes its free segments anew, so that a restart after a large
//! backlog was drained costs up to that backlog in flash writes. Damage in what was written since the last open ends the
//! log there without an error: what follows is lost and can be given again; only a mark outside sled could tell.

use std::{
    any::Any,
    fs::{self, File},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tracing::error;

use super::{
    OpenError, StoreError,
    place::{Place, Remedy},
};
use crate::metrics::{Histogram, IntCounter, Metrics};

/// Page cache of one chain. Smaller does not save memory (the page table dominates), larger gains nothing: a chain is
/// appended to at one end and read at the other.
const CACHE_SIZE: u64 = 1024 * 1024;
/// Never to be changed: sled refuses a database of another segment size. At 512 KiB a leaf spills to a blob file from
/// 7.5 KiB a value on, well above `RECORD_SIZE_MAX`.
const SEGMENT_SIZE: usize = 512 * 1024;
/// sled's worker threads may hold its lock for a moment after an open that panicked; ours is held all along.
const LOCK_TRIES: u32 = 100;
/// Between two of these tries.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Puts a data file on stable storage; tests put a disk in its place that loses what was not synced.
pub(super) type SyncFile = Arc<dyn Fn(&Path, &File) -> io::Result<()> + Send + Sync>;

/// The real one. `fdatasync` also writes a size that changed.
pub(super) fn sync_file() -> SyncFile {
    Arc::new(|_, file| Ok(rustix::fs::fdatasync(file)?))
}

/// Why a database could not be opened.
#[derive(Debug)]
pub(super) enum Fault {
    /// The bytes on the disk are not what was written.
    Damaged(String),
    /// The machine does not let us; the data may be well and must stay where it is.
    Machine(io::Error),
    /// We do not want to; the data must stay where it is.
    Refused(OpenError),
}

/// An open database.
pub(super) struct Database {
    db: sled::Db,
    /// Our own descriptor of sled's data file.
    data: File,
    place: Place,
    sync_file: SyncFile,
    sync_seconds: Histogram,
    written_bytes: IntCounter,
}

impl Database {
    /// Opens the database and looks at all of it with `scan`; both may panic on damage.
    ///
    /// Damage never prevents it; see [`Remedy`] for what is tried.
    pub(super) fn open<T>(
        place: &Place,
        sync_file: &SyncFile,
        metrics: &Metrics,
        scan: impl Fn(&Self) -> Result<T, Fault>,
    ) -> Result<(Self, T), OpenError> {
        let attempt = || -> Result<(Self, T), Fault> {
            let database = Self::attempt(place, sync_file, metrics)?;
            let found = scan(&database)?;
            Ok((database, found))
        };
        for remedy in Remedy::ALL {
            if !place.apply(remedy).map_err(|e| refused(&place.folder, &e))? {
                continue;
            }
            let outcome = catch_unwind(AssertUnwindSafe(attempt));
            let damage = match outcome {
                Ok(Ok((database, found))) => {
                    database.place.make_durable().map_err(|e| refused(&place.folder, &e))?;
                    return Ok((database, found));
                }
                Ok(Err(Fault::Machine(error))) => return Err(refused(&place.folder, &error)),
                Ok(Err(Fault::Refused(error))) => return Err(error),
                Ok(Err(Fault::Damaged(reason))) => reason,
                Err(panic) => panic_text(&*panic),
            };
            error!(chain = place.chain, opened = remedy.how(), "the store is damaged: {damage}");
        }
        Err(refused(&place.folder, &io::Error::other("a new database cannot be opened either")))
    }

    fn attempt(place: &Place, sync_file: &SyncFile, metrics: &Metrics) -> Result<Self, Fault> {
        place.prepare()?;
        // No background thread: it would sync twice a second even when nothing changed. Its other work, moving live
        // pages together, is not missed: 100,000 steps over a queue of 3,000 and 500 states stayed at 6 MiB.
        let config = sled::Config::new()
            .path(&place.folder)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_SIZE)
            .segment_size(SEGMENT_SIZE)
            .flush_every_ms(None);
        let db = open_patiently(&config, &place.folder)?;
        let data = File::open(place.folder.join("db"))?;
        if fs::read_dir(place.folder.join("blobs"))?.next().is_some() {
            error!(
                chain = place.chain,
                "the store has blob files, which a power cut can destroy: a value was too large"
            );
        }
        Ok(Self {
            db,
            data,
            place: place.clone(),
            sync_file: sync_file.clone(),
            sync_seconds: metrics.outbox_sync_seconds.with_label_values(&[place.chain]),
            written_bytes: metrics.outbox_written_bytes.with_label_values(&[place.chain]),
        })
    }

    /// Name of the chain's folder.
    pub(super) const fn chain(&self) -> &'static str {
        self.place.chain
    }

    /// The refusal of a layout this version does not know.
    pub(super) fn of_another_format(&self, found: u32) -> OpenError {
        OpenError::Format { path: self.place.folder.clone(), found }
    }

    /// Applies a batch whole and returns when it is on stable storage. After an error the handle is dead.
    pub(super) fn commit(&self, batch: sled::Batch, size: usize) -> Result<(), StoreError> {
        let failed = |reason: String| StoreError::Write { chain: self.chain(), reason: reason.into() };
        let timer = self.sync_seconds.start_timer();
        self.db.apply_batch(batch).map_err(|e| failed(e.to_string()))?;
        self.db.flush().map_err(|e| failed(e.to_string()))?;
        (self.sync_file)(&self.place.folder, &self.data).map_err(|e| failed(e.to_string()))?;
        timer.observe_duration();
        self.written_bytes.inc_by(size as u64);
        Ok(())
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        self.db.get(key).map_err(|e| self.unreadable(&e))
    }

    /// The first pair after `key` (from `key` on, for `Included`).
    ///
    /// Each step looks twice: sled's cache takes stock of a shard of pages only every 64 looks, so that a plain scan
    /// of 100,000 records of 600 bytes ended at 58 MiB resident whatever the cache's size; this one ends at 12 MiB.
    pub(super) fn after(&self, key: Bound<&[u8]>) -> Result<Option<(sled::IVec, sled::IVec)>, StoreError> {
        let Some(found) = self.db.range::<&[u8], _>((key, Bound::Unbounded)).next() else { return Ok(None) };
        let (key, _) = found.map_err(|e| self.unreadable(&e))?;
        Ok(self.get(&key)?.map(|value| (key, value)))
    }

    fn unreadable(&self, error: &sled::Error) -> StoreError {
        StoreError::Read { chain: self.chain(), reason: error.to_string().into() }
    }

    /// The folder.
    pub(super) const fn place(&self) -> &Place {
        &self.place
    }
}

fn open_patiently(config: &sled::Config, folder: &Path) -> Result<sled::Db, Fault> {
    for _ in 0..LOCK_TRIES {
        match config.open() {
            Err(sled::Error::Io(e)) if e.to_string().starts_with("could not acquire lock") => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(sled::Error::Io(e)) => return Err(e.into()),
            Err(e) => return Err(Fault::Damaged(e.to_string())),
            Ok(db) => return Ok(db),
        }
    }
    Err(Fault::Refused(OpenError::InUse { path: folder.into() }))
}

fn refused(folder: &Path, error: &io::Error) -> OpenError {
    OpenError::Io { path: folder.into(), reason: error.to_string().into() }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("sled panicked").into()
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{
            OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, ResourceBusy, StorageFull,
        };
        let too_many_files = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
        match error.kind() {
            // These go away without touching the data. All else, a medium that cannot be read included, would come back
            // at every start.
            OutOfMemory | PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | ResourceBusy | StorageFull => {
                Self::Machine(error)
            }
            _ if too_many_files => Self::Machine(error),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Damaged(error.to_string())
    }
}
