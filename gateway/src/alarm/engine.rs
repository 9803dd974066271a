//! Every alarm of the gateway: finds those of a point, keeps their deadlines, and says what changed.
//!
//! Pure: whoever owns the engine hands it readings, commands and the time, stores the [`Facts`] and only then tells
//! anyone. A reading that changes nothing costs one look-up of its point and a comparison per alarm of it, and
//! allocates nothing.
//!
//! Deadlines that lie before a reading's stamp are served before it, with their own time: what comes out does not
//! depend on how promptly [`Engine::tick`] is called.
//!
//! Patterns are resolved once per point, when it is first heard, or at the start if one of its alarms was stored.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    AlarmId, AlarmState, Kind, Severity, State, Texts, Told, Transition,
    condition::{Count, as_count, count},
    rule::{Condition, Rule},
    state::{Alarm, said},
};
use crate::{
    clock::Now,
    command::Refusal,
    reading::{PointId, Quality, Reading, Segment, Value},
};

/// Most alarms: a pattern must not let a talkative camera fill the memory. Twice the largest site foreseen; about
/// 10 MB. Further ones are refused and counted.
pub const ALARMS_MAX: usize = 20_000;
/// Most points remembered as having alarms or none; those beyond are matched against the patterns at every reading.
const POINTS_MAX: usize = 2 * ALARMS_MAX;
/// Most alarms without a rule whose state is kept; the longest removed is forgotten first.
const RETIRED_MAX: usize = ALARMS_MAX;
/// How long the state of an alarm without a rule is kept, so that a rollback of the configuration restores it.
const RETIRED_KEPT_MS: i64 = 30 * 24 * 3_600_000;
/// How often those are looked through: an hour is small against 30 days.
const RETIRED_CHECK: Duration = Duration::from_hours(1);

/// What changed; empty, and then free of charge, for most readings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// What the command center is told, in the order it happened.
    pub transitions: Vec<Transition>,
    /// Alarms whose state must be stored although nobody is told.
    pub changed: Vec<AlarmId>,
    /// Last counts of `increments` points that changed, to be stored with it.
    pub counts: Vec<(PointId, Value)>,
    /// Alarms whose stored state can go.
    pub forgotten: Vec<AlarmId>,
}

impl Facts {
    /// Whether nothing changed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.transitions.is_empty() && self.changed.is_empty() && self.counts.is_empty() && self.forgotten.is_empty()
    }
}

/// Finds the unit of a point.
type Units = Box<dyn Fn(&PointId) -> Option<Arc<str>> + Send + Sync>;

/// Every alarm, and when something is due.
pub struct Engine {
    rules: Rules,
    units: Units,
    points: HashMap<PointId, Watched>,
    alarms: Vec<Alarm>,
    index: HashMap<AlarmId, usize>,
    deadlines: Deadlines,
    /// How many alarms are in each state, by `State as usize`.
    tally: [usize; State::ALL.len()],
    /// States of alarms whose rule is gone.
    retired: HashMap<AlarmId, AlarmState>,
    retired_check_ms: u64,
    /// The alarm that people raise to try the way to the command center.
    test: Option<AlarmState>,
    refused: u64,
}

/// The rules, by how they are found. Within one point those that name it come first; of two with one name the first
/// counts.
#[derive(Debug)]
struct Rules {
    exact: HashMap<PointId, Vec<Arc<Rule>>>,
    patterns: Vec<Arc<Rule>>,
}

/// What belongs to one point.
#[derive(Debug, Default)]
struct Watched {
    alarms: Arc<[usize]>,
    counter: Counter,
}

/// The last count of a point.
#[derive(Debug, Clone, Copy, Default)]
enum Counter {
    /// No rule counts here.
    #[default]
    Unwatched,
    /// Not read yet: the first count is the base.
    Unknown,
    /// The last count.
    Last(u64),
}

impl Engine {
    /// Starts from a configuration and what was stored; the facts are what the difference between the two means: rules
    /// that are gone, came back, or changed. `counts` are the last ones of `increments` points, so that a press during
    /// a restart is noticed. Delays begin again, silence is measured from `now`.
    pub fn new(
        rules: Vec<Rule>,
        units: impl Fn(&PointId) -> Option<Arc<str>> + Send + Sync + 'static,
        restored: Vec<AlarmState>,
        counts: Vec<(PointId, Value)>,
        now: Now,
    ) -> (Self, Facts) {
        let (rules, points) = Rules::sort(rules);
        let mut engine = Self {
            rules,
            units: Box::new(units),
            points: HashMap::new(),
            alarms: Vec::new(),
            index: HashMap::new(),
            deadlines: Deadlines::default(),
            tally: [0; State::ALL.len()],
            retired: HashMap::new(),
            retired_check_ms: now.mono_ms,
            test: None,
            refused: 0,
        };
        let mut facts = Facts::default();
        for point in &points {
            engine.watch(point, now);
        }
        for stored in restored {
            engine.restore(stored, now, &mut facts);
        }
        for (point, value) in counts {
            engine.watch(&point, now);
            if let (Some(watched), Some(last)) = (engine.points.get_mut(&point), as_count(&value)) {
                watched.counter.restore(last);
            }
        }
        engine.forget_surplus(&mut facts);
        engine.forget_expired(now, &mut facts);
        (engine, facts)
    }

    /// Takes a reading; its stamp is the time.
    #[must_use]
    pub fn reading(&mut self, reading: &Reading) -> Facts {
        let mut facts = Facts::default();
        self.run(reading.at, &mut facts);
        let heard = self.hear(reading, &mut facts).or_else(|| {
            self.watch(&reading.point, reading.at);
            self.hear(reading, &mut facts)
        });
        let Some((alarms, count)) = heard else { return facts };
        for &alarm in &*alarms {
            self.step(alarm, &mut facts, |alarm| alarm.reading(reading, count));
        }
        facts
    }

    /// Serves what is due. Call it when [`Engine::next_deadline`] has come, and before a command.
    #[must_use]
    pub fn tick(&mut self, now: Now) -> Facts {
        let mut facts = Facts::default();
        self.run(now, &mut facts);
        if self.retired_check_ms <= now.mono_ms {
            self.forget_expired(now, &mut facts);
        }
        facts
    }

    /// When [`Engine::tick`] is next wanted, by the monotonic clock. It may be early, then nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let check = (!self.retired.is_empty()).then_some(self.retired_check_ms);
        [check, self.deadlines.first()].into_iter().flatten().min()
    }

    /// Acknowledges one occurrence of an alarm.
    pub fn acknowledge(
        &mut self,
        alarm: &AlarmId,
        occurrence: u64,
        by: Arc<str>,
        comment: Option<Arc<str>>,
        now: Now,
    ) -> Result<Facts, Refusal> {
        self.command(alarm, |alarm| alarm.acknowledge(occurrence, by, comment, now))
    }

    /// Releases the latch of an acknowledged alarm whose condition ended.
    pub fn reset(
        &mut self,
        alarm: &AlarmId,
        by: Arc<str>,
        comment: Option<Arc<str>>,
        now: Now,
    ) -> Result<Facts, Refusal> {
        self.command(alarm, |alarm| alarm.reset(by, comment, now))
    }

    /// Raises and clears `gateway/test`, marked as a test: it needs no one.
    #[must_use]
    pub fn test(&mut self, severity: Severity, message: Texts, by: Arc<str>, now: Now) -> Facts {
        let raised = Transition {
            kind: Kind::Raised,
            alarm: AlarmId::test(),
            occurrence: self.test.as_ref().map_or(0, |kept| kept.last.occurrence).saturating_add(1),
            state: State::Unack,
            active: true,
            acknowledged: false,
            latched: false,
            severity,
            value: None,
            unit: None,
            quality: Quality::Good,
            reason: None,
            limit: None,
            test: true,
            message,
            by: Some(by),
            comment: None,
            evidence: None,
            at: now,
            source_time_ms: None,
        };
        let cleared = Transition { kind: Kind::Cleared, state: State::Norm, active: false, ..raised.clone() };
        self.test = Some(AlarmState { configured: true, told: None, last: cleared.clone() });
        Facts { transitions: vec![raised, cleared], ..Facts::default() }
    }

    /// Every alarm that has a rule and was raised at least once, in no particular order.
    pub fn alarms(&self) -> impl Iterator<Item = &AlarmState> {
        self.alarms.iter().filter_map(Alarm::kept).chain(&self.test)
    }

    /// What is kept of one alarm, a removed one included.
    #[must_use]
    pub fn alarm(&self, id: &AlarmId) -> Option<&AlarmState> {
        match self.index.get(id) {
            Some(alarm) => self.alarms[*alarm].kept(),
            None => self.retired.get(id).or(self.test.as_ref().filter(|kept| kept.last.alarm == *id)),
        }
    }

    /// Notes which record told of an alarm's last transition.
    pub fn recorded(&mut self, id: &AlarmId, told: Told) {
        let kept = match self.index.get(id) {
            Some(alarm) => self.alarms[*alarm].kept_mut(),
            None => self.retired.get_mut(id).or(self.test.as_mut().filter(|kept| kept.last.alarm == *id)),
        };
        if let Some(kept) = kept {
            kept.told = Some(told);
        }
    }

    /// How many alarms are in a state.
    #[must_use]
    pub const fn count(&self, state: State) -> usize {
        self.tally[state as usize]
    }

    /// How many alarms were refused because there are [`ALARMS_MAX`] already.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    fn command(
        &mut self,
        id: &AlarmId,
        command: impl FnOnce(&mut Alarm) -> Result<Transition, Refusal>,
    ) -> Result<Facts, Refusal> {
        let Some(alarm) = self.index.get(id) else {
            return Err(self.alarm(id).map_or(Refusal::UnknownAlarm, |_quiet| Refusal::NotStanding));
        };
        let mut facts = Facts::default();
        let mut result = Ok(());
        self.step(*alarm, &mut facts, |alarm| command(alarm).map_err(|refusal| result = Err(refusal)).ok());
        result.map(|()| facts)
    }

    /// Serves every deadline up to `now`, each at its own time.
    fn run(&mut self, now: Now, facts: &mut Facts) {
        while let Some((due_ms, alarm)) = self.deadlines.pop(now.mono_ms) {
            let late_ms = now.mono_ms - due_ms;
            let at = Now { mono_ms: due_ms, wall_ms: now.wall_ms.saturating_sub_unsigned(late_ms), ..now };
            self.step(alarm, facts, |alarm| alarm.expire(at));
        }
    }

    /// Lets one alarm change, and keeps everything else in step with it.
    fn step(&mut self, index: usize, facts: &mut Facts, change: impl FnOnce(&mut Alarm) -> Option<Transition>) {
        let alarm = &mut self.alarms[index];
        let before = alarm.state();
        if let Some(transition) = change(alarm) {
            self.tally[before as usize] -= 1;
            self.tally[alarm.state() as usize] += 1;
            facts.transitions.push(transition);
        }
        self.deadlines.set(index, alarm.due_ms());
    }

    /// The alarms of a known point, and what its counter did.
    fn hear(&mut self, reading: &Reading, facts: &mut Facts) -> Option<(Arc<[usize]>, Count)> {
        let watched = self.points.get_mut(&reading.point)?;
        Some((watched.alarms.clone(), watched.counter.take(reading, facts)))
    }

    /// Makes the alarms of a point, the first time it is heard of.
    fn watch(&mut self, point: &PointId, now: Now) {
        if self.points.contains_key(point) {
            return;
        }
        let mut alarms = Vec::new();
        let mut counter = Counter::Unwatched;
        for rule in self.rules.of(point) {
            let id = rule.alarm(point);
            if self.index.contains_key(&id) {
                continue;
            }
            if self.alarms.len() == ALARMS_MAX {
                self.refused += 1;
                continue;
            }
            if rule.when == Condition::Increments {
                counter = Counter::Unknown;
            }
            let alarm = Alarm::new(id.clone(), rule.clone(), (self.units)(point), now);
            self.deadlines.set(self.alarms.len(), alarm.due_ms());
            self.tally[State::Norm as usize] += 1;
            self.index.insert(id, self.alarms.len());
            alarms.push(self.alarms.len());
            self.alarms.push(alarm);
        }
        if !alarms.is_empty() || self.points.len() < POINTS_MAX {
            self.points.insert(point.clone(), Watched { alarms: alarms.into(), counter });
        }
    }

    /// Hands a stored state to its alarm, or keeps it aside if its rule is gone.
    fn restore(&mut self, stored: AlarmState, now: Now, facts: &mut Facts) {
        let id = stored.last.alarm.clone();
        if id == AlarmId::test() {
            self.test = Some(stored);
            return;
        }
        if !self.index.contains_key(&id)
            && let Some(point) = self.rules.point_of(&id)
        {
            self.watch(&point, now);
        }
        let Some(&index) = self.index.get(&id) else { return self.retire(stored, now, facts) };
        let configured = stored.configured;
        let alarm = &mut self.alarms[index];
        self.tally[alarm.state() as usize] -= 1;
        let updated = alarm.restore(stored, now);
        self.tally[alarm.state() as usize] += 1;
        match updated {
            Some(updated) => facts.transitions.push(updated),
            None if !configured => facts.changed.push(id),
            None => {}
        }
    }

    /// Closes an alarm whose rule is gone. Its state stays underneath, stamped with the time of the removal.
    fn retire(&mut self, mut kept: AlarmState, now: Now, facts: &mut Facts) {
        if kept.configured {
            let removed = Transition { kind: Kind::Removed, ..said(&kept.last, None, None, now) };
            if removed.state == State::Norm {
                facts.changed.push(removed.alarm.clone());
            } else {
                let closed = Transition { state: State::Norm, active: false, latched: false, ..removed.clone() };
                facts.transitions.push(closed);
            }
            kept = AlarmState { configured: false, told: None, last: removed };
        }
        self.retired.insert(kept.last.alarm.clone(), kept);
    }

    fn forget_surplus(&mut self, facts: &mut Facts) {
        let surplus = self.retired.len().saturating_sub(RETIRED_MAX);
        if surplus > 0 {
            let mut oldest: Vec<_> =
                self.retired.values().map(|kept| (kept.last.at.wall_ms, &kept.last.alarm)).collect();
            oldest.sort_unstable();
            facts.forgotten.extend(oldest.into_iter().take(surplus).map(|(_, id)| id.clone()));
            self.retired.retain(|id, _| !facts.forgotten.contains(id));
        }
    }

    /// Forgets what was removed 30 days ago. Only a trusted clock counts days: what was removed while it was not
    /// trusted counts from when it is.
    fn forget_expired(&mut self, now: Now, facts: &mut Facts) {
        self.retired_check_ms = now.mono_ms.saturating_add(RETIRED_CHECK.as_millis() as u64);
        if !now.trusted {
            return;
        }
        self.retired.retain(|id, kept| {
            if !kept.last.at.trusted {
                kept.last.at = now;
                facts.changed.push(id.clone());
            }
            let keep = now.wall_ms.saturating_sub(kept.last.at.wall_ms) < RETIRED_KEPT_MS;
            if !keep {
                facts.forgotten.push(id.clone());
            }
            keep
        });
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("alarms", &self.alarms).finish_non_exhaustive()
    }
}

impl Rules {
    /// Sorts rules by how they are found; also every point that is named, in the order of the rules.
    fn sort(rules: Vec<Rule>) -> (Self, Vec<PointId>) {
        let mut sorted = Self { exact: HashMap::new(), patterns: Vec::new() };
        let mut points = Vec::new();
        for rule in rules {
            match rule.select.as_point() {
                Some(point) => {
                    sorted.exact.entry(point.clone()).or_default().push(Arc::new(rule));
                    points.push(point);
                }
                None => sorted.patterns.push(Arc::new(rule)),
            }
        }
        (sorted, points)
    }

    fn of(&self, point: &PointId) -> impl Iterator<Item = &Arc<Rule>> {
        let exact = self.exact.get(point).into_iter().flatten();
        exact.chain(self.patterns.iter().filter(|rule| rule.select.matches(point)))
    }

    /// The point of a stored alarm that a pattern still matches.
    fn point_of(&self, id: &AlarmId) -> Option<PointId> {
        let (point, name) = id.as_str().rsplit_once('/')?;
        let (point, name) = (PointId::parse(point).ok()?, Segment::parse(name).ok()?);
        self.patterns.iter().any(|rule| rule.name == name && rule.select.matches(&point)).then_some(point)
    }
}

impl Counter {
    fn restore(&mut self, last: u64) {
        match self {
            Self::Unwatched => {}
            Self::Unknown | Self::Last(_) => *self = Self::Last(last),
        }
    }

    /// Moves on to the count of a good reading.
    fn take(&mut self, reading: &Reading, facts: &mut Facts) -> Count {
        let last = match self {
            Self::Unwatched => return Count::Stayed,
            Self::Unknown => None,
            Self::Last(last) => Some(*last),
        };
        let value = reading.value.as_ref().filter(|_| reading.quality == Quality::Good);
        let Some(next) = value.and_then(as_count).filter(|next| last != Some(*next)) else { return Count::Stayed };
        *self = Self::Last(next);
        facts.counts.push((reading.point.clone(), Value::Integer(next.into())));
        last.map_or(Count::Stayed, |last| count(last, next))
    }
}

/// When each alarm wants to be served, at the latest. One that is served early says when it wants to be next: the
/// deadline of silence moves with every reading, and must cost nothing until it comes.
#[derive(Debug, Default)]
struct Deadlines {
    queue: BTreeSet<(u64, usize)>,
    /// By alarm, its place in the queue.
    set: Vec<Option<u64>>,
}

impl Deadlines {
    fn first(&self) -> Option<u64> {
        self.queue.first().map(|(due_ms, _)| *due_ms)
    }

    /// Takes out what is due first, if it is due.
    fn pop(&mut self, now_ms: u64) -> Option<(u64, usize)> {
        let first = *self.queue.first().filter(|(due_ms, _)| *due_ms <= now_ms)?;
        self.queue.remove(&first);
        self.set[first.1] = None;
        Some(first)
    }

    fn set(&mut self, alarm: usize, due_ms: Option<u64>) {
        if self.set.len() <= alarm {
            self.set.resize(alarm + 1, None);
        }
        let set = &mut self.set[alarm];
        if matches!((*set, due_ms), (Some(early), Some(due)) if early <= due) || *set == due_ms {
            return;
        }
        if let Some(old) = std::mem::replace(set, due_ms) {
            self.queue.remove(&(old, alarm));
        }
        self.queue.extend(due_ms.map(|due| (due, alarm)));
    }
}
