//! Chips on the I2C bus: climate (SHT4x or SHT3x) and analog inputs (ADS1115).
//!
//! Each is a state machine that never waits: `step(now)` makes at most two short transfers and returns; call it about every
//! millisecond while a report is wanted. A chip that is missing, pulled or garbled is a report like any other, and is
//! looked for again at the pace of its reports: none stops the rest.

pub mod analog;
pub mod climate;

use embedded_hal::i2c::{Error, ErrorKind};

/// Why an attempt to measure failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody acknowledged the address or the command: missing, unpowered, or another chip.
    NoAnswer,
    /// The bus itself failed: a line is shorted or stuck, or another master disturbed.
    Bus,
    /// The words came with a wrong checksum.
    Checksum,
    /// Not ready in time, or asked too rarely for a window of enough samples.
    TimedOut,
}

impl Trouble {
    /// What an error of the bus means for the chip.
    fn of(error: &impl Error) -> Self {
        match error.kind() {
            ErrorKind::NoAcknowledge(_) => Self::NoAnswer,
            _ => Self::Bus,
        }
    }
}
