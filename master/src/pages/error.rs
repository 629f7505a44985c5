//! The page instead of the one asked for: what is wrong, which field, and the way back.

use maud::{Markup, html};

use super::layout::{Here, Page};
use super::text;
use super::view::ErrorPage;

/// Whatever could not be answered.
pub fn error(view: &ErrorPage) -> Markup {
    let title = status_words(view.status);
    let page = Page { title, here: Here::Elsewhere, live: false };
    page.around(&html! {
        div.card {
            h1 { (title) " " span.dim { (view.status) } }
            p { bdi { (text::visible_line(&view.refusal.message)) } }
            @if let Some(field) = &view.refusal.field { p { "The field: " code { (text::visible_line(field)) } } }
            p.actions {
                a href=(view.back.as_str()) { "Back" }
                @if view.back.as_str() != "/" { a href="/" { "All jobs and nodes" } }
            }
        }
    })
}

/// What a status means, to somebody who did nothing but press a button.
fn status_words(status: u16) -> &'static str {
    match status {
        401 => "Not logged in",
        403 => "Not allowed",
        404 => "Not found",
        405 => "Not that way",
        409 => "Not now",
        413 => "Too large",
        429 | 503 => "Too busy",
        400..=499 => "Refused",
        _ => "Something broke",
    }
}
