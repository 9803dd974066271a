//! No damage prevents the start, and what was whole is kept.

use super::{mark::RESERVED_AT_ONCE, *};

/// What a damage leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Left {
    /// Everything, and the epoch.
    All,
    /// What is not there, if anything, is known to be lost.
    Some,
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
        ("bit in snapshot", Left::All, |c| change(snapshot(c), |b| b[7] ^= 4)),
        ("snapshot empty", Left::All, |c| change(snapshot(c), Vec::clear)),
        ("bits in conf and snapshot", Left::All, |c| {
            change(snapshot(c), |b| b[7] ^= 4);
            change(c.join("conf"), |b| b[3] ^= 1);
        }),
        ("db cut at 0", Left::Some, |c| change(c.join("db"), Vec::clear)),
        ("db cut at 100", Left::Some, |c| change(c.join("db"), |b| b.truncate(100))),
        ("db cut at half", Left::Some, |c| change(c.join("db"), |b| b.truncate(b.len() / 2))),
        ("db cut at 5/8", Left::Some, |c| change(c.join("db"), |b| b.truncate(b.len() / 8 * 5))),
        ("db zeroed in the middle", Left::Some, |c| {
            change(c.join("db"), |b| {
                let half = b.len() / 2;
                b[half - 4096..half].fill(0);
            });
        }),
        ("db speckled", Left::Some, |c| {
            change(c.join("db"), |b| b.iter_mut().step_by(1_999).for_each(|b| *b ^= 0x5a));
        }),
        ("db all ones", Left::Some, |c| change(c.join("db"), |b| b.fill(0xff))),
        ("db gone", Left::Some, |c| fs::remove_file(c.join("db")).expect("removes")),
        ("db a folder", Left::Some, |c| {
            fs::remove_file(c.join("db")).expect("removes");
            fs::create_dir(c.join("db")).expect("folder");
        }),
        ("blobs a file", Left::Some, |c| {
            fs::remove_dir(c.join("blobs")).expect("removes");
            fs::write(c.join("blobs"), "").expect("writes");
        }),
        ("chain a file", Left::Some, |c| {
            fs::remove_dir_all(c).expect("removes");
            fs::write(c, "not a folder").expect("writes");
        }),
        ("chain gone", Left::Some, |c| fs::remove_dir_all(c).expect("removes")),
    ];
    let whole = folder();
    let rig = Rig::open(whole.path());
    for n in 0..20 {
        rig.append(n * 20 + 1..=n * 20 + 20).await;
        let alarms = vec![state("panel/door/door-open", n * 20 + 20)];
        rig.store.commit(Commit { alarms, ..Commit::default() }).await.expect("commits");
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
            let what = format!("{name} of {chain}");
            let same_epoch = rig.recovered.epoch == epoch;
            let next = if lane == Lane::Alarm { rig.recovered.next.a } else { rig.recovered.next.t };
            assert!(!same_epoch || next == 401, "{what}: number {next} is given again");
            assert_eq!(rig.recovered.started.is_none(), same_epoch, "{what}: a new epoch is told");
            let found: BTreeSet<u64> = sequences(&rig.waiting(lane).await).into_iter().collect();
            let lost = lost(&rig, lane, &epoch).await;
            assert!(found.is_disjoint(&lost), "{what}: {lost:?} are there");
            assert_eq!(found.len() + lost.len(), 400, "{what}: every number is there or known to be lost");
            assert!(*left == Left::Some || same_epoch && lost.is_empty(), "{what}: {lost:?} are lost");
            if lane == Lane::Alarm && *left == Left::All {
                assert_eq!(rig.recovered.alarms, [state("panel/door/door-open", 400)], "{what}");
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

/// Numbers of an epoch that are known to be lost, for certain.
async fn lost(rig: &Rig, lane: Lane, epoch: &Epoch) -> BTreeSet<u64> {
    let lost = rig.store.lost(lane).await.expect("answers");
    let of_epoch = lost.into_iter().filter(|lost| lost.epoch == *epoch && lost.certain);
    of_epoch.flat_map(|lost| lost.ranges).flat_map(|(first, last)| first..=last).collect()
}

#[tokio::test]
async fn what_is_lost_is_told_until_it_is_declared() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=9).await;
    rig.store.rotate(Lane::Alarm).await.expect("rotates");
    rig.append(10..=12).await;
    let epoch = rig.recovered.epoch.clone();
    rig.close();
    fs::remove_dir_all(dir.path().join("alarm-1")).expect("removes");
    for _ in 0..2 {
        let rig = Rig::open(dir.path());
        assert_eq!((&rig.recovered.epoch, rig.recovered.next.a), (&epoch, 13), "the numbers are all known");
        assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [10, 11, 12]);
        assert_eq!(lost(&rig, Lane::Alarm, &epoch).await, (1..=9).collect());
        assert_eq!(rig.store.head(Lane::Alarm).borrow().missing, 9);
        rig.close();
    }
    let rig = Rig::open(dir.path());
    rig.waiting(Lane::Alarm).await;
    let lost = rig.store.lost(Lane::Alarm).await.expect("answers");
    rig.store.settle(Lane::Alarm, lost[0].positions.clone()).await.expect("settles");
    assert_eq!(rig.store.lost(Lane::Alarm).await, Ok(vec![]));
    assert_eq!(rig.status(Lane::Alarm), (13, 9));
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!(rig.store.lost(Lane::Alarm).await, Ok(vec![]));
    rig.close();
}

#[tokio::test]
async fn values_of_the_chain_that_cannot_be_true_do_not_prevent_a_start() {
    for (key, payload) in [("settled", "[[5,1]]"), ("made", "7"), ("next", "{}")] {
        let dir = folder();
        let rig = Rig::open(dir.path());
        rig.append(1..=9).await;
        rig.close();
        let db = sled::Config::new().path(dir.path().join("alarm-1")).open().expect("sled");
        let next = layout::Put::word(layout::word::NEXT, &layout::NextMeta { next: 10, lines: 2, after: 98 });
        db.insert(next.database_key(), next.line(99)).expect("inserts");
        let wrong = layout::Put { kind: Kind::Word, key: key.to_owned(), payload: payload.into() };
        db.insert(wrong.database_key(), wrong.line(99)).expect("inserts");
        drop(db);
        let rig = Rig::open(dir.path());
        assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), (1..=9).collect::<Vec<_>>(), "{key}");
        rig.close();
    }
}

#[tokio::test]
async fn sealed_generations_that_were_swapped_lose_nothing() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    for n in 0..3 {
        rig.append(n * 10 + 1..=n * 10 + 10).await;
        rig.store.rotate(Lane::Alarm).await.expect("rotates");
    }
    rig.close();
    let path = |n: u32| dir.path().join(format!("alarm-{n}"));
    for (from, to) in [(1, 9), (2, 1), (9, 2)] {
        fs::rename(path(from), path(to)).expect("renames");
    }
    let rig = Rig::open(dir.path());
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), (1..=30).collect::<Vec<_>>());
    assert_eq!(rig.store.lost(Lane::Alarm).await, Ok(vec![]));
    rig.close();
}

#[tokio::test]
async fn what_is_found_in_another_generation_is_read_at_once() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=10).await;
    rig.store.rotate(Lane::Alarm).await.expect("rotates");
    rig.append(11..=25).await;
    rig.store.rotate(Lane::Alarm).await.expect("rotates");
    rig.store.settle(Lane::Alarm, vec![(1, 3)]).await.expect("settles");
    rig.close();
    for (from, to) in [(1, 9), (2, 1), (9, 2)] {
        let path = |n: u32| dir.path().join(format!("alarm-{n}"));
        fs::rename(path(from), path(to)).expect("renames");
    }
    let rig = Rig::open(dir.path());
    assert_eq!(rig.store.head(Lane::Alarm).borrow().oldest, Some((BootId::new("boot-1"), now(4))));
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), (4..=25).collect::<Vec<_>>());
    rig.close();
}

#[tokio::test]
async fn a_file_in_the_place_of_a_sealed_generation_is_a_loss_and_no_more() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=5).await;
    rig.store.rotate(Lane::Alarm).await.expect("rotates");
    rig.append(6..=9).await;
    let epoch = rig.recovered.epoch.clone();
    fs::remove_dir_all(dir.path().join("alarm-1")).expect("removes");
    fs::write(dir.path().join("alarm-1"), "a file").expect("writes");
    rig.store.compact(Lane::Alarm, 1).await.expect("there is nothing to rewrite");
    assert_eq!(lost(&rig, Lane::Alarm, &epoch).await, (1..=5).collect());
    rig.close();
    let rig = Rig::open(dir.path());
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), [6, 7, 8, 9]);
    assert_eq!(lost(&rig, Lane::Alarm, &epoch).await, (1..=5).collect());
    rig.close();
}

#[tokio::test]
async fn what_was_delivered_is_not_told_to_be_lost_with_the_generation_that_knew_it() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    for n in 0..3 {
        rig.append(n * 10 + 1..=n * 10 + 10).await;
        rig.store.rotate(Lane::Alarm).await.expect("rotates");
    }
    rig.store.settle(Lane::Alarm, vec![(11, 20)]).await.expect("settles");
    rig.append(31..=33).await;
    let epoch = rig.recovered.epoch.clone();
    rig.close();
    assert!(!dir.path().join("alarm-2").exists(), "drained");
    fs::remove_dir_all(dir.path().join("alarm-4")).expect("removes");
    let rig = Rig::open(dir.path());
    assert_eq!(sequences(&rig.waiting(Lane::Alarm).await), (1..=10).chain(21..=30).collect::<Vec<_>>());
    assert_eq!(lost(&rig, Lane::Alarm, &epoch).await, (31..=33).collect());
    rig.close();
}

#[test]
fn a_folder_in_the_place_of_the_lock_does_not_prevent_the_start() {
    let dir = folder();
    Rig::open(dir.path()).close();
    fs::remove_file(dir.path().join("lock")).expect("removes");
    fs::create_dir(dir.path().join("lock")).expect("folder");
    Rig::open(dir.path()).close();
}

#[tokio::test]
async fn without_a_mark_of_this_boot_a_block_may_be_lost_and_is_not_certain() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    rig.append(1..=5).await;
    let epoch = rig.recovered.epoch.clone();
    let killed = folder();
    copy(dir.path(), killed.path());
    rig.close();
    change(killed.path().join("alarm-1/db"), |b| b.fill(0));
    let after = Options { boot: BootId::new("boot-2"), ..options(killed.path()) };
    let rig = Rig::open_on(&after, &sync_file());
    assert_ne!(rig.recovered.epoch, epoch);
    let lost = rig.store.lost(Lane::Alarm).await.expect("answers");
    let told: Vec<_> = lost.iter().map(|lost| (lost.ranges.clone(), lost.certain)).collect();
    assert_eq!(told, [(vec![(1, 5)], true), (vec![(6, RESERVED_AT_ONCE)], false)], "reserved when it was opened");
    rig.close();
}

#[tokio::test]
async fn what_sled_made_of_a_damaged_generation_is_kept_beside_the_bytes_it_was_given() {
    let dir = folder();
    let rig = Rig::open(dir.path());
    for n in 0..20 {
        rig.append(n * 20 + 1..=n * 20 + 20).await;
    }
    rig.close();
    // Behind the header of the first segment, where sled notices it first.
    change(dir.path().join("alarm-1/db"), |b| b[30..60].fill(0xff));
    for _ in 0..2 {
        let rig = Rig::open(dir.path());
        assert_eq!(rig.waiting(Lane::Alarm).await.len(), 400, "no record was hurt");
        rig.close();
        assert!(dir.path().join("bad-1-alarm-1").exists());
        assert!(!dir.path().join("bad-2-alarm-1").exists(), "damage is found once");
    }
}
