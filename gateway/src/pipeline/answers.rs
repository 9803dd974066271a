//! What acting commands were answered: the same id acts once and is answered the same, also across restarts.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{clock::Now, command::Answer, store::StoredAnswer};

/// How long an answer is kept (DESIGN.md §5.4).
const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How many answers are kept (DESIGN.md §5.4).
const KEPT_MAX: usize = 10_000;

/// The answers kept, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    by_id: HashMap<Arc<str>, Answer>,
    order: VecDeque<(Arc<str>, Expiry)>,
}

/// When an answer may be forgotten.
#[derive(Debug, Clone, Copy)]
enum Expiry {
    /// Given in this boot: by the monotonic clock.
    Mono(u64),
    /// Given in an earlier boot by a trusted clock: by a trusted clock.
    Wall(i64),
    /// Given in an earlier boot by an untrusted clock: only the number kept bounds it.
    Never,
}

impl Answers {
    /// Takes up what was stored.
    pub(crate) fn restore(stored: Vec<StoredAnswer>, boot: &crate::clock::BootId) -> Self {
        let mut answers = Self::default();
        for StoredAnswer { at, boot: given_in, answer } in stored {
            let expiry = match (given_in == *boot, at.trusted) {
                (true, _) => Expiry::of(at),
                (false, true) => Expiry::Wall(at.wall_ms.saturating_add_unsigned(KEPT_FOR.as_millis() as u64)),
                (false, false) => Expiry::Never,
            };
            answers.insert(answer, expiry);
        }
        answers
    }

    /// What this command was answered before.
    pub(crate) fn get(&self, id: &str) -> Option<&Answer> {
        self.by_id.get(id)
    }

    /// Keeps an answer, and returns the ids of those that are forgotten for it.
    pub(crate) fn keep(&mut self, answer: Answer, now: Now) -> Vec<Arc<str>> {
        self.insert(answer, Expiry::of(now));
        let mut forgotten = Vec::new();
        while let Some((_, expiry)) = self.order.front() {
            let over = match *expiry {
                Expiry::Mono(ms) => ms <= now.mono_ms,
                Expiry::Wall(ms) => now.trusted && ms <= now.wall_ms,
                Expiry::Never => false,
            };
            if !over && self.order.len() <= KEPT_MAX {
                break;
            }
            let (id, _) = self.order.pop_front().expect("front was there");
            self.by_id.remove(&id);
            forgotten.push(id);
        }
        forgotten
    }

    fn insert(&mut self, answer: Answer, expiry: Expiry) {
        self.order.push_back((answer.id.clone(), expiry));
        self.by_id.insert(answer.id.clone(), answer);
    }
}

impl Expiry {
    const fn of(now: Now) -> Self {
        Self::Mono(now.mono_ms + KEPT_FOR.as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::BootId, command::Outcome};

    const HOUR_MS: u64 = 3_600_000;

    fn at(hours: u64) -> Now {
        Now { mono_ms: hours * HOUR_MS, wall_ms: i64::try_from(hours * HOUR_MS).expect("small"), trusted: true }
    }

    fn answer(id: &str) -> Answer {
        Answer { id: id.into(), command: "test".into(), result: Outcome::Ok, code: None, text: None, data: None }
    }

    #[test]
    fn an_answer_is_kept_a_day_and_no_more_than_ten_thousand() {
        let mut answers = Answers::default();
        assert!(answers.keep(answer("first"), at(0)).is_empty());
        assert!(answers.keep(answer("second"), at(23)).is_empty());
        assert_eq!(answers.get("first"), Some(&answer("first")));
        assert_eq!(answers.keep(answer("third"), at(24)), ["first".into()]);
        assert_eq!(answers.get("first"), None);
        for i in 0..KEPT_MAX {
            answers.keep(answer(&i.to_string()), at(25));
        }
        assert_eq!((answers.get("second"), answers.get("third")), (None, None));
        assert_eq!(answers.by_id.len(), KEPT_MAX);
    }

    #[test]
    fn answers_of_an_earlier_boot_age_only_by_a_trusted_clock() {
        let stored = |id, trusted| StoredAnswer {
            at: Now { trusted, ..at(0) },
            boot: BootId::new("earlier"),
            answer: answer(id),
        };
        let mut answers = Answers::restore(vec![stored("trusted", true), stored("not", false)], &BootId::new("now"));
        let untrusted = Now { mono_ms: 0, wall_ms: i64::MAX, trusted: false };
        assert!(answers.keep(answer("a"), untrusted).is_empty());
        assert_eq!(answers.keep(answer("b"), at(24)), ["trusted".into()]);
    }
}
