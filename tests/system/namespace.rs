//! What only a kernel can do to packets: drop them silently, in one direction or of one flow, and make a link slow; and a
//! name service that forgets. The faults of `support/faults.rs` again, one level deeper.
//!
//! The test starts itself again in network and mount namespaces of its own, so that filters, queues and `/etc/hosts` are
//! not the machine's. That needs root or user namespaces, and unshare, ip, tc and nft (Debian: util-linux, iproute2,
//! nftables). Where it cannot be had, `GARDU_NO_NAMESPACE=1` says so; without that the tests fail.

use std::{fs, sync::OnceLock, time::Duration};

use tempfile::TempDir;

use crate::support::{
    faults::{Hold, Kind, Notice, PLAIN, SILENCE_MAX, Scene, run_side_by_side, times},
    inside::{self, Inside},
    proxy::Cut,
};

const DROPPED: Kind = Kind {
    name: "packets dropped both ways",
    strike: |scene| {
        drop_packets(scene, &[format!("tcp dport {}", scene.proxy.port), format!("tcp sport {}", scene.proxy.port)]);
    },
    notice: Notice::Within(SILENCE_MAX, &["silent"]),
    // The first packet of the next connection is dropped too.
    hold: Hold::For(Duration::from_secs(2)),
    heal: drop_no_more,
    ..PLAIN
};

const DROPPED_UP: Kind = Kind {
    name: "packets dropped up only",
    strike: |scene| drop_packets(scene, &[format!("tcp dport {}", scene.proxy.port)]),
    notice: Notice::Within(SILENCE_MAX, &["silent", "closed"]),
    ..DROPPED
};

const DROPPED_DOWN: Kind = Kind {
    name: "packets dropped down only",
    strike: |scene| drop_packets(scene, &[format!("tcp sport {}", scene.proxy.port)]),
    ..DROPPED
};

/// As a NAT does that forgets: the next connection has another port.
const FLOW_DROPPED: Kind = Kind {
    name: "packets of the standing flow dropped",
    strike: |scene| {
        let server = scene.proxy.port;
        let rules = scene.proxy.clients().into_iter().flat_map(|client| {
            [format!("tcp dport {server} tcp sport {client}"), format!("tcp sport {server} tcp dport {client}")]
        });
        drop_packets(scene, &rules.collect::<Vec<_>>());
    },
    hold: Hold::Knock,
    ..DROPPED
};

const SHAPED: Kind = Kind {
    name: "kernel's 2G: 20 kbit/s down, 10 up",
    command_center: "keep_alive = \"120s\"",
    strike: |scene| {
        let port = scene.proxy.port;
        tool("tc", "qdisc add dev lo root handle 1: htb");
        for (class, rate, way) in [(1, "10kbit", "dport"), (2, "20kbit", "sport")] {
            tool("tc", &format!("class add dev lo parent 1: classid 1:{class} htb rate 1gbit"));
            let bucket = format!("tbf rate {rate} burst 2kb limit 16kb");
            tool("tc", &format!("qdisc add dev lo parent 1:{class} handle {class}0: {bucket}"));
            let port = format!("match ip {way} {port} 0xffff");
            tool("tc", &format!("filter add dev lo parent 1: protocol ip u32 {port} flowid 1:{class}"));
        }
    },
    notice: Notice::Either,
    hold: Hold::Confirmed(15.0),
    heal: |_| tool("tc", "qdisc del dev lo root"),
    ..PLAIN
};

/// The command center's name, while the world knows it.
const KNOWN: &str = "127.0.0.1 localhost pusat.gardu.test\n";
static HOSTS: OnceLock<TempDir> = OnceLock::new();

const NAMELESS: Kind = Kind {
    name: "name not resolved",
    url: "mqtt://pusat.gardu.test:{proxy}",
    strike: |scene| {
        write_hosts("127.0.0.1 localhost\n");
        scene.proxy.cut(Cut::Fin);
    },
    hold: Hold::Attempt(&["dns"]),
    heal: |_| write_hosts(KNOWN),
    ..PLAIN
};

#[test]
fn dropped_packets_slow_packets_and_lost_names_lose_nothing() {
    inside("namespace::dropped_packets_slow_packets_and_lost_names_lose_nothing", || {
        HOSTS.set(tempfile::tempdir().expect("a folder")).expect("this process has one test");
        write_hosts(KNOWN);
        tool("mount", &format!("--bind {} /etc/hosts", hosts()));
        let kinds = [&DROPPED, &DROPPED_UP, &DROPPED_DOWN, &FLOW_DROPPED, &SHAPED, &NAMELESS];
        run_side_by_side(&kinds, times());
    });
}

/// Runs a test's story where network and mounts are its own.
fn inside(test: &str, story: impl FnOnce()) {
    let namespaces: &[&str] = if rustix::process::geteuid().is_root() {
        &["--net", "--mount"]
    } else {
        &["--net", "--mount", "--user", "--map-root-user"]
    };
    let needs = "root, or user namespaces allowed";
    Inside { unshare: namespaces, needs, without: "GARDU_NO_NAMESPACE" }.run(test, || {
        tool("ip", "link set lo up");
        tool("ip", "link set lo mtu 1500"); // as a real link has it
        story();
    });
}

/// Silently drops what a rule matches, from now on; each proxy has a table of its own.
fn drop_packets(scene: &Scene<'_>, matches: &[String]) {
    let table = format!("inet gardu{}", scene.proxy.port);
    let rules: String = matches.iter().map(|one| format!("{one} drop\n")).collect();
    nft(&format!("table {table} {{\nchain out {{\ntype filter hook output priority 0\n{rules}}}\n}}"));
}

fn drop_no_more(scene: &mut Scene<'_>) {
    nft(&format!("delete table inet gardu{}", scene.proxy.port));
}

fn nft(script: &str) {
    inside::tool("nft", &[script]).unwrap_or_else(|fault| panic!("{fault}"));
}

/// Runs a tool with words between spaces.
fn tool(name: &str, words: &str) {
    inside::tool(name, &words.split(' ').collect::<Vec<_>>()).unwrap_or_else(|fault| panic!("{fault}"));
}

fn hosts() -> String {
    HOSTS.get().expect("set by the test").path().join("hosts").display().to_string()
}

fn write_hosts(text: &str) {
    fs::write(hosts(), text).expect("our own list of names");
}
