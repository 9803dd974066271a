//! A camera of the simulated park: an MQTT client that publishes detections straight to the gateway.
//!
//! Like a good camera it keeps a detection until the gateway has confirmed it, and sends it again after a cut.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    clock::{Clock, rfc3339},
    config::{BrokerUrl, MqttVersion, Scheme, TlsFiles},
    supervise::Shutdown,
    wire::{Event, Publish, Retain, Settings, Wire},
};

/// The subscription and the rule a gateway needs for these cameras.
pub const CONFIG: &str = include_str!("cameras.toml");

/// Between attempts to connect.
const AGAIN: Duration = Duration::from_millis(300);
/// Detections a camera remembers while nobody confirms them; the oldest is forgotten first, as in a camera.
const REMEMBERED_MAX: usize = 64;
const DISCONNECT_MAX: Duration = Duration::from_secs(1);

/// What a camera sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// A person where nobody may be.
    Person,
    /// Nobody.
    Empty,
}

/// One camera.
#[derive(Debug)]
pub struct Camera {
    name: &'static str,
    zone: &'static str,
    settings: Settings,
    clock: Clock,
    unconfirmed: VecDeque<(u64, Publish)>,
    next_token: u64,
}

impl Camera {
    /// Camera `name` that watches `zone` and publishes to `gateway`.
    #[must_use]
    pub fn new(name: &'static str, zone: &'static str, gateway: SocketAddr, clock: Clock) -> Self {
        let settings = Settings {
            url: BrokerUrl { scheme: Scheme::Mqtt, host: gateway.ip().to_string(), port: gateway.port() },
            version: MqttVersion::V311,
            client_id: name.into(),
            login: None,
            tls: TlsFiles::default(),
            clock: clock.clone(),
            keep_alive: Duration::from_secs(30),
            session_expiry: Duration::ZERO,
            will: None,
            window: 8,
            receive_maximum: 8,
            packet_size_max: 1_024,
            connect_timeout: Duration::from_secs(5),
        };
        Self { name, zone, settings, clock, unconfirmed: VecDeque::new(), next_token: 0 }
    }

    /// Watches until shutdown.
    pub async fn run(mut self, mut scenes: mpsc::Receiver<Scene>, shutdown: Shutdown) {
        loop {
            let mut wire = Wire::connect(&self.settings);
            let mut sent = None;
            let over = loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break true,
                    Some(scene) = scenes.recv() => self.see(scene),
                    event = wire.next() => match event {
                        Event::Confirmed { token, .. } => {
                            self.unconfirmed.retain(|(waiting, _)| *waiting != token);
                            sent = None;
                        }
                        Event::Down(_) => break false,
                        Event::Up(_) | Event::Subscribed(_) | Event::Message(_) => {}
                    },
                }
                // One after the other: a detection and its end must not change places.
                if let (None, Some((token, publish))) = (sent, self.unconfirmed.front()) {
                    sent = wire.publish(*token, publish.clone()).then_some(*token);
                }
            };
            if over {
                wire.disconnect(DISCONNECT_MAX).await;
                return;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    fn see(&mut self, scene: Scene) {
        let time = rfc3339(self.clock.now().wall_ms);
        let payload = json!({"detected": scene == Scene::Person, "object": "person", "time": time});
        let publish = Publish {
            topic: format!("cctv/{}/intrusion/{}", self.name, self.zone),
            payload: payload.to_string().into(),
            retain: Retain::No,
            content_type: None,
            correlation: None,
        };
        if self.unconfirmed.len() == REMEMBERED_MAX {
            self.unconfirmed.pop_front();
        }
        self.unconfirmed.push_back((self.next_token, publish));
        self.next_token += 1;
    }
}
