//! Many containers through one supervisor, one after the other, and what of it stays in memory, in files and in the kernel.
//!
//! A daemon that loses a descriptor a task, or a kernel that keeps a cgroup a task, is well for an hour and dead in a
//! week: what is looked at here must be flat, however many tasks there were.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cluster::{Cluster, Plan};
use crate::job::{Job, job_with};
use crate::node::{NodePlan, cgroup_root};
use crate::sandbox::Sandbox;
use crate::wait::until;

/// Jobs submitted at once.
const BATCH: u64 = 250;
/// The first of so many parts is for warming up: pools fill, and the allocator finds its size.
const PARTS: usize = 4;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    /// What it is.
    pub name: &'static str,
    /// How much it may wander without being a leak: far less than one for each container.
    pub slack: u64,
}

/// All that is looked at, in the order of [`Sample::values`].
pub const QUANTITIES: [Quantity; 7] = [
    Quantity { name: "supervisor KiB", slack: 256 },
    Quantity { name: "supervisor files", slack: 8 },
    Quantity { name: "master KiB", slack: 1024 },
    Quantity { name: "cgroups", slack: 32 },
    Quantity { name: "dying cgroups", slack: 128 },
    Quantity { name: "container folders", slack: 300 },
    Quantity { name: "journal KiB", slack: 64 },
];

/// A look at everything after so many containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// How many there had been.
    pub containers: u64,
    /// One for each of [`QUANTITIES`].
    pub values: [u64; QUANTITIES.len()],
}

/// A quantity that grew with the number of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// Which.
    pub name: &'static str,
    /// The most it was once warm, until half of the containers had run.
    pub before: u64,
    /// The least it was towards the end.
    pub after: u64,
}

/// What has grown: at its least towards the end it was more than at its most before. What goes up and down is no growth.
pub fn growth(samples: &[Sample]) -> Vec<Growth> {
    let part = samples.len() / PARTS;
    let (warm, late) = (&samples[part..(2 * part).max(part + 1)], &samples[samples.len() - part.max(1)..]);
    let grown = QUANTITIES.iter().enumerate().filter_map(|(index, quantity)| {
        let before = warm.iter().map(|sample| sample.values[index]).max()?;
        let after = late.iter().map(|sample| sample.values[index]).min()?;
        (after > before + quantity.slack).then_some(Growth { name: quantity.name, before, after })
    });
    grown.collect()
}

/// One master and one node that work through containers.
#[derive(Debug)]
pub struct Soak {
    cluster: Cluster,
    done: u64,
}

impl Soak {
    /// Starts them with everything below `folder`, which should be on a disk: pages of a tmpfs are never reclaimed, and
    /// each holds the cgroup that wrote it.
    pub fn start(folder: &Path) -> Soak {
        let plan = Plan::of_nodes([NodePlan { cpu: 64, mem: 16384, ..NodePlan::default() }]);
        Soak { cluster: Cluster::start_in(Sandbox::below(folder), &plan), done: 0 }
    }

    /// Runs so many containers, and looks.
    pub fn run(&mut self, containers: u64) -> Sample {
        let mut left = containers;
        while left > 0 {
            let batch = left.min(BATCH);
            self.run_batch(batch);
            left -= batch;
        }
        self.done += containers;
        self.look()
    }

    /// Of all kinds: most end at once and say something, some write into their container, fail, or leave a child behind.
    fn run_batch(&self, jobs: u64) {
        let commands =
            ["echo done", "echo done", "dd if=/dev/zero of=x bs=64k count=4 2>/dev/null", "exit 3", "sleep 9 &"];
        let of = |number: u64| commands[usize::try_from(number).unwrap_or_default() % commands.len()];
        let jobs: Vec<Value> = (0..jobs)
            .map(|number| job_with(of(number), &[("resource.mem", json!(16)), ("name", json!("soak"))]))
            .collect();
        // One after the other, each with a deadline that starts when those before it have ended.
        for job in self.cluster.master.submit_all(&jobs) {
            until(format!("job {} to end", job.job_id), || {
                let job = &self.cluster.master.get(&format!("/job/details/{}?logs=0", job.job_id))["job"];
                if Job::from_json(job).is_final() { Ok(()) } else { Err(job["status"].clone()) }
            });
        }
    }

    fn look(&mut self) -> Sample {
        let root = cgroup_root(self.cluster.sandbox(), 0);
        let node = self.cluster.node();
        let journal = fs::metadata(node.state_dir().join("journal")).map_or(0, |metadata| metadata.len());
        let folders = node.container_folders().len() as u64;
        let (supervisor, files) = (node.daemon().resident_kib(), node.daemon().open_fds() as u64);
        let master = self.cluster.master.daemon().resident_kib();
        let groups = groups_of(&root);
        let values = [supervisor, files, master, groups.len() as u64, dying(&groups), folders, journal >> 10];
        Sample { containers: self.done, values }
    }

    /// Stops everything, and checks that nothing is left.
    pub fn finish(mut self) {
        self.cluster.finish();
    }
}

/// The node's cgroups, in every hierarchy.
fn groups_of(root: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(Path::new("/sys/fs/cgroup"), root, &mut found);
    found
}

fn collect(dir: &Path, root: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for folder in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = folder.path();
        if path.components().any(|part| part.as_os_str() == root) {
            found.push(path.clone());
        }
        collect(&path, root, found);
    }
}

/// Cgroups that are removed and not yet freed: below ours as version 2 counts them (cgroup.stat in
/// Documentation/admin-guide/cgroup-v2.rst), and of the whole machine's memory controller on version 1, where only the
/// kernel's sum tells (/proc/cgroups, cgroups(7)).
fn dying(groups: &[PathBuf]) -> u64 {
    let of_v2 = groups.iter().filter_map(|group| {
        let stat = fs::read_to_string(group.join("cgroup.stat")).ok()?;
        stat.lines().find_map(|line| line.strip_prefix("nr_dying_descendants ")?.parse::<u64>().ok())
    });
    of_v2.max().unwrap_or(0) + dying_of_v1_memory()
}

fn dying_of_v1_memory() -> u64 {
    let Ok(table) = fs::read_to_string("/proc/cgroups") else { return 0 };
    let memory = table.lines().find_map(|line| line.strip_prefix("memory\t"));
    let mut fields = memory.unwrap_or_default().split('\t').filter_map(|field| field.parse::<u64>().ok());
    let (hierarchy, all) = (fields.next().unwrap_or(0), fields.next().unwrap_or(0));
    let mount = Path::new("/sys/fs/cgroup/memory");
    // Hierarchy 0 is version 2's, which tells by itself.
    if hierarchy == 0 || !mount.is_dir() { 0 } else { all.saturating_sub(1 + count_below(mount)) }
}

fn count_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|folder| 1 + count_below(&folder.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: impl Fn(u64) -> u64) -> Vec<Sample> {
        (1..=20).map(|n| Sample { containers: n * 1000, values: [of(n), 12, 9000, 9, 0, 3, 40] }).collect()
    }

    #[test]
    fn what_grows_with_the_containers_is_found_and_a_warm_up_or_a_sawtooth_is_not() {
        assert_eq!(growth(&samples(|_| 4000)), []);
        assert_eq!(growth(&samples(|n| if n < 3 { 3000 } else { 5000 })), []);
        assert_eq!(growth(&samples(|n| 4000 + 900 * (n % 3))), []);
        let grown = growth(&samples(|n| 4000 + 100 * n));
        assert_eq!(grown, [Growth { name: "supervisor KiB", before: 5000, after: 5600 }]);
    }
}
