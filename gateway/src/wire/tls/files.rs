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

use crate::config::TlsFiles;

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
