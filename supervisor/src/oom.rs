//! Whom the kernel kills first when memory runs out, the machine's or that of a cgroup all live in
//! (proc_pid_oom_score_adj(5)).
//!
//! The supervisor and every init are small and hold the truth about the others, so they come last; a task's command stands
//! far before them. Being the largest is not enough to come first: between the kill of the largest and the moment its
//! memory is back, the kernel may look for another (the victim is passed over once its pages are being reaped), and among
//! small ones a supervisor would be it. A task's own limit is the cgroup's business, not this room's.

use std::io;
use std::path::Path;

/// This process' own adjustment: -1000 is never, 1000 is first.
const OWN: &str = "/proc/self/oom_score_adj";
/// Last, but not never: a supervisor that itself eats all memory must not take the machine along.
const LAST: i16 = -900;
/// First of all.
const FIRST: i16 = 1000;
/// From an init to its command. Where the supervisor came last, its tasks stand in line like anybody else.
const BEFORE_INIT: i16 = 900;

/// Puts this process and all it will fork at the end of the line. Only CAP_SYS_RESOURCE may.
pub fn come_last() {
    stand_at(LAST);
}

/// Where the commands of this process' tasks are to stand.
pub fn for_tasks() -> i16 {
    let own = own().unwrap_or_else(|error| {
        log::debug!("cannot read {OWN}: {error}");
        0
    });
    before(own)
}

fn before(init: i16) -> i16 {
    init.saturating_add(BEFORE_INIT).min(FIRST)
}

/// Puts this process there, as a precaution: where it may not be taken, all works without. For a command it must come
/// before its capabilities go: what CAP_SYS_RESOURCE sets is also the least that can be set without it.
pub fn stand_at(adjustment: i16) {
    set(Path::new(OWN), adjustment);
}

fn set(file: &Path, adjustment: i16) {
    if let Err(error) = std::fs::write(file, adjustment.to_string()) {
        log::debug!("cannot write {adjustment} to {}: {error}", file.display());
    }
}

fn own() -> io::Result<i16> {
    std::fs::read_to_string(OWN)?.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_stand_before_us_whether_we_may_come_last_or_not() {
        let at_first = own().unwrap();
        assert_eq!(for_tasks(), before(at_first));
        come_last();
        // EACCES leaves it as it was.
        let last = own().unwrap();
        assert!([LAST, at_first].contains(&last), "{last}");
        assert_eq!(for_tasks(), before(last));
        // To come earlier is open to everybody.
        stand_at(for_tasks());
        assert_eq!(own().unwrap(), before(last));
        // As at first, where that may be.
        stand_at(at_first);
    }

    #[test]
    fn tasks_of_one_that_came_last_are_like_anybody_and_none_is_before_the_first() {
        assert_eq!(before(LAST), 0);
        assert_eq!(before(0), 900);
        assert_eq!(before(500), FIRST);
    }

    #[test]
    fn what_cannot_be_set_harms_nothing() {
        set(Path::new("/nonexistent/oom_score_adj"), LAST);
    }
}
