//! PURE: one MQTT message and one subscription make one reading, or a reason why not.
//!
//! Terms: a **capture** is a level of the topic that the subscription names, `sensors/{device}/{name}`; its slug fills
//! the point's template. The value lies at a JSON pointer (RFC 6901); an empty pointer is the payload itself, which
//! then may also be bare text such as `ON`. Only scalars are values.

use serde_json::Value as Json;

use crate::{
    clock::{Now, parse_rfc3339},
    config::{Subscription, TemplateSegment, TopicLevel},
    reading::{Evidence, NameError, PointId, Reading, Segment, Value, slug},
};

/// Longest topic. Its text is kept as evidence, where escaping may double it: evidence is at most 1 KiB.
pub const TOPIC_LEN_MAX: usize = 400;
/// Largest payload. A detection with all its boxes has a few KiB; images do not belong here.
pub const PAYLOAD_LEN_MAX: usize = 64 * 1024;
/// Longest text value, in characters: a state or a plate, well inside a record of 4 KiB.
pub const TEXT_CHARS_MAX: usize = 256;
/// 2020-01-01: a device that claims an earlier time has no clock.
const TIME_MIN_MS: i64 = 1_577_836_800_000;
/// 2100-01-01: as far as a time is believed while our own clock cannot judge it.
const TIME_MAX_MS: i64 = 4_102_444_800_000;
/// How far a device's clock may run ahead of a trusted one.
const TIME_AHEAD_MAX_MS: i64 = 5 * 60 * 1_000;
/// Epoch numbers below are seconds: 10^11 s is the year 5138, 10^11 ms is 1973.
const EPOCH_SECONDS_BELOW: f64 = 1e11;

/// Why a message makes no reading.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The topic is longer than any device needs.
    #[error("the topic has {0} bytes, at most {TOPIC_LEN_MAX} are taken")]
    TopicTooLong(usize),
    /// Nothing of a level is left as a name.
    #[error("no name can be made of `{level}`: {reason}")]
    NoName {
        /// The level as received.
        level: String,
        /// Why not.
        reason: NameError,
    },
    /// Two different names become the same one.
    #[error("`{second}` would be called `{name}` like `{first}`: rename one of the two devices")]
    NameTaken {
        /// The name both would have.
        name: String,
        /// Who came first.
        first: String,
        /// Who came now.
        second: String,
    },
    /// The table of names is full.
    #[error("`{0}` is one name too many: narrow the subscription's topic")]
    TooManyNames(String),
    /// The device belongs to another source.
    #[error("device `{device}` belongs to {owner}: name the point differently")]
    OtherSource {
        /// The device.
        device: String,
        /// Its owner.
        owner: String,
    },
    /// The payload is too large.
    #[error("the payload has {0} bytes, at most {PAYLOAD_LEN_MAX} are taken")]
    TooLarge(usize),
    /// Neither JSON nor, where that is allowed, text.
    #[error("the payload is not JSON")]
    NotJson,
    /// Nothing at the pointer.
    #[error("the payload has nothing at `{0}`")]
    Missing(String),
    /// An object, an array or null.
    #[error("the value is an object, an array or null: point `value` at a text, a number, true or false")]
    NotScalar,
    /// NaN or infinite.
    #[error("the number is not finite")]
    NotFinite,
    /// A text of more than [`TEXT_CHARS_MAX`] characters or with control characters.
    #[error("the text is longer than {TEXT_CHARS_MAX} characters or has control characters")]
    BadText,
    /// The subscription's `values` does not know it.
    #[error("`{0}` is not among the subscription's `values`")]
    Unmapped(String),
}

impl Refused {
    /// A bounded word: one log line a kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::TopicTooLong(_) => "topic-too-long",
            Self::NoName { .. } => "no-name",
            Self::NameTaken { .. } => "name-taken",
            Self::TooManyNames(_) => "too-many-names",
            Self::OtherSource { .. } => "other-source",
            Self::TooLarge(_) => "too-large",
            Self::NotJson => "not-json",
            Self::Missing(_) => "missing",
            Self::NotScalar => "not-scalar",
            Self::NotFinite => "not-finite",
            Self::BadText => "bad-text",
            Self::Unmapped(_) => "unmapped",
        }
    }
}

/// A point's name, and of what foreign texts it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<'t> {
    /// The name.
    pub point: PointId,
    /// For each captured segment: the name up to and including it, and the text that was captured.
    pub captured: Vec<(String, &'t str)>,
}

/// Names the point that `topic` speaks of; `None` if the subscription does not ask for this topic.
#[must_use]
pub fn name<'t>(subscription: &Subscription, topic: &'t str) -> Option<Result<Named<'t>, Refused>> {
    let captures = captures(&subscription.topic, topic)?;
    Some(fill(&subscription.point.0, &captures, topic))
}

/// What each capture holds, in the order of the topic.
fn captures<'s, 't>(levels: &'s [TopicLevel], topic: &'t str) -> Option<Vec<(&'s str, &'t str)>> {
    let mut captures = Vec::new();
    let mut texts = topic.split('/');
    for (index, level) in levels.iter().enumerate() {
        match (level, texts.next()?) {
            (TopicLevel::Exactly(want), text) if want == text => {}
            // A wildcard at the first level does not match the broker's own topics (MQTT 5.0 §4.7.2).
            (TopicLevel::Capture(_), text) if index == 0 && text.starts_with('$') => return None,
            (TopicLevel::Capture(name), text) => captures.push((name.as_str(), text)),
            (TopicLevel::Exactly(_), _) => return None,
        }
    }
    texts.next().is_none().then_some(captures)
}

fn fill<'t>(template: &[TemplateSegment], captures: &[(&str, &'t str)], topic: &str) -> Result<Named<'t>, Refused> {
    if topic.len() > TOPIC_LEN_MAX {
        return Err(Refused::TopicTooLong(topic.len()));
    }
    let mut path = String::new();
    let mut captured = Vec::new();
    for segment in template {
        let original = match segment {
            TemplateSegment::Exactly(_) => None,
            TemplateSegment::Capture(name) => {
                captures.iter().find(|(capture, _)| capture == name).map(|(_, text)| *text)
            }
        };
        let name = match segment {
            TemplateSegment::Exactly(name) => name.clone(),
            TemplateSegment::Capture(_) => named_by(original.unwrap_or_default())?,
        };
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(name.as_str());
        captured.extend(original.map(|text| (path.clone(), text)));
    }
    let point = PointId::parse(&path).map_err(|reason| Refused::NoName { level: path, reason })?;
    Ok(Named { point, captured })
}

fn named_by(text: &str) -> Result<Segment, Refused> {
    let no_name = || Refused::NoName { level: text.escape_debug().collect(), reason: NameError::Segment(text.into()) };
    if text.chars().any(char::is_control) { Err(no_name()) } else { slug(text).ok_or_else(no_name) }
}

/// Reads the payload as a value of the named point.
pub fn read(
    subscription: &Subscription,
    named: &Named<'_>,
    topic: &str,
    payload: &[u8],
    now: Now,
) -> Result<Reading, Refused> {
    if payload.len() > PAYLOAD_LEN_MAX {
        return Err(Refused::TooLarge(payload.len()));
    }
    let json = parse(payload, subscription.value.is_empty())?;
    let found = json.pointer(&subscription.value).ok_or_else(|| Refused::Missing(subscription.value.clone()))?;
    let value = mapped(&subscription.values, scalar(found)?)?;
    let mut reading = Reading::good(named.point.clone(), value, now);
    reading.source_time_ms =
        subscription.time.as_deref().and_then(|pointer| json.pointer(pointer)).and_then(|time| moment(time, now));
    if named.captured.iter().any(|(path, text)| path.rsplit('/').next() != Some(*text)) {
        reading.evidence = Some(Evidence { topic: Some(topic.into()), ..Evidence::default() }.into());
    }
    Ok(reading)
}

/// The payload as JSON (nested at most 128 deep, serde_json's own bound), or as bare text where that can be a value.
fn parse(payload: &[u8], bare_allowed: bool) -> Result<Json, Refused> {
    let bare = |_| match std::str::from_utf8(payload).map(str::trim) {
        Ok(text) if bare_allowed && !text.starts_with(['{', '[', '"']) => Ok(Json::String(text.into())),
        Ok(_) | Err(_) => Err(Refused::NotJson),
    };
    let json = serde_json::from_slice(payload).or_else(bare)?;
    // A bare `NaN` or `1e999` is no JSON but still a number that is not finite, not a word.
    match &json {
        Json::String(text) if bare_allowed && text.parse().is_ok_and(|x: f64| !x.is_finite()) => {
            Err(Refused::NotFinite)
        }
        _ => Ok(json),
    }
}

fn scalar(json: &Json) -> Result<Value, Refused> {
    match json {
        Json::Bool(b) => Ok(Value::Bool(*b)),
        Json::Number(n) => {
            let whole = n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from));
            let float = || n.as_f64().and_then(Value::float).ok_or(Refused::NotFinite);
            whole.map_or_else(float, |i| Ok(Value::Integer(i)))
        }
        Json::String(text) if text.chars().count() <= TEXT_CHARS_MAX && !text.chars().any(char::is_control) => {
            Ok(Value::Text(text.as_str().into()))
        }
        Json::String(_) => Err(Refused::BadText),
        Json::Null | Json::Array(_) | Json::Object(_) => Err(Refused::NotScalar),
    }
}

/// Translates by the subscription's `values`. A word the map does not know has no meaning here.
fn mapped(values: &[(String, Value)], value: Value) -> Result<Value, Refused> {
    if values.is_empty() {
        return Ok(value);
    }
    let text = value.to_string();
    let known = values.iter().find(|(from, _)| *from == text);
    known.map(|(_, to)| to.clone()).ok_or(Refused::Unmapped(text))
}

/// The device's time in milliseconds since 1970 UTC; one that cannot be right is none.
fn moment(json: &Json, now: Now) -> Option<i64> {
    let ms = match json {
        Json::String(text) => parse_rfc3339(text)?,
        Json::Number(n) => {
            let x = n.as_f64()?;
            let ms = if x.abs() < EPOCH_SECONDS_BELOW { x * 1e3 } else { x };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a float to integer cast saturates; the range is checked next"
            )]
            let ms = ms.round() as i64;
            ms
        }
        Json::Null | Json::Bool(_) | Json::Array(_) | Json::Object(_) => return None,
    };
    let latest = if now.trusted { now.wall_ms.saturating_add(TIME_AHEAD_MAX_MS) } else { TIME_MAX_MS };
    (TIME_MIN_MS..=latest).contains(&ms).then_some(ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::mqtt::tests::{NOW, subscription};

    fn check(topic: &str, payload: &str) -> Result<(String, Value), String> {
        let subscription = subscription("sensors/{device}/{name}", "{device}/{name}");
        check_with(&subscription, topic, payload.as_bytes()).map(|r| (r.point.to_string(), r.value.expect("good")))
    }

    fn check_with(subscription: &Subscription, topic: &str, payload: &[u8]) -> Result<Reading, String> {
        let named = name(subscription, topic).ok_or("no match")?.map_err(|r| r.kind().to_owned())?;
        read(subscription, &named, topic, payload, NOW).map_err(|r| r.kind().to_owned())
    }

    #[test]
    fn captures_of_the_topic_name_the_point() {
        for (topic, expected) in [
            ("sensors/gate/temp", Ok("gate/temp")),
            ("sensors/Gerbang Utara/Suhu °C", Ok("gerbang-utara/suhu-c")),
            ("sensors/gate", Err("no match")),
            ("sensors/gate/temp/x", Err("no match")),
            ("lamps/gate/temp", Err("no match")),
            ("sensors//temp", Err("no-name")),
            ("sensors/°/temp", Err("no-name")),
            ("sensors/ga\nte/temp", Err("no-name")),
        ] {
            let got = check(topic, "1").map(|(point, _)| point);
            assert_eq!(got, expected.map(str::to_owned).map_err(str::to_owned), "{topic}");
        }
        assert_eq!(check(&format!("sensors/a/{}", "x".repeat(TOPIC_LEN_MAX)), "1"), Err("topic-too-long".into()));
        let everything = subscription("{device}/{name}", "{device}/{name}");
        assert_eq!(check_with(&everything, "$SYS/uptime", b"1").map(|r| r.point), Err("no match".into()));
    }

    #[test]
    fn only_finite_scalars_are_values() {
        for (payload, expected) in [
            ("21.5", Ok(Value::Float(21.5))),
            ("-7", Ok(Value::Integer(-7))),
            ("18446744073709551615", Ok(Value::Integer(u64::MAX.into()))),
            ("true", Ok(Value::Bool(true))),
            ("\"open\"", Ok(Value::Text("open".into()))),
            (" ON\n", Ok(Value::Text("ON".into()))),
            ("null", Err("not-scalar")),
            ("{\"a\":1}", Err("not-scalar")),
            ("[1]", Err("not-scalar")),
            ("{\"a\":", Err("not-json")),
            ("NaN", Err("not-finite")),
            ("1e999", Err("not-finite")),
            ("\"a\\u0000b\"", Err("bad-text")),
        ] {
            let got = check("sensors/a/b", payload).map(|(_, value)| value);
            assert_eq!(got, expected.map_err(str::to_owned), "{payload}");
        }
        let (fits, long) = ("é".repeat(TEXT_CHARS_MAX), "é".repeat(TEXT_CHARS_MAX + 1));
        assert!(check("sensors/a/b", &fits).is_ok());
        assert_eq!(check("sensors/a/b", &long), Err("bad-text".into()));
        assert_eq!(check("sensors/a/b", &"1".repeat(PAYLOAD_LEN_MAX + 1)), Err("too-large".into()));
        assert_eq!(check("sensors/a/b", &"[".repeat(PAYLOAD_LEN_MAX)), Err("not-json".into()));
    }

    #[test]
    fn a_pointer_finds_the_value_and_a_map_translates_it() {
        let mut s = subscription("s/{device}", "{device}/door");
        s.value = "/state/a~1b/0".into();
        s.values = vec![("ON".into(), true.into()), ("0".into(), false.into())];
        let value = |payload: &str| check_with(&s, "s/d", payload.as_bytes()).map(|r| r.value.expect("good"));
        assert_eq!(value(r#"{"state":{"a/b":["ON"]}}"#), Ok(true.into()));
        assert_eq!(value(r#"{"state":{"a/b":[0]}}"#), Ok(false.into()));
        assert_eq!(value(r#"{"state":{"a/b":["on"]}}"#), Err("unmapped".into()));
        assert_eq!(value(r#"{"state":{}}"#), Err("missing".into()));
        assert_eq!(value("ON"), Err("not-json".into()), "bare text has no inside to point into");
    }

    #[test]
    fn a_device_time_is_taken_if_it_can_be_right() {
        let mut s = subscription("s/{device}", "{device}/t");
        (s.value, s.time) = ("/v".into(), Some("/ts".into()));
        let at = NOW.wall_ms;
        for (time, expected) in [
            (format!("{at}"), Some(at)),
            (format!("{}", at / 1_000), Some(at / 1_000 * 1_000)),
            (format!("{}.25", at / 1_000), Some(at / 1_000 * 1_000 + 250)),
            (format!("{:?}", crate::clock::rfc3339(at)), Some(at)),
            ("0".into(), None),
            ("-1e300".into(), None),
            ("1e300".into(), None),
            (format!("{}", at + TIME_AHEAD_MAX_MS + 1), None),
            ("\"kemarin\"".into(), None),
            ("{}".into(), None),
        ] {
            let payload = format!(r#"{{"v":1,"ts":{time}}}"#);
            assert_eq!(check_with(&s, "s/d", payload.as_bytes()).map(|r| r.source_time_ms), Ok(expected), "{time}");
        }
        assert_eq!(check_with(&s, "s/d", br#"{"v":1}"#).map(|r| r.source_time_ms), Ok(None));
    }

    #[test]
    fn the_original_of_a_changed_name_is_kept_as_evidence() {
        let s = subscription("cam/{device}", "{device}/zone");
        let topic = |t: &str| check_with(&s, t, b"1").expect("reading").evidence.and_then(|e| e.topic.clone());
        assert_eq!(topic("cam/Kolam 1"), Some("cam/Kolam 1".into()));
        assert_eq!(topic("cam/kolam-1"), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(topic in ".{0,40}", payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            for s in [subscription("{device}/{name}", "{device}/{name}"), subscription("{a}", "{a}/x/{a}")] {
                let _ = check_with(&s, &topic, &payload);
            }
        }
    }
}
