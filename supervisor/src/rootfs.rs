//! The container's root: image layers and a writable layer united, its own /proc, /sys and /dev, and the pivot.
//!
//! Everything is mounted inside the container's own mount namespace, so that nothing can leak onto the host and
//! nothing needs to be unmounted. The current folder is the container's (`cont/<id>`), and paths are short and
//! relative to it: the kernel cuts mount options at 4,095 bytes, and no name of the operator's can hold a comma.
//!
//! An image cannot lead these mounts astray with symlinks at /dev, /proc, /tmp (CVE-2026-41579, CVE-2026-47766):
//! the writable layer holds real folders of those names, and in a union what lies on top decides what a name is.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::launch::step::{Step, StepError};
use crate::lxc_config::{MountEntry, UnionDriver};
use crate::{security, unions};

pub mod mounts;

/// The writable layer (the upperdir).
pub const UPPER: &str = "usrfile";
/// The folder of the writable layer that the container sees as /workspace.
pub const UPPER_WORKSPACE: &str = "usrfile/workspace";
/// overlayfs' own scratch folder for the root.
const WORK: &str = "work";
/// overlayfs' own scratch folder for the workspace.
const WORKSPACE_WORK: &str = "workspace-work";
/// Where packages and workspace are united, until the root is there to move it into.
const WORKSPACE: &str = "workspace";
/// Where the root is united.
const ROOT: &str = "rootfs";

const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NOTHING_RUNS: MountFlags = NO_DEVICES.union(MountFlags::NOEXEC);

/// Makes the container's folders below the current one.
pub fn make_folders(driver: UnionDriver) -> Result<(), StepError> {
    rustix::process::umask(Mode::empty());
    for folder in [UPPER, WORK, ROOT] {
        make_folder(folder, 0o755)?;
    }
    for (name, mode) in [("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("tmp", 0o1777), ("workspace", 0o755)] {
        make_folder(format!("{UPPER}/{name}"), mode)?;
    }
    // Fresh, whatever the image has there.
    for name in ["tmp", "workspace"] {
        let folder = format!("{UPPER}/{name}");
        unions::hide_below(driver, &folder).step(|| format!("make {folder} opaque"))?;
    }
    Ok(())
}

/// Unites package folders (first wins) with the writable workspace, if there are any.
///
/// Before the root is united: overlayfs warns of an upperdir inside another mount's upperdir, not the reverse.
pub fn unite_workspace(driver: UnionDriver, packages: &[BorrowedFd<'_>]) -> Result<(), StepError> {
    if packages.is_empty() {
        return Ok(());
    }
    for folder in [WORKSPACE, WORKSPACE_WORK] {
        make_folder(folder, 0o755)?;
    }
    unite(driver, packages, UPPER_WORKSPACE, WORKSPACE_WORK, WORKSPACE)
}

/// The line of an LXC config that does what [`unite_workspace`] does; `None` where there is nothing to unite, or no
/// line can say it.
pub fn workspace_entry(driver: UnionDriver, container: &Path, packages: &[&Path]) -> Option<MountEntry> {
    if packages.is_empty() {
        return None;
    }
    let lowers: Vec<String> = packages.iter().map(|path| spelled(driver, path)).collect::<Option<_>>()?;
    let at = |folder: &str| container.join(folder).display().to_string();
    let (upper, work) = (at(UPPER_WORKSPACE), at(WORKSPACE_WORK));
    let options = match driver {
        UnionDriver::Overlay => unions::overlay_options(&lowers, &upper, &work),
        UnionDriver::Aufs => unions::aufs_options(&lowers, &upper, Some(&work)),
    };
    Some(MountEntry {
        source: driver.as_str().to_owned(),
        target: "workspace".to_owned(),
        fstype: driver.as_str().to_owned(),
        options: ["nosuid", "nodev"].into_iter().chain(options.split(',')).map(str::to_owned).collect(),
    })
}

/// A lower layer as a mount option. overlayfs takes the character behind a backslash as it is (the kernel's
/// filesystems/overlayfs.rst, "Multiple lower layers"); a comma ends an option for LXC, however it is spelled. AUFS
/// knows no escape at all.
fn spelled(driver: UnionDriver, layer: &Path) -> Option<String> {
    let path = layer.to_str()?;
    match driver {
        UnionDriver::Overlay => (!path.contains(',')).then(|| path.replace('\\', r"\\").replace(':', r"\:")),
        UnionDriver::Aufs => (!path.contains([',', ':', '='])).then(|| path.to_owned()),
    }
}

/// What `lxc.rootfs.options` says of the root that [`unite_root`] makes.
pub fn root_options(driver: UnionDriver) -> Vec<String> {
    let own: &[&str] = match driver {
        UnionDriver::Overlay => &["volatile"],
        UnionDriver::Aufs => &[],
    };
    ["nosuid", "nodev"].iter().chain(own).map(|&option| option.to_owned()).collect()
}

/// Unites the image's layers (top first) with the writable layer.
pub fn unite_root(driver: UnionDriver, layers: &[BorrowedFd<'_>]) -> Result<(), StepError> {
    unite(driver, layers, UPPER, WORK, ROOT)
}

fn unite(
    driver: UnionDriver,
    lowers: &[BorrowedFd<'_>],
    upper: &str,
    work: &str,
    target: &str,
) -> Result<(), StepError> {
    let lowers: Vec<String> = lowers.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())).collect();
    unions::mount(driver, &lowers, upper, work, target).step(|| format!("mount {} on {target}", driver.as_str()))
}

/// Keeps every mount of this namespace to itself: none goes to the host, none comes from it.
pub fn make_mounts_private() -> Result<(), StepError> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).step(|| "make mounts private".to_owned())
}

/// Mounts what the config lists, fills /dev, shows the container its cgroups (the place below /sys/fs/cgroup, and the
/// folder shown there), and moves the workspace in. The order is LXC's, which fills /dev after its mounts.
pub fn fit_out(entries: &[MountEntry], cgroups: &[(String, PathBuf)]) -> Result<(), StepError> {
    mounts::mount_all(entries)?;
    make_devices()?;
    show_cgroups(cgroups)?;
    if Path::new(WORKSPACE).exists() {
        rustix::mount::mount_move(WORKSPACE, in_root("workspace")).step(|| "move workspace".to_owned())?;
    }
    Ok(())
}

/// Fills the fresh /dev: only the devices of the list, terminals of its own.
fn make_devices() -> Result<(), StepError> {
    for (name, major, minor) in security::DEVICES {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(
            CWD,
            in_root(&format!("dev/{name}")),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            device,
        )
        .step(|| format!("make device {name}"))?;
    }
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    for (target, name) in links {
        rustix::fs::symlink(target, in_root(&format!("dev/{name}"))).step(|| format!("link /dev/{name}"))?;
    }
    make_folder(in_root("dev/pts"), 0o755)?;
    // As LXC mounts it for `lxc.pty.max = 1024`; 5 is Debian's group tty, and what glibc's grantpt(3) expects.
    let options = "newinstance,ptmxmode=0666,mode=0620,gid=5,max=1024";
    mount_new("devpts", "dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, Some(options))
}

/// Shows the container its own limits where programs look for them, read-only.
fn show_cgroups(cgroups: &[(String, PathBuf)]) -> Result<(), StepError> {
    const PLACE: &str = "sys/fs/cgroup";
    let by_controller = cgroups.iter().any(|(place, _)| !place.is_empty());
    if by_controller {
        mount_new("tmpfs", PLACE, NOTHING_RUNS, Some("mode=755,size=16k,nr_inodes=32"))?;
    }
    for (place, folder) in cgroups {
        let target = in_root(PLACE).join(place);
        if by_controller {
            make_folder(&target, 0o755)?;
        }
        bind_read_only(folder, &target)?;
    }
    Ok(())
}

/// A bind mount takes its options only when remounted (mount(2), "Remounting").
fn bind_read_only(source: &Path, target: &Path) -> Result<(), StepError> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | NOTHING_RUNS;
    rustix::mount::mount_bind(source, target)
        .and_then(|()| rustix::mount::mount_remount(target, flags, c""))
        .step(|| format!("bind {} read-only", target.display()))
}

/// Makes the united root this process' root, and lets go of the host's.
pub fn pivot() -> Result<(), StepError> {
    let enter = || -> io::Result<()> {
        rustix::process::chdir(ROOT)?;
        // Stacks the old root over the new one at the same place (pivot_root(2), "pivot_root(".", ".")"), and takes it off.
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        Ok(rustix::process::chdir("/")?)
    };
    enter().step(|| "pivot into the root".to_owned())
}

fn in_root(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

fn mount_new(kind: &str, target: &str, flags: MountFlags, options: Option<&str>) -> Result<(), StepError> {
    let options = options.map(|options| std::ffi::CString::new(options).unwrap_or_default());
    rustix::mount::mount(kind, in_root(target), kind, flags, options.as_deref())
        .step(|| format!("mount {kind} on /{target}"))
}

fn make_folder(path: impl AsRef<Path>, mode: u32) -> Result<(), StepError> {
    let path = path.as_ref();
    rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode)).step(|| format!("make folder {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_path_is_spelled_so_that_it_stays_one_layer_or_not_at_all() {
        let options = |driver, path: &str| {
            workspace_entry(driver, Path::new("/c"), &[Path::new("/p/a"), Path::new(path)]).map(|entry| entry.options)
        };
        let overlay = options(UnionDriver::Overlay, r"/p/a:b\c").unwrap();
        assert_eq!(overlay[2], r"lowerdir=/p/a:/p/a\:b\\c");
        assert_eq!(overlay.len(), 6);
        assert_eq!(options(UnionDriver::Overlay, "/p/a,upperdir=b"), None);
        assert_eq!(options(UnionDriver::Aufs, "/p/a:b"), None);
        assert!(options(UnionDriver::Aufs, "/p/b").is_some());
    }
}
