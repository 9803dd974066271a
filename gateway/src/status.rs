//! What people see of the running gateway: one [`Snapshot`], the same on the page, in the API and in `gardu status`.
//!
//! Tasks put what changed on the [`StatusBoard`]; whoever looks takes a snapshot. Ages are computed when someone
//! looks, so nobody has to keep them fresh. Nothing here decides anything.

pub mod outbox;
mod snapshot;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::watch;

pub use self::snapshot::{
    ALARMS_MAX, About, Communication, DEVICES_MAX, DeviceState, LaneState, LinkWord, OutboxState, Snapshot, Stage,
    Standing, StandingAlarm, Uplink, Written,
};
use crate::{
    alarm::{AlarmId, State, Transition},
    clock::{BootId, Clock, Now, rfc3339},
    reading::{Quality, Reading, Reason, Segment, Value},
    record::Lane,
    store::{Head, Space},
    supervise::Pulse,
};

/// What the uplink puts on the board at each change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkState {
    /// How it is.
    pub link: Link,
    /// Which broker.
    pub url: String,
    /// Since when.
    pub since: Now,
    /// The number of this connection, once counted.
    pub session: Option<u64>,
}

/// How the uplink is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// An attempt is under way.
    Connecting,
    /// The broker accepts us.
    Connected,
    /// Pausing before the next attempt.
    Waiting {
        /// Why the last one ended.
        reason: String,
        /// The pause, from `since` on.
        retry_in: Duration,
    },
}

/// What the pipeline puts on the board when a device was read or found silent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceUpdate {
    /// Its name.
    pub name: Segment,
    /// The bus or input it belongs to.
    pub source: Arc<str>,
    /// Whether it answers.
    pub communication: Communication,
    /// Why not.
    pub reason: Option<Reason>,
    /// When it last gave a good reading; `None` leaves what the board has.
    pub last_good: Option<Now>,
}

impl DeviceUpdate {
    /// A device that nothing is known of yet.
    #[must_use]
    pub fn unheard(name: Segment, source: &str) -> Self {
        Self { name, source: source.into(), communication: Communication::Unknown, reason: None, last_good: None }
    }
}

/// Holds the present state of everything; clones share it.
#[derive(Debug, Clone)]
pub struct StatusBoard {
    clock: Clock,
    pulse: Pulse,
    started: Now,
    parts: Arc<Mutex<Parts>>,
}

#[derive(Debug)]
struct Parts {
    about: About,
    ready: bool,
    uplink: Option<UplinkState>,
    last_reason: Option<String>,
    heads: Vec<(Lane, watch::Receiver<Head>)>,
    written: Option<Written>,
    space: Option<watch::Receiver<Space>>,
    unusable: Option<String>,
    outbox: Option<OutboxState>,
    alarms: Standing,
    devices: BTreeMap<Segment, DeviceUpdate>,
}

impl Parts {
    /// As last measured, with the room there is now: without any, nothing is measured.
    fn outbox(&self) -> Option<OutboxState> {
        let now = self.space.as_ref().map(|space| *space.borrow());
        let outbox = self.outbox.clone()?;
        Some(OutboxState { space: now.unwrap_or(outbox.space), unusable: self.unusable.clone(), ..outbox })
    }
}

impl StatusBoard {
    /// An empty board; the daemon counts as started now.
    #[must_use]
    pub fn new(about: About, clock: Clock, pulse: Pulse) -> Self {
        let parts = Parts {
            about,
            ready: false,
            uplink: None,
            last_reason: None,
            heads: Vec::new(),
            written: None,
            space: None,
            unusable: None,
            outbox: None,
            alarms: Standing::default(),
            devices: BTreeMap::new(),
        };
        Self { started: clock.now(), clock, pulse, parts: Arc::new(Mutex::new(parts)) }
    }

    /// A new configuration is in force. Devices it no longer names must be put on the board anew.
    pub fn set_about(&self, about: About) {
        let mut parts = self.parts();
        parts.about = about;
        parts.devices.clear();
    }

    /// The store is open: where its lanes can be looked up from now on.
    pub fn set_lanes(&self, heads: impl IntoIterator<Item = (Lane, watch::Receiver<Head>)>) {
        self.parts().heads = heads.into_iter().collect();
    }

    /// The same of the room that its disk has.
    pub fn set_space(&self, space: watch::Receiver<Space>) {
        self.parts().space = Some(space);
    }

    /// The outbox is in memory, for its folder cannot be used.
    pub fn set_unusable(&self, reason: String) {
        self.parts().unusable = Some(reason);
    }

    /// The outbox was measured.
    pub fn set_outbox(&self, outbox: OutboxState) {
        self.parts().outbox = Some(outbox);
    }

    /// How full the outbox is, once it was measured.
    #[must_use]
    pub fn outbox(&self) -> Option<OutboxState> {
        self.parts().outbox()
    }

    /// Since when the disk is full, RFC 3339 UTC, if nothing happened to the alarm about it since.
    #[must_use]
    pub fn full_since(&self) -> Option<String> {
        let parts = self.parts();
        let full = parts.alarms.list.iter().find(|alarm| alarm.alarm == AlarmId::outbox_full())?;
        (full.active && full.state == State::Unack).then(|| full.time.clone())
    }

    /// What is written to the storage.
    pub fn set_written(&self, written: Written) {
        self.parts().written = Some(written);
    }

    /// What is written to the storage, once the kernel was asked.
    #[must_use]
    pub fn written(&self) -> Option<Written> {
        self.parts().written
    }

    /// The start is complete.
    pub fn set_ready(&self) {
        self.parts().ready = true;
    }

    /// Whether the start is complete.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.parts().ready
    }

    /// The uplink changed.
    pub fn set_uplink(&self, uplink: UplinkState) {
        let mut parts = self.parts();
        if let Link::Waiting { reason, .. } = &uplink.link {
            parts.last_reason = Some(reason.clone());
        }
        parts.uplink = Some(uplink);
    }

    /// Alarms changed: the last transition of every alarm; quiet ones are passed over.
    pub fn set_alarms<'a>(&self, last: impl IntoIterator<Item = &'a Transition>) {
        let mut standing: Vec<&Transition> = last.into_iter().filter(|last| last.state != State::Norm).collect();
        standing.sort_by_key(|last| Reverse((last.severity, last.at.wall_ms)));
        let list = standing.iter().take(ALARMS_MAX).map(|last| StandingAlarm::of(last)).collect();
        let alarms = Standing { total: standing.len(), list };
        self.parts().alarms = alarms;
    }

    /// A device was read, or found silent.
    pub fn set_device(&self, mut device: DeviceUpdate) {
        let devices = &mut self.parts().devices;
        let known = devices.get(&device.name);
        if known.is_none() && devices.len() == DEVICES_MAX {
            return;
        }
        device.last_good = device.last_good.or(known.and_then(|known| known.last_good));
        devices.insert(device.name.clone(), device);
    }

    /// Readings of one device arrived: whether it answers, and when it last did. `source` is where an unknown one is from.
    pub fn heard(&self, readings: &[Reading], source: &str) {
        let Some(first) = readings.first().filter(|first| first.point.device() != GATEWAY) else { return };
        let good = readings.iter().rfind(|reading| reading.quality == Quality::Good);
        let silent = good.is_none() || readings.iter().any(says_silent);
        let last_good = good.filter(|_| !silent).map(|reading| reading.at);
        let known = self.parts().devices.get(first.point.device()).cloned();
        let known = known.unwrap_or_else(|| {
            DeviceUpdate::unheard(Segment::parse(first.point.device()).expect("a point's first segment"), source)
        });
        let (communication, reason) = if silent {
            // That a device has fallen silent is said without a reason; its points said it before.
            (Communication::Bad, readings.iter().find_map(|reading| reading.reason).or(known.reason))
        } else {
            (Communication::Good, None)
        };
        self.set_device(DeviceUpdate { communication, reason, last_good, ..known });
    }

    /// Everything as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let now = self.clock.now();
        let stage = |(name, idle): (Arc<str>, Duration)| Stage { name: name.as_ref().into(), idle_ms: millis(idle) };
        let parts = self.parts();
        Snapshot {
            gateway: parts.about.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            time: rfc3339(now.wall_ms),
            clock_trusted: now.trusted,
            uptime_s: now.since(self.started).as_secs(),
            ready: parts.ready,
            uplink: parts.uplink.as_ref().map(|uplink| Uplink::of(uplink, parts.last_reason.clone(), now)),
            lanes: self.lanes_of(&parts, now).collect(),
            written: parts.written,
            outbox: parts.outbox(),
            alarms: parts.alarms.clone(),
            devices: parts.devices.values().map(|device| DeviceState::of(device, now)).collect(),
            stages: self.pulse.idle().into_iter().map(stage).collect(),
        }
    }

    /// How far each lane has come.
    #[must_use]
    pub fn lanes(&self) -> Vec<(Lane, LaneState)> {
        self.lanes_of(&self.parts(), self.clock.now()).collect()
    }

    /// How we are, in one line for `systemctl status`.
    #[must_use]
    pub fn summary(&self) -> String {
        let parts = self.parts();
        let uplink = parts.uplink.as_ref().map_or_else(
            || "starting".to_owned(),
            |uplink| match &uplink.link {
                Link::Connecting => format!("connecting to {}", uplink.url),
                Link::Connected => format!("connected to {}", uplink.url),
                Link::Waiting { reason, .. } => format!("not connected to {}: {reason}", uplink.url),
            },
        );
        format!("{uplink}; {} alarms stand", parts.alarms.total)
    }

    fn lanes_of<'a>(&'a self, parts: &'a Parts, now: Now) -> impl Iterator<Item = (Lane, LaneState)> + 'a {
        parts.heads.iter().map(move |(lane, head)| (*lane, self.lane(&head.borrow(), now)))
    }

    fn lane(&self, head: &Head, now: Now) -> LaneState {
        LaneState {
            epoch: head.status.epoch.clone(),
            next: head.status.next,
            settled: head.status.settled,
            records: head.records,
            bytes: head.bytes,
            oldest_age_s: head.oldest.as_ref().and_then(|(boot, at)| age_s(&self.clock, boot, *at, now)),
        }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().expect("no panic while the board is held")
    }
}

/// How long ago a moment of `boot` was; unknown where no trusted clock spans the restart since.
#[must_use]
pub fn age_s(clock: &Clock, boot: &BootId, at: Now, now: Now) -> Option<u64> {
    if boot == clock.boot() {
        return Some(now.since(at).as_secs());
    }
    let wall_ms = (at.trusted && now.trusted).then(|| now.wall_ms.saturating_sub(at.wall_ms))?;
    u64::try_from(wall_ms / 1_000).ok()
}

/// What the gateway says of itself is not a device.
const GATEWAY: &str = "gateway";

/// Whether this is `{device}/communication` being true.
fn says_silent(reading: &Reading) -> bool {
    let name = reading.point.as_str().split_once('/').map(|(_, name)| name);
    name == Some("communication") && reading.value == Some(Value::Bool(true))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        alarm::{AlarmId, Kind, Severity, Texts},
        clock::BootId,
        reading::{PointId, Quality},
        record::{Epoch, LaneStatus},
    };

    pub(crate) fn at(seconds: u64) -> Now {
        Now { mono_ms: seconds * 1_000, wall_ms: i64::try_from(seconds).expect("small") * 1_000, trusted: true }
    }

    pub(crate) fn segment(name: &str) -> Segment {
        Segment::parse(name).expect(name)
    }

    pub(crate) fn board(clock: &Clock, pulse: &Pulse) -> StatusBoard {
        let about = About {
            id: segment("taman-elektrik-01"),
            name: "Taman Elektrik".into(),
            site: "taman-elektrik".into(),
            config: "1a2b3c4d".into(),
        };
        StatusBoard::new(about, clock.clone(), pulse.clone())
    }

    pub(crate) fn transition(point: &str, severity: Severity, state: State, at: Now) -> Transition {
        Transition {
            kind: Kind::Raised,
            alarm: AlarmId::of(&PointId::parse(point).expect(point), &segment("open")),
            occurrence: 3,
            state,
            active: state != State::Norm,
            acknowledged: false,
            latched: false,
            severity,
            value: Some(Value::Bool(true)),
            unit: None,
            quality: Quality::Good,
            reason: None,
            limit: None,
            test: false,
            message: Texts { id: Some("Pintu panel terbuka".into()), en: Some("Cabinet door open".into()) },
            by: None,
            comment: None,
            evidence: None,
            at,
            source_time_ms: None,
        }
    }

    /// A lane whose oldest waiting record was recorded then.
    pub(crate) fn head(boot: &str, at: Now) -> Head {
        Head {
            status: LaneStatus { epoch: Epoch::parse("0123456789abcdef").expect("epoch"), next: 8, settled: 5 },
            next_position: 8,
            records: 2,
            bytes: 700,
            missing: 0,
            given_up: 0,
            oldest: Some((BootId::new(boot), at)),
        }
    }

    fn idle() -> (Clock, StatusBoard) {
        let clock = Clock::manual("boot", at(100));
        let board = board(&clock, &Pulse::new(clock.clone()));
        (clock, board)
    }

    #[test]
    fn ages_grow_while_nobody_updates_them() {
        let (clock, board) = idle();
        board.set_device(DeviceUpdate {
            name: segment("panel"),
            source: "cabinet".into(),
            communication: Communication::Good,
            reason: None,
            last_good: Some(at(100)),
        });
        board.set_uplink(UplinkState {
            link: Link::Waiting { reason: "the link is silent".into(), retry_in: Duration::from_secs(30) },
            url: "mqtt://cc1:1883".into(),
            since: at(100),
            session: Some(4),
        });
        clock.set(at(112));
        let seen = board.snapshot();
        let uplink = seen.uplink.expect("set");
        assert_eq!((uplink.for_s, uplink.retry_in_s, uplink.link), (12, Some(18), LinkWord::Waiting));
        assert_eq!((seen.uptime_s, seen.devices[0].last_reading_age_s), (12, Some(12)));
    }

    #[test]
    fn a_silent_device_keeps_the_age_of_its_last_good_reading() {
        let (clock, board) = idle();
        let update = |communication, reason, last_good| DeviceUpdate {
            name: segment("panel"),
            source: "cabinet".into(),
            communication,
            reason,
            last_good,
        };
        board.set_device(update(Communication::Good, None, Some(at(101))));
        board.set_device(update(Communication::Bad, Some(Reason::Timeout), None));
        clock.set(at(161));
        let device = &board.snapshot().devices[0];
        assert_eq!((device.communication, device.last_reading_age_s), (Communication::Bad, Some(60)));
    }

    #[test]
    fn the_reason_of_the_last_failure_stays_readable_after_the_reconnect() {
        let (_, board) = idle();
        let state = |link| UplinkState { link, url: "mqtt://cc1:1883".into(), since: at(100), session: None };
        board.set_uplink(state(Link::Waiting { reason: "refused".into(), retry_in: Duration::ZERO }));
        board.set_uplink(state(Link::Connected));
        assert_eq!(board.snapshot().uplink.and_then(|uplink| uplink.last_reason).as_deref(), Some("refused"));
    }

    #[test]
    fn the_worst_alarms_come_first_and_the_list_is_bounded() {
        let (_, board) = idle();
        let mut all: Vec<Transition> = (0..2 * ALARMS_MAX)
            .map(|i| transition(&format!("panel/p{i}"), Severity::Low, State::Acked, at(i as u64)))
            .collect();
        all.push(transition("panel/quiet", Severity::Critical, State::Norm, at(1)));
        all.push(transition("panel/door", Severity::Critical, State::Unack, at(1)));
        board.set_alarms(&all);
        let alarms = board.snapshot().alarms;
        assert_eq!((alarms.total, alarms.list.len()), (2 * ALARMS_MAX + 1, ALARMS_MAX));
        assert_eq!(alarms.list[0].alarm.as_str(), "panel/door/open");
        assert_eq!(alarms.list[1].alarm.as_str(), format!("panel/p{}/open", 2 * ALARMS_MAX - 1));
    }

    #[test]
    fn a_device_that_falls_silent_keeps_the_reason_its_points_gave() {
        let (_, board) = idle();
        let point = |name| PointId::parse(name).expect(name);
        let said = |readings: &[Reading]| {
            board.heard(readings, "panel");
            let device = board.snapshot().devices.remove(0);
            (device.communication, device.reason)
        };
        let bad = Reading::bad(point("meter/volt"), Reason::LinkDown, at(1));
        assert_eq!(said(&[bad]), (Communication::Bad, Some(Reason::LinkDown)));
        let silent = Reading::good(point("meter/communication"), Value::Bool(true), at(2));
        assert_eq!(said(&[silent]), (Communication::Bad, Some(Reason::LinkDown)));
        let good = Reading::good(point("meter/volt"), Value::Bool(true), at(3));
        assert_eq!(said(&[good]), (Communication::Good, None));
    }

    #[test]
    fn devices_beyond_the_limit_are_not_listed() {
        let (_, board) = idle();
        for i in 0..=DEVICES_MAX {
            board.set_device(DeviceUpdate {
                name: segment(&format!("d{i}")),
                source: "cctv".into(),
                communication: Communication::Unknown,
                reason: None,
                last_good: None,
            });
        }
        assert_eq!(board.snapshot().devices.len(), DEVICES_MAX);
    }

    #[test]
    fn the_age_of_a_backlog_spans_a_restart_only_by_trusted_clocks() {
        let (_, board) = idle();
        for (boot, oldest, age_s) in [
            ("boot", at(40), Some(60)),
            ("before", at(10), Some(90)),
            ("before", Now { trusted: false, ..at(10) }, None),
        ] {
            let (_keep, head) = watch::channel(head(boot, oldest));
            board.set_lanes([(Lane::Alarm, head)]);
            let lane = board.snapshot().lanes.remove(&Lane::Alarm).expect("set");
            assert_eq!((lane.oldest_age_s, lane.next, lane.records), (age_s, 8, 2), "{boot}");
        }
    }

    #[test]
    fn a_snapshot_travels_as_json() {
        let (_, board) = idle();
        board.set_alarms(&[transition("panel/door", Severity::High, State::Unack, at(7))]);
        let seen = board.snapshot();
        let json = serde_json::to_string(&seen).expect("json");
        assert_eq!(serde_json::from_str::<Snapshot>(&json).expect("back"), seen);
    }
}
