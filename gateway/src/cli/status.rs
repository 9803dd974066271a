//! `gardu status`: asks the running daemon for its [`Snapshot`] and shows it to a technician.

use std::{fmt::Write as _, net::SocketAddr, path::Path, time::Duration};

use super::{
    Form,
    ask::{self, AskError},
    exit,
    page::{Page, plain, table},
};
use crate::{
    config::{self, Language, Need, units::about_size},
    reading::Reason,
    record::Lane,
    status::{Communication, DeviceState, LaneState, LinkWord, OutboxState, Snapshot, StandingAlarm, Uplink, Written},
    store::Space,
    supervise::STALLED_AFTER,
};

/// A snapshot with every list full is below 256 KiB.
const SNAPSHOT_LEN_MAX: usize = 1024 * 1024;

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
pub async fn fetch(listen: SocketAddr) -> Result<Snapshot, AskError> {
    let body = ask::get(listen, "/api/v1/status", SNAPSHOT_LEN_MAX).await?;
    serde_json::from_slice(&body).map_err(|e| AskError::foreign(listen, e))
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
    let lanes = seen.lanes.iter().map(|(lane, state)| page.lane_line(*lane, state));
    for (i, text) in lanes.chain(seen.outbox.as_ref().map(|outbox| page.disk(outbox))).enumerate() {
        out.push_str(&page.row(if i == 0 { "status-outbox" } else { "" }, &text));
    }
    if let Some(written) = seen.written {
        out.push_str(&page.row("status-card", &page.written(written)));
    }
    page.stages(&mut out, seen);
    page.alarms(&mut out, seen);
    page.devices(&mut out, &seen.devices);
    out
}

impl Page {
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

    fn lane_line(&self, lane: Lane, state: &LaneState) -> String {
        let name = self.lane(lane);
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
        let size = |bytes: Option<u64>| about_size(bytes.unwrap_or(0)).into();
        let args = [("total", size(Some(total_bytes))), ("day", size(day_bytes)), ("budget", size(budget_day_bytes))];
        self.say(key, &args)
    }

    fn disk(&self, outbox: &OutboxState) -> String {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let key = match (outbox.evicting, outbox.full_in_s) {
            _ if outbox.unusable.is_some() => "status-disk-unusable",
            _ if outbox.space == Space::None => "status-disk-none",
            _ if outbox.space == Space::Tight => "status-disk-tight",
            (true, _) => "status-disk-evicting",
            (false, Some(_)) => "status-disk-filling",
            (false, None) => "status-disk",
        };
        let args = [
            ("used", mib(outbox.disk_bytes).into()),
            ("quota", mib(outbox.quota_bytes).into()),
            ("percent", outbox.filled_percent.into()),
            ("full", self.duration(outbox.full_in_s.unwrap_or(0)).into()),
            ("reason", plain(outbox.unusable.as_deref().unwrap_or_default()).into()),
        ];
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
        let test = if alarm.test { format!(" [{}]", self.say("status-test", &[])) } else { String::new() };
        vec![
            self.severity(alarm.severity),
            alarm.state.as_str().to_owned(),
            alarm.alarm.to_string(),
            format!("{}{}", alarm.time, if alarm.clock_trusted { "" } else { " (?)" }),
            format!("{}{test}", plain(self.message(&alarm.message))),
        ]
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test runs the server beside itself")]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;
    use crate::{
        alarm::{Severity, State},
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
        board.set_outbox(OutboxState {
            disk_bytes: 120 << 20,
            quota_bytes: 256 << 20,
            filled_percent: 50,
            full_in_s: Some(9 * 3_600 + 180),
            evicting: false,
            space: Space::Enough,
            unusable: None,
        });
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
  Antrean kirim   di disk: 120 dari 256 MiB, terisi 50 %; penuh dalam 9 jam 3 menit
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
            "  Outbox          on disk: 120 of 256 MiB, 50 % full; full in 9 h 3 min\n",
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
        let view = View { board: board.clone(), metrics: Metrics::new(), pulse, clock, outbox: None };
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
        assert!(
            said.contains("systemctl start gardu") && said.contains(&ask::reachable(address).to_string()),
            "{said}"
        );
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
