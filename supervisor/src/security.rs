//! What a container may not do: capabilities, system calls, paths and limits taken away.
//!
//! Lists first, then the few calls that apply them. The lists follow what Docker takes away by default,
//! less what a batch job has no use for. Everything here happens between the fork of the payload and its
//! execve, or is compiled once when the supervisor starts.

use std::io;

use crate::lxc_config;
use caps::{CapSet, Capability, CapsHashSet};
use rustix::process::{Resource, Rlimit};

mod seccomp;

pub use seccomp::{SystemCallFilter, lxc_policy};

/// What the payload's root keeps: Docker's default list less device nodes, raw sockets and the audit log.
pub const KEPT_CAPABILITIES: [Capability; 11] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// What init keeps once the container stands: enough to signal a payload that changed its user.
const INIT_CAPABILITIES: [Capability; 1] = [Capability::CAP_KILL];

/// Files that show or change the host: covered by /dev/null.
pub const MASKED_FILES: [&str; 6] =
    ["proc/kcore", "proc/keys", "proc/latency_stats", "proc/sched_debug", "proc/timer_list", "proc/sysrq-trigger"];

/// Folders that show or change the host: covered by an empty folder.
pub const MASKED_FOLDERS: [&str; 4] = ["proc/acpi", "proc/scsi", "proc/asound", "sys/firmware"];

/// Folders that may be read but not written.
pub const READ_ONLY_FOLDERS: [&str; 4] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys"];

/// The character devices a container has: name, major, minor (the kernel's admin-guide/devices.txt).
pub const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Most open files of a payload, where the supervisor's own hard limit allows as many.
pub const OPEN_FILES: u64 = 65_536;

/// Resources by the names LXC gives them in `lxc.prlimit.*`.
const RESOURCES: [(&str, Resource); 16] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// The capability by LXC's name for it: lower case, without `cap_`.
pub fn capability_named(name: &str) -> Option<Capability> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && !name.starts_with("cap_");
    plain.then(|| caps::to_canonical(name).parse().ok()).flatten()
}

/// The capabilities by LXC's names for them. A name that nobody knows keeps nothing.
pub fn capabilities_named(names: &[String]) -> Vec<Capability> {
    names.iter().filter_map(|name| capability_named(name)).collect()
}

/// LXC's names of the capabilities a payload keeps by default.
pub fn kept_capability_names() -> Vec<String> {
    KEPT_CAPABILITIES.iter().map(|kept| kept.to_string().trim_start_matches("CAP_").to_ascii_lowercase()).collect()
}

/// Takes from init what only setting up needed.
pub fn drop_init_capabilities() -> io::Result<()> {
    keep_only(&INIT_CAPABILITIES)
}

/// Takes everything but `kept` from this process, for good: with the bounding set cut down, even root gets no more
/// back at execve (capabilities(7)).
pub fn keep_only(kept: &[Capability]) -> io::Result<()> {
    let bounding = caps::read(None, CapSet::Bounding).map_err(io::Error::other)?;
    for capability in bounding.iter().filter(|capability| !kept.contains(capability)) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(io::Error::other)?;
    }
    // What the machine itself lacks cannot be kept.
    let kept: CapsHashSet = kept.iter().copied().filter(|capability| bounding.contains(capability)).collect();
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)
}

/// The limits every payload gets, by LXC's names: no core files, and open files up to what the supervisor may give.
pub fn default_rlimits() -> Vec<lxc_config::Rlimit> {
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let both = |name: &str, limit| lxc_config::Rlimit { name: name.to_owned(), soft: Some(limit), hard: Some(limit) };
    vec![both("core", 0), both("nofile", OPEN_FILES.min(hard))]
}

/// Whether LXC knows a limit of that name.
pub fn is_rlimit(name: &str) -> bool {
    resource_named(name).is_some()
}

/// What a container has of a limit if its config says nothing: this process' own.
pub fn inherited_rlimit(name: &str) -> Option<lxc_config::Rlimit> {
    let own = rustix::process::getrlimit(resource_named(name)?);
    Some(lxc_config::Rlimit { name: name.to_owned(), soft: own.current, hard: own.maximum })
}

fn resource_named(name: &str) -> Option<Resource> {
    RESOURCES.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
}

/// Sets one limit (setrlimit(2)). A raise that this machine does not allow leaves the limit as it was.
pub fn set_rlimit(limit: &lxc_config::Rlimit) -> io::Result<()> {
    let unknown = || io::Error::new(io::ErrorKind::InvalidInput, limit.name.clone());
    let resource = resource_named(&limit.name).ok_or_else(unknown)?;
    match rustix::process::setrlimit(resource, Rlimit { current: limit.soft, maximum: limit.hard }) {
        Err(rustix::io::Errno::PERM) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_capabilities_survive_their_lxc_names() {
        assert_eq!(capabilities_named(&kept_capability_names()), KEPT_CAPABILITIES);
    }

    #[test]
    fn a_payload_keeps_no_capability_that_reaches_the_host() {
        for reaching in
            [Capability::CAP_SYS_ADMIN, Capability::CAP_MKNOD, Capability::CAP_SYS_PTRACE, Capability::CAP_NET_ADMIN]
        {
            assert!(!KEPT_CAPABILITIES.contains(&reaching));
        }
    }
}
