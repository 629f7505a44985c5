//! The tasks that live on a node and are no job's that this master runs: another master's, or its own that its database
//! does not know. They are left alone and told of. Pure.

use std::collections::BTreeMap;

use wire::task::TaskReport;
use wire::{JobId, TaskId};

/// How many of a kind are named; the others are counted.
const NAMED: usize = 5;

/// Whose a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Of this master, and of a job that its database does not know.
    OfNoJob,
    /// Of this master, and of a job that is over, or that runs as another attempt.
    OfNoAttempt,
    /// Another master's, or nobody's who has a name.
    Anothers,
}

/// Those of one node.
#[derive(Debug, Default)]
pub struct Strangers(BTreeMap<TaskId, (Whose, Option<JobId>)>);

impl Strangers {
    /// All of the node's tasks are about to be told anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What a report says; `None`: the task is where it should be.
    pub fn note(&mut self, report: &TaskReport, whose: Option<Whose>) {
        match whose.filter(|_| !report.status.is_final()) {
            Some(whose) => drop(self.0.insert(report.task_id, (whose, report.key.job_id))),
            None => drop(self.0.remove(&report.task_id)),
        }
    }

    /// A sentence for each kind there is.
    pub fn sentences(&self) -> Vec<String> {
        let kinds = [Whose::OfNoJob, Whose::OfNoAttempt, Whose::Anothers];
        kinds.into_iter().filter_map(|kind| self.sentence(kind)).collect()
    }

    fn sentence(&self, kind: Whose) -> Option<String> {
        let of_kind = || self.0.iter().filter(|(_, (whose, _))| *whose == kind);
        let count = of_kind().count();
        let name = |(task, (_, job)): (&TaskId, &(Whose, Option<JobId>))| match job {
            Some(job) => format!("job {job} as task {task}"),
            None => format!("task {task}"),
        };
        let mut names: Vec<String> = of_kind().take(NAMED).map(name).collect();
        names.extend((count > NAMED).then(|| format!("{} more", count - NAMED)));
        let (names, tasks) = (names.join(", "), if count == 1 { "task" } else { "tasks" });
        let left_alone = "left alone: to end one, POST /task/kill on the node";
        (count > 0).then(|| match kind {
            Whose::OfNoJob => format!(
                "runs {count} {tasks} of this master that its database does not know ({names}); {left_alone}; was \
                 the database put back from an older copy?"
            ),
            Whose::OfNoAttempt => {
                format!("runs {count} {tasks} of jobs that are over or run elsewhere ({names}); {left_alone}")
            }
            Whose::Anothers => format!("runs {count} {tasks} of another master ({names})"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::tests::report;
    use wire::{Attempt, State};

    fn told(job: u64, status: State) -> TaskReport {
        report(JobId(job), Attempt(1), TaskId(job + 100), status)
    }

    #[test]
    fn each_kind_is_counted_and_the_first_are_named() {
        let mut strangers = Strangers::default();
        strangers.note(&told(57, State::Running), Some(Whose::OfNoJob));
        (1..=7).for_each(|job| strangers.note(&told(job, State::Assigned), Some(Whose::Anothers)));
        let said = strangers.sentences();
        assert!(
            said[0].starts_with("runs 1 task of this master that its database does not know (job 57 as task 157);")
        );
        assert_eq!(
            said[1],
            "runs 7 tasks of another master (job 1 as task 101, job 2 as task 102, job 3 as task 103, job 4 as task \
             104, job 5 as task 105, 2 more)"
        );
    }

    #[test]
    fn a_task_that_has_ended_or_has_found_its_job_is_no_stranger() {
        let mut strangers = Strangers::default();
        for job in [1, 2] {
            strangers.note(&told(job, State::Running), Some(Whose::OfNoAttempt));
        }
        strangers.note(&told(1, State::Finished), Some(Whose::OfNoAttempt));
        strangers.note(&told(2, State::Running), None);
        assert_eq!(strangers.sentences(), Vec::<String>::new());
    }
}
