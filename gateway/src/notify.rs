//! Talks to the service manager (systemd's `sd_notify(3)`): started, stopping, still alive.
//!
//! The watchdog proves progress: `WATCHDOG=1` is sent only while every stage marks its [`Beat`](crate::supervise::Beat),
//! so a frozen one gets the daemon killed and started again. An unplugged network or a dead bus is no reason: stages
//! go on marking their beats while they wait.

use std::{
    env, fmt, io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::Duration,
};

use tokio::time::MissedTickBehavior;

use crate::supervise::{BEAT_EVERY, Pulse, Shutdown, TaskResult};

/// The service manager, if one started us and listens.
#[derive(Debug, Clone, Default)]
pub struct Manager(Option<Arc<Listening>>);

#[derive(Debug)]
struct Listening {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The manager named by `NOTIFY_SOCKET`; without one, every call does nothing.
    pub fn from_env() -> io::Result<Self> {
        let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let number = |key| env::var(key).ok().and_then(|text| text.parse::<u64>().ok());
        // WATCHDOG_PID names the process that is watched; our child must not answer for us.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros);
        Self::listening(name.as_encoded_bytes(), watchdog)
    }

    fn listening(name: &[u8], watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => {
                SocketAddr::from_pathname(std::path::Path::new(std::str::from_utf8(path).map_err(io::Error::other)?))?
            }
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must never hold up a task; systemd's own queue holds thousands of messages.
        socket.set_nonblocking(true)?;
        Ok(Self(Some(Arc::new(Listening { socket, address, watchdog }))))
    }

    /// Everything runs: units ordered after us may start.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        // A line break would begin another assignment.
        self.send(&format!("STATUS={}", text.replace(char::is_control, " ")));
    }

    /// The drain has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        let Some(manager) = &self.0 else { return };
        if let Err(reason) = manager.socket.send_to_addr(state.as_bytes(), &manager.address) {
            tracing::warn!(%reason, state, "the service manager does not take a notification");
        }
    }
}

/// Watches every stage, and tells the manager that we live while all of them do.
#[derive(Debug)]
pub struct WatchdogTask {
    /// Whom to tell.
    pub manager: Manager,
    /// Whom to watch.
    pub pulse: Pulse,
    /// How we are, in a line for `systemctl status`; told when it changes.
    pub summary: Summary,
}

/// Says how we are; an empty line says nothing.
pub struct Summary(pub Box<dyn Fn() -> String + Send + Sync>);

impl fmt::Debug for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Summary").field(&(self.0)()).finish()
    }
}

impl WatchdogTask {
    /// Runs until shutdown. Without a manager it still logs a stage that stalls.
    pub async fn run(self, shutdown: Shutdown) -> TaskResult {
        // Half the manager's limit, as sd_watchdog_enabled(3) advises, so that one late turn is forgiven.
        let asked = self.manager.0.as_ref().and_then(|manager| manager.watchdog);
        let mut tick = tokio::time::interval(asked.map_or(BEAT_EVERY, |limit| limit / 2));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut stuck, mut said) = (None, String::new());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            let summary = (self.summary.0)();
            if summary != said {
                self.manager.status(&summary);
                said = summary;
            }
            let stalled = self.pulse.stalled();
            match (&stuck, &stalled) {
                (known, Some((stage, idle))) if known.as_ref() != Some(stage) => {
                    tracing::error!(%stage, idle_s = idle.as_secs(), "a stage makes no progress");
                }
                (Some(stage), None) => tracing::warn!(%stage, "the stage makes progress again"),
                (_, _) => {}
            }
            if asked.is_some() && stalled.is_none() {
                self.manager.send("WATCHDOG=1");
            }
            stuck = stalled.map(|(stage, _)| stage);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test runs the task beside itself")]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, Now},
        supervise::STALLED_AFTER,
    };

    /// What has arrived, oldest first.
    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 256];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned()))
            .collect()
    }

    fn listener(address: &SocketAddr) -> UnixDatagram {
        let socket = UnixDatagram::bind_addr(address).expect("bind");
        socket.set_nonblocking(true).expect("nonblocking");
        socket
    }

    fn at(mono_ms: u64) -> Now {
        Now { mono_ms, wall_ms: 0, trusted: true }
    }

    #[test]
    fn the_manager_hears_over_a_path_and_over_an_abstract_name() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notify");
        let by_path = listener(&SocketAddr::from_pathname(&path).expect("address"));
        let name = format!("gardu-notify-test-{}", std::process::id());
        let by_name = listener(&SocketAddr::from_abstract_name(&name).expect("address"));
        for (socket, name) in [(by_path, path.to_str().expect("text").to_owned()), (by_name, format!("@{name}"))] {
            let manager = Manager::listening(name.as_bytes(), None).expect(&name);
            manager.ready();
            manager.status("Terhubung\nREADY=1");
            manager.stopping();
            assert_eq!(heard(&socket), ["READY=1", "STATUS=Terhubung READY=1", "STOPPING=1"], "{name}");
        }
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        Manager::default().ready();
        Manager::listening(b"/nowhere/at/all", None).expect("an address").ready();
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_only_while_every_stage_makes_progress() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("notify");
        let socket = listener(&SocketAddr::from_pathname(&path).expect("address"));
        let clock = Clock::manual("boot", at(0));
        let pulse = Pulse::new(clock.clone());
        let (field, engine) = (pulse.stage("field"), pulse.stage("engine"));
        let manager = Manager::listening(path.as_os_str().as_encoded_bytes(), Some(Duration::from_secs(30)));
        let shutdown = Shutdown::new();
        let task = WatchdogTask { manager: manager.expect("manager"), pulse, summary: Summary(Box::new(String::new)) };
        let task = tokio::spawn(task.run(shutdown.clone()));
        // Four intervals of half the manager's limit, in the runtime's paused time.
        let minute = Duration::from_secs(60);

        tokio::time::sleep(minute).await;
        let fed = heard(&socket);
        assert!(fed.len() >= 4 && fed.iter().all(|state| state == "WATCHDOG=1"), "{fed:?}");

        clock.set(at(u64::try_from(STALLED_AFTER.as_millis()).expect("small")));
        engine.mark();
        tokio::time::sleep(minute).await;
        assert_eq!(heard(&socket), [""; 0], "the field stands still");

        field.mark();
        tokio::time::sleep(minute).await;
        assert!(heard(&socket).len() >= 4, "all go on");

        shutdown.cancel();
        task.await.expect("no panic").expect("no error");
    }
}
