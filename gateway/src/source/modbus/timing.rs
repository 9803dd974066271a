//! How long frames take on a serial line, and what a request costs on each medium. Pure.
//!
//! An **exchange** is a request and its answer. On a line it takes: the request, the silence that ends it, the device's
//! **turnaround**, the answer, and the silence before the next request. Characters and silences are those of Modbus over
//! Serial Line 1.02, §2.5.1 and §2.5.1.1; frames are address, PDU and CRC (§2.3).
//!
//! Limits: what operating system, USB adapter and converter add is not in the times of frames, so they are lower bounds;
//! a cost is an estimate and says what it assumes.

use std::time::Duration;

use super::plan::Request;
use crate::config::{Link, Parity, SerialLine, Table};

/// A request to read: unit, function, address, count and CRC.
pub const REQUEST_BYTES: u16 = 8;
/// What is not data in an answer to a read: unit, function, byte count and CRC.
const ANSWER_OVERHEAD_BYTES: u16 = 5;
/// A refusal: unit, function, exception code and CRC.
pub const EXCEPTION_BYTES: u16 = 5;

/// The time from the end of a request to the start of the answer, silence not counted, that is assumed of a device. At
/// the quick end of small devices, which take 1 to 50 ms: a slower one would only make somewhat larger holes worth
/// reading.
pub const TURNAROUND: Duration = Duration::from_millis(5);
/// One exchange of Modbus TCP on a local network with a typical small device; a converter to a serial line needs it too.
pub const ROUND_TRIP: Duration = Duration::from_millis(5);

/// Above this rate the silence is [`SILENCE_FAST`] (§2.5.1.1).
const BAUD_OF_FIXED_SILENCE: u32 = 19_200;
const SILENCE_FAST: Duration = Duration::from_micros(1_750);
/// Of 3.5 characters, in half bits. A character counts 11 bits here even on lines that send 10: devices whose timers
/// know only the standard's character (§2.5.1: always 11 bits) would else take two frames for one.
const SILENCE_HALF_BITS: u64 = 7 * 11;

const NANOSECONDS: u64 = 1_000_000_000;

impl SerialLine {
    /// Bits of one character: start, 8 of data, parity, stop.
    #[must_use]
    pub fn character_bits(self) -> u64 {
        let parity = match self.parity {
            Parity::None => 0,
            Parity::Even | Parity::Odd => 1,
        };
        9 + parity + u64::from(self.stop_bits)
    }

    /// The time of one character.
    #[must_use]
    pub fn character_time(self) -> Duration {
        self.frame_time(1)
    }

    /// The time of so many characters without a gap.
    #[must_use]
    pub fn frame_time(self, bytes: u16) -> Duration {
        half_bits(2 * self.character_bits() * u64::from(bytes), self.baud)
    }

    /// The silence that separates two frames, "t3.5".
    #[must_use]
    pub fn silence(self) -> Duration {
        if self.baud > BAUD_OF_FIXED_SILENCE { SILENCE_FAST } else { half_bits(SILENCE_HALF_BITS, self.baud) }
    }

    /// The least time between writing the first byte of a request and having the last of an answer of so many bytes: what
    /// comes sooner answers an earlier request.
    ///
    /// An answer's character is counted with one stop bit, for a device that sends only one is understood on a line of
    /// two; and all of it a twentieth shorter, for rates further apart are not understood (half a bit in ten).
    #[must_use]
    pub fn least_answer_time(self, answer_bytes: u16) -> Duration {
        let answer = Self { stop_bits: 1, ..self };
        (self.frame_time(REQUEST_BYTES) + answer.frame_time(answer_bytes)) * 19 / 20
    }

    /// The time of an exchange: [`TURNAROUND`] is assumed.
    #[must_use]
    pub fn exchange_time(self, request: &Request) -> Duration {
        self.frame_time(REQUEST_BYTES + request.answer_bytes()) + self.silence() * 2 + TURNAROUND
    }
}

/// Rounded up to whole nanoseconds.
fn half_bits(count: u64, baud: u32) -> Duration {
    Duration::from_nanos((count * NANOSECONDS).div_ceil(2 * u64::from(baud.max(1))))
}

impl Request {
    /// Bytes of data in the answer: two a register, one for eight bits (Modbus Application Protocol 1.1b3 §6.1 to §6.4).
    /// With the table this is the answer's **shape**: all that an RTU answer says about what was asked.
    #[must_use]
    pub const fn data_bytes(&self) -> u16 {
        match self.table {
            Table::Coil | Table::Discrete => self.count.div_ceil(8),
            Table::Holding | Table::Input => self.count * 2,
        }
    }

    /// Bytes of the whole answer on a serial line.
    #[must_use]
    pub const fn answer_bytes(&self) -> u16 {
        ANSWER_OVERHEAD_BYTES + self.data_bytes()
    }
}

/// What a bus runs on, as far as time is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Modbus TCP: a register too many costs two bytes, a request a round trip.
    Tcp,
    /// A serial port of our own.
    Serial(SerialLine),
    /// A serial line behind a converter.
    Converter(SerialLine),
}

impl Medium {
    /// That of a link.
    #[must_use]
    pub const fn of(link: &Link) -> Self {
        match link {
            Link::Tcp { .. } => Self::Tcp,
            Link::Rtu { line, .. } => Self::Serial(*line),
            Link::RtuOverTcp { line, .. } => Self::Converter(*line),
        }
    }

    /// The wire that carries characters, if there is one.
    #[must_use]
    pub const fn line(self) -> Option<SerialLine> {
        match self {
            Self::Tcp => None,
            Self::Serial(line) | Self::Converter(line) => Some(line),
        }
    }

    /// How long one exchange keeps the bus busy; [`TURNAROUND`] and [`ROUND_TRIP`] are assumed.
    #[must_use]
    pub fn cost(self, request: &Request) -> Duration {
        match self {
            Self::Tcp => ROUND_TRIP,
            Self::Serial(line) => line.exchange_time(request),
            Self::Converter(line) => line.exchange_time(request) + ROUND_TRIP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(baud: u32, parity: Parity, stop_bits: u8) -> SerialLine {
        SerialLine { baud, parity, stop_bits }
    }

    fn request(table: Table, count: u16) -> Request {
        Request { table, address: 0, count, points: Vec::new() }
    }

    #[test]
    fn a_character_has_ten_to_twelve_bits() {
        for (parity, stop_bits, bits) in [
            (Parity::None, 1, 10),
            (Parity::None, 2, 11),
            (Parity::Even, 1, 11),
            (Parity::Odd, 1, 11),
            (Parity::Even, 2, 12),
        ] {
            assert_eq!(line(9_600, parity, stop_bits).character_bits(), bits);
        }
        assert_eq!(line(9_600, Parity::None, 1).character_time(), Duration::from_nanos(1_041_667));
        assert_eq!(line(9_600, Parity::None, 1).frame_time(96), Duration::from_millis(100));
    }

    #[test]
    fn the_silence_is_three_and_a_half_characters_of_the_standard_and_fixed_above_19200() {
        for (baud, silence_us) in [(1_200, 32_083), (9_600, 4_010), (19_200, 2_005), (38_400, 1_750), (115_200, 1_750)]
        {
            for parity in [Parity::None, Parity::Even] {
                assert_eq!(line(baud, parity, 1).silence().as_micros(), silence_us, "{baud}");
            }
        }
    }

    #[test]
    fn an_answer_is_as_long_as_the_protocol_says() {
        for (table, count, bytes) in [
            (Table::Holding, 1, 7),
            (Table::Input, 125, 255),
            (Table::Coil, 1, 6),
            (Table::Coil, 8, 6),
            (Table::Discrete, 9, 7),
            (Table::Discrete, 2_000, 255),
        ] {
            assert_eq!(request(table, count).answer_bytes(), bytes, "{table:?} {count}");
        }
    }

    /// T(1), T(10) and T(125) of characters of 11 bits, in tenths of a millisecond.
    #[test]
    fn an_exchange_takes_what_was_computed_by_hand() {
        for (baud, tenths) in [(9_600, [302, 508, 3_144]), (19_200, [176, 279, 1_597]), (115_200, [99, 117, 336])] {
            let line = line(baud, Parity::Even, 1);
            let ms = |count| (line.exchange_time(&request(Table::Input, count)).as_secs_f64() * 10_000.0).round();
            assert_eq!([1, 10, 125].map(ms), tenths.map(f64::from), "{baud}");
        }
    }

    #[test]
    fn the_least_time_of_an_answer_is_below_that_of_any_device_that_is_understood() {
        // 8 + 7 characters of 10 bits at 9600 are 15.625 ms; of 11 bits 17.1875 ms, where a device may send 10.
        let eight_n1 = line(9_600, Parity::None, 1).least_answer_time(7);
        assert_eq!(eight_n1.as_micros(), 14_843);
        let eight_n2 = line(9_600, Parity::None, 2).least_answer_time(7);
        assert_eq!(eight_n2.as_micros(), 15_635);
        assert!(eight_n2 < line(9_600, Parity::None, 2).frame_time(8 + 7));
    }

    #[test]
    fn a_converter_costs_its_line_and_the_network() {
        let line = line(9_600, Parity::None, 1);
        let (short, long) = (request(Table::Holding, 1), request(Table::Holding, 125));
        assert_eq!(Medium::Tcp.cost(&short), Medium::Tcp.cost(&long));
        assert!(Medium::Serial(line).cost(&long) > Medium::Serial(line).cost(&short) * 5);
        assert_eq!(Medium::Converter(line).cost(&long), Medium::Serial(line).cost(&long) + ROUND_TRIP);
    }
}
