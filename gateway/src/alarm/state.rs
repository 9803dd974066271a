//! One alarm: its condition, its delays, and where it stands (ISA-18.2; the table of facts: C1).
//!
//! ```text
//!            raise            acknowledge           clear
//!   NORM ──────────> UNACK ───────────────> ACKED ─────────> NORM
//!                    │   ^                                    ^
//!              clear v   │ raise (a new occurrence)           │
//!                    RTNUN ───────────────────────────────────┘ acknowledge
//! ```
//!
//! Latching: clear leaves UNACK or ACKED, inactive and latched, until `reset`, which wants the acknowledgement first; a
//! condition that comes back is a new occurrence. Where no acknowledgement is required, clear leads from UNACK to NORM,
//! and `reset` asks for none.
//!
//! Delays run on the monotonic clock, from the stamp of the reading that began them. A reading that cannot tell (bad,
//! uncertain) stops a delay, the next one that confirms lets it run on: the time in between proves nothing, and one lost
//! poll must not start a minute over. A restart forgets delays under way and nothing else.

use std::{sync::Arc, time::Duration};

use super::{
    AlarmId, AlarmState, Kind, State, Transition,
    condition::{Count, Phase, was_heard},
    rule::{Acknowledgement, Condition, Latch, Rule},
};
use crate::{
    clock::Now,
    command::Refusal,
    reading::{Evidence, Quality, Reading, Reason, Value},
};

/// One rule on one point.
#[derive(Debug)]
pub(super) struct Alarm {
    id: AlarmId,
    rule: Arc<Rule>,
    unit: Option<Arc<str>>,
    /// The condition before delays; without a delay under way it is what `active` says.
    phase: Phase,
    /// Under way to make `active` follow the phase.
    delay: Option<Delay>,
    /// When silence becomes `stale`, by the monotonic clock.
    silent_ms: Option<u64>,
    /// None until it is raised for the first time.
    state: Option<AlarmState>,
}

#[derive(Debug)]
struct Delay {
    left_ms: u64,
    /// Since when it runs; none while the condition is unconfirmed.
    from_ms: Option<u64>,
    cause: Cause,
}

/// What the point said when the condition changed.
#[derive(Debug)]
struct Cause {
    value: Option<Value>,
    quality: Quality,
    reason: Option<Reason>,
    evidence: Option<Arc<Evidence>>,
    source_time_ms: Option<i64>,
}

impl Alarm {
    /// An alarm that never stood.
    pub(super) fn new(id: AlarmId, rule: Arc<Rule>, unit: Option<Arc<str>>, now: Now) -> Self {
        let mut alarm = Self { id, rule, unit, phase: Phase::Off, delay: None, silent_ms: None, state: None };
        alarm.hear(now);
        alarm
    }

    /// Goes on from what was stored. Says so if the command center must hear of it: the alarm stands, and its rule came
    /// back or changed.
    pub(super) fn restore(&mut self, stored: AlarmState, now: Now) -> Option<Transition> {
        self.phase = if stored.last.active { Phase::On } else { Phase::Off };
        let configured = stored.configured;
        let last = &self.state.insert(AlarmState { configured: true, ..stored }).last;
        let unchanged = configured
            && last.severity == self.rule.severity
            && last.limit == self.rule.limit()
            && last.message == self.rule.message
            && last.unit == self.unit;
        if unchanged || last.state == State::Norm {
            return None;
        }
        let updated = Transition {
            kind: Kind::Updated,
            severity: self.rule.severity,
            limit: self.rule.limit(),
            message: self.rule.message.clone(),
            unit: self.unit.clone(),
            ..said(last, None, None, now)
        };
        Some(self.enter(updated))
    }

    /// What is kept of it; none until it was raised once.
    pub(super) const fn kept(&self) -> Option<&AlarmState> {
        self.state.as_ref()
    }

    /// The same, to note which record told of it.
    pub(super) const fn kept_mut(&mut self) -> Option<&mut AlarmState> {
        self.state.as_mut()
    }

    /// Where it stands.
    pub(super) const fn state(&self) -> State {
        match &self.state {
            Some(kept) => kept.last.state,
            None => State::Norm,
        }
    }

    /// When [`Alarm::expire`] has something to do, by the monotonic clock.
    pub(super) fn due_ms(&self) -> Option<u64> {
        [self.delay.as_ref().and_then(Delay::due_ms), self.silent_ms].into_iter().flatten().min()
    }

    /// Takes a reading of its point. Whatever was due before it must have expired.
    pub(super) fn reading(&mut self, reading: &Reading, count: Count) -> Option<Transition> {
        if was_heard(reading) {
            self.hear(reading.at);
        }
        match self.rule.when.judge(self.phase, reading, count) {
            Some(phase) => self.settle(phase, reading.at, || Cause::of(reading)),
            None => {
                if let Some(delay) = &mut self.delay {
                    delay.stop(reading.at);
                }
                None
            }
        }
    }

    /// Ends what is due at `at`, if anything is; a delay before the silence that would cut it short.
    pub(super) fn expire(&mut self, at: Now) -> Option<Transition> {
        let is_due = |due_ms: Option<u64>| due_ms.is_some_and(|due_ms| due_ms <= at.mono_ms);
        if let Some(delay) = self.delay.take_if(|delay| is_due(delay.due_ms())) {
            return Some(self.turn(delay.cause, at));
        }
        self.silent_ms.take_if(|silent_ms| is_due(Some(*silent_ms)))?;
        self.settle(Phase::On, at, || Cause::SILENCE)
    }

    /// Someone saw it.
    pub(super) fn acknowledge(
        &mut self,
        occurrence: u64,
        by: Arc<str>,
        comment: Option<Arc<str>>,
        now: Now,
    ) -> Result<Transition, Refusal> {
        let last = &self.state.as_ref().ok_or(Refusal::UnknownAlarm)?.last;
        let state = match last.state {
            State::Norm => return Err(Refusal::NotStanding),
            _ if last.occurrence != occurrence => return Err(Refusal::OtherOccurrence),
            State::Acked => return Err(Refusal::AlreadyAcknowledged),
            State::Unack => State::Acked,
            State::Rtnun => State::Norm,
        };
        let said = said(last, Some(by), comment, now);
        Ok(self.enter(Transition { kind: Kind::Acknowledged, state, acknowledged: true, ..said }))
    }

    /// Someone releases the latch.
    pub(super) fn reset(&mut self, by: Arc<str>, comment: Option<Arc<str>>, now: Now) -> Result<Transition, Refusal> {
        let last = &self.state.as_ref().ok_or(Refusal::UnknownAlarm)?.last;
        // What is latched stays resettable when a new configuration no longer latches it.
        match (last.state, self.rule.latch, self.rule.acknowledgement) {
            (State::Norm, ..) => return Err(Refusal::NotStanding),
            (_, Latch::NonLatching, _) if !last.latched => return Err(Refusal::NotLatched),
            _ if last.active => return Err(Refusal::StillActive),
            (State::Unack | State::Rtnun, _, Acknowledgement::Required) => return Err(Refusal::NotAcknowledged),
            (State::Unack | State::Rtnun, _, Acknowledgement::NotRequired) | (State::Acked, ..) => {}
        }
        let said = said(last, Some(by), comment, now);
        Ok(self.enter(Transition { kind: Kind::Reset, state: State::Norm, latched: false, ..said }))
    }

    /// The point gave a sign of life: silence is measured from here.
    fn hear(&mut self, at: Now) {
        if let Condition::Stale(after) = self.rule.when {
            self.silent_ms = Some(at.mono_ms.saturating_add(millis(after)));
        }
    }

    /// The condition is known to be in `phase` at `at`: `active` follows at once or after the delay.
    fn settle(&mut self, phase: Phase, at: Now, cause: impl FnOnce() -> Cause) -> Option<Transition> {
        self.phase = phase;
        let active = self.state.as_ref().is_some_and(|kept| kept.last.active);
        let delay = match (phase, active) {
            (Phase::On, true) | (Phase::Off, false) => {
                self.delay = None;
                return None;
            }
            (Phase::On, false) => self.rule.on_delay,
            (Phase::Off, true) => self.rule.off_delay,
        };
        if let Some(running) = &mut self.delay {
            running.from_ms.get_or_insert(at.mono_ms);
            return None;
        }
        let left_ms = millis(delay);
        if left_ms == 0 {
            return Some(self.turn(cause(), at));
        }
        self.delay = Some(Delay { left_ms, from_ms: Some(at.mono_ms), cause: cause() });
        None
    }

    /// `active` becomes what the phase says.
    fn turn(&mut self, cause: Cause, at: Now) -> Transition {
        let turned = match self.phase {
            Phase::On => self.raised(cause, at),
            Phase::Off => self.cleared(cause, at),
        };
        self.enter(turned)
    }

    fn raised(&self, cause: Cause, at: Now) -> Transition {
        Transition {
            kind: Kind::Raised,
            alarm: self.id.clone(),
            occurrence: self.state.as_ref().map_or(0, |kept| kept.last.occurrence).saturating_add(1),
            state: State::Unack,
            active: true,
            acknowledged: false,
            latched: false,
            severity: self.rule.severity,
            value: cause.value,
            unit: self.unit.clone(),
            quality: cause.quality,
            reason: cause.reason,
            limit: self.rule.limit(),
            test: false,
            message: self.rule.message.clone(),
            by: None,
            comment: None,
            evidence: cause.evidence,
            at,
            source_time_ms: cause.source_time_ms,
        }
    }

    fn cleared(&self, cause: Cause, at: Now) -> Transition {
        let last = &self.state.as_ref().expect("only an active alarm is cleared, and it became so here").last;
        let state = match (last.state, self.rule.latch, self.rule.acknowledgement) {
            (State::Unack | State::Acked, Latch::Latching, _) => last.state,
            (State::Unack, Latch::NonLatching, Acknowledgement::Required) => State::Rtnun,
            (State::Unack, Latch::NonLatching, Acknowledgement::NotRequired)
            | (State::Acked, Latch::NonLatching, _)
            | (State::Norm, ..) => State::Norm,
            (State::Rtnun, ..) => State::Rtnun,
        };
        Transition {
            kind: Kind::Cleared,
            state,
            active: false,
            latched: matches!(state, State::Unack | State::Acked),
            value: cause.value,
            quality: cause.quality,
            reason: cause.reason,
            // Words of the camera belong to the occurrence: who comes late must still see what it was.
            evidence: cause.evidence.or_else(|| last.evidence.clone()),
            source_time_ms: cause.source_time_ms,
            ..said(last, None, None, at)
        }
    }

    fn enter(&mut self, transition: Transition) -> Transition {
        self.state = Some(AlarmState { configured: true, told: None, last: transition.clone() });
        transition
    }
}

impl Delay {
    fn due_ms(&self) -> Option<u64> {
        Some(self.from_ms?.saturating_add(self.left_ms))
    }

    fn stop(&mut self, at: Now) {
        if let Some(from_ms) = self.from_ms.take() {
            self.left_ms = self.left_ms.saturating_sub(at.mono_ms.saturating_sub(from_ms));
        }
    }
}

impl Cause {
    const SILENCE: Self =
        Self { value: None, quality: Quality::Bad, reason: Some(Reason::Stale), evidence: None, source_time_ms: None };

    fn of(reading: &Reading) -> Self {
        Self {
            value: reading.value.clone(),
            quality: reading.quality,
            reason: reading.reason,
            evidence: reading.evidence.clone(),
            source_time_ms: reading.source_time_ms,
        }
    }
}

/// The last transition once more, as someone (or a new configuration) speaks about it at `at`: a word changes no value.
pub(super) fn said(last: &Transition, by: Option<Arc<str>>, comment: Option<Arc<str>>, at: Now) -> Transition {
    Transition { by, comment, at, source_time_ms: None, ..last.clone() }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
