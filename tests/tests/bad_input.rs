//! Whatever is sent, it gets a 4xx that names the field, and the daemons stay up.

use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::http::{Request, Response, raw};
use tests::job::{job, job_with};
use tests::node::Node;

/// Both daemons' addresses, and a path each answers well.
fn both(cluster: &mut Cluster) -> [(std::net::SocketAddr, &'static str); 2] {
    [(cluster.master.addr(), "/node/table"), (cluster.node().addr(), "/resource")]
}

fn stay_up(cluster: &mut Cluster) {
    for (addr, path) in both(cluster) {
        Request::get(path).accept("application/json").send(addr).expect(200);
    }
    assert!(cluster.master.daemon().is_up() && cluster.node().daemon().is_up());
}

fn long(length: usize) -> String {
    "a".repeat(length)
}

#[test]
fn malformed_http_is_refused() {
    let host = "Host: 127.0.0.1\r\n";
    let table: Vec<(&str, String, &[u16])> = vec![
        ("no HTTP at all", "hello\r\n\r\n".into(), &[400]),
        ("a TLS greeting", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n".into(), &[400]),
        ("no version", format!("GET /\r\n{host}\r\n"), &[400, 505]),
        ("a version there is not", format!("GET / HTTP/9.9\r\n{host}\r\n"), &[400, 505]),
        ("HTTP/1.1 without a Host", "GET / HTTP/1.1\r\n\r\n".into(), &[400]),
        ("two Hosts", format!("GET / HTTP/1.1\r\n{host}{host}\r\n"), &[400]),
        ("a blank before the colon", format!("GET / HTTP/1.1\r\n{host}X : y\r\n\r\n"), &[400]),
        ("a folded header", format!("GET / HTTP/1.1\r\n{host}X: y\r\n z\r\n\r\n"), &[400]),
        ("a NUL in a header", format!("GET / HTTP/1.1\r\n{host}X: a\0b\r\n\r\n"), &[400]),
        ("a header without a name", format!("GET / HTTP/1.1\r\n{host}: y\r\n\r\n"), &[400]),
        ("a blank in the path", format!("GET /a b HTTP/1.1\r\n{host}\r\n"), &[400, 505]),
        ("a thousand headers", format!("GET / HTTP/1.1\r\n{host}{}\r\n", "X: y\r\n".repeat(1000)), &[431]),
        ("a long header", format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", long(65_536)), &[431]),
        ("a long path", format!("GET /{} HTTP/1.1\r\n{host}\r\n", long(65_536)), &[414, 431]),
        ("a long method", format!("{} / HTTP/1.1\r\n{host}\r\n", long(65_536)), &[400, 414, 431]),
        ("a negative length", format!("POST /x HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n"), &[400]),
        ("a signed length", format!("POST /x HTTP/1.1\r\n{host}Content-Length: +1\r\n\r\na"), &[400]),
        ("a length in hex", format!("POST /x HTTP/1.1\r\n{host}Content-Length: 0x1\r\n\r\na"), &[400]),
        ("a list of lengths", format!("POST /x HTTP/1.1\r\n{host}Content-Length: 1, 1\r\n\r\na"), &[400]),
        ("an empty length", format!("POST /x HTTP/1.1\r\n{host}Content-Length:\r\n\r\n"), &[400]),
        (
            "a length beyond u64",
            format!("POST /x HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n", "9".repeat(30)),
            &[400, 413],
        ),
        ("a body of 5 MiB", format!("POST /x HTTP/1.1\r\n{host}Content-Length: 5242880\r\n\r\n"), &[413]),
        ("two lengths", format!("POST /x HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\na"), &[400]),
        (
            "the same length twice",
            format!("POST /x HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 1\r\n\r\na"),
            &[400],
        ),
        (
            "a length and chunks",
            format!("POST /x HTTP/1.1\r\n{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            &[400],
        ),
        ("a coding nobody has", format!("POST /x HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\n"), &[400, 501]),
        (
            "chunked, but not last",
            format!("POST /x HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\n"),
            &[400, 501],
        ),
        (
            "a chunk size that is none",
            format!("POST /x HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
            &[400],
        ),
        (
            "a chunk size beyond u64",
            format!("POST /x HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n{}\r\n", "f".repeat(40)),
            &[400, 413],
        ),
        (
            "a chunk that is longer than it says",
            format!("POST /x HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n"),
            &[400],
        ),
        ("a proxy request", format!("CONNECT evil:443 HTTP/1.1\r\n{host}\r\n"), &[400, 403, 404, 405, 501]),
        ("a foreign absolute form", format!("GET http://evil/ HTTP/1.1\r\n{host}\r\n"), &[400, 403, 404, 421]),
        ("an asterisk", format!("OPTIONS * HTTP/1.1\r\n{host}\r\n"), &[400, 404, 405, 501]),
        ("a path that climbs", format!("GET /../../etc/passwd HTTP/1.1\r\n{host}\r\n"), &[400, 403, 404]),
        (
            "a path that climbs in escapes",
            format!("GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\n{host}\r\n"),
            &[400, 403, 404],
        ),
        ("a path with a NUL", format!("GET /%00 HTTP/1.1\r\n{host}\r\n"), &[400, 404]),
        ("a path that is not UTF-8", format!("GET /%ff HTTP/1.1\r\n{host}\r\n"), &[400, 404]),
        ("a broken escape", format!("GET /%zz HTTP/1.1\r\n{host}\r\n"), &[400, 404]),
    ];
    Cluster::small(|cluster| {
        for (addr, _) in both(cluster) {
            for (what, bytes, statuses) in &table {
                let status = raw(addr, bytes.as_bytes()).map(|answer| answer.status);
                assert!(
                    status.is_some_and(|status| statuses.contains(&status)),
                    "{what} at {addr}: {status:?}, not {statuses:?}"
                );
            }
        }
        stay_up(cluster);
    });
}

/// Spoils one field of a good job at a time.
fn wrong_jobs() -> Vec<(&'static str, Value)> {
    let with = |field: &'static str, value: Value| (field, job_with("true", &[(field, value)]));
    let without = |field: &'static str| {
        let mut job = job("true");
        job.as_object_mut().expect("an object").remove(field);
        (field, job)
    };
    let mut huge_list = String::new();
    for n in 0..100 {
        huge_list += &format!("/p/{n};");
    }
    vec![
        without("name"),
        without("resource"),
        without("commandLine"),
        without("imageId"),
        with("name", json!("")),
        with("name", json!(5)),
        with("name", json!(null)),
        with("name", json!("a\u{0}b")),
        with("name", json!("x".repeat(10_000))),
        with("resource", json!([])),
        with("resource", json!("lots")),
        with("resource.cpu", json!("")),
        with("resource.cpu", json!("one")),
        with("resource.cpu", json!("1-0")),
        with("resource.cpu", json!("0-999999999")),
        with("resource.cpu", json!(0)),
        with("resource.cpu", json!(-1)),
        with("resource.cpu", json!(1e300)),
        with("resource.cpu", json!(null)),
        with("resource.cpu", json!([0])),
        with("resource.mem", json!(0)),
        with("resource.mem", json!(-64)),
        with("resource.mem", json!(1.5)),
        with("resource.mem", json!("64")),
        with("resource.mem", json!(u64::MAX)),
        with("resource.gpu", json!(1)),
        with("commandLine", json!("")),
        with("commandLine", json!("  \n")),
        with("commandLine", json!("a\u{0}b")),
        with("commandLine", json!(["true"])),
        with("commandLine", json!("x".repeat(200_000))),
        with("packagePath", json!("relative")),
        with("packagePath", json!("/p/../../etc")),
        with("packagePath", json!(huge_list)),
        with("packagePath", json!(["/p"])),
        with("imageId", json!("")),
        with("imageId", json!("../../etc")),
        with("imageId", json!("a/b")),
        with("imageId", json!(".hidden")),
        with("imageId", json!("-rf")),
        with("imageId", json!(7)),
        with("imageId", json!("nowhere")),
        with("timeout", json!(-1)),
        with("timeout", json!("soon")),
        with("timeout", json!(1.5)),
        with("timeout", json!(u64::MAX)),
        with("nice", json!(1)),
    ]
}

#[test]
fn a_wrong_job_is_refused_by_the_master_with_its_fields_name() {
    Cluster::small(|cluster| {
        for (field, wrong) in wrong_jobs() {
            let answer = cluster.master.try_submit(&wrong);
            assert_eq!((answer.status, answer.refused_field().as_str()), (400, field), "{answer:?}");
            let batch = Value::from(vec![job("true"), wrong]);
            let answer = cluster.master.send(Request::post("/job/create_json").json(&batch)).expect(400);
            assert_eq!(answer.refused_field(), format!("[1].{field}"), "{answer:?}");
        }
        assert_eq!(cluster.master.get("/")["jobs"], json!([]));
        stay_up(cluster);
    });
}

#[test]
fn a_wrong_job_is_refused_by_the_node_with_its_fields_name() {
    Cluster::small(|cluster| {
        let node = cluster.node();
        // A node forgives keys it does not know and a missing name: other masters send more, or less.
        let forgiven = ["nice", "resource.gpu"];
        for (field, wrong) in wrong_jobs().into_iter().filter(|(field, _)| !forgiven.contains(field)) {
            if field == "name" && wrong["name"].as_str().unwrap_or_default().is_empty() {
                continue;
            }
            let answer = node.send(Request::post("/task/create").json(&wrong));
            assert!((400..500).contains(&answer.status), "{field}: {answer:?}");
            assert_eq!(
                (answer.json()["code"].clone(), answer.refused_field().as_str()),
                (json!(1), field),
                "{answer:?}"
            );
        }
        assert_eq!(node.get("/resource")["tasks"], 0);
        stay_up(cluster);
    });
}

#[test]
fn a_body_that_is_not_json_is_refused_as_the_body() {
    let deep = [b"[".repeat(200_000), b"]".repeat(200_000)].concat();
    let bodies: [&[u8]; 8] = [b"", b"{", b"nonsense", b"\"text\"", b"7", b"\xff\xfe", b"{} {}", &deep];
    Cluster::small(|cluster| {
        let (master, node) = (cluster.master.addr(), cluster.node().addr());
        for (addr, path) in [
            (master, "/job/create"),
            (master, "/job/create_json"),
            (master, "/job/kill"),
            (node, "/task/create"),
            (node, "/task/kill"),
        ] {
            for body in bodies {
                let answer = Request::post(path).accept("application/json").body("application/json", body).send(addr);
                assert!(
                    (400..500).contains(&answer.status),
                    "{path} {:?}: {answer:?}",
                    String::from_utf8_lossy(&body[..body.len().min(20)])
                );
                assert!(!answer.refused_field().is_empty(), "{answer:?}");
            }
        }
        stay_up(cluster);
    });
}

#[test]
fn a_body_of_a_type_nobody_knows_is_refused() {
    Cluster::small(|cluster| {
        let answer = cluster.master.send(Request::post("/job/create").body("image/png", "\u{89}PNG"));
        assert!((400..500).contains(&answer.status), "{answer:?}");
        stay_up(cluster);
    });
}

#[test]
fn a_wrong_form_is_refused_with_the_name_of_its_field() {
    let good = [
        ("name", "a"),
        ("cpu", "0"),
        ("mem", "64"),
        ("cmdline", "true"),
        ("pkgpath", ""),
        ("imgid", "busybox"),
        ("timeout", ""),
    ];
    let wrong = [
        ("name", ""),
        ("cpu", "one"),
        ("cpu", ""),
        ("mem", "lots"),
        ("mem", "-1"),
        ("mem", "1e3"),
        ("mem", ""),
        ("mem", "99999999999999999999"),
        ("cmdline", ""),
        ("pkgpath", "relative"),
        ("imgid", "../etc"),
        ("imgid", "nowhere"),
        ("timeout", "soon"),
        ("timeout", "-5"),
        ("nice", "10"),
    ];
    Cluster::small(|cluster| {
        for (field, value) in wrong {
            let mut form: Vec<(&str, &str)> = good.into_iter().filter(|(known, _)| *known != field).collect();
            form.push((field, value));
            let send = |request: Request| cluster.master.send(request.form(&form)).expect(400);
            let answer = send(Request::post("/job/create").accept("application/json"));
            assert_eq!(answer.refused_field(), field, "{answer:?}");
            let origin = format!("http://{}", cluster.master.addr());
            let page: Response = send(Request::post("/job/create").browser().header("Origin", &origin));
            assert!(page.text().contains(field), "the page names no {field}: {page:?}");
        }
        for list in ["", "nonsense", "{}", "[{}]", "[1]"] {
            let form = Request::post("/job/create_json").accept("application/json").form(&[("json", list)]);
            let answer = cluster.master.send(form).expect(400);
            assert!(!answer.refused_field().is_empty(), "{answer:?}");
        }
        let form = Request::post("/job/create_json").accept("application/json").form(&[("other", "[]")]);
        assert_eq!(cluster.master.send(form).expect(400).refused_field(), "json");
        assert_eq!(cluster.master.get("/")["jobs"], json!([]));
        stay_up(cluster);
    });
}

#[test]
fn wrong_ids_and_queries_are_refused_with_their_name() {
    let table = [
        ("GET", "/job/details/abc", "jobId"),
        ("GET", "/job/details/-1", "jobId"),
        ("GET", "/job/details/99999999999999999999", "jobId"),
        ("GET", "/job/details/1.0", "jobId"),
        ("GET", "/job/details/%31%00", "jobId"),
        ("POST", "/job/kill/abc", "jobId"),
        ("GET", "/job/kill/abc", "jobId"),
        ("GET", "/job/table?status=running", "status"),
        ("GET", "/job/table?after=x", "after"),
        ("GET", "/job/table?limit=x", "limit"),
        ("GET", "/job/table?limit=-1", "limit"),
        ("GET", "/job/table?limit=0", "limit"),
    ];
    Cluster::small(|cluster| {
        for (method, path, field) in table {
            let answer = cluster.master.send(Request::new(method, path).accept("application/json")).expect(400);
            assert_eq!(answer.refused_field(), field, "{path}: {answer:?}");
        }
        for body in [json!({}), json!({"jobId": "1"}), json!({"jobId": -1}), json!({"jobId": null})] {
            let answer = cluster.master.send(Request::post("/job/kill").json(&body)).expect(400);
            assert_eq!(answer.refused_field(), "jobId", "{body}: {answer:?}");
        }
        cluster.master.send(Request::post("/job/kill").json(&json!({"jobId": 4711}))).expect(404);
        cluster.master.send(Request::post("/job/kill/4711")).expect(404);
        cluster.master.send(Request::get("/job/details/4711")).expect(404);
        cluster.master.send(Request::get("/job/details/1/2")).expect(404);
        stay_up(cluster);
    });
}

#[test]
fn the_nodes_ids_and_queries_are_refused_with_their_name() {
    let table = [
        ("/task/info", "taskId"),
        ("/task/info?taskId=abc", "taskId"),
        ("/task/info?taskId=-1", "taskId"),
        ("/task/events?after=abc", "after"),
        ("/task/events?after=-1", "after"),
        ("/task/events?after=0&wait_ms=abc", "wait_ms"),
        ("/task/events?after=0&wait_ms=-1", "wait_ms"),
        ("/task/output?stream=stdout", "taskId"),
        ("/task/output?taskId=abc&stream=stdout", "taskId"),
        ("/task/output?taskId=1&stream=other", "stream"),
        ("/task/output?taskId=1&stream=stdout&offset=abc", "offset"),
        ("/task/output?taskId=1&stream=stdout&offset=-1", "offset"),
    ];
    Node::alone(|node| {
        let task = node.create(&job("true"));
        node.wait_final(task);
        for (path, field) in table {
            let answer = node.send(Request::get(path)).expect(400);
            assert_eq!(
                (answer.json()["code"].clone(), answer.refused_field().as_str()),
                (json!(1), field),
                "{path}: {answer:?}"
            );
        }
        for body in [json!({}), json!({"taskId": "1"}), json!({"taskId": -1}), json!([])] {
            let answer = node.send(Request::post("/task/kill").json(&body)).expect(400);
            assert!(["taskId", "body"].contains(&answer.refused_field().as_str()), "{body}: {answer:?}");
        }
        node.send(Request::get("/task/info?taskId=4711")).expect(404);
        node.send(Request::get("/task/output?taskId=4711&stream=stdout")).expect(404);
        node.send(Request::get("/no/such/call")).expect(404);
        node.send(Request::get("/task/create")).expect(405);
        node.send(Request::post("/resource")).expect(405);
        node.get("/resource");
    });
}
