//! Every fault under load a few times: what was lost. `tests/long` does the same for an hour.

use std::{panic::catch_unwind, thread};

use crate::{
    support::{
        broker::Access,
        broker::Broker,
        faults::{self, ENDS, Kind, SILENCES, SLOW},
        gateway::Gateway,
        load::{self, Between, Load},
        park::{Park, Plan},
    },
    table::Table,
};

/// Of each kind.
const RUNS: u64 = 3;

/// A loss, or the message of a proof that failed.
type Row = (String, Option<load::Outcome>);

pub(crate) fn measure(table: &mut Table) {
    let kinds: Vec<&Kind> = [&ENDS[..], &SILENCES, &SLOW].concat();
    // They wait more than they work.
    let rows: Vec<Row> = thread::scope(|scope| {
        let network = kinds
            .iter()
            .map(|kind| scope.spawn(|| (kind.name.to_owned(), catch_unwind(|| faults::run(kind, RUNS).load).ok())));
        let running: Vec<_> = network.collect();
        running.into_iter().map(|thread| thread.join().expect("caught inside")).collect()
    });
    for (name, outcome) in rows.into_iter().chain([killed(), both_killed()]) {
        let what = format!("lost: {name}, {RUNS} runs");
        match outcome {
            Some(outcome) => {
                let measured = format!("{} of {} ({} again)", outcome.lost, outcome.events, outcome.repeated);
                table.target(&what, &measured, "0", outcome.lost == 0 && outcome.declared == 0);
            }
            None => table.target(&what, "no proof, see above", "0", false),
        }
    }
}

fn killed() -> Row {
    under("daemon killed (kill -9)", |gateway, _| {
        gateway.kill9();
        gateway.start();
    })
}

fn both_killed() -> Row {
    under("daemon and broker killed", |gateway, broker| {
        broker.kill9();
        gateway.kill9();
        broker.restart();
        gateway.start();
    })
}

fn under(name: &str, fault: fn(&mut Gateway, &mut Broker)) -> Row {
    // A broker that is killed forgets what it confirmed and had not yet passed on; only the center's receipt proves more.
    let plan = Plan { access: Access::Open, command_center: "delivered_when = \"receipt\"", body: &load::body() };
    let proof = catch_unwind(|| {
        let mut park = Park::open_with(&plan);
        Load { name, faults: RUNS, between: Between::Delivered }.on(&mut park, fault)
    });
    (name.to_owned(), proof.ok())
}
