//! A second master waits on the first one's state dir, and takes its place when it dies; and two never speak, whatever
//! becomes of the lock.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use rustix::process::Signal;
use tests::client::Client;
use tests::cluster::{Cluster, Plan};
use tests::job::job;
use tests::ledger::Kind;
use tests::master::{Master, MasterPlan};
use tests::sandbox::is_root;
use tests::storm::{Dice, Storm, round};
use tests::wait::{until, until_true};

const CHANGES: u64 = 12;

fn waiting() -> MasterPlan {
    MasterPlan { flags: vec!["--wait".to_owned()], ..MasterPlan::default() }
}

fn plan() -> Plan {
    Plan { master: waiting(), ..Plan::default() }
}

fn standby(cluster: &Cluster) -> Master {
    Master::start_waiting(cluster.sandbox(), &cluster.nodes, &waiting())
}

fn state_dir(cluster: &Cluster) -> PathBuf {
    cluster.sandbox().folder("master")
}

/// How many lives the state dir has had.
fn claims(cluster: &Cluster) -> usize {
    fs::read_dir(state_dir(cluster).join("claims")).map_or(0, Iterator::count)
}

#[test]
fn masters_that_are_killed_again_and_again_and_take_turns_lose_no_job_and_run_none_twice() {
    if !is_root() {
        return;
    }
    let mut storm = Storm::start_with_standby(2);
    for number in 1..=CHANGES {
        for kind in [Kind::Finishes(0), Kind::Finishes(120), Kind::Fails, Kind::Stays, Kind::TimesOut] {
            storm.submit(kind);
        }
        storm.change_masters();
        let last = storm.submit(Kind::Finishes(0));
        assert!(storm.job(&last).is_some(), "the one that took over answers");
        let tally = round(&mut storm, &mut Dice::of_round(4, number));
        assert!(tally.is_clean(), "after {number} changes: {tally:#?}");
    }
    storm.finish();
}

#[test]
fn a_client_that_waits_or_follows_goes_on_with_the_master_that_took_over() {
    plan().run(|cluster| {
        let second = standby(cluster);
        let masters = [cluster.master.addr(), second.addr()];
        let command = "echo first; while [ ! -e over ]; do sleep 0.02; done; echo second; exit 7";
        let running = cluster.master.submit(&job(command));
        cluster.master.wait_status(running.job_id, "Running");
        let id = running.job_id.to_string();
        let mut waits = Client::start(cluster, &masters, &["wait", &id]);
        let mut follows = Client::start(cluster, &masters, &["logs", "-f", &id]);
        follows.wait_for("first\n");
        waits.wait_for_an_answer();
        cluster.master.daemon().kill();
        second.wait_until_there();
        for client in [&waits, &follows] {
            until_true("the client to say that its master is gone", || client.complained().contains("does not answer"));
        }
        let payload = cluster.footprint().process("sh -c");
        fs::write(format!("/proc/{}/root/workspace/over", payload.pid), "").expect("end the command");
        assert_eq!(follows.exit_code(), Some(0), "{}", follows.complained());
        assert_eq!(follows.said(), "first\nsecond\n");
        assert_eq!(waits.exit_code(), Some(7), "{}", waits.complained());
        assert_eq!(waits.said(), format!("{id}\tFailed\texit code 7\n"));
        cluster.master.daemon().restart_waiting();
    });
}

/// A master that answers the two calls of a submission, as that of job `id`, and is gone.
fn dies_once_it_took(id: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for end_of_request in ["\r\n\r\n", "}\n"] {
            let (mut stream, _) = listener.accept().expect("accept");
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(end_of_request.as_bytes()) && stream.read(&mut byte).expect("read") > 0 {
                request.extend(byte);
            }
            let body = format!("jobId   {id}\n\n");
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).expect("answer");
        }
    });
    addr
}

#[test]
fn a_client_whose_master_dies_as_soon_as_it_took_the_job_waits_for_it_with_another() {
    plan().run(|cluster| {
        let id = cluster.master.submit(&job("exit 7")).job_id;
        let masters = [dies_once_it_took(id), cluster.master.addr()];
        let mut client = Client::start(cluster, &masters, &["submit", "--wait", "true"]);
        assert_eq!(client.exit_code(), Some(7), "{}", client.complained());
        assert_eq!(client.said(), format!("{id}\n"));
    });
}

#[test]
fn a_standby_answers_nobody_says_who_it_waits_for_and_can_be_stopped() {
    plan().run(|cluster| {
        let mut second = standby(cluster);
        assert!(!second.is_there());
        let first = cluster.master.addr().to_string();
        assert!(second.log().contains(&format!("the master at {first}, process ")), "{}", second.log());
        second.daemon().stop();
        assert_eq!(claims(cluster), 1, "one that only waited has claimed nothing");
    });
}

#[test]
fn a_second_master_that_is_not_to_wait_is_refused_and_told_who_is_there() {
    plan().run(|cluster| {
        let mut second = std::process::Command::new(tests::daemon::binary("berth-master"));
        second.args(["--listen", "127.0.0.1:0", "--state-dir"]).arg(state_dir(cluster));
        let output = tests::daemon::run_to_end(&mut second);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let first = cluster.master.addr().to_string();
        assert!(!output.status.success() && said.contains(&first) && said.contains("--wait"), "{said}");
    });
}

#[test]
fn one_who_waits_for_a_folder_that_is_not_there_is_refused_and_does_not_make_it() {
    Plan::without_nodes().run(|cluster| {
        let missing = cluster.sandbox().folder("mnt").join("share");
        let mut master = std::process::Command::new(tests::daemon::binary("berth-master"));
        let output = tests::daemon::run_to_end(master.arg("--wait").arg("--state-dir").arg(&missing));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("mount the share"), "{said}");
        assert!(!missing.exists());
    });
}

#[test]
fn a_master_that_was_stopped_keeps_its_place_until_it_is_killed() {
    plan().run(|cluster| {
        let mut second = standby(cluster);
        let running = cluster.master.submit(&job("sleep 91005; echo done"));
        cluster.master.wait_status(running.job_id, "Running");
        cluster.master.daemon().freeze(true);
        cluster.footprint().process("sleep 91005").signal(Signal::KILL);
        until_true("the task to end unheard", || cluster.nodes[0].get("/resource")["tasks"] == 0);
        let all = cluster.footprint().processes();
        let waits = all.iter().find(|process| process.pid == second.daemon().pid()).expect("the standby");
        // It sleeps between one question and the next.
        let asked = waits.times_asleep() + 5;
        until_true("the standby to have asked again and again", || waits.times_asleep() >= asked);
        assert!(!second.is_there(), "a lock is not given up by one that sleeps");
        assert_eq!(claims(cluster), 1);
        cluster.master.daemon().kill();
        second.wait_until_there();
        assert_eq!(second.wait_final(running.job_id).outcome(), "Finished");
        second.daemon().stop();
        cluster.master.daemon().restart();
    });
}

#[test]
fn a_standby_that_cannot_begin_yet_says_why_and_tries_again() {
    plan().run(|cluster| {
        let kept = cluster.run(&job("true"));
        let mut second = standby(cluster);
        let (claims, aside) = (state_dir(cluster).join("claims"), state_dir(cluster).join("aside"));
        cluster.master.daemon().freeze(true);
        fs::rename(&claims, &aside).and_then(|()| fs::write(&claims, "")).unwrap_or_else(|error| panic!("{error}"));
        cluster.master.daemon().kill();
        until("the standby to say why it waits", || {
            let said = second.log();
            if said.contains("waiting for the state dir") && said.contains(": cannot make a folder for the claim ") {
                Ok(())
            } else {
                Err(said)
            }
        });
        fs::remove_file(&claims).and_then(|()| fs::rename(&aside, &claims)).unwrap_or_else(|error| panic!("{error}"));
        second.wait_until_there();
        assert_eq!(second.job(kept.job_id), kept);
        second.daemon().stop();
        cluster.master.daemon().restart();
    });
}

/// As on a share whose lock was lost: what is locked is another file, and so is the database, which SQLite locks as well.
fn lose_the_lock(cluster: &Cluster) {
    let dir = state_dir(cluster);
    for name in ["lock", "master.db", "master.db-wal"] {
        let (file, copy) = (dir.join(name), dir.join(format!("{name}.copy")));
        let replaced = fs::copy(&file, &copy).and_then(|_| fs::rename(&copy, &file));
        replaced.unwrap_or_else(|error| panic!("cannot replace {}: {error}", file.display()));
    }
}

#[test]
fn a_master_whose_lock_was_lost_answers_no_submission_once_another_has_claimed_and_ends() {
    plan().run(|cluster| {
        let kept = cluster.master.submit(&job("true"));
        cluster.master.wait_final(kept.job_id);
        let mut second = standby(cluster);
        cluster.master.daemon().freeze(true);
        lose_the_lock(cluster);
        second.wait_until_there();
        second.wait_nodes_ready(1);
        cluster.master.daemon().freeze(false);
        let refused =
            tests::http::Request::post("/job/create").json(&job("echo twice")).try_send(cluster.master.addr());
        assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status >= 500), "it must not promise anything");
        assert!(!cluster.master.daemon().wait_for_its_end().success());
        let said = cluster.master.log();
        assert!(said.contains("this master's place is taken, and it stops"), "{said}");
        let next = second.run(&job("echo once"));
        assert_eq!((next.job_id, next.outcome().as_str()), (kept.job_id + 1, "Finished"));
        second.daemon().stop();
        cluster.master.daemon().restart();
        assert_eq!(cluster.master.job(next.job_id), next);
    });
}

#[test]
fn what_a_master_orders_late_is_refused_by_the_node_and_ends_it() {
    plan().run(|cluster| {
        let first = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(first.job_id, "Running");
        let mut second = standby(cluster);
        cluster.master.daemon().freeze(true);
        lose_the_lock(cluster);
        second.wait_until_there();
        second.wait_nodes_ready(1);
        // As if the share showed the first nothing of this: the node alone is in its way.
        let claims = state_dir(cluster).join("claims");
        fs::rename(claims.join("2"), claims.join("hidden")).unwrap_or_else(|error| panic!("{error}"));
        cluster.master.daemon().freeze(false);
        // Its poll comes back by itself, and is followed by another.
        assert!(!cluster.master.daemon().wait_for_its_end().success());
        let said = cluster.master.log();
        assert!(said.contains("node 0 says: term ") && said.contains(" is over"), "{said}");
        fs::rename(claims.join("hidden"), claims.join("2")).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(second.job(first.job_id).status, "Running", "and nothing of it was done");
        second.kill(first.job_id).expect(200);
        assert_eq!(second.wait_final(first.job_id).outcome(), "Killed");
        until("no task to be left", || {
            let tasks = cluster.nodes[0].get("/resource")["tasks"].clone();
            if tasks == 0 { Ok(()) } else { Err(tasks) }
        });
        second.daemon().stop();
        cluster.master.daemon().restart();
    });
}
