//! `gardu check`: problems with their places, or the plan: what the gateway will do, how busy its buses are and what it
//! costs in mobile data.
//!
//! The plan is an estimate before anything runs; every assumption in it is a constant here and is said in the text.

mod buses;

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, path::Path, time::Duration};

use serde_json::{Value as Json, json};

use self::buses::BusPlan;
use super::{Form, exit};
use crate::{
    config::{
        self, BrokerUrl, Config, Endpoint, Gpio, I2cDevice, Language, Login, Need, Problems, Report, Scheme,
        Subscription, TemplateSegment, units,
    },
    source::modbus::timing::{ROUND_TRIP, TURNAROUND},
    text,
};

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
pub fn run(path: &Path, language: Option<Language>, form: Form) -> u8 {
    let result = config::load(path, Need::Reachable);
    let configured = match &result {
        Ok(config) => Some(config.gateway.language),
        Err(problems) => problems.language,
    };
    let locale = || Language::of_locale(|name| std::env::var(name).ok());
    let language = language.or(configured).or_else(locale).unwrap_or_default();
    let (stdout, stderr, exit) = report(&result, language, form);
    print!("{stdout}");
    eprint!("{stderr}");
    exit
}

/// What goes to standard output and standard error, and the exit code: 0, or 78 for a configuration with problems.
#[must_use]
pub fn report(result: &Result<Config, Problems>, language: Language, form: Form) -> (String, String, u8) {
    match (result, form) {
        (Ok(config), Form::Text) => (plan_text(config, &Plan::of(config), language), String::new(), 0),
        (Ok(config), Form::Json) => (line(&plan_json(config, &Plan::of(config))), String::new(), 0),
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

/// What the configuration amounts to.
struct Plan<'a> {
    buses: Vec<BusPlan<'a>>,
    /// Points known by name.
    points: usize,
    /// Subscriptions whose messages name the points.
    open: usize,
    /// Bytes in 30 days over the uplink, for known points.
    month_bytes: u64,
}

impl<'a> Plan<'a> {
    fn of(config: &'a Config) -> Self {
        let subscriptions = || config.mqtt.iter().flat_map(|input| &input.subscriptions);
        let open = subscriptions().filter(|s| is_open(s)).count();
        let fixed = subscriptions().count() - open;
        let points = fixed + wired(config).count();
        let buses = config.modbus.iter().map(BusPlan::of).collect();
        Self { buses, points, open, month_bytes: month_bytes(config) }
    }
}

/// Every point of a bus or of the gateway's own pins: its device, and how it is reported.
fn wired(config: &Config) -> impl Iterator<Item = (&str, Report)> {
    let modbus = config.modbus.iter().flat_map(|bus| &bus.devices);
    let modbus = modbus.flat_map(|device| device.points.iter().map(|point| (device.name.as_str(), point.report)));
    // A contact has its state and its counter.
    let twice = |gpio: &Gpio| gpio.contacts.iter().flat_map(|contact| [contact.report; 2]).collect::<Vec<_>>();
    let gpio =
        config.gpio.iter().flat_map(move |gpio| twice(gpio).into_iter().map(|report| (gpio.name.as_str(), report)));
    let i2c = config.i2c.iter();
    let i2c = i2c.flat_map(|device| device.points.iter().map(|point| (device.name.as_str(), point.report)));
    modbus.chain(gpio).chain(i2c)
}

/// Addresses that a login travels to unencrypted, each with the text that says so.
fn exposed(config: &Config) -> Vec<(&'static str, String)> {
    let stays_here = |host: &str| {
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    };
    let broker = |login: &Option<Login>, url: &BrokerUrl| {
        let exposed = login.is_some() && url.scheme == Scheme::Mqtt && !stays_here(&url.host);
        exposed.then(|| ("check-plan-plain", url.to_string()))
    };
    let center = &config.command_center;
    let inputs = config.mqtt.iter().filter_map(|input| match &input.endpoint {
        Endpoint::Broker { url, login, .. } => broker(login, url),
        Endpoint::Listen { address, login: Some(_), tls: None } if !address.ip().is_loopback() => {
            Some(("check-plan-plain-listen", address.to_string()))
        }
        Endpoint::Listen { .. } => None,
    });
    center.urls.iter().filter_map(|url| broker(&center.login, url)).chain(inputs).collect()
}

fn is_open(subscription: &Subscription) -> bool {
    subscription.point.0.iter().any(|segment| matches!(segment, TemplateSegment::Capture(_)))
}

/// Telemetry of known points, the status, and nothing for alarms: they are few, or the bill is the least of it.
fn month_bytes(config: &Config) -> u64 {
    let mqtt = config.mqtt.iter().flat_map(|input| &input.subscriptions).filter(|s| !is_open(s));
    let mqtt = mqtt.filter_map(|s| match s.point.0.first() {
        Some(TemplateSegment::Exactly(device)) => Some((device.as_str(), s.report)),
        Some(TemplateSegment::Capture(_)) | None => None,
    });
    let mut on_interval: BTreeMap<&str, u64> = BTreeMap::new();
    let mut on_change = 0;
    for (device, report) in wired(config).chain(mqtt) {
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

fn plan_json(config: &Config, plan: &Plan<'_>) -> Json {
    let gpio = |gpio: &Gpio| json!({"name": gpio.name, "chip": gpio.chip, "contacts": gpio.contacts.len(), "poll_ms": gpio.poll.as_millis() as u64});
    let i2c = |device: &I2cDevice| json!({"name": device.name, "bus": device.bus, "points": device.points.len(), "poll_ms": device.poll.as_millis() as u64});
    let input = |input: &config::MqttInput| json!({"name": input.name, "subscriptions": input.subscriptions.len()});
    json!({
        "ok": true,
        "gateway": config.gateway.id,
        "config": config.fingerprint,
        "buses": plan.buses.iter().map(BusPlan::json).collect::<Vec<_>>(),
        "gpio": config.gpio.iter().map(gpio).collect::<Vec<_>>(),
        "i2c": config.i2c.iter().map(i2c).collect::<Vec<_>>(),
        "mqtt": config.mqtt.iter().map(input).collect::<Vec<_>>(),
        "points": plan.points,
        "unencrypted": exposed(config).into_iter().map(|(_, at)| at).collect::<Vec<_>>(),
        "open_subscriptions": plan.open,
        "rules": config.rules.len(),
        "month_bytes": plan.month_bytes,
        "assumed": {"round_trip_ms": ROUND_TRIP.as_millis() as u64, "turnaround_ms": TURNAROUND.as_millis() as u64,
                    "batch_bytes": BATCH_BYTES, "reading_bytes": READING_BYTES,
                    "change_every_s": CHANGE_EVERY.as_secs(), "month_days": MONTH.as_secs() / 86_400},
    })
}

fn plan_text(config: &Config, plan: &Plan<'_>, language: Language) -> String {
    let mut out = String::new();
    let mut say = |indent: usize, key: &str, args: &[text::Arg<'_>]| {
        writeln!(out, "{:indent$}{}", "", text::say(language, key, args)).expect("writing to a string cannot fail");
    };
    say(
        0,
        "check-plan-ok",
        &[("id", config.gateway.id.as_str().into()), ("name", config.gateway.name.as_str().into())],
    );
    let urls: Vec<String> = config.command_center.urls.iter().map(ToString::to_string).collect();
    say(0, "check-plan-center", &[("urls", urls.join(", ").into())]);
    for bus in &plan.buses {
        bus.text(&mut say);
    }
    buses::assumed(&plan.buses, &mut say);
    let mut pins = |key, name: &str, file: &Path, count: usize, poll| {
        let (at, poll) = (file.display().to_string(), units::show_duration(poll));
        say(0, key, &[("name", name.into()), ("at", at.into()), ("count", count.into()), ("poll", poll.into())]);
    };
    for Gpio { name, chip, contacts, poll, .. } in &config.gpio {
        pins("check-plan-gpio", name.as_str(), chip, contacts.len(), *poll);
    }
    for I2cDevice { name, bus, points, poll, .. } in &config.i2c {
        pins("check-plan-i2c", name.as_str(), bus, points.len(), *poll);
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
    for (key, at) in exposed(config) {
        say(0, key, &[("at", at.into())]);
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

    /// A file with two points and one more, if given, on one device.
    fn text(url: &str, poll: &str, point: &str) -> String {
        format!(
            "[gateway]
id = 'taman'
[command_center]
urls = ['mqtt://cc1']
[[modbus]]
name = 'cabinet'
url = '{url}'
[[modbus.device]]
name = 'panel'
unit = 7
poll = '{poll}'
point = [{{ name = 'door', register = 'coil:0' }}, {{ name = 'temp', register = 'input:0' }}, {point}]
[[mqtt]]
name = 'sensors'
listen = '127.0.0.1:1883'
[[mqtt.subscribe]]
topic = 's/{{device}}'
point = '{{device}}/level'
"
        )
    }

    /// The plan or the problems of a file.
    fn checked_text(text: &str, language: Language, form: Form) -> (String, String, u8) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("gardu.toml");
        std::fs::write(&path, text).expect("a file");
        report(&config::load(&path, Need::Reachable), language, form)
    }

    fn checked(poll: &str, language: Language, form: Form) -> (String, String, u8) {
        checked_text(&text("tcp://10.0.0.5", poll, ""), language, form)
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
Alarm rules: 7 (built-in ones included)
Telemetry data a month: about 22.7 MB
  assumed: 30 days, 900 bytes a message and 110 bytes a reading, points on \"change\" change every 10m; alarms are not counted
";
        assert_eq!(english, expected);
        let (indonesian, ..) = checked("1s", Language::Indonesian, Form::Text);
        assert_eq!(indonesian.lines().count(), english.lines().count());
        assert!(indonesian.contains("panel, unit 7: 2 titik, 2 permintaan tiap 1s, sekitar 10 ms"), "{indonesian}");
    }

    #[test]
    fn what_hangs_on_the_gateways_own_pins_is_in_the_plan() {
        let pins = "[[gpio]]\nname = 'header'\nchip = '/dev/gpiochip0'\ncontact = [{ name = 'door', line = 17 }]\n\
                    [[i2c]]\nname = 'air'\nbus = '/dev/i2c-1'\nchip = 'sht4x'\n";
        let base = text("tcp://10.0.0.5", "1s", "");
        let (plan, ..) = checked_text(&format!("{base}{pins}"), Language::English, Form::Text);
        let lines = [
            "Contacts header (/dev/gpiochip0): contacts 1, levels looked at each 1s",
            "Sensor air (/dev/i2c-1): points 2, measured each 10s",
            "Points: 6",
        ];
        assert!(lines.iter().all(|line| plan.lines().any(|said| said == *line)), "{plan}");
        let (plan, ..) = checked_text(&format!("{base}{pins}"), Language::Indonesian, Form::Text);
        assert!(plan.contains("Kontak header (/dev/gpiochip0): 1 kontak, diperiksa tiap 1s"), "{plan}");
        let (json, ..) = checked_text(&format!("{base}{pins}"), Language::English, Form::Json);
        let json: Json = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&json["gpio"][0]["contacts"], &json["i2c"][0]["points"]), (&1.into(), &2.into()));
    }

    #[test]
    fn a_login_that_travels_unencrypted_is_named() {
        let text = "[gateway]\nid = 'taman'\n[command_center]\nusername = 'u'\n\
                    urls = ['mqtt://cc1', 'mqtts://cc2', 'mqtt://[::1]', 'mqtt://localhost', 'mqtt://127.0.0.2']\n\
                    [[mqtt]]\nname = 'open'\nurl = 'mqtt://cc3'\n[[mqtt.subscribe]]\ntopic = 'a'\npoint = 'a/b'\n\
                    [[mqtt]]\nname = 'with'\nurl = 'mqtt://[fd00::1]'\nusername = 'u'\n\
                    [[mqtt.subscribe]]\ntopic = 'a'\npoint = 'c/d'\n\
                    [[mqtt]]\nname = 'cctv'\nlisten = '10.0.0.1:1883'\nusername = 'u'\npassword_file = 'p'\n\
                    [[mqtt.subscribe]]\ntopic = 'a'\npoint = 'e/f'\n";
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("gardu.toml");
        std::fs::write(&path, text).expect("a file");
        let config = config::load(&path, Need::None);
        let said = |language, form| report(&config, language, form).0;
        let json: Json = serde_json::from_str(&said(Language::English, Form::Json)).expect("JSON");
        assert_eq!(json["unencrypted"], json!(["mqtt://cc1:1883", "mqtt://[fd00::1]:1883", "10.0.0.1:1883"]));
        for (language, word) in [(Language::English, "unencrypted"), (Language::Indonesian, "tanpa enkripsi")] {
            let plan = said(language, Form::Text);
            let lines: Vec<&str> = plan.lines().filter(|line| line.contains(word)).collect();
            assert_eq!(lines.len(), 3, "{plan}");
            assert!(lines[0].contains("mqtt://cc1:1883") && lines[2].contains(" 10.0.0.1:1883"), "{plan}");
        }
    }

    #[test]
    fn a_bus_that_cannot_keep_up_is_warned_of_but_allowed() {
        let (full, ..) = checked("10ms", Language::English, Form::Text);
        assert!(full.contains("bus 100.0 % busy") && !full.contains("WARNING"), "{full}");
        let point = "{ name = 'x', register = 'holding:0' }";
        let (text, _, exit) = checked_text(&text("tcp://10.0.0.5", "10ms", point), Language::English, Form::Text);
        assert!(text.contains("WARNING: 3 requests a cycle, about 15 ms; bus 150.0 % busy") && exit == 0, "{text}");
    }

    /// The lines about a bus at this address, the first left out.
    fn bus_lines(url: &str, poll: &str, point: &str, language: Language) -> String {
        let (out, problems, _) = checked_text(&text(url, poll, point), language, Form::Text);
        assert_eq!(problems, "");
        out.lines().skip(2).take_while(|line| !line.starts_with("MQTT")).collect::<Vec<_>>().join("\n")
    }

    /// 8 + 6 and 8 + 7 characters of 10 bits, twice 4.01 ms of silence and 5 ms: 27.6 and 28.6 ms at 9600.
    #[test]
    fn a_serial_line_shows_its_rate_and_the_time_of_its_frames() {
        let expected = "\
Bus cabinet (rtu:///dev/serial/by-id/usb-1, 9600 8N1)
  panel, unit 7: points 3, requests 2 each 1s, about 57 ms
  in all 2 requests a cycle, about 57 ms; bus 5.6 % busy
  assumed on a serial line: devices begin to answer after 5 ms, a converter takes 5 ms more";
        let coil = "{ name = 'lamp', register = 'coil:5' }";
        let said = bus_lines("rtu:///dev/serial/by-id/usb-1", "1s", coil, Language::English);
        assert_eq!(said, expected);
        let said = bus_lines("rtu+tcp://10.0.0.6:4196?parity=even", "1s", coil, Language::English);
        assert!(said.starts_with("Bus cabinet (rtu+tcp://10.0.0.6:4196, 9600 8E1)\n"), "{said}");
        assert!(said.contains("about 70 ms"), "{said}");
    }

    #[test]
    fn what_will_not_work_out_on_a_serial_line_is_said_with_what_to_write() {
        let warned = |url: &str, poll: &str, point: &str, english: &str, indonesian: &str| {
            for (language, expected) in [(Language::English, english), (Language::Indonesian, indonesian)] {
                let said = bus_lines(url, poll, point, language);
                assert!(said.lines().any(|line| line == format!("  {expected}")), "{said}");
            }
        };
        let coil = "{ name = 'lamp', register = 'coil:5' }";
        warned(
            "rtu:///dev/ttyUSB0",
            "60ms",
            coil,
            "WARNING: 2 requests a cycle, about 57 ms; bus 93.8 % busy, too little is left for slow or silent devices; lengthen poll",
            "PERINGATAN: 2 permintaan per putaran, sekitar 57 ms; bus sibuk 93.8 %, sisa waktu kurang untuk perangkat yang lambat atau diam; perpanjang poll",
        );
        warned(
            "rtu:///dev/ttyUSB0",
            "1s",
            coil,
            "hint: /dev/ttyUSB0 can become another port after a restart; write its name in /dev/serial/by-id",
            "saran: /dev/ttyUSB0 dapat menjadi port lain setelah dinyalakan ulang; tulis namanya di /dev/serial/by-id",
        );
        warned(
            "rtu:///dev/ttyS0?baud=1200",
            "1m",
            "{ name = 'text', register = 'holding:0', type = 'string', length = 125 }",
            "WARNING: the longest answer takes 2261 ms on this line, but timeout is 500ms; write timeout = \"2500ms\"",
            "PERINGATAN: jawaban terpanjang memerlukan 2261 ms di kabel ini, sedangkan timeout 500ms; tulis timeout = \"2500ms\"",
        );
        warned(
            "rtu:///dev/ttyS0",
            "1s",
            "{ name = 'x', register = 'coil:1' }]\n[[modbus.device]]\nname = 'lamp'\nunit = 7\npoint = [{ name = 'y', register = 'coil:0' }",
            "hint: panel, lamp are the same unit 7; on a serial line a late answer to one can be taken for the other's: write them as one device",
            "saran: panel, lamp adalah unit 7 yang sama; di kabel serial jawaban yang terlambat bisa tertukar di antara keduanya: tulis sebagai satu perangkat",
        );
        let quiet = bus_lines("rtu:///dev/ttyS0", "1s", coil, Language::English);
        assert!(!quiet.contains("WARNING") && !quiet.contains("hint"), "{quiet}");
    }

    /// A node on a line of its own, with these keys of the device.
    fn node(url: &str, keys: &str) -> String {
        format!(
            "[gateway]\nid = 'taman'\n[command_center]\nurls = ['mqtt://cc1']\n[[modbus]]\nname = 'pole'\nurl = '{url}'\n\
             [[modbus.device]]\nname = 'node'\nunit = 1\n{keys}\n"
        )
    }

    #[test]
    fn a_device_with_a_profile_says_which_and_how_it_comes_set() {
        let plan = |url, language| {
            let (text, problems, _) = checked_text(&node(url, "profile = 'gardu-node'"), language, Form::Text);
            assert_eq!(problems, "");
            text
        };
        // 8 and 5 + 2 × 23 characters of 10 bits at 9600, twice 4.01 ms of silence and 5 ms: 74.5 ms.
        let said = plan("rtu:///dev/ttyS0", Language::English);
        let line = "  node, unit 1, profile gardu-node version 1: points 40, requests 1 each 1s, about 75 ms";
        assert_eq!(said.lines().nth(3), Some(line), "{said}");
        assert!(!said.contains("hint"), "{said}");
        let said = plan("rtu:///dev/ttyS0?baud=19200&parity=even", Language::English);
        let hint = "  hint: node: devices of profile gardu-node come set to 9600 8N1, this line is 19200 8E1; set them to it if that has not been done";
        assert!(said.lines().any(|line| line == hint), "{said}");
        let said = plan("rtu+tcp://10.0.0.6:4196?baud=19200", Language::Indonesian);
        let hint = "  saran: node: perangkat dengan profil gardu-node bawaannya disetel 9600 8N1, sedangkan kabel ini 19200 8N1; samakan setelan perangkatnya bila belum";
        assert!(said.lines().any(|line| line == hint), "{said}");
        let said = plan("tcp://10.0.0.6", Language::Indonesian);
        assert!(
            said.contains("node, unit 1, profil gardu-node versi 1: 40 titik") && !said.contains("saran"),
            "{said}"
        );
    }

    #[test]
    fn a_profile_of_the_operator_is_told_from_one_that_ships() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("gardu.toml");
        std::fs::write(&path, node("tcp://10.0.0.5", "profile = 'xy-md02'")).expect("a file");
        let said = |form| report(&config::load(&path, Need::Reachable), Language::English, form).0;
        let profile = || {
            let json: Json = serde_json::from_str(&said(Form::Json)).expect("one JSON value");
            json["buses"][0]["devices"][0]["profile"].clone()
        };
        assert!(!said(Form::Text).contains("your own profile"));
        assert_eq!(
            (&profile()["name"], &profile()["version"], &profile()["file"]),
            (&"xy-md02".into(), &1.into(), &Json::Null)
        );
        let own = folder.path().join("profiles/xy-md02.toml");
        std::fs::create_dir(folder.path().join("profiles")).expect("a folder");
        let text = "[profile]\nversion = 7\ntitle = 'S'\nsource = 'us'\n[[point]]\nname = 'a'\nregister = 'coil:0'\n";
        std::fs::write(&own, text).expect("a file");
        assert!(
            said(Form::Text).contains(&format!(
                "version 7: points 1, requests 1 each 1s, about 5 ms\n    your own profile: {}\n",
                own.display()
            )),
            "{}",
            said(Form::Text)
        );
        assert_eq!(profile()["file"], own.to_str().expect("text"));
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
