//! The harness of the end-to-end tests: real masters, real supervisors, real containers.
//!
//! A test asks for a [`cluster::Cluster`] or a lone [`node::Node`], speaks HTTP to it as a user
//! would, and gets the leak check afterwards whether it asked or not. A file here owns one noun;
//! the claims themselves are in `tests/tests`, a file per behaviour.
//!
//! Containers need root. Without it every such test says aloud that it was skipped, and passes.

#![forbid(unsafe_code)]

pub mod cgroup;
pub mod chromium;
pub mod client;
pub mod cluster;
pub mod conformance;
pub mod daemon;
pub mod follow;
pub mod gluster;
pub mod http;
pub mod hung_fuse;
pub mod image;
pub mod interrupt;
pub mod job;
pub mod leaks;
pub mod ledger;
pub mod limited_group;
pub mod machine;
pub mod master;
pub mod mount;
pub mod netns;
pub mod node;
pub mod power;
pub mod sandbox;
pub mod small_disk;
pub mod soak;
pub mod storm;
pub mod wait;
pub mod walk;
