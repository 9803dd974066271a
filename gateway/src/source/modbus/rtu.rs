//! Frames of Modbus RTU (Modbus over Serial Line 1.02 §2.5): the request of a read, and its answer out of the bytes that
//! came. Pure.
//!
//! A frame carries no number and no length of its own, so an answer is taken only where the request says what must come:
//! unit, function, byte count, checksum, and with them the length. All else is a [`Fault`]. Two things may stand in
//! front of it:
//!
//! * the **echo**: on two wires some adapters hear what they send. Exactly the request's own bytes are taken away;
//! * a **glitch**: where the bus has no bias resistors, a driver that turns on or off makes one low pulse, which is
//!   read as a byte of zeros followed by ones (0x00, 0x80, … 0xFF). At most [`GLITCHES_MAX`] of these are passed over,
//!   and then nothing may follow the frame either. Noise passes for an answer when 40 bits agree by chance (unit,
//!   function, byte count, checksum), at one of three places instead of one: at most 3 in 2^40, less than 1 in 3·10^11.
//!
//! An answer whose first bytes happen to be the request's is refused: a value less, never a wrong one.

use crc::{CRC_16_MODBUS, Crc};

use super::{decode::Answer, plan::Request, timing::EXCEPTION_BYTES};
use crate::config::Table;

const CHECKSUM: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);
/// Set in the function of an exception.
const EXCEPTION: u8 = 0x80;
/// Our own driver that turns off, and the device's that turns on.
const GLITCHES_MAX: usize = 2;

/// What the bytes received so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The beginning of an answer.
    More,
    /// The answer.
    Answer(Answer),
    /// The device's refusal.
    Exception(u8),
    /// Nothing that may be believed, whatever follows.
    Fault(Fault),
}

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Another unit's, or noise.
    Unit,
    /// An answer to another function.
    Function,
    /// Of another length than was asked for.
    Length,
    /// The checksum is wrong.
    Checksum,
}

/// The request as sent.
#[must_use]
pub fn request_frame(unit: u8, request: &Request) -> [u8; 8] {
    let Request { table, address, count, .. } = request;
    let ([a, b], [c, d]) = (address.to_be_bytes(), count.to_be_bytes());
    let body = [unit, function(*table), a, b, c, d];
    let [low, high] = CHECKSUM.checksum(&body).to_le_bytes();
    let [unit, function, ..] = body;
    [unit, function, a, b, c, d, low, high]
}

/// Judges everything received since the request was sent. What follows a whole frame is ignored.
#[must_use]
pub fn read(unit: u8, request: &Request, received: &[u8]) -> Verdict {
    let echo = request_frame(unit, request);
    if received.len() < echo.len() && echo.starts_with(received) {
        return Verdict::More;
    }
    let bytes = received.strip_prefix(&echo).unwrap_or(received);
    let fault = match frame(unit, request, bytes) {
        Found::Part => return Verdict::More,
        Found::Whole(frame) => return judge(request, frame),
        Found::Other(fault) => fault,
    };
    let glitches = bytes.iter().take(GLITCHES_MAX).take_while(|byte| is_glitch(**byte)).count();
    for skipped in 1..=glitches {
        let rest = &bytes[skipped..];
        match frame(unit, request, rest) {
            Found::Part => return Verdict::More,
            Found::Whole(frame) if frame.len() == rest.len() => return judge(request, frame),
            Found::Whole(_) | Found::Other(_) => {}
        }
    }
    Verdict::Fault(fault)
}

/// Whether anything was said: more than the echo and glitches.
#[must_use]
pub fn is_silence(unit: u8, request: &Request, received: &[u8]) -> bool {
    let echo = request_frame(unit, request);
    let bytes = received.strip_prefix(&echo).unwrap_or(received);
    bytes.len() <= GLITCHES_MAX && bytes.iter().all(|byte| is_glitch(*byte))
}

/// One low pulse, read as a byte: zeros, then ones, the lowest bit first.
const fn is_glitch(byte: u8) -> bool {
    byte.trailing_zeros() + byte.leading_ones() == u8::BITS
}

/// What bytes begin with.
enum Found<'a> {
    /// As much of a frame as there are bytes.
    Part,
    /// A frame of the length its header calls for.
    Whole(&'a [u8]),
    /// None that was asked for.
    Other(Fault),
}

fn frame<'a>(unit: u8, request: &Request, bytes: &'a [u8]) -> Found<'a> {
    let function = function(request.table);
    let length = match *bytes {
        [] => return Found::Part,
        [from, ..] if from != unit => return Found::Other(Fault::Unit),
        [_] => return Found::Part,
        [_, code, ..] if code == function | EXCEPTION => usize::from(EXCEPTION_BYTES),
        [_, code, ..] if code != function => return Found::Other(Fault::Function),
        [_, _] => return Found::Part,
        [_, _, count, ..] if u16::from(count) != request.data_bytes() => return Found::Other(Fault::Length),
        [_, _, _, ..] => usize::from(request.answer_bytes()),
    };
    bytes.get(..length).map_or(Found::Part, Found::Whole)
}

fn judge(request: &Request, frame: &[u8]) -> Verdict {
    // Over a frame and its checksum the checksum is 0.
    let [_, code, data @ .., _, _] = frame else { return Verdict::Fault(Fault::Length) };
    match data {
        _ if CHECKSUM.checksum(frame) != 0 => Verdict::Fault(Fault::Checksum),
        [exception] if code & EXCEPTION != 0 => Verdict::Exception(*exception),
        [_, data @ ..] => Verdict::Answer(answer(request, data)),
        [] => Verdict::Fault(Fault::Length),
    }
}

fn answer(request: &Request, data: &[u8]) -> Answer {
    match request.table {
        Table::Coil | Table::Discrete => {
            let bits = data.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
            Answer::Bits(bits.take(usize::from(request.count)).collect())
        }
        Table::Holding | Table::Input => {
            Answer::Registers(data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect())
        }
    }
}

const fn function(table: Table) -> u8 {
    match table {
        Table::Coil => 1,
        Table::Discrete => 2,
        Table::Holding => 3,
        Table::Input => 4,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(table: Table, address: u16, count: u16) -> Request {
        Request { table, address, count, points: Vec::new() }
    }

    fn sealed(body: &[u8]) -> Vec<u8> {
        [body, &CHECKSUM.checksum(body).to_le_bytes()].concat()
    }

    /// The answer of a device whose every byte of data says where it stands.
    fn valid(unit: u8, request: &Request) -> Vec<u8> {
        let length = u8::try_from(request.data_bytes()).expect("within the limits");
        let data = (0..length).map(|n| n.wrapping_mul(37).wrapping_add(11));
        sealed(&[unit, function(request.table), length].into_iter().chain(data).collect::<Vec<u8>>())
    }

    /// Every table, units that look like glitches and like functions, the least and the most.
    fn cases() -> Vec<(u8, Request)> {
        let mut cases = Vec::new();
        for unit in [1, 3, 128, 240, 247] {
            for (table, count) in [
                (Table::Coil, 1),
                (Table::Coil, 2000),
                (Table::Discrete, 9),
                (Table::Holding, 1),
                (Table::Holding, 125),
                (Table::Input, 2),
            ] {
                cases.push((unit, request(table, 0x0203, count)));
            }
        }
        cases
    }

    fn is_refused(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::More | Verdict::Fault(_))
    }

    #[test]
    fn frames_are_those_of_the_standard() {
        // Modbus Application Protocol 1.1b3 §6.3: registers 108 to 110, with the checksum of the serial line.
        let asked = request(Table::Holding, 0x006B, 3);
        assert_eq!(request_frame(0x11, &asked), [0x11, 3, 0, 0x6B, 0, 3, 0x76, 0x87]);
        let came = [0x11, 3, 6, 0xAE, 0x41, 0x56, 0x52, 0x43, 0x40, 0x49, 0xAD];
        assert_eq!(read(0x11, &asked, &came), Verdict::Answer(Answer::Registers(vec![0xAE41, 0x5652, 0x4340])));
        // §6.1: coils 20 to 38; the lowest bit is the first coil.
        let asked = request(Table::Coil, 0x13, 19);
        let came = sealed(&[9, 1, 3, 0xCD, 0x6B, 0x05]);
        let Verdict::Answer(Answer::Bits(bits)) = read(9, &asked, &came) else { panic!("bits") };
        let spelt: String = bits.iter().map(|bit| if *bit { '1' } else { '0' }).collect();
        assert_eq!(spelt, "1011001111010110101");
    }

    #[test]
    fn an_answer_comes_byte_by_byte_and_is_taken_with_its_last() {
        for (unit, request) in cases() {
            let came = valid(unit, &request);
            for length in 0..came.len() {
                assert_eq!(read(unit, &request, &came[..length]), Verdict::More, "{length} bytes");
            }
            assert!(matches!(read(unit, &request, &came), Verdict::Answer(_)));
            let twice = [&came[..], &came].concat();
            assert_eq!(read(unit, &request, &twice), read(unit, &request, &came), "what follows is ignored");
        }
    }

    #[test]
    fn an_exception_is_told_from_an_answer() {
        let asked = request(Table::Input, 5, 10);
        let came = sealed(&[7, 0x84, 2]);
        assert_eq!(read(7, &asked, &came), Verdict::Exception(2));
        assert_eq!(read(7, &asked, &came[..4]), Verdict::More);
        assert_eq!(read(7, &asked, &sealed(&[7, 0x83, 2])), Verdict::Fault(Fault::Function));
        assert_eq!(read(7, &asked, &[7, 0x84, 2, 0, 0]), Verdict::Fault(Fault::Checksum));
    }

    #[test]
    fn what_was_not_asked_for_is_a_fault() {
        let asked = request(Table::Holding, 100, 2);
        for (what, frame, fault) in [
            ("another unit", sealed(&[2, 3, 4, 1, 2, 3, 4]), Fault::Unit),
            ("another function", sealed(&[1, 4, 4, 1, 2, 3, 4]), Fault::Function),
            ("more registers", sealed(&[1, 3, 6, 1, 2, 3, 4, 5, 6]), Fault::Length),
            ("fewer registers", sealed(&[1, 3, 2, 1, 2]), Fault::Length),
            ("an odd byte count", sealed(&[1, 3, 5, 1, 2, 3, 4, 5]), Fault::Length),
            ("a wrong checksum", vec![1, 3, 4, 1, 2, 3, 4, 0, 0], Fault::Checksum),
            ("junk in front", [&[0x5A][..], &valid(1, &asked)].concat(), Fault::Unit),
            ("three glitches in front", [&[0, 0, 0][..], &valid(1, &asked)].concat(), Fault::Unit),
            ("a glitch in front and junk behind", [&[0][..], &valid(1, &asked), &[9]].concat(), Fault::Unit),
        ] {
            assert_eq!(read(1, &asked, &frame), Verdict::Fault(fault), "{what}");
        }
    }

    #[test]
    fn glitches_and_the_echo_in_front_are_passed_over() {
        for (unit, request) in cases() {
            let (came, echo) = (valid(unit, &request), request_frame(unit, &request));
            let expect = read(unit, &request, &came);
            for front in [&echo[..], &[0], &[0xFF], &[0xF0, 0], &[&echo[..], &[0xFE]].concat()] {
                let whole = [front, &came].concat();
                assert_eq!(read(unit, &request, &whole), expect, "{front:02x?}");
                for length in 0..whole.len() {
                    assert_eq!(read(unit, &request, &whole[..length]), Verdict::More, "{front:02x?}, {length} bytes");
                }
                assert!(is_silence(unit, &request, front), "{front:02x?}");
            }
            let wrong = [&[0][..], &echo, &came].concat();
            assert!(is_refused(&read(unit, &request, &wrong)), "an echo is the first thing heard, or none");
            assert!(!is_silence(unit, &request, &[unit, 1]) && is_silence(unit, &request, &[]));
        }
        let glitches: Vec<u8> = (0..=u8::MAX).filter(|byte| is_glitch(*byte)).collect();
        assert_eq!(glitches, [0, 0x80, 0xC0, 0xE0, 0xF0, 0xF8, 0xFC, 0xFE, 0xFF]);
    }

    #[test]
    fn every_flipped_bit_and_every_missing_byte_is_refused() {
        for (unit, request) in cases() {
            let came = valid(unit, &request);
            for bit in 0..came.len() * 8 {
                let mut flipped = came.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let verdict = read(unit, &request, &flipped);
                assert!(is_refused(&verdict), "unit {unit}, {request:?}, bit {bit}: {verdict:?}");
            }
            for missing in 0..came.len() {
                let mut short = came.clone();
                short.remove(missing);
                let verdict = read(unit, &request, &short);
                assert!(is_refused(&verdict), "unit {unit}, {request:?}, without byte {missing}: {verdict:?}");
                assert!(is_refused(&read(unit, &request, &came[missing + 1..])), "without its first {}", missing + 1);
            }
        }
    }

    /// The twin: a reader that compares no more than the checksum.
    #[test]
    fn a_checksum_alone_takes_answers_to_other_requests() {
        let other = valid(2, &request(Table::Holding, 7, 2));
        assert_eq!(CHECKSUM.checksum(&other), 0);
        assert!(is_refused(&read(1, &request(Table::Holding, 7, 2), &other)));
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let tables = prop_oneof![Just(Table::Coil), Just(Table::Discrete), Just(Table::Holding), Just(Table::Input)];
        (tables, any::<u16>(), 1_u16..=125).prop_map(|(table, address, count)| request(table, address, count))
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict_and_more_bytes_never_overturn_it(
            unit in 1_u8..=247, asked in any_request(), valid_first in any::<bool>(),
            noise in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300,
        ) {
            let mut bytes = if valid_first { valid(unit, &asked) } else { Vec::new() };
            bytes.truncate(cut);
            bytes.extend(noise);
            let mut settled = None;
            for length in 0..=bytes.len() {
                let verdict = read(unit, &asked, &bytes[..length]);
                match &settled {
                    None if verdict != Verdict::More => settled = Some(verdict),
                    // Behind glitches nothing may follow, so an answer may become a fault there; never the reverse.
                    Some(Verdict::Fault(_)) => prop_assert!(matches!(verdict, Verdict::Fault(_))),
                    None | Some(_) => {}
                }
            }
        }

        #[test]
        fn a_valid_answer_is_read_as_what_it_holds(unit in 1_u8..=247, asked in any_request()) {
            let came = valid(unit, &asked);
            let Verdict::Answer(answer) = read(unit, &asked, &came) else { panic!("an answer") };
            match answer {
                Answer::Bits(bits) => prop_assert_eq!(bits.len(), usize::from(asked.count)),
                Answer::Registers(words) => {
                    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
                    prop_assert_eq!(&bytes, &came[3..came.len() - 2]);
                }
            }
        }
    }
}
