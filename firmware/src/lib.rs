//! Firmware of a park sensor node: contacts, climate and supply of one cabinet or lamp post, on an RS-485 bus.
//!
//! What can be decided without hardware lies here and is tested on any computer; a board's own code only brings pins
//! and peripherals up. [`registers`] is the contract with the gateway.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod filter;
pub mod registers;
pub mod sensors;
pub mod time;
