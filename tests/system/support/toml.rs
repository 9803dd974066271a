//! Tables of a configuration, as text. More keys of a table are lines after it.

/// A bus to the test's PLC.
pub(crate) fn bus(name: &str) -> String {
    format!("\n[[modbus]]\nname = \"{name}\"\nurl = \"tcp://127.0.0.1:{{plc}}\"\n")
}

/// A device of the bus before it.
pub(crate) fn device(name: &str, unit: u8, poll: &str) -> String {
    format!("\n[[modbus.device]]\nname = \"{name}\"\nunit = {unit}\npoll = \"{poll}\"\n")
}

/// A point of the device before it.
pub(crate) fn point(name: &str, register: &str) -> String {
    format!("\n[[modbus.device.point]]\nname = \"{name}\"\nregister = \"{register}\"\n")
}

/// An alarm; `when` as it is written.
pub(crate) fn alarm(name: &str, point: &str, when: &str, severity: &str) -> String {
    format!("\n[[alarm]]\nname = \"{name}\"\npoint = \"{point}\"\nwhen = {when}\nseverity = \"{severity}\"\n")
}
