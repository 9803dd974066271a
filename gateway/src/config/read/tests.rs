//! Every mistake at its exact place: `«kind»` in a text stands right before the place where that problem belongs.

use std::{fs, time::Duration};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    alarm::{
        AlarmId, Severity,
        rule::{Acknowledgement, Condition, Naming},
    },
    config::{DeliveredWhen, Endpoint, Language, MqttVersion, Order, Table, Type, problem::SHOWN_MAX},
    reading::{PointId, Value},
    text,
};

/// The daemon's way to read, outside systemd.
const ALONE: Secrets<'static> = Secrets { need: Need::All, credentials: None };

/// A valid start, for texts about something else.
const BASE: &str = "[gateway]\nid = 'taman'\n[command_center]\nurls = ['mqtt://127.0.0.1']\n";
/// A bus with points of every kind.
const BUS: &str = "
    [[modbus]]
    name = 'cabinet'
    url = 'tcp://10.0.0.5'
    [[modbus.device]]
    name = 'panel'
    unit = 1
    point = [
        { name = 'door', register = 'discrete:0' },
        { name = 'temp', register = 'input:1', type = 'i16', scale = 0.1, range = [-40, 80] },
        { name = 'presses', register = 'input:2' },
        { name = 'serial', register = 'input:8', type = 'string', length = 4 },
    ]
";
const SHIPPED: &str = include_str!("../../../../config/gardu.toml");

mod mistakes;
mod pins;
mod profiles;
mod serial;
mod tls;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder");
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// File, line, column and kind of every problem, in order.
    fn problems(&self) -> Vec<(String, usize, usize, String)> {
        let problems = load_with(&self.path("gardu.toml"), ALONE).err().map(|p| p.shown).unwrap_or_default();
        let row = |p: crate::config::problem::Problem| {
            let (line, column) = p.place.position.unwrap_or((0, 0));
            let file = p.place.file.strip_prefix(self.0.path()).expect("a file of ours").display().to_string();
            (file, line, column, p.kind.to_owned())
        };
        problems.into_iter().map(row).collect()
    }
}

/// Takes the `«kind»` marks out of a text, and says where they stood.
fn unmark(file: &str, marked: &str) -> (String, Vec<(String, usize, usize, String)>) {
    let (mut text, mut marks) = (String::new(), Vec::new());
    for (i, piece) in marked.split('«').enumerate() {
        let piece = match (i, piece.split_once('»')) {
            (0, _) | (_, None) => piece,
            (_, Some((kind, rest))) => {
                let column = text.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
                marks.push((file.to_owned(), text.matches('\n').count() + 1, column, format!("check-{kind}")));
                rest
            }
        };
        text.push_str(piece);
    }
    (text, marks)
}

/// The files have exactly the marked problems.
fn check_files(files: &[(&str, &str)]) {
    let folder = Folder::new();
    let mut expected = Vec::new();
    for (name, marked) in files {
        let (text, marks) = unmark(name, marked);
        folder.write(name, text);
        expected.extend(marks);
    }
    let mut found = folder.problems();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{files:#?}");
}

fn load_text(text: &str) -> Config {
    let folder = Folder::new();
    let path = folder.write("gardu.toml", format!("{BASE}{text}"));
    load_with(&path, ALONE).unwrap_or_else(|problems| panic!("{problems}"))
}

/// An alarm with this condition on this point of [`BUS`].
fn alarm(point: &str, when: &str) -> String {
    format!("{BUS}\n[[alarm]]\nname = 'x'\nseverity = 'high'\npoint = {point}\nwhen = {when}\n")
}

/// An MQTT input with this subscription.
fn subscription(keys: &str) -> String {
    format!("[[mqtt]]\nname = 'm'\nurl = 'mqtt://a'\n[[mqtt.subscribe]]\n{keys}\n")
}

#[test]
fn the_shipped_example_is_valid() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/gardu.toml"));
    let config = load_with(path, ALONE).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.gateway.name, "Taman Elektrik");
    assert_eq!((config.modbus.len(), config.mqtt.len()), (1, 1));
    let names: Vec<&str> = config.rules.iter().map(|rule| rule.name.as_str()).collect();
    let own = ["open", "pressed", "mains-h", "mains-l", "hot", "high", "intrusion"];
    assert_eq!(names[..7], own);
    let silence = ["communication", "communication", "communication", "communication", "stale"];
    assert_eq!(names[7..12], silence);
    assert_eq!(
        names[12..],
        [
            "delivery-refused",
            "identity-conflict",
            "outbox-evicting",
            "outbox-filling",
            "outbox-full",
            "outbox-unusable"
        ]
    );
    assert_eq!(config.outbox.max_size, 256 * 1024 * 1024);
}

#[test]
fn what_is_not_written_has_its_default() {
    let config = load_text(&format!(
        "{BUS}[[mqtt]]\nname = 'm'\nlisten = '127.0.0.1:1883'\n[[mqtt.subscribe]]\ntopic = 'a/{{d}}'\npoint = '{{d}}/x'\nstale = '5m'\n"
    ));
    assert_eq!((config.gateway.site.as_str(), config.gateway.name.as_str()), ("taman", "taman"));
    assert_eq!((config.gateway.timezone.as_str(), config.gateway.language), ("Asia/Jakarta", Language::Indonesian));
    let center = &config.command_center;
    assert_eq!((center.version, center.delivered_when), (MqttVersion::V5, DeliveredWhen::Subscriber));
    assert_eq!((center.keep_alive, center.topic_prefix.as_str()), (Duration::from_secs(120), "gardu/v1"));
    assert_eq!(center.urls[0].to_string(), "mqtt://127.0.0.1:1883");
    assert_eq!(config.outbox.path, Path::new("/var/lib/gardu/outbox"));
    let week = Duration::from_secs(7 * 24 * 3_600);
    assert_eq!((config.outbox.max_size, config.outbox.telemetry_max_age), (256 * 1024 * 1024, week));
    assert_eq!((config.http.listen.to_string().as_str(), config.http.metrics_listen), ("127.0.0.1:9184", None));
    assert_eq!(config.telemetry.interval, Duration::from_secs(300));
    let bus = &config.modbus[0];
    assert_eq!(bus.link, super::super::Link::Tcp { host: "10.0.0.5".into(), port: 502 });
    assert_eq!(bus.timeout, Duration::from_millis(500));
    let device = &bus.devices[0];
    assert_eq!((device.unit, device.poll, device.missed_polls), (1, Duration::from_secs(1), 3));
    let types: Vec<(Table, Type)> = device.points.iter().map(|p| (p.table, p.type_)).collect();
    let expected = [
        (Table::Discrete, Type::Bool),
        (Table::Input, Type::I16),
        (Table::Input, Type::U16),
        (Table::Input, Type::Text { registers: 4 }),
    ];
    assert_eq!(types, expected);
    let door = &device.points[0];
    assert_eq!((door.order, door.scale, door.offset, door.report), (Order::Abcd, 1.0, 0.0, Report::Interval));
    assert!(matches!(config.mqtt[0].endpoint, Endpoint::Listen { login: None, .. }));
    assert_eq!(config.mqtt[0].subscriptions[0].filter(), "a/+");
    assert_eq!(config.fingerprint.len(), 8);
}

#[test]
fn built_in_rules_follow_the_devices_and_the_silence() {
    let stale = subscription("topic = 'a/{d}'\npoint = '{d}/x'\nstale = '5m'");
    let config =
        load_text(&format!("{}\n{stale}", BUS.replace("unit = 1", "unit = 1\ncommunication_severity = 'low'")));
    let [communication, stale, refused, conflict, evicting, filling, full, unusable] = &config.rules[..] else {
        panic!("{:?}", config.rules)
    };
    let id = PointId::parse("panel/communication").expect("a point");
    assert!(matches!(&communication.naming, Naming::Fixed(id) if id.as_str() == "panel/communication"));
    assert_eq!(communication.select.as_point(), Some(id));
    assert_eq!((&communication.when, communication.severity), (&Condition::Is(Value::Bool(true)), Severity::Low));
    assert_eq!(communication.acknowledgement, Acknowledgement::NotRequired);
    assert_eq!(communication.message.id.as_deref(), Some("Perangkat panel tidak menjawab"));
    assert_eq!(stale.when, Condition::Stale(Duration::from_secs(300)));
    assert!(stale.select.matches(&PointId::parse("mote7/x").expect("a point")));
    assert_eq!((stale.severity, stale.acknowledgement), (Severity::Medium, Acknowledgement::NotRequired));
    assert!(matches!(&refused.naming, Naming::Fixed(id) if *id == AlarmId::delivery_refused()));
    assert!(matches!(&conflict.naming, Naming::Fixed(id) if *id == AlarmId::identity_conflict()));
    assert!(matches!(&evicting.naming, Naming::Fixed(id) if *id == AlarmId::outbox_evicting()));
    assert!(matches!(&filling.naming, Naming::Fixed(id) if *id == AlarmId::outbox_filling()));
    assert!(matches!(&full.naming, Naming::Fixed(id) if *id == AlarmId::outbox_full()));
    assert!(matches!(&unusable.naming, Naming::Fixed(id) if *id == AlarmId::outbox_unusable()));
    let severities = [evicting, filling, full, unusable].map(|rule| rule.severity);
    assert_eq!(severities, [Severity::High, Severity::Medium, Severity::Critical, Severity::Critical]);
}

#[test]
fn a_budget_for_the_card_comes_with_its_alarm() {
    let config = load_text(&format!("{BUS}\n[outbox]\nwrite_budget = '2GiB/day'\n"));
    assert_eq!(config.outbox.write_budget_bytes, Some(2 << 30));
    let last = config.rules.last().expect("built-in rules");
    assert!(matches!(&last.naming, Naming::Fixed(id) if *id == AlarmId::flash_budget()));
    assert_eq!((last.severity, last.acknowledgement), (Severity::Low, Acknowledgement::NotRequired));
}

#[test]
fn two_limits_make_two_rules_and_a_message_is_in_the_gateways_language() {
    let config = load_text(&alarm("'panel/temp'\nmessage = 'Panas'", "{ above = 60, below = -5, deadband = 2 }"));
    let rules: Vec<_> = config.rules.iter().take(2).map(|r| (r.name.as_str(), r.when.clone())).collect();
    let expected = [
        ("x-h", Condition::Above { limit: 60.0, deadband: 2.0 }),
        ("x-l", Condition::Below { limit: -5.0, deadband: 2.0 }),
    ];
    assert_eq!(rules, expected);
    assert_eq!(config.rules[0].message.id.as_deref(), Some("Panas"));
    assert_eq!(config.rules[0].message.en, None);
    let silent = load_text(&alarm("'panel/door'", "{ is = true }"));
    assert_eq!(silent.rules[0].message.en.as_deref(), Some("Alarm x at panel/door"));
}

#[test]
fn gardu_d_adds_cabinets_and_extends_buses() {
    let folder = Folder::new();
    folder.write("gardu.toml", format!("{BASE}{BUS}"));
    let device = |name: &str| {
        format!(
            "[[modbus]]\nname = 'cabinet'\n[[modbus.device]]\nname = '{name}'\nunit = 2\npoint = [{{ name = 'a', register = 'coil:0' }}]\n"
        )
    };
    folder.write("gardu.d/b.toml", device("second"));
    folder.write("gardu.d/a.toml", device("first"));
    folder.write("gardu.d/a.toml~", "not read");
    folder.write("gardu.d/.a.toml", "not read");
    let config = load_with(&folder.path("gardu.toml"), ALONE).unwrap_or_else(|problems| panic!("{problems}"));
    let names: Vec<&str> = config.modbus[0].devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["panel", "first", "second"]);
    let before = config.fingerprint;
    folder.write("gardu.d/b.toml", device("third"));
    let after =
        load_with(&folder.path("gardu.toml"), ALONE).unwrap_or_else(|problems| panic!("{problems}")).fingerprint;
    assert_ne!(before, after);
}

#[test]
fn files_that_cannot_be_read_say_so_and_nothing_else() {
    let folder = Folder::new();
    let kinds = || {
        folder
            .problems()
            .into_iter()
            .map(|(_, line, column, kind)| format!("{line}:{column} {kind}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(), ["0:0 check-file-missing"]);
    fs::create_dir(folder.path("gardu.toml")).expect("a folder");
    assert_eq!(kinds(), ["0:0 check-file-folder"]);
    fs::remove_dir(folder.path("gardu.toml")).expect("an empty folder");
    folder.write("gardu.toml", b"[gateway]\nid = '\xff'\n");
    assert_eq!(kinds(), ["2:7 check-utf8"]);
    folder.write("gardu.toml", vec![b'#'; 10_000_000]);
    assert_eq!(kinds(), ["0:0 check-file-large"]);
    folder.write("gardu.toml", BASE);
    folder.write("gardu.d", "a file");
    assert_eq!(kinds(), ["0:0 check-folder"]);
}

#[test]
fn garbage_is_bounded() {
    let folder = Folder::new();
    let render = |bytes: &[u8]| {
        let path = folder.write("gardu.toml", bytes);
        load_with(&path, ALONE).expect_err("garbage").render(Language::English)
    };
    let many: String = (0..50_000).map(|i| format!("k{i} = 1\n")).collect();
    let shown = render(many.as_bytes());
    assert_eq!(shown.lines().count(), SHOWN_MAX + 1);
    assert!(shown.ends_with("… and 49902 more."), "{}", &shown[shown.len() - 60..]);
    for garbage in ["=".repeat(1_000_000), "a.".repeat(500_000), "[".repeat(1_000_000), "a = {".repeat(200_000)] {
        let shown = render(garbage.as_bytes());
        assert!(shown.lines().count() <= SHOWN_MAX + 1 && shown.len() < 100_000);
    }
}

#[test]
fn a_secret_is_read_from_its_file_and_never_shown() {
    let folder = Folder::new();
    let text = format!("{BASE}username = 'u'\npassword_file = 'secret'\n");
    let path = folder.write("gardu.toml", &text);
    folder.write("secret", "rahasia-42\r\n");
    let config = load_with(&path, ALONE).unwrap_or_else(|problems| panic!("{problems}"));
    let login = config.command_center.login.clone().expect("a login");
    assert_eq!(login.password.as_deref(), Some("rahasia-42"));
    assert!(!format!("{config:?}").contains("rahasia"));
    for (bytes, kind) in [
        (&b"rahasia-42\xff"[..], "check-secret-utf8"),
        (b"\n", "check-secret-empty"),
        (&[b'r'; 5_000], "check-secret-unreadable"),
    ] {
        folder.write("secret", bytes);
        let problems = load_with(&path, ALONE).expect_err("a bad secret");
        assert_eq!((problems.shown[0].kind, problems.shown[0].place.position), (kind, Some((6, 17))));
        assert!(!problems.render(Language::English).contains("rahasia-42"));
        assert!(!problems.render(Language::English).contains("rrrr"));
    }
    fs::remove_file(folder.path("secret")).expect("the secret");
    let said = load_with(&path, ALONE).expect_err("no secret").render(Language::English);
    assert!(said.contains("it does not exist") && said.contains("make it with the password"), "{said}");
    let credentials = folder.write("credentials/center", "from systemd");
    let path = folder.write("gardu.toml", text.replace("'secret'", "'${CREDENTIALS_DIRECTORY}/center'"));
    let config = load_with(&path, Secrets { credentials: credentials.parent(), ..ALONE })
        .unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.command_center.login.and_then(|l| l.password).as_deref(), Some("from systemd"));
    check_files(&[(
        "gardu.toml",
        &format!("{BASE}username = 'u'\npassword_file = «credentials»'${{CREDENTIALS_DIRECTORY}}/center'\n"),
    )]);
    check_files(&[("gardu.toml", &format!("{BASE}password_file = «password-alone»«secret-unreadable»'nowhere'\n"))]);
}

#[test]
fn who_has_no_use_for_a_secret_is_not_stopped_by_it() {
    let folder = Folder::new();
    for (file, refused_by) in
        [("${CREDENTIALS_DIRECTORY}/center", &[Need::All][..]), ("nowhere", &[Need::All, Need::Reachable])]
    {
        let path = folder.write("gardu.toml", format!("{BASE}username = 'u'\npassword_file = '{file}'\n"));
        for need in [Need::All, Need::Reachable, Need::None] {
            let refused = load_with(&path, Secrets { need, ..ALONE }).is_err();
            assert_eq!(refused, refused_by.contains(&need), "{file} {need:?}");
        }
    }
}

#[test]
fn ten_mistakes_are_shown_at_once_in_both_languages() {
    let marked = r#"[gateway]
id = «name»"Taman Elektrik"
«unknown-key-near»langage = "id"

[command_center]
urls = [«url-server-name»"mqtts://cc.1"]
keep_alive = «range»"1s"

[[modbus]]
name = "cabinet"
url = «url»"10.0.0.5:502"
[[modbus.device]]
name = "panel"
unit = «unit»300
[[modbus.device.point]]
name = "door"
register = «register»"dicrete:0"

[[alarm]]
name = "door-open"
point = «point-near»"panel/dor"
when = { is = true }
severity = «choice»"severe"
on_delay = «duration»"5"
"#;
    check_files(&[("gardu.toml", marked)]);
    let folder = Folder::new();
    let (text, marks) = unmark("gardu.toml", marked);
    let path = folder.write("gardu.toml", text);
    let problems = load_with(&path, ALONE).expect_err("ten mistakes");
    assert_eq!((problems.total, marks.len()), (10, 10));
    for language in Language::ALL {
        let shown = problems.render(language);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 10);
        for (line, (_, row, column, _)) in lines.iter().zip(&marks) {
            assert!(line.starts_with(&format!("{}:{row}:{column}: ", path.display())), "{line}");
        }
    }
    let indonesian = problems.render(Language::Indonesian);
    assert!(indonesian.contains("titik `panel/dor` tidak ada; mungkin maksudnya `panel/door`"), "{indonesian}");
    let english = problems.render(Language::English);
    assert!(english.contains("unknown key `langage`; did you mean `language`?"), "{english}");
}

#[test]
fn every_text_exists_and_is_used() {
    let sources = [
        include_str!("../read.rs"),
        include_str!("../document.rs"),
        include_str!("../problem.rs"),
        include_str!("../files.rs"),
        include_str!("../names.rs"),
        include_str!("../center.rs"),
        include_str!("../modbus.rs"),
        include_str!("../pins.rs"),
        include_str!("../profile.rs"),
        include_str!("../serial.rs"),
        include_str!("../mqtt.rs"),
        include_str!("../tls.rs"),
        include_str!("../alarms.rs"),
        include_str!("../../cli/check.rs"),
        include_str!("../../cli/check/buses.rs"),
    ];
    let quoted = |source: &'static str| source.split('"').filter(|piece| piece.starts_with("check-"));
    let used: std::collections::BTreeSet<&str> = sources.into_iter().flat_map(quoted).collect();
    let written = include_str!("../../../locales/en/check.ftl").lines().filter_map(|line| line.split_once(" ="));
    let written: std::collections::BTreeSet<&str> =
        written.map(|(key, _)| key).filter(|key| key.starts_with("check-")).collect();
    assert_eq!(used, written);
    assert!(used.iter().all(|key| text::exists(key)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let folder = Folder::new();
        let path = folder.write("gardu.toml", bytes);
        let problems = load_with(&path, ALONE).expect_err("garbage is no configuration");
        prop_assert!(!problems.render(Language::English).is_empty());
    }

    /// Pieces of the valid file cut out, doubled, moved and overwritten: near enough to reach every reader.
    #[test]
    fn mutated_files_never_panic(
        cuts in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..40, "[\\[\\]{}=.\"0-9a-z/#\\n ]{0,4}"), 1..12),
    ) {
        let mut text = SHIPPED.to_owned();
        for (at, length, insert) in cuts {
            let start = text.floor_char_boundary(at.index(text.len()));
            let end = text.floor_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end.max(start), &insert);
        }
        let folder = Folder::new();
        let path = folder.write("gardu.toml", text);
        if let Err(problems) = load_with(&path, ALONE) {
            for language in Language::ALL {
                prop_assert!(!problems.render(language).is_empty());
            }
        }
    }
}
