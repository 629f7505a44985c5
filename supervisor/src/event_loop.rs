//! The loop's ear: one `mio::Poll` for sockets, signals and pidfds, and what it heard as a closed enum.
//!
//! It decides nothing. SIGCHLD is not among the signals: every child and every adopted init has a
//! pidfd, which says who it was and wakes us once.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;
use wire::TaskId;
use wire::http::{ConnectionId, Limits, Request, Server};

use crate::child::{self, Child};

/// How long a port in use is waited for, and how often it is tried.
const PORT_IN_USE: Duration = Duration::from_secs(1);
const TRY_PORT_AGAIN: Duration = Duration::from_millis(10);

/// Requests that are heard in one turn. Each of a thousand can ask for every task there is, and in between a deadline may
/// pass, a child exit, or a task be waiting for its launch.
const REQUESTS_A_TURN: usize = 64;

const SIGNALS: Token = Token(0);
/// One for the listener, the others for connections.
const SERVER: Range<usize> = 1..0x1_0000;
/// Children of our own, by pid: at most 2^22 on Linux (proc_sys_kernel(5), pid_max).
const CHILDREN: Range<usize> = 0x1_0000..0x100_0000;
/// Two for each task: its init's pidfd and the line to it.
const TASKS: usize = 0x100_0000;

/// What was heard.
#[derive(Debug)]
pub enum Event {
    /// Somebody wants something.
    Request(ConnectionId, Request),
    /// Whoever wanted something has gone, or will at least send no more.
    ClientGone(ConnectionId),
    /// The line to a task's init can be read.
    InitSpoke(TaskId),
    /// A task's init has exited.
    InitExited(TaskId),
    /// A child of our own, the sweeper or a reader, has exited.
    ChildExited(i32),
    /// SIGTERM or SIGINT.
    StopAsked,
}

/// The poll and what is always watched by it.
pub struct EventLoop {
    poll: Poll,
    events: Events,
    signals: Signals,
    server: Server,
}

impl EventLoop {
    /// Listens on `addr` and for the signals to stop.
    pub fn new(addr: SocketAddr) -> io::Result<EventLoop> {
        let poll = Poll::new()?;
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        let server = bind(addr, poll.registry())?;
        Ok(EventLoop { poll, events: Events::with_capacity(256), signals, server })
    }

    /// The connections.
    pub fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.server.local_addr()
    }

    /// A way to have more watched.
    pub fn watcher(&self) -> io::Result<Watcher> {
        Ok(Watcher(self.poll.registry().try_clone()?))
    }

    /// Sleeps until something happens, or until `deadline`; without one, for as long as it takes.
    pub fn turn(&mut self, deadline: Option<Instant>) -> io::Result<Vec<Event>> {
        let left_over = self.server.has_requests().then(Instant::now);
        let wake = [deadline, self.server.next_deadline(), left_over].into_iter().flatten().min();
        self.events.clear();
        match self.poll.poll(&mut self.events, wake.map(until)) {
            Ok(()) => {}
            // A signal: its own pipe tells of it.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(self.sort_out(Instant::now()))
    }

    fn sort_out(&mut self, now: Instant) -> Vec<Event> {
        let mut heard = Vec::new();
        for event in &self.events {
            match event.token() {
                SIGNALS => heard.extend(self.signals.pending().map(|_| Event::StopAsked)),
                token if self.server.owns(token) => self.server.ready(event, now),
                Token(number) if CHILDREN.contains(&number) => heard.extend(pid_of(number).map(Event::ChildExited)),
                Token(number) => heard.push(of_task(number)),
            }
        }
        self.server.expire(now);
        let requests = iter::from_fn(|| self.server.next_request()).take(REQUESTS_A_TURN);
        heard.extend(requests.map(|(id, request)| Event::Request(id, request)));
        while let Some(id) = self.server.next_closed() {
            heard.push(Event::ClientGone(id));
        }
        heard
    }
}

/// Listens on `addr`. A supervisor that was just killed may have left a child between its clone and its first
/// steps, where it closes its copy of the listening socket; so a port in use is given a moment, once, at start.
fn bind(addr: SocketAddr, registry: &Registry) -> io::Result<Server> {
    let give_up = Instant::now() + PORT_IN_USE;
    loop {
        match Server::bind(addr, Limits::default(), registry.try_clone()?, SERVER) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::park_timeout(TRY_PORT_AGAIN);
            }
            result => return result,
        }
    }
}

/// mio rounds the time-out up to whole milliseconds, so we never wake early for nothing.
fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn pid_of(number: usize) -> Option<i32> {
    i32::try_from(number - CHILDREN.start).ok()
}

fn of_task(number: usize) -> Event {
    let task = TaskId(((number - TASKS) / 2) as u64);
    if (number - TASKS).is_multiple_of(2) { Event::InitExited(task) } else { Event::InitSpoke(task) }
}

fn token_of(task: TaskId, line: bool) -> Token {
    Token(TASKS + 2 * task.0 as usize + usize::from(line))
}

/// Has descriptors watched. What is watched must be given back before it is closed: a pidfd fires once
/// more after its process was reaped, and a forked child may hold a copy that keeps it registered.
#[derive(Debug)]
pub struct Watcher(Registry);

impl Watcher {
    /// Watches for the exit of a task's init.
    pub fn watch_init(&self, task: TaskId, pidfd: BorrowedFd<'_>) -> io::Result<()> {
        self.watch(pidfd, token_of(task, false))
    }

    /// Watches the line to a task's init.
    pub fn watch_line(&self, task: TaskId, line: &impl AsFd) -> io::Result<()> {
        self.watch(line.as_fd(), token_of(task, true))
    }

    /// Watches for the exit of a child of our own. One that cannot be watched is gone when this returns.
    pub fn watch_child(&self, child: Child) -> io::Result<Child> {
        let watched = usize::try_from(child.pid)
            .map_err(io::Error::other)
            .and_then(|number| self.watch(child.pidfd.as_fd(), Token(CHILDREN.start + number)));
        match watched {
            Ok(()) => Ok(child),
            Err(error) => {
                child::kill_and_reap(&child.pidfd);
                Err(error)
            }
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.0.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)
    }

    /// Watches it no longer.
    pub fn release(&self, fd: &impl AsFd) {
        if let Err(error) = self.0.deregister(&mut SourceFd(&fd.as_fd().as_raw_fd())) {
            log::warn!("cannot stop watching a descriptor: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn tokens_of_children_and_tasks_never_meet_and_lead_back() {
        for task in [0, 1, 7, u64::from(u32::MAX)] {
            let exited = of_task(token_of(TaskId(task), false).0);
            assert!(matches!(exited, Event::InitExited(TaskId(id)) if id == task));
            let spoke = of_task(token_of(TaskId(task), true).0);
            assert!(matches!(spoke, Event::InitSpoke(TaskId(id)) if id == task));
        }
        assert!(CHILDREN.contains(&(CHILDREN.start + (1 << 22))));
        assert_eq!(pid_of(CHILDREN.start + 4711), Some(4711));
    }

    #[test]
    fn an_idle_loop_sleeps_until_its_deadline_and_hears_a_child_exit() {
        let mut turn = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let deadline = Instant::now() + Duration::from_millis(30);
        assert!(turn.turn(Some(deadline)).unwrap().is_empty());
        assert!(Instant::now() >= deadline);
        let watcher = turn.watcher().unwrap();
        let child = watcher.watch_child(sleep("0")).unwrap();
        let heard = turn.turn(Some(Instant::now() + Duration::from_secs(10))).unwrap();
        assert!(matches!(heard[..], [Event::ChildExited(exited)] if exited == child.pid), "{heard:?}");
        watcher.release(&child.pidfd);
        assert_eq!(child::reap(&child.pidfd), Ok(Some(0)));
    }

    #[test]
    fn many_requests_are_heard_in_their_order_and_only_some_of_them_in_a_turn() {
        const MANY: usize = REQUESTS_A_TURN + 36;
        let mut turn = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = turn.local_addr().unwrap();
        let ask = |n: usize| {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.write_all(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
            stream
        };
        let _asking: Vec<TcpStream> = (0..MANY).map(ask).collect();
        // All of them are whole before the first is heard, so that no event tells of any later.
        let mut told = true;
        while told || turn.server.open_connections() < MANY {
            turn.poll.poll(&mut turn.events, Some(Duration::ZERO)).unwrap();
            told = !turn.events.is_empty();
            turn.events.iter().for_each(|event| turn.server.ready(event, Instant::now()));
            turn.server.expire(Instant::now());
        }
        let (mut heard, give_up) = (Vec::new(), Instant::now() + Duration::from_secs(20));
        while heard.len() < MANY {
            let part = turn.turn(Some(give_up)).unwrap();
            assert!(part.len() <= REQUESTS_A_TURN && Instant::now() < give_up, "{} were heard", part.len());
            heard.extend(part.into_iter().map(|event| match event {
                Event::Request(_, request) => request.path,
                other => panic!("{other:?}"),
            }));
        }
        assert_eq!(heard, (0..MANY).map(|n| format!("/{n}")).collect::<Vec<_>>());
    }

    #[test]
    fn a_child_that_cannot_be_watched_is_ended_and_no_zombie_is_left_of_it() {
        let turn = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let watcher = turn.watcher().unwrap();
        let child = sleep("30");
        let pid = rustix::process::Pid::from_raw(child.pid).unwrap();
        // What is watched already cannot be watched again (epoll_ctl(2), EEXIST).
        watcher.watch(child.pidfd.as_fd(), SIGNALS).unwrap();
        assert_eq!(watcher.watch_child(child).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        assert_eq!(waited.unwrap_err(), rustix::io::Errno::CHILD);
    }

    #[expect(clippy::zombie_processes, reason = "it is reaped by its pidfd")]
    fn sleep(seconds: &str) -> Child {
        let spawned = std::process::Command::new("sleep").arg(seconds).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&spawned);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        Child { pid: pid.as_raw_nonzero().get(), pidfd }
    }
}
