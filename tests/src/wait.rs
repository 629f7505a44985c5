//! Waiting for a condition with a deadline: the only place that pauses.

use std::fmt::{Debug, Display};
use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for anything. Generous: a slow machine is not a defect. Longer than the
/// longest time-out of the servers, which is a minute for a whole body.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How many times slower than usual this machine is, for tests that give a command little time: an emulated one says so.
const SLOWNESS: &str = "BERTH_TEST_SLOWNESS";

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// Looks until `look` finds what it wants, or the deadline is past; then what was seen last.
pub fn eventually<T, S>(mut look: impl FnMut() -> Result<T, S>) -> Result<T, S> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Err(_) if Instant::now() < deadline => thread::sleep(GLANCE),
            last => return last,
        }
    }
}

/// Looks until `look` finds what it wants, and returns it. Past the deadline it panics with what was
/// wanted and what was seen last.
#[track_caller]
pub fn until<T, S: Debug>(wanted: impl Display, look: impl FnMut() -> Result<T, S>) -> T {
    match eventually(look) {
        Ok(found) => found,
        Err(seen) => panic!("waited {} s for {wanted}; last seen: {seen:#?}", PATIENCE.as_secs()),
    }
}

/// [`until`] nothing is left; a failure lists what is.
#[track_caller]
pub fn until_none<T: Debug>(wanted: impl Display, mut left: impl FnMut() -> Vec<T>) {
    until(wanted, || Some(left()).filter(|left| !left.is_empty()).map_or(Ok(()), Err));
}

/// [`until`] for a condition that is true or not yet.
#[track_caller]
pub fn until_true(wanted: impl Display, mut look: impl FnMut() -> bool) {
    until(wanted, || if look() { Ok(()) } else { Err("not yet") });
}

/// So many milliseconds, or as many more as this machine is slower: what a command that is to run out of time is given,
/// so that it comes to its beginning first.
pub fn short_ms(ms: u64) -> u64 {
    let slowness = std::env::var(SLOWNESS).ok().and_then(|times| times.parse().ok());
    ms * slowness.unwrap_or(1)
}

/// Lets time pass. Not for a condition, but for things to be half done when a storm strikes.
pub fn pause(time: Duration) {
    thread::sleep(time);
}
