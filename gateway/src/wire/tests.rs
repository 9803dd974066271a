//! The wire against a broker that says exactly what a test scripts.

mod certificates;
mod probe;
mod silence;
mod tls;

use std::pin::Pin;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::config::Scheme;

const CONNACK_5: &[u8] = &[0x20, 3, 0, 0, 0];
const CONNACK_311: &[u8] = &[0x20, 2, 0, 0];

fn settings(port: u16, version: MqttVersion) -> Settings {
    Settings {
        url: BrokerUrl { scheme: Scheme::Mqtt, host: "127.0.0.1".into(), port },
        version,
        client_id: "taman-01".into(),
        login: None,
        tls: TlsFiles::default(),
        clock: Clock::system(),
        keep_alive: Duration::from_secs(10),
        session_expiry: Duration::ZERO,
        will: None,
        window: 8,
        receive_maximum: 8,
        packet_size_max: 64 * 1024,
        connect_timeout: Duration::from_secs(60),
    }
}

fn publish(topic: &str, payload: &[u8]) -> Publish {
    Publish {
        topic: topic.into(),
        payload: Bytes::copy_from_slice(payload),
        retain: Retain::No,
        content_type: None,
        correlation: None,
    }
}

/// TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

/// A broker's side of one connection.
struct Broker(Pin<Box<dyn Stream>>);

impl Broker {
    fn over(stream: impl Stream + 'static) -> Self {
        Self(Box::pin(stream))
    }

    /// First byte and body of the next packet.
    async fn read(&mut self) -> (u8, Vec<u8>) {
        let first = self.0.read_u8().await.expect("a packet");
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.0.read_u8().await.expect("a length");
            length |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.expect("a body");
        (first, body)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the wire reads");
        self.0.flush().await.expect("the wire reads");
    }

    /// Reads CONNECT and answers it.
    async fn welcome(mut self, connack: &[u8]) -> Self {
        assert_eq!(self.read().await.0, 0x10, "CONNECT");
        self.send(connack).await;
        self
    }

    /// The packet identifier of the next packet, a PUBLISH with a topic of one byte.
    async fn read_publish(&mut self) -> u16 {
        let (first, body) = self.read().await;
        assert_eq!(first, 0x32, "PUBLISH, QoS 1, neither retained nor repeated");
        u16::from_be_bytes([body[3], body[4]])
    }
}

/// A wire, and its broker after it has sent `connack`.
async fn connected(version: MqttVersion, connack: &[u8]) -> (Wire, Broker) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let mut wire = Wire::connect(&settings(port, version));
    let accept = async { Broker::over(listener.accept().await.expect("a client").0).welcome(connack).await };
    let (event, broker) = tokio::join!(wire.next(), accept);
    assert!(matches!(event, Event::Up(_)), "{event:?}");
    (wire, broker)
}

/// Both at once: what the broker does, and the next event of the wire.
async fn next_while<T>(wire: &mut Wire, work: impl Future<Output = T>) -> (Event, T) {
    tokio::join!(wire.next(), work)
}

fn confirmed(event: &Event) -> (Token, Verdict) {
    match event {
        Event::Confirmed { token, verdict } => (*token, *verdict),
        other => panic!("not a confirmation: {other:?}"),
    }
}

#[tokio::test]
async fn each_confirmation_brings_its_own_token_back_whatever_the_order() {
    for (version, connack) in [(MqttVersion::V5, CONNACK_5), (MqttVersion::V311, CONNACK_311)] {
        let (mut wire, mut broker) = connected(version, connack).await;
        assert!(wire.publish(70, publish("a", b"one")) && wire.publish(71, publish("b", b"two")));
        let script = async {
            let (one, two) = (broker.read_publish().await, broker.read_publish().await);
            for id in [two, one] {
                let [high, low] = id.to_be_bytes();
                broker.send(&[0x40, 2, high, low]).await;
            }
        };
        let (event, ()) = next_while(&mut wire, script).await;
        assert_eq!(confirmed(&event), (71, Verdict::Accepted));
        assert_eq!(confirmed(&wire.next().await), (70, Verdict::Accepted));
        assert_eq!(wire.unconfirmed(), 0);
    }
}

#[tokio::test]
async fn refusals_of_mqtt_5_become_verdicts() {
    for (code, verdict) in [
        (0x10, Verdict::NoSubscriber),
        (0x87, Verdict::NotAuthorised),
        (0x97, Verdict::Later(0x97)),
        (0x99, Verdict::Invalid(0x99)),
    ] {
        let (mut wire, mut broker) = connected(MqttVersion::V5, CONNACK_5).await;
        assert!(wire.publish(5, publish("a", b"")));
        let script = async {
            let [high, low] = broker.read_publish().await.to_be_bytes();
            broker.send(&[0x40, 4, high, low, code, 0]).await;
        };
        let (event, ()) = next_while(&mut wire, script).await;
        assert_eq!(confirmed(&event), (5, verdict));
    }
}

#[tokio::test]
async fn an_abandoned_wait_loses_no_event() {
    let (mut wire, mut broker) = connected(MqttVersion::V5, CONNACK_5).await;
    assert!(wire.publish(1, publish("a", &[b'x'; 30_000])));
    let script = async {
        let [high, low] = broker.read_publish().await.to_be_bytes();
        broker.send(&[0x40, 2, high, low]).await;
    };
    tokio::pin!(script);
    // The wait for an event is dropped and begun anew all the time, as a select does.
    let event = loop {
        tokio::select! {
            biased;
            event = wire.next() => break event,
            () = tokio::task::yield_now() => {}
        }
        if futures_util::poll!(&mut script).is_ready() {
            break wire.next().await;
        }
    };
    assert_eq!(confirmed(&event), (1, Verdict::Accepted));
}

#[tokio::test]
async fn the_window_is_the_smaller_of_ours_and_the_brokers() {
    // CONNACK with receive maximum 3: one slot is left free for acknowledgements.
    let (mut wire, mut broker) = connected(MqttVersion::V5, &[0x20, 6, 0, 0, 3, 0x21, 0, 3]).await;
    assert!(wire.publish(1, publish("a", b"")) && wire.publish(2, publish("b", b"")));
    assert!(!wire.publish(3, publish("c", b"")), "the window is full");
    let script = async {
        let [high, low] = broker.read_publish().await.to_be_bytes();
        broker.send(&[0x40, 2, high, low]).await;
    };
    let (event, ()) = next_while(&mut wire, script).await;
    assert_eq!(confirmed(&event), (1, Verdict::Accepted));
    assert!(wire.publish(3, publish("c", b"")));
}

#[tokio::test]
async fn what_the_broker_could_only_refuse_by_hanging_up_is_refused_here() {
    // CONNACK with maximum packet size 100.
    let (mut wire, _broker) = connected(MqttVersion::V5, &[0x20, 8, 0, 0, 5, 0x27, 0, 0, 0, 100]).await;
    assert!(wire.publish(1, publish("a", &[0; 100])));
    assert_eq!(confirmed(&wire.next().await), (1, Verdict::Invalid(0x95)));
    assert!(wire.publish(2, publish("a/+", b"")));
    assert_eq!(confirmed(&wire.next().await), (2, Verdict::Invalid(0x90)));
}

#[tokio::test]
async fn a_message_is_acknowledged_on_the_connection_it_came_by_and_on_no_other() {
    let (mut wire, mut broker) = connected(MqttVersion::V5, CONNACK_5).await;
    let (mut second, mut other_broker) = connected(MqttVersion::V5, CONNACK_5).await;
    let hello: &[u8] = &[0x32, 6, 0, 1, b'c', 0, 9, 0];
    let (event, ()) = next_while(&mut wire, broker.send(hello)).await;
    let Event::Message(message) = event else { panic!("not a message: {event:?}") };
    assert_eq!((message.topic.as_str(), message.retained), ("c", false));
    let (event, ()) = next_while(&mut second, other_broker.send(hello)).await;
    let Event::Message(stale) = event else { panic!("not a message: {event:?}") };

    wire.acknowledge(stale.receipt); // does nothing
    wire.acknowledge(message.receipt);
    assert!(wire.publish(1, publish("a", b"")));
    let script = async {
        let (first, body) = broker.read().await;
        assert_eq!((first, &body[..2]), (0x40, &[0, 9][..]), "PUBACK of the one message");
        let [high, low] = broker.read_publish().await.to_be_bytes();
        broker.send(&[0x40, 2, high, low]).await;
    };
    let (event, ()) = next_while(&mut wire, script).await;
    assert_eq!(confirmed(&event).0, 1);
}

#[tokio::test]
async fn the_end_of_a_connection_has_a_name() {
    let cases: [(&[u8], Down); 3] = [
        (&[0xE0, 2, 0x8E, 0], Down::TakenOver),
        (&[0xE0, 2, 0x8B, 0], Down::Closed),
        (&[0xE0, 2, 0x87, 0], Down::LoginRefused),
    ];
    for (bytes, expected) in cases {
        let (mut wire, mut broker) = connected(MqttVersion::V5, CONNACK_5).await;
        let (event, ()) = next_while(&mut wire, broker.send(bytes)).await;
        assert!(matches!(&event, Event::Down(down) if *down == expected), "{event:?}");
    }
    let (mut wire, mut broker) = connected(MqttVersion::V311, CONNACK_311).await;
    let (event, ()) = next_while(&mut wire, broker.send(&[0xF0, 0, 0xFF, 0xFF])).await;
    assert!(matches!(event, Event::Down(Down::Protocol(_))), "{event:?}");
    let (mut wire, broker) = connected(MqttVersion::V5, CONNACK_5).await;
    drop(broker);
    let event = wire.next().await;
    assert!(matches!(event, Event::Down(Down::Closed)), "{event:?}");
}

#[tokio::test]
async fn a_refused_login_differs_from_a_missing_broker() {
    for (version, connack) in [(MqttVersion::V5, &[0x20, 3, 0, 0x86, 0][..]), (MqttVersion::V311, &[0x20, 2, 0, 5][..])]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut wire = Wire::connect(&settings(listener.local_addr().expect("bound").port(), version));
        let script = async {
            let mut broker = Broker::over(listener.accept().await.expect("a client").0);
            broker.read().await;
            broker.send(connack).await;
            broker
        };
        let (event, _broker) = next_while(&mut wire, script).await;
        assert!(matches!(event, Event::Down(Down::LoginRefused)), "{event:?}");
        drop(listener);
        let port = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port();
        let event = Wire::connect(&settings(port, version)).next().await;
        assert!(matches!(event, Event::Down(Down::Unreachable(_))), "{event:?}");
    }
}

#[tokio::test]
async fn a_disconnect_leaves_after_what_was_acknowledged() {
    for (version, connack) in [(MqttVersion::V5, CONNACK_5), (MqttVersion::V311, CONNACK_311)] {
        let (wire, mut broker) = connected(version, connack).await;
        let ((), (first, _)) = tokio::join!(wire.disconnect(Duration::from_secs(60)), broker.read());
        assert_eq!(first, 0xE0, "DISCONNECT");
    }
}
