//! The whole gateway as a black box: the real binary, real brokers, a real bus, and every fault that can be had on one
//! machine. Each test has its own broker, PLC, command center and store.

#![expect(clippy::disallowed_methods, reason = "what stands around the gateway has clocks and threads of its own")]
#![expect(clippy::print_stderr, reason = "a test says what it measured and why it failed")]

#[path = "../contract/mod.rs"]
#[allow(unreachable_pub, reason = "shared with other test binaries")]
mod contract;
#[allow(dead_code, reason = "shared with the benchmark, which needs more of it")]
mod support;

mod alarms;
mod around;
mod delivery;
mod faults;
mod full;
mod namespace;
mod network;
mod node;
mod operation;
mod outbox;
mod pins;
mod points;
mod power;
mod rollback;
mod serial;
mod tls;
mod twins;
mod unusable;
mod uplink;
