//! Stories of one alarm, told as timelines: what the point said, and where the alarm stood after it.
//!
//! Every story is told three times: with the engine served promptly, with it served late, and with a wall clock that
//! jumps by years at every line. All three must make the same transitions.

use std::time::Duration;

use super::{Service, Wall, World, high, point, rule};
use crate::{
    alarm::{
        AlarmId, Transition,
        rule::{Condition, Rule},
    },
    clock::Now,
    command::Refusal,
    reading::{Quality, Value},
};

fn low(limit: f64) -> Rule {
    rule(Condition::Below { limit, deadband: 0.0 })
}

fn is(value: impl Into<Value>) -> Rule {
    rule(Condition::Is(value.into()))
}

/// Tells the story three times. A line is time, event, and the state after it (`#` occurrence, `+latched`) or the
/// refusal; the rest is comment. Events: a value, `bad`, `uncertain`, `ack` (`ack#n`), `reset`, `tick`, `restart`.
fn check(rule: &Rule, story: &str) {
    let mut told = Vec::new();
    for (service, wall) in
        [(Service::Prompt, Wall::Steady), (Service::Late, Wall::Steady), (Service::Prompt, Wall::Jumping)]
    {
        let mut world = World::new(vec![rule.clone()], service, wall);
        for line in story.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let mut word = || words.next().unwrap_or_else(|| panic!("time, event, state: `{line}`"));
            let (time, event, expected) = (word(), word(), word());
            world.pass_to(milliseconds(time));
            let said = play(&mut world, event);
            let with_occurrence = expected.contains('#');
            let found = said.map_or_else(|refusal| refusal.to_string(), |()| standing(&world, with_occurrence));
            assert_eq!(found, expected, "{service:?} {wall:?}: {line}");
        }
        let without_wall = |t: &Transition| Transition { at: Now { wall_ms: 0, trusted: false, ..t.at }, ..t.clone() };
        told.push(world.told.iter().map(without_wall).collect::<Vec<_>>());
    }
    assert!(told.iter().all(|run| *run == told[0]), "promptness or the wall clock made a difference: {told:#?}");
}

fn milliseconds(time: &str) -> u64 {
    let number = |digits: &str| digits.parse::<u64>().unwrap_or_else(|_| panic!("time `{time}`"));
    match (time.strip_suffix("ms"), time.strip_suffix('s')) {
        (Some(digits), _) => number(digits),
        (None, Some(digits)) => number(digits) * 1_000,
        (None, None) => panic!("time `{time}`"),
    }
}

fn play(world: &mut World, event: &str) -> Result<(), Refusal> {
    let (point, alarm) = (point("panel/level"), alarm());
    match event.split_once('#').map_or((event, None), |(word, n)| (word, n.parse().ok())) {
        ("ack", occurrence) => {
            let present = world.engine.alarm(&alarm).map_or(0, |kept| kept.last.occurrence);
            return world.acknowledge(&alarm, occurrence.unwrap_or(present));
        }
        ("reset", _) => return world.reset(&alarm),
        ("tick", _) => world.tick(),
        ("restart", _) => world.restart(None),
        ("bad", _) => world.read(&point, Err(Quality::Bad)),
        ("uncertain", _) => world.read(&point, Err(Quality::Uncertain)),
        (text, _) => world.read(&point, Ok(value(text))),
    }
    Ok(())
}

fn value(text: &str) -> Value {
    match (text.parse(), text.parse(), text.parse()) {
        (Ok(bool), _, _) => Value::Bool(bool),
        (_, Ok(integer), _) => Value::Integer(integer),
        (_, _, Ok(float)) => Value::Float(float),
        _ => Value::Text(text.into()),
    }
}

fn alarm() -> AlarmId {
    AlarmId::parse("panel/level/test").expect("an alarm")
}

fn standing(world: &World, with_occurrence: bool) -> String {
    let Some(kept) = world.engine.alarm(&alarm()) else { return "NORM".into() };
    let latched = if kept.last.latched { "+latched" } else { "" };
    let occurrence = if with_occurrence { format!("#{}", kept.last.occurrence) } else { String::new() };
    format!("{}{latched}{occurrence}", kept.last.state.as_str())
}

#[test]
fn a_high_level_is_raised_after_its_delay_and_ends_below_the_deadband() {
    check(
        &high(80.0).deadband(5.0).on_delay(10),
        "
          0s  79   NORM
          1s  81   NORM
         11s  81   UNACK     the delay is over
         20s  78   UNACK     inside the deadband
         21s  74   RTNUN
         30s  ack  NORM
         31s  78   NORM      inside the deadband, from below
         32s  80   NORM      the limit itself is not above it
         33s  80.1 NORM
         43s  tick UNACK#2   nothing more was said, and the delay is over
         44s  75   RTNUN     the end of the deadband is outside it
        ",
    );
}

#[test]
fn a_low_level_is_the_mirror_of_a_high_one() {
    check(
        &low(10.0).deadband(2.0).off_delay(5),
        "
          0s  10   NORM
          1s  9.9  UNACK#1
          2s  11.9 UNACK
          3s  12   UNACK     the off-delay begins
          7s  12   UNACK
          8s  12   RTNUN
          9s  9    UNACK#2
        ",
    );
}

#[test]
fn a_condition_that_ends_within_its_delay_was_nothing() {
    check(
        &is(true).on_delay(10),
        "
          0s  true  NORM
        9999ms false NORM
         11s  tick  NORM
         12s  true  NORM
         21s  true  NORM
        21999ms tick NORM
         22s  tick  UNACK#1
         23s  false RTNUN#1
        ",
    );
}

#[test]
fn an_off_delay_bridges_a_chattering_contact() {
    check(
        &is(true).off_delay(5),
        "
          0s  true  UNACK#1
          1s  false UNACK
          5s  true  UNACK
          6s  false UNACK
         10s  tick  UNACK
         11s  tick  RTNUN#1
        ",
    );
}

#[test]
fn acknowledging_names_the_occurrence_and_works_once() {
    check(
        &is(true),
        "
          0s  ack   unknown-alarm         it never stood
          1s  true  UNACK#1
          2s  ack#0 other-occurrence
          3s  ack#1 ACKED
          4s  ack#1 already-acknowledged
          5s  true  ACKED#1
          6s  false NORM
          7s  ack#1 not-standing
          8s  true  UNACK#2
          9s  ack#1 other-occurrence      a late answer to an older one
         10s  false RTNUN#2
         11s  true  UNACK#3               back before anyone saw it
         12s  false RTNUN#3
         13s  ack#2 other-occurrence
         14s  ack#3 NORM#3
         15s  reset not-standing
        ",
    );
}

#[test]
fn where_no_one_must_acknowledge_it_returns_by_itself() {
    check(
        &is(true).unasked(),
        "
          0s  true  UNACK#1
          1s  false NORM
          2s  true  UNACK#2
          3s  ack   ACKED      who wants to may
          4s  false NORM#2
        ",
    );
}

#[test]
fn a_latch_waits_for_the_acknowledgement_and_then_for_the_reset() {
    check(
        &is(true).latching(),
        "
          0s  true  UNACK#1
          1s  reset still-active
          2s  false UNACK+latched#1
          3s  reset not-acknowledged
          4s  ack   ACKED+latched#1
          5s  true  UNACK#2          it came back: new, and not acknowledged
          6s  ack   ACKED#2
          7s  reset still-active
          8s  false ACKED+latched#2
          9s  ack   already-acknowledged
         10s  reset NORM#2
         11s  true  UNACK#3
         12s  false UNACK+latched#3
         13s  true  UNACK#4
        ",
    );
    check(
        &is(true).latching().unasked(),
        "
          0s  true  UNACK
          1s  false UNACK+latched
          2s  reset NORM
        ",
    );
    check(
        &is(true),
        "
          0s  true  UNACK
          1s  reset not-latched
          2s  ack   ACKED
          3s  reset not-latched
        ",
    );
}

#[test]
fn a_latch_with_delays_measures_both() {
    check(
        &high(5.0).on_delay(3).off_delay(2).latching(),
        "
          0s  6    NORM
          3s  6    UNACK
          4s  4    UNACK
          6s  tick UNACK+latched#1
          7s  6    UNACK+latched#1   its delay runs
         10s  6    UNACK#2
        ",
    );
}

#[test]
fn bad_quality_neither_raises_nor_clears() {
    check(
        &high(80.0),
        "
          0s  bad       NORM
          1s  uncertain NORM
          2s  81        UNACK#1
          3s  bad       UNACK
          4s  uncertain UNACK
          5s  ack       ACKED
          6s  bad       ACKED
          7s  82        ACKED#1
          8s  bad       ACKED
          9s  70        NORM
        ",
    );
}

#[test]
fn a_bad_reading_stops_a_delay_and_a_confirming_one_lets_it_run_on() {
    check(
        &high(80.0).on_delay(10).off_delay(10),
        "
          0s  81   NORM
          6s  bad  NORM
         60s  tick NORM      the four seconds left do not run while nothing is known
         61s  81   NORM
         64s  bad  NORM
         65s  bad  NORM
         70s  82   NORM
         71s  tick UNACK     6 + 3 + 1 confirmed seconds
         72s  70   UNACK
         80s  bad  UNACK
         90s  70   UNACK
         92s  tick RTNUN
        100s  81   RTNUN
        105s  bad  RTNUN
        110s  79   RTNUN     not confirmed: the delay is gone
        111s  81   RTNUN
        120s  tick RTNUN
        121s  tick UNACK#2
        ",
    );
}

#[test]
fn a_value_of_the_wrong_kind_confirms_nothing() {
    check(
        &high(80.0),
        "
          0s  81    UNACK
          1s  rusak UNACK
          2s  79    RTNUN
          3s  rusak RTNUN
        ",
    );
    check(
        &rule(Condition::Is(Value::Text("OPEN".into()))),
        "
          0s  CLOSED NORM
          1s  OPEN   UNACK
          2s  17     RTNUN
        ",
    );
}

#[test]
fn a_pulse_counter_raises_at_each_step_from_quiet() {
    check(
        &rule(Condition::Increments).off_delay(5),
        "
          0s  100   NORM      the first count is the base
          1s  100   NORM
          2s  101   UNACK#1
          3s  101   UNACK
          4s  105   UNACK#1   pressed again: it holds on
          5s  105   UNACK
          9s  105   UNACK
         10s  105   RTNUN#1
         11s  106   UNACK#2
         12s  ack   ACKED
         13s  bad   ACKED
         14s  107   ACKED#2
         15s  107   ACKED
         20s  tick  NORM
         21s  3     NORM      a device that was reset invents nothing
         22s  4     UNACK#3
        ",
    );
}

#[test]
fn a_pulse_counter_wraps_and_may_skip() {
    check(
        &rule(Condition::Increments),
        "
          0s  65534 NORM
          1s  65535 UNACK#1
          2s  1     UNACK#1   a step every reading
          3s  1     RTNUN#1
          4s  bad   RTNUN
          5s  9     UNACK#2   counted while the wire was bad
        ",
    );
}

#[test]
fn a_press_during_a_restart_is_noticed() {
    check(
        &rule(Condition::Increments),
        "
          0s  7       NORM
          1s  restart NORM
          2s  7       NORM
          3s  restart NORM
          4s  8       UNACK#1
          5s  restart UNACK#1
          6s  8       RTNUN#1
          7s  restart RTNUN#1
          8s  8       RTNUN#1
          9s  10      UNACK#2
        ",
    );
}

#[test]
fn silence_is_an_alarm_and_a_refusal_to_answer_is_silence() {
    check(
        &rule(Condition::Stale(Duration::from_secs(60))),
        "
          0s  1         NORM
         59s  bad       NORM
         60s  tick      UNACK#1   a timeout is no sign of life
         61s  bad       UNACK
         62s  uncertain UNACK
         63s  2         RTNUN#1
         64s  ack       NORM
        122s  3         NORM
        181s  tick      NORM
        182s  tick      UNACK#2
        ",
    );
    check(
        &rule(Condition::Stale(Duration::from_secs(60))).on_delay(5).off_delay(5),
        "
         60s  tick      NORM      silent from the start on
         65s  tick      UNACK
         66s  1         UNACK
         71s  tick      RTNUN
        ",
    );
}

#[test]
fn bad_quality_can_itself_be_the_alarm() {
    check(
        &rule(Condition::Bad).on_delay(10).unasked(),
        "
          0s  uncertain NORM
          1s  bad       NORM
          5s  bad       NORM
          9s  21.5      NORM
         10s  bad       NORM
         15s  uncertain NORM      cannot tell: the delay stops
         20s  bad       NORM
         25s  tick      UNACK
         26s  uncertain UNACK
         27s  21.5      NORM
        ",
    );
}

#[test]
fn a_restart_changes_nothing_but_delays() {
    check(
        &high(80.0).deadband(5.0).on_delay(10).off_delay(10),
        "
          0s  81      NORM
          9s  restart NORM
         10s  81      NORM      its delay begins again
         19s  tick    NORM
         20s  tick    UNACK#1
         21s  restart UNACK#1
         22s  78      UNACK     inside the deadband: still active
         40s  tick    UNACK
         41s  74      UNACK
         50s  restart UNACK
         51s  74      UNACK
         60s  tick    UNACK
         61s  tick    RTNUN#1
         62s  restart RTNUN#1
         63s  ack     NORM
         64s  restart NORM#1
         65s  81      NORM
         75s  81      UNACK#2
         76s  ack     ACKED
         77s  restart ACKED#2
         78s  bad     ACKED
         79s  81      ACKED
        ",
    );
    check(
        &is(true).latching(),
        "
          0s  true    UNACK
          1s  false   UNACK+latched
          2s  restart UNACK+latched#1
          3s  ack     ACKED+latched
          4s  restart ACKED+latched#1
          5s  reset   NORM
          6s  restart NORM#1
        ",
    );
}
