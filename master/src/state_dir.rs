//! The state dir: made if it is missing, and locked so that two masters never write one database.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
    /// Another master has it.
    #[error("cannot lock the state dir {}: another berth-master uses it; hint: give another --state-dir", dir.display())]
    Taken {
        /// Which.
        dir: PathBuf,
    },
}

/// A state dir that is ours until this value goes, or the process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes `dir` if need be (for its owner alone: command lines may hold secrets) and locks it (flock(2)).
    pub fn take(dir: &Path) -> Result<StateDir, StateDirError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|cause| StateDirError::Make { dir: dir.into(), cause })?;
        let refused = |cause| StateDirError::Lock { dir: dir.into(), cause };
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(dir.join("lock"));
        let lock = lock.map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => Ok(StateDir { path: dir.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::Taken { dir: dir.into() }),
            Err(TryLockError::Error(cause)) => Err(refused(cause)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
pub use tests::Scratch;

#[cfg(test)]
mod tests {
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
        assert_eq!(StateDir::take(&dir).unwrap().path(), dir);
    }
}
