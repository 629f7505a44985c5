//! A master whose database was put back from an older copy, was wiped, or is not the only one: no number is given out
//! twice, nothing runs twice, and what it does not know it says.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::cluster::{Cluster, Plan};
use tests::job::{job, job_with};
use tests::master::{Master, MasterPlan};
use tests::node::{Node, NodePlan};
use tests::wait::{until, until_none};

fn state_dir(cluster: &Cluster) -> PathBuf {
    cluster.sandbox().folder("master")
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a state dir").flatten() {
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copy a file");
        }
    }
}

/// Stops the master, copies its state dir, and starts it again.
fn back_up(cluster: &mut Cluster) -> PathBuf {
    cluster.master.daemon().stop();
    let backup = cluster.sandbox().dir().join("backup");
    copy_files(&state_dir(cluster), &backup);
    cluster.master.daemon().restart();
    backup
}

/// Kills the master, and starts it with what was copied.
fn put_back(cluster: &mut Cluster, backup: &Path) {
    cluster.master.daemon().kill();
    let dir = state_dir(cluster);
    fs::remove_dir_all(&dir).expect("lose the state dir");
    copy_files(backup, &dir);
    cluster.master.daemon().restart();
}

fn notes(cluster: &Cluster) -> Vec<String> {
    let node = cluster.master.nodes().remove(0);
    let notes = node["notes"].as_array().cloned().unwrap_or_default();
    notes.iter().filter_map(|note| note.as_str().map(str::to_owned)).collect()
}

fn until_noted(cluster: &Cluster, words: &str) -> Vec<String> {
    until(format!("the node to be noted {words:?}"), || {
        let notes = notes(cluster);
        if notes.iter().any(|note| note.contains(words)) { Ok(notes) } else { Err(notes) }
    })
}

/// The task was acknowledged, and nothing but its logs is left.
fn until_forgotten(node: &Node, task: i64) {
    until(format!("task {task} to be forgotten"), || {
        let events = node.events(0, 0);
        let all = events["events"].as_array().cloned().unwrap_or_default();
        let there = all.into_iter().find(|report| report["taskId"] == json!(task));
        there.map_or(Ok(()), Err)
    });
}

#[test]
fn a_master_put_back_from_an_older_copy_gives_no_number_out_twice_and_runs_nothing_twice() {
    Plan::of_nodes([NodePlan::default().cpu(1)]).run(|cluster| {
        let submit = |cluster: &Cluster, command: &str| cluster.master.submit(&job(command)).job_id;
        let first = submit(cluster, "exec sleep 84001");
        cluster.master.wait_status(first, "Running");
        let (ran, runs, waits) = (
            submit(cluster, "echo once"),
            submit(cluster, "echo once; exec sleep 84002"),
            submit(cluster, "echo once"),
        );
        let backup = back_up(cluster);
        cluster.master.kill(first).expect(200);
        let ended = cluster.master.wait_final(ran);
        assert_eq!(ended.outcome(), "Finished");
        let running = cluster.master.wait_status(runs, "Running");
        until_forgotten(&cluster.nodes[0], ended.task_id);
        let unheard_of = submit(cluster, "true");
        put_back(cluster, &backup);

        assert_eq!(cluster.master.wait_final(first).outcome(), "Failed: lost");
        let outcome = cluster.master.wait_final(ran).outcome();
        assert!(outcome.starts_with("Failed: lost: it has run, or may have"), "{outcome}");
        let adopted = cluster.master.wait_status(runs, "Running");
        assert_eq!((adopted.task_id, adopted.attempt), (running.task_id, 1));
        let fresh = submit(cluster, "echo fresh");
        assert!(fresh > unheard_of, "{fresh} was given out before");
        assert!(cluster.master.log().contains("put back from an older copy"), "{}", cluster.master.log());

        cluster.master.kill(runs).expect(200);
        assert_eq!(cluster.master.wait_final(runs).status, "Killed");
        let waited = cluster.master.wait_final(waits);
        assert_eq!((waited.outcome().as_str(), cluster.stdout(&waited).as_str()), ("Finished", "once\n"));
        let fresh = cluster.master.wait_final(fresh);
        assert_eq!(fresh.task_id, 5, "a task more than there are jobs: something ran twice");
        assert_eq!(cluster.stdout(&ended), "once\n");
    });
}

#[test]
fn tasks_of_jobs_that_the_older_copy_does_not_know_are_named_left_alone_and_can_be_ended() {
    Cluster::small(|cluster| {
        let backup = back_up(cluster);
        let small = job_with("echo once; exec sleep 84003", &[("resource.cpu", json!(0.5))]);
        let unknown: Vec<_> = (0..2).map(|_| cluster.master.submit(&small)).collect();
        let tasks: Vec<i64> =
            unknown.iter().map(|job| cluster.master.wait_status(job.job_id, "Running").task_id).collect();
        put_back(cluster, &backup);
        // It asks its nodes first, but not for ever.
        cluster.master.wait_nodes_ready(1);
        let fresh = cluster.run(&job("true"));
        assert!(fresh.job_id > unknown[1].job_id + 1, "{fresh:?}");
        let said = until_noted(cluster, "runs 2 tasks of this master that its database does not know").remove(0);
        for (job, task) in unknown.iter().zip(&tasks) {
            assert!(said.contains(&format!("job {} as task {task}", job.job_id)), "{said}");
        }
        assert!(cluster.master.page("/node/table").contains("that its database does not know"));
        assert!(cluster.master.text("/node/table").contains("that its database does not know"));
        for task in tasks {
            let task = u64::try_from(task).expect("a task");
            assert_eq!(cluster.nodes[0].info(task)["status"], "Running");
            cluster.nodes[0].kill(task);
        }
        until_none("the notes to go with the tasks", || notes(cluster));
    });
}

#[test]
fn a_master_without_its_old_database_takes_the_tasks_that_run_for_anothers() {
    Cluster::small(|cluster| {
        let old = cluster.master.submit(&job("echo old; exec sleep 84004"));
        let task = u64::try_from(cluster.master.wait_status(old.job_id, "Running").task_id).expect("a task");
        cluster.master.daemon().kill();
        fs::remove_dir_all(state_dir(cluster)).expect("wipe the state dir");
        cluster.master.daemon().restart();
        let said = until_noted(cluster, "of another master");
        assert_eq!(said, [format!("runs 1 task of another master (job {} as task {task})", old.job_id)]);
        let new = cluster.run(&job("echo new"));
        assert_eq!((new.job_id, new.outcome().as_str(), cluster.stdout(&new).as_str()), (1, "Finished", "new\n"));
        assert_eq!(cluster.nodes[0].info(task)["status"], "Running");
        cluster.nodes[0].footprint().process("sleep 84004").signal(Signal::KILL);
        until_none("the note to go with the task", || notes(cluster));
    });
}

#[test]
fn two_masters_of_one_node_know_their_own_tasks_and_say_that_there_are_others() {
    Cluster::small(|cluster| {
        let other_dir = cluster.sandbox().folder("other-master");
        let flags = vec!["--state-dir".to_owned(), other_dir.to_str().expect("UTF-8").to_owned()];
        let mut other =
            Master::start(cluster.sandbox(), &cluster.nodes, &MasterPlan { flags, ..MasterPlan::default() });
        other.wait_nodes_ready(1);
        let mine = cluster.master.submit(&job("exec sleep 84005"));
        let theirs = other.submit(&job("exec sleep 84006"));
        let mine = cluster.master.wait_status(mine.job_id, "Running");
        let theirs = other.wait_status(theirs.job_id, "Running");
        assert_eq!(mine.job_id, theirs.job_id);
        assert_ne!(mine.task_id, theirs.task_id);
        until_noted(cluster, &format!("(job 1 as task {})", theirs.task_id));
        cluster.master.kill(mine.job_id).expect(200);
        assert_eq!(cluster.master.wait_final(mine.job_id).status, "Killed");
        assert_eq!(other.job(theirs.job_id).status, "Running");
        other.kill(theirs.job_id).expect(200);
        assert_eq!(other.wait_final(theirs.job_id).status, "Killed");
        other.daemon().stop();
    });
}

#[test]
fn a_node_does_not_run_an_attempt_again_whose_end_was_acknowledged() {
    Node::alone(|node| {
        let attempt = |number: u32| {
            let fields = [("jobId", json!(7)), ("attempt", json!(number)), ("master", json!("aa"))];
            job_with("echo once", &fields)
        };
        let task = node.create(&attempt(1));
        node.wait_final(task);
        let last = node.events(0, 0)["last"].as_u64().expect("last");
        node.get(&format!("/task/events?after={last}&master=aa&jobs=9"));
        for _ in 0..2 {
            let refused = node.post("/task/create", &attempt(1));
            assert_eq!(refused["error"]["code"], "already_run", "{refused:#}");
            let said = refused["error"]["message"].as_str().unwrap_or_default();
            assert!(said.contains("attempt 1 of job 7 has run here"), "{said}");
            let remembered: Value = node.get("/task/events?after=0&master=aa")["data"]["remembered"].clone();
            assert_eq!(remembered["lastJob"], 9, "{remembered:#}");
            assert_eq!(remembered["acknowledged"][0]["jobId"], 7, "{remembered:#}");
            node.kill_supervisor();
            node.restart();
        }
        let again = node.create(&attempt(2));
        assert_eq!(node.wait_final(again)["status"], "Finished");
    });
}
