//! The state dir: made if it is missing, and locked so that two masters never use it at once.
//!
//! The lock is flock(2), which the kernel gives up with the process, and which GlusterFS has its bricks keep: there it is
//! given up when the process ends, or when the bricks have not heard of its host for a while. See `docs/standby.md`.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use wire::proc_text;

/// Filesystems that more than one machine may have mounted, or where nobody can tell: all of FUSE (proc_pid_mountinfo(5)).
const SHARED: [&str; 12] =
    ["fuse", "nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "9p", "virtiofs", "afs", "gfs2", "ocfs2"];

/// Why the state dir could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It could not be made.
    #[error("cannot make the state dir {}: {cause}; hint: give another --state-dir", dir.display())]
    Make {
        /// Which.
        dir: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The lock could not be asked for.
    #[error("cannot lock the state dir {}: {cause}", dir.display())]
    Lock {
        /// Which.
        dir: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It is not there, and was not to be made.
    #[error(
        "cannot wait for the state dir {}: it is not there; hint: mount the share it is on, or make it with mkdir",
        dir.display()
    )]
    Missing {
        /// Which.
        dir: PathBuf,
    },
    /// Another master has it.
    #[error(
        "cannot lock the state dir {}: another berth-master uses it{}; hint: give another --state-dir, or --wait to wait \
         for its end",
        dir.display(),
        by.as_ref().map(|by| format!(" ({by})")).unwrap_or_default()
    )]
    Taken {
        /// Which.
        dir: PathBuf,
        /// Who, in words.
        by: Option<String>,
    },
}

/// A state dir that is ours until this value goes, or the process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes `dir` if need be (for its owner alone: command lines may hold secrets) and locks it.
    pub fn take(dir: &Path) -> Result<StateDir, StateDirError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|cause| StateDirError::Make { dir: dir.into(), cause })?;
        StateDir::take_made(dir)
    }

    /// Locks `dir`, which must be there.
    pub fn take_made(dir: &Path) -> Result<StateDir, StateDirError> {
        let refused = |cause| StateDirError::Lock { dir: dir.into(), cause };
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join("lock"));
        let lock = lock.map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => StateDirError::Missing { dir: dir.into() },
            _ => refused(cause),
        })?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path: dir.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                Err(StateDirError::Taken { dir: dir.into(), by: crate::claim::who_has(dir) })
            }
            Err(TryLockError::Error(cause)) => Err(refused(cause)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether other machines may have it too.
    pub fn is_shared(&self) -> Result<bool, StateDirError> {
        let refused = |cause| StateDirError::Lock { dir: self.path.clone(), cause };
        let path = self.path.canonicalize().map_err(refused)?;
        let mounts = proc_text::read("/proc/self/mountinfo").map_err(refused)?;
        Ok(filesystem_of(&path, &mounts).is_some_and(|kind| SHARED.contains(&kind.split('.').next().unwrap_or(kind))))
    }
}

/// The kind of the filesystem a path is on: the last mounted of those at its longest prefix (proc_pid_mountinfo(5)).
fn filesystem_of<'a>(path: &Path, mountinfo: &'a str) -> Option<&'a str> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        Some((PathBuf::from(proc_text::unescape(place.split(' ').nth(4)?)), kind.split(' ').next()?))
    });
    let around = mounts.filter(|(point, _)| path.starts_with(point));
    around.max_by_key(|(point, _)| point.components().count()).map(|(_, kind)| kind)
}

#[cfg(test)]
pub use tests::Scratch;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A folder for one test, gone with this value.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new() -> Scratch {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            // Where there is a file system in memory, a sync costs nothing.
            let memory = Path::new("/dev/shm");
            let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
            let dir = parent.join(format!("berth-test-master-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_second_master_is_refused_until_the_first_is_gone() {
        let scratch = Scratch::new();
        let dir = scratch.path().join("made/on/the/way");
        let first = StateDir::take(&dir).unwrap();
        assert!(matches!(StateDir::take(&dir), Err(StateDirError::Taken { .. })));
        drop(first);
        // A child that a test beside this one has just forked holds it too, until it execs.
        let give_up = Instant::now() + Duration::from_secs(60);
        let second = loop {
            match StateDir::take(&dir) {
                Err(StateDirError::Taken { .. }) if Instant::now() < give_up => std::thread::yield_now(),
                taken => break taken.unwrap(),
            }
        };
        assert_eq!(second.path(), dir);
    }

    #[test]
    fn one_who_waits_never_makes_the_folder() {
        let scratch = Scratch::new();
        let dir = scratch.path().join("of a share that is not mounted");
        assert!(matches!(StateDir::take_made(&dir), Err(StateDirError::Missing { .. })));
        assert!(!dir.exists());
    }

    #[test]
    fn a_share_is_told_by_the_filesystem_that_was_mounted_last_and_nearest() {
        let mounts = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      35 21 0:31 / /mnt/a\\040share rw shared:1 - fuse.glusterfs 10.0.0.1:/v rw\n\
                      36 35 0:40 / /mnt/a\\040share/disk rw - xfs /dev/sdb rw\n\
                      37 21 0:41 / /srv rw - xfs /dev/sdc rw\n\
                      38 37 0:42 / /srv rw - nfs4 host:/srv rw\n";
        let of = |path: &str| filesystem_of(Path::new(path), mounts);
        assert_eq!(of("/var/lib/berth-master"), Some("ext4"));
        assert_eq!(of("/mnt/a share/berth"), Some("fuse.glusterfs"));
        assert_eq!(of("/mnt/a share/disk/berth"), Some("xfs"));
        assert_eq!(of("/srv/berth"), Some("nfs4"));
    }
}
