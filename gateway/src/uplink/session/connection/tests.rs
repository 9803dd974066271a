//! Connections to a broker that confirms only what a test lets it confirm, and answers every ping.

#![expect(clippy::disallowed_methods, reason = "the store's threads and the broker's task are the test's own")]

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
};

use super::*;
use crate::{
    alarm::{Severity, State},
    clock::{BootId, Clock},
    config::{CommandCenter, DeliveredWhen, Language, MqttVersion, Scheme, TlsFiles},
    metrics::Metrics,
    pipeline::Input,
    reading::Segment,
    record::{Body, CommandResult, Record},
    status::{self, StatusBoard},
    store::{self, Commit, Store},
    supervise::{Pulse, Shutdown},
    uplink::{
        message::About,
        session::{conflict::Conflict, own_alarms::OwnAlarms, route::Route},
    },
};

/// Far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(120);
const BASE: &str = "gardu/v1/taman-01/";

/// The reason code of the PUBACK that the `n`-th publish on a topic gets; none for silence.
type Answers = fn(topic: &str, n: u64) -> Option<u8>;

const ALL: Answers = |_, _| Some(0);

/// What a broker heard: topic below the gateway's and payload; for a packet without topic its first byte in hex.
type Heard = (String, String);

struct Scene {
    task: UplinkTask,
    clock: Clock,
    now_ms: AtomicU64,
    shutdown: Shutdown,
    heard: mpsc::UnboundedReceiver<Heard>,
    _inputs: mpsc::Receiver<Input>,
    folder: tempfile::TempDir,
}

fn at(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: 1_795_262_671_220, trusted: true }
}

/// A task whose last URL is a scripted broker; `earlier` are the ports of those before it.
async fn scene(version: MqttVersion, answers: Answers, earlier: &[u16]) -> Scene {
    let (mut scene, listener) = furnish(version, earlier).await;
    let (tell, heard) = mpsc::unbounded_channel();
    scene.heard = heard;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, version, answers, tell.clone()));
        }
    });
    scene
}

/// The same with TLS; the file of its authority, and how many connections the broker has seen.
async fn scene_with_tls() -> (Scene, PathBuf, Arc<AtomicU64>) {
    let (mut scene, listener) = furnish(MqttVersion::V5, &[]).await;
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let ca = scene.folder.path().join("ca.pem");
    std::fs::write(&ca, cert.pem()).expect("written");
    scene.task.center.tls.ca = Some(ca.clone());
    scene.task.center.urls[0] =
        BrokerUrl { scheme: Scheme::Mqtts, host: "localhost".into(), ..scene.task.center.urls[0] };
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has both versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .expect("a pair");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (tell, heard) = mpsc::unbounded_channel();
    scene.heard = heard;
    let connections = Arc::<AtomicU64>::default();
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, MqttVersion::V5, ALL, tell).await;
                }
            });
        }
    });
    (scene, ca, connections)
}

/// Everything but the broker behind the listener.
async fn furnish(version: MqttVersion, earlier: &[u16]) -> (Scene, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (_, heard) = mpsc::unbounded_channel();
    let url = |port: &u16| BrokerUrl { scheme: Scheme::Mqtt, host: "127.0.0.1".into(), port: *port };
    let folder = tempfile::tempdir().expect("a folder");
    let (clock, metrics, shutdown) = (Clock::manual("boot-1", at(1_000)), Metrics::new(), Shutdown::new());
    let options = store::Options {
        path: folder.path().join("outbox"),
        machine: "m".into(),
        boot: clock.boot().clone(),
        generation_size: store::GENERATION_SIZE,
        memory: None,
    };
    let (store, _, committers) = store::open(&options, &metrics).expect("a store");
    for (_, committer) in committers {
        std::thread::spawn(committer);
    }
    let (pipeline, inputs) = mpsc::channel(16);
    let pulse = Pulse::new(clock.clone());
    let gateway = Segment::parse("taman-01").expect("a segment");
    let about = status::About { id: gateway.clone(), name: "t".into(), site: "t".into(), config: "0".into() };
    let task = UplinkTask {
        center: CommandCenter {
            urls: earlier.iter().chain([&port]).map(url).collect(),
            version,
            delivered_when: DeliveredWhen::Puback,
            login: None,
            tls: TlsFiles::default(),
            keep_alive: Duration::from_secs(10),
            topic_prefix: "gardu/v1".into(),
            hold_when_center_offline: false,
        },
        about: About {
            gateway,
            prefix: "gardu/v1".into(),
            site: "taman".into(),
            location: None,
            language: Language::Indonesian,
        },
        fingerprint: "0".into(),
        devices: Vec::new(),
        store,
        pipeline,
        clock: clock.clone(),
        started: clock.now(),
        metrics,
        beat: pulse.stage("uplink"),
        shutdown: shutdown.clone(),
        board: StatusBoard::new(about, clock.clone(), pulse),
    };
    (Scene { task, clock, now_ms: AtomicU64::new(1_000), shutdown, heard, _inputs: inputs, folder }, listener)
}

impl Scene {
    /// Runs one connection to the scripted broker beside a script.
    async fn run<T>(self, script: impl AsyncFnOnce(&mut Director) -> T) -> (End, T) {
        let Self { task, clock, now_ms, shutdown, heard, _inputs, folder: _folder } = self;
        let brokers = task.center.urls.len();
        let mut kept = Kept {
            center_away_since: None,
            own: OwnAlarms::new(Conflict::new(BootId::new("boot-1"), brokers)),
            route: Route::new(brokers, task.center.keep_alive),
        };
        let mut delivery = Delivery::new(DeliveredWhen::Puback);
        let mut director = Director { clock, now_ms, shutdown, heard, store: task.store.clone() };
        let both = async { tokio::join!(task.connect(brokers - 1, &mut delivery, &mut kept), script(&mut director)) };
        let (end, told) = tokio::time::timeout(PATIENCE, both).await.expect("it ends");
        (end.expect("the store is well"), told)
    }
}

/// What a script does.
struct Director {
    clock: Clock,
    now_ms: AtomicU64,
    shutdown: Shutdown,
    heard: mpsc::UnboundedReceiver<Heard>,
    store: Store,
}

impl Director {
    /// Moves the gateway's clock.
    fn later(&self, seconds: u64) {
        self.clock.set(at(self.now_ms.fetch_add(seconds * 1_000, Ordering::Relaxed) + seconds * 1_000));
    }

    /// Moves it on and on: a verdict that was under way may be heard after a step, and then the wait begins anew.
    fn let_time_fly(&self, seconds_a_step: u64) {
        let (clock, mut now_ms) = (self.clock.clone(), self.now_ms.load(Ordering::Relaxed));
        tokio::spawn(async move {
            loop {
                now_ms += seconds_a_step * 1_000;
                clock.set(at(now_ms));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }

    /// Waits until the broker has heard this; returns its payload.
    async fn hears(&mut self, topic: &str) -> String {
        loop {
            let (heard, payload) = self.heard.recv().await.expect("the broker listens");
            if heard == topic {
                return payload;
            }
        }
    }

    /// Waits until the broker has heard that we leave; returns how.
    async fn hears_farewell(&mut self) -> String {
        loop {
            let said = self.hears("status").await;
            if said.contains(r#""state":"offline""#) {
                return said;
            }
        }
    }

    /// A record for lane a.
    async fn record(&self, sequence: u64) {
        let epoch = self.store.head(Lane::Alarm).borrow().status.epoch.clone();
        let body = Body::Command(CommandResult { id: "1".into(), command: "test".into(), alarm: None, by: "x".into() });
        let (boot, recorded) = (self.clock.boot().clone(), self.clock.now());
        let record = Record { lane: Lane::Alarm, epoch, sequence, boot, recorded, body };
        self.store.commit(Commit { records: vec![record], ..Commit::default() }).await.expect("it is stored");
    }

    /// An alarm that stands, with its record of lane a; returns the record's id.
    async fn alarm(&self, sequence: u64) -> String {
        let epoch = self.store.head(Lane::Alarm).borrow().status.epoch.clone();
        let (boot, recorded) = (self.clock.boot().clone(), self.clock.now());
        let last = status::tests::transition("panel/door", Severity::High, State::Unack, recorded);
        let told = Told { epoch: epoch.clone(), sequence, boot: boot.clone(), recorded };
        let state = AlarmState { configured: true, told: Some(told), last: last.clone() };
        let record = Record { lane: Lane::Alarm, epoch, sequence, boot, recorded, body: Body::Alarm(Box::new(last)) };
        let id = record.id();
        let commit = Commit { records: vec![record], alarms: vec![state], ..Commit::default() };
        self.store.commit(commit).await.expect("it is stored");
        id
    }
}

/// One connection of the broker.
async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    version: MqttVersion,
    answers: Answers,
    tell: mpsc::UnboundedSender<Heard>,
) {
    let v5 = version == MqttVersion::V5;
    let mut counts: HashMap<String, u64> = HashMap::new();
    while let Ok((first, body)) = packet(&mut stream).await {
        let answer = match first & 0xF0 {
            0x10 => Some(if v5 { vec![0x20, 3, 0, 0, 0] } else { vec![0x20, 2, 0, 0] }),
            0x80 => {
                let granted = vec![1; 5];
                let head = [0x90, if v5 { 8 } else { 7 }, body[0], body[1]];
                Some([&head[..], if v5 { &[0] } else { &[] }, &granted].concat())
            }
            0x30 => {
                let end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
                let topic = String::from_utf8_lossy(&body[2..end]).into_owned();
                let properties = if v5 { 1 + usize::from(body[end + 2]) } else { 0 };
                let payload = String::from_utf8_lossy(&body[end + 2 + properties..]).into_owned();
                let topic = topic.strip_prefix(BASE).expect("below ours").to_owned();
                let n = counts.entry(topic.clone()).or_default();
                *n += 1;
                let code = answers(&topic, *n);
                let _ = tell.send((topic, payload));
                code.map(|code| match (v5, code) {
                    (true, 1..) => vec![0x40, 3, body[end], body[end + 1], code],
                    _ => vec![0x40, 2, body[end], body[end + 1]],
                })
            }
            0xC0 => Some(vec![0xD0, 0]),
            _ => {
                let _ = tell.send((format!("{first:x}"), String::new()));
                None
            }
        };
        if let Some(answer) = answer
            && stream.write_all(&answer).await.is_err()
        {
            return;
        }
    }
}

async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((first, body))
}

const BOTH: [MqttVersion; 2] = [MqttVersion::V5, MqttVersion::V311];

#[tokio::test]
async fn a_publish_of_any_kind_without_an_answer_ends_the_connection_although_pings_pass() {
    // What the broker swallows, and what it must have heard before time passes.
    let cases: [(Answers, &str); 3] = [
        (|topic, _| (!topic.starts_with("event/")).then_some(0), "event/info"),
        (|topic, _| (topic != "status").then_some(0), "status"),
        (|_, _| None, "reply/readback"),
    ];
    for version in BOTH {
        for (answers, until) in cases {
            let scene = scene(version, answers, &[]).await;
            let (end, ()) = scene
                .run(async |director| {
                    director.hears("reply/readback").await;
                    director.later(6); // nobody echoes the marker
                    if until != "reply/readback" {
                        director.hears("status").await;
                        director.record(1).await;
                        if until == "event/info" {
                            director.hears("event/info").await;
                        }
                    }
                    director.let_time_fly(31);
                })
                .await;
            assert!(matches!(end, End::Down { down: Down::Silent, up_for: Some(_) }), "{until}: {end:?}");
        }
    }
}

/// The twin of the test above: with answers the same time passes on the same connection.
#[tokio::test]
async fn a_publish_with_its_answer_ends_nothing() {
    for version in BOTH {
        let (end, ()) = scene(version, ALL, &[])
            .await
            .run(async |director| {
                director.hears("reply/readback").await;
                director.later(6);
                director.hears("status").await;
                let mut head = director.store.head(Lane::Alarm);
                director.record(1).await;
                head.wait_for(|head| head.status.settled == 1).await.expect("it is confirmed");
                director.later(31);
                director.later(STATUS_EVERY.as_secs());
                director.hears("status").await; // so a tick has seen what time it is
                director.shutdown.cancel();
                director.hears("status").await;
            })
            .await;
        assert!(matches!(end, End::Stopped), "{end:?}");
    }
}

#[tokio::test]
async fn a_stop_ends_within_its_bounds_whatever_is_swallowed() {
    let swallowing: Answers = |topic, n| (topic == "status" && n == 1 || topic.starts_with("reply")).then_some(0);
    for version in BOTH {
        let (end, said) = scene(version, swallowing, &[])
            .await
            .run(async |director| {
                director.hears("reply/readback").await;
                director.later(6);
                director.hears("status").await;
                director.record(1).await;
                director.hears("event/info").await;
                director.shutdown.cancel();
                // Its clock goes on until it has said its last words, and then until it left without their answer.
                let mut said = None;
                loop {
                    tokio::select! {
                        (heard, payload) = async { director.heard.recv().await.expect("it listens") } => {
                            match heard.as_str() {
                                "status" => said = Some(payload),
                                "e0" => break said, // DISCONNECT
                                _ => {}
                            }
                        }
                        () = tokio::time::sleep(Duration::from_millis(50)) => director.later(1),
                    }
                }
            })
            .await;
        assert!(matches!(end, End::Stopped), "{end:?}");
        assert!(said.is_some_and(|said| said.contains(r#""state":"offline","reason":"stopped""#)));
    }
}

#[tokio::test]
async fn an_earlier_broker_that_answers_is_moved_to_without_having_been_a_client_there() {
    let earlier = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = earlier.local_addr().expect("bound").port();
    let (end, said) = scene(MqttVersion::V5, ALL, &[port])
        .await
        .run(async |director| {
            director.hears("reply/readback").await;
            director.later(6);
            director.hears("status").await;
            director.later(5); // half a keep alive
            let (mut probe, _) = earlier.accept().await.expect("it is looked at");
            let mut bytes = Vec::new();
            probe.read_to_end(&mut bytes).await.expect("it hangs up");
            assert_eq!(bytes, b"", "no CONNECT");
            let said = director.hears("status").await;
            director.hears("e0").await;
            said
        })
        .await;
    assert!(matches!(end, End::Moved { to: 0 }), "{end:?}");
    assert!(said.contains(r#""state":"offline","reason":"moved""#), "{said}");
}

/// The twin of the test above.
#[tokio::test]
async fn an_earlier_broker_that_is_away_moves_nobody() {
    let away = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port();
    let (end, said) = scene(MqttVersion::V5, ALL, &[away])
        .await
        .run(async |director| {
            director.hears("reply/readback").await;
            director.later(6);
            director.hears("status").await;
            director.later(STATUS_EVERY.as_secs());
            director.hears("status").await; // so a tick has seen what time it is
            director.shutdown.cancel();
            director.hears("status").await
        })
        .await;
    assert!(matches!(end, End::Stopped), "{end:?}");
    assert!(said.contains(r#""reason":"stopped""#), "{said}");
}

#[tokio::test]
async fn a_refused_status_is_said_again_before_the_next_is_due() {
    let first_refused: Answers = |topic, n| Some(if topic == "status" && n == 1 { 0x87 } else { 0 });
    let (end, ()) = scene(MqttVersion::V5, first_refused, &[])
        .await
        .run(async |director| {
            director.hears("reply/readback").await;
            director.later(6);
            let first = director.hears("status").await;
            // The verdict is behind the publish: a record's confirmation comes after it.
            let mut head = director.store.head(Lane::Alarm);
            director.record(1).await;
            head.wait_for(|head| head.status.settled == 1).await.expect("it is confirmed");
            director.later(61);
            assert_eq!(director.hears("status").await, first, "the same once more");
            director.shutdown.cancel();
            director.hears("e0").await;
        })
        .await;
    assert!(matches!(end, End::Stopped), "{end:?}");
}

#[tokio::test]
async fn the_retained_topic_of_an_alarm_shows_its_state_also_when_its_event_is_given_up() {
    // The broker never takes the event.
    let swallowing: Answers = |topic, _| (!topic.starts_with("event/")).then_some(0);
    for given_up in [true, false] {
        let (end, shown) = scene(MqttVersion::V5, swallowing, &[])
            .await
            .run(async |director| {
                director.hears("reply/readback").await;
                director.later(6);
                director.hears("status").await;
                let id = director.alarm(1).await;
                director.hears("event/high").await;
                if given_up {
                    director.store.settle(Lane::Alarm, vec![(1, 1)]).await.expect("settles");
                    assert!(director.hears("alarm/panel/door/open").await.contains(&id));
                }
                director.shutdown.cancel();
                director.let_time_fly(1);
                let mut shown = 0;
                loop {
                    let (topic, _) = director.heard.recv().await.expect("the broker listens");
                    match topic.as_str() {
                        "e0" => break shown, // DISCONNECT
                        _ => shown += u32::from(topic.starts_with("alarm/")),
                    }
                }
            })
            .await;
        assert!(matches!(end, End::Stopped), "{end:?}");
        assert_eq!(shown, 0, "once, and not before its event has arrived");
    }
}

#[tokio::test]
async fn renewed_certificates_are_used_and_broken_ones_leave_the_connection_as_it_is() {
    for (appended, renewed) in
        [("\n", true), ("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n", false)]
    {
        let (scene, ca, connections) = scene_with_tls().await;
        let (end, said) = scene
            .run(async |director| {
                director.hears("reply/readback").await;
                director.later(6);
                director.hears("status").await;
                let text = std::fs::read_to_string(&ca).expect("it was written");
                let changed = if renewed { text + appended } else { appended.to_owned() };
                std::fs::write(&ca, changed).expect("written");
                director.later(STATUS_EVERY.as_secs());
                director.hears("status").await; // so a tick has seen the change
                director.later(STATUS_EVERY.as_secs());
                if renewed {
                    return director.hears_farewell().await;
                }
                director.hears("status").await; // so it has seen it twice
                director.shutdown.cancel();
                director.hears_farewell().await
            })
            .await;
        let reason = if renewed { r#""reason":"moved""# } else { r#""reason":"stopped""# };
        assert!(said.contains(reason), "{said}");
        assert_eq!(matches!(end, End::Renewed), renewed, "{end:?}");
        // Good files are tried on the broker before the connection is given up for them; broken ones never get there.
        assert_eq!(connections.load(Ordering::Relaxed), if renewed { 2 } else { 1 });
    }
}
