//! One running berth binary: found, started on a free port, watched, stopped by its pid.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use wire::fault::VARIABLE;

use crate::http::Request;
use crate::netns::Host;
use crate::wait::{PATIENCE, until, until_within};

/// How often another port is tried when somebody took ours between the look and the bind.
const PORTS_TO_TRY: u32 = 5;

/// Where a binary of this workspace was built: beside the folder of the test binaries.
pub fn binary(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap_or_else(|error| panic!("cannot find the test binary: {error}"));
    // A test lies in `deps`, a program of ours beside the daemons.
    let folders = tests.ancestors().skip(1).take(2);
    let binary = folders.map(|folder| folder.join(name)).find(|binary| binary.is_file());
    let binary = binary.unwrap_or_else(|| PathBuf::from(name));
    assert!(binary.is_file(), "{} is not there; run `cargo build --workspace` first", binary.display());
    binary
}

/// A daemon that can be killed and started again on its own address.
#[derive(Debug)]
pub struct Daemon {
    binary: PathBuf,
    args: Vec<String>,
    /// What a shell does before it becomes the daemon: `ulimit -n 128`.
    before_exec: Option<String>,
    /// The host it runs on, if that is not this one.
    host: Option<Host>,
    addr: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
    /// What is ordered of its next life (see `wire::fault`).
    fault: Option<String>,
    /// More of its environment, from its next life on.
    environment: Vec<(String, String)>,
}

impl Daemon {
    /// Starts `name` with `--listen` and these arguments, and waits until it answers HTTP.
    pub fn start(
        name: &str,
        args: Vec<String>,
        log: PathBuf,
        before_exec: Option<String>,
        host: Option<Host>,
    ) -> Daemon {
        let may_wait = args.iter().any(|arg| arg == "--wait");
        let any_addr = if may_wait { own_addr } else { free_addr };
        let (binary, addr) = (binary(name), host.as_ref().map_or_else(any_addr, Host::addr));
        let environment = Vec::new();
        let mut daemon = Daemon { binary, args, before_exec, host, addr, log, child: None, fault: None, environment };
        for _ in 1..PORTS_TO_TRY {
            match daemon.launch() {
                Ok(()) => return daemon,
                Err(_) if daemon.host.is_none() && daemon.log().contains("in use") => daemon.addr = free_addr(),
                Err(status) => panic!("{name} ended at once with {status}:\n{}", daemon.log()),
            }
        }
        panic!("{name} found no free port:\n{}", daemon.log());
    }

    /// Starts it again, on the same address, after it was stopped or killed.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "{} still runs", self.binary.display());
        if let Err(status) = self.launch() {
            panic!("{} did not start again: {status}\n{}", self.binary.display(), self.log());
        }
    }

    /// Starts `name` as one that waits for another's end: it says so on stderr, and answers nobody yet.
    pub fn start_waiting(name: &str, args: Vec<String>, log: PathBuf) -> Daemon {
        let (binary, addr, environment) = (binary(name), own_addr(), Vec::new());
        let mut daemon =
            Daemon { binary, args, before_exec: None, host: None, addr, log, child: None, fault: None, environment };
        daemon.restart_waiting();
        daemon
    }

    /// The same again, after it was stopped or killed.
    pub fn restart_waiting(&mut self) {
        assert!(self.child.is_none(), "{} still runs", self.binary.display());
        let before = self.log().len();
        self.child = Some(self.spawn());
        until(format!("{} to wait", self.binary.display()), || {
            let said = self.log().split_off(before);
            if said.contains("waiting for") { Ok(()) } else { Err(said) }
        });
    }

    /// Sets a variable of its environment, from its next life on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts it though it may refuse to: what it said on stderr if it did.
    pub fn try_restart(&mut self) -> Result<(), String> {
        assert!(self.child.is_none(), "{} still runs", self.binary.display());
        let before = self.log().len();
        self.launch().map_err(|_| self.log().split_off(before))
    }

    /// Starts it again with a fault ordered. It may die of that before it answers; then it stays dead.
    pub fn restart_with_fault(&mut self, fault: &str) {
        assert!(self.child.is_none(), "{} still runs", self.binary.display());
        self.fault = Some(fault.to_owned());
        let launched = self.launch();
        self.fault = None;
        if let Err(status) = launched {
            assert!(
                self.log().contains("fault point"),
                "{} did not start: {status}\n{}",
                self.binary.display(),
                self.log()
            );
        }
    }

    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.unwrap_or_else(|error| panic!("cannot open {}: {error}", self.log.display()));
        let child = self.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        child.unwrap_or_else(|error| panic!("cannot start {}: {error}", self.binary.display()))
    }

    fn launch(&mut self) -> Result<(), ExitStatus> {
        let mut child = self.spawn();
        let up = until(format!("{} to answer at {}", self.binary.display(), self.addr), || {
            if let Ok(Some(status)) = child.try_wait() {
                return Ok(Err(status));
            }
            Request::get("/").try_send(self.addr).map(|_| Ok(()))
        });
        self.child = up.is_ok().then_some(child);
        up
    }

    fn command(&self) -> Command {
        let listen = ["--listen".to_owned(), self.addr.to_string()];
        let mut command = match (&self.before_exec, &self.host) {
            (None, None) => Command::new(&self.binary),
            (None, Some(host)) => host.command(&self.binary),
            (Some(before), host) => {
                assert!(host.is_none(), "a shell on another host is not to be had");
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(format!("{before}; exec \"$0\" \"$@\"")).arg(&self.binary);
                shell
            }
        };
        command.args(listen).args(&self.args).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.envs(self.fault.iter().map(|fault| (VARIABLE, fault)));
        command
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether it runs now.
    pub fn is_up(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or_else(|| panic!("{} does not run", self.binary.display()), Child::id)
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait_for_its_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap_or_else(|| panic!("{} does not run", self.binary.display()));
        until(format!("{} to end by itself", self.binary.display()), || {
            child.try_wait().ok().flatten().ok_or("it runs")
        })
    }

    /// SIGSTOP, or SIGCONT after it.
    pub fn freeze(&self, frozen: bool) {
        if let Some(child) = &self.child {
            signal(child, if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// Asks it to stop (SIGTERM), and waits until it has; a clean stop exits with 0.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal(&child, Signal::TERM);
        let status = until(format!("{} to stop after SIGTERM", self.binary.display()), || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(other),
        });
        assert!(status.success(), "{} stopped with {status}:\n{}", self.binary.display(), self.log());
    }

    /// SIGKILL: no last word.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal(&child, Signal::KILL);
        if let Err(error) = child.wait() {
            panic!("cannot wait for {}: {error}", self.binary.display());
        }
    }

    /// What it wrote on stderr, in all its lives.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// How many files it has open.
    pub fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// What each of its open files is, for the message of a failed test.
    pub fn open_fd_names(&self) -> Vec<String> {
        let Ok(fds) = fs::read_dir(format!("/proc/{}/fd", self.pid())) else { return Vec::new() };
        let name = |fd: &Path| fs::read_link(fd).map(|target| target.display().to_string()).unwrap_or_default();
        fds.flatten().map(|fd| name(&fd.path())).collect()
    }

    /// Its resident memory in KiB (proc(5), VmRSS).
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse().ok());
        kib.unwrap_or_else(|| panic!("no VmRSS in /proc/{}/status", self.pid()))
    }
}

impl Drop for Daemon {
    /// A failed test wants its last words.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr of {} at {}:\n{}", self.binary.display(), self.addr, self.log());
        }
        self.kill();
    }
}

/// A command that ends by itself, or is ended when a test gives up on it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command that must end by itself; one that does not is killed and fails the test. What it
/// prints must fit a pipe's buffer.
#[track_caller]
pub fn run_to_end(command: &mut Command) -> Output {
    run_to_end_within(PATIENCE, command)
}

/// [`run_to_end`] for what takes its time.
#[track_caller]
pub fn run_to_end_within(patience: Duration, command: &mut Command) -> Output {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Running(piped.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}")));
    let wanted = format!("{command:?} to end");
    let status = until_within(patience, wanted, || child.0.try_wait().ok().flatten().ok_or("it runs"));
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let out = child.0.stdout.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut stdout));
    let err = child.0.stderr.take().map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut stderr));
    if let Err(error) = out.and(err) {
        panic!("cannot read what {command:?} said: {error}");
    }
    Output { status, stdout, stderr }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // ESRCH: it ended by itself, which the wait after this tells.
        let _ = kill_process(pid, signal);
    }
}

/// An address that no other test's daemon takes while ours waits and does not listen on it.
fn own_addr() -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 77, high, low), free_addr().port()))
}

/// An address nobody listens on. Below the ephemeral ports, so that no client's own port can take it.
pub fn free_addr() -> SocketAddr {
    static BLOCK: LazyLock<PortBlock> = LazyLock::new(PortBlock::take);
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let addr = |offset: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, BLOCK.first + offset));
    std::iter::repeat_with(|| addr(NEXT.fetch_add(1, Ordering::Relaxed) % PortBlock::PORTS))
        .take(PortBlock::PORTS.into())
        .find(|addr| TcpListener::bind(addr).is_ok())
        .unwrap_or_else(|| panic!("no free port from {} on", BLOCK.first))
}

/// Ports that no other process of these tests takes while this one lives: a daemon of ours that is to come back finds
/// its own free.
struct PortBlock {
    first: u16,
    /// In the abstract namespace (unix(7)), so the kernel lets go of it when we end, however we do.
    _claim: UnixListener,
}

impl PortBlock {
    const FIRST: u16 = 10_000;
    const PORTS: u16 = 200;
    const BLOCKS: u16 = 100;

    fn take() -> PortBlock {
        let own = u16::try_from(std::process::id() % u32::from(PortBlock::BLOCKS)).unwrap_or(0);
        until("a block of ports that no other test has", || {
            let mut blocks = (0..PortBlock::BLOCKS).map(|offset| (own + offset) % PortBlock::BLOCKS);
            blocks.find_map(|block| PortBlock::claim(block).ok()).ok_or("none")
        })
    }

    fn claim(block: u16) -> io::Result<PortBlock> {
        let name = unix::net::SocketAddr::from_abstract_name(format!("berth-test-ports-{block}"))?;
        let claim = UnixListener::bind_addr(&name)?;
        Ok(PortBlock { first: PortBlock::FIRST + block * PortBlock::PORTS, _claim: claim })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_ports_is_claimed_by_one_at_a_time() {
        let mine = PortBlock::take();
        let block = (mine.first - PortBlock::FIRST) / PortBlock::PORTS;
        assert!(PortBlock::claim(block).is_err());
        assert_ne!(PortBlock::take().first, mine.first);
    }
}
