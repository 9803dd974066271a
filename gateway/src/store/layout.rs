//! What lies under which key, in both chains: pure.
//!
//! One tree; the first byte of a key says what its value is:
//!
//! | key | value |
//! |---|---|
//! | `b` + place, two bytes, big-endian | JSON: one boot and where its clock stood |
//! | `c` + command id | JSON: the answer given |
//! | `m` + word | JSON: one of the chain's own counters, see [`meta`] |
//! | `p` + point | last value of an event point: a letter for its type, then its text |
//! | `r` + position, eight bytes, big-endian | a record in its [envelope](super::envelope) |
//! | `s` + alarm | JSON: the alarm's state |
//!
//! No value is larger than [`RECORD_SIZE_MAX`]: sled moves a leaf that outgrows a quarter of a segment to a blob file,
//! which it never syncs.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Commit, Started, StoreError, StoredAnswer, envelope};
use crate::{
    alarm::AlarmState,
    clock::{BootId, Boots, Now},
    reading::{PointId, Value},
    record::{Epoch, Lane, RECORD_SIZE_MAX, Record},
};

/// The version of this layout. A chain of another one is left alone.
pub(super) const FORMAT: u32 = 1;

/// Prefixes of keys.
pub(super) mod prefix {
    pub(crate) const ALARM: u8 = b's';
    pub(crate) const ANSWER: u8 = b'c';
    pub(crate) const BOOT: u8 = b'b';
    pub(crate) const COUNT: u8 = b'p';
    pub(crate) const RECORD: u8 = b'r';
}

/// Keys of the chain's own counters.
pub(super) mod meta {
    /// Version of the layout, in every chain.
    pub(crate) const FORMAT: &[u8] = b"mformat";
    /// The machine the store belongs to; alarm chain.
    pub(crate) const MACHINE: &[u8] = b"mmachine";
    /// The present epoch, in every chain.
    pub(crate) const EPOCH: &[u8] = b"mepoch";
    /// The position the next record gets, in every chain.
    pub(crate) const NEXT: &[u8] = b"mnext";
    /// Ranges of settled positions, in every chain.
    pub(crate) const SETTLED: &[u8] = b"msettled";
    /// Numberings in doubt; alarm chain.
    pub(crate) const UNPROVEN: &[u8] = b"munproven";
    /// CONNECTs counted so far; alarm chain.
    pub(crate) const SESSION: &[u8] = b"msession";
}

/// The present epoch as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EpochMeta {
    pub(super) epoch: Epoch,
    /// The last position before its sequence 1.
    pub(super) base: u64,
    /// The epoch before it in this chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) replaced: Option<Epoch>,
    /// Stands until sequence 1, the record that declares the epoch, is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) started: Option<Started>,
}

/// What one job writes.
#[derive(Debug, Default)]
pub(super) struct Write {
    /// An epoch that begins without a record in this chain.
    pub(super) adopt: Option<Epoch>,
    pub(super) records: Vec<Numbered>,
    pub(super) puts: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) removes: Vec<Vec<u8>>,
    /// Positions of records that are replaced.
    pub(super) replaced: Vec<u64>,
}

/// A record ready to be stored.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) lane: Lane,
    pub(super) epoch: Epoch,
    pub(super) sequence: u64,
    pub(super) boot: BootId,
    pub(super) recorded: Now,
    pub(super) bytes: Vec<u8>,
}

impl Write {
    /// The stored form of a step of the pipeline.
    pub(super) fn of(commit: &Commit) -> Result<Self, StoreError> {
        let mut write = Self::of_records(&commit.records)?;
        for state in &commit.alarms {
            write.put(prefix::ALARM, state.last.alarm.as_str(), json(state))?;
        }
        for (point, value) in &commit.counts {
            write.put(prefix::COUNT, point.as_str(), count_text(value).into_bytes())?;
        }
        for answer in &commit.answers {
            write.put(prefix::ANSWER, &answer.answer.id, json(answer))?;
        }
        write.puts.extend(commit.boots.iter().flat_map(boot_entries));
        write.removes.extend(commit.forgotten_alarms.iter().map(|id| named(prefix::ALARM, id.as_str())));
        write.removes.extend(commit.forgotten_answers.iter().map(|id| named(prefix::ANSWER, id)));
        write.puts.extend(commit.unproven.iter().map(|unproven| (meta::UNPROVEN.into(), json(unproven))));
        write.replaced.clone_from(&commit.replaced);
        Ok(write)
    }

    /// The stored form of records alone.
    pub(super) fn of_records(records: &[Record]) -> Result<Self, StoreError> {
        let numbered = |record: &Record| {
            let bytes = envelope::encode(record)
                .map_err(|too_large| StoreError::TooLarge { what: record.id().into(), size: too_large.size })?;
            let Record { lane, epoch, sequence, boot, recorded, .. } = record.clone();
            Ok(Numbered { lane, epoch, sequence, boot, recorded, bytes })
        };
        Ok(Self { records: records.iter().map(numbered).collect::<Result<_, _>>()?, ..Self::default() })
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> usize {
        let puts: usize = self.puts.iter().map(|(key, value)| key.len() + value.len()).sum();
        puts + self.records.iter().map(|r| r.bytes.len()).sum::<usize>()
            + self.removes.iter().map(Vec::len).sum::<usize>()
            + size_of_val(&*self.replaced)
    }

    fn put(&mut self, prefix: u8, name: &str, value: Vec<u8>) -> Result<(), StoreError> {
        let size = name.len() + value.len();
        if size > RECORD_SIZE_MAX {
            return Err(StoreError::TooLarge { what: name.into(), size });
        }
        self.puts.push((named(prefix, name), value));
        Ok(())
    }
}

/// The key of something that has a name.
pub(super) fn named(prefix: u8, name: &str) -> Vec<u8> {
    [&[prefix], name.as_bytes()].concat()
}

/// The key of a record.
pub(super) fn record_key(position: u64) -> [u8; 9] {
    let mut key = [prefix::RECORD; 9];
    key[1..].copy_from_slice(&position.to_be_bytes());
    key
}

/// The position in a record's key.
pub(super) fn record_position(key: &[u8]) -> Option<u64> {
    let (prefix, position) = key.split_first()?;
    (*prefix == prefix::RECORD).then_some(u64::from_be_bytes(position.try_into().ok()?))
}

/// JSON of one of our own types.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("names and numbers become JSON")
}

/// One entry a boot: all together they would be too large for one value.
pub(super) fn boot_entries(boots: &Boots) -> Vec<(Vec<u8>, Vec<u8>)> {
    let serde_json::Value::Array(boots) = serde_json::to_value(boots).expect("boots become JSON") else {
        return vec![];
    };
    let key = |place: u16| [&[prefix::BOOT][..], &place.to_be_bytes()].concat();
    (0..).zip(&boots).map(|(place, boot)| (key(place), json(boot))).collect()
}

/// What was read of a chain besides its records. What cannot be understood is left out and named.
#[derive(Debug, Default)]
pub(super) struct States {
    pub(super) alarms: Vec<AlarmState>,
    pub(super) counts: Vec<(PointId, Value)>,
    pub(super) answers: Vec<StoredAnswer>,
    pub(super) boots: Vec<serde_json::Value>,
    /// Keys, as text, of what was left out.
    pub(super) unreadable: Vec<String>,
}

impl States {
    /// Takes one entry; entries of other kinds are passed over.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) {
        let Some((prefix, name)) = key.split_first() else { return };
        let readable = match *prefix {
            prefix::ALARM => keep(&mut self.alarms, parse(value)),
            prefix::ANSWER => keep(&mut self.answers, parse(value)),
            prefix::BOOT => {
                keep(&mut self.boots, parse(value).filter(|boot| boots(std::slice::from_ref(boot)).is_some()))
            }
            prefix::COUNT => keep(&mut self.counts, count(name, value)),
            _ => true,
        };
        if !readable {
            self.unreadable.push(String::from_utf8_lossy(key).into_owned());
        }
    }

    /// Boots as they were kept.
    pub(super) fn boots(&self) -> Boots {
        boots(&self.boots).unwrap_or_default()
    }
}

fn boots(entries: &[serde_json::Value]) -> Option<Boots> {
    parse(&json(&entries))
}

/// JSON that was stored.
pub(super) fn parse<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

fn keep<T>(list: &mut Vec<T>, item: Option<T>) -> bool {
    let readable = item.is_some();
    list.extend(item);
    readable
}

/// A value with its type, so that a counter beyond 2^53, which JSON carries as a string, comes back as a number.
fn count_text(value: &Value) -> String {
    let letter = match value {
        Value::Bool(_) => 'b',
        Value::Integer(_) => 'i',
        Value::Float(_) => 'f',
        Value::Text(_) => 't',
    };
    format!("{letter}{value}")
}

fn count(name: &[u8], value: &[u8]) -> Option<(PointId, Value)> {
    let point = PointId::parse(std::str::from_utf8(name).ok()?).ok()?;
    let (letter, text) = std::str::from_utf8(value).ok()?.split_at_checked(1)?;
    let value = match letter {
        "b" => Value::Bool(text.parse().ok()?),
        "i" => Value::Integer(text.parse().ok()?),
        "f" => Value::float(text.parse().ok()?)?,
        "t" => Value::Text(text.into()),
        _ => return None,
    };
    Some((point, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::testing::now;

    #[test]
    fn counts_keep_their_type_and_every_digit() {
        let point = PointId::parse("panel/rain").expect("point");
        let text = |t: &str| Value::Text(t.into());
        for value in [Value::Bool(true), Value::Integer(u64::MAX.into()), Value::Float(0.1), text(""), text("7")] {
            let stored = count_text(&value);
            assert_eq!(count(b"panel/rain", stored.as_bytes()), Some((point.clone(), value)), "{stored}");
        }
    }

    #[test]
    fn every_boot_kept_fits_its_entry_and_comes_back() {
        let mut boots = Boots::default();
        for i in 0..Boots::KEPT {
            let boot = BootId::new(&format!("00000000-0000-0000-0000-{i:012}"));
            boots.enter(&boot);
            boots.trust(&boot, now(5));
        }
        let mut states = States::default();
        for (key, value) in boot_entries(&boots) {
            assert!(value.len() < 128, "{}", value.len());
            states.take(&key, &value);
        }
        assert_eq!(states.boots(), boots);
    }

    proptest! {
        #[test]
        fn arbitrary_entries_never_panic(key in proptest::collection::vec(any::<u8>(), 0..20), value in any::<Vec<u8>>()) {
            for prefix in *b"bcmprsx" {
                States::default().take(&[&[prefix], &key[..]].concat(), &value);
            }
            let _ = record_position(&key);
        }
    }
}
