//! One master, and what a user can ask of it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::http::{Request, Response};
use crate::job::{Details, Job};
use crate::netns::Host;
use crate::node::{Node, path, token_flag, words};
use crate::sandbox::Sandbox;
use crate::wait::until;

/// The daemon's binary.
pub const MASTER: &str = "berth-master";

/// What a master says of a log that it could not have in the two seconds it takes for one. Of a busy machine that is true,
/// and it can be asked again.
const TOO_SLOW: &str = "did not answer in 2 s";

/// How a master is started.
#[derive(Debug, Clone, Default)]
pub struct MasterPlan {
    /// More flags, after the usual ones.
    pub flags: Vec<String>,
    /// What `--token-file` holds, if there is one; the nodes then want the same.
    pub token: Option<String>,
    /// What a shell does before it becomes the daemon: `ulimit -n 128`.
    pub before_exec: Option<String>,
    /// The host it runs on, if that is not this one.
    pub host: Option<Host>,
    /// Its state dir, if it is not in the sandbox.
    pub state_dir: Option<PathBuf>,
    /// Its share, if it is not the sandbox's.
    pub share: Option<PathBuf>,
}

/// A running master.
#[derive(Debug)]
pub struct Master {
    token: Option<String>,
    daemon: Daemon,
}

impl Master {
    /// Starts a master that knows these nodes.
    pub fn start(sandbox: &Sandbox, nodes: &[Node], plan: &MasterPlan) -> Master {
        let args = Master::args(sandbox, nodes, plan);
        let log = sandbox.dir().join("master.log");
        let daemon = Daemon::start(MASTER, args, log, plan.before_exec.clone(), plan.host.clone());
        Master { token: plan.token.clone(), daemon }
    }

    /// Starts one with the same state dir, and with `--wait`, that waits for the other's end.
    pub fn start_waiting(sandbox: &Sandbox, nodes: &[Node], plan: &MasterPlan) -> Master {
        let args = Master::args(sandbox, nodes, plan);
        let daemon = Daemon::start_waiting(MASTER, args, sandbox.dir().join("standby.log"));
        Master { token: plan.token.clone(), daemon }
    }

    fn args(sandbox: &Sandbox, nodes: &[Node], plan: &MasterPlan) -> Vec<String> {
        let state_dir = plan.state_dir.clone().unwrap_or_else(|| sandbox.folder("master"));
        let share = plan.share.clone().unwrap_or_else(|| sandbox.folder("share"));
        let mut args = words(&["--state-dir", path(&state_dir), "--share", path(&share)]);
        for node in nodes {
            args.extend(words(&["--node", &format!("{}={}", node.id(), node.addr())]));
        }
        args.extend(token_flag(sandbox, plan.token.as_deref()));
        args.extend(plan.flags.iter().cloned());
        args
    }

    /// Whether it answers now.
    pub fn is_there(&self) -> bool {
        Request::get("/").try_send(self.addr()).is_ok()
    }

    /// Waits until it answers: one that waited has taken over.
    #[track_caller]
    pub fn wait_until_there(&self) {
        until("the master to answer", || if self.is_there() { Ok(()) } else { Err(self.log()) });
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.daemon.addr()
    }

    /// Its process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// What it wrote on stderr.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Sends a request with the token, if there is one.
    #[track_caller]
    pub fn send(&self, request: Request) -> Response {
        match &self.token {
            Some(token) => request.bearer(token).send(self.addr()),
            None => request.send(self.addr()),
        }
    }

    /// `GET path` as JSON.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.send(Request::get(path).accept("application/json")).expect(200).json()
    }

    /// What may have logs in it, asked for until none of them came too late.
    #[track_caller]
    pub fn get_with_logs(&self, request: &Request) -> Response {
        until("every log to come in time", || {
            let answer = self.send(request.clone());
            if answer.text().contains(TOO_SLOW) { Err(answer) } else { Ok(answer) }
        })
        .expect(200)
    }

    /// `GET path` as a browser's page. Its logs came in time.
    #[track_caller]
    pub fn page(&self, path: &str) -> String {
        let page = self.get_with_logs(&Request::get(path).browser());
        assert!(page.header("content-type").is_some_and(|mime| mime.starts_with("text/html")), "{page:?}");
        page.text()
    }

    /// `GET path` as text for a shell. Its logs came in time.
    #[track_caller]
    pub fn text(&self, path: &str) -> String {
        let text = self.get_with_logs(&Request::get(path).accept("text/plain"));
        assert!(text.header("content-type").is_some_and(|mime| mime.starts_with("text/plain")), "{text:?}");
        text.text()
    }

    /// `POST /job/create` with JSON; the answer, whatever it is.
    #[track_caller]
    pub fn try_submit(&self, job: &Value) -> Response {
        self.send(Request::post("/job/create").accept("application/json").json(job))
    }

    /// Submits a job that must be taken.
    #[track_caller]
    pub fn submit(&self, job: &Value) -> Job {
        Job::from_json(&self.try_submit(job).expect(201).json())
    }

    /// Submits a list of jobs that must be taken.
    #[track_caller]
    pub fn submit_all(&self, jobs: &[Value]) -> Vec<Job> {
        let batch = Request::post("/job/create_json").accept("application/json").json(&Value::from(jobs.to_vec()));
        let answer = self.send(batch).expect(201).json();
        answer.as_array().unwrap_or_else(|| panic!("not a list: {answer:#}")).iter().map(Job::from_json).collect()
    }

    /// `GET /job/details/<id>`, with all of its logs.
    #[track_caller]
    pub fn details(&self, job_id: u64) -> Details {
        let path = format!("/job/details/{job_id}");
        let answer = self.get_with_logs(&Request::get(&path).accept("application/json")).json();
        serde_json::from_value(answer.clone()).unwrap_or_else(|error| panic!("not details ({error}): {answer:#}"))
    }

    /// The job as it is now.
    #[track_caller]
    pub fn job(&self, job_id: u64) -> Job {
        Job::from_json(&self.get(&format!("/job/details/{job_id}"))["job"])
    }

    /// Why the job waits, as its details say; empty when they do not.
    #[track_caller]
    pub fn why(&self, job_id: u64) -> String {
        self.get(&format!("/job/details/{job_id}"))["why"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the job is in that state.
    #[track_caller]
    pub fn wait_status(&self, job_id: u64, status: &str) -> Job {
        until(format!("job {job_id} to be {status}"), || {
            let job = self.job(job_id);
            if job.status == status { Ok(job) } else { Err(job.outcome()) }
        })
    }

    /// Waits until the job is in a final state.
    #[track_caller]
    pub fn wait_final(&self, job_id: u64) -> Job {
        until(format!("job {job_id} to end"), || {
            let job = self.job(job_id);
            if job.is_final() { Ok(job) } else { Err(job.outcome()) }
        })
    }

    /// Submits a job and waits for its end.
    #[track_caller]
    pub fn run(&self, job: &Value) -> Job {
        self.wait_final(self.submit(job).job_id)
    }

    /// `POST /job/kill/<id>`.
    #[track_caller]
    pub fn kill(&self, job_id: u64) -> Response {
        self.send(Request::post(&format!("/job/kill/{job_id}")).accept("application/json"))
    }

    /// `GET /node/table`.
    #[track_caller]
    pub fn nodes(&self) -> Vec<Value> {
        let answer = self.get("/node/table");
        answer.as_array().cloned().unwrap_or_else(|| panic!("the node table is not a list: {answer:#}"))
    }

    /// Waits until so many nodes answer the master.
    #[track_caller]
    pub fn wait_nodes_ready(&self, count: usize) {
        until(format!("{count} nodes to be ready"), || {
            let nodes = self.nodes();
            let ready = nodes.iter().filter(|node| node["state"] == "ready").count();
            if ready == count { Ok(()) } else { Err(nodes) }
        });
    }
}
