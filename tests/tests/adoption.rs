//! kill -9 at any moment: tasks go on, ends are recorded, and every job ends with its true state, once.

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::cluster::{Cluster, Plan};
use tests::job::{Job, job, job_with};
use tests::leaks::{self, Process};
use tests::node::{Node, NodePlan};
use tests::wait::{short_ms, until, until_none};

/// A job so small that a hundred of them run side by side on one test node.
fn small(command: &str) -> Value {
    job_with(command, &[("resource", json!({"cpu": 0.04, "mem": 8}))])
}

/// Ends a task's sleep from outside, so that its command line goes on.
fn wake(node: &Node, seconds: u32) {
    node.footprint().process(&format!("sleep {seconds}")).signal(Signal::KILL);
}

#[test]
fn a_task_that_runs_on_is_adopted_and_its_end_told() {
    Node::alone(|node| {
        let task = node.create(&job("echo once; sleep 1; exit 4"));
        let sleeper = node.create(&job("echo once; exec sleep 81001"));
        node.footprint().process("sleep 81001");
        node.kill_supervisor();
        node.footprint().process("sleep 81001");
        node.restart();
        assert_eq!(node.wait_status(sleeper, "Running")["containerId"], format!("t{sleeper}-cont"));
        node.kill(sleeper);
        assert_eq!(node.wait_final(sleeper)["status"], "Killed");
        let ended = node.wait_final(task);
        assert_eq!(ended["reason"], "exit code 4");
        assert_eq!(node.stream(sleeper, "task_stdout"), "once\n");
    });
}

#[test]
fn what_ended_while_nobody_watched_is_told_as_it_was() {
    Node::alone(|node| {
        let cases = [
            ("sleep 81003; exit 0", "Finished", Value::Null),
            ("sleep 81004; exit 9", "Failed", json!("exit code 9")),
            ("sleep 81005; kill -SEGV $$", "Failed", json!("signal 11 (SIGSEGV)")),
        ];
        let tasks: Vec<u64> =
            cases.iter().map(|(command, _, _)| node.create(&job(&format!("echo once; {command}")))).collect();
        for &task in &tasks {
            node.wait_status(task, "Running");
        }
        node.kill_supervisor();
        for seconds in [81003, 81004, 81005] {
            wake(node, seconds);
        }
        until_none("the tasks to end without a supervisor", || node.footprint().processes());
        node.restart();
        for (task, (command, status, reason)) in tasks.into_iter().zip(cases) {
            let info = node.wait_final(task);
            assert_eq!((&info["status"], &info["reason"]), (&json!(status), &reason), "{command}: {info:#}");
            assert_eq!(node.stream(task, "task_stdout"), "once\n", "{command}");
        }
    });
}

#[test]
fn a_memory_hog_that_ended_while_nobody_watched_is_out_of_memory() {
    Node::alone(|node| {
        let hog = node.create(&job_with("sleep 81006; exec tail /dev/zero", &[("resource.mem", json!(32))]));
        node.wait_status(hog, "Running");
        node.kill_supervisor();
        wake(node, 81006);
        until_none("the hog to end", || node.footprint().processes());
        node.restart();
        assert_eq!(node.wait_final(hog)["reason"], "out of memory (peak 32 MiB of 32 MiB)");
    });
}

#[test]
fn a_timeout_holds_without_a_supervisor() {
    Node::alone(|node| {
        let task = node.create(&job_with("sleep 1000", &[("timeout", json!(short_ms(5000)))]));
        node.wait_status(task, "Running");
        node.kill_supervisor();
        until_none("the task to be stopped by its monitor", || node.footprint().processes());
        node.restart();
        assert_eq!(node.wait_final(task)["status"], "Timeout");
    });
}

#[test]
fn a_kill_that_was_asked_for_before_the_crash_is_still_killed() {
    Node::alone(|node| {
        let task = node.create(&job("trap '' TERM; while :; do sleep 1; done"));
        node.wait_status(task, "Running");
        node.kill(task);
        node.kill_supervisor();
        node.restart();
        assert_eq!(node.wait_final(task)["status"], "Killed");
    });
}

#[test]
fn what_adopted_tasks_take_is_not_free() {
    Node::alone(|node| {
        let task = node.create(&job("sleep 1000"));
        node.wait_status(task, "Running");
        let before = node.get("/resource");
        node.kill_supervisor();
        node.restart();
        let after = node.get("/resource");
        for field in ["cpu", "mem", "tasks", "instance"] {
            assert_eq!(before[field], after[field], "{field}");
        }
    });
}

#[test]
fn asking_again_after_a_crash_starts_nothing_twice() {
    Node::alone(|node| {
        let attempt = job_with("echo once", &[("jobId", json!(1)), ("attempt", json!(1)), ("master", json!("aa"))]);
        let task = node.create(&attempt);
        node.kill_supervisor();
        node.restart();
        assert_eq!(node.create(&attempt), task);
        node.wait_final(task);
        node.kill_supervisor();
        node.restart();
        assert_eq!(node.create(&attempt), task);
        assert_eq!(node.stream(task, "task_stdout"), "once\n");
    });
}

#[test]
fn a_task_accepted_the_moment_before_the_crash_runs_once() {
    Node::alone(|node| {
        let mut tasks = Vec::new();
        for _ in 0..5 {
            // No wait between the answer and the kill: accepted, cloned or launched, as it happens.
            tasks.extend((0..4).map(|_| node.create(&small("echo once"))));
            node.kill_supervisor();
            node.restart();
        }
        for task in tasks {
            assert_eq!(node.wait_final(task)["status"], "Finished");
            assert_eq!(node.stream(task, "task_stdout"), "once\n");
        }
    });
}

#[test]
fn a_supervisor_that_is_asked_to_stop_leaves_its_tasks_alone() {
    Node::alone(|node| {
        let task = node.create(&job("exec sleep 81002"));
        node.footprint().process("sleep 81002");
        node.daemon().stop();
        node.footprint().process("sleep 81002");
        node.restart();
        assert_eq!(node.info(task)["status"], "Running");
    });
}

/// What each of the hundred jobs does until it is ended from outside.
const SLEEP: &str = "sleep 86001";

/// Those that sleep now.
fn sleeps(cluster: &Cluster) -> Vec<Process> {
    let mut all = cluster.footprint().processes();
    all.retain(|process| process.cmdline == SLEEP);
    all
}

/// A hundred jobs of two kinds, submitted, and most of them seen to run.
fn hundred_running_jobs(cluster: &Cluster) -> Vec<Job> {
    let command = |n: u32| format!("echo once; {SLEEP}; exit {}", n % 2 * 7);
    let jobs: Vec<Value> = (0..100).map(|n| small(&command(n))).collect();
    let jobs = cluster.master.submit_all(&jobs);
    until("most of the jobs to run", || {
        let events = cluster.nodes[0].events(0, 0);
        let running = |report: &&Value| report["status"] == "Running";
        let running = events["events"].as_array().into_iter().flatten().filter(running).count();
        if running >= 60 { Ok(()) } else { Err(running) }
    });
    jobs
}

/// Ends a third of the jobs, while somebody is not there to hear of it.
fn wake_some(cluster: &Cluster) {
    sleeps(cluster).iter().step_by(3).for_each(leaks::end);
}

fn every_job_ended_truly_and_once(cluster: &Cluster, jobs: Vec<Job>) {
    until("every job to end", || {
        sleeps(cluster).iter().for_each(leaks::end);
        let table = cluster.master.get("/job/table?limit=200");
        let jobs: Vec<Job> = table.as_array().into_iter().flatten().map(Job::from_json).collect();
        let open: Vec<Job> = jobs.into_iter().filter(|job| !job.is_final()).collect();
        if open.is_empty() { Ok(()) } else { Err(open) }
    });
    for (n, job) in jobs.into_iter().enumerate() {
        let ended = cluster.master.wait_final(job.job_id);
        let outcome = if n % 2 == 0 { "Finished" } else { "Failed: exit code 7" };
        assert_eq!((ended.outcome().as_str(), ended.attempt), (outcome, 1), "{ended:?}");
        assert_eq!(cluster.stdout(&ended), "once\n", "{ended:?}");
    }
    let events = cluster.nodes[0].events(0, 0);
    assert!(events["events"].as_array().is_some_and(|events| events.len() <= 100), "{events:#}");
}

#[test]
fn a_hundred_jobs_survive_the_kill_of_the_supervisor() {
    Plan::of_nodes([NodePlan::default()]).run(|cluster| {
        let jobs = hundred_running_jobs(cluster);
        cluster.node().kill_supervisor();
        wake_some(cluster);
        cluster.node().restart();
        every_job_ended_truly_and_once(cluster, jobs);
    });
}

#[test]
fn a_hundred_jobs_survive_the_kill_of_the_master() {
    Plan::of_nodes([NodePlan::default()]).run(|cluster| {
        let jobs = hundred_running_jobs(cluster);
        cluster.master.daemon().kill();
        wake_some(cluster);
        cluster.master.daemon().restart();
        every_job_ended_truly_and_once(cluster, jobs);
    });
}

#[test]
fn a_hundred_jobs_survive_the_kill_of_both() {
    Plan::of_nodes([NodePlan::default()]).run(|cluster| {
        let jobs = hundred_running_jobs(cluster);
        cluster.master.daemon().kill();
        cluster.node().kill_supervisor();
        wake_some(cluster);
        cluster.node().restart();
        cluster.master.daemon().restart();
        every_job_ended_truly_and_once(cluster, jobs);
    });
}

#[test]
fn a_hundred_jobs_survive_kills_at_every_stage_of_their_lives() {
    Plan::of_nodes([NodePlan::default()]).run(|cluster| {
        let command = |n: u32| format!("echo once; sleep 1; exit {}", n % 2 * 7);
        let jobs: Vec<Value> = (0..100).map(|n| small(&command(n))).collect();
        let jobs = cluster.master.submit_all(&jobs);
        for _ in 0..4 {
            cluster.node().kill_supervisor();
            cluster.node().restart();
            cluster.master.daemon().kill();
            cluster.master.daemon().restart();
        }
        every_job_ended_truly_and_once(cluster, jobs);
    });
}
