//! One connection to tiny_http, and what is under way on it.
//!
//! ```text
//!   Closed ──connect──▶ Proving ──any answer──▶ Ready ──request──▶ Busy ──answer whole──▶ Ready
//!     ▲                    │                                         │   └─ request not yet ─▶ Finishing ─▶ Ready
//!     └────────────────────┴──── broken, too late, given up ─────────┘
//! ```
//!
//! Proving: tiny_http hands a new connection to a thread of its pool, and under a burst to one that
//! is about to serve another for good. A connection is trusted with a client's request once a probe
//! of ours was answered, and only one is proved at a time.

use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use wire::http::{BodyDecoder, ConnectionId, FramingError, Limits, Output, ResponseHead, read_response_head};

/// What proves that a connection is served: any answer will do, 401 and 404 too.
const PROBE: &[u8] = b"HEAD /.gate HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// How long tiny_http's workers may be too busy to answer a probe.
const PROBE_TIME: Duration = Duration::from_secs(30);
/// The socket's other end is this process; there is no slow reader, only a busy one.
const WRITE_STALL: Duration = Duration::from_secs(60);

/// One connection to tiny_http.
#[derive(Debug)]
pub(super) struct Lane {
    stage: Stage,
    socket: Option<UnixStream>,
    output: Output,
    /// Part of an answer's head.
    input: Vec<u8>,
}

#[derive(Debug)]
enum Stage {
    Closed,
    Proving {
        until: Instant,
    },
    Ready,
    Busy(Passage),
    /// The answer is whole, its request is still being read by nobody in particular.
    Finishing {
        until: Instant,
    },
}

/// A request on its way through, and its answer on the way back.
#[derive(Debug)]
pub(super) struct Passage {
    pub(super) client: ConnectionId,
    pub(super) head_only: bool,
    /// When the answer must have begun.
    pub(super) until: Instant,
    pub(super) answer: Option<Answer>,
    /// The client's buffer is full: nothing is read until it has room.
    pub(super) held_back: bool,
}

/// An answer whose head has gone to the client.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) decoder: BodyDecoder,
    pub(super) keep_alive: bool,
}

/// What came off a lane in one step.
#[derive(Debug)]
pub(super) enum News {
    /// Nothing more for now.
    Nothing,
    /// Bytes that were of no interest to a client; there may be more.
    Own,
    /// The head of the answer and what there is of its body.
    Began { head: ResponseHead, body: Vec<u8> },
    /// More of the body.
    More { body: Vec<u8> },
    /// The connection is of no use any more.
    Broken(Broken),
}

/// Why a lane is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Framing(#[from] FramingError),
    #[error("it said something unasked")]
    Unasked,
    #[error("it ended")]
    Ended,
}

impl Lane {
    pub(super) const fn closed() -> Lane {
        Lane { stage: Stage::Closed, socket: None, output: Output::new(), input: Vec::new() }
    }

    /// Connects and asks the probe.
    pub(super) fn open(path: &Path, registry: &Registry, token: Token, now: Instant) -> io::Result<Lane> {
        let mut socket = UnixStream::connect(path)?;
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        let mut lane =
            Lane { stage: Stage::Proving { until: now + PROBE_TIME }, socket: Some(socket), ..Lane::closed() };
        lane.output.push(PROBE);
        Ok(lane)
    }

    pub(super) fn close(&mut self, registry: &Registry) {
        if let Some(mut socket) = self.socket.take() {
            let _ = registry.deregister(&mut socket);
        }
        *self = Lane::closed();
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.stage, Stage::Closed)
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    pub(super) fn is_proving(&self) -> bool {
        matches!(self.stage, Stage::Proving { .. })
    }

    pub(super) fn passage(&mut self) -> Option<&mut Passage> {
        match &mut self.stage {
            Stage::Busy(passage) => Some(passage),
            Stage::Closed | Stage::Proving { .. } | Stage::Ready | Stage::Finishing { .. } => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Proving { until } | Stage::Finishing { until } => Some(*until),
            Stage::Busy(Passage { until, answer: None, .. }) => Some(*until),
            Stage::Busy(_) | Stage::Closed | Stage::Ready => None,
        }
    }

    /// Sends a client's request along.
    pub(super) fn carry(&mut self, bytes: Vec<u8>, passage: Passage) {
        self.output.push_owned(bytes);
        self.stage = Stage::Busy(passage);
    }

    /// The answer is whole.
    pub(super) fn finish(&mut self, now: Instant) {
        self.input = Vec::new();
        self.stage = if self.output.is_empty() { Stage::Ready } else { Stage::Finishing { until: now + WRITE_STALL } };
    }

    /// Writes what waits, then reads one piece.
    pub(super) fn step(&mut self, scratch: &mut [u8], limits: &Limits, now: Instant) -> News {
        match self.try_step(scratch, limits, now) {
            Ok(news) => news,
            Err(broken) => News::Broken(broken),
        }
    }

    fn try_step(&mut self, scratch: &mut [u8], limits: &Limits, now: Instant) -> Result<News, Broken> {
        let Some(socket) = self.socket.as_mut() else { return Ok(News::Nothing) };
        self.output.flush(socket, WRITE_STALL, now)?;
        if let (Stage::Finishing { .. }, true) = (&self.stage, self.output.is_empty()) {
            self.stage = Stage::Ready;
        }
        if matches!(&self.stage, Stage::Busy(Passage { held_back: true, .. })) {
            return Ok(News::Nothing);
        }
        match socket.read(scratch) {
            Ok(0) => self.ended(),
            Ok(count) => self.understand(&scratch[..count], limits, now),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(News::Nothing),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(News::Own),
            Err(error) => Err(error.into()),
        }
    }

    fn ended(&mut self) -> Result<News, Broken> {
        match &mut self.stage {
            Stage::Busy(Passage { answer: Some(answer), .. }) => {
                answer.decoder.end()?;
                Ok(News::More { body: Vec::new() })
            }
            _ => Err(Broken::Ended),
        }
    }

    fn understand(&mut self, bytes: &[u8], limits: &Limits, now: Instant) -> Result<News, Broken> {
        let head_only = match &mut self.stage {
            Stage::Busy(Passage { answer: Some(answer), .. }) => {
                let mut body = Vec::with_capacity(bytes.len());
                let taken = answer.decoder.take(bytes, &mut body)?;
                answer.keep_alive &= taken == bytes.len();
                return Ok(News::More { body });
            }
            Stage::Busy(passage) => passage.head_only,
            Stage::Proving { .. } => true,
            Stage::Closed | Stage::Ready | Stage::Finishing { .. } => return Err(Broken::Unasked),
        };
        self.input.extend_from_slice(bytes);
        while let Some((head, length)) = read_response_head(&self.input, head_only, limits)? {
            self.input.drain(..length);
            if head.status >= 200 {
                return self.begin(head, now);
            }
        }
        Ok(News::Own)
    }

    fn begin(&mut self, head: ResponseHead, now: Instant) -> Result<News, Broken> {
        let rest = std::mem::take(&mut self.input);
        let Stage::Busy(passage) = &mut self.stage else {
            if !head.keep_alive || !rest.is_empty() {
                return Err(Broken::Unasked);
            }
            self.finish(now);
            return Ok(News::Own);
        };
        let mut decoder = BodyDecoder::new(head.body, u64::MAX);
        let mut body = Vec::new();
        let taken = decoder.take(&rest, &mut body)?;
        passage.answer = Some(Answer { decoder, keep_alive: head.keep_alive && taken == rest.len() });
        Ok(News::Began { head, body })
    }
}
