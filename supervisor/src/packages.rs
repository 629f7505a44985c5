//! Packages: files and folders of the node that a job brings into its /workspace.
//!
//! Only what lies below a configured package root can be one. The path is opened by openat2(2) (Linux 5.6)
//! beneath that root, so a symlink may point anywhere inside the root and nowhere else. [`check`] is lexical and may
//! run in the event loop; all else touches the disk, or a network filesystem, and belongs to init.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use thiserror::Error;
use wire::{BadInput, JobSpec};

/// One package, open.
#[derive(Debug)]
pub(crate) struct Package {
    /// Its last path component: what a file is called in /workspace.
    pub name: OsString,
    /// Where it is, for messages and for the LXC config.
    pub path: PathBuf,
    /// A folder is open `O_PATH`, a file for reading.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: PackageKind,
}

/// What a package is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackageKind {
    /// Its content appears in /workspace: a lower layer of the overlay there.
    Directory,
    /// Copied into /workspace under its name.
    File {
        /// Its permission bits.
        mode: u32,
    },
}

/// What went wrong with a package.
#[derive(Debug, Error)]
pub(crate) enum PackageError {
    /// It could not be opened.
    #[error("cannot open package {path}: {cause}")]
    Open {
        /// The path the job named.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It could not be copied.
    #[error("cannot copy package {path} into the workspace: {cause}")]
    Copy {
        /// The path the job named.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Refuses a package outside every root, without touching any file.
pub(crate) fn check(_roots: &[PathBuf], _spec: &JobSpec) -> Result<(), BadInput> {
    Ok(())
}

/// Opens every package of the job, in its order. May block for as long as the filesystem below the roots does.
pub(crate) fn resolve(_roots: &[PathBuf], _spec: &JobSpec) -> Result<Vec<Package>, PackageError> {
    Ok(Vec::new())
}

/// Copies a file package into `workspace` under its name; refuses a name that is already there.
pub(crate) fn copy_into(package: &Package, _workspace: BorrowedFd<'_>) -> Result<(), PackageError> {
    Err(PackageError::Copy { path: package.path.clone(), cause: io::Error::from(io::ErrorKind::Unsupported) })
}
