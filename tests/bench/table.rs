//! The one table that is printed at the end.

/// Rows in the order they were measured.
#[derive(Default)]
pub(crate) struct Table(Vec<String>);

impl Table {
    /// A figure without a target.
    pub(crate) fn figure(&mut self, what: &str, measured: &str) {
        self.0.push(format!("{what:<58} {measured:>26}"));
    }

    /// A figure with one.
    pub(crate) fn target(&mut self, what: &str, measured: &str, target: &str, meets: bool) {
        let verdict = if meets { "meets" } else { "MISSES" };
        self.0.push(format!("{what:<58} {measured:>26} {target:>9}  {verdict}"));
    }

    /// Shows it.
    pub(crate) fn print(&self) {
        println!("{:<58} {:>26} {:>9}  verdict", "", "measured", "target");
        for row in &self.0 {
            println!("{row}");
        }
    }
}
