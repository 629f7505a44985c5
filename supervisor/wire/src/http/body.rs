//! Bytes to a body: counted, chunked (RFC 9112, section 7.1), or until the connection ends. Pure.

use super::framing_error::FramingError;
use super::head::BodyLength;

/// All chunk extensions of a body together, or its whole trailer, in bytes: they are read over, and must not be worth
/// the reading to who wants us busy.
const BESIDE_BYTES: usize = 4 << 10;

/// Takes a body's bytes as they come and finds its end. Chunk extensions and trailers are read over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyDecoder {
    stage: Stage,
    /// Body bytes still allowed.
    room: u64,
    /// Bytes of chunk extensions still allowed.
    extension_room: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// So many bytes of a counted body are to come.
    Counted(u64),
    /// In a chunk's size line.
    Size { size: u64, digits: u8, extension: bool, cr: bool },
    /// So many bytes of a chunk are to come.
    Chunk(u64),
    /// The CR LF behind a chunk; whether the CR was seen.
    ChunkEnd { cr: bool },
    /// Behind the last chunk: lines until an empty one.
    Trailer { line: usize, total: usize, cr: bool },
    /// Until the connection ends.
    UntilClose,
    /// The end was seen.
    Done,
}

const SIZE: Stage = Stage::Size { size: 0, digits: 0, extension: false, cr: false };

impl BodyDecoder {
    /// A body of that length, of which at most `limit` bytes are taken.
    pub fn new(length: BodyLength, limit: u64) -> BodyDecoder {
        let stage = match length {
            BodyLength::Counted(0) => Stage::Done,
            BodyLength::Counted(count) => Stage::Counted(count),
            BodyLength::Chunked => SIZE,
            BodyLength::UntilClose => Stage::UntilClose,
        };
        BodyDecoder { stage, room: limit, extension_room: BESIDE_BYTES }
    }

    /// Whether the body's end was seen.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// How many more bytes are surely the body's, where that is known: reading no further leaves the
    /// next message alone.
    pub fn counted(&self) -> Option<u64> {
        match self.stage {
            Stage::Counted(left) => Some(left),
            _ => None,
        }
    }

    /// The connection has ended: fine only where that is the body's end, or it was seen before.
    pub fn end(&mut self) -> Result<(), FramingError> {
        match self.stage {
            Stage::UntilClose | Stage::Done => {
                self.stage = Stage::Done;
                Ok(())
            }
            _ => Err(FramingError::Truncated),
        }
    }

    /// Appends the body's bytes among `bytes` to `body`; says how many of `bytes` were taken. All are
    /// unless the end was seen.
    pub fn take(&mut self, bytes: &[u8], body: &mut Vec<u8>) -> Result<usize, FramingError> {
        let mut taken = 0;
        while taken < bytes.len() && !self.is_done() {
            taken += match self.stage {
                Stage::Counted(left) => {
                    let count = self.copy(&bytes[taken..], left, body)?;
                    let left = left - count as u64;
                    self.stage = if left == 0 { Stage::Done } else { Stage::Counted(left) };
                    count
                }
                Stage::Chunk(left) => {
                    let count = self.copy(&bytes[taken..], left, body)?;
                    let left = left - count as u64;
                    self.stage = if left == 0 { Stage::ChunkEnd { cr: false } } else { Stage::Chunk(left) };
                    count
                }
                Stage::UntilClose => self.copy(&bytes[taken..], u64::MAX, body)?,
                _ => {
                    self.step(bytes[taken])?;
                    1
                }
            };
        }
        Ok(taken)
    }

    fn copy(&mut self, bytes: &[u8], left: u64, body: &mut Vec<u8>) -> Result<usize, FramingError> {
        let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.room = self.room.checked_sub(count as u64).ok_or(FramingError::BodyTooLarge)?;
        body.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    /// One byte between the chunks' contents.
    fn step(&mut self, byte: u8) -> Result<(), FramingError> {
        self.stage = match (self.stage, byte) {
            (Stage::Size { size, digits, cr: true, .. }, b'\n') if digits > 0 => self.sized(size)?,
            (Stage::Size { size, digits, extension, cr: false }, byte) => match (byte, hex(byte)) {
                (b'\r', _) => Stage::Size { size, digits, extension, cr: true },
                (b'\n' | b'\0', _) => return Err(FramingError::Chunk),
                (_, _) if extension || (byte == b';' && digits > 0) => {
                    self.extension_room = self.extension_room.checked_sub(1).ok_or(FramingError::Chunk)?;
                    Stage::Size { size, digits, extension: true, cr: false }
                }
                (_, Some(digit)) if digits < 15 => {
                    Stage::Size { size: size * 16 + digit, digits: digits + 1, extension, cr: false }
                }
                _ => return Err(FramingError::Chunk),
            },
            (Stage::ChunkEnd { cr: false }, b'\r') => Stage::ChunkEnd { cr: true },
            (Stage::ChunkEnd { cr: true }, b'\n') => SIZE,
            (Stage::Trailer { line: 0, cr: true, .. }, b'\n') => Stage::Done,
            (Stage::Trailer { total, cr: true, .. }, b'\n') => Stage::Trailer { line: 0, total, cr: false },
            (Stage::Trailer { line, total, cr: false }, b'\r') => Stage::Trailer { line, total, cr: true },
            (Stage::Trailer { line, total, cr: false }, byte) if total < BESIDE_BYTES && byte != b'\n' => {
                Stage::Trailer { line: line + 1, total: total + 1, cr: false }
            }
            _ => return Err(FramingError::Chunk),
        };
        Ok(())
    }

    /// A size line has ended; a chunk that would go over the bound is refused before it comes.
    fn sized(&self, size: u64) -> Result<Stage, FramingError> {
        match size {
            0 => Ok(Stage::Trailer { line: 0, total: 0, cr: false }),
            size if size > self.room => Err(FramingError::BodyTooLarge),
            size => Ok(Stage::Chunk(size)),
        }
    }
}

fn hex(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the pieces; gives the body, whether it ended, and how many bytes were taken.
    fn decode(length: BodyLength, limit: u64, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), FramingError> {
        let mut decoder = BodyDecoder::new(length, limit);
        let (mut body, mut taken) = (Vec::new(), 0);
        for piece in pieces {
            taken += decoder.take(piece, &mut body)?;
        }
        Ok((body, decoder.is_done(), taken))
    }

    #[test]
    fn a_chunked_body_cut_anywhere_is_the_same_and_leaves_the_rest() {
        let bytes = b"5;name=\"v\"\r\nhello\r\n00006\r\n world\r\n0\r\nX: y\r\n\r\nGET /";
        for cut in 0..bytes.len() {
            let (left, right) = bytes.split_at(cut);
            let said = decode(BodyLength::Chunked, 11, &[left, right]).unwrap();
            assert_eq!(said, (b"hello world".to_vec(), true, bytes.len() - 5), "cut at {cut}");
        }
    }

    #[test]
    fn a_chunk_over_the_bound_is_refused_before_it_comes() {
        assert_eq!(decode(BodyLength::Chunked, 10, &[b"b\r\n"]), Err(FramingError::BodyTooLarge));
        assert_eq!(decode(BodyLength::Chunked, 10, &[b"8\r\n12345678\r\n3\r\n"]), Err(FramingError::BodyTooLarge));
        assert_eq!(decode(BodyLength::Chunked, 10, &[b"ffffffffffffffff\r\n"]), Err(FramingError::Chunk));
        assert_eq!(decode(BodyLength::UntilClose, 3, &[b"abcd"]), Err(FramingError::BodyTooLarge));
    }

    #[test]
    fn a_malformed_chunk_is_refused() {
        for wrong in [
            &b"\r\n"[..],
            b"-1\r\n",
            b" 1\r\n",
            b"1 \r\n",
            b"0x1\r\n",
            b"1\na",
            b"1\r\nab",
            b"1\r\na\n",
            b"1\r\r\n",
            b";x\r\n",
            b"0\r\n\n",
            b"0\r\nX: y\n",
            b"1;\0",
        ] {
            assert_eq!(decode(BodyLength::Chunked, 10, &[wrong]), Err(FramingError::Chunk), "{wrong:?}");
        }
        let endless = [b'x'; BESIDE_BYTES + 1];
        assert_eq!(decode(BodyLength::Chunked, 10, &[b"1;", &endless]), Err(FramingError::Chunk));
        assert_eq!(decode(BodyLength::Chunked, 10, &[b"0\r\n", &endless]), Err(FramingError::Chunk));
    }

    #[test]
    fn extensions_of_many_chunks_are_bounded_together() {
        let chunk = format!("1;{}\r\na\r\n", "x".repeat(BESIDE_BYTES / 4));
        let chunks = |count: usize| decode(BodyLength::Chunked, 10, &[chunk.repeat(count).as_bytes()]);
        assert_eq!(chunks(3).map(|(body, ..)| body), Ok(b"aaa".to_vec()));
        assert_eq!(chunks(4), Err(FramingError::Chunk));
    }

    #[test]
    fn an_end_of_the_connection_ends_only_a_body_that_waits_for_it() {
        assert!(BodyDecoder::new(BodyLength::UntilClose, 9).end().is_ok());
        assert!(BodyDecoder::new(BodyLength::Counted(0), 9).end().is_ok());
        assert_eq!(BodyDecoder::new(BodyLength::Counted(1), 9).end(), Err(FramingError::Truncated));
        assert_eq!(BodyDecoder::new(BodyLength::Chunked, 9).end(), Err(FramingError::Truncated));
    }

    #[test]
    fn no_garbage_panics_and_no_cut_changes_what_is_said() {
        arbtest::arbtest(|u| {
            let bytes: Vec<u8> =
                u.arbitrary::<Vec<u8>>()?.iter().map(|byte| b"01a;\r\n\rx\n"[*byte as usize % 9]).collect();
            let cut = u.choose_index(bytes.len() + 1)?;
            let (left, right) = bytes.split_at(cut);
            assert_eq!(
                decode(BodyLength::Chunked, 9, &[left, right]),
                decode(BodyLength::Chunked, 9, &[&bytes]),
                "{bytes:?} cut at {cut}"
            );
            Ok(())
        });
    }
}
