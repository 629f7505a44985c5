//! Bytes to heads: request line or status line, headers, and how long the body will be. Pure.
//!
//! The same bytes give the same answer however they are cut into reads: errors are found in the
//! order of the bytes, and each bound is applied to a prefix of fixed length.

use super::framing_error::FramingError;
use super::limits::Limits;
use super::message::{Headers, Method};

/// No message may have more headers than this, whatever the limits say: they are parsed on the stack.
const MOST_HEADERS: usize = 128;

/// How a body's end is found (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes; 0 is no body.
    Counted(u64),
    /// Chunks until the last one.
    Chunked,
    /// Until the connection ends; answers only.
    UntilClose,
}

/// A request's head, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) method: Method,
    /// Path and query as they came; starts with `/`.
    pub(super) target: String,
    pub(super) headers: Headers,
    pub(super) body: BodyLength,
    pub(super) reply: Reply,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// What of a request its answer must be framed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// The client speaks HTTP/1.1, so it knows chunks.
    pub(super) http_11: bool,
    /// It was a HEAD: no body.
    pub(super) head_only: bool,
    /// The connection may serve another request.
    pub(super) keep_alive: bool,
}

/// An answer's head, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: Headers,
    /// How the body's end is found.
    pub body: BodyLength,
    /// The connection may be used again after the body.
    pub keep_alive: bool,
}

/// Reads a request's head off the front of `bytes`; `None`: more bytes are needed.
/// Gives the head and how many bytes it took.
pub(super) fn read_request_head(bytes: &[u8], limits: &Limits) -> Result<Option<(RequestHead, usize)>, FramingError> {
    let line_limit = limits.line_bytes.min(limits.head_bytes);
    if bytes.len() > line_limit && !bytes[..line_limit].contains(&b'\n') {
        // What is wrong within the bound is said first, as if the rest had not come yet.
        return parse_request(&bytes[..line_limit], limits).and(Err(FramingError::LineTooLong));
    }
    let bounded = &bytes[..bytes.len().min(limits.head_bytes)];
    match parse_request(bounded, limits)? {
        Some(done) => Ok(Some(done)),
        None if bytes.len() >= limits.head_bytes => Err(FramingError::HeadTooLarge),
        None => Ok(None),
    }
}

fn parse_request(bytes: &[u8], limits: &Limits) -> Result<Option<(RequestHead, usize)>, FramingError> {
    let mut storage = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut storage[..limits.headers.min(MOST_HEADERS)]);
    let length = match parsed.parse(bytes).map_err(|error| refused(error, "request line"))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let http_11 = parsed.version == Some(1);
    let method = method(parsed.method.unwrap_or_default())?;
    let mut headers = collect(parsed.headers);
    let (target, authority) = target(parsed.path.unwrap_or_default())?;
    check_host(&headers, http_11)?;
    if let Some(authority) = authority {
        // The absolute form's authority is what counts (RFC 9112, section 3.2.2).
        headers.remove("host");
        headers.push("host", authority);
    }
    let body = request_body(&headers, http_11, limits)?;
    let expects_continue = expects_continue(&headers, http_11)?;
    let reply = Reply { http_11, head_only: method == Method::Head, keep_alive: keep_alive(&headers, http_11) };
    Ok(Some((RequestHead { method, target, headers, body, reply, expects_continue }, length)))
}

/// Reads an answer's head off the front of `bytes`; `None`: more bytes are needed. Gives the head and
/// how many bytes it took. `head_only`: it answers a HEAD. Interim answers (1xx) are given as they
/// come; the caller skips them.
pub fn read_response_head(
    bytes: &[u8],
    head_only: bool,
    limits: &Limits,
) -> Result<Option<(ResponseHead, usize)>, FramingError> {
    let bounded = &bytes[..bytes.len().min(limits.head_bytes)];
    let mut storage = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut storage[..limits.headers.min(MOST_HEADERS)]);
    let length = match parsed.parse(bounded).map_err(|error| refused(error, "status line"))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if bytes.len() >= limits.head_bytes => return Err(FramingError::HeadTooLarge),
        httparse::Status::Partial => return Ok(None),
    };
    let http_11 = parsed.version == Some(1);
    let status = parsed.code.unwrap_or_default();
    let headers = collect(parsed.headers);
    let body = response_body(&headers, status, head_only)?;
    let keep_alive = keep_alive(&headers, http_11) && body != BodyLength::UntilClose;
    Ok(Some((ResponseHead { status, headers, body, keep_alive }, length)))
}

/// httparse's errors in our words. A folded line, a bare CR, a NUL: all are `Malformed`.
fn refused(error: httparse::Error, first_line: &'static str) -> FramingError {
    match error {
        httparse::Error::TooManyHeaders => FramingError::HeadTooLarge,
        httparse::Error::Version => FramingError::Version,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => FramingError::Malformed("header"),
        httparse::Error::Token | httparse::Error::Status | httparse::Error::NewLine => {
            FramingError::Malformed(first_line)
        }
    }
}

fn method(word: &str) -> Result<Method, FramingError> {
    match word {
        "GET" => Ok(Method::Get),
        "HEAD" => Ok(Method::Head),
        "POST" => Ok(Method::Post),
        _ => Err(FramingError::Method),
    }
}

fn collect(parsed: &[httparse::Header<'_>]) -> Headers {
    let mut headers = Headers::new();
    for header in parsed {
        headers.push(header.name, String::from_utf8_lossy(header.value));
    }
    headers
}

/// The path with its query, and the authority if the target was a whole URL.
fn target(text: &str) -> Result<(String, Option<String>), FramingError> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains('#') {
        return Err(FramingError::Target);
    }
    if text.starts_with('/') {
        return Ok((text.to_owned(), None));
    }
    let scheme = text.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let rest = scheme.map(|scheme| &text[scheme.len()..]).ok_or(FramingError::Target)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.is_empty() || !is_host(authority) {
        return Err(FramingError::Target);
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok((format!("{slash}{path}"), Some(authority.to_owned())))
}

fn check_host(headers: &Headers, http_11: bool) -> Result<(), FramingError> {
    let mut hosts = headers.all("host");
    match (hosts.next(), hosts.next()) {
        (None, None) if !http_11 => Ok(()),
        (Some(host), None) if is_host(host) => Ok(()),
        _ => Err(FramingError::Host),
    }
}

/// `name`, `1.2.3.4`, `[::1]`, each with a port or without: no user, no path, no list.
fn is_host(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%:[]".contains(&byte))
}

fn request_body(headers: &Headers, http_11: bool, limits: &Limits) -> Result<BodyLength, FramingError> {
    match (transfer_coding(headers)?, content_length(headers)?) {
        (true, Some(_)) => Err(FramingError::TwoLengths),
        // A 1.0 client does not know the header: somebody in between is confused (RFC 9112, section 6.1).
        (true, None) if !http_11 => Err(FramingError::TransferCoding),
        (true, None) => Ok(BodyLength::Chunked),
        (false, Some(length)) if length > limits.body_bytes as u64 => Err(FramingError::BodyTooLarge),
        (false, length) => Ok(BodyLength::Counted(length.unwrap_or(0))),
    }
}

fn response_body(headers: &Headers, status: u16, head_only: bool) -> Result<BodyLength, FramingError> {
    let (chunked, length) = (transfer_coding(headers)?, content_length(headers)?);
    if head_only || matches!(status, 100..=199 | 204 | 304) {
        return Ok(BodyLength::Counted(0));
    }
    match (chunked, length) {
        (true, Some(_)) => Err(FramingError::TwoLengths),
        (true, None) => Ok(BodyLength::Chunked),
        (false, Some(length)) => Ok(BodyLength::Counted(length)),
        (false, None) => Ok(BodyLength::UntilClose),
    }
}

/// Whether the body is chunked; any other coding, or chunked beside another, is refused.
fn transfer_coding(headers: &Headers) -> Result<bool, FramingError> {
    let mut codings = headers.all("transfer-encoding");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(true),
        _ => Err(FramingError::TransferCoding),
    }
}

fn content_length(headers: &Headers) -> Result<Option<u64>, FramingError> {
    let mut lengths = headers.all("content-length");
    let Some(length) = lengths.next() else { return Ok(None) };
    if lengths.next().is_some() {
        return Err(FramingError::TwoLengths);
    }
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(FramingError::LengthNotDigits);
    }
    length.parse().map(Some).map_err(|_| FramingError::BodyTooLarge)
}

fn expects_continue(headers: &Headers, http_11: bool) -> Result<bool, FramingError> {
    match headers.get("expect") {
        // From a 1.0 client it is to be ignored (RFC 9110, section 10.1.1).
        _ if !http_11 => Ok(false),
        None => Ok(false),
        Some(word) if word.eq_ignore_ascii_case("100-continue") => Ok(true),
        Some(_) => Err(FramingError::Expectation),
    }
}

/// RFC 9112, section 9.3.
fn keep_alive(headers: &Headers, http_11: bool) -> bool {
    !headers.lists("connection", "close") && (http_11 || headers.lists("connection", "keep-alive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<(RequestHead, usize)>, FramingError> {
        read_request_head(text.as_bytes(), &Limits::default())
    }

    fn head(text: &str) -> RequestHead {
        read(text).unwrap().unwrap().0
    }

    fn with_headers(lines: &str) -> Result<BodyLength, FramingError> {
        read(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")).map(|head| head.unwrap().0.body)
    }

    #[test]
    fn a_plain_request_is_read_and_its_rest_is_left() {
        let text = "GET /node/table?x=1 HTTP/1.1\r\nHost: localhost:8080\r\nAccept: */*\r\n\r\nGET";
        let (head, length) = read(text).unwrap().unwrap();
        assert_eq!((head.method, head.target.as_str()), (Method::Get, "/node/table?x=1"));
        assert_eq!((head.headers.get("ACCEPT"), head.body), (Some("*/*"), BodyLength::Counted(0)));
        assert_eq!(&text[length..], "GET");
        assert_eq!(head.reply, Reply { http_11: true, head_only: false, keep_alive: true });
    }

    #[test]
    fn a_body_has_one_length_or_is_refused() {
        assert_eq!(with_headers("Content-Length: 12\r\n"), Ok(BodyLength::Counted(12)));
        assert_eq!(with_headers("Transfer-Encoding: Chunked\r\n"), Ok(BodyLength::Chunked));
        assert_eq!(with_headers("Content-Length: 1\r\nContent-Length: 1\r\n"), Err(FramingError::TwoLengths));
        assert_eq!(with_headers("Content-Length: 1\r\ncontent-length: 2\r\n"), Err(FramingError::TwoLengths));
        assert_eq!(with_headers("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), Err(FramingError::TwoLengths));
        for wrong in ["1, 1", "-1", "+1", "0x10", "1 2", "", "ten"] {
            let refused = with_headers(&format!("Content-Length: {wrong}\r\n"));
            assert_eq!(refused, Err(FramingError::LengthNotDigits), "{wrong:?}");
        }
        for large in ["1000000000000", "99999999999999999999999999", "4194305"] {
            assert_eq!(with_headers(&format!("Content-Length: {large}\r\n")), Err(FramingError::BodyTooLarge));
        }
        for coding in ["gzip", "gzip, chunked", "chunked, identity", "chunked\r\nTransfer-Encoding: chunked"] {
            let refused = with_headers(&format!("Transfer-Encoding: {coding}\r\n"));
            assert_eq!(refused, Err(FramingError::TransferCoding), "{coding:?}");
        }
    }

    #[test]
    fn one_host_is_wanted_by_1_1_and_none_by_1_0() {
        assert_eq!(read("GET / HTTP/1.1\r\n\r\n"), Err(FramingError::Host));
        assert_eq!(read("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), Err(FramingError::Host));
        assert_eq!(read("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"), Err(FramingError::Host));
        assert_eq!(read("GET / HTTP/1.1\r\nHost: u@a/x\r\n\r\n"), Err(FramingError::Host));
        assert_eq!(read("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), Err(FramingError::Host));
        let old = head("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(old.reply, Reply { http_11: false, head_only: false, keep_alive: false });
        assert!(head("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").reply.keep_alive);
        assert!(!head("GET / HTTP/1.1\r\nHost: a\r\nConnection: te, close\r\n\r\n").reply.keep_alive);
    }

    #[test]
    fn an_absolute_target_speaks_for_its_host() {
        let whole = head("GET http://[::1]:8080/a?b HTTP/1.1\r\nHost: evil\r\n\r\n");
        assert_eq!((whole.target.as_str(), whole.headers.get("host")), ("/a?b", Some("[::1]:8080")));
        assert_eq!(head("GET HTTP://a HTTP/1.1\r\nHost: a\r\n\r\n").target, "/");
        assert_eq!(head("GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n").target, "/?x");
        for target in ["*", "a", "https://a/", "http://", "http:///x", "http://u@a/", "/a#b", "/\u{e4}"] {
            let refused = read(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert!(matches!(refused, Err(FramingError::Target | FramingError::Malformed(_))), "{target}: {refused:?}");
        }
    }

    #[test]
    fn control_characters_and_folded_lines_are_refused() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "G\u{1}T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\tHost: a\r\n\r\n",
        ] {
            assert!(matches!(read(text), Err(FramingError::Malformed(_))), "{text:?}: {:?}", read(text));
        }
        assert_eq!(read("GET / HTTP/2.0\r\n\r\n"), Err(FramingError::Version));
        assert_eq!(read("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(FramingError::Method));
    }

    #[test]
    fn each_bound_has_its_own_status() {
        let long = "x".repeat(9 << 10);
        assert_eq!(read(&format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n")), Err(FramingError::LineTooLong));
        let header = format!("X: {long}\r\n");
        assert_eq!(
            read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{header}{header}\r\n")),
            Err(FramingError::HeadTooLarge)
        );
        let many = "X: 1\r\n".repeat(64);
        assert_eq!(read(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")), Err(FramingError::HeadTooLarge));
        assert_eq!(read(&"\r\n".repeat(20_000)), Err(FramingError::HeadTooLarge));
    }

    #[test]
    fn only_100_continue_can_be_expected() {
        assert!(head("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n\r\n").expects_continue);
        assert!(!head("POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue);
        assert_eq!(read("POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n"), Err(FramingError::Expectation));
    }

    #[test]
    fn an_answer_without_a_length_ends_with_its_connection() {
        let body = |text: &str, head_only| {
            let head = read_response_head(text.as_bytes(), head_only, &Limits::default()).unwrap().unwrap().0;
            (head.body, head.keep_alive)
        };
        assert_eq!(body("HTTP/1.1 200 OK\r\n\r\n", false), (BodyLength::UntilClose, false));
        assert_eq!(body("HTTP/1.1 204 No Content\r\n\r\n", false), (BodyLength::Counted(0), true));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", true), (BodyLength::Counted(0), true));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", false), (BodyLength::Counted(9), true));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        assert_eq!(body(chunked, false), (BodyLength::Chunked, false));
    }

    /// What is said once enough bytes have come, feeding ever longer prefixes.
    fn fed(bytes: &[u8], cuts: &[usize], limits: &Limits) -> Result<Option<(RequestHead, usize)>, FramingError> {
        for &cut in cuts {
            match read_request_head(&bytes[..cut.min(bytes.len())], limits) {
                Ok(None) => {}
                said => return said,
            }
        }
        read_request_head(bytes, limits)
    }

    #[test]
    fn a_head_cut_anywhere_says_the_same() {
        let small = Limits { head_bytes: 200, line_bytes: 60, headers: 4, ..Limits::default() };
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100));
        let bad_late = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x\0".repeat(100));
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nrest",
            "\r\n\nPOST /a HTTP/1.1\nHost: a\nContent-Length: 3\n\nabc",
            "GET / HTTP/1.1\r\nHost: a\r\nA: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n\r\n",
            "GET / HTTX/1.1\r\n\r\n",
            &long,
            &bad_late,
        ] {
            let bytes = text.as_bytes();
            let whole = read_request_head(bytes, &small);
            assert_ne!(whole, Ok(None));
            for cut in 0..bytes.len() {
                assert_eq!(fed(bytes, &[cut], &small), whole, "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn no_garbage_panics_and_no_cut_changes_what_is_said() {
        arbtest::arbtest(|u| {
            let limits = Limits { head_bytes: 120, line_bytes: 40, headers: 3, ..Limits::default() };
            let words: [&[u8]; 16] = [
                b"GET ",
                b"POST ",
                b"/",
                b"http://a",
                b" HTTP/1.1",
                b" HTTP/1.0",
                b"\r\n",
                b"\n",
                b"\r",
                b"Host: a",
                b"Content-Length: ",
                b"12",
                b"Transfer-Encoding: chunked",
                b" ",
                b"\0",
                b"Expect: ",
            ];
            let mut bytes = Vec::new();
            while !u.is_empty() && bytes.len() < 300 {
                match u.int_in_range(0..=words.len())? {
                    index if index < words.len() => bytes.extend_from_slice(words[index]),
                    _ => bytes.push(u.arbitrary()?),
                }
            }
            let mut cuts = [u.choose_index(bytes.len() + 1)?, u.choose_index(bytes.len() + 1)?];
            cuts.sort_unstable();
            assert_eq!(fed(&bytes, &cuts, &limits), read_request_head(&bytes, &limits), "{bytes:?} at {cuts:?}");
            let _ = read_response_head(&bytes, false, &limits);
            Ok(())
        });
    }
}
