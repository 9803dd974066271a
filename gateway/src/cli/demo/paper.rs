//! What the demonstration prints: one line an event, in colour on a terminal and plain in a pipe.

use std::io::{self, IsTerminal as _, Write};

use super::ledger::{Percentiles, Summary};
use crate::{
    alarm::Severity,
    config::Language,
    text::{Arg, say},
};

/// Whether lines are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// On a terminal.
    Ansi,
    /// In a pipe, or where `NO_COLOR` is set.
    Plain,
}

impl Colour {
    /// As standard output can show it (no-color.org).
    #[must_use]
    pub fn of_stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        if io::stdout().is_terminal() && !refused { Self::Ansi } else { Self::Plain }
    }
}

/// Where lines go, and in which language.
pub struct Paper {
    out: Box<dyn Write + Send>,
    colour: Colour,
    language: Language,
}

impl Paper {
    /// Writes to `out`.
    #[must_use]
    pub fn new(out: Box<dyn Write + Send>, colour: Colour, language: Language) -> Self {
        Self { out, colour, language }
    }

    /// The reader's language.
    #[must_use]
    pub const fn language(&self) -> Language {
        self.language
    }

    /// A sentence of the play.
    pub fn say(&mut self, key: &str, args: &[Arg<'_>]) {
        let text = say(self.language, key, args);
        self.line("2", &text);
    }

    /// An alarm event: time, severity, what, text, name.
    pub fn alarm(&mut self, time: &str, severity: Severity, kind: &str, message: &str, alarm: &str) {
        let key = format!("demo-severity-{}", severity.as_str());
        let (severity_word, kind_word) =
            (say(self.language, &key, &[]), say(self.language, &format!("demo-kind-{kind}"), &[]));
        let code = match severity {
            Severity::Critical => "1;31",
            Severity::High => "31",
            Severity::Medium => "33",
            Severity::Low => "36",
            Severity::Info => "0",
        };
        let text = format!("{time}  {severity_word:<8}  {kind_word:<11}  {message}  ({alarm})");
        self.line(code, &text);
    }

    /// How it went.
    pub fn summary(&mut self, summary: &Summary) {
        let number = |n: u64| n.to_string();
        for (key, count) in [
            ("demo-sum-raised", summary.raised),
            ("demo-sum-delivered", summary.delivered),
            ("demo-sum-lost", summary.lost),
            ("demo-sum-declared", summary.declared),
            ("demo-sum-waiting", summary.waiting),
            ("demo-sum-duplicates", summary.duplicates),
        ] {
            let text = say(self.language, key, &[("count", number(count).into())]);
            self.line(if key == "demo-sum-lost" && count > 0 { "1;31" } else { "1" }, &text);
        }
        for (key, Percentiles { p50_ms, p95_ms, p99_ms }) in
            [("demo-sum-field", summary.field), ("demo-sum-recorded", summary.recorded)]
        {
            let ms = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), number);
            let args: [Arg<'_>; 3] =
                [("p50", ms(p50_ms).into()), ("p95", ms(p95_ms).into()), ("p99", ms(p99_ms).into())];
            let text = say(self.language, key, &args);
            self.line("1", &text);
        }
    }

    fn line(&mut self, code: &str, text: &str) {
        // Foreign words may hold anything; a terminal must not obey them.
        let text: String = text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
        // A reader that closed its end (`| head`) has seen enough; the demonstration goes on to its exit code.
        let _closed = match self.colour {
            Colour::Ansi => writeln!(self.out, "\x1b[{code}m{text}\x1b[0m"),
            Colour::Plain => writeln!(self.out, "{text}"),
        };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was printed so far.
    #[derive(Clone, Default)]
    pub(crate) struct Printed(Arc<Mutex<Vec<u8>>>);

    impl Printed {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
        }
    }

    impl Write for Printed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_pipe_gets_no_colour_and_a_terminal_no_foreign_escapes() {
        for (colour, expected) in [
            (Colour::Plain, "12:00:00  KRITIS    TIMBUL       air \u{FFFD}[2J tinggi  (pond/level/high)\n"),
            (
                Colour::Ansi,
                "\x1b[1;31m12:00:00  KRITIS    TIMBUL       air \u{FFFD}[2J tinggi  (pond/level/high)\x1b[0m\n",
            ),
        ] {
            let printed = Printed::default();
            let mut paper = Paper::new(Box::new(printed.clone()), colour, Language::Indonesian);
            paper.alarm("12:00:00", Severity::Critical, "raised", "air \x1b[2J tinggi", "pond/level/high");
            assert_eq!(printed.text(), expected);
        }
    }
}
