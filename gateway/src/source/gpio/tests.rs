//! The thread over a chip of the test's own: what it opens, loses and passes on.

use std::sync::{
    Arc, Mutex,
    mpsc::{Receiver, RecvTimeoutError, Sender, channel},
};

use tokio::sync::mpsc;

use super::*;
use crate::{
    config::{Bias, GpioContact, Level, Report as Reported},
    reading::{PointId, Segment, Value},
    supervise::{Pulse, Supervisor},
};

/// No step of a test takes longer, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the next attempts to open give, one after the other; the last goes on for ever.
type Attempts = Arc<Mutex<Vec<Result<Wire, Trouble>>>>;

/// One line: its level, and its edges as the kernel would hand them over.
struct Wire {
    high: bool,
    edges: Receiver<Result<Edge, Trouble>>,
}

struct Bench(Attempts);

impl Opener for Bench {
    type Lines = Wire;

    fn open(&mut self) -> Result<Wire, Trouble> {
        let mut attempts = self.0.lock().unwrap();
        if attempts.is_empty() { Err(Trouble::NotThere) } else { attempts.remove(0) }
    }
}

impl Lines for Wire {
    fn levels(&mut self) -> Result<Vec<bool>, Trouble> {
        Ok(vec![self.high])
    }

    fn edges(&mut self, patience: Duration) -> Result<Vec<Edge>, Trouble> {
        match self.edges.recv_timeout(patience) {
            Ok(Ok(edge)) => {
                self.high = edge.high;
                Ok(vec![edge])
            }
            Ok(Err(trouble)) => Err(trouble),
            Err(RecvTimeoutError::Timeout) => Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => Err(Trouble::Failed("No such device".into())),
        }
    }
}

/// A contact debounced for 20 ms.
pub(super) fn contact(name: &str, line: u32, active: Level) -> GpioContact {
    GpioContact {
        state: PointId::parse(&format!("header/{name}")).unwrap(),
        events: PointId::parse(&format!("header/{name}-events")).unwrap(),
        line,
        active,
        bias: Bias::PullUp,
        debounce: Duration::from_millis(20),
        report: Reported::Off,
    }
}

/// A chip with these contacts.
pub(super) fn header(contacts: Vec<GpioContact>) -> Gpio {
    let name = Segment::parse("header").unwrap();
    Gpio { name, chip: "/dev/gpiochip0".into(), poll: Duration::from_secs(1), missed_polls: 3, contacts }
}

struct Stand {
    attempts: Attempts,
    clock: Clock,
    readings: mpsc::Receiver<Input>,
    pulse: Pulse,
    supervisor: Supervisor,
}

impl Stand {
    fn start(attempts: Vec<Result<Wire, Trouble>>) -> Self {
        let gpio = Gpio { poll: Duration::from_millis(100), ..header(vec![contact("door", 17, Level::Low)]) };
        let (attempts, clock) = (Arc::new(Mutex::new(attempts)), Clock::system());
        let (pipeline, readings) = mpsc::channel(1_024);
        let (pulse, mut supervisor) = (Pulse::new(clock.clone()), Supervisor::new());
        let outlet = Outlet { pipeline, beat: pulse.stage("gpio header"), shutdown: supervisor.shutdown() };
        let opener = Bench(attempts.clone());
        let task = GpioTask::new(gpio, opener, clock.clone(), Metrics::new(), outlet);
        let runtime = tokio::runtime::Handle::current();
        supervisor.thread("gpio header", move || runtime.block_on(task.run()));
        Self { attempts, clock, readings, pulse, supervisor }
    }

    /// Waits until a point has had these values, in this order, whatever came between.
    async fn hear(&mut self, point: &str, values: &[Option<Value>]) {
        let mut left = values.iter().peekable();
        let heard = async {
            while left.peek().is_some() {
                let Some(Input::Readings(readings)) = self.readings.recv().await else { panic!("it goes on") };
                for reading in readings.iter().filter(|reading| reading.point.as_str() == point) {
                    left.next_if(|value| **value == reading.value);
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("{point} never became {values:?}"));
    }

    async fn stop(self) {
        let stopped = self.supervisor.run(async {}, PATIENCE, std::future::pending());
        stopped.await.expect("it stops in peace");
    }
}

fn wire(high: bool) -> (Wire, Sender<Result<Edge, Trouble>>) {
    let (sender, edges) = channel();
    (Wire { high, edges }, sender)
}

fn number(events: i128) -> Option<Value> {
    Some(Value::Integer(events))
}

const TRUE: Option<Value> = Some(Value::Bool(true));
const FALSE: Option<Value> = Some(Value::Bool(false));

#[tokio::test]
async fn a_short_press_between_two_polls_is_passed_on_with_its_count() {
    let (wire, edges) = wire(true);
    let mut stand = Stand::start(vec![Ok(wire)]);
    stand.hear("header/door-events", &[number(0)]).await;
    let pressed = stand.clock.kernel_us();
    for (us, high) in [(0, false), (50_000, true)] {
        edges.send(Ok(Edge { index: 0, high, at: Instant::from_ticks(pressed + us) })).unwrap();
    }
    stand.hear("header/door", &[TRUE, FALSE]).await;
    stand.hear("header/door-events", &[number(1)]).await;
    stand.stop().await;
}

#[tokio::test]
async fn a_chip_that_is_not_there_or_goes_is_bad_and_is_found_again() {
    let ((first, edges), (second, _edges)) = (wire(true), wire(false));
    let mut stand = Stand::start(vec![Err(Trouble::InUse { line: 17, by: "w1".into() }), Ok(first)]);
    stand.hear("header/door", &[None, FALSE]).await;
    drop(edges);
    stand.hear("header/door", &[None]).await;
    stand.hear("header/communication", &[TRUE]).await;
    stand.attempts.lock().unwrap().push(Ok(second));
    stand.hear("header/door", &[TRUE]).await;
    stand.stop().await;
}

#[tokio::test]
async fn a_chip_that_is_away_for_long_keeps_the_beat_and_stops_at_once() {
    let mut stand = Stand::start(Vec::new());
    stand.hear("header/communication", &[TRUE]).await;
    assert_eq!(stand.pulse.stalled(), None);
    let (clock, asked) = (stand.clock.clone(), stand.clock.now());
    stand.stop().await;
    assert!(clock.now().since(asked) < PATIENCE, "it heeds the shutdown, not its next attempt");
}
