//! One sled database used so that it keeps what it acknowledged: an open that survives damage, a commit that ends with a
//! real sync, a walk of bounded memory. The only file that names sled's own types of failure.
//!
//! Why sled 0.34.7 needs this (measured by power-cut simulation): its `flush` writes with `sync_file_range`, which
//! leaves data in the drive's cache; nobody syncs its `conf` and its directories; a half-written
//! `snap.*.generating` is taken for a snapshot and makes every later open fail; damage panics as often as it is
//! reported; and its cache forgets nothing that is looked at only once.

use std::{
    any::Any,
    fs::{self, File},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{OpenError, StoreError};
use crate::metrics::{Histogram, IntCounter, Metrics};

/// Page cache of one chain. Smaller does not save memory, larger gains nothing: a chain is appended to at one end and read
/// at the other. It is no bound: sled keeps a page in each of the cache's 256 parts whatever its size, and a page of
/// ours takes some 30 KiB, so that all that is written to a generation, or looked at, stays, up to 7 MiB.
const CACHE_SIZE: u64 = 1024 * 1024;
/// Never to be changed: sled refuses a database of another segment size. At 512 KiB a leaf spills to a blob file from
/// 7.5 KiB a value on, well above `RECORD_SIZE_MAX`.
const SEGMENT_SIZE: usize = 512 * 1024;
/// Where sled keeps the data, in its folder.
pub(super) const DATA: &str = "db";
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
    chain: &'static str,
    folder: PathBuf,
    sync_file: SyncFile,
    sync_seconds: Histogram,
    written_bytes: IntCounter,
}

impl Database {
    /// Opens the database of a folder, or makes it; sled may panic on damage.
    pub(super) fn open(
        chain: &'static str,
        folder: &Path,
        sync_file: &SyncFile,
        metrics: &Metrics,
    ) -> Result<Self, Fault> {
        let attempt = AssertUnwindSafe(|| Self::attempt(chain, folder, sync_file, metrics));
        catch_unwind(attempt).unwrap_or_else(|panic| Err(Fault::Damaged(panic_text(&*panic))))
    }

    /// Does something with it that may panic on damage.
    pub(super) fn try_with<T>(&self, work: impl FnOnce(&Self) -> Result<T, Fault>) -> Result<T, Fault> {
        catch_unwind(AssertUnwindSafe(|| work(self))).unwrap_or_else(|panic| Err(Fault::Damaged(panic_text(&*panic))))
    }

    fn attempt(chain: &'static str, folder: &Path, sync_file: &SyncFile, metrics: &Metrics) -> Result<Self, Fault> {
        // No background thread: it would sync twice a second even when nothing changed. Its other work, moving live
        // pages together, is not missed: a generation is left behind before that would pay.
        let config = sled::Config::new()
            .path(folder)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_SIZE)
            .segment_size(SEGMENT_SIZE)
            .flush_every_ms(None);
        let db = open_patiently(&config, folder)?;
        let data = File::open(folder.join(DATA))?;
        Ok(Self {
            db,
            data,
            chain,
            folder: folder.into(),
            sync_file: sync_file.clone(),
            sync_seconds: metrics.outbox_sync_seconds.with_label_values(&[chain]),
            written_bytes: metrics.outbox_written_bytes.with_label_values(&[chain]),
        })
    }

    /// Name of the chain.
    pub(super) const fn chain(&self) -> &'static str {
        self.chain
    }

    /// Size of its data file, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.data.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Whether sled has put a value into a file of its own, which it never syncs: no value should be that large.
    pub(super) fn has_blobs(&self) -> bool {
        fs::read_dir(self.folder.join("blobs")).is_ok_and(|mut files| files.next().is_some())
    }

    /// Applies a batch, to be put on stable storage with the next commit. After an error the handle is dead.
    pub(super) fn write(&self, batch: sled::Batch) -> Result<(), StoreError> {
        self.db.apply_batch(batch).map_err(|e| self.sled_failed(&e))
    }

    /// Applies a batch whole and returns when it is on stable storage. After an error the handle is dead.
    pub(super) fn commit(&self, batch: sled::Batch, size: usize) -> Result<(), StoreError> {
        let timer = self.sync_seconds.start_timer();
        self.write(batch)?;
        self.db.flush().map_err(|e| self.sled_failed(&e))?;
        (self.sync_file)(&self.folder, &self.data).map_err(|e| unwritable(self.chain, &e))?;
        timer.observe_duration();
        self.written_bytes.inc_by(size as u64);
        Ok(())
    }

    fn sled_failed(&self, error: &sled::Error) -> StoreError {
        match error {
            sled::Error::Io(error) => unwritable(self.chain, error),
            other => StoreError::Write { chain: self.chain, reason: other.to_string().into() },
        }
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

    /// The value with the largest key up to `key`, with its key.
    pub(super) fn up_to(&self, key: &[u8]) -> Result<Option<(sled::IVec, sled::IVec)>, StoreError> {
        self.db.range::<&[u8], _>(..=key).next_back().transpose().map_err(|e| self.unreadable(&e))
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

/// What it means for a chain that something could not be written.
pub(super) fn unwritable(chain: &'static str, error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { chain },
        _ => StoreError::Write { chain, reason: error.to_string().into() },
    }
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
