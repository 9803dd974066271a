//! The sensor on the bus: transfers byte by byte, faults, and chips that come and go.

use std::vec;
use std::vec::Vec;

use embedded_hal::i2c::{ErrorKind, NoAcknowledgeSource};
use embedded_hal_mock::eh1::i2c::{Mock, Transaction};
use proptest::prelude::*;

use super::*;

/// 0xBEEF has the checksum 0x92 in both data sheets; as a temperature and as a humidity of each family it is:
const BEEF: [u8; 6] = [0xBE, 0xEF, 0x92, 0xBE, 0xEF, 0x92];
const SHT4X_AIR: Air = Air { temperature_mc: 85_523, humidity_mp: 87_231 };
const SHT3X_AIR: Air = Air { temperature_mc: 85_523, humidity_mp: 74_585 };

const NACK: ErrorKind = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);

fn sht4x_asked() -> Transaction {
    Transaction::write(0x44, vec![0xFD])
}

fn status_asked() -> Transaction {
    Transaction::write(0x44, vec![0xF3, 0x2D])
}

fn status() -> Transaction {
    Transaction::read(0x44, vec![0x80, 0x10, 0xE1])
}

fn sht3x_asked() -> Transaction {
    Transaction::write(0x44, vec![0x24, 0x00])
}

fn answered() -> Transaction {
    Transaction::read(0x44, BEEF.to_vec())
}

fn unanswered() -> Transaction {
    Transaction::read(0x44, vec![0; 6]).with_error(NACK)
}

/// Steps every millisecond for so many attempts; returns when each report came, in milliseconds, and what it said.
fn check(transactions: &[Transaction], attempts: u64) -> Vec<(u64, Result<Air, Trouble>)> {
    let mut bus = Mock::new(transactions);
    let mut climate = Climate::new(bus.clone());
    let reports = (0..attempts * 1_000)
        .filter_map(|ms| climate.step(Instant::from_ticks(ms * 1_000)).map(|report| (ms, report)))
        .collect();
    bus.done();
    reports
}

#[test]
fn an_sht4x_is_asked_once_a_second_and_read_when_it_is_ready() {
    let seconds = [sht4x_asked(), answered(), sht4x_asked(), answered()];
    assert_eq!(check(&seconds, 2), [(10, Ok(SHT4X_AIR)), (1_010, Ok(SHT4X_AIR))]);
}

#[test]
fn an_sht3x_is_found_in_the_first_attempt_and_asked_first_in_the_next() {
    let transactions = [
        sht4x_asked(), // it acknowledges, but has nothing to read
        unanswered(),
        status_asked(),
        status(),
        sht3x_asked(),
        answered(),
        status_asked(),
        status(),
        sht3x_asked(),
        answered(),
    ];
    assert_eq!(check(&transactions, 2), [(28, Ok(SHT3X_AIR)), (1_017, Ok(SHT3X_AIR))]);
}

#[test]
fn a_chip_that_is_not_there_is_looked_for_once_a_second() {
    let nobody = [
        sht4x_asked().with_error(NACK),
        status_asked().with_error(NACK),
        status_asked().with_error(NACK), // one that came meanwhile is as likely of one family as of the other
        sht4x_asked().with_error(NACK),
    ];
    assert_eq!(check(&nobody, 2), [(1, Err(Trouble::NoAnswer)), (1_001, Err(Trouble::NoAnswer))]);
}

#[test]
fn a_chip_that_answers_nothing_when_read_does_not_answer() {
    let mute = [sht4x_asked(), unanswered(), status_asked(), Transaction::read(0x44, vec![0; 3]).with_error(NACK)];
    assert_eq!(check(&mute, 1), [(12, Err(Trouble::NoAnswer))]);
}

#[test]
fn garbled_words_are_no_values_and_no_reason_to_ask_the_other_chip() {
    for at in 0..6 {
        let mut garbled = BEEF.to_vec();
        garbled[at] ^= 0x04;
        let transactions = [sht4x_asked(), Transaction::read(0x44, garbled), sht4x_asked(), answered()];
        assert_eq!(check(&transactions, 2), [(10, Err(Trouble::Checksum)), (1_010, Ok(SHT4X_AIR))]);
    }
}

#[test]
fn a_garbled_status_starts_no_measurement() {
    let transactions =
        [sht4x_asked().with_error(NACK), status_asked(), Transaction::read(0x44, vec![0x80, 0x10, 0xE0])];
    assert_eq!(check(&transactions, 1), [(2, Err(Trouble::Checksum))]);
}

#[test]
fn a_failing_bus_is_told_from_a_missing_chip() {
    let transactions =
        [sht4x_asked().with_error(ErrorKind::Bus), status_asked().with_error(ErrorKind::ArbitrationLoss)];
    assert_eq!(check(&transactions, 1), [(1, Err(Trouble::Bus))]);
}

#[test]
fn chips_may_be_swapped_under_power() {
    let transactions = [
        sht4x_asked(),
        answered(),
        sht4x_asked(), // now an SHT3x
        unanswered(),
        status_asked(),
        status(),
        sht3x_asked(),
        answered(),
        status_asked(), // now an SHT4x again, which must not see 0x2400
        Transaction::read(0x44, vec![0; 3]).with_error(NACK),
        sht4x_asked(),
        answered(),
    ];
    let expected = [(10, Ok(SHT4X_AIR)), (1_028, Ok(SHT3X_AIR)), (2_012, Ok(SHT4X_AIR))];
    assert_eq!(check(&transactions, 3), expected);
}

#[test]
fn a_chip_that_is_pulled_and_put_back_measures_again() {
    let transactions = [
        sht4x_asked(),
        answered(),
        sht4x_asked(), // pulled while it measures
        unanswered(),
        status_asked().with_error(NACK),
        status_asked().with_error(NACK),
        sht4x_asked().with_error(NACK),
        sht4x_asked(), // put back
        answered(),
    ];
    let reports: Vec<_> = check(&transactions, 4).into_iter().map(|(_, report)| report).collect();
    assert_eq!(reports, [Ok(SHT4X_AIR), Err(Trouble::NoAnswer), Err(Trouble::NoAnswer), Ok(SHT4X_AIR)]);
}

#[test]
fn the_formulas_of_the_data_sheets_hold() {
    let golden = [
        // raw, °C × 1000, SHT4x % × 1000, SHT3x % × 1000
        (0x0000, -45_000, 0, 0), // -6 % is no humidity
        (0x6666, 25_000, 44_000, 40_000),
        (0x8000, 42_501, 56_501, 50_001),
        (0xBEEF, 85_523, 87_231, 74_585),
        (0xFFFF, 130_000, 100_000, 100_000), // nor is 119 %
    ];
    for (raw, temperature_mc, sht4x, sht3x) in golden {
        assert_eq!(air(Chip::Sht4x, raw, raw), Air { temperature_mc, humidity_mp: sht4x }, "{raw:#x}");
        assert_eq!(air(Chip::Sht3x, raw, raw), Air { temperature_mc, humidity_mp: sht3x }, "{raw:#x}");
    }
}

/// A bus that answers with whatever comes next, or not at all.
struct Noise(vec::IntoIter<Option<u8>>);

impl embedded_hal::i2c::ErrorType for Noise {
    type Error = ErrorKind;
}

impl I2c for Noise {
    fn transaction(
        &mut self,
        _address: u8,
        operations: &mut [embedded_hal::i2c::Operation<'_>],
    ) -> Result<(), ErrorKind> {
        for operation in operations {
            let embedded_hal::i2c::Operation::Read(bytes) = operation else { continue };
            for byte in bytes.iter_mut() {
                *byte = self.0.next().flatten().ok_or(NACK)?;
            }
            if bytes.len() == 6 && bytes[0] < 0x80 {
                // half of the noise is well-formed, or no word would ever be converted
                bytes[2] = crc8::calculate(&[bytes[0], bytes[1]]);
                bytes[5] = crc8::calculate(&[bytes[3], bytes[4]]);
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_bytes_panic_and_every_value_is_in_range(
        bytes in prop::collection::vec(prop::option::weighted(0.95, any::<u8>()), 0..200),
        steps_ms in prop::collection::vec(0_u64..1_500, 0..200),
        start in any::<u64>(),
    ) {
        let mut climate = Climate::new(Noise(bytes.into_iter()));
        let mut now = start;
        for ms in steps_ms {
            now = now.wrapping_add(ms * 1_000);
            if let Some(Ok(air)) = climate.step(Instant::from_ticks(now)) {
                prop_assert!((-45_000..=130_000).contains(&air.temperature_mc));
                prop_assert!((0..=100_000).contains(&air.humidity_mp));
            }
        }
    }
}
