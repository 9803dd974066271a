//! A path is dead when nothing arrived for 1.5 keep alives, over TCP and TLS, whatever we have to send.

use tokio::time::Instant;

use super::{
    certificates::{Admits, Authority, Folder, TLS_VERSIONS, accept, server},
    *,
};

const KEEP_ALIVE: Duration = Duration::from_secs(10);

const ALL: [(MqttVersion, Scheme); 4] = [
    (MqttVersion::V5, Scheme::Mqtt),
    (MqttVersion::V5, Scheme::Mqtts),
    (MqttVersion::V311, Scheme::Mqtt),
    (MqttVersion::V311, Scheme::Mqtts),
];

/// A connected wire and its broker.
async fn open((version, scheme): (MqttVersion, Scheme)) -> (Wire, Broker) {
    let connack = if version == MqttVersion::V5 { CONNACK_5 } else { CONNACK_311 };
    if scheme == Scheme::Mqtt {
        return connected(version, connack).await;
    }
    let (mut wire, listener, tls) = with_tls(version).await;
    let script = async { accept(&listener, &tls).await.expect("TLS").welcome(connack).await };
    let (event, broker) = next_while(&mut wire, script).await;
    assert!(matches!(event, Event::Up(_)), "{event:?}");
    (wire, broker)
}

async fn with_tls(version: MqttVersion) -> (Wire, TcpListener, tokio_rustls::TlsAcceptor) {
    let (city, folder) = (Authority::new("city"), Folder::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = BrokerUrl {
        scheme: Scheme::Mqtts,
        host: "127.0.0.1".into(),
        port: listener.local_addr().expect("bound").port(),
    };
    let wire = Wire::connect(&Settings { url, tls: folder.files(&city, None), ..settings(0, version) });
    let tls = server(&city.issue(&["127.0.0.1"], (2020, 2120)), Admits::All, TLS_VERSIONS[1]);
    (wire, listener, tls)
}

/// The next event, and how long it took by a clock that jumps to the next timer whenever nobody has work.
async fn next_timed(wire: &mut Wire) -> (Event, Duration) {
    tokio::time::pause();
    let since = Instant::now();
    let event = wire.next().await;
    let elapsed = since.elapsed();
    tokio::time::resume();
    (event, elapsed)
}

#[tokio::test]
async fn a_silent_broker_is_noticed_within_one_and_a_half_keep_alives() {
    for publishes in [0, 8] {
        for case in ALL {
            let (mut wire, _broker) = open(case).await;
            for token in 0..publishes {
                assert!(wire.publish(token, publish("a", b"x")));
            }
            let (event, elapsed) = next_timed(&mut wire).await;
            assert!(matches!(event, Event::Down(Down::Silent)), "{case:?}, {publishes}: {event:?}");
            assert!(elapsed >= KEEP_ALIVE, "{case:?}, {publishes}: a ping had its chance, {elapsed:?}");
            assert!(elapsed <= KEEP_ALIVE * 3 / 2 + Duration::from_secs(1), "{case:?}, {publishes}: {elapsed:?}");
        }
    }
}

/// More than the buffers of two sockets take (Linux: 10 MiB), so that the writing waits for ever.
fn clog(wire: &mut Wire) {
    for token in 0..8 {
        assert!(wire.publish(token, publish("a", &vec![b'x'; 4 * 1024 * 1024])));
    }
}

#[tokio::test]
async fn a_broker_that_reads_no_more_is_noticed_as_soon() {
    for case in ALL {
        let (mut wire, _broker) = open(case).await;
        clog(&mut wire);
        let (event, elapsed) = next_timed(&mut wire).await;
        assert!(matches!(event, Event::Down(Down::Silent)), "{case:?}: {event:?}");
        assert!(elapsed <= KEEP_ALIVE * 3 / 2 + Duration::from_secs(1), "{case:?}: {elapsed:?}");
    }
}

#[tokio::test]
async fn rumqttc_alone_would_not_notice_it() {
    for case in ALL.into_iter().filter(|(version, _)| *version == MqttVersion::V5) {
        let (mut wire, _broker) = open(case).await;
        clog(&mut wire);
        let hour = Duration::from_secs(3600);
        wire.silence = Box::pin(tokio::time::sleep(hour));
        // Some of the hour passes before the clock is held.
        let (event, elapsed) = next_timed(&mut wire).await;
        assert!(elapsed >= hour / 2, "{case:?}: {elapsed:?}, {event:?}");
    }
}

#[tokio::test]
async fn a_broker_that_answers_pings_is_kept_with_and_without_traffic() {
    for case in ALL {
        let (mut wire, mut broker) = open(case).await;
        // QoS 0, so that something is to be seen of the wire's having read what came before.
        let hello: &[u8] = if case.0 == MqttVersion::V5 { &[0x30, 4, 0, 1, b'c', 0] } else { &[0x30, 3, 0, 1, b'c'] };
        tokio::time::pause();
        for round in 0..6 {
            let publishes = round % 2;
            // The clock moves only here: somebody always has work while the two talk.
            tokio::time::advance(KEEP_ALIVE + Duration::from_millis(100)).await;
            if publishes == 1 {
                assert!(wire.publish(round, publish("a", b"x")));
            }
            let answers = async {
                let mut asked: Vec<u8> = Vec::new();
                while asked.len() < 1 + publishes as usize {
                    asked.push(broker.read().await.0);
                }
                assert!(asked.contains(&0xC0), "{case:?}, {round}: PINGREQ, {asked:?}");
                broker.send(&[0xD0, 0]).await; // PINGRESP
                broker.send(hello).await;
            };
            let event = tokio::select! {
                (event, ()) = next_while(&mut wire, answers) => event,
                () = work() => panic!("{case:?}, {round}: the two say nothing"),
            };
            assert!(matches!(event, Event::Message(_)), "{case:?}, {round}: {event:?}");
        }
        tokio::time::resume();
    }
}

/// Keeps a paused clock from jumping, far longer than two ends on one machine need.
async fn work() {
    for _ in 0..10_000_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_peer_that_never_answers_the_handshake_is_given_up_in_time() {
    for version in [MqttVersion::V5, MqttVersion::V311] {
        let (mut wire, listener, _) = with_tls(version).await;
        let mut stream = tokio::select! {
            event = wire.next() => panic!("{event:?}"),
            stream = async {
                let mut stream = listener.accept().await.expect("a client").0;
                assert_eq!(stream.read_u8().await.expect("a ClientHello"), 22);
                stream
            } => stream,
        };
        let (event, elapsed) = next_timed(&mut wire).await;
        assert!(matches!(event, Event::Down(Down::Unreachable(_))), "{event:?}");
        assert!(elapsed <= Duration::from_secs(62), "connect_timeout is 60 s: {elapsed:?}");
        drop(wire);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(!rest.is_empty(), "nothing but the ClientHello was sent");
    }
}
