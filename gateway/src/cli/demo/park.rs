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

pub mod model;

use std::{
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

pub use self::model::{Incident, Incidents, ParkModel, Tables, Unit};
use crate::{
    clock::{Clock, Now},
    supervise::{Shutdown, TaskResult},
};

/// How long to wait before the port is tried again that somebody else took while the link was cut.
const BIND_AGAIN: Duration = Duration::from_millis(200);

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
    include_str!("park/park.toml").replace("{address}", &address.to_string())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test spawns the park and its bus itself")]
mod tests {
    use std::collections::HashMap;

    use tokio::{sync::mpsc, time::timeout};

    use super::{model::HOUR_S, *};
    use crate::{
        config::{Bus, Device, Link, Order, Point, Report, Table, Type},
        metrics::Metrics,
        pipeline::Input,
        reading::{PointId, Reading, Reason, Segment, Value},
        source::{modbus::BusTask, outlet::Outlet},
        supervise::Pulse,
    };

    /// Nothing here takes this long unless it is broken.
    const DEADLINE: Duration = Duration::from_secs(60);

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
        Device { name, unit, poll: Duration::from_millis(50), missed_polls: 3, profile: None, points }
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
        let (pipeline, queue) = mpsc::channel(1);
        let bus = Bus { timeout: Duration::from_millis(400), ..bus(park.address()) };
        let points: usize = bus.devices.iter().map(|d| d.points.len()).sum();
        let devices = bus.devices.len();
        let outlet = Outlet { pipeline, beat: Pulse::new(clock.clone()).stage("modbus"), shutdown: shutdown.clone() };
        tokio::spawn(BusTask::new(bus, clock, Metrics::new(), outlet).run());
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
