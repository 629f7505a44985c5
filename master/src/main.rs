//! berth's master: takes jobs over HTTP, places them on nodes, shows them as plain HTML.

#![forbid(unsafe_code)]

mod config;
mod job;
mod jobs;
mod life;
mod nodes;
mod poller;
mod scheduler;
mod state_dir;
mod store;

mod gate;

fn main() {}
