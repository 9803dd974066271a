//! The sensor node's profile is what its map says, byte for byte.

use std::fmt::Write as _;

use gardu_node::{
    registers::{self, CONTACTS, Entry, Fault, MAP, MAP_VERSION, OUTPUTS, ResetCause, Table, Type},
    settings::Settings,
};

use super::*;
use crate::{
    config::{Parity, SerialLine},
    source::modbus::{plan, timing::Medium},
};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/profiles/gardu-node.toml");
/// Set to write the file instead of failing.
const REWRITE: &str = "GARDU_REWRITE_PROFILE";

const HEAD: &str = r#"# Node sensor Gardu. Dibuat dari firmware/src/registers.rs; perubahan di sini ditolak oleh tesnya.
# The sensor node of Gardu. Made from firmware/src/registers.rs; its test refuses what is changed here.
#
# Satu permintaan membaca semuanya. Pencacah dan kesehatan tidak dikirim sebagai telemetri (report = "off"), tetapi alarm
# dapat memakainya. Identitas (input 256 ke atas), coil, dan setelan (holding) tidak dibaca berkala.
# One request reads all of it. Counters and health are no telemetry (report = "off"), but alarms may watch them. Identity
# (input 256 and up), coils and settings (holding) are not polled.
"#;

#[test]
fn the_nodes_profile_is_its_map() {
    let expected = profile();
    if std::env::var_os(REWRITE).is_some() {
        fs::write(PATH, &expected).expect("the profile can be written");
    }
    let found = fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        found == expected,
        "config/profiles/gardu-node.toml is not what firmware/src/registers.rs says; write it anew: \
         {REWRITE}=1 cargo test --locked --workspace --lib the_nodes_profile_is_its_map"
    );
}

#[test]
fn one_request_reads_all_that_the_node_is_polled_for() {
    let device = &device("profile = 'gardu-node'");
    let line = SerialLine { baud: 9_600, parity: Parity::None, stop_bits: 1 };
    for medium in [Medium::Tcp, Medium::Serial(line), Medium::Converter(line)] {
        let requests = plan(device, medium);
        let [request] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!(request.points.len(), device.points.len());
        for entry in polled() {
            let read = u32::from(request.address)..u32::from(request.address) + u32::from(request.count);
            assert!(read.contains(&entry.address.into()) && u32::from(entry.end()) <= read.end, "{}", entry.name);
        }
    }
}

/// The inputs from 0 on without a gap; identity lies far behind.
fn polled() -> Vec<&'static Entry> {
    let mut next = 0;
    let is_polled = |entry: &&Entry| {
        let is_next = entry.address == next;
        next = entry.end();
        is_next
    };
    MAP.iter().filter(|entry| entry.table == Table::Input).take_while(is_polled).collect()
}

fn profile() -> String {
    let mut out = HEAD.to_owned();
    let new = Settings::default();
    let parity = match new.parity() {
        registers::Parity::None => "none",
        registers::Parity::Even => "even",
        registers::Parity::Odd => "odd",
    };
    let (baud, stop_bits) = (new.baud(), new.stop_bits());
    write!(
        out,
        r#"
[profile]
version = {MAP_VERSION}
title = {{ id = "Node sensor Gardu", en = "Gardu sensor node" }}
source = "firmware/src/registers.rs"
serial = {{ baud = {baud}, parity = "{parity}", stop = {stop_bits} }}
"#
    )
    .expect("writing to a string cannot fail");
    for entry in polled() {
        match entry.name {
            "contacts" | "outputs" => {
                writeln!(out, "\n# {}", entry.meaning).expect("writing to a string cannot fail");
                let (name, count) = if entry.name == "contacts" { ("contact", CONTACTS) } else { ("output", OUTPUTS) };
                bits(&mut out, entry, (1..=count).map(|n| format!("{name}-{n}")), "");
            }
            "faults" => {
                value(&mut out, entry);
                bits(&mut out, entry, Fault::ALL.map(|fault| fault.name().to_owned()), "report = \"off\"\n");
            }
            _ => value(&mut out, entry),
        }
    }
    out
}

/// A point for each bit of a register.
fn bits(out: &mut String, entry: &Entry, names: impl IntoIterator<Item = String>, more: &str) {
    for (bit, name) in names.into_iter().enumerate() {
        let Entry { address, .. } = entry;
        let text = format!("\n[[point]]\nname = \"{name}\"\nregister = \"input:{address}\"\nbit = {bit}\n{more}");
        out.push_str(&text);
    }
}

/// A point for a number.
fn value(out: &mut String, entry: &Entry) {
    let Entry { address, name, unit, exponent, without, .. } = entry;
    let type_ = match entry.type_ {
        Type::U16 => "u16",
        Type::I16 => "i16",
        Type::U32 => "u32",
        Type::Bool | Type::U64 => panic!("{name} is polled, but the profile has no such type"),
    };
    let mut text = format!(
        "\n# {}\n[[point]]\nname = \"{name}\"\nregister = \"input:{address}\"\ntype = \"{type_}\"\n",
        meaning(entry)
    );
    if *exponent != 0 {
        let decimals = usize::from(exponent.unsigned_abs());
        assert!(*exponent < 0, "{name} is never polled in tens");
        let scale = format!("0.{}1", "0".repeat(decimals - 1));
        text += &format!("scale = {scale}\ndecimals = {decimals}\n");
    }
    if !unit.is_empty() {
        text += &format!("unit = \"{unit}\"\n");
    }
    if let Some(without) = without {
        text += &format!("invalid = [{without}]\n");
    }
    if unit.is_empty() && *name != "faults" || matches!(*name, "uptime" | "stack-free") {
        text += "report = \"off\"\n";
    }
    out.push_str(&text);
}

/// What it says, for a reader who has not the sources.
fn meaning(entry: &Entry) -> String {
    let causes = [
        (ResetCause::Unknown, "unknown"),
        (ResetCause::PowerOn, "power on"),
        (ResetCause::Watchdog, "watchdog"),
        (ResetCause::BrownOut, "brown-out"),
        (ResetCause::Software, "software"),
        (ResetCause::Button, "button"),
        (ResetCause::Panic, "panic"),
    ];
    let causes: Vec<String> = causes.iter().map(|(cause, said)| format!("{} {said}", *cause as u16)).collect();
    match entry.name {
        "faults" => "standing faults, one bit each, as below".to_owned(),
        "reset-cause" => format!("why it started last: {}", causes.join(", ")),
        _ => entry.meaning.to_owned(),
    }
}
