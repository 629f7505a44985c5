//! What holds a task up: which of its processes wait in the kernel for something that does not answer, in one sentence.
//!
//! It only looks, and only at what never blocks: `/proc/PID/stat` and `/proc/PID/wchan`. What a process is called it
//! says itself, so that is only shown with its control characters made visible.

use std::path::Path;

/// The most processes one sentence names.
const NAMED: usize = 3;

/// A process as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its pid, as the host counts.
    pub pid: i32,
    /// What it calls itself (proc_pid_comm(5)).
    pub name: String,
    /// Its state's letter (proc_pid_stat(5), field 3).
    pub state: char,
    /// The kernel's function it sleeps in (proc_pid_wchan(5)), where the kernel tells.
    pub sleeps_in: Option<String>,
}

/// What the task should be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Should {
    /// An earlier launch of it, of which nothing is written down, should be gone.
    GiveWay,
    /// Its container should be ready by now.
    Begin,
    /// It was killed, and should be gone.
    BeGone,
    /// Its end is recorded, and its init should have left.
    Leave,
}

/// Looks at these; who has left meanwhile is not seen.
pub fn look(pids: impl IntoIterator<Item = i32>) -> Vec<Seen> {
    pids.into_iter().filter_map(|pid| look_at(Path::new("/proc"), pid)).collect()
}

fn look_at(proc: &Path, pid: i32) -> Option<Seen> {
    let folder = proc.join(pid.to_string());
    let stat = wire::proc_text::read(folder.join("stat")).ok()?;
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let state = after.trim_start().chars().next()?;
    let wchan = std::fs::read_to_string(folder.join("wchan")).unwrap_or_default();
    let sleeps_in = Some(wchan.trim().to_owned()).filter(|function| !function.is_empty() && function != "0");
    Some(Seen { pid, name: name.escape_debug().to_string(), state, sleeps_in })
}

/// What holds it up; `None`: nothing that can be seen, it is merely slow.
pub fn in_words(should: Should, seen: &[Seen]) -> Option<String> {
    let held: Vec<String> = seen.iter().filter(|process| is_held(process)).take(NAMED).map(say).collect();
    let held = held.join(", ");
    match (should, held.is_empty()) {
        (Should::GiveWay | Should::Begin | Should::Leave, true) => None,
        (Should::GiveWay, false) => Some(format!("an earlier launch of it is in the way: {held}")),
        (Should::Begin, false) => Some(format!("its container is not ready: {held}")),
        (Should::BeGone, true) => Some("it was killed and has not ended yet".to_owned()),
        (Should::BeGone, false) => Some(format!("it was killed and cannot end: {held}")),
        (Should::Leave, false) => Some(format!("it has ended and cannot go away: {held}")),
    }
}

/// Asleep where no signal reaches it, or in the hands of a server.
fn is_held(process: &Seen) -> bool {
    process.state == 'D' || process.sleeps_in.as_deref().and_then(waits_for).is_some()
}

fn say(process: &Seen) -> String {
    let Seen { pid, name, sleeps_in, .. } = process;
    match (sleeps_in, sleeps_in.as_deref().and_then(waits_for)) {
        (Some(function), Some(what)) => format!("process {pid} ({name}) waits for {what} ({function})"),
        (Some(function), None) => format!("process {pid} ({name}) is in uninterruptible sleep ({function})"),
        (None, _) => format!("process {pid} ({name}) is in uninterruptible sleep"),
    }
}

/// Whose answer a kernel function waits for. These wait until a signal first, and deaf to it only then.
fn waits_for(function: &str) -> Option<&'static str> {
    const WAITS: [(&str, &str); 7] = [
        // fs/fuse/dev.c; GlusterFS is one of these.
        ("request_wait_answer", "the server of a FUSE file system, such as a share"),
        ("fuse_", "the server of a FUSE file system, such as a share"),
        ("rpc_", "an NFS server"),
        ("nfs", "an NFS server"),
        ("p9_", "a 9P server"),
        ("cifs_", "an SMB server"),
        ("ceph_", "a Ceph cluster"),
    ];
    WAITS.iter().find(|(start, _)| function.trim_start_matches('_').starts_with(start)).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn seen(state: char, sleeps_in: Option<&str>) -> Seen {
        Seen { pid: 12, name: "sh".into(), state, sleeps_in: sleeps_in.map(str::to_owned) }
    }

    #[test]
    fn a_process_is_read_whatever_it_calls_itself() {
        let scratch = Scratch::new("stuck");
        scratch.write("12/stat", "12 (a) D (b\u{1b}) D 1 12 12 0 -1\n");
        scratch.write("12/wchan", "request_wait_answer");
        let expected = Seen { name: "a) D (b\\u{1b}".into(), ..seen('D', Some("request_wait_answer")) };
        assert_eq!(look_at(scratch.path(), 12), Some(expected));
        scratch.write("13/stat", "13 (x) S 1\n");
        scratch.write("13/wchan", "0");
        assert_eq!(look_at(scratch.path(), 13).unwrap().sleeps_in, None);
        scratch.write("14/stat", b"14 (caf\xe9) D 1\n");
        assert_eq!(look_at(scratch.path(), 14).unwrap().name, "caf\u{fffd}");
        assert_eq!(look_at(scratch.path(), 15), None);
    }

    #[test]
    fn the_sentence_names_who_waits_for_what_and_leaves_the_others_out() {
        let fuse = seen('S', Some("request_wait_answer"));
        let others = [seen('S', Some("do_wait")), fuse, seen('R', None), seen('D', Some("jbd2_log_wait_commit"))];
        assert_eq!(
            in_words(Should::BeGone, &others).unwrap(),
            "it was killed and cannot end: process 12 (sh) waits for the server of a FUSE file system, such as a share \
             (request_wait_answer), process 12 (sh) is in uninterruptible sleep (jbd2_log_wait_commit)"
        );
        assert!(in_words(Should::Leave, &others).unwrap().starts_with("it has ended and cannot go away: "));
        assert!(in_words(Should::GiveWay, &others).unwrap().starts_with("an earlier launch of it is in the way: "));
    }

    #[test]
    fn what_is_merely_slow_is_not_stuck_unless_it_was_killed() {
        let busy = [seen('R', None), seen('S', Some("do_wait"))];
        assert_eq!(in_words(Should::Begin, &busy), None);
        assert_eq!(in_words(Should::Leave, &busy), None);
        assert_eq!(in_words(Should::GiveWay, &busy), None);
        assert_eq!(in_words(Should::BeGone, &busy).unwrap(), "it was killed and has not ended yet");
    }
}
