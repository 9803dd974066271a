//! `gardu status`: asks the running daemon for its [`Snapshot`] and shows it to a technician.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{
    alarm::{Severity, Texts},
    cli::{Form, exit},
    config::{self, Language, Need, units::show_size},
    reading::Reason,
    record::Lane,
    status::{Communication, DeviceState, LaneState, LinkWord, Snapshot, StandingAlarm, Uplink, Written},
    supervise::{Children, STALLED_AFTER},
    text::{Arg, say},
};

/// A daemon on the same machine answers at once; a stuck one must not hold the tool.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A snapshot with every list full is below 256 KiB.
const SNAPSHOT_LEN_MAX: usize = 1024 * 1024;

/// Why there is no snapshot to show.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody listens: the daemon is down or listens elsewhere.
    #[error("nothing listens at {address}: {reason}")]
    NotRunning {
        /// Where it was asked.
        address: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// Something answers, but not with a snapshot.
    #[error("{address} does not answer as a gateway: {reason}")]
    NotAGateway {
        /// Where it was asked.
        address: SocketAddr,
        /// What is wrong.
        reason: String,
    },
}

impl StatusError {
    /// The exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NotRunning { .. } => exit::UNAVAILABLE,
            Self::NotAGateway { .. } => exit::PROTOCOL,
        }
    }

    /// What happened and what to do, for people.
    #[must_use]
    pub fn text(&self, language: Language) -> String {
        let (key, address, reason) = match self {
            Self::NotRunning { address, reason } => ("status-not-running", address, reason),
            Self::NotAGateway { address, reason } => ("status-not-a-gateway", address, reason),
        };
        say(language, key, &[("address", address.to_string().into()), ("reason", reason.as_str().into())])
    }
}

/// Prints how the daemon of this configuration is doing; the exit code is returned.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the edge where text leaves the program")]
pub async fn run(path: &Path, asked: Option<Language>, form: Form) -> u8 {
    let config = match config::load(path, Need::None) {
        Ok(config) => config,
        Err(problems) => {
            eprintln!("{}", problems.render(super::language(asked.or(problems.language))));
            return exit::CONFIG;
        }
    };
    let language = asked.unwrap_or(config.gateway.language);
    match fetch(config.http.listen).await {
        Ok(seen) if form == Form::Json => println!("{}", serde_json::to_string(&seen).expect("a snapshot is JSON")),
        Ok(seen) => print!("{}", render(&seen, language)),
        Err(why) => {
            eprintln!("{}", why.text(language));
            return why.exit_code();
        }
    }
    exit::OK
}

/// Asks the daemon that listens at `listen` (the configured `http.listen`).
pub async fn fetch(listen: SocketAddr) -> Result<Snapshot, StatusError> {
    let address = reachable(listen);
    let silent = |_| StatusError::NotAGateway { address, reason: format!("no answer in {} s", ANSWER_MAX.as_secs()) };
    tokio::time::timeout(ANSWER_MAX, ask(address)).await.unwrap_or_else(|late| Err(silent(late)))
}

/// A daemon that listens everywhere is asked on the loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn ask(address: SocketAddr) -> Result<Snapshot, StatusError> {
    let foreign = |reason: String| StatusError::NotAGateway { address, reason };
    let stream = TcpStream::connect(address)
        .await
        .map_err(|reason| StatusError::NotRunning { address, reason: reason.to_string() })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| foreign(e.to_string()))?;
    let mut driver = Children::default();
    driver.spawn(async { drop(connection.await) });
    let request = Request::get("/api/v1/status")
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .expect("a fixed path and an address make a request");
    let answer = sender.send_request(request).await.map_err(|e| foreign(e.to_string()))?;
    if !answer.status().is_success() {
        return Err(foreign(answer.status().to_string()));
    }
    let body =
        Limited::new(answer.into_body(), SNAPSHOT_LEN_MAX).collect().await.map_err(|e| foreign(e.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| foreign(e.to_string()))
}

/// The snapshot as a page of text, lines of at most 100 characters unless a name or a message is longer.
#[must_use]
pub fn render(seen: &Snapshot, language: Language) -> String {
    let page = Page { language };
    let mut out = format!("{} · {}\n", seen.gateway.id, plain(&seen.gateway.name));
    let about = [
        ("version", seen.version.as_str().into()),
        ("config", seen.gateway.config.as_str().into()),
        ("uptime", page.duration(seen.uptime_s).into()),
    ];
    out.push_str(&page.row("status-daemon", &page.say("status-about", &about)));
    if !seen.ready {
        out.push_str(&page.row("", &page.say("status-starting", &[])));
    }
    let clock = if seen.clock_trusted { "status-clock-trusted" } else { "status-clock-untrusted" };
    out.push_str(&page.row("status-clock", &page.say(clock, &[])));
    page.uplink(&mut out, seen.uplink.as_ref());
    for (i, (lane, state)) in seen.lanes.iter().enumerate() {
        out.push_str(&page.row(if i == 0 { "status-outbox" } else { "" }, &page.lane(*lane, state)));
    }
    if let Some(written) = seen.written {
        out.push_str(&page.row("status-card", &page.written(written)));
    }
    page.stages(&mut out, seen);
    page.alarms(&mut out, seen);
    page.devices(&mut out, &seen.devices);
    out
}

/// Width of the left column: the longest heading of both languages and a space.
const HEADING_WIDTH: usize = 16;

struct Page {
    language: Language,
}

impl Page {
    fn say(&self, key: &str, args: &[Arg<'_>]) -> String {
        say(self.language, key, args)
    }

    fn row(&self, heading: &str, text: &str) -> String {
        let heading = if heading.is_empty() { String::new() } else { self.say(heading, &[]) };
        format!("  {heading:<HEADING_WIDTH$}{text}\n")
    }

    /// The two largest units: `3 jam 12 menit`.
    fn duration(&self, seconds: u64) -> String {
        let (key, large, small) = match seconds {
            0..60 => ("status-seconds", seconds, 0),
            60..3_600 => ("status-minutes", seconds / 60, seconds % 60),
            3_600..86_400 => ("status-hours", seconds / 3_600, seconds % 3_600 / 60),
            _ => ("status-days", seconds / 86_400, seconds % 86_400 / 3_600),
        };
        self.say(key, &[("large", large.into()), ("small", small.into())])
    }

    fn uplink(&self, out: &mut String, uplink: Option<&Uplink>) {
        let Some(uplink) = uplink else {
            out.push_str(&self.row("status-center", &self.say("status-link-none", &[])));
            return;
        };
        let key = match uplink.link {
            LinkWord::Connecting => "status-link-connecting",
            LinkWord::Connected => "status-link-connected",
            LinkWord::Waiting => "status-link-waiting",
        };
        let args = [
            ("url", plain(&uplink.url).into()),
            ("duration", self.duration(uplink.for_s).into()),
            ("retry", self.duration(uplink.retry_in_s.unwrap_or(0)).into()),
        ];
        out.push_str(&self.row("status-center", &self.say(key, &args)));
        if let Some(reason) = &uplink.last_reason {
            out.push_str(&self.row("", &self.say("status-last-reason", &[("reason", plain(reason).into())])));
        }
    }

    fn lane(&self, lane: Lane, state: &LaneState) -> String {
        let name = self.say(
            match lane {
                Lane::Alarm => "status-lane-a",
                Lane::Telemetry => "status-lane-t",
            },
            &[],
        );
        if state.records == 0 {
            return self.say("status-lane-empty", &[("lane", name.into()), ("next", state.next.into())]);
        }
        let args = [
            ("lane", name.into()),
            ("records", state.records.into()),
            ("kib", state.bytes.div_ceil(1024).into()),
            ("age", state.oldest_age_s.map_or_else(|| "?".into(), |age| self.duration(age)).into()),
        ];
        self.say("status-lane-waiting", &args)
    }

    fn written(&self, Written { total_bytes, day_bytes, budget_day_bytes }: Written) -> String {
        let key = match (day_bytes, budget_day_bytes) {
            (None, _) => "status-written",
            (Some(_), None) => "status-written-day",
            (Some(_), Some(_)) => "status-written-budget",
        };
        let size = |bytes: Option<u64>| show_size(bytes.unwrap_or(0)).into();
        let args = [("total", size(Some(total_bytes))), ("day", size(day_bytes)), ("budget", size(budget_day_bytes))];
        self.say(key, &args)
    }

    fn stages(&self, out: &mut String, seen: &Snapshot) {
        let stuck = seen.stages.iter().filter(|stage| Duration::from_millis(stage.idle_ms) >= STALLED_AFTER);
        let stuck: Vec<String> =
            stuck.map(|stage| format!("{} ({})", plain(&stage.name), self.duration(stage.idle_ms / 1_000))).collect();
        let text = if stuck.is_empty() {
            self.say("status-stages-run", &[("count", seen.stages.len().into())])
        } else {
            self.say("status-stages-stuck", &[("stages", stuck.join(", ").into())])
        };
        out.push_str(&self.row("status-stages", &text));
    }

    fn alarms(&self, out: &mut String, seen: &Snapshot) {
        let total = seen.alarms.total;
        let heading = if total == 0 { "status-alarms-none" } else { "status-alarms-some" };
        let _ = write!(out, "\n{}\n", self.say(heading, &[("count", total.into())]));
        let rows: Vec<_> = seen.alarms.list.iter().map(|alarm| self.alarm(alarm)).collect();
        table(out, &rows);
        let more = total.saturating_sub(seen.alarms.list.len());
        if more > 0 {
            let _ = writeln!(out, "  {}", self.say("status-alarms-more", &[("count", more.into())]));
        }
    }

    fn alarm(&self, alarm: &StandingAlarm) -> Vec<String> {
        let severity = match alarm.severity {
            Severity::Critical => "status-severity-critical",
            Severity::High => "status-severity-high",
            Severity::Medium => "status-severity-medium",
            Severity::Low => "status-severity-low",
            Severity::Info => "status-severity-info",
        };
        let test = if alarm.test { format!(" [{}]", self.say("status-test", &[])) } else { String::new() };
        vec![
            self.say(severity, &[]),
            alarm.state.as_str().to_owned(),
            alarm.alarm.to_string(),
            format!("{}{}", alarm.time, if alarm.clock_trusted { "" } else { " (?)" }),
            format!("{}{test}", plain(self.message(&alarm.message))),
        ]
    }

    /// In the reader's language, else in the one there is.
    fn message<'a>(&self, texts: &'a Texts) -> &'a str {
        let (first, second) = match self.language {
            Language::Indonesian => (&texts.id, &texts.en),
            Language::English => (&texts.en, &texts.id),
        };
        first.as_deref().or(second.as_deref()).unwrap_or_default()
    }

    fn devices(&self, out: &mut String, devices: &[DeviceState]) {
        if devices.is_empty() {
            return;
        }
        let bad = devices.iter().filter(|device| device.communication == Communication::Bad).count();
        let args = [("count", devices.len().into()), ("bad", bad.into())];
        let _ = write!(out, "\n{}\n", self.say("status-devices", &args));
        table(out, &devices.iter().map(|device| self.device(device)).collect::<Vec<_>>());
    }

    fn device(&self, device: &DeviceState) -> Vec<String> {
        let communication = match device.communication {
            Communication::Unknown => "status-device-unknown",
            Communication::Good => "status-device-good",
            Communication::Bad => "status-device-bad",
        };
        let last = device.last_reading_age_s.map_or_else(
            || self.say("status-device-never", &[]),
            |age| self.say("status-device-last", &[("age", self.duration(age).into())]),
        );
        vec![
            self.say(communication, &[]),
            device.name.to_string(),
            plain(&device.source),
            last,
            device.reason.map(|reason| self.say(reason_key(reason), &[])).unwrap_or_default(),
        ]
    }
}

const fn reason_key(reason: Reason) -> &'static str {
    match reason {
        Reason::NotYetRead => "status-reason-not-yet-read",
        Reason::Timeout => "status-reason-timeout",
        Reason::LinkDown => "status-reason-link-down",
        Reason::Exception => "status-reason-exception",
        Reason::Malformed => "status-reason-malformed",
        Reason::Sentinel => "status-reason-sentinel",
        Reason::OutOfRange => "status-reason-out-of-range",
        Reason::NotANumber => "status-reason-not-a-number",
        Reason::Stale => "status-reason-stale",
    }
}

/// Rows with their columns aligned.
fn table(out: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _ = writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Text of others cannot steer the terminal.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test runs the server beside itself")]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;
    use crate::{
        alarm::State,
        clock::{Clock, Now},
        config,
        http::{HttpTask, Names, View},
        metrics::Metrics,
        status::{
            DeviceUpdate, Link, UplinkState,
            tests::{at, board, segment, transition},
        },
        supervise::{Pulse, Shutdown},
        text,
    };

    fn busy() -> (Clock, Pulse, crate::status::StatusBoard) {
        let clock = Clock::manual("boot", at(0));
        let pulse = Pulse::new(clock.clone());
        let _beat = pulse.stage("pipeline");
        let board = board(&clock, &pulse);
        board.set_ready();
        board.set_uplink(UplinkState {
            link: Link::Waiting { reason: "the link is\x1b[2J silent".into(), retry_in: Duration::from_secs(90) },
            url: "mqtt://cc1.example.go.id:1883".into(),
            since: at(0),
            session: Some(4),
        });
        board.set_alarms(&[
            transition("panel/door", Severity::High, State::Unack, Now { trusted: false, ..at(5) }),
            transition("pump/level", Severity::Critical, State::Acked, at(9)),
        ]);
        for (name, communication, reason, last_good) in [
            ("panel", Communication::Good, None, Some(at(11))),
            ("pump", Communication::Bad, Some(Reason::Timeout), None),
        ] {
            let (name, source) = (segment(name), "cabinet".into());
            board.set_device(DeviceUpdate { name, source, communication, reason, last_good });
        }
        clock.set(at(12));
        (clock, pulse, board)
    }

    #[test]
    fn a_technician_reads_it_in_indonesian() {
        let (clock, _, board) = busy();
        let page = "\
taman-elektrik-01 · Taman Elektrik
  Layanan         versi 0.1.0, konfigurasi 1a2b3c4d, berjalan 12 detik
  Jam             tersinkron
  Pusat komando   terputus dari mqtt://cc1.example.go.id:1883 sejak 12 detik; mencoba lagi dalam 1 menit 18 detik
                  sebab terakhir: the link is [2J silent
  Proses          1 tahap, semuanya berjalan

Alarm yang masih berdiri: 2
  kritis  ACKED  pump/level/open  1970-01-01T00:00:09.000Z      Pintu panel terbuka
  tinggi  UNACK  panel/door/open  1970-01-01T00:00:05.000Z (?)  Pintu panel terbuka

Perangkat: 2, tidak menjawab: 1
  baik   panel  cabinet  terbaca 1 detik lalu
  rusak  pump   cabinet  belum pernah terbaca  tidak menjawab tepat waktu
";
        assert_eq!(render(&board.snapshot(), Language::Indonesian), page);

        clock.set(Now { trusted: false, ..at(12 + STALLED_AFTER.as_secs()) });
        let stuck = render(&board.snapshot(), Language::Indonesian);
        assert!(stuck.contains("MACET: pipeline (27 detik)") && stuck.contains("BELUM tersinkron"), "{stuck}");
    }

    #[test]
    fn an_engineer_reads_it_in_english() {
        let (_, _, board) = busy();
        let page = render(&board.snapshot(), Language::English);
        for line in [
            "  Command center  cut off from mqtt://cc1.example.go.id:1883 for 12 s; next attempt in 1 min 18 s\n",
            "  critical  ACKED  pump/level/open  1970-01-01T00:00:09.000Z      Cabinet door open\n",
            "  bad   pump   cabinet  never read    no answer in time\n",
        ] {
            assert!(page.contains(line), "{line}{page}");
        }
    }

    #[test]
    fn every_reason_has_words_in_both_languages() {
        assert!(Reason::ALL.into_iter().all(|reason| text::exists(reason_key(reason))));
    }

    #[tokio::test]
    async fn it_asks_the_running_daemon() {
        let (clock, pulse, board) = busy();
        let free = "0.0.0.0:0".parse().expect("address");
        let config = config::Http { listen: free, metrics_listen: None };
        let beat = pulse.stage("http");
        let view = View { board: board.clone(), metrics: Metrics::new(), pulse, clock };
        let task = HttpTask::bind(&config, &Names::of(&segment("g")), view, beat).await.expect("bind");
        let address = task.addresses()[0];
        let stop = Shutdown::new();
        let running = tokio::spawn(task.run(stop.clone()));
        assert_eq!(fetch(address).await.expect("a snapshot"), board.snapshot());
        stop.cancel();
        running.await.expect("no panic").expect("no error");

        let down = fetch(address).await.expect_err("nobody listens any more");
        assert_eq!(down.exit_code(), 69);
        let said = down.text(Language::Indonesian);
        assert!(said.contains("systemctl start gardu") && said.contains(&reachable(address).to_string()), "{said}");
    }

    #[tokio::test]
    async fn another_program_on_the_port_is_told_apart() {
        for answer in
            ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 404 Not Found\r\n\r\n", "SSH-2.0\r\n"]
        {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let address = listener.local_addr().expect("address");
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("accept");
                stream.write_all(answer.as_bytes()).await.expect("write");
                stream.shutdown().await.expect("close");
            });
            assert_eq!(fetch(address).await.expect_err(answer).exit_code(), 76, "{answer}");
        }
    }
}
