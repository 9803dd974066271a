//! Four analog inputs through an ADS1115 at address 0x48: two 4–20 mA loops, a current transformer, the supply.
//!
//! The channels take turns, each for one [`WINDOW`] of single shots at 860 samples a second and ±4.096 V. The driver writes
//! the whole configuration with each shot, so a chip that lost its power is right again with the next one.
//!
//! Terms: the transformer gives a voltage (1 V at its rated current) around a bias of half the supply of the converter, as
//! the converter knows no negative voltage against ground. The loop shunt and the divider are resistors of 1 % or better.
//!
//! Sources: ADS1115 data sheet (SBAS444: registers, data rate ±10 %); NAMUR NE 43.

use ads1x1x::ic::{Ads1115, Resolution16Bit};
use ads1x1x::{Ads1x1x, DataRate16Bit, Error, FullScaleRange, TargetAddr, channel, mode::OneShot};
use embedded_hal::i2c::I2c;

use super::Trouble;
use crate::filter::Window;
use crate::time::{Duration, Instant, after};

/// Where it answers (ADDR to ground).
pub const ADDRESS: u8 = 0x48;

/// One channel's turn: 10 periods of 50 Hz, 12 of 60 Hz, so that hum of the mains averages out.
pub const WINDOW: Duration = Duration::millis(200);

/// From window to window of one channel.
pub const ROUND: Duration = Duration::millis(4 * 200);

/// Two-wire loops end in this resistor: 20 mA give 2 V.
pub const SHUNT_OHM: u8 = 100;

/// The supply comes through 100 kΩ over 10 kΩ: 36 V, the most a nominal 24 V may be, give 3.27 V.
pub const SUPPLY_DIVIDER: u8 = 11;

/// NAMUR NE 43: a transmitter that sends less reports its own failure, or its wire is cut.
pub const LOOP_LOW_UA: u32 = 3_600;

/// NAMUR NE 43: a transmitter that sends more reports its own failure, or it is shorted.
pub const LOOP_HIGH_UA: u32 = 21_000;

/// 1/860 s, and 10 % for the clock of the chip: asking before is in vain.
const CONVERSION: Duration = Duration::micros(1_300);

/// Looks at a conversion before it counts as stuck: about seven times its length.
const LOOKS: u8 = 8;

/// Fewer samples could fall in step with the mains (a multiple of its half period apart) and show an RMS that is none.
const SAMPLES_MIN: u8 = 25;

/// What is measured where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// A0: current loop 1.
    Loop1,
    /// A1: current loop 2.
    Loop2,
    /// A2: current transformer.
    Transformer,
    /// A3: supply voltage.
    Supply,
}

impl Channel {
    /// All, in the order of their turns.
    pub const ALL: [Self; 4] = [Self::Loop1, Self::Loop2, Self::Transformer, Self::Supply];

    const fn next(self) -> Self {
        match self {
            Self::Loop1 => Self::Loop2,
            Self::Loop2 => Self::Transformer,
            Self::Transformer => Self::Supply,
            Self::Supply => Self::Loop1,
        }
    }
}

/// The converter.
pub struct Converter<I> {
    chip: Ads1x1x<I, Ads1115, Resolution16Bit, OneShot>,
    channel: Channel,
    phase: Phase,
    window: Window,
    /// Nothing is to be done before.
    due: Instant,
    /// Looks at the conversion under way.
    looks: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The full scale is to be set.
    Scale,
    /// The data rate is to be set.
    Rate,
    /// A window begins. The sample found first is dropped: it may be from before the chip lost its power.
    First,
    /// Samples are taken until then.
    Sampling(Instant),
}

impl<I: I2c> Converter<I> {
    /// A converter that was not asked yet.
    pub fn new(i2c: I) -> Self {
        Self {
            chip: Ads1x1x::new_ads1115(i2c, TargetAddr::Gnd),
            channel: Channel::Loop1,
            phase: Phase::Scale,
            window: Window::new(),
            due: Instant::from_ticks(0),
            looks: 0,
        }
    }

    /// Goes on with the window under way; returns what came of it once it is finished, about every [`WINDOW`].
    pub fn step(&mut self, now: Instant) -> Option<(Channel, Result<Window, Trouble>)> {
        if now < self.due {
            return None;
        }
        let report = match self.advance(now) {
            Ok(None) => return None,
            Ok(Some(window)) => Ok(window),
            Err(trouble) => {
                self.due = after(now, WINDOW);
                Err(trouble)
            }
        };
        if matches!(self.phase, Phase::Sampling(_)) {
            self.phase = Phase::First;
        }
        self.looks = 0;
        let channel = self.channel;
        self.channel = channel.next();
        Some((channel, report))
    }

    fn advance(&mut self, now: Instant) -> Result<Option<Window>, Trouble> {
        match self.phase {
            Phase::Scale => {
                self.chip.set_full_scale_range(FullScaleRange::Within4_096V).map_err(|error| trouble(&error))?;
                self.phase = Phase::Rate;
            }
            Phase::Rate => {
                self.chip.set_data_rate(DataRate16Bit::Sps860).map_err(|error| trouble(&error))?;
                self.phase = Phase::First;
            }
            Phase::First => {
                if self.sample(now)?.is_some() {
                    self.window = Window::new();
                    self.phase = Phase::Sampling(after(now, WINDOW));
                }
            }
            Phase::Sampling(end) => match self.sample(now)? {
                None => {}
                Some(counts) if now < end => self.window.push(counts),
                Some(_) if self.window.samples() < SAMPLES_MIN => return Err(Trouble::TimedOut),
                Some(_) => return Ok(Some(self.window)),
            },
        }
        Ok(None)
    }

    /// Reads the conversion under way, or starts one.
    fn sample(&mut self, now: Instant) -> Result<Option<i16>, Trouble> {
        let outcome = match self.channel {
            Channel::Loop1 => self.chip.read(channel::SingleA0),
            Channel::Loop2 => self.chip.read(channel::SingleA1),
            Channel::Transformer => self.chip.read(channel::SingleA2),
            Channel::Supply => self.chip.read(channel::SingleA3),
        };
        match outcome {
            Ok(counts) => {
                self.looks = 0;
                Ok(Some(counts))
            }
            Err(nb::Error::WouldBlock) if self.looks < LOOKS => {
                self.looks += 1;
                self.due = after(now, CONVERSION);
                Ok(None)
            }
            Err(nb::Error::WouldBlock) => Err(Trouble::TimedOut),
            Err(nb::Error::Other(error)) => Err(trouble(&error)),
        }
    }
}

fn trouble(error: &Error<impl embedded_hal::i2c::Error>) -> Trouble {
    match error {
        Error::I2C(error) => Trouble::of(error),
        // only thresholds are checked, and none is set
        Error::InvalidInputData => Trouble::Bus,
    }
}

/// What a loop says about itself (NAMUR NE 43).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// The wire is cut, or the transmitter says that it failed.
    Low,
    /// A measured value.
    Good,
    /// The transmitter is shorted, or says that it failed.
    High,
}

impl Loop {
    /// The verdict over a current.
    #[must_use]
    pub const fn of(microamperes: u32) -> Self {
        match microamperes {
            ..LOOP_LOW_UA => Self::Low,
            LOOP_LOW_UA..=LOOP_HIGH_UA => Self::Good,
            _ => Self::High,
        }
    }
}

/// Current of a loop, in microamperes.
#[must_use]
pub fn loop_current_ua(window: &Window) -> u32 {
    positive(window.mean_uv()) / u32::from(SHUNT_OHM)
}

/// RMS current of the line through the transformer, in milliamperes; `primary_a` is what gives 1 V behind it.
#[must_use]
pub fn line_current_ma(window: &Window, primary_a: u16) -> u32 {
    let milliamperes = u64::from(window.rms_uv()) * u64::from(primary_a) / 1_000;
    u32::try_from(milliamperes).unwrap_or(u32::MAX)
}

/// Supply voltage in front of the divider, in millivolts.
#[must_use]
pub fn supply_mv(window: &Window) -> u32 {
    positive(window.mean_uv()) * u32::from(SUPPLY_DIVIDER) / 1_000
}

/// Noise around ground may read as less than nothing.
const fn positive(microvolts: i32) -> u32 {
    if microvolts < 0 { 0 } else { microvolts.unsigned_abs() }
}

#[cfg(test)]
mod tests;
