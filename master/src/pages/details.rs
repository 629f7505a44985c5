//! One job: everything known of it, its logs, and the page that asks before it kills.

use jiff::Timestamp;
use maud::{Markup, html};
use wire::{ContainerId, Log, OnNodeLoss, State};

use super::job_table::{kill_button, ran_millis};
use super::layout::{Here, Page, known, pill};
use super::view::{ConfirmKill, Details, LogTail};
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
        @if let Some(stuck) = view.stuck.as_ref().filter(|_| !job.status.is_final()) {
            p.notice.bad { strong { "Stuck: " } bdi { (text::visible_line(stuck)) } }
        }
        @if view.kill_asked && !job.status.is_final() {
            p.notice { strong { "Stopping: " } "somebody asked for its end, and it has not ended yet." }
        }
        dl.facts { (outcome(view)) (place_and_times(view)) (asked(job)) }
        section aria-labelledby="command" {
            h2 #command { "Command" }
            div.well tabindex="0" role="region" aria-labelledby="command" { (block(job.spec.command_line.as_bytes())) }
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
                        a href=(links::details(job.id)) { "Refresh every 5 s" }
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
                @if let Some(waits) = &view.waits {
                    p.notice { strong { "Waits: " } bdi { (text::visible_line(waits)) } }
                }
            }
            State::Failed => {
                @let reason = job.reason().unwrap_or_else(|| "the reason was not recorded".to_owned());
                p.notice.bad { strong { "Failed: " } bdi { (text::visible_line(&reason)) } }
            }
            State::Timeout => { p.notice { "Stopped because its time was up: " (times::span(job.spec.timeout)) "." } }
            State::Killed => { p.notice { "Stopped because somebody asked for it." } }
            State::Running => {
                @if let Some(unheard) = &view.waits {
                    p.notice.bad { strong { "Not heard of: " } bdi { (text::visible_line(unheard)) } }
                }
            }
            State::Finished => {}
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
            (spec.resource.cpu) " " span.dim { (spec.resource.cpu.pinned().map_or("anywhere", |_| "pinned")) }
        }))
        (fact("Memory limit", &html! { (amounts::mib(spec.resource.mem)) }))
        (fact("Time-out", &html! { @if spec.timeout == 0 { "none" } @else { (times::span(spec.timeout)) } }))
        (fact("If its node is lost", &html! {
            @match spec.on_node_loss {
                OnNodeLoss::Wait => "it waits",
                OnNodeLoss::Fail => "it fails",
                OnNodeLoss::Retry => "it is tried elsewhere",
            }
        }))
        (fact("Image", &html! { (spec.image_id) }))
        (fact("Packages", &html! {
            @if packages.is_empty() { span.dim { "none" } }
            @else { ul { @for package in packages { li { (text::visible_line(package)) } } } }
        }))
    }
}

/// How it ended, or how far it is, and what it used.
fn outcome(view: &Details) -> Markup {
    let job = &view.job;
    let ran = ran_millis(job, view.now);
    html! {
        (lasting(job, ran, view.now))
        (fact("Exit code", &known(job.exit_code)))
        (fact("Cpu time", &known(job.cpu_ms.map(|cpu_ms| cpu_time(cpu_ms, ran)))))
        (fact("Memory peak", &known(job.memory_peak_bytes.map(|peak| memory_peak(peak, job.spec.resource.mem)))))
        (fact("Attempt", &known((job.attempt.0 > 0).then(|| attempt(job)))))
    }
}

fn attempt(job: &Job) -> Markup {
    html! {
        (job.attempt)
        @if job.lost_attempts > 0 { " " span.dim { (job.lost_attempts) " lost with their nodes" } }
    }
}

/// Where it is, and since when.
fn place_and_times(view: &Details) -> Markup {
    let job = &view.job;
    let instant = |then: Option<_>| known(then.map(|then| times::exact_and_ago(then, view.now)));
    let node = job.placed.map(|placed| html! { a href=(links::node(placed.node)) { (placed.node) } });
    let task = job.placed.and_then(|placed| placed.task);
    html! {
        (fact("Node", &known(node)))
        (fact("Task", &known(task.map(|task| html! { (task) " " span.dim { (ContainerId(task)) } }))))
        (fact("Submitted", &instant(Some(job.submitted_at))))
        (fact("Started", &instant(job.started_at)))
        (fact("Ended", &instant(job.ended_at)))
    }
}

/// How long it ran, has run, or has waited.
fn lasting(job: &Job, ran: Option<u64>, now: Timestamp) -> Markup {
    let waited = || times::span(times::millis_between(job.submitted_at, now));
    match (job.status.is_final(), ran) {
        (true, ran) => fact("Ran for", &known(ran.map(times::span))),
        (false, Some(ran)) => fact("Running for", &html! { (times::span(ran)) }),
        (false, None) => fact("Waiting for", &html! { (waited()) }),
    }
}

fn cpu_time(cpu_ms: u64, ran_ms: Option<u64>) -> Markup {
    html! {
        (times::span(cpu_ms))
        @if let Some(ran_ms) = ran_ms.filter(|&ran_ms| ran_ms > 0) {
            " " span.dim { (u128::from(cpu_ms) * 100 / u128::from(ran_ms)) " % of one CPU" }
        }
    }
}

fn memory_peak(peak: u64, limit_mib: u64) -> Markup {
    html! {
        (amounts::bytes(peak)) " " span.dim { "of " (amounts::mib(limit_mib)) }
        (amounts::limit_bar(peak, limit_mib.saturating_mul(1024 * 1024)))
    }
}

fn log_section(view: &Details, log: Log) -> Markup {
    let (tail, title) = match log {
        Log::Monitor => (&view.monitor, "Monitor"),
        Log::Stdout => (&view.stdout, "Standard output"),
        Log::Stderr => (&view.stderr, "Standard error"),
    };
    let ended = view.job.status.is_final();
    html! {
        section.log aria-labelledby=(log.as_str()) {
            div.heading {
                h2 id=(log.as_str()) { (title) }
                @if let LogTail::Tail { bytes, total_bytes } = tail {
                    span.dim { (size(bytes.len(), *total_bytes)) }
                    @if *total_bytes > 0 { a href=(links::output(view.job.id, log)) { "The whole" } }
                }
                @if !ended { a href=(links::follow(view.job.id, log)) { "Follow" } }
            }
            @match tail {
                LogTail::NotYet => {
                    p.none { (if ended { "There is none: it never had a task." } else { "Not yet: it has no task." }) }
                }
                LogTail::Unavailable(why) => { p.notice { "Cannot be read now: " bdi { (text::visible_line(why)) } } }
                LogTail::Tail { bytes, .. } if bytes.is_empty() => {
                    p.none { (if ended { "It wrote nothing." } else { "Nothing yet." }) }
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

/// Text as it is laid out. The parser takes a newline right after the tag for its own (HTML, 13.1.2.5): it gets one.
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
