//! A node that was booted anew: what ran there is `node rebooted`, what had ended before stays what it was, and nothing
//! runs twice. The boot is played: every process is killed, and the next supervisor reads another boot id.

use std::fs;

use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::http::Request;
use tests::job::job;
use tests::leaks;
use tests::node::Node;
use tests::wait::{until, until_none};

/// The variable that names the file the boot id is read from.
const BOOT_ID_FILE: &str = "BERTH_BOOT_ID_FILE";

/// Kills all that is of the node, and has its next supervisor find another boot.
fn power_off(node: &mut Node, but: &[u32]) {
    node.kill_supervisor();
    until_none("the node's processes to be gone", || {
        let mut left = node.footprint().processes();
        left.retain(|process| !but.contains(&process.pid));
        left.iter().for_each(leaks::end);
        left
    });
    let file = node.state_dir().with_extension("boot-id");
    fs::write(&file, "00000000-0000-4000-8000-000000000000\n").expect("write a boot id");
    node.daemon().set_variable(BOOT_ID_FILE, file.to_str().expect("UTF-8"));
}

fn outcome(info: &Value) -> (&str, &str) {
    (info["status"].as_str().unwrap_or_default(), info["reason"].as_str().unwrap_or_default())
}

#[test]
fn what_ran_is_node_rebooted_and_what_had_ended_stays_what_it_was() {
    Node::alone(|node| {
        let known = node.create(&job("echo once"));
        node.wait_final(known);
        let running = node.create(&job("echo once; exec sleep 83001"));
        let unheard = node.create(&job("echo once; while [ ! -e over ]; do sleep 0.02; done; exit 4"));
        node.wait_status(running, "Running");
        let payload = node.footprint().process("sh -c echo once; while");
        until("the command to begin", || {
            let said = node.stream(unheard, "task_stdout");
            if said.is_empty() { Err(said) } else { Ok(()) }
        });
        node.kill_supervisor();
        fs::write(format!("/proc/{}/root/workspace/over", payload.pid), "").expect("end the command");
        until("its end to be recorded", || {
            let record = node.state_dir().join(format!("cont/t{unheard}-cont/end"));
            let record = fs::read_to_string(record).unwrap_or_default();
            if record.ends_with('\n') { Ok(()) } else { Err(record) }
        });
        power_off(node, &[]);
        node.restart();
        assert_eq!(outcome(&node.info(known)), ("Finished", ""));
        assert_eq!(outcome(&node.info(unheard)), ("Failed", "exit code 4"));
        assert_eq!(outcome(&node.info(running)), ("Failed", "node rebooted"));
        for task in [known, running, unheard] {
            assert_eq!(node.stream(task, "task_stdout"), "once\n");
        }
        let next = node.create(&job("true"));
        assert!(next > unheard, "{next} was given out before");
        assert_eq!(node.wait_final(next)["status"], "Finished");
    });
}

#[test]
fn a_task_that_was_accepted_and_maybe_launched_is_not_launched_again() {
    Node::alone(|node| {
        node.kill_supervisor();
        node.daemon().restart_with_fault("journal.accepted.after");
        let _ = Request::post("/task/create").json(&job("echo once")).try_send(node.addr());
        until("the supervisor to die", || if node.daemon().is_up() { Err("it lives") } else { Ok(()) });
        power_off(node, &[]);
        node.restart();
        assert_eq!(outcome(&node.info(1)), ("Failed", "node rebooted"));
        assert_eq!(node.stream(1, "task_stdout"), "");
    });
}

#[test]
fn an_end_that_is_on_the_disk_counts_though_the_power_cut_took_the_line_of_its_launch() {
    Node::alone(|node| {
        let task = node.create(&job("while [ ! -e over ]; do sleep 0.02; done; exit 4"));
        node.wait_status(task, "Running");
        let payload = node.footprint().process("sh -c");
        node.kill_supervisor();
        fs::write(format!("/proc/{}/root/workspace/over", payload.pid), "").expect("end the command");
        until_none("the task to end", || node.footprint().processes());
        power_off(node, &[]);
        cut_journal(node, "\"launched\"");
        node.restart();
        assert_eq!(outcome(&node.info(task)), ("Failed", "exit code 4"));
    });
}

#[test]
fn its_jobs_fail_with_that_reason_and_are_not_run_again() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("echo once; exec sleep 83002"));
        cluster.master.wait_status(running.job_id, "Running");
        let ended = cluster.run(&job("true"));
        let master = cluster.master.daemon().pid();
        power_off(cluster.node(), &[master]);
        cluster.node().restart();
        let rebooted = cluster.master.wait_final(running.job_id);
        assert_eq!((rebooted.outcome().as_str(), rebooted.attempt), ("Failed: node rebooted", 1));
        assert_eq!(cluster.stdout(&rebooted), "once\n");
        assert_eq!(cluster.master.job(ended.job_id), ended);
        assert_eq!(cluster.run(&job("true")).outcome(), "Finished");
    });
}

/// Takes the last lines of the journal, from the first that has this in it, as a power cut takes what was not synced.
fn cut_journal(node: &Node, from: &str) {
    let journal = node.state_dir().join("journal");
    let lines = fs::read_to_string(&journal).expect("the journal");
    let kept: Vec<&str> = lines.lines().take_while(|line| !line.contains(from)).collect();
    assert!(kept.len() < lines.lines().count(), "nothing of {from} is in the journal: {lines}");
    fs::write(&journal, format!("{}\n", kept.join("\n"))).expect("cut the journal");
}

#[test]
fn what_the_power_cut_took_out_of_the_nodes_memory_is_node_rebooted_and_is_not_run_again() {
    for master_dies in [false, true] {
        Cluster::small(|cluster| {
            let ended = cluster.run(&job("true"));
            let running = cluster.master.submit(&job("echo once; exec sleep 83003"));
            cluster.master.wait_status(running.job_id, "Running");
            let master = cluster.master.daemon().pid();
            if master_dies {
                cluster.master.daemon().kill();
            }
            power_off(cluster.node(), &[master]);
            cut_journal(cluster.node(), "sleep 83003");
            cluster.node().restart();
            if master_dies {
                cluster.master.daemon().restart();
            }
            let rebooted = cluster.master.wait_final(running.job_id);
            assert_eq!((rebooted.outcome().as_str(), rebooted.attempt), ("Failed: node rebooted", 1));
            assert_eq!(cluster.stdout(&rebooted), "once\n");
            assert_eq!(cluster.master.job(ended.job_id), ended);
            assert_eq!(cluster.run(&job("true")).outcome(), "Finished");
        });
    }
}

#[test]
fn a_command_neither_sees_the_variable_nor_can_set_it() {
    Node::alone(|node| {
        let file = node.state_dir().with_extension("boot-id");
        fs::write(&file, "00000000-0000-4000-8000-000000000000\n").expect("write a boot id");
        node.kill_supervisor();
        node.daemon().set_variable(BOOT_ID_FILE, file.to_str().expect("UTF-8"));
        node.restart();
        assert_eq!(node.get("/resource")["bootId"], json!("00000000-0000-4000-8000-000000000000"));
        assert!(!node.run(&job("env")).contains("BOOT_ID"));
    });
}
