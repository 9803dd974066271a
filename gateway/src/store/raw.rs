//! What the bytes of a chain's files say by themselves, whatever sled makes of them.
//!
//! Terms: a commit is **finished** if the mark knows it, if a later one says that it came after it, or if all its lines
//! are there. Of others some lines may have reached the disk before the power went; they were never acknowledged and
//! count for nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rangemap::RangeInclusiveSet;

use super::{
    envelope::{Envelope, Kind, Scanned, scan},
    layout::{Entries, NextMeta, parse, word, word_of},
};
use crate::record::Lane;

/// What an unreadable part of the medium takes with it: one page.
const PAGE_SIZE: u64 = 4096;

/// A file on a medium that may be failing: what it does not give back reads as zeros, so that all else can be saved.
#[derive(Debug)]
pub(super) struct Patient {
    file: File,
    at: u64,
}

/// Whether there is no file of that name, rather than one that cannot be read.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl Patient {
    /// Opens a file; none if there is no file of that name.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(file.metadata()?.is_file().then_some(Self { file, at: 0 })),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Read for Patient {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = match self.file.read_at(into, self.at) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                // To the end of the page, and not beyond that of the file.
                let (page_end, file_end) = ((self.at / PAGE_SIZE + 1) * PAGE_SIZE, self.file.metadata()?.len());
                let len = usize::try_from(page_end.min(file_end).saturating_sub(self.at)).unwrap_or(0).min(into.len());
                let (page, _) = into.split_at_mut(len);
                match self.file.read_at(page, self.at) {
                    Ok(read) => read,
                    Err(_) => {
                        page.fill(0);
                        len
                    }
                }
            }
            read => read?,
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// The bytes of one generation.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    /// As they were before sled touched them.
    Memory(Vec<u8>),
    /// As they lie there.
    File(PathBuf),
}

impl Bytes {
    /// Takes a file into memory; none if there is no such file.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        let Some(mut file) = Patient::open(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(Self::Memory(bytes)))
    }

    /// Looks at every whole line.
    pub(super) fn scan(&self, mut take: impl FnMut(u64, Envelope<'_>)) -> io::Result<Scanned> {
        match self {
            Self::Memory(bytes) => scan(&**bytes, take),
            Self::File(path) => match Patient::open(path)? {
                Some(file) => scan(file, &mut take),
                None => Ok(Scanned::default()),
            },
        }
    }
}

/// The records in one generation.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) positions: RangeInclusiveSet<u64>,
    /// Their lines, in bytes.
    pub(super) bytes: u64,
}

/// What the bytes of a chain say.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Which commits left lines.
    pub(super) commits: Commits,
    /// The newest entry of every key, up to the last finished commit.
    pub(super) entries: Entries,
    /// The records up to that commit, by generation.
    pub(super) records: Vec<Records>,
    /// The version of a line that is not of ours, if there was one.
    pub(super) other_version: Option<u32>,
}

impl View {
    /// Looks at generations of a lane. Commits up to `known` are finished, and none after `limit` counts.
    pub(super) fn of(lane: Lane, generations: &[Bytes], known: u64, limit: u64) -> io::Result<Self> {
        let mut view = Self { commits: Commits::of(generations, known)?, ..Self::default() };
        view.commits.last = view.commits.last.min(limit);
        for bytes in generations {
            let Self { commits, entries, .. } = &mut view;
            let mut records = Records::default();
            let scanned = bytes.scan(|_, line| {
                if line.commit > commits.last || commits.void.contains(&line.commit) {
                    return;
                }
                if line.kind == Kind::Record {
                    if let Some(key) = line.record_key().filter(|key| key.lane == lane)
                        && !records.positions.contains(&key.position)
                    {
                        records.positions.insert(key.position..=key.position);
                        records.bytes += line.size() as u64;
                    }
                    return;
                }
                let newest = entries.entry((line.kind, line.key.to_owned())).or_default();
                if newest.0 <= line.commit {
                    *newest = (line.commit, line.payload.to_vec());
                }
            })?;
            view.records.push(records);
            view.other_version = view.other_version.or(scanned.other_version);
        }
        Ok(view)
    }

    /// One of the chain's own values.
    pub(super) fn word<T: serde::de::DeserializeOwned>(&self, key: &str) -> Option<T> {
        word_of(&self.entries, key)
    }

    /// Every value of a kind that is not gone, by key.
    pub(super) fn all<T: serde::de::DeserializeOwned>(&self, kind: Kind) -> impl Iterator<Item = (&str, T)> {
        let of_kind = self.entries.iter().filter(move |((of, _), _)| *of == kind);
        of_kind.filter_map(|((_, key), (_, payload))| Some((key.as_str(), parse(payload)?)))
    }
}

/// Commits looked at closely: every crash leaves at most one behind that is not finished, and the next start adds one.
const COMMITS_LOOKED_AT: usize = 8;

/// The commits that left lines.
#[derive(Debug, Default)]
pub(super) struct Commits {
    /// The last finished one; 0 if there is none.
    pub(super) last: u64,
    /// The last that is certain to have been on stable storage: another came after it, or the mark knows it.
    pub(super) proven: u64,
    /// The last of which there is any line.
    pub(super) newest: u64,
    /// Never finished, and known to be so.
    pub(super) void: RangeInclusiveSet<u64>,
}

/// The keys a commit left, and its end.
type Seen = (BTreeSet<(Kind, String)>, Option<NextMeta>);

impl Commits {
    fn of(generations: &[Bytes], known: u64) -> io::Result<Self> {
        let mut commits = Self::default();
        let mut latest: BTreeMap<u64, Seen> = BTreeMap::new();
        for bytes in generations {
            bytes.scan(|_, line| {
                if line.name() == (Kind::Word, word::VOID) {
                    let ranges: Vec<(u64, u64)> = parse(line.payload).unwrap_or_default();
                    let sound = ranges.into_iter().filter(|(first, last)| first <= last);
                    commits.void.extend(sound.map(|(first, last)| first..=last));
                }
                commits.newest = commits.newest.max(line.commit);
                let is_early = latest.keys().next().is_some_and(|earliest| line.commit < *earliest);
                if line.commit <= known || latest.len() == COMMITS_LOOKED_AT && is_early {
                    return;
                }
                let (keys, next) = latest.entry(line.commit).or_default();
                keys.insert((line.kind, line.key.to_owned()));
                if line.name() == (Kind::Word, word::NEXT) {
                    *next = parse(line.payload);
                }
                if latest.len() > COMMITS_LOOKED_AT {
                    latest.pop_first();
                }
            })?;
        }
        let after = latest.values().filter_map(|(_, next)| Some(next.as_ref()?.after));
        commits.proven = after.max().unwrap_or(0).max(known.min(commits.newest));
        let complete = latest.iter().rev().find(|(commit, (keys, next))| {
            let all_lines = next.as_ref().is_some_and(|next| next.lines == keys.len() as u64);
            all_lines && !commits.void.contains(commit)
        });
        commits.last = complete.map_or(0, |(commit, _)| *commit).max(commits.proven);
        Ok(commits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layout::{Put, json};

    fn commit(commit: u64, after: u64, keys: &[&str], lines: u64) -> Vec<u8> {
        let next = Put::word(word::NEXT, &NextMeta { next: 1, lines, after });
        let put = |key: &&str| Put { kind: Kind::Alarm, key: (*key).to_owned(), payload: json(&commit) };
        keys.iter().map(put).chain([next]).flat_map(|put| put.line(commit)).collect()
    }

    fn view(bytes: &[Vec<u8>], known: u64) -> (u64, u64, Vec<(String, u64)>) {
        let view = View::of(Lane::Alarm, &[Bytes::Memory(bytes.concat())], known, u64::MAX).expect("memory");
        let alarms = view.all(Kind::Alarm).map(|(key, commit)| (key.to_owned(), commit)).collect();
        (view.commits.last, view.commits.proven, alarms)
    }

    #[test]
    fn of_the_last_commit_all_lines_count_or_none() {
        let first = || commit(1, 0, &["a", "b"], 3);
        let of = |a, b| vec![("a".to_owned(), a), ("b".to_owned(), b)];
        assert_eq!(view(&[first(), commit(2, 1, &["a"], 2)], 0), (2, 1, of(2, 1)));
        assert_eq!(view(&[first(), commit(2, 1, &["a"], 3)], 0), (1, 1, of(1, 1)), "a line is missing");
        assert_eq!(view(&[first(), commit(2, 1, &["a"], 3)], 2), (2, 2, of(2, 1)), "the mark knows it");
        assert_eq!(view(&[first(), commit(2, 1, &["a"], 3), commit(3, 2, &["b"], 2)], 0), (3, 2, of(2, 3)), "followed");
        assert_eq!(view(&[commit(1, 0, &["a"], 9)], 0), (0, 0, vec![]));
        assert_eq!(view(&[], 7), (0, 0, vec![]));
    }

    #[test]
    fn commits_that_were_never_finished_do_not_count_when_others_follow() {
        let void = |of: u64, commit| Put::word(word::VOID, &[(of, of)]).line(commit);
        let of = |a| vec![("a".to_owned(), a)];
        let (first, second, third) = (commit(1, 0, &["a"], 2), commit(2, 1, &["a"], 3), commit(3, 1, &["a"], 4));
        let crashed = [first.clone(), second.clone()];
        assert_eq!(view(&crashed, 0), (1, 1, of(1)));
        let crashed_twice = [first.clone(), second.clone(), third, void(2, 3)];
        assert_eq!(view(&crashed_twice, 0), (1, 1, of(1)));
        let went_on = [first, second, commit(3, 1, &["b"], 3), void(2, 3), commit(4, 3, &[], 1)];
        let alarms = vec![("a".to_owned(), 1), ("b".to_owned(), 3)];
        assert_eq!(view(&went_on, 0), (4, 3, alarms));
    }

    #[test]
    fn the_order_in_the_file_does_not_matter() {
        let (first, second) = (commit(1, 0, &["a"], 2), commit(2, 1, &["a"], 2));
        assert_eq!(view(&[second.clone(), first.clone()], 0), view(&[first, second], 0));
    }

    #[test]
    fn what_is_not_a_file_is_none_at_all() {
        let dir = tempfile::tempdir().expect("folder");
        assert!(Bytes::take(&dir.path().join("absent")).expect("looks").is_none());
        assert!(Bytes::take(dir.path()).expect("looks").is_none());
    }
}
