//! The life of one task as a pure state machine: what happened, and what is to be done about it.
//!
//! It owns the question "what does this mean for the task", and how an end is classified. It
//! touches nothing: time is passed in, and what must be done is returned as [`Action`]s for the
//! task table to perform.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use wire::task::{TaskOrigin, TaskReport};
use wire::{ContainerId, EventNumber, JobSpec, Reason, State, TaskId};

use crate::cgroup::Usage;
use crate::launch::record::{End, EndRecord};
use crate::lease;

/// How long after its own grace period init may still be tidying up before it is killed itself.
pub const INIT_MARGIN: Duration = Duration::from_secs(5);
/// The longest pause between two attempts to kill what does not die.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Attempts after which a task that does not die is called stuck.
const STUCK_AFTER: u32 = 3;

/// One reading of all clocks, so that decisions take time as data.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For deadlines; wall-clock jumps do not touch it.
    pub instant: Instant,
    /// For what people read.
    pub wall: Timestamp,
    /// For leases: since boot, sleep included.
    pub since_boot: Duration,
}

impl Now {
    /// Reads them.
    pub fn read() -> Now {
        Now { instant: Instant::now(), wall: Timestamp::now(), since_boot: lease::since_boot() }
    }
}

/// Which process init is: a pid alone may be another process's by now, together with its start
/// time (field 22 of `/proc/PID/stat`, in clock ticks since boot) it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// Its pid in our namespace.
    pub pid: i32,
    /// When it was started.
    pub start_time: u64,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// One of the four final states.
    pub status: State,
    /// Why, where the status is `Failed`.
    pub cause: Option<Reason>,
    /// The command's exit status, if it exited.
    pub exit_code: Option<i32>,
    /// When the command started, if it did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// CPU time used.
    pub cpu: Option<Duration>,
    /// The most memory it held.
    pub memory_peak_bytes: Option<u64>,
}

impl Outcome {
    fn without_a_run(status: State, cause: Option<Reason>, now: Now) -> Outcome {
        Outcome {
            status,
            cause,
            exit_code: None,
            started_at: None,
            ended_at: now.wall,
            cpu: None,
            memory_peak_bytes: None,
        }
    }
}

/// Whether a task that is being stopped had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Its command does not run yet.
    NotYet,
    /// It runs, since when somebody heard of it.
    Since(Option<Timestamp>),
}

/// Where a task is in its life.
///
/// ```text
///   Accepted ──launched──▶ Launched ──started──▶ Running ──init exited──▶ Ended
///      │  ▲                  │ │ │                  │                       ▲
///      │  └────never ran─────┘ │ └──init exited─────│───────────────────────┤
///      │                       └─kill─▶ Stopping ◀──┘kill                   │
///      │                                 │  ▲ │                             │
///      │                deadline passed──┘──┘ └──init exited, never ran─────┤
///      └──launch failed, kill, init exited──────────────────────────────────┘
/// ```
///
/// - **launched**: init exists and waits. It is told to go only after the journal knows who it is.
/// - **never ran**: the supervisor died between that line and the word, so init left. The only way back.
/// - **started**: the command has been executed.
/// - **kill**: init is asked to end the task; it keeps the grace period by itself.
/// - **deadline passed**: init did not manage; now init itself and the cgroup are killed, again
///   and again with growing pauses, since a process in uninterruptible sleep dies only afterwards.
/// - **init exited**: nothing of the task is alive any more (pid_namespaces(7)); its end record says how it went. Of an
///   accepted task only after a reboot, whose power cut took the line of the launch and left the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// In the journal, waiting for its turn to be launched.
    Accepted {
        /// What to launch.
        spec: Box<JobSpec>,
    },
    /// Init prepares the container; the command does not run yet.
    Launched {
        /// What was launched.
        spec: Box<JobSpec>,
        /// The container's PID 1.
        init: Init,
    },
    /// The command runs.
    Running {
        /// What runs.
        spec: Box<JobSpec>,
        /// The container's PID 1.
        init: Init,
        /// Since when, where that was heard.
        since: Option<Timestamp>,
    },
    /// Asked to end, not yet ended.
    Stopping {
        /// What runs.
        spec: Box<JobSpec>,
        /// The container's PID 1.
        init: Init,
        /// Whether the command had started.
        start: Start,
        /// When to kill init and the cgroup.
        kill_at: Instant,
        /// How often that was done already.
        kills: u32,
    },
    /// Over. The spec is let go: thousands of these may wait for a master to hear of them.
    Ended {
        /// How.
        outcome: Outcome,
    },
}

impl Phase {
    /// As of `now` init was asked to end the task. It keeps the grace period by itself, and has a margin after it to
    /// tidy up and record, so that our SIGKILL does not race what it has to say.
    pub fn stopping(spec: Box<JobSpec>, init: Init, start: Start, grace: Duration, now: Now) -> Phase {
        Phase::Stopping { spec, init, start, kill_at: now.instant + grace + INIT_MARGIN, kills: 0 }
    }
}

/// What can happen to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Init was cloned and waits for the word to go.
    Launched(Init),
    /// No init could be made.
    LaunchFailed(Reason),
    /// The command was executed; of an adopted task nobody may know when, until its record says.
    Started(Option<Timestamp>),
    /// Somebody wants it to end; the grace period is what init was told at launch.
    KillRequested {
        /// How long init lets the command react to SIGTERM.
        grace: Duration,
    },
    /// [`Task::next_deadline`] has passed.
    DeadlinePassed,
    /// Init is gone, and with it every process of the task.
    InitExited(Outcome),
    /// Init is gone because it was never told to go: the command has not run.
    NeverRan,
}

/// What is to be done, in this order. Where the journal cannot be written, what stands behind the
/// write waits with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write the change to the journal.
    Write(Change),
    /// Give the change the next event number, write it to the journal, tell the masters.
    Tell(Change),
    /// Let it wait for its turn to be launched, again.
    Queue,
    /// Tell init to execute the command.
    SayGo,
    /// Ask init to end the task: SIGTERM.
    Terminate,
    /// SIGKILL to init and to all that is left in the cgroup.
    Kill,
    /// Find out what keeps it from dying, and say so.
    CallStuck,
    /// Remove cgroup and container folder, free its share of the node.
    Release,
}

/// A change worth a line in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Init exists.
    Launched(Init),
    /// Its end was asked for.
    KillRequested,
    /// The command runs.
    Started(Option<Timestamp>),
    /// Its init left without having run anything.
    NeverRan,
    /// It is over.
    Ended,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its number.
    pub id: TaskId,
    /// Which attempt of which job of which master it is.
    pub origin: TaskOrigin,
    /// Where it is in its life.
    pub phase: Phase,
}

impl Task {
    /// A task that was just accepted.
    pub fn accept(id: TaskId, origin: TaskOrigin, spec: JobSpec) -> Task {
        Task { id, origin, phase: Phase::Accepted { spec: Box::new(spec) } }
    }

    /// Its container, which also names its cgroup and its folder.
    pub fn container(&self) -> ContainerId {
        ContainerId(self.id)
    }

    /// What it was asked to run, as long as that matters.
    pub fn spec(&self) -> Option<&JobSpec> {
        match &self.phase {
            Phase::Accepted { spec }
            | Phase::Launched { spec, .. }
            | Phase::Running { spec, .. }
            | Phase::Stopping { spec, .. } => Some(spec),
            Phase::Ended { .. } => None,
        }
    }

    /// The container's PID 1, while there is one.
    pub fn init(&self) -> Option<Init> {
        match &self.phase {
            Phase::Launched { init, .. } | Phase::Running { init, .. } | Phase::Stopping { init, .. } => Some(*init),
            Phase::Accepted { .. } | Phase::Ended { .. } => None,
        }
    }

    /// When it wants to hear [`Event::DeadlinePassed`].
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Stopping { kill_at, .. } => Some(*kill_at),
            Phase::Accepted { .. } | Phase::Launched { .. } | Phase::Running { .. } | Phase::Ended { .. } => None,
        }
    }

    /// The state as the masters see it.
    pub fn status(&self) -> State {
        match &self.phase {
            Phase::Accepted { .. } | Phase::Launched { .. } | Phase::Stopping { start: Start::NotYet, .. } => {
                State::Assigned
            }
            Phase::Running { .. } | Phase::Stopping { start: Start::Since(_), .. } => State::Running,
            Phase::Ended { outcome } => outcome.status,
        }
    }

    /// What there is to tell of it under the number `event`.
    pub fn report(&self, event: EventNumber) -> TaskReport {
        let (started_at, end) = match &self.phase {
            Phase::Accepted { .. } | Phase::Launched { .. } | Phase::Stopping { start: Start::NotYet, .. } => {
                (None, None)
            }
            Phase::Running { since, .. } | Phase::Stopping { start: Start::Since(since), .. } => (*since, None),
            Phase::Ended { outcome } => (outcome.started_at, Some(outcome)),
        };
        let cause = end.and_then(|end| end.cause.clone());
        TaskReport {
            event,
            task_id: self.id,
            container_id: self.container(),
            key: self.origin.clone(),
            status: self.status(),
            reason: cause.as_ref().map(ToString::to_string),
            cause,
            stuck: None,
            exit_code: end.and_then(|end| end.exit_code),
            started_at,
            ended_at: end.map(|end| end.ended_at),
            cpu_ms: end.and_then(|end| end.cpu).map(whole_millis),
            memory_peak_bytes: end.and_then(|end| end.memory_peak_bytes),
        }
    }

    /// What `event` makes of the task, and what is to be done about it.
    pub fn step(self, event: Event, now: Now) -> (Task, Vec<Action>) {
        let Task { id, origin, phase } = self;
        let (phase, actions) = step(phase, event, now);
        (Task { id, origin, phase }, actions)
    }
}

fn step(phase: Phase, event: Event, now: Now) -> (Phase, Vec<Action>) {
    match (phase, event) {
        (Phase::Accepted { spec }, Event::Launched(init)) => {
            (Phase::Launched { spec, init }, vec![Action::Write(Change::Launched(init)), Action::SayGo])
        }
        (Phase::Accepted { .. }, Event::LaunchFailed(cause)) => {
            end(Outcome::without_a_run(State::Failed, Some(cause), now))
        }
        (Phase::Accepted { .. }, Event::KillRequested { .. }) => end(Outcome::without_a_run(State::Killed, None, now)),
        // After a power cut: the line of its launch was not on the disk yet, its end record was.
        (Phase::Accepted { .. }, Event::InitExited(outcome)) => end(outcome),
        // There is no init yet that could start anything, be late, or leave.
        (phase @ Phase::Accepted { .. }, Event::Started(_) | Event::DeadlinePassed | Event::NeverRan) => stay(phase),

        (Phase::Launched { spec, init }, Event::Started(at)) => {
            (Phase::Running { spec, init, since: at }, vec![Action::Tell(Change::Started(at))])
        }
        (Phase::Launched { spec, init }, Event::KillRequested { grace }) => stop(spec, init, Start::NotYet, grace, now),
        // Init ended before we heard of a start: it failed on the way, or the command was quicker than we are.
        (Phase::Launched { .. }, Event::InitExited(outcome)) => end(outcome),
        (Phase::Launched { spec, .. }, Event::NeverRan) => {
            (Phase::Accepted { spec }, vec![Action::Write(Change::NeverRan), Action::Queue])
        }
        // A task is launched once, and nothing of it is timed yet.
        (phase @ Phase::Launched { .. }, Event::Launched(_) | Event::LaunchFailed(_) | Event::DeadlinePassed) => {
            stay(phase)
        }

        (Phase::Running { spec, init, since }, Event::KillRequested { grace }) => {
            stop(spec, init, Start::Since(since), grace, now)
        }
        (Phase::Running { since, .. }, Event::InitExited(outcome)) => end(started(outcome, since)),
        // What runs was told to. Should init disagree, nobody knows how it ended.
        (Phase::Running { since, .. }, Event::NeverRan) => {
            end(started(Outcome::without_a_run(State::Failed, Some(Reason::Lost), now), since))
        }
        // It started once; its time-out is init's business.
        (
            phase @ Phase::Running { .. },
            Event::Launched(_) | Event::LaunchFailed(_) | Event::Started(_) | Event::DeadlinePassed,
        ) => stay(phase),

        // The start and the kill crossed each other; the start is still true.
        (Phase::Stopping { spec, init, start: Start::NotYet, kill_at, kills }, Event::Started(at)) => (
            Phase::Stopping { spec, init, start: Start::Since(at), kill_at, kills },
            vec![Action::Tell(Change::Started(at))],
        ),
        (Phase::Stopping { spec, init, start, kills, .. }, Event::DeadlinePassed) => {
            kill_again(spec, init, start, kills + 1, now)
        }
        (Phase::Stopping { start: Start::NotYet, .. }, Event::InitExited(outcome)) => end(stopped(outcome)),
        (Phase::Stopping { start: Start::Since(since), .. }, Event::InitExited(outcome)) => {
            end(started(stopped(outcome), since))
        }
        (Phase::Stopping { .. }, Event::NeverRan) => end(Outcome::without_a_run(State::Killed, None, now)),
        // Killing twice is fine; it started once.
        (
            phase @ Phase::Stopping { .. },
            Event::Launched(_) | Event::LaunchFailed(_) | Event::Started(_) | Event::KillRequested { .. },
        ) => stay(phase),

        // A final state never changes again.
        (
            phase @ Phase::Ended { .. },
            Event::Launched(_)
            | Event::LaunchFailed(_)
            | Event::Started(_)
            | Event::KillRequested { .. }
            | Event::DeadlinePassed
            | Event::InitExited(_)
            | Event::NeverRan,
        ) => stay(phase),
    }
}

fn stay(phase: Phase) -> (Phase, Vec<Action>) {
    (phase, Vec::new())
}

fn end(outcome: Outcome) -> (Phase, Vec<Action>) {
    (Phase::Ended { outcome }, vec![Action::Tell(Change::Ended), Action::Release])
}

/// The signal goes out before the line: a kill must work when the disk is full, and init remembers
/// that it was asked, so nothing hangs on the line if we die in between.
fn stop(spec: Box<JobSpec>, init: Init, start: Start, grace: Duration, now: Now) -> (Phase, Vec<Action>) {
    let phase = Phase::stopping(spec, init, start, grace, now);
    (phase, vec![Action::Terminate, Action::Write(Change::KillRequested)])
}

fn kill_again(spec: Box<JobSpec>, init: Init, start: Start, kills: u32, now: Now) -> (Phase, Vec<Action>) {
    let pause = Duration::from_secs(1 << kills.min(6)).min(LONGEST_BACKOFF);
    let phase = Phase::Stopping { spec, init, start, kill_at: now.instant + pause, kills };
    let stuck = (kills >= STUCK_AFTER).then_some(Action::CallStuck);
    (phase, [Action::Kill].into_iter().chain(stuck).collect())
}

/// An init that was killed could record nothing, but that its end was asked for is in the journal. How often we killed
/// it is not: that may have been another supervisor of this boot. Should a stranger have been quicker than all of us,
/// the task has still ended as it was asked to.
fn stopped(outcome: Outcome) -> Outcome {
    match outcome.cause {
        Some(Reason::Lost) => Outcome { status: State::Killed, cause: None, ..outcome },
        _ => outcome,
    }
}

/// What we heard of the start stands in for what was not recorded.
fn started(outcome: Outcome, since: Option<Timestamp>) -> Outcome {
    Outcome { started_at: outcome.started_at.or(since), ..outcome }
}

fn whole_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What kind of end it was: final state, reason, exit status.
///
/// A status that nobody recorded is never made up. Killed and timed out is what init recorded, not
/// what we wish. A command that ended well is `Finished` even if the kernel killed some process of
/// its for want of memory; any other end of the command is then blamed on the memory, whatever
/// status the shell above the victim made of it.
pub fn classify(
    record: Option<&EndRecord>,
    usage: &Usage,
    mem_limit_mib: u64,
    rebooted: bool,
) -> (State, Option<Reason>, Option<i32>) {
    let failed = |reason| (State::Failed, Some(reason));
    let or_memory = |reason| if usage.oom_kills > 0 { out_of_memory(usage, mem_limit_mib) } else { reason };
    let (state, reason) = match record.map(|record| &record.end) {
        None | Some(End::NeverTold) if rebooted => failed(Reason::NodeRebooted),
        None | Some(End::NeverTold) => failed(Reason::Lost),
        Some(End::Exited { code: 0 }) => (State::Finished, None),
        Some(End::Exited { code }) => failed(or_memory(Reason::ExitCode { code: *code })),
        Some(End::Signaled { signal }) => failed(or_memory(Reason::Signal { signal: *signal })),
        Some(End::TimedOut) => (State::Timeout, None),
        Some(End::Killed) => (State::Killed, None),
        Some(End::LeaseOver) => failed(Reason::LeaseOver),
        Some(End::LogLimit { stream, limit_bytes }) => {
            failed(Reason::LogLimit { stream: *stream, limit_bytes: *limit_bytes })
        }
        Some(End::LaunchFailed { step, cause }) => {
            failed(Reason::LaunchFailed { step: step.clone(), cause: cause.clone() })
        }
    };
    let exit_code = match record.map(|record| &record.end) {
        Some(End::Exited { code }) => Some(*code),
        Some(
            End::Signaled { .. }
            | End::TimedOut
            | End::Killed
            | End::LeaseOver
            | End::LogLimit { .. }
            | End::NeverTold
            | End::LaunchFailed { .. },
        )
        | None => None,
    };
    (state, reason, exit_code)
}

fn out_of_memory(usage: &Usage, limit_mib: u64) -> Reason {
    let peak_mib = usage.memory_peak_bytes.map_or(limit_mib, |bytes| bytes.div_ceil(1 << 20));
    Reason::OutOfMemory { peak_mib, limit_mib }
}

/// The whole outcome of a task whose init is gone.
pub fn outcome(record: Option<&EndRecord>, usage: &Usage, mem_limit_mib: u64, rebooted: bool, now: Now) -> Outcome {
    let (status, cause, exit_code) = classify(record, usage, mem_limit_mib, rebooted);
    Outcome {
        status,
        cause,
        exit_code,
        started_at: record.and_then(|record| record.started_at),
        ended_at: record.map_or(now.wall, |record| record.ended_at),
        cpu: usage.cpu,
        memory_peak_bytes: usage.memory_peak_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::BootId;

    const INIT: Init = Init { pid: 42, start_time: 4711 };
    const GRACE: Duration = Duration::from_secs(5);
    const KILL: Event = Event::KillRequested { grace: GRACE };

    fn spec() -> Box<JobSpec> {
        let json = r#"{"name":"a","resource":{"cpu":1,"mem":64},"commandLine":"true","imageId":"busybox"}"#;
        wire::json::from_slice(json.as_bytes()).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn accepted() -> Phase {
        Phase::Accepted { spec: spec() }
    }

    fn launched() -> Phase {
        Phase::Launched { spec: spec(), init: INIT }
    }

    fn running() -> Phase {
        Phase::Running { spec: spec(), init: INIT, since: Some(at(1)) }
    }

    fn stopping(now: Now, kills: u32) -> Phase {
        Phase::Stopping { spec: spec(), init: INIT, start: Start::Since(Some(at(1))), kill_at: now.instant, kills }
    }

    fn well() -> Outcome {
        Outcome {
            exit_code: Some(0),
            started_at: Some(at(1)),
            ..Outcome::without_a_run(State::Finished, None, Now::read())
        }
    }

    fn record(end: End) -> EndRecord {
        EndRecord { boot_id: BootId("b".into()), end, started_at: Some(at(1)), ended_at: at(2) }
    }

    #[test]
    fn an_init_that_had_to_be_killed_makes_its_task_killed_and_not_lost_whichever_supervisor_killed_it() {
        let now = Now::read();
        let lost = outcome(None, &Usage::default(), 64, false, now);
        let not_yet = Phase::stopping(spec(), INIT, Start::NotYet, GRACE, now);
        // A supervisor that was started after the kill has counted none.
        for phase in [stopping(now, 1), stopping(now, 0), not_yet] {
            let Phase::Ended { outcome } = step(phase, Event::InitExited(lost.clone()), now).0 else { panic!() };
            assert_eq!((outcome.status, outcome.cause), (State::Killed, None));
        }
    }

    #[test]
    fn what_nobody_asked_to_end_is_lost_and_a_reboot_while_stopping_stays_a_reboot() {
        let now = Now::read();
        let ended_as = |phase, rebooted| {
            let gone = outcome(None, &Usage::default(), 64, rebooted, now);
            match step(phase, Event::InitExited(gone), now).0 {
                Phase::Ended { outcome } => (outcome.status, outcome.cause),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ended_as(running(), false), (State::Failed, Some(Reason::Lost)));
        assert_eq!(ended_as(stopping(now, 0), true), (State::Failed, Some(Reason::NodeRebooted)));
    }

    #[test]
    fn launched_is_written_before_init_is_told_to_go() {
        let (phase, actions) = step(accepted(), Event::Launched(INIT), Now::read());
        assert_eq!(phase, launched());
        assert_eq!(actions, [Action::Write(Change::Launched(INIT)), Action::SayGo]);
    }

    #[test]
    fn launch_failed_ends_an_accepted_task() {
        let cause = Reason::LaunchFailed { step: "clone init".into(), cause: "EAGAIN".into() };
        let (phase, actions) = step(accepted(), Event::LaunchFailed(cause.clone()), Now::read());
        let Phase::Ended { outcome } = phase else { panic!("{phase:?}") };
        assert_eq!((outcome.status, outcome.cause), (State::Failed, Some(cause)));
        assert_eq!(actions, [Action::Tell(Change::Ended), Action::Release]);
    }

    #[test]
    fn init_exited_ends_an_accepted_task_whose_launch_a_power_cut_took_from_the_journal() {
        let (phase, actions) = step(accepted(), Event::InitExited(well()), Now::read());
        assert!(matches!(phase, Phase::Ended { outcome } if outcome.status == State::Finished));
        assert_eq!(actions, [Action::Tell(Change::Ended), Action::Release]);
    }

    #[test]
    fn kill_ends_an_accepted_task_at_once() {
        let (phase, actions) = step(accepted(), KILL, Now::read());
        let Phase::Ended { outcome } = phase else { panic!("{phase:?}") };
        assert_eq!((outcome.status, outcome.started_at), (State::Killed, None));
        assert_eq!(actions, [Action::Tell(Change::Ended), Action::Release]);
    }

    #[test]
    fn started_makes_a_launched_task_running_and_tells() {
        let (phase, actions) = step(launched(), Event::Started(Some(at(1))), Now::read());
        assert_eq!(phase, running());
        assert_eq!(actions, [Action::Tell(Change::Started(Some(at(1))))]);
    }

    #[test]
    fn kill_stops_a_launched_task() {
        let (phase, actions) = step(launched(), KILL, Now::read());
        assert!(matches!(phase, Phase::Stopping { start: Start::NotYet, kills: 0, .. }), "{phase:?}");
        assert_eq!(actions, [Action::Terminate, Action::Write(Change::KillRequested)]);
    }

    #[test]
    fn init_exited_ends_a_launched_task_with_what_was_recorded() {
        let (phase, actions) = step(launched(), Event::InitExited(well()), Now::read());
        assert!(matches!(phase, Phase::Ended { outcome } if outcome.status == State::Finished));
        assert_eq!(actions, [Action::Tell(Change::Ended), Action::Release]);
    }

    #[test]
    fn never_ran_sends_a_launched_task_back_to_wait_for_another_launch() {
        let (phase, actions) = step(launched(), Event::NeverRan, Now::read());
        assert_eq!(phase, accepted());
        assert_eq!(actions, [Action::Write(Change::NeverRan), Action::Queue]);
    }

    #[test]
    fn never_ran_ends_a_stopping_task_as_killed_and_a_running_one_as_lost() {
        let ended_as = |phase| match step(phase, Event::NeverRan, Now::read()).0 {
            Phase::Ended { outcome } => (outcome.status, outcome.cause),
            other => panic!("{other:?}"),
        };
        assert_eq!(ended_as(stopping(Now::read(), 0)), (State::Killed, None));
        assert_eq!(ended_as(running()), (State::Failed, Some(Reason::Lost)));
    }

    #[test]
    fn kill_stops_a_running_task_and_gives_init_its_grace_period_and_a_margin() {
        let now = Now::read();
        let (phase, actions) = step(running(), KILL, now);
        let task = Task { id: TaskId(1), origin: TaskOrigin::default(), phase };
        assert_eq!(task.next_deadline(), Some(now.instant + GRACE + INIT_MARGIN));
        assert_eq!(task.status(), State::Running);
        assert_eq!(actions, [Action::Terminate, Action::Write(Change::KillRequested)]);
    }

    #[test]
    fn init_exited_ends_a_running_task_and_keeps_the_start_we_heard_of() {
        let lost = Outcome::without_a_run(State::Failed, Some(Reason::Lost), Now::read());
        let (phase, _) = step(running(), Event::InitExited(lost), Now::read());
        assert!(matches!(phase, Phase::Ended { outcome } if outcome.started_at == Some(at(1))));
    }

    #[test]
    fn deadline_passed_kills_a_stopping_task_with_growing_pauses() {
        let now = Now::read();
        let mut phase = stopping(now, 0);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let (next, actions) = step(phase, Event::DeadlinePassed, now);
            assert_eq!(actions[0], Action::Kill);
            let Phase::Stopping { kill_at, .. } = &next else { panic!("{next:?}") };
            pauses.push((*kill_at - now.instant).as_secs());
            phase = next;
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn deadline_passed_three_times_calls_the_task_stuck_from_then_on() {
        let now = Now::read();
        let stuck = |kills| step(stopping(now, kills), Event::DeadlinePassed, now).1.contains(&Action::CallStuck);
        assert_eq!([0, 1, 2, 3, 4].map(stuck), [false, false, true, true, true]);
    }

    #[test]
    fn started_while_stopping_is_told_all_the_same() {
        let now = Now::read();
        let phase = Phase::Stopping { spec: spec(), init: INIT, start: Start::NotYet, kill_at: now.instant, kills: 0 };
        let (phase, actions) = step(phase, Event::Started(Some(at(1))), now);
        assert!(matches!(phase, Phase::Stopping { start: Start::Since(Some(_)), .. }));
        assert_eq!(actions, [Action::Tell(Change::Started(Some(at(1))))]);
    }

    #[test]
    fn init_exited_ends_a_stopping_task_as_recorded_even_if_that_is_finished() {
        let (phase, _) = step(stopping(Now::read(), 0), Event::InitExited(well()), Now::read());
        assert!(matches!(phase, Phase::Ended { outcome } if outcome.status == State::Finished));
    }

    #[test]
    fn nothing_changes_a_final_state_and_impossible_events_change_nothing() {
        let now = Now::read();
        let cause = Reason::Lost;
        let events = [
            Event::Launched(INIT),
            Event::LaunchFailed(cause),
            Event::Started(Some(at(9))),
            KILL,
            Event::DeadlinePassed,
            Event::InitExited(well()),
            Event::NeverRan,
        ];
        let ended = Phase::Ended { outcome: well() };
        for event in events.clone() {
            assert_eq!(step(ended.clone(), event.clone(), now), (ended.clone(), vec![]), "{event:?}");
        }
        let impossible: [(Phase, &[usize]); 4] = [
            (accepted(), &[2, 4, 6]),
            (launched(), &[0, 1, 4]),
            (running(), &[0, 1, 2, 4]),
            (stopping(now, 1), &[0, 1, 2, 3]),
        ];
        for (phase, ignored) in impossible {
            for &event in ignored {
                assert_eq!(step(phase.clone(), events[event].clone(), now), (phase.clone(), vec![]));
            }
        }
    }

    #[test]
    fn an_end_that_nobody_recorded_is_lost_and_after_a_reboot_the_reboot() {
        let usage = Usage { oom_kills: 1, ..Usage::default() };
        assert_eq!(classify(None, &usage, 64, false), (State::Failed, Some(Reason::Lost), None));
        assert_eq!(classify(None, &usage, 64, true), (State::Failed, Some(Reason::NodeRebooted), None));
    }

    #[test]
    fn an_end_recorded_before_the_reboot_stays_what_it_was() {
        let finished = record(End::Exited { code: 0 });
        assert_eq!(classify(Some(&finished), &Usage::default(), 64, true), (State::Finished, None, Some(0)));
    }

    #[test]
    fn oom_is_blamed_for_any_failure_of_the_command_but_not_for_success_kill_or_timeout() {
        let usage = Usage { oom_kills: 1, memory_peak_bytes: Some(64 << 20), ..Usage::default() };
        let judge = |end| classify(Some(&record(end)), &usage, 64, false);
        let oom = Some(Reason::OutOfMemory { peak_mib: 64, limit_mib: 64 });
        assert_eq!(judge(End::Signaled { signal: 9 }), (State::Failed, oom.clone(), None));
        assert_eq!(judge(End::Exited { code: 137 }), (State::Failed, oom.clone(), Some(137)));
        assert_eq!(judge(End::Exited { code: 1 }), (State::Failed, oom, Some(1)));
        assert_eq!(judge(End::Exited { code: 0 }), (State::Finished, None, Some(0)));
        assert_eq!(judge(End::Killed), (State::Killed, None, None));
        assert_eq!(judge(End::TimedOut), (State::Timeout, None, None));
        assert_eq!(judge(End::LeaseOver), (State::Failed, Some(Reason::LeaseOver), None));
    }

    #[test]
    fn every_recorded_end_is_what_it_was_whether_or_not_the_node_was_booted_anew_since() {
        let launch = || End::LaunchFailed { step: "unite the root".into(), cause: "ENOMEM".into() };
        let failed = Reason::LaunchFailed { step: "unite the root".into(), cause: "ENOMEM".into() };
        let ends = [
            (End::Exited { code: 0 }, State::Finished, None),
            (End::Exited { code: 3 }, State::Failed, Some(Reason::ExitCode { code: 3 })),
            (End::Signaled { signal: 9 }, State::Failed, Some(Reason::Signal { signal: 9 })),
            (End::TimedOut, State::Timeout, None),
            (End::Killed, State::Killed, None),
            (launch(), State::Failed, Some(failed)),
        ];
        for (end, state, reason) in ends {
            for rebooted in [false, true] {
                let judged = classify(Some(&record(end.clone())), &Usage::default(), 64, rebooted);
                assert_eq!((judged.0, &judged.1), (state, &reason), "{end:?}, rebooted: {rebooted}");
            }
        }
    }

    #[test]
    fn exit_137_or_signal_9_without_an_oom_kill_is_just_that() {
        let judge = |end| classify(Some(&record(end)), &Usage::default(), 64, false).1;
        assert_eq!(judge(End::Exited { code: 137 }), Some(Reason::ExitCode { code: 137 }));
        assert_eq!(judge(End::Signaled { signal: 9 }), Some(Reason::Signal { signal: 9 }));
    }

    #[test]
    fn every_failed_report_says_why_in_words() {
        let outcome = outcome(None, &Usage::default(), 64, false, Now::read());
        let task = Task { id: TaskId(7), origin: TaskOrigin::default(), phase: Phase::Ended { outcome } };
        let report = task.report(EventNumber(3));
        assert_eq!((report.status, report.reason.as_deref()), (State::Failed, Some("lost")));
        assert_eq!(report.container_id.to_string(), "t7-cont");
    }
}
