//! What hangs on wires: Modbus buses and their devices, contacts on GPIO lines, sensors on I2C.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::Report;
use crate::{
    alarm::Texts,
    reading::{PointId, Segment},
};

/// One Modbus bus: one wire, one owner.
#[derive(Debug, Clone, PartialEq)]
pub struct Bus {
    /// Its name.
    pub name: Segment,
    /// Where it is.
    pub link: Link,
    /// How long a device may take to answer one request.
    pub timeout: Duration,
    /// Who is on it.
    pub devices: Vec<Device>,
}

/// How a bus is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// Modbus TCP.
    Tcp {
        /// Name or address; IPv6 in brackets, so that `{host}:{port}` resolves.
        host: String,
        /// TCP port, 502 unless given.
        port: u16,
    },
    /// Modbus RTU on a serial port.
    Rtu {
        /// Device node; `/dev/serial/by-id/…` stays the same whatever is plugged in first.
        path: PathBuf,
        /// How bytes are sent.
        line: SerialLine,
    },
    /// Modbus RTU frames through a TCP converter, which has the serial port.
    RtuOverTcp {
        /// Name or address; IPv6 in brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// How the converter sends bytes on its wire: what a frame's time is computed from.
        line: SerialLine,
    },
}

impl std::fmt::Display for Link {
    /// The address without what is said of the line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Rtu { path, .. } => write!(f, "rtu://{}", path.display()),
            Self::RtuOverTcp { host, port, .. } => write!(f, "rtu+tcp://{host}:{port}"),
        }
    }
}

/// How bytes are sent on a serial line; always 8 data bits (Modbus over Serial Line 1.02 §2.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialLine {
    /// Bits a second.
    pub baud: u32,
    /// Parity bit.
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    pub stop_bits: u8,
}

impl std::fmt::Display for SerialLine {
    /// As printed on devices: `9600 8N1`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parity = match self.parity {
            Parity::None => 'N',
            Parity::Even => 'E',
            Parity::Odd => 'O',
        };
        write!(f, "{} 8{parity}{}", self.baud, self.stop_bits)
    }
}

/// The parity bit of a byte on a serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parity {
    /// None.
    None,
    /// Even, what the standard asks for.
    Even,
    /// Odd.
    Odd,
}

/// One unit on a bus.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Its name: the first segment of its points.
    pub name: Segment,
    /// Modbus unit identifier, 1 to 247 (255 and 0 on TCP).
    pub unit: u8,
    /// Time between two polls.
    pub poll: Duration,
    /// Missed polls after which `{device}/communication` is raised.
    pub missed_polls: u32,
    /// What kind of device it is, if a profile says so.
    pub profile: Option<Arc<Profile>>,
    /// Its points; at least one.
    pub points: Vec<Point>,
}

/// What is known of a kind of device, beside its points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// What `profile` of a device names.
    pub name: String,
    /// Which edition of it.
    pub version: u16,
    /// What the device is, for people.
    pub title: Texts,
    /// Where its register map comes from.
    pub source: String,
    /// How its line is set when it is new.
    pub serial: Option<SerialLine>,
    /// The operator's own file; none if it is a part of Gardu.
    pub file: Option<PathBuf>,
}

/// Which of the four Modbus tables (Modbus Application Protocol 1.1b3 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Read-write bits, function 1.
    Coil,
    /// Read-only bits, function 2.
    Discrete,
    /// Read-write 16-bit words, function 3.
    Holding,
    /// Read-only 16-bit words, function 4.
    Input,
}

/// How a value lies in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// One bit: a coil, a discrete input, or `bit` of a register (without `bit`: register ≠ 0).
    Bool,
    /// Unsigned 16 bit.
    U16,
    /// Signed 16 bit.
    I16,
    /// Unsigned 32 bit, two registers.
    U32,
    /// Signed 32 bit.
    I32,
    /// Unsigned 64 bit, four registers.
    U64,
    /// Signed 64 bit.
    I64,
    /// IEEE 754 single.
    F32,
    /// IEEE 754 double.
    F64,
    /// `len` bytes of text, two a register, padded with NUL or space.
    Text {
        /// Registers it takes, 1 to 125.
        registers: u16,
    },
}

impl Type {
    /// How many registers (or bits) it takes.
    #[must_use]
    pub const fn width(self) -> u16 {
        match self {
            Self::Bool | Self::U16 | Self::I16 => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
            Self::Text { registers } => registers,
        }
    }
}

/// Byte order of a value of several registers, written as the order of the bytes a (high) to d (low) on the wire; for
/// 64 bit the same rule over eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Big-endian words, big-endian bytes.
    Abcd,
    /// Low word first.
    Cdab,
    /// Big-endian words, bytes swapped.
    Badc,
    /// Little-endian throughout.
    Dcba,
}

/// One point of a Modbus device.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its full name.
    pub id: PointId,
    /// Which table.
    pub table: Table,
    /// First address, 0-based as on the wire.
    pub address: u16,
    /// How it lies there.
    pub type_: Type,
    /// Byte order.
    pub order: Order,
    /// Which bit of a register is meant, 0 the lowest.
    pub bit: Option<u8>,
    /// Multiplies the raw number.
    pub scale: f64,
    /// Is added after scaling.
    pub offset: f64,
    /// Rounds the scaled number to so many decimals.
    pub decimals: Option<u8>,
    /// Unit for people.
    pub unit: Option<Arc<str>>,
    /// Raw numbers that mean "no value".
    pub invalid: Vec<f64>,
    /// Lowest and highest plausible value, after scaling.
    pub range: Option<(f64, f64)>,
    /// How it is reported as telemetry.
    pub report: Report,
}

/// A GPIO chip and the contacts wired to it: one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpio {
    /// Its name: the first segment of its points.
    pub name: Segment,
    /// The chip's device file.
    pub chip: PathBuf,
    /// Time between two looks at the levels; edges in between are not missed.
    pub poll: Duration,
    /// Missed polls after which `{device}/communication` is raised.
    pub missed_polls: u32,
    /// At least one.
    pub contacts: Vec<GpioContact>,
}

/// A dry contact between a line and ground.
#[derive(Debug, Clone, PartialEq)]
pub struct GpioContact {
    /// Whether it is active.
    pub state: PointId,
    /// How often it became active, modulo 65536.
    pub events: PointId,
    /// The number of the line on its chip.
    pub line: u32,
    /// Which level counts as active.
    pub active: Level,
    /// What holds an open line.
    pub bias: Bias,
    /// How long a level must rest before it counts.
    pub debounce: Duration,
    /// How both points are reported as telemetry.
    pub report: Report,
}

/// A level of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Ground: the contact is closed.
    Low,
    /// The contact is open, or something drives the line.
    High,
}

impl Level {
    /// Whether a line is at this level.
    #[must_use]
    pub const fn is(self, high: bool) -> bool {
        matches!(self, Self::High) == high
    }
}

/// The resistor inside the chip that holds a line nobody drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// To the supply.
    PullUp,
    /// To ground.
    PullDown,
    /// None.
    None,
}

/// A chip on an I2C bus: one device.
#[derive(Debug, Clone, PartialEq)]
pub struct I2cDevice {
    /// Its name: the first segment of its points.
    pub name: Segment,
    /// The bus's device file.
    pub bus: PathBuf,
    /// What it is.
    pub chip: I2cChip,
    /// Time between two polls.
    pub poll: Duration,
    /// Missed polls after which `{device}/communication` is raised.
    pub missed_polls: u32,
    /// Primary current that gives 1 V behind the current transformer, in amperes; 0 where there is none.
    pub transformer_a: u16,
    /// Its points; at least one.
    pub points: Vec<I2cPoint>,
}

/// A chip that has a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I2cChip {
    /// SHT4x or SHT3x, whichever answers, at 0x44.
    Climate,
    /// ADS1115 at 0x48.
    Ads1115,
}

/// What a chip measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I2cInput {
    /// Air, in °C.
    Temperature,
    /// Relative, in %.
    Humidity,
    /// 4–20 mA, in mA.
    Loop1,
    /// 4–20 mA, in mA.
    Loop2,
    /// Through a current transformer, true RMS, in A.
    LineCurrent,
    /// Supply voltage, in V.
    Supply,
}

/// One point of a chip.
#[derive(Debug, Clone, PartialEq)]
pub struct I2cPoint {
    /// Its full name.
    pub id: PointId,
    /// What it measures.
    pub input: I2cInput,
    /// Multiplies what was measured.
    pub scale: f64,
    /// Is added after scaling.
    pub offset: f64,
    /// Rounds to so many decimals.
    pub decimals: Option<u8>,
    /// Unit for people.
    pub unit: Option<Arc<str>>,
    /// Lowest and highest plausible value, after scaling.
    pub range: Option<(f64, f64)>,
    /// How it is reported as telemetry.
    pub report: Report,
}
