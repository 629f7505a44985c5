//! A request as the routes see it: read whole from tiny_http, in the words of `wire::http`, with what its sender wants
//! to get. Knows no routes.

use std::io::Read;

use wire::access::comes_from_browser;
use wire::http::{Headers, Method, Query};
use wire::node::{Refusal, RefusalCode};

use super::refused::Refused;
use super::wants::Wants;

/// What the gate lets through, and a little more for a body it counted in another way.
const MAX_BODY: u64 = 8 << 20;

/// A whole request.
#[derive(Debug)]
pub(super) struct Asked {
    /// `Get` also for HEAD: whoever sends the answer leaves out the body.
    pub(super) method: Method,
    /// As it came, percent-encoded, without the query.
    pub(super) path: String,
    /// Path and query as they came.
    pub(super) target: String,
    pub(super) query: Query,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
    pub(super) wants: Wants,
    pub(super) head_only: bool,
}

/// The forms of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyKind {
    Json,
    Form,
}

impl Asked {
    /// Reads it whole.
    pub(super) fn read(request: &mut tiny_http::Request) -> Result<Asked, Refused> {
        let head_only = *request.method() == tiny_http::Method::Head;
        let method = match request.method() {
            tiny_http::Method::Get | tiny_http::Method::Head => Method::Get,
            tiny_http::Method::Post => Method::Post,
            _ => return Err(Refused::method("GET, HEAD, POST")),
        };
        let mut headers = Headers::new();
        for header in request.headers() {
            headers.push(header.field.as_str().as_str(), header.value.as_str());
        }
        let target = request.url().to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let (path, query) = (path.to_owned(), Query::parse(query));
        let mut body = Vec::new();
        let read = request.as_reader().take(MAX_BODY).read_to_end(&mut body);
        read.map_err(|_| Refusal::new(RefusalCode::BadInput, "the body ended before its time"))?;
        let wants = Wants::of(headers.get("Accept"));
        Ok(Asked { method, path, target, query, headers, body, wants, head_only })
    }

    /// The parts of the path; none of `/`.
    pub(super) fn segments(&self) -> Vec<&str> {
        match self.path.strip_prefix('/') {
            None | Some("") => Vec::new(),
            Some(rest) => rest.split('/').collect(),
        }
    }

    /// Whether a browser sent it, or may have. One that sends neither cookies nor `Sec-Fetch-*` shows by what else only
    /// browsers send.
    pub(super) fn is_a_browsers(&self) -> bool {
        let says = |name| self.headers.get(name).is_some();
        self.wants == Wants::Html || comes_from_browser(&self.headers) || says("Referer") || says("Origin")
    }

    /// What its body is. curl calls every `-d` a form, so what begins as JSON is taken for what it is.
    pub(super) fn body_kind(&self) -> Result<BodyKind, Refused> {
        let media = self.headers.get("Content-Type").unwrap_or("application/x-www-form-urlencoded");
        let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let looks_like_json =
            self.body.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|b| b"{[".contains(b));
        match media.as_str() {
            "application/json" => Ok(BodyKind::Json),
            "application/x-www-form-urlencoded" if looks_like_json => Ok(BodyKind::Json),
            "application/x-www-form-urlencoded" => Ok(BodyKind::Form),
            other => Err(Refused::media_type(other)),
        }
    }
}
