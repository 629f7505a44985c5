//! The union filesystems: which one this node unites layers with, proven at start, and how each is told of them.
//!
//! Both take the same layers in the same order, the writable one on top. They differ in how a lower name is hidden:
//! overlayfs by a device 0:0 and an extended attribute, AUFS by files called `.wh.*`, which are the whiteouts of OCI
//! images as well. Sources: the kernel's filesystems/overlayfs.rst, and aufs(5).

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MountFlags, MountPropagationFlags};

use crate::lxc_config::UnionDriver;
use crate::{child, sys};

/// mount(2) takes a page of options with its end, and cuts the rest off without a word.
const MAX_OPTIONS: usize = 4095;
/// How long a module may take that another process is loading, and how often is looked.
const BEING_LOADED: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How a folder is called in which a union is tried; the process that tries it follows.
const TRIAL: &str = ".berth-union-";

/// `--union`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnionChoice {
    /// AUFS where it works, overlay elsewhere.
    Auto,
    /// This one or none.
    Only(UnionDriver),
}

/// Why layers cannot be united here.
#[derive(Debug, thiserror::Error)]
pub enum UnionError {
    /// The kernel's list cannot be read.
    #[error("cannot read /proc/filesystems: {0}")]
    Filesystems(io::Error),
    /// The kernel lacks it.
    #[error("this kernel has no {wanted} filesystem; hint: modprobe {hint}, or choose another --union")]
    Absent {
        /// What was looked for.
        wanted: String,
        /// Its module.
        hint: &'static str,
    },
    /// The kernel has it, and it does not work with this state dir.
    #[error(
        "cannot unite layers with {driver} in {}: {cause}; hint: put --state-dir on ext4, xfs, btrfs or tmpfs, and see \
         berth-supervisor doctor",
        .state_dir.display()
    )]
    Trial {
        /// Which.
        driver: &'static str,
        /// Where.
        state_dir: PathBuf,
        /// The step of the trial, and what the kernel said.
        cause: io::Error,
    },
}

/// Chooses the union filesystem of this node: one that the kernel has, and that was seen to work in the state dir.
pub fn choose(choice: UnionChoice, state_dir: &Path) -> Result<UnionDriver, UnionError> {
    let candidates = candidates(choice);
    for driver in candidates {
        load(*driver);
    }
    let filesystems = fs::read_to_string("/proc/filesystems").map_err(UnionError::Filesystems)?;
    let has = |driver| kernel_has(driver, &filesystems);
    first_that_works(candidates, has, |driver| prove(driver, state_dir)).map_err(|failed| match failed {
        Some((driver, cause)) => UnionError::Trial { driver: driver.as_str(), state_dir: state_dir.to_owned(), cause },
        None => UnionError::Absent {
            wanted: candidates.iter().map(|driver| driver.as_str()).collect::<Vec<_>>().join(" or "),
            hint: candidates.last().map_or("overlay", |driver| driver.as_str()),
        },
    })
}

fn candidates(choice: UnionChoice) -> &'static [UnionDriver] {
    match choice {
        UnionChoice::Auto => &[UnionDriver::Aufs, UnionDriver::Overlay],
        UnionChoice::Only(UnionDriver::Aufs) => &[UnionDriver::Aufs],
        UnionChoice::Only(UnionDriver::Overlay) => &[UnionDriver::Overlay],
    }
}

/// The first the kernel has and that passes its trial; else how the last trial failed, if there was any.
fn first_that_works(
    candidates: &[UnionDriver],
    has: impl Fn(UnionDriver) -> bool,
    mut prove: impl FnMut(UnionDriver) -> io::Result<()>,
) -> Result<UnionDriver, Option<(UnionDriver, io::Error)>> {
    let mut failed = None;
    for driver in candidates.iter().copied().filter(|driver| has(*driver)) {
        match prove(driver) {
            Ok(()) => return Ok(driver),
            // A node must come up to tell how its tasks ended, and takes no other while its disk is full.
            Err(cause) if is_full(&cause) => {
                log::warn!("{} is not tried, for the disk is full: {cause}", driver.as_str());
                return Ok(driver);
            }
            Err(cause) => {
                log::warn!("this kernel has {}, but it does not work here: {cause}", driver.as_str());
                failed = Some((driver, cause));
            }
        }
    }
    Err(failed)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Has the kernel load a union filesystem's module, if it is one and not there yet: /proc/filesystems lists no module
/// that nobody has used, as on every Debian after boot. What comes of it, that list tells.
///
/// One that another process is just loading is waited for. busybox's modprobe takes a module for loaded that stands in
/// /proc/modules, and there it stands before its init has made the filesystem known; whoever asks meanwhile is told that
/// there is none, as often as it asks.
pub fn load(driver: UnionDriver) {
    if rustix::mount::fsopen(driver.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).is_ok() {
        return;
    }
    let read = |table| fs::read_to_string(table).unwrap_or_default();
    let give_up = Instant::now() + BEING_LOADED;
    while is_being_loaded(driver, &read("/proc/modules"), &read("/proc/filesystems")) && Instant::now() < give_up {
        std::thread::park_timeout(LOOK_AGAIN);
    }
}

/// From the texts of /proc/modules and, read after it, /proc/filesystems.
fn is_being_loaded(driver: UnionDriver, modules: &str, filesystems: &str) -> bool {
    let is_module = modules.lines().any(|line| line.split(' ').next() == Some(driver.as_str()));
    is_module && !kernel_has(driver, filesystems)
}

/// Whether this kernel has a union filesystem of that name, from the text of /proc/filesystems.
pub fn kernel_has(driver: UnionDriver, filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().last() == Some(driver.as_str()))
}

// ---- mounting -------------------------------------------------------------------------------------------------------

/// Unites `lowers` (top first) under the folder `upper`, at `target`. `work` is a folder beside `upper`, on the same
/// filesystem and outside of the union.
pub fn mount(driver: UnionDriver, lowers: &[String], upper: &str, work: &str, target: &str) -> io::Result<()> {
    let mut refused = Errno::INVAL;
    for options in options(driver, lowers, upper, work)? {
        match rustix::mount::mount(
            driver.as_str(),
            target,
            driver.as_str(),
            MountFlags::NODEV | MountFlags::NOSUID,
            Some(options.as_c_str()),
        ) {
            Ok(()) => return Ok(()),
            Err(errno) => refused = errno,
        }
    }
    Err(refused.into())
}

/// The options that unite these layers, the best first; another is tried where the kernel refuses one.
fn options(driver: UnionDriver, lowers: &[String], upper: &str, work: &str) -> io::Result<Vec<CString>> {
    match driver {
        UnionDriver::Overlay => Ok(vec![whole(overlay_options(lowers, upper, work))?]),
        UnionDriver::Aufs => {
            let xino = whole(aufs_options(lowers, upper, Some(work)))?;
            Ok(vec![xino, whole(aufs_options(lowers, upper, None))?])
        }
    }
}

/// `volatile` (Linux 5.10) never syncs, which is what a layer that is thrown away wants.
pub fn overlay_options(lowers: &[String], upper: &str, work: &str) -> String {
    format!("lowerdir={},upperdir={upper},workdir={work},volatile", lowers.join(":"))
}

/// `ro+wh` lets a lower branch's whiteouts count. `dirperm1` makes the topmost folder of a name decide who may enter it,
/// as in overlayfs; without it the image's own mode of /tmp would count as well.
///
/// `xino`: where AUFS keeps the inode numbers it has given out; without, "some applications will not work correctly".
/// By default that is a file in the writable branch, or on a filesystem it deems unfit (xfs, btrfs) one in /tmp that
/// everybody shares. Ours is in the work folder, where no other mount wants it; AUFS unlinks it as soon as it is open.
pub fn aufs_options(lowers: &[String], upper: &str, work: Option<&str>) -> String {
    let branches: Vec<String> = lowers.iter().map(|lower| format!("{lower}=ro+wh")).collect();
    let xino = work.map_or("noxino".to_owned(), |work| format!("xino={work}/.aufs.xino"));
    format!("br:{upper}=rw:{},dirperm1,{xino}", branches.join(":"))
}

/// Refuses options that the kernel would cut: the layers behind the cut would be missing, without an error.
fn whole(options: String) -> io::Result<CString> {
    if options.len() > MAX_OPTIONS {
        let message = format!("the mount options are {} bytes long, and the kernel takes {MAX_OPTIONS}", options.len());
        return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, message));
    }
    Ok(CString::new(options)?)
}

/// Makes a folder of the writable layer hide what lower layers have in it.
pub fn hide_below(driver: UnionDriver, folder: &str) -> io::Result<()> {
    match driver {
        UnionDriver::Overlay => rustix::fs::setxattr(folder, "trusted.overlay.opaque", b"y", XattrFlags::empty())?,
        UnionDriver::Aufs => {
            let marker = format!("{folder}/.wh..wh..opq");
            rustix::fs::mknodat(CWD, marker, FileType::RegularFile, Mode::from_raw_mode(0o444), 0)?;
        }
    }
    Ok(())
}

// ---- the proof ------------------------------------------------------------------------------------------------------

/// Unites two layers in `folder` and looks whether all holds that containers rest on; nothing of it is left.
///
/// In a child with a mount namespace of its own, so that the mount ends with it however it ends.
pub fn prove(driver: UnionDriver, folder: &Path) -> io::Result<()> {
    remove_old_trials(folder);
    let scratch = folder.join(format!("{TRIAL}{}", std::process::id()));
    let tried = fs::create_dir_all(&scratch).and_then(|()| in_a_child(|| try_union(driver, &scratch)));
    let removed = fs::remove_dir_all(&scratch);
    tried.and(removed)
}

/// Whose trial a folder of that name is.
pub fn trial_of(name: &str) -> Option<u32> {
    name.strip_prefix(TRIAL)?.parse().ok()
}

/// Those of processes that were killed in the midst of it.
fn remove_old_trials(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(trial_of);
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // What stays is in nobody's way, and the next one tries again.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn in_a_child(trial: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let (mut said, theirs) = io::pipe()?;
    const WORKS: i32 = 0;
    const FAILED: i32 = 1;
    const FULL: i32 = 2;
    let child = sys::fork_child(|| match trial() {
        Ok(()) => WORKS,
        Err(error) => {
            // Should it not be heard, the status says enough.
            let _ = (&theirs).write_all(error.to_string().as_bytes());
            if is_full(&error) { FULL } else { FAILED }
        }
    })?;
    drop(theirs);
    let mut text = String::new();
    said.read_to_string(&mut text)?;
    rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
    )?;
    match child::reap(&child.pidfd)? {
        Some(WORKS) => Ok(()),
        Some(FULL) => Err(io::Error::new(io::ErrorKind::StorageFull, text)),
        _ if text.is_empty() => Err(io::Error::other("the trial ended early")),
        _ => Err(io::Error::other(text)),
    }
}

/// All paths are short and relative to the trial's folder, as a container's are to its own.
fn try_union(driver: UnionDriver, scratch: &Path) -> io::Result<()> {
    let step =
        |what: &'static str| move |cause: io::Error| io::Error::new(cause.kind(), format!("cannot {what}: {cause}"));
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    rustix::process::chdir(scratch)?;
    for path in ["lower/dir", "lower/fresh", "upper/fresh", "work", "merged"] {
        fs::create_dir_all(path)?;
    }
    for path in ["lower/file", "lower/dir/file", "lower/fresh/file"] {
        fs::write(path, path)?;
    }
    hide_below(driver, "upper/fresh").map_err(step("mark a folder as opaque"))?;
    let lower = fs::File::open("lower")?;
    let lowers = [format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&lower))];
    mount(driver, &lowers, "upper", "work", "merged").map_err(step("mount it"))?;
    see("a lower layer's file", fs::read_to_string("merged/file").is_ok_and(|text| text == "lower/file"))?;
    see("an opaque folder without what is below", fs::read_dir("merged/fresh")?.next().is_none())?;
    fs::write("merged/dir/new", "new").map_err(step("write through it"))?;
    see("what was written in the writable layer", Path::new("upper/dir/new").is_file())?;
    fs::remove_file("merged/file").map_err(step("remove a file through it"))?;
    let hidden = !Path::new("merged/file").exists() && Path::new("lower/file").exists();
    see("a removed file hidden, and kept below", hidden)
}

fn see(what: &str, seen: bool) -> io::Result<()> {
    if seen { Ok(()) } else { Err(io::Error::other(format!("it does not show {what}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::{Scratch, root_or_skip};

    fn lowers() -> [String; 2] {
        ["/top".into(), "/base".into()]
    }

    #[test]
    fn overlay_takes_its_lowers_top_first_and_never_syncs() {
        assert_eq!(overlay_options(&lowers(), "up", "work"), "lowerdir=/top:/base,upperdir=up,workdir=work,volatile");
    }

    #[test]
    fn aufs_takes_the_writable_branch_first_and_honours_whiteouts_below() {
        let options = aufs_options(&lowers(), "up", Some("work"));
        assert_eq!(options, "br:up=rw:/top=ro+wh:/base=ro+wh,dirperm1,xino=work/.aufs.xino");
    }

    #[test]
    fn aufs_goes_without_xino_where_the_filesystem_refuses_it() {
        let texts = options(UnionDriver::Aufs, &lowers(), "up", "work").unwrap();
        let texts: Vec<&str> = texts.iter().map(|text| text.to_str().unwrap()).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts[0].ends_with(",xino=work/.aufs.xino") && texts[1].ends_with(",noxino"), "{texts:?}");
        assert_eq!(options(UnionDriver::Overlay, &lowers(), "up", "work").unwrap().len(), 1);
    }

    #[test]
    fn as_many_layers_as_an_image_may_have_fit_and_more_than_the_kernel_takes_are_refused() {
        let layers = |count: usize| (0..count).map(|fd| format!("/proc/self/fd/{}", 100 + fd)).collect::<Vec<_>>();
        for driver in [UnionDriver::Overlay, UnionDriver::Aufs] {
            assert!(options(driver, &layers(100), "usrfile/workspace", "workspace-work").is_ok(), "{driver:?}");
            let refused = options(driver, &layers(300), "usrfile/workspace", "workspace-work").unwrap_err();
            assert!(refused.to_string().contains("4095"), "{refused}");
        }
        assert!(whole("x".repeat(4095)).is_ok() && whole("x".repeat(4096)).is_err());
    }

    #[test]
    fn a_whiteout_is_in_the_form_of_its_filesystem() {
        if !root_or_skip("trusted attributes need root") {
            return;
        }
        let scratch = Scratch::new("whiteout");
        for driver in [UnionDriver::Aufs, UnionDriver::Overlay] {
            let folder = scratch.join(driver.as_str());
            fs::create_dir(&folder).unwrap();
            hide_below(driver, folder.to_str().unwrap()).unwrap();
        }
        assert!(scratch.join("aufs/.wh..wh..opq").is_file());
        let mut value = [0; 4];
        let length = rustix::fs::getxattr(scratch.join("overlay"), "trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..length], b"y");
        assert_eq!(fs::read_dir(scratch.join("overlay")).unwrap().count(), 0);
    }

    #[test]
    fn the_driver_is_the_first_that_the_kernel_has_and_that_works() {
        use UnionDriver::{Aufs, Overlay};
        let broken = |driver| if driver == Aufs { Err(Errno::INVAL.into()) } else { Ok(()) };
        let auto = candidates(UnionChoice::Auto);
        assert_eq!(first_that_works(auto, |_| true, |_| Ok(())).unwrap(), Aufs);
        assert_eq!(first_that_works(auto, |driver| driver == Overlay, |_| Ok(())).unwrap(), Overlay);
        assert_eq!(first_that_works(auto, |_| true, broken).unwrap(), Overlay, "it falls back");
        let only = candidates(UnionChoice::Only(Aufs));
        assert_eq!(first_that_works(only, |_| true, broken).unwrap_err().unwrap().0, Aufs);
        assert!(first_that_works(only, |_| false, |_| Ok(())).unwrap_err().is_none());
        let full = |_| Err(io::ErrorKind::StorageFull.into());
        assert_eq!(first_that_works(auto, |_| true, full).unwrap(), Aufs, "a full disk proves nothing");
    }

    #[test]
    fn overlay_passes_its_trial_and_what_cannot_be_mounted_does_not_and_neither_leaves_a_trace() {
        if !root_or_skip("mounting needs root") {
            return;
        }
        let scratch = Scratch::new("union");
        load(UnionDriver::Overlay);
        let stale = scratch.join(format!("{TRIAL}{}", u32::MAX));
        fs::create_dir(&stale).unwrap();
        prove(UnionDriver::Overlay, scratch.path()).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        let filesystems = fs::read_to_string("/proc/filesystems").unwrap();
        if !kernel_has(UnionDriver::Aufs, &filesystems) {
            let refused = prove(UnionDriver::Aufs, scratch.path()).unwrap_err();
            assert!(refused.to_string().starts_with("cannot mount it"), "{refused}");
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
        assert!(prove(UnionDriver::Overlay, Path::new("/proc")).is_err());
    }

    #[test]
    fn a_module_is_being_loaded_from_when_it_is_there_until_its_filesystem_is() {
        let modules = "virtio 16384 0 - Live 0x0\noverlay 217088 0 - Loading 0x0\n";
        let (before, after) = ("nodev\tsysfs\n", "nodev\tsysfs\nnodev\toverlay\n");
        let is_being_loaded = |driver, filesystems| is_being_loaded(driver, modules, filesystems);
        assert!(is_being_loaded(UnionDriver::Overlay, before));
        assert!(!is_being_loaded(UnionDriver::Overlay, after));
        assert!(!is_being_loaded(UnionDriver::Aufs, before), "nobody loads that");
    }

    #[test]
    fn a_filesystem_is_known_by_its_whole_name() {
        let text = "nodev\tsysfs\n\text4\nnodev\toverlay\n";
        assert!(kernel_has(UnionDriver::Overlay, text));
        assert!(!kernel_has(UnionDriver::Aufs, text));
        assert!(!kernel_has(UnionDriver::Overlay, "nodev\toverlayfs2\n"));
    }
}
