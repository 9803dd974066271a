//! Nothing is lost: brokers and the daemon are killed under load, subscribers leave, rights are missing.

use serde_json::json;

use crate::support::{
    broker::{Access, Broker, GATEWAY},
    gateway::{Gateway, wipe},
    kills,
    ledger::Ledger,
    load::{self, Load, reads},
    mqtt::Version,
    park::{CABINET, CAMERAS, Park, Plan},
    until,
};

/// Cameras and meters work while `fault` strikes again and again; nothing is lost.
fn under_load(name: &str, command_center: &str, fault: impl FnMut(&mut Gateway, &mut Broker)) {
    let mut park = Park::open_with(&Plan { access: Access::Open, command_center, body: &load::body() });
    Load { name, faults: kills() }.on(&mut park, fault);
}

/// A broker that is killed forgets what it had confirmed and not yet passed on; only the center's receipt proves more.
#[test]
fn no_event_is_lost_when_the_broker_is_killed_again_and_again() {
    under_load("broker kill -9", "delivered_when = \"receipt\"", |_, broker| {
        broker.kill9();
        broker.restart();
    });
}

#[test]
fn no_event_is_lost_when_the_daemon_is_killed_again_and_again() {
    under_load("daemon kill -9", "", |gateway, _| {
        gateway.kill9();
        gateway.start();
    });
}

#[test]
fn mqtt_3_1_1_delivers_the_same() {
    let plan = "protocol = \"v3.1.1\"\ndelivered_when = \"puback\"";
    under_load("3.1.1, daemon kill -9", plan, |gateway, _| {
        gateway.kill9();
        gateway.start();
    });
}

#[test]
fn what_a_publisher_got_its_puback_for_survives_a_kill() {
    let mut park = Park::open(CAMERAS);
    // Nobody can have delivered it meanwhile: the command center's broker is gone.
    park.broker.kill9();
    for n in 0..kills() {
        park.camera(Version::V311).publish(&format!("cam/kamera{n}/motion"), "true");
        park.kill_and_start();
    }
    park.broker.restart();
    for n in 0..kills() {
        park.center.wait_for_transition("raised", &format!("kamera{n}/motion/intruder"));
    }
    park.center.assert_complete();
}

/// The twin of the test above: it is the store that makes it pass.
#[test]
fn without_its_store_the_same_alarm_is_gone() {
    let mut park = Park::open(CAMERAS);
    park.broker.kill9();
    park.camera(Version::V311).publish("cam/kamera0/motion", "true");
    park.gateway.kill9();
    wipe(&park.gateway.outbox());
    park.gateway.start();
    let before = park.center.ledger().status_now()["lanes"]["a"]["epoch"].clone();
    park.broker.restart();
    park.center.wait_for_status("another epoch", |status| status["lanes"]["a"]["epoch"] != before);
    park.mark();
    assert!(park.center.ledger().first("raised", "kamera0/motion/intruder").is_none());
}

#[test]
fn what_nobody_subscribed_to_is_kept_until_somebody_does() {
    let mut park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.mark();
    let sent = park.gateway.metric("gardu_uplink_publishes_total{lane=\"a\"}");
    park.center.leave();
    park.plc.set(1, "discrete:0", 1);
    park.gateway.wait_for_metric("gardu_uplink_publishes_total{lane=\"a\"}", |n| n > sent);
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |n| n >= 1.0);
    park.center.come_back();
    park.center.wait_for_transition("raised", "panel/door/open");
    park.center.wait_for_state("panel/door/open", "UNACK");
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |n| n < 1.0);
    park.center.assert_complete();
}

#[test]
fn a_lane_without_the_right_waits_and_the_other_goes_on() {
    let body = load::body();
    let plan = Plan { access: Access::Users, command_center: "", body: &body };
    let mut park = Park::furnish(&plan);
    park.broker.set_denied(&["gardu/v1/+/telemetry/#"]);
    park.gateway.start();
    park.plc.set(1, "input:0", 7);
    until("telemetry waits", || park.gateway.metric("gardu_outbox_records{lane=\"t\"}") >= 1.0);
    park.camera(Version::V5).publish("cam/kolam/motion", "true");
    park.center.wait_for_transition("raised", "kolam/motion/intruder");
    let telemetry = |ledger: &Ledger| ledger.events.iter().any(|event| event.lane == 't');
    park.center.wait_for_transition("raised", "gateway/delivery-refused");
    assert!(!telemetry(&park.center.ledger()), "it has no right to say this");
    park.broker.set_denied(&[]);
    park.center.wait_for("the telemetry", |ledger| telemetry(ledger).then_some(()));
    park.center.wait_for("register 0 reads 7", |ledger| reads(ledger, "meter1/p0", 7));
    park.center.wait_for_transition("cleared", "gateway/delivery-refused");
    park.center.assert_complete();
}

#[test]
fn a_refused_login_is_said_and_ends_with_the_right_password() {
    let mut park = Park::furnish(&Plan { access: Access::Users, command_center: "", body: CABINET });
    park.broker.set_password((GATEWAY.0, "another"));
    // It is ready without its command center: sources and alarms do not wait for it.
    park.gateway.start();
    until("`gardu status` says why", || {
        let said = park.gateway.run(&["status", "--json"]);
        String::from_utf8_lossy(&said.stdout).contains("login")
    });
    assert!(park.gateway.runs());
    park.broker.set_password(GATEWAY);
    park.center.wait_for_status("the gateway online", |status| status["state"] == "online");
    park.wait_until_good("panel/door");
    assert_eq!(park.center.ask(json!({ "command": "test" }))["result"], "ok");
}
