//! A bus against a hostile server on loopback: whatever it does, no reading ever carries a wrong value, and the bus
//! recovers. Every register says which one it is, so that a misplaced answer shows.

#![expect(clippy::disallowed_methods, reason = "a test spawns its servers itself")]
#![expect(clippy::print_stderr, reason = "a test says what it measured")]

mod rtu;
mod slave;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_modbus::client::{Reader, tcp};

use super::{BusTask, plan::BITS_MAX};
use crate::{
    clock::Clock,
    config::{Bus, Device, Link, Order, Point, Report, Table, Type},
    metrics::Metrics,
    pipeline::Input,
    reading::{PointId, Reading, Reason, Segment, Value},
    source::outlet::Outlet,
    supervise::{Pulse, Shutdown},
};

/// Far above what loopback needs on a busy machine, and short enough to be waited for.
const TIMEOUT: Duration = Duration::from_millis(400);
/// Nothing here takes this long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(60);

/// A point named after its table and address; [`device`] puts its own name in front.
pub(super) fn point(table: Table, address: u16, type_: Type) -> Point {
    let name = format!("{}-{address}", format!("{table:?}").to_lowercase());
    Point {
        id: PointId::parse(&format!("unit0/{name}")).expect("a point"),
        table,
        address,
        type_,
        order: Order::Abcd,
        bit: None,
        scale: 1.0,
        offset: 0.0,
        decimals: None,
        unit: None,
        invalid: Vec::new(),
        range: None,
        report: Report::Interval,
    }
}

/// The device `unit1` for unit 1, polled as fast as can be told apart.
pub(super) fn device(unit: u8, mut points: Vec<Point>) -> Device {
    let name = Segment::parse(&format!("unit{unit}")).expect("a segment");
    for point in &mut points {
        let rest = point.id.as_str().split_once('/').expect("two segments").1.to_owned();
        point.id = PointId::parse(&format!("{name}/{rest}")).expect("a point");
    }
    Device { name, unit, poll: Duration::from_millis(50), missed_polls: 3, profile: None, points }
}

/// What every register holds: its address and its unit, told apart from all others.
fn truth(unit: u8, address: u16) -> u16 {
    address.wrapping_mul(7).wrapping_add(1).wrapping_add(u16::from(unit) << 12)
}

fn truth_bit(unit: u8, address: u16) -> bool {
    truth(unit, address).is_multiple_of(3)
}

/// What the server does with one request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Deed {
    Answer,
    Never,
    Late,
    /// From now on this connection answers each request only when the next one has come.
    Behind,
    Reset,
    Close,
    WrongTransaction,
    WrongUnit,
    WrongFunction,
    Longer,
    Shorter,
    Trailing,
    FewerBytesSaid,
    MoreBytesSaid,
    ZeroLength,
    EndlessLength,
    Exception(u8),
    Dribble,
    Twice,
    Http,
}

/// What a server shares with its test.
#[derive(Debug, Default)]
struct Script {
    /// What to do with the next requests of a unit; then [`Script::always`].
    next: HashMap<u8, VecDeque<Deed>>,
    always: HashMap<u8, Deed>,
    /// Addresses that are answered by exception 2.
    illegal: Vec<u16>,
    /// (unit, address, count) of every request.
    seen: Vec<(u8, u16, u16)>,
}

#[derive(Debug, Clone, Default)]
struct Server(Arc<Mutex<Script>>);

impl Server {
    fn with<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.0.lock().expect("no panic in the script"))
    }

    async fn listen(self, at: &str) -> SocketAddr {
        let listener = TcpListener::bind(at).await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(self.clone().serve(stream));
            }
        });
        address
    }

    async fn serve(self, mut stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).expect("loopback");
        let mut held: Option<Vec<u8>> = None;
        let mut is_behind = false;
        loop {
            let mut request = [0_u8; 12];
            stream.read_exact(&mut request).await.ok()?;
            let [tid_high, tid_low, _, _, _, _, unit, function, ..] = request;
            let [address, count] = [8, 10].map(|i| u16::from_be_bytes([request[i], request[i + 1]]));
            let deed = self.with(|s| {
                s.seen.push((unit, address, count));
                let scripted = s.next.get_mut(&unit).and_then(VecDeque::pop_front);
                let refused = s.illegal.iter().any(|a| (address..address + count).contains(a));
                let usual = if refused { Deed::Exception(2) } else { Deed::Answer };
                scripted.or_else(|| s.always.get(&unit).copied()).unwrap_or(usual)
            });
            is_behind |= deed == Deed::Behind;
            let count = match deed {
                Deed::Longer => count + 8,
                Deed::Shorter => count.saturating_sub(8).max(1),
                _ => count,
            };
            let mut body = vec![unit, function];
            if function <= 2 {
                body.push(u8::try_from(count.div_ceil(8)).expect("at most 2000"));
                let bits: Vec<bool> = (0..count).map(|i| truth_bit(unit, address + i)).collect();
                body.extend(bits.chunks(8).map(|byte| byte.iter().rev().fold(0, |b, bit| b << 1 | u8::from(*bit))));
            } else {
                body.push(u8::try_from(count * 2).expect("at most 125"));
                body.extend((0..count).flat_map(|i| truth(unit, address + i).to_be_bytes()));
            }
            let mut tid = [tid_high, tid_low];
            let mut length_lie = None;
            match deed {
                Deed::Answer | Deed::Behind | Deed::Dribble | Deed::Longer | Deed::Shorter | Deed::Twice => {}
                Deed::Never => continue,
                Deed::Late => sleep(TIMEOUT * 3 / 2).await,
                Deed::Reset => {
                    stream.set_zero_linger().expect("loopback");
                    return None;
                }
                Deed::Close => return None,
                Deed::WrongTransaction => tid = [tid_high ^ 0xA5, tid_low],
                Deed::WrongUnit => body[0] = unit ^ 3,
                Deed::WrongFunction => body[1] = function ^ 7,
                Deed::Trailing => body.extend([0xAB, 0xCD]),
                Deed::FewerBytesSaid => body[2] -= 2,
                Deed::MoreBytesSaid => body[2] += 2,
                Deed::ZeroLength => length_lie = Some(0),
                Deed::EndlessLength => length_lie = Some(u16::MAX),
                Deed::Exception(code) => body = vec![unit, function | 0x80, code],
                Deed::Http => {
                    stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.ok()?;
                    continue;
                }
            }
            let length = length_lie.unwrap_or(u16::try_from(body.len()).expect("short"));
            let frame = [&tid[..], &[0, 0], &length.to_be_bytes(), &body].concat();
            match deed {
                _ if is_behind => {
                    if let Some(held) = held.replace(frame) {
                        stream.write_all(&held).await.ok()?;
                    }
                }
                Deed::Dribble => {
                    for byte in frame {
                        stream.write_all(&[byte]).await.ok()?;
                        tokio::task::yield_now().await;
                    }
                }
                Deed::Twice => stream.write_all(&[&frame[..], &frame].concat()).await.ok()?,
                _ => stream.write_all(&frame).await.ok()?,
            }
        }
    }
}

/// A bus under test, and what it says.
struct Field {
    readings: mpsc::Receiver<Input>,
    metrics: Metrics,
    shutdown: Shutdown,
}

impl Field {
    fn start(address: SocketAddr, devices: Vec<Device>) -> Self {
        Self::on(Link::Tcp { host: address.ip().to_string(), port: address.port() }, devices)
    }

    fn on(link: Link, devices: Vec<Device>) -> Self {
        let bus = Bus { name: Segment::parse("cabinet").expect("a segment"), link, timeout: TIMEOUT, devices };
        let (clock, metrics, shutdown) = (Clock::system(), Metrics::new(), Shutdown::new());
        let beat = Pulse::new(clock.clone()).stage("modbus");
        let (pipeline, readings) = mpsc::channel(1);
        let outlet = Outlet { pipeline, beat, shutdown: shutdown.clone() };
        tokio::spawn(BusTask::new(bus, clock, metrics.clone(), outlet).run());
        Self { readings, metrics, shutdown }
    }

    /// The next poll that said something, every value of it checked.
    async fn poll(&mut self) -> Vec<Reading> {
        let input = timeout(DEADLINE, self.readings.recv()).await.expect("a poll in time").expect("the bus runs");
        let Input::Readings(readings) = input else { panic!("a bus sends readings") };
        assert!(!readings.is_empty());
        readings.iter().for_each(assert_true);
        readings
    }

    async fn poll_until(&mut self, what: &str, wanted: impl Fn(&[Reading]) -> bool) -> Vec<Reading> {
        let search = async {
            loop {
                let readings = self.poll().await;
                if wanted(&readings) {
                    return readings;
                }
            }
        };
        timeout(DEADLINE, search).await.unwrap_or_else(|_| panic!("no {what}"))
    }

    fn connects(&self) -> u64 {
        self.metrics.modbus_connects.with_label_values(&["cabinet"]).get()
    }

    /// How many readings of `unit1` were bad, whether passed on or not.
    fn errors(&self) -> u64 {
        Reason::ALL.iter().map(|r| self.metrics.read_errors.with_label_values(&["unit1", r.as_str()]).get()).sum()
    }

    /// The first reason that a reading of `device` is bad.
    async fn bad(&mut self, device: &str) -> Reason {
        let of = |r: &&Reading| r.point.device() == device && r.reason.is_some();
        let readings = self.poll_until("bad reading", |all| all.iter().any(|r| of(&r))).await;
        readings.iter().find(of).and_then(|r| r.reason).expect("found")
    }

    /// A poll of `device` in which all of `points` are good.
    async fn good(&mut self, device: &str, points: usize) {
        let is_good = |r: &&Reading| r.point.device() == device && r.value.is_some() && !is_communication(r);
        self.poll_until("good poll", |all| all.iter().filter(is_good).count() == points).await;
    }

    async fn communication(&mut self, device: &str, silent: bool) {
        let says =
            |r: &Reading| r.point.device() == device && is_communication(r) && r.value == Some(Value::Bool(silent));
        self.poll_until("communication reading", |all| all.iter().any(says)).await;
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn is_communication(reading: &Reading) -> bool {
    reading.point.as_str().ends_with("/communication")
}

fn assert_true(reading: &Reading) {
    let Some(value) = &reading.value else { return };
    if is_communication(reading) {
        return;
    }
    let (device, name) = reading.point.as_str().split_once('/').expect("two segments");
    let unit: u8 = device.trim_start_matches("unit").parse().expect("named after its unit");
    let (table, address) = name.split_once('-').expect("named after table and address");
    let address: u16 = address.parse().expect("an address");
    let expect = match table {
        "coil" | "discrete" => Value::Bool(truth_bit(unit, address)),
        _ => Value::Integer(truth(unit, address).into()),
    };
    assert_eq!(*value, expect, "WRONG VALUE at {}", reading.point);
}

fn word(address: u16) -> Point {
    point(Table::Holding, address, Type::U16)
}

/// Three requests of different length, so that an answer to one would be taken for another if only its length counted.
fn mixed() -> Vec<Point> {
    let bits = [3, 20, 40].map(|a| point(Table::Discrete, a, Type::Bool));
    let words = [100, 101, 119].map(word);
    let inputs = [7, 26].map(|a| point(Table::Input, a, Type::U16));
    bits.into_iter().chain(words).chain(inputs).collect()
}

/// `deed` at two requests in a row, at each place in the poll; then the truth again.
async fn check(deed: Deed, expect: Reason) {
    let server = Server::default();
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, vec![device(1, mixed())]);
    field.good("unit1", 8).await;
    for place in 0..3 {
        let script = std::iter::repeat_n(Deed::Answer, place).chain([deed, deed]).collect();
        server.with(|s| s.next.insert(1, script));
        assert_eq!(field.bad("unit1").await, expect, "{deed:?} at {place}");
        // Until the script is spent, so that what it does to later polls is seen as well.
        while server.with(|s| !s.next[&1].is_empty()) {
            field.poll().await;
        }
        field.good("unit1", 8).await;
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_or_comes_late_is_a_time_out() {
    check(Deed::Never, Reason::Timeout).await;
    check(Deed::Late, Reason::Timeout).await;
    check(Deed::Behind, Reason::Timeout).await;
    check(Deed::EndlessLength, Reason::Timeout).await;
    check(Deed::Http, Reason::Timeout).await;
}

#[tokio::test]
async fn an_answer_to_something_else_is_malformed() {
    check(Deed::WrongTransaction, Reason::Malformed).await;
    check(Deed::WrongUnit, Reason::Malformed).await;
    check(Deed::WrongFunction, Reason::Malformed).await;
}

#[tokio::test]
async fn an_answer_of_another_length_is_malformed() {
    check(Deed::Longer, Reason::Malformed).await;
    check(Deed::Shorter, Reason::Malformed).await;
    check(Deed::Trailing, Reason::Malformed).await;
    check(Deed::FewerBytesSaid, Reason::Malformed).await;
    check(Deed::MoreBytesSaid, Reason::Malformed).await;
    check(Deed::ZeroLength, Reason::Malformed).await;
}

#[tokio::test]
async fn a_connection_that_breaks_twice_is_a_link_that_is_down() {
    check(Deed::Reset, Reason::LinkDown).await;
    check(Deed::Close, Reason::LinkDown).await;
}

#[tokio::test]
async fn exceptions_are_bad_readings_on_a_connection_that_stays() {
    check(Deed::Exception(4), Reason::Exception).await;
    check(Deed::Exception(0x0B), Reason::Timeout).await;
    check(Deed::Exception(99), Reason::Exception).await;

    let server = Server::default();
    server.with(|s| s.always.insert(1, Deed::Exception(4)));
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, vec![device(1, vec![word(5)])]);
    assert_eq!(field.bad("unit1").await, Reason::Exception);
    server.with(|s| s.always.clear());
    field.good("unit1", 1).await;
    assert_eq!(field.connects(), 1);
}

#[tokio::test]
async fn slow_bytes_and_repeated_answers_are_no_trouble() {
    let server = Server::default();
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, vec![device(1, mixed())]);
    for deed in [Deed::Dribble, Deed::Twice] {
        server.with(|s| s.always.insert(1, deed));
        for _ in 0..5 {
            field.poll().await;
        }
        server.with(|s| s.always.clear());
        field.good("unit1", 8).await;
    }
    assert_eq!(field.errors(), 0);
}

#[tokio::test]
async fn a_connection_the_device_closes_between_two_polls_costs_nothing() {
    let server = Server::default();
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, vec![device(1, vec![word(5)])]);
    field.good("unit1", 1).await;
    for connects in 2..5 {
        server.with(|s| s.next.insert(1, VecDeque::from([Deed::Close])));
        while field.connects() < connects {
            field.good("unit1", 1).await;
        }
    }
    field.good("unit1", 1).await;
    assert_eq!(field.errors(), 0);
}

/// The twin of the above: what happens to a client that keeps its connection after a late answer.
#[tokio::test]
async fn keeping_a_connection_after_a_late_answer_loses_every_later_one() {
    let server = Server::default();
    server.with(|s| s.always.insert(1, Deed::Behind));
    let address = server.clone().listen("127.0.0.1:0").await;
    let mut kept = tcp::connect_slave(address, tokio_modbus::Slave(1)).await.expect("loopback");
    assert!(timeout(TIMEOUT, kept.read_holding_registers(0, 1)).await.is_err(), "the first answer is late");
    server.with(|s| s.always.clear());
    for address in 1..=5 {
        let read = timeout(DEADLINE, kept.read_holding_registers(address, 1)).await.expect("an answer comes");
        assert!(read.is_err(), "{address}: off by one for ever, {read:?}");
    }
    let mut fresh = tcp::connect_slave(address, tokio_modbus::Slave(1)).await.expect("loopback");
    let read = fresh.read_holding_registers(6, 1).await.expect("no error").expect("no exception");
    assert_eq!(read, [truth(1, 6)]);
}

#[tokio::test]
async fn a_dead_unit_delays_only_itself_and_is_found_again() {
    let server = Server::default();
    server.with(|s| s.always.insert(2, Deed::Never));
    let devices = [1, 2, 3].map(|unit| device(unit, vec![word(5), word(1000)]));
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, devices.to_vec());
    assert_eq!(field.bad("unit2").await, Reason::Timeout);
    field.communication("unit2", true).await;
    let count = |s: &mut Script, unit| s.seen.iter().filter(|(u, ..)| *u == unit).count();
    for _ in 0..20 {
        field.good("unit1", 2).await;
        field.good("unit3", 2).await;
    }
    let [healthy, dead] = [1, 2].map(|unit| server.with(|s| count(s, unit)));
    assert!(dead * 3 < healthy, "{dead} requests of a dead unit against {healthy}");
    server.with(|s| s.always.clear());
    field.communication("unit2", false).await;
    field.good("unit2", 2).await;
}

#[tokio::test]
async fn a_link_that_is_refused_is_down_until_it_is_not() {
    // An address of its own: nobody else binds the port while it is free.
    let free = TcpListener::bind("127.77.0.1:0").await.expect("loopback").local_addr().expect("bound");
    let mut field = Field::start(free, vec![device(1, mixed()), device(2, vec![word(9)])]);
    assert_eq!(field.bad("unit1").await, Reason::LinkDown);
    field.communication("unit2", true).await;
    Server::default().listen(&free.to_string()).await;
    field.communication("unit1", false).await;
    field.good("unit1", 8).await;
    field.good("unit2", 1).await;
}

#[tokio::test]
async fn a_device_that_refuses_holes_is_read_around_them_from_the_first_poll() {
    let server = Server::default();
    server.with(|s| s.illegal = vec![104, 110]);
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, vec![device(1, mixed())]);
    let first = field.poll().await;
    assert!(first.iter().all(|r| r.reason.is_none()), "{first:?}");
    let refused = |(_, address, count): &(u8, u16, u16)| *address == 100 && *count > 2;
    for _ in 0..5 {
        field.good("unit1", 8).await;
    }
    assert_eq!(server.with(|s| s.seen.iter().filter(|r| refused(r)).count()), 1, "asked once, remembered for good");
}

/// The layout of 1,000 points over 10 units of [`super::plan`]'s test, read over the wire.
#[tokio::test]
async fn a_thousand_scattered_points_are_read_in_at_most_a_hundred_requests() {
    let server = Server::default();
    let devices = (1..=10).map(|unit| {
        let mut at = 0;
        let points = (0..100_u16).map(|n| {
            let address = at;
            at += 1 + if n % 10 == 9 { 40 + (n * 7) % 41 } else { (n * 5) % 4 };
            word(address)
        });
        Device { poll: Duration::from_secs(3600), ..device(unit, points.collect()) }
    });
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, devices.collect());
    let mut good = 0;
    for _ in 0..10 {
        good += field.poll().await.iter().filter(|r| !is_communication(r) && r.value.is_some()).count();
    }
    assert_eq!(good, 1000);
    let requests = server.with(|s| s.seen.len());
    assert!((10..=100).contains(&requests), "{requests}");
    assert!(server.with(|s| s.seen.iter().all(|(_, _, count)| *count <= BITS_MAX)));
}

#[tokio::test]
async fn a_slow_pipeline_makes_polls_late_and_loses_none() {
    let server = Server::default();
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, vec![device(1, vec![word(5)])]);
    let late_seconds = |f: &Field| f.metrics.modbus_poll_late_seconds.with_label_values(&["cabinet"]).get_sample_sum();
    // The queue holds one poll and the task a second; nothing is asked after them.
    let blocked = async {
        while server.with(|s| s.seen.len()) < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, blocked).await.expect("two polls");
    let before = late_seconds(&field);
    sleep(TIMEOUT).await; // the pipeline stalls
    assert_eq!(server.with(|s| s.seen.len()), 2, "back-pressure reaches the field");
    for _ in 0..4 {
        field.good("unit1", 1).await;
    }
    let late = late_seconds(&field) - before;
    assert!(late >= 0.2, "{late} s");
}

#[tokio::test]
async fn every_point_is_counted_good_or_bad() {
    let server = Server::default();
    let mut field = Field::start(server.clone().listen("127.0.0.1:0").await, vec![device(1, vec![word(5), word(6)])]);
    field.good("unit1", 2).await;
    server.with(|s| s.always.insert(1, Deed::Never));
    field.communication("unit1", true).await;
    let m = &field.metrics;
    assert!(m.readings.with_label_values(&["unit1"]).get() >= 2 + 3 * 2);
    assert!(m.read_errors.with_label_values(&["unit1", "timeout"]).get() >= 3 * 2);
    assert!(m.modbus_request_seconds.with_label_values(&["cabinet"]).get_sample_count() >= 4);
    assert!(m.modbus_busy_seconds.with_label_values(&["cabinet"]).get() >= 3.0 * 0.390);
}
