//! The types of everything published (DESIGN.md §5.1, §5.2): the order of keys on the wire is the order of the fields here.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use crate::{
    alarm::{AlarmId, Severity, State, Texts},
    clock::BootId,
    config::{Config, Location, TemplateSegment},
    reading::{Evidence, PointId, Quality, Reason, Segment, Value},
    record::{Epoch, LaneStatus, LastKnown, LossReason, Refused, Replaces, StartReason, Summary},
    store::Space,
};

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
    /// Set on a summary: what it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Replaces>,
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
    /// Set in a summary: the good readings of its 15 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
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
    /// It left this connection in good order for another one: to an earlier broker, or with renewed certificates.
    Moved,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vitals {
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Records waiting for delivery.
    pub backlog: Backlog,
    /// Alarms that are not NORM.
    pub alarms_standing: u64,
    /// Bytes written to storage a day, at the rate of the last hours; absent in the first hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written_day_bytes: Option<u64>,
    /// How full the outbox is, once it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<OutboxVitals>,
}

/// How full the outbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutboxVitals {
    /// What it takes on the disk.
    pub disk_bytes: u64,
    /// What it may take.
    pub quota_bytes: u64,
    /// When it will be full if it goes on growing like this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_in_s: Option<u64>,
    /// How much room the disk has for it.
    pub space: Space,
    /// Why its folder cannot be used, if that is so: it is in memory then, and a power cut takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
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
    /// What kind of device it is, if a profile says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Arc<str>>,
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
        let contacts = config.gpio.iter().flat_map(|gpio| &gpio.contacts);
        let gpio = contacts.flat_map(|contact| [&contact.state, &contact.events]);
        let gpio = gpio.map(|point| PointDescription { point: point.clone(), unit: None });
        let i2c = config.i2c.iter().flat_map(|device| &device.points);
        let i2c = i2c.map(|point| PointDescription { point: point.id.clone(), unit: point.unit.clone() });
        let mqtt = config.mqtt.iter().flat_map(|input| &input.subscriptions).filter_map(|subscription| {
            let names: Option<Vec<&str>> = subscription.point.0.iter().map(exact_name).collect();
            let point = PointId::parse(&names?.join("/")).ok()?;
            Some(PointDescription { point, unit: subscription.unit.clone() })
        });
        let mut devices: Vec<Self> = Vec::new();
        for point in modbus.chain(gpio).chain(i2c).chain(mqtt) {
            let name = point.point.device();
            if let Some(device) = devices.iter_mut().find(|device| device.device.as_str() == name) {
                device.points.push(point);
            } else {
                let device = Segment::parse(name).expect("the first segment of a point is a segment");
                devices.push(Self { device, profile: None, points: vec![point] });
            }
        }
        let profiles = config
            .modbus
            .iter()
            .flat_map(|bus| &bus.devices)
            .filter_map(|device| Some((device.name.as_str(), device.profile.as_ref()?.name.as_str())));
        let profiles: BTreeMap<&str, &str> = profiles.collect();
        for device in &mut devices {
            device.profile = profiles.get(device.device.as_str()).map(|name| Arc::from(*name));
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
