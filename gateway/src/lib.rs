//! Gardu, the alarm gateway of a public place.
//!
//! ```text
//! sources ──Reading──> pipeline (alarm engine) ──commit──> store ──> uplink ──> command center
//! modbus, mqtt, gpio, i2c  ^ one owner task       sled, synced   QoS 1, window      │
//!                          └───────────────────── commands (ack, reset …) ──────────┘
//! ```
//!
//! Reading order: `reading` and `clock` (the nouns), `alarm` (what is an alarm), `record` (what is delivered),
//! `source` → `pipeline` → `store` → `uplink` (the way of a reading), `daemon` (the wiring).
//!
//! What must never happen: a PUBACK or a send before its record is on stable storage; a wrong value shown as good;
//! a lost record that is not declared; a queue without a bound.

#![forbid(unsafe_code)]

pub mod alarm;
pub mod backoff;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
#[cfg(test)]
#[path = "../../tests/contract/mod.rs"]
mod contract;
pub mod daemon;
pub mod flash;
pub mod http;
pub mod keeper;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod notify;
pub mod pipeline;
pub mod reading;
pub mod record;
pub mod source;
pub mod status;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod text;
pub mod uplink;
pub mod wire;
