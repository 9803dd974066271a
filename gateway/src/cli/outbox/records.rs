//! `gardu outbox list` and `export`: waiting records in order, page by page from the daemon or one by one from the disk.

use std::path::Path;

use serde::Deserialize;
use tokio::runtime::Runtime;

use super::{Extent, Listing, Seen, ToolError, event, find, look, output::Output, output::Progress, status::loss_key};
use crate::{
    alarm::{Severity, Texts},
    cli::{
        Form,
        ask::{self, AskError},
        page::{Page, plain},
    },
    clock::Clock,
    config::{Config, Language},
    record::{Lane, LossReason},
    status::outbox::Line,
    store::inspect::{Inspection, Which},
    uplink::message::About,
};

/// Asked of the daemon at once; it gives at most as many as it has room for.
const PAGE_EVENTS: u64 = 256;
/// A page of events as large as can be.
const PAGE_LEN_MAX: usize = 16 * 1024 * 1024;

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Go,
    Stop,
}

/// Where the records are.
enum Queue<'a> {
    Daemon { config: &'a Config, runtime: Runtime },
    Disk { inspection: Inspection, about: About, clock: Clock },
}

impl<'a> Queue<'a> {
    /// The daemon has only what waits: everything else is read from the disk, beside a running daemon as well.
    fn open(config: &'a Config, extent: Extent, language: Language) -> Result<(Seen, Self), ToolError> {
        let (seen, outbox) = find(config)?;
        if outbox.is_some() && extent == Extent::Waiting {
            return Ok((seen, Self::Daemon { config, runtime: crate::cli::runtime() }));
        }
        let about = About::new(&config.gateway, &config.command_center.topic_prefix);
        Ok((seen, Self::Disk { inspection: look(config, language)?, about, clock: Clock::system() }))
    }

    /// Hands over place and event of each record from a place on, until it is told to stop.
    fn each(
        &self,
        lane: Lane,
        from: u64,
        extent: Extent,
        mut take: impl FnMut(u64, &str) -> Result<Flow, ToolError>,
    ) -> Result<(), ToolError> {
        match self {
            Self::Daemon { config, runtime } => {
                let mut next = Some(from);
                while let Some(from) = next {
                    let page = runtime.block_on(page(config, lane, from))?;
                    for (place, json) in page.events() {
                        if take(place, json)? == Flow::Stop {
                            return Ok(());
                        }
                    }
                    next = page.next;
                }
                Ok(())
            }
            Self::Disk { inspection, about, clock } => {
                let which = match extent {
                    Extent::Waiting => Which::Waiting,
                    Extent::All => Which::All,
                };
                for stored in inspection.records(lane, from, which) {
                    let stored = stored.map_err(|(path, error)| ToolError::reading(&path, &error))?;
                    let json = event(&stored.record, &inspection.boots, about, clock);
                    if take(stored.position, &json)? == Flow::Stop {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

/// One answer of the daemon.
struct Answer {
    text: String,
    next: Option<u64>,
}

impl Answer {
    /// `None` unless it is whole: the cursor ends it.
    fn parse(text: String) -> Option<Self> {
        let mut next = None;
        for line in text.lines() {
            match (Line::parse(line)?, next) {
                (Line::Event { .. }, None) => {}
                (Line::Next(cursor), None) => next = Some(cursor),
                (_, Some(_)) => return None,
            }
        }
        Some(Self { next: next?, text })
    }

    fn events(&self) -> impl Iterator<Item = (u64, &str)> {
        self.text.lines().filter_map(|line| match Line::parse(line)? {
            Line::Event { place, json } => Some((place, json)),
            Line::Next(_) => None,
        })
    }
}

async fn page(config: &Config, lane: Lane, from: u64) -> Result<Answer, ToolError> {
    let listen = config.http.listen;
    let path = format!("/api/v1/outbox/{}?from={from}&limit={PAGE_EVENTS}", lane.as_str());
    let body = ask::get(listen, &path, PAGE_LEN_MAX).await.map_err(ToolError::CutOff)?;
    let answer = String::from_utf8(body.into()).ok().and_then(Answer::parse);
    answer.ok_or_else(|| ToolError::CutOff(AskError::foreign(listen, "the list of records is not whole")))
}

/// Copies events as they are. Returns what to tell a person.
pub(super) fn export(
    config: &Config,
    lane: Option<Lane>,
    extent: Extent,
    to: Option<&Path>,
    language: Language,
) -> Result<String, ToolError> {
    let (_, queue) = Queue::open(config, extent, language)?;
    let mut output = Output::open(to)?;
    let mut progress = Progress::new(language, to);
    let mut count = 0_u64;
    for lane in lanes(lane) {
        queue.each(lane, 0, extent, |_, json| {
            output.line(json)?;
            count += 1;
            progress.show("outbox-progress", &[("done", count.into())]);
            Ok(Flow::Go)
        })?;
    }
    drop(progress);
    let page = Page { language };
    let size = page.size(output.finish()?);
    Ok(page.say("outbox-exported", &[("count", count.into()), ("size", size.into())]))
}

/// One line a record.
pub(super) fn list(config: &Config, listing: &Listing, language: Language) -> Result<(), ToolError> {
    let (_, queue) = Queue::open(config, Extent::Waiting, language)?;
    let page = Page { language };
    let mut output = Output::open(None)?;
    let mut left = listing.limit;
    let mut more = None;
    for lane in lanes(listing.lane) {
        queue.each(lane, listing.from, Extent::Waiting, |place, json| {
            if left == 0 {
                more = Some((lane, place));
                return Ok(Flow::Stop);
            }
            left -= 1;
            match listing.form {
                Form::Json => output.line(&json_line(place, json))?,
                Form::Text => output.line(&page.record(place, json))?,
            }
            Ok(Flow::Go)
        })?;
        if more.is_some() {
            break;
        }
    }
    if listing.form == Form::Text {
        if let Some((lane, place)) = more {
            let args = [("lane", lane.as_str().into()), ("from", place.into())];
            output.line(&page.say("outbox-list-more", &args))?;
        } else if left == listing.limit {
            output.line(&page.say("outbox-list-empty", &[]))?;
        }
    }
    output.finish().map(drop)
}

fn lanes(only: Option<Lane>) -> Vec<Lane> {
    only.map_or_else(|| Lane::ALL.to_vec(), |lane| vec![lane])
}

fn json_line(place: u64, event: &str) -> String {
    crate::status::outbox::line(place, event).trim_end().to_owned()
}

/// What a line shows of an event.
#[derive(Deserialize)]
struct Shown<'a> {
    id: &'a str,
    time: &'a str,
    #[serde(rename = "type")]
    type_: &'a str,
    subject: &'a str,
    data: ShownData,
}

#[derive(Deserialize)]
struct ShownData {
    severity: Option<Severity>,
    message: Option<Texts>,
    readings: Option<Vec<serde::de::IgnoredAny>>,
    lane: Option<Lane>,
    count: Option<u64>,
    reason: Option<String>,
    command: Option<String>,
}

impl Page {
    /// `     4211  0123456789abcdef-a-4211  2026-11-21T12:04:31.220Z  tinggi  panel/door/open  raised: Pintu panel terbuka`
    fn record(self, place: u64, event: &str) -> String {
        let Ok(shown) = serde_json::from_str::<Shown<'_>>(event) else { return format!("{place:>9}  {event}") };
        let severity = shown.data.severity.map_or_else(|| "-".to_owned(), |severity| self.severity(severity));
        let Shown { id, time, subject, .. } = &shown;
        plain(&format!("{place:>9}  {id:<27}  {time}  {severity:<8}  {subject}  {}", self.what(&shown)))
    }

    fn what(self, shown: &Shown<'_>) -> String {
        let data = &shown.data;
        // `gardu.alarm.raised.v1` is `raised` to a person.
        let word = shown.type_.split('.').nth(2).unwrap_or(shown.type_);
        if let Some(readings) = &data.readings {
            return self.say("outbox-what-readings", &[("count", readings.len().into())]);
        }
        if let (Some(lane), Some(count), Some(reason)) = (data.lane, data.count, &data.reason) {
            let reason = LossReason::ALL.into_iter().find(|known| known.as_str() == reason);
            let reason = reason.map_or_else(|| "?".to_owned(), |reason| self.say(loss_key(reason), &[]));
            let args = [("count", count.into()), ("lane", lane.as_str().into()), ("reason", reason.into())];
            return self.say("outbox-what-lost", &args);
        }
        match (&data.message, &data.command) {
            (Some(message), _) => format!("{word}: {}", self.message(message)),
            (None, Some(command)) => command.clone(),
            (None, None) => format!("{}: {word}", shown.subject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::outbox::{cursor, line};

    #[test]
    fn a_record_is_one_line_in_the_readers_language() {
        let event = |type_: &str, subject: &str, data: &str| {
            format!(
                r#"{{"id":"0123456789abcdef-a-12","time":"2026-11-21T12:04:31.220Z","type":"{type_}","subject":"{subject}","data":{data}}}"#
            )
        };
        let alarm =
            r#"{"severity":"high","reason":null,"message":{"id":"Pintu panel terbuka","en":"Cabinet\tdoor open"}}"#;
        let lost = r#"{"lane":"t","count":7,"reason":"quota","ranges":[[1,7]]}"#;
        for (event, id, en) in [
            (
                event("gardu.alarm.raised.v1", "panel/door/open", alarm),
                "tinggi    panel/door/open  raised: Pintu panel terbuka",
                "high      panel/door/open  raised: Cabinet door open",
            ),
            (
                event("gardu.telemetry.v1", "panel", r#"{"readings":[{"value":1},{"value":2}]}"#),
                "-         panel  2 bacaan",
                "-         panel  2 readings",
            ),
            (
                event("gardu.stream.lost.v1", "stream", lost),
                "-         stream  7 nomor hilang di jalur t (antrean penuh)",
                "-         stream  7 numbers of lane t lost (the outbox was full)",
            ),
            (
                event("gardu.stream.started.v1", "stream", r#"{"reason":"new-store"}"#),
                "-         stream  stream: started",
                "-         stream  stream: started",
            ),
            (
                event("gardu.command.completed.v1", "panel/door/open", r#"{"command":"acknowledge"}"#),
                "-         panel/door/open  acknowledge",
                "-         panel/door/open  acknowledge",
            ),
        ] {
            for (language, what) in [(Language::Indonesian, id), (Language::English, en)] {
                let want = format!("        9  0123456789abcdef-a-12        2026-11-21T12:04:31.220Z  {what}");
                assert_eq!(Page { language }.record(9, &event), want);
            }
        }
    }

    #[test]
    fn an_answer_that_was_cut_is_not_taken_for_the_end() {
        let whole = line(4, "{}") + &line(6, "{\"a\":1}") + &cursor(Some(7));
        let answer = Answer::parse(whole.clone()).expect("whole");
        assert_eq!((answer.events().collect::<Vec<_>>(), answer.next), (vec![(4, "{}"), (6, "{\"a\":1}")], Some(7)));
        assert_eq!(Answer::parse(cursor(None)).expect("whole").next, None);
        for end in 0..whole.len() - 1 {
            assert!(Answer::parse(whole[..end].to_owned()).is_none(), "{}", &whole[..end]);
        }
    }
}
