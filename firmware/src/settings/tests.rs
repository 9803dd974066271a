//! Ranges, and the two copies under power cuts and flipped bits.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::{
    registers::{MAP, Table},
    testing::{BLOCK_SIZE, Flash},
};

fn with_unit(unit: u16) -> Settings {
    let mut settings = Settings::default();
    settings.set(UNIT, unit).expect("a unit");
    settings
}

#[test]
fn the_defaults_are_valid_and_every_setting_of_the_map_has_one() {
    let settings = Settings::default();
    let mapped: Vec<u16> = MAP
        .iter()
        .filter(|entry| entry.table == Table::Holding && entry.address != APPLY)
        .map(|entry| entry.address)
        .collect();
    assert_eq!(mapped, (0..APPLY).collect::<Vec<_>>());
    for address in mapped {
        let value = settings.register(address).expect("a setting");
        assert!(is_valid(address, value), "holding {address} = {value}");
    }
    assert_eq!(settings.register(APPLY), None);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let table = [
        (UNIT, [0, 248]),
        (BAUD, [95, 2_304]),
        (PARITY, [3, 65_535]),
        (STOP_BITS, [0, 3]),
        (DEBOUNCE, [0, 10_001]),
        (DEBOUNCE_LAST, [0, 10_001]),
        (ACTIVE_OPEN, [256, 65_535]),
        (FITTED, [32, 65_535]),
        (TRANSFORMER, [0, 601]),
        (FAIL_SAFE_OUTPUTS, [4, 65_535]),
        (APPLY, [0, 1]),
    ];
    for (address, values) in table {
        for value in values {
            let mut settings = Settings::default();
            assert_eq!(settings.set(address, value), Err(Refused), "holding {address} = {value}");
            assert_eq!(settings, Settings::default());
        }
    }
}

#[test]
fn a_new_flash_gives_the_defaults_and_is_no_loss() {
    assert_eq!(load(&mut Flash::new()), Loaded { settings: Settings::default(), origin: Origin::New });
}

#[test]
fn what_was_saved_last_is_found_however_often_it_is_saved() {
    let mut flash = Flash::new();
    for unit in (1..=247).cycle().take(1_000) {
        save(&mut flash, &with_unit(unit)).expect("saved");
        assert_eq!(load(&mut flash), Loaded { settings: with_unit(unit), origin: Origin::Kept });
    }
}

#[test]
fn the_number_of_a_copy_wraps() {
    let mut flash = Flash::new();
    for (copy, number, unit) in [(0, u16::MAX, 7), (1, 0, 8)] {
        flash.write(BLOCK_SIZE as u32 * copy, &encode(&with_unit(unit), number)).expect("written");
    }
    assert_eq!(load(&mut flash).settings.unit(), 8, "0 comes after 65535");
}

/// Every byte that a saving erases or writes, and the power gone after it.
#[test]
fn a_power_cut_while_saving_leaves_the_old_or_the_new_settings() {
    let mut before = Flash::new();
    save(&mut before, &with_unit(5)).expect("saved");
    let before = before.0.with(|state| state.bytes.clone());
    let (mut old, mut new) = (0, 0);
    for power in 0.. {
        let mut flash = Flash::new();
        flash.0.with(|state| (state.bytes.clone_from(&before), state.power = power));
        let saved = save(&mut flash, &with_unit(6));
        flash.0.with(|state| state.power = usize::MAX);
        let found = load(&mut flash);
        assert_eq!(found.origin, Origin::Kept, "after {power} bytes");
        match found.settings.unit() {
            5 => old += 1,
            6 => new += 1,
            unit => panic!("unit {unit} after {power} bytes"),
        }
        // And the next saving works from there.
        save(&mut flash, &with_unit(9)).expect("saved");
        assert_eq!(load(&mut flash).settings.unit(), 9, "after {power} bytes");
        if saved.is_ok() {
            break;
        }
    }
    assert!(old > BLOCK_SIZE && new > BLOCK_SIZE, "{old} old, {new} new");
}

/// The twin: with one copy only, a cut loses the settings.
#[test]
fn one_copy_would_not_survive_a_power_cut() {
    let mut flash = Flash::new();
    flash.write(0, &encode(&with_unit(5), 1)).expect("written");
    flash.erase(0, 1).expect("erased in part");
    assert_eq!(load(&mut flash).origin, Origin::Lost);
}

proptest! {
    #[test]
    fn a_flipped_bit_is_mended_by_the_other_copy(at in 0..2 * BLOCK_SIZE, bit in 0..8) {
        let mut flash = Flash::new();
        save(&mut flash, &with_unit(5)).expect("saved");
        flash.0.with(|state| state.bytes[at] ^= 1_u8 << bit);
        prop_assert_eq!(load(&mut flash), Loaded { settings: with_unit(5), origin: Origin::Kept });
    }

    #[test]
    fn noise_is_lost_settings_and_never_wrong_ones(noise in prop::collection::vec(any::<u8>(), 2 * BLOCK_SIZE)) {
        let mut flash = Flash::new();
        flash.0.with(|state| state.bytes = noise);
        prop_assert_eq!(load(&mut flash), Loaded { settings: Settings::default(), origin: Origin::Lost });
    }
}
