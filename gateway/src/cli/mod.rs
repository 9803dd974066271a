//! One file a command: arguments in, text and exit code out.

pub mod check;
