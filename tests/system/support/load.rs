//! A park that works while something around it is broken again and again, and the proof that nothing was lost.
//!
//! Three cameras publish detections and a sensor its level, each message confirmed before the same publisher's next, and
//! meters turn. Each fault has its share of the detections: it strikes in the middle of them, and the rest goes on under
//! it, however long it lasts. The proof: each detection arrived once by its occurrence, each confirmed level arrived, each
//! alarm's last state is exact, and every settled number is in the books.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    broker::Broker,
    gateway::Gateway,
    ledger::Ledger,
    mqtt::{Publisher, Version},
    park::{CAMERAS, Park, meters},
    pause, until,
};

/// Device and client id of each camera.
const CAMERA_NAMES: [&str; 3] = ["kamera0", "kamera1", "kamera2"];
/// Of one camera for each fault: enough that it meets commits, publishes and confirmations under way. Even, so that each
/// share ends what it began.
const DETECTIONS: u64 = 20;
/// Of them: so many are through when the moment comes, and so many may be made before the fault strikes.
const DETECTIONS_THROUGH: u64 = 5;
const DETECTIONS_BEFORE: u64 = 10;
/// A sensor whose every change is telemetry, on the cameras' input: its confirmations wait for the other chain.
pub(crate) const SENSOR: &str = r#"
[[mqtt.subscribe]]
topic = "level/{device}"
format = "json"
point = "{device}/tank/level"
value = ""
report = "change"

"#;
/// Device and client id of the sensor.
const SENSOR_NAME: &str = "sensor";
/// Meter registers whose every change is telemetry.
const METER_COUNT: u16 = 8;
/// A detection takes a few milliseconds from its PUBLISH to the center's books; within this time a fault can strike at any
/// step of several of them.
pub(crate) const MOMENT_MAX: Duration = Duration::from_millis(30);

/// How often the park is struck.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load<'a> {
    /// Names the row.
    pub(crate) name: &'a str,
    /// Faults, each with its share of the load.
    pub(crate) faults: u64,
    /// What must go on before the next one.
    pub(crate) between: Between,
}

/// How far the park gets between two faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Between {
    /// A share of the detections is in the center's books: each fault meets a working uplink.
    Delivered,
    /// A share of the detections is confirmed to the cameras: the center may be out of reach.
    Confirmed,
}

/// What was proved, as a row of a table.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What was done to whom.
    pub(crate) name: String,
    /// Faults under load.
    pub(crate) kills: u64,
    /// Transitions the cameras caused, and confirmed levels.
    pub(crate) events: u64,
    /// Numbers the gateway calls settled, both lanes.
    pub(crate) settled: u64,
    /// How many of these never arrived.
    pub(crate) lost: u64,
    /// Settled numbers that were declared lost.
    pub(crate) declared: usize,
    /// Deliveries of an id that was here already.
    pub(crate) repeated: u64,
    /// From the first event to the end of the proof.
    pub(crate) took: Duration,
}

impl Outcome {
    /// What the columns of its rows mean.
    pub(crate) const HEADER: &'static str =
        "fault                                      kills  events settled    lost declared repeated    took";
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kills, events, settled, lost, declared, repeated, took } = self;
        let took_s = took.as_secs_f64();
        write!(f, "{name:<42} {kills:>5} {events:>7} {settled:>7} {lost:>7} {declared:>8} {repeated:>8} {took_s:>6.1}s")
    }
}

/// Everything below `[command_center]` that a load needs.
pub(crate) fn body() -> String {
    format!("{CAMERAS}{SENSOR}{}", meters("100ms", METER_COUNT, 1))
}

/// Whether telemetry ever said this of a point.
pub(crate) fn reads(ledger: &Ledger, point: &str, value: u16) -> Option<()> {
    let mut readings = ledger.events.iter().filter_map(|event| event.data("readings").as_array()).flatten();
    readings.any(|reading| reading["point"] == point && reading["value"] == value).then_some(())
}

/// Every value that telemetry ever said of a point.
pub(crate) fn values(ledger: &Ledger, point: &str) -> BTreeSet<u64> {
    let readings = ledger.events.iter().filter_map(|event| event.data("readings").as_array()).flatten();
    readings.filter(|reading| reading["point"] == point).filter_map(|reading| reading["value"].as_u64()).collect()
}

/// A source of random moments; its seed is printed, and given again by `GARDU_SEED`.
pub(crate) fn dice(name: &str) -> fastrand::Rng {
    let given = std::env::var("GARDU_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{name}: GARDU_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Lets a random part of `most` pass, so that what follows strikes at any step of what goes on meanwhile.
pub(crate) fn random_moment(dice: &mut fastrand::Rng, most: Duration) {
    thread::sleep(most.mul_f64(dice.f64()));
}

impl Load<'_> {
    /// Strikes a park that was opened on [`body`] while it works, stops the gateway in peace, prints the row, and fails
    /// unless nothing was lost. `fault` begins and ends one fault, or leaves the ending to the next; after the last one the
    /// gateway must be able to reach its command center.
    pub(crate) fn on(&self, park: &mut Park, fault: impl FnMut(&mut Gateway, &mut Broker)) -> Outcome {
        let outcome = self.strike(park, fault);
        let (ledger, log) = (park.center.ledger(), park.gateway.log());
        assert_eq!((outcome.lost, outcome.declared), (0, 0), "{outcome}\n{}\n{log}", ledger.outline());
        for event in &ledger.events {
            let lane = &ledger.status_now()["lanes"][event.lane.to_string()];
            let settled = lane["settled"].as_u64().filter(|_| lane["epoch"] == event.epoch);
            assert!(settled >= Some(event.sequence), "{}-{} is not settled: {lane}", event.lane, event.sequence);
        }
        drop(ledger);
        // The retained copy follows the confirmation of its event.
        for name in CAMERA_NAMES {
            let active = detections(name, self.faults * DETECTIONS) % 2 == 1;
            park.center.wait_for_state(&alarm(name), if active { "UNACK" } else { "NORM" });
        }
        outcome
    }

    /// The same, but a loss is only counted.
    pub(crate) fn strike(&self, park: &mut Park, mut fault: impl FnMut(&mut Gateway, &mut Broker)) -> Outcome {
        let began = Instant::now();
        let mut dice = dice(self.name);
        let share = self.faults * DETECTIONS;
        let Park { gateway, center, plc, broker } = &mut *park;
        let (plc, ingest, confirmed, over) = (&*plc, gateway.ingest, &AtomicU64::new(0), &AtomicBool::new(false));
        let gate = &Gate::default();
        let levels = thread::scope(|scope| {
            // If a fault panics, publishers that wait or go on would keep the scope for ever.
            let _ends = EndsPublishers { gate, over };
            let sensor = scope.spawn(move || {
                let (mut sensor, mut level) = (Publisher::new(ingest, Version::V5, SENSOR_NAME), 0);
                while !over.load(Ordering::Relaxed) {
                    level += 1;
                    sensor.publish(&format!("level/{SENSOR_NAME}"), &level.to_string());
                    pause();
                }
                level
            });
            let cameras = CAMERA_NAMES.map(|name| {
                scope.spawn(move || {
                    let mut camera = Publisher::new(ingest, Version::V311, name);
                    for n in 1..=detections(name, share) {
                        gate.wait_for(n);
                        let value = u16::try_from(n).unwrap_or(u16::MAX);
                        plc.set(1, &format!("input:{}", n % u64::from(METER_COUNT)), value);
                        // Each message ends what the camera's message before began: every one is a transition.
                        camera.publish(&format!("cam/{name}/motion"), &(n % 2 == 1).to_string());
                        confirmed.fetch_add(1, Ordering::Relaxed);
                    }
                })
            });
            for before in (0..self.faults).map(|n| n * DETECTIONS) {
                gate.open_to(before + DETECTIONS_BEFORE);
                let so_many = (before + DETECTIONS_THROUGH) * CAMERA_NAMES.len() as u64;
                match self.between {
                    Between::Delivered => {
                        center.wait_for("the load to go on", |ledger| (arrived(ledger) >= so_many).then_some(()));
                    }
                    Between::Confirmed => until("the load goes on", || confirmed.load(Ordering::Relaxed) >= so_many),
                }
                random_moment(&mut dice, MOMENT_MAX);
                gate.open_to(before + DETECTIONS);
                fault(gateway, broker);
            }
            gate.open_to(u64::MAX);
            for camera in cameras {
                camera.join().expect("every detection was confirmed");
            }
            over.store(true, Ordering::Relaxed);
            sensor.join().expect("every level was confirmed")
        });
        self.count(park, levels, began)
    }

    /// `levels` is the last level of the sensor, which began with 1.
    fn count(&self, park: &mut Park, levels: u64, began: Instant) -> Outcome {
        // The last of the meters' story, and every confirmation, before it is asked to stop.
        park.plc.set(1, "input:0", u16::MAX);
        park.center.wait_for("the last change of a meter", |ledger| reads(ledger, "meter1/p0", u16::MAX));
        let settled = |park: &Park, lane| {
            park.gateway.wait_for_metric(&format!("gardu_outbox_records{{lane=\"{lane}\"}}"), |waiting| waiting < 1.0);
        };
        ["a", "t"].into_iter().for_each(|lane| settled(park, lane));
        // What the broker confirmed it passes on in order: behind this the center has everything it will ever have.
        park.mark();
        settled(park, "a");
        let told = values(&park.center.ledger(), &format!("{SENSOR_NAME}/tank/level"));
        let (mut lost, mut events) = ((1..=levels).filter(|level| !told.contains(level)).count() as u64, levels);
        for name in CAMERA_NAMES {
            let all = detections(name, self.faults * DETECTIONS);
            events += all;
            lost += missing(&park.center.ledger(), name, all);
        }
        let last = park.stop();
        assert_eq!(last["reason"], "stopped", "{last}");
        let proved = park.center.assert_complete();
        let outcome = Outcome {
            name: self.name.to_owned(),
            kills: self.faults,
            events,
            settled: proved.settled,
            lost,
            declared: proved.declared_lost,
            repeated: proved.duplicates,
            took: began.elapsed(),
        };
        eprintln!("{}\n{outcome}", Outcome::HEADER);
        outcome
    }
}

/// How many detections each camera may have made.
#[derive(Debug, Default)]
struct Gate {
    open_to: Mutex<u64>,
    opened: Condvar,
}

impl Gate {
    fn open_to(&self, detections: u64) {
        *self.open_to.lock().expect("no panic while the gate is held") = detections;
        self.opened.notify_all();
    }

    fn wait_for(&self, detection: u64) {
        let open_to = self.open_to.lock().expect("no panic while the gate is held");
        drop(self.opened.wait_while(open_to, |open_to| *open_to < detection).expect("no panic while the gate is held"));
    }
}

struct EndsPublishers<'a> {
    gate: &'a Gate,
    over: &'a AtomicBool,
}

impl Drop for EndsPublishers<'_> {
    fn drop(&mut self) {
        self.gate.open_to(u64::MAX);
        self.over.store(true, Ordering::Relaxed);
    }
}

/// How many detections a camera makes: one of them ends in the middle of an alarm.
fn detections(name: &str, share: u64) -> u64 {
    share + u64::from(name == CAMERA_NAMES[0])
}

pub(crate) fn alarm(name: &str) -> String {
    format!("{name}/motion/intruder")
}

fn arrived(ledger: &Ledger) -> u64 {
    ledger.events.iter().filter(|event| event.subject.ends_with("/motion/intruder")).count() as u64
}

/// How many of a camera's transitions never arrived; each that did must be here once by its occurrence.
fn missing(ledger: &Ledger, name: &str, detections: u64) -> u64 {
    let mut missing = 0;
    for (kind, count) in [("raised", detections.div_ceil(2)), ("cleared", detections / 2)] {
        let alarm = alarm(name);
        let events = ledger.transitions(kind, &alarm);
        let mut occurrences: Vec<u64> = events.filter_map(|event| event.data("occurrence").as_u64()).collect();
        occurrences.sort_unstable();
        let expected: Vec<u64> = (1..=count).filter(|n| occurrences.binary_search(n).is_ok()).collect();
        assert_eq!(occurrences, expected, "{alarm} {kind}: one came twice, or never happened");
        missing += count - expected.len() as u64;
    }
    missing
}
