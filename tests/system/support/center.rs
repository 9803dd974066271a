//! The command center: one MQTT client that keeps the books of one gateway, and asks it things.

use std::{
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    PATIENCE,
    ledger::{Event, Ledger, Summary},
    mqtt::{Connection, Login, Packet, Retain, Session, Version},
    pause,
};
use crate::contract;

/// A command that is not answered in this time was not delivered and is sent again (DESIGN.md §5.4).
const RESEND_AFTER: Duration = Duration::from_secs(30);

/// The center of one gateway; it subscribes, and subscribes again, as long as it is not told to leave.
#[derive(Debug)]
pub(crate) struct Center {
    prefix: String,
    link: Link,
    books: Arc<Books>,
    present: Option<Presence>,
    /// At other brokers, with the same books.
    elsewhere: Vec<Presence>,
}

/// How it reaches its broker.
#[derive(Debug, Clone, Copy)]
struct Link {
    port: u16,
    version: Version,
    login: Login<'static>,
    session: Session,
}

#[derive(Debug)]
struct Books {
    ledger: Mutex<Ledger>,
    changed: Condvar,
}

/// The subscriber's thread.
#[derive(Debug)]
struct Presence {
    leave: Arc<AtomicBool>,
    socket: Arc<Mutex<Option<TcpStream>>>,
    thread: JoinHandle<()>,
}

impl Center {
    /// Subscribes to everything of one gateway, and returns when the broker has granted that.
    pub(crate) fn start(port: u16, version: Version, gateway: &str, login: Login<'static>) -> Self {
        Self::reached_by(Link { port, version, login, session: Session::Clean }, gateway)
    }

    /// The same on an open broker, which keeps what comes while the center is not connected.
    pub(crate) fn start_kept(port: u16, gateway: &str) -> Self {
        Self::reached_by(Link { port, version: Version::V5, login: None, session: Session::Kept }, gateway)
    }

    fn reached_by(link: Link, gateway: &str) -> Self {
        let books = Arc::new(Books { ledger: Mutex::new(Ledger::of(gateway)), changed: Condvar::new() });
        let mut center =
            Self { prefix: format!("gardu/v1/{gateway}/"), link, books, present: None, elsewhere: Vec::new() };
        center.come_back();
        center
    }

    /// Subscribes at another broker as well, and returns when it has granted that.
    pub(crate) fn listen_also_at(&mut self, port: u16) {
        let there = self.subscribe_at(port);
        self.elsewhere.push(there);
    }

    /// Goes away when it has read all that the broker had for it: what was confirmed to the gateway for its sake is in the
    /// books. From then on nobody subscribes.
    pub(crate) fn leave(&mut self) {
        for Presence { leave, socket, thread } in self.present.take().into_iter().chain(self.elsewhere.drain(..)) {
            leave.store(true, Ordering::SeqCst);
            if let Some(socket) = socket.lock().expect("no panic while the socket is held").as_ref() {
                // It may be closed already.
                let _closed = socket.shutdown(Shutdown::Write);
            }
            thread.join().expect("the center does not panic");
        }
    }

    /// Subscribes again, and returns when the broker has granted that.
    pub(crate) fn come_back(&mut self) {
        self.present = Some(self.subscribe_at(self.link.port));
    }

    fn subscribe_at(&self, port: u16) -> Presence {
        let (granted, wait) = std::sync::mpsc::channel();
        let (leave, socket) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let subscriber = Subscriber {
            prefix: self.prefix.clone(),
            link: Link { port, ..self.link },
            books: self.books.clone(),
            leave: leave.clone(),
            socket: Arc::clone(&socket),
        };
        let thread = thread::spawn(move || subscriber.run(&granted));
        wait.recv_timeout(PATIENCE).expect("the broker grants the subscription");
        Presence { leave, socket, thread }
    }

    /// The books as they are.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.books.ledger.lock().expect("no panic while the books are held")
    }

    /// Waits until the books show something.
    pub(crate) fn wait_for<T>(&self, what: &str, seen: impl Fn(&Ledger) -> Option<T>) -> T {
        let outcome = self.wait(PATIENCE, &seen);
        outcome.unwrap_or_else(|| panic!("waited in vain for {what}\n{}", self.ledger().outline()))
    }

    /// Waits for the first such transition of an alarm.
    pub(crate) fn wait_for_transition(&self, kind: &str, alarm: &str) -> Event {
        self.wait_for(&format!("{alarm} {kind}"), |ledger| ledger.first(kind, alarm))
    }

    /// Waits until the retained topic of an alarm shows a state.
    pub(crate) fn wait_for_state(&self, alarm: &str, state: &str) {
        self.wait_for(&format!("{alarm} in {state}"), |ledger| (ledger.state(alarm) == state).then_some(()));
    }

    /// Waits until the last status satisfies the predicate.
    pub(crate) fn wait_for_status(&self, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        self.wait_for(what, |ledger| Some(ledger.status_now()).filter(|status| seen(status)).cloned())
    }

    /// Every number up to `settled` arrived or was declared, and every payload kept the contract.
    pub(crate) fn assert_complete(&self) -> Summary {
        let ledger = self.ledger();
        ledger.complete().unwrap_or_else(|fault| panic!("{fault}\n{}", ledger.outline()))
    }

    /// Sends a command, again after 30 s without an answer, and returns the answer. Without an `id` it gets a new one.
    pub(crate) fn ask(&self, mut command: Value) -> Value {
        static ASKED: AtomicU64 = AtomicU64::new(1);
        if command["id"].is_null() {
            command["id"] = json!(format!("ask-{}", ASKED.fetch_add(1, Ordering::Relaxed)));
        }
        if command["by"].is_null() {
            command["by"] = json!("operator");
        }
        self.ask_in_words(command["id"].as_str().expect("an id is a text"), &command.to_string(), Retain::No)
    }

    /// The same with any payload; `id` is what the answer must carry.
    pub(crate) fn ask_in_words(&self, id: &str, payload: &str, retain: Retain) -> Value {
        let answers = |ledger: &Ledger| ledger.replies.iter().filter(|reply| reply["id"] == id).count();
        let before = answers(&self.ledger());
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.publish("command", payload, retain);
            let answered = |ledger: &Ledger| {
                (answers(ledger) > before).then(|| ledger.replies.iter().rfind(|reply| reply["id"] == id).cloned())
            };
            if let Some(answer) = self.wait(RESEND_AFTER, answered).flatten() {
                return answer;
            }
        }
        panic!("no answer to {payload}\n{}", self.ledger().outline());
    }

    /// Publishes below the gateway's topics.
    pub(crate) fn publish(&self, topic: &str, payload: &str, retain: Retain) {
        let Link { port, version, login, session: _ } = self.link;
        let mut connection = Connection::open_patiently(port, version, "center-asks", login);
        let topic = format!("{}{topic}", self.prefix);
        connection.publish(&topic, payload.as_bytes(), retain).expect("the broker takes a command");
        connection.disconnect();
    }

    fn wait<T>(&self, bound: Duration, seen: impl Fn(&Ledger) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + bound;
        let mut ledger = self.ledger();
        loop {
            if let Some(found) = seen(&ledger) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.books.changed.wait_timeout(ledger, left);
            (ledger, _) = waited.expect("no panic while the books are held");
        }
    }
}

impl Drop for Center {
    /// Shown for a test that fails, and for all with `--no-capture`.
    #[expect(clippy::print_stderr, reason = "how much the schemas were asked is a result")]
    fn drop(&mut self) {
        self.leave();
        eprintln!("contract: {} payloads checked so far", contract::checked());
    }
}

/// What the subscriber's thread owns.
struct Subscriber {
    prefix: String,
    link: Link,
    books: Arc<Books>,
    leave: Arc<AtomicBool>,
    socket: Arc<Mutex<Option<TcpStream>>>,
}

impl Subscriber {
    /// Connects whenever it is not connected.
    fn run(self, granted: &std::sync::mpsc::Sender<()>) {
        while !self.leave.load(Ordering::SeqCst) {
            // Why a connection ended does not matter: the broker may be away on purpose.
            let _ended = self.listen(granted);
            pause();
        }
    }

    fn listen(&self, granted: &std::sync::mpsc::Sender<()>) -> std::io::Result<()> {
        let Link { port, version, login, session } = self.link;
        let mut connection = Connection::open_session(port, version, "center", login, session)?;
        connection.wait_without_limit()?;
        *self.socket.lock().expect("no panic while the socket is held") = Some(connection.socket()?);
        if self.leave.load(Ordering::SeqCst) {
            return Ok(());
        }
        // What is retained comes again; what was emptied meanwhile does not.
        self.ledger().alarms.clear();
        connection.subscribe(&format!("{}#", self.prefix))?;
        loop {
            match connection.next()? {
                Packet::Publish(message) => {
                    let at = Instant::now();
                    if let Some(topic) = message.topic.strip_prefix(&self.prefix) {
                        self.ledger().take(topic, &message.payload, at);
                        self.books.changed.notify_all();
                        if topic.starts_with("event/") || topic.starts_with("telemetry/") {
                            self.give_receipt(&mut connection, &message.payload);
                        }
                    }
                    if let Some(id) = message.id {
                        // Read on if the broker is gone: what it had sent before is still to be read.
                        let _gone = connection.acknowledge(id);
                    }
                }
                Packet::Suback { granted: true } => {
                    // Nobody waits after the first time.
                    let _known = granted.send(());
                }
                Packet::Suback { granted: false } | Packet::Puback { .. } | Packet::Other => {}
            }
        }
    }

    /// Says that a record is in the books.
    fn give_receipt(&self, connection: &mut Connection, record: &[u8]) {
        let Ok(record) = serde_json::from_slice::<Value>(record) else { return };
        let receipt = json!({ "ids": [record["id"]] }).to_string();
        // A broker that is gone takes none; the gateway sends the record again, and gets its receipt then.
        let _gone = connection.send_publish(&format!("{}receipt", self.prefix), receipt.as_bytes(), Retain::No);
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.books.ledger.lock().expect("no panic while the books are held")
    }
}
