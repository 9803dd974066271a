//! An I2C bus by the kernel's character device; the only file that names linux-embedded-hal.

use std::{io, path::Path};

use embedded_hal::i2c::{ErrorKind, ErrorType, I2c, NoAcknowledgeSource, Operation};
use gardu_node::sensors::{analog, climate};
use linux_embedded_hal::{I2CError, I2cdev, i2cdev::linux::LinuxI2CError};

use super::Trouble;
use crate::config::{I2cChip, I2cDevice};

/// How adapters say that nobody acknowledged: by the kernel's fault codes ENXIO, by several drivers (that of the Raspberry Pi
/// among them) EREMOTEIO.
const NOBODY: [i32; 2] = [libc::ENXIO, libc::EREMOTEIO];

/// A bus that is open.
pub struct Bus(I2cdev);

/// Opens the bus of a chip.
pub fn open(device: &I2cDevice) -> Result<Bus, Trouble> {
    let address = match device.chip {
        I2cChip::Climate => climate::ADDRESS,
        I2cChip::Ads1115 => analog::ADDRESS,
    };
    open_at(&device.bus, address)
}

fn open_at(path: &Path, address: u8) -> Result<Bus, Trouble> {
    let mut bus = I2cdev::new(path).map_err(|error| explain(&error, address))?;
    // The kernel refuses an address that one of its own drivers holds; better now, by its name, than at every transfer.
    bus.set_slave_address(u16::from(address)).map_err(|error| explain(&error, address))?;
    Ok(Bus(bus))
}

fn explain(error: &LinuxI2CError, address: u8) -> Trouble {
    let errno = errno(error);
    match errno.map(|errno| (errno, io::Error::from_raw_os_error(errno).kind())) {
        Some((_, io::ErrorKind::NotFound)) => Trouble::NotThere,
        Some((_, io::ErrorKind::PermissionDenied)) => Trouble::NotAllowed,
        Some((libc::ENOTTY, _)) => Trouble::NotABus,
        Some((libc::EBUSY, _)) => Trouble::InUse { address },
        Some(_) | None => Trouble::Failed(error.to_string()),
    }
}

fn errno(error: &LinuxI2CError) -> Option<i32> {
    match error {
        LinuxI2CError::Errno(errno) => Some(*errno),
        LinuxI2CError::Io(error) => error.raw_os_error(),
    }
}

impl ErrorType for Bus {
    type Error = ErrorKind;
}

impl I2c for Bus {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
        self.0.transaction(address, operations).map_err(|error: I2CError| match errno(error.inner()) {
            Some(errno) if NOBODY.contains(&errno) => ErrorKind::NoAcknowledge(NoAcknowledgeSource::Unknown),
            Some(_) | None => embedded_hal::i2c::Error::kind(&error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_no_bus_is_told_from_one_that_is_not_there() {
        assert_eq!(open_at(Path::new("/dev/does-not-exist"), 0x44).err(), Some(Trouble::NotThere));
        assert_eq!(open_at(Path::new("/dev/null"), 0x44).err(), Some(Trouble::NotABus));
        let folder = open_at(Path::new("/dev"), 0x44).err().expect("a folder");
        assert!(matches!(folder, Trouble::Failed(_)), "{folder}");
    }

    #[test]
    fn what_the_kernel_says_becomes_what_to_do() {
        let said = |errno| explain(&LinuxI2CError::Errno(errno), 0x48);
        assert_eq!(said(libc::EACCES), Trouble::NotAllowed);
        assert_eq!(said(libc::EPERM), Trouble::NotAllowed);
        assert_eq!(said(libc::EBUSY), Trouble::InUse { address: 0x48 });
        assert_eq!(said(libc::EIO), Trouble::Failed(LinuxI2CError::Errno(libc::EIO).to_string()));
    }
}
