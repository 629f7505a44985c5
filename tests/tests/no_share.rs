//! A share that is meant to be a mount and is none: tasks wait for it or do without, and its mount point stays empty.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::cluster::{Cluster, Plan};
use tests::daemon::run_to_end;
use tests::hung_fuse::HungFuse;
use tests::job::{job, job_with};
use tests::leaks::Process;
use tests::mount::detach;
use tests::node::{Node, NodePlan};
use tests::sandbox::is_root;
use tests::wait::{until, until_true};

/// A filesystem on the node's share, unmounted when dropped, however the test ends.
struct Mounted(PathBuf);

impl Mounted {
    fn on(folder: &Path) -> Mounted {
        let output = run_to_end(Command::new("mount").args(["-t", "tmpfs", "share"]).arg(folder));
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        Mounted(folder.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// A node whose share is meant to be a mount, and where that is to be.
fn with_rule(rule: &str, test: impl FnOnce(&mut Node, &Path)) {
    let flags = ["--no-share", rule].map(str::to_owned).to_vec();
    Node::alone_as(&NodePlan { flags, ..NodePlan::default() }, |node| {
        let share = node.state_dir().with_file_name("share");
        test(node, &share);
    });
}

fn names_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.flatten().map(|entry| entry.path()).collect()
}

#[track_caller]
fn says(node: &Node, words: &str) {
    until_true(format!("the node to say {words:?}"), || node.log().contains(words));
}

#[test]
fn a_task_waits_for_a_share_that_is_not_mounted_and_nothing_is_written_to_its_mount_point() {
    with_rule("wait", |node, share| {
        let task = node.create(&job("echo ran"));
        says(node, &format!("the share {} is not mounted; new tasks wait for it", share.display()));
        assert!(node.info(task)["status"].as_str().is_some_and(|status| status.starts_with("Pending")));
        assert_eq!(names_in(share), Vec::<PathBuf>::new());
        let mounted = Mounted::on(share);
        assert_eq!(node.wait_final(task)["status"], "Finished");
        assert_eq!(node.stream(task, "task_stdout"), "ran\n");
        says(node, "is there again");
        drop(mounted);
        assert_eq!(names_in(share), Vec::<PathBuf>::new());
    });
}

/// What a task that waits for this share says of it.
#[track_caller]
fn wait_held_up(share: &Path, look: impl Fn() -> Value) {
    let words = [
        &format!("it waits for the share {}, which is not mounted (away since 2", share.display()),
        "hint: see to its mount",
    ];
    until("what is said to name the share", || {
        let stuck = look()["stuck"].as_str().unwrap_or_default().to_owned();
        if words.iter().all(|words| stuck.contains(*words)) { Ok(()) } else { Err(stuck) }
    });
}

#[test]
fn a_task_that_waits_for_the_share_says_so_as_do_those_that_join_it_and_after_a_restart() {
    with_rule("wait", |node, share| {
        let tasks = [node.create(&job("echo ran")), node.create(&job("echo ran"))];
        for _ in 0..2 {
            for task in tasks {
                wait_held_up(share, || node.info(task));
            }
            node.kill_supervisor();
            node.restart();
        }
        let _mounted = Mounted::on(share);
        for task in tasks {
            let ended = node.wait_final(task);
            assert_eq!((&ended["status"], &ended["stuck"]), (&json!("Finished"), &Value::Null));
        }
    });
}

#[test]
fn a_jobs_page_says_that_it_waits_for_the_share_and_no_more_once_it_runs() {
    let nodes = [NodePlan::default().flags(&["--no-share", "wait"])];
    Plan::of_nodes(nodes).run(|cluster| {
        let share = cluster.node().state_dir().with_file_name("share");
        let job = cluster.master.submit(&job("exec sleep 1000")).job_id;
        let details = format!("/job/details/{job}?logs=0");
        wait_held_up(&share, || cluster.master.get(&details));
        let _mounted = Mounted::on(&share);
        cluster.master.wait_status(job, "Running");
        assert_eq!(cluster.master.get(&details)["stuck"], Value::Null);
        cluster.master.kill(job).expect(200);
        cluster.master.wait_final(job);
    });
}

#[test]
fn a_node_with_a_task_that_waits_for_its_share_gets_no_other_and_says_why() {
    let waits = NodePlan::default().flags(&["--no-share", "wait"]).mem(4096);
    Plan::of_nodes([waits, NodePlan::default().mem(1024)]).run(|cluster| {
        let share = cluster.nodes[0].state_dir().with_file_name("share");
        let submit = |job: Value| cluster.master.submit(&job).job_id;
        let waiting = submit(job_with("echo ran", &[("resource.mem", json!(2048))]));
        wait_held_up(&share, || cluster.master.get(&format!("/job/details/{waiting}?logs=0")));
        // There is more room on the node that waits.
        assert_eq!(cluster.master.wait_final(submit(job("echo ran"))).node_id, 1);
        let next = submit(job_with("echo ran", &[("resource.mem", json!(2000))]));
        let details = cluster.master.get(&format!("/job/details/{next}?logs=0"));
        let why = details["why"].as_str().unwrap_or_default();
        assert!(
            why.starts_with("node 0 takes nothing new: its next task is held up: it waits for the share"),
            "{details}"
        );
        let _mounted = Mounted::on(&share);
        for job in [waiting, next] {
            assert_eq!(cluster.master.wait_final(job).outcome(), "Finished");
        }
    });
}

#[test]
fn a_task_that_waits_for_the_share_can_be_killed() {
    with_rule("wait", |node, _| {
        let task = node.create(&job("echo ran"));
        node.kill(task);
        assert_eq!(node.wait_final(task)["status"], "Killed");
    });
}

#[test]
fn a_share_that_vanishes_under_a_running_task_stops_the_next_one_only() {
    with_rule("wait", |node, share| {
        let mounted = Mounted::on(share);
        let running = node.create(&job("trap 'exit 0' USR1; echo begun; while :; do sleep 0.02; done"));
        until_true("the task to begin", || node.stream(running, "task_stdout") == "begun\n");
        drop(mounted);
        let waiting = node.create(&job("echo ran"));
        says(node, "is not mounted; new tasks wait for it");
        let payload = i32::try_from(node.footprint().process("sh -c trap").pid).expect("a pid");
        kill_process(Pid::from_raw(payload).expect("a pid"), Signal::USR1).expect("end the task");
        assert_eq!(node.wait_final(running)["status"], "Finished");
        assert_eq!(node.info(waiting)["status"].as_str().map(|status| &status[..7]), Some("Pending"));
        assert_eq!(names_in(share), Vec::<PathBuf>::new());
        node.kill(waiting);
        assert_eq!(node.wait_final(waiting)["status"], "Killed");
    });
}

fn stays(cluster: &Cluster) -> u64 {
    let submitted = cluster.master.submit(&job("exec sleep 1000"));
    cluster.master.wait_status(submitted.job_id, "Running").job_id
}

fn stuck(cluster: &Cluster, job: u64) -> Value {
    cluster.master.get(&format!("/job/details/{job}?logs=0"))["stuck"].clone()
}

#[test]
fn a_task_whose_share_vanishes_says_that_its_output_may_be_lost_until_it_is_back_and_one_that_keeps_it_here_does_not() {
    let nodes = [NodePlan::default().flags(&["--no-share", "local"])];
    Plan::of_nodes(nodes).run(|cluster| {
        let share = cluster.node().state_dir().with_file_name("share");
        let mounted = Mounted::on(&share);
        let on_share = stays(cluster);
        assert_eq!(stuck(cluster, on_share), Value::Null);
        drop(mounted);
        // Whether or not there is anything to launch.
        let why = until("the job to say so", || stuck(cluster, on_share).as_str().map(str::to_owned).ok_or(()));
        let words = format!(
            "it runs, and what it writes may be lost: its logs are on the share {}, which is not",
            share.display()
        );
        assert!(why.starts_with(&words), "{why}");
        assert!(cluster.master.page(&format!("/job/details/{on_share}")).contains("what it writes may be lost"));
        let here = stays(cluster);
        cluster.node().kill_supervisor();
        cluster.node().restart();
        until("the job to say so to the next supervisor", || {
            stuck(cluster, on_share).as_str().map(str::to_owned).ok_or(())
        });
        assert_eq!(stuck(cluster, here), Value::Null);
        let _mounted = Mounted::on(&share);
        until_true("the job to say so no more", || stuck(cluster, on_share) == Value::Null);
        for job in [on_share, here] {
            cluster.master.kill(job).expect(200);
            assert_eq!(cluster.master.wait_final(job).outcome(), "Killed");
        }
    });
}

/// A task that a supervisor with this fault launches while no log can be made on its share, which is there.
fn launched_in_vain(node: &mut Node, share: &Path, fault: &str) -> u64 {
    fs::write(share.join("nodes"), "").expect("a file where the logs' folder should be");
    node.kill_supervisor();
    node.daemon().restart_with_fault(fault);
    node.create(&job("echo ran"))
}

#[test]
fn a_task_launched_in_vain_is_launched_again_by_the_supervisor_that_hears_of_it() {
    with_rule("wait", |node, share| {
        let _mounted = Mounted::on(share);
        let task = launched_in_vain(node, share, "end.exited");
        node.daemon().wait_for_its_end();
        fs::remove_file(share.join("nodes")).expect("make room for the logs' folder");
        node.restart();
        assert_eq!(node.wait_final(task)["status"], "Finished");
    });
}

#[test]
fn a_task_launched_in_vain_is_launched_again_though_its_end_could_not_be_read_at_once() {
    with_rule("wait", |node, share| {
        let _mounted = Mounted::on(share);
        let task = launched_in_vain(node, share, "end.read=EIO");
        // The second launch is in vain as well, and then it is the task's fault.
        assert_eq!(node.wait_final(task)["cause"]["kind"], "launchFailed");
        says(node, &format!("cannot read how task {task} ended"));
        let journal = fs::read_to_string(node.state_dir().join("journal")).expect("the journal");
        assert_eq!(journal.matches("\"record\":\"neverRan\"").count(), 1, "{journal}");
    });
}

/// Who asks the share, once SIGKILL is of no use to it. It is a clone of the supervisor as a sweeper is, but that sleeps
/// elsewhere.
fn asking(node: &Node) -> Process {
    until("who asks the share to hang in it", || {
        let all = node.footprint().processes();
        let hangs = |process: &&Process| process.state() == 'D' && process.sleeps_in() == "request_wait_answer";
        all.iter().find(hangs).cloned().ok_or(all)
    })
}

#[test]
fn a_share_that_is_mounted_anew_is_asked_again_though_a_question_still_hangs_in_the_old_one() {
    if !is_root() {
        return;
    }
    let behind = HungFuse::mount();
    let share = HungFuse::mount_over(&behind);
    let plan = NodePlan::default().share(share.path()).flags(&["--no-share", "wait"]);
    Node::alone_as(&plan, |node| {
        let at_the_end = behind.go_on_at_the_end();
        behind.hang();
        let task = node.create(&job("echo ran"));
        says(node, "does not answer within 15 s; new tasks wait for it");
        let asking = asking(node);
        detach(share.path());
        let mounted = Mounted::on(share.path());
        assert_eq!(node.wait_final(task)["status"], "Finished");
        assert_eq!((node.stream(task, "task_stdout").as_str(), asking.state()), ("ran\n", 'D'));
        drop((mounted, at_the_end));
        until_true("the question to be back", || asking.state() == 'X');
    });
}

#[test]
fn without_a_share_tasks_may_run_and_keep_their_output_on_the_node() {
    with_rule("local", |node, share| {
        let task = node.create(&job("echo kept"));
        assert_eq!(node.wait_final(task)["status"], "Finished");
        assert_eq!(names_in(share), Vec::<PathBuf>::new());
        let kept = node.state_dir().join(format!("share/nodes/0/task{task}/task_stdout"));
        assert_eq!(fs::read_to_string(&kept).ok().as_deref(), Some("kept\n"));
        let _mounted = Mounted::on(share);
        says(node, "new tasks keep their logs in");
        let shown = |task| node.send(tests::http::Request::get(&format!("/task/output?taskId={task}&stream=stdout")));
        let next = until_one_is_on_the_share(node, share);
        assert_eq!((shown(task).text().as_str(), shown(next).text().as_str()), ("kept\n", "kept\n"));
    });
}

/// The node asks again while there is something to launch.
fn until_one_is_on_the_share(node: &Node, share: &Path) -> u64 {
    until("a task to write to the share again", || {
        let task = node.create(&job("echo kept"));
        node.wait_final(task);
        if share.join(format!("nodes/0/task{task}")).is_dir() { Ok(task) } else { Err(task) }
    })
}
