//! The gateway's own use of a [`Listener`]: what devices publish becomes readings; subscriptions are refused.

use std::{net::SocketAddr, time::Duration};

use super::{End, Event, Listener, Rejected, codec::Grant};
use crate::{
    backoff::{Backoff, Jitter, Pace},
    clock::Clock,
    config::Login,
    pipeline::Input,
    source::mqtt::{
        Handed, Outlet,
        intake::{Age, Intake},
    },
    supervise::TaskResult,
};

/// One `[[mqtt]]` with `listen`.
#[derive(Debug)]
pub struct ListenTask {
    address: SocketAddr,
    login: Option<Login>,
    intake: Intake,
    outlet: Outlet,
    clock: Clock,
}

impl ListenTask {
    /// Feeds `intake` with what arrives at `address`.
    #[must_use]
    pub const fn new(address: SocketAddr, login: Option<Login>, intake: Intake, outlet: Outlet, clock: Clock) -> Self {
        Self { address, login, intake, outlet, clock }
    }

    /// Runs until shutdown.
    pub async fn run(mut self) -> TaskResult {
        let mut backoff = Backoff::default();
        let shutdown = self.outlet.shutdown.clone();
        loop {
            self.outlet.beat.mark();
            match Listener::bind(self.address, self.login.clone()).await {
                Ok(listener) => {
                    self.serve(listener).await;
                    return Ok(());
                }
                Err(reason) => {
                    let why = format!("cannot listen on {}: {reason}; trying again", self.address);
                    self.intake.complain("listen", &why, self.clock.now());
                }
            }
            // An address that is not ours yet (no link at boot), or another program's, may become ours.
            let pause = backoff.after(Duration::ZERO, Pace::Normal, Jitter::random());
            // Silence is told by the points' own alarms once the listener is up; there is nothing to hear before.
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Takes what arrives until shutdown.
    async fn serve(&mut self, mut listener: Listener) {
        tracing::info!(input = %self.intake.input(), address = %self.address, "devices may publish");
        let shutdown = self.outlet.shutdown.clone();
        loop {
            self.outlet.beat.mark();
            let tick = tokio::time::sleep(self.intake.tick_in(self.clock.now()));
            let handed = tokio::select! {
                biased;
                () = shutdown.cancelled() => Handed::Stopping,
                event = listener.next() => self.take(event).await,
                () = tick => Handed::Over,
            };
            if handed == Handed::Stopping || self.tick().await == Handed::Stopping {
                return;
            }
        }
    }

    async fn take(&mut self, event: Event) -> Handed {
        match event {
            Event::Published { message, done, .. } => {
                let readings = self.intake.take(&message.topic, &message.payload, Age::Live, self.clock.now());
                if !readings.is_empty() {
                    return self.outlet.send(Input::Message { readings, durable: done }).await;
                }
                let _it_has_gone = done.send(());
            }
            Event::Subscribe { client, filters, reply } => {
                let why = format!("client {client:?} wants to subscribe; this listener only takes messages");
                self.intake.complain("subscribe", &why, self.clock.now());
                let _it_has_gone = reply.send(vec![Grant::Refused; filters.len()]);
            }
            Event::Unsubscribe { .. }
            | Event::Connected(_)
            | Event::Gone { why: End::Left | End::LeftWithWill, .. } => {}
            Event::Gone { client, why, .. } => {
                let kind = if matches!(why, End::Malformed(_)) { "malformed" } else { "connection" };
                self.intake.complain(kind, &format!("client {client:?} is gone: {why}"), self.clock.now());
            }
            Event::Rejected { peer, why } => {
                let kind = if matches!(why, Rejected::Refused(_)) { "refused" } else { "rejected" };
                self.intake.complain(kind, &format!("{peer} was not let in: {why}"), self.clock.now());
            }
            Event::Panicked => {
                self.intake.complain("bug", &"a connection ended by a bug; the others go on", self.clock.now());
            }
        }
        Handed::Over
    }

    async fn tick(&mut self) -> Handed {
        let quiet = self.intake.tick(self.clock.now());
        if quiet.is_empty() { Handed::Over } else { self.outlet.send(Input::Readings(quiet)).await }
    }
}
