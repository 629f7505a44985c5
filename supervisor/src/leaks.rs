//! What of ours nobody owns: cgroups, container folders, processes and mounts that no task and no foreground run stands
//! behind. Reads and removes nothing; a supervisor sweeps what it finds at its start (`adopt`).
//!
//! Two ask. `berth-supervisor doctor --leaks` looks from outside, by the journal, beside a supervisor or without one; it
//! takes no lock, not even for a moment, since a launch would fail of that. The supervisor's own sweeper counts by what the
//! supervisor knows, for `GET /resource`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use wire::{ContainerId, TaskId, proc_text};

use crate::adopt::FOREGROUND_PREFIX;
use crate::cgroup::{self, Bases, CgroupError};
use crate::history::History;
use crate::journal::{self, JournalError};
use crate::{launch, unions};

/// A task may be between two steps when it is looked at: what it is then taken for, it is not this much later.
const LOOK_AGAIN: Duration = Duration::from_millis(700);
/// How often is looked. A sweep of many folders on a busy disk takes its time.
const LOOKS: u32 = 4;

/// One thing without an owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leak {
    /// What it is.
    pub what: What,
    /// The container's name, or what else it is known by.
    pub name: String,
    /// Where it is: a path; for a process its pid and command.
    pub place: String,
}

/// The kinds of things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A cgroup.
    Cgroup,
    /// A container's folder, or one that something was tried in.
    Folder,
    /// A mount.
    Mount,
    /// A process.
    Process,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Cgroup => "cgroup",
            What::Folder => "folder",
            What::Mount => "mount",
            What::Process => "process",
        };
        write!(f, "{what:8} {:16} {}", self.name, self.place)
    }
}

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum LeaksError {
    /// The journal tells who owns what.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The hierarchies.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A folder of ours.
    #[error("cannot read {}: {cause}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

// ---- who owns what --------------------------------------------------------------------------------------------------

/// Whom a container's name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Task(TaskId),
    /// `berth-supervisor run` with this pid.
    Foreground(u32),
    Nobody,
}

fn owner_of(name: &str) -> Owner {
    if let Ok(ContainerId(task)) = name.parse() {
        return Owner::Task(task);
    }
    let pid = name.strip_prefix(FOREGROUND_PREFIX).and_then(|rest| rest.strip_suffix("-cont")?.parse().ok());
    pid.map_or(Owner::Nobody, Owner::Foreground)
}

/// How many of these names have no owner. `is_known`: whether a task is remembered, or is not to be judged yet.
pub fn count(names: &[String], is_known: impl Fn(TaskId) -> bool, is_leaving: impl Fn(&str) -> bool) -> u64 {
    let owned = |name: &str| match owner_of(name) {
        Owner::Task(task) => is_known(task),
        Owner::Foreground(pid) => lives(pid),
        Owner::Nobody => false,
    };
    names.iter().filter(|name| !owned(name) && !is_leaving(name)).count() as u64
}

fn lives(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// What the journal says: the tasks that are remembered, each with its init's pid if it has one.
#[derive(Debug, Default)]
struct Known(BTreeMap<TaskId, Option<i32>>);

impl Known {
    fn of(history: &History) -> Known {
        let unfinished = history.unfinished.iter().map(|(task, it)| (*task, it.launched.map(|init| init.pid)));
        Known(unfinished.chain(history.ended.keys().map(|task| (*task, None))).collect())
    }

    fn owns(&self, name: &str) -> bool {
        match owner_of(name) {
            Owner::Task(task) => self.0.contains_key(&task),
            Owner::Foreground(pid) => lives(pid),
            Owner::Nobody => false,
        }
    }

    /// Whether process `pid` is rightly the init of the container. One that was just cloned is not written down yet.
    fn owns_init(&self, name: &str, pid: u32) -> bool {
        match owner_of(name) {
            Owner::Task(task) => match self.0.get(&task) {
                Some(Some(known)) => i64::from(*known) == i64::from(pid),
                Some(None) => true,
                None => false,
            },
            // It lives, and so it is its own owner.
            Owner::Foreground(_) => true,
            Owner::Nobody => false,
        }
    }
}

// ---- looking from outside -------------------------------------------------------------------------------------------

/// Everything of this state dir and these cgroups that has no owner. Looks again as long as there is something: a task
/// that was in between has an owner, or is gone, a moment later.
pub fn find(state_dir: &Path, cgroup_root: &str) -> Result<Vec<Leak>, LeaksError> {
    let mut leaks = look(state_dir, cgroup_root)?;
    for _ in 1..LOOKS {
        if leaks.is_empty() {
            break;
        }
        // A foreground program has nothing else to do meanwhile.
        std::thread::park_timeout(LOOK_AGAIN);
        leaks = leaks.intersection(&look(state_dir, cgroup_root)?).cloned().collect();
    }
    Ok(leaks.into_iter().collect())
}

fn look(state_dir: &Path, cgroup_root: &str) -> Result<BTreeSet<Leak>, LeaksError> {
    let state_dir = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let folders = names_in(&state_dir.join("cont"))?;
    let bases = cgroup::bases_here(cgroup_root)?;
    let mut groups = groups_in(&bases)?;
    // Read last: whoever made one of these things was written down before.
    let history = History::replay(journal::read(&state_dir.join("journal"))?);
    let boot = launch::boot_id().ok();
    for era in history.eras.iter().filter(|era| Some(&era.boot) == boot.as_ref()) {
        groups.extend(groups_in(&era.bases)?);
    }
    let known = Known::of(&history);
    let mut leaks: BTreeSet<Leak> = trials_in(&state_dir)?.into_iter().collect();
    let folder = |name: &String| leak(What::Folder, name, state_dir.join("cont").join(name).display());
    leaks.extend(folders.iter().filter(|name| !known.owns(name)).map(folder));
    for (name, group) in groups.iter().filter(|(name, _)| !known.owns(name)) {
        leaks.insert(leak(What::Cgroup, name, group.display()));
        leaks.extend(members(group).into_iter().map(|pid| leak(What::Process, name, in_words(pid))));
    }
    leaks.extend(processes_and_mounts(&state_dir.join("cont"), &known));
    Ok(leaks)
}

fn leak(what: What, name: &str, place: impl fmt::Display) -> Leak {
    Leak { what, name: name.to_owned(), place: place.to_string() }
}

/// The names in a folder; one that is not there holds none.
fn names_in(path: &Path) -> Result<Vec<String>, LeaksError> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(cause) => Err(LeaksError::Read { path: path.to_owned(), cause }),
    }
}

/// The containers' groups below these bases, and below those of foreground runs beside them.
fn groups_in(bases: &Bases) -> Result<BTreeSet<(String, PathBuf)>, LeaksError> {
    let mut groups = BTreeSet::new();
    for base in bases.folders() {
        let mut of_runs = base.clone().into_os_string();
        of_runs.push("-run");
        for base in [base.clone(), of_runs.into()] {
            let group = |name: String| (name.clone(), base.join(name));
            groups.extend(names_in(&base)?.into_iter().map(group).filter(|(_, group)| group.is_dir()));
        }
    }
    Ok(groups)
}

fn members(group: &Path) -> Vec<u32> {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.lines().filter_map(|pid| pid.parse().ok()).collect()
}

fn in_words(pid: u32) -> String {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    format!("{pid} {}", words.join(" ").trim_end().escape_debug())
}

/// Folders in which a union was tried by somebody who is dead.
fn trials_in(state_dir: &Path) -> Result<Vec<Leak>, LeaksError> {
    let names = names_in(state_dir)?;
    let dead = names.iter().filter(|name| unions::trial_of(name).is_some_and(|pid| !lives(pid)));
    Ok(dead.map(|name| leak(What::Folder, name, state_dir.join(name).display())).collect())
}

/// Inits that no task has launched, and mounts below the containers' folders in any namespace but their own.
fn processes_and_mounts(containers: &Path, known: &Known) -> Vec<Leak> {
    let mut leaks = Vec::new();
    let mut namespaces: BTreeMap<u64, u32> = BTreeMap::new();
    let mut owned = BTreeSet::new();
    for pid in pids() {
        // Gone by now, if it cannot be told.
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/mnt")) else { continue };
        if let Some(container) = init_of(pid, containers) {
            if known.owns_init(&container, pid) {
                owned.insert(namespace.ino());
            } else {
                leaks.push(leak(What::Process, &container, in_words(pid)));
            }
        }
        namespaces.entry(namespace.ino()).or_insert(pid);
    }
    // An init that is building its container has mounted it where it stands.
    for (_, pid) in namespaces.into_iter().filter(|(namespace, _)| !owned.contains(namespace)) {
        let mountinfo = proc_text::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let ours = mounts_below(containers, &mountinfo).into_iter().filter(|(name, _)| !known.owns(name));
        leaks.extend(ours.map(|(name, place)| leak(What::Mount, &name, format!("{place} seen by process {pid}"))));
    }
    leaks
}

/// The inits of a container, whoever launched them.
pub fn inits_of(container: &str, containers: &Path) -> Vec<i32> {
    let is_its = |pid: &u32| init_of(*pid, containers).is_some_and(|name| name == container);
    pids().into_iter().filter(is_its).map(u32::cast_signed).collect()
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The container whose init this process is: it holds that container's end record open as long as it lives.
fn init_of(pid: u32, containers: &Path) -> Option<String> {
    let comm = proc_text::read(format!("/proc/{pid}/comm")).ok()?;
    if comm.trim_end() != "berth-init" {
        return None;
    }
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    fds.flatten().find_map(|fd| container_of_record(&fs::read_link(fd.path()).ok()?, containers))
}

/// `t7-cont` of `<containers>/t7-cont/end`, also if that has been removed.
fn container_of_record(record: &Path, containers: &Path) -> Option<String> {
    let mut parts = record.strip_prefix(containers).ok()?.iter();
    let (container, file) = (parts.next()?.to_str()?, parts.next()?.to_str()?);
    (launch::record::NAME == file.trim_end_matches(" (deleted)")).then(|| container.to_owned())
}

/// The mounts below the containers' folders, each with its container, from the text of a mountinfo file (proc(5)).
fn mounts_below(containers: &Path, mountinfo: &str) -> Vec<(String, String)> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4).map(proc_text::unescape));
    let below = points.filter_map(|point| {
        let container = Path::new(&point).strip_prefix(containers).ok()?.iter().next()?.to_str()?.to_owned();
        Some((container, point))
    });
    below.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_name_leads_to_its_owner_or_to_nobody() {
        assert_eq!(owner_of("t7-cont"), Owner::Task(TaskId(7)));
        assert_eq!(owner_of("run-12-cont"), Owner::Foreground(12));
        for name in ["t7-cont-left-1", "run-x-cont", "anything", ""] {
            assert_eq!(owner_of(name), Owner::Nobody, "{name}");
        }
    }

    #[test]
    fn what_is_known_or_on_its_way_out_is_not_counted() {
        let own = format!("run-{}-cont", std::process::id());
        let names = ["t1-cont", "t2-cont", "t3-cont-left-1", "stranger", &own].map(str::to_owned);
        assert_eq!(count(&names, |task| task == TaskId(1), |name| name == "t3-cont-left-1"), 2);
        assert_eq!(count(&names, |_| true, |_| true), 0);
    }

    #[test]
    fn an_init_is_owned_by_the_task_that_launched_it_and_by_no_other() {
        let known = Known(BTreeMap::from([(TaskId(1), Some(100)), (TaskId(2), None)]));
        assert!(
            known.owns_init("t1-cont", 100) && known.owns_init("t2-cont", 200),
            "the second is just being launched"
        );
        assert!(!known.owns_init("t1-cont", 101) && !known.owns_init("t3-cont", 100) && !known.owns_init("x", 1));
    }

    #[test]
    fn an_end_record_names_the_container_and_other_files_do_not() {
        let container = |path: &str| container_of_record(Path::new(path), Path::new("/s/cont"));
        assert_eq!(container("/s/cont/t7-cont/end").as_deref(), Some("t7-cont"));
        assert_eq!(container("/s/cont/t7-cont/end (deleted)").as_deref(), Some("t7-cont"));
        assert_eq!((container("/s/cont/t7-cont/config"), container("/other/t7-cont/end")), (None, None));
    }

    #[test]
    fn mounts_below_the_containers_are_found_and_others_are_not() {
        let mountinfo = "30 1 0:5 / / rw - ext4 /dev/vda rw\n\
            31 30 0:6 / /a\\040s/cont/t7-cont/rootfs rw - overlay overlay rw\n\
            32 30 0:7 / /a\\040s/contra/t8-cont rw - tmpfs none rw\n";
        let found = mounts_below(Path::new("/a s/cont"), mountinfo);
        assert_eq!(found, [("t7-cont".to_owned(), "/a s/cont/t7-cont/rootfs".to_owned())]);
    }

    #[test]
    fn folders_and_trials_without_an_owner_are_found_by_the_journal() {
        let scratch = Scratch::new("leaks");
        let root = format!("berth-test-leaks-{}", std::process::id());
        for folder in ["cont/t9-cont", "cont/stranger", ".berth-union-4294967295"] {
            fs::create_dir_all(scratch.join(folder)).unwrap();
        }
        let own = format!("cont/run-{}-cont", std::process::id());
        fs::create_dir_all(scratch.join(own)).unwrap();
        let found = find(scratch.path(), &root).unwrap();
        let names: Vec<&str> = found.iter().map(|leak| leak.name.as_str()).collect();
        assert_eq!(names, [".berth-union-4294967295", "stranger", "t9-cont"], "{found:#?}");
        assert!(found.iter().all(|leak| leak.what == What::Folder));
        assert_eq!(find(&scratch.join("nowhere"), &root).unwrap(), []);
    }
}
