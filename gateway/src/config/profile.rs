//! Profiles: what a kind of device has in its registers, written once and named by `profile = "…"`.
//!
//! A profile is a file `NAME.toml`: `[profile]` says what it is of, and each `[[point]]` takes the keys of a
//! `[[modbus.device.point]]`. The operator's own are in the folder `profiles` beside the configuration and win over those
//! that are part of the program. Only profiles that a device names are read; they count as files of the configuration.
//!
//! Limits: 64 KiB and [`POINTS_MAX`] points a file, [`PROFILES_MAX`] files.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::de::DeTable;

use super::{
    Language, Profile as About, alarms, center,
    document::{Node, Section},
    files::{self, Trouble},
    names::clash,
    problem::{Source, Word},
    serial,
};

/// Four requests of the greatest length, and more than any device has that is known.
pub(super) const POINTS_MAX: usize = 500;
/// Different profiles in one configuration: a park has a handful of kinds of device, and so many files of the greatest
/// size are as much as the configuration itself may be.
pub(super) const PROFILES_MAX: usize = 64;
/// Longest name, as that of a device.
const NAME_CHARS_MAX: usize = 64;
/// Names shown where none is near: a few lines.
const NAMES_SHOWN_MAX: usize = 40;

/// Those that are part of the program: so the two never disagree, and no installation lacks them.
pub(super) const SHIPPED: [(&str, &str); 3] = [
    ("eastron-sdm120", include_str!("../../../config/profiles/eastron-sdm120.toml")),
    ("gardu-node", include_str!("../../../config/profiles/gardu-node.toml")),
    ("xy-md02", include_str!("../../../config/profiles/xy-md02.toml")),
];

/// Where the operator's own profiles are, for a configuration at `path`.
pub(super) fn folder(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join("profiles")
}

/// One profile as read.
pub(super) struct File {
    name: String,
    owner: Owner,
    pub(super) source: Source,
    pub(super) trouble: Option<Trouble>,
}

/// Who wrote a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Operator,
    Gardu,
}

/// Reads every profile that a device names and that there is.
pub(super) fn gather(folder: &Path, tables: &[DeTable<'_>]) -> Vec<File> {
    let named: BTreeSet<&str> = tables.iter().flat_map(named).filter(|name| is_name(name)).collect();
    named.into_iter().filter_map(|name| find(folder, name)).take(PROFILES_MAX).collect()
}

/// The values of `profile` in all `[[modbus.device]]`.
fn named<'t>(table: &'t DeTable<'_>) -> impl Iterator<Item = &'t str> {
    let devices = tables(table, "modbus").flat_map(|bus| tables(bus, "device"));
    devices.filter_map(|device| device.get("profile")?.get_ref().as_str())
}

fn tables<'t, 'd>(table: &'t DeTable<'d>, key: &str) -> impl Iterator<Item = &'t DeTable<'d>> {
    let list = table.get(key).and_then(|value| value.get_ref().as_array());
    list.into_iter().flat_map(|list| list.iter()).filter_map(|item| item.get_ref().as_table())
}

/// Whether this is the name of a file in a folder: no path, not hidden, the same on every file system.
fn is_name(text: &str) -> bool {
    let fits = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    (1..=NAME_CHARS_MAX).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('.')
}

fn find(folder: &Path, name: &str) -> Option<File> {
    if let Some((source, trouble)) = files::profile(folder.join(format!("{name}.toml"))) {
        return Some(File { name: name.to_owned(), owner: Owner::Operator, source, trouble });
    }
    let (_, text) = SHIPPED.iter().find(|(shipped, _)| *shipped == name)?;
    let source = Source { path: format!("built-in:{name}.toml").into(), text: (*text).to_owned() };
    Some(File { name: name.to_owned(), owner: Owner::Gardu, source, trouble: None })
}

/// The profiles of a configuration.
pub(super) struct Profiles<'a> {
    folder: PathBuf,
    /// What the folder offers, once somebody must be told.
    offered: OnceCell<Vec<String>>,
    profiles: BTreeMap<String, Profile<'a>>,
}

/// One of them.
pub(super) struct Profile<'a> {
    /// What it says of the device; none if that is wrong.
    pub(super) about: Option<Arc<About>>,
    /// Its points, no name twice.
    points: Vec<Section<'a>>,
}

impl<'a> Profiles<'a> {
    /// Reads what `files` say; `tops` are their tables.
    pub(super) fn read(
        folder: &Path,
        files: &[File],
        tops: impl Iterator<Item = Section<'a>>,
        language: Language,
    ) -> Self {
        let read = |(file, top): (&File, Section<'a>)| {
            let about = about(file, &top, language).map(Arc::new);
            let profile = Profile { about, points: points(&top) };
            top.finish();
            (file.name.clone(), profile)
        };
        let profiles = files.iter().zip(tops).map(read).collect();
        Self { folder: folder.to_owned(), offered: OnceCell::new(), profiles }
    }

    /// The profile that the value of a device's `profile` names.
    pub(super) fn named(&self, node: Node<'a>) -> Option<&Profile<'a>> {
        let name = node.text()?;
        if !is_name(name) {
            return node.wrong("check-profile-name", &[("name", name.into())]);
        }
        if let Some(profile) = self.profiles.get(name) {
            return Some(profile);
        }
        if self.profiles.len() == PROFILES_MAX {
            return node.wrong("check-profiles", &[("max", PROFILES_MAX.to_string().into())]);
        }
        let own = self.offered.get_or_init(|| files::profile_names(&self.folder)).iter().map(String::as_str);
        let known: BTreeSet<&str> = own.filter(|name| is_name(name)).chain(SHIPPED.map(|(name, _)| name)).collect();
        let at = self.folder.join(format!("{name}.toml")).display().to_string();
        let mut args = vec![("name", name.into()), ("path", Word::Verbatim(at))];
        match node.findings.nearest(name, known.iter().copied()) {
            Some(near) => {
                args.push(("near", near.into()));
                node.wrong("check-profile-near", &args)
            }
            None => {
                args.push(("known", listed(known)));
                node.wrong("check-profile", &args)
            }
        }
    }
}

/// `[profile]`.
fn about(file: &File, top: &Section<'_>, language: Language) -> Option<About> {
    if !top.has("profile") {
        top.missing("check-missing-section", &[("header", "[profile]".into()), ("example", "version = 1".into())]);
    }
    let section = top.get("profile")?.section("[profile]")?;
    let version = section.required("version", "1", |node| node.integer(1..=u16::MAX));
    let title = section.required("title", r#"{ id = "…", en = "…" }"#, |node| alarms::message(node, language));
    let source = section.required("source", r#""…""#, |node| node.line(center::LINE_CHARS_MAX));
    let serial = section.optional("serial", serial::line);
    section.finish();
    Some(About {
        name: file.name.clone(),
        version: version?,
        title: title?,
        source: source?.to_owned(),
        serial,
        file: (file.owner == Owner::Operator).then(|| file.source.path.clone()),
    })
}

/// Every `[[point]]`; what they say is read for each device.
fn points<'a>(top: &Section<'a>) -> Vec<Section<'a>> {
    let mut points = top.sections("point", "[[point]]");
    if points.is_empty() && !top.has("point") {
        top.missing("check-profile-empty", &[]);
    }
    if points.len() > POINTS_MAX {
        top.wrong("point", "check-too-many", &[("max", POINTS_MAX.to_string().into())]);
        points.truncate(POINTS_MAX);
    }
    let mut seen = BTreeMap::new();
    points.retain(|point| {
        let Some((name, node)) = point.peek_text("name").zip(point.get("name")) else { return true };
        let first = *seen.entry(name).or_insert(node.spot);
        if first != node.spot {
            clash(name, first, node);
        }
        first == node.spot
    });
    points
}

impl<'a> Profile<'a> {
    /// The points of a device: those of the profile that it neither skips nor writes itself, and its own.
    pub(super) fn points_of(&self, device: &Section<'a>, own: Vec<Section<'a>>) -> Vec<Section<'a>> {
        let skipped = device.or("skip", Vec::new(), |node| self.skipped(node));
        let own: Vec<Section<'a>> = own.into_iter().filter_map(|point| self.complete(point, &skipped)).collect();
        let written: BTreeSet<&str> = own.iter().filter_map(|point| point.peek_text("name")).chain(skipped).collect();
        let is_left = |point: &&Section<'a>| point.peek_text("name").is_none_or(|name| !written.contains(name));
        let all: Vec<Section<'a>> = self.points.iter().filter(is_left).cloned().chain(own).collect();
        if all.is_empty() && !self.points.is_empty() && !device.has("point") {
            device.missing("check-no-points", &[]);
        }
        all
    }

    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.points.iter().filter_map(|point| point.peek_text("name"))
    }

    /// Names of points that a device has not.
    fn skipped(&self, node: Node<'a>) -> Option<Vec<&'a str>> {
        let known = |item: Node<'a>| {
            let name = item.text()?;
            if self.names().any(|known| known == name) {
                return Some(name);
            }
            match item.findings.nearest(name, self.names()) {
                Some(near) => item.wrong("check-profile-point-near", &[("name", name.into()), ("near", near.into())]),
                None => item.wrong("check-profile-point", &[("name", name.into()), ("known", listed(self.names()))]),
            }
        };
        Some(node.list()?.into_iter().filter_map(known).collect())
    }

    /// A point of a device; one without a register is what the profile says, changed.
    fn complete(&self, own: Section<'a>, skipped: &[&str]) -> Option<Section<'a>> {
        let Some((name, node)) = own.peek_text("name").zip(own.get("name")).filter(|_| !own.has("register")) else {
            return Some(own);
        };
        if skipped.contains(&name) {
            return node.wrong("check-skip-changed", &[("name", name.into())]);
        }
        if let Some(point) = self.points.iter().find(|point| point.peek_text("name") == Some(name)) {
            return Some(own.over(point));
        }
        match node.findings.nearest(name, self.names()) {
            Some(near) => node.wrong("check-profile-point-near", &[("name", name.into()), ("near", near.into())]),
            None => Some(own), // a point of its own, whose register is missing
        }
    }
}

fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> Word {
    Word::Verbatim(names.into_iter().take(NAMES_SHOWN_MAX).collect::<Vec<_>>().join(", "))
}
