//! What a container sees of the machine: its own pids, mounts, IPC, hostname and network.
//!
//! The namespaces are made by the clone itself; this room says which, and readies what a fresh one lacks.
//! The cgroup namespace is the exception: the payload unshares it after joining its cgroup (cgroup_namespaces(7)),
//! so that its own group becomes the root of what it sees.

use std::io;

use crate::lxc_config::Network;
use crate::sys;

/// The clone flags of an init with this kind of network.
pub fn clone_flags(network: Network) -> u64 {
    let always =
        sys::clone_flags::NEWNS | sys::clone_flags::NEWPID | sys::clone_flags::NEWIPC | sys::clone_flags::NEWUTS;
    match network {
        Network::None => always | sys::clone_flags::NEWNET,
        Network::Host => always,
    }
}

/// Names the container. In its own UTS namespace, so the host's name is untouched.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(nix::unistd::sethostname(name)?)
}

/// A fresh network namespace has a loopback interface that is down; programs expect it up.
pub fn ready_network(network: Network) -> io::Result<()> {
    match network {
        Network::None => sys::bring_loopback_up(),
        Network::Host => Ok(()),
    }
}

/// Makes the current cgroup the root of what this process and its children see.
pub fn unshare_cgroup() -> io::Result<()> {
    Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)?)
}
