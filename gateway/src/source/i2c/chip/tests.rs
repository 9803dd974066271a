//! Reports of the chips to readings.

use std::time::Duration;

use embedded_hal::i2c::{ErrorKind, ErrorType, NoAcknowledgeSource, Operation};

use super::*;
use crate::{
    config::Report as Reported,
    reading::{PointId, Segment},
};

const NOW: Now = Now { mono_ms: 5, wall_ms: 6, trusted: true };

fn point(name: &str, input: I2cInput) -> I2cPoint {
    let id = PointId::parse(&format!("board/{name}")).unwrap();
    let (scale, offset, decimals) = (1.0, 0.0, Some(3));
    I2cPoint { id, input, scale, offset, decimals, unit: None, range: None, report: Reported::Off }
}

fn points(points: Vec<I2cPoint>) -> Points {
    Points::new(&I2cDevice {
        name: Segment::parse("board").unwrap(),
        bus: "/dev/i2c-1".into(),
        chip: I2cChip::Ads1115,
        poll: Duration::from_secs(1),
        missed_polls: 2,
        transformer_a: 100,
        points,
    })
}

fn spell(readings: &[Reading]) -> String {
    let spell = |r: &Reading| match (&r.value, r.reason) {
        (Some(value), None) => format!("{}={value}", r.point),
        (None, Some(reason)) => format!("{}!{}", r.point, reason.as_str()),
        both => panic!("{both:?}"),
    };
    readings.iter().map(spell).collect::<Vec<_>>().join(" ").replace("board/", "")
}

#[test]
fn a_poll_is_over_when_every_point_was_measured_whatever_else_the_chip_reports() {
    let mut points = points(vec![point("level", I2cInput::Loop2), point("supply", I2cInput::Supply)]);
    assert!(!points.take(&[(I2cInput::Loop1, Ok(4.0))]));
    assert!(!points.take(&[(I2cInput::Loop2, Ok(12.0))]));
    assert!(!points.take(&[(I2cInput::LineCurrent, Ok(1.0))]));
    assert!(points.take(&[(I2cInput::Supply, Ok(24.0))]));
    let report = points.end(None, NOW);
    assert_eq!((spell(&report.readings).as_str(), report.missed), ("level=12 supply=24 communication=false", false));
    assert!(!points.take(&[(I2cInput::Supply, Ok(24.0))]), "the next poll measures all of them anew");
}

#[test]
fn a_loop_is_scaled_to_what_its_transmitter_measures_and_bad_when_it_is_cut() {
    // 4–20 mA are 0–2000 mm
    let level = I2cPoint {
        scale: 125.0,
        offset: -500.0,
        range: Some((0.0, 1_900.0)),
        decimals: Some(0),
        ..point("level", I2cInput::Loop1)
    };
    let mut points = points(vec![level]);
    let mut poll = |measured| {
        assert!(points.take(&[(I2cInput::Loop1, measured)]));
        let report = points.end(None, NOW);
        assert!(!report.missed, "the chip answered");
        spell(&report.readings)
    };
    assert_eq!(poll(Ok(12.0)), "level=1000 communication=false");
    assert_eq!(poll(Err(Wrong::Value(Reason::OutOfRange))), "level!out-of-range");
    assert_eq!(poll(Ok(20.0)), "", "beyond the range is as bad as it was");
    assert_eq!(poll(Ok(4.0)), "level=0");
}

#[test]
fn a_chip_that_gives_nothing_misses_the_poll_and_one_that_gives_something_does_not() {
    let inputs = [I2cInput::Temperature, I2cInput::Humidity];
    let mut points = points(vec![point("t", inputs[0]), point("h", inputs[1])]);
    let mut poll = |results: [Result<f64, Fault>; 2]| {
        let measured = inputs.into_iter().zip(results.map(|result| result.map_err(Wrong::Chip)));
        points.take(&measured.collect::<Vec<_>>());
        let report = points.end(None, NOW);
        (spell(&report.readings), report.missed, report.change)
    };
    let lost = Some(Change::Lost(Trouble::Chip(Fault::NoAnswer)));
    assert_eq!(poll([Err(Fault::NoAnswer); 2]), ("t!timeout h!timeout".into(), true, lost));
    let garbled = ("t!malformed h!malformed communication=true".into(), true, None);
    assert_eq!(poll([Err(Fault::Checksum); 2]), garbled);
    let back = Some(Change::Back { missed: 2, lost: Trouble::Chip(Fault::NoAnswer) });
    assert_eq!(poll([Ok(20.5), Err(Fault::Bus)]), ("t=20.5 h!link-down communication=false".into(), false, back));
}

#[test]
fn a_bus_that_cannot_be_opened_makes_every_point_bad() {
    let mut points = points(vec![point("t", I2cInput::Temperature)]);
    let report = points.end(Some(Trouble::NotThere), NOW);
    assert_eq!((spell(&report.readings).as_str(), report.bad.as_slice()), ("t!link-down", &[Reason::LinkDown][..]));
}

/// A converter that is always ready with one voltage, in counts.
struct Converting(i16);

impl ErrorType for Converting {
    type Error = ErrorKind;
}

impl I2c for Converting {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
        if address != analog::ADDRESS {
            return Err(ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address));
        }
        if let [Operation::Write(register), Operation::Read(bytes)] = operations {
            let word = if register[0] == 1 { i16::MIN } else { self.0 };
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        Ok(())
    }
}

#[test]
fn a_round_of_the_converter_gives_each_input_in_its_unit() {
    // 1.5 V: 15 mA through 100 Ω, no alternating current, 16.5 V behind 1:11
    let mut chip = Chip::new(I2cChip::Ads1115, Converting(12_000));
    let measured: Vec<Measured> =
        (0..1_000).flat_map(|ms| chip.step(100, Instant::from_ticks(ms * 1_000))).take(4).collect();
    let expected = [
        (I2cInput::Loop1, Ok(15.0)),
        (I2cInput::Loop2, Ok(15.0)),
        (I2cInput::LineCurrent, Ok(0.0)),
        (I2cInput::Supply, Ok(16.5)),
    ];
    assert_eq!(measured, expected);
    let mut cut = Chip::new(I2cChip::Ads1115, Converting(0));
    let first = (0..1_000).flat_map(|ms| cut.step(100, Instant::from_ticks(ms * 1_000))).next();
    assert_eq!(first, Some((I2cInput::Loop1, Err(Wrong::Value(Reason::OutOfRange)))));
}
