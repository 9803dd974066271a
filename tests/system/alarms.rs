//! What is an alarm, and what people may ask: from the register to the command center and back.

use serde_json::{Value, json};

use crate::support::{
    broker::Broker,
    mqtt::{Publisher, Retain, Version},
    park::{CABINET, CAMERAS, Park},
};

#[test]
fn a_changed_register_becomes_an_alarm_that_is_acknowledged_and_goes() {
    let park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    let raised = park.center.wait_for_transition("raised", "panel/door/open");
    let told =
        ["state", "active", "acknowledged", "severity", "value", "quality", "occurrence"].map(|f| raised.data(f));
    assert_eq!(json!(told), json!(["UNACK", true, false, "high", true, "good", 1]));
    assert_eq!(raised.data("message")["en"], "Cabinet door open");
    park.center.wait_for_state("panel/door/open", "UNACK");
    assert_eq!(park.acknowledge("panel/door/open", 1)["result"], "ok");
    let acknowledged = park.center.wait_for_transition("acknowledged", "panel/door/open");
    let told = ["state", "acknowledged", "by", "comment"].map(|f| acknowledged.data(f));
    assert_eq!(json!(told), json!(["ACKED", true, "operator", "dicek"]));
    park.center.wait_for_state("panel/door/open", "ACKED");
    park.plc.set(1, "discrete:0", 0);
    let cleared = park.center.wait_for_transition("cleared", "panel/door/open");
    assert_eq!((cleared.data("state"), cleared.data("active")), (&json!("NORM"), &json!(false)));
    park.center.wait_for("the topic emptied", |l| (!l.alarms.contains_key("panel/door/open")).then_some(()));
    park.center.assert_complete();
}

#[test]
fn an_alarm_that_went_unseen_waits_for_its_acknowledgement() {
    let park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_state("panel/door/open", "UNACK");
    park.plc.set(1, "discrete:0", 0);
    park.center.wait_for_state("panel/door/open", "RTNUN");
    assert_eq!(park.acknowledge("panel/door/open", 1)["result"], "ok");
    park.center.wait_for_state("panel/door/open", "NORM");
    park.plc.set(1, "discrete:0", 1);
    let again =
        park.center.wait_for("the second occurrence", |l| l.transitions("raised", "panel/door/open").nth(1).cloned());
    assert_eq!(again.data("occurrence"), 2);
    park.center.assert_complete();
}

#[test]
fn a_limit_with_a_deadband_does_not_chatter() {
    let park = Park::open(CABINET);
    let degrees = |value: u16| {
        park.plc.set(1, "input:0", value);
        park.wait_for_polls();
    };
    park.wait_until_good("panel/temp");
    degrees(80);
    let mark = park.mark();
    degrees(81);
    let raised = park.center.wait_for_transition("raised", "panel/temp/hot");
    assert_eq!(raised.sequence, mark + 1, "the limit itself is not above it");
    assert_eq!(json!(["value", "unit", "limit"].map(|f| raised.data(f))), json!([81, "°C", 80.0]));
    for value in [76, 82, 80, 79] {
        degrees(value);
    }
    degrees(75);
    let cleared = park.center.wait_for_transition("cleared", "panel/temp/hot");
    assert_eq!((cleared.sequence, cleared.data("value")), (raised.sequence + 1, &json!(75)));
}

#[test]
fn a_latched_alarm_stays_until_it_is_acknowledged_and_reset() {
    let park = Park::open(CABINET);
    let reset = || park.center.ask(json!({ "command": "reset", "alarm": "panel/smoke/fire" }));
    park.wait_until_good("panel/smoke");
    park.plc.set(1, "discrete:1", 1);
    park.center.wait_for_state("panel/smoke/fire", "UNACK");
    assert_eq!(reset()["result"], "refused");
    park.plc.set(1, "discrete:1", 0);
    let cleared = park.center.wait_for_transition("cleared", "panel/smoke/fire");
    let told = ["state", "active", "latched"].map(|f| cleared.data(f));
    assert_eq!(json!(told), json!(["UNACK", false, true]));
    assert_eq!(reset()["code"], "not-acknowledged");
    assert_eq!(park.acknowledge("panel/smoke/fire", 1)["result"], "ok");
    park.center.wait_for_state("panel/smoke/fire", "ACKED");
    assert_eq!(reset()["result"], "ok");
    let gone = park.center.wait_for_transition("reset", "panel/smoke/fire");
    assert_eq!(gone.data("state"), "NORM");
    park.center.wait_for_state("panel/smoke/fire", "NORM");
    park.plc.set(1, "discrete:1", 1);
    park.center.wait_for_state("panel/smoke/fire", "UNACK");
    assert_eq!(park.acknowledge("panel/smoke/fire", 2)["result"], "ok");
    assert_eq!(reset()["code"], "still-active");
    park.center.assert_complete();
}

#[test]
fn a_message_on_a_foreign_broker_becomes_an_alarm() {
    let source = Broker::start();
    let body =
        CAMERAS.replace("listen = \"127.0.0.1:{ingest}\"", &format!("url = \"mqtt://127.0.0.1:{}\"", source.port));
    let park = Park::open(&body);
    let mut camera = Publisher::new(source.port, Version::V5, "camera");
    // Said until it is heard: a broker keeps nothing for a subscriber that is not there yet.
    crate::support::until("the first detection", || {
        camera.publish("cam/kolam/motion", "true");
        park.center.ledger().first("raised", "kolam/motion/intruder").is_some()
    });
    camera.publish("cam/kolam/motion", "false");
    let cleared = park.center.wait_for_transition("cleared", "kolam/motion/intruder");
    assert_eq!(cleared.data("state"), "NORM", "this one asks for no acknowledgement");
    assert_eq!(cleared.data("occurrence"), 1);
    park.center.assert_complete();
}

#[test]
fn a_device_may_publish_straight_to_the_gateway_in_both_versions() {
    let park = Park::open(CAMERAS);
    for (version, camera) in [(Version::V311, "utara"), (Version::V5, "selatan")] {
        let alarm = format!("{camera}/motion/intruder");
        park.camera(version).publish(&format!("cam/{camera}/motion"), "true");
        assert_eq!(park.center.wait_for_transition("raised", &alarm).data("value"), true);
    }
    park.center.assert_complete();
}

#[test]
fn people_may_list_read_and_test() {
    let park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.plc.set(1, "input:0", 90);
    park.center.wait_for_state("panel/door/open", "UNACK");
    park.center.wait_for_state("panel/temp/hot", "UNACK");
    let listed = park.center.ask(json!({ "command": "alarms" }));
    let alarms = listed["data"]["alarms"].as_array().cloned().unwrap_or_default();
    let named: Vec<&str> = alarms.iter().filter_map(|alarm| alarm["alarm"].as_str()).collect();
    for alarm in ["panel/door/open", "panel/temp/hot"] {
        assert!(named.contains(&alarm), "{listed}");
    }
    let read = park.center.ask(json!({ "command": "read", "point": "panel/temp" }));
    assert_eq!(json!([read["data"]["value"], read["data"]["unit"]]), json!([90, "°C"]), "{read}");
    let tested = park.center.ask(json!({ "command": "test", "severity": "critical" }));
    assert_eq!(tested["result"], "ok");
    let alarm = park.center.wait_for("the test alarm", |l| {
        l.events.iter().find(|event| event.data("test") == true && event.kind.contains("raised")).cloned()
    });
    assert_eq!(alarm.data("severity"), "critical");
    park.center.assert_complete();
}

#[test]
fn a_request_that_makes_no_sense_is_refused_with_its_reason() {
    let park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_state("panel/door/open", "UNACK");
    let acknowledge =
        |occurrence: u64, alarm: &str| json!({ "command": "acknowledge", "alarm": alarm, "occurrence": occurrence });
    let with = |mut command: Value, field: &str, value: Value| {
        command[field] = value;
        command
    };
    // Long past, and of a session that never was: refused whether or not the clock of this machine is trusted.
    let expired = with(acknowledge(1, "panel/door/open"), "expires", json!("2020-01-01T00:00:00Z"));
    for (asked, code) in [
        (acknowledge(1, "panel/window/open"), "unknown-alarm"),
        (acknowledge(7, "panel/door/open"), "other-occurrence"),
        (with(acknowledge(1, "panel/door/open"), "epoch", json!("zzzzzzzzzzzzzzzz")), "other-epoch"),
        (with(expired, "session", json!(999_999)), "expired"),
        (json!({ "command": "read", "point": "panel/window" }), "unknown-point"),
        (json!({ "command": "reset", "alarm": "panel/door/open" }), "not-latched"),
        (json!({ "command": "explode" }), "unknown-command"),
        (json!({ "command": "acknowledge" }), "malformed"),
    ] {
        let answer = park.center.ask(asked.clone());
        assert_eq!((&answer["result"], &answer["code"]), (&json!("refused"), &json!(code)), "{asked}: {answer}");
        assert!(answer["text"]["en"].is_string() && answer["text"]["id"].is_string(), "{answer}");
    }
    for nonsense in ["{", "[]", "\u{fffd}", r#"{"id":7}"#, r#"{"command":"test","by":"x"}"#] {
        let answer = park.center.ask_in_words("", nonsense, Retain::No);
        assert_eq!(answer["code"], "malformed", "{nonsense}: {answer}");
    }
    let transitions = |kind| park.center.ledger().transitions(kind, "panel/door/open").count();
    assert_eq!((transitions("raised"), transitions("acknowledged"), transitions("reset")), (1, 0, 0));
    assert_eq!(park.center.ledger().state("panel/door/open"), "UNACK");
    park.center.assert_complete();
}

#[test]
fn a_command_that_the_broker_kept_is_refused() {
    let mut park = Park::open(CABINET);
    park.stop();
    let kept = json!({ "id": "kept", "by": "x", "command": "test" }).to_string();
    park.center.publish("command", &kept, Retain::Yes);
    park.gateway.start();
    let answer = park.center.wait_for("the refusal", |l| l.replies.iter().find(|reply| reply["id"] == "kept").cloned());
    assert_eq!((&answer["result"], &answer["code"]), (&json!("refused"), &json!("retained")), "{answer}");
    assert!(!park.center.ledger().events.iter().any(|event| event.data("test") == true));
}

#[test]
fn a_command_acts_once_and_is_answered_the_same_also_after_a_restart() {
    let mut park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_state("panel/door/open", "UNACK");
    let asked = [
        json!({ "id": "one", "command": "acknowledge", "alarm": "panel/door/open", "occurrence": 1 }),
        json!({ "id": "two", "command": "test", "severity": "low" }),
        json!({ "id": "three", "command": "reset", "alarm": "panel/door/open" }),
    ];
    let ask = |park: &Park| asked.clone().map(|command| park.center.ask(command));
    let first = ask(&park);
    assert_eq!([&first[0]["result"], &first[1]["result"], &first[2]["result"]], ["ok", "ok", "refused"]);
    park.center.wait_for_state("panel/door/open", "ACKED");
    let mark = park.mark();
    assert_eq!(ask(&park), first, "asked again");
    park.restart();
    assert_eq!(ask(&park), first, "asked again after a restart");
    park.assert_nothing_since(mark);
}
