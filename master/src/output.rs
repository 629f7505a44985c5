//! Reading logs: from the share where it has them, else from the node that wrote them.
//!
//! A share can hang for as long as the network likes, so its files are read by a few threads of their own, and whoever
//! waits for one waits for two seconds at most: a hung share costs an answer, never the API. Nothing is ever written,
//! and a path is made of numbers only, so none can lead elsewhere.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wire::access::Token;
use wire::http::{BodyDecoder, Limits, ResponseHead, read_response_head};
use wire::node::Answer;
use wire::{Log, NodeId, TaskId};

/// Threads that read.
pub const READERS: usize = 4;
/// Reads that may wait for a thread.
const QUEUE: usize = 64;
/// How long whoever asked waits for one piece.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much of a whole log is read at once.
const PIECE_BYTES: u64 = 512 << 10;

/// One log of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOf {
    /// The node that wrote it.
    pub node: NodeId,
    /// Its task.
    pub task: TaskId,
    /// Which of its logs.
    pub log: Log,
}

/// Which part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// So many bytes before the end.
    Tail(u64),
    /// So many bytes from this one on.
    From(u64, u64),
}

/// Bytes of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many the whole log had when it was read.
    pub total: u64,
}

/// Why a log cannot be shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Neither the share nor the node has it.
    #[error("there is no such log")]
    Missing,
    /// Nothing came in time.
    #[error("the share or the node did not answer in {} s", PATIENCE.as_secs())]
    TooSlow,
    /// So much hangs already that this was not even tried.
    #[error("the share does not answer; hint: is it mounted and its servers up?")]
    Hung,
    /// It was there and could not be read.
    #[error("cannot read it: {0}")]
    Unreadable(String),
}

/// Who is asked for a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whence {
    /// The share, and the node for what that lacks.
    Anywhere,
    /// The node alone. A share may show us for a moment how long a log was; the kernel that wrote it knows how long it is.
    Node,
}

/// Where logs are, and the threads that read them.
#[derive(Clone)]
pub struct Logs {
    places: Arc<Places>,
    queue: SyncSender<LogRead>,
    stuck: Arc<AtomicUsize>,
}

/// What the reading threads share.
struct Places {
    share: Option<PathBuf>,
    nodes: BTreeMap<NodeId, SocketAddr>,
    bearer: Option<String>,
}

/// What hears of a read's outcome, on the thread that read.
type Reply = Box<dyn FnOnce(Result<Piece, LogError>) + Send>;

/// One read, and who waits for it.
struct LogRead {
    log: LogOf,
    part: Part,
    whence: Whence,
    fate: Arc<Fate>,
    reply: Reply,
}

/// Whether a read was finished before whoever asked gave up on it: exactly one of the two comes first.
#[derive(Default)]
struct Fate(AtomicU8);

impl Fate {
    const UNDER_WAY: u8 = 0;
    const FINISHED: u8 = 1;
    const ABANDONED: u8 = 2;

    /// Whether this was first.
    fn settle(&self, fate: u8) -> bool {
        self.0.compare_exchange(Fate::UNDER_WAY, fate, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Logs {
    /// Starts the reading threads.
    pub fn start(
        share: Option<PathBuf>,
        nodes: BTreeMap<NodeId, SocketAddr>,
        token: Option<&Token>,
    ) -> io::Result<Logs> {
        Logs::pool("logs", Arc::new(Places { share, nodes, bearer: token.map(Token::bearer) }))
    }

    /// Other threads that read the same logs: what hangs in one pool does not hold up the other.
    pub fn beside(&self, name: &str) -> io::Result<Logs> {
        Logs::pool(name, Arc::clone(&self.places))
    }

    fn pool(name: &str, places: Arc<Places>) -> io::Result<Logs> {
        let stuck = Arc::new(AtomicUsize::new(0));
        let (queue, reads) = sync_channel(QUEUE);
        let reads = Arc::new(Mutex::new(reads));
        for number in 0..READERS {
            let (places, reads, stuck) = (Arc::clone(&places), Arc::clone(&reads), Arc::clone(&stuck));
            let thread = std::thread::Builder::new().name(format!("{name}-{number}")).stack_size(256 << 10);
            thread.spawn(move || places.serve(&reads, &stuck))?;
        }
        Ok(Logs { places, queue, stuck })
    }

    /// How many bytes a log has by now.
    pub fn size(&self, log: LogOf, whence: Whence) -> Result<u64, LogError> {
        let begun = self.begin(log, Part::Tail(0), whence)?;
        self.finish(&begun, Instant::now() + PATIENCE).map(|piece| piece.total)
    }

    /// At most so many bytes of a log from one on. Whoever asks waits for nothing: a reading thread tells `reply`, as
    /// late as it may be.
    pub fn look(
        &self,
        log: LogOf,
        (from, most): (u64, u64),
        whence: Whence,
        reply: impl FnOnce(Result<Piece, LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        let (part, fate) = (Part::From(from, most), Arc::default());
        self.queue.try_send(LogRead { log, part, whence, fate, reply: Box::new(reply) }).map_err(|_| LogError::Hung)
    }

    /// The ends of several logs, read side by side.
    pub fn tails<const N: usize>(&self, logs: [LogOf; N], bytes: u64) -> [Result<Piece, LogError>; N] {
        let deadline = Instant::now() + PATIENCE;
        let begun = logs.map(|log| self.begin(log, Part::Tail(bytes), Whence::Anywhere));
        begun.map(|begun| self.finish(&begun?, deadline))
    }

    /// The whole log from a byte on, to be read piece by piece.
    pub fn open(&self, log: LogOf, offset: u64) -> Result<LogStream, LogError> {
        let first = self.read(log, Part::From(offset, PIECE_BYTES))?;
        Ok(LogStream { logs: self.clone(), log, at: offset, end: first.total, first: Some(first) })
    }

    fn read(&self, log: LogOf, part: Part) -> Result<Piece, LogError> {
        let begun = self.begin(log, part, Whence::Anywhere)?;
        self.finish(&begun, Instant::now() + PATIENCE)
    }

    fn begin(&self, log: LogOf, part: Part, whence: Whence) -> Result<Waiting, LogError> {
        if self.stuck.load(Ordering::Acquire) >= READERS {
            return Err(LogError::Hung);
        }
        let (said, answer) = channel();
        let fate = Arc::new(Fate::default());
        let reply: Reply = Box::new(move |piece| drop(said.send(piece)));
        match self.queue.try_send(LogRead { log, part, whence, fate: Arc::clone(&fate), reply }) {
            Ok(()) => Ok(Waiting { answer, fate }),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(LogError::Hung),
        }
    }

    fn finish(&self, waiting: &Waiting, deadline: Instant) -> Result<Piece, LogError> {
        match waiting.answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(result) => result,
            Err(_) if waiting.fate.settle(Fate::ABANDONED) => {
                self.stuck.fetch_add(1, Ordering::AcqRel);
                Err(LogError::TooSlow)
            }
            // It was finished just now.
            Err(_) => waiting.answer.recv().unwrap_or(Err(LogError::TooSlow)),
        }
    }
}

/// A read that was begun.
struct Waiting {
    answer: Receiver<Result<Piece, LogError>>,
    fate: Arc<Fate>,
}

/// A whole log, read as it is sent.
pub struct LogStream {
    logs: Logs,
    log: LogOf,
    at: u64,
    /// Where it ended when it was opened: what is written meanwhile is for the next who asks.
    end: u64,
    first: Option<Piece>,
}

impl LogStream {
    /// How many bytes the whole log has.
    pub fn total(&self) -> u64 {
        self.end
    }

    /// The next bytes; `None` at the end.
    pub fn next_piece(&mut self) -> Result<Option<Vec<u8>>, LogError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let left = self.end - self.at;
        let piece = match self.first.take() {
            Some(piece) => piece,
            None => self.logs.read(self.log, Part::From(self.at, PIECE_BYTES.min(left)))?,
        };
        if piece.bytes.is_empty() {
            return Err(LogError::Unreadable("it became shorter while it was read".to_owned()));
        }
        self.at += piece.bytes.len() as u64;
        Ok(Some(piece.bytes))
    }
}

impl Places {
    /// A reading thread's whole life.
    fn serve(&self, reads: &Mutex<Receiver<LogRead>>, stuck: &AtomicUsize) {
        loop {
            let next = reads.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(LogRead { log, part, whence, fate, reply }) = next else { return };
            let piece = self.read(log, part, whence);
            if fate.settle(Fate::FINISHED) {
                reply(piece);
            } else {
                stuck.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    fn read(&self, log: LogOf, part: Part, whence: Whence) -> Result<Piece, LogError> {
        let share = self.share.as_ref().filter(|_| whence == Whence::Anywhere);
        let seen = share.map(|share| read_file(&path_of(share, log), part));
        let share_is_away = match seen {
            Some(Ok(piece)) => return Ok(piece),
            // What the share does not show yet, or not here, the node has.
            None => None,
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
            // Away, it may be so for us alone, and the node may have kept this log to itself meanwhile.
            Some(Err(error)) if error.raw_os_error().is_some() => Some(LogError::Unreadable(error.to_string())),
            Some(Err(error)) => return Err(LogError::Unreadable(error.to_string())),
        };
        let addr = self.nodes.get(&log.node).ok_or(LogError::Missing);
        let asked = addr.and_then(|addr| ask_node(*addr, self.bearer.as_deref(), log, part));
        match (asked, share_is_away) {
            (Err(LogError::Missing), Some(away)) => Err(away),
            (asked, _) => asked,
        }
    }
}

fn path_of(share: &Path, log: LogOf) -> PathBuf {
    wire::logs::folder(share, log.node, log.task).join(log.log.file_name())
}

fn read_file(path: &Path, part: Part) -> io::Result<Piece> {
    let mut file = open_plain(path)?;
    let total = file.metadata()?.len();
    let (start, most) = match part {
        Part::Tail(bytes) => (total.saturating_sub(bytes), bytes),
        Part::From(start, most) => (start, most),
    };
    file.seek(SeekFrom::Start(start.min(total)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    // It may have grown since it was measured.
    Ok(Piece { total: total.max(start.min(total) + bytes.len() as u64), bytes })
}

/// An open that waits for nobody (open(2)): a task that takes a lease on its own log would hold us for 45 s.
const O_NONBLOCK: i32 = 0o4000;

/// Only a plain file is a log. It is looked at before the open, and compared after, so that a symlink put there
/// meanwhile is found out.
fn open_plain(path: &Path) -> io::Result<File> {
    let no_log = || io::Error::other("it is no plain file");
    let seen = std::fs::symlink_metadata(path)?;
    if !seen.is_file() {
        return Err(no_log());
    }
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let identity = |metadata: &Metadata| (metadata.dev(), metadata.ino());
    if identity(&file.metadata()?) == identity(&seen) { Ok(file) } else { Err(no_log()) }
}

/// `GET /task/output` of a node. It sends all from the first byte asked for; we hang up when we have enough.
fn ask_node(addr: SocketAddr, bearer: Option<&str>, log: LogOf, part: Part) -> Result<Piece, LogError> {
    let unreadable = |error: io::Error| LogError::Unreadable(format!("node {} at {addr}: {error}", log.node));
    let (from, most) = match part {
        Part::Tail(bytes) => (format!("tail={bytes}"), bytes),
        Part::From(start, most) => (format!("offset={start}"), most),
    };
    let (task, stream) = (log.task, log.log.as_str());
    let authorization = bearer.map_or(String::new(), |bearer| format!("Authorization: {bearer}\r\n"));
    let request = format!(
        "GET /task/output?taskId={task}&stream={stream}&{from} HTTP/1.1\r\nHost: {addr}\r\n{authorization}\
         Connection: close\r\n\r\n"
    );
    let (head, body) = exchange(addr, &request, most).map_err(unreadable)?;
    if head.status == 200 {
        let total = head.headers.get("X-Berth-Size").and_then(|size| size.parse().ok());
        return Ok(Piece { total: total.unwrap_or(body.len() as u64), bytes: body });
    }
    match serde_json::from_slice::<Answer<()>>(&body).ok().and_then(|answer| answer.error) {
        _ if head.status == 404 => Err(LogError::Missing),
        Some(refusal) => Err(LogError::Unreadable(refusal.message)),
        None => Err(LogError::Unreadable(format!("node {} answers {}", log.node, head.status))),
    }
}

/// One request on one connection, and at most so many bytes of the answer's body.
fn exchange(addr: SocketAddr, request: &str, most: u64) -> io::Result<(ResponseHead, Vec<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut input = Vec::new();
    let limits = Limits::default();
    let (head, length) = loop {
        match read_response_head(&input, false, &limits).map_err(io::Error::other)? {
            Some(head) => break head,
            None => read_more(&mut stream, &mut input, deadline)?,
        }
    };
    input.drain(..length);
    let mut decoder = BodyDecoder::new(head.body, u64::MAX);
    let mut body = Vec::new();
    while !decoder.is_done() && (body.len() as u64) < most {
        let taken = decoder.take(&input, &mut body).map_err(io::Error::other)?;
        input.drain(..taken);
        if !decoder.is_done() && input.is_empty() && (body.len() as u64) < most {
            read_more(&mut stream, &mut input, deadline)?;
        }
    }
    body.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    Ok((head, body))
}

fn read_more(stream: &mut TcpStream, input: &mut Vec<u8>, deadline: Instant) -> io::Result<()> {
    let mut scratch = [0; 16 << 10];
    if Instant::now() >= deadline {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match stream.read(&mut scratch)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => {
            input.extend_from_slice(&scratch[..count]);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::state_dir::Scratch;

    const STDOUT: LogOf = LogOf { node: NodeId(3), task: TaskId(7), log: Log::Stdout };

    fn share_with(bytes: &[u8]) -> Scratch {
        let share = Scratch::new();
        let path = path_of(share.path(), STDOUT);
        assert!(path.ends_with("nodes/3/task7/task_stdout"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        share
    }

    fn logs(share: &Scratch) -> Logs {
        Logs::start(Some(share.path().to_owned()), BTreeMap::new(), None).unwrap()
    }

    fn all(mut stream: LogStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next_piece().unwrap() {
            bytes.extend(piece);
        }
        bytes
    }

    #[test]
    fn a_tail_is_the_end_and_says_how_long_the_whole_is() {
        let share = share_with(b"0123456789");
        let [tail] = logs(&share).tails([STDOUT], 4);
        assert_eq!(tail, Ok(Piece { bytes: b"6789".to_vec(), total: 10 }));
        let [tail] = logs(&share).tails([STDOUT], 400);
        assert_eq!(tail, Ok(Piece { bytes: b"0123456789".to_vec(), total: 10 }));
    }

    #[test]
    fn a_whole_log_comes_piece_by_piece_byte_for_byte() {
        let bytes: Vec<u8> = (0..3 * PIECE_BYTES + 11).map(|n| (n % 251) as u8).collect();
        let share = share_with(&bytes);
        let stream = logs(&share).open(STDOUT, 0).unwrap();
        assert_eq!(stream.total(), bytes.len() as u64);
        assert_eq!(all(stream), bytes);
        assert_eq!(all(logs(&share).open(STDOUT, 5).unwrap()), bytes[5..]);
        assert!(all(logs(&share).open(STDOUT, u64::MAX).unwrap()).is_empty(), "beyond the end there is nothing");
    }

    #[test]
    fn what_is_not_there_is_missing_and_what_is_no_plain_file_is_not_opened() {
        let share = share_with(b"secret");
        let missing = LogOf { task: TaskId(8), ..STDOUT };
        assert_eq!(logs(&share).tails([missing], 1), [Err(LogError::Missing)]);
        let (link, fifo) = (LogOf { log: Log::Stderr, ..STDOUT }, LogOf { log: Log::Monitor, ..STDOUT });
        std::os::unix::fs::symlink("/etc/hostname", path_of(share.path(), link)).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path_of(share.path(), fifo)).status().unwrap().success());
        for refused in logs(&share).tails([link, fifo], 1) {
            assert_eq!(refused, Err(LogError::Unreadable("it is no plain file".into())));
        }
    }

    /// A node that answers one request with this.
    fn node(answer: String) -> (SocketAddr, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = vec![0; 1000];
            let count = stream.read(&mut asked).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&asked[..count]).into_owned()
        });
        (addr, thread)
    }

    #[test]
    fn what_the_share_lacks_is_asked_of_the_node() {
        let share = Scratch::new();
        let (addr, asked) = node("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Berth-Size: 10\r\n\r\n6789".into());
        let nodes = BTreeMap::from([(STDOUT.node, addr)]);
        let logs = Logs::start(Some(share.path().to_owned()), nodes, None).unwrap();
        assert_eq!(logs.tails([STDOUT], 4), [Ok(Piece { bytes: b"6789".to_vec(), total: 10 })]);
        assert!(asked.join().unwrap().starts_with("GET /task/output?taskId=7&stream=stdout&tail=4 HTTP/1.1\r\n"));
    }

    #[test]
    fn a_look_tells_whoever_it_was_given_and_asks_the_node_alone_if_that_was_said() {
        let share = share_with(b"0123456789");
        let (addr, asked) = node("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Berth-Size: 12\r\n\r\n3456789ab".into());
        let nodes = BTreeMap::from([(STDOUT.node, addr)]);
        let logs = Logs::start(Some(share.path().to_owned()), nodes, None).unwrap().beside("looks").unwrap();
        let look = |whence| {
            let (said, result) = channel();
            logs.look(STDOUT, (3, 4), whence, move |result| said.send(result).unwrap()).unwrap();
            result.recv_timeout(PATIENCE * 2).unwrap()
        };
        assert_eq!(look(Whence::Anywhere), Ok(Piece { bytes: b"3456".to_vec(), total: 10 }));
        assert_eq!(look(Whence::Node), Ok(Piece { bytes: b"3456".to_vec(), total: 12 }));
        assert!(asked.join().unwrap().starts_with("GET /task/output?taskId=7&stream=stdout&offset=3 HTTP/1.1\r\n"));
    }

    #[test]
    fn what_a_share_that_is_away_has_is_asked_of_the_node_too() {
        let share = Scratch::new();
        // In the way of the log's path: reading below it is ENOTDIR, as below a dead mount it is ENOTCONN.
        std::fs::write(share.path().join("nodes"), "").unwrap();
        let (addr, asked) = node("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Berth-Size: 4\r\n\r\nhere".into());
        let logs = Logs::start(Some(share.path().to_owned()), BTreeMap::from([(STDOUT.node, addr)]), None).unwrap();
        assert_eq!(logs.tails([STDOUT], 4), [Ok(Piece { bytes: b"here".to_vec(), total: 4 })]);
        asked.join().unwrap();
        let without_node = Logs::start(Some(share.path().to_owned()), BTreeMap::new(), None).unwrap();
        assert!(
            matches!(&without_node.tails([STDOUT], 4)[..], [Err(LogError::Unreadable(said))] if said.contains("20"))
        );
    }

    #[test]
    fn a_node_that_has_no_log_says_so() {
        let body = r#"{"code":1,"error":{"code":"not_found","message":"there is no log"}}"#;
        let (addr, asked) = node(format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        let logs = Logs::start(None, BTreeMap::from([(STDOUT.node, addr)]), None).unwrap();
        assert_eq!(logs.tails([STDOUT], 4), [Err(LogError::Missing)]);
        asked.join().unwrap();
    }

    #[test]
    fn what_hangs_costs_an_answer_and_then_not_even_that() {
        // Nobody accepts: the connection stands, the answer never comes.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nodes = BTreeMap::from([(STDOUT.node, listener.local_addr().unwrap())]);
        let logs = Logs::start(None, nodes, None).unwrap();
        let begun = Instant::now();
        // Waited for one after the other, so many would take sixteen times as long as one.
        let answers = logs.tails([STDOUT; QUEUE], 4);
        assert!(begun.elapsed() < PATIENCE * 8, "{:?}", begun.elapsed());
        assert!(answers.iter().all(Result::is_err), "{answers:?}");
        assert_eq!(logs.tails([STDOUT], 4), [Err(LogError::Hung)]);
    }
}
