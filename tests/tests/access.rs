//! Who may call: tokens, cookies, and what a browser names as its Host and Origin.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use serde_json::json;
use tests::cluster::{Cluster, Plan};
use tests::daemon::{binary, free_addr, run_to_end};
use tests::http::{Request, Response};
use tests::job::job;
use tests::master::MASTER;
use tests::node::{SUPERVISOR, write_private};
use tests::sandbox::{Sandbox, is_root};

const TOKEN: &str = "a-token-of-some-length-0123456789";

/// What a server says to a request, without the token the cluster would add.
fn say(cluster: &Cluster, request: &Request) -> [Response; 2] {
    [request.send(cluster.master.addr()), request.send(cluster.nodes[0].addr())]
}

#[test]
fn without_the_token_nothing_is_answered() {
    Plan::default().token(TOKEN).run(|cluster| {
        let calls = [
            ("GET", "/"),
            ("GET", "/job/table"),
            ("GET", "/node/table"),
            ("POST", "/job/create"),
            ("POST", "/job/kill/1"),
            ("GET", "/no/such"),
        ];
        for (method, path) in calls {
            let answer = Request::new(method, path).accept("application/json").send(cluster.master.addr()).expect(401);
            assert_eq!(answer.json()["error"]["code"], "unauthorized");
            assert!(answer.header("www-authenticate").is_some_and(|scheme| scheme.starts_with("Bearer")), "{answer:?}");
        }
        for path in ["/resource", "/task/info?taskId=1", "/task/events?after=0"] {
            let answer = Request::get(path).send(cluster.nodes[0].addr()).expect(401);
            assert_eq!(answer.json()["code"], 1, "{answer:?}");
        }
    });
}

#[test]
fn only_the_whole_token_opens() {
    Plan::default().token(TOKEN).run(|cluster| {
        let longer = format!("{TOKEN}x");
        for wrong in ["", "x", &TOKEN[1..], &TOKEN[..TOKEN.len() - 1], &longer, &TOKEN.to_uppercase()] {
            for answer in say(cluster, &Request::get("/").bearer(wrong)) {
                assert_eq!(answer.status, 401, "{wrong:?} opened");
            }
        }
        for scheme in [format!("Basic {TOKEN}"), TOKEN.to_owned(), format!("Bearer {TOKEN} {TOKEN}")] {
            for answer in say(cluster, &Request::get("/").header("Authorization", &scheme)) {
                assert_eq!(answer.status, 401, "{scheme:?} opened");
            }
        }
        assert_eq!(Request::get("/").bearer(TOKEN).send(cluster.master.addr()).status, 200);
        assert_eq!(Request::get("/resource").bearer(TOKEN).send(cluster.nodes[0].addr()).status, 200);
    });
}

#[test]
fn master_and_node_with_one_token_run_a_job() {
    Plan::default().token(TOKEN).run(|cluster| {
        let ended = cluster.run(&job("echo behind a token"));
        assert_eq!(ended.outcome(), "Finished");
        assert_eq!(cluster.master.details(ended.job_id).task_stdout, "behind a token\n");
    });
}

/// The login form's action and the name of its field, as a browser would find them.
fn login_form(page: &str) -> (String, String) {
    let attribute = |tag: &str, name: &str| {
        let value = tag.split(&format!("{name}=\"")).nth(1)?;
        value.split('"').next().map(str::to_owned)
    };
    let tags = || page.split('<').skip(1);
    let form = tags().find(|tag| tag.starts_with("form")).unwrap_or_else(|| panic!("no form in {page}"));
    let field = tags().find(|tag| tag.starts_with("input") && tag.contains("type=\"password\""));
    let field = field.unwrap_or_else(|| panic!("no password field in {page}"));
    let action = attribute(form, "action").unwrap_or_else(|| panic!("no action in {form}"));
    (action, attribute(field, "name").unwrap_or_else(|| panic!("no name in {field}")))
}

#[test]
fn a_browser_logs_in_once_and_holds_a_cookie() {
    Plan::default().token(TOKEN).run(|cluster| {
        let addr = cluster.master.addr();
        let origin = format!("http://{addr}");
        let door = Request::get("/").browser().send(addr);
        assert!(door.status == 401 || door.status == 303, "{door:?}");
        let page = match door.header("location") {
            Some(place) => Request::get(place).browser().send(addr).text(),
            None => door.text(),
        };
        let (action, field) = login_form(&page);
        let login = |token: &str| {
            Request::post(&action).form(&[(&field, token)]).browser().header("Origin", &origin).send(addr)
        };
        let refused = login("wrong");
        assert!((400..500).contains(&refused.status) && refused.header("set-cookie").is_none(), "{refused:?}");
        let opened = login(TOKEN).expect(303);
        let cookie = opened.header("set-cookie").expect("a cookie").to_owned();
        for attribute in ["SameSite=Strict", "HttpOnly", "Path=/"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        let pair = cookie.split(';').next().expect("a name and a value");
        let home = Request::get("/").browser().header("Cookie", pair).send(addr).expect(200);
        assert!(home.text().contains("/job/create"), "{home:?}");
        assert_eq!(Request::get("/").browser().header("Cookie", &format!("{pair}x")).send(addr).status, 401);
        let foreign = Request::post("/job/kill/1")
            .form(&[])
            .browser()
            .header("Cookie", pair)
            .header("Origin", "http://evil.example");
        assert_eq!(foreign.send(addr).status, 403, "a foreign page rode on the cookie");
    });
}

#[test]
fn a_foreign_origin_changes_nothing() {
    Cluster::small(|cluster| {
        for origin in ["http://evil.example", "https://127.0.0.1.evil.example", "null", "http://127.0.0.1:1", "file://"]
        {
            let submit = Request::post("/job/create").json(&job("true")).header("Origin", origin);
            assert_eq!(submit.send(cluster.master.addr()).status, 403, "{origin} submitted to the master");
            let create = Request::post("/task/create").json(&job("true")).header("Origin", origin);
            assert_eq!(create.send(cluster.nodes[0].addr()).status, 403, "{origin} created on the node");
        }
        let cross_site = Request::post("/job/create").json(&job("true")).header("Sec-Fetch-Site", "cross-site");
        assert_eq!(cross_site.send(cluster.master.addr()).status, 403);
        assert_eq!(cluster.master.get("/")["jobs"], json!([]));
    });
}

#[test]
fn a_foreign_host_is_refused_and_loopback_by_any_name_is_not() {
    Cluster::small(|cluster| {
        for host in ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "8.8.8.8"]
        {
            for answer in say(cluster, &Request::get("/").header("Host", host)) {
                assert!(matches!(answer.status, 403 | 421), "Host {host}: {answer:?}");
            }
        }
        for (addr, path) in [(cluster.master.addr(), "/node/table"), (cluster.nodes[0].addr(), "/resource")] {
            for host in [format!("localhost:{}", addr.port()), addr.to_string(), format!("LOCALHOST:{}", addr.port())] {
                let answer = Request::get(path).accept("application/json").header("Host", &host).send(addr);
                assert_eq!(answer.status, 200, "Host {host}: {answer:?}");
            }
        }
    });
}

#[test]
fn a_get_never_changes_anything_for_a_foreign_page() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(running.job_id, "Running");
        let image = Request::get(&format!("/job/kill/{}", running.job_id)).header("Sec-Fetch-Site", "cross-site");
        image.header("Sec-Fetch-Dest", "image").send(cluster.master.addr());
        assert_eq!(cluster.master.job(running.job_id).status, "Running");
    });
}

#[test]
fn no_answer_sends_a_browser_off_the_site() {
    Plan::default().token(TOKEN).run(|cluster| {
        let origin = format!("http://{}", cluster.master.addr());
        let waiting = cluster.master.submit(&job("true"));
        let kill = format!("/job/kill/{}", waiting.job_id);
        for place in [
            "https://evil.example/",
            "//evil.example/",
            "/\\evil.example",
            "/\tevil",
            "javascript:alert(1)",
            "\r\nX: y",
            "evil",
        ] {
            let forms = [
                Request::post(&kill).form(&[("back", place)]).bearer(TOKEN),
                Request::post("/login").form(&[("next", place), ("token", TOKEN)]),
            ];
            for form in forms {
                let answer = form.browser().header("Origin", &origin).send(cluster.master.addr());
                let sent_to = answer.header("location").unwrap_or("/").to_owned();
                let local = sent_to.starts_with('/') && !sent_to.starts_with("//") && !sent_to.starts_with("/\\");
                assert!(local && !sent_to.contains("evil"), "{place:?} led to {sent_to:?}: {answer:?}");
                assert!(answer.header("x").is_none(), "{place:?} wrote a header: {answer:?}");
            }
        }
        cluster.master.wait_final(waiting.job_id);
    });
}

/// Runs a daemon that must refuse to start; its last words.
fn refuses_to_start(sandbox: &Sandbox, name: &str, flags: &[&str]) -> String {
    let state_dir = sandbox.folder("state");
    let mut command = Command::new(binary(name));
    command.args(flags).arg("--state-dir").arg(&state_dir).arg("--share").arg(sandbox.folder("share"));
    if name == SUPERVISOR {
        command.args(["--cgroup-root", &format!("{}-refused", sandbox.name())]);
    }
    let Output { status, stderr, .. } = run_to_end(&mut command);
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success(), "{name} {flags:?} started: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn without_a_token_only_loopback_is_listened_on() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    for name in [SUPERVISOR, MASTER] {
        for open in [format!("0.0.0.0:{}", free_addr().port()), format!("[::]:{}", free_addr().port())] {
            let said = refuses_to_start(&sandbox, name, &["--listen", &open]);
            assert!(
                said.contains(&open) && said.contains("without a token") && said.contains("--token-file"),
                "{said}"
            );
        }
    }
}

#[test]
fn a_token_file_that_others_can_read_or_that_holds_none_is_refused() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let file = sandbox.dir().join("token");
    let path = file.to_str().expect("UTF-8");
    let listen = free_addr().to_string();
    for name in [SUPERVISOR, MASTER] {
        write_private(&file, TOKEN);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
        let said = refuses_to_start(&sandbox, name, &["--listen", &listen, "--token-file", path]);
        assert!(said.contains(path), "{said}");
        for empty in ["", "\n"] {
            write_private(&file, empty);
            let said = refuses_to_start(&sandbox, name, &["--listen", &listen, "--token-file", path]);
            assert!(said.contains(path), "{empty:?}: {said}");
        }
        let missing = format!("{path}-missing");
        assert!(refuses_to_start(&sandbox, name, &["--listen", &listen, "--token-file", &missing]).contains(&missing));
    }
}
