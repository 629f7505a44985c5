//! What is mounted where, and what is meant to be: the kernel's table of mounts, and fstab. Reading them never blocks, whatever
//! a server does.

use std::path::Path;

use wire::proc_text;

/// A mount. Its number is not another's as long as somebody is on it (proc_pid_mountinfo(5), field 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountId(pub u32);

/// What is mounted on that folder.
pub fn mounted_on(folder: &Path) -> Option<MountId> {
    mounted_in(&proc_text::read("/proc/self/mountinfo").unwrap_or_default(), folder)
}

/// The mount point is field 5, the type is the first behind a lone dash. autofs only waits for somebody to look.
fn mounted_in(mountinfo: &str, folder: &Path) -> Option<MountId> {
    let topmost = mountinfo.lines().rfind(|line| line.split(' ').nth(4).is_some_and(|point| is_word(point, folder)))?;
    let (_, filesystem) = topmost.split_once(" - ")?;
    let id = topmost.split(' ').next()?.parse().ok()?;
    (!filesystem.starts_with("autofs ")).then_some(MountId(id))
}

/// Whether /etc/fstab mounts something there (fstab(5), field 2).
pub fn is_in_fstab(folder: &Path) -> bool {
    // None there: nothing is meant to be mounted.
    is_in(&proc_text::read("/etc/fstab").unwrap_or_default(), folder)
}

fn is_in(fstab: &str, folder: &Path) -> bool {
    let lines = fstab.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.filter_map(|line| line.split_whitespace().nth(1)).any(|point| is_word(point, folder))
}

/// Whether a word of such a table is that path: as paths are equal, whoever wrote a slash at the end.
fn is_word(word: &str, folder: &Path) -> bool {
    Path::new(&proc_text::unescape(word)) == folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_own_name_and_one_that_only_waits_is_none() {
        let table = "36 35 98:0 / /mnt/share rw shared:1 - fuse.glusterfs gfs01:/v rw\n\
                     37 35 98:1 / /mnt/a\\040b rw - ext4 /dev/sdb rw\n\
                     38 35 0:30 / /mnt/auto rw - autofs systemd-1 rw\n";
        let found = |folder: &str| mounted_in(table, Path::new(folder)).map(|MountId(id)| id);
        assert_eq!(["/mnt/share", "/mnt/a b", "/mnt/auto", "/mnt"].map(found), [Some(36), Some(37), None, None]);
        assert_eq!(found("/mnt/share/"), Some(36));
        let over = format!("{table}39 38 0:31 / /mnt/auto rw - fuse.glusterfs gfs01:/v rw\n");
        assert_eq!(mounted_in(&over, Path::new("/mnt/auto")), Some(MountId(39)));
        assert!(mounted_on(Path::new("/proc")).is_some() && mounted_on(Path::new("/proc/self")).is_none());
    }

    #[test]
    fn what_fstab_mounts_is_meant_to_be_a_mount() {
        let table = "# /dev/sda /srv ext4\ngfs01:/berth\t/mnt/share/ glusterfs defaults,_netdev 0 0\n";
        assert!(is_in(table, Path::new("/mnt/share")));
        assert!(!is_in(table, Path::new("/srv")) && !is_in("", Path::new("/mnt/share")));
    }
}
