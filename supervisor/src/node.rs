//! What this node has and is: the totals it gives out, and what could never run on it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use wire::node::{NodeResource, Refusal, RefusalCode};
use wire::{BootId, CpuAmount, CpuSet, ImageId, InstanceId, JobSpec, NodeId};

use crate::task::Now;
use crate::{images, lease, packages};

/// With less than this free on its disk a node takes no task: its folders, its config and its end record have to fit.
const LEAST_FREE_BYTES: u64 = 4 << 20;
const LEAST_FREE_FILES: u64 = 256;

/// A share of a node: what a task takes, what is free, what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// CPU time.
    pub cpu: CpuAmount,
    /// Memory in MiB.
    pub mem_mib: u64,
}

impl Share {
    /// What a job takes. A pin counts as that many CPUs.
    pub fn of(spec: &JobSpec) -> Share {
        Share { cpu: spec.resource.cpu.amount(), mem_mib: spec.resource.mem }
    }

    /// Both together.
    pub fn plus(self, other: Share) -> Share {
        Share { cpu: [self.cpu, other.cpu].into_iter().sum(), mem_mib: self.mem_mib.saturating_add(other.mem_mib) }
    }

    /// What is left without `other`, never below nothing: totals may be smaller than at the last start.
    pub fn minus(self, other: Share) -> Share {
        Share { cpu: self.cpu.saturating_sub(other.cpu), mem_mib: self.mem_mib.saturating_sub(other.mem_mib) }
    }

    /// Whether it fits into `other`.
    pub fn fits_in(self, other: Share) -> bool {
        self.cpu <= other.cpu && self.mem_mib <= other.mem_mib
    }
}

/// This node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Born with its state dir.
    pub instance: InstanceId,
    /// This boot.
    pub boot: BootId,
    /// All it gives out.
    pub total: Share,
    /// The CPUs a job may pin to.
    pub cpus: CpuSet,
    /// Where its images are.
    pub image_dir: PathBuf,
    /// What was there when that could last be read.
    pub images: RefCell<Vec<ImageId>>,
    /// Where its containers are: mostly on the same disk.
    pub container_dir: PathBuf,
    /// Folders packages may come from.
    pub package_roots: Vec<PathBuf>,
    /// The kernel's release.
    pub kernel: String,
    /// `v1`, `hybrid` or `v2`.
    pub cgroups: String,
    /// `overlay` or `aufs`.
    pub union: String,
    /// Cgroups and container folders without an owner, when that was last counted; none at the start, which sweeps them.
    pub leaks: u64,
}

impl Node {
    /// Refuses what could never run here.
    pub fn check(&self, spec: &JobSpec) -> Result<(), Refusal> {
        let impossible = |field: &str, message: String| {
            Err(Refusal { code: RefusalCode::Impossible, message, field: Some(field.to_owned()) })
        };
        if let Some(missing) = spec.resource.cpu.pinned().and_then(|pinned| pinned.missing_from(&self.cpus)) {
            return impossible("resource.cpu", format!("this node has no CPU {missing}; it has {}", self.cpus));
        }
        let asked = Share::of(spec);
        if asked.cpu > self.total.cpu {
            return impossible(
                "resource.cpu",
                format!("{} CPUs are asked of a node with {}", asked.cpu, self.total.cpu),
            );
        }
        if asked.mem_mib > self.total.mem_mib {
            let (asked, total) = (asked.mem_mib, self.total.mem_mib);
            return impossible("resource.mem", format!("{asked} MiB are asked of a node with {total} MiB"));
        }
        if !images::exists(&self.image_dir, &spec.image_id) {
            return impossible("imageId", format!("there is no image {} on this node", spec.image_id));
        }
        packages::check(&self.package_roots, spec).or_else(|bad| impossible(&bad.field, bad.message))
    }

    /// Refuses any task while the disk under the containers is all but full. It would only fail at its launch, and a node
    /// on which tasks fail at once looks free: it would draw in one job after the other.
    pub fn check_disk(&self) -> Result<(), Refusal> {
        [&self.image_dir, &self.container_dir].into_iter().try_for_each(|folder| check_disk_of(folder))
    }

    /// The images there are. While the folder cannot be read, for want of a descriptor perhaps, those of before: a node that
    /// told of none would have jobs refused for good.
    fn images(&self) -> Vec<ImageId> {
        match images::list(&self.image_dir) {
            Ok(found) => *self.images.borrow_mut() = found,
            Err(error) => log::warn!("{error}; telling of the images that were there before"),
        }
        self.images.borrow().clone()
    }

    /// What `GET /resource` tells.
    pub fn resource(&self, free: Share, tasks: usize, closed: Option<String>, now: Now) -> NodeResource {
        NodeResource {
            cpu: free.cpu,
            mem: free.mem_mib,
            cpu_total: self.total.cpu,
            mem_total: self.total.mem_mib,
            cpus: self.cpus.clone(),
            node_id: self.id,
            instance: self.instance.clone(),
            boot_id: self.boot.clone(),
            uptime_ms: u64::try_from(now.since_boot.as_millis()).ok(),
            tasks: tasks as u64,
            load: load(),
            images: self.images(),
            package_roots: self.package_roots.iter().map(|root| root.display().to_string()).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: self.kernel.clone(),
            cgroups: self.cgroups.clone(),
            union: self.union.clone(),
            leaks: self.leaks,
            stamp: Some(lease::stamp(&self.boot, now.since_boot)),
            closed,
        }
    }
}

fn check_disk_of(folder: &Path) -> Result<(), Refusal> {
    // A disk that cannot be asked will say so at the launch.
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let (free_bytes, free_files) = (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_favail);
    // Some filesystems make inodes as they need them, and say that there are none at all.
    if free_bytes >= LEAST_FREE_BYTES && (disk.f_files == 0 || free_files >= LEAST_FREE_FILES) {
        return Ok(());
    }
    let message = format!(
        "the disk of this node is full: {} MiB and {free_files} files are free below {}",
        free_bytes >> 20,
        folder.display()
    );
    Err(Refusal::new(RefusalCode::NoRoom, message))
}

/// Load averages; a node without /proc has none to tell.
fn load() -> [f64; 3] {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut numbers = text.split_ascii_whitespace().map_while(|word| word.parse().ok());
    [(); 3].map(|()| numbers.next().unwrap_or_default())
}

/// The kernel's release (proc_sys_kernel(5)).
pub fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// A node with 2 CPUs, 1000 MiB and the image `busybox`.
    pub fn node(image_dir: &Path) -> Node {
        std::fs::create_dir_all(image_dir.join("busybox/bin")).unwrap();
        Node {
            id: NodeId(0),
            instance: InstanceId("0".repeat(32)),
            boot: BootId("b".into()),
            total: Share { cpu: CpuAmount::whole(2), mem_mib: 1000 },
            cpus: "0-1".parse().unwrap(),
            image_dir: image_dir.to_owned(),
            images: RefCell::default(),
            container_dir: image_dir.to_owned(),
            package_roots: vec!["/packages".into()],
            kernel: kernel(),
            cgroups: "hybrid".into(),
            union: "overlay".into(),
            leaks: 0,
        }
    }

    /// A job as its JSON's `resource`, `imageId` and `packagePath` say.
    pub fn spec(cpu: &str, mem: u64, image: &str, packages: &str) -> JobSpec {
        let json = format!(
            r#"{{"name":"a","resource":{{"cpu":{cpu},"mem":{mem}}},"commandLine":"true","packagePath":"{packages}","imageId":"{image}"}}"#
        );
        wire::json::from_slice(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_full_disk_takes_no_task_and_says_so() {
        let scratch = Scratch::new("disk");
        let mut node = node(scratch.path());
        assert_eq!(node.check_disk(), Ok(()));
        // A filesystem with nothing free, wherever this runs.
        node.image_dir = "/proc".into();
        let refusal = node.check_disk().unwrap_err();
        assert!(refusal.code == RefusalCode::NoRoom && refusal.message.contains("full"), "{}", refusal.message);
    }

    #[test]
    fn while_the_images_cannot_be_read_the_last_that_could_are_told() {
        let scratch = Scratch::new("images-unread");
        let (image_dir, away) = (scratch.join("img"), scratch.join("away"));
        let node = node(&image_dir);
        let told = || node.resource(Share::default(), 0, None, Now::read()).images;
        let busybox = told();
        assert_eq!(busybox.len(), 1);
        // What is no folder cannot be listed, whoever asks.
        std::fs::rename(&image_dir, &away).unwrap();
        std::fs::write(&image_dir, "").unwrap();
        assert_eq!(told(), busybox);
        std::fs::remove_file(&image_dir).unwrap();
        assert_eq!(told(), [], "a folder that is missing holds none");
    }

    #[test]
    fn what_could_never_run_here_is_refused_with_the_fields_name() {
        let scratch = Scratch::new("node");
        let node = node(scratch.path());
        let field = |spec: JobSpec| {
            let refusal = node.check(&spec).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::Impossible);
            refusal.field.unwrap()
        };
        assert_eq!(node.check(&spec("\"0,1\"", 1000, "busybox", "/packages/a")), Ok(()));
        assert_eq!(field(spec("\"1,2\"", 64, "busybox", "")), "resource.cpu");
        assert_eq!(field(spec("2.001", 64, "busybox", "")), "resource.cpu");
        assert_eq!(field(spec("1", 1001, "busybox", "")), "resource.mem");
        assert_eq!(field(spec("1", 64, "nosuch", "")), "imageId");
        assert_eq!(field(spec("1", 64, "busybox", "/etc")), "packagePath");
    }

    #[test]
    fn shares_add_and_subtract_and_never_go_below_nothing() {
        let (one, two) =
            (Share { cpu: CpuAmount::whole(1), mem_mib: 5 }, Share { cpu: CpuAmount::whole(2), mem_mib: 4 });
        assert_eq!(one.plus(two), Share { cpu: CpuAmount::whole(3), mem_mib: 9 });
        assert_eq!(one.minus(two), Share { cpu: CpuAmount::ZERO, mem_mib: 1 });
        assert!(!one.fits_in(two) && one.fits_in(one.plus(two)));
    }
}
