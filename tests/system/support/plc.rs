//! A Modbus TCP server whose registers the test turns, and which can fall silent in every way a field device does.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{self, Ready},
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::Instant,
};

use tokio_modbus::{
    ExceptionCode, Request, Response, SlaveRequest,
    server::{
        Service,
        tcp::{Server, accept_tcp_connection},
    },
};
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, free_port, until};

/// One of the four tables of the Modbus data model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Coil,
    Discrete,
    Holding,
    Input,
}

/// Unit, table, address.
type Key = (u8, Table, u16);

/// The server; every unit exists, and what was never set reads as 0.
#[derive(Debug)]
pub(crate) struct Plc {
    /// Where it listens, also after [`Plc::restore`].
    pub(crate) port: u16,
    wiring: Arc<Wiring>,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

/// The registers, and who waits for them to be asked.
#[derive(Debug, Default)]
pub(super) struct Wiring {
    registers: Mutex<Registers>,
    asked: Condvar,
}

#[derive(Debug, Default)]
struct Registers {
    /// Bits are 0 and 1.
    values: BTreeMap<Key, u16>,
    silent: BTreeSet<u8>,
    requests: u64,
    /// When a register was first read after [`Plc::set_and_watch`].
    watched: BTreeMap<Key, Option<Instant>>,
}

impl Plc {
    /// Starts one with every register at 0.
    pub(crate) fn start() -> Self {
        let mut plc = Self { port: free_port(), wiring: Arc::default(), running: None };
        plc.restore();
        plc
    }

    /// Sets a register, spelled as in the configuration: `discrete:0`, `holding:7`.
    pub(crate) fn set(&self, unit: u8, register: &str, value: u16) {
        self.registers().values.insert(key(unit, register), value);
    }

    /// Sets a register and notes when it is first read after that.
    pub(crate) fn set_and_watch(&self, unit: u8, register: &str, value: u16) {
        let (mut registers, key) = (self.registers(), key(unit, register));
        registers.values.insert(key, value);
        registers.watched.insert(key, None);
    }

    /// When the register set by [`Plc::set_and_watch`] was first read.
    pub(crate) fn served_at(&self, unit: u8, register: &str) -> Option<Instant> {
        self.registers().watched.get(&key(unit, register)).copied().flatten()
    }

    /// A unit that no longer answers, on a connection that stays.
    pub(crate) fn stop_unit(&self, unit: u8) {
        self.registers().silent.insert(unit);
    }

    /// It answers again.
    pub(crate) fn start_unit(&self, unit: u8) {
        self.registers().silent.remove(&unit);
    }

    /// The cable is out: connections break, new ones are refused.
    pub(crate) fn cut(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.cancel();
            thread.join().expect("the PLC's thread does not panic");
        }
    }

    /// The cable is in again.
    pub(crate) fn restore(&mut self) {
        let (stop, wiring) = (CancellationToken::new(), self.wiring.clone());
        // Until a process that is just being started has let go of the listener that was cut.
        let mut listener = None;
        until("the PLC's port is free", || {
            listener = std::net::TcpListener::bind(("127.0.0.1", self.port)).ok();
            listener.is_some()
        });
        let listener = listener.expect("until it is there");
        listener.set_nonblocking(true).expect("a socket of ours");
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serve(listener, wiring, stopped));
        });
        self.running = Some((stop, thread));
    }

    /// Requests seen so far, answered or not.
    pub(crate) fn requests(&self) -> u64 {
        self.registers().requests
    }

    /// Waits for so many more requests: with `n` requests a cycle, `2 * n` prove that a whole cycle began and ended.
    pub(crate) fn wait_for_requests(&self, more: u64) {
        let registers = self.registers();
        let wanted = registers.requests + more;
        let waited = self.wiring.asked.wait_timeout_while(registers, PATIENCE, |r| r.requests < wanted);
        let (registers, _) = waited.expect("no panic while registers are held");
        let seen = registers.requests;
        drop(registers);
        assert!(seen >= wanted, "only {seen} of {wanted} requests reached the PLC");
    }

    /// For a serial line that the same units hang on.
    pub(super) fn wiring(&self) -> Arc<Wiring> {
        self.wiring.clone()
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.wiring.registers.lock().expect("no panic while registers are held")
    }
}

impl Wiring {
    /// What a unit answers to a read by function 1 to 4, as words; none while it is silent.
    pub(super) fn read(&self, unit: u8, function: u8, first: u16, count: u16) -> Option<Vec<u16>> {
        let mut registers = self.registers.lock().expect("no panic while registers are held");
        registers.requests += 1;
        self.asked.notify_all();
        let table = match function {
            1 => Table::Coil,
            2 => Table::Discrete,
            3 => Table::Holding,
            4 => Table::Input,
            other => panic!("the gateway writes nothing, and asks function {other}"),
        };
        (!registers.silent.contains(&unit)).then(|| registers.read(unit, table, first, count))
    }
}

impl Drop for Plc {
    fn drop(&mut self) {
        if let Some((stop, _thread)) = self.running.take() {
            stop.cancel();
        }
    }
}

async fn serve(listener: std::net::TcpListener, wiring: Arc<Wiring>, stopped: CancellationToken) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener of ours");
    let on_connected = |stream: tokio::net::TcpStream, peer: SocketAddr| {
        let wiring = wiring.clone();
        async move {
            stream.set_nodelay(true)?;
            accept_tcp_connection(stream, peer, move |_| Ok(Some(Unit(wiring.clone()))))
        }
    };
    let until = async move { stopped.cancelled().await };
    // A connection that the gateway drops is no fault of the PLC; a listener that fails shows as a missing request.
    let _ended = Server::new(listener).serve_until(&on_connected, |_| {}, until).await;
}

/// What one connection talks to.
struct Unit(Arc<Wiring>);

impl Service for Unit {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Option<Response>, ExceptionCode>>;

    fn call(&self, asked: SlaveRequest<'static>) -> Self::Future {
        let mut registers = self.0.registers.lock().expect("no panic while registers are held");
        registers.requests += 1;
        self.0.asked.notify_all();
        if registers.silent.contains(&asked.slave) {
            return future::ready(Ok(None));
        }
        let unit = asked.slave;
        let bits = |words: Vec<u16>| words.into_iter().map(|word| word != 0).collect();
        let answer = match asked.request {
            Request::ReadCoils(at, n) => Response::ReadCoils(bits(registers.read(unit, Table::Coil, at, n))),
            Request::ReadDiscreteInputs(at, n) => {
                Response::ReadDiscreteInputs(bits(registers.read(unit, Table::Discrete, at, n)))
            }
            Request::ReadHoldingRegisters(at, n) => {
                Response::ReadHoldingRegisters(registers.read(unit, Table::Holding, at, n))
            }
            Request::ReadInputRegisters(at, n) => {
                Response::ReadInputRegisters(registers.read(unit, Table::Input, at, n))
            }
            // Read-only by default is a promise of the gateway: a write is refused, and shows in its log.
            _ => return future::ready(Err(ExceptionCode::IllegalFunction)),
        };
        future::ready(Ok(Some(answer)))
    }
}

impl Registers {
    fn read(&mut self, unit: u8, table: Table, first: u16, count: u16) -> Vec<u16> {
        let last = first.saturating_add(count.saturating_sub(1));
        for (_, served) in self.watched.range_mut((unit, table, first)..=(unit, table, last)) {
            served.get_or_insert_with(Instant::now);
        }
        (first..=last).map(|address| self.values.get(&(unit, table, address)).copied().unwrap_or(0)).collect()
    }
}

fn key(unit: u8, register: &str) -> Key {
    let (table, address) = register.split_once(':').expect("a register is `table:address`");
    let table = match table {
        "coil" => Table::Coil,
        "discrete" => Table::Discrete,
        "holding" => Table::Holding,
        "input" => Table::Input,
        other => panic!("there is no table `{other}`"),
    };
    (unit, table, address.parse().expect("an address is a number"))
}
