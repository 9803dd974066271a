//! What one step writes, and who hears of it when.

use std::time::Duration;

use super::*;
use crate::{
    alarm::{
        Severity,
        rule::{Acknowledgement, Condition, Latch, Naming, Selector},
    },
    config::{Report, points::About},
    reading::{Segment, Value},
    record::{Refused, StartReason},
};

pub(super) fn at(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: 1_795_262_671_220 + i64::try_from(mono_ms).expect("small"), trusted: true }
}

pub(super) fn epoch(letter: char) -> Epoch {
    Epoch::parse(&letter.to_string().repeat(Epoch::LEN)).expect("an epoch")
}

pub(super) fn point(name: &str) -> PointId {
    PointId::parse(name).expect("a point")
}

fn open_rule() -> Rule {
    Rule {
        name: Segment::parse("open").expect("a name"),
        select: Selector::parse("panel/door").expect("a point"),
        naming: Naming::PointAndRule,
        when: Condition::Is(Value::Bool(true)),
        severity: Severity::High,
        on_delay: Duration::ZERO,
        off_delay: Duration::ZERO,
        latch: Latch::NonLatching,
        acknowledgement: Acknowledgement::Required,
        message: Texts::default(),
    }
}

pub(super) fn core(started: Option<Started>) -> (Core, Step) {
    core_of(recovered(started))
}

fn recovered(started: Option<Started>) -> Recovered {
    let mut boots = Boots::default();
    boots.enter(&BootId::new("boot"));
    Recovered {
        epoch: epoch('a'),
        epoch_replaced: false,
        started,
        next: Next { a: 7, t: 3 },
        alarms: Vec::new(),
        counts: Vec::new(),
        answers: Vec::new(),
        boots,
        unproven: Vec::new(),
        untold: Vec::new(),
    }
}

fn core_of(recovered: Recovered) -> (Core, Step) {
    let boot = BootId::new("boot");
    let about = About { unit: None, report: Report::Change { deadband: 0.0 } };
    let points = Points::for_tests(vec![(Selector::parse("meter/#").expect("a pattern"), about)]);
    Core::new(recovered, vec![open_rule()], points, 60_000, boot, at(0))
}

pub(super) fn door(open: bool, mono_ms: u64) -> Input {
    Input::Readings(vec![Reading::good(point("panel/door"), open.into(), at(mono_ms))])
}

#[test]
fn what_the_center_may_not_know_is_told_again_in_a_new_epoch() {
    let (mut before, _) = core(None);
    let state = before.apply(vec![door(true, 40_000)], at(40_000)).commit.alarms.pop().expect("raised");
    let started = Started { reason: StartReason::InMemory, replaces: None };
    let (epoch, next) = (epoch('b'), Next { a: 1, t: 1 });
    let untold = vec![state.last.alarm.clone(), AlarmId::parse("panel/gone/open").expect("a name")];
    let taken_up =
        Recovered { epoch: epoch.clone(), next, alarms: vec![state.clone()], untold, ..recovered(Some(started)) };
    let (mut core, first) = core_of(taken_up);
    let [_, again] = &first.commit.records[..] else { panic!("{:?}", first.commit.records) };
    assert_eq!((&again.epoch, again.sequence, again.recorded), (&epoch, 2, at(40_000)));
    assert_eq!(again.body, Body::Alarm(Box::new(state.last)));
    let told = first.commit.alarms[0].told.as_ref().expect("told again");
    assert_eq!((&told.epoch, told.sequence), (&epoch, 2));
    let cleared = core.apply(vec![door(false, 50_000)], at(50_000)).commit.records;
    assert_eq!(cleared.len(), 1, "it stood");
}

fn message(name: &str, value: f64, mono_ms: u64) -> Input {
    let readings = vec![Reading::good(point(name), Value::Float(value), at(mono_ms))];
    Input::Message { readings, durable: oneshot::channel().0 }
}

fn command(id: &str, action: Action) -> Input {
    let request = Request { id: id.into(), by: "op".into(), comment: None, expires_ms: None, session: None, action };
    Input::Command { request, session: 1, answer: oneshot::channel().0 }
}

fn acknowledge(id: &str, occurrence: u64, epoch: Option<Epoch>) -> Input {
    let alarm = AlarmId::parse("panel/door/open").expect("an alarm");
    command(id, Action::Acknowledge { alarm, occurrence, epoch })
}

/// `a-7 raised`, one a record.
pub(super) fn said(step: &Step) -> Vec<String> {
    let word = |body: &Body| match body {
        Body::Alarm(transition) => transition.kind.as_str().to_owned(),
        Body::Stream(StreamEvent::Started { reason, .. }) => format!("started {reason:?}"),
        Body::Stream(StreamEvent::Lost { ranges, .. }) => format!("lost {ranges:?}"),
        Body::Command(result) => format!("did {}", result.command),
        Body::Telemetry(batch) => format!("{} readings", batch.readings.len()),
    };
    let records = step.commit.records.iter().chain(&step.telemetry);
    records.map(|r| format!("{}-{} {}", r.lane.as_str(), r.sequence, word(&r.body))).collect()
}

fn answers(step: &Step) -> Vec<Result<(), Refusal>> {
    step.answers.iter().map(|(_, answer)| answer.code.map_or(Ok(()), Err)).collect()
}

#[test]
fn records_are_numbered_without_gaps_and_carried_with_the_state_they_lead_to() {
    let (mut core, first) = core(None);
    assert_eq!(said(&first), [""; 0]);
    let step = core.apply(vec![door(true, 1), door(false, 2), door(true, 3)], at(3));
    assert_eq!(said(&step), ["a-7 raised", "a-8 cleared", "a-9 raised"]);
    let [state] = &step.commit.alarms[..] else { panic!("one alarm, one state: {:?}", step.commit.alarms) };
    assert_eq!((state.last.state, state.last.occurrence), (State::Unack, 2));
    assert_eq!(state.told.as_ref().map(|told| told.sequence), Some(9));
    assert_eq!(said(&core.apply(vec![door(true, 4)], at(4))), [""; 0], "nothing changed");
}

#[test]
fn a_new_epoch_is_declared_first() {
    let replaces = Some((epoch('z'), Next { a: 5, t: 1 }));
    let (_, first) = core(Some(Started { reason: StartReason::OtherMachine, replaces }));
    assert_eq!(said(&first), ["a-7 started OtherMachine"]);
    let Body::Stream(StreamEvent::Started { last, .. }) = &first.commit.records[0].body else { panic!("{first:?}") };
    assert_eq!(*last, Some(LastKnown { a: 4, t: 0 }));
}

#[test]
fn a_publisher_waits_for_what_its_message_touched() {
    let (mut core, _) = core(None);
    let step = core.apply(vec![message("meter/volts", 230.0, 1), message("panel/temp", 20.0, 1)], at(1));
    assert_eq!((step.after_commit.len(), step.after_telemetry.len()), (1, 1));
    assert_eq!(said(&step), ["t-3 1 readings"], "somebody waits for it: it is stored at once");
    let repeated = core.apply(vec![message("meter/volts", 230.0, 2)], at(2));
    assert_eq!((repeated.after_commit.len(), said(&repeated).len()), (1, 0), "nothing new to store");
}

#[test]
fn a_command_acts_once_and_is_answered_the_same() {
    let (mut core, _) = core(None);
    core.apply(vec![door(true, 1)], at(1));
    let step = core.apply(vec![acknowledge("c1", 1, None), acknowledge("c1", 1, None)], at(2));
    assert_eq!(said(&step), ["a-8 acknowledged", "a-9 did acknowledge"]);
    assert_eq!(answers(&step), [Ok(()), Ok(())]);
    assert_eq!(step.commit.answers.len(), 1);
    let step = core.apply(vec![acknowledge("c2", 1, None), acknowledge("c3", 2, None)], at(3));
    assert_eq!(answers(&step), [Err(Refusal::AlreadyAcknowledged), Err(Refusal::OtherOccurrence)]);
    assert_eq!(said(&step), [""; 0], "what was refused changes nothing");
}

#[test]
fn a_rolled_back_store_begins_an_epoch_and_then_acknowledgements_must_name_it() {
    let (mut core, _) = core(None);
    core.apply(vec![door(true, 1)], at(1));
    let known = LastKnown { a: 90, t: 0 };
    let rolled_back = Input::RolledBack { known, epoch: epoch('b'), durable: oneshot::channel().0 };
    let step = core.apply(vec![rolled_back], at(2));
    assert_eq!(said(&step), ["a-1 started RolledBack"]);
    let Body::Stream(StreamEvent::Started { replaces, last, .. }) = &step.commit.records[0].body else { panic!() };
    assert_eq!((replaces.clone(), *last), (Some(epoch('a')), Some(LastKnown { a: 90, t: 2 })));
    let asked = ["old", "none", "new"].into_iter().zip([Some(epoch('a')), None, Some(epoch('b'))]);
    let step = core.apply(asked.map(|(id, epoch)| acknowledge(id, 1, epoch)).collect(), at(3));
    assert_eq!(answers(&step), [Err(Refusal::OtherEpoch), Err(Refusal::OtherEpoch), Ok(())]);
}

#[test]
fn a_record_refused_for_good_is_declared() {
    let (mut core, _) = core(None);
    let refused = Refused { id: "x".into(), subject: "panel/door/open".into(), severity: None };
    let (lane, durable) = (Lane::Telemetry, oneshot::channel().0);
    let step = core.apply(vec![Input::Refused { lane, epoch: epoch('a'), sequence: 2, refused, durable }], at(1));
    assert_eq!(said(&step), ["a-7 lost [(2, 2)]"]);
    assert_eq!(step.after_commit.len(), 1);
}

#[test]
fn what_is_given_up_is_declared_in_records_that_fit_the_store() {
    let (mut core, _) = core(None);
    let ranges: Vec<(u64, u64)> = (0..170).map(|i| u64::MAX - 1_000 + 3 * i).map(|n| (n, n + 1)).collect();
    let (lane, reason, certain) = (Lane::Telemetry, LossReason::Quota, Certainty::Bounded);
    let lost = Input::Lost {
        lane,
        epoch: epoch('z'),
        ranges: ranges.clone(),
        reason,
        certain,
        present: epoch('a'),
        durable: oneshot::channel().0,
    };
    let step = core.apply(vec![lost], at(1));
    assert_eq!(step.after_commit.len(), 1);
    let mut declared: Vec<(u64, u64)> = Vec::new();
    for record in &step.commit.records {
        let stored = serde_json::to_vec(record).expect("JSON").len();
        assert!(stored <= crate::record::RECORD_SIZE_MAX, "{stored} bytes");
        let Body::Stream(StreamEvent::Lost { epoch: of, lane, ranges, count, reason, certain, refused }) = &record.body
        else {
            panic!("{record:?}")
        };
        assert_eq!(
            (of, *lane, *reason, *certain, refused),
            (&epoch('z'), Lane::Telemetry, LossReason::Quota, false, &None)
        );
        assert_eq!(*count, 2 * ranges.len() as u64);
        declared.extend(ranges);
    }
    assert_eq!(declared, ranges);
}

#[test]
fn a_summary_gets_a_number_of_now_and_keeps_its_own_times() {
    let (mut core, _) = core(None);
    let readings = Vec::new();
    let replaces = Some(crate::record::Replaces { epoch: epoch('z'), ranges: vec![(1, 9)] });
    let batch = crate::record::Batch { device: Segment::parse("meter").expect("a name"), readings, replaces };
    let summary = Summarised { boot: BootId::new("earlier"), recorded: at(5), batch: batch.clone() };
    let step = core.apply(
        vec![Input::Summaries { summaries: vec![summary], present: epoch('a'), durable: oneshot::channel().0 }],
        at(9),
    );
    assert_eq!((said(&step).as_slice(), step.after_telemetry.len()), (&["t-3 0 readings".to_owned()][..], 1));
    let record = &step.telemetry[0];
    assert_eq!((&record.epoch, &record.boot, record.recorded), (&epoch('a'), &BootId::new("earlier"), at(5)));
    assert_eq!(record.body, Body::Telemetry(batch));
}

#[test]
fn standing_alarms_are_listed_and_points_read() {
    let (mut core, _) = core(None);
    core.apply(vec![door(true, 1)], at(1));
    let read = |name| command("r", Action::Read { point: point(name) });
    let list = command("l", Action::Alarms { cursor: None });
    let step = core.apply(vec![list, read("panel/door"), read("panel/nothing")], at(2));
    assert_eq!(answers(&step), [Ok(()), Ok(()), Err(Refusal::UnknownPoint)]);
    let data: Vec<_> = step.answers.iter().filter_map(|(_, answer)| answer.data.clone()).collect();
    assert_eq!((&data[0]["alarms"][0]["alarm"], &data[0]["cursor"]), (&json!("panel/door/open"), &json!(null)));
    assert_eq!((&data[1]["value"], &data[1]["quality"]), (&json!(true), &json!("good")));
}

#[test]
fn what_waits_at_the_end_is_stored() {
    let (mut core, _) = core(None);
    let readings = vec![Reading::good(point("meter/volts"), Value::Float(1.0), at(1))];
    assert_eq!(said(&core.apply(vec![Input::Readings(readings)], at(1))), [""; 0]);
    assert_eq!(said(&core.last_step(at(2))), ["t-3 1 readings"]);
}
