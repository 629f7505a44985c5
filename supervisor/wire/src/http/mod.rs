//! HTTP/1.1 framing on mio and httparse (RFC 9112), bounded in every direction.
//!
//! Three users: the supervisor's [`Server`], the master's gate (the same [`Server`], relaying), and
//! the master's poller ([`Client`]). It frames and bounds; it knows no routes, no JSON, no tokens.
//! Nothing here blocks, sleeps or starts a thread: the owner of the `mio::Poll` drives it with
//! `ready`, `expire` and `next_deadline`, and drains `next_request` after each turn.
