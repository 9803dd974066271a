//! What is an alarm, and when: pure logic, no clock, no I/O.
//!
//! Terms (ISA-18.2 / IEC 62682; facts: states, not messages): a **rule** says when a point is in alarm; a rule on one
//! point is an **alarm**; each time it becomes active from quiet is an **occurrence**. The condition (`active`) and the
//! operator's answer (`acknowledged`) live on underneath the state. A **transition** is one change of an alarm that
//! the command center hears of.
//!
//! [`engine::Engine`] takes readings, commands and the time, and returns transitions; who stores and sends them is
//! not its business.

mod condition;
pub mod engine;
pub mod rule;
mod state;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    clock::{BootId, Now},
    reading::{Evidence, PointId, Quality, Reason, Segment, Value, is_segment},
    record::Epoch,
};

/// The name of an alarm: the point's, `/`, the rule's; or `{device}/communication`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct AlarmId(Arc<str>);

impl AlarmId {
    /// The alarm that `rule` makes of `point`.
    #[must_use]
    pub fn of(point: &PointId, rule: &Segment) -> Self {
        Self(format!("{point}/{rule}").into())
    }

    /// The alarm that says a device is silent.
    #[must_use]
    pub fn communication(device: &Segment) -> Self {
        Self(format!("{device}/communication").into())
    }

    /// The alarm that people raise to try the way to the command center.
    #[must_use]
    pub fn test() -> Self {
        Self("gateway/test".into())
    }

    /// The alarm that says that the command center's broker denies us what we must publish.
    #[must_use]
    pub fn delivery_refused() -> Self {
        Self("gateway/delivery-refused".into())
    }

    /// The alarm that says that another gateway uses this one's id.
    #[must_use]
    pub fn identity_conflict() -> Self {
        Self("gateway/identity-conflict".into())
    }

    /// The alarm that says that more is written to the storage than was allowed for.
    #[must_use]
    pub fn flash_budget() -> Self {
        Self("gateway/flash-budget".into())
    }

    /// The alarm that says that the outbox is full and records are given up.
    #[must_use]
    pub fn outbox_evicting() -> Self {
        Self("gateway/outbox-evicting".into())
    }

    /// The alarm that says that the disk below the outbox is full.
    #[must_use]
    pub fn outbox_full() -> Self {
        Self("gateway/outbox-full".into())
    }

    /// The alarm that says that the outbox will soon be full.
    #[must_use]
    pub fn outbox_filling() -> Self {
        Self("gateway/outbox-filling".into())
    }

    /// The alarm that says that the outbox cannot be used and records are kept in memory.
    #[must_use]
    pub fn outbox_unusable() -> Self {
        Self("gateway/outbox-unusable".into())
    }

    /// An alarm's name as received from outside: 2 to 5 segments.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        ((2..=5).contains(&text.split('/').count()) && text.split('/').all(is_segment)).then(|| Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AlarmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AlarmId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is not the name of an alarm")))
    }
}

/// How bad it is (five levels; OPC UA bands 801–1000, 601–800, 401–600, 201–400, 1–200).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a record, no one must act.
    Info,
    /// Act when convenient.
    Low,
    /// Act today.
    Medium,
    /// Act soon.
    High,
    /// Act now.
    Critical,
}

impl Severity {
    /// Every level, most severe first.
    pub const ALL: [Self; 5] = [Self::Critical, Self::High, Self::Medium, Self::Low, Self::Info];

    /// The word in topics, payloads and configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// ISA-18.2 state of an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Quiet: not active, nothing left to acknowledge.
    Norm,
    /// Active (or latched) and nobody has acknowledged it.
    Unack,
    /// Active (or latched) and acknowledged.
    Acked,
    /// Returned to normal before anyone acknowledged it.
    Rtnun,
}

impl State {
    /// Every state, for bounded metric labels.
    pub const ALL: [Self; 4] = [Self::Norm, Self::Unack, Self::Acked, Self::Rtnun];

    /// The code in payloads and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Norm => "NORM",
            Self::Unack => "UNACK",
            Self::Acked => "ACKED",
            Self::Rtnun => "RTNUN",
        }
    }
}

/// What changed; the middle of an event's `type` (`gardu.alarm.{kind}.v1`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A new occurrence.
    Raised,
    /// The condition ended.
    Cleared,
    /// Someone acknowledged it.
    Acknowledged,
    /// Someone reset a latched alarm.
    Reset,
    /// Severity, limit or text of a standing alarm changed with the configuration.
    Updated,
    /// Its rule is no longer configured.
    Removed,
}

impl Kind {
    /// The word in the event's type.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Cleared => "cleared",
            Self::Acknowledged => "acknowledged",
            Self::Reset => "reset",
            Self::Updated => "updated",
            Self::Removed => "removed",
        }
    }
}

/// A message in the languages of the configuration; at least one is present.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// Bahasa Indonesia.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Arc<str>>,
    /// English.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub en: Option<Arc<str>>,
}

/// One change of one alarm: all that the command center is told (DESIGN.md §5.2 `data`), before it has a number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transition {
    /// What changed.
    pub kind: Kind,
    /// Which alarm.
    pub alarm: AlarmId,
    /// Counts activations from quiet; starts at 1.
    pub occurrence: u64,
    /// State after the change.
    pub state: State,
    /// Whether the condition holds.
    pub active: bool,
    /// Whether this occurrence was acknowledged.
    pub acknowledged: bool,
    /// Whether it stands only because it is latched.
    pub latched: bool,
    /// Severity of the rule.
    pub severity: Severity,
    /// The point's value at the change; absent when quality is bad.
    pub value: Option<Value>,
    /// Unit of the value.
    pub unit: Option<Arc<str>>,
    /// Quality of the point at the change.
    pub quality: Quality,
    /// Why quality is not good.
    pub reason: Option<Reason>,
    /// The limit that was crossed, for `above` and `below`.
    pub limit: Option<f64>,
    /// A test alarm, not the field.
    #[serde(default)]
    pub test: bool,
    /// Text for people.
    pub message: Texts,
    /// Who commanded it.
    pub by: Option<Arc<str>>,
    /// What they said.
    pub comment: Option<Arc<str>>,
    /// Words of the camera.
    pub evidence: Option<Arc<Evidence>>,
    /// When the change happened in the field, by the gateway's clocks (the reading's stamp; for a delay, its end).
    pub at: Now,
    /// When the device says it happened, milliseconds since 1970 UTC.
    pub source_time_ms: Option<i64>,
}

/// The lane-a record that carries a transition: with it the retained state of an alarm can be said again word for word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The life of the store it was numbered in.
    pub epoch: Epoch,
    /// Its number.
    pub sequence: u64,
    /// The boot in which it was recorded.
    pub boot: BootId,
    /// When it was recorded.
    pub recorded: Now,
}

/// All that is kept of one alarm through a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlarmState {
    /// Whether its rule stood in the configuration when this was written. A removed alarm keeps its state 30 days.
    pub configured: bool,
    /// The record that told of the last transition; none before it was numbered.
    #[serde(default)]
    pub told: Option<Told>,
    /// The last transition: state, occurrence, active, acknowledged, latched are those after it. Of a removed alarm
    /// they are what it returns to with its rule, and `at` is when it was removed.
    pub last: Transition,
}

impl AlarmState {
    /// Where it stands for the world: a removed alarm is closed, whatever it would return to.
    #[must_use]
    pub const fn state(&self) -> State {
        if self.configured { self.last.state } else { State::Norm }
    }
}
