//! One client's connection: handshake, then packets in and answers out, each within a bound.
//!
//! A packet that was read waits (`pending`) until the owner has room and fewer than [`UNCOMMITTED_MAX`] messages of
//! this client are uncommitted; while it waits nothing more is read, so the client feels it through TCP, and the keep
//! alive does not count against it. Answers leave in the order of the messages (MQTT 5.0 §4.6).

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::{Interval, interval, timeout},
};

use super::{
    Client, ClientId, End, Event, OUTGOING_MAX, Outgoing, Rejected, Report,
    codec::{self, AtDisconnect, Bye, Connect, ConnectRefusal, Grant, Message, Packet, Qos},
};
use crate::{
    config::{Login, MqttVersion},
    source::mqtt::UNCOMMITTED_MAX,
    wire::tls::server::Handshake,
};

/// A client that has something to say says CONNECT at once, behind the handshake of TLS if there is one; slow ones hold a place that others need.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// A client that takes no bytes for so long does not read any more.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// Without a keep alive a dead client would hold its place for ever; a living one that is silent so long comes again.
const SILENCE_MAX: Duration = Duration::from_secs(3_600);
/// Publishes of ours that wait for their PUBACK, unless the client takes fewer.
const WINDOW_MAX: u16 = 32;
/// Longest client id, in bytes: ids are kept and logged.
const CLIENT_ID_LEN_MAX: usize = 256;
/// First room for bytes; grows to one packet.
const BUFFER_LEN: usize = 2 * 1024;

/// TCP, or TLS over it.
pub(super) type Stream = Box<dyn Duplex>;

/// Bytes in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Serves one connection until it ends.
pub(super) async fn serve(
    stream: TcpStream,
    tls: Option<Handshake>,
    peer: SocketAddr,
    serial: u64,
    login: Option<Arc<Login>>,
    reporter: mpsc::Sender<Report>,
) {
    let _only_slower = stream.set_nodelay(true);
    let mut buffer = BytesMut::with_capacity(BUFFER_LEN);
    let greeted = timeout(CONNECT_MAX, async {
        let mut stream: Stream = match tls {
            None => Box::new(stream),
            Some(handshake) => Box::new(handshake.accept(stream).await?),
        };
        let (version, connect) = greet(&mut stream, &mut buffer, login.as_deref()).await?;
        Ok((stream, version, connect))
    });
    let (stream, version, connect) = match greeted.await.unwrap_or(Err(Rejected::Slow)) {
        Ok(greeted) => greeted,
        Err(why) => {
            let _no_owner_left = reporter.send(Report::Event(Event::Rejected { peer, why })).await;
            return;
        }
    };
    let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
    let (leave, left) = watch::channel(None);
    let assigned = connect.client_id.is_empty().then(|| format!("gardu-{:016x}", fastrand::u64(..)));
    let id: ClientId = assigned.as_deref().unwrap_or(&connect.client_id).into();
    let (admit, admitted) = oneshot::channel();
    let client = Client { id: id.clone(), serial, outgoing, leave };
    let hello = reporter.send(Report::Hello { client, admit }).await;
    if hello.is_err() || admitted.await.is_err() {
        return;
    }
    let mut connection = Connection {
        stream,
        version,
        id,
        reporter,
        messages,
        left,
        buffer,
        out: BytesMut::new(),
        alive: interval(allowance(connect.keep_alive_s)),
        uncommitted: FuturesOrdered::new(),
        received: HashMap::new(),
        window: connect.receive_maximum.clamp(1, WINDOW_MAX),
        packet_size_max: connect.packet_size_max,
        unacknowledged: HashMap::new(),
        last_id: 0,
    };
    codec::accept(version, UNCOMMITTED_MAX, assigned.as_deref(), &mut connection.out);
    let why = connection.run().await;
    connection.end(why, connect.will, serial).await;
}

/// CONNECT, checked; a refusal is answered.
async fn greet(
    stream: &mut Stream,
    buffer: &mut BytesMut,
    login: Option<&Login>,
) -> Result<(MqttVersion, Connect), Rejected> {
    let connect = loop {
        match codec::sniff(buffer) {
            Ok(None) => {}
            Ok(Some(version)) => {
                if let Some(packet) = codec::read(version, buffer)? {
                    let Packet::Connect(connect) = packet else { return Err(codec::Malformed::NoConnect.into()) };
                    break (version, *connect);
                }
            }
            Err(codec::Malformed::OtherLevel) => {
                return Err(refuse(stream, MqttVersion::V311, ConnectRefusal::Level).await);
            }
            Err(malformed) => return Err(malformed.into()),
        }
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return Err(Rejected::Broken);
        }
    };
    match judge(&connect.1, connect.0, login) {
        Ok(()) => Ok(connect),
        Err(why) => Err(refuse(stream, connect.0, why).await),
    }
}

async fn refuse(stream: &mut Stream, version: MqttVersion, why: ConnectRefusal) -> Rejected {
    let mut out = BytesMut::new();
    codec::refuse(version, why, &mut out);
    if stream.write_all(&out).await.is_ok() {
        let _it_is_refused_either_way = stream.shutdown().await;
    }
    why.into()
}

fn judge(connect: &Connect, version: MqttVersion, login: Option<&Login>) -> Result<(), ConnectRefusal> {
    let id = &connect.client_id;
    // MQTT 3.1.1 §3.1.3.1: an empty id needs a clean session, for nobody could come back to it.
    let nameless = id.is_empty() && version == MqttVersion::V311 && !connect.clean;
    if nameless || id.len() > CLIENT_ID_LEN_MAX || id.chars().any(char::is_control) {
        return Err(ConnectRefusal::ClientId);
    }
    match (login, &connect.login) {
        (None, _) => Ok(()),
        (Some(want), Some(given)) => {
            let password = |login: &Login| login.password.clone().unwrap_or_default();
            let user = same(&want.username, &given.username);
            let secret = same(&password(want), &password(given));
            if user & secret { Ok(()) } else { Err(ConnectRefusal::Login) }
        }
        (Some(_), None) => Err(ConnectRefusal::Login),
    }
}

/// Compares in a time that tells only the length of what was given.
fn same(want: &str, given: &str) -> bool {
    let want = want.as_bytes();
    let byte = |i: usize| if want.is_empty() { 0 } else { want[i % want.len()] };
    let differences = given.bytes().enumerate().fold(0, |all, (i, b)| std::hint::black_box(all | (b ^ byte(i))));
    differences == 0 && given.len() == want.len()
}

fn allowance(keep_alive_s: u16) -> Duration {
    if keep_alive_s == 0 { SILENCE_MAX } else { Duration::from_millis(u64::from(keep_alive_s) * 1_500) }
}

/// What is to be sent when a message is durable, or a subscription answered.
enum Reply {
    Nothing,
    PubAck(u16),
    PubRec(u16),
    SubAck(u16, Vec<Grant>),
}

/// How far an inbound QoS 2 message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    /// Its commit is under way; PUBREC follows by itself.
    Uncommitted,
    /// PUBREC was sent; PUBREL has not come.
    Committed,
}

struct Connection {
    stream: Stream,
    version: MqttVersion,
    id: ClientId,
    reporter: mpsc::Sender<Report>,
    messages: mpsc::Receiver<Outgoing>,
    left: watch::Receiver<Option<Bye>>,
    buffer: BytesMut,
    out: BytesMut,
    alive: Interval,
    uncommitted: FuturesOrdered<BoxFuture<'static, Result<Reply, End>>>,
    /// QoS 2 ids until their PUBREL; 65,535 at most by the protocol. No smaller limit: a 3.1.1 client may send
    /// hundreds before its first PUBREL, which comes behind them.
    received: HashMap<u16, Received>,
    window: u16,
    packet_size_max: u32,
    unacknowledged: HashMap<u16, Option<oneshot::Sender<()>>>,
    last_id: u16,
}

impl Connection {
    async fn run(&mut self) -> End {
        self.alive.reset();
        let ended = async {
            let mut pending = None;
            loop {
                self.flush().await?;
                if pending.is_none() {
                    pending = codec::read(self.version, &mut self.buffer)?;
                    if pending.is_some() {
                        self.alive.reset();
                    }
                }
                let room = self.uncommitted.len() < usize::from(UNCOMMITTED_MAX);
                let window = self.unacknowledged.len() < usize::from(self.window);
                tokio::select! {
                    biased;
                    bye = async { self.left.wait_for(Option::is_some).await.map_or(None, |bye| *bye) } => {
                        return Err(if bye == Some(Bye::TakenOver) { End::TakenOver } else { End::Closed });
                    }
                    Some(reply) = self.uncommitted.next() => self.reply(reply?),
                    permit = self.reporter.clone().reserve_owned(), if room && pending.is_some() => {
                        let Ok(permit) = permit else { return Err(End::Closed) };
                        if let Some(packet) = pending.take() {
                            self.handle(packet, permit)?;
                        }
                        self.alive.reset(); // the time it waited was ours, not the client's
                    }
                    Some(outgoing) = self.messages.recv(), if window => self.publish(outgoing),
                    read = self.stream.read_buf(&mut self.buffer), if pending.is_none() => {
                        if !matches!(read, Ok(1..)) {
                            return Err(End::Broken);
                        }
                    }
                    _ = self.alive.tick(), if pending.is_none() => return Err(End::Silent),
                }
            }
        };
        let ended: Result<(), End> = ended.await;
        ended.expect_err("the loop ends only with a reason")
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = timeout(WRITE_MAX, async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await // TLS keeps what the socket did not take yet
        });
        let written = written.await;
        self.out.clear();
        written.map_err(|_| End::NotReading)?.map_err(|_| End::Broken)
    }

    fn handle(&mut self, packet: Packet, permit: mpsc::OwnedPermit<Report>) -> Result<(), End> {
        match packet {
            Packet::Connect(_) => return Err(codec::Malformed::Packet.into()),
            Packet::Publish(message, qos) => self.take(message, qos, permit),
            Packet::PubAck(id) => {
                if let Some(Some(acknowledged)) = self.unacknowledged.remove(&id) {
                    let _nobody_waits = acknowledged.send(());
                }
            }
            Packet::PubRel(id) => {
                self.received.remove(&id);
                codec::pubcomp(id, &mut self.out);
            }
            Packet::Subscribe { id, filters } => {
                let (reply, granted) = oneshot::channel();
                let count = filters.len();
                permit.send(Report::Event(Event::Subscribe { client: self.id.clone(), filters, reply }));
                let grants = granted.map(move |grants| {
                    let mut grants = grants.unwrap_or_default();
                    grants.resize(count, Grant::Refused);
                    Ok(Reply::SubAck(id, grants))
                });
                self.uncommitted.push_back(grants.boxed());
            }
            Packet::Unsubscribe { id, filters } => {
                codec::unsuback(self.version, id, filters.len(), &mut self.out);
                permit.send(Report::Event(Event::Unsubscribe { client: self.id.clone(), filters }));
            }
            Packet::PingReq => codec::pingresp(&mut self.out),
            Packet::Disconnect(AtDisconnect::ForgetWill) => return Err(End::Left),
            Packet::Disconnect(AtDisconnect::PublishWill) => return Err(End::LeftWithWill),
        }
        Ok(())
    }

    fn take(&mut self, message: Message, qos: Qos, permit: mpsc::OwnedPermit<Report>) {
        let reply = match qos {
            Qos::AtMostOnce => Reply::Nothing,
            Qos::AtLeastOnce(id) => Reply::PubAck(id),
            Qos::ExactlyOnce(id) => match self.received.get(&id) {
                None => {
                    self.received.insert(id, Received::Uncommitted);
                    Reply::PubRec(id)
                }
                Some(Received::Uncommitted) => return,
                Some(Received::Committed) => return codec::pubrec(id, &mut self.out),
            },
        };
        let (done, committed) = oneshot::channel();
        permit.send(Report::Event(Event::Published { client: self.id.clone(), message, done }));
        let replied = committed.map(|committed| committed.map(|()| reply).map_err(|_| End::NotStored));
        self.uncommitted.push_back(replied.boxed());
    }

    fn reply(&mut self, reply: Reply) {
        match reply {
            Reply::Nothing => {}
            Reply::PubAck(id) => codec::puback(id, &mut self.out),
            Reply::PubRec(id) => {
                // A client that released before it was received has broken only its own count.
                self.received.entry(id).and_modify(|received| *received = Received::Committed);
                codec::pubrec(id, &mut self.out);
            }
            Reply::SubAck(id, grants) => codec::suback(self.version, id, &grants, &mut self.out),
        }
    }

    fn publish(&mut self, outgoing: Outgoing) {
        let id = loop {
            self.last_id = self.last_id.wrapping_add(1).max(1);
            if !self.unacknowledged.contains_key(&self.last_id) {
                break self.last_id;
            }
        };
        // One that is too large for the client is as if it had never been published (§3.1.2.11.4).
        if codec::publish(self.version, id, &outgoing.message, self.packet_size_max, &mut self.out).is_some() {
            self.unacknowledged.insert(id, outgoing.acknowledged);
        }
    }

    /// Says goodbye, lets the will speak, and reports.
    async fn end(mut self, why: End, will: Option<Message>, serial: u64) {
        let bye = match why {
            End::Left | End::LeftWithWill | End::Broken | End::NotReading | End::NotStored => None,
            End::Silent => Some(Bye::KeepAlive),
            End::Malformed(codec::Malformed::TooLarge) => Some(Bye::TooLarge),
            End::Malformed(_) => Some(Bye::Malformed),
            End::TakenOver => Some(Bye::TakenOver),
            End::Closed => Some(Bye::ShuttingDown),
        };
        if let Some(bye) = bye {
            codec::disconnect(self.version, bye, &mut self.out);
        }
        if self.flush().await.is_ok() {
            let _it_is_over_either_way = timeout(WRITE_MAX, self.stream.shutdown()).await;
        }
        let will = will.filter(|_| !matches!(why, End::Left | End::Closed));
        let client = self.id;
        if let Some(message) = will {
            let (done, _nobody_waits) = oneshot::channel();
            let published = Event::Published { client: client.clone(), message, done };
            let _no_owner_left = self.reporter.send(Report::Event(published)).await;
        }
        let _no_owner_left = self.reporter.send(Report::Event(Event::Gone { client, serial, why })).await;
    }
}
