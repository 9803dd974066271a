#![expect(clippy::disallowed_methods, reason = "tests play the clients and the owner as tasks of their own")]

mod tls;

use std::{net::Ipv4Addr, pin::pin};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::*;
use crate::config::MqttVersion::{self, V5, V311};

/// Far above what a busy machine needs; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, pin!(what)).await.expect("it happens soon")
}

/// The owner's end: events as they come, unbounded so that only the listener's own bounds are felt.
pub(crate) struct Owner {
    pub(crate) address: SocketAddr,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Owner {
    pub(crate) async fn start(login: Option<Login>) -> Self {
        Self::start_with(login, None).await
    }

    async fn start_with(login: Option<Login>, tls: Option<Acceptor>) -> Self {
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), login).await.expect("loopback");
        let mut listener = listener.with_tls(tls);
        let address = listener.address().expect("bound");
        let (sender, events) = mpsc::unbounded_channel();
        tokio::spawn(async move { while sender.send(listener.next().await).is_ok() {} });
        Self { address, events }
    }

    pub(crate) async fn event(&mut self) -> Event {
        soon(self.events.recv()).await.expect("the listener runs")
    }

    pub(crate) async fn connected(&mut self) -> Client {
        match self.event().await {
            Event::Connected(client) => client,
            other => panic!("{other:?}"),
        }
    }

    async fn published(&mut self) -> (Message, oneshot::Sender<()>) {
        match self.event().await {
            Event::Published { message, done, .. } => (message, done),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn gone(&mut self) -> (u64, End) {
        match self.event().await {
            Event::Gone { serial, why, .. } => (serial, why),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn frame(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut frame = vec![first];
    let mut len = body.len();
    while len >= 128 {
        frame.push((len % 128) as u8 | 0x80);
        len /= 128;
    }
    frame.push(len as u8);
    [frame, body].concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}

fn properties(version: MqttVersion) -> &'static [u8] {
    if version == V5 { &[0] } else { &[] }
}

/// CONNECT with a clean session and, if given, a will `w` at QoS 1 and a login.
fn connect(version: MqttVersion, id: &str, keep_alive_s: u16, will: Option<&str>, login: Option<[&str; 2]>) -> Vec<u8> {
    let level = if version == V5 { 5 } else { 4 };
    let flags = 2 | will.map_or(0, |_| 0b1100) | login.map_or(0, |_| 0xC0);
    let will = will.map_or(Vec::new(), |topic| [properties(version), &text(topic), &text("w")].concat());
    let login = login.map_or(Vec::new(), |[user, password]| [text(user), text(password)].concat());
    let head = [&text("MQTT")[..], &[level, flags], &keep_alive_s.to_be_bytes(), properties(version)].concat();
    frame(0x10, &[&head, &text(id), &will, &login])
}

pub(crate) fn publish(version: MqttVersion, qos: u8, id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    let id = if qos == 0 { Vec::new() } else { id.to_be_bytes().to_vec() };
    frame(0x30 | qos << 1, &[&text(topic), &id, properties(version), payload])
}

pub(crate) const PING: [u8; 2] = [0xC0, 0];
pub(crate) const PONG: [u8; 2] = [0xD0, 0];

/// The device's end, in bytes.
pub(crate) struct Device {
    stream: connection::Stream,
}

impl Device {
    async fn dial(address: SocketAddr) -> Self {
        Self { stream: Box::new(soon(TcpStream::connect(address)).await.expect("it listens")) }
    }

    pub(crate) async fn connect(address: SocketAddr, version: MqttVersion, id: &str, will: Option<&str>) -> Self {
        let mut device = Self::dial(address).await;
        device.send(&connect(version, id, 60, will, None)).await;
        let connack = device.packet().await;
        assert_eq!([connack[0], connack[2], connack[3]], [0x20, 0, 0], "{version:?}");
        device
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        soon(self.stream.write_all(bytes)).await.expect("it reads");
    }

    /// The next packet of less than 128 bytes; empty at the end of the stream.
    pub(crate) async fn packet(&mut self) -> Vec<u8> {
        let mut head = [0; 2];
        if soon(self.stream.read_exact(&mut head)).await.is_err() {
            return Vec::new();
        }
        assert!(head[1] < 128);
        let mut body = vec![0; head[1].into()];
        soon(self.stream.read_exact(&mut body)).await.expect("a whole packet");
        [&head[..], &body].concat()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acknowledge {
    WhenDurable,
    Early,
}

/// Whether a publisher got its acknowledgement although its message was not yet durable.
async fn lies_to_its_publisher(version: MqttVersion, qos: u8, how: Acknowledge) -> bool {
    let mut owner = Owner::start(None).await;
    let mut device = Device::connect(owner.address, version, "cam", None).await;
    owner.connected().await;
    device.send(&publish(version, qos, 7, "a/b", b"1")).await;
    let (message, done) = owner.published().await;
    assert_eq!((message.topic.as_str(), &message.payload[..]), ("a/b", &b"1"[..]));
    let mut durable = Some(done);
    if how == Acknowledge::Early {
        let _ = durable.take().expect("once").send(());
    }
    device.send(&PING).await; // answered at once: whatever comes before it came too early
    let first = device.packet().await;
    let answer = [if qos == 1 { 0x40 } else { 0x50 }, 2, 0, 7];
    if let Some(durable) = durable {
        assert_eq!(first, PONG);
        let _ = durable.send(());
        assert_eq!(device.packet().await, answer);
    } else {
        assert_eq!(first, answer);
    }
    first != PONG
}

#[tokio::test]
async fn a_publisher_is_answered_only_when_its_message_is_durable() {
    for (version, qos) in [(V311, 1), (V311, 2), (V5, 1), (V5, 2)] {
        assert!(!lies_to_its_publisher(version, qos, Acknowledge::WhenDurable).await, "{version:?} QoS {qos}");
        assert!(lies_to_its_publisher(version, qos, Acknowledge::Early).await, "the check sees an early answer");
    }
}

#[tokio::test]
async fn a_message_that_cannot_be_stored_ends_the_connection_without_an_answer() {
    let mut owner = Owner::start(None).await;
    let mut device = Device::connect(owner.address, V5, "cam", None).await;
    owner.connected().await;
    device.send(&publish(V5, 1, 1, "a/b", b"1")).await;
    drop(owner.published().await);
    assert_eq!(owner.gone().await, (1, End::NotStored));
    assert_eq!(device.packet().await, [0_u8; 0]);
}

#[tokio::test]
async fn qos_2_is_one_message_until_it_is_released() {
    for version in [V311, V5] {
        let mut owner = Owner::start(None).await;
        let mut device = Device::connect(owner.address, version, "cam", None).await;
        owner.connected().await;
        for round in [b"1", b"2"] {
            device.send(&publish(version, 2, 9, "a/b", round)).await;
            device.send(&publish(version, 2, 9, "a/b", round)).await; // again before its answer
            device.send(&PING).await;
            let (message, done) = owner.published().await;
            assert_eq!(device.packet().await, PONG, "both were read");
            assert_eq!(&message.payload[..], round);
            let _ = done.send(());
            assert_eq!(device.packet().await, [0x50, 2, 0, 9]);
            device.send(&publish(version, 2, 9, "a/b", round)).await; // and after it
            assert_eq!(device.packet().await, [0x50, 2, 0, 9]);
            device.send(&[0x62, 2, 0, 9]).await;
            assert_eq!(device.packet().await, [0x70, 2, 0, 9]);
        }
    }
}

#[tokio::test]
async fn a_flood_waits_in_its_own_client_and_nobody_else() {
    let mut owner = Owner::start(None).await;
    let mut flood = Device::connect(owner.address, V311, "flood", None).await;
    owner.connected().await;
    let bound = usize::from(crate::source::mqtt::UNCOMMITTED_MAX);
    let bytes: Vec<u8> = (1..=100).flat_map(|id| publish(V311, id as u8 % 2, id, "a/b", b"1")).collect();
    flood.send(&bytes).await;
    let mut waiting = Vec::new();
    for _ in 0..bound {
        waiting.push(owner.published().await.1);
    }
    let mut calm = Device::connect(owner.address, V5, "calm", None).await;
    owner.connected().await;
    calm.send(&publish(V5, 1, 1, "calm", b"1")).await;
    let (message, done) = owner.published().await;
    assert_eq!(message.topic, "calm", "nothing more of the flood was read");
    let _ = done.send(());
    assert_eq!(calm.packet().await, [0x40, 2, 0, 1]);
    for done in waiting {
        let _ = done.send(());
    }
    for _ in bound..100 {
        let _ = owner.published().await.1.send(());
    }
    for id in (1..100).step_by(2) {
        assert_eq!(flood.packet().await, [0x40, 2, 0, id], "answers come in the order of the messages");
    }
}

#[tokio::test]
async fn the_same_client_id_takes_over() {
    let mut owner = Owner::start(None).await;
    let mut first = Device::connect(owner.address, V5, "cam", Some("cam/gone")).await;
    let handle = owner.connected().await;
    let mut second = Device::connect(owner.address, V5, "cam", None).await;
    let again = owner.connected().await;
    assert_eq!((handle.serial, again.serial), (1, 2));
    assert_eq!(first.packet().await, [0xE0, 2, 0x8E, 0]);
    assert_eq!(owner.published().await.0.topic, "cam/gone");
    assert_eq!(owner.gone().await, (1, End::TakenOver));
    again.close();
    assert_eq!(second.packet().await, [0xE0, 2, 0x8B, 0], "the registry knows the second, not the first");
    assert_eq!(owner.gone().await, (2, End::Closed));
}

#[tokio::test]
async fn the_will_speaks_unless_the_client_leaves_in_order() {
    for (version, last, why) in [
        (V311, &[0xE0, 0][..], End::Left),
        (V5, &[0xE0, 0], End::Left),
        (V5, &[0xE0, 2, 0, 0], End::Left),
        (V5, &[0xE0, 2, 4, 0], End::LeftWithWill),
        (V5, &[], End::Broken),
        (V311, &[0x33, 0], End::Malformed(Malformed::Packet)),
    ] {
        let mut owner = Owner::start(None).await;
        let mut device = Device::connect(owner.address, version, "cam", Some("cam/gone")).await;
        owner.connected().await;
        device.send(last).await;
        soon(device.stream.shutdown()).await.expect("half closed");
        if why != End::Left {
            let (will, _) = owner.published().await;
            assert_eq!((will.topic.as_str(), &will.payload[..]), ("cam/gone", &b"w"[..]), "{last:?}");
        }
        assert_eq!(owner.gone().await, (1, why), "{last:?}");
    }
}

#[tokio::test]
async fn only_those_with_the_right_login_and_version_come_in() {
    let login = Login { username: "cctv".into(), password: Some("rahasia".into()) };
    let mut owner = Owner::start(Some(login)).await;
    let old = [&[0x10, 15, 0, 6][..], b"MQIsdp", &[3, 2, 0, 60, 0, 1, b'x']].concat();
    let refused = Rejected::Refused;
    for (bytes, answer, why) in [
        (connect(V311, "x", 60, None, None), &[0x20, 2, 0, 4][..], refused(ConnectRefusal::Login)),
        (connect(V311, "x", 60, None, Some(["cctv", "rahasi"])), &[0x20, 2, 0, 4], refused(ConnectRefusal::Login)),
        (
            connect(V5, "x", 60, None, Some(["cctv", "rahasiarahasia"])),
            &[0x20, 3, 0, 0x86, 0],
            refused(ConnectRefusal::Login),
        ),
        (connect(V5, "x", 60, None, Some(["", ""])), &[0x20, 3, 0, 0x86, 0], refused(ConnectRefusal::Login)),
        (connect(V5, &"x".repeat(257), 60, None, None), &[0x20, 3, 0, 0x85, 0], refused(ConnectRefusal::ClientId)),
        (old, &[0x20, 2, 0, 1], refused(ConnectRefusal::Level)),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), &[], Rejected::Malformed(Malformed::NoConnect)),
        (frame(0x10, &[&text("MQTT"), &[4, 2], &[0; 100_000]]), &[], Rejected::Malformed(Malformed::TooLarge)),
    ] {
        let mut device = Device::dial(owner.address).await;
        let _cut_off_while_writing = soon(device.stream.write_all(&bytes)).await;
        assert_eq!(device.packet().await, answer);
        let Event::Rejected { why: found, .. } = owner.event().await else { panic!("{why:?}") };
        assert_eq!(found, why);
    }
    let mut device = Device::dial(owner.address).await;
    device.send(&connect(V5, "", 60, None, Some(["cctv", "rahasia"]))).await;
    let client = owner.connected().await;
    let connack = device.packet().await;
    assert!(connack.ends_with(client.id.as_bytes()), "the assigned id is told: {connack:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_not_kept() {
    let mut owner = Owner::start(None).await;
    let _silent = Device::dial(owner.address).await;
    assert!(matches!(owner.event().await, Event::Rejected { why: Rejected::Slow, .. }));
}

#[tokio::test]
async fn a_client_that_is_silent_beyond_its_keep_alive_is_gone() {
    let mut owner = Owner::start(None).await;
    let mut device = Device::dial(owner.address).await;
    device.send(&connect(V5, "cam", 1, None, None)).await;
    owner.connected().await;
    assert!(!device.packet().await.is_empty());
    assert_eq!(device.packet().await, [0xE0, 2, 0x8D, 0]);
    assert_eq!(owner.gone().await, (1, End::Silent));
}

#[tokio::test]
async fn a_subscriber_gets_what_the_owner_sends_and_the_owner_its_puback() {
    for version in [V311, V5] {
        let mut owner = Owner::start(None).await;
        let mut device = Device::connect(owner.address, version, "gw", None).await;
        let client = owner.connected().await;
        let options = [&text("x/#")[..], &[1], &text("y"), &[1]].concat();
        device.send(&frame(0x82, &[&[0, 5], properties(version), &options])).await;
        let Event::Subscribe { filters, reply, .. } = owner.event().await else { panic!() };
        assert_eq!(filters, ["x/#", "y"]);
        let _ = reply.send(vec![Grant::Granted]);
        let refused = if version == V5 { 0x87 } else { 0x80 };
        assert_eq!(device.packet().await, frame(0x90, &[&[0, 5], properties(version), &[1, refused]]));
        let (acknowledged, puback) = oneshot::channel();
        let message = Message { topic: "x/1".into(), payload: "hai".into(), retain: true };
        client.publish(message, Some(acknowledged));
        let expected = frame(0x33, &[&text("x/1"), &[0, 1], properties(version), b"hai"]);
        assert_eq!(device.packet().await, expected);
        device.send(&[0x40, 2, 0, 1]).await;
        soon(puback).await.expect("acknowledged");
        device.send(&frame(0xA2, &[&[0, 6], properties(version), &text("y")])).await;
        assert!(matches!(owner.event().await, Event::Unsubscribe { .. }));
        let codes: &[u8] = if version == V5 { &[0, 0] } else { &[] };
        assert_eq!(device.packet().await, frame(0xB0, &[&[0, 6], codes]));
    }
}

/// Packets of every kind, to be mutated.
fn seeds(version: MqttVersion) -> Vec<Vec<u8>> {
    vec![
        connect(version, "cam", 60, Some("cam/gone"), Some(["u", "p"])),
        publish(version, 0, 0, "a/b", b"{\"v\":1}"),
        publish(version, 1, 1, "a/b", b"1"),
        publish(version, 2, 2, "a/b", &[b'x'; 300]),
        vec![0x62, 2, 0, 2],
        frame(0x82, &[&[0, 3], properties(version), &text("a/#"), &[1]]),
        frame(0xA2, &[&[0, 4], properties(version), &text("a/#")]),
        PING.to_vec(),
        vec![0x40, 2, 0, 1],
        vec![0xE0, 2, 0, 0],
        frame(0x30, &[&text("a"), &[5, 0x23, 0, 1, 1, 0], b"alias"]),
    ]
}

fn mutate(random: &mut fastrand::Rng, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..random.usize(0..6) {
        if bytes.is_empty() {
            break;
        }
        let at = random.usize(..bytes.len());
        match random.u8(0..4) {
            0 => bytes[at] = random.u8(..),
            1 => bytes[at] ^= 1 << random.u8(0..8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, random.u8(..)),
        }
    }
    bytes
}

#[test]
fn no_bytes_make_the_codec_panic_or_lose_its_place() {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..200_000 {
        let version = if round % 2 == 0 { V311 } else { V5 };
        let seeds = seeds(version);
        let seed = seeds[random.usize(..seeds.len())].clone();
        let bytes = mutate(&mut random, seed);
        let _ = codec::sniff(&bytes);
        let mut buffer = bytes::BytesMut::from(&bytes[..]);
        loop {
            let before = buffer.len();
            match codec::read(version, &mut buffer) {
                Ok(Some(_)) => assert!(buffer.len() < before),
                Ok(None) => {
                    assert_eq!(buffer.len(), before, "bytes were lost of {bytes:?}");
                    break;
                }
                Err(_) => break,
            }
        }
    }
}

#[tokio::test]
async fn thousands_of_broken_clients_do_not_disturb_a_good_one() {
    let mut owner = Owner::start(None).await;
    let mut good = Device::connect(owner.address, V5, "good", None).await;
    owner.connected().await;
    let address = owner.address;
    let attack = tokio::spawn(async move {
        let mut random = fastrand::Rng::with_seed(11);
        for round in 0..3_000 {
            let version = if round % 2 == 0 { V311 } else { V5 };
            let mut device = Device::dial(address).await;
            let mut bytes = if random.bool() { connect(version, "bad", 60, None, None) } else { Vec::new() };
            for seed in seeds(version) {
                bytes.extend(mutate(&mut random, seed));
            }
            let _cut_off_while_writing = soon(device.stream.write_all(&bytes)).await;
            if random.bool() {
                let _cut_off = device.stream.shutdown().await;
                let _whatever_it_says = soon(device.stream.read_to_end(&mut Vec::new())).await;
            }
        }
    });
    let mut served = 0;
    while !attack.is_finished() || served < 50 {
        good.send(&publish(V5, 1, 1, "good", b"1")).await;
        loop {
            match owner.event().await {
                Event::Published { client, done, .. } => {
                    let _ = done.send(());
                    if &*client == "good" {
                        break;
                    }
                }
                Event::Subscribe { reply, .. } => drop(reply),
                Event::Panicked => panic!("a connection panicked"),
                Event::Connected(_)
                | Event::Unsubscribe { .. }
                | Event::Gone { .. }
                | Event::Renewed(_)
                | Event::Rejected { .. } => {}
            }
        }
        assert_eq!(good.packet().await, [0x40, 2, 0, 1]);
        served += 1;
    }
    attack.await.expect("the attacker ran to its end");
}
