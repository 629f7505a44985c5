//! The job table: on the home page, and on a page of its own with filter, search and paging.

use jiff::Timestamp;
use maud::{Markup, html};
use wire::State;

use super::layout::{Here, Page, known, pill};
use super::view::{JobQuery, JobTable};
use super::{amounts, links, text, times};
use crate::job::{Job, Placed};

/// `GET /job/table`.
pub fn job_table(view: &JobTable) -> Markup {
    let running = view.jobs.iter().any(|job| !job.status.is_final());
    let title = view.query.status.map_or("Jobs".to_owned(), |status| format!("Jobs: {status}"));
    let page = Page { title: &title, here: Here::Jobs, live: view.query.live && running };
    let back = links::jobs(&view.query);
    page.around(&html! {
        h1 { "Jobs" }
        (section(view, &back))
    })
}

/// Filter, search, table and paging. `back` is where a kill button's press comes back to.
pub(super) fn section(view: &JobTable, back: &str) -> Markup {
    html! {
        div.tools {
            (tabs(view))
            (search(&view.query))
        }
        @if view.jobs.is_empty() {
            (empty(view))
        } @else {
            (table(view, back))
        }
        (pages(view))
    }
}

fn tabs(view: &JobTable) -> Markup {
    let states = std::iter::once(None).chain(State::ALL.into_iter().map(Some));
    html! {
        nav.tabs aria-label="Jobs by state" {
            @for status in states {
                @let here = status == view.query.status;
                a href=(links::jobs(&view.query.in_state(status))) aria-current=[here.then_some("true")] {
                    (status.map_or("All", State::as_str))
                    @if let Some(count) = count(view, status) { " " span.count { (count) } }
                }
            }
        }
    }
}

fn count(view: &JobTable, status: Option<State>) -> Option<u64> {
    let counts = view.counts.as_ref()?;
    Some(match status {
        Some(status) => counts.get(&status).copied().unwrap_or(0),
        None => counts.values().sum(),
    })
}

fn search(query: &JobQuery) -> Markup {
    html! {
        form.search role="search" method="get" action="/job/table" {
            @if let Some(status) = query.status { input type="hidden" name="status" value=(status); }
            @if let Some(limit) = query.limit { input type="hidden" name="limit" value=(limit); }
            label.unseen for="q" { "Search jobs" }
            input #q type="search" name="q" value=(query.q) placeholder="name or command"
                autocomplete="off" autocapitalize="off" spellcheck="false";
            button type="submit" { "Search" }
            @if !query.q.is_empty() { a href=(links::jobs(&query.without_search())) { "Clear" } }
        }
    }
}

fn table(view: &JobTable, back: &str) -> Markup {
    html! {
        table.jobs {
            caption.unseen { "Jobs, newest first" }
            thead {
                tr {
                    th.number scope="col" { "Id" }
                    th scope="col" { "Name" }
                    th scope="col" { "State" }
                    th.number scope="col" { abbr title="node / task" { "Node" } }
                    th.number scope="col" { "Cpu" }
                    th.number scope="col" { "Mem" }
                    th.number scope="col" { "Submitted" }
                    th.number scope="col" { "Duration" }
                    th scope="col" { span.unseen { "Kill" } }
                }
            }
            tbody { @for job in &view.jobs { (row(job, view.now, back)) } }
        }
    }
}

fn row(job: &Job, now: Timestamp, back: &str) -> Markup {
    let details = links::details(job.id);
    html! {
        tr {
            th.id.number scope="row" { a href=(details) { (job.id) } }
            td.name {
                // The id is the link; this one is for the mouse.
                a.cut href=(details) title=(text::plain_line(&job.spec.name)) tabindex="-1" {
                    (text::visible_line(&job.spec.name))
                }
            }
            td.state {
                div.line {
                    (pill(job.status))
                    @if let Some(reason) = job.reason() {
                        " " span.reason title=(text::plain_line(&reason)) { (text::visible_line(&reason)) }
                    }
                }
            }
            td.place.number data-label="node" { (known(job.placed.map(place)))
                @if job.attempt.0 > 1 { " " span.dim { "try " (job.attempt) } } }
            td.cpu.number data-label="cpu" title=(job.spec.resource.cpu) { (job.spec.resource.cpu) }
            td.number data-label="mem" { (amounts::mib(job.spec.resource.mem)) }
            td.number.when data-label="submitted" { (times::ago(job.submitted_at, now)) }
            td.number.span data-label="ran" { (known(ran_millis(job, now).map(times::span))) }
            td.act { @if !job.status.is_final() { (kill_button(job, back)) } }
        }
    }
}

fn place(placed: Placed) -> Markup {
    html! {
        a href=(links::node(placed.node)) { (placed.node) }
        span.dim { " / " (known(placed.task.map(|task| task.0))) }
    }
}

/// From the start of the command to its end, or until now.
pub(super) fn ran_millis(job: &Job, now: Timestamp) -> Option<u64> {
    let end = job.ended_at.or((!job.status.is_final()).then_some(now))?;
    Some(times::millis_between(job.started_at?, end))
}

/// The form of one button that kills a job.
pub(super) fn kill_button(job: &Job, back: &str) -> Markup {
    html! {
        form method="post" action=(links::kill(job.id)) {
            input type="hidden" name="back" value=(back);
            button.kill type="submit" aria-label={ "Kill job " (job.id) } { "Kill" }
        }
    }
}

fn pages(view: &JobTable) -> Markup {
    let query = &view.query;
    let running = view.jobs.iter().any(|job| !job.status.is_final());
    html! {
        nav.pages aria-label="Pages of jobs" {
            @if query.after.is_some() { a href=(links::jobs(&query.from(None))) { "⇤ Newest" } }
            @if view.older.is_some() { a rel="next" href=(links::jobs(&query.from(view.older))) { "Older →" } }
            span.asof {
                "as of " (times::time_of_day(view.now)) " "
                @if query.live && running {
                    a href=(links::jobs(&query.live(false))) { "Stop refreshing" }
                } @else if running {
                    a href=(links::jobs(&query.live(true))) { "Refresh every 5 s" }
                }
            }
        }
    }
}

/// What to do when there is nothing to show.
fn empty(view: &JobTable) -> Markup {
    let query = &view.query;
    html! {
        div.empty {
            @if !query.q.is_empty() {
                p {
                    "No " @if let Some(status) = query.status { (status) " " }
                    "job matches " q { bdi { (text::visible_line(&query.q)) } } "."
                }
                p { a href=(links::jobs(&query.without_search())) { "Clear the search" } }
            } @else if query.after.is_some() {
                p { "There are no older jobs." }
                p { a href=(links::jobs(&query.from(None))) { "Back to the newest" } }
            } @else if let Some(status) = query.status {
                p { "No job is " (status) "." }
                p { a href=(links::jobs(&query.in_state(None))) { "Show all jobs" } }
            } @else {
                p { "No jobs yet." }
                p { a href=(links::SUBMIT) { "Submit the first one" } }
            }
        }
    }
}
