//! The task table's hands: launches, signals and reaps inits, reads what they left, removes cgroups.
//!
//! It owns every pidfd and every line to an init. It decides nothing about tasks, and it never blocks:
//! what is still busy is tried again later, and folders are the sweeper's business.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use wire::fault::Point;
use wire::task::TaskOrigin;
use wire::{ContainerId, JobSpec, NodeId, Reason, TaskId};

use crate::cgroup::{Layout, Removal};
use crate::child;
use crate::event_loop::Watcher;
use crate::fault;
use crate::launch::record;
use crate::launch::step::Step;
use crate::launch::{InitLine, LaunchRequest, Launched, Launcher, Logs, Network};
use crate::lease::Terms;
use crate::log_root::LogRoot;
use crate::task::{Event, Init, Now};

mod ends;
mod suspects;
pub use ends::Dead;
use suspects::Suspect;

/// The first pause before a busy cgroup or folder is tried again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// Attempts after which what cannot be removed is worth a word.
const WORTH_A_WORD: u32 = 12;
/// Descriptors that are not for tasks: connections, readers, a launch's layers and cgroups, the daemon's own.
const OTHER_DESCRIPTORS: u64 = 1_500;

/// Where things are, and how long a task may take to end.
#[derive(Debug, Clone)]
pub struct Places {
    /// Container folders, `cont/` of the state dir.
    pub containers: PathBuf,
    /// This node.
    pub node: NodeId,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
}

impl Places {
    /// The folder of a container.
    pub fn folder(&self, container: &str) -> PathBuf {
        self.containers.join(container)
    }
}

/// An init that lives.
#[derive(Debug)]
struct LiveInit {
    pidfd: OwnedFd,
    pid: i32,
    /// The line to it; an adopted init's was cut when its supervisor died.
    line: Option<InitLine>,
    /// Whether it may have been told to go.
    told: bool,
    /// Its layout.
    layout: usize,
}

/// Something that belongs to nobody any more, and is not gone yet.
#[derive(Debug)]
struct Remnant {
    /// Name of container, cgroup and folder.
    name: String,
    tries: u32,
}

/// When something is looked at again: the more often that was in vain, the later.
#[derive(Debug, Clone, Copy)]
struct Again {
    at: Instant,
    tries: u32,
}

impl Again {
    fn at_once(now: Now) -> Again {
        Again { at: now.instant, tries: 0 }
    }

    /// It was in vain.
    fn later(self, now: Now) -> Again {
        Again { at: now.instant + pause_after(self.tries), tries: self.tries + 1 }
    }
}

/// All containers of this node.
#[derive(Debug)]
pub struct Containers {
    launcher: Launcher,
    places: Places,
    /// Where their logs are.
    pub log_root: LogRoot,
    /// The cgroups of this boot's eras; ours is the last.
    layouts: Vec<Layout>,
    watcher: Watcher,
    /// How many inits there are descriptors for.
    max_inits: usize,
    inits: HashMap<TaskId, LiveInit>,
    /// Tasks that may be stuck.
    suspects: HashMap<TaskId, Suspect>,
    /// Adopted tasks of which nobody has heard whether they had begun, by when to look.
    unheard: BTreeMap<TaskId, Again>,
    /// Tasks to be launched again, by when to look whether nothing is in the way any more.
    clearing: BTreeMap<TaskId, Again>,
    /// Tasks whose init is gone and whose end could not be read yet.
    dead: BTreeMap<TaskId, Dead>,
    remnants: BTreeMap<(Instant, u64), Remnant>,
    /// Numbers remnants and folders that were put aside.
    counter: u64,
    folders_to_sweep: Vec<PathBuf>,
}

impl Containers {
    /// No containers yet. `descriptors`: how many this process may have.
    pub fn new(
        launcher: Launcher,
        places: Places,
        log_root: LogRoot,
        layouts: Vec<Layout>,
        watcher: Watcher,
        descriptors: u64,
    ) -> Containers {
        // Where there are few, half of them: a task that waits its turn is better off than one that fails for want of one.
        let max_inits = (descriptors - OTHER_DESCRIPTORS.min(descriptors / 2)) / 2;
        Containers {
            max_inits: usize::try_from(max_inits).unwrap_or(usize::MAX),
            launcher,
            places,
            log_root,
            layouts,
            watcher,
            inits: HashMap::new(),
            suspects: HashMap::new(),
            unheard: BTreeMap::new(),
            clearing: BTreeMap::new(),
            dead: BTreeMap::new(),
            remnants: BTreeMap::new(),
            counter: 0,
            folders_to_sweep: Vec::new(),
        }
    }

    fn current(&self) -> usize {
        self.layouts.len() - 1
    }

    /// Whether there are descriptors for one more init.
    pub fn have_room(&self) -> bool {
        self.inits.len() < self.max_inits
    }

    /// Clones an init for the task, with its logs in that folder. It builds the container and waits for [`Containers::say_go`].
    pub fn launch(
        &mut self,
        task: TaskId,
        spec: &JobSpec,
        origin: &TaskOrigin,
        lease: Option<Terms>,
        logs: PathBuf,
        now: Now,
    ) -> Result<Init, Reason> {
        let container = ContainerId(task).to_string();
        let request = LaunchRequest {
            container: &container,
            spec,
            environment: self.environment(task, origin),
            logs: Logs::Folder(logs),
            network: Network::None,
            grace: self.places.grace,
            die_with_parent: false,
            lease,
        };
        let layout = self.current();
        let launched = self.launcher.launch(&self.layouts[layout], request).map_err(|error| {
            log::warn!("{error}");
            error.reason()
        })?;
        self.suspects.insert(task, Suspect::to_begin(now));
        self.watch(task, launched, layout)
            .step(|| "watch init".to_owned())
            .inspect_err(|_| {
                self.suspects.remove(&task);
            })
            .map_err(|failed| Reason::LaunchFailed { step: failed.step, cause: failed.cause })
    }

    fn environment(&self, task: TaskId, origin: &TaskOrigin) -> Vec<(String, String)> {
        let known = [
            ("BERTH_NODE_ID", Some(self.places.node.to_string())),
            ("BERTH_TASK_ID", Some(task.to_string())),
            ("BERTH_JOB_ID", origin.job_id.map(|job| job.to_string())),
            ("BERTH_ATTEMPT", origin.attempt.map(|attempt| attempt.to_string())),
        ];
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// Should watching fail, init is gone when this returns; what it has made is released with its task.
    fn watch(&mut self, task: TaskId, launched: Launched, layout: usize) -> io::Result<Init> {
        let Launched { pidfd, pid, start_time, line } = launched;
        let watched = fault::call(Point::LaunchWatch)
            .and_then(|()| self.watcher.watch_init(task, pidfd.as_fd()))
            .and_then(|()| self.watcher.watch_line(task, &line).inspect_err(|_| self.watcher.release(&pidfd)));
        watched.inspect_err(|_| child::kill_and_reap(&pidfd))?;
        self.inits.insert(task, LiveInit { pidfd, pid, line: Some(line), told: false, layout });
        Ok(Init { pid, start_time })
    }

    /// Takes over an init that an earlier supervisor launched.
    pub fn adopt(&mut self, task: TaskId, init: Init, pidfd: OwnedFd, layout: usize, now: Now) -> io::Result<()> {
        self.watcher.watch_init(task, pidfd.as_fd())?;
        // Its end may be recorded already, and the line over which it said so was the last supervisor's.
        if self.is_recorded(task) {
            self.suspects.insert(task, Suspect::to_leave(now));
        }
        // Without a line nothing can be said to it; whether it was told to go is for its record to say.
        self.inits.insert(task, LiveInit { pidfd, pid: init.pid, line: None, told: true, layout });
        Ok(())
    }

    /// Looks every now and then whether an adopted task has begun.
    pub fn look_for_start(&mut self, task: TaskId, now: Now) {
        self.unheard.insert(task, Again::at_once(now));
        self.suspects.entry(task).or_insert(Suspect::to_begin(now));
    }

    /// Lets init run the command.
    pub fn say_go(&mut self, task: TaskId) {
        let Some(init) = self.inits.get_mut(&task) else { return };
        init.told = true;
        if let Some(Err(error)) = init.line.as_ref().map(InitLine::go) {
            // It has exited already. If its record does not say why, it has run nothing.
            log::debug!("cannot tell init of task {task} to go: {error}");
            init.told = false;
        }
        fault::moment(Point::LaunchTold);
    }

    /// The line to init can be read: the command has begun, or init has recorded its end and closed the line, maybe both.
    pub fn hear(&mut self, task: TaskId, now: Now) -> Option<Event> {
        let init = self.inits.get_mut(&task)?;
        match init.line.as_ref()?.started() {
            Ok(Some(at)) => {
                self.suspects.remove(&task);
                // What comes next may be there already, and an edge is told only once.
                self.hear(task, now).or(Some(Event::Started(Some(at))))
            }
            Ok(None) => None,
            Err(error) => {
                log::debug!("the line to init of task {task} has ended: {error}");
                // The kernel's word for an end that was closed with something unread in it, and all we ever say is to go:
                // init has not heard it (unix_release_sock() in net/unix/af_unix.c).
                init.told &= error.kind() != io::ErrorKind::ConnectionReset;
                self.cut_line(task);
                self.suspects.insert(task, Suspect::to_leave(now));
                None
            }
        }
    }

    fn cut_line(&mut self, task: TaskId) {
        if let Some(line) = self.inits.get_mut(&task).and_then(|init| init.line.take()) {
            self.watcher.release(&line);
        }
    }

    /// Asks init to end the task. One that still waits for the word learns by the end of its line that
    /// it will not come.
    pub fn terminate(&mut self, task: TaskId) {
        match self.inits.get(&task) {
            Some(init) if init.told => {
                self.signal(task, Signal::TERM);
                fault::moment(Point::KillSignalled);
            }
            Some(_) => self.cut_line(task),
            None => {}
        }
    }

    /// SIGKILL to init and to all that is left in the cgroup.
    pub fn kill(&mut self, task: TaskId) {
        self.suspects.remove(&task);
        if let Some(init) = self.inits.get(&task) {
            self.layouts[init.layout].kill(&ContainerId(task).to_string());
            self.signal(task, Signal::KILL);
        }
    }

    fn signal(&self, task: TaskId, signal: Signal) {
        let Some(init) = self.inits.get(&task) else { return };
        match rustix::process::pidfd_send_signal(&init.pidfd, signal) {
            // Gone already: its exit is heard next.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => log::error!("cannot send {signal:?} to init of task {task}: {errno}"),
        }
    }

    /// Init's pidfd fired: reaps it and tells how the task ended, if that can be read at once.
    pub fn reap(&mut self, task: TaskId, spec: &JobSpec, now: Now) -> Option<Event> {
        fault::moment(Point::EndExited);
        // The line may have its last word still to say; when it began is in the record as well.
        let _ = self.hear(task, now);
        self.cut_line(task);
        let init = self.inits.remove(&task)?;
        self.suspects.remove(&task);
        self.unheard.remove(&task);
        self.watcher.release(&init.pidfd);
        match child::reap(&init.pidfd) {
            Ok(Some(0)) | Err(rustix::io::Errno::CHILD) => {}
            Ok(Some(status)) => log::warn!("init of task {task} has exited with status {status}"),
            Ok(None) => log::warn!("init of task {task} was killed"),
            Err(errno) => log::warn!("cannot reap init of task {task}: {errno}"),
        }
        fault::moment(Point::EndReaped);
        self.conclude(task, Dead::new(spec, Some(init.layout), init.told, now), now)
    }

    /// The task is over: its cgroups and its folder are to go.
    pub fn release(&mut self, task: TaskId, now: Now) {
        self.log_root.forget(task);
        self.suspects.remove(&task);
        self.remove_remnant(&ContainerId(task).to_string(), now);
    }

    /// Removes what is left under this name, as soon as it can be.
    pub fn remove_remnant(&mut self, name: &str, now: Now) {
        self.try_remnant(Remnant { name: name.to_owned(), tries: 0 }, now);
    }

    fn try_remnant(&mut self, mut remnant: Remnant, now: Now) {
        if self.clear_away(&remnant.name, remnant.tries) {
            fault::moment(Point::ReleaseCgroups);
            let folder = self.places.folder(&remnant.name);
            // A task that was never launched has none.
            if folder.symlink_metadata().is_ok() {
                self.folders_to_sweep.push(folder);
            }
            return;
        }
        remnant.tries += 1;
        if remnant.tries == WORTH_A_WORD {
            log::warn!("cannot remove what is left of {} yet: it is busy; trying on", remnant.name);
        }
        self.counter += 1;
        self.remnants.insert((now.instant + pause_after(remnant.tries), self.counter), remnant);
    }

    /// One pass over the cgroups of that name: whether nothing is left of them, and no init lives. What did not leave by
    /// itself is killed from the second try on; an init that still holds the folder is on its way out, having nothing
    /// left to watch.
    fn clear_away(&self, name: &str, tries: u32) -> bool {
        let mut gone = !self.is_held(name);
        for layout in &self.layouts {
            if tries > 0 || !gone {
                layout.kill(name);
            }
            match layout.remove(name) {
                Ok(Removal::Gone) => {}
                Ok(Removal::Busy) => gone = false,
                Err(error) => {
                    log::warn!("{error}");
                    gone = false;
                }
            }
        }
        gone
    }

    /// Whether an init lives in the container of that name.
    pub fn is_held(&self, name: &str) -> bool {
        record::is_held(&self.places.folder(name)).unwrap_or_else(|error| {
            log::warn!("cannot tell whether container {name} is alive: {error}");
            true
        })
    }

    /// Removes what an earlier launch of the task left; [`Containers::take_cleared`] tells when that is done.
    pub fn clear_for_launch(&mut self, task: TaskId, now: Now) {
        self.clearing.insert(task, Again::at_once(now));
        self.suspects.insert(task, Suspect::to_give_way(now));
    }

    /// Tasks that nothing is in the way of any more.
    pub fn take_cleared(&mut self, now: Now) -> Vec<TaskId> {
        let mut cleared = Vec::new();
        for (task, again) in take_due(&mut self.clearing, now) {
            if self.put_aside(task) {
                self.suspects.remove(&task);
                cleared.push(task);
            } else {
                self.clearing.insert(task, again.later(now));
            }
        }
        cleared
    }

    fn put_aside(&mut self, task: TaskId) -> bool {
        let name = ContainerId(task).to_string();
        if !self.clear_away(&name, 1) {
            return false;
        }
        let folder = self.places.folder(&name);
        self.counter += 1;
        let aside = self.places.folder(&format!("{name}-left-{}", self.counter));
        match std::fs::rename(&folder, &aside) {
            Ok(()) => {
                self.folders_to_sweep.push(aside);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                log::warn!("cannot put {} aside: {error}", folder.display());
                false
            }
        }
    }

    /// Folders for the sweeper.
    pub fn take_folders(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.folders_to_sweep)
    }

    /// The names of what is being removed.
    pub fn leaving(&self) -> HashSet<&str> {
        self.remnants.values().map(|remnant| remnant.name.as_str()).collect()
    }

    /// Names of all cgroups and folders there are, whoever they belong to.
    pub fn names(&self) -> Vec<String> {
        let mut names = std::collections::BTreeSet::new();
        for layout in &self.layouts {
            match layout.groups() {
                Ok(groups) => names.extend(groups),
                Err(error) => log::warn!("{error}"),
            }
        }
        match std::fs::read_dir(&self.places.containers) {
            Ok(entries) => names.extend(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok())),
            Err(error) => log::warn!("cannot read {}: {error}", self.places.containers.display()),
        }
        names.into_iter().collect()
    }

    /// Whether anything of the task is in its cgroup: the command joins it right before it begins.
    pub fn has_begun(&self, task: TaskId) -> bool {
        let Some(init) = self.inits.get(&task) else { return false };
        self.layouts[init.layout].has_members(&ContainerId(task).to_string())
    }

    /// When [`Containers::expire`] must be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        let remnant = self.remnants.first_key_value().map(|((due, _), _)| *due);
        let looks = remnant.into_iter().chain(self.next_look()).chain(self.next_reading());
        self.unheard.values().chain(self.clearing.values()).map(|again| again.at).chain(looks).min()
    }

    /// Tries again what was busy; tells which adopted tasks have begun, and how those ended that could not be asked before.
    pub fn expire(&mut self, now: Now) -> Vec<(TaskId, Event)> {
        while let Some(entry) = self.remnants.first_entry().filter(|entry| entry.key().0 <= now.instant) {
            let remnant = entry.remove();
            self.try_remnant(remnant, now);
        }
        let mut events = self.read_ends_again(now);
        for (task, again) in take_due(&mut self.unheard, now) {
            if self.has_begun(task) {
                self.suspects.remove(&task);
                events.push((task, Event::Started(None)));
            } else {
                self.unheard.insert(task, again.later(now));
            }
        }
        events
    }

    /// Removes the cgroup bases that are empty: at the end, or those of an earlier era.
    pub fn remove_bases(&self) {
        for layout in &self.layouts {
            layout.remove_base();
        }
    }
}

/// How long what failed so often is left alone.
fn pause_after(tries: u32) -> Duration {
    (FIRST_PAUSE * 2_u32.saturating_pow(tries.min(16))).min(LAST_PAUSE)
}

fn take_due(waiting: &mut BTreeMap<TaskId, Again>, now: Now) -> Vec<(TaskId, Again)> {
    waiting.extract_if(.., |_, again| again.at <= now.instant).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_looked_at_in_vain_is_looked_at_again_soon_at_first_and_then_ever_more_seldom() {
        let now = Now::read();
        let mut waiting = BTreeMap::from([(TaskId(7), Again::at_once(now))]);
        let mut pauses = Vec::new();
        for _ in 0..13 {
            let (task, again) = take_due(&mut waiting, Now { instant: now.instant + LAST_PAUSE, ..now }).remove(0);
            waiting.insert(task, again.later(now));
            pauses.push((waiting[&task].at - now.instant).as_millis());
            assert!(take_due(&mut waiting, now).is_empty(), "too soon");
        }
        assert_eq!((pauses[0], pauses[1], pauses[12]), (2, 4, LAST_PAUSE.as_millis()));
    }

    #[test]
    fn a_containers_folder_is_that_of_the_contract() {
        let places = Places { containers: "/s/cont".into(), node: NodeId(3), grace: Duration::ZERO };
        assert_eq!(places.folder(&ContainerId(TaskId(7)).to_string()), PathBuf::from("/s/cont/t7-cont"));
    }
}
