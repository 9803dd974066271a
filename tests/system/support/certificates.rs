//! Certificates as a command center issues them: an authority of one test's own, and who it vouches for.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// Who may issue certificates.
#[derive(Debug)]
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// The years in which a certificate is in force, the last one not included.
pub(crate) type Years = std::ops::Range<i32>;

/// In force whenever these tests run.
pub(crate) const ALWAYS: Years = 2020..2090;

impl Authority {
    /// A new one.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = params(name, &[], ALWAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Its own certificate: what others trust.
    pub(crate) fn cert(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a server with these names and addresses.
    pub(crate) fn server(&self, names: &[&str], years: Years) -> Identity {
        self.issue(params("broker", names, years), ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a client with this common name.
    pub(crate) fn client(&self, name: &str, years: Years) -> Identity {
        self.issue(params(name, &[], years), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose) -> Identity {
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.0).expect("a certificate");
        Identity { cert: cert.pem(), key: key.serialize_pem() }
    }
}

/// What a client needs to trust `authority` and, if it has one, to show its own certificate.
pub(crate) fn client_config(authority: &Authority, shows: Option<&Identity>) -> ClientConfig {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(der(&authority.cert())).expect("an authority");
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring has TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    match shows {
        None => builder.with_no_client_auth(),
        Some(Identity { cert, key }) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
            builder.with_client_auth_cert(vec![der(cert)], key).expect("a pair")
        }
    }
}

fn params(name: &str, names: &[&str], years: Years) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).expect("names of servers");
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(years.start, 1, 1);
    params.not_after = date_time_ymd(years.end, 1, 1);
    params
}
