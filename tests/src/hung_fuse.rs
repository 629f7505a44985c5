//! A FUSE file system whose server can be stopped and continued: what a share looks like when its servers are gone.
//!
//! The server is Debian's bindfs, which shows one folder at another place. Stopped by SIGSTOP it answers nothing, as a dead
//! GlusterFS does not. It can be slow as well: a request that it has taken up and not answered when it is stopped is
//! one that not even SIGKILL gets a process out of (`request_wait_answer()` in fs/fuse/dev.c).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::mount::{detach, is_mounted};
use crate::sandbox::Sandbox;
use crate::wait::{until, until_true};

/// The mounted file system. Its server goes on, and it is unmounted, when it is dropped.
#[derive(Debug)]
pub struct HungFuse {
    source: PathBuf,
    at: PathBuf,
    server: Child,
    _sandbox: Sandbox,
}

impl HungFuse {
    /// Mounts an empty one whose server works.
    pub fn mount() -> HungFuse {
        HungFuse::mount_with(&[], None)
    }

    /// Mounts one that shows what `other` does. While that one hangs, this one's server takes up what is asked of it and
    /// cannot answer.
    pub fn mount_over(other: &HungFuse) -> HungFuse {
        HungFuse::mount_with(&[], Some(other.path()))
    }

    /// Mounts one whose server writes so many bytes a second.
    pub fn mount_slow(write_rate: u32) -> HungFuse {
        HungFuse::mount_with(&[&format!("--write-rate={write_rate}")], None)
    }

    fn mount_with(options: &[&str], source: Option<&Path>) -> HungFuse {
        let sandbox = Sandbox::new();
        let (own, at) = (sandbox.folder("source"), sandbox.folder("fuse"));
        let source = source.map_or(own, Path::to_owned);
        let mut command = Command::new("bindfs");
        command.arg("-f").args(options).arg(&source).arg(&at).stdin(Stdio::null()).stdout(Stdio::null());
        let server = command.spawn();
        let server = server.unwrap_or_else(|error| panic!("cannot run bindfs: {error}; apt-get install bindfs"));
        let share = HungFuse { source, at, server, _sandbox: sandbox };
        until_true(format!("{} to be mounted", share.at.display()), || is_mounted(&share.at));
        share
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// The folder that is shown there. It can be looked at while the server is stopped.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Whether the server, one of [`HungFuse::mount_slow`], has a write in its hands: it sleeps for as long as that is to
    /// take.
    pub fn is_in_a_write(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.server.id())).into_iter().flatten().flatten();
        let mut sleeps_in = threads.map(|thread| fs::read_to_string(thread.path().join("wchan")).unwrap_or_default());
        sleeps_in.any(|function| function.contains("nanosleep"))
    }

    /// Stops the server; from when this returns it answers nothing.
    pub fn hang(&self) {
        self.signal(Signal::STOP);
        until("the server to be stopped", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.server.id())).unwrap_or_default();
            if stat.contains(") T ") { Ok(()) } else { Err(stat) }
        });
    }

    /// Lets the server go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Lets the server go on when what this returns is dropped: for a test that may fail while it hangs. To be made after
    /// whatever could not stop while it does.
    pub fn go_on_at_the_end(&self) -> impl Drop + use<'_> {
        struct AtTheEnd<'a>(&'a HungFuse);
        impl Drop for AtTheEnd<'_> {
            fn drop(&mut self) {
                self.0.go_on();
            }
        }
        AtTheEnd(self)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.server.id()).ok().and_then(Pid::from_raw) {
            // ESRCH: it is gone, and so is whatever waited for it.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for HungFuse {
    fn drop(&mut self) {
        self.go_on();
        detach(&self.at);
        // It ends by itself when nobody uses the mount any more; somebody may.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
