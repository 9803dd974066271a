//! What can happen between the gateway and its command center, as a table: how a fault strikes, what the gateway must notice
//! of it and how soon, how long it lasts, and how it is healed.
//!
//! One story for all ([`run`]): a park works through a [`Proxy`], the fault strikes in the middle of it, is held for a
//! moment that matters, is healed; again, so many times; and then [`Load`] proves that nothing was lost.

use std::{
    collections::BTreeMap,
    fmt, thread,
    time::{Duration, Instant},
};

use super::{
    broker::{Access, Broker},
    certificates::{ALWAYS, Authority},
    gateway::Gateway,
    load::{self, Between, Load},
    mqtt::{Connection, Version},
    park::{ID, Park, Plan},
    pause,
    proxy::{Conditions, Cut, Door, Flow, Proxy, Reach, Way},
    until,
};

/// The daemon looks at its clock once a second, and a busy machine lets it wait.
const MARGIN: Duration = Duration::from_secs(10);
/// Longest pause the gateway makes on purpose (five minutes, after its client id was taken), and the same patience as
/// everywhere.
const RETURN_MAX: Duration = Duration::from_secs(300 + 120);
/// The keep alive of most kinds, as short as the configuration allows.
const KEEP_ALIVE: &str = "keep_alive = \"10s\"";
/// Half of it more is the bound of silence.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(15);
/// The keep alive that ships: a dead path is noticed by the missing PUBACK, long before.
const KEEP_ALIVE_SHIPPED: &str = "keep_alive = \"120s\"";
const PUBACK_MAX: Duration = Duration::from_secs(30);
/// A broker that ends forgets what it confirmed and had not yet passed on; only the center's receipt proves more.
const RECEIPT: &str = "keep_alive = \"10s\"\ndelivered_when = \"receipt\"";
/// What ends a connection is noticed when it is read.
const AT_ONCE: Duration = Duration::ZERO;

/// One kind of fault.
#[derive(Debug)]
pub(crate) struct Kind {
    /// Names its row.
    pub(crate) name: &'static str,
    /// Where the gateway looks for its command center; `{proxy}` is the way through the proxy.
    pub(crate) url: &'static str,
    /// How it is let in.
    pub(crate) access: Access,
    /// More lines of `[command_center]`.
    pub(crate) command_center: &'static str,
    /// One run takes the time of so many of another kind.
    pub(crate) cost: u64,
    /// Begins it.
    pub(crate) strike: fn(&mut Scene<'_>),
    /// What the gateway makes of it.
    pub(crate) notice: Notice,
    /// How long it goes on after that.
    pub(crate) hold: Hold,
    /// Ends it.
    pub(crate) heal: fn(&mut Scene<'_>),
}

/// What a fault may touch.
#[derive(Debug)]
pub(crate) struct Scene<'a> {
    /// Between the gateway and the broker.
    pub(crate) proxy: &'a Proxy,
    /// The command center's.
    pub(crate) broker: &'a mut Broker,
    /// Who uses the gateway's client id.
    intruder: &'a mut Option<Connection>,
}

/// What the gateway must make of a fault.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Notice {
    /// Its connection ends for one of these reasons, within this time.
    Within(Duration, &'static [&'static str]),
    /// Nothing: its connection survives.
    Nothing,
    /// Either.
    Either,
}

/// How long a fault goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hold {
    /// No longer.
    No,
    /// So long.
    For(Duration),
    /// Until the gateway has knocked at the proxy again.
    Knock,
    /// Until an attempt to connect has failed for one of these reasons.
    Attempt(&'static [&'static str]),
    /// Until so many more records are confirmed, or none is left.
    Confirmed(f64),
}

/// What most kinds are like.
pub(crate) const PLAIN: Kind = Kind {
    name: "",
    url: "mqtt://127.0.0.1:{proxy}",
    access: Access::Open,
    command_center: KEEP_ALIVE,
    cost: 1,
    strike: |_| (),
    notice: Notice::Within(AT_ONCE, &["closed"]),
    hold: Hold::No,
    heal: |scene| scene.proxy.heal(),
};

/// Nothing comes or goes, and nobody says so.
const SILENT: Kind = Kind { notice: Notice::Within(SILENCE_MAX, &["silent"]), hold: Hold::Knock, ..PLAIN };

/// FIN in both directions.
pub(crate) const CLOSED: Kind = Kind { name: "connection closed", strike: |scene| scene.proxy.cut(Cut::Fin), ..PLAIN };

/// RST in both directions.
pub(crate) const RESET: Kind = Kind { name: "connection reset", strike: |scene| scene.proxy.cut(Cut::Reset), ..PLAIN };

/// FIN to the gateway; what it said before reaches the broker when its next connection is already there.
pub(crate) const HALF_CLOSED: Kind = Kind {
    name: "slow close",
    strike: |scene| {
        let late = Way { delay: Duration::from_secs(3), ..Way::default() };
        scene.proxy.set(Reach::Present, Conditions { up: late, down: Way::default() });
        scene.proxy.cut(Cut::Half);
    },
    heal: |_| (),
    ..PLAIN
};

/// Nobody listens for a while.
pub(crate) const REFUSED: Kind = Kind {
    name: "connection refused",
    strike: |scene| {
        scene.proxy.set_door(Door::Closed);
        scene.proxy.cut(Cut::Reset);
    },
    hold: Hold::Attempt(&["unreachable"]),
    ..PLAIN
};

/// Somebody accepts and never says a word.
pub(crate) const MUTE: Kind = Kind {
    name: "accepted, then silence",
    cost: 5,
    strike: |scene| {
        scene.proxy.set_door(Door::Silent);
        scene.proxy.cut(Cut::Reset);
    },
    hold: Hold::Attempt(&["unreachable"]),
    ..PLAIN
};

/// Nothing passes; what was held comes late, to a broker that has another connection by then.
pub(crate) const HOLE: Kind = Kind {
    name: "black hole both ways",
    strike: |scene| scene.proxy.set(Reach::All, Conditions::flowing(Flow::Hold)),
    ..SILENT
};

/// Something on the way confirms on the level of TCP, and forgets.
pub(crate) const SWALLOWED: Kind = Kind {
    name: "black hole that swallows",
    strike: |scene| scene.proxy.set(Reach::All, Conditions::flowing(Flow::Swallow)),
    ..SILENT
};

/// The broker hears nothing more, and may say so itself.
pub(crate) const HOLE_UP: Kind = Kind {
    name: "black hole up only",
    strike: |scene| scene.proxy.set(Reach::All, Conditions { up: HELD, down: Way::default() }),
    notice: Notice::Within(SILENCE_MAX, &["silent", "closed"]),
    ..SILENT
};

/// The gateway hears nothing more; the broker takes what it is not known to have taken.
pub(crate) const HOLE_DOWN: Kind = Kind {
    name: "black hole down only",
    strike: |scene| scene.proxy.set(Reach::All, Conditions { up: Way::default(), down: HELD }),
    ..SILENT
};

/// A NAT forgets the flow: it is dead, and a new one is not.
pub(crate) const FORGOTTEN: Kind = Kind {
    name: "flow forgotten by a NAT",
    strike: |scene| scene.proxy.set(Reach::Present, Conditions::flowing(Flow::Hold)),
    ..SILENT
};

/// The same with the keep alive that ships: the PUBACK that does not come tells.
pub(crate) const HOLE_SHIPPED: Kind = Kind {
    name: "black hole, keep alive 120 s",
    command_center: KEEP_ALIVE_SHIPPED,
    cost: 5,
    notice: Notice::Within(PUBACK_MAX, &["silent"]),
    ..HOLE
};

/// Too short to be noticed; TCP delivers what was held, and nothing need be sent twice.
pub(crate) const HOLE_SHORT: Kind =
    Kind { name: "black hole for 2 s", notice: Notice::Nothing, hold: Hold::For(Duration::from_secs(2)), ..HOLE };

/// A satellite, or a modem that repeats and repeats: 4 s there and back.
pub(crate) const FAR: Kind = Kind {
    name: "latency 2 s each way",
    strike: |scene| scene.proxy.set(Reach::All, Conditions::delayed(Duration::from_secs(2))),
    notice: Notice::Nothing,
    hold: Hold::Confirmed(20.0),
    ..PLAIN
};

/// GPRS in a full cell. A backlog of alarms may take so long that the gateway gives a connection up and goes on.
pub(crate) const GPRS: Kind = Kind {
    name: "2G: 20 kbit/s down, 10 up, 600 ms",
    command_center: KEEP_ALIVE_SHIPPED,
    strike: |scene| {
        let way =
            |bytes_per_s| Way { delay: Duration::from_millis(300), bytes_per_s: Some(bytes_per_s), ..Way::default() };
        scene.proxy.set(Reach::All, Conditions { up: way(1_250), down: way(2_500) });
    },
    notice: Notice::Either,
    hold: Hold::Confirmed(15.0),
    ..PLAIN
};

/// Everything arrives in crumbs.
pub(crate) const SLICED: Kind = Kind {
    name: "pieces of 1 to 7 bytes",
    strike: |scene| {
        let sliced = Way { slice_bytes_max: Some(7), ..Way::default() };
        scene.proxy.set(Reach::All, Conditions::both(sliced));
    },
    notice: Notice::Nothing,
    hold: Hold::Confirmed(20.0),
    ..PLAIN
};

/// A captive portal, a broken box: bytes that no broker said. A part of a packet looks like silence.
pub(crate) const GARBAGE: Kind = Kind {
    name: "garbage towards the gateway",
    strike: |scene| scene.proxy.inject(&std::array::from_fn::<u8, 64, _>(|_| fastrand::u8(..))),
    notice: Notice::Within(SILENCE_MAX, &["protocol", "closed", "silent"]),
    ..PLAIN
};

/// The broker is restarted in peace.
pub(crate) const RESTARTED: Kind = Kind {
    name: "broker restarted (SIGTERM)",
    command_center: RECEIPT,
    strike: |scene| scene.broker.stop(),
    hold: Hold::Attempt(&["closed", "unreachable"]),
    heal: |scene| scene.broker.restart(),
    ..PLAIN
};

/// The broker comes back without its memory: no session, nothing retained.
pub(crate) const FORGETFUL: Kind = Kind {
    name: "session and retained messages lost",
    command_center: RECEIPT,
    strike: |scene| {
        scene.broker.kill9();
        scene.broker.forget();
    },
    hold: Hold::Attempt(&["closed", "unreachable"]),
    heal: |scene| scene.broker.restart(),
    ..PLAIN
};

/// The broker shows the certificate of another authority, until it has its own again. What somebody must mend is tried
/// again after half a minute and more.
pub(crate) const UNTRUSTED: Kind = Kind {
    name: "TLS certificate wrong for a while",
    url: "mqtts://127.0.0.1:{proxy}",
    access: Access::Certificates,
    command_center: RECEIPT,
    cost: 10,
    strike: |scene| {
        let other = Authority::new("Lain CA").server(&["127.0.0.1"], ALWAYS);
        scene.broker.restart_as(&other);
    },
    hold: Hold::Attempt(&["tls-unknown-issuer"]),
    heal: |scene| {
        let own = scene.broker.authority.server(&["127.0.0.1"], ALWAYS);
        scene.broker.restart_as(&own);
    },
    ..PLAIN
};

/// Another client takes the client id, until the gateway takes it back. MQTT 5 has a word for it, which not every broker
/// says: mosquitto 2.0.11 only closes.
pub(crate) const TAKEN_OVER: Kind = Kind {
    name: "client id taken over",
    strike: |scene| *scene.intruder = Some(Connection::open_patiently(scene.broker.port, Version::V5, ID, None)),
    notice: Notice::Within(AT_ONCE, &["taken-over", "closed"]),
    hold: Hold::Knock,
    heal: |scene| *scene.intruder = None,
    ..PLAIN
};

/// A connection ends, and says so or says nonsense; or its broker does.
pub(crate) const ENDS: [&Kind; 8] =
    [&CLOSED, &RESET, &HALF_CLOSED, &REFUSED, &GARBAGE, &TAKEN_OVER, &RESTARTED, &FORGETFUL];
/// A connection falls silent.
pub(crate) const SILENCES: [&Kind; 6] = [&HOLE, &SWALLOWED, &HOLE_UP, &HOLE_DOWN, &FORGOTTEN, &HOLE_SHORT];
/// A connection is slow or crumbly.
pub(crate) const SLOW: [&Kind; 3] = [&FAR, &GPRS, &SLICED];
/// Half a minute or more goes by each time.
pub(crate) const LONG: [&Kind; 3] = [&HOLE_SHIPPED, &MUTE, &UNTRUSTED];

const HELD: Way = Way { flow: Flow::Hold, delay: Duration::ZERO, slice_bytes_max: None, bytes_per_s: None };

/// What was proved of one kind.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The books.
    pub(crate) load: load::Outcome,
    /// Longest time from a strike to the end of the connection; none where it survives.
    pub(crate) longest_detection: Option<Duration>,
    /// Connections that ended, for every reason.
    pub(crate) ends: BTreeMap<String, f64>,
}

impl fmt::Display for Outcome {
    /// `kind | runs | events | settled | lost | repeated | longest detection s`, and why connections ended.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load::Outcome { name, kills, events, settled, lost, repeated, .. } = &self.load;
        let detection = self.longest_detection.map_or("-".to_owned(), |took| format!("{:.1}", took.as_secs_f64()));
        let ends: Vec<String> = self.ends.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let ends = ends.join(", ");
        write!(
            f,
            "{name:<36} | {kills:>4} | {events:>6} | {settled:>7} | {lost} | {repeated:>5} | {detection:>5} | {ends}"
        )
    }
}

/// Strikes so often, and proves that nothing was lost. Prints its row.
pub(crate) fn run(kind: &Kind, runs: u64) -> Outcome {
    let broker = Broker::start_with(kind.access);
    let proxy = Proxy::to(if kind.access == Access::Certificates { broker.tls_port } else { broker.port });
    let url = kind.url.replace("{proxy}", &proxy.port.to_string());
    let plan = Plan { access: kind.access, command_center: kind.command_center, body: &load::body() };
    let mut park = Park::furnish_around(broker, &[&url], &plan);
    park.gateway.start();
    park.center.wait_for_status("the gateway online", |status| status["state"] == "online");
    let (mut longest_detection, mut ends, mut intruder) = (None, BTreeMap::new(), None);
    let load = Load { name: kind.name, faults: (runs / kind.cost).max(1), between: Between::Delivered };
    let load = load.on(&mut park, |gateway, broker| {
        let mut scene = Scene { proxy: &proxy, broker, intruder: &mut intruder };
        longest_detection = longest_detection.max(once(kind, gateway, &mut scene));
        ends = self::ends(gateway);
    });
    let outcome = Outcome { load, longest_detection, ends };
    eprintln!("{outcome}");
    outcome
}

/// How often a network fault strikes in one test; `GARDU_FAULTS` asks for more. Twice shows that healing is not luck.
pub(crate) fn times() -> u64 {
    std::env::var("GARDU_FAULTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// Several kinds at the same time, each in a park of its own: they wait more than they work.
pub(crate) fn run_side_by_side(kinds: &[&Kind], runs: u64) {
    thread::scope(|scope| {
        let running: Vec<_> = kinds.iter().map(|kind| (kind.name, scope.spawn(|| run(kind, runs)))).collect();
        let failed = running.into_iter().filter_map(|(name, thread)| thread.join().is_err().then_some(name));
        let failed: Vec<&str> = failed.collect();
        assert!(failed.is_empty(), "{failed:?}");
    });
}

/// One strike, from a connection that is up to the next that is up. Returns how long it took to be noticed, if it had to be.
fn once(kind: &Kind, gateway: &mut Gateway, scene: &mut Scene<'_>) -> Option<Duration> {
    let (before, knocks, confirmed) = (ends(gateway), scene.proxy.accepted(), confirmations(gateway));
    let struck = Instant::now();
    (kind.strike)(scene);
    let mut noticed = None;
    if let Notice::Within(bound, reasons) = kind.notice {
        until(&format!("{}: the gateway notices", kind.name), || has_ended(&ends(gateway), &before, reasons));
        let took = struck.elapsed();
        assert!(took <= bound + MARGIN, "{}: noticed after {took:?}\n{}", kind.name, gateway.log());
        noticed = Some(took);
    }
    let what = format!("{}: {:?}", kind.name, kind.hold);
    match kind.hold {
        Hold::No => {}
        Hold::For(so_long) => thread::sleep(so_long),
        Hold::Knock => until(&what, || scene.proxy.accepted() > knocks),
        Hold::Attempt(reasons) => {
            let noticed = ends(gateway);
            until(&what, || has_ended(&ends(gateway), &noticed, reasons));
        }
        Hold::Confirmed(so_many) => until(&what, || confirmations(gateway) >= confirmed + so_many || !waits(gateway)),
    }
    (kind.heal)(scene);
    let healed = Instant::now();
    while gateway.metric("gardu_uplink_connected") < 1.0 {
        assert!(healed.elapsed() < RETURN_MAX, "{}: it does not come back\n{}", kind.name, gateway.log());
        pause();
    }
    if let Notice::Nothing = kind.notice {
        assert_eq!(ends(gateway), before, "{}: a connection ended\n{}", kind.name, gateway.log());
    }
    noticed
}

/// Whether a connection has ended since, for one of these reasons.
fn has_ended(now: &BTreeMap<String, f64>, before: &BTreeMap<String, f64>, reasons: &[&str]) -> bool {
    let count = |ends: &BTreeMap<String, f64>, reason: &str| ends.get(reason).copied().unwrap_or(0.0);
    reasons.iter().any(|reason| count(now, reason) > count(before, reason))
}

/// Connections that ended, by reason.
pub(crate) fn ends(gateway: &Gateway) -> BTreeMap<String, f64> {
    let reason = |labels: String| labels.trim_start_matches("reason=\"").trim_end_matches('"').to_owned();
    let series = gateway.series("gardu_uplink_reconnects_total");
    series.into_iter().map(|(labels, count)| (reason(labels), count)).collect()
}

/// Whether a record waits for its confirmation.
fn waits(gateway: &Gateway) -> bool {
    gateway.series("gardu_outbox_records").values().any(|waiting| *waiting >= 1.0)
}

/// Records confirmed by the broker so far.
fn confirmations(gateway: &Gateway) -> f64 {
    gateway.metric("gardu_uplink_puback_seconds_count")
}
