//! The server's end: what a listener of the gateway shows to devices that come with TLS, and whom it lets in.
//!
//! The files are read at the start and again when they change; while new ones cannot be used, those before stay. Whoever
//! is connected stays connected. Sessions are not resumed, so that nobody comes in by what an earlier file allowed.
//!
//! Memory of one connection: at most three records of 16 KiB (as it comes, decrypted, unsent) beside what MQTT keeps.

use std::{io, sync::Arc, time::Duration};

use rustls::{
    CertificateError, Error, ServerConfig,
    crypto::ring,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::SingleCertAndKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use super::{FilesFault, Fingerprint, OurTime, files, tls_error};
use crate::{
    clock::{Clock, Now},
    config::{ClientCertificate, ListenTls, TlsFiles},
};

/// Looking reads a few kilobytes; a flood of connections must not make it a load.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes that may wait inside TLS for a client that does not read: one record.
const UNSENT_BYTES_MAX: usize = 16 * 1024;

/// Why there is no TLS with a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its bytes are not TLS.
    #[error("it does not speak TLS")]
    NotSpoken,
    /// It must show a certificate and has none.
    #[error("it shows no certificate, which `client_ca_file` asks for")]
    NoCertificate,
    /// Its certificate is of somebody else.
    #[error("its certificate is not of an authority in `client_ca_file`")]
    UnknownIssuer,
    /// Its certificate cannot be accepted for another reason.
    #[error("its certificate is not acceptable: {0}")]
    Certificate(Arc<str>),
    /// It ended the handshake with this alert; most do so when they do not trust our certificate.
    #[error("it refuses us ({0}): does it trust who issued `tls_cert_file`, and is its name in there?")]
    Alert(Arc<str>),
    /// It closed before the handshake was over.
    #[error("it closed in the middle of the TLS handshake")]
    Aborted,
    /// It breaks TLS, or has no version or cipher in common with us.
    #[error("TLS failed: {0}")]
    Broken(Arc<str>),
}

/// Accepts TLS by the files of a listener.
#[derive(Debug)]
pub struct Acceptor {
    files: TlsFiles,
    clock: Clock,
    config: Arc<ServerConfig>,
    seen: Fingerprint,
    looked: Now,
}

impl Acceptor {
    /// Reads the files.
    pub fn new(listen: &ListenTls, clock: Clock) -> Result<Self, FilesFault> {
        let own = ClientCertificate { cert: listen.cert.clone(), key: listen.key.clone() };
        let files = TlsFiles { ca: listen.client_ca.clone(), client: Some(own) };
        let (seen, looked) = (Fingerprint::of(&files), clock.now()); // first, so that a change in between is seen
        Ok(Self { config: server_config(&files, &clock)?, files, clock, seen, looked })
    }

    /// Reads the files again if they changed; looks at most once a second. What came of it is told once a change.
    pub fn refresh(&mut self) -> Option<Result<(), FilesFault>> {
        let now = self.clock.now();
        if now.since(self.looked) < LOOK_EVERY {
            return None;
        }
        self.looked = now;
        let seen = Fingerprint::of(&self.files);
        if std::mem::replace(&mut self.seen, seen) == seen {
            return None;
        }
        Some(server_config(&self.files, &self.clock).map(|config| self.config = config))
    }

    /// For the next connection.
    #[must_use]
    pub fn handshake(&self) -> Handshake {
        Handshake(self.config.clone().into())
    }
}

/// The beginning of one connection.
pub struct Handshake(TlsAcceptor);

impl Handshake {
    /// Makes a stream secure; the caller bounds the time.
    pub async fn accept(
        self,
        stream: TcpStream,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, Refusal> {
        let accepted = self.0.accept_with(stream, |connection| connection.set_buffer_limit(Some(UNSENT_BYTES_MAX)));
        accepted.await.map_err(|error| name(&error))
    }
}

fn server_config(files: &TlsFiles, clock: &Clock) -> Result<Arc<ServerConfig>, FilesFault> {
    let provider = Arc::new(ring::default_provider());
    let own = files::certified_key(files, &provider)?.expect("a listener's files name a certificate");
    let builder = ServerConfig::builder_with_details(provider.clone(), Arc::new(OurTime(clock.clone())))
        .with_safe_default_protocol_versions() // 1.2 and 1.3, which are all that rustls has
        .expect("ring has cipher suites for both");
    let builder = if files.ca.is_some() {
        let roots = Arc::new(files::authorities(files)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
        builder.with_client_cert_verifier(verifier.build().expect("a file of authorities has at least one"))
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn name(error: &io::Error) -> Refusal {
    match tls_error(error) {
        None => Refusal::Aborted,
        Some(Error::InvalidMessage(_)) => Refusal::NotSpoken,
        Some(Error::NoCertificatesPresented) => Refusal::NoCertificate,
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            Refusal::UnknownIssuer
        }
        Some(Error::InvalidCertificate(other)) => Refusal::Certificate(other.to_string().into()),
        Some(Error::AlertReceived(alert)) => Refusal::Alert(format!("{alert:?}").into()),
        Some(other) => Refusal::Broken(other.to_string().into()),
    }
}
