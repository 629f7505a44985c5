//! Logs that are followed on a real GlusterFS volume: one host writes, the master reads them from the share on another.

use std::path::Path;

use rustix::process::Signal;
use serde_json::json;
use tests::gluster::Gluster;
use tests::job::{Job, job_with};
use tests::wait::{until, until_true};

/// A line each 50 ms until told to end; then bytes of every kind.
const WRITES: &str = "trap end=1 USR1; i=0; while [ -z \"$end\" ]; do echo $BERTH_ATTEMPT: line $i; i=$((i+1)); sleep 0.05; done; \
                      head -c 300000 /dev/urandom; echo the end of attempt $BERTH_ATTEMPT";

/// Two jobs that write, on two nodes; first one whose node is not on the master's host.
fn two_that_write(gluster: &Gluster) -> [Job; 2] {
    let fields = [("resource.cpu", json!(0.1)), ("resource.mem", json!(32)), ("onNodeLoss", json!("retry"))];
    let ids = gluster.submit_all(&vec![job_with(WRITES, &fields); 2]);
    let mut jobs: Vec<Job> = ids.iter().map(|&id| until_it_runs(gluster, id, 1)).collect();
    jobs.sort_by_key(|job| job.node_id == 1);
    let [elsewhere, other] = <[Job; 2]>::try_from(jobs).unwrap_or_else(|jobs| panic!("two jobs: {jobs:?}"));
    assert_ne!(elsewhere.node_id, other.node_id);
    assert_ne!(elsewhere.node_id, 1, "the master is there");
    [elsewhere, other]
}

fn until_it_runs(gluster: &Gluster, id: u64, attempt: u32) -> Job {
    until(format!("attempt {attempt} of job {id} to run"), || {
        let job = gluster.job(id);
        if job.status == "Running" && job.attempt == attempt { Ok(job) } else { Err(job.outcome()) }
    })
}

/// The log as all bricks have it, or those of hosts that are not cut off.
fn written(gluster: &Gluster, path: &Path, cut_off: Option<usize>) -> Vec<u8> {
    let all = gluster.on_bricks(path).into_iter().enumerate().filter(|(number, _)| Some(*number) != cut_off);
    let mut all: Vec<Vec<u8>> = all.map(|(_, bytes)| bytes.unwrap_or_default()).collect();
    all.dedup();
    assert_eq!(all.len(), 1, "{}: the bricks differ", path.display());
    all.remove(0)
}

#[test]
#[ignore = "wants GlusterFS: scripts/test cluster"]
fn who_follows_a_log_on_the_volume_has_it_as_it_grows_byte_by_byte_and_the_next_attempts_log_after_it() {
    Gluster::of_readme(|gluster| {
        let first = &gluster.machines[0];
        first.stop_daemon("berth-master");
        gluster.start_daemon(first, "berth-master", "--node-timeout 2s --lease 15s");
        a_log_that_grows_on_another_host_arrives_and_can_be_gone_on_with(gluster);
        a_job_that_is_tried_again_elsewhere_ends_the_answer_and_the_client_goes_on(gluster);
    });
}

fn a_log_that_grows_on_another_host_arrives_and_can_be_gone_on_with(gluster: &Gluster) {
    let [job, other] = two_that_write(gluster);
    let id = job.job_id;
    let mut client = gluster.logs(&gluster.machines[0], id);
    let mut whole = gluster.follow_log(id, "");
    let mut early = gluster.follow_log(id, "");
    for line in ["1: line 5\n", "1: line 15\n"] {
        whole.read_until(line);
        early.read_until(line);
        assert_eq!(gluster.job(id).status, "Running", "only the job's end made it arrive");
    }
    let mut bytes = std::mem::take(&mut early.bytes);
    drop(early);
    let mut late = gluster.follow_log(id, &format!("&offset={}", bytes.len()));
    late.read_until("line");
    client.wait_for("1: line 25\n");
    for job in [&job, &other] {
        gluster.signal(job, Signal::USR1);
    }
    bytes.extend(late.read_to_the_end());
    let whole = whole.read_to_the_end();
    assert!(gluster.job(id).is_final(), "it ended before the job");
    assert_eq!(client.exit_code(), Some(0), "{}", client.complained());
    assert!(whole.len() > 300_000 && whole.ends_with(b"the end of attempt 1\n"), "{} bytes", whole.len());
    let written = written(gluster, &Gluster::log_path(&job, "task_stdout"), None);
    for (who, has) in [("who followed it all along", whole), ("who came back", bytes), ("the client", client.bytes())] {
        assert!(has == written, "{who} has {} bytes of {}, or others", has.len(), written.len());
    }
    gluster.wait_final(&[id, other.job_id]);
}

fn a_job_that_is_tried_again_elsewhere_ends_the_answer_and_the_client_goes_on(gluster: &Gluster) {
    let [lost, other] = two_that_write(gluster);
    let id = lost.job_id;
    let (cut_off, number) = (gluster.machine_of(&lost), usize::try_from(lost.node_id - 1).unwrap_or_default());
    let mut client = gluster.logs(&gluster.machines[0], id);
    let mut before = gluster.follow_log(id, "");
    before.read_until("1: line 15\n");
    let seen = before.bytes.clone();
    gluster.cut(cut_off);
    let tried_again = until_it_runs(gluster, id, 2);
    assert_ne!(tried_again.node_id, lost.node_id);
    // As if it had been followed from the beginning, and none of the first attempt in it.
    let mut after = gluster.follow_log(id, "&attempt=2");
    after.read_until("2: line 5\n");
    assert!(after.bytes.starts_with(b"2: line 0\n"), "{}", String::from_utf8_lossy(&after.bytes));
    let before = before.read_to_the_end();
    assert!(before.starts_with(&seen) && !String::from_utf8_lossy(&before).contains("2: "), "the next one's log in it");
    client.wait_for("2: line 5\n");
    assert!(client.complained().contains("the job is tried again; attempt 2"), "{}", client.complained());
    for job in [&tried_again, &other] {
        gluster.signal(job, Signal::USR1);
    }
    let after = after.read_to_the_end();
    let second = written(gluster, &Gluster::log_path(&tried_again, "task_stdout"), Some(number));
    assert!(after == second && after.ends_with(b"the end of attempt 2\n"), "{} of {} bytes", after.len(), second.len());
    assert_eq!(client.exit_code(), Some(0), "{}", client.complained());
    assert!(client.bytes() == [before.clone(), after].concat(), "the client has another's bytes");
    gluster.heal(cut_off);
    gluster.wait_nodes_ready();
    gluster.wait_mounted(cut_off);
    let first = gluster.on_mounts(&Gluster::log_path(&lost, "task_stdout"));
    until_true("the first attempt's log to be there", || first[0].is_some());
    assert!(first[0].as_ref().is_some_and(|log| log.starts_with(&before)), "what was followed is not what was written");
    for job in gluster.wait_final(&[id, other.job_id]) {
        assert_eq!(job.outcome(), "Finished");
    }
    assert_eq!(gluster.job(id).attempt, 2);
}
