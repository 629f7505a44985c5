//! Lets go of the page cache of ended tasks' logs, so that the kernel can let go of the tasks' memory cgroups.
//!
//! A page is charged to the cgroup that wrote it first, and a cgroup that was removed stays in the kernel, dying, as long as
//! it has a page (Documentation/admin-guide/cgroup-v1/memory.rst, section 4.2). All that a task writes is removed with its
//! container, except its logs: without this, every task would leave a cgroup behind for as long as memory is plenty, some
//! ten KiB each, which nobody can see but the counters. The logs reach the disk early on the way.
//!
//! The logs are on the share, which may hang, so a forked child does it; one at a time, in bulk, some time after the end. It
//! is a kindness to the kernel: what goes wrong costs nothing but memory that the kernel takes back when it needs it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, OFlags, fadvise};
use wire::Log;

use crate::child::{self, Child};
use crate::event_loop::Watcher;
use crate::sys::{self, WriteBack};

/// How long the first folder waits for company. A log is often read right after its task's end; the reader's copy of the
/// page is the same one, and is read from the disk if it comes later.
const LINGER: Duration = Duration::from_secs(2);
/// So many folders wait for nobody else.
const BATCH: usize = 256;
/// The most that wait while a share hangs; beyond it the kernel's own reclaim will have to do.
const MOST: usize = 16 * 1024;
/// Logs that the child has open at once.
const AT_ONCE: usize = 64;
/// The child gives way to tasks and launches.
const NICENESS: i32 = 5;

/// Folders of logs whose pages are to go, and the one child that sees to it.
#[derive(Debug, Default)]
pub struct LogPages {
    waiting: Vec<PathBuf>,
    due: Option<Instant>,
    child: Option<Child>,
}

impl LogPages {
    /// The task with this folder of logs has ended.
    pub fn add(&mut self, logs: PathBuf, now: Instant) {
        if self.waiting.len() < MOST {
            self.waiting.push(logs);
            self.due.get_or_insert(now + LINGER);
        }
    }

    /// When [`LogPages::start_if_due`] must be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.due.filter(|_| self.child.is_none())
    }

    /// Starts a child once there is enough for one, or something has waited long enough.
    pub fn start_if_due(&mut self, watcher: &Watcher, now: Instant) {
        let due = self.due.is_some_and(|due| due <= now || self.waiting.len() >= BATCH);
        if !due || self.child.is_some() {
            return;
        }
        let folders = std::mem::take(&mut self.waiting);
        match sys::fork_child(|| let_go_of(&folders)).and_then(|child| watcher.watch_child(child)) {
            Ok(child) => {
                self.child = Some(child);
                self.due = None;
            }
            Err(error) => {
                log::warn!("cannot start the child that lets go of the logs' pages: {error}; trying again");
                self.waiting = folders;
                self.due = Some(now + LINGER);
            }
        }
    }

    /// Whether `pid` is the child.
    pub fn is(&self, pid: i32) -> bool {
        self.child.as_ref().is_some_and(|child| child.pid == pid)
    }

    /// The child has exited.
    pub fn finish(&mut self, watcher: &Watcher) {
        let Some(child) = self.child.take() else { return };
        watcher.release(&child.pidfd);
        if !matches!(child::reap(&child.pidfd), Ok(Some(0))) {
            log::warn!("the child that lets go of the logs' pages ended early; the kernel will in time");
        }
    }
}

/// The child's whole life.
fn let_go_of(folders: &[PathBuf]) -> i32 {
    let stderr = io::stderr();
    if let Err(error) = sys::close_all_but(&[stderr.as_fd()]) {
        log::warn!("cannot close copies of descriptors: {error}");
    }
    if let Err(errno) = rustix::process::nice(NICENESS) {
        log::debug!("cannot lower the priority: {errno}");
    }
    for folders in folders.chunks(AT_ONCE / Log::ALL.len()) {
        let logs: Vec<File> = folders.iter().flat_map(|folder| open_logs(folder)).collect();
        // Only clean pages go. All are on their way to the disk before the first is waited for.
        for log in &logs {
            write_back(log, WriteBack::Begin);
        }
        for log in &logs {
            write_back(log, WriteBack::Finish);
            if let Err(errno) = fadvise(log, 0, None, Advice::DontNeed) {
                log::debug!("cannot let go of a log's pages: {errno}");
            }
        }
    }
    0
}

/// Those that are there, without waiting for anybody's lease on them (open(2), O_NONBLOCK).
fn open_logs(folder: &Path) -> impl Iterator<Item = File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let open = move |log: Log| OpenOptions::new().read(true).custom_flags(flags).open(folder.join(log.file_name()));
    Log::ALL.into_iter().filter_map(move |log| open(log).ok())
}

fn write_back(log: &File, step: WriteBack) {
    // A filesystem that cannot has nothing of ours to write back.
    if let Err(error) = sys::write_back(log.as_fd(), step) {
        log::debug!("cannot write a log's pages back: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_wait_for_company_and_a_full_batch_for_nobody() {
        let now = Instant::now();
        let mut pages = LogPages::default();
        assert_eq!(pages.next_deadline(), None, "an idle node is left asleep");
        pages.add("/share/nodes/0/task1".into(), now);
        pages.add("/share/nodes/0/task2".into(), now + LINGER / 2);
        assert_eq!(pages.next_deadline(), Some(now + LINGER));
        let events = crate::event_loop::EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        pages.start_if_due(&events.watcher().unwrap(), now);
        assert_eq!((pages.waiting.len(), pages.child.is_some()), (2, false));
    }

    #[test]
    fn what_waits_for_a_share_that_hangs_is_bounded() {
        let mut pages = LogPages::default();
        for task in 0..MOST + 10 {
            pages.add(format!("/share/nodes/0/task{task}").into(), Instant::now());
        }
        assert_eq!(pages.waiting.len(), MOST);
    }
}
