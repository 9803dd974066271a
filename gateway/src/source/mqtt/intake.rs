//! What one MQTT input makes of its messages: the part that the client and the listener share.
//!
//! Refusals are counted, and logged once a kind: the first with its text, then the count when the kind has been quiet
//! for a minute.

use std::{collections::HashMap, time::Duration};

use super::{devices::Devices, json, json::Refused, names::Names, silence::Silence};
use crate::{
    clock::Now,
    config::{Subscription, TopicLevel},
    metrics::{IntCounter, Metrics},
    reading::{PointId, Reading, Reason, Segment},
    supervise::BEAT_EVERY,
};

/// A kind of trouble is over when it was not seen for so long.
const QUIET: Duration = Duration::from_secs(60);

/// Whether a message is news or was kept by the broker from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// Published just now.
    Live,
    /// Retained: nobody knows how old it is.
    Retained,
}

/// Messages of one input to readings.
#[derive(Debug)]
pub struct Intake {
    input: Segment,
    subscriptions: Vec<Subscription>,
    devices: Devices,
    names: Names,
    silence: Silence,
    complaints: Complaints,
    taken: IntCounter,
    refused: IntCounter,
    ignored: IntCounter,
}

impl Intake {
    /// Nothing heard yet; points that the configuration names may be quiet for their `stale` from now on.
    #[must_use]
    pub fn new(
        input: Segment,
        subscriptions: Vec<Subscription>,
        devices: Devices,
        metrics: &Metrics,
        now: Now,
    ) -> Self {
        let mut silence = Silence::default();
        for subscription in &subscriptions {
            if let (Some(stale), Some(point)) = (subscription.stale, only_point(subscription)) {
                silence.heard(&point, stale, now);
            }
        }
        let counter = |result| metrics.mqtt_messages.with_label_values(&[input.as_str(), result]);
        let [taken, refused, ignored] = ["taken", "refused", "ignored"].map(counter);
        let (names, complaints) = (Names::default(), Complaints::default());
        Self { input, subscriptions, devices, names, silence, complaints, taken, refused, ignored }
    }

    /// Its name.
    #[must_use]
    pub const fn input(&self) -> &Segment {
        &self.input
    }

    /// The MQTT filters to subscribe.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        self.subscriptions.iter().map(Subscription::filter).collect()
    }

    /// The readings of a message; none if it must only be acknowledged.
    pub fn take(&mut self, topic: &str, payload: &[u8], age: Age, now: Now) -> Vec<Reading> {
        let mut readings = Vec::new();
        let mut refused = false;
        for index in 0..self.subscriptions.len() {
            match self.take_as(index, topic, payload, age, now) {
                Ok(reading) => readings.extend(reading),
                Err(why) => {
                    refused = true;
                    self.complain(why.kind(), &why, now);
                }
            }
        }
        match (readings.is_empty(), refused) {
            (false, _) => self.taken.inc(),
            (true, true) => self.refused.inc(),
            (true, false) => self.ignored.inc(),
        }
        readings
    }

    fn take_as(
        &mut self,
        index: usize,
        topic: &str,
        payload: &[u8],
        age: Age,
        now: Now,
    ) -> Result<Option<Reading>, Refused> {
        let subscription = &self.subscriptions[index];
        let Some(named) = json::name(subscription, topic) else { return Ok(None) };
        let named = named?;
        let reading = json::read(subscription, &named, topic, payload, now)?;
        self.names.take(&named)?;
        self.devices.claim(reading.point.device(), &self.input)?;
        if let Some(stale) = subscription.stale {
            // A dead device's last word must not count as life at every reconnect; only its own time can prove it young.
            if age == Age::Retained && !is_young(&reading, stale, now) {
                return Ok(None);
            }
            self.silence.heard(&reading.point, stale, now);
        }
        Ok(Some(reading))
    }

    /// Counts trouble; the first of a kind is logged.
    pub fn complain(&mut self, kind: &'static str, why: &dyn std::fmt::Display, now: Now) {
        if self.complaints.note(kind, now) {
            tracing::warn!(input = %self.input, kind, "{why}; more of this kind are only counted");
        }
    }

    /// Readings that say which points have gone quiet; logs kinds of trouble that ended.
    pub fn tick(&mut self, now: Now) -> Vec<Reading> {
        for (kind, count) in self.complaints.ended(now) {
            tracing::info!(input = %self.input, kind, count, "no more of this kind");
        }
        let quiet = self.silence.expired(now);
        quiet.into_iter().map(|point| Reading::bad(point, Reason::Stale, now)).collect()
    }

    /// When [`Intake::tick`] is due; never later than the stage's beat.
    #[must_use]
    pub fn tick_in(&self, now: Now) -> Duration {
        self.silence.next_in(now).map_or(BEAT_EVERY, |wait| wait.min(BEAT_EVERY))
    }
}

/// The one point of a subscription without captures.
fn only_point(subscription: &Subscription) -> Option<PointId> {
    let topic = subscription.topic.iter().map(|level| match level {
        TopicLevel::Exactly(text) => Some(text.as_str()),
        TopicLevel::Capture(_) => None,
    });
    let topic = topic.collect::<Option<Vec<_>>>()?.join("/");
    json::name(subscription, &topic)?.ok().map(|named| named.point)
}

fn is_young(reading: &Reading, stale: Duration, now: Now) -> bool {
    let age_ms = reading.source_time_ms.map(|time_ms| now.wall_ms.saturating_sub(time_ms));
    now.trusted && age_ms.is_some_and(|ms| ms < i64::try_from(stale.as_millis()).unwrap_or(i64::MAX))
}

/// Trouble by kind. Kinds are words of the program, so there are few.
#[derive(Debug, Default)]
struct Complaints(HashMap<&'static str, (u64, Now)>);

impl Complaints {
    /// Counts one; true for the first of its kind.
    fn note(&mut self, kind: &'static str, now: Now) -> bool {
        let (count, last) = self.0.entry(kind).or_insert((0, now));
        (*count, *last) = (*count + 1, now);
        *count == 1
    }

    /// Kinds not seen for a while, with their counts.
    fn ended(&mut self, now: Now) -> Vec<(&'static str, u64)> {
        let over = self.0.extract_if(|_, (_, last)| now.since(*last) >= QUIET);
        over.map(|(kind, (count, _))| (kind, count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::mqtt::tests::{NOW, subscription};

    fn later(seconds: u64) -> Now {
        Now { mono_ms: NOW.mono_ms + seconds * 1_000, wall_ms: NOW.wall_ms + 1_000 * seconds as i64, ..NOW }
    }

    fn intake(subscriptions: Vec<Subscription>) -> (Intake, Metrics) {
        let metrics = Metrics::new();
        let devices = Devices::default();
        let modbus = Segment::parse("modbus").expect("name");
        devices.claim("panel", &modbus).expect("free");
        let input = Segment::parse("cctv").expect("name");
        (Intake::new(input, subscriptions, devices, &metrics, NOW), metrics)
    }

    #[test]
    fn a_flood_of_garbage_is_counted_and_logged_once_a_kind() {
        let (mut intake, metrics) = intake(vec![subscription("s/{device}/{name}", "{device}/{name}")]);
        for _ in 0..1_000 {
            assert!(intake.take("s/a/b", b"{", Age::Live, NOW).is_empty());
        }
        assert!(intake.take("s/panel/door", b"true", Age::Live, NOW).is_empty(), "the device of another source");
        assert!(intake.take("other", b"1", Age::Live, NOW).is_empty());
        assert_eq!(intake.take("s/a/b", b"1", Age::Live, NOW).len(), 1);
        let count = |result| metrics.mqtt_messages.with_label_values(&["cctv", result]).get();
        assert_eq!((count("refused"), count("ignored"), count("taken")), (1_001, 1, 1));
        assert_eq!(intake.complaints.ended(later(59)), []);
        let mut ended = intake.complaints.ended(later(60));
        ended.sort_unstable();
        assert_eq!(ended, [("not-json", 1_000), ("other-source", 1)]);
        assert!(intake.complaints.note("not-json", later(61)), "it begins again");
    }

    #[test]
    fn a_point_that_goes_quiet_becomes_stale_once() {
        let stale = |mut s: Subscription| {
            s.stale = Some(Duration::from_secs(30));
            s
        };
        let (mut intake, _) =
            intake(vec![stale(subscription("s/{device}", "{device}/x")), stale(subscription("fixed", "gate/door"))]);
        intake.take("s/a", b"1", Age::Live, later(10));
        let quiet = |readings: Vec<Reading>| -> Vec<_> {
            readings.iter().map(|r| (r.point.to_string(), r.reason.expect("bad"))).collect()
        };
        assert_eq!(intake.tick_in(later(27)), Duration::from_secs(3));
        assert_eq!(quiet(intake.tick(later(30))), [("gate/door".to_owned(), Reason::Stale)], "never heard at all");
        assert_eq!(quiet(intake.tick(later(40))), [("a/x".to_owned(), Reason::Stale)]);
        assert_eq!(quiet(intake.tick(later(400))), []);
        intake.take("s/a", b"1", Age::Live, later(500));
        assert_eq!(quiet(intake.tick(later(530))), [("a/x".to_owned(), Reason::Stale)]);
    }

    #[test]
    fn a_retained_word_of_a_dead_device_does_not_make_it_live() {
        let mut s = subscription("s/{device}", "{device}/x");
        (s.value, s.time, s.stale) = ("/v".into(), Some("/ts".into()), Some(Duration::from_secs(30)));
        let (mut intake, _) = intake(vec![s]);
        let payload = |age_s: i64| format!(r#"{{"v":1,"ts":{}}}"#, NOW.wall_ms - age_s * 1_000);
        let taken = |intake: &mut Intake, age_s, age| intake.take("s/a", payload(age_s).as_bytes(), age, NOW).len();
        assert_eq!(taken(&mut intake, 31, Age::Retained), 0);
        assert_eq!(intake.take("s/a", br#"{"v":1}"#, Age::Retained, NOW).len(), 0, "no time, no proof");
        assert_eq!(taken(&mut intake, 29, Age::Retained), 1);
        assert_eq!(taken(&mut intake, 31, Age::Live), 1);
    }
}
