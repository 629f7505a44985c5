//! The machine's limits: how many processes and open files there may be.

use rustix::process::Resource;

use super::{Finding, read};

/// What one task may have at most.
const PIDS_A_TASK: u64 = 512;
/// Connections, tasks, and room to work.
const OPEN_FILES: u64 = 4096;

pub(super) fn examine() -> Vec<Finding> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    vec![pids(&read("/proc/sys/kernel/pid_max"), &read("/proc/sys/kernel/threads-max")), open_files(limit.maximum)]
}

/// From the texts of /proc/sys/kernel/pid_max and threads-max (proc(5)).
fn pids(pid_max: &str, threads_max: &str) -> Finding {
    const NAME: &str = "process limit";
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let Some(most) = number(pid_max).into_iter().chain(number(threads_max)).min() else {
        return Finding::degraded(NAME, "/proc/sys/kernel/pid_max cannot be read");
    };
    let tasks = most / PIDS_A_TASK;
    let says = format!("{most} processes and threads, {tasks} tasks that use all {PIDS_A_TASK} of theirs");
    if tasks >= 16 {
        Finding::good(NAME, says)
    } else {
        Finding::degraded(NAME, format!("{says}; try: sysctl kernel.pid_max=4194304"))
    }
}

/// The hard limit; `None` is unlimited.
fn open_files(hard: Option<u64>) -> Finding {
    const NAME: &str = "open files";
    match hard {
        Some(hard) if hard < OPEN_FILES => Finding::degraded(
            NAME,
            format!("at most {hard}: many tasks or connections will be refused; try: ulimit -Hn 65536"),
        ),
        Some(hard) => Finding::good(NAME, format!("up to {hard}")),
        None => Finding::good(NAME, "as many as there is memory for"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn the_lesser_of_both_process_limits_counts() {
        assert!(pids("4194304\n", "95000\n").says.starts_with("95000 "));
        assert_eq!(pids("4096\n", "95000\n").state, State::Degraded);
        assert_eq!(pids("", "").state, State::Degraded);
    }

    #[test]
    fn few_open_files_are_said() {
        assert_eq!(open_files(Some(1024)).state, State::Degraded);
        assert_eq!(open_files(Some(1 << 20)).state, State::Good);
        assert_eq!(open_files(None).state, State::Good);
    }
}
