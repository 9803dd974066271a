//! `[[mqtt]]`: brokers to listen to, addresses to listen on, and what their messages mean.

use std::{ops::RangeInclusive, slice, sync::Arc, time::Duration};

use super::{
    Endpoint, MqttInput, PointTemplate, Report, Subscription, TemplateSegment, TopicLevel,
    center::{self, Listeners},
    document::{Node, Section},
    files,
    names::{Names, Owner, as_pattern, clash, overlap},
    problem::Spot,
    read::{Measured, Secrets},
    tls, units,
};
use crate::{
    alarm::{
        Severity,
        rule::{Acknowledgement, Condition, Latch, Naming, Rule, Selector},
    },
    reading::{POINT_SEGMENTS_MAX, Segment, Value, is_segment},
    text,
};

/// Silence: a device that reports more often than once a second is polled, one silent for a month is gone.
pub(super) const SILENCE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 86_400);
/// Words of one `values` map: the states of one device.
const VALUES_MAX: usize = 64;
/// Formats of cameras: a later version.
const FORMATS_LATER: [&str; 5] = ["frigate", "onvif", "axis", "hikvision", "dahua"];

/// Reads all inputs, and makes the built-in `stale` rules of their subscriptions.
pub(super) fn inputs<'a>(
    sections: &[Section<'a>],
    names: &mut Names,
    listeners: &mut Listeners,
    secrets: Secrets<'_>,
    report: impl Fn(&Section<'a>, Measured) -> Report,
) -> (Vec<MqttInput>, Vec<Rule>) {
    let mut seen: Vec<(Segment, Spot)> = Vec::new();
    let (mut inputs, mut rules, mut silences) = (Vec::new(), Vec::new(), Vec::new());
    for (index, section) in sections.iter().enumerate() {
        let name = section.required("name", "\"cctv\"", |node| {
            let name = node.segment()?;
            match seen.iter().find(|(other, _)| *other == name) {
                Some((_, spot)) => clash(name.as_str(), *spot, node),
                None => seen.push((name.clone(), node.spot)),
            }
            Some(name)
        });
        let endpoint = endpoint(section, listeners, secrets);
        let children = section.sections("subscribe", "[[mqtt.subscribe]]");
        if children.is_empty() && !section.has("subscribe") {
            section.missing("check-no-subscriptions", &[]);
        }
        section.finish();
        let mut subscriptions = Vec::new();
        for child in &children {
            let read = subscription(child, Owner::Mqtt(index), names, &report);
            rules.extend(read.as_ref().and_then(|read| silence(child, read, &mut silences)));
            subscriptions.extend(read);
        }
        if let (Some(name), Some(endpoint)) = (name, endpoint) {
            inputs.push(MqttInput { name, endpoint, subscriptions });
        }
    }
    (inputs, rules)
}

/// Either `url` or `listen`.
fn endpoint(section: &Section<'_>, listeners: &mut Listeners, secrets: Secrets<'_>) -> Option<Endpoint> {
    let login = files::login(section, secrets);
    section.later(&["tls_cert_file", "tls_key_file"]);
    match (section.get("url"), section.get("listen")) {
        (Some(url), None) => {
            let (version, keep_alive) = (center::protocol(section), center::keep_alive(section));
            let url = center::broker_url(url);
            let tls = tls::client(section, url.as_ref().map(slice::from_ref), secrets);
            Some(Endpoint::Broker { url: url?, version, login, tls, keep_alive })
        }
        (None, Some(listen)) => {
            for key in ["protocol", "keep_alive"] {
                if section.has(key) {
                    section.wrong(key, "check-client-decides", &[("name", key.into())]);
                }
            }
            tls::client(section, Some(&[]), secrets); // keys for the gateway as a client are pointless here
            let address = listeners.address(listen)?;
            let complete = section.has("username") && section.has("password_file");
            if !complete && !address.ip().is_loopback() {
                // Who reaches the address could publish any reading: secure by default.
                listen.wrong::<()>("check-listen-open", &[]);
            }
            Some(Endpoint::Listen { address, login })
        }
        (Some(_), Some(listen)) => listen.wrong("check-url-or-listen", &[]),
        (None, None) => {
            section.missing("check-no-endpoint", &[]);
            None
        }
    }
}

fn subscription<'a>(
    section: &Section<'a>,
    owner: Owner,
    names: &mut Names,
    report: &impl Fn(&Section<'a>, Measured) -> Report,
) -> Option<Subscription> {
    let topic = section.required("topic", "\"sensors/{device}/{name}\"", topic);
    section.or("format", (), |node| node.choice(&[("json", ())], &FORMATS_LATER));
    let camera = section.get("format").is_some_and(|node| node.is_one_of(&FORMATS_LATER));
    let point = if camera {
        section.optional("point", |node| template(node, topic.as_deref()))
    } else {
        section.required("point", "\"{device}/{name}\"", |node| template(node, topic.as_deref()))
    };
    if let (Some((template, node)), Some(topic)) = (&point, &topic) {
        names.template(template, owner, *node);
        unused(section, topic, template);
    }
    let pointer = |node: Node<'a>| {
        let text = node.text()?;
        if units::is_json_pointer(text) { Some(text) } else { node.wrong("check-pointer", &[("value", text.into())]) }
    };
    let value = section.or("value", "", pointer).to_owned();
    let time = section.optional("time", pointer).map(str::to_owned);
    let values = section.or("values", Vec::new(), values);
    let stale = section.optional("stale", |node| node.duration(SILENCE));
    let unit = section.optional("unit", |node| node.line(32)).map(Arc::from);
    let report = report(section, Measured::Perhaps);
    section.finish();
    Some(Subscription { topic: topic?, point: point?.0, value, time, values, stale, unit, report })
}

/// Levels of fixed text and `{captures}`; no MQTT wildcards, since a capture says what the level means.
fn topic(node: Node<'_>) -> Option<Vec<TopicLevel>> {
    let text = node.line(1_024)?; // far below MQTT's 65,535 bytes; every subscription keeps its own
    if text.contains(['+', '#']) {
        return node.wrong("check-topic-wildcard", &[("value", text.into())]);
    }
    let mut levels: Vec<TopicLevel> = Vec::new();
    for level in text.split('/') {
        let next = match capture(level) {
            Some(name) if is_segment(name) => TopicLevel::Capture(name.to_owned()),
            None if !level.contains(['{', '}']) => TopicLevel::Exactly(level.to_owned()),
            Some(_) | None => return node.wrong("check-capture", &[("value", level.into())]),
        };
        if matches!(next, TopicLevel::Capture(_)) && levels.contains(&next) {
            return node.wrong("check-capture-twice", &[("value", level.into())]);
        }
        levels.push(next);
    }
    Some(levels)
}

/// The name inside `{}`.
fn capture(text: &str) -> Option<&str> {
    text.strip_prefix('{')?.strip_suffix('}')
}

fn template<'a>(node: Node<'a>, topic: Option<&[TopicLevel]>) -> Option<(PointTemplate, Node<'a>)> {
    let text = node.text()?;
    let mut segments = Vec::new();
    for part in text.split('/') {
        segments.push(match (capture(part), Segment::parse(part)) {
            (Some(name), _) if is_segment(name) => {
                let known = topic.is_none_or(|levels| levels.contains(&TopicLevel::Capture(name.to_owned())));
                if !known {
                    return node.wrong("check-capture-unknown", &[("value", part.into())]);
                }
                TemplateSegment::Capture(name.to_owned())
            }
            (None, Ok(name)) => TemplateSegment::Exactly(name),
            (Some(_), _) | (None, Err(_)) => return node.wrong("check-template", &[("value", part.into())]),
        });
    }
    if (2..=POINT_SEGMENTS_MAX).contains(&segments.len()) {
        Some((PointTemplate(segments), node))
    } else {
        node.wrong("check-point-name", &[("name", text.into())])
    }
}

/// A capture that is not in the name would mix several devices in one point.
fn unused(section: &Section<'_>, topic: &[TopicLevel], template: &PointTemplate) {
    for level in topic {
        if let TopicLevel::Capture(name) = level
            && !template.0.contains(&TemplateSegment::Capture(name.clone()))
        {
            section.wrong("topic", "check-capture-unused", &[("value", format!("{{{name}}}").into())]);
        }
    }
}

fn values(node: Node<'_>) -> Option<Vec<(String, Value)>> {
    let entries = node.entries()?;
    if entries.len() > VALUES_MAX {
        return node.wrong("check-too-many", &[("max", VALUES_MAX.to_string().into())]);
    }
    Some(entries.into_iter().filter_map(|(word, node)| Some((word.to_owned(), node.value()?))).collect())
}

/// The pattern of a subscription's points, and what it says about their silence.
type Silence = (String, Option<Duration>, Spot);

/// The `stale` rule of a subscription, unless an equal one has it. Where two may name the same point, it must not depend
/// on the subscription how long that point may be silent.
fn silence(section: &Section<'_>, subscription: &Subscription, others: &mut Vec<Silence>) -> Option<Rule> {
    let (pattern, stale) = (as_pattern(&subscription.point), subscription.stale);
    let differs = |(other, silence, _): &&Silence| {
        let same = *silence == stale && (stale.is_none() || *other == pattern);
        !same && overlap(other, &pattern)
    };
    if let Some((_, _, spot)) = others.iter().find(differs) {
        let place = section.findings.place(*spot).to_string();
        section.wrong("stale", "check-stale-differs", &[("place", place.into())]);
    }
    let known = others.iter().any(|(other, silence, _)| *other == pattern && *silence == stale);
    let rule = stale.filter(|_| !known).map(|stale| stale_rule(&pattern, stale));
    others.push((pattern, stale, section.spot));
    rule
}

/// Silence makes a point bad, and an alarm that clears with the next message.
fn stale_rule(pattern: &str, stale: Duration) -> Rule {
    Rule {
        name: Segment::parse("stale").expect("a constant name"),
        select: Selector::parse(pattern).expect("a template has the shape of a pattern"),
        naming: Naming::PointAndRule,
        when: Condition::Stale(stale),
        severity: Severity::Medium,
        on_delay: Duration::ZERO,
        off_delay: Duration::ZERO,
        latch: Latch::NonLatching,
        acknowledgement: Acknowledgement::NotRequired,
        message: text::both("alarm-stale", &[("point", pattern.into())]),
    }
}
