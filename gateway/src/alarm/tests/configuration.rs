//! Many alarms at once: patterns and their bounds, and what a new configuration means for what stands.

use std::{sync::Arc, time::Duration};

use super::{Service, Wall, World, high, point, rule, units};
use crate::{
    alarm::{
        AlarmId, AlarmState, Kind, Severity, State, Texts, Transition,
        engine::{ALARMS_MAX, Engine},
        rule::{Condition, Naming, Rule, Selector},
    },
    clock::Now,
    command::Refusal,
    reading::{Evidence, Quality, Reading, Segment, Value},
};

const DAY_MS: i64 = 24 * 3_600_000;

fn now(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: 1_790_000_000_000 + i64::try_from(mono_ms).expect("small"), trusted: true }
}

fn named(name: &str, select: &str, when: Condition) -> Rule {
    Rule {
        name: Segment::parse(name).expect("a name"),
        select: Selector::parse(select).expect("a selector"),
        ..rule(when)
    }
}

fn alarm(text: &str) -> AlarmId {
    AlarmId::parse(text).expect("an alarm")
}

fn world(rules: Vec<Rule>) -> World {
    World::new(rules, Service::Prompt, Wall::Steady)
}

fn kinds(told: &[Transition]) -> Vec<(Kind, State, u64)> {
    told.iter().map(|t| (t.kind, t.state, t.occurrence)).collect()
}

fn good(name: &str, value: impl Into<Value>, at: Now) -> Reading {
    Reading::good(point(name), value.into(), at)
}

#[test]
fn a_removed_rule_closes_its_alarm_and_a_rollback_restores_it() {
    let (level, id) = (point("panel/level"), alarm("panel/level/test"));
    let mut world = world(vec![high(80.0)]);
    world.read(&level, Ok(Value::Integer(81)));
    world.acknowledge(&id, 1).expect("it stands");
    world.restart(Some(vec![]));
    assert_eq!(world.engine.alarms().count(), 0);
    assert_eq!(world.acknowledge(&id, 1), Err(Refusal::NotStanding));
    world.restart(None);
    world.read(&level, Ok(Value::Integer(99)));
    world.restart(Some(vec![high(80.0)]));
    assert_eq!(world.engine.alarm(&id).map(AlarmState::state), Some(State::Acked));
    world.read(&level, Ok(Value::Integer(70)));
    world.read(&level, Ok(Value::Integer(81)));
    let story = [
        (Kind::Raised, State::Unack, 1),
        (Kind::Acknowledged, State::Acked, 1),
        (Kind::Removed, State::Norm, 1),
        (Kind::Updated, State::Acked, 1),
        (Kind::Cleared, State::Norm, 1),
        (Kind::Raised, State::Unack, 2),
    ];
    assert_eq!(kinds(&world.told), story);
}

#[test]
fn a_quiet_alarm_comes_and_goes_with_its_rule_unheard_and_keeps_counting() {
    let level = point("panel/level");
    let mut world = world(vec![high(80.0)]);
    for value in [81, 70, 81, 70] {
        world.read(&level, Ok(Value::Integer(value)));
    }
    world.acknowledge(&alarm("panel/level/test"), 2).expect("it stands");
    let told = world.told.len();
    world.restart(Some(vec![]));
    world.restart(Some(vec![high(80.0)]));
    assert_eq!(world.told.len(), told);
    world.read(&level, Ok(Value::Integer(81)));
    assert_eq!(kinds(&world.told[told..]), [(Kind::Raised, State::Unack, 3)]);
}

#[test]
fn a_standing_alarm_is_updated_when_its_rule_says_something_else() {
    let level = point("panel/level");
    let mut world = world(vec![high(80.0)]);
    world.read(&level, Ok(Value::Integer(85)));
    world.restart(None);
    let changed = Rule { severity: Severity::Critical, ..high(90.0) };
    world.restart(Some(vec![changed.clone()]));
    world.restart(Some(vec![changed]));
    assert_eq!(kinds(&world.told), [(Kind::Raised, State::Unack, 1), (Kind::Updated, State::Unack, 1)]);
    let updated = world.told.last().expect("just told");
    assert_eq!(
        (updated.severity, updated.limit, &updated.value),
        (Severity::Critical, Some(90.0), &Some(Value::Integer(85)))
    );
    world.read(&level, Ok(Value::Integer(85)));
    assert_eq!(world.told.last().map(|t| (t.kind, t.severity)), Some((Kind::Cleared, Severity::Critical)));
}

#[test]
fn what_is_latched_can_be_reset_when_the_rule_no_longer_latches() {
    let id = alarm("panel/level/test");
    let mut world = world(vec![high(80.0).latching()]);
    world.read(&point("panel/level"), Ok(Value::Integer(81)));
    world.read(&point("panel/level"), Ok(Value::Integer(70)));
    world.restart(Some(vec![high(80.0)]));
    assert_eq!(world.reset(&id), Err(Refusal::NotAcknowledged));
    world.acknowledge(&id, 1).expect("it stands");
    world.reset(&id).expect("latched and acknowledged");
    assert_eq!(world.engine.alarm(&id).map(AlarmState::state), Some(State::Norm));
}

#[test]
fn a_removed_state_is_forgotten_after_thirty_days_of_a_trusted_clock() {
    let untrusted = |mono_ms, days| Now { wall_ms: days * DAY_MS, trusted: false, ..now(mono_ms) };
    let trusted = |mono_ms, days| Now { wall_ms: days * DAY_MS, ..now(mono_ms) };
    let id = alarm("panel/level/test");
    let (mut engine, _) = Engine::new(vec![high(80.0)], units, vec![], vec![], untrusted(0, 0));
    let raised = engine.reading(&good("panel/level", Value::Integer(81), untrusted(1, 0)));
    assert_eq!(raised.transitions.len(), 1);
    let stored = vec![engine.alarm(&id).expect("raised").clone()];
    let (mut engine, facts) = Engine::new(vec![], units, stored, vec![], untrusted(0, 0));
    assert_eq!(kinds(&facts.transitions), [(Kind::Removed, State::Norm, 1)]);
    assert_eq!(engine.alarm(&id).map(|kept| (kept.configured, kept.last.state)), Some((false, State::Unack)));

    let hour = 3_600_000;
    assert_eq!(engine.next_deadline(), Some(hour));
    assert!(engine.tick(untrusted(hour, 20_000)).is_empty(), "an untrusted clock proves nothing");
    let stamped = engine.tick(trusted(2 * hour, 20_000));
    assert_eq!((stamped.changed, stamped.forgotten), (vec![id.clone()], vec![]), "counts from here");
    assert!(engine.tick(trusted(3 * hour, 20_029)).is_empty());
    assert_eq!(engine.tick(trusted(4 * hour, 20_030)).forgotten, std::slice::from_ref(&id));
    assert_eq!((engine.alarm(&id), engine.next_deadline()), (None, None));
}

#[test]
fn a_pattern_makes_alarms_as_its_points_are_heard_and_remembers_them() {
    let mut rules = vec![
        named("intrusion", "+/intrusion/#", Condition::Is(true.into())),
        named("silent", "+/intrusion/#", Condition::Stale(Duration::from_secs(60))),
    ];
    let mut world = world(rules.clone());
    let pond = point("cam07/intrusion/kolam");
    world.read(&point("cam07/line/gate"), Ok(true.into()));
    world.read(&pond, Ok(false.into()));
    world.read(&pond, Ok(true.into()));
    world.restart(None);
    world.pass_to(60_000);
    let told: Vec<_> = world.told.iter().map(|t| t.alarm.as_str()).collect();
    assert_eq!(told, ["cam07/intrusion/kolam/intrusion", "cam07/intrusion/kolam/silent"]);
    rules.remove(0);
    world.restart(Some(rules));
    assert_eq!(world.told.last().map(|t| t.kind), Some(Kind::Removed));
    assert_eq!(world.engine.alarms().count(), 1);
}

#[test]
fn a_press_during_a_restart_is_noticed_behind_a_pattern_too() {
    let mut world = world(vec![named("panic", "+/button", Condition::Increments)]);
    world.read(&point("tower/button"), Ok(Value::Integer(4)));
    world.restart(None);
    world.read(&point("tower/button"), Ok(Value::Integer(5)));
    assert_eq!(kinds(&world.told), [(Kind::Raised, State::Unack, 1)]);
}

#[test]
fn one_point_may_have_many_alarms_and_of_two_with_one_name_the_first_counts() {
    let above = |limit| Condition::Above { limit, deadband: 0.0 };
    let mut world = world(vec![
        named("warm", "+/temp", above(30.0)),
        named("hot", "panel/temp", above(40.0)),
        named("hot", "+/temp", above(10.0)),
    ]);
    world.read(&point("panel/temp"), Ok(Value::Integer(20)));
    assert_eq!(world.told.len(), 0);
    world.read(&point("panel/temp"), Ok(Value::Integer(50)));
    let mut told: Vec<_> = world.told.iter().map(|t| t.alarm.as_str()).collect();
    told.sort_unstable();
    assert_eq!(told, ["panel/temp/hot", "panel/temp/warm"]);
}

#[test]
fn the_communication_alarm_keeps_its_own_name() {
    let device = Segment::parse("panel").expect("a name");
    let rule = Rule {
        naming: Naming::Fixed(AlarmId::communication(&device)),
        ..named("communication", "panel/communication", Condition::Is(true.into()))
    };
    let mut world = world(vec![rule]);
    world.read(&point("panel/communication"), Ok(true.into()));
    world.restart(None);
    world.read(&point("panel/communication"), Ok(false.into()));
    let told: Vec<_> = world.told.iter().map(|t| (t.alarm.as_str(), t.kind)).collect();
    assert_eq!(told, [("panel/communication", Kind::Raised), ("panel/communication", Kind::Cleared)]);
}

#[test]
fn a_talkative_camera_cannot_fill_the_memory() {
    let rules = vec![named("seen", "+/#", Condition::Is(true.into()))];
    let (mut engine, _) = Engine::new(rules, units, vec![], vec![], now(0));
    for i in 0..ALARMS_MAX + 3 {
        let facts = engine.reading(&good(&format!("cam/object/{i}"), true, now(1)));
        assert_eq!(facts.transitions.len(), usize::from(i < ALARMS_MAX));
    }
    assert_eq!((engine.refused(), engine.count(State::Unack)), (3, ALARMS_MAX));
    let _again = engine.reading(&good(&format!("cam/object/{ALARMS_MAX}"), true, now(2)));
    assert_eq!(engine.refused(), 3, "a refused alarm is counted once");
}

#[test]
fn a_test_alarm_is_raised_and_cleared_marked_and_counted() {
    let mut world = world(vec![]);
    let message = Texts { id: Some("Alarm uji".into()), en: None };
    for _ in 0..2 {
        let facts = world.engine.test(Severity::Critical, message.clone(), "teknisi".into(), world.now());
        assert!(facts.transitions.iter().all(|t| t.test && t.by.as_deref() == Some("teknisi")));
        world.keep(facts);
        world.restart(None);
    }
    let story = [
        (Kind::Raised, State::Unack, 1),
        (Kind::Cleared, State::Norm, 1),
        (Kind::Raised, State::Unack, 2),
        (Kind::Cleared, State::Norm, 2),
    ];
    assert_eq!(kinds(&world.told), story);
    assert_eq!(world.acknowledge(&AlarmId::test(), 2), Err(Refusal::NotStanding));
    assert_eq!(world.acknowledge(&alarm("gateway/other"), 2), Err(Refusal::UnknownAlarm));
}

#[test]
fn a_transition_carries_the_words_of_the_reading_that_caused_it() {
    let (mut engine, _) = Engine::new(vec![high(80.0).on_delay(10)], units, vec![], vec![], now(0));
    let evidence = Arc::new(Evidence { rule: Some("Zona Kolam".into()), ..Evidence::default() });
    let causing = Reading {
        evidence: Some(evidence.clone()),
        source_time_ms: Some(7),
        ..good("panel/level", Value::Integer(81), now(1_000))
    };
    assert!(engine.reading(&causing).is_empty());
    assert!(engine.reading(&good("panel/level", Value::Integer(95), now(2_000))).is_empty());
    let raised = engine.tick(now(15_000)).transitions.remove(0);
    assert_eq!(raised.at, now(11_000), "the end of the delay, however late it is served");
    assert_eq!((raised.value, raised.source_time_ms), (Some(Value::Integer(81)), Some(7)));
    assert_eq!((raised.unit.as_deref(), raised.limit), (Some("cm"), Some(80.0)));
    let id = alarm("panel/level/test");
    let seen = engine.acknowledge(&id, 1, "operator".into(), Some("siap".into()), now(16_000)).expect("it stands");
    assert_eq!(seen.transitions[0].by.as_deref(), Some("operator"));
    assert_eq!(seen.transitions[0].comment.as_deref(), Some("siap"));
    assert_eq!((seen.transitions[0].at, seen.transitions[0].source_time_ms), (now(16_000), None));
    let cleared = engine.reading(&good("panel/level", Value::Integer(70), now(17_000))).transitions.remove(0);
    assert_eq!((cleared.by, cleared.comment, cleared.value), (None, None, Some(Value::Integer(70))));
    assert_eq!(cleared.evidence, Some(evidence), "who comes late still sees what it was");
}

#[test]
fn silence_has_no_value_and_says_why() {
    let (mut engine, _) =
        Engine::new(vec![rule(Condition::Stale(Duration::from_secs(1)))], units, vec![], vec![], now(0));
    assert!(engine.reading(&good("panel/level", Value::Integer(81), now(10))).is_empty());
    let raised = engine.tick(now(1_010)).transitions.remove(0);
    assert_eq!((raised.value, raised.quality), (None, Quality::Bad));
    assert_eq!(raised.reason, Some(crate::reading::Reason::Stale));
}

#[test]
fn deadlines_are_served_in_their_order_before_a_later_reading() {
    let delayed = |name, point, seconds| Rule {
        on_delay: Duration::from_secs(seconds),
        ..named(name, point, Condition::Is(true.into()))
    };
    let rules = vec![delayed("slow", "a/one", 9), delayed("fast", "a/two", 3), delayed("now", "a/three", 0)];
    let (mut engine, _) = Engine::new(rules, units, vec![], vec![], now(0));
    assert!(engine.reading(&good("a/one", true, now(0))).is_empty());
    assert!(engine.reading(&good("a/two", true, now(0))).is_empty());
    assert_eq!(engine.next_deadline(), Some(3_000));
    let facts = engine.reading(&good("a/three", true, now(20_000)));
    let told: Vec<_> = facts.transitions.iter().map(|t| (t.alarm.as_str(), t.at.mono_ms)).collect();
    assert_eq!(told, [("a/two/fast", 3_000), ("a/one/slow", 9_000), ("a/three/now", 20_000)]);
    assert_eq!(engine.next_deadline(), None);
}

#[test]
fn ten_thousand_flapping_points_end_where_the_field_ends() {
    let rules = vec![named("on", "+/#", Condition::Is(true.into())).off_delay(5)];
    let (mut engine, _) = Engine::new(rules, units, vec![], vec![], now(0));
    let points: Vec<_> = (0..10_000).map(|i| point(&format!("panel/p{i}"))).collect();
    let mut told = 0;
    for second in 0..20_u64 {
        for (i, point) in points.iter().enumerate() {
            let value = (second + i as u64).is_multiple_of(2);
            told += engine.reading(&Reading::good(point.clone(), value.into(), now(second * 1_000))).transitions.len();
        }
    }
    assert_eq!(told, points.len(), "the off-delay bridges the flapping: one alarm each");
    assert_eq!(engine.tick(now(60_000)).transitions.len(), points.len() / 2);
    assert_eq!((engine.count(State::Unack), engine.count(State::Rtnun)), (5_000, 5_000));
}
