//! The config of a running container, given to stock LXC, makes the same container.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::cgroup;
use tests::job::job_with;
use tests::leaks::Process;
use tests::node::Node;
use tests::wait::until_none;

/// Debian's lxc.
const LXC_EXECUTE: &str = "/usr/bin/lxc-execute";

/// Says what the command sees of its container, and stays to be looked at from outside.
const REPORT: &str = "hostname; pwd; id -u; ulimit -n; ulimit -c; ls /sys/class/net; env | grep -v -e SHLVL -e container | sort; \
    grep -E '^(Cap(Bnd|Eff|Prm)|NoNewPrivs|Cpus_allowed_list)' /proc/self/status; exec sleep 73001";

/// The limits of a process, as its cgroups say.
fn limits(process: &Process) -> [String; 4] {
    [
        cgroup::value(process, "memory", "memory.limit_in_bytes", "memory.max"),
        cgroup::value(process, "pids", "pids.max", "pids.max"),
        cgroup::value(process, "cpuset", "cpuset.cpus", "cpuset.cpus"),
        cgroup::value(process, "cpu", "cpu.shares", "cpu.weight"),
    ]
}

/// The writable layer that the config names: the last part of `lxc.rootfs.path`.
fn upperdir(config: &str) -> PathBuf {
    let rootfs = config.lines().find_map(|line| line.strip_prefix("lxc.rootfs.path = ")).expect("a rootfs");
    PathBuf::from(rootfs.rsplit(':').next().expect("a last part"))
}

fn lxc_execute(config: &Path, name: &str, lxcpath: &Path) -> Child {
    let mut lxc = Command::new(LXC_EXECUTE);
    lxc.args(["-n", name, "-P"]).arg(lxcpath).arg("-f").arg(config);
    lxc.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    lxc.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start lxc-execute")
}

/// LXC leaves the cgroup it moves its monitor to; one in use stays, since rmdir(2) refuses it.
fn remove_pivot_cgroups() {
    for folder in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let _ = fs::remove_dir(folder.path().join("lxc.pivot"));
    }
}

#[test]
fn stock_lxc_makes_of_our_config_the_container_that_we_made() {
    if !Path::new(LXC_EXECUTE).is_file() {
        eprintln!("SKIPPED lxc_conformance: {LXC_EXECUTE} is not there");
        return;
    }
    Node::alone(|node| {
        let task = node.create(&job_with(REPORT, &[("resource", json!({"cpu": "0", "mem": 48}))]));
        let ours = node.footprint().process("sleep 73001");
        let our_limits = limits(&ours);
        let our_report = node.stream(task, "task_stdout");
        let container = node.state_dir().join("cont").join(format!("t{task}-cont"));
        let config = fs::read_to_string(container.join("config")).expect("the container's config");
        node.kill(task);
        node.wait_final(task);
        until_none("the container to be swept", || node.container_folders());

        let kept = node.state_dir().join("kept-config");
        fs::write(&kept, &config).expect("keep the config");
        fs::create_dir_all(upperdir(&config).join("workspace")).expect("make the writable layer anew");
        let name = node.state_dir().display().to_string().replace('/', "-").trim_start_matches('-').to_owned();
        let lxcpath = node.state_dir().join("lxcpath");
        fs::create_dir(&lxcpath).expect("make LXC's folder");
        let mut lxc = lxc_execute(&kept, &name, &lxcpath);
        let theirs = node.footprint().process("sleep 73001");
        let their_limits = limits(&theirs);
        let pid = i32::try_from(theirs.pid).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::KILL).expect("kill");
        let mut their_report = String::new();
        lxc.stdout.take().expect("stdout").read_to_string(&mut their_report).expect("read");
        lxc.wait().expect("wait");
        fs::remove_dir_all(&container).expect("remove the writable layer");
        remove_pivot_cgroups();
        assert!(our_report.contains("CapBnd"), "{our_report}");
        assert_eq!((our_report, our_limits), (their_report, their_limits), "{config}");
    });
}
