//! A command center that only takes events and says when each came: its books would be the slowest part.

use std::time::{Duration, Instant};

use crate::support::{
    PATIENCE,
    mqtt::{Connection, Packet, Version},
    park::ID,
};

/// Between two attempts to connect: a subscriber that is late would be measured as the gateway's delay.
const ATTEMPTS_EVERY: Duration = Duration::from_millis(1);

/// One event as it came.
pub(crate) struct Event {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) at: Instant,
}

pub(crate) struct Subscriber(Connection);

impl Subscriber {
    /// Subscribes as soon as the broker is there.
    pub(crate) fn as_soon_as_possible(port: u16) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let mut connection = loop {
            match Connection::open(port, Version::V5, "subscriber", None) {
                Ok(connection) => break connection,
                Err(e) => assert!(Instant::now() < deadline, "no broker on port {port}: {e}"),
            }
            std::thread::sleep(ATTEMPTS_EVERY);
        };
        connection.subscribe(&format!("gardu/v1/{ID}/event/#")).expect("the broker is there");
        while !matches!(connection.next().expect("a SUBACK"), Packet::Suback { granted: true }) {}
        Self(connection)
    }

    /// The next event.
    pub(crate) fn next(&mut self) -> Event {
        loop {
            if let Packet::Publish(message) = self.0.next().expect("the events come") {
                let at = Instant::now();
                self.0.acknowledge(message.id.expect("QoS 1")).expect("the broker is there");
                return Event { topic: message.topic, payload: message.payload, at };
            }
        }
    }
}
