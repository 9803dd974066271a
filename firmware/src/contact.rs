//! One dry contact: debounced, and its activations counted.
//!
//! A contact that was just touched bounces for some milliseconds. A new level counts once it has rested for the debounce
//! time; anything shorter never happened. What is found first counts at once, since there is nothing better to say, and
//! is no event: nobody saw it begin.

use crate::time::{Duration, Instant};

/// A contact and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    debounce: Duration,
    /// What was found first, then what rested long enough last.
    state: Option<bool>,
    /// The level seen last, and since when.
    level: Option<(bool, Instant)>,
    events: u16,
}

/// What a sample changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// The state is known for the first time: no event.
    First(bool),
    /// It became active: an event.
    Rose,
    /// It is no longer active.
    Fell,
}

impl Contact {
    /// A contact that has counted `events` so far.
    #[must_use]
    pub const fn new(debounce: Duration, events: u16) -> Self {
        Self { debounce, state: None, level: None, events }
    }

    /// Takes what the pin says at `now`, which never goes back.
    ///
    /// A level rests from the first sample that has it to the last; who knows the edges themselves, gives the old level
    /// once more at the moment of the edge and then the new one.
    pub fn sample(&mut self, active: bool, now: Instant) -> Option<Edge> {
        let since = match self.level {
            Some((level, since)) if level == active => since,
            Some(_) | None => {
                self.level = Some((active, now));
                now
            }
        };
        let Some(state) = self.state else {
            self.state = Some(active);
            return Some(Edge::First(active));
        };
        let rested = now.checked_duration_since(since).is_some_and(|rested| rested >= self.debounce);
        if !rested || state == active {
            return None;
        }
        self.state = Some(active);
        if !active {
            return Some(Edge::Fell);
        }
        self.events = self.events.wrapping_add(1);
        Some(Edge::Rose)
    }

    /// The debounced state; `None` before the first sample.
    #[must_use]
    pub const fn is_active(&self) -> Option<bool> {
        self.state
    }

    /// Activations so far, modulo 65536.
    #[must_use]
    pub const fn events(&self) -> u16 {
        self.events
    }

    /// When the level seen last will have rested long enough, if it is not the state yet: when to look again.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let (level, since) = self.level?;
        (self.state != Some(level)).then(|| since.checked_add_duration(self.debounce)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const fn at(ms: u64) -> Instant {
        Instant::from_ticks(ms * 1_000)
    }

    /// Plays levels, each lasting so many milliseconds, sampled every millisecond; returns the edges with their times.
    fn play(contact: &mut Contact, levels: &[(bool, u64)]) -> Vec<(u64, Edge)> {
        let (mut edges, mut now) = (Vec::new(), 0);
        for &(level, lasts) in levels {
            for _ in 0..lasts {
                edges.extend(contact.sample(level, at(now)).map(|edge| (now, edge)));
                now += 1;
            }
        }
        edges
    }

    #[test]
    fn a_press_counts_once_however_it_bounces() {
        let mut contact = Contact::new(Duration::millis(20), 0);
        let bouncing = [
            (false, 100),
            (true, 3),
            (false, 2),
            (true, 1),
            (false, 4),
            (true, 50),
            (false, 3),
            (true, 2),
            (false, 60),
        ];
        let edges = play(&mut contact, &bouncing);
        assert_eq!(edges, [(0, Edge::First(false)), (130, Edge::Rose), (185, Edge::Fell)]);
        assert_eq!((contact.events(), contact.is_active()), (1, Some(false)));
    }

    #[test]
    fn what_is_shorter_than_the_debounce_time_never_happened() {
        let mut contact = Contact::new(Duration::millis(20), 7);
        assert_eq!(play(&mut contact, &[(false, 50), (true, 20), (false, 50), (true, 1)]), [(0, Edge::First(false))]);
        assert_eq!(contact.events(), 7);
    }

    #[test]
    fn a_contact_that_is_found_active_is_no_event() {
        let mut contact = Contact::new(Duration::millis(20), 0);
        assert_eq!(play(&mut contact, &[(true, 30)]), [(0, Edge::First(true))]);
        assert_eq!(contact.events(), 0);
    }

    #[test]
    fn the_counter_wraps() {
        let mut contact = Contact::new(Duration::millis(1), u16::MAX);
        play(&mut contact, &[(false, 5), (true, 5)]);
        assert_eq!(contact.events(), 0);
    }

    #[test]
    fn it_says_when_to_look_again() {
        let mut contact = Contact::new(Duration::millis(20), 0);
        assert_eq!(contact.due(), None);
        contact.sample(false, at(4));
        assert_eq!(contact.due(), None);
        contact.sample(true, at(5));
        assert_eq!(contact.due(), Some(at(25)));
        contact.sample(true, at(25));
        assert_eq!((contact.is_active(), contact.due()), (Some(true), None));
    }

    proptest! {
        /// The reference: the first level and runs that lasted long enough; one event for each active one after another level.
        #[test]
        fn it_agrees_with_runs_of_levels(levels in prop::collection::vec((any::<bool>(), 1_u64..60), 1..60), debounce in 1_u64..40) {
            let mut contact = Contact::new(Duration::millis(debounce), 0);
            play(&mut contact, &levels);
            let mut runs: Vec<(bool, u64)> = Vec::new();
            for (level, lasts) in levels {
                match runs.last_mut() {
                    Some((last, sum)) if *last == level => *sum += lasts,
                    _ => runs.push((level, lasts)),
                }
            }
            let first = runs[0].0;
            let rested = runs.into_iter().filter(|(_, lasted)| *lasted > debounce).map(|(level, _)| level);
            let mut states: Vec<bool> = [first].into_iter().chain(rested).collect();
            states.dedup();
            let events = states.windows(2).filter(|pair| pair[1]).count();
            prop_assert_eq!(usize::from(contact.events()), events);
            prop_assert_eq!(contact.is_active(), states.last().copied());
        }
    }
}
