use std::path::{Path, PathBuf};
use std::process::Command;

use arbtest::arbitrary::{Result as Arbitrary, Unstructured};

use super::*;
use crate::scratch::{Scratch, root_or_skip};

mod image;

/// A config with something of everything.
fn config() -> ContainerConfig {
    ContainerConfig {
        uts_name: "t7-cont".into(),
        rootfs: Rootfs {
            driver: UnionDriver::Overlay,
            lowerdirs: vec!["/img/top".into(), "/img/busybox".into()],
            upperdir: "/cont/t7-cont/usrfile".into(),
            options: vec!["nosuid".into(), "nodev".into(), "volatile".into()],
        },
        mounts: vec![MountEntry {
            source: "tmpfs".into(),
            target: "tmp".into(),
            fstype: "tmpfs".into(),
            options: vec!["nosuid".into(), "nodev".into(), "mode=1777".into()],
        }],
        mount_auto: vec!["proc:mixed".into(), "sys:ro".into()],
        network: Network::None,
        cap_keep: vec!["chown".into(), "kill".into()],
        no_new_privs: true,
        rlimits: vec![Rlimit { name: "nofile".into(), soft: Some(1024), hard: Some(4096) }],
        oom_score_adj: 7,
        cgroup: vec![CgroupSetting {
            version: CgroupVersion::V1,
            key: "memory.limit_in_bytes".into(),
            value: "67108864".into(),
        }],
        environment: vec![("HOME".into(), "/workspace".into())],
        init_cwd: "/workspace".into(),
        command_line: "echo hi".into(),
        seccomp_profile: None,
    }
}

#[test]
fn a_config_is_written_with_the_names_of_lxc_3_and_later() {
    expect_test::expect![[r"
        lxc.uts.name = t7-cont
        lxc.rootfs.path = overlay:/img/top:/img/busybox:/cont/t7-cont/usrfile
        lxc.rootfs.options = nosuid,nodev,volatile
        lxc.mount.entry = tmpfs tmp tmpfs nosuid,nodev,mode=1777 0 0
        lxc.mount.auto = proc:mixed sys:ro
        lxc.autodev = 1
        lxc.console.path = none
        lxc.tty.max = 0
        lxc.pty.max = 1024
        lxc.net.0.type = empty
        lxc.net.0.flags = up
        lxc.cap.keep = chown kill
        lxc.no_new_privs = 1
        lxc.prlimit.nofile = 1024:4096
        lxc.proc.oom_score_adj = 7
        lxc.cgroup.memory.limit_in_bytes = 67108864
        lxc.environment = HOME=/workspace
        lxc.init.cwd = /workspace
        lxc.execute.cmd = /bin/sh -c @echo hi@
    "]]
    .assert_eq(&config().to_lxc().unwrap().replace('"', "@"));
}

#[test]
fn no_user_text_can_add_a_line() {
    let injection = "x\nlxc.hook.pre-start = /evil";
    type Spoil = fn(&mut ContainerConfig, &str);
    let refused: [(&str, Spoil); 8] = [
        ("lxc.uts.name", |c, text| c.uts_name = text.into()),
        ("lxc.rootfs.path", |c, text| c.rootfs.upperdir = format!("/{text}").into()),
        ("lxc.mount.auto", |c, text| c.mount_auto.push(text.into())),
        ("lxc.cap.keep", |c, text| c.cap_keep.push(text.into())),
        ("lxc.cgroup.memory.limit_in_bytes", |c, text| c.cgroup[0].value = text.into()),
        ("lxc.environment", |c, text| c.environment.push(("A".into(), text.into()))),
        ("lxc.environment", |c, text| c.environment.push((text.into(), "A".into()))),
        ("lxc.init.cwd", |c, text| c.init_cwd = text.into()),
    ];
    for line_end in ["\n", "\r", "\0", "\x0b"] {
        for (key, spoil) in refused {
            let mut config = config();
            spoil(&mut config, &injection.replace('\n', line_end));
            match config.to_lxc() {
                Err(LxcConfigError::Unwritable { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key} took {line_end:?}: {other:?}"),
            }
        }
    }
    let mut config = config();
    config.cgroup[0].key = "memory.x = 1\nlxc.hook.pre-start".into();
    assert!(config.to_lxc().is_err());
}

#[test]
fn every_command_line_stays_on_one_line_and_reads_back() {
    let commands = [
        "echo hi",
        "echo 'single'",
        "echo \"double\"",
        "echo \"it's\" `both` $HOME \\n",
        "one\ntwo\r\nthree\n\n",
        "lxc.hook.pre-start = /evil\n",
        "tab\there \x07 \u{85} \u{2028} ünïcödé 你好",
        "\"",
        "'",
        " ends in a blank ",
        "c=$(printf %b. \"x\"); exec /bin/sh -c \"${c%.}\"",
        "printf '%s' '\\0101' \"\\\\\"",
    ];
    for command in commands {
        let value = command::encode(command);
        assert!(!value.contains(char::is_control), "{value:?}");
        assert_eq!(read_back::decode(&value).as_deref(), Some(command));
    }
}

#[test]
fn what_no_writer_wrote_is_not_taken_for_a_command() {
    for value in
        ["", "/bin/sh", "/bin/sh -c x", "/bin/sh -c \"a\" \"b\"", "/bin/sh -c \"a", "/sbin/init", "/bin/sh -c \""]
    {
        assert_eq!(read_back::decode(value), None, "{value:?}");
    }
}

#[test]
fn blanks_in_mount_entries_are_escaped_as_in_fstab() {
    let mut config = config();
    config.mounts[0].source = "/a dir\\040\twith\nall".into();
    let text = config.to_lxc().unwrap();
    assert!(text.contains(r"lxc.mount.entry = /a\040dir\134040\011with\012all tmp tmpfs"), "{text}");
    assert_eq!(ContainerConfig::from_lxc(&text).unwrap(), config);
}

#[test]
fn what_lxc_would_read_as_something_else_is_refused() {
    type Spoil = fn(&mut ContainerConfig);
    let cases: [(&str, Spoil); 10] = [
        ("lxc.uts.name", |c| c.uts_name = String::new()),
        ("lxc.rootfs.path", |c| c.rootfs.lowerdirs = vec!["/a:b".into()]),
        ("lxc.rootfs.path", |c| c.rootfs.lowerdirs = vec!["relative".into()]),
        ("lxc.rootfs.path", |c| c.rootfs.lowerdirs = vec![]),
        ("lxc.mount.entry", |c| c.mounts[0].target = "../etc".into()),
        ("lxc.mount.entry", |c| c.mounts[0].target = "/etc".into()),
        ("lxc.mount.entry", |c| c.mounts[0].source = String::new()),
        ("lxc.mount.entry", |c| c.mounts[0].options = vec![]),
        ("lxc.mount.entry", |c| c.mounts[0].options = vec!["a,b".into()]),
        ("lxc.mount.auto", |c| c.mount_auto = vec!["two words".into()]),
    ];
    for (key, spoil) in cases {
        let mut config = config();
        spoil(&mut config);
        match config.to_lxc() {
            Err(LxcConfigError::Unwritable { key: named, .. }) => assert_eq!(named, key),
            other => panic!("{key}: {other:?}"),
        }
    }
}

/// Texts that find the seams: blanks and quotes at the ends, separators of every layer, no controls.
fn text(u: &mut Unstructured<'_>, seams: &[&str]) -> Arbitrary<String> {
    let pieces = u.int_in_range(1..=5)?;
    (0..pieces).map(|_| u.choose(seams).copied()).collect()
}

const PRINTABLE: [&str; 16] =
    [" ", "\"", "'", "#", "=", "a", "ü", "\\040", "\\", ":", ",", "$(x)", "`", "none", "!", "\u{a0}"];
const ANYTHING: [&str; 12] = [" ", "\"", "'", "\n", "\r", "\t", "\\0101", "\\", "$x", "%b", "\u{85}", "lxc.hook = x"];
const WORD: [&str; 5] = ["a", "b_c", "d0", "e.f", "g"];

fn list<T>(u: &mut Unstructured<'_>, mut one: impl FnMut(&mut Unstructured<'_>) -> Arbitrary<T>) -> Arbitrary<Vec<T>> {
    let len = u.int_in_range(0..=3)?;
    (0..len).map(|_| one(u)).collect()
}

fn path(u: &mut Unstructured<'_>) -> Arbitrary<PathBuf> {
    Ok(format!("/{}", text(u, &["a", " ", "\"", "'", "#", "=", "ü", "/b"])?).into())
}

fn mount(u: &mut Unstructured<'_>) -> Arbitrary<MountEntry> {
    Ok(MountEntry {
        source: format!("/{}", text(u, &ANYTHING_IN_A_PATH)?),
        target: text(u, &["a", " ", "\\", "ü", "\t"])?,
        fstype: text(u, &WORD)?,
        options: vec![text(u, &["a", " ", "\\040", "="])?, "rw".into()],
    })
}

const ANYTHING_IN_A_PATH: [&str; 8] = ["a", " ", "\t", "\n", "\\", "\\040", "ü", "#"];

fn any_config(u: &mut Unstructured<'_>) -> Arbitrary<ContainerConfig> {
    let version = |u: &mut Unstructured<'_>| u.choose(&[CgroupVersion::V1, CgroupVersion::V2]).copied();
    Ok(ContainerConfig {
        uts_name: text(u, &PRINTABLE)?,
        rootfs: Rootfs {
            driver: *u.choose(&[UnionDriver::Overlay, UnionDriver::Aufs])?,
            lowerdirs: vec![path(u)?, path(u)?],
            upperdir: path(u)?,
            options: list(u, |u| text(u, &WORD))?,
        },
        mounts: list(u, mount)?,
        mount_auto: list(u, |u| text(u, &["proc", ":ro", "\"", "'"]))?,
        network: *u.choose(&[Network::None, Network::Host])?,
        cap_keep: list(u, |u| text(u, &WORD))?,
        no_new_privs: u.arbitrary()?,
        rlimits: list(u, |u| Ok(Rlimit { name: text(u, &["n", "_"])?, soft: u.arbitrary()?, hard: u.arbitrary()? }))?,
        oom_score_adj: u.arbitrary()?,
        cgroup: list(u, |u| {
            Ok(CgroupSetting { version: version(u)?, key: text(u, &WORD)?, value: text(u, &PRINTABLE)? })
        })?,
        environment: list(u, |u| Ok((text(u, &["A", "b", " ", "\"", "#"])?, text(u, &PRINTABLE)?)))?,
        init_cwd: text(u, &PRINTABLE)?,
        command_line: text(u, &ANYTHING)?,
        seccomp_profile: if u.arbitrary()? { Some(path(u)?) } else { None },
    })
}

#[test]
fn whatever_is_written_reads_back_the_same() {
    arbtest::arbtest(|u| {
        let config = any_config(u)?;
        let text = config.to_lxc().expect("every config made here can be written");
        assert_eq!(ContainerConfig::from_lxc(&text).as_ref(), Ok(&config), "{text}");
        Ok(())
    });
}

#[test]
fn no_config_file_makes_the_reader_panic() {
    arbtest::arbtest(|u| {
        let pieces = [
            "lxc.rootfs.path",
            "lxc.net",
            ".0.type",
            "=",
            "\n",
            "\"",
            "'",
            "/bin/sh -c ",
            "c=$(printf %b. \"",
            "\\0",
            "é",
            ":",
        ];
        let text = (0..u.int_in_range(0..=30)?).map(|_| u.choose(&pieces).copied()).collect::<Arbitrary<String>>()?;
        let _ = (ContainerConfig::from_lxc(&text), ImageConfig::from_lxc(&text));
        Ok(())
    });
}

#[test]
fn a_config_for_v1_names_no_key_of_v2_and_none_that_lxc_5_or_7_does_not_know() {
    // lxc.container.conf(5) of both; LXC 7 has no `lxc.cgroup.` any more (its pull request 4671), and runs on v2 alone.
    const KNOWN_TO_BOTH: [&str; 18] = [
        "lxc.uts.name",
        "lxc.rootfs.path",
        "lxc.rootfs.options",
        "lxc.mount.entry",
        "lxc.mount.auto",
        "lxc.autodev",
        "lxc.console.path",
        "lxc.tty.max",
        "lxc.pty.max",
        "lxc.net.0.type",
        "lxc.net.0.flags",
        "lxc.cap.keep",
        "lxc.no_new_privs",
        "lxc.seccomp.profile",
        "lxc.proc.oom_score_adj",
        "lxc.environment",
        "lxc.init.cwd",
        "lxc.execute.cmd",
    ];
    for version in [CgroupVersion::V1, CgroupVersion::V2] {
        let mut config = config();
        config.seccomp_profile = Some("/seccomp".into());
        config.cgroup[0].version = version;
        let text = config.to_lxc().unwrap();
        let keys = text.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
        for key in keys.filter(|key| !key.starts_with("lxc.prlimit.") && !key.starts_with(version.prefix())) {
            assert!(KNOWN_TO_BOTH.contains(&key), "{key}");
        }
    }
}

/// A busybox root, if this machine has the static one of Debian's busybox-static.
fn busybox_rootfs(at: &Path) -> bool {
    for folder in ["bin", "dev", "proc", "sys", "tmp", "etc", "workspace"] {
        std::fs::create_dir_all(at.join(folder)).unwrap();
    }
    let copied = std::fs::copy("/bin/busybox", at.join("bin/busybox")).is_ok();
    for applet in ["sh", "cat", "hostname", "pwd", "grep", "ls", "find"] {
        std::os::unix::fs::symlink("busybox", at.join("bin").join(applet)).unwrap();
    }
    copied
}

/// A memory limit in the words of this machine's memory controller, and where that is mounted.
fn memory_limit(bytes: u64) -> (CgroupSetting, &'static str) {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (version, key, mounted) = match unified {
        true => (CgroupVersion::V2, "memory.max", "/sys/fs/cgroup"),
        false => (CgroupVersion::V1, "memory.limit_in_bytes", "/sys/fs/cgroup/memory"),
    };
    (CgroupSetting { version, key: key.into(), value: bytes.to_string() }, mounted)
}

fn bind(source: &str, target: &str) -> MountEntry {
    let options = ["bind", "ro", "create=dir"].map(str::to_owned).to_vec();
    MountEntry { source: source.to_owned(), target: target.into(), fstype: "none".into(), options }
}

/// Removes at its end what LXC leaves: its groups, which carry the container's name, and its locks.
struct AfterLxc<'a> {
    scratch: &'a Scratch,
    name: &'a str,
}

impl Drop for AfterLxc<'_> {
    fn drop(&mut self) {
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|folder| folder.path())
        {
            let name = format!("{}-pivot", self.name);
            for group in [&hierarchy, Path::new("/sys/fs/cgroup")].map(|base| base.join(&name)) {
                // LXC moves its monitor there, and makes a group of its own inside.
                let _ = std::fs::remove_dir(group.join("lxc.pivot"));
                let _ = std::fs::remove_dir(group);
            }
        }
        let locks = self.scratch.path().strip_prefix("/").unwrap_or(self.scratch.path());
        let _ = std::fs::remove_dir_all(Path::new("/run/lxc/lock").join(locks));
    }
}

/// Runs the config under the machine's own lxc-execute.
fn lxc_execute(scratch: &Scratch, name: &str, config: &ContainerConfig) -> (Option<i32>, String) {
    scratch.write("config", config.to_lxc().unwrap());
    let output = Command::new("lxc-execute")
        .args(["-n", name, "-P"])
        .arg(scratch.join("lxcpath"))
        .arg("-f")
        .arg(scratch.join("config"))
        .args(["container", "monitor", "monitor.pivot"].into_iter().flat_map(|key| {
            let group = format!("{name}-{}", key.rsplit('.').next().unwrap_or_default());
            ["-s".to_owned(), format!("lxc.cgroup.dir.{key}={group}")]
        }))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn stock_lxc_execute_takes_the_file_and_runs_the_same_command_under_the_same_limits() {
    let claim = "stock lxc-execute runs what berth writes";
    if !root_or_skip(claim) {
        return;
    }
    let scratch = Scratch::new("lxc");
    if Command::new("lxc-execute").arg("--version").output().is_err() || !busybox_rootfs(&scratch.join("busybox")) {
        eprintln!("SKIPPED, needs Debian's lxc and busybox-static: {claim}");
        return;
    }
    scratch.write("top/etc/layer", "from the top layer\n");
    for folder in ["cont/usrfile/workspace", "lxcpath", "a dir"] {
        std::fs::create_dir_all(scratch.join(folder)).unwrap();
    }
    scratch.write("a dir/inside", "bound\n");
    let name = format!("berth-test-{}", std::process::id());
    let _after = AfterLxc { scratch: &scratch, name: &name };
    let (limit, memory_mounted) = memory_limit(64 << 20);
    let mut config = ContainerConfig {
        uts_name: "t7-cont".into(),
        rootfs: Rootfs {
            driver: UnionDriver::Overlay,
            lowerdirs: vec![scratch.join("top"), scratch.join("busybox")],
            upperdir: scratch.join("cont/usrfile"),
            // Not volatile: overlayfs takes such a layer once, and this one is used again.
            options: vec!["nosuid".into(), "nodev".into()],
        },
        cgroup: vec![limit.clone()],
        environment: vec![("GREETING".into(), " \"it's\" # = here ".into()), ("EMPTY".into(), String::new())],
        ..config()
    };
    config.mounts.push(bind(&scratch.join("a dir").display().to_string(), "mnt"));
    config.mounts.push(bind(memory_mounted, "cgroup"));
    config.command_line = "hostname; pwd\ncat /etc/layer /mnt/inside; echo \"it's [$GREETING] [$EMPTY]\"\n\
        grep -E 'CapBnd|NoNewPrivs' /proc/self/status; ulimit -n; ls /sys/class/net\n\
        echo \"`echo \\\"deep\\\"`\" 'ü\\n'\nexit 7\n"
        .into();
    let (status, output) = lxc_execute(&scratch, &name, &config);
    let expected = "t7-cont\n/workspace\nfrom the top layer\nbound\nit's [ \"it's\" # = here ] []\n\
        CapBnd:\t0000000000000021\nNoNewPrivs:\t1\n1024\nlo\ndeep ü\\n\n";
    assert_eq!((status, output.as_str()), (Some(7), expected));

    config.command_line = format!("cat $(find /cgroup -path '*{name}-container/{}')", limit.key);
    assert_eq!(lxc_execute(&scratch, &name, &config), (Some(0), "67108864\n".into()));
    config.command_line = format!("exit 4\n{}", "#'\n".repeat(300));
    assert_eq!(lxc_execute(&scratch, &name, &config), (Some(4), String::new()), "a long command");

    for command in ["echo plain; exit 3", "echo \"plain\"; exit 3", "echo 'plain'; exit 3", "echo \"plai\"'n'; exit 3"]
    {
        config.command_line = command.into();
        assert_eq!(lxc_execute(&scratch, &name, &config), (Some(3), "plain\n".into()), "{command}");
    }
}
