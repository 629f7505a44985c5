//! The state dir: whether its filesystem can hold the writable layer of a container, and how much.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::{Finding, on_a_thread};

const MIB: u64 = 1024 * 1024;

pub(super) fn examine(state_dir: &Path) -> Vec<Finding> {
    let existing = nearest_existing(state_dir);
    vec![state_dir_finding(&existing, &try_overlay(&existing)), free_space(&existing, rustix::fs::statvfs(&existing))]
}

/// The state dir, or the folder it would be made in.
fn nearest_existing(state_dir: &Path) -> PathBuf {
    let nearest = state_dir.ancestors().find(|folder| folder.is_dir());
    nearest.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// How an overlay with its writable layer in a folder went.
#[derive(Debug)]
struct Trial {
    overlay: io::Result<()>,
    volatile: io::Result<()>,
    xattrs: io::Result<()>,
}

/// Mounts overlays with their writable layers in `folder`, and leaves nothing.
fn try_overlay(folder: &Path) -> io::Result<Trial> {
    let scratch = folder.join(format!(".berth-doctor-{}", std::process::id()));
    let made = ["lower", "upper", "work", "volatile-upper", "volatile-work", "merged"]
        .iter()
        .try_for_each(|name| std::fs::create_dir_all(scratch.join(name)));
    let trial = made.and_then(|()| {
        // The mounts end with the thread that is alone in their namespace.
        on_a_thread(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            // Short relative names: no colon or comma of the folder's own can get into the options.
            rustix::process::chdir(&scratch)?;
            Ok(Trial {
                overlay: mount_overlay("upper", "work", ""),
                volatile: mount_overlay("volatile-upper", "volatile-work", ",volatile"),
                xattrs: Ok(rustix::fs::setxattr("upper", "trusted.overlay.opaque", b"y", XattrFlags::empty())?),
            })
        })
    });
    // That it cannot be removed is no news beside why it could not be made.
    let _ = std::fs::remove_dir_all(&scratch);
    trial
}

fn mount_overlay(upper: &str, work: &str, option: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(format!("lowerdir=lower,upperdir={upper},workdir={work}{option}"))?;
    rustix::mount::mount("overlay", "merged", "overlay", MountFlags::NODEV, Some(options.as_c_str()))?;
    std::fs::write("merged/file", "through the overlay")?;
    std::fs::metadata(Path::new(upper).join("file")).map(drop)
}

fn state_dir_finding(folder: &Path, trial: &io::Result<Trial>) -> Finding {
    const NAME: &str = "state dir";
    const HINT: &str = "choose a --state-dir on ext4, xfs, btrfs or tmpfs";
    let at = folder.display();
    match trial {
        Err(cause) => Finding::missing(NAME, format!("cannot try an overlay in {at}: {cause}")),
        Ok(Trial { overlay: Err(cause), .. }) => {
            Finding::missing(NAME, format!("{at} cannot hold the writable layer of an overlay ({cause}); {HINT}"))
        }
        Ok(Trial { xattrs: Err(cause), .. }) => {
            Finding::missing(NAME, format!("{at} takes no trusted extended attributes ({cause}); {HINT}"))
        }
        Ok(Trial { volatile: Err(cause), .. }) => {
            Finding::missing(NAME, format!("{at} cannot hold a volatile overlay ({cause}); that needs Linux 5.10"))
        }
        Ok(_) => Finding::good(NAME, format!("{at} holds the writable layers of containers")),
    }
}

fn free_space(folder: &Path, found: rustix::io::Result<rustix::fs::StatVfs>) -> Finding {
    match found {
        Ok(found) => judge_space(found.f_bavail.saturating_mul(found.f_frsize), found.f_favail, found.f_files),
        Err(cause) => Finding::degraded("free space", format!("cannot be read of {}: {cause}", folder.display())),
    }
}

/// `inodes` are what is left of `all_inodes`; a filesystem that makes them as needed says 0 of 0.
fn judge_space(bytes: u64, inodes: u64, all_inodes: u64) -> Finding {
    const NAME: &str = "free space";
    let free = format!("{} MiB", bytes / MIB);
    if bytes < 64 * MIB {
        Finding::missing(NAME, format!("{free} is too little for images and containers"))
    } else if all_inodes > 0 && inodes < 10_000 {
        Finding::degraded(NAME, format!("{free}, but only {inodes} inodes: containers soon cannot be made"))
    } else if bytes < 1024 * MIB {
        Finding::degraded(NAME, format!("{free}; a job that writes more fails"))
    } else {
        Finding::good(NAME, free)
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::scratch::{Scratch, root_or_skip};

    #[test]
    fn a_state_dir_that_is_not_there_is_judged_by_the_folder_it_would_be_made_in() {
        let scratch = Scratch::new("doctor");
        assert_eq!(nearest_existing(&scratch.join("a/b/c")), scratch.path());
        assert_eq!(nearest_existing(Path::new("no-such-folder/b")), Path::new("."));
    }

    #[test]
    fn a_filesystem_that_cannot_hold_an_upper_layer_is_refused() {
        if !root_or_skip("trying an overlay needs root") {
            return;
        }
        let trial = try_overlay(Path::new("/proc"));
        assert!(trial.is_err());
        assert_eq!(state_dir_finding(Path::new("/proc"), &trial).state, State::Missing);
        let refused = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        let trial = Ok(Trial { overlay: refused(), volatile: Ok(()), xattrs: Ok(()) });
        assert!(state_dir_finding(Path::new("/nfs"), &trial).says.contains("--state-dir on ext4"));
    }

    #[test]
    fn little_space_and_few_inodes_are_said() {
        assert_eq!(judge_space(10 * MIB, 1 << 20, 1 << 20).state, State::Missing);
        assert_eq!(judge_space(500 * MIB, 1 << 20, 1 << 20).state, State::Degraded);
        assert_eq!(judge_space(5000 * MIB, 10, 1 << 20).state, State::Degraded);
        assert_eq!(judge_space(5000 * MIB, 0, 0).state, State::Good);
    }
}
