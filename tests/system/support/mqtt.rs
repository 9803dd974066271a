//! A small blocking MQTT client, 3.1.1 and 5: it shares no line with the library inside the gateway, so that one
//! mistake cannot hide in both, and it reads everything the broker sent before it notices that the broker is gone.
//!
//! Keep alive is off, sessions are clean unless asked otherwise, publishes are QoS 1 and one at a time.

use std::{
    io::{self, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::Instant,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::{PATIENCE, pause};

/// Which MQTT is spoken; the number is the protocol level of CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V311 = 4,
    V5 = 5,
}

/// What the broker remembers of us between two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// Nothing.
    Clean,
    /// Our subscriptions, and what came for us meanwhile.
    Kept,
}

/// What a broker sends that matters here.
#[derive(Debug)]
pub(crate) enum Packet {
    Publish(Message),
    Puback { id: u16, code: u8 },
    Suback { granted: bool },
    Other,
}

/// A message for us.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) retained: bool,
    /// Present if it wants a PUBACK.
    pub(crate) id: Option<u16>,
}

/// User name and password.
pub(crate) type Login<'a> = Option<(&'a str, &'a str)>;

/// TCP, or TLS over it.
#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// One connection, past its CONNACK.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<Stream>,
    version: Version,
    last_id: u16,
}

impl Connection {
    /// Connects with a clean session. A refused login is `PermissionDenied`.
    pub(crate) fn open(port: u16, version: Version, client_id: &str, login: Login<'_>) -> io::Result<Self> {
        Self::open_session(port, version, client_id, login, Session::Clean)
    }

    /// Connects with one session or the other.
    pub(crate) fn open_session(
        port: u16,
        version: Version,
        client_id: &str,
        login: Login<'_>,
        session: Session,
    ) -> io::Result<Self> {
        Self::begin(Stream::Plain(dial(port)?), version, client_id, login, session)
    }

    /// Connects with a clean session over TLS, to a server named `localhost`.
    pub(crate) fn open_tls(port: u16, config: ClientConfig, client_id: &str) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").expect("a name");
        let tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let stream = Stream::Tls(Box::new(StreamOwned::new(tls, dial(port)?)));
        Self::begin(stream, Version::V5, client_id, None, Session::Clean)
    }

    fn begin(
        stream: Stream,
        version: Version,
        client_id: &str,
        login: Login<'_>,
        session: Session,
    ) -> io::Result<Self> {
        let mut connection = Self { stream: BufReader::new(stream), version, last_id: 0 };
        let login_flags = if login.is_some() { 0xC0 } else { 0 };
        let mut body = text("MQTT");
        let clean_flag = if session == Session::Clean { 0x02 } else { 0 };
        body.extend([version as u8, clean_flag | login_flags, 0, 0]);
        match (version, session) {
            // Session expiry interval (§3.1.2.11.2): never.
            (Version::V5, Session::Kept) => body.extend([5, 0x11, 0xFF, 0xFF, 0xFF, 0xFF]),
            (Version::V311 | Version::V5, _) => connection.no_properties(&mut body),
        }
        body.extend(text(client_id));
        for word in login.iter().flat_map(|(user, password)| [user, password]) {
            body.extend(text(word));
        }
        connection.send(0x10, &body)?;
        let (header, body) = connection.receive()?;
        match (header, body.get(1)) {
            (0x20, Some(0)) => Ok(connection),
            (0x20, Some(4 | 5 | 0x86 | 0x87)) => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Err(malformed("CONNACK")),
        }
    }

    /// Connects as soon as somebody answers there.
    pub(crate) fn open_patiently(port: u16, version: Version, client_id: &str, login: Login<'_>) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::open(port, version, client_id, login) {
                Ok(connection) => return connection,
                Err(e) if Instant::now() > deadline => panic!("no broker answered on port {port}: {e}"),
                Err(_) => pause(),
            }
        }
    }

    /// A second handle to the socket, to shut it down from another thread.
    pub(crate) fn socket(&self) -> io::Result<TcpStream> {
        self.stream.get_ref().tcp().try_clone()
    }

    /// Subscribes at QoS 1; the SUBACK arrives among the packets.
    pub(crate) fn subscribe(&mut self, filter: &str) -> io::Result<()> {
        let mut body = self.fresh_id().to_be_bytes().to_vec();
        self.no_properties(&mut body);
        body.extend(text(filter));
        body.push(1);
        self.send(0x82, &body)
    }

    /// Waits as long as it takes for the next packet, until the connection ends.
    pub(crate) fn wait_without_limit(&self) -> io::Result<()> {
        self.stream.get_ref().tcp().set_read_timeout(None)
    }

    /// Publishes at QoS 1; the PUBACK of the returned id arrives among the packets.
    pub(crate) fn send_publish(&mut self, topic: &str, payload: &[u8], retain: Retain) -> io::Result<u16> {
        self.send_publish_as(0x32 | retain as u8, topic, payload)
    }

    /// The same for a message of an earlier connection that was not confirmed there: marked as a duplicate.
    pub(crate) fn send_publish_again(&mut self, topic: &str, payload: &[u8]) -> io::Result<u16> {
        self.send_publish_as(0x3A, topic, payload)
    }

    fn send_publish_as(&mut self, header: u8, topic: &str, payload: &[u8]) -> io::Result<u16> {
        let id = self.fresh_id();
        let mut body = text(topic);
        body.extend(id.to_be_bytes());
        self.no_properties(&mut body);
        body.extend(payload);
        self.send(header, &body)?;
        Ok(id)
    }

    /// Publishes at QoS 1 and waits for the PUBACK; returns its reason code.
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], retain: Retain) -> io::Result<u8> {
        let id = self.send_publish(topic, payload, retain)?;
        loop {
            match self.next()? {
                Packet::Puback { id: confirmed, code } if confirmed == id => return Ok(code),
                Packet::Publish(_) | Packet::Puback { .. } | Packet::Suback { .. } | Packet::Other => {}
            }
        }
    }

    /// Confirms a message.
    pub(crate) fn acknowledge(&mut self, id: u16) -> io::Result<()> {
        self.send(0x40, &id.to_be_bytes())
    }

    /// Says goodbye, so that no will is published.
    pub(crate) fn disconnect(mut self) {
        // A broker that is gone already needs no goodbye.
        let _gone = self.send(0xE0, &[]);
        let _gone = self.stream.get_ref().tcp().shutdown(Shutdown::Both);
    }

    /// The next packet; an error is the end of the connection.
    pub(crate) fn next(&mut self) -> io::Result<Packet> {
        let (header, body) = self.receive()?;
        let packet = match header >> 4 {
            3 => self.message(header, &body).map(Packet::Publish),
            4 => number(&body).map(|id| Packet::Puback { id, code: body.get(2).copied().unwrap_or(0) }),
            9 => body.last().map(|code| Packet::Suback { granted: *code <= 2 }),
            _ => Some(Packet::Other),
        };
        packet.ok_or_else(|| malformed("packet"))
    }

    fn message(&self, header: u8, body: &[u8]) -> Option<Message> {
        let end = 2 + usize::from(number(body)?);
        let topic = String::from_utf8(body.get(2..end)?.to_vec()).ok()?;
        let mut rest = body.get(end..)?;
        let id = match header & 0x06 {
            0 => None,
            _ => {
                let id = number(rest)?;
                rest = &rest[2..];
                Some(id)
            }
        };
        if self.version == Version::V5 {
            let (length, size) = varint(rest)?;
            rest = rest.get(size + length..)?;
        }
        Some(Message { topic, payload: rest.to_vec(), retained: header & 1 == 1, id })
    }

    fn no_properties(&self, body: &mut Vec<u8>) {
        if self.version == Version::V5 {
            body.push(0);
        }
    }

    const fn fresh_id(&mut self) -> u16 {
        self.last_id = if self.last_id == u16::MAX { 1 } else { self.last_id + 1 };
        self.last_id
    }

    fn send(&mut self, header: u8, body: &[u8]) -> io::Result<()> {
        let mut packet = vec![header];
        let mut length = body.len();
        loop {
            let byte = u8::try_from(length % 128).expect("below 128");
            length /= 128;
            packet.push(if length > 0 { byte | 0x80 } else { byte });
            if length == 0 {
                break;
            }
        }
        packet.extend(body);
        self.stream.get_mut().write_all(&packet)?;
        self.stream.get_mut().flush()
    }

    fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut byte = [0; 1];
        self.stream.read_exact(&mut byte)?;
        let header = byte[0];
        let mut digits = Vec::new();
        while digits.last().is_none_or(|b| b & 0x80 != 0) {
            self.stream.read_exact(&mut byte)?;
            digits.push(byte[0]);
        }
        let (length, _) = varint(&digits).ok_or_else(|| malformed("length"))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((header, body))
    }
}

/// Whether the broker keeps the message; the number is the flag of PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retain {
    No = 0,
    Yes = 1,
}

/// A device or camera that publishes until it has its PUBACK, across every loss of the connection.
#[derive(Debug)]
pub(crate) struct Publisher {
    port: u16,
    version: Version,
    client_id: &'static str,
    connection: Option<Connection>,
}

impl Publisher {
    /// Will connect when there is something to say.
    pub(crate) const fn new(port: u16, version: Version, client_id: &'static str) -> Self {
        Self { port, version, client_id, connection: None }
    }

    /// Publishes, again after every lost connection, until the PUBACK is here.
    pub(crate) fn publish(&mut self, topic: &str, payload: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut connection = self
                .connection
                .take()
                .unwrap_or_else(|| Connection::open_patiently(self.port, self.version, self.client_id, None));
            match connection.publish(topic, payload.as_bytes(), Retain::No) {
                Ok(code) if code < 0x80 => {
                    self.connection = Some(connection);
                    return;
                }
                outcome if Instant::now() > deadline => panic!("{topic} was never confirmed: {outcome:?}"),
                Ok(_) => self.connection = Some(connection),
                Err(_) => {}
            }
            pause();
        }
    }
}

fn dial(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn text(word: &str) -> Vec<u8> {
    let length = u16::try_from(word.len()).expect("a short text");
    [&length.to_be_bytes(), word.as_bytes()].concat()
}

fn number(body: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*body.first()?, *body.get(1)?]))
}

fn varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (i, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
    }
    None
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected {what}"))
}
