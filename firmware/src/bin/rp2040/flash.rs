//! The flash that settings lie in: the last two sectors of the 2 MiB on a Pico.
//!
//! While it is erased or written nothing else runs: the program lies in the same flash. An erase takes 45 ms, at most
//! 400 ms (data sheet of the W25Q16JV).

use core::ptr;

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};
use rp2040_flash::flash;

/// Smallest area that can be erased.
const SECTOR: u32 = 4096;
/// Smallest area that can be written.
const PAGE: usize = 256;
/// From the beginning of the flash.
const OFFSET: u32 = 2 * 1024 * 1024 - 2 * SECTOR;
/// Where the flash is read.
const READ_AT: usize = 0x1000_0000 + OFFSET as usize;
/// The flash returns to fast reading by the boot loader's own way.
const WITH_BOOT2: bool = true;

/// Two sectors.
#[derive(Debug)]
pub(crate) struct Flash;

impl Flash {
    /// The number that the flash was made with; the RP2040 has none.
    pub(crate) fn serial_number(&self) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: interrupts are masked, the other core sleeps in its boot code and DMA is not used: nothing else reads the
        // flash meanwhile.
        unsafe { flash::flash_unique_id(&mut bytes, WITH_BOOT2) };
        u64::from_be_bytes(bytes)
    }
}

impl ErrorType for Flash {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Self::Error> {
        check_read(self, offset, bytes.len())?;
        let start = ptr::with_exposed_provenance::<u8>(READ_AT + offset as usize);
        for (at, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: the range lies within both sectors, which are mapped into memory; they change behind the compiler's
            // back, so the read is volatile.
            *byte = unsafe { ptr::read_volatile(start.add(at)) };
        }
        Ok(())
    }

    fn capacity(&self) -> usize {
        2 * SECTOR as usize
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = 1;
    const ERASE_SIZE: usize = SECTOR as usize;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
        check_erase(self, from, to)?;
        // SAFETY: as in `serial_number`; whole sectors of ours, which the linker gives to nothing else.
        unsafe { flash::flash_range_erase(OFFSET + from, to - from, WITH_BOOT2) };
        Ok(())
    }

    /// A page at a time, with ones, which change nothing, around what is written.
    fn write(&mut self, offset: u32, mut bytes: &[u8]) -> Result<(), Self::Error> {
        check_write(self, offset, bytes.len())?;
        let mut at = offset as usize;
        while !bytes.is_empty() {
            let (page, within) = (at / PAGE * PAGE, at % PAGE);
            let (now, later) = bytes.split_at(bytes.len().min(PAGE - within));
            let mut cells = [0xff; PAGE];
            cells.iter_mut().skip(within).zip(now).for_each(|(cell, byte)| *cell = *byte);
            // SAFETY: as in `serial_number`; a whole page of ours.
            unsafe { flash::flash_range_program(OFFSET + page as u32, &cells, WITH_BOOT2) };
            at += now.len();
            bytes = later;
        }
        Ok(())
    }
}
