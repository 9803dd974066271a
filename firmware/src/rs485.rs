//! A half-duplex RS-485 line: frames in, answers out, and the direction pin of the transceiver.
//!
//! Nothing here waits: [`Rs485::poll`] takes what the UART has and gives what it takes. While an answer goes out, what the
//! receiver hears is its own echo and is thrown away.

use core::num::NonZeroU32;

use embedded_hal::digital::OutputPin;
use embedded_hal_nb::serial::{Error, ErrorKind, Read, Write};

use crate::{
    modbus::{
        FRAME_MAX,
        framing::{Framer, Heard, Timing},
    },
    time::{Duration, Instant},
};

/// A UART with its transceiver.
#[derive(Debug)]
pub struct Rs485<U, D> {
    uart: U,
    direction: D,
    timing: Timing,
    framer: Framer,
    answer: [u8; FRAME_MAX],
    sending: Option<Sending>,
}

/// An answer under way.
#[derive(Debug, Clone, Copy)]
struct Sending {
    next: usize,
    length: usize,
    since: Instant,
}

/// What the line is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Nothing: there is time until the next character.
    Silent,
    /// A frame comes in or goes out.
    Busy,
    /// The UART does not send what it was given.
    Stuck,
}

/// What is to be told of the line.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A frame without a break.
    Frame(&'a [u8]),
    /// A frame that was cut or garbled.
    Garbled,
    /// A character was lost because nobody took it in time.
    Overrun,
}

/// How much longer than its characters an answer may take before the UART counts as stuck: far more than any FIFO or pause
/// of the main loop adds.
const STUCK_AFTER: Duration = Duration::millis(500);

/// Most characters taken at once, so that a line that never ends leaves time for the rest: what a UART can hold, twice.
const TAKEN_MAX: usize = 64;

impl<U, D> Rs485<U, D>
where
    U: Read<u8> + Write<u8>,
    D: OutputPin,
{
    /// A line at so many bits a second, listening. The UART is set up already.
    pub fn new(uart: U, mut direction: D, baud: NonZeroU32) -> Self {
        let timing = Timing::at(baud);
        // A pin that cannot be driven shows as a node that does not answer; there is nobody to tell here.
        let _ = direction.set_low();
        Self { uart, direction, timing, framer: Framer::new(timing), answer: [0; FRAME_MAX], sending: None }
    }

    /// Moves the line on. `answer` is asked about every event, and gives the length of what goes out.
    pub fn poll(
        &mut self,
        now: Instant,
        mut answer: impl FnMut(Event<'_>, &mut [u8; FRAME_MAX]) -> Option<usize>,
    ) -> Line {
        if let Some(sending) = self.sending {
            self.send(sending);
        } else {
            for _ in 0..TAKEN_MAX {
                match self.uart.read() {
                    Ok(byte) => self.framer.take(Some(byte), now),
                    Err(nb::Error::WouldBlock) => break,
                    Err(nb::Error::Other(error)) => {
                        self.framer.take(None, now);
                        if error.kind() == ErrorKind::Overrun {
                            answer(Event::Overrun, &mut self.answer);
                        }
                    }
                }
            }
            let length = match self.framer.heard(now) {
                Some(Heard::Frame(frame)) => answer(Event::Frame(frame), &mut self.answer),
                Some(Heard::Void) => answer(Event::Garbled, &mut self.answer),
                None => None,
            };
            if let Some(length) = length {
                let _ = self.direction.set_high();
                let sending = Sending { next: 0, length: length.min(FRAME_MAX), since: now };
                self.send(sending);
            }
        }
        match self.sending {
            Some(sending) if self.is_stuck(sending, now) => Line::Stuck,
            Some(_) => Line::Busy,
            None if self.framer.is_empty() => Line::Silent,
            None => Line::Busy,
        }
    }

    fn send(&mut self, mut sending: Sending) {
        while let Some(byte) = self.answer.get(..sending.length).and_then(|frame| frame.get(sending.next)) {
            match self.uart.write(*byte) {
                Err(nb::Error::WouldBlock) => break,
                // A character that cannot be sent leaves an answer that the master refuses by its checksum.
                Ok(()) | Err(nb::Error::Other(_)) => sending.next += 1,
            }
        }
        let is_sent = sending.next == sending.length && !matches!(self.uart.flush(), Err(nb::Error::WouldBlock));
        self.sending = (!is_sent).then_some(sending);
        if is_sent {
            let _ = self.direction.set_low();
            self.forget_echo();
        }
    }

    /// Throws away what came in while this end was speaking.
    fn forget_echo(&mut self) {
        for _ in 0..FRAME_MAX {
            if matches!(self.uart.read(), Err(nb::Error::WouldBlock)) {
                break;
            }
        }
        self.framer.clear();
    }

    fn is_stuck(&self, sending: Sending, now: Instant) -> bool {
        let expected = self.timing.character.ticks() * sending.length as u64 + STUCK_AFTER.ticks();
        now.checked_duration_since(sending.since).is_some_and(|since| since.ticks() > expected)
    }
}
