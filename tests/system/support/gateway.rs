//! The gateway as a black box: its binary, its configuration, its signals, and what systemd would hear from it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{PATIENCE, certificates::Identity, free_port, pause, until};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_gardu");

/// How long one attempt to hear something may take before the deadline is looked at again.
const GLANCE: Duration = Duration::from_millis(100);

/// A gateway with its folder; the process in it may come and go.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Where devices may publish to it, if the configuration uses `{ingest}`.
    pub(crate) ingest: u16,
    http: u16,
    dir: TempDir,
    child: Option<Child>,
    /// Where the process in it says that it is ready.
    notify: Option<UnixDatagram>,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code; none if a signal killed it.
    pub(crate) code: Option<i32>,
    /// From the signal to the end.
    pub(crate) took: Duration,
}

impl Gateway {
    /// Writes a configuration and starts nothing. `{dir}`, `{http}` and `{ingest}` in it are filled in.
    pub(crate) fn configured(toml: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder for the gateway");
        fs::create_dir(dir.path().join("run")).expect("what systemd gives it in memory");
        let gateway = Self { ingest: free_port(), http: free_port(), dir, child: None, notify: None };
        gateway.configure(toml);
        gateway
    }

    /// Replaces the configuration.
    pub(crate) fn configure(&self, toml: &str) {
        let toml = toml
            .replace("{dir}", &self.dir.path().display().to_string())
            .replace("{http}", &self.http.to_string())
            .replace("{ingest}", &self.ingest.to_string());
        fs::write(self.config(), toml).expect("the configuration");
    }

    /// Writes a file beside the configuration: `{dir}/name`.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("a file beside the configuration");
    }

    /// Writes certificate and key beside the configuration: `{dir}/gateway.crt`, `{dir}/gateway.key`.
    pub(crate) fn write_identity(&self, identity: &Identity) {
        self.write("gateway.crt", &identity.cert);
        self.write("gateway.key", &identity.key);
    }

    /// The folder of the store, as every configuration here names it.
    pub(crate) fn outbox(&self) -> PathBuf {
        self.dir.path().join("outbox")
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub(crate) fn start(&mut self) {
        self.launch(&[]);
        self.wait_until_ready();
    }

    /// Starts the daemon and waits for nothing. `under` is a program that runs it, with its arguments; it must become the
    /// daemon's process, not its parent.
    pub(crate) fn launch(&mut self, under: &[String]) {
        assert!(self.child.is_none(), "it runs already");
        let socket = self.dir.path().join("notify");
        // Left over from the process before.
        let _absent = fs::remove_file(&socket);
        self.notify = Some(UnixDatagram::bind(&socket).expect("a socket as systemd has one"));
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).expect("for whoever runs it");
        let log = File::options().create(true).append(true).open(self.log_file()).expect("its log");
        let mut words = under.iter().map(String::as_str).chain([BINARY]);
        let child = Command::new(words.next().expect("there is the binary"))
            .args(words)
            .args(["--config".as_ref(), self.config().as_os_str(), "run".as_ref()])
            .env("NOTIFY_SOCKET", &socket)
            .env("RUNTIME_DIRECTORY", self.dir.path().join("run"))
            .env_remove("WATCHDOG_USEC")
            .env("RUST_BACKTRACE", "0") // it would push everything else out of the log that a failed test shows
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|e| panic!("{under:?} {BINARY} does not start: {e}")));
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("the gateway is ours to kill");
        child.wait().expect("it ended");
    }

    /// Takes away what systemd gives it in memory: nothing can stand in for a dead card then.
    pub(crate) fn take_memory_away(&self) {
        fs::remove_dir(self.dir.path().join("run")).expect("it has not been used");
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn sigterm(&mut self) -> Ended {
        let asked = Instant::now();
        self.signal(Signal::TERM);
        loop {
            let ended = self.child.as_mut().expect("it runs").try_wait().expect("it is our child");
            if let Some(status) = ended {
                self.child = None;
                return Ended { code: status.code(), took: asked.elapsed() };
            }
            assert!(asked.elapsed() < PATIENCE, "it does not stop\n{}", self.log());
            pause();
        }
    }

    /// Waits until it ends by itself; returns its exit code.
    pub(crate) fn wait_until_ended(&mut self) -> Option<i32> {
        until("the gateway ends by itself", || !self.runs());
        let ended = self.child.take().expect("it ran").wait();
        ended.expect("it is our child").code()
    }

    /// Waits until the daemon says that it is ready.
    pub(crate) fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.hears_ready() {
                return;
            }
            assert!(self.runs(), "it ended before it was ready\n{}", self.log());
        }
        panic!("it never said READY=1\n{}", self.log());
    }

    /// Listens for a moment whether it says that it is ready, which it says once.
    pub(crate) fn hears_ready(&self) -> bool {
        let notify = self.notify.as_ref().expect("it was started");
        notify.set_read_timeout(Some(GLANCE)).expect("a socket of ours");
        let mut buffer = [0; 4096];
        let heard = notify.recv(&mut buffer);
        heard.is_ok_and(|length| buffer[..length].split(|b| *b == b'\n').any(|line| line == b"READY=1"))
    }

    /// Stops every thread of it where it is, and returns when none moves any more, in the kernel either.
    pub(crate) fn freeze(&mut self) {
        self.signal(Signal::STOP);
        until("every thread stands", || self.stands());
    }

    /// Whether no thread of it moves any more: it was stopped, or it ended.
    pub(crate) fn stands(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return true };
        threads.flatten().all(|thread| {
            // proc_pid_stat(5): the state stands behind the name, which may hold anything. T: stopped; t: stopped under a
            // tracer; Z, X: ended.
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            state.is_none_or(|state| "TtZX".contains(state))
        })
    }

    /// Lets it go on where it was stopped.
    pub(crate) fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.child.as_ref().expect("it runs")), signal).expect("nobody waited for it yet");
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Whether the process is still there.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("it is our child").is_none())
    }

    /// Runs another command of the binary on the same configuration, in English.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        command.arg("--config").arg(self.config()).args(["--lang", "en"]).args(arguments);
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).output().expect("the binary starts")
    }

    /// One number of `/metrics`, by its name and labels as they stand there; 0 if it is not there yet.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let page = self.get("/metrics").unwrap_or_default();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or(0.0)
    }

    /// Every series of one metric: its labels, as they stand there, and its number.
    pub(crate) fn series(&self, name: &str) -> BTreeMap<String, f64> {
        let page = self.get("/metrics").unwrap_or_default();
        let series = page.lines().filter_map(|line| {
            let (labels, number) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            Some((labels.to_owned(), number.trim().parse().ok()?))
        });
        series.collect()
    }

    /// Waits until a number of `/metrics` satisfies the predicate.
    pub(crate) fn wait_for_metric(&self, series: &str, wanted: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.metric(series);
            if wanted(value) {
                return;
            }
            assert!(Instant::now() < deadline, "{series} stays at {value}\n{}", self.log());
            pause();
        }
    }

    /// Whether it says that every stage makes progress: what the watchdog of systemd judges by.
    pub(crate) fn is_healthy(&self) -> bool {
        self.get("/healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    }

    /// The body of a page of the gateway.
    pub(crate) fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The last lines of its log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- log of the gateway ---\n{}", lines[lines.len().saturating_sub(60)..].join("\n"))
    }

    /// Where its configuration lies.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.path().join("gardu.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ended = child.kill();
            let _ended = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// Forgets the store, which no power cut does: the twin of every test that relies on it.
pub(crate) fn wipe(outbox: &Path) {
    fs::remove_dir_all(outbox).expect("the gateway made its store");
}

fn pid(child: &Child) -> Pid {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id")
}
