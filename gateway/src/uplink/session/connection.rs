//! One connection from CONNECT to its end: select, apply, then settle (store) and pump (wire).

mod beginning;
mod incoming;
mod leaving;
mod outgoing;
mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::Future,
    pin::Pin,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::sync::watch;

use self::status::StatusKey;
pub(super) use self::status::{standing, status};
use super::{UplinkTask, certificates::Certificates, own_alarms::OwnAlarms, route::Route};
use crate::{
    alarm::{AlarmId, AlarmState, Told},
    clock::{Boots, Now},
    command::Answer,
    config::BrokerUrl,
    metrics::{Histogram, IntCounter},
    record::{Epoch, Lane},
    store::{Head, StoreError, Stored, Unproven},
    uplink::{
        delivery::{Delivery, Hold, Queue, Want, is_overdue},
        message::{Message, OfflineReason},
        readback::ReadBack,
    },
    wire::{Down, Event, Limits, Publish, Receipt, Retain, Token, Wire},
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
/// On leaving: for what is in flight, for the last status, for DISCONNECT. systemd waits longer than all of them.
const DRAIN_MAX: Duration = Duration::from_secs(2);
const LAST_STATUS_MAX: Duration = Duration::from_secs(1);
const DISCONNECT_MAX: Duration = Duration::from_secs(1);
/// Commands that may wait for their answer; more are refused as busy.
const COMMANDS_MAX: usize = 16;
/// Events taken from the wire before the store is asked again: one group of confirmations.
const EVENTS_AT_ONCE: usize = 128;
/// While more is in flight the store is told of so many arrivals at once, or each second: every time costs two changes of
/// thread, and what it is not told yet is only sent again after a crash.
const CONFIRMS_AT_ONCE: usize = 64;
/// Slots of the broker's window kept for replies, status and retained alarms.
const SIDE_SLOTS: u16 = 4;
/// A refused status, description or retained alarm is tried again so often.
const REFUSED_AGAIN_MS: u64 = 60_000;
/// Records read at once while looking for unconfirmed events.
const SCAN_PAGE: usize = 256;

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// Shutdown was asked for and is done.
    Stopped,
    /// Left in good order, because an earlier broker is back.
    Moved {
        /// Which.
        to: usize,
    },
    /// Left in good order, because certificate files changed.
    Renewed,
    /// It only read back, and what the command center knows is dealt with: the next one delivers.
    ReadBack,
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
    /// The pipeline begins a new epoch, because the store was rolled back, or notes that it was not.
    Numbering,
    /// All is done that a connection is for that only reads back.
    HasReadBack,
    /// The read-back is complete: correct what is wrong in it.
    Beginning,
    Delivering,
    /// We leave: nothing new, what is in flight may still arrive.
    Draining {
        since: Now,
    },
    /// The last status is on its way.
    Leaving {
        since: Now,
    },
}

/// Why we leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// Shutdown.
    Stop,
    /// To an earlier broker.
    Move { to: usize },
    /// To connect with renewed certificates.
    Renew,
}

impl Parting {
    const fn reason(self) -> OfflineReason {
        match self {
            Self::Stop => OfflineReason::Stopped,
            Self::Move { .. } | Self::Renew => OfflineReason::Moved,
        }
    }

    const fn end(self) -> End {
        match self {
            Self::Stop => End::Stopped,
            Self::Move { to } => End::Moved { to },
            Self::Renew => End::Renewed,
        }
    }
}

/// A publish that is not a record.
enum Side {
    Marker,
    /// The last words before DISCONNECT.
    Farewell,
    /// An answer; the command is acknowledged when it is on its way.
    Reply(Receipt),
    /// Retained: a status, a description, an alarm.
    Retained,
}

/// One that waits for its verdict.
struct SideSent {
    since: Now,
    what: SideWaits,
}

enum SideWaits {
    Marker,
    Farewell,
    Reply,
    /// Kept, to be tried again if it is refused.
    Retained(Publish),
}

/// What others have finished for us.
enum Done {
    Answered {
        answer: Option<Answer>,
        topic: String,
        correlation: Option<Bytes>,
        receipt: Receipt,
    },
    Declared {
        lane: Lane,
        position: u64,
        durable: bool,
    },
    Numbered,
    /// What [`Delivery::wants`] asked for.
    Read {
        want: Want,
        records: Vec<Stored>,
        next_position: u64,
    },
    /// The present states of alarms whose events have arrived.
    Followed {
        newest: BTreeMap<AlarmId, Stored>,
        present: Vec<AlarmState>,
    },
    /// The alarms whose last events are settled, after some were given up.
    LookedAtGivenUp(Vec<AlarmState>),
    /// The first earlier broker that answers, if any does.
    LookedBack(Option<usize>),
    /// Whether a connection with the changed certificate files would do.
    LookedAtCertificates(Result<(), Down>),
}

enum Wake {
    Wire(Event),
    Records,
    Done(Done),
    Tick,
    Stop,
}

/// What is known beyond one connection.
#[derive(Debug)]
pub(super) struct Kept {
    /// A link that breaks often does not make the hold longer.
    pub(super) center_away_since: Option<Now>,
    pub(super) own: OwnAlarms,
    pub(super) route: Route,
}

pub(super) struct Connection<'a> {
    task: &'a UplinkTask,
    /// Which of the configuration's.
    broker: usize,
    url: &'a BrokerUrl,
    session: u64,
    wire: Wire,
    delivery: &'a mut Delivery,
    limits: Option<Limits>,
    /// Stands on a connection that only reads back: the numbering in doubt.
    unproven: Option<Unproven>,
    phase: Phase,
    up_since: Option<Now>,
    heads: [watch::Receiver<Head>; 2],
    boots: watch::Receiver<Boots>,
    read_back: ReadBack,
    last_token: Token,
    /// Bounded: replies by [`COMMANDS_MAX`] and the broker's unacknowledged commands, one status, one a device.
    sides: VecDeque<(Side, Publish)>,
    side_tokens: HashMap<Token, SideSent>,
    /// When the last verdict came.
    heard: Option<Now>,
    /// Retained publishes the broker refused, by topic: tried again slowly. Bounded like those.
    refused: BTreeMap<String, Publish>,
    refused_again_at_ms: Option<u64>,
    /// Retained alarms to publish, by topic: the latest wins. Bounded by the alarms there are.
    states: BTreeMap<String, Publish>,
    /// The last event of each alarm that has arrived, and whose retained topic is still to follow. Bounded by the alarms
    /// there are.
    to_follow: BTreeMap<AlarmId, Stored>,
    /// The last event of each alarm that the store is known to have told of. Bounded in the same way.
    told: HashMap<AlarmId, Told>,
    /// The event that each alarm's retained topic shows. Bounded in the same way.
    shown: HashMap<AlarmId, (Epoch, u64)>,
    /// What was given up of lane a when retained topics were last compared with the store.
    given_up: u64,
    /// Whether the store is being asked for the present states of some.
    following: bool,
    /// Queues for which the store is being read.
    reading: Vec<Queue>,
    sent_at: HashMap<Token, (Lane, Now)>,
    delivered: Vec<Stored>,
    /// Whether the store is told of what has arrived although more may follow at once.
    settle_now: bool,
    aside: Vec<Stored>,
    declared: Vec<(Lane, u64)>,
    /// The metrics of each lane, found once: a label is looked up by its hash.
    publishes: [IntCounter; 2],
    end_to_end_seconds: [Histogram; 2],
    pending: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
    commands_out: usize,
    status_due: bool,
    status_said: Option<(Now, StatusKey)>,
    kept: &'a mut Kept,
    alarms_standing: u64,
    /// Said once a connection.
    side_refused: bool,
    parting: Option<Parting>,
    certificates: Certificates,
    /// When to look next whether an earlier broker is back; none while one is asked, or where there is none.
    look_back_at_ms: Option<u64>,
}

pub(super) const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Alarm => 0,
        Lane::Telemetry => 1,
    }
}

impl<'a> Connection<'a> {
    #[expect(clippy::too_many_arguments, reason = "each is one thing that outlives the connection, or is made for it")]
    pub(super) fn new(
        task: &'a UplinkTask,
        broker: usize,
        session: u64,
        wire: Wire,
        delivery: &'a mut Delivery,
        kept: &'a mut Kept,
        alarms_standing: u64,
        certificates: Certificates,
        unproven: Option<Unproven>,
    ) -> Self {
        Self {
            task,
            broker,
            url: &task.center.urls[broker],
            session,
            wire,
            delivery,
            limits: None,
            unproven,
            phase: Phase::Connecting,
            up_since: None,
            heads: Lane::ALL.map(|lane| task.store.head(lane)),
            boots: task.store.boots(),
            read_back: ReadBack::default(),
            last_token: 0,
            sides: VecDeque::new(),
            side_tokens: HashMap::new(),
            heard: None,
            refused: BTreeMap::new(),
            refused_again_at_ms: None,
            states: BTreeMap::new(),
            to_follow: BTreeMap::new(),
            told: HashMap::new(),
            shown: HashMap::new(),
            given_up: 0,
            following: false,
            reading: Vec::new(),
            sent_at: HashMap::new(),
            delivered: Vec::new(),
            settle_now: false,
            aside: Vec::new(),
            declared: Vec::new(),
            publishes: Lane::ALL.map(|lane| task.metrics.uplink_publishes.with_label_values(&[lane.as_str()])),
            end_to_end_seconds: Lane::ALL
                .map(|lane| task.metrics.end_to_end_seconds.with_label_values(&[lane.as_str()])),
            pending: FuturesUnordered::new(),
            commands_out: 0,
            status_due: false,
            status_said: None,
            kept,
            alarms_standing,
            side_refused: false,
            parting: None,
            certificates,
            look_back_at_ms: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<End, StoreError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut wake = self.select(&mut tick).await;
            let now = self.task.clock.now();
            // What the wire already has goes with it, so that one group of confirmations is one write.
            for _ in 0..EVENTS_AT_ONCE {
                if let Some(end) = self.apply(wake, now) {
                    self.settle_now = true;
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
            if let Some(end) = self.apply(wake, now) {
                self.settle_now = true;
                self.settle().await?;
                return Ok(end);
            }
            self.settle().await?;
            self.pump().await?;
            if self.phase == Phase::HasReadBack {
                self.wire.disconnect(DISCONNECT_MAX).await;
                return Ok(self.parting.map_or(End::ReadBack, Parting::end));
            }
            if let (Phase::Leaving { since }, Some(parting)) = (self.phase, self.parting)
                && (self.farewell_said() || self.task.clock.now().since(since) >= LAST_STATUS_MAX)
            {
                self.wire.disconnect(DISCONNECT_MAX).await;
                return Ok(parting.end());
            }
        }
    }

    async fn select(&mut self, tick: &mut tokio::time::Interval) -> Wake {
        let stopping = self.parting == Some(Parting::Stop);
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

    fn apply(&mut self, wake: Wake, now: Now) -> Option<End> {
        match wake {
            Wake::Wire(Event::Up(limits)) => self.up(limits),
            Wake::Wire(Event::Subscribed(granted)) => self.subscribed(&granted),
            Wake::Wire(Event::Message(message)) => self.message(message),
            Wake::Wire(Event::Confirmed { token, verdict }) => self.confirmed(token, verdict, now),
            Wake::Wire(Event::Down(down)) => return Some(self.down(down)),
            Wake::Records => {}
            Wake::Done(done) => self.done(done),
            Wake::Tick => {
                self.task.beat.mark();
                self.settle_now = true;
                return self.tick();
            }
            Wake::Stop if self.up_since.is_none() => return Some(End::Stopped),
            // Without last words: what the status says is still needed.
            Wake::Stop if self.unproven.is_some() => {
                self.parting = Some(Parting::Stop);
                self.phase = Phase::HasReadBack;
            }
            Wake::Stop => self.part(Parting::Stop),
        }
        None
    }

    fn down(&self, down: Down) -> End {
        let now = self.task.clock.now();
        End::Down { down, up_for: self.up_since.map(|since| now.since(since)) }
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
            Done::Numbered if self.phase == Phase::Numbering => {
                self.phase = if self.unproven.is_some() { Phase::HasReadBack } else { Phase::Beginning };
            }
            Done::Numbered => {}
            Done::Read { want, records, next_position } => {
                self.reading.retain(|queue| *queue != want.queue);
                self.delivery.offer(want, records, next_position);
            }
            Done::Followed { newest, present } => self.followed(newest, present),
            Done::LookedAtGivenUp(settled) => self.looked_at_given_up(&settled),
            Done::LookedBack(found) => self.looked_back(found),
            Done::LookedAtCertificates(outcome) => self.looked_at_certificates(outcome),
        }
    }

    fn tick(&mut self) -> Option<End> {
        let now = self.task.clock.now();
        if let Some(up_since) = self.up_since {
            self.kept.own.conflict.connected(up_since, now);
        }
        self.task.tell(&mut self.kept.own);
        match self.phase {
            Phase::Subscribing { since } if now.since(since) > SUBSCRIBE_MAX => return Some(self.down(Down::Silent)),
            Phase::ReadingBack { since } if now.since(since) > READ_BACK_MAX => self.read_back_complete(),
            Phase::Draining { since } if now.since(since) >= DRAIN_MAX => self.leave(),
            Phase::Delivering => self.look_around(now),
            _ => {}
        }
        if self.kept.center_away_since.is_some_and(|since| now.since(since) > HOLD_MAX) {
            self.delivery.set_hold(Hold::None);
        }
        self.status_due |= self
            .status_said
            .as_ref()
            .is_some_and(|(at, key)| now.since(*at) >= STATUS_EVERY || *key != self.status_key(now));
        // Leaving has tighter bounds of its own.
        self.delivery.resend_unreceipted(now);
        if self.parting.is_none() && self.is_overdue(now) {
            tracing::warn!("publishes are no longer answered: giving this connection up");
            return Some(self.down(Down::Silent));
        }
        None
    }

    /// Whether a publish, a record or not, has had no answer for too long: then the path is dead, even if pings pass.
    fn is_overdue(&self, now: Now) -> bool {
        let sides = self.side_tokens.values().map(|sent| sent.since);
        let oldest = sides.chain(self.delivery.oldest_unanswered()).min_by_key(|since| since.mono_ms);
        oldest.is_some_and(|oldest| is_overdue(oldest, self.heard, now))
    }
}

fn publish(message: Message, retain: Retain, content_type: &'static str) -> Publish {
    let Message { topic, payload } = message;
    Publish { topic, payload, retain, content_type: Some(content_type), correlation: None }
}
