//! docs/lxc.md: what is compared, what differs and why, and every shape of a job. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::differences::{EXCUSES, Machines, Runtime};
use super::sight::Sight;

/// What stands above the tables.
const HEAD: &str = "\
# A container's config under stock LXC

berth writes the config of every container to `cont/<id>/config` in LXC's own words, and applies the same value. Here that
file, as it was written, is given to Debian's LXC 5.0.2 with the same command on a copy of the same writable layer: to
`lxc-execute`, and to `lxc-start -F`. A probe in the image says what it sees of its container under all three, and
every attribute must be equal, or stand in the list of what differs and why. The list is in the code
(`tests/src/conformance/differences.rs`); one in it that is no longer seen fails the test as well.

The tables are what this wrote, as root:

    BERTH_WRITE_DOCS=1 scripts/test lxc

To run a job's config by hand while the job runs, copy its `usrfile` folder elsewhere and name that in `lxc.rootfs.path`:
no overlay takes a writable layer that another uses. LXC needs a folder for `-P`, and neither systemd nor a network bridge.

";

/// The kinds of attributes: how their names begin, what they are, and what is compared of them.
const KINDS: [(&str, &str, &str); 21] = [
    (
        "cgroup.",
        "limits",
        "as its cgroup files say: memory, memory and swap, CPU weight and quota, cpuset, pids, devices",
    ),
    ("cpu.", "CPUs", "those it may run on, its memory nodes, nice value, scheduling policy and priority"),
    ("rlimit.", "resource limits", "all sixteen, soft and hard"),
    ("caps.", "capabilities", "permitted, effective, inheritable, bounding, ambient"),
    ("confined.", "confinement", "no_new_privs, seccomp mode and filters, speculation"),
    (
        "answer.",
        "system calls",
        "the errno of every denied call, of some that are allowed, of clone with namespace flags",
    ),
    (
        "may.",
        "rights",
        "whether it can make a device, mount, unmount, name the host, unshare, chown, open terminals, ...",
    ),
    ("write.", "places", "whether it can write to /, /tmp, /dev, /proc/sys, /sys, ..., and the errno if not"),
    ("cover.", "masked paths", "each that shows or changes the host: what is there instead"),
    ("mount.", "mounts", "every mount point: filesystem, what of it is shown, flags, options, source, propagation"),
    ("dev.", "devices", "everything in /dev: kind, mode, owner, device number, where a link leads"),
    ("file.", "files", "everything on the root and in /workspace, /tmp and /run: kind, mode, owner"),
    ("ns.", "namespaces", "each: its own or the host's"),
    ("net.", "network", "every interface, up or down, with its addresses"),
    ("uts.", "names", "host name and domain name"),
    ("id.", "users", "uid, gid, groups, umask, uid_map, gid_map, setgroups"),
    ("env.", "environment", "as execve(2) got it"),
    ("fd.", "descriptors", "every open one: where it leads, its flags"),
    ("signal.", "signals", "blocked, ignored, caught"),
    ("process.", "process", "pid, group, session, terminal, tracer, working directory, root, oom_score_adj"),
    ("kernel.", "the rest", "boot id, personality, core dump filter, timer slack"),
];

/// What was seen of one shape of a job: by name, and for each runtime the excuses that were needed, by number from 0.
#[derive(Debug)]
pub struct Row {
    /// The shape.
    pub shape: String,
    /// For each of [`Runtime::ALL`].
    pub excused: Vec<BTreeSet<usize>>,
}

/// The whole page. `excused_attributes` are those of any shape with the runtime and the excuse they needed.
pub fn page(rows: &[Row], excused_attributes: &BTreeSet<(String, Runtime, usize)>, with_cgroup_v1: bool) -> String {
    let mut page = HEAD.to_owned();
    page += "## What a command sees\n\n| what | compared | lxc-execute | lxc-start -F |\n|---|---|---|---|\n";
    for (prefix, title, compared) in KINDS {
        let [execute, start] = Runtime::ALL.map(|runtime| {
            let of_kind = |(name, by, _): &&(String, Runtime, usize)| name.starts_with(prefix) && *by == runtime;
            let seen = excused_attributes.iter().filter(of_kind).map(|(_, _, number)| *number).collect();
            verdict(&with_unseen(&seen, with_cgroup_v1, prefix))
        });
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| {title} | {compared} | {execute} | {start} |");
    }
    page += "\n## What differs, and why\n\n| | what | by berth | by LXC | why |\n|---:|---|---|---|---|\n";
    for (number, excuse) in EXCUSES.iter().enumerate() {
        let attributes: Vec<String> = excuse.attributes.iter().map(|attribute| format!("`{attribute}`")).collect();
        let [ours, theirs] = excuse.values;
        let (what, why) = (attributes.join(", "), excuse.reason);
        let _ = writeln!(page, "| {} | {what} | {ours} | {theirs} | {why} |", number + 1);
    }
    page += "\n## Every shape of a job\n\n| shape | lxc-execute | lxc-start -F |\n|---|---|---|\n";
    for row in rows {
        let verdicts: Vec<String> =
            row.excused.iter().map(|excused| verdict(&with_unseen(excused, with_cgroup_v1, ""))).collect();
        let _ = writeln!(page, "| {} | {} |", row.shape, verdicts.join(" | "));
    }
    page
}

/// With the excuses for attributes of a kind that this machine cannot show, so that the page is the same on all.
fn with_unseen(excused: &BTreeSet<usize>, with_cgroup_v1: bool, prefix: &str) -> BTreeSet<usize> {
    let unseen = EXCUSES.iter().enumerate().filter(|(_, excuse)| {
        let of_kind = excuse.attributes.iter().any(|attribute| attribute.starts_with(prefix));
        excuse.on == Machines::WithCgroupV1 && !with_cgroup_v1 && of_kind
    });
    excused.iter().copied().chain(unseen.map(|(number, _)| number)).collect()
}

fn verdict(excused: &BTreeSet<usize>) -> String {
    let numbers: Vec<String> = excused.iter().map(|number| (number + 1).to_string()).collect();
    if numbers.is_empty() { "equal".to_owned() } else { format!("equal but for {}", numbers.join(", ")) }
}

/// What keeps a sight from being compared: an attribute of no kind, or a kind without one.
pub fn gaps(sight: &Sight) -> Vec<String> {
    let of_no_kind = sight.attributes().map(|(name, _)| name);
    let of_no_kind = of_no_kind.filter(|name| !KINDS.iter().any(|(prefix, ..)| name.starts_with(prefix)));
    let empty = KINDS.iter().filter(|(prefix, ..)| !sight.attributes().any(|(name, _)| name.starts_with(prefix)));
    of_no_kind.map(str::to_owned).chain(empty.map(|(prefix, ..)| format!("nothing of {prefix}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sight::Host;
    use super::*;

    fn number_of(machines: Machines) -> usize {
        EXCUSES.iter().position(|excuse| excuse.on == machines).expect("an excuse")
    }

    fn lines(with_cgroup_v1: bool) -> Vec<String> {
        let number = number_of(Machines::All);
        let seen = [("env.container".to_owned(), Runtime::Start, number)].into();
        let row = Row { shape: "plain".to_owned(), excused: vec![[].into(), [number].into()] };
        page(&[row], &seen, with_cgroup_v1).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_page_tells_what_was_seen_by_kind_and_by_shape() {
        let (lines, number) = (lines(true), number_of(Machines::All) + 1);
        let line = |begin: &str| lines.iter().find(|line| line.starts_with(begin)).expect("a line").clone();
        assert!(line("| environment |").ends_with(&format!("| equal | equal but for {number} |")));
        assert!(line("| names |").ends_with("| equal | equal |"));
        assert_eq!(line("| plain |"), format!("| plain | equal | equal but for {number} |"));
        assert!(EXCUSES.iter().all(|excuse| lines.iter().any(|line| line.contains(excuse.reason))));
    }

    #[test]
    fn a_machine_without_cgroup_v1_writes_the_same_page() {
        let number = number_of(Machines::WithCgroupV1);
        let seen = [("mount./sys/fs/cgroup".to_owned(), Runtime::Start, number)].into();
        let rows = |excused: BTreeSet<usize>| [Row { shape: "s".to_owned(), excused: vec![excused] }];
        let all = EXCUSES.iter().enumerate().filter(|(_, excuse)| excuse.on == Machines::WithCgroupV1);
        let all: BTreeSet<usize> = all.map(|(number, _)| number).collect();
        let [with, without] = [page(&rows(all), &seen, true), page(&rows([].into()), &seen, false)];
        let last = |page: &str| page.lines().last().map(str::to_owned);
        assert_eq!(last(&with), last(&without));
    }

    #[test]
    fn an_attribute_of_no_kind_and_a_kind_without_attributes_are_gaps() {
        let gaps = gaps(&Sight::read("hostname=h\nsurprise=1\n", &Host::default()));
        assert!(gaps.contains(&"unknown.surprise".to_owned()));
        assert!(gaps.contains(&"nothing of cgroup.".to_owned()));
        assert!(!gaps.contains(&"nothing of uts.".to_owned()));
    }
}
