//! The payload's last steps before it is the user's program.
//!
//! A child of init, single-threaded, already inside the root. Each step takes something away; the order is the
//! kernel's: cgroups while the host's descriptors are open, the cgroup namespace while CAP_SYS_ADMIN is there,
//! capabilities after the last step that needs one, the system-call filter last of all.

use std::fs::File;
use std::io::{PipeWriter, Write};
use std::os::fd::AsFd;

use nix::unistd::setsid;
use rustix::fs::Mode;
use wire::fault::Point;

use super::plan::Plan;
use super::step::{Step, StepError};
use crate::cgroup::Group;
use crate::{fault, namespaces, oom, security, sys};

/// The command's stdin, stdout and stderr.
#[derive(Debug)]
pub struct Streams {
    /// An empty file.
    pub stdin: File,
    /// Opened for appending.
    pub stdout: File,
    /// Opened for appending.
    pub stderr: File,
}

/// Becomes the command; comes back only to say over `failure` which step failed.
pub fn run(plan: &Plan<'_>, group: &Group, streams: Option<&Streams>, failure: &PipeWriter) -> i32 {
    let Err(failed) = become_the_command(plan, group, streams, failure);
    let text = format!("{}\n{}", failed.step, failed.cause);
    // If even this cannot be written, init sees a payload that exited with this status.
    let _ = (&*failure).write_all(text.as_bytes());
    126
}

fn become_the_command(
    plan: &Plan<'_>,
    group: &Group,
    streams: Option<&Streams>,
    failure: &PipeWriter,
) -> Result<std::convert::Infallible, StepError> {
    fault::moment(Point::PayloadBegun);
    let kept = security::capabilities_named(&plan.config.cap_keep);
    // 1. Into the v1 cgroups; clone3 has put us into the v2 one. From here on every byte and process is counted.
    for mut tasks in &group.tasks_files {
        tasks.write_all(b"0").step(|| "join cgroup".to_owned())?;
    }
    // 2. Our own group becomes the root of what we see.
    namespaces::unshare_cgroup().step(|| "unshare the cgroup namespace".to_owned())?;
    // 3. A session of our own: no controlling terminal, a process group that is ours alone, no signal ignored.
    sys::reset_all_signals();
    setsid().step(|| "start a session".to_owned())?;
    // 4. Limits, a place in line before init's should memory run out, and nothing of the operator's keys.
    oom::stand_at(plan.config.oom_score_adj);
    for limit in &plan.config.rlimits {
        security::set_rlimit(limit).step(|| format!("set limit {}", limit.name))?;
    }
    sys::new_session_keyring().step(|| "leave the keyring".to_owned())?;
    // 5. Only stdin, stdout and stderr go along; the failure pipe closes at exec and tells init by it.
    if let Some(streams) = streams {
        for (file, number) in [(&streams.stdin, 0), (&streams.stdout, 1), (&streams.stderr, 2)] {
            sys::duplicate_to(file.as_fd(), number).step(|| "connect the streams".to_owned())?;
        }
    }
    sys::close_all_but(&[rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr(), failure.as_fd()])
        .step(|| "close descriptors".to_owned())?;
    // 6. Where it works, and what its new files are like.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::process::chdir(plan.config.init_cwd.as_str()).step(|| format!("enter {}", plan.config.init_cwd))?;
    // 7. Privileges, for good.
    security::keep_only(&kept).step(|| "drop capabilities".to_owned())?;
    rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs".to_owned())?;
    plan.filter.apply().step(|| "filter system calls".to_owned())?;
    // 8. Go.
    let error = match fault::call(Point::PayloadExec) {
        Ok(()) => sys::execve(c"/bin/sh", &plan.arguments, &plan.environment),
        Err(error) => error,
    };
    Err(error).step(|| "execute /bin/sh of the image".to_owned())
}
