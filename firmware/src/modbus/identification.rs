//! Who the node is: function 43, MEI type 14 (AP §6.21).

use super::Exception;

/// The objects of a node, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identification<'a> {
    /// Object 0x04: what it is, for people.
    pub product_name: &'a str,
    /// Object 0x05: the board.
    pub model_name: &'a str,
    /// Object 0x80, our own: where the firmware panicked before its last reset, if it did.
    pub last_panic: &'a str,
}

/// MEI type of the device identification.
const READ_DEVICE_IDENTIFICATION: u8 = 0x0e;
/// Basic, regular and extended, as a stream and one by one.
const CONFORMITY: u8 = 0x83;
/// Bytes in front of the objects: MEI type, code, conformity, more follows, next object, number of objects.
const HEAD: usize = 6;
/// Longest data behind a function code.
const DATA_MAX: usize = 252;
/// Number of our own object.
const LAST_PANIC: u8 = 0x80;
/// Last number of each category.
const BASIC_LAST: u8 = 0x02;
const REGULAR_LAST: u8 = 0x7f;

impl Identification<'_> {
    fn object(&self, number: u8) -> Option<&[u8]> {
        let text = match number {
            0x00 => "Gardu",
            0x01 => "gardu-node",
            0x02 => env!("CARGO_PKG_VERSION"),
            0x04 => self.product_name,
            0x05 => self.model_name,
            LAST_PANIC if !self.last_panic.is_empty() => self.last_panic,
            _ => return None,
        };
        Some(text.as_bytes())
    }

    /// Does function 43: fills `answer` with what follows the function code and returns its length.
    pub(super) fn request(&self, data: &[u8], answer: &mut [u8]) -> Result<usize, Exception> {
        let (code, first) = match *data {
            [READ_DEVICE_IDENTIFICATION, code, first] => (code, first),
            [READ_DEVICE_IDENTIFICATION, ..] | [] => return Err(Exception::IllegalDataValue),
            [_, ..] => return Err(Exception::IllegalFunction),
        };
        let last = match code {
            1 => BASIC_LAST,
            2 => REGULAR_LAST,
            3 => u8::MAX,
            4 if self.object(first).is_some() => first,
            4 => return Err(Exception::IllegalDataAddress),
            _ => return Err(Exception::IllegalDataValue),
        };
        // A stream from an object that does not exist starts at the beginning.
        let first = if self.object(first).is_some() { first } else { 0 };
        let (head, mut room) = answer.split_at_mut_checked(HEAD).ok_or(Exception::DeviceFailure)?;
        let (mut length, mut count, mut next) = (HEAD, 0, None);
        for (number, text) in (first..=last).filter_map(|number| Some((number, self.object(number)?))) {
            let size = 2 + text.len();
            let fits = length + size <= DATA_MAX;
            let Some((place, rest)) = room.split_at_mut_checked(size).filter(|_| fits) else {
                next = Some(number);
                break;
            };
            let bytes = [number, u8::try_from(text.len()).unwrap_or(u8::MAX)];
            for (place, byte) in place.iter_mut().zip(bytes.iter().chain(text)) {
                *place = *byte;
            }
            room = rest;
            length += size;
            count += 1;
        }
        let more = if next.is_some() { 0xff } else { 0 };
        let values = [READ_DEVICE_IDENTIFICATION, code, CONFORMITY, more, next.unwrap_or(0), count];
        for (place, value) in head.iter_mut().zip(values) {
            *place = value;
        }
        Ok(length)
    }
}
