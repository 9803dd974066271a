//! From a request to its answer, byte by byte as the standard has it.
//!
//! The checksum comes first: nothing is looked at, counted as a message or done before it is right. Functions: 1 to 6, 8,
//! 15, 16, 23 and 43/14; to everyone only the writes 5, 6, 15 and 16. A request is refused as a whole or done as a whole,
//! checked in the order of AP's state diagrams: function, quantity, addresses, value.

use core::ops::RangeInclusive;

use super::{
    Audience, Bits, CoilValues, Exception, FRAME_MAX, RegisterValues, Registers, Tables, checksum,
    diagnostics::{Diagnostics, Outcome},
    identification::Identification,
};

/// One node on the bus.
#[derive(Debug, Clone)]
pub struct Slave<'a> {
    unit: u8,
    identification: Identification<'a>,
    diagnostics: Diagnostics,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Reaction<'a> {
    /// Garbled, or for another unit.
    NotOurs,
    /// Done, or refused, without an answer: it was for everyone, or the slave was told to be silent.
    Silent,
    /// This goes out.
    Answer(&'a [u8]),
}

/// Unit that means every slave (SL §2.2).
const BROADCAST: u8 = 0;

/// Most bits in one read (AP §6.1).
const READ_BITS_MAX: u16 = 2_000;
/// Most registers in one read (AP §6.3).
const READ_REGISTERS_MAX: u16 = 125;
/// Most coils in one write (AP §6.11).
const WRITE_COILS_MAX: u16 = 0x7b0;
/// Most registers in one write (AP §6.12).
const WRITE_REGISTERS_MAX: u16 = 0x7b;
/// Most registers written by function 23 (AP §6.17).
const READ_WRITE_MAX: u16 = 0x79;

impl<'a> Slave<'a> {
    /// A slave that answers as `unit`.
    #[must_use]
    pub fn new(unit: u8, identification: Identification<'a>) -> Self {
        Self { unit, identification, diagnostics: Diagnostics::default() }
    }

    /// What it counted.
    #[must_use]
    pub const fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }

    /// A frame was cut or garbled on the wire.
    pub const fn garbled(&mut self) {
        self.diagnostics.bus_errors = self.diagnostics.bus_errors.wrapping_add(1);
    }

    /// A character was lost because nobody took it in time.
    pub const fn overrun(&mut self) {
        self.diagnostics.overruns = self.diagnostics.overruns.wrapping_add(1);
    }

    /// Takes a whole frame; the answer, if there is one, lies in `room`.
    pub fn take<'b>(&mut self, frame: &[u8], tables: &mut impl Tables, room: &'b mut [u8; FRAME_MAX]) -> Reaction<'b> {
        let Some((unit, function, data)) = open(frame) else {
            self.garbled();
            return Reaction::NotOurs;
        };
        count(&mut self.diagnostics.bus_messages);
        let audience = match unit {
            BROADCAST => Audience::Everyone,
            unit if unit == self.unit => Audience::Own,
            _ => return Reaction::NotOurs,
        };
        count(&mut self.diagnostics.messages);
        let [own_unit, own_function, answer @ ..] = room;
        let mut answer = Answer { room: answer, length: 0 };
        let done = if self.diagnostics.is_listening_only() {
            self.listen(function, data, audience);
            Ok(Said::Nothing)
        } else {
            self.perform(function, data, audience, tables, &mut answer)
        };
        if done.is_err() {
            count(&mut self.diagnostics.exceptions);
        }
        let function = match done {
            Ok(Said::Something) if audience == Audience::Own => function,
            Err(exception) if audience == Audience::Own => {
                answer.length = 0;
                answer.push(exception as u8);
                function | 0x80
            }
            Ok(_) | Err(_) => {
                count(&mut self.diagnostics.no_responses);
                return Reaction::Silent;
            }
        };
        (*own_unit, *own_function) = (unit, function);
        let length = 2 + answer.length;
        finish(room, length)
    }

    /// In listen-only mode nothing is done but what ends it.
    fn listen(&mut self, function: u8, data: &[u8], audience: Audience) {
        if (function, audience) == (8, Audience::Own) && Diagnostics::ends_silence(data) {
            // Nothing is said: the request came while it was to be silent.
            let _ = self.diagnostics.request(data);
        }
    }

    fn perform(
        &mut self,
        function: u8,
        data: &[u8],
        audience: Audience,
        tables: &mut impl Tables,
        answer: &mut Answer<'_>,
    ) -> Result<Said, Exception> {
        match (function, audience) {
            (5 | 6 | 15 | 16, _) | (_, Audience::Own) => {}
            (_, Audience::Everyone) => return Err(Exception::IllegalFunction),
        }
        match function {
            1 => read_bits(Bits::Coils, data, tables, answer),
            2 => read_bits(Bits::DiscreteInputs, data, tables, answer),
            3 => read_registers(Registers::Holding, data, tables, answer),
            4 => read_registers(Registers::Input, data, tables, answer),
            5 => write_coil(data, tables, answer),
            6 => write_register(data, audience, tables, answer),
            8 => self.diagnose(data, tables, answer),
            15 => write_coils(data, tables, answer),
            16 => write_registers(data, audience, tables, answer),
            23 => read_and_write(data, audience, tables, answer),
            43 => {
                answer.length = self.identification.request(data, answer.room)?;
                Ok(Said::Something)
            }
            _ => Err(Exception::IllegalFunction),
        }
    }

    fn diagnose(&mut self, data: &[u8], tables: &impl Tables, answer: &mut Answer<'_>) -> Result<Said, Exception> {
        let number = match self.diagnostics.request(data)? {
            Outcome::Echo => {
                answer.extend(data);
                return Ok(Said::Something);
            }
            Outcome::Silence => return Ok(Said::Nothing),
            Outcome::Number(number) => number,
            Outcome::DiagnosticRegister => tables.diagnostic_register(),
        };
        answer.extend(data.get(..2).unwrap_or_default());
        answer.extend(&number.to_be_bytes());
        Ok(Said::Something)
    }
}

/// Unit, function and data of a frame whose checksum is right.
fn open(frame: &[u8]) -> Option<(u8, u8, &[u8])> {
    let (body, check) = frame.split_last_chunk()?;
    let [unit, function, data @ ..] = body else { return None };
    (*check == checksum(body)).then_some((*unit, *function, data))
}

/// Whether there is anything to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Something,
    Nothing,
}

/// What stands behind the function code of an answer.
struct Answer<'a> {
    room: &'a mut [u8],
    length: usize,
}

impl Answer<'_> {
    /// No answer of ours is longer than its room: the quantities of every function see to that.
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.room.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.push(*byte);
        }
    }
}

/// Puts the checksum behind the first `length` bytes.
fn finish(room: &mut [u8; FRAME_MAX], length: usize) -> Reaction<'_> {
    let Some((body, rest)) = room.split_at_mut_checked(length) else { return Reaction::Silent };
    let Some(place) = rest.first_chunk_mut() else { return Reaction::Silent };
    *place = checksum(body);
    room.get(..length + 2).map_or(Reaction::Silent, Reaction::Answer)
}

const fn count(counter: &mut u16) {
    *counter = counter.wrapping_add(1);
}

/// The addresses from `first` on, if that many exist at all, and a quantity that a request may have.
fn span(first: [u8; 2], quantity: [u8; 2], quantity_max: u16) -> Result<RangeInclusive<u16>, Exception> {
    let (first, quantity) = (u16::from_be_bytes(first), u16::from_be_bytes(quantity));
    if !(1..=quantity_max).contains(&quantity) {
        return Err(Exception::IllegalDataValue);
    }
    let last = first.checked_add(quantity - 1).ok_or(Exception::IllegalDataAddress)?;
    Ok(first..=last)
}

fn read_bits(table: Bits, data: &[u8], tables: &impl Tables, answer: &mut Answer<'_>) -> Result<Said, Exception> {
    let &[a, b, c, d] = data else { return Err(Exception::IllegalDataValue) };
    let mut addresses = span([a, b], [c, d], READ_BITS_MAX)?;
    let bytes = u16::from_be_bytes([c, d]).div_ceil(8);
    answer.push(bytes.to_be_bytes()[1]);
    for _ in 0..bytes {
        let mut byte = 0;
        for (bit, address) in (0..8).zip(&mut addresses) {
            let value = tables.bit(table, address).ok_or(Exception::IllegalDataAddress)?;
            byte |= u8::from(value) << bit;
        }
        answer.push(byte);
    }
    Ok(Said::Something)
}

fn read_registers(
    table: Registers,
    data: &[u8],
    tables: &impl Tables,
    answer: &mut Answer<'_>,
) -> Result<Said, Exception> {
    let &[a, b, c, d] = data else { return Err(Exception::IllegalDataValue) };
    let addresses = span([a, b], [c, d], READ_REGISTERS_MAX)?;
    answer.push(d.wrapping_mul(2));
    for address in addresses {
        let value = tables.register(table, address).ok_or(Exception::IllegalDataAddress)?;
        answer.extend(&value.to_be_bytes());
    }
    Ok(Said::Something)
}

fn write_coil(data: &[u8], tables: &mut impl Tables, answer: &mut Answer<'_>) -> Result<Said, Exception> {
    let &[a, b, value @ (0 | 0xff), 0] = data else { return Err(Exception::IllegalDataValue) };
    tables.write_coils(u16::from_be_bytes([a, b]), CoilValues { bytes: &[value & 1], quantity: 1 })?;
    answer.extend(data);
    Ok(Said::Something)
}

fn write_register(
    data: &[u8],
    audience: Audience,
    tables: &mut impl Tables,
    answer: &mut Answer<'_>,
) -> Result<Said, Exception> {
    let &[a, b, c, d] = data else { return Err(Exception::IllegalDataValue) };
    tables.write_registers(u16::from_be_bytes([a, b]), RegisterValues { words: &[[c, d]] }, audience)?;
    answer.extend(data);
    Ok(Said::Something)
}

fn write_coils(data: &[u8], tables: &mut impl Tables, answer: &mut Answer<'_>) -> Result<Said, Exception> {
    let [a, b, c, d, length, bytes @ ..] = data else { return Err(Exception::IllegalDataValue) };
    let addresses = span([*a, *b], [*c, *d], WRITE_COILS_MAX)?;
    let quantity = u16::from_be_bytes([*c, *d]);
    if usize::from(*length) != bytes.len() || usize::from(quantity.div_ceil(8)) != bytes.len() {
        return Err(Exception::IllegalDataValue);
    }
    tables.write_coils(*addresses.start(), CoilValues { bytes, quantity })?;
    answer.extend(&[*a, *b, *c, *d]);
    Ok(Said::Something)
}

/// The registers of a write whose byte count and quantity say the same as its length.
fn words(bytes: &[u8], length: u8, quantity: [u8; 2]) -> Result<RegisterValues<'_>, Exception> {
    match bytes.as_chunks() {
        (words, [])
            if usize::from(length) == bytes.len() && usize::from(u16::from_be_bytes(quantity)) == words.len() =>
        {
            Ok(RegisterValues { words })
        }
        _ => Err(Exception::IllegalDataValue),
    }
}

fn write_registers(
    data: &[u8],
    audience: Audience,
    tables: &mut impl Tables,
    answer: &mut Answer<'_>,
) -> Result<Said, Exception> {
    let [a, b, c, d, length, bytes @ ..] = data else { return Err(Exception::IllegalDataValue) };
    let values = words(bytes, *length, [*c, *d])?;
    let addresses = span([*a, *b], [*c, *d], WRITE_REGISTERS_MAX)?;
    tables.write_registers(*addresses.start(), values, audience)?;
    answer.extend(&[*a, *b, *c, *d]);
    Ok(Said::Something)
}

fn read_and_write(
    data: &[u8],
    audience: Audience,
    tables: &mut impl Tables,
    answer: &mut Answer<'_>,
) -> Result<Said, Exception> {
    let [a, b, c, d, e, f, g, h, length, bytes @ ..] = data else { return Err(Exception::IllegalDataValue) };
    let values = words(bytes, *length, [*g, *h])?;
    let mut read = span([*a, *b], [*c, *d], READ_REGISTERS_MAX)?;
    let written = span([*e, *f], [*g, *h], READ_WRITE_MAX)?;
    if !read.all(|address| tables.register(Registers::Holding, address).is_some()) {
        return Err(Exception::IllegalDataAddress);
    }
    tables.write_registers(*written.start(), values, audience)?;
    read_registers(Registers::Holding, &[*a, *b, *c, *d], tables, answer)
}

#[cfg(test)]
mod tests;
