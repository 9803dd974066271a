//! PURE: what arrived at the simulated command center, and whether anything is missing.
//!
//! A number up to `settled` that neither arrived nor was declared lost is a fault of the gateway (DESIGN.md §5.3).
//! Numbers above it may still wait in its outbox.

use std::collections::{HashMap, VecDeque};

use rangemap::RangeInclusiveSet;
use serde::Deserialize;

use crate::{
    clock::parse_rfc3339,
    record::{Epoch, Lane, LaneStatus},
};

/// Latencies kept for the summary, the newest; a demonstration without end must not grow.
const LATENCIES_MAX: usize = 10_000;

/// What is needed of an event; receivers ignore the rest.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// `{epoch}-{lane}-{sequence}`
    pub id: String,
    /// `gardu.….v1`
    #[serde(rename = "type")]
    pub type_: String,
    /// When it happened in the field.
    pub time: String,
    /// When it was recorded.
    pub recordedtime: String,
    /// What happened.
    pub data: serde_json::Value,
}

/// `data` of `gardu.stream.lost.v1`.
#[derive(Debug, Deserialize)]
struct Lost {
    epoch: Epoch,
    lane: Lane,
    ranges: Vec<(u64, u64)>,
}

/// Whether an event is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The first of its id.
    New,
    /// Seen before: at-least-once delivery.
    Duplicate,
    /// Without a usable id.
    Unnumbered,
}

/// One lane of one epoch.
#[derive(Debug, Default)]
struct Stream {
    accounted: RangeInclusiveSet<u64>,
    highest: u64,
    settled: u64,
}

impl Stream {
    fn missing(&self, up_to: u64) -> u64 {
        if up_to == 0 { 0 } else { self.accounted.gaps(&(1..=up_to)).map(|gap| gap.end() - gap.start() + 1).sum() }
    }
}

/// All that arrived.
#[derive(Debug, Default)]
pub struct Ledger {
    streams: HashMap<(Epoch, Lane), Stream>,
    raised: u64,
    delivered: u64,
    declared: u64,
    duplicates: u64,
    recorded_ms: VecDeque<u64>,
    field_ms: VecDeque<u64>,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Alarms raised.
    pub raised: u64,
    /// Different events and batches that arrived.
    pub delivered: u64,
    /// Missing although the gateway called them settled.
    pub lost: u64,
    /// Declared lost by the gateway.
    pub declared: u64,
    /// Not settled yet: still in the gateway's outbox.
    pub waiting: u64,
    /// Arrived again.
    pub duplicates: u64,
    /// From record to arrival.
    pub recorded: Percentiles,
    /// From the field to arrival.
    pub field: Percentiles,
}

/// Nearest-rank percentiles in milliseconds; none without a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Percentiles {
    /// Median.
    pub p50_ms: Option<u64>,
    /// 95 of 100 are no slower.
    pub p95_ms: Option<u64>,
    /// 99 of 100 are no slower.
    pub p99_ms: Option<u64>,
}

impl Ledger {
    /// Notes an event that arrived at `arrived_ms`; its latency counts if it was recorded at or after `live_from_ms`,
    /// when the link was up.
    pub fn event(&mut self, event: &Event, arrived_ms: i64, live_from_ms: i64) -> Arrival {
        let Some((epoch, lane, sequence)) = parse_id(&event.id) else { return Arrival::Unnumbered };
        let stream = self.streams.entry((epoch, lane)).or_default();
        if stream.accounted.contains(&sequence) {
            self.duplicates += 1;
            return Arrival::Duplicate;
        }
        stream.accounted.insert(sequence..=sequence);
        stream.highest = stream.highest.max(sequence);
        self.delivered += 1;
        match event.type_.as_str() {
            "gardu.alarm.raised.v1" => self.raised += 1,
            "gardu.stream.lost.v1" => self.lost(&event.data),
            _ => {}
        }
        let recorded_ms = parse_rfc3339(&event.recordedtime).filter(|ms| *ms >= live_from_ms);
        if let (Some(recorded_ms), Lane::Alarm) = (recorded_ms, lane) {
            keep(&mut self.recorded_ms, arrived_ms.saturating_sub(recorded_ms));
            if let Some(field_ms) = parse_rfc3339(&event.time) {
                keep(&mut self.field_ms, arrived_ms.saturating_sub(field_ms));
            }
        }
        Arrival::New
    }

    fn lost(&mut self, data: &serde_json::Value) {
        let Ok(lost) = Lost::deserialize(data) else { return };
        let stream = self.streams.entry((lost.epoch, lost.lane)).or_default();
        for (first, last) in lost.ranges.into_iter().filter(|(first, last)| first <= last) {
            let before = stream.missing(last) - stream.missing(first - u64::from(first > 0));
            stream.accounted.insert(first..=last);
            self.declared += before;
        }
    }

    /// Notes how far a lane has come, as `status` says.
    pub fn status(&mut self, lane: Lane, status: &LaneStatus) {
        let stream = self.streams.entry((status.epoch.clone(), lane)).or_default();
        stream.settled = stream.settled.max(status.settled);
        stream.highest = stream.highest.max(status.next.saturating_sub(1));
    }

    /// Whether every number known of has arrived or was declared lost.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.streams.values().all(|stream| stream.missing(stream.highest) == 0)
    }

    /// How it went so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let lost = self.streams.values().map(|stream| stream.missing(stream.settled)).sum();
        let missing: u64 = self.streams.values().map(|stream| stream.missing(stream.highest.max(stream.settled))).sum();
        Summary {
            raised: self.raised,
            delivered: self.delivered,
            lost,
            declared: self.declared,
            waiting: missing - lost,
            duplicates: self.duplicates,
            recorded: percentiles(&self.recorded_ms),
            field: percentiles(&self.field_ms),
        }
    }
}

/// Epoch, lane and number of an id.
fn parse_id(id: &str) -> Option<(Epoch, Lane, u64)> {
    let mut parts = id.split('-');
    let (epoch, lane, sequence) = (parts.next()?, parts.next()?, parts.next()?);
    let lane = Lane::ALL.into_iter().find(|known| known.as_str() == lane)?;
    let sequence = sequence.parse().ok().filter(|n| *n > 0)?;
    parts.next().is_none().then_some((Epoch::parse(epoch)?, lane, sequence))
}

/// The epoch in an id.
#[must_use]
pub fn epoch_of(id: &str) -> Option<Epoch> {
    parse_id(id).map(|(epoch, _, _)| epoch)
}

fn keep(latencies: &mut VecDeque<u64>, ms: i64) {
    if latencies.len() == LATENCIES_MAX {
        latencies.pop_front();
    }
    latencies.push_back(u64::try_from(ms).unwrap_or(0));
}

fn percentiles(latencies: &VecDeque<u64>) -> Percentiles {
    let mut sorted: Vec<u64> = latencies.iter().copied().collect();
    sorted.sort_unstable();
    let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    Percentiles { p50_ms: rank(50), p95_ms: rank(95), p99_ms: rank(99) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const EPOCH: &str = "0123456789abcdef";

    fn event(sequence: u64, type_: &str, data: serde_json::Value) -> Event {
        let time = "2026-11-21T12:00:00.000Z".to_owned();
        Event { id: format!("{EPOCH}-a-{sequence}"), type_: type_.into(), recordedtime: time.clone(), time, data }
    }

    fn raised(sequence: u64) -> Event {
        event(sequence, "gardu.alarm.raised.v1", json!({}))
    }

    fn status(next: u64, settled: u64) -> LaneStatus {
        LaneStatus { epoch: Epoch::parse(EPOCH).expect("epoch"), next, settled }
    }

    #[test]
    fn only_a_settled_number_that_never_came_is_lost() {
        let mut ledger = Ledger::default();
        for sequence in [1, 2, 5] {
            assert_eq!(ledger.event(&raised(sequence), 0, i64::MAX), Arrival::New);
        }
        assert_eq!(ledger.event(&raised(2), 0, i64::MAX), Arrival::Duplicate);
        assert_eq!((ledger.summary().lost, ledger.summary().waiting), (0, 2), "3 and 4 may still come");
        ledger.status(Lane::Alarm, &status(8, 3));
        assert_eq!((ledger.summary().lost, ledger.summary().waiting), (1, 3), "3 is lost; 4, 6 and 7 may come");
        assert!(!ledger.is_complete());
        let lost = json!({"epoch": EPOCH, "lane": "a", "ranges": [[3, 4], [6, 6]], "count": 3});
        ledger.event(&event(7, "gardu.stream.lost.v1", lost), 0, i64::MAX);
        ledger.status(Lane::Alarm, &status(8, 7));
        let summary = ledger.summary();
        assert_eq!((summary.lost, summary.waiting, summary.declared), (0, 0, 3));
        assert_eq!((summary.raised, summary.delivered, summary.duplicates), (3, 4, 1));
        assert!(ledger.is_complete());
    }

    #[test]
    fn latency_counts_only_while_the_link_was_up() {
        let mut ledger = Ledger::default();
        let recorded_ms = parse_rfc3339("2026-11-21T12:00:00.000Z").expect("time");
        for sequence in 1..=100 {
            ledger.event(&raised(sequence), recorded_ms + sequence as i64, recorded_ms);
        }
        ledger.event(&raised(101), recorded_ms + 60_000, recorded_ms + 1);
        let expected = Percentiles { p50_ms: Some(50), p95_ms: Some(95), p99_ms: Some(99) };
        assert_eq!(ledger.summary().recorded, expected);
        assert_eq!(Ledger::default().summary().field, Percentiles::default());
    }

    #[test]
    fn ids_that_are_none_count_for_nothing() {
        let mut ledger = Ledger::default();
        for id in ["", "x-a-1", &format!("{EPOCH}-b-1"), &format!("{EPOCH}-a-0"), &format!("{EPOCH}-a-1-2")] {
            let event = Event { id: id.into(), ..raised(1) };
            assert_eq!(ledger.event(&event, 0, 0), Arrival::Unnumbered, "{id}");
        }
        let odd = json!({"epoch": EPOCH, "lane": "a", "ranges": [[5, 2], [0, 0]]});
        assert_eq!(ledger.event(&event(1, "gardu.stream.lost.v1", odd), 0, 0), Arrival::New);
        assert_eq!(ledger.summary().lost, 0);
    }
}
