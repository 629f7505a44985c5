//! A cluster whose daemons and inits die at any moment, by a SIGKILL or at a fault point, and whose daemons are started
//! again; and the checks after it: no job lost, none doubled, nothing leaked.
//!
//! Whoever speaks to it must expect no answer. Random choices come from a seed, so that a round can be told by its number.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use wire::fault::{Kind as PointKind, Point, Process};

use crate::cluster::{Cluster, Plan};
use crate::http::{Request, Response};
use crate::job::{Job, is_final};
use crate::leaks::{Process as Running, end};
use crate::ledger::{self, Kind, Ledger, Verdict};
use crate::master::{Master, MasterPlan};
use crate::node::NodePlan;
use crate::wait::{eventually, eventually_by_progress, pause};

/// The most jobs a page lists.
const PAGE: usize = 1000;

/// Which daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The master.
    Master,
    /// The supervisor of that node.
    Node(usize),
}

/// What came of it all.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// SIGKILLs and faults.
    pub faults: u64,
    /// Jobs submitted.
    pub jobs: u64,
    /// What was wrong.
    pub verdict: Verdict,
    /// What was left on the machine.
    pub leaked: Vec<String>,
}

impl Tally {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.verdict == Verdict::default() && self.leaked.is_empty()
    }

    /// The counts as cells of a Markdown table.
    pub fn cells(&self) -> String {
        let (lost, doubled) = (self.verdict.lost.len(), self.verdict.doubled.len());
        format!("{} | {} | {lost} | {doubled} | {}", self.faults, self.jobs, self.leaked.len())
    }

    /// With what came of something else.
    pub fn add(&mut self, other: Tally) {
        self.faults += other.faults;
        self.jobs += other.jobs;
        self.verdict.lost.extend(other.verdict.lost);
        self.verdict.doubled.extend(other.verdict.doubled);
        self.leaked.extend(other.leaked);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lost, doubled) = (self.verdict.lost.len(), self.verdict.doubled.len());
        write!(f, "{:>7} {:>7} {lost:>7} {doubled:>7} {:>7}", self.faults, self.jobs, self.leaked.len())
    }
}

/// The cluster, and what was asked of it.
#[derive(Debug)]
pub struct Storm {
    cluster: Cluster,
    /// A second master, which waits.
    standby: Option<Master>,
    ledger: Ledger,
    share: PathBuf,
    faults: u64,
    /// Tasks whose init a stranger has killed, by node: how they ended may be lost.
    orphaned: BTreeSet<(i64, i64)>,
}

impl Storm {
    /// One master and so many nodes, with a short grace period.
    pub fn start(nodes: usize) -> Storm {
        Storm::start_with(nodes, &[])
    }

    /// One master and one node, with leases that can be waited for.
    pub fn for_a_walk() -> Storm {
        Storm::start_with(1, &["--node-timeout", "1s", "--lease", "5s"])
    }

    /// The same as [`Storm::start`] with a second master that waits for the end of the first.
    pub fn start_with_standby(nodes: usize) -> Storm {
        let mut storm = Storm::start_with(nodes, &["--wait"]);
        let plan = MasterPlan { flags: vec!["--wait".to_owned()], ..MasterPlan::default() };
        storm.standby = Some(Master::start_waiting(storm.cluster.sandbox(), &storm.cluster.nodes, &plan));
        storm
    }

    fn start_with(nodes: usize, flags: &[&str]) -> Storm {
        let node = NodePlan { flags: vec!["--grace".into(), "300ms".into()], ..NodePlan::default() };
        let mut plan = Plan::of_nodes(vec![node; nodes]);
        plan.master.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let cluster = Cluster::start(&plan);
        let share = cluster.sandbox().folder("share");
        Storm { cluster, standby: None, ledger: Ledger::default(), share, faults: 0, orphaned: BTreeSet::new() }
    }

    /// SIGKILL to the master: the standby takes over, and the killed one comes back as its standby.
    #[track_caller]
    pub fn change_masters(&mut self) {
        self.strike(Who::Master);
        let Some(standby) = &mut self.standby else { panic!("there is no standby") };
        std::mem::swap(&mut self.cluster.master, standby);
        self.cluster.master.wait_until_there();
        standby.daemon().restart_waiting();
    }

    /// The cluster.
    pub fn cluster(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// What was asked.
    pub fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Submits a job, whether or not anybody answers. Its name.
    pub fn submit(&mut self, kind: Kind) -> String {
        let name = self.ledger.name();
        let request = Request::post("/job/create").accept("application/json").json(&kind.job(&name));
        let answer = self.ask(&request).filter(|answer| answer.status == 201);
        let id = answer.and_then(|answer| answer.json()["jobId"].as_u64());
        self.ledger.submitted(name.clone(), kind, id);
        name
    }

    /// Asks for the end of a job. Whether that was answered or not, it may be killed from now on.
    pub fn kill_job(&mut self, name: &str) {
        let entry = self.ledger.entry(name);
        let Some(id) = entry.id else { return };
        entry.killed = true;
        self.ask(&Request::post(&format!("/job/kill/{id}")).accept("application/json"));
    }

    /// What the master answers, if it does.
    fn ask(&self, request: &Request) -> Option<Response> {
        request.try_send(self.cluster.master.addr()).ok()
    }

    /// The newest jobs there are, as many as are to be judged; `None`: nobody answers.
    fn jobs(&self) -> Option<Vec<Job>> {
        let limit = (self.ledger.len() + 1).min(PAGE);
        let answer = self.ask(&Request::get(&format!("/job/table?limit={limit}")).accept("application/json"))?;
        let jobs = answer.json();
        Some(jobs.as_array()?.iter().map(Job::from_json).filter(|job| job.name.starts_with("storm-")).collect())
    }

    /// How a job stands; `None`: nobody answers, or there is none.
    pub fn job(&self, name: &str) -> Option<Job> {
        self.jobs()?.into_iter().find(|job| job.name == name)
    }

    /// What a daemon wrote on stderr, in all its lives.
    pub fn log(&self, who: Who) -> String {
        match who {
            Who::Master => self.cluster.master.log(),
            Who::Node(index) => self.cluster.nodes[index].log(),
        }
    }

    /// SIGKILL to a daemon.
    pub fn strike(&mut self, who: Who) {
        self.faults += 1;
        match who {
            Who::Master => self.cluster.master.daemon().kill(),
            Who::Node(index) => self.cluster.nodes[index].kill_supervisor(),
        }
    }

    /// SIGKILL to the init of a task that runs, as an operator with a wrong pid would.
    pub fn strike_an_init(&mut self, dice: &mut Dice) {
        let running = self.cluster.footprint().processes();
        let commands: Vec<(&Running, (i64, i64))> =
            running.iter().filter_map(|process| Some((process, task_of(&process.cgroup)?))).collect();
        if commands.is_empty() {
            return;
        }
        let (command, task) = dice.choose(&commands);
        // Its parent is init, or a shell in the same container: then only a child of the command is without its parent.
        let Some(init) = parent(command.pid).and_then(|pid| running.iter().find(|process| process.pid == pid)) else {
            return;
        };
        if task_of(&init.cgroup).is_none() {
            self.faults += 1;
            self.orphaned.insert(task);
            end(init);
        }
    }

    /// Starts a daemon again; `fault`: what is to happen to it. One that dies of that before it answers stays dead.
    pub fn start_again(&mut self, who: Who, fault: Option<&str>) {
        let daemon = match who {
            Who::Master => self.cluster.master.daemon(),
            Who::Node(index) => self.cluster.nodes[index].daemon(),
        };
        match fault {
            None => daemon.restart(),
            Some(fault) => {
                self.faults += 1;
                daemon.restart_with_fault(fault);
            }
        }
    }

    /// Starts again whoever has died; how many had.
    pub fn raise_the_dead(&mut self) -> usize {
        let everybody = std::iter::once(Who::Master).chain((0..self.cluster.nodes.len()).map(Who::Node));
        let dead: Vec<Who> = everybody.filter(|who| !self.is_up(*who)).collect();
        for who in &dead {
            self.bury(*who);
            self.start_again(*who, None);
        }
        dead.len()
    }

    /// Whether a daemon runs.
    pub fn is_up(&mut self, who: Who) -> bool {
        match who {
            Who::Master => self.cluster.master.daemon().is_up(),
            Who::Node(index) => self.cluster.nodes[index].daemon().is_up(),
        }
    }

    /// Stops a node's supervisor as SIGSTOP does, or lets it go on.
    pub fn freeze(&mut self, node: usize, frozen: bool) {
        let pid = i32::try_from(self.cluster.nodes[node].daemon().pid()).ok().and_then(Pid::from_raw);
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        if let Some(Err(error)) = pid.map(|pid| kill_process(pid, signal)) {
            panic!("cannot send {signal:?} to the supervisor of node {node}: {error}");
        }
    }

    fn bury(&mut self, who: Who) {
        match who {
            Who::Master => self.cluster.master.daemon().kill(),
            Who::Node(index) => self.cluster.nodes[index].daemon().kill(),
        }
    }

    /// Waits until every job has ended, starting again whoever dies meanwhile, and judges. Jobs that would never end
    /// by themselves are killed.
    pub fn settle(&mut self) -> Tally {
        let ended = eventually_by_progress(|| {
            self.raise_the_dead();
            self.note_what_was_not_answered();
            self.kill_what_stays();
            let jobs = self.jobs().ok_or_else(|| (usize::MAX, vec!["the master does not answer".to_owned()]))?;
            let open: Vec<String> =
                jobs.iter().filter(|job| !is_final(&job.status)).map(|job| format!("{job:?}")).collect();
            if open.is_empty() { Ok(jobs) } else { Err((open.len(), open)) }
        });
        let mut verdict = match ended {
            Ok(jobs) => {
                self.allow_the_orphaned_to_be_lost(&jobs);
                self.ledger.judge(&jobs, &ledger::runs(&self.share))
            }
            Err(open) => Verdict { lost: open, doubled: Vec::new() },
        };
        verdict.lost.sort();
        let tally = Tally {
            faults: std::mem::take(&mut self.faults),
            jobs: self.ledger.len() as u64,
            verdict,
            leaked: self.leaks(),
        };
        self.ledger.clear();
        ledger::remove_logs(&self.share);
        tally
    }

    fn allow_the_orphaned_to_be_lost(&mut self, jobs: &[Job]) {
        let orphaned = std::mem::take(&mut self.orphaned);
        for job in jobs.iter().filter(|job| orphaned.contains(&(job.node_id, job.task_id))) {
            if self.ledger.entries().any(|(name, _)| *name == job.name) {
                self.ledger.entry(&job.name).or = Some(("Failed: lost".to_owned(), String::new()));
            }
        }
    }

    /// A submission that was not answered may have been taken all the same.
    fn note_what_was_not_answered(&mut self) {
        let unanswered = |ledger: &Ledger| ledger.entries().any(|(_, entry)| entry.id.is_none());
        if !unanswered(&self.ledger) {
            return;
        }
        for job in self.jobs().unwrap_or_default() {
            let known = self.ledger.entries().any(|(name, _)| *name == job.name);
            if known {
                self.ledger.entry(&job.name).id.get_or_insert(job.job_id);
            }
        }
    }

    fn kill_what_stays(&mut self) {
        let staying = |(name, entry): (&String, &ledger::Entry)| {
            (entry.kind == Kind::Stays && entry.id.is_some()).then(|| name.clone())
        };
        let staying: Vec<String> = self.ledger.entries().filter_map(staying).collect();
        for name in staying {
            self.kill_job(&name);
        }
    }

    /// What is left on the machine once no job is: cgroups and folders of containers, mounts, processes. A daemon may
    /// still die of its fault, on hearing of the last end; what it has left its next life removes.
    fn leaks(&mut self) -> Vec<String> {
        let footprint = self.cluster.footprint();
        let gone = eventually(|| {
            self.raise_the_dead();
            let daemons = self.pids();
            let folders = self.cluster.nodes.iter().flat_map(crate::node::Node::container_folders);
            let of_tasks =
                |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-cont"));
            let cgroups = footprint.cgroups().into_iter().filter(of_tasks).map(|path| path.display().to_string());
            let processes = footprint.processes().into_iter().filter(|process| !daemons.contains(&process.pid));
            let left: Vec<String> =
                folders.chain(cgroups).chain(processes.map(|process| format!("{process:?}"))).collect();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        gone.err().unwrap_or_default()
    }

    fn pids(&mut self) -> Vec<u32> {
        let nodes = self.cluster.nodes.iter_mut().map(|node| node.daemon().pid());
        let masters = std::iter::once(&mut self.cluster.master).chain(&mut self.standby);
        masters.map(|master| master.daemon().pid()).chain(nodes).collect()
    }

    /// Stops everything, and checks that nothing at all is left.
    pub fn finish(mut self) {
        self.standby.iter_mut().for_each(|standby| standby.daemon().stop());
        self.cluster.finish();
    }
}

/// Which task a process belongs to, by the name of its cgroup: `...-node1/t17-cont`.
fn task_of(cgroup: &str) -> Option<(i64, i64)> {
    let (path, container) = cgroup.lines().find_map(|line| line.trim_end().rsplit_once("/t"))?;
    let task = container.strip_suffix("-cont")?.parse().ok()?;
    let node = path.rsplit_once("-node")?.1.parse().ok()?;
    Some((node, task))
}

/// The parent of a process (proc(5), PPid).
fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// A pseudo-random sequence (xorshift64*, Vigna 2016): the same for the same seed, everywhere.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Dice {
        // Zero would stay zero.
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// For one round of a storm, so that it can be seen again without those before it.
    pub fn of_round(seed: u64, round: u64) -> Dice {
        let mut dice = Dice::new(seed ^ round.rotate_left(32));
        // The first few numbers of like seeds are alike.
        for _ in 0..8 {
            dice.next();
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// From 0 to `below`, exclusive.
    pub fn roll(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap_or_default()]
    }
}

/// One round: jobs, kills, SIGKILLs of daemons and inits, and faults, in any order, until everything has settled.
pub fn round(storm: &mut Storm, dice: &mut Dice) -> Tally {
    let mut names: Vec<String> = Vec::new();
    for _ in 0..dice.roll(8) + 3 {
        match dice.roll(11) {
            0..=4 => names.push(storm.submit(any_kind(dice))),
            5 if !names.is_empty() => {
                let name = names[usize::try_from(dice.roll(names.len() as u64)).unwrap_or_default()].clone();
                storm.kill_job(&name);
            }
            6 | 7 => {
                let nodes = storm.cluster.nodes.len();
                let node = usize::try_from(dice.roll(nodes as u64)).unwrap_or_default();
                kill_and_start_again(storm, Who::Node(node), dice);
            }
            8 => kill_and_start_again(storm, Who::Master, dice),
            9 => storm.strike_an_init(dice),
            // Time for things to be half done.
            _ => pause(Duration::from_millis(dice.roll(120))),
        }
    }
    storm.settle()
}

fn any_kind(dice: &mut Dice) -> Kind {
    let ms = u32::try_from(dice.roll(300)).unwrap_or_default();
    dice.choose(&[
        Kind::Finishes(0),
        Kind::Finishes(0),
        Kind::Finishes(ms),
        Kind::Leased(ms),
        Kind::LeavesAnOrphan,
        Kind::Fails,
        Kind::TimesOut,
        Kind::Stays,
    ])
}

fn kill_and_start_again(storm: &mut Storm, who: Who, dice: &mut Dice) {
    // Who comes back finds the standby in its place.
    if who == Who::Master && storm.standby.is_some() {
        return storm.change_masters();
    }
    if !storm.is_up(who) {
        storm.bury(who);
    } else {
        storm.strike(who);
    }
    if dice.roll(3) == 0 {
        pause(Duration::from_millis(dice.roll(100)));
    }
    let fault = (dice.roll(3) == 0).then(|| any_fault(who, dice));
    storm.start_again(who, fault.as_deref());
}

/// A death that changes no job's end: not init's after the word to go, whose job is then truly lost.
fn any_fault(who: Who, dice: &mut Dice) -> String {
    let process = match who {
        Who::Master => Process::Master,
        Who::Node(_) => dice.choose(&[Process::Supervisor, Process::Supervisor, Process::Sweeper]),
    };
    let harmless = |point: &Point| match point.kind() {
        PointKind::Moment => point.process() == process,
        PointKind::Call(_) => false,
    };
    let points: Vec<Point> = Point::ALL.iter().copied().filter(harmless).collect();
    format!("{}@{}", dice.choose(&points).name(), dice.roll(3) + 1)
}

/// What the master says of itself, for the message of a failed check.
pub fn nodes_of(storm: &Storm) -> Value {
    storm.ask(&Request::get("/node/table").accept("application/json")).map_or(json!(null), |answer| answer.json())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_cgroup_to_be_of_a_task_of_a_node() {
        let cgroup = "8:pids:/berth-test-7-0-node1/t17-cont\n0::/berth-test-7-0-node1/t17-cont\n";
        assert_eq!(task_of(cgroup), Some((1, 17)));
        assert_eq!(task_of("0::/berth-test-7-0-node1\n"), None);
        assert_eq!(task_of("0::/test\n"), None);
    }
}
