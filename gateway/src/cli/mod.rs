//! The command line: one file a command.

pub mod arguments;
pub mod exit;
pub mod status;
pub mod demo {
    //! A whole simulated park in one process, nothing to install.

    pub mod park;
}
