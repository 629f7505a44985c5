//! What an image's own config can and cannot do to a container's.

use super::*;

/// A node that limits nothing itself.
fn unlimited(name: &str) -> Option<Rlimit> {
    Some(Rlimit { name: name.to_owned(), soft: None, hard: None })
}

#[test]
fn an_image_config_with_the_names_of_lxc_1_is_applied() {
    let text = "# the original's common.conf\n\n  lxc.tty = 4\nlxc.pts = 1024\nlxc.cap.drop = sys_module mac_admin\n\
        lxc.cap.drop = kill\nlxc.limit.nofile = 256:512\nlxc.environment = \"LANG=C.UTF-8\"\nlxc.autodev = 1\n\
        lxc.mount.entry = tmpfs run tmpfs size=1m 0 0\n";
    let image = ImageConfig::from_lxc(text).unwrap();
    let mut config = config();
    config.apply_image(&image, unlimited);
    assert_eq!(config.cap_keep, ["chown"]);
    assert_eq!(config.rlimits, [Rlimit { name: "nofile".into(), soft: Some(256), hard: Some(512) }]);
    assert_eq!(config.environment[1], ("LANG".into(), "C.UTF-8".into()));
    assert_eq!(config.mounts[1].target, "run");
}

#[test]
fn an_image_can_only_take_capabilities_away() {
    let kept = |text: &str| {
        let mut config = config();
        config.apply_image(&ImageConfig::from_lxc(text).unwrap(), unlimited);
        config.cap_keep
    };
    assert_eq!(kept("lxc.cap.keep = sys_admin kill\n"), ["kill"]);
    assert_eq!(kept("lxc.cap.keep = none\n"), [""; 0]);
    assert_eq!(kept("lxc.cap.keep = kill\nlxc.cap.keep =\n"), ["chown", "kill"]);
}

#[test]
fn an_image_can_only_lower_a_limit() {
    let limited = |text: &str| {
        let mut config = config();
        config.apply_image(&ImageConfig::from_lxc(text).unwrap(), unlimited);
        config.rlimits.into_iter().map(|limit| (limit.soft, limit.hard)).collect::<Vec<_>>()
    };
    assert_eq!(limited("lxc.prlimit.nofile = unlimited"), [(Some(4096), Some(4096))]);
    assert_eq!(limited("lxc.prlimit.nofile = 64:128"), [(Some(64), Some(128))]);
    assert_eq!(limited("lxc.prlimit.core = 0")[1], (Some(0), Some(0)));
}

#[test]
fn what_an_image_may_not_set_is_refused_by_its_new_name_and_line() {
    let refused = [
        ("lxc.utsname = x", "lxc.uts.name"),
        ("lxc.rootfs = /x", "lxc.rootfs.path"),
        ("lxc.mount = /etc/fstab", "lxc.mount.fstab"),
        ("lxc.include = /x", "lxc.include"),
        ("lxc.hook.start = /x", "lxc.hook.start"),
        ("lxc.cgroup.memory.limit_in_bytes = 1", "lxc.cgroup.memory.limit_in_bytes"),
        ("lxc.network.type = veth", "lxc.net.0.type"),
        ("lxc.network.0.ipv4 = 1", "lxc.net.0.ipv4"),
        ("lxc.aa_profile = unconfined", "lxc.apparmor.profile"),
        ("lxc.no_new_privs = 0", "lxc.no_new_privs"),
        ("lxc.autodev = 0", "lxc.autodev"),
        ("lxc.console = /dev/tty1", "lxc.console.path"),
        ("lxc.surprise = 1", "lxc.surprise"),
        ("lxc.network.script.up = /x", "lxc.net.0.script.up"),
        ("lxc.init_cmd = /x", "lxc.init.cmd"),
        ("lxc.execute.cmd = /x", "lxc.execute.cmd"),
        ("lxc.id_map = u 0 0 4294967295", "lxc.idmap"),
        ("lxc.namespace.share.net = 1", "lxc.namespace.share.net"),
        ("lxc.cgroup.devices.allow = a", "lxc.cgroup.devices.allow"),
        ("lxc.cgroup2.devices.allow = a", "lxc.cgroup2.devices.allow"),
        ("lxc.mount.auto = proc:rw", "lxc.mount.auto"),
        ("lxc.seccomp = /dev/null", "lxc.seccomp.profile"),
        ("lxc.se_context = unconfined_u", "lxc.selinux.context"),
        ("lxc.sysctl.kernel.core_pattern = |/x", "lxc.sysctl.kernel.core_pattern"),
        ("lxc.proc.oom_score_adj = -1000", "lxc.proc.oom_score_adj"),
        ("lxc.prlimit.surprise = 1", "lxc.prlimit.surprise"),
    ];
    for (text, named) in refused {
        match ImageConfig::from_lxc(&format!("# one\n{text}\n")) {
            Err(LxcConfigError::Refused { line: 2, key, .. }) => assert_eq!(key, named),
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in [
        "lxc.mount.entry = /etc etc none bind 0 0",
        "lxc.mount.entry = tmpfs ../x tmpfs rw",
        "lxc.mount.entry = tmpfs x tmpfs bind",
        "lxc.mount.entry = tmpfs x tmpfs rbind",
        "lxc.mount.entry = tmpfs x tmpfs suid",
        "lxc.mount.entry = tmpfs x tmpfs move",
        "lxc.mount.entry = tmpfs x tmpfs relative",
        "lxc.mount.entry = tmpfs x tmpfs lowerdir=/",
        "lxc.mount.entry = tmpfs proc/sys tmpfs rw",
        "lxc.mount.entry = tmpfs dev tmpfs rw",
        "lxc.mount.entry = tmpfs workspace tmpfs rw",
        "lxc.mount.entry = proc x proc rw",
        "lxc.mount.entry = overlay x overlay lowerdir=/",
        "lxc.environment = NAME",
        "lxc.cap.drop = sys_modul",
        "lxc.cap.keep = 21",
        "lxc.prlimit.nofile = many",
    ] {
        assert!(matches!(ImageConfig::from_lxc(text), Err(LxcConfigError::BadValue { line: 1, .. })), "{text}");
    }
    assert!(matches!(ImageConfig::from_lxc("\n\nno equals sign"), Err(LxcConfigError::Syntax { line: 3, .. })));
}

#[test]
fn what_berth_mounts_anyway_may_stand_in_an_image_config_and_a_tmpfs_gets_what_keeps_it_harmless() {
    let text = "lxc.mount.entry = proc proc proc rw 0 0\nlxc.mount.entry = sysfs sys sysfs defaults 0 0\n\
        lxc.kmsg = 0\nlxc.pivotdir = x\nlxc.mount.entry = tmpfs run tmpfs rw,nodev,size=1m 0 0\n";
    let image = ImageConfig::from_lxc(text).unwrap();
    assert_eq!(image.mounts.len(), 1);
    assert_eq!(image.mounts[0].options, ["rw", "nodev", "size=1m", "nosuid"]);
}

#[test]
fn an_image_raises_no_limit_that_the_node_itself_is_under() {
    let mut config = config();
    let image = ImageConfig::from_lxc("lxc.prlimit.rtprio = 99\nlxc.prlimit.nice = 40\n").unwrap();
    let none = |name: &str| (name == "rtprio").then(|| Rlimit { name: name.to_owned(), soft: Some(0), hard: Some(0) });
    config.apply_image(&image, none);
    let rtprio = config.rlimits.iter().find(|limit| limit.name == "rtprio").unwrap();
    assert_eq!((rtprio.soft, rtprio.hard), (Some(0), Some(0)));
    assert!(config.rlimits.iter().all(|limit| limit.name != "nice"), "a limit nobody can ask for is not set");
}
