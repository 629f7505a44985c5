//! The routes: every request of a user, in one `match (method, path)`.
//!
//! Runs on tiny_http's workers behind the gate, each with its own read-only connection to the database. What changes
//! anything becomes a message to the owner of the jobs, and the worker waits for the reply, which comes after the commit.
//! No worker waits for a reader: what is long is handed to threads of its own.
//! Nothing here writes the database, and nothing here is remembered from one request to the next.

mod answer;
mod asked;
mod forms;
mod output;
mod refused;
mod streams;
mod text;
mod wants;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use jiff::Timestamp;
use serde::Serialize;
use wire::access::{Access, forget_cookie};
use wire::http::{Method, Response};
use wire::node::{Refusal, RefusalCode};
use wire::{BadInput, JobId, JobSpec, Log, State};

use answer::Answer;
use asked::{Asked, BodyKind};
use refused::Refused;
pub use streams::{LANES_HELD, Streams};
use wants::Wants;

use crate::job::{Job, Node};
use crate::jobs::{Holds, Message, RefusedJob};
use crate::output::{LogError, LogOf, Logs, Piece};
use crate::pages::view::{
    BatchForm, ConfirmKill, CreateFields, CreateForm, Details, Home, JobQuery, JobTable, LocalPath, LogTail, Login,
    NodeTable,
};
use crate::pages::{self};
use crate::store::{self, JobPage, Kept, MAX_PAGE, Reader};
use crate::watch::Watch;

/// How many jobs a page lists if nobody says.
const DEFAULT_PAGE: u32 = 100;
/// How much of the end of each log the details show.
const TAIL_BYTES: u64 = 64 << 10;

/// What all workers share.
pub struct Shared {
    /// Who may call.
    pub access: Access,
    /// Whether this is the master still.
    pub watch: Watch,
    /// The owner of the jobs.
    pub owner: Sender<Message>,
    /// Where logs are read.
    pub logs: Logs,
    /// Who sends long answers.
    pub streams: Streams,
}

/// One worker.
pub struct Api {
    shared: Arc<Shared>,
    reader: Reader,
}

impl Api {
    /// A worker with its own view of the database.
    pub fn new(shared: Arc<Shared>, reader: Reader) -> Api {
        Api { shared, reader }
    }

    /// Answers requests until tiny_http can give no more, and says why.
    pub fn serve(&self, server: &tiny_http::Server) -> io::Error {
        loop {
            match server.recv() {
                Ok(request) => self.serve_one(request),
                Err(error) => return error,
            }
        }
    }

    fn serve_one(&self, mut request: tiny_http::Request) {
        let sent = match Asked::read(&mut request) {
            Ok(asked) => {
                let answer = self.answer(&asked).unwrap_or_else(|refused| refused.answer(asked.wants).into());
                self.send(request, &asked, answer)
            }
            Err(refused) => answer::send(request, false, refused.answer(Wants::Json).into()),
        };
        if let Err(error) = sent {
            log::debug!("an answer could not be sent: {error}");
        }
    }

    fn send(&self, request: tiny_http::Request, asked: &Asked, answer: Answer) -> io::Result<()> {
        if answer.is_long() && !asked.head_only {
            return self.shared.streams.send(request, asked.wants, answer);
        }
        answer::send(request, asked.head_only, answer)
    }

    /// Who may not call hears why, or where to log in; all others are answered.
    fn answer(&self, asked: &Asked) -> Result<Answer, Refused> {
        let segments = asked.segments();
        let refusal = |refused: wire::access::Refused| Refused::from(Refusal::from(&refused));
        self.shared.access.check_site(asked.method, &asked.headers).map_err(refusal)?;
        let open = matches!(segments.as_slice(), ["login" | "style.css" | "icon.svg"]);
        match self.shared.access.check_token(&asked.headers) {
            Err(_) if !open && asked.wants == Wants::Html => Ok(login_page(401, asked, None).into()),
            Err(refused) if !open => Err(refusal(refused)),
            Ok(()) | Err(_) if !open && !self.shared.watch.is_fresh() => Err(Refused::cut_off()),
            Ok(()) | Err(_) => self.route(asked, &segments),
        }
    }

    fn route(&self, asked: &Asked, segments: &[&str]) -> Result<Answer, Refused> {
        use Method::{Get, Head, Post};
        match (asked.method, segments) {
            (Get, []) => self.home(asked),
            (Post, ["job", "create"]) => self.create(asked),
            (Post, ["job", "create_json"]) => self.create_json(asked),
            (Post, ["job", "kill"]) => self.kill_named_in_body(asked),
            (Post, ["job", "kill", id]) => self.kill(asked, id.parse()?),
            // A HEAD asks what a GET would say, which is no reason to do it.
            (Get, ["job", "kill", _]) if asked.head_only => Err(Refused::method("GET, POST")),
            (Get, ["job", "kill", id]) => self.kill_or_ask(asked, id.parse()?),
            (Get, ["job", "details", id]) => self.details(asked, id.parse()?),
            (Get, ["job", "output", id, log]) => self.output(asked, id.parse()?, log),
            (Get, ["job", "table"]) => self.job_table(asked),
            (Get, ["node", "table"]) => self.node_table(asked),
            (Get, ["login"]) => Ok(login_page(200, asked, None).into()),
            (Post, ["login"]) => Ok(self.login(asked)),
            (Post, ["logout"]) => Ok(go_to("/").with_header("Set-Cookie", forget_cookie()).into()),
            (Get, ["style.css"]) => Ok(lasting("text/css; charset=utf-8", pages::STYLE)),
            (Get, ["icon.svg"]) => Ok(lasting("image/svg+xml", pages::ICON)),
            (Get | Head | Post, _) => Err(no_such_path(asked, segments)),
        }
    }

    // What is read.

    fn home(&self, asked: &Asked) -> Result<Answer, Refused> {
        let create = match asked.query.get("again") {
            Some(id) => CreateForm { typed: self.typed_before(id.parse()?)?, error: None },
            None => CreateForm::default(),
        };
        self.home_with(200, asked, create, BatchForm::default())
    }

    /// The form's fields for a job like this one.
    fn typed_before(&self, id: JobId) -> Result<CreateFields, Refused> {
        Ok(CreateFields::from(&self.find(id)?.job.spec))
    }

    fn home_with(&self, status: u16, asked: &Asked, create: CreateForm, batch: BatchForm) -> Result<Answer, Refused> {
        let query = JobQuery::default();
        let (page, nodes) = (self.page(&query)?, self.nodes()?);
        #[derive(Serialize)]
        struct Both<'a> {
            jobs: &'a [Job],
            nodes: &'a [Node],
        }
        let response = match asked.wants {
            Wants::Json => Response::json(status, &Both { jobs: &page.jobs, nodes: &nodes }),
            Wants::Text => {
                Response::text(status, format!("{}\n{}", text::job_table(&page.jobs), text::node_table(&nodes)))
            }
            Wants::Html => {
                let now = Timestamp::now();
                let jobs = self.job_table_view(query, page, now)?;
                let home = Home { jobs, nodes: NodeTable { nodes, now }, create, batch };
                Response::html(status, pages::home(&home).into_string())
            }
        };
        Ok(response.into())
    }

    fn job_table(&self, asked: &Asked) -> Result<Answer, Refused> {
        let query = job_query(asked)?;
        let page = self.page(&query)?;
        let next = page.next.map(|id| format!("<{}>; rel=\"next\"", pages::job_table_link(&query.from(Some(id)))));
        let response = match asked.wants {
            Wants::Json => Response::json(200, &page.jobs),
            Wants::Text => Response::text(200, text::job_table(&page.jobs)),
            Wants::Html => {
                let view = self.job_table_view(query, page, Timestamp::now())?;
                Response::html(200, pages::job_table(&view).into_string())
            }
        };
        Ok(match next {
            Some(next) => response.with_header("Link", next),
            None => response,
        }
        .into())
    }

    fn page(&self, query: &JobQuery) -> Result<JobPage, Refused> {
        let limit = query.limit.unwrap_or(DEFAULT_PAGE);
        let query = store::JobQuery { status: query.status, text: query.q.clone(), after: query.after, limit };
        Ok(self.reader.page(&query)?)
    }

    fn job_table_view(&self, query: JobQuery, page: JobPage, now: Timestamp) -> Result<JobTable, Refused> {
        // Of a search there are no counts without walking all jobs.
        let counts = if query.q.is_empty() { Some(self.reader.counts()?.into_iter().collect()) } else { None };
        Ok(JobTable { query, jobs: page.jobs, counts, older: page.next, now })
    }

    fn node_table(&self, asked: &Asked) -> Result<Answer, Refused> {
        let nodes = self.nodes()?;
        let response = match asked.wants {
            Wants::Json => Response::json(200, &nodes),
            Wants::Text => Response::text(200, text::node_table(&nodes)),
            Wants::Html => {
                let view = NodeTable { nodes, now: Timestamp::now() };
                Response::html(200, pages::node_table(&view).into_string())
            }
        };
        Ok(response.into())
    }

    fn details(&self, asked: &Asked, id: JobId) -> Result<Answer, Refused> {
        let Kept { job, kill_asked } = self.find(id)?;
        let holds = match job.status {
            State::Pending | State::Assigned | State::Running => self.ask(|reply| Message::Why { job: id, reply })?,
            State::Finished | State::Timeout | State::Failed | State::Killed => Holds::default(),
        };
        // A page without its logs would look as if there were none.
        let with_logs = asked.wants == Wants::Html || asked.query.get("logs") != Some("0");
        let tails = if with_logs { self.tails(&job) } else { None };
        let response = match asked.wants {
            Wants::Json => {
                let kill_asked = kill_asked && !job.status.is_final();
                let (why, stuck) = (holds.waits.as_deref(), holds.stuck.as_deref());
                let logs = with_logs.then(|| JsonLogs::new(&job, tails.as_ref()));
                Response::json(200, &JsonDetails { job: &job, kill_asked, why, stuck, logs })
            }
            Wants::Text => Response::text(200, text::job(&job, kill_asked, &holds) + &text_logs(tails.as_ref())),
            Wants::Html => {
                let [monitor, stdout, stderr] = match tails {
                    Some(tails) => tails.map(|tail| shown(&job, tail)),
                    None => [LogTail::NotYet, LogTail::NotYet, LogTail::NotYet],
                };
                let live = asked.query.get("live") != Some("0");
                let Holds { waits, stuck } = holds;
                let view =
                    Details { job, waits, stuck, kill_asked, monitor, stdout, stderr, now: Timestamp::now(), live };
                Response::html(200, pages::details(&view).into_string())
            }
        };
        Ok(response.into())
    }

    /// The ends of the three logs, in the order of [`LOGS`]; `None`: there is no task that could have written any.
    fn tails(&self, job: &Job) -> Option<[Result<Piece, LogError>; 3]> {
        let placed = job.placed?;
        let task = placed.task?;
        let logs = LOGS.map(|log| LogOf { node: placed.node, task, log });
        Some(self.shared.logs.tails(logs, TAIL_BYTES))
    }

    fn find(&self, id: JobId) -> Result<Kept, Refused> {
        self.reader.job(id)?.ok_or_else(|| Refused::no_job(id))
    }

    fn nodes(&self) -> Result<Vec<Node>, Refused> {
        self.ask(|reply| Message::Nodes { reply })
    }

    /// Asks the owner. A reply that does not come means that nothing was changed.
    fn ask<T>(&self, message: impl FnOnce(Sender<T>) -> Message) -> Result<T, Refused> {
        let (reply, answer) = channel();
        let broken = || Refused::internal("it could not be written down and was not done; the master's log says why");
        self.shared.owner.send(message(reply)).map_err(|_| broken())?;
        answer.recv().map_err(|_| broken())
    }

    // What is changed.

    fn create(&self, asked: &Asked) -> Result<Answer, Refused> {
        match asked.body_kind()? {
            BodyKind::Json => {
                let spec = forms::job_of_json(&asked.body)?;
                let jobs = self.submit(vec![spec])?.map_err(|refused| refused.bad)?;
                Ok(created_one(asked, jobs).into())
            }
            BodyKind::Form => self.create_of_form(asked),
        }
    }

    fn create_of_form(&self, asked: &Asked) -> Result<Answer, Refused> {
        let pairs = forms::pairs(&asked.body);
        let refused = match forms::job_of_form(&pairs) {
            Ok(spec) => match self.submit(vec![spec])? {
                Ok(jobs) => return Ok(created_one(asked, jobs).into()),
                Err(refused) => forms::as_the_form_calls_it(refused.bad),
            },
            Err(bad) => bad,
        };
        self.refuse_form(asked, refused, |error| {
            (CreateForm { typed: forms::typed(&pairs), error: Some(error) }, BatchForm::default())
        })
    }

    fn create_json(&self, asked: &Asked) -> Result<Answer, Refused> {
        let in_list = |refused: RefusedJob| refused.bad.in_entry(refused.index);
        match asked.body_kind()? {
            BodyKind::Json => {
                let jobs = self.submit(forms::jobs_of_json(&asked.body)?)?.map_err(in_list)?;
                Ok(created_list(asked, &jobs).into())
            }
            BodyKind::Form => {
                let pairs = forms::pairs(&asked.body);
                let refused = match forms::jobs_of_form(&pairs) {
                    Ok(specs) => match self.submit(specs)? {
                        Ok(jobs) => return Ok(created_list(asked, &jobs).into()),
                        Err(refused) => in_list(refused),
                    },
                    Err(bad) => bad,
                };
                self.refuse_form(asked, refused, |error| {
                    let typed = pairs.get("json").cloned().unwrap_or_default();
                    (CreateForm::default(), BatchForm { typed, error: Some(error) })
                })
            }
        }
    }

    fn submit(&self, specs: Vec<JobSpec>) -> Result<Result<Vec<Job>, RefusedJob>, Refused> {
        self.ask(|reply| Message::Submit { specs, reply })
    }

    /// A browser gets its form back as it was typed, with the error at its field.
    fn refuse_form(
        &self,
        asked: &Asked,
        bad: BadInput,
        forms: impl FnOnce(Refusal) -> (CreateForm, BatchForm),
    ) -> Result<Answer, Refused> {
        if asked.wants != Wants::Html {
            return Err(bad.into());
        }
        let (create, batch) = forms(bad.into());
        self.home_with(400, asked, create, batch)
    }

    fn kill_named_in_body(&self, asked: &Asked) -> Result<Answer, Refused> {
        let id = match asked.body_kind()? {
            BodyKind::Json => forms::job_id_of_json(&asked.body)?,
            BodyKind::Form => forms::job_id_of_form(&forms::pairs(&asked.body))?,
        };
        self.kill(asked, id)
    }

    fn kill(&self, asked: &Asked, id: JobId) -> Result<Answer, Refused> {
        let job = self.ask(|reply| Message::Kill { job: id, reply })?.ok_or_else(|| Refused::no_job(id))?;
        let response = match asked.wants {
            Wants::Json => Response::json(200, &job),
            Wants::Text => Response::text(200, text::job(&job, true, &Holds::default())),
            Wants::Html => go_to(way_back(asked, id).as_str()),
        };
        Ok(response.into())
    }

    /// The original killed by GET. Kept for curl; whatever may come from a browser is asked first.
    fn kill_or_ask(&self, asked: &Asked, id: JobId) -> Result<Answer, Refused> {
        if !asked.is_a_browsers() {
            return self.kill(asked, id);
        }
        let back = LocalPath::or_home(asked.query.get("back").unwrap_or(&format!("/job/details/{id}")));
        let view = ConfirmKill { job: self.find(id)?.job, back, now: Timestamp::now() };
        Ok(Response::html(200, pages::confirm_kill(&view).into_string()).into())
    }

    fn login(&self, asked: &Asked) -> Answer {
        let pairs = forms::pairs(&asked.body);
        let next = LocalPath::or_home(pairs.get("next").map_or("/", String::as_str));
        match self.shared.access.token() {
            None => go_to(next.as_str()).into(),
            Some(token) if pairs.get("token").is_some_and(|said| token.matches(said.trim())) => {
                go_to(next.as_str()).with_header("Set-Cookie", token.set_cookie()).into()
            }
            Some(_) if asked.wants == Wants::Html => {
                login_page(401, asked, Some("That is not the token.".to_owned())).into()
            }
            Some(_) => {
                let refusal = Refusal::from(BadInput::new("token", "is not the token"));
                Response::refusal_as(401, &Refusal { code: RefusalCode::Unauthorized, ..refusal }).into()
            }
        }
    }
}

/// The logs, in the order the details have them.
const LOGS: [Log; 3] = [Log::Monitor, Log::Stdout, Log::Stderr];

/// `GET /job/details/<id>` as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonDetails<'a> {
    job: &'a Job,
    /// Somebody asked for its end, and it has not ended yet.
    kill_asked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stuck: Option<&'a str>,
    /// Not with `logs=0`.
    #[serde(flatten)]
    logs: Option<JsonLogs>,
}

/// The ends of a job's logs.
#[derive(Serialize)]
struct JsonLogs {
    monitor_out: String,
    task_stdout: String,
    task_stderr: String,
    /// Which of the three are only the end of their log.
    truncated: Vec<&'static str>,
    /// Why one of the three could not be read.
    unavailable: BTreeMap<&'static str, String>,
}

impl JsonLogs {
    fn new(job: &Job, tails: Option<&[Result<Piece, LogError>; 3]>) -> JsonLogs {
        let (mut truncated, mut unavailable) = (Vec::new(), BTreeMap::new());
        let mut texts = [String::new(), String::new(), String::new()];
        for ((name, tail), text) in
            LOGS.map(Log::file_name).into_iter().zip(tails.into_iter().flatten()).zip(&mut texts)
        {
            match tail {
                Ok(piece) => {
                    *text = String::from_utf8_lossy(&piece.bytes).into_owned();
                    truncated.extend((piece.total > piece.bytes.len() as u64).then_some(name));
                }
                Err(LogError::Missing) if !job.status.is_final() => {}
                Err(error) => drop(unavailable.insert(name, error.to_string())),
            }
        }
        let [monitor_out, task_stdout, task_stderr] = texts;
        JsonLogs { monitor_out, task_stdout, task_stderr, truncated, unavailable }
    }
}

fn text_logs(tails: Option<&[Result<Piece, LogError>; 3]>) -> String {
    LOGS.into_iter().zip(tails.into_iter().flatten()).map(|(log, tail)| text::log(log, tail)).collect()
}

/// A log's end on a page. That a task which still runs has not written yet is no fault.
fn shown(job: &Job, tail: Result<Piece, LogError>) -> LogTail {
    match tail {
        Ok(Piece { bytes, total }) => LogTail::Tail { bytes, total_bytes: total },
        Err(LogError::Missing) if !job.status.is_final() => LogTail::Tail { bytes: Vec::new(), total_bytes: 0 },
        Err(error) => LogTail::Unavailable(error.to_string()),
    }
}

fn job_query(asked: &Asked) -> Result<JobQuery, BadInput> {
    let said = |name: &str| asked.query.get(name).filter(|value| !value.is_empty());
    let limit = match number(asked, "limit")? {
        Some(limit) if (1..=u64::from(MAX_PAGE)).contains(&limit) => u32::try_from(limit).ok(),
        Some(limit) => return Err(BadInput::new("limit", format!("{limit} is not from 1 to {MAX_PAGE}"))),
        None => None,
    };
    Ok(JobQuery {
        status: said("status").map(str::parse).transpose()?,
        q: said("q").unwrap_or_default().to_owned(),
        after: number(asked, "after")?.map(JobId),
        limit,
        live: asked.query.get("live") == Some("1"),
    })
}

/// A number of the query; nothing is as good as none.
fn number(asked: &Asked, name: &str) -> Result<Option<u64>, BadInput> {
    let Some(text) = asked.query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.map(Some).ok_or_else(|| BadInput::new(name, format!("{text:?} is not a whole number in range")))
}

fn created_one(asked: &Asked, jobs: Vec<Job>) -> Response {
    let Some(job) = jobs.into_iter().next() else {
        return Refused::internal("the job was taken and is not known").answer(asked.wants);
    };
    let at = format!("/job/details/{}", job.id);
    match asked.wants {
        Wants::Json => Response::json(201, &job).with_header("Location", at),
        Wants::Text => Response::text(201, text::job(&job, false, &Holds::default())).with_header("Location", at),
        Wants::Html => go_to("/"),
    }
}

fn created_list(asked: &Asked, jobs: &[Job]) -> Response {
    match asked.wants {
        Wants::Json => Response::json(201, &jobs),
        Wants::Text => Response::text(201, text::job_table(jobs)),
        Wants::Html => go_to("/"),
    }
}

/// After a POST the browser goes on with a GET (RFC 9110, section 15.4.4).
fn go_to(path: &str) -> Response {
    Response::empty(303).with_header("Location", path)
}

/// Where a browser goes after a kill: where its form says, else to the job.
fn way_back(asked: &Asked, id: JobId) -> LocalPath {
    let details = format!("/job/details/{id}");
    LocalPath::or_home(forms::pairs(&asked.body).get("back").unwrap_or(&details))
}

fn login_page(status: u16, asked: &Asked, error: Option<String>) -> Response {
    let next = match asked.segments().as_slice() {
        ["login"] => forms::pairs(&asked.body).get("next").cloned().unwrap_or_default(),
        _ if asked.method == Method::Get => asked.target.clone(),
        _ => String::new(),
    };
    let view = Login { next: LocalPath::or_home(&next), error };
    let page = Response::html(status, pages::login(&view).into_string());
    if status == 401 { page.with_header("WWW-Authenticate", "Bearer realm=\"berth\"") } else { page }
}

/// What changes its address when it changes may be kept.
fn lasting(content_type: &str, text: &'static str) -> Answer {
    let response = Response::bytes(200, content_type, text);
    response.with_header("Cache-Control", "public, max-age=31536000, immutable").into()
}

/// 405 for a path that takes another method, else 404.
fn no_such_path(asked: &Asked, segments: &[&str]) -> Refused {
    match segments {
        [] | ["job", "table" | "details" | "output", ..] | ["node", "table"] | ["style.css" | "icon.svg"]
            if asked.method == Method::Post =>
        {
            Refused::method("GET, HEAD")
        }
        ["job", "create" | "create_json" | "kill"] | ["logout"] => Refused::method("POST"),
        _ => Refusal::new(RefusalCode::NotFound, format!("there is nothing at {}", asked.path)).into(),
    }
}

#[cfg(test)]
mod tests;
