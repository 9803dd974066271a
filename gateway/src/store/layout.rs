//! What lies under which key, in both chains: pure.
//!
//! One tree a generation; every value is one [line](super::envelope) or, for records, several. The first letter of a key
//! is the [`Kind`] of its value:
//!
//! | key | payload |
//! |---|---|
//! | `a` + alarm | JSON: the alarm's state |
//! | `b` + place, five digits | JSON: one boot and where its clock stood |
//! | `c` + command id | JSON: the answer given |
//! | `e` + epoch | JSON: where it begins, [`EpochMeta`] |
//! | `g` + number, ten digits | JSON: the positions of a sealed generation, [`SealedMeta`] |
//! | `m` + word | JSON: one of the chain's own values, see [`word`] |
//! | `p` + point | last value of an event point: a letter for its type, then its text |
//! | `q` + place, two digits | nothing: [`FENCE`] |
//! | `r` + position, twenty digits | the record of that position and some that follow it without a gap, each a line |
//!
//! What is forgotten keeps its key with an empty payload until the generation is sealed, so that a scan of the bytes
//! tells what is gone from what is lost. No value is larger than [`RECORD_SIZE_MAX`]: sled moves a leaf that outgrows a
//! quarter of a segment to a blob file, which it never syncs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Commit, Started, StoreError, StoredAnswer,
    envelope::{self, Envelope, Kind},
};
use crate::{
    alarm::AlarmState,
    clock::{BootId, Boots, Now},
    reading::{PointId, Value},
    record::{Epoch, Lane, RECORD_SIZE_MAX, Record},
};

/// The version of this layout. A store of another one is left alone.
pub(super) const FORMAT: u32 = 2;
/// Records in one value at most: sled writes a leaf of up to 16 values anew whenever it changes, and eight records of
/// usual size make one page of 4 KiB.
const CHUNK_RECORDS_MAX: usize = 8;

/// Values between records and all else: sled writes up to 16 neighbours anew whenever one of them has changed ten times,
/// and a record chunk beside the chain's own values would be written anew with every few commits.
const FENCE: usize = 16;

/// The name of a lane's chain, in names of folders, messages and metrics.
pub(super) const fn chain_of(lane: Lane) -> &'static str {
    match lane {
        Lane::Alarm => "alarm",
        Lane::Telemetry => "telemetry",
    }
}

/// The chain's own values.
pub(super) mod word {
    /// Version of the layout.
    pub(crate) const FORMAT: &str = "format";
    /// How the generation began, [`super::MadeMeta`]; written last, so that one without it was never used.
    pub(crate) const MADE: &str = "made";
    /// The machine the store belongs to; alarm chain.
    pub(crate) const MACHINE: &str = "machine";
    /// The position the next record gets and the end of the commit, [`super::NextMeta`]. In every commit.
    pub(crate) const NEXT: &str = "next";
    /// Ranges of settled positions.
    pub(crate) const SETTLED: &str = "settled";
    /// CONNECTs counted so far; alarm chain.
    pub(crate) const SESSION: &str = "session";
    /// Numberings in doubt; alarm chain.
    pub(crate) const UNPROVEN: &str = "unproven";
    /// Commits, first and last of each run, that were never finished although lines of them are in this generation.
    pub(crate) const VOID: &str = "void";
}

/// An epoch as it is kept: while records of it wait, and while it is the present one.
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
    /// From this position on it is not known which numbers were ever given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uncertain_from: Option<u64>,
}

/// The positions in a generation that is not written any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SealedMeta {
    /// Its first position.
    pub(super) first: u64,
    /// The first position after it.
    pub(super) end: u64,
    /// Bytes of its records.
    pub(super) bytes: u64,
    /// Whether some of the positions are not in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) has_holes: bool,
}

/// The end of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NextMeta {
    /// The position the next record gets.
    pub(super) next: u64,
    /// How many lines the commit has, this one included.
    pub(super) lines: u64,
    /// The commit before it: that one was finished before this one began.
    pub(super) after: u64,
}

/// How a generation began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MadeMeta {
    /// Size of its data file then, in bytes.
    pub(super) size: u64,
    /// Its first position.
    pub(super) first: u64,
}

/// What one job writes.
#[derive(Debug, Default)]
pub(super) struct Write {
    /// An epoch that begins without a record in this chain.
    pub(super) adopt: Option<Epoch>,
    pub(super) records: Vec<Numbered>,
    pub(super) puts: Vec<Put>,
    /// Positions of records that are replaced.
    pub(super) replaced: Vec<u64>,
}

/// One value to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Put {
    pub(super) kind: Kind,
    pub(super) key: String,
    /// Nothing where the thing is forgotten.
    pub(super) payload: Vec<u8>,
}

/// A record ready to be stored.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) lane: Lane,
    pub(super) epoch: Epoch,
    pub(super) sequence: u64,
    pub(super) boot: BootId,
    pub(super) recorded: Now,
    pub(super) payload: Vec<u8>,
}

impl Write {
    /// The stored form of a step of the pipeline.
    pub(super) fn of(commit: &Commit) -> Result<Self, StoreError> {
        let mut write = Self::of_records(&commit.records)?;
        for state in &commit.alarms {
            write.put(Kind::Alarm, state.last.alarm.as_str(), json(state))?;
        }
        for (point, value) in &commit.counts {
            write.put(Kind::Count, point.as_str(), count_text(value).into_bytes())?;
        }
        for answer in &commit.answers {
            write.put(Kind::Answer, &answer.answer.id, json(answer))?;
        }
        write.puts.extend(commit.boots.iter().flat_map(boot_entries));
        for id in &commit.forgotten_alarms {
            write.put(Kind::Alarm, id.as_str(), Vec::new())?;
        }
        for id in &commit.forgotten_answers {
            write.put(Kind::Answer, id, Vec::new())?;
        }
        write.puts.extend(commit.unproven.iter().map(|unproven| Put::word(word::UNPROVEN, unproven)));
        write.replaced.clone_from(&commit.replaced);
        Ok(write)
    }

    /// The stored form of records alone.
    pub(super) fn of_records(records: &[Record]) -> Result<Self, StoreError> {
        let numbered = |record: &Record| {
            let payload = envelope::payload(record)
                .map_err(|too_large| StoreError::TooLarge { what: record.id().into(), size: too_large.size })?;
            let Record { lane, epoch, sequence, boot, recorded, .. } = record;
            let (lane, sequence, recorded) = (*lane, *sequence, *recorded);
            Ok(Numbered { lane, epoch: epoch.clone(), sequence, boot: boot.clone(), recorded, payload })
        };
        Ok(Self { records: records.iter().map(numbered).collect::<Result<_, _>>()?, ..Self::default() })
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> usize {
        let puts: usize = self.puts.iter().map(|put| put.key.len() + put.payload.len()).sum();
        puts + self.records.iter().map(|r| r.payload.len()).sum::<usize>() + size_of_val(&*self.replaced)
    }

    fn put(&mut self, kind: Kind, key: &str, payload: Vec<u8>) -> Result<(), StoreError> {
        let size = key.len() + payload.len();
        if envelope::line_size(key.len(), payload.len()).is_none() {
            return Err(StoreError::TooLarge { what: key.into(), size: size.max(RECORD_SIZE_MAX + 1) });
        }
        self.puts.push(Put { kind, key: key.into(), payload });
        Ok(())
    }
}

impl Put {
    /// One of the chain's own values.
    pub(super) fn word(key: &str, value: &impl Serialize) -> Self {
        Self { kind: Kind::Word, key: key.into(), payload: json(value) }
    }

    /// An epoch.
    pub(super) fn epoch(meta: &EpochMeta) -> Self {
        Self { kind: Kind::Epoch, key: meta.epoch.to_string(), payload: json(meta) }
    }

    /// That an epoch is over and nothing of it waits.
    pub(super) fn no_epoch(epoch: &Epoch) -> Self {
        Self { kind: Kind::Epoch, key: epoch.to_string(), payload: Vec::new() }
    }

    /// What lies between records and all else.
    pub(super) fn fence() -> impl Iterator<Item = Self> {
        (0..FENCE).map(|place| Self { kind: Kind::Fence, key: format!("{place:02}"), payload: b"0".into() })
    }

    /// A sealed generation; none when it is gone.
    pub(super) fn generation(number: u64, meta: Option<&SealedMeta>) -> Self {
        Self { kind: Kind::Generation, key: format!("{number:010}"), payload: meta.map(json).unwrap_or_default() }
    }

    /// Its key in the database.
    pub(super) fn database_key(&self) -> Vec<u8> {
        database_key(self.kind, &self.key)
    }

    /// Its value in the database.
    pub(super) fn line(&self, commit: u64) -> Vec<u8> {
        let Self { kind, key, payload } = self;
        Envelope { kind: *kind, commit, key, payload }.to_bytes()
    }
}

/// The key in the database of something other than a record.
pub(super) fn database_key(kind: Kind, key: &str) -> Vec<u8> {
    [&[kind.letter()], key.as_bytes()].concat()
}

/// The key of the value that begins with a position.
pub(super) fn record_key(position: u64) -> Vec<u8> {
    format!("{}{position:020}", char::from(Kind::Record.letter())).into_bytes()
}

/// Records of one commit, gathered into values.
#[derive(Debug, Default, Clone)]
pub(super) struct Chunks {
    done: Vec<(u64, Vec<u8>)>,
    records: usize,
}

impl Chunks {
    /// Adds the line of a position; positions follow each other without a gap.
    pub(super) fn push(&mut self, position: u64, line: &[u8]) {
        match self.done.last_mut() {
            Some((_, chunk)) if self.records < CHUNK_RECORDS_MAX && chunk.len() + line.len() <= RECORD_SIZE_MAX => {
                chunk.extend_from_slice(line);
                self.records += 1;
            }
            _ => {
                self.done.push((position, line.to_vec()));
                self.records = 1;
            }
        }
    }

    /// Each value with its first position.
    pub(super) fn take(&mut self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(self).done
    }
}

/// JSON of one of our own types.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("names and numbers become JSON")
}

/// JSON that was stored.
pub(super) fn parse<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

/// One entry a boot: all together they would be too large for one value.
pub(super) fn boot_entries(boots: &Boots) -> Vec<Put> {
    let serde_json::Value::Array(boots) = serde_json::to_value(boots).expect("boots become JSON") else {
        return vec![];
    };
    let put = |(place, boot): (u16, &_)| Put { kind: Kind::Boot, key: format!("{place:05}"), payload: json(boot) };
    (0..).zip(&boots).map(put).collect()
}

/// The newest payload of every key of a chain, records aside. An empty one means that the thing is gone.
pub(super) type Entries = BTreeMap<(Kind, String), (u64, Vec<u8>)>;

/// One of the chain's own values.
pub(super) fn word_of<T: DeserializeOwned>(entries: &Entries, key: &str) -> Option<T> {
    parse(&entries.get(&(Kind::Word, key.to_owned()))?.1)
}

/// What was read of a chain besides its records and its own values. What cannot be understood is left out and named.
#[derive(Debug, Default)]
pub(super) struct States {
    pub(super) alarms: Vec<AlarmState>,
    pub(super) counts: Vec<(PointId, Value)>,
    pub(super) answers: Vec<StoredAnswer>,
    boots: Vec<serde_json::Value>,
    /// Keys, as text, of what was left out.
    pub(super) unreadable: Vec<String>,
}

impl States {
    /// From what is there.
    pub(super) fn of(entries: &Entries) -> Self {
        let mut states = Self::default();
        for ((kind, key), (_, payload)) in entries {
            states.take(*kind, key, payload);
        }
        states
    }

    /// Takes one entry; entries of other kinds and what is gone are passed over.
    pub(super) fn take(&mut self, kind: Kind, key: &str, payload: &[u8]) {
        let readable = payload.is_empty()
            || match kind {
                Kind::Alarm => keep(&mut self.alarms, parse(payload)),
                Kind::Answer => keep(&mut self.answers, parse(payload)),
                Kind::Boot => {
                    keep(&mut self.boots, parse(payload).filter(|boot| boots(std::slice::from_ref(boot)).is_some()))
                }
                Kind::Count => keep(&mut self.counts, count(key, payload)),
                Kind::Epoch | Kind::Fence | Kind::Generation | Kind::Record | Kind::Word => true,
            };
        if !readable {
            self.unreadable.push(format!("{}{key}", char::from(kind.letter())));
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

fn keep<T>(list: &mut Vec<T>, item: Option<T>) -> bool {
    let readable = item.is_some();
    list.extend(item);
    readable
}

/// A value with its type, so that a counter beyond 2^53, which JSON carries as a string, comes back as a number. A line
/// feed in a text is written as JSON does.
fn count_text(value: &Value) -> String {
    match value {
        Value::Bool(value) => format!("b{value}"),
        Value::Integer(value) => format!("i{value}"),
        Value::Float(value) => format!("f{value}"),
        Value::Text(text) => format!("t{}", serde_json::Value::from(&**text)),
    }
}

fn count(key: &str, payload: &[u8]) -> Option<(PointId, Value)> {
    let point = PointId::parse(key).ok()?;
    let (letter, text) = std::str::from_utf8(payload).ok()?.split_at_checked(1)?;
    let value = match letter {
        "b" => Value::Bool(text.parse().ok()?),
        "i" => Value::Integer(text.parse().ok()?),
        "f" => Value::float(text.parse().ok()?)?,
        "t" => Value::Text(serde_json::from_str::<String>(text).ok()?.into()),
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
        for value in
            [Value::Bool(true), Value::Integer(u64::MAX.into()), Value::Float(0.1), text(""), text("7"), text("a\nb")]
        {
            let stored = count_text(&value);
            assert!(!stored.contains('\n'), "{stored}");
            assert_eq!(count("panel/rain", stored.as_bytes()), Some((point.clone(), value)), "{stored}");
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
        for Put { kind, key, payload } in boot_entries(&boots) {
            assert!(payload.len() < 128, "{}", payload.len());
            states.take(kind, &key, &payload);
        }
        assert_eq!(states.boots(), boots);
    }

    #[test]
    fn a_value_holds_few_records_and_never_too_many_bytes() {
        let sizes = |line: &[u8], n: u64| {
            let mut chunks = Chunks::default();
            (1..=n).for_each(|position| chunks.push(position, line));
            let taken = chunks.take();
            assert!(chunks.take().is_empty());
            taken.into_iter().map(|(first, chunk)| (first, chunk.len())).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[7; 10], 17), [(1, 80), (9, 80), (17, 10)]);
        assert_eq!(sizes(&[7; 3000], 2), [(1, 3000), (2, 3000)]);
        assert_eq!(sizes(&[7; 2048], 3), [(1, 4096), (3, 2048)]);
    }

    proptest! {
        #[test]
        fn arbitrary_entries_never_panic(key in ".{0,20}", value in any::<Vec<u8>>()) {
            for kind in Kind::ALL {
                States::default().take(kind, &key, &value);
            }
        }
    }
}
