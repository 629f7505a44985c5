//! The home page: what the cluster does at a glance, both tables, and the two forms of the original.

use maud::{Markup, html};
use wire::{CpuAmount, State};

use super::layout::{Here, Page};
use super::view::{Home, JobQuery};
use super::{amounts, forms, job_table, links, node_table, times};
use crate::job::NodeState;

/// `GET /`.
pub fn home(view: &Home) -> Markup {
    let page = Page { title: "Jobs and nodes", here: Here::Home, live: false };
    page.around(&html! {
        h1.unseen { "Jobs and nodes" }
        (forms::refused(&view.create, &view.batch))
        (glance(view))
        section aria-labelledby="jobs" {
            div.heading {
                h2 #jobs { a href=(links::jobs(&JobQuery::default())) { "Jobs" } }
                a href="/" { "Refresh" }
            }
            (job_table::section(&view.jobs, "/"))
        }
        section aria-labelledby="nodes" {
            h2 #nodes { a href=(links::NODES) { "Nodes" } }
            (node_table::section(&view.nodes))
        }
        div.forms {
            section aria-labelledby="submit" { (forms::create(&view.create, &view.nodes)) }
            section aria-labelledby="batch" { (forms::batch(&view.batch)) }
        }
    })
}

/// The figures of the cluster in one line.
fn glance(view: &Home) -> Markup {
    let nodes = &view.nodes.nodes;
    let ready: Vec<_> = nodes.iter().filter(|node| node.state == NodeState::Ready).collect();
    let said = || ready.iter().filter_map(|node| node.resource.as_ref());
    let cpu_total: CpuAmount = said().map(|said| said.cpu_total).sum();
    let cpu_used = cpu_total.saturating_sub(said().map(|said| said.cpu).sum());
    let mem_total: u64 = said().map(|said| said.mem_total).sum();
    let mem_used = mem_total.saturating_sub(said().map(|said| said.mem).sum());
    html! {
        dl.glance {
            (figure("Nodes ready", &html! { (ready.len()) " of " (nodes.len()) }))
            (figure("Cpu used", &html! {
                (cpu_used) " of " (cpu_total) (amounts::bar(cpu_used.milli(), cpu_total.milli()))
            }))
            (figure("Mem used", &html! {
                (amounts::mib_of(mem_used, mem_total)) (amounts::bar(mem_used, mem_total))
            }))
            @if let Some(counts) = &view.jobs.counts {
                @let count = |state| counts.get(&state).copied().unwrap_or(0);
                (figure("Running", &html! { (count(State::Running)) }))
                (figure("Waiting", &html! { (count(State::Pending) + count(State::Assigned)) }))
            }
            (figure("As of", &times::time_of_day(view.jobs.now)))
        }
    }
}

fn figure(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}
