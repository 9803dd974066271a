//! The flash that settings lie in. The emulator's cannot be written, so it is memory that outlives a reset: settings are
//! kept as long as the emulator runs, and each starts as a chip from the factory.

use embedded_storage::nor_flash::{
    ErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash, check_erase, check_read, check_write,
};

use crate::shared::Lasting;

const SECTOR: usize = 64;
const SECTORS: usize = 2;

#[unsafe(link_section = ".uninit.flash")]
static CELLS: Lasting<{ SECTORS * SECTOR }> = Lasting::new();

/// Two sectors.
#[derive(Debug)]
pub(crate) struct Flash;

impl Flash {
    /// As it comes from the factory.
    pub(crate) fn blank() -> Self {
        CELLS.write(&[0xFF; SECTORS * SECTOR]);
        Self
    }

    fn change(offset: usize, cells: impl IntoIterator<Item = u8>, to: fn(u8, u8) -> u8) {
        let mut all = CELLS.read();
        all.iter_mut().skip(offset).zip(cells).for_each(|(cell, byte)| *cell = to(*cell, byte));
        CELLS.write(&all);
    }
}

impl ErrorType for Flash {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Self::Error> {
        check_read(self, offset, bytes.len())?;
        bytes.iter_mut().zip(CELLS.read().iter().skip(offset as usize)).for_each(|(byte, cell)| *byte = *cell);
        Ok(())
    }

    fn capacity(&self) -> usize {
        SECTORS * SECTOR
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = SECTOR;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Self::Error> {
        check_erase(self, from, to)?;
        Self::change(from as usize, (from..to).map(|_| 0xFF), |_, erased| erased);
        Ok(())
    }

    /// Clears bits and sets none, as flash does.
    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Self::Error> {
        check_write(self, offset, bytes.len())?;
        Self::change(offset as usize, bytes.iter().copied(), |cell, byte| cell & byte);
        Ok(())
    }
}
