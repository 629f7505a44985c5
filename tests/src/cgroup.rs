//! Reads a task's cgroup files from the host's side, on cgroup v1, hybrid and v2.

use std::fs;
use std::path::PathBuf;

use crate::leaks::Process;

/// Where a controller's hierarchy is mounted.
pub fn hierarchy(controller: &str) -> PathBuf {
    let v1 = mount_of(|kind, options| kind == "cgroup" && has(options, controller));
    let mount = v1.or_else(|| mount_of(|kind, _| kind == "cgroup2"));
    mount.unwrap_or_else(|| panic!("{controller} is not mounted"))
}

/// The folder of the cgroup that `process` is in, for one controller.
pub fn folder(process: &Process, controller: &str) -> PathBuf {
    let lines = process.cgroup.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        Some((controllers.to_owned(), path.trim_start_matches('/').to_owned()))
    });
    let lines: Vec<_> = lines.collect();
    let v1 = lines.iter().find(|(controllers, _)| controllers.split(',').any(|known| known == controller));
    let v2 = lines.iter().find(|(controllers, _)| controllers.is_empty());
    let (mount, path) = match (v1, v2) {
        (Some((_, path)), _) => (mount_of(|kind, options| kind == "cgroup" && has(options, controller)), path),
        (None, Some((_, path))) => (mount_of(|kind, _| kind == "cgroup2"), path),
        (None, None) => panic!("{process:?} is in no cgroup of {controller}: {}", process.cgroup),
    };
    mount.unwrap_or_else(|| panic!("{controller} is not mounted")).join(path)
}

/// The value of a file of that cgroup: named one way on v1, another on v2.
pub fn value(process: &Process, controller: &str, v1: &str, v2: &str) -> String {
    let folder = folder(process, controller);
    let file = [v1, v2].into_iter().map(|name| folder.join(name)).find(|file| file.is_file());
    let file = file.unwrap_or_else(|| panic!("neither {v1} nor {v2} is in {}", folder.display()));
    let value = fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    value.trim().to_owned()
}

fn has(options: &str, controller: &str) -> bool {
    options.split(',').any(|option| option == controller)
}

/// Where a file system whose type and options suit is mounted (proc(5), /proc/pid/mountinfo).
fn mount_of(suits: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mountinfo.lines().find_map(|line| {
        let (place, source) = line.split_once(" - ")?;
        let mut source = source.split(' ');
        let (kind, options) = (source.next()?, source.nth(1)?);
        suits(kind, options).then(|| place.split(' ').nth(4).map(PathBuf::from))?
    })
}
