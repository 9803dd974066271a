//! The whole firmware as one `poll`: node, slave, line and settings of a board.
//!
//! A board calls [`Device::poll`] in an endless loop, sleeps when it may, and feeds its watchdog unless told not to: what
//! is fed is progress, not time.

use core::num::NonZeroU32;

use embedded_hal::{
    digital::{InputPin, OutputPin},
    i2c::I2c,
};
use embedded_hal_nb::serial::{Read, Write};
use embedded_storage::nor_flash::NorFlash;

use crate::{
    kept::Kept,
    modbus::{
        identification::Identification,
        slave::{Reaction, Slave},
    },
    node::{Identity, Node, Pins, TICK},
    rs485::{Event, Line, Rs485},
    settings::{self, Loaded, Settings},
    time::Instant,
};

/// Everything of a board.
pub struct Device<'a, C, O, I, U, D, F> {
    node: Node<C, O, I>,
    slave: Slave<'a>,
    line: Rs485<U, D>,
    flash: F,
    stepped: Option<Instant>,
    /// To be kept once the answer that promised it is out.
    to_keep: Option<Settings>,
}

/// What a board brings.
pub struct Parts<C, O, I, U, D, F> {
    /// What is measured and driven.
    pub pins: Pins<C, O, I>,
    /// Set up with the settings' baud, parity and stop bits.
    pub uart: U,
    /// High while sending.
    pub direction: D,
    /// Two erase blocks for the settings.
    pub flash: F,
}

/// How a board starts.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// From [`settings::load`], before the UART was set up.
    pub loaded: Loaded,
    /// Of the time before a reset; `None` after power came on.
    pub kept: Option<Kept>,
    /// Why, and who.
    pub identity: Identity,
    /// The board, for people.
    pub model_name: &'a str,
    /// Where the firmware panicked before this reset; empty if it did not.
    pub last_panic: &'a str,
}

/// What a board does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Feed the watchdog; sleep until a character comes, at most a [`TICK`].
    Sleep,
    /// Feed the watchdog; call again at once.
    Again,
    /// Reset: settings were kept, and count from the next start.
    Restart,
    /// Let the watchdog strike.
    Stuck,
}

impl<'a, C, O, I, U, D, F> Device<'a, C, O, I, U, D, F>
where
    C: InputPin,
    O: OutputPin,
    I: I2c,
    U: Read<u8> + Write<u8>,
    D: OutputPin,
    F: NorFlash,
{
    /// A board that starts.
    pub fn new(parts: Parts<C, O, I, U, D, F>, start: Start<'a>, now: Instant) -> Self {
        let Start { loaded, kept, identity, model_name, last_panic } = start;
        let identification = Identification { product_name: "Gardu park sensor node", model_name, last_panic };
        let kept = kept.map_or(Kept::default(), |kept| Kept { resets: kept.resets.wrapping_add(1), ..kept });
        let baud = NonZeroU32::new(loaded.settings.baud()).unwrap_or(NonZeroU32::MIN);
        Self {
            node: Node::new(parts.pins, &loaded, &kept, identity, now),
            slave: Slave::new(loaded.settings.unit(), identification),
            line: Rs485::new(parts.uart, parts.direction, baud),
            flash: parts.flash,
            stepped: None,
            to_keep: None,
        }
    }

    /// Does what there is to do at `now`. Takes a fraction of a millisecond, except when settings are kept: as long as the
    /// flash needs to erase two blocks.
    pub fn poll(&mut self, now: Instant) -> Next {
        let is_due = |then: Instant| now.checked_duration_since(then).is_none_or(|since| since >= TICK);
        if self.stepped.is_none_or(is_due) {
            self.stepped = Some(now);
            self.node.step(now);
        }
        let Self { node, slave, line, .. } = self;
        let line = line.poll(now, |event, room| match event {
            Event::Overrun => {
                slave.overrun();
                None
            }
            Event::Garbled => {
                slave.garbled();
                None
            }
            Event::Frame(frame) => match slave.take(frame, node, room) {
                Reaction::NotOurs => None,
                Reaction::Silent => {
                    node.heard();
                    None
                }
                Reaction::Answer(answer) => {
                    node.heard();
                    Some(answer.len())
                }
            },
        });
        self.node.set_bus_errors(self.slave.diagnostics().bus_errors);
        self.to_keep = self.node.to_apply().or(self.to_keep);
        match line {
            Line::Stuck => Next::Stuck,
            Line::Busy => Next::Again,
            Line::Silent => match self.to_keep.take() {
                None => Next::Sleep,
                Some(settings) => self.keep(&settings),
            },
        }
    }

    /// What must outlive a reset.
    pub fn kept(&self) -> Kept {
        self.node.kept()
    }

    /// Says how much stack was never used, in bytes.
    pub const fn set_stack_free(&mut self, bytes: u16) {
        self.node.set_stack_free(bytes);
    }

    fn keep(&mut self, settings: &Settings) -> Next {
        if settings::save(&mut self.flash, settings).is_ok() {
            return Next::Restart;
        }
        self.node.not_kept();
        Next::Again
    }
}

#[cfg(test)]
mod tests;
