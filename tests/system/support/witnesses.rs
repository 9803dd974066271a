//! Cameras and sensors that publish one message after the other while they may, each until it has its PUBACK, and
//! remember what was promised to them; and the proof that every promise was kept.
//!
//! Each message of a camera ends what the one before began, so each is one transition; each of a sensor is one level of
//! telemetry. A message that has its PUBACK must lead to its event, whatever happened since.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ScopedJoinHandle},
};

use super::{
    PATIENCE,
    ledger::Ledger,
    load::{SENSOR, alarm, values},
    mqtt::{Publisher, Version},
    park::CAMERAS,
};

/// Device and client id of each camera: their confirmations wait for the alarm chain.
const CAMERA_NAMES: [&str; 6] = ["kamera0", "kamera1", "kamera2", "kamera3", "kamera4", "kamera5"];
/// Device and client id of each sensor: their confirmations wait for the telemetry chain.
const SENSOR_NAMES: [&str; 3] = ["sensor0", "sensor1", "sensor2"];
const COUNT: usize = CAMERA_NAMES.len() + SENSOR_NAMES.len();

/// Everything below `[command_center]` that they need.
pub(crate) fn body() -> String {
    format!("{CAMERAS}{SENSOR}")
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    shift: Mutex<Shift>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Shift {
    now: Now,
    /// How many of them have nothing under way.
    idle: usize,
    /// The last message of each that was confirmed: all before it were as well.
    promised: [u64; COUNT],
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Now {
    /// Each ends what it has under way.
    #[default]
    Rest,
    /// Sensors only.
    Measure,
    Work,
    Over,
}

/// What became of the promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Messages that were confirmed to their publishers.
    pub(crate) acknowledged: u64,
    /// Whose events arrived.
    pub(crate) delivered: u64,
    /// Alarms whose last state is not what the last message made it.
    pub(crate) wrong_states: u64,
    /// Of the promises that were broken, those to cameras.
    pub(crate) alarms_lost: u64,
}

impl Kept {
    /// Promises that were broken.
    pub(crate) const fn lost(&self) -> u64 {
        self.acknowledged - self.delivered
    }

    /// Of these, those to sensors.
    pub(crate) const fn telemetry_lost(&self) -> u64 {
        self.lost() - self.alarms_lost
    }
}

impl Witnesses {
    /// Runs a story beside them. They rest until they are told to work, and end with the story, also if it panics.
    pub(crate) fn beside<T>(&self, port: u16, story: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let _ends = Ends(self);
            let publish = |place: usize| {
                move || {
                    let (name, version, topic) = match CAMERA_NAMES.get(place) {
                        Some(name) => (*name, Version::V311, format!("cam/{name}/motion")),
                        None => {
                            let name = SENSOR_NAMES[place - CAMERA_NAMES.len()];
                            (name, Version::V5, format!("level/{name}"))
                        }
                    };
                    let mut publisher = Publisher::new(port, version, name);
                    for n in 1.. {
                        let is_camera = place < CAMERA_NAMES.len();
                        if !self.may_go_on(is_camera) {
                            return;
                        }
                        let payload = if is_camera { is_active(n).to_string() } else { n.to_string() };
                        publisher.publish(&topic, &payload);
                        self.shift().promised[place] = n;
                        self.changed.notify_all();
                    }
                }
            };
            let _threads: Vec<ScopedJoinHandle<'_, ()>> = (0..COUNT).map(|place| scope.spawn(publish(place))).collect();
            story()
        })
    }

    /// Lets them publish.
    pub(crate) fn work(&self) {
        self.tell(Now::Work);
    }

    /// Lets only the sensors publish.
    pub(crate) fn measure(&self) {
        self.tell(Now::Measure);
    }

    /// Lets each end what it has under way, and no more.
    pub(crate) fn rest(&self) {
        self.tell(Now::Rest);
    }

    /// Messages confirmed so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.shift().promised.iter().sum()
    }

    /// Waits until so many messages are confirmed.
    pub(crate) fn wait_for(&self, acknowledged: u64) {
        self.wait("publishers to get on", |shift| shift.promised.iter().sum::<u64>() >= acknowledged);
    }

    /// Waits until so many more levels of each sensor are confirmed.
    pub(crate) fn wait_for_levels(&self, more: u64) {
        let least = |shift: &Shift| shift.promised[CAMERA_NAMES.len()..].iter().copied().min().unwrap_or(0);
        let enough = least(&self.shift()) + more;
        self.wait("sensors to get on", |shift| least(shift) >= enough);
    }

    /// Waits until they rest: whatever was sent is confirmed.
    pub(crate) fn wait_until_idle(&self) {
        self.wait("publishers to rest", |shift| shift.idle == COUNT);
    }

    /// What the center's books say of the promises. They rest, and everything has arrived that ever will.
    pub(crate) fn look(&self, ledger: &Ledger) -> Kept {
        let shift = self.shift();
        let mut kept = Kept { acknowledged: shift.promised.iter().sum(), ..Kept::default() };
        let (cameras, sensors) = shift.promised.split_at(CAMERA_NAMES.len());
        for (name, promised) in CAMERA_NAMES.iter().zip(cameras) {
            let alarm = alarm(name);
            for (kind, count) in [("raised", promised.div_ceil(2)), ("cleared", promised / 2)] {
                let events = ledger.transitions(kind, &alarm).filter_map(|event| event.data("occurrence").as_u64());
                kept.delivered += (events.collect::<BTreeSet<u64>>().len() as u64).min(count);
            }
            let state = if is_active(*promised) { "UNACK" } else { "NORM" };
            kept.wrong_states += u64::from(ledger.state(&alarm) != state);
        }
        kept.alarms_lost = cameras.iter().sum::<u64>() - kept.delivered;
        for (name, promised) in SENSOR_NAMES.iter().zip(sensors) {
            let told = values(ledger, &format!("{name}/tank/level"));
            kept.delivered += (1..=*promised).filter(|level| told.contains(level)).count() as u64;
        }
        kept
    }

    fn may_go_on(&self, is_camera: bool) -> bool {
        let mut shift = self.shift();
        shift.idle += 1;
        self.changed.notify_all();
        let rests = |shift: &mut Shift| match shift.now {
            Now::Rest => true,
            Now::Measure => is_camera,
            Now::Work | Now::Over => false,
        };
        let mut shift = self.changed.wait_while(shift, rests).expect("no panic while the shift is held");
        shift.idle -= 1;
        shift.now != Now::Over
    }

    fn wait(&self, what: &str, so: impl Fn(&Shift) -> bool) {
        let waited = self.changed.wait_timeout_while(self.shift(), PATIENCE, |shift| !so(shift));
        let (shift, waited) = waited.expect("no panic while the shift is held");
        assert!(!waited.timed_out(), "waited in vain for {what}: {shift:?}");
    }

    fn tell(&self, now: Now) {
        self.shift().now = now;
        self.changed.notify_all();
    }

    fn shift(&self) -> MutexGuard<'_, Shift> {
        // A story that waited in vain lets go of it so.
        self.shift.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ends<'a>(&'a Witnesses);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.tell(Now::Over);
    }
}

/// Whether a camera says so in its message `n`, the first being 1.
const fn is_active(n: u64) -> bool {
    n % 2 == 1
}
