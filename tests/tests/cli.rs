//! What the binaries do on the command line: `run`, `doctor`, `image`, and flags that are wrong.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use tests::daemon::{binary, free_addr, run_to_end};
use tests::leaks::{Footprint, Process};
use tests::master::MASTER;
use tests::node::{Node, SUPERVISOR, add_busybox};
use tests::sandbox::{Sandbox, is_root};
use tests::wait::until;

/// A state dir with the busybox image, on which the command line works without a daemon.
struct Bench {
    sandbox: Sandbox,
    state_dir: PathBuf,
}

impl Bench {
    /// Runs a test, then the leak check.
    fn with(test: impl FnOnce(&Bench)) {
        if !is_root() {
            return;
        }
        let sandbox = Sandbox::new();
        let state_dir = sandbox.folder("state");
        let bench = Bench { sandbox, state_dir };
        add_busybox(&bench.sandbox, &bench.state_dir);
        test(&bench);
        Footprint::of(&bench.sandbox).wait_until_gone();
    }

    fn command(&self, subcommand: &[&str]) -> Command {
        let mut command = Command::new(binary(SUPERVISOR));
        command.args(subcommand).arg("--state-dir").arg(&self.state_dir);
        command
    }

    /// `berth-supervisor run` with these flags.
    fn run_command(&self, flags: &[&str], command_line: &str) -> Command {
        let mut command = self.command(&["run", "--image", "busybox"]);
        command.args(["--cgroup-root", &format!("{}-run", self.sandbox.name())]);
        command.arg("--package-root").arg(self.sandbox.folder("packages"));
        command.args(flags).arg("--").arg(command_line).stdin(Stdio::null());
        command
    }

    fn run(&self, flags: &[&str], command_line: &str) -> Output {
        run_to_end(&mut self.run_command(flags, command_line))
    }

    fn image(&self, args: &[&str]) -> Output {
        run_to_end(&mut self.command(&[&["image"], args].concat()))
    }

    fn image_file(&self, id: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.state_dir.join("img").join(id).join(file)).ok()
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn run_passes_the_exit_status_on() {
    Bench::with(|bench| {
        for code in [0, 1, 7, 255] {
            let output = bench.run(&[], &format!("exit {code}"));
            assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        }
        let signalled = bench.run(&[], "kill -KILL $$");
        assert_eq!(signalled.status.code(), Some(128 + 9), "{}", stderr(&signalled));
    });
}

#[test]
fn run_inherits_stdin_stdout_and_stderr() {
    Bench::with(|bench| {
        let mut command = bench.run_command(&[], "cat; echo to stderr >&2");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
        child.stdin.take().expect("stdin").write_all(b"through the container").expect("write");
        let output = child.wait_with_output().expect("wait");
        assert_eq!(stdout(&output), "through the container");
        assert!(stderr(&output).contains("to stderr"), "{}", stderr(&output));
    });
}

#[test]
fn run_applies_limits_and_packages() {
    Bench::with(|bench| {
        let file = bench.sandbox.folder("packages").join("data");
        fs::write(&file, "packed").expect("write");
        let path = file.to_str().expect("UTF-8");
        let output = bench.run(
            &["--cpu", "1", "--mem", "32", "--package", path],
            "cat data; grep Cpus_allowed_list /proc/self/status",
        );
        assert!(stdout(&output).starts_with("packed") && stdout(&output).trim_end().ends_with('1'), "{output:?}");
        let hog = bench.run(&["--mem", "32"], "tail /dev/zero");
        assert!(!hog.status.success() && stderr(&hog).contains("out of memory"), "{hog:?}");
    });
}

#[test]
fn run_stops_at_its_timeout() {
    Bench::with(|bench| {
        let output = bench.run(&["--timeout", "300ms"], "sleep 1000");
        assert!(!output.status.success(), "{output:?}");
        assert!(stderr(&output).to_lowercase().contains("time"), "{output:?}");
    });
}

#[test]
fn run_ends_when_it_is_asked_to_though_the_command_has_drowned_the_word() {
    Bench::with(|bench| {
        let mut command = bench.run_command(&["--grace", "100ms"], "read go; kill -TERM 1; sleep 1000");
        let mut child = command.stdin(Stdio::piped()).spawn().expect("run");
        let footprint = Footprint::of(&bench.sandbox);
        let payload = footprint.process("sh -c read go");
        let named = |name: &str| footprint.processes().into_iter().find(|process| process.name() == name);
        let init = named("berth-init").expect("the command has an init");
        // Two signals of a kind are one while neither was taken, and the first is the command's own.
        init.freeze();
        child.stdin.take().expect("stdin").write_all(b"go\n").expect("tell it to");
        init.wait_pending(Signal::TERM);
        let runner = Process { pid: child.id(), ..payload };
        let asleep = runner.times_asleep();
        runner.signal(Signal::TERM);
        until("it to pass the word on, and to wait again", || {
            let now = runner.times_asleep();
            if now > asleep { Ok(()) } else { Err(now) }
        });
        init.signal(Signal::CONT);
        let ended = until("it to end", || child.try_wait().expect("wait").ok_or("it runs"));
        assert_eq!(ended.code(), Some(128 + 15));
    });
}

#[test]
fn run_with_net_host_reaches_the_host_and_with_none_does_not() {
    Bench::with(|bench| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let hello = format!("echo hello | nc -w 5 127.0.0.1 {port}");
        assert!(!bench.run(&["--net", "none"], &hello).status.success());
        let mut child = bench.run_command(&["--net", "host"], &hello).spawn().expect("run");
        let (mut client, _) = listener.accept().expect("the container connects");
        let mut line = [0; 6];
        client.read_exact(&mut line).expect("a line");
        drop(client);
        child.wait().expect("wait");
        assert_eq!(&line, b"hello\n");
    });
}

#[test]
fn run_refuses_what_is_wrong_by_name() {
    Bench::with(|bench| {
        let cases: [(&[&str], &str); 6] = [
            (&["--image", "nowhere"], "nowhere"),
            (&["--cpu", "many"], "cpu"),
            (&["--mem", "-1"], "mem"),
            (&["--timeout", "soon"], "timeout"),
            (&["--net", "bridge"], "net"),
            (&["--package", "/etc"], "/etc"),
        ];
        for (flags, named) in cases {
            let output = bench.run(flags, "true");
            assert!(!output.status.success() && stderr(&output).contains(named), "{flags:?}: {output:?}");
            assert!(!stderr(&output).contains("panicked"), "{output:?}");
        }
    });
}

#[test]
fn run_says_why_a_container_could_not_be_made_and_leaves_nothing_of_it() {
    Bench::with(|bench| {
        // Often, since the container may fail before or after it is told to go.
        for _ in 0..40 {
            let output = bench.run(&["--package", "/etc"], "true");
            assert!(!output.status.success() && stderr(&output).contains("/etc"), "{output:?}");
        }
        let left: Vec<_> =
            fs::read_dir(bench.state_dir.join("cont")).map_or(Vec::new(), |left| left.flatten().collect());
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn doctor_finds_this_machine_able() {
    if !is_root() {
        return;
    }
    let output = run_to_end(Command::new(binary(SUPERVISOR)).arg("doctor"));
    assert!(output.status.success(), "{output:?}");
    let said = stdout(&output).to_lowercase();
    for topic in ["cgroup", "overlay", "seccomp"] {
        assert!(said.contains(topic), "not a word of {topic}: {said}");
    }
}

#[test]
fn images_are_added_listed_and_removed() {
    Bench::with(|bench| {
        let folder = bench.sandbox.folder("small");
        fs::create_dir_all(folder.join("bin")).expect("mkdir");
        fs::copy("/bin/busybox", folder.join("bin/sh")).expect("copy");
        assert!(bench.image(&["add", "small-1.0", folder.to_str().expect("UTF-8")]).status.success());
        let listed = stdout(&bench.image(&["list"]));
        assert!(listed.contains("busybox") && listed.contains("small-1.0"), "{listed}");
        assert!(bench.image(&["rm", "small-1.0"]).status.success());
        let listed = stdout(&bench.image(&["list"]));
        assert!(listed.contains("busybox") && !listed.contains("small-1.0"), "{listed}");
        assert!(folder.join("bin/sh").is_file(), "the folder it was made of is gone");
    });
}

#[test]
fn a_wrong_image_name_or_source_is_refused() {
    Bench::with(|bench| {
        let folder = bench.sandbox.folder("small");
        let folder = folder.to_str().expect("UTF-8");
        for id in ["../evil", "a/b", ".hidden", "", "a b"] {
            let output = bench.image(&["add", id, folder]);
            assert!(!output.status.success(), "{id:?} was taken");
        }
        let missing = bench.image(&["add", "good", "/no/such/folder"]);
        assert!(!missing.status.success() && stderr(&missing).contains("/no/such/folder"), "{missing:?}");
        let unknown = bench.image(&["rm", "nowhere"]);
        assert!(!unknown.status.success() && stderr(&unknown).contains("nowhere"), "{unknown:?}");
        assert!(!bench.image(&["rm", "../img"]).status.success());
        let file = bench.sandbox.dir().join("not.tar");
        fs::write(&file, "this is no tar archive, whatever its name says").expect("write");
        let not_a_tar = bench.image(&["add", "good", file.to_str().expect("UTF-8")]);
        assert!(!not_a_tar.status.success(), "{not_a_tar:?}");
        assert!(
            bench.image_file("good", "anything").is_none() && !bench.state_dir.join("img/good").exists(),
            "half an image is left"
        );
    });
}

/// One entry of a tar archive, its name and link written as they are, however wrong.
fn entry(archive: &mut tar::Builder<File>, name: &str, kind: tar::EntryType, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    archive.append(&header, content).expect("append");
}

fn archive(path: &Path, fill: impl FnOnce(&mut tar::Builder<File>)) {
    let mut archive = tar::Builder::new(File::create(path).expect("create"));
    fill(&mut archive);
    archive.finish().expect("finish");
}

#[test]
fn an_image_from_a_tar_runs() {
    Bench::with(|bench| {
        let path = bench.sandbox.dir().join("image.tar");
        archive(&path, |archive| {
            let busybox = fs::read("/bin/busybox").expect("busybox");
            entry(archive, "bin/", tar::EntryType::Directory, "", b"");
            entry(archive, "bin/busybox", tar::EntryType::Regular, "", &busybox);
            entry(archive, "bin/sh", tar::EntryType::Symlink, "busybox", b"");
            entry(archive, "bin/cat", tar::EntryType::Link, "bin/busybox", b"");
            entry(archive, "etc/motd", tar::EntryType::Regular, "", b"from a tar\n");
        });
        let added = bench.image(&["add", "tarred", path.to_str().expect("UTF-8")]);
        assert!(added.status.success(), "{added:?}");
        let output = bench.run(&["--image", "tarred"], "cat /etc/motd");
        assert_eq!(stdout(&output), "from a tar\n", "{output:?}");
    });
}

#[test]
fn a_tar_cannot_write_outside_its_image() {
    Bench::with(|bench| {
        let outside = bench.sandbox.folder("outside");
        let target = outside.to_str().expect("UTF-8");
        type Attack<'a> = &'a dyn Fn(&mut tar::Builder<File>);
        let attacks: [(&str, Attack<'_>); 5] = [
            ("dots", &|archive| entry(archive, "../../../outside/evil", tar::EntryType::Regular, "", b"evil")),
            ("absolute", &|archive| entry(archive, &format!("{target}/evil"), tar::EntryType::Regular, "", b"evil")),
            ("symlink", &|archive| {
                entry(archive, "out", tar::EntryType::Symlink, target, b"");
                entry(archive, "out/evil", tar::EntryType::Regular, "", b"evil");
            }),
            ("climbing-symlink", &|archive| {
                entry(archive, "out", tar::EntryType::Symlink, "../../../outside", b"");
                entry(archive, "out/evil", tar::EntryType::Regular, "", b"evil");
            }),
            ("hardlink", &|archive| {
                entry(archive, "link", tar::EntryType::Link, "/etc/passwd", b"");
                entry(archive, "link", tar::EntryType::Regular, "", b"evil");
            }),
        ];
        let passwd = fs::read("/etc/passwd").expect("passwd");
        for (name, attack) in attacks {
            let path = bench.sandbox.dir().join(format!("{name}.tar"));
            archive(&path, attack);
            // Taken with the entry kept inside, or refused: both are right.
            let added = bench.image(&["add", name, path.to_str().expect("UTF-8")]);
            assert!(!stderr(&added).contains("panicked"), "{added:?}");
            assert_eq!(fs::read_dir(&outside).map_or(0, Iterator::count), 0, "{name} escaped");
            assert_eq!(fs::read("/etc/passwd").expect("passwd"), passwd, "{name} escaped");
        }
    });
}

#[test]
fn wrong_flags_are_refused_by_name() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let state_dir = sandbox.folder("state");
    let cases: [(&str, &[&str], &str); 12] = [
        (SUPERVISOR, &["--no-such-flag"], "--no-such-flag"),
        (SUPERVISOR, &["no-such-command"], "no-such-command"),
        (SUPERVISOR, &["--cpu", "many"], "cpu"),
        (SUPERVISOR, &["--mem", "-1"], "mem"),
        (SUPERVISOR, &["--listen", "nonsense"], "listen"),
        (SUPERVISOR, &["--node-id", "x"], "node-id"),
        (SUPERVISOR, &["--union", "unionfs"], "union"),
        (SUPERVISOR, &["--config", "/no/such/file"], "/no/such/file"),
        (MASTER, &["--no-such-flag"], "--no-such-flag"),
        (MASTER, &["--node", "x"], "node"),
        (MASTER, &["--node", "0=127.0.0.1:1", "--node", "0=127.0.0.1:2"], "0"),
        (MASTER, &["--listen"], "listen"),
    ];
    for (name, flags, named) in cases {
        let output = run_to_end(Command::new(binary(name)).arg("--state-dir").arg(&state_dir).args(flags));
        assert!(!output.status.success() && stderr(&output).contains(named), "{name} {flags:?}: {output:?}");
        assert!(!stderr(&output).contains("panicked"), "{output:?}");
    }
}

#[test]
fn help_and_version_are_answered() {
    for name in [SUPERVISOR, MASTER] {
        let help = run_to_end(Command::new(binary(name)).arg("--help"));
        assert!(help.status.success() && stdout(&help).contains("--state-dir"), "{help:?}");
        let version = run_to_end(Command::new(binary(name)).arg("--version"));
        assert!(version.status.success() && stdout(&version).contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    }
}

#[test]
fn a_config_file_is_read_and_flags_override_it() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let config = sandbox.dir().join("berth.toml");
    fs::write(&config, "mem = 1000\ncpu = 3\n").expect("write");
    let plan = tests::node::NodePlan {
        flags: vec!["--config".to_owned(), config.display().to_string()],
        ..tests::node::NodePlan::default().mem(2000).cpu(2)
    };
    Node::alone_as(&plan, |node| {
        let resource = node.get("/resource");
        assert_eq!(
            (&resource["memTotal"], &resource["cpuTotal"]),
            (&2000.into(), &2.into()),
            "flags override the file"
        );
    });
    fs::write(&config, "memory = 1000\n").expect("write");
    for name in [SUPERVISOR, MASTER] {
        let output = run_to_end(Command::new(binary(name)).arg("--config").arg(&config));
        assert!(!output.status.success() && stderr(&output).contains("memory"), "an unknown key was taken: {output:?}");
    }
}

#[test]
fn a_second_supervisor_on_one_state_dir_is_refused_in_a_sentence() {
    Node::alone(|node| {
        let mut second = Command::new(binary(SUPERVISOR));
        second.args(["--listen", &free_addr().to_string(), "--state-dir"]).arg(node.state_dir());
        let output = run_to_end(&mut second);
        assert!(!output.status.success(), "{output:?}");
        assert!(stderr(&output).contains(node.state_dir().to_str().expect("UTF-8")), "{output:?}");
        node.get("/resource");
    });
}

#[test]
fn a_second_daemon_on_one_address_is_refused_in_a_sentence() {
    Node::alone(|node| {
        let sandbox = Sandbox::new();
        for name in [SUPERVISOR, MASTER] {
            let mut command = Command::new(binary(name));
            command.args(["--listen", &node.addr().to_string(), "--state-dir"]).arg(sandbox.folder(name));
            if name == SUPERVISOR {
                command.args(["--cgroup-root", &format!("{}-second", sandbox.name())]);
            }
            let output = run_to_end(&mut command);
            assert!(!output.status.success(), "{output:?}");
            assert!(stderr(&output).contains(&node.addr().to_string()), "{output:?}");
        }
    });
}
