//! A look at a store from outside: without its lock, without sled, without changing a byte, also beside a running daemon.
//!
//! The lines of the newest generation say everything but where the older records lie; those are found as the daemon
//! itself finds them, by one pass over each sealed generation. What a running daemon has just written may be missing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Generation, Stored, disk,
    durable::DATA,
    envelope::{Envelope, Kind},
    layout::{EpochMeta, FORMAT, MadeMeta, NextMeta, SealedMeta, States, chain_of, word},
    mark::Mark,
    raw::{Bytes, Commits, View},
    settled::Settled,
};
use crate::{
    clock::{BootId, Boots, Now},
    record::{Body, Lane, LaneStatus, LossReason, StreamEvent},
};

/// What of a store cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Written by a version with another layout.
    #[error("{}: stored in format {found}, this version knows format {FORMAT}", path.display())]
    Format {
        /// The chain's folder.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The system does not let us read it, or there is nothing.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which folder.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// The folder of an outbox, measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folder {
    /// What all of it takes on the disk.
    pub disk_bytes: u64,
    /// What was set aside: names and bytes.
    pub aside: Vec<(String, u64)>,
}

/// Measures the folder of an outbox.
pub fn folder(path: &Path) -> io::Result<Folder> {
    let mut folder = Folder::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let bytes = disk::allocated(&entry.path()).unwrap_or(0);
        folder.disk_bytes += bytes;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("bad-") {
            folder.aside.push((name, bytes));
        }
    }
    folder.aside.sort();
    Ok(folder)
}

/// What a store holds.
#[derive(Debug, Default)]
pub struct Inspection {
    /// The folder, measured.
    pub folder: Folder,
    /// Each lane that has begun.
    pub lanes: Vec<LaneInspection>,
    /// What is known of the clock in each boot.
    pub boots: Boots,
    /// Numbers declared lost in records that are still there.
    pub lost: Vec<(Lane, LossReason, u64)>,
    /// Generations that cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
}

/// One lane of it.
#[derive(Debug)]
pub struct LaneInspection {
    /// Which.
    pub lane: Lane,
    /// Epoch and numbers.
    pub status: LaneStatus,
    /// Records waiting.
    pub records: u64,
    /// Their lines, in bytes.
    pub bytes: u64,
    /// When the oldest waiting one was recorded.
    pub oldest: Option<(BootId, Now)>,
    /// The oldest first.
    pub generations: Vec<Generation>,
    settled: Settled,
    parts: Vec<Part>,
}

/// Where the records of one generation lie, and which of them count.
#[derive(Debug, Clone)]
struct Part {
    number: u64,
    data: PathBuf,
    first: u64,
    end: u64,
    /// Of the open generation: in a sealed one the positions tell what counts.
    commits: Option<Arc<Commits>>,
}

/// Which records are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that wait.
    Waiting,
    /// Those that were confirmed as well, where they still lie there.
    All,
}

/// Looks at the store in this folder. `progress` hears how many bytes of how many were read.
pub fn look(path: &Path, mut progress: impl FnMut(u64, u64)) -> Result<Inspection, LookError> {
    let failed = |error| LookError::Io { path: path.into(), error };
    let mut inspection = Inspection { folder: folder(path).map_err(failed)?, ..Inspection::default() };
    let mut found_any = false;
    for lane in Lane::ALL {
        let generations = generations(path, lane).map_err(failed)?;
        found_any |= !generations.is_empty();
        let Some((view, parts)) = inspection.parts(path, lane, &generations)? else { continue };
        if lane == Lane::Alarm {
            inspection.boots = States::of(&view.entries).boots();
        }
        inspection.count(lane, &view, parts, &mut progress);
    }
    if found_any { Ok(inspection) } else { Err(failed(io::ErrorKind::NotFound.into())) }
}

/// What the newest generation of a lane says; none if there is none that can be read.
pub(super) fn view(path: &Path, lane: Lane) -> Option<View> {
    let generations = generations(path, lane).ok()?;
    Inspection::default().parts(path, lane, &generations).ok()?.map(|(view, _)| view)
}

/// Folders of a lane's generations, the oldest first.
fn generations(path: &Path, lane: Lane) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // One that was being written anew when the power went: it counts if the old one is gone already.
        let (name, anew) = name.strip_prefix("compacting-").map_or((name, false), |rest| (rest, true));
        let number = name.strip_prefix(chain_of(lane)).and_then(|rest| rest.strip_prefix('-')?.parse().ok());
        match number {
            Some(number) if anew => drop(found.entry(number).or_insert_with(|| entry.path())),
            Some(number) => drop(found.insert(number, entry.path())),
            None => {}
        }
    }
    Ok(found.into_iter().collect())
}

impl Inspection {
    /// What the newest generation that was ever used says, and where the records of all of them lie.
    fn parts(
        &mut self,
        path: &Path,
        lane: Lane,
        generations: &[(u64, PathBuf)],
    ) -> Result<Option<(View, Vec<Part>)>, LookError> {
        let mark = fs::read(path.join(format!("{}.mark", chain_of(lane)))).ok();
        let known = mark.and_then(|bytes| Mark::of_bytes(&bytes)).map_or(0, |mark| mark.commit);
        for (number, folder) in generations.iter().rev() {
            let data = folder.join(DATA);
            let mut view = match View::of(lane, &[Bytes::File(data.clone())], known, u64::MAX) {
                Ok(view) => view,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(LookError::Io { path: data, error });
                }
                Err(error) => {
                    self.unreadable.push((name(folder), error.to_string()));
                    continue;
                }
            };
            let other = view.word::<u32>(word::FORMAT).filter(|format| *format != FORMAT);
            if let Some(found) = other.or(view.other_version.filter(|_| view.entries.is_empty())) {
                return Err(LookError::Format { path: folder.clone(), found });
            }
            let (Some(made), Some(next)) = (view.word::<MadeMeta>(word::MADE), view.word::<NextMeta>(word::NEXT))
            else {
                // Without records it is one that was never used: the next start takes it away.
                if view.records.iter().any(|records| !records.positions.is_empty()) {
                    self.unreadable.push((name(folder), "its beginning is missing".to_owned()));
                }
                continue;
            };
            let sealed: BTreeMap<u64, SealedMeta> =
                view.all(Kind::Generation).filter_map(|(number, meta)| Some((number.parse().ok()?, meta))).collect();
            let commits = Arc::new(std::mem::take(&mut view.commits));
            let part = |(of, folder): &(u64, PathBuf)| {
                let data = folder.join(DATA);
                if of == number {
                    let commits = Some(commits.clone());
                    return Some(Part { number: *of, data, first: made.first, end: next.next, commits });
                }
                // One that the newest does not know is drained and about to be removed.
                let SealedMeta { first, end, .. } = *sealed.get(of)?;
                Some(Part { number: *of, data, first, end, commits: None })
            };
            return Ok(Some((view, generations.iter().filter_map(part).collect())));
        }
        Ok(None)
    }

    fn count(&mut self, lane: Lane, view: &View, parts: Vec<Part>, progress: &mut impl FnMut(u64, u64)) {
        let next = parts.last().map_or(1, |part| part.end);
        let ranges: Vec<(u64, u64)> = view.word(word::SETTLED).unwrap_or_default();
        let settled = Settled::load(&ranges, next).unwrap_or_else(Settled::new);
        let epoch = view.all::<EpochMeta>(Kind::Epoch).map(|(_, meta)| meta).max_by_key(|meta| meta.base);
        let Some(EpochMeta { epoch, base, .. }) = epoch else { return };
        let status = LaneStatus { epoch, next: next - base.min(next), settled: settled.run_from(base + 1) - base };
        let mut of = LaneInspection {
            lane,
            status,
            records: 0,
            bytes: 0,
            oldest: None,
            generations: Vec::new(),
            settled,
            parts: Vec::new(),
        };
        let sizes: Vec<u64> = parts.iter().map(|part| part.data.metadata().map_or(0, |data| data.len())).collect();
        let (total, mut done) = (sizes.iter().sum(), 0);
        for (part, size) in parts.into_iter().zip(sizes) {
            progress(done, total);
            done += size;
            let folder = part.data.parent().unwrap_or(&part.data);
            let index = match Index::of(&part, lane) {
                Ok(index) => index,
                Err(error) => {
                    self.unreadable.push((name(folder), error.to_string()));
                    continue;
                }
            };
            let waiting = index.places.iter().filter(|(position, _)| !of.settled.contains(**position));
            let (mut records, mut bytes, mut oldest) = (0, 0, None);
            for (position, place) in waiting {
                records += 1;
                bytes += u64::from(place.len);
                oldest.get_or_insert(*position);
            }
            if of.oldest.is_none() {
                let record = oldest.and_then(|position| index.read(position)).map(|stored| stored.record);
                of.oldest = record.map(|record| (record.boot, record.recorded));
            }
            of.records += records;
            of.bytes += bytes;
            of.generations.push(Generation {
                number: part.number,
                first: part.first,
                end: part.end,
                waiting: records,
                disk_bytes: disk::allocated(folder).unwrap_or(0),
                sealed: part.commits.is_none(),
            });
            for (lane, reason, count) in index.lost {
                match self.lost.iter_mut().find(|(of, why, _)| (*of, *why) == (lane, reason)) {
                    Some((.., sum)) => *sum += count,
                    None => self.lost.push((lane, reason, count)),
                }
            }
            of.parts.push(part);
        }
        self.lanes.push(of);
    }

    /// Records of a lane from a position on, in order; an error where a generation cannot be read.
    pub fn records(
        &self,
        lane: Lane,
        from: u64,
        which: Which,
    ) -> impl Iterator<Item = Result<Stored, (PathBuf, io::Error)>> + '_ {
        let of = self.lanes.iter().filter(move |of| of.lane == lane);
        of.flat_map(move |of| {
            of.parts.iter().filter(move |part| part.end > from).flat_map(move |part| {
                let (error, index) = match Index::of(part, lane) {
                    Ok(index) => (None, Some(index)),
                    Err(error) => (Some(Err((part.data.clone(), error))), None),
                };
                let wanted =
                    move |position: &u64| *position >= from && (which == Which::All || !of.settled.contains(*position));
                let records = index.into_iter().flat_map(move |index| {
                    let positions: Vec<u64> = index.places.keys().copied().filter(wanted).collect();
                    positions.into_iter().filter_map(move |position| index.read(position).map(Ok))
                });
                error.into_iter().chain(records)
            })
        })
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where the records of one generation lie: some 60 bytes each, 3 MiB for 16 MiB of small ones.
struct Index {
    file: File,
    places: BTreeMap<u64, Place>,
    /// What those of them declare lost.
    lost: Vec<(Lane, LossReason, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    commit: u64,
    offset: u64,
    len: u32,
}

impl Index {
    fn of(part: &Part, lane: Lane) -> io::Result<Self> {
        let file = File::open(&part.data)?;
        let bytes = Bytes::File(part.data.clone());
        let (mut places, mut lost) = (BTreeMap::<u64, Place>::new(), BTreeMap::new());
        bytes.scan(|offset, line| {
            let Some(key) = line.record_key().filter(|key| key.lane == lane) else { return };
            let void = part.commits.as_ref().is_some_and(|of| line.commit > of.last || of.void.contains(&line.commit));
            let newer = places.get(&key.position).is_none_or(|place| place.commit < line.commit);
            if void || !newer || !(part.first..part.end).contains(&key.position) {
                return;
            }
            let len = u32::try_from(line.size()).expect("a line is short");
            places.insert(key.position, Place { commit: line.commit, offset, len });
            lost.insert(key.position, declared(&line));
        })?;
        Ok(Self { file, places, lost: lost.into_values().flatten().collect() })
    }

    fn read(&self, position: u64) -> Option<Stored> {
        let place = self.places.get(&position)?;
        let mut line = vec![0; place.len as usize];
        self.file.read_exact_at(&mut line, place.offset).ok()?;
        let (_, record) = Envelope::read(&line)?.0.record()?;
        Some(Stored { position, size: line.len(), record })
    }
}

/// The loss that a record declares.
fn declared(line: &Envelope<'_>) -> Option<(Lane, LossReason, u64)> {
    // Few do: all others need not be understood.
    memchr::memmem::find(line.payload, b"\"event\":\"lost\"")?;
    match line.record()?.1.body {
        Body::Stream(StreamEvent::Lost { lane, reason, count, .. }) => Some((lane, reason, count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
