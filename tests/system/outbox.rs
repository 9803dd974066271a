//! `gardu outbox` as a technician uses it: on a running daemon, on a stuck one, on a stopped one, and on what was set aside.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output, Stdio},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    broker::Access,
    gateway::{BINARY, Gateway},
    park::{CABINET, ID, Park, Plan, configuration},
};

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Standard output of a command that succeeds.
fn outbox(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = gateway.run(&[&["outbox"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}\n{}", said(&output), gateway.log());
    String::from_utf8(output.stdout).expect("text")
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
}

/// Ids of the events in lines of JSON.
fn ids(lines: &str) -> Vec<String> {
    lines.lines().map(|line| json(line)["id"].as_str().expect("an id").to_owned()).collect()
}

/// Places and ids as `list --json` has them.
fn listed(gateway: &Gateway) -> Vec<(u64, String)> {
    let lines = outbox(gateway, &["list", "--lane", "a", "--limit", "100000", "--json"]);
    let line = |line: &str| {
        let shown = json(line);
        (shown["place"].as_u64().expect("a place"), shown["event"]["id"].as_str().expect("an id").to_owned())
    };
    lines.lines().map(line).collect()
}

/// A park without its broker, in which a door was opened and closed so often that `waiting` records of lane a wait.
fn cut_off(waiting: f64) -> Park {
    let mut park = Park::open(CABINET);
    park.wait_until_good("panel/door");
    park.mark();
    park.broker.kill9();
    let deadline = Instant::now() + PATIENCE;
    let mut door = 0;
    while park.gateway.metric("gardu_outbox_records{lane=\"a\"}") < waiting {
        assert!(Instant::now() < deadline, "nothing waits\n{}", park.gateway.log());
        door = 1 - door;
        park.plc.set(1, "discrete:0", door);
        park.wait_for_polls();
    }
    park.wait_for_polls();
    park
}

#[test]
fn a_running_and_a_stopped_daemon_show_the_same_records() {
    let mut park = cut_off(12.0);
    let running = listed(&park.gateway);
    assert!(running.len() >= 12, "{running:?}");
    let exported = outbox(&park.gateway, &["export", "--lane", "a"]);
    let want: Vec<String> = running.iter().map(|(_, id)| id.clone()).collect();
    assert_eq!(ids(&exported), want);
    for line in exported.lines() {
        let event = json(line);
        let topic = format!("event/{}", event["data"]["severity"].as_str().unwrap_or("info"));
        crate::contract::validate(&topic, line.as_bytes()).expect("as the contract says");
        assert_eq!(event["source"], format!("/gardu/{ID}"));
    }
    let status = json(&outbox(&park.gateway, &["status", "--json"]));
    let text = outbox(&park.gateway, &["status"]);
    assert!(text.contains("the running daemon") && text.contains("records wait and go out"), "{text}");

    assert_eq!(park.gateway.sigterm().code, Some(0), "{}", park.gateway.log());
    assert_eq!(listed(&park.gateway), running);
    assert_eq!(ids(&outbox(&park.gateway, &["export", "--lane", "a"])), want);
    let stopped = json(&outbox(&park.gateway, &["status", "--json"]));
    for of in ["epoch", "next", "settled", "records"] {
        assert_eq!(stopped["lanes"]["a"][of], status["lanes"]["a"][of], "{of}");
    }
    let text = outbox(&park.gateway, &["status"]);
    assert!(text.contains("the daemon is stopped") && text.contains("sudo systemctl start gardu"), "{text}");
    let from = running[5].0;
    let part = outbox(&park.gateway, &["list", "--lane", "a", "--from", &from.to_string(), "--limit", "3"]);
    let lines: Vec<&str> = part.lines().collect();
    assert!(lines.len() == 4 && lines[0].contains(&running[5].1) && lines[3].contains("--from"), "{part}");

    // What was only copied is delivered all the same.
    park.broker.restart();
    park.gateway.start();
    let ids: BTreeSet<String> = want.into_iter().collect();
    park.center.wait_for("everything that was exported", |ledger| {
        let arrived: BTreeSet<&str> = ledger.events.iter().filter_map(|event| event.body["id"].as_str()).collect();
        ids.iter().all(|id| arrived.contains(id.as_str())).then_some(())
    });
    park.center.assert_complete();
}

#[test]
fn a_stuck_daemon_keeps_nobody_from_its_backlog() {
    let park = cut_off(4.0);
    let running = listed(&park.gateway);
    let pid = i32::try_from(park.gateway.pid()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::STOP).expect("it runs");
    let text = outbox(&park.gateway, &["status"]);
    assert!(text.contains(&format!("process {} holds the outbox", park.gateway.pid())), "{text}");
    let stuck = listed(&park.gateway);
    kill_process(pid, Signal::CONT).expect("it runs");
    assert!(stuck.starts_with(&running), "{stuck:?}\n{running:?}");
}

#[test]
fn what_was_set_aside_is_salvaged_on_any_machine() {
    let mut park = cut_off(8.0);
    let waiting = listed(&park.gateway);
    park.gateway.kill9();
    let aside = park.gateway.outbox().join("bad-1-alarm-1");
    fs::rename(park.gateway.outbox().join("alarm-1"), &aside).expect("it is there");
    let (from, to) = (aside.display().to_string(), park.gateway.outbox().join("salvaged.jsonl"));
    let to = to.display().to_string();

    // A laptop has no configuration of the gateway.
    let laptop = Command::new(BINARY)
        .args(["--config", "/nonexistent/gardu.toml", "--lang", "en", "outbox", "salvage", &from, "-o", &to])
        .output()
        .expect("the binary starts");
    assert_eq!(laptop.status.code(), Some(0), "{}", said(&laptop));
    assert!(said(&laptop).contains("are whole"), "{}", said(&laptop));
    let lines = fs::read_to_string(&to).expect("written");
    let found: Vec<Value> = lines.lines().map(json).collect();
    let keys: BTreeSet<&str> = found.iter().filter_map(|line| line["key"].as_str()).collect();
    for (place, id) in &waiting {
        let [epoch, lane, number] = id.split('-').collect::<Vec<_>>()[..] else { panic!("{id}") };
        assert!(keys.contains(format!("{lane}-{epoch}-{number}-{place}").as_str()), "{id} is not salvaged");
    }
    assert!(found.iter().any(|line| line["kind"] == "alarm" && line["key"] == "panel/door/open"), "{lines}");
    let again = park.gateway.run(&["outbox", "salvage", &from, "-o", &to]);
    assert_eq!(again.status.code(), Some(73), "a file is never overwritten: {}", said(&again));

    let events = ids(&outbox(&park.gateway, &["salvage", &from, "--events"]));
    assert!(waiting.iter().all(|(_, id)| events.contains(id)), "{events:?}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_tool_in_peace() {
    let park = cut_off(4.0);
    for arguments in [&["list"][..], &["export"], &["status"]] {
        let mut child = Command::new(BINARY)
            .arg("--config")
            .arg(park.gateway.config())
            .arg("outbox")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        drop(child.stdout.take());
        let ended = child.wait_with_output().expect("it ends");
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {}", said(&ended));
        assert!(!said(&ended).contains("panicked"), "{}", said(&ended));
    }
}

#[test]
fn where_there_is_no_outbox_the_tool_says_so() {
    let plan = Plan { access: Access::Open, command_center: "", body: CABINET };
    let gateway = Gateway::configured(&configuration(&plan, 1883, 1502));
    for command in ["status", "list", "export"] {
        let output = gateway.run(&["outbox", command]);
        assert_eq!(output.status.code(), Some(66), "{command}: {}", said(&output));
        assert!(said(&output).contains("outbox.path"), "{}", said(&output));
    }
}
