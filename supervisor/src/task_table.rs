//! All tasks: who they are, what is free, which attempt is which task, what was told and what is to be told.
//!
//! It drives each task's state machine, and carries out what concerns memory and journal: a change is
//! written before it is told. What concerns the kernel it hands on as [`Deed`]s. It knows no HTTP, no
//! process and no cgroup.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

use wire::node::{NodeResource, Refusal, RefusalCode, Remembered};
use wire::task::{AttemptKey, TaskOrigin, TaskReport, TaskRequest};
use wire::term::Speaker;
use wire::{BadInput, BootId, EventNumber, InstanceId, JobId, JobSpec, Reason, Stamp, State, TaskId, TaskLease};

use crate::history::{Era, History, Unfinished};
use crate::journal::{Journal, JournalError, Record};
use crate::lease::{Leases, Terms};
use crate::masters::Masters;
use crate::node::{Node, Share};
use crate::task::{Action, Change, Event, Now, Phase, Start, Task};

/// How many ended tasks are remembered for masters that never ask.
pub const MAX_ENDED: usize = 10_000;

/// How many refused attempts are remembered.
const MAX_REFUSED: usize = 1_000;

/// What the lines behind an accepted one take at most: launched, started, killed, ended.
const BYTES_A_TASK: u64 = 2 << 10;

/// How long after a failed write the journal is tried again.
const WRITE_AGAIN: Duration = Duration::from_secs(1);

/// What is to be done with processes, cgroups and folders; done outside of this room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Remove what an earlier launch left, then put it into the queue.
    ClearForLaunch,
    /// Tell init to execute the command.
    SayGo,
    /// SIGTERM to init.
    Terminate,
    /// SIGKILL to init and to all in the cgroup.
    Kill,
    /// See what keeps it from dying; [`TaskTable::call_stuck`] says it.
    LookWhy,
    /// Remove cgroup and folder.
    Release,
}

/// A task that has not ended, as far as anyone was told.
#[derive(Debug)]
struct Living {
    /// Always there between two calls; taken out for the length of a step.
    task: Task,
    /// The latest that may be told: the journal has it.
    told: TaskReport,
    /// What it takes of the node.
    share: Share,
    /// In which era its latest init was launched.
    era: usize,
    /// What it runs under, if it does.
    lease: Option<TaskLease>,
    /// Whether it counts among the tasks for which its master's stamps are kept.
    renewed: bool,
}

impl Living {
    fn waits_for_launch(&self) -> bool {
        matches!(self.task.phase, Phase::Accepted { .. })
    }
}

/// The table.
#[derive(Debug)]
pub struct TaskTable {
    node: Node,
    grace: Duration,
    journal: Journal,
    leases: Leases,
    eras: Vec<Era>,
    living: BTreeMap<TaskId, Living>,
    ended: BTreeMap<TaskId, TaskReport>,
    keys: HashMap<AttemptKey, TaskId>,
    /// What became of attempts that are no task, and their order.
    refused: HashMap<AttemptKey, Refusal>,
    refused_in_order: VecDeque<AttemptKey>,
    masters: Masters,
    /// Every task that is remembered, by its latest change.
    by_event: BTreeMap<EventNumber, TaskId>,
    /// The ended ones among them.
    ended_by_event: BTreeMap<EventNumber, TaskId>,
    used: Share,
    last_task: TaskId,
    last_event: EventNumber,
    to_launch: VecDeque<TaskId>,
    /// Whether any of these is said to be held up.
    held_up: bool,
    /// Whether any task that runs is said to be cut off.
    cut_off: bool,
    deeds: VecDeque<(TaskId, Deed)>,
    deadlines: BTreeSet<(Instant, TaskId)>,
    /// Actions that wait because the journal cannot be written, in their order.
    parked: VecDeque<(TaskId, Action)>,
    /// Why nothing is taken: what could not be written down, until it can be. There is one while anything is parked.
    unwritable: Option<String>,
    write_again: Option<Instant>,
    lost_journal: Option<JournalError>,
    forgot_unheard: bool,
}

impl TaskTable {
    /// A table that remembers what `history` tells. Its last era is ours.
    pub fn new(node: Node, grace: Duration, journal: Journal, history: History, leases: Leases, now: Now) -> TaskTable {
        let mut table = TaskTable {
            node,
            grace,
            journal,
            leases,
            eras: history.eras,
            living: BTreeMap::new(),
            ended: BTreeMap::new(),
            keys: HashMap::new(),
            refused: HashMap::new(),
            refused_in_order: VecDeque::new(),
            masters: history.masters,
            by_event: BTreeMap::new(),
            ended_by_event: BTreeMap::new(),
            used: Share::default(),
            last_task: TaskId(history.last_task),
            last_event: EventNumber(history.last_event),
            to_launch: VecDeque::new(),
            held_up: false,
            cut_off: false,
            deeds: VecDeque::new(),
            deadlines: BTreeSet::new(),
            parked: VecDeque::new(),
            unwritable: None,
            write_again: None,
            lost_journal: None,
            forgot_unheard: false,
        };
        for (id, unfinished) in history.unfinished {
            table.remember(id, unfinished, now);
        }
        for report in history.ended.into_values() {
            table.key_of(&report.key, report.task_id);
            table.keep_ended(report);
        }
        table.leases.remove_others();
        table
    }

    /// One that is to end is asked again: the last supervisor may have died between the journal's line and the signal,
    /// and init minds only the first one.
    fn remember(&mut self, id: TaskId, mut unfinished: Unfinished, now: Now) {
        let (event, era, stuck) = (unfinished.event, unfinished.era, unfinished.stuck.take());
        let origin = origin_of(&unfinished.request);
        let lease = unfinished.request.lease.clone();
        let under = lease.as_ref().and(origin.master.as_ref());
        let renewed = under.is_some_and(|master| self.leases.rejoin(master));
        let phase = phase_of(unfinished, now, self.grace);
        if matches!(phase, Phase::Stopping { .. }) {
            self.deeds.push_back((id, Deed::Terminate));
        }
        self.insert(Task { id, origin, phase }, event, era, lease, renewed);
        if let Some(living) = self.living.get_mut(&id).filter(|_| stuck.is_some()) {
            living.told.stuck = stuck;
            (self.held_up, self.cut_off) = (true, true);
        }
    }

    fn insert(&mut self, task: Task, event: EventNumber, era: usize, lease: Option<TaskLease>, renewed: bool) {
        let share = task.spec().map(Share::of).unwrap_or_default();
        self.used = self.used.plus(share);
        self.key_of(&task.origin, task.id);
        self.by_event.insert(event, task.id);
        self.deadlines.extend(task.next_deadline().map(|deadline| (deadline, task.id)));
        self.living.insert(task.id, Living { told: task.report(event), task, share, era, lease, renewed });
    }

    fn key_of(&mut self, origin: &TaskOrigin, id: TaskId) {
        self.keys.extend(attempt_key(origin).map(|key| (key, id)));
    }

    /// What this node has and is.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// So many things of ours have no owner.
    pub fn note_leaks(&mut self, leaks: u64) {
        if leaks > self.node.leaks {
            log::warn!("{leaks} cgroups or container folders have no owner; hint: berth-supervisor doctor --leaks");
        }
        self.node.leaks = leaks;
    }

    /// What is not given to a task.
    pub fn free(&self) -> Share {
        self.node.total.minus(self.used)
    }

    /// What `GET /resource` tells.
    pub fn resource(&self, now: Now) -> NodeResource {
        let refused = self.check_journal().and_then(|()| self.node.check_disk()).err();
        let closed = refused.map(|refusal| refusal.message).or_else(|| self.why_held_up());
        self.node.resource(self.free(), self.living.len(), closed, now)
    }

    /// What would hold up one more task as well. It would be taken all the same: whoever asks may have no other node.
    fn why_held_up(&self) -> Option<String> {
        let waiting =
            self.held_up.then(|| self.to_launch.iter().find_map(|id| self.living.get(id)?.told.stuck.as_ref()));
        Some(format!("its next task is held up: {}", waiting??))
    }

    /// How many tasks have not ended.
    pub fn living(&self) -> usize {
        self.living.len()
    }

    /// The tasks that have not ended, with the era of their latest init.
    pub fn survivors(&self) -> impl Iterator<Item = (&Task, usize)> {
        self.living.values().map(|living| (&living.task, living.era))
    }

    /// The last change that was told.
    pub fn last_event(&self) -> EventNumber {
        self.last_event
    }

    /// The highest task id ever given out here.
    pub fn last_task(&self) -> TaskId {
        self.last_task
    }

    /// What may be told of a task.
    pub fn report(&self, id: TaskId) -> Option<&TaskReport> {
        self.living.get(&id).map(|living| &living.told).or_else(|| self.ended.get(&id))
    }

    /// What a task runs, as long as it has not ended.
    pub fn spec(&self, id: TaskId) -> Option<&JobSpec> {
        self.living.get(&id)?.task.spec()
    }

    /// Which attempt of which job it is.
    pub fn origin(&self, id: TaskId) -> Option<&TaskOrigin> {
        self.living.get(&id).map(|living| &living.task.origin)
    }

    /// Every task whose latest change came after `after`, oldest change first.
    pub fn changes_after(&self, after: EventNumber) -> Vec<TaskReport> {
        let later = self.by_event.range((Bound::Excluded(after), Bound::Unbounded));
        later.filter_map(|(_, id)| self.report(*id)).cloned().collect()
    }

    /// A create of a time before this boot may have been taken then, and a power cut may have taken what was known of it:
    /// whoever sends it again is to look first. Whoever does not say of what time it is knows of no boots.
    pub fn check_boot(&self, boot: Option<&BootId>) -> Result<(), Refusal> {
        match boot.filter(|boot| **boot != self.node.boot) {
            Some(boot) => {
                let message = format!(
                    "this node's machine was booted since boot {boot}; hint: ask for all of its tasks, and again what is \
                     missing"
                );
                Err(Refusal::new(RefusalCode::Stale, message))
            }
            None => Ok(()),
        }
    }

    /// Takes a task on, or finds the one that an earlier asking for the same attempt started.
    ///
    /// An attempt that was refused stays refused: a master that heard of it has made another attempt, here or elsewhere, and
    /// a copy of the create that comes late, out of a connection that was given up, must not begin the old one beside it. A
    /// master that has not heard of it asks again, hears it now, and goes on from there. No connection outlives this process,
    /// so neither need its memory.
    pub fn create(&mut self, request: TaskRequest, now: Now) -> Result<TaskId, Refusal> {
        let key = request.key();
        if let Some(known) = key.as_ref().and_then(|key| self.keys.get(key)) {
            return Ok(*known);
        }
        if let Some(refusal) = key.as_ref().and_then(|key| self.refused.get(key)) {
            return Err(refusal.clone());
        }
        self.take_on(request, now).inspect_err(|refusal| self.remember_refused(key, refusal))
    }

    fn remember_refused(&mut self, key: Option<AttemptKey>, refusal: &Refusal) {
        // The others are refused again by themselves, or are to be asked again with what has changed meanwhile.
        let Some(key) = key.filter(|_| matches!(refusal.code, RefusalCode::NoRoom | RefusalCode::Impossible)) else {
            return;
        };
        self.refused.insert(key.clone(), refusal.clone());
        self.refused_in_order.push_back(key);
        if self.refused_in_order.len() > MAX_REFUSED
            && let Some(oldest) = self.refused_in_order.pop_front()
        {
            self.refused.remove(&oldest);
        }
    }

    fn take_on(&mut self, request: TaskRequest, now: Now) -> Result<TaskId, Refusal> {
        self.check_new(&request)?;
        let origin = origin_of(&request);
        let spec = request.clone().into_spec()?;
        self.node.check(&spec)?;
        self.check_journal()?;
        self.node.check_disk()?;
        self.check_room(&spec)?;
        let lease = request.lease.clone();
        self.begin_lease(lease.as_ref(), &origin, now)?;
        let (id, event) = (TaskId(self.last_task.0 + 1), EventNumber(self.last_event.0 + 1));
        if let Err(why) = self.write_accepted(&Record::Accepted { task: id, event, request: Box::new(request) }) {
            self.end_lease(lease.as_ref(), &origin);
            return Err(self.close(why, now));
        }
        (self.last_task, self.last_event) = (id, event);
        if let (Some(master), Some(job)) = (&origin.master, origin.job_id) {
            self.masters.heard_of(master, job);
        }
        let renewed = lease.is_some();
        self.insert(Task::accept(id, origin, spec), event, self.eras.len().saturating_sub(1), lease, renewed);
        self.to_launch.push_back(id);
        Ok(id)
    }

    /// The stamp that came with the task is known to its init, whichever supervisor launches it.
    fn begin_lease(&mut self, lease: Option<&TaskLease>, origin: &TaskOrigin, now: Now) -> Result<(), Refusal> {
        let Some(lease) = lease else { return Ok(()) };
        let heard = self.leases.check(lease, origin.master.as_ref(), now.since_boot)?;
        let Some(master) = &origin.master else { return Ok(()) };
        let joined = self.leases.join(master, heard);
        joined.map_err(|error| self.close(format!("cannot write the leases of master {master}: {error}"), now))
    }

    /// Takes nothing until it can be written down: a node that only refuses looks free, and would be asked without end.
    fn close(&mut self, why: String, now: Now) -> Refusal {
        log::error!("{why}; no task is taken until it can");
        self.note_unwritable(why.clone(), now);
        Refusal::new(RefusalCode::NoRoom, why)
    }

    fn note_unwritable(&mut self, why: String, now: Now) {
        self.unwritable = Some(why);
        self.write_again = Some(now.instant + WRITE_AGAIN);
    }

    fn end_lease(&mut self, lease: Option<&TaskLease>, origin: &TaskOrigin) {
        if let Some((_, master)) = lease.zip(origin.master.as_ref()) {
            self.leases.leave(master);
        }
    }

    /// A master has given back a stamp of ours. What has run out is not renewed: once it runs a task's init sees to that, but
    /// one that waits for its launch has none, and its job may be tried elsewhere by now.
    pub fn renew(&mut self, master: &InstanceId, stamp: &Stamp, now: Now) -> Result<(), BadInput> {
        for id in self.lapsed(master, now) {
            self.apply(id, Event::LaunchFailed(Reason::LeaseOver), now);
        }
        self.leases.hear(master, stamp, now.since_boot)
    }

    /// Tasks of this master that wait for their launch, and whose lease has run out.
    fn lapsed(&self, master: &InstanceId, now: Now) -> Vec<TaskId> {
        let waits = |living: &Living| living.waits_for_launch() && living.task.origin.master.as_ref() == Some(master);
        let over = |id: &TaskId| {
            self.terms(*id).is_some_and(|terms| terms.newest.saturating_add(terms.length) <= now.since_boot)
        };
        self.living.iter().filter(|(_, living)| waits(living)).map(|(id, _)| *id).filter(over).collect()
    }

    /// What a task's init is to be told of its lease, if it has one.
    pub fn terms(&self, id: TaskId) -> Option<Terms> {
        let living = self.living.get(&id)?;
        self.leases.terms(living.lease.as_ref()?, living.task.origin.master.as_ref())
    }

    /// A master sends an attempt again only while it does not know its end; this one told us that it did.
    fn check_new(&self, request: &TaskRequest) -> Result<(), Refusal> {
        let Some(key) = request.key().filter(|key| self.masters.has_run(key)) else { return Ok(()) };
        let message = format!(
            "attempt {} of job {} has run here and its end was acknowledged; was the master's database put back from \
             an older copy?",
            key.attempt, key.job
        );
        Err(Refusal::new(RefusalCode::AlreadyRun, message))
    }

    /// A master says up to which number it has given out jobs.
    pub fn hear_of(&mut self, master: &InstanceId, job: JobId) {
        let record = Record::HeardOf { master: master.clone(), job };
        // A journal that cannot be written says so by itself, and the master says this again.
        if self.masters.is_news(master, job) && self.append_aside(&record).is_ok() {
            self.masters.heard_of(master, job);
        }
    }

    /// Whether a master is listened to: not once a later term of it has spoken.
    pub fn listen_to(&mut self, speaker: &Speaker) -> Result<(), Refusal> {
        let latest = self.masters.term_of(&speaker.master);
        if speaker.term < latest {
            let message = format!(
                "term {} of the master {} is over: term {latest} of it has spoken here; another master has taken its \
                 place, or an older copy of its state dir is in use",
                speaker.term, speaker.master
            );
            return Err(Refusal::new(RefusalCode::Superseded, message));
        }
        if speaker.term > latest {
            self.masters.spoke(speaker);
            // A journal that cannot be written says so by itself. Until this process ends it is remembered all the same,
            // and the next one hears it with the master's first call.
            let _ = self.append_aside(&Record::Term { master: speaker.master.clone(), term: speaker.term });
        }
        Ok(())
    }

    /// What is remembered of a master beyond its tasks; the ends it has acknowledged only where it asks for all.
    pub fn remembered(&self, master: &InstanceId, all: bool) -> Option<Remembered> {
        self.masters.remembered(master, all)
    }

    fn check_room(&self, spec: &JobSpec) -> Result<(), Refusal> {
        let (asked, free) = (Share::of(spec), self.free());
        if asked.fits_in(free) {
            return Ok(());
        }
        let message = format!(
            "{} CPUs and {} MiB are asked, {} CPUs and {} MiB are free",
            asked.cpu, asked.mem_mib, free.cpu, free.mem_mib
        );
        Err(Refusal::new(RefusalCode::NoRoom, message))
    }

    /// The room for its end is taken together with the task.
    fn write_accepted(&mut self, record: &Record) -> Result<(), String> {
        let room = self.room_for_ends() + BYTES_A_TASK;
        self.journal.append_and_reserve(record, room).map_err(|error| self.note(error))
    }

    fn room_for_ends(&self) -> u64 {
        self.living.len() as u64 * BYTES_A_TASK
    }

    fn check_journal(&self) -> Result<(), Refusal> {
        self.unwritable.as_ref().map_or(Ok(()), |why| Err(Refusal::new(RefusalCode::NoRoom, why)))
    }

    /// Asks a task to end. One that has ended stays as it is.
    pub fn kill(&mut self, id: TaskId, now: Now) -> Result<(), Refusal> {
        if self.report(id).is_none() {
            return Err(Refusal::new(RefusalCode::NotFound, format!("there is no task {id} on this node")));
        }
        self.apply(id, Event::KillRequested { grace: self.grace }, now);
        Ok(())
    }

    /// Something has happened to a task.
    pub fn apply(&mut self, id: TaskId, event: Event, now: Now) {
        let Some(living) = self.living.remove(&id) else { return };
        if let Some(deadline) = living.task.next_deadline() {
            self.deadlines.remove(&(deadline, id));
        }
        let era = if matches!(event, Event::Launched(_)) { self.eras.len().saturating_sub(1) } else { living.era };
        let (task, actions) = living.task.step(event, now);
        self.deadlines.extend(task.next_deadline().map(|deadline| (deadline, id)));
        self.living.insert(id, Living { task, era, ..living });
        self.perform(id, actions, now);
    }

    /// Performs actions in order. From the first one that the journal refuses, they wait.
    fn perform(&mut self, id: TaskId, actions: Vec<Action>, now: Now) {
        let mut waiting = false;
        for action in actions {
            let journaled = matches!(action, Action::Write(_) | Action::Tell(_));
            waiting = waiting || (journaled && !self.parked.is_empty());
            if !waiting && let Err(message) = self.carry_out(id, &action) {
                log::error!("{message}; trying again until it can");
                self.note_unwritable(message, now);
                waiting = true;
            }
            if waiting {
                self.parked.push_back((id, action));
            }
        }
    }

    fn carry_out(&mut self, id: TaskId, action: &Action) -> Result<(), String> {
        let deed = match action {
            Action::Write(change) => return self.write(id, change, self.last_event),
            Action::Tell(change) => return self.tell(id, change),
            Action::Queue => Deed::ClearForLaunch,
            Action::SayGo => Deed::SayGo,
            Action::Terminate => Deed::Terminate,
            Action::Kill => Deed::Kill,
            Action::CallStuck => Deed::LookWhy,
            Action::Release => Deed::Release,
        };
        self.deeds.push_back((id, deed));
        Ok(())
    }

    fn write(&mut self, id: TaskId, change: &Change, event: EventNumber) -> Result<(), String> {
        let Some(living) = self.living.get(&id) else { return Ok(()) };
        let record = match change {
            Change::Launched(init) => Record::Launched { task: id, pid: init.pid, start_time: init.start_time },
            Change::NeverRan => Record::NeverRan { task: id },
            Change::KillRequested => Record::KillRequested { task: id },
            Change::Started(at) => Record::Started { task: id, event, at: *at },
            Change::Ended => Record::Ended { report: Box::new(living.task.report(event)) },
        };
        self.append(&record)
    }

    /// Says what holds a task up, or that nothing does any more. What cannot be written down is not told: whoever looked
    /// looks again.
    pub fn call_stuck(&mut self, id: TaskId, why: Option<&str>) {
        match (self.tell_stuck(id, why), why) {
            (true, Some(why)) => log::error!("task {id} is stuck: {why}; it keeps its share"),
            (true, None) => log::info!("task {id} is not stuck any more"),
            (false, _) => {}
        }
    }

    /// Says what holds up all tasks that wait for their launch, or that nothing does any more. To be said again and again,
    /// since others come to wait.
    pub fn hold_up(&mut self, why: Option<&str>) {
        if why.is_none() && !self.held_up {
            return;
        }
        let waiting = |id: &TaskId| self.living.get(id).is_some_and(Living::waits_for_launch);
        self.to_launch.retain(waiting);
        let is_news = |id: &TaskId| self.living.get(id).is_some_and(|living| living.told.stuck.as_deref() != why);
        self.tell_all_stuck(Vec::from_iter(self.to_launch.iter().copied().filter(is_news)), why);
        let mut waiting = self.to_launch.iter().filter_map(|id| self.living.get(id));
        self.held_up = waiting.any(|living| living.told.stuck.is_some());
    }

    /// Says of all tasks that run what cuts off their output, where it goes to the share, or that nothing does any more. To be
    /// said again and again, since others come to run.
    pub fn cut_off(&mut self, why: Option<&str>, is_on_share: impl Fn(TaskId) -> bool) {
        if why.is_none() && !self.cut_off {
            return;
        }
        let runs = |living: &Living| matches!(living.task.phase, Phase::Running { .. });
        let running = self.living.iter().filter(|(_, living)| runs(living) && living.told.stuck.as_deref() != why);
        self.tell_all_stuck(running.map(|(id, _)| *id).filter(|id| is_on_share(*id)).collect(), why);
        self.cut_off = self.living.values().any(|living| runs(living) && living.told.stuck.is_some());
    }

    /// What the journal does not take of one it will not take of the others either.
    fn tell_all_stuck(&mut self, news: Vec<TaskId>, why: Option<&str>) {
        for id in news {
            if !self.tell_stuck(id, why) {
                break;
            }
        }
    }

    /// True: that is news, and was told.
    fn tell_stuck(&mut self, id: TaskId, why: Option<&str>) -> bool {
        let Some(living) = self.living.get(&id).filter(|living| living.told.stuck.as_deref() != why) else {
            return false;
        };
        let event = EventNumber(self.last_event.0 + 1);
        let why = why.map(str::to_owned);
        let report = TaskReport { stuck: why.clone(), event, ..living.told.clone() };
        let told = self.parked.is_empty() && self.append_aside(&Record::Stuck { task: id, event, why }).is_ok();
        if told {
            self.publish(report);
        }
        told
    }

    /// A change becomes public: numbered, written, and from then on part of what may be told.
    fn tell(&mut self, id: TaskId, change: &Change) -> Result<(), String> {
        let event = EventNumber(self.last_event.0 + 1);
        self.write(id, change, event)?;
        let Some(living) = self.living.get(&id) else { return Ok(()) };
        log::debug!("task {id}: {}", living.task.status());
        // It moved, so it is not stuck, or not where it was. A start that is written late is told as a start: that the task
        // has ended meanwhile the journal may not have yet.
        let report = match change {
            Change::Started(at) => {
                TaskReport { event, status: State::Running, started_at: *at, stuck: None, ..living.told.clone() }
            }
            Change::Launched(_) | Change::KillRequested | Change::NeverRan | Change::Ended => living.task.report(event),
        };
        self.publish(report);
        if matches!(change, Change::Ended)
            && let Some(living) = self.living.remove(&id)
        {
            self.used = self.used.minus(living.share);
            self.end_lease(living.lease.as_ref().filter(|_| living.renewed), &living.task.origin);
            self.keep_ended(living.told);
            self.forget_beyond_the_cap();
        }
        Ok(())
    }

    /// The journal has it: from now on this is what is told of a task that lives.
    fn publish(&mut self, report: TaskReport) {
        self.last_event = report.event;
        if let Some(living) = self.living.get_mut(&report.task_id) {
            self.by_event.remove(&living.told.event);
            self.by_event.insert(report.event, report.task_id);
            living.told = report;
        }
    }

    fn append(&mut self, record: &Record) -> Result<(), String> {
        self.journal.append(record).map_err(|error| self.note(error))
    }

    /// Writes what no task's end has paid for, and may come any number of times: never into the room for ends.
    fn append_aside(&mut self, record: &Record) -> Result<(), String> {
        let room = self.room_for_ends();
        self.journal.append_and_reserve(record, room).map_err(|error| self.note(error))
    }

    /// Keeps the error that ends this supervisor; the others can be waited out.
    fn note(&mut self, error: JournalError) -> String {
        let message = error.to_string();
        if matches!(error, JournalError::Sync { .. }) {
            self.lost_journal = Some(error);
        }
        message
    }

    fn keep_ended(&mut self, report: TaskReport) {
        self.by_event.insert(report.event, report.task_id);
        self.ended_by_event.insert(report.event, report.task_id);
        self.ended.insert(report.task_id, report);
    }

    fn forget_beyond_the_cap(&mut self) {
        while self.ended.len() > MAX_ENDED {
            let Some((_, &task)) = self.ended_by_event.first_key_value() else { return };
            if self.append(&Record::Forgotten { task }).is_err() {
                // One more in memory does no harm; the next end tries again.
                return;
            }
            self.forget(task);
            if !std::mem::replace(&mut self.forgot_unheard, true) {
                log::warn!("no master asks for ended tasks; beyond {MAX_ENDED} the oldest are forgotten");
            }
        }
    }

    fn forget(&mut self, id: TaskId) {
        let Some(report) = self.ended.remove(&id) else { return };
        self.by_event.remove(&report.event);
        self.ended_by_event.remove(&report.event);
        if let Some(key) = attempt_key(&report.key) {
            self.keys.remove(&key);
        }
    }

    /// A master has heard of everything up to `after`: what had ended by then is forgotten. Answers
    /// from where it should be told on. A number never given out was another node's, or this one's
    /// before its disk was lost: it acknowledges nothing, and all is told anew.
    ///
    /// A master speaks for its own tasks alone: what another has yet to hear is kept for it.
    pub fn acknowledge(&mut self, after: EventNumber, master: Option<&InstanceId>) -> EventNumber {
        if after > self.last_event {
            return EventNumber(0);
        }
        let mut heard: Vec<TaskId> = self.ended_by_event.range(..=after).map(|(_, id)| *id).collect();
        heard.retain(|id| self.ended.get(id).is_some_and(|report| report.key.master.as_ref() == master));
        let record = Record::Acknowledged { after, master: master.cloned() };
        if !heard.is_empty() && self.append(&record).is_ok() {
            for id in heard {
                if let Some(report) = self.ended.get(&id) {
                    self.masters.acknowledged(&report.key, report.event);
                }
                self.forget(id);
            }
        }
        after
    }

    /// The next task to launch, oldest first. None while the journal cannot be written: a launch that
    /// cannot be written down must not happen.
    pub fn next_launch(&mut self) -> Option<TaskId> {
        if !self.parked.is_empty() {
            return None;
        }
        while let Some(id) = self.to_launch.pop_front() {
            if self.living.get(&id).is_some_and(Living::waits_for_launch) {
                return Some(id);
            }
        }
        None
    }

    /// Whether [`TaskTable::next_launch`] has one.
    pub fn has_launches(&self) -> bool {
        self.parked.is_empty() && !self.to_launch.is_empty()
    }

    /// Puts a task into the queue that an earlier supervisor accepted and may have begun to launch.
    pub fn launch_again(&mut self, id: TaskId) {
        self.deeds.push_back((id, Deed::ClearForLaunch));
    }

    /// Puts a task into the queue.
    pub fn queue(&mut self, id: TaskId) {
        self.to_launch.push_back(id);
    }

    /// The next deed to do.
    pub fn next_deed(&mut self) -> Option<(TaskId, Deed)> {
        self.deeds.pop_front()
    }

    /// When [`TaskTable::expire`] must be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of_tasks = self.deadlines.first().map(|(deadline, _)| *deadline);
        of_tasks.into_iter().chain(self.write_again).min()
    }

    /// Deadlines have passed.
    pub fn expire(&mut self, now: Now) {
        while let Some(&(_, id)) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now.instant) {
            self.apply(id, Event::DeadlinePassed, now);
        }
        if self.write_again.is_some_and(|again| again <= now.instant) {
            match self.write_parked().and_then(|()| self.probe()) {
                Ok(()) => {
                    (self.unwritable, self.write_again) = (None, None);
                    log::info!("the journal can be written again");
                }
                Err(why) => self.note_unwritable(why, now),
            }
        }
    }

    fn write_parked(&mut self) -> Result<(), String> {
        while let Some((id, action)) = self.parked.pop_front() {
            if let Err(why) = self.carry_out(id, &action) {
                self.parked.push_front((id, action));
                return Err(why);
            }
        }
        Ok(())
    }

    /// Whether one more task could be written down.
    fn probe(&mut self) -> Result<(), String> {
        let room = self.room_for_ends() + BYTES_A_TASK;
        self.journal.probe(room).map_err(|error| self.note(error))?;
        self.leases.probe().map_err(|error| format!("cannot write the leases: {error}"))
    }

    /// Why this supervisor must stop: what it wrote may not be on disk.
    pub fn take_lost_journal(&mut self) -> Option<JournalError> {
        self.lost_journal.take()
    }

    /// The sweeper could not sync the journal.
    pub fn lose_journal(&mut self) {
        self.lost_journal = Some(self.journal.sync_failed());
    }

    /// The journal, for the sweeper to sync.
    pub fn journal_mut(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Rewrites a journal that has grown far beyond what is remembered.
    pub fn compact_if_grown(&mut self) {
        if self.journal.wants_compaction() && self.parked.is_empty() {
            // A disk too full for a second file has said so; there is no harm in the long one.
            if let Err(message) = self.compact() {
                log::warn!("{message}; the journal stays as long as it is");
            }
        }
    }

    /// Rewrites the journal as what is remembered now.
    pub fn compact(&mut self) -> Result<(), String> {
        let (records, room) = (self.records(), self.room_for_ends());
        self.journal.compact(&records, room).map_err(|error| self.note(error))
    }

    /// What is remembered, as records. An old era's start stands before the tasks launched in it.
    fn records(&self) -> Vec<Record> {
        let ours = self.eras.len().saturating_sub(1);
        let mut records = Vec::new();
        for (index, era) in self.eras.iter().enumerate() {
            let mut of_era = self.living.values().filter(|living| living.era == index).peekable();
            if of_era.peek().is_some() || index == ours {
                records.push(self.start_of(era));
                records.extend(of_era.flat_map(records_of));
            }
        }
        records.extend(self.masters.records());
        records.extend(self.ended.values().map(|report| Record::Ended { report: Box::new(report.clone()) }));
        records
    }

    fn start_of(&self, era: &Era) -> Record {
        Record::Start {
            boot: era.boot.clone(),
            bases: era.bases.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            last_task: self.last_task,
            last_event: self.last_event,
        }
    }
}

fn origin_of(request: &TaskRequest) -> TaskOrigin {
    TaskOrigin { job_id: request.job_id, attempt: request.attempt, master: request.master.clone() }
}

fn attempt_key(origin: &TaskOrigin) -> Option<AttemptKey> {
    Some(AttemptKey { master: origin.master.clone(), job: origin.job_id?, attempt: origin.attempt? })
}

/// Where in its life an unfinished task is when nobody has looked at it yet.
fn phase_of(unfinished: Unfinished, now: Now, grace: Duration) -> Phase {
    let spec = Box::new(unfinished.request.into_known_spec());
    match (unfinished.launched, unfinished.started) {
        (None, _) => Phase::Accepted { spec },
        (Some(init), started) if unfinished.kill_requested => {
            let start = started.map_or(Start::NotYet, Start::Since);
            Phase::stopping(spec, init, start, grace, now)
        }
        (Some(init), Some(since)) => Phase::Running { spec, init, since },
        (Some(init), None) => Phase::Launched { spec, init },
    }
}

fn records_of(living: &Living) -> Vec<Record> {
    let (id, event) = (living.task.id, living.told.event);
    let Some(spec) = living.task.spec() else { return Vec::new() };
    let request = TaskRequest::from_origin(spec.clone(), living.task.origin.clone()).under(living.lease.clone());
    let request = Box::new(request);
    let mut records = vec![Record::Accepted { task: id, event, request }];
    if let Some(init) = living.task.init() {
        records.push(Record::Launched { task: id, pid: init.pid, start_time: init.start_time });
    }
    match &living.task.phase {
        Phase::Running { since, .. } => records.push(Record::Started { task: id, event, at: *since }),
        Phase::Stopping { start, .. } => {
            if let Start::Since(at) = start {
                records.push(Record::Started { task: id, event, at: *at });
            }
            records.push(Record::KillRequested { task: id });
        }
        Phase::Accepted { .. } | Phase::Launched { .. } | Phase::Ended { .. } => {}
    }
    if let Some(why) = &living.told.stuck {
        records.push(Record::Stuck { task: id, event, why: Some(why.clone()) });
    }
    records
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::lease;
    use crate::node::tests::{node, spec};
    use crate::scratch::Scratch;
    use crate::task::{Init, Outcome};
    use std::path::Path;
    use wire::{Attempt, InstanceId, JobId};

    const GRACE: Duration = Duration::from_secs(5);
    const INIT: Init = Init { pid: 7, start_time: 8 };

    /// A table on a journal and an image folder of its own.
    pub struct Fixture {
        pub table: TaskTable,
        scratch: Scratch,
    }

    impl Fixture {
        pub fn new(name: &str) -> Fixture {
            let scratch = Scratch::new(name);
            Fixture { table: table_in(scratch.path()), scratch }
        }

        /// The same journal read by the next supervisor.
        fn restart(&mut self) {
            self.table = table_in(self.scratch.path());
        }

        fn create(&mut self) -> TaskId {
            self.table.create(request(None), Now::read()).unwrap()
        }

        fn launch(&mut self, id: TaskId) {
            assert_eq!(self.table.next_launch(), Some(id));
            self.table.apply(id, Event::Launched(INIT), Now::read());
        }

        fn end(&mut self, id: TaskId) {
            self.table.apply(id, Event::InitExited(finished()), Now::read());
        }

        fn deeds(&mut self) -> Vec<(TaskId, Deed)> {
            std::iter::from_fn(|| self.table.next_deed()).collect()
        }

        fn status(&self, id: TaskId) -> State {
            self.table.report(id).unwrap().status
        }

        #[track_caller]
        fn check_room_for_one_end(&self) {
            let journal = std::fs::metadata(self.scratch.join("journal")).unwrap();
            let blocks = std::os::unix::fs::MetadataExt::blocks(&journal);
            assert!(blocks * 512 >= journal.len() + BYTES_A_TASK, "{blocks} blocks for {} bytes", journal.len());
        }

        /// The sums agree with the tables they are sums of.
        fn check_sanity(&self) {
            let table = &self.table;
            let used = table.living.values().fold(Share::default(), |sum, living| sum.plus(living.share));
            assert_eq!(table.used, used);
            assert_eq!(table.by_event.len(), table.living.len() + table.ended.len());
            assert_eq!(table.ended_by_event.len(), table.ended.len());
            assert!(table.by_event.iter().all(|(event, id)| table.report(*id).unwrap().event == *event));
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                self.check_sanity();
            }
        }
    }

    fn table_in(folder: &Path) -> TaskTable {
        let node = node(&folder.join("img"));
        let (journal, records) = Journal::open(&folder.join("journal")).unwrap();
        let mut history = History::replay(records);
        history.begin_era(Era { boot: node.boot.clone(), bases: crate::cgroup::Bases::default() });
        let leases = Leases::open(&folder.join("leases"), &node.boot).unwrap();
        let mut table = TaskTable::new(node, GRACE, journal, history, leases, Now::read());
        table.compact().unwrap();
        table
    }

    fn request(attempt: Option<u32>) -> TaskRequest {
        let origin =
            TaskOrigin { job_id: attempt.map(|_| JobId(1)), attempt: attempt.map(Attempt), master: Some(master()) };
        TaskRequest::from_origin(spec("1", 400, "busybox", ""), origin)
    }

    fn master() -> InstanceId {
        InstanceId("m".into())
    }

    fn finished() -> Outcome {
        Outcome {
            status: State::Finished,
            cause: None,
            exit_code: Some(0),
            started_at: None,
            ended_at: Now::read().wall,
            cpu: None,
            memory_peak_bytes: None,
        }
    }

    #[test]
    fn what_a_task_is_stuck_on_is_told_once_and_until_it_moves_and_its_number_outlives_us() {
        let mut it = Fixture::new("table-stuck");
        let id = it.create();
        it.launch(id);
        let told = it.table.last_event();
        let why = |it: &Fixture| it.table.report(id).unwrap().stuck.clone();
        for _ in 0..2 {
            it.table.call_stuck(id, Some("waits for a server"));
        }
        assert_eq!((why(&it), it.table.last_event().0), (Some("waits for a server".into()), told.0 + 1));
        assert_eq!(it.table.changes_after(told).len(), 1);
        it.restart();
        assert_eq!(it.table.last_event().0, told.0 + 1);
        it.table.call_stuck(id, Some("waits for another"));
        it.table.apply(id, Event::Started(None), Now::read());
        assert_eq!((why(&it), it.status(id)), (None, State::Running));
        it.end(id);
        it.table.call_stuck(id, Some("too late"));
        assert_eq!((why(&it), it.status(id)), (None, State::Finished));
    }

    #[test]
    fn what_holds_up_the_launches_is_told_of_each_that_waits_and_taken_back_when_nothing_does_any_more() {
        let mut it = Fixture::new("table-held-up");
        let (launched, killed) = (it.create(), it.create());
        it.launch(launched);
        it.table.hold_up(Some("no share"));
        it.table.kill(killed, Now::read()).unwrap();
        let waiting = it.create();
        let before = it.table.last_event();
        for _ in 0..2 {
            it.table.hold_up(Some("no share"));
        }
        let why = |it: &Fixture, id| it.table.report(id).unwrap().stuck.clone();
        let told = [launched, killed, waiting].map(|id| why(&it, id));
        assert_eq!(told, [None, None, Some("no share".to_owned())]);
        assert_eq!(it.table.changes_after(before).len(), 1);
        let closed = |it: &Fixture| it.table.resource(Now::read()).closed;
        assert_eq!(closed(&it).as_deref(), Some("its next task is held up: no share"));
        it.table.journal.fail_writes(true);
        it.table.hold_up(None);
        assert!(why(&it, waiting).is_some(), "what is not written is not told");
        it.table.journal.fail_writes(false);
        for _ in 0..2 {
            it.table.hold_up(None);
        }
        assert_eq!((why(&it, waiting), closed(&it), it.table.last_event().0), (None, None, before.0 + 2));
        assert_eq!(it.table.next_launch(), Some(waiting));
    }

    #[test]
    fn what_cuts_off_output_is_told_of_each_that_runs_on_the_share_and_taken_back() {
        let mut it = Fixture::new("table-cut-off");
        let [on_share, elsewhere] = [it.create(), it.create()];
        for id in [on_share, elsewhere] {
            it.launch(id);
            it.table.apply(id, Event::Started(None), Now::read());
        }
        let before = it.table.last_event();
        for _ in 0..2 {
            it.table.cut_off(Some("no share"), |id| id != elsewhere);
        }
        let why = |it: &Fixture| [on_share, elsewhere].map(|id| it.table.report(id).unwrap().stuck.clone());
        assert_eq!(why(&it), [Some("no share".to_owned()), None]);
        assert_eq!((it.status(on_share), it.table.last_event().0), (State::Running, before.0 + 1));
        for _ in 0..2 {
            it.table.cut_off(None, |_| true);
        }
        assert_eq!((why(&it), it.table.last_event().0), ([None, None], before.0 + 2));
    }

    #[test]
    fn what_was_told_to_hold_a_task_up_is_taken_back_by_the_next_supervisor_too() {
        let mut it = Fixture::new("table-told-before");
        let id = it.create();
        it.launch(id);
        it.table.apply(id, Event::Started(None), Now::read());
        it.table.cut_off(Some("no share"), |_| true);
        let told = it.table.last_event();
        for _ in 0..2 {
            it.restart();
            it.table.compact().unwrap();
            assert_eq!(it.table.report(id).unwrap().stuck.as_deref(), Some("no share"));
        }
        it.table.cut_off(None, |_| true);
        let after: Vec<_> = it.table.changes_after(told).into_iter().map(|report| report.stuck).collect();
        assert_eq!(after, [None], "a master that has heard of it hears that it is over");
    }

    #[test]
    fn once_all_that_wait_are_killed_there_is_nothing_to_launch() {
        let mut it = Fixture::new("table-none-waits");
        let id = it.create();
        it.table.hold_up(Some("no share"));
        it.table.kill(id, Now::read()).unwrap();
        it.table.hold_up(Some("no share"));
        assert!(!it.table.has_launches() && it.table.resource(Now::read()).closed.is_none());
    }

    #[test]
    fn what_does_not_fit_now_is_refused_until_something_ends() {
        let mut it = Fixture::new("room");
        let first = it.create();
        it.create();
        let refusal = it.table.create(request(None), Now::read()).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::NoRoom);
        assert_eq!(refusal.message, "1 CPUs and 400 MiB are asked, 0 CPUs and 200 MiB are free");
        it.launch(first);
        it.end(first);
        it.create();
    }

    #[test]
    fn the_same_attempt_is_the_same_task_even_when_the_node_is_full_and_after_a_restart() {
        let mut it = Fixture::new("same");
        let first = it.table.create(request(Some(1)), Now::read()).unwrap();
        let second = it.table.create(request(Some(2)), Now::read()).unwrap();
        assert_ne!(first, second);
        assert_eq!(it.table.create(request(Some(1)), Now::read()), Ok(first));
        it.restart();
        assert_eq!(it.table.create(request(Some(2)), Now::read()), Ok(second));
        it.table.kill(second, Now::read()).unwrap();
        assert_eq!(it.table.create(request(Some(2)), Now::read()), Ok(second));
    }

    #[test]
    fn an_attempt_that_was_refused_stays_refused_and_the_next_one_is_taken() {
        let mut it = Fixture::new("refused");
        let first = it.create();
        it.create();
        let refusal = it.table.create(request(Some(1)), Now::read()).unwrap_err();
        it.launch(first);
        it.end(first);
        assert_eq!(it.table.create(request(Some(1)), Now::read()), Err(refusal), "a late copy");
        let second = it.table.create(request(Some(2)), Now::read()).unwrap();
        assert_eq!(it.table.create(request(Some(2)), Now::read()), Ok(second));
        let mut of_no_image = request(Some(3));
        of_no_image.image_id = "added-later".parse().unwrap();
        assert_eq!(it.table.create(of_no_image, Now::read()).unwrap_err().code, RefusalCode::Impossible);
        it.table.kill(second, Now::read()).unwrap();
        assert_eq!(it.table.create(request(Some(3)), Now::read()).unwrap_err().code, RefusalCode::Impossible);
        it.table.create(request(Some(4)), Now::read()).unwrap();
    }

    #[test]
    fn an_attempt_with_a_stale_stamp_is_taken_with_a_new_one() {
        let mut it = Fixture::new("stale-then-taken");
        let (now, boot) = (Now::read(), it.table.node().boot.clone());
        let mut ask = |stamped| {
            let lease = TaskLease { ms: 60_000, heard: lease::stamp(&boot, stamped) };
            it.table.create(request(Some(1)).under(Some(lease)), now).map_err(|refusal| refusal.code)
        };
        assert_eq!(ask(now.since_boot + Duration::from_secs(1)), Err(RefusalCode::Stale));
        assert_eq!(ask(now.since_boot), Ok(TaskId(1)));
    }

    #[test]
    fn no_more_refused_attempts_are_remembered_than_the_last_ones() {
        let mut it = Fixture::new("refused-many");
        let first = it.create();
        let second = it.create();
        for attempt in 0..=u32::try_from(MAX_REFUSED).unwrap() {
            assert!(it.table.create(request(Some(attempt)), Now::read()).is_err());
        }
        assert_eq!((it.table.refused.len(), it.table.refused_in_order.len()), (MAX_REFUSED, MAX_REFUSED));
        for id in [first, second] {
            it.table.kill(id, Now::read()).unwrap();
        }
        assert!(it.table.create(request(Some(1)), Now::read()).is_err());
        it.table.create(request(Some(0)), Now::read()).unwrap();
    }

    #[test]
    fn a_lease_that_ran_out_before_the_launch_is_not_renewed() {
        let mut it = Fixture::new("lapsed");
        let (now, boot) = (Now::read(), it.table.node().boot.clone());
        let lease = TaskLease { ms: 60_000, heard: lease::stamp(&boot, now.since_boot) };
        let waits = it.table.create(request(Some(1)).under(Some(lease)), now).unwrap();
        let unleased = it.table.create(request(Some(2)), now).unwrap();
        let after = |seconds| Now { since_boot: now.since_boot + Duration::from_secs(seconds), ..now };
        let mut hear = |seconds| {
            let at = after(seconds);
            it.table.renew(&master(), &lease::stamp(&boot, at.since_boot), at).unwrap();
            it.table.report(waits).unwrap().cause.clone()
        };
        assert_eq!([hear(50), hear(100)], [None, None]);
        assert_eq!(hear(161), Some(Reason::LeaseOver));
        assert_eq!(it.table.report(unleased).unwrap().cause, None);
    }

    #[test]
    fn a_lease_is_known_to_the_next_supervisor_and_ends_with_its_task() {
        let mut it = Fixture::new("lease");
        let boot = it.table.node().boot.clone();
        let now = Now { since_boot: Duration::from_secs(100), ..Now::read() };
        let lease = TaskLease { ms: 60_000, heard: lease::stamp(&boot, now.since_boot) };
        let id = it.table.create(request(Some(1)).under(Some(lease.clone())), now).unwrap();
        let unleased = it.table.create(request(Some(2)), now).unwrap();
        let later = Now { since_boot: Duration::from_secs(150), ..now };
        it.table.renew(&master(), &lease::stamp(&boot, later.since_boot), later).unwrap();
        for _ in 0..2 {
            let terms = it.table.terms(id).unwrap();
            assert_eq!((terms.newest, terms.length), (later.since_boot, Duration::from_secs(60)));
            assert_eq!(it.table.terms(unleased), None);
            it.restart();
        }
        it.table.kill(id, now).unwrap();
        assert_eq!(it.table.create(request(Some(1)).under(Some(lease.clone())), later), Ok(id), "the same attempt");
        let stale = it.table.create(request(Some(3)).under(Some(lease)), later).unwrap_err();
        assert_eq!(stale.code, RefusalCode::Stale);
        assert!(!it.scratch.join("leases/m").exists());
    }

    #[test]
    fn a_task_whose_lease_could_not_be_taken_over_ends_nobody_elses() {
        let mut it = Fixture::new("lease-not-over");
        let (now, boot) = (Now::read(), it.table.node().boot.clone());
        let lease = || Some(TaskLease { ms: 60_000, heard: lease::stamp(&boot, now.since_boot) });
        let old = it.table.create(request(Some(1)).under(lease()), now).unwrap();
        // What stands in the way of its master's file.
        let file = it.scratch.join("leases/m");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        it.restart();
        std::fs::remove_dir(&file).unwrap_or_default();
        it.table.create(request(Some(2)).under(lease()), now).unwrap();
        it.table.kill(old, now).unwrap();
        assert!(file.is_file(), "the file of a task that lives is gone");
    }

    #[test]
    fn a_create_without_attempt_always_starts_a_new_task() {
        let mut it = Fixture::new("new");
        assert_ne!(it.create(), it.create());
    }

    #[test]
    fn the_journal_knows_init_before_init_is_told_to_go() {
        let mut it = Fixture::new("go");
        let id = it.create();
        it.launch(id);
        let lines = std::fs::read_to_string(it.scratch.join("journal")).unwrap();
        assert!(lines.ends_with("{\"record\":\"launched\",\"task\":1,\"pid\":7,\"startTime\":8}\n"), "{lines}");
        assert_eq!(it.deeds(), [(id, Deed::SayGo)]);
    }

    #[test]
    fn a_task_survives_restarts_in_every_phase() {
        let mut it = Fixture::new("phases");
        let (running, stopping) = (it.create(), it.create());
        it.launch(running);
        it.table.apply(running, Event::Started(Some(Now::read().wall)), Now::read());
        it.launch(stopping);
        it.table.kill(stopping, Now::read()).unwrap();
        for _ in 0..2 {
            let before: Vec<_> = it.table.changes_after(EventNumber(0));
            let restarted = Instant::now();
            it.restart();
            assert_eq!(it.table.changes_after(EventNumber(0)), before);
            assert_eq!((it.status(running), it.status(stopping)), (State::Running, State::Assigned));
            let left = it.table.next_deadline().expect("the kill's deadline was forgotten") - restarted;
            assert!(left > GRACE, "init is killed while it records: {left:?}");
            assert_eq!(it.deeds(), [(stopping, Deed::Terminate)]);
        }
        it.end(running);
        it.restart();
        assert_eq!(it.status(running), State::Finished);
    }

    #[test]
    fn the_next_supervisor_has_room_for_the_ends_of_all_that_live_before_it_accepts_anything() {
        let mut it = Fixture::new("ends");
        it.create();
        it.create();
        it.restart();
        let journal = std::fs::metadata(it.scratch.join("journal")).unwrap();
        let blocks = std::os::unix::fs::MetadataExt::blocks(&journal);
        assert!(blocks * 512 >= journal.len() + 2 * BYTES_A_TASK, "{blocks} blocks for {} bytes", journal.len());
    }

    #[test]
    fn however_often_is_told_what_holds_a_task_up_there_is_room_for_its_end() {
        let mut it = Fixture::new("table-room-beside");
        it.create();
        for cause in 0..1_000 {
            it.table.hold_up(Some(&format!("the share is away for the {cause}th time, and hangs or is not mounted")));
        }
        it.check_room_for_one_end();
    }

    #[test]
    fn however_often_a_master_says_where_it_is_there_is_room_for_the_end_of_a_task() {
        let mut it = Fixture::new("table-room-masters");
        it.create();
        // Each more than is reserved in one step.
        (1..=3_000).for_each(|number| it.table.hear_of(&master(), JobId(number)));
        it.check_room_for_one_end();
        for number in 1..=3_000 {
            it.table.listen_to(&Speaker { master: master(), term: wire::Term(number) }).unwrap();
        }
        it.check_room_for_one_end();
    }

    #[test]
    fn an_accepted_task_is_launched_by_the_next_supervisor_once_it_is_put_in_the_queue() {
        let mut it = Fixture::new("accepted");
        let id = it.create();
        it.restart();
        assert_eq!(it.table.survivors().count(), 1);
        it.table.queue(id);
        assert_eq!(it.table.next_launch(), Some(id));
    }

    #[test]
    fn a_task_killed_before_its_launch_is_never_launched() {
        let mut it = Fixture::new("early");
        let id = it.create();
        it.table.kill(id, Now::read()).unwrap();
        assert_eq!(it.status(id), State::Killed);
        assert_eq!(it.table.next_launch(), None);
        assert_eq!(it.table.free(), it.table.node().total);
    }

    #[test]
    fn killing_twice_is_fine_and_killing_nobody_is_not_found() {
        let mut it = Fixture::new("twice");
        let id = it.create();
        it.launch(id);
        it.table.kill(id, Now::read()).unwrap();
        it.table.kill(id, Now::read()).unwrap();
        assert_eq!(it.deeds(), [(id, Deed::SayGo), (id, Deed::Terminate)]);
        assert_eq!(it.table.kill(TaskId(99), Now::read()).unwrap_err().code, RefusalCode::NotFound);
    }

    #[test]
    fn acknowledging_an_end_forgets_the_task_but_not_one_that_lives() {
        let mut it = Fixture::new("acknowledge");
        let (ended, alive) = (it.create(), it.create());
        it.launch(ended);
        it.end(ended);
        let last = it.table.last_event();
        assert_eq!(it.table.acknowledge(EventNumber(last.0 - 1), Some(&master())), EventNumber(last.0 - 1));
        assert!(it.table.report(ended).is_some());
        it.table.acknowledge(last, Some(&master()));
        assert!(it.table.report(ended).is_none() && it.table.report(alive).is_some());
        it.restart();
        assert!(it.table.report(ended).is_none() && it.table.report(alive).is_some());
        assert_eq!(it.table.last_event(), last);
    }

    #[test]
    fn an_attempt_whose_end_was_acknowledged_is_not_run_again_not_even_after_restarts() {
        let mut it = Fixture::new("again");
        let id = it.table.create(request(Some(1)), Now::read()).unwrap();
        it.launch(id);
        it.end(id);
        assert_eq!(it.table.create(request(Some(1)), Now::read()), Ok(id), "nobody has heard of its end");
        it.table.acknowledge(it.table.last_event(), Some(&master()));
        for _ in 0..3 {
            let refusal = it.table.create(request(Some(1)), Now::read()).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::AlreadyRun);
            assert!(refusal.message.contains("attempt 1 of job 1"), "{}", refusal.message);
            // The first replays what was written, the next what was compacted.
            it.restart();
        }
        it.table.create(request(Some(2)), Now::read()).unwrap();
    }

    #[test]
    fn the_highest_job_of_a_master_is_remembered_across_restarts_and_written_once() {
        let mut it = Fixture::new("highest");
        it.table.create(request(Some(1)), Now::read()).unwrap();
        it.table.hear_of(&master(), JobId(57));
        let lines = || std::fs::read_to_string(it.scratch.join("journal")).unwrap().lines().count();
        let before = lines();
        it.table.hear_of(&master(), JobId(57));
        it.table.hear_of(&master(), JobId(5));
        assert_eq!(lines(), before);
        for _ in 0..2 {
            assert_eq!(it.table.remembered(&master(), true).unwrap().last_job, JobId(57));
            it.restart();
        }
    }

    #[test]
    fn one_master_cannot_acknowledge_for_another() {
        let mut it = Fixture::new("two-masters");
        let id = it.create();
        it.launch(id);
        it.end(id);
        let last = it.table.last_event();
        for stranger in [None, Some(InstanceId("another".into()))] {
            it.table.acknowledge(last, stranger.as_ref());
            assert!(it.table.report(id).is_some(), "{stranger:?}");
        }
        it.restart();
        assert!(it.table.report(id).is_some());
        it.table.acknowledge(last, Some(&master()));
        assert!(it.table.report(id).is_none());
    }

    #[test]
    fn a_number_that_was_never_given_out_acknowledges_nothing() {
        let mut it = Fixture::new("stranger");
        let id = it.create();
        it.launch(id);
        it.end(id);
        assert_eq!(it.table.acknowledge(EventNumber(1_000_000), Some(&master())), EventNumber(0));
        assert!(it.table.report(id).is_some());
    }

    #[test]
    fn beyond_the_cap_the_oldest_ended_task_is_forgotten() {
        let mut it = Fixture::new("cap");
        for _ in 0..=MAX_ENDED {
            let id = it.create();
            it.table.kill(id, Now::read()).unwrap();
        }
        assert_eq!(it.table.ended.len(), MAX_ENDED);
        assert!(it.table.report(TaskId(1)).is_none() && it.table.report(TaskId(2)).is_some());
    }

    #[test]
    fn while_the_journal_cannot_be_written_nothing_is_told_accepted_or_launched_and_then_all_is_in_order() {
        let mut it = Fixture::new("full");
        let (id, waiting) = (it.create(), it.create());
        it.launch(id);
        let last = it.table.last_event();
        it.table.journal.fail_writes(true);
        it.end(id);
        assert_eq!((it.status(id), it.table.last_event()), (State::Assigned, last));
        assert_eq!(it.table.next_launch(), None);
        it.table.kill(waiting, Now::read()).unwrap();
        assert_eq!(it.table.create(request(None), Now::read()).unwrap_err().code, RefusalCode::NoRoom);
        it.table.journal.fail_writes(false);
        let later = Now { instant: Instant::now() + WRITE_AGAIN, ..Now::read() };
        it.table.expire(later);
        assert_eq!((it.status(id), it.status(waiting)), (State::Finished, State::Killed));
        assert_eq!(it.deeds(), [(id, Deed::SayGo), (id, Deed::Release), (waiting, Deed::Release)]);
        it.restart();
        assert_eq!((it.status(id), it.status(waiting)), (State::Finished, State::Killed));
    }

    #[test]
    fn a_start_that_is_written_late_is_told_as_a_start_while_the_end_is_not_written() {
        let mut it = Fixture::new("late-start");
        let id = it.create();
        it.launch(id);
        it.table.journal.fail_writes(true);
        it.table.apply(id, Event::Started(None), Now::read());
        it.end(id);
        it.table.journal.fail_writes(false);
        let (first, start) = it.table.parked.pop_front().unwrap();
        it.table.carry_out(first, &start).unwrap();
        assert_eq!(it.status(id), State::Running);
        it.restart();
        assert_eq!(it.status(id), State::Running, "as the journal has it");
    }

    #[test]
    fn a_node_that_could_not_write_down_a_task_is_closed_and_says_why_until_it_could() {
        let mut it = Fixture::new("closed");
        it.table.journal.fail_writes(true);
        let refusal = it.table.create(request(Some(1)), Now::read()).unwrap_err();
        assert!(refusal.message.starts_with("cannot write to the journal "), "{}", refusal.message);
        it.is_closed_until_written(&refusal, |it| it.table.journal.fail_writes(false));
        it.create();
    }

    #[test]
    fn a_node_that_could_not_write_a_lease_is_closed_and_says_why_until_it_could() {
        let mut it = Fixture::new("closed-lease");
        let folder = it.scratch.join("leases");
        std::fs::rename(&folder, it.scratch.join("away")).unwrap();
        let lease = TaskLease { ms: 60_000, heard: lease::stamp(&it.table.node().boot, Now::read().since_boot) };
        let refusal = it.table.create(request(Some(1)).under(Some(lease)), Now::read()).unwrap_err();
        assert!(refusal.message.starts_with("cannot write the leases of master m: "), "{}", refusal.message);
        it.is_closed_until_written(&refusal, |_| std::fs::create_dir(&folder).unwrap());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "the trial has left something");
    }

    impl Fixture {
        /// It says `refusal` of itself, to a second create too, and until the first trial after `mend`.
        fn is_closed_until_written(&mut self, refusal: &Refusal, mend: impl FnOnce(&mut Fixture)) {
            assert_eq!(refusal.code, RefusalCode::NoRoom);
            assert_eq!(self.table.create(request(None), Now::read()).unwrap_err(), *refusal);
            let again = |it: &mut Fixture| {
                let instant = it.table.next_deadline().expect("it is not tried again");
                it.table.expire(Now { instant, ..Now::read() });
                it.table.resource(Now::read()).closed
            };
            assert_eq!(self.table.resource(Now::read()).closed.as_ref(), Some(&refusal.message));
            assert!(again(self).is_some_and(|why| why.contains("cannot write")));
            mend(self);
            assert_eq!((again(self), self.table.next_deadline()), (None, None));
        }
    }

    #[test]
    fn a_kill_goes_out_even_when_the_journal_cannot_be_written() {
        let mut it = Fixture::new("killfull");
        let id = it.create();
        it.launch(id);
        it.table.journal.fail_writes(true);
        it.table.kill(id, Now::read()).unwrap();
        assert_eq!(it.deeds(), [(id, Deed::SayGo), (id, Deed::Terminate)]);
        it.table.journal.fail_writes(false);
    }
}
