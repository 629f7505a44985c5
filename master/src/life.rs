//! The life of one job: what a piece of news changes. Pure; `jobs.rs` writes the change down and acts on it.
//!
//! ```text
//!   Pending[ ] ──Placed──▶ Pending[A] ──Reported──▶ Running ──Reported──▶ Finished | Timeout | Failed | Killed
//!     │   ▲                 │  │  │                    │                                  ▲
//!     │   └─────NoRoom──────┘  │  └─Reported, Refused, lost, NoRoom of a dying job────────┤
//!     └──KillAsked─────────────┼───────────────────────┴──lost────────────────────────────┘
//!                              └ Accepted: the task's number becomes known
//! ```
//!
//! A job is lost if its node has Forgotten it or was Removed. News may come late, twice or out of order: over two
//! connections the answer to a create can arrive after the task's end. Whatever is of another attempt, or of a job that
//! has ended, changes nothing.

use jiff::Timestamp;
use wire::task::TaskReport;
use wire::{Attempt, NodeId, Reason, State, TaskId};

use crate::job::{Job, Placed};

/// What happened to a job.
#[derive(Debug, Clone, Copy)]
pub enum News<'a> {
    /// The scheduler found a node for it.
    Placed(NodeId),
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
    /// The operator has taken the node that had the task out of the cluster: nobody will ever say how it ended.
    Removed(NodeId),
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
    /// Its end is wanted and has to come from the node.
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

/// What `news` changes about `job`; `None`: nothing. `kill_asked`: somebody wants its end already.
pub fn change(job: &Job, kill_asked: bool, news: News<'_>, now: Timestamp) -> Option<Change> {
    match job.status {
        State::Pending => change_of_pending(job, news, now),
        State::Assigned => change_of_assigned(job, kill_asked, news, now),
        State::Running => change_of_running(job, kill_asked, news, now),
        State::Finished | State::Timeout | State::Failed | State::Killed => None,
    }
}

fn change_of_pending(job: &Job, news: News<'_>, now: Timestamp) -> Option<Change> {
    match news {
        News::Placed(node) => Some(Change::Assigned { node, attempt: Attempt(job.attempt.0.saturating_add(1)) }),
        News::KillAsked => Some(ended(State::Killed, None, now)),
        // No node has it: what still speaks of it is late news of an attempt that did not fit.
        News::Accepted(..)
        | News::NoRoom(_)
        | News::Refused(..)
        | News::Reported(..)
        | News::Forgotten(_)
        | News::Removed(_) => None,
    }
}

fn change_of_assigned(job: &Job, kill_asked: bool, news: News<'_>, now: Timestamp) -> Option<Change> {
    let numbered = job.placed.is_some_and(|placed| placed.task.is_some());
    match news {
        News::KillAsked => (!kill_asked).then_some(Change::Dying),
        News::Accepted(attempt, task) => (attempt == job.attempt && !numbered).then_some(Change::Numbered { task }),
        News::NoRoom(attempt) if attempt == job.attempt && !numbered => {
            Some(if kill_asked { ended(State::Killed, None, now) } else { Change::Returned })
        }
        News::Refused(attempt, message) if attempt == job.attempt && !numbered => {
            Some(ended(State::Failed, Some(Reason::Refused { message: message.to_owned() }), now))
        }
        // A task that exists was neither refused nor turned away: the node took this attempt before.
        News::NoRoom(_) | News::Refused(..) => None,
        News::Reported(node, report) => of_report(job, node, report, now),
        News::Forgotten(node) => lost(job, node, Reason::Lost, now),
        News::Removed(node) => lost(job, node, Reason::NodeLost, now),
        // It has a node; the scheduler places waiting jobs only.
        News::Placed(_) => None,
    }
}

fn change_of_running(job: &Job, kill_asked: bool, news: News<'_>, now: Timestamp) -> Option<Change> {
    match news {
        News::KillAsked => (!kill_asked).then_some(Change::Dying),
        News::Reported(node, report) => of_report(job, node, report, now),
        News::Forgotten(node) => lost(job, node, Reason::Lost, now),
        News::Removed(node) => lost(job, node, Reason::NodeLost, now),
        // It runs, so the node took it: these are late.
        News::Accepted(..) | News::NoRoom(_) | News::Refused(..) | News::Placed(_) => None,
    }
}

/// What a report says that we do not know yet. The node's word on the end is the truth, whatever we asked for.
fn of_report(job: &Job, node: NodeId, report: &TaskReport, now: Timestamp) -> Option<Change> {
    let placed = job.placed.filter(|placed| placed.node == node)?;
    if report.key.attempt != Some(job.attempt) {
        return None;
    }
    match (job.status, report.status) {
        (State::Assigned, State::Assigned) => {
            placed.task.is_none().then_some(Change::Numbered { task: report.task_id })
        }
        (State::Assigned, State::Running) => Some(Change::Started { task: report.task_id, at: report.started_at }),
        // Said before, or older than what we know.
        (State::Running, State::Assigned | State::Running) => None,
        (State::Assigned | State::Running, State::Finished | State::Timeout | State::Failed | State::Killed) => {
            // `Failed` always says why; a node that does not is an older one.
            let cause = (report.status == State::Failed).then(|| report.cause.clone().unwrap_or(Reason::Unknown));
            let at = report.ended_at.unwrap_or(now);
            Some(Change::Ended(Box::new(End { status: report.status, cause, at, report: Some(report.clone()) })))
        }
        // A task has a node, so it cannot be waiting for one.
        (State::Assigned | State::Running, State::Pending) => None,
        // Neither waiting nor ended jobs come here.
        (State::Pending | State::Finished | State::Timeout | State::Failed | State::Killed, _) => None,
    }
}

fn lost(job: &Job, node: NodeId, reason: Reason, now: Timestamp) -> Option<Change> {
    let here = job.placed.is_some_and(|placed| placed.node == node);
    here.then(|| ended(State::Failed, Some(reason), now))
}

fn ended(status: State, cause: Option<Reason>, now: Timestamp) -> Change {
    Change::Ended(Box::new(End { status, cause, at: now, report: None }))
}

impl Change {
    /// Makes it so.
    pub fn apply(self, job: &mut Job) {
        match self {
            Change::Assigned { node, attempt } => {
                job.status = State::Assigned;
                job.attempt = attempt;
                job.placed = Some(Placed { node, task: None });
            }
            Change::Numbered { task } => number(job, task),
            Change::Started { task, at } => {
                number(job, task);
                job.status = State::Running;
                job.started_at = at;
            }
            Change::Returned => {
                job.status = State::Pending;
                job.placed = None;
            }
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
        if let Some(report) = self.report {
            number(job, report.task_id);
            job.exit_code = report.exit_code;
            job.started_at = report.started_at.or(job.started_at);
            job.cpu_ms = report.cpu_ms;
            job.memory_peak_bytes = report.memory_peak_bytes;
        }
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

    fn after(job: &Job, kill_asked: bool, news: News<'_>) -> Job {
        let mut job = job.clone();
        if let Some(change) = change(&job, kill_asked, news, NOW) {
            change.apply(&mut job);
        }
        job
    }

    #[test]
    fn placed_makes_the_next_attempt() {
        let placed = after(&job(State::Pending, None), false, News::Placed(NODE));
        assert_eq!((placed.status, placed.attempt), (State::Assigned, Attempt(1)));
        assert_eq!(placed.placed, Some(Placed { node: NODE, task: None }));
    }

    #[test]
    fn kill_ends_a_waiting_job_at_once_and_asks_the_node_for_any_other() {
        assert_eq!(after(&job(State::Pending, None), false, News::KillAsked).status, State::Killed);
        for status in [State::Assigned, State::Running] {
            assert_eq!(change(&job(status, None), false, News::KillAsked, NOW), Some(Change::Dying));
            assert_eq!(change(&job(status, None), true, News::KillAsked, NOW), None);
        }
    }

    #[test]
    fn no_room_sends_it_back_and_keeps_counting_attempts() {
        let back = after(&job(State::Assigned, None), false, News::NoRoom(Attempt(2)));
        assert_eq!((back.status, back.placed, back.attempt), (State::Pending, None, Attempt(2)));
        assert_eq!(after(&back, false, News::Placed(NODE)).attempt, Attempt(3));
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
    fn news_of_another_attempt_or_another_node_changes_nothing() {
        let other = report(JobId(1), Attempt(1), TaskId(4), State::Failed);
        for status in [State::Assigned, State::Running] {
            let job = job(status, None);
            assert_eq!(change(&job, false, News::Reported(NODE, &other), NOW), None);
            assert_eq!(change(&job, false, News::Reported(NodeId(4), &told(State::Finished)), NOW), None);
            assert_eq!(change(&job, false, News::Forgotten(NodeId(4)), NOW), None);
            assert_eq!(change(&job, false, News::NoRoom(Attempt(1)), NOW), None);
            assert_eq!(change(&job, false, News::Refused(Attempt(1), ""), NOW), None);
            assert_eq!(change(&job, false, News::Accepted(Attempt(1), TaskId(4)), NOW), None);
        }
    }

    #[test]
    fn a_final_state_never_changes() {
        for status in State::ALL.into_iter().filter(|status| status.is_final()) {
            let job = job(status, Some(TaskId(8)));
            for said in State::ALL {
                assert_eq!(change(&job, false, News::Reported(NODE, &told(said)), NOW), None);
            }
            for news in [News::KillAsked, News::Placed(NODE), News::NoRoom(Attempt(2)), News::Forgotten(NODE)] {
                assert_eq!(change(&job, false, news, NOW), None);
            }
        }
    }

    #[test]
    fn hearing_anything_twice_is_hearing_it_once() {
        for said in [State::Assigned, State::Running, State::Finished] {
            let once = after(&job(State::Assigned, None), false, News::Reported(NODE, &told(said)));
            assert_eq!(after(&once, false, News::Reported(NODE, &told(said))), once);
        }
    }
}
