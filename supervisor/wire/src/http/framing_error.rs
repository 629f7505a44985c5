//! Why a message was refused before anybody looked at what it asks for.

use crate::node::{Refusal, RefusalCode};

/// A message that is not whole, normal and bounded (RFC 9112). The connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// Not HTTP, a control character, a folded or broken header line.
    #[error("the {0} is malformed")]
    Malformed(&'static str),
    /// The request target is neither a path nor an absolute http URL (RFC 9112, section 3.2).
    #[error("the request target must be a path that starts with / and holds printable ASCII only")]
    Target,
    /// HTTP/1.1 wants exactly one Host (RFC 9112, section 3.2).
    #[error("a request must name its host exactly once")]
    Host,
    /// Two lengths for one body (RFC 9112, section 6.3).
    #[error("a message may carry one Content-Length or one Transfer-Encoding, not two of them")]
    TwoLengths,
    /// Content-Length is not a number.
    #[error("Content-Length must be decimal digits")]
    LengthNotDigits,
    /// A chunk's size or end is malformed, or its extensions or the trailer are too long (RFC 9112, section 7.1).
    #[error("the chunked body is malformed")]
    Chunk,
    /// The peer ended the connection inside a message.
    #[error("the connection ended inside a message")]
    Truncated,
    /// The request line is too long.
    #[error("the request line is too long")]
    LineTooLong,
    /// The head is too long.
    #[error("the head is too long, or has too many headers")]
    HeadTooLarge,
    /// The body is too long.
    #[error("the body is too long")]
    BodyTooLarge,
    /// Too slow: the whole head or body did not arrive in time.
    #[error("the whole request did not arrive in time")]
    TooSlow,
    /// A method this server does not take.
    #[error("only GET, HEAD and POST are taken here")]
    Method,
    /// An Expect other than 100-continue (RFC 9110, section 10.1.1).
    #[error("only \"Expect: 100-continue\" can be met")]
    Expectation,
    /// A transfer coding other than chunked.
    #[error("the only transfer coding taken is chunked")]
    TransferCoding,
    /// A version other than 1.0 and 1.1.
    #[error("only HTTP/1.0 and HTTP/1.1 are spoken here")]
    Version,
    /// Too many connections, or too many bytes in them.
    #[error("too much at once; ask again in a second")]
    Busy,
}

impl FramingError {
    /// The status a server answers with (RFC 9110, section 15).
    pub const fn status(self) -> u16 {
        match self {
            FramingError::Malformed(_)
            | FramingError::Target
            | FramingError::Host
            | FramingError::TwoLengths
            | FramingError::LengthNotDigits
            | FramingError::Chunk
            | FramingError::Truncated => 400,
            FramingError::Method => 405,
            FramingError::TooSlow => 408,
            FramingError::BodyTooLarge => 413,
            FramingError::LineTooLong => 414,
            FramingError::Expectation => 417,
            FramingError::HeadTooLarge => 431,
            FramingError::TransferCoding => 501,
            FramingError::Busy => 503,
            FramingError::Version => 505,
        }
    }

    /// What the peer is told.
    pub fn refusal(self) -> Refusal {
        let code = match self.status() {
            405 => RefusalCode::MethodNotAllowed,
            503 => RefusalCode::Busy,
            _ => RefusalCode::BadInput,
        };
        Refusal::new(code, self.to_string())
    }
}
