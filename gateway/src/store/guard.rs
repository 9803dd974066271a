//! Finds out what a chain holds before it is used. Damage never prevents that, and what is whole is never given up.
//!
//! Before sled may touch the newest generation its bytes are read and looked at line by line; then sled opens it. If both
//! and the mark agree, all is well. If not, or if sled fails, the generation is sealed as it was, and what the lines of
//! all generations say goes into a new one: of every state the newest line, the records where they lie. What is known to
//! have been there and is not is lost, and is declared.

use std::{fs, io, ops::Bound};

use rangemap::RangeInclusiveSet;
use tracing::{error, warn};

use super::{
    OpenError,
    durable::{Database, Fault, SyncFile},
    envelope::{Envelope, Kind},
    layout::{Entries, EpochMeta, FORMAT, MadeMeta, NextMeta, SealedMeta, word, word_of},
    mark::{Mark, MarkFile, RESERVED_AT_ONCE},
    place::Place,
    raw::{Bytes, Records, View},
    settled::Settled,
};
use crate::{clock::BootId, metrics::Metrics, record::Lane};

/// A database of this size, in bytes, is worth opening anew when all of it was looked at: sled writes up to a segment of
/// zeros at an open.
const MUCH: u64 = 4 * 1024 * 1024;

/// What a chain holds.
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) mark: MarkFile,
    /// The generation to go on with; none if one is to be made.
    pub(super) open: Option<(u64, Database)>,
    /// The number the next generation gets.
    pub(super) next_generation: u64,
    /// The last commit, and the last that left any line.
    pub(super) commit: u64,
    pub(super) newest_commit: u64,
    /// States, and the chain's own values.
    pub(super) entries: Entries,
    pub(super) made: MadeMeta,
    pub(super) next_position: u64,
    pub(super) settled: Settled,
    /// By where they begin.
    pub(super) epochs: Vec<EpochMeta>,
    /// Generations with what is in them, by where they begin.
    pub(super) sealed: Vec<(u64, SealedMeta)>,
    /// Bytes of the records in the open generation.
    pub(super) open_bytes: u64,
    pub(super) damage: Option<Damage>,
}

/// That a chain was damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    /// What was noticed.
    pub(super) reason: String,
    /// Whether all numbers given are known nevertheless.
    pub(super) numbers_known: bool,
}

impl Found {
    /// The present epoch.
    pub(super) fn epoch(&self) -> Option<&EpochMeta> {
        self.epochs.last()
    }

    /// One of the chain's own values.
    pub(super) fn word<T: serde::de::DeserializeOwned>(&self, key: &str) -> Option<T> {
        word_of(&self.entries, key)
    }
}

/// Whom a chain is looked at for, and how.
#[derive(Clone, Copy)]
pub(super) struct Looker<'a> {
    pub(super) lane: Lane,
    pub(super) boot: &'a BootId,
    pub(super) sync_file: &'a SyncFile,
    pub(super) metrics: &'a Metrics,
}

impl Looker<'_> {
    /// Looks at a chain.
    pub(super) fn look(&self, place: &Place) -> Result<Found, OpenError> {
        self.try_look(place).map_err(|fault| match fault {
            Fault::Refused(error) => error,
            Fault::Machine(error) => refused(place, &error),
            Fault::Damaged(reason) => refused(place, &io::Error::other(reason)),
        })
    }

    fn try_look(&self, place: &Place) -> Result<Found, Fault> {
        let (mark_file, mark) = open_mark(place)?;
        let mut numbers = place.generations()?;
        let known = mark.as_ref().map_or(0, |mark| mark.commit);
        let mut reason = None;
        // The last boot's crash may have left a generation that was never used.
        while let Some(&newest) = numbers.last() {
            let bytes = Bytes::take(&place.data(newest))?.unwrap_or(Bytes::Memory(Vec::new()));
            let alone = std::slice::from_ref(&bytes);
            let view = View::of(self.lane, alone, known, u64::MAX)?;
            refuse_other_formats(place, newest, &view)?;
            let was_used = view.word::<MadeMeta>(word::MADE).is_some();
            if !was_used && view.records.iter().all(|records| records.positions.is_empty()) {
                if known == 0 || numbers.len() > 1 {
                    place.remove(newest)?;
                } else {
                    place.set_aside(newest)?;
                }
                numbers.pop();
                continue;
            }
            match self.open_newest(place, newest, alone, view, known, was_used) {
                Ok((database, known)) => return Ok(whole(place, mark_file, (newest, database), known, &numbers)),
                Err(Fault::Damaged(why)) => {
                    reason = Some(why);
                    restore(place, newest, &bytes)?;
                    break;
                }
                Err(fault) => return Err(fault),
            }
        }
        match (reason, mark) {
            (None, None) => Ok(nothing(place, mark_file)),
            (reason, mark) => {
                let reason = reason.unwrap_or_else(|| "no generation is left".to_owned());
                error!(chain = place.chain, "the store is damaged: {reason}; what is whole in it is kept");
                let numbers = place.generations()?;
                self.salvage(place, mark_file, mark.as_ref(), &numbers, reason).map_err(Fault::from)
            }
        }
    }

    /// Opens the newest generation with sled, if that knows all that the bytes and the mark know.
    fn open_newest(
        &self,
        place: &Place,
        number: u64,
        bytes: &[Bytes],
        view: View,
        known: u64,
        was_used: bool,
    ) -> Result<(Database, Known), Fault> {
        let damaged = |what: &str| Err(Fault::Damaged(what.to_owned()));
        if !was_used {
            return damaged("the beginning of the newest generation is missing");
        }
        if view.commits.newest < known {
            return damaged("the newest generation lacks what the mark says was written");
        }
        place.remove_half_written_snapshots(number)?;
        let open = || Database::open(place.chain, &place.folder(number), self.sync_file, self.metrics);
        let database = open()?;
        let contents = database.try_with(Contents::of)?;
        if contents.commit < view.commits.proven {
            return damaged("the end of the newest generation is missing");
        }
        let seen = match contents.commit {
            last if last == view.commits.last => view,
            earlier => View::of(self.lane, bytes, known, earlier)?,
        };
        let Some(known) = Known::of(seen) else { return damaged("the chain's own values cannot be understood") };
        let Known { view: seen, made, next, .. } = &known;
        let mut expected = RangeInclusiveSet::new();
        if made.first < *next {
            expected.insert(made.first..=next - 1);
        }
        if contents.entries != seen.entries || seen.records.iter().any(|r| r.positions != contents.positions) {
            return damaged("the newest generation does not hold what was written to it");
        }
        if contents.positions != expected {
            return damaged("records of the newest generation are missing");
        }
        if database.size() < MUCH {
            return Ok((database, known));
        }
        // All of it was looked at and would stay in memory. sled lets nobody else in before it is gone.
        drop(database);
        Ok((open()?, known))
    }

    /// What the lines of all generations say.
    fn salvage(
        &self,
        place: &Place,
        mark_file: MarkFile,
        mark: Option<&Mark>,
        numbers: &[u64],
        reason: String,
    ) -> io::Result<Found> {
        let generations: Vec<Bytes> = numbers.iter().map(|number| Bytes::File(place.data(*number))).collect();
        let known = mark.map_or(0, |mark| mark.commit);
        let view = View::of(self.lane, &generations, known, u64::MAX)?;
        let found_end = view.records.iter().filter_map(|r| Some(*r.positions.iter().next_back()?.end() + 1)).max();
        let said = view.word::<NextMeta>(word::NEXT).map_or(1, |next| next.next);
        let next = [found_end.unwrap_or(1), said, mark.map_or(1, |mark| mark.next)].into_iter().max();
        let next = next.unwrap_or(1);
        // Without a mark nobody knows how much more there was.
        let end = mark.map_or(next + RESERVED_AT_ONCE, |mark| mark.end(self.boot).max(next));
        let mut settled = view.word::<Vec<(u64, u64)>>(word::SETTLED).and_then(|ranges| Settled::load(&ranges, end));
        let settled = settled.get_or_insert_with(Settled::new);
        if let Some(mark) = mark {
            mark.settled.iter().for_each(|(first, last)| settled.insert_all(*first, *last));
        }
        let mut epochs = epochs(&view);
        if let Some(Mark { epoch, base, .. }) = mark
            && epochs.last().is_none_or(|last| last.base < *base)
        {
            let replaced = epochs.last().map(|last| last.epoch.clone());
            let (epoch, base) = (epoch.clone(), *base);
            epochs.push(EpochMeta { epoch, base, replaced, started: None, uncertain_from: None });
        }
        if end > next
            && let Some(last) = epochs.last_mut()
        {
            last.uncertain_from.get_or_insert(next);
        }
        let sealed = survey(numbers, &view.records, settled);
        let numbers_known = end == next && view.commits.newest >= known && mark.is_some();
        let next_generation = numbers.last().map_or(1, |last| last + 1);
        Ok(Found {
            place: place.clone(),
            mark: mark_file,
            open: None,
            next_generation,
            commit: view.commits.newest.max(known),
            newest_commit: view.commits.newest.max(known),
            made: MadeMeta { size: 0, first: end },
            next_position: end,
            settled: settled.clone(),
            epochs,
            sealed,
            open_bytes: 0,
            damage: Some(Damage { reason, numbers_known }),
            entries: view.entries,
        })
    }
}

/// What the newest generation says of its chain.
struct Known {
    view: View,
    made: MadeMeta,
    next: u64,
    settled: Settled,
}

impl Known {
    fn of(view: View) -> Option<Self> {
        let (made, NextMeta { next, .. }) = (view.word(word::MADE)?, view.word(word::NEXT)?);
        let ranges: Vec<(u64, u64)> = view.word(word::SETTLED)?;
        let settled = Settled::load(&ranges, next)?;
        Some(Self { view, made, next, settled })
    }
}

/// What sled gives back.
struct Contents {
    /// The last commit.
    commit: u64,
    entries: Entries,
    positions: RangeInclusiveSet<u64>,
}

impl Contents {
    /// Looks at all of it.
    fn of(database: &Database) -> Result<Self, Fault> {
        let mut contents = Self { commit: 0, entries: Entries::new(), positions: RangeInclusiveSet::new() };
        let mut after = Bound::Unbounded;
        while let Some((key, value)) = database.after(after.as_ref().map(|key: &sled::IVec| &**key))? {
            let mut size = 0;
            for line in Envelope::lines(&value) {
                size += line.size();
                contents.commit = contents.commit.max(line.commit);
                match line.record_key() {
                    Some(key) => contents.positions.insert(key.position..=key.position),
                    None => {
                        let name = (line.kind, line.key.to_owned());
                        contents.entries.insert(name, (line.commit, line.payload.to_vec()));
                    }
                }
            }
            if size != value.len() || size == 0 {
                return Err(Fault::Damaged(format!("{} is garbled", String::from_utf8_lossy(&key))));
            }
            after = Bound::Excluded(key);
        }
        Ok(contents)
    }
}

fn open_mark(place: &Place) -> Result<(MarkFile, Option<Mark>), Fault> {
    let path = place.mark();
    if path.is_dir() {
        warn!(path = %path.display(), "a folder lies where the mark should be and is removed");
        fs::remove_dir_all(&path)?;
    }
    // Whatever is wrong with it, another one can be written.
    Ok(MarkFile::open(&path)?)
}

/// A store of another version must not be touched.
fn refuse_other_formats(place: &Place, number: u64, view: &View) -> Result<(), Fault> {
    let other = view.word::<u32>(word::FORMAT).filter(|format| *format != FORMAT);
    let other = other.or(view.other_version.filter(|_| view.entries.is_empty()));
    match other {
        Some(found) => Err(Fault::Refused(OpenError::Format { path: place.folder(number), found })),
        None => Ok(()),
    }
}

fn whole(place: &Place, mark: MarkFile, open: (u64, Database), known: Known, numbers: &[u64]) -> Found {
    let Known { view, made, next, settled } = known;
    let mut sealed: Vec<(u64, SealedMeta)> =
        view.all(Kind::Generation).filter_map(|(number, meta)| Some((number.parse().ok()?, meta))).collect();
    sealed.sort_by_key(|(_, meta)| meta.first);
    let (number, _) = open;
    for leftover in numbers.iter().filter(|n| **n != number && !sealed.iter().any(|(known, _)| known == *n)) {
        // Drained; the power went while its files were removed.
        if let Err(error) = place.remove(*leftover) {
            warn!(chain = place.chain, leftover, "a drained generation cannot be removed: {error}");
        }
    }
    Found {
        place: place.clone(),
        mark,
        next_generation: number + 1,
        open: Some(open),
        commit: view.commits.last,
        newest_commit: view.commits.newest,
        made,
        next_position: next,
        settled,
        epochs: epochs(&view),
        sealed,
        open_bytes: view.records.iter().map(|records| records.bytes).sum(),
        damage: None,
        entries: view.entries,
    }
}

fn nothing(place: &Place, mark: MarkFile) -> Found {
    Found {
        place: place.clone(),
        mark,
        open: None,
        next_generation: 1,
        commit: 0,
        newest_commit: 0,
        entries: Entries::new(),
        made: MadeMeta { size: 0, first: 1 },
        next_position: 1,
        settled: Settled::new(),
        epochs: Vec::new(),
        sealed: Vec::new(),
        open_bytes: 0,
        damage: None,
    }
}

fn epochs(view: &View) -> Vec<EpochMeta> {
    let mut epochs: Vec<EpochMeta> = view.all(Kind::Epoch).map(|(_, meta)| meta).collect();
    epochs.sort_by_key(|epoch| epoch.base);
    epochs
}

fn refused(place: &Place, error: &io::Error) -> OpenError {
    let path = place.root.clone();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OpenError::Full { path },
        _ => OpenError::Io { path, reason: error.to_string().into() },
    }
}

/// Puts the bytes back that sled was given; what it made of them is set aside.
fn restore(place: &Place, number: u64, bytes: &Bytes) -> io::Result<()> {
    let Bytes::Memory(bytes) = bytes else { return Ok(()) };
    let untouched =
        Bytes::take(&place.data(number))?.is_some_and(|now| matches!(&now, Bytes::Memory(now) if now == bytes));
    if untouched {
        return Ok(());
    }
    place.set_aside(number)?;
    place.replace(number, |file| file.write_all(bytes))
}

/// Which generation holds which of the positions that wait. Where two hold the same, the newer one does.
pub(super) fn survey(numbers: &[u64], records: &[Records], settled: &Settled) -> Vec<(u64, SealedMeta)> {
    let mut found: Vec<(u64, SealedMeta)> = Vec::new();
    for (number, Records { positions, bytes }) in numbers.iter().zip(records) {
        let waiting = positions.iter().flat_map(|run| settled.gaps(*run.start(), *run.end())).collect::<Vec<_>>();
        if let (Some((first, _)), Some((_, last))) = (waiting.first(), waiting.last()) {
            found.push((*number, SealedMeta { first: *first, end: last + 1, bytes: *bytes, has_holes: true }));
        }
    }
    found.sort_by_key(|(number, meta)| (meta.first, *number));
    for i in 1..found.len() {
        let next_first = found[i].1.first;
        let before = &mut found[i - 1].1;
        before.end = before.end.min(next_first);
    }
    found.retain(|(_, meta)| meta.first < meta.end);
    found
}
