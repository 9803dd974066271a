//! What every source is handed: the way into the pipeline, its pulse, and the time to stop.

use tokio::sync::mpsc;

use crate::{
    pipeline::Input,
    supervise::{BEAT_EVERY, Beat, Shutdown, TaskResult},
};

/// The way into the pipeline.
#[derive(Debug, Clone)]
pub struct Outlet {
    /// The pipeline's queue. It is bounded: while it is full the source waits, and nothing is dropped.
    pub pipeline: mpsc::Sender<Input>,
    /// The stage's pulse, marked while the pipeline keeps us waiting.
    pub beat: Beat,
    /// Time to stop.
    pub shutdown: Shutdown,
}

/// Whether an input reached the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handed {
    /// It did.
    Over,
    /// The daemon stops; it did not, and its publisher will send it again.
    Stopping,
}

impl Outlet {
    /// Waits for room in the pipeline and hands `input` over.
    pub async fn send(&self, input: Input) -> Handed {
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Handed::Stopping,
                permit = self.pipeline.reserve() => {
                    let Ok(permit) = permit else { return Handed::Stopping };
                    permit.send(input);
                    return Handed::Over;
                }
                () = tokio::time::sleep(BEAT_EVERY) => self.beat.mark(),
            }
        }
    }

    /// Works until shutdown. Work that ends by itself found the pipeline ended, and that stops the daemon.
    pub async fn work(&self, work: impl Future<Output = ()>) -> TaskResult {
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = work => self.shutdown.cancelled().await,
        }
        Ok(())
    }
}
