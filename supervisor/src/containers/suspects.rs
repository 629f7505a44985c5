//! Tasks that should have got further by now: when each is looked at, and what is seen to hold it up.

use std::time::{Duration, Instant};

use wire::{ContainerId, TaskId};

use super::Containers;
use crate::launch::record;
use crate::leaks;
use crate::stuck::{self, Should};
use crate::task::Now;

/// How long a container may take to be ready, and an init to leave, before we look what holds it up; and the longest time
/// between two such looks.
const READY_BY_THEN: Duration = Duration::from_secs(10);
const LEFT_BY_THEN: Duration = Duration::from_secs(2);
const LONGEST_TIME_BETWEEN_LOOKS: Duration = Duration::from_secs(60);

/// A task that should have got further by then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    should: Should,
    look_at: Instant,
    pause: Duration,
}

impl Suspect {
    /// What an earlier launch of it left should be gone soon.
    pub(super) fn to_give_way(now: Now) -> Suspect {
        Suspect { should: Should::GiveWay, look_at: now.instant + LEFT_BY_THEN, pause: LEFT_BY_THEN }
    }

    /// Its container should be ready soon.
    pub(super) fn to_begin(now: Now) -> Suspect {
        Suspect { should: Should::Begin, look_at: now.instant + READY_BY_THEN, pause: READY_BY_THEN }
    }

    /// Its end is recorded, and init should be gone soon.
    pub(super) fn to_leave(now: Now) -> Suspect {
        Suspect { should: Should::Leave, look_at: now.instant + LEFT_BY_THEN, pause: LEFT_BY_THEN }
    }

    /// Time to look; the next look comes later.
    fn look(&mut self, now: Now) -> Should {
        self.pause = (self.pause * 2).min(LONGEST_TIME_BETWEEN_LOOKS);
        self.look_at = now.instant + self.pause;
        self.should
    }
}

impl Containers {
    /// What keeps a task that was killed from being gone.
    pub fn why_not_gone(&self, task: TaskId) -> Option<String> {
        self.look_why(task, if self.is_recorded(task) { Should::Leave } else { Should::BeGone })
    }

    /// When the next one is to be looked at.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.suspects.values().map(|suspect| suspect.look_at).min()
    }

    /// What holds up those that should have got further by now; `None`: nothing any more.
    pub fn take_looks(&mut self, now: Now) -> Vec<(TaskId, Option<String>)> {
        let due = self.suspects.iter_mut().filter(|(_, suspect)| suspect.look_at <= now.instant);
        let due: Vec<(TaskId, Should)> = due.map(|(task, suspect)| (*task, suspect.look(now))).collect();
        due.into_iter().map(|(task, should)| (task, self.look_why(task, should))).collect()
    }

    /// Whether its init has written down how it ended.
    pub(super) fn is_recorded(&self, task: TaskId) -> bool {
        record::read(&self.places.folder(&ContainerId(task).to_string())).is_ok_and(|record| record.is_some())
    }

    fn look_why(&self, task: TaskId, should: Should) -> Option<String> {
        let name = ContainerId(task).to_string();
        let pids = match self.inits.get(&task) {
            Some(init) => [self.layouts[init.layout].members(&name), vec![init.pid]].concat(),
            // Whose is not known: it is looked for as a leak would be.
            None if should == Should::GiveWay => leaks::inits_of(&name, &self.places.containers),
            None => return None,
        };
        stuck::in_words(should, &stuck::look(pids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_looks_at_a_suspect_come_ever_more_seldom() {
        let now = Now::read();
        let mut suspect = Suspect::to_leave(now);
        assert_eq!(suspect.look_at, now.instant + LEFT_BY_THEN);
        let pauses = [(); 7].map(|()| {
            assert_eq!(suspect.look(now), Should::Leave);
            (suspect.look_at - now.instant).as_secs()
        });
        assert_eq!(pauses, [4, 8, 16, 32, 60, 60, 60]);
    }
}
