//! What the machine has that we may use: CPUs, memory, descriptors. Read once, at start, when the number of descriptors
//! is also raised to all we may have.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nix::sched::{CpuSet as Affinity, sched_getaffinity};
use nix::unistd::Pid;
use wire::{CpuSet, proc_text};

/// What stays for the kernel and the daemons: a tenth, and never less than this, in MiB.
const KEPT_AT_LEAST: u64 = 256;

/// The CPUs this process may run on (sched_getaffinity(2)), which its cpuset cgroup bounds.
pub fn cpus() -> Option<CpuSet> {
    let Ok(affinity) = sched_getaffinity(Pid::from_raw(0)) else { return listed_cpus() };
    let may_use = |cpu: &usize| affinity.is_set(*cpu).unwrap_or(false);
    CpuSet::new((0..Affinity::count()).filter(may_use).filter_map(|cpu| u16::try_from(cpu).ok()))
}

/// The same by the kernel's files. A machine that could have more CPUs than nix's set has bits, 1024, refuses it (`EINVAL`),
/// however few there are.
fn listed_cpus() -> Option<CpuSet> {
    let status = proc_text::read("/proc/self/status").ok()?;
    allowed_and_online(&status, &proc_text::read("/sys/devices/system/cpu/online").ok()?)
}

/// Those of `Cpus_allowed_list` of proc_pid_status(5) that are there: without a cpuset it has all that could be plugged in.
fn allowed_and_online(status: &str, online: &str) -> Option<CpuSet> {
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let (allowed, online): (CpuSet, CpuSet) = (allowed.trim().parse().ok()?, online.trim().parse().ok()?);
    let online: BTreeSet<u16> = online.iter().collect();
    CpuSet::new(allowed.iter().filter(|cpu| online.contains(cpu)))
}

/// How many MiB of memory may be given to tasks.
pub fn memory_mib() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let limit =
        fs::read_to_string("/proc/self/cgroup").ok().and_then(|own| own_limit(&own, Path::new("/sys/fs/cgroup")));
    Some(for_tasks(total_mib(&meminfo)?, limit.map(|bytes| bytes >> 20)))
}

/// Raises the number of descriptors to all we may have, and tells how many that are. Each living task takes two.
pub fn raise_descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(errno) => {
            log::warn!("cannot raise the number of descriptors: {errno}");
            limit.current.unwrap_or(u64::MAX)
        }
    }
}

/// `MemTotal` of /proc/meminfo, in MiB.
fn total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

fn for_tasks(total: u64, limit: Option<u64>) -> u64 {
    let total = limit.map_or(total, |limit| limit.min(total));
    total.saturating_sub((total / 10).max(KEPT_AT_LEAST))
}

/// The least limit on the way from our own cgroup up to what we see of the root, in bytes.
fn own_limit(own_cgroups: &str, mounted_at: &Path) -> Option<u64> {
    let limits = own_cgroups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        match controllers {
            "" => least(mounted_at, path, "memory.max"),
            list if list.split(',').any(|controller| controller == "memory") => {
                least(&mounted_at.join("memory"), path, "memory.limit_in_bytes")
            }
            _ => None,
        }
    });
    limits.min()
}

fn least(hierarchy: &Path, cgroup: &str, file: &str) -> Option<u64> {
    let own = hierarchy.join(cgroup.trim_start_matches('/'));
    let up = own.ancestors().take_while(|folder| folder.starts_with(hierarchy));
    // "max", or no such file in the root: no limit there.
    up.filter_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_tenth_is_kept_but_never_less_than_256_mib() {
        assert_eq!(for_tasks(10_000, None), 9_000);
        assert_eq!(for_tasks(1_000, None), 744);
        assert_eq!(for_tasks(100, None), 0);
        assert_eq!(for_tasks(10_000, Some(2_000)), 1_744);
        assert_eq!(for_tasks(10_000, Some(u64::MAX >> 20)), 9_000);
    }

    #[test]
    fn memory_is_read_in_mib() {
        assert_eq!(total_mib("MemTotal:        4019016 kB\nMemFree: 1 kB\n"), Some(3924));
        assert_eq!(total_mib("nothing"), None);
    }

    #[test]
    fn the_least_limit_above_us_counts_in_v1_and_v2() {
        let scratch = Scratch::new("machine");
        let root = scratch.path();
        fs::create_dir_all(root.join("memory/a/b")).unwrap();
        fs::write(root.join("memory/a/memory.limit_in_bytes"), "1000\n").unwrap();
        fs::write(root.join("memory/a/b/memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(own_limit("4:memory:/a/b\n1:cpu:/\n", root), Some(1000));
        fs::create_dir_all(root.join("c")).unwrap();
        fs::write(root.join("c/memory.max"), "max\n").unwrap();
        assert_eq!(own_limit("0::/c\n", root), None);
        fs::write(root.join("c/memory.max"), "500\n").unwrap();
        assert_eq!(own_limit("0::/c\n4:memory:/a/b\n", root), Some(500));
    }

    #[test]
    fn all_descriptors_we_may_have_are_ours() {
        let all = raise_descriptors();
        assert_eq!(raise_descriptors(), all);
        assert!(all >= 64);
    }

    #[test]
    fn cpus_are_read_from_the_kernels_lists_beyond_1024_too_and_only_those_that_are_there() {
        let listed = |allowed: &str, online: &str| {
            let status = format!("Name:\tcpus\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\nMems_allowed:\t1\n");
            allowed_and_online(&status, online).map(|cpus| cpus.to_string())
        };
        assert_eq!(listed("0-1", "0-1\n").as_deref(), Some("0-1"));
        assert_eq!(listed("0-2047", "0-1279\n").as_deref(), Some("0-1279"));
        assert_eq!(listed("2,1500-1501", "0-3,1501-1600\n").as_deref(), Some("2,1501"));
        assert_eq!(listed("5", "0-3\n"), None);
        assert_eq!(listed("", "0-3\n"), None);
        assert_eq!(allowed_and_online("Name:\tcpus\n", "0-3\n"), None);
    }

    #[test]
    fn this_machine_has_a_cpu_and_memory() {
        assert!(cpus().unwrap().count() >= 1);
        assert_eq!(listed_cpus(), cpus(), "two ways to know the same");
        assert!(memory_mib().is_some());
    }
}
