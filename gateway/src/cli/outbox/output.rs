//! Where lines go, a pipe or a new file, and how far it has come: shown on a terminal, never in a pipe.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
};

use super::ToolError;
use crate::{
    cli::page::Page,
    clock::{Clock, Now},
    config::Language,
    text::Arg,
};

/// Shown at most this often: a serial console is slow.
const SHOW_EVERY_MS: u128 = 250;

/// Takes lines.
pub(super) struct Output {
    to: Option<PathBuf>,
    writer: BufWriter<Box<dyn Write>>,
    file: Option<File>,
    /// Bytes taken.
    pub(super) bytes: u64,
}

impl Output {
    /// Standard output, or a file that must not exist yet: nothing is ever overwritten.
    pub(super) fn open(to: Option<&Path>) -> Result<Self, ToolError> {
        let Some(path) = to else {
            return Ok(Self { to: None, writer: BufWriter::new(Box::new(io::stdout())), file: None, bytes: 0 });
        };
        let failed = |e: io::Error| ToolError::CannotCreate { path: path.into(), reason: e.to_string() };
        let file = File::create_new(path).map_err(failed)?;
        let writer: Box<dyn Write> = Box::new(file.try_clone().map_err(failed)?);
        Ok(Self { to: Some(path.into()), writer: BufWriter::new(writer), file: Some(file), bytes: 0 })
    }

    /// Writes one line.
    pub(super) fn line(&mut self, text: &str) -> Result<(), ToolError> {
        self.bytes += text.len() as u64 + 1;
        let written = self.writer.write_all(text.as_bytes()).and_then(|()| self.writer.write_all(b"\n"));
        written.map_err(|e| self.failed(&e))
    }

    /// Writes what is left; a file is on its medium when this returns, so that a stick can be pulled.
    pub(super) fn finish(mut self) -> Result<u64, ToolError> {
        self.writer.flush().map_err(|e| self.failed(&e))?;
        if let Some(file) = &self.file {
            file.sync_all().map_err(|e| self.failed(&e))?;
        }
        Ok(self.bytes)
    }

    fn failed(&self, error: &io::Error) -> ToolError {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return ToolError::Closed;
        }
        let path = self.to.clone().unwrap_or_else(|| "-".into());
        ToolError::CannotWrite { path, reason: error.to_string() }
    }
}

/// Tells a person at a terminal how far it is.
pub(super) struct Progress {
    page: Page,
    clock: Clock,
    shown: Option<Now>,
    visible: bool,
}

impl Progress {
    /// Shows itself if standard error is a terminal and the lines themselves do not go to one.
    pub(super) fn new(language: Language, to: Option<&Path>) -> Self {
        let visible = io::stderr().is_terminal() && (to.is_some() || !io::stdout().is_terminal());
        Self { page: Page { language }, clock: Clock::system(), shown: None, visible }
    }

    /// Says it, unless something was said a moment ago.
    pub(super) fn show(&mut self, key: &str, args: &[Arg<'_>]) {
        if !self.visible {
            return;
        }
        let now = self.clock.now();
        if self.shown.is_none_or(|shown| now.since(shown).as_millis() >= SHOW_EVERY_MS) {
            self.shown = Some(now);
            // A terminal that went away has no reader to miss it.
            let _gone = write!(io::stderr(), "\r\x1b[K{}", self.page.say(key, args));
        }
    }
}

impl Drop for Progress {
    /// Leaves a clean line.
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _gone = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_never_overwritten() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("out.jsonl");
        let mut output = Output::open(Some(&path)).expect("new");
        output.line("{}").expect("room");
        assert_eq!(output.finish().expect("room"), 3);
        assert!(matches!(Output::open(Some(&path)), Err(ToolError::CannotCreate { .. })));
        assert_eq!(std::fs::read_to_string(path).expect("there"), "{}\n");
    }

    #[test]
    fn a_reader_that_leaves_is_no_failure() {
        let (reader, writer) = io::pipe().expect("pipe");
        drop(reader);
        let mut output = Output { to: None, writer: BufWriter::new(Box::new(writer)), file: None, bytes: 0 };
        let long = "x".repeat(100_000);
        assert!(matches!(output.line(&long), Err(ToolError::Closed)));
    }
}
