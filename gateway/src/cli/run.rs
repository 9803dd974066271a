//! `gardu run`: the daemon, until SIGTERM, SIGINT or the first failure.

use std::{path::Path, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};

use super::exit;
use crate::{
    clock::Clock,
    config::{self, Language, Need},
    daemon::{self, Daemon, StartError},
    log,
    notify::Manager,
    supervise::Failure,
};

/// Runs the daemon in the foreground.
#[expect(clippy::print_stderr, reason = "problems of the configuration are for the person who started it")]
#[must_use]
pub fn run(path: &Path, language: Option<Language>) -> ExitCode {
    let config = match config::load(path, Need::All) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{}", problems.render(super::language(language.or(problems.language))));
            return exit::CONFIG.into();
        }
    };
    log::init();
    let ended = super::runtime().block_on(async {
        let manager = Manager::from_env().map_err(Ended::Manager)?;
        // Before READY: a SIGTERM right after it must already drain.
        let mut terminate = signal(SignalKind::terminate()).map_err(Ended::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Ended::Signals)?;
        loop {
            let daemon = Daemon::start(config.clone(), Clock::system(), manager.clone()).await?;
            tracing::info!(gateway = %config.gateway.id, version = env!("CARGO_PKG_VERSION"), "started");
            let stop = async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("stopping");
            };
            if daemon.run(stop).await? == daemon::Ended::Stopped {
                return Ok(());
            }
        }
    });
    match ended {
        Ok(()) => {
            tracing::info!("stopped");
            exit::OK.into()
        }
        Err(why) => {
            let why: Ended = why;
            tracing::error!(reason = %why, "the daemon ends");
            why.exit_code().into()
        }
    }
}

/// Why the daemon ended, or did not start.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("cannot speak to the service manager: {0}")]
    Manager(std::io::Error),
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl Ended {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Start(StartError::Store(_)) => exit::IO_ERROR,
            Self::Start(StartError::Bind(_)) => exit::UNAVAILABLE,
            Self::Manager(_) | Self::Signals(_) | Self::Failure(_) => exit::SOFTWARE,
        }
    }
}
