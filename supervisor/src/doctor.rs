//! What this kernel offers and lacks, and what berth does about it: a sentence each, for `berth-supervisor doctor`.
//!
//! Whatever can be tried is tried, since a kernel's version says little of what a distribution changed in it. Trials
//! happen on threads and children that take their namespaces and mounts with them when they end; the only thing
//! written is a folder in the state dir, removed again. Nothing here is used by the daemon.

mod cgroups;
mod kernel;
mod limits;
mod privileges;
mod storage;

use std::fmt;
use std::path::Path;

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// What that means, and what to do about it.
    pub says: String,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As berth wants it.
    Good,
    /// berth works, with less.
    Degraded,
    /// berth cannot work without it.
    Missing,
}

impl Finding {
    fn good(name: &'static str, says: impl Into<String>) -> Finding {
        Finding { name, state: State::Good, says: says.into() }
    }

    fn degraded(name: &'static str, says: impl Into<String>) -> Finding {
        Finding { name, state: State::Degraded, says: says.into() }
    }

    fn missing(name: &'static str, says: impl Into<String>) -> Finding {
        Finding { name, state: State::Missing, says: says.into() }
    }
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            State::Good => "good",
            State::Degraded => "degraded",
            State::Missing => "missing",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Everything found, in the order it was looked at.
#[derive(Debug)]
pub struct Report(pub Vec<Finding>);

impl Report {
    /// Whether berth can work here.
    pub fn can_work(&self) -> bool {
        self.0.iter().all(|finding| finding.state != State::Missing)
    }
}

impl fmt::Display for Report {
    /// Three aligned columns, and a last line that sums up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        for finding in &self.0 {
            writeln!(f, "{:width$}  {:8}  {}", finding.name, finding.state, finding.says)?;
        }
        let count = |state| self.0.iter().filter(|finding| finding.state == state).count();
        match (count(State::Missing), count(State::Degraded)) {
            (0, 0) => writeln!(f, "\nberth works here."),
            (0, 1) => writeln!(f, "\nberth works here, with one restriction."),
            (0, less) => writeln!(f, "\nberth works here, with {less} restrictions."),
            (1, _) => writeln!(f, "\nberth cannot work here: one necessary thing is missing."),
            (lacks, _) => writeln!(f, "\nberth cannot work here: {lacks} necessary things are missing."),
        }
    }
}

/// Looks at everything. `state_dir` is where containers would be made; it need not exist.
pub fn examine(state_dir: &Path) -> Report {
    let mut findings = kernel::examine();
    findings.extend(privileges::examine());
    findings.extend(cgroups::examine());
    findings.extend(storage::examine(state_dir));
    findings.extend(limits::examine());
    Report(findings)
}

/// The text of a kernel file; what cannot be read says nothing.
fn read(path: &str) -> String {
    wire::proc_text::read(path).unwrap_or_default()
}

/// Runs `trial` on a thread of its own, whose namespaces and root end with it.
fn on_a_thread<T: Send>(trial: impl FnOnce() -> std::io::Result<T> + Send) -> std::io::Result<T> {
    let panicked = || std::io::Error::other("the trial panicked");
    std::thread::scope(|scope| scope.spawn(trial).join().unwrap_or_else(|_| Err(panicked())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::{Scratch, root_or_skip};

    #[test]
    fn a_report_is_three_columns_and_a_verdict() {
        let mut report = Report(vec![
            Finding::good("kernel", "6.1 is recent enough"),
            Finding::degraded("swap", "it is not counted"),
        ]);
        expect_test::expect![[r"
            kernel  good      6.1 is recent enough
            swap    degraded  it is not counted

            berth works here, with one restriction.
        "]]
        .assert_eq(&report.to_string());
        assert!(report.can_work());
        report.0.push(Finding::missing("memory", "there is no memory controller"));
        assert!(report.to_string().ends_with("\nberth cannot work here: one necessary thing is missing.\n"));
        assert!(!report.can_work());
    }

    #[test]
    fn an_examination_leaves_nothing_behind_and_says_everything_in_one_line() {
        if !root_or_skip("the doctor's trials need root") {
            return;
        }
        let scratch = Scratch::new("doctor");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let report = examine(scratch.path());
        eprintln!("{report}");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
        for finding in &report.0 {
            assert!(!finding.says.is_empty() && !finding.says.contains('\n'), "{finding:?}");
        }
    }
}
