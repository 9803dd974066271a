//! Files to [`Config`]: every problem in one run, or the proof that there is none.
//!
//! The files are parsed, their sections joined (single ones may stand in any file but only once, lists add up), read
//! strictly, and then checked against each other. Relative paths start from the folder of the file they stand in.
//!
//! Limits: 1 MiB a file, 4 MiB and 256 files in all; profiles as [`profile`] says; [`super::problem::SHOWN_MAX`] problems
//! shown.

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::{
    Config, Report, alarms, center,
    document::Section,
    files, modbus, mqtt,
    names::Names,
    pins,
    problem::{Findings, Nature, Problems, Source, Spot},
    profile::{self, Profiles},
};
use crate::{
    alarm::{AlarmId, Severity, rule::Rule},
    text,
};

/// Syntax problems noted of one file: who has more has not written TOML.
const SYNTAX_SHOWN_MAX: usize = 20;
/// Recovering after a syntax error keeps a record of each; beyond this size only the first is looked for.
const RECOVERABLE_BYTES_MAX: usize = 64 * 1024;

/// What becomes of the secrets that `*_file` keys name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Every one is read: the daemon is about to use them.
    All,
    /// Every one is read but those that only systemd hands out: a person looks at the configuration.
    Reachable,
    /// None is: whoever asks has no business with them.
    None,
}

/// How secrets are read.
#[derive(Debug, Clone, Copy)]
pub struct Secrets<'a> {
    /// Which.
    pub need: Need,
    /// What `${CREDENTIALS_DIRECTORY}` stands for.
    pub credentials: Option<&'a Path>,
}

/// Reads the configuration at `path` and in `gardu.d` beside it.
pub fn load(path: &Path, need: Need) -> Result<Config, Problems> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    load_with(path, Secrets { need, credentials: credentials.as_deref() })
}

/// [`load`] where the environment is given.
pub fn load_with(path: &Path, secrets: Secrets<'_>) -> Result<Config, Problems> {
    let (sources, mut troubles): (Vec<Source>, Vec<_>) = files::gather(path).into_iter().unzip();
    let (mut tables, mut errors): (Vec<_>, Vec<_>) = sources.iter().map(|source| parse(&source.text)).unzip();
    let folder = profile::folder(path);
    let profiles = profile::gather(&folder, &tables);
    for file in &profiles {
        let (table, syntax) = parse(&file.source.text);
        tables.push(table);
        errors.push(syntax);
        troubles.push(file.trouble.clone());
    }
    let findings = Findings::new(sources.iter().chain(profiles.iter().map(|file| &file.source)).collect());
    for (file, (trouble, errors)) in troubles.into_iter().zip(errors).enumerate() {
        if let Some((offset, kind, args)) = trouble {
            findings.add(Spot { file, offset }, Nature::Unread, kind, &args);
        }
        note(file, &errors, &findings);
    }
    let mut tops = tables.iter().enumerate().map(|(file, table)| Section::top(file, table, &findings));
    let document = Document { tops: tops.by_ref().take(sources.len()).collect() };
    let language = center::language(&document);
    let profiles = Profiles::read(&folder, &profiles, tops, language.unwrap_or_default());
    let config = read(&document, &profiles, secrets);
    drop(profiles);
    drop(document);
    drop(tables);
    match (findings.finish(language), config) {
        (Some(problems), _) => Err(problems),
        (None, Some(config)) => Ok(config),
        (None, None) => unreachable!("a value that could not be read was noted as a problem"),
    }
}

/// What could be made of a text, and what is wrong with its syntax.
fn parse(text: &str) -> (DeTable<'_>, Vec<toml::de::Error>) {
    let (table, mut errors) = if text.len() <= RECOVERABLE_BYTES_MAX {
        DeTable::parse_recoverable(text)
    } else {
        DeTable::parse(text)
            .map_or_else(|e| (toml::Spanned::new(0..0, DeTable::new()), vec![e]), |table| (table, vec![]))
    };
    errors.truncate(SYNTAX_SHOWN_MAX);
    errors.shrink_to_fit(); // those of every file wait for each other
    (table.into_inner(), errors)
}

/// Notes what is wrong with the syntax of a file.
fn note(file: usize, errors: &[toml::de::Error], findings: &Findings<'_>) {
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let spot = Spot { file, offset: Some(span.start) };
        match (error.message(), findings.sources[file].text.get(span)) {
            ("duplicate key", Some(key)) => findings.add(spot, Nature::Unread, "check-twice", &[("key", key.into())]),
            (detail, _) => findings.add(spot, Nature::Unread, "check-syntax", &[("detail", detail.into())]),
        }
    }
}

/// All files as one.
pub(super) struct Document<'a> {
    pub(super) tops: Vec<Section<'a>>,
}

impl<'a> Document<'a> {
    /// A section that stands once, in any file.
    pub(super) fn single(&self, key: &'static str, header: &'static str) -> Option<Section<'a>> {
        let mut found = self.tops.iter().filter_map(|top| top.get(key));
        let first = found.next()?;
        for again in found {
            let place = first.findings.place(first.spot).to_string();
            again.wrong::<()>("check-section-twice", &[("header", header.into()), ("place", place.into())]);
        }
        first.section(header)
    }

    /// [`Document::single`], and a problem if it is nowhere.
    pub(super) fn required(&self, key: &'static str, header: &'static str, example: &str) -> Option<Section<'a>> {
        let nowhere = self.tops.iter().all(|top| !top.has(key));
        if let (true, Some(main)) = (nowhere, self.tops.first()) {
            main.missing("check-missing-section", &[("header", header.into()), ("example", example.into())]);
        }
        self.single(key, header)
    }

    /// The sections of a list, from all files.
    pub(super) fn list(&self, key: &'static str, header: &'static str) -> Vec<Section<'a>> {
        self.tops.iter().flat_map(|top| top.sections(key, header)).collect()
    }
}

fn read<'a>(document: &Document<'a>, profiles: &Profiles<'a>, secrets: Secrets<'_>) -> Option<Config> {
    let gateway = center::gateway(document);
    let command_center = center::command_center(document, secrets);
    let outbox = center::outbox(document);
    let mut listeners = center::Listeners::default();
    let http = center::http(document, &mut listeners);
    let (telemetry, report_default) = center::telemetry(document);
    let language = gateway.as_ref().map(|g| g.language).unwrap_or_default();

    let mut names = Names::default();
    let report = |section: &Section<'_>, measured| report(section, report_default, measured);
    let buses = document.list("modbus", "[[modbus]]");
    let (modbus, mut built_in) = modbus::buses(&buses, profiles, &mut names, report);
    let (gpio, silent) = pins::gpio(&document.list("gpio", "[[gpio]]"), &mut names, report);
    built_in.extend(silent);
    let (i2c, silent) = pins::i2c(&document.list("i2c", "[[i2c]]"), &mut names, report);
    built_in.extend(silent);
    let inputs = document.list("mqtt", "[[mqtt]]");
    let (mqtt, stale) = mqtt::inputs(&inputs, &mut names, &mut listeners, secrets, report);
    built_in.extend(stale);
    let mut rules = alarms::rules(&document.list("alarm", "[[alarm]]"), &names, language);
    rules.extend(built_in);
    for (alarm, severity, text) in [
        (AlarmId::delivery_refused(), Severity::High, "alarm-delivery-refused"),
        (AlarmId::identity_conflict(), Severity::High, "alarm-identity-conflict"),
        (AlarmId::outbox_evicting(), Severity::High, "alarm-outbox-evicting"),
        (AlarmId::outbox_filling(), Severity::Medium, "alarm-outbox-filling"),
        (AlarmId::outbox_full(), Severity::Critical, "alarm-outbox-full"),
        (AlarmId::outbox_unusable(), Severity::Critical, "alarm-outbox-unusable"),
    ] {
        rules.push(Rule::built_in(alarm, severity, text::both(text, &[])));
    }
    if outbox.write_budget_bytes.is_some() {
        let says = text::both("alarm-flash-budget", &[]);
        rules.push(Rule::built_in(AlarmId::flash_budget(), Severity::Low, says));
    }
    document.tops.iter().for_each(Section::finish);

    let findings = document.tops.first()?.findings;
    let mut crc = crc32fast::Hasher::new();
    findings.sources.iter().for_each(|source| crc.update(source.text.as_bytes()));
    let fingerprint = format!("{:08x}", crc.finalize());
    Some(Config {
        gateway: gateway?,
        command_center: command_center?,
        outbox,
        http,
        modbus,
        mqtt,
        gpio,
        i2c,
        rules,
        telemetry,
        fingerprint,
    })
}

/// Whether a point has a size, so that a deadband means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measured {
    /// A number, or not known yet.
    Perhaps,
    /// A contact or a text: every change counts.
    Never,
}

/// Reads `report` and `deadband` of a point or subscription.
fn report(section: &Section<'_>, default: Report, measured: Measured) -> Report {
    let report = section.or("report", default, center::report);
    let Some(node) = section.get("deadband") else { return report };
    let deadband = node.number_from_zero().unwrap_or_default();
    match (report, measured) {
        (Report::Change { .. }, Measured::Perhaps) => Report::Change { deadband },
        (Report::Change { .. }, Measured::Never) => node.wrong("check-deadband-type", &[]).unwrap_or(report),
        (Report::Interval | Report::Off, _) => node.wrong("check-deadband-report", &[]).unwrap_or(report),
    }
}

#[cfg(test)]
mod tests;
