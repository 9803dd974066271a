//! The server's end of MQTT: devices publish straight to the gateway, without a broker.
//!
//! A [`Listener`] accepts MQTT 3.1.1 and 5 and tells its owner what happens; the owner decides what it means. The
//! gateway's own owner is [`ingest`], which takes publishes and refuses subscriptions; the simulated command center is
//! another. Nothing is acknowledged before the owner says that it is durable, so a publisher that was told "yes" was
//! told the truth.
//!
//! No session is kept over a connection and delivery is at least once, also at QoS 2: a publisher that is cut off sends
//! again. With TLS if it is given certificates. Not here: will delay, topic aliases, enhanced authentication. Bounds are constants with their reasons;
//! what is over them waits in the client, and a client that breaks the protocol ends only itself.

pub mod codec;
mod connection;
pub mod ingest;

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};

use self::codec::{Bye, ConnectRefusal, Grant, Malformed, Message};
use crate::{
    config::Login,
    supervise::Children,
    wire::tls::{
        FilesFault,
        server::{Acceptor, Refusal},
    },
};

/// Connections at once: a park has tens of cameras; 256 idle ones take some 2 MiB, 256 at full load 16 MiB, with TLS 12 MiB
/// more.
pub const CONNECTIONS_MAX: usize = 256;
/// Reports of all connections that may wait for the owner; full means every connection waits, and its client with it.
const REPORTS_MAX: usize = 64;
/// Messages that may wait to leave for one client; a client that reads more slowly is closed by [`Client::publish`].
const OUTGOING_MAX: usize = 1_024;
/// After a failing accept (no file handles) the next attempt is in so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A client id, as given in CONNECT.
pub type ClientId = Arc<str>;

/// A connected client.
#[derive(Debug, Clone)]
pub struct Client {
    /// Its id; a later connection may have the same.
    pub id: ClientId,
    /// Counts connections: tells two of one id apart.
    pub serial: u64,
    outgoing: mpsc::Sender<Outgoing>,
    leave: watch::Sender<Option<Bye>>,
}

/// A message on its way to a client.
#[derive(Debug)]
struct Outgoing {
    message: Message,
    acknowledged: Option<oneshot::Sender<()>>,
}

impl Client {
    /// Sends a message at QoS 1; `acknowledged` is sent at its PUBACK and dropped if that never comes.
    ///
    /// A client whose queue is full is closed: it must not hold up the owner, and learns more from a fresh start.
    pub fn publish(&self, message: Message, acknowledged: Option<oneshot::Sender<()>>) {
        if self.outgoing.try_send(Outgoing { message, acknowledged }).is_err() {
            self.close();
        }
    }

    /// Ends the connection in order; its will is not published.
    pub fn close(&self) {
        self.leave.send_replace(Some(Bye::ShuttingDown));
    }
}

/// What happens on the listener.
#[derive(Debug)]
pub enum Event {
    /// A client is there.
    Connected(Client),
    /// A client sent a message, or its will speaks for it.
    Published {
        /// Who.
        client: ClientId,
        /// What.
        message: Message,
        /// To be sent when the effect is durable; if it is dropped unsent, the connection ends without a PUBACK.
        done: oneshot::Sender<()>,
    },
    /// A client wants messages.
    Subscribe {
        /// Who.
        client: ClientId,
        /// Topic filters.
        filters: Vec<String>,
        /// One grant a filter; dropped means none.
        reply: oneshot::Sender<Vec<Grant>>,
    },
    /// A client wants no more of some.
    Unsubscribe {
        /// Who.
        client: ClientId,
        /// Topic filters.
        filters: Vec<String>,
    },
    /// A client is gone.
    Gone {
        /// Who.
        client: ClientId,
        /// Which of its connections.
        serial: u64,
        /// Why.
        why: End,
    },
    /// Someone was not let in.
    Rejected {
        /// From where.
        peer: SocketAddr,
        /// Why.
        why: Rejected,
    },
    /// The files of TLS changed: from now on they count, or those before stay.
    Renewed(Result<(), FilesFault>),
    /// A bug ended one connection; the others go on.
    Panicked,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// DISCONNECT.
    #[error("it left")]
    Left,
    /// DISCONNECT that asks for the will.
    #[error("it left with its will")]
    LeftWithWill,
    /// The TCP connection ended.
    #[error("the connection broke")]
    Broken,
    /// Nothing heard within 1.5 times the keep alive.
    #[error("it is silent")]
    Silent,
    /// The client does not read what it is sent.
    #[error("it does not read")]
    NotReading,
    /// It broke the protocol.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// It connected again.
    #[error("it connected again")]
    TakenOver,
    /// The owner closed it.
    #[error("closed by this side")]
    Closed,
    /// The effect of a message will never be durable; the client must send it again.
    #[error("a message could not be stored")]
    NotStored,
}

/// Why someone was not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// [`CONNECTIONS_MAX`] are there.
    #[error("{CONNECTIONS_MAX} clients are connected already")]
    Full,
    /// No TLS with it.
    #[error("{0}")]
    NoTls(#[from] Refusal),
    /// No CONNECT in time.
    #[error("no CONNECT in time")]
    Slow,
    /// It closed before.
    #[error("it closed before CONNECT")]
    Broken,
    /// What it sent is no CONNECT.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// CONNACK of refusal.
    #[error("{0}")]
    Refused(#[from] ConnectRefusal),
}

/// What a connection tells the listener.
#[derive(Debug)]
enum Report {
    /// Let me in; the other connection of my id must go first.
    Hello { client: Client, admit: oneshot::Sender<()> },
    /// Passed on to the owner.
    Event(Event),
}

/// Accepts clients. Dropping it ends every connection.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    login: Option<Arc<Login>>,
    tls: Option<Acceptor>,
    connections: Children,
    clients: HashMap<ClientId, Client>,
    reporter: mpsc::Sender<Report>,
    reports: mpsc::Receiver<Report>,
    serial: u64,
}

impl Listener {
    /// Listens on `address`; every client must give `login`.
    pub async fn bind(address: SocketAddr, login: Option<Login>) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let (reporter, reports) = mpsc::channel(REPORTS_MAX);
        let (connections, clients) = (Children::default(), HashMap::new());
        Ok(Self { socket, login: login.map(Arc::new), tls: None, connections, clients, reporter, reports, serial: 0 })
    }

    /// Accepts only TLS, if there is an acceptor.
    #[must_use]
    pub fn with_tls(self, tls: Option<Acceptor>) -> Self {
        Self { tls, ..self }
    }

    /// Where it listens: tells the port if 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next event; connections are served only while someone waits here. Cancel safe.
    pub async fn next(&mut self) -> Event {
        loop {
            tokio::select! {
                report = self.reports.recv() => match report.expect("we hold a sender ourselves") {
                    Report::Hello { client, admit } => {
                        if let Some(before) = self.clients.insert(client.id.clone(), client.clone()) {
                            before.leave.send_replace(Some(Bye::TakenOver));
                        }
                        if admit.send(()).is_ok() {
                            return Event::Connected(client);
                        }
                    }
                    Report::Event(event) => {
                        if let Event::Gone { client, serial, .. } = &event
                            && self.clients.get(client).is_some_and(|present| present.serial == *serial)
                        {
                            self.clients.remove(client);
                        }
                        return event;
                    }
                },
                panicked = self.connections.next_ended(), if !self.connections.is_empty() => if panicked {
                    self.clients.retain(|_, client| !client.outgoing.is_closed());
                    return Event::Panicked;
                },
                accepted = self.socket.accept() => match accepted {
                    Ok((_, peer)) if self.connections.len() >= CONNECTIONS_MAX => {
                        return Event::Rejected { peer, why: Rejected::Full };
                    }
                    Ok((stream, peer)) => {
                        self.serial += 1;
                        let renewed = self.tls.as_mut().and_then(Acceptor::refresh);
                        let tls = self.tls.as_ref().map(Acceptor::handshake);
                        let (login, reporter) = (self.login.clone(), self.reporter.clone());
                        self.connections.spawn(connection::serve(stream, tls, peer, self.serial, login, reporter));
                        if let Some(renewed) = renewed {
                            return Event::Renewed(renewed);
                        }
                    }
                    // A connection that was aborted in the queue, or no file handles: neither is ours to end for.
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
