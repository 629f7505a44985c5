//! Packages: files and folders of the node that a job brings into its /workspace.
//!
//! Only what lies below a configured package root can be one. The path is opened by openat2(2) (Linux 5.6)
//! beneath that root, so a symlink may point anywhere inside the root and nowhere else. [`check`] is lexical and
//! may run in the event loop; all else touches the disk, or a network filesystem, and belongs to init.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use thiserror::Error;
use wire::{BadInput, JobSpec};

/// One package, open.
#[derive(Debug)]
pub struct Package {
    /// Its last path component: what a file is called in /workspace.
    pub name: OsString,
    /// The path the job named, for messages and for the LXC config.
    pub path: PathBuf,
    /// A folder is open `O_PATH`, a file for reading.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: PackageKind,
}

/// What a package is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageKind {
    /// Its content appears in /workspace: a lower layer of the overlay there.
    Directory,
    /// Copied into /workspace under its name.
    File {
        /// Its permission bits.
        mode: u32,
    },
}

/// What became of a file that was to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staged {
    /// It is there now.
    Copied,
    /// Something of that name was there already and stays: the first package wins.
    Shadowed,
}

/// What went wrong with a package.
#[derive(Debug, Error)]
pub enum PackageError {
    /// It is below no root.
    #[error(transparent)]
    Refused(#[from] BadInput),
    /// The root that should hold it could not be opened.
    #[error("cannot open package root {root}: {cause}; hint: is it mounted on this node?")]
    OpenRoot {
        /// The root.
        root: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It could not be opened.
    #[error("cannot open package {path}: {cause}")]
    Open {
        /// The path the job named.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A symlink on its path points out of the root, or is absolute.
    #[error(
        "cannot open package {path}: a symlink leads out of {root}; \
         hint: links below a package root are relative and stay inside"
    )]
    LeadsOut {
        /// The path the job named.
        path: PathBuf,
        /// The root it left.
        root: PathBuf,
    },
    /// It is a device, a FIFO or a socket.
    #[error("cannot take package {path}: it is neither a folder nor a regular file")]
    Special {
        /// The path the job named.
        path: PathBuf,
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
pub fn check(roots: &[PathBuf], spec: &JobSpec) -> Result<(), BadInput> {
    spec.packages().try_for_each(|path| place(roots, Path::new(path)).map(|_| ()))
}

/// Opens every package of the job, in its order. May block for as long as the filesystem below the roots does.
pub fn resolve(roots: &[PathBuf], spec: &JobSpec) -> Result<Vec<Package>, PackageError> {
    spec.packages().map(|path| Place::open(place(roots, Path::new(path))?)).collect()
}

/// Copies a file package into `workspace` under its name, with its permission bits but neither its owner nor set-id.
pub fn copy_into(package: &Package, workspace: BorrowedFd<'_>) -> Result<Staged, PackageError> {
    let fail = |cause: io::Error| PackageError::Copy { path: package.path.clone(), cause };
    let PackageKind::File { mode } = package.kind else {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = match rustix::fs::openat(workspace, &package.name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => File::from(fd),
        Err(Errno::EXIST) => return Ok(Staged::Shadowed),
        Err(cause) => return Err(fail(cause.into())),
    };
    copy_content(package.fd.as_fd(), &copy, mode).map_err(|cause| {
        // Half a file is worse than none; that it cannot be removed would be no news beside `cause`.
        let _ = rustix::fs::unlinkat(workspace, &package.name, AtFlags::empty());
        fail(cause)
    })?;
    Ok(Staged::Copied)
}

/// Shares the blocks where the filesystem can (FICLONE), else copies inside the kernel: io::copy tries
/// copy_file_range(2), then sendfile(2).
fn copy_content(source: BorrowedFd<'_>, mut copy: &File, mode: u32) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(copy, source).is_err() {
        let mut source = File::from(source.try_clone_to_owned()?);
        source.rewind()?;
        io::copy(&mut source, &mut copy)?;
    }
    copy.set_permissions(Permissions::from_mode((mode & 0o777) | 0o600))
}

/// Where a package lies: `rest` below `root`.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    path: &'a Path,
    root: &'a Path,
    rest: &'a Path,
    name: &'a OsStr,
}

/// Finds the root a path lies in; the innermost, where roots are nested. A root itself may be a package.
fn place<'a>(roots: &'a [PathBuf], path: &'a Path) -> Result<Place<'a>, BadInput> {
    let refuse = |message: String| BadInput::new("packagePath", message);
    let inside = roots.iter().filter_map(|root| path.strip_prefix(root).ok().map(|rest| (root.as_path(), rest)));
    let innermost = inside.min_by_key(|(_, rest)| rest.components().count());
    match (innermost, path.file_name()) {
        (Some((root, rest)), Some(name)) if !path.components().any(|part| part.as_os_str() == "..") => {
            let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
            Ok(Place { path, root, rest, name })
        }
        _ if roots.is_empty() => {
            Err(refuse("this node takes no packages: it was started without --package-root".into()))
        }
        _ => {
            let roots: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
            Err(refuse(format!("{path:?} is not below a package root of this node ({})", roots.join(", "))))
        }
    }
}

impl Place<'_> {
    fn open(self) -> Result<Package, PackageError> {
        let root_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.root, root_flags, Mode::empty())
            .map_err(|cause| PackageError::OpenRoot { root: self.root.to_owned(), cause: cause.into() })?;
        // O_PATH first: merely opening a device or a FIFO can act or hang.
        let fd = self.open_beneath(root.as_fd(), OFlags::PATH)?;
        let (fd, kind) = match self.kind_of(&fd)? {
            PackageKind::Directory => (fd, PackageKind::Directory),
            PackageKind::File { .. } => {
                // The name may mean something else by now, so what counts is what this open found.
                let fd = self.open_beneath(root.as_fd(), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
                let kind = self.kind_of(&fd)?;
                (fd, kind)
            }
        };
        Ok(Package { name: self.name.to_owned(), path: self.path.to_owned(), fd, kind })
    }

    fn open_beneath(&self, root: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, PackageError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let open = || rustix::fs::openat2(root, self.rest, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        // EAGAIN: something was renamed while a `..` was walked; openat2(2) says to try again.
        let mut opened = open();
        for _ in 0..16 {
            if opened.as_ref().err() != Some(&Errno::AGAIN) {
                break;
            }
            opened = open();
        }
        opened.map_err(|cause| match cause {
            Errno::XDEV => PackageError::LeadsOut { path: self.path.to_owned(), root: self.root.to_owned() },
            cause => PackageError::Open { path: self.path.to_owned(), cause: cause.into() },
        })
    }

    fn kind_of(&self, fd: &OwnedFd) -> Result<PackageKind, PackageError> {
        let stat = rustix::fs::fstat(fd)
            .map_err(|cause| PackageError::Open { path: self.path.to_owned(), cause: cause.into() })?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(PackageKind::Directory),
            FileType::RegularFile => Ok(PackageKind::File { mode: stat.st_mode & 0o7777 }),
            _ => Err(PackageError::Special { path: self.path.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::scratch::Scratch;

    fn spec(packages: &str) -> JobSpec {
        let text = r#"{"name":"a","resource":{"cpu":"0","mem":64},"commandLine":"true","imageId":"b"}"#;
        let spec: JobSpec = wire::json::from_slice(text.as_bytes()).unwrap();
        JobSpec { package_path: packages.to_owned(), ..spec }
    }

    /// Resolves the one package at `name` below the scratch directory's `root`.
    fn resolve_one(scratch: &Scratch, name: &str) -> Result<Package, PackageError> {
        let root = scratch.join("root");
        let path = format!("{}/{name}", root.display());
        resolve(&[root], &spec(&path)).map(|mut packages| packages.remove(0))
    }

    #[test]
    fn only_what_lies_below_a_root_is_taken_and_names_that_merely_begin_alike_do_not() {
        let roots = [PathBuf::from("/srv/pkgs"), PathBuf::from("/opt/")];
        for good in ["/srv/pkgs/a", "/srv//pkgs/./a/b", "/opt/x;/srv/pkgs/y", "/srv/pkgs", ""] {
            assert_eq!(check(&roots, &spec(good)), Ok(()), "{good}");
        }
        for bad in ["/srv/pkgs-evil/a", "/srv", "/", "/etc/passwd", "/srv/pkgs/a;/etc", "relative", "/srv/pkgs/../x"] {
            assert_eq!(check(&roots, &spec(bad)).unwrap_err().field, "packagePath", "{bad}");
        }
        assert!(check(&[], &spec("/srv/pkgs/a")).unwrap_err().message.contains("--package-root"));
    }

    #[test]
    fn nested_roots_are_opened_at_the_innermost() {
        let roots = [PathBuf::from("/srv"), PathBuf::from("/srv/pkgs")];
        let found = place(&roots, Path::new("/srv/pkgs/a")).unwrap();
        assert_eq!((found.root, found.rest), (Path::new("/srv/pkgs"), Path::new("a")));
    }

    #[test]
    fn a_symlink_inside_the_root_is_followed_and_one_that_leads_out_is_refused() {
        let scratch = Scratch::new("packages");
        scratch.write("secret", "host");
        scratch.write("root/v2/tool", "two");
        symlink("v2", scratch.join("root/current")).unwrap();
        symlink("../secret", scratch.join("root/out")).unwrap();
        symlink(scratch.join("secret"), scratch.join("root/absolute")).unwrap();
        symlink("..", scratch.join("root/v2/up")).unwrap();

        assert!(matches!(resolve_one(&scratch, "current/tool").unwrap().kind, PackageKind::File { .. }));
        assert_eq!(resolve_one(&scratch, "current").unwrap().kind, PackageKind::Directory);
        assert_eq!(resolve_one(&scratch, "v2/up/v2").unwrap().kind, PackageKind::Directory);
        for out in ["out", "absolute"] {
            assert!(matches!(resolve_one(&scratch, out), Err(PackageError::LeadsOut { .. })), "{out}");
        }
        assert!(matches!(resolve_one(&scratch, "none"), Err(PackageError::Open { .. })));
    }

    #[test]
    fn magic_links_and_special_files_are_no_packages_and_block_nobody() {
        let scratch = Scratch::new("packages");
        std::fs::create_dir(scratch.join("root")).unwrap();
        nix::unistd::mkfifo(&scratch.join("root/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        symlink("/proc/self/exe", scratch.join("root/magic")).unwrap();
        assert!(matches!(resolve_one(&scratch, "fifo"), Err(PackageError::Special { .. })));
        assert!(matches!(resolve_one(&scratch, "magic"), Err(PackageError::LeadsOut { .. })));
        let through_proc = resolve(&["/proc".into()], &spec("/proc/self/root/etc"));
        assert!(matches!(through_proc, Err(PackageError::Open { .. })), "{through_proc:?}");
    }

    #[test]
    fn a_file_is_copied_with_its_x_bit_and_without_set_id_and_the_first_wins() {
        let scratch = Scratch::new("packages");
        scratch.write("root/tool", vec![7; 300_000]);
        scratch.write("root/other/tool", "second");
        std::fs::create_dir(scratch.join("workspace")).unwrap();
        std::fs::set_permissions(scratch.join("root/tool"), Permissions::from_mode(0o4755)).unwrap();
        let workspace = File::open(scratch.join("workspace")).unwrap();

        let (first, second) = (resolve_one(&scratch, "tool").unwrap(), resolve_one(&scratch, "other/tool").unwrap());
        assert_eq!(copy_into(&first, workspace.as_fd()).unwrap(), Staged::Copied);
        assert_eq!(copy_into(&second, workspace.as_fd()).unwrap(), Staged::Shadowed);
        let copy = scratch.join("workspace/tool");
        assert_eq!(std::fs::read(&copy).unwrap(), vec![7; 300_000]);
        assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_symlink_planted_in_the_workspace_is_not_written_through() {
        let scratch = Scratch::new("packages");
        scratch.write("root/tool", "new");
        scratch.write("victim", "old");
        std::fs::create_dir(scratch.join("workspace")).unwrap();
        symlink("../victim", scratch.join("workspace/tool")).unwrap();
        let workspace = File::open(scratch.join("workspace")).unwrap();
        assert_eq!(copy_into(&resolve_one(&scratch, "tool").unwrap(), workspace.as_fd()).unwrap(), Staged::Shadowed);
        assert_eq!(std::fs::read(scratch.join("victim")).unwrap(), b"old");
    }
}
