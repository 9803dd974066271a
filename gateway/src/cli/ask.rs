//! Asking the running daemon over its local API.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::exit;
use crate::{config::Language, supervise::Children, text::say};

/// A daemon on the same machine answers at once; a stuck one must not hold the tool.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Why there is no answer to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody listens: the daemon is down or listens elsewhere.
    #[error("nothing listens at {address}: {reason}")]
    NotRunning {
        /// Where it was asked.
        address: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// Something answers, but not as it should.
    #[error("{address} does not answer as a gateway: {reason}")]
    NotAGateway {
        /// Where it was asked.
        address: SocketAddr,
        /// What is wrong.
        reason: String,
    },
}

impl AskError {
    /// Something else than the answer of a gateway came from `listen`.
    pub(super) fn foreign(listen: SocketAddr, reason: impl Display) -> Self {
        Self::NotAGateway { address: reachable(listen), reason: reason.to_string() }
    }

    /// The exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NotRunning { .. } => exit::UNAVAILABLE,
            Self::NotAGateway { .. } => exit::PROTOCOL,
        }
    }

    /// What happened and what to do, for people.
    #[must_use]
    pub fn text(&self, language: Language) -> String {
        let (key, address, reason) = match self {
            Self::NotRunning { address, reason } => ("status-not-running", address, reason),
            Self::NotAGateway { address, reason } => ("status-not-a-gateway", address, reason),
        };
        say(language, key, &[("address", address.to_string().into()), ("reason", reason.as_str().into())])
    }
}

/// What the daemon that listens at `listen` (the configured `http.listen`) answers to `path`, at most `len_max` bytes.
pub(super) async fn get(listen: SocketAddr, path: &str, len_max: usize) -> Result<Bytes, AskError> {
    let late = |_| AskError::foreign(listen, format_args!("no answer in {} s", ANSWER_MAX.as_secs()));
    let answer = tokio::time::timeout(ANSWER_MAX, exchange(reachable(listen), path, len_max));
    answer.await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// A daemon that listens everywhere is asked on the loopback.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn exchange(address: SocketAddr, path: &str, len_max: usize) -> Result<Bytes, AskError> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|reason| AskError::NotRunning { address, reason: reason.to_string() })?;
    let foreign = |reason: &dyn Display| AskError::foreign(address, reason);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| foreign(&e))?;
    let mut driver = Children::default();
    driver.spawn(async { drop(connection.await) });
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .expect("a path of ours and an address make a request");
    let answer = sender.send_request(request).await.map_err(|e| foreign(&e))?;
    if !answer.status().is_success() {
        return Err(foreign(&answer.status()));
    }
    let body = Limited::new(answer.into_body(), len_max).collect().await.map_err(|e| foreign(&e))?;
    Ok(body.to_bytes())
}
