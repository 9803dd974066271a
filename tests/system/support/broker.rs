//! A mosquitto of one test's own: own port, configuration, users, rights and memory.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{
    PATIENCE,
    certificates::{ALWAYS, Authority, Identity},
    free_port,
    mqtt::{Connection, Version},
    pause,
};

/// Who may connect and what they may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone, anything.
    Open,
    /// `center` and `gateway` with passwords; what they may do is in the ACL file.
    Users,
    /// The gateway by certificate, over TLS, with the files that ship for the command center's broker; whoever else by
    /// password, over plain TCP.
    Certificates,
}

/// What ships for the command center's broker.
const SHIPPED: (&str, &str) =
    (include_str!("../../../config/mosquitto/mosquitto.conf"), include_str!("../../../config/mosquitto/acl"));

/// User and password of the command center where the broker wants one.
pub(crate) const CENTER: (&str, &str) = ("center", "pusat-2026");
/// User and password of the gateway where the broker wants one.
pub(crate) const GATEWAY: (&str, &str) = ("gateway", "gardu-2026");

/// A running mosquitto; it ends with this value.
#[derive(Debug)]
pub(crate) struct Broker {
    /// Where it listens, also after a restart.
    pub(crate) port: u16,
    /// Where it listens with TLS, if it has certificates.
    pub(crate) tls_port: u16,
    /// Who vouches for it and for its clients.
    pub(crate) authority: Authority,
    dir: TempDir,
    child: Child,
}

impl Broker {
    /// Starts one that lets everybody do everything.
    pub(crate) fn start() -> Self {
        Self::start_with(Access::Open)
    }

    /// Starts one and waits until it answers.
    pub(crate) fn start_with(access: Access) -> Self {
        Self::configured(access, "")
    }

    /// Starts an open one whose log tells of every packet.
    pub(crate) fn start_talkative() -> Self {
        Self::configured(Access::Open, "log_type all\n")
    }

    /// Starts an open one that takes no larger packet, and says so to MQTT 5 clients.
    pub(crate) fn start_narrow(packet_bytes_max: u32) -> Self {
        Self::configured(Access::Open, &format!("max_packet_size {packet_bytes_max}\n"))
    }

    fn configured(access: Access, more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder for the broker");
        let (port, tls_port) = (free_port(), free_port());
        let authority = Authority::new("Gardu CA");
        let here = dir.path().display();
        // `user root` only matters to root: it keeps the private folder readable.
        let mut lines = match access {
            Access::Certificates => shipped(&dir.path().display().to_string(), tls_port),
            // In-flight without limit: what was PUBACKed must be on its way to the center, since a killed broker
            // forgets its queue; that has a limit, as with none mosquitto 2.0 ends the connection after each publish it
            // refuses.
            Access::Open | Access::Users => format!(
                "max_inflight_messages 0\nmax_queued_messages 100000\npersistence true\npersistence_location {here}/\n"
            ),
        };
        lines.push_str(&format!(
            "listener {port} 127.0.0.1\nuser root\nset_tcp_nodelay true\nlog_dest file {here}/log\n{more}"
        ));
        lines.push_str(&match access {
            Access::Open => "allow_anonymous true\n".to_owned(),
            Access::Users => format!("allow_anonymous false\npassword_file {here}/passwords\nacl_file {here}/acl\n"),
            Access::Certificates => format!("password_file {here}/passwords\n"),
        });
        fs::write(dir.path().join("mosquitto.conf"), lines).expect("the broker's configuration");
        fs::write(dir.path().join("passwords"), "").expect("its users");
        write_password(dir.path(), CENTER);
        write_password(dir.path(), GATEWAY);
        match access {
            Access::Open | Access::Users => write_rights(dir.path(), &[]),
            Access::Certificates => fs::write(dir.path().join("acl"), SHIPPED.1).expect("the broker's rights"),
        }
        fs::write(dir.path().join("ca.crt"), authority.cert()).expect("its authority");
        write_identity(dir.path(), &authority.server(&["127.0.0.1", "localhost"], ALWAYS));
        let child = launch(dir.path());
        let mut broker = Self { port, tls_port, authority, dir, child };
        broker.wait_until_it_answers();
        broker
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().expect("the broker is ours to kill");
        self.child.wait().expect("the broker ended");
    }

    /// Asks it to stop, as a restart of its service does, and waits until it has saved what it keeps.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.child.wait().expect("the broker ended");
    }

    /// Forgets everything while it is down: sessions, retained messages, what it had confirmed and not passed on.
    pub(crate) fn forget(&self) {
        match fs::remove_file(self.dir.path().join("mosquitto.db")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("its memory cannot be taken: {e}"),
            Ok(()) | Err(_) => {}
        }
    }

    /// Starts it again and waits until it answers.
    pub(crate) fn restart(&mut self) {
        self.launch();
        self.wait_until_it_answers();
    }

    /// Starts it again and waits for nothing.
    pub(crate) fn launch(&mut self) {
        self.child = launch(self.dir.path());
    }

    /// Gives it another certificate and starts it again.
    pub(crate) fn restart_as(&mut self, identity: &Identity) {
        write_identity(self.dir.path(), identity);
        self.kill9();
        self.restart();
    }

    /// Gives a user a password, from now on.
    pub(crate) fn set_password(&self, login: (&str, &str)) {
        write_password(self.dir.path(), login);
        self.reload();
    }

    /// Both users may do everything, but the gateway nothing on these topics, from now on.
    pub(crate) fn set_denied(&self, topics: &[&str]) {
        write_rights(self.dir.path(), topics);
        self.reload();
    }

    /// SIGHUP: mosquitto reads passwords and ACL again.
    fn reload(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("the broker runs");
    }

    fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Connection::open(self.port, Version::V311, "is-it-up", None) {
                Ok(connection) => return connection.disconnect(),
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return,
                Err(e) => {
                    let ended = self.child.try_wait().expect("the broker is our child");
                    let late = Instant::now() > deadline;
                    assert!(ended.is_none() && !late, "mosquitto does not answer ({ended:?}): {e}\n{}", self.log());
                    pause();
                }
            }
        }
    }

    /// What it wrote, over all restarts.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have been killed by the test already.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// The configuration that ships, with this test's paths and port.
fn shipped(here: &str, tls_port: u16) -> String {
    let filled = [
        ("listener 8883\n", format!("listener {tls_port} 127.0.0.1\n")),
        ("/etc/mosquitto/certs/", format!("{here}/")),
        ("/etc/mosquitto/gardu.acl", format!("{here}/acl")),
        ("/var/lib/mosquitto/", format!("{here}/")),
    ];
    filled.iter().fold(SHIPPED.0.to_owned(), |lines, (theirs, ours)| {
        assert!(lines.contains(theirs), "what ships no longer has {theirs}");
        lines.replace(theirs, ours)
    })
}

fn write_identity(dir: &Path, identity: &Identity) {
    fs::write(dir.join("server.crt"), &identity.cert).expect("its certificate");
    fs::write(dir.join("server.key"), &identity.key).expect("its key");
}

fn write_password(dir: &Path, (user, password): (&str, &str)) {
    let done = Command::new("mosquitto_passwd").arg("-b").arg(dir.join("passwords")).args([user, password]).output();
    let done = done.expect("mosquitto_passwd comes with mosquitto");
    assert!(done.status.success(), "mosquitto_passwd: {}", String::from_utf8_lossy(&done.stderr));
}

fn write_rights(dir: &Path, denied: &[&str]) {
    let denied: String = denied.iter().map(|topic| format!("topic deny {topic}\n")).collect();
    let (center, gateway) = (CENTER.0, GATEWAY.0);
    let rights = format!("user {center}\ntopic readwrite #\nuser {gateway}\n{denied}topic readwrite #\n");
    fs::write(dir.join("acl"), rights).expect("the broker's rights");
}

fn launch(dir: &Path) -> Child {
    // Debian keeps it in /usr/sbin, which is not in every user's PATH.
    let tried = ["mosquitto", "/usr/sbin/mosquitto"].into_iter().find_map(|program| {
        let mut command = Command::new(program);
        command.arg("-c").arg(dir.join("mosquitto.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
    });
    tried.expect("mosquitto is installed (Debian: apt-get install mosquitto)")
}
