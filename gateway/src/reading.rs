//! The noun every stage speaks: a value of a named point, how far it can be trusted, and when it was taken.
//!
//! Terms: a **point** is one named thing (`panel/door`, `cam07/intrusion/kolam`); its first segment is the
//! **device**. A **reading** is what a source says about a point at one moment. Field trouble is not an error, it is
//! a reading with bad quality.

use std::{borrow::Borrow, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::clock::Now;

/// Longest segment, in bytes (DESIGN.md §3).
pub const SEGMENT_LEN_MAX: usize = 64;
/// A point has 2 to 4 segments.
pub const POINT_SEGMENTS_MAX: usize = 4;
/// Integers beyond ±(2^53−1) are JSON strings: most receivers parse numbers as doubles (RFC 8259 §6, I-JSON).
const EXACT_INTEGER_MAX: i128 = (1 << 53) - 1;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A segment is empty, too long or has a character outside `[a-z0-9_-]`.
    #[error("`{0}` is not a name: use 1 to 64 of a-z, 0-9, `_` and `-`")]
    Segment(String),
    /// Too few or too many segments.
    #[error("`{text}` has {found} segments: a point has 2 to 4, such as `panel/door`")]
    Count {
        /// The text as given.
        text: String,
        /// How many segments it has.
        found: usize,
    },
}

/// One segment of a name: 1 to 64 of `[a-z0-9_-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Segment(Arc<str>);

impl Segment {
    /// Parses one segment.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if is_segment(text) { Ok(Self(text.into())) } else { Err(NameError::Segment(text.into())) }
    }

    /// The segment as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Segment {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is one valid segment.
#[must_use]
pub fn is_segment(text: &str) -> bool {
    (1..=SEGMENT_LEN_MAX).contains(&text.len())
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

/// Lower-cases foreign text and replaces what a segment cannot hold by `-`; `None` when nothing is left.
///
/// The caller keeps the original: two originals with one slug must be refused (DESIGN.md §3).
#[must_use]
pub fn slug(text: &str) -> Option<Segment> {
    let mut out = String::with_capacity(text.len().min(SEGMENT_LEN_MAX));
    for c in text.chars().flat_map(char::to_lowercase) {
        let c = if matches!(c, 'a'..='z' | '0'..='9' | '_') { c } else { '-' };
        if !(c == '-' && (out.is_empty() || out.ends_with('-'))) {
            out.push(c);
        }
        if out.len() == SEGMENT_LEN_MAX {
            break;
        }
    }
    Segment::parse(out.trim_end_matches('-')).ok()
}

/// The name of a point: 2 to 4 segments joined by `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PointId(Arc<str>);

impl PointId {
    /// Parses `device/name`, `device/a/b` or `device/a/b/c`.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let found = text.split('/').count();
        if !(2..=POINT_SEGMENTS_MAX).contains(&found) {
            return Err(NameError::Count { text: text.into(), found });
        }
        if let Some(bad) = text.split('/').find(|s| !is_segment(s)) {
            return Err(NameError::Segment(bad.into()));
        }
        Ok(Self(text.into()))
    }

    /// The point `name` of `device`.
    #[must_use]
    pub fn of(device: &Segment, name: &Segment) -> Self {
        Self(format!("{device}/{name}").into())
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first segment.
    #[must_use]
    pub fn device(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(device, _)| device)
    }
}

impl Borrow<str> for PointId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PointId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What a point says.
///
/// In JSON: `true`, a number, or a string; integers beyond ±(2^53−1) are strings. A float is never NaN or infinite
/// ([`Value::float`] refuses them).
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A contact, a coil, a detection.
    Bool(bool),
    /// A register or counter, unscaled. `i128` holds every `u64` and `i64`.
    Integer(i128),
    /// A measured quantity in the point's unit; always finite.
    Float(f64),
    /// Text of the device.
    Text(Arc<str>),
}

impl Value {
    /// A finite float, or `None` for NaN and infinities, which are bad quality and never a value.
    #[must_use]
    pub fn float(x: f64) -> Option<Self> {
        x.is_finite().then_some(Self::Float(x))
    }

    /// An `f32` of the wire as the double with the same shortest decimal form, so that 21.7 stays `21.7`.
    #[must_use]
    pub fn float_of_f32(x: f32) -> Option<Self> {
        Self::float(x.to_string().parse().unwrap_or(f64::NAN))
    }

    /// The value as a number; a boolean counts as 0 or 1, a text as none.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Bool(b) => Some(f64::from(u8::from(*b))),
            #[expect(clippy::cast_precision_loss, reason = "limits are doubles; 2^53 is far above any field quantity")]
            Self::Integer(i) => Some(*i as f64),
            Self::Float(x) => Some(*x),
            Self::Text(_) => None,
        }
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(b) => write!(f, "{b}"),
            Self::Integer(i) => write!(f, "{i}"),
            Self::Float(x) => write!(f, "{x}"),
            Self::Text(t) => f.write_str(t),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bool(b) => serializer.serialize_bool(*b),
            Self::Integer(i) if i.abs() > EXACT_INTEGER_MAX => serializer.serialize_str(&i.to_string()),
            #[expect(clippy::cast_possible_truncation, reason = "the guard above keeps it within 2^53")]
            Self::Integer(i) => serializer.serialize_i64(*i as i64),
            Self::Float(x) => serializer.serialize_f64(*x),
            Self::Text(t) => serializer.serialize_str(t),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean, a number or a string")
            }
            fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
                Ok(Value::Bool(b))
            }
            fn visit_i64<E>(self, i: i64) -> Result<Value, E> {
                Ok(Value::Integer(i.into()))
            }
            fn visit_u64<E>(self, i: u64) -> Result<Value, E> {
                Ok(Value::Integer(i.into()))
            }
            fn visit_f64<E: de::Error>(self, x: f64) -> Result<Value, E> {
                Value::float(x).ok_or_else(|| E::custom("not a finite number"))
            }
            fn visit_str<E>(self, t: &str) -> Result<Value, E> {
                Ok(Value::Text(t.into()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// How far a reading can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quality {
    /// Taken from the device as configured.
    Good,
    /// Not read yet since the start.
    Uncertain,
    /// No usable value; the reason says why.
    Bad,
}

/// Why a reading is not good. The words appear in payloads (`data.reason`), metrics and texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Not read since the start.
    NotYetRead,
    /// The device did not answer in time.
    Timeout,
    /// The bus or broker cannot be reached.
    LinkDown,
    /// The device answered with a Modbus exception.
    Exception,
    /// The answer had the wrong length, unit or function, or could not be parsed.
    Malformed,
    /// The value is one of the point's `invalid` sentinels.
    Sentinel,
    /// The value lies outside the point's `range`.
    OutOfRange,
    /// NaN or infinite.
    NotANumber,
    /// Nothing was heard for longer than `stale`.
    Stale,
}

impl Reason {
    /// Every reason, for bounded metric labels.
    pub const ALL: [Self; 9] = [
        Self::NotYetRead,
        Self::Timeout,
        Self::LinkDown,
        Self::Exception,
        Self::Malformed,
        Self::Sentinel,
        Self::OutOfRange,
        Self::NotANumber,
        Self::Stale,
    ];

    /// The word used in payloads and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotYetRead => "not-yet-read",
            Self::Timeout => "timeout",
            Self::LinkDown => "link-down",
            Self::Exception => "exception",
            Self::Malformed => "malformed",
            Self::Sentinel => "sentinel",
            Self::OutOfRange => "out-of-range",
            Self::NotANumber => "not-a-number",
            Self::Stale => "stale",
        }
    }
}

/// Where a detection came from: words of the camera, never an image (at most 1 KiB encoded).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Maker or software that spoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Topic or rule path as received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Rule or zone as the camera names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Class of the detected object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// What a source says about a point at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Whose value.
    pub point: PointId,
    /// The value; `None` whenever quality is bad.
    pub value: Option<Value>,
    /// How far it can be trusted.
    pub quality: Quality,
    /// Why quality is not good.
    pub reason: Option<Reason>,
    /// When the gateway took it.
    pub at: Now,
    /// When the device says it happened, in milliseconds since 1970 UTC, where it says so.
    pub source_time_ms: Option<i64>,
    /// Words of the camera, for a detection.
    pub evidence: Option<Arc<Evidence>>,
}

impl Reading {
    /// A value taken now.
    #[must_use]
    pub fn good(point: PointId, value: Value, at: Now) -> Self {
        Self {
            point,
            value: Some(value),
            quality: Quality::Good,
            reason: None,
            at,
            source_time_ms: None,
            evidence: None,
        }
    }

    /// No usable value, and why.
    #[must_use]
    pub fn bad(point: PointId, reason: Reason, at: Now) -> Self {
        Self {
            point,
            value: None,
            quality: Quality::Bad,
            reason: Some(reason),
            at,
            source_time_ms: None,
            evidence: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_has_two_to_four_segments_of_the_allowed_letters() {
        for good in ["panel/door", "cam07/intrusion/kolam", "a/b/c/d", "x_1/y-2"] {
            assert_eq!(PointId::parse(good).expect(good).as_str(), good);
        }
        for bad in ["panel", "a/b/c/d/e", "Panel/door", "panel/", "/door", "panel/pintu taman", "panel/é"] {
            assert!(PointId::parse(bad).is_err(), "{bad}");
        }
        assert!(PointId::parse(&format!("a/{}", "x".repeat(65))).is_err());
    }

    #[test]
    fn foreign_text_becomes_a_slug_or_nothing() {
        assert_eq!(slug("Zona Kolam #2").expect("slug").as_str(), "zona-kolam-2");
        assert_eq!(slug("--ÅÄ--"), None);
        assert_eq!(slug(&"x".repeat(99)).expect("cut").as_str().len(), SEGMENT_LEN_MAX);
    }

    #[test]
    fn values_travel_as_json_without_losing_digits() {
        let json = |v: Value| serde_json::to_string(&v).expect("json");
        assert_eq!(json(Value::Bool(true)), "true");
        assert_eq!(json(Value::Integer(u64::MAX.into())), "\"18446744073709551615\"");
        assert_eq!(json(Value::Integer(-9_007_199_254_740_991)), "-9007199254740991");
        assert_eq!(json(Value::float_of_f32(21.7).expect("finite")), "21.7");
        assert_eq!(Value::float_of_f32(f32::NAN), None);
        assert_eq!(serde_json::from_str::<Value>("31.5").expect("value"), Value::Float(31.5));
    }

    #[test]
    fn every_reason_is_spelled_the_same_everywhere() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_string(&reason).expect("json"), format!("{:?}", reason.as_str()));
        }
    }
}
