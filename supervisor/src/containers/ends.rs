//! How a task ended whose init is gone: its record and its cgroup's counters, read again until they can be read.
//!
//! A supervisor without descriptors, or a disk that does not answer for a moment, is no reason to call an end lost that is
//! on record.

use std::io;
use std::time::Instant;

use wire::fault::Point;
use wire::{ContainerId, JobSpec, TaskId};

use super::{Again, Containers};
use crate::cgroup::Usage;
use crate::fault;
use crate::launch::record::{self, End};
use crate::task::{Event, Now, outcome};

/// After so many tries, most of a minute, what cannot be read is taken for lost.
const TRIES: u32 = 20;

/// A task whose init is gone.
#[derive(Debug, Clone, Copy)]
pub struct Dead {
    /// Whether its init may have been told to go.
    pub told: bool,
    /// Of this boot; `None` after a reboot.
    pub layout: Option<usize>,
    mem_limit_mib: u64,
    again: Again,
}

impl Dead {
    /// One whose end nobody has read.
    pub fn new(spec: &JobSpec, layout: Option<usize>, told: bool, now: Now) -> Dead {
        Dead { told, layout, mem_limit_mib: spec.resource.mem, again: Again::at_once(now) }
    }
}

impl Containers {
    /// What became of the task; `None`: that cannot be read now, and [`Containers::expire`] will tell.
    ///
    /// Where the share is to blame it has not run, whenever that is read. After a reboot that is not believed: the power cut
    /// may have brought back the folder of an earlier launch in place of the one that ran.
    pub fn conclude(&mut self, task: TaskId, dead: Dead, now: Now) -> Option<Event> {
        match self.read_end(task, dead, now) {
            Ok(Event::InitExited(outcome)) if dead.layout.is_some() && self.log_root.is_to_blame(task, &outcome) => {
                Some(Event::NeverRan)
            }
            Ok(event) => Some(event),
            Err(error) if dead.again.tries < TRIES => {
                log::warn!("cannot read how task {task} ended: {error}; trying again");
                self.dead.insert(task, Dead { again: dead.again.later(now), ..dead });
                None
            }
            Err(error) => {
                log::error!("cannot read how task {task} ended: {error}; it is taken for lost");
                let rebooted = dead.layout.is_none();
                Some(Event::InitExited(outcome(None, &Usage::default(), dead.mem_limit_mib, rebooted, now)))
            }
        }
    }

    fn read_end(&self, task: TaskId, dead: Dead, now: Now) -> io::Result<Event> {
        fault::call(Point::EndRead)?;
        let container = ContainerId(task).to_string();
        let record = record::read(&self.places.folder(&container))?;
        let never_told = record.as_ref().is_some_and(|record| record.end == End::NeverTold);
        let never_ran = (record.is_none() && !dead.told) || (dead.layout.is_some() && never_told);
        if never_ran {
            return Ok(Event::NeverRan);
        }
        let usage = dead.layout.map_or(Ok(Usage::default()), |index| self.layouts[index].usage(&container))?;
        Ok(Event::InitExited(outcome(record.as_ref(), &usage, dead.mem_limit_mib, dead.layout.is_none(), now)))
    }

    /// When an end is to be read again.
    pub(super) fn next_reading(&self) -> Option<Instant> {
        self.dead.values().map(|dead| dead.again.at).min()
    }

    /// The ends that can be read by now.
    pub(super) fn read_ends_again(&mut self, now: Now) -> Vec<(TaskId, Event)> {
        let due = |_: &TaskId, dead: &mut Dead| dead.again.at <= now.instant;
        let due: Vec<(TaskId, Dead)> = self.dead.extract_if(.., due).collect();
        due.into_iter().filter_map(|(task, dead)| Some((task, self.conclude(task, dead, now)?))).collect()
    }
}
