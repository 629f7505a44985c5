//! The node table: on the home page, and on a page of its own.

use jiff::Timestamp;
use maud::{Markup, html};
use wire::ImageId;
use wire::node::NodeResource;

use super::layout::{Here, Page};
use super::view::NodeTable;
use super::{amounts, links, text, times};
use crate::job::{Node, NodeState};

/// How many images a row names before it folds the rest away.
const IMAGES_SHOWN: usize = 4;

/// `GET /node/table`.
pub fn node_table(view: &NodeTable) -> Markup {
    let page = Page { title: "Nodes", here: Here::Nodes, live: false };
    page.around(&html! {
        h1 { "Nodes" }
        (section(view))
        p.pages { span.asof { "as of " (times::time_of_day(view.now)) " " a href=(links::NODES) { "Refresh" } } }
    })
}

/// The table, or what to do when there is no node.
pub(super) fn section(view: &NodeTable) -> Markup {
    html! {
        @if view.nodes.is_empty() {
            div.empty {
                p { "This master knows no nodes." }
                p { "Start " code { "berth-supervisor" } " on a machine, and the master with "
                    code { "--node 0=127.0.0.1:5000" } "." }
            }
        } @else {
            table.nodes {
                caption.unseen { "Nodes" }
                thead {
                    tr {
                        th.number scope="col" { "Id" }
                        th scope="col" { "Address" }
                        th scope="col" { "State" }
                        th scope="col" { "Cpu used" }
                        th scope="col" { "Mem used" }
                        th.number scope="col" { "Tasks" }
                        th.number scope="col" { abbr title="cgroups and container folders without an owner" { "Leaks" } }
                        th.number scope="col" { abbr title="over 1, 5 and 15 minutes" { "Load" } }
                        th scope="col" { "Images" }
                    }
                }
                tbody { @for node in &view.nodes { (row(node, view.now)) } }
            }
        }
    }
}

fn row(node: &Node, now: Timestamp) -> Markup {
    let stale = !matches!(node.state, NodeState::Ready) && node.resource.is_some();
    let closed = node.resource.as_ref().and_then(|said| said.closed.as_deref());
    html! {
        tr id=(links::node_anchor(node.id)) class=[stale.then_some("stale")] {
            th.id.number scope="row" { (node.id) }
            td.addr {
                (text::visible_line(&node.addr))
                @if let Some(resource) = &node.resource { (system(resource)) }
            }
            td.state {
                (state(&node.state, closed, now))
                @if stale { div.reason { "The numbers are from before." } }
                @for note in &node.notes { div.reason { (text::visible_line(note)) } }
            }
            @match &node.resource {
                Some(resource) => { (said(resource)) }
                None => {
                    td.use data-label="cpu" { "–" }
                    td.use data-label="mem" { "–" }
                    td.number data-label="tasks" { "–" }
                    td.number data-label="leaks" { "–" }
                    td.number data-label="load" { "–" }
                    td data-label="images" { "–" }
                }
            }
        }
    }
}

fn state(state: &NodeState, closed: Option<&str>, now: Timestamp) -> Markup {
    html! {
        span class={ "pill " (state.as_str()) } { (state.as_str()) }
        @match state {
            NodeState::Ready => {
                @if let Some(why) = closed { " " span.reason { "takes nothing new: " (text::visible_line(why)) } }
            }
            NodeState::Unknown => { " " span.reason { "not heard of yet" } }
            NodeState::Lost { since, why } => {
                " " span.reason { (times::ago(*since, now)) ": " (text::visible_line(why)) }
            }
        }
    }
}

/// The cells of what a node says of itself.
fn said(resource: &NodeResource) -> Markup {
    let cpu_used = resource.cpu_total.saturating_sub(resource.cpu);
    let mem_used = resource.mem_total.saturating_sub(resource.mem);
    html! {
        td.use data-label="cpu" {
            span.figure { (cpu_used) " of " (resource.cpu_total) }
            (amounts::bar(cpu_used.milli(), resource.cpu_total.milli()))
        }
        td.use data-label="mem" {
            span.figure { (amounts::mib_of(mem_used, resource.mem_total)) }
            (amounts::bar(mem_used, resource.mem_total))
        }
        td.number data-label="tasks" { (resource.tasks) }
        td.number data-label="leaks" { (resource.leaks) }
        td.number.load data-label="load" {
            @for (nth, load) in resource.load.iter().enumerate() { @if nth > 0 { " " } (format!("{load:.2}")) }
        }
        td.images data-label="images" { (images(&resource.images)) }
    }
}

/// What it runs on.
fn system(resource: &NodeResource) -> Markup {
    let words = [&resource.kernel, &resource.cgroups, &resource.union];
    html! {
        div.system {
            @for word in words { span { (text::visible_line(word)) } " · " }
            span { "berth " (text::visible_line(&resource.version)) }
        }
    }
}

fn images(images: &[ImageId]) -> Markup {
    let (shown, folded) = images.split_at(images.len().min(IMAGES_SHOWN));
    html! {
        @if images.is_empty() { span.dim { "none" } }
        @for image in shown { span.tag { (image) } " " }
        @if !folded.is_empty() {
            details {
                summary { (folded.len()) " more" }
                @for image in folded { span.tag { (image) } " " }
            }
        }
    }
}
