//! The network side of the master: it alone accepts from the network.
//!
//! A thread on [`wire::http::Server`]. What comes whole, normal and bounded is said again in our own
//! words to tiny_http behind a private Unix socket, over a few connections that stay; answers are
//! relayed as they arrive. So nothing a stranger sends reaches tiny_http, which aborts on a giant
//! Content-Length, reads a head without end, has no time-outs, loses its listener when file
//! descriptors run out, and leaves some of many keep-alive clients unanswered.
//!
//! ```text
//!   clients ──▶ wire::http::Server ──▶ queue ──▶ lanes ──Unix socket──▶ tiny_http ──▶ workers
//!           ◀── at their own pace ◀───────────── as it comes ◀─────────
//! ```
//!
//! An answer that goes on for long, as a log does that is followed, gives its lane back and stands (`standing.rs`).
//!
//! It knows no routes, no tokens and no JSON but that of its own refusals. It never blocks, and
//! sleeps while nothing happens.

mod lane;
mod private_socket;
mod relay;
mod standing;
#[cfg(test)]
mod tests;
mod translate;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use mio::{Poll, Waker};
use wire::http::{Limits, Server, TURNED_AWAY};

pub use private_socket::listen_privately;
pub use relay::LANES;
use relay::{Relay, SERVER_TOKENS, SPARE_FILES, WAKE};
use standing::Standing;
pub use standing::{HEADER as STANDS, News, Say, Voice};

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The network address cannot be listened on.
    #[error("cannot listen on {addr}: {cause}; hint: is another master running there? give --listen ADDR:PORT")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The private socket cannot be made.
    #[error("cannot make the private socket {path}: {cause}")]
    PrivateSocket {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// So few files may be open that tiny_http would be refused one.
    #[error("cannot serve with {open_files} open files; hint: ulimit -n {needed}, or more")]
    TooFewFiles {
        /// How many there may be.
        open_files: usize,
        /// How many there must be.
        needed: usize,
    },
    /// No poll, no thread.
    #[error("cannot start the gate: {0}")]
    Start(#[from] io::Error),
}

/// A running gate.
#[derive(Debug)]
pub struct Gate {
    addr: SocketAddr,
    stopping: Arc<AtomicBool>,
    voice: Voice,
    waker: Arc<Waker>,
    thread: JoinHandle<()>,
}

/// Opens the gate: clients come in at `listen`, their requests go on to the HTTP server at the Unix
/// socket `upstream`, which must be listening already. `kept_files`: how many files the rest of the process may ever
/// have open at once. `tell` hears of the clients whose answers stand, on the gate's thread.
pub fn start(
    listen: SocketAddr,
    upstream: PathBuf,
    limits: Limits,
    kept_files: usize,
    tell: impl FnMut(News) + Send + 'static,
) -> Result<Gate, GateError> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let limits = within_file_limit(limits, kept_files)?;
    let server = Server::bind(listen, limits, poll.registry().try_clone()?, SERVER_TOKENS)
        .map_err(|cause| GateError::Listen { addr: listen, cause })?;
    let addr = server.local_addr()?;
    let stopping = Arc::new(AtomicBool::new(false));
    let (to_gate, said) = channel();
    let voice = Voice::new(to_gate, Arc::clone(&waker));
    let standing = Standing::new(limits.connections / 2, Box::new(tell), said);
    let relay = Relay::new(poll, server, upstream, limits, Arc::clone(&stopping), standing);
    let thread = std::thread::Builder::new().name("gate".to_owned()).spawn(move || relay.run())?;
    Ok(Gate { addr, stopping, voice, waker, thread })
}

impl Gate {
    /// Where it listens; with port 0 asked for, the port that was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What to say to clients whose answers stand.
    pub fn voice(&self) -> Voice {
        self.voice.clone()
    }

    /// Takes no new connections, cuts answers that stand, lets requests in progress come to their end for some seconds, and
    /// returns when the last connection is closed.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            return log::error!("cannot stop the gate: {error}");
        }
        if self.thread.join().is_err() {
            log::error!("the gate ended before it was stopped");
        }
    }
}

/// The gate's own: its epoll and the copy in its registry, its waker, two listeners, the clients that are told that there is
/// no room, and one more about to be.
const OWN_FILES: usize = 6 + TURNED_AWAY + SPARE_FILES;
/// A connection to tiny_http: our end, its end, and the copy it makes.
const FILES_A_LANE: usize = 3;
/// Fewer clients than this at once are not worth a start.
const LEAST_CLIENTS: usize = 8;

/// Clients get the file descriptors that nobody else will ever need: tiny_http does not survive a refusal, so it
/// must not come to one.
fn within_file_limit(limits: Limits, kept_files: usize) -> Result<Limits, GateError> {
    let Some(open_files) = soft_file_limit(Path::new("/proc/self/limits")) else { return Ok(limits) };
    let others = kept_files + OWN_FILES + FILES_A_LANE * LANES;
    let connections = limits.connections.min(open_files.saturating_sub(others));
    if connections < LEAST_CLIENTS {
        return Err(GateError::TooFewFiles { open_files, needed: others + LEAST_CLIENTS });
    }
    if connections < limits.connections {
        log::info!("taking {connections} connections at once: {open_files} files may be open (ulimit -n)");
    }
    Ok(Limits { connections, ..limits })
}

/// The soft limit on open files (proc_pid_limits(5)); `None` where there is none.
fn soft_file_limit(limits: &Path) -> Option<usize> {
    let text = std::fs::read_to_string(limits).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
