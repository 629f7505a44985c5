//! The serving side: one listener and its connections, driven by the owner of the `mio::Poll`.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Interest, Registry, Token};

use super::connection::{Connection, Progress};
use super::deadlines::Deadlines;
use super::eviction::{self, choose};
use super::framing_error::FramingError;
use super::limits::Limits;
use super::message::{Request, Response, StreamHead};

/// One read from a socket takes at most this much.
const SCRATCH_BYTES: usize = 32 << 10;
/// Connections beyond the bound that may be told so at the same time; more wait in the kernel.
pub const TURNED_AWAY: usize = 16;
/// Connections accepted in one turn; the rest has to wait until the others had theirs.
const ACCEPT_BATCH: usize = 64;
/// How long to wait for free file descriptors before accepting again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(250);

/// One connection for as long as it lives. A later one in the same slot has another generation, so
/// a stale id does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    slot: u32,
    generation: u32,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// A bounded HTTP/1.1 server that never blocks.
///
/// The owner calls [`ready`](Server::ready) for every event whose token it [`owns`](Server::owns),
/// and [`expire`](Server::expire) when [`next_deadline`](Server::next_deadline) has passed; then it
/// drains [`next_request`](Server::next_request) and after that [`next_closed`](Server::next_closed).
/// Every request must be answered by [`respond`](Server::respond), a stream, or
/// [`close`](Server::close): until then its connection reads nothing more and has no deadline.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    registry: Registry,
    tokens: Range<usize>,
    limits: Limits,
    slots: Vec<Slot>,
    /// Oldest first, so that a slot rests as long as possible before it is used again.
    free: VecDeque<usize>,
    open: usize,
    deadlines: Deadlines,
    accepting: Accepting,
    /// Those that were told there is no room and are not gone, the first that was told in front.
    turned_away: VecDeque<ConnectionId>,
    /// Bytes of all bodies being received or answered.
    held: usize,
    /// Bytes of all answers waiting for readers.
    waiting: usize,
    requests: VecDeque<(ConnectionId, Request)>,
    closed: VecDeque<ConnectionId>,
    drained: VecDeque<ConnectionId>,
    /// Connections that had their share of a turn and may have more to read, and since when.
    next_turn: BTreeSet<ConnectionId>,
    next_turn_at: Option<Instant>,
    scratch: Box<[u8]>,
}

/// Whether connections may wait in the kernel although no event will tell of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    /// The next event tells.
    OnEvent,
    /// Every slot was taken: once one is free.
    OnFreeSlot,
    /// File descriptors had run out: then, or once one of ours is free.
    At(Instant),
    /// Never again.
    Stopped,
}

impl Server {
    /// Listens on `addr`. The first token is the listener's, the others are for connections.
    pub fn bind(addr: SocketAddr, limits: Limits, registry: Registry, tokens: Range<usize>) -> io::Result<Server> {
        let mut listener = TcpListener::bind(addr)?;
        registry.register(&mut listener, Token(tokens.start), Interest::READABLE)?;
        Ok(Server {
            listener,
            registry,
            tokens,
            limits,
            slots: Vec::new(),
            free: VecDeque::new(),
            open: 0,
            deadlines: Deadlines::default(),
            accepting: Accepting::OnEvent,
            turned_away: VecDeque::new(),
            held: 0,
            waiting: 0,
            requests: VecDeque::new(),
            closed: VecDeque::new(),
            drained: VecDeque::new(),
            next_turn: BTreeSet::new(),
            next_turn_at: None,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        })
    }

    /// Where it listens; with port 0 asked for, the port that was given.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Whether an event with this token is ours.
    pub fn owns(&self, token: Token) -> bool {
        self.tokens.contains(&token.0)
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.open
    }

    /// Something has happened on one of our sockets.
    pub fn ready(&mut self, event: &mio::event::Event, now: Instant) {
        if event.token().0 == self.tokens.start {
            return self.accept(now);
        }
        let slot = event.token().0 - self.tokens.start - 1;
        let Some(connection) = self.slots.get_mut(slot).and_then(|slot| slot.connection.as_mut()) else { return };
        let hung_up = event.is_error() || event.is_write_closed();
        if hung_up && connection.in_progress() {
            return self.end(slot, now);
        }
        if event.is_readable() || event.is_read_closed() {
            connection.note_readable(event.is_read_closed());
        }
        if event.is_read_closed() && connection.in_progress() && connection.notice_finish(&self.limits, now) {
            self.closed.push_back(self.id(slot));
        }
        self.drive(slot, now);
    }

    /// The next whole request of somebody who is still there.
    pub fn next_request(&mut self) -> Option<(ConnectionId, Request)> {
        loop {
            let (id, request) = self.requests.pop_front()?;
            let Some(connection) = self.connection(id) else { continue };
            // Its owner may have been told before it knew of the request.
            if connection.has_finished() && !self.closed.contains(&id) {
                self.closed.push_back(id);
            }
            return Some((id, request));
        }
    }

    /// Whether [`next_request`](Server::next_request) has been left some: no event will tell of them.
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// The next client that went away, or finished sending, while its request was in progress. One
    /// that only finished sending may still read ([`is_open`](Server::is_open)): a short answer is
    /// worth sending, a parked poll or an endless stream is not, and is ended by
    /// [`close`](Server::close).
    pub fn next_closed(&mut self) -> Option<ConnectionId> {
        self.closed.pop_front()
    }

    /// The next stream that was full and has room again.
    pub fn next_drained(&mut self) -> Option<ConnectionId> {
        self.drained.pop_front()
    }

    /// When [`expire`](Server::expire) must be called; `None` while nothing is connected.
    pub fn next_deadline(&self) -> Option<Instant> {
        let accept = match self.accepting {
            Accepting::At(instant) => Some(instant),
            Accepting::OnEvent | Accepting::OnFreeSlot | Accepting::Stopped => None,
        };
        [self.deadlines.next(), accept, self.next_turn_at].into_iter().flatten().min()
    }

    /// Ends what has taken too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some(slot) = self.deadlines.take_due(now) {
            self.run(slot, now, |connection, limits, scratch| connection.expire(limits, scratch, now));
        }
        self.next_turn_at = None;
        for id in std::mem::take(&mut self.next_turn) {
            if self.is_open(id) {
                self.drive(id.slot as usize, now);
            }
        }
        if matches!(self.accepting, Accepting::At(instant) if instant <= now) {
            self.accept(now);
        }
    }

    /// Whether this connection still lives.
    pub fn is_open(&self, id: ConnectionId) -> bool {
        self.slots
            .get(id.slot as usize)
            .is_some_and(|slot| slot.generation == id.generation && slot.connection.is_some())
    }

    /// Answers. A stale id, or one that is being answered already, does nothing.
    pub fn respond(&mut self, id: ConnectionId, response: Response, now: Instant) {
        self.with(id, now, |connection| connection.respond(response));
    }

    /// Begins an answer whose body comes in pieces.
    pub fn start_stream(&mut self, id: ConnectionId, head: &StreamHead, now: Instant) {
        self.relay(id, head, &[], false, now);
    }

    /// Begins an answer with what is there of its body already, and ends it if that is the `whole`:
    /// one write for an answer that has come in one read. Gives the room that is left.
    pub fn relay(&mut self, id: ConnectionId, head: &StreamHead, body: &[u8], whole: bool, now: Instant) -> usize {
        let limits = self.limits;
        self.with(id, now, |connection| {
            connection.start_stream(head, &limits);
            connection.stream(body);
            if whole {
                connection.finish_stream();
            }
        });
        self.room(id)
    }

    /// Sends a piece of a streamed body at once, or as soon as its reader takes it. Gives the room
    /// that is left: at 0 the owner should wait for [`next_drained`](Server::next_drained). A stale
    /// id has no room.
    pub fn stream(&mut self, id: ConnectionId, bytes: &[u8], now: Instant) -> usize {
        self.with(id, now, |connection| connection.stream(bytes));
        self.room(id)
    }

    /// Room left in a stream; 0 for a stale id.
    pub fn room(&mut self, id: ConnectionId) -> usize {
        self.connection(id).map_or(0, Connection::room)
    }

    /// Keeps no more than so many bytes of a stream for its reader, where the limits would allow more.
    pub fn narrow_stream(&mut self, id: ConnectionId, bytes: usize) {
        if let Some(connection) = self.connection(id) {
            connection.narrow_stream(bytes);
        }
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.connection.as_mut() } else { None }
    }

    /// Ends a streamed body.
    pub fn finish_stream(&mut self, id: ConnectionId, now: Instant) {
        self.with(id, now, Connection::finish_stream);
    }

    /// Closes a connection at once, whatever it was doing; a half-sent answer shows as cut off.
    pub fn close(&mut self, id: ConnectionId, now: Instant) {
        if self.is_open(id) {
            self.forget(id.slot as usize);
            self.accept_into_free_slot(now);
        }
    }

    /// Gives the socket of a request that waits for its answer away: deregistered and blocking, for
    /// a process that writes the answer itself and closes. `None`: the client has gone.
    pub fn hand_over(&mut self, id: ConnectionId) -> Option<std::net::TcpStream> {
        if !self.is_open(id) || !self.slots[id.slot as usize].connection.as_ref()?.is_asked() {
            return None;
        }
        let connection = self.forget(id.slot as usize)?;
        self.accept_into_free_slot(Instant::now());
        let stream = std::net::TcpStream::from(connection.stream);
        match stream.set_nonblocking(false) {
            Ok(()) => Some(stream),
            Err(error) => {
                log::warn!("cannot hand a connection over: {error}");
                None
            }
        }
    }

    /// Takes no new connections, and closes those that ask nothing. Requests in progress go on.
    pub fn stop_accepting(&mut self) {
        self.accepting = Accepting::Stopped;
        let _ = self.registry.deregister(&mut self.listener);
        for slot in 0..self.slots.len() {
            if self.slots[slot].connection.as_ref().is_some_and(Connection::is_idle) {
                self.forget(slot);
            }
        }
    }

    /// Lets the owner change a connection, then drives it as far as it goes.
    fn with(&mut self, id: ConnectionId, now: Instant, change: impl FnOnce(&mut Connection)) {
        if !self.is_open(id) {
            return;
        }
        let slot = id.slot as usize;
        self.accounted(slot, change);
        self.drive(slot, now);
        self.shed(now);
    }

    fn drive(&mut self, slot: usize, now: Instant) {
        self.run(slot, now, |connection, limits, scratch| connection.drive(limits, scratch, now));
        let receiving = self.slots[slot].connection.as_ref().is_some_and(|connection| connection.held() > 0);
        if receiving && self.held > self.limits.all_bodies_bytes {
            self.requests.retain(|(id, _)| id.slot as usize != slot);
            self.run(slot, now, |connection, limits, scratch| {
                connection.refuse(FramingError::Busy, limits, scratch, now)
            });
        }
    }

    /// Lets a connection do something and draws the consequences.
    fn run(
        &mut self,
        slot: usize,
        now: Instant,
        something: impl FnOnce(&mut Connection, &Limits, &mut [u8]) -> Progress,
    ) {
        let limits = self.limits;
        let mut scratch = std::mem::take(&mut self.scratch);
        let progress = self.accounted(slot, |connection| something(connection, &limits, &mut scratch));
        self.scratch = scratch;
        if let Some(progress) = progress {
            self.settle(slot, progress, now);
        }
    }

    /// Keeps the sums true around a change.
    fn accounted<T>(&mut self, slot: usize, change: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let connection = self.slots[slot].connection.as_mut()?;
        self.held -= connection.held();
        self.waiting -= connection.waiting();
        let result = change(connection);
        self.held += connection.held();
        self.waiting += connection.waiting();
        Some(result)
    }

    /// Draws the consequences of what a connection has come to.
    fn settle(&mut self, slot: usize, progress: Progress, now: Instant) {
        let id = self.id(slot);
        match progress {
            Progress::Over => return self.end(slot, now),
            Progress::Complete(request) => {
                self.requests.push_back((id, request));
                let connection = self.slots[slot].connection.as_mut();
                if connection.is_some_and(|connection| connection.notice_finish_ahead(&self.limits, now)) {
                    self.closed.push_back(id);
                }
            }
            Progress::NextTurn => {
                self.next_turn.insert(id);
                self.next_turn_at.get_or_insert(now);
            }
            Progress::Waiting => {}
        }
        let Some(connection) = self.slots[slot].connection.as_mut() else { return };
        if connection.take_drained() {
            self.drained.push_back(id);
        }
        self.deadlines.set(slot, connection.deadline());
    }

    fn accept(&mut self, now: Instant) {
        if self.accepting == Accepting::Stopped {
            return;
        }
        self.accepting = Accepting::OnEvent;
        for _ in 0..ACCEPT_BATCH {
            let Some(slot) = self.vacant_slot() else {
                self.accepting = Accepting::OnFreeSlot;
                return;
            };
            match self.listener.accept() {
                Ok((stream, peer)) => self.admit(slot, stream, peer, now),
                Err(error) => {
                    self.free.push_back(slot);
                    match error.kind() {
                        ErrorKind::WouldBlock => return,
                        // The client gave up before its turn (accept(2)).
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                        _ if self.evict(None, now) => {}
                        _ => return self.rest(&error, now),
                    }
                }
            }
        }
        self.accepting = Accepting::At(now);
    }

    /// No file descriptors or memory: the listener stays, and looks again later.
    fn rest(&mut self, error: &io::Error, now: Instant) {
        log::warn!("cannot accept a connection: {error}; trying again in {} ms", ACCEPT_AGAIN.as_millis());
        self.accepting = Accepting::At(now + ACCEPT_AGAIN);
    }

    fn admit(&mut self, slot: usize, mut stream: mio::net::TcpStream, peer: SocketAddr, now: Instant) {
        if !self.has_room() {
            self.evict(Some(eviction::holder(peer.ip())), now);
        }
        let _ = stream.set_nodelay(true);
        let token = Token(self.tokens.start + 1 + slot);
        if let Err(error) = self.registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE) {
            log::warn!("cannot watch a connection: {error}");
            self.free.push_back(slot);
            return;
        }
        let connection = if self.has_room() {
            Connection::new(stream, peer, &self.limits, now)
        } else {
            self.turned_away.push_back(self.id(slot));
            Connection::turned_away(stream, peer, &self.limits, now)
        };
        self.open += 1;
        self.waiting += connection.waiting();
        self.slots[slot].connection = Some(connection);
        self.drive(slot, now);
    }

    /// Whether one more is served. Those that were turned away take no place.
    fn has_room(&self) -> bool {
        self.open - self.turned_away.len() < self.limits.connections
    }

    fn vacant_slot(&mut self) -> Option<usize> {
        let most = (self.limits.connections + TURNED_AWAY).min(self.tokens.len().saturating_sub(1));
        if self.slots.len() < most && self.free.is_empty() {
            self.slots.push(Slot::default());
            return Some(self.slots.len() - 1);
        }
        // Who is told that there is no room must not keep those waiting in the kernel for whom room is made.
        if self.free.is_empty()
            && let Some(id) = self.turned_away.pop_front()
        {
            self.forget(id.slot as usize);
        }
        self.free.pop_front()
    }

    /// A slot is free again: whoever waits in the kernel for one is let in.
    fn accept_into_free_slot(&mut self, now: Instant) {
        match self.accepting {
            Accepting::OnFreeSlot | Accepting::At(_) => self.accept(now),
            Accepting::OnEvent | Accepting::Stopped => {}
        }
    }

    /// Makes room for a connection of this holder, if it may have some.
    fn evict(&mut self, newcomer: Option<IpAddr>, now: Instant) -> bool {
        let open = self.slots.iter().enumerate().filter_map(|(slot, it)| Some((slot, it.connection.as_ref()?)));
        let served = open.filter(|(slot, _)| !self.turned_away.contains(&self.id(*slot)));
        let all: Vec<_> = served.map(|(slot, it)| (slot, eviction::holder(it.peer().ip()), it.idler())).collect();
        choose(&all, newcomer, now).is_some_and(|slot| self.forget(slot).is_some())
    }

    /// Over the bounds of all connections together, the ones that take most are ended.
    fn shed(&mut self, now: Instant) {
        while self.waiting > self.limits.all_answers_bytes {
            let stalled = |slot: &Slot| slot.connection.as_ref().and_then(Connection::stalled_until);
            let slowest = (0..self.slots.len()).filter(|slot| stalled(&self.slots[*slot]).is_some());
            let Some(slot) = slowest.min_by_key(|slot| stalled(&self.slots[*slot])) else { return };
            log::warn!("dropped a slow reader: {} bytes of answers were waiting", self.waiting);
            self.end(slot, now);
        }
    }

    /// A connection is over; its owner learns of it if it was at work for it.
    fn end(&mut self, slot: usize, now: Instant) {
        let id = self.id(slot);
        if let Some(connection) = self.forget(slot)
            && connection.in_progress()
        {
            self.closed.push_back(id);
        }
        self.accept_into_free_slot(now);
    }

    fn forget(&mut self, slot: usize) -> Option<Connection> {
        let mut connection = self.slots[slot].connection.take()?;
        let id = self.id(slot);
        self.turned_away.retain(|turned_away| *turned_away != id);
        // A forked child may still hold the socket: then closing alone would leave it registered.
        let _ = self.registry.deregister(&mut connection.stream);
        self.held -= connection.held();
        self.waiting -= connection.waiting();
        self.open -= 1;
        self.deadlines.set(slot, None);
        self.slots[slot].generation = self.slots[slot].generation.wrapping_add(1);
        self.free.push_back(slot);
        Some(connection)
    }

    fn id(&self, slot: usize) -> ConnectionId {
        ConnectionId { slot: u32::try_from(slot).unwrap_or(u32::MAX), generation: self.slots[slot].generation }
    }
}
