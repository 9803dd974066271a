//! The high-water mark: a small file outside the database that says how far a chain had come.
//!
//! sled ends its log silently at the first damage. The mark tells that something is missing there, so that the loss can be
//! declared and no number is given twice. Two slots of [`SLOT_SIZE`] bytes are written in turn, each one line:
//!
//! ```text
//! gardu2 mark 9ae0daaf {"commit":4339,"epoch":"0123456789abcdef","base":4,"next":4215,…}\n
//!             CRC-32 (IEEE) of the JSON
//! ```
//!
//! After each commit it is written but not synced: exact after `kill -9`, up to half a minute old after a power cut. What
//! is synced is `reserved`: no position from there on is used before a higher one is. So a mark of another boot that was
//! not closed bounds what can be missing, by [`RESERVED_AT_ONCE`] positions.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::layout::{json, parse};
use crate::{clock::BootId, record::Epoch};

/// One sector: written whole or not at all.
const SLOT_SIZE: usize = 512;
const PREFIX: &str = "gardu2 mark ";
/// Fewer would sync the mark more often than once in a dozen large commits; more would bound a loss less closely.
pub(super) const RESERVED_AT_ONCE: u64 = 4096;

/// Runs of settled positions in a mark at most: more would not fit, with numbers of ten digits.
pub(super) const SETTLED_RUNS_MAX: usize = 12;

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The last commit on stable storage.
    pub(super) commit: u64,
    /// The present epoch.
    pub(super) epoch: Epoch,
    /// The last position before it.
    pub(super) base: u64,
    /// The position the next record gets.
    pub(super) next: u64,
    /// Runs of settled positions, the lowest; as many as fit.
    pub(super) settled: Vec<(u64, u64)>,
    /// Positions below may be in use without a newer mark.
    pub(super) reserved: u64,
    /// In which boot it was written.
    pub(super) boot: BootId,
    /// Whether nothing followed: the store was closed.
    pub(super) closed: bool,
}

impl Mark {
    /// Whether it is exact in `boot`: nothing can have been written after it that it does not know.
    pub(super) fn is_exact(&self, boot: &BootId) -> bool {
        self.closed || self.boot == *boot
    }

    /// Above all positions that were ever used.
    pub(super) fn end(&self, boot: &BootId) -> u64 {
        if self.is_exact(boot) { self.next } else { self.reserved.max(self.next) }
    }

    fn slot(&self) -> [u8; SLOT_SIZE] {
        let mut mark = self.clone();
        let line = loop {
            let json = json(&mark);
            let line = [format!("{PREFIX}{:08x} ", crc32fast::hash(&json)).as_bytes(), &json, b"\n"].concat();
            if line.len() <= SLOT_SIZE || mark.settled.pop().is_none() {
                break line;
            }
        };
        let mut slot = [b' '; SLOT_SIZE];
        slot[..line.len()].copy_from_slice(&line);
        slot
    }

    fn of_slot(slot: &[u8]) -> Option<Self> {
        let line = slot.split(|byte| *byte == b'\n').next()?.strip_prefix(PREFIX.as_bytes())?;
        let (crc, json) = line.split_at_checked(9)?;
        let intact = crc == format!("{:08x} ", crc32fast::hash(json)).as_bytes();
        intact.then(|| parse(json)).flatten()
    }

    /// The newer of the two slots; `None` if neither is whole.
    pub(super) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.chunks(SLOT_SIZE).filter_map(Self::of_slot).max_by_key(|mark| (mark.commit, mark.reserved, mark.closed))
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    slot: u64,
    /// What a power cut leaves at least.
    synced_reserved: u64,
}

impl MarkFile {
    /// Opens or makes it; with what it says.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Mark>)> {
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = [0; 2 * SLOT_SIZE];
        let mut len = 0;
        while len < bytes.len() {
            match file.read_at(&mut bytes[len..], len as u64)? {
                0 => break,
                read => len += read,
            }
        }
        let mark = Mark::of_bytes(&bytes[..len]);
        let synced_reserved = mark.as_ref().map_or(0, |mark| mark.reserved);
        // The slot that does not hold it is written next.
        let slot = u64::from(mark.is_some() && Mark::of_slot(&bytes[..SLOT_SIZE]) == mark);
        Ok((Self { file, slot, synced_reserved }, mark))
    }

    /// Whether positions below `end` may be used.
    pub(super) const fn covers(&self, end: u64) -> bool {
        end <= self.synced_reserved
    }

    /// No position from here on is used before that is on stable storage.
    pub(super) const fn reserved(&self) -> u64 {
        self.synced_reserved
    }

    /// Notes how far the chain has come.
    pub(super) fn note(&mut self, mark: &Mark) -> io::Result<()> {
        self.file.write_all_at(&mark.slot(), self.slot * SLOT_SIZE as u64)?;
        self.slot = 1 - self.slot;
        Ok(())
    }

    /// Notes it so that it survives a power cut.
    pub(super) fn sync(&mut self, mark: &Mark) -> io::Result<()> {
        self.note(mark)?;
        self.file.sync_data()?;
        self.synced_reserved = mark.reserved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::epoch;

    fn mark(commit: u64) -> Mark {
        let boot = BootId::new("0f0e0d0c-0b0a-0908-0706-050403020100");
        let (base, next, settled, reserved) = (u64::MAX, u64::MAX, vec![(0, u64::MAX)], u64::MAX);
        Mark { commit, epoch: epoch('z'), base, next, settled, reserved, boot, closed: false }
    }

    #[test]
    fn the_largest_mark_fits_its_slot_and_any_damage_is_seen() {
        let slot = mark(u64::MAX).slot();
        assert_eq!(Mark::of_slot(&slot), Some(mark(u64::MAX)));
        let line_len = slot.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        for at in 0..line_len {
            let mut damaged = slot;
            damaged[at] ^= 1;
            assert_eq!(Mark::of_slot(&damaged), None, "{at}");
        }
    }

    #[test]
    fn runs_that_do_not_fit_are_left_out_from_above() {
        let runs: Vec<(u64, u64)> = (0..20).map(|n| (u64::MAX - 100 + 2 * n, u64::MAX - 100 + 2 * n)).collect();
        let found = Mark::of_slot(&Mark { settled: runs.clone(), ..mark(1) }.slot()).expect("whole");
        assert!(!found.settled.is_empty() && runs.starts_with(&found.settled), "{found:?}");
        let usual = Mark {
            settled: runs[..SETTLED_RUNS_MAX].iter().map(|_| (1_000_000_000, 1_000_000_009)).collect(),
            ..mark(1)
        };
        let usual = Mark { base: 1_000_000_000, next: 1_000_000_000, reserved: 1_000_000_000, ..usual };
        assert_eq!(Mark::of_slot(&usual.slot()), Some(usual));
    }

    #[test]
    fn the_newest_whole_slot_holds_and_a_torn_one_does_not_matter() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("mark");
        let (mut file, found) = MarkFile::open(&path).expect("opens");
        assert_eq!(found, None);
        for commit in 1..=5 {
            file.note(&mark(commit)).expect("writes");
            let (reopened, found) = MarkFile::open(&path).expect("opens");
            assert_eq!(found, Some(mark(commit)));
            assert_eq!(reopened.slot, file.slot);
        }
        let mut bytes = std::fs::read(&path).expect("reads");
        let torn = usize::try_from(1 - file.slot).expect("0 or 1") * SLOT_SIZE;
        bytes[torn + 40] ^= 1;
        assert_eq!(Mark::of_bytes(&bytes), Some(mark(4)));
        assert_eq!(Mark::of_bytes(&bytes[..100]), None);
    }

    #[test]
    fn what_may_be_missing_is_exact_unless_the_power_went() {
        let open = Mark { next: 10, reserved: 50, ..mark(1) };
        assert_eq!((open.end(&open.boot), open.end(&BootId::new("other"))), (10, 50));
        assert_eq!(Mark { closed: true, ..open }.end(&BootId::new("other")), 10);
    }
}
