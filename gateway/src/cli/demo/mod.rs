//! A whole simulated park in one process, nothing to install.

pub mod park;
