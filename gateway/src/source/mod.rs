//! Readings come in: one task a source, each the only owner of its wire.

pub mod modbus;
pub mod mqtt;
