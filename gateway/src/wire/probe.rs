//! Whether a broker can be reached, without becoming its client: name, TCP and TLS, but no CONNECT, which would end our own
//! connection to another broker of the same cluster.

use std::time::Duration;

use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{Down, Settings, peer::Peer, tls::TlsFault};

/// TLS 1.3 refuses our certificate only after the handshake, and says so within a round trip; otherwise a broker is silent
/// until CONNECT.
const REFUSAL_MAX: Duration = Duration::from_secs(2);

/// Resolves, connects and, for a URL with TLS, shakes hands with the files as they are now; then hangs up.
///
/// # Errors
/// What [`Wire::next`](super::Wire::next) would say of this broker before its CONNACK.
pub async fn probe(settings: &Settings) -> Result<(), Down> {
    let late = Err(Down::Unreachable("no answer in time".into()));
    tokio::time::timeout(settings.connect_timeout, reach(settings)).await.unwrap_or(late)
}

async fn reach(settings: &Settings) -> Result<(), Down> {
    let peer = Peer::new(settings)?;
    let stream = TcpStream::connect(peer.address()).await.map_err(|e| peer.unreachable(&e))?;
    let Some(tls) = peer.tls() else { return Ok(()) };
    let (host, _) = peer.address();
    let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsFault::Host(host.to_owned()))?;
    let connector = TlsConnector::from(tls.config.clone());
    let mut stream = connector.connect(name, stream).await.map_err(|e| tls.handshake(&e))?;
    match tokio::time::timeout(REFUSAL_MAX, stream.read(&mut [0])).await {
        Ok(Err(e)) => Err(peer.broken(&e)),
        Ok(Ok(0)) => Err(Down::Tls(TlsFault::Aborted)),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}
