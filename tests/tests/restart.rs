//! A master that is stopped or killed forgets nothing it ever answered.

use std::fs;

use rustix::process::Signal;
use serde_json::json;
use tests::cluster::{Cluster, Plan};
use tests::job::{job, job_with};
use tests::node::add_busybox;
use tests::wait::{until, until_none};

#[test]
fn jobs_and_their_numbers_survive_a_restart_and_pages_show_them() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job_with("echo remembered", &[("name", json!("an old job"))]));
        cluster.master.daemon().stop();
        cluster.master.daemon().restart();
        assert_eq!(cluster.master.job(ended.job_id), ended);
        assert!(cluster.master.page("/").contains("an old job"));
        let page = cluster.master.page(&format!("/job/details/{}", ended.job_id));
        assert!(page.contains("an old job") && page.contains("remembered"), "{page}");
        assert_eq!(cluster.run(&job("true")).job_id, ended.job_id + 1);
    });
}

#[test]
fn a_job_that_was_answered_is_there_after_kill_9() {
    let mut plan = Plan::without_nodes();
    plan.master.flags = ["--node-timeout", "1s"].map(str::to_owned).to_vec();
    plan.run(|cluster| {
        for _ in 0..3 {
            let accepted = cluster.master.submit(&job("true"));
            cluster.master.daemon().kill();
            cluster.master.daemon().restart();
            assert_eq!(cluster.master.job(accepted.job_id).status, "Pending[ ]");
        }
        let killed = cluster.master.job(1);
        cluster.master.kill(killed.job_id).expect(200);
        cluster.master.daemon().kill();
        cluster.master.daemon().restart();
        // A node that was not heard since the start may run it, until it is lost.
        assert_eq!(cluster.master.wait_final(killed.job_id).status, "Killed", "a kill that was answered is forgotten");
    });
}

#[test]
fn what_ended_while_the_master_was_down_is_known_after() {
    Cluster::small(|cluster| {
        let good = cluster.master.submit(&job("sleep 91002; echo done"));
        let bad = cluster.master.submit(&job("sleep 91003; exit 6"));
        cluster.master.wait_status(good.job_id, "Running");
        cluster.master.wait_status(bad.job_id, "Running");
        cluster.master.daemon().kill();
        for sleep in ["sleep 91002", "sleep 91003"] {
            cluster.footprint().process(sleep).signal(Signal::KILL);
        }
        until("the tasks to end without a master", || {
            let resource = cluster.nodes[0].get("/resource");
            if resource["tasks"] == 0 { Ok(()) } else { Err(resource) }
        });
        cluster.master.daemon().restart();
        assert_eq!(cluster.master.wait_final(good.job_id).outcome(), "Finished");
        let bad = cluster.master.wait_final(bad.job_id);
        assert_eq!((bad.outcome().as_str(), bad.attempt), ("Failed: exit code 6", 1));
    });
}

#[test]
fn pending_jobs_run_after_a_restart() {
    Plan::of_nodes([tests::node::NodePlan::default().cpu(1)]).run(|cluster| {
        let first = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(first.job_id, "Running");
        let second = cluster.master.submit(&job("true"));
        cluster.master.daemon().kill();
        cluster.master.daemon().restart();
        assert_eq!(cluster.master.wait_status(first.job_id, "Running").attempt, 1);
        cluster.master.kill(first.job_id).expect(200);
        assert_eq!(cluster.master.wait_final(second.job_id).outcome(), "Finished");
        assert_eq!(cluster.master.wait_final(first.job_id).status, "Killed");
    });
}

#[test]
fn a_node_that_is_silent_for_a_moment_is_taken_up_again() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("sleep 91004; echo done"));
        cluster.master.wait_status(running.job_id, "Running");
        cluster.node().daemon().stop();
        let meanwhile = cluster.master.submit(&job("true"));
        cluster.node().restart();
        cluster.footprint().process("sleep 91004").signal(Signal::KILL);
        assert_eq!(cluster.master.wait_final(running.job_id).outcome(), "Finished");
        assert_eq!(cluster.master.wait_final(meanwhile.job_id).outcome(), "Finished");
        cluster.master.wait_nodes_ready(1);
    });
}

#[test]
fn a_node_that_does_not_answer_is_shown_as_lost_with_what_was_seen() {
    Cluster::small(|cluster| {
        cluster.node().daemon().stop();
        until("the node to be lost", || {
            let node = cluster.master.nodes().remove(0);
            let seen = node["why"].as_str().is_some_and(|why| !why.is_empty());
            if node["state"] == "lost" && seen { Ok(()) } else { Err(node) }
        });
        assert!(cluster.master.page("/").contains("lost"));
        cluster.node().restart();
        cluster.master.wait_nodes_ready(1);
    });
}

#[test]
fn a_kill_asked_for_while_its_node_is_silent_is_carried_out_when_it_is_back() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(running.job_id, "Running");
        cluster.node().kill_supervisor();
        cluster.master.kill(running.job_id).expect(200);
        cluster.master.daemon().kill();
        cluster.master.daemon().restart();
        cluster.node().restart();
        assert_eq!(cluster.master.wait_final(running.job_id).status, "Killed");
    });
}

#[test]
fn a_node_with_a_wiped_disk_is_not_taken_for_the_old_one() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("echo old; exec sleep 91001"));
        cluster.master.wait_status(running.job_id, "Running");
        let instance = cluster.node().get("/resource")["instance"].clone();
        cluster.node().kill_supervisor();
        // What a power cut does to the processes, and a new disk to the files; the share is elsewhere.
        let footprint = cluster.footprint();
        let master = cluster.master.daemon().pid();
        until_none("the node's processes to be gone", || {
            let mut left = footprint.processes();
            left.retain(|process| process.pid != master);
            left.iter().for_each(tests::leaks::end);
            left
        });
        let state_dir = cluster.node().state_dir().to_owned();
        fs::remove_dir_all(&state_dir).expect("wipe the disk");
        fs::create_dir(&state_dir).expect("a new disk");
        add_busybox(cluster.sandbox(), &state_dir);
        cluster.node().restart();
        assert_ne!(cluster.node().get("/resource")["instance"], instance);
        let ended = cluster.master.wait_final(running.job_id);
        assert!(["Failed: lost", "Failed: node lost"].contains(&ended.outcome().as_str()), "{ended:?}");
        let fresh = cluster.run(&job("echo fresh"));
        assert_eq!(fresh.outcome(), "Finished");
        assert_eq!(cluster.master.details(fresh.job_id).task_stdout, "fresh\n", "an old task's output shows");
    });
}

#[test]
fn a_thousand_jobs_in_one_batch_all_end_once() {
    Cluster::small(|cluster| {
        let small = job_with("echo once", &[("resource", json!({"cpu": 0.5, "mem": 16}))]);
        let jobs = cluster.master.submit_all(&vec![small; 1000]);
        for job in &jobs {
            let ended = cluster.master.wait_final(job.job_id);
            assert_eq!((ended.outcome().as_str(), ended.attempt), ("Finished", 1));
            assert_eq!(cluster.stdout(&ended), "once\n");
        }
        let resource = cluster.node().get("/resource");
        assert_eq!((&resource["tasks"], &resource["cpu"], &resource["mem"]), (&json!(0), &json!(4), &json!(4096)));
    });
}
