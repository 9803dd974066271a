//! Strict walking over parsed TOML: every value is asked for by name and type, every problem is noted with its place,
//! and keys nobody asked for are errors.
//!
//! A reader asks for all keys of a [`Section`], calls [`Section::finish`], and only then gives up on what was missing:
//! so one run finds everything. A value that is wrong is noted where it stands and replaced by its default; the
//! configuration is thrown away in the end, but the rest could be checked.

use std::{cell::RefCell, collections::BTreeSet, fmt::Display, ops::RangeInclusive, time::Duration};

use toml::de::{DeTable, DeValue};

use super::{
    problem::{Args, Findings, Nature, Spot, Word},
    units,
};
use crate::reading::{Segment, Value};

/// A value and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a> {
    /// The key it is the value of.
    pub(super) key: &'static str,
    pub(super) spot: Spot,
    value: &'a DeValue<'a>,
    pub(super) findings: &'a Findings<'a>,
}

/// A table whose keys are all known.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    /// Its header, as a person writes it; empty for the file's top.
    header: &'static str,
    pub(super) spot: Spot,
    table: &'a DeTable<'a>,
    /// File and table that say what is not written in this one.
    beneath: Option<(usize, &'a DeTable<'a>)>,
    known: RefCell<BTreeSet<&'static str>>,
    pub(super) findings: &'a Findings<'a>,
}

impl<'a> Section<'a> {
    /// The top of a file.
    pub(super) fn top(file: usize, table: &'a DeTable<'a>, findings: &'a Findings<'a>) -> Self {
        let spot = Spot { file, offset: Some(0) };
        Self { header: "", spot, table, beneath: None, known: RefCell::default(), findings }
    }

    /// What is written here, and for all other keys what is written in `beneath`.
    pub(super) fn over(self, beneath: &Self) -> Self {
        Self { beneath: Some((beneath.spot.file, beneath.table)), ..self }
    }

    /// Whether the key is written; it counts as known from now on.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// A text in a section below, without noting anything.
    pub(super) fn peek(&self, section: &str, key: &str) -> Option<&'a str> {
        self.table.get(section)?.get_ref().as_table()?.get(key)?.get_ref().as_str()
    }

    /// A text of this section, without noting anything.
    pub(super) fn peek_text(&self, key: &str) -> Option<&'a str> {
        self.table.get(key)?.get_ref().as_str()
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &'static str) -> Option<Node<'a>> {
        self.known.borrow_mut().insert(key);
        let layers = [Some((self.spot.file, self.table)), self.beneath];
        let (file, value) = layers.into_iter().flatten().find_map(|(file, table)| Some((file, table.get(key)?)))?;
        let spot = Spot { file, offset: Some(value.span().start) };
        Some(Node { key, spot, value: value.get_ref(), findings: self.findings })
    }

    /// A value that may be absent.
    pub(super) fn optional<T>(&self, key: &'static str, parse: impl FnOnce(Node<'a>) -> Option<T>) -> Option<T> {
        self.get(key).and_then(parse)
    }

    /// A value with a default.
    pub(super) fn or<T>(&self, key: &'static str, default: T, parse: impl FnOnce(Node<'a>) -> Option<T>) -> T {
        self.optional(key, parse).unwrap_or(default)
    }

    /// A value that must be there; `example` is what one may write after `key = `.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(Node<'a>) -> Option<T>,
    ) -> Option<T> {
        let node = self.get(key);
        if node.is_none() {
            self.missing("check-missing", &[("key", key.into()), ("example", format!("{key} = {example}").into())]);
        }
        node.and_then(parse)
    }

    /// Keys that a later version will understand: refused, never ignored.
    pub(super) fn later(&self, keys: &[&'static str]) {
        for key in keys {
            if let Some(node) = self.get(key) {
                node.wrong::<()>("check-later", &[]);
            }
        }
    }

    /// The sections of a list such as `[[modbus]]`.
    pub(super) fn sections(&self, key: &'static str, header: &'static str) -> Vec<Self> {
        let list = self.get(key).and_then(|node| match node.value {
            DeValue::Array(_) => node.list(),
            _ => node.wrong("check-sections", &[("header", header.into())]),
        });
        list.unwrap_or_default().into_iter().filter_map(|node| node.section(header)).collect()
    }

    /// Notes something wrong with a key that is written (or, if it is not, with the section).
    pub(super) fn wrong(&self, key: &'static str, kind: &'static str, args: Args<'_>) {
        match self.get(key) {
            Some(node) => node.wrong::<()>(kind, args).unwrap_or_default(),
            None => self.findings.add(self.spot, Nature::Wrong, kind, args),
        }
    }

    /// Notes that something is missing here.
    pub(super) fn missing(&self, kind: &'static str, args: Args<'_>) {
        let mut args = args.to_vec();
        args.push(("section", self.header.into()));
        self.findings.add(self.spot, Nature::Absent, kind, &args);
    }

    /// Notes every key nobody asked for.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for key in self.table.keys().filter(|key| !known.contains(key.get_ref().as_ref())) {
            let spot = Spot { file: self.spot.file, offset: Some(key.span().start) };
            let name = ("key", key.get_ref().as_ref().into());
            match self.findings.nearest(key.get_ref(), known.iter().copied()) {
                Some(near) => {
                    self.findings.add(spot, Nature::Wrong, "check-unknown-key-near", &[name, ("near", near.into())]);
                }
                None => {
                    let known: Vec<&str> = known.iter().copied().collect();
                    let known = ("known", Word::Verbatim(known.join(", ")));
                    self.findings.add(spot, Nature::Wrong, "check-unknown-key", &[name, known]);
                }
            }
        }
    }
}

impl<'a> Node<'a> {
    /// Notes what is wrong with this value.
    pub(super) fn wrong<T>(&self, kind: &'static str, args: Args<'_>) -> Option<T> {
        self.note(Nature::Wrong, kind, args)
    }

    /// Notes that what this value names is not there.
    pub(super) fn absent<T>(&self, kind: &'static str, args: Args<'_>) -> Option<T> {
        self.note(Nature::Absent, kind, args)
    }

    fn note<T>(&self, nature: Nature, kind: &'static str, args: Args<'_>) -> Option<T> {
        let mut args = args.to_vec();
        args.push(("key", self.key.into()));
        self.findings.add(self.spot, nature, kind, &args);
        None
    }

    fn wrong_type<T>(&self, want: &'static str) -> Option<T> {
        let have = match self.value {
            DeValue::String(_) => "check-type-text",
            DeValue::Integer(_) => "check-type-integer",
            DeValue::Float(_) => "check-type-number",
            DeValue::Boolean(_) => "check-type-bool",
            DeValue::Datetime(_) => "check-type-date",
            DeValue::Array(_) => "check-type-list",
            DeValue::Table(_) => "check-type-table",
        };
        self.wrong("check-type", &[("want", Word::Say(want)), ("have", Word::Say(have))])
    }

    /// Any text.
    pub(super) fn text(self) -> Option<&'a str> {
        self.value.as_str().or_else(|| self.wrong_type("check-type-text"))
    }

    /// Text of one line, not empty, at most `chars_max` long.
    pub(super) fn line(self, chars_max: usize) -> Option<&'a str> {
        let text = self.text()?;
        let fits = !text.trim().is_empty() && text.chars().count() <= chars_max && !text.contains(char::is_control);
        if fits { Some(text) } else { self.wrong("check-line", &[("max", chars_max.to_string().into())]) }
    }

    /// `true` or `false`.
    pub(super) fn boolean(self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wrong_type("check-type-bool"))
    }

    /// A whole number within a range.
    pub(super) fn integer<T>(self, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + Into<i128> + Copy + Display,
    {
        let DeValue::Integer(written) = self.value else { return self.wrong_type("check-type-integer") };
        let value = i128::from_str_radix(written.as_str(), written.radix()).ok();
        let (low, high): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        let fits = value.filter(|v| (low..=high).contains(v)).and_then(|v| T::try_from(v).ok());
        fits.or_else(|| self.outside(written.as_str(), low, high))
    }

    /// A finite number, with or without a point.
    pub(super) fn number(self) -> Option<f64> {
        let number = match self.value {
            DeValue::Integer(i) => {
                i128::from_str_radix(i.as_str(), i.radix()).ok().and_then(|i| i.to_string().parse().ok())
            }
            DeValue::Float(x) => x.as_str().parse().ok(),
            _ => return self.wrong_type("check-type-number"),
        };
        number.filter(|x: &f64| x.is_finite()).or_else(|| self.wrong("check-finite", &[]))
    }

    /// A finite number within a range.
    pub(super) fn number_in(self, range: RangeInclusive<f64>) -> Option<f64> {
        let x = self.number()?;
        if range.contains(&x) { Some(x) } else { self.outside(&x.to_string(), *range.start(), *range.end()) }
    }

    /// A finite number that is not negative.
    pub(super) fn number_from_zero(self) -> Option<f64> {
        let x = self.number()?;
        if x >= 0.0 { Some(x) } else { self.wrong("check-negative", &[("value", x.to_string().into())]) }
    }

    fn outside<T>(self, value: &str, low: impl Display, high: impl Display) -> Option<T> {
        let args = [("value", value.into()), ("low", low.to_string().into()), ("high", high.to_string().into())];
        self.wrong("check-range", &args)
    }

    /// A duration such as `"500ms"`, within a range.
    pub(super) fn duration(self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text()?;
        let Some(duration) = units::duration(text) else {
            return self.wrong("check-duration", &[("value", text.into())]);
        };
        if range.contains(&duration) {
            return Some(duration);
        }
        self.outside(text, units::show_duration(*range.start()), units::show_duration(*range.end()))
    }

    /// A size a day such as `"2GiB/day"`, not zero, in bytes.
    pub(super) fn size_a_day(self) -> Option<u64> {
        let text = self.text()?;
        let bytes = text.strip_suffix("/day").and_then(units::size).filter(|bytes| *bytes > 0);
        bytes.or_else(|| self.wrong("check-size-a-day", &[("value", text.into())]))
    }

    /// A size such as `"256MiB"` in bytes, within a range.
    pub(super) fn size(self, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text()?;
        let Some(bytes) = units::size(text) else {
            return self.wrong("check-size", &[("value", text.into())]);
        };
        if range.contains(&bytes) {
            return Some(bytes);
        }
        self.outside(text, units::show_size(*range.start()), units::show_size(*range.end()))
    }

    /// A name of one segment.
    pub(super) fn segment(self) -> Option<Segment> {
        let text = self.text()?;
        Segment::parse(text).ok().or_else(|| self.wrong("check-name", &[("name", text.into())]))
    }

    /// One of some words; `later` are words that a later version will understand.
    pub(super) fn choice<T: Copy>(self, choices: &[(&'static str, T)], later: &[&str]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        if later.contains(&text) {
            return self.wrong("check-later-value", &[("value", text.into())]);
        }
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.wrong("check-choice", &[("value", text.into()), ("choices", words.join(", ").into())])
    }

    /// The values of a list.
    pub(super) fn list(self) -> Option<Vec<Self>> {
        let Some(items) = self.value.as_array() else { return self.wrong_type("check-type-list") };
        let spot = |start| Spot { file: self.spot.file, offset: Some(start) };
        Some(items.iter().map(|item| Node { spot: spot(item.span().start), value: item.get_ref(), ..self }).collect())
    }

    /// A table.
    pub(super) fn section(self, header: &'static str) -> Option<Section<'a>> {
        let Some(table) = self.value.as_table() else { return self.wrong_type("check-type-table") };
        let findings = self.findings;
        Some(Section { header, spot: self.spot, table, beneath: None, known: RefCell::default(), findings })
    }

    /// The entries of a table whose keys are free.
    pub(super) fn entries(self) -> Option<Vec<(&'a str, Self)>> {
        let Some(table) = self.value.as_table() else { return self.wrong_type("check-type-table") };
        let spot = |start| Spot { file: self.spot.file, offset: Some(start) };
        let node = |value: &'a toml::Spanned<DeValue<'a>>| Node {
            spot: spot(value.span().start),
            value: value.get_ref(),
            ..self
        };
        Some(table.iter().map(|(key, value)| (key.get_ref().as_ref(), node(value))).collect())
    }

    /// Whether this is one of some words; notes nothing.
    pub(super) fn is_one_of(self, words: &[&str]) -> bool {
        self.value.as_str().is_some_and(|text| words.contains(&text))
    }

    /// Whether this is a table, for keys that take a text or a table.
    pub(super) fn is_table(self) -> bool {
        self.value.is_table()
    }

    /// `true`, `false`, a number or a text.
    pub(super) fn value(self) -> Option<Value> {
        match self.value {
            DeValue::Boolean(b) => Some(Value::Bool(*b)),
            DeValue::String(text) => Some(Value::Text(text.as_ref().into())),
            DeValue::Integer(i) => i128::from_str_radix(i.as_str(), i.radix())
                .ok()
                .map(Value::Integer)
                .or_else(|| self.wrong("check-finite", &[])),
            DeValue::Float(_) => self.number().and_then(Value::float),
            DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => self.wrong_type("check-type-scalar"),
        }
    }
}
