//! Disks that are full or cannot be written: under the state dirs, under the containers, under the share. Nothing is half
//! written, both daemons stay up and answer, what cannot be done says why, and all goes on when it can be written again.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tests::cluster::{Cluster, Plan};
use tests::job::{job, job_with};
use tests::leaks::{Footprint, end};
use tests::master::MasterPlan;
use tests::node::{Node, NodePlan};
use tests::sandbox::{Sandbox, is_root};
use tests::small_disk::SmallDisk;
use tests::wait::until;

/// Room for the busybox image, twice over: it is unpacked beside its place.
const NODE_MIB: u64 = 24;

/// Waits until the job waits for room on a disk, and says so.
#[track_caller]
fn wait_for_room(cluster: &Cluster, job: u64) -> String {
    until(format!("job {job} to say that a disk is full"), || {
        let why = cluster.master.why(job);
        if why.contains("the disk of this node is full") { Ok(why) } else { Err((cluster.master.job(job).status, why)) }
    })
}

/// Every line of the journal is whole.
#[track_caller]
fn journal_is_whole(state_dir: &Path) {
    let text = fs::read_to_string(state_dir.join("journal")).expect("read the journal");
    assert!(text.ends_with('\n'), "it ends in half a line: {:?}", text.lines().last());
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn on_a_node_whose_state_disk_is_full_what_runs_ends_truly_and_what_comes_waits_and_says_why() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::of_mib(NODE_MIB);
    Plan::of_nodes([NodePlan::default().in_state_dir(disk.path())]).run(|cluster| {
        let running = cluster.master.submit(&job("while [ ! -e /tmp/stop ]; do sleep 0.05; done"));
        let killed = cluster.master.wait_status(running.job_id, "Running");
        let filler = cluster.run(&job("dd if=/dev/zero of=/workspace/x bs=64k"));
        // The command's own trouble is the command's own exit status, and its words are on the share.
        assert_eq!(filler.outcome(), "Failed: exit code 1");
        assert!(cluster.master.details(filler.job_id).task_stderr.contains("No space left on device"));
        until("what that job wrote to be swept", || match cluster.node().container_folders() {
            left if left.len() == 1 => Ok(()),
            more => Err(more),
        });
        disk.fill();
        let waiting = cluster.master.submit(&job("echo at last"));
        let why = wait_for_room(cluster, waiting.job_id);
        assert!(why.contains("node 0 takes nothing new") && why.contains("0 MiB"), "{why}");
        let nodes = cluster.master.nodes();
        assert!(nodes[0]["why"].as_str().is_some_and(|why| why.contains("disk")), "{nodes:#?}");
        assert!(cluster.master.page("/node/table").contains("takes nothing new"), "the page does not say so");
        let attempt = cluster.master.job(waiting.job_id).attempt;
        // What was asked for before still ends, and its end is told and kept.
        cluster.master.kill(killed.job_id).expect(200);
        assert_eq!(cluster.master.wait_final(killed.job_id).outcome(), "Killed");
        journal_is_whole(disk.path());
        // A supervisor that is killed there comes back there.
        cluster.node().kill_supervisor();
        cluster.node().restart();
        assert_eq!(cluster.master.job(waiting.job_id).attempt, attempt, "it was tried again and again");
        disk.empty();
        assert_eq!(cluster.master.wait_final(waiting.job_id).outcome(), "Finished");
        journal_is_whole(disk.path());
    });
}

#[test]
fn a_node_that_cannot_write_its_journal_holds_no_job_up_says_why_and_takes_jobs_again_when_it_can() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::of_mib(NODE_MIB);
    let broken = NodePlan::default().in_state_dir(disk.path());
    Plan::of_nodes([broken, NodePlan::default().mem(1024)]).run(|cluster| {
        disk.seal("journal");
        let moved = cluster.run(&job("echo elsewhere"));
        // The first has the most room, and was asked first.
        assert_eq!((moved.outcome().as_str(), moved.node_id, moved.attempt), ("Finished", 1, 2));
        let large = cluster.master.submit(&job_with("echo at last", &[("resource.mem", json!(2048))]));
        let why = until("the job that fits nowhere else to say why it waits", || {
            let why = cluster.master.why(large.job_id);
            if why.contains("node 0 takes nothing new") { Ok(why) } else { Err(why) }
        });
        assert!(why.contains("cannot write to the journal") && why.contains("not permitted"), "{why}");
        let attempt = cluster.master.job(large.job_id).attempt;
        assert_eq!(cluster.run(&job("echo elsewhere")).attempt, 1, "a closed node is not asked");
        assert_eq!(cluster.master.job(large.job_id).attempt, attempt, "it was tried again and again");
        disk.unseal("journal");
        let large = cluster.master.wait_final(large.job_id);
        assert_eq!((large.outcome().as_str(), large.node_id), ("Finished", 0));
        assert_eq!(cluster.node().get("/resource")["closed"], Value::Null);
        journal_is_whole(disk.path());
    });
}

#[test]
fn tasks_that_run_when_the_disk_fills_up_have_room_for_their_ends() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::of_mib(NODE_MIB);
    Node::alone_as(&NodePlan::default().cpu(16).in_state_dir(disk.path()), |node| {
        let tasks: Vec<u64> =
            (0..16).map(|_| node.create(&job("read line </proc/self/fd/0; exec sleep 1000"))).collect();
        for &task in &tasks {
            node.wait_status(task, "Running");
        }
        disk.fill();
        let refused = node.post("/task/create", &job("true"));
        assert_eq!(refused["error"]["code"], "no_room", "{refused:#}");
        assert!(node.get("/resource")["closed"].as_str().is_some_and(|why| why.contains("full")));
        for &task in &tasks {
            node.kill(task);
        }
        for &task in &tasks {
            assert_eq!(node.wait_final(task)["status"], "Killed");
        }
        journal_is_whole(disk.path());
        node.kill_supervisor();
        node.restart();
        for &task in &tasks {
            assert_eq!(node.info(task)["status"], "Killed");
        }
        disk.empty();
        assert_eq!(node.run(&job("echo again")), "again\n");
        assert_eq!(node.get("/resource")["closed"], Value::Null);
    });
}

#[test]
fn a_full_disk_under_the_containers_alone_closes_the_node_until_there_is_room() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let state_dir = sandbox.folder("state");
    let disk = SmallDisk::of_mib_at(&sandbox.folder("state/cont"), 8);
    Plan::of_nodes([NodePlan::default().in_state_dir(&state_dir)]).run(|cluster| {
        // Not our filler: `cont` holds containers only, and what is nobody's there is swept.
        let hog = cluster.master.submit(&job("dd if=/dev/zero of=/workspace/x bs=64k 2>/dev/null; exec sleep 1000"));
        let waiting = until("a job to wait for room", || {
            let waiting = cluster.master.submit(&job("echo at last"));
            let why = cluster.master.why(waiting.job_id);
            if why.contains("state/cont") { Ok(waiting) } else { Err(why) }
        });
        cluster.master.kill(hog.job_id).expect(200);
        assert_eq!(cluster.master.wait_final(waiting.job_id).outcome(), "Finished");
    });
    drop(disk);
    Footprint::of(&sandbox).wait_until_gone();
}

#[test]
fn a_full_share_fails_a_job_with_that_reason_and_leaves_the_others_and_the_daemons_alone() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::of_mib(4);
    let master = MasterPlan { share: Some(disk.path().to_owned()), ..MasterPlan::default() };
    Plan { master, nodes: vec![NodePlan::default().share(disk.path())], ..Plan::default() }.run(|cluster| {
        let running = cluster.master.submit(&job("while :; do echo more || break; done; exit 4"));
        until("its first words", || {
            let said = cluster.stdout(&cluster.master.job(running.job_id));
            if said.starts_with("more") { Ok(()) } else { Err(said) }
        });
        disk.fill();
        // A command that cannot write is told so by its own write; its end is told all the same.
        assert_eq!(cluster.master.wait_final(running.job_id).outcome(), "Failed: exit code 4");
        let failed = until("a job to find no room for its log", || {
            let job = cluster.run(&job("echo hello"));
            if job.outcome().starts_with("Failed: launch failed") { Ok(job) } else { Err(job.outcome()) }
        });
        assert!(failed.outcome().contains("log") && failed.outcome().contains("ENOSPC"), "{}", failed.outcome());
        cluster.node().get("/resource");
        disk.empty();
        let ended = cluster.run(&job("echo hello"));
        assert_eq!((ended.outcome().as_str(), cluster.stdout(&ended).as_str()), ("Finished", "hello\n"));
    });
}

#[test]
fn a_master_whose_disk_is_full_answers_refuses_and_forgets_nothing() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::of_mib(8);
    let master = MasterPlan { state_dir: Some(disk.path().to_owned()), ..MasterPlan::default() };
    Plan { master, nodes: vec![NodePlan::default()], ..Plan::default() }.run(|cluster| {
        let before = cluster.run(&job("true"));
        let running = cluster.master.submit(&job("exec sleep 1000"));
        let short = cluster.master.submit(&job("exec sleep 1002"));
        cluster.master.wait_status(running.job_id, "Running");
        let short = cluster.master.wait_status(short.job_id, "Running");
        disk.fill();
        // Until its database can take no more.
        let refused = until("a submission to be refused", || {
            let answer = cluster.master.try_submit(&job(&format!("true #{}", "x".repeat(4000))));
            if answer.status == 201 { Err("it was taken") } else { Ok(answer) }
        });
        assert!(refused.status >= 500 && refused.json()["error"]["message"].is_string(), "{refused:?}");
        assert!(cluster.master.daemon().is_up(), "the master is gone:\n{}", cluster.master.log());
        for path in ["/", "/job/table?limit=3", "/node/table", &format!("/job/details/{}", before.job_id)] {
            cluster.master.get(path);
        }
        let known = cluster.master.job(short.job_id);
        assert!(known.status == "Running" || known.status == "Finished", "{known:?}");
        // What ends meanwhile has ended on its node, and the node keeps it until the master could write it down.
        end(&cluster.footprint().process("sleep 1002"));
        let task = u64::try_from(short.task_id).expect("a task");
        cluster.node().wait_status(task, "Failed");
        disk.empty();
        assert_eq!(cluster.master.wait_final(short.job_id).outcome(), "Failed: signal 9 (SIGKILL)");
        cluster.master.kill(running.job_id).expect(200);
        assert_eq!(cluster.master.wait_final(running.job_id).outcome(), "Killed");
        assert_eq!(cluster.run(&job("echo again")).outcome(), "Finished");
        let jobs = cluster.master.get("/job/table?limit=1000");
        let numbers = jobs.as_array().cloned().unwrap_or_default();
        let numbers: Vec<u64> = numbers.iter().filter_map(|job| job["jobId"].as_u64()).collect();
        assert!(numbers.len() >= 4, "{jobs:#}");
        for &job in &numbers {
            cluster.master.wait_final(job);
        }
        assert_eq!(cluster.master.job(before.job_id), before);
    });
}
