//! The gateway's own pins on a machine that has none: what is missing is told, stays an alarm, and stops nothing else.

use serde_json::json;

use crate::support::{
    broker::Broker,
    mqtt::{Publisher, Version},
    park::{CABINET, Park},
    until,
};

/// A chip that does not exist, one that is none, and a bus that is none.
const PINS: &str = r#"
[[gpio]]
name = "header"
chip = "/dev/does-not-exist"
poll = "100ms"
contact = [{ name = "panic-button", line = 17 }]

[[gpio]]
name = "null"
chip = "/dev/null"
poll = "100ms"
contact = [{ name = "door", line = 27 }]

[[i2c]]
name = "air"
bus = "/dev/null"
chip = "sht4x"
poll = "1s"
missed_polls = 1
"#;

#[test]
fn pins_that_are_not_there_are_alarms_with_their_reasons_and_stop_nothing() {
    let mut park = Park::open(&format!("{CABINET}{PINS}"));
    for device in ["header", "null", "air"] {
        let raised = park.center.wait_for_transition("raised", &format!("{device}/communication"));
        assert_eq!((raised.data("severity"), raised.data("active")), (&json!("medium"), &json!(true)));
    }
    for point in ["header/panic-button", "header/panic-button-events", "null/door", "air/temperature"] {
        assert_eq!(park.wait_until_read(point, "bad")["reason"], "link-down", "{point}");
    }
    // The bus beside them works as ever.
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_transition("raised", "panel/door/open");

    let errors = "gardu_read_errors_total{device=\"header\",reason=\"link-down\"}";
    park.gateway.wait_for_metric(errors, |errors| errors >= 50.0);
    let log = park.gateway.log();
    for (reason, what) in [
        ("there is no such chip: write the path that `gpiodetect` shows, or plug it in", "the contacts cannot be read"),
        ("it is no GPIO chip: write the path that `gpiodetect` shows", "the contacts cannot be read"),
        ("it is no I2C bus: write one of /dev/i2c-*", "the sensor cannot be read"),
    ] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(reason)).collect();
        assert_eq!(lines.len(), 1, "{reason}, once\n{log}");
        assert!(lines[0].contains(what), "{}", lines[0]);
    }
    assert!(park.gateway.is_healthy(), "{log}");
    let ended = park.gateway.sigterm();
    assert_eq!(ended.code, Some(0), "{}", park.gateway.log());
}

#[test]
fn nobody_can_press_a_button_on_our_pins_over_mqtt() {
    let source = Broker::start();
    let mqtt = format!(
        "[[mqtt]]\nname = \"sensors\"\nurl = \"mqtt://127.0.0.1:{}\"\n\
         [[mqtt.subscribe]]\ntopic = \"s/{{device}}/{{name}}\"\npoint = \"{{device}}/{{name}}\"\nvalue = \"\"\n",
        source.port
    );
    let park = Park::open(&format!("{PINS}{mqtt}"));
    let mut forger = Publisher::new(source.port, Version::V5, "forger");
    // Said until it is heard: a broker keeps nothing for a subscriber that is not there yet.
    until("the forged press is refused", || {
        forger.publish("s/header/panic-button", "true");
        park.gateway.log().contains("the gateway's own pins")
    });
    assert_eq!(park.wait_until_read("header/panic-button", "bad")["reason"], "link-down");
}
