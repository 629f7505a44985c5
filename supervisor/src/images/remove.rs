//! Removing an image: out of sight in one step, then off the disk.

use std::path::Path;

use wire::ImageId;

use super::layers::{self, LayerName};
use super::{ImageError, ImgDir, exists, list};
use crate::launch::record;

/// Removes image `id` unless another is built on it, or a container below `containers` runs in it.
pub fn remove(img_dir: &Path, containers: &Path, id: &ImageId) -> Result<(), ImageError> {
    if !exists(img_dir, id) {
        return Err(ImageError::Unknown(id.clone()));
    }
    if let Some(by) = built_on(img_dir, id)? {
        return Err(ImageError::InUse { id: id.clone(), by });
    }
    if let Some(container) = running_in(containers, &img_dir.join(id.as_str())) {
        return Err(ImageError::Running { id: id.clone(), container });
    }
    sweep_leftovers(img_dir);
    let (name, doomed) = (img_dir.join(id.as_str()), img_dir.join(format!(".removing-{id}-{}", std::process::id())));
    std::fs::rename(&name, &doomed).map_err(ImageError::disk("remove", &name))?;
    remove_tree(&doomed)
}

/// An image whose `layers` file names `id`. One whose file cannot be read is built on nothing.
fn built_on(img_dir: &Path, id: &ImageId) -> Result<Option<ImageId>, ImageError> {
    let images = ImgDir::open(img_dir)?;
    let names_it = |other: &ImageId| {
        let text = images.open_image(other).and_then(|folder| folder.read(layers::FILE)).ok().flatten();
        let names = text.and_then(|text| layers::parse(&text).ok()).unwrap_or_default();
        names.iter().any(|name| matches!(name, LayerName::Image(named) if named == id))
    };
    Ok(list(img_dir)?.into_iter().find(|other| other != id && names_it(other)))
}

/// A living container whose config names the image's folder as a layer, or something in it.
fn running_in(containers: &Path, image: &Path) -> Option<String> {
    let image = image.display().to_string();
    let names_it = |config: String| {
        let rootfs = config.lines().find_map(|line| line.strip_prefix("lxc.rootfs.path = ")).map(str::to_owned);
        rootfs.is_some_and(|path| [":", "/"].iter().any(|end| path.contains(&format!(":{image}{end}"))))
    };
    let uses_it = |folder: &Path| {
        record::is_held(folder).unwrap_or(true) && std::fs::read_to_string(folder.join("config")).is_ok_and(names_it)
    };
    let folders = std::fs::read_dir(containers).ok()?.flatten();
    let used = folders.map(|entry| entry.path()).find(|folder| uses_it(folder));
    used.and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
}

/// Deletes a folder with all that is in it, following no symlink.
pub(super) fn remove_tree(folder: &Path) -> Result<(), ImageError> {
    crate::remove_tree::remove_tree(folder).map_err(ImageError::disk("remove", folder))
}

/// Deletes what additions and removals left that were cut off: folders that carry the pid of a dead process.
pub(super) fn sweep_leftovers(img_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(img_dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().and_then(leftover_of).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove_tree(&entry.path()).unwrap_or_else(|left| log::warn!("{left}"));
        }
    }
}

/// The pid in the name of an unfinished folder.
fn leftover_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(".adding-").or_else(|| name.strip_prefix(".removing-"))?;
    let (_, pid) = rest.rsplit_once('-')?;
    (!pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit())).then_some(pid)
}
