//! What a connection does with what comes in: messages, commands, confirmations.

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{COMMANDS_MAX, Connection, Done, Phase, Side, SideWaits, publish};
use crate::{
    clock::Now,
    command::{Answer, Refusal},
    pipeline::Input,
    uplink::{
        commands::{self, Arrival},
        delivery::{Hold, Outcome},
        message::{self, CONTENT_TYPE_JSON},
        readback::SeenStatus,
        session::conflict::Heard,
    },
    wire::{self, Publish, Receipt, Retain, Token, Verdict},
};

impl Connection<'_> {
    pub(super) fn message(&mut self, message: wire::Message) {
        let about = &self.task.about;
        if self.task.center.hold_when_center_offline && message.topic == about.center_status_topic() {
            self.center_said(&message.payload);
        }
        let base = about.topic("");
        let reading = matches!(self.phase, Phase::Subscribing { .. } | Phase::ReadingBack { .. });
        match message.topic.strip_prefix(&base) {
            Some("command") => return self.command(message),
            Some("receipt") => {
                for id in commands::receipt(&message.payload) {
                    if let Some(outcome) = self.delivery.receipt(&id) {
                        self.outcome(outcome);
                    }
                }
            }
            Some("status") => self.status_said(&message, reading),
            Some(topic) if reading => {
                if let Some(alarm) = topic.strip_prefix("alarm/") {
                    self.read_back.saw_alarm(alarm, &message.payload);
                } else if message.topic == self.marker_topic() && message.payload == self.marker() {
                    self.read_back_complete();
                }
            }
            Some(_) | None => {}
        }
        self.wire.acknowledge(message.receipt);
    }

    fn status_said(&mut self, message: &wire::Message, reading: bool) {
        let Some(status) = SeenStatus::parse(&message.payload) else { return };
        let heard = if message.retained { Heard::Kept } else { Heard::Live };
        self.kept.own.conflict.saw(self.broker, &status, heard, self.task.clock.now());
        if reading && message.retained {
            self.read_back.saw_status(status);
        } else {
            // The will of an older session, published late: we are here.
            self.status_due |= status.is_offline();
        }
    }

    fn center_said(&mut self, payload: &[u8]) {
        #[derive(serde::Deserialize)]
        struct Center {
            state: String,
        }
        let away = serde_json::from_slice::<Center>(payload).is_ok_and(|center| center.state == "offline");
        if away != self.kept.center_away_since.is_some() {
            tracing::info!(away, "the command center says whether it is there");
            self.kept.center_away_since = away.then(|| self.task.clock.now());
            self.delivery.set_hold(if away { Hold::AllButCritical } else { Hold::None });
        }
    }

    fn command(&mut self, message: wire::Message) {
        if message.payload.is_empty() {
            return self.wire.acknowledge(message.receipt); // someone cleared a retained command
        }
        let now = self.task.clock.now();
        let (topic, correlation) =
            commands::reply_to(&self.task.about, message.response_topic.as_deref(), message.correlation);
        let arrival = Arrival { retained: message.retained, now, session: self.session };
        let request = commands::parse(&message.payload, arrival).and_then(|request| {
            let busy = self.commands_out >= COMMANDS_MAX;
            if busy { Err(commands::refused(&request.id, request.action.word(), Refusal::Busy)) } else { Ok(request) }
        });
        let receipt = message.receipt;
        let request = match request {
            Ok(request) => request,
            Err(answer) => {
                self.task.metrics.commands.with_label_values(&["unread", "refused"]).inc();
                return self.reply(&answer, topic, correlation, receipt);
            }
        };
        self.commands_out += 1;
        let (pipeline, session) = (self.task.pipeline.clone(), self.session);
        self.pending.push(Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            // A pipeline that is gone drops the sender: no answer, and the center asks again.
            let _ = pipeline.send(Input::Command { request, session, answer }).await;
            Done::Answered { answer: answered.await.ok(), topic, correlation, receipt }
        }));
    }

    pub(super) fn reply(&mut self, answer: &Answer, topic: String, correlation: Option<Bytes>, receipt: Receipt) {
        let message = message::reply(topic, answer);
        let reply = Publish { correlation, ..publish(message, Retain::No, CONTENT_TYPE_JSON) };
        self.sides.push_front((Side::Reply(receipt), reply));
    }

    pub(super) fn confirmed(&mut self, token: Token, verdict: Verdict, now: Now) {
        self.heard = Some(now);
        if let Some(sent) = self.side_tokens.remove(&token) {
            return self.side_confirmed(sent.what, verdict, now);
        }
        let metrics = &self.task.metrics;
        if let Some((lane, since)) = self.sent_at.remove(&token) {
            metrics.uplink_puback_seconds.observe(now.since(since).as_secs_f64());
            self.kept.own.note(lane, verdict);
            if let Some(word) = refusal_word(verdict) {
                metrics.uplink_refused.with_label_values(&[lane.as_str(), word]).inc();
            }
        }
        if let Some(outcome) = self.delivery.verdict(token, verdict, now) {
            if let Outcome::Paused(lane) = outcome {
                tracing::warn!(
                    lane = lane.as_str(),
                    ?verdict,
                    "the broker does not take this lane; trying again slowly"
                );
            }
            self.outcome(outcome);
        }
        metrics.uplink_in_flight.set(i64::try_from(self.delivery.in_flight()).unwrap_or(i64::MAX));
        self.task.tell(&mut self.kept.own);
    }

    fn side_confirmed(&mut self, what: SideWaits, verdict: Verdict, now: Now) {
        if matches!(verdict, Verdict::Accepted | Verdict::NoSubscriber) {
            return;
        }
        if !self.side_refused {
            self.side_refused = true;
            tracing::warn!(?verdict, "the broker refuses a status, a reply or a retained alarm; check its ACL");
        }
        match (what, verdict) {
            (SideWaits::Marker, _) => self.read_back_complete(),
            (SideWaits::Retained(publish), Verdict::NotAuthorised | Verdict::Later(_)) => self.refused(publish, now),
            (SideWaits::Retained(_) | SideWaits::Farewell | SideWaits::Reply, _) => {}
        }
    }

    fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Delivered(stored) => self.delivered.push(*stored),
            Outcome::SetAside(stored) => {
                tracing::error!(
                    id = stored.record.id(),
                    "the broker refuses this record for good; it is declared lost"
                );
                self.aside.push(*stored);
            }
            Outcome::Paused(_) | Outcome::Kept => {}
        }
    }
}

const fn refusal_word(verdict: Verdict) -> Option<&'static str> {
    match verdict {
        Verdict::Accepted => None,
        Verdict::NoSubscriber => Some("no-subscriber"),
        Verdict::NotAuthorised => Some("not-authorised"),
        Verdict::Later(_) => Some("later"),
        Verdict::Invalid(_) => Some("invalid"),
    }
}
