//! The pages: pure functions of a view. No page reads a clock, a socket or the store, and none needs JavaScript.
//!
//! Escaping is the template's (maud); what no browser would show is made visible by `text`. Text from users goes into
//! elements and quoted attributes, never into a link, a script or a style. No page has an inline style or script, so
//! `Content-Security-Policy: default-src 'self'` holds for all of them.

mod amounts;
mod details;
mod error;
mod forms;
mod home;
mod job_table;
mod layout;
mod links;
mod login;
mod node_table;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
mod text;
mod times;
pub mod view;

pub use details::{confirm_kill, details};
pub use error::error;
pub use home::home;
pub use job_table::job_table;
pub use links::jobs as job_table_link;
pub use login::login;
pub use node_table::node_table;

/// The stylesheet, served as `/style.css`, `text/css; charset=utf-8`. Its link changes with it, so it may be
/// cached for ever.
pub const STYLE: &str = include_str!("style.css");

/// The mark in the browser's tab, served as `/icon.svg`, `image/svg+xml`.
pub const ICON: &str = include_str!("icon.svg");

/// The stylesheet's address, with a digest of its text.
pub fn style_link() -> String {
    const DIGEST: u64 = fnv1a(STYLE.as_bytes());
    format!("/style.css?v={DIGEST:016x}")
}

/// FNV-1a, 64 bit (draft-eastlake-fnv, section 2): enough to tell one stylesheet from the next.
const fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x100_0000_01b3);
        at += 1;
    }
    hash
}
