//! The container's config in LXC's syntax: the typed value, its writer and its reader.
//!
//! The supervisor builds one [`ContainerConfig`], writes it to `cont/<id>/config` and applies the same
//! value; stock `lxc-execute` (LXC 4 to 6) must take the file and run the same command under the same
//! limits. This room is text only: it mounts nothing, opens nothing, and asks the kernel nothing.
//!
//! Source: lxc.container.conf(5), and `confile.c` of LXC 5.0.2 for what the page leaves open. There a
//! line ends at LF *or CR*, `#` is a comment only at the beginning of a line, and one pair of matching
//! quotes around a whole value is taken off. LXC knows no escape for a newline, so a text with one is either
//! refused or, for the command line, spelled another way: no user text can add a line.
//!
//! Seen of LXC 5.0.2 on a hybrid host: `lxc.cgroup2.*` is taken and does nothing, without a word; a limit above the
//! hard one in force ends the launch where CAP_SYS_RESOURCE is missing; `aufs:` is no longer known.

mod command;
mod legacy;
#[cfg(test)]
mod read_back;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;

use thiserror::Error;

/// Everything that makes one container, in LXC's own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerConfig {
    /// `lxc.uts.name`: the hostname inside.
    pub uts_name: String,
    /// `lxc.rootfs.path`.
    pub rootfs: Rootfs,
    /// `lxc.mount.entry`, in the order they are mounted.
    pub mounts: Vec<MountEntry>,
    /// `lxc.mount.auto`: what only LXC can name, `cgroup:ro:force`.
    pub mount_auto: Vec<String>,
    /// `lxc.net.0.type`, and `lxc.net.0.flags` for a loopback that is up.
    pub network: Network,
    /// `lxc.cap.keep`, lower case without `cap_`. Empty keeps none.
    pub cap_keep: Vec<String>,
    /// `lxc.no_new_privs`.
    pub no_new_privs: bool,
    /// `lxc.prlimit.*`.
    pub rlimits: Vec<Rlimit>,
    /// `lxc.proc.oom_score_adj`: who is killed first when memory runs out.
    pub oom_score_adj: i16,
    /// `lxc.cgroup.*` and `lxc.cgroup2.*`, in the order they must be written.
    pub cgroup: Vec<CgroupSetting>,
    /// `lxc.environment`, in order; a later name wins.
    pub environment: Vec<(String, String)>,
    /// `lxc.init.cwd`: the working directory of the command, absolute, inside.
    pub init_cwd: String,
    /// `lxc.execute.cmd`: what the image's `/bin/sh -c` runs. Any text without NUL.
    pub command_line: String,
    /// `lxc.seccomp.profile`, a file in LXC's own policy format.
    pub seccomp_profile: Option<PathBuf>,
}

/// The union that becomes `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Which union filesystem.
    pub driver: UnionDriver,
    /// The read-only layers, top first; at least one.
    pub lowerdirs: Vec<PathBuf>,
    /// The writable layer.
    pub upperdir: PathBuf,
    /// `lxc.rootfs.options`: how it is mounted.
    pub options: Vec<String>,
}

/// A union filesystem, as `lxc.rootfs.path` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnionDriver {
    /// overlayfs, in the kernel since 3.18.
    Overlay,
    /// AUFS, where the kernel is patched with it. LXC itself knew it up to 2.1 only.
    Aufs,
}

/// One line of `lxc.mount.entry`, which is one line of fstab(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// What is mounted: a path on the host, or the filesystem's name.
    pub source: String,
    /// Where, relative to the root of the container.
    pub target: String,
    /// Its type; `none` for a bind mount.
    pub fstype: String,
    /// Its options; at least one (`defaults`).
    pub options: Vec<String>,
}

/// What the container sees of the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// Its own network namespace with nothing but `lo`.
    #[default]
    None,
    /// The host's network.
    Host,
}

/// A resource limit, as setrlimit(2) knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// Lower case without `RLIMIT_`: `nofile`.
    pub name: String,
    /// In force; `None` is unlimited.
    pub soft: Option<u64>,
    /// What soft may be raised to; `None` is unlimited.
    pub hard: Option<u64>,
}

/// Which hierarchy a cgroup file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CgroupVersion {
    /// `lxc.cgroup.*`, one hierarchy a controller.
    V1,
    /// `lxc.cgroup2.*`, the unified hierarchy.
    V2,
}

/// One value written into one file of the container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupSetting {
    /// The hierarchy.
    pub version: CgroupVersion,
    /// The file: `memory.limit_in_bytes`.
    pub key: String,
    /// What is written.
    pub value: String,
}

/// What an image's own `config` adds to every container made from it. It can only add to the environment
/// and take rights away; see [`ContainerConfig::apply_image`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `lxc.environment`: over the defaults, under the task's own.
    pub environment: Vec<(String, String)>,
    /// `lxc.cap.drop`: taken from what is kept.
    pub cap_drop: Vec<String>,
    /// `lxc.cap.keep`: nothing else is kept.
    pub cap_keep: Option<Vec<String>>,
    /// `lxc.prlimit.*`: never above the default of that name.
    pub rlimits: Vec<Rlimit>,
    /// `lxc.mount.entry` of kernel filesystems that show nothing of the host (tmpfs).
    pub mounts: Vec<MountEntry>,
}

/// Why a config cannot be written or read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LxcConfigError {
    /// The value would not read back as itself.
    #[error("cannot write {key}: {value:?} {why}")]
    Unwritable {
        /// The key.
        key: String,
        /// What should have been its value.
        value: String,
        /// What is in the way.
        why: &'static str,
    },
    /// A line that is not `key = value`.
    #[error("cannot read line {line}: {text:?} is not of the form key = value")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A key that is not taken here.
    #[error("cannot apply {key} in line {line}: {why}")]
    Refused {
        /// Counted from 1.
        line: usize,
        /// The key, in today's spelling.
        key: String,
        /// Why not.
        why: &'static str,
    },
    /// A value its key cannot have.
    #[error("cannot read {key} in line {line}: {value:?} is not {wanted}")]
    BadValue {
        /// Counted from 1.
        line: usize,
        /// The key, in today's spelling.
        key: String,
        /// The value.
        value: String,
        /// What it should look like.
        wanted: &'static str,
    },
}

impl ContainerConfig {
    /// Takes in what the image brought along. Its environment comes after what is there, so that its PATH wins over
    /// the default; what only the task knows is to be added after this.
    ///
    /// `inherited` is what a container has of a limit that the config does not set: an image's must not be above it.
    pub fn apply_image(&mut self, image: &ImageConfig, inherited: impl Fn(&str) -> Option<Rlimit>) {
        self.environment.extend(image.environment.iter().cloned());
        self.cap_keep.retain(|cap| !image.cap_drop.contains(cap));
        if let Some(keep) = &image.cap_keep {
            self.cap_keep.retain(|cap| keep.contains(cap));
        }
        for theirs in &image.rlimits {
            match self.rlimits.iter_mut().find(|ours| ours.name == theirs.name) {
                Some(ours) => *ours = ours.tightened_to(theirs),
                None => self.rlimits.extend(inherited(&theirs.name).map(|ours| ours.tightened_to(theirs))),
            }
        }
        self.mounts.extend(image.mounts.iter().cloned());
    }
}

impl Rlimit {
    /// `theirs` where it allows less; the soft limit never above the hard one, as setrlimit(2) wants it.
    fn tightened_to(&self, theirs: &Rlimit) -> Rlimit {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        let hard = least(self.hard, theirs.hard);
        Rlimit { name: self.name.clone(), soft: least(theirs.soft, hard), hard }
    }
}

impl Network {
    /// As `lxc.net.0.type` names it. LXC's `none` is *no namespace*, `empty` is one with only `lo`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Network::None => "empty",
            Network::Host => "none",
        }
    }
}

impl UnionDriver {
    /// As `lxc.rootfs.path` begins, and as /proc/filesystems lists it.
    pub const fn as_str(self) -> &'static str {
        match self {
            UnionDriver::Overlay => "overlay",
            UnionDriver::Aufs => "aufs",
        }
    }
}

impl CgroupVersion {
    /// What a key of this hierarchy begins with.
    const fn prefix(self) -> &'static str {
        match self {
            CgroupVersion::V1 => "lxc.cgroup.",
            CgroupVersion::V2 => "lxc.cgroup2.",
        }
    }
}
