//! The twin of `delivery`: what many gateways do instead of keeping an outbox of their own must fail the same proof.
//!
//! A small publisher hands numbered rows to rumqttc while its broker is killed again and again. What the broker's own log
//! shows as received is the truth; a row that it never shows and nobody will send any more is lost. Only the publisher
//! that answers for its rows itself, as the daemon does, loses none: so it is the others' method that fails, not the proof.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};

use crate::support::{broker::Broker, kills, load::Outcome, pause};

/// Publishes in flight, and requests that wait in the client's channel: the window the daemon uses is of this size too.
const WINDOW: u16 = 100;
/// PUBACKs between two kills: several windows, so that each kill meets full ones.
const CONFIRMED_PER_KILL: u64 = 300;
/// A publisher that hears nothing for so long from a broker that runs will hear nothing any more.
const SILENCE: Duration = Duration::from_secs(2);
/// A publisher that gets nothing confirmed for so long has stopped for good; it need not be killed any more.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Who answers for a row from `publish()` to its PUBACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// Nobody: the row is deleted as soon as `publish()` took it.
    Nobody,
    /// rumqttc: the row is deleted at the PUBACK that first in, first out maps to it; what a lost connection interrupts
    /// is the library's to replay.
    Library,
    /// The store: as above, but when a connection is lost everything the library remembers is dropped, and every row that
    /// is still in the store is published again.
    Store,
}

/// A publisher and its store: rows are numbers, made as long as there is room to publish them.
#[derive(Debug)]
struct Peer {
    care: Care,
    /// Not deleted yet.
    rows: BTreeSet<u64>,
    /// The next one to publish.
    cursor: u64,
    /// How many were made.
    made: u64,
    submitted: VecDeque<u64>,
    in_flight: HashMap<u16, u64>,
}

impl Peer {
    fn new(care: Care) -> Self {
        let (rows, submitted, in_flight) = (BTreeSet::new(), VecDeque::new(), HashMap::new());
        Self { care, rows, cursor: 1, made: 0, submitted, in_flight }
    }

    /// Publishes, new rows too if wanted, as many as the client takes.
    fn fill(&mut self, client: &AsyncClient, more: bool) {
        let full = |peer: &Self| peer.submitted.len() + peer.in_flight.len() >= usize::from(WINDOW);
        while (more || self.cursor <= self.made) && !(self.care == Care::Store && full(self)) {
            let row = self.cursor;
            // A confirmed row may lie between two that have to be sent again.
            if row > self.made || self.rows.contains(&row) {
                if client.try_publish(format!("rows/{row}"), QoS::AtLeastOnce, false, vec![0x55; 200]).is_err() {
                    return;
                }
                self.submitted.push_back(row);
                if self.care != Care::Nobody {
                    self.rows.insert(row);
                }
            }
            self.made = self.made.max(row);
            self.cursor += 1;
        }
    }

    /// The client sent the publish that waited longest, or again one it had sent before.
    fn sent(&mut self, id: u16) {
        if !self.in_flight.contains_key(&id)
            && let Some(row) = self.submitted.pop_front()
        {
            self.in_flight.insert(id, row);
        }
    }

    fn confirmed(&mut self, id: u16) {
        if let Some(row) = self.in_flight.remove(&id) {
            self.rows.remove(&row);
        }
    }

    fn lost_the_connection(&mut self, events: &mut EventLoop) {
        if self.care == Care::Store {
            events.clean();
            events.pending.clear();
            events.state.events.clear();
            events.state.collision = None;
            self.submitted.clear();
            self.in_flight.clear();
            self.cursor = self.rows.first().copied().unwrap_or(self.made + 1);
        }
    }

    /// Publishes until `over`, and then until nothing more comes.
    async fn run(mut self, port: u16, confirmed: &AtomicU64, over: &AtomicBool) -> Self {
        let mut options = MqttOptions::new("peer", "127.0.0.1", port);
        // A session that the broker keeps is the most a client can ask for.
        options.set_clean_session(false).set_inflight(WINDOW);
        let (client, mut events) = AsyncClient::new(options, usize::from(WINDOW));
        let mut up = false;
        loop {
            let ending = over.load(Ordering::SeqCst);
            if ending && self.care == Care::Store && self.rows.is_empty() {
                return self;
            }
            if up {
                self.fill(&client, !ending);
            }
            match tokio::time::timeout(SILENCE, events.poll()).await {
                Ok(Ok(Event::Incoming(Packet::ConnAck(_)))) => up = true,
                Ok(Ok(Event::Outgoing(Outgoing::Publish(id)))) => self.sent(id),
                Ok(Ok(Event::Incoming(Packet::PubAck(ack)))) => {
                    self.confirmed(ack.pkid);
                    confirmed.fetch_add(1, Ordering::SeqCst);
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) => {
                    up = false;
                    self.lost_the_connection(&mut events);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(_) if ending && self.care != Care::Store => return self,
                Err(_) => {}
            }
        }
    }
}

/// Kills the broker of a publisher again and again, and counts.
fn broker_killed_under(name: &str, care: Care) -> Outcome {
    let began = Instant::now();
    let mut broker = Broker::start_talkative();
    let (confirmed, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let (mut killed, port) = (0, broker.port);
    let peer = thread::scope(|scope| {
        let peer = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(Peer::new(care).run(port, &confirmed, &over))
        });
        while killed < kills(5) && goes_on(&confirmed, (killed + 1) * CONFIRMED_PER_KILL) {
            broker.kill9();
            broker.restart();
            killed += 1;
        }
        over.store(true, Ordering::SeqCst);
        peer.join().expect("the publisher does not panic")
    });
    let log = broker.log();
    let received: Vec<u64> = log.lines().filter_map(received).collect();
    let distinct: BTreeSet<u64> = received.iter().copied().collect();
    let outcome = Outcome {
        name: name.to_owned(),
        kills: killed,
        events: peer.made,
        settled: peer.made - peer.rows.len() as u64,
        lost: peer.made - distinct.len() as u64,
        declared: 0,
        repeated: (received.len() - distinct.len()) as u64,
        took: began.elapsed(),
    };
    eprintln!("{}\n{outcome}", Outcome::HEADER);
    outcome
}

fn goes_on(confirmed: &AtomicU64, so_many: u64) -> bool {
    let deadline = Instant::now() + STUCK_AFTER;
    while confirmed.load(Ordering::SeqCst) < so_many {
        if Instant::now() > deadline {
            return false;
        }
        pause();
    }
    true
}

/// The row of a line of mosquitto's log that tells of one that came in.
fn received(line: &str) -> Option<u64> {
    let (_, topic) = line.split_once("Received PUBLISH from peer ")?.1.split_once("'rows/")?;
    topic.split_once('\'')?.0.parse().ok()
}

/// One kill is enough: what is in the client's channel at that moment is gone.
#[test]
fn rumqttc_alone_loses_what_it_had_taken_when_the_broker_is_killed() {
    let outcome = broker_killed_under("twin: rumqttc's replay, deleted at PUBACK", Care::Library);
    assert!(outcome.lost > 0 && outcome.kills > 0, "{outcome}");
}

#[test]
fn a_row_deleted_at_publish_is_lost_when_the_broker_is_killed() {
    let outcome = broker_killed_under("twin: deleted at publish()", Care::Nobody);
    assert!(outcome.lost > 0 && outcome.kills > 0, "{outcome}");
}

/// The same library, broker, kills and count: what is asked here can be had.
#[test]
fn a_store_that_answers_for_its_rows_itself_loses_none() {
    let outcome = broker_killed_under("twin: sent again from a store of its own", Care::Store);
    assert_eq!((outcome.lost, outcome.kills, outcome.settled), (0, kills(5), outcome.events), "{outcome}");
}
