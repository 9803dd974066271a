//! The simulated command center: a small broker for one gateway, and the people in front of it.
//!
//! It keeps retained topics, routes what subscribers want (the gateway reads its own topics back), prints alarms as
//! they arrive, acknowledges every second one through `command` and resets what latches, and keeps the [`Ledger`].
//! Its link can be cut: then nothing listens and the gateway must keep what happens meanwhile.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    ledger::{self, Arrival, Ledger, Summary},
    paper::Paper,
};
use crate::{
    alarm::Severity,
    clock::{Clock, Now},
    config::Language,
    record::{Lane, LaneStatus},
    source::mqtt::listener::{
        Client, ClientId, Event, Listener,
        codec::{Grant, Message},
    },
    supervise::Shutdown,
};

/// How long an operator looks at an alarm before acknowledging it.
const LOOK: Duration = Duration::from_millis(700);
/// Commands that wait to be sent; more alarms than that at once are left standing.
const COMMANDS_MAX: usize = 256;
/// Retained topics: more than one gateway of a demonstration has.
const RETAINED_MAX: usize = 10_000;
/// After the gateway has ended, what it had sent arrives within this.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// Between attempts to listen again on the port that was given up.
const BIND_AGAIN: Duration = Duration::from_millis(100);

/// What the play does to the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It works.
    Up,
    /// Nothing listens, every connection is cut.
    Cut,
}

/// The command center.
pub struct Center {
    address: SocketAddr,
    listener: Option<Listener>,
    link: watch::Receiver<Link>,
    lines: mpsc::Receiver<&'static str>,
    complete: watch::Sender<bool>,
    /// Topics begin with this: `{prefix}/{gateway}/`.
    root: String,
    paper: Paper,
    clock: Clock,
    ledger: Ledger,
    retained: BTreeMap<String, Bytes>,
    subscribers: HashMap<ClientId, (Client, Vec<String>)>,
    commands: VecDeque<(Now, serde_json::Value)>,
    numbered: u64,
    live_from_ms: i64,
}

/// The play's hands on the center.
pub struct Handle {
    /// Where the gateway must connect.
    pub address: SocketAddr,
    /// Whether the link works.
    pub link: watch::Sender<Link>,
    /// Sentences to print, by key.
    pub lines: mpsc::Sender<&'static str>,
    /// Whether all that is known of has arrived.
    pub complete: watch::Receiver<bool>,
}

/// `data` of an alarm event, as far as an operator needs it.
#[derive(Debug, Deserialize)]
struct Alarm {
    alarm: String,
    occurrence: u64,
    active: bool,
    acknowledged: bool,
    latched: bool,
    severity: Severity,
    message: Words,
}

#[derive(Debug, Deserialize)]
struct Words {
    id: Option<String>,
    en: Option<String>,
}

/// What is needed of `status`.
#[derive(Debug, Deserialize)]
struct Status {
    lanes: Lanes,
}

#[derive(Debug, Deserialize)]
struct Lanes {
    a: LaneStatus,
    t: LaneStatus,
}

impl Center {
    /// Takes a free port on loopback; `root` is what the gateway's topics begin with.
    pub async fn bind(root: String, paper: Paper, clock: Clock) -> io::Result<(Self, Handle)> {
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), None).await?;
        let address = listener.address()?;
        let (link, cuts) = watch::channel(Link::Up);
        let (lines, said) = mpsc::channel(64);
        let (complete, completed) = watch::channel(false);
        let center = Self {
            address,
            listener: Some(listener),
            link: cuts,
            lines: said,
            complete,
            root,
            paper,
            clock,
            ledger: Ledger::default(),
            retained: BTreeMap::new(),
            subscribers: HashMap::new(),
            commands: VecDeque::new(),
            numbered: 0,
            live_from_ms: i64::MAX,
        };
        Ok((center, Handle { address, link, lines, complete: completed }))
    }

    /// Runs until the gateway has ended and its last words are read; prints how it went.
    pub async fn run(mut self, gateway_ended: Shutdown) -> Summary {
        loop {
            self.follow_link().await;
            let next_command = self.next_command_in();
            tokio::select! {
                () = gateway_ended.cancelled() => break,
                event = next(&mut self.listener) => self.take(event),
                _changed = self.link.changed() => {}
                Some(key) = self.lines.recv() => self.paper.say(key, &[]),
                () = tokio::time::sleep(next_command) => self.command(),
            }
        }
        while let Ok(event) = tokio::time::timeout(LAST_WORDS, next(&mut self.listener)).await {
            self.take(event);
        }
        let summary = self.ledger.summary();
        self.paper.summary(&summary);
        summary
    }

    async fn follow_link(&mut self) {
        let link = *self.link.borrow_and_update();
        match (link, &self.listener) {
            (Link::Cut, Some(_)) => {
                self.listener = None; // ends every connection, and new ones find nobody
                self.subscribers.clear();
                self.live_from_ms = i64::MAX;
            }
            (Link::Up, None) => match Listener::bind(self.address, None).await {
                Ok(listener) => self.listener = Some(listener),
                Err(_) => tokio::time::sleep(BIND_AGAIN).await,
            },
            (Link::Cut, None) | (Link::Up, Some(_)) => {}
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Connected(client) => {
                self.live_from_ms = self.clock.now().wall_ms;
                self.paper.say("demo-connected", &[]);
                self.subscribers.insert(client.id.clone(), (client, Vec::new()));
            }
            Event::Gone { client, serial, .. } => {
                if self.subscribers.get(&client).is_some_and(|(present, _)| present.serial == serial) {
                    self.subscribers.remove(&client);
                    self.live_from_ms = i64::MAX;
                    self.paper.say("demo-disconnected", &[]);
                }
            }
            Event::Subscribe { client, filters, reply } => self.subscribe(&client, filters, reply),
            Event::Unsubscribe { client, filters } => {
                if let Some((_, wanted)) = self.subscribers.get_mut(&client) {
                    wanted.retain(|filter| !filters.contains(filter));
                }
            }
            Event::Published { message, done, .. } => {
                self.read(&message);
                self.route(&message);
                let _it_has_gone = done.send(());
                let complete = self.ledger.is_complete();
                self.complete.send_if_modified(|before| std::mem::replace(before, complete) != complete);
            }
            Event::Rejected { .. } | Event::Renewed(_) | Event::Panicked => {}
        }
    }

    /// Grants everything, then sends what is retained: before anything that is published later.
    fn subscribe(&mut self, client: &ClientId, filters: Vec<String>, reply: oneshot::Sender<Vec<Grant>>) {
        let _it_has_gone = reply.send(vec![Grant::Granted; filters.len()]);
        let Some((client, wanted)) = self.subscribers.get_mut(client) else { return };
        for (topic, payload) in &self.retained {
            if filters.iter().any(|filter| matches(filter, topic)) {
                client.publish(Message { topic: topic.clone(), payload: payload.clone(), retain: true }, None);
            }
        }
        wanted.extend(filters);
    }

    fn route(&mut self, message: &Message) {
        if message.retain {
            if message.payload.is_empty() {
                self.retained.remove(&message.topic);
            } else if self.retained.len() < RETAINED_MAX || self.retained.contains_key(&message.topic) {
                self.retained.insert(message.topic.clone(), message.payload.clone());
            }
        }
        for (client, wanted) in self.subscribers.values() {
            if wanted.iter().any(|filter| matches(filter, &message.topic)) {
                client.publish(Message { retain: false, ..message.clone() }, None);
            }
        }
    }

    fn read(&mut self, message: &Message) {
        let Some(topic) = message.topic.strip_prefix(&self.root) else { return };
        if topic == "status" {
            self.read_status(&message.payload);
        } else if topic.starts_with("event/") || topic.starts_with("telemetry/") {
            let Ok(event) = serde_json::from_slice::<ledger::Event>(&message.payload) else { return };
            let now = self.clock.now();
            if self.ledger.event(&event, now.wall_ms, self.live_from_ms) == Arrival::New {
                self.read_alarm(&event, now);
            }
        }
    }

    fn read_status(&mut self, payload: &[u8]) {
        let Ok(Status { lanes }) = serde_json::from_slice(payload) else { return };
        self.ledger.status(Lane::Alarm, &lanes.a);
        self.ledger.status(Lane::Telemetry, &lanes.t);
    }

    /// Prints an alarm event and decides what the operator does about it.
    fn read_alarm(&mut self, event: &ledger::Event, now: Now) {
        let kind = event.type_.strip_prefix("gardu.alarm.").and_then(|rest| rest.strip_suffix(".v1"));
        let (Some(kind), Ok(alarm)) = (kind, Alarm::deserialize(&event.data)) else { return };
        let time = event.time.get(11..19).unwrap_or_default();
        let Words { id, en } = &alarm.message;
        let words = match self.paper.language() {
            Language::Indonesian => id.as_ref().or(en.as_ref()),
            Language::English => en.as_ref().or(id.as_ref()),
        };
        self.paper.alarm(time, alarm.severity, kind, words.map_or("", String::as_str), &alarm.alarm);
        let command = if alarm.latched && alarm.acknowledged && !alarm.active {
            json!({"command": "reset", "alarm": alarm.alarm})
        } else if kind == "raised" && self.ledger.summary().raised % 2 == 1 {
            let epoch = ledger::epoch_of(&event.id);
            json!({"command": "acknowledge", "alarm": alarm.alarm, "occurrence": alarm.occurrence,
                   "epoch": epoch.as_ref().map(crate::record::Epoch::as_str)})
        } else {
            return;
        };
        if self.commands.len() < COMMANDS_MAX {
            self.commands.push_back((now, command));
        }
    }

    fn next_command_in(&self) -> Duration {
        let since = |asked: &Now| self.clock.now().since(*asked);
        self.commands.front().map_or(Duration::from_secs(3_600), |(asked, _)| LOOK.saturating_sub(since(asked)))
    }

    /// Sends the oldest command; while the gateway is away it waits.
    fn command(&mut self) {
        let topic = format!("{}command", self.root);
        if !self.subscribers.values().any(|(_, wanted)| wanted.iter().any(|filter| matches(filter, &topic))) {
            if let Some((asked, _)) = self.commands.front_mut() {
                *asked = self.clock.now();
            }
            return;
        }
        let Some((_, mut command)) = self.commands.pop_front() else { return };
        self.numbered += 1;
        // The id is used once; another demonstration has another gateway behind it.
        command["id"] = format!("demo-{}-{}", self.clock.now().mono_ms, self.numbered).into();
        command["by"] = "demo".into();
        self.route(&Message { topic, payload: command.to_string().into(), retain: false });
    }
}

/// The next event, or none for ever while the link is cut.
async fn next(listener: &mut Option<Listener>) -> Event {
    match listener {
        Some(listener) => listener.next().await,
        None => std::future::pending().await,
    }
}

/// Whether an MQTT topic filter wants a topic (MQTT 5.0 §4.7).
fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for want in filter.split('/') {
        match (want, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (want, Some(level)) if want == level => {}
            (_, Some(_) | None) => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_in_mqtt() {
        for (filter, topic, expected) in [
            ("g/t/alarm/#", "g/t/alarm/panel/door/open", true),
            ("g/t/alarm/#", "g/t/alarm", true),
            ("g/t/alarm/#", "g/t/alarms", false),
            ("g/+/status", "g/t/status", true),
            ("g/+/status", "g/t/u/status", false),
            ("g/t", "g", false),
            ("#", "a", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }
}
