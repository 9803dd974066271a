//! From a record to its event: CloudEvents 1.0 in structured JSON, with the times as well as they are known by now.

use super::{
    About, Sent,
    payload::{AlarmData, ClockData, CommandData, DeliveryData, Event, ReadingData, StreamData, TelemetryData},
    time_of,
};
use crate::{
    alarm::{AlarmId, Texts, Transition},
    clock::{Boots, Dated, Now, rfc3339},
    config::Language,
    record::{Batch, CommandResult, Record, StreamEvent},
};

/// Where payload schemas are named.
const SCHEMA: &str = "urn:gardu:schema:v1/";
/// Recorded longer ago than this when first sent: no news any more, but history.
const HISTORICAL_AFTER_MS: u64 = 60_000;

pub(super) struct Context<'a> {
    pub(super) record: &'a Record,
    pub(super) boots: &'a Boots,
    pub(super) about: &'a About,
    pub(super) sent: Sent<'a>,
}

/// What the envelope says beside the record's own.
struct Heading<'a> {
    type_: String,
    subject: &'a str,
    schema: &'static str,
    at: Now,
    source_time_ms: Option<i64>,
}

impl Context<'_> {
    fn event<D>(&self, heading: Heading<'_>, data: D) -> Event<D> {
        Event {
            specversion: "1.0",
            id: self.record.id(),
            source: format!("/gardu/{}", self.about.gateway),
            type_: heading.type_,
            subject: heading.subject.to_owned(),
            time: self.time(heading.at, heading.source_time_ms),
            recordedtime: self.time(self.record.recorded, None),
            sequence: format!("{:020}", self.record.sequence),
            datacontenttype: "application/json",
            dataschema: format!("{SCHEMA}{}", heading.schema),
            data,
        }
    }

    fn time(&self, at: Now, source_time_ms: Option<i64>) -> String {
        source_time_ms.map_or_else(|| time_of(self.boots, &self.record.boot, at), rfc3339)
    }

    fn clock(&self, at: Now) -> ClockData {
        let boot = self.record.boot.clone();
        let (trusted, not_before_ms, not_after_ms) = match self.boots.date(&boot, at) {
            Dated::Known { .. } => (true, None, None),
            Dated::Between { not_before_ms, not_after_ms, .. } => (false, not_before_ms, not_after_ms),
        };
        let [not_before, not_after] = [not_before_ms, not_after_ms].map(|ms| ms.map(rfc3339));
        ClockData { trusted, boot, monotonic_ms: at.mono_ms, not_before, not_after }
    }

    fn delivery(&self) -> DeliveryData {
        let recorded = self.record.recorded;
        let age_ms = if *self.sent.boot == self.record.boot {
            Some(self.sent.at.mono_ms.saturating_sub(recorded.mono_ms))
        } else {
            let dates = [(&self.record.boot, recorded), (self.sent.boot, self.sent.at)];
            match dates.map(|(boot, at)| self.boots.date(boot, at)) {
                [Dated::Known { wall_ms: recorded_ms }, Dated::Known { wall_ms: sent_ms }] => {
                    Some(u64::try_from(sent_ms.saturating_sub(recorded_ms)).unwrap_or(0))
                }
                _ => None,
            }
        };
        // Of an age nobody can tell, a restart lies in between: no news.
        DeliveryData { historical: age_ms.is_none_or(|age_ms| age_ms > HISTORICAL_AFTER_MS) }
    }

    pub(super) fn alarm(&self, t: &Transition) -> Event<AlarmData> {
        let data = AlarmData {
            alarm: t.alarm.clone(),
            occurrence: t.occurrence,
            state: t.state,
            active: t.active,
            acknowledged: t.acknowledged,
            latched: t.latched,
            severity: t.severity,
            value: t.value.clone(),
            unit: t.unit.clone(),
            quality: t.quality,
            reason: t.reason,
            limit: t.limit,
            test: t.test,
            message: in_language(t.message.clone(), self.about.language),
            site: self.about.site.clone(),
            location: self.about.location.clone(),
            by: t.by.clone(),
            by_verified: false,
            comment: t.comment.clone(),
            evidence: t.evidence.clone(),
            clock: self.clock(t.at),
            delivery: self.delivery(),
        };
        let heading = Heading {
            type_: format!("gardu.alarm.{}.v1", t.kind.as_str()),
            subject: t.alarm.as_str(),
            schema: "alarm-event.json",
            at: t.at,
            source_time_ms: t.source_time_ms,
        };
        self.event(heading, data)
    }

    pub(super) fn stream(&self, event: &StreamEvent) -> Event<StreamData> {
        let (clock, delivery) = (self.clock(self.record.recorded), self.delivery());
        let (word, data) = match event.clone() {
            StreamEvent::Started { reason, replaces, last } => {
                let epoch = self.record.epoch.clone();
                ("started", StreamData::Started { reason, epoch, replaces, last, clock, delivery })
            }
            StreamEvent::Lost { epoch, lane, ranges, count, reason, certain, refused } => {
                ("lost", StreamData::Lost { epoch, lane, ranges, count, reason, certain, refused, clock, delivery })
            }
        };
        self.event(self.heading(format!("gardu.stream.{word}.v1"), "stream", "stream-event.json"), data)
    }

    pub(super) fn command(&self, result: &CommandResult) -> Event<CommandData> {
        let data = CommandData {
            id: result.id.clone(),
            command: result.command.clone(),
            alarm: result.alarm.clone(),
            by: result.by.clone(),
            by_verified: false,
            clock: self.clock(self.record.recorded),
            delivery: self.delivery(),
        };
        let subject = result.alarm.as_ref().map_or("command", AlarmId::as_str);
        self.event(self.heading("gardu.command.completed.v1".into(), subject, "command-event.json"), data)
    }

    pub(super) fn telemetry(&self, batch: &Batch) -> Event<TelemetryData> {
        let readings = batch.readings.iter().map(|sample| ReadingData {
            point: sample.point.clone(),
            value: sample.value.clone(),
            quality: sample.quality,
            reason: sample.reason,
            time: self.time(sample.at, sample.source_time_ms),
            summary: sample.summary.clone(),
        });
        let data = TelemetryData {
            readings: readings.collect(),
            replaces: batch.replaces.clone(),
            clock: self.clock(batch.readings.first().map_or(self.record.recorded, |sample| sample.at)),
            delivery: self.delivery(),
        };
        let first = batch.readings.first();
        let heading = Heading {
            type_: "gardu.telemetry.v1".into(),
            subject: batch.device.as_str(),
            schema: "telemetry-event.json",
            at: first.map_or(self.record.recorded, |sample| sample.at),
            source_time_ms: first.and_then(|sample| sample.source_time_ms),
        };
        self.event(heading, data)
    }

    fn heading<'a>(&self, type_: String, subject: &'a str, schema: &'static str) -> Heading<'a> {
        Heading { type_, subject, schema, at: self.record.recorded, source_time_ms: None }
    }
}

/// The configured language is always there, if need be with the other one's words.
fn in_language(mut texts: Texts, language: Language) -> Texts {
    match language {
        Language::Indonesian => texts.id = texts.id.or_else(|| texts.en.clone()),
        Language::English => texts.en = texts.en.or_else(|| texts.id.clone()),
    }
    texts
}
