//! Init's watch over the running command: signals, the clock, the line; what is done about each.
//!
//! It ends with the command, and tells what ended it. It never reads or writes the share, nor waits for a command that
//! the share keeps from dying: a hung one must not keep a time limit from being enforced, nor the end from being told.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use wire::fault::Point;

use super::alarms::{Alarm, Alarms};
use super::log_cap::{LogCap, Look};
use super::monitor::Monitor;
use super::plan::Plan;
use super::record::End;
use crate::fault;

/// How long what was killed may take to be gone: then the kernel holds it, and it will never run a user's code again.
const DEAD_BY_THEN: Duration = Duration::from_secs(2);
/// The most that are reaped before anything else is looked at: a payload can make orphans as fast as they are reaped.
const MOST_REAPED: usize = 64;

/// Init's own standing watch over the command.
///
/// ```text
///   Running ──exits, dies──────────────▶ End::Exited | End::Signaled
///      │ time is up │ asked to stop      │ a log is over its cap
///      ▼            ▼   SIGTERM to all   ▼
///   Stopping(TimedOut | Killed) ──grace over──▶ SIGKILL to all ──still there──▶ that end
///      └──the command is gone──▶ that end
///   Running, Stopping ──lease over──▶ SIGKILL to all, without a grace period
/// ```
///
/// A second reason to stop changes nothing: what stopped it first is what it ended by. Nor does a reason that is heard
/// together with the command's own end: it had ended before anybody stopped it.
#[derive(Debug)]
pub struct Watch<'p> {
    plan: &'p Plan<'p>,
    line: &'p UnixStream,
    payload: i32,
    signals: SignalFd,
    alarms: Alarms,
    logs: Option<&'p LogCap>,
    stopping: Option<End>,
    /// Whether there was more to reap than is reaped at once. The SIGCHLD of the rest has been heard already.
    more_to_reap: bool,
}

impl<'p> Watch<'p> {
    /// Watches from now on; the time limit begins here.
    pub fn new(
        plan: &'p Plan<'_>,
        line: &'p UnixStream,
        payload: i32,
        logs: Option<&'p LogCap>,
    ) -> nix::Result<Watch<'p>> {
        // All are blocked since the clone; the rest of them mean nothing to us.
        let mut wanted = SigSet::empty();
        wanted.add(Signal::SIGCHLD);
        wanted.add(Signal::SIGTERM);
        let signals = SignalFd::new(&wanted)?;
        let alarms = Alarms::new()?;
        let mut watch = Watch { plan, line, payload, signals, alarms, logs, stopping: None, more_to_reap: false };
        if let Some(timeout) = plan.timeout {
            watch.alarms.set(Alarm::TimeUp, timeout)?;
        }
        if let Some(lease) = &plan.lease {
            watch.alarms.set_at(Alarm::LeaseEnds, lease.end())?;
        }
        if let Some(logs) = logs {
            let first = match logs.look() {
                Look::Within(pause) => pause,
                Look::Over(_) => Duration::ZERO,
            };
            watch.alarms.set(Alarm::LookAtLogs, first)?;
        }
        Ok(watch)
    }

    /// Returns once the command is gone, or was killed and the kernel does not let go of it.
    pub fn until_the_end(&mut self, monitor: &mut Monitor) -> io::Result<End> {
        loop {
            let happened = self.wait()?;
            // Whatever woke us, the command may be gone already: a signalfd gives the lowest number first, so SIGTERM
            // before a SIGCHLD that was there earlier. And a SIGCHLD stands for any number of exits.
            match reap(self.payload, exited)? {
                Reaped::Payload(end) => return Ok(self.ended_by(end)),
                Reaped::All => self.more_to_reap = false,
                Reaped::Enough => self.more_to_reap = true,
            }
            if happened.asked_to_stop {
                self.stop(End::Killed, "asked to stop", monitor)?;
            }
            if happened.parent_gone && self.stopping.is_none() {
                monitor.say("whoever ran this is gone");
                self.stopping = Some(End::Killed);
                self.kill()?;
            }
            for alarm in happened.alarms {
                if alarm == Alarm::StillThere {
                    monitor.say("killed, and not gone: the kernel holds it");
                    return Ok(self.stopping.take().unwrap_or(End::Killed));
                }
                self.ring(alarm, monitor)?;
            }
        }
    }

    /// Nothing survives the SIGKILL of a lease that ran out; what exited by itself had done so before.
    fn ended_by(&mut self, end: End) -> End {
        match (self.stopping.take(), end) {
            (None, end) | (Some(End::LeaseOver), end @ End::Exited { .. }) => end,
            (Some(stopping), _) => stopping,
        }
    }

    fn ring(&mut self, alarm: Alarm, monitor: &mut Monitor) -> nix::Result<()> {
        match alarm {
            Alarm::LeaseEnds => self.look_at_the_lease(monitor),
            Alarm::TimeUp => {
                let why = format!("time is up after {} ms", self.plan.spec.timeout);
                self.stop(End::TimedOut, &why, monitor)
            }
            Alarm::GraceOver => {
                monitor.say("grace period over");
                self.kill()
            }
            Alarm::LookAtLogs => self.look_at_logs(monitor),
            // It ends the watch where it is heard.
            Alarm::StillThere => Ok(()),
        }
    }

    /// A flood is stopped at once: a grace period would only be used to write more.
    fn look_at_logs(&mut self, monitor: &mut Monitor) -> nix::Result<()> {
        let Some(logs) = self.logs else { return Ok(()) };
        match logs.look() {
            Look::Within(pause) => self.alarms.set(Alarm::LookAtLogs, pause),
            Look::Over(stream) => {
                let limit_bytes = logs.limit_bytes();
                monitor.say(format!("{stream} is over {}", wire::size::in_words(limit_bytes)));
                self.stopping.get_or_insert(End::LogLimit { stream, limit_bytes });
                self.kill()
            }
        }
    }

    /// Renewed meanwhile, it ends later. Else everything ends now: the job may be tried elsewhere before long.
    fn look_at_the_lease(&mut self, monitor: &mut Monitor) -> nix::Result<()> {
        let Some(lease) = &self.plan.lease else { return Ok(()) };
        if !lease.is_over() {
            return self.alarms.set_at(Alarm::LeaseEnds, lease.end());
        }
        fault::moment(Point::InitLeaseOver);
        self.stopping.get_or_insert(End::LeaseOver);
        self.kill()?;
        fault::moment(Point::InitLeaseKilled);
        monitor.say("the lease has run out: its master was not heard of");
        Ok(())
    }

    /// Waits for the next thing to happen.
    fn wait(&mut self) -> nix::Result<Happened> {
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.alarms.as_fd(), PollFlags::POLLIN),
        ];
        if self.plan.die_with_parent && self.stopping.is_none() {
            fds.push(PollFd::new(self.line.as_fd(), PollFlags::POLLIN));
        }
        let patience = if self.more_to_reap { PollTimeout::ZERO } else { PollTimeout::NONE };
        match nix::poll::poll(&mut fds, patience) {
            // Stopped and continued by somebody: nothing has happened.
            Err(nix::errno::Errno::EINTR) => return Ok(Happened::default()),
            result => result?,
        };
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        let (signalled, time, parent_gone) = (ready(0), ready(1), ready(2));
        let mut happened = Happened { parent_gone, ..Happened::default() };
        if signalled && let Some(info) = self.signals.read_signal()? {
            // A sender outside our pid namespace has no pid in it, and only the kernel can say that a user sent it
            // (rt_sigqueueinfo(2) may claim any pid, but not SI_USER). A signal whose sender there was no room to keep looks
            // the same; such the payload cannot send here (security/seccomp.rs). So it cannot stop its own init.
            let from_outside = info.ssi_pid == 0 && info.ssi_code == libc::SI_USER;
            happened.asked_to_stop = info.ssi_signo == libc::SIGTERM.cast_unsigned() && from_outside;
        }
        if time {
            happened.alarms = self.alarms.take_due()?;
        }
        Ok(happened)
    }

    /// Asks every process of the container to end, and allows them the grace period.
    ///
    /// All, not the command alone: a shell runs its trap only after the program it waits for has ended.
    fn stop(&mut self, end: End, why: &str, monitor: &mut Monitor) -> nix::Result<()> {
        if self.stopping.is_some() {
            return Ok(());
        }
        monitor.say(why);
        self.stopping = Some(end);
        self.kill_all(Signal::SIGTERM);
        self.alarms.set(Alarm::GraceOver, self.plan.grace)
    }

    fn kill(&mut self) -> nix::Result<()> {
        self.kill_all(Signal::SIGKILL);
        self.alarms.set(Alarm::StillThere, DEAD_BY_THEN)
    }

    fn kill_all(&self, signal: Signal) {
        // -1 is every process of this pid namespace but ourselves. ESRCH: there is none left, which is the aim.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), signal);
    }
}

/// What one reaping brought.
#[derive(Debug, PartialEq, Eq)]
enum Reaped {
    /// The end of the command, by itself.
    Payload(End),
    /// All there was, the command not among it.
    All,
    /// As much as is reaped at once; there may be more.
    Enough,
}

/// Reaps what has exited, orphans of the payload too. The payload first: its end is not to wait behind them.
///
/// `exited` asks of one child, or of any.
fn reap(
    payload: i32,
    mut exited: impl FnMut(Option<i32>) -> Result<Option<(i32, End)>, Errno>,
) -> Result<Reaped, Errno> {
    let wanted = std::iter::once(Some(payload)).chain(std::iter::repeat_n(None, MOST_REAPED));
    for which in wanted {
        match exited(which) {
            Ok(Some((pid, end))) if pid == payload => return Ok(Reaped::Payload(end)),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) if which.is_some() => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(Reaped::All),
            Err(error) => return Err(error),
        }
    }
    Ok(Reaped::Enough)
}

/// Asks the kernel, without waiting (wait4(2)). The status is taken as it comes: a process may die of a signal that has no
/// name (signal(7), "Real-time signals").
fn exited(which: Option<i32>) -> Result<Option<(i32, End)>, Errno> {
    let waited = match which.and_then(Pid::from_raw) {
        Some(pid) => rustix::process::waitpid(Some(pid), WaitOptions::NOHANG),
        None => rustix::process::wait(WaitOptions::NOHANG),
    };
    Ok(waited?.map(|(pid, status)| (pid.as_raw_nonzero().get(), end_of(status))))
}

fn end_of(status: WaitStatus) -> End {
    match status.terminating_signal() {
        Some(signal) => End::Signaled { signal },
        // Nothing else is asked for: not what was stopped, nor what goes on.
        None => End::Exited { code: status.exit_status().unwrap_or_default() },
    }
}

/// What one wait of [`Watch`] brought.
#[derive(Default)]
struct Happened {
    asked_to_stop: bool,
    parent_gone: bool,
    alarms: Vec<Alarm>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions};
    use std::process::Command;

    const PAYLOAD: i32 = 2;
    const ORPHAN: i32 = 3;
    const DONE: End = End::Exited { code: 0 };

    #[test]
    fn orphans_without_end_do_not_hold_the_watch_up() {
        let endless = |which: Option<i32>| Ok(which.is_none().then_some((ORPHAN, DONE)));
        assert_eq!(reap(PAYLOAD, endless), Ok(Reaped::Enough));
    }

    #[test]
    fn the_commands_end_is_found_before_and_behind_orphans() {
        let at_once = |which: Option<i32>| Ok(Some((which.unwrap_or(ORPHAN), DONE)));
        assert_eq!(reap(PAYLOAD, at_once), Ok(Reaped::Payload(DONE)));
        let mut asked = 0;
        let meanwhile = |which: Option<i32>| {
            asked += 1;
            Ok(which.is_none().then_some((if asked == 4 { PAYLOAD } else { ORPHAN }, DONE)))
        };
        assert_eq!(reap(PAYLOAD, meanwhile), Ok(Reaped::Payload(DONE)));
    }

    #[test]
    fn without_children_there_is_nothing_to_reap() {
        assert_eq!(reap(PAYLOAD, |_| Ok(None)), Ok(Reaped::All));
        let childless = |which: Option<i32>| if which.is_some() { Ok(None) } else { Err(Errno::CHILD) };
        assert_eq!(reap(PAYLOAD, childless), Ok(Reaped::All));
        assert_eq!(reap(PAYLOAD, |_| Err(Errno::INVAL)), Err(Errno::INVAL));
    }

    #[test]
    fn whatever_a_process_dies_of_is_its_end() {
        for (command, end) in [
            ("exit 7", End::Exited { code: 7 }),
            ("kill -KILL $$", End::Signaled { signal: 9 }),
            ("kill -34 $$", End::Signaled { signal: 34 }),
            ("kill -64 $$", End::Signaled { signal: 64 }),
        ] {
            let pid = Pid::from_child(&Command::new("sh").args(["-c", command]).spawn().unwrap());
            rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
            let pid = pid.as_raw_nonzero().get();
            assert_eq!(exited(Some(pid)), Ok(Some((pid, end))), "{command}");
        }
    }
}
