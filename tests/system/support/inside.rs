//! A test's story in namespaces of its own: what it does to the network, to mounts and to `/etc/hosts` is not done to the
//! machine, and ends with the last process in it. The test starts itself again there.

use std::{
    env,
    process::{Command, Stdio},
};

/// Says to a test that it is inside.
const INSIDE: &str = "GARDU_INSIDE_NAMESPACE";

/// What a story needs of its process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inside<'a> {
    /// Options of unshare(1).
    pub(crate) unshare: &'a [&'a str],
    /// What must be allowed for it.
    pub(crate) needs: &'a str,
    /// The variable that is 1 where it is not to be had.
    pub(crate) without: &'a str,
}

impl Inside<'_> {
    /// Runs the story of a test, which is the one that calls this.
    pub(crate) fn run(&self, test: &str, story: impl FnOnce()) {
        if env::var_os(INSIDE).is_some() {
            return story();
        }
        let Self { unshare, needs, without } = self;
        if env::var(without).is_ok_and(|value| value == "1") {
            return eprintln!("{test}: not tried, as {without}=1 says");
        }
        // Debian keeps such tools in /usr/sbin, which is not in every user's PATH.
        let path = format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default());
        let mut command = Command::new("unshare");
        command.args(*unshare).arg(env::current_exe().expect("this test has a file"));
        command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").env("PATH", path).stdin(Stdio::null());
        let output = command.output().expect("unshare is installed (Debian: apt-get install util-linux)");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        eprintln!("{said}");
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{test}: failed inside, or its namespaces cannot be had ({needs}); {without}=1 goes without"
        );
    }
}

/// Runs a tool.
pub(crate) fn tool(name: &str, words: &[&str]) -> Result<(), String> {
    let mut command = Command::new(name);
    let output =
        command.args(words).stdin(Stdio::null()).output().map_err(|e| format!("{name} cannot be started: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", said.trim())) }
}
