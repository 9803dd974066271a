//! How the daemon's memory comes from glibc. glibc takes that from the environment before `main`, and later only from
//! unsafe code: so the daemon starts itself once more, as the same process.
//!
//! Why: glibc gives a large block back to the system at once, but raises what counts as large to the largest block ever
//! freed. sled frees a buffer of half a MiB for every segment it fills, so that all later ones lie among small blocks
//! and leave holes there that never go back. 1,000 points at 1 s with 500 changes a second were resident with 23.4 MiB
//! as glibc comes, 14.1 MiB with the limit held and 12.9 MiB with one arena as well, all at the same processor time;
//! under the same load mimalloc took 23 to 72 MiB and dlmalloc 46.

use std::{env, ffi::OsString, os::unix::process::CommandExt as _, process::Command};

/// See mallopt(3); what the environment already says stands.
const SETTINGS: [(&str, &str); 2] = [
    // In bytes. What glibc begins with; naming it holds it there.
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    // A dozen threads that mostly wait do not contend for one arena, and holes in one are filled by all.
    ("MALLOC_ARENA_MAX", "1"),
];
/// Says that it was tried. The settings themselves cannot: glibc drops them where the program file carries privileges.
const TRIED: &str = "GARDU_ALLOCATOR_SET";

/// Starts the program again with the settings. Returns in the program started so, or where that is impossible: then the
/// daemon does the same with more memory.
pub(super) fn set(args: &[OsString]) {
    if !cfg!(target_env = "gnu") || env::var_os(TRIED).is_some() {
        return;
    }
    let (Ok(program), Some((name, rest))) = (env::current_exe(), args.split_first()) else { return };
    let missing = SETTINGS.into_iter().filter(|(name, _)| env::var_os(name).is_none());
    let _refused = Command::new(program).arg0(name).args(rest).envs(missing).env(TRIED, "1").exec();
}
