/* What the kernel answers to system calls that a container may be denied, each with arguments that cannot succeed:
   answer.NAME=ERRNO, a line each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, long answer)
{
    printf("answer.%s=%d\n", name, answer < 0 ? errno : 0);
}

#define ASK(name) say(#name, syscall(SYS_##name, -1L, -1L, -1L, -1L, -1L, -1L))

static void ask_clone(const char *name, unsigned long flags)
{
    long child = syscall(SYS_clone, flags | SIGCHLD, 0L, 0L, 0L, 0L);
    if (child == 0)
        _exit(0);
    say(name, child);
    if (child > 0)
        waitpid((pid_t)child, NULL, 0);
}

/* Of init, which is no less than before for having been asked. */
static void ask_init(void)
{
    siginfo_t info = { .si_signo = SIGCONT, .si_code = SI_QUEUE };
    say("prlimit-init", syscall(SYS_prlimit64, 1, RLIMIT_CORE, NULL, NULL));
    say("prlimit", syscall(SYS_prlimit64, 0, RLIMIT_CORE, NULL, NULL));
    say("tgkill-init", syscall(SYS_tgkill, 1, 1, 0));
    say("tkill-init", syscall(SYS_tkill, 1, 0));
    say("sigqueue-init", syscall(SYS_rt_sigqueueinfo, 1, 0, &info));
    say("tgsigqueue-init", syscall(SYS_rt_tgsigqueueinfo, 1, 1, 0, &info));
    say("pidfd-signal-info", syscall(SYS_pidfd_send_signal, -1, 0, &info, 0));
    say("pidfd-signal-thread", syscall(SYS_pidfd_send_signal, -1, 0, NULL, 1));
    say("pidfd", syscall(SYS_pidfd_open, -1, 0));
    say("pidfd-thread", syscall(SYS_pidfd_open, -1, O_EXCL));
    say("pidfd-signal", syscall(SYS_pidfd_send_signal, -1, 0, NULL, 0));
    say("kill-init", kill(1, 0));
}

int main(void)
{
    ASK(acct); ASK(add_key); ASK(adjtimex); ASK(bpf); ASK(clock_adjtime); ASK(clock_settime); ASK(delete_module);
    ASK(fanotify_init); ASK(finit_module); ASK(fsconfig); ASK(fsmount); ASK(fsopen); ASK(fspick); ASK(init_module);
    ASK(io_uring_enter); ASK(io_uring_register); ASK(io_uring_setup); ASK(kexec_file_load); ASK(kexec_load); ASK(keyctl);
    ASK(landlock_restrict_self); ASK(migrate_pages); ASK(mount); ASK(mount_setattr); ASK(move_mount); ASK(move_pages);
    ASK(name_to_handle_at); ASK(open_by_handle_at); ASK(open_tree); ASK(perf_event_open); ASK(pivot_root); ASK(quotactl);
    ASK(reboot); ASK(request_key); ASK(setdomainname); ASK(sethostname); ASK(setns); ASK(settimeofday); ASK(swapoff);
    ASK(swapon); ASK(syslog); ASK(umount2); ASK(unshare); ASK(userfaultfd); ASK(clone3);
#if defined(__x86_64__)
    ASK(iopl); ASK(ioperm); ASK(modify_ldt);
#endif
    /* Allowed: these answer of their own. */
    ASK(ptrace); ASK(process_vm_readv); ASK(getdents64); ASK(landlock_create_ruleset); ASK(memfd_create);
    say("socket-vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    say("socket-raw", socket(AF_INET, SOCK_RAW, 1));
    say("socket-netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    say("fallocate", fallocate(-1, 0, 0, 1));
    say("fallocate-keep-size", fallocate(-1, FALLOC_FL_KEEP_SIZE, 0, 1));
    say("fallocate-punch-hole", fallocate(-1, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 1));
    say("ioctl-reserve", ioctl(1, 0x4030582aUL, NULL));
    say("ioctl-zero-range", ioctl(1, 0x40305839UL, NULL));
    say("ioctl", ioctl(1, TCGETS, NULL));
    ask_init();
    ask_clone("clone", 0);
    ask_clone("clone-newuser", CLONE_NEWUSER);
    ask_clone("clone-newns", CLONE_NEWNS);
    ask_clone("clone-newpid", CLONE_NEWPID);
    return 0;
}
