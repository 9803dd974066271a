//! What the gateway costs: latency, memory, processor, size, each beside its target in one table.
//!
//! Real mosquitto, real Modbus TCP, the release binary, everything on one machine. It measures and never judges by its
//! exit code: a busy machine is not a fault of the gateway.

#![expect(clippy::disallowed_methods, reason = "a measurement reads clocks and has threads of its own")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the table is the purpose")]

#[path = "../contract/mod.rs"]
#[allow(unreachable_pub, reason = "shared with the system tests")]
mod contract;
#[path = "../system/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the system tests")]
mod support;

use std::{
    fs::{self, File},
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use support::{
    gateway::BINARY,
    park::{Park, meter_address, meters},
};

/// Enough that the 99th percentile is not one unlucky change.
const CHANGES: usize = 260;
/// One sync of this size is what a commit cannot do without.
const SYNC_BYTES: usize = 4 * 1024;
/// 10 units of 100 points in groups of ten.
const UNITS: u8 = 10;
const POINTS_PER_UNIT: u16 = 100;
/// Register changes a second, in steps of a tenth of a second.
const CHANGES_PER_S: u64 = 500;
/// The first polls, the first connection and the allocator's first growth are not the steady state.
const WARM_UP: Duration = Duration::from_secs(15);
const WINDOW: Duration = Duration::from_secs(60);
/// Unit of the times in `/proc/PID/stat`: USER_HZ, 100 on every Linux architecture this runs on.
const TICKS_PER_S: f64 = 100.0;

/// Polled every 100 ms; its alarm comes and goes by itself.
const DOOR: &str = r#"
[[modbus]]
name = "cabinet"
url = "tcp://127.0.0.1:{plc}"

[[modbus.device]]
name = "panel"
unit = 1
poll = "100ms"

[[modbus.device.point]]
name = "door"
register = "discrete:0"

[[alarm]]
name = "open"
point = "panel/door"
when = { is = true }
severity = "high"
ack_required = false
"#;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` runs every target once; measuring is asked for with `cargo bench`.
        return eprintln!("not measured: use tests/bench/run");
    }
    if cfg!(debug_assertions) {
        eprintln!("figures come from the release build only: use tests/bench/run");
        std::process::exit(1);
    }
    let latency = latency();
    let load = load();
    let size = mib(fs::metadata(BINARY).expect("the binary was built").len());
    let beyond = latency.p50 - latency.sync;
    println!("{:<58} {:>26} {:>9}  verdict", "", "measured", "target");
    row(
        &format!("served to delivered, {CHANGES} changes, p50 / p95 / p99"),
        &format!("{:.2} / {:.2} / {:.2} ms", latency.p50, latency.p95, latency.p99),
        None,
    );
    row("one fdatasync of 4 KiB on the same disk, median", &format!("{:.2} ms", latency.sync), None);
    row("p50 beyond one fdatasync", &format!("{beyond:.2} ms"), Some(("2 ms", beyond <= 2.0)));
    row(
        "resident, 1,000 points at 1 s, 500 changes/s (peak)",
        &format!("{:.1} ({:.1}) MiB", load.resident, load.peak),
        Some(("16 MiB", load.resident <= 16.0)),
    );
    row(
        "processor a minute, the same",
        &format!("{:.2} s", load.cpu_s_per_min),
        Some(("1.3 s", load.cpu_s_per_min <= 1.3)),
    );
    row("changes delivered a second, the same", &format!("{:.0}", load.delivered_per_s), None);
    row("Modbus requests a second, the same", &format!("{:.0}", load.requests_per_s), None);
    row("stripped release binary", &format!("{size:.1} MiB"), Some(("12 MiB", size <= 12.0)));
}

fn row(what: &str, measured: &str, target: Option<(&str, bool)>) {
    let (target, verdict) = match target {
        Some((target, true)) => (target, "meets"),
        Some((target, false)) => (target, "MISSES"),
        None => ("", ""),
    };
    println!("{what:<58} {measured:>26} {target:>9}  {verdict}");
}

/// Milliseconds.
struct Latency {
    p50: f64,
    p95: f64,
    p99: f64,
    sync: f64,
}

/// From the moment the PLC first serves a changed register to the moment the command center has the event.
fn latency() -> Latency {
    eprintln!("measuring latency …");
    let park = Park::open(DOOR);
    park.wait_until_good("panel/door");
    // Where the gateway's store lies as well: the machine's folder for temporary files.
    let dir = tempfile::tempdir().expect("a folder");
    let mut file = File::options().create(true).append(true).open(dir.path().join("sync")).expect("a file");
    let (mut delays, mut syncs) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        let kind = if n.is_multiple_of(2) { "raised" } else { "cleared" };
        park.plc.set_and_watch(1, "discrete:0", u16::from(n.is_multiple_of(2)));
        let delivered = park.center.wait_for("the change", |ledger| {
            ledger.transitions(kind, "panel/door/open").nth(n / 2).map(|event| event.at)
        });
        let served = park.plc.served_at(1, "discrete:0").expect("what is delivered was read");
        delays.push(ms(delivered - served));
        let began = Instant::now();
        file.write_all(&[0x55; SYNC_BYTES]).and_then(|()| file.sync_data()).expect("the disk takes it");
        syncs.push(ms(began.elapsed()));
    }
    park.center.assert_complete();
    let [p50, p95, p99] = [50, 95, 99].map(|percent| percentile(&mut delays, percent));
    Latency { p50, p95, p99, sync: percentile(&mut syncs, 50) }
}

struct Load {
    resident: f64,
    peak: f64,
    cpu_s_per_min: f64,
    delivered_per_s: f64,
    requests_per_s: f64,
}

/// A big park, changing all the time.
fn load() -> Load {
    eprintln!("measuring memory and processor, {} s …", (WARM_UP + WINDOW).as_secs());
    let park = Park::open(&meters("1s", POINTS_PER_UNIT, UNITS));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| turn(&park, &over));
        thread::sleep(WARM_UP);
        let (began, cpu, delivered, requests) = (Instant::now(), cpu_s(&park), delivered(&park), park.plc.requests());
        thread::sleep(WINDOW);
        let seconds = began.elapsed().as_secs_f64();
        let load = Load {
            resident: memory(&park, "VmRSS:"),
            peak: memory(&park, "VmHWM:"),
            cpu_s_per_min: (cpu_s(&park) - cpu) * 60.0 / seconds,
            delivered_per_s: (self::delivered(&park) - delivered) as f64 / seconds,
            requests_per_s: (park.plc.requests() - requests) as f64 / seconds,
        };
        over.store(true, Ordering::Relaxed);
        load
    })
}

/// Changes half of all registers every second, each in its turn.
fn turn(park: &Park, over: &AtomicBool) {
    let (began, all) = (Instant::now(), u64::from(UNITS) * u64::from(POINTS_PER_UNIT));
    let mut changed = 0;
    while !over.load(Ordering::Relaxed) {
        let due = began.elapsed().as_millis() as u64 * CHANGES_PER_S / 1000;
        while changed < due {
            let which = changed % all;
            let unit = u8::try_from(which / u64::from(POINTS_PER_UNIT)).expect("below the number of units") + 1;
            let point = u16::try_from(which % u64::from(POINTS_PER_UNIT)).expect("below the number of points");
            let value = u16::try_from(changed / all % 60_000).expect("below the largest word") + 1;
            park.plc.set(unit, &format!("input:{}", meter_address(point)), value);
            changed += 1;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// Readings that have arrived.
fn delivered(park: &Park) -> usize {
    let ledger = park.center.ledger();
    ledger.events.iter().filter_map(|event| event.data("readings").as_array()).map(Vec::len).sum()
}

/// Processor seconds of the daemon so far, in user and kernel.
fn cpu_s(park: &Park) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", park.gateway.pid())).expect("it runs");
    // Fields 14 and 15 of proc(5); counted after the name, which may hold anything and is field 2.
    let fields: Vec<&str> = stat.rsplit_once(')').expect("the name is in brackets").1.split_whitespace().collect();
    let ticks: f64 = [11, 12].map(|i| fields[i].parse::<f64>().expect("a number")).iter().sum();
    ticks / TICKS_PER_S
}

fn memory(park: &Park, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", park.gateway.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("proc(5) has it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    mib(kib * 1024)
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
