//! Hosts of their own: network namespaces on one bridge, whose cables a test can pull out and plug in again.
//!
//! ```text
//!   namespace NAME-lan:  br0 ── port0 ─┐     port1 ─┐
//!   namespace NAME-h0:           eth0 ─┘            │         a daemon, 198.18.x.1
//!   namespace NAME-h1:                        eth0 ─┘         a daemon, 198.18.x.2
//! ```
//!
//! A cut is the bridge's port being down: the host's card loses its carrier and keeps its address, packets vanish, and what
//! TCP has sent comes later, once the cable is in again. A test speaks to a daemon from inside the daemon's namespace,
//! cut or not. All names carry the sandbox's, and all is removed when the test is over, however it ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::daemon::run_to_end;
use crate::sandbox::Sandbox;
use crate::wait::PATIENCE;

/// Where daemons listen on their hosts.
const PORT: u16 = 5000;

/// Which namespace an address is in, of this process' tests.
static ADDRESSES: Mutex<BTreeMap<IpAddr, PathBuf>> = Mutex::new(BTreeMap::new());

/// A namespace with one network card.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    port: String,
    addr: Ipv4Addr,
}

impl Host {
    /// Where a daemon on it listens.
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((self.addr, PORT))
    }

    /// A command that runs on it. Not `ip netns exec`, which mounts a /sys without cgroups.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", file_of(&self.namespace).display())).arg("--").arg(program);
        command
    }
}

/// A bridge and the hosts on it.
#[derive(Debug)]
pub struct Lan {
    name: String,
    network: u8,
    namespaces: Vec<String>,
}

impl Lan {
    /// A bridge with nothing on it.
    pub fn new(sandbox: &Sandbox) -> Lan {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let network = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut lan = Lan { name: sandbox.name().to_owned(), network, namespaces: Vec::new() };
        let hub = lan.add_namespace("lan");
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &hub, "link", "set", "br0", "up"]);
        lan
    }

    fn add_namespace(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.name);
        ip(&["netns", "add", &name]);
        self.namespaces.push(name.clone());
        name
    }

    fn hub(&self) -> &str {
        &self.namespaces[0]
    }

    /// One more host, with its cable in.
    pub fn add_host(&mut self) -> Host {
        let number = u8::try_from(self.namespaces.len()).unwrap_or(u8::MAX);
        self.add_host_at(Ipv4Addr::new(198, 18, self.network, number))
    }

    /// [`Lan::add_host`] with an address of the caller's choice.
    pub fn add_host_at(&mut self, addr: Ipv4Addr) -> Host {
        let number = self.namespaces.len();
        let namespace = self.add_namespace(&format!("h{number}"));
        let port = format!("port{number}");
        let hub = self.hub().to_owned();
        ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
        ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &namespace, "addr", "add", &format!("{addr}/24"), "dev", "eth0"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        addresses().insert(IpAddr::V4(addr), file_of(&namespace));
        Host { namespace, port, addr }
    }

    /// Pulls the host's cable out.
    pub fn cut(&self, host: &Host) {
        ip(&["-n", self.hub(), "link", "set", &host.port, "down"]);
    }

    /// Plugs it in again.
    pub fn heal(&self, host: &Host) {
        ip(&["-n", self.hub(), "link", "set", &host.port, "up"]);
    }
}

impl Drop for Lan {
    /// Never panics: a test that failed is cleaned up after as well.
    fn drop(&mut self) {
        for namespace in self.namespaces.iter().rev() {
            match Command::new("ip").args(["netns", "delete", namespace]).status() {
                Ok(status) if status.success() => {}
                failed => eprintln!("cannot remove the network namespace {namespace}: {failed:?}"),
            }
            addresses().retain(|_, file| *file != file_of(namespace));
        }
    }
}

/// Connects to an address, from inside the namespace it is in.
pub fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let namespace = addresses().get(&addr.ip()).cloned();
    let Some(namespace) = namespace else { return TcpStream::connect_timeout(&addr, PATIENCE) };
    // A socket stays where it was made; the thread that went there to make it ends.
    let inside = || {
        move_into_link_name_space(File::open(namespace)?.as_fd(), Some(LinkNameSpaceType::Network))?;
        TcpStream::connect_timeout(&addr, PATIENCE)
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

fn addresses() -> std::sync::MutexGuard<'static, BTreeMap<IpAddr, PathBuf>> {
    ADDRESSES.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn file_of(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

fn ip(arguments: &[&str]) {
    let output = run_to_end(Command::new("ip").args(arguments));
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
}
