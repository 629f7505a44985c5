//! Nodes that are not heard of, and what was given to them under a lease: when nothing of it can be alive any more, and
//! what is left of an attempt when its node is back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use jiff::{Timestamp, Unit};
use wire::task::TaskReport;
use wire::{Attempt, JobId, NodeId, OnNodeLoss, TaskId};

use super::Owner;
use crate::job::{Job, NodeState};
use crate::lease;
use crate::life::News;
use crate::nodes::{Member, Now};
use crate::poller::Order;

/// What is watched between two turns.
#[derive(Debug, Default)]
pub(super) struct LeaseWatch {
    /// Nodes that are lost, and may have jobs of ours.
    lost: BTreeSet<NodeId>,
    /// Jobs whose leases nobody renews, by when a stamp of their node was last heard.
    abandoned: BTreeMap<JobId, Instant>,
    /// When the first lease of all these is certainly over.
    due: Option<Instant>,
    /// Attempts that were given up, and where: until their node says that they have ended.
    given_up: BTreeSet<(NodeId, JobId, Attempt)>,
    /// Tasks of such attempts that live all the same, and whether their end was asked for.
    strays: BTreeMap<(NodeId, TaskId), (JobId, bool)>,
}

impl LeaseWatch {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl Owner {
    /// The job's node will not tell of it; of that node a stamp was heard at `heard`, or later.
    pub(super) fn watch_abandoned(&mut self, job: JobId, heard: Instant) {
        if self.active.get(&job).is_some_and(|active| active.job.is_abandoned()) {
            self.watch.abandoned.entry(job).or_insert(heard);
        }
    }

    pub(super) fn watch_lost(&mut self, node: NodeId) {
        self.watch.lost.insert(node);
    }

    /// Gives up what cannot be alive any more. A node that was only not asked is not lost: it may have an end to tell.
    pub(super) fn end_leases(&mut self, now: Now) {
        let (members, active) = (&self.members, &self.active);
        self.watch.lost.retain(|node| members.get(node).is_some_and(Member::is_lost));
        self.watch.abandoned.retain(|job, _| active.get(job).is_some_and(|active| active.job.is_abandoned()));
        let over = self.leases_over();
        self.watch.due = over.iter().map(|(end, ..)| *end).filter(|end| *end > now.clock).min();
        // What is in doubt is given up once all nodes were heard: in that turn, for this comes after it.
        let over = over.into_iter().filter(|(end, ..)| *end <= now.clock);
        for (_, job, node) in over.filter(|(_, job, _)| !self.is_in_doubt(*job)).collect::<Vec<_>>() {
            log::warn!("job {job} is lost with node {node}: its lease has run out");
            let attempt = self.active.get(&job).map(|active| active.job.attempt);
            self.watch.given_up.extend(attempt.map(|attempt| (node, job, attempt)));
            self.change(job, News::LeaseOver(node), now);
        }
    }

    /// Every lease that is not renewed now, and when it is certainly over.
    fn leases_over(&self) -> Vec<(Instant, JobId, NodeId)> {
        let of_lost = self.watch.lost.iter().filter_map(|node| self.members.get(node)).flat_map(Member::jobs);
        let jobs: BTreeSet<JobId> = of_lost.chain(self.watch.abandoned.keys().copied()).collect();
        let over = |job: JobId| Some((self.lease_over(job)?, job, self.active.get(&job)?.job.placed?.node));
        jobs.into_iter().filter_map(over).collect()
    }

    /// When nothing of the job's attempt can be alive, if its node is not heard of until then.
    fn lease_over(&self, job: JobId) -> Option<Instant> {
        let active = self.active.get(&job)?;
        let lease = active.job.lease?;
        let of_node = || self.members.get(&active.job.placed?.node).map(Member::stamped);
        let heard = self.watch.abandoned.get(&job).copied().or_else(of_node)?;
        Some(lease::certainly_over(heard, lease.length))
    }

    /// What its node's silence means for a job, in a sentence somebody can act on.
    pub(super) fn why_unheard(&self, job: &Job, now: Now) -> Option<String> {
        let node = job.placed?.node;
        let shown = self.members.get(&node).map(Member::shown);
        let silence = match shown {
            _ if job.is_abandoned() && shown.is_none() => format!("node {node} is taken out of the cluster"),
            Some(shown) if job.is_abandoned() => {
                format!("node {node} at {} has another state dir than when the job was given to it", shown.addr)
            }
            Some(shown) => match shown.state {
                NodeState::Lost { since, why } => {
                    format!("node {node} at {} has not answered since {} ({why})", shown.addr, to_the_second(since))
                }
                NodeState::Unknown | NodeState::Ready => return None,
            },
            None => return None,
        };
        let Some(over) = self.lease_over(job.id) else {
            return Some(format!(
                "{silence}; the job stays as it is until the node is back and says how it went, or is taken out with \
                 --node: then the job is Failed: node lost"
            ));
        };
        let end = to_the_second(now.wall + over.saturating_duration_since(now.clock));
        let then = match job.spec.on_node_loss {
            OnNodeLoss::Retry if job.lost_attempts + 1 < self.nodes.most_lost => "is tried elsewhere",
            OnNodeLoss::Retry | OnNodeLoss::Fail | OnNodeLoss::Wait => "is Failed: node lost",
        };
        Some(format!("{silence}; its lease is over by {end}, then the job {then}"))
    }

    /// A node tells of a task of ours. If it lives though its attempt was given up, it is killed: its lease has ended it
    /// already, unless something went wrong with that.
    pub(super) fn mind_stray(&mut self, node: NodeId, job: JobId, report: &TaskReport) {
        let Some(attempt) = report.key.attempt else { return };
        let (key, given_up) = ((node, report.task_id), (node, job, attempt));
        if report.status.is_final() {
            self.watch.given_up.remove(&given_up);
            self.watch.strays.remove(&key);
        } else if self.watch.given_up.contains(&given_up) && !self.watch.strays.contains_key(&key) {
            log::warn!("node {node} still runs task {}, a given up attempt of job {job}; it is killed", report.task_id);
            self.watch.strays.insert(key, (job, false));
        }
    }

    /// The last turn was not kept: what it had given up may be ours again, and the kills it ordered were not sent.
    pub(super) fn forget_what_was_not_kept(&mut self) {
        let (active, watch) = (&self.active, &mut self.watch);
        let is_ours = |&(node, job, attempt): &(NodeId, JobId, Attempt)| {
            let job = active.get(&job).map(|active| &active.job);
            job.is_some_and(|job| job.attempt == attempt && job.placed.is_some_and(|placed| placed.node == node))
        };
        watch.given_up.retain(|attempt| !is_ours(attempt));
        for (_, asked) in watch.strays.values_mut() {
            *asked = false;
        }
    }

    /// Asks for the end of this node's strays that was not asked for yet.
    pub(super) fn kill_strays(&mut self, node: NodeId) {
        for ((of, task), (job, asked)) in &mut self.watch.strays {
            if *of == node && !std::mem::replace(asked, true) {
                self.turn.orders.push(Order::Kill { node, job: *job, task: *task });
            }
        }
    }

    /// What came of that. True: it was about a stray.
    pub(super) fn hear_of_stray(&mut self, node: NodeId, task: TaskId, done: bool) -> bool {
        let Some((_, asked)) = self.watch.strays.get_mut(&(node, task)) else { return false };
        *asked = false;
        if done {
            self.watch.strays.remove(&(node, task));
        }
        true
    }
}

fn to_the_second(time: Timestamp) -> Timestamp {
    time.round(Unit::Second).unwrap_or(time)
}
