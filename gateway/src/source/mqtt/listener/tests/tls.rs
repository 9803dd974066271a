//! Devices that come with TLS: who gets in, who does not and why, and files that change meanwhile.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    clock::{Clock, Now},
    config::{BrokerUrl, ListenTls, Scheme, TlsFiles},
    reading::Segment,
    source::mqtt::{
        client::{Broker, ClientTask},
        tests::input,
    },
    wire::tls::server::{Acceptor, Refusal},
};

/// 2026-11-21T12:04:31Z.
const NOW: Now = Now { mono_ms: 50_000, wall_ms: 1_795_262_671_220, trusted: true };

/// Who issues certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, as PEM.
struct Identity {
    cert: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// For this name, until the first of January of a year.
    fn issue(&self, name: &str, year: i32) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Identity { cert, key: key.serialize_pem() }
    }
}

/// The files of a listener.
struct Folder(TempDir);

impl Folder {
    fn of(own: &Identity, client_ca: &str) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        folder.write("ca", client_ca);
        folder.show(own);
        folder
    }

    fn show(&self, own: &Identity) {
        self.write("cert", &own.cert);
        self.write("key", &own.key);
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open_to_all(&self) -> ListenTls {
        ListenTls { cert: self.path("cert"), key: self.path("key"), client_ca: None }
    }

    fn members_only(&self) -> ListenTls {
        ListenTls { client_ca: Some(self.path("ca")), ..self.open_to_all() }
    }
}

async fn listen(files: &ListenTls, clock: &Clock) -> Owner {
    Owner::start_with(None, Some(Acceptor::new(files, clock.clone()).expect("files in order"))).await
}

/// A TLS connection to the listener; in TLS 1.3 it is there before the listener has seen our certificate.
async fn dial(owner: &Owner, trusts: &Authority, shows: Option<&Identity>) -> io::Result<Device> {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(der(&trusts.pem)).expect("an authority");
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring has both")
        .with_root_certificates(roots);
    let config = match shows {
        None => builder.with_no_client_auth(),
        Some(Identity { cert, key }) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(vec![der(cert)], key).expect("a pair")
        }
    };
    let stream = soon(TcpStream::connect(owner.address)).await.expect("it listens");
    let name = ServerName::try_from("gardu.local").expect("a name");
    let stream = soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await?;
    Ok(Device { stream: Box::new(stream) })
}

async fn comes_in(owner: &mut Owner, trusts: &Authority, shows: Option<&Identity>) {
    let mut device = dial(owner, trusts, shows).await.expect("a secure connection");
    device.send(&connect(V5, "cam", 60, None, None)).await;
    owner.connected().await;
    assert!(!device.packet().await.is_empty(), "CONNACK");
    device.send(&publish(V5, 1, 7, "a/b", b"1")).await;
    let (message, done) = owner.published().await;
    assert_eq!((message.topic.as_str(), &message.payload[..]), ("a/b", &b"1"[..]));
    let _ = done.send(());
    assert_eq!(device.packet().await, [0x40, 2, 0, 7]);
    device.send(&[0xE0, 0]).await;
    assert_eq!(owner.gone().await.1, End::Left);
    let ended = soon(device.stream.read_to_end(&mut Vec::new())).await;
    assert_eq!(ended.expect("the end is told in TLS"), 0);
}

async fn refused(owner: &mut Owner) -> Refusal {
    match owner.event().await {
        Event::Rejected { why: Rejected::NoTls(why), .. } => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn devices_publish_over_tls() {
    let (city, clock) = (Authority::new(), Clock::manual("boot", NOW));
    let folder = Folder::of(&city.issue("gardu.local", 2090), &city.pem);
    let mut owner = listen(&folder.open_to_all(), &clock).await;
    comes_in(&mut owner, &city, None).await;
    comes_in(&mut owner, &city, Some(&Authority::new().issue("cam", 2090))).await;
    let mut owner = listen(&folder.members_only(), &clock).await;
    comes_in(&mut owner, &city, Some(&city.issue("cam", 2090))).await;
}

#[tokio::test]
async fn whoever_is_not_let_in_is_named_with_the_reason() {
    let (city, clock) = (Authority::new(), Clock::manual("boot", NOW));
    let folder = Folder::of(&city.issue("gardu.local", 2090), &city.pem);
    let mut owner = listen(&folder.members_only(), &clock).await;
    let foreign = Authority::new().issue("cam", 2090);
    for (shows, why) in [(None, Refusal::NoCertificate), (Some(&foreign), Refusal::UnknownIssuer)] {
        let _cut_off = dial(&owner, &city, shows).await;
        assert_eq!(refused(&mut owner).await, why);
    }
    let _cut_off = dial(&owner, &city, Some(&city.issue("cam", 2001))).await;
    let why = refused(&mut owner).await;
    assert!(matches!(&why, Refusal::Certificate(why) if why.contains("expired")), "{why}");
    assert!(dial(&owner, &Authority::new(), None).await.is_err(), "it does not know us");
    let why = refused(&mut owner).await;
    assert!(matches!(why, Refusal::Alert(_)), "{why}");
    let mut plain = Device::dial(owner.address).await;
    plain.send(&connect(V5, "cam", 60, None, None)).await;
    assert_eq!(refused(&mut owner).await, Refusal::NotSpoken);
    drop(Device::dial(owner.address).await);
    assert_eq!(refused(&mut owner).await, Refusal::Aborted);
    comes_in(&mut owner, &city, Some(&city.issue("cam", 2090))).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_begin_the_handshake_is_not_kept() {
    let city = Authority::new();
    let folder = Folder::of(&city.issue("gardu.local", 2090), &city.pem);
    let mut owner = listen(&folder.open_to_all(), &Clock::manual("boot", NOW)).await;
    let _silent = Device::dial(owner.address).await;
    assert!(matches!(owner.event().await, Event::Rejected { why: Rejected::Slow, .. }));
}

#[tokio::test]
async fn changed_files_count_for_the_next_connection_and_useless_ones_do_not() {
    let (old, new, clock) = (Authority::new(), Authority::new(), Clock::manual("boot", NOW));
    let folder = Folder::of(&old.issue("gardu.local", 2090), &old.pem);
    let mut owner = listen(&folder.open_to_all(), &clock).await;
    let later = |seconds: u64| clock.set(Now { mono_ms: NOW.mono_ms + seconds * 1_000, ..NOW });
    folder.write("key", "");
    comes_in(&mut owner, &old, None).await; // looked at a moment ago
    later(1);
    let connection = dial(&owner, &old, None).await;
    let Event::Renewed(Err(fault)) = owner.event().await else { panic!("the fault is told") };
    assert!(fault.to_string().contains("private key"), "{fault}");
    drop(connection.expect("by the files of before"));
    assert!(matches!(owner.event().await, Event::Rejected { why: Rejected::Broken, .. }));
    later(2);
    comes_in(&mut owner, &old, None).await; // and is told once
    folder.show(&new.issue("gardu.local", 2090));
    later(3);
    let connection = dial(&owner, &new, None).await;
    assert!(matches!(owner.event().await, Event::Renewed(Ok(()))));
    drop(connection.expect("by the new files"));
    assert!(matches!(owner.event().await, Event::Rejected { why: Rejected::Broken, .. }));
    comes_in(&mut owner, &new, None).await;
    assert!(dial(&owner, &old, None).await.is_err(), "the old ones are gone");
}

/// Here the listener is the broker of an input.
#[tokio::test]
async fn an_input_that_does_not_trust_its_broker_connects_soon_after_the_right_ca_file_is_there() {
    let (city, clock) = (Authority::new(), Clock::manual("boot", NOW));
    let folder = Folder::of(&city.issue("127.0.0.1", 2090), &Authority::new().pem);
    let mut owner = listen(&folder.open_to_all(), &clock).await;
    let (intake, outlet, _inputs) = input(&clock);
    let shutdown = outlet.shutdown.clone();
    let broker = Broker {
        url: BrokerUrl { scheme: Scheme::Mqtts, host: "127.0.0.1".into(), port: owner.address.port() },
        version: V5,
        login: None,
        tls: TlsFiles { ca: Some(folder.path("ca")), client: None },
        keep_alive: Duration::from_secs(60),
    };
    let gateway = Segment::parse("taman").expect("a name");
    let task = tokio::spawn(ClientTask::new(&gateway, broker, intake, outlet, clock).run());
    assert!(matches!(refused(&mut owner).await, Refusal::Alert(_)));
    folder.write("ca", &city.pem);
    // Without a look at the files it would not come again before half a minute.
    let connected = timeout(Duration::from_secs(25), owner.connected()).await.expect("it comes at once");
    assert_eq!(&*connected.id, "gardu-taman-cctv");
    shutdown.cancel();
    soon(task).await.expect("no panic").expect("it ends in order");
}
