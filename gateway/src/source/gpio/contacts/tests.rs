//! Edges with their times to readings.

use super::*;
use crate::source::gpio::tests::{self, contact};

const NOW: Now = Now { mono_ms: 5, wall_ms: 6, trusted: true };

/// A button to ground and a door that is active while open.
fn header() -> Contacts {
    let contacts = vec![contact("button", 17, Level::Low), contact("door", 27, Level::High)];
    Contacts::new(&tests::header(contacts))
}

fn at(ms: u64) -> Instant {
    Instant::from_ticks(ms * 1_000)
}

/// Readings as `name=value` or `name!reason`.
fn spell(readings: &[Reading]) -> String {
    let spell = |r: &Reading| match (&r.value, r.reason) {
        (Some(value), None) => format!("{}={value}", r.point),
        (None, Some(reason)) => format!("{}!{}", r.point, reason.as_str()),
        both => panic!("{both:?}"),
    };
    readings.iter().map(spell).collect::<Vec<_>>().join(" ").replace("header/", "")
}

/// A header whose button is open and whose door is closed since time 0, and has said so.
fn at_rest() -> Contacts {
    let mut contacts = header();
    contacts.opened(&[true, false], at(0));
    assert_eq!(
        spell(&contacts.present(NOW).readings),
        "button=false button-events=0 door=false door-events=0 \
         button=false button-events=0 door=false door-events=0 communication=false"
    );
    contacts
}

#[test]
fn the_first_readings_are_the_levels_found_whatever_they_are() {
    let mut contacts = header();
    contacts.opened(&[false, true], at(0));
    assert_eq!(spell(&contacts.changed(NOW)), "button=true button-events=0 door=true door-events=0");
}

#[test]
fn a_press_between_two_looks_is_told_as_pressed_and_released() {
    let mut contacts = at_rest();
    for (ms, high) in [(100, false), (150, true)] {
        contacts.edge(0, high, at(ms));
    }
    contacts.settle(at(1_000));
    assert_eq!(spell(&contacts.changed(NOW)), "button=true button-events=1 button=false button-events=1");
    assert_eq!(spell(&contacts.changed(NOW)), "");
}

#[test]
fn a_thousand_presses_of_50_ms_that_nobody_looked_at_are_all_counted() {
    let mut contacts = at_rest();
    for press in 1..=1_000 {
        contacts.edge(0, false, at(press * 100));
        contacts.edge(0, true, at(press * 100 + 50));
    }
    contacts.settle(at(200_000));
    let readings = contacts.changed(NOW);
    assert_eq!(readings.len(), 4_000);
    assert!(spell(&readings).ends_with("button=false button-events=1000"));
}

#[test]
fn who_only_looked_at_the_levels_would_miss_them_all() {
    let mut contacts = at_rest();
    for second in 1..=100 {
        contacts.levels(&[true, false], at(second * 1_000));
        contacts.settle(at(second * 1_000));
    }
    assert_eq!(spell(&contacts.changed(NOW)), "");
}

#[test]
fn bouncing_is_one_event_and_what_is_too_short_is_none() {
    let mut contacts = at_rest();
    // bounces in, rests from 105 to 200, bounces out
    for (ms, high) in [(100, false), (102, true), (105, false), (200, true), (203, false), (204, true)] {
        contacts.edge(0, high, at(ms));
    }
    contacts.edge(1, true, at(300)); // a knock on the door
    contacts.edge(1, false, at(319));
    contacts.settle(at(1_000));
    assert_eq!(spell(&contacts.changed(NOW)), "button=true button-events=1 button=false button-events=1");
}

#[test]
fn a_level_counts_once_no_edge_within_its_rest_can_still_come() {
    let mut contacts = at_rest();
    contacts.edge(0, false, at(100));
    assert_eq!(contacts.due(), Some(at(125)));
    contacts.settle(at(124));
    assert_eq!(spell(&contacts.changed(NOW)), "");
    contacts.settle(at(125));
    assert_eq!(spell(&contacts.changed(NOW)), "button=true button-events=1");
    assert_eq!(contacts.due(), None);

    contacts.edge(0, true, at(200));
    contacts.edge(0, false, at(219)); // handed over at 224: it had not rested
    contacts.settle(at(230));
    assert_eq!(spell(&contacts.changed(NOW)), "");
}

#[test]
fn a_lost_edge_is_made_up_for_by_the_next_look_at_the_levels() {
    let mut contacts = at_rest();
    contacts.levels(&[true, true], at(1_000));
    contacts.settle(at(1_025));
    assert_eq!(spell(&contacts.changed(NOW)), "door=true door-events=1");
    // its edge comes after all, or one from before: time does not go back
    contacts.edge(1, true, at(999));
    contacts.edge(1, false, at(998));
    contacts.settle(at(1_100));
    assert_eq!(spell(&contacts.changed(NOW)), "door=false door-events=1");
}

#[test]
fn an_edge_between_two_to_one_level_was_lost_so_the_level_did_not_rest() {
    let mut contacts = at_rest();
    contacts.edge(0, false, at(100));
    contacts.edge(0, false, at(115));
    contacts.settle(at(130));
    assert_eq!(spell(&contacts.changed(NOW)), "");
    contacts.settle(at(140));
    assert_eq!(spell(&contacts.changed(NOW)), "button=true button-events=1");
}

#[test]
fn a_chip_that_goes_makes_its_points_bad_and_after_three_polls_the_device_silent() {
    let mut contacts = at_rest();
    let gone = Trouble::NotThere;
    let report = contacts.absent(gone.clone(), NOW);
    assert_eq!(
        spell(&report.readings),
        "button!link-down button-events!link-down door!link-down door-events!link-down"
    );
    assert_eq!(report.change, Some(Change::Lost(gone.clone())));
    assert_eq!(spell(&contacts.absent(gone.clone(), NOW).readings), "");
    assert_eq!(spell(&contacts.absent(gone.clone(), NOW).readings), "communication=true");
    assert_eq!(spell(&contacts.absent(gone.clone(), NOW).readings), "");

    // Opened again, with the door open: no old state is told for one that rests first, and nobody saw it happen.
    contacts.opened(&[true, true], at(9_000));
    let report = contacts.present(NOW);
    assert!(spell(&report.readings).starts_with("button=false button-events=0 door=true door-events=0"));
    assert!(spell(&report.readings).ends_with("communication=false"));
    assert_eq!(report.change, Some(Change::Back { missed: 4, lost: gone }));
}

#[test]
fn what_was_counted_before_a_chip_went_stays_counted() {
    let mut contacts = at_rest();
    contacts.edge(0, false, at(100));
    contacts.edge(0, true, at(150));
    contacts.settle(at(200));
    let _told = contacts.absent(Trouble::NotThere, NOW);
    contacts.opened(&[true, false], at(5_000));
    assert!(spell(&contacts.present(NOW).readings).starts_with("button=false button-events=1"));
}
