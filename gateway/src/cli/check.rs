//! `gardu check`: problems with their places, or the plan: what the gateway will do, how busy its buses are and what it
//! costs in mobile data.
//!
//! The plan is an estimate before anything runs; every assumption in it is a constant here and is said in the text.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, path::Path, time::Duration};

use serde_json::{Value as Json, json};

use super::{Form, exit};
use crate::{
    config::{
        self, BrokerUrl, Config, Device, Endpoint, Language, Link, Login, Need, Problems, Report, Scheme, Subscription,
        TemplateSegment, units,
    },
    text,
};

/// Round trip of one Modbus TCP request on a local network with a typical small device.
const ROUND_TRIP_MS: u64 = 5;
/// A telemetry message without its readings: envelope, topic, MQTT, TCP and IP, and the PUBACK.
const BATCH_BYTES: u64 = 900;
/// One reading inside a message.
const READING_BYTES: u64 = 110;
/// The gateway's own status: one message of this size each [`STATUS_EVERY`].
const STATUS_BYTES: u64 = 1_500;
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// How often a point that is reported on change is taken to change: a door, a lamp, a level with a deadband.
const CHANGE_EVERY: Duration = Duration::from_secs(600);
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// Checks the file and prints what is to be said; the exit code is returned.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the edge where text leaves the program")]
pub fn run(path: &Path, language: Option<Language>, form: Form, requests_of: impl Fn(&Device) -> usize) -> u8 {
    let result = config::load(path, Need::Reachable);
    let configured = match &result {
        Ok(config) => Some(config.gateway.language),
        Err(problems) => problems.language,
    };
    let locale = || Language::of_locale(|name| std::env::var(name).ok());
    let language = language.or(configured).or_else(locale).unwrap_or_default();
    let (stdout, stderr, exit) = report(&result, language, form, requests_of);
    print!("{stdout}");
    eprint!("{stderr}");
    exit
}

/// What goes to standard output and standard error, and the exit code: 0, or 78 for a configuration with problems.
#[must_use]
pub fn report(
    result: &Result<Config, Problems>,
    language: Language,
    form: Form,
    requests_of: impl Fn(&Device) -> usize,
) -> (String, String, u8) {
    match (result, form) {
        (Ok(config), Form::Text) => (plan_text(config, &Plan::of(config, requests_of), language), String::new(), 0),
        (Ok(config), Form::Json) => (line(&plan_json(config, &Plan::of(config, requests_of))), String::new(), 0),
        (Err(problems), Form::Text) => {
            let total = text::say(language, "check-refused", &[("count", problems.total.into())]);
            (String::new(), format!("{}\n{total}\n", problems.render(language)), exit::CONFIG)
        }
        (Err(problems), Form::Json) => (line(&problems_json(problems, language)), String::new(), exit::CONFIG),
    }
}

fn line(json: &Json) -> String {
    format!("{json}\n")
}

fn problems_json(problems: &Problems, language: Language) -> Json {
    let problem = |p: &config::problem::Problem| {
        let (line, column) = p.place.position.unzip();
        json!({"file": p.place.file, "line": line, "column": column, "kind": p.kind, "text": p.text(language)})
    };
    let shown: Vec<Json> = problems.shown.iter().map(problem).collect();
    json!({"ok": false, "total": problems.total, "problems": shown})
}

/// One bus, estimated.
struct BusPlan {
    name: String,
    url: String,
    devices: Vec<DevicePlan>,
}

/// One device, estimated.
struct DevicePlan {
    name: String,
    unit: u8,
    poll: Duration,
    points: usize,
    requests: usize,
}

impl DevicePlan {
    fn cycle_ms(&self) -> u64 {
        (self.requests as u64).saturating_mul(ROUND_TRIP_MS)
    }

    /// Share of the bus's time, in percent.
    fn busy_percent(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of one cycle")]
        let cycle_ms = self.cycle_ms() as f64;
        cycle_ms / (self.poll.as_secs_f64() * 1_000.0) * 100.0
    }
}

impl BusPlan {
    fn requests(&self) -> usize {
        self.devices.iter().map(|device| device.requests).sum()
    }

    fn cycle_ms(&self) -> u64 {
        self.devices.iter().map(DevicePlan::cycle_ms).sum()
    }

    fn busy_percent(&self) -> f64 {
        self.devices.iter().map(DevicePlan::busy_percent).sum()
    }
}

/// What the configuration amounts to.
struct Plan {
    buses: Vec<BusPlan>,
    /// Points known by name.
    points: usize,
    /// Subscriptions whose messages name the points.
    open: usize,
    /// Bytes in 30 days over the uplink, for known points.
    month_bytes: u64,
}

impl Plan {
    fn of(config: &Config, requests_of: impl Fn(&Device) -> usize) -> Self {
        let device = |device: &Device| DevicePlan {
            name: device.name.to_string(),
            unit: device.unit,
            poll: device.poll,
            points: device.points.len(),
            requests: requests_of(device),
        };
        let buses: Vec<BusPlan> = config
            .modbus
            .iter()
            .map(|bus| BusPlan {
                name: bus.name.to_string(),
                url: url(&bus.link),
                devices: bus.devices.iter().map(device).collect(),
            })
            .collect();
        let subscriptions = || config.mqtt.iter().flat_map(|input| &input.subscriptions);
        let open = subscriptions().filter(|s| is_open(s)).count();
        let fixed = subscriptions().count() - open;
        let points = fixed + config.modbus.iter().flat_map(|bus| &bus.devices).map(|d| d.points.len()).sum::<usize>();
        Self { buses, points, open, month_bytes: month_bytes(config) }
    }
}

fn url(link: &Link) -> String {
    match link {
        Link::Tcp { host, port } => format!("tcp://{host}:{port}"),
        Link::Rtu { path, .. } => format!("rtu://{}", path.display()),
        Link::RtuOverTcp { host, port, .. } => format!("rtu+tcp://{host}:{port}"),
    }
}

/// Whether everybody on the way can read the login.
fn exposes(login: Option<&Login>, url: &BrokerUrl) -> bool {
    let host = url.host.trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    login.is_some() && url.scheme == Scheme::Mqtt && !here
}

/// Addresses that a login travels to unencrypted.
fn exposed(config: &Config) -> Vec<&BrokerUrl> {
    let center = &config.command_center;
    let inputs = config.mqtt.iter().filter_map(|input| match &input.endpoint {
        Endpoint::Broker { url, login, .. } => Some((login, url)),
        Endpoint::Listen { .. } => None,
    });
    let all = center.urls.iter().map(|url| (&center.login, url)).chain(inputs);
    all.filter(|(login, url)| exposes(login.as_ref(), url)).map(|(_, url)| url).collect()
}

fn is_open(subscription: &Subscription) -> bool {
    subscription.point.0.iter().any(|segment| matches!(segment, TemplateSegment::Capture(_)))
}

/// Telemetry of known points, the status, and nothing for alarms: they are few, or the bill is the least of it.
fn month_bytes(config: &Config) -> u64 {
    let modbus = config.modbus.iter().flat_map(|bus| &bus.devices);
    let modbus = modbus.flat_map(|device| device.points.iter().map(|point| (device.name.as_str(), point.report)));
    let mqtt = config.mqtt.iter().flat_map(|input| &input.subscriptions).filter(|s| !is_open(s));
    let mqtt = mqtt.filter_map(|s| match s.point.0.first() {
        Some(TemplateSegment::Exactly(device)) => Some((device.as_str(), s.report)),
        Some(TemplateSegment::Capture(_)) | None => None,
    });
    let mut on_interval: BTreeMap<&str, u64> = BTreeMap::new();
    let mut on_change = 0;
    for (device, report) in modbus.chain(mqtt) {
        match report {
            Report::Interval => *on_interval.entry(device).or_default() += 1,
            Report::Change { .. } => on_change += 1,
            Report::Off => {}
        }
    }
    let batch: u64 = on_interval.values().map(|readings| BATCH_BYTES + readings * READING_BYTES).sum();
    batch * times(config.telemetry.interval)
        + on_change * (BATCH_BYTES + READING_BYTES) * times(CHANGE_EVERY)
        + STATUS_BYTES * times(STATUS_EVERY)
}

/// How often something happens in a month.
const fn times(every: Duration) -> u64 {
    let every_s = every.as_secs();
    MONTH.as_secs() / if every_s == 0 { 1 } else { every_s }
}

fn plan_json(config: &Config, plan: &Plan) -> Json {
    let device = |d: &DevicePlan| {
        json!({"name": d.name, "unit": d.unit, "poll_ms": d.poll.as_millis() as u64, "points": d.points,
               "requests": d.requests, "cycle_ms": d.cycle_ms(), "busy_percent": d.busy_percent()})
    };
    let bus = |b: &BusPlan| {
        json!({"name": b.name, "url": b.url, "requests": b.requests(), "cycle_ms": b.cycle_ms(),
               "busy_percent": b.busy_percent(), "devices": b.devices.iter().map(device).collect::<Vec<_>>()})
    };
    let input = |input: &config::MqttInput| json!({"name": input.name, "subscriptions": input.subscriptions.len()});
    json!({
        "ok": true,
        "gateway": config.gateway.id,
        "config": config.fingerprint,
        "buses": plan.buses.iter().map(bus).collect::<Vec<_>>(),
        "mqtt": config.mqtt.iter().map(input).collect::<Vec<_>>(),
        "points": plan.points,
        "unencrypted": exposed(config).into_iter().map(ToString::to_string).collect::<Vec<_>>(),
        "open_subscriptions": plan.open,
        "rules": config.rules.len(),
        "month_bytes": plan.month_bytes,
        "assumed": {"round_trip_ms": ROUND_TRIP_MS, "batch_bytes": BATCH_BYTES, "reading_bytes": READING_BYTES,
                    "change_every_s": CHANGE_EVERY.as_secs(), "month_days": MONTH.as_secs() / 86_400},
    })
}

fn plan_text(config: &Config, plan: &Plan, language: Language) -> String {
    let mut out = String::new();
    let mut say = |indent: usize, key: &str, args: &[text::Arg<'_>]| {
        writeln!(out, "{:indent$}{}", "", text::say(language, key, args)).expect("writing to a string cannot fail");
    };
    let percent = |x: f64| format!("{x:.1}");
    say(
        0,
        "check-plan-ok",
        &[("id", config.gateway.id.as_str().into()), ("name", config.gateway.name.as_str().into())],
    );
    let urls: Vec<String> = config.command_center.urls.iter().map(ToString::to_string).collect();
    say(0, "check-plan-center", &[("urls", urls.join(", ").into())]);
    for bus in &plan.buses {
        say(0, "check-plan-bus", &[("name", bus.name.as_str().into()), ("url", bus.url.as_str().into())]);
        for device in &bus.devices {
            let args = [
                ("name", device.name.as_str().into()),
                ("unit", device.unit.to_string().into()),
                ("points", device.points.into()),
                ("requests", device.requests.into()),
                ("poll", units::show_duration(device.poll).into()),
                ("cycle", device.cycle_ms().to_string().into()),
            ];
            say(2, "check-plan-device", &args);
        }
        let busy = bus.busy_percent();
        let args = [
            ("requests", bus.requests().into()),
            ("cycle", bus.cycle_ms().to_string().into()),
            ("busy", percent(busy).into()),
        ];
        say(2, if busy > 100.0 { "check-plan-bus-over" } else { "check-plan-bus-sum" }, &args);
    }
    if !plan.buses.is_empty() {
        say(2, "check-plan-assumed-trip", &[("ms", ROUND_TRIP_MS.to_string().into())]);
    }
    for input in &config.mqtt {
        let at = match &input.endpoint {
            Endpoint::Broker { url, .. } => url.to_string(),
            Endpoint::Listen { address, .. } => address.to_string(),
        };
        let key = match input.endpoint {
            Endpoint::Broker { .. } => "check-plan-mqtt",
            Endpoint::Listen { .. } => "check-plan-mqtt-listen",
        };
        let count = input.subscriptions.len().into();
        say(0, key, &[("name", input.name.as_str().into()), ("at", at.into()), ("count", count)]);
    }
    for url in exposed(config) {
        say(0, "check-plan-plain", &[("at", url.to_string().into())]);
    }
    say(0, "check-plan-points", &[("points", plan.points.into())]);
    if plan.open > 0 {
        say(0, "check-plan-open", &[("count", plan.open.into())]);
    }
    say(0, "check-plan-rules", &[("rules", config.rules.len().into())]);
    say(0, "check-plan-data", &[("size", megabytes(plan.month_bytes).into())]);
    let args = [
        ("batch", BATCH_BYTES.to_string().into()),
        ("reading", READING_BYTES.to_string().into()),
        ("change", units::show_duration(CHANGE_EVERY).into()),
    ];
    say(2, "check-plan-assumed-data", &args);
    out
}

/// Megabytes as a data plan counts them, one decimal, rounded up: an estimate of cost must not be too small.
fn megabytes(bytes: u64) -> String {
    let tenths = bytes.div_ceil(100_000);
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan or the problems of a file with two points on one device.
    fn checked(poll: &str, language: Language, form: Form) -> (String, String, u8) {
        let text = format!(
            "[gateway]
id = 'taman'
[command_center]
urls = ['mqtt://cc1']
[[modbus]]
name = 'cabinet'
url = 'tcp://10.0.0.5'
[[modbus.device]]
name = 'panel'
unit = 7
poll = '{poll}'
point = [{{ name = 'door', register = 'coil:0' }}, {{ name = 'temp', register = 'input:0' }}]
[[mqtt]]
name = 'sensors'
listen = '127.0.0.1:1883'
[[mqtt.subscribe]]
topic = 's/{{device}}'
point = '{{device}}/level'
"
        );
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("gardu.toml");
        std::fs::write(&path, text).expect("a file");
        report(&config::load(&path, Need::Reachable), language, form, |device| device.points.len())
    }

    #[test]
    fn a_valid_configuration_shows_its_plan_in_both_languages() {
        let (english, nothing, exit) = checked("1s", Language::English, Form::Text);
        assert_eq!((nothing.as_str(), exit), ("", 0));
        let expected = "\
The configuration is valid: taman (taman)
Command center: mqtt://cc1:1883
Bus cabinet (tcp://10.0.0.5:502)
  panel, unit 7: points 2, requests 2 each 1s, about 10 ms
  in all 2 requests a cycle, about 10 ms; bus 1.0 % busy
  assumed: 5 ms for one Modbus TCP request
MQTT sensors: subscriptions 1, devices publish to 127.0.0.1:1883
Points: 2
Subscriptions whose messages name their points: 1; not counted in the data estimate
Alarm rules: 2 (built-in ones included)
Telemetry data a month: about 22.7 MB
  assumed: 30 days, 900 bytes a message and 110 bytes a reading, points on \"change\" change every 10m; alarms are not counted
";
        assert_eq!(english, expected);
        let (indonesian, ..) = checked("1s", Language::Indonesian, Form::Text);
        assert_eq!(indonesian.lines().count(), english.lines().count());
        assert!(indonesian.contains("panel, unit 7: 2 titik, 2 permintaan tiap 1s, sekitar 10 ms"), "{indonesian}");
    }

    #[test]
    fn a_login_that_travels_unencrypted_is_named() {
        let text = "[gateway]\nid = 'taman'\n[command_center]\nusername = 'u'\n\
                    urls = ['mqtt://cc1', 'mqtts://cc2', 'mqtt://[::1]', 'mqtt://localhost', 'mqtt://127.0.0.2']\n\
                    [[mqtt]]\nname = 'open'\nurl = 'mqtt://cc3'\n[[mqtt.subscribe]]\ntopic = 'a'\npoint = 'a/b'\n\
                    [[mqtt]]\nname = 'with'\nurl = 'mqtt://[fd00::1]'\nusername = 'u'\n\
                    [[mqtt.subscribe]]\ntopic = 'a'\npoint = 'c/d'\n";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("gardu.toml");
        std::fs::write(&path, text).expect("a file");
        let config = config::load(&path, Need::Reachable);
        let said = |language, form| report(&config, language, form, |_| 0).0;
        let json: Json = serde_json::from_str(&said(Language::English, Form::Json)).expect("JSON");
        assert_eq!(json["unencrypted"], json!(["mqtt://cc1:1883", "mqtt://[fd00::1]:1883"]));
        for (language, word) in [(Language::English, "unencrypted"), (Language::Indonesian, "tanpa enkripsi")] {
            let plan = said(language, Form::Text);
            let lines: Vec<&str> = plan.lines().filter(|line| line.contains(word)).collect();
            assert_eq!(lines.len(), 2, "{plan}");
            assert!(lines[0].contains("mqtt://cc1:1883"), "{plan}");
        }
    }

    #[test]
    fn a_bus_that_cannot_keep_up_is_warned_of_but_allowed() {
        let (full, ..) = checked("10ms", Language::English, Form::Text);
        assert!(full.contains("bus 100.0 % busy") && !full.contains("WARNING"), "{full}");
        let more = |device: &Device| device.points.len() + 1;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("gardu.toml");
        std::fs::write(&path, include_str!("../../../config/gardu.toml").replace("poll = \"1s\"", "poll = \"10ms\""))
            .expect("a file");
        let (text, _, exit) = report(&config::load(&path, Need::Reachable), Language::English, Form::Text, more);
        assert!(text.contains("WARNING") && exit == 0, "{text}");
    }

    #[test]
    fn problems_go_to_standard_error_with_exit_code_78() {
        let (nothing, english, exit) = checked("1 s", Language::English, Form::Text);
        assert_eq!((nothing.as_str(), exit), ("", exit::CONFIG));
        assert!(english.contains("gardu.toml:11:8: `poll` does not know `1 s`"), "{english}");
        assert!(english.ends_with("\n1 problem. This configuration is not used.\n"), "{english}");
    }

    #[test]
    fn programs_read_plan_and_problems_as_json() {
        let json = |poll| {
            let (stdout, stderr, exit) = checked(poll, Language::English, Form::Json);
            assert_eq!(stderr, "");
            (serde_json::from_str::<Json>(&stdout).expect("one JSON value"), exit)
        };
        let (plan, exit) = json("1s");
        assert_eq!((&plan["ok"], exit), (&Json::Bool(true), 0));
        assert_eq!(plan["buses"][0]["devices"][0]["requests"], 2);
        assert_eq!(plan["month_bytes"], 22_636_800);
        let (problems, exit) = json("0");
        assert_eq!((&problems["ok"], exit), (&Json::Bool(false), exit::CONFIG));
        let first = &problems["problems"][0];
        assert_eq!(
            (&first["line"], &first["column"], &first["kind"]),
            (&11.into(), &8.into(), &"check-duration".into())
        );
    }
}
