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
pub fn eventually<T, S>(look: impl FnMut() -> Result<T, S>) -> Result<T, S> {
    eventually_within(PATIENCE, look)
}

/// [`eventually`] with a deadline of its own.
fn eventually_within<T, S>(patience: Duration, mut look: impl FnMut() -> Result<T, S>) -> Result<T, S> {
    // There is one thing left from the first look to the last.
    by_progress(patience, || look().map_err(|seen| ((), seen)))
}

/// [`eventually`] for many things that come one after the other: `look` also says how much is left, and whenever that is
/// less than ever before, the deadline starts anew. How long all of it takes is a matter of the machine.
pub fn eventually_by_progress<T, L: Ord, S>(look: impl FnMut() -> Result<T, (L, S)>) -> Result<T, S> {
    by_progress(PATIENCE, look)
}

fn by_progress<T, L: Ord, S>(patience: Duration, mut look: impl FnMut() -> Result<T, (L, S)>) -> Result<T, S> {
    let mut least: Option<L> = None;
    let mut deadline = Instant::now() + patience;
    loop {
        let (left, seen) = match look() {
            Ok(found) => return Ok(found),
            Err(last) => last,
        };
        if least.as_ref().is_none_or(|least| left < *least) {
            least = Some(left);
            deadline = Instant::now() + patience;
        } else if Instant::now() >= deadline {
            return Err(seen);
        }
        thread::sleep(GLANCE);
    }
}

/// Looks until `look` finds what it wants, and returns it. Past the deadline it panics with what was
/// wanted and what was seen last.
#[track_caller]
pub fn until<T, S: Debug>(wanted: impl Display, look: impl FnMut() -> Result<T, S>) -> T {
    until_within(PATIENCE, wanted, look)
}

/// [`until`] with a deadline of its own.
#[track_caller]
pub fn until_within<T, S: Debug>(patience: Duration, wanted: impl Display, look: impl FnMut() -> Result<T, S>) -> T {
    match eventually_within(patience, look) {
        Ok(found) => found,
        Err(seen) => panic!("waited {} s for {wanted}; last seen: {seen:#?}", patience.as_secs()),
    }
}

/// [`until`] for many things that come one after the other: see [`eventually_by_progress`].
#[track_caller]
pub fn until_by_progress<T, L: Ord, S: Debug>(wanted: impl Display, look: impl FnMut() -> Result<T, (L, S)>) -> T {
    match eventually_by_progress(look) {
        Ok(found) => found,
        Err(seen) => panic!("nothing came nearer to {wanted} for {} s; last seen: {seen:#?}", PATIENCE.as_secs()),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of these looks, each of which says how much is left, where nobody waits for one like the last.
    fn waited(looks: &[u32]) -> Result<(), u32> {
        let mut looks = looks.iter();
        by_progress(Duration::ZERO, || looks.next().map_or(Ok(()), |&left| Err((left, left))))
    }

    #[test]
    fn a_batch_is_waited_for_as_long_as_it_becomes_less_than_ever() {
        assert_eq!(waited(&[7, 5, 4, 1]), Ok(()));
        assert_eq!(waited(&[7, 5, 5, 1]), Err(5));
        assert_eq!(waited(&[7, 5, 6, 4]), Err(6), "coming and going is no progress");
    }
}
