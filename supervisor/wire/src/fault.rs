//! Fault points: the named places at which a process can be made to die, or a system call to fail.
//!
//! `BERTH_FAULT=launch.cloned` has the process die, as by SIGKILL, the first time it comes there; `launch.cloned@3` the
//! third time. `journal.write=ENOSPC` has that call fail once, without being made. A point in a forked child counts the
//! children: `init.told@2` is the second init of its supervisor. Points are separated by commas. With the variable unset
//! a point costs the look at one flag.
//!
//! This room only keeps the list and says what was asked for; how a process dies is its own business.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::failure::BadInput;

/// The environment variable.
pub const VARIABLE: &str = "BERTH_FAULT";

/// A process in which there are points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// The node's daemon.
    Supervisor,
    /// Its forked child that syncs and removes.
    Sweeper,
    /// PID 1 of a container.
    Init,
    /// The command, before it is executed.
    Payload,
    /// The master.
    Master,
}

impl Process {
    /// Its name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Process::Supervisor => "supervisor",
            Process::Sweeper => "sweeper",
            Process::Init => "init",
            Process::Payload => "payload",
            Process::Master => "master",
        }
    }
}

/// An error that a call can be made to fail with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    /// Input or output failed.
    EIO,
    /// Try again: no more processes.
    EAGAIN,
    /// No memory.
    ENOMEM,
    /// Too many open files.
    EMFILE,
    /// No space left, on a disk or in a table.
    ENOSPC,
    /// Read-only file system.
    EROFS,
}

impl Errno {
    const ALL: [Errno; 6] = [Errno::EIO, Errno::EAGAIN, Errno::ENOMEM, Errno::EMFILE, Errno::ENOSPC, Errno::EROFS];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Errno::EIO => "EIO",
            Errno::EAGAIN => "EAGAIN",
            Errno::ENOMEM => "ENOMEM",
            Errno::EMFILE => "EMFILE",
            Errno::ENOSPC => "ENOSPC",
            Errno::EROFS => "EROFS",
        }
    }

    /// Its number: the same on every architecture of Linux (asm-generic/errno-base.h).
    pub const fn number(self) -> i32 {
        match self {
            Errno::EIO => 5,
            Errno::EAGAIN => 11,
            Errno::ENOMEM => 12,
            Errno::EMFILE => 24,
            Errno::ENOSPC => 28,
            Errno::EROFS => 30,
        }
    }

    /// The error as the standard library knows it.
    pub fn error(self) -> std::io::Error {
        std::io::Error::from_raw_os_error(self.number())
    }
}

impl FromStr for Errno {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Errno, BadInput> {
        let known = || Errno::ALL.map(Errno::name).join(", ");
        let errno = Errno::ALL.into_iter().find(|errno| errno.name() == text);
        errno.ok_or_else(|| BadInput::new(VARIABLE, format!("{text:?} is no error of {}", known())))
    }
}

/// What stands between two points in the source: either a moment, at which a process can die, or a call, which can
/// fail as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A process can die here.
    Moment,
    /// It can die before this call, or the call can fail with one of these.
    Call(&'static [Errno]),
}

macro_rules! points {
    ($($process:ident { $($point:ident = $name:literal $kind:tt $meaning:literal,)* })*) => {
        /// A place in the source.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $meaning] $point,)*)*
        }

        impl Point {
            /// All of them, in the order in which data flows.
            pub const ALL: &'static [Point] = &[$($(Point::$point,)*)*];

            /// What it is called in [`VARIABLE`].
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Point::$point => $name,)*)*
                }
            }

            /// What has happened there, and what has not.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $($(Point::$point => $meaning,)*)*
                }
            }

            /// In which process it is.
            pub const fn process(self) -> Process {
                match self {
                    $($(Point::$point => Process::$process,)*)*
                }
            }

            /// Whether more can happen there than a death.
            pub const fn kind(self) -> Kind {
                match self {
                    $($(Point::$point => points!(@kind $kind),)*)*
                }
            }
        }
    };
    (@kind moment) => { Kind::Moment };
    (@kind [$($errno:ident),*]) => { Kind::Call(&[$(Errno::$errno),*]) };
}

points! {
    Supervisor {
        StartLocked = "start.locked" moment "the state dir is locked, the journal not read",
        StartClaimed = "start.claimed" moment "the journal is read, the cgroups are claimed",
        StartCompacted = "start.compacted" moment "the journal is rewritten, nobody is adopted",
        AdoptLook = "adopt.look" [EMFILE, ENOMEM] "whether a task's init lives is about to be looked at",
        AdoptWatch = "adopt.watch" [ENOMEM, ENOSPC] "a living init is about to be watched",
        StartAdopting = "start.adopting" moment "one task of the last supervisor is dealt with, the others are not",
        StartAdopted = "start.adopted" moment "all are dealt with, no request is answered yet",
        JournalReserve = "journal.reserve" [ENOSPC] "room for a task's end is about to be reserved",
        JournalWrite = "journal.write" [ENOSPC, EIO] "any line is about to be written",
        JournalHalfWritten = "journal.half_written" moment "half of a line is written",
        LeaseWrite = "lease.write" [ENOSPC, EIO] "a stamp that a master gave back is about to be written",
        LeaseHalfWritten = "lease.half_written" moment "half of the stamp is written",
        LeaseWritten = "lease.written" moment "the stamp is written, the master not answered",
        AcceptedUnwritten = "journal.accepted.before" moment "a task is accepted, its line is not written",
        AcceptedWritten = "journal.accepted.after" moment "the line is written, the create is not answered",
        LaunchedUnwritten = "journal.launched.before" moment "init exists, its line is not written",
        LaunchedWritten = "journal.launched.after" moment "the line is written, init is not told to go",
        StartedUnwritten = "journal.started.before" moment "the command runs, its line is not written",
        StartedWritten = "journal.started.after" moment "the line is written, no master is told",
        KillUnwritten = "journal.kill.before" moment "init is asked to end, the line is not written",
        KillWritten = "journal.kill.after" moment "the line is written, the kill is not answered",
        EndedUnwritten = "journal.ended.before" moment "the task is over, its line is not written",
        EndedWritten = "journal.ended.after" moment "the line is written, no master is told",
        AcknowledgedUnwritten = "journal.acknowledged.before" moment "a master has heard of an end, the line is not written",
        AcknowledgedWritten = "journal.acknowledged.after" moment "the line is written, the end not forgotten",
        CompactionWrite = "journal.compact" [ENOSPC, EIO] "a new journal is about to be written",
        CompactionWritten = "journal.compacting" moment "the new journal is written, and not yet in the old one's place",
        CompactionRenamed = "journal.compacted" moment "it is in the old one's place, its folder not synced",
        LaunchFolder = "launch.folder" [ENOSPC, EROFS] "the container's folder is about to be made",
        LaunchFolderMade = "launch.folder_made" moment "the folder is there, nothing in it",
        LaunchRecord = "launch.record" [ENOSPC] "the end record is about to be reserved",
        LaunchLine = "launch.line" [EMFILE] "the line to init is about to be made",
        LaunchClone = "launch.clone" [EAGAIN, ENOMEM] "init is about to be cloned",
        LaunchCloned = "launch.cloned" moment "init builds the container, nobody watches it",
        LaunchWatch = "launch.watch" [ENOSPC, ENOMEM] "init is about to be watched",
        LaunchTold = "launch.told" moment "init is told to go",
        KillSignalled = "kill.signalled" moment "init has the SIGTERM",
        EndExited = "end.exited" moment "init has exited, and is not reaped",
        EndReaped = "end.reaped" moment "init is reaped, its record read, the end not written",
        EndRead = "end.read" [EMFILE, EIO] "record and counters of an end are about to be read",
        ReleaseCgroups = "release.cgroups" moment "the cgroups are removed, the folder is not",
        SweepFork = "sweep.fork" [EAGAIN, ENOMEM] "the sweeper is about to be forked",
        SweepSwept = "sweep.swept" moment "the sweeper is done, and not reaped",
    }
    Sweeper {
        SweeperBegun = "sweeper.begun" moment "nothing is synced, nothing removed",
        SweeperSync = "sweeper.sync" [EIO] "the journal is about to be synced",
        SweeperSynced = "sweeper.synced" moment "the journal is synced, nothing removed",
        SweeperRemove = "sweeper.remove" [EIO] "a folder is about to be removed",
        SweeperRemoved = "sweeper.removed" moment "one folder is removed",
    }
    Init {
        InitBegun = "init.begun" moment "init has just been cloned",
        InitLogs = "init.logs" [EROFS, ENOSPC, EIO] "the logs are about to be opened",
        InitLogsOpened = "init.logs_opened" moment "the logs are open, there are no cgroups",
        InitCgroups = "init.cgroups" [ENOSPC, ENOMEM] "the cgroups are about to be made",
        InitCgroupsMade = "init.cgroups_made" moment "the cgroups are made, the folders are not",
        InitFolders = "init.folders" [ENOSPC] "the container's inner folders are about to be made",
        InitConfig = "init.config" [ENOSPC] "the container's config is about to be written",
        InitUnite = "init.unite" [ENOMEM] "the root is about to be mounted",
        InitUnited = "init.united" moment "the root is mounted",
        InitBuilt = "init.built" moment "the container is built; init waits for the word",
        InitTold = "init.told" moment "init was told to go",
        InitFork = "init.fork" [EAGAIN, ENOMEM] "the command is about to be forked",
        InitForked = "init.forked" moment "the command is forked, and maybe executed",
        InitStarted = "init.started" moment "the supervisor was told that the command runs",
        InitLeaseOver = "init.lease.before" moment "the lease has run out, nothing is killed",
        InitLeaseKilled = "init.lease.after" moment "all is killed, nothing recorded",
        InitEnded = "init.ended" moment "the command is gone, nothing recorded",
        InitRecord = "init.record" [EIO] "the end record is about to be written",
        InitHalfRecorded = "init.half_recorded" moment "half of the end record is written",
        InitRecorded = "init.recorded" moment "the end is recorded",
    }
    Payload {
        PayloadBegun = "payload.begun" moment "the command's process is forked, and in no cgroup of version 1",
        PayloadExec = "payload.exec" [ENOMEM, EIO] "the command is about to be executed",
    }
    Master {
        MasterOpened = "master.opened" moment "the database is open",
        MasterRead = "master.read" moment "the active jobs are read, no node is asked",
        Commit = "commit" [ENOSPC, EIO] "any turn is about to be committed",
        CommitHalf = "commit.half" moment "all of a turn is written, and not committed",
        SubmittedUncommitted = "commit.submitted.before" moment "a submission is about to be committed",
        SubmittedCommitted = "commit.submitted.after" moment "it is committed, its submitter not answered",
        PlacedUncommitted = "commit.placed.before" moment "a placement is about to be committed",
        PlacedCommitted = "commit.placed.after" moment "it is committed, the node not asked",
        RunningUncommitted = "commit.running.before" moment "that a job has its number or runs is about to be committed",
        RunningCommitted = "commit.running.after" moment "it is committed, and not acknowledged",
        KillUncommitted = "commit.kill.before" moment "a kill is about to be committed",
        KillCommitted = "commit.kill.after" moment "it is committed, the node not asked",
        LostUncommitted = "commit.lost.before" moment "that an attempt is lost with its node is about to be committed",
        LostCommitted = "commit.lost.after" moment "it is committed, no node told",
        EndedUncommitted = "commit.ended.before" moment "an end is about to be committed",
        EndedCommitted = "commit.ended.after" moment "it is committed, and not acknowledged",
        CreateUnsent = "create.before" moment "a create is about to be sent",
        CreateAnswered = "create.after" moment "it is answered, the owner of the jobs not told",
        KillUnsent = "kill.before" moment "a kill is about to be sent",
        KillAnswered = "kill.after" moment "it is answered, the owner of the jobs not told",
        PollUnsent = "poll.before" moment "a poll is about to be sent",
        PollAnswered = "poll.after" moment "it is answered, the owner of the jobs not told",
    }
}

impl FromStr for Point {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Point, BadInput> {
        let point = Point::ALL.iter().copied().find(|point| point.name() == text);
        point.ok_or_else(|| BadInput::new(VARIABLE, format!("there is no fault point {text:?}")))
    }
}

/// What is to happen at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process dies.
    Die,
    /// The call fails with this.
    Fail(Errno),
}

/// A point, what is to happen there, and at which coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    point: Point,
    fault: Fault,
    at: u64,
}

impl FromStr for Order {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Order, BadInput> {
        let (what, at) = text.rsplit_once('@').unwrap_or((text, "1"));
        let at = at.parse().ok().filter(|at| *at > 0);
        let at = at.ok_or_else(|| BadInput::new(VARIABLE, format!("{text:?} does not end in @ and a number")))?;
        let (point, fault) = match what.split_once('=') {
            None => (what.parse()?, Fault::Die),
            Some((point, errno)) => (point.parse()?, Fault::Fail(errno.parse()?)),
        };
        match (Point::kind(point), fault) {
            (Kind::Moment, Fault::Fail(_)) => {
                Err(BadInput::new(VARIABLE, format!("{} is no call that could fail", point.name())))
            }
            (Kind::Moment | Kind::Call(_), Fault::Die) | (Kind::Call(_), Fault::Fail(_)) => {
                Ok(Order { point, fault, at })
            }
        }
    }
}

/// An order, and how often its point was come to.
#[derive(Debug)]
struct Armed {
    order: Order,
    seen: AtomicU64,
}

static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
static SWEEPERS: AtomicU64 = AtomicU64::new(0);
static INITS: AtomicU64 = AtomicU64::new(0);

/// Takes the orders from the environment, if there are any. Called once, before there is a second thread or process.
pub fn arm() -> Result<(), BadInput> {
    let Some(text) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let orders: Vec<Order> = text.to_string_lossy().split(',').map(str::parse).collect::<Result<_, _>>()?;
    log::warn!("faults are ordered by {VARIABLE}: {}", text.to_string_lossy());
    // Whoever arms twice keeps the first.
    let _ = ARMED.set(orders.into_iter().map(|order| Armed { order, seen: AtomicU64::new(0) }).collect());
    Ok(())
}

/// A child is about to be forked, in which points count the children.
pub fn forks(child: Process) {
    if let Some(count) = children(child) {
        count.fetch_add(1, Relaxed);
    }
}

/// What is to happen here and now.
#[inline]
pub fn reached(point: Point) -> Option<Fault> {
    ARMED.get().and_then(|armed| due(armed, point))
}

#[cold]
fn due(armed: &[Armed], point: Point) -> Option<Fault> {
    let mut orders = armed.iter().filter(|armed| armed.order.point == point);
    let due = orders.find(|armed| {
        let seen = armed.seen.fetch_add(1, Relaxed) + 1;
        match children(point.process()) {
            Some(count) => seen == 1 && count.load(Relaxed) == armed.order.at,
            None => seen == armed.order.at,
        }
    });
    due.map(|armed| armed.order.fault)
}

/// How many such children were forked; `None`: such a process is nobody's child.
fn children(process: Process) -> Option<&'static AtomicU64> {
    match process {
        Process::Sweeper => Some(&SWEEPERS),
        // Each init has one command.
        Process::Init | Process::Payload => Some(&INITS),
        Process::Supervisor | Process::Master => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(text: &str) -> Vec<Armed> {
        text.split(',').map(|order| Armed { order: order.parse().unwrap(), seen: AtomicU64::new(0) }).collect()
    }

    #[test]
    fn a_point_is_due_once_at_the_coming_that_was_ordered() {
        let armed = armed("launch.told@2,journal.write=ENOSPC");
        let come = |point| due(&armed, point);
        assert_eq!([(); 4].map(|()| come(Point::LaunchTold)), [None, Some(Fault::Die), None, None]);
        assert_eq!(come(Point::JournalWrite), Some(Fault::Fail(Errno::ENOSPC)));
        assert_eq!(come(Point::JournalWrite), None);
        assert_eq!(come(Point::EndReaped), None);
    }

    #[test]
    fn a_point_of_a_child_counts_the_children_and_not_its_own_comings() {
        let (first, second) = (armed("init.told@2"), armed("init.told@2"));
        forks(Process::Init);
        assert_eq!(due(&first, Point::InitTold), None);
        // The second child's copy has seen nothing of the first's.
        forks(Process::Init);
        assert_eq!(due(&second, Point::InitTold), Some(Fault::Die));
        assert_eq!(due(&second, Point::InitTold), None);
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_variables_name() {
        let bad = ["nowhere", "launch.told=EIO", "journal.write=EBEAR", "launch.told@0", "launch.told@x", ""];
        for text in bad {
            assert_eq!(text.parse::<Order>().unwrap_err().field, VARIABLE, "{text}");
        }
    }

    #[test]
    fn every_point_has_a_name_of_its_own_that_leads_back_to_it() {
        for point in Point::ALL {
            assert_eq!(point.name().parse::<Point>(), Ok(*point));
        }
    }

    #[test]
    fn the_errors_numbers_are_this_kernels() {
        use std::io::ErrorKind;
        assert_eq!(Errno::ENOMEM.error().kind(), ErrorKind::OutOfMemory);
        assert_eq!(Errno::ENOSPC.error().kind(), ErrorKind::StorageFull);
        assert_eq!(Errno::EROFS.error().kind(), ErrorKind::ReadOnlyFilesystem);
        assert_eq!(Errno::EAGAIN.error().kind(), ErrorKind::WouldBlock);
    }
}
