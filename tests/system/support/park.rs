//! A small park, wired up: broker, PLC, command center and gateway of one test.

use std::time::Instant;

use serde_json::{Value, json};

use super::{
    PATIENCE,
    broker::{Access, Broker, CENTER, GATEWAY},
    center::Center,
    certificates::ALWAYS,
    gateway::Gateway,
    ledger::Event,
    mqtt::{Publisher, Version},
    pause,
    plc::Plc,
    toml,
};

/// The gateway's id in every test.
pub(crate) const ID: &str = "taman-uji";

/// What a test asks for beyond the defaults.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Who may use the broker.
    pub(crate) access: Access,
    /// More lines of `[command_center]`.
    pub(crate) command_center: &'a str,
    /// Everything after it; `{plc}`, `{ingest}` and `{source}` are filled in.
    pub(crate) body: &'a str,
}

/// Everything, running. The gateway ends first.
#[derive(Debug)]
pub(crate) struct Park {
    pub(crate) gateway: Gateway,
    pub(crate) center: Center,
    pub(crate) plc: Plc,
    pub(crate) broker: Broker,
}

impl Park {
    /// Starts everything on an open broker, with a subscriber present, and waits until the gateway is online.
    pub(crate) fn open(body: &str) -> Self {
        Self::open_with(&Plan { access: Access::Open, command_center: "", body })
    }

    /// The same, with a plan.
    pub(crate) fn open_with(plan: &Plan<'_>) -> Self {
        let mut park = Self::furnish(plan);
        park.gateway.start();
        park.center.wait_for_status("the gateway online", |status| status["state"] == "online");
        park
    }

    /// Everything but the gateway's process.
    pub(crate) fn furnish(plan: &Plan<'_>) -> Self {
        let broker = Broker::start_with(plan.access);
        let url = url(plan.access, if plan.access == Access::Certificates { broker.tls_port } else { broker.port });
        Self::furnish_around(broker, &[&url], plan)
    }

    /// The same with a broker that is there, and where the gateway finds it.
    pub(crate) fn furnish_around(broker: Broker, urls: &[&str], plan: &Plan<'_>) -> Self {
        let plc = Plc::start();
        let login = (plan.access != Access::Open).then_some(CENTER);
        let center = Center::start(broker.port, Version::V5, ID, login);
        let gateway = Gateway::configured(&configuration_with(plan, urls, plc.port));
        gateway.write("password", GATEWAY.1);
        gateway.write("ca.crt", &broker.authority.cert());
        gateway.write_identity(&broker.authority.client(ID, ALWAYS));
        Self { gateway, center, plc, broker }
    }

    /// A camera that publishes straight to the gateway.
    pub(crate) fn camera(&self, version: Version) -> Publisher {
        Publisher::new(self.gateway.ingest, version, "camera")
    }

    /// Kills the daemon and starts it again.
    pub(crate) fn kill_and_start(&mut self) {
        self.gateway.kill9();
        self.gateway.start();
    }

    /// The same, and waits until the command center can talk to it again: what is asked before that is not delivered.
    pub(crate) fn restart(&mut self) {
        let before = self.center.ledger().status_now()["session"].as_u64();
        self.kill_and_start();
        let newer = |status: &Value| status["state"] == "online" && status["session"].as_u64() > before;
        self.center.wait_for_status("the gateway online again", newer);
    }

    /// Waits until the gateway has read a point well.
    pub(crate) fn wait_until_good(&self, point: &str) {
        self.wait_until_read(point, "good");
    }

    /// Waits until the gateway says this quality of a point; returns what it says.
    pub(crate) fn wait_until_read(&self, point: &str, quality: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.center.ask(json!({ "command": "read", "point": point }));
            if answer["data"]["quality"] == quality {
                return answer["data"].clone();
            }
            assert!(Instant::now() < deadline, "{point} is never {quality}: {answer}");
            pause();
        }
    }

    /// Stops the gateway in peace, while it is connected, and returns its last status.
    pub(crate) fn stop(&mut self) -> Value {
        self.gateway.wait_for_metric("gardu_uplink_connected", |up| up > 0.0);
        let ended = self.gateway.sigterm();
        assert_eq!(ended.code, Some(0), "{}", self.gateway.log());
        self.center.wait_for_status("the gateway offline", |status| status["state"] == "offline")
    }

    /// Sends a test alarm and returns the last number it caused in lane a: everything before is in the books.
    pub(crate) fn mark(&self) -> u64 {
        let answer = self.center.ask(json!({ "command": "test", "severity": "info" }));
        assert_eq!(answer["result"], "ok", "{answer}");
        let result = |event: &&Event| event.kind.starts_with("gardu.command.") && event.data("id") == &answer["id"];
        self.center.wait_for("the record of a test alarm", |ledger| {
            ledger.events.iter().find(result).map(|event| event.sequence)
        })
    }

    /// Proves that nothing happened since [`Park::mark`]: numbers have no gaps, and the next ones are a test's.
    pub(crate) fn assert_nothing_since(&self, mark: u64) {
        self.mark();
        let next = self.center.wait_for("the next number", |ledger| {
            ledger.events.iter().find(|event| event.lane == 'a' && event.sequence == mark + 1).cloned()
        });
        assert_eq!(next.data("test"), &json!(true), "something happened meanwhile: {}", next.body);
    }

    /// Waits until the gateway has read every register twice since now, and has thought about it.
    pub(crate) fn wait_for_polls(&self) {
        self.plc.wait_for_requests(3 * CABINET_REQUESTS);
    }

    /// Acknowledges what stands now.
    pub(crate) fn acknowledge(&self, alarm: &str, occurrence: u64) -> Value {
        let asked = json!({ "command": "acknowledge", "alarm": alarm, "occurrence": occurrence, "comment": "dicek" });
        self.center.ask(asked)
    }
}

/// The whole file.
pub(crate) fn configuration(plan: &Plan<'_>, broker: u16, plc: u16) -> String {
    configuration_with(plan, &[&url(plan.access, broker)], plc)
}

/// Where a broker listens on this machine.
pub(crate) fn url(access: Access, port: u16) -> String {
    let scheme = if access == Access::Certificates { "mqtts" } else { "mqtt" };
    format!("{scheme}://127.0.0.1:{port}")
}

fn configuration_with(plan: &Plan<'_>, urls: &[&str], plc: u16) -> String {
    let login = match plan.access {
        Access::Open => String::new(),
        Access::Users => format!("username = \"{}\"\npassword_file = \"{{dir}}/password\"\n", GATEWAY.0),
        Access::Certificates => TLS_FILES.to_owned(),
    };
    format!(
        "[gateway]\nid = \"{ID}\"\nlanguage = \"en\"\n\n[command_center]\nurls = {urls:?}\n\
         {login}{}\n\n[outbox]\npath = \"{{dir}}/outbox\"\n\n[http]\nlisten = \"127.0.0.1:{{http}}\"\n\n{}",
        plan.command_center,
        plan.body.replace("{plc}", &plc.to_string()),
    )
}

/// What a gateway needs for a broker that wants certificates.
pub(crate) const TLS_FILES: &str = "ca_file = \"{dir}/ca.crt\"\nclient_cert_file = \"{dir}/gateway.crt\"\n\
                                    client_key_file = \"{dir}/gateway.key\"\n";

/// Requests of one poll of [`CABINET`]: one a table.
const CABINET_REQUESTS: u64 = 3;

/// A cabinet with a door, a temperature and a pump; every alarm wants an acknowledgement.
pub(crate) const CABINET: &str = r#"
[[modbus]]
name = "cabinet"
url = "tcp://127.0.0.1:{plc}"
timeout = "300ms"

[[modbus.device]]
name = "panel"
unit = 1
poll = "100ms"

[[modbus.device.point]]
name = "door"
register = "discrete:0"
type = "bool"

[[modbus.device.point]]
name = "temp"
register = "input:0"
type = "i16"
unit = "°C"

[[modbus.device.point]]
name = "smoke"
register = "discrete:1"
type = "bool"

[[modbus.device.point]]
name = "pump"
register = "holding:0"
type = "u16"

[[alarm]]
name = "open"
point = "panel/door"
when = { is = true }
severity = "high"
message = { id = "Pintu panel terbuka", en = "Cabinet door open" }

[[alarm]]
name = "hot"
point = "panel/temp"
when = { above = 80, deadband = 5 }
severity = "medium"

[[alarm]]
name = "fire"
point = "panel/smoke"
when = { is = true }
severity = "critical"
latch = true

[[alarm]]
name = "dry"
point = "panel/pump"
when = { below = 10 }
severity = "low"
"#;

/// Three cameras that publish straight to the gateway; their alarms come and go by themselves.
pub(crate) const CAMERAS: &str = r#"
[[mqtt]]
name = "cctv"
listen = "127.0.0.1:{ingest}"

[[mqtt.subscribe]]
topic = "cam/{device}/{name}"
format = "json"
point = "{device}/{name}"
value = ""

[[alarm]]
name = "intruder"
point = "+/motion"
when = { is = true }
severity = "high"
ack_required = false
"#;

/// Meters on one bus, each with `count` input registers whose every change is telemetry: `meter1/p0` and so on. Registers
/// stand in groups of ten with holes between them, as meters have them.
pub(crate) fn meters(poll: &str, count: u16, devices: u8) -> String {
    let mut toml = toml::bus("meters");
    for unit in 1..=devices {
        toml += &toml::device(&format!("meter{unit}"), unit, poll);
        for n in 0..count {
            toml += &toml::point(&format!("p{n}"), &format!("input:{}", meter_address(n)));
            toml += "type = \"u16\"\nreport = \"change\"\n";
        }
    }
    toml
}

/// Where register `n` of a meter lies: groups of ten, 60 apart.
pub(crate) const fn meter_address(n: u16) -> u16 {
    n / 10 * 70 + n % 10
}
