//! How this process, its children and its containers come to harm at a fault point, where tests have ordered it.

use std::io;

use wire::fault::{Fault, Point, reached};

use crate::sys;

/// The exit status of a process that a fault has ended, as a shell would tell a SIGKILL's.
const DIED: i32 = 128 + 9;

/// Dies here, if that was ordered.
#[inline]
pub fn moment(point: Point) {
    if reached(point).is_some() {
        die(point);
    }
}

/// Dies here, or fails the call that comes next, if that was ordered.
#[inline]
pub fn call(point: Point) -> io::Result<()> {
    match reached(point) {
        None => Ok(()),
        Some(Fault::Die) => die(point),
        Some(Fault::Fail(errno)) => {
            log::warn!("failing at the fault point {} with {}", point.name(), errno.name());
            Err(errno.error())
        }
    }
}

/// Dies here having done half of what comes next, if that was ordered.
#[inline]
pub fn halfway(point: Point, half: impl FnOnce() -> io::Result<()>) {
    if reached(point).is_some() {
        let done = half();
        log::warn!("half of it: {done:?}");
        die(point);
    }
}

#[cold]
fn die(point: Point) -> ! {
    log::warn!("dying at the fault point {}", point.name());
    let this = rustix::process::getpid();
    if !this.is_init() && rustix::process::kill_process(this, rustix::process::Signal::KILL).is_err() {
        log::error!("cannot kill this process");
    }
    // No signal from inside reaches the first process of a pid namespace (pid_namespaces(7)); this is as sudden.
    sys::exit_now(DIED)
}
