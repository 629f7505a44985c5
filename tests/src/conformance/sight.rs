//! What the probe said, as attributes that mean the same on every machine and under every runtime. Pure.
//!
//! Names and values of the kernel are kept, but for what is another's by nature: numbers of namespaces, paths of layers,
//! device numbers of mounts.

use std::collections::BTreeMap;

/// What a namespace is, seen from inside.
const HOSTS: &str = "the host's";
const OWN: &str = "its own";

/// What must be known of the host to read a probe's words.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// The namespaces outside, as `/proc/self/ns` has them: `uts` is `uts:[4026531838]`.
    pub namespaces: BTreeMap<String, String>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The name of the folder that the logs are in: a descriptor of a file below is "a log". What stands before the name
    /// depends on which mounts the process still has.
    pub folder: String,
}

/// Attributes and values; an attribute that was said more than once has all values, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight(BTreeMap<String, String>);

impl Sight {
    /// Reads what the probe printed.
    pub fn read(said: &str, host: &Host) -> Sight {
        let mut sight = Sight::default();
        for (name, value) in said.lines().filter_map(|line| line.split_once('=')) {
            sight.take(name, value, host);
        }
        if sight.0.get("ns.net").is_some_and(|net| net == HOSTS) {
            // The host's interfaces come and go with what else runs there.
            sight.0.retain(|name, _| !name.starts_with("net."));
        }
        sight
    }

    /// All of it, in the order of the names.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of one attribute.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn take(&mut self, name: &str, value: &str, host: &Host) {
        match name.split_once('.').unwrap_or((name, "")) {
            ("status", _) => self.take_status(value),
            ("limit", "") => self.take_rlimit(value),
            ("limit", file) => self.add(&format!("cgroup.{file}"), value),
            ("stat", _) => self.take_stat(value),
            ("mount", _) => self.take_mount(value),
            ("ns", space) => self.set(&format!("ns.{space}"), whose(space, value, host)),
            ("fd", _) => self.set(name, &descriptor(value, host)),
            ("env", _) => {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                self.add(&format!("env.{name}"), value);
            }
            ("boot_id", _) => self.set("kernel.boot_id", if value == host.boot_id { HOSTS } else { OWN }),
            ("coredump_filter" | "personality" | "timerslack_ns", _) => self.set(&format!("kernel.{name}"), value),
            ("uid_map" | "gid_map" | "setgroups", _) => self.add(&format!("id.{name}"), &words(value)),
            ("hostname" | "domainname", _) => self.set(&format!("uts.{name}"), value),
            ("cwd" | "root" | "oom_score_adj", _) => self.set(&format!("process.{name}"), value),
            ("cgroup", _) => self.add("cgroup.path", value.rsplit(':').next().unwrap_or_default()),
            ("text", file) => self.set(&format!("file.{file}.text"), value),
            ("dev" | "cover" | "write" | "file" | "may" | "answer" | "net", _) => self.set(name, value),
            ("end", _) => {}
            _ => self.set(&format!("unknown.{name}"), value),
        }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// One more value; one that stands there already says nothing new.
    fn add(&mut self, name: &str, value: &str) {
        let all = self.0.entry(name.to_owned()).or_default();
        if all.is_empty() {
            value.clone_into(all);
        } else if !all.split("; ").any(|known| known == value) {
            *all = format!("{all}; {value}");
        }
    }

    /// A line of proc_pid_status(5); sizes and counters are nobody's promise.
    fn take_status(&mut self, line: &str) {
        let Some((field, value)) = line.split_once(':') else { return };
        let family = match field {
            "Uid" | "Gid" | "Groups" | "Umask" => "id",
            "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb" => "caps",
            "SigBlk" | "SigIgn" | "SigCgt" => {
                return self.set(&format!("signal.{field}"), &without_libcs(value.trim()));
            }
            "NoNewPrivs" | "Seccomp" | "Seccomp_filters" | "Speculation_Store_Bypass" | "SpeculationIndirectBranch" => {
                "confined"
            }
            "Cpus_allowed_list" | "Mems_allowed_list" => "cpu",
            "NSpid" | "NSpgid" | "NSsid" | "TracerPid" => "process",
            _ => return,
        };
        self.set(&format!("{family}.{field}"), &words(value));
    }

    /// A line of `/proc/<pid>/limits`: a name of up to 25 characters, soft, hard, unit.
    fn take_rlimit(&mut self, line: &str) {
        let Some((name, rest)) = line.split_at_checked(26) else { return };
        let mut values = rest.split_whitespace();
        if let (Some(soft), Some(hard), Some(name)) = (values.next(), values.next(), name.trim().strip_prefix("Max ")) {
            self.set(&format!("rlimit.{}", name.replace(' ', "-")), &format!("{soft}:{hard}"));
        }
    }

    /// proc_pid_stat(5): fields 7 (tty_nr), 19 (nice), 40 and 41 (real-time priority, policy).
    fn take_stat(&mut self, line: &str) {
        let fields: Vec<&str> = line.rsplit_once(')').map_or(line, |(_, rest)| rest).split_whitespace().collect();
        for (name, number) in [("process.tty", 7), ("cpu.nice", 19), ("cpu.rt_priority", 40), ("cpu.policy", 41)] {
            if let Some(value) = fields.get(number - 3) {
                self.set(name, value);
            }
        }
    }

    /// A line of proc_pid_mountinfo(5). What is mounted later on the same place hides what was there.
    fn take_mount(&mut self, line: &str) {
        let Some((place, what)) = line.split_once(" - ") else { return };
        let (place, what): (Vec<&str>, Vec<&str>) = (place.split(' ').collect(), what.split(' ').collect());
        let ([_, _, _, root, point, flags, tags @ ..], [fstype, source, own, ..]) = (&place[..], &what[..]) else {
            return;
        };
        let own = if *fstype == "overlay" { without_paths(own) } else { (*own).to_owned() };
        let shown = if matches!(*fstype, "cgroup" | "cgroup2") { "/" } else { root };
        self.set(&format!("mount.{point}"), &format!("{fstype} {shown} {flags} {own}"));
        self.set(&format!("mount.{point}.source"), source);
        let tag = tags.first().map_or("private", |tag| tag.split(':').next().unwrap_or_default());
        self.set(&format!("mount.{point}.propagation"), tag);
    }
}

/// A set of signals less 32 and 33: glibc keeps these for itself, hands them on as whoever started it left them, and lets
/// no program change them (nptl(7)).
fn without_libcs(mask: &str) -> String {
    const LIBCS: u64 = 1 << 31 | 1 << 32;
    u64::from_str_radix(mask, 16).map_or_else(|_| mask.to_owned(), |mask| format!("{:016x}", mask & !LIBCS))
}

/// Overlay's options with the number of its lower layers in place of all paths. Whether overlayfs made itself a UUID
/// depends on whether the writable layer was used before.
fn without_paths(options: &str) -> String {
    let kept: Vec<String> = options
        .split(',')
        .filter_map(|option| match option.split_once('=') {
            Some(("lowerdir", layers)) => Some(format!("layers={}", layers.split(':').count())),
            Some(("upperdir" | "workdir" | "uuid", _)) => None,
            _ => Some(option.to_owned()),
        })
        .collect();
    kept.join(",")
}

fn whose(space: &str, link: &str, host: &Host) -> &'static str {
    let space = space.trim_end_matches("_for_children");
    if host.namespaces.get(space).is_some_and(|hosts| hosts == link) { HOSTS } else { OWN }
}

/// Where a descriptor leads, and its flags (proc_pid_fdinfo(5), octal).
fn descriptor(value: &str, host: &Host) -> String {
    let (target, flags) = value.rsplit_once(' ').unwrap_or((value, ""));
    let is_log = !host.folder.is_empty() && target.split('/').any(|part| part == host.folder);
    let target = if is_log { "a log" } else { target };
    format!("{target} {flags}")
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            namespaces: [("uts".to_owned(), "uts:[1]".to_owned()), ("net".to_owned(), "net:[2]".to_owned())].into(),
            boot_id: "abc".to_owned(),
            folder: "test".to_owned(),
        }
    }

    fn read(said: &str) -> Sight {
        Sight::read(said, &host())
    }

    #[test]
    fn a_limit_has_its_name_and_both_values() {
        let said = "limit=Limit                     Soft Limit           Hard Limit           Units     \n\
            limit=Max open files            1024                 4096                 files     \n\
            limit=Max cpu time              unlimited            unlimited            seconds   \n";
        let sight = read(said);
        assert_eq!(sight.get("rlimit.open-files"), Some("1024:4096"));
        assert_eq!(sight.get("rlimit.cpu-time"), Some("unlimited:unlimited"));
        assert_eq!(sight.attributes().count(), 2);
    }

    #[test]
    fn a_mount_is_told_without_the_paths_and_numbers_that_differ_by_nature() {
        let said = "mount=240 261 0:63 / / rw,nosuid,nodev,relatime - overlay overlay \
            rw,lowerdir=/proc/self/fd/18:/proc/self/fd/19,upperdir=usrfile,workdir=work,uuid=on\n\
            mount=271 269 0:72 / /dev rw,relatime shared:7 - tmpfs none rw,size=492k\n\
            mount=272 271 0:73 / /dev rw,nosuid shared:8 - tmpfs tmpfs rw,size=64k\n\
            mount=273 272 0:75 /sys /proc/sys ro,relatime master:11 - proc proc rw\n";
        let sight = read(said);
        assert_eq!(sight.get("mount./"), Some("overlay / rw,nosuid,nodev,relatime rw,layers=2"));
        assert_eq!(sight.get("mount./.propagation"), Some("private"));
        assert_eq!(sight.get("mount./dev"), Some("tmpfs / rw,nosuid rw,size=64k"));
        assert_eq!(sight.get("mount./dev.source"), Some("tmpfs"));
        assert_eq!(sight.get("mount./proc/sys"), Some("proc /sys ro,relatime rw"));
        assert_eq!(sight.get("mount./proc/sys.propagation"), Some("master"));
    }

    #[test]
    fn a_namespace_is_the_hosts_or_its_own() {
        let sight = read("ns.uts=uts:[9]\nns.net=net:[2]\nnet.eth0=flags 0x1003\nboot_id=abc\n");
        assert_eq!((sight.get("ns.uts"), sight.get("ns.net")), (Some(OWN), Some(HOSTS)));
        assert_eq!(sight.get("net.eth0"), None, "the host's interfaces are nobody's promise");
        assert_eq!(sight.get("kernel.boot_id"), Some(HOSTS));
        assert_eq!(read("ns.net=net:[3]\nnet.lo=flags 0x9\n").get("net.lo"), Some("flags 0x9"));
    }

    #[test]
    fn fields_of_a_process_come_from_where_the_kernel_has_them() {
        // Each field of this one is its own number.
        let numbers: Vec<String> = (3..=52).map(|number: u32| number.to_string()).collect();
        let stat = format!("stat=2 (a) b) {}\n", numbers.join(" "));
        let said = "\
            status=NoNewPrivs:\t1\nstatus=SigIgn:\t0000000180000004\nstatus=VmRSS:\t1600 kB\nstatus=Uid:\t0\t0\t0\t0\nenv=A=b=c\nenv=A=d\nfd.1=/dev/shm/test/x 0102001\n\
            fd.0=/dev/null 0100000\ncgroup=8:pids:/\ncgroup=0::/\nsurprise=1\n";
        let sight = read(&(stat + said));
        assert_eq!((sight.get("process.tty"), sight.get("cpu.nice")), (Some("7"), Some("19")));
        assert_eq!((sight.get("cpu.rt_priority"), sight.get("cpu.policy")), (Some("40"), Some("41")));
        assert_eq!((sight.get("confined.NoNewPrivs"), sight.get("id.Uid")), (Some("1"), Some("0 0 0 0")));
        assert_eq!(sight.get("signal.SigIgn"), Some("0000000000000004"));
        assert_eq!(sight.get("env.A"), Some("b=c; d"));
        assert_eq!((sight.get("fd.1"), sight.get("fd.0")), (Some("a log 0102001"), Some("/dev/null 0100000")));
        assert_eq!(sight.get("cgroup.path"), Some("/"));
        assert_eq!(sight.get("unknown.surprise"), Some("1"), "nothing is dropped unseen");
        assert!(sight.attributes().all(|(name, _)| !name.contains("VmRSS")));
    }
}
