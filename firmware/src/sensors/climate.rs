//! Temperature and humidity from a Sensirion SHT4x or SHT3x at address 0x44, whichever is there.
//!
//! Both families share their address and their checksum, but not their commands. An SHT3x finds no data behind the SHT4x'
//! 0xFD and does not acknowledge the read. An SHT4x may never see 0x24, the first byte of "measure" to an SHT3x: to it that
//! means "heat with 110 mW". So an SHT3x is asked for its status (0xF32D) before each measurement. The chip that answered
//! last is asked first, the other one in the same attempt: they may be swapped under power.
//!
//! Sources: SHT4x data sheet §4.5 (commands), §4.6 (conversion); SHT3x-DIS data sheet §4.3 (single shot), §4.11 (status),
//! §4.12 (checksum), §4.13 (conversion); times from their tables of timing.

use embedded_hal::i2c::I2c;
use sensirion_i2c::crc8;
use sensirion_i2c::i2c::{write_command_u8, write_command_u16};

use super::Trouble;
use crate::time::{Duration, Instant, after};

/// Where both families answer (SHT4x-A, SHT3x with ADDR low).
pub const ADDRESS: u8 = 0x44;

/// From attempt to attempt, also after a failure: more often would warm the chip and make the bus busy for nothing.
pub const PERIOD: Duration = Duration::secs(1);

/// SHT4x: measure with high precision; takes up to 8.3 ms.
const SHT4X_MEASURE: u8 = 0xFD;
const SHT4X_TIME: Duration = Duration::millis(10);

/// SHT3x: measure with high repeatability without clock stretching; takes up to 15.5 ms at its lowest supply.
const SHT3X_MEASURE: u16 = 0x2400;
const SHT3X_TIME: Duration = Duration::millis(16);

/// SHT3x: read the status.
const SHT3X_STATUS: u16 = 0xF32D;

/// SHT3x: from one command to whatever is next (data sheet §4).
const COMMAND_TIME: Duration = Duration::millis(1);

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Air {
    /// Thousandths of a degree Celsius, -45,000 to 130,000.
    pub temperature_mc: i32,
    /// Thousandths of a percent of relative humidity, 0 to 100,000: what lies beyond is no physical value.
    pub humidity_mp: i32,
}

/// The sensor.
#[derive(Debug)]
pub struct Climate<I> {
    i2c: I,
    chip: Chip,
    phase: Phase,
    /// Nothing is to be done before.
    due: Instant,
    /// When the next attempt begins.
    next: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chip {
    Sht4x,
    Sht3x,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between attempts.
    Resting,
    /// The first chip did not answer; the other is to be asked.
    Other,
    /// An SHT3x was asked for its status.
    Identifying(Turn),
    /// A measurement is on its way.
    Measuring(Turn),
}

/// Which chip of an attempt it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    Second,
}

impl<I: I2c> Climate<I> {
    /// A sensor that was not asked yet.
    pub const fn new(i2c: I) -> Self {
        let start = Instant::from_ticks(0);
        Self { i2c, chip: Chip::Sht4x, phase: Phase::Resting, due: start, next: start }
    }

    /// Goes on with the attempt under way; returns what came of it once it is finished, about every [`PERIOD`].
    pub fn step(&mut self, now: Instant) -> Option<Result<Air, Trouble>> {
        if now < self.due {
            return None;
        }
        let turn = match self.phase {
            Phase::Resting => {
                self.next = after(now, PERIOD);
                Turn::First
            }
            Phase::Other => Turn::Second,
            Phase::Identifying(turn) | Phase::Measuring(turn) => turn,
        };
        let report = match (self.advance(turn, now), turn) {
            (Ok(None), _) => return None,
            (Ok(Some(air)), _) => Ok(air),
            (Err(Trouble::NoAnswer | Trouble::Bus), Turn::First) => {
                self.chip = match self.chip {
                    Chip::Sht4x => Chip::Sht3x,
                    Chip::Sht3x => Chip::Sht4x,
                };
                self.wait(Phase::Other, COMMAND_TIME, now);
                return None;
            }
            (Err(trouble), _) => Err(trouble),
        };
        self.phase = Phase::Resting;
        self.due = self.next;
        Some(report)
    }

    fn advance(&mut self, turn: Turn, now: Instant) -> Result<Option<Air>, Trouble> {
        match (self.phase, self.chip) {
            (Phase::Resting | Phase::Other, Chip::Sht4x) => {
                write_command_u8(&mut self.i2c, ADDRESS, SHT4X_MEASURE).map_err(|error| Trouble::of(&error))?;
                self.wait(Phase::Measuring(turn), SHT4X_TIME, now);
            }
            (Phase::Resting | Phase::Other, Chip::Sht3x) => {
                write_command_u16(&mut self.i2c, ADDRESS, SHT3X_STATUS).map_err(|error| Trouble::of(&error))?;
                self.wait(Phase::Identifying(turn), COMMAND_TIME, now);
            }
            (Phase::Identifying(_), _) => {
                let [high, low, checksum] = self.read()?;
                word([high, low], checksum)?;
                write_command_u16(&mut self.i2c, ADDRESS, SHT3X_MEASURE).map_err(|error| Trouble::of(&error))?;
                self.wait(Phase::Measuring(turn), SHT3X_TIME, now);
            }
            (Phase::Measuring(_), chip) => {
                let [t0, t1, t_checksum, h0, h1, h_checksum] = self.read()?;
                let temperature = word([t0, t1], t_checksum)?;
                let humidity = word([h0, h1], h_checksum)?;
                return Ok(Some(air(chip, temperature, humidity)));
            }
        }
        Ok(None)
    }

    fn wait(&mut self, phase: Phase, time: Duration, now: Instant) {
        self.phase = phase;
        self.due = after(now, time);
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N], Trouble> {
        let mut bytes = [0; N];
        self.i2c.read(ADDRESS, &mut bytes).map_err(|error| Trouble::of(&error))?;
        Ok(bytes)
    }
}

fn word(bytes: [u8; 2], checksum: u8) -> Result<u16, Trouble> {
    if crc8::calculate(&bytes) == checksum { Ok(u16::from_be_bytes(bytes)) } else { Err(Trouble::Checksum) }
}

/// Both: T = -45 °C + 175 °C × raw / 65535. SHT4x: RH = -6 % + 125 % × raw / 65535; SHT3x: RH = 100 % × raw / 65535.
/// 65535 = 5 × 13107 keeps every product below 2^32.
fn air(chip: Chip, temperature: u16, humidity: u16) -> Air {
    let share = |full: u32, raw: u16| ((full / 5 * u32::from(raw) + 13_107 / 2) / 13_107) as i32;
    let humidity_mp = match chip {
        Chip::Sht4x => share(125_000, humidity) - 6_000,
        Chip::Sht3x => share(100_000, humidity),
    };
    Air { temperature_mc: share(175_000, temperature) - 45_000, humidity_mp: humidity_mp.clamp(0, 100_000) }
}

#[cfg(test)]
mod tests;
