//! A million events wait: what that costs the real daemon of memory and time, beside one that has a single event.
//!
//! Three gateways with a store of their own, a real mosquitto. The stores are filled through the store itself, as an
//! afternoon would be too short otherwise, and filled up again before each round; the page cache is warm. The daemon is
//! killed at the end of each round, as a power cut would, and starts twice in each: without a broker, for its resident
//! memory (the idle figure is that of the gateway with one event), and with a broker and a subscriber that were there
//! before it, for the rest. The first delivery is timed from the start of the process to the subscriber: the program's
//! own start, the configuration, the opening of the store and the way to the broker are all in it.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{filled::Outbox, folder};
use crate::{
    ms, percentile, process,
    subscriber::Subscriber,
    support::{
        broker::Broker,
        gateway::Gateway,
        park::{CAMERAS, ID},
    },
    table::Table,
};

const ROUNDS: usize = 9;
const MILLION: u64 = 1_000_000;
/// A million events take 0.7 GiB on the disk; a smaller quota would be measured giving them up.
const QUOTA: &str = "1536MiB";
const FEW: u64 = 50_000;
/// Of those that go out in a round the rate is taken of so many, after the first thousand: connecting is not draining.
const TIMED: usize = 20_000;
const WARM_UP: usize = 1_000;
/// The allocator and the first attempts to connect have come to rest.
const AT_REST: Duration = Duration::from_millis(700);

const RESIDENT_MORE_MAX_MIB: f64 = 8.0;
const DRAINING_MORE_MAX_MIB: f64 = 32.0;
const FIRST_MAX_MS: f64 = 300.0;
const RATE_RATIO_MIN: f64 = 0.75;

/// A gateway with so many events waiting, and what was measured of it.
struct Case {
    waiting: u64,
    gateway: Gateway,
    store: TempDir,
    resident_mib: Vec<f64>,
    peak_mib: Vec<f64>,
    ready_ms: Vec<f64>,
    first_ms: Vec<f64>,
    rates: Vec<f64>,
}

pub(super) fn measure(table: &mut Table) {
    let mut broker = Broker::start();
    let mut cases = [1, FEW, MILLION].map(|waiting| Case::new(waiting, broker.port));
    for round in 0..ROUNDS {
        broker.kill9();
        for case in &mut cases {
            case.fill();
            case.rest();
        }
        for case in &mut cases {
            // What a killed gateway had on the way is none of the next one's.
            broker.forget();
            broker.restart();
            case.drain(&broker);
            broker.kill9();
        }
        let rates: Vec<_> =
            cases.iter().filter_map(|case| case.rates.last()).map(|rate| format!("{rate:.0}/s")).collect();
        eprintln!("  backlog, round {}: {}", round + 1, rates.join(", "));
    }
    let [one, few, million] = &mut cases;
    let mut ratios: Vec<f64> = million.rates.iter().zip(&few.rates).map(|(million, few)| million / few).collect();
    let median = |values: &mut Vec<f64>| percentile(values, 50);
    let idle = median(&mut one.resident_mib);
    for (what, values, more_max) in [
        ("resident after start, a million waiting", &mut million.resident_mib, RESIDENT_MORE_MAX_MIB),
        ("peak while draining, a million waiting", &mut million.peak_mib, DRAINING_MORE_MAX_MIB),
    ] {
        let more = median(values) - idle;
        let measured = format!("{idle:.1} + {more:.1} MiB");
        table.target(&format!("{what} (idle + …)"), &measured, &format!("+ {more_max} MiB"), more <= more_max);
    }
    let first = median(&mut million.first_ms);
    let meets = first <= FIRST_MAX_MS;
    table.target("process start to first delivery, a million waiting", &format!("{first:.0} ms"), "300 ms", meets);
    let first = median(&mut one.first_ms);
    let ready = (median(&mut one.ready_ms), median(&mut million.ready_ms));
    table.figure("the same with one waiting", &format!("{first:.0} ms"));
    table.figure("start to ready, one; a million waiting", &format!("{:.0}; {:.0} ms", ready.0, ready.1));
    let ratio = median(&mut ratios);
    let meets = ratio >= RATE_RATIO_MIN;
    let what = "drain rate with a million waiting beside 50,000";
    table.target(what, &format!("{ratio:.2}"), &format!("{RATE_RATIO_MIN}"), meets);
    let rates = (median(&mut million.rates), median(&mut few.rates));
    table.figure("the same, events a second", &format!("{:.0}; {:.0}", rates.0, rates.1));
}

impl Case {
    fn new(waiting: u64, broker: u16) -> Self {
        let store = folder();
        let gateway = Gateway::configured(&format!(
            "[gateway]\nid = \"{ID}\"\nlanguage = \"en\"\n\n[command_center]\nurls = [\"mqtt://127.0.0.1:{broker}\"]\n\n\
             [outbox]\npath = \"{}\"\nmax_size = \"{QUOTA}\"\n\n[http]\nlisten = \"127.0.0.1:{{http}}\"\n{CAMERAS}",
            store.path().display()
        ));
        let (resident_mib, peak_mib, ready_ms, first_ms, rates) = Default::default();
        Self { waiting, gateway, store, resident_mib, peak_mib, ready_ms, first_ms, rates }
    }

    /// Fills its store up again.
    fn fill(&mut self) {
        let is_new = fs::read_dir(self.store.path()).expect("its folder").next().is_none();
        let mut outbox = Outbox::open(self.store.path());
        assert!(is_new || outbox.started.is_none(), "the daemon took the store for another machine's");
        outbox.fill_to(self.waiting);
        outbox.close();
    }

    /// Starts without a broker and measures its memory when it has come to rest.
    fn rest(&mut self) {
        self.gateway.start();
        thread::sleep(AT_REST);
        self.resident_mib.push(process::resident_mib(self.gateway.pid()));
        self.gateway.kill9();
    }

    /// Starts with a subscriber waiting, and lets a part go out.
    fn drain(&mut self, broker: &Broker) {
        let mut subscriber = Subscriber::as_soon_as_possible(broker.port);
        let timed = self.waiting > 1;
        thread::scope(|scope| {
            let receiving = scope.spawn(move || {
                let first = subscriber.next().at;
                if !timed {
                    return (first, None);
                }
                let mut skip = |count| (0..count).map(|_| subscriber.next().at).last().expect("several");
                let from = skip(WARM_UP);
                let to = skip(TIMED);
                (first, Some(TIMED as f64 / (to - from).as_secs_f64()))
            });
            let began = Instant::now();
            self.gateway.start();
            self.ready_ms.push(ms(began.elapsed()));
            let (first, rate) = receiving.join().expect("the events come");
            self.first_ms.push(ms(first - began));
            self.rates.extend(rate);
        });
        self.peak_mib.push(process::peak_mib(self.gateway.pid()));
        self.gateway.kill9();
    }
}
