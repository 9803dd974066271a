//! Values for the store's tests.

use std::sync::Arc;

use crate::{
    alarm::{AlarmId, AlarmState, Kind, Severity, State, Texts, Transition},
    clock::{BootId, Now},
    reading::{PointId, Quality, Segment, Value},
    record::{Batch, Body, Epoch, Lane, Record, Sample},
};

/// An epoch of one letter.
pub(super) fn epoch(letter: char) -> Epoch {
    Epoch::parse(&letter.to_string().repeat(Epoch::LEN)).expect("an epoch")
}

/// A moment of a boot, the wall clock untrusted.
pub(super) fn now(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: 1_795_262_671_220, trusted: false }
}

/// A telemetry record of one reading.
pub(super) fn batch(epoch: &Epoch, sequence: u64, value: &str) -> Record {
    let sample = Sample {
        point: PointId::parse("panel/temp").expect("point"),
        value: Value::float(value.parse().expect("a number")),
        quality: Quality::Good,
        reason: None,
        at: now(sequence),
        source_time_ms: None,
        summary: None,
    };
    let batch = Batch { device: Segment::parse("panel").expect("device"), readings: vec![sample], replaces: None };
    record(Lane::Telemetry, epoch, sequence, Body::Telemetry(batch))
}

/// The state of an alarm after its `occurrence`-th activation.
pub(super) fn state(alarm: &str, occurrence: u64) -> AlarmState {
    let text = |t: &str| Some(Arc::from(t));
    let last = Transition {
        kind: Kind::Raised,
        alarm: AlarmId::parse(alarm).expect("alarm"),
        occurrence,
        state: State::Unack,
        active: true,
        acknowledged: false,
        latched: false,
        severity: Severity::High,
        value: Some(Value::Bool(true)),
        unit: None,
        quality: Quality::Good,
        reason: None,
        limit: None,
        test: false,
        message: Texts { id: text("Pintu panel terbuka"), en: text("Cabinet door open") },
        by: None,
        comment: None,
        evidence: None,
        at: now(occurrence),
        source_time_ms: None,
    };
    AlarmState { configured: true, told: None, last }
}

/// The record of that activation.
pub(super) fn raised(epoch: &Epoch, sequence: u64, alarm: &str) -> Record {
    record(Lane::Alarm, epoch, sequence, Body::Alarm(Box::new(state(alarm, sequence).last)))
}

fn record(lane: Lane, epoch: &Epoch, sequence: u64, body: Body) -> Record {
    Record { lane, epoch: epoch.clone(), sequence, boot: BootId::new("boot-1"), recorded: now(sequence), body }
}
