//! What is published next: pure. It holds the records that are read from the store and not yet confirmed, and decides.
//!
//! Terms: a **queue** is one way through a lane: all of lane `a`; of lane `t` what was recorded since the connection
//! came up (live) and what waited before (backlog). A record is **waiting** until it is handed out with a token, then
//! **in flight** until that token's verdict; where a receipt counts, it stays in flight until the receipt.
//!
//! Rules: alarms first, and a quarter of the window is theirs alone; of telemetry live before backlog, every fourth
//! record from the backlog; never more telemetry in flight than the link carries in a second, so that an alarm never
//! waits longer than that behind it, and of alarms more than a few only as far as the link carries them in time. A lane
//! the broker refuses pauses and is probed with its oldest record.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use crate::{
    alarm::Severity,
    clock::Now,
    config::DeliveredWhen,
    record::{Body, Lane},
    store::Stored,
    wire::{Token, Verdict},
};

/// Longest wait for a verdict while there is a publish without one; then the path is dead, whatever TCP says: NAT gateways
/// drop silently. A link that is only slow goes on answering, each verdict later than the one before.
const VERDICT_DEADLINE: Duration = Duration::from_secs(30);
/// Longest wait for the verdict on one publish while others have theirs: the broker has forgotten it, for verdicts come in
/// the order of publishes (MQTT 5.0 §4.6).
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// Longest wait for a receipt after the PUBACK; then the record is sent again.
pub const RECEIPT_DEADLINE: Duration = Duration::from_secs(60);
/// Alarm-lane records in flight whatever the link: at GPRS speed the last of them is confirmed after 16 s.
const ALARMS_ANYWAY: usize = 64;
/// Beyond those only what the link carries in so many seconds, well below [`VERDICT_DEADLINE`]: a link that dies then repeats little.
const ALARMS_S: u64 = 10;
/// So often a record is sent before the broker's "invalid" is believed.
const INVALID_TRIES: u32 = 3;
/// Records set aside that wait for their loss to be declared; beyond it their lane pauses.
const ASIDE_MAX: usize = 64;
/// Assumed until measured: what a GPRS modem does, in bytes a second.
const GOODPUT_AT_START: u64 = 4 * 1024;
/// One telemetry record in so many comes from the backlog while there is live telemetry.
const BACKLOG_EVERY: u32 = 4;
/// Unconfirmed records remembered through lost connections; beyond it all are forgotten, which costs only the exactness of
/// `delivery.historical` and of the tries above.
const PAST_MAX: usize = 1024;
/// Bounds of a pause after a refusal: a center that restarts is met soon, a missing permission is not hammered.
const PAUSE_MS: (u64, u64) = (1_000, 60_000);

/// One way through a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Lane `a`.
    Alarms,
    /// Lane `t` since the connection came up.
    Live,
    /// Lane `t` from before.
    Backlog,
}

impl Queue {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Alarms, Self::Live, Self::Backlog];

    /// Its lane.
    #[must_use]
    pub const fn lane(self) -> Lane {
        match self {
            Self::Alarms => Lane::Alarm,
            Self::Live | Self::Backlog => Lane::Telemetry,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Alarms => 0,
            Self::Live => 1,
            Self::Backlog => 2,
        }
    }
}

/// Records to read from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// For which queue.
    pub queue: Queue,
    /// From this position on.
    pub from: u64,
    /// At most so many.
    pub records_max: usize,
}

/// Whether the command center says that it is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Everything is delivered.
    None,
    /// Only critical alarms are.
    AllButCritical,
}

/// A record to publish now.
#[derive(Debug)]
pub struct Handed<'a> {
    /// The record.
    pub stored: &'a Stored,
    /// When it was first handed out since the daemon started.
    pub first_sent: Now,
}

/// What a verdict or a receipt means for a record.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// It has arrived: confirm it to the store.
    Delivered(Box<Stored>),
    /// The broker will never take it: declare it lost, then confirm it to the store and call [`Delivery::forget`].
    SetAside(Box<Stored>),
    /// It stays; its lane pauses from now on.
    Paused(Lane),
    /// It stays.
    Kept,
}

/// A record handed out.
#[derive(Debug)]
struct Out {
    stored: Box<Stored>,
    since: Now,
    flight: Flight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    /// Published; so many bytes, its own included, were in flight then.
    Sent { bytes: usize },
    /// PUBACK came; the receipt is still out.
    Unreceipted,
}

/// What is remembered of a record while it is not confirmed, through lost connections. Bounded by the window.
#[derive(Debug, Clone, Copy)]
struct Past {
    first_sent: Now,
    invalid: u32,
}

#[derive(Debug, Default)]
struct Line {
    /// Read and not handed out, by position. Boxed: the first of a tree's node leaves by moving the others up.
    waiting: BTreeMap<u64, Box<Stored>>,
    /// Handed out and not confirmed, by position.
    out: BTreeMap<u64, Out>,
    /// Bytes of what is published and has no verdict.
    bytes: usize,
    /// Next position to read from the store.
    cursor: u64,
}

impl Line {
    fn first_waiting(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(position, _)| *position)
    }

    /// Takes one out of flight.
    fn land(&mut self, position: u64) -> Option<Box<Stored>> {
        let Out { stored, flight, .. } = self.out.remove(&position)?;
        if let Flight::Sent { .. } = flight {
            self.bytes -= stored.size;
        }
        Some(stored)
    }

    fn put_back(&mut self, position: u64) {
        if let Some(stored) = self.land(position) {
            self.waiting.insert(position, stored);
        }
    }
}

/// Why a lane is not served.
#[derive(Debug, Clone, Copy)]
struct Pause {
    until_ms: u64,
    length_ms: u64,
    /// The one record that is out to see whether the refusal has ended.
    probe: Option<Token>,
}

/// The window over both lanes.
#[derive(Debug)]
pub struct Delivery {
    confirmation: DeliveredWhen,
    window: usize,
    hold: Hold,
    lines: [Line; 3],
    /// Where live telemetry begins.
    live_from: u64,
    tokens: HashMap<Token, (Queue, u64)>,
    pauses: HashMap<Lane, Pause>,
    past: HashMap<(Lane, u64), Past>,
    aside: HashSet<(Lane, u64)>,
    since_backlog: u32,
    /// Bytes a second.
    goodput: u64,
}

impl Delivery {
    /// Nothing held, not connected.
    #[must_use]
    pub fn new(confirmation: DeliveredWhen) -> Self {
        Self {
            confirmation,
            window: 0,
            hold: Hold::None,
            lines: Default::default(),
            live_from: 0,
            tokens: HashMap::new(),
            pauses: HashMap::new(),
            past: HashMap::new(),
            aside: HashSet::new(),
            since_backlog: 0,
            goodput: GOODPUT_AT_START,
        }
    }

    /// A connection is up: at most `window` records in flight; telemetry from `live_from` on is live.
    pub fn up(&mut self, window: usize, live_from: u64) {
        self.down();
        self.window = window.max(1);
        self.live_from = live_from;
        self.pauses.clear(); // another connection may be another broker
        self.rewind();
    }

    /// The connection ended: what was in flight waits again.
    pub fn down(&mut self) {
        self.window = 0;
        self.tokens.clear();
        for line in &mut self.lines {
            *line = Line { cursor: line.cursor, ..Line::default() };
        }
        if self.past.len() > PAST_MAX {
            self.past.clear();
        }
    }

    /// Reads every queue from its start again; what is in flight stays so.
    fn rewind(&mut self) {
        for queue in Queue::ALL {
            let line = &mut self.lines[queue.index()];
            line.waiting.clear();
            line.cursor = if queue == Queue::Live { self.live_from } else { 0 };
        }
    }

    /// The command center went away or came back.
    pub fn set_hold(&mut self, hold: Hold) {
        if self.hold != hold {
            self.hold = hold;
            self.rewind();
        }
    }

    /// What to read from the store for a queue, if it runs low. `next_position` is where its lane ends.
    #[must_use]
    pub fn wants(&self, queue: Queue, next_position: u64) -> Option<Want> {
        let line = &self.lines[queue.index()];
        let end = if queue == Queue::Backlog { self.live_from.min(next_position) } else { next_position };
        // A window of them goes out while the store, which may be in the middle of a sync, reads the next.
        let low = self.window > 0 && line.waiting.len() <= self.window;
        (low && line.cursor < end).then_some(Want { queue, from: line.cursor, records_max: self.window })
    }

    /// The store's answer to `want`: all it has from there, or as many as were wanted. One to a question from before the
    /// queue began again is dropped.
    pub fn offer(&mut self, want: Want, records: Vec<Stored>, next_position: u64) {
        if want.from != self.lines[want.queue.index()].cursor {
            return;
        }
        let end = if want.queue == Queue::Backlog { self.live_from } else { u64::MAX };
        let complete = records.len() < want.records_max;
        let line = &mut self.lines[want.queue.index()];
        line.cursor = match records.last() {
            Some(last) if !complete => last.position + 1,
            // What the store skipped is confirmed: nothing is left below the end that was known when it was asked.
            Some(last) => next_position.max(last.position + 1),
            None => next_position.max(want.from),
        };
        for stored in records.into_iter().filter(|stored| stored.position < end) {
            let key = (want.queue.lane(), stored.position);
            let held_back = self.hold == Hold::AllButCritical && !is_critical(&stored);
            if !held_back && !self.aside.contains(&key) && !line.out.contains_key(&stored.position) {
                line.waiting.insert(stored.position, Box::new(stored));
            }
        }
    }

    /// The next alarm-lane record to publish under `token`, if one may go now.
    pub fn next_alarm(&mut self, token: Token, now: Now) -> Option<Handed<'_>> {
        let carried = self.bytes_in_flight() as u64 <= self.goodput.saturating_mul(ALARMS_S);
        let room = self.in_flight() < if carried { self.window } else { self.window.min(ALARMS_ANYWAY) };
        if !room || !self.may_send(Lane::Alarm, now) {
            return None;
        }
        let position = self.lines[Queue::Alarms.index()].first_waiting()?;
        Some(self.hand_out(Queue::Alarms, position, token, now))
    }

    /// The next telemetry record to publish under `token`, if one may go now.
    pub fn next_telemetry(&mut self, token: Token, now: Now) -> Option<Handed<'_>> {
        let reserved = if self.window == 1 { 0 } else { (self.window / 4).max(1) };
        let room = self.in_flight() < self.window && self.lane_in_flight(Lane::Telemetry) < self.window - reserved;
        if !room || !self.may_send(Lane::Telemetry, now) {
            return None;
        }
        let live = self.lines[Queue::Live.index()].first_waiting().map(|position| (Queue::Live, position));
        let backlog = self.lines[Queue::Backlog.index()].first_waiting().map(|position| (Queue::Backlog, position));
        let probing = self.pauses.contains_key(&Lane::Telemetry);
        let backlogs_turn = probing || self.since_backlog + 1 >= BACKLOG_EVERY;
        let (queue, position) = if backlogs_turn { backlog.or(live) } else { live.or(backlog) }?;
        let bytes = self.lines[queue.index()].waiting[&position].size;
        let in_front: usize = [Queue::Live, Queue::Backlog].map(|queue| self.lines[queue.index()].bytes).iter().sum();
        if in_front > 0 && (in_front + bytes) as u64 > self.goodput {
            return None;
        }
        self.since_backlog = if queue == Queue::Backlog { 0 } else { self.since_backlog.saturating_add(1) };
        Some(self.hand_out(queue, position, token, now))
    }

    fn may_send(&self, lane: Lane, now: Now) -> bool {
        self.pauses.get(&lane).is_none_or(|pause| pause.probe.is_none() && pause.until_ms <= now.mono_ms)
    }

    fn hand_out(&mut self, queue: Queue, position: u64, token: Token, now: Now) -> Handed<'_> {
        self.tokens.insert(token, (queue, position));
        if let Some(pause) = self.pauses.get_mut(&queue.lane()) {
            pause.probe = Some(token);
        }
        let past = self.past.entry((queue.lane(), position)).or_insert(Past { first_sent: now, invalid: 0 });
        let first_sent = past.first_sent;
        let in_front = self.bytes_in_flight();
        let line = &mut self.lines[queue.index()];
        let stored = line.waiting.remove(&position).expect("the position was just found");
        line.bytes += stored.size;
        let flight = Flight::Sent { bytes: in_front + stored.size };
        let out = line.out.entry(position).insert_entry(Out { stored, since: now, flight });
        Handed { stored: &out.into_mut().stored, first_sent }
    }

    /// The wire did not take it after all.
    pub fn not_sent(&mut self, token: Token) {
        if let Some((queue, position)) = self.tokens.remove(&token) {
            self.lines[queue.index()].put_back(position);
            if let Some(pause) = self.pauses.get_mut(&queue.lane()) {
                pause.probe = None;
            }
        }
    }

    /// The broker's verdict on a token. `None` if the token is not of a record.
    pub fn verdict(&mut self, token: Token, verdict: Verdict, now: Now) -> Option<Outcome> {
        let (queue, position) = self.tokens.remove(&token)?;
        let lane = queue.lane();
        let probe = self.pauses.get(&lane).is_some_and(|pause| pause.probe == Some(token));
        let accepted = match verdict {
            Verdict::Accepted => true,
            Verdict::NoSubscriber => self.confirmation != DeliveredWhen::Subscriber,
            Verdict::NotAuthorised | Verdict::Later(_) | Verdict::Invalid(_) => false,
        };
        if probe {
            if accepted || matches!(verdict, Verdict::Invalid(_)) {
                self.pauses.remove(&lane);
            } else if let Some(pause) = self.pauses.get_mut(&lane) {
                pause.probe = None;
            }
        }
        let outcome = if accepted {
            self.accepted(queue, position, now)
        } else if matches!(verdict, Verdict::Invalid(_)) {
            self.invalid(queue, position, now)
        } else {
            self.lines[queue.index()].put_back(position);
            self.pause(lane, probe, now)
        };
        Some(outcome)
    }

    fn accepted(&mut self, queue: Queue, position: u64, now: Now) -> Outcome {
        let line = &mut self.lines[queue.index()];
        let Some(out) = line.out.get_mut(&position) else { return Outcome::Kept };
        if let Flight::Sent { bytes } = out.flight {
            self.goodput = goodput(self.goodput, bytes, now.since(out.since));
        }
        if self.confirmation == DeliveredWhen::Receipt {
            if let Flight::Sent { .. } = std::mem::replace(&mut out.flight, Flight::Unreceipted) {
                line.bytes -= out.stored.size;
            }
            out.since = now;
            return Outcome::Kept;
        }
        self.delivered(queue, position)
    }

    fn delivered(&mut self, queue: Queue, position: u64) -> Outcome {
        self.past.remove(&(queue.lane(), position));
        let landed = self.lines[queue.index()].land(position);
        landed.map_or(Outcome::Kept, Outcome::Delivered)
    }

    fn invalid(&mut self, queue: Queue, position: u64, now: Now) -> Outcome {
        let key = (queue.lane(), position);
        let tries = self.past.get_mut(&key).map_or(INVALID_TRIES, |past| {
            past.invalid += 1;
            past.invalid
        });
        if tries >= INVALID_TRIES && self.aside.len() >= ASIDE_MAX {
            self.lines[queue.index()].put_back(position);
            return self.pause(queue.lane(), false, now);
        }
        if tries < INVALID_TRIES {
            self.lines[queue.index()].put_back(position);
            return Outcome::Kept;
        }
        self.aside.insert(key);
        self.past.remove(&key);
        let landed = self.lines[queue.index()].land(position);
        landed.map_or(Outcome::Kept, Outcome::SetAside)
    }

    /// Begins a pause, or makes it longer if its probe was refused. Refusals of what was already out change nothing.
    fn pause(&mut self, lane: Lane, probe: bool, now: Now) -> Outcome {
        let length_ms = match self.pauses.get(&lane) {
            None => PAUSE_MS.0,
            Some(pause) if probe => (pause.length_ms * 2).min(PAUSE_MS.1),
            Some(_) => return Outcome::Kept,
        };
        let first = !self.pauses.contains_key(&lane);
        self.pauses.insert(lane, Pause { until_ms: now.mono_ms + length_ms, length_ms, probe: None });
        if first { Outcome::Paused(lane) } else { Outcome::Kept }
    }

    /// The command center has stored the record of this id. `None` if it is not in flight.
    pub fn receipt(&mut self, id: &str) -> Option<Outcome> {
        let found = Queue::ALL.into_iter().find_map(|queue| {
            let mut out = self.lines[queue.index()].out.iter();
            out.find(|(_, out)| out.stored.record.id() == id).map(|(position, _)| (queue, *position))
        });
        let (queue, position) = found.filter(|_| self.confirmation == DeliveredWhen::Receipt)?;
        Some(self.delivered(queue, position))
    }

    /// A record that was set aside is declared and confirmed.
    pub fn forget(&mut self, lane: Lane, position: u64) {
        self.aside.remove(&(lane, position));
    }

    /// Sends again what got no receipt in time.
    pub fn resend_unreceipted(&mut self, now: Now) {
        for line in &mut self.lines {
            let late = line.out.extract_if(.., |_, out| match out.flight {
                Flight::Sent { .. } => false,
                Flight::Unreceipted => now.since(out.since) > RECEIPT_DEADLINE,
            });
            line.waiting.extend(late.map(|(position, out)| (position, out.stored)));
        }
    }

    /// When the oldest publish went out that has no verdict yet.
    #[must_use]
    pub fn oldest_unanswered(&self) -> Option<Now> {
        let out = self.lines.iter().flat_map(|line| line.out.values());
        let sent = out.filter(|out| matches!(out.flight, Flight::Sent { .. })).map(|out| out.since);
        sent.min_by_key(|since| since.mono_ms)
    }

    /// Records handed out and not confirmed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        Lane::ALL.into_iter().map(|lane| self.lane_in_flight(lane)).sum()
    }

    fn lane_in_flight(&self, lane: Lane) -> usize {
        let queues = Queue::ALL.into_iter().filter(|queue| queue.lane() == lane);
        queues.map(|queue| self.lines[queue.index()].out.len()).sum()
    }

    /// Bytes that have left and may still be on their way.
    fn bytes_in_flight(&self) -> usize {
        self.lines.iter().map(|line| line.bytes).sum()
    }
}

/// Whether a connection is to be given up: `oldest` is when the oldest publish without a verdict went out, `heard` when the
/// last verdict came.
#[must_use]
pub fn is_overdue(oldest: Now, heard: Option<Now>, now: Now) -> bool {
    let unheard = heard.map_or(now.since(oldest), |heard| now.since(heard).min(now.since(oldest)));
    unheard > VERDICT_DEADLINE || now.since(oldest) > FORGOTTEN_AFTER
}

fn is_critical(stored: &Stored) -> bool {
    matches!(&stored.record.body, Body::Alarm(transition) if transition.severity == Severity::Critical)
}

/// What the link carries, from one confirmed publish: all that was in flight with it when it left has passed since. Never
/// more than the truth on a link that keeps the order, so a higher sample counts at once; lower ones (a slower link, or
/// only a longer way) by a quarter.
fn goodput(present: u64, bytes: usize, took: Duration) -> u64 {
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
    let sample = (bytes as u64).saturating_mul(1_000) / took_ms;
    if sample > present { sample } else { present - (present - sample) / 4 }
}

#[cfg(test)]
mod tests;
