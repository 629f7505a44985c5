//! The login form. It never shows a token, not even a wrong one.

use maud::{Markup, html};

use super::layout::{Here, Page};
use super::text;
use super::view::Login;

/// `GET /login`.
pub fn login(view: &Login) -> Markup {
    let page = Page { title: "Log in", here: Here::Elsewhere, live: false };
    let wrong = view.error.is_some();
    page.around(&html! {
        div.card {
            h1 { "Log in" }
            form method="post" action="/login" {
                input type="hidden" name="next" value=(view.next.as_str());
                div.field {
                    label for="token" { "Token" }
                    input #token type="password" name="token" required autofocus
                        autocomplete="current-password" spellcheck="false"
                        aria-invalid=[wrong.then_some("true")]
                        aria-describedby=(if wrong { "token-error token-hint" } else { "token-hint" });
                    @if let Some(error) = &view.error {
                        p.wrong #token-error role="alert" { (text::visible_line(error)) }
                    }
                    p.hint #token-hint { "What the master’s " code { "--token-file" } " holds." }
                }
                div.send { button.primary type="submit" { "Log in" } }
            }
        }
    })
}
