//! Restarts and silent devices: an alarm says one truth, and a wrong value is worse than none.

use serde_json::{Value, json};

use crate::support::park::{CABINET, Park};

/// Every standing alarm, as the gateway lists it.
fn standing(park: &Park) -> Value {
    park.center.ask(json!({ "command": "alarms" }))["data"]["alarms"].clone()
}

/// Brings one alarm into each state that is not NORM.
fn bring_into_every_state(park: &Park) {
    park.wait_until_good("panel/pump");
    park.plc.set(1, "holding:0", 50);
    park.wait_for_polls();
    // The pump was dry from the start: NORM -> UNACK -> RTNUN.
    park.center.wait_for_state("panel/pump/dry", "RTNUN");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_state("panel/door/open", "UNACK");
    park.plc.set(1, "input:0", 90);
    park.center.wait_for_state("panel/temp/hot", "UNACK");
    assert_eq!(park.acknowledge("panel/temp/hot", 1)["result"], "ok");
    park.center.wait_for_state("panel/temp/hot", "ACKED");
    park.plc.set(1, "discrete:1", 1);
    park.center.wait_for_state("panel/smoke/fire", "UNACK");
    assert_eq!(park.acknowledge("panel/smoke/fire", 1)["result"], "ok");
    park.plc.set(1, "discrete:1", 0);
    let latched = park.center.wait_for_transition("cleared", "panel/smoke/fire");
    assert_eq!(json!(["state", "latched"].map(|f| latched.data(f))), json!(["ACKED", true]));
}

#[test]
fn every_state_survives_a_kill_and_the_restart_invents_nothing() {
    let mut park = Park::open(CABINET);
    bring_into_every_state(&park);
    let mark = park.mark();
    let before = standing(&park);
    let states = |list: &Value| {
        let alarms = list.as_array().cloned().unwrap_or_default();
        let mut states: Vec<(Value, Value)> =
            alarms.into_iter().map(|a| (a["alarm"].clone(), a["state"].clone())).collect();
        states.retain(|(alarm, _)| alarm.as_str().is_some_and(|alarm| alarm.starts_with("panel/")));
        json!(states)
    };
    let expected = json!([
        ["panel/door/open", "UNACK"],
        ["panel/pump/dry", "RTNUN"],
        ["panel/smoke/fire", "ACKED"],
        ["panel/temp/hot", "ACKED"],
    ]);
    assert_eq!(states(&before), expected);
    for _ in 0..2 {
        park.restart();
        let seen = park.gateway.run(&["status", "--json"]).stdout;
        let seen: Value = serde_json::from_slice(&seen).expect("a running daemon says how it is");
        assert_eq!(seen["alarms"]["total"], 4, "before anything changes: {seen}");
        for point in ["panel/door", "panel/temp", "panel/smoke", "panel/pump"] {
            park.wait_until_good(point);
        }
        park.wait_for_polls();
        assert_eq!(states(&standing(&park)), expected);
    }
    park.assert_nothing_since(mark);
    let pages = (before, standing(&park));
    let of = |list: &Value, alarm: &str| {
        list.as_array().into_iter().flatten().find(|a| a["alarm"] == alarm).cloned().unwrap_or_default()
    };
    for alarm in ["panel/door/open", "panel/pump/dry", "panel/smoke/fire", "panel/temp/hot"] {
        assert_eq!(
            of(&pages.0, alarm),
            of(&pages.1, alarm),
            "occurrence, condition, latch, value and time are the same"
        );
    }
    // And each goes on from where it stood.
    park.plc.set(1, "discrete:0", 0);
    park.center.wait_for_state("panel/door/open", "RTNUN");
    assert_eq!(park.acknowledge("panel/pump/dry", 1)["result"], "ok");
    park.center.wait_for_state("panel/pump/dry", "NORM");
    assert_eq!(park.center.ask(json!({ "command": "reset", "alarm": "panel/smoke/fire" }))["result"], "ok");
    park.center.wait_for_state("panel/smoke/fire", "NORM");
    park.center.assert_complete();
}

#[test]
fn what_changed_while_the_daemon_was_down_is_told_after_its_start() {
    let mut park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.gateway.kill9();
    park.plc.set(1, "discrete:0", 1);
    park.gateway.start();
    park.center.wait_for_transition("raised", "panel/door/open");
    park.gateway.kill9();
    park.plc.set(1, "discrete:0", 0);
    park.gateway.start();
    park.center.wait_for_transition("cleared", "panel/door/open");
    park.center.wait_for_state("panel/door/open", "RTNUN");
    park.center.assert_complete();
}

#[test]
fn a_broker_that_forgot_everything_is_told_again_what_stands() {
    let mut park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_state("panel/door/open", "UNACK");
    // mosquitto keeps nothing through a kill unless it has just saved.
    park.broker.kill9();
    park.broker.restart();
    park.center.leave();
    park.center.come_back();
    park.center.wait_for_state("panel/door/open", "UNACK");
    park.center.wait_for_status("the gateway online", |status| status["state"] == "online");
    park.center.assert_complete();
}

/// What both kinds of silence must lead to.
pub(crate) fn silence(park: &mut Park, begin: impl Fn(&mut Park), end: impl Fn(&mut Park)) {
    park.plc.set(1, "discrete:0", 1);
    park.plc.set(1, "input:0", 21);
    park.wait_until_good("panel/temp");
    park.center.wait_for_state("panel/door/open", "UNACK");
    begin(park);
    let raised = park.center.wait_for_transition("raised", "panel/communication");
    assert_eq!(raised.data("severity"), "medium");
    let read = park.wait_until_read("panel/temp", "bad");
    assert_eq!(read["value"], Value::Null, "a stale value is shown as good: {read}");
    assert!(read["reason"].is_string(), "{read}");
    assert_eq!(park.center.ledger().state("panel/door/open"), "UNACK", "silence ends no alarm");
    park.plc.set(1, "input:0", 22);
    end(park);
    let cleared = park.center.wait_for_transition("cleared", "panel/communication");
    assert_eq!(cleared.data("active"), false);
    assert_eq!(park.wait_until_read("panel/temp", "good")["value"], 22);
    assert_eq!(park.center.ledger().transitions("raised", "panel/door/open").count(), 1, "and begins none again");
    park.center.assert_complete();
}

#[test]
fn a_device_that_falls_silent_is_bad_then_an_alarm_then_well_again() {
    let mut park = Park::open(CABINET);
    silence(&mut park, |park| park.plc.stop_unit(1), |park| park.plc.start_unit(1));
}

#[test]
fn a_cut_cable_is_bad_then_an_alarm_then_well_again() {
    let mut park = Park::open(CABINET);
    silence(&mut park, |park| park.plc.cut(), |park| park.plc.restore());
}
