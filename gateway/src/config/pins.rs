//! `[[gpio]]` and `[[i2c]]`: what hangs on the gateway's own pins.
//!
//! Nothing is opened or looked for here: a chip that is not there yet is no mistake of the configuration.

use std::{
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Bias, Gpio, GpioContact, I2cChip, I2cDevice, I2cInput, I2cPoint, Level, Report,
    document::{Node, Section},
    modbus::{range, scale, severity},
    names::{Names, Owner, Says},
    problem::Spot,
    read::Measured,
};
use crate::{
    alarm::{AlarmId, Severity, rule::Rule},
    reading::{PointId, Segment},
    text,
};

/// From the fastest that helps anybody to once a day, as for Modbus; edges between two polls are not missed.
const LOOK: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
/// A round of the converter takes 0.9 s, and the climate sensor is asked once a second at most.
const MEASURE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
/// As on the sensor node.
const DEBOUNCE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(10);
/// Lines in one request to the kernel (`GPIO_V2_LINES_MAX`).
const CONTACTS_MAX: usize = 64;
/// Lines of the largest chips, and room; whether a chip has a line is seen when it is opened.
const LINE_MAX: u32 = 4_095;
/// As on the sensor node: from a clamp around one lamp to the largest that gives 1 V.
const TRANSFORMER_A: RangeInclusive<u16> = 1..=600;

/// Reads all GPIO chips, and makes the built-in `communication` rules of these devices.
pub(super) fn gpio<'a>(
    sections: &[Section<'a>],
    names: &mut Names,
    report: impl Fn(&Section<'a>, Measured) -> Report,
) -> (Vec<Gpio>, Vec<Rule>) {
    let (mut rules, mut taken) = (Vec::new(), Vec::new());
    let mut device = |section: &Section<'a>| {
        let name = device_name(section, names, &mut rules);
        let chip = section.required("chip", "\"/dev/gpiochip0\"", |node| device_file(node, "/dev/gpiochip0"));
        let poll = section.or("poll", Duration::from_secs(1), |node| node.duration(LOOK));
        let missed_polls = section.or("missed_polls", 3, |node| node.integer(1..=1_000));
        let children = section.sections("contact", "[[gpio.contact]]");
        if children.is_empty() && !section.has("contact") {
            section.missing("check-no-contacts", &[]);
        }
        if children.len() > CONTACTS_MAX {
            section.wrong("contact", "check-too-many", &[("max", CONTACTS_MAX.to_string().into())]);
        }
        section.finish();
        let line = |node: Node<'a>| {
            let line = node.integer(0..=LINE_MAX)?;
            take(&mut taken, (chip.clone(), line), "check-line-taken", node)?;
            Some(line)
        };
        let mut line = line;
        let contact = |child: &Section<'a>| contact(child, name.as_ref(), names, &mut line, &report);
        let contacts = children.iter().map(contact).collect::<Vec<_>>().into_iter().collect::<Option<_>>();
        Some(Gpio { name: name?, chip: chip?, poll, missed_polls, contacts: contacts? })
    };
    (sections.iter().filter_map(&mut device).collect(), rules)
}

fn contact<'a>(
    section: &Section<'a>,
    device: Option<&Segment>,
    names: &mut Names,
    line: impl FnOnce(Node<'a>) -> Option<u32>,
    report: impl Fn(&Section<'a>, Measured) -> Report,
) -> Option<GpioContact> {
    let ids = section.required("name", "\"door\"", |node| {
        let state = point_id(node.text()?, device, node)?;
        let events = format!("{state}-events");
        let Ok(events) = PointId::parse(&events) else {
            return node.wrong("check-name", &[("name", events.into())]);
        };
        if device.is_some() {
            names.point(&state, Says::Bool, node);
            names.point(&events, Says::Counter(None), node);
        }
        Some((state, events))
    });
    let line = section.required("line", "17", line);
    let active =
        section.or("active", Level::Low, |node| node.choice(&[("low", Level::Low), ("high", Level::High)], &[]));
    let bias = section.or("bias", Bias::PullUp, |node| {
        node.choice(&[("pull-up", Bias::PullUp), ("pull-down", Bias::PullDown), ("none", Bias::None)], &[])
    });
    let debounce = section.or("debounce", Duration::from_millis(20), |node| node.duration(DEBOUNCE));
    let report = report(section, Measured::Never);
    section.finish();
    let (state, events) = ids?;
    Some(GpioContact { state, events, line: line?, active, bias, debounce, report })
}

/// Reads all chips on I2C buses, and makes the built-in `communication` rules of these devices.
pub(super) fn i2c<'a>(
    sections: &[Section<'a>],
    names: &mut Names,
    report: impl Fn(&Section<'a>, Measured) -> Report,
) -> (Vec<I2cDevice>, Vec<Rule>) {
    let (mut rules, mut taken) = (Vec::new(), Vec::new());
    let mut device = |section: &Section<'a>| {
        let name = device_name(section, names, &mut rules);
        let bus = section.required("bus", "\"/dev/i2c-1\"", |node| device_file(node, "/dev/i2c-1"));
        let chip = section.required("chip", "\"sht4x\"", |node| {
            let choices = [("sht4x", I2cChip::Climate), ("sht3x", I2cChip::Climate), ("ads1115", I2cChip::Ads1115)];
            let chip = node.choice(&choices, &[])?;
            take(&mut taken, (bus.clone(), chip), "check-chip-taken", node)?;
            Some(chip)
        });
        let poll = section.or("poll", Duration::from_secs(10), |node| node.duration(MEASURE));
        let missed_polls = section.or("missed_polls", 3, |node| node.integer(1..=1_000));
        let children = section.sections("point", "[[i2c.point]]");
        let mut points = Vec::new();
        for child in &children {
            points.push(measured_point(child, name.as_ref(), chip, names, &report));
        }
        if !section.has("point") {
            match (chip, &name) {
                (Some(I2cChip::Climate), Some(name)) => points.extend(climate(section, name, names, &report)),
                (Some(I2cChip::Ads1115), _) => section.missing("check-no-inputs", &[]),
                (Some(I2cChip::Climate) | None, _) => {}
            }
        } else if children.is_empty() {
            section.wrong("point", "check-empty-list", &[("key", "point".into())]);
        }
        let has_transformer = points.iter().flatten().any(|point| point.input == I2cInput::LineCurrent);
        let transformer_a = if has_transformer {
            section.required("transformer", "100", |node| node.integer(TRANSFORMER_A))
        } else {
            if section.has("transformer") {
                section.wrong("transformer", "check-transformer", &[]);
            }
            Some(0)
        };
        section.finish();
        let points = points.into_iter().collect::<Option<_>>();
        let (name, bus, chip, transformer_a) = (name?, bus?, chip?, transformer_a?);
        Some(I2cDevice { name, bus, chip, poll, missed_polls, transformer_a, points: points? })
    };
    (sections.iter().filter_map(&mut device).collect(), rules)
}

/// Both points of a climate sensor, where none is written.
fn climate<'a>(
    section: &Section<'a>,
    device: &Segment,
    names: &mut Names,
    report: impl Fn(&Section<'a>, Measured) -> Report,
) -> Vec<Option<I2cPoint>> {
    let report = report(section, Measured::Perhaps);
    let point = |(name, input)| {
        let id = PointId::of(device, &Segment::parse(name).ok()?);
        if let Some(node) = section.get("name") {
            names.point(&id, Says::Number(None), node);
        }
        let (unit, decimals) = usual(input);
        let (unit, decimals) = (Some(Arc::from(unit)), Some(decimals));
        Some(I2cPoint { id, input, scale: 1.0, offset: 0.0, decimals, unit, range: None, report })
    };
    [("temperature", I2cInput::Temperature), ("humidity", I2cInput::Humidity)].map(point).into()
}

fn measured_point<'a>(
    section: &Section<'a>,
    device: Option<&Segment>,
    chip: Option<I2cChip>,
    names: &mut Names,
    report: impl Fn(&Section<'a>, Measured) -> Report,
) -> Option<I2cPoint> {
    let id = section.required("name", "\"level\"", |node| Some((point_id(node.text()?, device, node)?, node)));
    let climate = [("temperature", I2cInput::Temperature), ("humidity", I2cInput::Humidity)];
    let analog = [
        ("loop-1", I2cInput::Loop1),
        ("loop-2", I2cInput::Loop2),
        ("line-current", I2cInput::LineCurrent),
        ("supply", I2cInput::Supply),
    ];
    let example = if chip == Some(I2cChip::Climate) { "\"temperature\"" } else { "\"loop-1\"" };
    let input = section.required("input", example, |node| match chip {
        Some(I2cChip::Climate) => node.choice(&climate, &[]),
        Some(I2cChip::Ads1115) => node.choice(&analog, &[]),
        None => node.text().and(None),
    });
    let (scale, offset) = (section.or("scale", 1.0, scale), section.or("offset", 0.0, Node::number));
    let decimals = section.optional("decimals", |node| node.integer(0..=10));
    let unit = section.optional("unit", |node| node.line(32)).map(Arc::from);
    let range = section.optional("range", range);
    let is_scaled = section.has("scale") || section.has("offset");
    let report = report(section, Measured::Perhaps);
    section.finish();
    let (id, node) = id?;
    if device.is_some() {
        names.point(&id, Says::Number(range), node);
    }
    let input = input?;
    let usual = (!is_scaled).then(|| usual(input));
    let decimals = decimals.or(usual.map(|(_, decimals)| decimals));
    let unit = unit.or_else(|| usual.map(|(unit, _)| Arc::from(unit)));
    Some(I2cPoint { id, input, scale, offset, decimals, unit, range, report })
}

/// Unit and decimals of what is measured: no more than the sensor node's registers have, nor than the chips are good for.
const fn usual(input: I2cInput) -> (&'static str, u8) {
    match input {
        I2cInput::Temperature => ("°C", 1),
        I2cInput::Humidity => ("%", 1),
        I2cInput::Loop1 | I2cInput::Loop2 => ("mA", 3),
        I2cInput::LineCurrent => ("A", 2),
        I2cInput::Supply => ("V", 2),
    }
}

/// The name of a device, with the rule that says when it is silent.
fn device_name(section: &Section<'_>, names: &mut Names, rules: &mut Vec<Rule>) -> Option<Segment> {
    let severity = section.or("communication_severity", Severity::Medium, severity);
    section.required("name", "\"header\"", |node| {
        let name = node.segment()?;
        names.device(&name, Owner::Pins, node)?;
        let message = text::both("alarm-communication", &[("device", name.as_str().into())]);
        let rule = Rule::built_in(AlarmId::communication(&name), severity, message);
        names.point(&PointId::of(&name, &rule.name), Says::Bool, node);
        rules.push(rule);
        Some(name)
    })
}

fn point_id(name: &str, device: Option<&Segment>, node: Node<'_>) -> Option<PointId> {
    match PointId::parse(&format!("{}/{name}", device.map_or("device", Segment::as_str))) {
        Ok(_) if name == "communication" => node.wrong("check-reserved", &[("name", name.into())]),
        Ok(id) => Some(id),
        Err(_) => node.wrong("check-name", &[("name", name.into())]),
    }
}

/// Notes that something has an owner already, and where.
fn take<T: PartialEq>(taken: &mut Vec<(T, Spot)>, what: T, kind: &'static str, node: Node<'_>) -> Option<()> {
    if let Some((_, spot)) = taken.iter().find(|(other, _)| *other == what) {
        return node.wrong(kind, &[("place", node.findings.place(*spot).to_string().into())]);
    }
    taken.push((what, node.spot));
    Some(())
}

/// The path of a device file; links such as those in `/dev/gpio` may be given.
fn device_file(node: Node<'_>, example: &str) -> Option<PathBuf> {
    let text = node.line(4096)?; // PATH_MAX
    let climbs = Path::new(text).components().any(|part| part == Component::ParentDir);
    if !text.starts_with('/') || text.ends_with('/') || climbs || text.contains(char::is_whitespace) {
        return node.wrong("check-device-file", &[("value", text.into()), ("example", example.into())]);
    }
    Some(text.into())
}
