//! A cgroup of a test's own with one limit, for a daemon to be started in.

use std::fs;
use std::path::PathBuf;

use crate::cgroup;
use crate::sandbox::Sandbox;
use crate::wait::eventually;

/// The group, removed when dropped: whoever lived in it must be gone by then.
#[derive(Debug)]
pub struct LimitedGroup {
    folder: PathBuf,
    _sandbox: Sandbox,
}

impl LimitedGroup {
    /// A group of this controller, its limit written to the file that v1 and v2 call so.
    pub fn new(controller: &str, v1: &str, v2: &str, limit: &str) -> LimitedGroup {
        let sandbox = Sandbox::new();
        let folder = cgroup::hierarchy(controller).join(format!("{}-limited", sandbox.name()));
        let made = fs::create_dir(&folder);
        made.unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        let group = LimitedGroup { folder, _sandbox: sandbox };
        group.limit(v1, v2, limit);
        group
    }

    /// Sets another limit.
    pub fn limit(&self, v1: &str, v2: &str, limit: &str) {
        let file = [v1, v2].map(|name| self.folder.join(name)).into_iter().find(|file| file.is_file());
        let file = file.unwrap_or_else(|| panic!("neither {v1} nor {v2} is in {}", self.folder.display()));
        fs::write(&file, limit).unwrap_or_else(|error| panic!("cannot write {limit} to {}: {error}", file.display()));
    }

    /// What a shell does to be in it: for `before_exec`.
    pub fn enter(&self) -> String {
        format!("echo $$ >{}/cgroup.procs", self.folder.display())
    }
}

impl Drop for LimitedGroup {
    fn drop(&mut self) {
        // A group is busy for a while after its last process.
        if let Err(error) = eventually(|| fs::remove_dir(&self.folder)) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}
