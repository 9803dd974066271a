#![expect(clippy::disallowed_methods, reason = "a test runs the server beside itself")]

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    clock::{BootId, Clock},
    config::Language,
    metrics::Metrics,
    record::{Body, CommandResult, Lane, LossReason, Record},
    status::{
        Snapshot,
        outbox::{Line, Lost, LostOver, Outbox},
        tests::{at, board, head, segment},
    },
    store::{self, Commit, Options},
    supervise::{Pulse, STALLED_AFTER},
};

/// A slow, busy machine answers within this.
const DEADLINE: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_secs(3600);

struct Served {
    page: SocketAddr,
    metrics: SocketAddr,
    clock: Clock,
    view: View,
    _beat: Beat,
    _stop: tokio_util::sync::DropGuard,
}

/// Serves on free ports, until dropped; no outbox is open yet.
async fn serve(limits: Limits) -> Served {
    serve_with(limits, None).await
}

async fn serve_with(limits: Limits, outbox: Option<OutboxView>) -> Served {
    let clock = Clock::manual("boot", at(100));
    let pulse = Pulse::new(clock.clone());
    let (board, metrics) = (board(&clock, &pulse), Metrics::new());
    let view = View { board, metrics, pulse: pulse.clone(), clock: clock.clone(), outbox };
    let free = "127.0.0.1:0".parse().expect("address");
    let config = config::Http { listen: free, metrics_listen: Some(free) };
    let names = Names::of(&segment("taman-elektrik-01"));
    // A stage that never marks its beat again: the field in these tests.
    let beat = pulse.stage("field");
    clock.set(at(101));
    let mut task = HttpTask::bind(&config, &names, view.clone(), pulse.stage("http")).await.expect("bind");
    for door in &mut task.doors {
        door.limits = limits;
    }
    let addresses = task.addresses();
    let shutdown = Shutdown::new();
    tokio::spawn(task.run(shutdown.clone()));
    Served { page: addresses[0], metrics: addresses[1], clock, view, _beat: beat, _stop: shutdown.drop_guard() }
}

/// Sends these bytes and reads until the server closes.
async fn send(address: SocketAddr, request: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("read");
        String::from_utf8(answer).expect("text")
    };
    tokio::time::timeout(DEADLINE, exchange).await.expect("an answer in time")
}

async fn get(address: SocketAddr, path: &str) -> String {
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await
}

fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("no status line")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("no body", |(_, body)| body)
}

#[tokio::test]
async fn only_names_of_this_gateway_are_answered() {
    let served = serve(Limits::DEFAULT).await;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let own = format!("{host}.local:9184");
    for path in ["/healthz", "/metrics", "/api/v1/status", "/nowhere"] {
        for good in
            ["localhost", "LOCALHOST:9184", "127.0.0.1", "[::1]:9184", "10.0.0.5", "taman-elektrik-01.local", &own]
        {
            let answer = send(served.page, &format!("GET {path} HTTP/1.1\r\nHost: {good}\r\n\r\n")).await;
            assert_ne!(code(&answer), "421", "{good} {path}");
        }
        for bad in
            ["Host: evil.example", "Host: localhost.evil.example", "Host: ", "Host: localhost\r\nHost: b", "A: b"]
        {
            let answer = send(served.page, &format!("GET {path} HTTP/1.1\r\n{bad}\r\n\r\n")).await;
            assert!(["421", "400"].contains(&code(&answer)), "{bad} {path}: {answer}");
        }
    }
    let absolute = send(served.metrics, "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(code(&absolute), "421");
}

#[tokio::test]
async fn every_answer_carries_the_protecting_headers_and_no_path() {
    let served = serve(Limits::DEFAULT).await;
    for (method, path, host, expected) in [
        ("GET", "/healthz", "localhost", "200"),
        ("GET", "/metrics", "localhost", "200"),
        ("GET", "/api/v1/status", "localhost", "200"),
        ("GET", "/readyz", "localhost", "503"),
        ("GET", "/../etc/passwd", "localhost", "404"),
        ("POST", "/api/v1/status", "localhost", "405"),
        ("TRACE", "/metrics", "localhost", "405"),
        ("BREW", "/healthz", "localhost", "405"),
        ("GET", "/healthz", "evil.example", "421"),
    ] {
        let answer = send(served.page, &format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(code(&answer), expected, "{method} {path}");
        let lower = answer.to_lowercase();
        for header in [
            "x-content-type-options: nosniff",
            "cache-control: no-store",
            "content-security-policy: default-src 'none'",
            "referrer-policy: no-referrer",
        ] {
            assert!(lower.contains(header), "{method} {path} lacks {header}: {answer}");
        }
        assert!(!body(&answer).contains("passwd") && !body(&answer).contains(".rs"), "{answer}");
    }
}

#[tokio::test]
async fn a_large_body_and_an_endless_header_are_refused() {
    let served = serve(Limits::DEFAULT).await;
    let large = "POST /api/v1/status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n";
    assert_eq!(code(&send(served.page, large).await), "413");
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(BUFFER_MAX));
    assert_ne!(code(&send(served.page, &long).await), "200");
}

#[tokio::test]
async fn health_fails_when_a_stage_stops_and_names_it() {
    let served = serve(Limits::DEFAULT).await;
    assert_eq!(code(&get(served.page, "/healthz").await), "200");
    served.clock.set(at(100 + STALLED_AFTER.as_secs()));
    let answer = get(served.metrics, "/healthz").await;
    assert_eq!(code(&answer), "503");
    assert!(body(&answer).starts_with("field "), "{answer}");
}

#[tokio::test]
async fn readiness_waits_for_the_start() {
    let served = serve(Limits::DEFAULT).await;
    assert_eq!(code(&get(served.metrics, "/readyz").await), "503");
    served.view.board.set_ready();
    assert_eq!(code(&get(served.metrics, "/readyz").await), "200");
}

#[tokio::test]
async fn the_state_is_served_as_json_on_the_page_only() {
    let served = serve(Limits::DEFAULT).await;
    let answer = get(served.page, "/api/v1/status").await;
    let seen: Snapshot = serde_json::from_str(body(&answer)).expect("a snapshot");
    assert_eq!(seen.gateway.id, segment("taman-elektrik-01"));
    assert_eq!(code(&get(served.metrics, "/api/v1/status").await), "404");
}

#[tokio::test]
async fn metrics_are_in_the_text_format_and_fresh() {
    let served = serve(Limits::DEFAULT).await;
    served.clock.set(at(107));
    served.view.metrics.readings.with_label_values(&["pa\"nel\n"]).inc();
    let (_keep, lane) = tokio::sync::watch::channel(head("boot", at(95)));
    served.view.board.set_lanes([(Lane::Alarm, lane)]);
    let answer = get(served.metrics, "/metrics").await;
    assert!(answer.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{answer}");
    for line in body(&answer).lines() {
        assert!(is_exposition(line), "{line}");
    }
    assert!(answer.contains("gardu_stage_idle_seconds{stage=\"field\"} 7\n"), "{answer}");
    assert!(answer.contains("gardu_outbox_oldest_age_seconds{lane=\"a\"} 12\n"), "{answer}");
    assert!(answer.contains("gardu_clock_trusted 1\n"), "{answer}");
    for bad in ["readings 1 2 3", "gardu{a=\"b} 1", "gardu{a=b} 1", "9a 1", "# HELP", "gardu one"] {
        assert!(!is_exposition(bad), "{bad}");
    }
}

/// Whether a line follows the text format's grammar (Prometheus exposition formats, version 0.0.4), without timestamps.
fn is_exposition(line: &str) -> bool {
    fn is_name(text: &str) -> bool {
        !text.starts_with(|c: char| c.is_ascii_digit())
            && !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
    }
    /// The rest behind `{name="value",…}`.
    fn after_labels(mut text: &str) -> Option<&str> {
        loop {
            let (name, rest) = text.split_once("=\"")?;
            let mut escaped = false;
            let end = rest.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })?;
            text = rest[end + 1..].strip_prefix(',').unwrap_or(&rest[end + 1..]);
            match text.strip_prefix('}') {
                _ if !is_name(name) => return None,
                Some(rest) => return Some(rest),
                None => {}
            }
        }
    }
    if let Some(comment) = line.strip_prefix("# ") {
        let mut words = comment.splitn(3, ' ');
        return matches!(
            (words.next(), words.next(), words.next()),
            (Some("HELP"), Some(name), Some(_)) | (Some("TYPE"), Some(name), Some("counter" | "gauge" | "histogram"))
                if is_name(name)
        );
    }
    let end = line.find(['{', ' ']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let value = if let Some(labels) = rest.strip_prefix('{') { after_labels(labels) } else { Some(rest) };
    is_name(name) && value.and_then(|text| text.strip_prefix(' ')).is_some_and(|value| value.parse::<f64>().is_ok())
}

/// So many clients that begin a request and never finish it.
async fn dawdlers(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc").await.expect("write");
        streams.push(stream);
    }
    streams
}

#[tokio::test]
async fn slow_clients_do_not_keep_others_out() {
    let patient = Limits { connections_max: 4, header_max: NEVER, exchange_max: NEVER };
    let served = serve(patient).await;
    let _slow = dawdlers(served.page, 3).await;
    assert_eq!(code(&get(served.page, "/healthz").await), "200", "a free connection is left");
    let _last = dawdlers(served.page, 1).await;
    assert_eq!(code(&get(served.metrics, "/healthz").await), "200", "the metrics have connections of their own");

    // The twin: without a time limit, the fifth client waits for ever.
    let barred = tokio::time::timeout(Duration::from_millis(300), get(served.page, "/healthz")).await;
    assert!(barred.is_err(), "four endless requests were to fill the server");
    for limits in [
        Limits { header_max: Duration::from_millis(100), ..patient },
        Limits { exchange_max: Duration::from_millis(100), ..patient },
    ] {
        let served = serve(limits).await;
        let _slow = dawdlers(served.page, 8).await;
        assert_eq!(code(&get(served.page, "/healthz").await), "200", "{limits:?}");
    }
}

#[tokio::test]
async fn a_taken_port_is_named_at_the_start() {
    let served = serve(Limits::DEFAULT).await;
    let config = config::Http { listen: served.page, metrics_listen: None };
    let names = Names::of(&segment("g"));
    let taken = HttpTask::bind(&config, &names, served.view.clone(), served.view.pulse.stage("http")).await;
    let said = taken.expect_err("taken").to_string();
    assert!(said.contains("http.listen") && said.contains(&served.page.to_string()), "{said}");
}

/// A record that says which command was carried out.
fn carried_out(epoch: &crate::record::Epoch, sequence: u64) -> Record {
    let (id, command, by) = (format!("c{sequence}").into(), "test".into(), "operator".into());
    let body = Body::Command(CommandResult { id, command, alarm: None, by });
    Record { lane: Lane::Alarm, epoch: epoch.clone(), sequence, boot: BootId::new("boot"), recorded: at(5), body }
}

fn places(answer: &str) -> (Vec<u64>, Option<u64>) {
    let (mut places, mut next) = (Vec::new(), None);
    for line in body(answer).lines() {
        match Line::parse(line).unwrap_or_else(|| panic!("{answer}")) {
            Line::Event { place, json } => {
                let event: serde_json::Value = serde_json::from_str(json).expect("JSON");
                assert_eq!(event["data"]["id"], format!("c{place}"));
                places.push(place);
            }
            Line::Next(of) => next = of,
        }
    }
    (places, next)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_is_counted_and_its_records_are_paged() {
    let dir = tempfile::tempdir().expect("a folder");
    let boot = BootId::new("boot");
    let generation_size = store::GENERATION_SIZE;
    let options = Options { path: dir.path().into(), machine: "machine-1".into(), boot, generation_size, memory: None };
    let (store, recovered, committers) = store::open(&options, &Metrics::new()).expect("opens");
    let threads: Vec<_> = committers.into_iter().map(|(_, work)| std::thread::spawn(work)).collect();
    let records = (1..=7).map(|sequence| carried_out(&recovered.epoch, sequence)).collect();
    store.commit(Commit { records, ..Commit::default() }).await.expect("commits");
    store.settle(Lane::Alarm, vec![(3, 3)]).await.expect("settles");

    let about = crate::uplink::message::About {
        gateway: segment("taman-elektrik-01"),
        prefix: "gardu/v1".into(),
        site: "taman-elektrik".into(),
        location: None,
        language: Language::Indonesian,
    };
    let view = OutboxView::new(store.clone(), about, dir.path().into(), 1 << 28);
    let served = serve_with(Limits::DEFAULT, Some(view)).await;
    served.view.board.set_lanes(Lane::ALL.map(|lane| (lane, store.head(lane))));
    served.view.metrics.outbox_lost.with_label_values(&["t", "quota"]).inc_by(40);

    let counted: Outbox = serde_json::from_str(body(&get(served.page, "/api/v1/outbox").await)).expect("an outbox");
    let alarms = &counted.lanes[&Lane::Alarm];
    assert_eq!((alarms.state.records, alarms.state.next, alarms.generations.len()), (6, 8, 1));
    assert_eq!((alarms.generations[0].waiting, counted.path.as_path()), (6, dir.path()));
    assert_eq!(counted.lost, [Lost { lane: Lane::Telemetry, reason: LossReason::Quota, count: 40 }]);
    assert_eq!((counted.lost_over, counted.quota_bytes), (LostOver::Run, Some(1 << 28)));
    assert!(counted.disk_bytes > 0 && counted.aside.is_empty());

    for (path, want) in [
        ("/api/v1/outbox/a", (vec![1, 2, 4, 5, 6, 7], Some(8))),
        ("/api/v1/outbox/a?from=2&limit=2", (vec![2, 4], Some(5))),
        ("/api/v1/outbox/a?from=5&limit=0", (vec![5], Some(6))),
        ("/api/v1/outbox/a?from=8", (vec![], None)),
        ("/api/v1/outbox/t", (vec![], None)),
    ] {
        assert_eq!(places(&get(served.page, path).await), want, "{path}");
    }
    for (path, want) in [("/api/v1/outbox/b", "404"), ("/api/v1/outbox/a?from=-1", "400")] {
        assert_eq!(code(&get(served.page, path).await), want, "{path}");
    }
    assert_eq!(code(&get(served.metrics, "/api/v1/outbox").await), "404", "only where the page is");
    assert_eq!(code(&get(serve(Limits::DEFAULT).await.page, "/api/v1/outbox").await), "503");
    drop((served, store));
    for thread in threads {
        thread.join().expect("no panic").expect("no error");
    }
}
