//! `gardu outbox`: what waits, copied or rescued, from the running daemon or from a stopped one's disk.
//!
//! Which of the two it is, the tool finds out: the daemon is asked first and has [`ask`]'s few seconds to answer. If it does
//! not, the disk is read, without the store's lock, without sled and without changing a byte; who holds the lock is looked
//! up in `/proc/locks`, because trying the lock could keep a daemon that starts just then from getting it.

mod files;
mod output;
mod records;
mod salvage;
pub mod status;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use self::{
    files::Files,
    output::{Output, Progress},
};
use super::{
    Form,
    ask::{self, AskError},
    exit,
    page::Page,
};
use crate::{
    clock::{Boots, Clock},
    config::{self, Config, Language, Need},
    record::Lane,
    status::{
        LaneState, age_s,
        outbox::{Aside, Lost, LostOver, Outbox, OutboxLane, Unreadable},
    },
    store::{
        Space,
        envelope::Kind,
        inspect::{self, Inspection, LookError},
        memory,
    },
    text::say,
    uplink::message,
};

/// The counted outbox of hundreds of generations is below 64 KiB.
const OUTBOX_LEN_MAX: usize = 1024 * 1024;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Count.
    Status(Form),
    /// Show what waits.
    List(Listing),
    /// Copy it.
    Export {
        /// Only this lane.
        lane: Option<Lane>,
        /// How much of it.
        extent: Extent,
        /// Where to.
        to: Option<PathBuf>,
    },
    /// Find what is still whole.
    Salvage {
        /// Where.
        from: PathBuf,
        /// In which shape it is wanted.
        shape: Shape,
        /// Where to.
        to: Option<PathBuf>,
    },
}

/// Which waiting records to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Only this lane.
    pub lane: Option<Lane>,
    /// From this place on.
    pub from: u64,
    /// At most so many.
    pub limit: u64,
    /// For whom.
    pub form: Form,
}

/// How much is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What waits.
    Waiting,
    /// Also what was confirmed and still lies there.
    All,
}

/// In which shape salvaged lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Everything, as it was stored.
    Stored,
    /// Only records, as the command center receives them.
    Events,
}

/// Where the outbox was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The daemon answered.
    Daemon {
        /// Where it listens.
        address: SocketAddr,
    },
    /// On the disk; no daemon runs.
    Stopped,
    /// On the disk; a daemon holds the outbox and does not answer.
    Silent {
        /// Its process, where the system tells.
        holder: Option<u32>,
        /// What became of the question.
        reason: String,
    },
}

impl Seen {
    /// Says it.
    #[must_use]
    pub fn text(&self, language: Language) -> String {
        match self {
            Self::Daemon { address } => {
                say(language, "outbox-source-daemon", &[("address", address.to_string().into())])
            }
            Self::Stopped => say(language, "outbox-source-stopped", &[]),
            Self::Silent { holder, reason } => {
                let holder = holder.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
                say(language, "outbox-source-silent", &[("holder", holder.into()), ("reason", reason.as_str().into())])
            }
        }
    }
}

/// Why the tool cannot do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// There is nothing at the path.
    #[error("{}: there is no outbox", path.display())]
    NoOutbox {
        /// The path.
        path: PathBuf,
    },
    /// This user may not read it.
    #[error("{}: no permission", path.display())]
    NoPermission {
        /// The path.
        path: PathBuf,
    },
    /// The system does not give it.
    #[error("{}: {reason}", path.display())]
    CannotRead {
        /// The path.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Another version wrote it.
    #[error("{}: format {found} is not known", path.display())]
    UnknownFormat {
        /// The path.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The file for the lines cannot be made.
    #[error("{}: {reason}", path.display())]
    CannotCreate {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The file for the lines cannot be written.
    #[error("{}: {reason}", path.display())]
    CannotWrite {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The daemon stopped answering half-way.
    #[error("{0}")]
    CutOff(AskError),
    /// Whoever read our lines has enough: no failure.
    #[error("the reader has left")]
    Closed,
}

impl ToolError {
    pub(super) fn reading(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoOutbox { path },
            io::ErrorKind::PermissionDenied => Self::NoPermission { path },
            _ => Self::CannotRead { path, reason: error.to_string() },
        }
    }

    /// The exit code.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoOutbox { .. } => exit::NO_INPUT,
            Self::NoPermission { .. } => exit::NO_PERMISSION,
            Self::UnknownFormat { .. } => exit::DATA_ERROR,
            Self::CannotCreate { .. } => exit::CANNOT_CREATE,
            Self::CannotRead { .. } | Self::CannotWrite { .. } => exit::IO_ERROR,
            Self::CutOff(why) => why.exit_code(),
            Self::Closed => exit::OK,
        }
    }

    /// What happened and what to do, for people.
    #[must_use]
    pub fn text(&self, language: Language) -> String {
        let (key, path, reason) = match self {
            Self::NoOutbox { path } => ("outbox-no-outbox", path, String::new()),
            Self::NoPermission { path } => ("outbox-no-permission", path, String::new()),
            Self::CannotRead { path, reason } => ("outbox-cannot-read", path, reason.clone()),
            Self::UnknownFormat { path, found } => ("outbox-unknown-format", path, found.to_string()),
            Self::CannotCreate { path, reason } => ("outbox-cannot-create", path, reason.clone()),
            Self::CannotWrite { path, reason } => ("outbox-cannot-write", path, reason.clone()),
            Self::CutOff(why) => return say(language, "outbox-cut-off", &[("reason", why.to_string().into())]),
            Self::Closed => return String::new(),
        };
        say(language, key, &[("path", path.display().to_string().into()), ("reason", reason.into())])
    }
}

/// Does it; the exit code is returned.
#[expect(clippy::print_stderr, reason = "the edge where text leaves the program")]
pub fn run(path: &Path, asked: Option<Language>, task: Task) -> u8 {
    let config = config::load(path, Need::None);
    // What was stored can be salvaged on any machine: only events need to know whose they are.
    let language = match &config {
        Ok(config) => asked.unwrap_or(config.gateway.language),
        Err(problems) => super::language(asked.or(problems.language)),
    };
    let done = match (task, config) {
        (Task::Salvage { from, shape: Shape::Stored, to }, _) => {
            rescue(&from, to.as_deref(), None, language).map(|summary| eprint!("{summary}"))
        }
        (_, Err(problems)) => {
            eprintln!("{}", problems.render(language));
            return exit::CONFIG;
        }
        (Task::Salvage { from, shape: Shape::Events, to }, Ok(config)) => {
            rescue(&from, to.as_deref(), Some(&config), language).map(|summary| eprint!("{summary}"))
        }
        (Task::Status(form), Ok(config)) => show(&config, language, form),
        (Task::List(listing), Ok(config)) => records::list(&config, &listing, language),
        (Task::Export { lane, extent, to }, Ok(config)) => {
            records::export(&config, lane, extent, to.as_deref(), language).map(|summary| eprintln!("{summary}"))
        }
    };
    match done {
        Ok(()) => exit::OK,
        Err(why) => {
            if why != ToolError::Closed {
                eprintln!("{}", why.text(language));
            }
            why.exit_code()
        }
    }
}

fn show(config: &Config, language: Language, form: Form) -> Result<(), ToolError> {
    let (seen, outbox) = find(config)?;
    let outbox = match outbox {
        Some(outbox) => outbox,
        None => on_disk(config, &Clock::system(), language)?,
    };
    let mut output = Output::open(None)?;
    match form {
        Form::Json => output.line(&serde_json::to_string(&outbox).expect("names and numbers become JSON"))?,
        Form::Text => output.line(status::render(&outbox, &seen, language).trim_end())?,
    }
    output.finish().map(drop)
}

/// The daemon's answer, or why the disk must be read.
fn find(config: &Config) -> Result<(Seen, Option<Outbox>), ToolError> {
    let listen = config.http.listen;
    let answer = super::runtime().block_on(ask::get(listen, "/api/v1/outbox", OUTBOX_LEN_MAX)).and_then(|body| {
        let outbox: Outbox = serde_json::from_slice(&body).map_err(|e| AskError::foreign(listen, e))?;
        // The service's own folder in memory is not known here, only its name.
        let memory = memory::folder(&config.outbox.path);
        let stands_in = outbox.unusable.is_some() && outbox.path.file_name() == memory.file_name();
        if stands_in || is_same(&outbox.path, &config.outbox.path) {
            Ok(outbox)
        } else {
            Err(AskError::foreign(listen, format_args!("it serves {}", outbox.path.display())))
        }
    });
    Ok(match answer {
        Ok(outbox) => (Seen::Daemon { address: ask::reachable(listen) }, Some(outbox)),
        Err(why) => match holder(&config.outbox.path.join("lock")) {
            Some(pid) => (Seen::Silent { holder: Some(pid).filter(|pid| *pid > 0), reason: why.to_string() }, None),
            None => (Seen::Stopped, None),
        },
    })
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || fs::canonicalize(a).ok().is_some_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b))
}

/// The process that has this file locked (flock), 0 if it cannot be told.
fn holder(lock: &Path) -> Option<u32> {
    let file = fs::metadata(lock).ok()?;
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    holder_in(&fs::read_to_string("/proc/locks").ok()?, (major, minor, file.ino()))
}

/// The holder in the lines of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 4711 b3:02:131 0 EOF`.
fn holder_in(locks: &str, (major, minor, inode): (u32, u32, u64)) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = fields[..] else { return None };
        let mut numbers = file.split(':');
        let mut hex = || u32::from_str_radix(numbers.next()?, 16).ok();
        let device = (hex()?, hex()?);
        let same_inode = numbers.next()?.parse() == Ok(inode);
        // File systems without a device of their own (btrfs, overlay) show another number here than stat(2) does.
        let same_device = device == (major, minor) || (device.0 == 0 && major == 0);
        (same_inode && same_device).then(|| pid.parse().unwrap_or(0))
    })
}

/// The outbox of a stopped daemon, counted.
fn on_disk(config: &Config, clock: &Clock, language: Language) -> Result<Outbox, ToolError> {
    let inspection = look(config, language)?;
    let delivered = inspection.lanes.iter().all(|of| of.records == 0);
    let lanes = inspection.lanes.iter().map(|of| {
        let state = LaneState {
            epoch: of.status.epoch.clone(),
            next: of.status.next,
            settled: of.status.settled,
            records: of.records,
            bytes: of.bytes,
            oldest_age_s: of.oldest.as_ref().and_then(|(boot, at)| age_s(clock, boot, *at, clock.now())),
        };
        (of.lane, OutboxLane { state, generations: of.generations.clone() })
    });
    Ok(Outbox {
        gateway: config.gateway.id.clone(),
        path: config.outbox.path.clone(),
        disk_bytes: inspection.folder.disk_bytes,
        quota_bytes: Some(config.outbox.max_size),
        full_in_s: None,
        space: Space::left_by(&config.outbox.path, delivered).ok(),
        full_since: None,
        unusable: None,
        lanes: lanes.collect(),
        lost: inspection.lost.into_iter().map(|(lane, reason, count)| Lost { lane, reason, count }).collect(),
        lost_over: LostOver::Disk,
        aside: inspection.folder.aside.into_iter().map(|(name, bytes)| Aside { name, bytes }).collect(),
        unreadable: inspection.unreadable.into_iter().map(|(name, reason)| Unreadable { name, reason }).collect(),
    })
}

/// A look at the store on the disk, with progress for whoever waits for a slow card.
fn look(config: &Config, language: Language) -> Result<Inspection, ToolError> {
    let mut progress = Progress::new(language, None);
    let show = |done: u64, total: u64| {
        progress.show("outbox-progress-of", &[("percent", percent(done, total).into())]);
    };
    inspect::look(&config.outbox.path, show).map_err(|why| match why {
        LookError::Format { path, found } => ToolError::UnknownFormat { path, found },
        LookError::Io { path, error } => ToolError::reading(&path, &error),
    })
}

/// Salvage: finds, prints, and says how it went.
fn rescue(from: &Path, to: Option<&Path>, whose: Option<&Config>, language: Language) -> Result<String, ToolError> {
    let mut files = Files::at(from)?;
    let names: Vec<String> = (0..salvage::Media::count(&files))
        .map(|number| {
            let name = files.name(number);
            name.strip_prefix(from).ok().filter(|rest| *rest != Path::new("")).unwrap_or(name).display().to_string()
        })
        .collect();
    let mut output = Output::open(to)?;
    let mut progress = Progress::new(language, to);
    let show = |done: u64, total: u64| {
        progress.show("outbox-progress-of", &[("percent", percent(done, total).into())]);
    };
    let mut events = whose.map(Events::new);
    let summary = salvage::salvage(&mut files, salvage::HELD_MAX, show, |found| match &mut events {
        None => output.line(&stored_line(&found, &names)),
        Some(events) => events.of(&found).map_or(Ok(()), |event| output.line(&event)),
    });
    let summary = summary?;
    drop(progress);
    output.finish()?;
    Ok(summary_text(&summary, &files, Page { language }))
}

/// `{"kind":"alarm","key":"panel/door/open","commit":17,"file":"alarm-2/db","offset":4711,"value":{…}}`
fn stored_line(found: &salvage::Found<'_>, names: &[String]) -> String {
    let envelope = &found.envelope;
    let word = match envelope.kind {
        Kind::Alarm => "alarm",
        Kind::Answer => "answer",
        Kind::Boot => "boot",
        Kind::Count => "count",
        Kind::Record => "record",
        Kind::Epoch | Kind::Fence | Kind::Generation | Kind::Word => "bookkeeping",
    };
    // Numbers keep their digits: what is JSON already is not read and written again.
    let text = String::from_utf8_lossy(envelope.payload);
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
    let value = if is_json { text.into_owned() } else { quoted(&text) };
    let (key, file) = (quoted(envelope.key), quoted(&names[found.medium]));
    let (commit, offset) = (envelope.commit, found.offset);
    format!(r#"{{"kind":"{word}","key":{key},"commit":{commit},"file":{file},"offset":{offset},"value":{value}}}"#)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Makes events of salvaged records; the boots they need come before them.
struct Events {
    about: message::About,
    clock: Clock,
    boots: Vec<serde_json::Value>,
    dated: Option<Boots>,
}

impl Events {
    fn new(config: &Config) -> Self {
        let about = message::About::new(&config.gateway, &config.command_center.topic_prefix);
        Self { about, clock: Clock::system(), boots: Vec::new(), dated: None }
    }

    fn of(&mut self, found: &salvage::Found<'_>) -> Option<String> {
        let envelope = &found.envelope;
        if envelope.kind == Kind::Boot {
            self.boots.extend(serde_json::from_slice::<serde_json::Value>(envelope.payload));
            return None;
        }
        let (_, record) = envelope.record()?;
        let boots = std::mem::take(&mut self.boots);
        let dated = || serde_json::from_value(boots.into()).unwrap_or_default();
        let boots = self.dated.get_or_insert_with(dated);
        Some(event(&record, boots, &self.about, &self.clock))
    }
}

/// A record as the command center would receive it now.
fn event(record: &crate::record::Record, boots: &Boots, about: &message::About, clock: &Clock) -> String {
    let sent = message::Sent { boot: clock.boot(), at: clock.now() };
    let payload = message::encode(record, boots, about, sent).payload;
    String::from_utf8(payload.into()).expect("JSON is text")
}

fn summary_text(summary: &salvage::Summary, files: &Files, page: Page) -> String {
    let args = [
        ("size", page.size(summary.bytes).into()),
        ("records", summary.records.into()),
        ("states", summary.states.into()),
        ("damaged", summary.broken.into()),
    ];
    let mut lines = vec![page.say("outbox-salvaged", &args)];
    if summary.skipped_bytes > 0 {
        lines.push(page.say("outbox-salvage-skipped", &[("size", page.size(summary.skipped_bytes).into())]));
    }
    if let Some(version) = summary.other_version {
        lines.push(page.say("outbox-salvage-other-version", &[("version", version.into())]));
    }
    if summary.records + summary.states == 0 {
        lines.push(page.say("outbox-salvage-nothing", &[]));
    }
    lines.extend(files.unopened.iter().map(|(path, reason)| {
        let args = [("path", path.display().to_string().into()), ("reason", reason.as_str().into())];
        page.say("outbox-cannot-read", &args)
    }));
    lines.join("\n") + "\n"
}

fn percent(done: u64, total: u64) -> u64 {
    u64::try_from(u128::from(done) * 100 / u128::from(total.max(1))).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
1: POSIX  ADVISORY  WRITE 10 b3:02:131 0 EOF
2: FLOCK  ADVISORY  READ 11 b3:02:131 0 EOF
3: FLOCK  ADVISORY  WRITE 4711 b3:02:132 0 EOF
3: -> FLOCK  ADVISORY  WRITE 12 b3:02:133 0 EOF
4: FLOCK  ADVISORY  WRITE 13 00:2a:140 0 EOF
";

    #[test]
    fn who_holds_the_lock_is_read_and_never_tried() {
        for (file, pid) in [
            ((0xb3, 2, 132), Some(4711)),
            ((0xb3, 2, 131), None),
            ((0xb3, 3, 132), None),
            ((0xb3, 2, 133), None),
            ((0, 0x31, 140), Some(13)),
        ] {
            assert_eq!(holder_in(LOCKS, file), pid, "{file:?}");
        }
    }

    #[test]
    fn a_lock_of_this_process_is_found() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("lock");
        let file = fs::File::create(&path).expect("file");
        assert_eq!(holder(&path), None);
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("free");
        assert_eq!(holder(&path), Some(std::process::id()));
        drop(file);
        assert_eq!(holder(&path), None);
    }

    #[test]
    fn every_failure_says_what_to_do_and_has_its_exit_code() {
        let path = PathBuf::from("/var/lib/gardu/outbox");
        let (p, reason) = (|| path.clone(), || "no space".to_owned());
        let address = "127.0.0.1:9184".parse().expect("address");
        for (error, code, words) in [
            (ToolError::NoOutbox { path: p() }, 66, "outbox.path"),
            (ToolError::NoPermission { path: p() }, 77, "sudo"),
            (ToolError::CannotRead { path: p(), reason: reason() }, 74, "no space"),
            (ToolError::UnknownFormat { path: p(), found: 9 }, 65, "9"),
            (ToolError::CannotCreate { path: p(), reason: reason() }, 73, "no space"),
            (ToolError::CannotWrite { path: p(), reason: reason() }, 74, "no space"),
            (ToolError::CutOff(AskError::NotRunning { address, reason: reason() }), 69, "no space"),
        ] {
            for language in Language::ALL {
                let text = error.text(language);
                assert!(text.contains(words) && !text.contains("outbox-"), "{text}");
            }
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }
}
