//! The I²C bus, which a stuck chip or a cut wire cannot hang.
//!
//! The controller waits for ever for a line that is held low. So both are looked at before each transaction, and a chip
//! that was interrupted in the middle of a byte and holds the data line is clocked free: nine clocks at most (I²C-bus
//! specification UM10204 §3.1.16). A line that is pulled down within a transaction is the watchdog's: after it, the bus is
//! found stuck before anything is sent.

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

/// A bus, and how its lines are looked at.
#[derive(Debug)]
pub(crate) struct Bus<I>(I);

impl<I: I2c> Bus<I> {
    pub(crate) const fn new(i2c: I) -> Self {
        Self(i2c)
    }

    /// Both lines are high, if need be after some clocks.
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
}

impl<I: I2c> ErrorType for Bus<I> {
    type Error = ErrorKind;
}

impl<I: I2c> I2c for Bus<I> {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
        if !Self::is_free() {
            return Err(ErrorKind::Bus);
        }
        self.0.transaction(address, operations).map_err(|error| error.kind())
    }
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
