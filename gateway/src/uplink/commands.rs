//! What the command center asks (DESIGN.md §5.4): pure, from the payload of `command` to a request or a refusal.
//!
//! Everything here comes from outside: sizes are bounded before anything is looked at, and no bytes can panic.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::message::{About, PAYLOAD_SIZE_MAX};
use crate::{
    alarm::{AlarmId, Severity},
    clock::{Now, parse_rfc3339},
    command::{Action, Answer, BY_LEN_MAX, COMMENT_LEN_MAX, ID_LEN_MAX, Outcome, Refusal, Request},
    reading::PointId,
    record::Epoch,
    text,
};

/// Longest response topic and correlation data that are given back, in bytes: an id has 128 characters.
const RESPONSE_LEN_MAX: usize = 512;
/// Longest word repeated in an answer to a command nobody knows, in characters.
const WORD_LEN_MAX: usize = 64;

/// How a command came in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Whether the broker had kept it.
    pub retained: bool,
    /// When it came.
    pub now: Now,
    /// The present uplink session.
    pub session: u64,
}

/// Reads a command. The refusal is the answer to send.
pub fn parse(payload: &[u8], arrival: Arrival) -> Result<Request, Box<Answer>> {
    let fields = object(payload).ok_or_else(|| refused("", "", Refusal::Malformed))?;
    let id = text_field(&fields, "id", ID_LEN_MAX).ok().flatten().filter(|id| !id.is_empty());
    let word = text_field(&fields, "command", WORD_LEN_MAX).ok().flatten().unwrap_or_default();
    let Some(id) = id else { return Err(refused("", &word, Refusal::Malformed)) };
    request(&fields, &id, &word, arrival).map_err(|code| refused(&id, &word, code))
}

fn object(payload: &[u8]) -> Option<Map<String, Value>> {
    if payload.len() > PAYLOAD_SIZE_MAX {
        return None;
    }
    match serde_json::from_slice(payload) {
        Ok(Value::Object(fields)) => Some(fields),
        _ => None,
    }
}

fn request(fields: &Map<String, Value>, id: &str, word: &str, arrival: Arrival) -> Result<Request, Refusal> {
    if arrival.retained {
        return Err(Refusal::Retained);
    }
    let expires = text_field(fields, "expires", WORD_LEN_MAX)?;
    let expires_ms = expires.map(|text| parse_rfc3339(&text).ok_or(Refusal::Malformed)).transpose()?;
    let session = number_field(fields, "session")?;
    if let Some(expires_ms) = expires_ms {
        let in_time =
            if arrival.now.trusted { arrival.now.wall_ms < expires_ms } else { session == Some(arrival.session) };
        if !in_time {
            return Err(Refusal::Expired);
        }
    }
    let by = text_field(fields, "by", BY_LEN_MAX)?.filter(|by| !by.is_empty()).ok_or(Refusal::Malformed)?;
    let comment = text_field(fields, "comment", COMMENT_LEN_MAX)?;
    let action = action(fields, word)?;
    Ok(Request { id: id.into(), by: by.into(), comment: comment.map(Arc::from), expires_ms, session, action })
}

fn action(fields: &Map<String, Value>, word: &str) -> Result<Action, Refusal> {
    match word {
        "acknowledge" => Ok(Action::Acknowledge {
            alarm: alarm(fields, "alarm")?.ok_or(Refusal::Malformed)?,
            occurrence: number_field(fields, "occurrence")?.ok_or(Refusal::Malformed)?,
            epoch: text_field(fields, "epoch", Epoch::LEN)?
                .map(|text| Epoch::parse(&text).ok_or(Refusal::Malformed))
                .transpose()?,
        }),
        "reset" => Ok(Action::Reset { alarm: alarm(fields, "alarm")?.ok_or(Refusal::Malformed)? }),
        "alarms" => Ok(Action::Alarms { cursor: alarm(fields, "cursor")? }),
        "read" => {
            let point = text_field(fields, "point", usize::MAX)?.ok_or(Refusal::Malformed)?;
            Ok(Action::Read { point: PointId::parse(&point).map_err(|_| Refusal::Malformed)? })
        }
        "test" => {
            let severity = fields.get("severity").filter(|value| !value.is_null());
            // Unless it is asked to try a severer way, a test asks nobody to act.
            let severity = severity.map_or(Ok(Severity::Info), Severity::deserialize);
            Ok(Action::Test { severity: severity.map_err(|_| Refusal::Malformed)? })
        }
        "" => Err(Refusal::Malformed),
        _ => Err(Refusal::UnknownCommand),
    }
}

fn alarm(fields: &Map<String, Value>, name: &str) -> Result<Option<AlarmId>, Refusal> {
    let text = text_field(fields, name, usize::MAX)?;
    text.map(|text| AlarmId::parse(&text).ok_or(Refusal::Malformed)).transpose()
}

/// A text of at most `len_max` characters, none of them a control character. Null counts as absent.
fn text_field(fields: &Map<String, Value>, name: &str, len_max: usize) -> Result<Option<String>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.chars().count() <= len_max && !text.chars().any(char::is_control) => {
            Ok(Some(text.clone()))
        }
        Some(_) => Err(Refusal::Malformed),
    }
}

fn number_field(fields: &Map<String, Value>, name: &str) -> Result<Option<u64>, Refusal> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(Refusal::Malformed),
    }
}

/// The answer that refuses a command.
#[must_use]
pub fn refused(id: &str, word: &str, code: Refusal) -> Box<Answer> {
    let mut key = String::from("refusal-");
    write!(key, "{code}").expect("writing to a string cannot fail");
    Box::new(Answer {
        id: id.into(),
        command: word.into(),
        result: Outcome::Refused,
        code: Some(code),
        text: Some(text::both(&key, &[])),
        data: None,
    })
}

/// Where the answer goes: `reply`, or the response topic if it lies below it; and the correlation data to give back.
#[must_use]
pub fn reply_to(about: &About, response_topic: Option<&str>, correlation: Option<Bytes>) -> (String, Option<Bytes>) {
    let reply = about.topic("reply");
    let honoured = response_topic.filter(|topic| {
        let below = topic.strip_prefix(reply.as_str()).and_then(|rest| rest.strip_prefix('/'));
        below.is_some_and(|rest| !rest.is_empty() && rest != super::READBACK)
            && topic.len() <= RESPONSE_LEN_MAX
            && !topic.chars().any(|c| c.is_control() || matches!(c, '+' | '#'))
    });
    let topic = honoured.map_or_else(|| reply.clone(), str::to_owned);
    (topic, correlation.filter(|data| data.len() <= RESPONSE_LEN_MAX))
}

/// The ids of a receipt; none if it cannot be read.
#[must_use]
pub fn receipt(payload: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Receipt {
        ids: Vec<String>,
    }
    if payload.len() > PAYLOAD_SIZE_MAX {
        return Vec::new();
    }
    serde_json::from_slice::<Receipt>(payload).map(|receipt| receipt.ids).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{config::Language, reading::Segment};

    const NOW: Now = Now { mono_ms: 1_000, wall_ms: 1_795_262_671_220, trusted: true };

    fn arrival(now: Now) -> Arrival {
        Arrival { retained: false, now, session: 7 }
    }

    fn code(json: &str, arrival: Arrival) -> Option<Refusal> {
        parse(json.as_bytes(), arrival).err().map(|answer| answer.code.expect("a refusal has a code"))
    }

    #[test]
    fn every_command_becomes_a_request() {
        let cases = [
            (
                r#"{"id":"1","command":"acknowledge","alarm":"panel/door/open","occurrence":3,"by":"ani"}"#,
                "acknowledge",
            ),
            (r#"{"id":"1","command":"reset","alarm":"panel/door/open","by":"ani","comment":null}"#, "reset"),
            (r#"{"id":"1","command":"alarms","by":"ani"}"#, "alarms"),
            (r#"{"id":"1","command":"read","point":"panel/door","by":"ani","unheard":[1]}"#, "read"),
            (r#"{"id":"1","command":"test","severity":"critical","by":"ani"}"#, "test"),
        ];
        for (json, word) in cases {
            let request = parse(json.as_bytes(), arrival(NOW)).expect(json);
            assert_eq!((request.action.word(), &*request.id, &*request.by), (word, "1", "ani"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        let with = |rest: &str| format!(r#"{{"id":"1","command":"reset","alarm":"a/b/c","by":"x"{rest}}}"#);
        let cases = [
            ("nonsense".to_owned(), Refusal::Malformed),
            (r#"{"command":"alarms","by":"x"}"#.to_owned(), Refusal::Malformed),
            (r#"{"id":"1","by":"x"}"#.to_owned(), Refusal::Malformed),
            (r#"{"id":"1","command":"alarms"}"#.to_owned(), Refusal::Malformed),
            (r#"{"id":"1","command":"dance","by":"x"}"#.to_owned(), Refusal::UnknownCommand),
            (r#"{"id":"1","command":"read","point":"panel","by":"x"}"#.to_owned(), Refusal::Malformed),
            (with(r#","comment":"a\u0007b""#), Refusal::Malformed),
            (with(&format!(r#","comment":"{}""#, "é".repeat(501))), Refusal::Malformed),
            (with(r#","expires":"besok""#), Refusal::Malformed),
            (with(r#","expires":"2026-11-21T12:04:31.220Z""#), Refusal::Expired),
            (format!(r#"{{"id":"1","command":"alarms","by":"x","pad":"{}"}}"#, "p".repeat(40_000)), Refusal::Malformed),
        ];
        for (json, expected) in cases {
            assert_eq!(code(&json, arrival(NOW)), Some(expected), "{json}");
        }
        assert_eq!(code(&with(&format!(r#","comment":"{}""#, "é".repeat(500))), arrival(NOW)), None);
        assert_eq!(code(&with(r#","expires":"2026-11-21T12:04:31.221Z""#), arrival(NOW)), None);
        assert_eq!(code(&with(""), Arrival { retained: true, ..arrival(NOW) }), Some(Refusal::Retained));
    }

    #[test]
    fn an_untrusted_clock_asks_for_the_present_session() {
        let untrusted = arrival(Now { trusted: false, wall_ms: 0, ..NOW });
        let with = |rest: &str| format!(r#"{{"id":"1","command":"alarms","by":"x"{rest}}}"#);
        let late = r#","expires":"1999-01-01T00:00:00Z""#;
        assert_eq!(code(&with(late), untrusted), Some(Refusal::Expired));
        assert_eq!(code(&with(&format!(r#"{late},"session":6"#)), untrusted), Some(Refusal::Expired));
        assert_eq!(code(&with(&format!(r#"{late},"session":7"#)), untrusted), None);
        assert_eq!(code(&with(r#","session":6"#), untrusted), None, "without `expires` nothing expires");
    }

    #[test]
    fn every_refusal_has_its_sentence_in_both_languages() {
        use Refusal::*;
        for code in [
            Malformed,
            UnknownCommand,
            Retained,
            Expired,
            UnknownAlarm,
            UnknownPoint,
            OtherOccurrence,
            OtherEpoch,
            AlreadyAcknowledged,
            NotStanding,
            NotAcknowledged,
            StillActive,
            NotLatched,
            Busy,
        ] {
            assert!(text::exists(&format!("refusal-{code}")), "{code}");
            assert_eq!(serde_json::to_value(code).expect("a word"), code.to_string());
        }
    }

    #[test]
    fn answers_go_below_reply_and_nowhere_else() {
        let about = About {
            gateway: Segment::parse("taman-01").expect("a segment"),
            prefix: "gardu/v1".into(),
            site: "taman".into(),
            location: None,
            language: Language::Indonesian,
        };
        let to = |topic| reply_to(&about, topic, None).0;
        assert_eq!(to(None), "gardu/v1/taman-01/reply");
        assert_eq!(to(Some("gardu/v1/taman-01/reply/desk-3")), "gardu/v1/taman-01/reply/desk-3");
        for bad in [
            "gardu/v1/taman-01/reply/",
            "gardu/v1/taman-01/replyx",
            "gardu/v1/other/reply/x",
            "gardu/v1/taman-01/reply/#",
            "gardu/v1/taman-01/reply/readback",
            "$SYS/x",
            "",
        ] {
            assert_eq!(to(Some(bad)), "gardu/v1/taman-01/reply", "{bad}");
        }
        assert_eq!(reply_to(&about, None, Some(Bytes::from(vec![0; 600]))).1, None);
    }

    #[test]
    fn a_receipt_names_ids() {
        assert_eq!(receipt(br#"{"ids":["a","b"]}"#), ["a", "b"]);
        assert!(receipt(b"[1]").is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (parse(&bytes, arrival(NOW)), receipt(&bytes));
        }

        #[test]
        fn arbitrary_fields_never_panic(
            id in "\\PC{0,3}", word in "acknowledge|reset|alarms|read|test|x", other in ".*", number in any::<i64>(),
        ) {
            let json = serde_json::json!({
                "id": id, "command": word, "by": other, "alarm": other, "point": other, "cursor": other,
                "occurrence": number, "session": number, "expires": other, "severity": other,
            });
            let _ = parse(json.to_string().as_bytes(), arrival(NOW));
        }
    }
}
