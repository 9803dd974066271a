//! Whose turn it is on a bus. Pure; times are milliseconds of the monotonic clock.
//!
//! Each device has absolute due times: its first at the start, then a grid of its own, spread over the poll interval so
//! that devices do not bunch. A late poll skips the due times it missed and never drifts.
//!
//! Devices that are ready take turns request by request. A **suspect** (its last request failed) costs time-outs, so
//! while others are ready, suspects get at most as much time as they leave to the others; one that stays silent is
//! asked ever more seldom, until it answers.

use std::time::Duration;

/// The longest pause between two probes of a silent device: what a technician waits after plugging it in.
pub const PROBE_MAX: Duration = Duration::from_secs(30);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Ask the device of this index.
    Serve(usize),
    /// Nothing is due before this time.
    Rest {
        /// When the next poll is due.
        until_ms: u64,
    },
}

/// How the last poll of a device ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It answered.
    Answered,
    /// It did not, or not yet often enough to call it silent.
    Missed,
    /// It did not, and counts as silent.
    Silent,
    /// Nobody could ask it: says nothing about the device.
    NoLink,
}

/// The due times of a bus's devices.
#[derive(Debug)]
pub struct Schedule {
    slots: Vec<Slot>,
    /// Who was served last; the next one after it that is ready is next.
    last: usize,
    /// Until then suspects yield to the others.
    suspects_yield_until_ms: u64,
}

#[derive(Debug)]
struct Slot {
    poll_ms: u64,
    /// One point of the device's grid, at most one poll after the start.
    grid_ms: u64,
    due_ms: u64,
    under_way: bool,
    suspect: bool,
    /// How often it was asked in vain since it counts as silent.
    probes: u32,
}

impl Schedule {
    /// Devices by their poll intervals; every one is due at once.
    pub fn new(polls: impl ExactSizeIterator<Item = Duration>, now_ms: u64) -> Self {
        let devices = u64::try_from(polls.len()).unwrap_or(u64::MAX);
        let slot = |(i, poll): (u64, Duration)| {
            // Zero would be due for ever; the configuration allows no such thing.
            let poll_ms = u64::try_from(poll.as_millis()).unwrap_or(u64::MAX).max(1);
            let phase_ms = poll_ms / devices * i;
            let (grid_ms, due_ms) = (now_ms.saturating_add(phase_ms), now_ms);
            Slot { poll_ms, grid_ms, due_ms, under_way: false, suspect: false, probes: 0 }
        };
        let slots: Vec<Slot> = (0..).zip(polls).map(slot).collect();
        Self { last: slots.len().saturating_sub(1), slots, suspects_yield_until_ms: 0 }
    }

    /// Whom to ask now.
    pub fn turn(&mut self, now_ms: u64) -> Turn {
        let slots = &self.slots;
        let after_last = (self.last + 1..slots.len()).chain(0..=self.last);
        let mut ready =
            after_last.filter(|&i| slots.get(i).is_some_and(|s| s.under_way || s.due_ms <= now_ms)).peekable();
        let Some(&first) = ready.peek() else {
            return Turn::Rest { until_ms: slots.iter().map(|s| s.due_ms).min().unwrap_or(u64::MAX) };
        };
        let suspects_yield = now_ms < self.suspects_yield_until_ms;
        self.last = ready.find(|&i| !(suspects_yield && slots[i].suspect)).unwrap_or(first);
        Turn::Serve(self.last)
    }

    /// Whether a poll of this device has begun and not ended.
    #[must_use]
    pub fn is_under_way(&self, device: usize) -> bool {
        self.slots[device].under_way
    }

    /// A poll begins; returns how late. Due times up to now are skipped.
    pub fn begin(&mut self, device: usize, now_ms: u64) -> Duration {
        let slot = &mut self.slots[device];
        let late_ms = now_ms.saturating_sub(slot.due_ms);
        slot.under_way = true;
        slot.due_ms = slot.next_on_grid(now_ms);
        Duration::from_millis(late_ms)
    }

    /// A request of this device failed after `took`.
    pub fn failed(&mut self, device: usize, took: Duration, now_ms: u64) {
        self.slots[device].suspect = true;
        self.suspects_yield_until_ms = now_ms.saturating_add(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }

    /// A poll ended.
    pub fn end(&mut self, device: usize, end: End, now_ms: u64) {
        let slot = &mut self.slots[device];
        slot.under_way = false;
        match end {
            End::Answered => (slot.suspect, slot.probes) = (false, 0),
            End::Missed | End::NoLink => {}
            End::Silent => {
                slot.due_ms = now_ms.saturating_add(slot.probe_ms());
                slot.probes = slot.probes.saturating_add(1);
            }
        }
    }
}

impl Slot {
    fn next_on_grid(&self, now_ms: u64) -> u64 {
        match now_ms.checked_sub(self.grid_ms) {
            None => self.grid_ms,
            Some(since) => now_ms.saturating_add(self.poll_ms - since % self.poll_ms),
        }
    }

    /// Twice the poll interval, then twice as long each time, at most [`PROBE_MAX`], never shorter than a poll.
    fn probe_ms(&self) -> u64 {
        let max_ms = u64::try_from(PROBE_MAX.as_millis()).unwrap_or(u64::MAX).max(self.poll_ms);
        self.poll_ms.saturating_mul(2 << self.probes.min(16)).min(max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(polls_ms: &[u64]) -> Schedule {
        Schedule::new(polls_ms.iter().map(|ms| Duration::from_millis(*ms)), 0)
    }

    /// Serves polls of one request that take `took_ms`, until `end_ms`; returns (start, device) of each.
    fn run(schedule: &mut Schedule, took_ms: &[u64], dead: &[usize], end_ms: u64) -> Vec<(u64, usize)> {
        let (mut now, mut served, mut missed) = (0, Vec::new(), vec![0_u32; took_ms.len()]);
        while now < end_ms {
            match schedule.turn(now) {
                Turn::Rest { until_ms } => {
                    assert!(until_ms > now, "a rest is a rest");
                    now = until_ms;
                }
                Turn::Serve(i) => {
                    served.push((now, i));
                    schedule.begin(i, now);
                    now += took_ms[i];
                    let mut end = End::Answered;
                    if dead.contains(&i) {
                        schedule.failed(i, Duration::from_millis(took_ms[i]), now);
                        missed[i] += 1;
                        end = if missed[i] < 3 { End::Missed } else { End::Silent };
                    }
                    schedule.end(i, end, now);
                }
            }
        }
        served
    }

    #[test]
    fn polls_keep_to_their_grid_and_are_spread_over_it() {
        let served = run(&mut schedule(&[1000, 1000]), &[7, 7], &[], 3000);
        assert_eq!(served, [(0, 0), (7, 1), (500, 1), (1000, 0), (1500, 1), (2000, 0), (2500, 1)]);
    }

    #[test]
    fn a_late_poll_skips_what_it_missed_and_says_how_late_it_is() {
        let mut schedule = schedule(&[100]);
        assert_eq!(schedule.turn(0), Turn::Serve(0));
        assert_eq!(schedule.begin(0, 0), Duration::ZERO);
        schedule.end(0, End::Answered, 5);
        assert_eq!(schedule.turn(5), Turn::Rest { until_ms: 100 });
        assert_eq!(schedule.begin(0, 370), Duration::from_millis(270));
        schedule.end(0, End::Answered, 375);
        assert_eq!(schedule.turn(375), Turn::Rest { until_ms: 400 });
    }

    #[test]
    fn devices_with_polls_under_way_take_turns_request_by_request() {
        let mut schedule = schedule(&[1000, 1000, 1000]);
        let turns: Vec<Turn> = (0..6)
            .map(|_| {
                let turn = schedule.turn(0);
                let Turn::Serve(i) = turn else { panic!("all are due") };
                schedule.begin(i, 0);
                turn
            })
            .collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2].map(Turn::Serve));
    }

    #[test]
    fn a_silent_device_is_probed_ever_more_seldom() {
        let served = run(&mut schedule(&[1000]), &[500], &[0], 200_000);
        let starts: Vec<u64> = served.iter().map(|(at, _)| *at).collect();
        assert_eq!(starts[..8], [0, 1000, 2000, 4500, 9000, 17_500, 34_000, 64_500]);
        assert!(starts[7..].windows(2).all(|w| w[1] - w[0] == 30_500), "{starts:?}");
        let slow = run(&mut schedule(&[60_000]), &[500], &[0], 400_000);
        assert!(slow.windows(2).all(|w| w[1].0 - w[0].0 <= 60_500), "{slow:?}");
    }

    #[test]
    fn dead_devices_leave_half_of_the_time_to_the_healthy() {
        // One healthy device that is always due, nine dead ones whose time-out is fifty requests long.
        let mut took = [500; 10];
        took[0] = 10;
        let mut polls = [1000; 10];
        polls[0] = 10;
        let served = run(&mut schedule(&polls), &took, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 60_000);
        let healthy = served.iter().filter(|(_, i)| *i == 0).count();
        assert!(healthy >= 2_500, "{healthy} of at most 6000");
        assert!((1..10).all(|dead| served.iter().filter(|(_, i)| *i == dead).count() >= 3), "each is still probed");
    }

    #[test]
    fn a_bus_without_devices_rests() {
        assert_eq!(schedule(&[]).turn(7), Turn::Rest { until_ms: u64::MAX });
    }
}
