//! What of ours has no owner: told by the doctor, counted by the node, swept by the next supervisor.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output};

use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::job::job;
use tests::node::{Node, supervisor};
use tests::wait::{until, until_none, until_true};

/// A name that no task ever has: what a folder is called that was put aside.
const ORPHAN: &str = "t1-cont-left-7";

/// A process that nobody minds; ended with the test at the latest.
struct Stray(Child);

impl Stray {
    fn in_cgroup(group: &std::path::Path) -> Stray {
        let stray = Stray(Command::new("sleep").arg("82001").spawn().expect("a process"));
        fs::write(group.join("cgroup.procs"), stray.0.id().to_string()).expect("to move it");
        stray
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder of our cgroups on this node, in the hierarchy that counts processes.
fn base(node: &Node) -> PathBuf {
    let task = node.create(&job("exec sleep 82002"));
    let sleeper = node.footprint().process("sleep 82002");
    let base = tests::cgroup::folder(&sleeper, "pids").parent().expect("a base").to_owned();
    node.kill(task);
    node.wait_final(task);
    base
}

fn doctor(node: &Node, flags: &[&str]) -> Output {
    let state_dir = node.state_dir().display().to_string();
    let root = node.cgroup_root();
    supervisor(&[&["doctor", "--leaks", "--state-dir", &state_dir, "--cgroup-root", &root], flags].concat())
}

/// What the doctor lists, as pairs of what it is and its name.
fn listed(node: &Node) -> Vec<(String, String)> {
    let said = doctor(node, &["--json"]);
    let leaks: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    let leaks = leaks["leaks"].as_array().cloned().expect("a list");
    assert_eq!(said.status.code(), Some(i32::from(!leaks.is_empty())), "{leaks:?}");
    let word = |leak: &Value, field: &str| leak[field].as_str().unwrap_or_default().to_owned();
    leaks.iter().map(|leak| (word(leak, "what"), word(leak, "name"))).collect()
}

fn orphans(words: &[&str]) -> Vec<(String, String)> {
    words.iter().map(|what| ((*what).to_owned(), ORPHAN.to_owned())).collect()
}

fn count(node: &Node) -> Value {
    node.get("/resource")["leaks"].clone()
}

#[test]
fn orphans_are_listed_beside_a_supervisor_counted_by_it_and_swept_by_the_next() {
    Node::alone(|node| {
        let base = base(node);
        assert_eq!(listed(node), []);
        fs::create_dir(base.join(ORPHAN)).expect("a cgroup");
        fs::create_dir(node.state_dir().join("cont").join(ORPHAN)).expect("a folder");
        let mut stray = Stray::in_cgroup(&base.join(ORPHAN));
        assert_eq!(listed(node), orphans(&["cgroup", "folder", "process"]));
        let said = doctor(node, &[]);
        assert!(String::from_utf8_lossy(&said.stdout).contains("sleep 82001"), "{said:?}");
        // Whatever ends has the sweeper go out, and that counts.
        node.run(&job("true"));
        until("the node to count them", || Some(count(node)).filter(|leaks| *leaks == 1).ok_or_else(|| count(node)));
        node.kill_supervisor();
        assert_eq!(listed(node), orphans(&["cgroup", "folder", "process"]));
        node.restart();
        until_none("the doctor to find nothing", || listed(node));
        until_true("the stray process to be killed", || stray.0.try_wait().ok().flatten().is_some());
        until("the node to count none", || Some(count(node)).filter(|leaks| *leaks == 0).ok_or_else(|| count(node)));
    });
}

#[test]
fn tasks_that_come_and_go_are_no_leaks() {
    Node::alone(|node| {
        let small =
            |n: u32| tests::job::job_with(&format!("sleep 0.{n}"), &[("resource", json!({"cpu": 0.1, "mem": 8}))]);
        for round in 0..3 {
            for n in 0..10 {
                node.create(&small((n + round) % 5));
            }
            assert_eq!(listed(node), [], "while tasks are launched, run, end and are swept");
        }
        assert_eq!(count(node), 0);
    });
}

#[test]
fn what_a_dead_supervisor_left_to_the_next_is_no_leak() {
    Node::alone(|node| {
        node.create(&job("exec sleep 82003"));
        let task = node.create(&job("sleep 0.2"));
        node.wait_status(task, "Finished");
        node.footprint().process("sleep 82003");
        node.kill_supervisor();
        assert_eq!(listed(node), [], "the journal knows them");
    });
}

#[test]
fn an_init_that_no_journal_knows_is_a_leak() {
    Node::alone(|node| {
        node.create(&job("exec sleep 82004"));
        node.footprint().process("sleep 82004");
        node.kill_supervisor();
        let journal = node.state_dir().join("journal");
        fs::rename(&journal, node.state_dir().join("journal.lost")).expect("to lose the journal");
        let leaks = listed(node);
        for what in ["cgroup", "folder", "process"] {
            assert!(leaks.contains(&(what.to_owned(), "t1-cont".to_owned())), "no {what}: {leaks:?}");
        }
        node.restart();
        until_none("the next supervisor to sweep it", || listed(node));
    });
}

#[test]
fn the_node_table_shows_how_many_there_are() {
    Cluster::small(|cluster| {
        cluster.run(&job("true"));
        assert_eq!(cluster.master.nodes()[0]["leaks"], 0);
        assert!(cluster.master.page("/node/table").contains("Leaks"));
        let text = cluster.master.text("/node/table");
        assert!(text.lines().next().is_some_and(|head| head.contains("LEAKS")), "{text}");
        let orphan = cluster.node().state_dir().join("cont").join(ORPHAN);
        fs::create_dir(&orphan).expect("a folder");
        cluster.run(&job("true"));
        until("the master to be told", || {
            // Any news of the node brings its numbers along.
            cluster.run(&job("true"));
            let leaks = cluster.master.nodes()[0]["leaks"].clone();
            if leaks == 1 { Ok(()) } else { Err(leaks) }
        });
        fs::remove_dir(&orphan).expect("to remove it again");
    });
}
