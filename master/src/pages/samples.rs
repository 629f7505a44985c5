//! Views to draw in tests, ugly ones too; and a test that writes the pages to a folder, to be looked at.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use maud::Markup;
use wire::node::{NodeResource, Refusal, RefusalCode};
use wire::{
    Attempt, BootId, CpuAmount, ImageId, InstanceId, JobId, JobSpec, NodeId, OnNodeLoss, Reason, Resource, State,
    TaskId,
};

use super::view::{
    BatchForm, ConfirmKill, CreateFields, CreateForm, Details, ErrorPage, Home, JobQuery, JobTable, LocalPath, LogTail,
    Login, NodeTable,
};
use crate::job::{Job, Node, NodeState, Placed};

pub(super) const SCRIPT: &str = "<script>alert(1)</script>";

pub(super) fn now() -> Timestamp {
    "2026-11-22T09:19:03Z".parse().unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - SignedDuration::from_secs(seconds)
}

fn image(name: &str) -> ImageId {
    name.parse().unwrap()
}

pub(super) fn job(id: u64, status: State) -> Job {
    let placed = (status != State::Pending).then_some(Placed { node: NodeId(0), task: Some(TaskId(id + 3)) });
    let started = !matches!(status, State::Pending | State::Assigned);
    Job {
        id: JobId(id),
        spec: JobSpec {
            name: format!("train-{id}"),
            resource: Resource { cpu: "x2".parse().unwrap(), mem: 512 },
            command_line: "python3 train.py --epochs 40 --out /workspace/out".to_owned(),
            package_path: "/srv/packages/resnet;/srv/data/cifar10".to_owned(),
            image_id: image("busybox"),
            timeout: 600_000,
            on_node_loss: OnNodeLoss::Wait,
        },
        status,
        cause: (status == State::Failed).then_some(Reason::ExitCode { code: 3 }),
        exit_code: match status {
            State::Finished => Some(0),
            State::Failed => Some(3),
            _ => None,
        },
        placed,
        attempt: Attempt(u32::from(placed.is_some())),
        lease: None,
        lost_attempts: 0,
        submitted_at: ago(400),
        started_at: started.then(|| ago(310)),
        ended_at: status.is_final().then(|| ago(125)),
        cpu_ms: status.is_final().then_some(321_400),
        memory_peak_bytes: status.is_final().then_some(431 << 20),
    }
}

/// Fifty jobs in every state, with names that fight back.
pub(super) fn ugly_jobs() -> Vec<Job> {
    let names = [
        "train-resnet50-lr0.01",
        SCRIPT,
        "a\u{202e}gnp.exe",
        "\x1b[31mred\x1b[0m alert\r\n",
        "no",
        "averyveryveryverylongnamewithoutanyblanksthatgoesonandonuntilitreachesthelimitof256bytes",
        "zalgo h\u{336}\u{341}\u{30d}e\u{334}\u{30f}\u{357}l\u{337}\u{300}\u{306}p\u{335}\u{35c}\u{310}",
        "字幕を生成するジョブ 第三回",
        "שלום עולם (rtl)",
        "zero\u{200b}width",
        "sweep α=0.1 β=0.9",
        "\"quoted\" & 'single' <b>",
    ];
    let causes = [
        Reason::ExitCode { code: 3 },
        Reason::OutOfMemory { peak_mib: 64, limit_mib: 64 },
        Reason::Signal { signal: 11 },
        Reason::LaunchFailed { step: "mount overlay on /var/lib/berth/cont/t2117-cont".into(), cause: "EINVAL".into() },
        Reason::NodeLost { attempts: 1 },
        Reason::Refused { message: format!("package {SCRIPT} is not below any package root of this node") },
    ];
    (0..50usize)
        .map(|nth| {
            let id = 104_230 - nth as u64;
            let mut job = job(id, State::ALL[(nth * 5 + nth / 7) % 7]);
            job.spec.name = names[nth % names.len()].to_owned();
            job.spec.resource.cpu = ["x1", "0-3", "x0.25", "0,2,4,6,8,10,12-17", "x16"][nth % 5].parse().unwrap();
            job.spec.resource.mem = [64, 512, 4096, 65_536, 131_072][nth % 5];
            job.cause = job.cause.map(|_| causes[nth % causes.len()].clone());
            job.submitted_at = ago(3 + (nth * nth * nth) as i64 * 4);
            job.started_at = job.started_at.map(|_| job.submitted_at + SignedDuration::from_millis(40));
            job.ended_at =
                job.ended_at.map(|_| job.submitted_at + SignedDuration::from_millis((nth * nth * 777) as i64));
            job.placed = job.placed.map(|placed| Placed { node: NodeId((nth % 3) as u32), ..placed });
            job
        })
        .collect()
}

pub(super) fn resource(node: u32, images: &[&str]) -> NodeResource {
    NodeResource {
        cpu: CpuAmount::from_milli(3500),
        mem: 9_000,
        cpu_total: CpuAmount::whole(16),
        mem_total: 64_307,
        cpus: "0-15".parse().unwrap(),
        node_id: NodeId(node),
        instance: InstanceId("0123456789abcdef0123456789abcdef".to_owned()),
        boot_id: BootId("5f0c2a3e-0000-4000-8000-000000000000".to_owned()),
        uptime_ms: None,
        tasks: 11,
        load: [12.41, 11.03, 7.9],
        images: images.iter().map(|name| image(name)).collect(),
        package_roots: vec!["/srv/packages".to_owned()],
        version: "0.1.0".to_owned(),
        kernel: "6.18.5-amd64".to_owned(),
        cgroups: "hybrid".to_owned(),
        union: "overlay".to_owned(),
        leaks: 0,
        stamp: None,
        closed: None,
    }
}

pub(super) fn nodes() -> NodeTable {
    let why = "connect to 10.0.0.13:5000: connection refused".to_owned();
    let busy = NodeResource { cpu: CpuAmount::ZERO, mem: 307, leaks: 3, ..resource(1, &["busybox"]) };
    let images = ["busybox", "debian-12.5", "cuda-12.4", "python-3.13", "r-4.4", "alpine"];
    let node = |id, state, resource| Node {
        id: NodeId(id),
        addr: format!("10.0.0.1{id}:5000"),
        state,
        resource,
        notes: Vec::new(),
    };
    NodeTable {
        nodes: vec![
            node(0, NodeState::Ready, Some(resource(0, &images))),
            node(1, NodeState::Ready, Some(busy)),
            node(2, NodeState::Lost { since: ago(190), why }, Some(resource(2, &["busybox", "debian-12.5"]))),
            node(3, NodeState::Unknown, None),
        ],
        now: now(),
    }
}

pub(super) fn table(jobs: Vec<Job>, query: JobQuery) -> JobTable {
    let counts: BTreeMap<State, u64> = State::ALL.into_iter().zip([38, 4, 27, 103_902, 12, 219, 28]).collect();
    JobTable { query, jobs, counts: Some(counts), older: None, now: now() }
}

pub(super) fn empty_table(query: JobQuery) -> JobTable {
    JobTable { counts: Some(BTreeMap::new()), ..table(Vec::new(), query) }
}

pub(super) fn home() -> Home {
    Home {
        jobs: JobTable { older: Some(JobId(104_181)), ..table(ugly_jobs(), JobQuery::default()) },
        nodes: nodes(),
        create: CreateForm::default(),
        batch: BatchForm::default(),
    }
}

pub(super) fn empty_home() -> Home {
    Home {
        jobs: empty_table(JobQuery::default()),
        nodes: NodeTable { nodes: Vec::new(), now: now() },
        create: CreateForm::default(),
        batch: BatchForm::default(),
    }
}

pub(super) fn refusal(field: &str, message: &str) -> Refusal {
    Refusal { code: RefusalCode::BadInput, message: message.to_owned(), field: Some(field.to_owned()) }
}

pub(super) fn refused_home(field: &str, message: &str) -> Home {
    let typed = CreateFields {
        name: SCRIPT.to_owned(),
        cpu: "x2".to_owned(),
        mem: "lots".to_owned(),
        cmdline: "\necho \"</textarea>\"\nsleep 5".to_owned(),
        pkgpath: "/srv/data".to_owned(),
        imgid: "no-such-image".to_owned(),
        timeout: "5000".to_owned(),
        onnodeloss: "retry".to_owned(),
    };
    Home { create: CreateForm { typed, error: Some(refusal(field, message)) }, ..home() }
}

pub(super) fn tail(bytes: &[u8], total_bytes: u64) -> LogTail {
    LogTail::Tail { bytes: bytes.to_vec(), total_bytes }
}

pub(super) fn details(job: Job) -> Details {
    let log = |text: &str| tail(text.as_bytes(), text.len() as u64);
    Details {
        job,
        waits: None,
        stuck: None,
        kill_asked: false,
        monitor: log(
            "09:13:53.102 task 104233 of job 104230, attempt 1\n09:13:53.103 cgroups: memory 512 MiB, cpu 2, pids 512\n\
             09:13:53.104 rootfs: overlay on busybox\n09:13:53.105 packages: /srv/packages/resnet, /srv/data/cifar10\n\
             09:13:53.106 running: /bin/sh -c\n",
        ),
        stdout: log(
            "epoch 1/40 loss=2.3012 acc=0.11\nepoch 2/40 loss=1.9244 acc=0.29\nepoch 3/40 loss=1.6120 acc=0.41\n",
        ),
        stderr: log(""),
        now: now(),
        live: true,
    }
}

pub(super) fn hostile_details() -> Details {
    let mut job = job(104_229, State::Failed);
    job.spec.name = format!("{SCRIPT} \u{202e}evil\x1b[2J");
    job.spec.command_line = format!(
        "\nset -e\ncat <<'EOF' | grep -v \"&amp;\"\n\t{SCRIPT}\nEOF\nprintf '\\033[31m'; : \u{200b}\u{a0}; {}",
        "x".repeat(3000)
    );
    job.cause = Some(Reason::LaunchFailed { step: format!("resolve {SCRIPT}"), cause: "ENOENT".into() });
    let mut stdout =
        b"\x1b[1;32m[ OK ]\x1b[0m started\r\n  0%\r 50%\r100%\r\n\0\0\0\x07 bell \xff\xfe broken \xed\xa0\x80\n"
            .to_vec();
    stdout.extend_from_slice("tab\tone\tcol\n</pre><h1>gotcha</h1>\nbidi \u{202e}abc\u{202c} end\n".as_bytes());
    stdout.extend(std::iter::repeat_n(b'A', 30_000));
    stdout.extend_from_slice(b"\nthe last line\n");
    let mut stderr = Vec::new();
    for nth in 0..400u32 {
        stderr.extend_from_slice(format!("warning {nth}: value out of range\n").as_bytes());
    }
    Details {
        stdout: tail(&stdout, 48_000_000_000),
        stderr: tail(&stderr, stderr.len() as u64),
        monitor: LogTail::Unavailable("read /mnt/share/nodes/0/task7/monitor_out: timed out after 2 s".to_owned()),
        ..details(job)
    }
}

#[test]
fn the_pages_can_be_written_out_and_looked_at() {
    let Some(out) = std::env::var_os("BERTH_PAGES_OUT") else { return };
    let out = std::path::PathBuf::from(out);
    let search = JobQuery { q: format!("{SCRIPT} \u{202e}"), status: Some(State::Running), ..JobQuery::default() };
    let waiting = Details {
        waits: Some("needs 128 CPUs; the largest node has 16".to_owned()),
        stuck: None,
        stdout: LogTail::NotYet,
        stderr: LogTail::NotYet,
        monitor: LogTail::NotYet,
        ..details(job(104_230, State::Pending))
    };
    let kill = |status| ConfirmKill { job: job(7, status), back: LocalPath::default(), now: now() };
    let failed =
        JobQuery { status: Some(State::Failed), after: Some(JobId(110_000)), live: true, ..JobQuery::default() };
    let wrong_list = BatchForm { typed: "[{}]".to_owned(), error: Some(refusal("[0].name", "is missing")) };
    let gone = ErrorPage {
        status: 404,
        refusal: Refusal::new(RefusalCode::NotFound, "there is no job 12"),
        back: LocalPath::or_home("/job/table"),
    };
    let pages: [(&str, Markup); 17] = [
        ("home", super::home(&home())),
        ("home-empty", super::home(&empty_home())),
        ("home-refused", super::home(&refused_home("resource.mem", "\"lots\" is not a whole number of MiB"))),
        ("home-refused-list", super::home(&Home { batch: wrong_list, ..home() })),
        ("jobs", super::job_table(&table(ugly_jobs(), failed))),
        ("jobs-none", super::job_table(&empty_table(search))),
        ("nodes", super::node_table(&nodes())),
        ("nodes-none", super::node_table(&NodeTable { nodes: Vec::new(), now: now() })),
        ("details-running", super::details(&details(job(104_230, State::Running)))),
        ("details-finished", super::details(&details(job(104_230, State::Finished)))),
        ("details-waiting", super::details(&waiting)),
        ("details-hostile", super::details(&hostile_details())),
        ("kill", super::confirm_kill(&kill(State::Running))),
        ("kill-ended", super::confirm_kill(&kill(State::Finished))),
        ("login", super::login(&Login::default())),
        ("login-wrong", super::login(&Login { error: Some("That is not the token.".to_owned()), ..Login::default() })),
        ("error", super::error(&gone)),
    ];
    for (name, page) in pages {
        std::fs::write(out.join(format!("{name}.html")), page.into_string()).unwrap();
    }
    std::fs::write(out.join("style.css"), super::STYLE).unwrap();
    std::fs::write(out.join("icon.svg"), super::ICON).unwrap();
}
