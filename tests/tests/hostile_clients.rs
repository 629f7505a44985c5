//! Clients that mean harm, or are merely broken: each is refused or dropped, memory stays flat, and
//! others are answered meanwhile. Every attack is made on the master's gate and on the node's server.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tests::cluster::{Cluster, Plan};
use tests::daemon::{binary, run_to_end};
use tests::http::{Connection, Request, raw};
use tests::job::{job, job_with};
use tests::node::NodePlan;
use tests::sandbox::Sandbox;
use tests::wait::{until, until_true};

/// More resident memory than this an attack must not win, whatever it sends.
const FLAT_KIB: u64 = 16 * 1024;

/// More than this in bytes no attack may send before it is hung up on: the largest body in the smallest chunks, what a refused
/// peer may still send, and what the kernel keeps for both.
const MOST_TAKEN: usize = 128 << 20;

/// A daemon under attack.
struct Victim {
    addr: SocketAddr,
    /// A path it answers well.
    path: &'static str,
}

impl Victim {
    /// Everyone else is answered.
    #[track_caller]
    fn answers(&self) {
        Request::get(self.path).accept("application/json").send(self.addr).expect(200);
    }

    fn connect(&self) -> Connection {
        Connection::open(self.addr).unwrap_or_else(|error| panic!("connect to {}: {error}", self.addr))
    }

    /// A good request that keeps its connection.
    fn request(&self) -> String {
        format!("GET {} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\n\r\n", self.path, self.addr)
    }
}

/// Runs the attack on the master and on a node at once: both answer after it, and neither has grown.
fn against_both(attack: impl Fn(&Victim) + Sync) {
    Cluster::small(|cluster| {
        let victims = victims(cluster);
        for victim in &victims {
            victim.answers();
        }
        let before = [cluster.master.daemon().resident_kib(), cluster.node().daemon().resident_kib()];
        all_at_once(&victims, |victim| attack(victim));
        for victim in &victims {
            victim.answers();
        }
        let after = [cluster.master.daemon().resident_kib(), cluster.node().daemon().resident_kib()];
        for (before, after) in before.into_iter().zip(after) {
            assert!(after < before + FLAT_KIB, "memory went from {before} to {after} KiB");
        }
    });
}

/// Does something to each, in a thread a piece, and is done when all are.
fn all_at_once<T: Sync>(each: &[T], act: impl Fn(&T) + Sync) {
    thread::scope(|scope| {
        for one in each {
            scope.spawn(|| act(one));
        }
    });
}

fn victims(cluster: &mut Cluster) -> [Victim; 2] {
    [
        Victim { addr: cluster.master.addr(), path: "/node/table" },
        Victim { addr: cluster.node().addr(), path: "/resource" },
    ]
}

/// Sends `piece` again and again until the server hangs up, however it answered before; others are answered meanwhile. A
/// refused peer may be read from for a moment, so that it sees the refusal; what it sends then must cost nothing.
#[track_caller]
fn flood_until_cut_off(victim: &Victim, start: &[u8], piece: &[u8]) {
    let mut connection = victim.connect();
    connection.send(start).expect("send");
    let mut sent = 0;
    until(
        format!("{} to hang up on {:?}", victim.addr, String::from_utf8_lossy(&piece[..piece.len().min(20)])),
        || {
            for _ in 0..1000 {
                match connection.stream().write(piece) {
                    Ok(written) => sent += written,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return Ok(()),
                }
            }
            assert!(sent < MOST_TAKEN, "{} took {sent} bytes and did not hang up", victim.addr);
            victim.answers();
            Err(sent)
        },
    );
}

#[test]
fn a_giant_content_length_is_refused_at_its_announcement() {
    against_both(|victim| {
        for length in ["1000000000000", "18446744073709551615", "4194305"] {
            let request = format!("POST /x HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\nabc", victim.addr);
            assert_eq!(raw(victim.addr, request.as_bytes()).map(|answer| answer.status), Some(413), "{length}");
        }
    });
}

#[test]
fn an_endless_head_is_cut_off() {
    let floods = [
        ("GET / HTTP/1.1\r\nHost: x\r\n", "X-More: and more\r\n".repeat(100)),
        ("GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", "a".repeat(4096)),
        ("GET /", "a".repeat(4096)),
        ("", "A".repeat(4096)),
        ("", "\r\n".repeat(2048)),
    ];
    against_both(|victim| {
        all_at_once(&floods, |(start, piece)| flood_until_cut_off(victim, start.as_bytes(), piece.as_bytes()));
    });
}

#[test]
fn an_endless_chunked_body_is_cut_off() {
    let chunks = [
        format!("1000\r\n{}\r\n", "a".repeat(4096)),
        "1\r\na\r\n".repeat(500),
        format!("1;{}\r\na\r\n", "x".repeat(3000)),
    ];
    against_both(|victim| {
        let head = format!("POST /x HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\r\n", victim.addr);
        all_at_once(&chunks, |piece| flood_until_cut_off(victim, head.as_bytes(), piece.as_bytes()));
    });
}

#[test]
fn heads_and_bodies_that_drip_are_dropped_and_cost_nobody_anything() {
    Cluster::small(|cluster| {
        let victims = victims(cluster);
        let starts = [
            "G",
            "GET / HTTP/1.1\r\nHost: x\r\nX: ",
            "POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n",
        ];
        let mut dripping = Vec::new();
        for (victim, start) in victims.iter().flat_map(|victim| starts.map(|start| (victim, start))) {
            for _ in 0..20 {
                let mut connection = victim.connect();
                connection.send(start.as_bytes()).expect("send");
                dripping.push(connection);
            }
        }
        let mut last_drip = Instant::now();
        until("every dripping client to be dropped", || {
            if last_drip.elapsed() > Duration::from_millis(500) {
                last_drip = Instant::now();
                // What still takes a byte has not been hung up on.
                dripping.retain(|connection| connection.stream().write_all(b"a").is_ok());
                victims.iter().for_each(Victim::answers);
            }
            if dripping.is_empty() { Ok(()) } else { Err(dripping.len()) }
        });
    });
}

#[test]
fn a_body_of_two_lengths_is_never_read_two_ways() {
    against_both(|victim| {
        let smuggled = victim.request();
        let heads = [
            "Content-Length: 4\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 4",
            "Content-Length: 4\r\nContent-Length: 0",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding : chunked",
        ];
        for head in heads {
            let mut connection = victim.connect();
            let request =
                format!("POST {} HTTP/1.1\r\nHost: {}\r\n{head}\r\n\r\n0\r\n\r\n{smuggled}", victim.path, victim.addr);
            connection.send(request.as_bytes()).expect("send");
            let answers = String::from_utf8_lossy(&connection.rest().expect("answered and hung up on")).into_owned();
            assert!(answers.starts_with("HTTP/1.1 400") || answers.starts_with("HTTP/1.1 501"), "{head}: {answers}");
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{head}: the smuggled request was answered: {answers}");
        }
    });
}

#[test]
fn five_seconds_of_pipelining_pile_nothing_up() {
    against_both(|victim| {
        let connection = victim.connect();
        connection.stream().set_write_timeout(Some(Duration::from_millis(100))).expect("a time-out");
        let requests = victim.request().repeat(50);
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            // A server that stops reading is right, and so is one that hangs up.
            match connection.stream().write(requests.as_bytes()) {
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    victim.answers();
                }
                Err(_) => break,
            }
        }
        victim.answers();
    });
}

#[test]
fn pipelined_requests_of_a_patient_client_are_answered_in_order() {
    against_both(|victim| {
        let mut connection = victim.connect();
        let missing = format!("GET /missing HTTP/1.1\r\nHost: {}\r\n\r\n", victim.addr);
        connection.send([victim.request(), missing, victim.request()].concat().as_bytes()).expect("send");
        let statuses = [(); 3].map(|()| connection.response().map(|answer| answer.status).ok());
        assert_eq!(statuses, [Some(200), Some(404), Some(200)]);
    });
}

#[test]
fn five_hundred_idle_keep_alive_clients_hold_up_nobody() {
    against_both(|victim| {
        // All are sent before one is read, so that nobody is idle for as long as all the others take.
        let ask = |idle: &mut [Connection]| {
            for connection in idle.iter_mut() {
                connection.send(victim.request().as_bytes()).expect("send");
            }
            for connection in idle.iter_mut() {
                connection.response().unwrap_or_else(|error| panic!("{}: {error}", victim.addr)).expect(200);
            }
        };
        let mut idle: Vec<Connection> = (0..500).map(|_| victim.connect()).collect();
        victim.answers();
        ask(&mut idle);
        victim.answers();
        idle.reverse();
        ask(&mut idle);
    });
}

#[test]
fn a_burst_of_clients_is_answered_to_the_last() {
    against_both(|victim| {
        let ask = || {
            let mut connection = victim.connect();
            connection.send(victim.request().as_bytes()).expect("send");
            let answer = connection.response().expect("an answer").expect(200);
            // Kept open, as browsers do.
            (connection, answer.status)
        };
        thread::scope(|scope| {
            let burst: Vec<_> = (0..100).map(|_| scope.spawn(ask)).collect();
            for client in burst {
                client.join().expect("answered");
            }
        });
    });
}

#[test]
fn a_crowd_of_requests_that_never_become_whole_shuts_out_nobody_of_another_address() {
    /// More than either daemon serves at once.
    const CROWD: usize = 1100;
    const ITS_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    Cluster::small(|cluster| {
        let victims = victims(cluster);
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("the hard limit");
        for victim in &victims {
            let ask = |connection: &mut Connection| {
                connection.send(victim.request().as_bytes()).expect("send");
                connection.response().unwrap_or_else(|error| panic!("{}: {error}", victim.addr)).expect(200);
            };
            let mut kept = victim.connect();
            ask(&mut kept);
            let crowd = (0..CROWD).map(|_| {
                let mut connection = Connection::open_from(ITS_ADDRESS, victim.addr).expect("connect");
                connection.send(b"GET / HTTP/1.1\r\nX: ").expect("send");
                connection
            });
            let crowd: Vec<Connection> = crowd.collect();
            for _ in 0..20 {
                victim.answers();
            }
            ask(&mut kept);
            let is_there = |connection: &&Connection| {
                connection.stream().set_nonblocking(true).expect("a flag");
                let told = connection.stream().peek(&mut [0]);
                told.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            };
            let there = crowd.iter().filter(is_there).count();
            assert!(there > CROWD / 2, "{}: only {there} of the crowd were there to the end", victim.addr);
        }
    });
}

#[test]
fn exhausted_file_descriptors_are_free_again() {
    for open_files in [128, 144, 160, 256] {
        let few = Some(format!("ulimit -n {open_files}"));
        let mut plan = Plan::of_nodes([NodePlan { before_exec: few.clone(), ..NodePlan::default() }]);
        plan.master.before_exec = few;
        plan.run(|cluster| {
            for victim in victims(cluster) {
                let mut crowd: Vec<Connection> = (0..400).map(|_| victim.connect()).collect();
                for (n, connection) in crowd.iter_mut().enumerate() {
                    let whole = victim.request();
                    connection.send(if n % 2 == 0 { whole.as_bytes() } else { b"GET " }).expect("send");
                }
                // Nobody is promised an answer while every descriptor is taken; once they are free, all are.
                drop(crowd);
                until_true("an answer after the crowd has left", || {
                    Request::get(victim.path).try_send(victim.addr).is_ok_and(|answer| answer.status == 200)
                });
            }
            assert!(cluster.master.daemon().is_up() && cluster.node().daemon().is_up(), "with {open_files} files");
            assert_eq!(cluster.run(&job("echo still at work")).outcome(), "Finished", "with {open_files} files");
        });
    }
}

#[test]
fn a_master_with_too_few_descriptors_for_itself_says_how_many_it_needs() {
    let sandbox = Sandbox::new();
    let master = binary("berth-master");
    let command = format!(
        "ulimit -n 64; exec {} --listen 127.0.0.1:0 --state-dir {}",
        master.display(),
        sandbox.folder("state").display()
    );
    let output = run_to_end(Command::new("/bin/sh").args(["-c", &command]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cannot serve with 64 open files; hint: ulimit -n"), "{said}");
    assert!(!output.status.success());
}

#[test]
fn clients_that_vanish_leave_no_descriptor_behind() {
    /// Fewer than would be left by the clients, more than a daemon opens for itself once it is busy.
    const SLACK: usize = 100;
    Cluster::small(|cluster| {
        let victims = victims(cluster);
        let before = [cluster.master.daemon().open_fds(), cluster.node().daemon().open_fds()];
        for victim in &victims {
            for start in
                ["", "GET / HT", &victim.request(), "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"]
            {
                for _ in 0..100 {
                    victim.connect().send(start.as_bytes()).expect("send");
                }
            }
            victim.answers();
        }
        until("the descriptors of vanished clients to be closed", || {
            let now = [cluster.master.daemon().open_fds(), cluster.node().daemon().open_fds()];
            if now[0] < before[0] + SLACK && now[1] < before[1] + SLACK { Ok(()) } else { Err((before, now)) }
        });
    });
}

#[test]
fn readers_who_never_read_cost_a_bounded_buffer() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("yes 0123456789abcdef | head -c 30000000"));
        let task = u64::try_from(ended.task_id).expect("a task");
        let victims = victims(cluster);
        let before = [cluster.master.daemon().resident_kib(), cluster.node().daemon().resident_kib()];
        let paths =
            [format!("/job/details/{}", ended.job_id), format!("/task/output?taskId={task}&stream=stdout&offset=0")];
        let mut lazy = Vec::new();
        for (victim, path) in victims.iter().zip(paths) {
            for _ in 0..20 {
                let mut connection = victim.connect();
                connection
                    .send(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", victim.addr).as_bytes())
                    .expect("send");
                lazy.push(connection);
            }
            victim.answers();
        }
        let after = [cluster.master.daemon().resident_kib(), cluster.node().daemon().resident_kib()];
        assert!(
            after[0] < before[0] + 2 * FLAT_KIB && after[1] < before[1] + FLAT_KIB,
            "{before:?} KiB became {after:?}"
        );
        drop(lazy);
        victims.iter().for_each(Victim::answers);
    });
}

#[test]
fn jobs_run_while_the_master_is_under_attack() {
    Cluster::small(|cluster| {
        let victims = victims(cluster);
        let mut crowd = Vec::new();
        for victim in &victims {
            for _ in 0..100 {
                let mut connection = victim.connect();
                connection.send(b"POST /job/create HTTP/1.1\r\nHost: x\r\nContent-Le").expect("send");
                crowd.push(connection);
            }
        }
        let jobs = cluster.master.submit_all(&vec![job_with("true", &[("resource.mem", json!(16))]); 10]);
        for job in jobs {
            assert_eq!(cluster.master.wait_final(job.job_id).outcome(), "Finished");
        }
    });
}
