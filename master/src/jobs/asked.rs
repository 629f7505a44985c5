//! What users ask of the owner: submissions, kills, and how things stand.

use std::collections::{BTreeSet, HashSet};
use std::sync::mpsc::Sender;
use std::time::Duration;

use jiff::Timestamp;
use wire::node::NodeResource;
use wire::{JobId, JobSpec, NodeId, State};

use super::{Active, Call, DOUBT, Doubted, Holds, Owner, RefusedJob, Reply, tell};
use crate::job::{Job, Node};
use crate::life::News;
use crate::nodes::{Member, Now};
use crate::scheduler::{Need, check_possible};

impl Owner {
    pub(super) fn submit(&mut self, specs: Vec<JobSpec>, reply: Sender<Result<Vec<Job>, RefusedJob>>, now: Now) {
        let Some((specs, reply)) = self.hold_early((specs, reply), now) else { return };
        match self.check_possible(&specs) {
            Ok(()) => self.accept(specs, reply, now),
            Err(refused) if refused.bad.field == "imageId" => self.doubt(specs, reply, now),
            Err(refused) => tell(&reply, Err(refused)),
        }
    }

    pub(super) fn doubt(&mut self, specs: Vec<JobSpec>, reply: Sender<Result<Vec<Job>, RefusedJob>>, now: Now) {
        let ready = self.members.iter().filter(|(_, member)| member.is_ready());
        let asked: BTreeSet<NodeId> = ready.map(|(node, _)| *node).collect();
        for node in &asked {
            self.order_another_ask(*node, Duration::ZERO);
        }
        self.doubted.push(Doubted { specs, reply, asked, until: now.clock + DOUBT });
    }

    /// A node has said what images it has now, or cannot.
    pub(super) fn less_doubt(&mut self, node: NodeId) {
        for doubted in &mut self.doubted {
            doubted.asked.remove(&node);
        }
    }

    /// Decides on the submissions for which everyone has answered, or nobody else did in time.
    pub(super) fn settle_doubts(&mut self, now: Now) {
        let decided = |doubted: &mut Doubted| doubted.asked.is_empty() || doubted.until <= now.clock;
        let settled: Vec<Doubted> = self.doubted.extract_if(.., decided).collect();
        for Doubted { specs, reply, .. } in settled {
            match self.check_possible(&specs) {
                Ok(()) => self.accept(specs, reply, now),
                Err(refused) => tell(&reply, Err(refused)),
            }
        }
    }

    pub(super) fn accept(&mut self, specs: Vec<JobSpec>, reply: Sender<Result<Vec<Job>, RefusedJob>>, now: Now) {
        let submitted_at = now.wall;
        let ids: Vec<JobId> = specs.into_iter().map(|spec| self.add(spec, submitted_at)).collect();
        self.turn.added.extend(&ids);
        self.turn.durable = true;
        self.turn.replies.push(Reply::Submitted(ids, reply));
    }

    pub(super) fn add(&mut self, spec: JobSpec, submitted_at: Timestamp) -> JobId {
        let id = self.next_id;
        self.next_id = JobId(id.0 + 1);
        self.scheduler.wait(id, Need::of(&spec));
        let job = Job::submitted(id, spec, submitted_at);
        let active = Active {
            job,
            kill_asked: false,
            stuck: None,
            call: Call::Idle,
            inherited: false,
            placed_at: None,
            unheard: false,
        };
        self.active.insert(id, active);
        id
    }

    /// Refuses what no node could ever run, where that can be known: every node has told what it has.
    pub(super) fn check_possible(&self, specs: &[JobSpec]) -> Result<(), RefusedJob> {
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

    pub(super) fn kill(&mut self, id: JobId, reply: Sender<Option<Job>>, now: Now) {
        if self.active.contains_key(&id) || self.turn.ended.contains_key(&id) {
            self.change(id, News::KillAsked, now);
            return self.turn.replies.push(Reply::Killed(id, reply));
        }
        match self.store.job(id) {
            Ok(kept) => tell(&reply, kept.map(|kept| kept.job)),
            Err(error) => log::error!("{error}"),
        }
    }

    pub(super) fn shown(&self) -> Vec<Node> {
        self.members.values().map(Member::shown).collect()
    }

    pub(super) fn holds(&self, id: JobId, now: Now) -> Holds {
        Holds { waits: self.why(id, now), stuck: self.active.get(&id).and_then(|active| active.stuck.clone()) }
    }

    fn why(&self, id: JobId, now: Now) -> Option<String> {
        let job = &self.active.get(&id)?.job;
        match job.status {
            State::Pending if self.holds_placements() => self.why_held(),
            State::Pending => Some(self.scheduler.why_waiting(id, &job.spec, &self.shown())),
            State::Assigned => self.why_unheard(job, now).or_else(|| {
                let member = self.members.get(&job.placed?.node)?;
                let (node, addr) = (job.placed?.node, member.shown().addr);
                Some(match member.trouble() {
                    Some(trouble) => format!("given to node {node} at {addr}, which does not answer: {trouble}"),
                    None => format!("given to node {node} at {addr}, which has not started it yet"),
                })
            }),
            State::Running => self.why_unheard(job, now),
            State::Finished | State::Timeout | State::Failed | State::Killed => None,
        }
    }
}
