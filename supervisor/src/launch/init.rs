//! Init: PID 1 of a container, its builder, monitor and recorder.
//!
//! A child of the supervisor by clone3, without exec. It builds the container, waits for the word to go, runs the
//! command, reaps everything, enforces the time limit, takes SIGTERM from outside as the request to stop, writes the
//! end record and exits; then the kernel kills whatever is left in the pid namespace, so that a grandchild that called
//! setsid dies with its task. It outlives the supervisor, and it stays outside the task's cgroups, so that the task's
//! memory limit cannot take it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::WaitOptions;
use wire::Log;
use wire::fault::Point;

use super::alarms::{Alarm, Alarms};
use super::log_cap::{LogCap, Look};
use super::monitor::Monitor;
use super::payload::{self, Streams};
use super::plan::Plan;
use super::record::{End, EndRecord};
use super::step::{Step, StepError};
use super::watch::Watch;
use super::{GO, Logs};
use crate::cgroup::Group;
use crate::lease::Watched;
use crate::packages::{self, Package, PackageKind, Staged};
use crate::{fault, namespaces, rootfs, security, sys};

/// How long what was killed is waited for before the logs are cut.
const DYING: Duration = Duration::from_secs(2);

/// Init's whole life; its answer is its exit status, which nobody needs: the record says it all.
pub fn run(plan: &Plan<'_>, line: &UnixStream) -> i32 {
    fault::moment(Point::InitBegun);
    let mut monitor = Monitor::default();
    let mut ran = Ran::default();
    let end = match build(plan, line, &mut monitor) {
        Ok(built) => match wait_for_go(line) {
            Go::Run => match run_command(plan, line, built, &mut monitor, &mut ran) {
                Ok(end) => end,
                Err(failed) => failed.into(),
            },
            // Whoever launched us is gone. It may have died between writing the launch down and saying so to us; only
            // we know that nothing was run, and that the next supervisor may launch the task anew.
            Go::NotToBe => End::NeverTold,
        },
        Err(failed) => failed.into(),
    };
    let end = ran.judge(end);
    fault::moment(Point::InitEnded);
    // From here on the share may hold us up for as long as it likes. So first what must not wait for it: the death of
    // all that is left, the record, and the word that there is one.
    kill_what_is_left();
    let record =
        EndRecord { boot_id: plan.boot_id.clone(), end, started_at: ran.started_at, ended_at: Timestamp::now() };
    monitor.say(format!("end: {}", in_words(&record.end)));
    let written = plan.record.write(&record);
    if let Err(error) = &written {
        monitor.say(format!("cannot write the end record: {error}"));
    }
    fault::moment(Point::InitRecorded);
    if written.is_ok() {
        // The end of the line is that word. Whoever launched us may be gone; the record is there for the next one.
        let _ = line.shutdown(Shutdown::Write);
    }
    if let Some(logs) = ran.logs.filter(|logs| matches!(logs.look(), Look::Over(_))) {
        wait_for_the_dead();
        if let Err(error) = logs.cut() {
            monitor.say(format!("cannot cut the logs: {error}"));
        }
    }
    monitor.flush();
    i32::from(written.is_err())
}

/// What is known of a command once it runs.
#[derive(Default)]
struct Ran {
    started_at: Option<Timestamp>,
    logs: Option<LogCap>,
}

impl Ran {
    /// A command that wrote too much between the last look and its end has still written too much.
    fn judge(&self, end: End) -> End {
        match (&end, &self.logs) {
            (End::Exited { .. } | End::Signaled { .. }, Some(logs)) => match logs.look() {
                Look::Over(stream) => End::LogLimit { stream, limit_bytes: logs.limit_bytes() },
                Look::Within(_) => end,
            },
            _ => end,
        }
    }
}

/// What the command left running ends with it. It would when we exit, but that may be a while.
fn kill_what_is_left() {
    if nix::unistd::getpid() == Pid::from_raw(1) {
        // ESRCH: nothing is.
        let _ = nix::sys::signal::kill(Pid::from_raw(-1), Signal::SIGKILL);
    }
}

/// What stands once the container is built.
struct Built {
    group: Group,
    streams: Option<Streams>,
}

/// Builds the container. The steps in the order the kernel wants them; each says itself when it fails.
fn build(plan: &Plan<'_>, line: &UnixStream, monitor: &mut Monitor) -> Result<Built, StepError> {
    // 1. Nothing of the supervisor's: no descriptor, no session, no way to look into our memory.
    sys::close_all_but(&plan.descriptors(line)).step(|| "close descriptors".to_owned())?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "become non-dumpable".to_owned())?;
    rustix::thread::set_name(c"berth-init").step(|| "name init".to_owned())?;
    nix::unistd::setsid().step(|| "start a session".to_owned())?;
    // 2. The logs first, so that every later failure can be read there. May block with the share; only this task waits.
    fault::call(Point::InitLogs).step(|| "open the logs".to_owned())?;
    let streams = open_logs(plan, monitor)?;
    fault::moment(Point::InitLogsOpened);
    monitor.say(format!("container {}: image {}", plan.container, plan.spec.image_id));
    // 3. The cgroups, limited before anything is in them.
    fault::call(Point::InitCgroups).step(|| "make cgroups".to_owned())?;
    let group = plan
        .layout
        .make(&plan.container, &plan.config.cgroup)
        .map_err(|error| StepError::said("make cgroups", error))?;
    fault::moment(Point::InitCgroupsMade);
    monitor.say(format!("limits: cpu {}, memory {} MiB", plan.spec.resource.cpu, plan.spec.resource.mem));
    // 4. The folders.
    rustix::process::chdir(&plan.folder).step(|| format!("enter {}", plan.folder.display()))?;
    fault::call(Point::InitFolders).step(|| "make the container's folders".to_owned())?;
    rootfs::make_folders(plan.config.rootfs.driver)?;
    // 5. The mounts: the workspace before the root, and none of them seen outside.
    rootfs::make_mounts_private()?;
    let packages = stage_packages(plan, monitor)?;
    write_config(plan, &packages)?;
    let image = plan.open_image()?;
    let layers: Vec<_> = image.layers.iter().map(|layer| layer.dir.as_fd()).collect();
    fault::call(Point::InitUnite).step(|| "unite the root".to_owned())?;
    rootfs::unite_root(plan.config.rootfs.driver, &layers)?;
    fault::moment(Point::InitUnited);
    rootfs::fit_out(&plan.config.mounts, &plan.cgroups)?;
    monitor.say(format!("root: {} of {} layers", plan.config.rootfs.driver.as_str(), layers.len() + 1));
    // 6. In, and the door closed behind us.
    rootfs::pivot()?;
    namespaces::set_hostname(&plan.config.uts_name).step(|| "set the hostname".to_owned())?;
    namespaces::ready_network(plan.config.network).step(|| "bring loopback up".to_owned())?;
    fault::moment(Point::InitBuilt);
    Ok(Built { group, streams })
}

/// Opens the logs. Our own streams are the supervisor's log or terminal: kept only where the command shall have them.
fn open_logs(plan: &Plan<'_>, monitor: &mut Monitor) -> Result<Option<Streams>, StepError> {
    let Logs::Folder(folder) = &plan.logs else { return Ok(None) };
    let stdin = File::open("/dev/null").step(|| "open /dev/null".to_owned())?;
    for number in 0..3 {
        sys::duplicate_to(stdin.as_fd(), number).step(|| "leave the supervisor's streams".to_owned())?;
    }
    // The payload owns its logs and may make one a set-user-ID program: nobody else of this machine gets at it.
    super::make_private_folder(folder).step(|| format!("make log folder {}", folder.display()))?;
    // What an earlier launch of this task did is part of its story.
    monitor.open(open_log(folder, Log::Monitor.file_name())?);
    let fresh = |log: Log| open_fresh_log(folder, log.file_name());
    Ok(Some(Streams { stdin, stdout: fresh(Log::Stdout)?, stderr: fresh(Log::Stderr)? }))
}

/// An empty log. A task runs at most once, so what stands there was written under this number before the node lost its
/// journal: it is somebody's output, and is put aside under the time of its last change.
fn open_fresh_log(folder: &Path, name: &str) -> Result<File, StepError> {
    let log = open_log(folder, name)?;
    let metadata = log.metadata().step(|| format!("look at log {name}"))?;
    if metadata.len() == 0 {
        return Ok(log);
    }
    let aside = folder.join(format!("{name}.{}", metadata.mtime()));
    std::fs::rename(folder.join(name), &aside).step(|| format!("put log {name} aside as {}", aside.display()))?;
    open_log(folder, name)
}

/// Appending: whoever else empties it leaves no hole.
fn open_log(folder: &Path, name: &str) -> Result<File, StepError> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    options.open(folder.join(name)).step(|| format!("open log {}", folder.join(name).display()))
}

/// Brings the packages into the workspace: folders as layers without a copy, files as copies.
fn stage_packages(plan: &Plan<'_>, monitor: &mut Monitor) -> Result<Vec<Package>, StepError> {
    let failed = |error: packages::PackageError| StepError::said("stage packages", error);
    let packages = packages::resolve(&plan.package_roots, plan.spec).map_err(failed)?;
    if packages.is_empty() {
        return Ok(packages);
    }
    let workspace = File::open(rootfs::UPPER_WORKSPACE).step(|| "open the workspace".to_owned())?;
    let mut folders = Vec::new();
    for package in &packages {
        let what = match package.kind {
            PackageKind::Directory => {
                folders.push(package.fd.as_fd());
                "united"
            }
            PackageKind::File { .. } => match packages::copy_into(package, workspace.as_fd()).map_err(failed)? {
                Staged::Copied => "copied",
                Staged::Shadowed => "shadowed by an earlier one",
            },
        };
        monitor.say(format!("package {}: {what}", package.path.display()));
    }
    rootfs::unite_workspace(plan.config.rootfs.driver, &folders)?;
    Ok(packages)
}

/// Writes the config that was applied, as LXC would read it; the packages have become a mount like any other.
fn write_config(plan: &Plan<'_>, packages: &[Package]) -> Result<(), StepError> {
    let mut config = plan.config.clone();
    let folders = packages.iter().filter(|package| package.kind == PackageKind::Directory);
    let folders: Vec<&Path> = folders.map(|package| package.path.as_path()).collect();
    let workspace = rootfs::workspace_entry(config.rootfs.driver, &plan.folder, &folders);
    let cannot_be_spelled = workspace.is_none() && !folders.is_empty();
    config.mounts.extend(workspace);
    let mut text = config.to_lxc().map_err(io::Error::other).step(|| "spell the container's config".to_owned())?;
    if cannot_be_spelled {
        text.push_str(
            "# The packages united in /workspace are left out: a mount option cannot spell a path of theirs.\n",
        );
    }
    fault::call(Point::InitConfig)
        .and_then(|()| std::fs::write("config", text))
        .step(|| "write the container's config".to_owned())
}

/// Waits until nothing of the container is left but us, for two seconds at most: what dies may still be writing.
fn wait_for_the_dead() {
    let give_up = Instant::now() + DYING;
    while Instant::now() < give_up {
        match rustix::process::wait(WaitOptions::NOHANG) {
            // ECHILD: there is none.
            Err(_) => return,
            // Nothing to wait on but the time: SIGCHLD goes to a descriptor that the watch has closed.
            Ok(None) => drop(nix::poll::poll(&mut [], 10_u8)),
            Ok(Some(_)) => {}
        }
    }
}

/// The answer to "may the command run?".
enum Go {
    Run,
    NotToBe,
}

fn wait_for_go(mut line: &UnixStream) -> Go {
    let mut word = [0; 1];
    match line.read_exact(&mut word) {
        Ok(()) if word == *GO => Go::Run,
        _ => Go::NotToBe,
    }
}

/// Runs the command to its end.
fn run_command(
    plan: &Plan<'_>,
    line: &UnixStream,
    built: Built,
    monitor: &mut Monitor,
    ran: &mut Ran,
) -> Result<End, StepError> {
    fault::moment(Point::InitTold);
    // The last write to the share before the end: once there is a command to watch, nothing may hold the watch up.
    monitor.say("told to go");
    monitor.flush();
    // The container may have taken long to build, on a share that hung. A renewal that came meanwhile does not count: it may
    // have come too late, when the job was tried elsewhere already.
    if plan.lease.as_ref().is_some_and(Watched::would_be_over) {
        return Ok(End::LeaseOver);
    }
    let Some(payload) = spawn(plan, &built)? else { return Ok(End::LeaseOver) };
    fault::moment(Point::InitForked);
    let now = Timestamp::now();
    ran.started_at = Some(now);
    // The payload has its copies; the logs are kept to be measured, and what else is kept would only hold its cgroups open.
    ran.logs = built.streams.map(|streams| LogCap::new(streams.stdout, streams.stderr, plan.log_limit_bytes));
    drop(built.group);
    // The supervisor may be gone by now; it learns the time from the record.
    let _ = (&*line).write_all(now.to_string().as_bytes());
    fault::moment(Point::InitStarted);
    monitor.say("command started");
    security::drop_init_capabilities().step(|| "drop capabilities".to_owned())?;
    let mut watch = Watch::new(plan, line, payload, ran.logs.as_ref()).step(|| "watch the command".to_owned())?;
    watch.until_the_end(monitor).step(|| "watch the command".to_owned())
}

/// Forks the payload into its cgroup and waits until it is the user's program, or has said why not. `None`: its lease ran
/// out before that.
fn spawn(plan: &Plan<'_>, built: &Built) -> Result<Option<i32>, StepError> {
    let (mut failure, theirs) = io::pipe().step(|| "make a pipe".to_owned())?;
    let options = sys::CloneOptions {
        namespaces: 0,
        into_cgroup: built.group.unified.as_ref().map(AsFd::as_fd),
        keep_signals_blocked: false,
    };
    let child = fault::call(Point::InitFork)
        .and_then(|()| sys::clone(options, || payload::run(plan, &built.group, built.streams.as_ref(), &theirs)))
        .step(|| "fork the command".to_owned())?;
    drop(theirs);
    if !speaks_in_time(plan, &failure).step(|| "watch the lease".to_owned())? {
        // Wherever it hangs, it will not go on from there.
        crate::child::kill_and_reap(&child.pidfd);
        return Ok(None);
    }
    let mut said = String::new();
    failure.read_to_string(&mut said).step(|| "hear of the command".to_owned())?;
    match said.split_once('\n') {
        None => Ok(Some(child.pid)),
        Some((step, cause)) => Err(StepError::said(step, cause)),
    }
}

/// Waits until the payload has executed its program or failed to, which may hang on the image's disk; false: its lease
/// ran out first.
fn speaks_in_time(plan: &Plan<'_>, failure: &io::PipeReader) -> nix::Result<bool> {
    let Some(lease) = &plan.lease else { return Ok(true) };
    let mut alarms = Alarms::new()?;
    loop {
        alarms.set_at(Alarm::LeaseEnds, lease.end())?;
        let mut fds = [failure.as_fd(), alarms.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Ok(_) if fds[0].any().unwrap_or(false) => return Ok(true),
            Ok(_) if lease.is_over() => return Ok(false),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn in_words(end: &End) -> String {
    match end {
        End::Exited { code } => format!("exit code {code}"),
        End::Signaled { signal } => format!("signal {signal}"),
        End::TimedOut => "stopped: time is up".to_owned(),
        End::Killed => "stopped: asked to".to_owned(),
        End::LeaseOver => "killed: the lease ran out".to_owned(),
        End::LogLimit { stream, limit_bytes } => {
            format!("stopped: {stream} is over {}", wire::size::in_words(*limit_bytes))
        }
        End::NeverTold => "left: the supervisor was gone before it said go".to_owned(),
        End::LaunchFailed { step, cause } => format!("launch failed: {step}: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_log_begins_empty_is_appended_to_and_nothing_written_there_before_is_lost() {
        let scratch = Scratch::new("log");
        scratch.write("task_stdout", "of another life\n");
        let changed = std::fs::metadata(scratch.join("task_stdout")).unwrap().mtime();
        let mut log = open_fresh_log(scratch.path(), "task_stdout").unwrap();
        let aside = std::fs::read_to_string(scratch.join(format!("task_stdout.{changed}"))).unwrap();
        assert_eq!(aside, "of another life\n");
        log.write_all(b"one\n").unwrap();
        std::fs::write(scratch.join("task_stdout"), "").unwrap();
        log.write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(scratch.join("task_stdout")).unwrap(), "two\n");
    }

    #[test]
    fn a_log_that_is_a_symlink_is_not_followed_nor_emptied() {
        let scratch = Scratch::new("loglink");
        scratch.write("victim", "kept");
        std::os::unix::fs::symlink(scratch.join("victim"), scratch.join("task_stdout")).unwrap();
        assert_eq!(open_log(scratch.path(), "task_stdout").unwrap_err().cause, "ELOOP");
        assert_eq!(std::fs::read_to_string(scratch.join("victim")).unwrap(), "kept");
    }
}
