//! Requests and answers said again in normal form, with the headers that go through. Pure.

use std::fmt::Write as _;

use wire::http::{BodyLength, Headers, Method, Request, ResponseHead, StreamHead};

/// What of a request goes on; everything else is between the client and the gate.
const PASSED_ON: [&str; 15] = [
    "Host",
    "Accept",
    "Content-Type",
    "Authorization",
    "Cookie",
    "Origin",
    "Referer",
    "Sec-Fetch-Site",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Dest",
    "Sec-Fetch-User",
    "Sec-Purpose",
    "If-None-Match",
    "Range",
    "User-Agent",
];

/// What of an answer does not come back: the framing is the gate's (RFC 9110, section 7.6.1).
const KEPT_BACK: [&str; 10] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-berth-stands",
];

/// Who really asked, for the log of the master.
pub(super) const PEER: &str = "X-Berth-Peer";

/// The request as tiny_http gets it: one of ours, whatever the client's looked like.
pub(super) fn request_bytes(request: &Request) -> Vec<u8> {
    let mut head = String::with_capacity(512);
    let _ = write!(head, "{} {}", request.method, request.path);
    if let Some(query) = &request.raw_query {
        let _ = write!(head, "?{query}");
    }
    head.push_str(" HTTP/1.1\r\n");
    for name in PASSED_ON {
        for value in request.headers.all(name) {
            let _ = write!(head, "{name}: {}\r\n", ascii(value));
        }
    }
    let _ = write!(head, "{PEER}: {}\r\n", request.peer);
    if request.method == Method::Post || !request.body.is_empty() {
        let _ = write!(head, "Content-Length: {}\r\n", request.body.len());
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(&request.body);
    bytes
}

/// tiny_http drops a connection without an answer when a header is not ASCII.
fn ascii(value: &str) -> String {
    value.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

/// The answer's head as the client gets it.
pub(super) fn stream_head(head: &ResponseHead, head_only: bool) -> StreamHead {
    let passes = |name: &str| !KEPT_BACK.contains(&name);
    let headers = head.headers.iter().filter(|(name, _)| passes(name));
    let length = match head.body {
        // An answer to HEAD has no body, but may say how long it would be.
        _ if head_only => content_length(&head.headers),
        BodyLength::Counted(length) => Some(length),
        BodyLength::Chunked | BodyLength::UntilClose => None,
    };
    StreamHead {
        status: head.status,
        headers: headers.map(|(name, value)| (capitalised(name), value.to_owned())).collect(),
        length,
    }
}

fn content_length(headers: &Headers) -> Option<u64> {
    headers.get("content-length")?.parse().ok()
}

/// `content-type` as `Content-Type`: what people expect to read.
fn capitalised(name: &str) -> String {
    let mut first = true;
    let letter = |c: char| {
        let shown = if first { c.to_ascii_uppercase() } else { c };
        first = c == '-';
        shown
    };
    name.chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use wire::http::{Limits, Query, read_response_head};

    use super::*;

    #[test]
    fn a_request_goes_on_in_normal_form_without_what_is_not_its_business() {
        let mut headers = Headers::new();
        for (name, value) in [
            ("host", "localhost:8080"),
            ("connection", "keep-alive, X-Secret"),
            ("transfer-encoding", "chunked"),
            ("x-berth-peer", "1.2.3.4:5"),
            ("cookie", "a=\u{e4}; berth_token=t"),
            ("expect", "100-continue"),
        ] {
            headers.push(name, value);
        }
        let request = Request {
            method: Method::Post,
            path: "/job/create".into(),
            query: Query::parse("a=1"),
            raw_query: Some("a=1".into()),
            headers,
            body: b"{}".to_vec(),
            peer: "127.0.0.1:9".parse().unwrap(),
        };
        let bytes = String::from_utf8(request_bytes(&request)).unwrap();
        assert_eq!(
            bytes,
            "POST /job/create?a=1 HTTP/1.1\r\nHost: localhost:8080\r\nCookie: a=?; berth_token=t\r\n\
             X-Berth-Peer: 127.0.0.1:9\r\nContent-Length: 2\r\n\r\n{}"
        );
    }

    #[test]
    fn an_answer_keeps_its_headers_and_loses_its_framing() {
        let text = "HTTP/1.1 303 See Other\r\nServer: tiny-http\r\nset-cookie: a=b\r\nSet-Cookie: c=d\r\n\
                    Location: /\r\nx-berth-stands: 7 stdout 0\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        let (head, _) = read_response_head(text.as_bytes(), false, &Limits::default()).unwrap().unwrap();
        let said = stream_head(&head, false);
        let expected = [("Set-Cookie", "a=b"), ("Set-Cookie", "c=d"), ("Location", "/")];
        assert_eq!(said.headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!((said.status, said.length), (303, None));
    }
}
