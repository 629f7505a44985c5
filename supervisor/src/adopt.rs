//! At start: the journal against reality. Which tasks live, which ended meanwhile, which never began,
//! and what is left of nobody.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use wire::fault::Point;
use wire::{BootId, ContainerId, TaskId};

use crate::cgroup::{CgroupError, Layout};
use crate::containers::{Containers, Dead};
use crate::fault;
use crate::history::Era;
use crate::launch;
use crate::task::{Event, Init, Now, Phase, Task};
use crate::task_table::TaskTable;

/// How containers of `berth-supervisor run` are named: they belong to whoever runs them.
pub const FOREGROUND_PREFIX: &str = "run-";
/// Where whole numbers in JSON end (RFC 8259, section 6): no task was ever given a higher one.
const HIGHEST_TASK: TaskId = TaskId((1 << 53) - 1);

/// The cgroups of this boot's eras, each opened once.
#[derive(Debug)]
pub struct Layouts {
    /// Opened; ours is the last.
    pub opened: Vec<Layout>,
    /// For each era its layout among them; `None` for an era of another boot.
    pub of_era: Vec<Option<usize>>,
}

/// Opens the cgroups that tasks of `eras` may be in. `ours` is the layout of the last era.
pub fn open_layouts(eras: &[Era], boot: &BootId, ours: Layout) -> Result<Layouts, CgroupError> {
    let mut bases = Vec::new();
    for era in eras.iter().filter(|era| era.boot == *boot && era.bases != ours.bases()) {
        if !bases.contains(&era.bases) {
            bases.push(era.bases.clone());
        }
    }
    let mut opened = bases.iter().map(Layout::from_bases).collect::<Result<Vec<_>, _>>()?;
    opened.push(ours);
    let of_era = eras.iter().map(|era| {
        let index = bases.iter().position(|known| *known == era.bases).unwrap_or(bases.len());
        (era.boot == *boot).then_some(index)
    });
    Ok(Layouts { of_era: of_era.collect(), opened })
}

/// What is to become of a task that had not ended when the last supervisor did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nothing of it ran: launch it.
    Launch,
    /// Its init lives: watch it.
    Watch,
    /// Its init is gone: its record says how it ended.
    End,
    /// The machine was booted anew. Its record, if it has one, says how it ended before that. Even one without a launch
    /// in the journal may have run: that line may be among those that a power cut took. So it is not launched again.
    Rebooted,
}

fn fate(same_boot: bool, launched: bool, alive: bool) -> Fate {
    match (same_boot, launched, alive) {
        (false, _, _) => Fate::Rebooted,
        (true, false, _) => Fate::Launch,
        (true, true, true) => Fate::Watch,
        (true, true, false) => Fate::End,
    }
}

/// A task that lives, or may live, could not be taken over. Going on without it would leave its end unseen, or call it
/// ended while it runs; it is safe where it is, and the next start tries again.
#[derive(Debug, thiserror::Error)]
#[error("cannot take over task {task}: {cause}; hint: it goes on without us; start again once the cause is gone")]
pub struct AdoptError {
    task: TaskId,
    cause: io::Error,
}

/// How many tasks met which fate.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    launch: usize,
    watch: usize,
    end: usize,
    rebooted: usize,
}

/// Finds out what became of every unfinished task, and has removed what belongs to none.
pub fn adopt(
    table: &mut TaskTable,
    containers: &mut Containers,
    of_era: &[Option<usize>],
    now: Now,
) -> Result<(), AdoptError> {
    let survivors: Vec<(Task, usize)> = table.survivors().map(|(task, era)| (task.clone(), era)).collect();
    let mut tally = Tally::default();
    for (task, era) in survivors {
        let layout = of_era.get(era).copied().flatten();
        let failed = |cause| AdoptError { task: task.id, cause };
        let init = task.init().filter(|_| layout.is_some()).map(living).transpose().map_err(failed)?.flatten();
        match fate(layout.is_some(), task.init().is_some(), init.is_some()) {
            Fate::Launch => {
                tally.launch += 1;
                table.launch_again(task.id);
            }
            Fate::Watch => {
                tally.watch += 1;
                watch(table, containers, &task, init, layout.unwrap_or_default(), now).map_err(failed)?;
            }
            Fate::End => {
                tally.end += 1;
                end(table, containers, &task, layout, now);
            }
            Fate::Rebooted => {
                tally.rebooted += 1;
                end(table, containers, &task, None, now);
            }
        }
        fault::moment(Point::StartAdopting);
    }
    if tally != Tally::default() {
        let Tally { launch, watch, end, rebooted } = tally;
        log::info!(
            "of the tasks that had not ended, {watch} are running, {end} ended meanwhile, {rebooted} were cut off by \
             a reboot, {launch} are launched now"
        );
    }
    sweep_what_is_nobodys(table, containers, now);
    Ok(())
}

fn watch(
    table: &mut TaskTable,
    containers: &mut Containers,
    task: &Task,
    init: Option<OwnedFd>,
    layout: usize,
    now: Now,
) -> io::Result<()> {
    let (Some(pidfd), Some(init)) = (init, task.init()) else { return Ok(()) };
    fault::call(Point::AdoptWatch)?;
    containers.adopt(task.id, init, pidfd, layout, now)?;
    if matches!(task.phase, Phase::Launched { .. }) {
        match containers.has_begun(task.id) {
            true => table.apply(task.id, Event::Started(None), now),
            false => containers.look_for_start(task.id, now),
        }
    }
    Ok(())
}

fn end(table: &mut TaskTable, containers: &mut Containers, task: &Task, layout: Option<usize>, now: Now) {
    let Some(spec) = task.spec() else { return };
    if let Some(event) = containers.conclude(task.id, Dead::new(spec, layout, true, now), now) {
        table.apply(task.id, event, now);
    }
}

/// The init with this identity, if it is still alive. The pidfd comes first: should the pid have passed
/// to another process, that one started later, and should it pass on after this, the pidfd is still init's.
fn living(init: Init) -> io::Result<Option<OwnedFd>> {
    fault::call(Point::AdoptLook)?;
    let Some(pid) = Pid::from_raw(init.pid) else { return Ok(None) };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let started = match launch::start_time(init.pid) {
        Ok(started) => started,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok((started == init.start_time).then_some(pidfd))
}

/// A process that has gone has no file in /proc, or one that cannot be read to its end.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// Kills and removes cgroups and folders that no task owns. A foreground run's are left while it lives.
fn sweep_what_is_nobodys(table: &TaskTable, containers: &mut Containers, now: Now) {
    let owned = |name: &str| task_named(name).is_some_and(|task| table.spec(task).is_some());
    let foreground = |name: &str| name.starts_with(FOREGROUND_PREFIX) && containers.is_held(name);
    let left: Vec<String> = containers.names().into_iter().filter(|name| !owned(name) && !foreground(name)).collect();
    if !left.is_empty() {
        log::info!("removing what is left of {} containers", left.len());
    }
    for name in left {
        log::debug!("removing {name}");
        containers.remove_remnant(&name, now);
    }
}

/// The highest task that any of these containers was made for, those that were put aside among them.
pub fn last_task_named(names: &[String]) -> Option<TaskId> {
    let made_for = |name: &String| task_named(name.split_once("-left-").map_or(name.as_str(), |(name, _)| name));
    names.iter().filter_map(made_for).filter(|task| *task <= HIGHEST_TASK).max()
}

fn task_named(name: &str) -> Option<TaskId> {
    name.parse().ok().map(|ContainerId(task)| task)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unfinished_task_has_one_fate() {
        assert_eq!(fate(true, true, true), Fate::Watch);
        assert_eq!(fate(true, true, false), Fate::End);
        assert_eq!(fate(true, false, false), Fate::Launch);
        for (launched, alive) in [(false, false), (true, false), (true, true)] {
            assert_eq!(fate(false, launched, alive), Fate::Rebooted);
        }
    }

    #[test]
    fn a_pid_that_was_given_to_another_process_is_not_taken_for_init() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let start_time = launch::start_time(pid).unwrap();
        assert!(living(Init { pid, start_time }).unwrap().is_some());
        assert!(living(Init { pid, start_time: start_time + 1 }).unwrap().is_none());
        assert!(living(Init { pid: i32::MAX, start_time }).unwrap().is_none());
    }

    #[test]
    fn the_last_task_is_told_by_what_is_left_of_it_and_by_no_stranger() {
        let names = ["t7-cont", "t12-cont-left-1", "run-99-cont", "t18446744073709551615-cont"].map(str::to_owned);
        assert_eq!(last_task_named(&names), Some(TaskId(12)));
        assert_eq!(last_task_named(&[]), None);
    }

    #[test]
    fn only_container_names_lead_to_tasks() {
        assert_eq!(task_named("t7-cont"), Some(TaskId(7)));
        assert_eq!((task_named("run-7-cont"), task_named("t7-cont-left-1")), (None, None));
    }
}
