//! The daemon as systemd, a technician and the command center see it: starts, stops, exit codes, status.

use std::{fs, process::Output, time::Duration};

use crate::support::{
    broker::Access,
    free_port,
    gateway::Gateway,
    park::{CABINET, Park, Plan, configuration},
};

/// What a person reads, wherever it was written.
fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn plan(body: &str) -> Plan<'_> {
    Plan { access: Access::Open, command_center: "", body }
}

/// `sysexits.h`: something needed is not there.
const UNAVAILABLE: i32 = 69;

/// A configuration with three mistakes on lines of its own.
const WRONG: &str = r#"
[[modbus]]
name = "cabinet"
url = "tcp://127.0.0.1:{plc}"
timeuot = "300ms"

[[modbus.device]]
name = "panel"
unit = 1

[[modbus.device.point]]
name = "door"
register = "discreet:0"

[[alarm]]
name = "open"
point = "panel/door"
when = { is = true }
severity = "terrible"
"#;

#[test]
fn a_right_configuration_is_checked_and_a_wrong_one_shows_every_mistake() {
    let gateway = Gateway::configured(&configuration(&plan(CABINET), 1883, 1502));
    let right = gateway.run(&["check"]);
    assert_eq!(right.status.code(), Some(0), "{}", words(&right));
    let toml = configuration(&plan(WRONG), 1883, 1502);
    gateway.configure(&toml);
    let line = |text: &str| 1 + toml.lines().position(|line| line.contains(text)).expect("it stands there");
    for command in ["check", "run"] {
        let wrong = gateway.run(&[command]);
        assert_eq!(wrong.status.code(), Some(78), "{command}: {}", words(&wrong));
        for mistake in ["timeuot", "discreet", "terrible"] {
            let place = format!("gardu.toml:{}:", line(mistake));
            assert!(words(&wrong).contains(&place), "{command} does not show {place}\n{}", words(&wrong));
        }
    }
}

#[test]
fn status_needs_a_running_daemon_and_says_so() {
    let mut park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_state("panel/door/open", "UNACK");
    crate::support::until("the alarm is shown", || {
        let text = park.gateway.run(&["status"]);
        text.status.code() == Some(0) && words(&text).contains("panel/door/open")
    });
    let json = park.gateway.run(&["status", "--json"]);
    assert_eq!(json.status.code(), Some(0), "{}", words(&json));
    serde_json::from_slice::<serde_json::Value>(&json.stdout).expect("JSON and nothing else");
    park.stop();
    let stopped = park.gateway.run(&["status"]);
    assert_eq!(stopped.status.code(), Some(69), "{}", words(&stopped));
    assert!(!words(&stopped).trim().is_empty());
}

#[test]
fn sigterm_stops_it_in_peace_and_the_center_is_told() {
    let mut park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_transition("raised", "panel/door/open");
    let ended = park.gateway.sigterm();
    assert_eq!(ended.code, Some(0), "{}", park.gateway.log());
    // systemd waits 90 s unless told otherwise; a daemon that needs half a minute to drain hangs.
    assert!(ended.took < Duration::from_secs(30), "{:?}", ended.took);
    let last = park.center.wait_for_status("the gateway offline", |status| status["state"] == "offline");
    assert_eq!(last["reason"], "stopped");
    assert!(last["lanes"]["a"]["settled"].as_u64() >= Some(1), "{last}");
    park.center.assert_complete();
}

#[test]
fn sigterm_ends_it_also_when_nothing_around_it_answers() {
    let mut park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.broker.kill9();
    park.plc.stop_unit(1);
    let ended = park.gateway.sigterm();
    assert_eq!(ended.code, Some(0), "{}", park.gateway.log());
    assert!(ended.took < Duration::from_secs(30), "{:?}", ended.took);
}

#[test]
fn a_killed_gateway_is_called_lost_by_its_will() {
    // MQTT 3.1.1: the broker speaks for it at once; MQTT 5 waits 30 s for it to come back.
    let command_center = "protocol = \"v3.1.1\"\ndelivered_when = \"puback\"";
    let mut park = Park::open_with(&Plan { access: Access::Open, command_center, body: CABINET });
    let online = park.center.ledger().status_now()["session"].clone();
    park.gateway.kill9();
    let last = park.center.wait_for_status("the gateway offline", |status| status["state"] == "offline");
    assert_eq!((&last["reason"], &last["session"]), (&serde_json::json!("lost"), &online));
    park.gateway.start();
    park.center
        .wait_for_status("the gateway back", |s| s["state"] == "online" && s["session"].as_u64() > online.as_u64());
}

#[test]
fn every_connect_is_a_session_of_its_own() {
    let mut park = Park::open(CABINET);
    let mut seen = park.center.ledger().status_now()["session"].as_u64().expect("a number");
    assert!(seen >= 1);
    let mut next = |park: &mut Park, what: &str| {
        let newer = |status: &serde_json::Value| status["state"] == "online" && status["session"].as_u64() > Some(seen);
        let status = park.center.wait_for_status(what, newer);
        seen = status["session"].as_u64().expect("a number");
    };
    park.broker.kill9();
    park.broker.restart();
    next(&mut park, "a session after the broker's restart");
    park.kill_and_start();
    next(&mut park, "a session after the daemon's");
    park.stop();
    park.gateway.start();
    next(&mut park, "a session after a stop");
}

#[test]
fn a_second_daemon_on_the_same_store_is_refused() {
    let mut park = Park::open(CABINET);
    let outbox = park.gateway.outbox().display().to_string();
    let toml = configuration(&plan(CABINET), park.broker.port, park.plc.port).replace("{dir}/outbox", &outbox);
    let second = Gateway::configured(&toml).run(&["run"]);
    assert!(second.status.code().is_some_and(|code| code != 0), "{:?}", second.status);
    let said = words(&second);
    assert!(said.contains(&outbox), "it does not say which store:\n{said}");
    assert!(park.gateway.runs(), "the first goes on");
    park.mark();
}

#[test]
fn a_start_in_memory_that_cannot_listen_ends_as_any_other() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it is bound").port();
    let toml = configuration(&plan(CABINET), free_port(), free_port()).replace("{http}", &port.to_string());
    let mut gateway = Gateway::configured(&toml);
    gateway.write("outbox", "no folder");
    gateway.launch(&[]);
    assert_eq!(gateway.wait_until_ended(), Some(UNAVAILABLE), "{}", gateway.log());
    let log = gateway.log();
    assert!(log.contains("the outbox cannot be used") && log.contains(&port.to_string()), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[cfg(target_env = "gnu")]
#[test]
fn the_daemon_sets_its_allocator_and_stays_the_process_that_was_started() {
    let mut park = Park::open(CABINET);
    let environment = fs::read(format!("/proc/{}/environ", park.gateway.pid())).expect("it runs");
    let environment: Vec<&[u8]> = environment.split(|byte| *byte == 0).collect();
    for setting in ["MALLOC_MMAP_THRESHOLD_=131072", "MALLOC_ARENA_MAX=1"] {
        assert!(environment.contains(&setting.as_bytes()), "{setting} is missing");
    }
    assert_eq!(park.stop()["state"], "offline");
}
