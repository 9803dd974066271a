//! The way to the command center over more than one broker, and with more than one gateway of a name.

use std::thread;

use crate::support::{
    broker::{Access, Broker},
    gateway::Gateway,
    ledger::Ledger,
    mqtt::{Publisher, Version},
    park::{CAMERAS, Park, Plan, configuration},
    until,
};

const ALARM: &str = "kolam/motion/intruder";
const CONFLICT: &str = "gateway/identity-conflict";

/// Transitions of the camera's alarm.
fn arrived(ledger: &Ledger) -> usize {
    ledger.events.iter().filter(|event| event.subject == ALARM).count()
}

/// Detections that come and go: each is a transition.
fn detect(camera: &mut Publisher, numbers: std::ops::Range<usize>) {
    for n in numbers {
        camera.publish("cam/kolam/motion", if n % 2 == 0 { "true" } else { "false" });
    }
}

fn reconnects(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("gardu_uplink_reconnects_total{{reason=\"{reason}\"}}"))
}

#[test]
fn delivery_goes_on_at_the_second_broker_and_returns_to_the_first() {
    // Half of the shortest keep alive is the time to the first look back. A killed broker forgets what it had confirmed and
    // not yet passed on: only receipts prove what arrived.
    let plan = "keep_alive = \"10s\"\ndelivered_when = \"receipt\"";
    let plan = Plan { access: Access::Open, command_center: plan, body: CAMERAS };
    let (mut park, second) = (Park::furnish(&plan), Broker::start());
    let url = |port: u16| format!("\"mqtt://127.0.0.1:{port}\"");
    let (one, first) = (configuration(&plan, park.broker.port, park.plc.port), url(park.broker.port));
    park.gateway.configure(&one.replace(&first, &format!("{first}, {}", url(second.port))));
    park.center.listen_also_at(second.port);
    park.gateway.start();
    park.center.wait_for_status("the gateway online", |status| status["state"] == "online");

    let mut camera = park.camera(Version::V311);
    thread::scope(|scope| {
        let load = scope.spawn(|| detect(&mut camera, 0..120));
        park.center.wait_for("the load at the first broker", |ledger| (arrived(ledger) >= 40).then_some(()));
        park.broker.kill9();
        load.join().expect("every detection was confirmed");
    });
    park.center.wait_for("the load at the second broker", |ledger| (arrived(ledger) >= 120).then_some(()));
    park.broker.restart();
    until("it has moved back", || reconnects(&park.gateway, "moved") >= 1.0);
    let moved = |ledger: &Ledger| ledger.statuses.iter().any(|status| status["reason"] == "moved").then_some(());
    park.center.wait_for("its farewell to the second", moved);
    park.center.wait_for_status("it online at the first again", |status| status["state"] == "online");
    drop(second); // from here on only the first can deliver
    detect(&mut camera, 120..160);
    park.center.wait_for("the load at the first broker again", |ledger| (arrived(ledger) >= 160).then_some(()));
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |waiting| waiting < 1.0);
    assert_eq!(park.stop()["reason"], "stopped");
    let proved = park.center.assert_complete();
    assert_eq!(proved.declared_lost, 0);
    eprintln!("failover: {} settled, {} here, {} repeated, 0 lost", proved.settled, proved.arrived, proved.duplicates);
}

/// The twin of the test above: with one broker nothing is delivered while it is away.
#[test]
fn without_a_second_broker_everything_waits_for_the_first() {
    let mut park = Park::open(CAMERAS);
    let mut camera = park.camera(Version::V311);
    park.broker.kill9();
    detect(&mut camera, 0..10);
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |waiting| waiting >= 10.0);
    assert_eq!(arrived(&park.center.ledger()), 0);
    park.broker.restart();
    park.center.wait_for("the load", |ledger| (arrived(ledger) >= 10).then_some(()));
    park.center.assert_complete();
}

/// Two gateways of one id, each with its own store; the first is the rightful one.
fn two_of_one_name(plan: &str, reason: &str) {
    let plan = Plan { access: Access::Open, command_center: plan, body: CAMERAS };
    let mut park = Park::open_with(&plan);
    let mut camera = park.camera(Version::V311);
    detect(&mut camera, 0..10);
    let mut other = Gateway::configured(&configuration(&plan, park.broker.port, park.plc.port));
    other.start();
    until("the other drove it out", || reconnects(&park.gateway, reason) >= 1.0);
    detect(&mut camera, 10..20);
    let raised = park.center.wait_for_transition("raised", CONFLICT);
    assert_eq!(raised.data("severity"), "high");
    until("`gardu status` says it", || {
        let seen = park.gateway.run(&["status", "--json"]);
        String::from_utf8_lossy(&seen.stdout).contains(CONFLICT)
    });
    for gateway in [&park.gateway, &other] {
        let connects = ["taken-over", "closed"].map(|reason| reconnects(gateway, reason)).iter().sum::<f64>();
        assert!(connects <= 6.0, "{connects} connects already\n{}", gateway.log());
    }
    assert_eq!(other.sigterm().code, Some(0), "{}", other.log());
    park.gateway.wait_for_metric("gardu_uplink_connected", |up| up > 0.0);
    detect(&mut camera, 20..30);
    park.center.wait_for("everything of the rightful one", |ledger| (arrived(ledger) >= 30).then_some(()));
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |waiting| waiting < 1.0);
    assert_eq!(park.stop()["reason"], "stopped");
    assert_eq!(park.center.assert_complete().declared_lost, 0);
}

#[test]
fn two_gateways_of_one_id_are_named_and_lose_nothing() {
    two_of_one_name("", "taken-over");
}

/// MQTT 3.1.1 says nothing of a take-over: only the other's words show it.
#[test]
fn two_gateways_of_one_id_are_named_with_mqtt_3_1_1_too() {
    two_of_one_name("protocol = \"v3.1.1\"\ndelivered_when = \"puback\"", "closed");
}
