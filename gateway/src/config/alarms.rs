//! `[[alarm]]`: rules, each on points that exist and can say what the rule waits for.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc, time::Duration};

use super::{
    Language,
    document::{Node, Section},
    modbus::severity,
    mqtt::SILENCE,
    names::{Names, Says, clash, overlap},
    problem::{Spot, Word},
};
use crate::{
    alarm::{
        Severity, Texts,
        rule::{Acknowledgement, Condition, Latch, Naming, Rule, Selector},
    },
    reading::{SEGMENT_LEN_MAX, Segment, Value},
    text,
};

/// A delay of more than a day is a schedule, not a delay.
const DELAY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);
/// Longest message: an SMS and a half; both languages stay far below a record's 4 KiB.
const MESSAGE_CHARS_MAX: usize = 240;
/// Room for `-h` and `-l` behind a name.
const NAME_LEN_MAX: usize = SEGMENT_LEN_MAX - 2;

/// Rules by name, with pattern and place, so that no alarm is made twice.
type Taken = BTreeMap<String, Vec<(String, Spot)>>;

/// Reads all rules; two limits make two.
pub(super) fn rules(sections: &[Section<'_>], names: &Names, language: Language) -> Vec<Rule> {
    let mut taken = Taken::new();
    sections.iter().flat_map(|section| rule(section, names, language, &mut taken).unwrap_or_default()).collect()
}

fn rule(section: &Section<'_>, names: &Names, language: Language, taken: &mut Taken) -> Option<Vec<Rule>> {
    let name = section.required("name", "\"door-open\"", |node| match node.segment()? {
        name if ["communication", "stale"].contains(&name.as_str()) => {
            node.wrong("check-reserved", &[("name", name.as_str().into())])
        }
        name if name.as_str().len() > NAME_LEN_MAX => {
            node.wrong("check-line", &[("max", NAME_LEN_MAX.to_string().into())])
        }
        name => Some((name, node)),
    });
    let point = section.required("point", "\"panel/door\"", |node| selector(node, names));
    let says = point.as_ref().and_then(|(select, _)| names.says(&select.as_point()?)).unwrap_or(Says::Anything);
    let when = section.required("when", "{ is = true }", |node| conditions(node, says));
    let severity = section.required("severity", "\"high\"", severity);
    let on_delay = section.or("on_delay", Duration::ZERO, |node| node.duration(DELAY));
    let off_delay = section.or("off_delay", Duration::ZERO, |node| node.duration(DELAY));
    let latch = if section.or("latch", false, Node::boolean) { Latch::Latching } else { Latch::NonLatching };
    let acknowledgement = if section.or("ack_required", true, Node::boolean) {
        Acknowledgement::Required
    } else {
        Acknowledgement::NotRequired
    };
    let message = section.optional("message", |node| message(node, language));
    section.finish();
    let ((name, name_node), (select, pattern)) = (name?, point?);
    let rules = when?.into_iter().map(|(suffix, when)| {
        let name = Segment::parse(&format!("{name}{suffix}")).expect("a checked name with room for a suffix");
        take(taken, &name, &pattern, name_node);
        let args = [("rule", name.as_str().into()), ("point", pattern.as_str().into())];
        Rule {
            message: message.clone().unwrap_or_else(|| text::both("alarm-rule", &args)),
            name,
            select: select.clone(),
            naming: Naming::PointAndRule,
            when,
            severity: severity.unwrap_or(Severity::Medium),
            on_delay,
            off_delay,
            latch,
            acknowledgement,
        }
    });
    Some(rules.collect())
}

/// Two rules of one name may not meet on a point: their alarms would have one name.
fn take(taken: &mut Taken, name: &Segment, pattern: &str, node: Node<'_>) {
    let others = taken.entry(name.as_str().to_owned()).or_default();
    match others.iter().find(|(other, _)| overlap(other, pattern)) {
        Some((_, spot)) => clash(name.as_str(), *spot, node),
        None => others.push((pattern.to_owned(), node.spot)),
    }
}

/// A point or pattern that some source can have.
fn selector(node: Node<'_>, names: &Names) -> Option<(Selector, String)> {
    let text = node.text()?;
    let Some(select) = Selector::parse(text) else { return node.wrong("check-pattern", &[("value", text.into())]) };
    let exists = select.as_point().map_or_else(|| names.any(text), |point| names.says(&point).is_some());
    if exists {
        return Some((select, text.to_owned()));
    }
    let (kind, near) = match select.as_point() {
        None => ("check-pattern-nothing", None),
        Some(_) => {
            names.nearest(text, node.findings).map_or(("check-point", None), |near| ("check-point-near", Some(near)))
        }
    };
    node.absent::<()>(kind, &[("value", text.into()), ("near", near.unwrap_or_default().into())]);
    // Known to be missing; the rest of the rule can still be checked.
    Some((select, text.to_owned()))
}

/// The one condition of `when`, or an upper and a lower limit, with the suffix of each rule's name.
fn conditions(node: Node<'_>, says: Says) -> Option<Vec<(&'static str, Condition)>> {
    let section = node.section("when")?;
    section.later(&["high_high", "high", "low", "low_low", "rate"]);
    let is = section.optional("is", |node| is(node, says));
    let limits = limits(&section, says);
    let increments = section.optional("increments", only_true).is_some();
    if increments && !matches!(says, Says::Counter(_) | Says::Anything) {
        section.wrong("increments", "check-increments", &[]);
    }
    let stale = section.optional("stale", |node| node.duration(SILENCE));
    let bad = section.optional("bad", only_true).is_some();
    section.finish();
    let kinds = ["is", "increments", "stale", "bad"].into_iter().filter(|key| section.has(key)).count()
        + usize::from(section.has("above") || section.has("below"));
    let later = ["high_high", "high", "low", "low_low", "rate"].into_iter().any(|key| section.has(key));
    match kinds {
        0 if later => return None,
        0 => return node.absent("check-when-empty", &[]),
        1 => {}
        _ => return node.wrong("check-when-one", &[]),
    }
    let one = |condition: Condition| Some(vec![("", condition)]);
    match (is, increments, stale, bad) {
        (Some(value), ..) => one(Condition::Is(value)),
        (_, true, ..) => one(Condition::Increments),
        (_, _, Some(silence), _) => one(Condition::Stale(silence)),
        (_, _, _, true) => one(Condition::Bad),
        (None, false, None, false) => limits,
    }
}

/// `true`: the condition has no other value.
fn only_true(node: Node<'_>) -> Option<()> {
    if node.boolean()? { Some(()) } else { node.wrong("check-only-true", &[]) }
}

/// The value to wait for, of the kind that the point says.
fn is(node: Node<'_>, says: Says) -> Option<Value> {
    let value = node.value()?;
    let fits = match (&value, says) {
        (_, Says::Anything)
        | (Value::Bool(_), Says::Bool)
        | (Value::Text(_), Says::Text)
        | (Value::Integer(_) | Value::Float(_), Says::Number(None) | Says::Counter(None)) => true,
        (Value::Integer(_) | Value::Float(_), Says::Number(Some((low, high))) | Says::Counter(Some((low, high)))) => {
            value.as_f64().is_some_and(|x| (low..=high).contains(&x))
        }
        (_, Says::Bool | Says::Text | Says::Number(_) | Says::Counter(_)) => false,
    };
    if fits { Some(value) } else { node.wrong("check-is", &[("value", value.to_string().into()), says_word(says)]) }
}

fn says_word(says: Says) -> (&'static str, Word) {
    let word = match says {
        Says::Bool => "check-says-bool",
        Says::Text => "check-says-text",
        Says::Number(Some(_)) | Says::Counter(Some(_)) => "check-says-number-range",
        Says::Number(None) | Says::Counter(None) | Says::Anything => "check-says-number",
    };
    ("says", Word::Say(word))
}

/// `above`, `below`, or both, with their `deadband`.
fn limits(section: &Section<'_>, says: Says) -> Option<Vec<(&'static str, Condition)>> {
    let range = match says {
        Says::Number(range) | Says::Counter(range) => range,
        Says::Bool | Says::Text | Says::Anything => None,
    };
    let limit = |node: Node<'_>| match (says, range, node.number()?) {
        (Says::Bool | Says::Text, ..) => node.wrong("check-limit-type", &[says_word(says)]),
        // At the edge the value is still good, beyond it is bad: the condition could never hold.
        (_, Some((_, high)), limit) if node.key == "above" && limit >= high => node.wrong("check-limit-range", &[]),
        (_, Some((low, _)), limit) if node.key == "below" && limit <= low => node.wrong("check-limit-range", &[]),
        (_, _, limit) => Some(limit),
    };
    let (above, below) = (section.optional("above", limit), section.optional("below", limit));
    let deadband = section.get("deadband").map(|node| (node, node.number_from_zero()));
    if let (Some((node, _)), false) = (deadband, section.has("above") || section.has("below")) {
        node.wrong::<()>("check-deadband-limit", &[]);
    }
    let width = deadband.and_then(|(_, width)| width).unwrap_or_default();
    let room = room(above, below, range);
    if let (Some((node, Some(_))), true) = (deadband, width >= room) {
        node.wrong::<()>("check-deadband-wide", &[("room", room.to_string().into())]);
    }
    match (above, below) {
        (Some(above), Some(below)) if below >= above => section.get("below")?.wrong("check-limits-order", &[]),
        (Some(above), Some(below)) => Some(vec![
            ("-h", Condition::Above { limit: above, deadband: width }),
            ("-l", Condition::Below { limit: below, deadband: width }),
        ]),
        (Some(limit), None) => Some(vec![("", Condition::Above { limit, deadband: width })]),
        (None, Some(limit)) => Some(vec![("", Condition::Below { limit, deadband: width })]),
        (None, None) => None,
    }
}

/// How far a value can come back: to the other limit, or to the edge of what is plausible.
fn room(above: Option<f64>, below: Option<f64>, range: Option<(f64, f64)>) -> f64 {
    let (low, high) = range.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
    match (above, below) {
        (Some(above), Some(below)) if below < above => above - below,
        (Some(_), Some(_)) | (None, None) => f64::INFINITY,
        (Some(above), None) => above - low,
        (None, Some(below)) => high - below,
    }
}

/// One text in the configuration's language, or `{ id, en }` with at least that one.
pub(super) fn message(node: Node<'_>, language: Language) -> Option<Texts> {
    let text = |node: Node<'_>| node.line(MESSAGE_CHARS_MAX).map(Arc::from);
    if !node.is_table() {
        let text = text(node);
        return Some(match language {
            Language::Indonesian => Texts { id: text, en: None },
            Language::English => Texts { id: None, en: text },
        });
    }
    let section = node.section(node.key)?;
    let texts = Texts { id: section.optional("id", text), en: section.optional("en", text) };
    let must = language.code();
    if !section.has(must) {
        section.missing("check-message-language", &[("language", must.into())]);
    }
    section.finish();
    Some(texts)
}
