//! The wire format, byte for byte where receivers depend on it.

use serde_json::{Value as Json, json};

use super::*;
use crate::{
    alarm::{AlarmId, Severity, Texts, Transition},
    config,
    reading::{PointId, Quality, Reason, Value},
    record::{Batch, CommandResult, Epoch, Lane, LastKnown, LossReason, Refused, Sample, StartReason, StreamEvent},
};

const T0_MS: i64 = 1_795_262_671_220; // 2026-11-21T12:04:31.220Z

const fn at(mono_ms: u64, trusted: bool) -> Now {
    Now { mono_ms, wall_ms: T0_MS + mono_ms as i64 - 912_345, trusted }
}

fn about() -> About {
    About {
        gateway: Segment::parse("taman-elektrik-01").expect("a segment"),
        prefix: "gardu/v1".into(),
        site: "taman-elektrik".into(),
        location: Some(Location { lat: -6.1702, lon: 106.6403, address: None, landmark: Some("Gerbang barat".into()) }),
        language: Language::Indonesian,
    }
}

fn transition() -> Transition {
    Transition {
        kind: Kind::Raised,
        alarm: AlarmId::parse("panel/door/door-open").expect("an alarm"),
        occurrence: 3,
        state: State::Unack,
        active: true,
        acknowledged: false,
        latched: false,
        severity: Severity::High,
        value: Some(Value::Bool(true)),
        unit: None,
        quality: Quality::Good,
        reason: None,
        limit: None,
        test: false,
        message: Texts { id: None, en: Some("Cabinet door open".into()) },
        by: None,
        comment: None,
        evidence: None,
        at: at(912_345, true),
        source_time_ms: None,
    }
}

fn record(body: Body) -> Record {
    Record {
        lane: body.lane(),
        epoch: Epoch::parse("0123456789abcdef").expect("an epoch"),
        sequence: 4211,
        boot: BootId::new("boot-1"),
        recorded: at(912_350, true),
        body,
    }
}

fn sent(record: &Record, now: Now, boot: &str) -> (String, Json) {
    let boot = BootId::new(boot);
    let message = encode(record, &Boots::default(), &about(), Sent { boot: &boot, at: now });
    keeps_contract(&message);
    (message.topic, serde_json::from_slice(&message.payload).expect("JSON"))
}

fn keeps_contract(message: &Message) {
    let topic = message.topic.strip_prefix("gardu/v1/taman-elektrik-01/").expect("below its own gateway");
    crate::contract::validate(topic, &message.payload).expect("what the schemas describe");
}

#[test]
fn an_alarm_event_looks_as_the_contract_says() {
    let (topic, event) = sent(&record(Body::Alarm(Box::new(transition()))), at(913_000, true), "boot-1");
    assert_eq!(topic, "gardu/v1/taman-elektrik-01/event/high");
    assert_eq!(
        event,
        json!({
            "specversion": "1.0", "id": "0123456789abcdef-a-4211", "source": "/gardu/taman-elektrik-01",
            "type": "gardu.alarm.raised.v1", "subject": "panel/door/door-open",
            "time": "2026-11-21T12:04:31.220Z", "recordedtime": "2026-11-21T12:04:31.225Z",
            "sequence": "00000000000000004211", "datacontenttype": "application/json",
            "dataschema": "urn:gardu:schema:v1/alarm-event.json",
            "data": {
                "alarm": "panel/door/door-open", "occurrence": 3, "state": "UNACK", "active": true,
                "acknowledged": false, "latched": false, "severity": "high", "value": true, "unit": null,
                "quality": "good", "reason": null, "limit": null, "test": false,
                "message": {"id": "Cabinet door open", "en": "Cabinet door open"},
                "site": "taman-elektrik",
                "location": {"lat": -6.1702, "lon": 106.6403, "landmark": "Gerbang barat"},
                "by": null, "by_verified": false, "comment": null, "evidence": null,
                "clock": {"trusted": true, "boot": "boot-1", "monotonic_ms": 912_345},
                "delivery": {"historical": false},
            },
        })
    );
}

#[test]
fn the_same_record_gives_the_same_bytes() {
    let record = record(Body::Alarm(Box::new(transition())));
    let boot = BootId::new("boot-1");
    let encode = || encode(&record, &Boots::default(), &about(), Sent { boot: &boot, at: at(913_000, true) });
    assert_eq!(encode(), encode());
    assert!(encode().payload.starts_with(br#"{"specversion":"1.0","id":"#));
}

#[test]
fn history_is_what_was_first_sent_a_minute_after_it_was_recorded() {
    let record = record(Body::Alarm(Box::new(transition())));
    let historical = |now, boot| sent(&record, now, boot).1["data"]["delivery"]["historical"].clone();
    assert_eq!(historical(at(972_350, true), "boot-1"), false);
    assert_eq!(historical(at(972_351, true), "boot-1"), true);
    let next_boot = |wall_ms, trusted| Now { mono_ms: 5, wall_ms, trusted };
    assert_eq!(historical(next_boot(T0_MS + 50_000, true), "boot-2"), false, "by the wall clock across boots");
    assert_eq!(historical(next_boot(T0_MS + 61_000, true), "boot-2"), true);
    assert_eq!(historical(next_boot(T0_MS, false), "boot-2"), true, "nobody can tell");
}

#[test]
fn a_device_that_knows_its_time_is_believed_and_an_untrusted_clock_is_bounded() {
    let mut t = transition();
    t.source_time_ms = Some(T0_MS - 1_000);
    assert_eq!(sent(&record(Body::Alarm(Box::new(t))), at(0, true), "boot-1").1["time"], "2026-11-21T12:04:30.220Z");

    let mut t = transition();
    t.at = at(912_345, false);
    let mut unsure = record(Body::Alarm(Box::new(t)));
    unsure.boot = BootId::new("boot-2");
    let mut boots = Boots::default();
    for (boot, trusted) in [("boot-1", true), ("boot-2", false), ("boot-3", true)] {
        boots.enter(&BootId::new(boot));
        boots.trust(&BootId::new(boot), Now { mono_ms: 0, wall_ms: T0_MS, trusted });
    }
    let boot = BootId::new("boot-3");
    let message = encode(&unsure, &boots, &about(), Sent { boot: &boot, at: at(0, true) });
    let event: Json = serde_json::from_slice(&message.payload).expect("JSON");
    let day = "2026-11-21T12:04:31.220Z";
    assert_eq!(
        event["data"]["clock"],
        json!({"trusted": false, "boot": "boot-2", "monotonic_ms": 912_345, "not_before": day, "not_after": day})
    );
}

#[test]
fn the_retained_topic_holds_the_same_event_and_nothing_when_quiet_or_removed() {
    let boot = BootId::new("boot-1");
    let sent = Sent { boot: &boot, at: at(913_000, true) };
    let standing = record(Body::Alarm(Box::new(transition())));
    let message = alarm_state(&standing, &Boots::default(), &about(), sent).expect("an alarm");
    assert_eq!(message.topic, "gardu/v1/taman-elektrik-01/alarm/panel/door/door-open");
    assert_eq!(message.payload, encode(&standing, &Boots::default(), &about(), sent).payload);
    for (kind, state) in [(Kind::Cleared, State::Norm), (Kind::Removed, State::Unack)] {
        let quiet = record(Body::Alarm(Box::new(Transition { kind, state, ..transition() })));
        let message = alarm_state(&quiet, &Boots::default(), &about(), sent).expect("an alarm");
        assert_eq!(
            (message.topic.as_str(), message.payload.len()),
            ("gardu/v1/taman-elektrik-01/alarm/panel/door/door-open", 0)
        );
    }
}

#[test]
fn other_records_have_their_types_and_topics() {
    let epoch = Epoch::parse("0123456789abcdef").expect("an epoch");
    let last = Some(LastKnown { a: 7, t: 9 });
    let started = StreamEvent::Started { reason: StartReason::RolledBack, replaces: Some(epoch.clone()), last };
    let refused =
        Some(Refused { id: "0123456789abcdef-a-2".into(), subject: "s".into(), severity: Some(Severity::Low) });
    let lost = StreamEvent::Lost {
        epoch,
        lane: Lane::Alarm,
        ranges: vec![(2, 2)],
        count: 1,
        reason: LossReason::Refused,
        certain: true,
        refused,
    };
    let result = CommandResult { id: "c-1".into(), command: "test".into(), alarm: None, by: "ani".into() };
    let cases = [
        (Body::Stream(started), "gardu.stream.started.v1", "stream-event.json"),
        (Body::Stream(lost), "gardu.stream.lost.v1", "stream-event.json"),
        (Body::Command(result), "gardu.command.completed.v1", "command-event.json"),
    ];
    for (body, type_, schema) in cases {
        let (topic, event) = sent(&record(body), at(913_000, true), "boot-1");
        assert_eq!(topic, "gardu/v1/taman-elektrik-01/event/info");
        assert_eq!(event["type"], type_);
        assert_eq!(event["dataschema"], format!("urn:gardu:schema:v1/{schema}"));
    }
}

#[test]
fn telemetry_is_a_batch_of_one_device_with_a_time_for_each_reading() {
    let sample = |name: &str, value: Option<Value>, quality, reason| Sample {
        point: PointId::parse(name).expect("a point"),
        value,
        quality,
        reason,
        at: at(912_345, true),
        source_time_ms: None,
        summary: None,
    };
    let readings = vec![
        sample("panel/temp", Value::float(31.5), Quality::Good, None),
        sample("panel/power", None, Quality::Bad, Some(Reason::Timeout)),
    ];
    let batch = Batch { device: Segment::parse("panel").expect("a segment"), readings, replaces: None };
    let (topic, event) = sent(&record(Body::Telemetry(batch)), at(913_000, true), "boot-1");
    assert_eq!(topic, "gardu/v1/taman-elektrik-01/telemetry/panel");
    assert_eq!((&event["id"], &event["subject"]), (&json!("0123456789abcdef-t-4211"), &json!("panel")));
    let time = "2026-11-21T12:04:31.220Z";
    assert_eq!(
        event["data"]["readings"],
        json!([
            {"point": "panel/temp", "value": 31.5, "quality": "good", "time": time},
            {"point": "panel/power", "value": null, "quality": "bad", "reason": "timeout", "time": time},
        ])
    );
}

#[test]
fn a_description_names_the_profile_of_its_device() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("gardu.toml");
    let text = "[gateway]\nid = 'taman'\n[command_center]\nurls = ['mqtt://a']\n[[modbus]]\nname = 'b'\nurl = 'tcp://a'\n\
                device = [{ name = 'climate', unit = 1, profile = 'xy-md02' }, \
                { name = 'panel', unit = 2, point = [{ name = 'door', register = 'coil:0' }] }]\n";
    std::fs::write(&path, text).expect("a file");
    let config = config::load(&path, config::Need::All).unwrap_or_else(|problems| panic!("{problems}"));
    let described = DeviceDescription::all(&config);
    let profiles: Vec<_> = described.iter().map(|d| (d.device.as_str(), d.profile.as_deref())).collect();
    assert_eq!(profiles, [("climate", Some("xy-md02")), ("panel", None)]);
    described.iter().for_each(|description| keeps_contract(&device(&about(), description)));
    let frozen: Json =
        serde_json::from_str(include_str!("../../../../tests/wire/v1/device-profile.json")).expect("JSON");
    assert_eq!(serde_json::to_value(&described[0]).expect("JSON"), frozen["payload"]);
}

#[test]
fn a_description_never_exceeds_the_largest_payload() {
    let points = (0..2_000).map(|i| PointDescription {
        point: PointId::parse(&format!("panel/{i:060}")).expect("a point"),
        unit: Some("kWh".into()),
    });
    let description = DeviceDescription {
        device: Segment::parse("panel").expect("a segment"),
        profile: None,
        points: points.collect(),
    };
    let message = device(&about(), &description);
    assert_eq!(message.topic, "gardu/v1/taman-elektrik-01/device/panel");
    keeps_contract(&message);
    assert!(message.payload.len() > PAYLOAD_SIZE_MAX / 2);
}
