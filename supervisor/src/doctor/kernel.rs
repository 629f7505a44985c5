//! The kernel itself: its release, its union filesystems, its namespaces, the system calls berth rests on.

use std::io;
use std::os::fd::AsFd;

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::FsOpenFlags;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions};

use super::{Finding, on_a_thread, read};
use crate::lxc_config::UnionDriver;
use crate::{sys, unions};

/// Where the kernel says its release (proc(5)).
pub(super) const RELEASE_FILE: &str = "/proc/sys/kernel/osrelease";
/// The oldest kernel with all of it: `volatile` overlays are the youngest.
const FLOOR: Release = Release(5, 10);

pub(super) fn examine() -> Vec<Finding> {
    let mut findings = vec![release(read(RELEASE_FILE).trim())];
    unions::load(UnionDriver::Aufs);
    unions::load(UnionDriver::Overlay);
    findings.extend(unions(&read("/proc/filesystems")));
    findings.extend(NAMESPACES.iter().map(|&(name, flag)| {
        let tried = on_a_thread(|| Ok(nix::sched::unshare(flag)?));
        namespace(name, tried)
    }));
    findings.extend(system_calls());
    findings
}

/// The first two numbers of a kernel's release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release(pub u32, pub u32);

impl Release {
    /// Reads `6.1.0-18-amd64` as 6.1.
    pub(super) fn parse(text: &str) -> Option<Release> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        Some(Release(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

fn release(text: &str) -> Finding {
    match Release::parse(text) {
        Some(release) if release >= FLOOR => Finding::good("kernel", text),
        Some(_) => Finding::degraded(
            "kernel",
            format!("{text} is older than 5.10; what else is missing below, only a newer kernel brings"),
        ),
        None => Finding::degraded("kernel", format!("{text:?} is not a release berth knows how to read")),
    }
}

/// From the text of /proc/filesystems (proc(5)).
fn unions(filesystems: &str) -> Vec<Finding> {
    let has = |name| filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
    let overlay = match (has("overlay"), has("aufs")) {
        (true, _) => Finding::good("overlayfs", "unites image layers"),
        (false, true) => Finding::degraded("overlayfs", "not in this kernel; AUFS is used for everything"),
        (false, false) => Finding::missing("overlayfs", "not in this kernel, nor is AUFS; try: modprobe overlay"),
    };
    let aufs = match has("aufs") {
        true => Finding::good("aufs", "unites image layers, unless --union overlay is given"),
        false => Finding::good("aufs", "not in this kernel, as in most; overlayfs does the same"),
    };
    vec![overlay, aufs]
}

const NAMESPACES: [(&str, CloneFlags); 6] = [
    ("mount namespace", CloneFlags::CLONE_NEWNS),
    ("pid namespace", CloneFlags::CLONE_NEWPID),
    ("ipc namespace", CloneFlags::CLONE_NEWIPC),
    ("uts namespace", CloneFlags::CLONE_NEWUTS),
    ("net namespace", CloneFlags::CLONE_NEWNET),
    ("cgroup namespace", CloneFlags::CLONE_NEWCGROUP),
];

fn namespace(name: &'static str, tried: io::Result<()>) -> Finding {
    match tried {
        Ok(()) => Finding::good(name, "every container gets its own"),
        Err(cause) if cause.raw_os_error() == Some(libc::ENOSPC) => {
            Finding::missing(name, "the limit of namespaces is reached; raise /proc/sys/user/max_*_namespaces")
        }
        Err(cause) if cause.raw_os_error() == Some(libc::EPERM) => {
            Finding::missing(name, "not permitted; run as root, outside of unprivileged containers")
        }
        Err(cause) => Finding::missing(name, format!("cannot be made: {cause}; this kernel is built without it")),
    }
}

/// Each is tried in a way that changes nothing.
fn system_calls() -> Vec<Finding> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let openat2 = rustix::fs::openat2(CWD, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let pidfd = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    let mount_api = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC);
    let memfd = rustix::fs::memfd_create("berth-doctor", rustix::fs::MemfdFlags::CLOEXEC);
    vec![
        necessary("pidfd", "tells tasks from processes that got their pid later", tried(pidfd), "5.3"),
        necessary("clone3", "starts every container", in_a_child(|| true), "5.5"),
        necessary("close_range", "lets no file of the supervisor into a container", in_a_child(closes_all), "5.9"),
        necessary("openat2", "keeps image and package paths from leading out", tried(openat2), "5.6"),
        mount_api_finding(mount_api.is_ok()),
        sealed_copy(tried(memfd), &read("/proc/sys/vm/memfd_noexec")),
    ]
}

fn tried<T>(result: rustix::io::Result<T>) -> io::Result<()> {
    Ok(result.map(drop)?)
}

/// Whether a child made by clone3 says yes.
fn in_a_child(says_yes: impl FnOnce() -> bool) -> io::Result<()> {
    let child = sys::fork_child(|| i32::from(!says_yes()))?;
    let ended = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    match ended.and_then(|status| status.exit_status()) {
        Some(0) => Ok(()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn closes_all() -> bool {
    sys::close_all_but(&[]).is_ok()
}

fn necessary(name: &'static str, does: &str, tried: io::Result<()>, since: &str) -> Finding {
    match tried {
        Ok(()) => Finding::good(name, does),
        Err(cause) => {
            Finding::missing(name, format!("{does}, but: {cause}; it needs Linux {since} and no filter in its way"))
        }
    }
}

/// Nothing depends on it, so it is said only to save the question.
fn mount_api_finding(is_there: bool) -> Finding {
    let are = if is_there { "are" } else { "are not" };
    Finding::good("mount api", format!("fsopen and its kin {are} there; berth gets by with mount(2)"))
}

/// The supervisor runs from a sealed copy of itself, so that no container can reach its program through /proc.
fn sealed_copy(memfd: io::Result<()>, memfd_noexec: &str) -> Finding {
    match (memfd, memfd_noexec.trim()) {
        (Ok(()), "2") => Finding::degraded(
            "sealed copy",
            "programs in memory may not run here; berth runs from its file, or: sysctl vm.memfd_noexec=1",
        ),
        (Ok(()), _) => Finding::good("sealed copy", "the supervisor runs from a copy no container can change"),
        (Err(cause), _) => Finding::degraded("sealed copy", format!("{cause}; berth runs from its file")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(Release::parse("6.1.0-18-amd64"), Some(Release(6, 1)));
        assert_eq!(Release::parse("5.10"), Some(Release(5, 10)));
        assert_eq!(Release::parse("linux"), None);
        assert!(Release(5, 9) < FLOOR && Release(6, 0) > FLOOR);
        assert_eq!(release("5.4.0").state, State::Degraded);
    }

    #[test]
    fn one_union_filesystem_is_enough() {
        let states = |text| unions(text).into_iter().map(|finding| finding.state).collect::<Vec<_>>();
        assert_eq!(states("nodev\toverlay\n\text4\n"), [State::Good, State::Good]);
        assert_eq!(states("nodev\taufs\n"), [State::Degraded, State::Good]);
        assert_eq!(states("nodev\toverlayfs2\n")[0], State::Missing);
    }

    #[test]
    fn a_refused_namespace_says_what_to_do() {
        let refused = |errno| namespace("pid namespace", Err(io::Error::from_raw_os_error(errno)));
        assert!(refused(libc::ENOSPC).says.contains("max_*_namespaces"));
        assert!(refused(libc::EPERM).says.contains("as root"));
        assert_eq!(refused(libc::EINVAL).state, State::Missing);
    }

    #[test]
    fn a_machine_that_runs_nothing_from_memory_only_degrades() {
        assert_eq!(sealed_copy(Ok(()), "2\n").state, State::Degraded);
        assert_eq!(sealed_copy(Ok(()), "").state, State::Good);
    }
}
