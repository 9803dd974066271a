//! TLS to the command center, with the files that ship for its broker: who is let in, who may say what, and what a
//! person reads when it does not work.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{
    broker::{Access, Broker, CENTER, GATEWAY},
    center::Center,
    certificates::{ALWAYS, Authority, Identity, client_config},
    gateway::{Gateway, wipe},
    mqtt::{Connection, Packet, Retain, Version},
    park::{CABINET, CAMERAS, ID, Park, Plan, TLS_FILES},
    until,
};

/// The smallest gateway: nothing is connected to it, but it sends its status.
fn configuration(url: &str, files: &str) -> String {
    format!(
        "[gateway]\nid = \"{ID}\"\nlanguage = \"en\"\n\n[command_center]\nurls = [\"{url}\"]\n{files}\n\
         [outbox]\npath = \"{{dir}}/outbox\"\n\n[http]\nlisten = \"127.0.0.1:{{http}}\"\n"
    )
}

#[test]
fn a_gateway_with_its_certificate_delivers_reads_back_and_is_commanded() {
    let mut park = Park::open_with(&Plan { access: Access::Certificates, command_center: "", body: CABINET });
    park.wait_until_good("panel/door");
    park.plc.set(1, "discrete:0", 1);
    park.center.wait_for_transition("raised", "panel/door/open");
    assert_eq!(park.acknowledge("panel/door/open", 1)["result"], "ok");
    park.center.wait_for_state("panel/door/open", "ACKED");
    park.restart();
    park.mark();
    park.center.assert_complete();
    // Only by reading back can a gateway that has forgotten everything know what the broker still shows.
    park.gateway.kill9();
    wipe(&park.gateway.outbox());
    park.plc.set(1, "discrete:0", 0);
    park.gateway.start();
    park.center.wait_for_state("panel/door/open", "NORM");
}

#[test]
fn a_certificate_opens_only_the_tree_it_names() {
    let mut park = Park::open_with(&Plan { access: Access::Certificates, command_center: "", body: CABINET });
    park.center.wait_for_status("the gateway online", |status| status["state"] == "online");
    park.mark();
    let denied = |park: &Park| {
        let seen: Value = serde_json::from_slice(&park.gateway.run(&["status", "--json"]).stdout).unwrap_or_default();
        seen["alarms"].to_string().contains("gateway/delivery-refused")
    };
    assert!(!denied(&park), "its own tree is open to it");
    // The same gateway with another's certificate.
    park.gateway.kill9();
    park.gateway.write_identity(&park.broker.authority.client("taman-lain", ALWAYS));
    park.gateway.start();
    until("the broker denies what is not its own", || denied(&park));
}

/// What the broker says to `publish`es of the user named `gateway`: its tree is the one of that name.
#[test]
fn the_rights_that_ship_allow_the_contract_and_nothing_else() {
    let broker = Broker::start_with(Access::Certificates);
    let mut center = Connection::open_patiently(broker.port, Version::V5, "center", Some(CENTER));
    center.subscribe("#").expect("the broker runs");
    assert!(matches!(center.next(), Ok(Packet::Suback { granted: true })));
    let code = |topic: &str| {
        let mut gateway = Connection::open_patiently(broker.port, Version::V5, "gardu", Some(GATEWAY));
        let code = gateway.publish(topic, b"x", Retain::No);
        code.unwrap_or_else(|e| panic!("{topic}: {e}"))
    };
    let own = [
        "event/high",
        "alarm/panel/door/open",
        "alarm/cam07/intrusion/kolam/open",
        "telemetry/panel",
        "device/panel",
        "status",
        "reply",
        "reply/readback",
    ];
    for topic in own {
        assert_eq!(code(&format!("gardu/v1/gateway/{topic}")), 0, "{topic}");
    }
    let foreign = [
        "gardu/v1/gateway/command",
        "gardu/v1/gateway/receipt",
        "gardu/v1/gateway/other",
        "gardu/v1/gateway",
        "gardu/v1/other/event/high",
        "gardu/v1/other/status",
        "gardu/v1/other/command",
        "gardu/v1/center/status",
        "gardu/v2/gateway/status",
        "status",
    ];
    for topic in foreign {
        assert_eq!(code(topic), 0x87, "{topic}");
    }
    // What it hears: a marker at the end, for the rest has then arrived or never will.
    let mut gateway = Connection::open_patiently(broker.port, Version::V5, "gardu", Some(GATEWAY));
    gateway.subscribe("#").expect("the broker runs");
    assert!(matches!(gateway.next(), Ok(Packet::Suback { .. })));
    let hears = ["status", "alarm/a/b/c", "receipt", "reply/readback", "command"];
    let silent = ["event/high", "telemetry/panel", "device/panel", "reply", "reply/other"];
    let mut sent: Vec<String> = silent.iter().map(|topic| format!("gardu/v1/gateway/{topic}")).collect();
    sent.extend(["gardu/v1/other/command", "gardu/v1/other/status", "elsewhere"].map(str::to_owned));
    let mut heard: Vec<String> = vec!["gardu/v1/center/status".to_owned()];
    heard.extend(hears.map(|topic| format!("gardu/v1/gateway/{topic}")));
    for topic in sent.iter().chain(&heard) {
        assert_eq!(center.publish(topic, b"x", Retain::No).expect("the center may do everything"), 0, "{topic}");
    }
    for topic in heard {
        match gateway.next() {
            Ok(Packet::Publish(message)) => assert_eq!(message.topic, topic),
            other => panic!("{topic}: {other:?}"),
        }
    }
}

/// A gateway, its broker and its center; nobody has started the gateway.
struct Stage {
    gateway: Gateway,
    center: Center,
    broker: Broker,
}

impl Stage {
    fn new() -> Self {
        let broker = Broker::start_with(Access::Certificates);
        let center = Center::start(broker.port, Version::V5, ID, Some(CENTER));
        let gateway = Gateway::configured("");
        let stage = Self { gateway, center, broker };
        stage.configure("mqtts", stage.broker.tls_port, TLS_FILES);
        stage.trust(&stage.broker.authority);
        stage.gateway.write_identity(&stage.broker.authority.client(ID, ALWAYS));
        stage
    }

    fn configure(&self, scheme: &str, port: u16, files: &str) {
        self.gateway.configure(&configuration(&format!("{scheme}://127.0.0.1:{port}"), files));
    }

    fn trust(&self, authority: &Authority) {
        self.gateway.write("ca.crt", &authority.cert());
    }

    fn restart_broker_as(&mut self, names: &[&str], years: std::ops::Range<i32>) {
        let identity = self.broker.authority.server(names, years);
        self.broker.restart_as(&identity);
    }

    /// What the daemon says about its uplink in `gardu status`, as a program and as a person see it.
    fn status(&self) -> (Value, String) {
        let words = |arguments: &[&str]| String::from_utf8_lossy(&self.gateway.run(arguments).stdout).into_owned();
        (serde_json::from_str(&words(&["status", "--json"])).unwrap_or_default(), words(&["status"]))
    }

    /// Waits until the refusal is counted, logged and shown; `says` is the part of its sentence by which a technician
    /// finds it in the README. Returns the whole sentence.
    fn assert_refused(&self, word: &str, says: &str) -> String {
        assert!(include_str!("../../README.md").contains(&format!("*{says}*")), "the README does not explain `{says}`");
        self.gateway
            .wait_for_metric(&format!("gardu_uplink_reconnects_total{{reason=\"{word}\"}}"), |count| count >= 1.0);
        let log = self.gateway.log();
        let line = log.lines().find(|line| line.contains("uplink is down") && line.contains(says));
        let line = line.unwrap_or_else(|| panic!("no line says `{says}`\n{log}"));
        let (mut reason, mut row) = (String::new(), String::new());
        // With the time of an attempt in it the sentence changes now and then.
        until("status shows the reason, to programs and to people", || {
            let (program, person) = self.status();
            reason = program["uplink"]["last_reason"].as_str().unwrap_or_default().to_owned();
            row = person.lines().find(|row| row.contains(&reason)).unwrap_or_default().to_owned();
            reason.contains(says) && !row.is_empty()
        });
        eprintln!("{word}\n  log:    {}\n  status: {}", line.trim(), row.trim());
        assert_eq!(self.gateway.metric("gardu_uplink_connected"), 0.0);
        assert_eq!(self.center.ledger().status_now(), &Value::Null, "nothing was said to a broker that is not trusted");
        reason
    }

    fn assert_connects(&self) {
        let mended = Instant::now();
        self.center.wait_for_status("the gateway online", |status| status["state"] == "online");
        eprintln!("  mended: online {:.1} s later", mended.elapsed().as_secs_f64());
        self.gateway.wait_for_metric("gardu_uplink_connected", |up| up > 0.0);
        assert_eq!(self.center.ask(json!({ "command": "alarms" }))["result"], "ok");
    }
}

fn refused_until_the_right_ca_file_is_there(other: &str) {
    let mut stage = Stage::new();
    stage.trust(&Authority::new(other));
    stage.gateway.start();
    stage.assert_refused("tls-unknown-issuer", "we do not trust who issued the broker's certificate");
    stage.trust(&stage.broker.authority);
    stage.assert_connects();
}

#[test]
fn a_broker_of_another_authority_is_refused_until_the_right_ca_file_is_there() {
    refused_until_the_right_ca_file_is_there("Lain CA");
}

#[test]
fn a_broker_of_an_authority_made_anew_is_refused_until_the_new_ca_file_is_there() {
    refused_until_the_right_ca_file_is_there("Gardu CA"); // as the broker's is called, but with another key
}

#[test]
fn an_expired_broker_is_refused_until_it_is_renewed() {
    let mut stage = Stage::new();
    stage.restart_broker_as(&["127.0.0.1"], 2001..2002);
    stage.gateway.start();
    let reason = stage.assert_refused("tls-expired", "the broker's certificate expired");
    assert!(reason.contains(" on 2002-01-01T00:00:00"), "{reason}");
    stage.restart_broker_as(&["127.0.0.1"], ALWAYS);
    stage.assert_connects();
}

#[test]
fn a_broker_of_the_future_is_refused_until_it_is_corrected() {
    let mut stage = Stage::new();
    stage.restart_broker_as(&["127.0.0.1"], 2088..2090);
    stage.gateway.start();
    let reason = stage.assert_refused("tls-not-yet-valid", "the broker's certificate is not yet valid");
    assert!(reason.contains(" before 2088-01-01T00:00:00"), "{reason}");
    stage.restart_broker_as(&["127.0.0.1"], ALWAYS);
    stage.assert_connects();
}

#[test]
fn a_broker_with_another_name_is_refused_until_it_has_the_right_one() {
    let mut stage = Stage::new();
    stage.restart_broker_as(&["cc1.example.go.id"], ALWAYS);
    stage.gateway.start();
    let reason = stage.assert_refused("tls-wrong-name", "the broker's certificate is not for");
    assert!(reason.contains(" `127.0.0.1` but for cc1.example.go.id:"), "{reason}");
    stage.restart_broker_as(&["cc1.example.go.id", "127.0.0.1"], ALWAYS);
    stage.assert_connects();
}

#[test]
fn a_gateway_without_certificate_is_refused_until_it_has_one() {
    let mut stage = Stage::new();
    stage.configure("mqtts", stage.broker.tls_port, "ca_file = \"{dir}/ca.crt\"\n");
    stage.gateway.start();
    stage.assert_refused("tls-client-required", "the broker wants a certificate of ours");
    stage.gateway.kill9();
    stage.configure("mqtts", stage.broker.tls_port, TLS_FILES);
    stage.gateway.start();
    stage.assert_connects();
}

#[test]
fn a_gateway_with_a_foreign_certificate_is_refused_until_the_right_one_is_there() {
    let mut stage = Stage::new();
    stage.gateway.write_identity(&Authority::new("Lain CA").client(ID, ALWAYS));
    stage.gateway.start();
    stage.assert_refused("tls-client-refused", "the broker refuses our certificate");
    stage.gateway.write_identity(&stage.broker.authority.client(ID, ALWAYS));
    stage.assert_connects();
}

#[test]
fn a_gateway_whose_certificate_expired_is_refused_until_it_is_renewed() {
    let mut stage = Stage::new();
    stage.gateway.write_identity(&stage.broker.authority.client(ID, 2001..2002));
    stage.gateway.start();
    stage.assert_refused("tls-client-refused", "the broker refuses our certificate");
    stage.gateway.write_identity(&stage.broker.authority.client(ID, ALWAYS));
    stage.assert_connects();
}

#[test]
fn a_key_that_became_unreadable_is_named_until_it_is_back() {
    let mut stage = Stage::new();
    stage.gateway.start();
    stage.assert_connects();
    stage.gateway.write("gateway.key", "");
    stage.broker.kill9();
    stage.broker.restart();
    stage.gateway.wait_for_metric("gardu_uplink_reconnects_total{reason=\"tls-files\"}", |count| count >= 1.0);
    let session = stage.center.ledger().status_now()["session"].as_u64();
    let (seen, _) = stage.status();
    let reason = seen["uplink"]["last_reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("gateway.key") && reason.contains("private key"), "{seen}");
    eprintln!("tls-files\n  status: {reason}");
    stage.gateway.write_identity(&stage.broker.authority.client(ID, ALWAYS));
    let newer = |status: &Value| status["state"] == "online" && status["session"].as_u64() > session;
    stage.center.wait_for_status("the gateway online again", newer);
}

#[test]
fn plain_mqtt_at_the_port_of_tls_says_that_the_broker_hangs_up() {
    let mut stage = Stage::new();
    stage.configure("mqtt", stage.broker.tls_port, "");
    stage.gateway.start();
    stage.assert_refused("closed", "the broker closed the connection");
    stage.gateway.kill9();
    stage.configure("mqtts", stage.broker.tls_port, TLS_FILES);
    stage.gateway.start();
    stage.assert_connects();
}

#[test]
fn tls_at_the_port_of_plain_mqtt_says_so() {
    let mut stage = Stage::new();
    stage.configure("mqtts", stage.broker.port, TLS_FILES);
    stage.gateway.start();
    stage.assert_refused("tls-aborted", "closed in the middle of the TLS handshake");
    stage.gateway.kill9();
    stage.configure("mqtts", stage.broker.tls_port, TLS_FILES);
    stage.gateway.start();
    stage.assert_connects();
}

/// Cameras that publish straight to the gateway, with certificates of the authority in `devices.crt`.
fn cameras_with_certificates() -> String {
    let keys = "client_ca_file = \"{dir}/devices.crt\"\ntls_cert_file = \"{dir}/listener.crt\"\n\
                tls_key_file = \"{dir}/listener.key\"";
    let listen = "listen = \"127.0.0.1:{ingest}\"";
    CAMERAS.replace(listen, &format!("{listen}\n{keys}"))
}

#[test]
fn cameras_publish_straight_to_the_gateway_over_tls_and_only_those_with_a_certificate() {
    let (devices, old, new) = (Authority::new("Devices"), Authority::new("Old"), Authority::new("New"));
    let mut park =
        Park::furnish(&Plan { access: Access::Open, command_center: "", body: &cameras_with_certificates() });
    let show = |park: &Park, own: &Identity| {
        park.gateway.write("listener.crt", &own.cert);
        park.gateway.write("listener.key", &own.key);
    };
    park.gateway.write("devices.crt", &devices.cert());
    show(&park, &old.server(&["localhost"], ALWAYS));
    park.gateway.start();
    let camera = devices.client("cam1", ALWAYS);
    let open = |trusts: &Authority, shows: Option<&Identity>| {
        Connection::open_tls(park.gateway.ingest, client_config(trusts, shows), "camera")
    };
    let publish = |trusts: &Authority, payload: &str| -> bool {
        let published = open(trusts, Some(&camera))
            .and_then(|mut connection| connection.publish("cam/cam1/motion", payload.as_bytes(), Retain::No));
        published.is_ok_and(|code| code == 0)
    };
    until("the listener is there", || publish(&old, "true"));
    park.center.wait_for_transition("raised", "cam1/motion/intruder");
    assert!(open(&old, None).is_err(), "who shows none is refused");
    assert!(open(&old, Some(&old.client("cam1", ALWAYS))).is_err(), "who shows another's is refused");
    assert!(Connection::open(park.gateway.ingest, Version::V5, "camera", None).is_err(), "who has no TLS is refused");
    let log = park.gateway.log();
    assert!(log.contains("it shows no certificate, which `client_ca_file` asks for"), "{log}");
    // A renewed certificate counts without a restart; while it is only half there, the old one does.
    park.gateway.write("listener.key", "");
    until("the fault is told", || {
        assert!(publish(&old, "true"), "the old one stays");
        park.gateway.log().contains("the listener's new certificate files cannot be used")
    });
    show(&park, &new.server(&["localhost"], ALWAYS));
    until("the new one is shown", || publish(&new, "false"));
    park.center.wait_for_transition("cleared", "cam1/motion/intruder");
    assert!(open(&old, Some(&camera)).is_err(), "the old one is gone");
    park.center.assert_complete();
}
