//! Firmware of a park sensor node: contacts, climate, currents and outputs of one cabinet or lamp post, on an RS-485 bus.
//!
//! What can be decided without hardware lies here and is tested on any computer; a board's own code in `bin/` only brings
//! pins and peripherals up. Reading order: [`registers`] is the contract with the gateway, [`node`] holds what is measured
//! and driven, [`modbus`] answers a master, [`device`] is all of it as one `poll`.
//!
//! ```text
//! pins, I²C ──> contact, sensors ──> node ──Tables──> modbus::slave <──> rs485 <──> master
//!                                      │ settings, kept counters
//!                                      └──> flash, RAM that survives a reset
//! ```
//!
//! What must never happen: an answer to a frame whose checksum is wrong; an event lost or counted twice; a sensor that
//! stops the rest; a wait inside `poll`.
//!
//! The gateway uses [`contact`], [`filter`] and [`sensors`] for what hangs on its own pins.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[cfg(test)]
mod testing;

pub mod registers;
pub mod time;

pub mod contact;
pub mod filter;
pub mod sensors;

pub mod kept;
pub mod settings;

pub mod node;

pub mod modbus;
pub mod rs485;

pub mod device;
