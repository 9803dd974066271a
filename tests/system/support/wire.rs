//! A two-wire bus of nodes and masters: what one says, all others hear, and two that speak at once hurt each other.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crc::{CRC_16_MODBUS, Crc};

use super::{PATIENCE, node::Node};

const CHECKSUM: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);
/// Between two frames of a master: 3.5 characters at 1200 baud, the slowest that nodes here are set to, and some more.
const SILENCE: Duration = Duration::from_millis(40);
/// A busy machine may take so long for one answer; the question is asked again then.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The bus.
#[derive(Debug)]
pub(crate) struct Wire {
    /// Where masters find it, as one finds a converter of serial lines.
    pub(crate) port: u16,
    ends: Arc<Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    sockets: Mutex<Vec<(u64, TcpStream)>>,
    named: AtomicU64,
    /// Bytes of nodes that will be hurt.
    to_hurt: AtomicU32,
    carried: AtomicU64,
}

impl Wire {
    /// Lays one between these nodes.
    pub(crate) fn between(nodes: &[&Node]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let ends = Arc::new(Ends::default());
        for node in nodes {
            let socket = TcpStream::connect(("127.0.0.1", node.bus_port)).expect("the emulator listens");
            ends.clone().join(socket, Speaker::Node);
        }
        let door = ends.clone();
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                door.clone().join(socket, Speaker::Master);
            }
        });
        Self { port, ends }
    }

    /// What a spike, a plug or a foreign device puts on it: all ends hear that.
    pub(crate) fn disturb(&self, bytes: &[u8]) {
        self.ends.carry(u64::MAX, bytes);
    }

    /// Two speak at once: the next bytes of nodes arrive as something else.
    pub(crate) fn collide(&self, bytes: u32) {
        self.ends.to_hurt.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Bytes it carried.
    pub(crate) fn carried(&self) -> u64 {
        self.ends.carried.load(Ordering::SeqCst)
    }

    /// A master of the test's own.
    pub(crate) fn master(&self) -> Master {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).expect("the bus is there");
        socket.set_nodelay(true).expect("a socket of ours");
        Master { socket, asked_again: 0 }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for (_, socket) in self.ends.sockets().drain(..) {
            // It may be closed already.
            let _closed = socket.shutdown(Shutdown::Both);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Master,
    Node,
}

impl Ends {
    fn join(self: Arc<Self>, mut socket: TcpStream, speaker: Speaker) {
        socket.set_nodelay(true).expect("a socket of ours");
        let name = self.named.fetch_add(1, Ordering::Relaxed);
        self.sockets().push((name, socket.try_clone().expect("a second handle")));
        thread::spawn(move || {
            let mut bytes = [0; 512];
            while let Some(len) = socket.read(&mut bytes).ok().filter(|len| *len > 0) {
                let said = &mut bytes[..len];
                if speaker == Speaker::Node {
                    said.iter_mut().for_each(|byte| *byte = self.hurt(*byte));
                }
                self.carry(name, said);
            }
            self.sockets().retain(|(other, _)| *other != name);
        });
    }

    fn hurt(&self, byte: u8) -> u8 {
        let taken = self.to_hurt.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if taken.is_ok() { byte ^ 0x5A } else { byte }
    }

    fn carry(&self, from: u64, bytes: &[u8]) {
        self.carried.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        for (_, socket) in self.sockets().iter_mut().filter(|(name, _)| *name != from) {
            // Who is gone is taken off by its own thread.
            let _gone = socket.write_all(bytes);
        }
    }

    fn sockets(&self) -> std::sync::MutexGuard<'_, Vec<(u64, TcpStream)>> {
        self.sockets.lock().expect("no panic while it is held")
    }
}

/// A master that asks until it has an answer.
#[derive(Debug)]
pub(crate) struct Master {
    socket: TcpStream,
    /// Questions that were asked more than once.
    pub(crate) asked_again: u64,
}

impl Master {
    /// Input registers of a unit.
    pub(crate) fn inputs(&mut self, unit: u8, first: u16, count: u16) -> Vec<u16> {
        self.words(unit, 4, first, count)
    }

    /// Holding registers of a unit.
    pub(crate) fn holdings(&mut self, unit: u8, first: u16, count: u16) -> Vec<u16> {
        self.words(unit, 3, first, count)
    }

    /// Writes holding registers, one by one.
    pub(crate) fn set(&mut self, unit: u8, registers: &[(u16, u16)]) {
        for (address, value) in registers {
            let request = [&[6][..], &address.to_be_bytes(), &value.to_be_bytes()].concat();
            assert_eq!(self.ask(unit, &request), request, "register {address} is echoed");
        }
    }

    /// Asks until there is an answer, at most as long as anything may take. What is asked must be harmless if done twice.
    pub(crate) fn ask(&mut self, unit: u8, request: &[u8]) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.try_to_ask(unit, request) {
                return answer;
            }
            assert!(Instant::now() < deadline, "unit {unit} never answers {request:?}");
            self.asked_again += 1;
        }
    }

    /// Asks once.
    pub(crate) fn try_to_ask(&mut self, unit: u8, request: &[u8]) -> Option<Vec<u8>> {
        self.hear_out();
        self.say(&framed(unit, request));
        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut heard = Vec::new();
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let mut bytes = [0; 256];
            self.socket.set_read_timeout(Some(left)).expect("a socket of ours");
            let len = self.socket.read(&mut bytes).ok()?;
            heard.extend_from_slice(&bytes[..len]);
            // Shorter is no answer.
            if let [asked, function, rest @ .., _, _] = &heard[..]
                && CHECKSUM.checksum(&heard) == 0
                && (*asked, function & 0x7F, rest.is_empty()) == (unit, request[0], false)
            {
                return Some(heard[1..heard.len() - 2].to_vec());
            }
        }
        None
    }

    /// Says something and listens for much longer than an answer takes.
    pub(crate) fn hears_nothing_after(&mut self, bytes: &[u8]) -> bool {
        self.say(bytes);
        self.socket.set_read_timeout(Some(10 * SILENCE)).expect("a socket of ours");
        self.socket.read(&mut [0]).is_err()
    }

    /// Says it, whatever comes of it.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the bus is there");
    }

    /// Waits until the bus was silent for as long as a frame ends with.
    pub(crate) fn hear_out(&mut self) {
        self.socket.set_read_timeout(Some(SILENCE)).expect("a socket of ours");
        while self.socket.read(&mut [0; 256]).is_ok_and(|len| len > 0) {}
    }

    fn words(&mut self, unit: u8, function: u8, first: u16, count: u16) -> Vec<u16> {
        let request = [&[function][..], &first.to_be_bytes(), &count.to_be_bytes()].concat();
        let answer = self.ask(unit, &request);
        assert_eq!(answer.len(), 2 + 2 * usize::from(count), "{answer:?}");
        answer[2..].chunks(2).map(|word| u16::from_be_bytes([word[0], word[1]])).collect()
    }
}

/// A request as it goes over the wire.
pub(crate) fn framed(unit: u8, request: &[u8]) -> Vec<u8> {
    let mut frame = [&[unit][..], request].concat();
    frame.extend(CHECKSUM.checksum(&frame).to_le_bytes());
    frame
}
