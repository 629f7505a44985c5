//! The names that LXC 1 and 2 gave their keys, as lxc-update-config(1) translates them to those of LXC 2.1 and later.

/// Old and new, where the name alone changed.
const RENAMED: [(&str, &str); 23] = [
    ("lxc.aa_allow_incomplete", "lxc.apparmor.allow_incomplete"),
    ("lxc.aa_profile", "lxc.apparmor.profile"),
    ("lxc.console", "lxc.console.path"),
    ("lxc.devttydir", "lxc.tty.dir"),
    ("lxc.haltsignal", "lxc.signal.halt"),
    ("lxc.id_map", "lxc.idmap"),
    ("lxc.init_cmd", "lxc.init.cmd"),
    ("lxc.init_gid", "lxc.init.gid"),
    ("lxc.init_uid", "lxc.init.uid"),
    ("lxc.limit", "lxc.prlimit"),
    ("lxc.logfile", "lxc.log.file"),
    ("lxc.loglevel", "lxc.log.level"),
    ("lxc.mount", "lxc.mount.fstab"),
    ("lxc.network", "lxc.net"),
    ("lxc.pts", "lxc.pty.max"),
    ("lxc.rebootsignal", "lxc.signal.reboot"),
    ("lxc.rootfs", "lxc.rootfs.path"),
    ("lxc.se_context", "lxc.selinux.context"),
    ("lxc.seccomp", "lxc.seccomp.profile"),
    ("lxc.stopsignal", "lxc.signal.stop"),
    ("lxc.syslog", "lxc.log.syslog"),
    ("lxc.tty", "lxc.tty.max"),
    ("lxc.utsname", "lxc.uts.name"),
];

/// Names the storage that `lxc.rootfs` is on; its new name says that itself.
const BACKEND: &str = "lxc.rootfs.backend";
/// Keys that say nothing any more, and are dropped.
const DROPPED: [&str; 3] = [BACKEND, "lxc.pivotdir", "lxc.kmsg"];

/// What must be known of a file, and of its lines so far, to translate the next.
pub(super) struct Translator {
    backend: String,
    /// LXC 1 and 2 counted networks by their `type` lines; later ones write the number into the key.
    networks_seen: usize,
}

impl Translator {
    /// For a file with these settings.
    pub(super) fn of<'a>(settings: impl Iterator<Item = (&'a str, &'a str)>) -> Translator {
        let backend = settings.filter(|(key, value)| *key == BACKEND && !value.is_empty()).last();
        Translator { backend: backend.map_or("dir", |(_, value)| value).to_owned(), networks_seen: 0 }
    }

    /// A setting in today's words; `None` if it says nothing any more. New names stay as they are.
    pub(super) fn translate(&mut self, key: &str, value: &str) -> Option<(String, String)> {
        match key {
            _ if DROPPED.contains(&key) => None,
            "lxc.rootfs" => Some(("lxc.rootfs.path".to_owned(), format!("{}:{value}", self.backend))),
            _ => Some((self.new_name(key), value.to_owned())),
        }
    }

    fn new_name(&mut self, key: &str) -> String {
        if let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == key) {
            return (*new).to_owned();
        }
        // The tool knows only the bare name; LXC read the whole family.
        if let Some(name) = key.strip_prefix("lxc.limit.") {
            return format!("lxc.prlimit.{name}");
        }
        match key.strip_prefix("lxc.network.") {
            Some(rest) => self.new_network_name(rest),
            None => key.to_owned(),
        }
    }

    fn new_network_name(&mut self, rest: &str) -> String {
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            return format!("lxc.net.{rest}");
        }
        if rest == "type" {
            self.networks_seen += 1;
        }
        let index = self.networks_seen.saturating_sub(1);
        let suffix = if matches!(rest, "ipv4" | "ipv6") { ".address" } else { "" };
        format!("lxc.net.{index}.{rest}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::reader::settings;
    use super::*;
    use crate::scratch::Scratch;

    /// Debian's lxc.
    const TOOL: &str = "/usr/bin/lxc-update-config";

    /// Every name that the tool's sed scripts look for, dots unescaped: what stands in `\(lxc\.…\)`.
    fn names_in(script: &str) -> Vec<String> {
        let mut names: Vec<String> = script
            .split(r"\(lxc\.")
            .skip(1)
            .filter_map(|rest| rest.split_once(r"\)"))
            .map(|(name, _)| format!("lxc.{}", name.replace(r"\.", ".")))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// A config with each of the tool's names once, and networks spelled both ways.
    fn legacy_config(names: &[String]) -> String {
        let networks =
            ["type", "flags", "link", "name", "hwaddr", "mtu", "ipv4", "ipv4.gateway", "ipv6", "ipv6.gateway"];
        let more = ["macvlan.mode", "veth.pair", "vlan.id", "script.up", "script.down"];
        let backend = |name: &&String| *name == BACKEND;
        let mut lines: Vec<String> =
            names.iter().filter(|name| !backend(name)).map(|name| format!("{name} = value")).collect();
        for _ in 0..2 {
            lines.extend(networks.iter().chain(&more).map(|key| format!("lxc.network.{key} = value")));
        }
        lines.extend(networks.iter().map(|key| format!("lxc.network.7.{key} = value")));
        let same = ["lxc.environment = A=1", "lxc.cap.drop = sys_module", "lxc.mount.entry = a b none bind 0 0"];
        lines.extend(same.map(str::to_owned));
        lines.push("lxc.cgroup.memory.limit_in_bytes = 1".to_owned());
        // The tool's own loop sees it in the last line only.
        lines.push(format!("{BACKEND} = lvm"));
        lines.join("\n") + "\n"
    }

    #[test]
    fn every_old_name_is_translated_as_debians_lxc_update_config_translates_it() {
        let Ok(script) = std::fs::read_to_string(TOOL) else {
            eprintln!("SKIPPED, needs Debian's lxc: {TOOL} is not there");
            return;
        };
        let names = names_in(&script);
        // Whatever the tool's authors add is looked for here too; that it is understood at all is seen by these.
        for known in RENAMED.iter().map(|(old, _)| *old).chain(DROPPED) {
            assert!(names.iter().any(|name| name == known), "{known} is not in {names:?}");
        }
        let scratch = Scratch::new("update");
        let ours = legacy_config(&names);
        scratch.write("config", &ours);
        // It makes a temporary file in the current folder.
        let ran = Command::new(TOOL).args(["-c", "config"]).current_dir(scratch.path()).output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let theirs = std::fs::read_to_string(scratch.join("config")).unwrap();
        let theirs: Vec<(&str, &str)> = theirs.lines().filter_map(|line| line.split_once(" = ")).collect();
        let ours: Vec<(String, String)> =
            settings(&ours).unwrap().into_iter().map(|set| (set.key, set.value)).collect();
        let ours: Vec<(&str, &str)> = ours.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(ours, theirs);
        assert!(ours.len() > 50, "{}", ours.len());
    }

    #[test]
    fn networks_are_numbered_by_their_type_lines_and_a_family_that_the_tool_forgets_is_renamed_too() {
        let mut translator = Translator::of(std::iter::empty());
        let mut new = |key: &str| translator.translate(key, "").map(|(key, _)| key).unwrap();
        assert_eq!(new("lxc.network.type"), "lxc.net.0.type");
        assert_eq!(new("lxc.network.link"), "lxc.net.0.link");
        assert_eq!(new("lxc.network.type"), "lxc.net.1.type");
        assert_eq!(new("lxc.network.ipv4"), "lxc.net.1.ipv4.address");
        assert_eq!(new("lxc.limit.nofile"), "lxc.prlimit.nofile");
    }

    #[test]
    fn a_root_gets_the_prefix_of_its_backend() {
        let mut translator = Translator::of([(BACKEND, "lvm"), ("lxc.rootfs", "/x")].into_iter());
        assert_eq!(translator.translate("lxc.rootfs", "/x").unwrap().1, "lvm:/x");
        assert_eq!(translator.translate(BACKEND, "lvm"), None);
        let mut translator = Translator::of(std::iter::empty());
        assert_eq!(translator.translate("lxc.rootfs", "/x").unwrap().1, "dir:/x");
    }
}
