//! Whom the kernel kills first when the machine's own memory runs out (proc_pid_oom_score_adj(5)).
//!
//! The supervisor and every init are small and hold the truth about the others, so they come last; their children would
//! inherit that. A task's own limit is the cgroup's business, not this room's.

use std::path::Path;

/// This process' own adjustment: -1000 is never, 1000 is first.
const OWN: &str = "/proc/self/oom_score_adj";
/// Last, but not never: a supervisor that itself eats all memory must not take the machine along.
const LAST: i16 = -900;
/// Like anybody else.
const ORDINARY: i16 = 0;

/// Puts this process and all it will fork at the end of the line. Only CAP_SYS_RESOURCE may.
pub fn come_last() {
    set(Path::new(OWN), LAST);
}

/// Stands in line like anybody else; for the payload, as long as it has its capabilities: what CAP_SYS_RESOURCE sets
/// is also the least that can be set without it.
pub fn come_like_anybody() {
    set(Path::new(OWN), ORDINARY);
}

/// It is a precaution: where it may not be taken, all works without.
fn set(file: &Path, adjustment: i16) {
    if let Err(error) = std::fs::write(file, adjustment.to_string()) {
        log::debug!("cannot write {adjustment} to {}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> i16 {
        std::fs::read_to_string(OWN).unwrap().trim().parse().unwrap()
    }

    #[test]
    fn what_comes_last_where_it_may_comes_like_anybody_again() {
        let before = own();
        come_last();
        // EACCES leaves it as it was.
        assert!([LAST, before].contains(&own()), "{}", own());
        come_like_anybody();
        assert!([ORDINARY, before].contains(&own()), "{}", own());
    }

    #[test]
    fn what_cannot_be_set_harms_nothing() {
        set(Path::new("/nonexistent/oom_score_adj"), LAST);
    }
}
