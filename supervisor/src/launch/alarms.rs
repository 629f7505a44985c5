//! What init wakes up for by the clock: one timer, armed for the first of several times.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::lease::since_boot;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// The lease may have run out.
    LeaseEnds,
    /// The command has had all the time it was given.
    TimeUp,
    /// It was asked to end, and has had the time to.
    GraceOver,
    /// The logs are to be looked at.
    LookAtLogs,
    /// What was killed has had the time to be gone.
    StillThere,
}

/// The alarms that are set. Times are of CLOCK_BOOTTIME: it counts while the machine sleeps, and no change of the wall
/// clock moves it.
#[derive(Debug)]
pub struct Alarms {
    timer: TimerFd,
    due: BTreeMap<Alarm, Duration>,
}

impl Alarms {
    /// None yet.
    pub fn new() -> nix::Result<Alarms> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Alarms { timer: TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?, due: BTreeMap::new() })
    }

    /// Rings once when so much time has passed; one that was set before rings then instead.
    pub fn set(&mut self, alarm: Alarm, after: Duration) -> nix::Result<()> {
        // Ten years is the longest time limit there is, and a sum beyond all clocks never rings.
        self.set_at(alarm, since_boot().saturating_add(after))
    }

    /// Rings once at that time; at once, if that has passed.
    pub fn set_at(&mut self, alarm: Alarm, time: Duration) -> nix::Result<()> {
        self.due.insert(alarm, time);
        self.arm()
    }

    /// The alarms whose time has come; each rings once.
    pub fn take_due(&mut self) -> nix::Result<Vec<Alarm>> {
        let now = since_boot();
        let due = self.due.extract_if(.., |_, time| *time <= now).map(|(alarm, _)| alarm).collect();
        self.arm()?;
        Ok(due)
    }

    /// Arming it anew also takes back what can be read from it.
    fn arm(&self) -> nix::Result<()> {
        match self.due.values().min() {
            Some(&first) => {
                // Zero would disarm it.
                let first = Expiration::OneShot(TimeSpec::from_duration(first.max(Duration::from_nanos(1))));
                self.timer.set(first, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        }
    }
}

impl AsFd for Alarms {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn rings(alarms: &Alarms, within: PollTimeout) -> bool {
        poll(&mut [PollFd::new(alarms.as_fd(), PollFlags::POLLIN)], within).unwrap() == 1
    }

    fn wait(alarms: &mut Alarms) -> Vec<Alarm> {
        assert!(rings(alarms, PollTimeout::from(60_000_u16)), "it does not ring: {alarms:?}");
        alarms.take_due().unwrap()
    }

    #[test]
    fn the_earlier_alarm_rings_first_however_they_were_set() {
        let mut alarms = Alarms::new().unwrap();
        // An hour lies between them: whoever is held up meanwhile still hears the first alone.
        alarms.set(Alarm::GraceOver, Duration::from_secs(3600)).unwrap();
        alarms.set(Alarm::TimeUp, Duration::ZERO).unwrap();
        assert_eq!(wait(&mut alarms), [Alarm::TimeUp]);
        alarms.set(Alarm::TimeUp, Duration::ZERO).unwrap();
        alarms.set(Alarm::StillThere, Duration::from_secs(3600)).unwrap();
        assert_eq!(wait(&mut alarms), [Alarm::TimeUp]);
        assert!(!rings(&alarms, PollTimeout::ZERO));
    }

    #[test]
    fn each_alarm_rings_once_and_the_later_need_not_be_set_again() {
        let mut alarms = Alarms::new().unwrap();
        alarms.set(Alarm::GraceOver, Duration::from_millis(20)).unwrap();
        alarms.set(Alarm::TimeUp, Duration::ZERO).unwrap();
        let mut rung = Vec::new();
        while rung.len() < 2 {
            rung.extend(wait(&mut alarms));
        }
        assert_eq!(rung, [Alarm::TimeUp, Alarm::GraceOver]);
        assert!(!rings(&alarms, PollTimeout::ZERO));
    }

    #[test]
    fn an_alarm_set_again_rings_at_its_later_time_alone() {
        let mut alarms = Alarms::new().unwrap();
        alarms.set(Alarm::TimeUp, Duration::ZERO).unwrap();
        alarms.set(Alarm::TimeUp, Duration::from_secs(3600)).unwrap();
        assert_eq!(alarms.take_due().unwrap(), []);
    }
}
