//! Arguments to command to exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    gardu::cli::main(&args)
}
