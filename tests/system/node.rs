//! From a pin to the command center: the real firmware in an emulator, on a bus that the real gateway polls.
//!
//! Nodes here are set to 1200 baud. The emulator sends as fast as it can at any speed, but the pauses that end a frame are
//! longest then, so that a busy machine does not cut frames into pieces. The summary of each run is on standard error.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use gardu_node::registers::{Fault, Fitted, ResetCause, address};

use crate::support::{
    broker::Access,
    node::{Air, Chips, NS_AN_INSTRUCTION, Node},
    park::{Park, Plan},
    until,
    wire::{Master, Wire, framed},
};

/// 1200, as the register has it.
const BAUD: u16 = 12;
/// The default.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Of the 3840 bytes that are there: less is an overflow waiting for the next feature.
const STACK_FREE_MIN: u16 = 128;
/// What the firmware promises beyond the silence that ends a request.
const ANSWER_US: u128 = 2_000;
/// 3.5 characters at 1200 baud, in whole bits.
const SILENCE_US: u128 = 31_667;
const PRESS_MS: u16 = 50;
/// Input registers that one request reads.
const POLLED: u16 = address("stack-free") + 1;

/// A node of this unit on a wire of its own.
fn node_alone() -> (Node, Wire) {
    let node = Node::start();
    set_up(&node, &[]);
    let wire = Wire::between(&[&node]);
    (node, wire)
}

/// Sets what these tests need and the rest, with nobody else on the bus.
fn set_up(node: &Node, more: &[(&str, u16)]) {
    let wire = Wire::between(&[node]);
    let mut master = wire.master();
    apply(node, &mut master, 1, &[&[("baud", BAUD), ("fitted", 0)], more].concat());
}

/// Writes settings and keeps them, which restarts the node.
fn apply(node: &Node, master: &mut Master, unit: u8, settings: &[(&str, u16)]) {
    let settings: Vec<(u16, u16)> = settings.iter().map(|(name, value)| (address(name), *value)).collect();
    master.set(unit, &settings);
    let (starts, request) = (node.starts(), [&[6][..], &address("apply").to_be_bytes(), &[0, 1]].concat());
    while node.starts() == starts {
        // It restarts once its answer is out, which may be lost itself.
        if master.try_to_ask(unit, &request).is_some() {
            node.wait_until_started(starts + 1);
        }
    }
    // What contacts are when they are first found is no event.
    until("contacts have rested", || node.report().now > 2 * DEBOUNCE);
}

fn read(master: &mut Master, name: &str) -> u16 {
    master.inputs(1, address(name), 1)[0]
}

/// What the gateway polls: nodes by their profile, with an alarm on each contact and on each counter.
fn park(wire: &Wire, units: &[u8], poll: &str) -> Park {
    let port = wire.port;
    let mut body = format!("\n[[modbus]]\nname = \"tiang\"\nurl = \"rtu+tcp://127.0.0.1:{port}?baud=115200\"\n");
    for unit in units {
        body += &format!(
            "\n[[modbus.device]]\nname = \"node-{unit}\"\nunit = {unit}\npoll = \"{poll}\"\nprofile = \"gardu-node\"\n"
        );
    }
    for contact in 1..=8 {
        body += &format!(
            "\n[[alarm]]\nname = \"pressed\"\npoint = \"+/contact-{contact}\"\nwhen = {{ is = true }}\n\
             severity = \"critical\"\nack_required = false\n\
             \n[[alarm]]\nname = \"event\"\npoint = \"+/contact-{contact}-events\"\nwhen = {{ increments = true }}\n\
             severity = \"critical\"\nack_required = false\n"
        );
    }
    let park = Park::open_with(&Plan { access: Access::Open, command_center: "", body: &body });
    for unit in units {
        park.wait_until_good(&format!("node-{unit}/contact-1-events"));
    }
    park
}

/// Waits until the gateway has read this value.
fn wait_until_read(park: &Park, point: &str, value: u64) {
    until(&format!("{point} is {value}"), || park.wait_until_read(point, "good")["value"] == value);
}

fn raised(park: &Park, alarm: &str) -> usize {
    park.center.ledger().transitions("raised", alarm).count()
}

/// What must be so after every story, and the line that tells of it.
fn conclude(story: &str, node: &Node, wire: &Wire, unit: u8) {
    let mut master = wire.master();
    // The node looks at its stack each second.
    until("the node has looked at its stack", || master.inputs(unit, address("stack-free"), 1)[0] > 0);
    let inputs = master.inputs(unit, 0, POLLED);
    let input = |name| inputs[usize::from(address(name))];
    let presses: u32 = (1..=8).map(|contact| u32::from(inputs[contact])).sum();
    let (report, stack_free) = (node.report(), input("stack-free"));
    let answer_us = report.slowest.as_micros().saturating_sub(SILENCE_US);
    eprintln!(
        "node: {story}: {presses} presses counted, {} resets, {} frames cut or garbled, {} bytes on the bus, {} B of \
         stack free, slowest answer {answer_us} µs ({} instructions) after the silence that ends a request",
        input("resets"),
        input("bus-errors"),
        wire.carried(),
        stack_free,
        answer_us * 1_000 / NS_AN_INSTRUCTION,
    );
    assert!(answer_us <= ANSWER_US, "an answer took {answer_us} µs");
    assert!(stack_free >= STACK_FREE_MIN, "only {stack_free} bytes of stack are left");
    assert_eq!(report.undriven, 0, "bytes left the node without its direction pin");
}

#[test]
fn a_pressed_panic_button_becomes_an_event_at_the_subscriber() {
    let (node, wire) = node_alone();
    let park = park(&wire, &[1], "100ms");
    node.close(0b1);
    let event = park.center.wait_for_transition("raised", "node-1/contact-1/pressed");
    assert_eq!(event.data("severity"), "critical");
    park.center.wait_for_transition("raised", "node-1/contact-1-events/event");
    node.close(0);
    park.center.wait_for_transition("cleared", "node-1/contact-1/pressed");
    wait_until_read(&park, "node-1/contact-1-events", 1);
    assert_eq!(raised(&park, "node-1/contact-2-events/event"), 0, "nobody touched it");
    park.center.assert_complete();
    drop(park);
    conclude("a press", &node, &wire, 1);
}

/// The twin is in it: levels that are polled at the same time show few of them.
#[test]
fn a_thousand_presses_of_50_ms_between_polls_are_all_counted() {
    const TIMES: u16 = 125;
    let (node, wire) = node_alone();
    let park = park(&wire, &[1], "1s");
    for contact in 0..8 {
        // Each in its own rhythm.
        node.press(contact, TIMES, PRESS_MS, 30 + 3 * u16::from(contact));
    }
    for contact in 0..8 {
        node.wait_until_pressed(contact, 1);
    }
    let mut seen = 0;
    for contact in 1..=8 {
        wait_until_read(&park, &format!("node-1/contact-{contact}-events"), u64::from(TIMES));
        assert!(raised(&park, &format!("node-1/contact-{contact}-events/event")) > 0, "contact {contact}");
        seen += raised(&park, &format!("node-1/contact-{contact}/pressed"));
    }
    let presses = usize::from(TIMES) * 8;
    assert!(seen < presses / 2, "polled levels would have done: {seen} of {presses}");
    park.center.assert_complete();
    drop(park);
    conclude(&format!("{presses} presses of {PRESS_MS} ms, of which polled levels show {seen}"), &node, &wire, 1);
}

#[test]
fn noise_between_frames_costs_no_answer_and_makes_no_event() {
    const REQUESTS: u64 = 60;
    let (node, wire) = node_alone();
    let (mut master, mut dice) = (wire.master(), fastrand::Rng::with_seed(5));
    for _ in 0..REQUESTS {
        let noise: Vec<u8> = (0..dice.usize(1..30)).map(|_| dice.u8(..)).collect();
        wire.disturb(&noise);
        // Hears it out before it asks.
        assert_eq!(master.inputs(1, address("contact-1-events"), 8), [0; 8]);
    }
    let errors = read(&mut master, "bus-errors");
    assert!(errors > 0, "the noise was not heard");
    // The twin: noise that runs into a request leaves nothing of it.
    let request = [4, 0, 0, 0, 1];
    master.hear_out();
    assert!(
        master.hears_nothing_after(&[&[0xFF; 5][..], &framed(1, &request)].concat()),
        "an answer to a garbled frame"
    );
    assert!(read(&mut master, "bus-errors") > errors);
    let again = master.asked_again;
    conclude(&format!("noise before each of {REQUESTS} requests, {again} asked again"), &node, &wire, 1);
}

#[test]
fn a_reset_in_mid_frame_and_at_any_moment_makes_no_event_and_loses_none() {
    const RESETS: u16 = 8;
    let (node, wire) = node_alone();
    let mut master = wire.master();
    let request = framed(1, &[4, 0, 0, 0, 1]);
    let (begin, end) = request.split_at(5);
    let heard = node.report().heard;
    master.say(begin);
    until("the node has heard half of it", || node.report().heard - heard == 5);
    node.panic();
    assert!(master.hears_nothing_after(end), "an answer to half a request");
    drop(master);
    let park = park(&wire, &[1], "100ms");
    node.close(0b1);
    park.center.wait_for_transition("raised", "node-1/contact-1/pressed");
    for resets in 1..=RESETS {
        node.panic();
        // Counted since it was set up, which was the first.
        wait_until_read(&park, "node-1/resets", u64::from(resets) + 2);
    }
    node.press(1, 1, PRESS_MS, PRESS_MS);
    park.center.wait_for_transition("raised", "node-1/contact-2-events/event");
    wait_until_read(&park, "node-1/contact-1-events", 1);
    assert_eq!(raised(&park, "node-1/contact-1/pressed"), 1, "the button was pressed once");
    assert_eq!(raised(&park, "node-1/contact-1-events/event"), 1, "and so it was counted");
    park.center.assert_complete();
    drop(park);
    conclude(&format!("{} resets while it was polled", RESETS + 1), &node, &wire, 1);
}

#[test]
fn a_missing_sensor_is_a_fault_and_stops_nothing() {
    // 1:11 of 12.1 V.
    let supply = [0, 0, 0, 1_100];
    let air = Some(Air { temperature_c: 27.54, humidity_percent: 81.0 });
    let fitted = Fitted::Climate.bit() | Fitted::Supply.bit();
    let node = Node::start();
    set_up(&node, &[("fitted", fitted)]);
    let wire = Wire::between(&[&node]);
    let mut master = wire.master();
    let mut wait = |what: &str, so: &dyn Fn(u16, u16, u16) -> bool| {
        until(what, || {
            let inputs = master.inputs(1, 0, POLLED);
            let [faults, temperature, supply] =
                ["faults", "temperature", "supply"].map(|name| inputs[usize::from(address(name))]);
            so(faults, temperature, supply)
        });
        master.asked_again
    };
    let (no_climate, no_converter) = (Fault::Climate.bit(), Fault::Converter.bit());
    wait("both are missed", &|faults, _, _| faults == no_climate | no_converter);
    node.fit(Chips::new(air, Some(supply)));
    let good = |faults, temperature, supply: u16| faults == 0 && temperature == 275 && supply.abs_diff(12_100) < 20;
    wait("both are there", &good);
    node.fit(Chips::new(None, Some(supply)));
    // i16::MIN stands for no value.
    wait("the climate sensor is missed", &|faults, temperature, supply| {
        faults == no_climate && temperature == 0x8000 && supply.abs_diff(12_100) < 20
    });
    node.press(0, 10, PRESS_MS, PRESS_MS);
    node.wait_until_pressed(0, 1);
    node.fit(Chips::new(air, None));
    wait("the converter is missed", &|faults, temperature, _| faults == no_converter && temperature == 275);
    node.fit(Chips::new(air, Some(supply)));
    wait("both are back", &good);
    assert_eq!(master.inputs(1, address("contact-1-events"), 1), [10], "presses while a sensor was missing");
    conclude("sensors taken away and put back", &node, &wire, 1);
}

#[test]
fn settings_that_were_applied_survive_resets_and_what_was_not_does_not() {
    let (node, wire) = node_alone();
    let mut master = wire.master();
    apply(&node, &mut master, 1, &[("unit", 17), ("debounce-1", 35)]);
    master.set(17, &[(address("debounce-1"), 9_999)]);
    node.panic();
    assert_eq!(master.holdings(17, address("debounce-1"), 1), [35]);
    assert_eq!(master.holdings(17, address("baud"), 1), [BAUD]);
    assert_eq!(master.try_to_ask(1, &[4, 0, 0, 0, 1]), None, "it is unit 17 now");
    conclude("settings over resets", &node, &wire, 17);
}

#[test]
fn the_watchdog_ends_a_hang_and_a_panic_tells_where_it_was() {
    let (node, wire) = node_alone();
    let mut master = wire.master();
    assert_eq!(read(&mut master, "reset-cause"), ResetCause::Software as u16, "settings were applied");
    node.press(0, 3, PRESS_MS, PRESS_MS);
    node.wait_until_pressed(0, 1);
    node.hang();
    assert_eq!(read(&mut master, "reset-cause"), ResetCause::Watchdog as u16);
    node.panic();
    assert_eq!(read(&mut master, "reset-cause"), ResetCause::Panic as u16);
    assert_eq!(read(&mut master, "faults") & Fault::Panicked.bit(), Fault::Panicked.bit());
    // Read device identification, one object: where it panicked.
    let answer = master.ask(1, &[0x2B, 0x0E, 0x04, 0x80]);
    let place = String::from_utf8_lossy(&answer[9..]).into_owned();
    assert!(place.contains("lm3s6965/bench.rs:"), "{place}");
    assert_eq!(read(&mut master, "contact-1-events"), 3, "counters go on");
    apply(&node, &mut master, 1, &[("debounce-1", 20)]);
    assert_eq!(read(&mut master, "faults") & Fault::Panicked.bit(), 0, "it is told once");
    conclude(&format!("hang and panic ({place})"), &node, &wire, 1);
}

#[test]
fn two_nodes_share_a_bus_and_collisions_invent_nothing() {
    const COLLISIONS: u32 = 8;
    let nodes = [1, 2].map(|unit| {
        let node = Node::start();
        set_up(&node, &[("unit", unit)]);
        node
    });
    let wire = Wire::between(&nodes.each_ref());
    let park = park(&wire, &[1, 2], "200ms");
    for round in 0..COLLISIONS {
        wire.collide(1 + round % 5);
        let carried = wire.carried();
        until("the next polls", || wire.carried() > carried + 100);
    }
    nodes[0].press(0, 20, PRESS_MS, PRESS_MS);
    nodes[1].press(2, 30, PRESS_MS, PRESS_MS);
    nodes[0].wait_until_pressed(0, 1);
    nodes[1].wait_until_pressed(2, 1);
    wait_until_read(&park, "node-1/contact-1-events", 20);
    wait_until_read(&park, "node-2/contact-3-events", 30);
    for (unit, contact) in [(1, 1), (2, 3)] {
        assert!(raised(&park, &format!("node-{unit}/contact-{contact}-events/event")) > 0);
    }
    for (unit, contact) in [(1, 3), (2, 1), (1, 8), (2, 8)] {
        wait_until_read(&park, &format!("node-{unit}/contact-{contact}-events"), 0);
        assert_eq!(raised(&park, &format!("node-{unit}/contact-{contact}-events/event")), 0, "{unit}/{contact}");
        assert_eq!(raised(&park, &format!("node-{unit}/contact-{contact}/pressed")), 0, "{unit}/{contact}");
    }
    park.center.assert_complete();
    drop(park);
    for (node, unit) in nodes.iter().zip([1, 2]) {
        conclude(&format!("two on a bus, {COLLISIONS} collisions, unit {unit}"), node, &wire, unit);
    }
}

/// A serial port for masters that know nothing else; it goes when it is dropped.
struct SerialPort(Child);

impl SerialPort {
    fn at(path: &Path, wire: &Wire) -> Self {
        let ends = [format!("pty,raw,echo=0,link={}", path.display()), format!("tcp:127.0.0.1:{},nodelay", wire.port)];
        let socat = Command::new("socat").args(ends).stdin(Stdio::null()).spawn();
        let port = Self(socat.expect("socat makes the serial lines of these tests: apt-get install socat"));
        until("the serial port", || path.exists());
        port
    }
}

impl Drop for SerialPort {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Closes contacts 1 and 3.
fn close_two(node: &Node, wire: &Wire) {
    node.close(0b101);
    let mut master = wire.master();
    until("two contacts are closed", || read(&mut master, "contacts") == 0b101);
}

#[test]
fn mbpoll_reads_and_writes_it() {
    let (node, wire) = node_alone();
    let folder = tempfile::tempdir().expect("a folder for the ports");
    close_two(&node, &wire);
    let mbpoll = |arguments: &[&str], values: &[&str]| {
        let mut said = String::new();
        // More than once for a machine that is too busy to carry a frame in one piece; with a port of its own, in which no
        // late answer lies.
        for attempt in 0..4 {
            let path = folder.path().join(format!("{}-{attempt}", arguments.concat()));
            let _port = SerialPort::at(&path, &wire);
            let command = Command::new("mbpoll")
                .args(["-m", "rtu", "-b", "9600", "-P", "none", "-o", "2", "-0", "-1", "-a", "1"])
                .args(arguments)
                .arg(&path)
                .args(values)
                .output();
            let output = command.expect("mbpoll is a master of these tests: apt-get install mbpoll");
            said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            // Exceptions are "failed: Illegal …" to it.
            if !said.contains("failed") || said.contains("Illegal") {
                break;
            }
        }
        said
    };
    let contacts = mbpoll(&["-t", "1", "-r", "0", "-c", "8"], &[]);
    assert!(
        contacts.contains("[0]: \t1") && contacts.contains("[1]: \t0") && contacts.contains("[2]: \t1"),
        "{contacts}"
    );
    let inputs = mbpoll(&["-t", "3", "-r", "0", "-c", "23"], &[]);
    assert!(inputs.contains("[0]: \t5") && inputs.contains("[1]: \t1"), "{inputs}");
    let written = mbpoll(&["-t", "0", "-r", "0"], &["1"]);
    assert!(written.contains("Written 1 references"), "{written}");
    assert_eq!(node.report().outputs & 1, 1, "the relay is on");
    let illegal = mbpoll(&["-t", "3", "-r", "5000", "-c", "1"], &[]);
    assert!(illegal.contains("Illegal data address"), "{illegal}");
    conclude("mbpoll", &node, &wire, 1);
}

#[test]
fn pymodbus_reads_and_writes_it() {
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/pymodbus/bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/system/support/foreign_master.py");
    assert!(
        fs::exists(python).is_ok_and(|there| there),
        "pymodbus is missing: run tests/run firmware first ({python})"
    );
    let (node, wire) = node_alone();
    close_two(&node, &wire);
    let output = Command::new(python).arg(script).arg(wire.port.to_string()).output().expect("python starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(node.report().outputs & 0b11, 0b11, "both relays are on");
    conclude(&format!("pymodbus, {}", said.trim()), &node, &wire, 1);
}
