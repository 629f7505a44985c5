//! Every state a job can end in, each reached by a real container, and the reason that goes with it.

use std::fs;

use rustix::process::Signal;
use serde_json::json;
use tests::cluster::{Cluster, Plan};
use tests::job::{job, job_with};
use tests::node::{NodePlan, supervisor};
use tests::wait::{short_ms, until};

#[test]
fn a_command_that_exits_0_is_finished() {
    Cluster::small(|cluster| {
        let submitted = cluster.master.submit(&job("echo hello; echo world >&2"));
        assert!(submitted.status.starts_with("Pending["), "{submitted:?}");
        let ended = cluster.master.wait_final(submitted.job_id);
        assert_eq!(ended.outcome(), "Finished");
        assert_eq!((ended.exit_code, ended.node_id, ended.attempt), (Some(0), 0, 1));
        assert!(ended.task_id >= 0, "{ended:?}");
        let details = cluster.master.details(ended.job_id);
        assert_eq!((details.task_stdout.as_str(), details.task_stderr.as_str()), ("hello\n", "world\n"));
        assert!(!details.monitor_out.is_empty(), "the monitor said nothing");
    });
}

#[test]
fn the_times_of_a_finished_job_are_in_order_and_rfc_3339() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("true"));
        let read = |time: &str| time.parse::<jiff::Timestamp>().unwrap_or_else(|error| panic!("{time:?}: {error}"));
        let submitted = read(&ended.submitted_at);
        let started = read(ended.started_at.as_deref().expect("startedAt of a finished job"));
        let finished = read(ended.ended_at.as_deref().expect("endedAt of a finished job"));
        assert!(submitted <= started && started <= finished, "{ended:?}");
    });
}

#[test]
fn another_exit_status_is_failed_with_the_exit_code() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("exit 3"));
        assert_eq!(ended.outcome(), "Failed: exit code 3");
        assert_eq!(ended.exit_code, Some(3));
    });
}

#[test]
fn a_command_that_is_not_there_exits_127_and_says_so_on_stderr() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("no-such-command"));
        assert_eq!(ended.outcome(), "Failed: exit code 127");
        assert!(cluster.master.details(ended.job_id).task_stderr.contains("no-such-command"));
    });
}

#[test]
fn a_command_that_dies_of_a_signal_is_failed_with_its_name() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("kill -SEGV $$"));
        assert_eq!(ended.outcome(), "Failed: signal 11 (SIGSEGV)");
        assert_eq!(ended.exit_code, None);
    });
}

#[test]
fn a_command_that_kills_itself_is_signal_9_and_not_out_of_memory() {
    Cluster::small(|cluster| {
        assert_eq!(cluster.run(&job("kill -KILL $$")).outcome(), "Failed: signal 9 (SIGKILL)");
    });
}

#[test]
fn a_signal_that_has_no_name_is_told_by_its_number_and_an_orphan_that_dies_of_one_changes_nothing() {
    Cluster::small(|cluster| {
        let orphan = "(sh -c 'echo $$ >orphan; kill -40 $$' &); until [ -s orphan ]; do :; done; \
                      while [ -e /proc/$(cat orphan) ]; do :; done; kill -64 $$";
        assert_eq!(cluster.run(&job(orphan)).outcome(), "Failed: signal 64");
    });
}

#[test]
fn a_memory_hog_is_reported_as_out_of_memory_with_its_peak() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job_with("tail /dev/zero", &[("resource.mem", json!(32))]));
        assert_eq!(ended.outcome(), "Failed: out of memory (peak 32 MiB of 32 MiB)");
        let peak = ended.memory_peak_bytes.expect("the peak of an ended job");
        assert!((24 << 20..=32 << 20).contains(&peak), "peak {peak}");
    });
}

#[test]
fn files_in_dev_shm_count_as_the_tasks_memory() {
    Cluster::small(|cluster| {
        let hog = job_with("dd if=/dev/zero of=/dev/shm/x bs=1M count=200", &[("resource.mem", json!(32))]);
        let ended = cluster.run(&hog);
        assert!(ended.outcome().starts_with("Failed: "), "{}", ended.outcome());
        let full = cluster.master.details(ended.job_id).task_stderr.contains("No space left");
        assert!(full || ended.outcome().contains("out of memory"), "{}", ended.outcome());
    });
}

#[test]
fn a_task_that_survives_the_kill_of_its_child_by_oom_is_finished() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job_with("tail /dev/zero; echo \"tail: $?\"; true", &[("resource.mem", json!(32))]));
        assert_eq!(ended.outcome(), "Finished");
        assert_eq!(cluster.stdout(&ended), "tail: 137\n");
    });
}

#[test]
fn an_image_no_node_has_is_refused_at_submission() {
    Cluster::small(|cluster| {
        let refused = cluster.master.try_submit(&job_with("true", &[("imageId", json!("nowhere"))])).expect(400);
        assert_eq!(refused.refused_field(), "imageId");
        assert!(
            refused.json()["error"]["message"].as_str().is_some_and(|said| said.contains("nowhere")),
            "{refused:?}"
        );
    });
}

#[test]
fn an_image_that_is_broken_fails_the_job_and_says_at_which_step() {
    Cluster::small(|cluster| {
        let image = cluster.node().state_dir().join("img/busybox");
        fs::remove_file(image.join("bin/sh")).expect("remove the image's shell");
        let ended = cluster.run(&job("true"));
        assert!(ended.outcome().starts_with("Failed: launch failed: "), "{}", ended.outcome());
        assert!(ended.outcome().contains("ENOENT") || ended.outcome().contains("/bin/sh"), "{}", ended.outcome());
    });
}

#[test]
fn an_image_removed_after_submission_fails_the_job_or_keeps_it_waiting_with_the_reason() {
    Plan::of_nodes([NodePlan::default().cpu(1)]).run(|cluster| {
        let first = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(first.job_id, "Running");
        let second = cluster.master.submit(&job("true"));
        let state_dir = cluster.node().state_dir().to_owned();
        let removed = supervisor(&["image", "rm", "busybox", "--state-dir", state_dir.to_str().expect("UTF-8")]);
        if !removed.status.success() {
            // An image in use may be refused; then it goes the way an operator in a hurry takes.
            fs::remove_dir_all(state_dir.join("img/busybox")).expect("remove the image");
        }
        cluster.master.kill(first.job_id).expect(200);
        let seen = until("the second job to fail or to say that its image is gone", || {
            let job = cluster.master.job(second.job_id);
            let why = cluster.master.why(second.job_id);
            if job.is_final() || why.contains("busybox") { Ok(job) } else { Err(why) }
        });
        if seen.is_final() {
            assert_eq!(seen.status, "Failed");
            assert!(seen.outcome().contains("busybox"), "{}", seen.outcome());
        } else {
            cluster.master.kill(second.job_id).expect(200);
        }
    });
}

#[test]
fn a_command_that_outlives_its_timeout_is_timeout() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job_with("echo begun; sleep 1000", &[("timeout", json!(short_ms(5000)))]));
        assert_eq!(ended.status, "Timeout");
        assert_eq!(cluster.stdout(&ended), "begun\n");
    });
}

#[test]
fn a_timeout_also_ends_a_command_that_ignores_sigterm() {
    Cluster::small(|cluster| {
        let stubborn = job_with("trap '' TERM; while :; do sleep 1; done", &[("timeout", json!(short_ms(300)))]);
        assert_eq!(cluster.run(&stubborn).status, "Timeout");
    });
}

#[test]
fn a_command_within_its_timeout_is_finished() {
    Cluster::small(|cluster| {
        assert_eq!(cluster.run(&job_with("true", &[("timeout", json!(60_000))])).outcome(), "Finished");
    });
}

#[test]
fn a_running_job_that_is_killed_is_killed() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(running.job_id, "Running");
        cluster.master.kill(running.job_id).expect(200);
        let ended = cluster.master.wait_final(running.job_id);
        assert_eq!(ended.status, "Killed");
        assert!(ended.ended_at.is_some(), "{ended:?}");
    });
}

#[test]
fn a_killed_command_that_exits_0_on_sigterm_is_still_killed() {
    let patient = NodePlan::default().flags(&["--grace", "60s"]);
    Plan::of_nodes([patient]).run(|cluster| {
        let polite =
            cluster.master.submit(&job("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done"));
        until("the trap to be set", || {
            let said = cluster.master.details(polite.job_id).task_stdout;
            if said.contains("ready") { Ok(()) } else { Err(said) }
        });
        cluster.master.kill(polite.job_id).expect(200);
        let ended = cluster.master.wait_final(polite.job_id);
        assert_eq!(ended.status, "Killed");
        assert_eq!(cluster.stdout(&ended), "ready\nbye\n", "the grace period was not given");
    });
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_its_grace_period() {
    Cluster::small(|cluster| {
        let stubborn = cluster.master.submit(&job("trap '' TERM; echo ready; while :; do sleep 1; done"));
        until("the trap to be set", || {
            let said = cluster.master.details(stubborn.job_id).task_stdout;
            if said.contains("ready") { Ok(()) } else { Err(said) }
        });
        cluster.master.kill(stubborn.job_id).expect(200);
        assert_eq!(cluster.master.wait_final(stubborn.job_id).status, "Killed");
    });
}

#[test]
fn a_pending_job_says_why_it_waits_and_is_killed_at_once() {
    Plan::of_nodes([NodePlan::default().cpu(1)]).run(|cluster| {
        let first = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(first.job_id, "Running");
        let second = cluster.master.submit(&job("true"));
        let waiting = cluster.master.job(second.job_id);
        assert_eq!((waiting.status.as_str(), waiting.node_id, waiting.attempt), ("Pending[ ]", -1, 0));
        let why = cluster.master.why(second.job_id);
        assert!(why.contains("CPU"), "no word of the CPU it waits for: {why:?}");
        cluster.master.kill(second.job_id).expect(200);
        assert_eq!(cluster.master.job(second.job_id).status, "Killed");
        assert_eq!(cluster.master.job(first.job_id).status, "Running", "the wrong job was killed");
    });
}

#[test]
fn a_job_that_fits_no_present_node_stays_pending_and_says_why() {
    Cluster::small(|cluster| {
        let answer = cluster.master.try_submit(&job_with("true", &[("resource.mem", json!(100_000))]));
        if answer.status == 400 {
            // Where every node is known, a job none could ever run may be refused instead.
            assert_eq!(answer.refused_field(), "resource.mem");
            return;
        }
        let id = answer.expect(201).json()["jobId"].as_u64().expect("jobId");
        assert_eq!(cluster.master.job(id).status, "Pending[ ]");
        let why = cluster.master.why(id);
        assert!(why.contains("MiB") || why.contains("memory"), "no word of the memory it waits for: {why:?}");
        cluster.master.kill(id).expect(200);
    });
}

#[test]
fn killing_twice_is_fine_and_changes_nothing() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(running.job_id, "Running");
        cluster.master.kill(running.job_id).expect(200);
        cluster.master.kill(running.job_id).expect(200);
        let ended = cluster.master.wait_final(running.job_id);
        cluster.master.kill(running.job_id).expect(200);
        assert_eq!(cluster.master.job(running.job_id), ended);
        assert_eq!(ended.status, "Killed");
    });
}

#[test]
fn killing_a_finished_job_keeps_it_finished() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("true"));
        cluster.master.kill(ended.job_id).expect(200);
        assert_eq!(cluster.master.job(ended.job_id), ended);
    });
}

#[test]
fn a_kill_that_races_with_the_launch_is_never_lost() {
    Cluster::small(|cluster| {
        let small = job_with("sleep 1000", &[("resource", json!({"cpu": 0.1, "mem": 16}))]);
        let jobs: Vec<u64> = (0..30)
            .map(|_| {
                let job_id = cluster.master.submit(&small).job_id;
                cluster.master.kill(job_id).expect(200);
                job_id
            })
            .collect();
        for job_id in jobs {
            assert_eq!(cluster.master.wait_final(job_id).status, "Killed");
        }
    });
}

#[test]
fn a_command_cannot_pass_for_killed_by_signalling_its_monitor() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("kill -TERM 1; kill -KILL 1; kill -INT 1; sleep 1; exit 5"));
        assert_eq!(ended.outcome(), "Failed: exit code 5");
    });
}

#[test]
fn a_task_whose_monitor_was_killed_is_failed_and_never_finished() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(running.job_id, "Running");
        cluster.node().monitor().signal(Signal::KILL);
        assert_eq!(cluster.master.wait_final(running.job_id).outcome(), "Failed: lost");
    });
}
