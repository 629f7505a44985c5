//! Removing a folder with all that is in it, whatever a payload has made of it.
//!
//! A tree may be deeper than any path is long, than there are descriptors and than there is stack. So only so many levels are
//! ever open: what lies deeper is moved to the top, whole, and has its turn there. On one disk a rename costs next to
//! nothing. Symlinks are removed, never followed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// So many levels are open at a time.
const LEVELS: usize = 32;

/// Removes `folder` with all that is in it. What resists keeps nothing else; the error is of the first that did.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    let top = open(CWD, folder)?;
    loop {
        let mut pass = Pass { top: top.as_fd(), moved: false, resisted: None };
        pass.empty(Dir::read_from(&top)?, LEVELS);
        // A folder is moved at most once, so this comes to an end.
        if !pass.moved {
            return Ok(pass.resisted.map_or_else(|| rustix::fs::rmdir(folder), Err)?);
        }
    }
}

/// One way through what is there.
struct Pass<'a> {
    top: BorrowedFd<'a>,
    moved: bool,
    resisted: Option<Errno>,
}

impl Pass<'_> {
    /// Removes what is in a folder, opening so many levels below it.
    fn empty(&mut self, mut folder: Dir, levels: usize) {
        while let Some(entry) = folder.read() {
            let removed = entry.and_then(|entry| self.remove(folder.fd()?, &entry, levels));
            match removed {
                // Somebody else was quicker, such as the sweeper of a supervisor that is gone.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    self.resisted.get_or_insert(errno);
                }
            }
        }
    }

    fn remove(&mut self, folder: BorrowedFd<'_>, entry: &DirEntry, levels: usize) -> Result<(), Errno> {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            return Ok(());
        }
        if !is_folder(folder, entry)? {
            return rustix::fs::unlinkat(folder, name, AtFlags::empty());
        }
        let Some(levels) = levels.checked_sub(1) else {
            // Named by its inode number: while it is there no other has it.
            rustix::fs::renameat(folder, name, self.top, format!("deep-{}", entry.ino()))?;
            self.moved = true;
            return Ok(());
        };
        self.empty(Dir::new(open(folder, name)?)?, levels);
        rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
    }
}

/// Not every filesystem tells the type with the name (getdents(2), `DT_UNKNOWN`).
fn is_folder(folder: BorrowedFd<'_>, entry: &DirEntry) -> Result<bool, Errno> {
    let file_type = match entry.file_type() {
        FileType::Unknown => {
            let seen = rustix::fs::statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            FileType::from_raw_mode(seen.st_mode)
        }
        told => told,
    };
    Ok(file_type == FileType::Directory)
}

fn open(at: BorrowedFd<'_>, name: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    /// Folders one in the other, each with a file, as deep as asked.
    fn dig(top: &Path, depth: usize) {
        std::fs::create_dir(top).unwrap();
        let mut at = open(CWD, top).unwrap();
        for _ in 0..depth {
            let file = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&at, "f", file, Mode::RUSR).unwrap();
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = open(at.as_fd(), "d").unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed_to_its_last_file() {
        let scratch = Scratch::new("remove-tree");
        let top = scratch.join("top");
        dig(&top, 20_000);
        dig(&top.join("beside"), LEVELS + 1);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn a_symlink_is_removed_and_what_it_points_to_is_not() {
        let scratch = Scratch::new("remove-tree");
        scratch.write("outside/kept", "");
        scratch.write("top/in/file", "");
        std::os::unix::fs::symlink(scratch.join("outside"), scratch.join("top/in/link")).unwrap();
        std::os::unix::fs::symlink(scratch.join("top"), scratch.join("link")).unwrap();
        assert!(remove_tree(&scratch.join("link")).is_err());
        remove_tree(&scratch.join("top")).unwrap();
        assert!(scratch.join("outside/kept").exists() && !scratch.join("top").exists());
    }

    #[test]
    fn what_is_not_there_is_said_so() {
        let scratch = Scratch::new("remove-tree");
        assert_eq!(remove_tree(&scratch.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
