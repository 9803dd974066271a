//! What stands around the library in its tests: pins, a UART with a wire of its own pace, a bus without chips, a flash
//! that loses its power.

use core::{cell::RefCell, convert::Infallible};
use std::{collections::VecDeque, rc::Rc, vec, vec::Vec};

use embedded_hal::{
    digital::{self, InputPin, OutputPin},
    i2c::{self, I2c, NoAcknowledgeSource, Operation},
};
use embedded_hal_nb::serial::{self, ErrorKind};
use embedded_storage::nor_flash::{ErrorType as FlashErrorType, NorFlash, NorFlashErrorKind, ReadNorFlash};

/// A value that the test and a peripheral share.
#[derive(Debug, Default)]
pub(crate) struct Shared<T>(Rc<RefCell<T>>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Rc::new(RefCell::new(value)))
    }

    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        change(&mut self.0.borrow_mut())
    }
}

impl<T: Copy> Shared<T> {
    pub(crate) fn get(&self) -> T {
        *self.0.borrow()
    }

    pub(crate) fn set(&self, value: T) {
        *self.0.borrow_mut() = value;
    }
}

/// A pin, true while high.
pub(crate) type Pin = Shared<bool>;

impl digital::ErrorType for Pin {
    type Error = Infallible;
}

impl InputPin for Pin {
    fn is_high(&mut self) -> Result<bool, Infallible> {
        Ok(self.get())
    }

    fn is_low(&mut self) -> Result<bool, Infallible> {
        Ok(!self.get())
    }
}

impl OutputPin for Pin {
    fn set_low(&mut self) -> Result<(), Infallible> {
        self.set(false);
        Ok(())
    }

    fn set_high(&mut self) -> Result<(), Infallible> {
        self.set(true);
        Ok(())
    }
}

/// An I²C bus: an SHT4x while `air` says something, a NACK from everyone else.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chips {
    /// Its raw words, temperature first.
    pub(crate) air: Shared<Option<[u16; 2]>>,
}

impl i2c::ErrorType for Chips {
    type Error = i2c::ErrorKind;
}

impl I2c for Chips {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), i2c::ErrorKind> {
        let nack = i2c::ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);
        let air = self.air.get().filter(|_| address == crate::sensors::climate::ADDRESS).ok_or(nack)?;
        for operation in operations {
            match operation {
                Operation::Write([0xfd]) => {}
                Operation::Write(_) => return Err(i2c::ErrorKind::NoAcknowledge(NoAcknowledgeSource::Data)),
                Operation::Read(room) => {
                    let words = air.map(u16::to_be_bytes).map(|[a, b]| [a, b, sensirion_i2c::crc8::calculate(&[a, b])]);
                    room.copy_from_slice(&words.concat());
                }
            }
        }
        Ok(())
    }
}

/// A UART. What it was given counts as sent when the test says so.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uart(Shared<UartState>);

#[derive(Debug, Default)]
pub(crate) struct UartState {
    /// Characters that came in; `Err` for garbled ones.
    pub(crate) received: VecDeque<Result<u8, ErrorKind>>,
    /// Characters that went out.
    pub(crate) sent: Vec<u8>,
    /// How many more it takes now.
    pub(crate) room: usize,
    /// The last stop bit is still on the wire.
    pub(crate) is_shifting: bool,
}

impl Uart {
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut UartState) -> R) -> R {
        self.0.with(change)
    }
}

impl serial::ErrorType for Uart {
    type Error = ErrorKind;
}

impl serial::Read<u8> for Uart {
    fn read(&mut self) -> nb::Result<u8, ErrorKind> {
        match self.with(|state| state.received.pop_front()) {
            Some(character) => character.map_err(nb::Error::Other),
            None => Err(nb::Error::WouldBlock),
        }
    }
}

impl serial::Write<u8> for Uart {
    fn write(&mut self, byte: u8) -> nb::Result<(), ErrorKind> {
        self.with(|state| {
            state.room = state.room.checked_sub(1).ok_or(nb::Error::WouldBlock)?;
            state.sent.push(byte);
            Ok(())
        })
    }

    fn flush(&mut self) -> nb::Result<(), ErrorKind> {
        self.with(|state| if state.is_shifting { Err(nb::Error::WouldBlock) } else { Ok(()) })
    }
}

/// Bytes of an erase block of [`Flash`].
pub(crate) const BLOCK_SIZE: usize = 128;

/// A NOR flash of two blocks whose power may go after any byte that is erased or written.
#[derive(Debug, Clone)]
pub(crate) struct Flash(pub(crate) Shared<FlashState>);

#[derive(Debug, Clone)]
pub(crate) struct FlashState {
    pub(crate) bytes: Vec<u8>,
    /// Bytes that may still be changed before the power goes.
    pub(crate) power: usize,
}

impl Flash {
    pub(crate) fn new() -> Self {
        Self(Shared::new(FlashState { bytes: vec![0xff; 2 * BLOCK_SIZE], power: usize::MAX }))
    }

    fn change(&mut self, offset: u32, bytes: impl Iterator<Item = u8>) -> Result<(), NorFlashErrorKind> {
        self.0.with(|state| {
            for (at, byte) in (offset as usize..).zip(bytes) {
                state.power = state.power.checked_sub(1).ok_or(NorFlashErrorKind::Other)?;
                *state.bytes.get_mut(at).ok_or(NorFlashErrorKind::OutOfBounds)? = byte;
            }
            Ok(())
        })
    }
}

impl FlashErrorType for Flash {
    type Error = NorFlashErrorKind;
}

impl ReadNorFlash for Flash {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, room: &mut [u8]) -> Result<(), NorFlashErrorKind> {
        let from = offset as usize;
        self.0.with(|state| {
            room.copy_from_slice(state.bytes.get(from..from + room.len()).ok_or(NorFlashErrorKind::OutOfBounds)?);
            Ok(())
        })
    }

    fn capacity(&self) -> usize {
        2 * BLOCK_SIZE
    }
}

impl NorFlash for Flash {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = BLOCK_SIZE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NorFlashErrorKind> {
        self.change(from, (from..to).map(|_| 0xff))
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NorFlashErrorKind> {
        let before = self.0.with(|state| state.bytes.clone());
        let at = offset as usize;
        assert!(before[at..at + bytes.len()].iter().all(|byte| *byte == 0xff), "written without being erased");
        self.change(offset, bytes.iter().copied())
    }
}
