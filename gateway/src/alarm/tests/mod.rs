//! A small world to test the engine in: the engine, a store beside it, and the laws every transition must keep.

mod configuration;
mod properties;
mod timelines;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    AlarmId, AlarmState, Kind, Severity, State, Texts, Transition,
    engine::{Engine, Facts},
    rule::{Acknowledgement, Condition, Latch, Naming, Rule, Selector},
};
use crate::{
    clock::Now,
    command::Refusal,
    reading::{PointId, Quality, Reading, Reason, Segment, Value},
};

/// How promptly the engine is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Prompt,
    Late,
}

/// What the wall clock does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wall {
    Steady,
    Jumping,
}

/// An engine with a store beside it, which checks every transition against the table of states.
struct World {
    engine: Engine,
    rules: Vec<Rule>,
    store: BTreeMap<AlarmId, AlarmState>,
    counts: BTreeMap<PointId, Value>,
    told: Vec<Transition>,
    service: Service,
    wall: Wall,
    now_ms: u64,
    booted_ms: u64,
    jumps: i64,
}

const YEAR_MS: i64 = 365 * 24 * 3_600_000;
const START_MS: i64 = 1_790_000_000_000;

impl World {
    fn new(rules: Vec<Rule>, service: Service, wall: Wall) -> Self {
        let now = Now { mono_ms: 0, wall_ms: START_MS, trusted: true };
        let (engine, facts) = Engine::new(rules.clone(), units, vec![], vec![], now);
        assert!(facts.is_empty());
        Self {
            engine,
            rules,
            store: BTreeMap::new(),
            counts: BTreeMap::new(),
            told: vec![],
            service,
            wall,
            now_ms: 0,
            booted_ms: 0,
            jumps: 0,
        }
    }

    fn at(&self, mono_ms: u64) -> Now {
        let steady_ms = START_MS + i64::try_from(self.booted_ms + mono_ms).expect("a short story");
        match self.wall {
            Wall::Steady => Now { mono_ms, wall_ms: steady_ms, trusted: true },
            Wall::Jumping => {
                let jump_ms = if self.jumps % 2 == 0 { YEAR_MS } else { -3 * YEAR_MS } * self.jumps;
                Now { mono_ms, wall_ms: steady_ms + jump_ms, trusted: self.jumps % 3 == 0 }
            }
        }
    }

    fn now(&self) -> Now {
        self.at(self.now_ms - self.booted_ms)
    }

    /// Time passes.
    fn pass_to(&mut self, now_ms: u64) {
        assert!(now_ms >= self.now_ms, "stories go forward");
        (self.now_ms, self.jumps) = (now_ms, self.jumps + 1);
        let now = self.now();
        while self.service == Service::Prompt
            && let Some(due_ms) = self.engine.next_deadline().filter(|due_ms| *due_ms <= now.mono_ms)
        {
            let facts = self.engine.tick(self.at(due_ms));
            self.keep(facts);
        }
    }

    fn tick(&mut self) {
        let facts = self.engine.tick(self.now());
        self.keep(facts);
    }

    fn read(&mut self, point: &PointId, said: Result<Value, Quality>) {
        let at = self.now();
        let reading = match said {
            Ok(value) => Reading::good(point.clone(), value, at),
            Err(Quality::Bad) => Reading::bad(point.clone(), Reason::Timeout, at),
            Err(quality) => Reading { quality, ..Reading::bad(point.clone(), Reason::NotYetRead, at) },
        };
        let facts = self.engine.reading(&reading);
        self.keep(facts);
    }

    fn acknowledge(&mut self, alarm: &AlarmId, occurrence: u64) -> Result<(), Refusal> {
        self.tick();
        let (now, comment) = (self.now(), Some("petugas ke lokasi".into()));
        let facts = self.engine.acknowledge(alarm, occurrence, "operator".into(), comment, now)?;
        self.keep(facts);
        Ok(())
    }

    fn reset(&mut self, alarm: &AlarmId) -> Result<(), Refusal> {
        self.tick();
        let facts = self.engine.reset(alarm, "operator".into(), None, self.now())?;
        self.keep(facts);
        Ok(())
    }

    /// The gateway starts again, perhaps with other rules: monotonic time from zero, state from the store.
    fn restart(&mut self, rules: Option<Vec<Rule>>) {
        self.tick();
        self.rules = rules.unwrap_or_else(|| self.rules.clone());
        self.booted_ms = self.now_ms;
        let stored = self.store.values().cloned().collect();
        let counts = self.counts.clone().into_iter().collect();
        let (engine, facts) = Engine::new(self.rules.clone(), units, stored, counts, self.now());
        self.engine = engine;
        self.keep(facts);
        for (id, stored) in &self.store {
            assert_eq!(self.engine.alarm(id), Some(stored), "a restart keeps what was stored");
        }
    }

    fn keep(&mut self, facts: Facts) {
        let changed = facts.transitions.iter().map(|t| t.alarm.clone()).chain(facts.changed);
        for id in changed.collect::<Vec<_>>() {
            self.store.insert(id.clone(), self.engine.alarm(&id).expect("what changed is kept").clone());
        }
        for transition in facts.transitions {
            let before = self.told.iter().rev().find(|t| t.alarm == transition.alarm);
            self.check_legal(before, &transition);
            self.told.push(transition);
        }
        for id in facts.forgotten {
            self.store.remove(&id);
        }
        self.counts.extend(facts.counts);
        self.check_replay();
    }

    /// The table of states (facts C1), as laws about two transitions that follow each other.
    fn check_legal(&self, before: Option<&Transition>, after: &Transition) {
        let quiet = (0, State::Norm, false);
        let (occurrence, state, active) = before.map_or(quiet, |b| (b.occurrence, b.state, b.active));
        let rule = self.rules.iter().find(|rule| after.alarm.as_str().ends_with(rule.name.as_str()));
        let required = rule.is_some_and(|rule| rule.acknowledgement == Acknowledgement::Required);
        let story = format!("{before:#?} -> {after:#?}");
        assert_eq!(after.occurrence, occurrence + u64::from(after.kind == Kind::Raised), "{story}");
        match after.kind {
            Kind::Raised => assert!(!active && after.state == State::Unack && after.active, "{story}"),
            Kind::Cleared => assert!(active && !after.active && state != State::Rtnun, "{story}"),
            Kind::Acknowledged => assert!(after.acknowledged && after.active == active, "{story}"),
            Kind::Reset => assert!(before.is_some_and(|b| b.latched) && after.state == State::Norm, "{story}"),
            Kind::Updated => assert!(after.state != State::Norm, "{story}"),
            Kind::Removed => assert!(after.state == State::Norm && state != State::Norm, "{story}"),
        }
        let unseen = matches!(state, State::Unack | State::Rtnun) && after.state == State::Norm;
        assert!(!unseen || after.acknowledged || !required || after.kind == Kind::Removed, "{story}");
        match after.state {
            State::Norm => assert!(!after.active && !after.latched, "{story}"),
            State::Unack => assert!(after.active != after.latched && !after.acknowledged, "{story}"),
            State::Acked => assert!(after.active != after.latched && after.acknowledged, "{story}"),
            State::Rtnun => assert!(!after.active && !after.latched && !after.acknowledged, "{story}"),
        }
        assert_eq!(after.value.is_some(), after.quality == Quality::Good && !after.test, "{story}");
        let same_boot = self.told.last().is_none_or(|last| last.at.mono_ms <= after.at.mono_ms);
        assert!(same_boot || self.booted_ms > 0, "told in order of time: {story}");
    }

    /// Who replays what was told has the same table of standing alarms as the engine.
    fn check_replay(&self) {
        let replayed: BTreeMap<_, _> = self.told.iter().map(|t| (&t.alarm, t)).collect();
        let standing = |state: &State| *state != State::Norm;
        let told: Vec<_> = replayed.values().filter(|t| standing(&t.state)).copied().collect();
        let mut held: Vec<_> = self.engine.alarms().map(|kept| &kept.last).filter(|t| standing(&t.state)).collect();
        held.sort_by(|a, b| a.alarm.cmp(&b.alarm));
        assert_eq!(told, held);
        for state in [State::Unack, State::Acked, State::Rtnun] {
            assert_eq!(self.engine.count(state), held.iter().filter(|t| t.state == state).count(), "{state:?}");
        }
    }
}

fn units(point: &PointId) -> Option<Arc<str>> {
    (point.as_str() == "panel/level").then(|| "cm".into())
}

fn point(text: &str) -> PointId {
    PointId::parse(text).expect("a point")
}

/// A rule named `test` on `panel/level`.
fn rule(when: Condition) -> Rule {
    Rule {
        name: Segment::parse("test").expect("a name"),
        select: Selector::parse("panel/level").expect("a point"),
        naming: Naming::PointAndRule,
        when,
        severity: Severity::High,
        on_delay: Duration::ZERO,
        off_delay: Duration::ZERO,
        latch: Latch::NonLatching,
        acknowledgement: Acknowledgement::Required,
        message: Texts { id: Some("Air tinggi".into()), en: Some("High water".into()) },
    }
}

fn high(limit: f64) -> Rule {
    rule(Condition::Above { limit, deadband: 0.0 })
}

impl Rule {
    fn deadband(mut self, wide: f64) -> Self {
        match &mut self.when {
            Condition::Above { deadband, .. } | Condition::Below { deadband, .. } => *deadband = wide,
            Condition::Is(_) | Condition::Increments | Condition::Stale(_) | Condition::Bad => panic!("no limit"),
        }
        self
    }

    fn on_delay(self, seconds: u64) -> Self {
        Self { on_delay: Duration::from_secs(seconds), ..self }
    }

    fn off_delay(self, seconds: u64) -> Self {
        Self { off_delay: Duration::from_secs(seconds), ..self }
    }

    fn latching(self) -> Self {
        Self { latch: Latch::Latching, ..self }
    }

    fn unasked(self) -> Self {
        Self { acknowledgement: Acknowledgement::NotRequired, ..self }
    }
}
