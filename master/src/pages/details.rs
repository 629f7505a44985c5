//! One job: everything known of it, its logs, and the page that asks before it kills.

use maud::{Markup, html};
use wire::{ContainerId, State};

use super::job_table::{kill_button, ran_millis};
use super::layout::{Here, Page, nothing, pill};
use super::view::{ConfirmKill, Details, Log, LogTail};
use super::{amounts, links, text, times};
use crate::job::Job;

/// `GET /job/details/<id>`.
pub fn details(view: &Details) -> Markup {
    let job = &view.job;
    let title = format!("{} {} · {}", job.id, job.spec.name, job.status);
    let page = Page { title: &title, here: Here::Elsewhere, live: view.live && !job.status.is_final() };
    page.around(&html! {
        (heading(view))
        (why(view))
        dl.facts { (asked(job)) (became(view)) }
        section aria-labelledby="command" {
            h2 #command { "Command" }
            (block(job.spec.command_line.as_bytes()))
        }
        @for log in Log::ALL { (log_section(view, log)) }
    })
}

fn heading(view: &Details) -> Markup {
    let job = &view.job;
    html! {
        div.heading.job {
            h1 { span.id { (job.id) } " " bdi { (text::visible_line(&job.spec.name)) } }
            (pill(job.status))
            div.actions {
                @if !job.status.is_final() {
                    @if view.live {
                        a href=(links::still_details(job.id)) { "Stop refreshing" }
                    } @else {
                        a href=(links::details(job.id)) { "Keep refreshing" }
                    }
                }
                a href=(links::again(job.id)) { "Submit again" }
                @if !job.status.is_final() { (kill_button(job, &links::details(job.id))) }
            }
        }
    }
}

/// Why it waits, or why it did not finish.
fn why(view: &Details) -> Markup {
    let job = &view.job;
    html! {
        @match job.status {
            State::Pending | State::Assigned => {
                @if let Some(waits) = &view.waits { p.notice { strong { "Waits: " } bdi { (text::visible_line(waits)) } } }
            }
            State::Failed => {
                @let reason = job.reason().unwrap_or_else(|| "the reason was not recorded".to_owned());
                p.notice.bad { strong { "Failed: " } bdi { (text::visible_line(&reason)) } }
            }
            State::Timeout => { p.notice { "Stopped because its time was up: " (times::span(job.spec.timeout)) "." } }
            State::Killed => { p.notice { "Stopped because somebody asked for it." } }
            State::Running | State::Finished => {}
        }
    }
}

fn fact(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// What its user asked for.
fn asked(job: &Job) -> Markup {
    let spec = &job.spec;
    let packages: Vec<&str> = spec.packages().collect();
    html! {
        (fact("Cpu", &html! {
            (spec.resource.cpu) " " span.dim { @if spec.resource.cpu.pinned().is_some() { "pinned" } @else { "anywhere" } }
        }))
        (fact("Memory limit", &html! { (amounts::mib(spec.resource.mem)) }))
        (fact("Time-out", &html! { @if spec.timeout == 0 { "none" } @else { (times::span(spec.timeout)) } }))
        (fact("Image", &html! { (spec.image_id) }))
        div.wide[packages.len() > 1] {
            dt { "Packages" }
            dd {
                @if packages.is_empty() { span.dim { "none" } }
                @else { ul { @for package in packages { li { (text::visible_line(package)) } } } }
            }
        }
    }
}

/// What became of it.
fn became(view: &Details) -> Markup {
    let (job, now) = (&view.job, view.now);
    let instant = |then: Option<_>| {
        html! {
            @match then { Some(then) => { (times::exact_and_ago(then, now)) } None => { (nothing()) } }
        }
    };
    html! {
        (fact("Node", &html! {
            @match job.placed { Some(placed) => { a href=(links::node(placed.node)) { (placed.node) } } None => { (nothing()) } }
        }))
        (fact("Task", &html! {
            @match job.placed.and_then(|placed| placed.task) {
                Some(task) => { (task) " " span.dim { (ContainerId(task)) } }
                None => { (nothing()) }
            }
        }))
        (fact("Attempt", &html! { @if job.attempt.0 == 0 { (nothing()) } @else { (job.attempt) } }))
        (fact("Submitted", &instant(Some(job.submitted_at))))
        (fact("Started", &instant(job.started_at)))
        (fact("Ended", &instant(job.ended_at)))
        (fact(if job.status.is_final() { "Ran for" } else { "Running for" }, &html! {
            @match ran_millis(job, now) { Some(millis) => { (times::span(millis)) } None => { (nothing()) } }
        }))
        (fact("Exit code", &html! { @match job.exit_code { Some(code) => { (code) } None => { (nothing()) } } }))
        (fact("Cpu time", &cpu_time(view)))
        (fact("Memory peak", &memory_peak(job)))
    }
}

fn cpu_time(view: &Details) -> Markup {
    html! {
        @match view.job.cpu_ms {
            None => { (nothing()) }
            Some(cpu_ms) => {
                (times::span(cpu_ms))
                @if let Some(ran) = ran_millis(&view.job, view.now).filter(|&ran| ran > 0) {
                    " " span.dim { (u128::from(cpu_ms) * 100 / u128::from(ran)) " % of one CPU" }
                }
            }
        }
    }
}

fn memory_peak(job: &Job) -> Markup {
    let limit = job.spec.resource.mem.saturating_mul(1024 * 1024);
    html! {
        @match job.memory_peak_bytes {
            None => { (nothing()) }
            Some(peak) => {
                (amounts::bytes(peak)) " " span.dim { "of " (amounts::mib(job.spec.resource.mem)) }
                (amounts::bar(peak, limit))
            }
        }
    }
}

fn log_section(view: &Details, log: Log) -> Markup {
    let (tail, title) = match log {
        Log::Monitor => (&view.monitor, "Monitor"),
        Log::Stdout => (&view.stdout, "Standard output"),
        Log::Stderr => (&view.stderr, "Standard error"),
    };
    html! {
        section.log aria-labelledby=(log.as_str()) {
            div.heading {
                h2 id=(log.as_str()) { (title) }
                @if let LogTail::Tail { bytes, total_bytes } = tail {
                    span.dim { (size(bytes.len(), *total_bytes)) }
                    @if *total_bytes > 0 { a href=(links::output(view.job.id, log)) { "The whole" } }
                }
            }
            @match tail {
                LogTail::NotYet => { p.none { "Not yet: the job has no task." } }
                LogTail::Unavailable(why) => { p.notice { "Cannot be read now: " bdi { (text::visible_line(why)) } } }
                LogTail::Tail { bytes, .. } if bytes.is_empty() => {
                    p.none { @if view.job.status.is_final() { "It wrote nothing." } @else { "Nothing yet." } }
                }
                LogTail::Tail { bytes, .. } => {
                    div.tail tabindex="0" role="region" aria-labelledby=(log.as_str()) { (block(bytes)) }
                }
            }
        }
    }
}

fn size(shown: usize, total: u64) -> String {
    let shown = u64::try_from(shown).unwrap_or(u64::MAX);
    if shown < total {
        format!("the last {} of {}", amounts::bytes(shown), amounts::bytes(total))
    } else {
        amounts::bytes(total)
    }
}

/// Text as it is laid out. The first newline after the tag is the parser's (HTML, 13.1.2.5), so one is given to it.
fn block(bytes: &[u8]) -> Markup {
    html! { pre { "\n" (text::visible(bytes)) } }
}

/// `GET /job/kill/<id>` from a browser.
pub fn confirm_kill(view: &ConfirmKill) -> Markup {
    let job = &view.job;
    let title = format!("Kill job {}", job.id);
    let page = Page { title: &title, here: Here::Elsewhere, live: false };
    page.around(&html! {
        div.card {
            h1 { (title) @if !job.status.is_final() { "?" } }
            p { b { bdi { (text::visible_line(&job.spec.name)) } } " " (pill(job.status)) }
            @if job.status.is_final() {
                p { "It has ended already; there is nothing to kill." }
                p.actions { a href=(links::details(job.id)) { "Its details" } a href=(view.back.as_str()) { "Back" } }
            } @else {
                p { (what_kill_does(view)) }
                div.actions {
                    (kill_button(job, view.back.as_str()))
                    a href=(view.back.as_str()) { "Leave it alone" }
                }
            }
        }
    })
}

fn what_kill_does(view: &ConfirmKill) -> String {
    match ran_millis(&view.job, view.now) {
        Some(ran) => format!(
            "It has been running for {}. Its processes get SIGTERM, and SIGKILL after the grace period.",
            times::span(ran)
        ),
        None => "It has not started, and never will.".to_owned(),
    }
}
