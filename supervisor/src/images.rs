//! Images: the named stacks of read-only layers below the node's `img/` folder.
//!
//! An image is a plain root filesystem, or a folder with a `layers` file: one layer a line, top first, each
//! the name of another image (whose own layers follow) or `./sub`, a folder inside this one. Such a folder may also
//! hold a `config` in LXC's syntax; a plain root filesystem has none, for a `/config` there is the image's own affair.
//!
//! Every folder is opened by openat2(2) (Linux 5.6) below the img folder without following a single symlink, so
//! neither a name nor an image's content can lead anywhere else. This room mounts nothing and knows nothing of
//! tasks. [`resolve`], [`exists`] and [`list`] only look; [`add`] and [`remove`] may take minutes and belong on a
//! command line.

mod add;
mod layers;
mod remove;
#[cfg(test)]
mod tests;
mod unpack;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use thiserror::Error;
use wire::ImageId;

use crate::lxc_config::{ImageConfig, LxcConfigError};

pub use add::add;
pub use remove::remove;

/// An image with all its layers open.
#[derive(Debug)]
pub struct Image {
    /// The layers, top first; at least one.
    pub layers: Vec<Layer>,
    /// What its own `config` says; that of images it builds on is not asked.
    pub config: ImageConfig,
}

/// One read-only layer.
#[derive(Debug)]
pub struct Layer {
    /// Where it is, for messages and for the LXC config.
    pub path: PathBuf,
    /// The folder itself, `O_PATH`.
    pub dir: OwnedFd,
}

/// What went wrong with an image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// There is none of that name.
    #[error("cannot find image {0}; hint: berth-supervisor image list")]
    Unknown(ImageId),
    /// There is one already.
    #[error("cannot add image {id}: it exists; hint: berth-supervisor image rm {id}")]
    Exists {
        /// The image.
        id: ImageId,
    },
    /// Another image is built on it.
    #[error("cannot remove image {id}: image {by} is built on it")]
    InUse {
        /// The image.
        id: ImageId,
        /// One that needs it.
        by: ImageId,
    },
    /// A task runs in it.
    #[error("cannot remove image {id}: container {container} runs in it; hint: wait for its task, or kill it")]
    Running {
        /// The image.
        id: ImageId,
        /// One that needs it.
        container: String,
    },
    /// A file or folder of it could not be opened, or it is not what it should be.
    #[error("cannot open {path}: {cause}")]
    Open {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Its `layers` file makes no sense.
    #[error("cannot read {path}: {why}")]
    Layers {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        why: String,
    },
    /// Its `config` makes no sense, or wants too much.
    #[error("cannot apply {path}: {cause}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: LxcConfigError,
    },
    /// It has no shell.
    #[error(
        "cannot add image {id}: it has no bin/sh, which runs every command line; \
         hint: pack a root filesystem from its inside: tar -C ROOTFS -czf FILE ."
    )]
    NoShell {
        /// The image.
        id: ImageId,
    },
    /// The source is no folder and no archive this room can read.
    #[error("cannot add {path}: {why}")]
    Source {
        /// The source.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The disk refused.
    #[error("cannot {verb} {path}: {cause}")]
    Disk {
        /// What was being done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

impl ImageError {
    /// For map_err: `verb` on `path` failed.
    fn disk<E: Into<io::Error>>(verb: &'static str, path: &Path) -> impl FnOnce(E) -> ImageError {
        move |cause| ImageError::Disk { verb, path: path.to_owned(), cause: cause.into() }
    }
}

/// Opens every layer of image `id` and reads its config.
pub fn resolve(img_dir: &Path, id: &ImageId) -> Result<Image, ImageError> {
    let images = ImgDir::open(img_dir)?;
    let folder = images.open_image(id)?;
    let config = folder.config()?;
    let layers = layers::flatten(&images, folder)?;
    Ok(Image { layers, config })
}

/// Whether there is an image `id`; whether it can be used, [`resolve`] tells.
pub fn exists(img_dir: &Path, id: &ImageId) -> bool {
    img_dir.join(id.as_str()).symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// The images below `img_dir`, by name. A folder that is missing holds none.
pub fn list(img_dir: &Path) -> Result<Vec<ImageId>, ImageError> {
    let open = |cause| ImageError::Open { path: img_dir.to_owned(), cause };
    let entries = match std::fs::read_dir(img_dir) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(open)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(open)?;
        // What is no image name is no image: lost+found, what is being added or removed.
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(id.filter(|id| exists(img_dir, id)));
    }
    found.sort();
    Ok(found)
}

/// The `img/` folder, open.
struct ImgDir {
    path: PathBuf,
    dir: OwnedFd,
}

impl ImgDir {
    fn open(path: &Path) -> Result<ImgDir, ImageError> {
        // The operator names this one, so it may be reached through symlinks.
        let dir = rustix::fs::open(path, FOLDER, Mode::empty())
            .map_err(|cause| ImageError::Open { path: path.to_owned(), cause: cause.into() })?;
        Ok(ImgDir { path: path.to_owned(), dir })
    }

    fn open_image(&self, id: &ImageId) -> Result<Folder, ImageError> {
        let path = self.path.join(id.as_str());
        match open_beneath(self.dir.as_fd(), Path::new(id.as_str()), FOLDER) {
            Ok(dir) => Ok(Folder { name: id.to_string(), path, dir }),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(ImageError::Unknown(id.clone())),
            Err(cause) => Err(ImageError::Open { path, cause }),
        }
    }
}

/// One image's own folder, open.
struct Folder {
    /// What a chain of layers calls it.
    name: String,
    path: PathBuf,
    dir: OwnedFd,
}

impl Folder {
    /// Opens a folder inside.
    fn open_sub(&self, sub: &Path) -> Result<Layer, ImageError> {
        let path = self.path.join(sub);
        match open_beneath(self.dir.as_fd(), sub, FOLDER) {
            Ok(dir) => Ok(Layer { path, dir }),
            Err(cause) => Err(ImageError::Open { path, cause }),
        }
    }

    /// The text of a small file inside, if there is a regular one of that name.
    fn read(&self, name: &str) -> Result<Option<String>, ImageError> {
        let path = self.path.join(name);
        read_small(self.dir.as_fd(), name).map_err(|cause| ImageError::Open { path, cause })
    }

    /// What the image's config says. Only an image with a `layers` file has one.
    fn config(&self) -> Result<ImageConfig, ImageError> {
        if self.read(layers::FILE)?.is_none() {
            return Ok(ImageConfig::default());
        }
        let text = self.read("config")?.unwrap_or_default();
        ImageConfig::from_lxc(&text).map_err(|cause| ImageError::Config { path: self.path.join("config"), cause })
    }
}

/// How folders are opened: only to be named, never to be read.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens `name` below `dir`, following no symlink at all.
fn open_beneath(dir: BorrowedFd<'_>, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)?)
}

/// Reads a regular file of at most 64 KiB; anything else of that name is as good as none.
fn read_small(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<String>> {
    use io::Read;
    const MOST: u64 = 64 * 1024;
    // O_NONBLOCK: a FIFO of that name must not hang us.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match open_beneath(dir, Path::new(name), flags) {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => std::fs::File::from(opened?),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut text = String::new();
    if file.take(MOST + 1).read_to_string(&mut text)? as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 64 KiB"));
    }
    Ok(Some(text))
}
