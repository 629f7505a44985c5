//! `scripts/soak`: thousands of containers through one supervisor, and whether anything of them stays.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt};
use tests::interrupt::Interrupt;
use tests::soak::{QUANTITIES, Soak, growth};

const USAGE: &str = "\
usage: scripts/soak [--containers N] [--dir DIR]

Starts a master and a node of its own, runs N containers through them, and prints every now and then what memory, files,
cgroups, folders and journal they hold. None of it may grow with the number of containers.

  --containers N  how many                                    [20000]
  --dir DIR       where everything is kept; on a disk         [/var/tmp]

Exit status: 0 if all was flat, 1 if something grew or Ctrl-C ended it early. Run as root.
";

/// How often is looked, over the whole run.
const LOOKS: u64 = 20;

fn main() -> ExitCode {
    tests::sandbox::remove_all_on_panic();
    match wanted() {
        Ok(Some((containers, dir))) => soak(containers, &dir),
        Ok(None) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("soak: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn wanted() -> Result<Option<(u64, PathBuf)>, lexopt::Error> {
    let (mut containers, mut dir) = (20_000, PathBuf::from("/var/tmp"));
    let mut parser = Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("containers") => containers = parser.value()?.parse_with(enough)?,
            Arg::Long("dir") => dir = PathBuf::from(parser.value()?),
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some((containers, dir)))
}

fn enough(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|containers| *containers >= LOOKS).ok_or_else(|| format!("not a number from {LOOKS} on"))
}

fn soak(containers: u64, dir: &Path) -> ExitCode {
    let interrupt = match Interrupt::expect() {
        Ok(interrupt) => interrupt,
        Err(error) => {
            eprintln!("soak: cannot expect signals: {error}");
            return ExitCode::from(2);
        }
    };
    let mut soak = Soak::start(dir);
    println!("| containers | {} |", QUANTITIES.map(|quantity| quantity.name).join(" | "));
    println!("|---:|{}", "---:|".repeat(QUANTITIES.len()));
    let mut samples = Vec::new();
    for look in 0..LOOKS {
        let sample = soak.run(containers * (look + 1) / LOOKS - containers * look / LOOKS);
        println!("| {} | {} |", sample.containers, sample.values.map(|value| value.to_string()).join(" | "));
        samples.push(sample);
        if interrupt.came() {
            soak.finish();
            return ExitCode::FAILURE;
        }
    }
    soak.finish();
    let grown = growth(&samples);
    for growth in &grown {
        eprintln!("{} grew: at most {} before, at least {} in the end", growth.name, growth.before, growth.after);
    }
    if grown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
