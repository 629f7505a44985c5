//! The forms an answer can have, and which of them an `Accept` header wants. Pure.

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
