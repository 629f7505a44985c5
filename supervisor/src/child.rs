//! A child process of our own, held by a descriptor that can never mean another process: how it is collected.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

/// A child.
#[derive(Debug)]
pub struct Child {
    /// Its pid in our namespace.
    pub pid: i32,
    /// Readable once it has exited.
    pub pidfd: OwnedFd,
}

/// Collects an exited child (waitid(2)). ECHILD: it is an adopted one, and another's to reap.
pub fn reap(pidfd: &OwnedFd) -> Result<Option<i32>, Errno> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)?;
    Ok(status.and_then(|status| status.exit_status()))
}

/// Ends and collects a child that nobody can watch: let go of, it would live on unseen and then stay a zombie.
///
/// Waits until it is gone. That is for children that were forked a moment ago, and have nothing in their hands that
/// the kernel would keep them for.
pub fn kill_and_reap(pidfd: &OwnedFd) {
    let ended = rustix::process::pidfd_send_signal(pidfd, Signal::KILL).and_then(|()| {
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED))
    });
    if let Err(errno) = ended {
        log::warn!("cannot end a child that nobody watches: {errno}");
    }
}
