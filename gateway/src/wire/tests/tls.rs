//! TLS against a broker that shows any certificate and demands any.

use std::path::PathBuf;

use rcgen::KeyPair;
use tokio::net::TcpListener;

use super::{
    certificates::{Admits, Authority, Folder, Pair, TLS_VERSIONS, accept, server},
    *,
};
use crate::{
    clock::Now,
    config::ClientCertificate,
    wire::tls::{FilesFault, Fingerprint},
};

const BOTH: [(MqttVersion, &[u8]); 2] = [(MqttVersion::V5, CONNACK_5), (MqttVersion::V311, CONNACK_311)];
/// Within these every clock of the tests is right.
pub(super) const YEARS: (i32, i32) = (2020, 2120);

fn clock(date: &str, trusted: bool) -> Clock {
    let wall_ms = crate::clock::parse_rfc3339(date).expect("a time");
    Clock::manual("boot", Now { mono_ms: 0, wall_ms, trusted })
}

pub(super) fn with_tls(host: &str, port: u16, version: MqttVersion, tls: TlsFiles) -> Settings {
    let url = BrokerUrl { scheme: Scheme::Mqtts, host: host.into(), port };
    Settings { url, tls, clock: clock("2026-06-01T00:00:00Z", true), ..settings(port, version) }
}

pub(super) async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

fn fault(event: Event) -> TlsFault {
    match event {
        Event::Down(Down::Tls(fault)) => fault,
        other => panic!("not a fault of TLS: {other:?}"),
    }
}

/// What the wire says of a broker that shows `shows` and admits `admits`; the same with all versions of TLS and MQTT.
async fn refused(shows: &Pair, admits: Admits<'_>, files: &TlsFiles, clock: &Clock) -> TlsFault {
    let mut faults = Vec::new();
    for tls_version in TLS_VERSIONS {
        for (version, connack) in BOTH {
            let (listener, port) = listen().await;
            let tls = server(shows, admits, tls_version);
            let wire_settings = with_tls("localhost", port, version, files.clone());
            let mut wire = Wire::connect(&Settings { clock: clock.clone(), ..wire_settings });
            let script = async {
                if let Some(mut broker) = accept(&listener, &tls).await {
                    let _ = broker.0.write_all(connack).await;
                    panic!("{tls_version:?}: the broker accepted");
                }
            };
            let (event, ()) = next_while(&mut wire, script).await;
            faults.push(fault(event));
        }
    }
    let first = faults.remove(0);
    for other in faults {
        assert_eq!(other.word(), first.word(), "{other:?}");
    }
    first
}

/// Connects, publishes and has it confirmed.
async fn works(listener: &TcpListener, shows: &Pair, admits: Admits<'_>, settings: Settings) {
    for tls_version in TLS_VERSIONS {
        for (version, connack) in BOTH {
            let mut wire = Wire::connect(&Settings { version, ..settings.clone() });
            let tls = server(shows, admits, tls_version);
            let script = async { accept(listener, &tls).await.expect("TLS").welcome(connack).await };
            let (event, mut broker) = next_while(&mut wire, script).await;
            assert!(matches!(event, Event::Up(_)), "{event:?}");
            assert!(wire.publish(1, publish("a", b"x")));
            let script = async {
                let [high, low] = broker.read_publish().await.to_be_bytes();
                broker.send(&[0x40, 2, high, low]).await;
            };
            let (event, ()) = next_while(&mut wire, script).await;
            assert_eq!(confirmed(&event), (1, Verdict::Accepted));
        }
    }
}

#[tokio::test]
async fn a_broker_is_known_by_its_name_or_its_address() {
    let (city, folder) = (Authority::new("city"), Folder::new());
    let files = folder.files(&city, None);
    for (host, bind, name) in [
        ("localhost", "127.0.0.1:0", "localhost"),
        ("127.0.0.1", "127.0.0.1:0", "127.0.0.1"),
        ("[::1]", "[::1]:0", "::1"),
    ] {
        let Ok(listener) = TcpListener::bind(bind).await else {
            assert!(bind.starts_with('['), "only a machine without IPv6 may lack its loopback");
            continue;
        };
        let port = listener.local_addr().expect("bound").port();
        let settings = with_tls(host, port, MqttVersion::V5, files.clone());
        works(&listener, &city.issue(&[name], YEARS), Admits::All, settings).await;
    }
}

#[tokio::test]
async fn an_address_of_ipv6_resolves_with_and_without_tls() {
    let (city, folder) = (Authority::new("city"), Folder::new());
    for scheme in [Scheme::Mqtt, Scheme::Mqtts] {
        let settings = with_tls("[2001:db8::7]", 8883, MqttVersion::V5, folder.files(&city, None));
        let url = BrokerUrl { scheme, ..settings.url.clone() };
        let peer = peer::Peer::new(&Settings { url, ..settings }).expect("it can be verified");
        let found = tokio::net::lookup_host(format!("{}:8883", peer.host())).await.expect("it resolves");
        assert_eq!(found.collect::<Vec<_>>(), ["[2001:db8::7]:8883".parse().expect("an address")]);
    }
}

#[tokio::test]
async fn a_client_certificate_lets_us_in_whatever_the_form_of_its_key() {
    let (city, folder) = (Authority::new("city"), Folder::new());
    let (listener, port) = listen().await;
    let broker = city.issue(&["localhost"], YEARS);
    let elliptic = KeyPair::generate().expect("a key");
    let rsa = KeyPair::from_pem(include_str!("keys/rsa.pem")).expect("a key");
    // Both lie whole in PKCS #8, behind a head of the same length for all keys of their size.
    let sec1 = pem("EC PRIVATE KEY", &elliptic.serialize_der()[29..]);
    let pkcs1 = pem("RSA PRIVATE KEY", &rsa.serialize_der()[26..]);
    for pair in [
        city.issue(&["taman-01"], YEARS),
        Pair { cert: city.certify(&elliptic, &["taman-01"], YEARS), key: sec1 },
        Pair { cert: city.certify(&rsa, &["taman-01"], YEARS), key: pkcs1 },
    ] {
        let settings = with_tls("localhost", port, MqttVersion::V5, folder.files(&city, Some(&pair)));
        works(&listener, &broker, Admits::OnlyOf(&city), settings).await;
    }
}

#[tokio::test]
async fn a_client_certificate_that_only_a_broker_can_judge_is_shown_to_it() {
    let (city, folder) = (Authority::new("city"), Folder::new());
    let (listener, port) = listen().await;
    // X.509 version 1.
    let old = Pair { cert: include_str!("keys/rsa-v1.pem").into(), key: include_str!("keys/rsa.pem").into() };
    let settings = with_tls("localhost", port, MqttVersion::V5, folder.files(&city, Some(&old)));
    works(&listener, &city.issue(&["localhost"], YEARS), Admits::All, settings).await;
}

#[tokio::test]
async fn a_broker_that_cannot_be_known_is_refused_with_the_reason() {
    let (city, other, folder) = (Authority::new("city"), Authority::new("other"), Folder::new());
    let (files, now) = (folder.files(&city, None), clock("2026-06-01T00:00:00Z", true));
    let ours = |names: &[&str], years| city.issue(names, years);

    let unknown = refused(&other.issue(&["localhost"], YEARS), Admits::All, &files, &now).await;
    assert_eq!(unknown, TlsFault::UnknownIssuer);

    let expired = refused(&ours(&["localhost"], (2020, 2026)), Admits::All, &files, &now).await;
    // rustls-webpki before 0.103 does not tell the date: this is the present verifier.
    assert_eq!(expired, TlsFault::Expired { not_after_ms: Some(1_767_225_600_000), now: now.now() });
    assert_eq!(
        expired.to_string(),
        "the broker's certificate expired on 2026-01-01T00:00:00.000Z: it must be renewed there"
    );

    let wrong = refused(&ours(&["cc1.example", "127.0.0.1"], YEARS), Admits::All, &files, &now).await;
    let TlsFault::WrongName { asked, has } = &wrong else { panic!("{wrong:?}") };
    assert_eq!(asked, "localhost");
    assert_eq!(has[..], ["cc1.example", "127.0.0.1"], "{wrong}");
    let nameless = refused(&ours(&[], YEARS), Admits::All, &files, &now).await;
    assert!(nameless.to_string().contains("no subjectAltName"), "{nameless}");

    let itself = refused(&city.itself(), Admits::All, &files, &now).await;
    assert!(itself.to_string().contains("CA:TRUE"), "{itself}");

    for fault in [unknown, expired, wrong, nameless, itself] {
        assert!(Down::Tls(fault.clone()).needs_person(), "{fault:?}");
    }
}

#[tokio::test]
async fn without_a_ca_file_only_the_authorities_of_the_system_count() {
    let city = Authority::new("city");
    let (listener, port) = listen().await;
    let tls = server(&city.issue(&["localhost"], YEARS), Admits::All, TLS_VERSIONS[1]);
    let mut wire = Wire::connect(&with_tls("localhost", port, MqttVersion::V5, TlsFiles::default()));
    let fault = tokio::select! {
        event = wire.next() => fault(event),
        () = async { loop { assert!(accept(&listener, &tls).await.is_none()) } } => unreachable!(),
    };
    let nobody = TlsFault::Files(FilesFault::NoAuthorities);
    assert!(fault == TlsFault::UnknownIssuer || fault == nobody, "{fault:?}");
}

#[tokio::test]
async fn a_date_is_not_the_certificates_fault_while_our_clock_is_not_set() {
    let (city, folder) = (Authority::new("city"), Folder::new());
    let (files, broker) = (folder.files(&city, None), city.issue(&["localhost"], (2026, 2030)));
    let clock = clock("1970-01-01T00:00:40Z", false);
    let early = refused(&broker, Admits::All, &files, &clock).await;
    let not_before_ms = Some(1_767_225_600_000);
    assert_eq!(early, TlsFault::NotYetValid { not_before_ms, now: clock.now() });
    assert!(!early.needs_person(), "it comes right with the clock");
    assert!(early.to_string().contains("our clock shows 1970-01-01T00:00:40.000Z"), "{early}");

    let at = |date, trusted| Now { wall_ms: crate::clock::parse_rfc3339(date).expect("a time"), trusted, mono_ms: 9 };
    clock.set(at("2025-12-31T00:00:00Z", true));
    let early = refused(&broker, Admits::All, &files, &clock).await;
    assert!(early.needs_person(), "{early}");

    clock.set(at("2026-06-01T00:00:00Z", true));
    let (listener, port) = listen().await;
    let settings = with_tls("localhost", port, MqttVersion::V5, files);
    works(&listener, &broker, Admits::All, Settings { clock, ..settings }).await;
}

#[tokio::test]
async fn a_broker_that_does_not_accept_our_certificate_says_so_before_or_after_the_handshake() {
    let (city, other, folder) = (Authority::new("city"), Authority::new("other"), Folder::new());
    let (broker, now) = (city.issue(&["localhost"], YEARS), clock("2026-06-01T00:00:00Z", true));
    let admits = Admits::OnlyOf(&city);

    let without = refused(&broker, admits, &folder.files(&city, None), &now).await;
    assert_eq!(without, TlsFault::ClientRequired);

    let foreign = folder.files(&city, Some(&other.issue(&["taman-01"], YEARS)));
    let foreign = refused(&broker, admits, &foreign, &now).await;
    assert_eq!(foreign, TlsFault::ClientRefused("UnknownCA".into()));

    let expired = folder.files(&city, Some(&city.issue(&["taman-01"], (2020, 2021))));
    let expired = refused(&broker, admits, &expired, &now).await;
    assert_eq!(expired, TlsFault::ClientRefused("CertificateExpired".into()));
    assert!(without.needs_person() && foreign.needs_person() && expired.needs_person());
}

#[tokio::test]
async fn files_count_from_the_next_connection_on() {
    let (city, other, folder) = (Authority::new("city"), Authority::new("other"), Folder::new());
    let (broker, now) = (city.issue(&["localhost"], YEARS), clock("2026-06-01T00:00:00Z", true));
    let files = folder.files(&other, Some(&other.issue(&["taman-01"], YEARS)));
    let before = Fingerprint::of(&files);
    let fault = refused(&broker, Admits::All, &files, &now).await;
    assert_eq!(fault, TlsFault::UnknownIssuer);
    assert_eq!(Fingerprint::of(&files), before, "nothing changed");

    assert_eq!(folder.files(&city, Some(&city.issue(&["taman-01"], YEARS))), files, "the same paths");
    assert_ne!(Fingerprint::of(&files), before);
    let (listener, port) = listen().await;
    let settings = with_tls("localhost", port, MqttVersion::V5, files);
    works(&listener, &broker, Admits::OnlyOf(&city), settings).await;
}

#[test]
fn a_link_that_points_elsewhere_is_a_change_and_the_same_again_is_none() {
    let folder = Folder::new();
    let (old, same, new) = (folder.write("old", "1"), folder.write("same", "1"), folder.write("new", "2"));
    let link = folder.path("link");
    let files = TlsFiles { ca: Some(link.clone()), client: None };
    let point_to = |target: &std::path::Path| {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).expect("a link");
        Fingerprint::of(&files)
    };
    let (missing, first) = (Fingerprint::of(&files), point_to(&old));
    assert_ne!(missing, first);
    assert_eq!(point_to(&same), first);
    assert_ne!(point_to(&new), first);
    let swapped = |ca, cert| TlsFiles { ca: Some(ca), client: Some(ClientCertificate { cert, key: link.clone() }) };
    assert_ne!(
        Fingerprint::of(&swapped(old.clone(), new.clone())),
        Fingerprint::of(&swapped(new, old)),
        "which file has what counts too"
    );
}

#[tokio::test]
async fn unusable_files_end_the_connection_before_it_begins() {
    let (city, other, folder) = (Authority::new("city"), Authority::new("other"), Folder::new());
    let pair = city.issue(&["taman-01"], YEARS);
    let good = folder.files(&city, Some(&pair));
    let (cert, key) = (folder.path("client.pem"), folder.path("client.key"));
    let ca = |path: PathBuf| TlsFiles { ca: Some(path), ..good.clone() };
    let client =
        |cert: PathBuf, key: PathBuf| TlsFiles { client: Some(ClientCertificate { cert, key }), ..good.clone() };
    let foreign = other.issue(&["x"], YEARS);
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let large = "#".repeat(2 * 1024 * 1024);
    for (files, said) in [
        (ca(folder.path("none.pem")), "none.pem: No such file"),
        (ca(folder.path("")), "is a directory"),
        (ca("/dev/zero".into()), "not a regular file"),
        (ca(folder.write("large", &large)), "file too large"),
        (ca(folder.write("empty", "")), "empty: no certificate"),
        (ca(folder.write("broken", broken)), "broken: "),
        (ca(folder.write("no-der", no_der)), "no-der: "),
        (ca(key.clone()), "client.key: no certificate"),
        (client(cert.clone(), cert.clone()), "client.pem: no private key"),
        (client(cert.clone(), folder.write("secret", encrypted)), "secret: the key is encrypted"),
        (client(folder.write("no-der-2", no_der), key), "no-der-2: "),
        (client(cert, folder.write("foreign.key", &foreign.key)), "foreign.key does not belong to"),
    ] {
        let (listener, port) = listen().await;
        let mut wire = Wire::connect(&with_tls("localhost", port, MqttVersion::V5, files));
        let fault = fault(wire.next().await);
        assert!(fault.to_string().contains(said), "{said}: {fault}");
        assert!(matches!(&fault, TlsFault::Files(_)) && !fault.needs_person(), "{fault:?}");
        assert!(futures_util::poll!(Box::pin(listener.accept())).is_pending(), "nothing was sent");
        assert!(!wire.publish(1, publish("a", b"")), "it is down");
        assert!(futures_util::poll!(Box::pin(wire.next())).is_pending(), "it has nothing more to say");
    }
    let mut wire = Wire::connect(&with_tls("a..b", 1, MqttVersion::V5, good));
    assert_eq!(fault(wire.next().await), TlsFault::Host("a..b".into()));
}

#[tokio::test]
async fn a_peer_without_our_tls_is_told_from_one_that_hangs_up() {
    // RFC 4346: an alert protocol_version, and a ServerHello of TLS 1.1 without extensions.
    let alert = [&[21, 3, 2, 0, 2, 2, 70][..]].concat();
    let hello = [&[22, 3, 2, 0, 42, 2, 0, 0, 38, 3, 2][..], &[7; 32], &[0, 0, 0x2F, 0]].concat();
    let cases: [(&[u8], &str); 5] = [
        (&alert, "tls-incompatible"),
        (&hello, "tls-incompatible"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls-not-spoken"),
        (b"\xF0\x00\xFF\xFF\xFF", "tls-not-spoken"),
        (b"", "tls-aborted"),
    ];
    let (city, folder) = (Authority::new("city"), Folder::new());
    for (answer, word) in cases {
        for (version, _) in BOTH {
            let (listener, port) = listen().await;
            let mut wire = Wire::connect(&with_tls("127.0.0.1", port, version, folder.files(&city, None)));
            let script = async {
                let mut stream = listener.accept().await.expect("a client").0;
                assert_eq!(stream.read_u8().await.expect("a ClientHello"), 22);
                stream.write_all(answer).await.expect("the wire reads");
                // All that was sent is taken, so that closing does not overtake the answer.
                stream.shutdown().await.expect("open");
                let _ = stream.read_to_end(&mut Vec::new()).await;
            };
            let (event, ()) = next_while(&mut wire, script).await;
            let fault = fault(event);
            assert_eq!(fault.word(), word, "{answer:?}: {fault}");
            assert_eq!(fault.needs_person(), word != "tls-aborted", "{fault:?}");
        }
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let used = digit <= chunk.len();
            text.push(if used { char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]) } else { '=' });
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}
