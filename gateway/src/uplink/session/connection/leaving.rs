//! How a connection is left in good order: for a stop, for an earlier broker that is back, for renewed certificates.

use super::{Connection, Done, Parting, Phase, Side, SideWaits, publish, status};
use crate::{
    backoff::Jitter,
    clock::Now,
    uplink::message::{self, CONTENT_TYPE_JSON, Presence},
    wire::{self, Down, Retain},
};

impl Connection<'_> {
    /// From now on nothing new is sent; a stop comes before every other reason.
    pub(super) fn part(&mut self, parting: Parting) {
        let before = self.parting.replace(parting);
        if before.is_none() {
            self.phase = Phase::Draining { since: self.task.clock.now() };
        } else if matches!(self.phase, Phase::Leaving { .. }) {
            self.leave(); // the last words were others
        }
    }

    pub(super) fn leave(&mut self) {
        let parting = self.parting.expect("only `part` begins to drain");
        self.phase = Phase::Leaving { since: self.task.clock.now() };
        self.states.clear();
        let (presence, reason) = (Presence::Offline, Some(parting.reason()));
        let status = status(self.task, self.session, self.alarms_standing, presence, reason);
        let message = message::status(&self.task.about, &status);
        self.sides.push_back((Side::Farewell, publish(message, Retain::Yes, CONTENT_TYPE_JSON)));
    }

    /// Whether the broker has confirmed the last words.
    pub(super) fn farewell_said(&self) -> bool {
        let waits = self.side_tokens.values().any(|sent| matches!(sent.what, SideWaits::Farewell));
        !waits && self.sides.is_empty()
    }

    /// The first look back is due some time after the connection serves.
    pub(super) fn plan_look_back(&mut self) {
        if self.broker > 0 {
            let after = self.kept.route.look_after(Jitter::random());
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            self.look_back_at_ms = Some(self.task.clock.now().mono_ms.saturating_add(after_ms));
        }
    }

    /// Sees from time to time what may be better than this connection, and what the broker may take by now.
    pub(super) fn look_around(&mut self, now: Now) {
        if self.refused_again_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms) {
            self.refused_again_at_ms = None;
            let again = std::mem::take(&mut self.refused).into_values();
            self.sides.extend(again.map(|publish| (Side::Retained, publish)));
        }
        if self.look_back_at_ms.is_some_and(|at_ms| at_ms <= now.mono_ms) {
            self.look_back_at_ms = None;
            let earlier = self.kept.route.earlier(self.broker, now).into_iter();
            let earlier: Vec<_> = earlier.map(|broker| (broker, self.task.settings(broker))).collect();
            self.pending.push(Box::pin(async move {
                for (broker, settings) in earlier {
                    if wire::probe(&settings).await.is_ok() {
                        return Done::LookedBack(Some(broker));
                    }
                }
                Done::LookedBack(None)
            }));
        }
        if self.certificates.changed(now) {
            let settings = self.task.settings(self.broker);
            self.pending.push(Box::pin(async move { Done::LookedAtCertificates(wire::probe(&settings).await) }));
        }
    }

    pub(super) fn looked_back(&mut self, found: Option<usize>) {
        match found {
            Some(to) if self.phase == Phase::Delivering => self.part(Parting::Move { to }),
            _ => self.plan_look_back(),
        }
    }

    pub(super) fn looked_at_certificates(&mut self, outcome: Result<(), Down>) {
        match outcome {
            Ok(()) if self.phase == Phase::Delivering => self.part(Parting::Renew),
            Ok(()) => {}
            Err(reason) => tracing::error!(
                broker = %self.url, %reason,
                "certificate files changed, but the broker cannot be reached with them; this connection stays"
            ),
        }
    }
}
