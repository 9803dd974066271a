//! The form in which a record lies on the disk: one line that says what it is and proves that it is whole. Pure.
//!
//! ```text
//! gardu1 a 0123456789abcdef 00000000000000004211 0412 9ae0daaf {"boot":…,"recorded":…,"body":…}\n
//! ┬───── ┬ ┬─────────────── ┬─────────────────── ┬─── ┬─────── ┬
//! │      │ epoch            sequence             │    │        412 bytes of JSON, then a line feed
//! │      lane                   bytes of JSON ───┘    CRC-32 (IEEE) of everything before it and of the JSON
//! form, version 1
//! ```
//!
//! The header is ASCII of fixed width, so that a person with a hex editor reads it, and a byte scan of a database that no
//! longer opens finds every record by `gardu1 `: sled stores values uncompressed and in one piece.

use serde::{Deserialize, Serialize};

use crate::{
    clock::{BootId, Now},
    record::{Body, Epoch, Lane, RECORD_SIZE_MAX, Record},
};

/// How every record of this version begins.
const MAGIC: &str = "gardu1 ";
/// Magic, lane, epoch, sequence, length and checksum, each with the space behind it.
const HEADER_LEN: usize = 61;

/// The record would be larger than [`RECORD_SIZE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{size} bytes stored, at most {RECORD_SIZE_MAX} are possible")]
pub struct TooLarge {
    /// What it would take, in bytes.
    pub size: usize,
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) lane: Lane,
    pub(super) epoch: Epoch,
    pub(super) sequence: u64,
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

/// The stored form of a record.
pub fn encode(record: &Record) -> Result<Vec<u8>, TooLarge> {
    let Record { lane, epoch, sequence, boot, recorded, body } = record;
    let payload = serde_json::to_vec(&PayloadRef { boot, recorded, body }).expect("names and numbers become JSON");
    let size = HEADER_LEN + payload.len() + 1;
    if size > RECORD_SIZE_MAX {
        return Err(TooLarge { size });
    }
    let header = Header { lane: *lane, epoch: epoch.clone(), sequence: *sequence };
    Ok([header.over(&payload).as_bytes(), &payload, b"\n"].concat())
}

/// The record that `bytes` hold; `None` unless they are exactly one whole record.
pub(super) fn decode(bytes: &[u8]) -> Option<Record> {
    let (Header { lane, epoch, sequence }, payload) = check(bytes)?;
    let Payload { boot, recorded, body } = serde_json::from_slice(payload).ok()?;
    Some(Record { lane, epoch, sequence, boot, recorded, body })
}

/// What the header says and the JSON behind it; `None` unless `bytes` are exactly one whole record.
pub(super) fn check(bytes: &[u8]) -> Option<(Header, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEADER_LEN)?;
    let payload = rest.strip_suffix(b"\n")?;
    let mut fields = std::str::from_utf8(head).ok()?.strip_prefix(MAGIC)?.split(' ');
    let (lane, epoch, sequence) = (fields.next()?, fields.next()?, fields.next()?);
    let header = Header {
        lane: Lane::ALL.into_iter().find(|known| known.as_str() == lane)?,
        epoch: Epoch::parse(epoch)?,
        sequence: sequence.parse().ok()?,
    };
    // Length and checksum are compared as they would be written, so that not one bit of them can differ.
    (header.over(payload).as_bytes() == head).then_some((header, payload))
}

impl Header {
    /// The header's text in front of `payload`.
    fn over(&self, payload: &[u8]) -> String {
        let Self { lane, epoch, sequence } = self;
        let mut head = format!("{MAGIC}{} {epoch} {sequence:020} {:04} ", lane.as_str(), payload.len());
        let mut crc = crc32fast::Hasher::new();
        crc.update(head.as_bytes());
        crc.update(payload);
        head.push_str(&format!("{:08x} ", crc.finalize()));
        head
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::testing::{batch, epoch};

    #[test]
    fn a_record_is_one_readable_line() {
        let record = batch(&epoch('0'), 42, "31.5");
        let bytes = encode(&record).expect("small");
        let text = std::str::from_utf8(&bytes).expect("text");
        assert!(text.starts_with("gardu1 t 0000000000000000 00000000000000000042 0"), "{text}");
        assert_eq!(text.as_bytes()[HEADER_LEN], b'{');
        assert!(text.ends_with("}\n"), "{text}");
        assert_eq!(decode(&bytes), Some(record));
    }

    #[test]
    fn values_keep_every_digit() {
        for digits in
            ["0.1", "31.5", "1.7976931348623157e308", "5e-324", "0.30000000000000004", "2.2250738585072011e-308"]
        {
            let record = batch(&epoch('0'), 1, digits);
            assert_eq!(decode(&encode(&record).expect("small")), Some(record), "{digits}");
        }
    }

    #[test]
    fn a_record_above_the_limit_is_refused() {
        let mut record = batch(&epoch('0'), 1, "1.0");
        let Body::Telemetry(of) = &mut record.body else { unreachable!("a batch is telemetry") };
        let sample = of.readings[0].clone();
        of.readings = vec![sample; 60];
        let refused = encode(&record).expect_err("60 readings are too many");
        assert!(refused.size > RECORD_SIZE_MAX, "{refused}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_record_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(decode(&bytes), None);
        }

        #[test]
        fn any_damage_is_seen(at in any::<prop::sample::Index>(), flip in 1_u8.., cut in any::<prop::sample::Index>()) {
            let bytes = encode(&batch(&epoch('0'), 7, "1.5")).expect("small");
            let mut damaged = bytes.clone();
            damaged[at.index(bytes.len())] ^= flip;
            prop_assert_eq!(decode(&damaged), None);
            prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]), None);
        }
    }
}
