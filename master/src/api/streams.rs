//! The threads that send long answers, whole logs above all, at the pace of whoever reads them.
//!
//! The gate keeps [`stream_bytes`](wire::http::Limits) of an answer for a slow reader and then takes no more until some
//! of it was read, so whoever sends more than that is held up for as long as the reader is slow. That is done here and
//! never by a worker: slow readers cost one another time, and nobody else. Knows no routes.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use wire::node::{Refusal, RefusalCode};

use super::answer::{Answer, send};
use super::refused::Refused;
use super::wants::Wants;

/// Long answers sent at once.
pub(super) const STREAMS: usize = 4;
/// Long answers that may wait for one of these to end.
const WAITING: usize = 2;
/// The most connections of the gate that long answers hold.
pub const LANES_HELD: usize = STREAMS + WAITING;

/// An answer, and where to send it.
struct Delivery {
    request: tiny_http::Request,
    answer: Answer,
}

/// Where long answers are handed in.
pub struct Streams {
    queue: SyncSender<Delivery>,
    /// Answers taken and not yet sent. What is in the queue says too little: a thread that is free may not have come
    /// to it yet.
    held: Arc<AtomicUsize>,
}

impl Streams {
    /// Starts the threads.
    pub fn start() -> io::Result<Streams> {
        let (queue, deliveries) = sync_channel(LANES_HELD);
        let held = Arc::new(AtomicUsize::new(0));
        let deliveries = Arc::new(Mutex::new(deliveries));
        for number in 0..STREAMS {
            let (deliveries, held) = (Arc::clone(&deliveries), Arc::clone(&held));
            let thread = std::thread::Builder::new().name(format!("stream-{number}")).stack_size(256 << 10);
            thread.spawn(move || serve(&deliveries, &held))?;
        }
        Ok(Streams { queue, held })
    }

    /// Has it sent as soon as there is somebody free to do so. If too many wait already, it is refused right now.
    pub(super) fn send(&self, request: tiny_http::Request, wants: Wants, answer: Answer) -> io::Result<()> {
        if self.held.fetch_add(1, Ordering::AcqRel) >= LANES_HELD {
            self.held.fetch_sub(1, Ordering::AcqRel);
            return refuse(request, wants);
        }
        match self.queue.try_send(Delivery { request, answer }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(refused) | TrySendError::Disconnected(refused)) => {
                self.held.fetch_sub(1, Ordering::AcqRel);
                refuse(refused.request, wants)
            }
        }
    }
}

fn refuse(request: tiny_http::Request, wants: Wants) -> io::Result<()> {
    let message = "too many long answers are being read; ask again in a second";
    let busy = Refused::from(Refusal::new(RefusalCode::Busy, message));
    send(request, false, busy.answer(wants).into())
}

/// A thread's whole life.
fn serve(deliveries: &Mutex<Receiver<Delivery>>, held: &AtomicUsize) {
    loop {
        let next = deliveries.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Delivery { request, answer }) = next else { return };
        if let Err(error) = send(request, false, answer) {
            log::debug!("a long answer could not be sent: {error}");
        }
        held.fetch_sub(1, Ordering::AcqRel);
    }
}
