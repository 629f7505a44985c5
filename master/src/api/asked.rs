//! A request as the routes see it: read whole from tiny_http, in the words of `wire::http`, with what its sender wants
//! to get. Knows no routes.

use std::io::Read;

use wire::access::comes_from_browser;
use wire::http::{Headers, Method, Query};
use wire::node::{Refusal, RefusalCode};

use super::answer::Refused;

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

/// The forms an answer can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// For programs, and whoever does not say.
    Json,
    /// A page.
    Html,
    /// Aligned columns.
    Text,
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

impl Wants {
    /// The best of the three by an `Accept` header (RFC 9110, section 12.5.1). Of equals JSON, then text.
    pub(super) fn of(accept: Option<&str>) -> Wants {
        let ranges: Vec<(&str, u16)> = accept.unwrap_or("*/*").split(',').map(range).collect();
        let quality = |media: &str, any: &str| {
            let named = |name: &str| ranges.iter().find(|(range, _)| range.eq_ignore_ascii_case(name)).map(|(_, q)| *q);
            named(media).or_else(|| named(any)).or_else(|| named("*/*")).unwrap_or(0)
        };
        let (json, text) = (quality("application/json", "application/*"), quality("text/plain", "text/*"));
        let html = quality("text/html", "text/*");
        match () {
            () if html > json && html > text => Wants::Html,
            () if text > json => Wants::Text,
            () => Wants::Json,
        }
    }
}

/// `text/html;q=0.9` as a range and thousandths.
fn range(text: &str) -> (&str, u16) {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok());
    // Out of range is not allowed, and then nothing is known of it.
    let quality = quality.filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0);
    (range, (quality * 1000.0) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_pages_and_curl_gets_json() {
        let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        assert_eq!(Wants::of(Some(firefox)), Wants::Html);
        assert_eq!(Wants::of(None), Wants::Json);
        assert_eq!(Wants::of(Some("*/*")), Wants::Json);
        assert_eq!(Wants::of(Some("application/json")), Wants::Json);
        assert_eq!(Wants::of(Some("text/html;q=0.2, application/json;q=0.5")), Wants::Json);
        assert_eq!(Wants::of(Some("text/html")), Wants::Html);
        assert_eq!(Wants::of(Some("TEXT/HTML")), Wants::Html);
    }

    #[test]
    fn text_is_for_those_who_ask_for_it() {
        assert_eq!(Wants::of(Some("text/plain")), Wants::Text);
        assert_eq!(Wants::of(Some("text/*")), Wants::Text);
        assert_eq!(Wants::of(Some("text/plain, */*;q=0.1")), Wants::Text);
    }

    #[test]
    fn nonsense_in_accept_is_json() {
        for accept in ["", ",,,", "q=1", "image/png", "text/html;q=7", "text/html;q=NaN", ";;;"] {
            assert_eq!(Wants::of(Some(accept)), Wants::Json, "{accept:?}");
        }
    }
}
