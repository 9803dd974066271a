//! What is wrong with a configuration, where, and what to write instead.
//!
//! Problems are gathered while the files are walked and shown together, ordered by place. A text is a Fluent key with
//! its values, so that the same problem speaks both languages. Text out of the files is shown short and without control
//! characters; what a secret file holds never gets here.

use std::{
    cell::RefCell,
    fmt,
    path::{Path, PathBuf},
};

use super::Language;
use crate::text::{self, Arg};

/// More than this nobody reads at once; the rest is counted.
pub const SHOWN_MAX: usize = 100;
/// Findings kept to be sorted: ten screens more than are shown, and a bound for a megabyte of garbage.
const KEPT_MAX: usize = 10 * SHOWN_MAX;
/// Longest piece of a file that is repeated in a message, in characters.
const QUOTED_MAX: usize = 80;

/// Where a problem is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as the command line named it.
    pub file: PathBuf,
    /// Line and column (in characters), from 1; none where the file as a whole is meant.
    pub position: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.position.map_or(Ok(()), |(line, column)| write!(f, ":{line}:{column}"))
    }
}

/// One value in a problem's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Shown as it is.
    Verbatim(String),
    /// A Fluent key: said in the reader's language.
    Say(&'static str),
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        let mut shown: String = text.chars().take(QUOTED_MAX).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        Self::Verbatim(shown.replace(char::is_control, "\u{fffd}"))
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// Values of a problem's text, by their names in it.
pub(super) type Args<'a> = &'a [(&'static str, Word)];

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Which: a key of `check.ftl`, stable for programs.
    pub kind: &'static str,
    args: Vec<(&'static str, Word)>,
}

impl Problem {
    /// The sentence, without the place.
    #[must_use]
    pub fn text(&self, language: Language) -> String {
        let word = |word: &Word| match word {
            Word::Verbatim(text) => text.clone(),
            Word::Say(key) => text::say(language, key, &[]),
        };
        let args: Vec<Arg<'_>> = self.args.iter().map(|(name, value)| (*name, word(value).into())).collect();
        text::say(language, self.kind, &args)
    }
}

/// Everything wrong with a configuration; at least one problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// In the order of the files; at most [`SHOWN_MAX`].
    pub shown: Vec<Problem>,
    /// How many there are in all.
    pub total: usize,
    /// The language the configuration asks for, where that much of it could be read.
    pub language: Option<Language>,
}

impl Problems {
    /// One line a problem: `file:line:column: what is wrong; what to write`.
    #[must_use]
    pub fn render(&self, language: Language) -> String {
        let mut lines: Vec<String> =
            self.shown.iter().map(|problem| format!("{}: {}", problem.place, problem.text(language))).collect();
        let hidden = self.total - self.shown.len();
        if hidden > 0 {
            lines.push(text::say(language, "check-more", &[("count", hidden.into())]));
        }
        lines.join("\n")
    }
}

/// In Indonesian, the language of the field; [`Problems::render`] chooses.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(self.language.unwrap_or_default()))
    }
}

impl std::error::Error for Problems {}

/// A byte of a file, or the file as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// Index of the file.
    pub(super) file: usize,
    /// Byte offset.
    pub(super) offset: Option<usize>,
}

/// One file as read.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    /// Empty where it could not be read.
    pub(super) text: String,
}

impl Source {
    /// The folder that relative paths in this file start from.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Line and column, from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

/// What kind of statement a problem is; decides whether it can be trusted beside a broken file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// A file, or a part of it, could not be read at all.
    Unread,
    /// What stands at this place is wrong.
    Wrong,
    /// Something is not there; it may stand in the part that could not be read.
    Absent,
}

#[derive(Debug, PartialEq)]
struct Finding {
    spot: Spot,
    nature: Nature,
    kind: &'static str,
    args: Vec<(&'static str, Word)>,
}

/// Gathers problems while the files are walked.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    pub(super) sources: Vec<&'a Source>,
    found: RefCell<Vec<Finding>>,
    uncounted: RefCell<usize>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(sources: Vec<&'a Source>) -> Self {
        Self { sources, found: RefCell::default(), uncounted: RefCell::default() }
    }

    /// What is noted already is not noted again: every device with a profile reads the same file.
    pub(super) fn add(&self, spot: Spot, nature: Nature, kind: &'static str, args: Args<'_>) {
        let mut found = self.found.borrow_mut();
        if found.len() < KEPT_MAX || nature == Nature::Unread {
            let finding = Finding { spot, nature, kind, args: args.to_vec() };
            if !found.contains(&finding) {
                found.push(finding);
            }
        } else {
            *self.uncounted.borrow_mut() += 1;
        }
    }

    /// The one of `candidates` that was probably meant. Nobody reads hints beyond the problems shown.
    pub(super) fn nearest<'c>(&self, text: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
        if self.found.borrow().len() > SHOWN_MAX || text.len() > 4 * QUOTED_MAX {
            return None;
        }
        let typos_max = 1 + text.chars().count() / 4; // a letter in four is a typo, more is another word
        // `password` means `password_file`: a beginning counts as one typo.
        let begins = |c: &str| text.len() >= 4 && c.starts_with(text);
        let distance = |c: &str| if begins(c) { 1 } else { strsim::osa_distance(text, c) };
        let nearest = candidates.into_iter().map(|c| (distance(c), c)).min_by_key(|(distance, _)| *distance)?;
        (nearest.0 <= typos_max).then_some(nearest.1)
    }

    /// `file:line:column` of a spot, for a text that names a second place.
    pub(super) fn place(&self, spot: Spot) -> Place {
        let source = &self.sources[spot.file];
        Place { file: source.path.clone(), position: spot.offset.map(|offset| source.position(offset)) }
    }

    /// All of them in order, or none. Beside a broken part, what may only be its shadow is left out.
    pub(super) fn finish(self, language: Option<Language>) -> Option<Problems> {
        let lines = |spot: Spot| (spot.file, spot.offset.map(|offset| self.sources[spot.file].position(offset).0));
        let mut found = self.found.take();
        let broken: Vec<_> = found.iter().filter(|f| f.nature == Nature::Unread).map(|f| lines(f.spot)).collect();
        if !broken.is_empty() {
            // The parser puts what it could not place at the start of the file.
            let shadow = |spot: Spot| broken.iter().any(|b| b.0 == spot.file) && spot.offset == Some(0);
            found.retain(|f| match f.nature {
                Nature::Unread => true,
                Nature::Wrong => !shadow(f.spot) && !broken.contains(&lines(f.spot)),
                Nature::Absent => false,
            });
        }
        found.sort_by_key(|f| f.spot);
        let total = found.len() + self.uncounted.take();
        let problem = |f: Finding| Problem { place: self.place(f.spot), kind: f.kind, args: f.args };
        let shown: Vec<Problem> = found.into_iter().take(SHOWN_MAX).map(problem).collect();
        (!shown.is_empty()).then_some(Problems { shown, total, language })
    }
}
