//! A copy of the store put back: what is recorded then carries numbers that were used before, until the command center's
//! own topics tell so. No id may be seen with two contents, and nothing may be missing.

use std::{fs, path::Path};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    broker::{Access, Broker},
    gateway::Gateway,
    ledger::Ledger,
    load,
    mqtt::{Publisher, Version},
    park::{Park, Plan, configuration},
    until,
};

const ALARM: &str = "kolam/motion/intruder";
/// Transitions before the copy, and after it in the life that is then undone.
const BEFORE: usize = 10;
const UNDONE: usize = 20;

/// When the copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copied {
    /// As a backup of a stopped service.
    Stopped,
    /// As a snapshot of the disk under a running one.
    Running,
}

/// How it is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PutBack {
    /// The folder is another one.
    Folder,
    /// Folder and files are those that were there, with the contents of before.
    InPlace,
}

/// Detections that come and go, each a transition, and as many levels, each telemetry.
fn happen(camera: &mut Publisher, numbers: std::ops::Range<usize>) {
    for n in numbers {
        camera.publish("cam/kolam/motion", if n % 2 == 0 { "true" } else { "false" });
        camera.publish("level/tangki", &n.to_string());
    }
}

/// Transitions that arrived under different ids.
fn arrived(ledger: &Ledger) -> usize {
    ledger.events.iter().filter(|event| event.subject == ALARM).count()
}

/// A level each, wherever it arrived.
fn levels(ledger: &Ledger) -> usize {
    let readings = ledger.events.iter().filter_map(|event| event.data("readings").as_array()).flatten();
    readings.filter(|reading| reading["point"] == "tangki/tank/level").count()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder for the copy");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let there = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &there);
        } else {
            // Written over, not replaced: the file stays the one it was.
            fs::write(there, fs::read(entry.path()).expect("a readable file")).expect("a writable file");
        }
    }
}

/// Removes what the copy does not have.
fn prune(folder: &Path, like: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let there = like.join(entry.file_name());
        match (entry.file_type().expect("a type").is_dir(), there.exists()) {
            (true, true) => prune(&entry.path(), &there),
            (true, false) => fs::remove_dir_all(entry.path()).expect("ours to remove"),
            (false, true) => {}
            (false, false) => fs::remove_file(entry.path()).expect("ours to remove"),
        }
    }
}

fn signal(gateway: &Gateway, signal: Signal) {
    let pid = i32::try_from(gateway.pid()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("the gateway runs");
}

/// A park whose store was rolled back and whose gateway has since recorded `after` transitions without a broker.
fn rolled_back(copied: Copied, put_back: PutBack, after: u16) -> (Park, Publisher) {
    let mut park = Park::open(&load::body());
    let (outbox, kept) = (park.gateway.outbox(), park.gateway.outbox().with_file_name("copy"));
    let mut camera = park.camera(Version::V311);
    happen(&mut camera, 0..BEFORE);
    park.center.wait_for("the first transitions", |ledger| (arrived(ledger) == BEFORE).then_some(()));
    if copied == Copied::Stopped {
        park.stop();
        copy(&outbox, &kept);
        park.gateway.start();
        camera = park.camera(Version::V311);
    } else {
        signal(&park.gateway, Signal::STOP);
        copy(&outbox, &kept);
        signal(&park.gateway, Signal::CONT);
    }
    happen(&mut camera, BEFORE..BEFORE + UNDONE);
    let all = |ledger: &Ledger| (arrived(ledger) == BEFORE + UNDONE && levels(ledger) == BEFORE + UNDONE).then_some(());
    park.center.wait_for("the life that is undone", all);
    park.stop();
    if put_back == PutBack::Folder {
        fs::remove_dir_all(&outbox).expect("the gateway made its store");
    } else {
        prune(&outbox, &kept);
    }
    copy(&kept, &outbox);
    park.broker.stop();
    park.gateway.start();
    let mut camera = park.camera(Version::V311);
    happen(&mut camera, 0..usize::from(after));
    let waiting = f64::from(after);
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |records| records >= waiting);
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"t\"}", |records| records >= waiting);
    (park, camera)
}

/// Everything arrived, each once, and the center was told which numbers are meant.
fn prove(mut park: Park, after: u16) {
    let total = BEFORE + UNDONE + usize::from(after);
    let all = |ledger: &Ledger| (arrived(ledger) >= total && levels(ledger) >= total).then_some(());
    park.center.wait_for("what was recorded since", all);
    for lane in ["a", "t"] {
        park.gateway.wait_for_metric(&format!("gardu_outbox_records{{lane=\"{lane}\"}}"), |waiting| waiting < 1.0);
    }
    assert_eq!(park.stop()["reason"], "stopped");
    assert_eq!(park.center.assert_complete().declared_lost, 0);
    let ledger = park.center.ledger();
    assert_eq!((arrived(&ledger), levels(&ledger)), (total, total), "none came under two ids\n{}", ledger.outline());
    let started = ledger.events.iter().filter(|event| event.kind == "gardu.stream.started.v1");
    let [first, new] = &started.collect::<Vec<_>>()[..] else { panic!("not two epochs: {}", ledger.outline()) };
    assert_eq!((new.data("reason"), new.data("replaces")), (&"rolled-back".into(), &first.epoch.as_str().into()));
    let known =
        |lane: char| ledger.events.iter().filter(move |e| e.epoch == first.epoch && e.lane == lane).map(|e| e.sequence);
    let last = ["a", "t"].map(|lane| new.data("last")[lane].as_u64());
    assert_eq!(last, ['a', 't'].map(|lane| known(lane).max()), "the last numbers the center knows of the first epoch");
    assert_eq!(new.sequence, 1, "an epoch begins with its declaration");
}

fn check(copied: Copied, put_back: PutBack, after: u16) {
    let (mut park, _camera) = rolled_back(copied, put_back, after);
    park.broker.restart();
    prove(park, after);
}

/// Fewer than the life that is undone had: every number is one the center knows.
#[test]
fn a_backup_of_the_store_put_back_in_place_uses_no_id_again() {
    check(Copied::Stopped, PutBack::InPlace, 10);
}

/// More than it had: the center knows no higher number than the store by then.
#[test]
fn a_snapshot_of_the_store_put_back_as_a_folder_uses_no_id_again() {
    check(Copied::Running, PutBack::Folder, 60);
}

/// Several pages are numbered anew; the gateway is killed once the center has answered, and after the first page.
#[test]
fn killed_while_it_numbers_records_anew_it_goes_on_where_it_was() {
    const AFTER: u16 = 400;
    let (mut park, _camera) = rolled_back(Copied::Stopped, PutBack::Folder, AFTER);
    park.broker.restart();
    for said in ["beginning a new epoch", "numbered anew in the present epoch"] {
        until(said, || park.gateway.log().contains(said));
        park.gateway.kill9();
        park.gateway.start();
    }
    prove(park, AFTER);
}

/// The twin: at a broker that knows nothing of the life that was undone nothing contradicts, and ids are used again.
#[test]
fn where_no_topic_tells_of_the_life_undone_ids_are_used_again() {
    let (mut park, _camera) = rolled_back(Copied::Stopped, PutBack::Folder, 20);
    let other = Broker::start();
    park.center.listen_also_at(other.port);
    park.gateway.sigterm();
    let plan = Plan { access: Access::Open, command_center: "", body: &load::body() };
    park.gateway.configure(&configuration(&plan, other.port, park.plc.port));
    park.gateway.start();
    park.gateway.wait_for_metric("gardu_outbox_records{lane=\"a\"}", |waiting| waiting < 1.0);
    let fault = park.center.wait_for("an id used again", |ledger| ledger.complete().err());
    assert!(fault.contains("came again with another content"), "{fault}");
}
