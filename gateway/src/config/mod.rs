//! The configuration, checked: holding a [`Config`] is the proof that it is complete and consistent.
//!
//! `read` turns TOML into these types and reports every problem at once with `file:line:column`; nothing else in the
//! program looks at TOML. Durations are as written, sizes are bytes.

mod alarms;
mod center;
mod document;
mod files;
pub mod language;
mod modbus;
mod mqtt;
mod names;
mod pins;
pub mod points;
pub mod problem;
mod profile;
pub mod read;
mod serial;
mod tls;
pub mod units;
mod wired;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

pub use self::{
    language::Language,
    problem::Problems,
    read::{Need, load},
    wired::{
        Bias, Bus, Device, Gpio, GpioContact, I2cChip, I2cDevice, I2cInput, I2cPoint, Level, Link, Order, Parity,
        Point, Profile, SerialLine, Table, Type,
    },
};
use crate::{
    alarm::rule::Rule,
    reading::{Segment, Value},
};

/// Everything an operator decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Who this gateway is.
    pub gateway: Gateway,
    /// Where records go.
    pub command_center: CommandCenter,
    /// Where they wait.
    pub outbox: Outbox,
    /// Local page, API, metrics.
    pub http: Http,
    /// The Modbus buses, each with its devices.
    pub modbus: Vec<Bus>,
    /// The MQTT inputs.
    pub mqtt: Vec<MqttInput>,
    /// Contacts on the gateway's own header, a device a chip.
    pub gpio: Vec<Gpio>,
    /// Sensors on its own I2C buses.
    pub i2c: Vec<I2cDevice>,
    /// Every rule, the built-in ones (`communication`, `stale`) included.
    pub rules: Vec<Rule>,
    /// How readings are reported.
    pub telemetry: Telemetry,
    /// CRC-32 over the files, in hexadecimal: `status.config`.
    pub fingerprint: String,
}

/// Who this gateway is.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Part of every topic; unique in the city.
    pub id: Segment,
    /// The place; several gateways may share it. Defaults to the id.
    pub site: String,
    /// For people. Defaults to the id.
    pub name: String,
    /// IANA zone, for schedules and texts only. Defaults to `Asia/Jakarta`.
    pub timezone: String,
    /// Where it hangs.
    pub location: Option<Location>,
    /// Language of texts.
    pub language: Language,
}

/// Where the gateway hangs.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Location {
    /// Degrees north, WGS 84.
    pub lat: f64,
    /// Degrees east, WGS 84.
    pub lon: f64,
    /// Street address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Nearest gate or landmark: what the 112 operator asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landmark: Option<String>,
}

/// MQTT version on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttVersion {
    /// MQTT 5: sees refusals.
    V5,
    /// MQTT 3.1.1.
    V311,
}

/// What lies between MQTT and TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Nothing: `mqtt://`.
    Mqtt,
    /// TLS: `mqtts://`.
    Mqtts,
}

/// The address of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// With or without TLS.
    pub scheme: Scheme,
    /// Name or address; IPv6 in brackets, so that `{host}:{port}` resolves.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.scheme {
            Scheme::Mqtt => "mqtt",
            Scheme::Mqtts => "mqtts",
        };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// Files by which the two ends of a TLS connection know each other; read anew for every connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// PEM certificates of the authorities that may vouch for the broker; none: those the system trusts.
    pub ca: Option<PathBuf>,
    /// How we prove who we are, if the broker wants to know.
    pub client: Option<ClientCertificate>,
}

/// A certificate of our own (mutual TLS).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM chain, our own first.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

/// Files by which devices and a listener of the gateway know each other; read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    /// PEM chain, the gateway's own first.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    /// PEM certificates of the authorities of which every device must show a certificate; none: nobody needs one.
    pub client_ca: Option<PathBuf>,
}

/// User name and password for a broker.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// MQTT user name.
    pub username: String,
    /// The password as read from its file, without the line's end.
    pub password: Option<String>,
}

impl std::fmt::Debug for Login {
    /// Never shows the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Which confirmation lets a record leave the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveredWhen {
    /// PUBACK of success; "no matching subscribers" (0x10) keeps the record. MQTT 5 only.
    Subscriber,
    /// Any PUBACK of success.
    Puback,
    /// The command center's `receipt`.
    Receipt,
}

/// The uplink.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandCenter {
    /// Brokers in order; at least one.
    pub urls: Vec<BrokerUrl>,
    /// MQTT version.
    pub version: MqttVersion,
    /// Which confirmation counts.
    pub delivered_when: DeliveredWhen,
    /// Login, if the broker wants one.
    pub login: Option<Login>,
    /// For URLs with TLS.
    pub tls: TlsFiles,
    /// MQTT keep alive; at least 10 s.
    pub keep_alive: Duration,
    /// First part of every topic, without slashes at its ends.
    pub topic_prefix: String,
    /// Hold deliveries, never critical ones, while the center says it is offline, at most 15 minutes.
    pub hold_when_center_offline: bool,
}

/// Where records wait.
#[derive(Debug, Clone, PartialEq)]
pub struct Outbox {
    /// Folder of the store.
    pub path: PathBuf,
    /// Bytes a day that may be written to the storage before an alarm says so.
    pub write_budget_bytes: Option<u64>,
    /// What everything below it may take on the disk, in bytes.
    pub max_size: u64,
    /// Telemetry older than this is given up.
    pub telemetry_max_age: Duration,
}

/// What the gateway serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Page and API; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Metrics and health also here.
    pub metrics_listen: Option<SocketAddr>,
}

/// An MQTT input.
#[derive(Debug, Clone, PartialEq)]
pub struct MqttInput {
    /// Its name.
    pub name: Segment,
    /// A broker to subscribe at, or an address to listen on.
    pub endpoint: Endpoint,
    /// What to take; at least one.
    pub subscriptions: Vec<Subscription>,
}

/// Where MQTT messages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// The gateway is a client of this broker.
    Broker {
        /// Where.
        url: BrokerUrl,
        /// MQTT version.
        version: MqttVersion,
        /// Login.
        login: Option<Login>,
        /// For a URL with TLS.
        tls: TlsFiles,
        /// MQTT keep alive.
        keep_alive: Duration,
    },
    /// Devices publish straight to the gateway.
    Listen {
        /// Address to bind.
        address: SocketAddr,
        /// Login every client must give; none only on loopback, or where every client must show a certificate.
        login: Option<Login>,
        /// With TLS, if it has certificates.
        tls: Option<ListenTls>,
    },
}

/// One subscription: which messages, and how they become readings.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscription {
    /// The topic with `{captures}`, split at `/`; the MQTT filter has `+` for each capture.
    pub topic: Vec<TopicLevel>,
    /// The point's name, made of captures and fixed text.
    pub point: PointTemplate,
    /// JSON pointer (RFC 6901) to the value; empty is the payload itself.
    pub value: String,
    /// JSON pointer to the device's time.
    pub time: Option<String>,
    /// Text or number in the payload (as text) to value.
    pub values: Vec<(String, Value)>,
    /// Silence after which the point becomes bad.
    pub stale: Option<Duration>,
    /// Unit for people.
    pub unit: Option<Arc<str>>,
    /// How it is reported as telemetry.
    pub report: Report,
}

impl Subscription {
    /// The MQTT topic filter.
    #[must_use]
    pub fn filter(&self) -> String {
        let levels: Vec<&str> = self
            .topic
            .iter()
            .map(|level| match level {
                TopicLevel::Exactly(text) => text.as_str(),
                TopicLevel::Capture(_) => "+",
            })
            .collect();
        levels.join("/")
    }
}

/// One level of a subscription's topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicLevel {
    /// This text.
    Exactly(String),
    /// Anything; its slug becomes the named capture.
    Capture(String),
}

/// The name of a point with captures to fill in: one entry a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointTemplate(pub Vec<TemplateSegment>);

/// One segment of a [`PointTemplate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSegment {
    /// This name.
    Exactly(Segment),
    /// What the topic's capture of this name holds, as a slug.
    Capture(String),
}

/// How a point's readings become telemetry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Report {
    /// The latest value once an interval.
    Interval,
    /// Every change by more than `deadband` is a reading, sent within 1 s.
    Change {
        /// Smallest change that counts, in the point's unit; 0 counts every one.
        deadband: f64,
    },
    /// Never.
    Off,
}

/// Telemetry as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// Time between two interval reports.
    pub interval: Duration,
}
