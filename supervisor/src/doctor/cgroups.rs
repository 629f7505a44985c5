//! Control groups: which controller is in which hierarchy, and what cannot be limited without it.

use std::path::{Path, PathBuf};

use cgroups_rs::Controllers;
use cgroups_rs::hierarchies::V1;

use super::kernel::{RELEASE_FILE, Release};
use super::{Finding, read};

/// Since when one write kills a whole group (cgroup.kill).
const KILLS_SINCE: Release = Release(5, 14);

pub(super) fn examine() -> Vec<Finding> {
    let kills = Release::parse(&read(RELEASE_FILE)).is_some_and(|release| release >= KILLS_SINCE);
    judge(&gather(), has_swap(&read("/proc/swaps")), kills)
}

/// What is mounted where.
#[derive(Debug, Default)]
struct Hierarchies {
    /// Controllers of v1 hierarchies, each with its mount.
    v1: Vec<(&'static str, PathBuf)>,
    /// The v2 hierarchy's mount.
    v2: Option<PathBuf>,
    /// The controllers our own group has in it, or would be given.
    v2_controllers: Vec<String>,
    /// Whether the memory controller counts swap.
    counts_swap: bool,
    /// Hierarchies that cannot be written.
    read_only: Vec<PathBuf>,
}

fn gather() -> Hierarchies {
    let v1 = V1::new();
    let wanted = [
        ("memory", Controllers::Mem),
        ("cpu", Controllers::Cpu),
        ("cpuset", Controllers::CpuSet),
        ("pids", Controllers::Pids),
        ("devices", Controllers::Devices),
        ("freezer", Controllers::Freezer),
    ];
    let v1 = wanted.into_iter().filter_map(|(name, kind)| Some((name, v1.get_mount_point(kind)?))).collect();
    // cgroups-rs looks for v2 at /sys/fs/cgroup alone, where a hybrid host does not have it.
    let v2 = v2_mount(&read("/proc/self/mountinfo"));
    let own = v2.as_deref().map(|mount| own_group(mount, &read("/proc/self/cgroup")));
    let offered = v2.as_deref().zip(own).map(|(mount, own)| offered(mount, &own)).unwrap_or_default();
    let mut found = Hierarchies { v1, v2, v2_controllers: offered, ..Hierarchies::default() };
    found.counts_swap = counts_swap(&found);
    let mounts = found.v1.iter().map(|(_, mount)| mount).chain(&found.v2);
    found.read_only = mounts.filter(|mount| !is_writable(mount)).cloned().collect();
    found
}

fn is_writable(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok()
}

/// v1 shows the file in every group if swap is counted; v2 in every group but the root's.
fn counts_swap(found: &Hierarchies) -> bool {
    let v1 = found.v1.iter().find(|(name, _)| *name == "memory");
    match (v1, &found.v2) {
        (Some((_, mount)), _) => mount.join("memory.memsw.limit_in_bytes").exists(),
        (None, Some(mount)) => {
            let groups = std::fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
            groups.filter(|group| group.join("memory.max").exists()).all(|group| group.join("memory.swap.max").exists())
        }
        (None, None) => false,
    }
}

/// Where the v2 hierarchy is mounted, from the text of /proc/self/mountinfo (proc(5)).
fn v2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_v2 = after.split(' ').next() == Some("cgroup2");
        is_v2.then(|| before.split(' ').nth(4)).flatten().map(PathBuf::from)
    })
}

/// Our own group in the v2 hierarchy, from the text of /proc/self/cgroup (cgroups(7)).
fn own_group(mount: &Path, own: &str) -> PathBuf {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let own = mount.join(path);
    // A mount may show a part of the tree only; then its top is as near as we can see.
    if own.exists() { own } else { mount.to_owned() }
}

/// The controllers our own group has or would be given: each group on the way from the mount's top gives what it has,
/// unless there are processes in it (cgroup-v2, "No Internal Process Constraint").
fn offered(mount: &Path, own: &Path) -> Vec<String> {
    let mut between = own.ancestors().skip(1).take_while(|folder| folder.starts_with(mount) && *folder != mount);
    let blocked = between.any(|folder| !read(&folder.join("cgroup.procs").to_string_lossy()).is_empty());
    let giver = if blocked { own } else { mount };
    read(&giver.join("cgroup.controllers").to_string_lossy()).split_whitespace().map(str::to_owned).collect()
}

/// From the text of /proc/swaps (proc(5)): a heading, then a line each.
fn has_swap(swaps: &str) -> bool {
    swaps.lines().count() > 1
}

fn judge(found: &Hierarchies, has_swap: bool, kills: bool) -> Vec<Finding> {
    let mut findings = vec![layout(found)];
    findings.extend([
        controller(
            found,
            "memory",
            "limits memory",
            Need::Cannot,
            "memory limits cannot be enforced; boot with cgroup_enable=memory, or mount it",
        ),
        controller(
            found,
            "cpu",
            "shares and limits CPU time",
            Need::Less,
            "an amount of CPU is counted but not enforced",
        ),
        controller(found, "cpuset", "pins tasks to CPUs", Need::Less, "a job that names CPUs runs on any"),
        controller(found, "pids", "limits processes", Need::Less, "a fork bomb is stopped only by its memory limit"),
        devices(found),
        kill(found, kills),
    ]);
    // Without a memory controller there is nothing it could count towards.
    findings.extend(version(found, "memory").map(|_| swap(found, has_swap)));
    findings
}

fn layout(found: &Hierarchies) -> Finding {
    const NAME: &str = "cgroups";
    if let Some(mount) = found.read_only.first() {
        return Finding::missing(
            NAME,
            format!("{} cannot be written; run as root, with cgroups mounted read-write", mount.display()),
        );
    }
    match (found.v1.is_empty(), &found.v2) {
        (true, None) => Finding::missing(NAME, "none are mounted; try: mount -t cgroup2 none /sys/fs/cgroup"),
        (true, Some(mount)) => Finding::good(NAME, format!("v2 at {}", mount.display())),
        (false, None) => Finding::good(NAME, "v1"),
        (false, Some(mount)) => {
            Finding::good(NAME, format!("hybrid: v1 limits, v2 at {} kills and counts", mount.display()))
        }
    }
}

/// How much a controller is needed.
enum Need {
    /// Without it berth works with less.
    Less,
    /// Without it berth cannot keep its word.
    Cannot,
}

/// Which hierarchy has a controller, as berth chooses: v1 where it is mounted, else v2.
fn version(found: &Hierarchies, name: &str) -> Option<&'static str> {
    if found.v1.iter().any(|(mine, _)| *mine == name) {
        return Some("v1");
    }
    found.v2_controllers.iter().any(|mine| mine == name).then_some("v2")
}

fn controller(found: &Hierarchies, name: &'static str, does: &str, need: Need, without: &str) -> Finding {
    match (version(found, name), need) {
        (Some(version), _) => Finding::good(name, format!("{version} {does}")),
        (None, Need::Less) => Finding::degraded(name, format!("no {name} controller: {without}")),
        (None, Need::Cannot) => Finding::missing(name, format!("no {name} controller: {without}")),
    }
}

fn devices(found: &Hierarchies) -> Finding {
    match version(found, "devices") {
        Some(version) => Finding::good("devices", format!("{version} allows only the devices of a container's /dev")),
        None => {
            Finding::good("devices", "no controller, as with v2; containers have no device nodes and cannot make any")
        }
    }
}

fn kill(found: &Hierarchies, kills: bool) -> Finding {
    match (&found.v2, kills, version(found, "freezer")) {
        (Some(_), true, _) => Finding::good("kill", "cgroup.kill ends all of a task at once"),
        (_, _, Some(_)) => {
            Finding::good("kill", "the v1 freezer holds a task while its processes are killed one by one")
        }
        _ => Finding::degraded(
            "kill",
            "neither cgroup.kill (Linux 5.14) nor a v1 freezer: a task's end rests on its pid namespace",
        ),
    }
}

fn swap(found: &Hierarchies, has_swap: bool) -> Finding {
    match (found.counts_swap, has_swap) {
        (true, _) => Finding::good("swap", "counts towards a task's memory limit"),
        (false, false) => Finding::good("swap", "this machine has none, so none needs to be limited"),
        (false, true) => {
            Finding::degraded("swap", "it is not counted: a task may swap beyond its limit; boot with swapaccount=1")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::scratch::Scratch;

    fn v1(names: &[&'static str]) -> Hierarchies {
        let v1 = names.iter().map(|&name| (name, Path::new("/sys/fs/cgroup").join(name))).collect();
        Hierarchies { v1, counts_swap: true, ..Hierarchies::default() }
    }

    fn says(findings: &[Finding], name: &str) -> (State, String) {
        findings.iter().find(|finding| finding.name == name).map(|found| (found.state, found.says.clone())).unwrap()
    }

    #[test]
    fn a_hybrid_host_is_good_in_everything() {
        let mut found = v1(&["memory", "cpu", "cpuset", "pids", "devices", "freezer"]);
        found.v2 = Some("/sys/fs/cgroup/unified".into());
        let findings = judge(&found, true, true);
        assert!(findings.iter().all(|finding| finding.state == State::Good), "{findings:?}");
        assert!(says(&findings, "cgroups").1.starts_with("hybrid"));
        assert!(says(&findings, "memory").1.starts_with("v1"));
    }

    #[test]
    fn without_a_memory_controller_berth_cannot_work_and_without_the_others_it_works_with_less() {
        let found = Hierarchies { v2: Some("/sys/fs/cgroup".into()), ..Hierarchies::default() };
        let findings = judge(&found, false, true);
        assert_eq!(says(&findings, "memory").0, State::Missing);
        assert!(says(&findings, "memory").1.contains("memory limits cannot be enforced"));
        for name in ["cpu", "cpuset", "pids"] {
            assert_eq!(says(&findings, name).0, State::Degraded, "{name}");
        }
    }

    #[test]
    fn v2_offers_what_its_own_group_is_given() {
        let found = Hierarchies {
            v2: Some("/sys/fs/cgroup".into()),
            v2_controllers: vec!["memory".into(), "pids".into()],
            counts_swap: true,
            ..Hierarchies::default()
        };
        let findings = judge(&found, true, false);
        assert!(says(&findings, "memory").1.starts_with("v2"));
        assert_eq!(says(&findings, "cpu").0, State::Degraded);
        assert_eq!(says(&findings, "kill").0, State::Degraded);
    }

    #[test]
    fn what_a_group_in_between_cannot_give_is_not_counted_on() {
        let tree = Scratch::new("doctor-v2");
        tree.write("cgroup.controllers", "cpu memory\n");
        tree.write("slice/cgroup.procs", "");
        tree.write("slice/scope/cgroup.controllers", "memory\n");
        let own = tree.join("slice/scope");
        assert_eq!(offered(tree.path(), &own), ["cpu", "memory"]);
        assert_eq!(offered(tree.path(), tree.path()), ["cpu", "memory"]);
        tree.write("slice/cgroup.procs", "1\n");
        assert_eq!(offered(tree.path(), &own), ["memory"]);
    }

    #[test]
    fn uncounted_swap_matters_only_where_there_is_swap() {
        let mut found = v1(&["memory"]);
        found.counts_swap = false;
        assert_eq!(says(&judge(&found, true, true), "swap").0, State::Degraded);
        assert_eq!(says(&judge(&found, false, true), "swap").0, State::Good);
        assert!(!has_swap("Filename\tType\tSize\n"));
        assert!(has_swap("Filename\tType\tSize\n/dev/sda2 partition 1 0 -2\n"));
    }

    #[test]
    fn nothing_mounted_or_nothing_writable_is_said_first() {
        assert!(judge(&Hierarchies::default(), false, true)[0].says.contains("mount -t cgroup2"));
        let mut found = v1(&["memory"]);
        found.read_only = vec!["/sys/fs/cgroup/memory".into()];
        assert_eq!(judge(&found, false, true)[0].state, State::Missing);
    }

    #[test]
    fn the_v2_mount_is_found_wherever_it_is() {
        let hybrid = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw\n";
        assert_eq!(v2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(v2_mount("41 31 0:38 / /sys rw - sysfs sysfs rw\ntorn line"), None);
    }
}
