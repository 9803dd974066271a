//! What gives way when the outbox is full: pure. From sizes as measured and the generations there are, the next act.
//!
//! Terms: the **quota** is what everything below the outbox's folder may take, less where the disk itself is nearly full;
//! a **share** is the part of it that something may fill. Eviction begins above a share and stops below nine tenths of it.
//! Sealed alarm generations are compacted before anything goes: much of one is states that have changed since. Telemetry
//! goes first, its oldest generation whole; then alarm records, those of the lowest severity first and of them the oldest
//! generation's; stream events never.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    alarm::Severity,
    clock::{BootId, Boots, Dated, Now},
    record::{Body, LossReason, Record},
    store::Generation,
};

/// Left free on the file system for others, and for the store's own next sync.
const DISK_RESERVE: u64 = 8 << 20;
/// An open generation of telemetry so large gives way whenever there is no room, in bytes: a full one would be more than
/// what is left free for others, and alarms would meet a full disk with telemetry beside them.
const SEALED_AGAIN_AT: u64 = 2 << 20;
/// For stream events alone: what is lost can still be declared when nothing else fits. A declaration of one run takes
/// half a kilobyte, so that these are thousands.
const STREAM_RESERVE: u64 = 2 << 20;

/// Sizes on the disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// The alarm chain.
    pub alarm: u64,
    /// The telemetry chain.
    pub telemetry: u64,
    /// What else lies there: marks, the ballast, what was set aside.
    pub other: u64,
    /// What the file system still has for us.
    pub free: u64,
}

impl Measured {
    /// Everything below the outbox's folder.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.alarm + self.telemetry + self.other
    }
}

/// How much may be filled, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Everything, as configured or as the disk allows.
    pub quota: u64,
    /// The telemetry chain: a flood of readings leaves a quarter to alarms.
    pub telemetry: u64,
    /// Everything before alarm records give way: the rest is for stream events, and for the generation that a compaction,
    /// a summary or a rotation writes before an old one goes (a generation is at most a sixteenth).
    pub all: u64,
    /// The same of the configured size: a disk that others fill takes telemetry, and no alarm (DESIGN.md §2.1).
    pub alarms: u64,
}

impl Shares {
    /// The shares of a configured size on a disk like this.
    #[must_use]
    pub fn of(max_size: u64, measured: &Measured) -> Self {
        let quota = max_size.min((measured.used() + measured.free).saturating_sub(DISK_RESERVE));
        let all = |quota: u64| quota - quota / 16 - STREAM_RESERVE.min(quota / 16);
        Self { quota, telemetry: quota / 4 * 3, all: all(quota), alarms: all(max_size) }
    }

    /// How full the fuller of the two shares is, in percent.
    #[must_use]
    pub fn filled_percent(&self, measured: &Measured) -> u64 {
        let percent = |used: u64, share: u64| used.saturating_mul(100) / share.max(1);
        percent(measured.used(), self.all).max(percent(measured.telemetry, self.telemetry))
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Nothing, until something is measured again.
    Nothing,
    /// Only the open generation of telemetry is left to take from: seal it.
    RotateTelemetry,
    /// The same of alarms.
    RotateAlarms,
    /// Rewrite a sealed alarm generation with only what waits in it: room that costs nobody a record.
    CompactAlarms(Generation),
    /// Give up a sealed telemetry generation whole, or thin it.
    Telemetry(Generation, LossReason),
    /// Give up the records of one severity in a sealed alarm generation, and compact it.
    Alarms(Generation, Severity),
}

/// What was decided before.
#[derive(Debug, Default)]
pub struct Quota {
    telemetry: Pressure,
    all: Pressure,
    /// Alarm generations that were compacted as far as that pays.
    compacted: BTreeSet<u64>,
    /// Telemetry generations that were given up and still lie there: nothing more can be done about them.
    taken: BTreeSet<u64>,
    /// The lowest severity that alarm generations may still have; none if nothing of them can give way.
    lowest: BTreeMap<u64, Option<Severity>>,
}

/// Whether one share is too full.
#[derive(Debug, Default)]
struct Pressure {
    evicting: bool,
    /// The open generations sealed since it began. Once each unless they have grown to [`SEALED_AGAIN_AT`]: what arrives
    /// meanwhile must not seal one after the other.
    rotated: [bool; 2],
}

impl Pressure {
    fn measure(&mut self, used: u64, share: u64) {
        if used > share {
            self.evicting = true;
        } else if used <= share / 10 * 9 {
            *self = Self::default();
        }
    }
}

impl Quota {
    /// The next act. Generations are the oldest first, the last is the open one; `aged` is the number of the oldest
    /// telemetry generation if even its youngest record is too old.
    pub fn next(
        &mut self,
        measured: &Measured,
        shares: &Shares,
        alarm: &[Generation],
        telemetry: &[Generation],
        aged: Option<u64>,
    ) -> Act {
        self.telemetry.measure(measured.telemetry, shares.telemetry);
        self.all.measure(measured.used(), shares.all);
        self.taken.retain(|number| telemetry.iter().any(|generation| generation.number == *number));
        self.compacted.retain(|number| alarm.iter().any(|generation| generation.number == *number));
        self.lowest.retain(|number, _| alarm.iter().any(|generation| generation.number == *number));

        let oldest = telemetry.iter().find(|generation| !self.taken.contains(&generation.number));
        if let Some(old) = oldest.filter(|oldest| Some(oldest.number) == aged) {
            return if old.sealed { Act::Telemetry(*old, LossReason::Age) } else { Act::RotateTelemetry };
        }
        let loose = |generation: &&Generation| generation.sealed && !self.compacted.contains(&generation.number);
        if self.all.evicting
            && let Some(loose) = alarm.iter().find(loose)
        {
            return Act::CompactAlarms(*loose);
        }
        for pressure in [&mut self.telemetry, &mut self.all].into_iter().filter(|pressure| pressure.evicting) {
            match oldest {
                Some(oldest) if oldest.sealed => return Act::Telemetry(*oldest, LossReason::Quota),
                Some(open) if open.waiting > 0 => {
                    let first = !std::mem::replace(&mut pressure.rotated[1], true);
                    if first || open.disk_bytes >= SEALED_AGAIN_AT {
                        return Act::RotateTelemetry;
                    }
                }
                Some(_) | None => {}
            }
        }
        let over_quota = measured.used() > shares.alarms / 10 * 9;
        if self.all.evicting && over_quota { self.alarms(alarm) } else { Act::Nothing }
    }

    fn alarms(&mut self, generations: &[Generation]) -> Act {
        let lowest =
            |generation: &Generation| self.lowest.get(&generation.number).copied().unwrap_or(Some(Severity::Info));
        let sealed = generations.iter().filter(|generation| generation.sealed);
        let candidates = sealed.filter_map(|generation| Some((lowest(generation)?, generation)));
        if let Some((severity, generation)) =
            candidates.min_by_key(|(severity, generation)| (*severity, generation.number))
        {
            return Act::Alarms(*generation, severity);
        }
        let open = generations.last().is_some_and(|open| open.waiting > 0);
        if open && !std::mem::replace(&mut self.all.rotated[0], true) { Act::RotateAlarms } else { Act::Nothing }
    }

    /// An alarm generation was compacted, or need not be.
    pub fn alarms_compacted(&mut self, number: u64) {
        self.compacted.insert(number);
    }

    /// A telemetry generation was given up.
    pub fn telemetry_taken(&mut self, number: u64) {
        self.taken.insert(number);
    }

    /// Records of an alarm generation were given up; `lowest` is the lowest severity it still has.
    pub fn alarms_taken(&mut self, number: u64, lowest: Option<Severity>) {
        self.lowest.insert(number, lowest);
    }

    /// Whether something is given up at present because a share is too full.
    #[must_use]
    pub const fn evicting(&self) -> bool {
        self.telemetry.evicting || self.all.evicting
    }
}

/// Whether a record is older than that: by the monotonic clock if it is of this boot, else by a wall clock that both are
/// known by (DESIGN.md §8). What nobody can tell is not old.
#[must_use]
pub fn is_older(max_age: Duration, recorded: (&BootId, Now), now: (&BootId, Now), boots: &Boots) -> bool {
    if recorded.0 == now.0 {
        return now.1.since(recorded.1) > max_age;
    }
    match (boots.date(recorded.0, recorded.1), now.1.trusted) {
        (Dated::Known { wall_ms }, true) => {
            let age_ms = now.1.wall_ms.saturating_sub(wall_ms);
            u64::try_from(age_ms).is_ok_and(|age_ms| Duration::from_millis(age_ms) > max_age)
        }
        (Dated::Known { .. } | Dated::Between { .. }, _) => false,
    }
}

/// As what a record gives way; none for what never does.
#[must_use]
pub fn severity(record: &Record) -> Option<Severity> {
    match &record.body {
        Body::Alarm(transition) => Some(transition.severity),
        // Published on event/info.
        Body::Command(_) | Body::Telemetry(_) => Some(Severity::Info),
        Body::Stream(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A generation as the reference model has it: records by severity from info to critical, and stream events.
    #[derive(Debug, Clone)]
    struct Model {
        number: u64,
        by_severity: [u64; 5],
        stream: u64,
        sealed: bool,
    }

    /// What a record takes in the model, and a generation without any.
    const RECORD: u64 = 8 << 10;
    const EMPTY: u64 = 16 << 10;

    impl Model {
        fn waiting(&self) -> u64 {
            self.by_severity.iter().sum::<u64>() + self.stream
        }

        fn seen(&self) -> Generation {
            let (number, waiting) = (self.number, self.waiting());
            let disk_bytes = EMPTY + RECORD * waiting;
            Generation {
                number,
                first: number * 1_000,
                end: number * 1_000 + waiting,
                waiting,
                disk_bytes,
                sealed: self.sealed,
            }
        }
    }

    fn rotate(lane: &mut Vec<Model>) {
        let open = lane.last_mut().expect("an open generation");
        open.sealed = true;
        let number = open.number + 1;
        lane.push(Model { number, by_severity: [0; 5], stream: 0, sealed: false });
    }

    /// A chain of at most ten generations of up to a MiB.
    fn chain(stream_max: u64) -> impl Strategy<Value = Vec<Model>> {
        let generation = (prop::array::uniform5(0..24_u64), 0..=stream_max);
        prop::collection::vec(generation, 1..10).prop_map(|generations| {
            let count = generations.len();
            let model =
                |(i, (by_severity, stream))| Model { number: i as u64, by_severity, stream, sealed: i + 1 < count };
            generations.into_iter().enumerate().map(model).collect()
        })
    }

    fn measure(alarm: &[Model], telemetry: &[Model], other: u64, free: u64) -> Measured {
        let bytes = |lane: &[Model]| lane.iter().map(|generation| generation.seen().disk_bytes).sum();
        Measured { alarm: bytes(alarm), telemetry: bytes(telemetry), other, free }
    }

    proptest! {
        #[test]
        fn it_ends_below_the_quota_telemetry_first_then_the_lowest_severity_and_stream_events_never(
            mut alarm in chain(2), mut telemetry in chain(0), other in 0..MIB, max_size in 3 * MIB..16 * MIB, free in 0..24 * MIB
        ) {
            let mut quota = Quota::default();
            let streams = |lane: &[Model]| lane.iter().map(|generation| generation.stream).sum::<u64>();
            let before = streams(&alarm);
            let total = |m: &Measured| m.used() + m.free;
            let disk = total(&measure(&alarm, &telemetry, other, free));
            let mut acts = 0;
            let (measured, shares) = loop {
                let mut measured = measure(&alarm, &telemetry, other, 0);
                measured.free = disk.saturating_sub(measured.used());
                let shares = Shares::of(max_size, &measured);
                let seen = |lane: &[Model]| lane.iter().map(Model::seen).collect::<Vec<_>>();
                let act = quota.next(&measured, &shares, &seen(&alarm), &seen(&telemetry), None);
                let pressed = measured.used() > shares.all / 10 * 9 || measured.telemetry > shares.telemetry / 10 * 9;
                prop_assert!(act == Act::Nothing || pressed, "{act:?} though there is room");
                match act {
                    Act::Nothing => break (measured, shares),
                    Act::RotateTelemetry => rotate(&mut telemetry),
                    Act::RotateAlarms => rotate(&mut alarm),
                    Act::CompactAlarms(generation) => {
                        prop_assert!(alarm.iter().any(|of| of.number == generation.number && of.sealed));
                        quota.alarms_compacted(generation.number);
                    }
                    Act::Telemetry(generation, reason) => {
                        prop_assert_eq!((generation.number, reason), (telemetry[0].number, LossReason::Quota));
                        prop_assert!(telemetry[0].sealed);
                        telemetry.remove(0);
                        quota.telemetry_taken(generation.number);
                    }
                    Act::Alarms(generation, severity) => {
                        prop_assert!(measured.used() > shares.alarms / 10 * 9, "the disk alone takes no alarm");
                        prop_assert_eq!(telemetry.iter().map(Model::waiting).sum::<u64>(), 0, "telemetry goes first");
                        let at = alarm.iter().position(|of| of.number == generation.number).expect("it is there");
                        prop_assert!(alarm[at].sealed);
                        let lower = severity as usize;
                        let sealed = || alarm.iter().filter(|generation| generation.sealed);
                        prop_assert!(sealed().all(|of| of.by_severity[..lower].iter().all(|count| *count == 0)));
                        prop_assert!(alarm[..at].iter().all(|of| of.by_severity[lower] == 0), "the oldest first");
                        alarm[at].by_severity[lower] = 0;
                        let left = Severity::ALL.into_iter().rev().find(|s| alarm[at].by_severity[*s as usize] > 0);
                        quota.alarms_taken(generation.number, left);
                        if alarm[at].waiting() == 0 {
                            alarm.remove(at);
                        }
                    }
                }
                acts += 1;
                prop_assert!(acts < 1_000, "it ends");
            };
            prop_assert_eq!(streams(&alarm), before);
            let given_up = |lane: &[Model]| lane.iter().all(|generation| generation.by_severity == [0; 5]);
            let all_gone = given_up(&alarm) && given_up(&telemetry);
            let kept = measured.used() <= shares.alarms && given_up(&telemetry);
            prop_assert!(measured.used() <= shares.all || all_gone || kept, "{measured:?} {shares:?}");
            prop_assert!(measured.telemetry <= shares.telemetry || given_up(&telemetry));
        }
    }

    /// A card that is smaller than the quota or that others fill, looked at every two seconds as the keeper does.
    fn small_card(card: u64, others_a_look: u64) {
        const LOOKS: u64 = 2_000;
        let model = |number| Model { number, by_severity: [0; 5], stream: 0, sealed: false };
        let (mut alarm, mut telemetry) = (vec![model(1)], vec![model(1)]);
        let (mut quota, mut others, mut given_up) = (Quota::default(), 0, 0);
        for look in 0..LOOKS {
            // What two seconds bring: a flood of readings, now and then an alarm, and somebody else's log.
            telemetry.last_mut().expect("open").by_severity[0] += 30;
            alarm.last_mut().expect("open").by_severity[3] += u64::from(look % 8 == 0);
            others += others_a_look;
            for lane in [&mut alarm, &mut telemetry] {
                if lane.last().expect("open").seen().disk_bytes >= crate::store::GENERATION_SIZE {
                    rotate(lane);
                }
            }
            loop {
                let seen = |lane: &[Model]| lane.iter().map(Model::seen).collect::<Vec<_>>();
                let mut measured = measure(&alarm, &telemetry, 0, 0);
                measured.free = card.saturating_sub(others + measured.used());
                let given_way = measured.telemetry < SEALED_AGAIN_AT + MIB;
                let full = format!("look {look}, others {} MiB: {measured:?}", others / MIB);
                assert!(measured.free >= 4 * MIB || given_way, "telemetry lies where alarms need room: {full}");
                let shares = Shares::of(256 * MIB, &measured);
                match quota.next(&measured, &shares, &seen(&alarm), &seen(&telemetry), None) {
                    Act::Nothing => break,
                    Act::RotateTelemetry => rotate(&mut telemetry),
                    Act::CompactAlarms(generation) => quota.alarms_compacted(generation.number),
                    Act::Telemetry(generation, _) => {
                        telemetry.retain(|of| of.number != generation.number);
                        quota.telemetry_taken(generation.number);
                        given_up += 1;
                    }
                    act @ (Act::RotateAlarms | Act::Alarms(..)) => panic!("{act:?}: {full}"),
                }
            }
        }
        assert!(given_up > 5, "it was never full");
    }

    #[test]
    fn on_a_card_smaller_than_the_quota_telemetry_gives_way_before_alarms_lack_room() {
        small_card(64 * MIB, 0);
    }

    #[test]
    fn on_a_card_that_others_fill_telemetry_gives_way_before_alarms_lack_room() {
        small_card(400 * MIB, 256 << 10);
    }

    fn generation(number: u64, sealed: bool) -> Generation {
        let (first, end) = (number * 100, number * 100 + 100);
        Generation { number, first, end, waiting: 100, disk_bytes: MIB, sealed }
    }

    fn used(telemetry: u64, alarm: u64) -> Measured {
        Measured { alarm: alarm * MIB, telemetry: telemetry * MIB, other: 0, free: 1 << 40 }
    }

    fn next(quota: &mut Quota, measured: &Measured, aged: Option<u64>) -> Act {
        let lane = [generation(1, true), generation(2, true), generation(3, false)];
        quota.next(measured, &Shares::of(160 * MIB, measured), &lane, &lane, aged)
    }

    #[test]
    fn shares_follow_the_configured_size_or_what_the_disk_has() {
        let roomy = Shares::of(160 * MIB, &used(10, 10));
        assert_eq!(roomy, Shares { quota: 160 * MIB, telemetry: 120 * MIB, all: 148 * MIB, alarms: 148 * MIB });
        let full = Shares::of(160 * MIB, &Measured { free: 4 * MIB, ..used(10, 10) });
        assert_eq!(full, Shares { quota: 16 * MIB, telemetry: 12 * MIB, all: 14 * MIB, alarms: 148 * MIB });
        assert_eq!(
            Shares::of(160 * MIB, &Measured::default()),
            Shares { quota: 0, telemetry: 0, all: 0, alarms: 148 * MIB }
        );
        assert_eq!(roomy.filled_percent(&used(60, 10)), 50);
        assert_eq!(roomy.filled_percent(&used(10, 138)), 100);
    }

    #[test]
    fn eviction_begins_above_a_share_and_stops_below_nine_tenths_of_it() {
        let mut quota = Quota::default();
        let oldest = Act::Telemetry(generation(1, true), LossReason::Quota);
        for (telemetry, evicts) in [(120, false), (121, true), (109, true), (108, false), (120, false)] {
            let expected = if evicts { oldest.clone() } else { Act::Nothing };
            assert_eq!(next(&mut quota, &used(telemetry, 0), None), expected, "{telemetry} MiB");
            assert_eq!(quota.evicting(), evicts);
        }
    }

    #[test]
    fn what_is_too_old_goes_though_there_is_room_and_without_alarms() {
        let mut quota = Quota::default();
        assert_eq!(next(&mut quota, &used(1, 1), Some(1)), Act::Telemetry(generation(1, true), LossReason::Age));
        assert!(!quota.evicting());
        let open = [generation(3, false)];
        let measured = used(1, 1);
        let act = quota.next(&measured, &Shares::of(160 * MIB, &measured), &open, &open, Some(3));
        assert_eq!(act, Act::RotateTelemetry);
    }

    #[test]
    fn a_generation_that_cannot_go_is_passed_over_and_an_open_one_is_sealed_once() {
        let mut quota = Quota::default();
        let full = used(1, 150);
        quota.telemetry_taken(1);
        for number in [1, 2] {
            assert_eq!(next(&mut quota, &full, None), Act::CompactAlarms(generation(number, true)));
            quota.alarms_compacted(number);
        }
        assert_eq!(next(&mut quota, &full, None), Act::Telemetry(generation(2, true), LossReason::Quota));
        quota.telemetry_taken(2);
        assert_eq!(next(&mut quota, &full, None), Act::RotateTelemetry);
        let mut next = || next(&mut quota, &full, None);
        assert_eq!(next(), Act::Alarms(generation(1, true), Severity::Info));
        assert_eq!(next(), Act::Alarms(generation(1, true), Severity::Info), "until it is said what is left");
    }

    #[test]
    fn an_untrusted_clock_makes_nothing_old() {
        let day = Duration::from_secs(86_400);
        let (before, boot) = (BootId::new("before"), BootId::new("now"));
        let at = |hours: u64, trusted| {
            let mono_ms = hours * 3_600_000;
            Now { mono_ms, wall_ms: i64::try_from(mono_ms).expect("small"), trusted }
        };
        for (of, recorded, now, old) in [
            (&boot, at(1, false), at(26, false), true), // the monotonic clock needs no trust
            (&boot, at(1, false), at(25, false), false),
            (&before, at(1, true), at(26, true), true),
            (&before, at(1, true), at(25, true), false),
            (&before, at(1, true), at(26, false), false),
            (&before, at(1, false), at(26, true), false),
            (&before, at(26, true), at(1, true), false), // a clock that was set back
        ] {
            assert_eq!(
                is_older(day, (of, recorded), (&boot, now), &Boots::default()),
                old,
                "{of} {recorded:?} {now:?}"
            );
        }
    }
}
