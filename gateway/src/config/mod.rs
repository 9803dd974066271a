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

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

pub use self::{
    language::Language,
    problem::Problems,
    read::{Need, load},
};
use crate::{
    alarm::{Texts, rule::Rule},
    reading::{PointId, Segment, Value},
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

/// One Modbus bus: one wire, one owner.
#[derive(Debug, Clone, PartialEq)]
pub struct Bus {
    /// Its name.
    pub name: Segment,
    /// Where it is.
    pub link: Link,
    /// How long a device may take to answer one request.
    pub timeout: Duration,
    /// Who is on it.
    pub devices: Vec<Device>,
}

/// How a bus is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Modbus TCP.
    Tcp {
        /// Name or address; IPv6 in brackets, so that `{host}:{port}` resolves.
        host: String,
        /// TCP port, 502 unless given.
        port: u16,
    },
    /// Modbus RTU on a serial port.
    Rtu {
        /// Device node; `/dev/serial/by-id/…` stays the same whatever is plugged in first.
        path: PathBuf,
        /// How bytes are sent.
        line: SerialLine,
    },
    /// Modbus RTU frames through a TCP converter, which has the serial port.
    RtuOverTcp {
        /// Name or address; IPv6 in brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// How the converter sends bytes on its wire: what a frame's time is computed from.
        line: SerialLine,
    },
}

impl std::fmt::Display for Link {
    /// The address without what is said of the line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Rtu { path, .. } => write!(f, "rtu://{}", path.display()),
            Self::RtuOverTcp { host, port, .. } => write!(f, "rtu+tcp://{host}:{port}"),
        }
    }
}

/// How bytes are sent on a serial line; always 8 data bits (Modbus over Serial Line 1.02 §2.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialLine {
    /// Bits a second.
    pub baud: u32,
    /// Parity bit.
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    pub stop_bits: u8,
}

impl std::fmt::Display for SerialLine {
    /// As printed on devices: `9600 8N1`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parity = match self.parity {
            Parity::None => 'N',
            Parity::Even => 'E',
            Parity::Odd => 'O',
        };
        write!(f, "{} 8{parity}{}", self.baud, self.stop_bits)
    }
}

/// The parity bit of a byte on a serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parity {
    /// None.
    None,
    /// Even, what the standard asks for.
    Even,
    /// Odd.
    Odd,
}

/// One unit on a bus.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Its name: the first segment of its points.
    pub name: Segment,
    /// Modbus unit identifier, 1 to 247 (255 and 0 on TCP).
    pub unit: u8,
    /// Time between two polls.
    pub poll: Duration,
    /// Missed polls after which `{device}/communication` is raised.
    pub missed_polls: u32,
    /// What kind of device it is, if a profile says so.
    pub profile: Option<Arc<Profile>>,
    /// Its points; at least one.
    pub points: Vec<Point>,
}

/// What is known of a kind of device, beside its points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// What `profile` of a device names.
    pub name: String,
    /// Which edition of it.
    pub version: u16,
    /// What the device is, for people.
    pub title: Texts,
    /// Where its register map comes from.
    pub source: String,
    /// How its line is set when it is new.
    pub serial: Option<SerialLine>,
    /// The operator's own file; none if it is a part of Gardu.
    pub file: Option<PathBuf>,
}

/// Which of the four Modbus tables (Modbus Application Protocol 1.1b3 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Read-write bits, function 1.
    Coil,
    /// Read-only bits, function 2.
    Discrete,
    /// Read-write 16-bit words, function 3.
    Holding,
    /// Read-only 16-bit words, function 4.
    Input,
}

/// How a value lies in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// One bit: a coil, a discrete input, or `bit` of a register (without `bit`: register ≠ 0).
    Bool,
    /// Unsigned 16 bit.
    U16,
    /// Signed 16 bit.
    I16,
    /// Unsigned 32 bit, two registers.
    U32,
    /// Signed 32 bit.
    I32,
    /// Unsigned 64 bit, four registers.
    U64,
    /// Signed 64 bit.
    I64,
    /// IEEE 754 single.
    F32,
    /// IEEE 754 double.
    F64,
    /// `len` bytes of text, two a register, padded with NUL or space.
    Text {
        /// Registers it takes, 1 to 125.
        registers: u16,
    },
}

impl Type {
    /// How many registers (or bits) it takes.
    #[must_use]
    pub const fn width(self) -> u16 {
        match self {
            Self::Bool | Self::U16 | Self::I16 => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
            Self::Text { registers } => registers,
        }
    }
}

/// Byte order of a value of several registers, written as the order of the bytes a (high) to d (low) on the wire; for
/// 64 bit the same rule over eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Big-endian words, big-endian bytes.
    Abcd,
    /// Low word first.
    Cdab,
    /// Big-endian words, bytes swapped.
    Badc,
    /// Little-endian throughout.
    Dcba,
}

/// One point of a Modbus device.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its full name.
    pub id: PointId,
    /// Which table.
    pub table: Table,
    /// First address, 0-based as on the wire.
    pub address: u16,
    /// How it lies there.
    pub type_: Type,
    /// Byte order.
    pub order: Order,
    /// Which bit of a register is meant, 0 the lowest.
    pub bit: Option<u8>,
    /// Multiplies the raw number.
    pub scale: f64,
    /// Is added after scaling.
    pub offset: f64,
    /// Rounds the scaled number to so many decimals.
    pub decimals: Option<u8>,
    /// Unit for people.
    pub unit: Option<Arc<str>>,
    /// Raw numbers that mean "no value".
    pub invalid: Vec<f64>,
    /// Lowest and highest plausible value, after scaling.
    pub range: Option<(f64, f64)>,
    /// How it is reported as telemetry.
    pub report: Report,
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

/// A GPIO chip and the contacts wired to it: one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpio {
    /// Its name: the first segment of its points.
    pub name: Segment,
    /// The chip's device file.
    pub chip: PathBuf,
    /// Time between two looks at the levels; edges in between are not missed.
    pub poll: Duration,
    /// Missed polls after which `{device}/communication` is raised.
    pub missed_polls: u32,
    /// At least one.
    pub contacts: Vec<GpioContact>,
}

/// A dry contact between a line and ground.
#[derive(Debug, Clone, PartialEq)]
pub struct GpioContact {
    /// Whether it is active.
    pub state: PointId,
    /// How often it became active, modulo 65536.
    pub events: PointId,
    /// The number of the line on its chip.
    pub line: u32,
    /// Which level counts as active.
    pub active: Level,
    /// What holds an open line.
    pub bias: Bias,
    /// How long a level must rest before it counts.
    pub debounce: Duration,
    /// How both points are reported as telemetry.
    pub report: Report,
}

/// A level of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Ground: the contact is closed.
    Low,
    /// The contact is open, or something drives the line.
    High,
}

impl Level {
    /// Whether a line is at this level.
    #[must_use]
    pub const fn is(self, high: bool) -> bool {
        matches!(self, Self::High) == high
    }
}

/// The resistor inside the chip that holds a line nobody drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// To the supply.
    PullUp,
    /// To ground.
    PullDown,
    /// None.
    None,
}

/// A chip on an I2C bus: one device.
#[derive(Debug, Clone, PartialEq)]
pub struct I2cDevice {
    /// Its name: the first segment of its points.
    pub name: Segment,
    /// The bus's device file.
    pub bus: PathBuf,
    /// What it is.
    pub chip: I2cChip,
    /// Time between two polls.
    pub poll: Duration,
    /// Missed polls after which `{device}/communication` is raised.
    pub missed_polls: u32,
    /// Primary current that gives 1 V behind the current transformer, in amperes; 0 where there is none.
    pub transformer_a: u16,
    /// Its points; at least one.
    pub points: Vec<I2cPoint>,
}

/// A chip that has a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I2cChip {
    /// SHT4x or SHT3x, whichever answers, at 0x44.
    Climate,
    /// ADS1115 at 0x48.
    Ads1115,
}

/// What a chip measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I2cInput {
    /// Air, in °C.
    Temperature,
    /// Relative, in %.
    Humidity,
    /// 4–20 mA, in mA.
    Loop1,
    /// 4–20 mA, in mA.
    Loop2,
    /// Through a current transformer, true RMS, in A.
    LineCurrent,
    /// Supply voltage, in V.
    Supply,
}

/// One point of a chip.
#[derive(Debug, Clone, PartialEq)]
pub struct I2cPoint {
    /// Its full name.
    pub id: PointId,
    /// What it measures.
    pub input: I2cInput,
    /// Multiplies what was measured.
    pub scale: f64,
    /// Is added after scaling.
    pub offset: f64,
    /// Rounds to so many decimals.
    pub decimals: Option<u8>,
    /// Unit for people.
    pub unit: Option<Arc<str>>,
    /// Lowest and highest plausible value, after scaling.
    pub range: Option<(f64, f64)>,
    /// How it is reported as telemetry.
    pub report: Report,
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
