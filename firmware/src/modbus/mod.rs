//! Modbus RTU, the slave's side.
//!
//! Sources: Modbus Application Protocol 1.1b3 ("AP") for functions and exceptions, Modbus over Serial Line 1.02 ("SL") for
//! framing, addresses and diagnostics. [`framing`] turns bytes and their times into frames, [`slave`] turns a frame into an
//! answer; neither knows a wire or a clock.
//!
//! Why not a library: those that were found without a heap know neither function 23, 43 nor 8, and one answers an unknown
//! function before it has looked at the checksum.

pub mod diagnostics;
pub mod framing;
pub mod identification;
pub mod slave;

use crc::{CRC_16_MODBUS, Crc, Table};

/// Longest frame: unit, 253 bytes of function and data, checksum (SL §2.5.1).
pub const FRAME_MAX: usize = 256;

const CRC: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&CRC_16_MODBUS);

/// The checksum of a frame as it is sent, low byte first (SL §2.5.1.2).
#[must_use]
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    CRC.checksum(bytes).to_le_bytes()
}

/// Why a request is not done (AP §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exception {
    /// The function, or the subfunction, is not one of ours.
    IllegalFunction = 1,
    /// Not all of the addresses exist.
    IllegalDataAddress = 2,
    /// A quantity, a length or a value that cannot be.
    IllegalDataValue = 3,
    /// It was tried and failed.
    DeviceFailure = 4,
}

/// Whom a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// This node alone.
    Own,
    /// Every node on the bus: unit 0.
    Everyone,
}

/// The tables with bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// Read-write bits.
    Coils,
    /// Read-only bits.
    DiscreteInputs,
}

/// The tables with registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registers {
    /// Read-write words.
    Holding,
    /// Read-only words.
    Input,
}

/// What a slave serves. A write is all or nothing.
pub trait Tables {
    /// The bit at an address, if there is one.
    fn bit(&self, table: Bits, address: u16) -> Option<bool>;

    /// The register at an address, if there is one.
    fn register(&self, table: Registers, address: u16) -> Option<u16>;

    /// Writes coils from `first` on.
    fn write_coils(&mut self, first: u16, values: CoilValues<'_>) -> Result<(), Exception>;

    /// Writes holding registers from `first` on.
    fn write_registers(&mut self, first: u16, values: RegisterValues<'_>, audience: Audience) -> Result<(), Exception>;

    /// The 16-bit diagnostic register (AP §6.8, subfunction 2).
    fn diagnostic_register(&self) -> u16;
}

/// Bits as they come in a request: eight in a byte, the first in the lowest bit.
#[derive(Debug, Clone, Copy)]
pub struct CoilValues<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) quantity: u16,
}

impl CoilValues<'_> {
    /// How many.
    #[must_use]
    pub const fn quantity(&self) -> u16 {
        self.quantity
    }

    /// In the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = bool> + '_ {
        self.bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).take(self.quantity.into())
    }
}

/// Registers as they come in a request: high byte first.
#[derive(Debug, Clone, Copy)]
pub struct RegisterValues<'a> {
    pub(crate) words: &'a [[u8; 2]],
}

impl RegisterValues<'_> {
    /// How many.
    #[must_use]
    pub const fn quantity(&self) -> usize {
        self.words.len()
    }

    /// In the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.words.iter().map(|word| u16::from_be_bytes(*word))
    }
}
