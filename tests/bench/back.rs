//! The broker was away for a moment and is there again: how soon the first event arrives.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    WAITING, ms, percentile,
    subscriber::Subscriber,
    support::{
        mqtt::Version,
        park::{CAMERAS, Park},
    },
    table::Table,
};

const ROUNDS: u64 = 8;
/// A restart of its machine's service: so long and a little more each time, so that no two rounds meet the same pause of
/// the gateway.
const AWAY: Duration = Duration::from_millis(2_000);
const AWAY_MORE: Duration = Duration::from_millis(230);
/// Between two looks whether the broker listens.
const LOOK_EVERY: Duration = Duration::from_millis(1);

pub(crate) fn measure(table: &mut Table) {
    let mut park = Park::open(CAMERAS);
    let mut camera = park.camera(Version::V311);
    park.mark(); // what began with the gateway has arrived
    park.gateway.wait_for_metric(WAITING, |waiting| waiting < 1.0);
    park.center.leave();
    let (mut delays, mut starts) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // As after a long time of quiet: a connection that held for a minute is forgotten trouble.
        park.kill_and_start();
        park.gateway.wait_for_metric("gardu_uplink_connected", |up| up > 0.0);
        park.broker.kill9();
        camera.publish("cam/cam1/motion", if round.is_multiple_of(2) { "true" } else { "false" });
        thread::sleep(AWAY + AWAY_MORE * u32::try_from(round).expect("a few"));
        let launched = Instant::now();
        park.broker.launch();
        while TcpStream::connect(("127.0.0.1", park.broker.port)).is_err() {
            thread::sleep(LOOK_EVERY);
        }
        let listens = Instant::now();
        let mut subscriber = Subscriber::as_soon_as_possible(park.broker.port);
        delays.push(ms(subscriber.next().at - listens));
        starts.push(ms(listens - launched));
        park.gateway.wait_for_metric(WAITING, |waiting| waiting < 1.0);
    }
    let (median, worst, start) =
        (percentile(&mut delays, 50), percentile(&mut delays, 100), percentile(&mut starts, 50));
    table.target(
        &format!("broker listens again to first event, {ROUNDS} rounds, worst"),
        &format!("{worst:.0} ms"),
        "1 s",
        worst <= 1_000.0,
    );
    table.figure("the same, median; the broker's own start, median", &format!("{median:.0} ms; {start:.0} ms"));
}
