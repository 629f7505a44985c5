//! How much of anything a peer may take: bytes, headers, time, connections.

use std::time::Duration;

/// The bounds of one server or client. Everything a peer can make grow is named here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The request or status line and all headers together, in bytes; more is answered 431.
    pub head_bytes: usize,
    /// The request line alone, in bytes; more is answered 414.
    pub line_bytes: usize,
    /// Headers of one message; more is answered 431.
    pub headers: usize,
    /// The body of one message, in bytes; more is answered 413.
    pub body_bytes: usize,
    /// All bodies that are being received or answered, in bytes; more is answered 503.
    pub all_bodies_bytes: usize,
    /// About how much is read of one connection in one turn, in bytes, on either side: one that always has more must not
    /// keep the others, or its own deadline, waiting.
    pub turn_bytes: usize,
    /// How much of a streamed answer waits for a slow reader, in bytes, before its writer is held back.
    pub stream_bytes: usize,
    /// All answers that wait for slow readers, in bytes; beyond it the slowest is dropped.
    pub all_answers_bytes: usize,
    /// How long a connection may lie between requests.
    pub idle: Duration,
    /// How long a whole head may take, from its first byte (of a client: from the request's last).
    pub head_time: Duration,
    /// How long a whole body may take, from the end of its head.
    pub body_time: Duration,
    /// How long a reader may take for the next 16 KiB of an answer.
    pub write_stall: Duration,
    /// How long a refused peer may go on sending, so that it reads the refusal before the reset.
    pub linger: Duration,
    /// How many connections are served at once; one more is answered 503.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes: 16 << 10,
            line_bytes: 8 << 10,
            headers: 64,
            body_bytes: 4 << 20,
            all_bodies_bytes: 64 << 20,
            turn_bytes: 128 << 10,
            stream_bytes: 1 << 20,
            all_answers_bytes: 64 << 20,
            idle: Duration::from_secs(30),
            head_time: Duration::from_secs(10),
            body_time: Duration::from_secs(60),
            write_stall: Duration::from_secs(30),
            linger: Duration::from_secs(2),
            connections: 1000,
        }
    }
}
