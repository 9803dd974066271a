//! The outbox at one moment, as the API and `gardu outbox status` show it, whether the daemon or the disk was asked.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::LaneState;
use crate::{
    reading::Segment,
    record::{Lane, LossReason},
    store::{Generation, Space},
};

/// Everything the outbox holds, counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outbox {
    /// Whose it is.
    pub gateway: Segment,
    /// Its folder.
    pub path: PathBuf,
    /// What all of it takes on the disk, what was set aside included.
    pub disk_bytes: u64,
    /// What they may take.
    pub quota_bytes: Option<u64>,
    /// Time until the quota is reached if it goes on like this; absent when it does not grow, or nobody measures.
    pub full_in_s: Option<u64>,
    /// How much room the disk has for it; absent if nobody can tell.
    pub space: Option<Space>,
    /// Since when it has less than it wants, RFC 3339 UTC, where that is known.
    pub full_since: Option<String>,
    /// Why its folder cannot be used, if that is so: then it is in memory, and `path` says where.
    pub unusable: Option<String>,
    /// Each lane.
    pub lanes: BTreeMap<Lane, OutboxLane>,
    /// Numbers declared lost, by lane and reason.
    pub lost: Vec<Lost>,
    /// Over what `lost` counts.
    pub lost_over: LostOver,
    /// Damaged parts that were set aside for people.
    pub aside: Vec<Aside>,
    /// Generations or files that cannot be read, and why.
    pub unreadable: Vec<Unreadable>,
}

/// One lane of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxLane {
    /// How far it has come.
    #[serde(flatten)]
    pub state: LaneState,
    /// Its generations, the oldest first.
    pub generations: Vec<Generation>,
}

/// Numbers that will never arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Of which lane.
    pub lane: Lane,
    /// Why.
    pub reason: LossReason,
    /// How many.
    pub count: u64,
}

/// Over what losses are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostOver {
    /// Declared since the daemon started.
    Run,
    /// Declared in records that still lie on the disk.
    Disk,
}

/// A folder or file that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// Its name inside the outbox.
    pub name: String,
    /// What it takes on the disk.
    pub bytes: u64,
}

/// Something of the outbox that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreadable {
    /// Its name inside the outbox.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One line of the API's list of waiting records: its place in the lane and its event, byte for byte.
#[must_use]
pub fn line(place: u64, event: &str) -> String {
    format!("{{\"place\":{place},\"event\":{event}}}\n")
}

/// The last line of such a list: where the next one begins, if there is more.
#[must_use]
pub fn cursor(next: Option<u64>) -> String {
    next.map_or_else(|| "{\"next\":null}\n".to_owned(), |next| format!("{{\"next\":{next}}}\n"))
}

/// One line of such a list, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// A waiting record.
    Event {
        /// Its place in the lane.
        place: u64,
        /// Its event.
        json: &'a str,
    },
    /// The end of the page.
    Next(Option<u64>),
}

impl<'a> Line<'a> {
    /// Parses a line without its line feed. The event is not looked into: it must stay as it is, to the byte.
    #[must_use]
    pub fn parse(line: &'a str) -> Option<Self> {
        let inside = line.strip_prefix('{')?.strip_suffix('}')?;
        if let Some(next) = inside.strip_prefix("\"next\":") {
            return Some(Self::Next(if next == "null" { None } else { Some(next.parse().ok()?) }));
        }
        let (place, json) = inside.strip_prefix("\"place\":")?.split_once(",\"event\":")?;
        Some(Self::Event { place: place.parse().ok()?, json })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_back_the_event_to_the_byte() {
        let event = r#"{"z":1.50,"a":"{\"event\":}"}"#;
        let lines = line(7, event) + &cursor(Some(8)) + &cursor(None);
        let parsed: Option<Vec<Line<'_>>> = lines.lines().map(Line::parse).collect();
        let want = [Line::Event { place: 7, json: event }, Line::Next(Some(8)), Line::Next(None)];
        assert_eq!(parsed.as_deref(), Some(&want[..]));
        for line in lines.lines().filter(|line| !line.contains("1.50")) {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        }
        for wrong in ["", "{}", "nothing here", "{\"next\":x}", "{\"place\":1}"] {
            assert_eq!(Line::parse(wrong), None, "{wrong}");
        }
    }
}
