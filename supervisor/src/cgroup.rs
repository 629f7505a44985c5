//! The one room that writes below /sys/fs/cgroup: v1, hybrid and v2 behind one set of verbs.
//!
//! Groups live below a base of ours, `<our own cgroup>/<root>`, never past it: where the supervisor is limited,
//! so are its tasks. In every hierarchy a container's group has the container's name. Per controller we take
//! v1 where it is mounted as v1 and v2 otherwise; on a hybrid host the `unified` hierarchy has no controllers but
//! still kills, freezes, counts CPU time and takes clone3's CLONE_INTO_CGROUP, so v1 there only limits and counts.
//!
//! Nothing here sleeps or waits: `remove` says `Busy` and is called again.
//! Sources: cgroups(7), and the kernel's admin-guide/cgroup-v1 and cgroup-v2.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use wire::{CpuAmount, CpuRequest};

use crate::lxc_config::{CgroupSetting, CgroupVersion};

/// Processes and threads one container may have.
pub const PIDS_MAX: u64 = 512;
/// Over how long a CPU quota is counted, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The least quota the kernel takes, in microseconds.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// The controllers that limit or count a container, where v1 has them. `freezer` and `cpuacct` are v1's only
/// way to stop and to count where there is no v2 hierarchy at all.
const V1_CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuset", "pids", "devices"];
const V1_CONTROLLERS_WITHOUT_V2: [&str; 2] = ["freezer", "cpuacct"];
/// The controllers that limit a container on v2; devices are BPF there and left to mknod being denied.
const V2_CONTROLLERS: [&str; 4] = ["memory", "cpu", "cpuset", "pids"];

/// What could not be done below /sys/fs/cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot make cgroup {path}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {path}: {source}")]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("cannot remove cgroup {path}: {source}")]
    Remove { path: PathBuf, source: io::Error },
    #[error(
        "another supervisor works in cgroup {path}, and would take our containers for leftovers; \
             hint: give each its own --cgroup-root"
    )]
    Claimed { path: PathBuf },
    #[error("no cgroup hierarchy is mounted; hint: mount -t cgroup2 none /sys/fs/cgroup")]
    NoHierarchy,
}

impl CgroupError {
    /// What the kernel said of a write.
    fn errno(&self) -> Option<Errno> {
        match self {
            CgroupError::Write { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

/// Which cgroup layout the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Controllers on v1, no v2 hierarchy.
    V1,
    /// Controllers on v1 and a v2 hierarchy beside them.
    Hybrid,
    /// Controllers on v2.
    V2,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::V1 => "v1",
            Kind::Hybrid => "hybrid",
            Kind::V2 => "v2",
        })
    }
}

/// The folders our groups live in, by hierarchy: controllers joined by commas, or `unified`.
/// Kept in the journal, so that a later supervisor finds groups made below another base.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bases(BTreeMap<String, PathBuf>);

impl Bases {
    /// The folders.
    pub fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.values()
    }
}

/// What a container's cgroup counters say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processes the OOM killer ended in it.
    pub oom_kills: u64,
    /// The most memory it held, page cache included.
    pub memory_peak_bytes: Option<u64>,
    /// CPU time of everything that ever ran in it.
    pub cpu: Option<Duration>,
}

/// Whether a group is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone from every hierarchy.
    Gone,
    /// Something is still leaving it; call again later.
    Busy,
}

/// One mounted hierarchy and our base in it.
#[derive(Debug)]
struct Hierarchy {
    version: CgroupVersion,
    controllers: Vec<String>,
    base: PathBuf,
    dir: OwnedFd,
}

impl Hierarchy {
    fn name(&self) -> String {
        match self.version {
            CgroupVersion::V1 => self.controllers.join(","),
            CgroupVersion::V2 => "unified".to_owned(),
        }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|mine| mine == controller)
    }

    /// Whether setting `key` belongs here: its controller is the part before the dot.
    fn takes(&self, setting: &CgroupSetting) -> bool {
        let controller = setting.key.split('.').next().unwrap_or_default();
        self.version == setting.version && self.has(controller)
    }

    fn read(&self, group: &str, file: &str) -> io::Result<String> {
        let path = format!("{group}/{file}");
        let fd = rustix::fs::openat(&self.dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        std::fs::File::from(fd).read_to_string(&mut text)?;
        Ok(text)
    }

    /// What a counter says; `None`: this kernel has none of that name, or the group is gone.
    fn counter(&self, group: &str, file: &str) -> io::Result<Option<String>> {
        let absent = [Errno::ENOENT, Errno::ENODEV, Errno::EOPNOTSUPP].map(|errno| Some(errno as i32));
        match self.read(group, file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if absent.contains(&error.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A counter that is one number.
    fn number(&self, group: &str, file: &str) -> io::Result<Option<u64>> {
        Ok(self.counter(group, file)?.and_then(|text| text.trim().parse().ok()))
    }

    fn write(&self, group: &str, file: &str, value: &str) -> Result<(), CgroupError> {
        self.open_for_writing(group, file).and_then(|mut file| file.write_all(value.as_bytes())).map_err(|source| {
            CgroupError::Write { path: self.base.join(group).join(file), value: value.to_owned(), source }
        })
    }

    fn open_for_writing(&self, group: &str, file: &str) -> io::Result<std::fs::File> {
        let path = format!("{group}/{file}");
        Ok(rustix::fs::openat(&self.dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    fn make(&self, group: &str) -> Result<(), CgroupError> {
        rustix::fs::mkdirat(&self.dir, group, Mode::from_raw_mode(0o755))
            .map_err(|errno| CgroupError::Make { path: self.base.join(group), source: errno.into() })
    }
}

/// The hierarchies that limit, count and kill our containers, each with our base in it.
#[derive(Debug)]
pub struct Layout {
    hierarchies: Vec<Hierarchy>,
}

/// Our bases are ours alone while this lives.
#[derive(Debug)]
pub struct Claim {
    _lock: std::fs::File,
}

/// A container's freshly made and limited group, ready to be joined.
#[derive(Debug)]
pub struct Group {
    /// The `tasks` file of each v1 hierarchy: a single-threaded process that writes "0" there has joined. Unlike
    /// `cgroup.procs` it takes no lock that waits for an RCU grace period.
    pub tasks_files: Vec<std::fs::File>,
    /// The folder on the v2 hierarchy, for CLONE_INTO_CGROUP.
    pub unified: Option<OwnedFd>,
}

impl Layout {
    /// Finds the mounted hierarchies and makes `<our own cgroup>/<root>` in each, ready for containers.
    pub fn prepare(root: &str) -> Result<Layout, CgroupError> {
        let mounts =
            detect(&read_file(Path::new("/proc/self/mountinfo"))?, &read_file(Path::new("/proc/self/cgroup"))?);
        if mounts.is_empty() {
            return Err(CgroupError::NoHierarchy);
        }
        let hierarchies = mounts.into_iter().map(|mount| ready_base(mount, root)).collect::<Result<_, _>>()?;
        let layout = Layout { hierarchies };
        for name in V2_CONTROLLERS.iter().filter(|name| layout.controller(name).is_none()) {
            log::warn!("no cgroup controller for {name} here, so it is not limited; hint: berth-supervisor doctor");
        }
        Ok(layout)
    }

    /// Claims our bases for one supervisor, as long as the answer lives: it removes what belongs to no task of its own, so
    /// two in one base would kill each other's. A child that a killed supervisor had just cloned may hold the claim for a
    /// moment longer.
    pub fn claim(&self) -> Result<Claim, CgroupError> {
        const MOMENT: Duration = Duration::from_secs(1);
        let hierarchy = self.hierarchies.first().ok_or(CgroupError::NoHierarchy)?;
        let path = hierarchy.base.join("cgroup.procs");
        let read = |source: io::Error| CgroupError::Read { path: path.clone(), source };
        let file = std::fs::File::open(&path).map_err(read)?;
        let until = std::time::Instant::now() + MOMENT;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Claim { _lock: file }),
                Err(rustix::io::Errno::WOULDBLOCK) if std::time::Instant::now() < until => {
                    std::thread::park_timeout(MOMENT / 50);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(CgroupError::Claimed { path: hierarchy.base.clone() });
                }
                Err(errno) => return Err(read(errno.into())),
            }
        }
    }

    /// Reopens the bases an earlier supervisor used; those that are gone have nothing left in them.
    pub fn from_bases(bases: &Bases) -> Result<Layout, CgroupError> {
        let mut hierarchies = Vec::new();
        for (name, base) in &bases.0 {
            let (version, controllers) = match name.as_str() {
                "unified" => (CgroupVersion::V2, V2_CONTROLLERS.map(str::to_owned).to_vec()),
                names => (CgroupVersion::V1, names.split(',').map(str::to_owned).collect()),
            };
            match open_folder(base) {
                Ok(dir) => hierarchies.push(Hierarchy { version, controllers, base: base.clone(), dir }),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(CgroupError::Read { path: base.clone(), source: errno.into() }),
            }
        }
        Ok(Layout { hierarchies })
    }

    /// Where our groups live.
    pub fn bases(&self) -> Bases {
        Bases(self.hierarchies.iter().map(|hierarchy| (hierarchy.name(), hierarchy.base.clone())).collect())
    }

    /// Which layout this is.
    pub fn kind(&self) -> Kind {
        let has = |version| self.hierarchies.iter().any(|hierarchy| hierarchy.version == version);
        match (has(CgroupVersion::V1), has(CgroupVersion::V2)) {
            (true, true) => Kind::Hybrid,
            (true, false) => Kind::V1,
            (false, _) => Kind::V2,
        }
    }

    /// What limits a container to `mem_mib` and `cpu`, in the order the kernel wants it written.
    pub fn settings(&self, cpu: &CpuRequest, mem_mib: u64) -> Vec<CgroupSetting> {
        let swap_is_counted = self.controller("memory").is_some_and(Hierarchy::counts_swap);
        let wanted =
            limits_v1(cpu, mem_mib, swap_is_counted).into_iter().chain(limits_v2(cpu, mem_mib, swap_is_counted));
        wanted.filter(|setting| self.hierarchies.iter().any(|hierarchy| hierarchy.takes(setting))).collect()
    }

    /// The descriptors a child needs to make groups.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.dir.as_fd())
    }

    /// Makes `group` in every hierarchy and writes `settings`: the limits are in force before anything joins.
    pub fn make(&self, group: &str, settings: &[CgroupSetting]) -> Result<Group, CgroupError> {
        let mut made = Group { tasks_files: Vec::new(), unified: None };
        for hierarchy in &self.hierarchies {
            hierarchy.make(group)?;
            for setting in settings.iter().filter(|setting| hierarchy.takes(setting)) {
                hierarchy.write(group, &setting.key, &setting.value)?;
            }
            let opened = match hierarchy.version {
                CgroupVersion::V1 => hierarchy.open_for_writing(group, "tasks").map(|file| made.tasks_files.push(file)),
                CgroupVersion::V2 => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    rustix::fs::openat(&hierarchy.dir, group, flags, Mode::empty())
                        .map(|dir| made.unified = Some(dir))
                        .map_err(io::Error::from)
                }
            };
            opened.map_err(|source| CgroupError::Read { path: hierarchy.base.join(group), source })?;
        }
        Ok(made)
    }

    /// The group's folders worth showing inside the container: the place below /sys/fs/cgroup, and the host's folder.
    pub fn views(&self, group: &str) -> Vec<(String, PathBuf)> {
        let view = |hierarchy: &Hierarchy| {
            let place = place_inside(self.kind(), hierarchy.version, &hierarchy.controllers)?;
            Some((place, hierarchy.base.join(group)))
        };
        self.hierarchies.iter().filter_map(view).collect()
    }

    /// What the counters of `group` say. Read after the last exit and before the removal. What this kernel does not
    /// count, or a group that is gone, says nothing; what cannot be read now is an error, never taken for 0.
    pub fn usage(&self, group: &str) -> io::Result<Usage> {
        let mut usage = Usage::default();
        if let Some(memory) = self.controller("memory") {
            let (events, peak) = match memory.version {
                CgroupVersion::V1 => ("memory.oom_control", "memory.max_usage_in_bytes"),
                CgroupVersion::V2 => ("memory.events", "memory.peak"),
            };
            let oom_kills = memory.counter(group, events)?.and_then(|text| keyed(&text, "oom_kill"));
            usage.oom_kills = oom_kills.unwrap_or(0);
            usage.memory_peak_bytes = memory.number(group, peak)?;
            if usage.oom_kills > 0 && memory.version == CgroupVersion::V1 {
                // The limit that was in the way may be that of memory and swap together.
                let swapped = memory.number(group, "memory.memsw.max_usage_in_bytes")?;
                usage.memory_peak_bytes = usage.memory_peak_bytes.max(swapped);
            }
        }
        usage.cpu = self.cpu_time(group)?;
        Ok(usage)
    }

    /// Whether any process is in `group`.
    pub fn has_members(&self, group: &str) -> bool {
        let members = |hierarchy: &Hierarchy| hierarchy.read(group, "cgroup.procs").is_ok_and(|pids| !pids.is_empty());
        self.hierarchies.iter().any(members)
    }

    /// The processes in `group`, as the host counts them.
    pub fn members(&self, group: &str) -> Vec<i32> {
        let members = self.hierarchies.iter().find_map(|hierarchy| hierarchy.read(group, "cgroup.procs").ok());
        members.unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// v2 counts CPU time in every group, whether or not it has the controller.
    fn cpu_time(&self, group: &str) -> io::Result<Option<Duration>> {
        if let Some(unified) = self.unified() {
            let text = unified.counter(group, "cpu.stat")?;
            return Ok(text.and_then(|text| keyed(&text, "usage_usec")).map(Duration::from_micros));
        }
        let Some(cpuacct) = self.controller("cpuacct") else { return Ok(None) };
        Ok(cpuacct.number(group, "cpuacct.usage")?.map(Duration::from_nanos))
    }

    /// SIGKILL to all that is left in `group`, in one pass that waits for nothing.
    pub fn kill(&self, group: &str) {
        let killed_at_once = self.unified().is_some_and(|unified| unified.write(group, "cgroup.kill", "1").is_ok());
        if !killed_at_once {
            self.kill_one_by_one(group);
        }
    }

    /// Before cgroup.kill (Linux 5.14): freeze, so that no fork escapes; signal each; and always thaw, since a frozen
    /// process ignores even SIGKILL.
    fn kill_one_by_one(&self, group: &str) {
        let freezer = self.controller("freezer");
        let freeze = |state| freezer.map(|freezer| freezer.write(group, "freezer.state", state));
        if let Some(Err(error)) = freeze("FROZEN") {
            log::debug!("{error}");
        }
        for pid in self.members(group) {
            // Between the reading and here it may have gone, which is what we want of it.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        if let Some(Err(error)) = freeze("THAWED") {
            log::debug!("{error}");
        }
    }

    /// Removes `group` from every hierarchy, as far as it is empty. A group that was never made is gone.
    pub fn remove(&self, group: &str) -> Result<Removal, CgroupError> {
        let mut removal = Removal::Gone;
        for hierarchy in &self.hierarchies {
            match rustix::fs::unlinkat(&hierarchy.dir, group, AtFlags::REMOVEDIR) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(rustix::io::Errno::BUSY) => removal = Removal::Busy,
                Err(errno) => {
                    return Err(CgroupError::Remove { path: hierarchy.base.join(group), source: errno.into() });
                }
            }
        }
        Ok(removal)
    }

    /// The names of all groups below our bases.
    pub fn groups(&self) -> Result<Vec<String>, CgroupError> {
        let mut names = std::collections::BTreeSet::new();
        for hierarchy in &self.hierarchies {
            let read = |source| CgroupError::Read { path: hierarchy.base.clone(), source };
            for entry in std::fs::read_dir(&hierarchy.base).map_err(read)? {
                let entry = entry.map_err(read)?;
                if entry.file_type().map_err(read)?.is_dir() {
                    names.insert(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Removes our bases where nothing is left in them and nobody else is about to make something.
    pub fn remove_base(&self) {
        for hierarchy in &self.hierarchies {
            let removed = rustix::fs::flock(&hierarchy.dir, FlockOperation::NonBlockingLockExclusive)
                .map_err(io::Error::from)
                .and_then(|()| std::fs::remove_dir(&hierarchy.base));
            if let Err(error) = removed {
                log::debug!("cannot remove cgroup {}: {error}", hierarchy.base.display());
            }
        }
    }

    fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.has(name))
    }

    fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.version == CgroupVersion::V2)
    }
}

impl Hierarchy {
    /// Swap is a build and boot option on v1; where it is not counted it cannot be limited.
    fn counts_swap(&self) -> bool {
        let file = match self.version {
            CgroupVersion::V1 => "memory.memsw.limit_in_bytes",
            CgroupVersion::V2 => "memory.swap.max",
        };
        // On v2 the root of the tree has no such file, so what counts is our base.
        self.base.join(file).exists()
    }
}

fn limits_v1(cpu: &CpuRequest, mem_mib: u64, swap_is_counted: bool) -> Vec<CgroupSetting> {
    let set = |key: &str, value: String| CgroupSetting { version: CgroupVersion::V1, key: key.to_owned(), value };
    let bytes = (mem_mib * 1024 * 1024).to_string();
    let shares = (cpu.amount().milli() * 1024 / 1000).max(2);
    let mut settings = vec![set("memory.limit_in_bytes", bytes.clone())];
    // After the plain limit: memory and swap together may never be less than memory alone.
    settings.extend(swap_is_counted.then(|| set("memory.memsw.limit_in_bytes", bytes)));
    settings.push(set("cpu.shares", shares.to_string()));
    match cpu {
        CpuRequest::Pinned(cpus) => settings.push(set("cpuset.cpus", cpus.to_string())),
        CpuRequest::Amount(amount) => {
            // The period first: a quota is checked against the period in force.
            settings.push(set("cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
            settings.push(set("cpu.cfs_quota_us", quota_us(*amount).to_string()));
        }
    }
    settings.push(set("pids.max", PIDS_MAX.to_string()));
    settings.push(set("devices.deny", "a".to_owned()));
    let devices = crate::security::DEVICES.iter().map(|(_, major, minor)| format!("c {major}:{minor} rwm"));
    let terminals = ["c 5:2 rwm".to_owned(), "c 136:* rwm".to_owned()];
    settings.extend(devices.chain(terminals).map(|device| set("devices.allow", device)));
    settings
}

fn limits_v2(cpu: &CpuRequest, mem_mib: u64, swap_is_counted: bool) -> Vec<CgroupSetting> {
    let set = |key: &str, value: String| CgroupSetting { version: CgroupVersion::V2, key: key.to_owned(), value };
    let weight = (cpu.amount().milli() / 10).clamp(1, 10_000);
    let mut settings = vec![set("memory.max", (mem_mib * 1024 * 1024).to_string())];
    settings.extend(swap_is_counted.then(|| set("memory.swap.max", "0".to_owned())));
    settings.push(set("cpu.weight", weight.to_string()));
    match cpu {
        CpuRequest::Pinned(cpus) => settings.push(set("cpuset.cpus", cpus.to_string())),
        CpuRequest::Amount(amount) => settings.push(set("cpu.max", format!("{} {CPU_PERIOD_US}", quota_us(*amount)))),
    }
    settings.push(set("pids.max", PIDS_MAX.to_string()));
    settings
}

fn quota_us(amount: CpuAmount) -> u64 {
    (amount.milli() * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US)
}

/// Where a container sees a hierarchy, below /sys/fs/cgroup; v2 beside v1 only where it limits something.
fn place_inside(kind: Kind, version: CgroupVersion, controllers: &[String]) -> Option<String> {
    match (kind, version) {
        (_, CgroupVersion::V1) => Some(controllers.join(",")),
        (Kind::V2, CgroupVersion::V2) => Some(String::new()),
        (Kind::V1 | Kind::Hybrid, CgroupVersion::V2) => (!controllers.is_empty()).then(|| "unified".to_owned()),
    }
}

/// The number after `key` in a "key value" file.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A hierarchy as found, before anything is made in it.
#[derive(Debug, PartialEq, Eq)]
struct FoundHierarchy {
    version: CgroupVersion,
    controllers: Vec<String>,
    /// Our own cgroup in it, as a path on this machine.
    own: PathBuf,
    mount: PathBuf,
}

/// Which hierarchies there are and where we are in each, from the texts of /proc/self/mountinfo (proc(5))
/// and /proc/self/cgroup (cgroups(7)).
fn detect(mountinfo: &str, own_cgroups: &str) -> Vec<FoundHierarchy> {
    let mut found: Vec<FoundHierarchy> = Vec::new();
    let v2 = mountinfo.lines().filter_map(CgroupMount::parse).find(|mount| mount.kind == "cgroup2");
    for mount in mountinfo.lines().filter_map(CgroupMount::parse).filter(|mount| mount.kind == "cgroup") {
        let wanted =
            |name: &&str| V1_CONTROLLERS.contains(name) || (v2.is_none() && V1_CONTROLLERS_WITHOUT_V2.contains(name));
        let controllers: Vec<String> = mount.options.split(',').filter(wanted).map(str::to_owned).collect();
        let seen = found.iter().any(|hierarchy| hierarchy.controllers.first() == controllers.first());
        if let (Some(first), false) = (controllers.first(), seen) {
            let own = mount.own_folder(own_cgroups, |names| names.split(',').any(|name| name == first));
            found.push(FoundHierarchy { version: CgroupVersion::V1, own, controllers, mount: mount.point.into() });
        }
    }
    if let Some(mount) = v2 {
        let own = mount.own_folder(own_cgroups, str::is_empty);
        found.push(FoundHierarchy {
            version: CgroupVersion::V2,
            own,
            controllers: Vec::new(),
            mount: mount.point.into(),
        });
    }
    found
}

/// The fields of a mountinfo line that matter here.
struct CgroupMount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> CgroupMount<'a> {
    fn parse(line: &'a str) -> Option<CgroupMount<'a>> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut after = after.split(' ');
        let (kind, _source, options) = (after.next()?, after.next()?, after.next()?);
        kind.starts_with("cgroup").then_some(CgroupMount { root, point, kind, options })
    }

    /// Our own cgroup in this hierarchy; the mount may show only a part of the tree.
    fn own_folder(&self, own_cgroups: &str, is_ours: impl Fn(&str) -> bool) -> PathBuf {
        let own = own_cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            is_ours(controllers).then_some(path)
        });
        let own = own.unwrap_or("/");
        let below = Path::new(own).strip_prefix(self.root).unwrap_or(Path::new(""));
        Path::new(self.point).join(below)
    }
}

/// The bases a supervisor that is started here would have, as far as they exist. Nothing is made, locked or written.
pub fn bases_here(root: &str) -> Result<Bases, CgroupError> {
    let mounts = detect(&read_file(Path::new("/proc/self/mountinfo"))?, &read_file(Path::new("/proc/self/cgroup"))?);
    let bases = mounts.into_iter().enumerate().map(|(number, mount)| {
        let base = outside_own_leaf(mount.own, root).join(root);
        (format!("{number}"), base)
    });
    Ok(Bases(bases.filter(|(_, base)| base.is_dir()).collect()))
}

/// Makes our base in a hierarchy and readies it for containers.
fn ready_base(found: FoundHierarchy, root: &str) -> Result<Hierarchy, CgroupError> {
    let FoundHierarchy { version, mut controllers, own, mount } = found;
    let own = outside_own_leaf(own, root);
    let base = own.join(root);
    if version == CgroupVersion::V2 {
        controllers = offered_v2(&mount, &own)?;
        delegate_v2(&own, root, &controllers)?;
    }
    let dir = make_and_hold(&base)?;
    if controllers.iter().any(|name| name == "cpuset") && version == CgroupVersion::V1 {
        fill_cpuset_v1(&mount, &base)?;
    }
    if version == CgroupVersion::V2 {
        enable_v2(&base, &controllers)?;
    }
    Ok(Hierarchy { version, controllers, base, dir })
}

/// Makes a base, or finds it, and holds a shared lock on it as long as the descriptor lives: a foreground run or an
/// idle supervisor that shares it with others removes it only when alone.
fn make_and_hold(base: &Path) -> Result<OwnedFd, CgroupError> {
    let unreadable = |source| CgroupError::Read { path: base.to_owned(), source };
    loop {
        make_folder(base)?;
        match open_folder(base) {
            Ok(dir) if is_at(&dir, base) => return Ok(dir),
            // Whoever left last removed it between the making and the lock.
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(unreadable(errno.into())),
        }
    }
}

fn is_at(dir: &OwnedFd, path: &Path) -> bool {
    let inode = rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino));
    inode.is_ok_and(|held| rustix::fs::stat(path).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == held))
}

/// A v1 cpuset takes no process before its CPUs and memory nodes are set, each within its parent's; so from the
/// top down, and with clone_children the containers' groups then begin as copies of ours.
fn fill_cpuset_v1(mount: &Path, base: &Path) -> Result<(), CgroupError> {
    let below = base.strip_prefix(mount).unwrap_or(base);
    let mut folder = mount.to_owned();
    for part in below {
        let parent = folder.clone();
        folder.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read_file(&folder.join(file))?.trim().is_empty() {
                write_file(&folder.join(file), read_file(&parent.join(file))?.trim())?;
            }
        }
    }
    write_file(&base.join("cgroup.clone_children"), "1")
}

/// The controllers we want that our own group has. A group has what its parent gives to its children, so they are
/// asked for from the top down. An ancestor with processes of its own cannot give; then it stays at what there is.
fn offered_v2(mount: &Path, own: &Path) -> Result<Vec<String>, CgroupError> {
    let mut folder = mount.to_owned();
    for part in own.strip_prefix(mount).unwrap_or(Path::new("")) {
        for name in wanted_v2(&folder)? {
            if let Err(error) = enable_v2(&folder, &[name]) {
                log::debug!("{error}");
            }
        }
        folder.push(part);
    }
    wanted_v2(own)
}

fn wanted_v2(folder: &Path) -> Result<Vec<String>, CgroupError> {
    let available = read_file(&folder.join("cgroup.controllers"))?;
    let wanted = |name: &&str| available.split_whitespace().any(|mine| mine == *name);
    Ok(V2_CONTROLLERS.iter().filter(|name| wanted(name)).map(|&name| name.to_owned()).collect())
}

/// On v2 a group with processes in it cannot give controllers to its children, except for the root: "the cgroup
/// must create children and transfer all its processes to the children" first (cgroup-v2, "No Internal Process
/// Constraint"). Where that stands in the way they all move into a leaf beside our base: we, and the shell or
/// service manager that started us in a group of its own. Every limit of that group holds for them as before.
fn delegate_v2(own: &Path, root: &str, controllers: &[String]) -> Result<(), CgroupError> {
    match enable_v2(own, controllers) {
        Err(error) if error.errno() == Some(Errno::EBUSY) => {
            let leaf = own.join(own_leaf(root));
            make_folder(&leaf)?;
            empty_into(own, &leaf)?;
            enable_v2(own, controllers)
        }
        result => result,
    }
}

/// Moves every process of a v2 group into another; those that are forked meanwhile, in the next round.
fn empty_into(group: &Path, leaf: &Path) -> Result<(), CgroupError> {
    const ROUNDS: u32 = 16;
    for _ in 0..ROUNDS {
        let members = read_file(&group.join("cgroup.procs"))?;
        if members.is_empty() {
            return Ok(());
        }
        for pid in members.lines() {
            match write_file(&leaf.join("cgroup.procs"), pid) {
                // It has exited since.
                Err(error) if error.errno() == Some(Errno::ESRCH) => {}
                result => result?,
            }
        }
        log::info!("moved {} processes from {} to {}", members.lines().count(), group.display(), leaf.display());
    }
    Ok(())
}

fn own_leaf(root: &str) -> String {
    format!("{root}-supervisor")
}

/// A restarted supervisor finds itself in the leaf that an earlier one made.
fn outside_own_leaf(own: PathBuf, root: &str) -> PathBuf {
    match own.parent() {
        Some(parent) if own.file_name() == Some(OsStr::new(&own_leaf(root))) => parent.to_owned(),
        _ => own,
    }
}

fn enable_v2(folder: &Path, controllers: &[String]) -> Result<(), CgroupError> {
    controllers.iter().try_for_each(|name| write_file(&folder.join("cgroup.subtree_control"), &format!("+{name}")))
}

fn make_folder(path: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::Make { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Opens a folder and takes the shared lock on it.
fn open_folder(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = || {
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        rustix::fs::flock(&dir, FlockOperation::LockShared)?;
        Ok(dir)
    };
    open().map_err(|errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error()))
}

fn read_file(path: &Path) -> Result<String, CgroupError> {
    wire::proc_text::read(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

fn write_file(path: &Path, value: &str) -> Result<(), CgroupError> {
    let write = || std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes());
    write().map_err(|source| CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const HYBRID_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw";
    const HYBRID_OWN: &str = "9:name=systemd:/\n4:memory:/limited/by/someone\n3:cpuset:/\n1:cpu,cpuacct:/\n0::/";

    #[test]
    fn on_a_hybrid_host_v1_limits_and_v2_kills() {
        let found = detect(HYBRID_MOUNTS, HYBRID_OWN);
        let names: Vec<(CgroupVersion, String)> =
            found.iter().map(|hierarchy| (hierarchy.version, hierarchy.controllers.join(","))).collect();
        let v1 = |name: &str| (CgroupVersion::V1, name.to_owned());
        assert_eq!(names, [v1("cpu"), v1("cpuset"), v1("memory"), (CgroupVersion::V2, String::new())]);
    }

    #[test]
    fn groups_go_below_our_own_cgroup_not_past_it() {
        let found = detect(HYBRID_MOUNTS, HYBRID_OWN);
        let memory = found.iter().find(|hierarchy| hierarchy.controllers == ["memory"]).unwrap();
        assert_eq!(memory.own, Path::new("/sys/fs/cgroup/memory/limited/by/someone"));
    }

    #[test]
    fn without_v2_the_freezer_and_cpuacct_are_used() {
        let mounts = "1 1 0:1 / /c/a rw - cgroup cgroup rw,cpu,cpuacct\n2 1 0:2 / /c/f rw - cgroup cgroup rw,freezer";
        let found = detect(mounts, "");
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(found[1].controllers, ["freezer"]);
    }

    #[test]
    fn a_mount_that_shows_part_of_the_tree_is_understood() {
        let mounts = "1 1 0:1 /outer /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(detect(mounts, "0::/outer/inner")[0].own, Path::new("/sys/fs/cgroup/inner"));
    }

    #[test]
    fn a_container_sees_the_hierarchies_that_limit_it_where_hosts_have_them() {
        let place = |kind, version, names: &[&str]| {
            place_inside(kind, version, &names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(place(Kind::V2, CgroupVersion::V2, &["memory"]).as_deref(), Some(""));
        assert_eq!(place(Kind::V1, CgroupVersion::V1, &["cpu", "cpuacct"]).as_deref(), Some("cpu,cpuacct"));
        assert_eq!(place(Kind::Hybrid, CgroupVersion::V2, &[]), None);
        assert_eq!(place(Kind::Hybrid, CgroupVersion::V2, &["memory"]).as_deref(), Some("unified"));
    }

    #[test]
    fn v2_controllers_are_asked_for_from_the_top_down_and_only_our_own_groups_count() {
        let tree = Scratch::new("v2");
        tree.write("cgroup.controllers", "cpuset cpu io memory hugetlb pids\n");
        tree.write("cgroup.subtree_control", "");
        // Has processes of its own, so it cannot give: here, because the file is not there.
        tree.write("slice/cgroup.controllers", "memory pids\n");
        tree.write("slice/scope/cgroup.controllers", "memory\n");
        assert_eq!(offered_v2(tree.path(), &tree.join("slice/scope")).unwrap(), ["memory"]);
        assert!(read_file(&tree.join("cgroup.subtree_control")).unwrap().starts_with('+'));
        assert_eq!(offered_v2(tree.path(), tree.path()).unwrap(), ["memory", "cpu", "cpuset", "pids"]);
    }

    #[test]
    fn every_process_of_a_group_moves_and_one_that_never_empties_is_given_up() {
        let tree = Scratch::new("v2");
        tree.write("cgroup.procs", "7\n8\n");
        tree.write("leaf/cgroup.procs", "");
        empty_into(tree.path(), &tree.join("leaf")).unwrap();
        assert_eq!(read_file(&tree.join("leaf/cgroup.procs")).unwrap(), "8");
    }

    #[test]
    fn memory_is_written_before_memory_and_swap_and_the_period_before_the_quota() {
        let keys: Vec<String> =
            limits_v1(&"x0.5".parse().unwrap(), 64, true).into_iter().map(|setting| setting.key).collect();
        let at = |key: &str| keys.iter().position(|mine| mine == key).unwrap();
        assert!(at("memory.limit_in_bytes") < at("memory.memsw.limit_in_bytes"));
        assert!(at("cpu.cfs_period_us") < at("cpu.cfs_quota_us"));
        assert!(at("devices.deny") < at("devices.allow"));
    }

    #[test]
    fn a_pin_sets_the_cpuset_and_no_quota_and_an_amount_the_reverse() {
        let value = |cpu: &str, key: &str| {
            let settings = limits_v2(&cpu.parse().unwrap(), 64, true);
            settings.into_iter().find(|setting| setting.key == key).map(|setting| setting.value)
        };
        assert_eq!(value("0,1", "cpuset.cpus").as_deref(), Some("0-1"));
        assert_eq!(value("0,1", "cpu.max"), None);
        assert_eq!(value("x0.5", "cpu.max").as_deref(), Some("50000 100000"));
        assert_eq!(value("x0.001", "cpu.max").as_deref(), Some("1000 100000"));
        assert_eq!(value("x0.5", "cpuset.cpus"), None);
    }

    #[test]
    fn oom_kills_are_read_from_the_third_line_of_oom_control() {
        assert_eq!(keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(keyed("oom_kill_disable 7\n", "oom_kill"), None);
    }
}
