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
//! | after an attempt is lost with its node, before that is committed | the older state | the lease is counted anew, from the start |
//! | after it | `Pending[ ]`, or placed anew | nothing of the lost attempt is alive; it is tried again as any other |
//! | after a kill is committed, before or after the node heard | `kill_asked` | the kill is sent until the end is known |
//!
//! After a restart each node is first asked for all the tasks it remembers (a roll call), and until it has answered it is
//! sent nothing. Creates of before are sent again once all have answered or are lost (`jobs/gathering.rs`). An ended task is
//! forgotten by its node only once its end was acknowledged, that is committed here; so a job
//! whose task number we know and whose task the node does not know has ended unseen: `Failed: lost`. Only jobs numbered
//! before the roll call was sent are judged by it, for a later create may overtake the answer.
//!
//! A node whose machine was booted anew is asked for all it has as well, however long this process lives: a power cut takes
//! the last lines of its journal, and no event tells of a task that was in them. What is missing then is `node rebooted`.
//! So is what it was sent before the boot and never answered, since that may have begun; what cannot have reached it is sent
//! again. A create names the boot it is meant for, and is refused in another (`stale`). While a roll is called the node gets
//! nothing new.
//!
//! So is one that comes back from being lost. A node remembers so many ends, whosesoever they are: while nobody asked for ours
//! another master's may have pushed them out, and no event tells of those.
//!
//! A node that comes back with another instance id has lost its state dir: all it had is lost, numbered or not, since a create
//! may have been running there. A node that the operator no longer names will never say how its tasks end: its jobs are
//! `Failed: node lost` as soon as the others were heard.
//! What runs under a lease may go on until that has run out, so such jobs are abandoned first, and lost only then.

mod asked;
mod calls;
mod follow;
mod gathering;
mod heard;
mod leases;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use wire::fault::Point;
use wire::task::TaskRequest;
use wire::{BadInput, InstanceId, JobId, JobSpec, NodeId, TaskLease};

use crate::fault;
use crate::job::{Job, Node};
use crate::life::News;
use crate::nodes::{Member, Now};
use crate::poller::{Heard, Order, Said};
use crate::scheduler::{Need, Scheduler};
use crate::store::{Changes, Kept, KeptNode, KeptRef, Store, StoreError};
use crate::watch::Watch;
use gathering::Gathering;
use leases::LeaseWatch;

/// The shortest and the longest time a node keeps a poll while it has nothing to tell.
const LONG_POLL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(55);
/// The most messages one transaction covers.
const MAX_TURN: usize = 4096;
/// How long a node that turned a job away is left alone before it is asked what is free.
const AFTER_NO_ROOM: Duration = Duration::from_secs(1);
/// How long a node that takes nothing is left alone before it is asked whether it does again.
const CLOSED_UNTIL_ASKED: Duration = Duration::from_secs(2);
/// How long after a failed create or kill the node is looked at again.
const AFTER_A_FAILED_CALL: Duration = Duration::from_millis(250);
/// How long after a turn that could not be committed the nodes are asked to say it again, and what was due is done again.
const AFTER_A_FAILED_COMMIT: Duration = Duration::from_secs(1);
/// How long a submission waits for the nodes to say what images they have now.
const DOUBT: Duration = Duration::from_secs(1);
/// Between the first polls of two nodes: a thousand connects at once overflow listen queues.
const STAGGER: Duration = Duration::from_millis(1);

/// What the owner is told or asked. A reply that never comes means that it could not be written down.
#[derive(Debug)]
pub enum Message {
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
    /// Say what holds a job up, its silent node among it.
    Why {
        /// Which.
        job: JobId,
        /// What does, if anything.
        reply: Sender<Holds>,
    },
    /// A node said something.
    Heard(Box<Heard>),
    /// Stop after this turn.
    Stop,
}

/// A job of a list that was refused, and so the whole list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedJob {
    /// Which of the list, from 0.
    pub index: usize,
    /// Why.
    pub bad: BadInput,
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

/// What holds a job up, in sentences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    /// Why it is not running yet: the scheduler's word.
    pub waits: Option<String>,
    /// What keeps it on its node from going on or from ending: the node's word.
    pub stuck: Option<String>,
}

/// A job that has not ended.
#[derive(Debug)]
struct Active {
    job: Job,
    kill_asked: bool,
    /// What its node says holds it up. Not kept: the node says it again when all is asked for.
    stuck: Option<String>,
    call: Call,
    /// It was there when this process started, and this process has not placed it.
    inherited: bool,
    /// When its attempt was placed; `None`: by a life of this master before.
    placed_at: Option<Now>,
    /// Its node was asked to start it and has not answered, once at least: it may have.
    unheard: bool,
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
    /// Whether an attempt was lost with its node.
    lost: bool,
    /// Numbers before this one are not given out any more.
    next_id: Option<JobId>,
    /// What was gathered, if that ended in this turn.
    gathered: Option<Gathering>,
    replies: Vec<Reply>,
    orders: Vec<Order>,
    /// Placed in this turn, or to be sent again.
    to_create: BTreeMap<NodeId, Vec<JobId>>,
    /// Nodes of which more or less may be free now.
    touched: BTreeSet<NodeId>,
    /// Jobs that ended in this turn.
    ended: BTreeMap<JobId, Active>,
    /// What the turn before has changed, committed and not yet told to whoever looks on.
    told: BTreeSet<JobId>,
}

#[derive(Debug)]
enum Reply {
    Submitted(Vec<JobId>, Sender<Result<Vec<Job>, RefusedJob>>),
    Killed(JobId, Sender<Option<Job>>),
}

/// The jobs of a submission, and where to say what became of it.
type Submission = (Vec<JobSpec>, Sender<Result<Vec<Job>, RefusedJob>>);

/// A submission that no node could run by what the nodes last said of their images. They are asked again before it is
/// refused: an image may have been added just now.
#[derive(Debug)]
struct Doubted {
    specs: Vec<JobSpec>,
    reply: Sender<Result<Vec<Job>, RefusedJob>>,
    /// Who has not answered yet.
    asked: BTreeSet<NodeId>,
    /// When what is known has to do.
    until: Instant,
}

/// The nodes as configured.
#[derive(Debug, Clone)]
pub struct Nodes {
    /// Number and address of each.
    pub addrs: Vec<(NodeId, String)>,
    /// A node silent for so long is lost.
    pub time_out: Duration,
    /// For how long a node may run a task of ours unheard of.
    pub lease: Duration,
    /// How many attempts of a job may be lost with their nodes.
    pub most_lost: u32,
}

impl Nodes {
    /// How long a node keeps a poll while it has nothing to tell. One that has jobs of ours: half of the time-out, so
    /// that the answer can be late by the other half before the node counts as silent. One without has nothing to
    /// lose, and is left asleep; should it be silent, the next create will tell. `lease`: the shortest of those jobs',
    /// which may be of a time when other options were given.
    fn long_poll(&self, has_jobs: bool, lease: Option<Duration>) -> Duration {
        let longest = lease.map_or(*LONG_POLL.end(), |lease| (lease / 2).min(*LONG_POLL.end()));
        if has_jobs { (self.time_out / 2).max(*LONG_POLL.start()).min(longest) } else { longest }
    }
}

/// The owner. See the head of this file.
pub struct Owner {
    store: Store,
    instance: InstanceId,
    nodes: Nodes,
    next_id: JobId,
    active: BTreeMap<JobId, Active>,
    members: BTreeMap<NodeId, Member>,
    scheduler: Scheduler,
    doubted: Vec<Doubted>,
    watch: LeaseWatch,
    /// Whether the state dir is still ours: one who cannot tell renews no lease, for another may have counted it out.
    place: Watch,
    /// What the nodes have yet to say after this start.
    gathering: Option<Gathering>,
    /// Jobs before this one were in the database at the start.
    first_new: JobId,
    /// Whether the database was found to be older than what nodes know.
    is_older: bool,
    /// The last turn could not be committed. What it did is due again, and not before this: a disk that is full stays so.
    again: Option<Instant>,
    turn: Turn,
}

/// Runs the owner until it is told to stop or the database fails for good. `carry_out` sends orders to the poller,
/// `changed` tells whoever looks on which jobs have changed.
pub fn run(
    mut owner: Owner,
    messages: &Receiver<Message>,
    mut carry_out: impl FnMut(Vec<Order>),
    mut changed: impl FnMut(BTreeSet<JobId>),
) -> Result<(), StoreError> {
    carry_out(owner.first_orders());
    while let Ok(first) = receive(messages, owner.next_deadline()) {
        let batch: Vec<Message> = first.into_iter().chain(messages.try_iter()).take(MAX_TURN).collect();
        let stop = batch.iter().any(|message| matches!(message, Message::Stop));
        let orders = owner.turn(batch, Now::read())?;
        if !orders.is_empty() {
            carry_out(orders);
        }
        changed(std::mem::take(&mut owner.turn.told));
        if stop {
            break;
        }
    }
    Ok(())
}

/// The next message; `None`: the deadline came first.
fn receive(messages: &Receiver<Message>, deadline: Option<Instant>) -> Result<Option<Message>, RecvError> {
    let Some(deadline) = deadline else { return messages.recv().map(Some) };
    match messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(message) => Ok(Some(message)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(RecvError),
    }
}

impl Owner {
    /// Reads what was active when the last master stopped, and ends what was on nodes that are no longer there.
    pub fn new(store: Store, nodes: Nodes, now: Now) -> Result<Owner, StoreError> {
        let instance = store.instance()?;
        let members = nodes.addrs.iter().map(|(id, addr)| (*id, Member::new(*id, addr.clone(), now))).collect();
        let (active, scheduler, doubted, watch, turn) = Default::default();
        let (next_id, first_new, gathering) = (JobId(0), JobId(0), None);
        let mut owner = Owner {
            store,
            instance,
            nodes,
            next_id,
            active,
            members,
            scheduler,
            doubted,
            watch,
            place: Watch::none(),
            gathering,
            first_new,
            is_older: false,
            again: None,
            turn,
        };
        owner.read_active(now)?;
        owner.first_new = owner.next_id;
        owner.begin_gathering(now);
        owner.lose_removed_nodes(now);
        owner.end_leases(now);
        owner.write()?;
        owner.turn = Turn::default();
        Ok(owner)
    }

    /// With a state dir on a share, that can be lost unheard.
    pub fn watching(self, place: Watch) -> Owner {
        Owner { place, ..self }
    }

    /// Ends the jobs on nodes that the operator has removed.
    fn lose_removed_nodes(&mut self, now: Now) {
        let place = |(id, active): (&JobId, &Active)| Some((*id, active.job.placed?.node));
        let placed = self.active.iter().filter_map(place);
        let lost: Vec<(JobId, NodeId)> = placed.filter(|(_, node)| !self.members.contains_key(node)).collect();
        for (job, node) in lost {
            log::warn!("job {job} was on node {node}, which no --node names any more; it is lost");
            self.lose(node, job, News::Removed(node), now);
            self.watch_abandoned(job, now.clock);
        }
    }

    /// Fills memory from the database. Nodes keep what they last said, not what they hold.
    fn read_active(&mut self, now: Now) -> Result<(), StoreError> {
        self.next_id = self.store.next_id()?;
        for KeptNode { id, instance, boot, acknowledged } in self.store.nodes()? {
            if let Some(member) = self.members.get_mut(&id) {
                member.follow(instance, acknowledged);
                member.remember_boot(boot);
            }
        }
        for Kept { job, kill_asked } in self.store.active()? {
            match job.placed {
                None => self.scheduler.wait(job.id, Need::of(&job.spec)),
                Some(placed) => {
                    if let Some(member) = self.members.get_mut(&placed.node) {
                        member.hold(job.id, Need::of(&job.spec).amount());
                    }
                }
            }
            let id = job.id;
            self.active.insert(
                id,
                Active {
                    job,
                    kill_asked,
                    stuck: None,
                    call: Call::Idle,
                    inherited: true,
                    placed_at: None,
                    unheard: false,
                },
            );
            self.watch_abandoned(id, now.clock);
        }
        Ok(())
    }

    /// This master's name, the same for as long as its database is.
    pub fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// When it has something to do though nobody says anything.
    fn next_deadline(&self) -> Option<Instant> {
        let of_doubts = self.doubted.iter().map(|doubted| doubted.until);
        self.again.or_else(|| of_doubts.chain(self.gathering_deadline()).chain(self.watch.due()).min())
    }

    /// The first roll call of every node.
    pub fn first_orders(&mut self) -> Vec<Order> {
        let ids: Vec<NodeId> = self.nodes.addrs.iter().map(|(id, _)| *id).collect();
        let mut delay = Duration::ZERO;
        for node in ids {
            self.order_roll_call(node, delay);
            delay += STAGGER;
        }
        std::mem::take(&mut self.turn.orders)
    }

    /// One turn. Returns the orders that follow from what is now committed; an error is the end.
    pub fn turn(&mut self, messages: Vec<Message>, now: Now) -> Result<Vec<Order>, StoreError> {
        let count = messages.len();
        let unheard: Vec<(NodeId, bool)> = messages.iter().filter_map(who_speaks).collect();
        self.apply(messages, now);
        match self.write() {
            Ok(()) => {
                self.again = None;
                Ok(self.speak())
            }
            Err(error) if error.is_fatal() => Err(error),
            Err(error) => {
                log::error!("nothing of the last {count} messages was kept: {error}");
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
                Message::Why { job, reply } => tell(&reply, self.holds(job, now)),
                Message::Heard(heard) => self.hear(*heard, now),
                Message::Stop => {}
            }
        }
        self.go_on_gathering(now);
        self.settle_doubts(now);
        self.end_leases(now);
        self.refresh_rooms();
        self.place(now);
        self.drop_late_creates();
    }

    /// Writes what this turn has changed, each job once.
    fn write(&self) -> Result<(), StoreError> {
        let turn = &self.turn;
        let find = |id: &JobId| self.active.get(id).or_else(|| turn.ended.get(id));
        let added: HashSet<&JobId> = turn.added.iter().collect();
        let changed = turn.changed.iter().filter(|id| !added.contains(id));
        let followed = turn.followed.iter().filter(|node| self.is_judged(**node));
        let points = self.points();
        points.iter().for_each(|(before, _)| fault::moment(*before));
        self.store.write(&Changes {
            added: turn.added.iter().filter_map(find).map(Active::kept).collect(),
            changed: changed.filter_map(find).map(Active::kept).collect(),
            nodes: followed.filter_map(|node| self.members.get(node)?.kept()).collect(),
            durable: turn.durable,
            next_id: turn.next_id,
        })?;
        points.iter().for_each(|(_, after)| fault::moment(*after));
        Ok(())
    }

    /// Where this process can die before and after such a turn is committed.
    fn points(&self) -> Vec<(Point, Point)> {
        let turn = &self.turn;
        let changed = || turn.changed.iter().filter_map(|id| self.active.get(id));
        let points = [
            (!turn.added.is_empty(), (Point::SubmittedUncommitted, Point::SubmittedCommitted)),
            (!turn.to_create.is_empty(), (Point::PlacedUncommitted, Point::PlacedCommitted)),
            (changed().any(|active| active.job.is_numbered()), (Point::RunningUncommitted, Point::RunningCommitted)),
            (changed().any(|active| active.kill_asked), (Point::KillUncommitted, Point::KillCommitted)),
            (turn.lost, (Point::LostUncommitted, Point::LostCommitted)),
            (!turn.ended.is_empty(), (Point::EndedUncommitted, Point::EndedCommitted)),
        ];
        points.into_iter().filter_map(|(is_so, points)| is_so.then_some(points)).collect()
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
        self.turn.told = turn.changed;
        orders
    }

    fn create_order(&self, node: NodeId, jobs: &[JobId]) -> Order {
        let stamp = self.members.get(&node).and_then(Member::stamp);
        let jobs = jobs.iter().filter_map(|id| Some(&self.active.get(id)?.job));
        let request = |job: &Job| {
            let lease = job.lease.zip(stamp).map(|(lease, stamp)| TaskLease::new(lease.length, stamp.clone()));
            TaskRequest::new(job.spec.clone(), job.id, job.attempt, self.instance.clone()).under(lease)
        };
        let boot = self.members.get(&node).and_then(Member::boot).cloned();
        Order::Create { node, boot, tasks: jobs.map(request).collect() }
    }

    /// The turn failed: whatever is in memory and not in the database is dropped, and asked for again.
    fn start_over(&mut self, unheard: &[(NodeId, bool)], now: Now) -> Result<Vec<Order>, StoreError> {
        let failed = std::mem::take(&mut self.turn);
        self.again = Some(now.clock + AFTER_A_FAILED_COMMIT);
        self.gathering = self.gathering.take().or(failed.gathered);
        // If that was found in this turn, it is found again.
        self.is_older &= failed.next_id.is_none();
        self.doubted.clear();
        self.active.clear();
        self.scheduler = Scheduler::default();
        for member in self.members.values_mut() {
            member.release_all();
            // Or a node that was first heard in this turn would have no row until it has another event to tell.
            member.forget_what_is_kept();
        }
        self.read_active(now)?;
        self.forget_what_was_not_kept();
        self.turn.touched = self.members.keys().copied().collect();
        self.refresh_rooms();
        // Nobody else would ask for it: of a poll before it, which may stay there for long, this is not the answer.
        let unsent = failed.orders.iter().filter_map(|order| match order {
            Order::Poll { node, .. } => Some(*node),
            Order::Ask { .. } | Order::Create { .. } | Order::Kill { .. } => None,
        });
        let polled = |node: &NodeId| unheard.contains(&(*node, true));
        for node in unsent.filter(|node| !polled(node)).collect::<BTreeSet<_>>() {
            if self.members.get(&node).is_some_and(Member::is_rolling) {
                self.order_roll_call(node, AFTER_A_FAILED_COMMIT);
            }
        }
        for (node, polled) in unheard {
            if *polled {
                self.unhear(*node);
                self.order_roll_call(*node, AFTER_A_FAILED_COMMIT);
            } else {
                self.order_ask(*node, AFTER_A_FAILED_COMMIT);
            }
        }
        Ok(std::mem::take(&mut self.turn.orders))
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

#[cfg(test)]
mod tests;
