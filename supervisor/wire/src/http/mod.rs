//! HTTP/1.1 framing on mio and httparse (RFC 9112), bounded in every direction.
//!
//! Three users: the supervisor's [`Server`], the master's gate (the same [`Server`], relaying), and
//! the master's poller ([`Client`]). It frames and bounds; it knows no routes, no tokens, and of JSON
//! only how to write an answer. Nothing here blocks, sleeps or starts a thread: the owner of the
//! `mio::Poll` drives it with `ready`, `expire` and `next_deadline`, and drains `next_request` (or
//! `next_outcome`) after each turn.
//!
//! | file | owns |
//! |---|---|
//! | `limits` | how much of anything a peer may take |
//! | `message` | requests, responses, headers, queries: the words |
//! | `framing_error` | why a message was refused, and what the peer is told |
//! | `head` | bytes to request and response heads, pure |
//! | `body` | bytes to a body: counted, chunked or until the end, pure |
//! | `output` | bytes that wait to be written, and the reader's pace |
//! | `connection` | one accepted socket from its first byte to its last |
//! | `deadlines` | which slot must be looked at when |
//! | `lines` | which exchange has the next turn, pure |
//! | `eviction` | which connection makes room for another, pure |
//! | `server`, `client` | all connections of one side |

mod body;
mod client;
mod connection;
mod deadlines;
mod eviction;
mod framing_error;
mod head;
mod limits;
mod lines;
mod message;
mod output;
mod server;
#[cfg(test)]
mod tests;

pub use body::BodyDecoder;
pub use client::{Client, ClientRequest, ClientResponse, ExchangeError, ExchangeId, Outcome, Queue};
pub use framing_error::FramingError;
pub use head::{BodyLength, ResponseHead, read_response_head};
pub use limits::Limits;
pub use message::{Headers, Method, Query, Request, Response, StreamHead, reason_phrase};
pub use output::Output;
pub use server::{ConnectionId, Server, TURNED_AWAY};
