//! A big park, changing all the time: what it takes of memory and processor, without TLS and with it.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    process,
    support::{
        broker::Access,
        park::{Park, Plan, meter_address, meters},
    },
    table::Table,
};

/// 10 units of 100 points in groups of ten.
const UNITS: u8 = 10;
const POINTS_PER_UNIT: u16 = 100;
/// Register changes a second, in steps of a tenth of a second.
const CHANGES_PER_S: u64 = 500;
/// The first polls, the first connection and the allocator's first growth are not the steady state.
const WARM_UP: Duration = Duration::from_secs(15);
const WINDOW: Duration = Duration::from_secs(40);

struct Load {
    resident: f64,
    peak: f64,
    cpu_s_per_min: f64,
    delivered_per_s: f64,
    requests_per_s: f64,
}

pub(crate) fn measure(table: &mut Table) {
    for (access, wire) in
        [(Access::Open, "1,000 points at 1 s, 500 changes/s"), (Access::Certificates, "the same, TLS")]
    {
        let Load { resident, peak, cpu_s_per_min, delivered_per_s, requests_per_s } = under(access);
        table.target(
            &format!("resident (peak), {wire}"),
            &format!("{resident:.1} ({peak:.1}) MiB"),
            "16 MiB",
            resident <= 16.0,
        );
        let what = format!("processor a minute, {wire}");
        table.target(&what, &format!("{cpu_s_per_min:.2} s"), "1.3 s", cpu_s_per_min <= 1.3);
        let what = format!("delivered; Modbus requests a second, {wire}");
        table.figure(&what, &format!("{delivered_per_s:.0}; {requests_per_s:.0}"));
    }
}

fn under(access: Access) -> Load {
    let body = meters("1s", POINTS_PER_UNIT, UNITS);
    let park = Park::open_with(&Plan { access, command_center: "", body: &body });
    let pid = park.gateway.pid();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| turn(&park, &over));
        thread::sleep(WARM_UP);
        let (began, cpu, delivered, requests) =
            (Instant::now(), process::cpu_s(pid), delivered(&park), park.plc.requests());
        thread::sleep(WINDOW);
        let seconds = began.elapsed().as_secs_f64();
        let load = Load {
            resident: process::resident_mib(pid),
            peak: process::peak_mib(pid),
            cpu_s_per_min: (process::cpu_s(pid) - cpu) * 60.0 / seconds,
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
