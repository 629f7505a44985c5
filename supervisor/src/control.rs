//! The node's HTTP: one `match (method, path)` from a request to a call on the task table to an answer.
//!
//! It knows JSON and status codes, and keeps the long polls that wait. It touches no kernel object; what
//! must read below the share is handed on as [`Reply::Output`].

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wire::access::{Refused, comes_from_browser};
use wire::http::{ConnectionId, Method, Request, Response};
use wire::node::{Answer, Created, Events, Refusal, RefusalCode};
use wire::task::TaskRequest;
use wire::term::{self, Speaker};
use wire::{BadInput, BootId, EventNumber, InstanceId, JobId, Stamp, TaskId, json};

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
        /// Who asks.
        master: Option<InstanceId>,
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
    if let Err(refusal) = listen(request, table) {
        return Reply::Now(refused(refusal));
    }
    match (method, request.path.as_str()) {
        (Method::Get, "/resource") => Reply::Now(Response::json(200, &table.resource(now))),
        (Method::Post, "/task/create") => Reply::Now(create(request, table, now)),
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

/// Whether who speaks is listened to. Whoever does not say so is: curl, and the original's master.
fn listen(request: &Request, table: &mut TaskTable) -> Result<(), Refusal> {
    match request.headers.get(term::HEADER) {
        Some(speaker) => table.listen_to(&speaker.parse::<Speaker>()?),
        None => Ok(()),
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

fn create(request: &Request, table: &mut TaskTable, now: Now) -> Response {
    let boot = request.query.get("boot").map(|boot| BootId(boot.to_owned()));
    let mut create = |task: Result<TaskRequest, BadInput>| {
        let task = task?;
        table.check_boot(boot.as_ref())?;
        table.create(task, now)
    };
    if request.body.trim_ascii_start().first() == Some(&b'[') {
        return create_list(&request.body, create);
    }
    match create(json::from_slice::<TaskRequest>(&request.body)) {
        Ok(task_id) => done(Created { task_id }),
        // The original's master reads only code and data, and takes any status but 200 for a broken node.
        Err(refusal) if refusal.code == RefusalCode::NoRoom => {
            Response::json(200, &Answer::<Created>::refused(refusal))
        }
        Err(refusal) => refused(refusal),
    }
}

/// A list for a list: each entry has its own answer, and those that do not fit get `no_room`.
fn create_list(
    body: &[u8],
    mut create: impl FnMut(Result<TaskRequest, BadInput>) -> Result<TaskId, Refusal>,
) -> Response {
    let requests = match read_list(body) {
        Ok(requests) => requests,
        Err(bad) => return refused(bad.into()),
    };
    let answer = |request: Result<TaskRequest, BadInput>| {
        create(request).map_or_else(Answer::refused, |task_id| Answer::done(Created { task_id }))
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
    Ok(entries.iter().map(read).collect())
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
    let master = request.query.get("master").map(|name| InstanceId(name.to_owned()));
    let jobs = request.query.get("jobs").map_or(Ok(JobId(0)), jobs);
    // Two nodes may have swapped their addresses: what is meant for another counts from that one's events and stamps.
    let astray = request.query.get("instance").is_some_and(|name| name != table.node().instance.0);
    match (after, wait, jobs) {
        (Ok(mut after), Ok(wait), Ok(jobs)) => {
            if astray {
                after = EventNumber(0);
            }
            // A page of another site can make a browser ask, but not make us forget, nor renew a lease.
            if !comes_from_browser(&request.headers) {
                if let Some(master) = &master {
                    table.hear_of(master, jobs);
                }
                if !astray {
                    after = table.acknowledge(after, master.as_ref());
                    if let Err(bad) = renew(request, master.as_ref(), table, now) {
                        return Reply::Now(refused(bad.into()));
                    }
                }
            }
            if wait == 0 || astray || table.last_event() > after {
                Reply::Now(news(table, after, master.as_ref(), now))
            } else {
                Reply::Later { after, until: now.instant + Duration::from_millis(wait), master }
            }
        }
        (Err(bad), _, _) | (_, Err(bad), _) | (_, _, Err(bad)) => Reply::Now(refused(bad.into())),
    }
}

/// The stamp that a master gives back: the newest it has heard.
fn renew(request: &Request, master: Option<&InstanceId>, table: &mut TaskTable, now: Now) -> Result<(), BadInput> {
    match (master, request.query.get("heard")) {
        (Some(master), Some(stamp)) => table.renew(master, &Stamp(stamp.to_owned()), now),
        (None, _) | (_, None) => Ok(()),
    }
}

fn jobs(text: &str) -> Result<JobId, BadInput> {
    text.parse().map_err(|bad: BadInput| BadInput::new("jobs", bad.message))
}

fn wait_ms(text: &str) -> Result<u64, BadInput> {
    let number = text.parse().ok().filter(|ms| *ms <= MAX_WAIT_MS);
    number.ok_or_else(|| BadInput::new("wait_ms", format!("{text:?} is not from 0 to {MAX_WAIT_MS}")))
}

/// Everything that changed after `after`, what is free now, and what is remembered of the master that asks.
fn news(table: &TaskTable, after: EventNumber, master: Option<&InstanceId>, now: Now) -> Response {
    let remembered = master.and_then(|master| table.remembered(master, after == EventNumber(0)));
    let (last, events) = (table.last_event(), table.changes_after(after));
    done(Events { last, events, resource: table.resource(now), remembered })
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
    master: Option<InstanceId>,
}

/// The long polls that wait.
#[derive(Debug, Default)]
pub struct LongPolls {
    waiters: Vec<Waiter>,
}

impl LongPolls {
    /// One more.
    pub fn park(&mut self, connection: ConnectionId, after: EventNumber, until: Instant, master: Option<InstanceId>) {
        self.waiters.push(Waiter { connection, after, until, master });
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
    /// turn, so that changes of the same turn travel together. Each is made when it is taken: all at once would be more
    /// than the server lets wait for its readers.
    pub fn take_answers(&mut self, table: &TaskTable, now: Now) -> impl Iterator<Item = (ConnectionId, Response)> {
        let last = table.last_event();
        let due = move |waiter: &mut Waiter| waiter.after < last || waiter.until <= now.instant;
        let answer = move |waiter: Waiter| (waiter.connection, news(table, waiter.after, waiter.master.as_ref(), now));
        self.waiters.extract_if(.., due).map(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use super::*;
    use crate::event_loop::{self, EventLoop};
    use crate::output::Start;
    use crate::task::{Event, Init};
    use crate::task_table::tests::Fixture;
    use wire::Log;
    use wire::http::{Headers, Query};

    const JOB: &str =
        r#"{"name":"a","resource":{"cpu":1,"mem":400},"commandLine":"true","imageId":"busybox","status":"Pending"}"#;

    fn ask(it: &mut Fixture, method: Method, target: &str, body: &str) -> Reply {
        ask_with(it, method, target, body, Headers::new())
    }

    fn ask_with(it: &mut Fixture, method: Method, target: &str, body: &str, headers: Headers) -> Reply {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            method,
            path: path.to_owned(),
            query: Query::parse(query),
            raw_query: None,
            headers,
            body: body.as_bytes().to_vec(),
            peer: "127.0.0.1:1".parse().unwrap(),
        };
        answer(&request, &mut it.table, Now::read())
    }

    fn get(it: &mut Fixture, target: &str) -> (u16, serde_json::Value) {
        said(ask(it, Method::Get, target, ""))
    }

    fn post(it: &mut Fixture, target: &str, body: &str) -> (u16, serde_json::Value) {
        said(ask(it, Method::Post, target, body))
    }

    fn said(reply: Reply) -> (u16, serde_json::Value) {
        match reply {
            Reply::Now(response) => (response.status, serde_json::from_slice(&response.body).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn code_and_field((status, body): (u16, serde_json::Value)) -> (u16, String, String) {
        assert_eq!(body["code"], 1);
        let word = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
        (status, word("code"), word("field"))
    }

    #[test]
    fn create_answers_the_task_id_in_the_originals_envelope() {
        let mut it = Fixture::new("control-create");
        let (status, body) = post(&mut it, "/task/create", JOB);
        assert_eq!((status, body.to_string().as_str()), (200, r#"{"code":0,"data":{"taskId":1}}"#));
    }

    #[test]
    fn what_does_not_fit_is_200_with_code_1_and_what_is_wrong_is_400_with_the_field() {
        let mut it = Fixture::new("control-refusals");
        let mut create = |body: &str| code_and_field(post(&mut it, "/task/create", body));
        let spoiled = |from: &str, to: &str| JOB.replace(from, to);
        let bad = |field: &str| (400, "bad_input".to_owned(), field.to_owned());
        let impossible = |field: &str| (400, "impossible".to_owned(), field.to_owned());
        assert_eq!(create("no json"), bad("body"));
        assert_eq!(create(&spoiled("\"mem\":400", "\"mem\":-1")), bad("resource.mem"));
        assert_eq!(create(&spoiled("\"true\"", "\"\"")), bad("commandLine"));
        assert_eq!(create(&spoiled("busybox", "../etc")), bad("imageId"));
        assert_eq!(create(&spoiled("busybox", "nosuch")), impossible("imageId"));
        assert_eq!(create(&spoiled("\"mem\":400", "\"mem\":4000")), impossible("resource.mem"));
        assert_eq!(create(&spoiled("\"cpu\":1", "\"cpu\":\"7\"")), impossible("resource.cpu"));
        post(&mut it, "/task/create", JOB);
        post(&mut it, "/task/create", JOB);
        let full = code_and_field(post(&mut it, "/task/create", JOB));
        assert_eq!(full, (200, "no_room".to_owned(), String::new()));
    }

    #[test]
    fn a_list_is_answered_by_a_list_and_a_bad_entry_spoils_only_itself() {
        let mut it = Fixture::new("control-list");
        let (status, body) = post(&mut it, "/task/create", &format!("[{JOB},{{}},{JOB},{JOB}]"));
        let codes: Vec<_> = body.as_array().unwrap().iter().map(|entry| entry["code"].as_u64().unwrap()).collect();
        assert_eq!((status, codes), (200, vec![0, 1, 0, 1]));
        assert_eq!(body[1]["error"]["field"], "resource");
        assert_eq!(body[3]["error"]["code"], "no_room");
        let many = format!("[{}]", vec!["1"; MAX_LIST + 1].join(","));
        assert_eq!(code_and_field(post(&mut it, "/task/create", &many)).0, 400);
    }

    #[test]
    fn info_and_kill_take_the_id_from_query_or_body() {
        let mut it = Fixture::new("control-info");
        post(&mut it, "/task/create", JOB);
        let (_, by_query) = get(&mut it, "/task/info?taskId=1");
        let (_, by_body) = said(ask(&mut it, Method::Get, "/task/info", r#"{"taskId":1}"#));
        assert_eq!(by_query, by_body);
        assert_eq!(by_query["data"]["containerId"], "t1-cont");
        assert_eq!(by_query["data"]["status"], "Pending[A]");
        let (status, body) = post(&mut it, "/task/kill", r#"{"taskId":1}"#);
        assert_eq!((status, body.to_string().as_str()), (200, r#"{"code":0}"#));
        assert_eq!(get(&mut it, "/task/info?taskId=1").1["data"]["status"], "Killed");
        assert_eq!(get(&mut it, "/task/info?taskId=2").0, 404);
        assert_eq!(post(&mut it, "/task/kill", r#"{"taskId":2}"#).0, 404);
        assert_eq!(code_and_field(get(&mut it, "/task/info")).2, "taskId");
        assert_eq!(code_and_field(get(&mut it, "/task/info?taskId=-1")).2, "taskId");
    }

    #[test]
    fn a_poll_with_news_is_answered_at_once_and_one_without_waits_for_it() {
        let mut it = Fixture::new("control-events");
        assert!(matches!(ask(&mut it, Method::Get, "/task/events?after=0", ""), Reply::Now(_)));
        let parked = ask(&mut it, Method::Get, "/task/events?after=0&wait_ms=1000", "");
        assert!(matches!(parked, Reply::Later { after: EventNumber(0), .. }), "{parked:?}");
        post(&mut it, "/task/create", JOB);
        let (_, body) = get(&mut it, "/task/events?after=0&wait_ms=1000");
        assert_eq!((&body["data"]["last"], &body["data"]["events"][0]["taskId"]), (&1.into(), &1.into()));
        assert_eq!(body["data"]["resource"]["mem"], 600);
        for (query, field) in [("after=-1", "after"), ("wait_ms=60001", "wait_ms"), ("wait_ms=x", "wait_ms")] {
            assert_eq!(code_and_field(get(&mut it, &format!("/task/events?{query}"))).2, field);
        }
    }

    #[test]
    fn the_answer_to_a_poll_that_waited_is_made_when_it_is_taken() {
        let mut it = Fixture::new("control-parked");
        let mut events = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = events.local_addr().unwrap();
        let ask = |_| {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.write_all(b"GET /task/events HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            stream
        };
        let _asking: Vec<TcpStream> = (0..2).map(ask).collect();
        let (mut polls, until) = (LongPolls::default(), Instant::now() + Duration::from_secs(60));
        while polls.waiters.len() < 2 {
            for event in events.turn(Some(until)).unwrap() {
                let event_loop::Event::Request(connection, _) = event else { panic!("{event:?}") };
                polls.park(connection, EventNumber(0), until, None);
            }
        }
        assert!(polls.take_answers(&it.table, Now::read()).next().is_none());
        post(&mut it, "/task/create", JOB);
        assert!(polls.take_answers(&it.table, Now::read()).next().is_some());
        assert_eq!(polls.waiters.len(), 1);
        assert_eq!(polls.take_answers(&it.table, Now::read()).count(), 1);
    }

    #[test]
    fn a_stamp_goes_out_with_every_answer_and_one_that_is_none_is_refused_when_it_comes_back() {
        let mut it = Fixture::new("control-stamp");
        let stamp = get(&mut it, "/task/events").1["data"]["resource"]["stamp"].as_str().unwrap().to_owned();
        assert!(get(&mut it, "/resource").1["stamp"].as_str().unwrap() > stamp.as_str());
        assert_eq!(get(&mut it, &format!("/task/events?master=m&heard={stamp}")).0, 200);
        assert_eq!(get(&mut it, "/task/events?master=m&heard=of.another").0, 400);
        let leased = JOB.replace("\"status\"", &format!("\"lease\":{{\"ms\":60000,\"heard\":\"{stamp}\"}},\"status\""));
        assert_eq!(code_and_field(post(&mut it, "/task/create", &leased)).2, "master");
        let leased = leased.replace("\"status\"", "\"master\":\"m\",\"status\"");
        assert_eq!(post(&mut it, "/task/create", &leased).0, 200);
        let stale = leased.replace("60000", "0");
        assert_eq!(code_and_field(post(&mut it, "/task/create", &stale)).2, "lease.ms");
    }

    #[test]
    fn every_change_shows_once_as_its_latest_and_the_acknowledged_end_no_more() {
        let mut it = Fixture::new("control-acknowledge");
        post(&mut it, "/task/create", JOB);
        it.table.apply(TaskId(1), Event::Launched(Init { pid: 1, start_time: 1 }), Now::read());
        it.table.apply(TaskId(1), Event::Started(None), Now::read());
        post(&mut it, "/task/create", JOB);
        post(&mut it, "/task/kill", r#"{"taskId":2}"#);
        let (_, body) = get(&mut it, "/task/events?after=0");
        let told: Vec<_> = body["data"]["events"].as_array().unwrap().iter().map(|it| it["event"].clone()).collect();
        assert_eq!((told, &body["data"]["last"]), (vec![2.into(), 4.into()], &4.into()));
        assert_eq!(get(&mut it, "/task/events?after=4&master=another").1["data"]["events"], serde_json::json!([]));
        assert_eq!(get(&mut it, "/task/info?taskId=2").0, 200);
        assert_eq!(get(&mut it, "/task/events?after=4").1["data"]["events"], serde_json::json!([]));
        assert_eq!(get(&mut it, "/task/info?taskId=2").0, 404);
        assert_eq!(get(&mut it, "/task/info?taskId=1").1["data"]["status"], "Running");
    }

    #[test]
    fn a_poll_meant_for_another_node_acknowledges_and_renews_nothing_and_hears_all_at_once() {
        let mut it = Fixture::new("control-astray");
        let nobody = get(&mut it, "/task/events?after=7&wait_ms=1000&master=m&instance=another").1;
        assert_eq!(nobody["data"]["last"], 0, "it does not wait to say who it is");
        let stamp = nobody["data"]["resource"]["stamp"].as_str().unwrap().to_owned();
        let leased = format!("\"master\":\"m\",\"lease\":{{\"ms\":60000,\"heard\":\"{stamp}\"}},\"status\"");
        post(&mut it, "/task/create", &JOB.replace("\"status\"", &leased));
        let own = it.table.node().instance.clone();
        post(&mut it, "/task/create", &JOB.replace("\"status\"", "\"master\":\"m\",\"status\""));
        post(&mut it, "/task/kill", r#"{"taskId":2}"#);
        let newer = get(&mut it, "/resource").1["stamp"].as_str().unwrap().to_owned();
        let before = it.table.terms(TaskId(1));
        let poll = |name: &str| format!("/task/events?after=3&master=m&jobs=5&heard={newer}&instance={name}");
        let told = get(&mut it, &poll("another")).1;
        assert_eq!(told["data"]["events"].as_array().unwrap().len(), 2);
        assert_eq!(told["data"]["remembered"]["lastJob"], 5, "jobs are numbered for all nodes alike");
        assert_eq!(get(&mut it, "/task/info?taskId=2").0, 200, "its end was not heard of");
        assert_eq!(it.table.terms(TaskId(1)), before);
        get(&mut it, &poll(&own.0));
        assert_eq!(get(&mut it, "/task/info?taskId=2").0, 404);
        assert_ne!(it.table.terms(TaskId(1)), before);
    }

    #[test]
    fn output_of_a_forgotten_task_is_still_read_but_not_of_one_that_never_was() {
        let mut it = Fixture::new("control-output");
        post(&mut it, "/task/create", JOB);
        post(&mut it, "/task/kill", r#"{"taskId":1}"#);
        get(&mut it, "/task/events?after=2");
        let reply = ask(&mut it, Method::Get, "/task/output?taskId=1&stream=stderr&offset=5", "");
        let output = OutputRequest { task: TaskId(1), log: Log::Stderr, start: Start::Offset(5) };
        assert_eq!(reply, Reply::Output(output));
        assert_eq!(get(&mut it, "/task/output?taskId=2").0, 404);
        assert_eq!(code_and_field(get(&mut it, "/task/output?taskId=1&stream=x")).2, "stream");
    }

    #[test]
    fn a_wrong_method_is_405_with_the_right_one_and_an_unknown_path_404() {
        let mut it = Fixture::new("control-routes");
        for (method, path, allowed) in [
            (Method::Post, "/resource", "GET"),
            (Method::Get, "/task/create", "POST"),
            (Method::Get, "/task/kill", "POST"),
            (Method::Head, "/task/output", "GET"),
        ] {
            let Reply::Now(response) = ask(&mut it, method, path, "") else { panic!() };
            assert_eq!((response.status, &response.headers[1].1), (405, &allowed.to_owned()), "{path}");
        }
        for path in ["/", "/task", "/task/create/", "/resource/x"] {
            assert_eq!(get(&mut it, path).0, 404, "{path}");
        }
        assert_eq!(get(&mut it, "/resource").1["mem"], 1000);
    }

    #[test]
    fn once_a_later_term_of_a_master_has_spoken_an_earlier_one_is_refused_whatever_it_asks() {
        let mut it = Fixture::new("control-terms");
        let mut speak = |method, target: &str, body: &str, speaker: &str| {
            let mut headers = Headers::new();
            headers.push(term::HEADER, speaker);
            said(ask_with(&mut it, method, target, body, headers))
        };
        assert_eq!(speak(Method::Post, "/task/create", JOB, "m 7").0, 200);
        assert_eq!(speak(Method::Get, "/task/events", "", "m 8").0, 200);
        let late = [
            (Method::Post, "/task/create", JOB),
            (Method::Post, "/task/create", "[]"),
            (Method::Post, "/task/kill", "{\"taskId\":1}"),
            (Method::Get, "/task/events?after=1&master=m", ""),
            (Method::Get, "/resource", ""),
        ];
        for (method, target, body) in late {
            let (status, code, _) = code_and_field(speak(method, target, body, "m 7"));
            assert_eq!((status, code.as_str()), (409, "superseded"), "{target}");
        }
        assert_eq!(speak(Method::Get, "/task/info?taskId=1", "", "m 8").1["data"]["status"], "Pending[A]");
        assert_eq!(speak(Method::Get, "/resource", "", "another 1").0, 200, "terms are each master's own");
        assert_eq!(code_and_field(speak(Method::Get, "/resource", "", "m")).0, 400);
        assert_eq!(post(&mut it, "/task/create", JOB).0, 200, "the original's master has no terms");
    }
}
