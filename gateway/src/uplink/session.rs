//! The task that owns the uplink: one connection after the other, and between them a pause (DESIGN.md §5).
//!
//! Life of a connection: CONNECT (counted durably), subscribe, read the own retained topics back, say online, correct the
//! retained alarms, deliver. Nothing with an id is published before the read-back has shown that the store was not rolled
//! back. What happens inside one connection is in [`connection`].

mod connection;
mod denied;

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use self::connection::{Connection, End, Kept};
use super::{
    delivery::Delivery,
    message::{self, About, DeviceDescription},
};
use crate::{
    backoff::{Backoff, Jitter, Pace, STABLE_AFTER},
    clock::{Clock, Now},
    config::{BrokerUrl, CommandCenter, Config},
    metrics::Metrics,
    pipeline::Input,
    status::{Link, StatusBoard, UplinkState},
    store::Store,
    supervise::{BEAT_EVERY, Beat, Shutdown, TaskResult},
    wire::{Retain, Settings, Will, Wire},
};

/// Publishes that may be unconfirmed: enough for a mobile link's round trip, few enough that a lost connection repeats
/// little.
const WINDOW: u16 = 64;
/// Messages to us that may be unacknowledged: commands and the read-back.
const RECEIVE_MAXIMUM: u16 = 64;
/// A command is at most 32 KiB; this leaves room for its topic and properties.
const PACKET_SIZE_MAX: u32 = 40 * 1024;
/// DNS, TCP and CONNACK over a modem that has to wake up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The broker waits so long before it says that we are gone: a short break is no news.
const WILL_DELAY: Duration = Duration::from_secs(30);
/// All gateways of a street come back with the power: the first connection is spread over this.
const FIRST_CONNECT_SPREAD: Duration = Duration::from_secs(1);

/// All that the uplink needs.
#[derive(Debug)]
pub struct UplinkTask {
    /// Where to deliver.
    pub center: CommandCenter,
    /// Who we are.
    pub about: About,
    /// Fingerprint of the configuration.
    pub fingerprint: Arc<str>,
    /// What devices there are.
    pub devices: Vec<DeviceDescription>,
    /// Where records wait.
    pub store: Store,
    /// Where commands go.
    pub pipeline: mpsc::Sender<Input>,
    /// The clock.
    pub clock: Clock,
    /// When the daemon started.
    pub started: Now,
    /// Numbers for Prometheus.
    pub metrics: Metrics,
    /// This stage's pulse.
    pub beat: Beat,
    /// When to stop.
    pub shutdown: Shutdown,
    /// Where people see how we are.
    pub board: StatusBoard,
}

impl UplinkTask {
    /// The parts that come from the configuration, and the handles.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is one handle of the wiring")]
    pub fn new(
        config: &Config,
        store: Store,
        pipeline: mpsc::Sender<Input>,
        clock: Clock,
        metrics: Metrics,
        beat: Beat,
        shutdown: Shutdown,
        board: StatusBoard,
    ) -> Self {
        let center = config.command_center.clone();
        let about = About::new(&config.gateway, &center.topic_prefix);
        let (fingerprint, devices) = (config.fingerprint.as_str().into(), DeviceDescription::all(config));
        let started = clock.now();
        Self { center, about, fingerprint, devices, store, pipeline, clock, started, metrics, beat, shutdown, board }
    }

    /// Runs until shutdown. Fails only if the store does.
    pub async fn run(self) -> TaskResult {
        let mut backoff = Backoff::default();
        let mut delivery = Delivery::new(self.center.delivered_when);
        let mut urls = self.center.urls.iter().cycle();
        let mut last_word = None;
        let mut kept = Kept::default();
        self.pause(Jitter::random().of(FIRST_CONNECT_SPREAD)).await;
        while !self.shutdown.is_cancelled() {
            let url = urls.next().expect("the configuration has at least one");
            let (down, up_for) = match self.connect(url, &mut delivery, &mut kept).await? {
                End::Stopped => break,
                End::Down { down, up_for } => (down, up_for),
            };
            self.metrics.uplink_connected.set(0);
            self.metrics.uplink_in_flight.set(0);
            self.metrics.uplink_reconnects.with_label_values(&[down.word()]).inc();
            if up_for.is_some_and(|up_for| up_for >= STABLE_AFTER) {
                urls = self.center.urls.iter().cycle(); // after a connection that worked, the first one is first again
            }
            if last_word != Some(down.word()) || up_for.is_some() {
                tracing::warn!(broker = %url, reason = %down, "uplink is down");
            }
            last_word = Some(down.word());
            let pace = if down.needs_person() { Pace::Slow } else { Pace::Normal };
            let pause = backoff.after(up_for.unwrap_or_default(), pace, Jitter::random());
            self.post(url, None, Link::Waiting { reason: down.to_string(), retry_in: pause });
            self.pause(pause).await;
        }
        self.metrics.uplink_connected.set(0);
        Ok(())
    }

    async fn connect(
        &self,
        url: &BrokerUrl,
        delivery: &mut Delivery,
        kept: &mut Kept,
    ) -> Result<End, crate::store::StoreError> {
        let session = self.store.next_session().await?;
        self.post(url, Some(session), Link::Connecting);
        let standing = connection::standing(&self.store.alarms().await?);
        let status =
            connection::status(self, session, standing, message::Presence::Offline, Some(message::OfflineReason::Lost));
        let will = message::status(&self.about, &status);
        let wire = Wire::connect(&Settings {
            url: url.clone(),
            version: self.center.version,
            client_id: self.about.gateway.to_string(),
            login: self.center.login.clone(),
            tls: self.center.tls.clone(),
            clock: self.clock.clone(),
            keep_alive: self.center.keep_alive,
            session_expiry: Duration::ZERO,
            will: Some(Will { topic: will.topic, payload: will.payload, retain: Retain::Yes, delay: WILL_DELAY }),
            window: WINDOW,
            receive_maximum: RECEIVE_MAXIMUM,
            packet_size_max: PACKET_SIZE_MAX,
            connect_timeout: CONNECT_TIMEOUT,
        });
        let end = Connection::new(self, url, session, wire, delivery, kept, standing).run().await;
        delivery.down();
        end
    }

    /// Puts on the board how we are.
    fn post(&self, url: &BrokerUrl, session: Option<u64>, link: Link) {
        self.board.set_uplink(UplinkState { link, url: url.to_string(), since: self.clock.now(), session });
    }

    /// Waits, alive, until it is time or shutdown.
    async fn pause(&self, pause: Duration) {
        let done = tokio::time::sleep(pause);
        tokio::pin!(done);
        let mut beat = tokio::time::interval(BEAT_EVERY);
        loop {
            tokio::select! {
                () = &mut done => return,
                () = self.shutdown.cancelled() => return,
                _ = beat.tick() => self.beat.mark(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails to compile if the task could not be spawned.
    #[test]
    fn the_task_can_move_between_threads() {
        fn spawnable<T: Future + Send>(_: impl Fn(UplinkTask) -> T) {}
        spawnable(UplinkTask::run);
    }
}
