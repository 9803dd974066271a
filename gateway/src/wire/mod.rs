//! One MQTT connection as a dumb wire: the only folder that names rumqttc.
//!
//! A [`Wire`] is one connection attempt and what follows from it. When it goes down it is thrown away with all that
//! rumqttc remembers, and its owner makes a new one after a pause: rumqttc's own replay loses messages, so what must be
//! sent again is the owner's to know. Every publish is QoS 1 and carries the owner's token; its confirmation brings the
//! token back.

mod connection;
mod peer;
mod probe;
#[cfg(test)]
mod tests;
pub mod tls;
mod v4;
mod v5;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use self::tls::TlsFault;
pub use self::{connection::Wire, probe::probe};
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
    /// DNS, TCP, TLS and CONNACK together.
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
