//! The gateway as a client of a broker that devices publish to.
//!
//! Every message is acknowledged only after its effect is on stable storage, and the session is persistent, so what
//! was not acknowledged comes again after a cut, a crash or a restart. The task never gives up: a broker that is away
//! is tried again, and its points go stale by their own rule meanwhile.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use tokio::sync::oneshot;

use super::{
    UNCOMMITTED_MAX,
    intake::{Age, Intake},
    json::PAYLOAD_LEN_MAX,
};
use crate::{
    backoff::{Backoff, Jitter, Pace},
    clock::{Clock, Now},
    config::{BrokerUrl, Login, MqttVersion, Scheme, TlsFiles},
    pipeline::Input,
    reading::Segment,
    source::outlet::{Handed, Outlet},
    supervise::TaskResult,
    wire::{Down, Event, Message, Receipt, Settings, Wire, tls::Fingerprint},
};

/// How long the broker keeps our session and what is published meanwhile: a day covers a board that is replaced.
const SESSION_EXPIRY: Duration = Duration::from_hours(24);
/// The broker is on the same board or the same street; more only delays the next attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A DISCONNECT takes one packet.
const DISCONNECT_MAX: Duration = Duration::from_secs(1);
/// While there is no connection, a technician who puts new certificate files there sees soon what comes of it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Far above the payloads we take, so that a too large message is refused, counted and acknowledged like any other.
const PACKET_SIZE_MAX: u32 = 16 * PAYLOAD_LEN_MAX as u32;
/// An MQTT 3.1.1 broker may send more than our receive maximum; beyond four times that we stop reading.
const UNCOMMITTED_READ_MAX: usize = 4 * UNCOMMITTED_MAX as usize;
/// So many protocol errors in a row mean that the same packet comes again and again from the session the broker keeps.
const STRIKES_MAX: u32 = 3;

/// One `[[mqtt]]` with a `url`.
#[derive(Debug)]
pub struct ClientTask {
    settings: Settings,
    input: Segment,
    intake: Intake,
    outlet: Outlet,
    clock: Clock,
}

/// The broker to subscribe at.
#[derive(Debug, Clone)]
pub struct Broker {
    /// Where.
    pub url: BrokerUrl,
    /// MQTT version.
    pub version: MqttVersion,
    /// Login.
    pub login: Option<Login>,
    /// For a URL with TLS.
    pub tls: TlsFiles,
    /// MQTT keep alive.
    pub keep_alive: Duration,
}

/// Which session to ask the broker for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Session {
    /// The persistent one.
    Kept,
    /// A clean one, only to make the broker forget the other and the packet in it that breaks us.
    Discarded,
}

/// How a connection ended.
enum End {
    Down(Down),
    Discarded,
    Stopping,
}

/// Resolves when a message may be acknowledged; `None` if it never may.
type Acknowledgement = BoxFuture<'static, Option<Receipt>>;

impl ClientTask {
    /// The client that feeds `intake`, on `gateway`.
    #[must_use]
    pub fn new(gateway: &Segment, broker: Broker, intake: Intake, outlet: Outlet, clock: Clock) -> Self {
        let input = intake.input().clone();
        let settings = Settings {
            url: broker.url,
            version: broker.version,
            // Stable, so that the broker knows us again; of this gateway and input, so that it is nobody else's.
            client_id: format!("gardu-{gateway}-{input}"),
            login: broker.login,
            tls: broker.tls,
            clock: clock.clone(),
            keep_alive: broker.keep_alive,
            session_expiry: SESSION_EXPIRY,
            will: None,
            window: 1, // we publish nothing
            receive_maximum: UNCOMMITTED_MAX,
            packet_size_max: PACKET_SIZE_MAX,
            connect_timeout: CONNECT_TIMEOUT,
        };
        Self { settings, input, intake, outlet, clock }
    }

    /// Runs until shutdown.
    pub async fn run(mut self) -> TaskResult {
        let mut backoff = Backoff::default();
        let mut session = Session::Kept;
        let (mut attempts, mut strikes) = (0_u32, 0);
        loop {
            let files = self.files(); // before they are used, so that a change in between is seen
            let mut up_since = None;
            let down = match self.connection(session, &mut up_since, &mut attempts).await {
                End::Stopping => return Ok(()),
                End::Discarded => {
                    (session, strikes) = (Session::Kept, 0);
                    continue;
                }
                End::Down(down) => down,
            };
            strikes = if matches!(down, Down::Protocol(_)) { strikes + 1 } else { 0 };
            if strikes == STRIKES_MAX {
                session = Session::Discarded;
                tracing::error!(input = %self.input, "{down}, again and again: what the broker kept for us is discarded");
            }
            attempts += 1;
            if attempts == 1 {
                tracing::warn!(input = %self.input, broker = %self.settings.url, reason = down.word(), "{down}; trying again");
            }
            let pace = if down.needs_person() { Pace::Slow } else { Pace::Normal };
            let up_for = up_since.map_or(Duration::ZERO, |since| self.clock.now().since(since));
            if self.pause(backoff.after(up_for, pace, Jitter::random()), files).await == Handed::Stopping {
                return Ok(());
            }
        }
    }

    /// One connection, from CONNECT to its end.
    async fn connection(&mut self, session: Session, up_since: &mut Option<Now>, attempts: &mut u32) -> End {
        let expiry = if session == Session::Kept { SESSION_EXPIRY } else { Duration::ZERO };
        let mut wire = Wire::connect(&Settings { session_expiry: expiry, ..self.settings.clone() });
        let mut uncommitted: FuturesOrdered<Acknowledgement> = FuturesOrdered::new();
        let shutdown = self.outlet.shutdown.clone();
        loop {
            self.outlet.beat.mark();
            let tick = tokio::time::sleep(self.intake.tick_in(self.clock.now()));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    wire.disconnect(DISCONNECT_MAX).await;
                    return End::Stopping;
                }
                Some(receipt) = uncommitted.next() => if let Some(receipt) = receipt { wire.acknowledge(receipt) },
                event = wire.next(), if uncommitted.len() < UNCOMMITTED_READ_MAX => match event {
                    Event::Up(_) if session == Session::Discarded => {
                        wire.disconnect(DISCONNECT_MAX).await;
                        return End::Discarded;
                    }
                    Event::Up(_) => {
                        *up_since = Some(self.clock.now());
                        tracing::info!(input = %self.input, broker = %self.settings.url, attempts = *attempts, "connected");
                        *attempts = 0;
                        // Also when the broker kept our session: the configuration may have changed since.
                        let _down_follows = wire.subscribe(&self.intake.filters());
                    }
                    Event::Subscribed(granted) => self.granted(&granted),
                    Event::Message(message) => match self.take(message).await {
                        Some(acknowledgement) => uncommitted.push_back(acknowledgement),
                        None => return End::Stopping,
                    },
                    Event::Confirmed { .. } => {}
                    Event::Down(down) => return End::Down(down),
                },
                () = tick => if self.tick().await == Handed::Stopping { return End::Stopping },
            }
        }
    }

    /// Hands a message over; `None` if it is time to stop.
    async fn take(&mut self, message: Message) -> Option<Acknowledgement> {
        let age = if message.retained { Age::Retained } else { Age::Live };
        let readings = self.intake.take(&message.topic, &message.payload, age, self.clock.now());
        let receipt = message.receipt;
        if readings.is_empty() {
            return Some(std::future::ready(Some(receipt)).boxed());
        }
        let (durable, committed) = oneshot::channel();
        let handed = self.outlet.send(Input::Message { readings, durable }).await;
        (handed == Handed::Over).then(|| committed.map(|committed| committed.is_ok().then_some(receipt)).boxed())
    }

    fn granted(&mut self, granted: &[bool]) {
        let filters = self.intake.filters();
        for (filter, _) in filters.iter().zip(granted).filter(|(_, granted)| !**granted) {
            let why = format!("the broker does not let us subscribe `{filter}`: check its access list");
            self.intake.complain("subscription-refused", &why, self.clock.now());
        }
    }

    async fn tick(&mut self) -> Handed {
        let quiet = self.intake.tick(self.clock.now());
        if quiet.is_empty() { Handed::Over } else { self.outlet.send(Input::Readings(quiet)).await }
    }

    /// What the files of TLS hold now, if there is TLS.
    fn files(&self) -> Option<Fingerprint> {
        (self.settings.url.scheme == Scheme::Mqtts).then(|| Fingerprint::of(&self.settings.tls))
    }

    /// Waits before the next attempt, less long if the files of TLS change; points go stale meanwhile.
    async fn pause(&mut self, wait: Duration, files: Option<Fingerprint>) -> Handed {
        let shutdown = self.outlet.shutdown.clone();
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            self.outlet.beat.mark();
            let tick = tokio::time::sleep(self.intake.tick_in(self.clock.now()));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Handed::Stopping,
                () = &mut over => return Handed::Over,
                () = tick => if self.tick().await == Handed::Stopping { return Handed::Stopping },
                _ = look.tick() => if self.files() != files { return Handed::Over },
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the test runs the client as a task of its own")]
mod tests {
    use super::*;
    use crate::source::mqtt::{
        listener::{
            self,
            codec::{Grant, Message as Published},
            tests::{Owner, soon},
        },
        tests::input,
    };

    /// Lets the client in and answers its subscription.
    async fn welcome(broker: &mut Owner) -> listener::Client {
        let client = broker.connected().await;
        let listener::Event::Subscribe { filters, reply, .. } = broker.event().await else { panic!("it subscribes") };
        assert_eq!((&*client.id, &filters[..]), ("gardu-taman-cctv", &["sensors/+/+".to_owned()][..]));
        let _ = reply.send(vec![Grant::Granted]);
        client
    }

    fn send(client: &listener::Client, payload: &'static str) -> oneshot::Receiver<()> {
        let (acknowledged, puback) = oneshot::channel();
        let topic = "sensors/gate/door".into();
        client.publish(Published { topic, payload: payload.into(), retain: false }, Some(acknowledged));
        puback
    }

    #[tokio::test]
    async fn only_what_is_durable_or_useless_is_acknowledged() {
        for version in [MqttVersion::V311, MqttVersion::V5] {
            let mut broker = Owner::start(None).await;
            let clock = Clock::system();
            let (intake, outlet, mut inputs) = input(&clock);
            let shutdown = outlet.shutdown.clone();
            let url = BrokerUrl { scheme: Scheme::Mqtt, host: "127.0.0.1".into(), port: broker.address.port() };
            let settings =
                Broker { url, version, login: None, tls: TlsFiles::default(), keep_alive: Duration::from_secs(60) };
            let gateway = Segment::parse("taman").expect("a name");
            let task = tokio::spawn(ClientTask::new(&gateway, settings, intake, outlet, clock).run());

            let client = welcome(&mut broker).await;
            soon(send(&client, "{poison")).await.expect("garbage is acknowledged, else it would come again");
            let mut never = send(&client, "true");
            let later = send(&client, "false");
            let mut durable = Vec::new();
            for expected in [true, false] {
                let Some(Input::Message { readings, durable: sender }) = soon(inputs.recv()).await else { panic!() };
                assert_eq!(readings[0].value, Some(expected.into()));
                durable.push(sender);
            }
            let _ = durable.pop().expect("the second").send(());
            drop(durable);
            soon(later).await.expect("durable");
            assert!(never.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty), "{version:?}");

            client.close();
            assert_eq!(broker.gone().await.1, listener::End::Closed);
            let client = welcome(&mut broker).await;
            soon(send(&client, "{}")).await.expect("the new connection serves");
            shutdown.cancel();
            soon(task).await.expect("no panic").expect("it ends in order");
            assert_eq!(broker.gone().await.1, listener::End::Left);
        }
    }
}
