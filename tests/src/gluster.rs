//! Three machines that share a GlusterFS volume, set up by the words of README's cluster section and nothing else.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::Client;
use crate::follow::Follower;
use crate::http::{Connection, Request};
use crate::job::Job;
use crate::leaks::Footprint;
use crate::machine::{Machine, sources, words_of};
use crate::netns::Lan;
use crate::sandbox::{Sandbox, is_root};
use crate::wait::{until, until_by_progress};

/// The machines' names; their addresses are 10.0.0.11 and on.
const NAMES: [&str; 3] = ["gfs01", "gfs02", "gfs03"];
/// Stands above a block of README, with the machines it is for behind it.
const MARK: &str = "<!-- scripts/test cluster runs this on ";
/// Mounts the volume again, or rather does what is not as it should be.
pub const NODE_AGAIN: &str = "scripts/config-glusterfs-node --volume berth --mount /mnt/share gfs01 gfs02 gfs03";
/// The state dir of masters that stand by for each other.
pub const STATE_DIR_ON_SHARE: &str = "/mnt/share/berth-master";
/// Where the daemons listen.
const MASTER_PORT: u16 = 8080;
const NODE_PORT: u16 = 5000;

/// Some commands of README, and where a reader is to run them.
#[derive(Debug, Clone)]
pub struct Block {
    /// The machines.
    pub on: Vec<String>,
    /// The commands.
    pub text: String,
}

/// README's cluster section, as far as it is commands.
pub fn blocks() -> Vec<Block> {
    let file = sources().join("README.md");
    let readme = fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()));
    let marked = readme.split(MARK).skip(1).map(|rest| {
        let (names, rest) = rest.split_once(" -->\n```sh\n").unwrap_or_else(|| panic!("no block after {MARK}"));
        let (text, _) = rest.split_once("\n```\n").unwrap_or_else(|| panic!("a block has no end: {rest}"));
        Block { on: names.split(' ').map(str::to_owned).collect(), text: text.to_owned() }
    });
    marked.collect()
}

/// The machines, and what is on them by now.
#[derive(Debug)]
pub struct Gluster {
    /// gfs01 to gfs03.
    pub machines: Vec<Machine>,
    /// Which of them has the master that is asked.
    asked: AtomicUsize,
    lan: Lan,
    sandbox: Sandbox,
}

impl Gluster {
    /// Runs a test on three fresh machines, and checks for leaks after it.
    pub fn of_fresh_machines(test: impl FnOnce(&Gluster)) {
        if !is_root() || !is_installed() {
            return;
        }
        let sandbox = Sandbox::new();
        let mut lan = Lan::new(&sandbox);
        let addr = |number: usize| Ipv4Addr::new(10, 0, 0, u8::try_from(11 + number).unwrap_or(u8::MAX));
        let hosts: Vec<_> = (0..NAMES.len()).map(|number| lan.add_host_at(addr(number))).collect();
        let machines = hosts.into_iter().zip(NAMES).map(|(host, name)| Machine::boot(&sandbox, host, name)).collect();
        let gluster = Gluster { machines, asked: AtomicUsize::new(0), lan, sandbox };
        test(&gluster);
        gluster.finish();
    }

    /// Runs a test on three machines that have done what README says.
    pub fn of_readme(test: impl FnOnce(&Gluster)) {
        Gluster::of_fresh_machines(|gluster| {
            for block in blocks() {
                gluster.follow(&block);
            }
            test(gluster);
        });
    }

    /// Does what a block says, on its machines at once, as several people would.
    #[track_caller]
    pub fn follow(&self, block: &Block) {
        let machines = self.machines.iter().filter(|machine| block.on.iter().any(|name| name == machine.name()));
        thread::scope(|scope| {
            let all: Vec<_> = machines.map(|machine| scope.spawn(|| machine.run(&block.text))).collect();
            for one in all {
                one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        });
        if block.text.contains(">/etc/berth/token") {
            self.copy_the_token();
        }
        if block.text.contains("berth-master --listen") {
            self.wait_nodes_ready();
        }
    }

    /// README has it copied by scp, for which there is no server here.
    fn copy_the_token(&self) {
        let copy = |machine: &Machine| {
            fs::create_dir_all(machine.file("/etc/berth"))?;
            fs::copy(self.machines[0].file("/etc/berth/token"), machine.file("/etc/berth/token"))
        };
        for machine in &self.machines[1..] {
            copy(machine).unwrap_or_else(|error| panic!("cannot copy the token to {}: {error}", machine.name()));
        }
    }

    /// Starts a daemon again as README does, but with more flags.
    #[track_caller]
    pub fn start_daemon(&self, machine: &Machine, program: &str, flags: &str) {
        let call = format!("{program} --listen");
        let block = blocks().into_iter().find(|block| block.text.contains(&call));
        let block = block.unwrap_or_else(|| panic!("README does not say how to start {program}"));
        machine.run(&block.text.replace(&call, &format!("{program} {flags} --listen")));
        self.wait_nodes_ready();
    }

    /// The same without a flag README gives, which has a value.
    #[track_caller]
    pub fn start_master_without(&self, flag: &str) {
        let block = blocks().into_iter().find(|block| block.text.contains("berth-master --listen"));
        let block = block.unwrap_or_else(|| panic!("README does not say how to start a master"));
        let mut words: Vec<&str> = block.text.split(' ').collect();
        let at = words.iter().position(|word| *word == flag).unwrap_or_else(|| panic!("no {flag} in {}", block.text));
        words.drain(at..at + 2);
        self.machines[0].run(&words.join(" "));
        self.wait_nodes_ready();
    }

    /// Its token.
    fn token(&self) -> String {
        let token = fs::read_to_string(self.machines[0].file("/etc/berth/token")).unwrap_or_default();
        token.trim().to_owned()
    }

    fn master(&self) -> SocketAddr {
        self.machines[self.asked.load(Ordering::Acquire)].addr(MASTER_PORT)
    }

    /// Starts a master as README does, but on that machine, with its state dir on the volume, waiting for whoever has it.
    #[track_caller]
    pub fn start_standby(&self, machine: &Machine) {
        let call = format!("berth-master --listen {}", self.machines[0].addr(MASTER_PORT));
        let block = blocks().into_iter().find(|block| block.text.contains(&call));
        let block = block.unwrap_or_else(|| panic!("README does not say how to start a master"));
        let standby =
            format!("berth-master --state-dir {STATE_DIR_ON_SHARE} --wait --listen {}", machine.addr(MASTER_PORT));
        machine.run(&block.text.replace(&call, &standby));
    }

    /// Asks the master on that machine from now on, as soon as it answers.
    #[track_caller]
    pub fn turn_to(&self, machine: &Machine) {
        let number = self.machines.iter().position(|other| other.name() == machine.name());
        self.asked.store(number.unwrap_or_default(), Ordering::Release);
        until(format!("the master on {} to answer", machine.name()), || {
            let answer = self.ask_of(machine, Request::get("/node/table")).and_then(|mut answer| answer.response());
            let answers = answer.is_ok_and(|answer| answer.status == 200);
            if answers { Ok(()) } else { Err(machine.log("berth-master")) }
        });
    }

    /// Sends a request to the master on that machine, whether it is the one that speaks or not.
    pub fn ask_of(&self, machine: &Machine, request: Request) -> io::Result<Connection> {
        request.accept("application/json").bearer(&self.token()).ask(machine.addr(MASTER_PORT))
    }

    /// Pulls that machine's cable out.
    pub fn cut(&self, machine: &Machine) {
        self.lan.cut(machine.host());
    }

    /// Plugs it in again.
    pub fn heal(&self, machine: &Machine) {
        self.lan.heal(machine.host());
    }

    /// Waits until the share can be written on that machine, which was cut off, or lost its mount.
    #[track_caller]
    pub fn wait_mounted(&self, machine: &Machine) {
        until(format!("the share to be written on {}", machine.name()), || {
            let output = machine.shell(NODE_AGAIN);
            if output.status.success() { Ok(()) } else { Err(words_of(&output)) }
        });
    }

    /// A request to the master, answered with 2xx; the body.
    #[track_caller]
    fn ask_master(&self, request: Request) -> Vec<u8> {
        let answer = request.accept("application/json").bearer(&self.token()).send(self.master());
        assert!((200..300).contains(&answer.status), "{answer:?}");
        answer.body
    }

    #[track_caller]
    fn ask_master_json(&self, request: Request) -> Value {
        let body = self.ask_master(request);
        serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&body)))
    }

    /// Submits these; their numbers.
    #[track_caller]
    pub fn submit_all(&self, jobs: &[Value]) -> Vec<u64> {
        let batch = Request::post("/job/create_json").json(&Value::from(jobs.to_vec()));
        let answer = self.ask_master_json(batch);
        answer.as_array().into_iter().flatten().map(|job| Job::from_json(job).job_id).collect()
    }

    /// The job as it is now.
    #[track_caller]
    pub fn job(&self, id: u64) -> Job {
        Job::from_json(&self.ask_master_json(Request::get(&format!("/job/details/{id}")))["job"])
    }

    /// The newest jobs.
    #[track_caller]
    pub fn jobs(&self) -> Vec<Job> {
        let table = self.ask_master_json(Request::get("/job/table?limit=500"));
        let jobs = table.as_array().or_else(|| table["jobs"].as_array());
        jobs.unwrap_or_else(|| panic!("no table: {table}")).iter().map(Job::from_json).collect()
    }

    /// Asks for the end of a job.
    #[track_caller]
    pub fn kill(&self, job: u64) {
        self.ask_master(Request::post(&format!("/job/kill/{job}")));
    }

    /// Waits until all of these have ended.
    #[track_caller]
    pub fn wait_final(&self, ids: &[u64]) -> Vec<Job> {
        until_by_progress(format!("the end of {} jobs", ids.len()), || {
            let mut jobs = self.jobs();
            jobs.retain(|job| ids.contains(&job.job_id));
            let open: Vec<String> =
                jobs.iter().filter(|job| !job.is_final()).map(|job| format!("{} {}", job.job_id, job.status)).collect();
            let left = ids.len() - (jobs.len() - open.len());
            if left == 0 { Ok(jobs) } else { Err((left, open)) }
        })
    }

    /// A whole log as the master gives it out: `stdout`, `stderr` or `monitor`.
    #[track_caller]
    pub fn output(&self, job: u64, stream: &str) -> Vec<u8> {
        self.ask_master(Request::get(&format!("/job/output/{job}/{stream}")))
    }

    /// Follows a log: the same, with `follow=1` and more of a query.
    #[track_caller]
    pub fn follow_log(&self, job: u64, query: &str) -> Follower {
        let request = Request::get(&format!("/job/output/{job}/stdout?follow=1{query}"));
        let asked = request.bearer(&self.token()).ask(self.master());
        Follower::of(asked.unwrap_or_else(|error| panic!("cannot ask the master: {error}")))
    }

    /// `scripts/berth logs -f` of a job, on that machine.
    pub fn logs(&self, machine: &Machine, job: u64) -> Client {
        let master = format!("BERTH_MASTER=http://{} BERTH_TOKEN_FILE=/etc/berth/token", self.master());
        let words = format!("logs -f {job}");
        Client::spawn(machine.command(&format!("{master} exec scripts/berth {words}")), &words, self.sandbox.dir())
    }

    /// What the details of a job say that it is stuck on, as JSON and as a page; its log is not looked at.
    #[track_caller]
    pub fn stuck(&self, job: u64) -> (Option<String>, String) {
        let path = format!("/job/details/{job}?logs=0");
        let json = self.ask_master_json(Request::get(&path));
        let page = Request::get(&path).browser().bearer(&self.token()).send(self.master()).expect(200);
        (json["stuck"].as_str().map(str::to_owned), page.text())
    }

    /// `GET /resource` of the node on that machine; an error if it does not answer.
    pub fn resource(&self, machine: &Machine) -> Result<Value, String> {
        let request = Request::get("/resource").bearer(&self.token());
        let answer = request.try_send(machine.addr(NODE_PORT)).map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(answer.json()) } else { Err(format!("{answer:?}")) }
    }

    /// Waits until the master is there and all nodes answer it.
    #[track_caller]
    pub fn wait_nodes_ready(&self) {
        until("the master to have three nodes that are ready", || {
            let request = Request::get("/node/table").accept("application/json").bearer(&self.token());
            let answer = request.try_send(self.master()).map_err(|error| error.to_string())?;
            let nodes = answer.json();
            let ready = nodes.as_array().into_iter().flatten().filter(|node| node["state"] == "ready").count();
            if ready == self.machines.len() { Ok(()) } else { Err(nodes.to_string()) }
        });
    }

    /// Signals every process of a job that runs.
    #[track_caller]
    pub fn signal(&self, job: &Job, signal: Signal) {
        let (name, group) = (self.machine_of(job).name(), format!("/t{}-cont", job.task_id));
        let mut processes = Footprint::of(&self.sandbox).processes();
        processes.retain(|process| process.cgroup.contains(&format!("-{name}")) && process.cgroup.contains(&group));
        assert!(!processes.is_empty(), "job {} has no process", job.job_id);
        for process in processes {
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            // ESRCH: it ended by itself.
            let _ = pid.map(|pid| kill_process(pid, signal));
        }
    }

    /// The machine a job was placed on.
    #[track_caller]
    pub fn machine_of(&self, job: &Job) -> &Machine {
        let number = usize::try_from(job.node_id - 1).ok().and_then(|number| self.machines.get(number));
        number.unwrap_or_else(|| panic!("job {} is on node {}", job.job_id, job.node_id))
    }

    /// A log's path, below a share.
    pub fn log_path(job: &Job, file: &str) -> PathBuf {
        PathBuf::from(format!("nodes/{}/task{}/{file}", job.node_id, job.task_id))
    }

    /// A file of the volume as each brick has it.
    pub fn on_bricks(&self, path: &Path) -> Vec<Option<Vec<u8>>> {
        self.everywhere("/srv/gluster/berth", path)
    }

    /// A file of the volume as each mount shows it.
    pub fn on_mounts(&self, path: &Path) -> Vec<Option<Vec<u8>>> {
        self.everywhere("/mnt/share", path)
    }

    fn everywhere(&self, folder: &str, path: &Path) -> Vec<Option<Vec<u8>>> {
        self.machines.iter().map(|machine| fs::read(machine.file(folder).join(path)).ok()).collect()
    }

    /// Waits until gluster says that no file waits to be healed.
    #[track_caller]
    pub fn wait_healed(&self) {
        until_by_progress("a volume that is healed", || {
            let said = self.machines[0].run("gluster volume heal berth info summary");
            let entries = said.lines().filter_map(|line| line.strip_prefix("Total Number of entries: "));
            // A brick that is away does not say how many.
            let left: u64 = entries.map(|count| count.trim().parse().unwrap_or(1)).sum();
            let away = self.machines.len().abs_diff(said.matches("Status: Connected").count());
            if (away, left) == (0, 0) { Ok(()) } else { Err(((away, left), said)) }
        });
    }

    /// Stops the daemons, unmounts, and looks for what is left.
    fn finish(self) {
        for machine in &self.machines {
            machine.stop_daemon("berth-master");
        }
        for machine in &self.machines {
            machine.stop_daemon("berth-supervisor");
            machine.run("! mountpoint -q /mnt/share || umount /mnt/share");
        }
        let Gluster { machines, lan: _lan, sandbox, .. } = self;
        drop(machines);
        Footprint::of(&sandbox).wait_until_gone();
    }
}

/// Whether GlusterFS and FUSE are to be had here; says aloud when they are not.
fn is_installed() -> bool {
    let missing = ["/usr/sbin/glusterd", "/usr/sbin/gluster", "/sbin/mount.glusterfs", "/dev/fuse"];
    let missing: Vec<&str> = missing.into_iter().filter(|file| !Path::new(file).exists()).collect();
    if !missing.is_empty() {
        let test = thread::current().name().unwrap_or("a test").to_owned();
        eprintln!("SKIPPED {test}: {} is not there; run apt-get install glusterfs-server", missing.join(", "));
    }
    missing.is_empty()
}
