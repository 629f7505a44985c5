//! The two forms of the original. A refused one comes back as it was typed, with the error at its field.

use std::collections::BTreeMap;

use maud::{Markup, html};
use wire::OnNodeLoss;
use wire::node::Refusal;

use super::text;
use super::view::{BatchForm, CreateForm, NodeTable};

/// What the batch form shows while it is empty.
const BATCH_EXAMPLE: &str = r#"[{"name": "hello", "resource": {"cpu": 1, "mem": 64},
  "commandLine": "echo hello; id", "packagePath": "",
  "imageId": "busybox", "timeout": 60000}]"#;

/// A field of the first form.
struct Field {
    /// What it is called when it is sent, and in the page.
    name: &'static str,
    /// What a job's JSON calls it.
    wire_name: &'static str,
    label: &'static str,
    placeholder: &'static str,
    hint: &'static str,
    required: bool,
}

const NAME: Field =
    Field { name: "name", wire_name: "name", label: "Name", placeholder: "train-17", hint: "", required: true };
const IMAGE: Field =
    Field { name: "imgid", wire_name: "imageId", label: "Image", placeholder: "busybox", hint: "", required: true };
const COMMAND: Field = Field {
    name: "cmdline",
    wire_name: "commandLine",
    label: "Command",
    placeholder: "echo hello; nproc; cat /proc/self/cgroup",
    hint: "run by the image’s /bin/sh -c in /workspace",
    required: true,
};
const CPU: Field = Field {
    name: "cpu",
    wire_name: "resource.cpu",
    label: "Cpu",
    placeholder: "x1",
    hint: "0,1 or 0-3 pins to these; x2 or 0.5 is any",
    required: true,
};
const MEM: Field = Field {
    name: "mem",
    wire_name: "resource.mem",
    label: "Mem, MiB",
    placeholder: "64",
    hint: "a hard limit, no swap",
    required: true,
};
const TIMEOUT: Field = Field {
    name: "timeout",
    wire_name: "timeout",
    label: "Time-out, ms",
    placeholder: "none",
    hint: "empty: none",
    required: false,
};
const PACKAGES: Field = Field {
    name: "pkgpath",
    wire_name: "packagePath",
    label: "Packages",
    placeholder: "/srv/data/set-a;/srv/tools",
    hint: "absolute paths on the node, separated by ; – they appear in /workspace",
    required: false,
};
const ON_NODE_LOSS: Field = Field {
    name: "onnodeloss",
    wire_name: "onNodeLoss",
    label: "If its node is lost",
    placeholder: "wait",
    hint: "a job that is tried again must bear to run twice, one after the other",
    required: false,
};
const FIELDS: [&Field; 8] = [&NAME, &IMAGE, &COMMAND, &CPU, &MEM, &TIMEOUT, &PACKAGES, &ON_NODE_LOSS];

/// The field of the first form that an error is about.
fn field_of(error: &Refusal) -> Option<&'static Field> {
    let name = error.field.as_deref()?;
    FIELDS.into_iter().find(|field| field.name == name || field.wire_name == name)
}

/// Says that forms were refused, for the top of the page: the form itself may be far below.
pub fn refused(create: &CreateForm, batch: &BatchForm) -> Markup {
    html! {
        @if let Some(error) = &create.error {
            @let anchor = field_of(error).map_or("submit", |field| field.name);
            (notice("The job was not submitted.", error, anchor))
        }
        @if let Some(error) = &batch.error { (notice("No job of the list was submitted.", error, "json")) }
    }
}

fn notice(what: &str, error: &Refusal, anchor: &'static str) -> Markup {
    html! {
        p.notice.bad role="alert" {
            strong { (what) } " " (sentence(error)) " " a href={ "#" (anchor) } { "Correct it" }
        }
    }
}

fn sentence(error: &Refusal) -> Markup {
    let field = field_of(error).map(|field| field.name).or(error.field.as_deref());
    html! {
        @if let Some(field) = field { code { (text::visible_line(field)) } ": " }
        (message(error))
    }
}

fn message(error: &Refusal) -> Markup {
    html! { bdi { (text::visible_line(&error.message)) } }
}

/// `POST /job/create`. Offers the images that nodes have.
pub fn create(form: &CreateForm, nodes: &NodeTable) -> Markup {
    let typed = &form.typed;
    let line = |field, typed| labelled(field, form, |is| input(field, typed, is));
    html! {
        h2 #submit { "Submit a job" }
        form.create method="post" action="/job/create" {
            (line(&NAME, &typed.name))
            (labelled(&IMAGE, form, |is| image(&typed.imgid, nodes, is)))
            (labelled(&COMMAND, form, |is| command(&typed.cmdline, is)))
            (line(&CPU, &typed.cpu))
            (line(&MEM, &typed.mem))
            (line(&TIMEOUT, &typed.timeout))
            (line(&PACKAGES, &typed.pkgpath))
            (labelled(&ON_NODE_LOSS, form, |is| on_node_loss(&typed.onnodeloss, is)))
            div.send {
                @if let Some(error) = form.error.as_ref().filter(|error| field_of(error).is_none()) {
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
    described_by: Option<String>,
}

impl Standing {
    fn invalid(&self) -> Option<&'static str> {
        self.wrong.then_some("true")
    }
}

/// A field with its label, what was wrong with it, and its hint.
fn labelled(field: &Field, form: &CreateForm, input: impl FnOnce(&Standing) -> Markup) -> Markup {
    let error = form.error.as_ref().filter(|error| field_of(error).is_some_and(|of| of.name == field.name));
    let (error_id, hint_id) = (format!("{}-error", field.name), format!("{}-hint", field.name));
    let described_by = match (error.is_some(), !field.hint.is_empty()) {
        (true, true) => Some(format!("{error_id} {hint_id}")),
        (true, false) => Some(error_id.clone()),
        (false, true) => Some(hint_id.clone()),
        (false, false) => None,
    };
    html! {
        div class={ "field " (field.name) } {
            label for=(field.name) { (field.label) }
            (input(&Standing { wrong: error.is_some(), described_by }))
            @if let Some(error) = error { p.wrong id=(error_id) { (message(error)) } }
            @if !field.hint.is_empty() { p.hint id=(hint_id) { (field.hint) } }
        }
    }
}

/// Plain text whatever is wanted: a number field would hide what was typed when it is no number.
fn input(field: &Field, typed: &str, is: &Standing) -> Markup {
    html! {
        input id=(field.name) name=(field.name) value=(typed) placeholder=(field.placeholder) required[field.required]
            autocomplete="off" autocapitalize="off" spellcheck="false"
            autofocus[is.wrong] aria-invalid=[is.invalid()] aria-describedby=[is.described_by.as_deref()];
    }
}

fn command(typed: &str, is: &Standing) -> Markup {
    html! {
        textarea id=(COMMAND.name) name=(COMMAND.name) rows="3" placeholder=(COMMAND.placeholder) required
            autocapitalize="off" spellcheck="false"
            autofocus[is.wrong] aria-invalid=[is.invalid()] aria-describedby=[is.described_by.as_deref()] {
            (lines(typed))
        }
    }
}

/// A choice of the images that nodes have; a plain field while none is known.
fn image(typed: &str, nodes: &NodeTable, is: &Standing) -> Markup {
    let images = known_images(nodes);
    // An image that is not there can be typed, but not chosen by not choosing.
    let unknown = !typed.is_empty() && !images.contains_key(typed);
    let typed = if typed.is_empty() { IMAGE.placeholder } else { typed };
    if images.is_empty() {
        return input(&IMAGE, typed, is);
    }
    let of = nodes.nodes.iter().filter(|node| node.resource.is_some()).count();
    html! {
        select id=(IMAGE.name) name=(IMAGE.name)
            autofocus[is.wrong] aria-invalid=[is.invalid()] aria-describedby=[is.described_by.as_deref()] {
            @if unknown { option value=(typed) selected { (text::plain_line(typed)) " (on no known node)" } }
            @for (image, on) in &images {
                option value=(image) selected[*image == typed] {
                    (image) @if *on < of { " (on " (on) " of " (of) " nodes)" }
                }
            }
        }
    }
}

/// A choice of the three; what was typed and is none of them is refused, and chosen no more.
fn on_node_loss(typed: &str, is: &Standing) -> Markup {
    let chosen: OnNodeLoss = typed.parse().unwrap_or_default();
    html! {
        select id=(ON_NODE_LOSS.name) name=(ON_NODE_LOSS.name)
            autofocus[is.wrong] aria-invalid=[is.invalid()] aria-describedby=[is.described_by.as_deref()] {
            @for choice in OnNodeLoss::ALL {
                option value=(choice) selected[choice == chosen] {
                    @match choice {
                        OnNodeLoss::Wait => "wait for it",
                        OnNodeLoss::Fail => "fail",
                        OnNodeLoss::Retry => "try elsewhere",
                    }
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

/// `POST /job/create_json`.
pub fn batch(form: &BatchForm) -> Markup {
    let wrong = form.error.is_some();
    let described_by = if wrong { "json-error json-hint" } else { "json-hint" };
    html! {
        h2 #batch { "Submit a list" }
        form method="post" action="/job/create_json" {
            div.field {
                label for="json" { "A JSON list of jobs" }
                textarea #json name="json" rows="9" placeholder=(BATCH_EXAMPLE) required
                    autocapitalize="off" spellcheck="false"
                    autofocus[wrong] aria-invalid=[wrong.then_some("true")] aria-describedby=(described_by) {
                    (lines(&form.typed))
                }
                @if let Some(error) = &form.error { p.wrong #json-error { (sentence(error)) } }
                p.hint #json-hint {
                    "All or nothing: one bad entry refuses the whole list and is named. "
                    "A number in " code { "cpu" } " is any, a string such as " code { "\"0,1\"" } " pins."
                }
            }
            div.send { button.primary type="submit" { "Submit all" } }
        }
    }
}

/// The content of a textarea. The parser takes a newline right after the tag for its own (HTML, 13.1.2.5): it gets one.
fn lines(typed: &str) -> Markup {
    html! { "\n" (typed) }
}
