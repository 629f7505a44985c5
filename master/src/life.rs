//! The life of one job: what a piece of news changes. Pure; `jobs.rs` writes the change down and acts on it.
//!
//! ```text
//!   Pending[ ] ──Placed──▶ Pending[A] ──Reported──▶ Running ──Reported──▶ Finished | Timeout | Failed | Killed
//!     │   ▲                 │  │  │                    │                                  ▲
//!     │   └─────NoRoom──────┘  │  └─Reported, Refused, lost, NoRoom of a dying job────────┤
//!     └──KillAsked─────────────┼───────────────────────┴──lost────────────────────────────┘
//!     ▲                        ├ Accepted: the task's number becomes known
//!     └──lost with its node────┴ or from Running: it is to be retried, and nothing of the attempt can be alive
//! ```
//!
//! A job is lost if its node has Forgotten it, was Rebooted, Wiped or Removed. One under a lease is then abandoned first, until
//! LeaseOver says that nothing of it can be alive; the same news comes if its node was silent for so long. What is lost
//! with its node then is tried elsewhere, if its user wants that and it was not lost too often. News may come late, twice or out of order: over two
//! connections the answer to a create can arrive after the task's end. Whatever is of another attempt, or of a job that
//! has ended, changes nothing.

use std::time::Duration;

use jiff::Timestamp;
use wire::task::TaskReport;
use wire::{Attempt, NodeId, OnNodeLoss, Reason, State, TaskId};

use crate::job::{Job, Lease, Placed};

/// What happened to a job.
#[derive(Debug, Clone, Copy)]
pub enum News<'a> {
    /// The scheduler found a node for it, which is to run it under a lease of that length, or under none.
    Placed(NodeId, Option<Duration>),
    /// Somebody wants it to end.
    KillAsked,
    /// The node took this attempt, or had taken it before, as this task.
    Accepted(Attempt, TaskId),
    /// The node has no room for this attempt now.
    NoRoom(Attempt),
    /// The node will never run it.
    Refused(Attempt, &'a str),
    /// The node tells of the task. The caller has checked that the task is of this master and this job.
    Reported(NodeId, &'a TaskReport),
    /// The node that had the task knows of none.
    Forgotten(NodeId),
    /// The node was booted anew since it was given the task, and knows of none: a power cut took what it wrote last, and the
    /// task may have begun.
    Rebooted(NodeId),
    /// Another state dir answers in the place of the node that had the task, which may still run there.
    Wiped(NodeId),
    /// This attempt has run and ended, or may have, and nobody knows how: our database is an older copy. The caller has
    /// checked that the job's node does not tell of an earlier one that lives.
    Ran(Attempt),
    /// This attempt, later than any we know of, is a task of this node: our database is an older copy.
    Found(NodeId, Attempt),
    /// Attempts up to this one were another job's, which had the same number before our database was put back.
    Taken(Attempt),
    /// The operator has taken the node that had the task out of the cluster: nobody will ever say how it ended.
    Removed(NodeId),
    /// The node was not heard of for so long that nothing of the attempt can be alive there.
    LeaseOver(NodeId),
}

/// What news changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It belongs to a node now, as the next attempt.
    Assigned {
        /// Which.
        node: NodeId,
        /// The attempt.
        attempt: Attempt,
        /// Its lease.
        lease: Option<Duration>,
    },
    /// It belonged to a node before we knew, as a later attempt.
    Found {
        /// Which.
        node: NodeId,
        /// The attempt.
        attempt: Attempt,
    },
    /// Its attempts are counted from here on.
    Counted {
        /// The last that was used.
        attempt: Attempt,
    },
    /// The task's number is known.
    Numbered {
        /// The number.
        task: TaskId,
    },
    /// It runs.
    Started {
        /// As which task.
        task: TaskId,
        /// Since when.
        at: Option<Timestamp>,
    },
    /// It waits for a node again.
    Returned,
    /// Its attempt is lost with its node and nothing of it alive: it waits for a node again.
    Lost,
    /// Nobody renews its lease any more.
    Abandoned,
    /// Its node is back, and has it.
    Reclaimed,
    /// Its end is wanted and has to come from its node, or may have to.
    Dying,
    /// It is over.
    Ended(Box<End>),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// A final state.
    pub status: State,
    /// Why it failed.
    pub cause: Option<Reason>,
    /// When.
    pub at: Timestamp,
    /// What the node told, if the end came from there.
    pub report: Option<TaskReport>,
}

/// What else a change depends on.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// Somebody wants the job's end already.
    pub kill_asked: bool,
    /// It may be on a node that was not heard yet.
    pub in_doubt: bool,
    /// How many attempts of a job may be lost with their nodes.
    pub most_lost: u32,
    /// The time.
    pub now: Timestamp,
}

/// What `news` changes about `job`; `None`: nothing.
pub fn change(job: &Job, given: Given, news: News<'_>) -> Option<Change> {
    match job.status {
        State::Pending => change_of_pending(job, given, news),
        State::Assigned => change_of_assigned(job, given, news),
        State::Running => change_of_running(job, given, news),
        State::Finished | State::Timeout | State::Failed | State::Killed => None,
    }
}

fn change_of_pending(job: &Job, given: Given, news: News<'_>) -> Option<Change> {
    let Given { kill_asked, in_doubt, now, .. } = given;
    match news {
        News::Placed(node, lease) => {
            Some(Change::Assigned { node, attempt: Attempt(job.attempt.0.saturating_add(1)), lease })
        }
        News::KillAsked if in_doubt => (!kill_asked).then_some(Change::Dying),
        News::KillAsked => Some(ended(State::Killed, None, now)),
        News::Ran(attempt) => (attempt > job.attempt).then(|| ended(State::Failed, Some(Reason::RanUnknown), now)),
        News::Found(node, attempt) => found(job, node, attempt),
        News::Taken(attempt) => (attempt > job.attempt).then_some(Change::Counted { attempt }),
        // No node has it: what still speaks of it is late news of an attempt that did not fit.
        News::Accepted(..)
        | News::NoRoom(_)
        | News::Refused(..)
        | News::Reported(..)
        | News::Forgotten(_)
        | News::Rebooted(_)
        | News::Wiped(_)
        | News::Removed(_)
        | News::LeaseOver(_) => None,
    }
}

fn change_of_assigned(job: &Job, given: Given, news: News<'_>) -> Option<Change> {
    let Given { kill_asked, now, .. } = given;
    let numbered = job.is_numbered();
    match news {
        News::KillAsked => (!kill_asked).then_some(Change::Dying),
        News::Accepted(attempt, task) => (attempt == job.attempt && !numbered).then_some(Change::Numbered { task }),
        News::NoRoom(attempt) if attempt == job.attempt && !numbered => {
            Some(if kill_asked { ended(State::Killed, None, now) } else { Change::Returned })
        }
        News::Refused(attempt, message) if attempt == job.attempt && !numbered => {
            Some(ended(State::Failed, Some(Reason::Refused { message: message.to_owned() }), now))
        }
        // Of what has a number its node tells, unless a later attempt has run.
        News::Ran(attempt) if attempt > job.attempt || (attempt == job.attempt && !numbered) => {
            Some(ended(State::Failed, Some(Reason::RanUnknown), now))
        }
        // What was placed is counted.
        News::Ran(_) | News::Taken(_) => None,
        News::Found(node, attempt) => found(job, node, attempt),
        // A task that exists was neither refused nor turned away: the node took this attempt before.
        News::NoRoom(_) | News::Refused(..) => None,
        News::Reported(node, report) => of_report(job, given, node, report),
        News::Forgotten(_) | News::Rebooted(_) | News::Wiped(_) | News::Removed(_) | News::LeaseOver(_) => {
            of_loss(job, given, news)
        }
        // It has a node; the scheduler places waiting jobs only.
        News::Placed(..) => None,
    }
}

fn change_of_running(job: &Job, given: Given, news: News<'_>) -> Option<Change> {
    match news {
        News::KillAsked => (!given.kill_asked).then_some(Change::Dying),
        News::Reported(node, report) => of_report(job, given, node, report),
        News::Forgotten(_) | News::Rebooted(_) | News::Wiped(_) | News::Removed(_) | News::LeaseOver(_) => {
            of_loss(job, given, news)
        }
        News::Found(node, attempt) => found(job, node, attempt),
        News::Ran(attempt) if attempt > job.attempt => Some(ended(State::Failed, Some(Reason::RanUnknown), given.now)),
        // It runs, so the node took it: these are late, or its node says itself what became of it.
        News::Accepted(..) | News::NoRoom(_) | News::Refused(..) | News::Placed(..) | News::Ran(_) | News::Taken(_) => {
            None
        }
    }
}

/// What a report says that we do not know yet. The node's word on the end is the truth, whatever we asked for.
fn of_report(job: &Job, given: Given, node: NodeId, report: &TaskReport) -> Option<Change> {
    let placed = job.placed.filter(|placed| placed.node == node)?;
    if report.key.attempt != Some(job.attempt) {
        return None;
    }
    match (job.status, report.status) {
        // Of a node that is back in the cluster. Its polls renew the lease from now on.
        (State::Assigned | State::Running, State::Assigned | State::Running) if job.is_abandoned() => {
            Some(Change::Reclaimed)
        }
        (State::Assigned, State::Assigned) => {
            placed.task.is_none().then_some(Change::Numbered { task: report.task_id })
        }
        (State::Assigned, State::Running) => Some(Change::Started { task: report.task_id, at: report.started_at }),
        // Said before, or older than what we know.
        (State::Running, State::Assigned | State::Running) => None,
        (State::Assigned | State::Running, State::Finished | State::Timeout | State::Failed | State::Killed) => {
            // `Failed` always says why; a node that does not is an older one.
            let cause = (report.status == State::Failed).then(|| report.cause.clone().unwrap_or(Reason::Unknown));
            let at = report.ended_at.unwrap_or(given.now);
            let end = End { status: report.status, cause, at, report: Some(report.clone()) };
            Some(match &end.cause {
                Some(Reason::NodeRebooted) => rebooted(job, given, end),
                Some(Reason::LeaseOver) => with_its_node(job, given, End { cause: node_lost(job), ..end }),
                _ => Change::Ended(Box::new(end)),
            })
        }
        // A task has a node, so it cannot be waiting for one.
        (State::Assigned | State::Running, State::Pending) => None,
        // Neither waiting nor ended jobs come here.
        (State::Pending | State::Finished | State::Timeout | State::Failed | State::Killed, _) => None,
    }
}

/// What is lost with its node, forgotten there, or about to be.
fn of_loss(job: &Job, given: Given, news: News<'_>) -> Option<Change> {
    let here = |node| job.placed.is_some_and(|placed| placed.node == node);
    let failed = |cause| Some(ended(State::Failed, Some(cause), given.now));
    match news {
        News::Forgotten(node) if here(node) && !job.is_abandoned() => failed(Reason::Lost),
        News::Rebooted(node) if here(node) && !job.is_abandoned() => {
            let end = End { status: State::Failed, cause: Some(Reason::NodeRebooted), at: given.now, report: None };
            Some(rebooted(job, given, end))
        }
        News::Wiped(node) | News::Removed(node) if here(node) && job.lease.is_some() => {
            (!job.is_abandoned()).then_some(Change::Abandoned)
        }
        News::Wiped(node) if here(node) => failed(Reason::Lost),
        News::Removed(node) if here(node) => failed(Reason::NodeLost { attempts: 1 }),
        News::LeaseOver(node) if here(node) && job.lease.is_some() => {
            let end = End { status: State::Failed, cause: node_lost(job), at: given.now, report: None };
            Some(with_its_node(job, given, end))
        }
        _ => None,
    }
}

fn node_lost(job: &Job) -> Option<Reason> {
    Some(Reason::NodeLost { attempts: job.lost_attempts.saturating_add(1) })
}

/// The boot ended it, whether or not somebody had asked for its end.
fn rebooted(job: &Job, given: Given, end: End) -> Change {
    if given.kill_asked { Change::Ended(Box::new(end)) } else { with_its_node(job, given, end) }
}

/// An attempt is lost with its node, and nothing of it is alive. `end`: how the job ends, if it does.
fn with_its_node(job: &Job, given: Given, end: End) -> Change {
    let lost = job.lost_attempts.saturating_add(1);
    match job.spec.on_node_loss {
        _ if given.kill_asked => Change::Ended(Box::new(End { status: State::Killed, cause: None, ..end })),
        OnNodeLoss::Retry if lost < given.most_lost => Change::Lost,
        OnNodeLoss::Retry => Change::Ended(Box::new(End { cause: node_lost(job), ..end })),
        OnNodeLoss::Wait | OnNodeLoss::Fail => Change::Ended(Box::new(end)),
    }
}

fn found(job: &Job, node: NodeId, attempt: Attempt) -> Option<Change> {
    (attempt > job.attempt).then_some(Change::Found { node, attempt })
}

fn ended(status: State, cause: Option<Reason>, now: Timestamp) -> Change {
    Change::Ended(Box::new(End { status, cause, at: now, report: None }))
}

impl Change {
    /// Makes it so.
    pub fn apply(self, job: &mut Job) {
        match self {
            // Whether it runs under a lease its node does not tell; should that run out there, it says so.
            Change::Found { node, attempt } => {
                Change::Assigned { node, attempt, lease: None }.apply(job);
            }
            Change::Assigned { node, attempt, lease } => {
                job.status = State::Assigned;
                job.attempt = attempt;
                job.placed = Some(Placed { node, task: None });
                job.lease = lease.map(|length| Lease { length, abandoned: false });
            }
            Change::Counted { attempt } => job.attempt = attempt,
            Change::Numbered { task } => number(job, task),
            Change::Started { task, at } => {
                number(job, task);
                job.status = State::Running;
                job.started_at = at;
            }
            Change::Returned => give_back(job),
            Change::Lost => {
                give_back(job);
                job.lost_attempts = job.lost_attempts.saturating_add(1);
            }
            Change::Abandoned => abandon(job, true),
            Change::Reclaimed => abandon(job, false),
            Change::Dying => {}
            Change::Ended(end) => end.apply(job),
        }
    }
}

impl End {
    fn apply(self, job: &mut Job) {
        job.status = self.status;
        job.cause = self.cause;
        job.ended_at = Some(self.at);
        job.lease = None;
        if let Some(report) = self.report {
            number(job, report.task_id);
            job.exit_code = report.exit_code;
            job.started_at = report.started_at.or(job.started_at);
            job.cpu_ms = report.cpu_ms;
            job.memory_peak_bytes = report.memory_peak_bytes;
        }
    }
}

fn give_back(job: &mut Job) {
    job.status = State::Pending;
    job.placed = None;
    job.lease = None;
    job.started_at = None;
}

fn abandon(job: &mut Job, abandoned: bool) {
    if let Some(lease) = &mut job.lease {
        lease.abandoned = abandoned;
    }
}

fn number(job: &mut Job, task: TaskId) {
    if let Some(placed) = &mut job.placed {
        placed.task = Some(task);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::job::tests::spec;
    use wire::task::TaskOrigin;
    use wire::{ContainerId, EventNumber, JobId};

    const NODE: NodeId = NodeId(3);
    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// A report as a node would give it.
    pub fn report(job: JobId, attempt: Attempt, task: TaskId, status: State) -> TaskReport {
        TaskReport {
            event: EventNumber(task.0),
            task_id: task,
            container_id: ContainerId(task),
            key: TaskOrigin { job_id: Some(job), attempt: Some(attempt), master: None },
            status,
            cause: (status == State::Failed).then_some(Reason::ExitCode { code: 3 }),
            reason: None,
            stuck: None,
            exit_code: status.is_final().then_some(i32::from(status == State::Failed) * 3),
            started_at: (status > State::Assigned).then_some(NOW),
            ended_at: status.is_final().then_some(NOW),
            cpu_ms: status.is_final().then_some(5),
            memory_peak_bytes: status.is_final().then_some(4096),
        }
    }

    fn job(status: State, task: Option<TaskId>) -> Job {
        let mut job = Job::submitted(JobId(1), spec(), NOW);
        job.status = status;
        if status != State::Pending {
            job.attempt = Attempt(2);
            job.placed = Some(Placed { node: NODE, task });
        }
        job
    }

    fn told(status: State) -> TaskReport {
        report(JobId(1), Attempt(2), TaskId(8), status)
    }

    fn given(kill_asked: bool) -> Given {
        Given { kill_asked, in_doubt: false, most_lost: 3, now: NOW }
    }

    fn after(job: &Job, kill_asked: bool, news: News<'_>) -> Job {
        let mut job = job.clone();
        if let Some(change) = change(&job, given(kill_asked), news) {
            change.apply(&mut job);
        }
        job
    }

    #[test]
    fn placed_makes_the_next_attempt() {
        let placed = after(&job(State::Pending, None), false, News::Placed(NODE, None));
        assert_eq!((placed.status, placed.attempt), (State::Assigned, Attempt(1)));
        assert_eq!(placed.placed, Some(Placed { node: NODE, task: None }));
    }

    #[test]
    fn kill_ends_a_waiting_job_at_once_and_asks_the_node_for_any_other() {
        assert_eq!(after(&job(State::Pending, None), false, News::KillAsked).status, State::Killed);
        for status in [State::Assigned, State::Running] {
            assert_eq!(change(&job(status, None), given(false), News::KillAsked), Some(Change::Dying));
            assert_eq!(change(&job(status, None), given(true), News::KillAsked), None);
        }
    }

    #[test]
    fn no_room_sends_it_back_and_keeps_counting_attempts() {
        let back = after(&job(State::Assigned, None), false, News::NoRoom(Attempt(2)));
        assert_eq!((back.status, back.placed, back.attempt), (State::Pending, None, Attempt(2)));
        assert_eq!(after(&back, false, News::Placed(NODE, None)).attempt, Attempt(3));
    }

    #[test]
    fn no_room_for_a_job_somebody_wants_killed_is_its_end() {
        assert_eq!(after(&job(State::Assigned, None), true, News::NoRoom(Attempt(2))).status, State::Killed);
    }

    #[test]
    fn refused_is_failed_with_the_nodes_sentence() {
        let failed = after(&job(State::Assigned, None), false, News::Refused(Attempt(2), "no such image"));
        assert_eq!(failed.status, State::Failed);
        assert_eq!(failed.reason().unwrap(), "refused by the node: no such image");
    }

    #[test]
    fn reported_carries_a_job_through_running_to_its_end() {
        let assigned = after(&job(State::Assigned, None), false, News::Reported(NODE, &told(State::Assigned)));
        assert_eq!((assigned.status, assigned.placed.unwrap().task), (State::Assigned, Some(TaskId(8))));
        let running = after(&assigned, false, News::Reported(NODE, &told(State::Running)));
        assert_eq!((running.status, running.started_at), (State::Running, Some(NOW)));
        for status in [State::Finished, State::Timeout, State::Failed, State::Killed] {
            let ended = after(&running, false, News::Reported(NODE, &told(status)));
            assert_eq!((ended.status, ended.ended_at, ended.cpu_ms), (status, Some(NOW), Some(5)));
            assert_eq!(ended.cause.is_some(), status == State::Failed);
        }
    }

    #[test]
    fn an_end_that_overtakes_the_answer_to_the_create_is_taken_with_its_task() {
        let ended = after(&job(State::Assigned, None), false, News::Reported(NODE, &told(State::Finished)));
        assert_eq!((ended.status, ended.placed.unwrap().task), (State::Finished, Some(TaskId(8))));
        assert_eq!(after(&ended, false, News::Accepted(Attempt(2), TaskId(8))), ended);
    }

    #[test]
    fn forgotten_is_lost_never_a_success() {
        for status in [State::Assigned, State::Running] {
            let lost = after(&job(status, Some(TaskId(8))), false, News::Forgotten(NODE));
            assert_eq!((lost.status, lost.cause), (State::Failed, Some(Reason::Lost)));
        }
    }

    #[test]
    fn what_a_boot_took_is_node_rebooted_whether_or_not_its_task_had_a_number() {
        for job in
            [job(State::Assigned, None), job(State::Assigned, Some(TaskId(8))), job(State::Running, Some(TaskId(8)))]
        {
            for kill_asked in [false, true] {
                let lost = after(&job, kill_asked, News::Rebooted(NODE));
                assert_eq!((lost.status, lost.cause), (State::Failed, Some(Reason::NodeRebooted)));
            }
            assert_eq!(change(&job, given(false), News::Rebooted(NodeId(4))), None);
        }
        let again = after(&leased(State::Running, OnNodeLoss::Retry), false, News::Rebooted(NODE));
        assert_eq!((again.status, again.lost_attempts), (State::Pending, 1));
    }

    #[test]
    fn news_of_another_attempt_or_another_node_changes_nothing() {
        let other = report(JobId(1), Attempt(1), TaskId(4), State::Failed);
        for status in [State::Assigned, State::Running] {
            let job = job(status, None);
            assert_eq!(change(&job, given(false), News::Reported(NODE, &other)), None);
            assert_eq!(change(&job, given(false), News::Reported(NodeId(4), &told(State::Finished))), None);
            assert_eq!(change(&job, given(false), News::Forgotten(NodeId(4))), None);
            assert_eq!(change(&job, given(false), News::NoRoom(Attempt(1))), None);
            assert_eq!(change(&job, given(false), News::Refused(Attempt(1), "")), None);
            assert_eq!(change(&job, given(false), News::Accepted(Attempt(1), TaskId(4))), None);
        }
    }

    /// A job on its second attempt, under a lease.
    fn leased(status: State, choice: OnNodeLoss) -> Job {
        let mut job = job(status, Some(TaskId(8)));
        job.spec.on_node_loss = choice;
        job.lease = Some(Lease { length: Duration::from_secs(60), abandoned: false });
        job
    }

    fn lost_by(cause: Reason) -> TaskReport {
        TaskReport { cause: Some(cause), ..told(State::Failed) }
    }

    #[test]
    fn lost_with_its_node_a_job_is_tried_again_or_fails_as_its_user_chose() {
        for status in [State::Assigned, State::Running] {
            let waits = after(&leased(status, OnNodeLoss::Retry), false, News::LeaseOver(NODE));
            assert_eq!((waits.status, waits.placed, waits.lease), (State::Pending, None, None));
            assert_eq!((waits.attempt, waits.lost_attempts, waits.started_at), (Attempt(2), 1, None));
            let failed = after(&leased(status, OnNodeLoss::Fail), false, News::LeaseOver(NODE));
            assert_eq!((failed.status, failed.reason()), (State::Failed, Some("node lost".into())));
            let stays = job(status, Some(TaskId(8)));
            assert_eq!(change(&stays, given(false), News::LeaseOver(NODE)), None, "it has no lease");
            assert_eq!(change(&leased(status, OnNodeLoss::Fail), given(false), News::LeaseOver(NodeId(4))), None);
        }
    }

    #[test]
    fn a_job_that_is_lost_with_one_node_after_the_other_fails_and_says_so() {
        let mut job = leased(State::Running, OnNodeLoss::Retry);
        job.lost_attempts = 2;
        let failed = after(&job, false, News::LeaseOver(NODE));
        let reason = "node lost (3 attempts, each lost with its node)";
        assert_eq!((failed.status, failed.reason().as_deref()), (State::Failed, Some(reason)));
        let no_room = after(&job, false, News::NoRoom(Attempt(2)));
        assert_eq!(no_room.lost_attempts, 2, "a create that did not fit is not a lost attempt");
    }

    #[test]
    fn a_lease_that_ran_out_on_the_node_and_a_reboot_are_a_node_lost() {
        for cause in [Reason::LeaseOver, Reason::NodeRebooted] {
            let report = lost_by(cause.clone());
            let retried = after(&leased(State::Running, OnNodeLoss::Retry), false, News::Reported(NODE, &report));
            assert_eq!((retried.status, retried.lost_attempts), (State::Pending, 1), "{cause}");
            let failed = after(&leased(State::Running, OnNodeLoss::Fail), false, News::Reported(NODE, &report));
            let reason = if cause == Reason::LeaseOver { "node lost" } else { "node rebooted" };
            assert_eq!((failed.reason().as_deref(), failed.cpu_ms), (Some(reason), Some(5)));
        }
        let rebooted = lost_by(Reason::NodeRebooted);
        let waited = after(&job(State::Running, Some(TaskId(8))), false, News::Reported(NODE, &rebooted));
        assert_eq!(waited.reason().as_deref(), Some("node rebooted"));
        let lost = lost_by(Reason::Lost);
        let lost = after(&leased(State::Running, OnNodeLoss::Retry), false, News::Reported(NODE, &lost));
        assert_eq!(lost.reason().as_deref(), Some("lost"), "the node is there, and nobody knows how it went");
    }

    #[test]
    fn a_dying_job_that_is_lost_with_its_node_is_killed_and_never_tried_again() {
        let job = leased(State::Running, OnNodeLoss::Retry);
        assert_eq!(after(&job, true, News::LeaseOver(NODE)).status, State::Killed);
        assert_eq!(after(&job, true, News::Reported(NODE, &lost_by(Reason::LeaseOver))).status, State::Killed);
        let rebooted = after(&job, true, News::Reported(NODE, &lost_by(Reason::NodeRebooted)));
        assert_eq!(rebooted.reason().as_deref(), Some("node rebooted"));
    }

    #[test]
    fn wiped_or_removed_abandons_a_job_under_a_lease_until_that_has_run_out() {
        for news in [News::Wiped(NODE), News::Removed(NODE)] {
            let job = leased(State::Running, OnNodeLoss::Retry);
            let abandoned = after(&job, false, news);
            assert_eq!((abandoned.status, abandoned.is_abandoned()), (State::Running, true));
            for more in [news, News::Forgotten(NODE), News::Rebooted(NODE)] {
                assert_eq!(change(&abandoned, given(false), more), None);
            }
            assert_eq!(after(&abandoned, false, News::LeaseOver(NODE)).status, State::Pending);
            let found = after(&abandoned, false, News::Reported(NODE, &told(State::Running)));
            assert_eq!(found, job, "it is there after all");
            assert_eq!(after(&abandoned, false, News::Reported(NODE, &told(State::Finished))).status, State::Finished);
        }
    }

    #[test]
    fn wiped_or_removed_ends_a_job_without_a_lease() {
        let job = job(State::Running, Some(TaskId(8)));
        assert_eq!(after(&job, false, News::Wiped(NODE)).reason().as_deref(), Some("lost"));
        assert_eq!(after(&job, false, News::Removed(NODE)).reason().as_deref(), Some("node lost"));
    }

    #[test]
    fn a_final_state_never_changes() {
        for status in State::ALL.into_iter().filter(|status| status.is_final()) {
            let job = job(status, Some(TaskId(8)));
            for said in State::ALL {
                assert_eq!(change(&job, given(false), News::Reported(NODE, &told(said))), None);
            }
            for news in [News::KillAsked, News::Placed(NODE, None), News::NoRoom(Attempt(2)), News::Forgotten(NODE)] {
                assert_eq!(change(&job, given(false), news), None);
            }
        }
    }

    #[test]
    fn what_has_run_in_a_time_the_database_does_not_know_is_over_unless_its_node_can_tell_of_that_attempt() {
        let ran = |job: &Job, attempt| after(job, false, News::Ran(Attempt(attempt)));
        for (job, attempt) in [(job(State::Pending, None), 1), (job(State::Assigned, None), 2)] {
            let over = ran(&job, attempt);
            assert_eq!((over.status, over.cause), (State::Failed, Some(Reason::RanUnknown)));
            assert_eq!(ran(&job, attempt - 1), job, "that attempt is known");
        }
        for job in [job(State::Assigned, Some(TaskId(8))), job(State::Running, Some(TaskId(8)))] {
            assert_eq!(ran(&job, 2), job);
            assert_eq!(ran(&job, 3).cause, Some(Reason::RanUnknown), "attempts are never alive side by side");
        }
    }

    #[test]
    fn a_later_attempt_that_a_node_has_is_the_jobs_true_one() {
        for status in [State::Pending, State::Assigned, State::Running] {
            let found = after(&job(status, Some(TaskId(8))), false, News::Found(NodeId(7), Attempt(3)));
            assert_eq!((found.status, found.attempt), (State::Assigned, Attempt(3)));
            assert_eq!(found.placed, Some(Placed { node: NodeId(7), task: None }));
            assert_eq!(change(&found, given(false), News::Found(NODE, Attempt(3))), None);
        }
    }

    #[test]
    fn attempts_of_another_job_of_the_same_number_are_left_out() {
        let counted = after(&job(State::Pending, None), false, News::Taken(Attempt(4)));
        assert_eq!((counted.status, counted.attempt), (State::Pending, Attempt(4)));
        assert_eq!(after(&counted, false, News::Placed(NODE, None)).attempt, Attempt(5));
        assert_eq!(change(&counted, given(false), News::Taken(Attempt(2))), None);
    }

    #[test]
    fn hearing_anything_twice_is_hearing_it_once() {
        for said in [State::Assigned, State::Running, State::Finished] {
            let once = after(&job(State::Assigned, None), false, News::Reported(NODE, &told(said)));
            assert_eq!(after(&once, false, News::Reported(NODE, &told(said))), once);
        }
    }
}
