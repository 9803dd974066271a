//! The [`Wire`]: one version's event loop turned into [`Event`]s, with the tokens of what it sends.
//!
//! Silence is judged here: rumqttc's MQTT 5 loop can hang in a write for ever, so a connection on which nothing arrives
//! for 1.5 keep alives is down, whatever rumqttc thinks of it.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    fmt,
    future::{Future, pending, poll_fn},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::time::{Instant, Sleep};

use super::{Down, Event, Limits, Message, Publish, Receipt, Settings, Token, Verdict, peer::Peer, v4, v5};
use crate::config::MqttVersion;

/// Largest packet of the protocol's framing we let a 3.1.1 broker send; a Pi Zero 2 W has room for one of these.
pub(super) const V4_INCOMING_MAX: usize = 16 * 1024 * 1024;
/// Requests beside publishes and acknowledgements that may wait for rumqttc: a few subscriptions and the DISCONNECT.
const OTHER_REQUESTS: usize = 16;
/// Signals an event loop may be ahead of who hears them, messages apart: a good part of a window.
const UNHEARD_MAX: usize = 64;
/// MQTT 5 reason codes used for what is refused before it is sent.
const TOPIC_NAME_INVALID: u8 = 0x90;
const PACKET_TOO_LARGE: u8 = 0x95;

/// Counts connections of this process, so that receipts of an older one are known.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// One connection.
pub struct Wire {
    connection: u64,
    client: Client,
    /// Owns the event loop and its one poll future, which therefore survives when [`Wire::next`] is dropped.
    heard: Heard,
    state: Phase,
    /// Publishes that may be unconfirmed: the owner's window, then also what the broker allows.
    window: usize,
    packet_size_max: Option<u32>,
    /// Published, packet identifier not yet chosen; in the order of submission.
    submitted: VecDeque<Token>,
    in_flight: HashMap<u16, Token>,
    /// Verdicts found without asking the broker. Bounded: the owner's window counts these too.
    local: VecDeque<Event>,
    /// Acknowledgements that found rumqttc's queue full. Bounded by what the broker may leave unacknowledged.
    acks: VecDeque<u16>,
    keep_alive: Duration,
    pub(super) silence: Pin<Box<Sleep>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Up,
    Down,
}

/// One version's event loop, which runs whenever it is polled, and what it has said and nobody has heard yet, in order.
///
/// It goes on past its first word: every start of rumqttc's poll moves kilobytes, and every look at it costs as much as
/// the word itself.
pub(super) struct Heard {
    /// Never ends: after an `Err` it is silent.
    event_loop: Pin<Box<dyn Future<Output = Infallible> + Send>>,
    said: Said,
}

/// Where an event loop speaks.
#[derive(Clone, Default)]
pub(super) struct Said(Arc<Mutex<VecDeque<Result<Signal, Down>>>>);

impl Heard {
    /// Runs what `speak` makes. rumqttc panics on some malformed packets; what a broker sends must never end the daemon.
    pub(super) fn from<F>(speak: impl FnOnce(Said) -> F) -> Self
    where
        F: Future<Output = Infallible> + Send + 'static,
    {
        let said = Said::default();
        let (speaking, last_word) = (AssertUnwindSafe(speak(said.clone())).catch_unwind(), said.clone());
        let event_loop = Box::pin(async move {
            match speaking.await {
                Ok(never) => never,
                Err(_) => {
                    last_word.say(Err(Down::Protocol("malformed packet".into()))).await;
                    pending().await
                }
            }
        });
        Self { event_loop, said }
    }

    /// The next word. Cancel safe; pending for ever after an `Err`.
    async fn next(&mut self) -> Result<Signal, Down> {
        poll_fn(|context| {
            if let Some(word) = self.said.pop() {
                return Poll::Ready(word);
            }
            let _ = self.event_loop.as_mut().poll(context);
            self.said.pop().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

impl Said {
    /// Says one thing, and waits while too much is unheard: who has heard all polls again. After an `Err` for ever.
    pub(super) async fn say(&self, word: Result<Signal, Down>) {
        let unheard_max = match &word {
            Ok(Signal::Message { .. }) => 1, // it can be large, and is answered first
            Ok(_) => UNHEARD_MAX,
            Err(_) => 0,
        };
        self.unheard().push_back(word);
        poll_fn(|_| if self.unheard().len() < unheard_max { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    fn pop(&self) -> Option<Result<Signal, Down>> {
        self.unheard().pop_front()
    }

    fn unheard(&self) -> MutexGuard<'_, VecDeque<Result<Signal, Down>>> {
        self.0.lock().expect("nobody panics while speaking")
    }
}

/// An event of rumqttc, the same for both versions.
#[derive(Debug)]
pub(super) enum Signal {
    Up { limits: Limits, server_keep_alive: Option<Duration> },
    Sent(u16),
    Confirmed(u16, Verdict),
    Subscribed(Vec<bool>),
    Message { packet_id: u16, message: Incoming },
    Heard,
    Disconnecting,
    Other,
}

/// A [`Message`] without its receipt.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) retained: bool,
    pub(super) response_topic: Option<String>,
    pub(super) correlation: Option<Bytes>,
}

/// rumqttc's request side. Each request is false if its queue is full, and then nothing happened.
pub(super) enum Client {
    V4(rumqttc::AsyncClient),
    V5(rumqttc::v5::AsyncClient),
    /// There is nothing to connect with.
    None,
}

impl Client {
    fn publish(&self, publish: Publish) -> bool {
        match self {
            Self::V4(client) => v4::publish(client, publish),
            Self::V5(client) => v5::publish(client, publish),
            Self::None => false,
        }
    }

    fn subscribe(&self, filters: &[String]) -> bool {
        match self {
            Self::V4(client) => v4::subscribe(client, filters),
            Self::V5(client) => v5::subscribe(client, filters),
            Self::None => false,
        }
    }

    fn unsubscribe(&self, filter: &str) -> bool {
        match self {
            Self::V4(client) => v4::unsubscribe(client, filter),
            Self::V5(client) => v5::unsubscribe(client, filter),
            Self::None => false,
        }
    }

    fn acknowledge(&self, packet_id: u16) -> bool {
        match self {
            Self::V4(client) => v4::acknowledge(client, packet_id),
            Self::V5(client) => v5::acknowledge(client, packet_id),
            Self::None => false,
        }
    }

    fn disconnect(&self) -> bool {
        match self {
            Self::V4(client) => client.try_disconnect().is_ok(),
            Self::V5(client) => client.try_disconnect().is_ok(),
            Self::None => false,
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("connection", &self.connection).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Wire {
    /// Reads the files of TLS and begins to connect; nothing is sent until [`Wire::next`] is awaited.
    #[must_use]
    pub fn connect(settings: &Settings) -> Self {
        let capacity = usize::from(settings.window) + usize::from(settings.receive_maximum) + OTHER_REQUESTS;
        let (client, heard) = match (Peer::new(settings), settings.version) {
            (Ok(peer), MqttVersion::V311) => v4::open(settings, peer, capacity),
            (Ok(peer), MqttVersion::V5) => v5::open(settings, peer, capacity),
            (Err(fault), _) => {
                let heard = Heard::from(|said| async move {
                    said.say(Err(Down::Tls(fault))).await;
                    pending().await
                });
                (Client::None, heard)
            }
        };
        Self {
            connection: CONNECTIONS.fetch_add(1, Ordering::Relaxed),
            client,
            heard,
            state: Phase::Connecting,
            window: usize::from(settings.window.max(1)),
            packet_size_max: None,
            submitted: VecDeque::new(),
            in_flight: HashMap::new(),
            local: VecDeque::new(),
            acks: VecDeque::new(),
            keep_alive: keep_alive(settings),
            // rumqttc counts whole seconds and bounds DNS, TCP and CONNACK together; one more is for its own slowness.
            silence: Box::pin(tokio::time::sleep(settings.connect_timeout + Duration::from_secs(2))),
        }
    }

    /// The next event. Cancel safe: dropping the future loses nothing. After [`Event::Down`] it is pending for ever.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.local.pop_front() {
                return event;
            }
            if self.state == Phase::Down {
                return pending().await;
            }
            self.pass_on_acks();
            let heard = tokio::select! {
                heard = self.heard.next() => heard,
                () = &mut self.silence => Err(Down::Silent),
            };
            if let Some(event) = self.apply(heard) {
                return event;
            }
        }
    }

    fn apply(&mut self, heard: Result<Signal, Down>) -> Option<Event> {
        let signal = match heard {
            Ok(signal) => signal,
            Err(down) => {
                self.state = Phase::Down;
                return Some(Event::Down(down));
            }
        };
        if signal.was_received() {
            self.expect_more();
        }
        match signal {
            Signal::Up { limits, server_keep_alive } => {
                self.keep_alive = server_keep_alive.unwrap_or(self.keep_alive);
                self.expect_more();
                // At the broker's very limit rumqttc would also hold back acknowledgements and the DISCONNECT.
                let allowed = usize::from(limits.receive_maximum.saturating_sub(1).max(1));
                self.window = self.window.min(allowed);
                self.packet_size_max = limits.packet_size_max;
                self.state = Phase::Up;
                Some(Event::Up(limits))
            }
            Signal::Sent(packet_id) => {
                if let Some(token) = self.submitted.pop_front() {
                    self.in_flight.insert(packet_id, token);
                }
                None
            }
            Signal::Confirmed(packet_id, verdict) => {
                self.in_flight.remove(&packet_id).map(|token| Event::Confirmed { token, verdict })
            }
            Signal::Subscribed(granted) => Some(Event::Subscribed(granted)),
            Signal::Message { packet_id, message } => {
                let Incoming { topic, payload, retained, response_topic, correlation } = message;
                let receipt = Receipt { connection: self.connection, packet_id };
                Some(Event::Message(Message { topic, payload, retained, response_topic, correlation, receipt }))
            }
            Signal::Heard | Signal::Disconnecting | Signal::Other => None,
        }
    }

    /// Pings leave every keep alive whatever the traffic, so an answer is never older than that and a round trip.
    fn expect_more(&mut self) {
        // Moved, not made anew: a timer that only moves on stays where it is in tokio's wheel.
        self.silence.as_mut().reset(Instant::now() + self.keep_alive * 3 / 2);
    }

    /// Publishes; false if the window is full or the wire is not up, and then nothing happened.
    ///
    /// What the broker could only refuse by closing the connection (a topic with wildcards, more than its maximum packet
    /// size) is refused here with [`Verdict::Invalid`] and never sent.
    #[must_use]
    pub fn publish(&mut self, token: Token, publish: Publish) -> bool {
        if !self.has_room() {
            return false;
        }
        let refused = if publish.topic.is_empty() || publish.topic.contains(['+', '#', '\0']) {
            Some(TOPIC_NAME_INVALID)
        } else {
            let too_large = self.packet_size_max.is_some_and(|max| publish.packet_size() > u64::from(max));
            too_large.then_some(PACKET_TOO_LARGE)
        };
        if let Some(code) = refused {
            self.local.push_back(Event::Confirmed { token, verdict: Verdict::Invalid(code) });
            return true;
        }
        let taken = self.client.publish(publish);
        if taken {
            self.submitted.push_back(token);
        }
        taken
    }

    /// Whether [`Wire::publish`] would take one now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.state == Phase::Up && self.unconfirmed() < self.window
    }

    /// How many publishes wait for their verdict.
    #[must_use]
    pub fn unconfirmed(&self) -> usize {
        self.submitted.len() + self.in_flight.len() + self.local.len()
    }

    /// Subscribes at QoS 1 to every filter in one packet; false if the wire is not up.
    #[must_use]
    pub fn subscribe(&mut self, filters: &[String]) -> bool {
        self.state == Phase::Up && self.client.subscribe(filters)
    }

    /// Ends one subscription; false if the wire is not up. Its acknowledgement is not reported.
    #[must_use]
    pub fn unsubscribe(&mut self, filter: &str) -> bool {
        self.state == Phase::Up && self.client.unsubscribe(filter)
    }

    /// Sends the PUBACK of a message.
    #[expect(clippy::needless_pass_by_value, reason = "a receipt is used once")]
    pub fn acknowledge(&mut self, receipt: Receipt) {
        // QoS 0 has no packet identifier and no acknowledgement.
        if receipt.connection == self.connection && receipt.packet_id != 0 && self.state == Phase::Up {
            self.acks.push_back(receipt.packet_id);
            self.pass_on_acks();
        }
    }

    fn pass_on_acks(&mut self) {
        while let Some(packet_id) = self.acks.front() {
            if !self.client.acknowledge(*packet_id) {
                return; // the queue moves whenever rumqttc is polled, and then this is tried again
            }
            self.acks.pop_front();
        }
    }

    /// Sends DISCONNECT, so that the will is not published, and waits at most `bound` for it to leave.
    pub async fn disconnect(mut self, bound: Duration) {
        if self.state != Phase::Up {
            return;
        }
        let leave = async {
            let mut asked = false;
            loop {
                self.pass_on_acks();
                asked = asked || self.client.disconnect();
                match self.heard.next().await {
                    Ok(Signal::Disconnecting) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        // Too slow: the connection is dropped and the will says what DISCONNECT would have spared.
        let _ = tokio::time::timeout(bound, leave).await;
    }
}

impl Signal {
    /// Whether it proves that the broker is there, which what we send ourselves does not.
    const fn was_received(&self) -> bool {
        match self {
            Self::Up { .. } | Self::Confirmed(..) | Self::Subscribed(_) | Self::Message { .. } | Self::Heard => true,
            Self::Sent(_) | Self::Disconnecting | Self::Other => false,
        }
    }
}

impl Publish {
    /// An upper bound of the PUBLISH packet: fixed header, topic, packet identifier, properties, payload.
    fn packet_size(&self) -> u64 {
        let content_type = self.content_type.map_or(0, |text| text.len() + 3);
        let correlation = self.correlation.as_ref().map_or(0, |data| data.len() + 3);
        let size = 5 + 2 + self.topic.len() + 2 + 4 + content_type + correlation + self.payload.len();
        u64::try_from(size).unwrap_or(u64::MAX)
    }
}

/// The keep alive as CONNECT can carry it and rumqttc takes it: 5 s to 18 h.
pub(super) fn keep_alive(settings: &Settings) -> Duration {
    let seconds = settings.keep_alive.as_secs().clamp(5, u64::from(u16::MAX));
    Duration::from_secs(seconds)
}

/// rumqttc's inflight: larger than our window, so that a broker that acknowledges out of order seldom meets a packet
/// identifier still in use.
pub(super) const fn inflight(window: u16) -> u16 {
    let four = window.saturating_mul(4);
    if four < 16 { 16 } else { four }
}

pub(super) fn connect_timeout_s(settings: &Settings) -> u64 {
    settings.connect_timeout.as_secs().max(1)
}
