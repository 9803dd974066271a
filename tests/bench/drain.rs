//! A backlog of alarm events goes out: how fast, beside a bare MQTT client that has the same messages in memory.
//!
//! The backlog is made as in life: cameras publish, the broker is away. The bare client then sends the very topics and
//! payloads that the gateway sent, in the same MQTT version and window, to the same broker and subscriber; it keeps
//! nothing and reads nothing back. Both are timed by the subscriber, from the first event to the last.

use std::{thread, time::Duration};

use rumqttc::{
    NetworkOptions,
    v5::{
        AsyncClient, Event as MqttEvent, MqttOptions,
        mqttbytes::{QoS, v5::Packet as MqttPacket},
    },
};

use crate::{
    WAITING, percentile, process,
    subscriber::{Event, Subscriber},
    support::{
        broker::{Access, Broker},
        mqtt::{Connection, Packet, Retain, Version},
        park::{CAMERAS, Park, Plan},
        proxy::{Conditions, Proxy, Reach},
    },
    table::Table,
};

/// Alarm events, each a message of its own.
const EVENTS: usize = 30_000;
/// Ours and the bare client's in turn, so that a busy moment of the machine meets both. Each with its round trip.
const ROUNDS: [(u64, usize); 2] = [(0, 5), (100, 2)];
/// The bare client's ratio to beat.
const RATIO_MIN: f64 = 0.6;
/// The gateway's window, for both.
const WINDOW: u16 = 256;
/// Each publishes over a connection of its own, without waiting for one PUBACK before the next publish.
const CAMERA_COUNT: usize = 10;
const UNCONFIRMED_MAX: usize = 60;

pub(crate) fn measure(table: &mut Table) {
    for (round_trip_ms, rounds) in ROUNDS {
        let broker = Broker::start();
        // Without a delay also without a proxy, which would be slower than the link it stands for.
        let proxy = (round_trip_ms > 0).then(|| Proxy::to(broker.port));
        if let Some(proxy) = &proxy {
            proxy.set(Reach::All, Conditions::delayed(Duration::from_millis(round_trip_ms) / 2));
        }
        let (port, way) = (broker.port, proxy.as_ref().map_or(broker.port, |proxy| proxy.port));
        let plan = Plan { access: Access::Open, command_center: "", body: CAMERAS };
        let mut park = Park::furnish_around(broker, &[&format!("mqtt://127.0.0.1:{way}")], &plan);
        park.center.leave(); // its books are thorough and slow
        let (mut ours, mut bare, mut ratios, mut peak_mib) = (Vec::new(), Vec::new(), Vec::new(), 0.0_f64);
        for round in 0..rounds {
            park.broker.kill9();
            park.gateway.start();
            let events = fill(&park);
            park.broker.launch();
            let (sent, our_rate) = receive(port, events, || ());
            park.gateway.wait_for_metric(WAITING, |waiting| waiting < 1.0);
            peak_mib = peak_mib.max(process::peak_mib(park.gateway.pid()));
            park.gateway.kill9();
            let (_, bare_rate) = receive(port, events, || publish_bare(way, sent));
            eprintln!("  {round_trip_ms} ms, round {}: {our_rate:.0}/s, bare client {bare_rate:.0}/s", round + 1);
            ours.push(our_rate);
            bare.push(bare_rate);
            ratios.push(our_rate / bare_rate);
        }
        let (ours, bare, ratio) = (percentile(&mut ours, 50), percentile(&mut bare, 50), percentile(&mut ratios, 50));
        let what = format!("drain of {EVENTS} alarm events, {round_trip_ms} ms round trip");
        table.figure(&format!("{what}, a second"), &format!("{ours:.0} (bare {bare:.0})"));
        table.target(
            &format!("the same beside a bare client, median of {rounds}"),
            &format!("{ratio:.2}"),
            &format!("{RATIO_MIN}"),
            ratio >= RATIO_MIN,
        );
        table.figure("the gateway's memory meanwhile, peak", &format!("{peak_mib:.1} MiB"));
    }
}

/// The cameras see people come and go until so many events wait; returns how many do.
fn fill(park: &Park) -> usize {
    thread::scope(|scope| {
        for camera in 0..CAMERA_COUNT {
            let port = park.gateway.ingest;
            scope.spawn(move || {
                let mut connection = Connection::open_patiently(port, Version::V311, &format!("cam{camera}"), None);
                let topic = format!("cam/cam{camera}/motion");
                let mut unconfirmed = 0;
                for n in 0..EVENTS / CAMERA_COUNT {
                    let seen = if n.is_multiple_of(2) { "true" } else { "false" };
                    connection.send_publish(&topic, seen.as_bytes(), Retain::No).expect("the gateway listens");
                    unconfirmed += 1;
                    if unconfirmed == UNCONFIRMED_MAX {
                        wait_for_puback(&mut connection);
                        unconfirmed -= 1;
                    }
                }
                (0..unconfirmed).for_each(|_| wait_for_puback(&mut connection));
            });
        }
    });
    park.gateway.metric(WAITING) as usize
}

fn wait_for_puback(connection: &mut Connection) {
    while !matches!(connection.next().expect("the gateway answers"), Packet::Puback { .. }) {}
}

/// Subscribes, lets `send` send, and takes so many events; returns them and how many came in a second.
fn receive(port: u16, count: usize, send: impl FnOnce() + Send) -> (Vec<Event>, f64) {
    let mut subscriber = Subscriber::as_soon_as_possible(port);
    thread::scope(|scope| {
        scope.spawn(send);
        let events: Vec<Event> = (0..count).map(|_| subscriber.next()).collect();
        let [Some(first), Some(last)] = [events.first(), events.last()] else { panic!("there are events") };
        let rate = (count - 1) as f64 / (last.at - first.at).as_secs_f64();
        (events, rate)
    })
}

/// Publishes from memory with the plainest client there is.
fn publish_bare(port: u16, messages: Vec<Event>) {
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    let mut options = MqttOptions::new("bare", "127.0.0.1", port);
    options.set_outgoing_inflight_upper_limit(WINDOW).set_network_options(network);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (client, mut event_loop) = AsyncClient::new(options, usize::from(WINDOW));
        let mut unconfirmed = messages.len();
        let publisher = client.clone(); // the event loop ends with the last client
        tokio::spawn(async move {
            for Event { topic, payload, .. } in messages {
                publisher.publish(topic, QoS::AtLeastOnce, false, payload).await.expect("the event loop lives");
            }
        });
        while unconfirmed > 0 {
            if let MqttEvent::Incoming(MqttPacket::PubAck(_)) = event_loop.poll().await.expect("the broker is there") {
                unconfirmed -= 1;
            }
        }
        drop(client);
    });
}
