//! Where a task's logs go: to the share as long as it takes them, and what is done while it does not.
//!
//! A mount point with nothing mounted on it is a folder like any other: what is written there is on the wrong disk, and is
//! hidden by the next mount. And on a volume whose bricks are all down every launch would fail, at once: a node that fails
//! tasks at once looks free, and draws in one job after the other. So before a task is launched an errand tries the share,
//! for whose answer nobody but the launch waits; an answer is good for a second. While tasks run the share is tried
//! now and then, so that whoever looks at one of them hears that its output is cut off. A node without tasks asks nothing.
//!
//! ```text
//!   Untold ──a task to launch or to watch──▶ (asking) ──could be written──▶ There ──a second later, or 15──▶ (asking)
//!                                               │ could not, or no answer in time
//!                                               ▼
//!                                             Away ──pause over──▶ (asking)
//! ```
//!
//! A share that is not meant to be a mount is a folder, and never asked for.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;
use wire::{NodeId, Reason, TaskId};

use crate::errand::{Back, Messenger};
use crate::event_loop::Watcher;
use crate::mount_table;
use crate::task::{Now, Outcome};

/// How long an answer is good for.
const TRUST: Duration = Duration::from_secs(1);
/// How much older it may grow while tasks only run.
const WATCH: Duration = Duration::from_secs(14);
/// How long a share may take to answer. GlusterFS takes up to its network.ping-timeout when a host has vanished.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two questions while it is away; the pause doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(4);
/// The child's exit status when nothing is mounted; others are errno(3), of which none is as large.
const NOT_MOUNTED: i32 = 255;

/// `--no-share`: what becomes of tasks while the share is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoShare {
    /// They wait for it.
    Wait,
    /// They are launched, and keep their logs on this node.
    Local,
}

/// Who wants to know of the share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// Nobody.
    Nobody,
    /// Tasks that run.
    Watching,
    /// A task that is to be launched.
    Launching,
}

/// What is known of the share.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Untold,
    There { until: Instant },
    Away { cause: String, since: Timestamp, ask_again: Instant, pause: Duration },
}

/// Where the logs of this node's tasks are.
#[derive(Debug)]
pub struct LogRoot {
    share: PathBuf,
    local: PathBuf,
    node: NodeId,
    rule: Option<NoShare>,
    known: Known,
    messenger: Messenger,
    /// Tasks that were launched in vain once, because the share was gone by then.
    excused: BTreeSet<TaskId>,
}

impl LogRoot {
    /// Logs below `share`; without it, by that rule, below `local`. No rule: the share is a folder like any other.
    pub fn new(share: PathBuf, local: PathBuf, node: NodeId, rule: Option<NoShare>) -> LogRoot {
        let messenger = Messenger::new(share.clone(), PATIENCE);
        LogRoot { share, local, node, rule, known: Known::Untold, messenger, excused: BTreeSet::new() }
    }

    /// Below what a task launched now keeps its logs; `None`: it must wait.
    pub fn now(&self, now: Instant) -> Option<&Path> {
        self.decide(now, || is_mounted(&self.share))
    }

    fn decide(&self, now: Instant, is_mounted: impl FnOnce() -> bool) -> Option<&Path> {
        match (self.rule, &self.known) {
            (None, _) => Some(&self.share),
            // The child's word is up to a second old; this costs little and is of now.
            (Some(_), Known::There { until }) if now < *until && is_mounted() => Some(&self.share),
            (Some(NoShare::Local), Known::Away { .. }) => Some(&self.local),
            (Some(_), Known::Untold | Known::There { .. } | Known::Away { .. }) => None,
        }
    }

    /// What a task waits for that is not launched, where it is known that it must wait.
    pub fn holds_up(&self) -> Option<String> {
        let share = self.away().filter(|_| self.rule == Some(NoShare::Wait))?;
        Some(format!(
            "it waits for {share}, and is launched as soon as that can be written; hint: see to its mount and its servers, or \
             start the node with --no-share local"
        ))
    }

    /// What becomes of the output of a task that runs and has its logs on the share, while that is known to be away.
    pub fn cuts_off(&self) -> Option<String> {
        let share = self.away().filter(|_| self.rule.is_some())?;
        Some(format!(
            "it runs, and what it writes may be lost: its logs are on {share}; hint: see to its mount and its servers"
        ))
    }

    /// The share, and why and since when it is away, if that is known.
    fn away(&self) -> Option<String> {
        match &self.known {
            Known::Away { cause, since, .. } => {
                let (share, since) = (self.share.display(), since.strftime("%F %T UTC"));
                Some(format!("the share {share}, which {cause} (away since {since})"))
            }
            Known::Untold | Known::There { .. } => None,
        }
    }

    /// Whether a task's logs are on the share.
    pub fn is_on_share(&self, task: TaskId) -> bool {
        self.of(task).starts_with(&self.share)
    }

    /// Where a task's logs are. What was kept here stays here.
    pub fn of(&self, task: TaskId) -> PathBuf {
        let local = wire::logs::folder(&self.local, self.node, task);
        if local.is_dir() { local } else { wire::logs::folder(&self.share, self.node, task) }
    }

    /// Whether that end is the share's fault, which was gone by the time the logs were to be opened: nothing has run, and the
    /// task may wait for the share as if it had not been launched. Only once, since it may be something else after all.
    pub fn is_to_blame(&mut self, task: TaskId, outcome: &Outcome) -> bool {
        let at_the_logs = matches!(&outcome.cause, Some(Reason::LaunchFailed { step, .. }) if is_about_logs(step));
        if self.rule.is_none() || !at_the_logs {
            return false;
        }
        // What was believed until now is not to be relied upon.
        if let Known::There { .. } = self.known {
            self.known = Known::Untold;
        }
        self.excused.insert(task)
    }

    /// The task has ended for good.
    pub fn forget(&mut self, task: TaskId) {
        self.excused.remove(&task);
    }

    /// When something is to be done.
    pub fn next_deadline(&self, wanted: Wanted, now: Instant) -> Option<Instant> {
        // Where a launch wants to know there is something to do at once, mounted or not: the launch, or the question.
        self.messenger.gives_up().or_else(|| self.due(wanted, now, || false))
    }

    /// When to ask, while nobody does.
    fn due(&self, wanted: Wanted, now: Instant, is_mounted: impl FnOnce() -> bool) -> Option<Instant> {
        match (self.rule, wanted, &self.known) {
            (None, _, _) | (_, Wanted::Nobody, _) => None,
            (_, _, Known::Untold) => Some(now),
            (_, Wanted::Launching, Known::There { until }) if is_mounted() => Some(*until),
            (_, Wanted::Launching, Known::There { .. }) => Some(now),
            (_, Wanted::Watching, Known::There { until }) => Some(*until + WATCH),
            (_, _, Known::Away { ask_again, .. }) => Some(*ask_again),
        }
    }

    /// Gives up on a share that does not answer. Asks if the last answer is too old for whoever wants to know.
    pub fn ask_if_due(&mut self, wanted: Wanted, watcher: &Watcher, now: Now) {
        if self.messenger.give_up_if_late(now.instant) {
            self.learn(no_answer(), now);
        }
        if wanted == Wanted::Nobody {
            self.nobody_asks();
        }
        let due = || self.due(wanted, now.instant, || is_mounted(&self.share));
        if self.messenger.gives_up().is_some() || due().is_none_or(|due| now.instant < due) {
            return;
        }
        if !self.messenger.can_go() {
            return self.learn(no_answer(), now);
        }
        let (share, node) = (&self.share, self.node);
        if let Err(error) = self.messenger.send(watcher, now.instant, || ask(share, node)) {
            self.learn(Err(format!("cannot be tried: {error}")), now);
        }
    }

    /// From now on it cannot be said whether the share is away still, and was all the while. Tasks that are launched all the same
    /// are to be launched without waiting for the next answer.
    fn nobody_asks(&mut self) {
        if let (Some(NoShare::Wait), Known::Away { .. }) = (self.rule, &self.known) {
            self.known = Known::Untold;
        }
    }

    /// Whether `pid` is a child of its.
    pub fn has(&self, pid: i32) -> bool {
        self.messenger.has(pid)
    }

    /// Its child `pid` has exited.
    pub fn finish(&mut self, pid: i32, watcher: &Watcher, now: Now) {
        let answer = match self.messenger.collect(pid, watcher) {
            Back::With(0) => Ok(()),
            Back::With(NOT_MOUNTED) => Err("is not mounted".to_owned()),
            Back::With(errno) => Err(format!("cannot be written: {}", io::Error::from_raw_os_error(errno))),
            Back::Killed => Err("cannot be tried: the child that does was killed".to_owned()),
            Back::TooLate => return,
        };
        self.learn(answer, now);
    }

    fn learn(&mut self, answer: Result<(), String>, now: Now) {
        let share = self.share.display();
        self.known = match (answer, &self.known) {
            (Ok(()), known) => {
                if let Known::Away { .. } = known {
                    log::info!("the share {share} is there again");
                }
                Known::There { until: now.instant + TRUST }
            }
            (Err(cause), Known::Away { cause: before, since, pause, .. }) => {
                if cause != *before {
                    log::warn!("the share {share} {cause}");
                }
                let pause = (*pause * 2).min(LAST_PAUSE);
                Known::Away { cause, since: *since, ask_again: now.instant + pause, pause }
            }
            (Err(cause), Known::Untold | Known::There { .. }) => {
                match self.rule {
                    Some(NoShare::Local) => {
                        log::warn!("the share {share} {cause}; new tasks keep their logs in {}", self.local.display());
                    }
                    Some(NoShare::Wait) | None => log::warn!("the share {share} {cause}; new tasks wait for it"),
                }
                Known::Away { cause, since: now.wall, ask_again: now.instant + FIRST_PAUSE, pause: FIRST_PAUSE }
            }
        };
    }
}

/// That of an errand that was given up, and of every later one where it still hangs.
fn no_answer() -> Result<(), String> {
    Err(format!("does not answer within {} s", PATIENCE.as_secs()))
}

/// Init's steps on the share, as it names them.
fn is_about_logs(step: &str) -> bool {
    ["make log folder ", "open log ", "look at log ", "put log "].iter().any(|name| step.starts_with(name))
}

/// The child's whole life.
fn ask(share: &Path, node: NodeId) -> i32 {
    if !is_mounted(share) {
        return NOT_MOUNTED;
    }
    match try_writing(share, node) {
        Ok(()) => 0,
        Err(errno) => errno.raw_os_error(),
    }
}

/// A folder is made and removed: unlike a line that is written, nothing on the way to the bricks can swallow that.
fn try_writing(share: &Path, node: NodeId) -> rustix::io::Result<()> {
    let trial = share.join(format!(".berth-node{node}"));
    match rustix::fs::mkdirat(CWD, &trial, Mode::RWXU) {
        // An earlier trial did not get further than that.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    match rustix::fs::unlinkat(CWD, &trial, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        removed => removed,
    }
}

fn is_mounted(share: &Path) -> bool {
    mount_table::mounted_on(share).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::{Event, EventLoop};
    use crate::scratch::Scratch;

    fn root(rule: Option<NoShare>) -> LogRoot {
        LogRoot::new("/mnt/share".into(), "/s/share".into(), NodeId(3), rule)
    }

    #[test]
    fn a_share_that_is_no_mount_is_a_folder_and_never_asked_for() {
        let root = root(None);
        assert_eq!(root.decide(Instant::now(), || false), Some(Path::new("/mnt/share")));
        assert_eq!(root.next_deadline(Wanted::Launching, Instant::now()), None);
    }

    #[test]
    fn a_task_waits_until_the_share_has_answered_and_the_answer_grows_old() {
        let (mut root, now) = (root(Some(NoShare::Local)), Now::read());
        assert_eq!(root.decide(now.instant, || true), None);
        assert_eq!(root.next_deadline(Wanted::Launching, now.instant), Some(now.instant));
        assert_eq!(root.next_deadline(Wanted::Nobody, now.instant), None, "nobody wants to know");
        root.learn(Ok(()), now);
        assert_eq!(root.decide(now.instant, || true), Some(Path::new("/mnt/share")));
        assert_eq!(root.decide(now.instant, || false), None, "unmounted since");
        assert_eq!(root.decide(now.instant + TRUST, || true), None);
    }

    #[test]
    fn without_the_share_tasks_wait_or_stay_on_the_node_as_the_operator_chose() {
        let now = Now::read();
        let [mut waiting, mut local] = [NoShare::Wait, NoShare::Local].map(|rule| root(Some(rule)));
        for root in [&mut waiting, &mut local] {
            root.learn(Err("is not mounted".into()), now);
        }
        assert_eq!(waiting.decide(now.instant, || false), None);
        assert_eq!(local.decide(now.instant, || false), Some(Path::new("/s/share")));
        local.learn(Ok(()), now);
        assert_eq!(local.decide(now.instant, || true), Some(Path::new("/mnt/share")));
    }

    #[test]
    fn a_task_whose_logs_could_not_be_opened_is_excused_once_and_the_share_is_asked_anew() {
        let (mut root, now) = (root(Some(NoShare::Wait)), Now::read());
        root.learn(Ok(()), now);
        let failed_at = |step: &str| Outcome {
            status: wire::State::Failed,
            cause: Some(Reason::LaunchFailed { step: step.to_owned(), cause: "ENOTCONN".to_owned() }),
            exit_code: None,
            started_at: None,
            ended_at: Now::read().wall,
            cpu: None,
            memory_peak_bytes: None,
        };
        assert!(!root.is_to_blame(TaskId(1), &failed_at("unite the root")));
        assert_eq!(root.decide(now.instant, || true), Some(Path::new("/mnt/share")));
        let logs = failed_at("make log folder /mnt/share/nodes/3/task1");
        assert!(root.is_to_blame(TaskId(1), &logs));
        assert_eq!(root.decide(now.instant, || true), None);
        assert!(!root.is_to_blame(TaskId(1), &logs), "once");
        root.forget(TaskId(1));
        assert!(root.excused.is_empty());
    }

    #[test]
    fn a_share_that_stays_away_is_asked_for_ever_more_seldom() {
        let (mut root, now) = (root(Some(NoShare::Wait)), Now::read());
        let mut pauses = Vec::new();
        for _ in 0..6 {
            root.learn(Err("is not mounted".into()), now);
            pauses.push(root.next_deadline(Wanted::Launching, now.instant).unwrap() - now.instant);
        }
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert_eq!(pauses[5], LAST_PAUSE);
    }

    #[test]
    fn what_holds_tasks_up_is_said_with_its_cause_of_now_and_the_time_of_the_first() {
        let now = Now { wall: Timestamp::from_second(1_800_000_000).unwrap(), ..Now::read() };
        let [mut waiting, mut local] = [NoShare::Wait, NoShare::Local].map(|rule| root(Some(rule)));
        assert_eq!(waiting.holds_up(), None, "nobody has asked");
        for root in [&mut waiting, &mut local] {
            root.learn(Err("is not mounted".into()), now);
            root.learn(no_answer(), Now { wall: Timestamp::now(), ..now });
        }
        let said = waiting.holds_up().unwrap();
        assert!(
            said.contains("/mnt/share, which does not answer within 15 s (away since 2027-01-15 08:00:00 UTC)"),
            "{said}"
        );
        assert_eq!(local.holds_up(), None);
        waiting.learn(Ok(()), now);
        assert_eq!(waiting.holds_up(), None);
    }

    #[test]
    fn for_tasks_that_only_run_the_share_is_tried_now_and_then_and_they_are_told_that_it_is_away() {
        let now = Now::read();
        for rule in [NoShare::Wait, NoShare::Local] {
            let mut root = root(Some(rule));
            assert_eq!(root.next_deadline(Wanted::Watching, now.instant), Some(now.instant));
            root.learn(Ok(()), now);
            assert_eq!(root.next_deadline(Wanted::Watching, now.instant), Some(now.instant + TRUST + WATCH));
            assert_eq!(root.cuts_off(), None);
            root.learn(Err("is not mounted".into()), now);
            assert_eq!(root.next_deadline(Wanted::Watching, now.instant), Some(now.instant + FIRST_PAUSE));
            assert!(root.cuts_off().unwrap().contains("the share /mnt/share, which is not mounted"));
        }
        assert_eq!(root(None).next_deadline(Wanted::Watching, now.instant), None);
    }

    #[test]
    fn once_nobody_asks_any_more_it_is_not_said_to_be_away() {
        let (mut root, now) = (root(Some(NoShare::Wait)), Now::read());
        let watcher = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap().watcher().unwrap();
        root.learn(Err("is not mounted".into()), now);
        root.ask_if_due(Wanted::Nobody, &watcher, now);
        assert_eq!((root.holds_up(), root.cuts_off()), (None, None));
        let later = Now { wall: now.wall + Duration::from_secs(3600), ..now };
        root.learn(Err("is not mounted".into()), later);
        let since = later.wall.strftime("%F %T UTC").to_string();
        assert!(root.holds_up().unwrap().contains(&since), "it may have been there meanwhile");
    }

    #[test]
    fn a_folder_that_is_no_mount_is_not_written_to() {
        let scratch = Scratch::new("log-root");
        let mut events = EventLoop::new("127.0.0.1:0".parse().unwrap()).unwrap();
        let (watcher, now) = (events.watcher().unwrap(), Now::read());
        let mut root = LogRoot::new(scratch.path().to_owned(), "/s".into(), NodeId(1), Some(NoShare::Wait));
        root.ask_if_due(Wanted::Launching, &watcher, now);
        let heard = events.turn(Some(now.instant + Duration::from_secs(90))).unwrap();
        let [Event::ChildExited(pid)] = heard[..] else { panic!("{heard:?}") };
        assert!(root.has(pid));
        root.finish(pid, &watcher, now);
        assert!(matches!(root.known, Known::Away { .. }));
        assert_eq!(scratch.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_trial_leaves_nothing_and_minds_no_earlier_one() {
        let scratch = Scratch::new("log-root");
        std::fs::create_dir(scratch.join(".berth-node1")).unwrap();
        assert_eq!(try_writing(scratch.path(), NodeId(1)), Ok(()));
        assert_eq!(scratch.path().read_dir().unwrap().count(), 0);
        assert_eq!(try_writing(Path::new("/proc"), NodeId(1)), Err(Errno::NOENT));
    }
}
