//! How often a log is looked at. Pure.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Between two looks at a log that grows, and at one that has not grown for long.
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);
/// After a look that failed: the first time, and when it goes on failing.
const RESTS: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(5);
/// A look may cost this part of the time: what takes long is done seldom.
const SHARE_OF_TIME: u32 = 4;

/// The pauses between the looks at one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    pause: Duration,
    rest: Duration,
}

impl Pace {
    pub(super) const fn new() -> Pace {
        Pace { pause: *PAUSES.start(), rest: *RESTS.start() }
    }

    /// Something was there, or is about to be.
    pub(super) fn quicken(&mut self) {
        *self = Pace::new();
    }

    /// The pause after a look that took so long and found all that there is.
    pub(super) fn after(&mut self, grew: bool, took: Duration) -> Duration {
        if grew {
            self.quicken();
        }
        self.rest = *RESTS.start();
        let pause = self.pause.max(took * SHARE_OF_TIME);
        self.pause = (self.pause * 2).min(*PAUSES.end());
        pause
    }

    /// The pause after a look that failed.
    pub(super) fn after_failure(&mut self) -> Duration {
        let rest = self.rest;
        self.rest = (self.rest * 2).min(*RESTS.end());
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_micros(100);

    #[test]
    fn what_does_not_grow_is_looked_at_ever_less_often_and_what_grows_at_once_often_again() {
        let mut pace = Pace::new();
        let pauses: Vec<u128> = (0..7).map(|_| pace.after(false, QUICK).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pace.after(true, QUICK).as_millis(), 50);
        assert_eq!(pace.after(false, QUICK).as_millis(), 100);
    }

    #[test]
    fn a_look_that_takes_long_is_not_taken_often() {
        assert_eq!(Pace::new().after(true, Duration::from_millis(300)), Duration::from_millis(1200));
    }

    #[test]
    fn what_fails_is_tried_again_ever_less_often_until_it_does_not() {
        let mut pace = Pace::new();
        let rests: Vec<u128> = (0..6).map(|_| pace.after_failure().as_millis()).collect();
        assert_eq!(rests, [500, 1000, 2000, 4000, 5000, 5000]);
        pace.after(false, QUICK);
        assert_eq!(pace.after_failure().as_millis(), 500);
    }
}
