//! The gate's thread: clients on one side, lanes on the other, a queue between them.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use wire::http::{ConnectionId, Limits, Method, Request, Response, ResponseHead, Server, StreamHead};
use wire::node::{Refusal, RefusalCode};

use super::lane::{Lane, News, Passage};
use super::standing::{HEADER, KEPT_BYTES, Say, Standing};
use super::translate::{request_bytes, stream_head};

/// Connections to tiny_http. Each costs it a thread, and the process three file descriptors; more requests than that wait
/// in the queue.
pub const LANES: usize = 16;
/// Requests that may wait for a lane.
const QUEUE: usize = 1024;
/// How long a request may wait for a lane.
const QUEUE_TIME: Duration = Duration::from_secs(30);
/// How long the master may think before an answer begins.
const ANSWER_TIME: Duration = Duration::from_secs(120);
/// What is left of an answer nobody waits for is read over up to this; more ends the lane.
const READ_OVER_BYTES: u64 = 1 << 20;
/// How long after a failure to wait before connecting to tiny_http again, at first and at most.
const RECONNECT: Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);
/// How long requests in progress may go on once the gate is stopped. A test that does not wait for it is to be told from one
/// that was held up.
const DRAIN_TIME: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 5 });
/// File descriptors kept back for connecting to tiny_http: our end, its end, and its copy of that.
pub(super) const SPARE_FILES: usize = 4;
/// Reads from one lane before the others have their turn.
const STEPS: usize = 16;
/// How much of what was said to clients that stand is sent before the others have their turn.
pub(super) const SAID_A_TURN: usize = 64;
/// One read from a lane takes at most this much.
const SCRATCH_BYTES: usize = 64 << 10;

pub(super) const WAKE: Token = Token(0);
const FIRST_LANE: usize = 1;
pub(super) const SERVER_TOKENS: Range<usize> = FIRST_LANE + LANES..usize::MAX;

/// Everything the gate's thread owns.
pub(super) struct Relay {
    poll: Poll,
    server: Server,
    upstream: PathBuf,
    limits: Limits,
    stopping: Arc<AtomicBool>,
    lanes: Vec<Lane>,
    queue: VecDeque<Waiting>,
    standing: Standing,
    reconnect: Reconnect,
    spare_files: Vec<File>,
    /// Lanes that had their share of a turn and may have more to move.
    unfinished: Vec<usize>,
    /// There may be more that was said to clients that stand, and no event will tell of it.
    unsaid: bool,
    scratch: Box<[u8]>,
}

/// A request for which there is no lane yet.
#[derive(Debug)]
struct Waiting {
    client: ConnectionId,
    head_only: bool,
    bytes: Vec<u8>,
    until: Instant,
}

/// When a lane may be opened next.
#[derive(Debug, Clone, Copy)]
struct Reconnect {
    at: Option<Instant>,
    backoff: Duration,
}

impl Relay {
    pub(super) fn new(
        poll: Poll,
        server: Server,
        upstream: PathBuf,
        limits: Limits,
        stopping: Arc<AtomicBool>,
        standing: Standing,
    ) -> Relay {
        Relay {
            poll,
            server,
            upstream,
            limits,
            stopping,
            lanes: (0..LANES).map(|_| Lane::closed()).collect(),
            queue: VecDeque::new(),
            standing,
            reconnect: Reconnect { at: None, backoff: RECONNECT.start },
            spare_files: Vec::new(),
            unfinished: Vec::new(),
            unsaid: false,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        }
    }

    /// Relays until it is stopped and the last request in progress has come to its end.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut drained_by = None;
        self.tend_lanes(Instant::now());
        loop {
            if self.stopping.load(Ordering::Acquire) {
                let by = *drained_by.get_or_insert(Instant::now() + DRAIN_TIME);
                self.server.stop_accepting();
                self.cut_standing(Instant::now());
                if self.server.open_connections() == 0 || by <= Instant::now() {
                    return;
                }
            }
            if let Err(error) = self.turn(&mut events, drained_by) {
                return log::error!("the gate cannot wait for events any more: {error}");
            }
        }
    }

    fn turn(&mut self, events: &mut Events, drained_by: Option<Instant>) -> io::Result<()> {
        let deadline = [self.next_deadline(), drained_by].into_iter().flatten().min();
        let wait = match deadline {
            _ if self.unsaid || !self.unfinished.is_empty() => Some(Duration::ZERO),
            deadline => deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
        };
        match self.poll.poll(events, wait) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let now = Instant::now();
        for event in events.iter() {
            match event.token() {
                WAKE => {}
                token if self.server.owns(token) => self.server.ready(event, now),
                token => self.drive(token.0 - FIRST_LANE, now),
            }
        }
        for index in mem::take(&mut self.unfinished) {
            self.drive(index, now);
        }
        self.expire(now);
        self.say_to_standing(now);
        self.take_news_of_clients(now);
        self.tend_lanes(now);
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let lanes = self.lanes.iter().filter_map(Lane::deadline);
        let queue = self.queue.front().map(|waiting| waiting.until);
        let own = [self.server.next_deadline(), queue, self.reconnect.at];
        lanes.chain(own.into_iter().flatten()).min()
    }

    fn expire(&mut self, now: Instant) {
        self.server.expire(now);
        for index in 0..self.lanes.len() {
            if self.lanes[index].deadline().is_some_and(|deadline| deadline <= now) {
                self.give_up(index, now);
            }
        }
        while self.queue.front().is_some_and(|waiting| waiting.until <= now) {
            if let Some(waiting) = self.queue.pop_front() {
                self.refuse_busy(waiting.client, now);
            }
        }
        if self.reconnect.at.is_some_and(|at| at <= now) {
            self.reconnect.at = None;
        }
    }

    fn take_news_of_clients(&mut self, now: Instant) {
        while let Some((client, request)) = self.server.next_request() {
            self.pass_on(client, &request, now);
        }
        while let Some(client) = self.server.next_drained() {
            self.resume(client, now);
        }
        while let Some(client) = self.server.next_closed() {
            self.client_left(client, now);
        }
    }

    fn pass_on(&mut self, client: ConnectionId, request: &Request, now: Instant) {
        if self.queue.len() >= QUEUE {
            return self.refuse_busy(client, now);
        }
        let head_only = request.method == Method::Head;
        let bytes = request_bytes(request);
        self.queue.push_back(Waiting { client, head_only, bytes, until: now + QUEUE_TIME });
    }

    /// Gives waiting requests to lanes that are ready, and opens what is closed.
    fn tend_lanes(&mut self, now: Instant) {
        self.open_lane(now);
        while let Some(index) = self.lanes.iter().position(Lane::is_ready)
            && let Some(waiting) = self.queue.pop_front()
        {
            if !self.server.is_open(waiting.client) {
                continue;
            }
            let Waiting { client, head_only, bytes, .. } = waiting;
            let passage = Passage { client, head_only, until: now + ANSWER_TIME, answer: None, held_back: false };
            self.lanes[index].carry(bytes, passage);
            self.drive(index, now);
        }
    }

    /// Moves what there is to move on a lane.
    fn drive(&mut self, index: usize, now: Instant) {
        for _ in 0..STEPS {
            let was_proving = self.lanes[index].is_proving();
            match self.lanes[index].step(&mut self.scratch, &self.limits, now) {
                News::Nothing => return,
                News::Own => {}
                News::Began { head, body } => self.began(index, &head, &body, now),
                News::More { body } => self.more(index, &body, now),
                News::Broken(cause) => {
                    log::debug!("lane {index} to tiny_http: {cause}");
                    self.give_up(index, now);
                }
            }
            if was_proving && self.lanes[index].is_ready() {
                self.proved(index);
            }
        }
        self.unfinished.push(index);
    }

    fn began(&mut self, index: usize, head: &ResponseHead, body: &[u8], now: Instant) {
        let Some(passage) = self.lanes[index].passage() else { return };
        let whole = passage.answer.as_ref().is_some_and(|answer| answer.decoder.is_done());
        let client = passage.client;
        if let Some(what) = head.headers.get(HEADER) {
            let head_only = passage.head_only;
            self.stand(client, head, what.to_owned(), head_only, now);
        } else if self.server.is_open(client) {
            let head = stream_head(head, passage.head_only);
            let room = self.server.relay(client, &head, body, whole, now);
            passage.held_back = room == 0 && !whole;
        }
        self.went_on(index, whole, now);
    }

    fn more(&mut self, index: usize, body: &[u8], now: Instant) {
        let Some(passage) = self.lanes[index].passage() else { return };
        let whole = passage.answer.as_ref().is_some_and(|answer| answer.decoder.is_done());
        let client = passage.client;
        if self.server.is_open(client) {
            let room = self.server.stream(client, body, now);
            passage.held_back = room == 0 && !whole;
            if whole {
                self.server.finish_stream(client, now);
            }
        }
        self.went_on(index, whole, now);
    }

    /// A worker has begun an answer that another room goes on with. Half of all clients may have one: the others want
    /// to be answered too.
    fn stand(&mut self, client: ConnectionId, head: &ResponseHead, what: String, head_only: bool, now: Instant) {
        let head = StreamHead { length: None, ..stream_head(head, head_only) };
        if head_only {
            self.server.relay(client, &head, &[], true, now);
        } else if self.standing.is_full() || self.stopping.load(Ordering::Acquire) {
            self.refuse_busy(client, now);
        } else if self.server.is_open(client) {
            self.server.start_stream(client, &head, now);
            self.server.narrow_stream(client, KEPT_BYTES);
            self.standing.came(client, what);
        }
    }

    /// Taken before any of it is sent: what a room says to one that has become ready here is for the next turn. Fast readers
    /// and a fast room would never come to an end.
    fn say_to_standing(&mut self, now: Instant) {
        let said = self.standing.said(SAID_A_TURN);
        self.unsaid = said.len() == SAID_A_TURN;
        for one in said {
            match one {
                Say::Piece(client, bytes, skipped) if self.standing.stands(client) => {
                    if self.server.stream(client, &bytes[skipped..], now) > 0 {
                        self.standing.ready(client);
                    }
                }
                Say::End(client) if self.standing.ended(client) => self.server.finish_stream(client, now),
                Say::Cut(client) if self.standing.ended(client) => self.server.close(client, now),
                Say::Piece(..) | Say::End(_) | Say::Cut(_) => {}
            }
        }
    }

    /// They could go on for ever. Cut off, they see that it is not the end.
    fn cut_standing(&mut self, now: Instant) {
        for client in self.standing.all() {
            self.standing.left(client);
            self.server.close(client, now);
        }
    }

    /// A piece of an answer went through, or came for nobody.
    fn went_on(&mut self, index: usize, whole: bool, now: Instant) {
        let Some(passage) = self.lanes[index].passage() else { return };
        let Some(answer) = &passage.answer else { return };
        if whole && answer.keep_alive {
            return self.lanes[index].finish(now);
        }
        let worth_reading_over = answer.decoder.counted().is_some_and(|left| left <= READ_OVER_BYTES);
        if whole || !(self.server.is_open(passage.client) || worth_reading_over) {
            self.close_lane(index, now);
        } else if !self.server.is_open(passage.client) {
            passage.held_back = false;
        }
    }

    /// A client with a full buffer has room again.
    fn resume(&mut self, client: ConnectionId, now: Instant) {
        if self.standing.ready(client) {
            return;
        }
        if let Some(index) = self.lane_of(client) {
            if let Some(passage) = self.lanes[index].passage() {
                passage.held_back = false;
            }
            self.drive(index, now);
        }
    }

    /// A client went away or has shut down its side. Whether it still reads cannot be seen: a
    /// counted answer is worth sending, one without an end is not. An answer that has not begun keeps
    /// its lane until it has: closing it would not stop the worker, and tiny_http would queue the next. A request that no
    /// lane has begun goes with its client: the server counts its bytes no longer.
    fn client_left(&mut self, client: ConnectionId, now: Instant) {
        if self.standing.left(client) {
            return self.server.close(client, now);
        }
        if !self.server.is_open(client) {
            self.queue.retain(|waiting| waiting.client != client);
        }
        let Some(index) = self.lane_of(client) else { return };
        let Some(Passage { answer: Some(answer), .. }) = self.lanes[index].passage() else { return };
        if answer.decoder.counted().is_none() || !self.server.is_open(client) {
            self.server.close(client, now);
            self.close_lane(index, now);
        }
    }

    fn lane_of(&mut self, client: ConnectionId) -> Option<usize> {
        self.lanes.iter_mut().position(|lane| lane.passage().is_some_and(|passage| passage.client == client))
    }

    /// A lane broke, or took too long: its client is told, if it can still be told.
    fn give_up(&mut self, index: usize, now: Instant) {
        if let Some(Passage { client, answer, until, .. }) = self.lanes[index].passage() {
            let (client, begun, late) = (*client, answer.is_some(), *until <= now);
            if begun {
                // A cut connection is the only way left to say that the answer is not whole.
                self.server.close(client, now);
            } else {
                let (status, message) = match late {
                    true => (504, "the master did not answer in time"),
                    false => (502, "the master gave no whole answer; its log may say why"),
                };
                let refusal = Refusal::new(RefusalCode::Internal, message);
                self.server.respond(client, Response::refusal_as(status, &refusal), now);
            }
        }
        self.close_lane(index, now);
    }

    fn close_lane(&mut self, index: usize, now: Instant) {
        let proving = self.lanes[index].is_proving();
        self.lanes[index].close(self.poll.registry());
        if proving {
            self.back_off(now);
        }
    }

    /// Opens the next closed lane, one at a time.
    fn open_lane(&mut self, now: Instant) {
        if self.lanes.iter().any(Lane::is_proving)
            || self.reconnect.at.is_some()
            || self.stopping.load(Ordering::Acquire)
        {
            return;
        }
        let Some(index) = self.lanes.iter().position(Lane::is_closed) else { return };
        // tiny_http's listener dies, and its copy of the socket panics, when there is no descriptor
        // left: connect only with enough of them in hand, and let go of those just before.
        if let Err(error) = self.keep_spare_files() {
            log::warn!("cannot keep file descriptors for a connection to tiny_http: {error}");
            return self.back_off(now);
        }
        self.spare_files.clear();
        match Lane::open(&self.upstream, self.poll.registry(), Token(FIRST_LANE + index), now) {
            Ok(lane) => {
                self.lanes[index] = lane;
                self.drive(index, now);
            }
            Err(error) => {
                log::warn!("cannot connect to {}: {error}", self.upstream.display());
                self.back_off(now);
            }
        }
    }

    fn back_off(&mut self, now: Instant) {
        self.reconnect.at = Some(now + self.reconnect.backoff);
        self.reconnect.backoff = (self.reconnect.backoff * 2).min(RECONNECT.end);
    }

    /// A new lane is served: what was let go for it is kept again, and the next turn opens the next.
    fn proved(&mut self, index: usize) {
        self.unfinished.push(index);
        self.reconnect.backoff = RECONNECT.start;
        if let Err(error) = self.keep_spare_files() {
            log::debug!("cannot keep file descriptors for the next connection to tiny_http: {error}");
        }
    }

    fn keep_spare_files(&mut self) -> io::Result<()> {
        while self.spare_files.len() < SPARE_FILES {
            self.spare_files.push(File::open("/dev/null")?);
        }
        Ok(())
    }

    fn refuse_busy(&mut self, client: ConnectionId, now: Instant) {
        let refusal = Refusal::new(RefusalCode::Busy, "too much at once; ask again in a second");
        self.server.respond(client, Response::refusal(&refusal).with_header("Retry-After", "1"), now);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpStream};
    use std::sync::mpsc::channel;

    use super::*;

    /// A gate's thread, driven by hand, with nobody behind it.
    fn relay() -> Relay {
        let (poll, limits) = (Poll::new().unwrap(), Limits::default());
        let registry = poll.registry().try_clone().unwrap();
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), limits, registry, SERVER_TOKENS).unwrap();
        let standing = Standing::new(0, Box::new(drop), channel().1);
        Relay::new(poll, server, PathBuf::from("/nonexistent"), limits, Arc::default(), standing)
    }

    fn turn_until(relay: &mut Relay, what: &str, is_so: impl Fn(&Relay) -> bool) {
        let (give_up, mut events) = (Instant::now() + Duration::from_secs(20), Events::with_capacity(256));
        while !is_so(relay) {
            assert!(Instant::now() < give_up, "waited in vain for {what}");
            relay.turn(&mut events, Some(give_up)).unwrap();
        }
    }

    #[test]
    fn a_request_that_waits_for_a_lane_goes_with_its_client_and_stays_for_one_that_may_still_read() {
        let mut relay = relay();
        let addr = relay.server.local_addr().unwrap();
        let post = || {
            let mut stream = TcpStream::connect(addr).unwrap();
            // Closed with the interim answer unread, it is reset.
            let head = "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 10000\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            stream
        };
        let mut clients: Vec<TcpStream> = (0..20).map(|_| post()).collect();
        turn_until(&mut relay, "all heads", |relay| relay.server.open_connections() == 20);
        for stream in &mut clients {
            stream.peek(&mut [0]).unwrap();
            stream.write_all(&[b'x'; 10_000]).unwrap();
        }
        turn_until(&mut relay, "all bodies", |relay| relay.queue.len() == 20);
        let reads_on = clients.pop().unwrap();
        reads_on.shutdown(Shutdown::Write).unwrap();
        drop(clients);
        turn_until(&mut relay, "all that were reset", |relay| relay.server.open_connections() == 1);
        assert!(relay.queue.iter().all(|waiting| relay.server.is_open(waiting.client)));
        assert_eq!(relay.queue.len(), 1);
    }
}
