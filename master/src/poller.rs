//! The thread that talks to the nodes: carries out the owner's orders, and tells what came of each.
//!
//! One event loop for all nodes, on `wire::http::Client`. It decides nothing: which poll comes next, and when, is the
//! owner's to order. With nothing ordered it sleeps; while a cluster is idle, that is one long poll per node.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use mio::{Events as MioEvents, Poll, Token, Waker};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use wire::access::Token as Secret;
use wire::fault::Point;
use wire::http::{Client, ClientRequest, ClientResponse, ExchangeId, Limits, Outcome, Queue};
use wire::node::{Answer, Created, Events, NodeResource, Refusal, RefusalCode};
use wire::task::TaskRequest;
use wire::term::{self, Speaker};
use wire::{Attempt, BootId, EventNumber, InstanceId, JobId, NodeId, Stamp, TaskId, Term};

use crate::fault;

/// The most bytes and tasks of one create: far below what a node takes, so that the first tasks start while later ones
/// are still being sent.
const CREATE_BYTES: usize = 1 << 20;
const CREATE_TASKS: usize = 256;
/// A node's answer may hold every task it remembers.
const ANSWER_BYTES: usize = 256 << 20;
/// Connections per node that can be busy at once: the poll, and the calls beside it. So many for each node are there at
/// once, and none takes more: whatever is asked of one that is silent, the others' polls find a connection.
const CONNECTIONS_PER_NODE: usize = Queue::Polls.at_once() + Queue::Calls.at_once();

/// How many there may be at once with so many nodes; never none.
pub const fn connections(nodes: usize) -> usize {
    nodes * CONNECTIONS_PER_NODE + 1
}

/// What the owner wants done. Every order is answered by one [`Heard`], whatever happens, but a poll in whose place another
/// was ordered.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Read the node's events: `GET /task/events`. There is never more than one of these per node: it takes the place of
    /// one that is under way, which is given up.
    Poll {
        /// Which node.
        node: NodeId,
        /// The last event that is written down.
        after: EventNumber,
        /// Of which node that is, if one is known: another may have its address now.
        instance: Option<InstanceId>,
        /// The last stamp that was heard of it.
        heard: Option<Stamp>,
        /// How long the node may wait for something to tell.
        wait: Duration,
        /// Not before this has passed.
        delay: Duration,
        /// The highest job's number that was given out: the node remembers it, should our database be lost.
        jobs: JobId,
    },
    /// Start these tasks: `POST /task/create`.
    Create {
        /// Which node.
        node: NodeId,
        /// The boot of its machine we know of.
        boot: Option<BootId>,
        /// In the order the jobs came.
        tasks: Vec<TaskRequest>,
    },
    /// End this task: `POST /task/kill`.
    Kill {
        /// Which node.
        node: NodeId,
        /// The job.
        job: JobId,
        /// Its task there.
        task: TaskId,
    },
    /// Ask what is free: `GET /resource`.
    Ask {
        /// Which node.
        node: NodeId,
        /// Not before this has passed.
        delay: Duration,
    },
}

/// What a node said, or that it said nothing.
#[derive(Debug)]
pub struct Heard {
    /// Which.
    pub node: NodeId,
    /// What.
    pub said: Said,
}

/// The answers to the orders; an `Err(String)` says why there is none.
#[derive(Debug)]
pub enum Said {
    /// To [`Order::Poll`].
    Events {
        /// What was asked for.
        after: EventNumber,
        /// The events.
        answer: Result<Events, String>,
    },
    /// To [`Order::Create`], or to a part of it.
    Created {
        /// The tasks of that part.
        tasks: Vec<(JobId, Attempt)>,
        /// Whether it was sent and not answered, once at least, so that the node may have taken them all the same.
        unheard: bool,
        /// An answer for each.
        answer: Result<Vec<Answer<Created>>, String>,
    },
    /// To [`Order::Kill`].
    Killed {
        /// The job.
        job: JobId,
        /// Its task.
        task: TaskId,
        /// Whether the node took the kill.
        answer: Result<Result<(), Refusal>, String>,
    },
    /// To [`Order::Ask`].
    Free {
        /// What the node says of itself.
        answer: Result<NodeResource, String>,
    },
}

/// Why the poller could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum PollerError {
    /// The kernel said no.
    #[error("cannot run the poller: {0}")]
    Kernel(#[from] io::Error),
    /// A node has heard a later term of this master.
    #[error("this master's place is taken, and it stops: node {node} says: {said}")]
    Superseded {
        /// Which node.
        node: NodeId,
        /// In its words.
        said: String,
    },
}

/// Where orders are handed in.
pub struct Orders {
    sender: Sender<Order>,
    waker: Arc<Waker>,
}

impl Orders {
    /// Hands in orders. They are begun in this order, and all that are on their way at once run side by side.
    pub fn send(&self, orders: Vec<Order>) {
        for order in orders {
            // The poller ends with the process only.
            let _ = self.sender.send(order);
        }
        if let Err(error) = self.waker.wake() {
            log::error!("cannot wake the poller: {error}");
        }
    }
}

/// What an exchange is the answer to.
#[derive(Debug)]
enum Asked {
    Events { after: EventNumber },
    Created { tasks: Vec<(JobId, Attempt)> },
    Killed { job: JobId, task: TaskId },
    Free,
}

/// The thread's state.
pub struct Poller<F> {
    poll: Poll,
    orders: Receiver<Order>,
    client: Client,
    addrs: BTreeMap<NodeId, SocketAddr>,
    /// Who we are: what a poll acknowledges, it acknowledges for this master only.
    master: InstanceId,
    /// Which of our lives this is; said with every call.
    speaker: Option<Speaker>,
    bearer: Option<String>,
    /// How long a node may take to answer, its wait included.
    time_out: Duration,
    /// Orders whose time has not come, and a number that tells those of one moment apart.
    later: BTreeMap<(Instant, u64), Order>,
    next_number: u64,
    asked: HashMap<ExchangeId, (NodeId, Asked)>,
    /// The polls among them.
    polls: HashMap<NodeId, ExchangeId>,
    superseded: Option<PollerError>,
    tell: F,
}

impl<F: FnMut(Heard)> Poller<F> {
    /// A poller for these nodes, in the name of this master; `tell` is called for everything heard.
    pub fn new(
        addrs: BTreeMap<NodeId, SocketAddr>,
        master: InstanceId,
        token: Option<&Secret>,
        time_out: Duration,
        tell: F,
    ) -> Result<(Poller<F>, Orders), PollerError> {
        let poll = Poll::new()?;
        let connections = connections(addrs.len());
        let waker = Arc::new(Waker::new(poll.registry(), Token(connections))?);
        let limits = Limits { body_bytes: ANSWER_BYTES, ..Limits::default() };
        let client = Client::new(poll.registry().try_clone()?, 0..connections, limits);
        let (sender, orders) = channel();
        let poller = Poller {
            poll,
            orders,
            client,
            addrs,
            master,
            speaker: None,
            bearer: token.map(Secret::bearer),
            time_out,
            later: BTreeMap::new(),
            next_number: 0,
            asked: HashMap::new(),
            polls: HashMap::new(),
            superseded: None,
            tell,
        };
        Ok((poller, Orders { sender, waker }))
    }

    /// Speaks in this term.
    pub fn in_term(mut self, term: Term) -> Poller<F> {
        self.speaker = Some(Speaker { master: self.master.clone(), term });
        self
    }

    /// Runs for as long as the process does; returns only if the kernel's poll fails, or a later term has begun.
    pub fn run(mut self) -> Result<(), PollerError> {
        let mut events = MioEvents::with_capacity(1024);
        loop {
            let now = Instant::now();
            let sleep = self.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
            match self.poll.poll(&mut events, sleep) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
                Ok(()) | Err(_) => self.turn(&events, Instant::now()),
            }
            if let Some(over) = self.superseded.take() {
                return Err(over);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let later = self.later.first_key_value().map(|((time, _), _)| *time);
        [later, self.client.next_deadline()].into_iter().flatten().min()
    }

    fn turn(&mut self, events: &MioEvents, now: Instant) {
        for event in events.iter().filter(|event| self.client.owns(event.token())).collect::<Vec<_>>() {
            self.client.ready(event, now);
        }
        self.client.expire(now);
        while let Ok(order) = self.orders.try_recv() {
            self.take(order, now);
        }
        while let Some(due) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let order = due.remove();
            self.begin(order, now);
        }
        while let Some(outcome) = self.client.next_outcome() {
            self.conclude(outcome);
        }
    }

    fn take(&mut self, order: Order, now: Instant) {
        match &order {
            Order::Poll { delay, .. } | Order::Ask { delay, .. } if !delay.is_zero() => {
                self.next_number += 1;
                self.later.insert((now + *delay, self.next_number), order);
            }
            Order::Poll { .. } | Order::Ask { .. } | Order::Create { .. } | Order::Kill { .. } => {
                self.begin(order, now);
            }
        }
    }

    fn begin(&mut self, order: Order, now: Instant) {
        match order {
            Order::Poll { node, after, instance, heard, wait, jobs, .. } => {
                self.give_up_poll(node);
                let (wait_ms, master) = (wait.as_millis(), &self.master.0);
                let mut path = format!("/task/events?after={after}&wait_ms={wait_ms}&master={master}&jobs={jobs}");
                let more = [("&instance=", instance.map(|it| it.0)), ("&heard=", heard.map(|it| it.0))];
                for (name, value) in more.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                    path.push_str(name);
                    path.extend(form_urlencoded::byte_serialize(value.as_bytes()));
                }
                self.ask(node, Asked::Events { after }, ClientRequest::get(path), wait, now);
            }
            Order::Ask { node, .. } => {
                self.ask(node, Asked::Free, ClientRequest::get("/resource"), Duration::ZERO, now);
            }
            Order::Kill { node, job, task } => {
                let request = ClientRequest::post_json("/task/kill", format!("{{\"taskId\":{task}}}").into_bytes());
                self.ask(node, Asked::Killed { job, task }, request, Duration::ZERO, now);
            }
            Order::Create { node, boot, tasks } => {
                let boot = boot.map_or(String::new(), |boot| format!("?boot={boot}"));
                for (tasks, body) in creates(&tasks) {
                    let request = ClientRequest::post_json(format!("/task/create{boot}"), body);
                    self.ask(node, Asked::Created { tasks }, request, Duration::ZERO, now);
                }
            }
        }
    }

    fn give_up_poll(&mut self, node: NodeId) {
        if let Some(id) = self.polls.remove(&node) {
            self.client.cancel(id);
            self.asked.remove(&id);
        }
    }

    fn ask(&mut self, node: NodeId, asked: Asked, mut request: ClientRequest, wait: Duration, now: Instant) {
        let Some(&addr) = self.addrs.get(&node) else {
            let why = Err(format!("no --node names node {node}"));
            return (self.tell)(Heard { node, said: said(asked, false, why) });
        };
        if let Some(bearer) = &self.bearer {
            request = request.with_header("Authorization", bearer);
        }
        if let Some(speaker) = &self.speaker {
            request = request.with_header(term::HEADER, speaker.to_string());
        }
        fault::moment(points_of(&asked).0);
        // A node that keeps a poll for half of the time-out has the other half to answer, and so have the shortest waits.
        let deadline = now + self.time_out.max(wait + self.time_out / 2);
        let is_poll = matches!(asked, Asked::Events { .. });
        let queue = if is_poll { Queue::Polls } else { Queue::Calls };
        let id = self.client.send((addr, queue), request, deadline, now);
        if is_poll {
            self.polls.insert(node, id);
        }
        self.asked.insert(id, (node, asked));
    }

    fn conclude(&mut self, outcome: Outcome) {
        if let Some((node, asked)) = self.asked.remove(&outcome.id) {
            if matches!(asked, Asked::Events { .. }) {
                self.polls.remove(&node);
            }
            fault::moment(points_of(&asked).1);
            let refusal = outcome.answer.as_ref().ok().filter(|response| response.status == 409).and_then(refusal);
            if let Some(refusal) = refusal.filter(|refusal| refusal.code == RefusalCode::Superseded) {
                // Not told to the owner: whatever it made of it would be too late.
                self.superseded = Some(PollerError::Superseded { node, said: refusal.message });
                return;
            }
            let said = said(asked, outcome.unheard, outcome.answer.map_err(|error| error.to_string()));
            (self.tell)(Heard { node, said });
        }
    }
}

/// Where this process can die before and after a call.
fn points_of(asked: &Asked) -> (Point, Point) {
    match asked {
        Asked::Created { .. } => (Point::CreateUnsent, Point::CreateAnswered),
        Asked::Killed { .. } => (Point::KillUnsent, Point::KillAnswered),
        Asked::Events { .. } | Asked::Free => (Point::PollUnsent, Point::PollAnswered),
    }
}

/// Which tasks one create asks for, and its body.
type Create = (Vec<(JobId, Attempt)>, Vec<u8>);

/// The bodies of as many creates as these tasks need.
fn creates(tasks: &[TaskRequest]) -> Vec<Create> {
    let mut parts: Vec<Create> = Vec::new();
    for task in tasks {
        // A request that cannot be written as JSON cannot be: it has only strings and numbers.
        let Ok(json) = serde_json::to_vec(task) else { continue };
        let (Some(job), Some(attempt)) = (task.job_id, task.attempt) else { continue };
        match parts.last_mut().filter(|(ids, body)| ids.len() < CREATE_TASKS && body.len() + json.len() < CREATE_BYTES)
        {
            Some((ids, body)) => {
                ids.push((job, attempt));
                body.push(b',');
                body.extend(json);
            }
            None => parts.push((vec![(job, attempt)], [b"[".as_slice(), &json].concat())),
        }
    }
    for (_, body) in &mut parts {
        body.push(b']');
    }
    parts
}

fn said(asked: Asked, unheard: bool, outcome: Result<ClientResponse, String>) -> Said {
    match asked {
        Asked::Events { after } => {
            let answer = outcome
                .and_then(|response| in_envelope(&response))
                .and_then(|answer: Answer<Events>| answer.into_result().map_err(|refusal| refusal.message));
            Said::Events { after, answer }
        }
        Asked::Created { tasks } => {
            Said::Created { tasks, unheard, answer: outcome.and_then(|response| in_envelope(&response)) }
        }
        Asked::Killed { job, task } => {
            Said::Killed { job, task, answer: outcome.and_then(|response| taken(&response)) }
        }
        Asked::Free => Said::Free { answer: outcome.and_then(|response| in_envelope(&response)) },
    }
}

/// Reads an answer, or says in the node's words why it is none.
fn in_envelope<T: DeserializeOwned>(response: &ClientResponse) -> Result<T, String> {
    if response.status == 200 {
        let read = wire::json::from_slice(&response.body);
        return read.map_err(|bad| format!("its answer is not what a node says: {bad}"));
    }
    Err(match refusal(response) {
        Some(refusal) => format!("it answers {}: {}", response.status, refusal.message),
        None => format!("it answers {}", response.status),
    })
}

/// Whether a node took a kill. Its data, if any, does not matter.
fn taken(response: &ClientResponse) -> Result<Result<(), Refusal>, String> {
    match refusal(response) {
        Some(refusal) if response.status < 500 && response.status != 401 => Ok(Err(refusal)),
        None if response.status == 200 => Ok(Ok(())),
        Some(_) | None => Err(format!("it answers {}", response.status)),
    }
}

fn refusal(response: &ClientResponse) -> Option<Refusal> {
    /// Of a call's answer as of the framing's own: the rest does not matter.
    #[derive(Deserialize)]
    struct Refused {
        error: Option<Refusal>,
    }
    let refused: Refused = serde_json::from_slice(&response.body).ok()?;
    refused.error
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::scheduler::tests::resource;
    use wire::JobSpec;

    fn request(job: u64, command_line: String) -> TaskRequest {
        let spec = JobSpec { command_line, ..crate::job::tests::spec() };
        TaskRequest::new(spec, JobId(job), Attempt(1), InstanceId("m".into()))
    }

    #[test]
    fn a_poll_takes_the_place_of_one_that_is_under_way() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (sender, heard) = channel();
        let tell = move |said| sender.send(said).unwrap();
        let addrs = BTreeMap::from([(NodeId(0), listener.local_addr().unwrap())]);
        let (poller, orders) = Poller::new(addrs, InstanceId("m".into()), None, Duration::from_secs(5), tell).unwrap();
        std::thread::spawn(move || poller.run());
        let poll = |after| {
            let wait = Duration::from_secs(25);
            Order::Poll {
                node: NodeId(0),
                after: EventNumber(after),
                instance: None,
                heard: None,
                wait,
                delay: Duration::ZERO,
                jobs: JobId(0),
            }
        };
        orders.send(vec![poll(1)]);
        let mut first = listener.accept().unwrap().0;
        orders.send(vec![poll(2)]);
        let asked = serve_one(&listener, "{}");
        assert!(asked.starts_with("GET /task/events?after=2&"), "{asked}");
        assert!(matches!(heard.recv().unwrap().said, Said::Events { after: EventNumber(2), .. }));
        // What it asked may still be read, and then its end.
        first.read_to_end(&mut Vec::new()).unwrap();
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn a_long_list_of_tasks_is_sent_in_parts_that_hold_every_task_once_and_in_order() {
        let tasks: Vec<TaskRequest> = (0..600).map(|job| request(job, "true".into())).collect();
        let large: Vec<TaskRequest> = (600..620).map(|job| request(job, "x".repeat(120_000))).collect();
        let all: Vec<TaskRequest> = tasks.into_iter().chain(large).collect();
        let parts = creates(&all);
        assert!(parts.len() >= 5);
        let mut sent = Vec::new();
        for (ids, body) in parts {
            assert!(body.len() < 2 * CREATE_BYTES && ids.len() <= CREATE_TASKS);
            let tasks: Vec<TaskRequest> = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                tasks.iter().map(|task| task.job_id.unwrap()).collect::<Vec<_>>(),
                ids.iter().map(|id| id.0).collect::<Vec<_>>()
            );
            sent.extend(tasks);
        }
        assert_eq!(sent, all);
    }

    #[test]
    fn a_node_that_refuses_is_quoted() {
        let answer = |status, body: &str| ClientResponse {
            status,
            headers: wire::http::Headers::new(),
            body: body.as_bytes().to_vec(),
        };
        let refused = answer(401, r#"{"error":{"code":"unauthorized","message":"a token is wanted"}}"#);
        assert_eq!(in_envelope::<NodeResource>(&refused).unwrap_err(), "it answers 401: a token is wanted");
        let refused = answer(401, r#"{"code":1,"error":{"code":"unauthorized","message":"a token is wanted"}}"#);
        assert_eq!(in_envelope::<NodeResource>(&refused).unwrap_err(), "it answers 401: a token is wanted");
        assert!(taken(&refused).is_err(), "that is no answer to a kill");
        let gone = answer(404, r#"{"code":1,"error":{"code":"not_found","message":"no such task"}}"#);
        assert_eq!(taken(&gone).unwrap().unwrap_err().message, "no such task");
        assert_eq!(taken(&answer(200, r#"{"code":0}"#)), Ok(Ok(())));
        assert!(taken(&answer(502, "<html>")).is_err());
    }

    /// Answers one request on a connection with this body, and gives back what was asked.
    fn serve_one(listener: &TcpListener, body: &str) -> String {
        serve_one_with("200 OK", listener, body)
    }

    fn serve_one_with(status: &str, listener: &TcpListener, body: &str) -> String {
        let (mut stream, _) = listener.accept().unwrap();
        let asked = read_head(&mut stream);
        answer(&mut stream, status, body);
        asked
    }

    fn read_head(stream: &mut TcpStream) -> String {
        let mut asked = Vec::new();
        let mut byte = [0];
        while !asked.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            asked.push(byte[0]);
        }
        String::from_utf8(asked).unwrap()
    }

    fn answer(stream: &mut TcpStream, status: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
    }

    #[test]
    fn orders_are_carried_out_and_every_one_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, heard) = channel();
        let tell = move |heard| sender.send(heard).unwrap();
        let addrs = BTreeMap::from([(NodeId(0), addr)]);
        let (poller, orders) = Poller::new(addrs, InstanceId("m".into()), None, Duration::from_secs(5), tell).unwrap();
        std::thread::spawn(move || poller.run());

        let delay = Duration::from_millis(1);
        orders.send(vec![Order::Ask { node: NodeId(0), delay }, Order::Ask { node: NodeId(9), delay }]);
        let asked = serve_one(&listener, &serde_json::to_string(&resource(0, 2, 100)).unwrap());
        assert!(asked.starts_with("GET /resource HTTP/1.1\r\n"), "{asked}");
        let mut answers: Vec<Heard> = (0..2).map(|_| heard.recv().unwrap()).collect();
        answers.sort_by_key(|heard| heard.node);
        assert!(matches!(&answers[0].said, Said::Free { answer: Ok(said) } if *said == resource(0, 2, 100)));
        assert!(matches!(&answers[1].said, Said::Free { answer: Err(why) } if why == "no --node names node 9"));

        let wait = Duration::from_secs(25);
        orders.send(vec![Order::Poll {
            node: NodeId(0),
            after: EventNumber(7),
            instance: Some(InstanceId("of/it".into())),
            heard: Some(Stamp("b-1.0f&".into())),
            wait,
            delay: Duration::ZERO,
            jobs: JobId(57),
        }]);
        let asked = serve_one(&listener, "{}");
        assert!(
            asked.starts_with(
                "GET /task/events?after=7&wait_ms=25000&master=m&jobs=57&instance=of%2Fit&heard=b-1.0f%26 HTTP/1.1\r\n"
            ),
            "{asked}"
        );
        let said = heard.recv().unwrap().said;
        assert!(
            matches!(&said, Said::Events { answer: Err(why), .. } if why.contains("not what a node says")),
            "{said:?}"
        );

        drop(listener);
        orders.send(vec![Order::Kill { node: NodeId(0), job: JobId(1), task: TaskId(2) }]);
        let said = heard.recv().unwrap().said;
        assert!(matches!(&said, Said::Killed { answer: Err(why), .. } if why.contains("refused")), "{said:?}");
    }

    #[test]
    fn a_poll_that_a_hung_node_never_answers_is_given_up_after_the_time_out_and_not_after_its_wait_too() {
        // Nobody accepts: the connection stands, the answer never comes.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (sender, heard) = channel();
        let tell = move |heard| sender.send(heard).unwrap();
        let addrs = BTreeMap::from([(NodeId(0), listener.local_addr().unwrap())]);
        let time_out = Duration::from_secs(2);
        let (mut poller, _orders) = Poller::new(addrs, InstanceId("m".into()), None, time_out, tell).unwrap();
        let (now, wait) = (Instant::now(), Duration::from_secs(1));
        let poll = Order::Poll {
            node: NodeId(0),
            after: EventNumber(0),
            instance: None,
            heard: None,
            wait,
            delay: Duration::ZERO,
            jobs: JobId(57),
        };
        poller.take(poll, now);
        assert_eq!(poller.next_deadline(), Some(now + time_out));
        std::thread::spawn(move || poller.run());
        let said = heard.recv().unwrap().said;
        assert!(matches!(&said, Said::Events { answer: Err(why), .. } if why.contains("in time")), "{said:?}");
    }

    #[test]
    fn calls_that_a_silent_node_does_not_answer_hold_up_no_poll_of_another_node_and_not_its_own() {
        let [silent, other] = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let (sender, heard) = channel();
        let tell = move |said| sender.send(said).unwrap();
        let addr = |listener: &TcpListener| listener.local_addr().unwrap();
        let addrs = BTreeMap::from([(NodeId(0), addr(&silent)), (NodeId(1), addr(&other))]);
        let (poller, orders) = Poller::new(addrs, InstanceId("m".into()), None, Duration::from_secs(20), tell).unwrap();
        std::thread::spawn(move || poller.run());
        let kill = |task| Order::Kill { node: NodeId(0), job: JobId(task), task: TaskId(task) };
        orders.send((0..20).map(kill).collect());
        let poll = |node| {
            let (wait, delay) = (Duration::ZERO, Duration::ZERO);
            Order::Poll {
                node: NodeId(node),
                after: EventNumber(0),
                instance: None,
                heard: None,
                wait,
                delay,
                jobs: JobId(57),
            }
        };
        let (answer_polls, polled) = channel::<TcpListener>();
        std::thread::spawn(move || {
            for listener in polled {
                // Whatever was asked before stays without an answer.
                let mut unanswered = Vec::new();
                loop {
                    let (mut stream, _) = listener.accept().unwrap();
                    if read_head(&mut stream).starts_with("GET /task/events") {
                        break answer(&mut stream, "200 OK", "{}");
                    }
                    unanswered.push(stream);
                }
                std::mem::forget((listener, unanswered));
            }
        });
        for (node, listener) in [(1, other), (0, silent)] {
            answer_polls.send(listener).unwrap();
            orders.send(vec![poll(node)]);
            let first = heard.recv().unwrap();
            let is_answered =
                matches!(&first.said, Said::Events { answer: Err(why), .. } if why.contains("not what a node says"));
            assert!(first.node == NodeId(node) && is_answered, "{first:?}");
        }
    }

    #[test]
    fn one_whose_later_term_a_node_has_heard_says_so_and_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addrs = BTreeMap::from([(NodeId(3), listener.local_addr().unwrap())]);
        let (poller, orders) =
            Poller::new(addrs, InstanceId("m".into()), None, Duration::from_secs(5), |said| panic!("{said:?}"))
                .unwrap();
        let running = std::thread::spawn(move || poller.in_term(Term(7)).run());
        orders.send(vec![Order::Ask { node: NodeId(3), delay: Duration::ZERO }]);
        let body = r#"{"code":1,"error":{"code":"superseded","message":"term 7 is over"}}"#;
        let asked = serve_one_with("409 Conflict", &listener, body);
        assert!(asked.contains("Berth-Master: m 7\r\n"), "{asked}");
        let said = running.join().unwrap().unwrap_err().to_string();
        assert!(said.contains("node 3 says: term 7 is over"), "{said}");
    }
}
