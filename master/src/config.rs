//! What the operator wants: flags over the file given by `--config`, over defaults that work on one machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lexopt::ValueExt;
use serde::Deserialize;
use wire::NodeId;
use wire::lease::MAX_LEASE_MS;

use crate::lease;

/// How long a lease is if nobody says.
const LEASE: Duration = Duration::from_secs(60);
/// How many attempts may be lost with their nodes if nobody says.
const LOST_ATTEMPTS: u32 = 3;

/// What `--help` prints.
pub const HELP: &str = "\
berth-master: takes jobs over HTTP, places them on nodes, shows them as plain HTML

usage: berth-master [options]

  --config FILE        a TOML file with the options below, named alike; flags win
  --listen ADDR:PORT   where to answer [127.0.0.1:8080]; other than loopback needs a token
  --node ID=HOST:PORT  a node, once for each [0=127.0.0.1:5000]; a node that is left out is taken to be gone
                       for good, and the jobs it had become \"Failed: node lost\" at the start
  --node-timeout D     a node silent for so long is lost: 10s, 1500ms, 2m [10s]; one with jobs is polled every half
                       of it (at least 1s, at most 55s or half a lease), an idle one every 55s; no job goes to one
                       that missed a call
  --lease D            for how long a node may run a job on that is not to wait for a lost node, while it does not hear
                       of this master [60s, or twice the node time-out if that is longer]; at least twice the node
                       time-out and 2s, at most a week
  --lost-attempts N    how many nodes a job that is retried may be lost with before it fails [3]
  --state-dir DIR      the database's folder [/var/lib/berth-master]
  --wait               while another master has the state dir, wait for its end and take its place; the folder
                       must be there: a share that is not mounted is not to be taken for an empty one
  --share DIR          the folder that master and nodes all see; logs are read there first
  --token-file FILE    its first line is wanted of everyone, and sent to the nodes
  --host NAME          a name browsers may use for this server, once for each
  --version            print the version and exit
  --help               print this and exit

In the file, `node` is a table: [node] 0 = \"127.0.0.1:5000\"; `host` is a list; `wait` is true or false.
";

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to answer.
    pub listen: SocketAddr,
    /// The nodes and where they listen, as written.
    pub nodes: BTreeMap<NodeId, String>,
    /// A node silent for so long is lost.
    pub node_timeout: Duration,
    /// For how long a node may run a task of ours unheard of.
    pub lease: Duration,
    /// How many attempts of a job may be lost with their nodes.
    pub lost_attempts: u32,
    /// The database's folder.
    pub state_dir: PathBuf,
    /// Whether to wait until no other master has it.
    pub wait: bool,
    /// The folder that master and nodes all see.
    pub share: Option<PathBuf>,
    /// Where the token is.
    pub token_file: Option<PathBuf>,
    /// Names browsers may use.
    pub hosts: Vec<String>,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// To serve.
    Serve(Config),
    /// To print the help and leave.
    Help,
    /// To print the version and leave.
    Version,
}

/// Why the command line or the file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag is unknown, or lacks its value.
    #[error("{0}; hint: berth-master --help")]
    Flag(#[from] lexopt::Error),
    /// A value is wrong.
    #[error("{option}: {message}")]
    Value {
        /// Of which option.
        option: String,
        /// What is wrong with it.
        message: String,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {message}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Where and what is wrong.
        message: String,
    },
    /// A node's address leads nowhere.
    #[error("--node {node}={addr}: cannot resolve it: {cause}")]
    Unresolved {
        /// Which node.
        node: NodeId,
        /// Its address.
        addr: String,
        /// What the resolver said.
        cause: std::io::Error,
    },
}

/// What one source says; what it leaves out comes from the next.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Said {
    listen: Option<String>,
    node: Option<BTreeMap<String, String>>,
    node_timeout: Option<String>,
    lease: Option<String>,
    lost_attempts: Option<u32>,
    state_dir: Option<PathBuf>,
    wait: Option<bool>,
    share: Option<PathBuf>,
    token_file: Option<PathBuf>,
    host: Option<Vec<String>>,
}

impl Wanted {
    /// Reads a command line (without the program's name) and the file it names.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Wanted, ConfigError> {
        let mut flags = Said::default();
        let mut file = None;
        let mut parser = lexopt::Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            use lexopt::Arg::Long;
            match arg {
                Long("help") | lexopt::Arg::Short('h') => return Ok(Wanted::Help),
                Long("version") => return Ok(Wanted::Version),
                Long("config") => file = Some(PathBuf::from(parser.value()?)),
                Long("listen") => flags.listen = Some(parser.value()?.string()?),
                Long("node") => {
                    let (id, addr) = split_node(&parser.value()?.string()?)?;
                    if flags.node.get_or_insert_default().insert(id.clone(), addr).is_some() {
                        return Err(wrong("--node", format!("node {id} is given twice")));
                    }
                }
                Long("node-timeout") => flags.node_timeout = Some(parser.value()?.string()?),
                Long("lease") => flags.lease = Some(parser.value()?.string()?),
                Long("lost-attempts") => flags.lost_attempts = Some(parser.value()?.parse()?),
                Long("state-dir") => flags.state_dir = Some(parser.value()?.into()),
                Long("wait") => flags.wait = Some(true),
                Long("share") => flags.share = Some(parser.value()?.into()),
                Long("token-file") => flags.token_file = Some(parser.value()?.into()),
                Long("host") => flags.host.get_or_insert_default().push(parser.value()?.string()?),
                unknown => return Err(unknown.unexpected().into()),
            }
        }
        let file = file.map(|path| read_file(&path)).transpose()?.unwrap_or_default();
        flags.over(file).checked().map(Wanted::Serve)
    }
}

fn read_file(path: &Path) -> Result<Said, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::File { path: path.to_owned(), message: error.to_string().trim().to_owned() })
}

fn split_node(text: &str) -> Result<(String, String), ConfigError> {
    match text.split_once('=') {
        Some((id, addr)) => Ok((id.to_owned(), addr.to_owned())),
        None => Err(wrong("--node", format!("{text:?} is not of the form ID=HOST:PORT, such as 0=127.0.0.1:5000"))),
    }
}

fn wrong(option: &str, message: impl Into<String>) -> ConfigError {
    ConfigError::Value { option: option.to_owned(), message: message.into() }
}

impl Said {
    fn over(self, other: Said) -> Said {
        Said {
            listen: self.listen.or(other.listen),
            node: self.node.or(other.node),
            node_timeout: self.node_timeout.or(other.node_timeout),
            lease: self.lease.or(other.lease),
            lost_attempts: self.lost_attempts.or(other.lost_attempts),
            state_dir: self.state_dir.or(other.state_dir),
            wait: self.wait.or(other.wait),
            share: self.share.or(other.share),
            token_file: self.token_file.or(other.token_file),
            host: self.host.or(other.host),
        }
    }

    fn checked(self) -> Result<Config, ConfigError> {
        let listen = self.listen.as_deref().unwrap_or("127.0.0.1:8080");
        let node_timeout = node_timeout(self.node_timeout.as_deref().unwrap_or("10s"))?;
        Ok(Config {
            listen: listen.parse().map_err(|_| {
                wrong("--listen", format!("{listen:?} is not an address and a port, such as 127.0.0.1:8080"))
            })?,
            nodes: match self.node {
                Some(nodes) => checked_nodes(nodes)?,
                None => BTreeMap::from([(NodeId(0), "127.0.0.1:5000".to_owned())]),
            },
            node_timeout,
            lease: lease(self.lease.as_deref(), node_timeout)?,
            lost_attempts: lost_attempts(self.lost_attempts.unwrap_or(LOST_ATTEMPTS))?,
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/berth-master".into()),
            wait: self.wait.unwrap_or(false),
            share: self.share,
            token_file: self.token_file,
            hosts: self.host.unwrap_or_default(),
        })
    }
}

/// By their numbers, not by how those are written: `0` and `00` are one node.
fn checked_nodes(given: BTreeMap<String, String>) -> Result<BTreeMap<NodeId, String>, ConfigError> {
    let mut nodes = BTreeMap::new();
    for one in given {
        let (id, addr) = checked_node(one)?;
        if nodes.insert(id, addr).is_some() {
            return Err(wrong("--node", format!("node {id} is given twice")));
        }
    }
    Ok(nodes)
}

fn checked_node((id, addr): (String, String)) -> Result<(NodeId, String), ConfigError> {
    let node: NodeId = id.parse().map_err(|_| wrong("--node", format!("{id:?} is not a node's number")))?;
    let port =
        addr.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(_) => Ok((node, addr)),
        None => Err(wrong("--node", format!("{addr:?} is not of the form HOST:PORT, such as 127.0.0.1:5000"))),
    }
}

/// At most a day; and not so short that seconds written without their unit pass.
fn node_timeout(text: &str) -> Result<Duration, ConfigError> {
    const SENSIBLE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
    let time = wire::duration::parse(text).map_err(|message| wrong("--node-timeout", message))?;
    let refusal = || wrong("--node-timeout", format!("{text:?} is not from 100ms to 24h"));
    SENSIBLE.contains(&time).then_some(time).ok_or_else(refusal)
}

/// Long enough that a node which misses a poll, and is not lost yet, does not lose its tasks.
fn lease(text: Option<&str>, node_timeout: Duration) -> Result<Duration, ConfigError> {
    let shortest = (2 * node_timeout).max(lease::SHORTEST);
    let Some(text) = text else { return Ok(LEASE.max(shortest)) };
    let time = wire::duration::parse(text).map_err(|message| wrong("--lease", message))?;
    if time < shortest {
        let (ms, timeout_ms) = (shortest.as_millis(), node_timeout.as_millis());
        let message = format!(
            "{text:?} is too short: with a --node-timeout of {timeout_ms}ms it must be at least {ms}ms, or nodes that \
             answer late would kill what they run"
        );
        return Err(wrong("--lease", message));
    }
    let within = time <= Duration::from_millis(MAX_LEASE_MS);
    within.then_some(time).ok_or_else(|| wrong("--lease", format!("{text:?} is more than a week")))
}

fn lost_attempts(number: u32) -> Result<u32, ConfigError> {
    (number > 0).then_some(number).ok_or_else(|| wrong("--lost-attempts", "0 is not from 1 on"))
}

impl Config {
    /// Where each node's name leads. Asks the resolver, so this may take a while.
    pub fn resolve_nodes(&self) -> Result<BTreeMap<NodeId, SocketAddr>, ConfigError> {
        let mut by_addr = BTreeMap::new();
        for (node, addr) in &self.nodes {
            let addr = resolve(*node, addr)?;
            // The node there is one of them at most, and the polls of the other would wait for its.
            if let Some(other) = by_addr.insert(addr, *node) {
                return Err(wrong("--node", format!("nodes {other} and {node} have the same address, {addr}")));
            }
        }
        Ok(by_addr.into_iter().map(|(addr, node)| (node, addr)).collect())
    }
}

fn resolve(node: NodeId, addr: &str) -> Result<SocketAddr, ConfigError> {
    // An address is tried first: a static binary without a resolver can serve a cluster of addresses.
    if let Ok(addr) = addr.parse() {
        return Ok(addr);
    }
    let unresolved = |cause| ConfigError::Unresolved { node, addr: addr.to_owned(), cause };
    let mut found = addr.to_socket_addrs().map_err(unresolved)?;
    found.next().ok_or_else(|| unresolved(std::io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::Scratch;

    fn read(args: &[&str]) -> Result<Wanted, String> {
        Wanted::read(args.iter().map(OsString::from)).map_err(|error| error.to_string())
    }

    fn config(args: &[&str]) -> Config {
        match read(args).unwrap() {
            Wanted::Serve(config) => config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_word_it_serves_one_machine() {
        let config = config(&[]);
        assert_eq!(config.listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(config.nodes, BTreeMap::from([(NodeId(0), "127.0.0.1:5000".into())]));
        assert_eq!(config.node_timeout, Duration::from_secs(10));
        assert_eq!((config.lease, config.lost_attempts), (Duration::from_secs(60), 3));
        assert_eq!((config.share, config.token_file, config.wait), (None, None, false));
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let dir = Scratch::new();
        let path = dir.path().join("berth.toml");
        let text = "listen = '127.0.0.1:1'\nwait = true\nnode-timeout = '3s'\nhost = ['berth.example']\n[node]\n0 = 'a:1'\n7 = 'b:2'\n";
        std::fs::write(&path, text).unwrap();
        let config = config(&["--listen", "[::1]:9", "--config", path.to_str().unwrap()]);
        assert_eq!(config.listen, "[::1]:9".parse().unwrap());
        assert_eq!(config.nodes.keys().collect::<Vec<_>>(), [&NodeId(0), &NodeId(7)]);
        assert_eq!(config.node_timeout, Duration::from_secs(3));
        assert_eq!(config.hosts, ["berth.example"]);
        assert!(config.wait);
    }

    #[test]
    fn nodes_are_given_one_by_one() {
        let config = config(&["--node", "0=127.0.0.1:5000", "--node=3=localhost:5003"]);
        assert_eq!(config.nodes[&NodeId(3)], "localhost:5003");
        assert_eq!(config.resolve_nodes().unwrap()[&NodeId(3)].port(), 5003);
    }

    #[test]
    fn two_nodes_at_one_address_are_refused() {
        let said = config(&["--node", "0=127.0.0.1:5000", "--node", "4=127.0.0.1:5000"]).resolve_nodes().unwrap_err();
        assert_eq!(said.to_string(), "--node: nodes 0 and 4 have the same address, 127.0.0.1:5000");
    }

    #[test]
    fn what_is_unknown_or_wrong_is_refused_by_name() {
        let cases: [(&[&str], &str); 16] = [
            (&["--shere", "/x"], "--shere"),
            (&["-x"], "-x"),
            (&["stray"], "stray"),
            (&["--listen"], "--listen"),
            (&["--listen", "8080"], "--listen"),
            (&["--node", "127.0.0.1:5000"], "--node"),
            (&["--node", "a=127.0.0.1:5000"], "--node"),
            (&["--node", "0=127.0.0.1"], "--node"),
            (&["--node", "0=a:1", "--node", "0=b:1"], "given twice"),
            (&["--node", "0=a:1", "--node", "00=b:1"], "given twice"),
            (&["--node-timeout", "10"], "--node-timeout"),
            (&["--lease", "soon"], "--lease"),
            (&["--lease", "19s"], "--lease"),
            (&["--lease", "1s", "--node-timeout", "100ms"], "--lease"),
            (&["--lease", "200h"], "--lease"),
            (&["--lost-attempts", "0"], "--lost-attempts"),
        ];
        for (args, name) in cases {
            let said = read(args).unwrap_err();
            assert!(said.contains(name), "{args:?}: {said}");
        }
        let dir = Scratch::new();
        let path = dir.path().join("berth.toml");
        std::fs::write(&path, "shere = '/x'").unwrap();
        let said = read(&["--config", path.to_str().unwrap()]).unwrap_err();
        assert!(said.contains("shere") && said.contains("berth.toml"), "{said}");
        assert!(read(&["--config", "/no/such/file"]).unwrap_err().contains("/no/such/file"));
    }

    #[test]
    fn a_lease_outlives_two_node_time_outs_whatever_is_said() {
        let lease = |args: &[&str]| config(args).lease.as_secs();
        assert_eq!(lease(&["--lease", "20s"]), 20);
        assert_eq!(lease(&["--node-timeout", "100ms", "--lease", "2s"]), 2);
        assert_eq!(lease(&["--node-timeout", "2m"]), 240);
    }

    #[test]
    fn help_and_version_win_over_everything_after_them() {
        assert_eq!(read(&["--help", "--nonsense"]), Ok(Wanted::Help));
        assert_eq!(read(&["--version"]), Ok(Wanted::Version));
    }
}
