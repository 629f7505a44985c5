//! A node that is lost, and what becomes of its jobs: never are two attempts of one alive at once.
//!
//! Real hosts on a bridge, whose cables are cut. Every attempt takes a lock that all attempts see, for as long as it
//! lives: its stdout, on the share, is one file for all of them (hard links), and flock(2) locks the file behind it. An
//! attempt that begins while another lives exits with 99.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::cluster::{Cluster, Plan};
use tests::job::{Job, job_with};
use tests::leaks::Process;
use tests::node::NodePlan;
use tests::wait::{until, until_none, until_true};

/// Takes the lock, and goes on until it is told to end well.
const STAYS: &str = "trap 'exit 0' USR1; flock -n 1 || exit 99; echo began >&2; while :; do sleep 0.05; done";
/// The most tasks a node is given in a test.
const TASKS: usize = 4;

/// Two nodes on hosts of their own, lost after a second; a lease that a busy machine can keep.
fn apart(test: impl FnOnce(&mut Cluster)) {
    apart_with_lease("5s", test);
}

fn apart_with_lease(lease: &str, test: impl FnOnce(&mut Cluster)) {
    let node = |mem| NodePlan { flags: vec!["--grace".into(), "300ms".into()], ..NodePlan::default().mem(mem) };
    // Whatever is submitted goes to the first one, as long as that answers.
    let mut plan = Plan::of_nodes([node(8192), node(4096)]).apart();
    plan.master.flags = ["--node-timeout", "1s", "--lease", lease].map(str::to_owned).to_vec();
    plan.run(|cluster| {
        make_one_lock_of_all_logs(cluster);
        test(cluster);
    });
}

fn make_one_lock_of_all_logs(cluster: &Cluster) {
    let share = cluster.sandbox().folder("share");
    let lock = share.join("lock");
    fs::write(&lock, "").expect("make the lock");
    for (node, task) in (0..2).flat_map(|node| (1..=TASKS).map(move |task| (node, task))) {
        let folder = share.join(format!("nodes/{node}/task{task}"));
        fs::create_dir_all(&folder).expect("make a log folder");
        fs::hard_link(&lock, folder.join("task_stdout")).expect("link the lock");
    }
}

/// Submits a job and waits until it runs and has the lock. The node it is on.
fn start(cluster: &Cluster, on_node_loss: &str) -> (u64, usize) {
    let submitted = cluster.master.submit(&job_with(STAYS, &[("onNodeLoss", json!(on_node_loss))]));
    let job = cluster.master.wait_status(submitted.job_id, "Running");
    until_has_begun(cluster, &job);
    (job.job_id, usize::try_from(job.node_id).expect("a node"))
}

fn until_has_begun(cluster: &Cluster, job: &Job) {
    let (node, task) = (usize::try_from(job.node_id).expect("a node"), u64::try_from(job.task_id).expect("a task"));
    until_true(format!("job {} to take the lock", job.job_id), || {
        cluster.nodes[node].stream(task, "task_stderr") == "began\n"
    });
}

/// The job's next attempt, once it has the lock.
fn until_tried_again(cluster: &Cluster, id: u64, attempt: u32) -> Job {
    let job = until(format!("attempt {attempt} of job {id} to run"), || {
        let job = cluster.master.job(id);
        assert!(!job.is_final(), "{job:?}");
        let runs = job.status == "Running" && job.attempt == attempt;
        if runs { Ok(job) } else { Err((job.outcome(), cluster.master.why(id), cluster.master.log())) }
    });
    until_has_begun(cluster, &job);
    job
}

/// The processes of that node's containers.
fn processes(cluster: &Cluster, node: usize) -> Vec<Process> {
    let mut all = cluster.footprint().processes();
    all.retain(|process| process.cgroup.contains(&format!("-node{node}")) && process.cgroup.contains("-cont"));
    all
}

/// Tells the job's command to exit with 0.
fn end_well(cluster: &Cluster, node: usize) {
    for process in processes(cluster, node) {
        if process.cmdline.starts_with("sh -c trap") {
            send(process.pid, Signal::USR1);
        }
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, signal).expect("send a signal");
}

/// The second attempt is where it should be, undisturbed by the first one's node, and ends the job once and for all.
fn ends_well_elsewhere(cluster: &Cluster, id: u64, first: usize) {
    let second = 1 - first;
    cluster.master.wait_nodes_ready(2);
    assert!(processes(cluster, first).is_empty(), "something of the first attempt is alive");
    let job = cluster.master.job(id);
    assert_eq!((job.status.as_str(), job.attempt, job.node_id), ("Running", 2, i64::try_from(second).expect("a node")));
    assert_eq!(cluster.master.get(&format!("/job/details/{id}"))["job"]["lostAttempts"], 1);
    end_well(cluster, second);
    let ended = cluster.master.wait_final(id);
    assert_eq!((ended.outcome().as_str(), ended.attempt), ("Finished", 2));
}

#[test]
fn behind_a_cut_cable_an_attempt_dies_before_the_next_begins_elsewhere_and_healing_disturbs_nothing() {
    apart(|cluster| {
        let (id, first) = start(cluster, "retry");
        cluster.cut(first);
        let why = until("the details to say what will be", || {
            let why = cluster.master.why(id);
            if why.ends_with("then the job is tried elsewhere") { Ok(why) } else { Err(why) }
        });
        assert!(why.contains("has not answered since") && why.contains("its lease is over by"), "{why}");
        assert!(cluster.master.page(&format!("/job/details/{id}")).contains("Not heard of: "));
        until_tried_again(cluster, id, 2);
        // That it began says that the first one has let go of the lock.
        let log = cluster.nodes[first].stream(1, "monitor_out");
        cluster.heal(first);
        ends_well_elsewhere(cluster, id, first);
        assert!(log.contains("the lease has run out") && log.contains("end: killed: the lease ran out"), "{log}");
    });
}

#[test]
fn behind_a_cut_cable_a_job_that_waits_goes_on_and_its_true_end_is_heard_after() {
    apart(|cluster| {
        let (id, node) = start(cluster, "wait");
        // Tells when a lease is over.
        let leased = cluster.master.submit(&job_with("sleep 91001", &[("onNodeLoss", json!("fail"))]));
        cluster.master.wait_status(leased.job_id, "Running");
        cluster.cut(node);
        let why = until("the details to say that the node is silent", || {
            let why = cluster.master.why(id);
            if why.contains("stays as it is until the node is back") { Ok(why) } else { Err(why) }
        });
        assert!(why.contains("has not answered since"), "{why}");
        let lost = cluster.master.wait_final(leased.job_id);
        assert_eq!(
            (lost.outcome().as_str(), lost.node_id),
            ("Failed: node lost", i64::try_from(node).expect("a node"))
        );
        assert_eq!(cluster.master.job(id).status, "Running");
        end_well(cluster, node);
        until_none("the task to end", || processes(cluster, node));
        cluster.heal(node);
        let ended = cluster.master.wait_final(id);
        assert_eq!((ended.outcome().as_str(), ended.attempt), ("Finished", 1));
    });
}

#[test]
fn behind_a_cut_cable_a_job_that_is_to_fail_fails_once_its_task_is_dead() {
    apart(|cluster| {
        let (id, node) = start(cluster, "fail");
        cluster.cut(node);
        let ended = cluster.master.wait_final(id);
        assert_eq!((ended.outcome().as_str(), ended.attempt), ("Failed: node lost", 1));
        assert!(processes(cluster, node).is_empty(), "it failed, and is alive");
        cluster.heal(node);
        cluster.master.wait_nodes_ready(2);
        assert_eq!(cluster.master.job(id), ended);
    });
}

#[test]
fn a_cable_that_is_out_for_less_than_the_lease_costs_nothing() {
    apart_with_lease("60s", |cluster| {
        let (id, node) = start(cluster, "retry");
        cluster.cut(node);
        until("the node to be lost", || {
            let nodes = cluster.master.nodes();
            if nodes[node]["state"] == "lost" { Ok(()) } else { Err(nodes) }
        });
        cluster.heal(node);
        cluster.master.wait_nodes_ready(2);
        end_well(cluster, node);
        let ended = cluster.master.wait_final(id);
        assert_eq!((ended.outcome().as_str(), ended.attempt), ("Finished", 1));
    });
}

#[test]
fn a_create_that_comes_out_of_a_cut_cable_too_late_begins_nothing() {
    apart(|cluster| {
        // The connection it is sent on stands before the cut, so that TCP goes on trying to deliver it.
        assert_eq!(cluster.run(&job_with("true", &[])).node_id, 0);
        cluster.cut(0);
        let sent = cluster.master.submit(&job_with(STAYS, &[("onNodeLoss", json!("retry"))]));
        assert_eq!((sent.status.as_str(), sent.node_id), ("Pending[A]", 0));
        until_tried_again(cluster, sent.job_id, 2);
        cluster.heal(0);
        until("the create to arrive", || {
            let log = cluster.nodes[0].log();
            if log.contains("came too late") { Ok(()) } else { Err(log) }
        });
        ends_well_elsewhere(cluster, sent.job_id, 0);
        assert_eq!(cluster.nodes[0].stream(2, "monitor_out"), "", "it has begun");
    });
}

#[test]
fn under_a_stopped_supervisor_an_attempt_dies_before_the_next_begins_elsewhere() {
    apart(|cluster| {
        let (id, first) = start(cluster, "retry");
        let supervisor = cluster.nodes[first].daemon().pid();
        send(supervisor, Signal::STOP);
        until_tried_again(cluster, id, 2);
        send(supervisor, Signal::CONT);
        ends_well_elsewhere(cluster, id, first);
    });
}

#[test]
fn under_a_dead_supervisor_an_attempt_dies_before_the_next_begins_elsewhere() {
    apart(|cluster| {
        let (id, first) = start(cluster, "retry");
        cluster.nodes[first].kill_supervisor();
        until_tried_again(cluster, id, 2);
        cluster.nodes[first].restart();
        ends_well_elsewhere(cluster, id, first);
    });
}

#[test]
fn a_master_that_is_started_anew_during_the_cut_waits_for_the_lease_as_well() {
    apart(|cluster| {
        let (id, first) = start(cluster, "retry");
        cluster.cut(first);
        cluster.master.daemon().kill();
        cluster.master.daemon().restart();
        until_tried_again(cluster, id, 2);
        cluster.heal(first);
        ends_well_elsewhere(cluster, id, first);
    });
}

#[test]
fn a_job_that_outlives_many_leases_is_left_alone_over_restarts_of_both_daemons() {
    apart_with_lease("10s", |cluster| {
        let (id, node) = start(cluster, "retry");
        let started = cluster.master.job(id).started_at.clone().expect("it has started");
        cluster.nodes[node].kill_supervisor();
        cluster.nodes[node].restart();
        // An answer to the master renews the lease.
        cluster.master.wait_nodes_ready(2);
        cluster.master.daemon().kill();
        cluster.master.daemon().restart();
        cluster.master.wait_nodes_ready(2);
        let started: jiff::Timestamp = started.parse().expect("a time");
        until("two leases to pass", || {
            let lasted = jiff::Timestamp::now().duration_since(started);
            if lasted.as_secs() >= 21 { Ok(()) } else { Err(lasted) }
        });
        let job = cluster.master.job(id);
        assert_eq!((job.status.as_str(), job.attempt), ("Running", 1));
        end_well(cluster, node);
        assert_eq!(cluster.master.wait_final(id).outcome(), "Finished");
    });
}
