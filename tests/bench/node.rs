//! The sensor node: the size of its image, and what an answer costs on the emulated Cortex-M3.
//!
//! Time in the emulator is instructions: 64 ns each, about those of a Cortex-M3 at 12.5 MHz.

use std::{process::Command, thread, time::Duration};

use gardu_node::registers::address;

use crate::{
    support::{
        node::{NS_AN_INSTRUCTION, Node},
        until,
        wire::Wire,
    },
    table::Table,
};

/// What one poll of the gateway reads.
const POLLED: u16 = address("stack-free") + 1;
const POLLS: u32 = 200;
/// 3.5 characters of 11 bits at 9600 baud, which a new node is set to.
const SILENCE: Duration = Duration::from_micros(4_011);
/// What its memory may hold in all.
const RAM: u64 = 4_096;
const FLASH: u64 = 32 * 1_024;

pub(crate) fn measure(table: &mut Table) {
    let (flash, static_ram, stack) = image();
    let kib = |bytes: u64| format!("{:.1} KiB", bytes as f64 / 1_024.0);
    table.target("node: flash of the Cortex-M3 image", &kib(flash), "32 KiB", flash <= FLASH);
    let node = Node::start();
    let wire = Wire::between(&[&node]);
    let mut master = wire.master();
    for _ in 0..POLLS {
        master.inputs(1, 0, POLLED);
    }
    until("the node has looked at its stack", || master.inputs(1, address("stack-free"), 1)[0] > 0);
    let used = stack - u64::from(master.inputs(1, address("stack-free"), 1)[0]) + static_ram;
    table.target("node: static memory and deepest stack", &kib(used), "4 KiB", used <= RAM);
    let slowest = node.report().slowest.saturating_sub(SILENCE);
    table.target(
        &format!("node: answer of {POLLED} registers after the silence, slowest of {POLLS}"),
        &format!("{} µs, {} instr.", slowest.as_micros(), slowest.as_nanos() / NS_AN_INSTRUCTION),
        "2 ms",
        slowest <= Duration::from_millis(2),
    );
    let before = node.report();
    thread::sleep(Duration::from_secs(5));
    let after = node.report();
    let awake = (after.awake - before.awake).as_secs_f64() / (after.now - before.now).as_secs_f64();
    table.figure("node: awake while nobody asks, contacts each millisecond", &format!("{:.1} %", 100.0 * awake));
}

/// Flash, static memory and the stack's room in bytes, as `firmware/build` says.
fn image() -> (u64, u64, u64) {
    let build = concat!(env!("CARGO_MANIFEST_DIR"), "/../firmware/build");
    let output = Command::new(build).arg("lm3s6965").output().expect("firmware/build starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let row = said.lines().find(|line| line.starts_with("lm3s6965")).expect("a row for the board");
    let numbers: Vec<u64> = row.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [flash, _, static_ram, stack] = numbers[..] else { panic!("{row}") };
    (flash, static_ram, stack)
}
