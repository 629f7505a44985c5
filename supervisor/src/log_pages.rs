//! Lets go of the page cache of ended tasks' logs, so that the kernel can let go of the tasks' memory cgroups.
//!
//! A page is charged to the cgroup that wrote it first, and a cgroup that was removed stays in the kernel, dying, as long as
//! it has a page (Documentation/admin-guide/cgroup-v1/memory.rst, section 4.2). All that a task writes is removed with its
//! container, except its logs: without this, every task would leave a cgroup behind for as long as memory is plenty, some
//! ten KiB each, which nobody can see but the counters. The logs reach the disk early on the way.
//!
//! The logs are on the share, which may hang, so it is an errand; one at a time, in bulk, some time after the end. It is a
//! kindness to the kernel: what goes wrong costs nothing but memory that the kernel takes back when it needs it.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, OFlags, fadvise};
use wire::Log;

use crate::errand::{self, Back, Messenger};
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
/// How long the logs of one batch may take to reach a slow disk.
const PATIENCE: Duration = Duration::from_secs(600);
/// While an errand hangs, how often is looked whether something else is mounted.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Folders of logs whose pages are to go, and who sees to it.
#[derive(Debug)]
pub struct LogPages {
    waiting: Vec<PathBuf>,
    due: Option<Instant>,
    messenger: Messenger,
}

impl LogPages {
    /// Most of the logs are on this share.
    pub fn new(share: PathBuf) -> LogPages {
        LogPages { waiting: Vec::new(), due: None, messenger: Messenger::new(share, PATIENCE) }
    }

    /// The task with this folder of logs has ended.
    pub fn add(&mut self, logs: PathBuf, now: Instant) {
        if self.waiting.len() < MOST {
            self.waiting.push(logs);
            self.due.get_or_insert(now + LINGER);
        }
    }

    /// When [`LogPages::start_if_due`] must be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.messenger.gives_up().or(self.due)
    }

    /// Sends for it once there is enough, or something has waited long enough.
    pub fn start_if_due(&mut self, watcher: &Watcher, now: Instant) {
        if self.messenger.give_up_if_late(now) {
            log::warn!("the logs' pages are not let go of within {} s; the share may hang", PATIENCE.as_secs());
        }
        let due = self.due.is_some_and(|due| due <= now || self.waiting.len() >= BATCH);
        if !due || self.messenger.gives_up().is_some() {
            return;
        }
        if !self.messenger.can_go() {
            self.due = Some(now + LOOK_AGAIN);
            return;
        }
        let folders = std::mem::take(&mut self.waiting);
        match self.messenger.send(watcher, now, || let_go_of(&folders)) {
            Ok(()) => self.due = None,
            Err(error) => {
                log::warn!("cannot start the child that lets go of the logs' pages: {error}; trying again");
                self.waiting = folders;
                self.due = Some(now + LINGER);
            }
        }
    }

    /// Whether `pid` is a child of its.
    pub fn has(&self, pid: i32) -> bool {
        self.messenger.has(pid)
    }

    /// Its child `pid` has exited.
    pub fn finish(&mut self, pid: i32, watcher: &Watcher) {
        match self.messenger.collect(pid, watcher) {
            Back::With(0) | Back::TooLate => {}
            Back::With(_) | Back::Killed => {
                log::warn!("the child that lets go of the logs' pages ended early; the kernel will in time");
            }
        }
    }
}

/// The child's whole life.
fn let_go_of(folders: &[PathBuf]) -> i32 {
    errand::give_way();
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
    use crate::event_loop::{Event, EventLoop};

    #[test]
    fn folders_wait_for_company_and_a_full_batch_for_nobody() {
        let now = Instant::now();
        let mut pages = LogPages::new("/share".into());
        assert_eq!(pages.next_deadline(), None, "an idle node is left asleep");
        pages.add("/share/nodes/0/task1".into(), now);
        pages.add("/share/nodes/0/task2".into(), now + LINGER / 2);
        assert_eq!(pages.next_deadline(), Some(now + LINGER));
        let events = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        pages.start_if_due(&events.watcher().unwrap(), now);
        assert_eq!((pages.waiting.len(), pages.messenger.gives_up()), (2, None));
    }

    #[test]
    fn one_that_hangs_is_given_up_and_the_next_goes_when_it_is_back() {
        let mut events = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let (watcher, now) = (events.watcher().unwrap(), Instant::now());
        let mut pages = LogPages::new("/share".into());
        let forever = || loop {
            std::thread::park();
        };
        pages.messenger.send(&watcher, now, forever).unwrap();
        pages.add("/share/nodes/0/task1".into(), now);
        assert_eq!(pages.next_deadline(), Some(now + PATIENCE));
        let late = now + PATIENCE;
        pages.start_if_due(&watcher, late);
        assert_eq!((pages.waiting.len(), pages.next_deadline()), (1, Some(late + LOOK_AGAIN)));
        for waiting in [1, 0] {
            assert_eq!(pages.waiting.len(), waiting);
            let heard = events.turn(Some(Instant::now() + Duration::from_secs(30))).unwrap();
            let [Event::ChildExited(pid)] = heard[..] else { panic!("{heard:?}") };
            assert!(pages.has(pid));
            pages.finish(pid, &watcher);
            pages.start_if_due(&watcher, late + LOOK_AGAIN);
        }
        assert_eq!(pages.next_deadline(), None);
    }

    #[test]
    fn what_waits_for_a_share_that_hangs_is_bounded() {
        let mut pages = LogPages::new("/share".into());
        for task in 0..MOST + 10 {
            pages.add(format!("/share/nodes/0/task{task}").into(), Instant::now());
        }
        assert_eq!(pages.waiting.len(), MOST);
    }
}
