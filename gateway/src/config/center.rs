//! The sections that stand once: who the gateway is, the uplink, the outbox, what is served, telemetry.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use super::{
    BrokerUrl, CommandCenter, DeliveredWhen, Gateway, Http, Language, Location, MqttVersion, Outbox, Report, Scheme,
    Telemetry,
    document::{Node, Section},
    files,
    names::clash,
    problem::Spot,
    read::{Document, Secrets},
    tls,
    units::{self, UrlError, UrlScheme},
};

/// Longest name or address for people: a line on a small screen, and far below the size of a record.
pub(super) const LINE_CHARS_MAX: usize = 200;
const LANGUAGES: [(&str, Language); 2] = [("id", Language::Indonesian), ("en", Language::English)];
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
/// Longest interval of any report.
const INTERVAL_MAX: Duration = DAY;
/// Size of the outbox: sixteen of the smallest generations, and more than any card has.
const OUTBOX_SIZE: RangeInclusive<u64> = 16 << 20..=1024 << 30;
/// Age of telemetry: an hour is the shortest outage worth waiting for; ten years is for ever.
const AGE: RangeInclusive<Duration> = Duration::from_secs(3_600)..=Duration::from_secs(3_650 * 86_400);

/// The language the files ask for, readable even where much else is wrong; notes nothing.
pub(super) fn language(document: &Document<'_>) -> Option<Language> {
    document.tops.iter().find_map(|top| top.peek("gateway", "language")).and_then(Language::parse)
}

pub(super) fn gateway(document: &Document<'_>) -> Option<Gateway> {
    let section = document.required("gateway", "[gateway]", "id = \"taman-elektrik-01\"")?;
    let id = section.required("id", "\"taman-elektrik-01\"", |node| match node.segment()? {
        id if id.as_str() == "center" => node.wrong("check-reserved", &[("name", "center".into())]),
        id => Some(id),
    });
    let line = |node: Node<'_>| node.line(LINE_CHARS_MAX).map(str::to_owned);
    let site = section.optional("site", line);
    let name = section.optional("name", line);
    let timezone = section.or("timezone", "Asia/Jakarta", |node| {
        let text = node.text()?;
        if units::is_time_zone(text) { Some(text) } else { node.wrong("check-timezone", &[("value", text.into())]) }
    });
    let location = section.optional("location", location);
    let language = section.or("language", Language::Indonesian, |node| node.choice(&LANGUAGES, &[]));
    section.finish();
    let id = id?;
    let or_id = |text: Option<String>| text.unwrap_or_else(|| id.as_str().to_owned());
    Some(Gateway { site: or_id(site), name: or_id(name), timezone: timezone.to_owned(), location, language, id })
}

fn location(node: Node<'_>) -> Option<Location> {
    let section = node.section("location")?;
    let line = |node: Node<'_>| node.line(LINE_CHARS_MAX).map(str::to_owned);
    let lat = section.required("lat", "-6.1702", |node| node.number_in(-90.0..=90.0));
    let lon = section.required("lon", "106.6403", |node| node.number_in(-180.0..=180.0));
    let (address, landmark) = (section.optional("address", line), section.optional("landmark", line));
    section.finish();
    Some(Location { lat: lat?, lon: lon?, address, landmark })
}

pub(super) fn command_center(document: &Document<'_>, secrets: Secrets<'_>) -> Option<CommandCenter> {
    let section = document.required("command_center", "[command_center]", "urls = [\"mqtt://127.0.0.1:1883\"]")?;
    let urls = section.required("urls", "[\"mqtt://127.0.0.1:1883\"]", |node| match node.list()? {
        none if none.is_empty() => node.wrong("check-empty-list", &[]),
        // All of them are read, so that every mistake is shown.
        urls => urls.into_iter().map(broker_url).collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>(),
    });
    let version = protocol(&section);
    let delivered_default = match version {
        MqttVersion::V5 => DeliveredWhen::Subscriber,
        MqttVersion::V311 => DeliveredWhen::Puback,
    };
    let delivered_when = section.or("delivered_when", delivered_default, |node| {
        let choices = [
            ("subscriber", DeliveredWhen::Subscriber),
            ("puback", DeliveredWhen::Puback),
            ("receipt", DeliveredWhen::Receipt),
        ];
        match node.choice(&choices, &[])? {
            DeliveredWhen::Subscriber if version == MqttVersion::V311 => node.wrong("check-subscriber", &[]),
            chosen => Some(chosen),
        }
    });
    let login = files::login(&section, secrets);
    let keep_alive = keep_alive(&section);
    let topic_prefix = section.or("topic_prefix", "gardu/v1", topic_prefix).to_owned();
    let hold_when_center_offline = section.or("hold_when_center_offline", false, Node::boolean);
    let tls = tls::client(&section, urls.as_deref(), secrets);
    section.later(&["data_budget"]);
    section.finish();
    Some(CommandCenter {
        urls: urls?,
        version,
        delivered_when,
        login,
        tls,
        keep_alive,
        topic_prefix,
        hold_when_center_offline,
    })
}

/// The MQTT version of a connection; MQTT 5 unless chosen.
pub(super) fn protocol(section: &Section<'_>) -> MqttVersion {
    let choices = [("v5", MqttVersion::V5), ("v3.1.1", MqttVersion::V311)];
    section.or("protocol", MqttVersion::V5, |node| node.choice(&choices, &[]))
}

/// Keep alive: 120 s unless chosen. It travels as whole seconds in 16 bits (MQTT 5.0 §3.1.2.10). A ping sent after one
/// keep alive must be answered within half of another; below 10 s a link of 2 s latency each way looks dead.
pub(super) fn keep_alive(section: &Section<'_>) -> Duration {
    section.or("keep_alive", 120 * SECOND, |node| {
        let keep_alive = node.duration(10 * SECOND..=65_535 * SECOND)?;
        if keep_alive.subsec_nanos() == 0 { Some(keep_alive) } else { node.wrong("check-whole-seconds", &[]) }
    })
}

/// `mqtt://host[:port]` or `mqtts://host[:port]`.
pub(super) fn broker_url(node: Node<'_>) -> Option<BrokerUrl> {
    let schemes = [("mqtt", Scheme::Mqtt, 1883), ("mqtts", Scheme::Mqtts, 8883)];
    let (scheme, host, port) = url(node, &schemes, "mqtts://cc1.example.go.id:8883")?;
    if scheme == Scheme::Mqtts && !tls::is_server_name(&host) {
        return node.wrong("check-url-server-name", &[("value", host.into())]);
    }
    Some(BrokerUrl { scheme, host, port })
}

/// Scheme, host and port of a URL; a text with a login in it is not repeated.
pub(super) fn url<T: Copy>(
    node: Node<'_>,
    schemes: &[UrlScheme<T>],
    example: &'static str,
) -> Option<(T, String, u16)> {
    let text = node.text()?;
    match units::url(text, schemes) {
        Ok(parts) => Some(parts),
        Err(UrlError::Login) => node.wrong("check-url-login", &[]),
        Err(UrlError::Shape) => node.wrong("check-url", &[("value", text.into()), ("example", example.into())]),
    }
}

/// The start of every topic: no wildcards, no empty level, not the broker's own (`$`; MQTT 5.0 §4.7). 200 characters
/// leave room for the longest alarm in every broker's limit.
fn topic_prefix(node: Node<'_>) -> Option<&str> {
    let text = node.line(200)?;
    let fits = !text.contains(['+', '#']) && !text.starts_with('$') && text.split('/').all(|level| !level.is_empty());
    if fits { Some(text) } else { node.wrong("check-topic-prefix", &[("value", text.into())]) }
}

pub(super) fn outbox(document: &Document<'_>) -> Outbox {
    let (mut path, mut max_size) = (PathBuf::from("/var/lib/gardu/outbox"), 256 << 20);
    let (mut telemetry_max_age, mut write_budget_bytes) = (7 * DAY, None);
    if let Some(section) = document.single("outbox", "[outbox]") {
        path = section.or("path", path, files::file_path);
        max_size = section.or("max_size", max_size, |node| node.size(OUTBOX_SIZE));
        telemetry_max_age = section.or("telemetry_max_age", telemetry_max_age, |node| node.duration(AGE));
        write_budget_bytes = section.optional("write_budget", Node::size_a_day);
        section.finish();
    }
    Outbox { path, max_size, telemetry_max_age, write_budget_bytes }
}

/// Addresses that are taken, so that none is given twice.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<(SocketAddr, Spot)>);

impl Listeners {
    /// Reads an address to listen on; port 0 takes a free one.
    pub(super) fn address(&mut self, node: Node<'_>) -> Option<SocketAddr> {
        let text = node.text()?;
        let Ok(address) = text.parse::<SocketAddr>() else {
            return node.wrong("check-listen", &[("value", text.into())]);
        };
        let same = |other: &SocketAddr| {
            let one_is_all = other.ip().is_unspecified() || address.ip().is_unspecified();
            other.port() == address.port() && (other.ip() == address.ip() || one_is_all)
        };
        match self.0.iter().find(|(other, _)| address.port() != 0 && same(other)) {
            Some((_, spot)) => clash(text, *spot, node),
            None => self.0.push((address, node.spot)),
        }
        Some(address)
    }
}

pub(super) fn http(document: &Document<'_>, listeners: &mut Listeners) -> Http {
    let default = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9184);
    let Some(section) = document.single("http", "[http]") else {
        return Http { listen: default, metrics_listen: None };
    };
    let listen = section.or("listen", default, |node| listeners.address(node));
    let metrics_listen = section.optional("metrics_listen", |node| listeners.address(node));
    section.later(&["tls_cert_file", "tls_key_file"]);
    section.finish();
    Http { listen, metrics_listen }
}

/// The section, and how a point is reported that does not say so itself.
pub(super) fn telemetry(document: &Document<'_>) -> (Telemetry, Report) {
    let default = Duration::from_secs(300);
    let Some(section) = document.single("telemetry", "[telemetry]") else {
        return (Telemetry { interval: default }, Report::Interval);
    };
    let interval = section.or("interval", default, |node| node.duration(SECOND..=INTERVAL_MAX));
    let report = section.or("report", Report::Interval, report);
    section.finish();
    (Telemetry { interval }, report)
}

/// `interval`, `change` or `off`.
pub(super) fn report(node: Node<'_>) -> Option<Report> {
    let choices = [("interval", Report::Interval), ("change", Report::Change { deadband: 0.0 }), ("off", Report::Off)];
    node.choice(&choices, &[])
}
