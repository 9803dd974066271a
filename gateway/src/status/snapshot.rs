//! One moment of the gateway, as the page, the API and `gardu status` show it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{DeviceUpdate, Link, UplinkState};
use crate::{
    alarm::{AlarmId, Severity, State, Texts, Transition},
    clock::{Now, rfc3339},
    config::{Config, Gateway},
    reading::{Reason, Segment, Value},
    record::{Epoch, Lane},
    store::Space,
};

/// Standing alarms in one snapshot: more is a flood nobody reads line by line, and 100 keep the answer below 64 KiB.
pub const ALARMS_MAX: usize = 100;
/// Devices in one snapshot: four full buses of 247 units. A device beyond is not shown; its alarms still are.
pub const DEVICES_MAX: usize = 1_024;

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Who this is.
    pub gateway: About,
    /// The program's version.
    pub version: String,
    /// When the snapshot was taken, RFC 3339 UTC.
    pub time: String,
    /// Whether the kernel calls the clock synchronised.
    pub clock_trusted: bool,
    /// How long the daemon runs.
    pub uptime_s: u64,
    /// Whether the start is complete: configuration applied, store open.
    pub ready: bool,
    /// The way to the command center; absent until the uplink starts.
    pub uplink: Option<Uplink>,
    /// The outbox by lane; empty until the store is open.
    pub lanes: BTreeMap<Lane, LaneState>,
    /// What is written to the storage; absent until the kernel was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// The outbox on the disk; absent until it is measured.
    pub outbox: Option<OutboxState>,
    /// What stands.
    pub alarms: Standing,
    /// Every device, by name; at most [`DEVICES_MAX`].
    pub devices: Vec<DeviceState>,
    /// Time since each stage made progress.
    pub stages: Vec<Stage>,
}

/// Who a gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its id.
    pub id: Segment,
    /// Its name for people.
    pub name: String,
    /// Its place.
    pub site: String,
    /// Fingerprint of the configuration in force.
    pub config: String,
}

impl About {
    /// What the configuration says of the gateway.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let Gateway { id, name, site, .. } = &config.gateway;
        Self { id: id.clone(), name: name.clone(), site: site.clone(), config: config.fingerprint.clone() }
    }
}

/// The way to the command center.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// How it is.
    pub link: LinkWord,
    /// For how long.
    pub for_s: u64,
    /// Which broker.
    pub url: String,
    /// The number of this connection.
    pub session: Option<u64>,
    /// Why the last connection ended or failed, in this run.
    pub last_reason: Option<String>,
    /// Time to the next attempt, while waiting.
    pub retry_in_s: Option<u64>,
}

/// State of the uplink as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkWord {
    /// An attempt is under way.
    Connecting,
    /// The broker accepts us.
    Connected,
    /// Pausing before the next attempt.
    Waiting,
}

/// One lane of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneState {
    /// The present epoch.
    pub epoch: Epoch,
    /// The number the next record gets.
    pub next: u64,
    /// Every number up to here was confirmed or declared lost.
    pub settled: u64,
    /// Records waiting.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Age of the oldest waiting one; absent when none waits, or when no trusted clock spans the restart since.
    pub oldest_age_s: Option<u64>,
}

/// What this process writes to its storage, as the kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Since the start.
    pub total_bytes: u64,
    /// What a day sees at the rate of the last hours; absent in the first hour.
    pub day_bytes: Option<u64>,
    /// What a day may see, if somebody set a bound.
    pub budget_day_bytes: Option<u64>,
}

/// How full the outbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxState {
    /// What it takes on the disk.
    pub disk_bytes: u64,
    /// What it may take: as configured, or what the disk has.
    pub quota_bytes: u64,
    /// How full it is before something is given up.
    pub filled_percent: u64,
    /// When it will be full if it goes on growing like this; absent if it does not.
    pub full_in_s: Option<u64>,
    /// Whether something is being given up.
    pub evicting: bool,
    /// How much room the disk has for it.
    pub space: Space,
    /// Why its folder cannot be used, if that is so: it is in memory then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// Alarms that are not quiet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// How many there are.
    pub total: usize,
    /// The most severe, then the newest; at most [`ALARMS_MAX`].
    pub list: Vec<StandingAlarm>,
}

/// One alarm that is not quiet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StandingAlarm {
    /// Its name.
    pub alarm: AlarmId,
    /// Its state.
    pub state: State,
    /// How bad it is.
    pub severity: Severity,
    /// Which occurrence: `acknowledge` must name it.
    pub occurrence: u64,
    /// Whether the condition holds.
    pub active: bool,
    /// A test, not the field.
    pub test: bool,
    /// The value at the last change.
    pub value: Option<Value>,
    /// Its unit.
    pub unit: Option<Arc<str>>,
    /// Text for people.
    pub message: Texts,
    /// When it last changed, RFC 3339 UTC.
    pub time: String,
    /// Whether the clock could be trusted then.
    pub clock_trusted: bool,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Its name.
    pub name: Segment,
    /// The bus or input it belongs to.
    pub source: Arc<str>,
    /// Whether it answers.
    pub communication: Communication,
    /// Why not.
    pub reason: Option<Reason>,
    /// Time since its last good reading; absent if there was none in this run.
    pub last_reading_age_s: Option<u64>,
}

/// Whether a device answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Communication {
    /// Nothing is known yet in this run.
    Unknown,
    /// It answers.
    Good,
    /// It does not.
    Bad,
}

/// One stage of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Time since it made progress.
    pub idle_ms: u64,
}

impl Uplink {
    pub(super) fn of(state: &UplinkState, last_reason: Option<String>, now: Now) -> Self {
        let passed = now.since(state.since);
        let (link, retry_in) = match &state.link {
            Link::Connecting => (LinkWord::Connecting, None),
            Link::Connected => (LinkWord::Connected, None),
            Link::Waiting { retry_in, .. } => (LinkWord::Waiting, Some(retry_in.saturating_sub(passed))),
        };
        Self {
            link,
            for_s: passed.as_secs(),
            url: state.url.clone(),
            session: state.session,
            last_reason,
            retry_in_s: retry_in.map(|left| left.as_secs()),
        }
    }
}

impl StandingAlarm {
    pub(super) fn of(last: &Transition) -> Self {
        Self {
            alarm: last.alarm.clone(),
            state: last.state,
            severity: last.severity,
            occurrence: last.occurrence,
            active: last.active,
            test: last.test,
            value: last.value.clone(),
            unit: last.unit.clone(),
            message: last.message.clone(),
            time: rfc3339(last.at.wall_ms),
            clock_trusted: last.at.trusted,
        }
    }
}

impl DeviceState {
    pub(super) fn of(device: &DeviceUpdate, now: Now) -> Self {
        Self {
            name: device.name.clone(),
            source: device.source.clone(),
            communication: device.communication,
            reason: device.reason,
            last_reading_age_s: device.last_good.map(|at| now.since(at).as_secs()),
        }
    }
}
