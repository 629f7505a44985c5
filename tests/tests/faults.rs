//! Every fault point, one after the other: whoever dies there, or whatever fails there, no job is lost, none runs twice,
//! and nothing is left.

use tests::sandbox::is_root;
use tests::storm::{Dice, Storm, round};
use tests::walk::{row, steps, take};
use wire::fault::Process;

fn walk(processes: &[Process]) {
    if !is_root() {
        return;
    }
    let mut storm = Storm::for_a_walk();
    for step in steps(processes) {
        let taken = take(&mut storm, step);
        assert!(taken.tally.is_clean(), "after {step}: {:#?}", taken.tally);
        assert!(taken.reached, "nobody came to {step}");
    }
    storm.finish();
}

#[test]
fn the_supervisor_and_its_sweeper_may_die_or_fail_at_every_point() {
    walk(&[Process::Supervisor, Process::Sweeper]);
}

#[test]
fn an_init_and_its_command_may_die_or_fail_at_every_point() {
    walk(&[Process::Init, Process::Payload]);
}

#[test]
fn the_master_may_die_or_fail_at_every_point() {
    walk(&[Process::Master]);
}

#[test]
fn in_a_storm_of_kills_and_faults_no_job_is_lost_doubled_or_leaked() {
    if !is_root() {
        return;
    }
    let mut storm = Storm::start(2);
    for number in 1..=100 {
        let tally = round(&mut storm, &mut Dice::of_round(1, number));
        assert!(tally.is_clean(), "round {number}: {tally:#?}");
    }
    storm.finish();
}

#[test]
fn the_table_in_the_docs_has_every_point_and_nothing_but_zeros() {
    const PROCESSES: [Process; 5] =
        [Process::Supervisor, Process::Sweeper, Process::Init, Process::Payload, Process::Master];
    let table = include_str!("../../docs/faults.md");
    let known: Vec<String> = steps(&PROCESSES).into_iter().map(row).collect();
    for row in &known {
        let line = table.lines().find(|line| line.starts_with(row.as_str()));
        let line = line.unwrap_or_else(|| panic!("docs/faults.md is out of date, it lacks {row}"));
        assert!(line.ends_with("| 0 | 0 | 0 |"), "{line}");
    }
    let listed = table.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(listed, known.len(), "docs/faults.md lists points that are no more");
}

#[test]
fn a_fault_that_is_none_is_refused_at_start() {
    for daemon in ["berth-supervisor", "berth-master"] {
        let mut command = std::process::Command::new(tests::daemon::binary(daemon));
        let output = tests::daemon::run_to_end(command.env("BERTH_FAULT", "nowhere"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("no fault point \"nowhere\""), "{said}");
    }
}
