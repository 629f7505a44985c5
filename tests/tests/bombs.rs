//! Payloads that go off: processes, memory, output, files, trees and zombies without end. The node answers meanwhile, the
//! limits hold, and nothing is left.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::cgroup;
use tests::http::Request;
use tests::job::{is_final, job, job_with};
use tests::node::{Node, NodePlan};
use tests::wait::until;

/// Runs a job to its end; meanwhile the node is asked again and again how it is. How long its answers took is printed:
/// `cargo nextest run -p tests --test bombs --no-capture`.
#[track_caller]
fn run_under_probes(node: &Node, what: &str, job: &Value) -> Value {
    let task = node.create(job);
    let mut took: Vec<Duration> = Vec::new();
    let ended = until(format!("{what} to end"), || {
        let asked = Instant::now();
        Request::get("/resource").send(node.addr()).expect(200);
        took.push(asked.elapsed());
        let info = node.info(task);
        if is_final(info["status"].as_str().unwrap_or_default()) { Ok(info) } else { Err(info) }
    });
    took.sort_unstable();
    let percentile = |percent: usize| took.get((took.len() - 1) * percent / 100).copied().unwrap_or_default();
    let [half, most, all] = [50, 99, 100].map(percentile);
    eprintln!("{what}: {} probes, p50 {half:.1?}, p99 {most:.1?}, max {all:.1?}", took.len());
    ended
}

#[test]
fn a_fork_bomb_is_held_to_its_number_of_processes_and_ends_with_its_time() {
    Node::alone(|node| {
        let bomb = "while :; do (while :; do :; done) & done 2>/dev/null";
        // Memory enough for what the kernel itself wants for each of them.
        let fields = [("timeout", json!(3000)), ("resource.mem", json!(256))];
        let ended = run_under_probes(node, "a fork bomb", &job_with(bomb, &fields));
        // The shell gives up at the first fork that is refused, or lives until its time is up.
        let reason = ended["reason"].as_str().unwrap_or_default();
        assert!(ended["status"] == "Timeout" || reason.starts_with("exit code "), "{ended:#}");
        assert_eq!(node.run(&job("echo after it")), "after it\n");
    });
}

#[test]
fn forks_that_multiply_are_ended_to_the_last_by_a_kill() {
    Node::alone(|node| {
        // A shell ends at the first fork that is refused. The command itself forks nothing, so the others go on.
        let bomb = "b() { while :; do (b) & (b) & sleep 1; done; }; b 2>/dev/null & exec sleep 1000";
        let task = node.create(&job_with(bomb, &[("resource.mem", json!(512))]));
        until("many processes", || {
            node.get("/resource");
            let processes = node.footprint().processes().len();
            if processes > 100 { Ok(()) } else { Err(processes) }
        });
        let processes = node.footprint().processes().len();
        assert!(processes < 600, "{processes} processes where 512 are allowed");
        node.kill(task);
        assert_eq!(node.wait_final(task)["status"], "Killed");
    });
}

#[test]
fn a_memory_bomb_of_many_processes_is_out_of_memory() {
    Node::alone(|node| {
        let bomb = "for i in 1 2 3 4 5 6 7 8; do tail /dev/zero & done; wait; exit 1";
        let ended = run_under_probes(node, "a memory bomb", &job(bomb));
        let reason = ended["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("out of memory (peak "), "{ended:#}");
    });
}

#[test]
fn a_log_flood_is_cut_and_the_node_answers_meanwhile() {
    Node::alone_as(&NodePlan::default().flags(&["--log-limit", "64MiB"]), |node| {
        // The share of a test may be on tmpfs, where what is written counts as the task's memory.
        let flood = job_with("yes & yes >&2 & wait", &[("resource.mem", json!(512))]);
        let ended = run_under_probes(node, "a log flood", &flood);
        let reason = ended["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("log limit (std") && reason.ends_with(" is over 64 MiB)"), "{ended:#}");
    });
}

#[test]
fn ten_thousand_files_in_the_workspace_are_made_and_swept() {
    Node::alone(|node| {
        let many = "i=0; while [ $i -lt 10000 ]; do : >f$i; i=$((i+1)); done; ls | wc -l";
        let ended = run_under_probes(node, "10,000 files", &job(many));
        assert_eq!(ended["status"], "Finished", "{ended:#}");
        let task = ended["taskId"].as_u64().expect("a task");
        assert_eq!(node.stream(task, "task_stdout"), "10000\n");
        until("the folder to be swept", || {
            node.get("/resource");
            let left = node.container_folders();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    });
}

#[test]
fn folders_deeper_than_there_are_descriptors_for_are_swept() {
    let plan = NodePlan { before_exec: Some("ulimit -n 256".to_owned()), ..NodePlan::default() };
    Node::alone_as(&plan, |node| {
        // Without -P the shell would spell the whole path.
        let dig =
            "p=d; for i in $(seq 499); do p=$p/d; done; for i in 1 2 3 4; do mkdir -p $p; cd -P $p; done 2>/dev/null";
        let task = node.create(&job(dig));
        assert_eq!(node.wait_final(task)["status"], "Finished");
        until("the folder to be swept", || {
            node.get("/resource");
            let left = node.container_folders();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    });
}

#[test]
fn a_tree_of_64_processes_one_below_the_other_is_killed_to_its_root() {
    Node::alone(|node| {
        let tree = "d() { if [ $1 -gt 0 ]; then (d $(($1-1)); :); else sleep 1000; fi; }; d 64; :";
        let task = node.create(&job(tree));
        let deepest = node.footprint().process("sleep 1000");
        let pids = cgroup::value(&deepest, "pids", "pids.current", "pids.current");
        assert!(pids.parse::<u32>().expect("a number") >= 65, "{pids} processes");
        node.kill(task);
        assert_eq!(node.wait_final(task)["status"], "Killed");
    });
}

#[test]
fn zombies_that_their_parent_never_reaps_go_with_it() {
    Node::alone(|node| {
        // The children end only when their parent is a program that never waits for any.
        let parent = "mkfifo f; i=0; while [ $i -lt 300 ]; do (read line <f) & i=$((i+1)); done; \
                      (until grep -q sleep /proc/$$/comm; do /bin/sleep 0.05; done; : >f) & exec /bin/sleep 1000";
        let task = node.create(&job(parent));
        let sleeper = node.footprint().process("/bin/sleep 1000");
        let current = || cgroup::value(&sleeper, "pids", "pids.current", "pids.current").parse::<u32>().unwrap_or(0);
        until("hundreds of zombies", || if current() >= 200 { Ok(()) } else { Err(current()) });
        node.get("/resource");
        node.kill(task);
        assert_eq!(node.wait_final(task)["status"], "Killed");
    });
}

#[test]
fn orphans_by_the_hundred_are_reaped_by_init_while_the_task_runs() {
    Node::alone(|node| {
        let orphans = "i=0; while [ $i -lt 300 ]; do (/bin/true &); i=$((i+1)); done; echo made; exec sleep 1000";
        let task = node.create(&job(orphans));
        until("all to be made", || if node.stream(task, "task_stdout") == "made\n" { Ok(()) } else { Err("not yet") });
        let sleeper = node.footprint().process("sleep 1000");
        let current = || cgroup::value(&sleeper, "pids", "pids.current", "pids.current");
        until("only the command to be left", || if current() == "1" { Ok(()) } else { Err(current()) });
        node.kill(task);
        assert_eq!(node.wait_final(task)["status"], "Killed");
    });
}
