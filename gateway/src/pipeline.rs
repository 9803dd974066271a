//! The one task that owns the alarm engine: select (async), then apply (plain fn), then commit.

use tokio::sync::oneshot;

use crate::{
    command::{Answer, Request},
    reading::Reading,
    record::{Epoch, Lane, LastKnown, Refused},
};

/// How many inputs may wait for the pipeline. Full means the store is slower than the field: sources then wait, which
/// slows polling and stops MQTT acknowledgements, and nothing is dropped.
pub const INPUT_QUEUE: usize = 256;

/// What reaches the pipeline.
#[derive(Debug)]
pub enum Input {
    /// Readings of a poll.
    Readings(Vec<Reading>),
    /// Readings of a message whose publisher waits for its acknowledgement.
    Message {
        /// At least one.
        readings: Vec<Reading>,
        /// Sent when what they caused is on stable storage; dropped unsent if it never will be.
        durable: oneshot::Sender<()>,
    },
    /// A request; answered once, after what it changed is on stable storage.
    Command {
        /// What is asked.
        request: Request,
        /// The uplink session it came by.
        session: u64,
        /// Where the answer goes.
        answer: oneshot::Sender<Answer>,
    },
    /// The broker refuses a record for good: it is to be declared lost (`stream.lost`, reason `refused`).
    Refused {
        /// Its lane.
        lane: Lane,
        /// Its epoch.
        epoch: Epoch,
        /// Its number.
        sequence: u64,
        /// What it was.
        refused: Refused,
        /// Sent when the declaration is on stable storage; the uplink then confirms the record to the store.
        durable: oneshot::Sender<()>,
    },
    /// The command center's retained status shows higher numbers of our epoch: the store was rolled back.
    RolledBack {
        /// What it knows.
        known: LastKnown,
        /// Sent when the new epoch is on stable storage.
        durable: oneshot::Sender<()>,
    },
}
