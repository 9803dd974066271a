//! The connection of a bus: one request, one answer, and what is done when that fails.
//!
//! After anything but a proper answer or an exception a connection of Modbus TCP is dropped, for its next answer might
//! belong to the request given up; a serial line puts itself in quarantine instead (see [`Line`]) and is only dropped
//! when it breaks or seems dead. A new one is opened when the next request needs it; only when that fails are attempts
//! spaced out, at random, so that the gateways of a city do not knock in step.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_modbus::{
    Response, Slave,
    client::{Client, Context, tcp},
    slave::SlaveContext,
};

use super::{decode::Answer, line::Line, plan::Request, poll::Trouble, port};
use crate::{
    backoff::{Backoff, Jitter, Pace},
    clock::Clock,
    config::{Bus, Link, Table},
    metrics::Metrics,
};

/// How long a connect may take: long enough for one lost SYN to be sent again (RFC 6298: after 1 s, then 2 s).
const CONNECT_MAX: Duration = Duration::from_millis(3_500);

/// A bus's connection, open or not.
pub struct Wire {
    bus: Bus,
    clock: Clock,
    metrics: Metrics,
    open: Option<Open>,
    /// Connects that failed since the last that did not.
    failures: u32,
    backoff: Backoff,
    /// No connect before this time.
    retry_at_ms: u64,
}

enum Open {
    Tcp(Context),
    Line(Box<Line<Box<dyn Port>>>),
}

/// What carries the bytes of a serial line.
trait Port: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Port for T {}

impl Wire {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(bus: Bus, clock: Clock, metrics: Metrics) -> Self {
        Self { bus, clock, metrics, open: None, failures: 0, backoff: Backoff::default(), retry_at_ms: 0 }
    }

    /// Asks one request of one unit.
    ///
    /// Takes at most the bus's timeout to wait for a connect to be due, a connect, and the timeout (on a serial line: see
    /// [`Line::ask`]), each once more where the peer had closed a connection that was idle.
    pub async fn ask(&mut self, unit: u8, request: &Request) -> Result<Answer, Trouble> {
        let was_open = self.open.is_some();
        match self.ask_once(unit, request).await {
            // Many devices close a connection that idles between two polls; a read may be asked again.
            Err(Trouble::Broken) if was_open => self.ask_once(unit, request).await,
            result => result,
        }
    }

    async fn ask_once(&mut self, unit: u8, request: &Request) -> Result<Answer, Trouble> {
        self.connect().await;
        let (result, stays) = match &mut self.open {
            None => return Err(Trouble::NoLink),
            Some(Open::Line(line)) => {
                let result = line.ask(unit, request).await;
                let stays = !matches!(result, Err(Trouble::Broken)) && !line.is_deaf();
                (result, stays)
            }
            Some(Open::Tcp(context)) => {
                context.set_slave(Slave(unit));
                let bus = [self.bus.name.as_str()];
                let timer = self.metrics.modbus_request_seconds.with_label_values(&bus).start_timer();
                let response = timeout(self.bus.timeout, context.call(function(request))).await;
                self.metrics.modbus_busy_seconds.with_label_values(&bus).inc_by(timer.stop_and_record());
                let result = judge(request, response);
                let stays = matches!(result, Ok(_) | Err(Trouble::Refused(_) | Trouble::Unreachable));
                (result, stays)
            }
        };
        if !stays {
            self.open = None;
        }
        result
    }

    /// Opens the connection unless it is open. Where the next attempt is due soon it is waited for, so that one refused
    /// connect after a time-out is not yet held against the devices.
    async fn connect(&mut self) {
        let patience_ms = u64::try_from(self.bus.timeout.as_millis()).unwrap_or(u64::MAX);
        let give_up_at_ms = self.clock.now().mono_ms.saturating_add(patience_ms);
        while self.open.is_none() && self.retry_at_ms <= give_up_at_ms {
            let wait_ms = self.retry_at_ms.saturating_sub(self.clock.now().mono_ms);
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            let opened = timeout(CONNECT_MAX, open(&self.bus, &self.metrics)).await;
            match opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(opened) => {
                    self.metrics.modbus_connects.with_label_values(&[self.bus.name.as_str()]).inc();
                    if self.failures > 0 {
                        tracing::info!(bus = %self.bus.name, failures = self.failures, "the bus can be reached again");
                    }
                    self.failures = 0;
                    self.backoff = Backoff::default();
                    self.open = Some(opened);
                }
                Err(error) => {
                    if self.failures == 0 {
                        tracing::warn!(bus = %self.bus.name, address = %self.bus.link, %error, "the bus cannot be reached");
                    }
                    let pause = self.backoff.after(Duration::ZERO, Pace::Near, Jitter::random());
                    let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                    self.retry_at_ms = self.clock.now().mono_ms.saturating_add(pause_ms);
                    self.failures = self.failures.saturating_add(1);
                }
            }
        }
    }
}

async fn open(bus: &Bus, metrics: &Metrics) -> io::Result<Open> {
    let on_line = |port, line| Open::Line(Box::new(Line::new(port, bus, line, metrics.clone())));
    Ok(match &bus.link {
        Link::Tcp { host, port } => Open::Tcp(tcp::attach(open_tcp(host, *port).await?)),
        Link::RtuOverTcp { host, port, line } => on_line(Box::new(open_tcp(host, *port).await?), *line),
        Link::Rtu { path, line } => on_line(Box::new(port::open(path, *line).map_err(io::Error::other)?), *line),
    })
}

async fn open_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(format!("{host}:{port}")).await?;
    // A request is one small segment: Nagle would hold it back for the acknowledgement of the one before.
    stream.set_nodelay(true)?;
    Ok(stream)
}

const fn function(request: &Request) -> tokio_modbus::Request<'static> {
    let Request { table, address, count, .. } = request;
    match table {
        Table::Coil => tokio_modbus::Request::ReadCoils(*address, *count),
        Table::Discrete => tokio_modbus::Request::ReadDiscreteInputs(*address, *count),
        Table::Holding => tokio_modbus::Request::ReadHoldingRegisters(*address, *count),
        Table::Input => tokio_modbus::Request::ReadInputRegisters(*address, *count),
    }
}

type Called = Result<tokio_modbus::Result<Response>, tokio::time::error::Elapsed>;

/// An answer of exactly the length asked for, or what is wrong. The client has compared transaction, unit and function.
fn judge(request: &Request, response: Called) -> Result<Answer, Trouble> {
    let count = usize::from(request.count);
    match response {
        Ok(Ok(Ok(Response::ReadHoldingRegisters(words) | Response::ReadInputRegisters(words))))
            if words.len() == count =>
        {
            Ok(Answer::Registers(words))
        }
        // Bits come in whole bytes; the rest of the last one is padding.
        Ok(Ok(Ok(Response::ReadCoils(mut bits) | Response::ReadDiscreteInputs(mut bits))))
            if bits.len() == count.next_multiple_of(8) =>
        {
            bits.truncate(count);
            Ok(Answer::Bits(bits))
        }
        Ok(Ok(Ok(_)) | Err(tokio_modbus::Error::Protocol(_))) => Err(Trouble::Malformed),
        Ok(Ok(Err(code))) => Err(Trouble::refusal(code.into())),
        Ok(Err(tokio_modbus::Error::Transport(error))) => Err(match error.kind() {
            // What the frame decoder says of a frame it cannot read; all else, whatever its kind, ended the connection.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Trouble::Malformed,
            _ => Trouble::Broken,
        }),
        Err(_elapsed) => Err(Trouble::Timeout),
    }
}
