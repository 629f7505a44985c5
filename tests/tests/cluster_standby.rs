//! A second master on a real GlusterFS volume: however the first one ends, all that it answered is there and runs once,
//! what runs goes on, and the first never speaks again.
//!
//! One cluster and one test, since both take long: two hosts' masters take turns, each act ends the one that speaks in
//! another way, and at the end the books are balanced over all acts.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::gluster::{Gluster, STATE_DIR_ON_SHARE};
use tests::http::{Connection, Request};
use tests::job::{Job, job_with};
use tests::ledger::runs;
use tests::machine::Machine;
use tests::wait::{until, until_none, until_true};

/// How a master is found among the processes of its machine.
const MASTER: &str = "berth-master --state-dir";
/// Serves one mount of the volume.
const MOUNT: &str = "--process-name fuse";
/// Jobs that are answered just before a master's end, and just after.
const ANSWERED: usize = 10;
/// The nodes whose hosts were cut off at some time.
const WERE_CUT_OFF: [i64; 2] = [1, 2];
/// What no master has promised.
const UNANSWERED: &str = "unanswered";

fn small(name: &str, command: &str) -> Value {
    let fields = [("name", json!(name)), ("resource.cpu", json!(0.1)), ("resource.mem", json!(32))];
    job_with(&format!("echo ran $BERTH_JOB_ID; {command}"), &fields)
}

fn quick() -> Value {
    small("quick", "true")
}

/// Runs until it is told to end.
fn stays() -> Value {
    small("stays", "trap end=1 USR1; while [ -z \"$end\" ]; do sleep 0.1; done; true")
}

/// What was promised, over all acts.
struct Books<'g> {
    gluster: &'g Gluster,
    /// The jobs that were answered, in that order.
    answered: Vec<u64>,
    /// Those of them that run until they are told to end; some on each node.
    staying: Vec<u64>,
}

impl Books<'_> {
    fn submit(&mut self, jobs: &[Value]) -> Vec<u64> {
        let ids = self.gluster.submit_all(jobs);
        assert_eq!(ids.len(), jobs.len());
        self.answered.extend(&ids);
        ids
    }

    /// Jobs that run for as long as the acts do.
    fn begin(&mut self) {
        self.staying = self.submit(&vec![stays(); 6]);
        for &id in &self.staying {
            until_true(format!("job {id} to run"), || self.gluster.job(id).status == "Running");
        }
        let nodes: BTreeSet<i64> = self.staying.iter().map(|&id| self.gluster.job(id).node_id).collect();
        assert_eq!(nodes, BTreeSet::from([1, 2, 3]), "some on every node");
    }

    /// Jobs that are answered by a master whose end is near.
    fn submit_last(&mut self) {
        self.submit(&vec![quick(); ANSWERED]);
    }

    /// The master on that machine speaks: it has all that was answered, what runs has stayed as it was, and what is new
    /// has numbers of its own.
    fn taken_over_by(&mut self, machine: &Machine) {
        self.gluster.turn_to(machine);
        let there: BTreeSet<u64> = self.gluster.jobs().iter().map(|job| job.job_id).collect();
        let lost: Vec<&u64> = self.answered.iter().filter(|id| !there.contains(id)).collect();
        assert!(lost.is_empty(), "{lost:?} were answered and are gone");
        self.those_that_stay_are_as_they_were();
        let highest = self.answered.iter().max().copied();
        let new = self.submit(&vec![quick(); ANSWERED]);
        assert!(new.iter().min().copied() > highest, "{new:?} after {highest:?}");
        until_true("the new master to end a job", || new.iter().any(|&id| self.gluster.job(id).is_final()));
    }

    fn those_that_stay_are_as_they_were(&self) {
        for &id in &self.staying {
            let job = self.gluster.job(id);
            assert_eq!((job.status.as_str(), job.attempt), ("Running", 1), "job {id}");
        }
    }

    /// Ends all, and balances: each job that was answered is there under its number, has ended well, and has run once.
    fn close(self, unanswered: &[&str]) {
        let gluster = self.gluster;
        gluster.wait_nodes_ready();
        self.those_that_stay_are_as_they_were();
        for &id in &self.staying {
            gluster.signal(&gluster.job(id), Signal::USR1);
        }
        let jobs = gluster.wait_final(&self.answered);
        let bad: Vec<&Job> =
            jobs.iter().filter(|job| (job.outcome().as_str(), job.attempt) != ("Finished", 1)).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        let numbers: BTreeSet<u64> = self.answered.iter().copied().collect();
        assert_eq!(numbers.len(), self.answered.len(), "a number was given out twice");
        let others: Vec<Job> = gluster.jobs().into_iter().filter(|job| !numbers.contains(&job.job_id)).collect();
        assert!(others.iter().all(|job| !unanswered.contains(&job.name.as_str())), "came late: {others:#?}");
        assert!(others.is_empty(), "{others:#?}");
        let ran = runs(&gluster.machines[2].file("/mnt/share"));
        let twice: Vec<_> = ran.iter().filter(|(_, runs)| runs.len() != 1).collect();
        assert!(twice.is_empty(), "ran more than once: {twice:?}");
        assert!(ran.keys().all(|id| numbers.contains(id)), "ran and was never answered: {ran:?}");
        // What a host prints while it is cut off may be lost. That it ran is told by its end.
        let silent = jobs.iter().filter(|job| !ran.contains_key(&job.job_id));
        let silent: Vec<&Job> = silent.filter(|job| !WERE_CUT_OFF.contains(&job.node_id)).collect();
        assert!(silent.is_empty(), "never ran: {silent:#?}");
    }
}

/// Who claimed the state dir, and in which term, one life after the other; as host 3 sees it.
fn claims(gluster: &Gluster) -> Vec<(u64, String)> {
    let folder = gluster.machines[2].file(STATE_DIR_ON_SHARE).join("claims");
    let read = |number: usize| -> Option<(u64, String)> {
        let claim: Value = serde_json::from_slice(&fs::read(folder.join(number.to_string())).ok()?).ok()?;
        let (_, host) = claim["by"].as_str()?.rsplit_once(" on ")?;
        Some((claim["term"].as_u64()?, host.to_owned()))
    };
    (1..).map_while(read).collect()
}

#[track_caller]
fn answers_no(what: &str, answer: io::Result<tests::http::Response>) {
    if let Ok(answer) = answer {
        assert!(answer.status >= 500, "{what} was answered: {answer:?}");
    }
}

fn wait_until_it_waits(machine: &Machine, said_before: usize, for_whom: &str) {
    until(format!("the master on {} to wait", machine.name()), || {
        let said = machine.log("berth-master").split_off(said_before);
        if said.contains("waiting for") && said.contains(&format!(" on {for_whom}")) { Ok(()) } else { Err(said) }
    });
}

/// Starts a master on that machine, which waits for the one that speaks.
fn start_second(gluster: &Gluster, machine: &Machine, first: &Machine) {
    let before = machine.log("berth-master").len();
    gluster.start_standby(machine);
    wait_until_it_waits(machine, before, first.name());
}

/// Waits until the master there has ended by itself; its last words.
fn last_words(machine: &Machine) -> String {
    until_none(format!("the master on {} to end", machine.name()), || machine.find(MASTER));
    machine.log("berth-master").lines().last().unwrap_or_default().to_owned()
}

fn report(act: &str, since: Instant) {
    eprintln!("{act}: the other master spoke after {:.1} s", since.elapsed().as_secs_f64());
}

#[test]
#[ignore = "wants GlusterFS: scripts/test cluster"]
fn whatever_ends_the_first_master_the_second_has_all_that_was_answered_runs_nothing_twice_and_is_alone() {
    Gluster::of_readme(|gluster| {
        let [first, _, third] = &gluster.machines[..] else { panic!("three machines") };
        first.stop_daemon("berth-master");
        third.run(&format!("mkdir {STATE_DIR_ON_SHARE}"));
        gluster.start_standby(first);
        gluster.turn_to(first);
        let mut books = Books { gluster, answered: Vec::new(), staying: Vec::new() };
        books.begin();
        while_the_first_lives_the_second_waits_and_says_so(gluster);
        a_first_that_is_killed_is_replaced(&mut books);
        a_first_whose_mount_is_gone_ends_and_is_replaced(&mut books);
        a_first_that_is_cut_off_answers_nothing_is_replaced_and_ends(&mut books);
        a_first_that_slept_through_it_all_neither_answers_nor_orders_what_it_was_asked(&mut books);
        books.close(&[UNANSWERED]);
        let (terms, hosts): (Vec<u64>, Vec<String>) = claims(gluster).into_iter().unzip();
        assert_eq!(hosts, ["gfs01", "gfs02", "gfs01", "gfs02", "gfs01"], "one life after the other");
        assert!(terms.is_sorted_by(|earlier, later| earlier < later), "{terms:?}");
    });
}

fn while_the_first_lives_the_second_waits_and_says_so(gluster: &Gluster) {
    let [first, second, _] = &gluster.machines[..] else { panic!("three machines") };
    start_second(gluster, second, first);
    let refused = gluster.ask_of(second, Request::get("/node/table"));
    assert_eq!(refused.err().map(|error| error.kind()), Some(io::ErrorKind::ConnectionRefused), "it listens");
    assert_eq!(claims(gluster).len(), 1, "one that only waits has claimed nothing");
}

fn a_first_that_is_killed_is_replaced(books: &mut Books<'_>) {
    let [first, second, _] = &books.gluster.machines[..] else { panic!("three machines") };
    books.submit_last();
    let killed = Instant::now();
    assert_eq!(first.kill(MASTER), 1);
    books.taken_over_by(second);
    report("SIGKILL to the master", killed);
}

fn a_first_whose_mount_is_gone_ends_and_is_replaced(books: &mut Books<'_>) {
    let [first, second, _] = &books.gluster.machines[..] else { panic!("three machines") };
    start_second(books.gluster, first, second);
    books.submit_last();
    let killed = Instant::now();
    assert_eq!(second.kill(MOUNT), 1);
    books.taken_over_by(first);
    report("SIGKILL to the mount's process", killed);
    let said = last_words(second);
    eprintln!("the one whose mount was gone: {said}");
    assert!(said.contains(" ERROR cannot "), "{said}");
    second.run("umount -l /mnt/share");
    books.gluster.wait_mounted(second);
}

fn a_first_that_is_cut_off_answers_nothing_is_replaced_and_ends(books: &mut Books<'_>) {
    let gluster = books.gluster;
    let [first, second, _] = &gluster.machines[..] else { panic!("three machines") };
    start_second(gluster, second, first);
    books.submit_last();
    let cut = Instant::now();
    gluster.cut(first);
    let asked = gluster.ask_of(first, Request::post("/job/create").json(&small(UNANSWERED, "true")));
    answers_no("a submission behind the cut", asked.and_then(|mut asked| asked.response()));
    books.taken_over_by(second);
    report("the host's cable cut", cut);
    gluster.heal(first);
    let said = last_words(first);
    eprintln!("the one that was cut off: {said}");
    assert!(said.contains(" ERROR "), "{said}");
    gluster.wait_nodes_ready();
    gluster.wait_mounted(first);
    books.those_that_stay_are_as_they_were();
}

/// As a virtual machine that is paused: it wakes up where the volume can be written again, with a kill and a submission in
/// its hands and open files that GlusterFS lets it write.
fn a_first_that_slept_through_it_all_neither_answers_nor_orders_what_it_was_asked(books: &mut Books<'_>) {
    let gluster = books.gluster;
    let [first, second, _] = &gluster.machines[..] else { panic!("three machines") };
    start_second(gluster, first, second);
    // What only two bricks have whole would be out of reach without one of them.
    gluster.wait_healed();
    books.submit_last();
    assert_eq!(second.freeze(MASTER), 1);
    let ask = |request: Request| -> Connection {
        gluster.ask_of(second, request).unwrap_or_else(|error| panic!("cannot ask a master that sleeps: {error}"))
    };
    let mut kill = ask(Request::post(&format!("/job/kill/{}", books.staying[0])));
    let mut submission = ask(Request::post("/job/create").json(&small(UNANSWERED, "true")));
    let cut = Instant::now();
    gluster.cut(second);
    books.taken_over_by(first);
    report("the host's cable cut, its master asleep", cut);
    gluster.heal(second);
    gluster.wait_mounted(second);
    second.thaw(MASTER);
    answers_no("a kill", kill.response());
    answers_no("a submission", submission.response());
    let said = last_words(second);
    eprintln!("the one that slept: {said}");
    // By the claim after its own, by the first node it spoke to, or by what was under way on the volume as it fell asleep.
    let why = ["this master's place is taken, and it stops: ", "Transport endpoint is not connected", "disk I/O error"];
    assert!(why.iter().any(|why| said.contains(why)), "{said}");
}
