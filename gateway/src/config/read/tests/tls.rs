//! Mistakes with certificates and keys, each at the key that names the file.

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::config::{ClientCertificate, TlsFiles};

/// A start with one TLS address, for keys behind it.
const TLS: &str = "[gateway]\nid = 'taman'\n[command_center]\nurls = ['mqtt://127.0.0.1', 'mqtts://cc1']\n";

fn certificate(key: &KeyPair) -> String {
    let params = CertificateParams::new(["taman".to_owned()]).expect("a name");
    params.self_signed(key).expect("a certificate").pem()
}

/// A folder with `cert`, `key` (which belong together), `other` (a key) and files with one thing wrong with each.
fn folder() -> Folder {
    let folder = Folder::new();
    let key = KeyPair::generate().expect("a key");
    let cert = certificate(&key);
    folder.write("cert", &cert);
    folder.write("key", key.serialize_pem());
    folder.write("other", KeyPair::generate().expect("a key").serialize_pem());
    folder.write("der", key.serialized_der());
    folder.write("empty", "");
    folder.write("cut", &cert[..cert.len() / 2]);
    folder.write("large", vec![b'a'; 2_000_000]);
    folder.write("hollow", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    folder.write("kind", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    folder.write("locked", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    folder.write("locked-old", old);
    // What issuers send: words around it, several certificates, some of them meant for others.
    let bundle = format!("Subject: taman\n{cert}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    folder.write("bundle", bundle);
    folder.write("both", format!("{}{cert}", key.serialize_pem()));
    folder
}

fn check(folder: &Folder, marked: &str) {
    let (text, mut expected) = unmark("gardu.toml", marked);
    folder.write("gardu.toml", text);
    let mut found = folder.problems();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{marked}");
}

#[test]
fn certificates_and_keys_are_found_and_fit() {
    let folder = folder();
    for (cert, key) in [("cert", "key"), ("bundle", "key"), ("both", "both")] {
        let keys = format!("ca_file = 'cert'\nclient_cert_file = '{cert}'\nclient_key_file = '{key}'\n");
        let input = subscription("topic = 'a'\npoint = 'x/y'").replace("mqtt://a'", &format!("mqtts://a'\n{keys}"));
        let path = folder.write("gardu.toml", format!("{TLS}{keys}{input}"));
        let config = load_with(&path, ALONE).unwrap_or_else(|problems| panic!("{problems}"));
        let client = ClientCertificate { cert: folder.path(cert), key: folder.path(key) };
        let files = TlsFiles { ca: Some(folder.path("cert")), client: Some(client) };
        assert_eq!(config.command_center.tls, files);
        let urls: Vec<String> = config.command_center.urls.iter().map(ToString::to_string).collect();
        assert_eq!(urls, ["mqtt://127.0.0.1:1883", "mqtts://cc1:8883"]);
        let Endpoint::Broker { url, tls, .. } = &config.mqtt[0].endpoint else { panic!("a broker") };
        assert_eq!((url.to_string().as_str(), tls), ("mqtts://a:8883", &files));
    }
}

#[test]
fn what_is_wrong_with_a_file_is_named_at_its_key() {
    let folder = folder();
    for (kind, files) in [
        ("unreadable", &["nowhere", ".", "large"][..]),
        ("no-certificate", &["empty", "key", "der"]),
        ("broken", &["cut"]),
        ("certificate", &["hollow"]),
    ] {
        for file in files {
            check(&folder, &format!("{TLS}ca_file = «pem-{kind}»'{file}'\n"));
            let key = "client_key_file = 'key'\n";
            check(&folder, &format!("{TLS}client_cert_file = «pem-{kind}»'{file}'\n{key}"));
        }
    }
    for (kind, files) in [
        ("unreadable", &["nowhere", ".", "large"][..]),
        ("no-key", &["empty", "cert", "der"]),
        ("key-other", &["other"]),
        ("key-kind", &["kind"]),
        ("key-encrypted", &["locked", "locked-old"]),
    ] {
        for file in files {
            check(&folder, &format!("{TLS}client_cert_file = 'cert'\nclient_key_file = «pem-{kind}»'{file}'\n"));
        }
    }
    check(&folder, &format!("{TLS}ca_file = «pem-certificate»'bundle'\n"));
    check(
        &folder,
        &format!("{TLS}client_cert_file = «pem-no-certificate»'key'\nclient_key_file = «pem-no-key»'cert'\n"),
    );
}

#[test]
fn keys_that_make_no_sense_are_refused() {
    let folder = folder();
    check(&folder, &format!("{TLS}client_cert_file = «tls-pair»'cert'\n"));
    check(&folder, &format!("{TLS}client_key_file = «tls-pair»'key'\n"));
    let plain = "ca_file = «tls-plain»'a'\nclient_cert_file = «tls-plain»'a'\nclient_key_file = «tls-plain»'a'\n";
    check(&folder, &format!("{BASE}{plain}"));
    let input = subscription("topic = 'a'\npoint = 'x/y'").replace("mqtt://a'", &format!("mqtt://a'\n{plain}"));
    check(&folder, &format!("{BASE}{input}"));
    check(&folder, &format!("{BASE}{}", input.replace("url = 'mqtt://a'", "listen = '127.0.0.1:1'")));
    // An address that was meant otherwise casts no shadow on them.
    check(&folder, &TLS.replace("'mqtts://cc1']", "«url»'mqts://cc1']\nca_file = 'cert'"));
    for host in ["cc1.example.go.id", "10.0.0.1", "[fd00::1]", "a_b"] {
        check(&folder, &TLS.replace("cc1", host));
    }
}

#[test]
fn what_only_systemd_hands_out_is_not_missed_by_others() {
    let folder = folder();
    let keys = "ca_file = '{}cert'\nclient_cert_file = '{}cert'\nclient_key_file = '{}key'\n";
    let path = folder.write("gardu.toml", format!("{TLS}{}", keys.replace("{}", "${CREDENTIALS_DIRECTORY}/")));
    for (need, ok) in [(Need::All, false), (Need::Reachable, true), (Need::None, true)] {
        assert_eq!(load_with(&path, Secrets { need, credentials: None }).is_ok(), ok, "{need:?}");
    }
    let credentials = Some(folder.0.path());
    let config = load_with(&path, Secrets { credentials, ..ALONE }).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.command_center.tls.ca, Some(folder.path("cert")));
    let path = folder.write("gardu.toml", format!("{TLS}{}", keys.replace("{}", "nowhere/")));
    for (need, ok) in [(Need::All, false), (Need::Reachable, false), (Need::None, true)] {
        assert_eq!(load_with(&path, Secrets { need, credentials: None }).is_ok(), ok, "{need:?}");
    }
}

#[test]
fn no_key_gets_into_a_message() {
    let folder = folder();
    let key = fs::read_to_string(folder.path("other")).expect("a key");
    let path = folder.write("gardu.toml", format!("{TLS}client_cert_file = 'other'\nclient_key_file = 'other'\n"));
    let said = load_with(&path, ALONE).expect_err("no certificate").render(Language::English);
    assert!(key.lines().all(|line| line.starts_with("-----") || !said.contains(line)), "{said}");
}
