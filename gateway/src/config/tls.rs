//! Certificates and keys that `*_file` keys name: found, PEM, of a kind TLS can use, and one belonging to the other.
//!
//! Only what a person got wrong is looked for here. Whether a certificate is in force is not: the clock of a board that
//! just started may be wrong, and the file may be replaced before it is needed. The wire reads the files itself, for
//! every connection.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, Error, RootCertStore,
    crypto::ring::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject as _},
    },
    sign::{CertifiedKey, SigningKey},
};

use super::{
    BrokerUrl, ClientCertificate, ListenTls, Scheme, TlsFiles,
    document::{Node, Section},
    files::{self, PemFile},
    read::Secrets,
};

/// Whether a certificate can be for this host: a DNS name, or an address.
pub(super) fn is_server_name(host: &str) -> bool {
    ServerName::try_from(host.trim_matches(['[', ']'])).is_ok()
}

/// Reads `ca_file`, `client_cert_file` and `client_key_file` of a section whose addresses are `urls`; none if they are not
/// all known.
pub(super) fn client(section: &Section<'_>, urls: Option<&[BrokerUrl]>, secrets: Secrets<'_>) -> TlsFiles {
    const KEYS: [&str; 3] = ["ca_file", "client_cert_file", "client_key_file"];
    if urls.is_some_and(|urls| urls.iter().all(|url| url.scheme == Scheme::Mqtt)) {
        for node in KEYS.into_iter().filter_map(|key| section.get(key)) {
            node.wrong::<()>("check-tls-plain", &[]);
        }
        return TlsFiles::default();
    }
    let [ca, cert, key] = KEYS;
    TlsFiles { ca: section.optional(ca, |node| authorities(node, secrets)), client: pair(section, cert, key, secrets) }
}

const SERVER_KEYS: [&str; 3] = ["tls_cert_file", "tls_key_file", "client_ca_file"];

/// Reads `tls_cert_file`, `tls_key_file` and `client_ca_file` of a section that listens.
pub(super) fn server(section: &Section<'_>, secrets: Secrets<'_>) -> Option<ListenTls> {
    let [cert, key, client_ca] = SERVER_KEYS;
    let without = !section.has(cert) && !section.has(key);
    let client_ca = section.optional(client_ca, |node| {
        if without { node.wrong("check-tls-pair", &[("other", cert.into())]) } else { authorities(node, secrets) }
    });
    let ClientCertificate { cert, key } = pair(section, cert, key, secrets)?;
    Some(ListenTls { cert, key, client_ca })
}

/// Notes every key of a listener in a section that has none.
pub(super) fn no_server(section: &Section<'_>) {
    for node in SERVER_KEYS.into_iter().filter_map(|key| section.get(key)) {
        node.wrong::<()>("check-tls-listen", &[]);
    }
}

/// A file of certificates that can vouch for others.
fn authorities(node: Node<'_>, secrets: Secrets<'_>) -> Option<PathBuf> {
    let PemFile { path, bytes } = files::pem(node, secrets)?;
    match bytes.map_or(Ok(()), |pem| trusted(&pem)) {
        Ok(()) => Some(path),
        Err(kind) => blame(node, &path, kind),
    }
}

/// A certificate and its key: both or none.
fn pair(
    section: &Section<'_>,
    cert: &'static str,
    key: &'static str,
    secrets: Secrets<'_>,
) -> Option<ClientCertificate> {
    let (cert_node, key_node) = match (section.get(cert), section.get(key)) {
        (Some(cert), Some(key)) => (cert, key),
        (Some(alone), None) => return alone.wrong("check-tls-pair", &[("other", key.into())]),
        (None, Some(alone)) => return alone.wrong("check-tls-pair", &[("other", cert.into())]),
        (None, None) => return None,
    };
    let (cert, key) = (files::pem(cert_node, secrets), files::pem(key_node, secrets));
    let chain = cert.as_ref().and_then(|file| file.bytes.as_deref()).map(certificates);
    let signer = key.as_ref().and_then(|file| file.bytes.as_deref()).map(private_key);
    let (cert, key) = (cert?.path, key?.path);
    match (chain, signer) {
        (Some(Ok(chain)), Some(Ok(signer))) => match belong(chain, signer) {
            Ok(()) => Some(ClientCertificate { cert, key }),
            Err(kind @ "check-pem-certificate") => blame(cert_node, &cert, kind),
            Err(kind) => blame(key_node, &key, kind),
        },
        (chain, signer) => {
            let (chain, signer) = (chain.and_then(Result::err), signer.and_then(Result::err));
            let faultless = chain.is_none() && signer.is_none();
            chain.and_then(|kind| blame::<()>(cert_node, &cert, kind));
            signer.and_then(|kind| blame::<()>(key_node, &key, kind));
            faultless.then_some(ClientCertificate { cert, key })
        }
    }
}

fn blame<T>(node: Node<'_>, path: &Path, kind: &'static str) -> Option<T> {
    node.wrong(kind, &[("path", path.display().to_string().into())])
}

/// What is wrong with a PEM file: the key of a text.
type Fault = &'static str;

/// Whether every certificate can vouch for others.
fn trusted(pem: &[u8]) -> Result<(), Fault> {
    let mut roots = RootCertStore::empty();
    certificates(pem)?.into_iter().try_for_each(|one| roots.add(one)).map_err(|_| "check-pem-certificate")
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("check-pem-no-certificate"),
        Ok(found) => Ok(found),
        Err(_) => Err("check-pem-broken"),
    }
}

fn private_key(pem: &[u8]) -> Result<Arc<dyn SigningKey>, Fault> {
    // PKCS #8 says so in the header, older forms in a line below it.
    let encrypted = || pem.windows(9).any(|word| word == b"ENCRYPTED");
    match PrivateKeyDer::from_pem_slice(pem) {
        _ if encrypted() => Err("check-pem-key-encrypted"),
        Ok(key) => any_supported_type(&key).map_err(|_| "check-pem-key-kind"),
        Err(pem::Error::NoItemsFound) => Err("check-pem-no-key"),
        Err(_) => Err("check-pem-broken"),
    }
}

/// The first certificate is the one the key must belong to.
fn belong(chain: Vec<CertificateDer<'static>>, key: Arc<dyn SigningKey>) -> Result<(), Fault> {
    match CertifiedKey::new(chain, key).keys_match() {
        // X.509 version 1 is not read here; brokers may accept it.
        Ok(()) | Err(Error::InvalidCertificate(CertificateError::Other(_))) => Ok(()),
        Err(Error::InconsistentKeys(_)) => Err("check-pem-key-other"),
        Err(_) => Err("check-pem-certificate"),
    }
}
