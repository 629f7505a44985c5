//! In what a command's container by berth and by LXC may differ, and why; everything else must be equal. Pure.

use std::collections::BTreeSet;
use std::fmt;

use super::sight::Sight;

/// Who made the other container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// `lxc-execute`: an init of LXC's, and the command below it.
    Execute,
    /// `lxc-start -F`: the command is PID 1.
    Start,
}

impl Runtime {
    /// Both of them.
    pub const ALL: [Runtime; 2] = [Runtime::Execute, Runtime::Start];
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Runtime::Execute => "lxc-execute",
            Runtime::Start => "lxc-start -F",
        })
    }
}

/// One attribute that is not the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub attribute: String,
    /// By berth; `None`: there is no such thing.
    pub ours: Option<String>,
    /// By LXC.
    pub theirs: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(nothing)".to_owned());
        write!(f, "{}: {} by berth, {} by LXC", self.attribute, shown(&self.ours), shown(&self.theirs))
    }
}

/// Everything in which the two differ.
pub fn differences(ours: &Sight, theirs: &Sight) -> Vec<Difference> {
    let names: BTreeSet<&str> = ours.attributes().chain(theirs.attributes()).map(|(name, _)| name).collect();
    let differing = names.into_iter().filter(|name| ours.get(name) != theirs.get(name));
    let value = |sight: &Sight, name: &str| sight.get(name).map(str::to_owned);
    differing
        .map(|name| Difference { attribute: name.to_owned(), ours: value(ours, name), theirs: value(theirs, name) })
        .collect()
}

/// Where an attribute is that an excuse speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// In both containers, with different values.
    Both,
    /// Only in berth's.
    Ours,
    /// Only in LXC's.
    Theirs,
}

/// Machines that a difference is to be seen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machines {
    /// All.
    All,
    /// Those with a v1 hierarchy.
    WithCgroupV1,
}

/// A difference that stands, and why.
#[derive(Debug)]
pub struct Excuse {
    /// The attributes; a `*` is anything. Where one is a mount that only LXC has, so are its source and propagation.
    pub attributes: &'static [&'static str],
    /// Where they are.
    pub side: Where,
    /// Against whom.
    pub against: &'static [Runtime],
    /// On which machines it is to be seen.
    pub on: Machines,
    /// By berth, and by LXC.
    pub values: [&'static str; 2],
    /// Why it stands.
    pub reason: &'static str,
}

/// All that stand.
pub const EXCUSES: &[Excuse] = &[
    Excuse {
        attributes: &["process.NSpid", "process.NSpgid", "process.NSsid"],
        side: Where::Both,
        against: &[Runtime::Start],
        on: Machines::All,
        values: ["2", "1"],
        reason: "lxc-start makes the command itself PID 1; berth, like lxc-execute, has an init above it, which reaps, keeps \
            the time and records the end",
    },
    Excuse {
        attributes: &["env.container"],
        side: Where::Theirs,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["not set", "`lxc`"],
        reason: "it is LXC's word for LXC; a command of berth finds `BERTH_*`",
    },
    Excuse {
        attributes: &["kernel.boot_id", "mount./proc/sys/kernel/random/boot_id"],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["the machine's", "one of its own, mounted over it"],
        reason: "LXC plays a machine that boots; a job runs on this machine, and logs of its jobs are told apart by boots of \
            that",
    },
    Excuse {
        attributes: &["confined.Seccomp_filters"],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["4", "1"],
        reason: "the same list is four programs to berth: one for each of EPERM, ENOSYS and EOPNOTSUPP, and one for numbers of \
            x32, which LXC's policy has rules for call by call; the answers are compared above",
    },
    Excuse {
        attributes: &[
            "answer.prlimit-init",
            "answer.tgkill-init",
            "answer.tkill-init",
            "answer.sigqueue-init",
            "answer.tgsigqueue-init",
            "answer.pidfd-signal-info",
            "answer.pidfd-signal-thread",
            "answer.pidfd-thread",
        ],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["EPERM", "the kernel's answer"],
        reason: "what could take limits from berth's init, or pass for a word from outside to it; LXC has another init, or \
            runs the command itself as PID 1, and then these are what abort(3) and a runtime's threads are made of",
    },
    Excuse {
        attributes: &["dev./dev/ptmx", "mount./dev/ptmx"],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["a symlink to pts/ptmx", "pts/ptmx mounted there"],
        reason: "the same device either way (devpts.rst of the kernel names both); a symlink is no mount",
    },
    Excuse {
        attributes: &["mount.*.propagation"],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["private", "shared"],
        reason: "LXC shares mounts among containers inside its own; a command of berth can mount nothing that would be shared",
    },
    Excuse {
        attributes: &["mount./.source", "mount./sys/fs/cgroup*.source"],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["the filesystem's name", "the lower layer's path, or `none`"],
        reason: "the kernel ignores this text; LXC's tells the container a path of the node",
    },
    Excuse {
        attributes: &["mount./workspace"],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["volatile", "not volatile"],
        reason: "LXC 5.0.2 drops an option without a value from a `lxc.mount.entry`; the workspace is thrown away unsynced \
            either way",
    },
    Excuse {
        attributes: &["mount./sys/fs/cgroup"],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::WithCgroupV1,
        values: ["16 KiB, 32 files", "10 MiB"],
        reason: "the size of an all but empty tmpfs, which LXC has no key for",
    },
    Excuse {
        attributes: &["mount./sys/fs/cgroup/*"],
        side: Where::Theirs,
        against: &Runtime::ALL,
        on: Machines::WithCgroupV1,
        values: ["the hierarchies that limit it", "every hierarchy"],
        reason: "berth puts a container into the hierarchies that it limits or counts by, and shows those; LXC has no key to \
            choose",
    },
    Excuse {
        attributes: &["fd.0"],
        side: Where::Both,
        against: &Runtime::ALL,
        on: Machines::All,
        values: ["/null", "/dev/null"],
        reason: "the null device of the node for both; berth opens it before it leaves the node's root, so that its path is \
            told from a mount that is gone",
    },
];

impl Excuse {
    /// Whether it is this difference that it speaks of.
    pub fn covers(&self, difference: &Difference, against: Runtime) -> bool {
        let side = match (&difference.ours, &difference.theirs) {
            (Some(_), None) => Where::Ours,
            (None, Some(_)) => Where::Theirs,
            _ => Where::Both,
        };
        // A mount that LXC makes for the same end is LXC's alone.
        let mounted = side == Where::Theirs && self.side == Where::Both;
        let like = |pattern: &&str| match mounted {
            true => pattern.starts_with("mount.") && is_like(of_mount(&difference.attribute), pattern),
            false if side == Where::Theirs => is_like(of_mount(&difference.attribute), pattern),
            false => is_like(&difference.attribute, pattern),
        };
        (side == self.side || mounted) && self.against.contains(&against) && self.attributes.iter().any(like)
    }
}

/// The mount that a source or propagation is of.
fn of_mount(attribute: &str) -> &str {
    let mount = attribute.strip_suffix(".source").or_else(|| attribute.strip_suffix(".propagation"));
    mount.filter(|mount| mount.starts_with("mount.")).unwrap_or(attribute)
}

/// The number of the excuse for a difference.
pub fn excuse(difference: &Difference, against: Runtime) -> Option<usize> {
    EXCUSES.iter().position(|excuse| excuse.covers(difference, against))
}

/// Whether a name is like a pattern with at most one `*`.
fn is_like(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((head, tail)) => name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sight::Host;
    use super::*;

    fn sight(said: &str) -> Sight {
        Sight::read(said, &Host::default())
    }

    #[test]
    fn what_differs_or_is_on_one_side_only_is_told_and_nothing_else() {
        let told = differences(&sight("cwd=/a\nhostname=h\ndev.x=1\n"), &sight("cwd=/b\nhostname=h\ndev.y=1\n"));
        let told: Vec<String> = told.iter().map(Difference::to_string).collect();
        assert_eq!(told[0], "dev.x: 1 by berth, (nothing) by LXC");
        assert_eq!(told[1], "dev.y: (nothing) by berth, 1 by LXC");
        assert_eq!(told[2], "process.cwd: /a by berth, /b by LXC");
        assert_eq!(told.len(), 3);
    }

    fn difference(attribute: &str, ours: Option<&str>) -> Difference {
        Difference { attribute: attribute.to_owned(), ours: ours.map(str::to_owned), theirs: Some("x".to_owned()) }
    }

    fn made_up(attributes: &'static [&'static str], side: Where) -> Excuse {
        Excuse { attributes, side, against: &[Runtime::Start], on: Machines::All, values: ["", ""], reason: "" }
    }

    #[test]
    fn an_excuse_is_for_its_side_its_runtime_and_its_attributes_alone() {
        let excuse = made_up(&["other", "mount.*.propagation"], Where::Both);
        assert!(excuse.covers(&difference("mount./dev.propagation", Some("y")), Runtime::Start));
        assert!(!excuse.covers(&difference("mount./dev.propagation", Some("y")), Runtime::Execute));
        assert!(!excuse.covers(&difference("mount./dev.propagation", None), Runtime::Start));
        assert!(!excuse.covers(&difference("mount./dev.source", Some("y")), Runtime::Start));
        assert!(!excuse.covers(&difference("mount.propagation", Some("y")), Runtime::Start), "head and tail overlap");
        let excuse = made_up(&["env.container"], Where::Theirs);
        assert!(excuse.covers(&difference("env.container", None), Runtime::Start));
        assert!(!excuse.covers(&difference("env.container", Some("y")), Runtime::Start));
        assert!(!excuse.covers(&difference("env.HOME", None), Runtime::Start));
    }

    #[test]
    fn a_mount_for_the_same_end_is_covered_with_its_source_and_nothing_else_that_is_missing() {
        let excuse = made_up(&["dev./dev/ptmx", "mount./dev/ptmx"], Where::Both);
        for attribute in ["mount./dev/ptmx", "mount./dev/ptmx.source", "mount./dev/ptmx.propagation"] {
            assert!(excuse.covers(&difference(attribute, None), Runtime::Start), "{attribute}");
        }
        assert!(excuse.covers(&difference("dev./dev/ptmx", Some("y")), Runtime::Start));
        assert!(!excuse.covers(&difference("dev./dev/ptmx", None), Runtime::Start));
        assert!(!excuse.covers(&difference("mount./dev", None), Runtime::Start));
    }
}
