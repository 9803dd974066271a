//! Nothing is lost: brokers and the daemon are killed under load, subscribers leave, rights are missing.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    broker::{Access, Broker, GATEWAY},
    center::Center,
    gateway::{Gateway, wipe},
    kills,
    ledger::Ledger,
    load::{self, Between, Load, random_moment, reads},
    mqtt::{Connection, Retain, Version},
    park::{self, CABINET, CAMERAS, Park, Plan},
    until,
};

/// Both processes within so much are one power cut.
const AT_ONCE: Duration = Duration::from_millis(3);

/// Cameras and meters work while `fault` strikes again and again; nothing is lost.
fn under_load(name: &str, faults: u64, command_center: &str, fault: impl FnMut(&mut Gateway, &mut Broker)) {
    let mut park = Park::open_with(&Plan { access: Access::Open, command_center, body: &load::body() });
    Load { name, faults, between: Between::Delivered }.on(&mut park, fault);
}

fn kill_and_start(gateway: &mut Gateway) {
    gateway.kill9();
    gateway.start();
}

/// A broker that is killed forgets what it had confirmed and not yet passed on; only the center's receipt proves more.
#[test]
fn no_event_is_lost_when_the_broker_is_killed_again_and_again() {
    under_load("broker kill -9, receipts", kills(10), "delivered_when = \"receipt\"", |_, broker| {
        broker.kill9();
        broker.restart();
    });
}

/// What a broker confirmed it keeps only for a center whose session it knows, and only if it may save before it ends:
/// then its PUBACK is enough.
#[test]
fn no_event_is_lost_when_the_broker_is_restarted_in_peace() {
    let body = load::body();
    let mut park = Park::furnish(&Plan { access: Access::Open, command_center: "", body: &body });
    park.center.leave();
    park.center = Center::start_kept(park.broker.port, park::ID);
    park.gateway.start();
    let load = Load { name: "broker SIGTERM, no receipts", faults: kills(3), between: Between::Delivered };
    load.on(&mut park, |_, broker| {
        broker.stop();
        broker.restart();
    });
}

#[test]
fn no_event_is_lost_when_the_daemon_is_killed_again_and_again() {
    under_load("daemon kill -9", kills(10), "", |gateway, _| kill_and_start(gateway));
}

#[test]
fn no_event_is_lost_when_both_are_killed_at_once_again_and_again() {
    let name = "both kill -9 at once, receipts";
    let mut dice = load::dice("which of both is first");
    under_load(name, kills(5), "delivered_when = \"receipt\"", |gateway, broker| {
        if dice.bool() {
            gateway.kill9();
            random_moment(&mut dice, AT_ONCE);
            broker.kill9();
        } else {
            broker.kill9();
            random_moment(&mut dice, AT_ONCE);
            gateway.kill9();
        }
        if dice.bool() {
            broker.restart();
            gateway.start();
        } else {
            gateway.start();
            broker.restart();
        }
    });
}

#[test]
fn mqtt_3_1_1_delivers_the_same() {
    let plan = "protocol = \"v3.1.1\"\ndelivered_when = \"puback\"";
    under_load("daemon kill -9, 3.1.1", kills(5), plan, |gateway, _| kill_and_start(gateway));
}

/// Kills the daemon in one outage of its command center's broker, which was killed before, and ends the outage with the
/// last: what was confirmed to a camera before each kill is there at the end.
fn in_one_outage(name: &str, faults: u64, park: &mut Park) {
    let mut left = faults;
    Load { name, faults, between: Between::Confirmed }.on(park, |gateway, broker| {
        kill_and_start(gateway);
        left -= 1;
        if left == 0 {
            broker.restart();
        }
    });
}

#[test]
fn what_a_publisher_got_its_puback_for_survives_every_kill_of_one_outage() {
    let mut park = Park::open(&load::body());
    park.broker.kill9();
    in_one_outage("daemon kill -9 in one outage", kills(6), &mut park);
}

#[test]
fn a_daemon_that_never_connected_before_it_was_killed_has_lost_nothing() {
    let body = load::body();
    let mut park = Park::furnish(&Plan { access: Access::Open, command_center: "", body: &body });
    park.broker.kill9();
    park.gateway.start();
    in_one_outage("daemon kill -9 before it ever connected", kills(4), &mut park);
}

/// A camera that never saw its PUBACKs sends again, and the daemon tells it again as a new occurrence: packet ids begin
/// anew with each connection of many cameras, so what looks like a repeat may be news, and news is never swallowed.
#[test]
fn what_is_delivered_again_after_a_kill_is_told_again() {
    let mut park = Park::open(CAMERAS);
    let words = [("cam/kamera0/motion", b"true".as_slice()), ("cam/kamera0/motion", b"false")];
    let open = |park: &Park| Connection::open_patiently(park.gateway.ingest, Version::V311, "camera", None);
    let mut before = open(&park);
    for (topic, payload) in words {
        before.send_publish(topic, payload, Retain::No).expect("the gateway listens");
    }
    park.center.wait_for_transition("cleared", "kamera0/motion/intruder");
    park.kill_and_start();
    let mut again = open(&park);
    for (topic, payload) in words {
        again.send_publish_again(topic, payload).expect("the gateway listens");
    }
    park.center.wait_for("a second occurrence that ended", |ledger| {
        let mut ended = ledger.transitions("cleared", "kamera0/motion/intruder");
        ended.any(|event| event.data("occurrence") == 2).then_some(())
    });
    let told = |kind| park.center.ledger().transitions(kind, "kamera0/motion/intruder").count();
    assert_eq!((told("raised"), told("cleared")), (2, 2));
    park.center.assert_complete();
}

/// The twin of the tests above that kill the daemon: it is the store that makes them pass.
#[test]
fn without_its_store_the_same_events_are_gone() {
    let mut park = Park::open(&load::body());
    park.broker.kill9();
    let twin = Load { name: "twin: daemon killed, its store wiped", faults: 1, between: Between::Confirmed };
    let outcome = twin.strike(&mut park, |gateway, broker| {
        gateway.kill9();
        wipe(&gateway.outbox());
        gateway.start();
        broker.restart();
    });
    assert!(outcome.lost > 0, "{outcome}");
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
