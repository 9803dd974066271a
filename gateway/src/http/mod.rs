//! What the gateway serves over HTTP: health, metrics, and its present state as JSON.
//!
//! A browser that hangs, a scanner or a slow phone delays only itself (DESIGN.md §1, promise 5): connections are few,
//! each carries one exchange, and the whole exchange has a bound, slow readers included. `metrics_listen` has
//! connections of its own, so that nobody on the page's address can keep Prometheus out.

mod guard;
mod outbox;
mod routes;

use std::{io, net::SocketAddr, time::Duration};

use axum::Router;
use futures_util::future::join_all;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};

pub use self::{guard::Names, outbox::OutboxView, routes::View};
use crate::{
    config,
    supervise::{BEAT_EVERY, Beat, Children, Shutdown, TaskResult},
};

/// What one client may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Connections at a time on one address; more wait in the kernel's queue until one ends.
    connections_max: usize,
    /// Until the request's header is complete.
    header_max: Duration,
    /// From the connection's first to its last byte.
    exchange_max: Duration,
}

impl Limits {
    /// A technician's browser, Prometheus and a few tools at once stay far below 32; a header fits one packet, so 5 s
    /// forgive a bad radio link; 10 s let a slow one fetch 100 KiB of metrics at 100 kbit/s.
    const DEFAULT: Self =
        Self { connections_max: 32, header_max: Duration::from_secs(5), exchange_max: Duration::from_secs(10) };
}

/// Header lines of one request; browsers send about 20.
const HEADERS_MAX: usize = 64;
/// Buffer of one connection, which also bounds the request line and the header.
const BUFFER_MAX: usize = 16 * 1024;
/// Pause after the system refused a connection (out of file descriptors): others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Why the gateway cannot serve.
#[derive(Debug, thiserror::Error)]
#[error("{key} = \"{address}\": cannot listen: {reason}; take an address of this machine and a port that is free")]
pub struct BindError {
    /// The configuration's key.
    key: &'static str,
    address: SocketAddr,
    reason: io::Error,
}

/// Serves until shutdown.
#[derive(Debug)]
pub struct HttpTask {
    doors: Vec<Door>,
    beat: Beat,
}

impl HttpTask {
    /// Binds every configured address, so that a taken port is found at the start.
    pub async fn bind(config: &config::Http, names: &Names, view: View, beat: Beat) -> Result<Self, BindError> {
        let mut doors = Vec::new();
        let page = guard::guarded(routes::all(view.clone()), names);
        doors.push(Door::open("http.listen", config.listen, page).await?);
        if let Some(address) = config.metrics_listen {
            let metrics = guard::guarded(routes::metrics_and_health(view), names);
            doors.push(Door::open("http.metrics_listen", address, metrics).await?);
        }
        Ok(Self { doors, beat })
    }

    /// Where it listens: the page, then the metrics; the ports the system gave where 0 was configured.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.doors.iter().map(|door| door.address).collect()
    }

    /// Serves. Open exchanges are cut at shutdown: all of them only read.
    pub async fn run(self, shutdown: Shutdown) -> TaskResult {
        let serving = join_all(self.doors.into_iter().map(Door::serve));
        tokio::pin!(serving);
        let mut tick = tokio::time::interval(BEAT_EVERY);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tick.tick() => self.beat.mark(),
                _ = &mut serving => return Err("a listener ended".into()),
            }
        }
    }
}

#[derive(Debug)]
struct Door {
    address: SocketAddr,
    listener: TcpListener,
    router: Router,
    limits: Limits,
}

impl Door {
    async fn open(key: &'static str, address: SocketAddr, router: Router) -> Result<Self, BindError> {
        let failed = |reason| BindError { key, address, reason };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { address, listener, router, limits: Limits::DEFAULT })
    }

    /// Never ends.
    async fn serve(self) {
        let mut open = Children::default();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                panicked = open.next_ended() => {
                    if panicked {
                        tracing::error!(address = %self.address, "a request made the server panic: a bug; its connection was closed");
                    }
                    continue;
                }
                accepted = self.listener.accept(), if open.len() < self.limits.connections_max => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    failing = false;
                    open.spawn(exchange(stream, self.router.clone(), self.limits));
                }
                Err(reason) => {
                    if !failing {
                        tracing::warn!(address = %self.address, %reason, "cannot accept connections; trying on");
                    }
                    failing = true;
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One request and its response. A client that breaks off or dawdles is its own trouble: nothing is logged.
async fn exchange(stream: TcpStream, router: Router, limits: Limits) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_max)
        .keep_alive(false)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let _ = tokio::time::timeout(limits.exchange_max, served).await;
}

#[cfg(test)]
mod tests;
