//! What the gateway costs and how fast it is, each figure beside its target in one table.
//!
//! Real mosquitto, real Modbus TCP, the release binary, everything on one machine. It measures and never judges by its
//! exit code: a busy machine is not a fault of the gateway. Names of measurements as arguments ask for only those.

#![expect(clippy::disallowed_methods, reason = "a measurement reads clocks and has threads of its own")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is the purpose")]

mod back;
#[path = "../contract/mod.rs"]
#[allow(unreachable_pub, reason = "shared with the system tests")]
mod contract;
mod drain;
mod faults;
mod latency;
mod load;
mod node;
mod outbox;
mod process;
mod subscriber;
#[path = "../system/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the system tests")]
mod support;
mod table;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use self::{support::gateway::BINARY, table::Table};

/// Fills its rows.
type Measure = fn(&mut Table);

/// By the names that may be given as arguments.
const MEASUREMENTS: [(&str, Measure); 8] = [
    ("latency", latency::measure),
    ("load", load::measure),
    ("drain", drain::measure),
    ("back", back::measure),
    ("outbox", outbox::measure),
    ("size", size),
    ("node", node::measure),
    ("faults", faults::measure),
];

/// Alarm events that are not confirmed, among the gateway's metrics.
const WAITING: &str = "gardu_outbox_records{lane=\"a\"}";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, child @ ..] = arguments.as_slice()
        && flag == outbox::CHILD
    {
        return outbox::child(child);
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` runs every target once; measuring is asked for with `cargo bench`.
        return eprintln!("not measured: use tests/bench/run");
    }
    if cfg!(debug_assertions) {
        eprintln!("figures come from the release build only: use tests/bench/run");
        std::process::exit(1);
    }
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|argument| !argument.starts_with('-')).collect();
    let (mut table, mut measured_all) = (Table::default(), true);
    for (name, measure) in MEASUREMENTS {
        if names.is_empty() || names.contains(&name) {
            eprintln!("measuring {name} …");
            if catch_unwind(AssertUnwindSafe(|| measure(&mut table))).is_err() {
                table.figure(name, "could not be measured");
                measured_all = false;
            }
        }
    }
    table.print();
    if !measured_all {
        std::process::exit(1);
    }
}

fn size(table: &mut Table) {
    let size = mib(fs::metadata(BINARY).expect("the binary was built").len());
    table.target("stripped release binary", &format!("{size:.1} MiB"), "12 MiB", size <= 12.0);
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[(values.len() * percent / 100).min(values.len() - 1)]
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
