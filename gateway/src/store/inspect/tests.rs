#![expect(clippy::disallowed_methods, reason = "tests run the committers themselves")]

use std::{collections::BTreeMap, thread::JoinHandle};

use tempfile::TempDir;

use super::*;
use crate::{
    clock::BootId,
    metrics::Metrics,
    record::{Epoch, Record},
    store::{
        self, Commit, Options, Store, envelope,
        layout::{NextMeta, json},
        testing::{batch, raised},
    },
    supervise::TaskResult,
};

/// A store whose committers run, with generations of a few dozen records.
struct Running {
    store: Store,
    threads: Vec<JoinHandle<TaskResult>>,
}

impl Running {
    fn open(path: &Path) -> Self {
        let (machine, boot) = ("machine-1".into(), BootId::new("boot-1"));
        let options = Options { path: path.into(), machine, boot, generation_size: 64 * 1024, memory: None };
        let (store, _, committers) = store::open(&options, &Metrics::new()).expect("opens");
        let threads = committers.into_iter().map(|(_, work)| std::thread::spawn(work)).collect();
        Self { store, threads }
    }

    fn close(self) {
        drop(self.store);
        for thread in self.threads {
            thread.join().expect("no panic").expect("no error");
        }
    }

    async fn append(&self, lane: Lane, count: u64) {
        let status = self.store.head(lane).borrow().status.clone();
        for sequence in status.next..status.next + count {
            match lane {
                Lane::Alarm => {
                    let records = vec![raised(&status.epoch, sequence, "panel/door/door-open")];
                    self.store.commit(Commit { records, ..Commit::default() }).await.expect("commits");
                }
                Lane::Telemetry => {
                    let records = vec![batch(&status.epoch, sequence, "31.5")];
                    self.store.commit_telemetry(records).await.expect("queued").await.expect("durable");
                }
            }
        }
    }

    async fn waiting(&self, lane: Lane) -> Vec<Stored> {
        let mut found: Vec<Stored> = Vec::new();
        loop {
            let from = found.last().map_or(0, |last| last.position + 1);
            let more = self.store.read(lane, from, usize::MAX).await.expect("reads");
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }
}

fn folder_of_its_own() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn on_disk(path: &Path, lane: Lane, from: u64, which: Which) -> Vec<Stored> {
    let inspection = look(path, |_, _| {}).expect("can be looked at");
    assert_eq!(inspection.unreadable, []);
    inspection.records(lane, from, which).collect::<Result<_, _>>().expect("can be read")
}

/// Every file below a folder, and its bytes.
fn bytes_below(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(bytes_below(&path));
        } else {
            found.insert(path.clone(), fs::read(path).expect("a file"));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_on_the_disk_is_what_the_store_hands_out_running_or_stopped() {
    let dir = folder_of_its_own();
    let running = Running::open(dir.path());
    running.append(Lane::Alarm, 150).await;
    running.store.rotate(Lane::Alarm).await.expect("rotates");
    running.append(Lane::Alarm, 30).await;
    running.append(Lane::Telemetry, 40).await;
    running.store.settle(Lane::Alarm, vec![(1, 40), (43, 43), (170, 175)]).await.expect("settles");
    let mut expected = Vec::new();
    for lane in Lane::ALL {
        let waiting = running.waiting(lane).await;
        assert_eq!(on_disk(dir.path(), lane, 0, Which::Waiting), waiting, "beside the running store");
        expected.push((lane, waiting, running.store.head(lane).borrow().clone()));
    }
    let generations = running.store.generations(Lane::Alarm).await.expect("answers");
    assert!(generations.len() > 1, "{generations:?}");
    running.close();
    let before = bytes_below(dir.path());
    let inspection = look(dir.path(), |_, _| {}).expect("can be looked at");
    for (lane, waiting, head) in &expected {
        let of = inspection.lanes.iter().find(|of| of.lane == *lane).expect("it has begun");
        assert_eq!(of.status, head.status);
        assert_eq!((of.records, of.oldest.as_ref()), (head.records, head.oldest.as_ref()));
        assert_eq!(of.bytes, waiting.iter().map(|stored| stored.size as u64).sum::<u64>());
        assert_eq!(on_disk(dir.path(), *lane, 0, Which::Waiting), *waiting);
        assert_eq!(on_disk(dir.path(), *lane, 100, Which::Waiting).first(), waiting.iter().find(|s| s.position >= 100));
    }
    let numbers =
        |of: &[Generation]| of.iter().map(|g| (g.number, g.first, g.end, g.waiting, g.sealed)).collect::<Vec<_>>();
    assert_eq!(numbers(&inspection.lanes[0].generations), numbers(&generations));
    let all = on_disk(dir.path(), Lane::Alarm, 0, Which::All);
    assert!(all.len() > expected[0].1.len(), "what is confirmed and still there is shown when it is asked for");
    assert!(all.windows(2).all(|two| two[0].position < two[1].position));
    assert!(bytes_below(dir.path()) == before, "a look changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_store_and_one_that_never_was_are_told_apart() {
    let dir = folder_of_its_own();
    assert!(
        matches!(look(dir.path(), |_, _| {}), Err(LookError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound)
    );
    let running = Running::open(dir.path());
    running.append(Lane::Alarm, 3).await;
    running.store.settle(Lane::Alarm, vec![(1, 3)]).await.expect("settles");
    running.close();
    let inspection = look(dir.path(), |_, _| {}).expect("can be looked at");
    let alarm = &inspection.lanes[0];
    assert_eq!((alarm.records, alarm.status.next, alarm.status.settled, alarm.oldest.as_ref()), (0, 4, 3, None));
}

#[test]
fn another_format_is_named_and_a_damaged_generation_as_well() {
    let dir = folder_of_its_own();
    fs::create_dir(dir.path().join("alarm-1")).expect("a folder");
    let db = dir.path().join("alarm-1/db");
    fs::write(&db, b"gardu3 r 00").expect("a file");
    assert!(matches!(look(dir.path(), |_, _| {}), Err(LookError::Format { found: 3, .. })));
    let next = json(&NextMeta { next: 4216, lines: 2, after: 0x10f2 });
    fs::write(&db, [example().1, line(Kind::Word, 0x10f3, "next", &next)].concat()).expect("a file");
    let inspection = look(dir.path(), |_, _| {}).expect("can be looked at");
    assert_eq!((inspection.lanes.len(), inspection.unreadable[0].0.as_str()), (0, "alarm-1"));
}

#[test]
fn what_was_set_aside_is_measured() {
    let dir = folder_of_its_own();
    fs::create_dir(dir.path().join("bad-1-alarm-2")).expect("a folder");
    fs::write(dir.path().join("bad-1-alarm-2/db"), vec![1; 10_000]).expect("a file");
    fs::write(dir.path().join("ballast"), vec![1; 5_000]).expect("a file");
    let folder = folder(dir.path()).expect("measured");
    let [(name, bytes)] = &folder.aside[..] else { panic!("{folder:?}") };
    assert!(name == "bad-1-alarm-2" && (10_000..40_000).contains(bytes), "{folder:?}");
    assert!(folder.disk_bytes >= bytes + 5_000, "{folder:?}");
}

const DOCUMENT: &str = include_str!("../../../docs/outbox-format.md");

fn line(kind: Kind, commit: u64, key: &str, payload: &[u8]) -> Vec<u8> {
    Envelope { kind, commit, key, payload }.to_bytes()
}

/// The record of the document.
fn example() -> (Record, Vec<u8>) {
    let mut record = raised(&Epoch::parse("7k2m9x4p0q8r5t1w").expect("epoch"), 4211, "panel/door/open");
    if let Body::Alarm(transition) = &mut record.body {
        transition.occurrence = 3;
    }
    let payload = envelope::payload(&record).expect("small");
    let bytes = line(Kind::Record, 0x10f3, "a-7k2m9x4p0q8r5t1w-4211-4215", &payload);
    (record, bytes)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text").trim_end()
}

/// As `hexdump -C` shows it.
fn hexdump(bytes: &[u8]) -> String {
    let row = |(row, bytes): (usize, &[u8])| {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (left, right) = hex.split_at(8);
        format!(
            "    {:08x}  {}  {}  |{}|\n",
            row * 16,
            left.join(" "),
            right.join(" "),
            std::str::from_utf8(bytes).expect("text")
        )
    };
    bytes.chunks_exact(16).enumerate().map(row).collect()
}

#[test]
fn the_document_shows_what_is_stored() {
    let (_, bytes) = example();
    let shown = text(&bytes);
    let field = |range: std::ops::Range<usize>, what: &str| format!("| `{}` | {what}", &shown[range]);
    let settled = line(Kind::Word, 0x10f5, "settled", &json(&[(0, 4090), (4093, 4093)]));
    let next = line(Kind::Word, 0x10f3, "next", &json(&NextMeta { next: 4216, lines: 3, after: 0x10f2 }));
    let mut wanted = vec![
        format!("    {shown}\n"),
        field(7..8, "kind"),
        field(9..25, "number of the commit"),
        field(26..29, "length of the key"),
        field(30..34, "length of the payload"),
        field(35..43, "CRC-32"),
        format!("| `{}` | key", shown[44..].split(' ').next().expect("a key")),
        hexdump(&bytes[..96]),
        format!("    {}\n", text(&settled)),
        format!("    {}\n", text(&next)),
        format!("(format {FORMAT})"),
    ];
    wanted.extend(Kind::ALL.map(|kind| format!("\n| `{}` | ", char::from(kind.letter()))));
    let words =
        [word::FORMAT, word::MADE, word::MACHINE, word::NEXT, word::SETTLED, word::SESSION, word::UNPROVEN, word::VOID];
    wanted.extend(words.map(|word| format!("`{word}`")));
    let missing: Vec<String> = wanted.into_iter().filter(|part| !DOCUMENT.contains(part)).collect();
    assert!(missing.is_empty(), "the document lacks:\n{}", missing.join("\n"));
}

#[test]
fn the_document_s_checksum_covers_what_it_says() {
    let (_, bytes) = example();
    let line = text(&bytes).as_bytes();
    let crc = crc32fast::hash(&[&line[..35], &line[44..]].concat());
    assert_eq!(format!("{crc:08x}").as_bytes(), &line[35..43]);
}

#[test]
fn the_document_s_mark_is_one() {
    let shown = DOCUMENT.lines().find_map(|line| Some(line.trim()).filter(|line| line.starts_with("gardu2 mark ")));
    let mut slot = shown.expect("it shows a mark").as_bytes().to_vec();
    slot.push(b'\n');
    slot.resize(512, b' ');
    let mark = Mark::of_bytes(&slot).expect("a whole one");
    assert_eq!((mark.next, mark.reserved, mark.commit), (4216, 8312, 0x10f5), "{mark:?}");
}

#[test]
fn the_document_s_grep_finds_a_record_in_any_bytes() {
    let (record, bytes) = example();
    let dir = folder_of_its_own();
    let file = dir.path().join("card.img");
    fs::write(&file, [&[0xff, 0, 7][..], &bytes, &[0, 0xfe], &bytes, b"gardu2 r 0000"].concat()).expect("a file");
    let command = DOCUMENT.lines().find_map(|line| line.trim().strip_prefix("LC_ALL=C grep ")).expect("it shows one");
    let command = format!("LC_ALL=C grep {command}").replace("FILE", &file.display().to_string());
    let found = std::process::Command::new("sh").args(["-c", &command]).output().expect("a shell");
    assert_eq!(text(&found.stdout), text(&bytes), "{found:?}");
    let stored = Envelope::read(&bytes).expect("whole").0.record();
    assert_eq!(stored, Some((4215, record)));
}
