//! Addresses of serial lines: `rtu:///dev/serial/by-id/…?baud=9600&parity=none&stop=1` for a port of the gateway's own,
//! `rtu+tcp://host:port?…` for a converter, where the same parameters say what is set in it.
//!
//! Not written means 9600 8N1, as most devices are shipped. The standard's own default is 19200 8E1 (Modbus over Serial
//! Line 1.02 §2.5.1), which such devices must be told by `?baud=19200&parity=even`.
//!
//! Nothing is opened or looked for here: a port that is not plugged in is no mistake of the configuration.

use std::path::{Component, Path};

use super::{
    Link, Parity, SerialLine,
    document::Node,
    problem::Word,
    units::{self, UrlError},
};

const DEFAULT: SerialLine = SerialLine { baud: 9_600, parity: Parity::None, stop_bits: 1 };
const PARAMETERS: [&str; 3] = ["baud", "parity", "stop"];
/// Rates that every serial port of Linux can be asked for (termios) and devices have.
const BAUDS: [(&str, u32); 16] = [
    ("300", 300),
    ("600", 600),
    ("1200", 1_200),
    ("1800", 1_800),
    ("2400", 2_400),
    ("4800", 4_800),
    ("9600", 9_600),
    ("19200", 19_200),
    ("38400", 38_400),
    ("57600", 57_600),
    ("115200", 115_200),
    ("230400", 230_400),
    ("460800", 460_800),
    ("500000", 500_000),
    ("576000", 576_000),
    ("921600", 921_600),
];
const PARITIES: [(&str, Parity); 3] = [("none", Parity::None), ("even", Parity::Even), ("odd", Parity::Odd)];
const STOPS: [(&str, u8); 2] = [("1", 1), ("2", 2)];

/// The example of a port in texts.
pub(super) const PORT_EXAMPLE: &str = "rtu:///dev/serial/by-id/usb-…?baud=9600&parity=none&stop=1";
/// The example of a converter in texts.
pub(super) const CONVERTER_EXAMPLE: &str = "rtu+tcp://10.0.0.6:4196?baud=9600&parity=none&stop=1";

/// A serial port; `rest` is what follows `rtu://`.
pub(super) fn port(node: Node<'_>, rest: &str) -> Option<Link> {
    let (path, line) = parameters(node, rest);
    let wrong = |example: String| {
        node.wrong("check-url", &[("value", format!("rtu://{rest}").into()), ("example", example.into())])
    };
    if path.contains('%') {
        return node.wrong("check-url-percent", &[("value", path.into())]);
    }
    if !path.is_empty() && !path.starts_with('/') {
        return wrong(format!("rtu:///dev/{}", rest.strip_prefix("dev/").unwrap_or(rest)));
    }
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || c == '#';
    let climbs = Path::new(path).components().any(|part| part == Component::ParentDir);
    if path.is_empty() || path.ends_with('/') || path.contains(is_odd) || climbs {
        return wrong(PORT_EXAMPLE.to_owned());
    }
    Some(Link::Rtu { path: path.into(), line: line? })
}

/// A converter: its address, with the port that is set in it, for there is no usual one.
pub(super) fn converter(node: Node<'_>, text: &str) -> Option<Link> {
    let (address, line) = parameters(node, text);
    let value = || ("value", address.into());
    let example = ("example", CONVERTER_EXAMPLE.into());
    match units::url(address, &[("rtu+tcp", (), 0)]) {
        Ok(((), _, 0)) => node.wrong("check-url-port", &[value(), example]),
        Ok(((), host, port)) => Some(Link::RtuOverTcp { host, port, line: line? }),
        Err(UrlError::Login) => node.wrong("check-url-login", &[]),
        Err(UrlError::Shape) => node.wrong("check-url", &[value(), example]),
    }
}

/// How a device's line is set when it is new, written as a table.
pub(super) fn line(node: Node<'_>) -> Option<SerialLine> {
    let section = node.section("serial")?;
    let bauds = |node: Node<'_>| {
        let baud = node.integer(0..=u32::MAX)?;
        let known = BAUDS.iter().any(|(_, known)| *known == baud);
        if known {
            return Some(baud);
        }
        let words: Vec<&str> = BAUDS.iter().map(|(word, _)| *word).collect();
        node.wrong("check-choice", &[("value", baud.to_string().into()), ("choices", Word::Verbatim(words.join(", ")))])
    };
    let line = SerialLine {
        baud: section.or("baud", DEFAULT.baud, bauds),
        parity: section.or("parity", DEFAULT.parity, |node| node.choice(&PARITIES, &[])),
        stop_bits: section.or("stop", DEFAULT.stop_bits, |node| node.integer(1..=2)),
    };
    section.finish();
    Some(line)
}

/// Splits off the parameters and reads them; none if one is wrong, after all of them have been looked at.
fn parameters<'t>(node: Node<'_>, text: &'t str) -> (&'t str, Option<SerialLine>) {
    let Some((address, query)) = text.split_once('?') else { return (text, Some(DEFAULT)) };
    let mut line = Some(DEFAULT);
    let mut seen = Vec::new();
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if seen.contains(&name) {
            line = node.wrong("check-url-parameter-twice", &[("name", name.into())]);
            continue;
        }
        seen.push(name);
        let so_far = line.unwrap_or(DEFAULT);
        let changed = match name {
            "baud" => choice(node, name, value, &BAUDS).map(|baud| SerialLine { baud, ..so_far }),
            "parity" => choice(node, name, value, &PARITIES).map(|parity| SerialLine { parity, ..so_far }),
            "stop" => choice(node, name, value, &STOPS).map(|stop_bits| SerialLine { stop_bits, ..so_far }),
            _ => unknown(node, name),
        };
        line = line.and(changed);
    }
    (address, line)
}

fn choice<T: Copy>(node: Node<'_>, name: &str, value: &str, choices: &[(&str, T)]) -> Option<T> {
    choices.iter().find(|(word, _)| *word == value).map(|(_, value)| *value).or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let args = [("name", name.into()), ("value", value.into()), ("choices", words.join(", ").into())];
        node.wrong("check-url-parameter-value", &args)
    })
}

fn unknown<T>(node: Node<'_>, name: &str) -> Option<T> {
    match node.findings.nearest(name, PARAMETERS) {
        Some(near) => node.wrong("check-url-parameter-near", &[("name", name.into()), ("near", near.into())]),
        None => node.wrong("check-url-parameter", &[("name", name.into()), ("known", PARAMETERS.join(", ").into())]),
    }
}
