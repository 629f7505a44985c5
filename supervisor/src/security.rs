//! What a container may not do: capabilities, system calls, paths and limits taken away.
//!
//! Lists first, then the few calls that apply them. The lists follow what Docker takes away by default,
//! less what a batch job has no use for. Everything here happens between the fork of the payload and its
//! execve, or is compiled once when the supervisor starts.

use std::io;

use crate::lxc_config;
use caps::{CapSet, Capability, CapsHashSet};
use rustix::process::{Resource, Rlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What the payload's root keeps: Docker's default list less device nodes, raw sockets and the audit log.
pub const KEPT_CAPABILITIES: [Capability; 11] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
];

/// What init keeps once the container stands: enough to signal a payload that changed its user.
const INIT_CAPABILITIES: [Capability; 1] = [Capability::CAP_KILL];

/// Files that show or change the host: covered by /dev/null.
pub const MASKED_FILES: [&str; 6] =
    ["proc/kcore", "proc/keys", "proc/latency_stats", "proc/sched_debug", "proc/timer_list", "proc/sysrq-trigger"];

/// Folders that show or change the host: covered by an empty folder.
pub const MASKED_FOLDERS: [&str; 4] = ["proc/acpi", "proc/scsi", "proc/asound", "sys/firmware"];

/// Folders that may be read but not written.
pub const READ_ONLY_FOLDERS: [&str; 4] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys"];

/// The character devices a container has: name, major, minor (the kernel's admin-guide/devices.txt).
pub const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Most open files of a payload, where the supervisor's own hard limit allows as many.
pub const OPEN_FILES: u64 = 65_536;

/// Resources by the names LXC gives them in `lxc.prlimit.*`.
const RESOURCES: [(&str, Resource); 10] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("memlock", Resource::Memlock),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// System calls that answer EPERM: they load code into the kernel, change the machine's clock, mounts, swap or
/// namespaces, read the kernel, or have been the door of escapes before. Tracing stays: a container reaches only its own
/// processes, and its init cannot be traced.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: [i64; 4] = [libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: [i64; 0] = [];

const DENIED: [i64; 47] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lookup_dcookie,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// The namespace flags of clone(2): a container makes no further namespaces.
const NAMESPACE_FLAGS: [i32; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// The compiled system-call filters: made once, applied to every payload.
#[derive(Debug)]
pub struct SystemCallFilter {
    programs: Vec<BpfProgram>,
}

impl SystemCallFilter {
    /// Compiles the deny list for this machine's architecture.
    pub fn compile() -> Result<SystemCallFilter, seccompiler::BackendError> {
        let mut denied: Vec<(i64, Vec<SeccompRule>)> =
            DENIED.iter().chain(&DENIED_HERE).map(|&call| (call, vec![])).collect();
        denied.push((libc::SYS_clone, namespace_rules()?));
        denied.push((libc::SYS_socket, vec![to_the_hypervisor()?]));
        // clone3's flags are behind a pointer where a filter cannot look; told that it is not there, libc uses clone.
        let absent = vec![(libc::SYS_clone3, vec![])];
        let mut programs = vec![program(denied, libc::EPERM)?, program(absent, libc::ENOSYS)?];
        programs.extend(foreign_numbers());
        Ok(SystemCallFilter { programs })
    }

    /// Applies the filters to this thread and all it will become; sets no_new_privs as seccomp(2) wants.
    pub fn apply(&self) -> io::Result<()> {
        self.programs.iter().try_for_each(|program| seccompiler::apply_filter(program).map_err(io::Error::other))
    }
}

/// x32, the ABI with 32-bit pointers that a kernel may have beside x86_64's own: the same architecture to a filter, the
/// same calls under numbers with this bit set, and some more.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

/// No call has a number of x32: ENOSYS, as most kernels would say (seccomp(2), "Architecture support for seccomp BPF").
/// A range is more than seccompiler knows, so it is spelled in the kernel's own words.
#[cfg(target_arch = "x86_64")]
fn foreign_numbers() -> Option<BpfProgram> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const SKIP_UNLESS_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const SKIP_UNLESS_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    /// With this number a tracer takes a call back, having answered it itself (ptrace(2)).
    const TAKEN_BACK: u32 = u32::MAX;
    let step = |code: u32, k: u32, skip: u8| seccompiler::sock_filter { code: code as u16, jt: 0, jf: skip, k };
    Some(vec![
        step(LOAD, 0, 0),
        step(SKIP_UNLESS_AT_LEAST, X32_BIT, 1),
        step(SKIP_UNLESS_EQUAL, TAKEN_BACK, 1),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
        step(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(), 0),
    ])
}

#[cfg(not(target_arch = "x86_64"))]
fn foreign_numbers() -> Option<BpfProgram> {
    None
}

/// AF_VSOCK reaches the hypervisor's host past every network namespace (vsock(7)).
fn to_the_hypervisor() -> Result<SeccompRule, seccompiler::BackendError> {
    let vsock = u64::from(libc::AF_VSOCK.cast_unsigned());
    SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, vsock)?])
}

fn namespace_rules() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    NAMESPACE_FLAGS
        .iter()
        .map(|&flag| {
            let flag = u64::from(flag.cast_unsigned());
            let set = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
            SeccompRule::new(vec![set])
        })
        .collect()
}

fn program(rules: Vec<(i64, Vec<SeccompRule>)>, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, answer, arch)?.try_into()
}

/// The capabilities by LXC's names for them: lower case, without `cap_`. A name that nobody knows keeps nothing.
pub fn capabilities_named(names: &[String]) -> Vec<Capability> {
    names.iter().filter_map(|name| caps::to_canonical(name).parse().ok()).collect()
}

/// LXC's names of the capabilities a payload keeps by default.
pub fn kept_capability_names() -> Vec<String> {
    KEPT_CAPABILITIES.iter().map(|kept| kept.to_string().trim_start_matches("CAP_").to_ascii_lowercase()).collect()
}

/// Takes from init what only setting up needed.
pub fn drop_init_capabilities() -> io::Result<()> {
    keep_only(&INIT_CAPABILITIES)
}

/// Takes everything but `kept` from this process, for good: with the bounding set cut down, even root gets no more
/// back at execve (capabilities(7)).
pub fn keep_only(kept: &[Capability]) -> io::Result<()> {
    let bounding = caps::read(None, CapSet::Bounding).map_err(io::Error::other)?;
    for capability in bounding.iter().filter(|capability| !kept.contains(capability)) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(io::Error::other)?;
    }
    // What the machine itself lacks cannot be kept.
    let kept: CapsHashSet = kept.iter().copied().filter(|capability| bounding.contains(capability)).collect();
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new()).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)
}

/// The limits every payload gets, by LXC's names: no core files, and open files up to what the supervisor may give.
pub fn default_rlimits() -> Vec<lxc_config::Rlimit> {
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let both = |name: &str, limit| lxc_config::Rlimit { name: name.to_owned(), soft: Some(limit), hard: Some(limit) };
    vec![both("core", 0), both("nofile", OPEN_FILES.min(hard))]
}

/// Sets one limit (setrlimit(2)). A raise that this machine does not allow leaves the limit as it was.
pub fn set_rlimit(limit: &lxc_config::Rlimit) -> io::Result<()> {
    let resource = RESOURCES.iter().find(|(name, _)| *name == limit.name).map(|(_, resource)| *resource);
    let resource = resource.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, limit.name.clone()))?;
    match rustix::process::setrlimit(resource, Rlimit { current: limit.soft, maximum: limit.hard }) {
        Err(rustix::io::Errno::PERM) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deny_list_compiles_for_this_machine() {
        let filter = SystemCallFilter::compile().unwrap();
        assert!(filter.programs.len() >= 2);
        assert!(filter.programs.iter().all(|program| !program.is_empty()));
    }

    /// What the kernel would make of a call without arguments: the first program that does not allow it.
    #[cfg(target_arch = "x86_64")]
    fn answer(filter: &SystemCallFilter, number: u32) -> u32 {
        let mut answers = filter.programs.iter().map(|program| interpret(program, number));
        answers.find(|answer| *answer != libc::SECCOMP_RET_ALLOW).unwrap_or(libc::SECCOMP_RET_ALLOW)
    }

    #[cfg(target_arch = "x86_64")]
    fn interpret(program: &[seccompiler::sock_filter], number: u32) -> u32 {
        const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
        let (mut next, mut word) = (0, 0);
        loop {
            let step = &program[next];
            let jump = |yes| usize::from(if yes { step.jt } else { step.jf });
            next += 1;
            match step.code {
                0x20 => word = [number, AUDIT_ARCH_X86_64].get(step.k as usize / 4).copied().unwrap_or(0),
                0x54 => word &= step.k,
                0x05 => next += step.k as usize,
                0x15 => next += jump(word == step.k),
                0x25 => next += jump(word > step.k),
                0x35 => next += jump(word >= step.k),
                0x06 => return step.k,
                code => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_is_denied_is_denied_under_its_x32_number_too() {
        let filter = SystemCallFilter::compile().unwrap();
        let errno = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
        for call in DENIED.iter().chain(&DENIED_HERE).map(|&call| u32::try_from(call).unwrap()) {
            assert_eq!(answer(&filter, call), errno(libc::EPERM), "{call}");
            assert_eq!(answer(&filter, call | X32_BIT), errno(libc::ENOSYS), "{call}");
        }
        // clone3, and kexec_load as x32 alone numbers it.
        for foreign in [435 | X32_BIT, 528 | X32_BIT] {
            assert_eq!(answer(&filter, foreign), errno(libc::ENOSYS));
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_every_program_needs_is_allowed_and_so_is_a_call_that_its_tracer_took_back() {
        let filter = SystemCallFilter::compile().unwrap();
        let needed = [libc::SYS_read, libc::SYS_execve, libc::SYS_clone, libc::SYS_ptrace, libc::SYS_exit_group];
        for call in needed.into_iter().map(|call| u32::try_from(call).unwrap()).chain([u32::MAX]) {
            assert_eq!(answer(&filter, call), libc::SECCOMP_RET_ALLOW, "{call}");
        }
    }

    #[test]
    fn nothing_is_denied_twice() {
        let mut calls: Vec<i64> = DENIED.iter().chain(&DENIED_HERE).copied().collect();
        calls.sort_unstable();
        let count = calls.len();
        calls.dedup();
        assert_eq!(calls.len(), count);
    }

    #[test]
    fn kept_capabilities_survive_their_lxc_names() {
        assert_eq!(capabilities_named(&kept_capability_names()), KEPT_CAPABILITIES);
    }

    #[test]
    fn a_payload_keeps_no_capability_that_reaches_the_host() {
        for reaching in
            [Capability::CAP_SYS_ADMIN, Capability::CAP_MKNOD, Capability::CAP_SYS_PTRACE, Capability::CAP_NET_ADMIN]
        {
            assert!(!KEPT_CAPABILITIES.contains(&reaching));
        }
    }
}
