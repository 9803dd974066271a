//! A rule: when a point is in alarm, how long it must be so, and what people must do about it.
//!
//! Rules are valid by construction: the configuration checks what a person wrote and builds these.

use std::{sync::Arc, time::Duration};

use super::{AlarmId, Severity, Texts};
use crate::reading::{PointId, Segment, Value};

/// When the condition of a rule holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// The value equals this one; ends when it is another.
    Is(Value),
    /// Starts above `limit`, ends at or below `limit - deadband`. Deadband ≥ 0, in the point's unit.
    Above {
        /// The limit.
        limit: f64,
        /// How far back the value must come.
        deadband: f64,
    },
    /// Starts below `limit`, ends at or above `limit + deadband`.
    Below {
        /// The limit.
        limit: f64,
        /// How far back the value must come.
        deadband: f64,
    },
    /// An unsigned event counter went up (modulo its width); ends with the first reading that did not.
    Increments,
    /// No reading for this long.
    Stale(Duration),
    /// The reading's quality is bad.
    Bad,
}

/// Whether the alarm stays after its condition ended, until someone resets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latch {
    /// Stays until `reset`.
    Latching,
    /// Ends with its condition.
    NonLatching,
}

/// Whether people must acknowledge it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledgement {
    /// It never becomes NORM without an acknowledgement.
    Required,
    /// It returns to NORM by itself.
    NotRequired,
}

/// Which points a rule applies to: segments to match, `+` any one, `#` any rest (MQTT's wildcards).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Arc<[Match]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Match {
    Exactly(Segment),
    AnyOne,
    AnyRest,
}

impl Selector {
    /// Exactly this point.
    #[must_use]
    pub fn point(point: &PointId) -> Self {
        Self::parse(point.as_str()).expect("a point is a selector without wildcards")
    }

    /// Parses `panel/door`, `+/intrusion/#`; `None` if it is neither a point nor a pattern (`#` only at the end).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        for segment in text.split('/') {
            if parts.last() == Some(&Match::AnyRest) {
                return None;
            }
            parts.push(match segment {
                "+" => Match::AnyOne,
                "#" => Match::AnyRest,
                exact => Match::Exactly(Segment::parse(exact).ok()?),
            });
        }
        let fixed = parts.iter().filter(|m| **m != Match::AnyRest).count();
        let rest = parts.len() - fixed;
        // Without `#` it must have a point's length; `#` stands for at least one more segment or none.
        let fits = if rest == 0 { (2..=4).contains(&fixed) } else { fixed <= 4 };
        fits.then(|| Self(parts.into()))
    }

    /// Whether the point is meant. `a/#` matches `a/b` and `a/b/c`.
    #[must_use]
    pub fn matches(&self, point: &PointId) -> bool {
        let mut segments = point.as_str().split('/');
        for part in self.0.iter() {
            match (part, segments.next()) {
                (Match::AnyRest, _) => return true,
                (Match::AnyOne, Some(_)) => {}
                (Match::Exactly(want), Some(have)) if want.as_str() == have => {}
                (Match::AnyOne | Match::Exactly(_), _) => return false,
            }
        }
        segments.next().is_none()
    }

    /// The single point it names, if it has no wildcard.
    #[must_use]
    pub fn as_point(&self) -> Option<PointId> {
        let mut names = Vec::with_capacity(self.0.len());
        for part in self.0.iter() {
            match part {
                Match::Exactly(segment) => names.push(segment.as_str()),
                Match::AnyOne | Match::AnyRest => return None,
            }
        }
        PointId::parse(&names.join("/")).ok()
    }
}

/// How an alarm of this rule is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// Point `/` rule.
    PointAndRule,
    /// The built-in `{device}/communication`; its rule names one point.
    Fixed(AlarmId),
}

/// One rule, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name, one segment.
    pub name: Segment,
    /// Which points it watches.
    pub select: Selector,
    /// How its alarms are named.
    pub naming: Naming,
    /// When it holds.
    pub when: Condition,
    /// How bad that is.
    pub severity: Severity,
    /// The condition must hold this long before it is raised.
    pub on_delay: Duration,
    /// The condition must be gone this long before it is cleared.
    pub off_delay: Duration,
    /// Whether it stays until reset.
    pub latch: Latch,
    /// Whether it must be acknowledged.
    pub acknowledgement: Acknowledgement,
    /// Text for people.
    pub message: Texts,
}

impl Rule {
    /// The rule of an alarm that the gateway raises itself: true at the point of the alarm's own name. It clears by
    /// itself and needs no acknowledgement.
    ///
    /// # Panics
    /// Unless the name has 2 to 4 segments, as those of built-in alarms have.
    #[must_use]
    pub fn built_in(alarm: AlarmId, severity: Severity, message: Texts) -> Self {
        let point = PointId::parse(alarm.as_str()).expect("a built-in alarm's name is that of its point");
        let (_, name) = alarm.as_str().rsplit_once('/').expect("two segments");
        Self {
            name: Segment::parse(name).expect("a segment of a name"),
            select: Selector::point(&point),
            naming: Naming::Fixed(alarm),
            when: Condition::Is(Value::Bool(true)),
            severity,
            on_delay: Duration::ZERO,
            off_delay: Duration::ZERO,
            latch: Latch::NonLatching,
            acknowledgement: Acknowledgement::NotRequired,
            message,
        }
    }

    /// The alarm this rule makes of `point`.
    #[must_use]
    pub fn alarm(&self, point: &PointId) -> AlarmId {
        match &self.naming {
            Naming::PointAndRule => AlarmId::of(point, &self.name),
            Naming::Fixed(id) => id.clone(),
        }
    }

    /// The limit that payloads show.
    #[must_use]
    pub const fn limit(&self) -> Option<f64> {
        match self.when {
            Condition::Above { limit, .. } | Condition::Below { limit, .. } => Some(limit),
            Condition::Is(_) | Condition::Increments | Condition::Stale(_) | Condition::Bad => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_matches_like_an_mqtt_filter() {
        let matches = |selector: &str, point: &str| {
            Selector::parse(selector).expect(selector).matches(&PointId::parse(point).expect(point))
        };
        assert!(matches("panel/door", "panel/door"));
        assert!(!matches("panel/door", "panel/door/left"));
        assert!(matches("+/intrusion/#", "cam07/intrusion/kolam"));
        assert!(matches("cam07/#", "cam07/online"));
        assert!(!matches("+/intrusion", "cam07/intrusion/kolam"));
        assert!(matches("#", "a/b/c/d"));
        for bad in ["#/a", "a", "a/b/c/d/e", "A/b", "a//b", ""] {
            assert_eq!(Selector::parse(bad), None, "{bad}");
        }
    }
}
