//! What the pipeline decides: inputs and the time in, one [`Step`] out. Pure: no I/O, no clock, no waiting.

mod unproven;

use std::{collections::BTreeSet, sync::Arc};

use serde_json::json;
use tokio::sync::oneshot;

pub(super) use self::unproven::{Renumbered, Search};
use super::{Certainty, Input, Summarised, answers::Answers};
use crate::{
    alarm::{
        AlarmId, AlarmState, State, Texts, Told, Transition,
        engine::{Engine, Facts},
        rule::Rule,
    },
    clock::{BootId, Boots, Now},
    command::{Action, Answer, Outcome, Refusal, Request},
    config::points::Points,
    reading::{PointId, Reading},
    record::{Body, CommandResult, Epoch, Lane, LastKnown, LossReason, Record, StreamEvent},
    store::{Commit, Next, Recovered, Started, StoredAnswer, Unproven},
    telemetry::{Effect, Telemetry},
    text,
};

/// Alarms on one page of `alarms`: about 400 bytes each, so that the answer stays below 32 KiB.
const PAGE: usize = 40;

/// Runs of numbers in one declaration. The contract allows 100, which with the longest numbers would outgrow a record:
/// 80 pairs of 20 digits take 3.5 KiB.
const RANGES_MAX: usize = 80;

/// The state of the pipeline.
#[derive(Debug)]
pub struct Core {
    boot: BootId,
    epoch: Epoch,
    next: Next,
    /// Whether this epoch replaced another: then an acknowledgement must name it (DESIGN.md §5.4).
    epoch_replaced: bool,
    engine: Engine,
    telemetry: Telemetry,
    answers: Answers,
    boots: Boots,
    unproven: Vec<Unproven>,
}

/// What one step changes, and who hears of it when that is on stable storage.
#[derive(Debug, Default)]
pub struct Step {
    /// For the alarm chain.
    pub commit: Commit,
    /// For the telemetry chain.
    pub telemetry: Vec<Record>,
    /// Publishers whose message is done once `commit` is durable.
    pub after_commit: Vec<oneshot::Sender<()>>,
    /// Publishers whose message is done once `telemetry` is durable as well.
    pub after_telemetry: Vec<oneshot::Sender<()>>,
    /// Answers to give once `commit` is durable.
    pub answers: Vec<(oneshot::Sender<Answer>, Answer)>,
    /// Alarms whose state is to be written.
    touched: BTreeSet<AlarmId>,
    /// Points refused because too many are known.
    pub points_refused: u64,
}

impl Core {
    /// Takes up what the store held. The first step carries what the restart itself changed.
    #[must_use]
    pub fn new(
        recovered: Recovered,
        rules: Vec<Rule>,
        points: Points,
        interval_ms: u64,
        boot: BootId,
        now: Now,
    ) -> (Self, Step) {
        let units = points.clone();
        let units = move |point: &PointId| units.about(point).unit;
        let (engine, facts) = Engine::new(rules, units, recovered.alarms, recovered.counts, now);
        let mut core = Self {
            answers: Answers::restore(recovered.answers, &boot),
            boot,
            epoch: recovered.epoch,
            next: recovered.next,
            epoch_replaced: recovered.epoch_replaced,
            engine,
            telemetry: Telemetry::new(points, interval_ms, now),
            boots: recovered.boots,
            unproven: recovered.unproven,
        };
        let mut step = Step::default();
        if let Some(started) = recovered.started {
            core.record(&mut step, stream_started(started), now);
        }
        for alarm in recovered.untold {
            core.tell_again(&mut step, alarm, now);
        }
        core.note(&mut step, facts, now);
        core.finish(&mut step, now);
        (core, step)
    }

    /// Takes what arrived, and what is due.
    pub fn apply(&mut self, inputs: Vec<Input>, now: Now) -> Step {
        let mut step = Step::default();
        for input in inputs {
            match input {
                Input::Readings(readings) => {
                    for reading in &readings {
                        self.reading(&mut step, reading, now);
                    }
                }
                Input::Message { readings, durable } => {
                    let mut sampled = false;
                    for reading in &readings {
                        sampled |= self.reading(&mut step, reading, now) == Effect::Sampled;
                    }
                    let waiting = if sampled { &mut step.after_telemetry } else { &mut step.after_commit };
                    waiting.push(durable);
                }
                Input::Command { request, session: _, answer } => {
                    self.tick(&mut step, now);
                    let said = self.command(&mut step, &request, now);
                    step.answers.push((answer, said));
                }
                Input::Refused { lane, epoch, sequence, refused, durable } => {
                    let lost = StreamEvent::Lost {
                        epoch,
                        lane,
                        ranges: vec![(sequence, sequence)],
                        count: 1,
                        reason: LossReason::Refused,
                        certain: true,
                        refused: Some(refused),
                    };
                    self.record(&mut step, Body::Stream(lost), now);
                    step.after_commit.push(durable);
                }
                Input::Lost { present, .. } | Input::Summaries { present, .. } if present != self.epoch => {}
                Input::Lost { lane, epoch, ranges, reason, certain, present: _, durable } => {
                    self.lost(&mut step, Loss { lane, epoch: &epoch, ranges: &ranges, reason, certain }, now);
                    step.after_commit.push(durable);
                }
                Input::Summaries { summaries, present: _, durable } => {
                    for Summarised { boot, recorded, batch } in summaries {
                        self.record(&mut step, Body::Telemetry(batch), now);
                        let record = step.telemetry.last_mut().expect("recorded above");
                        (record.boot, record.recorded) = (boot, recorded);
                    }
                    step.after_telemetry.push(durable);
                }
                Input::RolledBack { known, epoch, durable } => {
                    self.begin_epoch(&mut step, epoch, known, now);
                    step.after_commit.push(durable);
                }
                Input::Proven { durable } => {
                    self.proven(&mut step);
                    step.after_commit.push(durable);
                }
            }
        }
        self.tick(&mut step, now);
        self.finish(&mut step, now);
        step
    }

    /// The last step before the end: every sample that waits is stored.
    pub fn last_step(&mut self, now: Now) -> Step {
        let mut step = Step::default();
        for batch in self.telemetry.take_changes() {
            self.record(&mut step, Body::Telemetry(batch), now);
        }
        step
    }

    /// When [`Core::apply`] must be called even if nothing arrives, in monotonic milliseconds.
    #[must_use]
    pub fn due_ms(&self) -> u64 {
        self.engine.next_deadline().map_or(self.telemetry.due_ms(), |ms| ms.min(self.telemetry.due_ms()))
    }

    /// Every alarm state.
    pub fn alarms(&self) -> impl Iterator<Item = &AlarmState> {
        self.engine.alarms()
    }

    /// Serves delays. Readings come first: one that waited here may have ended a condition before its delay was over.
    fn tick(&mut self, step: &mut Step, now: Now) {
        let facts = self.engine.tick(now);
        self.note(step, facts, now);
    }

    fn reading(&mut self, step: &mut Step, reading: &Reading, now: Now) -> Effect {
        let facts = self.engine.reading(reading);
        self.note(step, facts, now);
        let effect = self.telemetry.reading(reading, now);
        step.points_refused += u64::from(effect == Effect::TooMany);
        effect
    }

    /// Declares losses, in as many records as they need.
    fn lost(&mut self, step: &mut Step, loss: Loss<'_>, now: Now) {
        let Loss { lane, epoch, ranges, reason, certain } = loss;
        for ranges in ranges.chunks(RANGES_MAX) {
            let lost = StreamEvent::Lost {
                epoch: epoch.clone(),
                lane,
                ranges: ranges.to_vec(),
                count: count(ranges),
                reason,
                certain: certain == Certainty::Known,
                refused: None,
            };
            self.record(step, Body::Stream(lost), now);
        }
    }

    /// Turns the engine's facts into records and states.
    fn note(&mut self, step: &mut Step, facts: Facts, now: Now) {
        for transition in facts.transitions {
            let alarm = transition.alarm.clone();
            let told = self.record(step, Body::Alarm(Box::new(transition)), now);
            self.engine.recorded(&alarm, told);
            step.touched.insert(alarm);
        }
        step.touched.extend(facts.changed);
        step.commit.counts.extend(facts.counts);
        step.commit.forgotten_alarms.extend(facts.forgotten);
    }

    /// Tells the last transition of an alarm again: nobody knows whether the record that told of it will ever arrive.
    fn tell_again(&mut self, step: &mut Step, alarm: AlarmId, now: Now) {
        let Some(state) = self.engine.alarm(&alarm) else { return };
        let body = Body::Alarm(Box::new(state.last.clone()));
        let when = state.told.as_ref().map_or((self.boot.clone(), now), |told| (told.boot.clone(), told.recorded));
        let told = self.record_of(step, body, when);
        self.engine.recorded(&alarm, told);
        step.touched.insert(alarm);
    }

    /// Numbers a record and puts it into its lane.
    fn record(&mut self, step: &mut Step, body: Body, now: Now) -> Told {
        self.record_of(step, body, (self.boot.clone(), now))
    }

    /// The same for what was recorded in that boot, at that time.
    fn record_of(&mut self, step: &mut Step, body: Body, (boot, recorded): (BootId, Now)) -> Told {
        let lane = body.lane();
        let (next, records) = match lane {
            Lane::Alarm => (&mut self.next.a, &mut step.commit.records),
            Lane::Telemetry => (&mut self.next.t, &mut step.telemetry),
        };
        let sequence = *next;
        *next += 1;
        let told = Told { epoch: self.epoch.clone(), sequence, boot, recorded };
        let Told { epoch, boot, .. } = told.clone();
        records.push(Record { lane, epoch, sequence, boot, recorded, body });
        told
    }

    /// What the whole step comes to: alarm states, telemetry that is due or waited for, and the clock.
    fn finish(&mut self, step: &mut Step, now: Now) {
        let mut batches = self.telemetry.take(now);
        if !step.after_telemetry.is_empty() {
            batches.extend(self.telemetry.take_changes());
        }
        for batch in batches {
            self.record(step, Body::Telemetry(batch), now);
        }
        // Once a step, however often an alarm changed in it.
        let states = std::mem::take(&mut step.touched).into_iter().filter_map(|alarm| self.engine.alarm(&alarm));
        step.commit.alarms.extend(states.cloned());
        if self.boots.trust(&self.boot, now) {
            step.commit.boots = Some(self.boots.clone());
        }
    }

    fn command(&mut self, step: &mut Step, request: &Request, now: Now) -> Answer {
        if request.action.acts()
            && let Some(before) = self.answers.get(&request.id)
        {
            return before.clone();
        }
        let result = self.act(step, request, now);
        let answer = answer(request, result);
        if request.action.acts() {
            if answer.result == Outcome::Ok {
                let alarm = match &request.action {
                    Action::Acknowledge { alarm, .. } | Action::Reset { alarm } => Some(alarm.clone()),
                    Action::Test { .. } | Action::Alarms { .. } | Action::Read { .. } => None,
                };
                let (id, by, command) = (request.id.clone(), request.by.clone(), request.action.word().into());
                self.record(step, Body::Command(CommandResult { id, command, alarm, by }), now);
            }
            step.commit.forgotten_answers.extend(self.answers.keep(answer.clone(), now));
            step.commit.answers.push(StoredAnswer { at: now, boot: self.boot.clone(), answer: answer.clone() });
        }
        answer
    }

    fn act(&mut self, step: &mut Step, request: &Request, now: Now) -> Result<Option<serde_json::Value>, Refusal> {
        let by = request.by.clone();
        let facts = match &request.action {
            Action::Acknowledge { alarm, occurrence, epoch } => {
                match epoch {
                    Some(epoch) if *epoch != self.epoch => return Err(Refusal::OtherEpoch),
                    None if self.epoch_replaced => return Err(Refusal::OtherEpoch),
                    Some(_) | None => {}
                }
                self.engine.acknowledge(alarm, *occurrence, by, request.comment.clone(), now)?
            }
            Action::Reset { alarm } => self.engine.reset(alarm, by, request.comment.clone(), now)?,
            Action::Test { severity } => self.engine.test(*severity, text::both("alarm-test", &[]), by, now),
            Action::Alarms { cursor } => return Ok(Some(self.page(cursor.as_ref()))),
            Action::Read { point } => return self.read(point).map(Some),
        };
        self.note(step, facts, now);
        Ok(None)
    }

    /// The standing alarms after `cursor`, in order of their names.
    fn page(&self, cursor: Option<&AlarmId>) -> serde_json::Value {
        let mut standing: Vec<&AlarmState> = self.engine.alarms().filter(|s| s.state() != State::Norm).collect();
        standing.sort_by(|a, b| a.last.alarm.cmp(&b.last.alarm));
        let from = cursor.map_or(0, |cursor| standing.partition_point(|s| s.last.alarm <= *cursor));
        let page = &standing[from..standing.len().min(from + PAGE)];
        let more = from + page.len() < standing.len();
        let cursor = page.last().filter(|_| more).map(|s| &s.last.alarm);
        let alarms: Vec<serde_json::Value> = page.iter().map(|s| listed(s)).collect();
        json!({ "epoch": self.epoch, "alarms": alarms, "cursor": cursor })
    }

    fn read(&self, point: &PointId) -> Result<serde_json::Value, Refusal> {
        let (sample, about) = self.telemetry.latest(point).ok_or(Refusal::UnknownPoint)?;
        Ok(json!({
            "point": point, "value": sample.value, "unit": about.unit, "quality": sample.quality,
            "reason": sample.reason, "time": crate::clock::rfc3339(sample.source_time_ms.unwrap_or(sample.at.wall_ms)),
        }))
    }
}

/// Records of one lane and epoch that are lost.
#[derive(Clone, Copy)]
struct Loss<'a> {
    lane: Lane,
    epoch: &'a Epoch,
    ranges: &'a [(u64, u64)],
    reason: LossReason,
    certain: Certainty,
}

/// How many numbers these runs have.
fn count(ranges: &[(u64, u64)]) -> u64 {
    ranges.iter().map(|(first, last)| last - first + 1).sum()
}

fn listed(state: &AlarmState) -> serde_json::Value {
    let Transition {
        alarm, occurrence, state, active, acknowledged, latched, severity, value, unit, quality, at, ..
    } = &state.last;
    json!({
        "alarm": alarm, "occurrence": occurrence, "state": state, "active": active, "acknowledged": acknowledged,
        "latched": latched, "severity": severity, "value": value, "unit": unit, "quality": quality,
        "time": crate::clock::rfc3339(at.wall_ms),
    })
}

fn stream_started(started: Started) -> Body {
    let (replaces, last) = started.replaces.map_or((None, None), |(epoch, next)| {
        (Some(epoch), Some(LastKnown { a: next.a.saturating_sub(1), t: next.t.saturating_sub(1) }))
    });
    Body::Stream(StreamEvent::Started { reason: started.reason, replaces, last })
}

/// The answer to a request.
fn answer(request: &Request, result: Result<Option<serde_json::Value>, Refusal>) -> Answer {
    let (id, command): (Arc<str>, Arc<str>) = (request.id.clone(), request.action.word().into());
    match result {
        Ok(data) => Answer { id, command, result: Outcome::Ok, code: None, text: None, data },
        Err(code) => {
            let text: Texts = text::both(&format!("refusal-{code}"), &[]);
            Answer { id, command, result: Outcome::Refused, code: Some(code), text: Some(text), data: None }
        }
    }
}

#[cfg(test)]
mod tests;
