//! Who we are: root, its capabilities, and the filter that takes system calls away.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

use super::{Finding, State, read};

pub(super) fn examine() -> Vec<Finding> {
    let read_set = |set| caps::read(None, set).map_err(io::Error::other);
    if !rustix::process::geteuid().is_root() {
        // That it has no capabilities either would be no news.
        return vec![Finding::missing("root", "we are not root; containers are made by root: try sudo")];
    }
    let mut findings = vec![Finding::good("root", "we are root")];
    match (read_set(CapSet::Effective), read_set(CapSet::Bounding)) {
        (Ok(effective), Ok(bounding)) => findings.extend(capabilities(&effective, &bounding)),
        (Err(cause), _) | (_, Err(cause)) => {
            findings.push(Finding::missing("capabilities", format!("cannot be read: {cause}")));
        }
    }
    findings.push(seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")));
    findings
}

/// What berth needs, how much, and what follows where it is missing.
const NEEDED: [(Capability, State, &str); 12] = [
    (Capability::CAP_SYS_ADMIN, State::Missing, "nothing can be mounted and no namespace made"),
    (Capability::CAP_SYS_CHROOT, State::Missing, "no root can be entered"),
    (Capability::CAP_MKNOD, State::Missing, "no /dev can be made"),
    (Capability::CAP_SETPCAP, State::Missing, "a task's capabilities cannot be taken away"),
    (Capability::CAP_CHOWN, State::Missing, "the folders of a container cannot be made"),
    (Capability::CAP_DAC_OVERRIDE, State::Missing, "images of other users cannot be read"),
    (Capability::CAP_FOWNER, State::Missing, "the folders of a container cannot be made"),
    (Capability::CAP_KILL, State::Degraded, "a task that changed its user cannot be signalled, only its cgroup killed"),
    (Capability::CAP_SETUID, State::Degraded, "a task cannot become another user"),
    (Capability::CAP_SETGID, State::Degraded, "a task cannot become another group"),
    (Capability::CAP_NET_ADMIN, State::Degraded, "a container's loopback interface stays down"),
    (
        Capability::CAP_SYS_RESOURCE,
        State::Degraded,
        "limits cannot be raised, nor can the supervisor stand behind all others when memory runs out (oom_score_adj): its tasks stand before it instead",
    ),
];

fn capabilities(effective: &CapsHashSet, bounding: &CapsHashSet) -> Vec<Finding> {
    let lacks: Vec<_> = NEEDED.iter().filter(|(needed, ..)| !effective.contains(needed)).collect();
    if lacks.is_empty() {
        return vec![Finding::good("capabilities", "all that berth needs")];
    }
    let finding = |(lacking, state, follows): &&(Capability, State, &str)| {
        // What the bounding set lacks, not even a set-uid root program gets back (capabilities(7)).
        let why = if bounding.contains(lacking) { "was not given to us" } else { "is out of our reach here" };
        Finding { name: "capabilities", state: *state, says: format!("{lacking} {why}: {follows}") }
    };
    lacks.iter().map(finding).collect()
}

/// From the text of /proc/sys/kernel/seccomp/actions_avail (seccomp(2), Linux 4.14).
fn seccomp(actions: &str) -> Finding {
    match actions.split_whitespace().any(|action| action == "errno") {
        true => Finding::good("seccomp", "dangerous system calls are refused to tasks"),
        false => Finding::missing(
            "seccomp",
            "this kernel is built without CONFIG_SECCOMP_FILTER: no system call could be refused to a task",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_says_what_follows_and_whether_it_could_be_had() {
        let all: CapsHashSet = caps::all();
        assert_eq!(capabilities(&all, &all)[0].state, State::Good);

        let mut effective = all.clone();
        effective.remove(&Capability::CAP_SYS_RESOURCE);
        let from_outside = capabilities(&effective, &all);
        assert_eq!(from_outside[0].state, State::Degraded);
        assert!(from_outside[0].says.starts_with("CAP_SYS_RESOURCE was not given to us"));
        let never = capabilities(&effective, &effective);
        assert!(never[0].says.starts_with("CAP_SYS_RESOURCE is out of our reach here"));
        assert!(never[0].says.contains("oom_score_adj"));

        effective.remove(&Capability::CAP_SYS_ADMIN);
        assert_eq!(capabilities(&effective, &all)[0].state, State::Missing);
    }

    #[test]
    fn seccomp_is_there_when_it_can_answer_with_an_error() {
        assert_eq!(seccomp("kill_process kill_thread trap errno trace log allow\n").state, State::Good);
        assert_eq!(seccomp("").state, State::Missing);
    }
}
