//! Opening a serial port, and saying to a technician why it cannot be opened.
//!
//! The path is looked up at every opening, so an adapter that was plugged out is found again when it is back.

use std::{
    fs::{self, File},
    io::{self, IsTerminal},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tokio_serial::SerialStream;

use crate::config::{Parity, SerialLine};

/// Why a serial port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// No such node, or nothing behind it.
    #[error("the adapter is not plugged in: there is no {}", path.display())]
    Absent {
        /// The node as configured.
        path: PathBuf,
    },
    /// The node belongs to others.
    #[error(
        "no permission to open {}, which belongs to group {group}: add the user {user} to group {group} and restart",
        path.display()
    )]
    Denied {
        /// The node as configured.
        path: PathBuf,
        /// Who may open it.
        group: String,
        /// Who we are.
        user: String,
    },
    /// Somebody has locked it.
    #[error("another program has {0} open: find it with `fuser -v {0}`", path.display())]
    Busy {
        /// The node as configured.
        path: PathBuf,
    },
    /// A file, a folder, another kind of device.
    #[error("{} is not a serial port: look for the adapter's name in /dev/serial/by-id", path.display())]
    NotAPort {
        /// The node as configured.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot use {} as a serial port: {reason}", path.display())]
    Failed {
        /// The node as configured.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

/// Opens a port for this process alone.
pub fn open(path: &Path, line: SerialLine) -> Result<SerialStream, PortError> {
    // Opened twice, for `tokio-serial` does not say why it cannot; the first handle is kept until the second is there,
    // for with the last one the modem lines fall, and some devices restart on that.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let first = File::options().read(true).write(true).custom_flags(flags).open(path);
    let first = first.map_err(|error| explain(path, &error))?;
    if !first.is_terminal() {
        return Err(PortError::NotAPort { path: path.into() });
    }
    let parity = match line.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Even => tokio_serial::Parity::Even,
        Parity::Odd => tokio_serial::Parity::Odd,
    };
    let stop_bits = if line.stop_bits == 2 { tokio_serial::StopBits::Two } else { tokio_serial::StopBits::One };
    let settings = tokio_serial::new(path.to_string_lossy(), line.baud)
        .data_bits(tokio_serial::DataBits::Eight)
        .parity(parity)
        .stop_bits(stop_bits)
        .flow_control(tokio_serial::FlowControl::None);
    SerialStream::open(&settings).map_err(|error| match error.kind() {
        // What the crate says of a lock.
        tokio_serial::ErrorKind::NoDevice => PortError::Busy { path: path.into() },
        _ => PortError::Failed { path: path.into(), reason: error.to_string() },
    })
}

fn explain(path: &Path, error: &io::Error) -> PortError {
    let path = path.to_owned();
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => PortError::Absent { path },
        Some(libc::EBUSY) => PortError::Busy { path },
        Some(libc::EISDIR) => PortError::NotAPort { path },
        Some(libc::EACCES) => {
            let gid = fs::metadata(&path).map_or(0, |node| node.gid());
            let uid = rustix::process::geteuid().as_raw();
            PortError::Denied { path, group: name_of(gid, "/etc/group"), user: name_of(uid, "/etc/passwd") }
        }
        _ => PortError::Failed { path, reason: error.to_string() },
    }
}

/// The name of a number in `/etc/group` or `/etc/passwd`, or the number: `name:password:number:…`.
fn name_of(id: u32, table: &str) -> String {
    let named = |line: &str| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(id)).then(|| name.to_owned())
    };
    let table = fs::read_to_string(table).unwrap_or_default();
    table.lines().find_map(named).unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: SerialLine = SerialLine { baud: 9_600, parity: Parity::None, stop_bits: 1 };

    fn refused(path: &Path) -> String {
        open(path, LINE).expect_err("it cannot be opened").to_string()
    }

    #[tokio::test]
    async fn what_is_no_port_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let (absent, file) = (folder.path().join("usb-RS485"), folder.path().join("file"));
        fs::write(&file, "").expect("a file");
        let expect = format!("the adapter is not plugged in: there is no {}", absent.display());
        assert_eq!(refused(&absent), expect);
        for path in [&*file, folder.path(), Path::new("/dev/null")] {
            assert!(refused(path).ends_with("is not a serial port: look for the adapter's name in /dev/serial/by-id"));
        }
    }

    #[test]
    fn a_denied_port_names_the_group_that_helps() {
        let folder = tempfile::tempdir().expect("a folder");
        let node = folder.path().join("ttyUSB0");
        fs::write(&node, "").expect("a node");
        let (group, user) = (fs::metadata(&node).expect("it is there").gid(), rustix::process::geteuid().as_raw());
        let (group, user) = (name_of(group, "/etc/group"), name_of(user, "/etc/passwd"));
        let expect = format!(
            "no permission to open {}, which belongs to group {group}: add the user {user} to group {group} and restart",
            node.display()
        );
        assert_eq!(explain(&node, &io::Error::from_raw_os_error(libc::EACCES)).to_string(), expect);
    }

    #[test]
    fn names_are_looked_up_by_number() {
        let folder = tempfile::tempdir().expect("a folder");
        let table = folder.path().join("group");
        fs::write(&table, "root:x:0:\nbroken\ndialout:x:20:pi,gardu\nplugdev:x:46:\n").expect("a table");
        let table = table.to_str().expect("text");
        assert_eq!([0, 20, 99].map(|gid| name_of(gid, table)), ["root", "dialout", "99"]);
        assert_eq!(name_of(20, "/nowhere"), "20");
    }
}
