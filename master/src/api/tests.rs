//! The routes, with a real owner and database behind them and no node.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use wire::access::Token;
use wire::http::{Headers, Query};
use wire::{Attempt, NodeId, TaskId};

use super::streams::STREAMS;
use super::*;
use crate::gate;
use crate::job::Placed;
use crate::jobs::{self, Nodes, Owner};
use crate::nodes::Now;
use crate::state_dir::Scratch;
use crate::store::{Changes, KeptRef, Store};

const TOKEN: &str = "0123456789abcdef";
const FIREFOX: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// A worker whose owner runs in a thread of its own.
struct Desk {
    api: Api,
    dir: Scratch,
}

impl Desk {
    fn new() -> Desk {
        Desk::with(None)
    }

    fn with_token() -> Desk {
        let dir = Scratch::new();
        let path = dir.path().join("token");
        std::fs::write(&path, TOKEN).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Desk::with(Some(Token::from_file(&path).unwrap()))
    }

    fn with(token: Option<Token>) -> Desk {
        Desk::over(Scratch::new(), token)
    }

    /// With job 1 running, and so much in its log; the folder is the share too.
    fn with_log(bytes: u64) -> Desk {
        let dir = Scratch::new();
        let placed = Some(Placed { node: NodeId(0), task: Some(TaskId(7)) });
        let job = Job::submitted(JobId(1), crate::job::tests::spec(), Timestamp::now());
        let job = Job { status: State::Running, placed, attempt: Attempt(1), ..job };
        let added = vec![KeptRef { job: &job, kill_asked: false }];
        Store::open_in(dir.path()).unwrap().write(&Changes { added, ..Changes::default() }).unwrap();
        let task = dir.path().join("nodes/0/task7");
        std::fs::create_dir_all(&task).unwrap();
        std::fs::File::create(task.join("task_stdout")).unwrap().set_len(bytes).unwrap();
        Desk::over(dir, None)
    }

    fn over(dir: Scratch, token: Option<Token>) -> Desk {
        let store = Store::open_in(dir.path()).unwrap();
        let reader = Reader::open(&dir.path().join(store::FILE)).unwrap();
        let nodes = Nodes {
            addrs: vec![(NodeId(0), "127.0.0.1:5000".into())],
            time_out: Duration::from_secs(10),
            lease: Duration::from_secs(60),
            most_lost: 3,
        };
        let owner = Owner::new(store, nodes, Now::read()).unwrap();
        let (to_owner, messages) = channel();
        std::thread::spawn(move || jobs::run(owner, &messages, drop, drop));
        let logs = Logs::start(Some(dir.path().to_owned()), BTreeMap::new(), None).unwrap();
        let streams = Streams::start().unwrap();
        let watch = Watch::none();
        let shared = Shared { access: Access::new(token, []), watch, owner: to_owner, logs, streams };
        Desk { api: Api::new(Arc::new(shared), reader), dir }
    }

    /// Answers on the network from a thread of its own: one worker, and nothing between it and its clients. The
    /// folder is for the caller to keep, since the thread does not end.
    fn serve(self) -> (SocketAddr, Scratch) {
        let Desk { api, dir } = self;
        let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let addr = server.server_addr().to_ip().unwrap();
        std::thread::spawn(move || api.serve(&server));
        (addr, dir)
    }

    fn ask(&self, asked: &Asked) -> Response {
        match self.api.answer(asked).unwrap_or_else(|refused| refused.answer(asked.wants).into()) {
            Answer::Whole(response) => response,
            Answer::Log(_) => panic!("a log where there is none"),
        }
    }

    fn get(&self, target: &str) -> Response {
        self.ask(&asked(Method::Get, target, &[], ""))
    }

    fn page(&self, target: &str) -> Response {
        self.ask(&asked(Method::Get, target, &[("Accept", FIREFOX)], ""))
    }

    fn post(&self, target: &str, body: &str) -> Response {
        self.ask(&asked(Method::Post, target, &[], body))
    }

    fn submit(&self, name: &str) -> u64 {
        let created = self.post("/job/create", &job(name).to_string());
        assert_eq!(created.status, 201, "{}", text(&created));
        body(&created)["jobId"].as_u64().unwrap()
    }
}

fn asked(method: Method, target: &str, pairs: &[(&str, &str)], body: &str) -> Asked {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = Headers::new();
    headers.push("Host", "localhost:8080");
    for (name, value) in pairs {
        headers.push(name, *value);
    }
    Asked {
        method,
        path: path.to_owned(),
        target: target.to_owned(),
        query: Query::parse(query),
        wants: Wants::of(headers.get("Accept")),
        headers,
        body: body.as_bytes().to_vec(),
        head_only: false,
    }
}

fn job(name: &str) -> Value {
    json!({"name": name, "resource": {"cpu": 1, "mem": 64}, "commandLine": "true", "imageId": "busybox"})
}

fn body(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|_| panic!("no JSON: {}", text(response)))
}

fn text(response: &Response) -> String {
    String::from_utf8_lossy(&response.body).into_owned()
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
}

#[test]
fn every_page_has_a_json_twin_and_a_text_twin() {
    let desk = Desk::new();
    let id = desk.submit("a telling name");
    for target in ["/", "/job/table", &format!("/job/details/{id}")] {
        assert!(body(&desk.get(target)).to_string().contains("a telling name"), "{target}");
        let page = text(&desk.page(target));
        assert!(page.contains("<html") && page.contains("a telling name"), "{target}");
        let plain = text(&desk.ask(&asked(Method::Get, target, &[("Accept", "text/plain")], "")));
        assert!(plain.contains("a telling name") && !plain.contains('{') && !plain.contains('<'), "{plain}");
    }
    assert_eq!(body(&desk.get("/node/table"))[0]["state"], "unknown");
}

#[test]
fn a_waiting_jobs_details_say_why_it_waits() {
    let desk = Desk::new();
    let id = desk.submit("a");
    let why = body(&desk.get(&format!("/job/details/{id}")))["why"].as_str().unwrap().to_owned();
    assert_eq!(why, "no node answers: node 0 at 127.0.0.1:5000: not heard of yet");
}

#[test]
fn a_form_that_is_wrong_comes_back_as_it_was_typed() {
    let desk = Desk::new();
    let form = "name=kept&cpu=x1&mem=lots&cmdline=true&imgid=busybox";
    let page = desk.ask(&asked(Method::Post, "/job/create", &[("Accept", FIREFOX)], form));
    assert_eq!(page.status, 400);
    assert!(text(&page).contains("value=\"kept\"") && text(&page).contains("lots"), "{}", text(&page));
    assert_eq!(body(&desk.post("/job/create", form))["error"]["field"], "mem");
    let list = desk.ask(&asked(Method::Post, "/job/create_json", &[("Accept", FIREFOX)], "json=%5B1%5D"));
    assert_eq!(list.status, 400);
    assert!(text(&list).contains("[1]"), "{}", text(&list));
}

#[test]
fn a_browser_that_submits_goes_home() {
    let desk = Desk::new();
    let form = "name=a&cpu=x1&mem=64&cmdline=true&imgid=busybox";
    let answer = desk.ask(&asked(Method::Post, "/job/create", &[("Accept", FIREFOX)], form));
    assert_eq!((answer.status, header(&answer, "Location")), (303, Some("/")));
}

#[test]
fn a_list_with_one_bad_entry_changes_nothing() {
    let desk = Desk::new();
    let list = json!([job("good"), {"name": "bad"}]).to_string();
    let refused = desk.post("/job/create_json", &list);
    assert_eq!((refused.status, &body(&refused)["error"]["field"]), (400, &json!("[1].resource")));
    assert_eq!(body(&desk.get("/job/table")), json!([]));
}

#[test]
fn a_get_kills_for_curl_and_asks_whatever_may_be_a_browser() {
    let desk = Desk::new();
    let id = desk.submit("a");
    let path = format!("/job/kill/{id}");
    for sign in [("Cookie", "a=b"), ("Sec-Fetch-Mode", "no-cors"), ("Referer", "http://x/"), ("Accept", FIREFOX)] {
        let page = desk.ask(&asked(Method::Get, &path, &[sign], ""));
        assert!(page.status == 200 && text(&page).contains("<form"), "{sign:?}: {}", text(&page));
        assert_eq!(body(&desk.get(&format!("/job/details/{id}")))["job"]["status"], "Pending[ ]");
    }
    assert_eq!(body(&desk.get(&path))["status"], "Killed");
    assert_eq!(body(&desk.get(&path))["status"], "Killed", "killing twice is fine");
}

#[test]
fn the_details_of_a_running_job_say_that_its_end_was_asked_for() {
    let desk = Desk::with_log(0);
    assert_eq!(body(&desk.get("/job/details/1"))["killAsked"], false);
    desk.post("/job/kill/1", "");
    assert_eq!(body(&desk.get("/job/details/1"))["killAsked"], true);
    assert!(text(&desk.page("/job/details/1")).contains("Stopping: "));
    let plain = text(&desk.ask(&asked(Method::Get, "/job/details/1", &[("Accept", "text/plain")], "")));
    assert!(plain.contains("killAsked        true\n"), "{plain}");
}

#[test]
fn whoever_polls_a_jobs_state_can_have_it_without_its_logs() {
    let desk = Desk::with_log(3);
    assert_eq!(body(&desk.get("/job/details/1"))["task_stdout"], "\0\0\0");
    let bare = body(&desk.get("/job/details/1?logs=0"));
    assert_eq!((&bare["job"]["status"], bare.as_object().unwrap().len()), (&json!("Running"), 2), "{bare}");
    let plain = text(&desk.ask(&asked(Method::Get, "/job/details/1?logs=0", &[("Accept", "text/plain")], "")));
    assert!(plain.contains("status           Running\n") && !plain.contains("==>"), "{plain}");
    let page = desk.page("/job/details/1?logs=0");
    assert!(text(&page).contains("Standard output") && !text(&page).contains("Not yet"), "a page has its logs");
}

#[test]
fn a_kill_names_its_job_in_the_path_or_in_the_body() {
    let desk = Desk::new();
    for _ in 0..3 {
        desk.submit("a");
    }
    assert_eq!(body(&desk.post("/job/kill/1", ""))["status"], "Killed");
    assert_eq!(body(&desk.post("/job/kill", "{\"jobId\":2}"))["status"], "Killed");
    assert_eq!(body(&desk.post("/job/kill", "jobId=3"))["status"], "Killed");
    assert_eq!(desk.post("/job/kill/4", "").status, 404);
    let page = desk.ask(&asked(Method::Post, "/job/kill/3", &[("Accept", FIREFOX)], "back=%2Fjob%2Ftable"));
    assert_eq!((page.status, header(&page, "Location")), (303, Some("/job/table")));
    let off = desk.ask(&asked(Method::Post, "/job/kill/3", &[("Accept", FIREFOX)], "back=%2F%2Fevil"));
    assert_eq!(header(&off, "Location"), Some("/"));
}

#[test]
fn a_wrong_method_is_told_the_right_one_and_an_unknown_path_is_404() {
    let desk = Desk::new();
    for (method, path, allow) in [
        (Method::Get, "/job/create", "POST"),
        (Method::Get, "/job/create_json", "POST"),
        (Method::Get, "/job/kill", "POST"),
        (Method::Get, "/logout", "POST"),
        (Method::Post, "/", "GET, HEAD"),
        (Method::Post, "/job/table", "GET, HEAD"),
        (Method::Post, "/job/details/1", "GET, HEAD"),
        (Method::Post, "/node/table", "GET, HEAD"),
    ] {
        let refused = desk.ask(&asked(method, path, &[], ""));
        assert_eq!((refused.status, header(&refused, "Allow")), (405, Some(allow)), "{path}");
    }
    for path in ["/no/such", "/job", "/job/details", "/job/details/1/2", "/job/output/1", "/job/table/", "//"] {
        assert_eq!(desk.get(path).status, 404, "{path}");
    }
}

#[test]
fn wrong_ids_and_queries_are_refused_by_name() {
    let desk = Desk::new();
    for (target, field) in [
        ("/job/details/abc", "jobId"),
        ("/job/details/-1", "jobId"),
        ("/job/details/%31", "jobId"),
        ("/job/kill/99999999999999999999", "jobId"),
        ("/job/output/x/stdout", "jobId"),
        ("/job/output/1/stdout?offset=-1", "offset"),
        ("/job/table?status=running", "status"),
        ("/job/table?after=x", "after"),
        ("/job/table?limit=0", "limit"),
        ("/job/table?limit=1001", "limit"),
        ("/?again=x", "jobId"),
    ] {
        let refused = desk.get(target);
        assert_eq!((refused.status, &body(&refused)["error"]["field"]), (400, &json!(field)), "{target}");
    }
    assert_eq!(desk.get("/job/table?status=&q=&after=&limit=").status, 200);
}

#[test]
fn a_page_of_jobs_says_where_the_next_one_is() {
    let desk = Desk::new();
    for name in ["a", "b", "c"] {
        desk.submit(name);
    }
    let first = desk.get("/job/table?limit=2&q=true");
    assert_eq!(header(&first, "Link"), Some("</job/table?q=true&after=2&limit=2>; rel=\"next\""));
    assert_eq!(header(&desk.get("/job/table?limit=2&after=2"), "Link"), None);
}

#[test]
fn a_job_without_a_task_has_empty_logs_and_unknown_logs_are_404() {
    let desk = Desk::new();
    let id = desk.submit("a");
    let empty = desk.get(&format!("/job/output/{id}/stdout"));
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    assert_eq!(desk.get(&format!("/job/output/{id}/core")).status, 404);
    assert_eq!(desk.get("/job/output/99/stdout").status, 404);
}

#[test]
fn a_follower_is_handed_to_its_room_and_wrong_ones_are_refused_by_name() {
    let desk = Desk::with_log(100);
    for (target, what) in [
        ("/job/output/1/stdout?follow=1", "1 stdout 0"),
        ("/job/output/1/stdout?follow=1&offset=100", "1 stdout 100"),
        ("/job/output/1/stderr?follow=1&attempt=", "1 stderr 0"),
        ("/job/output/1/stderr?follow=1&attempt=1", "1 stderr 0 1"),
    ] {
        let head = desk.get(target);
        assert_eq!((head.status, head.body.len(), header(&head, gate::STANDS)), (200, 0, Some(what)), "{target}");
    }
    for (target, field) in [
        ("/job/output/1/stdout?follow=1&offset=101", "offset"),
        ("/job/output/1/stderr?follow=1&offset=1", "offset"),
        ("/job/output/1/stdout?follow=1&offset=-1", "offset"),
        ("/job/output/1/stdout?follow=1&offset=1e3", "offset"),
        ("/job/output/1/stdout?follow=1&offset=18446744073709551616", "offset"),
        ("/job/output/1/stdout?follow=1&attempt=2", "attempt"),
        ("/job/output/1/stdout?follow=1&attempt=x", "attempt"),
        ("/job/output/1/stdout?follow=yes", "follow"),
    ] {
        let refused = desk.get(target);
        assert_eq!((refused.status, &body(&refused)["error"]["field"]), (400, &json!(field)), "{target}");
        assert_eq!(header(&refused, gate::STANDS), None);
    }
    assert_eq!(desk.get("/job/output/99/stdout?follow=1").status, 404);
    assert_eq!(desk.get("/job/output/1/core?follow=1").status, 404);
    let waiting = desk.submit("a");
    let target = format!("/job/output/{waiting}/stdout?follow=1");
    assert_eq!(header(&desk.get(&target), gate::STANDS), Some(format!("{waiting} stdout 0").as_str()));
    assert_eq!(body(&desk.get(&format!("{target}&offset=1")))["error"]["field"], "offset");
}

#[test]
fn nobody_follows_without_the_token() {
    let refused = Desk::with_token().get("/job/output/1/stdout?follow=1");
    assert_eq!((refused.status, header(&refused, gate::STANDS)), (401, None));
}

#[test]
fn with_a_token_all_but_the_door_is_closed() {
    let desk = Desk::with_token();
    for path in ["/", "/job/table", "/job/details/1", "/no/such"] {
        let refused = desk.get(path);
        assert_eq!(refused.status, 401, "{path}");
        assert!(header(&refused, "WWW-Authenticate").is_some());
        let door = desk.page(path);
        assert!(door.status == 401 && text(&door).contains("type=\"password\""), "{}", text(&door));
    }
    assert!(text(&desk.page("/job/table?q=a")).contains("value=\"/job/table?q=a\""), "where the login leads");
    for open in ["/login", "/style.css", "/icon.svg"] {
        assert_eq!(desk.get(open).status, 200, "{open}");
    }
    let bearer = ("Authorization", "Bearer 0123456789abcdef");
    assert_eq!(desk.ask(&asked(Method::Get, "/", &[bearer], "")).status, 200);
}

#[test]
fn the_right_token_is_answered_with_a_cookie_and_the_wrong_one_with_none() {
    let desk = Desk::with_token();
    let login = |form: &str| desk.ask(&asked(Method::Post, "/login", &[("Accept", FIREFOX)], form));
    let opened = login("token=0123456789abcdef&next=%2Fjob%2Ftable");
    assert_eq!((opened.status, header(&opened, "Location")), (303, Some("/job/table")));
    let cookie = header(&opened, "Set-Cookie").unwrap();
    assert!(cookie.starts_with("berth_token=") && cookie.contains("HttpOnly"), "{cookie}");
    let refused = login("token=guessed&next=%2Fjob%2Ftable");
    assert_eq!((refused.status, header(&refused, "Set-Cookie")), (401, None));
    assert!(text(&refused).contains("value=\"/job/table\"") && !text(&refused).contains("guessed"));
}

#[test]
fn a_foreign_page_changes_nothing_and_a_foreign_host_hears_nothing() {
    let desk = Desk::new();
    let foreign = asked(Method::Post, "/job/create", &[("Origin", "http://evil.example")], &job("a").to_string());
    assert_eq!(desk.ask(&foreign).status, 403);
    let mut rebound = asked(Method::Get, "/", &[], "");
    rebound.headers = Headers::new();
    rebound.headers.push("Host", "evil.example");
    assert_eq!(desk.ask(&rebound).status, 403);
}

#[test]
fn a_body_of_another_type_is_415() {
    let desk = Desk::new();
    for (media, status) in [("multipart/form-data; boundary=x", 415), ("image/png", 415), ("text/xml", 415)] {
        let refused = desk.ask(&asked(Method::Post, "/job/create", &[("Content-Type", media)], "x"));
        assert_eq!(refused.status, status, "{media}");
    }
}

/// A connection on which this was asked; nothing has been read from it.
fn connect(addr: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn readers_who_never_read_their_logs_hold_up_no_worker_and_one_too_many_is_told_to_come_again() {
    const LOG: &str = "/job/output/1/stdout";
    let (addr, _folder) = Desk::with_log(64 << 20).serve();
    let mut lazy: Vec<TcpStream> = (0..STREAMS).map(|_| connect(addr, LOG)).collect();
    for stream in &mut lazy {
        assert!(head(stream).starts_with("HTTP/1.1 200"));
    }
    let (heads, first) = channel();
    for _ in STREAMS..=LANES_HELD {
        let (mut stream, heads) = (connect(addr, LOG), heads.clone());
        std::thread::spawn(move || heads.send(head(&mut stream)));
    }
    let refused = first.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("Retry-After: 1"), "{refused}");
    assert!(head(&mut connect(addr, "/job/table")).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_long_page_is_sent_as_a_log_is_and_a_short_one_by_the_worker() {
    let page = |length: usize| Answer::from(Response::html(200, "x".repeat(length)));
    assert!(!page(64 << 10).is_long());
    assert!(page(2 << 20).is_long());
}
