//! Certificates for the tests: authorities, what they issue, and brokers that show it.

use std::{path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Broker;
use crate::config::{ClientCertificate, TlsFiles};

pub(super) const TLS_VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Somebody who issues certificates.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

/// A certificate and its key, PEM.
pub(super) struct Pair {
    pub(super) cert: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names, from the first of January of one year to that of the other.
    pub(super) fn issue(&self, names: &[&str], years: (i32, i32)) -> Pair {
        let key = KeyPair::generate().expect("a key");
        Pair { cert: self.certify(&key, names, years), key: key.serialize_pem() }
    }

    /// A certificate for a key that exists.
    pub(super) fn certify(&self, key: &impl PublicKeyData, names: &[&str], years: (i32, i32)) -> String {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        params.signed_by(key, &self.issuer).expect("a certificate").pem()
    }

    /// Its own certificate and key, as a broker that uses one for all.
    pub(super) fn itself(&self) -> Pair {
        Pair { cert: self.pem.clone(), key: self.issuer.key().serialize_pem() }
    }
}

/// Whom a broker lets in.
#[derive(Clone, Copy)]
pub(super) enum Admits<'a> {
    /// Anybody.
    All,
    /// Who has a certificate of this authority.
    OnlyOf(&'a Authority),
}

/// A broker's TLS with this certificate.
pub(super) fn server(shows: &Pair, admits: Admits<'_>, version: &'static SupportedProtocolVersion) -> TlsAcceptor {
    let chain = vec![certificate(&shows.cert)];
    let key = PrivateKeyDer::from_pem_slice(shows.key.as_bytes()).expect("a key");
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .expect("ring has both versions");
    let builder = match admits {
        Admits::All => builder.with_no_client_auth(),
        Admits::OnlyOf(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(certificate(&authority.pem)).expect("an authority");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("it has roots"))
        }
    };
    TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).expect("a pair")))
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

/// The broker's side of the next connection, if there is TLS.
pub(super) async fn accept(listener: &TcpListener, tls: &TlsAcceptor) -> Option<Broker> {
    tls.accept(listener.accept().await.expect("a client").0).await.ok().map(Broker::over)
}

/// A folder of PEM files.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).expect("the folder is ours");
        self.path(name)
    }

    /// Trusts this authority and shows this certificate.
    pub(super) fn files(&self, authority: &Authority, client: Option<&Pair>) -> TlsFiles {
        TlsFiles {
            ca: Some(self.write("ca.pem", &authority.pem)),
            client: client.map(|pair| ClientCertificate {
                cert: self.write("client.pem", &pair.cert),
                key: self.write("client.key", &pair.key),
            }),
        }
    }
}
