//! Output without end: each of a task's logs has a cap, and a task that writes more is ended and says so.

use std::fs;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::cluster::Plan;
use tests::job::{job, job_with};
use tests::node::{Node, NodePlan};
use tests::wait::until;

const CAP: u64 = 1 << 20;

fn capped() -> NodePlan {
    NodePlan::default().flags(&["--log-limit", "1MiB"])
}

fn size(node: &Node, task: u64, file: &str) -> u64 {
    fs::metadata(node.stream_path(task, file)).map_or(0, |log| log.len())
}

#[test]
fn a_flood_on_stdout_ends_the_job_with_the_streams_name_and_the_log_is_cut_to_the_cap() {
    Plan::of_nodes([capped()]).run(|cluster| {
        let flood = cluster.run(&job("yes"));
        assert_eq!(flood.outcome(), "Failed: log limit (stdout is over 1 MiB)");
        let task = u64::try_from(flood.task_id).expect("a task");
        assert_eq!(size(cluster.node(), task, "task_stdout"), CAP);
        assert!(cluster.master.details(flood.job_id).monitor_out.contains("stdout is over 1 MiB"));
        // The typed reason is there for programs.
        let details = cluster.master.get(&format!("/job/details/{}", flood.job_id));
        assert_eq!(details["job"]["cause"], json!({"kind": "logLimit", "stream": "stdout", "limitBytes": CAP}));
    });
}

#[test]
fn a_flood_on_stderr_by_a_daemon_of_the_task_that_ignores_every_signal_is_ended_too() {
    Node::alone_as(&capped(), |node| {
        let task = node.create(&job("trap '' TERM; setsid sh -c 'trap \"\" TERM; yes >&2' & wait"));
        let info = node.wait_final(task);
        assert_eq!(info["reason"], "log limit (stderr is over 1 MiB)", "{info:#}");
        assert_eq!(size(node, task, "task_stderr"), CAP);
        assert_eq!(size(node, task, "task_stdout"), 0);
    });
}

#[test]
fn each_stream_may_fill_its_own_cap_to_the_last_byte() {
    Node::alone_as(&capped(), |node| {
        let task = node.create(&job("head -c 1048576 /dev/zero; head -c 1048576 /dev/zero >&2"));
        assert_eq!(node.wait_final(task)["status"], "Finished");
        assert_eq!([size(node, task, "task_stdout"), size(node, task, "task_stderr")], [CAP, CAP]);
    });
}

#[test]
fn a_command_that_wrote_too_much_and_was_gone_before_anybody_looked_has_written_too_much() {
    Node::alone_as(&capped(), |node| {
        let task = node.create(&job("head -c 1048577 /dev/zero"));
        let info = node.wait_final(task);
        assert_eq!(info["reason"], "log limit (stdout is over 1 MiB)", "{info:#}");
        assert_eq!(size(node, task, "task_stdout"), CAP);
    });
}

#[test]
fn a_task_that_empties_its_own_log_may_go_on_for_ever() {
    Node::alone_as(&capped(), |node| {
        let rotate =
            "i=0; while [ $i -lt 8 ]; do head -c 500000 /dev/zero; : >/proc/self/fd/1; i=$((i+1)); done; echo end";
        assert!(node.run(&job(rotate)).ends_with("end\n"));
    });
}

#[test]
fn what_stopped_a_task_first_is_what_it_ended_by_even_if_it_floods_while_it_is_asked_to_stop() {
    Node::alone_as(&capped(), |node| {
        let task = node.create(&job("trap 'yes' TERM; echo ready; while :; do sleep 0.1; done"));
        until("the trap to be set", || {
            let said = node.stream(task, "task_stdout");
            if said.starts_with("ready") { Ok(()) } else { Err(said) }
        });
        node.kill(task);
        assert_eq!(node.wait_final(task)["status"], "Killed");
        assert_eq!(size(node, task, "task_stdout"), CAP);
    });
}

#[test]
fn the_cap_holds_while_no_supervisor_is_there() {
    Node::alone_as(&capped(), |node| {
        let task = node.create(&job("trap 'yes' USR1; echo ready; while :; do sleep 0.1; done"));
        until("the trap to be set", || {
            let said = node.stream(task, "task_stdout");
            if said.starts_with("ready") { Ok(()) } else { Err(said) }
        });
        node.kill_supervisor();
        let command = node.footprint().process("sh -c trap");
        let pid = i32::try_from(command.pid).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::USR1).expect("let it flood");
        until("the log to be cut to the cap", || match size(node, task, "task_stdout") {
            CAP => Ok(()),
            other => Err(other),
        });
        node.restart();
        assert_eq!(node.wait_final(task)["reason"], "log limit (stdout is over 1 MiB)");
    });
}

/// How often init wakes while its task is quiet: measured by its context switches, with the cap of everybody.
#[test]
fn a_quiet_task_is_looked_at_so_seldom_that_it_costs_next_to_nothing() {
    Node::alone(|node| {
        let task = node.create(&job_with("sleep 87001; echo done", &[("resource.mem", json!(16))]));
        node.wait_status(task, "Running");
        let init = node.monitor();
        let (began, at_first) = (Instant::now(), init.times_asleep());
        let (took, woke) = until("three seconds to pass", || {
            let (took, woke) = (began.elapsed(), init.times_asleep() - at_first);
            if took.as_secs() >= 3 { Ok((took, woke)) } else { Err(took) }
        });
        // Two seconds between looks. A look each 50 ms would be 20 a second.
        assert!(woke <= 4 * took.as_secs() + 8, "init woke {woke} times in {took:?}");
        node.footprint().process("sleep 87001").signal(Signal::KILL);
        assert_eq!(node.wait_final(task)["status"], "Finished");
    });
}
