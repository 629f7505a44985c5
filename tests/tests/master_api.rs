//! Every call the master answers: as JSON, as text for a shell, as a page.

use serde_json::{Value, json};
use tests::cluster::{Cluster, Plan};
use tests::http::Request;
use tests::job::{Job, job, job_with};
use tests::node::NodePlan;
use tests::wait::until;

/// The jobs of `GET /job/table` with this query.
fn table(cluster: &Cluster, query: &str) -> Vec<Job> {
    let answer = cluster.master.get(&format!("/job/table{query}"));
    let jobs = answer.get("jobs").unwrap_or(&answer);
    jobs.as_array().unwrap_or_else(|| panic!("no list of jobs: {answer:#}")).iter().map(Job::from_json).collect()
}

fn ids(jobs: &[Job]) -> Vec<u64> {
    jobs.iter().map(|job| job.job_id).collect()
}

const FORM: [(&str, &str); 7] = [
    ("name", "from a form"),
    ("cpu", "x1"),
    ("mem", "64"),
    ("cmdline", "echo form"),
    ("pkgpath", ""),
    ("imgid", "busybox"),
    ("timeout", "60000"),
];

#[test]
fn a_job_is_answered_with_what_was_asked_and_what_became_of_it() {
    Cluster::small(|cluster| {
        let asked =
            job_with("true", &[("name", json!("a name")), ("timeout", json!(9000)), ("resource.cpu", json!("0,1"))]);
        let answered = cluster.master.submit(&asked);
        assert_eq!(answered.name, "a name");
        assert_eq!(answered.timeout, 9000);
        assert_eq!(answered.resource["mem"], 64);
        assert_eq!((answered.image_id.as_str(), answered.command_line.as_str()), ("busybox", "true"));
        assert!(answered.status.starts_with("Pending"), "{answered:?}");
        assert_eq!(cluster.master.wait_final(answered.job_id).outcome(), "Finished");
    });
}

#[test]
fn job_numbers_count_up() {
    Cluster::small(|cluster| {
        let first = cluster.master.submit(&job("true"));
        let rest = cluster.master.submit_all(&[job("true"), job("true")]);
        assert_eq!(ids(&rest), [first.job_id + 1, first.job_id + 2]);
        for id in [first.job_id, first.job_id + 1, first.job_id + 2] {
            cluster.master.wait_final(id);
        }
    });
}

#[test]
fn the_form_of_the_original_creates_a_job_and_sends_the_browser_home() {
    Cluster::small(|cluster| {
        let origin = format!("http://{}", cluster.master.addr());
        let form = Request::post("/job/create").form(&FORM).browser().header("Origin", &origin);
        let answer = cluster.master.send(form).expect(303);
        assert_eq!(answer.header("location"), Some("/"));
        let created = table(cluster, "").remove(0);
        assert_eq!((created.name.as_str(), created.timeout), ("from a form", 60_000));
        let ended = cluster.master.wait_final(created.job_id);
        assert_eq!(ended.outcome(), "Finished");
        assert_eq!(cluster.stdout(&ended), "form\n");
    });
}

#[test]
fn the_form_from_curl_is_answered_with_the_job() {
    Cluster::small(|cluster| {
        let answer = cluster.master.send(Request::post("/job/create").accept("*/*").form(&FORM));
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        let job = Job::from_json(&answer.json());
        cluster.master.wait_final(job.job_id);
    });
}

#[test]
fn a_list_of_jobs_as_a_json_body_is_answered_as_a_list() {
    Cluster::small(|cluster| {
        let jobs = cluster.master.submit_all(&[job("exit 0"), job("exit 1"), job("exit 2")]);
        let outcomes: Vec<String> = jobs.iter().map(|job| cluster.master.wait_final(job.job_id).outcome()).collect();
        assert_eq!(outcomes, ["Finished", "Failed: exit code 1", "Failed: exit code 2"]);
    });
}

#[test]
fn a_list_of_jobs_in_a_form_field_is_taken_too() {
    Cluster::small(|cluster| {
        let list = Value::from(vec![job("true"), job("true")]).to_string();
        let form = Request::post("/job/create_json").accept("application/json").form(&[("json", &list)]);
        let answer = cluster.master.send(form).expect(201).json();
        assert_eq!(answer.as_array().map(Vec::len), Some(2), "{answer:#}");
        for job in answer.as_array().into_iter().flatten() {
            cluster.master.wait_final(Job::from_json(job).job_id);
        }
    });
}

#[test]
fn the_example_of_the_readme_runs_by_curl() {
    Cluster::small(|cluster| {
        let text = r#"[{"name":"a","resource":{"cpu":"0","mem":64},"commandLine":"cat /proc/self/cgroup; id; ls /workspace","packagePath":"","imageId":"busybox","timeout":60000}]"#;
        let created = cluster.master.send(Request::post("/job/create_json").body("application/json", text));
        assert!(matches!(created.status, 200 | 201), "{created:?}");
        let id = created.json()[0]["jobId"].as_u64().expect("jobId");
        assert_eq!(cluster.master.wait_final(id).outcome(), "Finished");
        let page = cluster.master.page(&format!("/job/details/{id}"));
        assert!(page.contains("uid=0"), "its output is not on the details page: {page}");
    });
}

#[test]
fn a_batch_with_one_bad_entry_changes_nothing_and_names_it() {
    Cluster::small(|cluster| {
        let batch = Value::from(vec![job("true"), job_with("true", &[("resource.mem", json!(-1))]), job("true")]);
        let refused = cluster.master.send(Request::post("/job/create_json").json(&batch)).expect(400);
        assert_eq!(refused.refused_field(), "[1].resource.mem");
        assert_eq!(table(cluster, ""), []);
        let unknown_image = Value::from(vec![job("true"), job_with("true", &[("imageId", json!("nowhere"))])]);
        let refused = cluster.master.send(Request::post("/job/create_json").json(&unknown_image)).expect(400);
        assert_eq!(refused.refused_field(), "[1].imageId");
        assert_eq!(table(cluster, ""), []);
        assert_eq!(cluster.node().events(0, 0)["events"], json!([]), "a node heard of it");
    });
}

#[test]
fn a_job_is_killed_by_its_path_and_by_a_json_body() {
    Cluster::small(|cluster| {
        for by_body in [false, true] {
            let running = cluster.master.submit(&job("sleep 1000"));
            cluster.master.wait_status(running.job_id, "Running");
            let kill = match by_body {
                false => Request::post(&format!("/job/kill/{}", running.job_id)),
                true => Request::post("/job/kill").json(&json!({"jobId": running.job_id})),
            };
            cluster.master.send(kill).expect(200);
            assert_eq!(cluster.master.wait_final(running.job_id).status, "Killed");
        }
    });
}

#[test]
fn a_get_of_kill_kills_for_curl_and_asks_a_browser_first() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("sleep 1000"));
        cluster.master.wait_status(running.job_id, "Running");
        let path = format!("/job/kill/{}", running.job_id);
        for careful in [
            Request::get(&path).browser(),
            Request::get(&path).header("Sec-Fetch-Mode", "no-cors"),
            Request::get(&path).header("Cookie", "a=b"),
        ] {
            let page = cluster.master.send(careful).expect(200);
            assert!(page.text().contains("<form") && page.text().contains(&path), "{page:?}");
            assert_eq!(cluster.master.job(running.job_id).status, "Running", "a browser's GET killed");
        }
        cluster.master.send(Request::get(&path).accept("*/*")).expect(200);
        assert_eq!(cluster.master.wait_final(running.job_id).status, "Killed");
    });
}

#[test]
fn the_kill_button_sends_the_browser_back_to_a_page() {
    Cluster::small(|cluster| {
        let running = cluster.master.submit(&job("sleep 1000"));
        let origin = format!("http://{}", cluster.master.addr());
        let kill =
            Request::post(&format!("/job/kill/{}", running.job_id)).form(&[]).browser().header("Origin", &origin);
        let answer = cluster.master.send(kill).expect(303);
        let place = answer.header("location").expect("a location").to_owned();
        assert!(place.starts_with('/'), "{place}");
        cluster.master.page(&place);
        assert_eq!(cluster.master.wait_final(running.job_id).status, "Killed");
    });
}

#[test]
fn details_hold_the_job_and_its_three_logs() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("echo to stdout; echo to stderr >&2"));
        let details = cluster.master.details(ended.job_id);
        assert_eq!(details.job, ended);
        assert_eq!((details.task_stdout.as_str(), details.task_stderr.as_str()), ("to stdout\n", "to stderr\n"));
        let path = format!("/job/details/{}", ended.job_id);
        for seen in [cluster.master.page(&path), cluster.master.text(&path)] {
            assert!(seen.contains("to stdout") && seen.contains("to stderr") && seen.contains("Finished"), "{seen}");
        }
    });
}

#[test]
fn the_whole_of_a_log_is_given_byte_for_byte_and_never_as_a_page() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job("printf '<b>\\000\\377\\n'; yes | head -c 5000000; echo '<i>' >&2"));
        let whole = |log: &str| {
            let path = format!("/job/output/{}/{log}", ended.job_id);
            let answer = cluster.master.get_with_logs(&Request::get(&path).browser());
            assert!(answer.header("content-type").is_some_and(|mime| mime.starts_with("text/plain")), "{answer:?}");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
            answer.body
        };
        let stdout = whole("stdout");
        assert_eq!((stdout.len(), &stdout[..8]), (5_000_006, &b"<b>\0\xff\ny\n"[..]));
        assert_eq!(whole("stderr"), b"<i>\n");
    });
}

#[test]
fn home_holds_both_tables_and_the_forms() {
    Cluster::small(|cluster| {
        let ended = cluster.run(&job_with("true", &[("name", json!("a telling name"))]));
        let home = cluster.master.get("/");
        assert_eq!(home["jobs"][0]["jobId"], ended.job_id);
        assert_eq!(home["nodes"][0]["nodeId"], 0);
        let page = cluster.master.page("/");
        for part in [
            "a telling name",
            "Finished",
            "action=\"/job/create\"",
            "action=\"/job/create_json\"",
            "name=\"cmdline\"",
            "name=\"json\"",
        ] {
            assert!(page.contains(part), "no {part} in {page}");
        }
        let text = cluster.master.text("/");
        assert!(text.contains("a telling name") && text.contains("Finished") && !text.contains('<'), "{text}");
    });
}

#[test]
fn text_tables_are_aligned_columns() {
    Cluster::small(|cluster| {
        cluster.run(&job_with("true", &[("name", json!("short"))]));
        cluster.run(&job_with("true", &[("name", json!("a much longer name than that"))]));
        let text = cluster.master.text("/job/table");
        let places: Vec<_> = text.lines().filter_map(|line| line.find("Finished")).collect();
        assert_eq!(places.len(), 2, "{text}");
        assert_eq!(places[0], places[1], "{text}");
        assert!(cluster.master.text("/node/table").contains(&cluster.node().addr().to_string()));
    });
}

#[test]
fn the_node_table_shows_what_is_free_and_what_there_is() {
    Plan::of_nodes([NodePlan::default(), NodePlan::default().mem(1024).cpu(2)]).run(|cluster| {
        let nodes = cluster.master.nodes();
        let seen: Vec<Value> = nodes
            .iter()
            .map(|node| json!([node["nodeId"], node["state"], node["cpuTotal"], node["memTotal"]]))
            .collect();
        assert_eq!(seen, [json!([0, "ready", 4, 4096]), json!([1, "ready", 2, 1024])]);
        assert_eq!(nodes[1]["addr"], cluster.nodes[1].addr().to_string());
        let running = cluster.master.submit(&job_with("sleep 1000", &[("resource.mem", json!(2048))]));
        cluster.master.wait_status(running.job_id, "Running");
        until("the node table to count the task", || {
            let node = cluster.master.nodes().remove(0);
            if node["mem"] == 2048 && node["cpu"] == 3 { Ok(()) } else { Err(node) }
        });
        assert!(
            cluster.master.page("/node/table").contains("4096") || cluster.master.page("/node/table").contains("4 GiB")
        );
    });
}

#[test]
fn the_job_table_is_newest_first_and_comes_in_pages() {
    Cluster::small(|cluster| {
        let jobs = cluster.master.submit_all(&vec![job("true"); 5]);
        let newest_first: Vec<u64> = ids(&jobs).into_iter().rev().collect();
        for job in &jobs {
            cluster.master.wait_final(job.job_id);
        }
        assert_eq!(ids(&table(cluster, "")), newest_first);
        assert_eq!(ids(&table(cluster, "?limit=2")), newest_first[..2]);
        assert_eq!(ids(&table(cluster, &format!("?limit=2&after={}", newest_first[1]))), newest_first[2..4]);
        assert_eq!(ids(&table(cluster, &format!("?after={}", newest_first[4]))), [0; 0]);
    });
}

#[test]
fn the_job_table_is_filtered_by_status_and_searched() {
    Cluster::small(|cluster| {
        let good = cluster.run(&job_with("true", &[("name", json!("apple 100%"))]));
        let bad = cluster.run(&job_with("exit 1", &[("name", json!("pear_tree"))]));
        assert_eq!(ids(&table(cluster, "?status=Finished")), [good.job_id]);
        assert_eq!(ids(&table(cluster, "?status=Failed")), [bad.job_id]);
        assert_eq!(ids(&table(cluster, "?status=Pending%5B%20%5D")), [0; 0]);
        assert_eq!(ids(&table(cluster, "?q=pear")), [bad.job_id]);
        assert_eq!(ids(&table(cluster, "?q=100%25")), [good.job_id], "% is not a wildcard");
        assert_eq!(ids(&table(cluster, "?q=appl_")), [0; 0], "_ is not a wildcard");
        assert_eq!(ids(&table(cluster, "?q=apple&status=Failed")), [0; 0]);
        let page = cluster.master.page("/job/table?q=pear&status=Failed");
        assert!(page.contains("pear_tree") && !page.contains("apple"), "{page}");
    });
}

#[test]
fn a_job_goes_to_the_node_with_the_most_free_memory() {
    Plan::of_nodes([NodePlan::default().mem(512), NodePlan::default().mem(1024)]).run(|cluster| {
        let hold = |mem: u64| {
            let job = cluster.master.submit(&job_with("sleep 1000", &[("resource.mem", json!(mem))]));
            cluster.master.wait_status(job.job_id, "Running").node_id
        };
        assert_eq!(hold(700), 1, "1024 MiB are more than 512");
        assert_eq!(hold(64), 0, "512 MiB are more than 324");
        assert_eq!(hold(200), 0, "448 MiB are more than 324");
        assert_eq!(hold(64), 1, "324 MiB are more than 248");
    });
}

#[test]
fn cpu_counts_as_well_as_memory() {
    Plan::of_nodes([NodePlan::default().cpu(1).mem(4096), NodePlan::default().cpu(2).mem(1024)]).run(|cluster| {
        let hold = |cpu: f64| cluster.master.submit(&job_with("sleep 1000", &[("resource.cpu", json!(cpu))])).job_id;
        let placed = |id: u64| cluster.master.wait_status(id, "Running").node_id;
        assert_eq!(placed(hold(1.0)), 0);
        assert_eq!(placed(hold(1.5)), 1, "node 0 has the memory but not the CPU");
        let waits = hold(1.0);
        assert_eq!(placed(hold(0.5)), 1, "half a CPU is left");
        assert_eq!(cluster.master.job(waits).status, "Pending[ ]");
        cluster.master.kill(waits).expect(200);
    });
}

#[test]
fn errors_are_typed_for_programs_and_sentences_for_people() {
    Cluster::small(|cluster| {
        let missing = |accept: &str| cluster.master.send(Request::get("/job/details/4711").accept(accept)).expect(404);
        let error = missing("application/json").json()["error"].clone();
        assert_eq!(error["code"], "not_found");
        assert!(error["message"].as_str().is_some_and(|message| message.contains("4711")), "{error}");
        let text = missing("text/plain").text();
        assert!(text.contains("4711") && !text.contains('<') && !text.contains('{'), "{text}");
        assert!(missing("text/html").text().contains("<html"), "a browser gets a page");
        let wrong_method =
            cluster.master.send(Request::new("DELETE", "/job/create").accept("application/json")).expect(405);
        assert_eq!(wrong_method.json()["error"]["code"], "method_not_allowed");
        cluster.master.send(Request::get("/no/such/page").accept("application/json")).expect(404);
    });
}

#[test]
fn pages_forbid_scripts_and_frames_by_policy() {
    Cluster::small(|cluster| {
        for path in ["/", "/job/table", "/node/table"] {
            let page = cluster.master.send(Request::get(path).browser()).expect(200);
            let policy = page.header("content-security-policy").unwrap_or_default();
            assert!(policy.contains("default-src"), "{path}: {page:?}");
            assert!(!policy.contains("unsafe-inline") || !policy.contains("script-src"), "{policy}");
            assert_eq!(page.header("x-content-type-options"), Some("nosniff"), "{path}: {page:?}");
            assert!(!page.text().contains("<script"), "{path} needs no JavaScript");
        }
    });
}

#[test]
fn head_is_answered_like_get_without_a_body() {
    Cluster::small(|cluster| {
        let mut connection = tests::http::Connection::open(cluster.master.addr()).expect("connect");
        let request = format!("HEAD / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", cluster.master.addr());
        connection.send(request.as_bytes()).expect("send");
        let answer = String::from_utf8_lossy(&connection.rest().expect("an answer")).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.1 405"), "{head}");
        assert!(head.contains("405") || body.is_empty(), "{body}");
    });
}

#[test]
fn a_master_without_nodes_keeps_jobs_pending_and_says_so() {
    Plan::without_nodes().run(|cluster| {
        let waiting = cluster.master.submit(&job("true"));
        assert_eq!(waiting.status, "Pending[ ]");
        let why = cluster.master.why(waiting.job_id);
        assert!(why.contains("node"), "no word of why it waits: {why:?}");
        cluster.master.kill(waiting.job_id).expect(200);
        assert_eq!(cluster.master.job(waiting.job_id).status, "Killed");
    });
}
