//! The node's HTTP: one `match (method, path)` from a request to a call on the task table to an answer.
//!
//! It knows JSON and status codes, and keeps the long polls that wait. It touches no kernel object; what
//! must read below the share is handed on as [`Reply::Output`].

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wire::access::Refused;
use wire::http::{ConnectionId, Method, Request, Response};
use wire::node::{Answer, Created, Events, Refusal, RefusalCode};
use wire::task::TaskRequest;
use wire::{BadInput, EventNumber, TaskId, json};

use crate::output::OutputRequest;
use crate::task::Now;
use crate::task_table::TaskTable;

/// The most tasks one create may list.
const MAX_LIST: usize = 10_000;
/// The longest a poll may wait.
const MAX_WAIT_MS: u64 = 60_000;

/// What is to be done with a request.
#[derive(Debug, PartialEq)]
pub enum Reply {
    /// Answer.
    Now(Response),
    /// Answer when there is news, or then.
    Later {
        /// What the asker has heard of.
        after: EventNumber,
        /// How long it waits at most.
        until: Instant,
    },
    /// Give the connection to a reader.
    Output(OutputRequest),
}

/// Answers one request whose sender may ask.
pub fn answer(request: &Request, table: &mut TaskTable, now: Now) -> Reply {
    let method = match request.method {
        // The framing leaves the body out.
        Method::Head => Method::Get,
        other => other,
    };
    match (method, request.path.as_str()) {
        (Method::Get, "/resource") => {
            Reply::Now(Response::json(200, &table.node().resource(table.free(), table.living())))
        }
        (Method::Post, "/task/create") => Reply::Now(create(&request.body, table)),
        (Method::Post, "/task/kill") => Reply::Now(kill(request, table, now)),
        (Method::Get, "/task/info") => Reply::Now(info(request, table)),
        (Method::Get, "/task/events") => events(request, table, now),
        (Method::Get, "/task/output") if request.method == Method::Get => output(request, table),
        (_, "/resource" | "/task/info" | "/task/events" | "/task/output") => wrong_method(request, "GET"),
        (_, "/task/create" | "/task/kill") => wrong_method(request, "POST"),
        (_, path) => {
            let message = format!(
                "there is no {path}; a node has /resource, /task/create, /task/kill, /task/info, /task/events and \
                 /task/output"
            );
            Reply::Now(refused(Refusal::new(RefusalCode::NotFound, message)))
        }
    }
}

/// `{"code":1,"error":...}` with the status that says the same.
pub fn refused(refusal: Refusal) -> Response {
    let status = refusal.http_status();
    Response::json(status, &Answer::<()>::refused(refusal))
}

/// The answer to one who may not ask.
pub fn turned_away(why: &Refused) -> Response {
    let refusal = Refusal::from(why);
    let challenge = refusal.code == RefusalCode::Unauthorized;
    let response = refused(refusal);
    if challenge { response.with_header("WWW-Authenticate", "Bearer") } else { response }
}

fn wrong_method(request: &Request, allowed: &'static str) -> Reply {
    let message = format!("{} takes {allowed}, not {}", request.path, request.method);
    Reply::Now(refused(Refusal::new(RefusalCode::MethodNotAllowed, message)).with_header("Allow", allowed))
}

fn done<T: Serialize>(data: T) -> Response {
    Response::json(200, &Answer::done(data))
}

fn create(body: &[u8], table: &mut TaskTable) -> Response {
    if body.trim_ascii_start().first() == Some(&b'[') {
        return create_list(body, table);
    }
    let request = json::from_slice::<TaskRequest>(body).map_err(Refusal::from);
    match request.and_then(|request| table.create(request)) {
        Ok(task_id) => done(Created { task_id }),
        // The original's master reads only code and data, and takes any status but 200 for a broken node.
        Err(refusal) if refusal.code == RefusalCode::NoRoom => {
            Response::json(200, &Answer::<Created>::refused(refusal))
        }
        Err(refusal) => refused(refusal),
    }
}

/// A list for a list: each entry has its own answer, and those that do not fit get `no_room`.
fn create_list(body: &[u8], table: &mut TaskTable) -> Response {
    let requests = match read_list(body) {
        Ok(requests) => requests,
        Err(bad) => return refused(bad.into()),
    };
    let answer = |request: Result<TaskRequest, BadInput>| {
        let created = request.map_err(Refusal::from).and_then(|request| table.create(request));
        created.map_or_else(Answer::refused, |task_id| Answer::done(Created { task_id }))
    };
    Response::json(200, &requests.into_iter().map(answer).collect::<Vec<Answer<Created>>>())
}

/// One bad entry spoils only itself; to tell which, the list is read again entry by entry.
fn read_list(body: &[u8]) -> Result<Vec<Result<TaskRequest, BadInput>>, BadInput> {
    if let Ok(requests) = json::from_slice::<Vec<TaskRequest>>(body) {
        check_length(requests.len())?;
        return Ok(requests.into_iter().map(Ok).collect());
    }
    let entries: Vec<serde_json::Value> = json::from_slice(body)?;
    check_length(entries.len())?;
    let read = |entry: &serde_json::Value| {
        json::from_slice(&serde_json::to_vec(entry).map_err(|error| BadInput::new("body", error.to_string()))?)
    };
    Ok(entries.iter().enumerate().map(|(index, entry)| read(entry).map_err(|bad| bad.in_entry(index))).collect())
}

fn check_length(length: usize) -> Result<(), BadInput> {
    if length <= MAX_LIST {
        return Ok(());
    }
    Err(BadInput::new("body", format!("lists {length} tasks; at most {MAX_LIST} are taken at once")))
}

fn kill(request: &Request, table: &mut TaskTable, now: Now) -> Response {
    match named_task(request).map_err(Refusal::from).and_then(|task| table.kill(task, now)) {
        Ok(()) => Response::json(200, &Answer::<()> { code: 0, data: None, error: None }),
        Err(refusal) => refused(refusal),
    }
}

fn info(request: &Request, table: &TaskTable) -> Response {
    let task = match named_task(request) {
        Ok(task) => task,
        Err(bad) => return refused(bad.into()),
    };
    match table.report(task) {
        Some(report) => done(report),
        None => refused(Refusal::new(RefusalCode::NotFound, format!("there is no task {task} on this node"))),
    }
}

/// `?taskId=7`, or `{"taskId":7}` in the body, as the original's master sends it even with a GET.
fn named_task(request: &Request) -> Result<TaskId, BadInput> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        task_id: TaskId,
    }
    match request.query.get("taskId") {
        Some(text) => text.parse(),
        None if request.body.is_empty() => {
            Err(BadInput::new("taskId", "is missing; give ?taskId=N, or {\"taskId\":N} as the body"))
        }
        None => json::from_slice::<Named>(&request.body).map(|named| named.task_id),
    }
}

fn events(request: &Request, table: &mut TaskTable, now: Now) -> Reply {
    let after = request.query.get("after").map_or(Ok(EventNumber(0)), str::parse);
    let wait = request.query.get("wait_ms").map_or(Ok(0), wait_ms);
    match (after, wait) {
        (Ok(after), Ok(wait)) => {
            let after = table.acknowledge(after);
            if wait == 0 || table.last_event() > after {
                Reply::Now(news(table, after))
            } else {
                Reply::Later { after, until: now.instant + Duration::from_millis(wait) }
            }
        }
        (Err(bad), _) | (_, Err(bad)) => Reply::Now(refused(bad.into())),
    }
}

fn wait_ms(text: &str) -> Result<u64, BadInput> {
    let number = text.parse().ok().filter(|ms| *ms <= MAX_WAIT_MS);
    number.ok_or_else(|| BadInput::new("wait_ms", format!("{text:?} is not from 0 to {MAX_WAIT_MS}")))
}

/// Everything that changed after `after`, and what is free now.
fn news(table: &TaskTable, after: EventNumber) -> Response {
    let resource = table.node().resource(table.free(), table.living());
    done(Events { last: table.last_event(), events: table.changes_after(after), resource })
}

/// A task that was forgotten still has its logs, so only a number never given out is refused here.
fn output(request: &Request, table: &TaskTable) -> Reply {
    match OutputRequest::parse(&request.query) {
        Ok(output) if output.task <= table.last_task() => Reply::Output(output),
        Ok(output) => {
            let message = format!("there is no task {} on this node", output.task);
            Reply::Now(refused(Refusal::new(RefusalCode::NotFound, message)))
        }
        Err(bad) => Reply::Now(refused(bad.into())),
    }
}

/// A long poll that waits.
#[derive(Debug)]
struct Waiter {
    connection: ConnectionId,
    after: EventNumber,
    until: Instant,
}

/// The long polls that wait.
#[derive(Debug, Default)]
pub struct LongPolls {
    waiters: Vec<Waiter>,
}

impl LongPolls {
    /// One more.
    pub fn park(&mut self, connection: ConnectionId, after: EventNumber, until: Instant) {
        self.waiters.push(Waiter { connection, after, until });
    }

    /// The asker has gone.
    pub fn drop_client(&mut self, connection: ConnectionId) -> bool {
        let before = self.waiters.len();
        self.waiters.retain(|waiter| waiter.connection != connection);
        self.waiters.len() < before
    }

    /// When the first has waited long enough.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiters.iter().map(|waiter| waiter.until).min()
    }

    /// Answers for those for whom there is news, and those who have waited long enough. Called once a
    /// turn, so that changes of the same turn travel together.
    pub fn take_answers(&mut self, table: &TaskTable, now: Now) -> Vec<(ConnectionId, Response)> {
        let last = table.last_event();
        let due = |waiter: &mut Waiter| waiter.after < last || waiter.until <= now.instant;
        self.waiters.extract_if(.., due).map(|waiter| (waiter.connection, news(table, waiter.after))).collect()
    }
}
