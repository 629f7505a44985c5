//! What is known of each node, and how much of it is free. Pure: takes `now`, touches no socket.
//!
//! ```text
//!   Unknown ──answered──▶ Ready ──no answer for the node time-out──▶ Lost
//!      │                    ▲                                         │
//!      └────────no answer───┼─────────────for the time-out───────────▶│
//!                           └────────────answered─────────────────────┘
//! ```
//!
//! A node whose last exchange failed, whatever it was about, takes nothing new, though it may still be `Ready`; what it has stays its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{Timestamp, Unit};
use wire::node::NodeResource;
use wire::{BootId, EventNumber, InstanceId, JobId, NodeId, Stamp};

use crate::job::{Node, NodeState};
use crate::lease;
use crate::scheduler::Amount;
use crate::store::KeptNode;
use crate::strangers::Strangers;

/// The first pause after a failed exchange; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause, before jitter.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// One moment, on both clocks: the first measures, the second is shown.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub clock: Instant,
    /// The time of day, to the millisecond: nobody can use more.
    pub wall: Timestamp,
}

impl Now {
    /// This moment.
    pub fn read() -> Now {
        let wall = Timestamp::now();
        Now { clock: Instant::now(), wall: wall.round(Unit::Millisecond).unwrap_or(wall) }
    }
}

/// A job of ours on a node.
#[derive(Debug, Clone, Copy)]
struct Held {
    amount: Amount,
    /// Whether what the node last said is free leaves this job out already.
    counted: bool,
}

/// Whose answer it was, compared with the node we gave our tasks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The same node, or one we have never heard of.
    Known,
    /// Another state dir: the tasks we gave are not there.
    Stranger,
}

/// What was known of a node's tasks when it was asked for all of them. Whichever of these the answer leaves out, the node
/// has forgotten.
#[derive(Debug, Default)]
pub struct RollCall {
    /// Jobs whose task numbers were known. It must know them, or has lost them.
    pub numbered: BTreeSet<JobId>,
    /// Jobs that it was asked to start and has not answered. Only a power cut can have taken what it knew of these.
    pub unnumbered: BTreeSet<JobId>,
    /// The boot it had last spoken of.
    boot: Option<BootId>,
}

/// A node, as the owner of the jobs keeps it.
#[derive(Debug)]
pub struct Member {
    id: NodeId,
    addr: String,
    state: NodeState,
    resource: Option<Arc<NodeResource>>,
    instance: Option<InstanceId>,
    /// The boot of its machine in which all of its tasks were last asked for.
    boot: Option<BootId>,
    acknowledged: EventNumber,
    /// The last stamp that was heard of it.
    stamp: Option<Stamp>,
    /// When that was; before the first one, when this master started.
    stamped: Instant,
    /// Its poll may stay with it for long.
    parked: bool,
    /// All of its tasks were asked for, and it has not answered yet.
    roll_call: Option<RollCall>,
    /// It has told, since this master started, of all that it has. What it was given after that, we know ourselves.
    has_told: bool,
    held: BTreeMap<JobId, Held>,
    /// The sums over `held`: all, and those not counted.
    ours: Amount,
    uncounted: Amount,
    silent_since: Now,
    /// What the last exchange said, if it failed.
    trouble: Option<String>,
    failures: u32,
    /// It turned a job away; nothing new until it has spoken again.
    full: bool,
    /// How often it was asked what is free and has not answered; an ask that is to be made later counts too.
    asks: u32,
    /// Its tasks that are no job's of ours.
    strangers: Strangers,
}

impl Member {
    /// A node nobody has heard of since this master started.
    pub fn new(id: NodeId, addr: String, now: Now) -> Member {
        Member {
            id,
            addr,
            state: NodeState::Unknown,
            resource: None,
            instance: None,
            boot: None,
            acknowledged: EventNumber(0),
            stamp: None,
            stamped: now.clock,
            parked: false,
            roll_call: None,
            has_told: false,
            held: BTreeMap::new(),
            ours: Amount::default(),
            uncounted: Amount::default(),
            silent_since: now,
            trouble: None,
            failures: 0,
            full: false,
            asks: 0,
            strangers: Strangers::default(),
        }
    }

    /// The node as it is shown.
    pub fn shown(&self) -> Node {
        let resource = self.resource.as_deref().cloned();
        let notes = self.strangers.sentences();
        Node { id: self.id, addr: self.addr.clone(), state: self.state.clone(), resource, notes }
    }

    /// Its tasks that are no job's of ours.
    pub fn strangers(&mut self) -> &mut Strangers {
        &mut self.strangers
    }

    /// What it last said of itself.
    pub fn resource(&self) -> Option<&NodeResource> {
        self.resource.as_deref()
    }

    /// What the last exchange said, if it failed.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Its name and the last event of it that we wrote down, once it has a name.
    pub fn followed(&self) -> Option<(&InstanceId, EventNumber)> {
        self.instance.as_ref().map(|instance| (instance, self.acknowledged))
    }

    /// What is kept of it, once it has a name.
    pub fn kept(&self) -> Option<KeptNode> {
        let instance = self.instance.clone()?;
        Some(KeptNode { id: self.id, instance, boot: self.boot.clone(), acknowledged: self.acknowledged })
    }

    /// Follows this node's events from here on.
    pub fn follow(&mut self, instance: InstanceId, acknowledged: EventNumber) {
        self.instance = Some(instance);
        self.acknowledged = acknowledged;
    }

    /// The boot in which all of its tasks were last asked for.
    pub fn boot(&self) -> Option<&BootId> {
        self.boot.as_ref()
    }

    /// The boot that it last spoke of.
    pub fn spoken_boot(&self) -> Option<&BootId> {
        self.resource.as_ref().map(|said| &said.boot_id)
    }

    /// In the boot that it last spoke of all of its tasks were asked for.
    pub fn follow_boot(&mut self) {
        self.boot = self.spoken_boot().cloned();
    }

    /// What is kept of that.
    pub fn remember_boot(&mut self, boot: Option<BootId>) {
        self.boot = boot;
    }

    /// What is kept of it is about to be read anew; of what was heard and not kept nothing stays.
    pub fn forget_what_is_kept(&mut self) {
        (self.instance, self.boot, self.acknowledged) = (None, None, EventNumber(0));
    }

    /// Whether its machine was booted, by what it last said, since all of its tasks were asked for. A power cut may have
    /// taken tasks out of its memory, and no event tells of those.
    pub fn is_booted_anew(&self) -> bool {
        self.boot.as_ref().zip(self.spoken_boot()).is_some_and(|(known, boot)| known != boot)
    }

    /// Whether `instance` is the node our tasks are on.
    pub fn whose(&self, instance: &InstanceId) -> Whose {
        match &self.instance {
            Some(known) if known != instance => Whose::Stranger,
            Some(_) | None => Whose::Known,
        }
    }

    /// The last stamp that was heard of it, to be given back.
    pub fn stamp(&self) -> Option<&Stamp> {
        self.stamp.as_ref()
    }

    /// When that was heard: what was given back to the node cannot be newer.
    pub fn stamped(&self) -> Instant {
        self.stamped
    }

    /// Whether its machine may have been booted since then, by what it last said. Our clock stands still while our machine
    /// sleeps, and the time of day may be set back meanwhile: whichever says that more has passed is believed.
    pub fn may_have_booted_since(&self, then: Now) -> bool {
        let Some(uptime) = self.resource.as_ref().and_then(|said| said.uptime_ms) else { return true };
        let by_wall = self.silent_since.wall.duration_since(then.wall);
        let by_clock = self.silent_since.clock.saturating_duration_since(then.clock);
        let passed = by_clock.max(by_wall.try_into().unwrap_or_default());
        Duration::from_millis(uptime) <= lease::at_most_elsewhere(passed)
    }

    /// A poll was sent to it, which may stay there for long, or is to be answered at once.
    pub fn polled(&mut self, parked: bool) {
        self.parked = parked;
    }

    /// Whether there is a poll that may stay with it for long. Behind a cut cable it would not be missed before its time.
    pub fn is_parked(&self) -> bool {
        self.parked
    }

    /// All of its tasks are about to be asked for. `numbered` are the jobs it must know, `unnumbered` those it may.
    ///
    /// The answer to one that was called before may be on its way to us, and is not told from this one's. It must hold what
    /// had a number by then, and no more.
    pub fn call_the_roll(&mut self, mut numbered: BTreeSet<JobId>, mut unnumbered: BTreeSet<JobId>) {
        let boot = self.spoken_boot().cloned();
        if let Some(before) = &self.roll_call {
            unnumbered.extend(numbered.extract_if(.., |job| !before.numbered.contains(job)));
        }
        self.roll_call = Some(RollCall { numbered, unnumbered, boot });
    }

    /// Whether the roll call that was not answered yet was ordered in the boot it last spoke of.
    pub fn rolls_in_this_boot(&self) -> bool {
        self.roll_call.as_ref().is_some_and(|roll| roll.boot.as_ref() == self.spoken_boot())
    }

    /// Whether a roll call has not been answered yet.
    pub fn is_rolling(&self) -> bool {
        self.roll_call.is_some()
    }

    /// It has told of all that it has; or that was not kept.
    pub fn tells_all(&mut self, kept: bool) {
        self.has_told = kept;
    }

    /// Whether it has, since this master started.
    pub fn has_told(&self) -> bool {
        self.has_told
    }

    /// The answer to the last roll call is here.
    pub fn end_roll_call(&mut self) -> RollCall {
        self.roll_call.take().unwrap_or_default()
    }

    /// It answered. Returns whether it had been lost or unknown.
    pub fn answered(&mut self, resource: NodeResource, now: Now) -> bool {
        let returned = self.state != NodeState::Ready;
        // A node of an older version does not stamp any more, and keeps to no lease.
        self.stamp.clone_from(&resource.stamp);
        if resource.stamp.is_some() {
            self.stamped = now.clock;
        }
        self.state = NodeState::Ready;
        self.resource = Some(Arc::new(resource));
        self.silent_since = now;
        self.trouble = None;
        self.failures = 0;
        self.full = false;
        returned
    }

    /// It did not answer, and why. Returns how long to wait before trying again, and whether it is lost just now.
    pub fn failed(&mut self, why: &str, time_out: Duration, now: Now) -> (Duration, bool) {
        let silent_for = now.clock.saturating_duration_since(self.silent_since.clock);
        let was_lost = self.is_lost();
        if was_lost || silent_for >= time_out {
            self.state = NodeState::Lost { since: self.silent_since.wall, why: why.to_owned() };
        }
        self.trouble = Some(why.to_owned());
        let pause = pause(self.id, self.failures);
        self.failures = self.failures.saturating_add(1);
        (pause, !was_lost && silent_for >= time_out)
    }

    /// Whether it has answered, and was not silent for too long since.
    pub fn is_ready(&self) -> bool {
        self.state == NodeState::Ready
    }

    /// Whether it was silent for too long.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, NodeState::Lost { .. })
    }

    /// Whether somebody asks it what is free.
    pub fn is_asked(&self) -> bool {
        self.asks > 0
    }

    /// Somebody asks it what is free.
    pub fn asked(&mut self) {
        self.asks += 1;
    }

    /// It was asked what is free and has answered, or has not.
    pub fn ask_ended(&mut self) {
        self.asks = self.asks.saturating_sub(1);
    }

    /// It turned a job away.
    pub fn turned_us_away(&mut self) {
        self.full = true;
    }

    /// A job of ours was placed here.
    pub fn hold(&mut self, job: JobId, amount: Amount) {
        if self.held.insert(job, Held { amount, counted: false }).is_none() {
            self.ours = self.ours.plus(amount);
            self.uncounted = self.uncounted.plus(amount);
        }
    }

    /// What the node says is free leaves this job out from now on.
    pub fn count(&mut self, job: JobId) {
        if let Some(held) = self.held.get_mut(&job).filter(|held| !held.counted) {
            held.counted = true;
            self.uncounted = self.uncounted.minus(held.amount);
        }
    }

    /// A job of ours is no longer here.
    pub fn release(&mut self, job: JobId) {
        if let Some(held) = self.held.remove(&job) {
            self.ours = self.ours.minus(held.amount);
            if !held.counted {
                self.uncounted = self.uncounted.minus(held.amount);
            }
        }
    }

    /// No job of ours is here, and nothing was asked.
    pub fn release_all(&mut self) {
        self.held.clear();
        (self.ours, self.uncounted) = (Amount::default(), Amount::default());
        self.asks = 0;
    }

    /// Our jobs here.
    pub fn jobs(&self) -> impl Iterator<Item = JobId> + '_ {
        self.held.keys().copied()
    }

    /// Whether it takes no job though there is room, by its own word.
    pub fn is_closed(&self) -> bool {
        self.resource.as_ref().is_some_and(|said| said.closed.is_some())
    }

    /// What new jobs may use, if it takes any. The node's total less all of ours is never too much for us alone;
    /// what the node said is free, less those of ours it may not have counted yet, makes room for other masters'.
    /// One that is asked for all it has gets nothing meanwhile, so that whatever is missing was given to it before.
    pub fn room(&self) -> Option<(Arc<NodeResource>, Amount)> {
        let said = self.resource.as_ref()?;
        let open = !self.full && said.closed.is_none() && !self.is_rolling();
        let takes = self.state == NodeState::Ready && self.trouble.is_none() && open;
        let by_ours = Amount::total_of(said).minus(self.ours);
        let by_its_word = Amount::free_of(said).minus(self.uncounted);
        takes.then(|| (Arc::clone(said), by_ours.at_most(by_its_word)))
    }
}

/// The pause after so many failures: doubling, and a little different for each node so that they do not come in step.
fn pause(node: NodeId, failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    // A multiplicative hash (Knuth, TAOCP 3, 6.4) spreads neighbours; the top byte is its best.
    let spread = (node.0.wrapping_add(failures).wrapping_mul(2_654_435_769) >> 24) & 0xff;
    doubled + doubled * spread / 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::resource;
    use wire::CpuAmount;

    const TIME_OUT: Duration = Duration::from_secs(10);

    fn later(now: Now, seconds: i64) -> Now {
        let wall = now.wall + jiff::SignedDuration::from_secs(seconds);
        Now { clock: now.clock + Duration::from_secs(seconds.unsigned_abs()), wall }
    }

    fn member(now: Now) -> Member {
        Member::new(NodeId(0), "127.0.0.1:5000".into(), now)
    }

    fn amount(cpus: u32, mem: u64) -> Amount {
        Amount { cpu: CpuAmount::whole(cpus), mem }
    }

    #[test]
    fn a_node_is_lost_only_after_the_time_out_and_says_since_when_and_why() {
        let start = Now::read();
        let mut node = member(start);
        assert!(node.answered(resource(0, 4, 1000), start));
        assert!(!node.failed("connection refused", TIME_OUT, later(start, 3)).1);
        assert_eq!(node.shown().state, NodeState::Ready);
        assert!(node.failed("connection refused", TIME_OUT, later(start, 10)).1);
        let lost = NodeState::Lost { since: start.wall, why: "connection refused".into() };
        assert_eq!(node.shown().state, lost);
        assert!(!node.failed("connection refused", TIME_OUT, later(start, 11)).1, "it is lost only once");
        assert!(node.answered(resource(0, 4, 1000), later(start, 12)));
        assert_eq!(node.shown().state, NodeState::Ready);
    }

    #[test]
    fn an_unknown_node_that_never_answers_is_lost_after_the_time_out() {
        let start = Now::read();
        let mut node = member(start);
        node.failed("no route", TIME_OUT, later(start, 9));
        assert_eq!(node.shown().state, NodeState::Unknown);
        node.failed("no route", TIME_OUT, later(start, 10));
        assert!(matches!(node.shown().state, NodeState::Lost { .. }));
    }

    #[test]
    fn a_node_in_trouble_or_full_takes_nothing_until_it_answers() {
        let now = Now::read();
        let mut node = member(now);
        assert!(node.room().is_none());
        node.answered(resource(0, 4, 1000), now);
        assert_eq!(node.room().unwrap().1, amount(4, 1000));
        node.failed("reset", TIME_OUT, now);
        assert!(node.room().is_none());
        node.answered(resource(0, 4, 1000), now);
        node.turned_us_away();
        assert!(node.room().is_none());
        node.answered(resource(0, 4, 1000), now);
        assert!(node.room().is_some());
    }

    #[test]
    fn a_job_is_subtracted_once_whether_or_not_the_node_has_counted_it() {
        let now = Now::read();
        let mut node = member(now);
        node.answered(resource(0, 4, 1000), now);
        node.hold(JobId(1), amount(1, 300));
        node.hold(JobId(1), amount(1, 300));
        assert_eq!(node.room().unwrap().1, amount(3, 700), "before the node knows of it");
        let said = NodeResource { cpu: CpuAmount::whole(3), mem: 700, ..resource(0, 4, 1000) };
        node.answered(said, now);
        node.count(JobId(1));
        node.count(JobId(1));
        assert_eq!(node.room().unwrap().1, amount(3, 700), "after it has");
        node.answered(resource(0, 4, 1000), now);
        node.release(JobId(1));
        node.release(JobId(1));
        assert_eq!(node.room().unwrap().1, amount(4, 1000));
    }

    #[test]
    fn what_another_masters_tasks_use_is_not_free() {
        let now = Now::read();
        let mut node = member(now);
        let said = NodeResource { cpu: CpuAmount::whole(1), mem: 100, ..resource(0, 4, 1000) };
        node.answered(said, now);
        node.hold(JobId(1), amount(1, 60));
        assert_eq!(node.room().unwrap().1, amount(0, 40));
    }

    #[test]
    fn pauses_double_up_to_two_seconds_and_a_quarter() {
        assert!(pause(NodeId(0), 0) >= FIRST_PAUSE);
        for failures in 0..40 {
            for node in 0..50 {
                assert!(pause(NodeId(node), failures) <= LONGEST_PAUSE + LONGEST_PAUSE / 4);
            }
        }
        assert!(pause(NodeId(7), 9) >= LONGEST_PAUSE);
    }

    #[test]
    fn another_instance_is_a_stranger() {
        let mut node = member(Now::read());
        let name = |name: &str| InstanceId(name.into());
        assert_eq!(node.whose(&name("a")), Whose::Known);
        node.follow(name("a"), EventNumber(4));
        assert_eq!((node.whose(&name("a")), node.whose(&name("b"))), (Whose::Known, Whose::Stranger));
    }
}
