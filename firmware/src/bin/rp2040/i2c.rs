//! The I²C bus, which a stuck chip or a cut wire cannot hang.
//!
//! The controller waits for ever for a line that is held low. So both are looked at before each transaction, and a chip
//! that was interrupted in the middle of a byte and holds the data line is clocked free: nine clocks at most (I²C-bus
//! specification UM10204 §3.1.16). A line that is pulled down within a transaction is the watchdog's: after it, the bus is
//! found stuck before anything is sent.

use core::cell::RefCell;

use embedded_hal::i2c::{Error, ErrorKind, ErrorType, I2c, Operation};
use rp2040_hal::pac;

/// Data and clock, as bits of the pins' levels.
const DATA: u32 = 1 << 4;
const CLOCK: u32 = 1 << 5;
const CLOCK_PIN: usize = 5;
/// Half a clock of 100 kHz in cycles of 12 MHz, for a chip of any speed.
const HALF_CLOCK_CYCLES: u32 = 60;
/// Until a chip has sent the byte it is in, and its acknowledge.
const CLOCKS: u8 = 9;

/// The bus, for each driver that has a chip on it.
#[derive(Debug)]
pub(crate) struct Bus<'a, I>(pub(crate) &'a RefCell<I>);

impl<I> ErrorType for Bus<'_, I> {
    type Error = ErrorKind;
}

impl<I: I2c> I2c for Bus<'_, I> {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
        if !is_free() {
            return Err(ErrorKind::Bus);
        }
        // Drivers take turns; one that came in between would fail, not panic.
        let mut controller = self.0.try_borrow_mut().map_err(|_| ErrorKind::Other)?;
        controller.transaction(address, operations).map_err(|error| error.kind())
    }
}

/// Whether both lines are high, if need be after some clocks.
fn is_free() -> bool {
    for _ in 0..CLOCKS {
        match levels() & (DATA | CLOCK) {
            both if both == DATA | CLOCK => return true,
            CLOCK => pulse(),
            _ => return false, // who holds the clock cannot be clocked
        }
    }
    levels() & (DATA | CLOCK) == DATA | CLOCK
}

/// The levels of all pins, whoever drives them.
fn levels() -> u32 {
    // SAFETY: a read of a register that has no side effect.
    unsafe { (*pac::SIO::PTR).gpio_in().read().bits() }
}

/// One clock, driven past the controller.
fn pulse() {
    // SAFETY: only the override of the clock's own pin is changed, and given back; the controller is idle.
    let pin = unsafe { (*pac::IO_BANK0::PTR).gpio(CLOCK_PIN).gpio_ctrl() };
    pin.modify(|_, w| w.outover().low().oeover().enable());
    cortex_m::asm::delay(HALF_CLOCK_CYCLES);
    pin.modify(|_, w| w.outover().normal().oeover().normal());
    cortex_m::asm::delay(HALF_CLOCK_CYCLES);
}
