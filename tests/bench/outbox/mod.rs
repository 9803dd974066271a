//! The outbox: what durability costs beside the plainest log that has it, and a million events waiting.
//!
//! Everything lies on the disk of the build's own folder, as the folder for temporary files may be memory. An **event**
//! is a record of lane a that takes 400 bytes in the store, whatever its format; it changes no alarm state unless a row
//! says so.
//!
//! Reading order: `filled` (the store, as the pipeline and the uplink use it), `append`, `flushes`, `life`, `backlog`
//! (a measurement each). What must be alone in its process is done by this program itself, see [`child`].

mod append;
mod backlog;
mod filled;
mod flushes;
mod life;

use std::{
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::table::Table;

/// Argument that makes this program one of its own children.
pub(crate) const CHILD: &str = "--child";

/// Every row of the outbox.
pub(crate) fn measure(table: &mut Table) {
    append::measure(table);
    flushes::measure(table);
    life::measure(table);
    backlog::measure(table);
}

/// The work of a child: its name, the folder to work in, and its own arguments.
pub(crate) fn child(arguments: &[String]) {
    match arguments {
        [name, folder, group] if name == flushes::CHILD => flushes::child(Path::new(folder), number(group)),
        [name, folder, life, events] if name == life::CHILD => life::child(Path::new(folder), life, number(events)),
        unknown => panic!("no child does {unknown:?}"),
    }
}

/// A folder on a real disk.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder beside the build")
}

/// This program again, as the child of that name. `with` is a program that runs it, with its arguments.
fn run_child(with: &[&str], name: &str, folder: &Path, arguments: &[String]) -> Output {
    let this = std::env::current_exe().expect("this program has a path").display().to_string();
    let line: Vec<&str> = with.iter().copied().chain([this.as_str(), CHILD, name]).collect();
    let output = Command::new(line[0]).args(&line[1..]).arg(folder).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{} does not start: {e}", line[0]));
    assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn number(text: &str) -> usize {
    text.parse().expect("a number that we wrote")
}
