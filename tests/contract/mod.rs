//! Whether a payload keeps the contract (DESIGN.md §5, `config/schema/`): for every test that sees one.
//!
//! The schemas that ship leave objects open, because receivers must ignore members of later versions. Here they are
//! closed: a member the schemas do not name is a member nobody described.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    collections::BTreeMap,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use jsonschema::{Registry, RegistryBuilder, Validator};
use serde_json::{Map, Value, json};

/// Largest payload in either direction (DESIGN.md §5.2).
const PAYLOAD_SIZE_MAX: usize = 32 * 1024;

macro_rules! schemas {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/schema/", $name, ".json")))),*]
    };
}

/// Every schema, by name.
pub(crate) const SCHEMAS: &[(&str, &str)] = schemas![
    "alarm-event",
    "center-status",
    "command",
    "command-event",
    "common",
    "device",
    "receipt",
    "reply",
    "status",
    "stream-event",
    "telemetry-event",
];

/// Whether members that no schema names are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// As receivers must take them.
    Ignored,
    /// As nobody may send them.
    Refused,
}

static OPEN: LazyLock<BTreeMap<&str, Validator>> = LazyLock::new(|| validators(Unknown::Ignored));
static CLOSED: LazyLock<BTreeMap<&str, Validator>> = LazyLock::new(|| validators(Unknown::Refused));
static CHECKED: AtomicU64 = AtomicU64::new(0);

/// Checks one payload by the topic it came on, without `{prefix}/{gateway}/`.
pub(crate) fn validate(topic_suffix: &str, payload: &[u8]) -> Result<(), String> {
    check(topic_suffix, payload, Unknown::Refused)
}

/// The same, as strictly as asked.
pub(crate) fn check(topic_suffix: &str, payload: &[u8], unknown: Unknown) -> Result<(), String> {
    CHECKED.fetch_add(1, Ordering::Relaxed);
    let (kind, rest) = topic_suffix.split_once('/').unwrap_or((topic_suffix, ""));
    if payload.is_empty() {
        return if matches!(kind, "alarm" | "device") { Ok(()) } else { Err(format!("{kind} is empty")) };
    }
    if payload.len() > PAYLOAD_SIZE_MAX {
        return Err(format!("{} bytes are more than {PAYLOAD_SIZE_MAX}", payload.len()));
    }
    let json: Value = serde_json::from_slice(payload).map_err(|e| format!("not JSON: {e}"))?;
    let validators = match unknown {
        Unknown::Ignored => &*OPEN,
        Unknown::Refused => &*CLOSED,
    };
    let errors: Vec<String> =
        validators[schema(kind, &json)?].iter_errors(&json).map(|e| format!("{}: {e}", e.instance_path())).collect();
    if !errors.is_empty() {
        return Err(errors.join("; "));
    }
    agree(kind, rest, &json)
}

/// How many payloads were checked.
pub(crate) fn checked() -> u64 {
    CHECKED.load(Ordering::Relaxed)
}

/// Which schema is meant.
fn schema(kind: &str, json: &Value) -> Result<&'static str, String> {
    let type_ = json["type"].as_str().unwrap_or_default();
    match (kind, type_.split('.').nth(1)) {
        ("event", Some("stream")) => Ok("stream-event"),
        ("event", Some("command")) => Ok("command-event"),
        ("event" | "alarm", _) => Ok("alarm-event"),
        ("telemetry", _) => Ok("telemetry-event"),
        _ => SCHEMAS
            .iter()
            .map(|(name, _)| *name)
            .find(|name| *name == kind && *name != "common")
            .ok_or_else(|| format!("{kind} is not a topic of the contract")),
    }
}

/// What no schema can say: topic and payload agree, and parts of the payload with each other.
fn agree(kind: &str, rest: &str, json: &Value) -> Result<(), String> {
    let data = &json["data"];
    let pairs: &[(&str, &Value)] = match kind {
        "event" => &[("severity", data.get("severity").unwrap_or(&Value::Null))],
        "alarm" => &[("alarm", &data["alarm"])],
        "telemetry" => &[("subject", &json["subject"])],
        "device" => &[("device", &json["device"])],
        _ => &[],
    };
    for (name, found) in pairs {
        if found.as_str().unwrap_or("info") != rest {
            return Err(format!("the topic says `{rest}`, {name} says {found}"));
        }
    }
    if kind == "alarm" && data["state"] == "NORM" {
        return Err("a quiet alarm is retained".into());
    }
    let (Some(id), Some(sequence)) = (json["id"].as_str(), json["sequence"].as_str()) else { return Ok(()) };
    let number = id.rsplit('-').next().and_then(|n| n.parse().ok());
    if number != sequence.parse::<u64>().ok() {
        return Err(format!("id {id} and sequence {sequence} differ"));
    }
    if let Some(alarm) = data["alarm"].as_str()
        && json["subject"] != alarm
    {
        return Err(format!("subject {} is not alarm {alarm}", json["subject"]));
    }
    Ok(())
}

fn validators(unknown: Unknown) -> BTreeMap<&'static str, Validator> {
    let schemas: Vec<(&str, Value)> = SCHEMAS
        .iter()
        .map(|(name, text)| {
            let mut schema = serde_json::from_str(text).unwrap_or_else(|e| panic!("{name}.json: {e}"));
            if unknown == Unknown::Refused {
                close(&mut schema);
            }
            (*name, schema)
        })
        .collect();
    // Files refer to each other by name; any hierarchical address to resolve those against will do.
    let address = |name: &str| format!("file:///schema/{name}.json");
    let pairs = schemas.iter().map(|(name, schema)| (address(name), schema.clone()));
    let registry = Registry::new().extend(pairs).and_then(RegistryBuilder::prepare).expect("schemas fit together");
    let validator = |(name, schema): &(&'static str, Value)| {
        let options = jsonschema::options().with_registry(&registry).with_base_uri(address(name));
        let built = options.should_validate_formats(true).build(schema);
        (*name, built.unwrap_or_else(|e| panic!("{name}.json: {e}")))
    };
    schemas.iter().map(validator).collect()
}

/// Closes every object that a schema describes: those of `type` object. Mix-ins and branches have no `type`.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.values_mut().for_each(close);
            if describes_object(members) {
                members.insert("unevaluatedProperties".into(), json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn describes_object(schema: &Map<String, Value>) -> bool {
    schema.get("type") == Some(&json!("object")) && schema.contains_key("properties")
}
