//! Laws that hold for every story: the engine against a model that counts seconds.
//!
//! The model knows no deadlines: it asks every second whether the condition was confirmed to differ from `active` for
//! long enough. [`World`] adds the laws about transitions: no way from UNACK to NORM unseen, an occurrence only at a
//! raise, and a replay of what was told gives the same table.

use std::time::Duration;

use proptest::prelude::*;

use super::{Service, Wall, World, point, rule};
use crate::{
    alarm::{
        AlarmId, State,
        rule::{Acknowledgement, Condition, Latch, Rule},
    },
    reading::{Quality, Value},
};

/// What happens at one second.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A good value; for a counter, how far it went.
    Value(u8),
    Bad,
    Uncertain,
    Acknowledge {
        late: bool,
    },
    Reset,
    Restart,
    Nothing,
}

/// The rule again, second by second.
#[derive(Debug)]
struct Model {
    rule: Rule,
    holds: bool,
    /// Whether the last word about the condition was one that could tell.
    confirmed: bool,
    /// Confirmed seconds in which the condition differed from `active`.
    differs_s: u64,
    silent_s: u64,
    count: Option<i128>,
    active: bool,
    acknowledged: bool,
    latched: bool,
    occurrence: u64,
    standing: bool,
}

impl Model {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            holds: false,
            confirmed: false,
            differs_s: 0,
            silent_s: 0,
            count: None,
            active: false,
            acknowledged: false,
            latched: false,
            occurrence: 0,
            standing: false,
        }
    }

    fn second(&mut self) {
        if self.confirmed && self.holds != self.active {
            self.differs_s += 1;
            self.follow();
        }
        self.silent_s += 1;
        if let Condition::Stale(after) = self.rule.when
            && self.silent_s == after.as_secs()
        {
            self.learn(true);
        }
    }

    fn value(&mut self, value: i128) {
        let x = value as f64;
        let rose = self.count.is_some_and(|last| value > last);
        self.silent_s = 0;
        let holds = match self.rule.when {
            Condition::Is(_) => value == 1,
            Condition::Above { limit, deadband } => x > limit || (self.holds && x > limit - deadband),
            Condition::Below { limit, deadband } => x < limit || (self.holds && x < limit + deadband),
            Condition::Increments => rose,
            Condition::Stale(_) | Condition::Bad => false,
        };
        self.count = Some(value);
        self.learn(holds);
    }

    fn bad(&mut self, uncertain: bool) {
        match self.rule.when {
            Condition::Stale(_) => {}
            Condition::Bad if !uncertain => self.learn(true),
            _ => self.confirmed = false,
        }
    }

    fn learn(&mut self, holds: bool) {
        (self.holds, self.confirmed) = (holds, true);
        if holds == self.active {
            self.differs_s = 0;
        } else {
            self.follow();
        }
    }

    fn follow(&mut self) {
        let delay = if self.holds { self.rule.on_delay } else { self.rule.off_delay };
        if self.differs_s < delay.as_secs() {
            return;
        }
        (self.differs_s, self.active) = (0, self.holds);
        if self.holds {
            (self.standing, self.acknowledged, self.latched) = (true, false, false);
            self.occurrence += 1;
        } else {
            self.latched = self.rule.latch == Latch::Latching;
            let asked = self.rule.acknowledgement == Acknowledgement::Required && !self.acknowledged;
            self.standing = self.latched || asked;
        }
    }

    fn acknowledge(&mut self) {
        if self.standing && !self.acknowledged {
            self.acknowledged = true;
            self.standing = self.active || self.latched;
        }
    }

    fn reset(&mut self) {
        let answered = self.acknowledged || self.rule.acknowledgement == Acknowledgement::NotRequired;
        if self.latched && answered {
            (self.latched, self.standing) = (false, false);
        }
    }

    fn restart(&mut self) {
        (self.holds, self.differs_s, self.silent_s) = (self.active, 0, 0);
    }

    fn state(&self) -> State {
        match (self.standing, self.acknowledged, self.active || self.latched) {
            (false, ..) => State::Norm,
            (true, true, _) => State::Acked,
            (true, false, true) => State::Unack,
            (true, false, false) => State::Rtnun,
        }
    }
}

fn rules() -> impl Strategy<Value = Rule> {
    let when = prop_oneof![
        Just(Condition::Is(Value::Integer(1))),
        (0_u8..4).prop_map(|band| Condition::Above { limit: 3.0, deadband: band.into() }),
        (0_u8..4).prop_map(|band| Condition::Below { limit: 3.0, deadband: band.into() }),
        Just(Condition::Increments),
        (1_u64..6).prop_map(|s| Condition::Stale(Duration::from_secs(s))),
        Just(Condition::Bad),
    ];
    (when, 0_u64..5, 0_u64..5, any::<bool>(), any::<bool>()).prop_map(|(when, on, off, latch, asked)| Rule {
        on_delay: Duration::from_secs(on),
        off_delay: Duration::from_secs(off),
        latch: if latch { Latch::Latching } else { Latch::NonLatching },
        acknowledgement: if asked { Acknowledgement::Required } else { Acknowledgement::NotRequired },
        ..rule(when)
    })
}

fn events() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let event = prop_oneof![
        8 => (0_u8..7).prop_map(Event::Value),
        2 => Just(Event::Bad),
        1 => Just(Event::Uncertain),
        2 => any::<bool>().prop_map(|late| Event::Acknowledge { late }),
        1 => Just(Event::Reset),
        1 => Just(Event::Restart),
        2 => Just(Event::Nothing),
    ];
    prop::collection::vec((0_u64..4, event), 0..60)
}

proptest! {
    #[test]
    fn the_engine_does_what_the_model_says(rule in rules(), events in events(), prompt: bool, steady: bool) {
        let service = if prompt { Service::Prompt } else { Service::Late };
        let mut world = World::new(vec![rule.clone()], service, if steady { Wall::Steady } else { Wall::Jumping });
        let mut model = Model::new(rule);
        let (level, alarm) = (point("panel/level"), AlarmId::parse("panel/level/test").expect("an alarm"));
        let (mut now_s, mut counter) = (0, 0);
        for (wait_s, event) in events {
            (0..wait_s).for_each(|_| model.second());
            now_s += wait_s;
            world.pass_to(now_s * 1_000);
            match event {
                Event::Value(x) => {
                    counter += i128::from(x / 3);
                    let value = if model.rule.when == Condition::Increments { counter } else { x.into() };
                    world.read(&level, Ok(Value::Integer(value)));
                    model.value(value);
                }
                Event::Bad => {
                    world.read(&level, Err(Quality::Bad));
                    model.bad(false);
                }
                Event::Uncertain => {
                    world.read(&level, Err(Quality::Uncertain));
                    model.bad(true);
                }
                Event::Acknowledge { late } => {
                    let named = model.occurrence.wrapping_sub(u64::from(late));
                    let accepted = world.acknowledge(&alarm, named).is_ok();
                    prop_assert_eq!(accepted, !late && model.standing && !model.acknowledged);
                    if !late {
                        model.acknowledge();
                    }
                }
                Event::Reset => {
                    let _refused_or_not = world.reset(&alarm);
                    model.reset();
                }
                Event::Restart => {
                    world.restart(None);
                    model.restart();
                }
                Event::Nothing => world.tick(),
            }
            let kept = world.engine.alarm(&alarm);
            let found = kept.map_or((State::Norm, 0, false, false), |kept| {
                (kept.last.state, kept.last.occurrence, kept.last.active, kept.last.latched)
            });
            prop_assert_eq!(found, (model.state(), model.occurrence, model.active, model.latched), "at {} s", now_s);
        }
    }
}
