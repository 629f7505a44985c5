//! The system calls a payload may not make: the list, the filter that the kernel runs, and the same list as a policy
//! for LXC.
//!
//! One list, two spellings: what `lxc.seccomp.profile` names makes stock LXC deny what berth denies, with the same errno;
//! but for what keeps berth's own init from the payload, which LXC does not have.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// A system call: the name that libseccomp, and so LXC, knows it by, and this architecture's number.
#[derive(Debug, Clone, Copy)]
struct Call {
    name: &'static str,
    number: i64,
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(Call { name: stringify!($name), number: libc::$name }),*] };
}

impl Call {
    fn lxc_name(self) -> &'static str {
        self.name.trim_start_matches("SYS_")
    }
}

/// System calls that answer EPERM: they load code into the kernel, change the machine's clock, mounts, swap or
/// namespaces, read the kernel, or have been the door of escapes before. Tracing stays: a container reaches only its own
/// processes, and its init cannot be traced.
const DENIED: &[Call] = calls![
    SYS_acct SYS_add_key SYS_adjtimex SYS_bpf SYS_clock_adjtime SYS_clock_settime SYS_delete_module SYS_fanotify_init
    SYS_finit_module SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_init_module SYS_io_uring_enter
    SYS_io_uring_register SYS_io_uring_setup SYS_kexec_file_load SYS_kexec_load SYS_keyctl SYS_landlock_restrict_self
    SYS_lookup_dcookie SYS_migrate_pages SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages
    SYS_name_to_handle_at SYS_nfsservctl SYS_open_by_handle_at SYS_open_tree SYS_perf_event_open SYS_pivot_root
    SYS_quotactl SYS_quotactl_fd SYS_reboot SYS_request_key SYS_setdomainname SYS_sethostname SYS_setns
    SYS_settimeofday SYS_swapoff SYS_swapon SYS_syslog SYS_umount2 SYS_unshare SYS_userfaultfd
];
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[Call] = calls![SYS_iopl SYS_ioperm SYS_modify_ldt SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[Call] = &[];

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

/// What the payload could take from its own init, which has its user: limits, so that no end is recorded and no log cut; and
/// calls whose signals the kernel delivers without their sender where there is no room to queue them, as if they came from
/// outside (signal(7), "RLIMIT_SIGPENDING"): all that speak to a thread, or bring words of their own. kill(2) keeps its
/// sender.
const NOT_TO_INIT: &[Call] = calls![SYS_prlimit64 SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_tgkill SYS_tkill];
/// A descriptor of a thread, and a signal to the thread that a descriptor means (pidfd_open(2), pidfd_send_signal(2), since
/// Linux 6.9): PIDFD_THREAD and PIDFD_SIGNAL_THREAD of linux/pidfd.h.
const PIDFD_THREAD: i32 = libc::O_EXCL;
const PIDFD_SIGNAL_THREAD: i32 = 1;
/// Init's pid, and that of its only thread, as the payload sees it.
const INIT: u32 = 1;

/// What an ioctl(2) of any filesystem takes as room beyond a file's end, as it was first spelled for XFS: FS_IOC_RESVSP,
/// FS_IOC_RESVSP64 and FS_IOC_ZERO_RANGE of linux/falloc.h.
const UNSEEN_ROOM: [u32; 3] = [0x4030_5828, 0x4030_582a, 0x4030_5839];

/// A system call that is denied if one of its arguments is so.
#[derive(Debug, Clone, Copy)]
struct Condition {
    call: Call,
    errno: i32,
    argument: u8,
    is: Is,
    /// It keeps our init from the payload. Stock LXC has none of ours, and may run the command itself as PID 1.
    for_init: bool,
}

/// What is asked of an argument.
#[derive(Debug, Clone, Copy)]
enum Is {
    /// Of its lower half, which is all that the kernel reads of an int, this is left under the mask.
    Left { mask: u32, left: u32 },
    /// A pointer that points somewhere.
    There,
}

impl Is {
    fn equal(value: u32) -> Is {
        Is::Left { mask: u32::MAX, left: value }
    }

    fn flags(flags: i32) -> Is {
        Is::Left { mask: flags.cast_unsigned(), left: flags.cast_unsigned() }
    }
}

fn conditions() -> Vec<Condition> {
    let on = |call: &Call, errno, argument, is| Condition { call: *call, errno, argument, is, for_init: false };
    let init = |call: &Call, argument, is| Condition { for_init: true, ..on(call, libc::EPERM, argument, is) };
    let [clone, socket, pidfd, signal, fallocate, ioctl] =
        calls![SYS_clone SYS_socket SYS_pidfd_open SYS_pidfd_send_signal SYS_fallocate SYS_ioctl];
    let mut all: Vec<Condition> =
        NAMESPACE_FLAGS.iter().map(|flag| on(clone, libc::EPERM, 0, Is::flags(*flag))).collect();
    // AF_VSOCK reaches the hypervisor's host past every network namespace (vsock(7)).
    all.push(on(socket, libc::EPERM, 0, Is::equal(libc::AF_VSOCK.cast_unsigned())));
    all.extend(NOT_TO_INIT.iter().map(|call| init(call, 0, Is::equal(INIT))));
    // Whom a descriptor means no filter can see. To a whole process and without words of its own it is as kill(2).
    all.push(init(signal, 2, Is::There));
    all.push(init(signal, 3, Is::flags(PIDFD_SIGNAL_THREAD)));
    all.push(init(pidfd, 1, Is::flags(PIDFD_THREAD)));
    // A log is measured by its size: room taken beyond it would fill the share unseen. The answer is that of a filesystem
    // that cannot do it, so programs know what to do then.
    let (keep, punch) = (libc::FALLOC_FL_KEEP_SIZE.cast_unsigned(), libc::FALLOC_FL_PUNCH_HOLE.cast_unsigned());
    all.push(on(fallocate, libc::EOPNOTSUPP, 1, Is::Left { mask: keep | punch, left: keep }));
    all.extend(UNSEEN_ROOM.iter().map(|request| on(ioctl, libc::EOPNOTSUPP, 1, Is::equal(*request))));
    all
}

fn denied() -> impl Iterator<Item = &'static Call> {
    DENIED.iter().chain(DENIED_HERE)
}

/// The compiled system-call filters: made once, applied to every payload.
#[derive(Debug)]
pub struct SystemCallFilter {
    programs: Vec<BpfProgram>,
}

impl SystemCallFilter {
    /// Compiles the deny list for this machine's architecture.
    pub fn compile() -> Result<SystemCallFilter, seccompiler::BackendError> {
        let mut by_errno: BTreeMap<i32, Rules> = BTreeMap::new();
        by_errno.insert(libc::EPERM, denied().map(|call| (call.number, vec![])).collect());
        // clone3's flags are behind a pointer where a filter cannot look; told that it is not there, libc uses clone.
        by_errno.insert(libc::ENOSYS, Rules::from([(libc::SYS_clone3, vec![])]));
        for condition in conditions() {
            let rules = by_errno.entry(condition.errno).or_default();
            rules.entry(condition.call.number).or_default().push(condition.rule()?);
        }
        let programs = by_errno.into_iter().map(|(errno, rules)| program(rules, errno));
        let mut programs = programs.collect::<Result<Vec<_>, _>>()?;
        programs.extend(foreign_numbers());
        Ok(SystemCallFilter { programs })
    }

    /// Applies the filters to this thread and all it will become; sets no_new_privs as seccomp(2) wants.
    pub fn apply(&self) -> io::Result<()> {
        self.programs.iter().try_for_each(|program| seccompiler::apply_filter(program).map_err(io::Error::other))
    }
}

/// The same list, but for what protects our init, as `lxc.seccomp.profile` wants it (lxc.container.conf(5), "seccomp configuration"; `denylist` since LXC
/// 4.0.5). In a masked comparison the values are what must be left and the mask that it is left under.
pub fn lxc_policy() -> String {
    let mut text = "2\ndenylist\n[all]\n".to_owned();
    let mut rule = |name: &str, errno: i32, condition: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} errno {errno}{condition}");
    };
    for call in denied() {
        rule(call.lxc_name(), libc::EPERM, "");
    }
    for Condition { call, errno, argument, is, .. } in conditions().into_iter().filter(|it| !it.for_init) {
        let is = match is {
            Is::Left { mask, left } => format!("{left},SCMP_CMP_MASKED_EQ,{mask}"),
            Is::There => "0,SCMP_CMP_NE".to_owned(),
        };
        rule(call.lxc_name(), errno, &format!(" [{argument},{is}]"));
    }
    rule("clone3", libc::ENOSYS, "");
    text
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

/// By the number of the call.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Condition {
    fn rule(self) -> Result<SeccompRule, seccompiler::BackendError> {
        let (length, operator, value) = match self.is {
            Is::Left { mask, left } => {
                (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(u64::from(mask)), u64::from(left))
            }
            Is::There => (SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0),
        };
        SeccompRule::new(vec![SeccompCondition::new(self.argument, length, operator, value)?])
    }
}

fn program(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let answer = SeccompAction::Errno(errno.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::Allow, answer, arch)?.try_into()
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

    /// What the kernel would make of a call without arguments.
    #[cfg(target_arch = "x86_64")]
    fn answer(filter: &SystemCallFilter, number: u32) -> u32 {
        answer_to(filter, number, [0; 4])
    }

    /// What it would make of one with these arguments: what the first program says that does not allow it.
    #[cfg(target_arch = "x86_64")]
    fn answer_to(filter: &SystemCallFilter, number: u32, arguments: [u64; 4]) -> u32 {
        let mut answers = filter.programs.iter().map(|program| interpret(program, number, arguments));
        answers.find(|answer| *answer != libc::SECCOMP_RET_ALLOW).unwrap_or(libc::SECCOMP_RET_ALLOW)
    }

    #[cfg(target_arch = "x86_64")]
    fn interpret(program: &[seccompiler::sock_filter], number: u32, arguments: [u64; 4]) -> u32 {
        const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
        // struct seccomp_data: the call, the architecture, where it was made, then the arguments, of two words each.
        let words = arguments.into_iter().flat_map(|argument| [argument as u32, (argument >> 32) as u32]);
        let data: Vec<u32> = [number, AUDIT_ARCH_X86_64, 0, 0].into_iter().chain(words).collect();
        let (mut next, mut word) = (0, 0);
        loop {
            let step = &program[next];
            let jump = |yes| usize::from(if yes { step.jt } else { step.jf });
            next += 1;
            match step.code {
                0x20 => word = data.get(step.k as usize / 4).copied().unwrap_or(0),
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
        for call in denied().map(|call| u32::try_from(call.number).unwrap()) {
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
    fn room_beyond_the_end_of_a_file_is_not_to_be_had_and_all_else_of_fallocate_is() {
        let filter = SystemCallFilter::compile().unwrap();
        let number = u32::try_from(libc::SYS_fallocate).unwrap();
        let to = |mode: i32| answer_to(&filter, number, [1, u64::from(mode.cast_unsigned()), 0, 0]);
        let refused = libc::SECCOMP_RET_ERRNO | libc::EOPNOTSUPP.cast_unsigned();
        let keep_size = libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!([to(keep_size), to(keep_size | libc::FALLOC_FL_ZERO_RANGE)], [refused; 2]);
        for mode in [0, libc::FALLOC_FL_ZERO_RANGE, keep_size | libc::FALLOC_FL_PUNCH_HOLE] {
            assert_eq!(to(mode), libc::SECCOMP_RET_ALLOW, "{mode:#x}");
        }
        let number = u32::try_from(libc::SYS_ioctl).unwrap();
        for request in UNSEEN_ROOM.map(u64::from) {
            // The kernel reads an int.
            assert_eq!(answer_to(&filter, number, [1, 1 << 32 | request, 0, 0]), refused, "{request:#x}");
            assert_eq!(answer_to(&filter, number, [1, request ^ 1, 0, 0]), libc::SECCOMP_RET_ALLOW, "{request:#x}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_would_forge_a_word_to_init_is_denied_and_the_same_to_others_is_not() {
        let filter = SystemCallFilter::compile().unwrap();
        let to = |call: i64, arguments| answer_to(&filter, u32::try_from(call).unwrap(), arguments);
        let (refused, allowed) = (libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(), libc::SECCOMP_RET_ALLOW);
        for call in NOT_TO_INIT {
            assert_eq!(to(call.number, [1, 15, 0, 0]), refused, "{}", call.name);
            assert_eq!(to(call.number, [1 << 32 | 1, 15, 0, 0]), refused, "{}", call.name);
            for other in [0, 2, u64::from(u32::MAX)] {
                assert_eq!(to(call.number, [other, 15, 0, 0]), allowed, "{} {other}", call.name);
            }
        }
        for (pointer, flags, answer) in
            [(0, 0, allowed), (1, 0, refused), (1 << 32, 0, refused), (0, 1, refused), (0, 4, allowed)]
        {
            assert_eq!(to(libc::SYS_pidfd_send_signal, [3, 15, pointer, flags]), answer, "{pointer:#x} {flags}");
        }
        assert_eq!(to(libc::SYS_pidfd_open, [1, 0o200, 0, 0]), refused);
        assert_eq!(to(libc::SYS_pidfd_open, [1, 0o4000, 0, 0]), allowed);
        assert_eq!(to(libc::SYS_kill, [1, 15, 0, 0]), allowed);
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
        let mut calls: Vec<i64> = denied().map(|call| call.number).collect();
        calls.sort_unstable();
        let count = calls.len();
        calls.dedup();
        assert_eq!(calls.len(), count);
    }

    #[test]
    fn the_policy_for_lxc_denies_what_the_filter_denies() {
        let policy = lxc_policy();
        let mut lines = policy.lines();
        assert_eq!([lines.next(), lines.next(), lines.next()], [Some("2"), Some("denylist"), Some("[all]")]);
        let rules: Vec<&str> = lines.collect();
        let conditions = conditions().iter().filter(|it| !it.for_init).count();
        assert_eq!(rules.len(), denied().count() + conditions + 1);
        for rule in [
            "bpf errno 1",
            "clone3 errno 38",
            "fallocate errno 95 [1,1,SCMP_CMP_MASKED_EQ,3]",
            "socket errno 1 [0,40,SCMP_CMP_MASKED_EQ,4294967295]",
            "ioctl errno 95 [1,1076910122,SCMP_CMP_MASKED_EQ,4294967295]",
            "clone errno 1 [0,268435456,SCMP_CMP_MASKED_EQ,268435456]",
        ] {
            assert!(rules.contains(&rule), "{rule}\n{policy}");
        }
    }
}
