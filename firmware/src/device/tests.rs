//! The whole firmware with a wire, pins and a flash of the test, in time that the test owns.

use std::{format, string::String, vec, vec::Vec};

use embedded_hal_nb::serial::ErrorKind;
use proptest::prelude::*;

use super::*;
use crate::{
    modbus::checksum,
    registers::{CONTACTS, Fault, MAP, OUTPUTS, ResetCause, Table, Type, address, events_between},
    settings::{APPLY, Origin},
    testing::{Chips, Flash, Pin, Uart},
    time::Duration,
};

const IDENTIFY: u16 = address("identify");

/// A board on the test's bench.
struct Bench {
    device: Device<'static, Pin, Pin, Chips, Uart, Pin, Flash>,
    now: Instant,
    contacts: [Pin; CONTACTS],
    outputs: [Pin; OUTPUTS],
    lamp: Pin,
    direction: Pin,
    chips: Chips,
    uart: Uart,
    flash: Flash,
}

/// A board that starts with this flash, after a reset that kept this.
fn start(flash: &Flash, kept: Option<Kept>) -> Bench {
    let contacts: [Pin; CONTACTS] = core::array::from_fn(|_| Pin::new(true));
    let outputs: [Pin; OUTPUTS] = core::array::from_fn(|_| Pin::new(true));
    let (lamp, direction, chips, uart) = (Pin::new(false), Pin::new(true), Chips::default(), Uart::default());
    uart.with(|uart| uart.room = usize::MAX);
    chips.air.set(Some([0x6666, 0x8000]));
    let pins = Pins {
        contacts: contacts.clone(),
        outputs: outputs.clone(),
        lamp: lamp.clone(),
        climate: chips.clone(),
        converter: chips.clone(),
    };
    let mut flash = flash.clone();
    let start = Start {
        loaded: settings::load(&mut flash),
        kept,
        identity: Identity { reset_cause: ResetCause::PowerOn, serial_number: 0x0102_0304_0506_0708 },
        model_name: "bench",
        last_panic: "",
    };
    let now = Instant::from_ticks(5_000_000);
    let parts = Parts { pins, uart: uart.clone(), direction: direction.clone(), flash: flash.clone() };
    Bench { device: Device::new(parts, start, now), now, contacts, outputs, lamp, direction, chips, uart, flash }
}

fn bench() -> Bench {
    start(&Flash::new(), None)
}

impl Bench {
    /// Lets time go by, polled every quarter of a millisecond. Returns what the device wanted last.
    fn run(&mut self, span: Duration) -> Next {
        let end = self.now + span;
        let mut next = Next::Again;
        while self.now < end && next != Next::Restart {
            next = self.device.poll(self.now);
            self.now += Duration::micros(250);
        }
        next
    }

    /// A request of the master, sent at 9600 baud; returns the answer behind unit and function, without checksum.
    fn ask(&mut self, body: &[u8]) -> Vec<u8> {
        let request = [body, &checksum(body)].concat();
        for byte in request {
            self.uart.with(|uart| uart.received.push_back(Ok(byte)));
            self.run(Duration::micros(1_146));
        }
        self.run(Duration::millis(6));
        self.answer()
    }

    fn answer(&mut self) -> Vec<u8> {
        let sent = self.uart.with(|uart| core::mem::take(&mut uart.sent));
        match sent.split_last_chunk() {
            Some((body, check)) => {
                assert_eq!(*check, checksum(body));
                body[1..].to_vec()
            }
            None => Vec::new(),
        }
    }

    fn read(&mut self, table: Table, first: u16, count: u16) -> Option<Vec<u16>> {
        let function = match table {
            Table::Coil => 1,
            Table::Discrete => 2,
            Table::Holding => 3,
            Table::Input => 4,
        };
        let answer = self.ask(&[&[1, function][..], &first.to_be_bytes(), &count.to_be_bytes()].concat());
        let (head, data) = answer.split_first().expect("an answer");
        (*head == function).then(|| match table {
            Table::Coil | Table::Discrete => {
                (0..count).map(|n| u16::from(data[1 + usize::from(n) / 8] >> (n % 8) & 1)).collect()
            }
            Table::Holding | Table::Input => {
                data[1..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
            }
        })
    }

    fn input(&mut self, name: &str) -> u16 {
        self.read(Table::Input, address(name), 1).expect("an input")[0]
    }

    fn faults(&mut self) -> u16 {
        self.input("faults")
    }

    fn write(&mut self, address: u16, value: u16) -> Vec<u8> {
        self.ask(&[&[1, 6][..], &address.to_be_bytes(), &value.to_be_bytes()].concat())
    }

    fn set_coil(&mut self, address: u16, on: bool) {
        let [high, low] = address.to_be_bytes();
        let request = [1, 5, high, low, if on { 0xff } else { 0 }, 0];
        assert_eq!(self.ask(&request), request[1..]);
    }

    fn outputs(&self) -> [bool; OUTPUTS] {
        self.outputs.each_ref().map(Pin::get)
    }
}

#[test]
fn every_entry_of_the_map_is_served_and_nothing_else() {
    let mut bench = bench();
    for table in [Table::Coil, Table::Discrete, Table::Input, Table::Holding] {
        let entries: Vec<_> = MAP.iter().filter(|entry| entry.table == table).collect();
        let last = entries.iter().map(|entry| entry.end()).max().expect("entries");
        for at in 0..last + 3 {
            let is_mapped = entries.iter().any(|entry| (entry.address..entry.end()).contains(&at));
            assert_eq!(bench.read(table, at, 1).is_some(), is_mapped, "{table:?} {at}");
        }
        assert_eq!(bench.read(table, u16::MAX, 1), None);
    }
}

#[test]
fn who_it_is_and_how_long_it_runs() {
    let mut bench = bench();
    assert_eq!(bench.read(Table::Input, address("serial-number"), 4), Some(vec![0x0102, 0x0304, 0x0506, 0x0708]));
    assert_eq!(bench.input("reset-cause"), ResetCause::PowerOn as u16);
    bench.run(Duration::secs(100));
    let uptime = bench.read(Table::Input, address("uptime"), Type::U32.width()).expect("uptime");
    assert_eq!(uptime[0], 0);
    assert!((100..103).contains(&uptime[1]), "{uptime:?}");
}

#[test]
fn a_press_between_two_polls_is_counted_and_no_answer_can_lose_it() {
    let mut bench = bench();
    bench.run(Duration::millis(100));
    let before = bench.input("contact-3-events");
    for _ in 0..3 {
        bench.contacts[2].set(false);
        bench.run(Duration::millis(50));
        bench.contacts[2].set(true);
        bench.run(Duration::millis(50));
    }
    // The answer is lost on its way: the master asks again.
    bench.input("contact-3-events");
    let after = bench.input("contact-3-events");
    assert_eq!(events_between(before, after), 3);
    assert_eq!(bench.input("contacts"), 0);
    bench.contacts[0].set(false);
    bench.contacts[7].set(false);
    bench.run(Duration::millis(30));
    assert_eq!(bench.input("contacts"), 0b1000_0001);
    assert_eq!(bench.read(Table::Discrete, 0, 9), Some(vec![1, 0, 0, 0, 0, 0, 0, 1, 1]), "and a fault stands");
}

#[test]
fn counters_go_on_after_a_reset_and_begin_again_after_power_came_on() {
    let mut bench = bench();
    bench.run(Duration::millis(100));
    bench.contacts[0].set(false);
    bench.run(Duration::millis(100));
    let kept = bench.device.kept();
    let mut again = start(&bench.flash, Some(kept));
    again.contacts[0].set(false);
    again.run(Duration::millis(100));
    assert_eq!((again.input("contact-1-events"), again.input("resets")), (1, 1), "what stands is no event");
    let mut fresh = start(&bench.flash, None);
    assert_eq!((fresh.input("contact-1-events"), fresh.input("resets")), (0, 0));
}

#[test]
fn a_missing_sensor_is_a_fault_and_the_rest_goes_on() {
    let mut bench = bench();
    bench.run(Duration::secs(2));
    // 25.0 °C and 56.5 % by the data sheet; no converter on this bench.
    assert_eq!((bench.input("temperature"), bench.input("humidity")), (250, 565));
    assert_eq!((bench.faults(), bench.input("supply")), (Fault::Converter.bit(), u16::MAX));
    bench.chips.air.set(None);
    bench.run(Duration::secs(2));
    assert_eq!((bench.input("temperature"), bench.input("humidity")), (i16::MIN.cast_unsigned(), u16::MAX));
    assert_eq!(bench.faults(), Fault::Climate.bit() | Fault::Converter.bit());
    bench.contacts[0].set(false);
    bench.run(Duration::millis(50));
    assert_eq!(bench.input("contact-1-events"), 1);
    bench.chips.air.set(Some([0x6666, 0x8000]));
    bench.run(Duration::secs(2));
    assert_eq!((bench.input("temperature"), bench.faults()), (250, Fault::Converter.bit()));
}

#[test]
fn what_has_no_value_says_so_with_the_number_of_the_map() {
    let mut bench = bench();
    bench.chips.air.set(None);
    bench.run(Duration::secs(5));
    for (name, without) in MAP.iter().filter_map(|entry| Some((entry.name, entry.without?))) {
        let raw = bench.input(name);
        let said = if without < 0 { i32::from(raw.cast_signed()) } else { i32::from(raw) };
        assert_eq!(said, without, "{name}");
    }
}

#[test]
fn outputs_take_their_safe_state_when_no_master_is_heard() {
    let mut bench = bench();
    assert_eq!(bench.outputs(), [false, false], "safe from the start");
    bench.set_coil(0, true);
    assert_eq!(bench.outputs(), [true, false]);
    for _ in 0..10 {
        bench.run(Duration::secs(30));
        assert_eq!(bench.input("outputs"), 1, "a master that only reads is heard as well");
    }
    bench.run(Duration::secs(61));
    assert_eq!(bench.outputs(), [false, false]);
    // The first request finds it so, and ends the fault; the outputs stay until they are written.
    assert_eq!(bench.faults() & Fault::FailSafe.bit(), Fault::FailSafe.bit());
    assert_eq!(bench.faults() & Fault::FailSafe.bit(), 0);
    assert_eq!(bench.outputs(), [false, false]);
    bench.set_coil(0, true);
    assert_eq!(bench.outputs(), [true, false]);
}

#[test]
fn the_lamp_says_how_it_is_and_which_node_this_is() {
    let mut bench = bench();
    // Lit so many of 40 looks in two seconds, and how often it changed.
    let look = |bench: &mut Bench| {
        let looks: Vec<bool> = (0..40)
            .map(|_| {
                bench.run(Duration::millis(50));
                bench.lamp.get()
            })
            .collect();
        let changes = looks.iter().zip(looks.iter().cycle().skip(1)).filter(|(a, b)| a != b).count();
        (looks.iter().filter(|lit| **lit).count(), changes)
    };
    assert_eq!(look(&mut bench), (2, 2), "nobody was heard: a flash");
    bench.faults();
    assert_eq!(look(&mut bench), (34, 4), "heard, with a fault: two gaps");
    bench.set_coil(IDENTIFY, true);
    assert_eq!(look(&mut bench), (20, 20), "identify: five flashes a second");
    bench.run(Duration::minutes(10));
    assert_eq!(look(&mut bench), (2, 2), "identify ended by itself, and nobody was heard since");
}

#[test]
fn another_units_traffic_does_not_keep_outputs_on() {
    let mut bench = bench();
    bench.set_coil(1, true);
    for _ in 0..7 {
        bench.run(Duration::secs(10));
        assert_eq!(bench.ask(&[9, 4, 0, 0, 0, 1]), []);
    }
    assert_eq!(bench.outputs(), [false, false]);
}

#[test]
fn settings_are_a_draft_until_they_are_applied() {
    let mut bench = bench();
    assert_eq!(bench.write(0, 42), [6, 0, 0, 0, 42]);
    assert_eq!(bench.read(Table::Holding, APPLY, 1), Some(vec![1]), "differs, still answers as unit 1");
    assert_eq!(bench.write(0, 248), [0x86, 3]);
    // All or nothing: a unit and a baud of which one is wrong.
    assert_eq!(bench.ask(&[1, 16, 0, 0, 0, 2, 4, 0, 43, 0, 95]), [0x90, 3]);
    assert_eq!(bench.read(Table::Holding, 0, 2), Some(vec![42, 96]));
    let request = [&[1, 6][..], &APPLY.to_be_bytes(), &[0, 1]].concat();
    for byte in [&request[..], &checksum(&request)].concat() {
        bench.uart.with(|uart| uart.received.push_back(Ok(byte)));
    }
    assert_eq!(bench.run(Duration::secs(1)), Next::Restart);
    assert_eq!(bench.answer(), request[1..], "answered before");
    assert!(!bench.direction.get());
    let loaded = settings::load(&mut bench.flash);
    assert_eq!((loaded.settings.unit(), loaded.origin), (42, Origin::Kept));
    let mut again = start(&bench.flash, None);
    assert_eq!(again.ask(&[42, 3, 0, 0, 0, 1]), [3, 2, 0, 42]);
    assert_eq!(again.ask(&[1, 3, 0, 0, 0, 1]), []);
}

#[test]
fn settings_that_cannot_be_kept_are_a_fault_and_not_used() {
    let mut bench = bench();
    bench.flash.0.with(|flash| flash.power = 0);
    bench.write(0, 42);
    bench.write(APPLY, 1);
    assert_eq!(bench.faults() & Fault::SettingsNotKept.bit(), Fault::SettingsNotKept.bit());
    assert_eq!(bench.read(Table::Holding, APPLY, 1), Some(vec![1]));
}

#[test]
fn a_broadcast_switches_outputs_and_cannot_give_everyone_one_unit() {
    let mut bench = bench();
    assert_eq!(bench.ask(&[0, 15, 0, 0, 0, 2, 1, 3]), []);
    assert_eq!(bench.outputs(), [true, true]);
    assert_eq!(bench.ask(&[0, 6, 0, 0, 0, 42]), []);
    assert_eq!(bench.read(Table::Holding, 0, 1), Some(vec![1]));
}

#[test]
fn it_drives_the_line_only_while_it_speaks() {
    let mut bench = bench();
    bench.run(Duration::millis(10));
    assert!(!bench.direction.get());
    bench.uart.with(|uart| (uart.room = 3, uart.is_shifting = true));
    let request = [1, 4, 0, 0, 0, 1];
    bench.uart.with(|uart| uart.received.extend([&request[..], &checksum(&request)].concat().into_iter().map(Ok)));
    bench.run(Duration::millis(10));
    assert_eq!(bench.uart.with(|uart| uart.sent.len()), 3, "as many as the UART takes");
    assert!(bench.direction.get());
    // Its own echo, as a transceiver with its receiver on hears it.
    bench.uart.with(|uart| (uart.received.extend([Ok(1), Ok(4), Err(ErrorKind::FrameFormat)]), uart.room = usize::MAX));
    bench.run(Duration::millis(5));
    assert!(bench.direction.get(), "the last character is still on the wire");
    bench.uart.with(|uart| uart.is_shifting = false);
    bench.run(Duration::millis(1));
    assert!(!bench.direction.get());
    bench.uart.with(|uart| uart.sent.clear());
    assert_eq!(bench.input("bus-errors"), 0, "an echo is no error");
}

#[test]
fn a_uart_that_does_not_send_lets_the_watchdog_strike() {
    let mut bench = bench();
    bench.uart.with(|uart| uart.is_shifting = true);
    bench.ask(&[1, 4, 0, 0, 0, 1]);
    assert_eq!(bench.run(Duration::millis(400)), Next::Again);
    assert_eq!(bench.run(Duration::millis(400)), Next::Stuck);
}

#[test]
fn a_garbled_character_costs_its_frame_and_no_other() {
    let mut bench = bench();
    for character in [Ok(1), Err(ErrorKind::Parity), Ok(0), Err(ErrorKind::Overrun)] {
        bench.uart.with(|uart| uart.received.push_back(character));
    }
    bench.run(Duration::millis(10));
    assert_eq!(bench.answer(), []);
    assert_eq!(bench.input("bus-errors"), 1);
    assert_eq!(bench.ask(&[1, 8, 0, 18, 0, 0]), [8, 0, 18, 0, 1], "the overrun is counted");
}

#[test]
fn a_line_that_never_falls_silent_does_not_stop_the_contacts() {
    let mut bench = bench();
    for at in 0..400 {
        bench.uart.with(|uart| uart.received.extend(vec![Ok(0x55); 80]));
        bench.contacts[0].set(!(100..200).contains(&at));
        bench.run(Duration::millis(1));
    }
    bench.uart.with(|uart| uart.received.clear());
    bench.run(Duration::millis(50));
    assert_eq!(bench.input("contact-1-events"), 1);
}

/// What a master may do to it, in the time of a node.
#[derive(Debug, Clone)]
enum Act {
    Press { contact: usize, ms: u64 },
    Wait { ms: u64 },
    Poll,
    Noise(Vec<u8>),
    Reset,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..CONTACTS, 25_u64..120).prop_map(|(contact, ms)| Act::Press { contact, ms }),
        2 => (1_u64..300).prop_map(|ms| Act::Wait { ms }),
        3 => Just(Act::Poll),
        2 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Act::Noise),
        1 => Just(Act::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Presses between polls, noise on the line, resets that keep memory: every press is counted once.
    #[test]
    fn every_press_is_counted_once(acts in prop::collection::vec(act(), 1..40)) {
        let mut bench = bench();
        bench.run(Duration::millis(30));
        let mut pressed = [0_u16; CONTACTS];
        let mut log = String::new();
        for act in acts {
            log += &format!("{act:?} ");
            match act {
                Act::Press { contact, ms } => {
                    bench.contacts[contact].set(false);
                    bench.run(Duration::millis(ms));
                    bench.contacts[contact].set(true);
                    bench.run(Duration::millis(25));
                    pressed[contact] += 1;
                }
                Act::Wait { ms } => { bench.run(Duration::millis(ms)); }
                Act::Poll => { bench.read(Table::Input, 0, 23); }
                Act::Noise(bytes) => {
                    bench.uart.with(|uart| uart.received.extend(bytes.into_iter().map(Ok)));
                    bench.run(Duration::millis(10));
                    bench.uart.with(|uart| uart.sent.clear());
                }
                Act::Reset => {
                    bench = start(&bench.flash, Some(bench.device.kept()));
                    bench.run(Duration::millis(30));
                }
            }
        }
        bench.run(Duration::millis(10));
        let counted = bench.read(Table::Input, address("contact-1-events"), CONTACTS as u16);
        prop_assert_eq!(counted, Some(pressed.to_vec()), "{}", log);
    }
}
