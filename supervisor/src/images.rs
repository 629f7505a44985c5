//! Images: the named stacks of read-only layers below the node's `img/` folder.
//!
//! An image is a plain root filesystem, or a folder with a `layers` file: one layer a line, top first, each
//! the name of another image (whose own layers follow) or `./sub`, a folder inside this one. Every folder is
//! opened by openat2(2) (Linux 5.6) below the img folder without following a single symlink, so neither a
//! name nor an image's content can lead anywhere else. This room mounts nothing and knows nothing of tasks.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use thiserror::Error;
use wire::ImageId;

use crate::lxc_config::ImageConfig;

/// An image with all its layers open.
#[derive(Debug)]
pub(crate) struct Image {
    /// The layers, top first; at least one.
    pub layers: Vec<Layer>,
    /// What its own `config` file says; the top image's only.
    pub config: ImageConfig,
}

/// One read-only layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Where it is, for messages and for the LXC config.
    pub path: PathBuf,
    /// The folder itself, `O_PATH`.
    pub dir: OwnedFd,
}

/// What went wrong with an image.
#[derive(Debug, Error)]
pub(crate) enum ImageError {
    /// There is none of that name.
    #[error("no image named {0} on this node\n  hint: berth-supervisor image list")]
    Unknown(ImageId),
}

/// Opens every layer of image `id`.
pub(crate) fn resolve(_img_dir: &Path, id: &ImageId) -> Result<Image, ImageError> {
    Err(ImageError::Unknown(id.clone()))
}

/// Whether there is an image `id`.
pub(crate) fn exists(_img_dir: &Path, _id: &ImageId) -> bool {
    false
}

/// The images below `img_dir`, by name.
pub(crate) fn list(_img_dir: &Path) -> Result<Vec<ImageId>, ImageError> {
    Ok(Vec::new())
}

/// Makes image `id` from a folder or a tar file, all or nothing.
pub(crate) fn add(_img_dir: &Path, id: &ImageId, _source: &Path) -> Result<(), ImageError> {
    Err(ImageError::Unknown(id.clone()))
}

/// Removes image `id`. Whether a task uses it is the caller's to know.
pub(crate) fn remove(_img_dir: &Path, id: &ImageId) -> Result<(), ImageError> {
    Err(ImageError::Unknown(id.clone()))
}
