//! What people may ask of the gateway, and what it answers (DESIGN.md §5.4).
//!
//! A request is parsed once, at the edge; holding a [`Request`] is the proof that its fields make sense. An acting
//! command with the same id acts once and is answered the same, also across restarts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    alarm::{AlarmId, Severity, Texts},
    reading::PointId,
    record::Epoch,
};

/// Longest command id, user name and comment, in characters.
pub const ID_LEN_MAX: usize = 128;
/// Longest `by`, in characters.
pub const BY_LEN_MAX: usize = 128;
/// Longest comment, in characters (DESIGN.md §5.2).
pub const COMMENT_LEN_MAX: usize = 500;

/// One request, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Chosen by the sender; the same id acts once.
    pub id: Arc<str>,
    /// Who asks, as the sender says.
    pub by: Arc<str>,
    /// What they say.
    pub comment: Option<Arc<str>>,
    /// Not to be carried out after this, milliseconds since 1970 UTC.
    pub expires_ms: Option<i64>,
    /// The uplink session the sender saw, which stands in for `expires` while the clock is untrusted.
    pub session: Option<u64>,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Acknowledge one occurrence.
    Acknowledge {
        /// Which alarm.
        alarm: AlarmId,
        /// Which occurrence; an older or newer one is refused.
        occurrence: u64,
        /// The epoch the sender saw it in, if it says.
        epoch: Option<Epoch>,
    },
    /// Reset a latched alarm whose condition ended.
    Reset {
        /// Which alarm.
        alarm: AlarmId,
    },
    /// List the standing alarms, a page at a time.
    Alarms {
        /// Alarms after this one.
        cursor: Option<AlarmId>,
    },
    /// Say what a point last read.
    Read {
        /// Which point.
        point: PointId,
    },
    /// Raise and clear an alarm that is marked as a test.
    Test {
        /// How bad to call it.
        severity: Severity,
    },
}

impl Action {
    /// The word of the command.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Acknowledge { .. } => "acknowledge",
            Self::Reset { .. } => "reset",
            Self::Alarms { .. } => "alarms",
            Self::Read { .. } => "read",
            Self::Test { .. } => "test",
        }
    }

    /// Whether it changes something: then it acts once per id and is recorded.
    #[must_use]
    pub const fn acts(&self) -> bool {
        match self {
            Self::Acknowledge { .. } | Self::Reset { .. } | Self::Test { .. } => true,
            Self::Alarms { .. } | Self::Read { .. } => false,
        }
    }
}

/// Why a request is not carried out. The code is part of the contract; the text is for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Not JSON, or a field is missing or of the wrong kind.
    #[error("malformed")]
    Malformed,
    /// A word this version does not know.
    #[error("unknown-command")]
    UnknownCommand,
    /// Retained commands are refused: they would act again at every reconnect.
    #[error("retained")]
    Retained,
    /// Its `expires` has passed, or cannot be judged and the session is not the present one.
    #[error("expired")]
    Expired,
    /// No such alarm stands or ever stood.
    #[error("unknown-alarm")]
    UnknownAlarm,
    /// No such point.
    #[error("unknown-point")]
    UnknownPoint,
    /// Names another occurrence than the present one.
    #[error("other-occurrence")]
    OtherOccurrence,
    /// Names another epoch than the present one.
    #[error("other-epoch")]
    OtherEpoch,
    /// Already acknowledged.
    #[error("already-acknowledged")]
    AlreadyAcknowledged,
    /// Nothing to acknowledge: the alarm is quiet.
    #[error("not-standing")]
    NotStanding,
    /// Reset before it was acknowledged.
    #[error("not-acknowledged")]
    NotAcknowledged,
    /// Reset while its condition still holds.
    #[error("still-active")]
    StillActive,
    /// Reset of an alarm that does not latch.
    #[error("not-latched")]
    NotLatched,
    /// Too many commands at once.
    #[error("busy")]
    Busy,
}

/// What a request is answered: the payload of `reply`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's id; empty where it could not be read.
    pub id: Arc<str>,
    /// The request's word; empty where it could not be read.
    pub command: Arc<str>,
    /// Whether it was carried out.
    pub result: Outcome,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Refusal>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Texts>,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

/// Whether a request was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Carried out.
    Ok,
    /// Not carried out; `code` says why.
    Refused,
}

impl Outcome {
    /// The word in payloads and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
        }
    }
}
