//! What nodes say to the owner: events, answers to creates and kills, what is free, or nothing.

use std::time::{Duration, Instant};

use wire::node::{Answer, Created, Events, NodeResource, Refusal, RefusalCode};
use wire::task::TaskReport;
use wire::{Attempt, EventNumber, InstanceId, JobId, NodeId, TaskId};

use super::{AFTER_A_FAILED_CALL, CLOSED_UNTIL_ASKED, Call, Owner};
use crate::job::Job;
use crate::life::News;
use crate::nodes::{Member, Now, RollCall, Whose};
use crate::poller::{Heard, Said};

impl Owner {
    pub(super) fn hear(&mut self, Heard { node, said }: Heard, now: Now) {
        if !self.members.contains_key(&node) {
            return;
        }
        self.turn.touched.insert(node);
        match said {
            Said::Events { after, answer: Ok(events) } => self.hear_events(node, after, events, now),
            Said::Events { answer: Err(why), .. } => self.hear_silence(node, &why, now),
            Said::Created { tasks, unheard, answer } => self.hear_created(node, &tasks, unheard, answer, now),
            Said::Killed { job, task, answer } => self.hear_killed(node, job, task, answer, now),
            Said::Free { answer } => {
                self.hear_free(node, answer, now);
                self.less_doubt(node);
            }
        }
    }

    /// A poll was not answered; the next one finds out whether the node is back.
    pub(super) fn hear_silence(&mut self, node: NodeId, why: &str, now: Now) {
        if let Some(member) = self.members.get_mut(&node) {
            member.polled(false);
        }
        let delay = self.note_silence(node, why, now);
        self.order_poll(node, delay);
    }

    /// Whatever was asked and not answered, the node gets nothing new until it has answered something. Returns when to
    /// try again.
    pub(super) fn note_silence(&mut self, node: NodeId, why: &str, now: Now) -> Duration {
        let Some(member) = self.members.get_mut(&node) else { return Duration::ZERO };
        let (delay, lost_now) = member.failed(why, self.nodes.time_out, now);
        if lost_now {
            log::warn!("node {node} is lost: {why}");
            self.watch_lost(node);
        }
        // From now on the polls find out when it is back, and must not leave that to one that would tell in a minute.
        if self.members.get(&node).is_some_and(|member| member.is_lost() && member.is_parked()) {
            self.order_poll(node, delay);
        }
        delay
    }

    pub(super) fn hear_events(&mut self, node: NodeId, after: EventNumber, events: Events, now: Now) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let resource = events.resource;
        if resource.node_id != node {
            let why = format!("it calls itself node {}; hint: start it with --node-id {node}", resource.node_id);
            self.hear_silence(node, &why, now);
            return;
        }
        let instance = resource.instance.clone();
        let stranger = member.whose(&instance) == Whose::Stranger;
        // Of the node that was there before.
        let stamped = member.stamped();
        let went_back = events.last < after;
        let missed = member.is_lost() && !member.is_rolling();
        if member.answered(resource, now) {
            log::info!("node {node} is ready");
        }
        let rebooted = !stranger && member.is_booted_anew();
        let unasked =
            missed || (rebooted && !member.rolls_in_this_boot()) || (member.is_rolling() && after > EventNumber(0));
        let mut forgot_too_much = false;
        if let Some(remembered) = &events.remembered {
            let known = self.members.get(&node).and_then(Member::followed);
            let acknowledged = known.filter(|(known, _)| **known == instance).map_or(EventNumber(0), |(_, last)| last);
            forgot_too_much = self.compare(node, acknowledged, remembered, now);
        }
        if stranger {
            log::warn!("node {node} has another state dir than before; the tasks it had are lost");
            self.forget_all(node, stamped, now);
        }
        if after > EventNumber(0) && (stranger || went_back) {
            // These events were counted from a number of another history.
            self.follow_node(node, instance, EventNumber(0));
            self.order_roll_call(node, Duration::ZERO);
            return;
        }
        if unasked {
            // A power cut may have taken tasks of which no event tells. So may another master's tasks, while nobody asked for
            // ours: a node remembers so many that have ended, whosesoever they are.
            self.order_roll_call(node, Duration::ZERO);
            return;
        }
        if rebooted && self.is_creating_on(node) {
            // Whether the node may have that is known once the create has come to its end, as it soon will.
            self.order_roll_call(node, AFTER_A_FAILED_CALL);
            return;
        }
        if after == EventNumber(0)
            && let Some(member) = self.members.get_mut(&node)
        {
            member.strangers().clear();
        }
        let missing = self.hear_reports(node, &events.events, now);
        if rebooted {
            let told = events.remembered.map(|remembered| remembered.acknowledged).unwrap_or_default();
            let is_told = |job: &Job| {
                forgot_too_much || told.iter().any(|end| end.job_id == job.id && end.attempt >= job.attempt)
            };
            self.hear_reboot(node, &missing, is_told, now);
        } else {
            self.lose_forgotten(node, &missing, now);
        }
        if forgot_too_much {
            self.doubt_unanswered(node, now);
        }
        if after == EventNumber(0) {
            self.heard_out(node);
        }
        self.follow_boot(node);
        self.follow_node(node, instance, events.last);
        self.ask_again_if_closed(node);
        self.order_poll(node, Duration::ZERO);
        self.call_again(node);
    }

    fn is_creating_on(&self, node: NodeId) -> bool {
        let mut jobs = self.members.get(&node).into_iter().flat_map(Member::jobs);
        jobs.any(|job| self.active.get(&job).is_some_and(|active| active.call == Call::Creating))
    }

    /// Returns whom a roll call looked for that they leave out.
    fn hear_reports(&mut self, node: NodeId, reports: &[TaskReport], now: Now) -> RollCall {
        let mut roll = self.members.get_mut(&node).map(Member::end_roll_call).unwrap_or_default();
        for report in reports {
            let ours = report.key.job_id.filter(|_| report.key.master.as_ref() == Some(&self.instance));
            if let Some(job) = ours {
                roll.numbered.remove(&job);
                roll.unnumbered.remove(&job);
                self.catch_up(node, report, now);
                if self.active.get(&job).is_some_and(|active| active.job.is_abandoned()) {
                    // That it is there after all comes first.
                    self.change(job, News::Reported(node, report), now);
                }
                self.change(job, News::Reported(node, report), now);
                self.mind_stray(node, job, report);
            }
            let whose = self.whose(node, report);
            if let Some(member) = self.members.get_mut(&node) {
                member.strangers().note(report, whose);
            }
            let Some(job) = ours else { continue };
            let active = self.active.get_mut(&job).filter(|active| Some(active.job.attempt) == report.key.attempt);
            let Some(active) = active else { continue };
            active.stuck.clone_from(&report.stuck);
            if let Some(member) = self.members.get_mut(&node) {
                member.count(job);
            }
        }
        roll
    }

    fn lose_forgotten(&mut self, node: NodeId, missing: &RollCall, now: Now) {
        for job in missing.numbered.iter().copied().filter(|job| self.active.contains_key(job)).collect::<Vec<_>>() {
            log::warn!("node {node} knows nothing of job {job}");
            self.lose(node, job, News::Forgotten(node), now);
        }
    }

    /// The node's machine was booted anew, and of these jobs it knows nothing: a power cut took what it wrote last. What
    /// was sent to it before may have begun there, and is not begun again; what was sent since was not taken. But where it
    /// was told that we knew the end, no boot is to blame: our database is an older copy, and that job has run.
    fn hear_reboot(&mut self, node: NodeId, missing: &RollCall, is_told: impl Fn(&Job) -> bool, now: Now) {
        let may_have_begun = |id: &JobId| {
            let Some(active) = self.active.get(id) else { return false };
            let Some(placed_at) = active.placed_at else { return true };
            (active.job.is_numbered() || active.unheard)
                && self.members.get(&node).is_none_or(|member| member.may_have_booted_since(placed_at))
        };
        let begun: Vec<JobId> = missing.unnumbered.iter().copied().filter(may_have_begun).collect();
        let known: Vec<JobId> = missing.numbered.iter().copied().collect();
        for id in known.into_iter().chain(begun) {
            let Some(job) = self.active.get(&id).map(|active| &active.job) else { continue };
            if is_told(job) {
                log::warn!("node {node} was told that this master knew the end of job {id}; it is lost");
                self.lose(node, id, News::Forgotten(node), now);
            } else {
                log::warn!("node {node} was booted anew and knows nothing of job {id} any more");
                self.lose(node, id, News::Rebooted(node), now);
            }
        }
    }

    /// `stamped`: when a stamp of the node that had them was last heard.
    pub(super) fn forget_all(&mut self, node: NodeId, stamped: Instant, now: Now) {
        let jobs: Vec<JobId> = self.members.get(&node).map(|member| member.jobs().collect()).unwrap_or_default();
        for job in jobs {
            self.lose(node, job, News::Wiped(node), now);
            self.watch_abandoned(job, stamped);
        }
    }

    pub(super) fn follow_node(&mut self, node: NodeId, instance: InstanceId, last: EventNumber) {
        let Some(member) = self.members.get_mut(&node) else { return };
        if member.followed() == Some((&instance, last)) {
            return;
        }
        member.follow(instance, last);
        self.turn.followed.insert(node);
    }

    /// All that it has was heard, if it was asked for that in this boot of its machine.
    fn follow_boot(&mut self, node: NodeId) {
        let Some(member) = self.members.get_mut(&node) else { return };
        if member.spoken_boot() != member.boot() {
            member.follow_boot();
            self.turn.followed.insert(node);
        }
    }

    pub(super) fn hear_created(
        &mut self,
        node: NodeId,
        tasks: &[(JobId, Attempt)],
        unheard: bool,
        answer: Result<Vec<Answer<Created>>, String>,
        now: Now,
    ) {
        for (job, attempt) in tasks {
            self.call_ended(*job, Some(*attempt), Call::Creating);
            let active = self.active.get_mut(job).filter(|active| active.job.attempt == *attempt);
            if let Some(active) = active {
                active.unheard |= unheard;
            }
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
                self.note_silence(node, &why, now);
                self.order_ask(node, AFTER_A_FAILED_CALL);
            }
        }
    }

    pub(super) fn hear_created_one(
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
            // The answer brings a new stamp, and the create is sent again with it.
            Err(Refusal { code: RefusalCode::Stale, .. }) => self.order_ask(node, Duration::ZERO),
            // A node of an older version that cannot write down what it takes, and does not say so of itself. A create of
            // this attempt that it has not answered may still be on its way there, and be taken once it can.
            Err(Refusal { code: RefusalCode::Busy, .. }) if !self.is_unheard(job, attempt) => {
                self.change(job, News::NoRoom(attempt), now);
            }
            Err(refusal) => match refusal.code {
                RefusalCode::BadInput
                | RefusalCode::Impossible
                | RefusalCode::NotFound
                | RefusalCode::AlreadyRun
                | RefusalCode::Unknown => {
                    self.change(job, News::Refused(attempt, &in_words(&refusal)), now);
                }
                _ => {
                    log::warn!("node {node} did not take job {job}, it is sent again: {}", refusal.message);
                    self.order_ask(node, AFTER_A_FAILED_CALL);
                    if let Some(active) = self.active.get_mut(&job).filter(|active| active.job.attempt == attempt) {
                        active.stuck = Some(format!("node {node} does not take it: {}", refusal.message));
                    }
                }
            },
        }
    }

    fn is_unheard(&self, job: JobId, attempt: Attempt) -> bool {
        let active = self.active.get(&job).filter(|active| active.job.attempt == attempt);
        // What an earlier life of this master sent, nobody knows.
        active.is_some_and(|active| active.unheard || active.inherited)
    }

    pub(super) fn hear_killed(
        &mut self,
        node: NodeId,
        job: JobId,
        task: TaskId,
        answer: Result<Result<(), Refusal>, String>,
        now: Now,
    ) {
        if let Err(why) = &answer {
            log::warn!("node {node} did not hear that task {task} is to be killed: {why}");
            self.note_silence(node, why, now);
            self.order_ask(node, AFTER_A_FAILED_CALL);
        }
        let done = matches!(answer, Ok(Ok(()) | Err(Refusal { code: RefusalCode::NotFound, .. })));
        if self.hear_of_stray(node, task, done) {
            return;
        }
        let Some(active) = self.active.get_mut(&job) else { return };
        let same = active.job.placed.is_some_and(|placed| placed.node == node && placed.task == Some(task));
        if same && active.call == Call::Killing {
            active.call = Call::Idle;
        }
        match answer {
            Ok(Ok(())) if same => active.call = Call::KillTaken,
            // The end of a task the node has forgotten was acknowledged, so committed; this job's was not.
            Ok(Err(Refusal { code: RefusalCode::NotFound, .. })) if same => self.order_roll_call(node, Duration::ZERO),
            Ok(Err(refusal)) if same => {
                log::warn!("node {node} did not kill task {task}, it is asked again: {}", refusal.message);
                self.order_ask(node, AFTER_A_FAILED_CALL);
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// That it takes tasks again is no event on a node, so one that takes none is asked now and then.
    fn ask_again_if_closed(&mut self, node: NodeId) {
        if self.members.get(&node).is_some_and(Member::is_closed) {
            self.order_ask(node, CLOSED_UNTIL_ASKED);
        }
    }

    pub(super) fn hear_free(&mut self, node: NodeId, answer: Result<NodeResource, String>, now: Now) {
        let Some(member) = self.members.get_mut(&node) else { return };
        member.ask_ended();
        let acquainted = member.followed().is_some_and(|(instance, _)| {
            answer.as_ref().is_ok_and(|said| said.instance == *instance && said.node_id == node)
        });
        match answer {
            Ok(said) if acquainted => {
                let missed = member.is_lost() && !member.is_rolling();
                member.answered(said, now);
                if missed || (member.is_booted_anew() && !member.rolls_in_this_boot()) {
                    self.order_roll_call(node, Duration::ZERO);
                }
                self.ask_again_if_closed(node);
                self.call_again(node);
            }
            // Somebody else answers there; the next events say who.
            Ok(_) => {}
            Err(why) => {
                let delay = self.note_silence(node, &why, now);
                // Once it is lost the polls find out when it is back; this is for what only fails now and then.
                if !self.members.get(&node).is_some_and(Member::is_lost) {
                    self.order_ask(node, delay);
                }
            }
        }
    }
}

fn in_words(refusal: &Refusal) -> String {
    match &refusal.field {
        Some(field) => format!("{field}: {}", refusal.message),
        None => refusal.message.clone(),
    }
}
