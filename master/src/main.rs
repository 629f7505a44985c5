//! berth's master: takes jobs over HTTP, places them on nodes, shows them as plain HTML.

#![forbid(unsafe_code)]

mod api;
mod config;
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

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use wire::access::{Access, ListenRefused, Token, TokenError, check_listen};
use wire::fault::Point;
use wire::http::Limits;

use api::{Api, LANES_HELD, Shared, Streams};
use config::{Config, ConfigError, Wanted};
use followers::Bell;
use gate::{GateError, LANES};
use jobs::{Message, Nodes, Owner};
use nodes::Now;
use output::Logs;
use poller::{Orders, Poller, PollerError};
use state_dir::{StateDir, StateDirError};
use store::{Reader, Store, StoreError};

/// Requests answered at once.
const WORKERS: usize = 8;
// Slow readers leave every worker a connection to get work by, and one is left to wait on.
const _: () = assert!(LANES > WORKERS + LANES_HELD);
/// Every thread's stack: what SQLite and a page need, several times over.
const STACK: usize = 1 << 20;

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

/// What ends the process.
enum End {
    Signal(i32),
    Owner(Result<(), StoreError>),
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
    let state_dir = StateDir::take(&config.state_dir)?;
    let store = Store::open(state_dir.path())?;
    fault::moment(Point::MasterOpened);
    let nodes = Nodes {
        addrs: config.nodes.clone().into_iter().collect(),
        time_out: config.node_timeout,
        lease: config.lease,
        most_lost: config.lost_attempts,
    };
    let owner = Owner::new(store, nodes, Now::read())?;
    fault::moment(Point::MasterRead);
    let logs = Logs::start(config.share.clone(), addrs.clone(), token.as_ref())?;

    let (ended, end) = channel();
    let (to_owner, messages) = channel();
    let heard = to_owner.clone();
    let tell = move |said| drop(heard.send(Message::Heard(Box::new(said))));
    let (poller, orders) = Poller::new(addrs, owner.instance().clone(), token.as_ref(), config.node_timeout, tell)?;
    start_poller(poller, ended.clone())?;
    let (bell, followers) = followers::room();
    start_owner(owner, messages, orders, bell.clone(), ended.clone())?;

    let (listener, socket) = gate::listen_privately(state_dir.path())?;
    let server = Arc::new(tiny_http::Server::from_listener(listener, None).map_err(Fatal::Http)?);
    let access = Access::new(token, config.hosts.iter().cloned());
    let shared = Arc::new(Shared { access, owner: to_owner.clone(), logs: logs.clone(), streams: Streams::start()? });
    for number in 0..WORKERS {
        let api = Api::new(Arc::clone(&shared), Reader::open(state_dir.path())?);
        start_worker(number, api, Arc::clone(&server), ended.clone())?;
    }
    let tell = move |news| bell.client(news);
    let gate = gate::start(config.listen, socket, Limits::default(), kept_files(config.nodes.len()), tell)?;
    followers.open(Reader::open(state_dir.path())?, logs.beside("looks")?, gate.voice())?;
    log::info!("listening on http://{}", gate.local_addr());

    start_signals(signals, ended)?;
    match end.recv() {
        Ok(End::Signal(signal)) => {
            log::info!("stopping after signal {signal}");
            gate.stop();
            stop_owner(&to_owner, &end)
        }
        Ok(End::Owner(result)) => Ok(result?),
        Ok(End::Poller(error)) => Err(error.into()),
        Ok(End::Http(error)) => Err(Fatal::Http(error.into())),
        Err(_) => Ok(()),
    }
}

/// How many files all but the gate may ever have open at once. Too low a number would leave tiny_http without one.
fn kept_files(nodes: usize) -> usize {
    // Standard streams, the state dir's lock, the signals' pair; the poller's epoll, its copy and its waker.
    let fixed = 3 + 1 + 2 + 3;
    // The database and its log for the owner, each worker and the followers' room, one shared index, one that SQLite
    // opens in passing.
    let database = 2 * (WORKERS + 2) + 2;
    fixed + database + 2 * output::READERS + poller::CONNECTIONS_PER_NODE * nodes
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
