//! What the answers to a poll say about a device and its points, request by request. Pure.
//!
//! What of it is passed on, and when the device is silent, is [`Polled`]'s.

use std::collections::BTreeSet;

use super::{
    decode::{Answer, decode},
    plan::{Request, plan, without_holes},
    timing::Medium,
};
use crate::{
    clock::Now,
    config::{Device, Table},
    reading::{Reading, Reason},
    source::polled::{Change, Polled},
};

/// Modbus exceptions 2 and 3: the device has no such address, or takes no request of this length (Modbus Application
/// Protocol 1.1b3 §7).
const TOO_MUCH: [u8; 2] = [2, 3];
/// A converter cannot reach the unit's line (ibidem).
const GATEWAY_PATH_UNAVAILABLE: u8 = 0x0A;
/// A converter had no answer from the unit (ibidem).
const GATEWAY_TARGET_SILENT: u8 = 0x0B;

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The device refused it with this exception.
    Refused(u8),
    /// Nothing came in time.
    Timeout,
    /// A converter says that the device does not answer, or that it cannot ask it (exceptions 0x0A, 0x0B).
    Unreachable,
    /// An answer to something else, or of another length, or none of Modbus.
    Malformed,
    /// The connection broke.
    Broken,
    /// There is no connection.
    NoLink,
    /// The line is never silent, so nobody can be asked.
    Babble,
}

impl Trouble {
    /// What an exception says.
    #[must_use]
    pub const fn refusal(code: u8) -> Self {
        match code {
            GATEWAY_PATH_UNAVAILABLE | GATEWAY_TARGET_SILENT => Self::Unreachable,
            code => Self::Refused(code),
        }
    }

    /// Whether it is the bus's and says nothing about the device that was to be asked.
    #[must_use]
    pub const fn is_of_the_bus(self) -> bool {
        matches!(self, Self::NoLink | Self::Babble)
    }

    /// What the points' readings say.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Refused(_) => Reason::Exception,
            Self::Timeout | Self::Unreachable => Reason::Timeout,
            Self::Malformed => Reason::Malformed,
            Self::Broken | Self::NoLink | Self::Babble => Reason::LinkDown,
        }
    }
}

/// A device that is polled.
#[derive(Debug)]
pub struct Poller {
    device: Device,
    polled: Polled<Trouble>,
    /// The plan; never empty.
    requests: Vec<Request>,
    /// Table, address and count of the requests that were ever answered.
    proven: BTreeSet<(Table, u16, u16)>,
    /// Which request opens a poll. Moves on when nothing was answered, so that a request the device never answers does
    /// not hide the others.
    first: usize,
    poll: Poll,
}

/// The poll under way.
#[derive(Debug, Default)]
struct Poll {
    /// Requests asked so far.
    asked: usize,
    answered: bool,
    readings: Vec<Reading>,
    bad: Vec<Reason>,
}

/// What an answer, or the lack of one, led to.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The poll goes on.
    More {
        /// Something people should know.
        news: Option<News>,
    },
    /// The poll is over.
    Over(Report),
}

/// A change that is worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The device refuses a request as it stands.
    Refuses {
        /// Table of the request.
        table: Table,
        /// Its first address.
        address: u16,
        /// Its length.
        count: u16,
        /// The exception.
        code: u8,
    },
    /// The device refuses addresses that no point wants, or is silent on them; they are left out from now on.
    HolesLeftOut {
        /// Table of the request.
        table: Table,
        /// Its first address.
        address: u16,
    },
    /// The device missed a poll for the first time.
    Lost(Trouble),
    /// It answers again.
    Back {
        /// How many polls it missed.
        missed: u32,
        /// What began it.
        lost: Trouble,
    },
}

/// A finished poll.
#[derive(Debug, PartialEq)]
pub struct Report {
    /// What to pass on; may be empty.
    pub readings: Vec<Reading>,
    /// The reason of every point that could not be read, passed on or not.
    pub bad: Vec<Reason>,
    /// How many polls the device has missed in a row; 0 if it answered this one.
    pub missed: u32,
    /// Something people should know.
    pub news: Option<News>,
}

impl Poller {
    /// Nothing is known of the device yet. Its requests are planned for the medium it is on.
    #[must_use]
    pub fn new(device: Device, medium: Medium) -> Self {
        let points = device.points.iter().map(|point| point.id.clone());
        Self {
            polled: Polled::new(&device.name, device.missed_polls, points),
            requests: plan(&device, medium),
            proven: BTreeSet::new(),
            first: 0,
            poll: Poll::default(),
            device,
        }
    }

    /// The device as configured.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// The request to ask now; none for a device without points.
    #[must_use]
    pub fn request(&self) -> Option<&Request> {
        self.requests.get(self.current())
    }

    fn current(&self) -> usize {
        (self.first + self.poll.asked) % self.requests.len().max(1)
    }

    /// Takes what came of [`Poller::request`].
    pub fn take(&mut self, result: Result<Answer, Trouble>, now: Now) -> Step {
        let Some(request) = self.request().cloned() else { return Step::Over(self.finish(None, now)) };
        let Request { table, address, count, .. } = request;
        let mut news = None;
        match result {
            Ok(answer) => {
                self.poll.answered = true;
                self.proven.insert((table, address, count));
                self.read(&request, &answer, now);
            }
            Err(Trouble::Refused(code)) => {
                self.poll.answered = true;
                if TOO_MUCH.contains(&code)
                    && let Some(narrower) = without_holes(&self.device, &request)
                {
                    self.replan(narrower);
                    return Step::More { news: Some(News::HolesLeftOut { table, address }) };
                }
                let is_new = self.bad(&request.points, Reason::Exception, now);
                news = is_new.then_some(News::Refuses { table, address, count, code });
            }
            // Some devices are silent where they should refuse. One that is there, and never answered this, is asked less.
            Err(Trouble::Timeout)
                if self.poll.answered
                    && !self.proven.contains(&(table, address, count))
                    && let Some(narrower) = without_holes(&self.device, &request) =>
            {
                self.replan(narrower);
                return Step::More { news: Some(News::HolesLeftOut { table, address }) };
            }
            Err(trouble) => {
                self.bad(&request.points, trouble.reason(), now);
                if !self.poll.answered || trouble.is_of_the_bus() {
                    self.poll.asked += 1;
                    return Step::Over(self.give_up(trouble, now));
                }
            }
        }
        self.poll.asked += 1;
        if self.poll.asked < self.requests.len() {
            return Step::More { news };
        }
        let mut report = self.finish(None, now);
        report.news = report.news.or(news);
        Step::Over(report)
    }

    fn read(&mut self, request: &Request, answer: &Answer, now: Now) {
        for &i in &request.points {
            match decode(&self.device.points[i], request, answer) {
                Ok(value) => self.polled.good(i, value, now, &mut self.poll.readings),
                Err(reason) => {
                    self.bad(&[i], reason, now);
                }
            }
        }
    }

    /// True if this is new of any of them.
    fn bad(&mut self, points: &[usize], reason: Reason, now: Now) -> bool {
        let mut is_new = false;
        for &i in points {
            self.poll.bad.push(reason);
            is_new |= self.polled.bad(i, reason, now, &mut self.poll.readings);
        }
        is_new
    }

    /// Puts `narrower` in the place of the present request; the poll goes on with the first of them.
    fn replan(&mut self, narrower: Vec<Request>) {
        let current = self.current();
        if current < self.first {
            self.first += narrower.len() - 1;
        }
        self.requests.splice(current..=current, narrower);
    }

    /// Ends the poll; what was not asked is as bad as what was.
    fn give_up(&mut self, trouble: Trouble, now: Now) -> Report {
        let next = self.current();
        while self.poll.asked < self.requests.len() {
            let points = self.requests[self.current()].points.clone();
            self.bad(&points, trouble.reason(), now);
            self.poll.asked += 1;
        }
        if !self.poll.answered {
            self.first = next;
        }
        self.finish(Some(trouble), now)
    }

    fn finish(&mut self, trouble: Option<Trouble>, now: Now) -> Report {
        let Poll { answered, mut readings, bad, .. } = std::mem::take(&mut self.poll);
        let change = self.polled.end(trouble.filter(|_| !answered), now, &mut readings);
        let news = change.map(|change| match change {
            Change::Lost(trouble) => News::Lost(trouble),
            Change::Back { missed, lost } => News::Back { missed, lost },
        });
        Report { readings, bad, missed: self.polled.missed(), news }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Type,
        source::modbus::tests::{device, point},
    };

    const NOW: Now = Now { mono_ms: 5, wall_ms: 6, trusted: true };

    /// A device with registers 0 and 1, and far away 200: two requests, the first without holes.
    fn poller() -> Poller {
        let at = |address| point(Table::Holding, address, Type::U16);
        Poller::new(device(1, vec![at(0), at(1), at(200)]), Medium::Tcp)
    }

    fn answer(count: u16) -> Result<Answer, Trouble> {
        Ok(Answer::Registers((0..count).collect()))
    }

    /// Feeds results until the poll ends and spells the readings, `name=value` or `name!reason`.
    fn poll(poller: &mut Poller, results: &[Result<Answer, Trouble>]) -> String {
        let mut results = results.iter();
        loop {
            let result = results.next().expect("the poll ends with the last result").clone();
            if let Step::Over(report) = poller.take(result, NOW) {
                assert!(results.next().is_none(), "the poll ended early");
                let spell = |r: &Reading| match (&r.value, r.reason) {
                    (Some(value), None) => format!("{}={value}", r.point),
                    (None, Some(reason)) => format!("{}!{}", r.point, reason.as_str()),
                    both => panic!("{both:?}"),
                };
                return report.readings.iter().map(spell).collect::<Vec<_>>().join(" ").replace("unit1/", "");
            }
        }
    }

    #[test]
    fn good_readings_come_every_poll_and_bad_ones_when_they_change() {
        let mut p = poller();
        let all_good = "holding-0=0 holding-1=1 holding-200=0";
        assert_eq!(poll(&mut p, &[answer(2), answer(1)]), format!("{all_good} communication=false"));
        assert_eq!(poll(&mut p, &[answer(2), answer(1)]), all_good);
        let refused = Err(Trouble::Refused(4));
        assert_eq!(poll(&mut p, &[answer(2), refused.clone()]), "holding-0=0 holding-1=1 holding-200!exception");
        assert_eq!(poll(&mut p, &[answer(2), refused]), "holding-0=0 holding-1=1");
        assert_eq!(poll(&mut p, &[answer(2), Err(Trouble::Timeout)]), "holding-0=0 holding-1=1 holding-200!timeout");
        assert_eq!(poll(&mut p, &[answer(2), answer(1)]), all_good);
    }

    #[test]
    fn a_device_that_misses_its_polls_is_bad_at_once_and_silent_after_the_third() {
        let mut p = poller();
        poll(&mut p, &[answer(2), answer(1)]);
        let all_bad = |reason| format!("holding-0!{reason} holding-1!{reason} holding-200!{reason}");
        assert_eq!(poll(&mut p, &[Err(Trouble::Timeout)]), all_bad("timeout"));
        // The next poll opens with the other request, whose order the readings follow.
        assert_eq!(
            poll(&mut p, &[Err(Trouble::NoLink)]),
            "holding-200!link-down holding-0!link-down holding-1!link-down"
        );
        assert_eq!(poll(&mut p, &[Err(Trouble::NoLink)]), "communication=true");
        assert_eq!(poll(&mut p, &[Err(Trouble::NoLink)]), "");
        let back = poll(&mut p, &[answer(2), answer(1)]);
        assert_eq!(back, "holding-0=0 holding-1=1 holding-200=0 communication=false");
    }

    #[test]
    fn a_device_silent_from_the_start_is_said_to_be_so() {
        let mut p = poller();
        let said: Vec<String> = (0..4).map(|_| poll(&mut p, &[Err(Trouble::Unreachable)])).collect();
        assert!(said[0].contains("holding-200!timeout") && said[1].is_empty() && said[3].is_empty(), "{said:?}");
        assert_eq!(said[2], "communication=true");
    }

    #[test]
    fn a_link_that_goes_down_in_the_middle_makes_the_rest_bad() {
        for trouble in [Trouble::NoLink, Trouble::Babble] {
            let mut p = poller();
            let said = poll(&mut p, &[answer(2), Err(trouble)]);
            assert_eq!(said, "holding-0=0 holding-1=1 holding-200!link-down communication=false");
        }
    }

    #[test]
    fn a_request_that_is_never_answered_does_not_hide_the_others() {
        let mut p = poller();
        poll(&mut p, &[Err(Trouble::Timeout)]);
        let expect = "holding-200=0 communication=false";
        assert_eq!(poll(&mut p, &[answer(1), Err(Trouble::Timeout)]), expect);
        assert_eq!(poll(&mut p, &[answer(1), Err(Trouble::Timeout)]), "holding-200=0");
    }

    #[test]
    fn holes_the_device_refuses_are_left_out_at_once_and_for_good() {
        let at = |address| point(Table::Holding, address, Type::U16);
        let mut p = Poller::new(device(1, vec![at(0), at(9), at(200)]), Medium::Tcp);
        assert_eq!(p.request().map(|r| r.count), Some(10));
        // The poll begins with the last request, so that the plan grows before it.
        poll(&mut p, &[Err(Trouble::Timeout)]);
        let said = poll(&mut p, &[answer(1), Err(Trouble::Refused(2)), answer(1), answer(1)]);
        assert_eq!(said, "holding-200=0 holding-0=0 holding-9=0 communication=false");
        assert_eq!(poll(&mut p, &[answer(1), answer(1), answer(1)]), "holding-200=0 holding-0=0 holding-9=0");
        let said = poll(&mut p, &[answer(1), Err(Trouble::Refused(2)), answer(1)]);
        assert_eq!(said, "holding-200=0 holding-0!exception holding-9=0");
    }

    #[test]
    fn holes_the_device_is_silent_on_are_left_out_unless_it_answered_them_before() {
        let at = |address| point(Table::Holding, address, Type::U16);
        let fresh = || Poller::new(device(1, vec![at(0), at(200), at(209)]), Medium::Tcp);
        let mut p = fresh();
        let said = poll(&mut p, &[answer(1), Err(Trouble::Timeout), answer(1), answer(1)]);
        assert_eq!(said, "holding-0=0 holding-200=0 holding-209=0 communication=false");
        let mut p = fresh();
        poll(&mut p, &[answer(1), answer(10)]);
        let said = poll(&mut p, &[answer(1), Err(Trouble::Timeout)]);
        assert_eq!(said, "holding-0=0 holding-200!timeout holding-209!timeout");
    }

    #[test]
    fn the_log_hears_of_the_first_miss_and_of_the_end_with_its_count() {
        let mut p = poller();
        let mut miss = || match p.take(Err(Trouble::Timeout), NOW) {
            Step::Over(report) => report.news,
            more @ Step::More { .. } => panic!("{more:?}"),
        };
        assert_eq!([miss(), miss(), miss()], [Some(News::Lost(Trouble::Timeout)), None, None]);
        let mut p = poller();
        for _ in 0..3 {
            p.take(Err(Trouble::Broken), NOW);
        }
        p.take(answer(1), NOW);
        let Step::Over(report) = p.take(answer(2), NOW) else { panic!("two requests") };
        assert_eq!(report.news, Some(News::Back { missed: 3, lost: Trouble::Broken }));
        assert_eq!(report.missed, 0);
    }
}
