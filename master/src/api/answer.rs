//! Answers on their way out: the headers every one has, logs as they are read. Knows no routes.

use std::io::{self, Write};

use wire::http::{Response, reason_phrase};

use crate::output::LogStream;

/// What every page allows: nothing from elsewhere, no frames around it, no script of anybody.
const PAGE_POLICY: &str = "default-src 'self'; script-src 'none'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// A longer body may fill what the gate keeps for a slow reader, and hold up whoever sends it.
const LONG_BYTES: usize = 512 << 10;

/// What a route answers.
pub(super) enum Answer {
    /// A whole answer.
    Whole(Response),
    /// A log, sent as it is read.
    Log(LogStream),
}

impl Answer {
    /// Whether sending it may take as long as its reader likes.
    pub(super) fn is_long(&self) -> bool {
        match self {
            Answer::Whole(response) => response.body.len() > LONG_BYTES,
            Answer::Log(_) => true,
        }
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer::Whole(response)
    }
}

/// Sends an answer. Whoever asked may be gone; then there is nothing to do about it.
pub(super) fn send(request: tiny_http::Request, head_only: bool, answer: Answer) -> io::Result<()> {
    match answer {
        Answer::Whole(response) => send_whole(request, response),
        Answer::Log(log) => send_log(request.into_writer(), log, head_only),
    }
}

fn send_whole(request: tiny_http::Request, response: Response) -> io::Result<()> {
    let page = response.headers.iter().any(|(name, value)| *name == "Content-Type" && value.starts_with("text/html"));
    let cached = response.headers.iter().any(|(name, _)| *name == "Cache-Control");
    let mut headers = vec![("X-Content-Type-Options", "nosniff".to_owned())];
    headers.push(("Referrer-Policy", "same-origin".to_owned()));
    if page {
        headers.push(("Content-Security-Policy", PAGE_POLICY.to_owned()));
    }
    if !cached {
        headers.push(("Cache-Control", "no-store".to_owned()));
    }
    headers.extend(response.headers);
    let headers = headers.iter().filter_map(|(name, value)| header(name, value)).collect();
    let length = response.body.len();
    let status = tiny_http::StatusCode(response.status);
    let whole = tiny_http::Response::new(status, headers, io::Cursor::new(response.body), Some(length), None);
    // Counted whatever its length: what is whole need not be sent in chunks.
    request.respond(whole.with_chunked_threshold(usize::MAX))
}

fn header(name: &str, value: &str) -> Option<tiny_http::Header> {
    let header = tiny_http::Header::from_bytes(name, value);
    if header.is_err() {
        log::error!("cannot send the header {name}: {value:?}");
    }
    header.ok()
}

/// tiny_http holds a streamed answer back until it is whole, so this one is written by hand: chunked, each piece as it
/// was read. If reading fails half-way a chunk that is none says so: an end would look like the log's end.
fn send_log(mut writer: Box<dyn Write + Send>, mut log: LogStream, head_only: bool) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 {}\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n\
         Cache-Control: no-store\r\nX-Berth-Size: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        reason_phrase(200),
        log.total()
    );
    writer.write_all(head.as_bytes())?;
    if !head_only {
        send_pieces(&mut writer, &mut log)?;
    }
    writer.flush()
}

fn send_pieces(writer: &mut impl Write, log: &mut LogStream) -> io::Result<()> {
    loop {
        match log.next_piece() {
            Ok(Some(bytes)) => {
                write!(writer, "{:x}\r\n", bytes.len())?;
                writer.write_all(&bytes)?;
                writer.write_all(b"\r\n")?;
                writer.flush()?;
            }
            Ok(None) => return writer.write_all(b"0\r\n\r\n"),
            Err(error) => {
                log::warn!("a log could be sent only in part: {error}");
                return writer.write_all(b"cut short\r\n");
            }
        }
    }
}
