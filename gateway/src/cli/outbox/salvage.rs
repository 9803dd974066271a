//! Finds everything of a store that is still whole in any bytes: a folder set aside, the image of a dead card.
//!
//! Memory is bounded whatever there is to read: only where the lines lie is kept, at most [`HELD_MAX`] of them, and what
//! has no room waits for another pass. So lines come out in order, each key once, from the newest commit that wrote it.
//! The store's own bookkeeping (words, epochs, generations) is of no use without it and left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use crate::{
    record::{Epoch, Lane, RECORD_SIZE_MAX},
    store::envelope::{Envelope, Kind, scan},
};

/// Lines whose places are kept in one pass: about 25 MiB, on a board with 512. A full outbox of the usual size takes three
/// passes.
pub(super) const HELD_MAX: usize = 250_000;
/// What is given up around a place that cannot be read, in bytes: a block of the card, as far as anybody tells.
const BLOCK_SIZE: u64 = 4096;

/// Files, images or devices, by number from 0.
pub(super) trait Media {
    /// How many there are.
    fn count(&self) -> usize;

    /// The size of one, in bytes.
    fn len(&mut self, number: usize) -> u64;

    /// Reads from a place; 0 only at the end.
    fn read_at(&mut self, number: usize, at: u64, into: &mut [u8]) -> io::Result<usize>;
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Bytes there were.
    pub(super) bytes: u64,
    /// Bytes the medium did not give back.
    pub(super) skipped_bytes: u64,
    /// Records found.
    pub(super) records: u64,
    /// Other entries found.
    pub(super) states: u64,
    /// Beginnings of lines without the rest.
    pub(super) broken: u64,
    /// The version of a line this program does not know, if there was one.
    pub(super) other_version: Option<u32>,
}

/// One line and where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) envelope: Envelope<'a>,
    /// Number of the medium.
    pub(super) medium: usize,
    pub(super) offset: u64,
}

/// Finds everything, in order: states by kind and name, then records by lane and place. `progress` hears how much of all
/// bytes was read in this pass; an error of `found` ends it.
pub(super) fn salvage<M: Media, E>(
    media: &mut M,
    held_max: usize,
    mut progress: impl FnMut(u64, u64),
    mut found: impl FnMut(Found<'_>) -> Result<(), E>,
) -> Result<Summary, E> {
    let bytes = (0..media.count()).map(|number| media.len(number)).sum();
    let mut summary = Summary { bytes, ..Summary::default() };
    let mut after = None;
    loop {
        let pass = Pass::over(media, after.as_ref(), held_max, &mut progress);
        if after.is_none() {
            summary = Summary { skipped_bytes: pass.skipped_bytes, broken: pass.broken, ..summary };
            summary.other_version = pass.other_version;
        }
        for (name, place) in &pass.held {
            let line = line_at(media, place);
            // A medium that gave it once and now gives something else is dying: what it says no more is not found.
            let Some((envelope, _)) = Envelope::read(&line).filter(|(of, _)| of.commit == place.commit) else {
                summary.broken += 1;
                continue;
            };
            if envelope.payload.is_empty() {
                continue; // forgotten, not lost
            }
            match name {
                Name::Record { .. } => summary.records += 1,
                Name::State(..) => summary.states += 1,
            }
            found(Found { envelope, medium: place.medium, offset: place.offset })?;
        }
        if !pass.more {
            return Ok(summary);
        }
        after = pass.held.into_keys().next_back();
    }
}

/// What a line is about, in the order of the output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    State(Kind, Box<str>),
    Record { lane: Lane, position: u64, sequence: u64, epoch: Epoch },
}

#[derive(Debug, Clone, Copy)]
struct Place {
    commit: u64,
    medium: usize,
    offset: u64,
}

/// One look at everything.
#[derive(Debug, Default)]
struct Pass {
    held: BTreeMap<Name, Place>,
    /// Whether some had no room.
    more: bool,
    /// Each epoch once, so that a name costs no allocation of its own.
    epochs: BTreeSet<Epoch>,
    skipped_bytes: u64,
    broken: u64,
    other_version: Option<u32>,
}

impl Pass {
    fn over<M: Media>(
        media: &mut M,
        after: Option<&Name>,
        held_max: usize,
        progress: &mut impl FnMut(u64, u64),
    ) -> Self {
        let mut pass = Self::default();
        let lens: Vec<u64> = (0..media.count()).map(|number| media.len(number)).collect();
        let (total, mut before) = (lens.iter().sum(), 0);
        for (medium, len) in lens.into_iter().enumerate() {
            let mut skipped_bytes = 0;
            let told = |at| progress(before + at, total);
            let bytes = Around { media, medium, at: 0, len, careful_until: 0, skipped_bytes: &mut skipped_bytes, told };
            let scanned = scan(bytes, |offset, envelope| {
                if let Some(name) = pass.name(&envelope).filter(|name| after.is_none_or(|after| name > after)) {
                    pass.hold(name, Place { commit: envelope.commit, medium, offset }, held_max);
                }
            });
            let scanned = scanned.expect("what cannot be read reads as zeros");
            pass.skipped_bytes += skipped_bytes;
            pass.broken += scanned.broken;
            pass.other_version = pass.other_version.or(scanned.other_version);
            before += len;
        }
        pass
    }

    fn name(&mut self, envelope: &Envelope<'_>) -> Option<Name> {
        match envelope.kind {
            Kind::Record => {
                let key = envelope.record_key()?;
                let epoch = self.epochs.get(&key.epoch).cloned().unwrap_or_else(|| {
                    self.epochs.insert(key.epoch.clone());
                    key.epoch
                });
                Some(Name::Record { lane: key.lane, position: key.position, sequence: key.sequence, epoch })
            }
            Kind::Alarm | Kind::Answer | Kind::Boot | Kind::Count => {
                Some(Name::State(envelope.kind, envelope.key.into()))
            }
            Kind::Epoch | Kind::Fence | Kind::Generation | Kind::Word => None,
        }
    }

    /// Keeps the first names in order: what is dropped comes after all that is kept, and the next pass finds it.
    fn hold(&mut self, name: Name, place: Place, held_max: usize) {
        let held = self.held.entry(name).or_insert(place);
        if place.commit > held.commit {
            *held = place;
        }
        if self.held.len() > held_max {
            self.held.pop_last();
            self.more = true;
        }
    }
}

/// One medium as a stream; what cannot be read is zeros.
struct Around<'a, M, F> {
    media: &'a mut M,
    medium: usize,
    at: u64,
    len: u64,
    /// Up to here it is read by the block: a read that fails takes a dying card seconds.
    careful_until: u64,
    skipped_bytes: &'a mut u64,
    told: F,
}

impl<M: Media, F: FnMut(u64)> Read for Around<'_, M, F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (self.told)(self.at);
        let left = usize::try_from(self.len - self.at).unwrap_or(usize::MAX).min(into.len());
        let block = left.min(block_rest(self.at));
        let careful = self.at < self.careful_until;
        let mut want = if careful { block } else { left };
        let mut read = self.media.read_at(self.medium, self.at, &mut into[..want]);
        if read.is_err() && !careful {
            self.careful_until = self.at + left as u64;
            want = block;
            read = self.media.read_at(self.medium, self.at, &mut into[..want]);
        }
        let read = read.unwrap_or_else(|_| {
            into[..want].fill(0);
            *self.skipped_bytes += want as u64;
            want
        });
        self.at += read as u64;
        Ok(read)
    }
}

/// How far it is to the end of the block.
fn block_rest(at: u64) -> usize {
    usize::try_from(BLOCK_SIZE - at % BLOCK_SIZE).expect("at most a block")
}

/// Reads what lies at a place, as far as a line can be long and the medium gives it.
fn line_at(media: &mut impl Media, place: &Place) -> Vec<u8> {
    let mut line = vec![0; RECORD_SIZE_MAX];
    let mut filled = 0;
    while filled < line.len() {
        let at = place.offset + filled as u64;
        let end = line.len().min(filled + block_rest(at));
        match media.read_at(place.medium, at, &mut line[filled..end]) {
            Ok(read) if read > 0 => filled += read,
            _ => break, // the end, or a bad block: the line may end before it
        }
    }
    line.truncate(filled);
    line
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;
    use crate::store::envelope::RecordKey;

    /// Memory with blocks that cannot be read.
    #[derive(Debug, Default, Clone)]
    struct Card {
        bytes: Vec<Vec<u8>>,
        bad: BTreeSet<(usize, u64)>,
    }

    impl Media for Card {
        fn count(&self) -> usize {
            self.bytes.len()
        }

        fn len(&mut self, number: usize) -> u64 {
            self.bytes[number].len() as u64
        }

        fn read_at(&mut self, number: usize, at: u64, into: &mut [u8]) -> io::Result<usize> {
            let rest = &self.bytes[number][usize::try_from(at).expect("small")..];
            let len = rest.len().min(into.len());
            let end = at + (len as u64).max(1);
            if (at / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE)).any(|block| self.bad.contains(&(number, block))) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            into[..len].copy_from_slice(&rest[..len]);
            Ok(len)
        }
    }

    type Lines = Vec<(Kind, String, u64, Vec<u8>)>;

    fn found(card: &mut Card, held_max: usize) -> (Summary, Lines) {
        let mut lines = Vec::new();
        let summary = salvage(
            card,
            held_max,
            |_, _| {},
            |found| {
                let Envelope { kind, commit, key, payload } = found.envelope;
                lines.push((kind, key.to_owned(), commit, payload.to_vec()));
                Ok::<_, ()>(())
            },
        );
        (summary.expect("nothing refuses"), lines)
    }

    fn line(kind: Kind, key: &str, commit: u64, payload: &str) -> Vec<u8> {
        Envelope { kind, commit, key, payload: payload.as_bytes() }.to_bytes()
    }

    fn record(position: u64, commit: u64) -> Vec<u8> {
        let epoch = Epoch::parse("0123456789abcdef").expect("epoch");
        let key = RecordKey { lane: Lane::Alarm, epoch, sequence: position, position }.to_string();
        line(Kind::Record, &key, commit, &format!("{{\"n\":{position}}}"))
    }

    #[test]
    fn the_newest_commit_of_a_state_wins_and_what_was_forgotten_stays_forgotten() {
        let state = |name, commit, payload| line(Kind::Alarm, name, commit, payload);
        let one = [state("panel/door/open", 9, "9"), state("panel/door/open", 3, "3"), state("pump/x/y", 4, "4")];
        let two =
            [record(2, 5), state("panel/door/open", 7, "7"), state("pump/x/y", 6, ""), record(1, 5), record(2, 8)];
        let bookkeeping = line(Kind::Word, "next", 9, "{}");
        let mut card = Card { bytes: vec![one.concat(), two.concat(), bookkeeping], ..Card::default() };
        let (summary, lines) = found(&mut card, HELD_MAX);
        let keys: Vec<_> = lines.iter().map(|(_, key, commit, _)| (key.as_str(), *commit)).collect();
        let want = [("panel/door/open", 9), ("a-0123456789abcdef-1-1", 5), ("a-0123456789abcdef-2-2", 8)];
        assert_eq!(keys, want);
        assert_eq!((summary.records, summary.states, summary.broken), (2, 1, 0));
    }

    #[test]
    fn a_block_that_cannot_be_read_takes_only_its_own_lines() {
        let block = usize::try_from(BLOCK_SIZE).expect("small");
        let padded = |position| {
            let mut bytes = record(position, 1);
            bytes.resize(block, 0);
            bytes
        };
        let mut card = Card { bytes: vec![(1..=100).flat_map(padded).collect()], ..Card::default() };
        card.bad.extend([(0, 3), (0, 70), (0, 99)]);
        let (summary, lines) = found(&mut card, HELD_MAX);
        assert_eq!((summary.records, summary.skipped_bytes), (97, 3 * BLOCK_SIZE));
        assert!(!lines.iter().any(|(_, key, ..)| ["-4", "-71", "-100"].iter().any(|lost| key.ends_with(lost))));
    }

    #[test]
    fn lines_of_a_version_to_come_are_named() {
        let mut card = Card { bytes: vec![b"gardu3 r 0".to_vec()], ..Card::default() };
        assert_eq!(found(&mut card, HELD_MAX).0.other_version, Some(3));
    }

    /// What lies between whole lines: noise, and pieces of lines.
    fn junk() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            (1_u64..40, any::<prop::sample::Index>(), 1_u8..).prop_map(|(position, at, flip)| {
                let mut bytes = record(position, 1);
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                bytes
            }),
            (1_u64..40, any::<prop::sample::Index>()).prop_map(|(position, at)| {
                let mut bytes = record(position, 1);
                bytes.truncate(at.index(bytes.len()));
                bytes
            }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_lies_between_no_whole_line_is_lost_and_none_invented(
            parts in prop::collection::vec((junk(), 1_u64..40, 1_u64..9), 0..60),
            split in any::<prop::sample::Index>(),
            held_max in 1_usize..50,
        ) {
            let mut model = BTreeMap::new();
            let mut media = [Vec::new(), Vec::new()];
            let middle = split.index(parts.len() + 1);
            for (i, (junk, position, commit)) in parts.iter().enumerate() {
                let medium = &mut media[usize::from(i >= middle)];
                medium.extend_from_slice(junk);
                medium.extend_from_slice(&record(*position, *commit));
                let newest = model.entry(*position).or_insert(*commit);
                *newest = (*newest).max(*commit);
            }
            let mut card = Card { bytes: media.to_vec(), ..Card::default() };
            let (summary, lines) = found(&mut card, held_max);
            let want: Lines = model
                .iter()
                .map(|(position, commit)| {
                    let bytes = record(*position, *commit);
                    let (of, _) = Envelope::read(&bytes).expect("whole");
                    (of.kind, of.key.to_owned(), of.commit, of.payload.to_vec())
                })
                .collect();
            prop_assert_eq!(&lines, &want);
            prop_assert_eq!(summary.records, want.len() as u64);
            prop_assert_eq!(found(&mut card, HELD_MAX).1, want);
        }
    }
}
