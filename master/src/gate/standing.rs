//! Answers that stand: their request is done with and their lane is free, and what they go on to say comes from another
//! room, piece by piece, for as long as there is something to say.
//!
//! ```text
//!   worker ──head with [`HEADER`]──▶ lane ──▶ client: head, Transfer-Encoding: chunked       the lane is free again
//!                                    └──────▶ News::Came ──▶ the room ──Say::Piece──▶ client ──▶ News::Ready ──▶ ...
//! ```
//!
//! A client that stands costs a file descriptor and a bounded buffer, and no lane, worker or thread. The room may give a
//! client one piece, and the next only once the gate says that there is room for it: a slow reader holds up itself. The
//! header is a word between a worker and the gate. What it says is for the room; the gate does not read it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use mio::Waker;
use wire::http::ConnectionId;

/// With it a worker's answer becomes one that stands. Never taken from a client, never shown to one.
pub const HEADER: &str = "X-Berth-Stands";
/// How much waits for a slow reader before the room hears that it is not ready.
pub(super) const KEPT_BYTES: usize = 64 << 10;

/// What the room hears of its clients.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// This one's answer stands from now on; the header said so. It is ready for a piece.
    Came(ConnectionId, String),
    /// It has room for the next piece.
    Ready(ConnectionId),
    /// It has gone, or was too slow.
    Left(ConnectionId),
}

/// What the room has said to a client. To one that has gone it says nothing.
#[derive(Debug)]
pub enum Say {
    /// These bytes, but for the first so many.
    Piece(ConnectionId, Arc<Vec<u8>>, usize),
    /// That was all.
    End(ConnectionId),
    /// There is more, but not here: the connection is cut, so that it does not look like an end.
    Cut(ConnectionId),
}

/// The room's voice: what is said is sent by the gate's thread.
#[derive(Clone)]
pub struct Voice {
    to_gate: Sender<Say>,
    waker: Arc<Waker>,
}

impl Voice {
    pub(super) fn new(to_gate: Sender<Say>, waker: Arc<Waker>) -> Voice {
        Voice { to_gate, waker }
    }

    /// Says all of it, in this order.
    pub fn say(&self, all: impl IntoIterator<Item = Say>) {
        let mut said = false;
        for one in all {
            said |= self.to_gate.send(one).is_ok();
        }
        if said && let Err(error) = self.waker.wake() {
            log::error!("cannot wake the gate: {error}");
        }
    }
}

impl fmt::Debug for Voice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Voice")
    }
}

/// The gate's side: who stands, and both directions of talk.
pub(super) struct Standing {
    clients: BTreeSet<ConnectionId>,
    most: usize,
    tell: Box<dyn FnMut(News) + Send>,
    said: Receiver<Say>,
}

impl Standing {
    /// At most so many at once.
    pub(super) fn new(most: usize, tell: Box<dyn FnMut(News) + Send>, said: Receiver<Say>) -> Standing {
        Standing { clients: BTreeSet::new(), most, tell, said }
    }

    pub(super) fn is_full(&self) -> bool {
        self.clients.len() >= self.most
    }

    pub(super) fn came(&mut self, client: ConnectionId, what: String) {
        self.clients.insert(client);
        (self.tell)(News::Came(client, what));
    }

    /// Whether it stands; if so, the room hears that it is ready.
    pub(super) fn ready(&mut self, client: ConnectionId) -> bool {
        let stands = self.clients.contains(&client);
        if stands {
            (self.tell)(News::Ready(client));
        }
        stands
    }

    /// Whether it stood; if so, the room hears that it left.
    pub(super) fn left(&mut self, client: ConnectionId) -> bool {
        let stood = self.clients.remove(&client);
        if stood {
            (self.tell)(News::Left(client));
        }
        stood
    }

    /// It stands no more, by the room's own word.
    pub(super) fn ended(&mut self, client: ConnectionId) -> bool {
        self.clients.remove(&client)
    }

    pub(super) fn stands(&self, client: ConnectionId) -> bool {
        self.clients.contains(&client)
    }

    /// What was said and is not sent yet, so much of it at most.
    pub(super) fn said(&self, most: usize) -> Vec<Say> {
        self.said.try_iter().take(most).collect()
    }

    /// All who stand.
    pub(super) fn all(&self) -> Vec<ConnectionId> {
        self.clients.iter().copied().collect()
    }
}
