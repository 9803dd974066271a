//! From the moment the PLC first serves a changed register to the moment the command center has the event.

use std::{fs::File, io::Write as _, time::Instant};

use crate::{
    ms, percentile,
    support::{park::Park, toml},
    table::Table,
};

/// Enough that the 99th percentile is not one unlucky change.
const CHANGES: usize = 260;
/// One sync of this size is what a commit cannot do without.
const SYNC_BYTES: usize = 4 * 1024;

/// Polled every 100 ms; its alarm comes and goes by itself.
fn door() -> String {
    let alarm = toml::alarm("open", "panel/door", "{ is = true }", "high") + "ack_required = false\n";
    toml::bus("cabinet") + &toml::device("panel", 1, "100ms") + &toml::point("door", "discrete:0") + &alarm
}

pub(crate) fn measure(table: &mut Table) {
    let park = Park::open(&door());
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
    let sync = percentile(&mut syncs, 50);
    let beyond = p50 - sync;
    let what = format!("served to delivered, {CHANGES} changes, p50 / p95 / p99");
    table.figure(&what, &format!("{p50:.2} / {p95:.2} / {p99:.2} ms"));
    table.figure("one fdatasync of 4 KiB on the same disk, median", &format!("{sync:.2} ms"));
    table.target("p50 beyond one fdatasync", &format!("{beyond:.2} ms"), "2 ms", beyond <= 2.0);
}
