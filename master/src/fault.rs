//! How this process comes to harm at a fault point, where tests have ordered it.

use signal_hook::consts::SIGKILL;
use wire::fault::{Errno, Fault, Point, reached};

/// Dies here, if that was ordered.
#[inline]
pub fn moment(point: Point) {
    if reached(point).is_some() {
        die(point);
    }
}

/// Dies here, or says what the call that comes next is to fail with, if that was ordered.
#[inline]
pub fn call(point: Point) -> Result<(), Errno> {
    match reached(point) {
        None => Ok(()),
        Some(Fault::Die) => die(point),
        Some(Fault::Fail(errno)) => {
            log::warn!("failing at the fault point {} with {}", point.name(), errno.name());
            Err(errno)
        }
    }
}

#[cold]
fn die(point: Point) -> ! {
    log::warn!("dying at the fault point {}", point.name());
    if let Err(error) = signal_hook::low_level::raise(SIGKILL) {
        log::error!("cannot kill this process: {error}");
    }
    // Not reached, unless a SIGKILL does not kill.
    std::process::abort()
}
