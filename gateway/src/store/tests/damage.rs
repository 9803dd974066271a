//! No damage prevents the start, and what was whole is kept.

use super::*;

/// What a damage leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Left {
    /// Every record, and the epoch.
    All,
    /// Every record; whether the end of the log is missing cannot be known, so a new epoch begins.
    RecordsInNewEpoch,
    /// A store that works and gives no number twice.
    Unknown,
}

fn change(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(&path).expect("reads");
    change(&mut bytes);
    fs::write(path, bytes).expect("writes");
}

fn snapshot(chain: &Path) -> PathBuf {
    let mut entries = fs::read_dir(chain).expect("folder").map(|e| e.expect("entry").path());
    entries.find(|p| p.file_name().expect("name").to_string_lossy().starts_with("snap.")).expect("a snapshot")
}

#[tokio::test]
async fn no_damage_prevents_the_start_and_no_number_is_given_twice() {
    type Damage = fn(&Path);
    let table: &[(&str, Left, Damage)] = &[
        ("nothing", Left::All, |_| {}),
        ("half-written snapshot", Left::All, |c| {
            fs::write(c.join("snap.00FFFFFFFFFFFFFF.generating"), "x").expect("writes");
        }),
        ("bit in conf", Left::All, |c| change(c.join("conf"), |b| b[3] ^= 1)),
        ("number in conf", Left::All, |c| change(c.join("conf"), |b| b[15] = b'9')),
        ("conf cut", Left::All, |c| change(c.join("conf"), |b| b.truncate(20))),
        ("conf empty", Left::All, |c| change(c.join("conf"), Vec::clear)),
        ("conf gone", Left::All, |c| fs::remove_file(c.join("conf")).expect("removes")),
        ("conf a folder", Left::All, |c| {
            fs::remove_file(c.join("conf")).expect("removes");
            fs::create_dir(c.join("conf")).expect("folder");
        }),
        ("bit in snapshot", Left::RecordsInNewEpoch, |c| change(snapshot(c), |b| b[7] ^= 4)),
        ("snapshot empty", Left::RecordsInNewEpoch, |c| change(snapshot(c), Vec::clear)),
        ("bits in conf and snapshot", Left::RecordsInNewEpoch, |c| {
            change(snapshot(c), |b| b[7] ^= 4);
            change(c.join("conf"), |b| b[3] ^= 1);
        }),
        ("db cut at 0", Left::Unknown, |c| change(c.join("db"), Vec::clear)),
        ("db cut at 100", Left::Unknown, |c| change(c.join("db"), |b| b.truncate(100))),
        ("db cut at half", Left::Unknown, |c| change(c.join("db"), |b| b.truncate(b.len() / 2))),
        ("db cut at 5/8", Left::Unknown, |c| change(c.join("db"), |b| b.truncate(b.len() / 8 * 5))),
        ("db zeroed in the middle", Left::Unknown, |c| {
            change(c.join("db"), |b| {
                let half = b.len() / 2;
                b[half - 4096..half].fill(0);
            });
        }),
        ("db speckled", Left::Unknown, |c| {
            change(c.join("db"), |b| b.iter_mut().step_by(1_999).for_each(|b| *b ^= 0x5a));
        }),
        ("db all ones", Left::Unknown, |c| change(c.join("db"), |b| b.fill(0xff))),
        ("db gone", Left::Unknown, |c| fs::remove_file(c.join("db")).expect("removes")),
        ("db a folder", Left::Unknown, |c| {
            fs::remove_file(c.join("db")).expect("removes");
            fs::create_dir(c.join("db")).expect("folder");
        }),
        ("blobs a file", Left::Unknown, |c| {
            fs::remove_dir(c.join("blobs")).expect("removes");
            fs::write(c.join("blobs"), "").expect("writes");
        }),
        ("chain a file", Left::Unknown, |c| {
            fs::remove_dir_all(c).expect("removes");
            fs::write(c, "not a folder").expect("writes");
        }),
        ("chain gone", Left::Unknown, |c| fs::remove_dir_all(c).expect("removes")),
    ];
    let whole = folder();
    let rig = Rig::open(whole.path());
    for n in 0..20 {
        rig.append(n * 20 + 1..=n * 20 + 20).await;
    }
    rig.append_telemetry(1..=200).await;
    rig.append_telemetry(201..=400).await;
    let epoch = rig.recovered.epoch.clone();
    rig.close();
    Rig::open(whole.path()).close();

    for (name, left, damage) in table {
        for (chain, lane) in [("alarm-1", Lane::Alarm), ("telemetry-1", Lane::Telemetry)] {
            let dir = folder();
            copy(whole.path(), dir.path());
            damage(&dir.path().join(chain));
            let rig = Rig::open(dir.path());
            let same_epoch = rig.recovered.epoch == epoch;
            let next = if lane == Lane::Alarm { rig.recovered.next.a } else { rig.recovered.next.t };
            assert!(!same_epoch || next == 401, "{name} of {chain}: number {next} is given again");
            assert_eq!(rig.recovered.started.is_none(), same_epoch, "{name} of {chain}: a new epoch is told");
            if *left != Left::Unknown {
                assert_eq!(same_epoch, *left == Left::All, "{name} of {chain}");
                assert_eq!(rig.store.head(lane).borrow().records, 400, "{name} of {chain}");
            }
            let Next { a, t } = rig.recovered.next;
            rig.append(a..=a + 4).await;
            rig.append_telemetry(t..=t + 4).await;
            let heads = Lane::ALL.map(|lane| rig.store.head(lane).borrow().clone());
            let epoch = rig.recovered.epoch.clone();
            rig.close();
            let rig = Rig::open(dir.path());
            assert_eq!((&rig.recovered.epoch, &rig.recovered.started), (&epoch, &None), "{name} of {chain}");
            assert_eq!(Lane::ALL.map(|lane| rig.store.head(lane).borrow().clone()), heads, "{name} of {chain}");
            rig.close();
        }
    }
}

/// How many whole records a byte scan finds.
fn salvageable(db: &Path) -> usize {
    let bytes = fs::read(db).expect("reads");
    let starts = (0..bytes.len()).filter(|i| bytes[*i..].starts_with(b"gardu1 "));
    let lines = starts.filter_map(|i| Some(&bytes[i..=i + bytes[i..].iter().position(|b| *b == b'\n')?]));
    lines.filter_map(envelope::decode).map(|r| r.sequence).collect::<BTreeSet<_>>().len()
}

#[tokio::test]
async fn a_damaged_chain_is_kept_for_salvage_with_all_that_is_whole_in_it() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    for n in 0..20 {
        rig.append(n * 20 + 1..=n * 20 + 20).await;
    }
    rig.close();
    Rig::open(dir.path()).close();
    let db = dir.path().join("alarm-1/db");
    assert_eq!(salvageable(&db), 400);
    // Behind the header of the first segment, where sled notices it first.
    change(db, |b| b[30..60].fill(0xff));
    for _ in 0..2 {
        let rig = Rig::open(dir.path());
        assert!(rig.store.head(Lane::Alarm).borrow().records < 400);
        rig.close();
        assert_eq!(salvageable(&dir.path().join("bad-1-alarm-1/db")), 400, "untouched");
        assert!(!dir.path().join("bad-2-alarm-1").exists(), "damage is found once");
    }
}
