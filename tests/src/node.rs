//! One supervisor, and what a master or curl can ask of it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::daemon::{Daemon, binary, run_to_end};
use crate::http::{Request, Response};
use crate::image;
use crate::job::is_final;
use crate::leaks::{Footprint, Process};
use crate::netns::Host;
use crate::sandbox::{Sandbox, is_root};
use crate::wait::{until, until_none};

/// The daemon's binary.
pub const SUPERVISOR: &str = "berth-supervisor";

/// The image's folder in the sandbox: whoever makes it first decides what is in it.
pub const BUSYBOX_ROOTFS: &str = "busybox-rootfs";

/// How a node is started.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// `--cpu`.
    pub cpu: u32,
    /// `--mem`, in MiB.
    pub mem: u32,
    /// More flags, after the usual ones.
    pub flags: Vec<String>,
    /// What `--token-file` holds, if there is one.
    pub token: Option<String>,
    /// What a shell does before it becomes the daemon: `ulimit -n 128`.
    pub before_exec: Option<String>,
    /// The host it runs on, if that is not this one.
    pub host: Option<Host>,
    /// Its state dir, if it is not in the sandbox.
    pub state_dir: Option<PathBuf>,
    /// Its share, if it is not in the sandbox.
    pub share: Option<PathBuf>,
}

impl Default for NodePlan {
    fn default() -> NodePlan {
        NodePlan {
            cpu: 4,
            mem: 4096,
            flags: Vec::new(),
            token: None,
            before_exec: None,
            host: None,
            state_dir: None,
            share: None,
        }
    }
}

impl NodePlan {
    /// With `--mem`.
    pub fn mem(self, mem: u32) -> NodePlan {
        NodePlan { mem, ..self }
    }

    /// With these flags after the usual ones.
    pub fn flags(self, flags: &[&str]) -> NodePlan {
        NodePlan { flags: words(flags), ..self }
    }

    /// With its share there.
    pub fn share(self, share: &Path) -> NodePlan {
        NodePlan { share: Some(share.to_owned()), ..self }
    }

    /// With its state dir there.
    pub fn in_state_dir(self, state_dir: &Path) -> NodePlan {
        NodePlan { state_dir: Some(state_dir.to_owned()), ..self }
    }

    /// With `--cpu`.
    pub fn cpu(self, cpu: u32) -> NodePlan {
        NodePlan { cpu, ..self }
    }
}

/// A running supervisor with the busybox image.
#[derive(Debug)]
pub struct Node {
    id: u32,
    state_dir: PathBuf,
    share: PathBuf,
    packages: PathBuf,
    token: Option<String>,
    cgroup_root: String,
    footprint: Footprint,
    daemon: Daemon,
    fds_at_start: usize,
}

impl Node {
    /// Starts a node in a sandbox, after adding the image to it.
    pub fn start(sandbox: &Sandbox, id: u32, plan: &NodePlan) -> Node {
        let state_dir = plan.state_dir.clone().unwrap_or_else(|| sandbox.folder(&format!("node{id}")));
        let share = plan.share.clone().unwrap_or_else(|| sandbox.folder("share"));
        let packages = sandbox.folder("packages");
        let mut args =
            words(&["--node-id", &id.to_string(), "--cpu", &plan.cpu.to_string(), "--mem", &plan.mem.to_string()]);
        args.extend(words(&["--state-dir", path(&state_dir), "--share", path(&share)]));
        args.extend(words(&["--package-root", path(&packages), "--cgroup-root", &cgroup_root(sandbox, id)]));
        args.extend(token_flag(sandbox, plan.token.as_deref()));
        args.extend(plan.flags.iter().cloned());
        add_busybox(sandbox, &state_dir);
        let log = sandbox.dir().join(format!("node{id}.log"));
        let daemon = Daemon::start(SUPERVISOR, args, log, plan.before_exec.clone(), plan.host.clone());
        let fds_at_start = daemon.open_fds();
        let (token, footprint) = (plan.token.clone(), Footprint::of(sandbox));
        let cgroup_root = cgroup_root(sandbox, id);
        Node { id, state_dir, share, packages, token, cgroup_root, footprint, daemon, fds_at_start }
    }

    /// Runs a test against one node that no master knows, and checks for leaks after it.
    pub fn alone(test: impl FnOnce(&mut Node)) {
        Node::alone_as(&NodePlan::default(), test);
    }

    /// [`Node::alone`], started otherwise.
    pub fn alone_as(plan: &NodePlan, test: impl FnOnce(&mut Node)) {
        if !is_root() {
            return;
        }
        let sandbox = Sandbox::new();
        let mut node = Node::start(&sandbox, 0, plan);
        test(&mut node);
        node.finish();
        node.footprint.wait_until_gone();
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.daemon.addr()
    }

    /// Its state dir.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Its `--cgroup-root`.
    pub fn cgroup_root(&self) -> String {
        self.cgroup_root.clone()
    }

    /// The root its packages may come from.
    pub fn packages(&self) -> &Path {
        &self.packages
    }

    /// Its process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// What it wrote on stderr.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Sends a request with the node's token, if it has one.
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
        self.send(Request::get(path)).expect(200).json()
    }

    /// `POST path` with a JSON body; the whole answer, whatever it is.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Value {
        self.send(Request::post(path).json(body)).json()
    }

    /// Starts a task; its number.
    #[track_caller]
    pub fn create(&self, job: &Value) -> u64 {
        let answer = self.post("/task/create", job);
        assert_eq!(answer["code"], 0, "{answer:#}");
        answer["data"]["taskId"].as_u64().unwrap_or_else(|| panic!("no data.taskId in {answer:#}"))
    }

    /// The `data` of `GET /task/info`.
    #[track_caller]
    pub fn info(&self, task: u64) -> Value {
        let answer = self.get(&format!("/task/info?taskId={task}"));
        assert_eq!(answer["code"], 0, "{answer:#}");
        answer["data"].clone()
    }

    /// Waits until the task is in that state.
    #[track_caller]
    pub fn wait_status(&self, task: u64, status: &str) -> Value {
        until(format!("task {task} to be {status}"), || {
            let info = self.info(task);
            if info["status"] == status { Ok(info) } else { Err(info) }
        })
    }

    /// Waits until the task has ended; what the node then says of it.
    #[track_caller]
    pub fn wait_final(&self, task: u64) -> Value {
        until(format!("task {task} to end"), || {
            let info = self.info(task);
            if is_final(info["status"].as_str().unwrap_or_default()) { Ok(info) } else { Err(info) }
        })
    }

    /// Runs a job to its end; what it printed on stdout. It must have finished well.
    #[track_caller]
    pub fn run(&self, job: &Value) -> String {
        let task = self.create(job);
        let info = self.wait_final(task);
        let stderr = self.stream(task, "task_stderr");
        assert_eq!(info["status"], "Finished", "{info:#}\n{stderr}\n{}", self.stream(task, "monitor_out"));
        self.stream(task, "task_stdout")
    }

    /// `POST /task/kill`.
    #[track_caller]
    pub fn kill(&self, task: u64) -> Value {
        self.post("/task/kill", &json!({"taskId": task}))
    }

    /// The `data` of `GET /task/events`.
    #[track_caller]
    pub fn events(&self, after: u64, wait_ms: u64) -> Value {
        let answer = self.get(&format!("/task/events?after={after}&wait_ms={wait_ms}"));
        assert_eq!(answer["code"], 0, "{answer:#}");
        answer["data"].clone()
    }

    /// A task's log as it is on the share: `task_stdout`, `task_stderr` or `monitor_out`.
    pub fn stream(&self, task: u64, file: &str) -> String {
        let bytes = fs::read(self.stream_path(task, file)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Where that log is.
    pub fn stream_path(&self, task: u64, file: &str) -> PathBuf {
        self.share.join(format!("nodes/{}/task{task}/{file}", self.id))
    }

    /// The folders of containers that are there now.
    pub fn container_folders(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.state_dir.join("cont")) else { return Vec::new() };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with('t') && name.ends_with("-cont")).collect()
    }

    /// What of its sandbox is on the machine.
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// The init of the only task. Its command line is the supervisor's, as a sweeper's is; its name is its own.
    #[track_caller]
    pub fn monitor(&self) -> Process {
        until("the monitor of a task", || {
            let all = self.footprint.processes();
            all.iter().find(|process| process.name() == "berth-init").cloned().ok_or(all)
        })
    }

    /// SIGKILL to the supervisor; its tasks go on.
    pub fn kill_supervisor(&mut self) {
        self.daemon.kill();
    }

    /// Starts the supervisor again, on its address and state.
    pub fn restart(&mut self) {
        self.daemon.restart();
    }

    /// Ends what still runs, waits until the node is as it was at its start, and stops it.
    pub fn finish(&mut self) {
        if !self.daemon.is_up() {
            self.restart();
        }
        self.kill_all_tasks();
        until_none("the container folders to be swept", || self.container_folders());
        until(format!("the supervisor to have its {} files open and no more", self.fds_at_start), || {
            if self.daemon.open_fds() <= self.fds_at_start { Ok(()) } else { Err(self.daemon.open_fd_names()) }
        });
        self.daemon.stop();
    }

    fn kill_all_tasks(&self) {
        let alive = self.events(0, 0)["events"].as_array().cloned().unwrap_or_default();
        let alive = alive.iter().filter(|report| !is_final(report["status"].as_str().unwrap_or_default()));
        let alive: Vec<u64> = alive.filter_map(|report| report["taskId"].as_u64()).collect();
        for &task in &alive {
            self.kill(task);
        }
        for task in alive {
            self.wait_final(task);
        }
    }
}

/// The `--cgroup-root` of a node.
pub fn cgroup_root(sandbox: &Sandbox, id: u32) -> String {
    format!("{}-node{id}", sandbox.name())
}

/// Adds the busybox image to the node with that state dir, as an operator would.
pub fn add_busybox(sandbox: &Sandbox, state_dir: &Path) {
    let rootfs = sandbox.dir().join(BUSYBOX_ROOTFS);
    if !rootfs.exists() {
        image::make_busybox(&rootfs);
    }
    let added = supervisor(&["image", "add", "busybox", path(&rootfs), "--state-dir", path(state_dir)]);
    assert!(added.status.success(), "image add: {}", String::from_utf8_lossy(&added.stderr));
}

/// Runs `berth-supervisor` with these arguments to its end.
pub fn supervisor(args: &[&str]) -> Output {
    run_to_end(Command::new(binary(SUPERVISOR)).args(args))
}

/// `--token-file F`, the file written so that only root reads it.
pub(crate) fn token_flag(sandbox: &Sandbox, token: Option<&str>) -> Vec<String> {
    let Some(token) = token else { return Vec::new() };
    let file = sandbox.dir().join("token");
    write_private(&file, token);
    words(&["--token-file", path(&file)])
}

/// Writes a file that only its owner can read.
pub fn write_private(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let private = fs::Permissions::from_mode(0o600);
    let written = fs::write(file, text).and_then(|()| fs::set_permissions(file, private));
    written.unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
