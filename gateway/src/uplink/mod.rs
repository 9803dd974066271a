//! Records go out: to the command center's broker, QoS 1, in a window, until each is confirmed (DESIGN.md §5).
//!
//! `message` says how things look on the wire, `commands` reads what comes back, `delivery` decides what is sent next:
//! all three are pure. `session` owns the connection.

pub mod commands;
pub mod delivery;
pub mod message;
mod readback;
pub mod session;

/// Below `reply/`: where a connection's own marker travels, so that all retained messages before it have been read.
const READBACK: &str = "readback";
