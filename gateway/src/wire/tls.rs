//! TLS below MQTT: what can go wrong, in words, and the configuration of rustls, which only this module names.
//!
//! TLS 1.2 and 1.3 by rustls with ring. The broker's certificate chain and its name (or address) are always verified;
//! nothing switches that off. Certificate dates are held against our own [`Clock`]. Sessions are not
//! resumed: rustls does so only under the very verifier of before, and ours is made anew from the files each time.

mod files;
pub mod server;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, PeerIncompatible, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::ring,
    pki_types::{ServerName, UnixTime},
    sign::CertifiedKey,
    time_provider::TimeProvider,
};

pub use self::files::{FilesFault, Fingerprint};
use super::Down;
use crate::{
    clock::{Clock, Now, rfc3339},
    config::TlsFiles,
};

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

/// rustls calls names `DnsName("cc1")` and `IpAddress(10.0.0.1)`; other kinds stay as they are.
fn bare(name: &str) -> String {
    let inside = |open, close| name.strip_prefix(open)?.strip_suffix(close);
    inside("DnsName(\"", "\")").or_else(|| inside("IpAddress(", ")")).unwrap_or(name).to_owned()
}

/// What one connection needs of TLS.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    host: String,
    clock: Clock,
    identity: Arc<Identity>,
}

impl Tls {
    /// Reads the files; `host` is what the certificate must be for.
    pub(super) fn new(host: &str, files: &TlsFiles, clock: Clock) -> Result<Self, TlsFault> {
        ServerName::try_from(host).map_err(|_| TlsFault::Host(host.to_owned()))?;
        let provider = Arc::new(ring::default_provider());
        let certified_key = files::certified_key(files, &provider)?;
        let identity = Arc::new(Identity { certified_key, asked: AtomicBool::new(false) });
        let mut config = ClientConfig::builder_with_details(provider, Arc::new(OurTime(clock.clone())))
            .with_safe_default_protocol_versions() // 1.2 and 1.3, which are all that rustls has
            .expect("ring has cipher suites for both")
            .with_root_certificates(files::authorities(files)?)
            .with_client_cert_resolver(identity.clone());
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), host: host.to_owned(), clock, identity })
    }

    /// What the broker's certificate must be for.
    pub(super) fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.host.clone()).expect("checked when this was made")
    }

    /// Names an error of the handshake.
    pub(super) fn handshake(&self, error: &io::Error) -> Down {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match (tls_error(error), error.kind()) {
            (Some(Error::InvalidMessage(_)), _) => Down::Tls(TlsFault::NotSpoken),
            (Some(error), _) => Down::Tls(self.name(error)),
            (None, UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe) => Down::Tls(TlsFault::Aborted),
            (None, _) => Down::Unreachable(error.to_string().into()),
        }
    }

    /// Names an error after the handshake; `None` if it is none of TLS.
    pub(super) fn fault(&self, error: &io::Error) -> Option<TlsFault> {
        tls_error(error).map(|error| self.name(error))
    }

    fn name(&self, error: &Error) -> TlsFault {
        match error {
            Error::InvalidCertificate(error) => self.certificate(error),
            Error::AlertReceived(alert) => self.alert(*alert),
            Error::PeerIncompatible(
                PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::ServerDoesNotSupportTls12Or13,
            ) => TlsFault::Incompatible("it offers an older version".into()),
            Error::PeerIncompatible(why) => TlsFault::Incompatible(format!("{why:?}").into()),
            other => TlsFault::Broken(other.to_string().into()),
        }
    }

    fn certificate(&self, error: &CertificateError) -> TlsFault {
        let now = self.clock.now();
        match error {
            // A signature that does not fit: an authority made anew under its old name, of which we have the old key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsFault::UnknownIssuer,
            CertificateError::Expired => TlsFault::Expired { not_after_ms: None, now },
            CertificateError::ExpiredContext { not_after, .. } => {
                TlsFault::Expired { not_after_ms: Some(millis(*not_after)), now }
            }
            CertificateError::NotValidYet => TlsFault::NotYetValid { not_before_ms: None, now },
            CertificateError::NotValidYetContext { not_before, .. } => {
                TlsFault::NotYetValid { not_before_ms: Some(millis(*not_before)), now }
            }
            CertificateError::NotValidForName => self.wrong_name(&[]),
            CertificateError::NotValidForNameContext { presented, .. } => self.wrong_name(presented),
            CertificateError::Revoked => TlsFault::Certificate("it is revoked".into()),
            // Of what openssl makes with the shortest commands; rustls gives these only as text.
            CertificateError::Other(error) => TlsFault::Certificate(match error.to_string().as_str() {
                "CaUsedAsEndEntity" => "it is an authority's own (CA:TRUE); have it issue one for the broker".into(),
                "UnsupportedCertVersion" => "it is of X.509 version 1; issue one with subjectAltName".into(),
                other => other.into(),
            }),
            other => TlsFault::Certificate(other.to_string().into()),
        }
    }

    fn wrong_name(&self, presented: &[String]) -> TlsFault {
        TlsFault::WrongName { asked: self.host.clone(), has: presented.iter().map(|name| bare(name)).collect() }
    }

    /// What the broker's fatal alert means (RFC 8446 §6.2). Which of them a missing certificate of ours brings depends on
    /// the TLS version and the broker, so it counts whether we were asked for one.
    fn alert(&self, alert: AlertDescription) -> TlsFault {
        use AlertDescription as Alert;
        let (asked, have) = (self.identity.asked.load(Ordering::Relaxed), self.identity.has_certs());
        match alert {
            Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::HandshakeFailure
            | Alert::AccessDenied
                if asked && !have =>
            {
                TlsFault::ClientRequired
            }
            Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::HandshakeFailure
                if asked =>
            {
                TlsFault::ClientRefused(format!("{alert:?}").into())
            }
            Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity => {
                TlsFault::Incompatible(format!("{alert:?}").into())
            }
            other => TlsFault::Broken(format!("the broker says {other:?}").into()),
        }
    }
}

/// What TLS says in an error of a stream.
fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn millis(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX).saturating_mul(1_000)
}

/// Our clock, for the dates of certificates.
#[derive(Debug)]
struct OurTime(Clock);

impl TimeProvider for OurTime {
    fn current_time(&self) -> Option<UnixTime> {
        let wall_ms = u64::try_from(self.0.now().wall_ms).unwrap_or(0); // a clock before 1970 is as wrong as one there
        Some(UnixTime::since_unix_epoch(Duration::from_millis(wall_ms)))
    }
}

/// Who we are, if anybody asks.
#[derive(Debug)]
struct Identity {
    certified_key: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.certified_key.clone()
    }

    fn has_certs(&self) -> bool {
        self.certified_key.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_about_our_certificate_only_if_the_broker_asked_for_one() {
        use AlertDescription as Alert;
        let (asked, unasked) = (true, false);
        for (alert, without, with, never) in [
            // TLS 1.3, OpenSSL with TLS 1.2, and what older ones say.
            (Alert::CertificateRequired, "tls-client-required", "tls-client-refused", "tls-broken"),
            (Alert::HandshakeFailure, "tls-client-required", "tls-client-refused", "tls-incompatible"),
            (Alert::BadCertificate, "tls-client-required", "tls-client-refused", "tls-broken"),
            (Alert::CertificateRevoked, "tls-client-refused", "tls-client-refused", "tls-broken"),
            (Alert::UnknownCA, "tls-client-refused", "tls-client-refused", "tls-broken"),
            (Alert::AccessDenied, "tls-client-required", "tls-client-refused", "tls-broken"),
            (Alert::ProtocolVersion, "tls-incompatible", "tls-incompatible", "tls-incompatible"),
            (Alert::InternalError, "tls-broken", "tls-broken", "tls-broken"),
        ] {
            for (have, asked, word) in [(None, asked, without), (some_key(), asked, with), (some_key(), unasked, never)]
            {
                let fault = tls(have, asked).alert(alert);
                assert_eq!(fault.word(), word, "{alert:?}, {asked}");
            }
        }
    }

    fn some_key() -> Option<Arc<CertifiedKey>> {
        let pair = rcgen::generate_simple_self_signed(["taman-01".to_owned()]).expect("a certificate");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
        let chain = vec![pair.cert.der().clone()];
        Some(Arc::new(CertifiedKey::from_der(chain, key.into(), &ring::default_provider()).expect("a pair")))
    }

    fn tls(certified_key: Option<Arc<CertifiedKey>>, asked: bool) -> Tls {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for both")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let identity = Arc::new(Identity { certified_key, asked: AtomicBool::new(asked) });
        Tls { config: Arc::new(config), host: "localhost".into(), clock: Clock::system(), identity }
    }
}
