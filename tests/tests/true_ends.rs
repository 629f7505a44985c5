//! Ends that race: what ended a task is told apart by what was recorded first, by the counters, and by the boot id.

use std::fs;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::job::{job, job_with};
use tests::leaks::Process;
use tests::node::{Node, NodePlan};
use tests::wait::{until, until_none};

/// Its state, and why it failed if it did.
fn outcome(info: &Value) -> String {
    let status = info["status"].as_str().unwrap_or_default();
    info["reason"].as_str().map_or_else(|| status.to_owned(), |reason| format!("{status}: {reason}"))
}

#[track_caller]
fn wait_outcome(node: &Node, task: u64) -> String {
    outcome(&node.wait_final(task))
}

/// Waits until the task has printed this.
#[track_caller]
fn wait_said(node: &Node, task: u64, word: &str) {
    until(format!("task {task} to say {word:?}"), || {
        let said = node.stream(task, "task_stdout");
        if said.contains(word) { Ok(()) } else { Err(said) }
    });
}

/// Waits until the process is a zombie or reaped: it has ended, whoever has heard of it.
#[track_caller]
fn wait_over(process: &Process) {
    until(format!("{process:?} to end"), || match process.state() {
        'Z' | 'X' => Ok(()),
        other => Err(other),
    });
}

/// A task of which init has not heard yet that its command has ended.
struct Unheard {
    task: u64,
    init: Process,
}

/// The command runs until the file `/workspace/over` is there, which appears while its init is stopped.
#[track_caller]
fn end_unheard(node: &mut Node, command: &str, fields: &[(&str, Value)]) -> Unheard {
    let marked = format!("echo ready; while [ ! -e over ]; do sleep 0.02; done; {command}");
    let task = node.create(&job_with(&marked, fields));
    wait_said(node, task, "ready");
    let payload = node.footprint().process("sh -c");
    let init = node.monitor();
    init.freeze();
    // Through the command's own root: nobody else sees its mounts.
    let over = format!("/proc/{}/root/workspace/over", payload.pid);
    fs::write(&over, "").unwrap_or_else(|error| panic!("cannot write {over}: {error}"));
    wait_over(&payload);
    Unheard { task, init }
}

#[test]
fn a_kill_that_comes_after_the_command_has_exited_0_leaves_it_finished() {
    Node::alone(|node| {
        let it = end_unheard(node, "exit 0", &[]);
        node.kill(it.task);
        it.init.wait_pending(Signal::TERM);
        it.init.signal(Signal::CONT);
        assert_eq!(wait_outcome(node, it.task), "Finished");
    });
}

#[test]
fn a_timeout_that_comes_after_the_command_has_exited_0_leaves_it_finished() {
    Node::alone(|node| {
        let it = end_unheard(node, "exit 0", &[("timeout", json!(10_000))]);
        let ended = Instant::now();
        until("the time to be up", || if ended.elapsed().as_secs() >= 10 { Ok(()) } else { Err(ended.elapsed()) });
        it.init.signal(Signal::CONT);
        assert_eq!(wait_outcome(node, it.task), "Finished");
    });
}

#[test]
fn a_kill_that_comes_after_the_command_was_out_of_memory_leaves_it_out_of_memory() {
    Node::alone(|node| {
        let it = end_unheard(node, "exec tail /dev/zero", &[("resource.mem", json!(32))]);
        node.kill(it.task);
        it.init.wait_pending(Signal::TERM);
        it.init.signal(Signal::CONT);
        assert_eq!(wait_outcome(node, it.task), "Failed: out of memory (peak 32 MiB of 32 MiB)");
    });
}

#[test]
fn a_command_that_runs_out_of_memory_while_it_is_being_killed_is_killed() {
    Node::alone(|node| {
        let greedy = "trap 'exec tail /dev/zero' TERM; echo ready; while :; do sleep 0.02; done";
        let task = node.create(&job_with(greedy, &[("resource.mem", json!(32))]));
        wait_said(node, task, "ready");
        node.kill(task);
        assert_eq!(wait_outcome(node, task), "Killed");
    });
}

#[test]
fn a_kill_during_the_grace_period_of_a_timeout_leaves_it_timeout() {
    Node::alone(|node| {
        let slow = "trap 'echo caught; while [ ! -e over ]; do sleep 0.02; done; exit 0' TERM; \
                    echo ready; while :; do sleep 0.02; done";
        let task = node.create(&job_with(slow, &[("timeout", json!(5000))]));
        wait_said(node, task, "caught");
        node.kill(task);
        assert_eq!(wait_outcome(node, task), "Timeout");
        let monitor = node.stream(task, "monitor_out");
        assert!(monitor.contains("time is up") && !monitor.contains("asked to stop"), "{monitor}");
    });
}

#[test]
fn a_timeout_during_the_grace_period_of_a_kill_leaves_it_killed() {
    // Begun before the time is up, and over after it.
    Node::alone_as(&NodePlan::default().flags(&["--grace", "15s"]), |node| {
        let slow = "trap 'echo caught' TERM; echo ready; while :; do sleep 0.02; done";
        let task = node.create(&job_with(slow, &[("timeout", json!(10_000))]));
        wait_said(node, task, "ready");
        node.kill(task);
        wait_said(node, task, "caught");
        assert_eq!(wait_outcome(node, task), "Killed");
    });
}

#[test]
fn a_command_that_exits_0_on_the_sigterm_of_its_timeout_is_timeout() {
    Node::alone(|node| {
        let polite = "trap 'echo bye; exit 0' TERM; while :; do sleep 0.02; done";
        let task = node.create(&job_with(polite, &[("timeout", json!(5000))]));
        let info = node.wait_final(task);
        assert_eq!((outcome(&info), &info["exitCode"]), ("Timeout".to_owned(), &Value::Null));
        assert_eq!(node.stream(task, "task_stdout"), "bye\n");
    });
}

#[test]
fn exit_137_and_a_sigkill_are_told_apart_whoever_sent_it() {
    Node::alone(|node| {
        let exits = node.create(&job("exit 137"));
        let itself = node.create(&job("kill -KILL $$"));
        assert_eq!(wait_outcome(node, exits), "Failed: exit code 137");
        assert_eq!(wait_outcome(node, itself), "Failed: signal 9 (SIGKILL)");
        let by_a_stranger = node.create(&job("exec sleep 82001"));
        node.footprint().process("sleep 82001").signal(Signal::KILL);
        assert_eq!(wait_outcome(node, by_a_stranger), "Failed: signal 9 (SIGKILL)");
        let stopped_first = node.create(&job("exec sleep 82002"));
        let payload = node.footprint().process("sleep 82002");
        payload.freeze();
        payload.signal(Signal::KILL);
        assert_eq!(wait_outcome(node, stopped_first), "Failed: signal 9 (SIGKILL)");
    });
}

#[test]
fn an_init_killed_by_a_stranger_while_the_command_runs_makes_it_lost_and_leaves_nothing_alive() {
    Node::alone(|node| {
        let task = node.create(&job("setsid sleep 82003 & exec sleep 82004"));
        node.footprint().process("sleep 82003");
        node.footprint().process("sleep 82004");
        node.monitor().signal(Signal::KILL);
        assert_eq!(wait_outcome(node, task), "Failed: lost");
        let daemon = node.daemon().pid();
        until_none("the command and its children to be gone", || {
            let mut left = node.footprint().processes();
            left.retain(|process| process.pid != daemon);
            left
        });
    });
}

#[test]
fn an_init_killed_by_a_stranger_before_it_heard_of_the_end_makes_it_lost_and_never_finished() {
    for supervisor_is_there in [true, false] {
        Node::alone(|node| {
            let it = end_unheard(node, "exit 0", &[]);
            if !supervisor_is_there {
                node.kill_supervisor();
            }
            it.init.signal(Signal::KILL);
            if !supervisor_is_there {
                until_none("init to be gone", || node.footprint().processes());
                node.restart();
            }
            assert_eq!(wait_outcome(node, it.task), "Failed: lost");
        });
    }
}

#[test]
fn an_init_killed_by_a_stranger_before_the_word_to_go_has_run_nothing_so_its_task_runs_once() {
    Node::alone(|node| {
        // The supervisor dies before it says go, and init is killed before it can say that it heard nothing.
        node.kill_supervisor();
        node.daemon().restart_with_fault("launch.cloned");
        let attempt = json!({"jobId": 1, "attempt": 1, "master": "aa"});
        let attempt: Vec<(&str, Value)> =
            ["jobId", "attempt", "master"].iter().map(|&field| (field, attempt[field].clone())).collect();
        let request = job_with("echo once", &attempt);
        let _ = tests::http::Request::post("/task/create").json(&request).try_send(node.addr());
        until("the supervisor to die", || if node.daemon().is_up() { Err("it lives") } else { Ok(()) });
        node.kill_supervisor();
        for process in node.footprint().processes() {
            tests::leaks::end(&process);
        }
        node.restart();
        let task = node.create(&request);
        assert_eq!(wait_outcome(node, task), "Finished");
        assert_eq!(node.stream(task, "task_stdout"), "once\n");
    });
}

#[test]
fn a_launch_that_failed_keeps_its_reason_though_the_supervisor_died_before_it_heard_of_it() {
    for dies_at in ["journal.launched.after", "end.exited", "end.reaped", "journal.ended.before", "journal.ended.after"]
    {
        Node::alone(|node| {
            let shell = node.state_dir().join("img/busybox/bin/sh");
            fs::remove_file(shell).expect("remove the image's shell");
            node.kill_supervisor();
            node.daemon().restart_with_fault(dies_at);
            let _ = tests::http::Request::post("/task/create").json(&job("true")).try_send(node.addr());
            until("the supervisor to die", || if node.daemon().is_up() { Err("it lives") } else { Ok(()) });
            node.kill_supervisor();
            node.restart();
            let ended = wait_outcome(node, 1);
            assert!(ended.starts_with("Failed: launch failed: "), "{dies_at}: {ended}");
        });
    }
}
