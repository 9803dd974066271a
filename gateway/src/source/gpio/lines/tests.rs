//! What can be had without a chip: every way of not getting one.

use std::{os::unix::fs::PermissionsExt, path::PathBuf};

use super::*;
use crate::{
    config::Level,
    source::gpio::tests::{contact, header},
};

fn open(chip: impl Into<PathBuf>) -> Trouble {
    let gpio = Gpio { chip: chip.into(), ..header(vec![contact("door", 17, Level::Low)]) };
    Header(gpio).open().expect_err("there is no chip")
}

#[test]
fn a_path_that_is_no_chip_is_told_from_one_that_is_not_there() {
    assert_eq!(open("/dev/does-not-exist"), Trouble::NotThere);
    assert_eq!(
        open("/dev/does-not-exist").to_string(),
        "there is no such chip: write the path that `gpiodetect` shows, or plug it in"
    );
    assert_eq!(open("/dev/null"), Trouble::NotAChip);
    assert_eq!(open("/dev"), Trouble::NotAChip);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gpiochip0");
    std::fs::write(&file, "no device").unwrap();
    assert_eq!(open(file), Trouble::NotAChip);
}

#[test]
fn a_chip_without_permission_says_whose_it_must_be() {
    let refused = io::Error::from(io::ErrorKind::PermissionDenied);
    assert_eq!(Trouble::of(&refused), Trouble::NotAllowed);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gpiochip0");
    std::fs::write(&file, "locked").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o000)).unwrap();
    // root may open it, and finds that it is no chip
    let expected = if rustix::process::geteuid().is_root() { Trouble::NotAChip } else { Trouble::NotAllowed };
    assert_eq!(open(file), expected);
}
