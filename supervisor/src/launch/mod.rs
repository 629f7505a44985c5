//! Launching: from a job's spec to a running init, by one clone into a plan made beforehand.
//!
//! `plan` makes all that can fail early; `init` is the child, PID 1 of the container; `payload` is its child, the
//! last steps before the user's program; `record` is what init leaves behind. This room knows nothing of tasks,
//! journals or HTTP.

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use wire::fault::{Point, Process};
use wire::{BootId, JobSpec, Reason};

use crate::cgroup::Layout;
use crate::config::NodeConfig;
use crate::lease::Terms;
use crate::lxc_config::UnionDriver;
use crate::security::{self, SystemCallFilter};
use crate::unions::{self, UnionError};
use crate::{child, fault, namespaces, oom, sys};

mod alarms;
mod init;
mod log_cap;
mod monitor;
mod payload;
mod plan;
pub mod record;
pub mod step;
mod watch;

pub use crate::lxc_config::Network;
use plan::Plan;
use record::shortened;
use step::StepError;

/// What every launch of this supervisor shares.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Holds `img/`, `cont/` and `empty/`.
    pub state_dir: PathBuf,
    /// Folders packages may come from.
    pub package_roots: Vec<PathBuf>,
    /// How layers are united.
    pub union: UnionDriver,
    /// What each of a task's logs may hold, in bytes.
    pub log_limit_bytes: u64,
}

impl Settings {
    /// Those of this node, whose layers were seen to be united in its state dir.
    pub fn of(node: &NodeConfig) -> Result<Settings, UnionError> {
        Ok(Settings {
            state_dir: node.state_dir.clone(),
            package_roots: node.package_roots.clone(),
            union: unions::choose(node.union, &node.state_dir)?,
            log_limit_bytes: node.log_limit_bytes,
        })
    }

    /// The node's images.
    pub fn image_dir(&self) -> PathBuf {
        self.state_dir.join("img")
    }

    /// The folder of one container.
    pub fn container_dir(&self, container: &str) -> PathBuf {
        self.state_dir.join("cont").join(container)
    }

    /// A folder with nothing in it, to cover others with.
    pub fn empty_dir(&self) -> PathBuf {
        self.state_dir.join("empty")
    }

    /// The denied system calls as a policy for LXC; every container's config names it.
    pub fn seccomp_profile(&self) -> PathBuf {
        self.state_dir.join("seccomp")
    }
}

/// One container to launch.
#[derive(Debug)]
pub struct LaunchRequest<'a> {
    /// Name of the container, its folder, its cgroup and its host.
    pub container: &'a str,
    /// What runs in it.
    pub spec: &'a JobSpec,
    /// Added to the command's environment.
    pub environment: Vec<(String, String)>,
    /// Where its output goes.
    pub logs: Logs,
    /// What it sees of the network.
    pub network: Network,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// End with the process that launched it: for one in the foreground, not for a daemon's.
    pub die_with_parent: bool,
    /// The lease it runs under, if it does.
    pub lease: Option<Terms>,
}

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Logs {
    /// `monitor_out`, `task_stdout` and `task_stderr` in this folder, which init makes.
    Folder(PathBuf),
    /// The launching process' own stdin, stdout and stderr.
    Inherit,
}

/// A cloned init. It sets the container up at once, and waits for [`InitLine::go`] before it runs the command.
#[derive(Debug)]
pub struct Launched {
    /// Readable once init has exited.
    pub pidfd: OwnedFd,
    /// Init's pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot: with the pid, its identity (proc_pid_stat(5), field 22).
    pub start_time: u64,
    /// The line to it.
    pub line: InitLine,
}

/// Why nothing was launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A step of the plan or the clone failed.
    #[error("cannot launch {container}: {failed}")]
    Step {
        /// The container.
        container: String,
        /// The step.
        failed: StepError,
    },
    /// The system-call filter does not compile here.
    #[error("cannot compile the system-call filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// A folder or file of the state dir cannot be made.
    #[error("cannot make {path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The boot id cannot be read.
    #[error("cannot read /proc/sys/kernel/random/boot_id: {0}")]
    BootId(io::Error),
}

impl LaunchError {
    /// The reason a task that could not be launched has failed for.
    pub fn reason(&self) -> Reason {
        match self {
            LaunchError::Step { failed, .. } => {
                Reason::LaunchFailed { step: shortened(failed.step.clone()), cause: shortened(failed.cause.clone()) }
            }
            other => Reason::LaunchFailed { step: "prepare".to_owned(), cause: shortened(other.to_string()) },
        }
    }
}

/// Launches containers.
#[derive(Debug)]
pub struct Launcher {
    settings: Settings,
    boot_id: BootId,
    filter: SystemCallFilter,
    oom_score_adj: i16,
}

impl Launcher {
    /// Readies the folders and compiles the system-call filter, once.
    pub fn new(settings: &Settings) -> Result<Launcher, LaunchError> {
        for folder in ["img", "cont", "empty"] {
            let path = settings.state_dir.join(folder);
            make_private_folder(&path).map_err(|source| LaunchError::Folder { path, source })?;
        }
        let profile = settings.seccomp_profile();
        write_once(&profile, &security::lxc_policy())
            .map_err(|source| LaunchError::Folder { path: profile, source })?;
        let boot_id = boot_id().map_err(LaunchError::BootId)?;
        let filter = SystemCallFilter::compile()?;
        Ok(Launcher { settings: settings.clone(), boot_id, filter, oom_score_adj: oom::for_tasks() })
    }

    /// Makes the plan, then clones init into it. On failure no init lives and its folder is gone; cgroups that init
    /// may have made by then are the caller's to remove.
    pub fn launch(&self, layout: &Layout, request: LaunchRequest<'_>) -> Result<Launched, LaunchError> {
        let container = request.container.to_owned();
        let failed = |failed| LaunchError::Step { container: container.clone(), failed };
        let plan = Plan::make(self, layout, request).map_err(failed)?;
        self.clone_init(&plan).map_err(|failed| {
            plan.undo();
            LaunchError::Step { container: container.clone(), failed }
        })
    }

    fn clone_init(&self, plan: &Plan<'_>) -> Result<Launched, StepError> {
        use step::Step;

        let (ours, theirs) = fault::call(Point::LaunchLine)
            .and_then(|()| UnixStream::pair())
            .step(|| "make the line to init".to_owned())?;
        ours.set_nonblocking(true).step(|| "make the line to init".to_owned())?;
        let options = sys::CloneOptions {
            namespaces: namespaces::clone_flags(plan.network()),
            into_cgroup: None,
            keep_signals_blocked: true,
        };
        wire::fault::forks(Process::Init);
        let child = fault::call(Point::LaunchClone)
            .and_then(|()| sys::clone(options, || init::run(plan, &theirs)))
            .step(|| "clone init".to_owned())?;
        fault::moment(Point::LaunchCloned);
        // Not yet reaped, so the pid is still this child's. What cannot be told from another process later, must not live:
        // nobody could adopt it, and its folder is about to be removed.
        let start_time = start_time(child.pid)
            .inspect_err(|_| child::kill_and_reap(&child.pidfd))
            .step(|| "read init's start time".to_owned())?;
        Ok(Launched { pidfd: child.pidfd, pid: child.pid, start_time, line: InitLine(ours) })
    }
}

/// Writes the file unless it is there already, whole or not at all: another launcher of this state dir may look at it.
fn write_once(path: &Path, text: &str) -> io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let draft = path.with_extension(format!("{}", std::process::id()));
    std::fs::write(&draft, text)?;
    std::fs::rename(&draft, path)
}

/// Makes a folder that only root may enter: a payload can leave set-user-ID programs in its writable layer, and an
/// image may bring some, which no other user of this machine must be able to run.
fn make_private_folder(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o700))
}

/// Our end of the line to an init; non-blocking.
#[derive(Debug)]
pub struct InitLine(UnixStream);

/// What goes over the line from us: the command may run.
const GO: &[u8] = b"g";

impl InitLine {
    /// The line to an init that has left already.
    #[cfg(test)]
    pub fn to_nobody() -> InitLine {
        let (ours, _) = UnixStream::pair().expect("cannot make a line");
        InitLine(ours)
    }

    /// Lets init run the command. Until then, our death makes it leave without having run anything.
    pub fn go(&self) -> io::Result<()> {
        (&self.0).write_all(GO)
    }

    /// Ends an init that is to die with its parent, as our death would; for one that does not hear that it is asked to.
    pub fn hang_up(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Both)
    }

    /// When the command was executed; `None` while nothing has come. An `UnexpectedEof`: init has recorded the end and
    /// leaves, or is gone.
    pub fn started(&self) -> io::Result<Option<Timestamp>> {
        let mut text = [0; 64];
        match (&self.0).read(&mut text) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                let text = String::from_utf8_lossy(&text[..length]);
                text.trim().parse().map(Some).map_err(io::Error::other)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for InitLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// When process `pid` started, in clock ticks since boot (proc_pid_stat(5), field 22).
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = wire::proc_text::read(format!("/proc/{pid}/stat"))?;
    // The command's name is in parentheses and may itself hold any character.
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let field = after_name.split_ascii_whitespace().nth(22 - 3);
    field.and_then(|field| field.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Tests name a file in it to have the machine seem booted anew. Only whoever starts the daemon can set it.
const BOOT_ID_FILE: &str = "BERTH_BOOT_ID_FILE";

/// This boot of the machine (random(4)).
pub fn boot_id() -> io::Result<BootId> {
    let kernels = Path::new("/proc/sys/kernel/random/boot_id");
    let file = std::env::var_os(BOOT_ID_FILE).map_or(kernels.to_owned(), PathBuf::from);
    if file != kernels {
        log::warn!("{BOOT_ID_FILE} has the boot id read from {}", file.display());
    }
    Ok(BootId(std::fs::read_to_string(file)?.trim().to_owned()))
}
