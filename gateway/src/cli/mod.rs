//! The command line: one file a command, arguments in, text and exit code out.

pub mod arguments;
pub mod check;
pub mod demo {
    //! A whole simulated park in one process, nothing to install.

    pub mod park;
}
pub mod exit;
pub mod status;
