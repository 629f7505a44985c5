//! Commands that turn on what watches them. Whatever they try, they end as they did, and take no more than they may.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::job::job_with;
use tests::node::{Node, NodePlan};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/hostile_payload.c");

/// The program, as a package in this folder.
fn compile(folder: &Path) -> PathBuf {
    let program = folder.join("hostile_payload");
    let compiled = Command::new("cc").args(["-static", "-O1", "-Wall", "-o"]).arg(&program).arg(SOURCE).output();
    let compiled = compiled.unwrap_or_else(|error| panic!("cannot run cc: {error}"));
    assert!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
    program
}

/// Runs the program this way to the end of its task: what it was answered, and how it ended.
#[track_caller]
fn try_it(node: &Node, way: &str) -> (u64, String, Value) {
    let package = compile(node.packages()).display().to_string();
    let task = node.create(&job_with(&format!("exec ./hostile_payload {way}"), &[("packagePath", json!(package))]));
    let info = node.wait_final(task);
    (task, node.stream(task, "task_stderr"), info)
}

#[test]
fn a_command_cannot_pass_for_killed_by_a_signal_whose_sender_the_kernel_could_not_keep() {
    // All that root has pending is counted as one, and a machine with much memory allows for much.
    let few = Some("prlimit --sigpending=1000 --pid $$".to_owned());
    Node::alone_as(&NodePlan { before_exec: few, ..NodePlan::default() }, |node| {
        for way in ["forge-without-limit", "forge-behind-a-full-queue"] {
            let (_, answers, info) = try_it(node, way);
            assert_eq!((&info["status"], &info["reason"]), (&json!("Failed"), &json!("exit code 5")), "{answers}");
            assert!(answers.contains("tgkill: Operation not permitted"), "{answers}");
        }
    });
}

#[test]
fn a_command_cannot_take_its_inits_limits_away_so_that_its_end_is_not_recorded() {
    Node::alone(|node| {
        let (_, answers, info) = try_it(node, "no-record");
        assert_eq!((&info["status"], &info["reason"]), (&json!("Failed"), &json!("exit code 5")), "{answers}");
    });
}

#[test]
fn a_command_gets_no_room_beyond_the_end_of_its_log_by_any_call() {
    Node::alone_as(&NodePlan::default().flags(&["--log-limit", "1MiB"]), |node| {
        let (task, answers, info) = try_it(node, "reserve");
        assert_eq!(info["reason"], "exit code 5", "{answers}");
        assert_eq!(answers.matches("Operation not supported").count(), 3, "{answers}");
        let log = fs::metadata(node.stream_path(task, "task_stdout")).expect("read the log's size");
        assert_eq!((log.len(), log.blocks()), (0, 0), "{answers}");
    });
}
