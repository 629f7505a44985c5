//! What each page shows, as plain values. Whoever answers a request fills one in; whoever draws a page only reads it.
//!
//! Views hold text as its users wrote it. Nothing here escapes, cuts or hides anything: that is the templates' part.

use std::collections::BTreeMap;

use jiff::Timestamp;
use wire::node::Refusal;
use wire::{JobId, JobSpec, State};

use crate::job::{Job, Node};

/// `GET /`: both tables and both forms.
#[derive(Debug, Clone)]
pub struct Home {
    /// The newest jobs. Its links lead to `/job/table`.
    pub jobs: JobTable,
    /// The nodes. The form offers the images they have.
    pub nodes: NodeTable,
    /// The form of one job.
    pub create: CreateForm,
    /// The form of a list of jobs.
    pub batch: BatchForm,
}

/// The form of `POST /job/create`, empty, filled in advance, or as it was refused.
#[derive(Debug, Clone, Default)]
pub struct CreateForm {
    /// What its fields hold.
    pub typed: CreateFields,
    /// Why it was refused.
    pub error: Option<Refusal>,
}

/// The fields of `POST /job/create`, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateFields {
    /// The job's name.
    pub name: String,
    /// `0,1` pins, `x2` or `0.5` asks for that much anywhere.
    pub cpu: String,
    /// MiB.
    pub mem: String,
    /// For the image's `/bin/sh -c`.
    pub cmdline: String,
    /// A `;` list of absolute paths on the node.
    pub pkgpath: String,
    /// The image's name; empty: whichever the page offers first.
    pub imgid: String,
    /// Milliseconds; empty or 0: none.
    pub timeout: String,
    /// `wait`, `fail` or `retry`; empty: `wait`.
    pub onnodeloss: String,
}

impl Default for CreateFields {
    /// What an untouched form holds: the smallest useful job, but for its name and command.
    fn default() -> CreateFields {
        let empty = String::new;
        CreateFields {
            name: empty(),
            cpu: "x1".to_owned(),
            mem: "64".to_owned(),
            cmdline: empty(),
            pkgpath: empty(),
            imgid: empty(),
            timeout: empty(),
            onnodeloss: empty(),
        }
    }
}

impl From<&JobSpec> for CreateFields {
    /// The form that submits the same job again.
    fn from(spec: &JobSpec) -> CreateFields {
        CreateFields {
            name: spec.name.clone(),
            cpu: spec.resource.cpu.to_string(),
            mem: spec.resource.mem.to_string(),
            cmdline: spec.command_line.clone(),
            pkgpath: spec.package_path.clone(),
            imgid: spec.image_id.to_string(),
            timeout: if spec.timeout == 0 { String::new() } else { spec.timeout.to_string() },
            onnodeloss: spec.on_node_loss.to_string(),
        }
    }
}

/// The form of `POST /job/create_json`, empty or as it was refused.
#[derive(Debug, Clone, Default)]
pub struct BatchForm {
    /// What its one field, `json`, holds.
    pub typed: String,
    /// Why it was refused. A field such as `[2].imageId` names the entry.
    pub error: Option<Refusal>,
}

/// `GET /job/table`, and the job table of the home page.
#[derive(Debug, Clone)]
pub struct JobTable {
    /// What was asked for.
    pub query: JobQuery,
    /// The jobs of this page, newest first.
    pub jobs: Vec<Job>,
    /// How many of the jobs that match `query.q` are in each state; `None`: not counted, no numbers are shown.
    pub counts: Option<BTreeMap<State, u64>>,
    /// The last job of this page, if there are older ones: the `after` of the next page.
    pub older: Option<JobId>,
    /// The time at which all this was true.
    pub now: Timestamp,
}

/// Which jobs to show: `?status=&q=&after=&limit=&live=1`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobQuery {
    /// Only those in this state.
    pub status: Option<State>,
    /// Only those whose name or command contains this; empty: all.
    pub q: String,
    /// Only those older than this one.
    pub after: Option<JobId>,
    /// At most so many, if the URL said.
    pub limit: Option<u32>,
    /// `live=1`: the page loads itself anew while a job it shows is unfinished. Off by default, for it would take
    /// away what is being typed into the search box.
    pub live: bool,
}

/// `GET /node/table`, and the node table of the home page.
#[derive(Debug, Clone)]
pub struct NodeTable {
    /// All nodes, in the order to show them.
    pub nodes: Vec<Node>,
    /// The time at which all this was true.
    pub now: Timestamp,
}

/// `GET /job/details/<id>`.
#[derive(Debug, Clone)]
pub struct Details {
    /// The job.
    pub job: Job,
    /// Why it is not running yet, while it waits: the scheduler's sentence; or that its node is not heard of.
    pub waits: Option<String>,
    /// What holds it up on its node: the node's sentence.
    pub stuck: Option<String>,
    /// Whether somebody has asked for its end.
    pub kill_asked: bool,
    /// What the monitor did.
    pub monitor: LogTail,
    /// What the command wrote to its standard output.
    pub stdout: LogTail,
    /// What it wrote to its standard error.
    pub stderr: LogTail,
    /// The time at which all this was true.
    pub now: Timestamp,
    /// Whether the page loads itself anew while the job is unfinished. On unless the URL says `live=0`.
    pub live: bool,
}

/// The end of a log, as far as it can be shown. Bytes are raw: the page makes them visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTail {
    /// The job has no task yet.
    NotYet,
    /// It is there and cannot be read now; the sentence says why.
    Unavailable(String),
    /// The last bytes of it; a few dozen KiB are enough.
    Tail {
        /// The bytes.
        bytes: Vec<u8>,
        /// How many there are in all; more than `bytes.len()` when these are only the end.
        total_bytes: u64,
    },
}

/// `GET /job/kill/<id>` from a browser: asks before it kills.
#[derive(Debug, Clone)]
pub struct ConfirmKill {
    /// The job.
    pub job: Job,
    /// Where to go afterwards.
    pub back: LocalPath,
    /// The time at which all this was true.
    pub now: Timestamp,
}

/// `GET /login`.
#[derive(Debug, Clone, Default)]
pub struct Login {
    /// Where to go afterwards; the form's hidden field `next`.
    pub next: LocalPath,
    /// Why the token was not taken.
    pub error: Option<String>,
}

/// What a browser gets instead of the page it asked for.
#[derive(Debug, Clone)]
pub struct ErrorPage {
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, and which field.
    pub refusal: Refusal,
    /// Where to go from here.
    pub back: LocalPath,
}

/// A path on this very server, to be given to a browser as a link or a `Location`. It can name no other host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPath(String);

impl LocalPath {
    /// Takes the `back` of a form or the `next` of a login. Whatever is not surely a path of this server becomes `/`:
    /// browsers read `//host`, `/\host` and `/<tab>/host` as other hosts (WHATWG URL, 4.4).
    pub fn or_home(text: &str) -> LocalPath {
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        let local = text.starts_with('/') && !text.starts_with("//") && printable && text.len() <= 2048;
        if local { LocalPath(text.to_owned()) } else { LocalPath::default() }
    }

    /// The path, printable ASCII.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LocalPath {
    fn default() -> LocalPath {
        LocalPath("/".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_back_never_leads_to_another_host() {
        let long = format!("/{}", "x".repeat(2048));
        for bad in
            ["", "x", "//evil", "/\\evil", "/\t/evil", "https://evil", "javascript:alert(1)", "/a\r\nX: y", "/ä", &long]
        {
            assert_eq!(LocalPath::or_home(bad).as_str(), "/", "{bad:?} was taken");
        }
        for good in ["/", "/job/table?status=Running&q=a%20b", "/job/details/7#stdout"] {
            assert_eq!(LocalPath::or_home(good).as_str(), good);
        }
    }
}
