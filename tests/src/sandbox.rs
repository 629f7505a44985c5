//! The temp dir of one test, and its name, which everything the test makes carries.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::leaks::Footprint;

/// A folder of its own for one test, on tmpfs where there is one; removed when dropped.
#[derive(Debug)]
pub struct Sandbox {
    name: String,
    dir: PathBuf,
}

impl Sandbox {
    /// A new one, unlike any other on this machine.
    pub fn new() -> Sandbox {
        let tmpfs = Path::new("/dev/shm");
        if tmpfs.is_dir() { Sandbox::below(tmpfs) } else { Sandbox::below(&std::env::temp_dir()) }
    }

    /// A new one in this folder.
    pub fn below(base: &Path) -> Sandbox {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}{}", prefix(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = base.join(&name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("cannot create {}: {error}", dir.display()));
        Sandbox { name, dir }
    }

    /// `berth-test-<pid>-<n>`: what cgroup roots begin with, followed by a dash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A folder inside, made if need be.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.join(name);
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("cannot create {}: {error}", folder.display()));
        folder
    }
}

impl Default for Sandbox {
    fn default() -> Sandbox {
        Sandbox::new()
    }
}

impl Drop for Sandbox {
    /// Dropped after the daemons that live in it. A test that failed may have left anything behind.
    fn drop(&mut self) {
        if std::thread::panicking() {
            Footprint::of(self).remove();
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// What the name of every sandbox of this process begins with.
fn prefix() -> String {
    format!("berth-test-{}-", std::process::id())
}

/// For a program that ends at a panic without unwinding, as release builds do: what its sandboxes hold is removed all the
/// same. The folders stay, with the daemons' last words.
pub fn remove_all_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        Footprint::of_all(&prefix()).remove();
    }));
}

/// Whether this test process may make containers; says so aloud when it may not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        eprintln!("SKIPPED {test}: containers need root; run the tests as root");
    }
    root
}
