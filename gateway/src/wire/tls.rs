//! TLS below MQTT: what can go wrong, in words, and the configuration of rustls, which only this module names.
//!
//! TLS 1.2 and 1.3 by rustls with ring. The broker's certificate chain and its name (or address) are always verified;
//! nothing switches that off. Certificate dates are held against our own [`Clock`](crate::clock::Clock). Sessions are not
//! resumed: rustls does so only under the very verifier of before, and ours is made anew from the files each time.

mod files;

use std::sync::Arc;

pub use self::files::{FilesFault, Fingerprint};
use crate::clock::{Now, rfc3339};

/// Why TLS with a broker failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    /// Our own files cannot be used; nothing was sent.
    #[error(transparent)]
    Files(#[from] FilesFault),
    /// No certificate can be for what the URL calls the broker; nothing was sent.
    #[error("no certificate can be for `{0}`: write the broker's DNS name or its address")]
    Host(String),
    /// The chain of the broker's certificate does not end at an authority of ours.
    #[error("we do not trust who issued the broker's certificate: check `ca_file`, and that this is the right broker")]
    UnknownIssuer,
    /// The broker's certificate is over, or our clock is ahead.
    #[error("the broker's certificate expired{}: {}", on(*not_after_ms), mend_date(*now, "it must be renewed there"))]
    Expired {
        /// Its last moment, milliseconds since 1970 UTC, where it is told.
        not_after_ms: Option<i64>,
        /// What it was held against.
        now: Now,
    },
    /// The broker's certificate has not begun, or our clock is behind.
    #[error("the broker's certificate is not yet valid{}: {}", from(*not_before_ms), mend_date(*now, "correct its date"))]
    NotYetValid {
        /// Its first moment, milliseconds since 1970 UTC, where it is told.
        not_before_ms: Option<i64>,
        /// What it was held against.
        now: Now,
    },
    /// The broker's certificate is for others.
    #[error(
        "the broker's certificate is not for `{asked}` but for {}: check the URL, or have one issued with this name",
        names(has)
    )]
    WrongName {
        /// What the URL calls the broker.
        asked: String,
        /// What its certificate is for (subject alternative names; a common name does not count).
        has: Arc<[String]>,
    },
    /// The broker's certificate cannot be accepted for another reason.
    #[error("the broker's certificate is not acceptable: {0}")]
    Certificate(Arc<str>),
    /// The broker wants a certificate of ours, and none is configured.
    #[error("the broker wants a certificate of ours: give `client_cert_file` and `client_key_file`")]
    ClientRequired,
    /// The broker does not accept the certificate of ours; with the alert it sent.
    #[error("the broker refuses our certificate ({0}): check its issuer and its dates, and renew it")]
    ClientRefused(Arc<str>),
    /// What answered is not TLS.
    #[error("what answers does not speak TLS: check the port, or write `mqtt://`")]
    NotSpoken,
    /// No TLS version or cipher suite in common.
    #[error("no TLS version or cipher in common ({0}): the broker must offer TLS 1.2 or 1.3")]
    Incompatible(Arc<str>),
    /// Closed in the middle of the handshake, without a reason.
    #[error(
        "the connection was closed in the middle of the TLS handshake; if always, check that the port is one for TLS"
    )]
    Aborted,
    /// The peer or what lies between breaks TLS.
    #[error("TLS failed: {0}")]
    Broken(Arc<str>),
}

impl TlsFault {
    /// A bounded word for metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Files(_) => "tls-files",
            Self::Host(_) => "tls-host",
            Self::UnknownIssuer => "tls-unknown-issuer",
            Self::Expired { .. } => "tls-expired",
            Self::NotYetValid { .. } => "tls-not-yet-valid",
            Self::WrongName { .. } => "tls-wrong-name",
            Self::Certificate(_) => "tls-bad-certificate",
            Self::ClientRequired => "tls-client-required",
            Self::ClientRefused(_) => "tls-client-refused",
            Self::NotSpoken => "tls-not-spoken",
            Self::Incompatible(_) => "tls-incompatible",
            Self::Aborted => "tls-aborted",
            Self::Broken(_) => "tls-broken",
        }
    }

    /// Whether it stays until a person changes something, so that trying again soon is only noise.
    ///
    /// Not our own files: they may be in the middle of being exchanged, and reading them again bothers nobody. Nor dates
    /// while our clock is not set: they come right with it.
    #[must_use]
    pub const fn needs_person(&self) -> bool {
        match self {
            Self::Files(_) | Self::Aborted | Self::Broken(_) => false,
            Self::Expired { now, .. } | Self::NotYetValid { now, .. } => now.trusted,
            Self::Host(_)
            | Self::UnknownIssuer
            | Self::WrongName { .. }
            | Self::Certificate(_)
            | Self::ClientRequired
            | Self::ClientRefused(_)
            | Self::NotSpoken
            | Self::Incompatible(_) => true,
        }
    }
}

fn on(at_ms: Option<i64>) -> String {
    at_ms.map_or_else(String::new, |at_ms| format!(" on {}", rfc3339(at_ms)))
}

fn from(at_ms: Option<i64>) -> String {
    at_ms.map_or_else(String::new, |at_ms| format!(" before {}", rfc3339(at_ms)))
}

/// What to do about a date: the certificate is to blame only if our clock is right.
fn mend_date(now: Now, certificate: &str) -> String {
    if now.trusted {
        certificate.to_owned()
    } else {
        format!("our clock shows {} but nothing has set it; connecting goes on once it is right", rfc3339(now.wall_ms))
    }
}

fn names(has: &[String]) -> String {
    if has.is_empty() { "nobody (it has no subjectAltName)".to_owned() } else { has.join(", ") }
}
