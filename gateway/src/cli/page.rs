//! A page of text for people: headings on the left, aligned columns, durations and sizes in words.

use std::fmt::Write as _;

use crate::{
    alarm::{Severity, Texts},
    config::Language,
    record::Lane,
    text::{Arg, say},
};

/// Width of the left column: the longest heading of both languages and a space.
const HEADING_WIDTH: usize = 16;

/// Writes in one language.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) language: Language,
}

impl Page {
    pub(super) fn say(&self, key: &str, args: &[Arg<'_>]) -> String {
        say(self.language, key, args)
    }

    pub(super) fn row(&self, heading: &str, text: &str) -> String {
        let heading = if heading.is_empty() { String::new() } else { self.say(heading, &[]) };
        format!("  {heading:<HEADING_WIDTH$}{text}\n")
    }

    /// The two largest units: `3 jam 12 menit`.
    pub(super) fn duration(&self, seconds: u64) -> String {
        let (key, large, small) = match seconds {
            0..60 => ("status-seconds", seconds, 0),
            60..3_600 => ("status-minutes", seconds / 60, seconds % 60),
            3_600..86_400 => ("status-hours", seconds / 3_600, seconds % 3_600 / 60),
            _ => ("status-days", seconds / 86_400, seconds % 86_400 / 3_600),
        };
        self.say(key, &[("large", large.into()), ("small", small.into())])
    }

    /// A size to a tenth: `1,2 MiB`.
    pub(super) fn size(&self, bytes: u64) -> String {
        let (unit, unit_bytes) = match bytes {
            0..1_024 => return format!("{bytes} B"),
            0x400..0x10_0000 => ("KiB", 1_u64 << 10),
            0x10_0000..0x4000_0000 => ("MiB", 1 << 20),
            _ => ("GiB", 1 << 30),
        };
        let point = match self.language {
            Language::Indonesian => ',',
            Language::English => '.',
        };
        let (whole, tenth) = (bytes / unit_bytes, bytes % unit_bytes * 10 / unit_bytes);
        format!("{whole}{point}{tenth} {unit}")
    }

    pub(super) fn severity(&self, severity: Severity) -> String {
        let key = match severity {
            Severity::Critical => "status-severity-critical",
            Severity::High => "status-severity-high",
            Severity::Medium => "status-severity-medium",
            Severity::Low => "status-severity-low",
            Severity::Info => "status-severity-info",
        };
        self.say(key, &[])
    }

    pub(super) fn lane(&self, lane: Lane) -> String {
        let key = match lane {
            Lane::Alarm => "status-lane-a",
            Lane::Telemetry => "status-lane-t",
        };
        self.say(key, &[])
    }

    /// In the reader's language, else in the one there is.
    pub(super) fn message<'a>(&self, texts: &'a Texts) -> &'a str {
        let (first, second) = match self.language {
            Language::Indonesian => (&texts.id, &texts.en),
            Language::English => (&texts.en, &texts.id),
        };
        first.as_deref().or(second.as_deref()).unwrap_or_default()
    }
}

/// Rows with their columns aligned.
pub(super) fn table(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Text of others cannot steer the terminal.
pub(super) fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_to_a_tenth() {
        let page = Page { language: Language::Indonesian };
        for (bytes, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1,0 KiB"),
            (0x10_0000 - 1, "1023,9 KiB"),
            (1_258_292, "1,2 MiB"),
            (0x6000_0000, "1,5 GiB"),
        ] {
            assert_eq!(page.size(bytes), text);
        }
        assert_eq!(Page { language: Language::English }.size(1_536), "1.5 KiB");
    }
}
