//! Readers: forked children that take a connection over and send the bytes of a log.
//!
//! The logs are on the share, whose reads may block for as long as the network likes, and the client
//! may read as slowly as it likes: neither is the loop's to wait for.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use wire::http::{Query, reason_phrase};
use wire::node::{Answer, Refusal, RefusalCode};
use wire::{BadInput, Log, TaskId};

use crate::errand::Errand;
use crate::event_loop::Watcher;

/// Readers at work at once.
const MAX_READERS: usize = 32;
/// How long a client may take for the next bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a reader may take altogether; who wants more asks for the rest with an offset.
const LIFETIME: Duration = Duration::from_secs(600);

/// From where on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// This byte.
    Offset(u64),
    /// So many bytes before the end.
    Tail(u64),
}

impl Start {
    /// The first byte to send of a log of `size` bytes.
    fn position(self, size: u64) -> u64 {
        match self {
            Start::Offset(offset) => offset.min(size),
            Start::Tail(bytes) => size.saturating_sub(bytes),
        }
    }
}

/// `GET /task/output`: whose log, which, from where on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputRequest {
    /// The task.
    pub task: TaskId,
    /// Which of its logs.
    pub log: Log,
    /// From where on.
    pub start: Start,
}

impl OutputRequest {
    /// Reads `taskId=7&stream=stdout&offset=0`; `tail` instead of `offset` counts from the end.
    pub fn parse(query: &Query) -> Result<OutputRequest, BadInput> {
        let task = query.get("taskId").ok_or_else(|| BadInput::new("taskId", "is missing"))?.parse()?;
        let log = query.get("stream").map_or(Ok(Log::Stdout), str::parse)?;
        let number = |name: &str| query.get(name).map(|text| count(name, text)).transpose();
        let start = match (number("offset")?, number("tail")?) {
            (Some(_), Some(_)) => return Err(BadInput::new("tail", "and offset exclude each other")),
            (None, Some(bytes)) => Start::Tail(bytes),
            (offset, None) => Start::Offset(offset.unwrap_or(0)),
        };
        Ok(OutputRequest { task, log, start })
    }
}

fn count(name: &str, text: &str) -> Result<u64, BadInput> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| BadInput::new(name, format!("{text:?} is not a number of bytes")))
}

/// The readers at work.
#[derive(Debug, Default)]
pub struct Readers {
    running: HashMap<i32, (Errand, Instant)>,
}

impl Readers {
    /// Whether one more is allowed.
    pub fn have_room(&self) -> bool {
        self.running.len() < MAX_READERS
    }

    /// Forks a reader that answers on `stream` with the bytes of `path`.
    pub fn start(&mut self, stream: &TcpStream, path: &Path, from: Start, watcher: &Watcher, now: Instant) {
        match Errand::send(watcher, &[stream.as_fd()], || read(stream, path, from)) {
            Ok(errand) => drop(self.running.insert(errand.pid(), (errand, now + LIFETIME))),
            Err(error) => {
                log::error!("cannot start a reader: {error}");
                turn_away(stream);
            }
        }
    }

    /// A child has exited; if it was a reader, it is one no longer.
    pub fn finish(&mut self, pid: i32, watcher: &Watcher) {
        if let Some((errand, _)) = self.running.remove(&pid) {
            errand.collect(watcher);
        }
    }

    /// When [`Readers::expire`] must be called.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.running.values().map(|(_, deadline)| *deadline).min()
    }

    /// Ends readers that took too long.
    pub fn expire(&mut self, now: Instant) {
        for (errand, deadline) in self.running.values_mut().filter(|(_, deadline)| *deadline <= now) {
            *deadline = now + LIFETIME;
            errand.kill();
        }
    }
}

/// The child's whole life.
fn read(stream: &TcpStream, path: &Path, from: Start) -> i32 {
    match answer(stream, path, from) {
        Ok(()) => 0,
        // Whoever went away before the end knows it.
        Err(error) => {
            log::debug!("cannot send {}: {error}", path.display());
            1
        }
    }
}

fn answer(mut stream: &TcpStream, path: &Path, from: Start) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    match open(path) {
        Ok((file, size)) => send(stream, file, size, from)?,
        Err(error) => stream.write_all(refusal(path, &error).as_bytes())?,
    }
    stream.shutdown(Shutdown::Write)
}

/// Only a plain file is a log; whatever else a container's neighbours put there is not opened.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it is no plain file"));
    }
    Ok((file, metadata.len()))
}

/// The size is what it was at the opening: bytes written meanwhile are the next request's.
fn send(mut stream: &TcpStream, mut file: File, size: u64, from: Start) -> io::Result<()> {
    let start = from.position(size);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Length: {}\r\nX-Berth-Size: {size}\r\nConnection: close\r\n\r\n",
        size - start
    );
    stream.write_all(head.as_bytes())?;
    file.seek(SeekFrom::Start(start))?;
    io::copy(&mut file.take(size - start), &mut stream)?;
    Ok(())
}

/// Answers that nobody can read the log now. Nothing was sent on the connection yet, so there is room for a few words.
fn turn_away(mut stream: &TcpStream) {
    let busy = Refusal::new(RefusalCode::Busy, "there is no process to read the log with; ask again in a moment");
    let sent = stream.set_nonblocking(true).and_then(|()| stream.write_all(spelled(busy).as_bytes()));
    if let Err(error) = sent.and_then(|()| stream.shutdown(Shutdown::Write)) {
        log::debug!("cannot turn a reader of logs away: {error}");
    }
}

fn refusal(path: &Path, error: &io::Error) -> String {
    spelled(match error.kind() {
        io::ErrorKind::NotFound => Refusal::new(RefusalCode::NotFound, format!("there is no log {}", path.display())),
        _ => Refusal::new(RefusalCode::Internal, format!("cannot read {}: {error}", path.display())),
    })
}

fn spelled(refusal: Refusal) -> String {
    let status = refusal.http_status();
    let body = serde_json::to_string(&Answer::<()>::refused(refusal)).unwrap_or_default();
    format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        reason_phrase(status),
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::net::TcpListener;

    fn parse(query: &str) -> Result<OutputRequest, BadInput> {
        OutputRequest::parse(&Query::parse(query))
    }

    #[test]
    fn a_request_for_output_is_read_and_a_wrong_one_refused_by_field() {
        let whole = OutputRequest { task: TaskId(7), log: Log::Stdout, start: Start::Offset(0) };
        assert_eq!(parse("taskId=7"), Ok(whole));
        let tail = OutputRequest { log: Log::Monitor, start: Start::Tail(100), ..whole };
        assert_eq!(parse("taskId=7&stream=monitor&tail=100"), Ok(tail));
        for (query, field) in [
            ("", "taskId"),
            ("taskId=-1", "taskId"),
            ("taskId=7&stream=stdin", "stream"),
            ("taskId=7&offset=-1", "offset"),
            ("taskId=7&tail=1e3", "tail"),
            ("taskId=7&tail=1&offset=1", "tail"),
        ] {
            assert_eq!(parse(query).unwrap_err().field, field, "{query}");
        }
    }

    #[test]
    fn a_start_beyond_the_end_is_the_end() {
        let starts =
            [Start::Offset(3), Start::Offset(11), Start::Tail(3), Start::Tail(11)].map(|from| from.position(10));
        assert_eq!(starts, [3, 10, 7, 0]);
    }

    fn answer_for(path: &Path, from: Start) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        answer(&listener.accept().unwrap().0, path, from).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_answer_is_the_bytes_from_the_offset_on_and_the_whole_size() {
        let scratch = Scratch::new("output");
        let path = scratch.join("task_stdout");
        std::fs::write(&path, "0123456789").unwrap();
        let text = answer_for(&path, Start::Offset(4));
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n456789"), "{text}");
        assert!(text.contains("\r\nContent-Length: 6\r\n") && text.contains("\r\nX-Berth-Size: 10\r\n"), "{text}");
    }

    #[test]
    fn whoever_nobody_can_read_for_is_told_so() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        turn_away(&listener.accept().unwrap().0);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("ask again"), "{text}");
    }

    #[test]
    fn a_log_that_is_missing_or_no_plain_file_is_not_found() {
        for path in ["/nonexistent/task_stdout", "/dev/zero", "/proc/self/exe"] {
            let text = answer_for(Path::new(path), Start::Offset(0));
            assert!(!text.starts_with("HTTP/1.1 200"), "{path}: {text}");
            assert!(text.contains("\"code\":1"), "{text}");
        }
    }
}
