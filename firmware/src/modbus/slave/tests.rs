//! Golden frames of the standard, a reference slave, and frames that are none.

use std::{boxed::Box, eprintln, format, string::String, vec, vec::Vec};

use proptest::{prelude::*, test_runner::TestRng};

use super::*;

mod model;

use model::{Model, Plain};

const UNIT: u8 = 17;

fn slave() -> Slave<'static> {
    Slave::new(UNIT, Identification { product_name: "Node", model_name: "test", last_panic: "" })
}

/// A frame with its checksum.
fn frame(body: &[u8]) -> Vec<u8> {
    [body, &checksum(body)].concat()
}

/// What a slave says to a frame; empty for nothing.
fn say(slave: &mut Slave<'_>, tables: &mut impl Tables, frame: &[u8]) -> Vec<u8> {
    match slave.take(frame, tables, &mut [0; FRAME_MAX]) {
        Reaction::Answer(answer) => answer.to_vec(),
        Reaction::Silent | Reaction::NotOurs => Vec::new(),
    }
}

fn bytes(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect()
}

#[test]
fn the_checksum_is_that_of_the_standard() {
    assert_eq!(checksum(&[0x02, 0x07]), [0x41, 0x12], "SL §6.2.2");
    assert_eq!(frame(&bytes("11 03 00 6B 00 03")), bytes("11 03 00 6B 00 03 76 87"));
}

/// Requests and answers as AP prints them, behind our unit; `Plain` holds what its examples assume.
#[test]
fn every_function_answers_as_the_standard_prints_it() {
    let table = "
        01 00 13 00 13                            | 01 03 CD 6B 05            | read coils (6.1)
        02 00 C4 00 16                            | 02 03 AC DB 35            | read discrete inputs (6.2)
        03 00 6B 00 03                            | 03 06 02 2B 00 00 00 64   | read holding registers (6.3)
        04 00 08 00 01                            | 04 02 00 0A               | read input registers (6.4)
        05 00 AC FF 00                            | 05 00 AC FF 00            | write single coil (6.5)
        06 00 01 00 03                            | 06 00 01 00 03            | write single register (6.6)
        08 00 00 A5 37                            | 08 00 00 A5 37            | return query data (6.8)
        0F 00 13 00 0A 02 CD 01                   | 0F 00 13 00 0A            | write coils (6.11)
        10 00 01 00 02 04 00 0A 01 02             | 10 00 01 00 02            | write registers (6.12)
        17 00 03 00 06 00 0E 00 03 06 00 FF 00 FF 00 FF | 17 0C 00 FE 0A CD 00 01 00 03 00 0D 00 FF | read and write (6.17)
        2B 0E 04 05                               | 2B 0E 04 83 00 00 01 05 04 74 65 73 74 | one object of the identification (6.21)
        01 04 A1 00 01                            | 81 02                     | coils that do not exist (7)
        03 FF FF 00 02                            | 83 02                     | past the last address
        03 00 6B 00 7E                            | 83 03                     | 126 registers
        03 00 6B 00 00                            | 83 03                     | none
        01 00 13 07 D1                            | 81 03                     | 2001 coils
        05 00 AC 12 34                            | 85 03                     | neither on nor off
        10 00 01 00 02 03 00 0A 01                | 90 03                     | a byte count that does not fit
        10 00 01 00 02 04 00 0A 01                | 90 03                     | shorter than it says
        0F 00 13 00 0A 01 CD                      | 8F 03                     | too few bytes for its coils
        06 00 01                                  | 86 03                     | cut short by its sender
        08 00 05 00 00                            | 88 01                     | a subfunction that is not there
        08 00 0B 00 01                            | 88 03                     | a counter with data
        2B 0D 00 00                               | AB 01                     | CANopen
        2B 0E 05 00                               | AB 03                     | a code that is none
        2B 0E 04 7F                               | AB 02                     | an object that does not exist
        07                                        | 87 01                     | exception status
        83 00 00 00 01                            | 83 01                     | not a function
    ";
    for row in table.lines().filter(|row| row.contains('|')) {
        let [request, answer, what] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        let with_unit = |body: &str| frame(&[&[UNIT], &bytes(body)[..]].concat());
        let said = say(&mut slave(), &mut Plain::of_the_standard(), &with_unit(request));
        assert_eq!(said, with_unit(answer), "{what}");
    }
}

#[test]
fn the_longest_answers_fill_a_frame_and_no_more() {
    for (request, length) in [("01 00 00 07 D0", 255), ("03 00 00 00 7D", 255)] {
        let request = frame(&[&[UNIT], &bytes(request)[..]].concat());
        assert_eq!(say(&mut slave(), &mut Plain::full(), &request).len(), length);
    }
}

#[test]
fn it_says_who_it_is() {
    let mut node = Slave::new(UNIT, Identification { last_panic: "node.rs:7", ..slave().identification });
    let mut ask = |code, first| {
        let answer = say(&mut node, &mut Plain::default(), &frame(&[UNIT, 43, 14, code, first]));
        let (head, mut rest) = answer[2..answer.len() - 2].split_at(6);
        let mut objects: Vec<(u8, String)> = Vec::new();
        while let [number, length, text @ ..] = rest {
            let (text, behind) = text.split_at(usize::from(*length));
            objects.push((*number, String::from_utf8(text.to_vec()).expect("text")));
            rest = behind;
        }
        assert_eq!((head[0], head[1], head[2], usize::from(head[5])), (14, code, 0x83, objects.len()));
        objects.into_iter().map(|(number, text)| format!("{number:02x} {text}")).collect::<Vec<_>>()
    };
    let all =
        ["00 Gardu", "01 gardu-node", concat!("02 ", env!("CARGO_PKG_VERSION")), "04 Node", "05 test", "80 node.rs:7"];
    assert_eq!(ask(1, 0), all[..3]);
    assert_eq!(ask(2, 0), all[..5]);
    assert_eq!(ask(3, 0), all);
    assert_eq!(ask(3, 4), all[3..], "from an object on");
    assert_eq!(ask(1, 99), all[..3], "a stream from nowhere starts at the beginning");
    assert_eq!(ask(4, 0x80), all[5..]);
}

/// An identification that does not fit one answer goes on in the next.
#[test]
fn a_long_identification_is_read_in_pieces() {
    let long: &'static str = Box::leak("x".repeat(120).into_boxed_str());
    let mut node = Slave::new(UNIT, Identification { product_name: long, model_name: long, last_panic: long });
    let (mut next, mut objects, mut answers) = (0, Vec::new(), 0);
    loop {
        let answer = say(&mut node, &mut Plain::default(), &frame(&[UNIT, 43, 14, 3, next]));
        assert!(answer.len() <= FRAME_MAX);
        answers += 1;
        let mut rest = &answer[8..answer.len() - 2];
        while let [number, length, text @ ..] = rest {
            objects.push(*number);
            rest = &text[usize::from(*length)..];
        }
        if answer[5] == 0 {
            break;
        }
        next = answer[6];
    }
    assert_eq!((objects, answers), (vec![0, 1, 2, 4, 5, 0x80], 2));
}

#[test]
fn everyone_hears_a_broadcast_and_nobody_answers() {
    let (mut slave, mut tables) = (slave(), Plain::of_the_standard());
    for request in ["00 05 00 13 00 00", "00 0F 00 14 00 01 01 01", "00 06 00 01 00 09", "00 10 00 02 00 01 02 00 08"] {
        assert_eq!(say(&mut slave, &mut tables, &frame(&bytes(request))), []);
    }
    assert_eq!((tables.coils[0x13], tables.coils[0x14]), (false, true));
    assert_eq!((tables.holding[1], tables.holding[2]), (9, 8));
    // Reads, and functions for one alone, are not for everyone: counted, not done.
    for request in ["00 03 00 6B 00 03", "00 08 00 04 00 00", "00 2B 0E 01 00"] {
        assert_eq!(say(&mut slave, &mut tables, &frame(&bytes(request))), []);
    }
    assert!(!slave.diagnostics().is_listening_only());
    assert_eq!((slave.diagnostics().no_responses, slave.diagnostics().exceptions), (7, 3));
}

#[test]
fn a_silent_slave_speaks_only_after_a_restart_of_communications() {
    let (mut slave, mut tables) = (slave(), Plain::of_the_standard());
    let mut ask = |body: &str| say(&mut slave, &mut tables, &frame(&[&[UNIT], &bytes(body)[..]].concat()));
    assert_eq!(ask("08 00 04 00 00"), []);
    assert_eq!(ask("06 00 01 00 09"), [], "listens only");
    assert_eq!(ask("08 00 01 00 00"), [], "comes back without a word");
    assert_eq!(ask("03 00 01 00 01").len(), 7, "speaks");
    assert_eq!(tables.holding[1], Plain::of_the_standard().holding[1], "nothing was written while it was silent");
}

#[test]
fn it_counts_what_passes() {
    let (mut slave, mut tables) = (slave(), Plain::of_the_standard());
    let mut ask = |body: &str| say(&mut slave, &mut tables, &frame(&bytes(body)));
    ask("12 03 00 00 00 01"); // another's
    ask("11 03 FF FF 00 01"); // an exception
    ask("00 06 00 01 00 09"); // for everyone
    let counter = |answer: Vec<u8>| u16::from_be_bytes([answer[4], answer[5]]);
    let counters = [11, 12, 13, 14, 15, 16, 17, 18].map(|number| counter(ask(&format!("11 08 00 {number:02X} 00 00"))));
    assert_eq!(counters, [4, 0, 1, 6, 1, 0, 0, 0], "each question is a message, too");
    assert_eq!(counter(ask("11 08 00 02 00 00")), Plain::DIAGNOSTICS);
    assert_eq!(ask("11 08 00 0A 00 00"), frame(&bytes("11 08 00 0A 00 00")));
    assert_eq!(counter(ask("11 08 00 0B 00 00")), 1, "cleared, then this one");
    slave.overrun();
    assert_eq!(say(&mut slave, &mut tables, &[UNIT, 3, 0, 0, 0, 1, 0, 0]), [], "a wrong checksum");
    assert_eq!((slave.diagnostics().bus_errors, slave.diagnostics().overruns), (1, 1));
}

/// The promise on a noisy line: whatever comes, nothing is said or done without a right checksum. One in 65,536 random
/// frames has one by chance; those are counted apart. Noise is random bytes, and real requests with some bytes changed.
#[test]
#[expect(clippy::print_stderr, reason = "says how many frames were right by chance")]
fn noise_gets_no_answer() {
    const FRAMES: u32 = 300_000;
    let mut rng = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let (mut slave, mut tables) = (slave(), Plain::of_the_standard());
    let (before, mut twin, mut twin_tables) = (tables.clone(), slave.clone(), tables.clone());
    let (mut right, mut answered_right, mut answered_wrong, mut answered_mended) = (0, 0, 0, 0);
    for at in 0..FRAMES {
        let mut noise = vec![0; (rng.next_u32() % 260) as usize];
        rng.fill_bytes(&mut noise);
        if at % 2 == 0 {
            noise = frame(&[UNIT, 3 + (at % 4) as u8, 0, at as u8 % 32, 0, 1 + at as u8 % 9]);
            for _ in 0..=rng.next_u32() % 3 {
                let place = rng.next_u32() as usize % noise.len();
                noise[place] ^= (1 + rng.next_u32() % 255) as u8;
            }
        }
        let is_right = noise.split_last_chunk().is_some_and(|(body, check)| *check == checksum(body));
        let is_answered = !say(&mut slave, &mut tables, &noise).is_empty();
        match (is_right, is_answered) {
            (true, answered) => {
                right += 1;
                answered_right += u32::from(answered);
                tables = before.clone();
            }
            (false, true) => answered_wrong += 1,
            (false, false) => {}
        }
        // The twin: the same frames would be answered if only their checksum were right.
        let mended = noise.split_last_chunk::<2>().map(|(body, _)| frame(body)).unwrap_or_default();
        answered_mended += u32::from(!say(&mut twin, &mut twin_tables, &mended).is_empty());
    }
    eprintln!(
        "{FRAMES} random frames: {answered_wrong} answers to a wrong checksum; {right} had a right one by chance, {answered_right} of them answered; {answered_mended} would be with their checksum mended"
    );
    assert_eq!((answered_wrong, &tables), (0, &before));
    assert!(answered_mended > FRAMES / 10, "{answered_mended} frames are requests at all");
    assert!(right < 60, "{right} of {FRAMES} right by chance: the checksum is not looked at");
    let counted = slave.diagnostics().clone();
    assert_eq!(u32::from(counted.bus_messages), right);
}

proptest! {
    /// The slave and a reference written from the standard with the heap of a computer agree on every answer and on what
    /// was written.
    #[test]
    fn it_agrees_with_the_reference(requests in prop::collection::vec(model::request(UNIT), 1..40)) {
        let (mut slave, mut tables) = (slave(), Plain::of_the_standard());
        let mut model = Model::new(UNIT);
        for request in requests {
            let expected = model.take(&request);
            prop_assert_eq!(say(&mut slave, &mut tables, &request), expected, "{:02x?}", request);
            prop_assert_eq!(&tables, &model.tables, "{:02x?}", request);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let own = frame(&[&[UNIT], &body[..]].concat());
        say(&mut slave(), &mut Plain::of_the_standard(), &own);
        say(&mut slave(), &mut Plain::of_the_standard(), &body);
    }
}
