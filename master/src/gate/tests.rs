//! The gate with a real tiny_http behind it. Each fault of tiny_http has a claim here. Claims about a
//! whole process, its memory and its file descriptors, are tested in a process of their own.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use wire::http::{BodyDecoder, ConnectionId, Limits, read_response_head};

use super::*;

mod standing;

/// No wait in these tests is longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Workers behind tiny_http, as the master has them.
const WORKERS: usize = 8;

/// A door that test and handler meet at.
#[derive(Default)]
struct Door {
    opened: Mutex<usize>,
    changed: Condvar,
}

impl Door {
    fn open(&self) {
        *self.opened.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    /// Waits until it was opened `times` times.
    fn wait(&self, times: usize) -> bool {
        let guard = self.opened.lock().unwrap();
        let closed = |opened: &mut usize| *opened < times;
        let (opened, _) = self.changed.wait_timeout_while(guard, PATIENCE, closed).unwrap();
        *opened >= times
    }
}

/// A gate with tiny_http and its workers behind it, until it is dropped.
struct Master {
    gate: Option<Gate>,
    addr: SocketAddr,
    behind: Arc<Behind>,
    news: Receiver<News>,
    workers: Vec<JoinHandle<()>>,
    state_dir: PathBuf,
}

/// Waits until a counter has reached a number.
#[track_caller]
fn wait_for(counter: &AtomicUsize, number: usize) {
    wait_until(|| counter.load(Ordering::SeqCst) >= number);
}

#[track_caller]
fn wait_until(is_so: impl Fn() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < give_up, "it did not come to it");
        std::thread::yield_now();
    }
}

/// What the handlers behind the gate share with the test.
struct Behind {
    http: tiny_http::Server,
    next_piece: Door,
    writer_failed: Door,
    slow: Door,
    handled: AtomicUsize,
    probed: AtomicUsize,
}

impl Master {
    fn start(limits: Limits) -> Master {
        let (tell, news) = channel();
        let mut master = Master::start_with_room(limits, move |news| drop(tell.send(news)));
        master.news = news;
        master
    }

    /// The news goes to this room, and not to [`Master::news`].
    fn start_with_room(limits: Limits, tell: impl FnMut(News) + Send + 'static) -> Master {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("berth-gate-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let state_dir = std::env::temp_dir().join(name);
        let (listener, path) = listen_privately(&state_dir).unwrap();
        let behind = Arc::new(Behind {
            http: tiny_http::Server::from_listener(listener, None).unwrap(),
            next_piece: Door::default(),
            writer_failed: Door::default(),
            slow: Door::default(),
            handled: AtomicUsize::new(0),
            probed: AtomicUsize::new(0),
        });
        let workers = (0..WORKERS).map(|_| spawn_worker(&behind)).collect();
        let gate = start("127.0.0.1:0".parse().unwrap(), path, limits, 0, tell).unwrap();
        Master { addr: gate.local_addr(), gate: Some(gate), behind, news: channel().1, workers, state_dir }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends these bytes, then reads until the gate closes.
    fn shout(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes.as_ref());
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = self.connect();
        ask(&mut stream, path);
        read_answer(&mut stream)
    }

    /// What the gate tells next of clients whose answers stand.
    fn news(&self) -> News {
        self.news.recv_timeout(PATIENCE).expect("no news")
    }

    /// A client whose answer stands, and what it is called.
    fn stand(&self) -> (TcpStream, ConnectionId) {
        let mut stream = self.connect();
        ask(&mut stream, "/stand");
        match self.news() {
            News::Came(client, what) => {
                assert_eq!(what, "what it follows");
                (stream, client)
            }
            other => panic!("{other:?}"),
        }
    }

    fn say(&self, what: Say) {
        self.gate.as_ref().unwrap().voice().say([what]);
    }

    /// Somebody else is answered, and need not wait until one of the gate's own deadlines has passed.
    fn assert_others_are_answered(&self) {
        assert_eq!(self.get("/hello"), (200, "hello".into()));
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.stop();
        }
        self.behind.slow.open();
        for _ in &self.workers {
            self.behind.http.unblock();
        }
        for worker in self.workers.drain(..) {
            worker.join().unwrap();
        }
        let _ = std::fs::remove_dir_all(&self.state_dir);
    }
}

fn spawn_worker(behind: &Arc<Behind>) -> JoinHandle<()> {
    let behind = Arc::clone(behind);
    std::thread::spawn(move || {
        while let Ok(request) = behind.http.recv() {
            handle(&behind, request);
        }
    })
}

fn handle(behind: &Behind, mut request: tiny_http::Request) {
    use tiny_http::Response;
    let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
    let number = query.parse().unwrap_or(0);
    let path = path.to_owned();
    let counter = if path == "/.gate" { &behind.probed } else { &behind.handled };
    counter.fetch_add(1, Ordering::SeqCst);
    let _ = match path.as_str() {
        "/hello" => request.respond(Response::from_string("hello")),
        "/echo" => {
            let mut body = Vec::new();
            request.as_reader().read_to_end(&mut body).unwrap();
            request.respond(Response::from_data(body))
        }
        "/stand" => {
            let header = tiny_http::Header::from_bytes(STANDS, "what it follows").unwrap();
            request.respond(Response::from_string("").with_header(header))
        }
        "/unread" => request.respond(Response::from_string("not read").with_status_code(400)),
        "/peer" => {
            let peer = request.headers().iter().find(|header| header.field.equiv("X-Berth-Peer"));
            let peer = peer.map(|header| header.value.to_string()).unwrap_or_default();
            request.respond(Response::from_string(peer))
        }
        "/big" => request.respond(Response::from_data(vec![b'x'; number])),
        "/slow" => {
            behind.slow.wait(1);
            request.respond(Response::from_string("slow"))
        }
        "/stream" => {
            stream_pieces(behind, request.into_writer());
            Ok(())
        }
        "/pour" => {
            pour(behind, request.into_writer());
            Ok(())
        }
        "/half" => {
            let mut writer = request.into_writer();
            writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf\r\nnonsense").unwrap();
            writer.flush()
        }
        "/nonsense" => {
            let mut writer = request.into_writer();
            writer.write_all(b"this is no HTTP\r\n\r\n").unwrap();
            writer.flush()
        }
        _ => request.respond(Response::empty(404)),
    };
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";

/// Sends one piece whenever the test opens the door, and the end after the third.
fn stream_pieces(behind: &Behind, mut writer: Box<dyn Write + Send>) {
    let mut say = |text: &str| writer.write_all(text.as_bytes()).and_then(|()| writer.flush()).unwrap();
    say(CHUNKED);
    for round in 1..=3 {
        assert!(behind.next_piece.wait(round));
        say("5\r\npiece\r\n");
    }
    say("0\r\n\r\n");
}

/// Sends pieces until nobody takes them any more.
fn pour(behind: &Behind, mut writer: Box<dyn Write + Send>) {
    let mut say = |text: &str| writer.write_all(text.as_bytes()).and_then(|()| writer.flush());
    let mut said = say(CHUNKED);
    while said.is_ok() {
        said = say("5\r\npiece\r\n");
    }
    behind.writer_failed.open();
}

fn ask(stream: &mut TcpStream, path: &str) {
    // One write: pieces would wait for each other's acknowledgement.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
}

/// Reads one answer off a connection that stays.
fn read_answer(stream: &mut TcpStream) -> (u16, String) {
    read_answers(stream, 1).remove(0)
}

/// Reads so many answers off a connection that stays; nothing may come behind them.
fn read_answers(stream: &mut TcpStream, count: usize) -> Vec<(u16, String)> {
    let (mut bytes, mut piece, mut answers) = (Vec::new(), vec![0; 65_536], Vec::new());
    while answers.len() < count {
        if let Some((answer, length)) = parse_answer(&bytes) {
            bytes.drain(..length);
            answers.push(answer);
            continue;
        }
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the connection ended before an answer: {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..count]);
    }
    assert!(bytes.is_empty(), "an answer nobody asked for: {:?}", String::from_utf8_lossy(&bytes));
    answers
}

fn parse_answer(bytes: &[u8]) -> Option<((u16, String), usize)> {
    let (head, length) = read_response_head(bytes, false, &Limits::default()).unwrap()?;
    let (mut decoder, mut body) = (BodyDecoder::new(head.body, u64::MAX), Vec::new());
    let taken = decoder.take(&bytes[length..], &mut body).unwrap();
    decoder.is_done().then(|| ((head.status, String::from_utf8(body).unwrap()), length + taken))
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("")
}

/// This process's resident memory in KiB (proc_pid_status(5)).
fn resident_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// How many of this process's file descriptors are of /dev/null, as the gate's spare ones are.
fn open_of_dev_null() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|file| file == Path::new("/dev/null"))).count()
}

/// Runs the test of that name in a process of its own, after some words of shell. True in that process.
fn alone(name: &str, before: &str) -> bool {
    if std::env::var("BERTH_TEST_ALONE").is_ok_and(|said| said == name) {
        return true;
    }
    let command = format!("{before} exec \"$0\" --exact 'gate::tests::{name}' --nocapture");
    let program = std::env::current_exe().unwrap();
    let run = Command::new("sh").arg("-c").arg(command).arg(program).env("BERTH_TEST_ALONE", name).output().unwrap();
    assert!(run.status.success(), "{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    false
}

#[test]
fn requests_go_through_and_answers_come_back() {
    let master = Master::start(Limits::default());
    let mut stream = master.connect();
    for _ in 0..20 {
        ask(&mut stream, "/hello");
        assert_eq!(read_answer(&mut stream), (200, "hello".into()));
    }
    ask(&mut stream, "/nothing");
    assert_eq!(read_answer(&mut stream), (404, String::new()));
    ask(&mut stream, "/peer");
    assert_eq!(read_answer(&mut stream).1, stream.local_addr().unwrap().to_string());
    let said = master.shout("HEAD /hello HTTP/1.0\r\n\r\n");
    assert!(said.contains("Content-Length: 5\r\n") && said.ends_with("\r\n\r\n"), "{said}");
    assert!(!said.contains("tiny"), "{said}");
}

#[test]
fn bodies_of_every_size_go_through_whole() {
    let master = Master::start(Limits::default());
    for size in [0, 1, 1024, 1025, 65_536, 4 << 20] {
        let mut stream = master.connect();
        let body = "y".repeat(size);
        write!(stream, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{body}").unwrap();
        assert!(read_answer(&mut stream) == (200, body), "{size} bytes did not come back");
    }
    let mut stream = master.connect();
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(read_answer(&mut stream), (200, "ab".into()));
    for size in [1 << 20, 8 << 20] {
        assert_eq!(master.get(&format!("/big?{size}")).1.len(), size);
    }
}

#[test]
fn a_body_nobody_reads_does_not_spoil_its_lane() {
    let master = Master::start(Limits::default());
    for _ in 0..40 {
        let mut stream = master.connect();
        write!(stream, "POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n").unwrap();
        stream.write_all(&vec![b'z'; 3_000_000]).unwrap();
        assert_eq!(read_answer(&mut stream), (400, "not read".into()));
    }
    master.assert_others_are_answered();
}

#[test]
fn a_giant_content_length_is_refused_before_tiny_http_hears_of_it() {
    let master = Master::start(Limits::default());
    let said = master.shout("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\nx");
    assert_eq!(status(&said), "413");
    master.assert_others_are_answered();
    assert_eq!(master.behind.handled.load(Ordering::SeqCst), 1);
}

#[test]
fn requests_that_could_be_read_in_two_ways_are_refused() {
    let master = Master::start(Limits::default());
    for (text, expected) in [
        ("Content-Length: 3\r\nTransfer-Encoding: chunked", "400"),
        ("Content-Length: 3\r\nContent-Length: 4", "400"),
        ("Content-Length: 3\r\nContent-Length: 3", "400"),
        ("Content-Length: 3, 3", "400"),
        ("Transfer-Encoding: gzip, chunked", "501"),
        ("X: 1\r\n folded: yes", "400"),
        ("Host: b", "400"),
    ] {
        let said = master.shout(format!("POST /echo HTTP/1.1\r\nHost: a\r\n{text}\r\n\r\nabc"));
        assert_eq!(status(&said), expected, "{text:?}: {said}");
    }
    assert_eq!(master.behind.handled.load(Ordering::SeqCst), 0);
    master.assert_others_are_answered();
}

#[test]
fn an_endless_head_ends_and_takes_no_memory() {
    if !alone("an_endless_head_ends_and_takes_no_memory", "") {
        return;
    }
    let master = Master::start(Limits::default());
    master.assert_others_are_answered();
    let before = resident_kib();
    let mut stream = master.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").unwrap();
    let piece = vec![b'x'; 1 << 20];
    let mut sent = 0;
    while sent < 200 << 20 {
        match stream.write(&piece) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    assert!(sent < 200 << 20, "all of an endless head was taken");
    master.assert_others_are_answered();
    assert!(resident_kib() < before + 8 * 1024, "{} KiB, {before} KiB before", resident_kib());
}

#[test]
fn a_dripping_head_is_ended_by_its_deadline_while_others_are_answered() {
    let master = Master::start(Limits { head_time: Duration::from_millis(300), ..Limits::default() });
    let mut dripping: Vec<TcpStream> = (0..50).map(|_| master.connect()).collect();
    let begun = Instant::now();
    while !dripping.is_empty() && begun.elapsed() < PATIENCE {
        dripping.retain_mut(|stream| {
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let goes_on = stream.write_all(b"G").is_ok();
            let told = stream.read(&mut [0; 512]);
            goes_on && matches!(told, Err(error) if error.kind() == ErrorKind::WouldBlock)
        });
        master.assert_others_are_answered();
    }
    assert!(dripping.is_empty(), "{} clients go on dripping", dripping.len());
}

#[test]
fn a_client_that_pipelines_without_end_is_held_back_and_others_are_answered() {
    let master = Master::start(Limits::default());
    let mut stream = master.connect();
    let mut reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut piece, mut read) = (vec![0; 65_536], 0);
        while let Ok(count @ 1..) = reading.read(&mut piece) {
            read += count;
        }
        read
    });
    let burst = "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
    for _ in 0..50 {
        stream.write_all(burst.as_bytes()).unwrap();
        master.assert_others_are_answered();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(reader.join().unwrap() > 5000 * 100, "not every pipelined request was answered");
}

#[test]
fn a_client_that_asks_and_never_reads_takes_no_memory() {
    if !alone("a_client_that_asks_and_never_reads_takes_no_memory", "") {
        return;
    }
    let master = Master::start(Limits::default());
    master.assert_others_are_answered();
    let before = resident_kib();
    let burst = "GET /big?100000 HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100);
    let mut deaf = master.connect();
    deaf.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0_usize;
    while let Ok(count) = deaf.write(burst.as_bytes()) {
        sent += count;
        assert!(sent < 100 << 20, "100 MiB of requests were taken from a client that reads nothing");
    }
    master.assert_others_are_answered();
    assert!(resident_kib() < before + 8 * 1024, "{} KiB, {before} KiB before", resident_kib());
}

#[test]
fn clients_come_and_go_and_memory_stays_as_it_was() {
    if !alone("clients_come_and_go_and_memory_stays_as_it_was", "") {
        return;
    }
    let master = Master::start(Limits::default());
    let round = || {
        let mut clients: Vec<TcpStream> = (0..100).map(|_| master.connect()).collect();
        for stream in &mut clients {
            ask(stream, "/big?50000");
        }
        for stream in &mut clients {
            assert_eq!(read_answer(stream).1.len(), 50_000);
        }
    };
    (0..5).for_each(|_| round());
    let before = resident_kib();
    (0..30).for_each(|_| round());
    assert!(resident_kib() < before + 4 * 1024, "{} KiB, {before} KiB before", resident_kib());
}

#[test]
fn a_process_out_of_file_descriptors_answers_again_once_there_are_some() {
    if !alone("a_process_out_of_file_descriptors_answers_again_once_there_are_some", "ulimit -n 400;") {
        return;
    }
    let before = open_of_dev_null();
    let master = Master::start(Limits::default());
    wait_for(&master.behind.probed, LANES);
    // Those it let go of for the last lane are its own again: from here on it opens and closes none by itself.
    wait_until(|| open_of_dev_null() == before + SPARE_FILES);
    let mut busy = master.connect();
    ask(&mut busy, "/slow");
    wait_for(&master.behind.handled, 1);
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    // One descriptor for a client whose connection the gate has none left to accept.
    drop(hoard.pop());
    let mut unheard = master.connect();
    ask(&mut unheard, "/hello");
    unheard.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    assert!(unheard.read(&mut [0; 64]).is_err(), "there was a descriptor left after all");
    // Who is connected is served, even by a lane that has to be replaced meanwhile.
    for path in ["/nonsense", "/hello", "/nonsense", "/hello"] {
        ask(&mut busy, path);
    }
    master.behind.slow.open();
    let said: Vec<u16> = read_answers(&mut busy, 5).iter().map(|(status, _)| *status).collect();
    assert_eq!(said, [200, 502, 200, 502, 200]);
    // Idle now, it makes room for the one that waits.
    unheard.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_answer(&mut unheard), (200, "hello".into()));
    drop(hoard);
    for _ in 0..40 {
        master.assert_others_are_answered();
    }
}

#[test]
fn five_hundred_idle_clients_cost_nobody_an_answer() {
    let master = Master::start(Limits::default());
    let mut idle: Vec<TcpStream> = (0..500).map(|_| master.connect()).collect();
    for stream in &mut idle {
        ask(stream, "/hello");
    }
    for stream in &mut idle {
        assert_eq!(read_answer(stream).0, 200);
    }
    for _ in 0..20 {
        master.assert_others_are_answered();
    }
    // Each of them may ask again, all at once.
    for stream in &mut idle {
        ask(stream, "/hello");
    }
    for stream in &mut idle {
        assert_eq!(read_answer(stream), (200, "hello".into()));
    }
}

#[test]
fn a_streamed_answer_arrives_piece_by_piece_before_its_end() {
    let master = Master::start(Limits::default());
    let mut stream = master.connect();
    ask(&mut stream, "/stream");
    let mut said = String::new();
    let mut piece = [0; 1024];
    for round in 1..=3 {
        master.behind.next_piece.open();
        while said.matches("5\r\npiece\r\n").count() < round {
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "the stream ended early: {said}");
            said.push_str(std::str::from_utf8(&piece[..count]).unwrap());
        }
        assert_eq!(said.matches("piece").count(), round, "a piece came before it was written");
    }
    while !said.ends_with("0\r\n\r\n") {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "no end came: {said}");
        said.push_str(std::str::from_utf8(&piece[..count]).unwrap());
    }
    ask(&mut stream, "/hello");
    assert_eq!(read_answer(&mut stream), (200, "hello".into()));
}

#[test]
fn the_writer_of_a_stream_learns_that_its_client_has_gone() {
    let master = Master::start(Limits::default());
    for round in 1..=WORKERS + 2 {
        let mut stream = master.connect();
        ask(&mut stream, "/pour");
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        drop(stream);
        assert!(master.behind.writer_failed.wait(round), "the worker goes on writing to nobody");
    }
    master.assert_others_are_answered();
}

#[test]
fn slow_readers_of_small_answers_hold_no_worker() {
    let master = Master::start(Limits::default());
    let mut slow: Vec<TcpStream> = (0..40).map(|_| master.connect()).collect();
    for stream in &mut slow {
        ask(stream, "/big?900000");
    }
    master.assert_others_are_answered();
    for stream in &mut slow {
        assert_eq!(read_answer(stream).1.len(), 900_000);
    }
}

#[test]
fn readers_of_large_answers_that_stall_are_dropped_and_give_their_lanes_back() {
    let master = Master::start(Limits { write_stall: Duration::from_millis(300), ..Limits::default() });
    let mut stalled: Vec<TcpStream> = (0..WORKERS).map(|_| master.connect()).collect();
    for stream in &mut stalled {
        stream.write_all(b"GET /big?50000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    }
    wait_for(&master.behind.handled, WORKERS);
    // Every worker writes to a client that does not read: others wait for the stall's end and no longer.
    assert_eq!(master.get("/hello"), (200, "hello".into()));
    let whole = stalled.iter().filter(|stream| {
        let (mut stream, mut bytes) = (*stream, Vec::new());
        let _ = stream.read_to_end(&mut bytes);
        bytes.len() >= 50_000_000
    });
    assert!(whole.count() < WORKERS, "every stalled reader got its whole answer");
}

#[test]
fn an_answer_that_breaks_off_shows_as_broken_and_its_lane_is_replaced() {
    let master = Master::start(Limits::default());
    for _ in 0..20 {
        assert_eq!(master.get("/nonsense").0, 502);
        let said = master.shout("GET /half HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(said.ends_with("half\r\nnons"), "{said}");
    }
    master.assert_others_are_answered();
}

#[test]
fn clients_that_leave_before_their_answer_do_not_use_up_the_lanes() {
    let master = Master::start(Limits::default());
    for _ in 0..100 {
        let mut stream = master.connect();
        ask(&mut stream, "/slow");
    }
    master.behind.slow.open();
    master.assert_others_are_answered();
}

#[test]
fn a_stopped_gate_lets_an_answer_in_progress_come_to_its_end() {
    let mut master = Master::start(Limits::default());
    let mut stream = master.connect();
    ask(&mut stream, "/hello");
    assert_eq!(read_answer(&mut stream).0, 200);
    ask(&mut stream, "/slow");
    wait_for(&master.behind.handled, 2);
    let gate = master.gate.take().unwrap();
    let stopping = std::thread::spawn(move || gate.stop());
    master.behind.slow.open();
    assert_eq!(read_answer(&mut stream), (200, "slow".into()));
    stopping.join().unwrap();
    assert!(TcpStream::connect(master.addr).is_err(), "a stopped gate still listens");
}

#[test]
fn the_private_socket_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let master = Master::start(Limits::default());
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(master.state_dir.join("gate")), 0o700);
    assert_eq!(mode(master.state_dir.join("gate/http.sock")), 0o600);
}

#[test]
fn the_file_limit_is_read_as_the_kernel_writes_it() {
    let limit = soft_file_limit(Path::new("/proc/self/limits")).unwrap();
    assert!(limit > 0);
    assert_eq!(soft_file_limit(Path::new("/dev/null")), None);
}
