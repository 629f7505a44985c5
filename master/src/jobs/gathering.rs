//! After a start: what the nodes know and the database may not. A database can have been put back from an older copy, and
//! nobody but the nodes can tell.
//!
//! Nothing is promised before they were asked. Until every node has answered its roll call, or is lost, no job of the
//! database is placed or sent to its node again: it may have run since the copy was made, or runs elsewhere. What one node
//! has lost of them is judged when all were heard, since the others may have what came after. Until every node has
//! answered, or could not be reached at once, no number is given out.
//!
//! | a node says | so |
//! |---|---|
//! | any of what follows, or it has heard of a job that was never submitted here | numbers go on after the highest known, and a thousand further: the last ones may have reached no node |
//! | it has a task of an attempt that is later than ours | that is our job's true attempt: the job is there, or ended so |
//! | we have acknowledged the end of such an attempt, and we do not know it | the job has run and must not again: `Failed: lost` |
//! | it knows nothing of a task we gave it, and no other node has a later one | it is lost, as it would be at any time |
//! | we have acknowledged more unknown ends than it lists | any waiting job may have run, and so any that would be tried again because its node is silent: all `Failed: lost` |
//! | it runs a task of ours whose job we do not know | it is left alone, and shown on the node's page |
//!
//! Who is asked to kill a waiting job meanwhile writes that down: it is killed where it is found, or ends when all were heard.
//! A node that has lost a task is asked for nothing about it, until that is judged.
//!
//! A number of a lost time may be given out again after all, if all nodes that know of it were away. The attempts that ran
//! under it are then counted as if they were ours, so that no key is used for two tasks.
//!
//! What a node said is not to be written down as heard before what follows from it: killed in between, the next life of
//! this master would not hear it again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use wire::node::{AcknowledgedEnd, Remembered};
use wire::task::TaskReport;
use wire::{Attempt, EventNumber, JobId, NodeId, OnNodeLoss};

use super::{Active, Owner, Submission};
use crate::life::News;
use crate::nodes::{Member, Now};
use crate::strangers::Whose;

/// How long a submission waits at most for the nodes to say which numbers were given out.
const NUMBERS_HELD: Duration = Duration::from_secs(1);
/// How many numbers are left out after the highest that a node has heard of.
const SKIP: u64 = 1000;
/// Half of what JSON's whole numbers can hold (RFC 8259, section 6): nobody has submitted so many jobs.
const ABSURD: u64 = 1 << 52;

/// What is still awaited.
#[derive(Debug)]
pub(super) struct Gathering {
    /// What the nodes have lost of the jobs they have by what we know: which attempt, and how. Of each the first that was
    /// heard. A later one may have been found since, and that may not have been kept.
    losses: BTreeMap<JobId, (Attempt, News<'static>)>,
    /// Attempts that have run elsewhere, each job's latest.
    ran: BTreeMap<JobId, Attempt>,
    /// Whether any waiting job may be among those.
    any_may_have: bool,
    /// Whose word is among all that, and not acted on yet.
    unjudged: BTreeSet<NodeId>,
    /// Submissions that wait for a number.
    early: Vec<Submission>,
    /// When numbers are given out all the same, and when jobs are placed.
    numbers_until: Instant,
    until: Instant,
}

#[cfg(test)]
impl Gathering {
    /// It is over with the next turn.
    pub(super) fn waits_for_nobody(&mut self, now: Now) {
        (self.numbers_until, self.until) = (now.clock, now.clock);
    }
}

impl Owner {
    pub(super) fn begin_gathering(&mut self, now: Now) {
        if self.members.is_empty() {
            return self.end_the_killed(now);
        }
        self.gathering = Some(Gathering {
            losses: BTreeMap::new(),
            ran: BTreeMap::new(),
            any_may_have: false,
            unjudged: BTreeSet::new(),
            early: Vec::new(),
            numbers_until: now.clock + NUMBERS_HELD.min(self.nodes.time_out),
            until: now.clock + self.nodes.time_out,
        });
    }

    /// Whether a number may be given out that an older life of this database may have given out.
    fn numbers_are_known(&self, now: Now) -> bool {
        let all_away = || self.untold().all(|(_, member)| member.trouble().is_some());
        let known = |it: &Gathering| it.numbers_until <= now.clock || all_away();
        self.gathering.as_ref().is_none_or(known)
    }

    fn is_gathered(&self, now: Now) -> bool {
        let all_lost = || self.untold().all(|(_, member)| member.is_lost());
        self.gathering.as_ref().is_some_and(|it| it.until <= now.clock || all_lost())
    }

    /// Who has not told, since this master started, of all that it has.
    fn untold(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        self.members.iter().filter(|(_, member)| !member.has_told())
    }

    fn untold_in_words(&self) -> String {
        self.untold().map(|(node, _)| node.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Takes a submission back until its number is known to be new.
    pub(super) fn hold_early(&mut self, submission: Submission, now: Now) -> Option<Submission> {
        if self.numbers_are_known(now) {
            return Some(submission);
        }
        match &mut self.gathering {
            Some(gathering) => gathering.early.push(submission),
            None => return Some(submission),
        }
        None
    }

    /// Does what was waited for.
    pub(super) fn go_on_gathering(&mut self, now: Now) {
        if self.numbers_are_known(now) {
            let early = self.gathering.as_mut().map(|it| std::mem::take(&mut it.early)).unwrap_or_default();
            for (specs, reply) in early {
                self.submit(specs, reply, now);
            }
        }
        if self.is_gathered(now) {
            self.end_gathering(now);
        }
    }

    fn end_gathering(&mut self, now: Now) {
        let Some(gathering) = self.gathering.take() else { return };
        if self.untold().next().is_some() {
            log::warn!("going on without having heard what runs on node {}", self.untold_in_words());
        }
        // A job that is to be tried again because of a loss may have been already: what has run is looked at after that.
        for (job, (attempt, news)) in &gathering.losses {
            if self.active.get(job).is_some_and(|active| active.job.attempt == *attempt) {
                self.change(*job, *news, now);
            }
        }
        for (job, attempt) in &gathering.ran {
            self.has_run(None, *job, *attempt, now);
        }
        if gathering.any_may_have {
            self.may_have_run(None, now);
        }
        self.end_the_killed(now);
        self.turn.followed.extend(&gathering.unjudged);
        let speaks = |member: &Member| member.is_ready() && member.trouble().is_none();
        let speaking: Vec<NodeId> =
            self.members.iter().filter(|(_, member)| speaks(member)).map(|(id, _)| *id).collect();
        for node in speaking {
            self.call_again(node);
        }
        // Should this turn not be kept, it is all to be done again.
        self.turn.gathered = Some(gathering);
    }

    /// Jobs that wait for a node, and were killed while they were in doubt: no node has them.
    fn end_the_killed(&mut self, now: Now) {
        let killed = |active: &Active| active.kill_asked && active.job.placed.is_none();
        let ids: Vec<JobId> = self.active.iter().filter(|(_, it)| killed(it)).map(|(id, _)| *id).collect();
        for id in ids {
            self.change(id, News::KillAsked, now);
        }
    }

    /// Whether this job is one of the database of which the nodes may know more, and have not all been heard.
    pub(super) fn is_in_doubt(&self, id: JobId) -> bool {
        self.gathering.is_some() && self.is_of_the_start(id)
    }

    /// Whether the database had this job at the start, and all we have done with it since is to listen.
    fn is_of_the_start(&self, id: JobId) -> bool {
        id < self.first_new && self.active.get(&id).is_some_and(|active| active.inherited)
    }

    /// Whether waiting jobs wait for the nodes to be heard. Whoever came later waits with them, as always.
    pub(super) fn holds_placements(&self) -> bool {
        let mut of_the_start = self.active.range(..self.first_new);
        self.gathering.is_some() && of_the_start.any(|(_, active)| active.inherited && active.job.placed.is_none())
    }

    /// A job is lost where we believe it to be: at once, or if it is in doubt when all nodes were heard. Under a lease it
    /// may be abandoned only, which is no end and takes nothing from whoever has it.
    pub(super) fn lose(&mut self, node: NodeId, id: JobId, news: News<'static>, now: Now) {
        let Some(job) = self.active.get(&id).map(|active| &active.job) else { return };
        if job.placed.is_none_or(|placed| placed.node != node) {
            // It was asked for there, and was found elsewhere before the answer came.
            return;
        }
        let attempt = job.attempt;
        let only_abandons = job.lease.is_some() && matches!(news, News::Wiped(_) | News::Removed(_));
        let in_doubt = self.is_in_doubt(id) && !only_abandons;
        match self.gathering.as_mut().filter(|_| in_doubt) {
            Some(gathering) => {
                let loss = gathering.losses.entry(id).or_insert((attempt, news));
                if loss.0 < attempt {
                    *loss = (attempt, news);
                }
                gathering.unjudged.insert(node);
            }
            None => self.change(id, news, now),
        }
    }

    /// Whether its node has lost this job, which is judged when all were heard.
    pub(super) fn is_lost_unjudged(&self, id: JobId) -> bool {
        let lost = self.gathering.as_ref().and_then(|it| it.losses.get(&id));
        lost.zip(self.active.get(&id)).is_some_and(|((attempt, _), active)| *attempt == active.job.attempt)
    }

    /// Whether it may be written down that this node was heard.
    pub(super) fn is_judged(&self, node: NodeId) -> bool {
        self.gathering.as_ref().is_none_or(|it| !it.unjudged.contains(&node))
    }

    pub(super) fn why_held(&self) -> Option<String> {
        self.gathering.as_ref()?;
        Some(format!(
            "this master has just started, and jobs are placed once node {} has said what it runs, or is lost",
            self.untold_in_words()
        ))
    }

    pub(super) fn gathering_deadline(&self) -> Option<Instant> {
        let gathering = self.gathering.as_ref()?;
        let numbers = (!gathering.early.is_empty()).then_some(gathering.numbers_until);
        Some(numbers.map_or(gathering.until, |numbers| numbers.min(gathering.until)))
    }

    /// A node's answer was not kept, and is asked for again.
    pub(super) fn unhear(&mut self, node: NodeId) {
        if let Some(member) = self.members.get_mut(&node) {
            member.tells_all(false);
        }
    }

    /// What a node remembers of us, against what we have written down. Whether it has forgotten more than can be told.
    ///
    /// An acknowledgement that is not written down proves nothing alone: a node may be back with an old disk. That its
    /// job has not ended here does.
    pub(super) fn compare(
        &mut self,
        node: NodeId,
        acknowledged: EventNumber,
        remembered: &Remembered,
        now: Now,
    ) -> bool {
        // That number says nothing; which ends it was told of it knows all the same.
        let cannot_be = remembered.last_job.0 > ABSURD;
        let last_job = if cannot_be { JobId(0) } else { remembered.last_job };
        if cannot_be {
            log::error!("node {node} has heard of a job {} of this master: that cannot be", remembered.last_job);
        }
        if last_job >= self.next_id {
            log::error!(
                "node {node} has heard of job {} of this master, whose database knows none after {}: it was put back \
                 from an older copy, or another master works with a copy of it",
                last_job,
                self.next_id.0.saturating_sub(1)
            );
            self.skip_used_numbers(last_job);
        }
        let later = remembered.acknowledged.iter().filter(|end| end.event > acknowledged);
        let unknown: Vec<_> = later.filter(|end| !self.is_settled(end)).collect();
        if unknown.is_empty() {
            return false;
        }
        let beyond_the_list = remembered.unlisted_to > acknowledged;
        let ends = if beyond_the_list { "more ends than it lists" } else { "ends" };
        log::error!(
            "node {node} was told by this master that it knew of {ends} ({} listed, up to event {}) of which its \
             database knows none after event {acknowledged}: the database was put back from an older copy",
            unknown.len(),
            unknown.last().map_or(remembered.unlisted_to, |end| end.event)
        );
        self.skip_used_numbers(last_job);
        match &mut self.gathering {
            Some(gathering) => {
                for end in unknown {
                    let latest = gathering.ran.entry(end.job_id).or_insert(end.attempt);
                    *latest = (*latest).max(end.attempt);
                }
                gathering.any_may_have |= beyond_the_list;
                gathering.unjudged.insert(node);
            }
            None => {
                for end in unknown {
                    self.has_run(Some(node), end.job_id, end.attempt, now);
                }
                if beyond_the_list {
                    self.may_have_run(Some(node), now);
                }
            }
        }
        beyond_the_list
    }

    /// Whether that attempt is over by what we have written down.
    fn is_settled(&self, end: &AcknowledgedEnd) -> bool {
        match self.active.get(&end.job_id) {
            // One that was lost with its node, and waits to be tried elsewhere, is over as well.
            Some(active) => {
                let over = active.job.placed.is_none() && active.job.lost_attempts > 0;
                active.job.attempt > end.attempt || (over && active.job.attempt == end.attempt)
            }
            None => self.is_in_the_database(end.job_id),
        }
    }

    /// Whether this job was ever submitted here. If that cannot be read now, it is no sign of an older copy.
    fn is_in_the_database(&self, id: JobId) -> bool {
        self.store.job(id).map_or_else(
            |error| {
                log::error!("whether there is a job {id} is not known: {error}");
                true
            },
            |kept| kept.is_some(),
        )
    }

    /// This database is older than what nodes know. Once in a life is enough, unless a node knows of more than was skipped.
    fn skip_used_numbers(&mut self, last_job: JobId) {
        if self.is_older && last_job < self.next_id {
            return;
        }
        self.is_older = true;
        self.next_id = JobId(self.next_id.0.max(last_job.0 + 1) + SKIP);
        self.turn.next_id = Some(self.next_id);
        self.turn.durable = true;
        log::warn!("new jobs are numbered from {} on", self.next_id);
    }

    /// An attempt of a job has run and ended, and that is all there is to be known. `speaks`: who says so, if its answer is
    /// not read to the end.
    fn has_run(&mut self, speaks: Option<NodeId>, id: JobId, attempt: Attempt, now: Now) {
        let Some(active) = self.active.get(&id) else { return };
        if id >= self.first_new {
            return self.change(id, News::Taken(attempt), now);
        }
        let ours = active.job.attempt;
        if active.inherited {
            if !self.has_not_moved_on(speaks, id) {
                self.change(id, News::Ran(attempt), now);
            }
        } else if attempt >= ours {
            log::error!("job {id} was placed as attempt {ours}, but attempt {attempt} of it had run before");
        }
    }

    /// Which jobs have run is not known any more.
    fn may_have_run(&mut self, speaks: Option<NodeId>, now: Now) {
        let ids: Vec<JobId> = self.active.range(..self.first_new).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(active) = self.active.get(&id).filter(|active| active.inherited) else { continue };
            let next = Attempt(active.job.attempt.0.saturating_add(1));
            if !self.has_not_moved_on(speaks, id) {
                self.change(id, News::Ran(next), now);
            }
        }
    }

    /// Whether this attempt is certainly the job's last; a later one that has ended was then another job's of that number.
    /// What a node has taken is tried elsewhere only if its user wants that. And attempts are never alive side by side: it
    /// is the last if its node has told, since this start, that it has it, or is about to.
    fn has_not_moved_on(&self, speaks: Option<NodeId>, id: JobId) -> bool {
        let Some(job) = self.active.get(&id).map(|active| &active.job).filter(|job| job.is_numbered()) else {
            return false;
        };
        if job.spec.on_node_loss != OnNodeLoss::Retry {
            return true;
        }
        let Some(node) = job.placed.map(|placed| placed.node) else { return false };
        let told = self.members.get(&node).is_some_and(Member::has_told);
        (told || speaks == Some(node)) && !job.is_abandoned()
    }

    /// Creates whose answer we do not know are not sent again to a node that has forgotten more than it lists: what it
    /// does not report may have run there.
    pub(super) fn doubt_unanswered(&mut self, node: NodeId, now: Now) {
        let jobs: Vec<JobId> = self.members.get(&node).map(|member| member.jobs().collect()).unwrap_or_default();
        for id in jobs {
            let unanswered = |active: &&Active| self.is_of_the_start(id) && !active.job.is_numbered();
            let Some(active) = self.active.get(&id).filter(unanswered) else { continue };
            let attempt = active.job.attempt;
            self.lose(node, id, News::Ran(attempt), now);
        }
    }

    /// A task of ours whose attempt is later than any we know of.
    pub(super) fn catch_up(&mut self, node: NodeId, report: &TaskReport, now: Now) {
        let (Some(id), Some(attempt)) = (report.key.job_id, report.key.attempt) else { return };
        let Some(active) = self.active.get(&id).filter(|active| attempt > active.job.attempt) else { return };
        if id >= self.first_new {
            self.change(id, News::Taken(attempt), now);
        } else if active.inherited {
            log::warn!("job {id} is attempt {attempt} on node {node}, of which this master's database knows nothing");
            self.skip_used_numbers(id);
            self.change(id, News::Found(node, attempt), now);
        }
    }

    /// Whose the reported task is, if it is none of the active jobs' as we know them.
    pub(super) fn whose(&self, node: NodeId, report: &TaskReport) -> Option<Whose> {
        let Some(id) = report.key.job_id.filter(|_| report.key.master.as_ref() == Some(&self.instance)) else {
            return Some(Whose::Anothers);
        };
        let Some(active) = self.active.get(&id) else {
            let known = id < self.first_new || self.turn.ended.contains_key(&id) || self.is_in_the_database(id);
            if report.status.is_final() && !known {
                log::warn!(
                    "node {node} tells that job {id} is {}; this master's database does not know that job",
                    report.status
                );
            }
            return Some(if known { Whose::OfNoAttempt } else { Whose::OfNoJob });
        };
        let ours = Some(active.job.attempt) == report.key.attempt
            && active.job.placed.is_some_and(|placed| placed.node == node);
        (!ours).then_some(if id >= self.first_new && active.job.lost_attempts == 0 {
            Whose::OfNoJob
        } else {
            Whose::OfNoAttempt
        })
    }

    /// A roll call was answered.
    pub(super) fn heard_out(&mut self, node: NodeId) {
        if let Some(member) = self.members.get_mut(&node) {
            member.tells_all(true);
        }
    }
}
