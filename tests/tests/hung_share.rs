//! A share whose server answers nothing, as a dead GlusterFS does: the node's loop never stalls, limits hold, what is
//! stuck is said to be stuck and by what, and all of it goes on when the server does.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tests::cluster::{Cluster, Plan};
use tests::http::Request;
use tests::hung_fuse::HungFuse;
use tests::job::{job, job_with};
use tests::leaks::Footprint;
use tests::master::MasterPlan;
use tests::node::{Node, NodePlan};
use tests::sandbox::is_root;
use tests::wait::until;

fn on(share: &Path) -> NodePlan {
    NodePlan::default().share(share).flags(&["--grace", "300ms"])
}

/// Runs a test against a node whose share can hang. It goes on before the node is asked to be as it was.
fn with_a_node(share: &HungFuse, test: impl FnOnce(&mut Node)) {
    with_a_node_of(&on(share.path()), share, test);
}

fn with_a_node_of(plan: &NodePlan, share: &HungFuse, test: impl FnOnce(&mut Node)) {
    Node::alone_as(plan, |node| {
        let at_the_end = share.go_on_at_the_end();
        test(node);
        drop(at_the_end);
    });
}

/// Waits until the node says that the task is stuck, and answers everything else meanwhile.
#[track_caller]
fn wait_stuck(node: &Node, task: u64) -> String {
    until(format!("task {task} to be called stuck"), || {
        node.get("/resource");
        let info = node.info(task);
        info["stuck"].as_str().map(str::to_owned).ok_or(info)
    })
}

/// Its server takes a second for every 64 KiB: time enough to stop it while it has a write in its hands.
fn slow_share() -> HungFuse {
    HungFuse::mount_slow(64 << 10)
}

/// Writes for some seconds on such a share.
const WRITER: &str = "exec dd if=/dev/zero bs=128k count=8 2>/dev/null";

/// Stops the server while it has a write of [`WRITER`] in its hands; the writer's pid.
fn hang_on_a_write(share: &HungFuse, footprint: &Footprint) -> u32 {
    let writer = footprint.process("sh -c exec dd");
    // It waits as soon as its write is in the queue; until the server has taken that out, it can still be killed.
    until("the write to be under way", || match (writer.sleeps_in(), share.is_in_a_write()) {
        (function, true) if function == "request_wait_answer" => Ok(()),
        other => Err(other),
    });
    share.hang();
    writer.pid
}

fn final_event(node: &Node, task: u64) -> Value {
    let events = node.events(0, 0)["events"].as_array().cloned().unwrap_or_default();
    events.into_iter().find(|report| report["taskId"] == task).unwrap_or_default()
}

#[test]
fn a_time_limit_and_a_kill_hold_while_the_share_hangs_and_their_ends_are_told_when_it_goes_on() {
    if !is_root() {
        return;
    }
    let share = HungFuse::mount();
    // An init is not killed while it is looked at: that is its grace period and 5 s after the kill.
    with_a_node_of(&on(share.path()).flags(&["--grace", "60s"]), &share, |node| {
        let limited = node.create(&job_with("echo begun; exec sleep 1000", &[("timeout", json!(10_000))]));
        let killed = node.create(&job("echo begun; exec sleep 1001"));
        for task in [limited, killed] {
            node.wait_status(task, "Running");
            until("its output", || if node.stream(task, "task_stdout") == "begun\n" { Ok(()) } else { Err(task) });
        }
        share.hang();
        assert_eq!(node.info(limited)["status"], "Running", "the limit was over before the share hung");
        node.kill(killed);
        // The command is dead though nothing of it can be written down on the share.
        until("both commands to be gone", || {
            let all = node.footprint().processes();
            if all.iter().any(|process| process.cmdline.starts_with("sleep 100")) { Err(all) } else { Ok(()) }
        });
        for task in [limited, killed] {
            let why = wait_stuck(node, task);
            assert!(why.contains("it has ended and cannot go away") && why.contains("(berth-init)"), "{why}");
            assert!(why.contains("the server of a FUSE file system"), "{why}");
            // It keeps its share of the node.
            assert_eq!(node.info(task)["status"], "Running");
        }
        assert_eq!(node.get("/resource")["tasks"], 2);
        share.go_on();
        assert_eq!(node.wait_final(limited)["status"], "Timeout");
        let ended = node.wait_final(killed);
        assert_eq!((&ended["status"], &ended["stuck"]), (&json!("Killed"), &Value::Null));
        assert_eq!(node.get("/resource")["tasks"], 0);
    });
}

#[test]
fn a_command_that_not_even_sigkill_ends_is_said_to_be_stuck_with_what_it_waits_for_and_is_killed_when_it_can_be() {
    if !is_root() {
        return;
    }
    let share = slow_share();
    with_a_node(&share, |node| {
        let task = node.create(&job(WRITER));
        let writer = hang_on_a_write(&share, node.footprint());
        node.kill(task);
        let why = wait_stuck(node, task);
        assert!(why.contains(&format!("process {writer} (")), "{why}");
        assert!(why.contains(") waits for the server of a FUSE file system"), "{why}");
        assert!(Path::new(&format!("/proc/{writer}")).exists(), "it could be killed after all");
        // A master hears of it by an event like any other.
        assert_eq!(final_event(node, task)["stuck"], json!(why));
        assert_eq!(node.info(task)["status"], "Running");
        share.go_on();
        assert_eq!(node.wait_final(task)["status"], "Killed");
    });
}

#[test]
fn a_task_whose_logs_cannot_be_opened_is_said_to_be_stuck_and_runs_when_the_share_goes_on() {
    if !is_root() {
        return;
    }
    let share = HungFuse::mount();
    with_a_node(&share, |node| {
        share.hang();
        let patient = node.create(&job("echo at last"));
        let impatient = node.create(&job("echo never"));
        let why = wait_stuck(node, patient);
        assert!(why.starts_with("its container is not ready: process"), "{why}");
        assert!(why.contains("(berth-init) waits for the server of a FUSE file system"), "{why}");
        // One that waits for the server can still be killed.
        node.kill(impatient);
        assert_eq!(node.wait_final(impatient)["status"], "Killed");
        assert_eq!(node.info(patient)["status"], "Pending[A]");
        share.go_on();
        assert_eq!(node.wait_final(patient)["status"], "Finished");
        assert_eq!(node.stream(patient, "task_stdout"), "at last\n");
    });
}

#[test]
fn a_supervisor_starts_and_adopts_while_its_share_hangs() {
    if !is_root() {
        return;
    }
    let share = HungFuse::mount();
    with_a_node(&share, |node| {
        let task = node.create(&job("exec sleep 1000"));
        node.wait_status(task, "Running");
        share.hang();
        let late = node.create(&job("echo late"));
        // An init of which nothing is written down would be nobody's to call stuck.
        let launched = format!("\"record\":\"launched\",\"task\":{late},");
        until("its launch to be written down", || {
            let journal = fs::read_to_string(node.state_dir().join("journal")).unwrap_or_default();
            if journal.contains(&launched) { Ok(()) } else { Err(journal) }
        });
        node.kill_supervisor();
        node.restart();
        assert_eq!(node.info(task)["status"], "Running");
        node.kill(task);
        wait_stuck(node, late);
        node.kill_supervisor();
        node.restart();
        share.go_on();
        assert_eq!(node.wait_final(task)["status"], "Killed");
        assert_eq!(node.wait_final(late)["status"], "Finished");
        assert_eq!(node.stream(late, "task_stdout"), "late\n");
    });
}

#[test]
fn an_init_that_hangs_and_of_which_nothing_is_written_down_is_said_to_be_in_the_way() {
    if !is_root() {
        return;
    }
    let share = HungFuse::mount();
    with_a_node(&share, |node| {
        node.kill_supervisor();
        node.daemon().restart_with_fault("launch.cloned");
        share.hang();
        // It may die before it answers, and has written down that it takes the task.
        let attempt = [("jobId", json!(1)), ("attempt", json!(1)), ("master", json!("aa"))];
        let request = job_with("echo at last", &attempt);
        let _ = Request::post("/task/create").json(&request).try_send(node.addr());
        node.daemon().wait_for_its_end();
        node.restart();
        let task = node.create(&request);
        let why = wait_stuck(node, task);
        assert!(why.starts_with("an earlier launch of it is in the way: process "), "{why}");
        share.go_on();
        assert_eq!(node.wait_final(task)["status"], "Finished");
        assert_eq!(node.stream(task, "task_stdout"), "at last\n");
        assert!(node.info(task)["stuck"].is_null());
    });
}

/// The share of the master and of node 0 can hang; node 1 has a local one.
fn with_a_cluster(share: &HungFuse, test: impl FnOnce(&mut Cluster)) {
    let local = NodePlan::default().flags(&["--grace", "300ms"]);
    let master = MasterPlan { share: Some(share.path().to_owned()), ..MasterPlan::default() };
    // Node 0 has more memory, so jobs go there first.
    let nodes = vec![on(share.path()).mem(4096).cpu(1), local.mem(1024)];
    Plan { master, nodes, ..Plan::default() }.run(|cluster| {
        let at_the_end = share.go_on_at_the_end();
        test(cluster);
        drop(at_the_end);
    });
}

#[test]
fn the_master_shows_what_is_stuck_and_other_nodes_go_on() {
    if !is_root() {
        return;
    }
    let share = slow_share();
    with_a_cluster(&share, |cluster| {
        let stuck = cluster.master.submit(&job_with(WRITER, &[("resource.mem", json!(2048))]));
        let stuck = cluster.master.wait_status(stuck.job_id, "Running");
        assert_eq!(stuck.node_id, 0);
        hang_on_a_write(&share, &cluster.footprint());
        cluster.master.kill(stuck.job_id).expect(200);
        let details = format!("/job/details/{}?logs=0", stuck.job_id);
        let why = until("the master to say that the job is stuck", || {
            let details = cluster.master.get(&details);
            details["stuck"].as_str().map(str::to_owned).ok_or(details)
        });
        assert!(why.contains("the server of a FUSE file system"), "{why}");
        assert!(cluster.master.text(&details).contains("\nstuck            it has ended"), "no line of text");
        let page = Request::get(&format!("/job/details/{}?live=0", stuck.job_id)).browser();
        let page = cluster.master.send(page).expect(200).text();
        assert!(page.contains("Stuck: "), "{page}");
        // What would have to be read from the share is said to be unreadable, and in time.
        let shown = cluster.master.get(&format!("/job/details/{}", stuck.job_id));
        let said = shown.to_string();
        assert!(said.contains("did not answer") || said.contains("does not answer"), "{shown:#}");
        // The other node takes what does not fit beside the stuck task, which keeps its slot.
        let elsewhere = cluster.run(&job("echo elsewhere"));
        assert_eq!((elsewhere.outcome().as_str(), elsewhere.node_id), ("Finished", 1));
        assert_eq!(cluster.master.job(stuck.job_id).status, "Running");
        share.go_on();
        assert_eq!(cluster.master.wait_final(stuck.job_id).outcome(), "Killed");
        assert_eq!(cluster.master.get(&details)["stuck"], Value::Null);
    });
}

#[test]
fn readers_of_hung_logs_take_no_answer_from_anybody_else() {
    if !is_root() {
        return;
    }
    let share = HungFuse::mount();
    with_a_node(&share, |node| {
        let task = node.create(&job("echo something; exec sleep 1000"));
        until("its output", || if node.stream(task, "task_stdout") == "something\n" { Ok(()) } else { Err(task) });
        share.hang();
        let asked: Vec<_> = (0..8)
            .map(|_| {
                let mut connection = tests::http::Connection::open(node.addr()).expect("connect");
                let ask = format!("GET /task/output?taskId={task} HTTP/1.1\r\nHost: {}\r\n\r\n", node.addr());
                connection.send(ask.as_bytes()).expect("ask");
                connection
            })
            .collect();
        for _ in 0..100 {
            Request::get("/resource").send(node.addr()).expect(200);
        }
        share.go_on();
        for mut connection in asked {
            assert_eq!(connection.response().expect("an answer").text(), "something\n");
        }
    });
}
