//! A store in memory, for the time its folder cannot be used: a card that went read-only, a file where the folder should
//! be, an owner that is not us. Never silently (the daemon says so everywhere), and only until the folder can be used.
//!
//! It is a store like any other, in a folder of a file system in memory, with an epoch of its own: nobody can know which
//! numbers the other store would give next. It begins with the states of the other one, as far as they can be read, and
//! what the center may not know of them is told again. It survives the daemon, not the power. When the folder can be used
//! again the store there takes everything in: the records that wait keep their numbers, and the epoch goes on.
//!
//! Limit: where the other store could not even be read, an alarm that stood in it and ended meanwhile stands again with
//! it, until its source says once more that it has ended.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    OpenError,
    envelope::Kind,
    inspect,
    layout::{EpochMeta, NextMeta, Put, States, word},
    raw::View,
    settled::Settled,
};
use crate::{
    alarm::{AlarmId, Told},
    record::Lane,
};

/// What it may take: memory is shared with everything else on a small board.
pub const SIZE_MAX: u64 = 16 << 20;
/// What a store begins with is written in it.
const FIRST_COMMIT: u64 = 1;
/// Where systemd gives a service a folder in memory (`RuntimeDirectory=`).
const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";
/// Where else there is one.
const SHARED_MEMORY: &str = "/dev/shm";

/// Where the store in memory of the outbox in `path` lies, whether there is one or not.
#[must_use]
pub fn folder(path: &Path) -> PathBuf {
    let given = std::env::var_os(RUNTIME_DIRECTORY);
    let root = given.map_or_else(|| SHARED_MEMORY.into(), PathBuf::from);
    // More than one gateway may run here.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    root.join(format!("gardu-outbox-{:08x}", crc32fast::hash(path.as_os_str().as_encoded_bytes())))
}

/// Makes the folder, for us alone. What anybody else has put there is not used.
pub(super) fn make(folder: &Path) -> Result<(), OpenError> {
    let refused = |reason: &str| OpenError::Io { path: folder.into(), reason: reason.into() };
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(refused(&error.to_string())),
        _ => {}
    }
    let found = folder.symlink_metadata().map_err(|error| refused(&error.to_string()))?;
    let is_ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
    if is_ours { Ok(()) } else { Err(refused("somebody else has made it")) }
}

/// What one lane of a store leaves to another.
#[derive(Debug)]
pub(super) struct Left {
    /// The oldest first, the present one last.
    pub(super) epochs: Vec<EpochMeta>,
    /// The position the next record would have got.
    pub(super) next: u64,
    pub(super) settled: Settled,
    pub(super) states: Vec<Put>,
    /// CONNECTs counted.
    pub(super) session: u64,
}

impl Left {
    /// Of the store in this folder; none if there is nothing that can be understood.
    pub(super) fn of(folder: &Path, lane: Lane) -> Option<Self> {
        Self::of_view(&inspect::view(folder, lane)?)
    }

    fn of_view(view: &View) -> Option<Self> {
        let NextMeta { next, .. } = view.word(word::NEXT)?;
        let settled = Settled::load(&view.word::<Vec<_>>(word::SETTLED)?, next)?;
        let mut epochs: Vec<EpochMeta> = view.all(Kind::Epoch).map(|(_, meta)| meta).collect();
        epochs.sort_by_key(|epoch| epoch.base);
        // What has not changed here is only a copy, and what was copied need not have been on stable storage.
        let changed = |commit: u64| commit > FIRST_COMMIT;
        let states = states(view, &[Kind::Alarm, Kind::Answer, Kind::Count], changed);
        let session = view.word(word::SESSION).unwrap_or(0);
        (!epochs.is_empty()).then_some(Self { epochs, next, settled, states, session })
    }
}

/// What a store in memory begins with: the states of the store in this folder, as far as they can be read.
pub(super) fn seed(folder: &Path) -> Vec<Put> {
    let Some(view) = inspect::view(folder, Lane::Alarm) else { return Vec::new() };
    let session = view.word::<u64>(word::SESSION).map(|session| Put::word(word::SESSION, &session));
    let all = |_| true;
    states(&view, &[Kind::Alarm, Kind::Answer, Kind::Boot, Kind::Count], all).into_iter().chain(session).collect()
}

/// Alarms of the store in this folder whose last transition waits there: the center may not have it.
pub(super) fn untold(folder: &Path) -> Vec<AlarmId> {
    let untold = || {
        let view = inspect::view(folder, Lane::Alarm)?;
        let Left { epochs, settled, .. } = Left::of_view(&view)?;
        let waits = |told: &Told| {
            let of = epochs.iter().find(|of| of.epoch == told.epoch);
            of.is_some_and(|of| !settled.contains(of.base + told.sequence))
        };
        let alarms = States::of(&view.entries).alarms.into_iter();
        let untold = alarms.filter(|state| state.configured && state.told.as_ref().is_none_or(waits));
        Some(untold.map(|state| state.last.alarm).collect())
    };
    untold().unwrap_or_default()
}

fn states(view: &View, kinds: &[Kind], which: impl Fn(u64) -> bool) -> Vec<Put> {
    let of_kinds = view.entries.iter().filter(|((kind, _), (commit, _))| kinds.contains(kind) && which(*commit));
    of_kinds
        .map(|((kind, key), (_, payload))| Put { kind: *kind, key: key.clone(), payload: payload.clone() })
        .collect()
}

/// Takes the folder away, if there is one.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
