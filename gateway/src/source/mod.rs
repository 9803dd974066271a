//! Readings come in: one folder or file a kind of source, one task a bus or broker connection.
//!
//! A source never gives up and never fails because the field is in trouble: trouble is a reading of bad quality.

pub mod modbus;
pub mod mqtt;
