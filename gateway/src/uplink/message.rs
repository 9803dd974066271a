//! How records look on the wire (DESIGN.md §5.1, §5.2): pure, from a record to a topic and JSON.
//!
//! Events are CloudEvents 1.0 in structured JSON. The order of keys is the order of the fields here, so that one record
//! always gives the same bytes. Times are made here from the clocks as they stood, with what is known of them by now.

mod event;
mod payload;

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use self::event::Context;
pub use self::payload::{
    AlarmData, Backlog, ClockData, CommandData, DeliveryData, DeviceDescription, Event, Lanes, OfflineReason,
    OutboxVitals, PointDescription, Presence, ReadingData, Status, StreamData, TelemetryData, Vitals,
};
use crate::{
    alarm::{Kind, State},
    clock::{BootId, Boots, Dated, Now, rfc3339},
    command::Answer,
    config::{Gateway, Language, Location},
    reading::Segment,
    record::{Body, Record},
};

/// Largest payload in either direction (DESIGN.md §5.2). A stored record is at most 4 KiB, and JSON escapes make at most
/// six bytes of one.
pub const PAYLOAD_SIZE_MAX: usize = 32 * 1024;
/// Room made at once for a payload: an alarm event takes about this.
const PAYLOAD_SIZE_USUAL: usize = 1024;
/// MQTT 5 content type of every event (CloudEvents MQTT binding §3.2).
pub const CONTENT_TYPE_EVENT: &str = "application/cloudevents+json; charset=utf-8";
/// MQTT 5 content type of everything else.
pub const CONTENT_TYPE_JSON: &str = "application/json";

/// Who speaks: what every message says of its gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// Gateway id.
    pub gateway: Segment,
    /// First part of every topic.
    pub prefix: Arc<str>,
    /// Site.
    pub site: Arc<str>,
    /// Where the gateway hangs.
    pub location: Option<Location>,
    /// The language every message has.
    pub language: Language,
}

impl About {
    /// From the configuration.
    #[must_use]
    pub fn new(gateway: &Gateway, topic_prefix: &str) -> Self {
        Self {
            gateway: gateway.id.clone(),
            prefix: topic_prefix.into(),
            site: gateway.site.as_str().into(),
            location: gateway.location.clone(),
            language: gateway.language,
        }
    }

    /// `{prefix}/{gateway}/{rest}`
    #[must_use]
    pub fn topic(&self, rest: &str) -> String {
        format!("{}/{}/{rest}", self.prefix, self.gateway)
    }

    /// `{prefix}/center/status`
    #[must_use]
    pub fn center_status_topic(&self) -> String {
        format!("{}/center/status", self.prefix)
    }
}

/// A topic and what is published there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The whole topic.
    pub topic: String,
    /// The payload; empty clears a retained topic.
    pub payload: Bytes,
}

impl Message {
    fn of(topic: String, payload: &impl Serialize) -> Self {
        let mut bytes = Vec::with_capacity(PAYLOAD_SIZE_USUAL);
        serde_json::to_writer(&mut bytes, payload).expect("every key of these types is text");
        Self { topic, payload: bytes.into() }
    }
}

/// When a record is sent for the first time, and in which boot.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// This boot.
    pub boot: &'a BootId,
    /// The moment.
    pub at: Now,
}
/// A record as it is published: its topic and its event.
#[must_use]
pub fn encode(record: &Record, boots: &Boots, about: &About, sent: Sent<'_>) -> Message {
    let context = Context { record, boots, about, sent };
    match &record.body {
        Body::Alarm(transition) => {
            let topic = format!("event/{}", transition.severity.as_str());
            Message::of(about.topic(&topic), &context.alarm(transition))
        }
        Body::Stream(event) => Message::of(about.topic("event/info"), &context.stream(event)),
        Body::Command(result) => Message::of(about.topic("event/info"), &context.command(result)),
        Body::Telemetry(batch) => {
            Message::of(about.topic(&format!("telemetry/{}", batch.device)), &context.telemetry(batch))
        }
    }
}

/// The retained topic of an alarm after `record`: the same event, or nothing where the alarm is quiet or gone. `None` if
/// the record is not about an alarm.
#[must_use]
pub fn alarm_state(record: &Record, boots: &Boots, about: &About, sent: Sent<'_>) -> Option<Message> {
    let Body::Alarm(transition) = &record.body else { return None };
    if transition.state == State::Norm || transition.kind == Kind::Removed {
        return Some(no_alarm(about, transition.alarm.as_str()));
    }
    let context = Context { record, boots, about, sent };
    Some(Message::of(about.topic(&format!("alarm/{}", transition.alarm)), &context.alarm(transition)))
}

/// Empties the retained topic of an alarm.
#[must_use]
pub fn no_alarm(about: &About, alarm: &str) -> Message {
    Message { topic: about.topic(&format!("alarm/{alarm}")), payload: Bytes::new() }
}

/// The status message.
#[must_use]
pub fn status(about: &About, status: &Status) -> Message {
    Message::of(about.topic("status"), status)
}

/// The description of a device; points beyond the largest payload are left out, last names first.
#[must_use]
pub fn device(about: &About, description: &DeviceDescription) -> Message {
    let topic = about.topic(&format!("device/{}", description.device));
    let mut description = description.clone();
    loop {
        let message = Message::of(topic.clone(), &description);
        if message.payload.len() <= PAYLOAD_SIZE_MAX {
            return message;
        }
        description.points.truncate(description.points.len() * 3 / 4);
    }
}

/// The answer to a command, to the topic it asked for.
#[must_use]
pub fn reply(topic: String, answer: &Answer) -> Message {
    Message::of(topic, answer)
}

/// A moment of now, as `status` shows it.
#[must_use]
pub fn clock_now(boot: &BootId, now: Now) -> ClockData {
    ClockData { trusted: now.trusted, boot: boot.clone(), monotonic_ms: now.mono_ms, not_before: None, not_after: None }
}

/// A moment of `boot` as text.
#[must_use]
pub fn time_of(boots: &Boots, boot: &BootId, at: Now) -> String {
    rfc3339(match boots.date(boot, at) {
        Dated::Known { wall_ms } => wall_ms,
        Dated::Between { claimed_ms, .. } => claimed_ms,
    })
}
#[cfg(test)]
mod tests;
