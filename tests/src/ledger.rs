//! What was asked of a cluster that is being killed all the time, and whether it came true: each job ended as it had to,
//! once, and its command ran at most once.
//!
//! A command says on its stdout that it ran. Logs are appended to and never emptied, so a command that ran twice has
//! said so twice, as the same task or as another. A job under a lease may be tried again: then each attempt says so once,
//! and its init, in the monitor's log, that it was over before the next one began.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
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
        let command = format!("{first}echo ran $BERTH_JOB_ID $BERTH_ATTEMPT\n{command}");
        let choice = if self.is_tried_again() { "retry" } else { "wait" };
        let resource = json!({"cpu": 0.5, "mem": 16});
        let fields = [("name", json!(name)), ("timeout", json!(timeout)), ("onNodeLoss", json!(choice))];
        let mut job = job_with(&command, &fields);
        job["resource"] = resource;
        job
    }

    /// Whether it is, when its lease has run out.
    fn is_tried_again(self) -> bool {
        matches!(self, Kind::Leased(_) | Kind::LostOnce)
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

/// A command that said that it ran, and what its init said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which attempt it was.
    pub attempt: u32,
    /// When its init was told to start it.
    pub began: Option<Timestamp>,
    /// When nothing of it was alive any more.
    pub ended: Option<Timestamp>,
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

    /// What is wrong with these jobs, all ended, given when each said that it ran.
    pub fn judge(&self, jobs: &[Job], runs: &BTreeMap<u64, Vec<Run>>) -> Verdict {
        let mut verdict = Verdict::default();
        for (name, entry) in &self.entries {
            let of_name: Vec<&Job> = jobs.iter().filter(|job| job.name == *name).collect();
            match of_name[..] {
                [job] => judge_one(entry, job, runs.get(&job.job_id).map_or(&[], Vec::as_slice), &mut verdict),
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

fn judge_one(entry: &Entry, job: &Job, runs: &[Run], verdict: &mut Verdict) {
    let said = format!("job {} ({:?}{})", job.job_id, entry.kind, if entry.killed { ", killed" } else { "" });
    let outcome = job.outcome();
    let own = outcome == entry.kind.outcome();
    let by_fault = entry.or.as_ref().is_some_and(|(head, tail)| outcome.starts_with(head) && outcome.ends_with(tail));
    let allowed = own || (entry.killed && outcome == "Killed") || by_fault;
    if !allowed || entry.id.is_some_and(|id| id != job.job_id) {
        verdict.lost.push(format!("{said} ended as {outcome}, submitted as {:?}", entry.id));
    }
    let doubled = if entry.kind.is_tried_again() { !one_after_the_other(runs) } else { runs.len() > 1 };
    if doubled {
        verdict.doubled.push(format!("{said} ran {} times and ended as {outcome}: {runs:?}", runs.len()));
    }
    // Its time counts from its start, and on a busy machine it can be up before the first word.
    let had_no_time = entry.kind == Kind::TimesOut && job.started_at.is_some();
    if runs.is_empty() && own && !had_no_time {
        verdict.lost.push(format!("{said} ended as {outcome} and never ran"));
    }
}

/// Whether each attempt ran once, and was seen to be over before the next began.
fn one_after_the_other(runs: &[Run]) -> bool {
    let mut runs: Vec<&Run> = runs.iter().collect();
    runs.sort_by_key(|run| run.attempt);
    runs.windows(2).all(|pair| {
        let [before, next] = [pair[0], pair[1]];
        let over = before.ended.zip(next.began).is_some_and(|(ended, began)| ended <= began);
        before.attempt < next.attempt && over
    })
}

/// The runs of each job that said that it ran, in all logs below the share.
pub fn runs(share: &Path) -> BTreeMap<u64, Vec<Run>> {
    let mut runs: BTreeMap<u64, Vec<Run>> = BTreeMap::new();
    for folder in task_folders(share) {
        let Ok(files) = fs::read_dir(&folder) else { continue };
        let monitor = fs::read_to_string(folder.join("monitor_out")).unwrap_or_default();
        let (began, ended) = times(&monitor);
        for file in files.flatten().filter(|file| file.file_name().to_string_lossy().starts_with("task_stdout")) {
            let text = fs::read_to_string(file.path()).unwrap_or_default();
            for (job, attempt) in text.lines().filter_map(who_ran) {
                runs.entry(job).or_default().push(Run { attempt, began, ended });
            }
        }
    }
    runs
}

/// The job and the attempt of a line `ran JOB [ATTEMPT]`.
fn who_ran(line: &str) -> Option<(u64, u32)> {
    let mut numbers = line.strip_prefix("ran ")?.split(' ');
    let job = numbers.next()?.parse().ok()?;
    Some((job, numbers.next().map_or(Some(1), |attempt| attempt.parse().ok())?))
}

/// When the command was to start at last, and when all of it was over, as the monitor says.
fn times(monitor: &str) -> (Option<Timestamp>, Option<Timestamp>) {
    let lines: Vec<(&str, &str)> = monitor.lines().filter_map(|line| line.split_once(' ')).collect();
    let Some(start) = lines.iter().rposition(|(_, said)| *said == "told to go") else { return (None, None) };
    let end = lines[start..].iter().find(|(_, said)| said.starts_with("end: "));
    (lines[start].0.parse().ok(), end.and_then(|(time, _)| time.parse().ok()))
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
    use crate::sandbox::Sandbox;

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
        let verdict = ledger.judge(jobs, &BTreeMap::from([(7, vec![run(1, 0, 1); runs])]));
        (verdict.lost.len(), verdict.doubled.len())
    }

    fn run(attempt: u32, began: i64, ended: i64) -> Run {
        let at = |second| Timestamp::from_second(second).ok();
        Run { attempt, began: at(began), ended: at(ended) }
    }

    #[test]
    fn a_job_that_is_tried_again_is_doubled_unless_each_attempt_ran_once_and_was_over_before_the_next() {
        let doubled = |runs: &[Run]| {
            let mut ledger = Ledger::default();
            ledger.submitted("a".to_owned(), Kind::Leased(100), Some(7));
            let finished = [job(7, "a", "Finished", None)];
            !ledger.judge(&finished, &BTreeMap::from([(7, runs.to_vec())])).doubled.is_empty()
        };
        assert!(!doubled(&[run(1, 0, 5)]));
        assert!(!doubled(&[run(3, 9, 12), run(1, 0, 5), run(2, 5, 9)]));
        assert!(doubled(&[run(1, 0, 5), run(1, 0, 5)]), "one attempt twice");
        assert!(doubled(&[run(1, 0, 5), run(2, 4, 9)]), "two at once");
        assert!(doubled(&[Run { ended: None, ..run(1, 0, 5) }, run(2, 6, 9)]), "nobody saw its end");
    }

    #[test]
    fn the_runs_of_a_task_are_read_from_its_logs() {
        let sandbox = Sandbox::new();
        let folder = sandbox.folder("nodes/0/task4");
        // It was launched in vain before.
        let monitor = "1970-01-01T00:00:00.500Z end: left: the supervisor was gone before it said go\n\
                       1970-01-01T00:00:01.000Z told to go\n1970-01-01T00:00:01.010Z command started\n\
                       1970-01-01T00:00:05.250Z end: exit code 0\n";
        fs::write(folder.join("monitor_out"), monitor).expect("write");
        fs::write(folder.join("task_stdout"), "ran 7 2\nmore\n").expect("write");
        fs::write(folder.join("task_stdout.12"), "ran 6\n").expect("write");
        let ran = runs(sandbox.dir());
        assert_eq!(ran[&7], [Run { ended: Timestamp::from_millisecond(5250).ok(), ..run(2, 1, 5) }]);
        assert_eq!((ran[&6].len(), ran[&6][0].attempt, ran.len()), (1, 1, 2));
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
        assert_eq!(
            ledger.judge(&[job(9, "a", "Finished", None)], &BTreeMap::from([(9, vec![run(1, 0, 1)])])),
            Verdict::default()
        );
    }
}
