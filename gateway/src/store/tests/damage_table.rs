//! Damage at rest, file by file: whatever became of one of them, the store opens, invents nothing, and what waited is there
//! or told to be lost. With `GARDU_CUT_EVERY` each file is cut every so many bytes (where only zeros follow, at each block)
//! and each block zeroed; `GARDU_SEED` repeats the places of an earlier run.

use std::{
    collections::{BTreeMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

use super::{mark::RESERVED_AT_ONCE, *};
use crate::clock::Clock;

/// What a start may take, whatever is damaged.
const OPEN_MAX_MS: u64 = 5_000;
const BLOCK: usize = 4096;
/// The folders of the open generations.
const OPEN: [&str; 2] = ["alarm-5", "telemetry-5"];
/// Trials at once: they wait for groups to be gathered more than they work.
const AT_ONCE: usize = 6;
const ALARMS: [&str; 3] = ["panel/door/door-open", "panel/temp/hot", "panel/rain/heavy"];

/// What becomes of a file or a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    /// So many bits are flipped.
    Flipped(usize),
    /// The block that begins there is zeroed.
    Zeroed(usize),
    /// It ends there.
    Cut(usize),
    Gone,
    /// A folder lies in the place of a file, a file in that of a folder.
    Replaced,
    /// It changes places with this folder.
    Swapped(PathBuf),
}

impl Damage {
    fn kind(&self) -> &'static str {
        match self {
            Self::Flipped(1) => "a bit flipped",
            Self::Flipped(_) => "bits flipped",
            Self::Zeroed(_) => "4 KiB zeroed",
            Self::Cut(_) => "cut short",
            Self::Gone => "gone",
            Self::Replaced => "file and folder exchanged",
            Self::Swapped(_) => "swapped",
        }
    }

    fn strike(&self, root: &Path, target: &Path, random: &mut fastrand::Rng) {
        let path = root.join(target);
        let change = |change: &mut dyn FnMut(&mut Vec<u8>)| {
            let mut bytes = fs::read(&path).expect("reads");
            change(&mut bytes);
            fs::write(&path, bytes).expect("writes");
        };
        let remove =
            || if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.expect("removes");
        match self {
            Self::Flipped(count) => change(&mut |bytes| {
                for _ in 0..*count {
                    let at = random.usize(0..bytes.len());
                    bytes[at] ^= 1 << random.u8(0..8);
                }
            }),
            Self::Zeroed(from) => change(&mut |bytes| {
                let end = (from + BLOCK).min(bytes.len());
                bytes[*from..end].fill(0);
            }),
            Self::Cut(len) => change(&mut |bytes| bytes.truncate(*len)),
            Self::Gone => remove(),
            Self::Replaced => {
                let was_folder = path.is_dir();
                remove();
                if was_folder { fs::write(&path, "a file") } else { fs::create_dir(&path) }.expect("replaces");
            }
            Self::Swapped(other) => {
                let (other, between) = (root.join(other), root.join("between"));
                for (from, to) in [(&path, &between), (&other, &path), (&between, &other)] {
                    fs::rename(from, to).expect("renames");
                }
            }
        }
    }
}

/// How the store was left before it was damaged.
#[derive(Debug, Clone, Copy)]
enum Left {
    Closed,
    Killed,
    /// Killed, and opened in another boot: the mark may be older than the rest.
    PowerCut,
}

impl Left {
    const ALL: [Self; 3] = [Self::Closed, Self::Killed, Self::PowerCut];
}

type Number = (Epoch, u64);

/// A store and everything that was ever put into it.
struct Written {
    closed: TempDir,
    killed: TempDir,
    epoch: Epoch,
    next: Next,
    records: [BTreeMap<Number, Record>; 2],
    confirmed: [BTreeSet<Number>; 2],
    /// Every state each alarm had, the last one last.
    states: BTreeMap<AlarmId, Vec<AlarmState>>,
}

impl Written {
    async fn new() -> Self {
        let (closed, killed) = (folder(), folder());
        let mut rig = Rig::open_on(&of(closed.path(), Left::Closed), &sync_file());
        let mut written = Self {
            epoch: rig.recovered.epoch.clone(),
            closed,
            killed,
            next: Next { a: 1, t: 1 },
            records: Default::default(),
            confirmed: Default::default(),
            states: BTreeMap::new(),
        };
        for generation in 0..5 {
            if generation > 0 {
                for lane in Lane::ALL {
                    rig.store.rotate(lane).await.expect("rotates");
                }
            }
            if generation == 2 {
                // The generations before keep records of the old epoch.
                written.epoch = epoch('z');
                written.next = Next { a: 1, t: 1 };
            }
            for _ in 0..3 {
                written.append(&rig, 9).await;
            }
            match generation {
                0 => written.confirm(&rig, &[1, 2, 3, 9, 20]).await,
                3 => written.confirm(&rig, &(28..=54).chain([60, 61]).collect::<Vec<_>>()).await,
                _ => {}
            }
        }
        // A snapshot is written when sled opens a database.
        rig.close();
        rig = Rig::open_on(&of(written.closed.path(), Left::Closed), &sync_file());
        written.append(&rig, 9).await;
        let generations = rig.store.generations(Lane::Alarm).await.expect("answers");
        let numbers: Vec<u64> = generations.iter().map(|generation| generation.number).collect();
        assert_eq!(numbers, [1, 2, 3, 5], "the drained one is gone");
        copy(written.closed.path(), written.killed.path());
        rig.close();
        written
    }

    async fn append(&mut self, rig: &Rig, count: u64) {
        let Next { a, t } = self.next;
        let alarm = ALARMS[usize::try_from(a).expect("small") % ALARMS.len()];
        let records: Vec<_> = (a..a + count).map(|n| raised(&self.epoch, n, alarm)).collect();
        let telemetry: Vec<_> = (t..t + count).map(|n| batch(&self.epoch, n, "31.5")).collect();
        let occurrence = 1 + self.states.values().map(|states| states.len() as u64).sum::<u64>();
        // One is set once and never again: only the table that each generation begins with has it.
        let mut alarms = vec![state("panel/door/door-open", occurrence)];
        alarms.extend(self.states.is_empty().then(|| state("panel/temp/hot", 1)));
        for state in &alarms {
            self.states.entry(state.last.alarm.clone()).or_default().push(state.clone());
        }
        for (lane, new) in [&records, &telemetry].into_iter().enumerate() {
            self.records[lane].extend(new.iter().map(|r| ((r.epoch.clone(), r.sequence), r.clone())));
        }
        rig.store.commit(Commit { records, alarms, ..Commit::default() }).await.expect("commits");
        rig.store.commit_telemetry(telemetry).await.expect("queued").await.expect("durable");
        self.next = Next { a: a + count, t: t + count };
    }

    /// Settles these numbers of the present epoch in both lanes.
    async fn confirm(&mut self, rig: &Rig, sequences: &[u64]) {
        for (place, lane) in Lane::ALL.into_iter().enumerate() {
            let waiting = rig.waiting(lane).await;
            let of_epoch = waiting.iter().filter(|s| s.record.epoch == self.epoch);
            let chosen: Vec<_> = of_epoch.filter(|s| sequences.contains(&s.record.sequence)).collect();
            self.confirmed[place].extend(chosen.iter().map(|s| (self.epoch.clone(), s.record.sequence)));
            let positions = chosen.iter().map(|s| (s.position, s.position)).collect();
            rig.store.settle(lane, positions).await.expect("settles");
        }
    }

    fn root(&self, left: Left) -> &Path {
        match left {
            Left::Closed => self.closed.path(),
            Left::Killed | Left::PowerCut => self.killed.path(),
        }
    }

    /// Holds what is there now against what was written; what was lost of what waited, what of it was told, and states
    /// that are not the last.
    async fn judge(&self, rig: &Rig, may_lose_states: bool) -> Result<Trial, String> {
        let ensure = |holds: bool, what: &dyn Fn() -> String| if holds { Ok(()) } else { Err(what()) };
        let Recovered { epoch, next, started, .. } = &rig.recovered;
        if *epoch == self.epoch {
            ensure(*next == self.next, &|| format!("numbers are given again: {next:?} instead of {:?}", self.next))?;
        } else {
            let is_new = self.records.iter().all(|records| records.keys().all(|(known, _)| known != epoch));
            ensure(is_new && started.is_some(), &|| "an old epoch goes on, or a new one is not told".into())?;
        }
        let mut trial = Trial { opened: 1, trials: 1, ..Trial::default() };
        for (place, lane) in Lane::ALL.into_iter().enumerate() {
            let records = &self.records[place];
            let mut found = HashSet::new();
            for stored in rig.waiting(lane).await {
                let number = (stored.record.epoch.clone(), stored.record.sequence);
                ensure(records.get(&number) == Some(&stored.record), &|| format!("{number:?} was never written so"))?;
                ensure(found.insert(number.clone()), &|| format!("{number:?} is there twice"))?;
            }
            let (mut told, mut beyond) = (HashSet::new(), 0);
            for lost in rig.store.lost(lane).await.map_err(|e| e.to_string())? {
                for sequence in lost.ranges.iter().flat_map(|(first, last)| *first..=*last) {
                    let number = (lost.epoch.clone(), sequence);
                    ensure(!found.contains(&number), &|| format!("{number:?} is lost and there"))?;
                    ensure(told.insert(number.clone()), &|| format!("{number:?} is told twice"))?;
                    if !records.contains_key(&number) {
                        ensure(!lost.certain, &|| format!("{number:?} was never given and is certainly lost"))?;
                        beyond += 1;
                    } else if self.confirmed[place].contains(&number) {
                        trial.confirmed += 1;
                    }
                }
            }
            ensure(beyond <= RESERVED_AT_ONCE, &|| format!("{beyond} numbers are told that were never given"))?;
            let waited = records.keys().filter(|number| !self.confirmed[place].contains(number));
            for number in waited.filter(|number| !found.contains(number)) {
                trial.lost += 1;
                let is_told = told.contains(number);
                trial.declared += usize::from(is_told);
                trial.undeclared += usize::from(!is_told);
            }
        }
        for alarm in &rig.recovered.alarms {
            let known = self.states.get(&alarm.last.alarm).is_some_and(|states| states.contains(alarm));
            ensure(known, &|| format!("{} never had such a state", alarm.last.alarm))?;
        }
        let is_last = |states: &Vec<AlarmState>| rig.recovered.alarms.contains(states.last().expect("it had one"));
        trial.states = self.states.values().filter(|states| !is_last(states)).count();
        ensure(trial.states == 0 || may_lose_states, &|| format!("{} states are not the last", trial.states))?;
        Ok(trial)
    }
}

/// How a store is opened; its generations never grow full, so that only the test begins new ones.
fn of(path: &Path, left: Left) -> Options {
    let boot = BootId::new(if matches!(left, Left::PowerCut) { "boot-2" } else { "boot-1" });
    Options { boot, generation_size: 1024 * 1024, ..options(path) }
}

/// A row of the table.
#[derive(Debug, Default)]
struct Trial {
    trials: usize,
    opened: usize,
    lost: usize,
    declared: usize,
    undeclared: usize,
    /// Numbers that were confirmed, and are told to be lost.
    confirmed: usize,
    /// States that are older than the last, or gone.
    states: usize,
    slowest_ms: u64,
}

impl Trial {
    fn add(&mut self, other: &Self) {
        self.trials += other.trials;
        self.opened += other.opened;
        self.lost += other.lost;
        self.declared += other.declared;
        self.undeclared += other.undeclared;
        self.confirmed += other.confirmed;
        self.states += other.states;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}

/// One damage of one copy of the store.
async fn strike(written: &Written, left: Left, target: &Path, damage: &Damage, seed: u64) -> Result<Trial, String> {
    let dir = folder();
    copy(written.root(left), dir.path());
    damage.strike(dir.path(), target, &mut fastrand::Rng::with_seed(seed));
    let (clock, options) = (Clock::system(), of(dir.path(), left));
    let began = clock.now();
    let opened = open_on(&options, &Metrics::new(), &sync_file());
    let took = clock.now().since(began);
    let (store, recovered, committers) = opened.map_err(|error| format!("not opened: {error}"))?;
    let threads = committers.into_iter().map(|(_, work)| std::thread::spawn(work)).collect();
    let rig = Rig { store, recovered, threads, metrics: Metrics::new() };
    let touches_states =
        target.starts_with(OPEN[0]) || matches!(damage, Damage::Swapped(other) if other.starts_with(OPEN[0]));
    let mut trial = written.judge(&rig, touches_states).await?;
    trial.slowest_ms = u64::try_from(took.as_millis()).expect("short");
    if trial.slowest_ms > OPEN_MAX_MS {
        return Err(format!("opened only after {took:?}"));
    }
    // It goes on, and nothing of it changes with the next start.
    let Next { a, t } = rig.recovered.next;
    rig.append(a..=a + 2).await;
    rig.append_telemetry(t..=t + 2).await;
    let before = stands(&rig).await;
    let epoch = rig.recovered.epoch.clone();
    rig.close();
    let rig = Rig::open_on(&options, &sync_file());
    let after = stands(&rig).await;
    let same_epoch = rig.recovered.epoch == epoch;
    rig.close();
    if before != after || !same_epoch {
        return Err(format!("the next start finds {after:?} instead of {before:?}"));
    }
    Ok(trial)
}

async fn stands(rig: &Rig) -> Vec<(Head, Vec<Lost>)> {
    let mut stands = Vec::new();
    for lane in Lane::ALL {
        rig.waiting(lane).await;
        let lost = rig.store.lost(lane).await.expect("answers");
        stands.push((rig.store.head(lane).borrow().clone(), lost));
    }
    stands
}

/// Files and folders of generations below a folder, as seen from it.
fn targets(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(root).expect("folder").map(|entry| entry.expect("entry").path()) {
        let name = |path: &Path| path.strip_prefix(root).expect("below it").to_owned();
        if entry.is_dir() {
            folders.push(name(&entry));
            let inner = fs::read_dir(&entry).expect("folder").map(|entry| entry.expect("entry").path());
            files.extend(inner.filter(|path| path.is_file()).map(|path| name(&path)));
        } else {
            files.push(name(&entry));
        }
    }
    files.sort();
    folders.sort();
    (files, folders)
}

/// All that is to be tried.
fn plan(root: &Path, cut_every: Option<usize>, random: &mut fastrand::Rng) -> Vec<(PathBuf, Damage)> {
    let (files, folders) = targets(root);
    let mut plan = Vec::new();
    for file in files {
        let contents = fs::read(root.join(&file)).expect("reads");
        let (len, written) = (contents.len(), contents.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        let is_data = file.ends_with("db");
        // Beside the data nothing of a sealed generation is read: of that few trials are enough.
        let is_sealed = folders.iter().any(|folder| file.starts_with(folder) && !is_open(folder));
        let is_read = cut_every.is_some() || is_data || !is_sealed;
        let mut damages = if is_read { vec![Damage::Gone, Damage::Replaced] } else { Vec::new() };
        if len > 0 {
            let mut somewhere = || random.usize(0..len);
            let sample =
                [Damage::Flipped(1), Damage::Flipped(20), Damage::Cut(somewhere()), Damage::Zeroed(somewhere())];
            // What is kept for a full disk is read by nobody.
            if let Some(bytes) = cut_every.filter(|_| !file.ends_with("ballast") && !file.ends_with("reserve")) {
                damages.extend((0..40).flat_map(|_| [Damage::Flipped(1), Damage::Flipped(20)]));
                damages.extend((0..written).step_by(bytes).map(Damage::Cut));
                damages.extend((written..len).step_by(BLOCK).map(Damage::Cut));
                damages.extend((0..len).step_by(BLOCK).map(Damage::Zeroed));
            } else if is_data {
                damages.extend(sample);
            } else if is_read {
                damages.extend([sample[random.usize(0..sample.len())].clone()]);
            }
        }
        plan.extend(damages.into_iter().map(|damage| (file.clone(), damage)));
    }
    for (at, folder) in folders.iter().enumerate() {
        let chain = |folder: &Path| folder.display().to_string().starts_with("alarm");
        let others = folders[at + 1..].iter().filter(|other| chain(other) == chain(folder));
        let swapped = others.cloned().map(Damage::Swapped);
        plan.extend([Damage::Gone, Damage::Replaced].into_iter().chain(swapped).map(|d| (folder.clone(), d)));
    }
    plan
}

/// Whether it is or lies in an open generation.
fn is_open(target: &Path) -> bool {
    OPEN.iter().any(|folder| target.starts_with(folder))
}

/// What it is in the table.
fn class(written: &Written, target: &Path) -> &'static str {
    let is_open = is_open(target);
    match target.file_name().and_then(|name| name.to_str()).expect("a name") {
        "db" if is_open => "open db",
        "db" => "sealed db",
        name if name.ends_with(".mark") => "mark",
        _ if target.parent() == Some(Path::new("")) && written.killed.path().join(target).is_dir() => {
            if is_open {
                "open folder"
            } else {
                "sealed folder"
            }
        }
        _ => "other file",
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "the table is for people")]
fn whatever_is_damaged_it_opens_and_what_is_lost_is_told() {
    let number = |name| std::env::var(name).ok().map(|number| number.parse::<u64>().expect("a number"));
    let seed = number("GARDU_SEED").unwrap_or_else(|| fastrand::u64(..));
    let cut_every = number("GARDU_CUT_EVERY").map(|bytes| usize::try_from(bytes).expect("small"));
    let runtime = || tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let written = runtime().block_on(Written::new());
    let plan = plan(written.killed.path(), cut_every, &mut fastrand::Rng::with_seed(seed));
    println!("seed {seed}: {} trials", plan.len());
    let (next, results) = (AtomicUsize::new(0), Mutex::new((BTreeMap::<_, Trial>::new(), Vec::new())));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((target, damage)) = plan.get(number) else { break };
            let left = Left::ALL[number % Left::ALL.len()];
            if !written.root(left).join(target).exists() {
                continue;
            }
            let places = seed.wrapping_add(number as u64);
            let strike = || runtime().block_on(strike(&written, left, target, damage, places));
            let outcome = catch_unwind(AssertUnwindSafe(strike)).unwrap_or_else(|_| Err("a panic".into()));
            let mut results = results.lock().expect("no panic under it");
            let (table, failures) = &mut *results;
            let mut fail = |why: String| failures.push(format!("{left:?} {} {damage:?}: {why}", target.display()));
            let trial = outcome.unwrap_or_else(|why| {
                fail(why);
                Trial { trials: 1, ..Trial::default() }
            });
            if trial.undeclared > 0 || trial.confirmed > 0 {
                let Trial { undeclared, confirmed, .. } = trial;
                fail(format!("{undeclared} are lost and not told, {confirmed} are told that were confirmed"));
            }
            table.entry((class(&written, target), damage.kind())).or_default().add(&trial);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
    let (table, failures) = results.into_inner().expect("no panic under it");
    println!(
        "damage | trials | opened | records lost | declared | undeclared | declared though confirmed | states not the \
         last | slowest open"
    );
    for ((class, kind), row) in &table {
        let Trial { trials, opened, lost, declared, undeclared, confirmed, states, slowest_ms } = row;
        println!(
            "{class}: {kind} | {trials} | {opened} | {lost} | {declared} | {undeclared} | {confirmed} | {states} | \
             {slowest_ms} ms"
        );
    }
    assert!(failures.is_empty(), "{} of {}, seed {seed}:\n{}", failures.len(), plan.len(), failures.join("\n"));
    assert!(table.values().map(|row| row.lost).sum::<usize>() > 0, "nothing was ever lost: nothing was damaged");
}

#[tokio::test]
async fn a_loss_that_is_not_told_is_noticed_by_this_test() {
    let written = Written::new().await;
    let root = written.closed.path();
    fs::remove_dir_all(root.join("alarm-2")).expect("removes");
    let rig = Rig::open_on(&of(root, Left::Closed), &sync_file());
    let told = written.judge(&rig, false).await.expect("sound");
    assert_eq!((told.lost, told.declared, told.undeclared), (27, 27, 0));
    for lost in rig.store.lost(Lane::Alarm).await.expect("answers") {
        rig.store.settle(Lane::Alarm, lost.positions).await.expect("settles");
    }
    let silent = written.judge(&rig, false).await.expect("sound");
    assert_eq!((silent.lost, silent.declared, silent.undeclared), (27, 0, 27));
    rig.close();
}
