//! What was asked of a cluster that is being killed all the time, and whether it came true: each job ended as it had to,
//! once, and its command ran at most once.
//!
//! A command says on its stdout that it ran. Logs are appended to and never emptied, so a command that ran twice has
//! said so twice, as the same task or as another.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::job::{Job, job_with};

/// What a job does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Exits with 0 after so many milliseconds.
    Finishes(u32),
    /// The same under a lease.
    Leased(u32),
    /// Stays when it is tried for the first time, until its lease has run out, and exits with 0 when it is tried again.
    LostOnce,
    /// Exits with 0 and leaves a process behind that has left its session.
    LeavesAnOrphan,
    /// Exits with 3.
    Fails,
    /// Runs longer than it may.
    TimesOut,
    /// Runs until it is killed.
    Stays,
}

impl Kind {
    /// The job, called by that name.
    pub fn job(self, name: &str) -> Value {
        let (command, timeout) = match self {
            Kind::Finishes(0) => (String::new(), 0),
            Kind::LostOnce => (String::new(), 0),
            Kind::Finishes(ms) | Kind::Leased(ms) => (format!("sleep {}.{:03}", ms / 1000, ms % 1000), 0),
            Kind::LeavesAnOrphan => ("setsid sleep 1000 & exit 0".to_owned(), 0),
            Kind::Fails => ("exit 3".to_owned(), 0),
            Kind::TimesOut => ("sleep 1000".to_owned(), 150),
            Kind::Stays => ("sleep 1000".to_owned(), 0),
        };
        let first = if self == Kind::LostOnce { "[ $BERTH_ATTEMPT != 1 ] || exec sleep 1000\n" } else { "" };
        let command = format!("{first}echo ran $BERTH_JOB_ID\n{command}");
        let choice = if matches!(self, Kind::Leased(_) | Kind::LostOnce) { "retry" } else { "wait" };
        let resource = json!({"cpu": 0.5, "mem": 16});
        let fields = [("name", json!(name)), ("timeout", json!(timeout)), ("onNodeLoss", json!(choice))];
        let mut job = job_with(&command, &fields);
        job["resource"] = resource;
        job
    }

    /// How it ends if nobody kills it.
    pub fn outcome(self) -> &'static str {
        match self {
            Kind::Finishes(_) | Kind::Leased(_) | Kind::LostOnce | Kind::LeavesAnOrphan => "Finished",
            Kind::Fails => "Failed: exit code 3",
            Kind::TimesOut => "Timeout",
            Kind::Stays => "never",
        }
    }
}

/// One job that was submitted.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it does.
    pub kind: Kind,
    /// Its number, if the submission was answered or the job was found afterwards.
    pub id: Option<u64>,
    /// Whether the submission was answered: then the job must be there.
    pub answered: bool,
    /// Whether its end was asked for.
    pub killed: bool,
    /// How an end that an ordered fault may give it as well begins, and how it ends.
    pub or: Option<(String, String)>,
}

/// All of them, by name.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<String, Entry>,
    count: u64,
}

/// What was wrong; empty lists if nothing was.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Jobs that were answered and are not there, or did not end as they had to.
    pub lost: Vec<String>,
    /// Jobs whose command ran more than once, or that are there twice.
    pub doubled: Vec<String>,
}

impl Ledger {
    /// A name nobody has had yet.
    pub fn name(&mut self) -> String {
        self.count += 1;
        format!("storm-{:08}", self.count)
    }

    /// A job was submitted under that name; `id` is what was answered, if anything was.
    pub fn submitted(&mut self, name: String, kind: Kind, id: Option<u64>) {
        self.entries.insert(name, Entry { kind, id, answered: id.is_some(), killed: false, or: None });
    }

    /// The jobs that are to be judged.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.iter()
    }

    /// One of them.
    pub fn entry(&mut self, name: &str) -> &mut Entry {
        self.entries.get_mut(name).unwrap_or_else(|| panic!("nobody submitted {name}"))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is wrong with these jobs, all ended, given how often each said that it ran.
    pub fn judge(&self, jobs: &[Job], runs: &BTreeMap<u64, usize>) -> Verdict {
        let mut verdict = Verdict::default();
        for (name, entry) in &self.entries {
            let of_name: Vec<&Job> = jobs.iter().filter(|job| job.name == *name).collect();
            match of_name[..] {
                [job] => judge_one(entry, job, runs.get(&job.job_id).copied().unwrap_or(0), &mut verdict),
                [] if entry.answered => verdict.lost.push(format!("{name} was answered and is gone")),
                // It was not answered, and is not there.
                [] => {}
                [..] => verdict.doubled.push(format!("{name} is there {} times", of_name.len())),
            }
        }
        verdict
    }

    /// Forgets what was judged.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

fn judge_one(entry: &Entry, job: &Job, runs: usize, verdict: &mut Verdict) {
    let said = format!("job {} ({:?}{})", job.job_id, entry.kind, if entry.killed { ", killed" } else { "" });
    let outcome = job.outcome();
    let own = outcome == entry.kind.outcome();
    let by_fault = entry.or.as_ref().is_some_and(|(head, tail)| outcome.starts_with(head) && outcome.ends_with(tail));
    let allowed = own || (entry.killed && outcome == "Killed") || by_fault;
    if !allowed || entry.id.is_some_and(|id| id != job.job_id) {
        verdict.lost.push(format!("{said} ended as {outcome}, submitted as {:?}", entry.id));
    }
    if runs > 1 {
        verdict.doubled.push(format!("{said} ran {runs} times and ended as {outcome}"));
    }
    // Its time counts from its start, and on a busy machine it can be up before the first word.
    let had_no_time = entry.kind == Kind::TimesOut && job.started_at.is_some();
    if runs == 0 && own && !had_no_time {
        verdict.lost.push(format!("{said} ended as {outcome} and never ran"));
    }
}

/// How often each job said that it ran, in all logs below the share.
pub fn runs(share: &Path) -> BTreeMap<u64, usize> {
    let mut runs = BTreeMap::new();
    for folder in task_folders(share) {
        let Ok(files) = fs::read_dir(&folder) else { continue };
        for file in files.flatten().filter(|file| file.file_name().to_string_lossy().starts_with("task_stdout")) {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            for job in text.lines().filter_map(|line| line.strip_prefix("ran ")?.parse().ok()) {
                *runs.entry(job).or_default() += 1;
            }
        }
    }
    runs
}

/// Removes the logs that were judged.
pub fn remove_logs(share: &Path) {
    for folder in task_folders(share) {
        fs::remove_dir_all(&folder).unwrap_or_else(|error| panic!("cannot remove {}: {error}", folder.display()));
    }
}

fn task_folders(share: &Path) -> Vec<std::path::PathBuf> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(&share.join("nodes")).flat_map(|node| entries(&node).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u64, name: &str, status: &str, reason: Option<&str>) -> Job {
        Job::from_json(&json!({
            "jobId": id, "name": name, "resource": {}, "commandLine": "", "packagePath": "", "imageId": "b", "timeout": 0,
            "status": status, "reason": reason, "nodeId": 0, "taskId": 1, "attempt": 1, "exitCode": null,
            "submittedAt": "", "startedAt": null, "endedAt": null, "cpuMs": null, "memoryPeakBytes": null,
        }))
    }

    fn verdict(kind: Kind, killed: bool, jobs: &[Job], runs: usize) -> (usize, usize) {
        let mut ledger = Ledger::default();
        ledger.submitted("a".to_owned(), kind, Some(7));
        ledger.entry("a").killed = killed;
        let verdict = ledger.judge(jobs, &BTreeMap::from([(7, runs)]));
        (verdict.lost.len(), verdict.doubled.len())
    }

    #[test]
    fn a_job_is_lost_unless_it_ended_as_it_had_to_and_doubled_if_it_ran_twice() {
        let finished = [job(7, "a", "Finished", None)];
        assert_eq!(verdict(Kind::Finishes(0), false, &finished, 1), (0, 0));
        assert_eq!(verdict(Kind::Finishes(0), false, &finished, 2), (0, 1));
        assert_eq!(verdict(Kind::Finishes(0), false, &finished, 0), (1, 0));
        assert_eq!(verdict(Kind::Finishes(0), false, &[], 0), (1, 0));
        assert_eq!(verdict(Kind::Finishes(0), false, &[finished[0].clone(), job(8, "a", "Finished", None)], 1), (0, 1));
        assert_eq!(verdict(Kind::Fails, false, &[job(7, "a", "Failed", Some("lost"))], 1), (1, 0));
        let killed = [job(7, "a", "Killed", None)];
        assert_eq!(verdict(Kind::Stays, true, &killed, 0), (0, 0));
        assert_eq!(verdict(Kind::Stays, false, &killed, 1), (1, 0));
        assert_eq!(verdict(Kind::Finishes(0), true, &finished, 1), (0, 0));
        let mut out_of_time = job(7, "a", "Timeout", None);
        assert_eq!(verdict(Kind::TimesOut, false, std::slice::from_ref(&out_of_time), 0), (1, 0), "it never began");
        out_of_time.started_at = Some("2026-01-01T00:00:00Z".into());
        assert_eq!(verdict(Kind::TimesOut, false, &[out_of_time], 0), (0, 0));
    }

    #[test]
    fn an_unanswered_submission_may_be_there_or_not() {
        let mut ledger = Ledger::default();
        ledger.submitted("a".to_owned(), Kind::Finishes(0), None);
        assert_eq!(ledger.judge(&[], &BTreeMap::new()), Verdict::default());
        assert_eq!(ledger.judge(&[job(9, "a", "Finished", None)], &BTreeMap::from([(9, 1)])), Verdict::default());
    }
}
