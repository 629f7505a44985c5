//! A machine of its own: a host of the network with a name, and with folders of its own wherever machines differ.
//!
//! Its network is a [`Host`]'s; a process keeps its mount and UTS namespaces. Programs are this machine's, and so are the
//! devices and cgroups. Its files can be looked at from outside by way of /proc/PID/root (proc_pid_root(5)).

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::{binary, run_to_end_within};
use crate::leaks::Process;
use crate::netns::Host;
use crate::sandbox::Sandbox;
use crate::wait::{eventually, until_none};

/// How long a machine's shell may take: for packages that are installed, and for others that are waited for, two minutes
/// at each step.
const SETTING_UP: Duration = Duration::from_secs(600);

/// Gives the machine what is its own, says so, and stays as long as its stdin is open. /etc and /var/lib show what this
/// machine has, and take what is written to them for themselves. The other folders it is given lie where they lay, though
/// that be in a folder which is the machine's own now: they are held open meanwhile.
const BOOT: &str = r#"
set -eu
name=$1 own=$2
shift
hostname "$name"
held=()
for folder in "$@"; do
    exec {fd}<"$folder"
    held+=("$fd")
done
for folder in etc var/lib; do
    mkdir -p "$own/upper/$folder" "$own/work/$folder"
    mount -t overlay -o "lowerdir=/$folder,upperdir=$own/upper/$folder,workdir=$own/work/$folder" overlay "/$folder"
done
for folder in run srv mnt var/log var/lib/glusterd var/lib/berth tmp; do
    mkdir -p "$own/$folder" "/$folder"
    mount --bind "$own/$folder" "/$folder"
done
mkdir /var/log/glusterfs
for folder in "$@"; do
    fd=${held[0]}
    held=("${held[@]:1}")
    if ! [ "$folder" -ef "/proc/self/fd/$fd" ]; then
        mkdir -p "$folder"
        mount --no-canonicalize --bind "/proc/self/fd/$fd" "$folder"
    fi
    exec {fd}<&-
done
echo up
read -r _ || true
"#;

/// A machine. Whatever still runs on it ends with it.
#[derive(Debug)]
pub struct Machine {
    name: String,
    host: Host,
    folder: PathBuf,
    keeper: Child,
}

/// A process on a machine.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its pid, as everybody here counts.
    pub pid: i32,
    /// Its command line, blanks between the arguments.
    pub cmdline: String,
    /// Its own name: of a thread, or as it called itself.
    pub comm: String,
}

impl Machine {
    /// Boots one, with a folder of the sandbox for all that is its own.
    pub fn boot(sandbox: &Sandbox, host: Host, name: &str) -> Machine {
        let folder = sandbox.folder(name);
        let mut command = host.command(Path::new("unshare"));
        command.args(["--mount", "--uts", "--propagation", "private", "/bin/bash", "-c", BOOT, "boot", name]);
        command.arg(&folder).arg(sources()).arg(built());
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut keeper = spawned.unwrap_or_else(|error| panic!("cannot boot {name}: {error}"));
        let mut said = String::new();
        let stdout = keeper.stdout.take().unwrap_or_else(|| panic!("{name} has no stdout"));
        let read = BufReader::new(stdout).read_line(&mut said);
        let machine = Machine { name: name.to_owned(), host, folder, keeper };
        assert!(read.is_ok() && said == "up\n", "{name} did not come up: {said:?}");
        machine.install(sandbox);
        machine
    }

    /// The binaries that were built, on its PATH. A supervisor is called by a name in the sandbox and has cgroups of its
    /// own: a machine would have both to itself.
    fn install(&self, sandbox: &Sandbox) {
        let wrapper = format!(
            "#!/bin/bash\nexec -a {} {} --cgroup-root {}-{} \"$@\"\n",
            self.folder.join("berth-supervisor").display(),
            binary("berth-supervisor").display(),
            sandbox.name(),
            self.name
        );
        let file = self.bin().join("berth-supervisor");
        let made = fs::create_dir_all(self.bin()).and_then(|()| fs::write(&file, wrapper));
        let made = made.and_then(|()| fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)));
        made.unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    }

    fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its place on the network.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where something on it listens.
    pub fn addr(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.addr().ip(), port)
    }

    /// One of its files or folders, named as it does, as it can be opened from here.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.keeper.id()))
    }

    /// What a daemon has said so far, where README has it say it.
    pub fn log(&self, program: &str) -> String {
        // None yet: it has said nothing.
        fs::read_to_string(self.file(&format!("/var/log/{program}.log"))).unwrap_or_default()
    }

    /// What a shell of this machine makes of that text, in the folder of the sources.
    pub fn shell(&self, text: &str) -> Output {
        run_to_end_within(SETTING_UP, &mut self.command(text))
    }

    /// [`Machine::shell`], not yet started.
    pub fn command(&self, text: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.keeper.id())).args(["--mount", "--uts", "--net"]);
        command.args(["--", "/bin/bash", "-e", "-o", "pipefail", "-c"]);
        let paths = [sources(), &self.bin(), &built()].map(|path| path.display().to_string());
        command.arg(format!("cd {}\nPATH={}:{}:$PATH\n{text}", paths[0], paths[1], paths[2]));
        command.env_remove("HOSTNAME").env_remove("BERTH_MASTER");
        command
    }

    /// [`Machine::shell`], which must end well; what it printed.
    #[track_caller]
    pub fn run(&self, text: &str) -> String {
        let output = self.shell(text);
        let said = words_of(&output);
        assert!(output.status.success(), "on {}: {text}\n{}: {said}", self.name, output.status);
        said
    }

    /// All that runs on it. A container's processes have a network of their own and are not among them, their inits are.
    pub fn processes(&self) -> Vec<Running> {
        let ours = namespaces_of(self.keeper.id().cast_signed());
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let here = |&pid: &i32| {
            let theirs = namespaces_of(pid);
            ours.iter().zip(&theirs).any(|(ours, theirs)| ours.is_some() && ours == theirs)
        };
        pids.filter(here).filter_map(running).collect()
    }

    /// Those of its processes whose command line has this in it.
    pub fn find(&self, words: &str) -> Vec<Running> {
        let mut all = self.processes();
        all.retain(|process| process.cmdline.contains(words));
        all
    }

    /// SIGKILL to those; how many there were. They are gone when this returns.
    #[track_caller]
    pub fn kill(&self, words: &str) -> usize {
        let found = self.find(words);
        for process in &found {
            send(process.pid, Signal::KILL);
        }
        until_none(format!("{words} on {} to be gone", self.name), || self.find(words));
        found.len()
    }

    /// Stops those (SIGSTOP) until [`Machine::thaw`]; how many there were.
    #[track_caller]
    pub fn freeze(&self, words: &str) -> usize {
        let found = self.find(words);
        for Running { pid, cmdline, .. } in &found {
            Process { pid: pid.unsigned_abs(), cmdline: cmdline.clone(), cgroup: String::new() }.freeze();
        }
        found.len()
    }

    /// Lets those go on.
    pub fn thaw(&self, words: &str) {
        for process in self.find(words) {
            send(process.pid, Signal::CONT);
        }
    }

    /// Asks the daemon with that program's name to stop, and waits until it has.
    #[track_caller]
    pub fn stop_daemon(&self, program: &str) {
        let daemons = || {
            let mut found = self.find(program);
            // Its inits bear its command line too.
            found.retain(|process| process.comm != "berth-init" && process.cmdline.contains("--listen"));
            found
        };
        for daemon in daemons() {
            send(daemon.pid, Signal::TERM);
        }
        until_none(format!("{program} on {} to stop", self.name), daemons);
    }
}

impl Drop for Machine {
    /// Never panics. All that runs on it first, then what keeps its namespaces; with them go its mounts.
    fn drop(&mut self) {
        let keeper = self.keeper.id().cast_signed();
        let left = eventually(|| {
            let left: Vec<Running> = self.processes().into_iter().filter(|process| process.pid != keeper).collect();
            for process in &left {
                send(process.pid, Signal::KILL);
            }
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        if let Err(left) = left {
            eprintln!("still on {}: {left:#?}", self.name);
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// What a command said, on both streams.
pub fn words_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The folder of the sources.
pub fn sources() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The folder of the binaries.
fn built() -> PathBuf {
    let mut built = binary("berth-master");
    built.pop();
    built
}

/// Its network and its mounts.
fn namespaces_of(pid: i32) -> [Option<PathBuf>; 2] {
    ["net", "mnt"].map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok())
}

fn running(pid: i32) -> Option<Running> {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // A zombie has none, and is not running.
    let cmdline = Some(String::from_utf8_lossy(&cmdline).replace('\0', " ")).filter(|cmdline| !cmdline.is_empty())?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Running { pid, cmdline, comm: comm.trim_end().to_owned() })
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // ESRCH: it ended by itself.
        let _ = kill_process(pid, signal);
    }
}
