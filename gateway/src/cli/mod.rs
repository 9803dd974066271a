//! The command line: one file a command.

pub mod demo {
    //! A whole simulated park in one process, nothing to install.

    pub mod park;
}
