//! `[[modbus]]`: buses, devices and points.
//!
//! A `[[modbus]]` without `url` adds devices to the bus of its name, wherever that one is written.
//!
//! A device has the points of its `profile` except those that `skip` names, and its own. One of its own that has the name
//! of one of the profile takes its place if it has a `register`; without, it changes only the keys that it writes.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use super::{
    Bus, Device, Link, Order, Point, Report, Table, Type, center,
    document::{Node, Section},
    names::{Names, Owner, Says, clash},
    problem::Spot,
    profile::{Profile, Profiles},
    read::Measured,
    serial,
};
use crate::{
    alarm::{AlarmId, Severity, rule::Rule},
    reading::{PointId, Segment},
    text,
};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// 10 ms is faster than any serial device; a point polled less than once a day is not watched.
const POLL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(86_400);
/// A device that needs more than a minute for one answer blocks its bus.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
/// Points of a configuration with profiles, in which a short file can ask for any number: ten times those of a large park,
/// each of which takes some hundred bytes.
pub(super) const POINTS_MAX: usize = 20_000;
/// Sentinels of one point; real devices have one or two.
const INVALID_MAX: usize = 16;
/// Of every kind of wire; stands in quotation marks.
const URL_EXAMPLES: &str = r#"tcp://10.0.0.5:502", "rtu:///dev/ttyS0?baud=9600", "rtu+tcp://10.0.0.6:4196"#;
/// Registers in one read (Modbus Application Protocol 1.1b3 §6.3): a text must come in one piece.
const TEXT_REGISTERS_MAX: u16 = 125;

/// A bus while its devices are gathered.
struct Draft {
    name: Option<Segment>,
    spot: Spot,
    link: Option<Link>,
    timeout: Duration,
    devices: Vec<Device>,
}

/// Reads all buses, and makes the built-in `communication` rules of their devices.
pub(super) fn buses<'a>(
    sections: &[Section<'a>],
    profiles: &Profiles<'a>,
    names: &mut Names,
    report: impl Fn(&Section<'a>, Measured) -> Report,
) -> (Vec<Bus>, Vec<Rule>) {
    let mut drafts: Vec<Draft> = Vec::new();
    for section in sections.iter().filter(|section| section.has("url")) {
        let draft = bus(section, &drafts);
        drafts.push(draft);
    }
    let mut rules = Vec::new();
    for section in sections {
        let name = section.required("name", "\"cabinet\"", Node::segment);
        let home = if section.has("url") {
            drafts.iter().position(|draft| draft.spot == section.spot)
        } else {
            extended(section, name.as_ref(), &drafts)
        };
        let children = section.sections("device", "[[modbus.device]]");
        if children.is_empty() && !section.has("device") {
            section.missing("check-no-devices", &[]);
        }
        section.finish();
        let mut home = home.and_then(|home| drafts.get_mut(home));
        let link = home.as_ref().and_then(|draft| draft.link.clone());
        let device = |child| device(child, link.as_ref(), profiles, names, &mut rules, &report);
        let read = children.iter().filter_map(device).collect::<Vec<_>>();
        if let Some(draft) = &mut home {
            draft.devices.extend(read);
        }
    }
    let finished = |d: Draft| Some(Bus { name: d.name?, link: d.link?, timeout: d.timeout, devices: d.devices });
    (drafts.into_iter().filter_map(finished).collect(), rules)
}

/// A bus without its devices. One wire has one owner: neither name nor address may be taken.
fn bus(section: &Section<'_>, others: &[Draft]) -> Draft {
    let name = section.get("name").and_then(|node| {
        let name = node.segment()?;
        if let Some(other) = others.iter().find(|other| other.name.as_ref() == Some(&name)) {
            clash(name.as_str(), other.spot, node);
        }
        Some(name)
    });
    let link = section.optional("url", |node| {
        let link = link(node)?;
        if let Some(other) = others.iter().find(|other| other.link.as_ref().is_some_and(|other| is_same(other, &link)))
        {
            let place = node.findings.place(other.spot).to_string();
            node.wrong::<()>("check-one-wire", &[("place", place.into())]);
        }
        Some(link)
    });
    let timeout = section.or("timeout", 500 * MILLISECOND, |node| node.duration(TIMEOUT));
    Draft { name, spot: section.spot, link, timeout, devices: Vec::new() }
}

/// `tcp://`, `rtu://` or `rtu+tcp://`.
fn link(node: Node<'_>) -> Option<Link> {
    let text = node.text()?;
    match text.split_once("://") {
        Some(("rtu", rest)) => serial::port(node, rest),
        Some(("rtu+tcp", _)) => serial::converter(node, text),
        _ => {
            let example = if text.starts_with("tcp://") { "tcp://10.0.0.5:502" } else { URL_EXAMPLES };
            let ((), host, port) = center::url(node, &[("tcp", (), 502)], example)?;
            Some(Link::Tcp { host, port })
        }
    }
}

/// Whether two links are one wire, however it is spoken on it.
fn is_same(a: &Link, b: &Link) -> bool {
    match (a, b) {
        (Link::Rtu { path: a, .. }, Link::Rtu { path: b, .. }) => a == b,
        (
            Link::Tcp { host: a, port: a_port } | Link::RtuOverTcp { host: a, port: a_port, .. },
            Link::Tcp { host: b, port: b_port } | Link::RtuOverTcp { host: b, port: b_port, .. },
        ) => (a, a_port) == (b, b_port),
        (Link::Rtu { .. }, _) | (_, Link::Rtu { .. }) => false,
    }
}

/// The bus that a `[[modbus]]` without `url` extends.
fn extended(section: &Section<'_>, name: Option<&Segment>, drafts: &[Draft]) -> Option<usize> {
    let name = name?;
    let home = drafts.iter().position(|draft| draft.name.as_ref() == Some(name));
    match home {
        Some(home) if section.has("timeout") => {
            let place = section.findings.place(drafts[home].spot).to_string();
            section.wrong("timeout", "check-extends", &[("name", name.as_str().into()), ("place", place.into())]);
        }
        Some(_) => {}
        None => {
            let known = drafts.iter().filter_map(|draft| draft.name.as_ref()).map(Segment::as_str);
            let near = section.findings.nearest(name.as_str(), known).map(str::to_owned);
            let named = ("name", name.as_str().into());
            match near {
                Some(near) => section.missing("check-bus-near", &[named, ("near", near.into())]),
                None => section.missing("check-bus", &[named]),
            }
        }
    }
    home
}

fn device<'a>(
    section: &Section<'a>,
    link: Option<&Link>,
    profiles: &Profiles<'a>,
    names: &mut Names,
    rules: &mut Vec<Rule>,
    report: &impl Fn(&Section<'a>, Measured) -> Report,
) -> Option<Device> {
    let name = section.required("name", "\"panel\"", |node| {
        let name = node.segment()?;
        names.device(&name, Owner::Modbus, node)?;
        Some((name, node))
    });
    // 1 to 247 on a wire, where 0 is everybody and 248 to 255 are reserved (Modbus over Serial Line 1.02 §2.2); 0 and
    // 255 also mean the TCP device itself.
    let unit = section.required("unit", "1", |node| {
        let number = node.integer(i64::MIN..=i64::MAX)?;
        let kind = match link {
            Some(Link::Rtu { .. } | Link::RtuOverTcp { .. }) => "check-unit-serial",
            Some(Link::Tcp { .. }) | None => "check-unit",
        };
        match u8::try_from(number) {
            Ok(unit @ 1..=247) => Some(unit),
            Ok(unit @ (0 | 255)) if kind == "check-unit" => Some(unit),
            Ok(_) | Err(_) => node.wrong(kind, &[("value", number.to_string().into())]),
        }
    });
    let poll = section.or("poll", SECOND, |node| node.duration(POLL));
    let missed_polls = section.or("missed_polls", 3, |node| node.integer(1..=1_000));
    let severity = section.or("communication_severity", Severity::Medium, severity);
    if let Some((name, node)) = &name {
        let message = text::both("alarm-communication", &[("device", name.as_str().into())]);
        let rule = Rule::built_in(AlarmId::communication(name), severity, message);
        names.point(&PointId::of(name, &rule.name), Says::Bool, *node);
        rules.push(rule);
    }
    let name = name.map(|(name, _)| name);
    let profile = section.get("profile").and_then(|node| profiles.named(node));
    let mut children = children(section, profile);
    section.finish();
    let mut is_unread = profile.is_none() && section.has("profile");
    if profile.is_some() && names.point_count() + children.len() > POINTS_MAX {
        section.wrong("profile", "check-points", &[("max", POINTS_MAX.to_string().into())]);
        children.clear();
        is_unread = true;
    }
    if let (Some(name), true) = (&name, is_unread) {
        names.unread(name);
    }
    let points = children.iter().filter_map(|child| point(child, name.as_ref(), names, report)).collect();
    let profile = profile.and_then(|profile| profile.about.clone());
    Some(Device { name: name?, unit: unit?, poll, missed_polls, profile, points })
}

/// The points of a device: its own, and those of its profile.
fn children<'a>(section: &Section<'a>, profile: Option<&Profile<'a>>) -> Vec<Section<'a>> {
    let own = section.sections("point", "[[modbus.device.point]]");
    match profile {
        Some(profile) => return profile.points_of(section, own),
        None if section.has("profile") => _ = section.has("skip"), // what it means, only the profile knows
        None if section.has("skip") => section.wrong("skip", "check-skip-alone", &[]),
        None if own.is_empty() && !section.has("point") => section.missing("check-no-points", &[]),
        None => {}
    }
    own
}

/// One of the five severities.
pub(super) fn severity(node: Node<'_>) -> Option<Severity> {
    node.choice(&Severity::ALL.map(|severity| (severity.as_str(), severity)), &[])
}

fn point<'a>(
    section: &Section<'a>,
    device: Option<&Segment>,
    names: &mut Names,
    report: &impl Fn(&Section<'a>, Measured) -> Report,
) -> Option<Point> {
    let id = section.required("name", "\"door\"", |node| {
        let name = node.text()?;
        let full = format!("{}/{name}", device.map_or("device", Segment::as_str));
        match PointId::parse(&full) {
            Ok(_) if name == "communication" => node.wrong("check-reserved", &[("name", name.into())]),
            Ok(id) => Some((id, node)),
            Err(_) => node.wrong("check-name", &[("name", name.into())]),
        }
    });
    let register = section.required("register", "\"holding:0\"", register);
    let is_bit = matches!(register, Some((Table::Coil | Table::Discrete, _)));
    let bit = section.optional("bit", |node| match node.integer(0..=15)? {
        _ if is_bit => node.wrong("check-bit", &[]),
        bit => Some(bit),
    });
    let type_ = type_(section, is_bit || bit.is_some());
    check_type(section, type_, is_bit, bit);
    if let (Some((_, address)), Some(width)) = (register, type_.map(Type::width))
        && u32::from(address) + u32::from(width) > 65_536
    {
        section.wrong("register", "check-register-end", &[("width", width.to_string().into())]);
    }
    let order = section.or("order", Order::Abcd, |node| {
        let choices = [("abcd", Order::Abcd), ("cdab", Order::Cdab), ("badc", Order::Badc), ("dcba", Order::Dcba)];
        let order = node.choice(&choices, &[])?;
        if type_.is_some_and(|t| t.width() < 2) { node.wrong("check-order", &[]) } else { Some(order) }
    });
    let numbers = numbers(section);
    let unit = section.optional("unit", |node| node.line(32)).map(Arc::from);
    if section.or("writable", false, Node::boolean) {
        section.later(&["writable"]);
    }
    let measured = match type_ {
        Some(Type::Bool | Type::Text { .. }) => Measured::Never,
        _ => Measured::Perhaps,
    };
    let report = report(section, measured);
    section.finish();
    let (id, node) = id?;
    let says = type_.map_or(Says::Anything, |type_| says(type_, &numbers));
    if device.is_some() {
        names.point(&id, says, node);
    }
    let (table, address) = register?;
    let Numbers { scale, offset, decimals, invalid, range } = numbers;
    Some(Point { id, table, address, type_: type_?, order, bit, scale, offset, decimals, unit, invalid, range, report })
}

/// `coil:N`, `discrete:N`, `input:N` or `holding:N`, N from 0 as on the wire, decimal or hexadecimal.
fn register(node: Node<'_>) -> Option<(Table, u16)> {
    let text = node.text()?;
    let parse = || {
        let (table, address) = text.split_once(':')?;
        let table = match table {
            "coil" => Table::Coil,
            "discrete" => Table::Discrete,
            "input" => Table::Input,
            "holding" => Table::Holding,
            _ => return None,
        };
        let (digits, radix) = address.strip_prefix("0x").map_or((address, 10), |digits| (digits, 16));
        let only_digits = digits.chars().all(|c| c.is_digit(radix)); // the parser would take a sign
        only_digits.then(|| u16::from_str_radix(digits, radix).ok()).flatten().map(|address| (table, address))
    };
    parse().or_else(|| node.wrong("check-register", &[("value", text.into())]))
}

fn type_(section: &Section<'_>, is_bool: bool) -> Option<Type> {
    let length = section.get("length");
    let default = if is_bool { Type::Bool } else { Type::U16 };
    let Some(node) = section.get("type") else {
        return match length {
            Some(node) => node.wrong("check-length", &[]),
            None => Some(default),
        };
    };
    let choices = [
        ("bool", Type::Bool),
        ("u16", Type::U16),
        ("i16", Type::I16),
        ("u32", Type::U32),
        ("i32", Type::I32),
        ("u64", Type::U64),
        ("i64", Type::I64),
        ("f32", Type::F32),
        ("f64", Type::F64),
        ("string", Type::Text { registers: 1 }),
    ];
    match (node.choice(&choices, &[])?, length) {
        (Type::Text { .. }, _) => {
            let length = |node: Node<'_>| node.integer(1..=TEXT_REGISTERS_MAX);
            section.required("length", "8", length).map(|registers| Type::Text { registers })
        }
        (type_, None) => Some(type_),
        (_, Some(length)) => length.wrong("check-length", &[]),
    }
}

/// Notes keys that mean nothing for this type: ignoring them would hide a mistake.
fn check_type(section: &Section<'_>, type_: Option<Type>, is_bit: bool, bit: Option<u8>) {
    let Some(type_) = type_ else { return };
    if is_bit && type_ != Type::Bool {
        section.wrong("type", "check-bits-are-bool", &[]);
    } else if bit.is_some() && type_ != Type::Bool {
        section.wrong("type", "check-bit-type", &[]);
    }
    if matches!(type_, Type::Bool | Type::Text { .. }) {
        for key in ["scale", "offset", "decimals", "invalid", "range"] {
            if section.has(key) {
                section.wrong(key, "check-only-numbers", &[("name", key.into())]);
            }
        }
    }
}

/// What is done to a raw number.
struct Numbers {
    scale: f64,
    offset: f64,
    decimals: Option<u8>,
    invalid: Vec<f64>,
    range: Option<(f64, f64)>,
}

fn numbers(section: &Section<'_>) -> Numbers {
    Numbers {
        scale: section.or("scale", 1.0, scale),
        offset: section.or("offset", 0.0, Node::number),
        decimals: section.optional("decimals", |node| node.integer(0..=10)),
        invalid: section.or("invalid", Vec::new(), |node| {
            let items = node.list()?;
            if items.len() > INVALID_MAX {
                return node.wrong("check-too-many", &[("max", INVALID_MAX.to_string().into())]);
            }
            Some(items.into_iter().filter_map(Node::number).collect())
        }),
        range: section.optional("range", range),
    }
}

/// A factor.
pub(super) fn scale(node: Node<'_>) -> Option<f64> {
    match node.number()? {
        0.0 => node.wrong("check-scale", &[]),
        scale => Some(scale),
    }
}

/// The lowest and the highest plausible value.
pub(super) fn range(node: Node<'_>) -> Option<(f64, f64)> {
    match node.list()?[..] {
        [low, high] => match (low.number(), high.number()) {
            (Some(low), Some(high)) if low < high => Some((low, high)),
            (Some(_), Some(_)) => node.wrong("check-range-order", &[]),
            (None, _) | (_, None) => None,
        },
        _ => node.wrong("check-range-two", &[]),
    }
}

fn says(type_: Type, numbers: &Numbers) -> Says {
    let plain = numbers.scale.to_bits() == 1.0f64.to_bits() && numbers.offset == 0.0;
    match type_ {
        Type::Bool => Says::Bool,
        Type::Text { .. } => Says::Text,
        Type::U16 | Type::U32 | Type::U64 if plain => Says::Counter(numbers.range),
        Type::U16 | Type::U32 | Type::U64 | Type::I16 | Type::I32 | Type::I64 | Type::F32 | Type::F64 => {
            Says::Number(numbers.range)
        }
    }
}
