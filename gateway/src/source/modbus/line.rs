//! One serial line, from a port of our own or behind a converter: what keeps answers and requests together where frames
//! carry no number.
//!
//! * Before a request the line has been silent for t3.5, and what came meanwhile is discarded.
//! * An answer is what [`rtu`] believes, and it comes no sooner than its bytes take on the wire.
//! * After any fault but an exception the line is in **quarantine**: nothing is sent until it has been silent for the
//!   time of the slowest answer. Else a late answer would be taken for that to the next request of equal shape, and each
//!   answer after it for the next. So is a line that was just opened, for whoever had it before may have asked.
//!
//! Bytes come in lumps: USB adapters hand them on every 16 ms, converters as TCP likes. A gap therefore never ends a
//! frame (no t1.5); its length does, or the deadline. Lumps only make an answer later, never earlier.
//!
//! What cannot be told: an answer later than time-out and quarantine together that meets a request of equal shape. The
//! quarantine learns from the first late answer it sees.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    // The clock of the runtime's timers, finer than a millisecond: spans on the line are told by it, moments never.
    time::{Instant, timeout, timeout_at},
};

use super::{
    decode::Answer,
    plan::Request,
    poll::Trouble,
    rtu::{self, Verdict},
    timing::{EXCEPTION_BYTES, REQUEST_BYTES},
};
use crate::{
    config::{Bus, SerialLine},
    metrics::Metrics,
    reading::Segment,
};

/// No answer teaches a longer quarantine than this: the slowest devices take a second or two, and every fault costs it.
const SLOWEST_MAX: Duration = Duration::from_secs(5);
/// After so many requests in a row without a byte the connection itself is suspect: a converter that restarted unnoticed,
/// an adapter that hangs.
const DEAF_AFTER: u32 = 3;

/// What went wrong on the line, as `/metrics` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing came in time.
    Silence,
    /// The beginning of an answer came, and no more.
    Incomplete,
    /// What came was no answer to the request.
    Frame(rtu::Fault),
    /// The answer was complete before the wire can have carried it.
    Early,
    /// The line is never silent.
    Babble,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 8] = [
        Self::Silence,
        Self::Incomplete,
        Self::Frame(rtu::Fault::Unit),
        Self::Frame(rtu::Fault::Function),
        Self::Frame(rtu::Fault::Length),
        Self::Frame(rtu::Fault::Checksum),
        Self::Early,
        Self::Babble,
    ];

    /// The word used in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Incomplete => "incomplete",
            Self::Frame(rtu::Fault::Unit) => "unit",
            Self::Frame(rtu::Fault::Function) => "function",
            Self::Frame(rtu::Fault::Length) => "length",
            Self::Frame(rtu::Fault::Checksum) => "checksum",
            Self::Early => "early",
            Self::Babble => "babble",
        }
    }

    const fn trouble(self) -> Trouble {
        match self {
            Self::Silence => Trouble::Timeout,
            Self::Incomplete | Self::Frame(_) | Self::Early => Trouble::Malformed,
            Self::Babble => Trouble::Babble,
        }
    }
}

/// The owner of an open line.
#[derive(Debug)]
pub struct Line<S> {
    stream: S,
    bus: Segment,
    wire: SerialLine,
    timeout: Duration,
    metrics: Metrics,
    wanted: Silence,
    /// The longest that an answer on this line took.
    slowest: Duration,
    /// The exchange that was given up last, for its answer may still come.
    given_up: Option<Exchange>,
    /// Requests in a row without a byte.
    unheard: u32,
    babbles: bool,
    has_told_of_early: bool,
    #[cfg(test)]
    pub(super) quarantine: Quarantine,
}

/// Whether faults have their quarantine; only the twin of a test goes without.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quarantine {
    On,
    Off,
}

/// The silence wanted before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// That between two frames.
    BetweenFrames,
    /// That after a fault.
    Quarantine,
}

/// A request sent and what came since.
#[derive(Debug)]
struct Exchange {
    unit: u8,
    request: Request,
    sent: Instant,
    received: Vec<u8>,
}

/// Why an exchange has no answer.
enum Failure {
    Refused(u8),
    Broken,
    Fault(Fault),
}

impl Exchange {
    fn hear(&mut self, bytes: &[u8]) -> Verdict {
        // Bounded: a verdict other than `More` ends it, and that comes with the longest frame at the latest.
        self.received.extend(bytes);
        rtu::read(self.unit, &self.request, &self.received)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// Takes over a port just opened on a bus.
    #[must_use]
    pub fn new(stream: S, bus: &Bus, wire: SerialLine, metrics: Metrics) -> Self {
        for fault in Fault::ALL {
            // A series that exists from the start can be seen not to grow.
            metrics.modbus_line_faults.with_label_values(&[bus.name.as_str(), fault.as_str()]);
        }
        Self {
            stream,
            bus: bus.name.clone(),
            wire,
            timeout: bus.timeout,
            metrics,
            wanted: Silence::Quarantine,
            slowest: Duration::ZERO,
            given_up: None,
            unheard: 0,
            babbles: false,
            has_told_of_early: false,
            #[cfg(test)]
            quarantine: Quarantine::On,
        }
    }

    /// Asks one request of one unit. May be dropped only for good: a request sent must have its answer or its quarantine.
    ///
    /// Takes at most: time-out and wire time of the frames, then the quarantine and a time-out more.
    pub async fn ask(&mut self, unit: u8, request: &Request) -> Result<Answer, Trouble> {
        let began = Instant::now();
        let result = self.ask_when_silent(unit, request).await;
        let busy_seconds = self.metrics.modbus_busy_seconds.with_label_values(&[self.bus.as_str()]);
        busy_seconds.inc_by(began.elapsed().as_secs_f64());
        result
    }

    /// Whether the line has been so silent that it should be opened anew.
    #[must_use]
    pub const fn is_deaf(&self) -> bool {
        self.unheard >= DEAF_AFTER
    }

    async fn ask_when_silent(&mut self, unit: u8, request: &Request) -> Result<Answer, Trouble> {
        self.fall_silent().await?;
        match self.exchange(unit, request).await {
            Ok(answer) => Ok(answer),
            Err(Failure::Refused(code)) => Err(Trouble::refusal(code)),
            Err(Failure::Broken) => Err(Trouble::Broken),
            Err(Failure::Fault(fault)) => {
                self.count(fault);
                self.wanted = Silence::Quarantine;
                // At once, not before the next request: so the time is charged to the device that caused it.
                match self.fall_silent().await {
                    Err(Trouble::Broken) => Err(Trouble::Broken),
                    Ok(()) | Err(_) => Err(fault.trouble()),
                }
            }
        }
    }

    async fn exchange(&mut self, unit: u8, request: &Request) -> Result<Answer, Failure> {
        let round_trip = self.metrics.modbus_request_seconds.with_label_values(&[self.bus.as_str()]);
        let _observed_at_the_end = round_trip.start_timer();
        let mut exchange = Exchange { unit, request: request.clone(), sent: Instant::now(), received: Vec::new() };
        let frames = self.wire.frame_time(REQUEST_BYTES + request.answer_bytes());
        // The time-out is the device's to think; what the wire needs comes on top.
        let deadline = exchange.sent + self.timeout + frames + self.wire.silence();
        self.given_up = None;
        match timeout_at(deadline, self.stream.write_all(&rtu::request_frame(unit, request))).await {
            Ok(Ok(())) => {}
            // A port that takes no eight bytes is as good as none.
            Ok(Err(_)) | Err(_) => return Err(Failure::Broken),
        }
        let mut bytes = [0; 256];
        loop {
            let Ok(read) = timeout_at(deadline, self.stream.read(&mut bytes)).await else {
                let silence = rtu::is_silence(unit, request, &exchange.received);
                self.unheard = if exchange.received.is_empty() { self.unheard.saturating_add(1) } else { 0 };
                self.given_up = Some(exchange);
                return Err(Failure::Fault(if silence { Fault::Silence } else { Fault::Incomplete }));
            };
            let n = read.ok().filter(|n| *n > 0).ok_or(Failure::Broken)?;
            let (result, answer_bytes) = match exchange.hear(&bytes[..n]) {
                Verdict::More => continue,
                Verdict::Answer(answer) => (Ok(answer), request.answer_bytes()),
                Verdict::Exception(code) => (Err(Failure::Refused(code)), EXCEPTION_BYTES),
                Verdict::Fault(fault) => (Err(Failure::Fault(Fault::Frame(fault))), 0),
            };
            self.unheard = 0;
            let took = exchange.sent.elapsed();
            if took < self.wire.least_answer_time(answer_bytes) && answer_bytes > 0 {
                self.tell_of_early(took, answer_bytes);
                return Err(Failure::Fault(Fault::Early));
            }
            if result.is_ok() {
                self.learn(took);
            }
            return result;
        }
    }

    /// Discards what comes until the line has been silent for as long as is wanted. Given up, with the quarantine kept,
    /// when it babbles for a time-out on top of that: others, and shutdown, must have their turn.
    async fn fall_silent(&mut self) -> Result<(), Trouble> {
        #[cfg(test)]
        if self.quarantine == Quarantine::Off {
            self.wanted = Silence::BetweenFrames;
        }
        let (began, wanted) = (Instant::now(), self.wanted);
        let give_up_at = began + self.pause() + self.timeout;
        let mut bytes = [0; 256];
        let result = loop {
            match timeout(self.pause(), self.stream.read(&mut bytes)).await {
                Err(_elapsed) => break Ok(()),
                Ok(Ok(0) | Err(_)) => break Err(Trouble::Broken),
                Ok(Ok(n)) => self.overhear(&bytes[..n]),
            }
            if Instant::now() >= give_up_at {
                break Err(Trouble::Babble);
            }
        };
        if wanted == Silence::Quarantine {
            let seconds = self.metrics.modbus_quarantine_seconds.with_label_values(&[self.bus.as_str()]);
            seconds.inc_by(began.elapsed().as_secs_f64());
        }
        self.wanted = if result.is_ok() { Silence::BetweenFrames } else { Silence::Quarantine };
        match result {
            Ok(()) if std::mem::take(&mut self.babbles) => tracing::info!(bus = %self.bus, "the line is silent again"),
            Err(Trouble::Babble) => {
                self.count(Fault::Babble);
                if !std::mem::replace(&mut self.babbles, true) {
                    tracing::warn!(
                        bus = %self.bus,
                        "the line is never silent, so nobody can be asked: a second master, a device that babbles, or noise"
                    );
                }
            }
            Ok(()) | Err(_) => {}
        }
        result
    }

    fn pause(&self) -> Duration {
        let silence = self.wire.silence();
        match self.wanted {
            Silence::BetweenFrames => silence,
            Silence::Quarantine => silence.max(self.timeout).max(self.slowest),
        }
    }

    /// Bytes nobody waits for; a late answer among them says how slow the line can be.
    fn overhear(&mut self, bytes: &[u8]) {
        self.unheard = 0;
        let discarded = self.metrics.modbus_discarded_bytes.with_label_values(&[self.bus.as_str()]);
        discarded.inc_by(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let Some(mut exchange) = self.given_up.take() else { return };
        match exchange.hear(bytes) {
            Verdict::More => self.given_up = Some(exchange),
            Verdict::Answer(_) | Verdict::Exception(_) => self.learn(exchange.sent.elapsed()),
            Verdict::Fault(_) => {}
        }
    }

    fn learn(&mut self, took: Duration) {
        self.slowest = self.slowest.max(took.min(SLOWEST_MAX));
    }

    fn count(&self, fault: Fault) {
        self.metrics.modbus_line_faults.with_label_values(&[self.bus.as_str(), fault.as_str()]).inc();
    }

    /// Once a connection: where every answer is early, the configuration is wrong.
    fn tell_of_early(&mut self, took: Duration, answer_bytes: u16) {
        if std::mem::replace(&mut self.has_told_of_early, true) {
            return;
        }
        let least = self.wire.least_answer_time(answer_bytes);
        tracing::warn!(
            bus = %self.bus,
            baud = self.wire.baud,
            ?took,
            ?least,
            "an answer was complete before the line can have carried it, and is refused; if this is so of every answer, the line is faster than configured: set its baud"
        );
    }
}
