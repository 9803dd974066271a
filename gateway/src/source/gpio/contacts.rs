//! Levels and edges of a chip's lines to readings of its contacts. Pure.
//!
//! Debounce and counting are the sensor node's ([`gardu_node::contact`]). The kernel stamps every edge, so what happened
//! between two looks is judged as if it had been watched: a press of 50 ms counts even if nobody looked for a second, and
//! is passed on as pressed and released, each with the counter.

use gardu_node::{
    contact::{Contact, Edge},
    time::{Duration, Instant, after},
};

use super::Trouble;
use crate::{
    clock::Now,
    config::{Gpio, GpioContact, Level},
    reading::{Reading, Reason, Value},
    source::polled::{Change, Polled},
};

/// An edge may be handed over this long after its stamp: the kernel takes it down in the interrupt, and passes it on from a
/// thread. A level counts as rested only when no edge within its rest can still come.
const HAND_OVER: Duration = Duration::millis(5);

/// All contacts of one chip.
#[derive(Debug)]
pub struct Contacts {
    contacts: Vec<Watched>,
    /// Its points are the state and the counter of each contact, in turn.
    polled: Polled<Trouble>,
    /// What changed since it was last taken: which contact, its state, its events.
    changes: Vec<(usize, bool, u16)>,
}

#[derive(Debug)]
struct Watched {
    contact: Contact,
    debounce: Duration,
    active: Level,
    /// Whether the line is at its active level now.
    level: bool,
    /// When it was sampled last: the kernel's edges and our looks come from different sources, and time never goes back.
    last: Instant,
}

/// What a poll led to.
#[derive(Debug)]
pub struct Report {
    /// What to pass on; may be empty.
    pub readings: Vec<Reading>,
    /// Something people should know.
    pub change: Option<Change<Trouble>>,
}

impl Contacts {
    /// Nothing is known of them yet.
    #[must_use]
    pub fn new(gpio: &Gpio) -> Self {
        let watched = |contact: &GpioContact| {
            let debounce = Duration::micros(u64::try_from(contact.debounce.as_micros()).unwrap_or(u64::MAX));
            let last = Instant::from_ticks(0);
            Watched { contact: Contact::new(debounce, 0), debounce, active: contact.active, level: false, last }
        };
        let points = gpio.contacts.iter().flat_map(|contact| [contact.state.clone(), contact.events.clone()]);
        Self {
            contacts: gpio.contacts.iter().map(watched).collect(),
            polled: Polled::new(&gpio.name, gpio.missed_polls, points),
            changes: Vec::new(),
        }
    }

    /// How many points they have.
    #[must_use]
    pub const fn points(&self) -> usize {
        self.polled.points()
    }

    /// The lines were just opened: what they are at now is where counting goes on from. Nobody saw what was before.
    pub fn opened(&mut self, high: &[bool], at: Instant) {
        for (index, (watched, high)) in self.contacts.iter_mut().zip(high).enumerate() {
            watched.contact = Contact::new(watched.debounce, watched.contact.events());
            watched.level = watched.active.is(*high);
            watched.last = at;
            if let Some(Edge::First(state)) = watched.contact.sample(watched.level, at) {
                self.changes.push((index, state, watched.contact.events()));
            }
        }
    }

    /// What the lines are at now. Differs from what edges said only if one was lost.
    pub fn levels(&mut self, high: &[bool], at: Instant) {
        for (index, high) in high.iter().enumerate() {
            if self.contacts.get(index).is_some_and(|watched| watched.active.is(*high) != watched.level) {
                self.edge(index, *high, at);
            }
        }
    }

    /// A line went high or low at this moment.
    pub fn edge(&mut self, index: usize, high: bool, at: Instant) {
        let Some(watched) = self.contacts.get_mut(index) else { return };
        let (before, level) = (watched.level, watched.active.is(high));
        watched.level = level;
        watched.last = watched.last.max(at);
        // The old level lasted until now. Two edges to one level have lost the one between them: the level did not rest.
        for sample in [before, !level, level] {
            self.sample(index, sample);
        }
    }

    /// Lets levels count that have rested long enough.
    pub fn settle(&mut self, now: Instant) {
        for index in 0..self.contacts.len() {
            let watched = &mut self.contacts[index];
            if let Some(due) = watched.contact.due().filter(|due| after(*due, HAND_OVER) <= now) {
                watched.last = watched.last.max(due);
                let level = watched.level;
                self.sample(index, level);
            }
        }
    }

    fn sample(&mut self, index: usize, level: bool) {
        let watched = &mut self.contacts[index];
        let state = match watched.contact.sample(level, watched.last) {
            None => return,
            Some(Edge::First(state)) => state,
            Some(Edge::Rose) => true,
            Some(Edge::Fell) => false,
        };
        self.changes.push((index, state, watched.contact.events()));
    }

    /// When [`Contacts::settle`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.contacts.iter().filter_map(|watched| watched.contact.due()).min().map(|due| after(due, HAND_OVER))
    }

    /// The readings of what changed since this was last asked, in its order.
    #[must_use]
    pub fn changed(&mut self, now: Now) -> Vec<Reading> {
        let mut readings = Vec::new();
        for (index, state, events) in std::mem::take(&mut self.changes) {
            self.say(index, state, events, now, &mut readings);
        }
        readings
    }

    /// A poll that found the lines: what changed, and the present state of all.
    #[must_use]
    pub fn present(&mut self, now: Now) -> Report {
        let mut readings = self.changed(now);
        for index in 0..self.contacts.len() {
            let contact = &self.contacts[index].contact;
            if let Some(state) = contact.is_active() {
                self.say(index, state, contact.events(), now, &mut readings);
            }
        }
        let change = self.polled.end(None, now, &mut readings);
        Report { readings, change }
    }

    /// A poll that did not.
    #[must_use]
    pub fn absent(&mut self, trouble: Trouble, now: Now) -> Report {
        let mut readings = self.changed(now);
        for point in 0..self.polled.points() {
            self.polled.bad(point, Reason::LinkDown, now, &mut readings);
        }
        let change = self.polled.end(Some(trouble), now, &mut readings);
        Report { readings, change }
    }

    fn say(&mut self, index: usize, state: bool, events: u16, now: Now, readings: &mut Vec<Reading>) {
        self.polled.good(2 * index, Value::Bool(state), now, readings);
        self.polled.good(2 * index + 1, Value::Integer(events.into()), now, readings);
    }
}

#[cfg(test)]
mod tests;
