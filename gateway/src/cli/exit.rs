//! Exit codes (BSD sysexits.h), so that systemd and scripts can tell a bad configuration from a full disk.

/// Everything went well.
pub const OK: u8 = 0;
/// EX_USAGE: the command line is wrong.
pub const USAGE: u8 = 64;
/// EX_DATAERR: what was read is in a form this version does not know.
pub const DATA_ERROR: u8 = 65;
/// EX_NOINPUT: what is to be read does not exist.
pub const NO_INPUT: u8 = 66;
/// EX_UNAVAILABLE: something needed is not there (the daemon, an address to listen on).
pub const UNAVAILABLE: u8 = 69;
/// EX_SOFTWARE: a task of ours failed.
pub const SOFTWARE: u8 = 70;
/// EX_CANTCREAT: the file to be written cannot be made.
pub const CANNOT_CREATE: u8 = 73;
/// EX_IOERR: the store cannot be opened or written.
pub const IO_ERROR: u8 = 74;
/// EX_PROTOCOL: the other side does not answer as it should.
pub const PROTOCOL: u8 = 76;
/// EX_NOPERM: the system does not let this user read it.
pub const NO_PERMISSION: u8 = 77;
/// EX_CONFIG: the configuration is wrong.
pub const CONFIG: u8 = 78;
