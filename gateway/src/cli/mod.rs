//! The command line: one file a command.

pub mod arguments;
pub mod exit;
pub mod status;
