//! One MQTT connection as a dumb wire: the only folder that names rumqttc.
//!
//! A [`Wire`] is one connection attempt and what follows from it. When it goes down it is thrown away with all that
//! rumqttc remembers, and its owner makes a new one after a pause: rumqttc's own replay loses messages, so what must be
//! sent again is the owner's to know. Every publish is QoS 1 and carries the owner's token; its confirmation brings the
//! token back.
//!
//! Silence is judged here: rumqttc's MQTT 5 loop can hang in a write for ever, so a connection on which nothing arrives
//! for 1.5 keep alives is down, whatever rumqttc thinks of it.

#[cfg(test)]
mod tests;
pub mod tls;
mod v4;
mod v5;

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::time::Sleep;

use self::tls::TlsFault;
use crate::{
    clock::Clock,
    config::{BrokerUrl, Login, MqttVersion, TlsFiles},
};

/// How to connect.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where.
    pub url: BrokerUrl,
    /// Which MQTT.
    pub version: MqttVersion,
    /// Client identifier.
    pub client_id: String,
    /// Login.
    pub login: Option<Login>,
    /// For a URL with TLS: read for each connection, so that a changed file counts from the next one on.
    pub tls: TlsFiles,
    /// What a certificate's dates are held against.
    pub clock: Clock,
    /// Keep alive.
    pub keep_alive: Duration,
    /// How long the broker keeps the session after the connection ended; zero is a clean session.
    pub session_expiry: Duration,
    /// What the broker says for us when we are gone.
    pub will: Option<Will>,
    /// Publishes of ours that may wait for their PUBACK.
    pub window: u16,
    /// Messages to us that may wait for our PUBACK (MQTT 5 receive maximum).
    pub receive_maximum: u16,
    /// Largest packet accepted from the broker, in bytes. MQTT 3.1.1 cannot tell the broker: there, messages up to
    /// 16 MiB arrive all the same, so that the owner can refuse and acknowledge one, instead of getting it again for ever.
    pub packet_size_max: u32,
    /// DNS, TCP and CONNACK together.
    pub connect_timeout: Duration,
}

/// A message the broker sends when the connection ends without DISCONNECT; QoS 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Whether it is retained.
    pub retain: Retain,
    /// MQTT 5: how long the broker waits for us to come back first.
    pub delay: Duration,
}

/// Whether the broker keeps a message for later subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    /// Kept.
    Yes,
    /// Passed on only.
    No,
}

/// One publish, QoS 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Whether it is retained.
    pub retain: Retain,
    /// MQTT 5 content type.
    pub content_type: Option<&'static str>,
    /// MQTT 5 correlation data, for an answer.
    pub correlation: Option<Bytes>,
}

/// The owner's name for a publish.
pub type Token = u64;

/// What comes over the wire.
#[derive(Debug)]
pub enum Event {
    /// CONNACK of success.
    Up(Limits),
    /// A publish of ours is confirmed or refused.
    Confirmed {
        /// Which.
        token: Token,
        /// How.
        verdict: Verdict,
    },
    /// SUBACK: whether each filter was granted, in order.
    Subscribed(Vec<bool>),
    /// A message for us.
    Message(Message),
    /// The connection is over; this wire yields nothing more.
    Down(Down),
}

/// What the broker allows, with MQTT's defaults where it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Whether it still knew our session.
    pub session_present: bool,
    /// Publishes it takes before a PUBACK.
    pub receive_maximum: u16,
    /// Largest packet it takes, in bytes.
    pub packet_size_max: Option<u32>,
}

/// What the broker did with a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted.
    Accepted,
    /// Accepted, but nobody subscribes (MQTT 5, 0x10).
    NoSubscriber,
    /// Not authorised (0x87).
    NotAuthorised,
    /// For now: quota exceeded, busy, unspecified, implementation specific.
    Later(u8),
    /// For good: too large, topic name or payload format invalid.
    Invalid(u8),
}

/// A message for us.
#[derive(Debug)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Whether it was kept by the broker from before.
    pub retained: bool,
    /// MQTT 5 response topic.
    pub response_topic: Option<String>,
    /// MQTT 5 correlation data.
    pub correlation: Option<Bytes>,
    /// To be given back to [`Wire::acknowledge`] when its effect is durable.
    pub receipt: Receipt,
}

/// The right to acknowledge one message on the connection it came by. On another connection it does nothing: packet
/// identifiers start again there and would hit another message.
#[derive(Debug)]
pub struct Receipt {
    connection: u64,
    packet_id: u16,
}

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Down {
    /// The name could not be resolved.
    #[error("cannot resolve {0}")]
    Dns(String),
    /// Nobody listens or the network refuses.
    #[error("cannot reach the broker: {0}")]
    Unreachable(Arc<str>),
    /// Wrong user name or password, or this client id may not connect.
    #[error("the broker refuses this login")]
    LoginRefused,
    /// CONNACK with another refusal.
    #[error("the broker refuses the connection: {0}")]
    Refused(Arc<str>),
    /// Another client took our client id (MQTT 5, 0x8E).
    #[error("another client uses this client id")]
    TakenOver,
    /// The broker says it is going down or closed the connection.
    #[error("the broker closed the connection")]
    Closed,
    /// No answer within the keep-alive's bound.
    #[error("the link is silent")]
    Silent,
    /// The peer broke the protocol or sent a packet above our limit.
    #[error("protocol error: {0}")]
    Protocol(Arc<str>),
    /// No TLS with this peer.
    #[error(transparent)]
    Tls(#[from] TlsFault),
}

impl Down {
    /// A bounded word for metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Dns(_) => "dns",
            Self::Unreachable(_) => "unreachable",
            Self::LoginRefused => "login-refused",
            Self::Refused(_) => "refused",
            Self::TakenOver => "taken-over",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Protocol(_) => "protocol",
            Self::Tls(fault) => fault.word(),
        }
    }

    /// Whether it stays until a person changes something here or at the broker: its owner tries again slowly.
    #[must_use]
    pub const fn needs_person(&self) -> bool {
        match self {
            Self::LoginRefused | Self::TakenOver => true,
            Self::Tls(fault) => fault.needs_person(),
            Self::Dns(_)
            | Self::Unreachable(_)
            | Self::Refused(_)
            | Self::Closed
            | Self::Silent
            | Self::Protocol(_) => false,
        }
    }
}

/// Largest packet of the protocol's framing we let a 3.1.1 broker send; a Pi Zero 2 W has room for one of these.
const V4_INCOMING_MAX: usize = 16 * 1024 * 1024;
/// Requests beside publishes and acknowledgements that may wait for rumqttc: a few subscriptions and the DISCONNECT.
const OTHER_REQUESTS: usize = 16;
/// MQTT 5 reason codes used for what is refused before it is sent.
const TOPIC_NAME_INVALID: u8 = 0x90;
const PACKET_TOO_LARGE: u8 = 0x95;

/// Counts connections of this process, so that receipts of an older one are known.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// One connection.
pub struct Wire {
    connection: u64,
    client: Client,
    /// Owns the event loop and its one poll future, which therefore survives when [`Wire::next`] is dropped.
    heard: Heard,
    state: Phase,
    /// Publishes that may be unconfirmed: the owner's window, then also what the broker allows.
    window: usize,
    packet_size_max: Option<u32>,
    /// Published, packet identifier not yet chosen; in the order of submission.
    submitted: VecDeque<Token>,
    in_flight: HashMap<u16, Token>,
    /// Verdicts found without asking the broker. Bounded: the owner's window counts these too.
    local: VecDeque<Event>,
    /// Acknowledgements that found rumqttc's queue full. Bounded by what the broker may leave unacknowledged.
    acks: VecDeque<u16>,
    keep_alive: Duration,
    silence: Pin<Box<Sleep>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Up,
    Down,
}

/// What one version's event loop says; ends with the first `Err`.
type Heard = Pin<Box<dyn Stream<Item = Result<Signal, Down>> + Send>>;

/// An event of rumqttc, the same for both versions.
#[derive(Debug)]
enum Signal {
    Up { limits: Limits, server_keep_alive: Option<Duration> },
    Sent(u16),
    Confirmed(u16, Verdict),
    Subscribed(Vec<bool>),
    Message { packet_id: u16, message: Incoming },
    Heard,
    Disconnecting,
    Other,
}

/// A [`Message`] without its receipt.
#[derive(Debug)]
struct Incoming {
    topic: String,
    payload: Bytes,
    retained: bool,
    response_topic: Option<String>,
    correlation: Option<Bytes>,
}

/// rumqttc's request side.
enum Client {
    V4(rumqttc::AsyncClient),
    V5(rumqttc::v5::AsyncClient),
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("connection", &self.connection).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Wire {
    /// Begins to connect; nothing happens until [`Wire::next`] is awaited.
    #[must_use]
    pub fn connect(settings: &Settings) -> Self {
        let capacity = usize::from(settings.window) + usize::from(settings.receive_maximum) + OTHER_REQUESTS;
        let (client, heard) = match settings.version {
            MqttVersion::V311 => v4::open(settings, capacity),
            MqttVersion::V5 => v5::open(settings, capacity),
        };
        // rumqttc panics on some malformed packets; what a broker sends must never end the daemon.
        let heard = std::panic::AssertUnwindSafe(heard)
            .catch_unwind()
            .map(|caught| caught.unwrap_or_else(|_| Err(Down::Protocol("malformed packet".into()))));
        Self {
            connection: CONNECTIONS.fetch_add(1, Ordering::Relaxed),
            client,
            heard: Box::pin(heard),
            state: Phase::Connecting,
            window: usize::from(settings.window.max(1)),
            packet_size_max: None,
            submitted: VecDeque::new(),
            in_flight: HashMap::new(),
            local: VecDeque::new(),
            acks: VecDeque::new(),
            keep_alive: keep_alive(settings),
            // rumqttc counts whole seconds and bounds DNS, TCP and CONNACK together; one more is for its own slowness.
            silence: Box::pin(tokio::time::sleep(settings.connect_timeout + Duration::from_secs(2))),
        }
    }

    /// The next event. Cancel safe: dropping the future loses nothing. After [`Event::Down`] it is pending for ever.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.local.pop_front() {
                return event;
            }
            if self.state == Phase::Down {
                return std::future::pending().await;
            }
            self.pass_on_acks();
            let heard = tokio::select! {
                heard = self.heard.next() => heard.unwrap_or(Err(Down::Closed)),
                () = &mut self.silence => Err(Down::Silent),
            };
            if let Some(event) = self.apply(heard) {
                return event;
            }
        }
    }

    fn apply(&mut self, heard: Result<Signal, Down>) -> Option<Event> {
        let signal = match heard {
            Ok(signal) => signal,
            Err(down) => {
                self.state = Phase::Down;
                return Some(Event::Down(down));
            }
        };
        if signal.was_received() {
            // Pings leave every keep alive whatever the traffic, so an answer is never older than that and a round trip.
            self.silence = Box::pin(tokio::time::sleep(self.keep_alive * 3 / 2));
        }
        match signal {
            Signal::Up { limits, server_keep_alive } => {
                self.keep_alive = server_keep_alive.unwrap_or(self.keep_alive);
                self.silence = Box::pin(tokio::time::sleep(self.keep_alive * 3 / 2));
                // At the broker's very limit rumqttc would also hold back acknowledgements and the DISCONNECT.
                let allowed = usize::from(limits.receive_maximum.saturating_sub(1).max(1));
                self.window = self.window.min(allowed);
                self.packet_size_max = limits.packet_size_max;
                self.state = Phase::Up;
                Some(Event::Up(limits))
            }
            Signal::Sent(packet_id) => {
                if let Some(token) = self.submitted.pop_front() {
                    self.in_flight.insert(packet_id, token);
                }
                None
            }
            Signal::Confirmed(packet_id, verdict) => {
                self.in_flight.remove(&packet_id).map(|token| Event::Confirmed { token, verdict })
            }
            Signal::Subscribed(granted) => Some(Event::Subscribed(granted)),
            Signal::Message { packet_id, message } => {
                let Incoming { topic, payload, retained, response_topic, correlation } = message;
                let receipt = Receipt { connection: self.connection, packet_id };
                Some(Event::Message(Message { topic, payload, retained, response_topic, correlation, receipt }))
            }
            Signal::Heard | Signal::Disconnecting | Signal::Other => None,
        }
    }

    /// Publishes; false if the window is full or the wire is not up, and then nothing happened.
    ///
    /// What the broker could only refuse by closing the connection (a topic with wildcards, more than its maximum packet
    /// size) is refused here with [`Verdict::Invalid`] and never sent.
    #[must_use]
    pub fn publish(&mut self, token: Token, publish: Publish) -> bool {
        if !self.has_room() {
            return false;
        }
        let refused = if publish.topic.is_empty() || publish.topic.contains(['+', '#', '\0']) {
            Some(TOPIC_NAME_INVALID)
        } else {
            let too_large = self.packet_size_max.is_some_and(|max| publish.packet_size() > u64::from(max));
            too_large.then_some(PACKET_TOO_LARGE)
        };
        if let Some(code) = refused {
            self.local.push_back(Event::Confirmed { token, verdict: Verdict::Invalid(code) });
            return true;
        }
        let taken = match &self.client {
            Client::V4(client) => v4::publish(client, publish),
            Client::V5(client) => v5::publish(client, publish),
        };
        if taken {
            self.submitted.push_back(token);
        }
        taken
    }

    /// Whether [`Wire::publish`] would take one now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.state == Phase::Up && self.unconfirmed() < self.window
    }

    /// How many publishes wait for their verdict.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.submitted.len() + self.in_flight.len() + self.local.len()
    }

    /// Subscribes at QoS 1 to every filter in one packet; false if the wire is not up.
    #[must_use]
    pub fn subscribe(&mut self, filters: &[String]) -> bool {
        self.state == Phase::Up
            && match &self.client {
                Client::V4(client) => v4::subscribe(client, filters),
                Client::V5(client) => v5::subscribe(client, filters),
            }
    }

    /// Ends one subscription; false if the wire is not up. Its acknowledgement is not reported.
    #[must_use]
    pub fn unsubscribe(&mut self, filter: &str) -> bool {
        self.state == Phase::Up
            && match &self.client {
                Client::V4(client) => v4::unsubscribe(client, filter),
                Client::V5(client) => v5::unsubscribe(client, filter),
            }
    }

    /// Sends the PUBACK of a message.
    #[expect(clippy::needless_pass_by_value, reason = "a receipt is used once")]
    pub fn acknowledge(&mut self, receipt: Receipt) {
        // QoS 0 has no packet identifier and no acknowledgement.
        if receipt.connection == self.connection && receipt.packet_id != 0 && self.state == Phase::Up {
            self.acks.push_back(receipt.packet_id);
            self.pass_on_acks();
        }
    }

    fn pass_on_acks(&mut self) {
        while let Some(packet_id) = self.acks.front() {
            let taken = match &self.client {
                Client::V4(client) => v4::acknowledge(client, *packet_id),
                Client::V5(client) => v5::acknowledge(client, *packet_id),
            };
            if !taken {
                return; // the queue moves whenever rumqttc is polled, and then this is tried again
            }
            self.acks.pop_front();
        }
    }

    /// Sends DISCONNECT, so that the will is not published, and waits at most `bound` for it to leave.
    pub async fn disconnect(mut self, bound: Duration) {
        if self.state != Phase::Up {
            return;
        }
        let leave = async {
            let mut asked = false;
            loop {
                self.pass_on_acks();
                asked = asked
                    || match &self.client {
                        Client::V4(client) => client.try_disconnect().is_ok(),
                        Client::V5(client) => client.try_disconnect().is_ok(),
                    };
                match self.heard.next().await {
                    Some(Ok(Signal::Disconnecting) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                }
            }
        };
        // Too slow: the connection is dropped and the will says what DISCONNECT would have spared.
        let _ = tokio::time::timeout(bound, leave).await;
    }
}

impl Signal {
    /// Whether it proves that the broker is there, which what we send ourselves does not.
    const fn was_received(&self) -> bool {
        match self {
            Self::Up { .. } | Self::Confirmed(..) | Self::Subscribed(_) | Self::Message { .. } | Self::Heard => true,
            Self::Sent(_) | Self::Disconnecting | Self::Other => false,
        }
    }
}

impl Publish {
    /// An upper bound of the PUBLISH packet: fixed header, topic, packet identifier, properties, payload.
    fn packet_size(&self) -> u64 {
        let content_type = self.content_type.map_or(0, |text| text.len() + 3);
        let correlation = self.correlation.as_ref().map_or(0, |data| data.len() + 3);
        let size = 5 + 2 + self.topic.len() + 2 + 4 + content_type + correlation + self.payload.len();
        u64::try_from(size).unwrap_or(u64::MAX)
    }
}

/// The keep alive as CONNECT can carry it and rumqttc takes it: 5 s to 18 h.
fn keep_alive(settings: &Settings) -> Duration {
    let seconds = settings.keep_alive.as_secs().clamp(5, u64::from(u16::MAX));
    Duration::from_secs(seconds)
}

/// A host as it may stand before `:port`.
fn host(url: &BrokerUrl) -> String {
    if url.host.contains(':') && !url.host.starts_with('[') { format!("[{}]", url.host) } else { url.host.clone() }
}

/// rumqttc's inflight: larger than our window, so that a broker that acknowledges out of order seldom meets a packet
/// identifier still in use.
const fn inflight(window: u16) -> u16 {
    let four = window.saturating_mul(4);
    if four < 16 { 16 } else { four }
}

fn connect_timeout_s(settings: &Settings) -> u64 {
    settings.connect_timeout.as_secs().max(1)
}

/// Names an error of connecting: only what a resolver says carries no code of the operating system.
fn unreachable(settings_url: &BrokerUrl, error: &io::Error) -> Down {
    if error.raw_os_error().is_none() {
        Down::Dns(settings_url.host.clone())
    } else {
        Down::Unreachable(error.to_string().into())
    }
}

/// Names an error of an open connection.
fn broken(error: &io::Error) -> Down {
    if error.kind() == io::ErrorKind::TimedOut { Down::Silent } else { Down::Closed }
}
