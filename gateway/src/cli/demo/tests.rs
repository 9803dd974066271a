#![expect(clippy::disallowed_methods, reason = "the tests run the center and the camera as tasks of their own")]

use std::pin::pin;

use serde_json::json;
use tokio::time::timeout;

use super::{paper::tests::Printed, *};
use crate::{
    alarm::{Kind, Severity},
    config::{BrokerUrl, MqttVersion, Scheme, TlsFiles},
    source::mqtt::listener,
    text::exists,
    wire::{Event, Message, Publish, Retain, Settings, Wire},
};

const EPOCH: &str = "0123456789abcdef";

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), pin!(what)).await.expect("it happens soon")
}

#[test]
fn the_play_is_in_order_and_every_line_has_its_words() {
    assert!(PLAY.is_sorted_by_key(|(percent, ..)| *percent) && PLAY.iter().all(|(percent, ..)| *percent < 100));
    let severities = Severity::ALL.map(|severity| format!("demo-severity-{}", severity.as_str()));
    let kinds = [Kind::Raised, Kind::Cleared, Kind::Acknowledged, Kind::Reset, Kind::Updated, Kind::Removed]
        .map(|kind| format!("demo-kind-{}", kind.as_str()));
    let said = PLAY.iter().map(|(.., sentence)| (*sentence).to_owned());
    for key in said.chain(severities).chain(kinds) {
        assert!(exists(&key), "{key}");
    }
}

#[test]
fn the_configuration_of_the_gateway_is_whole() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1_502));
    let text = config(Path::new("/x"), Language::English, address, address, address);
    let toml: toml::Table = text.parse().expect("TOML");
    assert!(!text.contains("{address}") && !text.contains("{center}") && !text.contains("{outbox}"));
    assert!(
        ["gateway", "command_center", "outbox", "modbus", "mqtt", "alarm"].iter().all(|key| toml.contains_key(*key))
    );
}

/// Plays the gateway's side of the uplink.
struct Gateway {
    wire: Wire,
    root: &'static str,
    seen: Vec<Message>,
}

impl Gateway {
    /// Connects, as often as needed, and subscribes.
    async fn connect(address: SocketAddr, root: &'static str) -> Self {
        let settings = Settings {
            url: BrokerUrl { scheme: Scheme::Mqtt, host: address.ip().to_string(), port: address.port() },
            version: MqttVersion::V5,
            client_id: "gateway".into(),
            login: None,
            tls: TlsFiles::default(),
            clock: Clock::system(),
            keep_alive: Duration::from_secs(30),
            session_expiry: Duration::ZERO,
            will: None,
            window: 8,
            receive_maximum: 8,
            packet_size_max: 65_536,
            connect_timeout: Duration::from_secs(20),
        };
        loop {
            let mut gateway = Self { wire: Wire::connect(&settings), root, seen: Vec::new() };
            if matches!(soon(gateway.wire.next()).await, Event::Up(_)) {
                assert!(gateway.wire.subscribe(&[format!("{root}command"), format!("{root}status")]));
                while !matches!(soon(gateway.next()).await, Event::Subscribed(_)) {}
                return gateway;
            }
            tokio::task::yield_now().await; // refused while the link is cut
        }
    }

    /// The next event that is no message; messages are kept.
    async fn next(&mut self) -> Event {
        loop {
            match self.wire.next().await {
                Event::Message(message) => self.seen.push(message),
                other => return other,
            }
        }
    }

    async fn message(&mut self) -> (String, serde_json::Value, bool) {
        while self.seen.is_empty() {
            if let Event::Message(message) = soon(self.wire.next()).await {
                self.seen.push(message);
            }
        }
        let message = self.seen.remove(0);
        let json = serde_json::from_slice(&message.payload).expect("JSON");
        self.wire.acknowledge(message.receipt);
        (message.topic, json, message.retained)
    }

    async fn publish(&mut self, topic: &str, payload: &serde_json::Value, retain: Retain) {
        let (topic, payload) = (format!("{}{topic}", self.root), payload.to_string().into());
        assert!(self.wire.publish(1, Publish { topic, payload, retain, content_type: None, correlation: None }));
        while !matches!(soon(self.next()).await, Event::Confirmed { .. }) {}
    }

    async fn event(&mut self, sequence: u64) {
        let time = crate::clock::rfc3339(Clock::system().now().wall_ms);
        let data = json!({"alarm": "panel/door/open", "occurrence": sequence, "active": true, "acknowledged": false,
            "latched": false, "severity": "high", "message": {"id": "Pintu terbuka", "en": "Door open"}});
        let event = json!({"id": format!("{EPOCH}-a-{sequence}"), "type": "gardu.alarm.raised.v1", "time": time,
            "recordedtime": time, "data": data});
        self.publish("event/high", &event, Retain::No).await;
    }

    async fn status(&mut self, settled: u64) {
        let lane = json!({"epoch": EPOCH, "next": settled + 1, "settled": settled});
        let telemetry = json!({"epoch": EPOCH, "next": 1, "settled": 0});
        self.publish("status", &json!({"state": "online", "lanes": {"a": lane, "t": telemetry}}), Retain::Yes).await;
    }
}

#[tokio::test]
async fn the_center_acknowledges_keeps_and_finds_what_is_missing() {
    let (printed, clock, root) = (Printed::default(), Clock::system(), "gardu/v1/taman/");
    let paper = Paper::new(Box::new(printed.clone()), Colour::Plain, Language::English);
    let (center, handle) = Center::bind(root.into(), paper, clock).await.expect("loopback");
    let ended = Shutdown::new();
    let center = tokio::spawn(center.run(ended.clone()));

    let mut gateway = Gateway::connect(handle.address, root).await;
    gateway.event(1).await;
    gateway.status(1).await;
    let (topic, status, retained) = gateway.message().await;
    assert_eq!((topic.as_str(), retained), ("gardu/v1/taman/status", false));
    assert_eq!(status["lanes"]["a"]["settled"], 1);
    let (topic, command, _) = gateway.message().await;
    assert_eq!(topic, "gardu/v1/taman/command");
    assert_eq!(
        [&command["command"], &command["alarm"], &command["occurrence"], &command["epoch"]],
        [&json!("acknowledge"), &json!("panel/door/open"), &json!(1), &json!(EPOCH)]
    );
    soon(handle.complete.clone().wait_for(|complete| *complete)).await.expect("the center runs");

    handle.link.send_replace(Link::Cut);
    while !matches!(soon(gateway.next()).await, Event::Down(_)) {}
    handle.link.send_replace(Link::Up);
    let mut gateway = Gateway::connect(handle.address, root).await;
    let (topic, _, retained) = gateway.message().await;
    assert_eq!((topic.as_str(), retained), ("gardu/v1/taman/status", true), "kept through the cut");
    gateway.event(1).await;
    gateway.event(3).await;
    gateway.status(3).await;
    assert!(!*handle.complete.borrow());

    ended.cancel();
    let summary = soon(center).await.expect("no panic");
    assert_eq!((summary.raised, summary.delivered, summary.duplicates), (2, 2, 1));
    assert_eq!((summary.lost, summary.waiting), (1, 0), "2 was called settled and never came");
    assert!(printed.text().contains("HIGH      RAISED       Door open  (panel/door/open)"), "{}", printed.text());
}

#[tokio::test]
async fn a_camera_sends_again_what_nobody_confirmed() {
    let mut gateway = listener::Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), None).await.expect("loopback");
    let address = gateway.address().expect("bound");
    let (scenes, seen) = mpsc::channel(4);
    let stop = Shutdown::new();
    let camera = tokio::spawn(Camera::new("cam07", "kolam", address, Clock::system()).run(seen, stop.clone()));
    scenes.send(Scene::Person).await.expect("it watches");
    scenes.send(Scene::Empty).await.expect("it watches");
    let mut heard = Vec::new();
    while heard.len() < 3 {
        if let listener::Event::Published { message, done, .. } = soon(gateway.next()).await {
            let json: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
            heard.push((message.topic, json["detected"].clone()));
            if heard.len() > 1 {
                let _ = done.send(()); // the first is dropped: the connection ends without a PUBACK
            }
        }
    }
    let topic = "cctv/cam07/intrusion/kolam";
    assert_eq!(heard, [true, true, false].map(|detected| (topic.to_owned(), json!(detected))));
    stop.cancel();
    soon(async {
        tokio::select! {
            ended = camera => ended.expect("no panic"),
            () = async { loop { gateway.next().await; } } => {}
        }
    })
    .await;
}
