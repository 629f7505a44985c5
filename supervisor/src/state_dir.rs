//! The state dir: its lock, the instance id born with it, and where things are in it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use wire::InstanceId;

/// What can go wrong with the state dir.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made, or something in it cannot be read or written.
    #[error("cannot {doing} {}: {cause}", .path.display())]
    Touch {
        /// The verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Another supervisor has it.
    #[error(
        "cannot use state dir {}: another supervisor is using it; hint: stop that one, or give this one another --state-dir",
        .0.display()
    )]
    InUse(PathBuf),
    /// The instance id is not one.
    #[error("cannot use {}: it does not hold 32 hex digits; hint: remove the file if its content is of no worth", .0.display())]
    BadInstance(PathBuf),
}

/// A state dir that is ours as long as this value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder if need be, and takes its lock.
    ///
    /// The lock is a POSIX record lock (fcntl(2)): it belongs to this process alone, so a child that
    /// outlives us for a moment with our descriptors does not keep the next supervisor out.
    pub fn lock(path: &Path) -> Result<StateDir, StateDirError> {
        // What jobs are told and what they say is nobody else's business.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(touch("make", path))?;
        let lock_path = path.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).open(&lock_path);
        let lock = lock.map_err(touch("open", &lock_path))?;
        match rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateDir { path: path.to_owned(), _lock: lock }),
            Err(Errno::ACCESS | Errno::AGAIN) => Err(StateDirError::InUse(path.to_owned())),
            Err(errno) => Err(touch("lock", &lock_path)(errno.into())),
        }
    }

    /// The journal.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Who this state dir is: read, or if nobody has asked before, drawn by lot and kept.
    pub fn instance(&self) -> Result<InstanceId, StateDirError> {
        let path = self.path.join("instance");
        match std::fs::read_to_string(&path) {
            Ok(text) if is_instance(text.trim()) => Ok(InstanceId(text.trim().to_owned())),
            Ok(_) => Err(StateDirError::BadInstance(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.new_instance(),
            Err(error) => Err(touch("read", &path)(error)),
        }
    }

    /// Whether somebody has asked before: then a journal with nothing in it has lost what was.
    pub fn was_used(&self) -> bool {
        self.path.join("instance").exists()
    }

    /// Makes it another. Whoever has no journal remembers no task, and gives out the same task ids again: no
    /// master may take it for the node it knew.
    pub fn new_instance(&self) -> Result<InstanceId, StateDirError> {
        let path = self.path.join("instance");
        let instance = draw_instance().map_err(touch("read", Path::new("/dev/urandom")))?;
        keep(&path, &instance.0).map_err(touch("write", &path))?;
        Ok(instance)
    }
}

fn touch(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateDirError {
    let path = path.to_owned();
    move |cause| StateDirError::Touch { doing, path, cause }
}

fn is_instance(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn draw_instance() -> io::Result<InstanceId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(InstanceId(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Whole or not at all: a torn id would be a different node.
fn keep(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn the_instance_id_is_drawn_once_and_kept_until_it_is_to_be_another() {
        let scratch = Scratch::new("state-dir");
        let folder = scratch.path();
        let first = StateDir::lock(folder).unwrap().instance().unwrap();
        assert!(is_instance(&first.0));
        assert_eq!(StateDir::lock(folder).unwrap().instance().unwrap(), first);
        let other = StateDir::lock(folder).unwrap().new_instance().unwrap();
        assert_ne!(other, first);
        assert_eq!(StateDir::lock(folder).unwrap().instance().unwrap(), other);
        std::fs::write(folder.join("instance"), "abc").unwrap();
        assert!(matches!(StateDir::lock(folder).unwrap().instance(), Err(StateDirError::BadInstance(_))));
    }
}
