//! A slave as one writes it with a heap, straight from the standard, and the requests it is held against.

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::{Audience, Bits, CoilValues, Exception, RegisterValues, Registers, Tables, frame};

/// Tables of plain memory. A register takes no value above [`Plain::VALUE_MAX`], so that refusals are seen as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plain {
    pub(super) coils: Vec<bool>,
    pub(super) discretes: Vec<bool>,
    pub(super) holding: Vec<u16>,
    pub(super) inputs: Vec<u16>,
}

impl Plain {
    pub(super) const DIAGNOSTICS: u16 = 0x0a05;
    pub(super) const VALUE_MAX: u16 = 0xfff0;

    /// What the examples of AP §6 find.
    pub(super) fn of_the_standard() -> Self {
        let bits = |first: usize, bytes: &[u8], length: usize| {
            let mut all = vec![false; length];
            for (at, bit) in
                all[first..].iter_mut().zip(bytes.iter().flat_map(|byte| (0..8).map(move |n| byte >> n & 1 == 1)))
            {
                *at = bit;
            }
            all
        };
        let mut holding = vec![0; 0x80];
        holding[3..9].copy_from_slice(&[0x00fe, 0x0acd, 0x0001, 0x0003, 0x000d, 0x00ff]);
        holding[0x6b..0x6e].copy_from_slice(&[0x022b, 0, 0x64]);
        let mut inputs = vec![0; 0x10];
        inputs[8] = 10;
        Self {
            coils: bits(0x13, &[0xcd, 0x6b, 0x05], 0xb0),
            discretes: bits(0xc4, &[0xac, 0xdb, 0x35], 0xda),
            holding,
            inputs,
        }
    }

    /// As much as can be read at once.
    pub(super) fn full() -> Self {
        Self { coils: vec![true; 2_000], holding: vec![7; 125], ..Self::default() }
    }
}

impl Tables for Plain {
    fn bit(&self, table: Bits, address: u16) -> Option<bool> {
        let bits = match table {
            Bits::Coils => &self.coils,
            Bits::DiscreteInputs => &self.discretes,
        };
        bits.get(usize::from(address)).copied()
    }

    fn register(&self, table: Registers, address: u16) -> Option<u16> {
        let registers = match table {
            Registers::Holding => &self.holding,
            Registers::Input => &self.inputs,
        };
        registers.get(usize::from(address)).copied()
    }

    fn write_coils(&mut self, first: u16, values: CoilValues<'_>) -> Result<(), Exception> {
        let values: Vec<bool> = values.iter().collect();
        let first = usize::from(first);
        let room = self.coils.get_mut(first..first + values.len()).ok_or(Exception::IllegalDataAddress)?;
        room.copy_from_slice(&values);
        Ok(())
    }

    fn write_registers(&mut self, first: u16, values: RegisterValues<'_>, _: Audience) -> Result<(), Exception> {
        let values: Vec<u16> = values.iter().collect();
        let first = usize::from(first);
        let room = self.holding.get_mut(first..first + values.len()).ok_or(Exception::IllegalDataAddress)?;
        if values.iter().any(|value| *value > Self::VALUE_MAX) {
            return Err(Exception::IllegalDataValue);
        }
        room.copy_from_slice(&values);
        Ok(())
    }

    fn diagnostic_register(&self) -> u16 {
        Self::DIAGNOSTICS
    }
}

/// The reference.
pub(super) struct Model {
    unit: u8,
    pub(super) tables: Plain,
}

type Pdu = Result<Vec<u8>, u8>;

impl Model {
    pub(super) fn new(unit: u8) -> Self {
        Self { unit, tables: Plain::of_the_standard() }
    }

    /// What is answered to a frame; empty for nothing. Function 8 is left to tests of its own.
    pub(super) fn take(&mut self, request: &[u8]) -> Vec<u8> {
        if request.len() < 4 || frame(&request[..request.len() - 2]) != request {
            return Vec::new();
        }
        let (unit, function, data) = (request[0], request[1], &request[2..request.len() - 2]);
        if unit != 0 && unit != self.unit {
            return Vec::new();
        }
        let is_write = matches!(function, 5 | 6 | 15 | 16);
        let done = if unit == 0 && !is_write { Err(1) } else { self.perform(function, data) };
        match done {
            _ if unit == 0 => Vec::new(),
            Ok(data) => frame(&[&[unit, function], &data[..]].concat()),
            Err(code) => frame(&[unit, function | 0x80, code]),
        }
    }

    fn perform(&mut self, function: u8, data: &[u8]) -> Pdu {
        let word = |at: usize| usize::from(u16::from_be_bytes([data[at], data[at + 1]]));
        let expect = |length: usize| if data.len() == length { Ok(()) } else { Err(3) };
        let quantity = |at: usize, max: usize| Some(word(at)).filter(|n| (1..=max).contains(n)).ok_or(3);
        match function {
            1 | 2 => {
                expect(4)?;
                let count = quantity(2, 2_000)?;
                let table = if function == 1 { &self.tables.coils } else { &self.tables.discretes };
                let bits = table.get(word(0)..word(0) + count).ok_or(2)?;
                Ok(with_length(&pack(bits)))
            }
            3 | 4 => {
                expect(4)?;
                let count = quantity(2, 125)?;
                let table = if function == 3 { &self.tables.holding } else { &self.tables.inputs };
                let words = table.get(word(0)..word(0) + count).ok_or(2)?;
                Ok(with_length(&to_bytes(words)))
            }
            5 => {
                expect(4)?;
                let on = [0, 0xff00].iter().position(|value| *value == word(2)).ok_or(3)? == 1;
                *self.tables.coils.get_mut(word(0)).ok_or(2)? = on;
                Ok(data.to_vec())
            }
            6 => {
                expect(4)?;
                self.write(word(0), &data[2..])?;
                Ok(data.to_vec())
            }
            15 => {
                if data.len() < 5 {
                    return Err(3);
                }
                let count = quantity(2, 0x7b0)?;
                expect(5 + usize::from(data[4]))?;
                expect(5 + count.div_ceil(8))?;
                let room = self.tables.coils.get_mut(word(0)..word(0) + count).ok_or(2)?;
                for (at, bit) in room.iter_mut().enumerate() {
                    *bit = data[5 + at / 8] & 1 << (at % 8) != 0;
                }
                Ok(data[..4].to_vec())
            }
            16 => {
                if data.len() < 5 {
                    return Err(3);
                }
                let count = quantity(2, 0x7b)?;
                expect(5 + usize::from(data[4]))?;
                expect(5 + count * 2)?;
                self.write(word(0), &data[5..])?;
                Ok(data[..4].to_vec())
            }
            23 => {
                if data.len() < 9 {
                    return Err(3);
                }
                let (read, written) = (quantity(2, 125)?, quantity(6, 0x79)?);
                expect(9 + usize::from(data[8]))?;
                expect(9 + written * 2)?;
                let range = word(0)..word(0) + read;
                self.tables.holding.get(range.clone()).ok_or(2)?;
                self.write(word(4), &data[9..])?;
                Ok(with_length(&to_bytes(&self.tables.holding[range])))
            }
            _ => Err(1),
        }
    }

    fn write(&mut self, first: usize, bytes: &[u8]) -> Result<(), u8> {
        let values: Vec<u16> = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        let room = self.tables.holding.get_mut(first..first + values.len()).ok_or(2)?;
        if values.iter().any(|value| *value > Plain::VALUE_MAX) {
            return Err(3);
        }
        room.copy_from_slice(&values);
        Ok(())
    }
}

fn to_bytes(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn pack(bits: &[bool]) -> Vec<u8> {
    bits.chunks(8).map(|eight| eight.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))).collect()
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8], bytes].concat()
}

/// Frames as a master, a mistaken one, and a noisy line send them. Functions 8 and 43 have no part in it.
pub(super) fn request(unit: u8) -> impl Strategy<Value = Vec<u8>> {
    let address = || prop_oneof![8 => 0_u16..0xe0, 1 => any::<u16>()];
    let quantity = || prop_oneof![8 => 0_u16..0x20, 1 => any::<u16>()];
    let read = (1_u8..=4, address(), quantity()).prop_map(|(function, first, count)| words(function, &[first, count]));
    let value = prop_oneof![2 => Just(0xff00_u16), 1 => Just(0), 1 => any::<u16>()];
    let single = (5_u8..=6, address(), value).prop_map(|(function, at, value)| words(function, &[at, value]));
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    // Mostly a byte count and a quantity that fit.
    let lie = || prop_oneof![9 => Just(0_u8), 1 => any::<u8>()];
    let coils = (address(), bytes(), 0_u16..8, lie()).prop_map(|(first, bytes, less, lie)| {
        let count = (bytes.len() as u16 * 8).saturating_sub(less);
        [words(15, &[first, count]), vec![(bytes.len() as u8).wrapping_add(lie)], bytes].concat()
    });
    let registers = (address(), bytes(), lie()).prop_map(|(first, bytes, lie)| {
        let count = bytes.len() as u16 / 2;
        [words(16, &[first, count]), vec![(bytes.len() as u8).wrapping_add(lie)], bytes].concat()
    });
    let both = (address(), quantity(), address(), bytes(), lie()).prop_map(|(from, count, to, bytes, lie)| {
        let written = bytes.len() as u16 / 2;
        [words(23, &[from, count, to, written]), vec![(bytes.len() as u8).wrapping_add(lie)], bytes].concat()
    });
    let other = (any::<u8>(), bytes()).prop_map(|(function, data)| [vec![function], data].concat());
    let pdu = prop_oneof![4 => read, 2 => single, 2 => coils, 2 => registers, 2 => both, 1 => other]
        .prop_filter("have tests of their own", |pdu| !matches!(pdu[0], 8 | 43));
    let to = prop_oneof![8 => Just(unit), 1 => Just(0), 1 => any::<u8>()];
    let cut = prop_oneof![9 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (to, pdu, cut).prop_map(|(unit, pdu, cut)| {
        let mut whole = frame(&[&[unit], &pdu[..]].concat());
        if let Some(cut) = cut {
            whole.truncate(cut.index(whole.len()));
        }
        whole
    })
}

fn words(function: u8, words: &[u16]) -> Vec<u8> {
    [vec![function], to_bytes(words)].concat()
}
