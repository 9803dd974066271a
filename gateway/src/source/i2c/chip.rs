//! A chip's reports to readings of its points. Pure but for the bus it is handed.
//!
//! A poll asks the chip until each of its points has been measured once: an attempt of the climate sensor, or a round of the
//! converter's channels.

use embedded_hal::i2c::I2c;
use gardu_node::{
    filter::Window,
    sensors::{
        Trouble as Fault,
        analog::{self, Channel, Converter, Loop},
        climate::Climate,
    },
    time::Instant,
};

use super::Trouble;
use crate::{
    clock::Now,
    config::{I2cChip, I2cDevice, I2cInput, I2cPoint},
    reading::{Reading, Reason},
    source::{
        polled::{Change, Polled},
        quantity::Quantity,
    },
};

/// A chip on its bus.
pub enum Chip<I> {
    /// SHT4x or SHT3x.
    Climate(Climate<I>),
    /// ADS1115.
    Converter(Converter<I>),
}

/// What an input measured, or why it did not.
pub type Measured = (I2cInput, Result<f64, Wrong>);

/// Why an input has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The chip did not give one.
    Chip(Fault),
    /// What it gave is not plausible: a loop that is cut or shorted.
    Value(Reason),
}

impl<I: I2c> Chip<I> {
    /// A chip that was not asked yet.
    pub fn new(chip: I2cChip, bus: I) -> Self {
        match chip {
            I2cChip::Climate => Self::Climate(Climate::new(bus)),
            I2cChip::Ads1115 => Self::Converter(Converter::new(bus)),
        }
    }

    /// Goes on with what is under way; returns what came of it. `transformer_a` gives 1 V behind the transformer.
    pub fn step(&mut self, transformer_a: u16, now: Instant) -> Vec<Measured> {
        match self {
            Self::Climate(climate) => match climate.step(now) {
                None => Vec::new(),
                Some(Ok(air)) => vec![
                    (I2cInput::Temperature, Ok(f64::from(air.temperature_mc) / 1e3)),
                    (I2cInput::Humidity, Ok(f64::from(air.humidity_mp) / 1e3)),
                ],
                Some(Err(fault)) => {
                    [I2cInput::Temperature, I2cInput::Humidity].map(|input| (input, Err(Wrong::Chip(fault)))).into()
                }
            },
            Self::Converter(converter) => match converter.step(now) {
                None => Vec::new(),
                Some((channel, Err(fault))) => vec![(input(channel), Err(Wrong::Chip(fault)))],
                Some((channel, Ok(window))) => vec![(input(channel), measured(channel, &window, transformer_a))],
            },
        }
    }
}

const fn input(channel: Channel) -> I2cInput {
    match channel {
        Channel::Loop1 => I2cInput::Loop1,
        Channel::Loop2 => I2cInput::Loop2,
        Channel::Transformer => I2cInput::LineCurrent,
        Channel::Supply => I2cInput::Supply,
    }
}

/// Milliamperes, amperes, volts.
fn measured(channel: Channel, window: &Window, transformer_a: u16) -> Result<f64, Wrong> {
    match channel {
        Channel::Loop1 | Channel::Loop2 => {
            let microamperes = analog::loop_current_ua(window);
            match Loop::of(microamperes) {
                Loop::Good => Ok(f64::from(microamperes) / 1e3),
                Loop::Low | Loop::High => Err(Wrong::Value(Reason::OutOfRange)),
            }
        }
        Channel::Transformer => Ok(f64::from(analog::line_current_ma(window, transformer_a)) / 1e3),
        Channel::Supply => Ok(f64::from(analog::supply_mv(window)) / 1e3),
    }
}

/// The points of a device, and what the poll under way has said of them.
#[derive(Debug)]
pub struct Points {
    points: Vec<I2cPoint>,
    polled: Polled<Trouble>,
    found: Vec<Option<Result<f64, Wrong>>>,
}

/// What a poll led to.
#[derive(Debug)]
pub struct Report {
    /// What to pass on; may be empty.
    pub readings: Vec<Reading>,
    /// The reason of every point without a value, passed on or not.
    pub bad: Vec<Reason>,
    /// Whether the chip gave nothing at all.
    pub missed: bool,
    /// Something people should know.
    pub change: Option<Change<Trouble>>,
}

impl Points {
    /// Nothing is known of them yet.
    #[must_use]
    pub fn new(device: &I2cDevice) -> Self {
        let ids = device.points.iter().map(|point| point.id.clone());
        Self {
            polled: Polled::new(&device.name, device.missed_polls, ids),
            found: vec![None; device.points.len()],
            points: device.points.clone(),
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.points.len()
    }

    /// Takes what the chip reported; true once every point has been measured.
    pub fn take(&mut self, measured: &[Measured]) -> bool {
        for (point, found) in self.points.iter().zip(&mut self.found) {
            if let Some((_, result)) = measured.iter().find(|(input, _)| *input == point.input) {
                *found = Some(*result);
            }
        }
        self.found.iter().all(Option::is_some)
    }

    /// Ends the poll; `trouble` is why the chip could not even be asked.
    pub fn end(&mut self, trouble: Option<Trouble>, now: Now) -> Report {
        let Self { points, polled, found } = self;
        let (mut readings, mut bad, mut fault, mut answered) = (Vec::new(), Vec::new(), None, false);
        for (i, (point, found)) in points.iter().zip(found).enumerate() {
            let result = match (found.take(), &trouble) {
                (Some(Ok(raw)), None) => {
                    answered = true;
                    quantity(point).of(raw)
                }
                (Some(Err(Wrong::Value(reason))), None) => {
                    answered = true;
                    Err(reason)
                }
                (Some(Err(Wrong::Chip(of_chip))), None) => {
                    fault.get_or_insert(of_chip);
                    Err(reason(of_chip))
                }
                (None, _) | (_, Some(_)) => Err(Reason::LinkDown),
            };
            match result {
                Ok(value) => polled.good(i, value, now, &mut readings),
                Err(reason) => {
                    bad.push(reason);
                    polled.bad(i, reason, now, &mut readings);
                }
            }
        }
        let trouble = trouble.or_else(|| fault.map(Trouble::Chip)).filter(|_| !answered);
        let missed = trouble.is_some();
        let change = polled.end(trouble, now, &mut readings);
        Report { readings, bad, missed, change }
    }
}

const fn quantity(point: &I2cPoint) -> Quantity {
    Quantity { scale: point.scale, offset: point.offset, decimals: point.decimals, range: point.range }
}

const fn reason(fault: Fault) -> Reason {
    match fault {
        Fault::NoAnswer | Fault::TimedOut => Reason::Timeout,
        Fault::Bus => Reason::LinkDown,
        Fault::Checksum => Reason::Malformed,
    }
}

#[cfg(test)]
mod tests;
