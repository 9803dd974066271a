//! The store against a small model of it, through any steps.

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append(Lane, u64),
    Confirm(Lane, Vec<prop::sample::Index>),
    Epoch,
    State(u8, u64),
    Forget(u8),
    Settle(Lane, prop::sample::Index, u64),
    Rotate(Lane),
    Compact(Lane, prop::sample::Index),
    /// Settles the oldest generation whole.
    Evict(Lane),
    Reopen,
    Kill,
    /// A kill while so many records are written: their bytes end there, with these behind.
    Tear(Lane, u64, prop::sample::Index, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let lane = prop_oneof![Just(Lane::Alarm), Just(Lane::Telemetry)];
    prop_oneof![
        4 => (lane.clone(), 1_u64..8).prop_map(|(lane, n)| Step::Append(lane, n)),
        4 => (lane.clone(), prop::collection::vec(any::<prop::sample::Index>(), 1..8))
            .prop_map(|(lane, i)| Step::Confirm(lane, i)),
        2 => (lane.clone(), any::<prop::sample::Index>(), 1_u64..8)
            .prop_map(|(lane, first, count)| Step::Settle(lane, first, count)),
        2 => lane.clone().prop_map(Step::Rotate),
        1 => (lane.clone(), any::<prop::sample::Index>()).prop_map(|(lane, i)| Step::Compact(lane, i)),
        1 => lane.clone().prop_map(Step::Evict),
        1 => (lane, 1_u64..8, any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(lane, n, end, noise)| Step::Tear(lane, n, end, noise)),
        1 => Just(Step::Epoch),
        2 => (0_u8..4, 1_u64..9).prop_map(|(alarm, n)| Step::State(alarm, n)),
        1 => (0_u8..4).prop_map(Step::Forget),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

/// What one lane should be.
#[derive(Debug, Default, Clone)]
struct LaneModel {
    /// Every record ever appended; its position is its place, from 1.
    records: Vec<Record>,
    confirmed: BTreeSet<u64>,
    /// Confirmed before the last group that is known to be durable.
    saved: BTreeSet<u64>,
}

impl LaneModel {
    fn append(&mut self, records: &[Record]) {
        self.records.extend_from_slice(records);
        self.saved = self.confirmed.clone();
    }

    fn settle(&mut self, first: u64, end: u64) {
        self.confirmed.extend(first..end.min(self.records.len() as u64 + 1));
        self.saved = self.confirmed.clone();
    }

    /// Takes over what a kill left of the confirmations.
    fn killed(&mut self, found: &[Stored]) {
        let found: BTreeSet<_> = found.iter().map(|stored| stored.position).collect();
        let gone: BTreeSet<_> = (1..=self.records.len() as u64).filter(|p| !found.contains(p)).collect();
        assert!(self.saved.is_subset(&gone) && gone.is_subset(&self.confirmed), "{gone:?} {self:?}");
        self.saved = gone.clone();
        self.confirmed = gone;
    }

    fn waiting(&self) -> Vec<(u64, Record)> {
        (1..).zip(self.records.clone()).filter(|(position, _)| !self.confirmed.contains(position)).collect()
    }

    fn status(&self, epoch: &Epoch) -> LaneStatus {
        let (positions, count) = ((1..).zip(&self.records), self.records.iter().filter(|r| r.epoch == *epoch).count());
        let settled =
            positions.filter(|(_, r)| r.epoch == *epoch).take_while(|(p, _)| self.confirmed.contains(p)).count();
        LaneStatus { epoch: epoch.clone(), next: count as u64 + 1, settled: settled as u64 }
    }
}

type States = std::collections::BTreeMap<AlarmId, AlarmState>;

fn new_records(lane: Lane, epoch: &Epoch, first: u64, count: u64) -> Vec<Record> {
    let make = |n| if lane == Lane::Alarm { raised(epoch, n, "a/b/c") } else { batch(epoch, n, "1.5") };
    (first..first + count).map(make).collect()
}

async fn write(rig: &Rig, lane: Lane, records: Vec<Record>) {
    if lane == Lane::Alarm {
        rig.store.commit(Commit { records, ..Commit::default() }).await.expect("commits");
    } else {
        rig.store.commit_telemetry(records).await.expect("queued").await.expect("durable");
    }
}

fn check_states(rig: &Rig, alarms: &States) {
    let mut found = rig.recovered.alarms.clone();
    found.sort_by_key(|state| state.last.alarm.clone());
    assert_eq!(found, alarms.values().cloned().collect::<Vec<_>>());
}

async fn check_steps(steps: Vec<Step>) {
    let mut dir = folder();
    let mut rig = Rig::open(dir.path());
    let mut model = [LaneModel::default(), LaneModel::default()];
    let mut alarms = States::new();
    let mut epoch = rig.recovered.epoch.clone();
    let place = |lane: Lane| Lane::ALL.iter().position(|l| *l == lane).expect("a lane");
    for step in steps {
        match step {
            Step::Append(lane, n) => {
                let records = new_records(lane, &epoch, model[place(lane)].status(&epoch).next, n);
                model[place(lane)].append(&records);
                write(&rig, lane, records).await;
            }
            Step::Confirm(lane, indices) => {
                let len = model[place(lane)].records.len();
                if len > 0 {
                    let positions: Vec<u64> = indices.iter().map(|i| i.index(len) as u64 + 1).collect();
                    model[place(lane)].confirmed.extend(&positions);
                    rig.store.confirm(lane, positions).await.expect("queued");
                }
            }
            Step::Epoch => {
                epoch = Epoch::random().expect("random");
                let record = raised(&epoch, 1, "a/b/c");
                model[place(Lane::Alarm)].append(std::slice::from_ref(&record));
                model[place(Lane::Telemetry)].append(&[]);
                rig.store.commit(Commit { records: vec![record], ..Commit::default() }).await.expect("commits");
            }
            Step::State(n, occurrence) => {
                let state = state(&format!("a/b/n{n}"), occurrence);
                alarms.insert(state.last.alarm.clone(), state.clone());
                rig.store.commit(Commit { alarms: vec![state], ..Commit::default() }).await.expect("commits");
                model[place(Lane::Alarm)].append(&[]);
            }
            Step::Forget(n) => {
                let id = AlarmId::parse(&format!("a/b/n{n}")).expect("alarm");
                alarms.remove(&id);
                rig.store.commit(Commit { forgotten_alarms: vec![id], ..Commit::default() }).await.expect("commits");
                model[place(Lane::Alarm)].append(&[]);
            }
            Step::Reopen => {
                rig.close();
                rig = Rig::open(dir.path());
                for lane in &mut model {
                    lane.saved = lane.confirmed.clone();
                }
            }
            Step::Kill => {
                let killed = folder();
                copy(dir.path(), killed.path());
                rig.close();
                dir = killed;
                rig = Rig::open(dir.path());
                for lane in Lane::ALL {
                    model[place(lane)].killed(&rig.waiting(lane).await);
                }
                check_states(&rig, &alarms);
            }
            Step::Tear(lane, n, end, noise) => {
                let killed = folder();
                copy(dir.path(), killed.path());
                let first = model[place(lane)].status(&epoch).next;
                let records = new_records(lane, &epoch, first, n);
                let open = rig.store.generations(lane).await.expect("answers").pop().expect("one is open").number;
                let chain = if lane == Lane::Alarm { "alarm" } else { "telemetry" };
                let data = |root: &Path| root.join(format!("{chain}-{open}/db"));
                let synced = fs::metadata(data(killed.path())).expect("a file").len();
                write(&rig, lane, records.clone()).await;
                let mut bytes = fs::read(data(dir.path())).expect("reads");
                let synced = usize::try_from(synced).expect("small").min(bytes.len());
                bytes.truncate(synced + end.index(bytes.len() - synced + 1));
                bytes.extend(noise);
                fs::write(data(killed.path()), bytes).expect("writes");
                rig.close();
                dir = killed;
                rig = Rig::open(dir.path());
                assert_eq!(rig.recovered.epoch, epoch);
                let next = if lane == Lane::Alarm { rig.recovered.next.a } else { rig.recovered.next.t };
                if next != first {
                    assert_eq!(next, first + n, "all of them are there or none");
                    model[place(lane)].records.extend(records);
                }
                for lane in Lane::ALL {
                    model[place(lane)].killed(&rig.waiting(lane).await);
                }
                check_states(&rig, &alarms);
            }
            Step::Settle(lane, first, count) => {
                let model = &mut model[place(lane)];
                let first = first.index(model.records.len() + 1) as u64 + 1;
                rig.store.settle(lane, vec![(first, first + count - 1)]).await.expect("settles");
                model.settle(first, first + count);
            }
            Step::Rotate(lane) => rig.store.rotate(lane).await.expect("rotates"),
            Step::Compact(lane, at) => {
                let generations = rig.store.generations(lane).await.expect("answers");
                let number = generations[at.index(generations.len())].number;
                rig.store.compact(lane, number).await.expect("compacts");
            }
            Step::Evict(lane) => {
                let oldest = rig.store.generations(lane).await.expect("answers").swap_remove(0);
                rig.store.settle(lane, vec![(oldest.first, oldest.end.max(1) - 1)]).await.expect("settles");
                model[place(lane)].settle(oldest.first, oldest.end);
                let left = rig.store.generations(lane).await.expect("answers");
                assert!(!oldest.sealed || left.iter().all(|generation| generation.number != oldest.number));
            }
        }
        for lane in Lane::ALL {
            let found = rig.waiting(lane).await.into_iter().map(|s| (s.position, s.record)).collect::<Vec<_>>();
            let model = &model[place(lane)];
            assert_eq!(found, model.waiting());
            let head = rig.store.head(lane).borrow().clone();
            assert_eq!(head.status, model.status(&epoch));
            assert_eq!((head.records, head.next_position), (found.len() as u64, model.records.len() as u64 + 1));
            assert_eq!((head.missing, rig.store.lost(lane).await), (0, Ok(Vec::new())));
            assert_eq!(head.oldest, found.first().map(|(_, r)| (r.boot.clone(), r.recorded)));
        }
    }
    assert_eq!(rig.store.alarms().await.expect("reads"), alarms.into_values().collect::<Vec<_>>());
    rig.close();
}

/// Cases at once: they wait for groups to be gathered more than they work.
const AT_ONCE: u32 = 8;

/// `GARDU_CASES` asks for more than 300.
#[test]
fn it_is_what_a_small_model_says_through_any_steps() {
    let cases: u32 = std::env::var("GARDU_CASES").map_or(300, |cases| cases.parse().expect("a number"));
    let check = move || {
        let config =
            ProptestConfig { cases: cases.div_ceil(AT_ONCE), source_file: Some(file!()), ..ProptestConfig::default() };
        let any_steps = prop::collection::vec(step(), 1..20);
        TestRunner::new(config).run(&any_steps, |steps| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            runtime.block_on(check_steps(steps));
            Ok(())
        })
    };
    let threads: Vec<_> = (0..AT_ONCE).map(|_| std::thread::spawn(check)).collect();
    for thread in threads {
        thread.join().expect("no panic outside of a case").unwrap_or_else(|failure| panic!("{failure}"));
    }
}
