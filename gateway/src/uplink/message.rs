//! How records look on the wire (DESIGN.md §5.1, §5.2): pure, from a record to a topic and JSON.
//!
//! Events are CloudEvents 1.0 in structured JSON. The order of keys is the order of the fields here, so that one record
//! always gives the same bytes. Times are made here from the clocks as they stood, with what is known of them by now.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::{
    alarm::{AlarmId, Kind, Severity, State, Texts, Transition},
    clock::{BootId, Boots, Dated, Now, rfc3339},
    command::Answer,
    config::{Config, Gateway, Language, Location, TemplateSegment},
    reading::{Evidence, PointId, Quality, Reason, Segment, Value},
    record::{
        Batch, Body, CommandResult, Epoch, LaneStatus, LastKnown, LossReason, Record, Refused, StartReason, StreamEvent,
    },
};

/// Largest payload in either direction (DESIGN.md §5.2). A stored record is at most 4 KiB, and JSON escapes make at most
/// six bytes of one.
pub const PAYLOAD_SIZE_MAX: usize = 32 * 1024;
/// MQTT 5 content type of every event (CloudEvents MQTT binding §3.2).
pub const CONTENT_TYPE_EVENT: &str = "application/cloudevents+json; charset=utf-8";
/// MQTT 5 content type of everything else.
pub const CONTENT_TYPE_JSON: &str = "application/json";
/// Where payload schemas are named.
const SCHEMA: &str = "urn:gardu:schema:v1/";
/// Recorded longer ago than this when first sent: no news any more, but history.
const HISTORICAL_AFTER_MS: u64 = 60_000;

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
        let payload = serde_json::to_vec(payload).expect("every key of these types is text");
        Self { topic, payload: payload.into() }
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

/// CloudEvents 1.0 envelope.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event<D> {
    /// `1.0`
    pub specversion: &'static str,
    /// `{epoch}-{lane}-{sequence}`
    pub id: String,
    /// `/gardu/{gateway}`
    pub source: String,
    /// `gardu.….v1`
    #[serde(rename = "type")]
    pub type_: String,
    /// What it is about: the alarm, the device.
    pub subject: String,
    /// When it happened in the field.
    pub time: String,
    /// When it was recorded.
    pub recordedtime: String,
    /// The number in its lane, 20 digits, so that text sorts like numbers.
    pub sequence: String,
    /// `application/json`
    pub datacontenttype: &'static str,
    /// Which schema `data` follows.
    pub dataschema: String,
    /// What happened.
    pub data: D,
}

/// `data` of an alarm event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AlarmData {
    /// Point `/` rule.
    pub alarm: AlarmId,
    /// Counts activations from quiet.
    pub occurrence: u64,
    /// ISA-18.2 state after the change.
    pub state: State,
    /// Whether the condition holds.
    pub active: bool,
    /// Whether this occurrence was acknowledged.
    pub acknowledged: bool,
    /// Whether it stands only because it is latched.
    pub latched: bool,
    /// Severity.
    pub severity: Severity,
    /// The point's value; null when quality is bad.
    pub value: Option<Value>,
    /// Its unit.
    pub unit: Option<Arc<str>>,
    /// Its quality.
    pub quality: Quality,
    /// Why quality is not good.
    pub reason: Option<Reason>,
    /// The limit that was crossed.
    pub limit: Option<f64>,
    /// A test, not the field.
    pub test: bool,
    /// Text for people; the configured language is always present.
    pub message: Texts,
    /// Site of the gateway.
    pub site: Arc<str>,
    /// Where the gateway hangs.
    pub location: Option<Location>,
    /// Who commanded it.
    pub by: Option<Arc<str>>,
    /// Whether that was proved; this version never can.
    pub by_verified: bool,
    /// What they said.
    pub comment: Option<Arc<str>>,
    /// Words of the camera.
    pub evidence: Option<Arc<Evidence>>,
    /// How far `time` can be trusted.
    pub clock: ClockData,
    /// How it was delivered.
    pub delivery: DeliveryData,
}

/// How far a time can be trusted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClockData {
    /// Whether a synchronised clock stands behind it, then or since.
    pub trusted: bool,
    /// Boot in which it was taken.
    pub boot: BootId,
    /// Milliseconds since that boot.
    pub monotonic_ms: u64,
    /// Untrusted: not before this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// Untrusted: not after this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
}

/// How an event was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeliveryData {
    /// First sent more than 60 s after it was recorded.
    pub historical: bool,
}

/// `data` of a stream event.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum StreamData {
    /// `gardu.stream.started.v1`
    Started {
        /// Why.
        reason: StartReason,
        /// The epoch that begins.
        epoch: Epoch,
        /// The one it replaces.
        replaces: Option<Epoch>,
        /// Its last numbers known.
        last: Option<LastKnown>,
        /// How far `time` can be trusted.
        clock: ClockData,
        /// How it was delivered.
        delivery: DeliveryData,
    },
    /// `gardu.stream.lost.v1`
    Lost {
        /// Of which epoch.
        epoch: Epoch,
        /// Of which lane.
        lane: crate::record::Lane,
        /// First and last of each run, both included.
        ranges: Vec<(u64, u64)>,
        /// How many numbers that is.
        count: u64,
        /// Why.
        reason: LossReason,
        /// False where the loss is bounded, not known.
        certain: bool,
        /// The record the broker refused.
        refused: Option<Refused>,
        /// How far `time` can be trusted.
        clock: ClockData,
        /// How it was delivered.
        delivery: DeliveryData,
    },
}

/// `data` of `gardu.command.completed.v1`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CommandData {
    /// The command's id.
    pub id: Arc<str>,
    /// Its word.
    pub command: Arc<str>,
    /// Which alarm.
    pub alarm: Option<AlarmId>,
    /// Who asked.
    pub by: Arc<str>,
    /// Whether that was proved.
    pub by_verified: bool,
    /// How far `time` can be trusted.
    pub clock: ClockData,
    /// How it was delivered.
    pub delivery: DeliveryData,
}

/// `data` of `gardu.telemetry.v1`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TelemetryData {
    /// In the order taken.
    pub readings: Vec<ReadingData>,
    /// How far the times can be trusted.
    pub clock: ClockData,
    /// How it was delivered.
    pub delivery: DeliveryData,
}

/// One reading of a batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReadingData {
    /// The point.
    pub point: PointId,
    /// The value; null when quality is bad.
    pub value: Option<Value>,
    /// Its quality.
    pub quality: Quality,
    /// Why it is not good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// When it was taken, by the device if it says so.
    pub time: String,
}

/// Whether the gateway is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Connected.
    Online,
    /// Not.
    Offline,
}

/// Why it is offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OfflineReason {
    /// It was stopped in good order.
    Stopped,
    /// The connection was lost; the broker says so for us.
    Lost,
}

/// Payload of `status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Online or offline.
    pub state: Presence,
    /// Why it is offline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<OfflineReason>,
    /// This boot.
    pub boot: BootId,
    /// Counts CONNECTs over the life of the store.
    pub session: u64,
    /// Version of the program.
    pub version: &'static str,
    /// Fingerprint of the configuration.
    pub config: Arc<str>,
    /// Site.
    pub site: Arc<str>,
    /// When the daemon started.
    pub started: String,
    /// The clock now.
    pub clock: ClockData,
    /// `id` or `en`
    pub language: &'static str,
    /// How far each lane has come.
    pub lanes: Lanes,
    /// How the gateway is.
    pub vitals: Vitals,
}

/// How far each lane has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lanes {
    /// Alarm events.
    pub a: LaneStatus,
    /// Telemetry.
    pub t: LaneStatus,
}

/// How the gateway is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Vitals {
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Records waiting for delivery.
    pub backlog: Backlog,
    /// Alarms that are not NORM.
    pub alarms_standing: u64,
}

/// Records waiting for delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Backlog {
    /// Alarm events.
    pub a: u64,
    /// Telemetry.
    pub t: u64,
}

/// Payload of `device/{device}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceDescription {
    /// Its name.
    pub device: Segment,
    /// Its points, by name.
    pub points: Vec<PointDescription>,
}

/// One point of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointDescription {
    /// Its name.
    pub point: PointId,
    /// Its unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Arc<str>>,
}

impl DeviceDescription {
    /// Every device whose points the configuration names. Points that a topic's captures name appear with their readings.
    #[must_use]
    pub fn all(config: &Config) -> Vec<Self> {
        let modbus = config.modbus.iter().flat_map(|bus| &bus.devices).flat_map(|device| &device.points);
        let modbus = modbus.map(|point| PointDescription { point: point.id.clone(), unit: point.unit.clone() });
        let mqtt = config.mqtt.iter().flat_map(|input| &input.subscriptions).filter_map(|subscription| {
            let names: Option<Vec<&str>> = subscription.point.0.iter().map(exact_name).collect();
            let point = PointId::parse(&names?.join("/")).ok()?;
            Some(PointDescription { point, unit: subscription.unit.clone() })
        });
        let mut devices: Vec<Self> = Vec::new();
        for point in modbus.chain(mqtt) {
            let name = point.point.device();
            if let Some(device) = devices.iter_mut().find(|device| device.device.as_str() == name) {
                device.points.push(point);
            } else {
                let device = Segment::parse(name).expect("the first segment of a point is a segment");
                devices.push(Self { device, points: vec![point] });
            }
        }
        for device in &mut devices {
            device.points.sort_by(|a, b| a.point.cmp(&b.point));
            device.points.dedup_by(|a, b| a.point == b.point);
        }
        devices
    }
}

fn exact_name(segment: &TemplateSegment) -> Option<&str> {
    match segment {
        TemplateSegment::Exactly(name) => Some(name.as_str()),
        TemplateSegment::Capture(_) => None,
    }
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

struct Context<'a> {
    record: &'a Record,
    boots: &'a Boots,
    about: &'a About,
    sent: Sent<'a>,
}

/// What the envelope says beside the record's own.
struct Heading<'a> {
    type_: String,
    subject: &'a str,
    schema: &'static str,
    at: Now,
    source_time_ms: Option<i64>,
}

impl Context<'_> {
    fn event<D>(&self, heading: Heading<'_>, data: D) -> Event<D> {
        Event {
            specversion: "1.0",
            id: self.record.id(),
            source: format!("/gardu/{}", self.about.gateway),
            type_: heading.type_,
            subject: heading.subject.to_owned(),
            time: self.time(heading.at, heading.source_time_ms),
            recordedtime: self.time(self.record.recorded, None),
            sequence: format!("{:020}", self.record.sequence),
            datacontenttype: "application/json",
            dataschema: format!("{SCHEMA}{}", heading.schema),
            data,
        }
    }

    fn time(&self, at: Now, source_time_ms: Option<i64>) -> String {
        source_time_ms.map_or_else(|| time_of(self.boots, &self.record.boot, at), rfc3339)
    }

    fn clock(&self, at: Now) -> ClockData {
        let boot = self.record.boot.clone();
        let (trusted, not_before_ms, not_after_ms) = match self.boots.date(&boot, at) {
            Dated::Known { .. } => (true, None, None),
            Dated::Between { not_before_ms, not_after_ms, .. } => (false, not_before_ms, not_after_ms),
        };
        let [not_before, not_after] = [not_before_ms, not_after_ms].map(|ms| ms.map(rfc3339));
        ClockData { trusted, boot, monotonic_ms: at.mono_ms, not_before, not_after }
    }

    fn delivery(&self) -> DeliveryData {
        let recorded = self.record.recorded;
        let age_ms = if *self.sent.boot == self.record.boot {
            Some(self.sent.at.mono_ms.saturating_sub(recorded.mono_ms))
        } else {
            let dates = [(&self.record.boot, recorded), (self.sent.boot, self.sent.at)];
            match dates.map(|(boot, at)| self.boots.date(boot, at)) {
                [Dated::Known { wall_ms: recorded_ms }, Dated::Known { wall_ms: sent_ms }] => {
                    Some(u64::try_from(sent_ms.saturating_sub(recorded_ms)).unwrap_or(0))
                }
                _ => None,
            }
        };
        // Of an age nobody can tell, a restart lies in between: no news.
        DeliveryData { historical: age_ms.is_none_or(|age_ms| age_ms > HISTORICAL_AFTER_MS) }
    }

    fn alarm(&self, t: &Transition) -> Event<AlarmData> {
        let data = AlarmData {
            alarm: t.alarm.clone(),
            occurrence: t.occurrence,
            state: t.state,
            active: t.active,
            acknowledged: t.acknowledged,
            latched: t.latched,
            severity: t.severity,
            value: t.value.clone(),
            unit: t.unit.clone(),
            quality: t.quality,
            reason: t.reason,
            limit: t.limit,
            test: t.test,
            message: in_language(t.message.clone(), self.about.language),
            site: self.about.site.clone(),
            location: self.about.location.clone(),
            by: t.by.clone(),
            by_verified: false,
            comment: t.comment.clone(),
            evidence: t.evidence.clone(),
            clock: self.clock(t.at),
            delivery: self.delivery(),
        };
        let heading = Heading {
            type_: format!("gardu.alarm.{}.v1", t.kind.as_str()),
            subject: t.alarm.as_str(),
            schema: "alarm-event.json",
            at: t.at,
            source_time_ms: t.source_time_ms,
        };
        self.event(heading, data)
    }

    fn stream(&self, event: &StreamEvent) -> Event<StreamData> {
        let (clock, delivery) = (self.clock(self.record.recorded), self.delivery());
        let (word, data) = match event.clone() {
            StreamEvent::Started { reason, replaces, last } => {
                let epoch = self.record.epoch.clone();
                ("started", StreamData::Started { reason, epoch, replaces, last, clock, delivery })
            }
            StreamEvent::Lost { epoch, lane, ranges, count, reason, certain, refused } => {
                ("lost", StreamData::Lost { epoch, lane, ranges, count, reason, certain, refused, clock, delivery })
            }
        };
        self.event(self.heading(format!("gardu.stream.{word}.v1"), "stream", "stream-event.json"), data)
    }

    fn command(&self, result: &CommandResult) -> Event<CommandData> {
        let data = CommandData {
            id: result.id.clone(),
            command: result.command.clone(),
            alarm: result.alarm.clone(),
            by: result.by.clone(),
            by_verified: false,
            clock: self.clock(self.record.recorded),
            delivery: self.delivery(),
        };
        let subject = result.alarm.as_ref().map_or("command", AlarmId::as_str);
        self.event(self.heading("gardu.command.completed.v1".into(), subject, "command-event.json"), data)
    }

    fn telemetry(&self, batch: &Batch) -> Event<TelemetryData> {
        let readings = batch.readings.iter().map(|sample| ReadingData {
            point: sample.point.clone(),
            value: sample.value.clone(),
            quality: sample.quality,
            reason: sample.reason,
            time: self.time(sample.at, sample.source_time_ms),
        });
        let data = TelemetryData {
            readings: readings.collect(),
            clock: self.clock(batch.readings.first().map_or(self.record.recorded, |sample| sample.at)),
            delivery: self.delivery(),
        };
        let first = batch.readings.first();
        let heading = Heading {
            type_: "gardu.telemetry.v1".into(),
            subject: batch.device.as_str(),
            schema: "telemetry-event.json",
            at: first.map_or(self.record.recorded, |sample| sample.at),
            source_time_ms: first.and_then(|sample| sample.source_time_ms),
        };
        self.event(heading, data)
    }

    fn heading<'a>(&self, type_: String, subject: &'a str, schema: &'static str) -> Heading<'a> {
        Heading { type_, subject, schema, at: self.record.recorded, source_time_ms: None }
    }
}

/// The configured language is always there, if need be with the other one's words.
fn in_language(mut texts: Texts, language: Language) -> Texts {
    match language {
        Language::Indonesian => texts.id = texts.id.or_else(|| texts.en.clone()),
        Language::English => texts.en = texts.en.or_else(|| texts.id.clone()),
    }
    texts
}

#[cfg(test)]
mod tests;
