//! The gateway's own use of a [`Listener`]: what devices publish becomes readings; subscriptions are refused.

use std::{net::SocketAddr, time::Duration};

use super::{End, Event, Listener, Rejected, codec::Grant};
use crate::{
    backoff::{Backoff, Jitter, Pace},
    clock::Clock,
    config::{ListenTls, Login},
    pipeline::Input,
    source::{
        mqtt::intake::{Age, Intake},
        outlet::{Handed, Outlet},
    },
    supervise::TaskResult,
    wire::tls::server::Acceptor,
};

/// One `[[mqtt]]` with `listen`.
#[derive(Debug)]
pub struct ListenTask {
    address: SocketAddr,
    login: Option<Login>,
    tls: Option<ListenTls>,
    intake: Intake,
    outlet: Outlet,
    clock: Clock,
}

impl ListenTask {
    /// Feeds `intake` with what arrives at `address`.
    #[must_use]
    pub const fn new(
        address: SocketAddr,
        login: Option<Login>,
        tls: Option<ListenTls>,
        intake: Intake,
        outlet: Outlet,
        clock: Clock,
    ) -> Self {
        Self { address, login, tls, intake, outlet, clock }
    }

    /// Runs until shutdown.
    pub async fn run(mut self) -> TaskResult {
        let mut backoff = Backoff::default();
        let shutdown = self.outlet.shutdown.clone();
        loop {
            self.outlet.beat.mark();
            match self.listen().await {
                Ok(listener) => {
                    self.serve(listener).await;
                    return Ok(());
                }
                Err(reason) => {
                    let why = format!("cannot listen on {}: {reason}; trying again", self.address);
                    self.intake.complain("listen", &why, self.clock.now());
                }
            }
            // Silence is told by the points' own alarms once the listener is up; there is nothing to hear before.
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(backoff.after(Duration::ZERO, Pace::Near, Jitter::random())) => {}
            }
        }
    }

    /// Fails while it is not our address yet (no link at boot), another program holds it, or certificates are missing.
    async fn listen(&self) -> Result<Listener, String> {
        let tls = self.tls.as_ref().map(|files| Acceptor::new(files, self.clock.clone()));
        let tls = tls.transpose().map_err(|fault| fault.to_string())?;
        let listener = Listener::bind(self.address, self.login.clone()).await.map_err(|e| e.to_string())?;
        Ok(listener.with_tls(tls))
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
            Event::Renewed(Ok(())) => {
                tracing::info!(input = %self.intake.input(), "the listener's certificate files changed and count from now on");
            }
            Event::Renewed(Err(reason)) => {
                let input = self.intake.input();
                tracing::warn!(%input, %reason, "the listener's new certificate files cannot be used; those before stay");
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the test runs the owner as a task of its own")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        config::MqttVersion::{V5, V311},
        source::mqtt::{
            listener::tests::{Device, PING, PONG, frame, publish, soon},
            tests::input,
        },
    };

    #[tokio::test]
    async fn a_device_is_answered_when_its_reading_is_durable_and_at_once_for_garbage() {
        let clock = Clock::system();
        let (intake, outlet, mut inputs) = input(&clock);
        let shutdown = outlet.shutdown.clone();
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), None).await.expect("loopback");
        let address = listener.address().expect("bound");
        let mut task = ListenTask::new(address, None, None, intake, outlet, clock);
        let owner = tokio::spawn(async move { task.serve(listener).await });
        for version in [V311, V5] {
            let mut device = Device::connect(address, version, "cam", None).await;
            device.send(&publish(version, 1, 1, "sensors/gate/door", b"{poison")).await;
            assert_eq!(device.packet().await, [0x40, 2, 0, 1]);
            device.send(&publish(version, 1, 2, "sensors/gate/door", b"true")).await;
            let Some(Input::Message { readings, durable }) = soon(inputs.recv()).await else { panic!() };
            assert_eq!((readings[0].point.as_str(), &readings[0].value), ("gate/door", &Some(true.into())));
            device.send(&PING).await;
            assert_eq!(device.packet().await, PONG, "not durable, not acknowledged");
            let _ = durable.send(());
            assert_eq!(device.packet().await, [0x40, 2, 0, 2]);
            let properties: &[u8] = if version == V5 { &[0] } else { &[] };
            device.send(&frame(0x82, &[&[0, 5], properties, &[0, 1, b'#', 1]])).await;
            let refused = if version == V5 { 0x87 } else { 0x80 };
            assert_eq!(device.packet().await, frame(0x90, &[&[0, 5], properties, &[refused]]));
        }
        shutdown.cancel();
        soon(owner).await.expect("it stops");
    }
}
