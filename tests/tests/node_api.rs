//! Every call a node answers, in the words of this master and of the original's.

use std::thread;

use serde_json::{Value, json};
use tests::http::{Request, Response};
use tests::job::{job, job_with};
use tests::node::{Node, NodePlan};
use tests::wait::until;

fn attempt(command: &str, job_id: u64, attempt: u32) -> Value {
    let master = json!("00112233445566778899aabbccddeeff");
    job_with(command, &[("jobId", json!(job_id)), ("attempt", json!(attempt)), ("master", master)])
}

#[test]
fn resource_says_what_is_free_and_what_there_is() {
    Node::alone(|node| {
        let resource = node.get("/resource");
        for (field, value) in
            [("cpu", 4), ("mem", 4096), ("cpuTotal", 4), ("memTotal", 4096), ("tasks", 0), ("nodeId", 0)]
        {
            assert_eq!(resource[field], value, "{field} in {resource:#}");
        }
        assert_eq!(resource["images"], json!(["busybox"]));
        for field in ["cpus", "instance", "bootId", "load", "packageRoots", "version", "kernel", "cgroups", "union"] {
            assert!(!resource[field].is_null(), "{field} in {resource:#}");
        }
    });
}

#[test]
fn a_running_task_takes_its_cpu_and_memory_off_what_is_free() {
    Node::alone(|node| {
        let task = node.create(&job_with("sleep 1000", &[("resource", json!({"cpu": 0.5, "mem": 96}))]));
        let resource = node.get("/resource");
        assert_eq!((&resource["cpu"], &resource["mem"], &resource["tasks"]), (&json!(3.5), &json!(4000), &json!(1)));
        node.kill(task);
        node.wait_final(task);
        until("what the task took to be free again", || {
            let resource = node.get("/resource");
            if resource["cpu"] == 4 && resource["mem"] == 4096 { Ok(()) } else { Err(resource) }
        });
    });
}

#[test]
fn info_tells_a_tasks_life() {
    Node::alone(|node| {
        let task = node.create(&attempt("echo out; exit 5", 7, 2));
        let info = node.wait_final(task);
        assert_eq!(info["containerId"], format!("t{task}-cont"));
        assert_eq!((&info["taskId"], &info["jobId"], &info["attempt"]), (&json!(task), &json!(7), &json!(2)));
        assert_eq!(
            (&info["status"], &info["reason"], &info["exitCode"]),
            (&json!("Failed"), &json!("exit code 5"), &json!(5))
        );
        assert_eq!(info["cause"], json!({"kind": "exitCode", "code": 5}));
        for field in ["startedAt", "endedAt", "cpuMs", "memoryPeakBytes", "event"] {
            assert!(!info[field].is_null(), "{field} in {info:#}");
        }
    });
}

#[test]
fn the_logs_are_on_the_share_under_the_nodes_and_the_tasks_number() {
    Node::alone(|node| {
        let task = node.create(&job("echo out; echo err >&2"));
        node.wait_final(task);
        assert_eq!(node.stream(task, "task_stdout"), "out\n");
        assert_eq!(node.stream(task, "task_stderr"), "err\n");
        assert!(node.stream(task, "monitor_out").lines().count() > 1, "the monitor writes a line a step");
    });
}

#[test]
fn the_originals_master_can_create_kill_and_ask() {
    Node::alone(|node| {
        let original = job_with(
            "sleep 1000",
            &[("jobId", json!(0)), ("status", json!("Pending[A]")), ("nodeId", json!(0)), ("taskId", json!(-1))],
        );
        let first = node.create(&original);
        let second = node.create(&original);
        assert_ne!(first, second, "a create without an attempt starts a new task each time");
        let ask = Request::get("/task/info").json(&json!({"taskId": first}));
        let answer = node.send(ask).expect(200).json();
        assert_eq!((&answer["code"], &answer["data"]["containerId"]), (&json!(0), &json!(format!("t{first}-cont"))));
        for task in [first, second] {
            assert_eq!(node.kill(task)["code"], 0);
            assert_eq!(node.wait_final(task)["status"], "Killed");
        }
    });
}

#[test]
fn asking_twice_for_one_attempt_starts_it_once() {
    Node::alone(|node| {
        let first = node.create(&attempt("echo ran", 1, 1));
        assert_eq!(node.create(&attempt("echo ran", 1, 1)), first);
        node.wait_final(first);
        assert_eq!(node.create(&attempt("echo ran", 1, 1)), first, "asked after its end");
        assert_ne!(node.create(&attempt("echo ran", 1, 2)), first, "another attempt is another task");
        assert_eq!(node.stream(first, "task_stdout"), "ran\n");
    });
}

#[test]
fn a_create_of_before_the_last_boot_of_the_machine_is_stale_and_starts_nothing() {
    Node::alone(|node| {
        let resource = node.get("/resource");
        assert!(resource["uptimeMs"].as_u64().is_some_and(|uptime| uptime > 0), "{resource:#}");
        let job = attempt("echo ran", 1, 1);
        let refused = Request::post("/task/create?boot=another").json(&job).send(node.addr()).expect(409).json();
        assert_eq!(refused["error"]["code"], "stale", "{refused:#}");
        let listed = node.post("/task/create?boot=another", &json!([job]));
        assert_eq!(listed[0]["error"]["code"], "stale", "{listed:#}");
        let boot = resource["bootId"].as_str().expect("a boot id");
        let created = node.post(&format!("/task/create?boot={boot}"), &job);
        assert_eq!(created["data"]["taskId"], 1, "{created:#}");
    });
}

#[test]
fn two_masters_may_both_have_a_job_1() {
    Node::alone(|node| {
        let mine = attempt("true", 1, 1);
        let mut theirs = mine.clone();
        theirs["master"] = json!("ffffffffffffffffffffffffffffffff");
        assert_ne!(node.create(&mine), node.create(&theirs));
    });
}

#[test]
fn a_list_is_created_and_answered_as_a_list() {
    Node::alone(|node| {
        let answer = node.post("/task/create", &json!([attempt("true", 1, 1), {"name": "bad"}, attempt("true", 2, 1)]));
        let answers = answer.as_array().unwrap_or_else(|| panic!("not a list: {answer:#}"));
        let codes: Vec<_> = answers.iter().map(|answer| answer["code"].clone()).collect();
        assert_eq!(codes, [json!(0), json!(1), json!(0)], "{answer:#}");
        assert_ne!(answers[0]["data"]["taskId"], answers[2]["data"]["taskId"]);
        for good in [&answers[0], &answers[2]] {
            node.wait_final(good["data"]["taskId"].as_u64().expect("taskId"));
        }
    });
}

#[test]
fn what_does_not_fit_now_is_refused_with_code_1() {
    Node::alone_as(&NodePlan::default().cpu(1), |node| {
        let task = node.create(&job("sleep 1000"));
        let refused = node.post("/task/create", &job("true"));
        assert_eq!((&refused["code"], &refused["error"]["code"]), (&json!(1), &json!("no_room")), "{refused:#}");
        node.kill(task);
        node.wait_final(task);
        until("room for another", || {
            let answer = node.post("/task/create", &job("true"));
            if answer["code"] == 0 { Ok(()) } else { Err(answer) }
        });
    });
}

#[test]
fn what_can_never_fit_is_refused_with_the_field() {
    Node::alone(|node| {
        let cases = [
            ("resource.mem", json!(1 << 20)),
            ("resource.cpu", json!(64)),
            ("resource.cpu", json!("4000")),
            ("imageId", json!("nowhere")),
            ("packagePath", json!("/etc")),
        ];
        for (field, value) in cases {
            let refused = node.post("/task/create", &job_with("true", &[(field, value)]));
            assert_eq!((&refused["code"], &refused["error"]["field"]), (&json!(1), &json!(field)), "{refused:#}");
        }
        assert_eq!(node.get("/resource")["tasks"], 0);
    });
}

#[test]
fn killing_is_idempotent_and_an_unknown_task_is_refused() {
    Node::alone(|node| {
        let task = node.create(&job("sleep 1000"));
        assert_eq!(node.kill(task), json!({"code": 0}));
        assert_eq!(node.kill(task)["code"], 0);
        assert_eq!(node.wait_final(task)["status"], "Killed");
        assert_eq!(node.kill(task)["code"], 0, "killing what has ended");
        assert_eq!(node.info(task)["status"], "Killed");
        let refused = node.kill(task + 1000);
        assert_eq!((&refused["code"], &refused["error"]["code"]), (&json!(1), &json!("not_found")), "{refused:#}");
    });
}

#[test]
fn events_tell_every_change_with_rising_numbers_and_the_free_resources() {
    Node::alone(|node| {
        let before = node.events(0, 0);
        assert_eq!(before["events"], json!([]));
        let task = node.create(&job("true"));
        node.wait_final(task);
        let after = node.events(before["last"].as_u64().expect("last"), 0);
        assert_eq!(after["events"][0]["taskId"], task);
        assert_eq!(after["events"][0]["status"], "Finished");
        assert!(after["last"].as_u64() > before["last"].as_u64(), "{after:#}");
        assert_eq!(after["resource"]["memTotal"], 4096);
    });
}

#[test]
fn a_long_poll_wakes_on_the_first_change() {
    Node::alone(|node| {
        let last = node.events(0, 0)["last"].as_u64().expect("last");
        let addr = node.addr();
        let poll = thread::spawn(move || {
            let poll = Request::get(&format!("/task/events?after={last}&wait_ms=60000"));
            poll.send(addr).expect(200).json()
        });
        let task = node.create(&job("sleep 1000"));
        let woken = poll.join().expect("the poll is answered");
        assert_eq!(woken["data"]["events"][0]["taskId"], task, "{woken:#}");
    });
}

#[test]
fn a_long_poll_without_news_is_answered_empty_when_its_time_is_up() {
    Node::alone(|node| {
        let quiet = node.events(node.events(0, 0)["last"].as_u64().expect("last"), 50);
        assert_eq!(quiet["events"], json!([]));
        assert_eq!(quiet["resource"]["nodeId"], 0);
    });
}

#[test]
fn many_long_polls_are_all_woken() {
    Node::alone(|node| {
        let last = node.events(0, 0)["last"].as_u64().expect("last");
        let addr = node.addr();
        let poll =
            move || Request::get(&format!("/task/events?after={last}&wait_ms=60000")).send(addr).expect(200).json();
        let polls: Vec<_> = (0..20).map(|_| thread::spawn(poll)).collect();
        let task = node.create(&job("sleep 1000"));
        for poll in polls {
            assert_eq!(poll.join().expect("the poll is answered")["data"]["events"][0]["taskId"], task);
        }
    });
}

#[test]
fn an_acknowledged_end_is_forgotten_and_an_unacknowledged_one_is_not() {
    Node::alone(|node| {
        let task = node.create(&job("true"));
        node.wait_final(task);
        let told = node.events(0, 0);
        assert_eq!(told["events"].as_array().map(Vec::len), Some(1), "{told:#}");
        assert_eq!(node.events(0, 0)["events"].as_array().map(Vec::len), Some(1), "told, but not acknowledged");
        let last = told["last"].as_u64().expect("last");
        until("the acknowledged task to be forgotten", || {
            node.events(last, 0);
            let answer = node.send(Request::get(&format!("/task/info?taskId={task}"))).json();
            if answer["error"]["code"] == "not_found" { Ok(()) } else { Err(answer) }
        });
        assert_eq!(node.events(0, 0)["events"], json!([]));
        assert!(node.create(&job("true")) > task, "a task's number is never used again");
    });
}

fn output(node: &Node, task: u64, stream: &str, offset: u64) -> Response {
    node.send(Request::get(&format!("/task/output?taskId={task}&stream={stream}&offset={offset}")))
}

#[test]
fn output_gives_the_bytes_from_the_offset_on() {
    Node::alone(|node| {
        let task = node.create(&job("printf 0123456789; printf err >&2"));
        node.wait_final(task);
        assert_eq!(output(node, task, "stdout", 0).expect(200).text(), "0123456789");
        assert_eq!(output(node, task, "stdout", 7).expect(200).text(), "789");
        assert_eq!(output(node, task, "stdout", 10).expect(200).text(), "");
        assert_eq!(output(node, task, "stdout", 1000).expect(200).text(), "");
        assert_eq!(output(node, task, "stderr", 1).expect(200).text(), "rr");
        let whole = node.send(Request::get(&format!("/task/output?taskId={task}&stream=stdout"))).expect(200);
        assert_eq!(whole.text(), "0123456789", "offset is 0 unless told");
    });
}

#[test]
fn output_of_any_bytes_and_of_megabytes_comes_whole() {
    Node::alone(|node| {
        let task = node.create(&job("printf '\\000\\377\\n'; yes | head -c 5000000"));
        node.wait_final(task);
        let bytes = until("all of the output to be read", || {
            let mut bytes = Vec::new();
            loop {
                let part = output(node, task, "stdout", bytes.len() as u64).expect(200).body;
                if part.is_empty() {
                    break;
                }
                bytes.extend(part);
            }
            if bytes.len() == 5_000_003 { Ok(bytes) } else { Err(bytes.len()) }
        });
        assert_eq!(bytes[..5], *b"\0\xff\ny\n");
    });
}

#[test]
fn output_of_a_running_task_can_be_read_while_it_runs() {
    Node::alone(|node| {
        let task = node.create(&job("echo so far; sleep 1000"));
        node.wait_status(task, "Running");
        until("the first line", || {
            let text = output(node, task, "stdout", 0).expect(200).text();
            if text == "so far\n" { Ok(()) } else { Err(text) }
        });
        assert_eq!(node.info(task)["status"], "Running");
    });
}

#[test]
fn output_of_nothing_is_refused_with_the_field() {
    Node::alone(|node| {
        let task = node.create(&job("true"));
        node.wait_final(task);
        assert_eq!(output(node, task + 1000, "stdout", 0).status, 404);
        let wrong = output(node, task, "../../../etc/passwd", 0).expect(400);
        assert_eq!(wrong.refused_field(), "stream");
    });
}

#[test]
fn task_numbers_count_on_over_a_restart() {
    Node::alone(|node| {
        let before = node.create(&job("true"));
        node.wait_final(before);
        node.daemon().stop();
        node.restart();
        assert!(node.create(&job("true")) > before);
    });
}
