//! The one room with `unsafe`: system calls for which no safe wrapper exists.
//!
//! Each function is as small as the system call it wraps and decides nothing. The invariant most of
//! them rest on: **this process has had one thread since `main`**, so a child that continues after
//! a clone without exec finds every lock free and every data structure whole.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::child::Child;

/// clone3(2) flags. `libc` has two of them as a `c_int`, where they overflow to 0, and sign-extends the rest.
pub mod clone_flags {
    pub const NEWNS: u64 = 0x0002_0000;
    pub const NEWUTS: u64 = 0x0400_0000;
    pub const NEWIPC: u64 = 0x0800_0000;
    pub const NEWPID: u64 = 0x2000_0000;
    pub const NEWNET: u64 = 0x4000_0000;
    pub const PIDFD: u64 = 0x0000_1000;
    pub const CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    pub const INTO_CGROUP: u64 = 0x2_0000_0000;
}

/// What [`clone`] gives its child beyond a copy of us.
#[derive(Debug, Default, Clone, Copy)]
pub struct CloneOptions<'a> {
    /// Namespaces, from [`clone_flags`].
    pub namespaces: u64,
    /// The v2 cgroup it is born into.
    pub into_cgroup: Option<BorrowedFd<'a>>,
    /// Leave all signals blocked in the child: it will read them from a signalfd.
    pub keep_signals_blocked: bool,
}

/// Clones this process (clone3(2), Linux 5.7 for `into_cgroup`). The child runs `body` and leaves with its answer.
///
/// All signals are blocked meanwhile, handlers are reset in the child and SIGPIPE is default again, so no
/// signal can run the parent's handler on the child's side of the shared self-pipe.
pub fn clone(options: CloneOptions<'_>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut before = SigSet::empty();
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let mut pidfd: RawFd = -1;
    let mut flags = clone_flags::PIDFD | clone_flags::CLEAR_SIGHAND | options.namespaces;
    if options.into_cgroup.is_some() {
        flags |= clone_flags::INTO_CGROUP;
    }
    // SAFETY: clone_args is plain integers, for which zero means absent.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = options.into_cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of everything, and with one
    // thread since main that copy is consistent. `args` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    if pid == 0 {
        reset_sigpipe();
        if !options.keep_signals_blocked {
            // Cannot fail: the set is valid. Were it to, the child merely stays deaf and is killed by its parent.
            let _ = SigSet::empty().thread_set_mask();
        }
        exit_now(body());
    }
    let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as i32) };
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    // SAFETY: on success the kernel has just stored a new descriptor there, which nobody else owns.
    result.map(|pid| Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// Forks a child that runs `body` and leaves with its answer, for work that may block.
#[cfg(not(test))]
pub fn fork_child(body: impl FnOnce() -> i32) -> io::Result<Child> {
    clone(CloneOptions::default(), body)
}

/// The same where there are other threads, those of the tests: one may have locked the allocator at that moment, and in a
/// child of clone3 it would stay locked. glibc's fork(3) waits for that lock, and leaves the child with a free one.
#[cfg(test)]
pub fn fork_child(body: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: of the locks that another thread may hold, the tests' children take none but the allocator's.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            reset_sigpipe();
            exit_now(body())
        }
        pid => {
            let child = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
            let pidfd = rustix::process::pidfd_open(child, rustix::process::PidfdFlags::empty())?;
            Ok(Child { pid, pidfd })
        }
    }
}

/// A step on a file's way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteBack {
    /// Its dirty pages are handed to the disk.
    Begin,
    /// What was handed over has arrived.
    Finish,
}

/// Writes a file's dirty pages, not what belongs to its inode (sync_file_range(2)): no commit of the filesystem's journal
/// for each file, as fdatasync would have.
pub fn write_back(file: BorrowedFd<'_>, step: WriteBack) -> io::Result<()> {
    let flags = match step {
        WriteBack::Begin => libc::SYNC_FILE_RANGE_WRITE,
        WriteBack::Finish => {
            libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER
        }
    };
    // SAFETY: takes a descriptor and numbers; 0 bytes from 0 on mean all of the file.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves at once: no destructor, no atexit handler and no buffer of the parent's is run a second time.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// Rust ignores SIGPIPE, and CLONE_CLEAR_SIGHAND and execve both keep an ignored signal ignored.
fn reset_sigpipe() {
    // SAFETY: SIG_DFL installs no code.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Gives every signal its default disposition. CLONE_CLEAR_SIGHAND and execve keep an ignored signal ignored, and
/// whoever started the supervisor may have ignored any: nohup SIGHUP, a shell SIGINT, glibc's own posix_spawn 32 and 33,
/// which its sigaction(2) wrapper will not touch.
pub fn reset_all_signals() {
    const SIGNAL_SET_BYTES: usize = 8;
    // A kernel sigaction of zeros: SIG_DFL, no flags, empty mask. No architecture's is larger.
    let default = [0_u64; 8];
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no code, and the kernel reads less than `default` has. SIGKILL and SIGSTOP are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                SIGNAL_SET_BYTES,
            )
        };
    }
}

/// Closes every descriptor but `keep` (close_range(2), Linux 5.9). In a forked child only.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    keep.sort_unstable();
    let mut from = 0;
    for fd in keep {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the callers are children about to exec or _exit, which touch no descriptor they did not keep.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `fd` also be descriptor `number`, open across exec (dup2(2)).
pub fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: what was open at `number` is given up on purpose; the callers pass 0 to 2, which nobody owns.
    match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Leaves the inherited session keyring for an empty one (keyctl(2), KEYCTL_JOIN_SESSION_KEYRING).
/// A kernel built without keys has none to leave.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    match unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) } {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// Brings the loopback interface of the current network namespace up (netdevice(7), SIOCSIFFLAGS).
pub fn bring_loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Becomes the program at `path`; comes back only with the error (execve(2)).
pub fn execve(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    execveat(rustix::fs::CWD, path, arguments, environment, 0)
}

/// Becomes the program that is open as `file`; comes back only with the error (execveat(2), AT_EMPTY_PATH).
pub fn execve_fd(file: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> io::Error {
    execveat(file, c"", arguments, environment, libc::AT_EMPTY_PATH)
}

fn execveat(dir: BorrowedFd<'_>, path: &CStr, arguments: &[CString], environment: &[CString], flags: i32) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in null, and their strings are borrowed for the length of the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            dir.as_raw_fd(),
            path.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            flags,
        )
    };
    io::Error::last_os_error()
}
