//! The home page: what the cluster does at a glance, both tables, and the two forms of the original.

use std::collections::BTreeMap;

use maud::{Markup, html};
use wire::node::Refusal;
use wire::{CpuAmount, State};

use super::layout::{Here, Page};
use super::view::{BatchForm, CreateForm, Home, JobQuery, NodeTable};
use super::{amounts, job_table, links, node_table, text, times};
use crate::job::NodeState;

/// What the batch form shows while it is empty.
const BATCH_EXAMPLE: &str = r#"[{"name": "hello", "resource": {"cpu": 1, "mem": 64},
  "commandLine": "echo hello; id", "packagePath": "",
  "imageId": "busybox", "timeout": 60000}]"#;

/// `GET /`.
pub fn home(view: &Home) -> Markup {
    let page = Page { title: "Jobs and nodes", here: Here::Home, live: false };
    page.around(&html! {
        h1.unseen { "Jobs and nodes" }
        (refused(view))
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
            section aria-labelledby="submit" { (create_form(&view.create, &view.nodes)) }
            section aria-labelledby="batch" { (batch_form(&view.batch)) }
        }
    })
}

/// Says above everything else that a form was refused, for the form itself may be far below.
fn refused(view: &Home) -> Markup {
    let create = view.create.error.as_ref().map(|error| ("The job was not submitted.", create_anchor(error), error));
    let batch = view.batch.error.as_ref().map(|error| ("No job of the list was submitted.", "#json", error));
    html! {
        @for (what, anchor, error) in create.into_iter().chain(batch) {
            p.notice.bad role="alert" { strong { (what) } " " (sentence(error)) " " a href=(anchor) { "Correct it" } }
        }
    }
}

fn sentence(error: &Refusal) -> Markup {
    html! {
        @if let Some(field) = form_name(error).or(error.field.as_deref()) { code { (text::visible_line(field)) } ": " }
        bdi { (text::visible_line(&error.message)) }
    }
}

/// The figures of the cluster in one line.
fn glance(view: &Home) -> Markup {
    let ready = view.nodes.nodes.iter().filter(|node| node.state == NodeState::Ready);
    let said: Vec<_> = ready.clone().filter_map(|node| node.resource.as_ref()).collect();
    let (cpu, cpu_total): (CpuAmount, CpuAmount) =
        (said.iter().map(|said| said.cpu).sum(), said.iter().map(|said| said.cpu_total).sum());
    let (mem, mem_total): (u64, u64) =
        (said.iter().map(|said| said.mem).sum(), said.iter().map(|said| said.mem_total).sum());
    let (cpu_used, mem_used) = (cpu_total.saturating_sub(cpu), mem_total.saturating_sub(mem));
    html! {
        dl.glance {
            div { dt { "Nodes ready" } dd { (ready.count()) " of " (view.nodes.nodes.len()) } }
            div { dt { "Cpu used" } dd { (cpu_used) " of " (cpu_total) (amounts::bar(cpu_used.milli(), cpu_total.milli())) } }
            div {
                dt { "Mem used" }
                dd { (amounts::mib_of(mem_used, mem_total)) (amounts::bar(mem_used, mem_total)) }
            }
            @if let Some(counts) = &view.jobs.counts {
                @let count = |state| counts.get(&state).copied().unwrap_or(0);
                div { dt { "Running" } dd { (count(State::Running)) } }
                div { dt { "Waiting" } dd { (count(State::Pending) + count(State::Assigned)) } }
            }
            div { dt { "As of" } dd { (times::time_of_day(view.jobs.now)) } }
        }
    }
}

/// One field of the first form: what it is called there, and what surrounds it.
struct Field {
    name: &'static str,
    label: &'static str,
    hint: &'static str,
}

const NAME: Field = Field { name: "name", label: "Name", hint: "" };
const IMAGE: Field = Field { name: "imgid", label: "Image", hint: "" };
const COMMAND: Field =
    Field { name: "cmdline", label: "Command", hint: "run by the image’s /bin/sh -c in /workspace" };
const CPU: Field = Field { name: "cpu", label: "Cpu", hint: "0,1 or 0-3 pins to these; x2 or 0.5 is any" };
const MEM: Field = Field { name: "mem", label: "Mem, MiB", hint: "a hard limit, no swap" };
const TIMEOUT: Field = Field { name: "timeout", label: "Time-out, ms", hint: "empty: none" };
const PACKAGES: Field = Field {
    name: "pkgpath",
    label: "Packages",
    hint: "absolute paths on the node, separated by ; – they appear in /workspace",
};

/// The form's name of a field that the wire calls otherwise.
fn form_name(error: &Refusal) -> Option<&'static str> {
    Some(match error.field.as_deref()? {
        "name" => NAME.name,
        "resource.cpu" | "cpu" => CPU.name,
        "resource.mem" | "mem" => MEM.name,
        "commandLine" | "cmdline" => COMMAND.name,
        "packagePath" | "pkgpath" => PACKAGES.name,
        "imageId" | "imgid" => IMAGE.name,
        "timeout" => TIMEOUT.name,
        _ => return None,
    })
}

fn create_anchor(error: &Refusal) -> &'static str {
    match form_name(error) {
        Some("name") => "#name",
        Some("cpu") => "#cpu",
        Some("mem") => "#mem",
        Some("cmdline") => "#cmdline",
        Some("pkgpath") => "#pkgpath",
        Some("imgid") => "#imgid",
        Some("timeout") => "#timeout",
        _ => "#submit",
    }
}

fn create_form(form: &CreateForm, nodes: &NodeTable) -> Markup {
    let typed = &form.typed;
    html! {
        h2 #submit { "Submit a job" }
        form.create method="post" action="/job/create" {
            (field(&NAME, form, |is| html! {
                input id=(NAME.name) name=(NAME.name) value=(typed.name) required maxlength="256" placeholder="train-17"
                    autocomplete="off" autofocus[is.wrong] aria-invalid=[is.invalid()] aria-describedby=[is.described()];
            }))
            (field(&IMAGE, form, |is| image(&typed.imgid, nodes, is)))
            (field(&COMMAND, form, |is| html! {
                textarea id=(COMMAND.name) name=(COMMAND.name) rows="3" required spellcheck="false" autocapitalize="off"
                    placeholder="echo hello; nproc; cat /proc/self/cgroup"
                    autofocus[is.wrong] aria-invalid=[is.invalid()] aria-describedby=[is.described()] { (typed_lines(&typed.cmdline)) }
            }))
            (field(&CPU, form, |is| short_input(&CPU, &typed.cpu, "x1", None, true, is)))
            (field(&MEM, form, |is| short_input(&MEM, &typed.mem, "64", Some("numeric"), true, is)))
            (field(&TIMEOUT, form, |is| short_input(&TIMEOUT, &typed.timeout, "none", Some("numeric"), false, is)))
            (field(&PACKAGES, form, |is| short_input(&PACKAGES, &typed.pkgpath, "/srv/data/set-a;/srv/tools", None, false, is)))
            div.send {
                @if let Some(error) = form.error.as_ref().filter(|error| form_name(error).is_none()) {
                    p.wrong { (sentence(error)) }
                }
                button.primary type="submit" { "Submit" }
            }
        }
    }
}

/// How a field stands: whether it was refused, and which elements describe it.
struct Standing {
    wrong: bool,
    described_by: String,
}

impl Standing {
    fn invalid(&self) -> Option<&'static str> {
        self.wrong.then_some("true")
    }

    fn described(&self) -> Option<&str> {
        Some(self.described_by.as_str()).filter(|ids| !ids.is_empty())
    }
}

/// Label, input, what was wrong with it, and the hint.
fn field(field: &Field, form: &CreateForm, input: impl FnOnce(&Standing) -> Markup) -> Markup {
    let error = form.error.as_ref().filter(|error| form_name(error) == Some(field.name));
    let (error_id, hint_id) = (format!("{}-error", field.name), format!("{}-hint", field.name));
    let ids = [error.map(|_| error_id.as_str()), (!field.hint.is_empty()).then_some(hint_id.as_str())];
    let described_by = ids.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let standing = Standing { wrong: error.is_some(), described_by };
    html! {
        div class={ "field " (field.name) } {
            label for=(field.name) { (field.label) }
            (input(&standing))
            @if let Some(error) = error { p.wrong id=(error_id) { bdi { (text::visible_line(&error.message)) } } }
            @if !field.hint.is_empty() { p.hint id=(hint_id) { (field.hint) } }
        }
    }
}

fn short_input(
    field: &Field,
    typed: &str,
    placeholder: &str,
    inputmode: Option<&str>,
    required: bool,
    is: &Standing,
) -> Markup {
    html! {
        input id=(field.name) name=(field.name) value=(typed) placeholder=(placeholder) inputmode=[inputmode]
            required[required] autocomplete="off" autocapitalize="off" spellcheck="false"
            autofocus[is.wrong] aria-invalid=[is.invalid()] aria-describedby=[is.described()];
    }
}

/// A choice of the images that nodes have; a plain field while none is known.
fn image(typed: &str, nodes: &NodeTable, is: &Standing) -> Markup {
    let images = known_images(nodes);
    let with_image = nodes.nodes.iter().filter(|node| node.resource.is_some()).count();
    if images.is_empty() {
        return short_input(&IMAGE, if typed.is_empty() { "busybox" } else { typed }, "busybox", None, true, is);
    }
    let known = typed.is_empty() || images.contains_key(typed);
    let chosen = |image: &str| if typed.is_empty() { image == "busybox" } else { image == typed };
    html! {
        select id=(IMAGE.name) name=(IMAGE.name) autofocus[is.wrong] aria-invalid=[is.invalid()] aria-describedby=[is.described()] {
            @if !known { option value=(typed) selected { (text::plain_line(typed)) " (on no known node)" } }
            @for (image, nodes) in &images {
                option value=(image) selected[chosen(image)] {
                    (image) @if *nodes < with_image { " (on " (nodes) " of " (with_image) " nodes)" }
                }
            }
        }
    }
}

/// Every image that some node has, and on how many.
fn known_images(nodes: &NodeTable) -> BTreeMap<&str, usize> {
    let mut images = BTreeMap::new();
    for image in nodes.nodes.iter().filter_map(|node| node.resource.as_ref()).flat_map(|said| &said.images) {
        *images.entry(image.as_str()).or_insert(0) += 1;
    }
    images
}

fn batch_form(form: &BatchForm) -> Markup {
    let wrong = form.error.is_some();
    html! {
        h2 #batch { "Submit a list" }
        form method="post" action="/job/create_json" {
            div.field {
                label for="json" { "A JSON list of jobs" }
                textarea #json name="json" rows="9" required spellcheck="false" autocapitalize="off" placeholder=(BATCH_EXAMPLE)
                    autofocus[wrong] aria-invalid=[wrong.then_some("true")]
                    aria-describedby=(if wrong { "json-error json-hint" } else { "json-hint" }) { (typed_lines(&form.typed)) }
                @if let Some(error) = &form.error { p.wrong #json-error { (sentence(error)) } }
                p.hint #json-hint { "All or nothing: one bad entry refuses the whole list and is named. "
                    "A number in " code { "cpu" } " is any, a string such as " code { "\"0,1\"" } " pins." }
            }
            div.send { button.primary type="submit" { "Submit all" } }
        }
    }
}

/// The content of a textarea. The first newline after the tag is the parser's (HTML, 13.1.2.5), so one is given to it.
fn typed_lines(typed: &str) -> Markup {
    html! { "\n" (typed) }
}
