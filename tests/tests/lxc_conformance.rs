//! The config of a running container, given to stock LXC, makes the same container: for every shape of a job.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::conformance::differences::{EXCUSES, Machines, Runtime, differences, excuse};
use tests::conformance::lxc::{Lxc, is_installed, open_log};
use tests::conformance::sight::{Host, Sight};
use tests::conformance::table::{Row, gaps, page};
use tests::conformance::{LAST, host, make_image};
use tests::daemon::binary;
use tests::job::job_with;
use tests::node::{Node, SUPERVISOR, supervisor};
use tests::sandbox::Sandbox;
use tests::wait::{until, until_none};

/// Says what it sees, and stays, so that its config and its writable layer stay too.
const COMMAND: &str = "probe; exec sleep 73001";

/// How a container is asked for.
enum Shape {
    /// As a job, with these fields.
    Job(Vec<(&'static str, Value)>),
    /// By `berth-supervisor run` with these flags.
    Foreground(&'static [&'static str]),
}

/// Every shape of a job, by its name in the docs.
fn shapes(packages: &Path) -> Vec<(&'static str, Shape)> {
    let package = |names: &[&str]| {
        let paths: Vec<String> = names.iter().map(|name| packages.join(name).display().to_string()).collect();
        json!(paths.join(";"))
    };
    let job = |fields: &[(&'static str, Value)]| Shape::Job(fields.to_vec());
    vec![
        ("a plain job", job(&[])),
        ("CPUs pinned, \"0,1\"", job(&[("resource.cpu", json!("0,1"))])),
        ("half a CPU, 0.5", job(&[("resource.cpu", json!(0.5))])),
        ("little memory, 16 MiB", job(&[("resource.mem", json!(16))])),
        ("a time-out", job(&[("timeout", json!(600_000))])),
        ("a folder as package", job(&[("packagePath", package(&["one"]))])),
        ("two folders and a file as packages", job(&[("packagePath", package(&["one", "two", "file"]))])),
        ("a file as package", job(&[("packagePath", package(&["file"]))])),
        ("another image, of two layers", job(&[("imageId", json!("layered"))])),
        ("an image with its own config", job(&[("imageId", json!("configured"))])),
        ("berth-supervisor run", Shape::Foreground(&["--cpu", "1", "--mem", "64"])),
        ("berth-supervisor run --net host", Shape::Foreground(&["--cpu", "1", "--mem", "64", "--net", "host"])),
    ]
}

/// What the image with a config of its own brings: some of everything that is taken, by old and new names.
const IMAGE_CONFIG: &str = "lxc.tty = 4\nlxc.pts = 1024\nlxc.kmsg = 0\nlxc.autodev = 1\n\
    lxc.mount.entry = proc proc proc nodev,noexec,nosuid 0 0\n\
    lxc.environment = LANG=C.UTF-8\nlxc.environment = PATH=/bin\nlxc.cap.drop = setpcap sys_chroot\n\
    lxc.prlimit.nofile = 256:512\nlxc.limit.stack = 4194304\n\
    lxc.mount.entry = tmpfs run/lock tmpfs size=1m,mode=755,create=dir 0 0\n";

/// A container that runs, by berth: what was seen in it, and what LXC needs to make it again.
struct Seen {
    sight: Sight,
    config: PathBuf,
    kept: PathBuf,
    container: PathBuf,
}

struct Bench<'a> {
    node: &'a Node,
    host: Host,
    /// The sandbox's, and its name, which all that this test makes carries.
    folder: PathBuf,
    name: String,
}

impl Bench<'_> {
    fn state_dir(&self) -> String {
        self.node.state_dir().display().to_string()
    }

    fn add_images(&self) {
        let base = self.folder.join("probe-rootfs");
        make_image(&base);
        self.add_image("probe", &base);
        for (name, config) in [("layered", None), ("configured", Some(IMAGE_CONFIG))] {
            let image = self.folder.join(name);
            fs::create_dir_all(image.join("files/etc")).expect("make a layer");
            fs::write(image.join("layers"), "./files\nprobe\n").expect("write layers");
            fs::write(image.join("files/etc/layer"), name).expect("write a file of the layer");
            if let Some(config) = config {
                fs::write(image.join("config"), config).expect("write the image's config");
            }
            self.add_image(name, &image);
        }
    }

    fn add_image(&self, name: &str, source: &Path) {
        let source = source.display().to_string();
        let added = supervisor(&["image", "add", name, &source, "--state-dir", &self.state_dir()]);
        assert!(added.status.success(), "image add: {}", String::from_utf8_lossy(&added.stderr));
    }

    fn make_packages(&self) {
        for (file, text) in [("one/a", "1"), ("one/sub/b", "2"), ("two/a", "hidden"), ("two/c", "3"), ("file", "4")] {
            let path = self.node.packages().join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("make a package");
            fs::write(path, text).expect("write a package");
        }
    }

    /// The container by berth.
    fn see(&self, number: usize, shape: &Shape) -> Seen {
        let kept = self.folder.join(format!("kept{number}"));
        fs::create_dir(&kept).expect("make a folder for what is kept");
        match shape {
            Shape::Job(fields) => self.see_job(fields, kept),
            Shape::Foreground(flags) => self.see_foreground(flags, kept),
        }
    }

    fn see_job(&self, fields: &[(&'static str, Value)], kept: PathBuf) -> Seen {
        let usual = [("imageId", json!("probe"))];
        let task = self.node.create(&job_with(COMMAND, &[&usual, fields].concat()));
        let said = until("the probe to have spoken", || {
            let said = self.node.stream(task, "task_stdout");
            let more =
                || format!("{said}{}{}", self.node.stream(task, "task_stderr"), self.node.stream(task, "monitor_out"));
            if said.ends_with(LAST) { Ok(said) } else { Err(more()) }
        });
        let seen = self.keep(&format!("t{task}-cont"), &said, kept);
        self.node.kill(task);
        self.node.wait_final(task);
        until_none("the container to be swept", || self.node.container_folders());
        seen
    }

    fn see_foreground(&self, flags: &[&str], kept: PathBuf) -> Seen {
        let stdout = kept.join("task_stdout");
        let mut run = Command::new(binary(SUPERVISOR));
        run.args(["run", "--image", "probe", "--state-dir", &self.state_dir(), "--cgroup-root"]);
        run.arg(format!("{}-run", self.name)).args(flags).args(["--", COMMAND]);
        run.stdin(Stdio::null()).stdout(open_log(&stdout)).stderr(open_log(&kept.join("task_stderr")));
        let mut child = EndedByDrop(run.spawn().expect("start berth-supervisor run"));
        let said = until("the probe to have spoken", || {
            let said = fs::read_to_string(&stdout).unwrap_or_default();
            if said.ends_with(LAST) { Ok(said) } else { Err(said) }
        });
        let seen = self.keep(&format!("run-{}-cont", child.0.id()), &said, kept);
        child.end();
        seen
    }

    /// Keeps the config and the writable layer of a container that runs.
    fn keep(&self, container: &str, said: &str, kept: PathBuf) -> Seen {
        let container = self.node.state_dir().join("cont").join(container);
        let config = kept.join("config");
        fs::copy(container.join("config"), &config).expect("keep the config");
        copy(&container.join("usrfile"), &kept.join("usrfile"));
        Seen { sight: Sight::read(said, &self.host), config, kept, container }
    }

    /// The same container by LXC, on a copy of the same writable layer at the same place.
    fn see_by_lxc(&self, seen: &Seen, runtime: Runtime) -> Sight {
        for folder in ["", "workspace-work"] {
            fs::create_dir(seen.container.join(folder)).expect("make the container's folder anew");
        }
        copy(&seen.kept.join("usrfile"), &seen.container.join("usrfile"));
        let folder = seen.kept.join(if runtime == Runtime::Start { "start" } else { "execute" });
        fs::create_dir(&folder).expect("make LXC's folder");
        let name = format!("{}-lxc", self.name);
        let lxc = Lxc {
            runtime,
            config: &seen.config,
            command: COMMAND,
            name: &name,
            folder: &folder,
            footprint: self.node.footprint(),
        };
        let said = lxc.hear(|said| said.ends_with(LAST));
        fs::remove_dir_all(&seen.container).expect("remove the container's folder");
        Sight::read(&said, &self.host)
    }
}

/// With owners, modes and the attributes that overlayfs keeps there.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).output().expect("run cp");
    assert!(copied.status.success(), "cp: {}", String::from_utf8_lossy(&copied.stderr));
}

/// A foreground run, which a test that fails does not leave behind.
struct EndedByDrop(Child);

impl EndedByDrop {
    fn end(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a pid");
        // ESRCH: it was faster.
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Drop for EndedByDrop {
    fn drop(&mut self) {
        self.end();
    }
}

/// All that was found, for every shape.
#[derive(Default)]
struct Findings {
    /// Differences that nothing excuses.
    wrong: Vec<String>,
    /// A row for each shape.
    rows: Vec<Row>,
    /// Attributes that differ, and the excuse they needed.
    excused: BTreeSet<(String, Runtime, usize)>,
}

impl Findings {
    /// Compares one shape by berth with the same by LXC.
    fn compare(&mut self, shape: &str, ours: &Sight, theirs: &[(Runtime, Sight)]) {
        let mut row = Row { shape: shape.to_owned(), excused: Vec::new() };
        for (runtime, theirs) in theirs {
            let mut needed = BTreeSet::new();
            for difference in differences(ours, theirs) {
                match excuse(&difference, *runtime) {
                    Some(number) => {
                        needed.insert(number);
                        self.excused.insert((difference.attribute, *runtime, number));
                    }
                    None => self.wrong.push(format!("{shape}, {runtime}: {difference}")),
                }
            }
            row.excused.push(needed);
        }
        self.rows.push(row);
    }

    /// The excuses that nothing needed, though this machine could have shown it.
    fn stale(&self, with_cgroup_v1: bool) -> Vec<String> {
        let here = |excuse: &Machines| *excuse == Machines::All || with_cgroup_v1;
        let unused = |runtime, number| !self.excused.iter().any(|(_, by, used)| *by == runtime && *used == number);
        let mut stale = Vec::new();
        for (number, excuse) in EXCUSES.iter().enumerate().filter(|(_, excuse)| here(&excuse.on)) {
            let unused = excuse.against.iter().filter(|runtime| unused(**runtime, number));
            stale.extend(unused.map(|runtime| format!("{:?} is excused and equal, {runtime}", excuse.attributes)));
        }
        stale
    }
}

/// Whether any controller is on a hierarchy of v1.
fn with_cgroup_v1() -> bool {
    let cgroups = fs::read_to_string("/proc/self/cgroup").expect("read /proc/self/cgroup");
    cgroups.lines().any(|line| !line.starts_with("0::"))
}

/// Compares docs/lxc.md with what was found, or writes it where that is asked for.
fn check_docs(page: &str) {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/lxc.md");
    if std::env::var_os("BERTH_WRITE_DOCS").is_some() {
        return fs::write(&docs, page).expect("write docs/lxc.md");
    }
    let there = fs::read_to_string(&docs).unwrap_or_default();
    assert_eq!(there, page, "docs/lxc.md is out of date; hint: BERTH_WRITE_DOCS=1 scripts/test lxc");
}

#[test]
fn an_image_whose_config_wants_more_than_it_may_is_not_added_and_the_key_is_named() {
    let sandbox = Sandbox::new();
    let (image, state_dir) = (sandbox.folder("image"), sandbox.folder("state").display().to_string());
    fs::create_dir_all(image.join("files/bin")).expect("make a layer");
    fs::copy("/bin/busybox", image.join("files/bin/sh")).expect("copy a shell");
    fs::write(image.join("layers"), "./files\n").expect("write layers");
    let add = |config: &str| {
        fs::write(image.join("config"), config).expect("write the image's config");
        let added = supervisor(&["image", "add", "hostile", &image.display().to_string(), "--state-dir", &state_dir]);
        (added.status.success(), String::from_utf8_lossy(&added.stderr).into_owned())
    };
    for (line, key) in [
        ("lxc.hook.pre-start = /files/x", "lxc.hook.pre-start"),
        ("lxc.mount.entry = /dev dev none bind 0 0", "lxc.mount.entry"),
        ("lxc.cgroup.devices.allow = a", "lxc.cgroup.devices.allow"),
        ("lxc.network.script.up = /files/x", "lxc.net.0.script.up"),
        ("lxc.include = /etc/shadow", "lxc.include"),
    ] {
        let (added, said) = add(&format!("lxc.tty = 1\n{line}\n"));
        assert!(!added && said.contains(key) && said.contains("line 2"), "{line}: {said}");
    }
    let (added, said) = add(IMAGE_CONFIG);
    assert!(added, "what may stand there is taken: {said}");
}

#[test]
fn stock_lxc_makes_of_every_config_the_container_that_berth_made() {
    if !is_installed() {
        return;
    }
    Node::alone(|node| {
        let folder = node.state_dir().parent().expect("the sandbox's folder").to_owned();
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let host = host(&name);
        let bench = Bench { node, host: host.clone(), folder: folder.clone(), name: name.clone() };
        bench.add_images();
        bench.make_packages();
        let shapes = shapes(node.packages());
        let seen: Vec<Seen> = shapes.iter().enumerate().map(|(number, (_, shape))| bench.see(number, shape)).collect();
        let gaps = gaps(&seen[0].sight);
        assert!(gaps.is_empty(), "the probe misses, or the table knows nothing of: {gaps:?}");
        // A node removes folders of containers that it knows nothing of, which LXC's are.
        node.daemon().stop();
        let bench = Bench { node, host, folder, name };
        let mut findings = Findings::default();
        for ((shape, _), seen) in shapes.iter().zip(&seen) {
            let theirs = Runtime::ALL.map(|runtime| (runtime, bench.see_by_lxc(seen, runtime)));
            findings.compare(shape, &seen.sight, &theirs);
        }
        assert!(findings.wrong.is_empty(), "{}", findings.wrong.join("\n"));
        let stale = findings.stale(with_cgroup_v1());
        assert!(stale.is_empty(), "{}", stale.join("\n"));
        let page = page(&findings.rows, &findings.excused, with_cgroup_v1());
        println!("{page}");
        check_docs(&page);
    });
}
