//! How often a commit asks the drive to empty its cache: every `fdatasync` and `fsync` of a process that only commits.
//!
//! `strace` counts them from outside, so that none can be forgotten, whichever file it is for. The child marks the end of
//! each commit with a system call that nothing else in it makes.

use std::{fs, path::Path};

use super::{filled::Outbox, folder, run_child};
use crate::table::Table;

pub(super) const CHILD: &str = "flushes";

/// Of each size: with 32 events enough for more than one generation.
const COMMITS: usize = 1_000;
const FLUSHES_MAX: f64 = 1.1;
/// The child's mark.
const MARK: &str = "getppid()";

pub(super) fn measure(table: &mut Table) {
    for group in [1, 32] {
        let what = format!("device flushes a commit, {COMMITS} of {group} (fewest)");
        match count(group) {
            Some(flushes) => {
                let (mean, fewest) = (flushes.iter().sum::<usize>() as f64 / COMMITS as f64, flushes.iter().min());
                let fewest = fewest.copied().unwrap_or(0);
                let meets = mean <= FLUSHES_MAX && fewest > 0;
                table.target(&what, &format!("{mean:.3} ({fewest})"), "1.1 (1)", meets);
            }
            None => table.figure(&what, "needs strace"),
        }
    }
}

/// Of each commit; nothing where there is no strace.
fn count(group: usize) -> Option<Vec<usize>> {
    std::process::Command::new("strace").arg("-V").output().ok()?;
    let dir = folder();
    let trace = dir.path().join("trace").display().to_string();
    let calls = "trace=fdatasync,fsync,syncfs,sync,msync,getppid";
    run_child(&["strace", "-f", "-e", calls, "-o", &trace], CHILD, &dir.path().join("outbox"), &[group.to_string()]);
    let trace = fs::read_to_string(&trace).expect("strace wrote it");
    // What stands before the first mark is the opening.
    let mut commits = Vec::new();
    for line in trace.lines() {
        if line.contains(MARK) {
            commits.push(0);
        } else if let Some(count) = commits.last_mut()
            && line.ends_with("= 0")
            && line.contains("sync")
        {
            *count += 1;
        }
    }
    // What stands after the last mark is the closing.
    commits.pop();
    assert_eq!(commits.len(), COMMITS, "every commit is marked");
    Some(commits)
}

/// Marks, then commits and marks in turn.
pub(super) fn child(folder: &Path, group: usize) {
    let mut outbox = Outbox::open(folder);
    let steps = outbox.steps(COMMITS, group);
    mark();
    for step in steps {
        outbox.commit(vec![step]);
        mark();
    }
    outbox.close();
}

fn mark() {
    // Whose child we are does not matter: the call does.
    let _parent = std::os::unix::process::parent_id();
}
