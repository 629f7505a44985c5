/* What a payload may try against its own init, and against the room its logs may take: hostile_payload WAY.
   Prints what the kernel answered. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { INIT = 1 };

static void say(const char *what, long answer)
{
    fprintf(stderr, "%s: %s\n", what, answer < 0 ? strerror(errno) : "done");
}

static void limit_init(const char *what, int resource)
{
    struct rlimit none = { 0, 0 };
    say(what, prlimit(INIT, resource, &none, NULL));
}

/* A signal that finds no room to be queued is delivered without its sender, as if from outside (sigqueue(3)). */
static void forge(void)
{
    siginfo_t info = { .si_signo = SIGTERM, .si_code = SI_QUEUE };
    say("rt_sigqueueinfo", syscall(SYS_rt_sigqueueinfo, INIT, SIGTERM, &info));
    say("rt_tgsigqueueinfo", syscall(SYS_rt_tgsigqueueinfo, INIT, INIT, SIGTERM, &info));
    say("tgkill", syscall(SYS_tgkill, INIT, INIT, SIGTERM));
    say("tkill", syscall(SYS_tkill, INIT, SIGTERM));
    int process = (int)syscall(SYS_pidfd_open, INIT, 0);
    say("pidfd_send_signal with words", syscall(SYS_pidfd_send_signal, process, SIGTERM, &info, 0));
    say("pidfd_send_signal to the thread", syscall(SYS_pidfd_send_signal, process, SIGTERM, NULL, 1));
    int thread = (int)syscall(SYS_pidfd_open, INIT, O_EXCL);
    say("pidfd_open of the thread", thread);
    say("pidfd_send_signal by that", syscall(SYS_pidfd_send_signal, thread, SIGTERM, NULL, 0));
}

/* Signals of its own, blocked and so never taken, until its user has none left. */
static void fill_the_queue(void)
{
    sigset_t all;
    union sigval none = { 0 };
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    while (sigqueue(getpid(), SIGRTMIN, none) == 0)
        ;
    say("sigqueue", -1);
}

/* Room beyond the end of the log, which its size does not show (XFS_IOC_RESVSP64 of xfsctl(3), and not for XFS alone). */
static void reserve(const char *what, unsigned long call)
{
    struct { short type, whence; long long start, len; int sysid, pid, pad[4]; } room = { .len = 8 << 20 };
    say(what, ioctl(STDOUT_FILENO, call, &room));
}

int main(int argc, char **argv)
{
    const char *way = argc > 1 ? argv[1] : "";
    if (strcmp(way, "forge-without-limit") == 0) {
        limit_init("prlimit", RLIMIT_SIGPENDING);
        forge();
    } else if (strcmp(way, "forge-behind-a-full-queue") == 0) {
        fill_the_queue();
        forge();
    } else if (strcmp(way, "no-record") == 0) {
        limit_init("prlimit", RLIMIT_FSIZE);
        limit_init("prlimit", RLIMIT_CPU);
    } else if (strcmp(way, "reserve") == 0) {
        reserve("FS_IOC_RESVSP", 0x40305828);
        reserve("FS_IOC_RESVSP64", 0x4030582a);
        reserve("FS_IOC_ZERO_RANGE", 0x40305839);
    }
    return 5;
}
