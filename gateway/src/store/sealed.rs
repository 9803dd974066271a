//! A generation that is not written any more, read like a log: one look at all its bytes finds where every record lies,
//! and sled, which would write to it, is not asked.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use super::{
    envelope::{Envelope, Kind},
    raw::Bytes,
};
use crate::record::Lane;

/// Where the line of a position lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    position: u64,
    /// Of two lines of a position the later commit's holds: the other was never finished.
    commit: std::cmp::Reverse<u64>,
    offset: u64,
    len: u32,
}

/// An open sealed generation. Its index takes 32 bytes a record, about 1 MiB for 16 MiB of small records.
#[derive(Debug)]
pub(super) struct Sealed {
    file: File,
    index: Vec<Entry>,
}

impl Sealed {
    /// Finds every record of the lane; what cannot be read is not in it.
    pub(super) fn open(data: &Path, lane: Lane) -> io::Result<Self> {
        let mut index = Vec::new();
        Bytes::File(data.into()).scan(|offset, line| {
            if line.kind == Kind::Record
                && let Some(key) = line.record_key().filter(|key| key.lane == lane)
            {
                let len = u32::try_from(line.size()).expect("a line is short");
                index.push(Entry { position: key.position, commit: std::cmp::Reverse(line.commit), offset, len });
            }
        })?;
        index.sort_unstable();
        index.dedup_by_key(|entry| entry.position);
        index.shrink_to_fit();
        Ok(Self { file: File::open(data)?, index })
    }

    /// The positions in it, in order.
    pub(super) fn positions(&self) -> impl Iterator<Item = u64> {
        self.index.iter().map(|entry| entry.position)
    }

    /// The line of a position.
    pub(super) fn line(&self, position: u64) -> Option<Vec<u8>> {
        let at = self.index.binary_search_by_key(&position, |entry| entry.position).ok()?;
        let Entry { offset, len, .. } = self.index[at];
        let mut line = vec![0; len as usize];
        self.file.read_exact_at(&mut line, offset).ok()?;
        Envelope::read(&line).is_some().then_some(line)
    }
}
