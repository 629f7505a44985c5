//! From when on nothing of an attempt can be alive on a node that is not heard of. Pure.
//!
//! A node may run a task under a lease until so long after the newest of its stamps that we gave back, by its own clock.
//! We heard that stamp after it was made, and give back none that we have not heard: so the lease runs out, at the latest,
//! so long after we last heard a stamp of that node. A master that was started anew counts from its start, since whatever
//! the one before it gave back was heard before that.

use std::time::{Duration, Instant};

/// A shorter lease would not outlive one lost poll: a node keeps a poll for a second at least.
pub const SHORTEST: Duration = Duration::from_secs(2);

/// The most that two clocks may differ in speed: a clock that is being set right by chrony runs up to a twelfth too fast or
/// too slow (chrony.conf(5), maxslewrate 83333 ppm); ours fast and the node's slow make 1.18, and this is 1.25.
const DRIFT: u32 = 4;

/// What a node may take from the end of a lease until its last process can do nothing more. Its init wakes up on a
/// machine that may be busy, and sends one signal to all.
const KILL: Duration = Duration::from_secs(3);

/// When nothing can be alive any more of an attempt under a lease of `length`, given to a node of which the last stamp was
/// heard at `heard`.
pub fn certainly_over(heard: Instant, length: Duration) -> Instant {
    heard + at_most_elsewhere(length) + KILL
}

/// The most that can have passed by another clock while so much has passed by ours.
pub fn at_most_elsewhere(passed: Duration) -> Duration {
    passed + passed / DRIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_over_later_than_the_slowest_clock_says() {
        let heard = Instant::now();
        for length in [SHORTEST, Duration::from_secs(60), Duration::from_secs(3600)] {
            let (fast, slow) = (1.0 + 1.0 / 12.0, 1.0 - 1.0 / 12.0);
            let waited = certainly_over(heard, length) - heard;
            assert!(waited.mul_f64(1.0 / fast) > length.mul_f64(1.0 / slow));
        }
    }
}
