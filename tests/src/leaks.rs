//! The leak check: what a test's daemons may have left on the machine, and its removal.
//!
//! Everything a test makes carries its sandbox's name: cgroups hold it, mounts and command
//! lines hold its folder. So what is left can be found without asking the daemons.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::Sandbox;
use crate::wait::{eventually, until};

/// What belongs to one test.
#[derive(Debug, Clone)]
pub struct Footprint {
    folder: String,
    cgroup_name: String,
}

/// A process of the machine, as proc(5) shows it.
#[derive(Clone)]
pub struct Process {
    /// Its id, as the host counts.
    pub pid: u32,
    /// Its command line, blanks between the arguments.
    pub cmdline: String,
    /// Its cgroups, as `/proc/<pid>/cgroup` says.
    pub cgroup: String,
}

impl Process {
    /// Sends it a signal from outside of its container. It must be there.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let sent = pid.map(|pid| kill_process(pid, signal));
        assert_eq!(sent, Some(Ok(())), "{signal:?} to {self:?}");
    }

    /// Stops it (SIGSTOP), and waits until the kernel says that it is.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        until(format!("{self:?} to be stopped"), || {
            let state = self.state();
            if state == 'T' { Ok(()) } else { Err(state) }
        });
    }

    /// Waits until a signal was sent to it that it has not taken yet: `ShdPnd` of `/proc/<pid>/status`, a bit a signal.
    #[track_caller]
    pub fn wait_pending(&self, signal: Signal) {
        until(format!("{signal:?} to be pending for {self:?}"), || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
            let line =
                status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap_or_default().trim().to_owned();
            let pending = u64::from_str_radix(&line, 16).unwrap_or(0);
            if pending & (1 << (signal.as_raw() - 1)) == 0 { Err(line) } else { Ok(()) }
        });
    }

    /// What the kernel calls it: `/proc/<pid>/comm`; empty once it is gone.
    pub fn name(&self) -> String {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        name.trim_end().to_owned()
    }

    /// The kernel's function it sleeps in: `/proc/<pid>/wchan`; `0` or empty where it runs or is gone.
    pub fn sleeps_in(&self) -> String {
        fs::read_to_string(format!("/proc/{}/wchan", self.pid)).unwrap_or_default()
    }

    /// How often it has gone to sleep by itself: `voluntary_ctxt_switches` of `/proc/<pid>/status`.
    #[track_caller]
    pub fn times_asleep(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let times = line.and_then(|line| line.trim().parse().ok());
        times.unwrap_or_else(|| panic!("{self:?} is gone"))
    }

    /// Its state: field 3 of `/proc/<pid>/stat`; `X` once it is gone.
    pub fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start().to_owned()).unwrap_or_default();
        after_name.chars().next().unwrap_or('X')
    }
}

/// What was found.
#[derive(Default)]
pub struct Leaks {
    cgroups: Vec<PathBuf>,
    mounts: Vec<String>,
    processes: Vec<Process>,
}

impl Footprint {
    /// All that carries this sandbox's name.
    pub fn of(sandbox: &Sandbox) -> Footprint {
        Footprint { folder: format!("{}/", sandbox.dir().display()), cgroup_name: format!("{}-", sandbox.name()) }
    }

    /// All that carries the name of any sandbox that begins like this.
    pub fn of_all(prefix: &str) -> Footprint {
        Footprint { folder: format!("/{prefix}"), cgroup_name: prefix.to_owned() }
    }

    /// What is there now.
    pub fn look(&self) -> Leaks {
        Leaks { cgroups: self.cgroups(), mounts: self.mounts(), processes: self.processes() }
    }

    /// Waits until nothing is left.
    #[track_caller]
    pub fn wait_until_gone(&self) {
        until("every cgroup, mount and process of the test to be gone", || {
            let leaks = self.look();
            if leaks.is_empty() { Ok(()) } else { Err(leaks) }
        });
    }

    /// The cgroups, in every hierarchy, parents first.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect_cgroups(Path::new("/sys/fs/cgroup"), &self.cgroup_name, false, &mut found);
        found
    }

    /// The processes, daemons included.
    pub fn processes(&self) -> Vec<Process> {
        let ours =
            |process: &Process| process.cmdline.contains(&self.folder) || process.cgroup.contains(&self.cgroup_name);
        all_processes().into_iter().filter(ours).collect()
    }

    /// The process whose command line begins with `command`, once it is there: how a test finds a
    /// payload from the host's side.
    #[track_caller]
    pub fn process(&self, command: &str) -> Process {
        until(format!("a process {command:?}"), || {
            let all = self.processes();
            all.iter().find(|process| process.cmdline.starts_with(command)).cloned().ok_or(all)
        })
    }

    /// Lines of any process's mountinfo that speak of the test's folder.
    fn mounts(&self) -> Vec<String> {
        let mut found = Vec::new();
        for pid in all_pids() {
            let mountinfo = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            let ours = mountinfo.lines().filter(|line| line.contains(&self.folder));
            found.extend(ours.map(|line| format!("pid {pid}: {line}")));
        }
        found
    }

    /// After a failed test: ends and removes what is left, so that the next one starts clean. Never panics.
    pub fn remove(&self) {
        let removed = eventually(|| {
            for process in self.processes() {
                end(&process);
            }
            // Children first, again and again: a cgroup is busy for a while after its last process.
            for cgroup in self.cgroups().iter().rev() {
                let _ = fs::remove_dir(cgroup);
            }
            let left = self.look();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        if let Err(left) = removed {
            eprintln!("could not be removed after the failed test:\n{left:?}");
        }
    }
}

/// SIGKILL to it.
pub fn end(process: &Process) {
    if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
        // ESRCH: it was faster.
        let _ = kill_process(pid, Signal::KILL);
    }
}

impl Leaks {
    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.cgroups.is_empty() && self.mounts.is_empty() && self.processes.is_empty()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.pid, self.cmdline)
    }
}

impl fmt::Debug for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for cgroup in &self.cgroups {
            writeln!(f, "  cgroup  {}", cgroup.display())?;
        }
        for mount in &self.mounts {
            writeln!(f, "  mount   {mount}")?;
        }
        for process in &self.processes {
            writeln!(f, "  process {process:?}")?;
        }
        Ok(())
    }
}

/// Every process the machine has, but those that ended while we looked.
fn all_processes() -> Vec<Process> {
    all_pids().into_iter().filter_map(process).collect()
}

fn process(pid: u32) -> Option<Process> {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ").trim_end().to_owned();
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    Some(Process { pid, cmdline, cgroup })
}

fn all_pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Below a folder that carries the name everything is ours, whatever its name.
fn collect_cgroups(dir: &Path, name: &str, ours: bool, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for folder in folders {
        let ours = ours || folder.file_name().to_string_lossy().contains(name);
        if ours {
            found.push(folder.path());
        }
        collect_cgroups(&folder.path(), name, ours, found);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::sandbox::is_root;

    #[test]
    fn nothing_is_found_where_nothing_was_left() {
        assert!(Footprint::of(&Sandbox::new()).look().is_empty());
    }

    #[test]
    fn a_cgroup_that_was_left_is_found_in_any_hierarchy_and_removed() {
        if !is_root() {
            return;
        }
        let sandbox = Sandbox::new();
        let footprint = Footprint::of(&sandbox);
        let root = cgroup_hierarchy().join(format!("{}-node0", sandbox.name()));
        fs::create_dir_all(root.join("t1-cont")).expect("make a cgroup");
        assert_eq!(footprint.cgroups(), [root.clone(), root.join("t1-cont")]);
        footprint.remove();
        assert!(footprint.look().is_empty());
    }

    /// Any hierarchy in which a cgroup can be made: the mount itself on v2, a folder of it on v1.
    fn cgroup_hierarchy() -> PathBuf {
        let mount = PathBuf::from("/sys/fs/cgroup");
        let hierarchies = ["unified", "pids", "memory"].map(|name| mount.join(name));
        hierarchies.into_iter().find(|hierarchy| hierarchy.is_dir()).unwrap_or(mount)
    }

    #[test]
    fn a_process_that_was_left_is_found_and_ended() {
        let sandbox = Sandbox::new();
        let footprint = Footprint::of(&sandbox);
        let named = sandbox.dir().join("x");
        let mut left = Command::new("/bin/sh")
            .args(["-c", "read line", "sh"])
            .arg(named)
            .stdin(Stdio::piped())
            .spawn()
            .expect("spawn");
        assert_eq!(footprint.process("/bin/sh").pid, left.id());
        end(&footprint.processes()[0]);
        assert!(!left.wait().expect("wait").success());
        footprint.wait_until_gone();
    }

    #[test]
    fn a_mount_that_was_left_is_found() {
        if !is_root() {
            return;
        }
        let sandbox = Sandbox::new();
        let folder = sandbox.folder("mounted");
        let run = |command: &str, args: &[&str]| {
            let status = Command::new(command).args(args).arg(&folder).status().expect("run");
            assert!(status.success(), "{command}: {status}");
        };
        run("mount", &["-t", "tmpfs", "none"]);
        let found = Footprint::of(&sandbox).look();
        run("umount", &[]);
        assert!(!found.mounts.is_empty());
    }
}
