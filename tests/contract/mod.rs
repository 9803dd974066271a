//! Whether a payload of the gateway keeps the contract (DESIGN.md §5): the part that needs no schema.

use std::sync::atomic::{AtomicU64, Ordering};

static CHECKED: AtomicU64 = AtomicU64::new(0);

/// Checks one payload by the topic it came on, without `{prefix}/{gateway}/`.
pub fn validate(topic_suffix: &str, payload: &[u8]) -> Result<(), String> {
    CHECKED.fetch_add(1, Ordering::Relaxed);
    let kind = topic_suffix.split('/').next().unwrap_or_default();
    if payload.is_empty() {
        return match kind {
            "alarm" | "device" => Ok(()),
            other => Err(format!("{other} is empty")),
        };
    }
    let json: serde_json::Value = serde_json::from_slice(payload).map_err(|e| format!("not JSON: {e}"))?;
    let required: &[&str] = match kind {
        "event" | "alarm" | "telemetry" => {
            &["specversion", "id", "source", "type", "subject", "time", "sequence", "data"]
        }
        "status" => &["state", "boot", "session", "version", "config", "lanes"],
        "reply" => &["id", "command", "result"],
        "device" => &[],
        other => return Err(format!("unknown topic {other}")),
    };
    match required.iter().find(|field| json.get(**field).is_none()) {
        Some(field) => Err(format!("{field} is missing")),
        None => Ok(()),
    }
}

/// How many payloads were checked.
pub fn checked() -> u64 {
    CHECKED.load(Ordering::Relaxed)
}
