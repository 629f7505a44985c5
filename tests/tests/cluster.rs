//! Three machines, each with its own glusterd, brick and mounts, set up by README's words: what a cluster promises.
//!
//! Each test has a cluster of its own. They run one after the other, by `scripts/test cluster`: three glusterds, nine
//! glusterfs and four daemons are enough for one small machine at a time.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::gluster::{Gluster, NODE_AGAIN, blocks};
use tests::job::{Job, job, job_with};
use tests::machine::{Machine, words_of};
use tests::wait::{until, until_true};

/// Makes the volume again, or rather what is not as it should be.
const MASTER_AGAIN: &str = "scripts/config-glusterfs-master --volume berth --replica 3 gfs01 gfs02 gfs03";
/// A line each 100 ms until told to end; then which of them could not be written.
const WRITES: &str = "trap end=1 USR1; i=0; while [ -z \"$end\" ]; do echo $i || lost=\"$lost $i\"; i=$((i+1)); sleep 0.1; done; \
                      echo told of:$lost";
const LOGS: [(&str, &str); 3] = [("stdout", "task_stdout"), ("stderr", "task_stderr"), ("monitor", "monitor_out")];

/// Small enough that a node takes many, so that jobs queue on nodes too.
fn small(command: &str) -> Value {
    job_with(command, &[("resource.cpu", json!(0.1)), ("resource.mem", json!(32))])
}

/// All that the scripts could have changed on a machine.
fn state_of(machine: &Machine) -> String {
    let files = "cat /etc/fstab /etc/hosts; find /var/lib/glusterd/vols /var/lib/glusterd/peers /srv/gluster -maxdepth 2 | sort";
    let volume =
        "grep -v '^tier-enabled' /var/lib/glusterd/vols/berth/info; gluster volume info; gluster pool list | sort";
    let mut pids: Vec<i32> = machine.find("gluster").iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    format!(
        "{}\n{}\n{pids:?}",
        machine.run(files),
        machine.run(&format!("{volume}; findmnt -rno TARGET,SOURCE,OPTIONS"))
    )
}

#[test]
#[ignore = "wants GlusterFS: scripts/test cluster"]
fn three_fresh_machines_become_a_cluster_by_readmes_words_alone() {
    Gluster::of_fresh_machines(|gluster| {
        let hosts_before = gluster.machines[0].run("cat /etc/hosts");
        let blocks = blocks();
        let (peers, volume) = (&blocks[0], &blocks[1]);
        let [first, second, third] = &gluster.machines[..] else { panic!("three machines") };
        // A reader who forgot the third.
        first.run(&peers.text);
        second.run(&peers.text);
        let refused = first.shell(&volume.text);
        let said = words_of(&refused);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("glusterd does not answer on gfs03 (port 24007)") && said.contains("hint: "), "{said}");
        for block in &blocks {
            gluster.follow(block);
        }
        let names = "10.0.0.11 gfs01\n10.0.0.12 gfs02\n10.0.0.13 gfs03\n";
        assert_eq!(first.run("cat /etc/hosts"), format!("{hosts_before}{names}"), "each name once, and nothing else");
        running_everything_again_changes_nothing(gluster);
        what_the_scripts_refuse(first);
        volumes_of_other_shapes(first);
        assert!(third.run("findmnt -rno FSTYPE /mnt/share").contains("fuse.glusterfs"));
    });
}

fn running_everything_again_changes_nothing(gluster: &Gluster) {
    let [first, ..] = &gluster.machines[..] else { panic!("three machines") };
    let before: Vec<String> = gluster.machines.iter().map(state_of).collect();
    let said = first.run(MASTER_AGAIN);
    let deeds: Vec<&str> = said.lines().filter(|line| !line.contains(" is ready")).collect();
    assert_eq!(deeds, Vec::<&str>::new(), "done again");
    for machine in &gluster.machines {
        machine.run(&blocks()[0].text);
        let said = machine.run(NODE_AGAIN);
        assert_eq!(said.lines().count(), 1, "done again: {said}");
    }
    let after: Vec<String> = gluster.machines.iter().map(state_of).collect();
    assert_eq!(before, after);
}

/// Exit status 1 or 2, and a sentence with these words.
fn what_the_scripts_refuse(machine: &Machine) {
    for (command, code, words) in [
        ("config-glusterfs-master --volume berth --replica 3 gfs01 gfs03 gfs02", 1, "with other bricks"),
        (
            "config-glusterfs-master --volume berth --replica 1 gfs01 gfs02 gfs03",
            1,
            "is there already, with --replica 3",
        ),
        ("config-glusterfs-master --volume other --replica 2 gfs01 gfs02", 1, "split brain"),
        ("config-glusterfs-master --volume other gfs01 gfs02", 2, "no multiple of three"),
        ("config-glusterfs-master --volume other gfs01 gfs02 gfs09", 1, "gfs09 has no address here"),
        ("config-glusterfs-master --volume other --brick relative gfs01", 2, "--brick"),
        ("config-glusterfs-master --peer --hosts gfs01=10.9.9.9", 1, "gfs01 is 10.0.0.11 in /etc/hosts already"),
        ("config-glusterfs-master --peer --hosts gfs01", 2, "--hosts"),
        ("config-glusterfs-node --volume nosuch --mount /mnt/other gfs01", 1, "volume nosuch could not be mounted"),
        ("config-glusterfs-node --volume berth --mount /srv gfs01", 1, "/srv is taken"),
        ("config-glusterfs-node --volume berth --mount /etc gfs01", 1, "/etc is taken"),
        ("config-glusterfs-node --volume berth --mount /var/log/glusterfs gfs01", 1, "is not empty"),
    ] {
        let refused = machine.shell(&format!("scripts/{command}"));
        let said = words_of(&refused);
        assert!(refused.status.code() == Some(code) && said.contains(words), "{command}\n{refused:?}\n{said}");
    }
    assert_eq!(machine.run("gluster volume list"), "berth\n", "what was refused was made");
}

fn volumes_of_other_shapes(machine: &Machine) {
    machine.run("scripts/config-glusterfs-master --volume single gfs01");
    machine.run("scripts/config-glusterfs-master --volume voting --replica 2 --arbiter gfs01 gfs02 gfs03");
    let shape =
        |volume: &str| machine.run(&format!("gluster volume info {volume} | sed -n 's/^Number of Bricks: //p'"));
    assert_eq!((shape("single").as_str(), shape("voting").as_str()), ("1\n", "1 x (2 + 1) = 3\n"));
    let again = machine.run("scripts/config-glusterfs-master --volume voting --replica 2 --arbiter gfs01 gfs02 gfs03");
    assert_eq!(again.lines().count(), 1, "{again}");
}

#[test]
#[ignore = "wants GlusterFS: scripts/test cluster"]
fn the_share_and_the_nodes_http_give_the_same_bytes_and_every_mount_and_brick_has_them() {
    Gluster::of_readme(|gluster| {
        let command = "i=0; while [ $i -lt 300 ]; do echo line $i of $BERTH_JOB_ID; echo e$i >&2; i=$((i+1)); done; \
                       head -c 300000 /dev/urandom";
        let ids = gluster.submit_all(&vec![job(command); 6]);
        let jobs = gluster.wait_final(&ids);
        let nodes: BTreeMap<i64, usize> = jobs.iter().fold(BTreeMap::new(), |mut nodes, job| {
            *nodes.entry(job.node_id).or_default() += 1;
            nodes
        });
        assert_eq!(nodes.len(), 3, "jobs on every node: {nodes:?}");
        let with_share = all_logs(gluster, &jobs);
        gluster.machines[0].stop_daemon("berth-master");
        gluster.start_master_without("--share");
        let over_http = all_logs(gluster, &jobs);
        for job in &jobs {
            assert_eq!(job.outcome(), "Finished");
            for (stream, file) in LOGS {
                let key = (job.job_id, stream);
                let log = &with_share[&key];
                assert!(log == &over_http[&key], "job {}: {stream} is another over HTTP", job.job_id);
                let path = Gluster::log_path(job, file);
                for (place, seen) in [("mount", gluster.on_mounts(&path)), ("brick", gluster.on_bricks(&path))] {
                    assert_eq!(seen.len(), 3);
                    assert!(
                        seen.iter().all(|seen| seen.as_ref() == Some(log)),
                        "{}: not so on a {place}",
                        path.display()
                    );
                }
            }
            let stdout = &with_share[&(job.job_id, "stdout")];
            assert!(stdout.len() > 300_000 && stdout.starts_with(format!("line 0 of {}\n", job.job_id).as_bytes()));
        }
    });
}

fn all_logs(gluster: &Gluster, jobs: &[Job]) -> BTreeMap<(u64, &'static str), Vec<u8>> {
    let keys = jobs.iter().flat_map(|job| LOGS.map(|(stream, _)| (job.job_id, stream)));
    keys.map(|key| (key, gluster.output(key.0, key.1))).collect()
}

/// Asks all nodes and the master one after the other until told to stop: how often, and the longest any took.
struct Heartbeat<'g> {
    gluster: &'g Gluster,
    stop: AtomicBool,
    answers: AtomicUsize,
}

impl Heartbeat<'_> {
    fn beat(&self) -> (Duration, Vec<String>) {
        let (mut longest, mut silent) = (Duration::ZERO, Vec::new());
        while !self.stop.load(Ordering::Acquire) {
            for machine in &self.gluster.machines {
                let asked = Instant::now();
                if let Err(error) = self.gluster.resource(machine) {
                    silent.push(format!("{}: {error}", machine.name()));
                }
                longest = longest.max(asked.elapsed());
                self.answers.fetch_add(1, Ordering::AcqRel);
            }
            self.gluster.jobs();
        }
        (longest, silent)
    }

    /// Runs something while the nodes are asked; none may fail to answer.
    fn during<T>(gluster: &Gluster, name: &str, body: impl FnOnce(&Heartbeat<'_>) -> T) -> T {
        let heart = Heartbeat { gluster, stop: AtomicBool::new(false), answers: AtomicUsize::new(0) };
        let (done, (longest, silent)) = thread::scope(|scope| {
            let beating = scope.spawn(|| heart.beat());
            let guard = StopOnDrop(&heart.stop);
            let done = body(&heart);
            drop(guard);
            (done, beating.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        assert_eq!(silent, Vec::<String>::new(), "a node's loop stood still");
        let answers = heart.answers.load(Ordering::Acquire);
        eprintln!("{name}: nodes answered {answers} times, the slowest in {} ms", longest.as_millis());
        done
    }

    /// Waits until the nodes have answered so many times more.
    fn wait(&self, answers: usize) {
        let wanted = self.answers.load(Ordering::Acquire) + answers;
        until_true("the nodes to answer", || self.answers.load(Ordering::Acquire) >= wanted);
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn ended(gluster: &Gluster) -> usize {
    gluster.jobs().iter().filter(|job| job.is_final()).count()
}

#[test]
#[ignore = "wants GlusterFS: scripts/test cluster"]
fn a_brick_that_dies_during_200_jobs_and_comes_back_costs_nothing() {
    Gluster::of_readme(|gluster| {
        let command =
            "echo begin $BERTH_JOB_ID; i=0; while [ $i -lt 6 ]; do echo line $i; i=$((i+1)); sleep 0.3; done; echo end";
        let [first, second, _] = &gluster.machines[..] else { panic!("three machines") };
        let before = ended(gluster);
        let jobs = Heartbeat::during(gluster, "a brick died during 200 jobs", |_| {
            // These run before, without and after it.
            let throughout = gluster.submit_all(&vec![small(WRITES); 3]);
            let ids = gluster.submit_all(&vec![job_with(command, &[("resource.cpu", json!(0.2))]); 197]);
            until_true("20 jobs to end", || ended(gluster) >= before + 20);
            assert_eq!(second.kill("glusterfsd"), 1, "one brick");
            let at_death = ended(gluster);
            until_true("30 more to end without it", || ended(gluster) >= at_death + 30);
            first.run(MASTER_AGAIN);
            end_and_count(gluster, &throughout, Some(0));
            gluster.wait_final(&ids)
        });
        gluster.wait_healed();
        for job in &jobs {
            assert_eq!(job.outcome(), "Finished", "job {}", job.job_id);
            let wanted = format!("begin {}\nline 0\nline 1\nline 2\nline 3\nline 4\nline 5\nend\n", job.job_id);
            let shown = gluster.output(job.job_id, "stdout");
            assert_eq!(String::from_utf8_lossy(&shown), wanted);
            is_everywhere(gluster, job, "task_stdout", wanted.as_bytes());
        }
        let monitors = jobs.iter().map(|job| (job, gluster.output(job.job_id, "monitor")));
        for (job, monitor) in monitors {
            assert!(String::from_utf8_lossy(&monitor).contains("end: exit code 0"), "job {}", job.job_id);
            is_everywhere(gluster, job, "monitor_out", &monitor);
        }
    });
}

#[track_caller]
fn is_everywhere(gluster: &Gluster, job: &Job, file: &str, wanted: &[u8]) {
    let path = Gluster::log_path(job, file);
    for seen in gluster.on_bricks(&path).into_iter().chain(gluster.on_mounts(&path)) {
        let seen = seen.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert_eq!(seen.as_deref(), Some(&*String::from_utf8_lossy(wanted)), "{}", path.display());
    }
}

#[test]
#[ignore = "wants GlusterFS: scripts/test cluster"]
fn without_the_volume_running_jobs_go_on_new_ones_wait_or_stay_on_their_node_and_all_recovers() {
    Gluster::of_readme(|gluster| {
        let [first, second, third] = &gluster.machines[..] else { panic!("three machines") };
        third.stop_daemon("berth-supervisor");
        gluster.start_daemon(third, "berth-supervisor", "--no-share local");
        // The master learns of a restart when it next hears from the node.
        until("the master to give node 3 jobs again", || {
            let jobs = gluster.wait_final(&gluster.submit_all(&vec![small("true"); 3]));
            if jobs.iter().any(|job| job.node_id == 3) { Ok(()) } else { Err(jobs) }
        });
        let running = gluster.submit_all(&vec![small(WRITES); 3]);
        for &id in &running {
            until_true(format!("job {id} to write"), || {
                gluster.job(id).status == "Running" && !gluster.output(id, "stdout").is_empty()
            });
        }
        let queued = Heartbeat::during(gluster, "the whole volume gone", |heart| {
            for machine in &gluster.machines {
                assert_eq!(machine.kill("glusterfsd"), 1, "one brick each");
            }
            let queued = gluster.submit_all(&vec![small("echo ran"); 9]);
            until("those of node 3 to end on their node", || {
                let jobs: Vec<Job> = queued.iter().map(|&id| gluster.job(id)).filter(|job| job.node_id == 3).collect();
                let good = !jobs.is_empty() && jobs.iter().all(|job| job.outcome() == "Finished");
                if good { Ok(()) } else { Err((jobs, third.run("cat /var/log/berth-supervisor.log"))) }
            });
            heart.wait(60);
            for &id in &queued {
                let job = gluster.job(id);
                if job.node_id == 3 {
                    assert_eq!(gluster.output(id, "stdout"), b"ran\n", "kept on the node, shown by the master");
                    let local = third.file("/var/lib/berth/share").join(Gluster::log_path(&job, "task_stdout"));
                    assert_eq!(fs::read(&local).ok().as_deref(), Some(&b"ran\n"[..]), "{}", local.display());
                } else {
                    assert_eq!(job.status, "Pending[A]", "job {id} on node {}", job.node_id);
                }
            }
            for &id in &running {
                until(format!("job {id} to say that its output is cut off"), || {
                    let (why, _) = gluster.stuck(id);
                    why.filter(|why| why.starts_with("it runs, and what it writes may be lost")).ok_or(())
                });
                assert_eq!(gluster.job(id).status, "Running", "job {id}");
            }
            queued
        });
        let said = second.run("cat /var/log/berth-supervisor.log");
        assert!(
            said.contains("the share /mnt/share cannot be written: ") && said.contains("new tasks wait for it"),
            "{said}"
        );
        first.run(MASTER_AGAIN);
        for job in gluster.wait_final(&queued) {
            assert_eq!(
                (job.outcome().as_str(), gluster.output(job.job_id, "stdout").as_slice()),
                ("Finished", &b"ran\n"[..])
            );
        }
        assert!(second.run("cat /var/log/berth-supervisor.log").contains("the share /mnt/share is there again"));
        for &id in &running {
            until_true(format!("job {id} to say that no more"), || gluster.stuck(id).0.is_none());
        }
        end_and_count(gluster, &running, None);
        a_job_that_cannot_end_for_a_volume_that_hangs_says_so_until_it_can(gluster);
        a_share_that_is_not_mounted_is_waited_for(gluster, second);
    });
}

/// Waits until the writers get through again and lets them end: each number is there, or its writer was told that it is not.
fn end_and_count(gluster: &Gluster, running: &[u64], lost: Option<usize>) {
    let before: Vec<usize> = running.iter().map(|&id| gluster.output(id, "stdout").len()).collect();
    for (&id, before) in running.iter().zip(before) {
        until_true(format!("job {id} to write again"), || gluster.output(id, "stdout").len() > before);
        gluster.signal(&gluster.job(id), Signal::USR1);
    }
    for job in gluster.wait_final(running) {
        assert_eq!(job.outcome(), "Finished");
        let stdout = String::from_utf8(gluster.output(job.job_id, "stdout")).expect("UTF-8");
        let (numbers, told) = stdout.split_once("told of:").unwrap_or_else(|| panic!("no last line: {stdout}"));
        let written: Vec<usize> = numbers.lines().filter_map(|line| line.parse().ok()).collect();
        let told: Vec<usize> = told.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let mut all: Vec<usize> = written.iter().chain(&told).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..all.len()).collect::<Vec<_>>(), "job {}: {stdout}", job.job_id);
        assert!(lost.is_none_or(|lost| lost == told.len()), "job {}: {stdout}", job.job_id);
        eprintln!("job {}: {} lines written, told of {} that were not", job.job_id, written.len(), told.len());
    }
}

/// Bricks that are gone fail what is asked of them, at once; bricks that hang hold it up, until the mounts give them up too.
fn a_job_that_cannot_end_for_a_volume_that_hangs_says_so_until_it_can(gluster: &Gluster) {
    let id = gluster.submit_all(&[small("sleep 1000")])[0];
    until_true(format!("job {id} to run"), || gluster.job(id).status == "Running");
    Heartbeat::during(gluster, "the whole volume hung", |_| {
        for machine in &gluster.machines {
            assert_eq!(machine.freeze("glusterfsd"), 1, "one brick each");
        }
        gluster.kill(id);
        let (why, page) = until(format!("job {id} to be called stuck"), || match gluster.stuck(id) {
            (Some(why), page) => Ok((why, page)),
            (None, page) => Err(page),
        });
        assert!(why.starts_with("it has ended and cannot go away: process "), "{why}");
        assert!(why.contains("(berth-init) waits for the server of a FUSE file system, such as a share"), "{why}");
        assert!(page.contains("Stuck: ") && page.contains("it has ended and cannot go away: process "), "{page}");
        assert_eq!(gluster.job(id).status, "Running", "it keeps its slot");
        for machine in &gluster.machines {
            machine.thaw("glusterfsd");
        }
        assert_eq!(gluster.wait_final(&[id])[0].outcome(), "Killed");
    });
    let (why, page) = gluster.stuck(id);
    assert!(why.is_none() && !page.contains("Stuck: "), "{why:?} {page}");
}

/// The mount point is a folder like any other once nothing is mounted there.
fn a_share_that_is_not_mounted_is_waited_for(gluster: &Gluster, machine: &Machine) {
    machine.run("umount -l /mnt/share");
    let before = gluster.jobs().len();
    let ids = gluster.submit_all(&vec![small("echo ran"); 6]);
    let here = || ids.iter().map(|&id| gluster.job(id)).filter(|job| job.node_id == 2).collect::<Vec<Job>>();
    until("the others to end", || {
        let open: Vec<Job> =
            ids.iter().map(|&id| gluster.job(id)).filter(|job| job.node_id != 2 && !job.is_final()).collect();
        if open.is_empty() && !here().is_empty() { Ok(()) } else { Err(open) }
    });
    until_true("the node to say why it waits", || {
        machine.run("cat /var/log/berth-supervisor.log").contains("the share /mnt/share is not mounted; new tasks wait")
    });
    assert!(here().iter().all(|job| job.status == "Pending[A]"), "{:?}", here());
    assert_eq!(machine.run("find /mnt/share -mindepth 1"), "", "written under the mount point");
    machine.run(NODE_AGAIN);
    assert!(gluster.wait_final(&ids).iter().all(|job| job.outcome() == "Finished"));
    assert_eq!(gluster.jobs().len(), before + ids.len());
}

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const LAUNCHES: u64 = 9;

#[test]
#[ignore = "wants GlusterFS: scripts/test cluster"]
fn a_package_of_a_gibibyte_is_staged_from_the_share_as_one_of_a_kibibyte_is_without_a_copy() {
    Gluster::of_readme(|gluster| {
        let first = &gluster.machines[0];
        first.run("gluster volume profile berth start >/dev/null");
        for (name, size) in [("small", KIB), ("big", GIB)] {
            first.run(&format!(
                "mkdir -p /mnt/share/packages/{name}; truncate -s {size} /mnt/share/packages/{name}/data"
            ));
        }
        let mut took: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        let mut read: BTreeMap<&str, u64> = BTreeMap::new();
        for _ in 0..LAUNCHES {
            for (name, size) in [("small", KIB), ("big", GIB)] {
                bytes_read(first);
                let (elapsed, size_seen, copied) = stage(gluster, name);
                assert_eq!(size_seen, size, "the package is there, whole");
                assert!(copied < 64 * KIB, "{copied} bytes in the writable layer of {name}");
                *read.entry(name).or_default() += bytes_read(first);
                took.entry(name).or_default().push(elapsed);
            }
        }
        let median = |name: &str| {
            let mut all = took[name].clone();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let (small, big) = (median("small"), median("big"));
        eprintln!(
            "staging 1 GiB against 1 KiB from the share: {:.1} and {:.1} ms, ratio {:.2}; read from all bricks in {LAUNCHES} launches: {} and {} bytes",
            big.as_secs_f64() * 1e3,
            small.as_secs_f64() * 1e3,
            big.as_secs_f64() / small.as_secs_f64(),
            read["big"],
            read["small"],
        );
        assert!(
            read["big"] < LAUNCHES * 64 * KIB,
            "{} bytes were read to stage a package {LAUNCHES} times",
            read["big"]
        );
    });
}

/// What the bricks have read since this was last asked.
fn bytes_read(machine: &Machine) -> u64 {
    let said = machine.run("gluster volume profile berth info incremental");
    let reads = said.lines().filter_map(|line| line.trim().strip_prefix("Data Read:"));
    reads.filter_map(|rest| rest.trim().strip_suffix(" bytes")?.parse::<u64>().ok()).sum()
}

/// Runs a job that says how large the package is: how long its staging took, that size, and what the job's writable layer holds.
fn stage(gluster: &Gluster, package: &str) -> (Duration, u64, u64) {
    let path = format!("/mnt/share/packages/{package}");
    let command = "trap end=1 USR1; stat -c %s data; touch there; while [ -z \"$end\" ]; do sleep 0.02; done; true";
    let ids = gluster.submit_all(&[job_with(command, &[("packagePath", json!(path))])]);
    let job = until("the job to run", || {
        let job = gluster.job(ids[0]);
        if job.status == "Running" { Ok(job) } else { Err(job.outcome()) }
    });
    let container = gluster.machine_of(&job).file(&format!("/var/lib/berth/cont/t{}-cont", job.task_id));
    let workspace = container.join("usrfile/workspace");
    until_true("the command to have looked", || workspace.join("there").exists());
    let copied = blocks_below(&container.join("usrfile"));
    gluster.signal(&job, Signal::USR1);
    let ended = gluster.wait_final(&ids);
    assert_eq!(ended[0].outcome(), "Finished");
    let size = String::from_utf8_lossy(&gluster.output(ids[0], "stdout")).trim().parse().expect("a size");
    (staging_time(&gluster.output(ids[0], "monitor")), size, copied)
}

/// From the line before the packages to that of the root, by init's own clock.
fn staging_time(monitor: &[u8]) -> Duration {
    let monitor = String::from_utf8_lossy(monitor);
    let at = |words: &str| {
        let line =
            monitor.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words:?} in {monitor}"));
        line.split(' ')
            .next()
            .and_then(|time| time.parse::<jiff::Timestamp>().ok())
            .unwrap_or_else(|| panic!("no time: {line}"))
    };
    Duration::try_from(at("root: ").duration_since(at("limits: "))).unwrap_or_default()
}

/// The bytes that all files below a folder take on the disk.
fn blocks_below(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let of = |path: &Path| {
        let metadata = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if metadata.is_dir() { blocks_below(path) } else { metadata.blocks() * 512 }
    };
    entries.flatten().map(|entry| of(&entry.path())).sum()
}
