//! Nothing is lost whatever the network does, and a dead path is noticed in time. The kinds are in `support/faults.rs`;
//! what only a kernel can do to packets is in `namespace.rs`.

use serde_json::json;

use crate::support::{
    broker::{Access, Broker},
    faults::{self, run_side_by_side, times},
    mqtt::Version,
    park::{CABINET, CAMERAS, Park, Plan},
    proxy::{Conditions, Flow, Proxy, Reach},
    until,
};

/// First, since it takes longest.
#[test]
fn a_fault_that_lasts_is_noticed_in_time_and_loses_nothing() {
    run_side_by_side(&faults::LONG, times());
}

#[test]
fn connections_and_brokers_that_end_lose_nothing() {
    run_side_by_side(&faults::ENDS, times());
}

#[test]
fn links_that_fall_silent_are_noticed_and_lose_nothing() {
    run_side_by_side(&faults::SILENCES, times());
}

#[test]
fn slow_links_are_borne_and_lose_nothing() {
    run_side_by_side(&faults::SLOW, times());
}

/// The twin of every kind above: it is the healing that makes them pass, and silence is never taken for a confirmation.
#[test]
fn in_a_black_hole_that_never_heals_nothing_counts_as_delivered() {
    let broker = Broker::start();
    let proxy = Proxy::to(broker.port);
    let url = format!("mqtt://127.0.0.1:{}", proxy.port);
    let plan = Plan { access: Access::Open, command_center: "keep_alive = \"10s\"", body: CAMERAS };
    let mut park = Park::furnish_around(broker, &[&url], &plan);
    park.gateway.start();
    park.center.wait_for_status("the gateway online", |status| status["state"] == "online");
    park.mark();
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |waiting| waiting < 1.0);
    let knocks = proxy.accepted();
    // The kernel below the gateway is told that every byte has arrived.
    proxy.set(Reach::All, Conditions::flowing(Flow::Swallow));
    let cameras = 10;
    for n in 0..cameras {
        park.camera(Version::V311).publish(&format!("cam/kamera{n}/motion"), "true");
    }
    until("it gave the connection up, and one more", || {
        faults::ends(&park.gateway).get("silent").is_some_and(|count| *count >= 1.0) && proxy.accepted() > knocks
    });
    let waiting = park.gateway.metric("gardu_outbox_records{lane=\"a\"}");
    assert!(waiting >= f64::from(cameras), "only {waiting} of {cameras} wait\n{}", park.gateway.log());
    let raised = park.center.ledger().events.iter().any(|event| event.subject.ends_with("/intruder"));
    assert!(!raised, "nothing can have arrived");
    // A restart does not make it forget either.
    park.gateway.kill9();
    park.gateway.start();
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |still| still >= waiting);
}

/// Says it in more words than the broker's packets have room for.
const VERBOSE: &str = r#"
[[alarm]]
name = "verbose"
point = "panel/door"
when = { is = true }
severity = "high"
message = { id = "{long}", en = "{long}" }
"#;

#[test]
fn a_record_too_large_for_the_broker_is_declared_and_the_others_go_on() {
    let cabinet = CABINET.split("[[alarm]]").next().expect("what stands before the first alarm");
    // 240 characters of three bytes each.
    let body = format!("{CAMERAS}{cabinet}{}", VERBOSE.replace("{long}", &"–".repeat(240)));
    let broker = Broker::start_narrow(1_800);
    let url = format!("mqtt://127.0.0.1:{}", broker.port);
    let mut park =
        Park::furnish_around(broker, &[&url], &Plan { access: Access::Open, command_center: "", body: &body });
    park.gateway.start();
    park.center.wait_for_status("the gateway online", |status| status["state"] == "online");
    park.wait_until_good("panel/door");
    let mut camera = park.camera(Version::V5);
    camera.publish("cam/kamera0/motion", "true");
    park.plc.set(1, "discrete:0", 1);
    camera.publish("cam/kamera1/motion", "true");
    let declared = park.center.wait_for("the loss is declared", |ledger| {
        ledger.events.iter().find(|event| event.kind == "gardu.stream.lost.v1").cloned()
    });
    let refused = declared.data("refused");
    assert_eq!(json!([declared.data("count"), declared.data("reason")]), json!([1, "refused"]));
    assert_eq!(json!([refused["subject"], refused["severity"]]), json!(["panel/door/verbose", "high"]));
    camera.publish("cam/kamera2/motion", "true");
    for n in 0..3 {
        park.center.wait_for_transition("raised", &format!("kamera{n}/motion/intruder"));
    }
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |waiting| waiting < 1.0);
    assert!(faults::ends(&park.gateway).is_empty(), "the connection survives: {:?}", faults::ends(&park.gateway));
    park.stop();
    assert_eq!(park.center.assert_complete().declared_lost, 1);
    assert!(park.center.ledger().first("raised", "panel/door/verbose").is_none());
}
