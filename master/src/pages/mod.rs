//! The pages: pure functions of a view. No page reads a clock, a socket or the store, and none needs JavaScript.
//!
//! Escaping is the template's (maud); what no browser would show is made visible by `text`. Text from users goes into
//! elements and quoted attributes, never into a link, a script or a style.

use maud::{Markup, html};

mod text;
pub mod view;

/// The stylesheet, served as `/style.css`.
pub const STYLE: &str = include_str!("style.css");

/// `GET /`.
pub fn home(_view: &view::Home) -> Markup {
    html! {}
}

/// `GET /job/table`.
pub fn job_table(_view: &view::JobTable) -> Markup {
    html! {}
}

/// `GET /node/table`.
pub fn node_table(_view: &view::NodeTable) -> Markup {
    html! {}
}

/// `GET /job/details/<id>`.
pub fn details(_view: &view::Details) -> Markup {
    html! {}
}

/// `GET /job/kill/<id>` from a browser.
pub fn confirm_kill(_view: &view::ConfirmKill) -> Markup {
    html! {}
}

/// `GET /login`.
pub fn login(_view: &view::Login) -> Markup {
    html! {}
}

/// Whatever could not be answered.
pub fn error(_view: &view::ErrorPage) -> Markup {
    html! {}
}
