//! Readings come in: one folder or file a kind of source, one task a bus or broker connection, one thread a device on the
//! gateway's own pins.
//!
//! A source never gives up and never fails because the field is in trouble: trouble is a reading of bad quality.

pub mod gpio;
pub mod i2c;
pub mod modbus;
pub mod mqtt;

pub mod outlet;
pub mod polled;
pub mod quantity;
