//! The calls the owner orders of nodes: each once at a time, and again until it is answered.

use std::time::Duration;

use wire::{Attempt, EventNumber, JobId, NodeId};

use super::{Call, Owner};
use crate::job::Job;
use crate::nodes::Member;
use crate::poller::Order;

impl Owner {
    /// Makes the calls that this node still owes us an answer to: creates that were not answered, kills not taken.
    pub(super) fn call_again(&mut self, node: NodeId) {
        if self.members.get(&node).is_some_and(Member::is_rolling) {
            return;
        }
        let jobs: Vec<JobId> = self.members.get(&node).map(|member| member.jobs().collect()).unwrap_or_default();
        for job in jobs {
            self.call_create(job);
            self.call_kill(job);
        }
        self.kill_strays(node);
    }

    /// Sends a create whose answer we do not have. The same key is answered with the same task. Not while the job may
    /// have moved on to a node that was not heard yet.
    pub(super) fn call_create(&mut self, id: JobId) {
        if self.is_in_doubt(id) {
            return;
        }
        let Some(active) = self.active.get_mut(&id).filter(|active| active.call == Call::Idle) else { return };
        let unanswered = active.job.placed.filter(|placed| placed.task.is_none() && !active.job.is_abandoned());
        // A node that stamped what it said and does so no more is of an older version now, and would keep to no lease.
        let stamps = |node: &NodeId| self.members.get(node).is_some_and(|member| member.stamp().is_some());
        if let Some(placed) = unanswered.filter(|placed| active.job.lease.is_none() || stamps(&placed.node)) {
            active.call = Call::Creating;
            self.turn.to_create.entry(placed.node).or_default().push(id);
        }
    }

    /// Creates that were ordered in this turn and are not due at its end. The request is made of the job as it is by then:
    /// sent to where the job was before, the same attempt would be given to two nodes.
    pub(super) fn drop_late_creates(&mut self) {
        let active = &self.active;
        let mut late = Vec::new();
        for (node, jobs) in &mut self.turn.to_create {
            late.extend(jobs.extract_if(.., |id| !active.get(id).is_some_and(|it| is_due(&it.job, *node))));
        }
        self.turn.to_create.retain(|_, jobs| !jobs.is_empty());
        for id in late {
            let ordered = |jobs: &Vec<JobId>| jobs.contains(&id);
            if !self.turn.to_create.values().any(ordered) {
                self.call_ended(id, None, Call::Creating);
                self.call_kill(id);
            }
        }
    }

    /// Sends a kill that was not taken. A node in trouble is sent none: it would wait there until it is too late, and each one
    /// more is no more likely to be heard. The node is polled or asked meanwhile, and all is called again once it has spoken.
    /// One that has lost the task is sent none either, nor one that is asked whether it has: the number may be that of
    /// another by now.
    pub(super) fn call_kill(&mut self, id: JobId) {
        if self.is_lost_unjudged(id) {
            return;
        }
        let Some(active) = self.active.get_mut(&id) else { return };
        let member = active.job.placed.and_then(|placed| self.members.get(&placed.node));
        let speaks = member.is_none_or(|member| member.trouble().is_none() && !member.is_rolling());
        let due = active.kill_asked && active.call == Call::Idle && !active.job.is_abandoned() && speaks;
        if let Some((node, task)) =
            active.job.placed.and_then(|placed| Some((placed.node, placed.task.filter(|_| due)?)))
        {
            active.call = Call::Killing;
            self.turn.orders.push(Order::Kill { node, job: id, task });
        }
    }

    pub(super) fn call_ended(&mut self, id: JobId, attempt: Option<Attempt>, call: Call) {
        if let Some(active) = self.active.get_mut(&id) {
            let same = active.call == call && attempt.is_none_or(|attempt| attempt == active.job.attempt);
            if same {
                active.call = Call::Idle;
            }
        }
    }

    pub(super) fn order_poll(&mut self, node: NodeId, delay: Duration) {
        let Some(member) = self.members.get_mut(&node) else { return };
        // A roll call that was not answered is called again.
        if member.is_rolling() {
            return self.order_roll_call(node, delay);
        }
        let after = member.followed().map_or(EventNumber(0), |(_, after)| after);
        // From a node in trouble a sign of life is wanted at once, whether or not anything happened there.
        let wait = if member.trouble().is_none() {
            let leases = member.jobs().filter_map(|job| Some(self.active.get(&job)?.job.lease?.length));
            self.nodes.long_poll(member.jobs().next().is_some(), leases.min())
        } else {
            Duration::ZERO
        };
        self.push_poll(node, after, wait, delay);
    }

    pub(super) fn order_roll_call(&mut self, node: NodeId, delay: Duration) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let jobs = member.jobs().filter_map(|id| self.active.get(&id)).map(|active| &active.job);
        let (numbered, unnumbered): (Vec<_>, Vec<_>) =
            jobs.filter(|job| !job.is_abandoned()).partition(|job| job.is_numbered());
        let ids = |jobs: Vec<&Job>| jobs.into_iter().map(|job| job.id).collect();
        member.call_the_roll(ids(numbered), ids(unnumbered));
        self.push_poll(node, EventNumber(0), Duration::ZERO, delay);
    }

    fn push_poll(&mut self, node: NodeId, after: EventNumber, wait: Duration, delay: Duration) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let heard = member.stamp().filter(|_| self.place.is_fresh()).cloned();
        let instance = member.followed().map(|(instance, _)| instance.clone());
        member.polled(wait > Duration::ZERO);
        self.turn.orders.push(Order::Poll { node, after, instance, heard, wait, delay, jobs: self.last_id() });
    }

    /// The highest number that was ever given out.
    fn last_id(&self) -> JobId {
        JobId(self.next_id.0.saturating_sub(1))
    }

    pub(super) fn order_ask(&mut self, node: NodeId, delay: Duration) {
        if self.members.get(&node).is_some_and(|member| !member.is_asked()) {
            self.order_another_ask(node, delay);
        }
    }

    /// Though somebody asks already: perhaps only later, perhaps too long ago.
    pub(super) fn order_another_ask(&mut self, node: NodeId, delay: Duration) {
        let Some(member) = self.members.get_mut(&node) else { return };
        member.asked();
        self.turn.orders.push(Order::Ask { node, delay });
    }
}

/// Whether this node is to be asked to start the job.
fn is_due(job: &Job, node: NodeId) -> bool {
    job.placed.is_some_and(|placed| placed.node == node && placed.task.is_none()) && !job.is_abandoned()
}
