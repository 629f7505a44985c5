//! Runs inside the machine of `tests/vm/run power-loss`: looks whether what was promised before the power went has been
//! kept, then makes new promises until it goes again.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tests::daemon::Daemon;
use tests::http::Request;
use tests::job::{Job, is_final};
use tests::ledger::Kind;
use tests::node::supervisor;
use tests::power::{self, Ledger};
use tests::wait::{pause, until_by_progress, until_none};

const USAGE: &str = "usage: power-loss ROUND|last LEDGER DISK";
/// What one round submits: more than the node runs at a time, so that some wait.
const JOBS_A_ROUND: u64 = 24;
/// The most jobs a page lists, and more than there are.
const PAGE: u64 = 1000;

struct Cluster {
    supervisor: Daemon,
    master: Daemon,
    disk: std::path::PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [round, ledger, disk] = &arguments[..] else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let ledger = Ledger::read(&fs::read_to_string(ledger).unwrap_or_default());
    let mut cluster = Cluster::start(Path::new(disk));
    println!("up {round}");
    cluster.keep_promises(&ledger);
    match round.parse() {
        Ok(round) => cluster.make_promises(round),
        Err(_) => cluster.stop(),
    }
    ExitCode::SUCCESS
}

fn claim(sentence: &str, wrong: &[String]) {
    println!("{}  {sentence}", if wrong.is_empty() { "ok    " } else { "FAILED" });
    for line in wrong {
        println!("        {line}");
    }
}

impl Cluster {
    fn start(disk: &Path) -> Cluster {
        let at = |name: &str| disk.join(name).display().to_string();
        if !disk.join("berth/img/busybox").exists() {
            let added = supervisor(&["image", "add", "busybox", "/image", "--state-dir", &at("berth")]);
            assert!(added.status.success(), "image add: {}", String::from_utf8_lossy(&added.stderr));
        }
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let share = at("berth/share");
        let node = words(&["--state-dir", &at("berth"), "--share", &share, "--cpu", "2", "--mem", "512"]);
        let supervisor = Daemon::start("berth-supervisor", node, disk.join("supervisor.log"), None, None);
        let node = format!("0={}", supervisor.addr());
        let master = words(&["--state-dir", &at("berth-master"), "--share", &share, "--node", &node]);
        let master = Daemon::start("berth-master", master, disk.join("master.log"), None, None);
        Cluster { supervisor, master, disk: disk.to_owned() }
    }

    fn jobs(&self) -> BTreeMap<u64, Job> {
        let table = Request::get(&format!("/job/table?limit={PAGE}")).accept("application/json");
        power::jobs(&table.send(self.master.addr()).expect(200).json())
    }

    /// Waits until all that was promised has ended, and tells what is not as it was promised. What stays is killed as
    /// soon as it runs, so that what waits behind it runs as well.
    fn keep_promises(&self, ledger: &Ledger) {
        let mut killed = BTreeSet::new();
        let jobs = until_by_progress("the end of every job of before", || {
            let jobs = self.jobs();
            let open: Vec<&Job> = jobs.values().filter(|job| !is_final(&job.status)).collect();
            for job in open.iter().filter(|job| stays(ledger, job) && job.status == "Running") {
                if killed.insert(job.job_id) {
                    println!("asked {}", job.job_id);
                }
                let kill = Request::post(&format!("/job/kill/{}", job.job_id)).accept("application/json");
                kill.send(self.master.addr()).expect(200);
            }
            if open.is_empty() { Ok(jobs.clone()) } else { Err((open.len(), open.len())) }
        });
        let count = ledger.jobs.len();
        claim(&format!("what was said of {count} jobs is true after the power went"), &ledger.broken(&jobs, &killed));
        claim("no command ran twice", &power::doubled(&self.disk.join("berth/share")));
        // A cut that loses nothing would prove nothing.
        let canary = ledger.canary.as_ref().map(|name| self.disk.join(name));
        let kept = canary.filter(|canary| fs::read(canary).is_ok_and(|bytes| !bytes.is_empty()));
        let kept: Vec<String> = kept.into_iter().map(|canary| format!("{} is whole", canary.display())).collect();
        claim("what nobody had synced is lost", &kept);
        until_none("the container folders to be swept", || self.folders());
        jobs.values().filter_map(power::word).for_each(|word| println!("{word}"));
    }

    fn folders(&self) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(self.disk.join("berth/cont")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    }

    /// Submits, and tells what it hears, until the power goes.
    fn make_promises(&self, round: u64) {
        let mut told = BTreeMap::new();
        for number in 0.. {
            let canary = format!("canary-{round}-{number}");
            fs::write(self.disk.join(&canary), "not synced").expect("the disk takes a file");
            println!("canary {canary}");
            if number < JOBS_A_ROUND {
                self.submit(&power::name(round, number), power::kind_of(number));
            } else {
                pause(Duration::from_millis(50));
            }
            for (id, job) in self.jobs() {
                if let Some(word) = power::word(&job)
                    && told.insert(id, word.clone()).as_ref() != Some(&word)
                {
                    println!("{word}");
                }
            }
        }
    }

    fn submit(&self, name: &str, kind: Kind) {
        let request = Request::post("/job/create").accept("application/json").json(&kind.job(name));
        let id = request.send(self.master.addr()).expect(201).json()["jobId"].as_u64();
        println!("acked {} {name}", id.expect("a job has a number"));
    }

    fn stop(&mut self) {
        self.master.stop();
        self.supervisor.stop();
        println!("checks are done");
    }
}

fn stays(ledger: &Ledger, job: &Job) -> bool {
    // One that was answered when nobody could write it down any more is known by its command.
    ledger.jobs.get(&job.job_id).map_or(job.command_line.contains("sleep 1000"), |promise| promise.kind == Kind::Stays)
}
