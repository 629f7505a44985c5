//! A node that runs out of descriptors, of processes, of memory of its own: what cannot be done waits or is refused with the
//! reason, the daemon stays up and answers, and all is as before when there is enough again.

use serde_json::json;
use tests::http::Request;
use tests::job::{job, job_with};
use tests::limited_group::LimitedGroup;
use tests::node::{Node, NodePlan};
use tests::sandbox::is_root;
use tests::wait::until;

#[test]
fn tasks_for_which_there_are_no_descriptors_wait_their_turn_and_none_fails() {
    let plan = NodePlan { before_exec: Some("ulimit -n 64".to_owned()), ..NodePlan::default().cpu(64) };
    Node::alone_as(&plan, |node| {
        let small = |command: &str| job_with(command, &[("resource.mem", json!(16))]);
        let tasks: Vec<u64> = (0..40).map(|_| node.create(&small("exec sleep 1000"))).collect();
        let statuses = |node: &Node| tasks.iter().map(|&task| node.info(task)["status"].clone()).collect::<Vec<_>>();
        let running = until("some to run and the others to wait", || {
            let statuses = statuses(node);
            let running = statuses.iter().filter(|status| *status == "Running").count();
            let all_said = statuses.iter().all(|status| status == "Running" || status == "Pending[A]");
            assert!(all_said, "{statuses:?}");
            if running >= 8 { Ok(running) } else { Err(statuses) }
        });
        assert!(running < tasks.len(), "there were descriptors for all");
        for &task in &tasks {
            node.get("/resource");
            node.kill(task);
        }
        for &task in &tasks {
            assert_eq!(node.wait_final(task)["status"], "Killed");
        }
        assert_eq!(node.run(&small("echo again")), "again\n");
    });
}

#[test]
fn a_task_that_cannot_be_forked_fails_with_that_reason_and_the_next_runs_when_it_can() {
    if !is_root() {
        return;
    }
    let group = LimitedGroup::new("pids", "pids.max", "pids.max", "8");
    let plan = NodePlan { before_exec: Some(group.enter()), ..NodePlan::default().cpu(64) };
    Node::alone_as(&plan, |node| {
        let tasks: Vec<u64> = (0..12).map(|_| node.create(&job("exec sleep 1000"))).collect();
        let refused = until("a task that cannot be forked", || {
            let infos: Vec<_> = tasks.iter().map(|&task| node.info(task)).collect();
            infos.iter().find(|info| info["status"] == "Failed").cloned().ok_or(infos)
        });
        let reason = refused["reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("launch failed: ") && reason.ends_with("EAGAIN"), "{refused:#}");
        assert!(node.daemon().is_up());
        // A log takes a process to be read. Whoever asks for one gets it, or hears why not.
        let log = node.send(Request::get(&format!("/task/output?taskId={}", tasks[0])));
        assert!(log.status == 200 || log.json()["error"]["code"] == "busy", "{log:?}");
        for &task in &tasks {
            node.get("/resource");
            node.kill(task);
        }
        for &task in &tasks {
            let info = node.wait_final(task);
            assert!(info["status"] == "Killed" || info["status"] == "Failed", "{info:#}");
        }
        assert_eq!(node.run(&job("echo again")), "again\n");
    });
}

#[test]
fn when_the_nodes_own_cgroup_is_out_of_memory_the_task_is_ended_and_not_the_node() {
    if !is_root() {
        return;
    }
    let group = LimitedGroup::new("memory", "memory.limit_in_bytes", "memory.max", &(48_u64 << 20).to_string());
    let plan = NodePlan { before_exec: Some(group.enter()), ..NodePlan::default() };
    Node::alone_as(&plan, |node| {
        let supervisor = node.daemon().pid();
        let bystander = node.create(&job_with("exec sleep 1000", &[("resource.mem", json!(16))]));
        node.wait_status(bystander, "Running");
        for _ in 0..3 {
            // It may use 256 MiB by its own limit, and the node's has 48.
            let hog = node.create(&job_with("tail /dev/zero", &[("resource.mem", json!(256))]));
            let ended = node.wait_final(hog);
            let reason = ended["reason"].as_str().unwrap_or_default();
            assert!(reason.starts_with("node out of memory (peak "), "{ended:#}");
            node.get("/resource");
        }
        assert_eq!(node.daemon().pid(), supervisor);
        // Before the memory of the one it killed is back, the kernel may kill a second: then it is a task again.
        node.kill(bystander);
        let ended = node.wait_final(bystander);
        let reason = ended["reason"].as_str().unwrap_or_default();
        assert!(ended["status"] == "Killed" || reason.starts_with("node out of memory (peak "), "{ended:#}");
        assert_eq!(node.run(&job_with("echo again", &[("resource.mem", json!(16))])), "again\n");
    });
}
