//! berth's node supervisor: one thread that launches, watches and reaps containers.

mod adopt;
mod cgroup;
mod child;
mod config;
mod containers;
mod control;
mod doctor;
mod errand;
mod event_loop;
mod fault;
mod history;
mod images;
mod journal;
mod launch;
mod leaks;
mod lease;
mod log_pages;
mod log_root;
mod lxc_config;
mod machine;
mod masters;
mod mount_table;
mod namespaces;
mod node;
mod oom;
mod output;
mod packages;
mod remove_tree;
mod rootfs;
mod run;
#[cfg(test)]
mod scratch;
mod sealed_copy;
mod security;
mod serve;
mod state_dir;
mod stuck;
mod sweep;
mod sys;
mod task;
mod task_table;
mod unions;

use std::process::ExitCode;

use config::{Command, NodeConfig};

fn main() -> ExitCode {
    wire::stderr_log::init();
    if let Err(error) = sealed_copy::run() {
        log::warn!("cannot run from a sealed copy of this program: {error}");
    }
    if let Err(error) = wire::fault::arm() {
        log::error!("{error}");
        return ExitCode::FAILURE;
    }
    match config::parse(std::env::args_os()).map_err(Into::into).and_then(perform) {
        Ok(status) => status,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match command {
        Command::Serve(node) => serve::serve(&node)?,
        Command::Run { node, spec, network } => {
            let status = run::run(&launch::Settings::of(&node)?, &node.cgroup_root, &spec, network, node.grace)?;
            return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
        }
        Command::Leaks { node, json } => return tell_leaks(&node, json),
        Command::Doctor(node) => {
            let report = doctor::examine(&node.state_dir);
            print!("{report}");
            return Ok(if report.can_work() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::ImageAdd { node, image, source } => images::add(&images_of(&node), &image, &source)?,
        Command::ImageList(node) => {
            for image in images::list(&images_of(&node))? {
                println!("{image}");
            }
        }
        Command::ImageRemove { node, image } => {
            images::remove(&images_of(&node), &node.state_dir.join("cont"), &image)?;
        }
        Command::Help => print!("{}", config::USAGE),
        Command::Version => println!("berth-supervisor {}", env!("CARGO_PKG_VERSION")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Exit status 0: there are none.
fn tell_leaks(node: &NodeConfig, json: bool) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let leaks = leaks::find(&node.state_dir, &node.cgroup_root)?;
    if json {
        println!("{}", serde_json::json!({ "leaks": leaks }));
    } else {
        leaks.iter().for_each(|leak| println!("{leak}"));
        match leaks.len() {
            0 => println!("nothing of ours is without an owner"),
            count => println!("\n{count} without an owner; a supervisor removes them when it starts"),
        }
    }
    Ok(if leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn images_of(node: &NodeConfig) -> std::path::PathBuf {
    node.state_dir.join("img")
}
