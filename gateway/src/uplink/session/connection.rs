//! One connection from CONNECT to its end: select, apply, then settle (store) and pump (wire).

mod outgoing;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::sync::{oneshot, watch};

use super::{
    UplinkTask,
    denied::{self, Denied},
};
use crate::{
    alarm::{AlarmState, State},
    clock::{Boots, Now},
    command::{Answer, Refusal},
    config::BrokerUrl,
    pipeline::Input,
    record::{Epoch, Lane},
    status::Link,
    store::{Head, StoreError, Stored},
    uplink::{
        READBACK,
        commands::{self, Arrival},
        delivery::{Delivery, Hold, Outcome},
        message::{self, CONTENT_TYPE_JSON, Message, OfflineReason, Presence, Status},
        readback::{ReadBack, SeenStatus},
    },
    wire::{self, Down, Event, Limits, Publish, Receipt, Retain, Token, Verdict, Wire},
};

/// Clock of everything slower than a message: deadlines, pauses, status.
const TICK: Duration = Duration::from_secs(1);
/// SUBACK and the marker's echo may take this long; without the echo what was read so far counts as all.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(30);
const READ_BACK_MAX: Duration = Duration::from_secs(5);
/// The status is repeated at least so often (DESIGN.md §5.1).
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// An absent command center holds deliveries no longer than this (DESIGN.md §5.1).
const HOLD_MAX: Duration = Duration::from_secs(15 * 60);
/// At shutdown: for what is in flight, for the last status, for DISCONNECT. systemd waits longer than all of them.
const DRAIN_MAX: Duration = Duration::from_secs(2);
const LAST_STATUS_MAX: Duration = Duration::from_secs(1);
const DISCONNECT_MAX: Duration = Duration::from_secs(1);
/// Commands that may wait for their answer; more are refused as busy.
const COMMANDS_MAX: usize = 16;
/// Events taken from the wire before the store is asked again: one group of confirmations.
const EVENTS_AT_ONCE: usize = 128;
/// Slots of the broker's window kept for replies, status and retained alarms.
const SIDE_SLOTS: u16 = 4;
/// Records read at once while looking for unconfirmed events.
const SCAN_PAGE: usize = 256;

/// How a connection ended.
pub(super) enum End {
    /// Shutdown was asked for and is done.
    Stopped,
    /// It broke.
    Down {
        /// Why.
        down: Down,
        /// How long it was accepted, if it was.
        up_for: Option<Duration>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Subscribing {
        since: Now,
    },
    ReadingBack {
        since: Now,
    },
    /// The pipeline begins a new epoch, because the store was rolled back.
    RollingBack,
    /// The read-back is complete: correct what is wrong in it.
    Beginning,
    Delivering,
    /// Shutdown: nothing new, what is in flight may still arrive.
    Draining {
        since: Now,
    },
    /// The last status is on its way.
    Leaving {
        since: Now,
    },
}

/// A publish that is not a record.
enum Side {
    Marker,
    /// The last words before DISCONNECT.
    Farewell,
    /// An answer; the command is acknowledged when it is on its way.
    Reply(Receipt),
    Other,
}

/// What others have finished for us.
enum Done {
    Answered { answer: Option<Answer>, topic: String, correlation: Option<Bytes>, receipt: Receipt },
    Declared { lane: Lane, position: u64, durable: bool },
    RolledBack,
}

enum Wake {
    Wire(Event),
    Records,
    Done(Done),
    Tick,
    Stop,
}

/// What is known beyond one connection.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// A link that breaks often does not make the hold longer.
    center_away_since: Option<Now>,
    denied: Denied,
}

pub(super) struct Connection<'a> {
    task: &'a UplinkTask,
    url: &'a BrokerUrl,
    session: u64,
    wire: Wire,
    delivery: &'a mut Delivery,
    limits: Option<Limits>,
    phase: Phase,
    up_since: Option<Now>,
    heads: [watch::Receiver<Head>; 2],
    boots: watch::Receiver<Boots>,
    read_back: ReadBack,
    last_token: Token,
    /// Bounded: replies by [`COMMANDS_MAX`] and the broker's unacknowledged commands, one status, one a device.
    sides: VecDeque<(Side, Publish)>,
    side_tokens: HashMap<Token, Side>,
    /// Retained alarms to publish, by topic: the latest wins. Bounded by the alarms there are.
    states: BTreeMap<String, Publish>,
    sent_at: HashMap<Token, (Lane, Now)>,
    delivered: Vec<Stored>,
    aside: Vec<Stored>,
    declared: Vec<(Lane, u64)>,
    pending: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
    commands_out: usize,
    status_due: bool,
    status_said: Option<(Now, StatusKey)>,
    kept: &'a mut Kept,
    alarms_standing: u64,
    /// Said once a connection.
    side_refused: bool,
}

/// A change of this is said at once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StatusKey {
    trusted: bool,
    epochs: [Epoch; 2],
}

pub(super) const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Alarm => 0,
        Lane::Telemetry => 1,
    }
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        task: &'a UplinkTask,
        url: &'a BrokerUrl,
        session: u64,
        wire: Wire,
        delivery: &'a mut Delivery,
        kept: &'a mut Kept,
        alarms_standing: u64,
    ) -> Self {
        Self {
            task,
            url,
            session,
            wire,
            delivery,
            limits: None,
            phase: Phase::Connecting,
            up_since: None,
            heads: Lane::ALL.map(|lane| task.store.head(lane)),
            boots: task.store.boots(),
            read_back: ReadBack::default(),
            last_token: 0,
            sides: VecDeque::new(),
            side_tokens: HashMap::new(),
            states: BTreeMap::new(),
            sent_at: HashMap::new(),
            delivered: Vec::new(),
            aside: Vec::new(),
            declared: Vec::new(),
            pending: FuturesUnordered::new(),
            commands_out: 0,
            status_due: false,
            status_said: None,
            kept,
            alarms_standing,
            side_refused: false,
        }
    }

    pub(super) async fn run(mut self) -> Result<End, StoreError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut wake = self.select(&mut tick).await;
            // What the wire already has goes with it, so that one group of confirmations is one write.
            for _ in 0..EVENTS_AT_ONCE {
                if let Some(end) = self.apply(wake) {
                    self.settle().await?;
                    return Ok(end);
                }
                match self.wire.next().now_or_never() {
                    Some(event) => wake = Wake::Wire(event),
                    None => {
                        wake = Wake::Records;
                        break;
                    }
                }
            }
            if let Some(end) = self.apply(wake) {
                self.settle().await?;
                return Ok(end);
            }
            self.task.beat.mark();
            self.settle().await?;
            self.pump().await?;
            if let Phase::Leaving { since } = self.phase {
                let told =
                    !self.side_tokens.values().any(|side| matches!(side, Side::Farewell)) && self.sides.is_empty();
                if told || self.task.clock.now().since(since) >= LAST_STATUS_MAX {
                    self.wire.disconnect(DISCONNECT_MAX).await;
                    return Ok(End::Stopped);
                }
            }
        }
    }

    async fn select(&mut self, tick: &mut tokio::time::Interval) -> Wake {
        let stopping = matches!(self.phase, Phase::Draining { .. } | Phase::Leaving { .. });
        let [alarms, telemetry] = &mut self.heads;
        tokio::select! {
            event = self.wire.next() => Wake::Wire(event),
            Ok(()) = alarms.changed() => Wake::Records,
            Ok(()) = telemetry.changed() => Wake::Records,
            Some(done) = self.pending.next() => Wake::Done(done),
            () = self.task.shutdown.cancelled(), if !stopping => Wake::Stop,
            _ = tick.tick() => Wake::Tick,
        }
    }

    fn apply(&mut self, wake: Wake) -> Option<End> {
        match wake {
            Wake::Wire(Event::Up(limits)) => self.up(limits),
            Wake::Wire(Event::Subscribed(granted)) => self.subscribed(&granted),
            Wake::Wire(Event::Message(message)) => self.message(message),
            Wake::Wire(Event::Confirmed { token, verdict }) => self.confirmed(token, verdict),
            Wake::Wire(Event::Down(down)) => return Some(self.down(down)),
            Wake::Records => {}
            Wake::Done(done) => self.done(done),
            Wake::Tick => return self.tick(),
            Wake::Stop if self.up_since.is_none() => return Some(End::Stopped),
            Wake::Stop => self.phase = Phase::Draining { since: self.task.clock.now() },
        }
        None
    }

    fn down(&self, down: Down) -> End {
        let now = self.task.clock.now();
        End::Down { down, up_for: self.up_since.map(|since| now.since(since)) }
    }

    fn up(&mut self, limits: Limits) {
        let now = self.task.clock.now();
        let about = &self.task.about;
        let mut filters: Vec<String> =
            ["status", "alarm/#", "command", "receipt"].map(|topic| about.topic(topic)).into();
        filters.push(self.marker_topic());
        if self.task.center.hold_when_center_offline {
            filters.push(about.center_status_topic());
        }
        self.limits = Some(limits);
        self.up_since = Some(now);
        self.phase = Phase::Subscribing { since: now };
        if !self.wire.subscribe(&filters) {
            tracing::warn!("the subscription did not fit a new connection's queue");
        }
        self.task.metrics.uplink_connected.set(1);
        self.task.post(self.url, Some(self.session), Link::Connected);
        tracing::info!(broker = %self.url, session = self.session, receive_maximum = limits.receive_maximum, "uplink is up");
    }

    fn subscribed(&mut self, granted: &[bool]) {
        if !matches!(self.phase, Phase::Subscribing { .. }) {
            return;
        }
        if granted.contains(&false) {
            tracing::warn!(
                ?granted,
                "the broker refuses some subscriptions: status, alarm/#, command, receipt, reply/readback"
            );
        }
        self.phase = Phase::ReadingBack { since: self.task.clock.now() };
        let marker = Message { topic: self.marker_topic(), payload: self.marker() };
        self.sides.push_back((Side::Marker, publish(marker, Retain::No, CONTENT_TYPE_JSON)));
    }

    fn marker_topic(&self) -> String {
        self.task.about.topic(&format!("reply/{READBACK}"))
    }

    /// A valid reply, so that whoever listens to all replies understands it.
    fn marker(&self) -> Bytes {
        format!(r#"{{"id":"{READBACK}-{}","command":"{READBACK}","result":"ok"}}"#, self.session).into()
    }

    fn message(&mut self, message: wire::Message) {
        let about = &self.task.about;
        if self.task.center.hold_when_center_offline && message.topic == about.center_status_topic() {
            self.center_said(&message.payload);
        }
        let base = about.topic("");
        let reading = matches!(self.phase, Phase::Subscribing { .. } | Phase::ReadingBack { .. });
        match message.topic.strip_prefix(&base) {
            Some("command") => return self.command(message),
            Some("receipt") => {
                for id in commands::receipt(&message.payload) {
                    if let Some(outcome) = self.delivery.receipt(&id) {
                        self.outcome(outcome);
                    }
                }
            }
            Some("status") if reading && message.retained => self.read_back.saw_status(&message.payload),
            Some("status") => {
                // The will of an older session, published late: we are here.
                self.status_due |= SeenStatus::parse(&message.payload).is_some_and(|status| status.is_offline());
            }
            Some(topic) if reading => {
                if let Some(alarm) = topic.strip_prefix("alarm/") {
                    self.read_back.saw_alarm(alarm, &message.payload);
                } else if message.topic == self.marker_topic() && message.payload == self.marker() {
                    self.read_back_complete();
                }
            }
            Some(_) | None => {}
        }
        self.wire.acknowledge(message.receipt);
    }

    fn center_said(&mut self, payload: &[u8]) {
        #[derive(serde::Deserialize)]
        struct Center {
            state: String,
        }
        let away = serde_json::from_slice::<Center>(payload).is_ok_and(|center| center.state == "offline");
        if away != self.kept.center_away_since.is_some() {
            tracing::info!(away, "the command center says whether it is there");
            self.kept.center_away_since = away.then(|| self.task.clock.now());
            self.delivery.set_hold(if away { Hold::AllButCritical } else { Hold::None });
        }
    }

    fn command(&mut self, message: wire::Message) {
        if message.payload.is_empty() {
            return self.wire.acknowledge(message.receipt); // someone cleared a retained command
        }
        let now = self.task.clock.now();
        let (topic, correlation) =
            commands::reply_to(&self.task.about, message.response_topic.as_deref(), message.correlation);
        let arrival = Arrival { retained: message.retained, now, session: self.session };
        let request = commands::parse(&message.payload, arrival).and_then(|request| {
            let busy = self.commands_out >= COMMANDS_MAX;
            if busy { Err(commands::refused(&request.id, request.action.word(), Refusal::Busy)) } else { Ok(request) }
        });
        let receipt = message.receipt;
        let request = match request {
            Ok(request) => request,
            Err(answer) => {
                self.task.metrics.commands.with_label_values(&["unread", "refused"]).inc();
                return self.reply(&answer, topic, correlation, receipt);
            }
        };
        self.commands_out += 1;
        let (pipeline, session) = (self.task.pipeline.clone(), self.session);
        self.pending.push(Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            // A pipeline that is gone drops the sender: no answer, and the center asks again.
            let _ = pipeline.send(Input::Command { request, session, answer }).await;
            Done::Answered { answer: answered.await.ok(), topic, correlation, receipt }
        }));
    }

    fn reply(&mut self, answer: &Answer, topic: String, correlation: Option<Bytes>, receipt: Receipt) {
        let message = message::reply(topic, answer);
        let reply = Publish { correlation, ..publish(message, Retain::No, CONTENT_TYPE_JSON) };
        self.sides.push_front((Side::Reply(receipt), reply));
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Answered { answer, topic, correlation, receipt } => {
                self.commands_out -= 1;
                if let Some(answer) = answer {
                    self.reply(&answer, topic, correlation, receipt);
                }
            }
            Done::Declared { lane, position, durable: true } => self.declared.push((lane, position)),
            Done::Declared { lane, position, durable: false } => self.delivery.forget(lane, position),
            Done::RolledBack if self.phase == Phase::RollingBack => self.phase = Phase::Beginning,
            Done::RolledBack => {}
        }
    }

    fn confirmed(&mut self, token: Token, verdict: Verdict) {
        let now = self.task.clock.now();
        if let Some(side) = self.side_tokens.remove(&token) {
            let refused = !matches!(verdict, Verdict::Accepted | Verdict::NoSubscriber);
            if refused && !self.side_refused {
                self.side_refused = true;
                tracing::warn!(?verdict, "the broker refuses a status, a reply or a retained alarm; check its ACL");
            }
            if matches!(side, Side::Marker) && refused {
                self.read_back_complete();
            }
            return;
        }
        let metrics = &self.task.metrics;
        if let Some((lane, since)) = self.sent_at.remove(&token) {
            metrics.uplink_puback_seconds.observe(now.since(since).as_secs_f64());
            self.kept.denied.note(lane, verdict);
            if let Some(word) = refusal_word(verdict) {
                metrics.uplink_refused.with_label_values(&[lane.as_str(), word]).inc();
            }
        }
        if let Some(outcome) = self.delivery.verdict(token, verdict, now) {
            if let Outcome::Paused(lane) = outcome {
                tracing::warn!(
                    lane = lane.as_str(),
                    ?verdict,
                    "the broker does not take this lane; trying again slowly"
                );
            }
            self.outcome(outcome);
        }
        metrics.uplink_in_flight.set(i64::try_from(self.delivery.in_flight()).unwrap_or(i64::MAX));
        self.tell_denied(now);
    }

    /// Tells the pipeline whether we are denied a lane. A full queue is no reason to wait: the next tick tells.
    fn tell_denied(&mut self, now: Now) {
        if let Some(denied) = self.kept.denied.untold()
            && self.task.pipeline.try_send(Input::Readings(vec![denied::reading(denied, now)])).is_ok()
        {
            self.kept.denied.told(denied);
        }
    }

    fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Delivered(stored) => self.delivered.push(*stored),
            Outcome::SetAside(stored) => {
                tracing::error!(
                    id = stored.record.id(),
                    "the broker refuses this record for good; it is declared lost"
                );
                self.aside.push(*stored);
            }
            Outcome::Paused(_) | Outcome::Kept => {}
        }
    }

    fn read_back_complete(&mut self) {
        if !matches!(self.phase, Phase::ReadingBack { .. }) {
            return;
        }
        let [a, t] = self.heads.each_ref().map(|head| head.borrow().status.clone());
        let Some(known) = self.read_back.rolled_back(&a, &t) else {
            self.phase = Phase::Beginning;
            return;
        };
        tracing::error!(known.a, known.t, "the center knows higher numbers than the store: beginning a new epoch");
        self.phase = Phase::RollingBack;
        let pipeline = self.task.pipeline.clone();
        self.pending.push(Box::pin(async move {
            let (durable, done) = oneshot::channel();
            let epoch = Epoch::random().expect("a kernel that runs us gives random numbers");
            let _ = pipeline.send(Input::RolledBack { known, epoch, durable }).await;
            match done.await {
                Ok(()) => Done::RolledBack,
                // Without a pipeline the daemon is about to end, and nothing may be sent under the old numbers.
                Err(_) => std::future::pending().await,
            }
        }));
    }

    fn tick(&mut self) -> Option<End> {
        let now = self.task.clock.now();
        self.tell_denied(now);
        match self.phase {
            Phase::Subscribing { since } if now.since(since) > SUBSCRIBE_MAX => return Some(self.down(Down::Silent)),
            Phase::ReadingBack { since } if now.since(since) > READ_BACK_MAX => self.read_back_complete(),
            Phase::Draining { since } if now.since(since) >= DRAIN_MAX => self.leave(),
            _ => {}
        }
        if self.kept.center_away_since.is_some_and(|since| now.since(since) > HOLD_MAX) {
            self.delivery.set_hold(Hold::None);
        }
        self.status_due |= self
            .status_said
            .as_ref()
            .is_some_and(|(at, key)| now.since(*at) >= STATUS_EVERY || *key != self.status_key(now));
        if self.delivery.overdue(now) {
            tracing::warn!("a publish had no answer for 30 s: giving this connection up");
            return Some(self.down(Down::Silent));
        }
        None
    }

    fn leave(&mut self) {
        self.phase = Phase::Leaving { since: self.task.clock.now() };
        self.states.clear();
        let status =
            status(self.task, self.session, self.alarms_standing, Presence::Offline, Some(OfflineReason::Stopped));
        let message = message::status(&self.task.about, &status);
        self.sides.push_back((Side::Farewell, publish(message, Retain::Yes, CONTENT_TYPE_JSON)));
    }

    fn status_key(&self, now: Now) -> StatusKey {
        let epochs = self.heads.each_ref().map(|head| head.borrow().status.epoch.clone());
        StatusKey { trusted: now.trusted, epochs }
    }
}

fn publish(message: Message, retain: Retain, content_type: &'static str) -> Publish {
    let Message { topic, payload } = message;
    Publish { topic, payload, retain, content_type: Some(content_type), correlation: None }
}

const fn refusal_word(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Accepted => None,
        Verdict::NoSubscriber => Some("no-subscriber"),
        Verdict::NotAuthorised => Some("not-authorised"),
        Verdict::Later(_) => Some("later"),
        Verdict::Invalid(_) => Some("invalid"),
    }
}

fn stands(state: &AlarmState) -> bool {
    state.configured && state.last.state != State::Norm
}

pub(super) fn standing(alarms: &[AlarmState]) -> u64 {
    alarms.iter().filter(|state| stands(state)).count() as u64
}

/// The status as it is now.
pub(super) fn status(
    task: &UplinkTask,
    session: u64,
    alarms_standing: u64,
    state: Presence,
    reason: Option<OfflineReason>,
) -> Status {
    let (now, boot) = (task.clock.now(), task.clock.boot());
    let [a, t] = Lane::ALL.map(|lane| task.store.head(lane));
    let (a, t) = (a.borrow(), t.borrow());
    Status {
        state,
        reason,
        boot: boot.clone(),
        session,
        version: env!("CARGO_PKG_VERSION"),
        config: task.fingerprint.clone(),
        site: task.about.site.clone(),
        started: message::time_of(&task.store.boots().borrow(), boot, task.started),
        clock: message::clock_now(boot, now),
        language: task.about.language.code(),
        lanes: message::Lanes { a: a.status.clone(), t: t.status.clone() },
        vitals: message::Vitals {
            uptime_s: now.since(task.started).as_secs(),
            backlog: message::Backlog { a: a.records, t: t.records },
            alarms_standing,
        },
    }
}
