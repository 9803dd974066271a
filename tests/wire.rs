//! The contract as files: the schemas hold, the frozen examples of version 1 keep them, and the AsyncAPI document names
//! every topic as it is.
//!
//! `tests/wire/v1/*.json` are only ever added to: a change that one of them fails breaks a receiver somewhere.

use std::{collections::BTreeMap, fs, path::PathBuf};

use gardu::{
    alarm::{Severity, State},
    reading::Reason,
    record::Lane,
};
use serde_json::{Value, json};

mod contract;

use contract::{SCHEMAS, Unknown, check, checked, validate};

/// One message as it travels: the topic without `{prefix}/{gateway}/`, and the payload.
struct Example {
    name: String,
    topic: String,
    payload: Value,
}

impl Example {
    fn validate(&self, payload: &Value, unknown: Unknown) -> Result<(), String> {
        check(&self.topic, payload.to_string().as_bytes(), unknown)
    }
}

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn examples() -> Vec<Example> {
    let files = fs::read_dir(root("tests/wire/v1")).expect("the examples are there");
    let example = |path: PathBuf| {
        let name = path.display().to_string();
        let file: Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
        let topic = file["topic"].as_str().expect("a topic").to_owned();
        Example { name, topic, payload: file["payload"].clone() }
    };
    files.map(|file| example(file.expect("readable").path())).collect()
}

/// Pointers to every member and item below `json`.
fn pointers(json: &Value, at: &str, found: &mut Vec<String>) {
    let mut below = |key: &str, value: &Value| {
        let pointer = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        pointers(value, &pointer, found);
        found.push(pointer);
    };
    match json {
        Value::Object(members) => members.iter().for_each(|(key, value)| below(key, value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| below(&i.to_string(), value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_schema_is_json_schema_2020_12_and_events_name_theirs() {
    let folder = fs::read_dir(root("config/schema")).expect("the schemas are there");
    assert_eq!(folder.count(), SCHEMAS.len(), "a schema that no test knows");
    for (name, text) in SCHEMAS {
        let schema: Value = serde_json::from_str(text).expect(name);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
        if name.ends_with("-event") {
            let named = &schema["properties"]["dataschema"]["const"];
            assert_eq!(*named, format!("urn:gardu:schema:v1/{name}.json"));
        }
        if let Err(error) = jsonschema::draft202012::meta::validate(&schema) {
            panic!("{name}.json: {error}");
        }
    }
}

#[test]
fn every_frozen_example_keeps_its_schema() {
    let before = checked();
    let examples = examples();
    for example in &examples {
        if let Err(problem) = example.validate(&example.payload, Unknown::Refused) {
            panic!("{}: {problem}", example.name);
        }
    }
    assert!(checked() >= before + examples.len() as u64);
    for (schema, _) in SCHEMAS.iter().filter(|(name, _)| *name != "common") {
        let of =
            |e: &Example| e.topic == *schema || e.payload["dataschema"].as_str().is_some_and(|id| id.contains(schema));
        assert!(examples.iter().any(|e| of(e) || e.topic.split('/').next() == Some(schema)), "no example of {schema}");
    }
}

#[test]
fn a_receiver_ignores_what_it_does_not_know_and_a_test_does_not() {
    for example in examples() {
        let mut objects = vec![String::new()];
        pointers(&example.payload, "", &mut objects);
        objects.retain(|pointer| example.payload.pointer(pointer).is_some_and(Value::is_object));
        for pointer in objects {
            let mut payload = example.payload.clone();
            payload.pointer_mut(&pointer).expect("it is there")["from_a_later_version"] = json!(1);
            assert_eq!(example.validate(&payload, Unknown::Ignored), Ok(()), "{} {pointer}", example.name);
            assert!(example.validate(&payload, Unknown::Refused).is_err(), "{} {pointer}", example.name);
        }
    }
}

#[test]
fn a_member_of_another_kind_is_refused_wherever_it_is() {
    for example in examples() {
        let mut members = Vec::new();
        pointers(&example.payload, "", &mut members);
        for pointer in members {
            for wrong in [json!([{"wrong": true}]), json!({"wrong": true})] {
                let mut payload = example.payload.clone();
                *payload.pointer_mut(&pointer).expect("it is there") = wrong;
                assert!(example.validate(&payload, Unknown::Refused).is_err(), "{} {pointer}", example.name);
            }
        }
    }
}

#[test]
fn an_event_that_contradicts_itself_is_refused() {
    let examples: BTreeMap<String, Example> = examples()
        .into_iter()
        .map(|e| (PathBuf::from(&e.name).file_stem().expect("a name").to_string_lossy().into_owned(), e))
        .collect();
    let table = [
        ("alarm-raised", "/data/state", json!("NORM")),
        ("alarm-raised", "/data/latched", json!(true)),
        ("alarm-raised", "/data/quality", json!("bad")),
        ("alarm-raised", "/data/reason", json!("timeout")),
        ("alarm-raised", "/data/severity", json!("low")),
        ("alarm-raised", "/data/occurrence", json!(0)),
        ("alarm-raised", "/data/message", json!({})),
        ("alarm-raised", "/data/comment", json!("x".repeat(501))),
        ("alarm-raised", "/data/alarm", json!("panel/door/other")),
        ("alarm-raised", "/sequence", json!("00000000000000004212")),
        ("alarm-raised", "/sequence", json!("4211")),
        ("alarm-raised", "/id", json!("k3v9x0q2m7c1z8ab-t-4211")),
        ("alarm-raised", "/time", json!("2026-11-21T12:04:31Z")),
        ("alarm-raised", "/time", json!("2026-13-21T12:04:31.220Z")),
        ("alarm-raised", "/type", json!("gardu.alarm.vanished.v1")),
        ("alarm-raised", "/source", json!("/gardu/Taman")),
        ("alarm-raised", "/data/clock/not_before", json!("2026-11-20T22:10:00.000Z")),
        ("alarm-standing", "/data/state", json!("NORM")),
        ("alarm-cleared", "/data/active", json!(true)),
        ("alarm-acknowledged", "/data/by", json!(null)),
        ("alarm-latched", "/data/acknowledged", json!(false)),
        ("alarm-removed", "/data/state", json!("UNACK")),
        ("alarm-stale", "/data/value", json!(0)),
        ("alarm-stale", "/data/reason", json!(null)),
        ("alarm-stale", "/data/reason", json!("bored")),
        ("telemetry", "/data/readings", json!([])),
        ("telemetry", "/data/readings/0/quality", json!("bad")),
        ("telemetry", "/subject", json!("pond")),
        ("telemetry-summary", "/data/replaces/ranges", json!(vec![[1, 1]; 17])),
        ("telemetry-summary", "/data/replaces/epoch", json!(null)),
        ("telemetry-summary", "/data/readings/0/summary", json!({"min": 1})),
        ("stream-lost", "/data/ranges", json!(vec![[1, 1]; 101])),
        ("stream-lost", "/data/ranges", json!([[1, 2, 3]])),
        ("status-online", "/reason", json!("lost")),
        ("status-lost", "/state", json!("online")),
        ("status-lost", "/session", json!(0)),
        ("reply-acknowledge", "/code", json!("busy")),
        ("reply-acknowledge", "/data", json!({})),
        ("reply-acknowledge", "/result", json!("refused")),
        ("reply-read", "/data/value", json!([])),
        ("command-acknowledge", "/command", json!("dance")),
        ("command-reset", "/by", json!("")),
        ("device", "/device", json!("pond")),
        ("receipt", "/ids", json!([])),
    ];
    for (name, pointer, wrong) in table {
        let example = &examples[name];
        let mut payload = example.payload.clone();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        match payload.pointer_mut(parent).expect("it is there") {
            Value::Array(items) => items[key.parse::<usize>().expect("an index")] = wrong,
            object => object[key] = wrong,
        }
        assert!(example.validate(&payload, Unknown::Ignored).is_err(), "{name} {pointer} is not noticed");
    }
}

#[test]
fn only_what_may_be_empty_is_and_unknown_topics_are_named() {
    assert_eq!(validate("alarm/panel/door/door-open", b""), Ok(()));
    for (topic, payload) in
        [("event/high", &b""[..]), ("status", b""), ("status", b"online"), ("common", b"{}"), ("noise", b"{}")]
    {
        assert!(validate(topic, payload).is_err(), "{topic}");
    }
    let huge = json!({"ids": vec!["k3v9x0q2m7c1z8ab-a-1"; 2_000]});
    assert!(validate("receipt", huge.to_string().as_bytes()).is_err_and(|problem| problem.contains("bytes")));
}

#[test]
fn the_schemas_know_every_word_of_the_program() {
    let (_, common) = SCHEMAS.iter().find(|(name, _)| *name == "common").expect("it is there");
    let common: Value = serde_json::from_str(common).expect("JSON");
    let words = |name: &str| common["$defs"][name]["enum"].clone();
    assert_eq!(words("reason"), json!(Reason::ALL.map(Reason::as_str)));
    assert_eq!(words("severity"), json!(Severity::ALL.map(Severity::as_str)));
    assert_eq!(words("lane"), json!(Lane::ALL.map(Lane::as_str)));
    let states = words("state");
    assert!(State::ALL.iter().all(|state| states.as_array().expect("a list").contains(&json!(state.as_str()))));
}

mod asyncapi {
    use yaml_rust2::{Yaml, YamlLoader};

    use super::*;

    /// Topic below `gardu/v1/`, who sends, and whether it is retained (DESIGN.md §5.1); the quality of service is 1.
    const CHANNELS: &[(&str, &str, &str, bool)] = &[
        ("event", "{gateway}/event/{severity}", "send", false),
        ("alarm", "{gateway}/alarm/{alarm}", "send", true),
        ("telemetry", "{gateway}/telemetry/{device}", "send", false),
        ("device", "{gateway}/device/{device}", "send", true),
        ("status", "{gateway}/status", "send", true),
        ("command", "{gateway}/command", "receive", false),
        ("reply", "{gateway}/reply", "send", false),
        ("receipt", "{gateway}/receipt", "receive", false),
        ("centerStatus", "center/status", "receive", true),
    ];

    fn document() -> Value {
        let text = fs::read_to_string(root("config/asyncapi.yaml")).expect("it is there");
        let documents = YamlLoader::load_from_str(&text).expect("YAML");
        assert_eq!(documents.len(), 1);
        json_of(&documents[0])
    }

    fn json_of(yaml: &Yaml) -> Value {
        match yaml {
            Yaml::String(text) => json!(text),
            Yaml::Integer(number) => json!(number),
            Yaml::Boolean(truth) => json!(truth),
            Yaml::Array(items) => items.iter().map(json_of).collect(),
            Yaml::Hash(members) => {
                let key = |key: &Yaml| key.as_str().expect("keys are text").to_owned();
                members.iter().map(|(name, value)| (key(name), json_of(value))).collect()
            }
            Yaml::Real(_) | Yaml::Alias(_) | Yaml::Null | Yaml::BadValue => panic!("{yaml:?} has no place here"),
        }
    }

    #[test]
    fn every_topic_is_described_as_it_is() {
        let document = document();
        assert_eq!(document["asyncapi"], "3.0.0");
        let channels = document["channels"].as_object().expect("channels");
        let operations = document["operations"].as_object().expect("operations");
        assert_eq!((channels.len(), operations.len()), (CHANNELS.len(), CHANNELS.len()));
        for (name, address, action, retain) in CHANNELS {
            let channel = &channels[*name];
            assert_eq!(channel["address"], format!("gardu/v1/{address}"), "{name}");
            let placeholders = address.split('/').filter_map(|level| level.strip_prefix('{')?.strip_suffix('}'));
            for parameter in placeholders {
                assert!(channel["parameters"][parameter].is_object(), "{name}: {parameter} is not described");
            }
            let on = |operation: &&Value| operation["channel"]["$ref"] == format!("#/channels/{name}");
            let operation = operations.values().find(on).unwrap_or_else(|| panic!("{name}: nobody uses it"));
            let mqtt = &operation["bindings"]["mqtt"];
            assert_eq!((&operation["action"], &mqtt["qos"]), (&json!(action), &json!(1)), "{name}");
            assert_eq!(mqtt["retain"], *retain, "{name}");
            assert!(channel["messages"].as_object().is_some_and(|messages| !messages.is_empty()), "{name}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document();
        let mut all = Vec::new();
        pointers(&document, "", &mut all);
        let mut files = Vec::new();
        for pointer in all.iter().filter(|pointer| pointer.ends_with("/$ref")) {
            let target = document.pointer(pointer).and_then(Value::as_str).expect("a reference is text");
            match target.strip_prefix('#') {
                Some(inside) => assert!(document.pointer(inside).is_some(), "{pointer}: {target}"),
                None => {
                    assert!(root("config").join(target).is_file(), "{pointer}: {target}");
                    files.push(target.trim_start_matches("./schema/").trim_end_matches(".json").to_owned());
                }
            }
        }
        for (schema, _) in SCHEMAS.iter().filter(|(name, _)| *name != "common") {
            assert!(files.iter().any(|file| file == schema), "{schema} is not in the document");
        }
    }
}
