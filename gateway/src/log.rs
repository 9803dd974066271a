//! Where log lines go: to the journal when systemd runs us, else to the terminal; one event is one line, its fields in it
//! as `key=value`.
//!
//! `GARDU_LOG` chooses what is logged: `debug`, or `warn,gardu::uplink=debug` (targets and levels). Words from outside
//! (topics, device names, a broker's reasons) appear in fields: their control characters are escaped, so
//! that nobody can forge a line or steer the screen.

use std::{
    env,
    fmt::{self, Debug, Write as _},
    io::{self, IsTerminal},
    os::fd::AsFd,
    str::FromStr,
};

use tracing::{Event, Level, Subscriber, field::Field, level_filters::LevelFilter};
use tracing_subscriber::{
    Registry,
    field::MakeExt,
    filter::Targets,
    fmt::{FmtContext, MakeWriter, format},
    layer::{Layer, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// Whether lines are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colour {
    On,
    Off,
}

/// Sets up logging for the whole process; called once, by `main`, before anything is logged.
///
/// # Panics
/// When called a second time.
pub fn init() {
    let wanted = env::var("GARDU_LOG").ok();
    let (targets, misspelt) = match targets(wanted.as_deref()) {
        Ok(targets) => (targets, None),
        Err(reason) => (Targets::new().with_default(DEFAULT), Some(reason)),
    };
    if is_journal(env::var("JOURNAL_STREAM").ok().as_deref(), io::stderr()) {
        Registry::default().with(journal(io::stderr).with_filter(targets)).init();
    } else {
        let plain = env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty()) || !io::stderr().is_terminal();
        let colour = if plain { Colour::Off } else { Colour::On };
        Registry::default().with(lines(io::stderr, colour).with_filter(targets)).init();
    }
    if let Some(reason) = misspelt {
        tracing::warn!(%reason, wanted, "GARDU_LOG is not understood: write `debug`, or `warn,gardu::uplink=debug`");
    }
}

/// One line a state change is few enough to keep for ever.
const DEFAULT: LevelFilter = LevelFilter::INFO;

fn targets(wanted: Option<&str>) -> Result<Targets, <Targets as FromStr>::Err> {
    wanted.filter(|text| !text.is_empty()).map_or_else(|| Ok(Targets::new().with_default(DEFAULT)), Targets::from_str)
}

/// Whether `file` is the stream that systemd connected to the journal (`JOURNAL_STREAM`, systemd.exec(5)); it may have
/// been redirected since.
fn is_journal(stream: Option<&str>, file: impl AsFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else { return false };
    stream.is_some_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// One event, one line for the journal: it stamps the line itself, and takes the priority from its beginning.
fn journal<W>(writer: W) -> impl Layer<Registry>
where
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .fmt_fields(format::debug_fn(field).delimited(" "))
        .event_format(JournalLine)
}

/// `<6>connected input=sensors attempts=0` (sd-daemon(3)). Fields stand in the line, where `journalctl` shows them; the
/// journal's own protocol would keep them apart, and loses the unit of lines written right before the end.
struct JournalLine;

impl<S, N> format::FormatEvent<S, N> for JournalLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> format::FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        format::FormatFields::format_fields(context, writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// One event, one line.
fn lines<W>(writer: W, colour: Colour) -> impl Layer<Registry>
where
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colour == Colour::On)
        .fmt_fields(format::debug_fn(field).delimited(" "))
}

/// tracing-subscriber escapes what steers a terminal, but lets line breaks through.
fn field(writer: &mut format::Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    let mut line = OneLine(writer);
    match field.name() {
        "message" => write!(line, "{value:?}"),
        name => write!(line, "{name}={value:?}"),
    }
}

/// Escapes whatever could end the line or move the cursor.
struct OneLine<'a, 'b>(&'a mut format::Writer<'b>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            // U+2028 and U+2029 end a line for some viewers.
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
                write!(self.0, "{}", c.escape_default())?;
            } else {
                self.0.write_char(c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("screen").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What stands on the screen after `log`.
    fn shown(colour: Colour, log: impl FnOnce()) -> String {
        shown_by(|writer| lines(writer, colour), log)
    }

    fn shown_by<L: Layer<Registry> + Send + Sync>(
        layer: impl FnOnce(Box<dyn Fn() -> Screen + Send + Sync>) -> L,
        log: impl FnOnce(),
    ) -> String {
        let screen = Screen::default();
        let writer = screen.clone();
        tracing::subscriber::with_default(Registry::default().with(layer(Box::new(move || writer.clone()))), log);
        let bytes = screen.0.lock().expect("screen").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn nobody_forges_a_line_or_steers_the_screen() {
        let evil = "cam\n2026-01-01T00:00:00Z ERROR forged\r\x1b[2J\u{9b}A\u{2028}end";
        let log = || tracing::info!(topic = %evil, text = evil, shape = ?evil, "heard {evil}");
        let plain = shown(Colour::Off, log);
        assert_eq!(plain.find(char::is_control), Some(plain.len() - 1), "only the line's own end: {plain:?}");
        assert!(plain.contains(r"heard cam\n2026") && plain.contains(r"topic=cam\n2026"), "{plain}");
        let coloured = shown(Colour::On, log);
        assert_eq!(coloured.lines().count(), 1, "{coloured:?}");
        assert!(coloured.contains('\x1b') && !coloured.contains("\x1b[2J"), "{coloured:?}");
    }

    #[test]
    fn a_line_for_the_journal_says_why_and_how_bad() {
        let why = "Address already in use\n<0>forged";
        let said = shown_by(journal, || tracing::error!(reason = %why, "the daemon ends"));
        assert_eq!(said, "<3>the daemon ends reason=Address already in use\\n<0>forged\n");
        assert_eq!(shown_by(journal, || tracing::info!(session = 7, "uplink is up")), "<6>uplink is up session=7\n");
    }

    #[test]
    fn levels_are_chosen_by_target() {
        use tracing::Level;
        let wants = |text, target, level| targets(text).expect("well spelt").would_enable(target, &level);
        assert!(wants(None, "gardu", Level::INFO) && !wants(Some(""), "gardu", Level::DEBUG));
        let spec = Some("warn,gardu::uplink=debug");
        assert!(wants(spec, "gardu::uplink", Level::DEBUG) && !wants(spec, "gardu::source", Level::INFO));
        assert!(targets(Some("gardu=loud")).is_err());
    }

    #[test]
    fn a_redirected_stream_is_not_the_journal() {
        let (stream, other) = (tempfile::tempfile().expect("file"), tempfile::tempfile().expect("file"));
        let stat = rustix::fs::fstat(&stream).expect("stat");
        let name = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_journal(Some(&name), &stream));
        assert!(!is_journal(Some(&name), &other) && !is_journal(None, &stream));
    }
}
