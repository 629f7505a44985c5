//! The state dir: whether its filesystem can hold the writable layer of a container, and how much.

use std::io;
use std::path::{Path, PathBuf};

use super::{Finding, read};
use crate::lxc_config::UnionDriver;
use crate::unions::{self, kernel_has};

const MIB: u64 = 1024 * 1024;

pub(super) fn examine(state_dir: &Path) -> Vec<Finding> {
    let existing = nearest_existing(state_dir);
    let filesystems = read("/proc/filesystems");
    let there =
        [UnionDriver::Aufs, UnionDriver::Overlay].into_iter().filter(|driver| kernel_has(*driver, &filesystems));
    let trials: Vec<_> = there.map(|driver| (driver, unions::prove(driver, &existing))).collect();
    vec![state_dir_finding(&existing, &trials), free_space(&existing, rustix::fs::statvfs(&existing))]
}

/// The state dir, or the folder it would be made in.
fn nearest_existing(state_dir: &Path) -> PathBuf {
    let nearest = state_dir.ancestors().find(|folder| folder.is_dir());
    nearest.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

/// From how each union filesystem of this kernel did in a folder, the preferred first.
fn state_dir_finding(folder: &Path, trials: &[(UnionDriver, io::Result<()>)]) -> Finding {
    const NAME: &str = "state dir";
    const HINT: &str = "choose a --state-dir on ext4, xfs, btrfs or tmpfs";
    let at = folder.display();
    let works = trials.iter().find(|(_, trial)| trial.is_ok()).map(|(driver, _)| driver.as_str());
    let fails = trials.iter().find_map(|(driver, trial)| Some((driver.as_str(), trial.as_ref().err()?)));
    match (works, fails) {
        (Some(works), None) => {
            Finding::good(NAME, format!("{at} holds the writable layers of containers: tried with {works}"))
        }
        (Some(works), Some((fails, cause))) => {
            Finding::degraded(NAME, format!("{at} holds them with {works}, and not with {fails}: {cause}"))
        }
        (None, Some((fails, cause))) => Finding::missing(
            NAME,
            format!("{at} cannot hold the writable layer of a container with {fails}: {cause}; {HINT}"),
        ),
        (None, None) => Finding::missing(NAME, "there is no union filesystem to try in it"),
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
    use crate::scratch::Scratch;

    #[test]
    fn a_state_dir_that_is_not_there_is_judged_by_the_folder_it_would_be_made_in() {
        let scratch = Scratch::new("doctor");
        assert_eq!(nearest_existing(&scratch.join("a/b/c")), scratch.path());
        assert_eq!(nearest_existing(Path::new("no-such-folder/b")), Path::new("."));
    }

    #[test]
    fn a_filesystem_that_cannot_hold_an_upper_layer_is_refused_and_one_that_works_is_enough() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        let finding = |aufs, overlay| {
            let trials = [(UnionDriver::Aufs, aufs), (UnionDriver::Overlay, overlay)];
            state_dir_finding(Path::new("/state"), &trials)
        };
        assert_eq!(finding(Ok(()), Ok(())).state, State::Good);
        assert!(finding(Ok(()), Ok(())).says.ends_with("tried with aufs"), "the one that is chosen");
        assert_eq!(finding(refused(), Ok(())).state, State::Degraded);
        assert_eq!(finding(refused(), refused()).state, State::Missing);
        let only = state_dir_finding(Path::new("/nfs"), &[(UnionDriver::Overlay, refused())]);
        assert!(only.state == State::Missing && only.says.contains("--state-dir on ext4"), "{}", only.says);
        assert_eq!(state_dir_finding(Path::new("/state"), &[]).state, State::Missing);
    }

    #[test]
    fn little_space_and_few_inodes_are_said() {
        assert_eq!(judge_space(10 * MIB, 1 << 20, 1 << 20).state, State::Missing);
        assert_eq!(judge_space(500 * MIB, 1 << 20, 1 << 20).state, State::Degraded);
        assert_eq!(judge_space(5000 * MIB, 10, 1 << 20).state, State::Degraded);
        assert_eq!(judge_space(5000 * MIB, 0, 0).state, State::Good);
    }
}
