//! `berth-supervisor run`: one container in the foreground, without a daemon.
//!
//! The same launch as a task's, with the caller's streams, and the command's exit status passed on. For debugging an
//! image, and for comparing with other runtimes.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use wire::{JobSpec, Reason, State};

use crate::cgroup::{CgroupError, Layout, Removal, Usage};
use crate::launch::record::{self, End, EndRecord};
use crate::launch::{LaunchError, LaunchRequest, Launched, Launcher, Logs, Network, Settings};
use crate::remove_tree::remove_tree;
use crate::{child, oom, task};

/// Exit status for "berth itself failed", as env(1) and timeout(1) use it.
const OUR_FAULT: i32 = 125;
/// Exit status for a time-out, as timeout(1) has it.
const TIMED_OUT: i32 = 124;
/// How often a busy cgroup is tried again, and how long between.
const REMOVAL_TRIES: u32 = 200;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// Why there is no exit status to pass on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The cgroups are not to be had.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Nothing was launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Waiting failed.
    #[error("cannot watch the container: {0}")]
    Watch(#[from] io::Error),
}

/// Runs `spec` to its end; the answer is the exit status to leave with. However it ends, nothing of it stays.
pub fn run(
    settings: &Settings,
    cgroup_root: &str,
    spec: &JobSpec,
    network: Network,
    grace: Duration,
) -> Result<i32, RunError> {
    let signals = foreground_signals()?;
    oom::come_last();
    let launcher = Launcher::new(settings)?;
    // A base beside the daemon's: what is in there is no leftover to it, whichever state dir it has.
    let layout = Layout::prepare(&format!("{cgroup_root}-run"))?;
    sweep_the_dead(&layout)?;
    let container = format!("run-{}-cont", std::process::id());
    let request = LaunchRequest {
        container: &container,
        spec,
        environment: Vec::new(),
        logs: Logs::Inherit,
        network,
        grace,
        die_with_parent: true,
        lease: None,
    };
    let status = run_container(&launcher, &layout, request, &settings.container_dir(&container), &signals);
    remove_cgroups(&layout, &container);
    layout.remove_base();
    status
}

/// From the launch to the removal of the container's folder.
fn run_container(
    launcher: &Launcher,
    layout: &Layout,
    request: LaunchRequest<'_>,
    folder: &Path,
    signals: &SignalFd,
) -> Result<i32, RunError> {
    let (container, mem_limit_mib, grace) = (request.container, request.spec.resource.mem, request.grace);
    let launched = launcher.launch(layout, request)?;
    let watched = see_through(&launched, signals, grace);
    let ended = record::read(folder);
    let usage = layout.usage(container);
    if let Err(error) = remove_tree(folder) {
        log::warn!("cannot remove {}: {error}", folder.display());
    }
    watched?;
    Ok(exit_status(ended?.as_ref(), &usage?, mem_limit_mib))
}

/// Lets the command run, and comes back when init is gone, even with an error.
fn see_through(launched: &Launched, signals: &SignalFd, grace: Duration) -> io::Result<()> {
    if let Err(error) = launched.line.go() {
        // Init has failed and left; its record says why.
        log::debug!("cannot tell init to go: {error}");
    }
    wait(launched, signals, grace).inspect_err(|_| child::kill_and_reap(&launched.pidfd))
}

/// Removes the empty groups of runs that were killed. Their inits have ended with them.
fn sweep_the_dead(layout: &Layout) -> Result<(), RunError> {
    for group in layout.groups()? {
        let pid = group.strip_prefix("run-").and_then(|rest| rest.strip_suffix("-cont"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            layout.remove(&group)?;
        }
    }
    Ok(())
}

/// Ctrl-C and its kin become a request to stop, which init carries out with its grace period.
fn foreground_signals() -> io::Result<SignalFd> {
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        wanted.add(signal);
    }
    wanted.thread_block()?;
    Ok(SignalFd::new(&wanted)?)
}

/// Init keeps the grace period by itself. One that has not ended some time after it did not hear: a command that signals
/// its init without end has a signal pending there whenever ours comes, and of two the kernel keeps one (signal(7)).
fn wait(launched: &Launched, signals: &SignalFd, grace: Duration) -> io::Result<()> {
    let mut unheard_at: Option<Instant> = None;
    loop {
        let mut fds =
            [PollFd::new(launched.pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let patience = unheard_at.map_or(PollTimeout::NONE, |at| {
            // A part of a millisecond is none to poll(2).
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match nix::poll::poll(&mut fds, patience) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [over, asked] = fds.map(|fd| fd.any() == Some(true));
        if over {
            child::reap(&launched.pidfd)?;
            return Ok(());
        }
        if asked && signals.read_signal()?.is_some() {
            rustix::process::pidfd_send_signal(&launched.pidfd, rustix::process::Signal::TERM)?;
            unheard_at.get_or_insert(Instant::now() + grace + task::INIT_MARGIN);
        }
        if unheard_at.is_some_and(|at| at <= Instant::now()) {
            launched.line.hang_up()?;
            unheard_at = None;
        }
    }
}

/// Init is gone and with it every process; the cgroups follow within moments.
fn remove_cgroups(layout: &Layout, container: &str) {
    for _ in 0..REMOVAL_TRIES {
        match layout.remove(container) {
            Ok(Removal::Gone) => return,
            // A foreground program has nothing else to do meanwhile.
            Ok(Removal::Busy) => std::thread::park_timeout(REMOVAL_PAUSE),
            Err(error) => {
                log::warn!("{error}");
                return;
            }
        }
    }
    log::warn!("cgroups of {container} are still busy; they are swept when a supervisor starts");
}

/// Says what went wrong, as the daemon would, and finds the exit status that says it to a shell.
fn exit_status(record: Option<&EndRecord>, usage: &Usage, mem_limit_mib: u64) -> i32 {
    let (state, reason, exit_code) = task::classify(record, usage, mem_limit_mib, false);
    match &reason {
        // The command has spoken for itself.
        Some(Reason::ExitCode { .. }) | None => {}
        Some(reason) => log::error!("{reason}"),
    }
    match (state, exit_code, record.map(|record| &record.end)) {
        (_, Some(code), _) => code,
        (_, None, Some(End::Signaled { signal })) => 128 + signal,
        (State::Timeout, None, _) => {
            log::error!("time is up");
            TIMED_OUT
        }
        (State::Killed, None, _) => 128 + libc::SIGTERM,
        (_, None, _) => OUR_FAULT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::InitLine;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    #[test]
    #[expect(clippy::zombie_processes, reason = "it is reaped by what is tested")]
    fn an_init_that_left_before_the_word_is_waited_for_all_the_same() {
        let init = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&init);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let launched = Launched { pidfd, pid: pid.as_raw_nonzero().get(), start_time: 0, line: InitLine::to_nobody() };
        assert_eq!(launched.line.go().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        see_through(&launched, &SignalFd::new(&SigSet::empty()).unwrap(), Duration::ZERO).unwrap();
        let waited = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        assert_eq!(waited.unwrap_err(), rustix::io::Errno::CHILD);
    }
}
