//! Errands: what may block for as long as a disk or a share likes, done by a forked child. Nobody waits for it: that it is
//! back is an event like any other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::child::{self, Child};
use crate::event_loop::Watcher;
use crate::mount_table::{self, MountId};
use crate::sys;

/// Of an errand that gives way to tasks and launches.
const NICENESS: i32 = 5;

/// A child on an errand.
#[derive(Debug)]
pub struct Errand(Child);

impl Errand {
    /// Forks a child that does `work` and leaves with its answer. Of our descriptors it keeps these and stderr: copies of
    /// sockets and lines that live on in it would keep connections and inits from seeing their end.
    pub fn send(watcher: &Watcher, keep: &[BorrowedFd<'_>], work: impl FnOnce() -> i32) -> io::Result<Errand> {
        let child = sys::fork_child(|| {
            let stderr = io::stderr();
            if let Err(error) = sys::close_all_but(&[keep, &[stderr.as_fd()]].concat()) {
                log::warn!("cannot close copies of descriptors: {error}");
            }
            work()
        })?;
        watcher.watch_child(child).map(Errand)
    }

    /// Its child's pid.
    pub fn pid(&self) -> i32 {
        self.0.pid
    }

    /// Ends it, whatever it is at. A child that the kernel holds for a server is gone when the server lets go of it.
    pub fn kill(&self) {
        if let Err(errno) = rustix::process::pidfd_send_signal(&self.0.pidfd, Signal::KILL) {
            log::debug!("cannot end child {}: {errno}", self.pid());
        }
    }

    /// Its child has exited: with what it left. `None`: it was killed.
    pub fn collect(self, watcher: &Watcher) -> Option<i32> {
        watcher.release(&self.0.pidfd);
        child::reap(&self.0.pidfd).unwrap_or_else(|errno| {
            log::warn!("cannot reap child {}: {errno}", self.pid());
            None
        })
    }
}

/// Gives way to tasks and launches. In the child.
pub fn give_way() {
    if let Err(errno) = rustix::process::nice(NICENESS) {
        log::debug!("cannot lower the priority: {errno}");
    }
}

// ---- to a share -----------------------------------------------------------------------------------------------------

/// The most that may hang on mounts that others have taken the place of.
const MOST_HANGING: usize = 8;

/// How an errand to a share came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Back {
    /// With what it left.
    With(i32),
    /// It was killed.
    Killed,
    /// It had been given up: nobody wants to know any more.
    TooLate,
}

/// One that is under way.
#[derive(Debug)]
struct UnderWay {
    errand: Errand,
    to: Option<MountId>,
    give_up: Instant,
}

/// Sends errands to a share, one at a time, and gives up those that take too long.
///
/// One that is given up need not be back: the kernel keeps a child for a server that has taken up its request, SIGKILL or
/// not. Where one hangs no other is sent, for it would hang beside it, and the first is back as soon as the server goes on.
/// But a mount that has come into the place of theirs is another server's, and is not theirs to wait for. So however long a
/// server is dead it has one child of each messenger, and more of them there are only where somebody mounts a share anew,
/// time and again, and leaves the servers of the old mounts hanging. [`MOST_HANGING`] are enough for anybody; ending such a
/// server lets its child go.
#[derive(Debug)]
pub struct Messenger {
    share: PathBuf,
    patience: Duration,
    under_way: Option<UnderWay>,
    hanging: Vec<(Errand, Option<MountId>)>,
}

impl Messenger {
    /// To `share`, whose answers are waited for so long.
    pub fn new(share: PathBuf, patience: Duration) -> Messenger {
        Messenger { share, patience, under_way: None, hanging: Vec::new() }
    }

    /// When one that is under way has taken too long.
    pub fn gives_up(&self) -> Option<Instant> {
        self.under_way.as_ref().map(|under_way| under_way.give_up)
    }

    /// Gives it up if it has. True: it was given up.
    pub fn give_up_if_late(&mut self, now: Instant) -> bool {
        let late = self.under_way.take_if(|under_way| under_way.give_up <= now);
        let Some(UnderWay { errand, to, .. }) = late else { return false };
        errand.kill();
        self.hanging.push((errand, to));
        true
    }

    /// Whether none hangs that the next would only hang beside.
    pub fn can_go(&self) -> bool {
        self.hanging.is_empty() || self.can_go_to(mount_table::mounted_on(&self.share))
    }

    fn can_go_to(&self, mount: Option<MountId>) -> bool {
        self.hanging.len() < MOST_HANGING && self.hanging.iter().all(|(_, on)| *on != mount)
    }

    /// Sends one, while none is under way.
    pub fn send(&mut self, watcher: &Watcher, now: Instant, work: impl FnOnce() -> i32) -> io::Result<()> {
        let to = mount_table::mounted_on(&self.share);
        let errand = Errand::send(watcher, &[], work)?;
        self.under_way = Some(UnderWay { errand, to, give_up: now + self.patience });
        Ok(())
    }

    /// Whether `pid` is one of its children.
    pub fn has(&self, pid: i32) -> bool {
        let hanging = self.hanging.iter().map(|(errand, _)| errand);
        self.under_way.iter().map(|under_way| &under_way.errand).chain(hanging).any(|errand| errand.pid() == pid)
    }

    /// Its child `pid` has exited.
    pub fn collect(&mut self, pid: i32, watcher: &Watcher) -> Back {
        if let Some(UnderWay { errand, .. }) = self.under_way.take_if(|under_way| under_way.errand.pid() == pid) {
            return errand.collect(watcher).map_or(Back::Killed, Back::With);
        }
        for (errand, _) in self.hanging.extract_if(.., |(errand, _)| errand.pid() == pid) {
            errand.collect(watcher);
        }
        Back::TooLate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::{Event, EventLoop};

    const SHARE: MountId = MountId(u32::MAX);

    /// One whose child does not come back while it is waited for.
    fn hanging_on(mount: Option<MountId>, watcher: &Watcher, now: Instant) -> Messenger {
        let mut messenger = Messenger::new("/proc".into(), Duration::from_secs(1));
        let forever = || loop {
            std::thread::park();
        };
        messenger.send(watcher, now, forever).unwrap();
        messenger.under_way.as_mut().unwrap().to = mount;
        messenger
    }

    #[test]
    fn one_that_hangs_is_given_up_and_the_next_goes_only_to_another_mount() {
        let mut events = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let (watcher, now) = (events.watcher().unwrap(), Instant::now());
        let mut messenger = hanging_on(Some(SHARE), &watcher, now);
        let give_up = messenger.gives_up().unwrap();
        assert!(!messenger.give_up_if_late(now) && messenger.can_go());
        assert!(messenger.give_up_if_late(give_up) && messenger.gives_up().is_none());
        assert!(!messenger.can_go_to(Some(SHARE)));
        assert!(messenger.can_go() && messenger.can_go_to(None), "what is mounted there is another");
        messenger.send(&watcher, now, || 7).unwrap();
        let mut back = Vec::new();
        while back.len() < 2 {
            for event in events.turn(Some(now + Duration::from_secs(30))).unwrap() {
                let Event::ChildExited(pid) = event else { panic!("{event:?}") };
                assert!(messenger.has(pid));
                back.push(messenger.collect(pid, &watcher));
                assert!(!messenger.has(pid));
            }
        }
        assert!(back.contains(&Back::TooLate) && back.contains(&Back::With(7)), "{back:?}");
        assert!(messenger.can_go_to(Some(SHARE)), "the one that hung is back");
    }

    #[test]
    fn those_that_hang_are_bounded() {
        let events = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let (watcher, now) = (events.watcher().unwrap(), Instant::now());
        let mut messenger = Messenger::new("/proc".into(), Duration::ZERO);
        for number in 0..MOST_HANGING as u32 {
            assert!(messenger.can_go_to(None));
            messenger.send(&watcher, now, || 0).unwrap();
            messenger.under_way.as_mut().unwrap().to = Some(MountId(u32::MAX - number));
            assert!(messenger.give_up_if_late(now));
        }
        assert!(!messenger.can_go() && !messenger.can_go_to(None));
    }
}
