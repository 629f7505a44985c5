//! What is mounted in a container besides its root: a list in LXC's own terms, and the hand that carries it out.
//!
//! The list stands in the container's config, so that stock LXC mounts the same. Every target, and a source inside the
//! container, is resolved as from the container's root: no symlink of the image leads out.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::MountFlags;

use super::ROOT;
use crate::launch::step::{Step, StepError};
use crate::lxc_config::MountEntry;
use crate::security;

/// What covers a file that shows the host.
const NULL_DEVICE: &str = "/dev/null";

/// Options that are flags of mount(2).
const FLAGS: [(&str, MountFlags); 5] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
];

/// The mounts of every container, in their order: the kernel's filesystems, a /dev to be filled, shared memory of at most
/// `shm_bytes` (the memory limit counts it as well), and covers over what shows or changes the host. `empty` is an empty
/// folder of the node. What this kernel does not have needs no cover.
pub fn usual(empty: &Path, shm_bytes: u64) -> Vec<MountEntry> {
    let empty = empty.display().to_string();
    let shm = format!("nosuid,nodev,mode=1777,size={shm_bytes},create=dir");
    let mut mounts = vec![
        entry("proc", "proc", "proc", "nosuid,nodev,noexec"),
        entry("sysfs", "sys", "sysfs", "ro,nosuid,nodev,noexec"),
        entry("tmpfs", "dev", "tmpfs", "nosuid,noexec,mode=755,size=64k,nr_inodes=256"),
        entry("tmpfs", "dev/shm", "tmpfs", &shm),
    ];
    let cover = |source, options| move |target: &&str| entry(source, target, "none", options);
    mounts.extend(security::MASKED_FILES.iter().map(cover(NULL_DEVICE, "bind,ro,nosuid,noexec,optional")));
    mounts.extend(security::MASKED_FOLDERS.iter().map(cover(&empty, "bind,ro,nosuid,nodev,noexec,optional")));
    let protect = |target: &&str| entry(target, target, "none", "bind,ro,nosuid,nodev,noexec,relative,optional");
    mounts.extend(security::READ_ONLY_FOLDERS.iter().map(protect));
    mounts
}

fn entry(source: &str, target: &str, fstype: &str, options: &str) -> MountEntry {
    MountEntry {
        source: source.to_owned(),
        target: target.to_owned(),
        fstype: fstype.to_owned(),
        options: options.split(',').map(str::to_owned).collect(),
    }
}

/// Mounts all of them below the united root.
pub fn mount_all(entries: &[MountEntry]) -> Result<(), StepError> {
    let root = rustix::fs::open(ROOT, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step(|| "open the root".to_owned())?;
    let root = Root(root);
    entries.iter().try_for_each(|entry| root.mount(entry))
}

/// The options of an entry, each with whom it is for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// mount(2)'s.
    flags: MountFlags,
    /// The filesystem's own.
    data: String,
    /// The source is a place to show again.
    bind: bool,
    /// The source is inside the container, as LXC has it.
    relative: bool,
    /// The target need not exist.
    optional: bool,
    /// The target is to be made, as LXC has it.
    create: bool,
}

impl Options {
    fn of(entry: &MountEntry) -> Options {
        let mut options = Options {
            flags: MountFlags::empty(),
            data: String::new(),
            bind: false,
            relative: false,
            optional: false,
            create: false,
        };
        for option in &entry.options {
            match option.as_str() {
                "bind" => options.bind = true,
                "relative" => options.relative = true,
                "optional" => options.optional = true,
                "create=dir" => options.create = true,
                "rw" | "defaults" => {}
                other => options.take(other),
            }
        }
        options
    }

    fn take(&mut self, option: &str) {
        match FLAGS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => self.flags |= *flag,
            None if self.data.is_empty() => option.clone_into(&mut self.data),
            None => self.data = format!("{},{option}", self.data),
        }
    }
}

/// The united root; every path is looked up as if it were `/`.
struct Root(OwnedFd);

impl Root {
    fn mount(&self, entry: &MountEntry) -> Result<(), StepError> {
        let options = Options::of(entry);
        match self.try_mount(entry, &options) {
            Err(error) if options.optional && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.step(|| format!("mount {} on /{}", entry.source, entry.target)),
        }
    }

    fn try_mount(&self, entry: &MountEntry, options: &Options) -> io::Result<()> {
        if options.create {
            self.make_folder(&entry.target)?;
        }
        let target = self.open(&entry.target)?;
        if options.bind {
            return self.bind(entry, options, &target);
        }
        let data = std::ffi::CString::new(options.data.as_str())?;
        Ok(rustix::mount::mount(&entry.source, by_fd(&target), &entry.fstype, options.flags, data.as_c_str())?)
    }

    /// A bind mount takes its options only when remounted (mount(2), "Remounting"), and by its own root.
    fn bind(&self, entry: &MountEntry, options: &Options, target: &OwnedFd) -> io::Result<()> {
        let source = match options.relative {
            true => self.open(&entry.source)?,
            false => rustix::fs::open(&entry.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
        };
        no_device_but_null(&source)?;
        rustix::mount::mount_bind(by_fd(&source), by_fd(target))?;
        let mounted = self.open(&entry.target)?;
        Ok(rustix::mount::mount_remount(by_fd(&mounted), MountFlags::BIND | options.flags, c"")?)
    }

    /// Makes the folder and those above it, where they are missing.
    fn make_folder(&self, path: &str) -> io::Result<()> {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for part in ends.map(|end| &path[..end]) {
            match self.open(part) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.make_last(part)?,
                opened => drop(opened?),
            }
        }
        Ok(())
    }

    fn make_last(&self, path: &str) -> io::Result<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        Ok(rustix::fs::mkdirat(self.open(parent)?, name, Mode::from_raw_mode(0o755))?)
    }

    fn open(&self, path: &str) -> io::Result<OwnedFd> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(rustix::fs::openat2(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside)?)
    }
}

/// A cover that is a device must be the one that holds nothing and takes everything (CVE-2025-31133).
fn no_device_but_null(source: &OwnedFd) -> io::Result<()> {
    let found = rustix::fs::fstat(source)?;
    let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
    match is_device && found.st_rdev != rustix::fs::makedev(1, 3) {
        true => Err(io::Error::other("it is a device, and not the null device")),
        false => Ok(()),
    }
}

fn by_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_mounts_own_lxcs_or_the_filesystems() {
        let options = Options::of(&entry("tmpfs", "run", "tmpfs", "rw,nosuid,noexec,size=1m,create=dir,mode=755"));
        assert_eq!(options.flags, MountFlags::NOSUID | MountFlags::NOEXEC);
        assert_eq!(options.data, "size=1m,mode=755");
        assert!(options.create && !options.bind && !options.relative && !options.optional);
        let options = Options::of(&entry("proc/sys", "proc/sys", "none", "bind,ro,relative,optional"));
        assert_eq!((options.flags, options.data.as_str()), (MountFlags::RDONLY, ""));
        assert!(options.bind && options.relative && options.optional && !options.create);
    }

    #[test]
    fn everything_that_shows_or_changes_the_host_is_covered() {
        let mounts = usual(Path::new("/var/lib/berth/empty"), 1 << 20);
        let over = |target: &str| mounts.iter().find(|mount| mount.target == target).map(|mount| mount.source.as_str());
        assert!(security::MASKED_FILES.iter().all(|file| over(file) == Some("/dev/null")));
        assert!(security::MASKED_FOLDERS.iter().all(|folder| over(folder) == Some("/var/lib/berth/empty")));
        assert!(security::READ_ONLY_FOLDERS.iter().all(|folder| over(folder) == Some(folder)));
        let covers = mounts.iter().filter(|mount| mount.fstype == "none");
        assert!(covers.into_iter().all(|mount| mount.options.iter().any(|option| option == "ro")));
    }

    #[test]
    fn no_device_covers_anything_but_the_null_device() {
        let open = |path| rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(no_device_but_null(&open("/dev/null")).is_ok());
        assert!(no_device_but_null(&open("/dev")).is_ok());
        assert!(no_device_but_null(&open("/dev/zero")).is_err());
    }

    /// Root of a scratch folder, whose content an image might have brought.
    fn root(scratch: &crate::scratch::Scratch) -> Root {
        Root(
            rustix::fs::open(scratch.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .unwrap(),
        )
    }

    #[test]
    fn a_target_is_made_inside_the_root_whatever_symlinks_the_image_has() {
        let scratch = crate::scratch::Scratch::new("targets");
        scratch.write("inside/file", "");
        for (link, leads_to) in [("out", "/inside"), ("up", "../../../../.."), ("gone", "/nowhere")] {
            std::os::unix::fs::symlink(leads_to, scratch.join(link)).unwrap();
        }
        let root = root(&scratch);
        for path in ["run/a/b", "out/made", "up/here"] {
            root.make_folder(path).unwrap();
        }
        for made in ["run/a/b", "inside/made", "here"] {
            assert!(scratch.join(made).is_dir(), "{made}");
        }
        assert_eq!(root.make_folder("gone/x").unwrap_err().raw_os_error(), Some(libc::EEXIST));
        root.make_folder("run/a/b").unwrap();
    }

    #[test]
    fn only_a_missing_target_of_an_optional_mount_is_no_failure() {
        let scratch = crate::scratch::Scratch::new("optional");
        let root = root(&scratch);
        assert_eq!(root.mount(&entry("/dev/null", "proc/keys", "none", "bind,ro,optional")), Ok(()));
        let failed = root.mount(&entry("/dev/null", "proc/keys", "none", "bind,ro")).unwrap_err();
        assert_eq!(failed.to_string(), "mount /dev/null on /proc/keys: ENOENT");
        scratch.write("file", "");
        let failed = root.mount(&entry("/dev/zero", "file", "none", "bind,ro,optional")).unwrap_err();
        assert!(failed.cause.contains("not the null device"), "{failed}");
    }
}
