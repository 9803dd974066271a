//! The store against a small model of it, through any steps.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Append(Lane, u64),
    Confirm(Lane, Vec<prop::sample::Index>),
    Epoch,
    State(u8, u64),
    Forget(u8),
    Reopen,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = prop_oneof![Just(Lane::Alarm), Just(Lane::Telemetry)];
    prop_oneof![
        4 => (lane.clone(), 1_u64..8).prop_map(|(lane, n)| Step::Append(lane, n)),
        4 => (lane, prop::collection::vec(any::<prop::sample::Index>(), 1..8)).prop_map(|(lane, i)| Step::Confirm(lane, i)),
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

async fn check_steps(steps: Vec<Step>) {
    let mut dir = folder();
    let mut rig = Rig::open(dir.path());
    let mut model = [LaneModel::default(), LaneModel::default()];
    let mut alarms = std::collections::BTreeMap::new();
    let mut epoch = rig.recovered.epoch.clone();
    let place = |lane: Lane| Lane::ALL.iter().position(|l| *l == lane).expect("a lane");
    for step in steps {
        match step {
            Step::Append(lane, n) => {
                let first = model[place(lane)].status(&epoch).next;
                let make = |n| if lane == Lane::Alarm { raised(&epoch, n, "a/b/c") } else { batch(&epoch, n, "1.5") };
                let records: Vec<_> = (first..first + n).map(make).collect();
                model[place(lane)].append(&records);
                if lane == Lane::Alarm {
                    rig.store.commit(Commit { records, ..Commit::default() }).await.expect("commits");
                } else {
                    rig.store.commit_telemetry(records).await.expect("queued").await.expect("durable");
                }
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
                    let found: BTreeSet<_> = rig.waiting(lane).await.into_iter().map(|s| s.position).collect();
                    let model = &mut model[place(lane)];
                    let gone: BTreeSet<_> = (1..=model.records.len() as u64).filter(|p| !found.contains(p)).collect();
                    assert!(model.saved.is_subset(&gone) && gone.is_subset(&model.confirmed), "{gone:?} {model:?}");
                    model.saved = gone.clone();
                    model.confirmed = gone;
                }
                let mut found = rig.recovered.alarms.clone();
                found.sort_by_key(|state| state.last.alarm.clone());
                assert_eq!(found, alarms.values().cloned().collect::<Vec<_>>());
            }
        }
        for lane in Lane::ALL {
            let found = rig.waiting(lane).await.into_iter().map(|s| (s.position, s.record)).collect::<Vec<_>>();
            let model = &model[place(lane)];
            assert_eq!(found, model.waiting());
            let head = rig.store.head(lane).borrow().clone();
            assert_eq!(head.status, model.status(&epoch));
            assert_eq!((head.records, head.next_position), (found.len() as u64, model.records.len() as u64 + 1));
            assert_eq!(head.oldest, found.first().map(|(_, r)| (r.boot.clone(), r.recorded)));
        }
    }
    assert_eq!(rig.store.alarms().await.expect("reads"), alarms.into_values().collect::<Vec<_>>());
    rig.close();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn it_is_what_a_small_model_says_through_any_steps(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(check_steps(steps));
    }
}
