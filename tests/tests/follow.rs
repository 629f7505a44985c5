//! Output that is followed: it arrives while the job runs, whole and in order, and whoever follows costs nobody anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::json;
use tests::client::Client;
use tests::cluster::{Cluster, Plan};
use tests::follow::Follower;
use tests::http::{Connection, Request};
use tests::job::{Job, job, job_with};
use tests::node::NodePlan;
use tests::wait::{until, until_true};

/// A job that says a line, waits for a signal, and says another. A shell runs its trap once `wait` returns.
const TWO_LINES: &str = "trap 'echo second; exit 0' USR1; echo first; sleep 100000 & while :; do wait; done";

fn follow_log(addr: SocketAddr, job: u64, query: &str) -> Follower {
    let request = Request::get(&format!("/job/output/{job}/{query}")).header("Connection", "keep-alive");
    Follower::of(request.ask(addr).expect("ask"))
}

fn stdout(cluster: &Cluster, job: &Job) -> Follower {
    follow_log(cluster.master.addr(), job.job_id, "stdout?follow=1")
}

/// The two-line job, when it has said the first.
fn two_lines(cluster: &Cluster) -> Job {
    let job = cluster.master.submit(&job(TWO_LINES));
    let job = cluster.master.wait_status(job.job_id, "Running");
    // Only then does it mind the signal.
    until_true("its first line", || cluster.stdout(&job) == "first\n");
    job
}

/// Lets the two-line jobs say their second line.
fn go_on(cluster: &Cluster) {
    let processes = cluster.footprint().processes();
    // The shell's child looks like it until it is a sleep: of each job the first process.
    let mut shells = BTreeMap::new();
    for process in processes.iter().filter(|process| process.cmdline.contains(TWO_LINES)) {
        let first = shells.entry(&process.cgroup).or_insert(process);
        if process.pid < first.pid {
            *first = process;
        }
    }
    assert!(!shells.is_empty(), "no such job runs: {processes:?}");
    for process in shells.values() {
        let status = Command::new("kill").args(["-USR1", &process.pid.to_string()]).status().expect("kill");
        assert!(status.success(), "{process:?}");
    }
}

#[test]
fn text_arrives_while_the_job_runs_and_the_answer_ends_with_it() {
    Cluster::small(|cluster| {
        let job = two_lines(cluster);
        let mut follower = stdout(cluster, &job);
        assert_eq!(follower.head.header("Content-Type"), Some("text/plain; charset=utf-8"));
        assert_eq!(follower.head.header("X-Content-Type-Options"), Some("nosniff"));
        follower.read_until("first\n");
        assert_eq!(cluster.master.job(job.job_id).status, "Running", "only the job's end made it arrive");
        go_on(cluster);
        assert_eq!(String::from_utf8_lossy(&follower.read_to_the_end()), "first\nsecond\n");
        assert_eq!(cluster.master.wait_final(job.job_id).outcome(), "Finished");
    });
}

#[test]
fn a_job_that_waits_is_followed_from_before_it_has_a_node() {
    Plan::of_nodes([NodePlan::default().cpu(1)]).run(|cluster| {
        let first = two_lines(cluster);
        let second = cluster.master.submit(&job("echo from the second; echo aside >&2"));
        let third = cluster.master.submit(&job("echo never"));
        let follower = stdout(cluster, &second);
        let aside = follow_log(cluster.master.addr(), second.job_id, "stderr?follow=1");
        let monitor = follow_log(cluster.master.addr(), second.job_id, "monitor?follow=1");
        let never = stdout(cluster, &third);
        cluster.master.kill(third.job_id).expect(200);
        assert!(never.read_to_the_end().is_empty());
        go_on(cluster);
        assert_eq!(follower.read_to_the_end(), b"from the second\n");
        assert_eq!(aside.read_to_the_end(), b"aside\n");
        let monitor = String::from_utf8_lossy(&monitor.read_to_the_end()).into_owned();
        assert!(monitor.contains("image busybox") && monitor.ends_with("exit code 0\n"), "{monitor}");
        assert_eq!(cluster.master.wait_final(first.job_id).outcome(), "Finished");
    });
}

#[test]
fn bytes_of_every_kind_come_unchanged_from_any_offset_on() {
    Cluster::small(|cluster| {
        let job = cluster.master.submit(&job("head -c 3000000 /dev/urandom; sleep 1; head -c 3000000 /dev/urandom"));
        let all = stdout(cluster, &job).read_to_the_end();
        let ended = cluster.master.wait_final(job.job_id);
        let task = u64::try_from(ended.task_id).expect("a task");
        let written = fs::read(cluster.nodes[0].stream_path(task, "task_stdout")).expect("read the log");
        assert_eq!(written.len(), 6_000_000);
        assert!(all == written, "{} bytes came, and not the same", all.len());
        for offset in [1, 2_999_999, 3_000_001, 5_999_999, 6_000_000] {
            let query = format!("stdout?follow=1&offset={offset}");
            let follower = follow_log(cluster.master.addr(), job.job_id, &query);
            assert_eq!(follower.head.header("X-Berth-Offset"), Some(offset.to_string().as_str()));
            assert!(follower.read_to_the_end() == written[offset..], "from {offset} on");
        }
    });
}

#[test]
fn offsets_that_are_none_and_strangers_are_refused() {
    Cluster::small(|cluster| {
        let job = cluster.run(&job("echo 12345"));
        let path = |query: &str| format!("/job/output/{}/stdout?follow=1{query}", job.job_id);
        for offset in ["7", "-1", "x", "1.5", "99999999999999999999"] {
            let refused = cluster.master.send(Request::get(&path(&format!("&offset={offset}")))).expect(400);
            assert_eq!(refused.refused_field(), "offset", "{offset}");
        }
        let refused = cluster.master.send(Request::get(&format!("/job/output/{}/stdout?follow=x", job.job_id)));
        assert_eq!(refused.expect(400).refused_field(), "follow");
        cluster.master.send(Request::get("/job/output/77/stdout?follow=1")).expect(404);
        cluster.master.send(Request::get(&path("")).header("Host", "evil.example")).expect(403);
        let mut connection = Connection::open(cluster.master.addr()).expect("connect");
        connection.send(format!("HEAD {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path("")).as_bytes()).expect("ask");
        let head = connection.head().expect("a head").expect(200);
        assert!(head.header("X-Berth-Stands").is_none(), "{head:?}");
        // Nothing may come between this answer and the next.
        connection.send(b"GET /node/table HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("ask again");
        connection.response().expect("the next answer").expect(200);
    });
}

#[test]
fn an_old_client_gets_the_text_and_the_end_of_its_connection() {
    Cluster::small(|cluster| {
        let job = two_lines(cluster);
        let mut connection = Connection::open(cluster.master.addr()).expect("connect");
        let ask = format!("GET /job/output/{}/stdout?follow=1 HTTP/1.0\r\n\r\n", job.job_id);
        connection.send(ask.as_bytes()).expect("ask");
        let head = connection.head().expect("a head").expect(200);
        assert_eq!((head.header("Transfer-Encoding"), head.header("Connection")), (None, Some("close")));
        go_on(cluster);
        assert_eq!(connection.rest().expect("text"), b"first\nsecond\n");
    });
}

#[test]
fn a_kill_and_a_time_out_end_the_answer() {
    Cluster::small(|cluster| {
        let killed = cluster.master.submit(&job("echo said; sleep 1000"));
        let timed = cluster.master.submit(&job_with("echo said; sleep 1000", &[("timeout", json!(1500))]));
        let mut followers = [stdout(cluster, &killed), stdout(cluster, &timed)];
        followers.iter_mut().for_each(|follower| follower.read_until("said\n"));
        cluster.master.kill(killed.job_id).expect(200);
        for follower in followers {
            assert_eq!(follower.read_to_the_end(), b"said\n");
        }
        assert_eq!(cluster.master.job(killed.job_id).status, "Killed");
        assert_eq!(cluster.master.job(timed.job_id).status, "Timeout");
    });
}

#[test]
fn a_hundred_followers_starve_nobody_and_leave_nothing() {
    /// The master's own to its node, and clients that have just gone.
    const SLACK: usize = 10;
    Cluster::small(|cluster| {
        cluster.run(&job("true"));
        let before = connections(cluster);
        let job = two_lines(cluster);
        let mut followers: Vec<Follower> = (0..100).map(|_| stdout(cluster, &job)).collect();
        followers.iter_mut().for_each(|follower| follower.read_until("first\n"));
        assert!(connections(cluster) >= 100);
        cluster.master.page("/");
        let meanwhile = cluster.run(&tests::job::job("echo meanwhile"));
        assert_eq!(meanwhile.outcome(), "Finished");
        let log = cluster.master.send(Request::get(&format!("/job/output/{}/stdout", meanwhile.job_id))).expect(200);
        assert_eq!(log.text(), "meanwhile\n");
        let away = followers.split_off(50);
        drop(away);
        go_on(cluster);
        for follower in followers {
            assert_eq!(follower.read_to_the_end(), b"first\nsecond\n");
        }
        until("the followers' files to be closed", || {
            let now = connections(cluster);
            if now <= before + SLACK { Ok(()) } else { Err((before, now)) }
        });
    });
}

#[test]
fn followers_who_never_read_cost_a_bounded_buffer_and_are_dropped() {
    /// What 20 sockets and buffers take, and far less than what is written.
    const MOST_KIB: u64 = 24 * 1024;
    Cluster::small(|cluster| {
        let job = cluster.master.submit(&job("yes 0123456789abcdef | head -c 50000000; echo the end; sleep 1000"));
        let mut reads = stdout(cluster, &job);
        let before = cluster.master.daemon().resident_kib();
        let others = connections(cluster);
        let lazy: Vec<Follower> = (0..20).map(|_| stdout(cluster, &job)).collect();
        reads.bytes.clear();
        while !reads.bytes.ends_with(b"the end\n") {
            // What was read is not kept: this is about the master's memory, and the bytes are known.
            reads.bytes.clear();
            let chunk = reads.connection.chunk().expect("more");
            assert!(!chunk.is_empty(), "it ended while the job runs");
            reads.bytes.extend(chunk);
        }
        let after = cluster.master.daemon().resident_kib();
        assert!(after < before + MOST_KIB, "{before} KiB became {after}");
        until("those who never read to be dropped", || {
            let now = connections(cluster);
            if now < others + lazy.len() / 2 { Ok(()) } else { Err((others, now)) }
        });
        cluster.master.kill(job.job_id).expect(200);
        reads.read_to_the_end();
    });
}

/// The connections of the master's clients, apart from its own to itself.
fn connections(cluster: &mut Cluster) -> usize {
    let table = fs::read_to_string("/proc/net/tcp").expect("proc_net(5)");
    let inode = |line: &str| line.split_whitespace().nth(9).map(|inode| format!("socket:[{inode}]"));
    let tcp: BTreeSet<String> = table.lines().skip(1).filter_map(inode).collect();
    cluster.master.daemon().open_fd_names().iter().filter(|name| tcp.contains(*name)).count()
}

#[test]
fn a_master_that_is_killed_and_started_again_is_gone_on_with_at_the_next_byte() {
    Cluster::small(|cluster| {
        let job = two_lines(cluster);
        let mut follower = stdout(cluster, &job);
        follower.read_until("first\n");
        cluster.master.daemon().kill();
        let mut bytes = follower.read_until_cut();
        cluster.master.daemon().restart();
        let query = format!("stdout?follow=1&offset={}", bytes.len());
        let follower = follow_log(cluster.master.addr(), job.job_id, &query);
        go_on(cluster);
        bytes.extend(follower.read_to_the_end());
        assert_eq!(String::from_utf8_lossy(&bytes), "first\nsecond\n");
    });
}

#[test]
fn a_master_that_stops_cuts_its_followers_at_once() {
    Cluster::small(|cluster| {
        let job = two_lines(cluster);
        let mut follower = stdout(cluster, &job);
        follower.read_until("first\n");
        cluster.master.daemon().stop();
        assert_eq!(follower.read_until_cut(), b"first\n");
        cluster.master.daemon().restart();
    });
}

#[test]
fn without_a_share_the_node_is_asked() {
    let mut plan = Plan::default();
    plan.master.flags = vec!["--share".to_owned(), "/nonexistent/share".to_owned()];
    plan.run(|cluster| {
        let job = two_lines(cluster);
        let mut follower = stdout(cluster, &job);
        follower.read_until("first\n");
        assert_eq!(cluster.master.job(job.job_id).status, "Running");
        go_on(cluster);
        assert_eq!(follower.read_to_the_end(), b"first\nsecond\n");
    });
}

#[test]
fn a_node_that_hangs_holds_up_its_own_followers_alone() {
    let mut plan = Plan::of_nodes([NodePlan::default(), NodePlan::default()]);
    plan.master.flags = vec!["--share".to_owned(), "/nonexistent/share".to_owned()];
    plan.run(|cluster| {
        let jobs = [two_lines(cluster), two_lines(cluster)];
        assert_ne!(jobs[0].node_id, jobs[1].node_id, "both on one node");
        let hung = usize::try_from(jobs[0].node_id).expect("a node");
        let signal = |name: &str, pid: u32| {
            let status = Command::new("kill").args([name, &pid.to_string()]).status().expect("kill");
            assert!(status.success(), "{name} {pid}");
        };
        let mut followers = jobs.each_ref().map(|job| stdout(cluster, job));
        followers.iter_mut().for_each(|follower| follower.read_until("first\n"));
        // It takes connections, and answers none.
        let pid = cluster.nodes[hung].daemon().pid();
        signal("-STOP", pid);
        go_on(cluster);
        let [waits, ends] = followers;
        assert_eq!(ends.read_to_the_end(), b"first\nsecond\n");
        signal("-CONT", pid);
        assert_eq!(waits.read_to_the_end(), b"first\nsecond\n");
    });
}

#[test]
fn the_details_page_shows_the_tail_as_it_grows() {
    Cluster::small(|cluster| {
        let job = two_lines(cluster);
        let details = format!("/job/details/{}", job.job_id);
        until_true("the first line on the page", || cluster.master.page(&details).contains("first\n</pre>"));
        let page = cluster.master.page(&details);
        assert!(page.contains("http-equiv=\"refresh\""), "{page}");
        assert!(page.contains(&format!("href=\"/job/output/{}/stdout?follow=1\"", job.job_id)), "{page}");
        go_on(cluster);
        cluster.master.wait_final(job.job_id);
        let page = cluster.master.page(&details);
        assert!(page.contains("second\n</pre>") && !page.contains("http-equiv=\"refresh\""), "{page}");
    });
}

/// `scripts/berth logs -f`.
fn follow(cluster: &Cluster, job: &Job) -> Client {
    Client::start(cluster, &[cluster.master.addr()], &["logs", "-f", &job.job_id.to_string()])
}

#[test]
fn the_clients_logs_are_whole_though_its_master_is_killed_and_comes_back() {
    Cluster::small(|cluster| {
        let job = two_lines(cluster);
        let mut client = follow(cluster, &job);
        client.wait_for("first\n");
        cluster.master.daemon().kill();
        until_true("a word on the cut connection", || client.complained().contains("going on"));
        cluster.master.daemon().restart();
        go_on(cluster);
        assert_eq!(client.exit_code(), Some(0), "{}", client.complained());
        assert_eq!(client.said(), "first\nsecond\n");
    });
}

#[test]
fn the_client_gives_a_master_up_that_does_not_come_back() {
    Cluster::small(|cluster| {
        let job = two_lines(cluster);
        let mut client = follow(cluster, &job);
        client.wait_for("first\n");
        cluster.master.daemon().kill();
        assert_eq!(client.exit_code(), Some(2));
        assert!(client.complained().contains("cannot reach the master"), "{}", client.complained());
        cluster.master.daemon().restart();
        go_on(cluster);
    });
}
