//! The command line: one file a command, arguments in, text and exit code out.

mod allocator;
pub mod arguments;
pub mod ask;
pub mod check;
pub mod demo;
pub mod exit;
pub mod outbox;
mod page;
pub mod run;
pub mod status;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use self::arguments::{Arguments, What};
use crate::{
    clock::Clock,
    config::{self, Language, Need},
    daemon::Daemon,
    notify::Manager,
    text,
};

/// Who reads the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A person.
    Text,
    /// A program.
    Json,
}

/// Carries out a command line.
#[must_use]
pub fn main(args: &[OsString]) -> ExitCode {
    let Arguments { command, config, language: asked } = match arguments::parse(args, language(None)) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are errors of this kind too; a closed pipe is nobody's fault.
            let _closed = error.print();
            return if error.use_stderr() { exit::USAGE.into() } else { exit::OK.into() };
        }
    };
    match command {
        What::Run => {
            allocator::set(args);
            run::run(&config, asked)
        }
        What::Check(form) => check::run(&config, asked, form).into(),
        What::Status(form) => runtime().block_on(status::run(&config, asked, form)).into(),
        What::Outbox(task) => outbox::run(&config, asked, task).into(),
        What::Demo(length) => demo(demo::Options { length, language: language(asked) }),
    }
}

/// Plays the park around a real daemon; nothing may be lost.
#[expect(clippy::print_stderr, reason = "the edge where text leaves the program")]
fn demo(options: demo::Options) -> ExitCode {
    let daemon = async |path: PathBuf, clock, stop| {
        let config = config::load(&path, Need::All).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        Daemon::start(config, clock, Manager::default()).await?.run(stop).await?;
        Ok(())
    };
    match runtime().block_on(demo::run(options, Clock::system(), daemon)) {
        Ok(summary) if summary.lost == 0 => exit::OK.into(),
        Ok(_) => exit::SOFTWARE.into(),
        Err(why) => {
            eprintln!("{}", text::say(options.language, "daemon-stopped", &[("reason", format!("{why:#}").into())]));
            exit::SOFTWARE.into()
        }
    }
}

/// The language to speak: the one asked for, else the locale's, else Indonesian.
fn language(asked: Option<Language>) -> Language {
    asked.or_else(|| Language::of_locale(|name| std::env::var(name).ok())).unwrap_or_default()
}

/// Two workers: one may wait for a slow card or a name server while the other goes on, and a Pi Zero 2 W keeps its
/// memory. Two store threads and a few name look-ups are all that blocks.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .expect("the system lets a process have two threads and an event queue")
}
