//! The server and the client on real loopback sockets, driven by a real `mio::Poll`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use super::*;

/// No wait in these tests is longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server in a thread of its own, with the routes below, until it is dropped.
struct Served {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(limits: Limits) -> Served {
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let registry = poll.registry().try_clone().unwrap();
        let mut server = Server::bind("127.0.0.1:0".parse().unwrap(), limits, registry, 1..2000).unwrap();
        let addr = server.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut parked = Vec::new();
            let mut closed = 0;
            while !stopped.load(Ordering::Acquire) {
                turn(&mut poll, &mut server);
                while let Some((id, request)) = server.next_request() {
                    route(&mut server, id, &request, &mut parked, closed);
                }
                while let Some(id) = server.next_closed() {
                    closed += 1;
                    parked.retain(|parked| *parked != id);
                    server.close(id, Instant::now());
                }
            }
        });
        Served { addr, stop, waker, thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends these bytes, then reads until the server closes.
    fn say(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes.as_ref());
        read_to_end(&mut stream)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A server that the test itself drives.
fn by_hand(limits: Limits) -> (Poll, Server) {
    let poll = Poll::new().unwrap();
    let registry = poll.registry().try_clone().unwrap();
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), limits, registry, 1..100).unwrap();
    (poll, server)
}

fn turn(poll: &mut Poll, server: &mut Server) {
    turn_ahead(poll, server, Duration::ZERO);
}

/// A turn that takes it to be so much later.
fn turn_ahead(poll: &mut Poll, server: &mut Server, ahead: Duration) {
    let mut events = Events::with_capacity(64);
    let wait = server.next_deadline().map_or(PATIENCE, |deadline| deadline.saturating_duration_since(Instant::now()));
    poll.poll(&mut events, Some(wait)).unwrap();
    let now = Instant::now() + ahead;
    for event in &events {
        if server.owns(event.token()) {
            server.ready(event, now);
        }
    }
    server.expire(now);
}

/// How much of what was sent lies there to be read at a time is the kernel's choice: 64 KiB at first. Here a turn is less.
fn small_turns() -> Limits {
    Limits { turn_bytes: 16 << 10, ..Limits::default() }
}

/// Sends as much as the kernel takes before the other side reads on; how much it was.
fn fill(stream: &mut TcpStream) -> usize {
    match stream.write(&vec![b'x'; 1_000_000]) {
        Ok(sent) => sent,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) => panic!("cannot send: {error}"),
    }
}

/// Turns until there is more to read at once.
fn turn_until_there_is_more(poll: &mut Poll, server: &mut Server) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        turn(poll, server);
        if server.next_deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            return;
        }
        assert!(Instant::now() < give_up, "all there was to read was read");
    }
}

/// `/echo` sends the body back, `/park` never answers, `/closed` says how many clients went away,
/// `/stream` sends three pieces, `/big` sends `?n=` bytes.
fn route(server: &mut Server, id: ConnectionId, request: &Request, parked: &mut Vec<ConnectionId>, closed: usize) {
    let now = Instant::now();
    match request.path.as_str() {
        "/park" => parked.push(id),
        "/parked" => server.respond(id, Response::text(200, parked.len().to_string()), now),
        "/open" => server.respond(id, Response::text(200, server.open_connections().to_string()), now),
        "/closed" => server.respond(id, Response::text(200, closed.to_string()), now),
        "/echo" => server.respond(id, Response::bytes(200, "text/plain", request.body.clone()), now),
        "/big" => {
            let count = request.query.get("n").and_then(|n| n.parse().ok()).unwrap_or(0);
            server.respond(id, Response::bytes(200, "text/plain", vec![b'x'; count]), now);
        }
        "/stream" => {
            let head = StreamHead { status: 200, headers: Vec::new(), length: None };
            server.start_stream(id, &head, now);
            for piece in ["one ", "two ", "three"] {
                server.stream(id, piece.as_bytes(), now);
            }
            server.finish_stream(id, now);
        }
        "/thread" => {
            let Some(mut stream) = server.hand_over(id) else { return };
            std::thread::spawn(move || stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap());
        }
        path => server.respond(id, Response::text(200, format!("{} {path}", request.method)), now),
    }
}

fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset behind the answer is no news here: what was read before it is what the client saw.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

/// Reads one answer with a Content-Length off a connection that stays.
fn read_answer(stream: &mut TcpStream) -> (u16, String) {
    let limits = Limits::default();
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        if let Some((head, length)) = read_response_head(&bytes, false, &limits).unwrap() {
            let mut decoder = BodyDecoder::new(head.body, u64::MAX);
            let mut body = Vec::new();
            decoder.take(&bytes[length..], &mut body).unwrap();
            while !decoder.is_done() {
                let count = stream.read(&mut piece).unwrap();
                decoder.take(&piece[..count], &mut body).unwrap();
            }
            return (head.status, String::from_utf8(body).unwrap());
        }
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the connection ended before an answer");
        bytes.extend_from_slice(&piece[..count]);
    }
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("")
}

/// Asks again and again until the answer is this one.
fn wait_until(served: &Served, path: &str, answer: &str) {
    let give_up = Instant::now() + PATIENCE;
    let mut stream = served.connect();
    loop {
        // One write: pieces would wait for each other's acknowledgement.
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
        let (_, said) = read_answer(&mut stream);
        if said == answer {
            return;
        }
        assert!(Instant::now() < give_up, "{path} still says {said:?}, not {answer:?}");
    }
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let served = Served::start(Limits::default());
    let mut stream = served.connect();
    for round in 0..3 {
        write!(stream, "GET /a{round} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut stream), (200, format!("GET /a{round}")));
    }
    stream.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").unwrap();
    stream.write_all(b"llo").unwrap();
    assert_eq!(read_answer(&mut stream), (200, "hello".into()));
}

#[test]
fn pipelined_requests_are_answered_one_by_one_in_order() {
    let served = Served::start(Limits::default());
    let burst: String = (0..200).map(|n| format!("GET /r{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    let mut stream = served.connect();
    stream.write_all(burst.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let said = read_to_end(&mut stream);
    assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 200, "{said}");
    assert!(said.find("/r198").unwrap() < said.find("/r199").unwrap());
}

#[test]
fn a_get_may_have_a_body_and_a_body_may_be_chunked() {
    let served = Served::start(Limits::default());
    let get = "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 12\r\n\r\n{\"taskId\":7}";
    assert!(served.say(get).ends_with("\r\n\r\n{\"taskId\":7}"));
    let put = "POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
               3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
    assert!(served.say(put).ends_with("\r\n\r\nabcde"));
}

#[test]
fn a_1_0_client_is_answered_and_its_connection_closed() {
    let served = Served::start(Limits::default());
    let said = served.say("GET /x HTTP/1.0\r\n\r\n");
    assert!(said.contains("Connection: close\r\n") && said.ends_with("GET /x"), "{said}");
    let said = served.say("GET /stream HTTP/1.0\r\n\r\n");
    assert!(said.ends_with("\r\n\r\none two three") && !said.contains("chunked"), "{said}");
}

#[test]
fn an_answer_to_head_has_the_length_and_no_body() {
    let served = Served::start(Limits::default());
    let said = served.say("HEAD /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(said.contains("Content-Length: 7\r\n") && said.ends_with("\r\n\r\n"), "{said}");
    let said = served.say("HEAD /stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(said.contains("chunked") && said.ends_with("\r\n\r\n"), "{said}");
}

#[test]
fn a_stream_is_chunked_and_the_connection_lives_on() {
    let served = Served::start(Limits::default());
    let mut stream = served.connect();
    for _ in 0..2 {
        stream.write_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut stream), (200, "one two three".into()));
    }
}

#[test]
fn a_refused_client_reads_why_although_it_is_still_sending() {
    let served = Served::start(Limits::default());
    let mut large = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n".to_vec();
    large.resize(5_000_000, b'x');
    let said = served.say(&large);
    assert_eq!(status(&said), "413", "{said}");
    assert!(said.contains(r#"{"error":{"code":"bad_input","message":"#) && said.contains("Connection: close"));
    let endless = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X-Filler: yes\r\n".repeat(100_000));
    assert_eq!(status(&served.say(endless)), "431");
    assert_eq!(status(&served.say(format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 20)))), "414");
    let said = served.say("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(said.starts_with("HTTP/1.1 405 ") && said.contains("Allow: GET, HEAD, POST\r\n"), "{said}");
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_or_the_refusal() {
    let served = Served::start(Limits::default());
    let mut stream = served.connect();
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: ";
    write!(stream, "{head}2\r\n\r\n").unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").unwrap();
    assert_eq!(read_answer(&mut stream), (200, "ok".into()));
    assert_eq!(status(&served.say(format!("{head}5000000\r\n\r\n"))), "413");
}

#[test]
fn empty_lines_before_a_request_come_to_an_end() {
    let served = Served::start(Limits::default());
    let get = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&served.say(format!("{}{get}", "\r\n".repeat(4 << 10)))), "200");
    assert_eq!(status(&served.say("\r\n".repeat((4 << 10) + 1))), "414");
}

#[test]
fn of_one_that_has_sent_much_only_a_part_is_read_in_a_turn() {
    let (mut poll, mut server) = by_hand(Limits { linger: PATIENCE, ..small_turns() });
    let addr = server.local_addr().unwrap();
    let connect = || {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    // As much as the kernel takes, before the server has read any of it.
    let refused_while_sending = b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let large_body = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n".to_vec();
    for start in [refused_while_sending, large_body] {
        let mut busy = connect();
        busy.write_all(&start).unwrap();
        let sent = fill(&mut busy);
        assert!(sent > 2 * small_turns().turn_bytes, "the kernel takes {sent} bytes");
        turn_until_there_is_more(&mut poll, &mut server);
        let mut other = connect();
        other.write_all(b"GET /y HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (_, request) = loop {
            turn(&mut poll, &mut server);
            if let Some(request) = server.next_request() {
                break request;
            }
        };
        assert_eq!(request.path, "/y");
        // The first has gone on, and is still heard a part at a time.
        fill(&mut busy);
        turn_until_there_is_more(&mut poll, &mut server);
    }
}

#[test]
fn who_is_gone_as_soon_as_it_has_asked_is_known_to_be_gone() {
    let mut poll = Poll::new().unwrap();
    let registry = poll.registry().try_clone().unwrap();
    let mut server = Server::bind("127.0.0.1:0".parse().unwrap(), Limits::default(), registry, 1..10).unwrap();
    let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    // What comes next finds it accepted, and in the middle of a head.
    client.write_all(b"GET /park HTTP/1.1\r\n").unwrap();
    while server.open_connections() == 0 {
        turn(&mut poll, &mut server);
    }
    // Both before the server looks again, so that one event tells of both, or of the end first.
    client.write_all(b"Host: a\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let asked = loop {
        turn(&mut poll, &mut server);
        if let Some((asked, _)) = server.next_request() {
            break asked;
        }
    };
    let give_up = Instant::now() + PATIENCE;
    let gone = loop {
        if let Some(gone) = server.next_closed() {
            break gone;
        }
        assert!(Instant::now() < give_up, "no event tells of it again");
        turn(&mut poll, &mut server);
    };
    assert_eq!(gone, asked);
}

#[test]
fn slow_and_silent_clients_are_closed_by_their_deadlines() {
    let short = Duration::from_millis(100);
    let served = Served::start(Limits { idle: short, ..Limits::default() });
    assert_eq!(served.say(""), "");
    assert_eq!(served.say("\r\n\r\n"), "");
    // Not the same server: who is slow to begin would be closed there as idle.
    let served = Served::start(Limits { head_time: short, body_time: short, ..Limits::default() });
    assert_eq!(status(&served.say("GET / HT")), "408");
    assert_eq!(status(&served.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab")), "408");
    let mut dripping = served.connect();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && dripping.write_all(b"G").is_ok() {
        dripping.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        if matches!(dripping.read(&mut [0; 64]), Ok(0..)) {
            break;
        }
    }
    assert!(begun.elapsed() < PATIENCE, "each dripped byte won more time");
}

#[test]
fn a_reader_that_takes_nothing_is_dropped_and_others_are_answered_meanwhile() {
    let served = Served::start(Limits { write_stall: Duration::from_millis(200), ..Limits::default() });
    let mut stalled = served.connect();
    stalled.write_all(b"GET /big?n=50000000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until(&served, "/x", "GET /x");
    // The one that asks is the only one left.
    wait_until(&served, "/open", "1");
    let mut bytes = Vec::new();
    let _ = stalled.read_to_end(&mut bytes);
    assert!(bytes.len() < 50_000_000, "the whole answer came to a reader that did not read");
}

#[test]
fn a_client_that_leaves_its_poll_is_noticed() {
    let served = Served::start(Limits::default());
    let mut poll = served.connect();
    poll.write_all(b"GET /park HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    wait_until(&served, "/parked", "1");
    drop(poll);
    wait_until(&served, "/parked", "0");
    wait_until(&served, "/closed", "1");
}

#[test]
fn the_request_of_a_client_that_was_reset_is_handed_out_no_more() {
    let (mut poll, mut server) = by_hand(Limits::default());
    let mut stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").unwrap();
    while server.open_connections() == 0 {
        turn(&mut poll, &mut server);
    }
    stream.peek(&mut [0]).unwrap();
    stream.write_all(b"ok").unwrap();
    while !server.has_requests() {
        turn(&mut poll, &mut server);
    }
    // Closed with the interim answer unread.
    drop(stream);
    while server.open_connections() > 0 {
        turn(&mut poll, &mut server);
    }
    assert!(server.next_request().is_none() && server.next_closed().is_some());
}

#[test]
fn who_finishes_before_its_request_is_handed_out_is_told_of_after_it_too() {
    let (mut poll, mut server) = by_hand(Limits::default());
    let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    client.write_all(b"GET /park HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    while !server.has_requests() {
        turn(&mut poll, &mut server);
    }
    client.shutdown(Shutdown::Write).unwrap();
    let told = loop {
        turn(&mut poll, &mut server);
        if let Some(told) = server.next_closed() {
            break told;
        }
    };
    assert_eq!(server.next_request().map(|(asked, _)| asked), Some(told));
    assert_eq!((server.next_closed(), server.next_closed()), (Some(told), None));
}

#[test]
fn a_client_that_shuts_down_its_side_is_still_answered() {
    let served = Served::start(Limits::default());
    let mut stream = served.connect();
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_end(&mut stream).ends_with("GET /x"));
    let mut half = served.connect();
    half.write_all(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(status(&read_to_end(&mut half)), "400");
}

#[test]
fn a_handed_over_socket_is_blocking_and_answered_from_elsewhere() {
    let served = Served::start(Limits::default());
    assert!(served.say("GET /thread HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("hi"));
}

#[test]
fn beyond_the_bound_idle_connections_make_room_and_busy_ones_do_not() {
    let served = Served::start(Limits { connections: 3, ..Limits::default() });
    let mut idle = served.connect();
    idle.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut idle).0, 200);
    let mut busy = Vec::new();
    for _ in 0..3 {
        let mut stream = served.connect();
        stream.write_all(b"GET /park HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        busy.push(stream);
    }
    assert_eq!(idle.read(&mut [0; 8]).unwrap(), 0, "the idle connection should have made room");
    let give_up = Instant::now() + PATIENCE;
    while status(&served.say("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) != "503" {
        assert!(Instant::now() < give_up, "a fourth connection was never turned away");
    }
    drop(busy);
    while status(&served.say("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")) != "200" {
        assert!(Instant::now() < give_up, "no connection was taken after the others had gone");
    }
}

#[test]
fn one_whose_request_never_becomes_whole_makes_room_sooner_than_one_that_was_answered() {
    let (mut poll, mut server) = by_hand(Limits { connections: 2, ..Limits::default() });
    let addr = server.local_addr().unwrap();
    let mut kept = TcpStream::connect(addr).unwrap();
    let mut ask = |poll: &mut Poll, server: &mut Server| {
        kept.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let id = loop {
            turn(poll, server);
            if let Some((id, _)) = server.next_request() {
                break id;
            }
        };
        server.respond(id, Response::text(200, "x"), Instant::now());
        assert_eq!(read_answer(&mut kept).1, "x");
    };
    ask(&mut poll, &mut server);
    for start in ["", "GET /", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab"] {
        let mut slow = TcpStream::connect(addr).unwrap();
        slow.write_all(start.as_bytes()).unwrap();
        while server.open_connections() < 2 {
            turn(&mut poll, &mut server);
        }
        let newcomer = TcpStream::connect(addr).unwrap();
        // What was on its way so long is overdue.
        turn_ahead(&mut poll, &mut server, Duration::from_secs(2));
        slow.set_read_timeout(Some(PATIENCE)).unwrap();
        let told = slow.read(&mut [0]);
        assert!(
            !matches!(&told, Ok(1..)) && !told.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            "{start:?}"
        );
        drop(newcomer);
        while server.open_connections() > 1 {
            turn(&mut poll, &mut server);
        }
        ask(&mut poll, &mut server);
    }
}

#[test]
fn who_is_turned_away_keeps_nobody_waiting_who_comes_after() {
    let served = Served::start(Limits { connections: 1, linger: 4 * PATIENCE, ..Limits::default() });
    let mut busy = served.connect();
    busy.write_all(b"GET /park HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut turned_away: Vec<TcpStream> = (0..100).map(|_| served.connect()).collect();
    for stream in &mut turned_away {
        let mut said = [0; 12];
        stream.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"HTTP/1.1 503");
    }
}

#[test]
fn all_bodies_together_are_bounded() {
    let served = Served::start(Limits { all_bodies_bytes: 1 << 20, ..Limits::default() });
    let mut holding = served.connect();
    holding.write_all(b"POST /park HTTP/1.1\r\nHost: a\r\nContent-Length: 800000\r\n\r\n").unwrap();
    holding.write_all(&vec![b'x'; 800_000]).unwrap();
    wait_until(&served, "/parked", "1");
    let post = |count: usize| {
        let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {count}\r\n\r\n");
        let mut bytes = head.into_bytes();
        bytes.resize(bytes.len() + count, b'y');
        served.say(&bytes)
    };
    assert_eq!(status(&post(800_000)), "503");
    assert_eq!(status(&post(100_000)), "200");
}

#[test]
fn all_answers_together_are_bounded_and_the_slowest_reader_is_dropped() {
    // The kernel takes some MiB of each answer; what it leaves of two is more than the bound.
    let served = Served::start(Limits { all_answers_bytes: 50_000_000, ..Limits::default() });
    let mut slow: Vec<TcpStream> = (0..3).map(|_| served.connect()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /big?n=40000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 9]).unwrap();
    }
    wait_until(&served, "/open", "2");
    let lengths = slow.iter_mut().map(|stream| {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes.len()
    });
    let whole: Vec<bool> = lengths.map(|length| length > 40_000_000).collect();
    assert_eq!(whole, [false, false, true]);
}

#[test]
fn a_request_that_comes_byte_by_byte_is_the_same_request() {
    let served = Served::start(Limits::default());
    let mut stream = served.connect();
    stream.set_nodelay(true).unwrap();
    for text in [
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ] {
        for byte in text.as_bytes() {
            stream.write_all(&[*byte]).unwrap();
        }
        assert_eq!(read_answer(&mut stream), (200, "hello".into()));
    }
}

#[test]
fn a_server_with_nothing_connected_has_no_deadline() {
    let (mut poll, mut server) = by_hand(Limits::default());
    assert_eq!(server.next_deadline(), None);
    let stream = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    while server.open_connections() == 0 {
        turn(&mut poll, &mut server);
    }
    assert!(server.next_deadline().is_some());
    drop(stream);
    while server.open_connections() > 0 {
        turn(&mut poll, &mut server);
    }
    assert_eq!(server.next_deadline(), None);
}

/// A client and its poll, driven until an outcome is there.
struct Asking {
    poll: Poll,
    client: Client,
}

impl Asking {
    fn new(tokens: usize) -> Asking {
        Asking::with(tokens, Limits::default())
    }

    fn with(tokens: usize, limits: Limits) -> Asking {
        let poll = Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        Asking { poll, client: Client::new(registry, 0..tokens, limits) }
    }

    fn send(&mut self, addr: SocketAddr, request: ClientRequest, within: Duration) -> ExchangeId {
        let now = Instant::now();
        self.client.send((addr, Queue::Calls), request, now + within, now)
    }

    fn turn(&mut self, longest: Duration) {
        let mut events = Events::with_capacity(16);
        let wait = self.client.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        self.poll.poll(&mut events, Some(wait.map_or(longest, |wait| wait.min(longest)))).unwrap();
        for event in &events {
            self.client.ready(event, Instant::now());
        }
        self.client.expire(Instant::now());
    }

    fn outcome(&mut self) -> Outcome {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(outcome) = self.client.next_outcome() {
                return outcome;
            }
            assert!(Instant::now() < give_up, "no outcome");
            self.turn(PATIENCE);
        }
    }

    /// Goes on until something of the other side is there.
    fn until<T>(&mut self, mut there: impl FnMut() -> std::io::Result<T>) -> T {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match there() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result.unwrap(),
            }
            assert!(Instant::now() < give_up, "nothing came");
            self.turn(Duration::from_millis(1));
        }
    }

    /// The path that is asked for next on this connection.
    fn path(&mut self, stream: &mut TcpStream) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let mut byte = [0];
            self.until(|| stream.read_exact(&mut byte));
            head.push(byte[0].into());
        }
        head.split(' ').nth(1).unwrap().to_owned()
    }

    /// Reads what events tell of until there is more to read at once: how much lies there at a time is the kernel's choice.
    fn read_until_there_is_more(&mut self) {
        let (give_up, mut events) = (Instant::now() + PATIENCE, Events::with_capacity(16));
        while self.client.next_deadline().is_some_and(|deadline| deadline > Instant::now()) {
            self.poll.poll(&mut events, Some(PATIENCE)).unwrap();
            events.iter().for_each(|event| self.client.ready(event, Instant::now()));
        }
        let at_once = self.client.next_deadline().is_some() && Instant::now() < give_up;
        assert!(at_once, "all there was to read was read");
    }

    fn ask(&mut self, addr: SocketAddr, request: ClientRequest) -> Result<ClientResponse, ExchangeError> {
        let id = self.send(addr, request, PATIENCE);
        let outcome = self.outcome();
        assert_eq!(outcome.id, id);
        outcome.answer
    }
}

fn text(response: &ClientResponse) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}

#[test]
fn the_client_reuses_its_connection() {
    let served = Served::start(Limits { connections: 1, ..Limits::default() });
    let mut asking = Asking::new(8);
    for _ in 0..3 {
        let answer = asking.ask(served.addr, ClientRequest::post_json("/echo", b"{}".to_vec())).unwrap();
        assert_eq!((answer.status, text(&answer)), (200, "{}"));
        assert_eq!(text(&asking.ask(served.addr, ClientRequest::get("/stream")).unwrap()), "one two three");
    }
    assert_eq!(asking.client.kept_connections(), 1);
}

#[test]
fn interim_answers_are_skipped_and_come_to_an_end() {
    let say = |interim: usize| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1000]);
            let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(interim);
            let _ = write!(stream, "{interim}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
            let _ = stream.read(&mut [0]);
        });
        let answer = Asking::new(1).ask(addr, ClientRequest::get("/"));
        server.join().unwrap();
        answer
    };
    assert_eq!(text(&say(16).unwrap()), "hi");
    assert!(matches!(say(17), Err(ExchangeError::Framing { cause: FramingError::HeadTooLarge, .. })));
}

#[test]
fn of_an_answer_that_is_long_only_a_part_is_read_in_a_turn_and_the_rest_without_an_event() {
    let mut asking = Asking::with(1, small_turns());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    asking.send(listener.local_addr().unwrap(), ClientRequest::get("/"), PATIENCE);
    let (mut server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    // As much as the kernel takes, before the client has read any of it.
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    server.write_all(&head).unwrap();
    let sent = fill(&mut server);
    assert!(sent > 2 * small_turns().turn_bytes, "the kernel takes {sent} bytes");
    server.shutdown(Shutdown::Write).unwrap();
    asking.read_until_there_is_more();
    let answer = asking.outcome().answer.unwrap();
    assert_eq!(answer.body.len(), sent);
}

#[test]
fn a_kept_connection_that_its_server_closed_is_replaced() {
    let mut asking = Asking::new(8);
    let first = Served::start(Limits::default());
    let addr = first.addr;
    asking.ask(addr, ClientRequest::get("/x")).unwrap();
    drop(first);
    // Nobody listens now, and the kept connection is dead: the error is the new connection's.
    asking.send(addr, ClientRequest::get("/x"), PATIENCE);
    let Outcome { answer, unheard, .. } = asking.outcome();
    assert!(matches!(answer, Err(ExchangeError::Connect { .. })), "{answer:?}");
    assert!(unheard, "the server may have read it before it closed");
    assert_eq!(asking.client.next_deadline(), None);
}

#[test]
fn more_exchanges_than_connections_wait_their_turn() {
    let served = Served::start(Limits::default());
    let mut asking = Asking::new(3);
    let mut sent: Vec<_> =
        (0..50).map(|n| asking.send(served.addr, ClientRequest::get(format!("/{n}")), PATIENCE)).collect();
    while !sent.is_empty() {
        let Outcome { id, answer, unheard } = asking.outcome();
        answer.unwrap();
        assert!(!unheard);
        sent.retain(|other| *other != id);
    }
}

#[test]
fn one_address_gets_so_many_calls_at_once_the_rest_in_order_as_they_end_and_nobody_else_waits_for_them() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut asking = Asking::new(8);
    let accept = |asking: &mut Asking| {
        let mut stream = asking.until(|| listener.accept()).0;
        stream.set_nonblocking(true).unwrap();
        (asking.path(&mut stream), stream)
    };
    let none_connects = |asking: &mut Asking| {
        asking.turn(Duration::ZERO);
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    };
    let sent: Vec<_> = (0..6).map(|n| asking.send(addr, ClientRequest::get(format!("/{n}")), 4 * PATIENCE)).collect();
    let (path, mut first) = accept(&mut asking);
    assert_eq!(path, "/0");
    let (path, mut second) = accept(&mut asking);
    assert_eq!(path, "/1");
    none_connects(&mut asking);

    let other = Served::start(Limits::default());
    assert_eq!(text(&asking.ask(other.addr, ClientRequest::get("/x")).unwrap()), "GET /x");
    let now = Instant::now();
    for path in ["/poll", "/next-poll"] {
        asking.client.send((addr, Queue::Polls), ClientRequest::get(path), now + 4 * PATIENCE, now);
    }
    let (path, mut polled) = accept(&mut asking);
    assert_eq!(path, "/poll");
    none_connects(&mut asking);

    let answer = |stream: &mut TcpStream, header: &str| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{header}\r\n").unwrap();
    };
    answer(&mut second, "");
    assert_eq!(asking.outcome().id, sent[1]);
    assert_eq!(asking.path(&mut second), "/2", "over the same connection");
    answer(&mut first, "Connection: close\r\n");
    assert_eq!(asking.outcome().id, sent[0]);
    let (path, mut third) = accept(&mut asking);
    assert_eq!(path, "/3");
    // One that waits leaves its line, and one that does not makes room.
    asking.client.cancel(sent[4]);
    none_connects(&mut asking);
    asking.client.cancel(sent[2]);
    let (path, mut fourth) = accept(&mut asking);
    assert_eq!(path, "/5");
    none_connects(&mut asking);

    answer(&mut polled, "");
    asking.outcome().answer.unwrap();
    assert_eq!(asking.path(&mut polled), "/next-poll");
    for (stream, id) in [(&mut fourth, sent[5]), (&mut third, sent[3])] {
        answer(stream, "");
        assert_eq!(asking.outcome().id, id);
    }
    answer(&mut polled, "");
    asking.outcome().answer.unwrap();
    asking.send(addr, ClientRequest::get("/last"), PATIENCE);
    none_connects(&mut asking);
}

#[test]
fn a_server_that_refuses_a_long_line_of_calls_at_once_exhausts_no_stack() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut asking = Asking::new(8);
    for n in 0..20_000 {
        asking.send(addr, ClientRequest::get(format!("/{n}")), 4 * PATIENCE);
    }
    let silent: Vec<_> = (0..Queue::Calls.at_once()).map(|_| listener.accept().unwrap()).collect();
    drop((listener, silent));
    for _ in 0..20_000 {
        asking.outcome().answer.unwrap_err();
    }
    assert_eq!(asking.client.next_deadline(), None);
}

#[test]
fn an_exchange_has_one_outcome_by_its_deadline_and_none_once_cancelled() {
    let served = Served::start(Limits::default());
    let mut asking = Asking::new(8);
    let cancelled = asking.send(served.addr, ClientRequest::get("/park"), PATIENCE);
    asking.client.cancel(cancelled);
    let late = asking.send(served.addr, ClientRequest::get("/park"), Duration::from_millis(50));
    let Outcome { id, answer, unheard } = asking.outcome();
    assert_eq!((id, unheard), (late, true));
    assert!(matches!(answer, Err(ExchangeError::TooLate { .. })));
    wait_until(&served, "/parked", "0");
    assert_eq!(asking.client.next_deadline(), None);
}

#[test]
fn a_server_that_refuses_connections_is_told_in_words() {
    let addr = Served::start(Limits::default()).addr;
    let mut asking = Asking::new(1);
    asking.send(addr, ClientRequest::get("/"), PATIENCE);
    let Outcome { answer, unheard, .. } = asking.outcome();
    assert!(!unheard, "nobody was there to be told");
    let error = answer.unwrap_err();
    assert!(error.to_string().starts_with(&format!("connect to {addr}: Connection refused")), "{error}");
}
