//! A park whose gateway keeps its outbox on a card of its own, and everything a power cut needs around it.

use std::{
    fmt, fs,
    ops::AddAssign,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    broker::Access,
    card::Card,
    ledger::Summary,
    load::random_moment,
    park::{Park, Plan, configuration},
    pause,
    witnesses::{self, Kept, Witnesses},
};

/// The gateway must be back in this time after whatever happened, on a machine that does six such stories at once and
/// whatever else. What it must do on a machine of its own is in the store's tests: 5 s.
pub(crate) const START_MAX: Duration = Duration::from_secs(15);
/// A start worth a look.
const START_SLOW: Duration = Duration::from_secs(3);
/// How long it runs on with a dead card: an acknowledgement then is a lie worth catching.
const RUNS_ON_MIN: Duration = Duration::from_millis(20);
const RUNS_ON_MORE: Duration = Duration::from_millis(60);
/// A retained state follows its event within a round trip.
const STATE_PATIENCE: Duration = Duration::from_secs(20);
/// Less than the gateway leaves to others, and enough for some generations of a small outbox.
const LITTLE_ROOM: u64 = 7 << 20;
/// More than a small outbox may take.
const MUCH: u64 = 16 << 20;
/// They wait for a disk, for each other and for time-outs more than they work.
const SIDE_BY_SIDE: usize = 6;

/// A park on a card. The gateway ends before its card does.
#[derive(Debug)]
pub(crate) struct Island {
    pub(crate) park: Park,
    pub(crate) card: Card,
    pub(crate) dice: fastrand::Rng,
    /// A program that runs the gateway, with its arguments.
    pub(crate) under: Vec<String>,
    slowest_start: Duration,
    broker: Uplink,
    may_give_up: GivesUp,
}

/// What gives way to pressure on the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GivesUp {
    Nothing,
    /// Others fill the disk.
    Telemetry,
    /// The outbox is larger than it may be.
    All,
}

/// Whether the gateway can reach its command center.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uplink {
    Here,
    Away,
}

/// What was proved.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    /// Cuts and kills.
    pub(crate) blows: u64,
    pub(crate) acknowledged: u64,
    pub(crate) delivered: u64,
    /// Of those that were not, as many as the gateway declared where it had to give something up.
    pub(crate) declared: u64,
    pub(crate) repeated: u64,
    pub(crate) wrong_states: u64,
    pub(crate) slowest_start: Duration,
    /// What else is not as it should be.
    pub(crate) faults: Vec<String>,
}

impl Proof {
    /// What the columns of its line mean.
    pub(crate) const HEADER: &'static str =
        " | acknowledged | delivered | declared | lost | repeated | wrong states | slowest start";

    /// Events that were promised and never came, without a word.
    pub(crate) const fn lost(&self) -> u64 {
        self.acknowledged - self.delivered - self.declared
    }

    /// Fails unless every promise was kept.
    pub(crate) fn assert_kept(&self) {
        assert!(self.faults.is_empty(), "{}", self.faults.join("\n"));
        assert_eq!((self.lost(), self.wrong_states), (0, 0), "{self}");
        assert!(self.slowest_start <= START_MAX, "it must be back in {START_MAX:?}: {self}");
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { blows, acknowledged, delivered, declared, repeated, wrong_states, slowest_start, faults: _ } = self;
        let (lost, slowest_s) = (self.lost(), slowest_start.as_secs_f64());
        write!(f, "{blows:>4} | {acknowledged:>12} | {delivered:>9} | {declared:>8} | {lost:>4} | {repeated:>8} ")?;
        write!(f, "| {wrong_states:>12} | {slowest_s:>11.2} s")
    }
}

impl AddAssign for Proof {
    fn add_assign(&mut self, other: Self) {
        self.blows += other.blows;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.declared += other.declared;
        self.repeated += other.repeated;
        self.wrong_states += other.wrong_states;
        self.slowest_start = self.slowest_start.max(other.slowest_start);
        self.faults.extend(other.faults);
    }
}

impl Island {
    /// Everything but the gateway's process, with an outbox of at most this size on this card.
    pub(crate) fn furnish_on(card: Card, max_size: &str, dice: fastrand::Rng) -> Self {
        let body = witnesses::body();
        let plan = Plan { access: Access::Open, command_center: "", body: &body };
        let park = Park::furnish(&plan);
        let toml = configuration(&plan, park.broker.port, park.plc.port);
        let outbox = format!("{}\"\nmax_size = \"{max_size}", card.outbox().display());
        let on_card = toml.replace("{dir}/outbox", &outbox);
        assert_ne!(on_card, toml, "the outbox lies elsewhere");
        park.gateway.configure(&on_card);
        let (slowest_start, broker, may_give_up) = (Duration::ZERO, Uplink::Here, GivesUp::Nothing);
        Self { park, card, dice, under: Vec::new(), slowest_start, broker, may_give_up }
    }

    /// Takes room away, until the card is cleaned, so that this must give way.
    pub(crate) fn press(&mut self, what: GivesUp) {
        match what {
            GivesUp::Nothing => {}
            GivesUp::Telemetry => self.card.leave(LITTLE_ROOM),
            GivesUp::All => self.card.crowd_outbox(MUCH),
        }
        self.may_give_up = self.may_give_up.max(what);
    }

    /// What nothing excuses so far, of all that did not arrive.
    pub(crate) const fn lost_without_reason(&self, kept: &Kept) -> u64 {
        match self.may_give_up {
            GivesUp::Nothing => kept.lost(),
            GivesUp::Telemetry => kept.alarms_lost,
            // What was declared is known at the end.
            GivesUp::All => 0,
        }
    }

    /// Takes the broker away, or brings it back with a subscriber. It may save what it keeps, and has nothing under way.
    pub(crate) fn set_uplink(&mut self, uplink: Uplink) {
        let Park { center, broker, .. } = &mut self.park;
        match (self.broker, uplink) {
            (Uplink::Here, Uplink::Away) => {
                center.leave();
                broker.stop();
            }
            (Uplink::Away, Uplink::Here) => {
                broker.restart();
                center.come_back();
            }
            (Uplink::Here, Uplink::Here) | (Uplink::Away, Uplink::Away) => {}
        }
        self.broker = uplink;
    }

    /// Starts the gateway and waits for nothing.
    pub(crate) fn launch(&mut self) {
        self.park.gateway.launch(&self.under);
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(&mut self) {
        let began = Instant::now();
        self.launch();
        self.park.gateway.wait_until_ready();
        let took = began.elapsed();
        if took > START_SLOW {
            eprintln!("a start took {took:?}\n{}", self.park.gateway.log());
        }
        self.slowest_start = self.slowest_start.max(took);
    }

    /// Cuts the power under the running gateway, and brings it back.
    pub(crate) fn cut(&mut self) {
        self.park.gateway.freeze();
        self.cut_frozen();
    }

    /// The same for a gateway that stands already.
    pub(crate) fn cut_frozen(&mut self) {
        self.card.cut_power();
        self.park.gateway.thaw();
        thread::sleep(RUNS_ON_MIN);
        random_moment(&mut self.dice, RUNS_ON_MORE);
        self.park.gateway.kill9();
        self.card.reinsert();
    }

    /// Starts the gateway again after a blow, with everybody there, and returns when everything has arrived that ever will.
    pub(crate) fn recover(&mut self, witnesses: &Witnesses) {
        witnesses.rest();
        self.set_uplink(Uplink::Here);
        self.start();
        witnesses.wait_until_idle();
        self.settle();
    }

    /// Returns when everything has arrived that ever will; nobody publishes.
    pub(crate) fn settle(&self) {
        let settled = |lane: &str| {
            let waiting = format!("gardu_outbox_records{{lane=\"{lane}\"}}");
            self.park.gateway.wait_for_metric(&waiting, |records| records < 1.0);
        };
        ["a", "t"].into_iter().for_each(settled);
        // What the broker confirmed it passes on in order: behind this the center has everything.
        self.park.mark();
        settled("a");
    }

    /// Looks until each retained state is what it must be, or too long.
    pub(crate) fn wait_for_states(&self, witnesses: &Witnesses) -> Kept {
        let deadline = Instant::now() + STATE_PATIENCE;
        loop {
            let kept = witnesses.look(&self.park.center.ledger());
            if kept.wrong_states == 0 || Instant::now() > deadline {
                return kept;
            }
            pause();
        }
    }

    /// What became of the promises, after [`Island::recover`].
    pub(crate) fn proof(&mut self, witnesses: &Witnesses, blows: u64) -> Proof {
        let kept = self.wait_for_states(witnesses);
        let in_memory = self.park.gateway.metric("gardu_outbox_in_memory") > 0.0;
        if self.may_give_up > GivesUp::Nothing {
            // Its last status says how far it has come.
            self.park.stop();
        }
        let ledger = self.park.center.ledger();
        let mut faults = Vec::new();
        let summary = ledger.complete().unwrap_or_else(|fault| {
            faults.push(fault);
            Summary::default()
        });
        let declared_alarms = summary.declared_alarms as u64;
        let declared_telemetry = summary.declared_lost as u64 - declared_alarms;
        if (declared_alarms > 0 && self.may_give_up < GivesUp::All)
            || (declared_telemetry > 0 && self.may_give_up < GivesUp::Telemetry)
        {
            faults.push(format!("{declared_alarms} alarms and {declared_telemetry} of telemetry were declared lost"));
        }
        if in_memory {
            faults.push("the outbox could not be used".to_owned());
        }
        // One record each, as nobody publishes before the last message is confirmed.
        let declared = kept.alarms_lost.min(declared_alarms) + kept.telemetry_lost().min(declared_telemetry);
        // Under a program that lies to it, it may lose.
        if self.under.is_empty() && (kept.lost() > declared || kept.wrong_states > 0 || !faults.is_empty()) {
            eprintln!("{kept:?} {faults:?}\n{}\n{}", ledger.outline(), self.park.gateway.log());
        }
        Proof {
            blows,
            acknowledged: kept.acknowledged,
            delivered: kept.delivered,
            declared,
            repeated: ledger.duplicates,
            wrong_states: kept.wrong_states,
            slowest_start: self.slowest_start,
            faults,
        }
    }

    /// What the gateway set aside as damaged, which a power cut alone gives it no reason to.
    pub(crate) fn set_aside(&self) -> Vec<String> {
        let entries = fs::read_dir(self.card.outbox()).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let bad: Vec<String> = names.filter(|name| name.starts_with("bad-")).collect();
        if !bad.is_empty() {
            eprintln!("{bad:?} set aside\n{}", self.park.gateway.log());
        }
        bad.into_iter().map(|name| format!("{name} was set aside")).collect()
    }
}

/// Does all of these, several at once, and adds up what they proved.
pub(crate) fn side_by_side<T: Sync>(tasks: &[T], one: impl Fn(&T) -> Proof + Sync) -> Proof {
    let (next, proof) = (AtomicUsize::new(0), Mutex::new(Proof::default()));
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(tasks.len()) {
            scope.spawn(|| {
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let proved = one(task);
                    *proof.lock().expect("no panic while it is held") += proved;
                }
            });
        }
    });
    proof.into_inner().expect("no panic while it is held")
}
