//! The test bench: what stands at the node's pins, driven over the second serial port by whoever runs the emulator.
//!
//! Commands are a letter and bytes, numbers have their high byte first:
//!
//! | command | means |
//! |---|---|
//! | `c` closed | contacts that are closed, a bit each; they stay so over a reset |
//! | `p` contact, times:2, closed_ms:2, open_ms:2 | presses contact 0 to 7 so often, by the node's own clock; `P` contact when done |
//! | `i` present | chips that are there: bit 0 climate sensor, bit 1 converter |
//! | `s` | asks for `S` outputs, undriven:2, heard:4, slowest_us:4, now_us:8, asleep_us:8 |
//! | `r` number, len, bytes | what a chip answered to `I` with this number; len 255: it did not acknowledge |
//! | `x` | panics |
//! | `h` | hangs |
//!
//! What it says: `B` at each start; `P` and `S` as above, where outputs are relay 1 and 2, lamp and direction, a bit each,
//! undriven counts bytes sent without the direction pin, heard those that came over the bus, and slowest is the longest from the last byte of a request to the
//! first of its answer; `I` number, address, written, wanted, bytes: a transaction on the I2C bus, to be played by the
//! other side. The clock stands still meanwhile, so that a slow player costs the node no time.

use core::{array, cell::Cell, convert::Infallible};

use embedded_hal::{
    digital::{self, InputPin, OutputPin},
    i2c::{self, I2c, NoAcknowledgeSource, Operation},
};
use embedded_hal_nb::{
    nb,
    serial::{self, Read, Write},
};
use gardu_node::{
    registers::CONTACTS,
    time::{Duration, Instant, after},
};

use crate::{
    chip::{Clock, Port},
    shared::Lasting,
};

/// How long a chip may be played: a silent player is a chip that is not there, long before the watchdog bites.
const PLAYED_WITHIN: Duration = Duration::millis(500);
/// Nine bits at 400 kHz.
const BYTE_ON_I2C: Duration = Duration::micros(23);
/// The longest a chip here answers: two words with their checksums.
const ANSWER_MAX: usize = 6;
/// `r`, number, len, bytes.
const COMMAND_MAX: usize = 3 + ANSWER_MAX;
const NOT_ACKNOWLEDGED: u8 = 255;
const NOT_THERE: i2c::ErrorKind = i2c::ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);

pub(crate) const RELAY_1: u8 = 1 << 0;
pub(crate) const RELAY_2: u8 = 1 << 1;
pub(crate) const LAMP: u8 = 1 << 2;
pub(crate) const DIRECTION: u8 = 1 << 3;

/// Closed contacts, and the same inverted: what memory holds after power-on is neither.
#[unsafe(link_section = ".uninit.closed")]
static CLOSED: Lasting<2> = Lasting::new();

/// Everything at the pins.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    clock: &'a Clock,
    port: Port,
    command: Cell<([u8; COMMAND_MAX], usize)>,
    closed: Cell<u8>,
    presses: [Cell<Presses>; CONTACTS],
    outputs: Cell<u8>,
    present: Cell<u8>,
    /// Number of the last transaction, and what was answered to it.
    asked: Cell<u8>,
    answered: Cell<Option<Answer>>,
    undriven: Cell<u16>,
    heard: Cell<u32>,
    slowest: Cell<Duration>,
}

type Answer = Result<[u8; ANSWER_MAX], i2c::ErrorKind>;

#[derive(Debug, Clone, Copy)]
struct Presses {
    left: u16,
    closed_ms: u16,
    open_ms: u16,
    since: Instant,
}

impl Presses {
    const NONE: Self = Self { left: 0, closed_ms: 0, open_ms: 0, since: Instant::from_ticks(0) };

    fn closes(&self, clock: &Clock) -> bool {
        self.left > 0 && clock.since(self.since) < Duration::millis(self.closed_ms.into())
    }

    fn period(&self) -> Duration {
        Duration::millis(u64::from(self.closed_ms) + u64::from(self.open_ms))
    }
}

impl<'a> Bench<'a> {
    pub(crate) fn new(clock: &'a Clock, port: Port) -> Self {
        let [closed, inverted] = CLOSED.read();
        let bench = Self {
            clock,
            port,
            command: Cell::new(([0; COMMAND_MAX], 0)),
            closed: Cell::new(if closed == !inverted { closed } else { 0 }),
            presses: array::from_fn(|_| Cell::new(Presses::NONE)),
            outputs: Cell::new(0),
            present: Cell::new(0),
            asked: Cell::new(0),
            answered: Cell::new(None),
            undriven: Cell::new(0),
            heard: Cell::new(0),
            slowest: Cell::new(Duration::from_ticks(0)),
        };
        bench.say(b"B");
        bench
    }

    pub(crate) fn contacts(&self) -> [Contact<'_>; CONTACTS] {
        array::from_fn(|contact| Contact { bench: self, contact })
    }

    /// One of the bits that `S` reports.
    pub(crate) const fn output(&self, bit: u8) -> Output<'_> {
        Output { bench: self, bit }
    }

    pub(crate) const fn i2c(&self) -> Played<'_> {
        Played(self)
    }

    pub(crate) const fn bus(&self, port: Port) -> Bus<'_> {
        Bus { bench: self, port, heard_at: None }
    }

    /// Does what it is told, and goes on pressing.
    pub(crate) fn step(&self) {
        self.listen();
        for (contact, cell) in (0..).zip(&self.presses) {
            let mut presses = cell.get();
            if presses.left > 0 && self.clock.since(presses.since) >= presses.period() {
                presses.since = after(presses.since, presses.period());
                presses.left -= 1;
                cell.set(presses);
                if presses.left == 0 {
                    self.say(&[b'P', contact]);
                }
            }
        }
    }

    /// Takes what has come, and does what is complete.
    fn listen(&self) {
        let mut port = self.port;
        while let Ok(byte) = port.read() {
            let (mut command, mut len) = self.command.get();
            if let Some(free) = command.get_mut(len) {
                *free = byte;
                len += 1;
            }
            self.command.set((command, if self.obey(&command[..len.min(COMMAND_MAX)]) { 0 } else { len }));
        }
    }

    /// Whether it is complete, or nothing that could become so.
    fn obey(&self, command: &[u8]) -> bool {
        match *command {
            [b'c', closed] => {
                self.closed.set(closed);
                CLOSED.write(&[closed, !closed]);
            }
            [b'p', contact, t, t_, c, c_, o, o_] => {
                let [left, closed_ms, open_ms] = [[t, t_], [c, c_], [o, o_]].map(u16::from_be_bytes);
                if let Some(cell) = self.presses.get(usize::from(contact)) {
                    cell.set(Presses { left, closed_ms, open_ms, since: self.clock.now() });
                }
            }
            [b'i', present] => self.present.set(present),
            [b's'] => self.report(),
            [b'r', _, NOT_ACKNOWLEDGED] => self.take_answer(command[1], Err(NOT_THERE)),
            [b'r', number, len, ref bytes @ ..] if bytes.len() == usize::from(len) => {
                let mut answer = [0; ANSWER_MAX];
                answer.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                self.take_answer(number, Ok(answer));
            }
            [b'x'] => panic!(),
            [b'h'] => loop {
                core::hint::spin_loop();
            },
            [b'c' | b'p' | b'i' | b'r', ..] => return command.len() == COMMAND_MAX,
            _ => {}
        }
        true
    }

    fn report(&self) {
        self.say(b"S");
        self.say(&[self.outputs.get()]);
        self.say(&self.undriven.get().to_be_bytes());
        self.say(&self.heard.get().to_be_bytes());
        self.say(&u32::try_from(self.slowest.get().ticks()).unwrap_or(u32::MAX).to_be_bytes());
        self.say(&self.clock.now().ticks().to_be_bytes());
        self.say(&self.clock.asleep().ticks().to_be_bytes());
    }

    /// What comes too late is the answer to nothing.
    fn take_answer(&self, number: u8, answer: Answer) {
        if number == self.asked.get() {
            self.answered.set(Some(answer));
        }
    }

    fn say(&self, bytes: &[u8]) {
        let mut port = self.port;
        for byte in bytes {
            // Its room is never used up for long: the emulator takes everything at once.
            while port.write(*byte).is_err() {}
        }
    }

    fn play(&self, address: u8, written: &[&[u8]], wanted: usize) -> Answer {
        let number = self.asked.get().wrapping_add(1);
        self.asked.set(number);
        self.answered.set(None);
        let from = self.clock.now();
        let written_len: usize = written.iter().map(|bytes| bytes.len()).sum();
        self.say(&[b'I', number, address, written_len as u8, wanted as u8]);
        written.iter().for_each(|bytes| self.say(bytes));
        let mut answer = None;
        while answer.is_none() && self.clock.since(from) < PLAYED_WITHIN {
            self.clock.doze();
            self.listen();
            answer = self.answered.get();
        }
        self.clock.count_as(from, BYTE_ON_I2C * (2 + written_len + wanted) as u32);
        answer.unwrap_or(Err(NOT_THERE))
    }
}

/// A contact with a pull-up: closed is low.
#[derive(Debug)]
pub(crate) struct Contact<'a> {
    bench: &'a Bench<'a>,
    contact: usize,
}

impl digital::ErrorType for Contact<'_> {
    type Error = Infallible;
}

impl InputPin for Contact<'_> {
    fn is_low(&mut self) -> Result<bool, Self::Error> {
        let Self { bench, contact } = *self;
        let held = bench.closed.get() >> contact & 1 == 1;
        Ok(held || bench.presses.get(contact).is_some_and(|presses| presses.get().closes(bench.clock)))
    }

    fn is_high(&mut self) -> Result<bool, Self::Error> {
        self.is_low().map(|low| !low)
    }
}

/// An output that can be looked at.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    bench: &'a Bench<'a>,
    bit: u8,
}

impl digital::ErrorType for Output<'_> {
    type Error = Infallible;
}

impl OutputPin for Output<'_> {
    fn set_low(&mut self) -> Result<(), Self::Error> {
        self.bench.outputs.set(self.bench.outputs.get() & !self.bit);
        Ok(())
    }

    fn set_high(&mut self) -> Result<(), Self::Error> {
        self.bench.outputs.set(self.bench.outputs.get() | self.bit);
        Ok(())
    }
}

/// An I2C bus whose chips are played by the other side.
#[derive(Debug)]
pub(crate) struct Played<'a>(&'a Bench<'a>);

impl i2c::ErrorType for Played<'_> {
    type Error = i2c::ErrorKind;
}

impl I2c for Played<'_> {
    /// What is written comes before what is read: no driver here does it otherwise.
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), Self::Error> {
        let chip = match address {
            0x44 => 1,
            0x48 => 1 << 1,
            _ => 0,
        };
        if self.0.present.get() & chip == 0 {
            return Err(NOT_THERE);
        }
        let mut wanted = 0;
        let mut written: [&[u8]; 2] = [&[]; 2];
        let mut free = written.iter_mut();
        for operation in operations.iter() {
            match operation {
                Operation::Read(bytes) => wanted += bytes.len(),
                Operation::Write(bytes) => *free.next().ok_or(i2c::ErrorKind::Other)? = bytes,
            }
        }
        let answer = self.0.play(address, &written, wanted)?;
        let mut answer = answer.iter();
        for operation in operations {
            if let Operation::Read(bytes) = operation {
                bytes.iter_mut().zip(&mut answer).for_each(|(to, from)| *to = *from);
            }
        }
        Ok(())
    }
}

/// The RS-485 bus: the first port, which hears the direction pin as a transceiver does.
#[derive(Debug)]
pub(crate) struct Bus<'a> {
    bench: &'a Bench<'a>,
    port: Port,
    heard_at: Option<Instant>,
}

impl serial::ErrorType for Bus<'_> {
    type Error = serial::ErrorKind;
}

impl Read for Bus<'_> {
    fn read(&mut self) -> nb::Result<u8, Self::Error> {
        let byte = self.port.read()?;
        let Bench { clock, heard, .. } = self.bench;
        heard.set(heard.get().wrapping_add(1));
        self.heard_at = Some(clock.now());
        Ok(byte)
    }
}

impl Write for Bus<'_> {
    fn write(&mut self, byte: u8) -> nb::Result<(), Self::Error> {
        let Bench { clock, outputs, undriven, slowest, .. } = self.bench;
        self.port.write(byte)?;
        if outputs.get() & DIRECTION == 0 {
            undriven.set(undriven.get().wrapping_add(1));
        }
        if let Some(heard_at) = self.heard_at.take() {
            slowest.set(slowest.get().max(clock.since(heard_at)));
        }
        Ok(())
    }

    fn flush(&mut self) -> nb::Result<(), Self::Error> {
        self.port.flush()
    }
}
