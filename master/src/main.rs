//! berth's master: takes jobs over HTTP, places them on nodes, shows them as plain HTML.

#![forbid(unsafe_code)]

mod api;
mod claim;
mod config;
mod database;
mod fault;
mod followers;
mod gate;
mod job;
mod jobs;
mod lease;
mod life;
mod nodes;
mod output;
mod pages;
mod poller;
mod scheduler;
mod state_dir;
mod store;
mod strangers;
mod watch;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, SystemTime};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use wire::access::{Access, ListenRefused, Token, TokenError, check_listen};
use wire::fault::Point;
use wire::http::Limits;

use api::{Api, LANES_HELD, Shared, Streams};
use claim::{Claim, ClaimError};
use config::{Config, ConfigError, Wanted};
use followers::Bell;
use gate::{GateError, LANES};
use jobs::{Message, Nodes, Owner};
use nodes::Now;
use output::Logs;
use poller::{Orders, Poller, PollerError};
use state_dir::{StateDir, StateDirError};
use store::{Reader, Store, StoreError};
use watch::Watch;

/// Requests answered at once.
const WORKERS: usize = 8;
// Slow readers leave every worker a connection to get work by, and one is left to wait on.
const _: () = assert!(LANES > WORKERS + LANES_HELD);
/// Every thread's stack: what SQLite and a page need, several times over.
const STACK: usize = 1 << 20;
/// How often a standby asks for the lock. It is not waited for in the kernel: what waits there on a share is gone with the
/// share's next hiccup, and hears no signal.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// The same once a life could not begin, for that has cost a claim, and an earlier master must not sleep through all of them.
const BEGIN_AGAIN: Duration = Duration::from_secs(5);

/// Why the master did not start, or could not go on.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Listen(#[from] ListenRefused),
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Poller(#[from] PollerError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error("cannot start a thread or wait for signals: {0}")]
    Start(#[from] io::Error),
    #[error("cannot serve HTTP on the private socket: {0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
}

impl Fatal {
    /// Whether the next try may get further. On a share it may: what GlusterFS has in too few good copies cannot be had
    /// until another host is back.
    fn may_pass(&self) -> bool {
        match self {
            Fatal::StateDir(_) | Fatal::Claim(_) => true,
            Fatal::Store(error) => error.may_pass(),
            Fatal::Config(_)
            | Fatal::Token(_)
            | Fatal::Listen(_)
            | Fatal::Poller(_)
            | Fatal::Gate(_)
            | Fatal::Start(_)
            | Fatal::Http(_) => false,
        }
    }
}

/// A life of the state dir, which is ours.
struct Life {
    state_dir: StateDir,
    shared: bool,
    claim: Claim,
    store: Store,
    database: PathBuf,
}

/// What ends the process.
enum End {
    Signal(i32),
    Owner(Result<(), StoreError>),
    Claim(ClaimError),
    Poller(PollerError),
    Http(io::Error),
}

fn main() -> ExitCode {
    wire::stderr_log::init();
    if let Err(error) = wire::fault::arm() {
        log::error!("{error}");
        return ExitCode::from(2);
    }
    let config = match Wanted::read(std::env::args_os().skip(1)) {
        Ok(Wanted::Serve(config)) => config,
        Ok(Wanted::Help) => return print(config::HELP),
        Ok(Wanted::Version) => return print(concat!("berth-master ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            log::error!("{error}");
            return ExitCode::from(2);
        }
    };
    match serve(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    match io::Write::write_all(&mut io::stdout(), text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Starts everything, in the order in which each needs the one before, and stops it after a signal.
fn serve(config: &Config) -> Result<(), Fatal> {
    let token = config.token_file.as_deref().map(Token::from_file).transpose()?;
    check_listen(config.listen, token.is_some())?;
    let addrs = config.resolve_nodes()?;
    // Before any thread starts, so that no signal can come to one that does not expect it.
    let signals = Signals::new([SIGTERM, SIGINT])?;
    let (ended, end) = channel();
    start_signals(signals, ended.clone())?;
    let Some(life) = take_state_dir(config, &end)? else { return Ok(()) };
    let Life { state_dir, shared, claim, store, database } = life;
    fault::moment(Point::MasterOpened);
    let nodes = Nodes {
        addrs: config.nodes.clone().into_iter().collect(),
        time_out: config.node_timeout,
        lease: config.lease,
        most_lost: config.lost_attempts,
    };
    let term = claim.term();
    let watch = if shared { start_watch(claim, ended.clone())? } else { Watch::none() };
    let owner = Owner::new(store, nodes, Now::read())?.watching(watch.clone());
    fault::moment(Point::MasterRead);
    let logs = Logs::start(config.share.clone(), addrs.clone(), token.as_ref())?;

    let (to_owner, messages) = channel();
    let heard = to_owner.clone();
    let tell = move |said| drop(heard.send(Message::Heard(Box::new(said))));
    let (poller, orders) = Poller::new(addrs, owner.instance().clone(), token.as_ref(), config.node_timeout, tell)?;
    start_poller(poller.in_term(term), ended.clone())?;
    let (bell, followers) = followers::room();
    start_owner(owner, messages, orders, bell.clone(), ended.clone())?;

    let (listener, socket) = gate::listen_privately(state_dir.path())?;
    let server = Arc::new(tiny_http::Server::from_listener(listener, None).map_err(Fatal::Http)?);
    let access = Access::new(token, config.hosts.iter().cloned());
    let shared =
        Arc::new(Shared { access, watch, owner: to_owner.clone(), logs: logs.clone(), streams: Streams::start()? });
    for number in 0..WORKERS {
        let api = Api::new(Arc::clone(&shared), Reader::open(&database)?);
        start_worker(number, api, Arc::clone(&server), ended.clone())?;
    }
    let tell = move |news| bell.client(news);
    let gate = gate::start(config.listen, socket, Limits::default(), kept_files(config.nodes.len()), tell)?;
    followers.open(Reader::open(&database)?, logs.beside("looks")?, gate.voice())?;
    log::info!("listening on http://{}", gate.local_addr());

    match end.recv() {
        Ok(End::Signal(signal)) => {
            log::info!("stopping after signal {signal}");
            gate.stop();
            stop_owner(&to_owner, &end)
        }
        Ok(End::Owner(result)) => Ok(result?),
        Ok(End::Claim(error)) => Err(error.into()),
        Ok(End::Poller(error)) => Err(error.into()),
        Ok(End::Http(error)) => Err(Fatal::Http(error.into())),
        Err(_) => Ok(()),
    }
}

/// Takes the state dir and begins a life there, or waits until that can be had; `None`: a signal came first.
fn take_state_dir(config: &Config, end: &Receiver<End>) -> Result<Option<Life>, Fatal> {
    if !config.wait {
        return begin(config, StateDir::take(&config.state_dir)?).map(Some);
    }
    let mut said = String::new();
    loop {
        let taken = StateDir::take_made(&config.state_dir).map_err(Fatal::from);
        let (why, pause) = match taken.and_then(|state_dir| begin(config, state_dir)) {
            Ok(life) => return Ok(Some(life)),
            Err(Fatal::StateDir(StateDirError::Taken { by, .. })) => {
                (by.unwrap_or_else(|| "another berth-master".to_owned()) + " has it", ASK_AGAIN)
            }
            // What was never there is the operator's mistake; a share that goes away may come back.
            Err(error) if said.is_empty() || !error.may_pass() => return Err(error),
            Err(error @ Fatal::StateDir(_)) => (error.to_string(), ASK_AGAIN),
            Err(error) => (error.to_string(), BEGIN_AGAIN),
        };
        if why != said {
            log::info!("waiting for the state dir {}: {why}", config.state_dir.display());
            said = why;
        }
        match end.recv_timeout(pause) {
            Ok(End::Signal(signal)) => {
                log::info!("stopping after signal {signal}");
                return Ok(None);
            }
            Ok(_) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// Claims first: what an earlier life answers from then on would be missing in the database.
fn begin(config: &Config, state_dir: StateDir) -> Result<Life, Fatal> {
    let shared = state_dir.is_shared()?;
    let claim = Claim::stake(state_dir.path(), &who_we_are(config), SystemTime::now())?;
    let (store, database) = open_database(&state_dir, &claim, shared)?;
    Ok(Life { state_dir, shared, claim, store, database })
}

/// For whoever finds the state dir taken.
fn who_we_are(config: &Config) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("the master at {}, process {} on {}", config.listen, std::process::id(), host.trim())
}

fn open_database(state_dir: &StateDir, claim: &Claim, shared: bool) -> Result<(Store, PathBuf), StoreError> {
    let dir = state_dir.path();
    let path = database::of_life(dir, claim.number(), shared)?;
    match Store::open(&path, claim.clone()) {
        Ok(store) => {
            database::settle(dir, &path);
            Ok((store, path))
        }
        Err(error) => {
            database::discard(dir, &path, claim.number());
            Err(error)
        }
    }
}

/// How many files all but the gate may ever have open at once. Too low a number would leave tiny_http without one.
fn kept_files(nodes: usize) -> usize {
    // Standard streams, the state dir's lock, the signals' pair; the poller's epoll, its copy and its waker; the claim.
    let fixed = 3 + 1 + 2 + 3 + 1;
    // The database and its log for the owner, the followers and each worker, and two that SQLite opens in passing.
    let database = 2 * (WORKERS + 2) + 2;
    // Of pages, and of the followers; one is the claim's when it is renewed.
    let looked_at = 2 * output::READERS + 1;
    fixed + database + looked_at + poller::connections(nodes)
}

/// Its last turn is committed when this returns.
fn stop_owner(to_owner: &Sender<Message>, end: &Receiver<End>) -> Result<(), Fatal> {
    let _ = to_owner.send(Message::Stop);
    while let Ok(end) = end.recv() {
        if let End::Owner(result) = end {
            return Ok(result?);
        }
    }
    Ok(())
}

fn thread(name: &str) -> Builder {
    Builder::new().name(name.to_owned()).stack_size(STACK)
}

fn start_owner(
    owner: Owner,
    messages: Receiver<Message>,
    orders: Orders,
    bell: Bell,
    ended: Sender<End>,
) -> io::Result<()> {
    let run = move || {
        let result = jobs::run(owner, &messages, |batch| orders.send(batch), |changed| bell.changed(&changed));
        let _ = ended.send(End::Owner(result));
    };
    thread("jobs").spawn(run).map(drop)
}

fn start_watch(claim: Claim, ended: Sender<End>) -> io::Result<Watch> {
    Watch::start(claim, thread("watch"), move |lost| drop(ended.send(End::Claim(lost))))
}

fn start_poller<F>(poller: Poller<F>, ended: Sender<End>) -> io::Result<()>
where
    F: FnMut(poller::Heard) + Send + 'static,
{
    let run = move || {
        if let Err(error) = poller.run() {
            let _ = ended.send(End::Poller(error));
        }
    };
    thread("poller").spawn(run).map(drop)
}

fn start_worker(number: usize, api: Api, server: Arc<tiny_http::Server>, ended: Sender<End>) -> io::Result<()> {
    let run = move || drop(ended.send(End::Http(api.serve(&server))));
    thread(&format!("http-{number}")).spawn(run).map(drop)
}

fn start_signals(mut signals: Signals, ended: Sender<End>) -> io::Result<()> {
    let run = move || {
        for signal in signals.forever() {
            let _ = ended.send(End::Signal(signal));
        }
    };
    thread("signals").spawn(run).map(drop)
}
