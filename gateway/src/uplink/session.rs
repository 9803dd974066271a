//! The task that owns the uplink: one connection after the other, and between them a pause (DESIGN.md §5).
//!
//! Brokers are tried in the order of the configuration ([`route`]), each name resolved anew for each attempt; while a later
//! one serves us, earlier ones are looked at, and the first that answers is moved to in good order. What is unconfirmed
//! then is sent again there: duplicates are allowed, losses are not.
//!
//! Life of a connection: CONNECT (counted durably), subscribe, read the own retained topics back, say online, correct the
//! retained alarms, deliver. Nothing with an id is published before the read-back has shown that the store was not rolled
//! back. What happens inside one connection is in [`connection`].
//!
//! The first connection after a start only reads back, and has no will: where it breaks, a will of a store that was rolled
//! back would take the place of the very status that can tell so. An epoch that begins in this run needs none.

mod certificates;
mod conflict;
mod connection;
mod own_alarms;
mod route;

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use self::{
    certificates::Certificates,
    conflict::Conflict,
    connection::{Connection, End, Kept},
    own_alarms::OwnAlarms,
    route::{Route, Step},
};
use super::{
    delivery::Delivery,
    message::{self, About, DeviceDescription},
};
use crate::{
    backoff::Jitter,
    clock::{Clock, Now},
    config::{BrokerUrl, CommandCenter, Config},
    metrics::Metrics,
    pipeline::Input,
    record::Lane,
    status::{Link, StatusBoard, UplinkState},
    store::{Store, StoreError},
    supervise::{Beat, Shutdown, TaskResult},
    wire::{Down, Retain, Settings, Will, Wire},
};

/// Publishes that may be unconfirmed, and so what a lost connection repeats at most. At a round trip of 100 ms it lets
/// 2,500 events a second pass: a backlog of 30,000 is gone in 12 s. Slow links do not fill it (`delivery`).
const WINDOW: u16 = 256;
/// Messages to us that may be unacknowledged: commands and the read-back.
const RECEIVE_MAXIMUM: u16 = 64;
/// A command is at most 32 KiB; this leaves room for its topic and properties.
const PACKET_SIZE_MAX: u32 = 40 * 1024;
/// DNS, TCP and CONNACK over a modem that has to wake up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The broker waits so long before it says that we are gone: a short break is no news.
const WILL_DELAY: Duration = Duration::from_secs(30);
/// While waiting: so often it is looked whether what the pause waits for has changed; more often than a beat is due.
const LOOK_AROUND_EVERY: Duration = Duration::from_secs(2);
/// All gateways of a street come back with the power: the first connection is spread over this.
const FIRST_CONNECT_SPREAD: Duration = Duration::from_secs(1);
/// The power came back if the machine has not run for longer than this, in milliseconds: a slow card is up in two
/// minutes. A later start is that of one gateway alone.
const POWER_CAME_BACK_MS: u64 = 5 * 60 * 1000;

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
        let (urls, boot) = (&self.center.urls, self.clock.boot().clone());
        let mut delivery = Delivery::new(self.center.delivered_when);
        let mut kept = Kept {
            route: Route::new(urls.len(), self.center.keep_alive),
            own: OwnAlarms::new(Conflict::new(boot, urls.len())),
            center_away_since: None,
        };
        let mut trouble = Trouble::new(urls, Certificates::of(urls, &self.center.tls, self.clock.now()));
        if self.started.mono_ms < POWER_CAME_BACK_MS {
            self.pause(Jitter::random().of(FIRST_CONNECT_SPREAD), &mut kept, &mut trouble).await;
        }
        while self.numbered().await {
            match kept.route.next(self.clock.now(), Jitter::random()) {
                Step::Try(broker) => {
                    // A disk without room keeps everyone waiting; no restart would make room.
                    let attempt = self.connect(broker, &mut delivery, &mut kept);
                    let end = self.beat.excused(|| self.store.waits_for_room(), attempt).await?;
                    self.metrics.uplink_connected.set(0);
                    self.metrics.uplink_in_flight.set(0);
                    self.ended(broker, end, &mut kept, &mut trouble);
                }
                Step::Pause(pause) => {
                    let url = &urls[trouble.last];
                    self.post(url, None, Link::Waiting { reason: trouble.reason(), retry_in: pause });
                    self.pause(pause, &mut kept, &mut trouble).await;
                }
            }
        }
        Ok(())
    }

    /// Takes note of how a connection, or an attempt, ended.
    fn ended(&self, broker: usize, end: End, kept: &mut Kept, trouble: &mut Trouble<'_>) {
        let url = &self.center.urls[broker];
        let reconnects = |word| self.metrics.uplink_reconnects.with_label_values(&[word]).inc();
        let (now, jitter) = (self.clock.now(), Jitter::random());
        match end {
            End::Stopped => {}
            End::ReadBack => kept.route.move_to(broker),
            End::Moved { to } => {
                tracing::info!(from = %url, to = %self.center.urls[to], "moved to an earlier broker, which answers again");
                reconnects("moved");
                kept.route.move_to(to);
            }
            End::Renewed => {
                tracing::info!(broker = %url, "certificate files changed: connecting anew with them");
                reconnects("renewed");
                kept.route.move_to(broker);
            }
            End::Down { down, up_for } => {
                reconnects(down.word());
                let (taken_over, needs_person) = (down == Down::TakenOver, down.needs_person());
                if taken_over {
                    kept.own.conflict.taken_over(now);
                }
                let conflict = kept.own.conflict.stands() == Some(true);
                trouble.note(broker, down, up_for, now);
                match up_for {
                    None => kept.route.failed(broker, needs_person, now, jitter),
                    // However long each of two gateways holds the id: pauses grow until one of them is gone.
                    Some(_) if conflict => kept.route.driven_out(Duration::ZERO, now, jitter),
                    Some(up_for) if taken_over => kept.route.driven_out(up_for, now, jitter),
                    Some(up_for) => kept.route.ended(broker, up_for, needs_person, now, jitter),
                }
            }
        }
    }

    /// Waits until no record waits under a number that may have been used before; false when it is time to stop.
    async fn numbered(&self) -> bool {
        let (mut unproven, head) = (self.store.unproven(), self.store.head(Lane::Alarm));
        let mut look = tokio::time::interval(LOOK_AROUND_EVERY);
        while !self.shutdown.is_cancelled() {
            let present = head.borrow().status.epoch.clone();
            if unproven.borrow_and_update().iter().all(|of| of.epoch == present) {
                return true;
            }
            tokio::select! {
                // The sender is the store's, of which we hold a handle.
                _ = unproven.changed() => {}
                () = self.shutdown.cancelled() => {}
                _ = look.tick() => self.beat.mark(),
            }
        }
        false
    }

    async fn connect(&self, broker: usize, delivery: &mut Delivery, kept: &mut Kept) -> Result<End, StoreError> {
        let session = self.store.next_session().await?;
        self.post(&self.center.urls[broker], Some(session), Link::Connecting);
        let standing = connection::standing(&self.store.alarms().await?);
        let lost = Some(message::OfflineReason::Lost);
        let status = connection::status(self, session, standing, message::Presence::Offline, lost);
        let message::Message { topic, payload } = message::status(&self.about, &status);
        let will = Will { topic, payload, retain: Retain::Yes, delay: WILL_DELAY };
        let unproven = self.store.unproven().borrow().first().cloned();
        let will = unproven.is_none().then_some(will);
        let certificates = Certificates::of([&self.center.urls[broker]], &self.center.tls, self.clock.now());
        let wire = Wire::connect(&Settings { will, ..self.settings(broker) });
        let connection = Connection::new(self, broker, session, wire, delivery, kept, standing, certificates, unproven);
        let end = connection.run().await;
        delivery.down();
        end
    }

    /// How to connect to a broker.
    fn settings(&self, broker: usize) -> Settings {
        Settings {
            url: self.center.urls[broker].clone(),
            version: self.center.version,
            client_id: self.about.gateway.to_string(),
            login: self.center.login.clone(),
            tls: self.center.tls.clone(),
            clock: self.clock.clone(),
            keep_alive: self.center.keep_alive,
            session_expiry: Duration::ZERO,
            will: None,
            window: WINDOW,
            receive_maximum: RECEIVE_MAXIMUM,
            packet_size_max: PACKET_SIZE_MAX,
            connect_timeout: CONNECT_TIMEOUT,
        }
    }

    /// Puts on the board how we are.
    fn post(&self, url: &BrokerUrl, session: Option<u64>, link: Link) {
        self.board.set_uplink(UplinkState { link, url: url.to_string(), since: self.clock.now(), session });
    }

    /// Tells the pipeline what is news of our own alarms. A full queue is no reason to wait: the next time tells.
    fn tell(&self, own: &mut OwnAlarms) {
        while let Some((alarm, stands)) = own.untold() {
            let reading = alarm.reading(stands, self.clock.now());
            if self.pipeline.try_send(Input::Readings(vec![reading])).is_err() {
                return;
            }
            own.told(alarm, stands);
        }
    }

    /// Waits, alive, until it is time or shutdown, or until something changed that may end the trouble.
    async fn pause(&self, pause: Duration, kept: &mut Kept, trouble: &mut Trouble<'_>) {
        let done = tokio::time::sleep(pause);
        tokio::pin!(done);
        let mut look = tokio::time::interval(LOOK_AROUND_EVERY);
        loop {
            tokio::select! {
                () = &mut done => return,
                () = self.shutdown.cancelled() => return,
                _ = look.tick() => {
                    self.beat.mark();
                    self.tell(&mut kept.own);
                    if let Some(change) = trouble.changed(self.clock.now()) {
                        tracing::info!(change, "trying the command center at once");
                        return kept.route.hurry();
                    }
                }
            }
        }
    }
}

/// Why there is no connection, broker by broker.
struct Trouble<'a> {
    urls: &'a [BrokerUrl],
    /// How the last attempt at each ended.
    downs: Vec<Option<Down>>,
    /// The broker tried last.
    last: usize,
    certificates: Certificates,
    /// Whether our clock was set when a certificate was last refused.
    clock_trusted: bool,
}

impl<'a> Trouble<'a> {
    fn new(urls: &'a [BrokerUrl], certificates: Certificates) -> Self {
        Self { urls, downs: vec![None; urls.len()], last: 0, certificates, clock_trusted: true }
    }

    /// Takes note, and says it in the log if it is news.
    fn note(&mut self, broker: usize, down: Down, up_for: Option<Duration>, now: Now) {
        let before = self.downs[broker].as_ref().map(Down::word);
        if up_for.is_some() || before != Some(down.word()) {
            tracing::warn!(broker = %self.urls[broker], reason = %down, "uplink is down");
        }
        if matches!(down, Down::Tls(_)) {
            self.clock_trusted = now.trusted;
        }
        self.last = broker;
        self.downs[broker] = Some(down);
    }

    /// What people see of it.
    fn reason(&self) -> String {
        let known = self.urls.iter().zip(&self.downs).filter_map(|(url, down)| Some((url, down.as_ref()?)));
        let reasons: Vec<String> = match self.urls {
            [_] => known.map(|(_, down)| down.to_string()).collect(),
            _ => known.map(|(url, down)| format!("{url}: {down}")).collect(),
        };
        reasons.join("; ")
    }

    /// What has changed since the last attempt that may end a trouble with TLS.
    fn changed(&mut self, now: Now) -> Option<&'static str> {
        if !self.downs.iter().flatten().any(|down| matches!(down, Down::Tls(_))) {
            return None;
        }
        if !self.clock_trusted && now.trusted {
            self.clock_trusted = true;
            return Some("the clock is set");
        }
        self.certificates.changed(now).then_some("certificate files changed")
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
