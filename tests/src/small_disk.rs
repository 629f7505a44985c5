//! A disk of a few MiB, ext4 on a loop device, to be filled and emptied again.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::mount::{detach, tool};
use crate::node::path;
use crate::sandbox::Sandbox;

/// A mounted disk. Unmounted when dropped, so it must be dropped after whoever lives on it.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    // Dropped after the disk is unmounted, which `drop` sees to.
    _sandbox: Sandbox,
}

impl SmallDisk {
    /// A disk of so many MiB, mounted at a folder of its own.
    pub fn of_mib(mib: u64) -> SmallDisk {
        let sandbox = Sandbox::new();
        let at = sandbox.folder("disk");
        SmallDisk::at(sandbox, at, mib)
    }

    /// The same, mounted at `at`.
    pub fn of_mib_at(at: &Path, mib: u64) -> SmallDisk {
        SmallDisk::at(Sandbox::new(), at.to_owned(), mib)
    }

    fn at(sandbox: Sandbox, at: PathBuf, mib: u64) -> SmallDisk {
        let image = sandbox.dir().join("image");
        let file = File::create(&image).and_then(|file| file.set_len(mib << 20));
        file.unwrap_or_else(|error| panic!("cannot make {}: {error}", image.display()));
        // No blocks kept for root, who is everybody here; no journal, so that what is removed is free at once.
        tool("mkfs.ext4", &["-q", "-m", "0", "-O", "^has_journal", path(&image)]);
        tool("mount", &["-o", "loop", path(&image), path(&at)]);
        SmallDisk { at, _sandbox: sandbox }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let filler = self.at.join("filler");
        let file = File::options().create(true).append(true).open(&filler);
        let mut file = file.unwrap_or_else(|error| panic!("cannot make {}: {error}", filler.display()));
        // Large pieces first, then what is left between them.
        for piece in [vec![0; 1 << 20], vec![0; 4096], vec![0; 1]] {
            loop {
                match file.write(&piece) {
                    Ok(written) if written > 0 => {}
                    Ok(_) => break,
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("cannot fill {}: {error}", filler.display()),
                }
            }
        }
        // What was only promised room finds out here.
        let _ = file.sync_all();
    }

    /// From now on this file of it cannot be written or replaced, not even by who has it open (chattr(1), `i`): as on a disk
    /// that went read-only, but that this can be undone.
    pub fn seal(&self, file: &str) {
        tool("chattr", &["+i", path(&self.at.join(file))]);
    }

    /// Undoes [`SmallDisk::seal`].
    pub fn unseal(&self, file: &str) {
        tool("chattr", &["-i", path(&self.at.join(file))]);
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn empty(&self) {
        let filler = self.at.join("filler");
        fs::remove_file(&filler).unwrap_or_else(|error| panic!("cannot remove {}: {error}", filler.display()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(&self.at);
    }
}
