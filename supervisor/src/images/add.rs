//! Adding an image: copy or unpack beside the images, look it over, and only then give it its name.

use std::fs::Metadata;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;
use wire::ImageId;

use super::remove::{remove_tree, sweep_leftovers};
use super::{Folder, ImageError, ImgDir, exists, layers, unpack};

/// Makes image `id` from a folder or a tar file, plain or gzip. All or nothing: what fails leaves nothing behind.
pub fn add(img_dir: &Path, id: &ImageId, source: &Path) -> Result<(), ImageError> {
    if exists(img_dir, id) {
        return Err(ImageError::Exists { id: id.clone() });
    }
    std::fs::create_dir_all(img_dir).map_err(ImageError::disk("make", img_dir))?;
    sweep_leftovers(img_dir);
    let target = img_dir.join(format!(".adding-{id}-{}", std::process::id()));
    std::fs::create_dir(&target).map_err(ImageError::disk("make", &target))?;
    let added =
        fill(source, &target).and_then(|()| examine(img_dir, id, &target)).and_then(|()| publish(img_dir, id, &target));
    if added.is_err() {
        // The first error is the one to tell; what stays behind is swept next time.
        remove_tree(&target).unwrap_or_else(|left| log::warn!("{left}"));
    }
    added
}

fn fill(source: &Path, target: &Path) -> Result<(), ImageError> {
    let found = std::fs::metadata(source).map_err(ImageError::disk("open", source))?;
    if found.is_dir() { copy_folder(source, &found, target) } else { unpack::unpack(source, target) }
}

/// cp(1) keeps what a root filesystem is made of: modes, owners, links hard and soft, xattrs, holes.
fn copy_folder(source: &Path, found: &Metadata, target: &Path) -> Result<(), ImageError> {
    let wrong = |why: String| ImageError::Source { path: source.to_owned(), why };
    let output = Command::new("cp")
        .args(["-a", "--reflink=auto", "--"])
        .args([source.join("."), target.to_owned()])
        .env("LC_ALL", "C")
        .output()
        .map_err(|cause| wrong(format!("cannot run cp: {cause}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(wrong(said.lines().next().unwrap_or("cp failed without a word").to_owned()));
    }
    std::fs::set_permissions(target, found.permissions()).map_err(ImageError::disk("set the mode of", target))?;
    let left_out = remove_devices(target)?;
    if left_out > 0 {
        log::warn!("left out of {}: device nodes, {left_out}; containers have a /dev of their own", source.display());
    }
    Ok(())
}

/// A device node in an image would be a door to the node's hardware.
fn remove_devices(folder: &Path) -> Result<usize, ImageError> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder).map_err(ImageError::disk("read", folder))? {
        let entry = entry.map_err(ImageError::disk("read", folder))?;
        let kind = entry.file_type().map_err(ImageError::disk("read", folder))?;
        if kind.is_dir() {
            removed += remove_devices(&entry.path())?;
        } else if kind.is_block_device() || kind.is_char_device() {
            std::fs::remove_file(entry.path()).map_err(ImageError::disk("remove", &entry.path()))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What every image must have: layers and a config that make sense, and a shell.
fn examine(img_dir: &Path, id: &ImageId, target: &Path) -> Result<(), ImageError> {
    let images = ImgDir::open(img_dir)?;
    let dir = super::open_beneath(images.dir.as_fd(), Path::new(target.file_name().unwrap_or_default()), super::FOLDER)
        .map_err(|cause| ImageError::Open { path: target.to_owned(), cause })?;
    let folder = Folder { name: id.to_string(), path: target.to_owned(), dir };
    folder.config()?;
    let layers = layers::flatten(&images, folder)?;
    let shell = match layers.as_slice() {
        [only] => has_shell(only.dir.as_fd()),
        // What a union of layers makes of `bin -> usr/bin` only a mount can tell; that one has a shell at all must do.
        stack => stack.iter().any(|layer| names_shell(layer.dir.as_fd())),
    };
    if shell { Ok(()) } else { Err(ImageError::NoShell { id: id.clone() }) }
}

/// Whether `/bin/sh`, as the container will resolve it, is something to execute.
fn has_shell(root: BorrowedFd<'_>) -> bool {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let shell = rustix::fs::openat2(root, "bin/sh", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    shell.and_then(rustix::fs::fstat).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_mode & 0o111 != 0
    })
}

fn names_shell(layer: BorrowedFd<'_>) -> bool {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    ["bin/sh", "usr/bin/sh"].iter().any(|path| rustix::fs::statat(layer, *path, flags).is_ok())
}

/// Gives the image its name, in one step and over nothing. All of it is on the disk before: a power cut must not leave an
/// image whose files are empty.
fn publish(img_dir: &Path, id: &ImageId, target: &Path) -> Result<(), ImageError> {
    let name = img_dir.join(id.as_str());
    sync_all(target).map_err(ImageError::disk("sync", target))?;
    let here = rustix::fs::CWD;
    let renamed = match rustix::fs::renameat_with(here, target, here, &name, RenameFlags::NOREPLACE) {
        // The filesystem has no such flag (NFS, FUSE). A plain rename(2) over an image still fails with ENOTEMPTY.
        Err(Errno::INVAL) => rustix::fs::rename(target, &name),
        renamed => renamed,
    };
    match renamed {
        Ok(()) => sync_name(img_dir).map_err(ImageError::disk("sync", img_dir)),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Err(ImageError::Exists { id: id.clone() }),
        Err(cause) => Err(ImageError::Disk { verb: "make", path: name, cause: cause.into() }),
    }
}

/// An image may be a hundred thousand files: one syncfs(2) is cheaper than as many fsync(2).
fn sync_all(folder: &Path) -> std::io::Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(folder)?)?)
}

fn sync_name(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}
