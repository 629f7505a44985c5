//! Runs a container's config under stock LXC, and takes back all that LXC leaves on the machine.
//!
//! What it needs was found by trying (Debian's 5.0.2, no systemd, hybrid cgroups, no CAP_SYS_RESOURCE): a folder for `-P`,
//! and nothing else. Without `lxc.cgroup.dir.*` it leaves a cgroup `lxc.pivot` in every hierarchy that carries nobody's
//! name; and a folder of locks below /run/lxc stays in any case. It hands on whatever descriptors and ignored signals it is
//! started with, so it is started with none.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::differences::Runtime;
use crate::leaks::{Footprint, end};
use crate::wait::{until, until_none};

/// Whether Debian's lxc is installed; says so aloud if not.
pub fn is_installed() -> bool {
    let there = ["/usr/bin/lxc-execute", "/usr/bin/lxc-start"].iter().all(|tool| Path::new(tool).is_file());
    if !there {
        eprintln!("SKIPPED: Debian's package lxc is not installed");
    }
    there
}

/// A container by LXC.
#[derive(Debug)]
pub struct Lxc<'a> {
    /// Who makes it.
    pub runtime: Runtime,
    /// The config as berth wrote it.
    pub config: &'a Path,
    /// What `lxc.execute.cmd` in it runs, which lxc-start has to be told.
    pub command: &'a str,
    /// Begins with the sandbox's name and a dash, so that cgroups and processes are found by it.
    pub name: &'a str,
    /// A folder of the sandbox, which exists.
    pub folder: &'a Path,
    /// The sandbox's footprint.
    pub footprint: &'a Footprint,
}

impl Lxc<'_> {
    /// What the command says on stdout until `enough`, while it runs. Then it is killed, and nothing of it stays.
    #[track_caller]
    pub fn hear(&self, enough: impl Fn(&str) -> bool) -> String {
        let (stdout, stderr) = (self.folder.join("task_stdout"), self.folder.join("task_stderr"));
        let mut running = Running { child: self.start(&stdout, &stderr), lxc: self };
        let heard = until(format!("{} to have run {}", self.runtime, self.command), || {
            let said = fs::read_to_string(&stdout).unwrap_or_default();
            match (enough(&said), running.child.try_wait()) {
                (true, _) => Ok(Ok(said)),
                (false, Ok(Some(status))) => Ok(Err(format!("{status}: {}", said + &read(&stderr)))),
                (false, _) => Err(said + &read(&stderr)),
            }
        });
        drop(running);
        heard.unwrap_or_else(|ended| panic!("{} ended too early, {ended}", self.runtime))
    }

    fn start(&self, stdout: &Path, stderr: &Path) -> Child {
        let mut lxc = Command::new("/bin/bash");
        lxc.args(["-c", WITH_NOTHING_OPEN, "bash"]).args(self.tool());
        lxc.args(["-n", self.name, "-P"]).arg(self.folder).arg("-f").arg(self.config);
        for (key, suffix) in [("container", "payload"), ("monitor", "monitor"), ("monitor.pivot", "pivot")] {
            lxc.arg("-s").arg(format!("lxc.cgroup.dir.{key}={}-{suffix}", self.name));
        }
        if self.runtime == Runtime::Start {
            lxc.args(["--", "/bin/sh", "-c", self.command]);
        }
        lxc.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
        let started = lxc.stdin(Stdio::null()).stdout(open_log(stdout)).stderr(open_log(stderr)).spawn();
        started.unwrap_or_else(|error| panic!("cannot start {}: {error}", self.runtime))
    }

    fn tool(&self) -> &'static [&'static str] {
        match self.runtime {
            Runtime::Execute => &["/usr/bin/lxc-execute"],
            Runtime::Start => &["/usr/bin/lxc-start", "-F"],
        }
    }
}

/// A shell that becomes its arguments, with stdin, stdout and stderr alone, and no signal ignored.
const WITH_NOTHING_OPEN: &str = "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -le 2 ] || eval \"exec $fd>&-\"; done; \
    exec env --default-signal \"$@\"";

/// A log as berth opens it.
pub fn open_log(path: &Path) -> File {
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).expect("a flag");
    let opened = File::options().create(true).append(true).custom_flags(nofollow).open(path);
    opened.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

/// LXC at work; on drop it is ended, also by a test that failed.
struct Running<'a> {
    child: Child,
    lxc: &'a Lxc<'a>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let payload = format!("{}-payload", self.lxc.name);
        for process in self.lxc.footprint.processes() {
            if process.cgroup.contains(&payload) {
                end(&process);
            }
        }
        if std::thread::panicking() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        remove_locks(self.lxc.folder);
        if !std::thread::panicking() {
            // One that is still busy is tried again; a test that failed has its sandbox see to it.
            until_none("LXC's cgroups to be gone", || remove_cgroups(self.lxc));
        }
    }
}

/// What LXC leaves of them, removed; those that are still there.
fn remove_cgroups(lxc: &Lxc<'_>) -> Vec<PathBuf> {
    let theirs = |cgroup: &PathBuf| cgroup.to_string_lossy().contains(lxc.name);
    for cgroup in lxc.footprint.cgroups().iter().filter(|cgroup| theirs(cgroup)).rev() {
        let _ = fs::remove_dir(cgroup);
    }
    lxc.footprint.cgroups().into_iter().filter(theirs).collect()
}

/// Removes LXC's locks for containers of that `-P`, with what of their path is the sandbox's alone.
fn remove_locks(folder: &Path) {
    let locks = Path::new("/run/lxc/lock").join(folder.strip_prefix("/").unwrap_or(folder));
    let _ = fs::remove_dir_all(&locks);
    for parent in locks.ancestors().skip(1).take_while(|parent| parent.to_string_lossy().contains("/berth-test-")) {
        // One with other locks in it stays until these are removed.
        let _ = fs::remove_dir(parent);
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
