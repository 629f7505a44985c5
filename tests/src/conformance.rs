//! The same container by berth and by stock LXC, compared by what a command in it sees.
//!
//! A probe says all of it ([`sight`] reads that), [`differences`] compares and holds what may differ and why, [`table`] makes
//! docs/lxc.md of both, and [`lxc`] is the hand that runs LXC.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::image::make_busybox;

pub mod differences;
pub mod lxc;
pub mod sight;
pub mod table;

/// The shell half of the probe; its last line is [`LAST`].
const PROBE: &str = include_str!("conformance/probe");
/// The half that makes system calls.
const ANSWERS: &str = include_str!("conformance/answers.c");
/// What the probe says at its end.
pub const LAST: &str = "\nend=end\n";

/// Makes the rootfs folder of an image with busybox and the probe.
pub fn make_image(rootfs: &Path) {
    make_busybox(rootfs);
    let probe = rootfs.join("bin/probe");
    fs::write(&probe, PROBE).expect("write the probe");
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o755)).expect("make the probe executable");
    let source = rootfs.with_extension("answers.c");
    fs::write(&source, ANSWERS).expect("write answers.c");
    let compiled =
        Command::new("cc").args(["-static", "-O1", "-o"]).arg(rootfs.join("bin/answers")).arg(&source).output();
    let compiled = compiled.expect("run cc");
    assert!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
}

/// The host as this process sees it; the logs are below a folder of that name.
pub fn host(folder: &str) -> sight::Host {
    let namespaces: BTreeMap<String, String> = fs::read_dir("/proc/self/ns")
        .expect("list /proc/self/ns")
        .flatten()
        .map(|entry| (entry.file_name(), fs::read_link(entry.path()).expect("read a namespace")))
        .map(|(name, link)| (name.to_string_lossy().into_owned(), link.to_string_lossy().into_owned()))
        .collect();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("read the boot id").trim().to_owned();
    sight::Host { namespaces, boot_id, folder: folder.to_owned() }
}
