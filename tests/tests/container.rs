//! What a payload sees, what it may do, and what it cannot get at.

use std::fs;

use serde_json::{Value, json};
use tests::cgroup;
use tests::job::{job, job_with};
use tests::node::{Node, NodePlan};
use tests::wait::until_none;

/// One field of `/proc/self/status` as the payload sees it.
fn status_field(node: &Node, field: &str) -> String {
    let line = node.run(&job(&format!("grep '^{field}:' /proc/self/status")));
    line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_else(|| panic!("no {field}: {line:?}"))
}

/// A task whose host-side process can be found by `exec sleep <unlikely number>`.
fn sleeper(node: &Node, seconds: u32, fields: &[(&str, Value)]) -> tests::leaks::Process {
    node.create(&job_with(&format!("exec sleep {seconds}"), fields));
    node.footprint().process(&format!("sleep {seconds}"))
}

#[test]
fn the_payload_sees_only_its_own_processes() {
    Node::alone(|node| {
        let neighbour = node.create(&job("sleep 1000"));
        node.wait_status(neighbour, "Running");
        let seen = node.run(&job("ls /proc | grep '^[0-9]' | wc -l; ps"));
        let count: u32 = seen.lines().next().and_then(|line| line.trim().parse().ok()).expect("a count");
        assert!(count <= 5, "more than init, the shell and its pipe:\n{seen}");
        assert!(!seen.contains("sleep 1000"), "{seen}");
        assert!(!seen.contains("systemd") && !seen.contains("cargo"), "{seen}");
    });
}

#[test]
fn the_hostname_is_the_containers_id() {
    Node::alone(|node| {
        let task = node.create(&job("hostname; uname -n"));
        node.wait_final(task);
        assert_eq!(node.stream(task, "task_stdout"), format!("t{task}-cont\nt{task}-cont\n"));
    });
}

#[test]
fn the_cgroup_namespace_hides_where_the_task_is() {
    Node::alone(|node| {
        let seen = node.run(&job("cat /proc/self/cgroup"));
        assert!(!seen.is_empty());
        for line in seen.lines() {
            assert!(line.ends_with(":/"), "the payload sees its place on the host: {line}");
        }
    });
}

#[test]
fn the_memory_limit_is_what_was_asked_and_swap_is_0() {
    Node::alone(|node| {
        let payload = sleeper(node, 71_001, &[("resource.mem", json!(48))]);
        let limit = cgroup::value(&payload, "memory", "memory.limit_in_bytes", "memory.max");
        assert_eq!(limit, (48 << 20).to_string());
        let folder = cgroup::folder(&payload, "memory");
        if let Ok(swap) = fs::read_to_string(folder.join("memory.memsw.limit_in_bytes")) {
            assert_eq!(swap.trim(), limit, "memory and swap together");
        }
        if let Ok(swap) = fs::read_to_string(folder.join("memory.swap.max")) {
            assert_eq!(swap.trim(), "0");
        }
    });
}

#[test]
fn the_pids_limit_is_in_force() {
    Node::alone(|node| {
        let payload = sleeper(node, 71_002, &[]);
        assert_eq!(cgroup::value(&payload, "pids", "pids.max", "pids.max"), "512");
        let bomb = "i=0; while [ $i -lt 600 ]; do sleep 1000 & i=$((i+1)); done; echo all started";
        let task = node.create(&job_with(bomb, &[("resource.mem", json!(1024))]));
        node.wait_final(task);
        assert!(!node.stream(task, "task_stdout").contains("all started"), "600 processes were started");
    });
}

#[test]
fn a_cpuset_list_pins() {
    Node::alone(|node| {
        let seen = node.run(&job_with("grep Cpus_allowed_list /proc/self/status", &[("resource.cpu", json!("1"))]));
        assert_eq!(seen.split_whitespace().last(), Some("1"), "{seen}");
        let payload = sleeper(node, 71_003, &[("resource.cpu", json!("0"))]);
        assert_eq!(cgroup::value(&payload, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    });
}

#[test]
fn an_amount_of_cpu_is_a_quota() {
    Node::alone(|node| {
        let payload = sleeper(node, 71_004, &[("resource.cpu", json!(0.5))]);
        let folder = cgroup::folder(&payload, "cpu");
        let number =
            |file: &str| fs::read_to_string(folder.join(file)).ok().and_then(|text| text.trim().parse::<f64>().ok());
        let quota = match (number("cpu.cfs_quota_us"), number("cpu.cfs_period_us")) {
            (Some(quota), Some(period)) => quota / period,
            _ => {
                let max = fs::read_to_string(folder.join("cpu.max")).expect("cpu.max");
                let numbers: Vec<f64> = max.split_whitespace().filter_map(|number| number.parse().ok()).collect();
                numbers[0] / numbers[1]
            }
        };
        assert!((quota - 0.5).abs() < 0.001, "quota {quota}");
    });
}

#[test]
fn every_process_of_the_task_is_in_its_cgroups() {
    Node::alone(|node| {
        let outer = sleeper_in_session(node);
        let payload = node.footprint().process("sleep 71006");
        assert_eq!(payload.cgroup, outer.cgroup);
        for line in payload.cgroup.lines().filter(|line| !line.contains("name=")) {
            let controllers = ["memory", "cpu", "cpuset", "pids"];
            if controllers.iter().any(|controller| line.split([':', ',']).any(|word| word == *controller)) {
                assert!(line.contains("berth-test-"), "not limited: {line}");
            }
        }
    });
}

fn sleeper_in_session(node: &Node) -> tests::leaks::Process {
    node.create(&job("setsid sleep 71005 & exec sleep 71006"));
    node.footprint().process("sleep 71005")
}

#[test]
fn capabilities_are_dropped_and_cannot_be_won_back() {
    Node::alone(|node| {
        let effective = u64::from_str_radix(&status_field(node, "CapEff"), 16).expect("hex");
        let bounding = u64::from_str_radix(&status_field(node, "CapBnd"), 16).expect("hex");
        // capabilities(7): DAC_READ_SEARCH 2, LINUX_IMMUTABLE 9, NET_ADMIN 12, SYS_MODULE 16, SYS_RAWIO 17,
        // SYS_PTRACE 19, SYS_ADMIN 21, SYS_BOOT 22, SYS_TIME 25, SYSLOG 34, BPF 39.
        for capability in [2, 9, 12, 16, 17, 19, 21, 22, 25, 34, 39] {
            assert_eq!(effective & (1 << capability), 0, "capability {capability} in CapEff {effective:x}");
            assert_eq!(bounding & (1 << capability), 0, "capability {capability} in CapBnd {bounding:x}");
        }
        assert_eq!(status_field(node, "NoNewPrivs"), "1");
        assert_eq!(status_field(node, "Seccomp"), "2");
    });
}

#[test]
fn mounting_unsharing_and_making_devices_are_refused() {
    Node::alone(|node| {
        for command in [
            "mount -t tmpfs none /mnt",
            "mkdir /tmp/m; mount -t tmpfs none /tmp/m",
            "mount -o remount,rw /proc/sys",
            "umount /proc",
            "unshare -m true",
            "unshare -r true",
            "mknod /tmp/disk b 8 0",
            "hostname other",
            "chroot / mount -t proc none /proc",
            "swapoff -a; swapon /bin/busybox",
            ": >> /proc/sys/kernel/sysrq",
        ] {
            let task = node.create(&job(command));
            assert_eq!(node.wait_final(task)["status"], "Failed", "{command} worked");
        }
        assert_eq!(
            fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim() == "other").ok(),
            Some(false)
        );
    });
}

#[test]
fn the_network_is_one_loopback_that_is_up() {
    Node::alone(|node| {
        let seen = node.run(&job("ls /sys/class/net; cat /proc/net/dev; ip addr show lo"));
        assert_eq!(seen.lines().next(), Some("lo"), "{seen}");
        assert!(!seen.contains("eth0") && !seen.contains("ens"), "{seen}");
        assert!(seen.contains("UP") && seen.contains("127.0.0.1"), "{seen}");
        let talk = "(echo heard | nc -l -p 7000 -w 10 &); until nc 127.0.0.1 7000 < /dev/null; do sleep 0.1; done";
        assert_eq!(node.run(&job(talk)), "heard\n");
    });
}

#[test]
fn the_hosts_loopback_cannot_be_reached() {
    Node::alone(|node| {
        let addr = node.addr();
        let task = node.create(&job(&format!("wget -T 5 -q -O - http://{addr}/resource")));
        assert_eq!(node.wait_final(task)["status"], "Failed", "{}", node.stream(task, "task_stdout"));
    });
}

#[test]
fn what_tells_of_the_host_is_masked() {
    Node::alone(|node| {
        for masked in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
            let command = format!("test ! -e {masked} || test \"$(cat {masked} | wc -c)\" = 0");
            node.run(&job(&command));
        }
        // What is written there goes to the null device.
        node.run(&job("test ! -e /proc/sysrq-trigger || test -c /proc/sysrq-trigger"));
        for folder in ["/proc/acpi", "/sys/firmware"] {
            node.run(&job(&format!("test ! -e {folder} || test -z \"$(ls {folder})\"")));
        }
    });
}

#[test]
fn proc_sys_and_sys_are_read_only() {
    Node::alone(|node| {
        for file in ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/sys/kernel/uevent_helper"] {
            let command = format!("test ! -e {file} || ! (: >> {file})");
            node.run(&job(&command));
        }
        node.run(&job("! mkdir /sys/fs/cgroup/mine /sys/fs/cgroup/*/mine"));
    });
}

#[test]
fn no_file_of_the_daemon_is_inherited() {
    Node::alone(|node| {
        let seen = node.run(&job("ls -l /proc/self/fd /proc/$$/fd"));
        let fds: Vec<&str> = seen.lines().filter(|line| line.contains(" -> ")).collect();
        for fd in &fds {
            let number = fd.split(" -> ").next().and_then(|start| start.split_whitespace().last()).unwrap_or_default();
            let own = fd.contains("/proc/"); // the folder that ls itself reads
            assert!(own || ["0", "1", "2"].contains(&number), "inherited: {fd}");
        }
        assert!(!seen.contains("socket:") && !seen.contains("anon_inode"), "{seen}");
    });
}

#[test]
fn signals_are_neither_blocked_nor_ignored_whatever_the_daemon_was_started_with() {
    // nohup(1) ignores SIGHUP, and a shell that starts a daemon with & SIGINT and SIGQUIT.
    let plan = NodePlan { before_exec: Some("trap '' HUP INT USR1".to_owned()), ..NodePlan::default() };
    Node::alone_as(&plan, |node| {
        assert_eq!(u64::from_str_radix(&status_field(node, "SigBlk"), 16), Ok(0));
        let ignored = u64::from_str_radix(&status_field(node, "SigIgn"), 16).expect("hex");
        // Not SIGQUIT, which busybox's own shell ignores.
        for (signal, name) in
            [(1, "SIGHUP"), (2, "SIGINT"), (10, "SIGUSR1"), (13, "SIGPIPE"), (15, "SIGTERM"), (17, "SIGCHLD")]
        {
            assert_eq!(ignored & (1 << (signal - 1)), 0, "{name} is ignored: {ignored:x}");
        }
    });
}

#[test]
fn the_command_starts_in_workspace_with_an_empty_stdin() {
    Node::alone(|node| {
        assert_eq!(node.run(&job("pwd; cat; echo $?")), "/workspace\n0\n");
        assert_eq!(node.run(&job("echo kept > f && cat f")), "kept\n");
    });
}

#[test]
fn the_environment_is_clean() {
    Node::alone(|node| {
        let seen = node.run(&job("env"));
        let known = [
            "PATH", "HOME", "SHELL", "USER", "LOGNAME", "PWD", "OLDPWD", "SHLVL", "TERM", "LANG", "TMPDIR", "HOSTNAME",
        ];
        for line in seen.lines() {
            let name = line.split('=').next().unwrap_or_default();
            let ours = known.contains(&name) || name.starts_with("BERTH_") || name == "container" || name == "_";
            assert!(ours, "the daemon's environment leaks: {line}");
        }
        assert!(seen.contains("PATH="), "{seen}");
        assert!(!seen.contains("CARGO"), "{seen}");
    });
}

#[test]
fn a_grandchild_that_called_setsid_dies_with_its_task() {
    Node::alone(|node| {
        let task = node.create(&job("setsid sleep 71007 & setsid sh -c 'setsid sleep 71007 &' ; echo left behind"));
        assert_eq!(node.wait_final(task)["status"], "Finished");
        until_none("the grandchildren to be gone", || {
            let mut left = node.footprint().processes();
            left.retain(|process| process.cmdline.starts_with("sleep 71007"));
            left
        });
    });
}

#[test]
fn orphans_are_reaped() {
    Node::alone(|node| {
        let command = "for i in 1 2 3 4 5 6 7 8 9; do (true & ) ; done; n=0; \
            while grep -q 'State:.Z' /proc/[0-9]*/status 2>/dev/null; do sleep 0.1; n=$((n+1)); test $n -lt 300 || exit 1; done";
        node.run(&job(command));
    });
}

#[test]
fn tmp_and_dev_are_fresh_and_as_they_should_be() {
    Node::alone(|node| {
        assert_eq!(node.run(&job("ls -A /tmp; echo x > /tmp/x; cat /tmp/x")), "x\n");
        assert_eq!(node.run(&job("ls -A /tmp")), "", "one task's /tmp shows in the next");
        let devices = node.run(&job("for d in null zero full random urandom tty; do test -c /dev/$d && echo $d; done"));
        assert_eq!(devices.split_whitespace().count(), 6, "{devices}");
        node.run(&job("echo x > /dev/null && test \"$(head -c 4 /dev/zero | wc -c)\" = 4 && ! echo x > /dev/full"));
        node.run(&job(
            "test -d /dev/pts && test -d /dev/shm && test -e /dev/ptmx && test -e /dev/fd/0 && echo x > /dev/shm/x",
        ));
        assert_eq!(node.run(&job("ls /dev | grep -E '^(sd|vd|nvme|loop|kmsg|mem|kvm)' || true")), "");
    });
}

#[test]
fn a_task_cannot_change_its_image() {
    Node::alone(|node| {
        let task = node.create(&job("rm -rf /bin/* /etc/passwd; echo > /bin/sh; echo gone"));
        node.wait_final(task);
        assert_eq!(node.run(&job("cat /etc/passwd | wc -l; test ! -e /workspace/f")), "1\n");
    });
}

#[test]
fn one_tasks_files_are_not_the_next_ones() {
    Node::alone(|node| {
        node.run(&job("echo secret > /workspace/f; echo secret > /root/f; echo secret > /f; mkdir -p /a/b"));
        assert_eq!(node.run(&job("ls -A /workspace /root | grep f; ls / | grep -x -e f -e a; true")), "");
    });
}

#[test]
fn a_symlink_in_the_image_at_a_mount_point_leads_nowhere_on_the_host() {
    Node::alone(|node| {
        let image = node.state_dir().join("img/busybox");
        for place in ["dev", "proc", "tmp", "workspace"] {
            let _ = fs::remove_dir(image.join(place));
            let _ = fs::remove_file(image.join(place));
            std::os::unix::fs::symlink(node.packages(), image.join(place)).expect("symlink");
        }
        let task = node.create(&job("echo x > /tmp/escaped; echo x > /workspace/escaped; echo x > /dev/escaped"));
        node.wait_final(task);
        let escaped: Vec<_> = fs::read_dir(node.packages()).expect("the folder").flatten().collect();
        assert!(escaped.is_empty(), "{escaped:?}");
    });
}

#[test]
fn the_config_of_a_running_container_is_in_its_folder_in_lxc_syntax() {
    Node::alone(|node| {
        sleeper(node, 71_008, &[]);
        let containers = node.container_folders();
        assert_eq!(containers.len(), 1, "{containers:?}");
        let config = node.state_dir().join("cont").join(&containers[0]).join("config");
        let config = fs::read_to_string(&config).expect("the container's config");
        assert!(config.contains(&format!("lxc.uts.name = {}", containers[0])), "{config}");
        assert!(config.contains("lxc.rootfs.path") && config.contains("67108864"), "{config}");
    });
}

#[test]
fn nobody_else_can_enter_what_containers_are_made_of() {
    use std::os::unix::fs::MetadataExt;
    Node::alone(|node| {
        sleeper(node, 71_009, &[]);
        for folder in ["cont", "img"] {
            let mode = node.state_dir().join(folder).metadata().expect("the folder").mode();
            assert_eq!(mode & 0o077, 0, "{folder} has mode {mode:o}");
        }
    });
}
