//! Unpacking a tar file, plain or gzip, on a thread whose root directory is the target: whatever the
//! archive names, an absolute path, a symlink to `/`, it names something inside.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Component, Path};

use flate2::bufread::MultiGzDecoder;
use nix::sched::CloneFlags;
use tar::{Archive, Entry};

use super::ImageError;

/// Unpacks the archive `source` into the empty folder `target`.
pub(super) fn unpack(source: &Path, target: &Path) -> Result<(), ImageError> {
    let wrong = |why: String| ImageError::Source { path: source.to_owned(), why };
    let archive = open(source)?;
    // CLONE_FS undone (unshare(2)): root, working directory and umask are this thread's own, and end with it.
    let unpacked = std::thread::scope(|scope| {
        scope.spawn(|| enter(target).map_err(|cause| cause.to_string()).and_then(|()| unpack_here(archive))).join()
    });
    let left_out = unpacked.unwrap_or_else(|_| Err("the unpacking thread panicked".to_owned())).map_err(wrong)?;
    if left_out > 0 {
        log::warn!(
            "left out of {}: device nodes and FIFOs, {left_out}; containers have a /dev of their own",
            source.display()
        );
    }
    Ok(())
}

/// The archive's bytes, decompressed. What it is, its first bytes tell, never its name.
fn open(source: &Path) -> Result<Box<dyn Read + Send>, ImageError> {
    let fail = |cause: io::Error| ImageError::Open { path: source.to_owned(), cause };
    let mut file = File::open(source).map_err(fail)?;
    let mut magic = Vec::with_capacity(6);
    file.by_ref().take(6).read_to_end(&mut magic).map_err(fail)?;
    file.rewind().map_err(fail)?;
    match magic.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(BufReader::new(file)))),
        other => match foreign_compression(other) {
            Some((format, tool)) => Err(ImageError::Source {
                path: source.to_owned(),
                why: format!("it is compressed with {format}; hint: {tool} -d it first; plain tar and gzip are taken"),
            }),
            None => Ok(Box::new(BufReader::new(file))),
        },
    }
}

fn foreign_compression(magic: &[u8]) -> Option<(&'static str, &'static str)> {
    match magic {
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Some(("xz", "xz")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("zstd", "zstd")),
        [b'B', b'Z', b'h', ..] => Some(("bzip2", "bzip2")),
        _ => None,
    }
}

/// Makes `target` the root of this thread, and of no other.
fn enter(target: &Path) -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_FS)?;
    rustix::process::chroot(target)?;
    rustix::process::chdir("/")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

/// Unpacks into the root directory; gives how many entries had to be left out.
fn unpack_here(archive: impl Read) -> Result<usize, String> {
    let said = |cause: io::Error| format!("it is not a tar archive this can read: {cause}");
    let mut archive = Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_overwrite(true);
    let mut left_out = 0;
    for entry in archive.entries().map_err(said)? {
        let mut entry = entry.map_err(said)?;
        let kind = entry.header().entry_type();
        if kind.is_character_special() || kind.is_block_special() || kind.is_fifo() {
            left_out += 1;
            continue;
        }
        check_name(&entry)?;
        let name = entry.path_bytes().into_owned();
        entry.unpack_in("/").map_err(|cause| format!("cannot unpack {:?}: {cause}", String::from_utf8_lossy(&name)))?;
    }
    Ok(left_out)
}

/// Names that say it is not a root filesystem that was packed.
fn check_name<R: Read>(entry: &Entry<'_, R>) -> Result<(), String> {
    let path = entry.path().map_err(|cause| format!("it names a file nobody can have: {cause}"))?;
    let whiteout = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".wh."));
    if whiteout {
        return Err(format!(
            "{path:?} is a whiteout: this is one layer of an image, and a whole root filesystem is wanted"
        ));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("{path:?} leads out of the archive"));
    }
    Ok(())
}
