//! The window against a store and a broker that are a few lines each.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    clock::BootId,
    reading::Segment,
    record::{Batch, CommandResult, Epoch, Record},
};

const fn at(mono_ms: u64) -> Now {
    Now { mono_ms, wall_ms: 0, trusted: false }
}

fn stored(lane: Lane, position: u64) -> Stored {
    let body = match lane {
        Lane::Alarm => {
            Body::Command(CommandResult { id: "c".into(), command: "test".into(), alarm: None, by: "x".into() })
        }
        Lane::Telemetry => Body::Telemetry(Batch {
            device: Segment::parse("panel").expect("a segment"),
            readings: Vec::new(),
            replaces: None,
        }),
    };
    let epoch = Epoch::parse("0123456789abcdef").expect("an epoch");
    let record = Record { lane, epoch, sequence: position, boot: BootId::new("b"), recorded: at(0), body };
    Stored { position, size: 1_000, record }
}

/// Two lanes that know which of their records are confirmed.
#[derive(Default)]
struct Lanes {
    next: HashMap<Lane, u64>,
    waiting: BTreeSet<(Lane, u64)>,
}

impl Lanes {
    fn with(alarms: u64, telemetry: u64) -> Self {
        let mut lanes = Self::default();
        (0..alarms).for_each(|_| lanes.add(Lane::Alarm));
        (0..telemetry).for_each(|_| lanes.add(Lane::Telemetry));
        lanes
    }

    fn add(&mut self, lane: Lane) {
        let next = self.next.entry(lane).or_insert(0);
        self.waiting.insert((lane, *next));
        *next += 1;
    }

    fn next(&self, lane: Lane) -> u64 {
        self.next.get(&lane).copied().unwrap_or(0)
    }

    fn feed(&self, delivery: &mut Delivery) {
        for queue in Queue::ALL {
            let next = self.next(queue.lane());
            if let Some(want) = delivery.wants(queue, next) {
                let lane = queue.lane();
                let waiting = self.waiting.range((lane, want.from)..).filter(|(of, _)| *of == lane);
                let records = waiting.take(want.records_max).map(|(lane, position)| stored(*lane, *position));
                delivery.offer(want, records.collect(), next);
            }
        }
    }
}

fn up(confirmation: DeliveredWhen, window: usize, lanes: &Lanes) -> Delivery {
    let mut delivery = Delivery::new(confirmation);
    delivery.up(window, lanes.next(Lane::Telemetry));
    lanes.feed(&mut delivery);
    delivery
}

/// Hands out all that may go, alarms first; tokens from `token` on. Returns lane and position of each.
fn send_all(delivery: &mut Delivery, token: &mut Token, now: Now) -> Vec<(Token, Lane, u64)> {
    let mut sent = Vec::new();
    loop {
        *token += 1;
        let handed = match delivery.next_alarm(*token, now) {
            Some(handed) => Some((handed.stored.record.lane, handed.stored.position)),
            None => delivery.next_telemetry(*token, now).map(|h| (h.stored.record.lane, h.stored.position)),
        };
        let Some((lane, position)) = handed else { return sent };
        sent.push((*token, lane, position));
    }
}

#[test]
fn alarms_go_first_and_a_quarter_of_the_window_is_theirs() {
    let mut lanes = Lanes::with(2, 20);
    let mut delivery = up(DeliveredWhen::Puback, 8, &lanes);
    delivery.goodput = u64::MAX;
    let mut token = 0;
    let sent = send_all(&mut delivery, &mut token, at(0));
    let lanes_sent: Vec<Lane> = sent.iter().map(|(_, lane, _)| *lane).collect();
    assert_eq!(lanes_sent[..2], [Lane::Alarm; 2]);
    assert_eq!(lanes_sent[2..], [Lane::Telemetry; 6]);
    for (token, lane, _) in &sent {
        if *lane == Lane::Alarm {
            assert!(matches!(delivery.verdict(*token, Verdict::Accepted, at(1)), Some(Outcome::Delivered(_))));
        }
    }
    assert!(send_all(&mut delivery, &mut token, at(1)).is_empty(), "two slots stay free for alarms");
    lanes.add(Lane::Alarm);
    lanes.feed(&mut delivery);
    assert_eq!(send_all(&mut delivery, &mut token, at(1)).len(), 1);
}

#[test]
fn telemetry_in_flight_is_at_most_what_the_link_carries_in_a_second() {
    let lanes = Lanes::with(0, 200);
    let mut delivery = up(DeliveredWhen::Puback, 64, &lanes);
    let mut token = 0;
    let first = send_all(&mut delivery, &mut token, at(0));
    assert_eq!(first.len(), 4, "four records of 1,000 bytes at the assumed 4 KiB/s");
    // 4,000 bytes take ten seconds: 400 bytes a second. One record is always allowed.
    for (token, ..) in first {
        delivery.verdict(token, Verdict::Accepted, at(10_000));
    }
    for turn in 2..8 {
        let sent = send_all(&mut delivery, &mut token, at(turn * 10_000));
        assert!(!sent.is_empty() && sent.len() <= 2, "{}", sent.len());
        for (token, ..) in sent {
            delivery.verdict(token, Verdict::Accepted, at(turn * 10_000 + 2_500));
        }
    }
    assert_eq!(send_all(&mut delivery, &mut token, at(90_000)).len(), 1);
}

#[test]
fn live_telemetry_goes_before_the_backlog_which_still_moves() {
    let mut lanes = Lanes::with(0, 50);
    let mut delivery = up(DeliveredWhen::Puback, 32, &lanes);
    delivery.goodput = u64::MAX;
    (0..50).for_each(|_| lanes.add(Lane::Telemetry));
    lanes.feed(&mut delivery);
    let sent = send_all(&mut delivery, &mut 0, at(0));
    let backlog = sent.iter().filter(|(_, _, position)| *position < 50).count();
    assert_eq!((sent.len(), backlog), (24, 6));
    assert_eq!(sent[0].2, 50, "live first");
}

#[test]
fn a_refused_lane_pauses_is_probed_by_its_oldest_record_and_the_other_lane_goes_on() {
    let mut lanes = Lanes::with(3, 1);
    let mut delivery = up(DeliveredWhen::Subscriber, 8, &lanes);
    let mut token = 0;
    let sent = send_all(&mut delivery, &mut token, at(0));
    assert_eq!(sent.len(), 4);
    for (i, (token, lane, _)) in sent.iter().enumerate() {
        let verdict = if *lane == Lane::Alarm { Verdict::NoSubscriber } else { Verdict::Accepted };
        let outcome = delivery.verdict(*token, verdict, at(1)).expect("a record's token");
        match (lane, i) {
            (Lane::Alarm, 0) => assert_eq!(outcome, Outcome::Paused(Lane::Alarm)),
            (Lane::Alarm, _) => assert_eq!(outcome, Outcome::Kept),
            (Lane::Telemetry, _) => assert!(matches!(outcome, Outcome::Delivered(_))),
        }
    }
    lanes.add(Lane::Telemetry);
    lanes.feed(&mut delivery);
    let telemetry = send_all(&mut delivery, &mut token, at(2));
    assert_eq!(telemetry.iter().map(|(_, lane, _)| *lane).collect::<Vec<_>>(), [Lane::Telemetry]);
    let mut now_ms = 1;
    for pause_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
        assert!(send_all(&mut delivery, &mut token, at(now_ms + pause_ms - 1)).is_empty(), "{pause_ms}");
        now_ms += pause_ms;
        let probe = send_all(&mut delivery, &mut token, at(now_ms));
        assert_eq!(probe.iter().map(|(_, _, position)| *position).collect::<Vec<_>>(), [0]);
        assert_eq!(delivery.verdict(probe[0].0, Verdict::NotAuthorised, at(now_ms)), Some(Outcome::Kept));
    }
    let probe = send_all(&mut delivery, &mut token, at(now_ms + 60_000));
    assert!(matches!(delivery.verdict(probe[0].0, Verdict::Accepted, at(now_ms)), Some(Outcome::Delivered(_))));
    assert_eq!(send_all(&mut delivery, &mut token, at(now_ms + 60_000)).len(), 2, "the lane flows again");
}

#[test]
fn nobody_listening_counts_as_delivered_where_a_puback_is_enough() {
    let mut delivery = up(DeliveredWhen::Puback, 8, &Lanes::with(1, 0));
    assert!(delivery.next_alarm(1, at(0)).is_some());
    assert!(matches!(delivery.verdict(1, Verdict::NoSubscriber, at(0)), Some(Outcome::Delivered(_))));
}

#[test]
fn a_slow_link_has_no_more_alarms_in_flight_than_it_carries_in_time() {
    let lanes = Lanes::with(200, 0);
    let mut delivery = up(DeliveredWhen::Puback, 128, &lanes);
    let mut token = 0;
    let first = send_all(&mut delivery, &mut token, at(0));
    assert_eq!(first.len(), 64, "64 records of 1,000 bytes are more than 10 s of the assumed 4 KiB/s");
    assert!(matches!(delivery.verdict(first[0].0, Verdict::Accepted, at(100)), Some(Outcome::Delivered(_))));
    lanes.feed(&mut delivery);
    // 1,000 bytes took 0.1 s: 10,000 bytes a second, of which 100,000 may be in flight, and one more.
    send_all(&mut delivery, &mut token, at(100));
    assert_eq!(delivery.in_flight(), 101);
}

#[test]
fn an_answer_of_the_store_from_before_the_queue_began_again_is_dropped() {
    let lanes = Lanes::with(20, 0);
    let mut delivery = up(DeliveredWhen::Puback, 4, &lanes);
    let next = lanes.next(Lane::Alarm);
    let late = delivery.wants(Queue::Alarms, next).expect("there is more");
    assert_eq!(late.from, 4);
    delivery.set_hold(Hold::AllButCritical);
    delivery.set_hold(Hold::None);
    delivery.offer(late, vec![stored(Lane::Alarm, 4)], next);
    lanes.feed(&mut delivery);
    let sent: Vec<u64> = send_all(&mut delivery, &mut 0, at(0)).into_iter().map(|(.., position)| position).collect();
    assert_eq!(sent, [0, 1, 2, 3], "from the beginning, in order");
}

#[test]
fn what_is_invalid_three_times_is_set_aside_and_the_rest_goes_on() {
    let lanes = Lanes::with(2, 0);
    let mut delivery = up(DeliveredWhen::Puback, 8, &lanes);
    for token in 1..=3 {
        let handed = delivery.next_alarm(token, at(0)).expect("the oldest");
        assert_eq!(handed.stored.position, 0);
        let outcome = delivery.verdict(token, Verdict::Invalid(0x95), at(0));
        if token < 3 {
            assert_eq!(outcome, Some(Outcome::Kept));
        } else {
            assert!(matches!(outcome, Some(Outcome::SetAside(stored)) if stored.position == 0));
        }
    }
    assert_eq!(delivery.next_alarm(4, at(0)).expect("the next").stored.position, 1);
    delivery.up(8, 0);
    lanes.feed(&mut delivery); // the store still has it until its loss is declared
    assert_eq!(delivery.next_alarm(5, at(0)).expect("the next").stored.position, 1);
}

#[test]
fn where_a_receipt_counts_nothing_less_confirms() {
    let lanes = Lanes::with(1, 0);
    let mut delivery = up(DeliveredWhen::Receipt, 8, &lanes);
    assert!(delivery.next_alarm(1, at(0)).is_some());
    assert_eq!(delivery.verdict(1, Verdict::Accepted, at(0)), Some(Outcome::Kept));
    assert_eq!(delivery.in_flight(), 1);
    assert!(delivery.next_alarm(2, at(60_000)).is_none());
    assert_eq!(delivery.oldest_unanswered(), None, "the publish itself was confirmed");
    delivery.resend_unreceipted(at(60_001));
    assert!(delivery.next_alarm(2, at(60_001)).is_some(), "sent again after the deadline");
    assert_eq!(delivery.receipt("0123456789abcdef-a-9"), None);
    assert!(matches!(delivery.receipt("0123456789abcdef-a-0"), Some(Outcome::Delivered(_))));
    assert_eq!(delivery.verdict(2, Verdict::Accepted, at(60_002)), Some(Outcome::Kept));
    assert_eq!(delivery.in_flight(), 0);
}

#[test]
fn a_path_without_verdicts_for_thirty_seconds_is_dead_and_a_slow_one_is_not() {
    let mut delivery = up(DeliveredWhen::Puback, 8, &Lanes::with(2, 0));
    assert_eq!(delivery.oldest_unanswered(), None);
    assert!(delivery.next_alarm(1, at(5)).is_some() && delivery.next_alarm(2, at(7)).is_some());
    assert_eq!(delivery.oldest_unanswered(), Some(at(5)));
    let _accepted = delivery.verdict(1, Verdict::Accepted, at(20_000));
    assert_eq!(delivery.oldest_unanswered(), Some(at(7)));
    for (oldest_ms, heard_ms, now_ms, dead) in [
        (5, None, 30_005, false),
        (5, None, 30_006, true),
        (7, Some(20_000), 50_000, false),
        (7, Some(20_000), 50_001, true),
        // What was heard before it went out says nothing of it.
        (20_000, Some(5), 50_000, false),
        (20_000, Some(5), 50_001, true),
        // Others are answered, this one is forgotten.
        (0, Some(299_999), 300_000, false),
        (0, Some(300_000), 300_001, true),
    ] {
        assert_eq!(is_overdue(at(oldest_ms), heard_ms.map(at), at(now_ms)), dead, "{oldest_ms} {heard_ms:?} {now_ms}");
    }
}

#[test]
fn a_lost_connection_sends_again_and_remembers_the_first_time() {
    let lanes = Lanes::with(1, 0);
    let mut delivery = up(DeliveredWhen::Puback, 8, &lanes);
    assert!(delivery.next_alarm(1, at(5)).is_some());
    delivery.down();
    assert_eq!(delivery.verdict(1, Verdict::Accepted, at(6)), None, "a verdict of the old connection");
    delivery.up(8, 0);
    lanes.feed(&mut delivery);
    assert_eq!(delivery.next_alarm(2, at(90_000)).expect("again").first_sent, at(5));
}

#[test]
fn while_the_center_is_away_only_critical_alarms_go_and_the_rest_after() {
    let lanes = Lanes::with(3, 3);
    let mut delivery = up(DeliveredWhen::Puback, 8, &lanes);
    delivery.set_hold(Hold::AllButCritical);
    lanes.feed(&mut delivery);
    assert!(send_all(&mut delivery, &mut 0, at(0)).is_empty());
    delivery.set_hold(Hold::None);
    lanes.feed(&mut delivery);
    assert_eq!(send_all(&mut delivery, &mut 0, at(0)).len(), 6);
}

#[derive(Debug, Clone)]
enum Step {
    Record(bool),
    Send,
    Verdict(usize, u8),
    Receipt(usize),
    Lose(usize),
    Wait(u64),
    Hold(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(Step::Record),
        4 => Just(Step::Send),
        8 => (any::<usize>(), 0_u8..8).prop_map(|(which, kind)| Step::Verdict(which, kind)),
        2 => any::<usize>().prop_map(Step::Receipt),
        1 => (1_usize..10).prop_map(Step::Lose),
        2 => (0_u64..5_000).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Hold),
    ]
}

/// A run of the window against the two lanes, with the promises checked at every step.
struct Run {
    lanes: Lanes,
    delivery: Delivery,
    window: usize,
    out: Vec<(Token, Lane, u64)>,
    /// Published since the last connection and accepted by the broker.
    accepted: BTreeSet<(Lane, u64)>,
    token: Token,
    now_ms: u64,
}

impl Run {
    fn settle(&mut self, outcome: Outcome, lane: Lane, position: u64, may_deliver: bool) {
        match outcome {
            Outcome::Delivered(stored) => {
                assert!(may_deliver, "{position} was delivered without a confirmation");
                assert_eq!((stored.record.lane, stored.position), (lane, position));
                assert!(self.lanes.waiting.remove(&(lane, position)), "delivered twice");
            }
            Outcome::SetAside(_) => panic!("nothing here is invalid"),
            Outcome::Paused(_) | Outcome::Kept => {}
        }
    }

    fn send(&mut self) {
        loop {
            self.lanes.feed(&mut self.delivery);
            let sent = send_all(&mut self.delivery, &mut self.token, at(self.now_ms));
            if sent.is_empty() {
                break;
            }
            self.out.extend(sent);
        }
        assert!(self.delivery.in_flight() <= self.window);
        let reserved = if self.window == 1 { 0 } else { (self.window / 4).max(1) };
        assert!(self.delivery.lane_in_flight(Lane::Telemetry) <= self.window - reserved);
        let served = self.delivery.hold == Hold::None && !self.delivery.pauses.contains_key(&Lane::Alarm);
        let alarms_out = self.delivery.lane_in_flight(Lane::Alarm);
        let alarms = self.lanes.waiting.iter().filter(|(lane, _)| *lane == Lane::Alarm).count();
        if served && self.delivery.in_flight() < self.window {
            assert_eq!(alarms_out, alarms, "an alarm waits beside a free slot");
        }
    }

    fn verdict(&mut self, index: usize, verdict: Verdict) {
        let (token, lane, position) = self.out.swap_remove(index);
        let accepted = verdict == Verdict::Accepted;
        if accepted {
            self.accepted.insert((lane, position));
        }
        let confirmed = accepted && self.delivery.confirmation != DeliveredWhen::Receipt;
        let outcome = self.delivery.verdict(token, verdict, at(self.now_ms)).expect("a token of this connection");
        self.settle(outcome, lane, position, confirmed);
    }

    fn receipt(&mut self, lane: Lane, position: u64) {
        if let Some(outcome) = self.delivery.receipt(&stored(lane, position).record.id()) {
            self.settle(outcome, lane, position, true);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Record(alarm) => self.lanes.add(if alarm { Lane::Alarm } else { Lane::Telemetry }),
            Step::Send => self.send(),
            Step::Verdict(which, kind) if !self.out.is_empty() => {
                let verdict = match kind {
                    0 => Verdict::NoSubscriber,
                    1 => Verdict::NotAuthorised,
                    2 => Verdict::Later(0x97),
                    _ => Verdict::Accepted,
                };
                self.verdict(which % self.out.len(), verdict);
            }
            Step::Receipt(which) if !self.accepted.is_empty() => {
                let (lane, position) = *self.accepted.iter().nth(which % self.accepted.len()).expect("below the count");
                self.receipt(lane, position);
            }
            Step::Verdict(..) | Step::Receipt(_) => {}
            Step::Lose(window) => {
                self.out.clear();
                self.accepted.clear();
                self.window = window;
                self.delivery.up(window, self.lanes.next(Lane::Telemetry));
            }
            Step::Wait(ms) => {
                self.now_ms += ms;
                self.delivery.resend_unreceipted(at(self.now_ms));
            }
            Step::Hold(on) => self.delivery.set_hold(if on { Hold::AllButCritical } else { Hold::None }),
        }
    }
}

proptest! {
    #[test]
    fn no_record_is_lost_none_is_confirmed_unasked_and_alarms_never_starve(
        steps in proptest::collection::vec(step(), 0..200),
        confirmation in prop_oneof![
            Just(DeliveredWhen::Subscriber), Just(DeliveredWhen::Receipt),
        ],
    ) {
        let lanes = Lanes::default();
        let delivery = up(confirmation, 5, &lanes);
        let (out, accepted) = (Vec::new(), BTreeSet::new());
        let mut run = Run { lanes, delivery, window: 5, out, accepted, token: 0, now_ms: 0 };
        for one in steps {
            run.step(&one);
        }
        // From here on the broker accepts everything and receipts come: all that waits must arrive.
        run.delivery.set_hold(Hold::None);
        for _ in 0..1_000 {
            run.now_ms += 61_000;
            run.delivery.resend_unreceipted(at(run.now_ms));
            run.send();
            while !run.out.is_empty() {
                run.verdict(0, Verdict::Accepted);
            }
            for (lane, position) in std::mem::take(&mut run.accepted) {
                run.receipt(lane, position);
            }
        }
        prop_assert!(run.lanes.waiting.is_empty(), "never delivered: {:?}", run.lanes.waiting);
        prop_assert_eq!(run.delivery.in_flight(), 0);
    }
}
