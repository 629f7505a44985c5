//! The asking side: many servers, one exchange per connection at a time, connections reused.
//!
//! What is sent must be safe to send twice: a kept connection that its server closed just before a
//! request arrived is tried once more on a new one (RFC 9112, section 9.3.1). Every call of a node
//! is: reads change nothing, a create is the same task for the same attempt, a kill is a kill.
//!
//! No server holds up another: one that answers nothing keeps as many connections as its queues give
//! it, whatever else is asked of it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::body::BodyDecoder;
use super::deadlines::Deadlines;
use super::framing_error::FramingError;
use super::head::{ResponseHead, read_response_head};
use super::limits::Limits;
use super::lines::{Line, Lines};
use super::message::{Headers, Method, write_header};
use super::output::Output;

/// One read from a socket takes at most this much.
const SCRATCH_BYTES: usize = 32 << 10;

/// Interim answers (1xx) in front of one answer; more are no answer.
const INTERIM_ANSWERS: u32 = 16;

/// One request and its answer, for as long as the client lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(u64);

/// What an exchange waits behind: those with the same address in the same queue, and no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Tells whether the server is there, and may lie with it for long. What else it was asked is not to hold that up.
    Polls,
    /// All the rest.
    Calls,
}

impl Queue {
    /// How many of it may be under way to one address at once.
    pub const fn at_once(self) -> usize {
        match self {
            Queue::Polls => 1,
            Queue::Calls => 2,
        }
    }
}

/// What to ask. `Host` and `Content-Length` are added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRequest {
    /// What to do.
    pub method: Method,
    /// To what, percent-encoded: `/task/events?after=7`.
    pub path_and_query: String,
    /// More headers.
    pub headers: Vec<(String, String)>,
    /// The body; empty for none.
    pub body: Vec<u8>,
}

impl ClientRequest {
    /// A plain GET.
    pub fn get(path_and_query: impl Into<String>) -> ClientRequest {
        ClientRequest {
            method: Method::Get,
            path_and_query: path_and_query.into(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A POST of JSON.
    pub fn post_json(path_and_query: impl Into<String>, json: Vec<u8>) -> ClientRequest {
        let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        ClientRequest { method: Method::Post, path_and_query: path_and_query.into(), headers, body: json }
    }

    /// One more header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> ClientRequest {
        self.headers.push((name.into(), value.into()));
        self
    }

    fn into_bytes(self, addr: SocketAddr) -> Vec<u8> {
        let mut head = String::with_capacity(256);
        let _ = write!(head, "{} {} HTTP/1.1\r\n", self.method, self.path_and_query);
        write_header(&mut head, "Host", &addr.to_string());
        for (name, value) in &self.headers {
            write_header(&mut head, name, value);
        }
        if self.method == Method::Post || !self.body.is_empty() {
            write_header(&mut head, "Content-Length", &self.body.len().to_string());
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientResponse {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: Headers,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// No connection.
    #[error("connect to {addr}: {cause}")]
    Connect {
        /// To whom.
        addr: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The connection broke.
    #[error("ask {addr}: {cause}")]
    Broken {
        /// Whom.
        addr: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The answer is not whole, normal or bounded.
    #[error("answer of {addr}: {cause}")]
    Framing {
        /// Whose.
        addr: SocketAddr,
        /// What is wrong with it.
        cause: FramingError,
    },
    /// The deadline passed first.
    #[error("no answer from {addr} in time")]
    TooLate {
        /// From whom.
        addr: SocketAddr,
    },
}

/// What has become of an exchange.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub id: ExchangeId,
    /// The answer.
    pub answer: Result<ClientResponse, ExchangeError>,
    /// Whether the request was sent and not answered, once at least: the server may have acted on it all the same. A
    /// request whose kept connection turns out to have ended is sent again over a new one, so that may be so beside an answer.
    pub unheard: bool,
}

/// One request on its way, wherever it is.
#[derive(Debug)]
struct Exchange {
    id: ExchangeId,
    addr: SocketAddr,
    queue: Queue,
    bytes: Vec<u8>,
    head_only: bool,
    deadline: Instant,
    /// How often it was sent.
    copies: u32,
}

impl Exchange {
    fn line(&self) -> Line {
        (self.addr, self.queue)
    }

    fn answered(self, response: ClientResponse) -> Outcome {
        Outcome { id: self.id, answer: Ok(response), unheard: self.copies > 1 }
    }

    fn failed(self, error: ExchangeError) -> Outcome {
        Outcome { id: self.id, answer: Err(error), unheard: self.copies > 0 }
    }
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    addr: SocketAddr,
    stage: Stage,
    input: Vec<u8>,
    output: Output,
    /// It served an exchange before this one.
    reused: bool,
    /// Why writing stopped; an answer may have come all the same.
    write_broken: Option<io::Error>,
}

#[derive(Debug)]
enum Stage {
    Connecting(Exchange),
    /// Sent, or being sent; the head is still to come, behind so many interim answers.
    Head {
        exchange: Exchange,
        interim: u32,
    },
    Body {
        exchange: Exchange,
        head: ResponseHead,
        decoder: BodyDecoder,
        body: Vec<u8>,
    },
    Idle,
}

/// What has become of a link after it was driven.
enum Progress {
    Waiting,
    /// It had its share of this turn, and there may be more that no event will tell of.
    NextTurn,
    Answered(ClientResponse, Fate),
    Failed(Failure),
    /// Idle, and its server closed it.
    Over,
}

enum Failure {
    Connect(io::Error),
    Broken(io::Error),
    Framing(FramingError),
    /// A kept connection ended before a byte of the answer.
    Stale(io::Error),
}

#[derive(PartialEq, Eq)]
enum Fate {
    Keep,
    Close,
}

/// Where an exchange is.
#[derive(Debug, Clone, Copy)]
enum Place {
    Waiting(Line),
    /// On the connection in this slot.
    On(usize),
}

/// A bounded HTTP/1.1 client that never blocks.
///
/// The owner calls [`ready`](Client::ready) for every event whose token it [`owns`](Client::owns)
/// and [`expire`](Client::expire) when [`next_deadline`](Client::next_deadline) has passed, then
/// drains [`next_outcome`](Client::next_outcome). More exchanges than tokens, or than an address's
/// [`Queue`] takes at once, wait their turn.
#[derive(Debug)]
pub struct Client {
    registry: Registry,
    tokens: Range<usize>,
    limits: Limits,
    slots: Vec<Option<Link>>,
    free: VecDeque<usize>,
    /// Kept connections, the latest used last.
    idle: HashMap<SocketAddr, Vec<usize>>,
    idle_until: Deadlines,
    /// Every exchange without an outcome, by its deadline.
    by_deadline: BTreeSet<(Instant, ExchangeId)>,
    place: HashMap<ExchangeId, Place>,
    /// Exchanges for which there is no connection yet.
    lines: Lines<Exchange>,
    outcomes: VecDeque<Outcome>,
    /// Links that had their share of a turn and may have more to read, and since when.
    next_turn: BTreeSet<usize>,
    next_turn_at: Option<Instant>,
    last: u64,
    scratch: Box<[u8]>,
}

impl Client {
    /// A client with as many connections as tokens, at most.
    pub fn new(registry: Registry, tokens: Range<usize>, limits: Limits) -> Client {
        Client {
            registry,
            tokens,
            limits,
            slots: Vec::new(),
            free: VecDeque::new(),
            idle: HashMap::new(),
            idle_until: Deadlines::default(),
            by_deadline: BTreeSet::new(),
            place: HashMap::new(),
            lines: Lines::new(),
            outcomes: VecDeque::new(),
            next_turn: BTreeSet::new(),
            next_turn_at: None,
            last: 0,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        }
    }

    /// Whether an event with this token is ours.
    pub fn owns(&self, token: Token) -> bool {
        self.tokens.contains(&token.0)
    }

    /// Asks `addr`. There will be exactly one outcome, by `deadline` at the latest.
    pub fn send(
        &mut self,
        (addr, queue): (SocketAddr, Queue),
        request: ClientRequest,
        deadline: Instant,
        now: Instant,
    ) -> ExchangeId {
        self.last += 1;
        let id = ExchangeId(self.last);
        let head_only = request.method == Method::Head;
        let bytes = request.into_bytes(addr);
        let exchange = Exchange { id, addr, queue, bytes, head_only, deadline, copies: 0 };
        self.by_deadline.insert((deadline, id));
        self.place.insert(id, Place::Waiting(exchange.line()));
        self.lines.join(exchange.line(), id, exchange);
        self.start_waiting(now);
        id
    }

    /// Forgets an exchange: there will be no outcome. Whether the server acted on it is not known.
    pub fn cancel(&mut self, id: ExchangeId) {
        self.give_up(id);
        self.start_waiting(Instant::now());
    }

    /// Something has happened on one of our sockets.
    pub fn ready(&mut self, event: &mio::event::Event, now: Instant) {
        let slot = event.token().0 - self.tokens.start;
        self.drive(slot, now);
        self.start_waiting(now);
    }

    /// When [`expire`](Client::expire) must be called; `None` while nothing is asked or kept.
    pub fn next_deadline(&self) -> Option<Instant> {
        let exchange = self.by_deadline.first().map(|(deadline, _)| *deadline);
        [exchange, self.idle_until.next(), self.next_turn_at].into_iter().flatten().min()
    }

    /// Gives up what has taken too long, closes connections kept for too long, and reads on where there was much to read.
    pub fn expire(&mut self, now: Instant) {
        while let Some((_, id)) = self.by_deadline.first().copied().filter(|(deadline, _)| *deadline <= now) {
            if let Some(exchange) = self.give_up(id) {
                let addr = exchange.addr;
                self.outcomes.push_back(exchange.failed(ExchangeError::TooLate { addr }));
            }
        }
        while let Some(slot) = self.idle_until.take_due(now) {
            self.close(slot);
        }
        self.next_turn_at = None;
        for slot in std::mem::take(&mut self.next_turn) {
            self.drive(slot, now);
        }
        self.start_waiting(now);
    }

    /// The next exchange that has come to its end.
    pub fn next_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// How many connections are kept for later.
    pub fn kept_connections(&self) -> usize {
        self.idle.values().map(Vec::len).sum()
    }

    /// Puts those whose turn it is on a kept connection or a new one.
    fn start_waiting(&mut self, now: Instant) {
        while let Some(line) = self.lines.whose_turn()
            && let Some(slot) = self.kept(line.0).or_else(|| self.vacant_slot())
        {
            match self.lines.begin(line) {
                Some(exchange) => self.start(slot, exchange, now),
                None => self.free.push_back(slot),
            }
        }
    }

    fn start(&mut self, slot: usize, exchange: Exchange, now: Instant) {
        let (id, addr) = (exchange.id, exchange.addr);
        match self.slots[slot].as_mut() {
            Some(link) => link.ask(exchange),
            None => match self.open(slot, addr) {
                Ok(stream) => self.slots[slot] = Some(Link::new(stream, exchange)),
                Err(cause) => {
                    self.free.push_back(slot);
                    self.lines.ended(exchange.line());
                    return self.conclude(exchange.deadline, exchange.failed(ExchangeError::Connect { addr, cause }));
                }
            },
        }
        self.place.insert(id, Place::On(slot));
        self.drive(slot, now);
    }

    fn open(&self, slot: usize, addr: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(addr)?;
        let token = Token(self.tokens.start + slot);
        self.registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(stream)
    }

    /// The connection to this address that was used last, if one is kept.
    fn kept(&mut self, addr: SocketAddr) -> Option<usize> {
        let slot = self.idle.get_mut(&addr)?.pop()?;
        self.idle_until.set(slot, None);
        Some(slot)
    }

    /// A slot without a link; the connection kept for longest makes room if it must.
    fn vacant_slot(&mut self) -> Option<usize> {
        if self.free.is_empty() && self.slots.len() < self.tokens.len() {
            self.slots.push(None);
            return Some(self.slots.len() - 1);
        }
        let kept_longest = self.idle_until.slots().next();
        if let (true, Some(slot)) = (self.free.is_empty(), kept_longest) {
            self.close(slot);
        }
        self.free.pop_front()
    }

    fn drive(&mut self, slot: usize, now: Instant) {
        let Some(link) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        match link.drive(&self.limits, &mut self.scratch, now) {
            Progress::Waiting => {}
            Progress::NextTurn => {
                self.next_turn.insert(slot);
                self.next_turn_at.get_or_insert(now);
            }
            Progress::Over => drop(self.close(slot)),
            Progress::Answered(response, fate) => self.answered(slot, response, &fate, now),
            Progress::Failed(failure) => self.failed(slot, failure, now),
        }
    }

    fn answered(&mut self, slot: usize, response: ClientResponse, fate: &Fate, now: Instant) {
        let Some(link) = self.slots[slot].as_mut() else { return };
        let addr = link.addr;
        let exchange = link.take_exchange();
        if *fate == Fate::Keep {
            self.idle.entry(addr).or_default().push(slot);
            self.idle_until.set(slot, Some(now + self.limits.idle / 2));
            // Reads on: an end that came with the answer is not told of again.
            if matches!(link.drive(&self.limits, &mut self.scratch, now), Progress::Over) {
                self.close(slot);
            }
        } else {
            self.close(slot);
        }
        if let Some(exchange) = exchange {
            self.lines.ended(exchange.line());
            self.conclude(exchange.deadline, exchange.answered(response));
        }
    }

    fn failed(&mut self, slot: usize, failure: Failure, now: Instant) {
        let Some(exchange) = self.close(slot).and_then(|mut link| link.take_exchange()) else { return };
        self.lines.ended(exchange.line());
        let addr = exchange.addr;
        let error = match failure {
            Failure::Stale(_) if exchange.deadline > now => return self.start_anew(exchange),
            Failure::Stale(cause) | Failure::Broken(cause) => ExchangeError::Broken { addr, cause },
            Failure::Connect(cause) => ExchangeError::Connect { addr, cause },
            Failure::Framing(cause) => ExchangeError::Framing { addr, cause },
        };
        self.conclude(exchange.deadline, exchange.failed(error));
    }

    /// Never on a kept connection: they all may be as stale as the one that failed.
    fn start_anew(&mut self, exchange: Exchange) {
        for slot in self.idle.remove(&exchange.addr).unwrap_or_default() {
            self.close(slot);
        }
        let (id, line) = (exchange.id, exchange.line());
        self.place.insert(id, Place::Waiting(line));
        self.lines.join_in_front(line, id, exchange);
    }

    fn conclude(&mut self, deadline: Instant, outcome: Outcome) {
        self.by_deadline.remove(&(deadline, outcome.id));
        self.place.remove(&outcome.id);
        self.outcomes.push_back(outcome);
    }

    /// Takes an exchange from wherever it is.
    fn give_up(&mut self, id: ExchangeId) -> Option<Exchange> {
        let exchange = match self.place.remove(&id)? {
            Place::On(slot) => {
                let exchange = self.close(slot)?.take_exchange()?;
                self.lines.ended(exchange.line());
                exchange
            }
            Place::Waiting(line) => self.lines.leave(line, id)?,
        };
        self.by_deadline.remove(&(exchange.deadline, id));
        Some(exchange)
    }

    fn close(&mut self, slot: usize) -> Option<Link> {
        let mut link = self.slots[slot].take()?;
        let _ = self.registry.deregister(&mut link.stream);
        self.idle_until.set(slot, None);
        if let Some(kept) = self.idle.get_mut(&link.addr) {
            kept.retain(|other| *other != slot);
            if kept.is_empty() {
                self.idle.remove(&link.addr);
            }
        }
        self.free.push_back(slot);
        Some(link)
    }
}

impl Link {
    fn new(stream: TcpStream, exchange: Exchange) -> Link {
        Link {
            stream,
            addr: exchange.addr,
            stage: Stage::Connecting(exchange),
            input: Vec::new(),
            output: Output::default(),
            reused: false,
            write_broken: None,
        }
    }

    fn ask(&mut self, exchange: Exchange) {
        self.reused = true;
        self.queue(exchange);
    }

    fn queue(&mut self, mut exchange: Exchange) {
        exchange.copies += 1;
        self.output.push(&exchange.bytes);
        self.stage = Stage::Head { exchange, interim: 0 };
    }

    fn take_exchange(&mut self) -> Option<Exchange> {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Connecting(exchange) | Stage::Head { exchange, .. } | Stage::Body { exchange, .. } => Some(exchange),
            Stage::Idle => None,
        }
    }

    fn drive(&mut self, limits: &Limits, scratch: &mut [u8], now: Instant) -> Progress {
        if let Stage::Connecting(_) = self.stage
            && let Some(progress) = self.finish_connecting()
        {
            return progress;
        }
        if self.write_broken.is_none()
            && let Err(error) = self.output.flush(&mut self.stream, limits.write_stall, now)
        {
            self.write_broken = Some(error);
        }
        let mut left = limits.turn_bytes;
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return self.ended(None),
                Ok(_) if matches!(self.stage, Stage::Idle) => return Progress::Over,
                Ok(count) => match self.understand(&scratch[..count], limits) {
                    Ok(None) if count >= left => return Progress::NextTurn,
                    Ok(None) => left -= count,
                    Ok(Some((response, fate))) => return Progress::Answered(response, fate),
                    Err(error) => return Progress::Failed(Failure::Framing(error)),
                },
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waiting,
                Err(error) => return self.ended(Some(error)),
            }
        }
    }

    /// `None`: connected, and the request is queued.
    fn finish_connecting(&mut self) -> Option<Progress> {
        match self.stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Some(Progress::Failed(Failure::Connect(error))),
        }
        match self.stream.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotConnected => return Some(Progress::Waiting),
            Err(error) => return Some(Progress::Failed(Failure::Connect(error))),
        }
        let _ = self.stream.set_nodelay(true);
        let exchange = self.take_exchange()?;
        self.queue(exchange);
        None
    }

    fn understand(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<(ClientResponse, Fate)>, FramingError> {
        self.input.extend_from_slice(bytes);
        while let Stage::Head { exchange, interim } = &mut self.stage {
            let Some((head, length)) = read_response_head(&self.input, exchange.head_only, limits)? else {
                return Ok(None);
            };
            self.input.drain(..length);
            if head.status < 200 {
                *interim += 1;
                if *interim > INTERIM_ANSWERS {
                    return Err(FramingError::HeadTooLarge);
                }
            } else if let Some(exchange) = self.take_exchange() {
                let decoder = BodyDecoder::new(head.body, limits.body_bytes as u64);
                self.stage = Stage::Body { exchange, head, decoder, body: Vec::new() };
            }
        }
        if let Stage::Body { decoder, body, .. } = &mut self.stage {
            let taken = decoder.take(&self.input, body)?;
            self.input.drain(..taken);
        }
        Ok(self.whole())
    }

    /// The answer, once it is whole.
    fn whole(&mut self) -> Option<(ClientResponse, Fate)> {
        let Stage::Body { head, decoder, body, .. } = &mut self.stage else { return None };
        if !decoder.is_done() {
            return None;
        }
        let clean = self.input.is_empty() && self.output.is_empty() && self.write_broken.is_none();
        let fate = if head.keep_alive && clean { Fate::Keep } else { Fate::Close };
        self.input = Vec::new();
        let (headers, body) = (std::mem::take(&mut head.headers), std::mem::take(body));
        Some((ClientResponse { status: head.status, headers, body }, fate))
    }

    fn ended(&mut self, error: Option<io::Error>) -> Progress {
        let cause = self.write_broken.take().or(error).unwrap_or_else(|| ErrorKind::UnexpectedEof.into());
        match &mut self.stage {
            Stage::Idle => Progress::Over,
            Stage::Head { interim: 0, .. } if self.reused && self.input.is_empty() => {
                Progress::Failed(Failure::Stale(cause))
            }
            Stage::Connecting(_) | Stage::Head { .. } => Progress::Failed(Failure::Broken(cause)),
            Stage::Body { decoder, .. } => match decoder.end() {
                Ok(()) => match self.whole() {
                    Some((response, _)) => Progress::Answered(response, Fate::Close),
                    None => Progress::Failed(Failure::Broken(cause)),
                },
                Err(error) => Progress::Failed(Failure::Framing(error)),
            },
        }
    }
}
