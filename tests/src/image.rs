//! The busybox image of the tests: one static binary and a link for each of its names.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Debian's static busybox.
const BUSYBOX: &str = "/bin/busybox";
/// Of util-linux, which every Debian has.
const FLOCK: &str = "/usr/bin/flock";

/// Makes the rootfs folder of the image at `rootfs`.
pub fn make_busybox(rootfs: &Path) {
    assert!(Path::new(BUSYBOX).is_file(), "{BUSYBOX} is not there; run `apt-get install busybox-static`");
    for folder in ["bin", "etc", "root", "tmp", "proc", "sys", "dev"] {
        make(fs::create_dir_all(rootfs.join(folder)), rootfs);
    }
    make(fs::copy(BUSYBOX, rootfs.join("bin/busybox")), rootfs);
    make(fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n"), rootfs);
    make(fs::write(rootfs.join("etc/group"), "root:x:0:\n"), rootfs);
    for applet in applets().lines().filter(|applet| *applet != "busybox") {
        make(symlink("busybox", rootfs.join("bin").join(applet)), rootfs);
    }
}

/// The same with flock(1), which Debian's busybox lacks, and the libraries it needs.
pub fn make_busybox_with_flock(rootfs: &Path) {
    make_busybox(rootfs);
    let libraries = Command::new("ldd").arg(FLOCK).output();
    let libraries = libraries.unwrap_or_else(|error| panic!("cannot run ldd: {error}"));
    let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
    let paths = libraries.split_ascii_whitespace().filter(|word| word.starts_with('/'));
    for path in paths.chain([FLOCK]) {
        let inside = rootfs.join(path.trim_start_matches('/'));
        make(inside.parent().map_or(Ok(()), fs::create_dir_all), rootfs);
        make(fs::copy(path, &inside), rootfs);
    }
}

fn applets() -> String {
    let list = Command::new(BUSYBOX).arg("--list").output();
    let list = list.unwrap_or_else(|error| panic!("cannot run {BUSYBOX}: {error}"));
    String::from_utf8_lossy(&list.stdout).into_owned()
}

fn make<T>(made: std::io::Result<T>, rootfs: &Path) {
    if let Err(error) = made {
        panic!("cannot make an image at {}: {error}", rootfs.display());
    }
}
