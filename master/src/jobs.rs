//! The one owner of the jobs: a thread that takes messages, writes what they change, and only then tells anyone.
//!
//! A turn: drain all messages that wait, apply them in memory, place what can be placed, write what has changed in one
//! transaction, then send the replies and the orders to the nodes. It never speaks HTTP and never waits for anything but
//! its messages and the disk. What to make of a piece of news is decided in `life.rs`, who goes where in `scheduler.rs`;
//! here it is carried out.
//!
//! Only jobs that have not ended are in memory. Memory is never ahead of the database between two turns: if a turn
//! cannot be committed, its replies are dropped (the waiting requests answer with an error), all is read from the
//! database again, and what the nodes said in that turn is asked for again. After a failed write or sync, when the disk
//! itself is in doubt, the process stops.
//!
//! A turn in which something was promised to somebody (a submission, a kill), decided (a placement) or heard for the last
//! time (an end, which the node forgets once it is acknowledged) is on the disk before it is told. That a job got its
//! number or runs is only written: if the machine fails, the node tells it again.
//!
//! # Killed at any point
//!
//! | the master dies | what is known | so, after its restart |
//! |---|---|---|
//! | before a submission is committed | nothing | the submitter got no answer; there is no job |
//! | after it, before the reply | the job | it runs; the submitter, without an answer, may look or submit again |
//! | after a placement is committed, before or after the create | `Pending[A]`, no task | the same create is sent again; (master, job, attempt) is answered with the same task |
//! | after the create was answered, before that is committed | the same | the same |
//! | before a `no_room` is committed | the same | the same create is sent again; whichever way it is answered is true |
//! | after a `no_room` is committed | `Pending[ ]`, the attempt counted | the next placement is another attempt: a key is never used for two tasks |
//! | before an event is committed | the older state | it was not acknowledged, so the node tells it again |
//! | after it, before the acknowledgement | the newer state | the node tells it again, and it changes nothing |
//! | after a kill is committed, before or after the node heard | `kill_asked` | the kill is sent until the end is known |
//!
//! After a restart each node is first asked for all the tasks it remembers (a roll call), and until it has answered it is
//! sent nothing. An ended task is forgotten by its node only once its end was acknowledged, that is committed here; so a job
//! whose task number we know and whose task the node does not know has ended unseen: `Failed: lost`. Only jobs numbered
//! before the roll call was sent are judged by it, for a later create may overtake the answer. A node that comes back with
//! another instance id has lost its state dir: all it had is lost, numbered or not, since a create may have been running there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use jiff::{Timestamp, Unit};
use wire::node::{Answer, Created, Events, NodeResource, Refusal, RefusalCode};
use wire::task::TaskRequest;
use wire::{Attempt, BadInput, EventNumber, InstanceId, JobId, JobSpec, NodeId, State, TaskId};

use crate::job::{Job, Node};
use crate::life::{self, Change, News};
use crate::nodes::{Member, Now, Whose};
use crate::poller::{Heard, Order, Said};
use crate::scheduler::{Need, Scheduler, check_possible};
use crate::store::{Changes, Kept, KeptNode, KeptRef, Store, StoreError};

/// How long a node keeps a poll while it has nothing to tell.
const LONG_POLL: Duration = Duration::from_secs(25);
/// The most messages one transaction covers.
const MAX_TURN: usize = 4096;
/// How long a node that turned a job away is left alone before it is asked what is free.
const AFTER_NO_ROOM: Duration = Duration::from_secs(1);
/// How long after a failed create or kill the node is looked at again.
const AFTER_A_FAILED_CALL: Duration = Duration::from_millis(250);
/// How long after a turn that could not be committed the nodes are asked to say it again.
const AFTER_A_FAILED_COMMIT: Duration = Duration::from_secs(1);
/// Between the first polls of two nodes: a thousand connects at once overflow listen queues.
const STAGGER: Duration = Duration::from_millis(1);

/// What the owner is told or asked. A reply that never comes means that it could not be written down.
#[derive(Debug)]
pub(crate) enum Message {
    /// Take these jobs, all or none.
    Submit {
        /// Checked by themselves already.
        specs: Vec<JobSpec>,
        /// The jobs as they stand after the commit, or which one no node could ever run.
        reply: Sender<Result<Vec<Job>, RefusedJob>>,
    },
    /// End this job.
    Kill {
        /// Which.
        job: JobId,
        /// The job as it stands after the commit; `None`: there is none.
        reply: Sender<Option<Job>>,
    },
    /// Say how the nodes are.
    Nodes {
        /// All of them, by number.
        reply: Sender<Vec<Node>>,
    },
    /// Say why a job waits.
    Why {
        /// Which.
        job: JobId,
        /// A sentence; `None`: it does not wait.
        reply: Sender<Option<String>>,
    },
    /// A node said something.
    Heard(Box<Heard>),
    /// Stop after this turn.
    Stop,
}

/// A job of a list that was refused, and so the whole list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefusedJob {
    /// Which of the list, from 0.
    pub(crate) index: usize,
    /// Why.
    pub(crate) bad: BadInput,
}

/// A call to the job's node, so that it is not made twice at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// None is under way.
    Idle,
    /// It was asked to start it.
    Creating,
    /// It was asked to kill it.
    Killing,
    /// It took the kill; the end will come as an event.
    KillTaken,
}

/// A job that has not ended.
#[derive(Debug)]
struct Active {
    job: Job,
    kill_asked: bool,
    call: Call,
}

impl Active {
    fn kept(&self) -> KeptRef<'_> {
        KeptRef { job: &self.job, kill_asked: self.kill_asked }
    }
}

/// What a turn has gathered for after its commit.
#[derive(Debug, Default)]
struct Turn {
    /// Submitted in this turn.
    added: Vec<JobId>,
    /// Changed in this turn.
    changed: BTreeSet<JobId>,
    /// Nodes of which more was heard.
    followed: BTreeSet<NodeId>,
    /// Whether it must be on the disk before it is told.
    durable: bool,
    replies: Vec<Reply>,
    orders: Vec<Order>,
    /// Placed in this turn, or to be sent again.
    to_create: BTreeMap<NodeId, Vec<JobId>>,
    /// Nodes of which more or less may be free now.
    touched: BTreeSet<NodeId>,
    /// Jobs that ended in this turn.
    ended: BTreeMap<JobId, Active>,
}

#[derive(Debug)]
enum Reply {
    Submitted(Vec<JobId>, Sender<Result<Vec<Job>, RefusedJob>>),
    Killed(JobId, Sender<Option<Job>>),
}

/// A submission that no node could run by what the nodes last said of their images. They are asked again before it is
/// refused: an image may have been added just now.
#[derive(Debug)]
struct Doubted {
    specs: Vec<JobSpec>,
    reply: Sender<Result<Vec<Job>, RefusedJob>>,
    /// Who has not answered yet.
    asked: BTreeSet<NodeId>,
}

/// The nodes as configured.
#[derive(Debug, Clone)]
pub(crate) struct Nodes {
    /// Number and address of each.
    pub(crate) addrs: Vec<(NodeId, String)>,
    /// A node silent for so long is lost.
    pub(crate) time_out: Duration,
}

/// The owner. See the head of this file.
pub(crate) struct Owner {
    store: Store,
    instance: InstanceId,
    nodes: Nodes,
    next_id: JobId,
    active: BTreeMap<JobId, Active>,
    members: BTreeMap<NodeId, Member>,
    scheduler: Scheduler,
    doubted: Vec<Doubted>,
    turn: Turn,
}

/// Runs the owner until it is told to stop or the database fails for good. `carry_out` sends orders to the poller.
pub(crate) fn run(
    mut owner: Owner,
    messages: &Receiver<Message>,
    mut carry_out: impl FnMut(Vec<Order>),
) -> Result<(), StoreError> {
    carry_out(owner.first_orders());
    while let Ok(first) = messages.recv() {
        let batch: Vec<Message> = std::iter::once(first).chain(messages.try_iter()).take(MAX_TURN).collect();
        let stop = batch.iter().any(|message| matches!(message, Message::Stop));
        let orders = owner.turn(batch, Now::read())?;
        if !orders.is_empty() {
            carry_out(orders);
        }
        if stop {
            break;
        }
    }
    Ok(())
}

impl Owner {
    /// Reads what was active when the last master stopped.
    pub(crate) fn new(store: Store, nodes: Nodes, now: Now) -> Result<Owner, StoreError> {
        let instance = store.instance()?;
        let members = nodes.addrs.iter().map(|(id, addr)| (*id, Member::new(*id, addr.clone(), now))).collect();
        let (active, scheduler, doubted, turn) = Default::default();
        let mut owner = Owner { store, instance, nodes, next_id: JobId(0), active, members, scheduler, doubted, turn };
        owner.read_active(now)?;
        Ok(owner)
    }

    /// Fills memory from the database. Nodes keep what they last said, not what they hold.
    fn read_active(&mut self, now: Now) -> Result<(), StoreError> {
        self.next_id = self.store.next_id()?;
        for KeptNode { id, instance, acknowledged } in self.store.nodes()? {
            if let Some(member) = self.members.get_mut(&id) {
                member.follow(instance, acknowledged);
            }
        }
        for Kept { job, kill_asked } in self.store.active()? {
            match job.placed {
                None => self.scheduler.wait(job.id, Need::of(&job.spec)),
                Some(placed) => {
                    let member = self.members.entry(placed.node).or_insert_with(|| {
                        log::warn!("job {} is on node {}, which is not configured", job.id, placed.node);
                        Member::stray(placed.node, now)
                    });
                    member.hold(job.id, Need::of(&job.spec).amount());
                }
            }
            self.active.insert(job.id, Active { job, kill_asked, call: Call::Idle });
        }
        Ok(())
    }

    /// The first roll call of every node.
    pub(crate) fn first_orders(&mut self) -> Vec<Order> {
        let ids: Vec<NodeId> = self.nodes.addrs.iter().map(|(id, _)| *id).collect();
        let mut delay = Duration::ZERO;
        for node in ids {
            self.order_roll_call(node, delay);
            delay += STAGGER;
        }
        std::mem::take(&mut self.turn.orders)
    }

    /// One turn. Returns the orders that follow from what is now committed; an error is the end.
    pub(crate) fn turn(&mut self, messages: Vec<Message>, now: Now) -> Result<Vec<Order>, StoreError> {
        let unheard: Vec<(NodeId, bool)> = messages.iter().filter_map(who_speaks).collect();
        self.apply(messages, now);
        match self.write() {
            Ok(()) => Ok(self.speak()),
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => {
                log::error!("nothing of the last {} messages was kept: {error}", unheard.len());
                self.start_over(&unheard, now)
            }
        }
    }

    fn apply(&mut self, messages: Vec<Message>, now: Now) {
        for message in messages {
            match message {
                Message::Submit { specs, reply } => self.submit(specs, reply, now),
                Message::Kill { job, reply } => self.kill(job, reply, now),
                Message::Nodes { reply } => tell(&reply, self.shown()),
                Message::Why { job, reply } => tell(&reply, self.why(job)),
                Message::Heard(heard) => self.hear(*heard, now),
                Message::Stop => {}
            }
        }
        self.refresh_rooms();
        self.place(now);
    }

    /// Writes what this turn has changed, each job once.
    fn write(&self) -> Result<(), StoreError> {
        let turn = &self.turn;
        let find = |id: &JobId| self.active.get(id).or_else(|| turn.ended.get(id));
        let added: HashSet<&JobId> = turn.added.iter().collect();
        let changed = turn.changed.iter().filter(|id| !added.contains(id));
        self.store.write(&Changes {
            added: turn.added.iter().filter_map(find).map(Active::kept).collect(),
            changed: changed.filter_map(find).map(Active::kept).collect(),
            nodes: turn.followed.iter().filter_map(|node| self.members.get(node)?.kept()).collect(),
            durable: turn.durable,
        })
    }

    /// After the commit: the replies, then the orders.
    fn speak(&mut self) -> Vec<Order> {
        let turn = std::mem::take(&mut self.turn);
        let find = |id: &JobId| self.active.get(id).or_else(|| turn.ended.get(id)).map(|active| active.job.clone());
        for reply in turn.replies {
            match reply {
                Reply::Submitted(ids, reply) => tell(&reply, Ok(ids.iter().filter_map(find).collect())),
                Reply::Killed(id, reply) => tell(&reply, find(&id)),
            }
        }
        let mut orders = turn.orders;
        for (node, jobs) in turn.to_create {
            orders.push(self.create_order(node, &jobs));
        }
        orders
    }

    fn create_order(&self, node: NodeId, jobs: &[JobId]) -> Order {
        let jobs = jobs.iter().filter_map(|id| Some(&self.active.get(id)?.job));
        let request = |job: &Job| TaskRequest::new(job.spec.clone(), job.id, job.attempt, self.instance.clone());
        Order::Create { node, tasks: jobs.map(request).collect() }
    }

    /// The turn failed: whatever is in memory and not in the database is dropped, and asked for again.
    fn start_over(&mut self, unheard: &[(NodeId, bool)], now: Now) -> Result<Vec<Order>, StoreError> {
        self.turn = Turn::default();
        self.doubted.clear();
        self.active.clear();
        self.scheduler = Scheduler::default();
        for member in self.members.values_mut() {
            member.release_all();
        }
        self.read_active(now)?;
        self.turn.touched = self.members.keys().copied().collect();
        self.refresh_rooms();
        for (node, polled) in unheard {
            if *polled {
                self.order_roll_call(*node, AFTER_A_FAILED_COMMIT);
            } else {
                self.order_ask(*node, AFTER_A_FAILED_COMMIT);
            }
        }
        Ok(std::mem::take(&mut self.turn.orders))
    }

    // What users ask.

    fn submit(&mut self, specs: Vec<JobSpec>, reply: Sender<Result<Vec<Job>, RefusedJob>>, now: Now) {
        match self.check_possible(&specs) {
            Ok(()) => self.accept(specs, reply, now),
            Err(refused) if refused.bad.field == "imageId" => self.doubt(specs, reply, now),
            Err(refused) => tell(&reply, Err(refused)),
        }
    }

    fn doubt(&mut self, specs: Vec<JobSpec>, reply: Sender<Result<Vec<Job>, RefusedJob>>, now: Now) {
        let answering = self.members.iter().filter(|(_, member)| member.room().is_some());
        let asked: BTreeSet<NodeId> = answering.map(|(node, _)| *node).collect();
        for node in &asked {
            self.order_ask(*node, Duration::ZERO);
        }
        self.doubted.push(Doubted { specs, reply, asked });
        self.settle_doubts(None, now);
    }

    /// A node has said what images it has now, or cannot.
    fn settle_doubts(&mut self, heard: Option<NodeId>, now: Now) {
        for doubted in &mut self.doubted {
            doubted.asked.retain(|node| Some(*node) != heard);
        }
        let settled: Vec<Doubted> = self.doubted.extract_if(.., |doubted| doubted.asked.is_empty()).collect();
        for Doubted { specs, reply, .. } in settled {
            match self.check_possible(&specs) {
                Ok(()) => self.accept(specs, reply, now),
                Err(refused) => tell(&reply, Err(refused)),
            }
        }
    }

    fn accept(&mut self, specs: Vec<JobSpec>, reply: Sender<Result<Vec<Job>, RefusedJob>>, now: Now) {
        let submitted_at = to_the_millisecond(now.wall);
        let ids: Vec<JobId> = specs.into_iter().map(|spec| self.add(spec, submitted_at)).collect();
        self.turn.added.extend(&ids);
        self.turn.durable = true;
        self.turn.replies.push(Reply::Submitted(ids, reply));
    }

    fn add(&mut self, spec: JobSpec, submitted_at: Timestamp) -> JobId {
        let id = self.next_id;
        self.next_id = JobId(id.0 + 1);
        self.scheduler.wait(id, Need::of(&spec));
        let job = Job::submitted(id, spec, submitted_at);
        self.active.insert(id, Active { job, kill_asked: false, call: Call::Idle });
        id
    }

    /// Refuses what no node could ever run, where that can be known: every node has told what it has.
    fn check_possible(&self, specs: &[JobSpec]) -> Result<(), RefusedJob> {
        let configured = self.nodes.addrs.iter().filter_map(|(id, _)| self.members.get(id));
        let told: Option<Vec<&NodeResource>> = configured.map(Member::resource).collect();
        let Some(told) = told.filter(|told| !told.is_empty()) else { return Ok(()) };
        let mut possible: HashSet<Need> = HashSet::new();
        for (index, spec) in specs.iter().enumerate() {
            let need = Need::of(spec);
            if !possible.contains(&need) {
                check_possible(spec, &told).map_err(|bad| RefusedJob { index, bad })?;
                possible.insert(need);
            }
        }
        Ok(())
    }

    fn kill(&mut self, id: JobId, reply: Sender<Option<Job>>, now: Now) {
        if self.active.contains_key(&id) || self.turn.ended.contains_key(&id) {
            self.change(id, News::KillAsked, now);
            return self.turn.replies.push(Reply::Killed(id, reply));
        }
        match self.store.job(id) {
            Ok(kept) => tell(&reply, kept.map(|kept| kept.job)),
            Err(error) => log::error!("{error}"),
        }
    }

    fn shown(&self) -> Vec<Node> {
        self.members.values().map(Member::shown).collect()
    }

    fn why(&self, id: JobId) -> Option<String> {
        let job = &self.active.get(&id)?.job;
        match job.status {
            State::Pending => Some(self.scheduler.why_waiting(id, &job.spec, &self.shown())),
            State::Assigned => {
                let member = self.members.get(&job.placed?.node)?;
                let (node, addr) = (job.placed?.node, member.shown().addr);
                Some(match member.trouble() {
                    Some(trouble) => format!("given to node {node} at {addr}, which does not answer: {trouble}"),
                    None => format!("given to node {node} at {addr}, which has not started it yet"),
                })
            }
            State::Running | State::Finished | State::Timeout | State::Failed | State::Killed => None,
        }
    }

    // What nodes say.

    fn hear(&mut self, Heard { node, said }: Heard, now: Now) {
        if !self.members.contains_key(&node) {
            return;
        }
        self.turn.touched.insert(node);
        match said {
            Said::Events { after, answer: Ok(events) } => self.hear_events(node, after, events, now),
            Said::Events { answer: Err(why), .. } => self.hear_silence(node, &why, now),
            Said::Created { tasks, answer } => self.hear_created(node, &tasks, answer, now),
            Said::Killed { job, task, answer } => self.hear_killed(node, job, task, answer, now),
            Said::Free { answer } => {
                self.hear_free(node, answer, now);
                self.settle_doubts(Some(node), now);
            }
        }
    }

    fn hear_silence(&mut self, node: NodeId, why: &str, now: Now) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let (delay, lost_now) = member.failed(why, self.nodes.time_out, now);
        if lost_now {
            log::warn!("node {node} is lost: {why}");
        }
        self.order_poll(node, delay);
    }

    fn hear_events(&mut self, node: NodeId, after: EventNumber, events: Events, now: Now) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let resource = events.resource;
        if resource.node_id != node {
            let why = format!("it calls itself node {}; hint: start it with --node-id {node}", resource.node_id);
            self.hear_silence(node, &why, now);
            return;
        }
        let instance = resource.instance.clone();
        let stranger = member.whose(&instance) == Whose::Stranger;
        let went_back = events.last < after;
        if member.answered(resource, now) {
            log::info!("node {node} is ready");
        }
        if stranger {
            log::warn!("node {node} has another state dir than before; the tasks it had are lost");
            self.forget_all(node, now);
        }
        if after > EventNumber(0) && (stranger || went_back) {
            // These events were counted from a number of another history.
            self.follow_node(node, instance, EventNumber(0));
            self.order_roll_call(node, Duration::ZERO);
            return;
        }
        self.hear_reports(node, &events.events, now);
        self.follow_node(node, instance, events.last);
        self.order_poll(node, Duration::ZERO);
        self.call_again(node);
    }

    fn hear_reports(&mut self, node: NodeId, reports: &[wire::task::TaskReport], now: Now) {
        let mut missing = self.members.get_mut(&node).map(Member::end_roll_call).unwrap_or_default();
        for report in reports {
            let Some(job) = report.key.job_id.filter(|_| report.key.master.as_ref() == Some(&self.instance)) else {
                continue;
            };
            missing.remove(&job);
            self.change(job, News::Reported(node, report), now);
            let attempt = self.active.get(&job).map(|active| active.job.attempt);
            if let Some(member) = self.members.get_mut(&node).filter(|_| attempt == report.key.attempt) {
                member.count(job);
            }
        }
        for job in missing.into_iter().filter(|job| self.active.contains_key(job)).collect::<Vec<_>>() {
            log::warn!("node {node} knows nothing of job {job}; it is lost");
            self.change(job, News::Forgotten(node), now);
        }
    }

    fn forget_all(&mut self, node: NodeId, now: Now) {
        let jobs: Vec<JobId> = self.members.get(&node).map(|member| member.jobs().collect()).unwrap_or_default();
        for job in jobs {
            self.change(job, News::Forgotten(node), now);
        }
    }

    fn follow_node(&mut self, node: NodeId, instance: InstanceId, last: EventNumber) {
        let Some(member) = self.members.get_mut(&node) else { return };
        if member.followed() == Some((&instance, last)) {
            return;
        }
        member.follow(instance, last);
        self.turn.followed.insert(node);
    }

    fn hear_created(
        &mut self,
        node: NodeId,
        tasks: &[(JobId, Attempt)],
        answer: Result<Vec<Answer<Created>>, String>,
        now: Now,
    ) {
        for (job, attempt) in tasks {
            self.call_ended(*job, Some(*attempt), Call::Creating);
        }
        let answers = answer.and_then(|answers| {
            let whole = answers.len() == tasks.len();
            let short = || format!("{} tasks were asked for and {} answered", tasks.len(), answers.len());
            if whole { Ok(answers) } else { Err(short()) }
        });
        match answers {
            Ok(answers) => {
                for ((job, attempt), answer) in tasks.iter().zip(answers) {
                    self.hear_created_one(node, *job, *attempt, answer.into_result(), now);
                    self.call_kill(*job);
                }
            }
            Err(why) => {
                log::warn!("node {node} did not take {} jobs, they are sent again: {why}", tasks.len());
                self.order_ask(node, AFTER_A_FAILED_CALL);
            }
        }
    }

    fn hear_created_one(
        &mut self,
        node: NodeId,
        job: JobId,
        attempt: Attempt,
        answer: Result<Created, Refusal>,
        now: Now,
    ) {
        match answer {
            Ok(created) => self.change(job, News::Accepted(attempt, created.task_id), now),
            Err(Refusal { code: RefusalCode::NoRoom, .. }) => self.change(job, News::NoRoom(attempt), now),
            Err(refusal) => match refusal.code {
                RefusalCode::BadInput | RefusalCode::Impossible | RefusalCode::NotFound | RefusalCode::Unknown => {
                    self.change(job, News::Refused(attempt, &in_words(&refusal)), now);
                }
                _ => {
                    log::warn!("node {node} did not take job {job}, it is sent again: {}", refusal.message);
                    self.order_ask(node, AFTER_A_FAILED_CALL);
                }
            },
        }
    }

    fn hear_killed(
        &mut self,
        node: NodeId,
        job: JobId,
        task: TaskId,
        answer: Result<Result<(), Refusal>, String>,
        now: Now,
    ) {
        self.call_ended(job, None, Call::Killing);
        let Some(active) = self.active.get_mut(&job) else { return };
        let same = active.job.placed.is_some_and(|placed| placed.node == node && placed.task == Some(task));
        match answer {
            Ok(Ok(())) if same => active.call = Call::KillTaken,
            // The end of a task the node has forgotten was acknowledged, so committed; this job's was not.
            Ok(Err(Refusal { code: RefusalCode::NotFound, .. })) if same => {
                self.change(job, News::Forgotten(node), now);
            }
            Ok(Err(refusal)) if same => {
                log::warn!("node {node} did not kill task {task}, it is asked again: {}", refusal.message);
                self.order_ask(node, AFTER_A_FAILED_CALL);
            }
            Err(why) if same => {
                log::warn!("node {node} did not hear that task {task} is to be killed, it is asked again: {why}");
                self.order_ask(node, AFTER_A_FAILED_CALL);
            }
            Ok(_) | Err(_) => {}
        }
    }

    fn hear_free(&mut self, node: NodeId, answer: Result<NodeResource, String>, now: Now) {
        let Some(member) = self.members.get_mut(&node) else { return };
        member.asked_what_is_free = false;
        let acquainted = member.followed().is_some_and(|(instance, _)| {
            answer.as_ref().is_ok_and(|said| said.instance == *instance && said.node_id == node)
        });
        match answer {
            Ok(said) if acquainted => {
                member.answered(said, now);
                self.call_again(node);
            }
            // Somebody else answers there; the next events say who.
            Ok(_) => {}
            // While it does not answer at all the poll finds out when it does; this is for what only fails now and then.
            Err(_) if member.trouble().is_none() => self.order_ask(node, AFTER_NO_ROOM),
            Err(_) => {}
        }
    }

    // What follows from a change.

    /// Applies news to a job: what changes is written, and what follows from it done.
    fn change(&mut self, id: JobId, news: News<'_>, now: Now) {
        let Some(active) = self.active.get(&id) else { return };
        let Some(change) = life::change(&active.job, active.kill_asked, news, now.wall) else { return };
        let Some(active) = self.active.get_mut(&id) else { return };
        let before = active.job.placed.map(|placed| placed.node);
        let follow = Follow::of(&change);
        self.turn.changed.insert(id);
        self.turn.durable |= must_be_on_disk(&change);
        active.kill_asked |= change == Change::Dying;
        change.apply(&mut active.job);
        let need = Need::of(&active.job.spec);
        self.turn.touched.extend(before);
        match follow {
            Follow::Place(node) => self.place_on(node, id, &need),
            Follow::WaitAgain => self.take_back(before, id, need),
            Follow::KillIfAsked => self.call_kill(id),
            Follow::Leave => self.leave(before, id, &need),
        }
    }

    fn place_on(&mut self, node: NodeId, id: JobId, need: &Need) {
        if let Some(member) = self.members.get_mut(&node) {
            member.hold(id, need.amount());
        }
        if let Some(active) = self.active.get_mut(&id) {
            active.call = Call::Creating;
        }
        self.turn.to_create.entry(node).or_default().push(id);
    }

    fn take_back(&mut self, from: Option<NodeId>, id: JobId, need: Need) {
        if let Some((node, member)) = from.and_then(|node| Some((node, self.members.get_mut(&node)?))) {
            member.release(id);
            member.is_full();
            self.order_ask(node, AFTER_NO_ROOM);
        }
        self.scheduler.wait(id, need);
    }

    fn leave(&mut self, from: Option<NodeId>, id: JobId, need: &Need) {
        match from.and_then(|node| self.members.get_mut(&node)) {
            Some(member) => member.release(id),
            None => self.scheduler.forget(id, need),
        }
        self.scheduler.ended(id);
        self.turn.ended.extend(self.active.remove(&id).map(|active| (id, active)));
    }

    fn refresh_rooms(&mut self) {
        for node in std::mem::take(&mut self.turn.touched) {
            match self.members.get(&node).and_then(Member::room) {
                Some((said, free)) => self.scheduler.open(node, said, free),
                None => self.scheduler.close(node),
            }
        }
    }

    fn place(&mut self, now: Now) {
        for (job, node) in self.scheduler.place() {
            self.change(job, News::Placed(node), now);
        }
    }

    // Calls to nodes.

    /// Makes the calls that this node still owes us an answer to: creates that were not answered, kills not taken.
    fn call_again(&mut self, node: NodeId) {
        let jobs: Vec<JobId> = self.members.get(&node).map(|member| member.jobs().collect()).unwrap_or_default();
        for job in jobs {
            self.call_create(job);
            self.call_kill(job);
        }
    }

    /// Sends a create whose answer we do not have. The same key is answered with the same task.
    fn call_create(&mut self, id: JobId) {
        let Some(active) = self.active.get_mut(&id).filter(|active| active.call == Call::Idle) else { return };
        let unanswered = active.job.placed.filter(|placed| placed.task.is_none());
        if let Some(placed) = unanswered {
            active.call = Call::Creating;
            self.turn.to_create.entry(placed.node).or_default().push(id);
        }
    }

    fn call_kill(&mut self, id: JobId) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let due = active.kill_asked && active.call == Call::Idle;
        if let Some((node, task)) =
            active.job.placed.and_then(|placed| Some((placed.node, placed.task.filter(|_| due)?)))
        {
            active.call = Call::Killing;
            self.turn.orders.push(Order::Kill { node, job: id, task });
        }
    }

    fn call_ended(&mut self, id: JobId, attempt: Option<Attempt>, call: Call) {
        if let Some(active) = self.active.get_mut(&id) {
            let same = active.call == call && attempt.is_none_or(|attempt| attempt == active.job.attempt);
            if same {
                active.call = Call::Idle;
            }
        }
    }

    fn order_poll(&mut self, node: NodeId, delay: Duration) {
        let Some(member) = self.members.get(&node) else { return };
        // A roll call that was not answered is called again.
        if member.is_rolling() {
            return self.order_roll_call(node, delay);
        }
        let after = member.followed().map_or(EventNumber(0), |(_, after)| after);
        // From a node in trouble a sign of life is wanted at once, whether or not anything happened there.
        let wait = if member.trouble().is_none() { LONG_POLL } else { Duration::ZERO };
        self.turn.orders.push(Order::Poll { node, after, wait, delay });
    }

    fn order_roll_call(&mut self, node: NodeId, delay: Duration) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let numbered = |id: &JobId| {
            self.active.get(id).and_then(|active| active.job.placed).is_some_and(|placed| placed.task.is_some())
        };
        let numbered = member.jobs().filter(numbered).collect();
        member.call_the_roll(numbered);
        self.turn.orders.push(Order::Poll { node, after: EventNumber(0), wait: Duration::ZERO, delay });
    }

    fn order_ask(&mut self, node: NodeId, delay: Duration) {
        let Some(member) = self.members.get_mut(&node) else { return };
        if !std::mem::replace(&mut member.asked_what_is_free, true) {
            self.turn.orders.push(Order::Ask { node, delay });
        }
    }
}

/// What a change obliges us to, apart from writing it down.
#[derive(Debug, Clone, Copy)]
enum Follow {
    Place(NodeId),
    WaitAgain,
    KillIfAsked,
    Leave,
}

impl Follow {
    fn of(change: &Change) -> Follow {
        match change {
            Change::Assigned { node, .. } => Follow::Place(*node),
            Change::Returned => Follow::WaitAgain,
            Change::Numbered { .. } | Change::Started { .. } | Change::Dying => Follow::KillIfAsked,
            Change::Ended(_) => Follow::Leave,
        }
    }
}

/// Whether a change must be on the disk before anybody is told. The others are told again by the node.
fn must_be_on_disk(change: &Change) -> bool {
    match change {
        Change::Assigned { .. } | Change::Dying | Change::Ended(_) => true,
        Change::Numbered { .. } | Change::Started { .. } | Change::Returned => false,
    }
}

/// Whoever asked may have gone; that is their business.
fn tell<T>(reply: &Sender<T>, answer: T) {
    let _ = reply.send(answer);
}

/// Which node said something, and whether it was the answer to a poll.
fn who_speaks(message: &Message) -> Option<(NodeId, bool)> {
    match message {
        Message::Heard(heard) => Some((heard.node, matches!(heard.said, Said::Events { .. }))),
        _ => None,
    }
}

fn in_words(refusal: &Refusal) -> String {
    match &refusal.field {
        Some(field) => format!("{field}: {}", refusal.message),
        None => refusal.message.clone(),
    }
}

/// What users see is not more precise than they can use.
fn to_the_millisecond(time: Timestamp) -> Timestamp {
    time.round(Unit::Millisecond).unwrap_or(time)
}

#[cfg(test)]
mod tests;
