//! MQTT 3.1.1 on the wire: rumqttc's `v4` turned into [`Signal`]s.

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions, NetworkOptions, Outgoing,
    Packet, QoS, StateError, SubscribeFilter, SubscribeReasonCode, mqttbytes,
};

use super::{
    Down, Limits, Publish, Retain, Settings, Verdict,
    connection::{Client, Heard, Incoming, Signal, V4_INCOMING_MAX, connect_timeout_s, inflight, keep_alive},
    peer::Peer,
};

pub(super) fn open(settings: &Settings, peer: Peer, capacity: usize) -> (Client, Heard) {
    let mut options = MqttOptions::new(settings.client_id.clone(), peer.host(), settings.url.port);
    let incoming_max = V4_INCOMING_MAX.max(usize::try_from(settings.packet_size_max).unwrap_or(V4_INCOMING_MAX));
    options
        .set_transport(peer.transport())
        .set_keep_alive(keep_alive(settings))
        .set_clean_session(settings.session_expiry.is_zero() || settings.client_id.is_empty())
        .set_inflight(inflight(settings.window))
        .set_manual_acks(true)
        // Nothing of ours is refused here: an error in rumqttc would end the connection, and again after every repeat.
        .set_max_packet_size(incoming_max, usize::MAX);
    if let Some(login) = &settings.login {
        options.set_credentials(login.username.clone(), login.password.clone().unwrap_or_default());
    }
    if let Some(will) = &settings.will {
        let retain = will.retain == Retain::Yes;
        options.set_last_will(LastWill::new(&will.topic, will.payload.clone(), QoS::AtLeastOnce, retain));
    }
    let (client, mut event_loop) = AsyncClient::new(options, capacity);
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(connect_timeout_s(settings)).set_tcp_nodelay(true);
    event_loop.set_network_options(network);
    let heard = Heard::from(|said| async move {
        loop {
            said.say(poll(&mut event_loop, &peer).await).await;
        }
    });
    (Client::V4(client), heard)
}

async fn poll(event_loop: &mut EventLoop, peer: &Peer) -> Result<Signal, Down> {
    let connected = event_loop.network.is_some();
    match event_loop.poll().await {
        Ok(Event::Incoming(packet)) => Ok(received(packet)),
        Ok(Event::Outgoing(outgoing)) => Ok(sent(&outgoing)),
        Err(error) => Err(down(error, peer, connected)),
    }
}

fn sent(outgoing: &Outgoing) -> Signal {
    match outgoing {
        Outgoing::Publish(packet_id) => Signal::Sent(*packet_id),
        Outgoing::Disconnect => Signal::Disconnecting,
        _ => Signal::Other,
    }
}

fn received(packet: Packet) -> Signal {
    match packet {
        Packet::ConnAck(connack) => {
            let session_present = connack.session_present;
            let limits = Limits { session_present, receive_maximum: u16::MAX, packet_size_max: None };
            Signal::Up { limits, server_keep_alive: None }
        }
        Packet::PubAck(ack) => Signal::Confirmed(ack.pkid, Verdict::Accepted),
        Packet::SubAck(ack) => {
            let granted = ack.return_codes.iter().map(|code| matches!(code, SubscribeReasonCode::Success(_)));
            Signal::Subscribed(granted.collect())
        }
        Packet::Publish(publish) => {
            let message = Incoming {
                topic: publish.topic,
                payload: publish.payload,
                retained: publish.retain,
                response_topic: None,
                correlation: None,
            };
            Signal::Message { packet_id: publish.pkid, message }
        }
        _ => Signal::Heard,
    }
}

fn down(error: ConnectionError, peer: &Peer, connected: bool) -> Down {
    match error {
        ConnectionError::Io(e) if connected => peer.broken(&e),
        ConnectionError::Io(e) => peer.unreachable(&e),
        ConnectionError::NetworkTimeout => Down::Unreachable("no answer in time".into()),
        ConnectionError::FlushTimeout => Down::Silent,
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword
            | ConnectReturnCode::NotAuthorized
            | ConnectReturnCode::BadClientId => Down::LoginRefused,
            other => Down::Refused(format!("{other:?}").into()),
        },
        ConnectionError::MqttState(state) => match state {
            StateError::Io(e) | StateError::Deserialization(mqttbytes::Error::Io(e)) => peer.broken(&e),
            StateError::ConnectionAborted => Down::Closed,
            StateError::AwaitPingResp | StateError::CollisionTimeout => Down::Silent,
            other => Down::Protocol(other.to_string().into()),
        },
        ConnectionError::NotConnAck(_) => Down::Protocol("the first packet is not CONNACK".into()),
        ConnectionError::Tls(error) => peer.no_tls(&error),
        ConnectionError::RequestsDone => Down::Closed,
    }
}

pub(super) fn publish(client: &AsyncClient, publish: Publish) -> bool {
    let retain = publish.retain == Retain::Yes;
    client.try_publish(publish.topic, QoS::AtLeastOnce, retain, publish.payload).is_ok()
}

pub(super) fn subscribe(client: &AsyncClient, filters: &[String]) -> bool {
    let filters = filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
    client.try_subscribe_many(filters).is_ok()
}

pub(super) fn unsubscribe(client: &AsyncClient, filter: &str) -> bool {
    client.try_unsubscribe(filter).is_ok()
}

pub(super) fn acknowledge(client: &AsyncClient, packet_id: u16) -> bool {
    let mut publish = rumqttc::Publish::new("", QoS::AtLeastOnce, Vec::new());
    publish.pkid = packet_id;
    client.try_ack(&publish).is_ok()
}
