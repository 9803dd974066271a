//! MQTT 5 on the wire: rumqttc's `v5` turned into [`Signal`]s.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::{
    NetworkOptions, Outgoing,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError,
        mqttbytes::{
            self, QoS,
            v5::{
                ConnAck, ConnectProperties, ConnectReturnCode, DisconnectReasonCode, Filter, LastWill,
                LastWillProperties, Packet, PubAckReason, PublishProperties, SubscribeReasonCode,
            },
        },
    },
};

use super::{
    Down, Limits, Publish, Retain, Settings, Verdict,
    connection::{Client, Heard, Incoming, Signal, connect_timeout_s, inflight, keep_alive},
    peer::Peer,
};

/// What a poll needs beside the event loop.
struct Side {
    peer: Peer,
    keep_alive: Duration,
    connected: bool,
}

pub(super) fn open(settings: &Settings, peer: Peer, capacity: usize) -> (Client, Heard) {
    let mut options = MqttOptions::new(settings.client_id.clone(), peer.host(), settings.url.port);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(seconds(settings.session_expiry));
    properties.receive_maximum = Some(settings.receive_maximum.max(1)); // zero is a protocol error
    properties.max_packet_size = Some(settings.packet_size_max.max(1));
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_transport(peer.transport())
        .set_keep_alive(keep_alive(settings))
        .set_clean_start(settings.session_expiry.is_zero())
        .set_outgoing_inflight_upper_limit(inflight(settings.window))
        .set_manual_acks(true)
        .set_connection_timeout(connect_timeout_s(settings))
        .set_connect_properties(properties)
        .set_network_options(network);
    if let Some(login) = &settings.login {
        options.set_credentials(login.username.clone(), login.password.clone().unwrap_or_default());
    }
    if let Some(will) = &settings.will {
        let properties = LastWillProperties {
            delay_interval: Some(seconds(will.delay)),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        let retain = will.retain == Retain::Yes;
        let payload = will.payload.clone();
        options.set_last_will(LastWill::new(&will.topic, payload, QoS::AtLeastOnce, retain, Some(properties)));
    }
    let (client, mut event_loop) = AsyncClient::new(options, capacity);
    let mut side = Side { peer, keep_alive: keep_alive(settings), connected: false };
    let heard = Heard::from(|said| async move {
        loop {
            said.say(poll(&mut event_loop, &mut side).await).await;
        }
    });
    (Client::V5(client), heard)
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

async fn poll(event_loop: &mut EventLoop, side: &mut Side) -> Result<Signal, Down> {
    match event_loop.poll().await {
        Ok(Event::Incoming(Packet::ConnAck(connack))) => {
            side.connected = true;
            if server_keep_alive(&connack).is_some_and(|keep_alive| keep_alive.is_zero()) {
                // The broker does not watch us, but we still watch it; rumqttc would ping without pause.
                event_loop.options.set_keep_alive(side.keep_alive);
            }
            Ok(up(&connack))
        }
        Ok(Event::Incoming(packet)) => Ok(received(packet)),
        Ok(Event::Outgoing(Outgoing::Publish(packet_id))) => Ok(Signal::Sent(packet_id)),
        Ok(Event::Outgoing(Outgoing::Disconnect)) => Ok(Signal::Disconnecting),
        Ok(Event::Outgoing(_)) => Ok(Signal::Other),
        Err(error) => Err(down(error, side)),
    }
}

fn server_keep_alive(connack: &ConnAck) -> Option<Duration> {
    let seconds = connack.properties.as_ref()?.server_keep_alive?;
    Some(Duration::from_secs(seconds.into()))
}

fn up(connack: &ConnAck) -> Signal {
    let properties = connack.properties.as_ref();
    let limits = Limits {
        session_present: connack.session_present,
        receive_maximum: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
        packet_size_max: properties.and_then(|p| p.max_packet_size),
    };
    Signal::Up { limits, server_keep_alive: server_keep_alive(connack).filter(|keep_alive| !keep_alive.is_zero()) }
}

fn received(packet: Packet) -> Signal {
    match packet {
        Packet::PubAck(ack) => Signal::Confirmed(ack.pkid, verdict(ack.reason)),
        Packet::SubAck(ack) => {
            let granted = ack.return_codes.iter().map(|code| matches!(code, SubscribeReasonCode::Success(_)));
            Signal::Subscribed(granted.collect())
        }
        Packet::Publish(publish) => {
            let (response_topic, correlation) =
                publish.properties.map_or((None, None), |p| (p.response_topic, p.correlation_data));
            let message = Incoming {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload,
                retained: publish.retain,
                response_topic,
                correlation,
            };
            Signal::Message { packet_id: publish.pkid, message }
        }
        _ => Signal::Heard,
    }
}

/// MQTT 5 §3.4.2.1.
const fn verdict(reason: PubAckReason) -> Verdict {
    match reason {
        PubAckReason::Success => Verdict::Accepted,
        PubAckReason::NoMatchingSubscribers => Verdict::NoSubscriber,
        PubAckReason::NotAuthorized => Verdict::NotAuthorised,
        PubAckReason::UnspecifiedError => Verdict::Later(0x80),
        PubAckReason::ImplementationSpecificError => Verdict::Later(0x83),
        PubAckReason::PacketIdentifierInUse => Verdict::Later(0x91),
        PubAckReason::QuotaExceeded => Verdict::Later(0x97),
        PubAckReason::TopicNameInvalid => Verdict::Invalid(0x90),
        PubAckReason::PayloadFormatInvalid => Verdict::Invalid(0x99),
    }
}

fn down(error: ConnectionError, Side { peer, connected, .. }: &Side) -> Down {
    match error {
        ConnectionError::Io(e) if *connected => peer.broken(&e),
        ConnectionError::Io(e) => peer.unreachable(&e),
        ConnectionError::Timeout(_) => Down::Unreachable("no answer in time".into()),
        ConnectionError::ConnectionRefused(code) => refused(code),
        ConnectionError::MqttState(state) => match state {
            StateError::Io(e) | StateError::Deserialization(mqttbytes::Error::Io(e)) => peer.broken(&e),
            StateError::ConnectionAborted => Down::Closed,
            StateError::AwaitPingResp | StateError::CollisionTimeout => Down::Silent,
            StateError::ConnFail { reason } => refused(reason),
            StateError::ServerDisconnect { reason_code, .. } => disconnected(reason_code),
            other => Down::Protocol(other.to_string().into()),
        },
        ConnectionError::NotConnAck(_) => Down::Protocol("the first packet is not CONNACK".into()),
        ConnectionError::Tls(error) => peer.no_tls(&error),
        ConnectionError::RequestsDone => Down::Closed,
    }
}

fn refused(code: ConnectReturnCode) -> Down {
    match code {
        ConnectReturnCode::BadUserNamePassword
        | ConnectReturnCode::NotAuthorized
        | ConnectReturnCode::BadClientId
        | ConnectReturnCode::ClientIdentifierNotValid
        | ConnectReturnCode::BadAuthenticationMethod
        | ConnectReturnCode::Banned => Down::LoginRefused,
        other => Down::Refused(format!("{other:?}").into()),
    }
}

/// MQTT 5 §3.14.2.1.
fn disconnected(reason: DisconnectReasonCode) -> Down {
    use DisconnectReasonCode as Code;
    match reason {
        Code::SessionTakenOver => Down::TakenOver,
        Code::NotAuthorized => Down::LoginRefused,
        Code::KeepAliveTimeout => Down::Silent,
        Code::MalformedPacket
        | Code::ProtocolError
        | Code::TopicNameInvalid
        | Code::TopicFilterInvalid
        | Code::TopicAliasInvalid
        | Code::ReceiveMaximumExceeded
        | Code::PacketTooLarge
        | Code::PayloadFormatInvalid => Down::Protocol(format!("the broker says {reason:?}").into()),
        _ => Down::Closed,
    }
}

pub(super) fn publish(client: &AsyncClient, publish: Publish) -> bool {
    let retain = publish.retain == Retain::Yes;
    let properties = PublishProperties {
        content_type: publish.content_type.map(str::to_owned),
        correlation_data: publish.correlation,
        ..PublishProperties::default()
    };
    let (topic, payload) = (publish.topic, publish.payload);
    client.try_publish_with_properties(topic, QoS::AtLeastOnce, retain, payload, properties).is_ok()
}

pub(super) fn subscribe(client: &AsyncClient, filters: &[String]) -> bool {
    client.try_subscribe_many(filters.iter().map(|filter| Filter::new(filter.clone(), QoS::AtLeastOnce))).is_ok()
}

pub(super) fn unsubscribe(client: &AsyncClient, filter: &str) -> bool {
    client.try_unsubscribe(filter).is_ok()
}

pub(super) fn acknowledge(client: &AsyncClient, packet_id: u16) -> bool {
    let mut publish = mqttbytes::v5::Publish::new("", QoS::AtLeastOnce, Bytes::new(), None);
    publish.pkid = packet_id;
    client.try_ack(&publish).is_ok()
}
