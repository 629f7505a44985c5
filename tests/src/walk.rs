//! The walk through the fault points: each is come to once with a death, and each call once with each error it can fail
//! with; after each step the same checks as after a storm.

use std::fmt;

use wire::fault::{Errno, Kind as PointKind, Point, Process};

use crate::ledger::Kind;
use crate::storm::{Storm, Tally, Who};
use crate::wait::eventually;

/// A point, and what is to happen there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where.
    pub point: Point,
    /// The call fails with this; `None`: the process dies.
    pub errno: Option<Errno>,
}

impl fmt::Display for Step {
    /// As `BERTH_FAULT` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            None => f.write_str(self.point.name()),
            Some(errno) => write!(f, "{}={}", self.point.name(), errno.name()),
        }
    }
}

/// What came of a step.
#[derive(Debug)]
pub struct Taken {
    /// Whether the fault has happened.
    pub reached: bool,
    /// What came of the jobs.
    pub tally: Tally,
}

/// Every step there is in these processes.
pub fn steps(processes: &[Process]) -> Vec<Step> {
    let points = Point::ALL.iter().copied().filter(|point| processes.contains(&point.process()));
    points.flat_map(steps_at).collect()
}

/// How a step's line in docs/faults.md begins.
pub fn row(step: Step) -> String {
    format!("| `{step}` | {} | {} |", step.point.process().name(), step.point.meaning())
}

fn steps_at(point: Point) -> Vec<Step> {
    let errors: &[Errno] = match point.kind() {
        PointKind::Moment => &[],
        PointKind::Call(errors) => errors,
    };
    let fails = errors.iter().map(|errno| Step { point, errno: Some(*errno) });
    std::iter::once(Step { point, errno: None }).chain(fails).collect()
}

/// Takes a step: a job runs on, a daemon is started again with the fault ordered, and jobs of every kind are given to it.
pub fn take(storm: &mut Storm, step: Step) -> Taken {
    if is_of_a_lost_node(step.point) {
        return take_with_a_lost_node(storm, step);
    }
    let who = who(step);
    let before = storm.log(who).len();
    let runs_on = storm.submit(Kind::Finishes(400));
    let stays = storm.submit(Kind::Stays);
    wait_until_it_runs(storm, &stays);
    storm.strike(who);
    storm.start_again(who, Some(&step.to_string()));
    // The first init of the daemon's new life is this one's, and nobody else's.
    let victim = storm.submit(Kind::Finishes(0));
    storm.ledger().entry(&victim).or = end_by(step);
    wait_until_it_ends(storm, &victim);
    let outcome = storm.job(&victim).map(|job| job.outcome()).unwrap_or_default();
    for kind in [Kind::Fails, Kind::TimesOut, Kind::LeavesAnOrphan, Kind::Leased(100)] {
        storm.submit(kind);
    }
    storm.kill_job(&stays);
    wait_until_it_ends(storm, &runs_on);
    let tally = storm.settle();
    let log = storm.log(who);
    Taken { reached: has_happened(step, log.get(before..).unwrap_or_default(), &outcome), tally }
}

fn who(step: Step) -> Who {
    if step.point.process() == Process::Master { Who::Master } else { Who::Node(0) }
}

/// Nobody comes there as long as nodes and master hear of each other.
fn is_of_a_lost_node(point: Point) -> bool {
    matches!(point, Point::InitLeaseOver | Point::InitLeaseKilled | Point::LostUncommitted | Point::LostCommitted)
}

/// The supervisor is stopped until the lease of a job has run out and the master has given that attempt up, or died of it.
fn take_with_a_lost_node(storm: &mut Storm, step: Step) -> Taken {
    let who = who(step);
    let before = storm.log(who).len();
    storm.strike(who);
    storm.start_again(who, Some(&step.to_string()));
    let lost = storm.submit(Kind::LostOnce);
    wait_until_it_runs(storm, &lost);
    storm.freeze(0, true);
    wait_for(storm, &lost, |status| status == "Pending[ ]");
    storm.freeze(0, false);
    let tally = storm.settle();
    let log = storm.log(who);
    Taken { reached: has_happened(step, log.get(before..).unwrap_or_default(), ""), tally }
}

fn wait_until_it_runs(storm: &mut Storm, name: &str) {
    wait_for(storm, name, |status| status != "Pending[ ]" && status != "Pending[A]");
}

fn wait_until_it_ends(storm: &mut Storm, name: &str) {
    wait_for(storm, name, crate::job::is_final);
}

/// Or until somebody has died, and the wait would be in vain. What is not found is for the judgement to say.
fn wait_for(storm: &mut Storm, name: &str, is_so: impl Fn(&str) -> bool) {
    let _ = eventually(|| {
        let dead = !storm.is_up(Who::Master) || !storm.is_up(Who::Node(0));
        let done = storm.job(name).is_some_and(|job| is_so(&job.status));
        if dead || done { Ok(()) } else { Err(()) }
    });
}

/// An init's own log is its supervisor's only until it has opened the task's; after that its exit status tells, or how
/// its task ended.
fn has_happened(step: Step, log: &str, outcome: &str) -> bool {
    let said = log.contains(&format!("fault point {}", step.point.name()));
    let init_ended = || log.contains("has exited with status");
    let by_fault = || end_by(step).is_some_and(|(head, tail)| outcome.starts_with(&head) && outcome.ends_with(&tail));
    match step.point.process() {
        Process::Supervisor | Process::Sweeper | Process::Master => said,
        Process::Init => said || init_ended() || by_fault(),
        Process::Payload => by_fault(),
    }
}

/// How the job whose launch is disturbed may end because of it; `None`: as if nothing had been.
fn end_by(step: Step) -> Option<(String, String)> {
    let lost = || Some(("Failed: lost".to_owned(), String::new()));
    let failed = |errno: Errno| Some(("Failed: launch failed: ".to_owned(), errno.name().to_owned()));
    match (step.point, step.errno) {
        // Died after the word to go, with no whole record: whether and how the command ended is not known.
        (
            Point::InitTold
            | Point::InitFork
            | Point::InitForked
            | Point::InitStarted
            | Point::InitEnded
            | Point::InitRecord
            | Point::InitHalfRecorded,
            None,
        )
        | (Point::InitRecord, Some(_)) => lost(),
        (Point::PayloadBegun | Point::PayloadExec, None) => Some(("Failed: signal 9".to_owned(), String::new())),
        (
            Point::LaunchFolder | Point::LaunchRecord | Point::LaunchLine | Point::LaunchClone | Point::LaunchWatch,
            Some(errno),
        ) => failed(errno),
        (point, Some(errno)) if matches!(point.process(), Process::Init | Process::Payload) => failed(errno),
        _ => None,
    }
}
