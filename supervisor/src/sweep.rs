//! The sweeper: a forked child that syncs the journal and removes container folders, in bulk, and counts what of ours
//! has no owner.
//!
//! Both may block for as long as the disk likes, so neither is the loop's to do. One sweeper runs at a
//! time; what comes up meanwhile waits for the next, so a busy node has few and large sweeps.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wire::fault::{Point, Process};

use crate::errand::{self, Errand};
use crate::event_loop::Watcher;
use crate::fault;
use crate::journal::{Journal, SyncMark};
use crate::remove_tree::remove_tree;

/// How long the first thing waits for company.
const LINGER: Duration = Duration::from_millis(50);
/// The first and the longest pause before a folder that resisted is tried again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// The most folders one sweep removes: what was written meanwhile waits for its end to be synced.
const MAX_FOLDERS: usize = 256;
/// With so many folders waiting the sweeper is behind: nothing is launched until it has caught up.
const BEHIND: usize = 4 * MAX_FOLDERS;

/// The child's exit status.
const DONE: i32 = 0;
const CANNOT_SYNC: i32 = 2;
const CANNOT_REMOVE: i32 = 3;

/// Whether what was written is known to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synced {
    /// It is.
    Yes,
    /// The sweeper did not get that far; the next one will.
    NotYet,
    /// The kernel could not write it, and may have dropped it: this journal must not be relied on.
    Failed,
}

/// A sweep under way.
#[derive(Debug)]
struct Sweep {
    errand: Errand,
    folders: Vec<PathBuf>,
    mark: SyncMark,
    /// What it has counted comes over this.
    count: io::PipeReader,
}

/// Folders that resisted, and when they are tried again.
#[derive(Debug, Default)]
struct Resisting {
    folders: BTreeSet<PathBuf>,
    tries: u32,
    again: Option<Instant>,
}

/// What waits to be swept, and the one sweep under way.
#[derive(Debug, Default)]
pub struct Sweeper {
    waiting: BTreeSet<PathBuf>,
    resisting: Resisting,
    due: Option<Instant>,
    sweep: Option<Sweep>,
    leaks: Option<u64>,
}

impl Sweeper {
    /// How many things have no owner, when that was counted anew.
    pub fn take_leaks(&mut self) -> Option<u64> {
        self.leaks.take()
    }

    /// These folders are to go.
    pub fn add(&mut self, folders: Vec<PathBuf>) {
        self.waiting.extend(folders);
    }

    /// Whether folders come faster than they can be removed. Those that resist are no reason to wait.
    pub fn is_behind(&self) -> bool {
        self.waiting.len() >= BEHIND
    }

    /// When [`Sweeper::start_if_due`] must be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.sweep.is_some() {
            return None;
        }
        self.due.into_iter().chain(self.resisting.again).min()
    }

    /// Starts a sweep once something has waited long enough. `count` tells, in the child, how many things have no owner,
    /// given whether the sweeper still has what is called so.
    pub fn start_if_due(
        &mut self,
        journal: &Journal,
        watcher: &Watcher,
        now: Instant,
        count: impl FnOnce(&dyn Fn(&str) -> bool) -> u64,
    ) {
        if self.due.is_none() && (!self.waiting.is_empty() || journal.wants_sync()) {
            self.due = Some(now + LINGER);
        }
        if self.next_deadline().is_some_and(|due| due <= now) {
            self.due = None;
            let folders = self.take_folders(now);
            if let Err(error) = self.start(folders, journal, watcher, count) {
                log::error!("cannot start a sweeper: {error}; trying again");
                self.due = Some(now + FIRST_PAUSE);
            }
        }
    }

    fn take_folders(&mut self, now: Instant) -> Vec<PathBuf> {
        if self.resisting.again.is_some_and(|again| again <= now) {
            self.resisting.again = None;
            self.waiting.append(&mut self.resisting.folders);
        }
        std::iter::from_fn(|| self.waiting.pop_first()).take(MAX_FOLDERS).collect()
    }

    /// What the containers are called whose folders wait for this sweep or a later one.
    fn names_with(&self, folders: &[PathBuf]) -> HashSet<OsString> {
        let all = folders.iter().chain(&self.waiting).chain(&self.resisting.folders);
        all.filter_map(|folder| folder.file_name().map(OsStr::to_owned)).collect()
    }

    fn start(
        &mut self,
        folders: Vec<PathBuf>,
        journal: &Journal,
        watcher: &Watcher,
        count: impl FnOnce(&dyn Fn(&str) -> bool) -> u64,
    ) -> io::Result<()> {
        let mark = journal.mark();
        // To tasks and launches, as long as it keeps up.
        let gives_way = self.waiting.len() < MAX_FOLDERS;
        // Counted are those that have something to remove: which sweep that falls to is a matter of milliseconds.
        if !folders.is_empty() {
            wire::fault::forks(Process::Sweeper);
        }
        // With a backlog there is better to do than to count.
        let count = || {
            gives_way.then(|| {
                let swept = self.names_with(&folders);
                count(&|name| swept.contains(OsStr::new(name)))
            })
        };
        let started = fault::call(Point::SweepFork).and_then(|()| io::pipe()).and_then(|(ours, theirs)| {
            let keep = [journal.file(), theirs.as_fd()];
            Ok((Errand::send(watcher, &keep, || sweep(journal.file(), &folders, gives_way, &theirs, count))?, ours))
        });
        match started {
            Ok((errand, ours)) => {
                self.sweep = Some(Sweep { errand, folders, mark, count: ours });
                Ok(())
            }
            Err(error) => {
                self.waiting.extend(folders);
                Err(error)
            }
        }
    }

    /// Whether `pid` is the sweeper.
    pub fn is(&self, pid: i32) -> bool {
        self.sweep.as_ref().is_some_and(|sweep| sweep.errand.pid() == pid)
    }

    /// The sweeper has exited. Which folders are gone is looked up, not believed.
    pub fn finish(&mut self, journal: &mut Journal, watcher: &Watcher, now: Instant) -> Synced {
        let Some(Sweep { errand, folders, mark, mut count }) = self.sweep.take() else { return Synced::NotYet };
        fault::moment(Point::SweepSwept);
        let mut leaks = [0; 8];
        // It has left, so there is nothing to wait for; one that was cut off has counted nothing.
        self.leaks = count.read_exact(&mut leaks).ok().map(|()| u64::from_ne_bytes(leaks));
        let status = errand.collect(watcher);
        let left = folders.into_iter().filter(|folder| folder.symlink_metadata().is_ok());
        self.keep_resisting(left.collect(), now);
        match status {
            Some(DONE | CANNOT_REMOVE) => {
                journal.synced(mark);
                Synced::Yes
            }
            Some(CANNOT_SYNC) => Synced::Failed,
            _ => {
                log::warn!("a sweeper ended early; its work is done by the next");
                Synced::NotYet
            }
        }
    }

    fn keep_resisting(&mut self, left: Vec<PathBuf>, now: Instant) {
        if left.is_empty() {
            if self.resisting.folders.is_empty() {
                self.resisting = Resisting::default();
            }
            return;
        }
        let pause = FIRST_PAUSE * 2_u32.saturating_pow(self.resisting.tries.min(16));
        self.resisting.tries += 1;
        self.resisting.again = Some(now + pause.min(LAST_PAUSE));
        self.resisting.folders.extend(left);
    }
}

/// The child's whole life. The sync comes first: more waits for it.
fn sweep(
    journal: BorrowedFd<'_>,
    folders: &[PathBuf],
    gives_way: bool,
    line: &io::PipeWriter,
    count: impl FnOnce() -> Option<u64>,
) -> i32 {
    if gives_way {
        errand::give_way();
    }
    fault::moment(Point::SweeperBegun);
    let synced = fault::call(Point::SweeperSync).and_then(|()| Ok(rustix::fs::fdatasync(journal)?));
    if let Err(error) = synced {
        log::error!("cannot sync the journal: {error}");
        return CANNOT_SYNC;
    }
    fault::moment(Point::SweeperSynced);
    let removed = folders.iter().filter(|folder| remove(folder)).count();
    if let Some(leaks) = count() {
        // Eight bytes always fit a pipe. Should nobody want them any more, nothing is lost.
        let _ = (&*line).write_all(&leaks.to_ne_bytes());
    }
    if removed == folders.len() { DONE } else { CANNOT_REMOVE }
}

fn remove(folder: &Path) -> bool {
    match fault::call(Point::SweeperRemove).and_then(|()| remove_tree(folder)) {
        Ok(()) => {
            fault::moment(Point::SweeperRemoved);
            true
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            log::warn!("cannot remove {}: {error}; trying again", folder.display());
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn what_waits_is_swept_together_after_a_moment() {
        let scratch = Scratch::new("sweep");
        let (journal, _) = Journal::open(&scratch.join("journal")).unwrap();
        let events = crate::event_loop::EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut sweeper = Sweeper::default();
        let now = Instant::now();
        sweeper.start_if_due(&journal, &events.watcher().unwrap(), now, |_| 0);
        assert_eq!(sweeper.next_deadline(), None, "an idle node needs no sweeper");
        sweeper.add(vec!["/cont/a".into(), "/cont/b".into()]);
        sweeper.start_if_due(&journal, &events.watcher().unwrap(), now, |_| 0);
        assert_eq!(sweeper.next_deadline(), Some(now + LINGER));
        sweeper.add(vec!["/cont/a".into()]);
        assert_eq!(sweeper.take_folders(now), [PathBuf::from("/cont/a"), PathBuf::from("/cont/b")]);
    }

    #[test]
    fn a_sweep_is_bounded_and_the_rest_is_the_next_ones() {
        let mut sweeper = Sweeper::default();
        sweeper.add((0..MAX_FOLDERS + 1).map(|number| PathBuf::from(format!("/cont/{number}"))).collect());
        assert_eq!(sweeper.take_folders(Instant::now()).len(), MAX_FOLDERS);
        assert_eq!(sweeper.take_folders(Instant::now()).len(), 1);
    }

    #[test]
    fn a_sweeper_is_behind_while_folders_come_faster_than_they_go() {
        let mut sweeper = Sweeper::default();
        sweeper.add((0..BEHIND + MAX_FOLDERS).map(|number| PathBuf::from(format!("/cont/{number}"))).collect());
        assert!(sweeper.is_behind());
        sweeper.take_folders(Instant::now());
        sweeper.take_folders(Instant::now());
        assert!(!sweeper.is_behind());
    }

    #[test]
    fn a_folder_that_resists_is_tried_again_with_growing_pauses() {
        let now = Instant::now();
        let mut sweeper = Sweeper::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            sweeper.keep_resisting(vec!["/cont/a".into()], now);
            let again = sweeper.next_deadline().unwrap();
            pauses.push((again - now).as_secs());
            assert!(sweeper.take_folders(now).is_empty());
            assert_eq!(sweeper.take_folders(again), [PathBuf::from("/cont/a")]);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        sweeper.keep_resisting(Vec::new(), now);
        assert_eq!(sweeper.next_deadline(), None);
    }
}
