//! The daemon: takes what the event loop heard to whoever it concerns, and does the table's deeds.
//!
//! It decides nothing and owns nothing but the others. One launch a turn: however many tasks arrive at
//! once, the next request is answered within the time of one clone.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use wire::access::{Access, Token, TokenError};
use wire::fault::Point;
use wire::http::{ConnectionId, Request};
use wire::node::{Refusal, RefusalCode};
use wire::{BootId, InstanceId, TaskId};

use crate::adopt;
use crate::cgroup::{CgroupError, Claim, Layout};
use crate::config::NodeConfig;
use crate::containers::{Containers, Places};
use crate::control::{self, LongPolls, Reply};
use crate::event_loop::{Event, EventLoop, Watcher};
use crate::fault;
use crate::history::{Era, History};
use crate::journal::{Journal, JournalError};
use crate::launch::{self, LaunchError, Launcher, Settings};
use crate::leaks;
use crate::lease::Leases;
use crate::log_pages::LogPages;
use crate::log_root::{LogRoot, Wanted};
use crate::machine;
use crate::node::{self, Node, Share};
use crate::oom;
use crate::output::{OutputRequest, Readers};
use crate::state_dir::{StateDir, StateDirError};
use crate::sweep::{Sweeper, Synced};
use crate::task::{self, Now};
use crate::task_table::{Deed, TaskTable};
use crate::unions::UnionError;

/// Why the daemon cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state dir is not to be had.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The journal cannot be read, or not relied on any more.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal cannot be rewritten.
    #[error("{0}")]
    Compaction(String),
    /// The cgroups are not to be had.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A living task cannot be taken over.
    #[error(transparent)]
    Adopt(#[from] adopt::AdoptError),
    /// The launcher cannot be readied.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// Layers cannot be united here.
    #[error(transparent)]
    Union(#[from] UnionError),
    /// The token file.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Somebody else listens there, or nobody can.
    #[error("cannot listen on {addr}: {cause}; hint: is another supervisor running? --listen takes another port")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// The boot id or the poll.
    #[error("cannot {doing}: {cause}")]
    System {
        /// The verb.
        doing: &'static str,
        /// What the kernel said.
        cause: std::io::Error,
    },
}

fn cannot(doing: &'static str) -> impl FnOnce(std::io::Error) -> ServeError {
    move |cause| ServeError::System { doing, cause }
}

/// Serves until asked to stop. Tasks go on without us, and the next supervisor adopts them.
pub fn serve(config: &NodeConfig) -> Result<(), ServeError> {
    let access = Access::new(config.token_file.as_deref().map(Token::from_file).transpose()?, []);
    let state_dir = StateDir::lock(&config.state_dir)?;
    fault::moment(Point::StartLocked);
    oom::come_last();
    let mut supervisor = Supervisor::start(config, &state_dir, access)?;
    supervisor.run()?;
    supervisor.leave();
    Ok(())
}

/// All rooms of the daemon.
struct Supervisor {
    events: EventLoop,
    watcher: Watcher,
    access: Access,
    table: TaskTable,
    containers: Containers,
    polls: LongPolls,
    readers: Readers,
    sweeper: Sweeper,
    log_pages: LogPages,
    _claim: Claim,
}

impl Supervisor {
    /// Reads the journal, adopts the living, and listens. Listening comes first of what can fail, so that
    /// a port in use changes nothing; it answers only when all is known.
    fn start(config: &NodeConfig, state_dir: &StateDir, access: Access) -> Result<Supervisor, ServeError> {
        let listen = |cause| ServeError::Listen { addr: config.listen, cause };
        let events = EventLoop::new(config.listen).map_err(listen)?;
        let boot = launch::boot_id().map_err(cannot("read the boot id"))?;
        let settings = Settings::of(config)?;
        let launcher = Launcher::new(&settings)?;
        let (journal, records) = Journal::open(&state_dir.journal())?;
        let instance = instance(state_dir, records.is_empty())?;
        let layout = Layout::prepare(&config.cgroup_root)?;
        let claim = layout.claim()?;
        fault::moment(Point::StartClaimed);
        let node = this_node(config, &settings, instance, &boot, &layout);
        let mut history = History::replay(records);
        history.skip_what_a_power_cut_may_have_taken(&boot);
        let era_is_new = history.begin_era(Era { boot: boot.clone(), bases: layout.bases() });
        let layouts = adopt::open_layouts(&history.eras, &boot, layout)?;
        let watcher = events.watcher().map_err(cannot("watch anything"))?;
        let own_watcher = events.watcher().map_err(cannot("watch anything"))?;
        let descriptors = machine::raise_descriptors();
        let places = Places { containers: config.state_dir.join("cont"), node: config.id, grace: config.grace };
        let log_root = LogRoot::new(config.share.clone(), config.state_dir.join("share"), config.id, config.no_share);
        let mut containers = Containers::new(launcher, places, log_root, layouts.opened, watcher, descriptors);
        history.skip_what_is_still_here(adopt::last_task_named(&containers.names()));
        let now = Now::read();
        let leases = Leases::open(&config.state_dir.join("leases"), &boot).map_err(cannot("open the leases"))?;
        let mut table = TaskTable::new(node, config.grace, journal, history, leases, now);
        // From here on what is written belongs to our era.
        begin_journal(&mut table, era_is_new)?;
        fault::moment(Point::StartCompacted);
        adopt::adopt(&mut table, &mut containers, &layouts.of_era, now)?;
        fault::moment(Point::StartAdopted);
        Ok(Supervisor {
            events,
            watcher: own_watcher,
            access,
            table,
            containers,
            polls: LongPolls::default(),
            readers: Readers::default(),
            sweeper: Sweeper::default(),
            log_pages: LogPages::new(config.share.clone()),
            _claim: claim,
        })
    }

    /// Turns until asked to stop.
    fn run(&mut self) -> Result<(), ServeError> {
        let addr = self.events.local_addr().map_err(cannot("tell where we listen"))?;
        let Node { id, total: Share { cpu, mem_mib }, .. } = self.table.node();
        log::info!("node {id} listens on {addr} with {cpu} CPUs and {mem_mib} MiB to give out");
        self.settle(Now::read());
        loop {
            let deadline = self.next_deadline();
            let heard = self.events.turn(deadline).map_err(cannot("wait for events"))?;
            let now = Now::read();
            for event in heard {
                if matches!(event, Event::StopAsked) {
                    return Ok(());
                }
                self.react(event, now);
            }
            self.expire(now);
            self.settle(now);
            if let Some(lost) = self.table.take_lost_journal() {
                return Err(lost.into());
            }
        }
    }

    /// The least of everybody's deadlines; at once, if there is something to launch.
    fn next_deadline(&self) -> Option<Instant> {
        let (now, wanted) = (Instant::now(), self.share_wanted());
        let log_root = &self.containers.log_root;
        let launch = (wanted == Wanted::Launching && log_root.now(now).is_some()).then_some(now);
        let deadlines = [
            launch,
            self.table.next_deadline(),
            self.containers.next_deadline(),
            self.polls.next_deadline(),
            self.readers.next_deadline(),
            self.sweeper.next_deadline(),
            self.log_pages.next_deadline(),
            log_root.next_deadline(wanted, now),
        ];
        deadlines.into_iter().flatten().min()
    }

    fn react(&mut self, event: Event, now: Now) {
        match event {
            Event::Request(connection, request) => self.answer(connection, &request, now),
            Event::ClientGone(connection) => {
                if self.polls.drop_client(connection) {
                    self.events.server().close(connection, now.instant);
                }
            }
            Event::InitSpoke(task) => {
                if let Some(event) = self.containers.hear(task, now) {
                    self.table.apply(task, event, now);
                }
            }
            Event::InitExited(task) => self.reap(task, now),
            Event::ChildExited(pid) if self.sweeper.is(pid) => {
                if self.sweeper.finish(self.table.journal_mut(), &self.watcher, now.instant) == Synced::Failed {
                    self.table.lose_journal();
                }
                if let Some(leaks) = self.sweeper.take_leaks() {
                    self.table.note_leaks(leaks);
                }
            }
            Event::ChildExited(pid) if self.log_pages.has(pid) => self.log_pages.finish(pid, &self.watcher),
            Event::ChildExited(pid) if self.containers.log_root.has(pid) => {
                self.containers.log_root.finish(pid, &self.watcher, now);
            }
            Event::ChildExited(pid) => self.readers.finish(pid, &self.watcher),
            // The run ends on it before it comes here.
            Event::StopAsked => {}
        }
    }

    fn reap(&mut self, task: TaskId, now: Now) {
        let Some(spec) = self.table.spec(task) else { return };
        if let Some(event) = self.containers.reap(task, spec, now) {
            self.table.apply(task, event, now);
        }
    }

    fn answer(&mut self, connection: ConnectionId, request: &Request, now: Now) {
        let reply = match self.access.check(request.method, request) {
            Ok(()) => control::answer(request, &mut self.table, now),
            Err(refused) => Reply::Now(control::turned_away(&refused)),
        };
        match reply {
            Reply::Now(response) => self.events.server().respond(connection, response, now.instant),
            Reply::Later { after, until, master } => self.polls.park(connection, after, until, master),
            Reply::Output(output) => self.hand_over(connection, output, now),
        }
    }

    fn hand_over(&mut self, connection: ConnectionId, output: OutputRequest, now: Now) {
        if !self.readers.have_room() {
            let busy = Refusal::new(RefusalCode::Busy, "too many logs are being read at once; ask again in a moment");
            return self.events.server().respond(connection, control::refused(busy), now.instant);
        }
        let path = self.containers.log_root.of(output.task).join(output.log.file_name());
        if let Some(stream) = self.events.server().hand_over(connection) {
            self.readers.start(&stream, &path, output.start, &self.watcher, now.instant);
        }
    }

    /// Deadlines that have passed.
    fn expire(&mut self, now: Now) {
        self.table.expire(now);
        for (task, event) in self.containers.expire(now) {
            self.table.apply(task, event, now);
        }
        for task in self.containers.take_cleared(now) {
            self.table.call_stuck(task, None);
            self.table.queue(task);
        }
        for (task, why) in self.containers.take_looks(now) {
            self.table.call_stuck(task, why.as_deref());
        }
        self.readers.expire(now.instant);
    }

    /// What follows from all that was heard in this turn: the deeds, one launch, the news, the sweep.
    fn settle(&mut self, now: Now) {
        self.do_deeds(now);
        let wanted = self.share_wanted();
        self.containers.log_root.ask_if_due(wanted, &self.watcher, now);
        let log_root = &self.containers.log_root;
        self.table.hold_up(log_root.holds_up().as_deref());
        self.table.cut_off(log_root.cuts_off().as_deref(), |task| log_root.is_on_share(task));
        self.launch_one(now);
        self.do_deeds(now);
        for (connection, response) in self.polls.take_answers(&self.table, now) {
            self.events.server().respond(connection, response, now.instant);
        }
        self.sweeper.add(self.containers.take_folders());
        let (table, containers) = (&self.table, &self.containers);
        // In the child, later: what has come since is not known, and not to be judged.
        let count = |is_swept: &dyn Fn(&str) -> bool| {
            let is_known = |task| task > table.last_task() || table.spec(task).is_some();
            let leaving = containers.leaving();
            leaks::count(&containers.names(), is_known, |name| leaving.contains(name) || is_swept(name))
        };
        self.sweeper.start_if_due(table.journal(), &self.watcher, now.instant, count);
        self.log_pages.start_if_due(&self.watcher, now.instant);
        self.table.compact_if_grown();
    }

    fn do_deeds(&mut self, now: Now) {
        while let Some((task, deed)) = self.table.next_deed() {
            match deed {
                Deed::ClearForLaunch => self.containers.clear_for_launch(task, now),
                Deed::SayGo => self.containers.say_go(task),
                Deed::Terminate => self.containers.terminate(task),
                Deed::Kill => self.containers.kill(task),
                Deed::LookWhy => self.table.call_stuck(task, self.containers.why_not_gone(task).as_deref()),
                Deed::Release => {
                    self.containers.release(task, now);
                    self.log_pages.add(self.containers.log_root.of(task), now.instant);
                }
            }
        }
    }

    fn share_wanted(&self) -> Wanted {
        match (self.table.has_launches() && self.may_launch(), self.table.living()) {
            (true, _) => Wanted::Launching,
            (false, 0) => Wanted::Nobody,
            (false, _) => Wanted::Watching,
        }
    }

    /// Folders must not be made faster than they can be removed, or the disk fills up with what nobody owns.
    fn may_launch(&self) -> bool {
        self.containers.have_room() && !self.sweeper.is_behind()
    }

    fn launch_one(&mut self, now: Now) {
        if !self.may_launch() {
            return;
        }
        let Some(root) = self.containers.log_root.now(now.instant).map(Path::to_owned) else { return };
        let Some(task) = self.table.next_launch() else { return };
        let (Some(spec), Some(origin)) = (self.table.spec(task), self.table.origin(task)) else { return };
        let logs = wire::logs::folder(&root, self.table.node().id, task);
        let event = match self.containers.launch(task, spec, origin, self.table.terms(task), logs, now) {
            Ok(init) => task::Event::Launched(init),
            Err(reason) => task::Event::LaunchFailed(reason),
        };
        self.table.apply(task, event, now);
    }

    /// A clean stop. Init and record keep the truth of what still runs.
    fn leave(&self) {
        match self.table.living() {
            0 => self.containers.remove_bases(),
            tasks => log::info!("stopping; {tasks} tasks go on, and the next supervisor takes them over"),
        }
    }
}

/// Who this node is to masters. One that has forgotten its tasks, or who it was, is another.
fn instance(state_dir: &StateDir, journal_is_empty: bool) -> Result<InstanceId, StateDirError> {
    let journal = state_dir.journal();
    match (journal_is_empty, state_dir.was_used()) {
        (true, true) => log::warn!(
            "the journal {} is empty, though this state dir was used before: its tasks are forgotten, and masters will take \
             this for another node",
            journal.display()
        ),
        (false, false) => log::warn!(
            "the file instance is missing beside the journal {}: masters will take this for another node",
            journal.display()
        ),
        (true, false) | (false, true) => {}
    }
    if journal_is_empty { state_dir.new_instance() } else { state_dir.instance() }
}

/// Rewrites the journal, so that what follows stands under our era. On a disk too full for that, a journal
/// that ends in the same era will do as it is: tasks can still be told of and killed.
fn begin_journal(table: &mut TaskTable, era_is_new: bool) -> Result<(), ServeError> {
    match table.compact() {
        Err(message) if !era_is_new && table.take_lost_journal().is_none() => {
            log::warn!("{message}; going on with it as it is");
            Ok(())
        }
        result => result.map_err(ServeError::Compaction),
    }
}

fn this_node(config: &NodeConfig, settings: &Settings, instance: InstanceId, boot: &BootId, layout: &Layout) -> Node {
    Node {
        id: config.id,
        instance,
        boot: boot.clone(),
        total: Share { cpu: config.cpu, mem_mib: config.mem_mib },
        cpus: config.cpus.clone(),
        image_dir: settings.image_dir(),
        images: RefCell::default(),
        container_dir: config.state_dir.join("cont"),
        package_roots: config.package_roots.clone(),
        kernel: node::kernel(),
        cgroups: layout.kind().to_string(),
        union: settings.union.as_str().to_owned(),
        leaks: 0,
    }
}
