//! What all pages share: head, header with the way to the other pages, and the small parts that occur everywhere.

use maud::{DOCTYPE, Markup, Render, html};
use wire::State;

use super::{links, style_link, text};

/// How often a live page loads itself anew, in seconds.
const REFRESH_SECONDS: u32 = 5;

/// The frame of one page.
pub struct Page<'a> {
    /// For the browser's tab; made plain here.
    pub title: &'a str,
    /// Which entry of the header this page is.
    pub here: Here,
    /// Whether it loads itself anew after a while.
    pub live: bool,
}

/// The entries of the header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// `/`
    Home,
    /// `/job/table`
    Jobs,
    /// `/node/table`
    Nodes,
    /// Any other page.
    Elsewhere,
}

impl Page<'_> {
    /// The whole document around `main`.
    pub fn around(&self, main: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    @if self.live { meta http-equiv="refresh" content=(REFRESH_SECONDS); }
                    title { (text::plain_line(self.title)) " · berth" }
                    link rel="icon" type="image/svg+xml" href="/icon.svg";
                    link rel="stylesheet" href=(style_link());
                }
                body {
                    a.skip href="#main" { "Skip to the content" }
                    header.top {
                        a.brand href="/" aria-current=[self.current(Here::Home)] {
                            span.mark aria-hidden="true" {} "berth"
                        }
                        nav aria-label="Pages" {
                            a href="/job/table" aria-current=[self.current(Here::Jobs)] { "Jobs" }
                            a href=(links::NODES) aria-current=[self.current(Here::Nodes)] { "Nodes" }
                            a href=(links::SUBMIT) { "Submit" }
                        }
                    }
                    main #main { (main) }
                }
            }
        }
    }

    fn current(&self, entry: Here) -> Option<&'static str> {
        (self.here == entry).then_some("page")
    }
}

/// A job's state as a coloured pill. The text says it; the colour only repeats it.
pub fn pill(state: State) -> Markup {
    html! { span class={ "pill " (state_class(state)) } { (state) } }
}

fn state_class(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Assigned => "assigned",
        State::Running => "running",
        State::Finished => "finished",
        State::Timeout => "timeout",
        State::Failed => "failed",
        State::Killed => "killed",
    }
}

/// A value, or a dash where there is none.
pub fn known(value: Option<impl Render>) -> Markup {
    html! {
        @match value { Some(value) => { (value) } None => { span.dim { "–" } } }
    }
}
