//! The form in which everything lies on the disk: one line that says what it is and proves that it is whole. Pure.
//!
//! ```text
//! gardu2 r 00000000000010f3 028 0412 9ae0daaf a-0123456789abcdef-4211-4215 {"boot":…,"recorded":…,"body":…}\n
//! ┬───── ┬ ┬─────────────── ┬── ┬─── ┬─────── ┬─────────────────────────── ┬
//! │      │ │                │   │    │        key                          payload: JSON, then a line feed
//! │      │ │                │   │    CRC-32 (IEEE) of all before it, of the key, a space and the payload
//! │      │ │                │   bytes of the payload
//! │      │ │                bytes of the key
//! │      │ commit: counts the commits of the chain; of two lines with one key the one of the later commit holds
//! │      kind, see [`Kind`]
//! form, version 2
//! ```
//!
//! The header is ASCII of fixed width, so that a person with a hex editor reads it, and a scan of the bytes finds every
//! line by `gardu2 ` whatever became of the database around it: sled stores values uncompressed and in one piece.

use std::{
    fmt,
    io::{self, Read},
};

use memchr::memmem;
use serde::{Deserialize, Serialize};

use crate::{
    clock::{BootId, Now},
    record::{Body, Epoch, Lane, RECORD_SIZE_MAX, Record},
};

/// How every line of this version begins.
pub const MAGIC: &str = "gardu2 ";
/// What the lines of all versions have in common; a digit and a space follow.
const FAMILY: &[u8] = b"gardu";
/// Magic, kind, commit, the two lengths and the checksum, each with the space behind it.
const HEADER_LEN: usize = 44;
/// The part of it that the checksum covers, in bytes.
const CHECKED_LEN: usize = 35;
/// Longest key, in bytes: what three digits say.
const KEY_LEN_MAX: usize = 999;
/// Longest key of a record, in bytes.
const RECORD_KEY_LEN_MAX: usize = 1 + 1 + Epoch::LEN + 1 + 20 + 1 + 20;
/// Read at once while scanning, in bytes: several of the longest lines.
const SCAN_SIZE: usize = 256 * 1024;

/// What a line is about: the first letter of its key in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The state of an alarm.
    Alarm,
    /// The answer to a command.
    Answer,
    /// A boot and where its clock stood.
    Boot,
    /// The last value of an event point.
    Count,
    /// An epoch and the position before its first record.
    Epoch,
    /// Nothing: keeps records apart from all else, see `layout`.
    Fence,
    /// A sealed generation and the positions in it.
    Generation,
    /// A record: what is delivered.
    Record,
    /// One of the chain's own values.
    Word,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Alarm,
        Self::Answer,
        Self::Boot,
        Self::Count,
        Self::Epoch,
        Self::Fence,
        Self::Generation,
        Self::Record,
        Self::Word,
    ];

    /// Its letter.
    #[must_use]
    pub const fn letter(self) -> u8 {
        match self {
            Self::Alarm => b'a',
            Self::Answer => b'c',
            Self::Boot => b'b',
            Self::Count => b'p',
            Self::Epoch => b'e',
            Self::Fence => b'q',
            Self::Generation => b'g',
            Self::Record => b'r',
            Self::Word => b'm',
        }
    }

    /// The kind with this letter.
    #[must_use]
    pub fn of(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.letter() == letter)
    }
}

/// One whole line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// What it is about.
    pub kind: Kind,
    /// The commit that wrote it.
    pub commit: u64,
    /// Which one of its kind.
    pub key: &'a str,
    /// JSON; nothing where the thing is gone.
    pub payload: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// The line.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(HEADER_LEN + self.key.len() + self.payload.len() + 2);
        self.header(&mut line);
        line.extend_from_slice(self.key.as_bytes());
        line.push(b' ');
        line.extend_from_slice(self.payload);
        line.push(b'\n');
        line
    }

    fn header(&self, line: &mut Vec<u8>) {
        use io::Write;
        let Self { kind, commit, key, payload } = self;
        let letter = char::from(kind.letter());
        let written = write!(line, "{MAGIC}{letter} {commit:016x} {:03} {:04} ", key.len(), payload.len());
        written.expect("memory takes it");
        let mut crc = crc32fast::Hasher::new();
        for part in [line, key.as_bytes(), b" ", payload] {
            crc.update(part);
        }
        write!(line, "{:08x} ", crc.finalize()).expect("memory takes it");
    }

    /// The line that `bytes` begin with, and its length; `None` unless it is whole. The checksum covers every bit of it.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (head, rest) = bytes.split_at_checked(HEADER_LEN)?;
        let (checked, crc) = head.split_at_checked(CHECKED_LEN)?;
        let fields = checked.strip_prefix(MAGIC.as_bytes())?;
        let [kind, b' ', commit @ .., b' '] = fields else { return None };
        let ([commit @ .., b' ', k1, k2, k3, b' ', p1, p2, p3, p4], kind) = (commit, Kind::of(*kind)?) else {
            return None;
        };
        let (key_len, payload_len) = (decimal(&[*k1, *k2, *k3])?, decimal(&[*p1, *p2, *p3, *p4])?);
        let (key, after_key) = rest.split_at_checked(key_len)?;
        let (payload, after) = after_key.strip_prefix(b" ")?.split_at_checked(payload_len)?;
        let [crc @ .., b' '] = crc else { return None };
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(checked);
        hasher.update(&rest[..key_len + 1 + payload_len]);
        let whole = after.first() == Some(&b'\n') && hexadecimal(crc) == Some(u64::from(hasher.finalize()));
        let commit = hexadecimal(commit)?;
        let envelope = Self { kind, commit, key: std::str::from_utf8(key).ok()?, payload };
        whole.then_some((envelope, HEADER_LEN + key_len + payload_len + 2))
    }

    /// The lines that `bytes` consist of, up to the first that is not whole.
    pub fn lines(mut bytes: &'a [u8]) -> impl Iterator<Item = Self> {
        std::iter::from_fn(move || {
            let (envelope, len) = Self::read(bytes)?;
            bytes = &bytes[len..];
            Some(envelope)
        })
    }

    /// Its length as a line, in bytes.
    #[must_use]
    pub const fn size(&self) -> usize {
        HEADER_LEN + self.key.len() + self.payload.len() + 2
    }

    /// What identifies it within its chain.
    #[must_use]
    pub fn name(&self) -> (Kind, &'a str) {
        (self.kind, self.key)
    }

    /// The record, if it is a whole one.
    #[must_use]
    pub fn record(&self) -> Option<(u64, Record)> {
        let RecordKey { lane, epoch, sequence, position } = self.record_key()?;
        let Payload { boot, recorded, body } = serde_json::from_slice(self.payload).ok()?;
        Some((position, Record { lane, epoch, sequence, boot, recorded, body }))
    }

    /// The key, if it is a record's.
    #[must_use]
    pub fn record_key(&self) -> Option<RecordKey> {
        (self.kind == Kind::Record).then(|| RecordKey::parse(self.key)).flatten()
    }
}

/// A number in decimal digits and nothing else.
fn decimal(digits: &[u8]) -> Option<usize> {
    digits
        .iter()
        .try_fold(0, |number, digit| Some(number * 10 + usize::from(digit.is_ascii_digit().then(|| digit - b'0')?)))
}

/// A number in hexadecimal digits as they are written here, and nothing else.
fn hexadecimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number.checked_mul(16)? + u64::from(value))
    })
}

/// How long a line with such a key and payload is, in bytes; `None` if there can be no such line.
#[must_use]
pub(super) const fn line_size(key_len: usize, payload_len: usize) -> Option<usize> {
    let size = HEADER_LEN + key_len + payload_len + 2;
    if key_len <= KEY_LEN_MAX && size <= RECORD_SIZE_MAX { Some(size) } else { None }
}

/// The key of a record: its number and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordKey {
    /// Its lane.
    pub lane: Lane,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its number.
    pub sequence: u64,
    /// Its place in the lane, across epochs.
    pub position: u64,
}

impl RecordKey {
    /// Reads what [`fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (lane, epoch) = (parts.next()?, Epoch::parse(parts.next()?)?);
        let lane = Lane::ALL.into_iter().find(|known| known.as_str() == lane)?;
        let (sequence, position) = (number(parts.next()?)?, number(parts.next()?)?);
        parts.next().is_none().then_some(Self { lane, epoch, sequence, position })
    }
}

/// A number as it is displayed, and in no other way.
fn number(text: &str) -> Option<u64> {
    let plain = text.starts_with(|first: char| first.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lane, epoch, sequence, position } = self;
        write!(f, "{}-{epoch}-{sequence}-{position}", lane.as_str())
    }
}

#[derive(Serialize)]
struct PayloadRef<'a> {
    boot: &'a BootId,
    recorded: &'a Now,
    body: &'a Body,
}

#[derive(Deserialize)]
struct Payload {
    boot: BootId,
    recorded: Now,
    body: Body,
}

/// The record would be larger than [`RECORD_SIZE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{size} bytes stored, at most {RECORD_SIZE_MAX} are possible")]
pub struct TooLarge {
    /// What it would take, in bytes.
    pub size: usize,
}

/// The payload of a record; its line will fit wherever it comes to lie.
pub(super) fn payload(record: &Record) -> Result<Vec<u8>, TooLarge> {
    let Record { boot, recorded, body, .. } = record;
    let payload = serde_json::to_vec(&PayloadRef { boot, recorded, body }).expect("names and numbers become JSON");
    match line_size(RECORD_KEY_LEN_MAX, payload.len()) {
        Some(_) => Ok(payload),
        None => Err(TooLarge { size: HEADER_LEN + RECORD_KEY_LEN_MAX + payload.len() + 2 }),
    }
}

/// What a scan came across.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scanned {
    /// Whole lines; one that a database holds twice counts twice.
    pub whole: u64,
    /// Beginnings of lines without the rest. A database leaves some behind whenever it reuses space.
    pub broken: u64,
    /// The version of a line of another version, if there was one.
    pub other_version: Option<u32>,
}

/// Finds every whole line in any bytes, with the offset of each. Memory is bounded whatever the source's size.
pub fn scan(mut source: impl Read, mut found: impl FnMut(u64, Envelope<'_>)) -> io::Result<Scanned> {
    let (mut scanned, finder) = (Scanned::default(), memmem::Finder::new(FAMILY));
    let (mut buffer, mut offset, mut ended) = (Vec::with_capacity(SCAN_SIZE), 0_u64, false);
    while !ended {
        let read = (&mut source).take((SCAN_SIZE - buffer.len()) as u64).read_to_end(&mut buffer)?;
        ended = read == 0;
        let mut at = 0;
        loop {
            let Some(next) = finder.find(&buffer[at..]) else {
                // The end of the buffer may be the beginning of a line.
                at = at.max(buffer.len().saturating_sub(FAMILY.len() - 1));
                break;
            };
            at += next;
            if !ended && buffer.len() - at < RECORD_SIZE_MAX {
                break;
            }
            at += match Envelope::read(&buffer[at..]) {
                Some((envelope, len)) => {
                    found(offset + at as u64, envelope);
                    scanned.whole += 1;
                    len
                }
                None => {
                    match version(&buffer[at..]) {
                        Some(_) if buffer[at..].starts_with(MAGIC.as_bytes()) => scanned.broken += 1,
                        Some(other) => scanned.other_version = Some(other),
                        None => {}
                    }
                    FAMILY.len()
                }
            };
        }
        buffer.drain(..at);
        offset += at as u64;
    }
    Ok(scanned)
}

/// The version of a line that begins so.
fn version(bytes: &[u8]) -> Option<u32> {
    let (digit, rest) = bytes.strip_prefix(FAMILY)?.split_first()?;
    let digit = char::from(*digit).to_digit(10)?;
    // The letter and the space behind it: the word alone may stand in any text.
    matches!(rest, [b' ', kind, b' ', ..] if kind.is_ascii_lowercase()).then_some(digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::testing::{batch, epoch};

    fn line(record: &Record, position: u64, commit: u64) -> Vec<u8> {
        let Record { lane, epoch, sequence, .. } = record.clone();
        let key = RecordKey { lane, epoch, sequence, position }.to_string();
        Envelope { kind: Kind::Record, commit, key: &key, payload: &payload(record).expect("small") }.to_bytes()
    }

    fn whole(bytes: &[u8]) -> Option<(u64, Record)> {
        Envelope::read(bytes).filter(|(_, len)| *len == bytes.len()).and_then(|(envelope, _)| envelope.record())
    }

    #[test]
    fn a_record_is_one_readable_line() {
        let record = batch(&epoch('0'), 42, "31.5");
        let bytes = line(&record, 45, 0x1f);
        let text = std::str::from_utf8(&bytes).expect("text");
        assert!(text.starts_with("gardu2 r 000000000000001f 024 0"), "{text}");
        assert!(text[HEADER_LEN..].starts_with("t-0000000000000000-42-45 {"), "{text}");
        assert!(text.ends_with("}\n"), "{text}");
        assert_eq!(whole(&bytes), Some((45, record)));
    }

    #[test]
    fn values_keep_every_digit() {
        for digits in
            ["0.1", "31.5", "1.7976931348623157e308", "5e-324", "0.30000000000000004", "2.2250738585072011e-308"]
        {
            let record = batch(&epoch('0'), 1, digits);
            assert_eq!(whole(&line(&record, 1, 1)), Some((1, record)), "{digits}");
        }
    }

    #[test]
    fn a_record_above_the_limit_is_refused() {
        let mut record = batch(&epoch('0'), 1, "1.0");
        let Body::Telemetry(of) = &mut record.body else { unreachable!("a batch is telemetry") };
        let sample = of.readings[0].clone();
        of.readings = vec![sample; 60];
        let refused = payload(&record).expect_err("60 readings are too many");
        assert!(refused.size > RECORD_SIZE_MAX, "{refused}");
    }

    #[test]
    fn every_kind_has_a_letter_of_its_own() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of(kind.letter()), Some(kind));
        }
    }

    #[test]
    fn lines_of_another_version_are_told_from_words() {
        let scan_of = |bytes: &[u8]| scan(bytes, |_, _| panic!("no line of ours")).expect("memory can be read");
        let other = |version| Scanned { other_version: version, ..Scanned::default() };
        assert_eq!(scan_of(b"x gardu1 a 0123456789abcdef 00000000000000000001 "), other(Some(1)));
        assert_eq!(scan_of(b"gardu3 r 0"), other(Some(3)));
        assert_eq!(scan_of(b"the gardu 7 a gardu8 of gardux"), other(None));
        assert_eq!(scan_of(b"gardu2 r 00"), Scanned { broken: 1, ..Scanned::default() });
    }

    /// Sources that give a few bytes at a time.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let len = into.len().min(self.0.len()).min(7);
            into[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_line_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Envelope::read(&bytes), None);
            let mut magic = MAGIC.as_bytes().to_vec();
            magic.extend(bytes);
            prop_assert_eq!(Envelope::read(&magic), None);
        }

        #[test]
        fn any_damage_is_seen(at in any::<prop::sample::Index>(), flip in 1_u8.., cut in any::<prop::sample::Index>()) {
            let bytes = line(&batch(&epoch('0'), 7, "1.5"), 7, 3);
            let mut damaged = bytes.clone();
            damaged[at.index(bytes.len())] ^= flip;
            prop_assert_eq!(Envelope::read(&damaged), None);
            prop_assert_eq!(Envelope::read(&bytes[..cut.index(bytes.len())]), None);
        }

        #[test]
        fn a_scan_finds_every_whole_line_and_nothing_else(
            gaps in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..30),
            broken in prop::collection::vec(any::<bool>(), 30),
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (n, gap) in (1..).zip(&gaps) {
                bytes.extend_from_slice(gap);
                let line = line(&batch(&epoch('0'), n, "1.5"), n, n);
                if broken[usize::try_from(n).expect("small")] {
                    bytes.extend_from_slice(&line[..line.len() - 2]);
                } else {
                    expected.push((bytes.len() as u64, n));
                    bytes.extend_from_slice(&line);
                }
            }
            let mut found = Vec::new();
            let mut take = |offset, envelope: Envelope<'_>| found.push((offset, envelope.commit));
            scan(&*bytes, &mut take).expect("memory can be read");
            prop_assert_eq!(&found, &expected);
            found.clear();
            scan(Dribble(&bytes), |offset, envelope| found.push((offset, envelope.commit))).expect("memory can be read");
            prop_assert_eq!(&found, &expected);
        }
    }
}
