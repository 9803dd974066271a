//! What stands around the gateway in these tests: brokers, a PLC, a command center, and the gateway itself as a
//! black box.

pub(crate) mod broker;
pub(crate) mod card;
pub(crate) mod center;
pub(crate) mod certificates;
pub(crate) mod faults;
pub(crate) mod gateway;
pub(crate) mod inside;
pub(crate) mod island;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod mqtt;
pub(crate) mod node;
pub(crate) mod park;
pub(crate) mod plc;
pub(crate) mod proxy;
pub(crate) mod serial;
pub(crate) mod toml;
pub(crate) mod wire;
pub(crate) mod witnesses;

use std::{
    net::TcpStream,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long any condition may take: far beyond what a busy machine needs, and twice the longest pause the gateway makes on
/// purpose (a minute, after a refused login or publish), so that only a fault reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at something that cannot tell us when it changes.
pub(crate) fn pause() {
    thread::sleep(Duration::from_millis(20));
}

/// Waits until something that cannot tell us is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        pause();
    }
}

/// A loopback port that stays free for us while a server on it is down: below the range that the kernel hands out to
/// outgoing connections (32768 and up), and never the same twice in one process. Asked for by a connection: a socket that
/// tried to listen there would live on for a moment in a process that is just being started.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    let start = u16::try_from(std::process::id() % 200).expect("below 200") * 100;
    loop {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if TcpStream::connect(("127.0.0.1", port)).is_err() {
            return port;
        }
    }
}

/// How often the daemon or a broker is killed in one test; `GARDU_KILLS` asks for another number than the usual.
pub(crate) fn kills(usual: u64) -> u64 {
    std::env::var("GARDU_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
