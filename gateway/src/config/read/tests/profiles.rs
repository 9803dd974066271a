//! Profiles: what comes of them, whose win, and every mistake at its place.

use super::*;
use crate::config::{Device, Parity, SerialLine, modbus, profile};

mod node;

/// A valid profile of two points.
const METER: &str = "[profile]
version = 3
title = { id = 'Meteran', en = 'Meter' }
source = 'its manual'
serial = { baud = 4800, parity = 'even', stop = 2 }
[[point]]
name = 'level'
register = 'input:4'
type = 'i16'
scale = 0.1
decimals = 1
unit = 'mm'
invalid = [-32768]
range = [0, 500]
[[point]]
name = 'full'
register = 'discrete:0'
";

/// A configuration of one device; `keys` stand below `[[modbus.device]]`.
fn site(keys: &str) -> String {
    format!("{BASE}[[modbus]]\nname = 'b'\nurl = 'tcp://a'\n[[modbus.device]]\nname = 'd'\nunit = 1\n{keys}\n")
}

/// What is read of `keys` beside these files.
fn device_beside(keys: &str, files: &[(&str, &str)]) -> Device {
    let folder = Folder::new();
    let path = folder.write("gardu.toml", site(keys));
    files.iter().for_each(|(name, text)| drop(folder.write(name, text)));
    let mut config = load_with(&path, ALONE).unwrap_or_else(|problems| panic!("{problems}"));
    config.modbus.swap_remove(0).devices.swap_remove(0)
}

fn device(keys: &str) -> Device {
    device_beside(keys, &[])
}

/// A device with the profile [`METER`] and these keys.
fn meter(keys: &str) -> Device {
    device_beside(&format!("profile = 'meter'\n{keys}"), &[("profiles/meter.toml", METER)])
}

fn names(device: &Device) -> Vec<&str> {
    device.points.iter().map(|point| point.id.as_str()).collect()
}

/// Marked keys of a device, and a marked profile beside them.
fn check(keys: &str, profile: &str) {
    check_files(&[("gardu.toml", &site(keys)), ("profiles/meter.toml", profile)]);
}

/// A marked profile with a device.
fn check_profile(marked: &str) {
    check("profile = 'meter'", marked);
}

#[test]
fn every_file_of_the_folder_ships_and_is_valid() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/profiles"));
    let mut files: Vec<_> = fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path()).collect();
    files.sort();
    let shipped: Vec<_> = profile::SHIPPED.iter().map(|(name, _)| folder.join(format!("{name}.toml"))).collect();
    assert_eq!(files, shipped);
    for (name, text) in profile::SHIPPED {
        let device = device(&format!("profile = '{name}'"));
        let about = device.profile.expect("a profile");
        assert_eq!((about.name.as_str(), &about.file), (name, &None));
        assert!(about.title.id.is_some() && about.title.en.is_some() && about.serial.is_some(), "{name}");
        assert_eq!(device.points.len(), text.matches("[[point]]").count());
    }
}

#[test]
fn a_profile_says_what_a_device_is_and_has() {
    let device = meter("");
    let about = device.profile.as_deref().expect("a profile");
    assert_eq!((about.name.as_str(), about.version, about.source.as_str()), ("meter", 3, "its manual"));
    assert_eq!(about.title.id.as_deref(), Some("Meteran"));
    assert_eq!(about.serial, Some(SerialLine { baud: 4_800, parity: Parity::Even, stop_bits: 2 }));
    assert!(about.file.as_ref().is_some_and(|file| file.ends_with("profiles/meter.toml")));
    assert_eq!(names(&device), ["d/level", "d/full"]);
    let level = &device.points[0];
    assert_eq!((level.table, level.address, level.type_), (Table::Input, 4, Type::I16));
    assert_eq!((&level.invalid[..], level.range), (&[-32768.0][..], Some((0.0, 500.0))));
}

#[test]
fn a_site_adds_leaves_out_replaces_and_changes_points() {
    let own = "[[modbus.device.point]]\nname = 'extra'\nregister = 'coil:9'";
    assert_eq!(names(&meter(own)), ["d/level", "d/full", "d/extra"]);
    assert_eq!(names(&meter("skip = ['full']")), ["d/level"]);
    assert_eq!(names(&meter(&format!("skip = ['full', 'level']\n{own}"))), ["d/extra"]);

    let replaced = meter("[[modbus.device.point]]\nname = 'level'\nregister = 'holding:1'");
    assert_eq!(names(&replaced), ["d/full", "d/level"]);
    let level = &replaced.points[1];
    assert_eq!((level.table, level.type_, level.scale), (Table::Holding, Type::U16, 1.0));
    assert_eq!((level.invalid.len(), level.range, level.unit.as_deref()), (0, None, None));

    let changed = meter("[[modbus.device.point]]\nname = 'level'\noffset = -1.5\nrange = [-2, 100]");
    let before = meter("").points.swap_remove(0);
    let level = &changed.points[1];
    assert_eq!((level.offset, level.range), (-1.5, Some((-2.0, 100.0))));
    assert_eq!(*level, crate::config::Point { offset: -1.5, range: Some((-2.0, 100.0)), ..before });
}

#[test]
fn what_the_example_and_the_readme_show_works() {
    let (_, shown) = SHIPPED.split_once("# [[modbus.device]]\n").expect("a commented device");
    let (shown, _) = shown.split_once("\n\n").expect("an empty line behind it");
    let is_toml = |line: &&str| line.starts_with("[[") || line.contains(" = ");
    let keys: Vec<&str> = shown.lines().map(|line| line.trim_start_matches("# ")).filter(is_toml).collect();
    let node = device(&keys[2..].join("\n")); // name and unit are those of every device here
    assert!(names(&node).iter().all(|name| !["d/loop-2", "d/contact-8"].contains(name)));
    let level = node.points.iter().find(|point| point.id.as_str() == "d/loop-1").expect("the changed loop");
    assert_eq!([4_000.0, 20_000.0].map(|raw| raw * level.scale + level.offset), [0.0, 5_000.0]);
    assert_eq!((level.address, &level.invalid[..], level.unit.as_deref()), (12, &[65_535.0][..], Some("mm")));

    let readme = include_str!("../../../../../README.md");
    let (_, shown) = readme.split_once("    [profile]\n").expect("a profile of one's own");
    let own: Vec<&str> = shown.lines().take_while(|line| line.is_empty() || line.starts_with("    ")).collect();
    let own = format!("[profile]\n{}", own.join("\n"));
    assert_eq!(names(&device_beside("profile = 'own'", &[("profiles/own.toml", &own)])), ["d/level"]);
}

#[test]
fn a_change_that_does_not_fit_is_named_where_the_other_key_stands() {
    let folder = Folder::new();
    let keys = "profile = 'xy-md02'\n[[modbus.device.point]]\nname = 'humidity'\ntype = 'bool'";
    let path = folder.write("gardu.toml", site(keys));
    let said = load_with(&path, ALONE).expect_err("a bool has no scale").render(Language::English);
    let first = said.lines().next().expect("a problem");
    assert_eq!(first, "built-in:xy-md02.toml:23:9: `scale` means nothing for bool and string; remove it");
}

#[test]
fn the_operators_profile_wins_over_one_that_ships() {
    let shipped = device("profile = 'xy-md02'");
    let own = device_beside("profile = 'xy-md02'", &[("profiles/xy-md02.toml", METER)]);
    assert_eq!((names(&shipped), names(&own)), (vec!["d/temperature", "d/humidity"], vec!["d/level", "d/full"]));
    assert!(own.profile.is_some_and(|about| about.file.is_some()));
}

#[test]
fn devices_in_gardu_d_use_the_same_folder_and_share_a_profile() {
    let folder = Folder::new();
    let path = folder.write("gardu.toml", site("profile = 'meter'"));
    folder.write("profiles/meter.toml", METER);
    let more = "[[modbus]]\nname = 'b'\n[[modbus.device]]\nname = 'e'\nunit = 2\nprofile = 'meter'\n";
    folder.write("gardu.d/a.toml", more);
    folder.write("gardu.d/profiles/meter.toml", "not read");
    let config = load_with(&path, ALONE).unwrap_or_else(|problems| panic!("{problems}"));
    let all: Vec<&str> = config.modbus[0].devices.iter().flat_map(names).collect();
    assert_eq!(all, ["d/level", "d/full", "e/level", "e/full"]);
}

#[test]
fn the_fingerprint_is_of_the_profiles_that_are_used() {
    let folder = Folder::new();
    let path = folder.write("gardu.toml", site("profile = 'meter'"));
    let fingerprint = |name: &str, text: &str| {
        folder.write(name, text);
        load_with(&path, ALONE).unwrap_or_else(|problems| panic!("{problems}")).fingerprint
    };
    let first = fingerprint("profiles/meter.toml", METER);
    assert_eq!(fingerprint("profiles/other.toml", "not read"), first);
    assert_ne!(fingerprint("profiles/meter.toml", &METER.replace("500", "600")), first);
    assert_eq!(fingerprint("profiles/meter.toml", METER), first);
}

#[test]
fn a_mistake_in_a_profile_is_named_at_its_place() {
    for marked in [
        "«missing-section»[[point]]\nname = 'a'\nregister = 'coil:0'",
        "«profile-empty»«missing-section»",
        "«profile-empty»«missing»«missing»«missing»[profile]",
        &METER.replace("version = 3", "version = «range»0"),
        &METER.replace("version = 3\n", "").replace("[profile]", "«missing»[profile]"),
        &METER.replace("id = 'Meteran', ", "").replace("{ en", "«message-language»{ en"),
        &METER.replace("source", "«unknown-key-near»sorce").replace("[profile]", "«missing»[profile]"),
        &METER
            .replace("4800", "«choice»4801")
            .replace("'even'", "«choice»'evn'")
            .replace("stop = 2", "stop = «range»3"),
        &METER.replace("stop", "«unknown-key-near»stopp"),
        &METER.replace("'input:4'", "«register»'inpt:4'"),
        &METER.replace("decimals", "«unknown-key-near»decimal"),
        &METER.replace("'discrete:0'", "'discrete:0'\nwritable = «later»true"),
        &METER.replace("'full'", "«clash»'level'"),
        &METER.replace("'full'", "«reserved»'communication'"),
        &METER.replace("[[point]]\nname = 'full'", "«missing»[[point]]"),
        &METER.replace("decimals = 1", "decimals = «syntax»"),
        &METER.replace("decimals = 1", "decimals = 1\n«twice»decimals = 2"),
        &format!("«unknown-key-near»points = []\n{METER}"),
    ] {
        check_profile(marked);
    }
}

#[test]
fn a_mistake_in_a_profile_is_said_once_however_many_devices_have_it() {
    let second = "[[modbus.device]]\nname = 'e'\nunit = 2\nprofile = 'meter'";
    let keys = format!("profile = 'meter'\n{second}\n[[modbus.device.point]]\nname = 'level'\noffset = 1");
    check(&keys, &METER.replace("-32768", "«type»'none'"));
}

#[test]
fn a_mistake_in_the_use_of_a_profile_is_named_at_its_place() {
    for keys in [
        "profile = «profile-near»'metr'",
        "profile = «profile-near»'eastron-sdm12'",
        "profile = «profile»'unheard-of'",
        "profile = «type»1",
        "profile = 'meter'\nskip = [«profile-point-near»'ful', «profile-point»'nothing-like-it', «type»1]",
        "profile = 'meter'\nskip = «type»'full'",
        "profile = 'meter'\nskip = ['full']\n[[modbus.device.point]]\nname = «skip-changed»'full'\nreport = 'off'",
        "profile = 'meter'\n[[modbus.device.point]]\nname = «profile-point-near»'levl'\nscale = 0.2",
        "profile = 'meter'\n«missing»[[modbus.device.point]]\nname = 'nothing-like-it'",
        "profile = 'meter'\n[[modbus.device.point]]\nname = 'level'\n«unknown-key-near»offst = 1\nrange = «range-order»[2, 1]",
        "profile = 'meter'\n[[modbus.device.point]]\nname = 'full'\nscale = «only-numbers»2",
        "profile = 'meter'\n[[modbus.device.point]]\nname = 'level'\nscale = 2\n[[modbus.device.point]]\nname = «clash»'level'\nscale = 3",
        "skip = «skip-alone»['full']\n[[modbus.device.point]]\nname = 'a'\nregister = 'coil:0'",
        // Who names a point of a device that could not be read is not blamed.
        "profile = «profile-near»'metr'\n[[alarm]]\nname = 'x'\nseverity = 'low'\npoint = 'd/level'\nwhen = { above = 1 }",
    ] {
        check(keys, METER);
    }
    let nothing = site("profile = 'meter'\nskip = ['full', 'level']");
    let nothing = nothing.replace("[[modbus.device]]", "«no-points»[[modbus.device]]");
    check_files(&[("gardu.toml", &nothing), ("profiles/meter.toml", METER)]);
}

#[test]
fn a_name_is_never_a_path() {
    for name in
        ["../meter", "/etc/passwd", "a/b", "..", ".", ".hidden", "", "Meter", "mé", "a\\u0000b", &"a".repeat(65)]
    {
        let folder = Folder::new();
        folder.write("meter.toml", METER);
        let keys = format!("profile = «profile-name»\"{name}\"");
        let (text, marks) = unmark("gardu.toml", &site(&keys));
        folder.write("gardu.toml", text);
        assert_eq!(folder.problems(), marks, "{name:?}");
    }
}

#[test]
fn a_misspelt_name_says_where_was_looked() {
    let folder = Folder::new();
    let path = folder.write("gardu.toml", site("profile = 'metr'"));
    folder.write("profiles/meter.toml", METER);
    let said = load_with(&path, ALONE).expect_err("no such profile").render(Language::English);
    let looked = folder.path("profiles/metr.toml");
    assert!(said.contains(looked.to_str().expect("text")) && said.contains("did you mean `meter`?"), "{said}");
    folder.write("gardu.toml", site("profile = 'unheard-of'"));
    let said = load_with(&path, ALONE).expect_err("no such profile").render(Language::Indonesian);
    assert!(said.contains("yang dikenal: eastron-sdm120, gardu-node, meter, xy-md02"), "{said}");
}

#[test]
fn what_is_too_much_is_refused() {
    let kinds = |folder: &Folder| folder.problems().into_iter().map(|(.., kind)| kind).collect::<Vec<_>>();
    let folder = Folder::new();
    folder.write("gardu.toml", site("profile = 'meter'"));
    folder.write("profiles/meter.toml", vec![b'#'; 64 * 1024 + 1]);
    assert_eq!(kinds(&folder), ["check-file-large"]);
    fs::remove_file(folder.path("profiles/meter.toml")).expect("a file");
    fs::create_dir(folder.path("profiles/meter.toml")).expect("a folder");
    assert_eq!(kinds(&folder), ["check-file-folder"]);
    fs::remove_dir(folder.path("profiles/meter.toml")).expect("a folder");
    folder.write("profiles/meter.toml", b"[profile]\nversion = 1 # \xff\n");
    assert_eq!(kinds(&folder), ["check-utf8"]);

    let head = "[profile]\nversion = 1\ntitle = 't'\nsource = 's'\n";
    let points = |count: usize| -> String {
        (0..count).map(|i| format!("[[point]]\nname = 'p{i}'\nregister = 'input:{i}'\n")).collect()
    };
    folder.write("profiles/meter.toml", format!("{head}{}", points(profile::POINTS_MAX)));
    assert_eq!(kinds(&folder), [""; 0]);
    folder.write("profiles/meter.toml", format!("{head}{}", points(profile::POINTS_MAX + 1)));
    assert_eq!(kinds(&folder), ["check-too-many"]);

    // So many devices with 500 points and their own `communication` are one too many.
    folder.write("profiles/meter.toml", format!("{head}{}", points(profile::POINTS_MAX)));
    let devices = |count: usize| -> String {
        (0..count).map(|i| format!("[[modbus.device]]\nname = 'd{i}'\nunit = 1\nprofile = 'meter'\n")).collect()
    };
    let most = modbus::POINTS_MAX / (profile::POINTS_MAX + 1);
    let bus = format!("{BASE}[[modbus]]\nname = 'b'\nurl = 'tcp://a'\n");
    folder.write("gardu.toml", format!("{bus}{}", devices(most)));
    assert_eq!(kinds(&folder), [""; 0]);
    folder.write("gardu.toml", format!("{bus}{}", devices(most + 1)));
    assert_eq!(kinds(&folder), ["check-points"]);

    let different: String = (0..=profile::PROFILES_MAX)
        .map(|i| {
            folder.write(&format!("profiles/p{i:02}.toml"), METER);
            format!("[[modbus.device]]\nname = 'd{i}'\nunit = 1\nprofile = 'p{i:02}'\n")
        })
        .collect();
    folder.write("gardu.toml", format!("{bus}{different}"));
    assert_eq!(kinds(&folder), ["check-profiles"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_names_and_profiles_never_panic(name in "[a-zA-Z0-9._/-]{0,70}", bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        let folder = Folder::new();
        folder.write("profiles/meter.toml", bytes);
        for name in [name.as_str(), "meter"] {
            let path = folder.write("gardu.toml", site(&format!("profile = '{name}'")));
            if let Err(problems) = load_with(&path, ALONE) {
                prop_assert!(!problems.render(Language::Indonesian).is_empty());
            }
        }
    }
}
