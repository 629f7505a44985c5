//! Bytes that wait to be written, and the pace at which their reader takes them.

use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

/// What a reader must take within one stall time to count as alive.
const PACE_BYTES: usize = 16 << 10;
/// Written bytes are cut off the front once there are this many of them.
const COMPACT_BYTES: usize = 64 << 10;

/// An unbounded buffer; whoever appends asks `len` first.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    written: usize,
    paced: Option<Pace>,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    until: Instant,
    taken: usize,
}

impl Output {
    /// Nothing to write.
    pub const fn new() -> Output {
        Output { bytes: Vec::new(), written: 0, paced: None }
    }

    /// Bytes not yet written.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends without a copy where it can.
    pub fn push_owned(&mut self, bytes: Vec<u8>) {
        if self.bytes.is_empty() {
            self.bytes = bytes;
        } else {
            self.push(&bytes);
        }
    }

    /// When the reader counts as stalled; `None` while nothing waits.
    pub fn deadline(&self) -> Option<Instant> {
        self.paced.map(|pace| pace.until)
    }

    /// Writes until all is written or the socket takes no more. An error is the end of the socket.
    pub fn flush(&mut self, socket: &mut impl Write, stall: Duration, now: Instant) -> io::Result<()> {
        while !self.is_empty() {
            match socket.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.took(count, stall, now),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.paced.get_or_insert(Pace { until: now + stall, taken: 0 });
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        // Between answers a connection holds no memory.
        *self = Output::default();
        Ok(())
    }

    fn took(&mut self, count: usize, stall: Duration, now: Instant) {
        self.written += count;
        if let Some(pace) = &mut self.paced {
            pace.taken += count;
            if pace.taken >= PACE_BYTES {
                *pace = Pace { until: now + stall, taken: 0 };
            }
        }
        if self.written >= COMPACT_BYTES && self.written < self.bytes.len() {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what it is allowed, then says WouldBlock.
    struct Reader(usize);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.0);
            self.0 -= count;
            if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_dripping_reader_does_not_move_its_deadline_a_steady_one_does() {
        let start = Instant::now();
        let stall = Duration::from_secs(30);
        let mut output = Output::default();
        output.push(&vec![7; 1 << 20]);
        output.flush(&mut Reader(0), stall, start).unwrap();
        assert_eq!(output.deadline(), Some(start + stall));
        let later = start + Duration::from_secs(20);
        output.flush(&mut Reader(100), stall, later).unwrap();
        assert_eq!(output.deadline(), Some(start + stall));
        output.flush(&mut Reader(PACE_BYTES), stall, later).unwrap();
        assert_eq!(output.deadline(), Some(later + stall));
        output.flush(&mut Reader(usize::MAX), stall, later).unwrap();
        assert_eq!((output.len(), output.deadline(), output.bytes.capacity()), (0, None, 0));
    }
}
