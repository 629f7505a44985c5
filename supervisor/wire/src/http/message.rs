//! The words: requests, responses, headers, queries. They hold what was said and decide nothing.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use serde::Serialize;

use crate::node::Refusal;

/// The methods berth takes; every other is answered 405 by the framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Tell me.
    Get,
    /// Tell me, without the body.
    Head,
    /// Do it.
    Post,
}

impl Method {
    /// As it stands in a request line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The headers of a message, in the order they came. Names are kept in lower case; bytes of a value
/// that are not UTF-8 show as U+FFFD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// None.
    pub const fn new() -> Headers {
        Headers(Vec::new())
    }

    /// The first header of that name, whatever its case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Every header of that name, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All of them as (lower-case name, value).
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// One more.
    pub fn push(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_ascii_lowercase(), value.into()));
    }

    /// Whether a header that is a comma-separated list (RFC 9110, section 5.6.1) names `token`.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    }
}

/// What stands behind the `?`, as a form encodes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=1&b=two+words`.
    pub fn parse(text: &str) -> Query {
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// The first value of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// To what: raw, still percent-encoded, without the query; starts with `/`.
    pub path: String,
    /// What stood behind the `?`, decoded.
    pub query: Query,
    /// What stood behind the `?`, raw; `None` without a `?`.
    pub raw_query: Option<String>,
    /// The headers; `Host` is there exactly once (HTTP/1.0: at most once).
    pub headers: Headers,
    /// The whole body.
    pub body: Vec<u8>,
    /// Who sent it.
    pub peer: SocketAddr,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Headers beside those of the framing (Content-Length, Transfer-Encoding, Connection).
    pub headers: Vec<(&'static str, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer without a body.
    pub fn empty(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Some bytes of one media type.
    pub fn bytes(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        Response { status, headers: vec![("Content-Type", content_type.to_owned())], body: body.into() }
    }

    /// A value as JSON. One that cannot be written is a fault of ours: 500, and the log says which.
    pub fn json(status: u16, value: &impl Serialize) -> Response {
        match serde_json::to_vec(value) {
            Ok(body) => Response::bytes(status, "application/json", body),
            Err(error) => {
                log::error!("cannot write an answer as JSON: {error}");
                let body = br#"{"error":{"code":"internal","message":"the answer could not be written as JSON"}}"#;
                Response::bytes(500, "application/json", &body[..])
            }
        }
    }

    /// Plain text.
    pub fn text(status: u16, text: impl Into<String>) -> Response {
        Response::bytes(status, "text/plain; charset=utf-8", text.into())
    }

    /// A page.
    pub fn html(status: u16, page: impl Into<String>) -> Response {
        Response::bytes(status, "text/html; charset=utf-8", page.into())
    }

    /// `{"error":{"code","message","field"?}}` with the status that says the same.
    pub fn refusal(refusal: &Refusal) -> Response {
        Response::refusal_as(refusal.http_status(), refusal)
    }

    /// The same with another status.
    pub fn refusal_as(status: u16, refusal: &Refusal) -> Response {
        #[derive(Serialize)]
        struct Wrapped<'a> {
            error: &'a Refusal,
        }
        Response::json(status, &Wrapped { error: refusal })
    }

    /// One more header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }
}

/// The beginning of an answer whose body comes in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHead {
    /// The status code.
    pub status: u16,
    /// Headers beside those of the framing.
    pub headers: Vec<(String, String)>,
    /// The length of the whole body where it is known beforehand: sent as Content-Length. Without
    /// one the body is chunked, or to a HTTP/1.0 client ended by the connection's end.
    pub length: Option<u64>,
}

/// The usual words for a status (RFC 9110, section 15); a peer may ignore them.
pub const fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

/// Appends `Name: value`. A control character would end the line early and let a value speak as a
/// header of its own, so it becomes a blank.
pub(super) fn write_header(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push_str(": ");
    out.extend(value.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }));
    out.push_str("\r\n");
}

/// Appends the status line.
pub(super) fn write_status_line(out: &mut String, status: u16) {
    let _ = write!(out, "HTTP/1.1 {status} {}\r\n", reason_phrase(status));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_whatever_their_case_first_one_first() {
        let mut headers = Headers::new();
        headers.push("X-A", "1");
        headers.push("x-a", "2");
        headers.push("Connection", "keep-alive, Close");
        assert_eq!(headers.get("x-A"), Some("1"));
        assert_eq!(headers.all("X-a").collect::<Vec<_>>(), ["1", "2"]);
        assert!(headers.lists("connection", "close") && !headers.lists("connection", "upgrade"));
    }

    #[test]
    fn a_query_is_decoded_as_a_form() {
        let query = Query::parse("after=7&q=two+words%21&after=8&flag");
        assert_eq!((query.get("after"), query.get("q"), query.get("flag")), (Some("7"), Some("two words!"), Some("")));
        assert_eq!(query.get("none"), None);
    }

    #[test]
    fn a_header_value_cannot_become_two_headers() {
        let mut out = String::new();
        write_header(&mut out, "Location", "/x\r\nSet-Cookie: a=b");
        assert_eq!(out, "Location: /x  Set-Cookie: a=b\r\n");
    }

    #[test]
    fn a_refusal_is_wrapped_as_the_contract_says() {
        let refusal = Refusal::new(crate::node::RefusalCode::NotFound, "there is no job 7");
        let response = Response::refusal(&refusal);
        assert_eq!(response.status, 404);
        assert_eq!(response.body, br#"{"error":{"code":"not_found","message":"there is no job 7"}}"#);
    }
}
