//! What outlives a reset, but not the loss of power: event counters and the number of resets.
//!
//! A board keeps two slots of it in memory that a start does not clear, and writes them in turn: a reset in the middle of
//! one leaves the other. After power came on both are noise, which the checksum tells.

use crate::{registers::CONTACTS, settings::CRC};

/// Counters that go on after a reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Activations of every contact.
    pub events: [u16; CONTACTS],
    /// Resets since the power came on.
    pub resets: u16,
}

impl Kept {
    /// Bytes of a slot.
    pub const SIZE: usize = 4 + 2 * CONTACTS + 2 + 4;

    /// A slot; `turn` rises with each writing and tells the newer one.
    #[must_use]
    pub fn to_slot(&self, turn: u32) -> [u8; Self::SIZE] {
        let mut slot = [0; Self::SIZE];
        let numbers = self.events.iter().copied().chain([self.resets]);
        let body = turn.to_be_bytes().into_iter().chain(numbers.flat_map(u16::to_be_bytes));
        for (place, byte) in slot.iter_mut().zip(body) {
            *place = byte;
        }
        if let Some((body, check)) = slot.split_last_chunk_mut() {
            *check = CRC.checksum(body).to_be_bytes();
        }
        slot
    }

    /// What the newer of two slots keeps, and its turn; `None` after power came on.
    #[must_use]
    pub fn from_slots(slots: &[[u8; Self::SIZE]; 2]) -> Option<(Self, u32)> {
        let newer = |a: (Self, u32), b: (Self, u32)| if b.1.wrapping_sub(a.1).cast_signed() > 0 { b } else { a };
        slots.iter().filter_map(from_slot).reduce(newer)
    }
}

fn from_slot(slot: &[u8; Kept::SIZE]) -> Option<(Kept, u32)> {
    let (body, check) = slot.split_last_chunk()?;
    let (turn, numbers) = body.split_first_chunk()?;
    if CRC.checksum(body).to_be_bytes() != *check {
        return None;
    }
    let (numbers, _) = numbers.as_chunks();
    let mut kept = Kept::default();
    let places = kept.events.iter_mut().chain([&mut kept.resets]);
    for (place, number) in places.zip(numbers) {
        *place = u16::from_be_bytes(*number);
    }
    Some((kept, u32::from_be_bytes(*turn)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOISE: [u8; Kept::SIZE] = [0xa5; Kept::SIZE];

    #[test]
    fn noise_after_power_came_on_is_nothing() {
        assert_eq!(Kept::from_slots(&[NOISE, NOISE]), None);
        assert_eq!(Kept::from_slots(&[[0; Kept::SIZE], [0xff; Kept::SIZE]]), None);
    }

    proptest! {
        /// Slots are written in turn; a reset strikes while one of them is being written.
        #[test]
        fn a_reset_while_a_slot_is_written_leaves_the_last_but_one(
            events: [[u16; CONTACTS]; 3],
            resets: u16,
            first: u32,
            written in 0..=Kept::SIZE,
        ) {
            let kept = events.map(|events| Kept { events, resets });
            let turns = [first, first.wrapping_add(1), first.wrapping_add(2)];
            let mut slots = [kept[0].to_slot(turns[0]), kept[1].to_slot(turns[1])];
            prop_assert_eq!(Kept::from_slots(&slots), Some((kept[1], turns[1])));
            let next = kept[2].to_slot(turns[2]);
            slots[0][..written].copy_from_slice(&next[..written]);
            let found = Kept::from_slots(&slots);
            let expected = if slots[0] == next { (kept[2], turns[2]) } else { (kept[1], turns[1]) };
            prop_assert_eq!(found, Some(expected));
        }
    }
}
