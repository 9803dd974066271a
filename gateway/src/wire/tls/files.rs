//! The files of [`TlsFiles`]: read, and watched for change.
//!
//! They are read anew for every connection. Everything read is bounded, and only regular files are: a wrong path must
//! neither fill the memory of a small board nor block a task for ever.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher as _},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    CertificateError, Error, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};

use crate::config::{ClientCertificate, TlsFiles};

/// The bundle of a whole system has about 220 KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why our own files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesFault {
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: Arc<str>,
    },
    /// A file has no certificate, or one that cannot be understood.
    #[error("{}: {reason}; it must hold PEM certificates (-----BEGIN CERTIFICATE-----)", path.display())]
    Certificate {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: Arc<str>,
    },
    /// A file has no private key, or one that cannot be used.
    #[error("{}: {reason}; it must hold a PEM private key (PKCS #8, SEC 1 or PKCS #1) without a passphrase", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: Arc<str>,
    },
    /// Certificate and key are not of one pair.
    #[error("the key in {} does not belong to the first certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// No `ca_file`, and the system has no authorities either.
    #[error("this system trusts no authority: install ca-certificates, or give `ca_file`")]
    NoAuthorities,
}

/// What the files held when it was taken: another value later means that they changed.
///
/// Taken from the contents, so that a link that points elsewhere counts, and a file touched or copied again does not. A
/// file that cannot be read has a value too. Of the system's own authorities nothing is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Reads the files, a few kilobytes. Take it before [`Wire::connect`](crate::wire::Wire::connect), so that a change
    /// in between is noticed.
    #[must_use]
    pub fn of(files: &TlsFiles) -> Self {
        let client = files.client.as_ref().map(|client| [&client.cert, &client.key]);
        let mut hasher = DefaultHasher::new();
        for path in files.ca.iter().chain(client.into_iter().flatten()) {
            read(path).map_err(|e| e.kind()).hash(&mut hasher);
        }
        Self(hasher.finish())
    }
}

/// Those who may vouch for the broker.
pub(super) fn authorities(files: &TlsFiles) -> Result<RootCertStore, FilesFault> {
    let mut store = RootCertStore::empty();
    if let Some(path) = &files.ca {
        for certificate in certificates(path)? {
            store.add(certificate).map_err(|e| FilesFault::Certificate { path: path.clone(), reason: said(&e) })?;
        }
    } else {
        // A system may have some that cannot be read; the others count.
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if store.is_empty() {
            return Err(FilesFault::NoAuthorities);
        }
    }
    Ok(store)
}

/// What we prove by who we are.
pub(super) fn certified_key(
    files: &TlsFiles,
    provider: &CryptoProvider,
) -> Result<Option<Arc<CertifiedKey>>, FilesFault> {
    let Some(ClientCertificate { cert, key }) = &files.client else { return Ok(None) };
    let chain = certificates(cert)?;
    let unusable = |reason| FilesFault::Key { path: key.clone(), reason };
    let pem = contents(key)?;
    let private_key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| {
        let encrypted = pem.windows(9).any(|window| window == b"ENCRYPTED"); // PKCS #8's label, RFC 1421's header
        unusable(if encrypted { "the key is encrypted".into() } else { unparsed(&e, "no private key") })
    })?;
    let signer = provider.key_provider.load_private_key(private_key).map_err(|e| unusable(said(&e)))?;
    let certified_key = CertifiedKey::new(chain, signer);
    match certified_key.keys_match() {
        // X.509 version 1, which openssl makes with the shortest commands: our verifier does not read it, brokers do.
        Ok(()) | Err(Error::InvalidCertificate(CertificateError::Other(_))) => Ok(Some(Arc::new(certified_key))),
        Err(Error::InconsistentKeys(_)) => Err(FilesFault::Mismatch { cert: cert.clone(), key: key.clone() }),
        Err(e) => Err(FilesFault::Certificate { path: cert.clone(), reason: said(&e) }),
    }
}

/// The certificates in a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FilesFault> {
    let unusable = |reason| FilesFault::Certificate { path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&contents(path)?).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => Err(unusable("no certificate".into())),
        Ok(certificates) => Ok(certificates),
        Err(e) => Err(unusable(unparsed(&e, "no certificate"))),
    }
}

fn unparsed(error: &pem::Error, nothing: &str) -> Arc<str> {
    match error {
        pem::Error::NoItemsFound => nothing.into(),
        other => said(other),
    }
}

fn said(error: &impl ToString) -> Arc<str> {
    error.to_string().into()
}

fn contents(path: &Path) -> Result<Vec<u8>, FilesFault> {
    read(path).map_err(|e| FilesFault::Unreadable { path: path.to_owned(), reason: said(&e) })
}

/// A regular file's bytes.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}
