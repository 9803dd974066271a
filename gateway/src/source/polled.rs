//! A device that is polled, by whatever wire: which of its readings are passed on, and when it is silent. Pure.
//!
//! A poll in which the device answered nothing is **missed**; after `missed_polls` of them in a row the device is
//! silent and the point `{device}/communication` says so. What was not read is bad from the first missed poll on, so
//! no old value passes for a present one.
//!
//! Good readings are passed on at every poll, for counters and staleness are judged by them; a bad one only when it is
//! new or its reason changes, for a dead bus would otherwise fill the queue with what everyone knows.

use crate::{
    clock::Now,
    reading::{PointId, Reading, Reason, Segment, Value},
};

/// What is known and was said of a device; `T` is what can be wrong with it.
#[derive(Debug)]
pub struct Polled<T> {
    communication: PointId,
    missed_polls: u32,
    points: Vec<PointId>,
    /// The reason last said of each point; none while it is good.
    said: Vec<Option<Reason>>,
    /// What `{device}/communication` last said.
    silent: Option<bool>,
    missed: u32,
    /// The trouble that began the present run of missed polls.
    lost: Option<T>,
}

/// Whether a device answers: a change that is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// It missed a poll for the first time.
    Lost(T),
    /// It answers again.
    Back {
        /// How many polls it missed.
        missed: u32,
        /// What began it.
        lost: T,
    },
}

impl<T: Clone> Polled<T> {
    /// Nothing is known of the device yet.
    #[must_use]
    pub fn new(device: &Segment, missed_polls: u32, points: impl IntoIterator<Item = PointId>) -> Self {
        let name = Segment::parse("communication").expect("a segment");
        let points: Vec<PointId> = points.into_iter().collect();
        Self {
            communication: PointId::of(device, &name),
            missed_polls,
            said: vec![None; points.len()],
            points,
            silent: None,
            missed: 0,
            lost: None,
        }
    }

    /// A value was read.
    pub fn good(&mut self, point: usize, value: Value, now: Now, readings: &mut Vec<Reading>) {
        self.said[point] = None;
        readings.push(Reading::good(self.points[point].clone(), value, now));
    }

    /// No value could be read; true if that is new.
    pub fn bad(&mut self, point: usize, reason: Reason, now: Now, readings: &mut Vec<Reading>) -> bool {
        let is_new = self.said[point].replace(reason) != Some(reason);
        if is_new {
            readings.push(Reading::bad(self.points[point].clone(), reason, now));
        }
        is_new
    }

    /// Ends a poll; `trouble` is why the device answered nothing at all.
    pub fn end(&mut self, trouble: Option<T>, now: Now, readings: &mut Vec<Reading>) -> Option<Change<T>> {
        let mut say = |silent| readings.push(Reading::good(self.communication.clone(), Value::Bool(silent), now));
        match trouble {
            None => {
                if self.silent.replace(false) != Some(false) {
                    say(false);
                }
                let missed = std::mem::take(&mut self.missed);
                self.lost.take().map(|lost| Change::Back { missed, lost })
            }
            Some(trouble) => {
                self.missed = self.missed.saturating_add(1);
                if self.missed >= self.missed_polls && self.silent.replace(true) != Some(true) {
                    say(true);
                }
                let is_first = self.lost.is_none();
                self.lost.get_or_insert_with(|| trouble.clone());
                is_first.then_some(Change::Lost(trouble))
            }
        }
    }

    /// How many polls the device has missed in a row.
    #[must_use]
    pub const fn missed(&self) -> u32 {
        self.missed
    }

    /// How many points it has.
    #[must_use]
    pub const fn points(&self) -> usize {
        self.points.len()
    }
}
