//! Whether another gateway uses our id: pure.
//!
//! Two gateways of one id drive each other out, for ever. What shows it: the broker says "taken over" (MQTT 5 only), and
//! on our own `status` speaks a **voice** that is not ours. Not every strange voice is another gateway that lives: the
//! board that this one replaced, our own run before, a will published late, a broker that lost its last half hour. So
//! whatever a broker already had before we spoke there counts for nothing, each voice counts once, and only what cannot
//! be anything else counts alone.

use std::{collections::VecDeque, time::Duration};

use crate::{
    clock::{BootId, Now},
    record::Epoch,
    uplink::readback::{SeenStatus, Voice},
};

/// Signs of this weight within [`WITHIN`] are a conflict: three times taken over is no technician with a test client.
const ENOUGH: u32 = 3;
/// Two gateways at their slowest meet twice in this time.
const WITHIN: Duration = Duration::from_secs(600);
/// Connected for so long without a sign: the other one is gone.
const QUIET: Duration = Duration::from_secs(600);
/// Voices remembered: of a conflict, the last few; more would only be counted again.
const VOICES_MAX: usize = 32;
/// Epochs of our own in one run: each is a store rolled back.
const EPOCHS_MAX: usize = 8;

/// Whether a message was published just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It was.
    Live,
    /// The broker had kept it.
    Kept,
}

/// What is known of others under our id. Outlives connections.
#[derive(Debug)]
pub(super) struct Conflict {
    boot: BootId,
    /// In which we have spoken in this run.
    epochs: VecDeque<Epoch>,
    /// Whether we have said online in this run, by broker.
    spoken: Vec<bool>,
    /// Strange voices that were counted, or that were there before us.
    known: VecDeque<Voice>,
    /// When, and how much it weighs.
    signs: VecDeque<(u64, u32)>,
    last: Option<Now>,
    stands: Option<bool>,
}

impl Conflict {
    /// Nothing is known; `boot` is ours.
    pub(super) fn new(boot: BootId, brokers: usize) -> Self {
        Self {
            boot,
            epochs: VecDeque::new(),
            spoken: vec![false; brokers],
            known: VecDeque::new(),
            signs: VecDeque::new(),
            last: None,
            stands: None,
        }
    }

    /// Whether another gateway uses our id; none while that cannot be said.
    pub(super) const fn stands(&self) -> Option<bool> {
        self.stands
    }

    /// We begin to speak in this epoch.
    pub(super) fn speak_in(&mut self, epoch: &Epoch) {
        if !self.epochs.contains(epoch) {
            remember(&mut self.epochs, epoch.clone(), EPOCHS_MAX);
        }
    }

    /// We said online at this broker.
    pub(super) fn said_online(&mut self, broker: usize) {
        self.spoken[broker] = true;
    }

    /// The broker says that another connection took our id.
    pub(super) fn taken_over(&mut self, now: Now) {
        self.sign(1, now);
    }

    /// A status under our id at this broker.
    pub(super) fn saw(&mut self, broker: usize, status: &SeenStatus, heard: Heard, now: Now) {
        let voice = status.voice();
        let our_store = self.epochs.contains(&voice.epoch);
        let our_boot = voice.boot.as_ref() == Some(&self.boot);
        if our_store && our_boot {
            return;
        }
        let new = !self.known.contains(&voice);
        if new {
            remember(&mut self.known, voice, VOICES_MAX);
        }
        if !self.spoken[broker] {
            return;
        }
        match (heard, status.is_offline()) {
            // It speaks now, while we are connected.
            (Heard::Live, false) => self.sign(ENOUGH, now),
            // Another store said online here after we did.
            (Heard::Kept, false) if new && !our_store => self.sign(ENOUGH, now),
            // Our store in another boot (a copied card, or a broker that went back in time); wills, which come late.
            (Heard::Kept, false) | (_, true) if new => self.sign(1, now),
            _ => {}
        }
    }

    fn sign(&mut self, weight: u32, now: Now) {
        let since = |at_ms: u64| Duration::from_millis(now.mono_ms.saturating_sub(at_ms));
        self.signs.retain(|(at_ms, _)| since(*at_ms) < WITHIN);
        remember(&mut self.signs, (now.mono_ms, weight), VOICES_MAX);
        self.last = Some(now);
        if self.signs.iter().map(|(_, weight)| weight).sum::<u32>() >= ENOUGH {
            self.stands = Some(true);
        }
    }

    /// Time passes on a connection that was accepted at `up_since`.
    pub(super) fn connected(&mut self, up_since: Now, now: Now) {
        let signed = self.last.map_or(Duration::MAX, |last| now.since(last));
        if signed.min(now.since(up_since)) >= QUIET {
            self.signs.clear();
            self.stands = Some(false);
        }
    }
}

/// Adds one and lets go of the oldest beyond the bound.
fn remember<T>(list: &mut VecDeque<T>, new: T, max: usize) {
    if list.len() >= max {
        list.pop_front();
    }
    list.push_back(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "our0our0our0our0";
    const OTHERS: &str = "other0other0othe";

    fn at(seconds: u64) -> Now {
        Now { mono_ms: seconds * 1_000, wall_ms: 0, trusted: true }
    }

    fn status(state: &str, boot: &str, epoch: &str, session: u64) -> SeenStatus {
        let lane = format!(r#"{{"epoch":"{epoch}","next":1,"settled":0}}"#);
        let text =
            format!(r#"{{"state":"{state}","boot":"{boot}","session":{session},"lanes":{{"a":{lane},"t":{lane}}}}}"#);
        SeenStatus::parse(text.as_bytes()).expect("a status")
    }

    /// Runs a story, one line an event at one broker: seconds, then what happened, then the answer expected.
    ///
    /// `spoke`: we said online. `taken`: taken over. `up`: connected since 0. `live|kept online|offline boot epoch session`.
    fn check(story: &str) {
        let mut conflict = Conflict::new(BootId::new("this-boot"), 1);
        conflict.speak_in(&Epoch::parse(OURS).expect("an epoch"));
        for line in story.trim().lines() {
            let (event, expected) = line.split_once("->").expect("`event -> expected`");
            let words: Vec<&str> = event.split_whitespace().collect();
            let now = at(words[0].parse().expect("seconds"));
            match words[1..] {
                ["spoke"] => conflict.said_online(0),
                ["taken"] => conflict.taken_over(now),
                ["up"] => conflict.connected(at(0), now),
                [heard, state, boot, epoch, session] => {
                    let heard = if heard == "live" { Heard::Live } else { Heard::Kept };
                    let epoch = if epoch == "ours" { OURS } else { OTHERS };
                    let status = status(state, boot, epoch, session.parse().expect("a session"));
                    conflict.saw(0, &status, heard, now);
                }
                ref other => panic!("what is {other:?}?"),
            }
            let said = match conflict.stands() {
                None => "unknown",
                Some(true) => "conflict",
                Some(false) => "alone",
            };
            assert_eq!(said, expected.trim(), "{line}");
        }
    }

    #[test]
    fn another_gateway_that_says_online_after_us_is_a_conflict() {
        check(
            "
            0   kept online other-boot theirs 7    -> unknown
            1   spoke                              -> unknown
            60  kept online other-boot theirs 8    -> conflict
            659 up                                 -> conflict
            660 up                                 -> alone",
        );
    }

    #[test]
    fn what_speaks_while_we_are_connected_is_alive_whatever_its_store() {
        check(
            "
            1   spoke                              -> unknown
            5   live online other-boot ours 8      -> conflict
            605 live online other-boot ours 8      -> conflict
            700 up                                 -> conflict
            1205 up                                -> alone",
        );
    }

    #[test]
    fn two_processes_of_one_boot_are_told_apart_by_their_stores() {
        check(
            "
            1  spoke                               -> unknown
            2  kept online this-boot theirs 2      -> conflict",
        );
    }

    #[test]
    fn ourselves_and_what_was_there_before_us_are_no_conflict() {
        check(
            "
            0    kept online old-board theirs 70   -> unknown
            1    spoke                             -> unknown
            2    live online this-boot ours 3      -> unknown
            3    live offline this-boot ours 2     -> unknown
            30   live offline old-board theirs 70  -> unknown
            90   kept online old-board theirs 70   -> unknown
            91   kept online last-boot ours 2      -> unknown
            599  up                                -> unknown
            691  up                                -> alone",
        );
    }

    #[test]
    fn one_take_over_is_a_test_client_and_three_within_ten_minutes_are_not() {
        check(
            "
            0    taken                             -> unknown
            300  taken                             -> unknown
            601  taken                             -> unknown
            602  taken                             -> conflict",
        );
    }

    #[test]
    fn wills_of_ever_new_sessions_are_another_gateway_that_comes_back() {
        check(
            "
            1    spoke                             -> unknown
            2    kept offline other-boot theirs 8  -> unknown
            3    live offline other-boot theirs 8  -> unknown
            60   kept offline other-boot theirs 9  -> unknown
            120  kept offline other-boot theirs 10 -> conflict",
        );
    }
}
