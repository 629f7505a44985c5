//! What a cluster promised before the power went, and whether it kept it: run inside the machine whose power goes.
//!
//! The machine's console is what outlives it. A line there is a word of honour: `acked` is a submission that was
//! answered, `saw` an end that was shown, `running` a job that was shown as running, `asked` that its end was asked for.
//! After the next boot those lines come back as the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::job::{Job, is_final};
use crate::ledger::{self, Kind};

/// What becomes of a task that ran when the power went.
const REBOOTED: &str = "Failed: node rebooted";

/// What one job was, and what was said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// What it was called.
    pub name: String,
    /// What it does.
    pub kind: Kind,
    /// Whether it was shown as running.
    pub ran: bool,
    /// Whether its end may have been asked for.
    pub asked: bool,
    /// The end that was shown.
    pub end: Option<String>,
}

/// All that was said before.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The jobs, by number.
    pub jobs: BTreeMap<u64, Promise>,
    /// What was wrong with the lines themselves: a number that was given out twice.
    pub reused: Vec<u64>,
    /// The last file that was written and never synced.
    pub canary: Option<String>,
}

/// The kinds that are submitted, in turn.
pub fn kind_of(number: u64) -> Kind {
    match number % 4 {
        0 => Kind::Finishes(0),
        1 => Kind::Stays,
        2 => Kind::Fails,
        _ => Kind::Finishes(800),
    }
}

/// The name of the job that is the `number`th of a round.
pub fn name(round: u64, number: u64) -> String {
    format!("power-{round}-{number}")
}

impl Ledger {
    /// From the lines of the console; what is none of ours is left out, a line that was cut short as well.
    pub fn read(text: &str) -> Ledger {
        let mut ledger = Ledger::default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let mut words = line.trim_end().splitn(3, ' ');
            let (word, first, rest) = (words.next().unwrap_or_default(), words.next(), words.next());
            let id = first.and_then(|first| first.parse::<u64>().ok());
            match (word, id, rest) {
                ("acked", Some(id), Some(name)) => ledger.acked(id, name),
                ("running", Some(id), None) => ledger.said(id, |job| job.ran = true),
                ("asked", Some(id), None) => ledger.said(id, |job| job.asked = true),
                ("saw", Some(id), Some(end)) => ledger.said(id, |job| job.end = Some(end.to_owned())),
                ("canary", _, None) => ledger.canary = first.map(str::to_owned),
                _ => {}
            }
        }
        ledger
    }

    fn acked(&mut self, id: u64, name: &str) {
        let number = name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let promise = Promise { name: name.to_owned(), kind: kind_of(number), ran: false, asked: false, end: None };
        if self.jobs.insert(id, promise).is_some() {
            self.reused.push(id);
        }
    }

    fn said(&mut self, id: u64, change: impl FnOnce(&mut Promise)) {
        if let Some(job) = self.jobs.get_mut(&id) {
            change(job);
        }
    }

    /// What of it is not true of these jobs, all ended. `killed`: whose end was asked for since.
    pub fn broken(&self, jobs: &BTreeMap<u64, Job>, killed: &BTreeSet<u64>) -> Vec<String> {
        let mut broken: Vec<String> = self.reused.iter().map(|id| format!("job {id} was given out twice")).collect();
        for (id, promise) in &self.jobs {
            broken.extend(promise.broken(*id, jobs.get(id), killed.contains(id)));
        }
        broken.extend(shared_tasks(jobs));
        broken
    }
}

impl Promise {
    fn broken(&self, id: u64, job: Option<&Job>, killed: bool) -> Option<String> {
        let Some(job) = job else { return Some(format!("job {id} was answered and is gone")) };
        if job.name != self.name {
            return Some(format!("job {id} was {} and is {}", self.name, job.name));
        }
        let outcome = job.outcome();
        let held = match &self.end {
            Some(end) => outcome == *end,
            None => (outcome == REBOOTED && job.attempt == 1) || self.own_end(&outcome, killed || self.asked),
        };
        (!held).then(|| format!("job {id} is {outcome} in attempt {}; what was said of it: {self:?}", job.attempt))
    }

    /// Whether it may end so by itself. One that stays and had been running cannot have been started again.
    fn own_end(&self, outcome: &str, killed: bool) -> bool {
        match self.kind {
            Kind::Stays => killed && !self.ran && outcome == "Killed",
            kind => outcome == kind.outcome(),
        }
    }
}

/// A node's task numbers count up for ever.
fn shared_tasks(jobs: &BTreeMap<u64, Job>) -> Vec<String> {
    let mut tasks = BTreeMap::new();
    let given = jobs.values().filter(|job| job.task_id >= 0);
    let twice =
        given.filter_map(|job| tasks.insert(job.task_id, job.job_id).map(|other| (job.task_id, other, job.job_id)));
    twice.map(|(task, one, other)| format!("jobs {one} and {other} are both task {task}")).collect()
}

/// Jobs that said twice that they ran.
pub fn doubled(share: &Path) -> Vec<String> {
    let runs = ledger::runs(share).into_iter().filter(|(_, runs)| runs.len() > 1);
    runs.map(|(job, runs)| format!("job {job} ran {} times", runs.len())).collect()
}

/// The master's newest jobs, by number.
pub fn jobs(table: &Value) -> BTreeMap<u64, Job> {
    table.as_array().into_iter().flatten().map(Job::from_json).map(|job| (job.job_id, job)).collect()
}

/// What is to be said of a job that has changed; `None`: nothing that binds.
pub fn word(job: &Job) -> Option<String> {
    if is_final(&job.status) {
        return Some(format!("saw {} {}", job.job_id, job.outcome()));
    }
    (job.status == "Running").then(|| format!("running {}", job.job_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(id: u64, name: &str, status: &str, reason: Option<&str>) -> Job {
        Job::from_json(&json!({
            "jobId": id, "name": name, "resource": {}, "commandLine": "", "packagePath": "", "imageId": "b", "timeout": 0,
            "status": status, "reason": reason, "nodeId": 0, "taskId": id, "attempt": 1, "exitCode": null,
            "submittedAt": "", "startedAt": null, "endedAt": null, "cpuMs": null, "memoryPeakBytes": null,
        }))
    }

    fn broken(console: &str, jobs: &[Job], killed: &[u64]) -> usize {
        let jobs = jobs.iter().map(|job| (job.job_id, job.clone())).collect();
        Ledger::read(console).broken(&jobs, &killed.iter().copied().collect()).len()
    }

    #[test]
    fn a_promise_is_broken_by_a_job_that_is_gone_or_another_or_has_another_end() {
        let finished = job(7, "power-1-0", "Finished", None);
        assert_eq!(broken("acked 7 power-1-0\r\n", std::slice::from_ref(&finished), &[]), 0);
        assert_eq!(broken("acked 7 power-1-0\nsaw 7 Finished\n", std::slice::from_ref(&finished), &[]), 0);
        assert_eq!(broken("acked 7 power-1-0\nsaw 7 Failed: exit code 3\n", std::slice::from_ref(&finished), &[]), 1);
        assert_eq!(broken("acked 7 power-2-0\n", std::slice::from_ref(&finished), &[]), 1);
        assert_eq!(broken("acked 7 power-1-2\n", &[], &[]), 1);
        assert_eq!(broken("acked 7 power-1-0\nacked 7 power-1-0\n", &[finished], &[]), 1);
    }

    #[test]
    fn what_ran_when_the_power_went_has_failed_by_that_and_what_waited_runs() {
        let rebooted = job(7, "power-1-1", "Failed", Some("node rebooted"));
        let killed = job(7, "power-1-1", "Killed", None);
        let said = "acked 7 power-1-1\nrunning 7\n";
        assert_eq!(broken(said, std::slice::from_ref(&rebooted), &[]), 0);
        assert_eq!(broken(said, std::slice::from_ref(&killed), &[7]), 1, "it was started again");
        assert_eq!(broken("acked 7 power-1-1\n", std::slice::from_ref(&killed), &[7]), 0);
        assert_eq!(broken("acked 7 power-1-1\n", &[killed], &[]), 1, "nobody asked for it");
    }

    #[test]
    fn a_line_that_was_cut_short_says_nothing() {
        assert!(Ledger::read("acked 7 power-1").jobs.is_empty());
        assert_eq!(Ledger::read("canary a\ncanary b\ncanary c").canary.as_deref(), Some("b"));
    }

    #[test]
    fn a_task_number_belongs_to_one_job() {
        let mut other = job(8, "power-1-0", "Finished", None);
        other.task_id = 7;
        let jobs = [job(7, "power-1-0", "Finished", None), other];
        assert_eq!(shared_tasks(&jobs.into_iter().map(|job| (job.job_id, job)).collect()).len(), 1);
    }
}
