//! PURE: bytes to MQTT packets and back, for the server's end of a connection.
//!
//! Decoding is rumqttc's public codec (bounds-checked, its size cap applies before a body is buffered) behind four
//! guards it lacks: the level is sniffed first, because its 3.1.1 reader also takes level 5; an empty MQTT 5 DISCONNECT
//! is known; "more bytes needed" after it consumed some means a malformed packet; topics and fixed-header flags are
//! checked. Replies are a few bytes each and written here.
//!
//! Sources: MQTT 3.1.1 and MQTT 5.0 (OASIS); section numbers are those of 5.0.

use bytes::{BufMut as _, Bytes, BytesMut};
use rumqttc::{
    mqttbytes::{self as b4, v4},
    v5::mqttbytes::{self as b5, v5},
};

use crate::config::{Login, MqttVersion};

/// Largest packet, in bytes: the largest payload a reading is made of, and the center's own limit is half of it.
pub const PACKET_SIZE_MAX: u32 = 64 * 1024;

/// Why bytes are not a packet we can go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The first packet is no CONNECT.
    #[error("it does not speak MQTT: no CONNECT")]
    NoConnect,
    /// MQTT 3.1 or a level that does not exist.
    #[error("it speaks another MQTT than 3.1.1 and 5: set one of them on the device")]
    OtherLevel,
    /// Above [`PACKET_SIZE_MAX`].
    #[error("a packet above {PACKET_SIZE_MAX} bytes: send smaller messages, no images")]
    TooLarge,
    /// Broken otherwise.
    #[error("a malformed packet")]
    Packet,
    /// A topic with wildcards or NUL, or an alias we never allowed.
    #[error("a topic that is none")]
    Topic,
}

/// Quality of service of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// No answer.
    AtMostOnce,
    /// PUBACK.
    AtLeastOnce(u16),
    /// PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce(u16),
}

/// A message with its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// Whether it should be kept for later subscribers.
    pub retain: bool,
}

/// What to do with the will at a DISCONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtDisconnect {
    /// The client leaves in order.
    ForgetWill,
    /// MQTT 5 reason 0x04.
    PublishWill,
}

/// CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// As given; may be empty.
    pub client_id: String,
    /// Whether it asks for a fresh session.
    pub clean: bool,
    /// Seconds; 0 is none.
    pub keep_alive_s: u16,
    /// User name and password.
    pub login: Option<Login>,
    /// What to publish when it is gone.
    pub will: Option<Message>,
    /// Publishes of ours it takes before a PUBACK.
    pub receive_maximum: u16,
    /// Largest packet it takes, in bytes.
    pub packet_size_max: u32,
}

/// What a client may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Must be the first, and only the first.
    Connect(Box<Connect>),
    /// A message.
    Publish(Message, Qos),
    /// Our publish has arrived.
    PubAck(u16),
    /// Third step of QoS 2.
    PubRel(u16),
    /// Wants messages.
    Subscribe {
        /// Packet identifier.
        id: u16,
        /// Topic filters.
        filters: Vec<String>,
    },
    /// Wants no more.
    Unsubscribe {
        /// Packet identifier.
        id: u16,
        /// Topic filters.
        filters: Vec<String>,
    },
    /// Still there.
    PingReq,
    /// Leaves.
    Disconnect(AtDisconnect),
}

/// Reads only as much of a CONNECT as tells its version; `None` if more bytes are needed.
pub fn sniff(buffer: &[u8]) -> Result<Option<MqttVersion>, Malformed> {
    match buffer.first() {
        None => return Ok(None),
        Some(0x10) => {}
        Some(_) => return Err(Malformed::NoConnect),
    }
    // Packet type, 1 to 4 bytes of length, the last without the top bit; then the name and the level.
    let Some(end) = buffer.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0) else {
        return if buffer.len() < 5 { Ok(None) } else { Err(Malformed::NoConnect) };
    };
    match buffer.get(2 + end..2 + end + 7) {
        Some([0, 4, b'M', b'Q', b'T', b'T', 4]) => Ok(Some(MqttVersion::V311)),
        Some([0, 4, b'M', b'Q', b'T', b'T', 5]) => Ok(Some(MqttVersion::V5)),
        Some([0, 4, b'M', b'Q', b'T', b'T', _] | [0, 6, b'M', b'Q', b'I', b's', b'd']) => Err(Malformed::OtherLevel),
        Some(_) => Err(Malformed::NoConnect),
        None => Ok(None),
    }
}

/// Takes the next packet out of `buffer`; `None` if more bytes are needed.
pub fn read(version: MqttVersion, buffer: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
    if let Some(first) = buffer.first() {
        check_flags(*first)?;
    }
    if version == MqttVersion::V5 && buffer.starts_with(&[0xE0, 0x00]) {
        let _disconnect = buffer.split_to(2);
        return Ok(Some(Packet::Disconnect(AtDisconnect::ForgetWill)));
    }
    let len = buffer.len();
    let packet = match version {
        MqttVersion::V311 => match v4::Packet::read(buffer, PACKET_SIZE_MAX as usize) {
            Ok(packet) => of_v4(packet),
            Err(b4::Error::InsufficientBytes(_)) if buffer.len() == len => return Ok(None),
            Err(b4::Error::PayloadSizeLimitExceeded(_)) => Err(Malformed::TooLarge),
            Err(_) => Err(Malformed::Packet),
        },
        MqttVersion::V5 => match v5::Packet::read(buffer, Some(PACKET_SIZE_MAX)) {
            Ok(packet) => of_v5(packet),
            Err(b5::Error::InsufficientBytes(_)) if buffer.len() == len => return Ok(None),
            Err(b5::Error::PayloadSizeLimitExceeded { .. }) => Err(Malformed::TooLarge),
            Err(_) => Err(Malformed::Packet),
        },
    };
    packet.map(Some)
}

/// Flags of every packet but PUBLISH are fixed (§2.1.3).
fn check_flags(first: u8) -> Result<(), Malformed> {
    let expected = match first >> 4 {
        3 => return Ok(()),
        6 | 8 | 10 => 0b0010,
        _ => 0,
    };
    if first & 0x0F == expected { Ok(()) } else { Err(Malformed::Packet) }
}

fn of_v4(packet: v4::Packet) -> Result<Packet, Malformed> {
    Ok(match packet {
        v4::Packet::Connect(c) => Packet::Connect(Box::new(Connect {
            client_id: c.client_id,
            clean: c.clean_session,
            keep_alive_s: c.keep_alive,
            login: c.login.map(|l| Login { username: l.username, password: Some(l.password) }),
            will: c.last_will.map(|w| message(w.topic, w.message, w.retain)).transpose()?,
            receive_maximum: u16::MAX,
            packet_size_max: PACKET_SIZE_MAX,
        })),
        v4::Packet::Publish(p) => {
            let qos = match p.qos {
                b4::QoS::AtMostOnce => Qos::AtMostOnce,
                b4::QoS::AtLeastOnce => Qos::AtLeastOnce(p.pkid),
                b4::QoS::ExactlyOnce => Qos::ExactlyOnce(p.pkid),
            };
            Packet::Publish(message(p.topic, p.payload, p.retain)?, qos)
        }
        v4::Packet::PubAck(p) => Packet::PubAck(p.pkid),
        v4::Packet::PubRel(p) => Packet::PubRel(p.pkid),
        v4::Packet::Subscribe(s) => {
            Packet::Subscribe { id: s.pkid, filters: s.filters.into_iter().map(|f| f.path).collect() }
        }
        v4::Packet::Unsubscribe(u) => Packet::Unsubscribe { id: u.pkid, filters: u.topics },
        v4::Packet::PingReq => Packet::PingReq,
        v4::Packet::Disconnect => Packet::Disconnect(AtDisconnect::ForgetWill),
        // Only a server sends these, or a client that answers a QoS 2 publish we never make.
        v4::Packet::ConnAck(_)
        | v4::Packet::PubRec(_)
        | v4::Packet::PubComp(_)
        | v4::Packet::SubAck(_)
        | v4::Packet::UnsubAck(_)
        | v4::Packet::PingResp => return Err(Malformed::Packet),
    })
}

fn of_v5(packet: v5::Packet) -> Result<Packet, Malformed> {
    Ok(match packet {
        v5::Packet::Connect(c, will, login) => {
            let will = will.map(|w| message(utf8(&w.topic)?, w.message, w.retain)).transpose()?;
            let properties = c.properties.unwrap_or_else(v5::ConnectProperties::new);
            Packet::Connect(Box::new(Connect {
                client_id: c.client_id,
                clean: c.clean_start,
                keep_alive_s: c.keep_alive,
                login: login.map(|l| Login { username: l.username, password: Some(l.password) }),
                will,
                receive_maximum: properties.receive_maximum.unwrap_or(u16::MAX),
                packet_size_max: properties.max_packet_size.unwrap_or(PACKET_SIZE_MAX),
            }))
        }
        v5::Packet::Publish(p) => {
            if p.properties.is_some_and(|properties| properties.topic_alias.is_some()) {
                return Err(Malformed::Topic);
            }
            let qos = match p.qos {
                b5::QoS::AtMostOnce => Qos::AtMostOnce,
                b5::QoS::AtLeastOnce => Qos::AtLeastOnce(p.pkid),
                b5::QoS::ExactlyOnce => Qos::ExactlyOnce(p.pkid),
            };
            Packet::Publish(message(utf8(&p.topic)?, p.payload, p.retain)?, qos)
        }
        v5::Packet::PubAck(p) => Packet::PubAck(p.pkid),
        v5::Packet::PubRel(p) => Packet::PubRel(p.pkid),
        v5::Packet::Subscribe(s) => {
            Packet::Subscribe { id: s.pkid, filters: s.filters.into_iter().map(|f| f.path).collect() }
        }
        v5::Packet::Unsubscribe(u) => Packet::Unsubscribe { id: u.pkid, filters: u.filters },
        v5::Packet::PingReq(_) => Packet::PingReq,
        v5::Packet::Disconnect(d) => Packet::Disconnect(match d.reason_code {
            v5::DisconnectReasonCode::NormalDisconnection => AtDisconnect::ForgetWill,
            _ => AtDisconnect::PublishWill, // §3.14.4: only reason 0x00 removes the will
        }),
        v5::Packet::Auth(_)
        | v5::Packet::ConnAck(_)
        | v5::Packet::PubRec(_)
        | v5::Packet::PubComp(_)
        | v5::Packet::SubAck(_)
        | v5::Packet::UnsubAck(_)
        | v5::Packet::PingResp(_) => return Err(Malformed::Packet),
    })
}

fn message(topic: String, payload: Bytes, retain: bool) -> Result<Message, Malformed> {
    if topic.is_empty() || topic.contains(['+', '#', '\0']) {
        return Err(Malformed::Topic);
    }
    Ok(Message { topic, payload, retain })
}

fn utf8(bytes: &[u8]) -> Result<String, Malformed> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed::Topic)
}

/// Why a CONNECT is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectRefusal {
    /// User name or password.
    #[error("wrong user name or password")]
    Login,
    /// No client id, or one that is too long.
    #[error("no usable client id")]
    ClientId,
    /// MQTT 3.1 or unknown.
    #[error("another MQTT than 3.1.1 and 5")]
    Level,
}

/// CONNACK of success: no session is kept, and MQTT 5 clients are told our limits (§3.2.2.3).
pub fn accept(version: MqttVersion, receive_maximum: u16, assigned_id: Option<&str>, out: &mut BytesMut) {
    let mut properties = BytesMut::new();
    properties.put_u8(0x11); // session expiry interval
    properties.put_u32(0);
    properties.put_u8(0x21); // receive maximum
    properties.put_u16(receive_maximum);
    properties.put_u8(0x27); // maximum packet size
    properties.put_u32(PACKET_SIZE_MAX);
    properties.put_slice(&[0x2A, 0, 0x29, 0]); // no shared subscriptions, no subscription identifiers
    if let Some(id) = assigned_id {
        properties.put_u8(0x12);
        put_text(&mut properties, id);
    }
    match version {
        MqttVersion::V311 => out.put_slice(&[0x20, 2, 0, 0]),
        MqttVersion::V5 => put_frame(out, 0x20, &[&[0, 0], &length(properties.len()), &properties]),
    }
}

/// CONNACK of refusal.
pub fn refuse(version: MqttVersion, why: ConnectRefusal, out: &mut BytesMut) {
    let (v311, v5) = match why {
        ConnectRefusal::Level => (1, 0x84),
        ConnectRefusal::ClientId => (2, 0x85),
        ConnectRefusal::Login => (4, 0x86),
    };
    match version {
        MqttVersion::V311 => out.put_slice(&[0x20, 2, 0, v311]),
        MqttVersion::V5 => out.put_slice(&[0x20, 3, 0, v5, 0]),
    }
}

/// PUBACK of success; the short form is the same in both versions (§3.4.2.1).
pub fn puback(id: u16, out: &mut BytesMut) {
    put_frame(out, 0x40, &[&id.to_be_bytes()]);
}

/// PUBREC of success.
pub fn pubrec(id: u16, out: &mut BytesMut) {
    put_frame(out, 0x50, &[&id.to_be_bytes()]);
}

/// PUBCOMP of success.
pub fn pubcomp(id: u16, out: &mut BytesMut) {
    put_frame(out, 0x70, &[&id.to_be_bytes()]);
}

/// Whether a filter is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// At QoS 1.
    Granted,
    /// Not authorised.
    Refused,
}

/// SUBACK.
pub fn suback(version: MqttVersion, id: u16, grants: &[Grant], out: &mut BytesMut) {
    let code = |grant: &Grant| match (grant, version) {
        (Grant::Granted, _) => 1,
        (Grant::Refused, MqttVersion::V311) => 0x80,
        (Grant::Refused, MqttVersion::V5) => 0x87,
    };
    let codes: Vec<u8> = grants.iter().map(code).collect();
    put_frame(out, 0x90, &[&id.to_be_bytes(), no_properties(version), &codes]);
}

/// UNSUBACK of success for `count` filters.
pub fn unsuback(version: MqttVersion, id: u16, count: usize, out: &mut BytesMut) {
    let codes = if version == MqttVersion::V5 { vec![0; count] } else { Vec::new() };
    put_frame(out, 0xB0, &[&id.to_be_bytes(), no_properties(version), &codes]);
}

/// PINGRESP.
pub fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xD0, 0]);
}

/// Why the server ends a connection; MQTT 3.1.1 has no such packet (§3.14.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bye {
    /// The client broke the protocol.
    Malformed = 0x81,
    /// The server goes down.
    ShuttingDown = 0x8B,
    /// Nothing heard within 1.5 times the keep alive.
    KeepAlive = 0x8D,
    /// The same client id connected again.
    TakenOver = 0x8E,
    /// A packet above our limit.
    TooLarge = 0x95,
}

/// DISCONNECT.
pub fn disconnect(version: MqttVersion, why: Bye, out: &mut BytesMut) {
    if version == MqttVersion::V5 {
        out.put_slice(&[0xE0, 2, why as u8, 0]);
    }
}

/// PUBLISH at QoS 1; `None` if the client would not take so large a packet.
pub fn publish(version: MqttVersion, id: u16, message: &Message, size_max: u32, out: &mut BytesMut) -> Option<()> {
    let topic_len = u16::try_from(message.topic.len()).ok()?;
    let mark = out.len();
    let parts: [&[u8]; 5] = [
        &topic_len.to_be_bytes(),
        message.topic.as_bytes(),
        &id.to_be_bytes(),
        no_properties(version),
        &message.payload,
    ];
    put_frame(out, 0x32 | u8::from(message.retain), &parts);
    let fits = out.len() - mark <= size_max as usize;
    if !fits {
        out.truncate(mark);
    }
    fits.then_some(())
}

/// An MQTT 5 packet says that it has no properties; a 3.1.1 packet cannot have any.
const fn no_properties(version: MqttVersion) -> &'static [u8] {
    match version {
        MqttVersion::V311 => &[],
        MqttVersion::V5 => &[0],
    }
}

fn put_frame(out: &mut BytesMut, first: u8, parts: &[&[u8]]) {
    out.put_u8(first);
    out.put_slice(&length(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        out.put_slice(part);
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16(u16::try_from(text.len()).expect("texts of ours are short"));
    out.put_slice(text.as_bytes());
}

/// A variable byte integer (§1.5.5).
fn length(mut len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4);
    loop {
        let low = (len % 128) as u8;
        len /= 128;
        if len == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
