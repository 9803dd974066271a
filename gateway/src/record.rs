//! What is numbered, stored and delivered: the noun of store and uplink.
//!
//! Terms: a **lane** is a numbered stream of records; `a` carries alarm events, stream events and command results, `t`
//! telemetry. An **epoch** names a life of the store; within one epoch and lane, **sequence** numbers are contiguous
//! from 1. A **position** orders the records of a lane across epochs and never leaves the gateway; people
//! see it as a place in the queue.
//!
//! A record is written once and never rewritten: times are kept as the clocks had them and made into text when sent.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    alarm::Transition,
    clock::{BootId, Now},
    reading::{PointId, Quality, Reason, Segment, Value},
};

/// Largest stored record, in bytes: far below sled's spill to blob files (7.5 KiB at 512 KiB segments).
pub const RECORD_SIZE_MAX: usize = 4 * 1024;

/// One of the two numbered streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// Alarm events, stream events, command results; goes first.
    #[serde(rename = "a")]
    Alarm,
    /// Telemetry.
    #[serde(rename = "t")]
    Telemetry,
}

impl Lane {
    /// Both lanes, the more urgent first.
    pub const ALL: [Self; 2] = [Self::Alarm, Self::Telemetry];

    /// The letter in ids and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alarm => "a",
            Self::Telemetry => "t",
        }
    }
}

/// The name of one life of the store: 16 random `[0-9a-z]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// Length of every epoch, in characters.
    pub const LEN: usize = 16;

    /// Parses an epoch.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == Self::LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z')))
            .then(|| Self(text.into()))
    }

    /// A new epoch from the kernel's random numbers: 82 bits, so that no two stores ever share one.
    pub fn random() -> Result<Self, getrandom::Error> {
        const LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        // 252 = 7 × 36: bytes above are thrown away, so that every letter is equally likely.
        let mut text = String::with_capacity(Self::LEN);
        while text.len() < Self::LEN {
            let mut bytes = [0; 32];
            getrandom::fill(&mut bytes)?;
            let letters = bytes.iter().filter(|b| **b < 252).map(|b| char::from(LETTERS[usize::from(b % 36)]));
            text.extend(letters.take(Self::LEN - text.len()));
        }
        Ok(Self(text.into()))
    }

    /// The epoch as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is not an epoch")))
    }
}

/// One numbered record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its stream.
    pub lane: Lane,
    /// The life of the store it was numbered in.
    pub epoch: Epoch,
    /// Its number in (epoch, lane), from 1.
    pub sequence: u64,
    /// The boot in which it was recorded: `at` and `recorded` are times of this boot.
    pub boot: BootId,
    /// When it was recorded.
    pub recorded: Now,
    /// What happened.
    pub body: Body,
}

impl Record {
    /// The CloudEvents id: `{epoch}-{lane}-{sequence}`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}-{}-{}", self.epoch, self.lane.as_str(), self.sequence)
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "is", rename_all = "kebab-case")]
pub enum Body {
    /// An alarm changed (lane a).
    Alarm(Box<Transition>),
    /// Something about the stream itself (lane a).
    Stream(StreamEvent),
    /// A command was carried out (lane a).
    Command(CommandResult),
    /// Readings of one device (lane t).
    Telemetry(Batch),
}

impl Body {
    /// The lane it travels in.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Alarm(_) | Self::Stream(_) | Self::Command(_) => Lane::Alarm,
            Self::Telemetry(_) => Lane::Telemetry,
        }
    }
}

/// Readings of one device, taken together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Whose.
    pub device: Segment,
    /// In the order taken; at least one.
    pub readings: Vec<Sample>,
    /// Set on a summary of 15 minutes: what it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Replaces>,
}

/// The telemetry records that a summary stands for (DESIGN.md §5.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaces {
    /// Their epoch.
    pub epoch: Epoch,
    /// First and last number of each run, both included; at most [`Replaces::RANGES_MAX`]. Where there were more, near
    /// ones were joined, and cover numbers of other devices as well.
    pub ranges: Vec<(u64, u64)>,
}

impl Replaces {
    /// A small part of a record: half a kilobyte.
    pub const RANGES_MAX: usize = 16;
}

/// One reading inside a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The point.
    pub point: PointId,
    /// The value; none when quality is bad.
    pub value: Option<Value>,
    /// How far it can be trusted.
    pub quality: Quality,
    /// Why it is not good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When the gateway took it.
    pub at: Now,
    /// When the device says it happened, milliseconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_time_ms: Option<i64>,
    /// In a summary: what the good readings of its 15 minutes were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

/// What several good readings of one point were.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// The least of them; none if there were none, or texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Value>,
    /// The greatest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Value>,
}

/// What the command center must know about the numbering itself (DESIGN.md §5.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum StreamEvent {
    /// A new epoch begins.
    Started {
        /// Why.
        reason: StartReason,
        /// The epoch it replaces, if one was found.
        replaces: Option<Epoch>,
        /// The last number known of the replaced epoch, by lane.
        last: Option<LastKnown>,
    },
    /// Numbers that will never arrive.
    Lost {
        /// Of which epoch.
        epoch: Epoch,
        /// Of which lane.
        lane: Lane,
        /// First and last of each run, both included; at most 100.
        ranges: Vec<(u64, u64)>,
        /// How many numbers that is.
        count: u64,
        /// Why.
        reason: LossReason,
        /// False where a damaged tail is bounded, not known.
        certain: bool,
        /// The event's own id, subject and severity where one refused record is declared.
        refused: Option<Refused>,
    },
}

/// The last numbers known of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastKnown {
    /// Lane a.
    pub a: u64,
    /// Lane t.
    pub t: u64,
}

/// Why an epoch began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartReason {
    /// There was no store.
    NewStore,
    /// The store came from another machine.
    OtherMachine,
    /// The command center knows higher numbers than the store: a restored backup or a cloned card.
    RolledBack,
    /// Part of the store could not be read and was set aside; numbers used may be missing from what is left.
    Damaged,
    /// The store cannot be used, and records are kept in memory until it can. The epoch before it is not over.
    InMemory,
}

/// Why numbers are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossReason {
    /// The broker refuses it for good: too large or invalid.
    Refused,
    /// The outbox was full.
    Quota,
    /// Telemetry that waited longer than it may.
    Age,
    /// Telemetry of which a summary was recorded instead.
    Thinned,
    /// The store was damaged.
    Damaged,
}

impl LossReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Refused, Self::Quota, Self::Age, Self::Thinned, Self::Damaged];

    /// The word in payloads and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Quota => "quota",
            Self::Age => "age",
            Self::Thinned => "thinned",
            Self::Damaged => "damaged",
        }
    }
}

/// One record that was set aside after the broker refused it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its id.
    pub id: String,
    /// Its subject.
    pub subject: String,
    /// Its severity, for an alarm event.
    pub severity: Option<crate::alarm::Severity>,
}

/// A command that was carried out: the audit line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    /// The command's id.
    pub id: Arc<str>,
    /// Its word.
    pub command: Arc<str>,
    /// Which alarm, if one.
    pub alarm: Option<crate::alarm::AlarmId>,
    /// Who asked.
    pub by: Arc<str>,
}

/// How far one lane has come, as `status` and the tools show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// The present epoch.
    pub epoch: Epoch,
    /// The number the next record will get.
    pub next: u64,
    /// Every number up to here was confirmed or declared lost.
    pub settled: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_sixteen_letters_and_never_the_same() {
        let (a, b) = (Epoch::random().expect("random"), Epoch::random().expect("random"));
        assert_ne!(a, b);
        assert_eq!(Epoch::parse(a.as_str()), Some(a));
        for bad in ["", "0123456789abcde", "0123456789ABCDEF", "0123456789abcdef0"] {
            assert_eq!(Epoch::parse(bad), None, "{bad}");
        }
    }
}
