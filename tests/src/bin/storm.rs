//! `scripts/storm`: kills a cluster for as long as you like and tells what it cost, or walks its fault points.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt};
use tests::interrupt::Interrupt;
use tests::storm::{Dice, Storm, Tally, round};
use tests::walk::{row, steps, take};
use wire::fault::Process;

const USAGE: &str = "\
usage: scripts/storm [--rounds N] [--seed S] [--first R] [--nodes N]
       scripts/storm --points >docs/faults.md

Starts a master and nodes of its own and, in each round, submits jobs, kills some, and SIGKILLs and restarts daemons at
random, some of them with a fault ordered; then waits until all is settled and counts jobs lost, doubled and leaked.

  --rounds N   how many rounds                                  [300]
  --seed S     which storm: the same seed throws the same dice  [1]
  --first R    begin with round R of it, to see one again       [1]
  --nodes N    how many nodes                                   [2]
  --points     one step for each fault point instead; prints docs/faults.md

Exit status: 0 if nothing was lost, doubled or leaked. Ctrl-C ends it after the round. Run as root.
";

/// How often a line is printed.
const ROUNDS_A_LINE: u64 = 100;
/// A storm that goes wrong this often is over.
const WRONG_ENOUGH: u64 = 10;

struct Wanted {
    rounds: u64,
    seed: u64,
    first: u64,
    nodes: usize,
    points: bool,
}

fn main() -> ExitCode {
    tests::sandbox::remove_all_on_panic();
    let interrupt = match Interrupt::expect() {
        Ok(interrupt) => interrupt,
        Err(error) => {
            eprintln!("storm: cannot expect signals: {error}");
            return ExitCode::from(2);
        }
    };
    match wanted() {
        Ok(Some(wanted)) if wanted.points => walk(&interrupt),
        Ok(Some(wanted)) => storm(&wanted, &interrupt),
        Ok(None) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("storm: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn wanted() -> Result<Option<Wanted>, lexopt::Error> {
    let mut wanted = Wanted { rounds: 300, seed: 1, first: 1, nodes: 2, points: false };
    let mut parser = Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("rounds") => wanted.rounds = parser.value()?.parse()?,
            Arg::Long("seed") => wanted.seed = parser.value()?.parse()?,
            Arg::Long("first") => wanted.first = parser.value()?.parse()?,
            Arg::Long("nodes") => wanted.nodes = parser.value()?.parse_with(at_least_one)?,
            Arg::Long("points") => wanted.points = true,
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(wanted))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|nodes| *nodes > 0).ok_or_else(|| "not a number from 1 on".to_owned())
}

fn storm(wanted: &Wanted, interrupt: &Interrupt) -> ExitCode {
    let mut storm = Storm::start(wanted.nodes);
    let (mut all, mut wrong) = (Tally::default(), 0);
    println!("seed {}, {} nodes\n\n  round  faults    jobs    lost doubled  leaked", wanted.seed, wanted.nodes);
    let mut last = 0;
    for number in (wanted.first..).take(usize::try_from(wanted.rounds).unwrap_or(usize::MAX)) {
        let tally = round(&mut storm, &mut Dice::of_round(wanted.seed, number));
        if !tally.is_clean() {
            println!("round {number} went wrong: {tally:#?}");
            wrong += 1;
        }
        all.add(tally);
        last = number;
        if number.is_multiple_of(ROUNDS_A_LINE) {
            println!("{number:>7} {all}");
        }
        if wrong == WRONG_ENOUGH || interrupt.came() {
            break;
        }
    }
    println!("{last:>7} {all}");
    storm.finish();
    if all.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What stands above the table in docs/faults.md.
const ABOUT: &str = "\
# Fault points

At each of these points a process was made to die as by SIGKILL, or the call that comes there to fail with the error behind
the `=`, while jobs were being run, killed, timed out and ended. Afterwards every job must have its true end, once: a command
says in its log that it ran, so one that ran twice has said so twice; and no cgroup, mount, process or folder of a container
may be left. A death of an init after it was told to go is the one thing that makes a job `Failed: lost`.

The table is what this printed, as root:

    scripts/storm --points >docs/faults.md

`BERTH_FAULT=launch.cloned@3` in a daemon's environment makes it die there the third time; unset it costs the look at one
flag. `scripts/storm --rounds 2000 --seed 1` kills at random instead.

| fault | in | when | faults | jobs | lost | doubled | leaked |
|---|---|---|---:|---:|---:|---:|---:|";

fn walk(interrupt: &Interrupt) -> ExitCode {
    println!("{ABOUT}");
    let mut all = Tally::default();
    let mut unreached = Vec::new();
    for processes in
        [&[Process::Supervisor, Process::Sweeper][..], &[Process::Init, Process::Payload], &[Process::Master]]
    {
        let mut storm = Storm::for_a_walk();
        for step in steps(processes).into_iter().take_while(|_| !interrupt.came()) {
            let taken = take(&mut storm, step);
            let counts = taken.tally.cells();
            println!("{} {counts} |", row(step));
            if !taken.tally.is_clean() {
                eprintln!("{step} went wrong: {:#?}", taken.tally);
            }
            if !taken.reached {
                unreached.push(step.to_string());
            }
            all.add(taken.tally);
        }
        storm.finish();
    }
    println!("| all | | | {} |", all.cells());
    if !unreached.is_empty() {
        eprintln!("nobody came to {}", unreached.join(", "));
    }
    if all.is_clean() && unreached.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
