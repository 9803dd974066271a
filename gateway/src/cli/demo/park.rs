//! The cabinet of a simulated park: four Modbus units behind one TCP address that live through a day in fast motion.
//!
//! [`ParkModel`] is pure: what every register holds at a second of the day, given what happened. [`Park`] is the handle
//! that makes things happen, [`ParkServer`] the task that answers. Unit by unit, addresses 0-based:
//!
//! | unit | table | what |
//! |---|---|---|
//! | 1 panel | discrete 0–2 | door open, mains present, surge arrester intact |
//! | | coil 0–3 | lamp circuits switched on |
//! | | input 0 | temperature, i16, 0.1 °C |
//! | 2 meter | input | f32 where the Eastron SDM120 has them: 0 V, 6 A, 12 W, 70 Hz, 72 kWh |
//! | 3 pond | input 0–1 | water level, i16, cm; presses of the panic button, u16 |
//! | | discrete 0 | float switch |
//! | 4 lamp | input 0–3 | current of each circuit, u16, mA |
//! | | input 4–5 | burning time, u32, low word first, h |

use std::{
    collections::BTreeSet,
    f64::consts::TAU,
    future, io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};
use tokio_modbus::{
    ExceptionCode, Request, Response, SlaveRequest,
    server::{
        Service,
        tcp::{Server, accept_tcp_connection},
    },
};

use crate::{
    clock::{Clock, Now},
    supervise::{Shutdown, TaskResult},
};

const DAY_S: u64 = 86_400;
const HOUR_S: u64 = 3_600;
const CIRCUITS: usize = 4;
/// Lamps burn from dusk to dawn; near the equator both hardly move through the year.
const DUSK_S: u64 = 17 * HOUR_S + 45 * 60;
const DAWN_S: u64 = 5 * HOUR_S + 45 * 60;
/// When the park closes, every second circuit is switched off.
const CLOSING_S: u64 = 22 * HOUR_S;
const CIRCUIT_W: f64 = 180.0;
const POWER_FACTOR: f64 = 0.95;
/// A flood rises, and drains, by 4 cm a minute, until the water stands 45 cm higher.
const FLOOD_CM_S: f64 = 4.0 / 60.0;
const FLOOD_MAX_CM: f64 = 45.0;
/// Where the float switch hangs.
const FLOAT_CM: f64 = 95.0;
/// How long to wait before the port is tried again that somebody else took while the link was cut.
const BIND_AGAIN: Duration = Duration::from_millis(200);

/// A unit of the cabinet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Door, mains and lamp circuits.
    Panel = 1,
    /// The energy meter.
    Meter = 2,
    /// Water level and panic button.
    Pond = 3,
    /// Currents of the lamp circuits.
    Lamp = 4,
}

impl Unit {
    /// Every unit.
    pub const ALL: [Self; 4] = [Self::Panel, Self::Meter, Self::Pond, Self::Lamp];
}

/// Something that happens in the park.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incident {
    /// Someone opens the cabinet.
    DoorOpened,
    /// And closes it.
    DoorClosed,
    /// The mains fail.
    MainsLost,
    /// And return.
    MainsBack,
    /// The pond begins to rise.
    WaterHigh,
    /// It begins to drain.
    WaterNormal,
    /// Someone presses the panic button.
    PanicPressed,
    /// A unit stops answering.
    UnitDead(Unit),
    /// It answers again.
    UnitBack(Unit),
    /// The cabinet's network cable is pulled.
    LinkCut,
    /// And plugged in again.
    LinkBack,
}

/// What has happened so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Incidents {
    is_door_open: bool,
    mains_lost_at: Option<u64>,
    flood: Flood,
    panic_presses: u16,
    dead: BTreeSet<Unit>,
    is_link_cut: bool,
}

/// The water above its usual level: how much at one second, and how fast it changes from there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Flood {
    since: u64,
    cm: f64,
    cm_s: f64,
}

impl Flood {
    #[expect(clippy::cast_precision_loss, reason = "seconds of a demonstration")]
    fn cm_at(&self, second: u64) -> f64 {
        (self.cm + self.cm_s * second.saturating_sub(self.since) as f64).clamp(0.0, FLOOD_MAX_CM)
    }
}

impl Incidents {
    /// One more, at this second.
    pub fn apply(&mut self, incident: Incident, second: u64) {
        let flood = |cm_s| Flood { since: second, cm: self.flood.cm_at(second), cm_s };
        match incident {
            Incident::DoorOpened => self.is_door_open = true,
            Incident::DoorClosed => self.is_door_open = false,
            Incident::MainsLost => self.mains_lost_at = self.mains_lost_at.or(Some(second)),
            Incident::MainsBack => self.mains_lost_at = None,
            Incident::WaterHigh => self.flood = flood(FLOOD_CM_S),
            Incident::WaterNormal => self.flood = flood(-FLOOD_CM_S),
            Incident::PanicPressed => self.panic_presses = self.panic_presses.wrapping_add(1),
            Incident::UnitDead(unit) => drop(self.dead.insert(unit)),
            Incident::UnitBack(unit) => drop(self.dead.remove(&unit)),
            Incident::LinkCut => self.is_link_cut = true,
            Incident::LinkBack => self.is_link_cut = false,
        }
    }
}

/// What one unit holds; addresses beyond the end do not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Coils from 0.
    pub coils: Vec<bool>,
    /// Discrete inputs from 0.
    pub discrete: Vec<bool>,
    /// Input registers from 0.
    pub input: Vec<u16>,
}

/// The park without its incidents: the same seed gives the same days.
#[derive(Debug, Clone, Copy)]
pub struct ParkModel {
    seed: u64,
}

/// Streams of noise that must not move together.
#[derive(Debug, Clone, Copy)]
enum Channel {
    Temperature = 1,
    Volts,
    Watts,
    Water,
    Lamps,
}

impl ParkModel {
    /// A park of its own for each seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// What a unit holds at a second, counted from midnight of the first day.
    #[must_use]
    pub fn at(&self, unit: Unit, second: u64, incidents: &Incidents) -> Tables {
        match unit {
            Unit::Panel => self.panel(second, incidents),
            Unit::Meter => Tables { input: self.meter(second, incidents), ..Tables::default() },
            Unit::Pond => self.pond(second, incidents),
            Unit::Lamp => Tables { input: self.lamp(second, incidents), ..Tables::default() },
        }
    }

    fn panel(&self, second: u64, incidents: &Incidents) -> Tables {
        let celsius = 31.0 + 5.0 * day_wave(second, 14) + 0.6 * self.noise(Channel::Temperature, second);
        Tables {
            coils: circuits(second).to_vec(),
            discrete: vec![incidents.is_door_open, incidents.mains_lost_at.is_none(), true],
            input: vec![signed(celsius * 10.0)],
        }
    }

    fn meter(&self, second: u64, incidents: &Incidents) -> Vec<u16> {
        let is_fed = incidents.mains_lost_at.is_none();
        let volts = 226.0 - 3.0 * day_wave(second, 19) + 1.5 * self.noise(Channel::Volts, second);
        let watts = nominal_w(second) * (1.0 + 0.02 * self.noise(Channel::Watts, second));
        let hertz = 50.0 + 0.03 * self.noise(Channel::Volts, second.wrapping_add(30));
        let kwh = 1_840.0 + energy_kwh(incidents.mains_lost_at.unwrap_or(second));
        let mut input = vec![0; 74];
        for (address, quantity) in [(0, volts), (6, watts / volts / POWER_FACTOR), (12, watts), (70, hertz)] {
            put_f32(&mut input, address, if is_fed { quantity } else { 0.0 });
        }
        put_f32(&mut input, 72, kwh);
        input
    }

    fn pond(&self, second: u64, incidents: &Incidents) -> Tables {
        let usual_cm = 62.0 + 2.0 * day_wave(second, 17) + 0.8 * self.noise(Channel::Water, second);
        let cm = usual_cm + incidents.flood.cm_at(second);
        Tables { discrete: vec![cm >= FLOAT_CM], input: vec![signed(cm), incidents.panic_presses], ..Tables::default() }
    }

    fn lamp(&self, second: u64, incidents: &Incidents) -> Vec<u16> {
        let amps = CIRCUIT_W / 226.0 / POWER_FACTOR * (1.0 + 0.01 * self.noise(Channel::Lamps, second));
        let burns = |is_on| is_on && incidents.mains_lost_at.is_none();
        let mut input: Vec<u16> =
            circuits(second).map(|is_on| signed(if burns(is_on) { amps * 1e3 } else { 0.0 })).into();
        let today_s = second % DAY_S;
        let burnt_s = second / DAY_S * (DAWN_S + DAY_S - DUSK_S) + today_s.min(DAWN_S) + today_s.saturating_sub(DUSK_S);
        let [a, b, c, d] = u32::try_from(9_120 + burnt_s / HOUR_S).unwrap_or(u32::MAX).to_be_bytes();
        input.extend([[c, d], [a, b]].map(u16::from_be_bytes));
        input
    }

    /// Between -1 and 1: one value a minute, and straight lines between them.
    #[expect(clippy::cast_precision_loss, reason = "53 bits of a hash, and seconds within a minute")]
    fn noise(&self, channel: Channel, second: u64) -> f64 {
        let at = |minute: u64| {
            let hash = mix(mix(self.seed.wrapping_add(channel as u64)).wrapping_add(minute));
            (hash >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        };
        let (minute, into) = (second / 60, (second % 60) as f64 / 60.0);
        at(minute) * (1.0 - into) + at(minute + 1) * into
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): neighbouring numbers to unrelated ones.
const fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A cosine over the day, 1 at the hour of its peak.
#[expect(clippy::cast_precision_loss, reason = "seconds of a day")]
fn day_wave(second: u64, peak_hour: u64) -> f64 {
    let since_peak = (second % DAY_S + DAY_S - peak_hour * HOUR_S) as f64;
    (since_peak / DAY_S as f64 * TAU).cos()
}

/// Which lamp circuits are on: one after the other at dusk, so that they do not start together.
fn circuits(second: u64) -> [bool; CIRCUITS] {
    let second = second % DAY_S;
    std::array::from_fn(|circuit| {
        let delay_s = 60 * u64::try_from(circuit).expect("a few circuits");
        let is_night = second < DAWN_S || second >= DUSK_S + delay_s;
        let is_closed = !(DAWN_S..CLOSING_S).contains(&second);
        is_night && !(is_closed && circuit % 2 == 1)
    })
}

/// What the park draws: the gateway and cameras, the pond's pump by day, the lamps by night.
fn nominal_w(second: u64) -> f64 {
    let lamps = circuits(second).into_iter().filter(|is_on| *is_on).map(|_| CIRCUIT_W).sum::<f64>();
    let is_pumping = (6 * HOUR_S..21 * HOUR_S).contains(&(second % DAY_S));
    35.0 + lamps + if is_pumping { 250.0 } else { 0.0 }
}

/// What it drew since the first midnight, in steps of a minute.
#[expect(clippy::cast_precision_loss, reason = "days of a demonstration")]
fn energy_kwh(second: u64) -> f64 {
    let until = |end: u64| (0..end / 60).map(|minute| nominal_w(minute * 60) / 60.0 / 1e3).sum::<f64>();
    until(DAY_S) * (second / DAY_S) as f64 + until(second % DAY_S)
}

#[expect(clippy::cast_possible_truncation, reason = "clamped to what the register holds")]
fn signed(quantity: f64) -> u16 {
    let whole = quantity.round().clamp(f64::from(i16::MIN), f64::from(i16::MAX));
    (whole as i16).cast_unsigned()
}

#[expect(clippy::cast_possible_truncation, reason = "the meter's registers are single precision")]
fn put_f32(registers: &mut [u16], address: usize, quantity: f64) {
    let bits = (quantity as f32).to_bits().to_be_bytes();
    registers[address] = u16::from_be_bytes([bits[0], bits[1]]);
    registers[address + 1] = u16::from_be_bytes([bits[2], bits[3]]);
}

/// When the park's day begins and how fast it goes.
#[derive(Debug, Clone)]
pub struct Pace {
    clock: Clock,
    started: Now,
    from_second: u64,
    speed: u32,
}

impl Pace {
    /// Begins now at a second of the day; `speed` seconds of the park pass in a real one.
    #[must_use]
    pub fn new(clock: Clock, from_second: u64, speed: u32) -> Self {
        Self { started: clock.now(), clock, from_second, speed }
    }

    /// The present second of the park, from its first midnight.
    #[must_use]
    pub fn second(&self) -> u64 {
        let real_ms = u64::try_from(self.clock.now().since(self.started).as_millis()).unwrap_or(u64::MAX);
        self.from_second.saturating_add(real_ms.saturating_mul(self.speed.into()) / 1_000)
    }
}

/// The handle of a running park.
#[derive(Debug)]
pub struct Park {
    address: SocketAddr,
    pace: Pace,
    incidents: watch::Sender<Incidents>,
}

/// The task that answers for it.
#[derive(Debug)]
pub struct ParkServer {
    address: SocketAddr,
    /// Bound at the start, so that the address is known and nobody comes too early.
    listener: Option<TcpListener>,
    cabinet: Cabinet,
}

impl Park {
    /// Takes a free port on loopback. The server must be run for anything to answer.
    pub async fn start(pace: Pace, seed: u64) -> io::Result<(Self, ParkServer)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (incidents, seen) = watch::channel(Incidents::default());
        let cabinet = Cabinet { model: ParkModel::new(seed), pace: pace.clone(), incidents: seen };
        Ok((Self { address, pace, incidents }, ParkServer { address, listener: Some(listener), cabinet }))
    }

    /// Where the cabinet answers; stays the same when the link is cut and comes back.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The present second of the park, from its first midnight.
    #[must_use]
    pub fn second(&self) -> u64 {
        self.pace.second()
    }

    /// Makes something happen now.
    pub fn apply(&self, incident: Incident) {
        self.incidents.send_modify(|all| all.apply(incident, self.pace.second()));
    }
}

impl ParkServer {
    /// Answers until shutdown. While the link is cut nothing listens and every connection is closed.
    pub async fn run(mut self, shutdown: Shutdown) -> TaskResult {
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            () = self.serve() => {
                shutdown.cancelled().await;
                Ok(())
            }
        }
    }

    /// Returns only when the handle is gone while the link is cut: nobody can plug it in again.
    async fn serve(&mut self) {
        let mut link = self.cabinet.incidents.clone();
        while link.wait_for(|all| !all.is_link_cut).await.is_ok() {
            let listener = match self.listener.take() {
                Some(bound) => bound,
                None => match TcpListener::bind(self.address).await {
                    Ok(bound) => bound,
                    Err(error) => {
                        tracing::warn!(address = %self.address, %error, "the park's port is taken; trying again");
                        sleep(BIND_AGAIN).await;
                        continue;
                    }
                },
            };
            let cabinet = &self.cabinet;
            let on_connected = |stream: TcpStream, peer| async move {
                stream.set_nodelay(true)?;
                accept_tcp_connection(stream, peer, |_| Ok(Some(cabinet.clone())))
            };
            let server = Server::new(listener);
            let cut = async {
                if link.wait_for(|all| all.is_link_cut).await.is_err() {
                    future::pending::<()>().await; // without its handle the park stays as it is
                }
            };
            tokio::select! {
                () = cut => {}
                // A client that hangs up in the middle of a connect ends `serve`; listening begins again.
                _ended = server.serve(&on_connected, |_hung_up| {}) => {}
            }
        }
    }
}

/// What the connections share.
#[derive(Debug, Clone)]
struct Cabinet {
    model: ParkModel,
    pace: Pace,
    incidents: watch::Receiver<Incidents>,
}

impl Service for Cabinet {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = future::Ready<Result<Option<Response>, ExceptionCode>>;

    fn call(&self, SlaveRequest { slave, request }: Self::Request) -> Self::Future {
        let incidents = self.incidents.borrow().clone();
        let alive = |unit: &Unit| *unit as u8 == slave && !incidents.dead.contains(unit);
        // As on a serial line: who is not there, or dead, does not answer.
        let Some(unit) = Unit::ALL.into_iter().find(alive) else { return future::ready(Ok(None)) };
        future::ready(answer(&self.model.at(unit, self.pace.second(), &incidents), &request).map(Some))
    }
}

fn answer(tables: &Tables, request: &Request<'_>) -> Result<Response, ExceptionCode> {
    match *request {
        Request::ReadCoils(address, count) => part(&tables.coils, address, count).map(Response::ReadCoils),
        Request::ReadDiscreteInputs(address, count) => {
            part(&tables.discrete, address, count).map(Response::ReadDiscreteInputs)
        }
        Request::ReadInputRegisters(address, count) => {
            part(&tables.input, address, count).map(Response::ReadInputRegisters)
        }
        _ => Err(ExceptionCode::IllegalFunction),
    }
}

fn part<T: Clone>(table: &[T], address: u16, count: u16) -> Result<Vec<T>, ExceptionCode> {
    let start = usize::from(address);
    table.get(start..start + usize::from(count)).map(<[T]>::to_vec).ok_or(ExceptionCode::IllegalDataAddress)
}

/// The configuration that reads this cabinet and says what is an alarm in it (`[[modbus]]` and `[[alarm]]` tables).
#[must_use]
pub fn config_toml(address: SocketAddr) -> String {
    include_str!("park.toml").replace("{address}", &address.to_string())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test spawns the park and its bus itself")]
mod tests {
    use std::collections::HashMap;

    use tokio::{sync::mpsc, time::timeout};

    use super::*;
    use crate::{
        config::{Bus, Device, Link, Order, Point, Report, Table, Type},
        metrics::Metrics,
        pipeline::Input,
        reading::{PointId, Reading, Reason, Segment, Value},
        source::modbus::BusTask,
        supervise::Pulse,
    };

    /// Nothing here takes this long unless it is broken.
    const DEADLINE: Duration = Duration::from_secs(60);

    fn quiet(unit: Unit, second: u64) -> Tables {
        ParkModel::new(7).at(unit, second, &Incidents::default())
    }

    fn f32_at(registers: &[u16], address: usize) -> f32 {
        f32::from_bits(u32::from(registers[address]) << 16 | u32::from(registers[address + 1]))
    }

    #[test]
    fn a_quiet_day_stays_within_every_limit() {
        for second in (0..DAY_S).step_by(60) {
            let panel = quiet(Unit::Panel, second);
            assert_eq!(panel.discrete, [false, true, true]);
            assert!((240..=400).contains(&panel.input[0].cast_signed()), "{panel:?}");
            let meter = quiet(Unit::Meter, second).input;
            assert!((210.0..=240.0).contains(&f32_at(&meter, 0)) && f32_at(&meter, 12) >= 30.0, "{second}");
            let pond = quiet(Unit::Pond, second);
            assert!(!pond.discrete[0] && (55..=70).contains(&pond.input[0]) && pond.input[1] == 0, "{pond:?}");
        }
    }

    #[test]
    fn lamps_burn_by_night_and_fewer_after_closing() {
        for (hour, expect) in [(3, [true, false, true, false]), (12, [false; 4]), (20, [true; 4])] {
            let second = DAY_S + hour * HOUR_S;
            assert_eq!(quiet(Unit::Panel, second).coils, expect, "{hour} h");
            let lamp = quiet(Unit::Lamp, second).input;
            assert_eq!([0, 1, 2, 3].map(|i| lamp[i] > 500), expect, "{hour} h: {lamp:?}");
        }
    }

    #[test]
    fn meters_only_count_up() {
        let readings = |second| (f32_at(&quiet(Unit::Meter, second).input, 72), quiet(Unit::Lamp, second).input[4]);
        let all: Vec<_> = (0..3 * DAY_S).step_by(900).map(readings).collect();
        assert!(all.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1));
        assert!(all[0].1 + 35 <= all[all.len() - 1].1, "twelve hours a night");
    }

    #[test]
    fn the_same_seed_gives_the_same_day_and_another_another() {
        let day = |seed| {
            let at = move |s| ParkModel::new(seed).at(Unit::Meter, s, &Incidents::default());
            (0..DAY_S).step_by(600).map(at).collect::<Vec<_>>()
        };
        assert_eq!(day(1), day(1));
        assert_ne!(day(1), day(2));
    }

    #[test]
    fn incidents_show_in_the_registers() {
        let model = ParkModel::new(7);
        let noon = 12 * HOUR_S;
        let mut all = Incidents::default();
        for incident in [Incident::DoorOpened, Incident::MainsLost, Incident::PanicPressed, Incident::WaterHigh] {
            all.apply(incident, noon);
        }
        assert_eq!(model.at(Unit::Panel, noon, &all).discrete, [true, false, true]);
        let meter = model.at(Unit::Meter, noon + HOUR_S, &all).input;
        assert_eq!((f32_at(&meter, 0), f32_at(&meter, 72)), (0.0, f32_at(&quiet(Unit::Meter, noon).input, 72)));
        let level = |all: &Incidents, second| model.at(Unit::Pond, second, all);
        assert_eq!(level(&all, noon).input[1], 1);
        assert!(!level(&all, noon).discrete[0], "a flood takes its time");
        let flooded = level(&all, noon + 900);
        assert!(flooded.discrete[0] && flooded.input[0] >= 100, "{flooded:?}");
        all.apply(Incident::WaterNormal, noon + 900);
        assert!(level(&all, noon + 960).input[0] > 90 && level(&all, noon + 1_800).input[0] < 70);
        for incident in [Incident::DoorClosed, Incident::MainsBack] {
            all.apply(incident, noon + 1_800);
        }
        assert_eq!(model.at(Unit::Panel, noon, &all).discrete, [false, true, true]);
    }

    /// What the demonstration's file says, by the few keys it uses.
    fn bus(address: SocketAddr) -> Bus {
        let toml: toml::Table = config_toml(address).parse().expect("TOML");
        let bus = &toml["modbus"][0];
        assert_eq!(bus["url"].as_str(), Some(format!("tcp://{address}").as_str()));
        let link = Link::Tcp { host: address.ip().to_string(), port: address.port() };
        let devices = bus["device"].as_array().expect("devices").iter().map(device).collect();
        Bus { name: segment(&bus["name"]), link, timeout: Duration::from_secs(2), devices }
    }

    fn segment(value: &toml::Value) -> Segment {
        Segment::parse(value.as_str().expect("text")).expect("a segment")
    }

    fn device(value: &toml::Value) -> Device {
        let name = segment(&value["name"]);
        let points = value["point"].as_array().expect("points").iter().map(|p| point(&name, p)).collect();
        let unit = value["unit"].as_integer().and_then(|n| n.try_into().ok()).expect("a unit");
        Device { name, unit, poll: Duration::from_millis(50), missed_polls: 3, points }
    }

    fn point(device: &Segment, value: &toml::Value) -> Point {
        let (table, address) = value["register"].as_str().and_then(|r| r.split_once(':')).expect("table:address");
        let table = match table {
            "coil" => Table::Coil,
            "discrete" => Table::Discrete,
            "input" => Table::Input,
            other => panic!("{other}"),
        };
        let type_ = match value["type"].as_str().expect("a type") {
            "bool" => Type::Bool,
            "i16" => Type::I16,
            "u16" => Type::U16,
            "u32" => Type::U32,
            "f32" => Type::F32,
            other => panic!("{other}"),
        };
        let order = value.get("order").map_or(Order::Abcd, |order| {
            assert_eq!(order.as_str(), Some("cdab"));
            Order::Cdab
        });
        let decimals = value.get("decimals").and_then(toml::Value::as_integer);
        Point {
            id: PointId::of(device, &segment(&value["name"])),
            table,
            address: address.parse().expect("an address"),
            type_,
            order,
            bit: None,
            scale: value.get("scale").and_then(toml::Value::as_float).unwrap_or(1.0),
            offset: 0.0,
            decimals: decimals.and_then(|n| n.try_into().ok()),
            unit: None,
            invalid: Vec::new(),
            range: None,
            report: Report::Interval,
        }
    }

    #[test]
    fn every_alarm_of_the_file_has_a_point_and_both_languages() {
        let address = (Ipv4Addr::LOCALHOST, 1).into();
        let toml: toml::Table = config_toml(address).parse().expect("TOML");
        let points: Vec<PointId> = bus(address).devices.into_iter().flat_map(|d| d.points).map(|p| p.id).collect();
        for alarm in toml["alarm"].as_array().expect("alarms") {
            let point = alarm["point"].as_str().expect("a point");
            assert!(points.iter().any(|p| p.as_str() == point), "{point}");
            assert!(alarm["message"]["id"].is_str() && alarm["message"]["en"].is_str(), "{point}");
            segment(&alarm["name"]);
        }
    }

    /// The last reading of every point, as the bus passes them on.
    struct Watch {
        queue: mpsc::Receiver<Input>,
        last: HashMap<String, Reading>,
    }

    impl Watch {
        async fn until(&mut self, what: &str, holds: impl Fn(&HashMap<String, Reading>) -> bool) {
            let search = async {
                while !holds(&self.last) {
                    let Some(Input::Readings(readings)) = self.queue.recv().await else { panic!("the bus has ended") };
                    self.last.extend(readings.into_iter().map(|r| (r.point.to_string(), r)));
                }
            };
            timeout(DEADLINE, search).await.unwrap_or_else(|_| panic!("never: {what}"));
        }

        async fn value(&mut self, point: &str, value: Value) {
            self.until(point, |last| last.get(point).is_some_and(|r| r.value.as_ref() == Some(&value))).await;
        }

        async fn bad(&mut self, point: &str, reason: Reason) {
            self.until(point, |last| last.get(point).is_some_and(|r| r.reason == Some(reason))).await;
        }
    }

    #[tokio::test]
    async fn a_gateway_reads_the_park_and_sees_what_happens_in_it() {
        let clock = Clock::system();
        let (park, server) = Park::start(Pace::new(clock.clone(), 8 * HOUR_S, 600), 7).await.expect("loopback");
        let shutdown = Shutdown::new();
        let stopped = tokio::spawn(server.run(shutdown.clone()));
        let (output, queue) = mpsc::channel(1);
        let bus = Bus { timeout: Duration::from_millis(400), ..bus(park.address()) };
        let points: usize = bus.devices.iter().map(|d| d.points.len()).sum();
        let devices = bus.devices.len();
        let beat = Pulse::new(clock.clone()).stage("modbus");
        tokio::spawn(BusTask::new(bus, clock, Metrics::new(), beat, shutdown.clone(), output).run());
        let mut seen = Watch { queue, last: HashMap::new() };

        let all_good = |last: &HashMap<String, Reading>| {
            last.len() == points + devices && last.values().all(|r| r.reason.is_none())
        };
        seen.until("every point is good", all_good).await;
        seen.value("panel/door", Value::Bool(false)).await;
        seen.value("pond/panic", Value::Integer(0)).await;

        park.apply(Incident::DoorOpened);
        seen.value("panel/door", Value::Bool(true)).await;
        park.apply(Incident::PanicPressed);
        seen.value("pond/panic", Value::Integer(1)).await;
        park.apply(Incident::WaterHigh);
        seen.value("pond/float", Value::Bool(true)).await;

        park.apply(Incident::UnitDead(Unit::Meter));
        seen.bad("meter/volts", Reason::Timeout).await;
        seen.value("meter/communication", Value::Bool(true)).await;
        park.apply(Incident::UnitBack(Unit::Meter));
        seen.value("meter/communication", Value::Bool(false)).await;

        park.apply(Incident::LinkCut);
        seen.bad("panel/door", Reason::LinkDown).await;
        seen.value("panel/communication", Value::Bool(true)).await;
        park.apply(Incident::LinkBack);
        seen.value("panel/communication", Value::Bool(false)).await;
        seen.until("every point is good again", all_good).await;

        shutdown.cancel();
        assert!(timeout(DEADLINE, stopped).await.expect("it stops").expect("no panic").is_ok());
    }
}
