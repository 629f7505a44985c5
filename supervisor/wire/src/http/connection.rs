//! One accepted socket, from its first byte to its last.
//!
//! ```text
//!            first byte        head whole       body whole             respond
//!   Idle ───────────────▶ Head ──────────▶ Body ──────────▶ Asked ───────────────▶ Answering
//!    ▲ ▲                    │                │                │                       │   │
//!    │ │                    └──── refused ───┴────────────────│──────────────────────▶│   │
//!    │ │                                                      │ start_stream          │   │
//!    │ └──── stream finished, all written ──── Streaming ◀────┘                       │   │
//!    │                                             │ must close                       │   │
//!    │                                             ▼                      must close  │   │
//!    │                                         Lingering ◀────────────────────────────┘   │
//!    └──────────────────────────── all written, may live ─────────────────────────────────┘
//! ```
//!
//! From every stage a dead socket or a passed deadline leads to the end. While a request is `Asked`
//! nothing is read: what a client pipelines behind it stays in the kernel and holds the client back.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::time::Instant;

use mio::net::TcpStream;

use super::body::BodyDecoder;
use super::eviction::Idler;
use super::framing_error::FramingError;
use super::head::{BodyLength, Reply, RequestHead, read_request_head};
use super::limits::Limits;
use super::message::{Query, Request, Response, StreamHead, write_header, write_status_line};
use super::output::Output;

/// How much a refused peer may still send before it is cut off.
const LINGER_BYTES: usize = 16 << 20;

/// What has become of a connection after it was driven.
#[derive(Debug)]
pub(super) enum Progress {
    /// It waits for its peer, its owner or its deadline.
    Waiting,
    /// It had its share of this turn and there may be more: an answer is written and another request may have come already,
    /// or much was read. It goes on at the owner's next turn, so that a client that sends without end cannot keep the others waiting.
    NextTurn,
    /// A whole request has come; the connection is `Asked`.
    Complete(Request),
    /// The socket is done with.
    Over,
}

/// One accepted socket.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    peer: SocketAddr,
    stage: Stage,
    /// Since when its peer has owed it a request, or the rest of one.
    since: Instant,
    /// A request of it has been answered.
    served: bool,
    /// Bytes read and not yet understood: a part of a head, or what was pipelined behind a request.
    input: Vec<u8>,
    output: Output,
    /// The socket may have bytes that no further event will tell of.
    readable: bool,
    /// An event has told that the peer sends nothing more: the end is still to be read.
    end_ahead: bool,
    /// The peer's end was reached; mostly it has gone.
    peer_finished: bool,
}

#[derive(Debug)]
enum Stage {
    /// `blank`: bytes of empty lines so far.
    Idle {
        until: Instant,
        blank: usize,
    },
    /// `parsed`: how much of the input was looked at already, in vain.
    Head {
        until: Instant,
        parsed: usize,
    },
    Body {
        head: Box<RequestHead>,
        decoder: BodyDecoder,
        body: Vec<u8>,
        until: Instant,
    },
    /// The owner has the request. Only a peer that has finished sending gives it a deadline.
    Asked {
        reply: Reply,
        held: usize,
        until: Option<Instant>,
    },
    Answering {
        keep_alive: bool,
    },
    Streaming {
        reply: Reply,
        framing: StreamFraming,
        finished: bool,
        was_full: bool,
        /// How much waits for its reader before its writer is held back.
        most: usize,
    },
    Lingering {
        until: Instant,
        left: usize,
    },
}

/// How the pieces of a streamed body are framed.
#[derive(Debug, Clone, Copy)]
enum StreamFraming {
    Counted {
        left: u64,
    },
    Chunked,
    UntilClose,
    /// The answer to a HEAD: the pieces go nowhere.
    Nothing,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, limits: &Limits, now: Instant) -> Connection {
        Connection {
            stream,
            peer,
            stage: Stage::Idle { until: now + limits.idle, blank: 0 },
            since: now,
            served: false,
            input: Vec::new(),
            output: Output::default(),
            readable: true,
            end_ahead: false,
            peer_finished: false,
        }
    }

    /// A connection beyond the bound: it is told so before it has said anything.
    pub(super) fn turned_away(stream: TcpStream, peer: SocketAddr, limits: &Limits, now: Instant) -> Connection {
        let mut connection = Connection::new(stream, peer, limits, now);
        connection.queue_refusal(FramingError::Busy);
        connection
    }

    /// When it must be looked at again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Idle { until, .. }
            | Stage::Head { until, .. }
            | Stage::Body { until, .. }
            | Stage::Lingering { until, .. } => Some(*until),
            Stage::Asked { until, .. } => *until,
            Stage::Answering { .. } | Stage::Streaming { .. } => self.output.deadline(),
        }
    }

    /// Bytes of a request it holds, or its owner holds for it.
    pub(super) fn held(&self) -> usize {
        match &self.stage {
            Stage::Body { body, .. } => body.len(),
            Stage::Asked { held, .. } => *held,
            _ => 0,
        }
    }

    /// Bytes of an answer that wait for its reader.
    pub(super) fn waiting(&self) -> usize {
        self.output.len()
    }

    /// Since when its reader takes nothing, as a deadline: the earliest is the slowest.
    pub(super) fn stalled_until(&self) -> Option<Instant> {
        self.output.deadline()
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle { .. })
    }

    /// What it is to one that looks for room. `None`: its owner is at work for it, or its answer is on its way.
    pub(super) fn idler(&self) -> Option<Idler> {
        let idler = Idler { served: self.served, receiving: false, since: self.since };
        match self.stage {
            Stage::Idle { .. } => Some(idler),
            Stage::Head { .. } | Stage::Body { .. } => Some(Idler { receiving: true, ..idler }),
            // It has had its last answer: of all it has the least to lose.
            Stage::Lingering { .. } => Some(Idler { served: false, ..idler }),
            Stage::Asked { .. } | Stage::Answering { .. } | Stage::Streaming { .. } => None,
        }
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(super) fn is_asked(&self) -> bool {
        matches!(self.stage, Stage::Asked { .. })
    }

    /// Whether its owner is at work for it: answering, or streaming an answer.
    pub(super) fn in_progress(&self) -> bool {
        matches!(self.stage, Stage::Asked { .. } | Stage::Streaming { finished: false, .. })
    }

    /// An event has told that there is something to read.
    pub(super) fn note_readable(&mut self, end: bool) {
        self.readable = true;
        self.end_ahead |= end;
    }

    /// Reads and writes as far as it goes in one turn.
    pub(super) fn drive(&mut self, limits: &Limits, scratch: &mut [u8], now: Instant) -> Progress {
        let mut left = limits.turn_bytes;
        loop {
            let step = match &self.stage {
                Stage::Idle { .. } | Stage::Head { .. } | Stage::Body { .. } => self.receive(limits, scratch, now),
                Stage::Asked { .. } => return Progress::Waiting,
                Stage::Answering { .. } | Stage::Streaming { .. } => self.send(limits, now),
                Stage::Lingering { .. } => self.drain(scratch),
            };
            match step {
                Step::Again => {}
                Step::Read(count) if count >= left => return Progress::NextTurn,
                Step::Read(count) => left -= count,
                Step::Report(progress) => return progress,
            }
        }
    }

    /// The deadline has passed.
    pub(super) fn expire(&mut self, limits: &Limits, scratch: &mut [u8], now: Instant) -> Progress {
        match &self.stage {
            Stage::Head { .. } | Stage::Body { .. } => {
                self.queue_refusal(FramingError::TooSlow);
                self.drive(limits, scratch, now)
            }
            _ => Progress::Over,
        }
    }

    /// Refuses the request that is being received.
    pub(super) fn refuse(
        &mut self,
        error: FramingError,
        limits: &Limits,
        scratch: &mut [u8],
        now: Instant,
    ) -> Progress {
        self.queue_refusal(error);
        self.drive(limits, scratch, now)
    }

    /// Looks whether the peer of a request in progress has finished sending. It may only have shut
    /// down its side and still read, but a poll nobody waits for must not be kept for ever.
    /// True the first time.
    pub(super) fn notice_finish(&mut self, limits: &Limits, now: Instant) -> bool {
        // Bytes pipelined in front of the end are requests that still want their answers.
        let finished = self.input.is_empty()
            && match self.stream.peek(&mut [0]) {
                Ok(count) => count == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            };
        let first = finished && !self.peer_finished;
        self.peer_finished |= finished;
        if let (true, Stage::Asked { until, .. }) = (first, &mut self.stage) {
            *until = Some(now + limits.idle);
        }
        first
    }

    /// The same, of a peer whose end was told of before its request was whole: no event tells of it again.
    pub(super) fn notice_finish_ahead(&mut self, limits: &Limits, now: Instant) -> bool {
        self.end_ahead && self.notice_finish(limits, now)
    }

    /// Whether its peer's end was noticed.
    pub(super) fn has_finished(&self) -> bool {
        self.peer_finished
    }

    /// Queues the whole answer; `drive` sends it.
    pub(super) fn respond(&mut self, response: Response) {
        let Stage::Asked { reply, .. } = self.stage else { return };
        let keep_alive = reply.keep_alive && !self.peer_finished;
        self.queue_response(response, reply, keep_alive);
        self.stage = Stage::Answering { keep_alive };
    }

    /// Queues the head of a streamed answer.
    pub(super) fn start_stream(&mut self, head: &StreamHead, limits: &Limits) {
        let Stage::Asked { mut reply, .. } = self.stage else { return };
        let bodiless = matches!(head.status, 100..=199 | 204 | 304);
        let framing = match head.length {
            Some(left) => StreamFraming::Counted { left },
            None if reply.http_11 => StreamFraming::Chunked,
            None => StreamFraming::UntilClose,
        };
        reply.keep_alive &= !matches!(framing, StreamFraming::UntilClose) && !self.peer_finished;
        let mut text = String::new();
        write_status_line(&mut text, head.status);
        for (name, value) in &head.headers {
            write_header(&mut text, name, value);
        }
        match framing {
            _ if bodiless => {}
            StreamFraming::Counted { left } => write_header(&mut text, "Content-Length", &left.to_string()),
            StreamFraming::Chunked => write_header(&mut text, "Transfer-Encoding", "chunked"),
            StreamFraming::UntilClose | StreamFraming::Nothing => {}
        }
        write_connection(&mut text, reply);
        self.output.push(text.as_bytes());
        let framing = if bodiless || reply.head_only { StreamFraming::Nothing } else { framing };
        self.stage = Stage::Streaming { reply, framing, finished: false, was_full: false, most: limits.stream_bytes };
    }

    /// Queues a piece of a streamed body. One that does not fit its Content-Length is cut off.
    pub(super) fn stream(&mut self, bytes: &[u8]) {
        let Stage::Streaming { framing, finished: false, .. } = &mut self.stage else { return };
        match framing {
            StreamFraming::Nothing => {}
            StreamFraming::UntilClose => self.output.push(bytes),
            StreamFraming::Counted { left } => {
                let count = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                self.output.push(&bytes[..count]);
            }
            // An empty chunk would end the body.
            StreamFraming::Chunked if bytes.is_empty() => {}
            StreamFraming::Chunked => {
                self.output.push(format!("{:x}\r\n", bytes.len()).as_bytes());
                self.output.push(bytes);
                self.output.push(b"\r\n");
            }
        }
    }

    /// The streamed body is whole. A counted one that is not ends the connection, so that its reader sees it.
    pub(super) fn finish_stream(&mut self) {
        let Stage::Streaming { framing, finished, reply, .. } = &mut self.stage else { return };
        if *finished {
            return;
        }
        *finished = true;
        match framing {
            StreamFraming::Chunked => self.output.push(b"0\r\n\r\n"),
            StreamFraming::Counted { left: 0 } | StreamFraming::Nothing => {}
            StreamFraming::Counted { .. } | StreamFraming::UntilClose => reply.keep_alive = false,
        }
    }

    /// Keeps no more than this of a stream for its reader.
    pub(super) fn narrow_stream(&mut self, bytes: usize) {
        if let Stage::Streaming { most, .. } = &mut self.stage {
            *most = bytes.min(*most);
        }
    }

    /// Room for more of a streamed body, in bytes.
    pub(super) fn room(&mut self) -> usize {
        match &mut self.stage {
            Stage::Streaming { finished: false, was_full, most, .. } => {
                let room = most.saturating_sub(self.output.len());
                *was_full |= room == 0;
                room
            }
            _ => 0,
        }
    }

    /// True once after a full stream has emptied by half.
    pub(super) fn take_drained(&mut self) -> bool {
        match &mut self.stage {
            Stage::Streaming { was_full, most, .. } if *was_full && self.output.len() <= *most / 2 => {
                *was_full = false;
                true
            }
            _ => false,
        }
    }

    /// Receives until a request is whole, the socket is empty, or the peer is refused.
    fn receive(&mut self, limits: &Limits, scratch: &mut [u8], now: Instant) -> Step {
        match self.understand(limits, now) {
            Ok(Understood::Request(request)) => return Step::Report(Progress::Complete(request)),
            Ok(Understood::MoreNeeded) => {}
            Err(error) => {
                self.queue_refusal(error);
                return Step::Again;
            }
        }
        let want = match &self.stage {
            Stage::Body { decoder, .. } => decoder.counted().and_then(|left| usize::try_from(left).ok()),
            _ => Some(limits.head_bytes.saturating_sub(self.input.len()).max(1)),
        };
        let window = scratch.len().min(want.unwrap_or(usize::MAX));
        if !self.readable {
            return Step::Report(Progress::Waiting);
        }
        match read(&mut self.stream, &mut scratch[..window]) {
            Received::Bytes(count) => {
                // A short read has emptied the socket (epoll(7)), unless the end waits behind it.
                self.readable = count == window || self.end_ahead;
                self.input.extend_from_slice(&scratch[..count]);
                Step::Read(count)
            }
            Received::Nothing => {
                self.readable = false;
                Step::Report(Progress::Waiting)
            }
            Received::End if !self.is_idle() => {
                self.peer_finished = true;
                self.queue_refusal(FramingError::Truncated);
                Step::Again
            }
            Received::End | Received::Broken => Step::Report(Progress::Over),
        }
    }

    /// Makes of the input what can be made of it.
    fn understand(&mut self, limits: &Limits, now: Instant) -> Result<Understood, FramingError> {
        if let Stage::Idle { blank, .. } = &mut self.stage {
            // Empty lines between requests are nothing (RFC 9112, section 2.2), win no time, and come to an end.
            let more = self.input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            *blank += more;
            if *blank > limits.line_bytes {
                return Err(FramingError::LineTooLong);
            }
            self.consume(more);
            if !self.input.is_empty() {
                self.stage = Stage::Head { until: now + limits.head_time, parsed: 0 };
                self.since = now;
            }
        }
        if let Stage::Head { parsed, .. } = &mut self.stage {
            // A head ends with a line's end: without a new one there is nothing to parse again.
            if self.input.len() < limits.line_bytes && !self.input[*parsed..].contains(&b'\n') {
                return Ok(Understood::MoreNeeded);
            }
            *parsed = self.input.len();
            match read_request_head(&self.input, limits)? {
                Some((head, length)) => {
                    self.consume(length);
                    self.expect_body(head, limits, now);
                }
                None => return Ok(Understood::MoreNeeded),
            }
        }
        let Stage::Body { decoder, body, .. } = &mut self.stage else { return Ok(Understood::MoreNeeded) };
        let taken = decoder.take(&self.input, body)?;
        let whole = decoder.is_done();
        self.consume(taken);
        Ok(if whole { self.ask() } else { Understood::MoreNeeded })
    }

    /// Forgets the front of the input, and its memory once it is empty.
    fn consume(&mut self, count: usize) {
        self.input.drain(..count);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }

    fn expect_body(&mut self, head: RequestHead, limits: &Limits, now: Instant) {
        let decoder = BodyDecoder::new(head.body, limits.body_bytes as u64);
        if head.expects_continue && self.input.is_empty() && head.body != BodyLength::Counted(0) {
            // The output is empty here: every answer before this one has been written.
            self.output.push(b"HTTP/1.1 100 Continue\r\n\r\n");
            let _ = self.output.flush(&mut self.stream, limits.write_stall, now);
        }
        self.stage = Stage::Body { head: Box::new(head), decoder, body: Vec::new(), until: now + limits.body_time };
    }

    /// The request is whole: the owner gets it.
    fn ask(&mut self) -> Understood {
        let placeholder = Stage::Answering { keep_alive: false };
        let Stage::Body { head, body, .. } = std::mem::replace(&mut self.stage, placeholder) else {
            return Understood::MoreNeeded;
        };
        let head = *head;
        self.stage = Stage::Asked { reply: head.reply, held: body.len(), until: None };
        let (path, raw_query) = match head.target.split_once('?') {
            Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
            None => (head.target, None),
        };
        let query = raw_query.as_deref().map(Query::parse).unwrap_or_default();
        let (method, headers, peer) = (head.method, head.headers, self.peer);
        Understood::Request(Request { method, path, query, raw_query, headers, body, peer })
    }

    fn send(&mut self, limits: &Limits, now: Instant) -> Step {
        if self.output.flush(&mut self.stream, limits.write_stall, now).is_err() {
            return Step::Report(Progress::Over);
        }
        let keep_alive = match &self.stage {
            _ if !self.output.is_empty() => return Step::Report(Progress::Waiting),
            Stage::Streaming { finished: false, .. } => return Step::Report(Progress::Waiting),
            Stage::Streaming { reply, .. } => reply.keep_alive,
            Stage::Answering { keep_alive } => *keep_alive,
            _ => return Step::Report(Progress::Waiting),
        };
        if keep_alive {
            self.stage = Stage::Idle { until: now + limits.idle, blank: 0 };
            (self.since, self.served) = (now, true);
            let more = self.readable || !self.input.is_empty();
            return Step::Report(if more { Progress::NextTurn } else { Progress::Waiting });
        }
        if self.peer_finished || self.stream.shutdown(Shutdown::Write).is_err() {
            return Step::Report(Progress::Over);
        }
        // Closing with unread bytes sends a reset, which can overtake the answer (RFC 9112, section 9.6).
        self.input = Vec::new();
        self.stage = Stage::Lingering { until: now + limits.linger, left: LINGER_BYTES };
        self.since = now;
        Step::Again
    }

    fn drain(&mut self, scratch: &mut [u8]) -> Step {
        let Stage::Lingering { left, .. } = &mut self.stage else { return Step::Report(Progress::Over) };
        match read(&mut self.stream, scratch) {
            Received::Bytes(count) if count < *left => {
                *left -= count;
                Step::Read(count)
            }
            Received::Nothing => Step::Report(Progress::Waiting),
            Received::Bytes(_) | Received::End | Received::Broken => Step::Report(Progress::Over),
        }
    }

    fn queue_refusal(&mut self, error: FramingError) {
        let mut response = Response::refusal_as(error.status(), &error.refusal());
        match error {
            FramingError::Method => response = response.with_header("Allow", "GET, HEAD, POST"),
            FramingError::Busy => response = response.with_header("Retry-After", "1"),
            _ => {}
        }
        let reply = Reply { http_11: true, head_only: false, keep_alive: false };
        self.queue_response(response, reply, false);
        self.stage = Stage::Answering { keep_alive: false };
    }

    fn queue_response(&mut self, response: Response, reply: Reply, keep_alive: bool) {
        let mut head = String::with_capacity(128);
        write_status_line(&mut head, response.status);
        for (name, value) in &response.headers {
            write_header(&mut head, name, value);
        }
        let bodiless = matches!(response.status, 100..=199 | 204 | 304);
        if !bodiless {
            write_header(&mut head, "Content-Length", &response.body.len().to_string());
        }
        write_connection(&mut head, Reply { keep_alive, ..reply });
        self.output.push_owned(head.into_bytes());
        if !bodiless && !reply.head_only {
            self.output.push_owned(response.body);
        }
    }
}

/// `Connection` where it differs from the version's custom, and the empty line.
fn write_connection(head: &mut String, reply: Reply) {
    match (reply.keep_alive, reply.http_11) {
        (false, _) => write_header(head, "Connection", "close"),
        (true, false) => write_header(head, "Connection", "keep-alive"),
        (true, true) => {}
    }
    head.push_str("\r\n");
}

enum Step {
    Again,
    /// So many bytes were read, and more may be there.
    Read(usize),
    Report(Progress),
}

enum Understood {
    Request(Request),
    MoreNeeded,
}

enum Received {
    Bytes(usize),
    Nothing,
    End,
    Broken,
}

fn read(stream: &mut TcpStream, scratch: &mut [u8]) -> Received {
    loop {
        match stream.read(scratch) {
            Ok(0) => return Received::End,
            Ok(count) => return Received::Bytes(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Nothing,
            Err(_) => return Received::Broken,
        }
    }
}
