//! The command center's books: what arrived, what was declared lost, and whether that proves completeness
//! (DESIGN.md §5.3). Pure: topics and payloads in, facts out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use serde_json::Value;

use crate::contract;

/// Everything the center knows of one gateway.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    gateway: String,
    streams: BTreeMap<(String, char), Stream>,
    /// First deliveries, in the order they came.
    pub(crate) events: Vec<Event>,
    by_id: BTreeMap<String, usize>,
    /// Deliveries of an id that was here already.
    pub(crate) duplicates: u64,
    /// What the retained `alarm/…` topics say now.
    pub(crate) alarms: BTreeMap<String, Value>,
    /// Every `status`, in the order they came.
    pub(crate) statuses: Vec<Value>,
    /// Every `reply`, in the order they came.
    pub(crate) replies: Vec<Value>,
    /// What broke the contract.
    problems: Vec<String>,
}

/// One numbered stream.
#[derive(Debug, Default)]
struct Stream {
    arrived: BTreeSet<u64>,
    declared: Vec<(u64, u64)>,
    settled: u64,
}

/// One event, as first delivered.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) epoch: String,
    pub(crate) lane: char,
    pub(crate) sequence: u64,
    /// `gardu.alarm.raised.v1`
    pub(crate) kind: String,
    pub(crate) subject: String,
    pub(crate) body: Value,
    /// When it was here.
    pub(crate) at: Instant,
}

impl Event {
    /// What a person wants to see of it.
    fn line(&self) -> String {
        let Self { lane, sequence, kind, subject, .. } = self;
        format!("{lane}-{sequence} {kind} {subject} {} {}", self.data("state"), self.body["time"])
    }

    /// A field of `data`.
    pub(crate) fn data(&self, field: &str) -> &Value {
        &self.body["data"][field]
    }

    /// Whether it is this transition of this alarm.
    pub(crate) fn is(&self, kind: &str, alarm: &str) -> bool {
        self.subject == alarm
            && self.kind.strip_prefix("gardu.alarm.").and_then(|k| k.strip_suffix(".v1")) == Some(kind)
    }
}

impl Ledger {
    /// Empty books for one gateway.
    pub(crate) fn of(gateway: &str) -> Self {
        Self { gateway: gateway.to_owned(), ..Self::default() }
    }

    /// Takes one message; `topic` is what follows `{prefix}/{gateway}/`.
    pub(crate) fn take(&mut self, topic: &str, payload: &[u8], at: Instant) {
        let (kind, rest) = topic.split_once('/').unwrap_or((topic, ""));
        if matches!(kind, "command" | "receipt") {
            return; // our own words, echoed by the broker
        }
        if kind == "reply" && !rest.is_empty() {
            return; // for whoever named that response topic; this center names none
        }
        if let Err(problem) = contract::validate(topic, payload) {
            self.problems.push(format!("{topic}: {problem}: {}", String::from_utf8_lossy(payload)));
            return;
        }
        let body = if payload.is_empty() { Value::Null } else { serde_json::from_slice(payload).unwrap_or_default() };
        match kind {
            "event" => self.event(topic, 'a', &body, at),
            "telemetry" => self.event(topic, 't', &body, at),
            "alarm" if payload.is_empty() => drop(self.alarms.remove(rest)),
            "alarm" => self.alarm(rest, body),
            "status" => self.status(body),
            "reply" => self.replies.push(body),
            "device" => {}
            _ => self.problems.push(format!("{topic} is not a topic of the contract")),
        }
    }

    fn event(&mut self, topic: &str, lane: char, body: &Value, at: Instant) {
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        let mut parts = id.split('-');
        let named = (parts.next(), parts.next(), parts.next().and_then(|n| n.parse::<u64>().ok()), parts.next());
        let (Some(epoch), Some(letter), Some(sequence), None) = named else {
            self.problems.push(format!("{topic}: `{id}` is not {{epoch}}-{{lane}}-{{number}}"));
            return;
        };
        let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        let envelope = [
            ("lane", letter.to_owned(), lane.to_string()),
            ("sequence", text("sequence"), format!("{sequence:020}")),
            ("source", text("source"), format!("/gardu/{}", self.gateway)),
        ];
        for (field, is, should) in envelope.iter().filter(|(_, is, should)| is != should) {
            self.problems.push(format!("{id}: {field} is {is}, not {should}"));
        }
        if let Some(index) = self.by_id.get(&id) {
            self.duplicates += 1;
            let (before, again) = (lasting(&self.events[*index].body), lasting(body));
            if before != again {
                self.problems.push(format!("{id} came again with another content:\n{before}\n{again}"));
            }
            return;
        }
        let event = Event {
            epoch: epoch.to_owned(),
            lane,
            sequence,
            kind: text("type"),
            subject: text("subject"),
            body: body.clone(),
            at,
        };
        self.streams.entry((event.epoch.clone(), lane)).or_default().arrived.insert(sequence);
        if event.kind == "gardu.stream.lost.v1" {
            self.declare(&body["data"]);
        }
        self.by_id.insert(id, self.events.len());
        self.events.push(event);
    }

    fn declare(&mut self, data: &Value) {
        let lane = data["lane"].as_str().and_then(|lane| lane.chars().next()).unwrap_or('?');
        let key = (data["epoch"].as_str().unwrap_or_default().to_owned(), lane);
        let pairs = data["ranges"].as_array().into_iter().flatten();
        let ranges = pairs.filter_map(|pair| Some((pair[0].as_u64()?, pair[1].as_u64()?)));
        self.streams.entry(key).or_default().declared.extend(ranges);
    }

    /// The retained copy says what the event said; it may come before the event does on a new connection.
    fn alarm(&mut self, alarm: &str, body: Value) {
        if let Some(index) = body["id"].as_str().and_then(|id| self.by_id.get(id)) {
            let event = &self.events[*index].body;
            let differs = ["type", "subject", "sequence"].iter().any(|field| event[field] != body[field]);
            if differs || lasting(event)["data"] != lasting(&body)["data"] {
                self.problems.push(format!("alarm/{alarm} is not its event:\n{event}\n{body}"));
            }
        }
        self.alarms.insert(alarm.to_owned(), body);
    }

    fn status(&mut self, body: Value) {
        for lane in ['a', 't'] {
            let status = &body["lanes"][lane.to_string()];
            let (epoch, next, settled) = (&status["epoch"], status["next"].as_u64(), status["settled"].as_u64());
            let (Some(epoch), Some(next), Some(settled)) = (epoch.as_str(), next, settled) else { continue };
            if settled >= next {
                self.problems.push(format!("lane {lane}: settled {settled}, but the next number is {next}"));
            }
            let stream = self.streams.entry((epoch.to_owned(), lane)).or_default();
            stream.settled = stream.settled.max(settled);
        }
        self.statuses.push(body);
    }

    /// Whether every number up to `settled` arrived or was declared lost, and nothing broke the contract.
    pub(crate) fn complete(&self) -> Result<Summary, String> {
        if !self.problems.is_empty() {
            return Err(self.problems.join("\n"));
        }
        let mut summary = Summary { duplicates: self.duplicates, ..Summary::default() };
        for ((epoch, lane), stream) in &self.streams {
            let declared = |n: &u64| stream.declared.iter().any(|(first, last)| (first..=last).contains(&n));
            let open = (1..=stream.settled).filter(|n| !stream.arrived.contains(n));
            let (lost, missing): (Vec<u64>, Vec<u64>) = open.partition(declared);
            if !missing.is_empty() {
                let settled = stream.settled;
                let beside = |event: &&Event| {
                    let beside = |n: &u64| event.sequence.abs_diff(*n) <= 1;
                    (&event.epoch, event.lane) == (epoch, *lane) && missing.iter().any(beside)
                };
                let around: Vec<String> = self.events.iter().filter(beside).map(Event::line).collect();
                return Err(format!(
                    "{epoch}-{lane}: settled {settled}, but neither here nor declared: {missing:?}, beside\n  {}",
                    around.join("\n  ")
                ));
            }
            summary.arrived += stream.arrived.len();
            summary.settled += stream.settled;
            summary.declared_lost += lost.len();
            if *lane == 'a' {
                summary.declared_alarms += lost.len();
            }
        }
        Ok(summary)
    }

    /// First deliveries of one transition of one alarm.
    pub(crate) fn transitions<'a>(&'a self, kind: &'a str, alarm: &'a str) -> impl Iterator<Item = &'a Event> {
        self.events.iter().filter(move |event| event.is(kind, alarm))
    }

    /// The first such transition.
    pub(crate) fn first(&self, kind: &str, alarm: &str) -> Option<Event> {
        self.transitions(kind, alarm).next().cloned()
    }

    /// ISA-18.2 state of an alarm by its retained topic; an empty topic is NORM.
    pub(crate) fn state(&self, alarm: &str) -> &str {
        self.alarms.get(alarm).map_or("NORM", |body| body["data"]["state"].as_str().unwrap_or("?"))
    }

    /// The last status, or null.
    pub(crate) fn status_now(&self) -> &Value {
        self.statuses.last().unwrap_or(&Value::Null)
    }

    /// What a person wants to see when a wait was in vain.
    pub(crate) fn outline(&self) -> String {
        let events: Vec<String> = self.events.iter().rev().take(15).rev().map(Event::line).collect();
        let states: Vec<String> = self.alarms.keys().map(|alarm| format!("{alarm}={}", self.state(alarm))).collect();
        format!(
            "{} events, {} duplicates, problems: {:?}\nlast events:\n  {}\nalarms: {}\nlast status: {}\nlast reply: {}",
            self.events.len(),
            self.duplicates,
            self.problems,
            events.join("\n  "),
            states.join(" "),
            self.status_now(),
            self.replies.last().unwrap_or(&Value::Null),
        )
    }
}

/// What completeness was proved over.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Different numbers that arrived.
    pub(crate) arrived: usize,
    /// Numbers the gateway calls settled.
    pub(crate) settled: u64,
    /// Settled numbers that were declared lost.
    pub(crate) declared_lost: usize,
    /// Of these, those of lane a.
    pub(crate) declared_alarms: usize,
    /// Repeats.
    pub(crate) duplicates: u64,
}

/// The event without what may differ between two deliveries of one id.
fn lasting(event: &Value) -> Value {
    let mut event = event.clone();
    if let Some(fields) = event.as_object_mut() {
        fields.remove("time");
        if let Some(data) = fields.get_mut("data").and_then(Value::as_object_mut) {
            data.remove("clock");
            data.remove("delivery");
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event as the gateway `g` would send it, for the tests of the books themselves.
    fn sample(sequence: u64, value: bool) -> Vec<u8> {
        let frozen: Value = serde_json::from_str(include_str!("../../wire/v1/alarm-raised.json")).expect("JSON");
        let mut event = frozen["payload"].clone();
        event["id"] = format!("0000000000000000-a-{sequence}").into();
        event["source"] = "/gardu/g".into();
        event["sequence"] = format!("{sequence:020}").into();
        event["data"]["value"] = value.into();
        event.to_string().into_bytes()
    }

    #[test]
    fn books_with_a_gap_below_settled_are_not_complete() {
        let ledger = |arrived: &[u64], declared: &[(u64, u64)], settled: u64| {
            let mut ledger = Ledger::of("g");
            for n in arrived {
                ledger.take("event/high", &sample(*n, true), Instant::now());
            }
            let stream = ledger.streams.entry(("0000000000000000".into(), 'a')).or_default();
            (stream.declared, stream.settled) = (declared.to_vec(), settled);
            ledger.complete()
        };
        assert!(ledger(&[1, 2, 3], &[], 3).is_ok());
        assert!(ledger(&[1, 3], &[], 1).is_ok(), "what is not settled may be under way");
        assert!(ledger(&[1, 3], &[(2, 2)], 3).is_ok_and(|summary| summary.declared_lost == 1));
        assert!(ledger(&[1, 3], &[], 3).expect_err("a gap").contains("[2]"));
        assert!(ledger(&[1, 4], &[(2, 2)], 4).expect_err("a gap").contains("[3]"));
    }

    #[test]
    fn an_id_used_again_for_something_else_is_found() {
        let mut ledger = Ledger::of("g");
        ledger.take("event/high", &sample(1, true), Instant::now());
        ledger.take("event/high", &sample(1, true), Instant::now());
        assert_eq!(ledger.complete().expect("a repeat is allowed").duplicates, 1);
        ledger.take("event/high", &sample(1, false), Instant::now());
        assert!(ledger.complete().expect_err("another content").contains("came again"));
    }

    #[test]
    fn a_payload_that_breaks_the_contract_is_found() {
        for (topic, payload) in
            [("event/high", &b"{}"[..]), ("event/high", b""), ("status", b"online"), ("noise", b"{}")]
        {
            let mut ledger = Ledger::of("g");
            ledger.take(topic, payload, Instant::now());
            assert!(ledger.complete().is_err(), "{topic}");
        }
        let mut ledger = Ledger::of("another");
        ledger.take("event/high", &sample(1, true), Instant::now());
        assert!(ledger.complete().expect_err("another gateway").contains("source"));
    }
}
