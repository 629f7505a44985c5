//! Mounts of a test's own, made and unmade by the host's tools, and gone when dropped, however the test ends.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::daemon::run_to_end;

/// Runs a tool of the host, which must succeed.
#[track_caller]
pub(crate) fn tool(name: &str, args: &[&str]) {
    let output = run_to_end(Command::new(name).args(args));
    assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether something is mounted at this folder (proc_pid_mountinfo(5), field 5).
pub(crate) fn is_mounted(at: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == at.to_str())
}

/// Takes the mount from under everybody who still uses it. Never panics: it is for the end of a failed test too.
pub fn detach(at: &Path) {
    if is_mounted(at)
        && let Err(error) = Command::new("umount").arg("-l").arg(at).status()
    {
        eprintln!("cannot unmount {}: {error}", at.display());
    }
}
