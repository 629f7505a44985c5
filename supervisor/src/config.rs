//! What the operator wants: flags over the TOML file over defaults that work on one machine.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use lexopt::{Arg, Parser};
use serde::Deserialize;
use wire::access::{ListenRefused, check_listen};
use wire::job::MIN_MEM_MIB;
use wire::{CpuAmount, CpuRequest, CpuSet, ImageId, JobSpec, NodeId, OnNodeLoss, Resource};

use crate::launch::Network;
use crate::log_root::NoShare;
use crate::lxc_config::UnionDriver;
use crate::machine;
use crate::mount_table;
use crate::unions::UnionChoice;

/// What each of a task's logs may hold, where nobody says otherwise.
const LOG_LIMIT: u64 = 1 << 30;
const LEAST_LOG_LIMIT: u64 = 4 << 10;

/// How it is called.
pub const USAGE: &str = "\
berth-supervisor: runs the tasks of one node in containers

  berth-supervisor [options]                           serve
  berth-supervisor run --image ID [options] -- 'command line'
                                                       one container in the foreground
  berth-supervisor doctor                              what this kernel offers and lacks
  berth-supervisor doctor --leaks [--json]             what of ours has no owner; exit status 1 if anything
  berth-supervisor image add ID FOLDER_OR_TAR | list | rm ID

options
  --config FILE         TOML with the options below, without the dashes in front
  --listen ADDR:PORT    where to listen                      [127.0.0.1:5000]
  --node-id N           this node's number                   [0]
  --state-dir DIR       images, containers, journal          [/var/lib/berth]
  --share DIR           where logs go      [/mnt/share if mounted or in /etc/fstab, else STATE_DIR/share]
  --no-share wait|local while nothing is mounted there or it cannot be written, tasks wait, or keep their
                        logs in STATE_DIR/share   [wait, if it is /mnt/share or in /etc/fstab; else never asked]
  --cpu N               CPUs to give out                     [those we may use]
  --mem MIB             memory to give out                   [nine tenths of what we may use]
  --package-root DIR    where packages may come from, again for more
                                                             [SHARE/packages and STATE_DIR/packages]
  --union auto|aufs|overlay  how layers are united           [auto]
  --cgroup-root NAME    the name of our cgroups              [berth]
  --token-file FILE     the secret that callers must know
  --grace D             between SIGTERM and SIGKILL          [5s]
  --log-limit SIZE      what stdout may hold, and stderr; a task that writes more is ended
                                                             [1GiB]
  --version             print the version and exit
  --help                print this and exit

options of run
  --image ID            the image
  --cpu LIST|N          CPUs: 0,1 and 0-3 pin, x2 and 0.5 do not   [x1]
  --mem MIB             memory                               [256]
  --timeout D           500ms, 30s, 5m, 1h or milliseconds   [none]
  --net none|host       the network it sees                  [none]
  --package PATH        a package, again for more
";

/// What is wrong with the command line or the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An argument that is no option, or lacks its value.
    #[error("{0}; hint: berth-supervisor --help")]
    Arguments(#[from] lexopt::Error),
    /// The command line lacks something or has too much.
    #[error("{0}; hint: berth-supervisor --help")]
    Usage(String),
    /// An option's value.
    #[error("--{option}: {message}")]
    Value {
        /// Which.
        option: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The port would be open to a network without a secret.
    #[error(transparent)]
    Listen(#[from] ListenRefused),
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// The file is wrong.
    #[error("{}: {message}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
}

fn bad(option: &'static str, message: impl Into<String>) -> ConfigError {
    ConfigError::Value { option, message: message.into() }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Be this node's daemon.
    Serve(NodeConfig),
    /// Run one container in the foreground.
    Run {
        /// The node it runs on.
        node: NodeConfig,
        /// What runs.
        spec: Box<JobSpec>,
        /// What it sees of the network.
        network: Network,
    },
    /// Tell what this kernel offers.
    Doctor(NodeConfig),
    /// Tell what of ours has no owner.
    Leaks {
        /// Whose state dir and cgroups.
        node: NodeConfig,
        /// As JSON.
        json: bool,
    },
    /// Make an image.
    ImageAdd {
        /// The node's.
        node: NodeConfig,
        /// Its name.
        image: ImageId,
        /// A folder or a tar.
        source: PathBuf,
    },
    /// List the images.
    ImageList(NodeConfig),
    /// Remove an image.
    ImageRemove {
        /// The node's.
        node: NodeConfig,
        /// Its name.
        image: ImageId,
    },
    /// Tell how it is called.
    Help,
    /// Tell the version.
    Version,
}

/// A node, all settled. All paths are absolute.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its number.
    pub id: NodeId,
    /// Images, containers, journal.
    pub state_dir: PathBuf,
    /// Where logs go.
    pub share: PathBuf,
    /// What becomes of tasks while that is not to be had; `None`: it is a folder like any other.
    pub no_share: Option<NoShare>,
    /// CPU to give out.
    pub cpu: CpuAmount,
    /// The CPUs a job may pin to.
    pub cpus: CpuSet,
    /// Memory to give out, in MiB.
    pub mem_mib: u64,
    /// Folders packages may come from.
    pub package_roots: Vec<PathBuf>,
    /// How layers are united.
    pub union: UnionChoice,
    /// The name of our cgroups.
    pub cgroup_root: String,
    /// Where the secret is.
    pub token_file: Option<PathBuf>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// What each of a task's logs may hold, in bytes.
    pub log_limit_bytes: u64,
}

/// What was said of a node, by the file or by flags; in the file the words are the flags'.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct NodeOptions {
    listen: Option<String>,
    node_id: Option<u32>,
    state_dir: Option<PathBuf>,
    share: Option<PathBuf>,
    no_share: Option<String>,
    cpu: Option<CpuAmount>,
    mem: Option<u64>,
    #[serde(default)]
    package_root: Vec<PathBuf>,
    union: Option<String>,
    cgroup_root: Option<String>,
    token_file: Option<PathBuf>,
    grace: Option<String>,
    log_limit: Option<String>,
}

/// What was said of a foreground run.
#[derive(Debug, Default)]
struct RunOptions {
    image: Option<ImageId>,
    cpu: Option<CpuRequest>,
    mem: Option<u64>,
    timeout: Option<Duration>,
    network: Option<Network>,
    packages: Vec<String>,
    words: Vec<String>,
}

/// What was said of a doctor.
#[derive(Debug, Default)]
struct DoctorOptions {
    leaks: bool,
    json: bool,
}

/// Which command was named.
#[derive(Debug)]
enum Named {
    Serve,
    Run(RunOptions),
    Doctor(DoctorOptions),
    Image(Vec<OsString>),
}

/// Reads the command line, from the program's name on, and the file it names.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, ConfigError> {
    let mut parser = Parser::from_iter(arguments);
    let mut flags = NodeOptions::default();
    let mut file = NodeOptions::default();
    let mut named = Named::Serve;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Command::Version),
            Arg::Long("config") => file = read_file(&path(&mut parser)?)?,
            Arg::Long(option) => {
                let option = option.to_owned();
                let taken = match &mut named {
                    Named::Run(run) => run.take(&option, &mut parser)?,
                    Named::Doctor(doctor) => doctor.take(&option),
                    Named::Serve | Named::Image(_) => false,
                };
                if !taken && !flags.take(&option, &mut parser)? {
                    return Err(Arg::Long(&option).unexpected().into());
                }
            }
            Arg::Value(word) => named = named.with_word(word)?,
            Arg::Short(_) => return Err(argument.unexpected().into()),
        }
    }
    named.settle(flags.over(file).settle()?)
}

impl Named {
    /// The first word names the command, the others are the command's.
    fn with_word(self, word: OsString) -> Result<Named, ConfigError> {
        match self {
            Named::Serve => match word.to_str() {
                Some("run") => Ok(Named::Run(RunOptions::default())),
                Some("doctor") => Ok(Named::Doctor(DoctorOptions::default())),
                Some("image") => Ok(Named::Image(Vec::new())),
                _ => Err(ConfigError::Usage(format!("there is no command {word:?}"))),
            },
            Named::Run(mut run) => {
                run.words.push(word.into_string().map_err(|_| ConfigError::Usage("the command is not UTF-8".into()))?);
                Ok(Named::Run(run))
            }
            Named::Doctor(_) => Err(ConfigError::Usage(format!("doctor takes no {word:?}"))),
            Named::Image(mut words) => {
                words.push(word);
                Ok(Named::Image(words))
            }
        }
    }

    fn settle(self, node: NodeConfig) -> Result<Command, ConfigError> {
        match self {
            Named::Serve => {
                check_listen(node.listen, node.token_file.is_some())?;
                Ok(Command::Serve(node))
            }
            Named::Run(run) => run.settle(node),
            Named::Doctor(DoctorOptions { leaks: true, json }) => Ok(Command::Leaks { node, json }),
            Named::Doctor(DoctorOptions { json: true, .. }) => {
                Err(ConfigError::Usage("--json goes with doctor --leaks".into()))
            }
            Named::Doctor(_) => Ok(Command::Doctor(node)),
            Named::Image(words) => image_command(node, &words),
        }
    }
}

impl DoctorOptions {
    /// Takes an option of the doctor's. False: it is none.
    fn take(&mut self, option: &str) -> bool {
        match option {
            "leaks" => self.leaks = true,
            "json" => self.json = true,
            _ => return false,
        }
        true
    }
}

fn image_command(node: NodeConfig, words: &[OsString]) -> Result<Command, ConfigError> {
    let verb = words.first().and_then(|verb| verb.to_str());
    match (verb, words.get(1..).unwrap_or_default()) {
        (Some("list"), []) => Ok(Command::ImageList(node)),
        (Some("rm"), [image]) => Ok(Command::ImageRemove { node, image: image_id(image)? }),
        (Some("add"), [image, source]) => {
            Ok(Command::ImageAdd { node, image: image_id(image)?, source: PathBuf::from(source) })
        }
        _ => Err(ConfigError::Usage("image takes: add ID FOLDER_OR_TAR, list, or rm ID".into())),
    }
}

fn image_id(word: &OsString) -> Result<ImageId, ConfigError> {
    word.to_string_lossy().parse().map_err(|refused: wire::BadInput| ConfigError::Usage(refused.message))
}

fn path(parser: &mut Parser) -> Result<PathBuf, ConfigError> {
    Ok(PathBuf::from(parser.value()?))
}

/// An option's value as text.
fn text(option: &'static str, parser: &mut Parser) -> Result<String, ConfigError> {
    parser.value()?.into_string().map_err(|raw| bad(option, format!("{raw:?} is not UTF-8")))
}

fn number<T: FromStr>(option: &'static str, parser: &mut Parser) -> Result<T, ConfigError> {
    let text = text(option, parser)?;
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| bad(option, format!("{text:?} is not a whole number in range")))
}

fn read_file(path: &Path) -> Result<NodeOptions, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
    let wrong = |error: toml::de::Error| ConfigError::File { path: path.to_owned(), message: error.to_string() };
    toml::from_str(&text).map_err(wrong)
}

impl NodeOptions {
    /// Takes an option of the node. False: it is none.
    fn take(&mut self, option: &str, parser: &mut Parser) -> Result<bool, ConfigError> {
        match option {
            "listen" => self.listen = Some(text("listen", parser)?),
            "node-id" => self.node_id = Some(number("node-id", parser)?),
            "state-dir" => self.state_dir = Some(path(parser)?),
            "share" => self.share = Some(path(parser)?),
            "no-share" => self.no_share = Some(text("no-share", parser)?),
            "cpu" => self.cpu = Some(cpu_amount(&text("cpu", parser)?)?),
            "mem" => self.mem = Some(number("mem", parser)?),
            "package-root" => self.package_root.push(path(parser)?),
            "union" => self.union = Some(text("union", parser)?),
            "cgroup-root" => self.cgroup_root = Some(text("cgroup-root", parser)?),
            "token-file" => self.token_file = Some(path(parser)?),
            "grace" => self.grace = Some(text("grace", parser)?),
            "log-limit" => self.log_limit = Some(text("log-limit", parser)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// These, and where they are silent the others.
    fn over(self, other: NodeOptions) -> NodeOptions {
        NodeOptions {
            listen: self.listen.or(other.listen),
            node_id: self.node_id.or(other.node_id),
            state_dir: self.state_dir.or(other.state_dir),
            share: self.share.or(other.share),
            no_share: self.no_share.or(other.no_share),
            cpu: self.cpu.or(other.cpu),
            mem: self.mem.or(other.mem),
            package_root: if self.package_root.is_empty() { other.package_root } else { self.package_root },
            union: self.union.or(other.union),
            cgroup_root: self.cgroup_root.or(other.cgroup_root),
            token_file: self.token_file.or(other.token_file),
            grace: self.grace.or(other.grace),
            log_limit: self.log_limit.or(other.log_limit),
        }
    }

    fn settle(self) -> Result<NodeConfig, ConfigError> {
        let state_dir = absolute("state-dir", self.state_dir.unwrap_or_else(|| "/var/lib/berth".into()))?;
        let share = absolute("share", self.share.unwrap_or_else(|| default_share(&state_dir)))?;
        let cpus = machine::cpus().ok_or_else(|| bad("cpu", "cannot find out which CPUs we may use"))?;
        Ok(NodeConfig {
            listen: listen(self.listen.as_deref().unwrap_or("127.0.0.1:5000"))?,
            id: NodeId(self.node_id.unwrap_or(0)),
            package_roots: package_roots(self.package_root, &share, &state_dir)?,
            no_share: self.no_share.map_or_else(|| Ok(default_no_share(&share)), |text| no_share(&text).map(Some))?,
            cpu: self.cpu.map_or(Ok(CpuAmount::whole(cpus.count())), some_cpu)?,
            cpus,
            mem_mib: memory(self.mem)?,
            union: union(self.union.as_deref().unwrap_or("auto"))?,
            cgroup_root: cgroup_root(self.cgroup_root.unwrap_or_else(|| "berth".into()))?,
            token_file: self.token_file,
            grace: self.grace.map_or(Ok(Duration::from_secs(5)), |text| duration("grace", &text))?,
            log_limit_bytes: self.log_limit.map_or(Ok(LOG_LIMIT), |text| log_limit(&text))?,
            state_dir,
            share,
        })
    }
}

impl RunOptions {
    /// Takes an option of the run. False: it is none.
    fn take(&mut self, option: &str, parser: &mut Parser) -> Result<bool, ConfigError> {
        match option {
            "image" => self.image = Some(checked("image", &text("image", parser)?)?),
            "cpu" => self.cpu = Some(checked("cpu", &text("cpu", parser)?)?),
            "mem" => self.mem = Some(number("mem", parser)?),
            "timeout" => self.timeout = Some(duration("timeout", &text("timeout", parser)?)?),
            "net" => self.network = Some(network(&text("net", parser)?)?),
            "package" => self.packages.push(text("package", parser)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn settle(self, node: NodeConfig) -> Result<Command, ConfigError> {
        if let Some(missing) =
            self.cpu.as_ref().and_then(CpuRequest::pinned).and_then(|cpus| cpus.missing_from(&node.cpus))
        {
            let has = &node.cpus;
            return Err(bad("cpu", format!("there is no CPU {missing} here but {has}; hint: x2 asks for any two")));
        }
        let spec = JobSpec {
            name: "run".to_owned(),
            resource: Resource {
                cpu: self.cpu.unwrap_or(CpuRequest::Amount(CpuAmount::whole(1))),
                mem: self.mem.unwrap_or(256),
            },
            command_line: self.words.join(" "),
            package_path: self.packages.join(";"),
            image_id: self.image.ok_or_else(|| ConfigError::Usage("run needs --image".into()))?,
            timeout: self.timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            on_node_loss: OnNodeLoss::Wait,
        };
        spec.check().map_err(|refused| ConfigError::Usage(format!("run: {refused}")))?;
        Ok(Command::Run { node, spec: Box::new(spec), network: self.network.unwrap_or(Network::None) })
    }
}

/// A value that checks itself.
fn checked<T: FromStr<Err = wire::BadInput>>(option: &'static str, text: &str) -> Result<T, ConfigError> {
    text.parse().map_err(|refused: wire::BadInput| bad(option, refused.message))
}

fn listen(text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| bad("listen", format!("{text:?} is not an address and port such as 127.0.0.1:5000")))
}

fn cpu_amount(text: &str) -> Result<CpuAmount, ConfigError> {
    match format!("x{text}").parse() {
        Ok(CpuRequest::Amount(amount)) => Ok(amount),
        Ok(CpuRequest::Pinned(_)) | Err(_) => {
            Err(bad("cpu", format!("{text:?} is not a number of CPUs such as 2 or 0.5")))
        }
    }
}

fn some_cpu(amount: CpuAmount) -> Result<CpuAmount, ConfigError> {
    if amount == CpuAmount::ZERO { Err(bad("cpu", "a node with no CPU can run nothing")) } else { Ok(amount) }
}

fn memory(mib: Option<u64>) -> Result<u64, ConfigError> {
    let mib = mib.or_else(machine::memory_mib).ok_or_else(|| bad("mem", "cannot find out how much memory there is"))?;
    if mib < MIN_MEM_MIB {
        return Err(bad("mem", format!("{mib} MiB is less than the {MIN_MEM_MIB} MiB a container starts in")));
    }
    Ok(mib)
}

fn union(text: &str) -> Result<UnionChoice, ConfigError> {
    match text {
        "auto" => Ok(UnionChoice::Auto),
        "aufs" => Ok(UnionChoice::Only(UnionDriver::Aufs)),
        "overlay" => Ok(UnionChoice::Only(UnionDriver::Overlay)),
        other => Err(bad("union", format!("{other:?} is not one of auto, aufs, overlay"))),
    }
}

fn network(text: &str) -> Result<Network, ConfigError> {
    match text {
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        other => Err(bad("net", format!("{other:?} is not one of none, host"))),
    }
}

/// One folder's name, below our own cgroup.
fn cgroup_root(name: String) -> Result<String, ConfigError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let good = name.len() <= 64 && name.bytes().all(word) && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if good { Ok(name) } else { Err(bad("cgroup-root", format!("{name:?} is not a name for a cgroup"))) }
}

fn duration(option: &'static str, text: &str) -> Result<Duration, ConfigError> {
    wire::duration::parse(text).map_err(|message| bad(option, message))
}

/// At least a line: with none a task could not even say what is wrong.
fn log_limit(text: &str) -> Result<u64, ConfigError> {
    let bytes = wire::size::parse(text).map_err(|message| bad("log-limit", message))?;
    if bytes < LEAST_LOG_LIMIT {
        return Err(bad("log-limit", format!("{text:?} is less than {}", wire::size::in_words(LEAST_LOG_LIMIT))));
    }
    Ok(bytes)
}

fn absolute(option: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    let path = std::path::absolute(path).map_err(|error| bad(option, error.to_string()))?;
    // As others spell it: without the slash that a shell puts behind a folder's name.
    Ok(path.components().collect())
}

fn package_roots(given: Vec<PathBuf>, share: &Path, state_dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    if given.is_empty() {
        return Ok(vec![share.join("packages"), state_dir.join("packages")]);
    }
    given.into_iter().map(|root| absolute("package-root", root)).collect()
}

/// Where a cluster has its share mounted.
const USUAL_SHARE: &str = "/mnt/share";

fn default_share(state_dir: &Path) -> PathBuf {
    let usual = Path::new(USUAL_SHARE);
    let is_share = mount_table::mounted_on(usual).is_some() || mount_table::is_in_fstab(usual);
    if is_share { usual.to_owned() } else { state_dir.join("share") }
}

fn no_share(text: &str) -> Result<NoShare, ConfigError> {
    match text {
        "wait" => Ok(NoShare::Wait),
        "local" => Ok(NoShare::Local),
        other => Err(bad("no-share", format!("{other:?} is not one of wait, local"))),
    }
}

/// A share that is meant to be a mount is never taken for the folder under it.
fn default_no_share(share: &Path) -> Option<NoShare> {
    (share == Path::new(USUAL_SHARE) || mount_table::is_in_fstab(share)).then_some(NoShare::Wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn parsed(line: &str) -> Result<Command, ConfigError> {
        parse(std::iter::once("berth-supervisor").chain(line.split_whitespace()).map(OsString::from))
    }

    fn served(line: &str) -> NodeConfig {
        match parsed(line).unwrap() {
            Command::Serve(node) => node,
            other => panic!("{other:?}"),
        }
    }

    fn said(line: &str) -> String {
        parsed(line).unwrap_err().to_string()
    }

    #[test]
    fn every_option_has_a_default_that_works_on_one_machine() {
        let node = served("");
        assert_eq!((node.listen.to_string().as_str(), node.id), ("127.0.0.1:5000", NodeId(0)));
        assert_eq!(node.state_dir, Path::new("/var/lib/berth"));
        assert_eq!((node.cgroup_root.as_str(), node.grace), ("berth", Duration::from_secs(5)));
        assert_eq!((node.package_roots.len(), node.log_limit_bytes), (2, 1 << 30));
        assert_eq!(node.cpu, CpuAmount::whole(node.cpus.count()));
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let scratch = Scratch::new("config");
        let path = scratch.join("berth.toml");
        std::fs::write(
            &path,
            "node-id = 3\nmem = 100\ncpu = 0.5\npackage-root = [\"/p\"]\ngrace = \"2s\"\nlog-limit = \"2MiB\"\n",
        )
        .unwrap();
        let node = served(&format!("--mem 200 --config {}", path.display()));
        assert_eq!((node.id, node.mem_mib, node.cpu), (NodeId(3), 200, CpuAmount::from_milli(500)));
        assert_eq!((node.package_roots, node.grace), (vec![PathBuf::from("/p")], Duration::from_secs(2)));
        assert_eq!(node.log_limit_bytes, 2 << 20);
        std::fs::write(&path, "node_id = 3\n").unwrap();
        assert!(said(&format!("--config {}", path.display())).contains("unknown field `node_id`"));
    }

    #[test]
    fn a_wrong_value_is_refused_with_the_flags_name() {
        for (line, option) in [
            ("--listen localhost", "--listen"),
            ("--node-id -1", "--node-id"),
            ("--node-id +1", "--node-id"),
            ("--cpu 0", "--cpu"),
            ("--cpu 0-1", "--cpu"),
            ("--mem 1", "--mem"),
            ("--mem 1.5", "--mem"),
            ("--union zfs", "--union"),
            ("--cgroup-root a/b", "--cgroup-root"),
            ("--cgroup-root ..", "--cgroup-root"),
            ("--grace 5d", "--grace"),
            ("--log-limit 1GB", "--log-limit"),
            ("--log-limit 0", "--log-limit"),
            ("run --image ../x -- true", "--image"),
            ("run --net bridge", "--net"),
            ("run --timeout -5s", "--timeout"),
            ("run --cpu 3-1", "--cpu"),
        ] {
            assert!(said(line).starts_with(&format!("{option}: ")), "{line}: {}", said(line));
        }
        for line in ["--nonsense", "nonsense", "run --mem", "doctor now", "image", "image rm", "run -- true"] {
            assert!(said(line).contains("hint: berth-supervisor --help"), "{line}: {}", said(line));
        }
    }

    #[test]
    fn an_open_port_without_a_token_is_refused_and_says_why() {
        let said = said("--listen 0.0.0.0:5000");
        assert!(said.contains("without a token") && said.contains("--token-file"), "{said}");
        assert!(matches!(parsed("--listen 0.0.0.0:5000 --token-file /t"), Ok(Command::Serve(_))));
        assert!(matches!(parsed("--listen [::1]:0"), Ok(Command::Serve(_))));
    }

    #[test]
    fn run_takes_its_own_cpu_and_mem_and_a_command_behind_two_dashes() {
        let line = "--cpu 2 --mem 1000 run --image busybox --cpu 0 --mem 64 --timeout 5m --package /p/a -- echo --mem";
        let Command::Run { node, spec, network } = parsed(line).unwrap() else { panic!() };
        assert_eq!((node.cpu, node.mem_mib), (CpuAmount::whole(2), 1000));
        assert_eq!((spec.resource.cpu.to_string().as_str(), spec.resource.mem, spec.timeout), ("0", 64, 300_000));
        assert_eq!((spec.command_line.as_str(), spec.package_path.as_str()), ("echo --mem", "/p/a"));
        assert_eq!(network, Network::None);
    }

    #[test]
    fn run_says_that_a_number_alone_is_a_cpus_name() {
        let line = "run --image busybox --cpu 1000 -- true";
        let said = parsed(line).unwrap_err().to_string();
        assert!(said.contains("no CPU 1000 here") && said.contains("hint: x2"), "{said}");
    }

    #[test]
    fn the_doctor_looks_at_the_kernel_or_for_leaks() {
        assert!(matches!(parsed("doctor"), Ok(Command::Doctor(_))));
        assert!(matches!(parsed("doctor --leaks --state-dir /s"), Ok(Command::Leaks { json: false, .. })));
        assert!(matches!(parsed("--cgroup-root b doctor --leaks --json"), Ok(Command::Leaks { json: true, .. })));
        assert!(said("doctor --json").contains("--leaks"));
        assert!(said("--leaks doctor").contains("--leaks"));
    }

    #[test]
    fn images_are_added_listed_and_removed() {
        assert!(matches!(parsed("image list"), Ok(Command::ImageList(_))));
        assert!(
            matches!(parsed("image rm busybox"), Ok(Command::ImageRemove { image, .. }) if image.as_str() == "busybox")
        );
        assert!(matches!(
            parsed("image add busybox /tmp/x --state-dir /s"),
            Ok(Command::ImageAdd { node, source, .. }) if node.state_dir == Path::new("/s") && source == Path::new("/tmp/x")
        ));
    }

    #[test]
    fn times_have_units_or_are_milliseconds() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("250", 250)] {
            assert_eq!(duration("timeout", text).unwrap().as_millis(), ms);
        }
        for text in ["", "s", "1.5s", "-1", "1 s", "99999999999999999999", "99999999h"] {
            assert!(duration("timeout", text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_share_that_is_meant_to_be_a_mount_is_waited_for_and_a_folder_is_not() {
        assert_eq!(served("--share /mnt/share").no_share, Some(NoShare::Wait));
        assert_eq!(served("--share /mnt/share/").share.as_os_str(), "/mnt/share");
        assert_eq!(served("--share /var/lib/berth/share").no_share, None);
        assert_eq!(served("--share /srv/x --no-share local").no_share, Some(NoShare::Local));
        assert!(said("--no-share maybe").contains("--no-share"));
    }
}
