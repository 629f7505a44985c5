//! The owner against nodes that are played, down to a master killed between any two steps.

mod restored;

use std::sync::mpsc;

use wire::node::{Answer, Created, Events, NodeResource, Refusal, RefusalCode};

use super::*;
use crate::life::tests::report;
use crate::scheduler::tests::resource;
use crate::state_dir::Scratch;
use wire::task::TaskReport;
use wire::{Attempt, BootId, CpuAmount, EventNumber, OnNodeLoss, Reason, Stamp, State, TaskId};

/// What its jobs run under that do not wait.
const LEASE: Duration = Duration::from_secs(60);

/// A master in a folder of its own, and its clock.
struct Master {
    dir: Scratch,
    owner: Option<Owner>,
    nodes: Nodes,
    now: Now,
}

impl Master {
    fn new(nodes: u32) -> Master {
        let addrs = (0..nodes).map(|id| (NodeId(id), format!("127.0.0.1:{}", 5000 + id))).collect();
        let nodes = Nodes { addrs, time_out: Duration::from_secs(10), lease: LEASE, most_lost: 3 };
        let mut master = Master { dir: Scratch::new(), owner: None, nodes, now: Now::read() };
        master.start();
        master
    }

    /// As after a SIGKILL: memory is gone, the database stays. Nobody waits for what the nodes say first.
    fn start(&mut self) -> Vec<Order> {
        let mut orders = self.start_gathering();
        self.waits_no_more();
        orders.extend(self.turn(vec![]));
        orders
    }

    /// What the nodes have not said yet is not waited for.
    fn waits_no_more(&mut self) {
        let now = self.now;
        if let Some(gathering) = &mut self.owner().gathering {
            gathering.waits_for_nobody(now);
        }
    }

    fn start_gathering(&mut self) -> Vec<Order> {
        self.owner = None;
        let store = Store::open_in(self.dir.path()).unwrap();
        let mut owner = Owner::new(store, self.nodes.clone(), self.now).unwrap();
        let orders = owner.first_orders();
        self.owner = Some(owner);
        orders
    }

    fn owner(&mut self) -> &mut Owner {
        self.owner.as_mut().unwrap()
    }

    fn turn(&mut self, messages: Vec<Message>) -> Vec<Order> {
        let now = self.now;
        let orders = self.owner().turn(messages, now).unwrap();
        self.owner().check_sanity();
        orders
    }

    fn says(&mut self, node: u32, said: Said) -> Vec<Order> {
        self.turn(vec![Message::Heard(Box::new(Heard { node: NodeId(node), said }))])
    }

    fn tells(&mut self, node: NodeResource, after: u64, last: u64, mut events: Vec<TaskReport>) -> Vec<Order> {
        let instance = self.owner().instance.clone();
        for report in &mut events {
            report.key.master = Some(instance.clone());
        }
        let id = node.node_id.0;
        let answer = Ok(Events { last: EventNumber(last), events, resource: node, remembered: None });
        self.says(id, Said::Events { after: EventNumber(after), answer })
    }

    fn submit(&mut self, specs: Vec<JobSpec>) -> (Result<Vec<Job>, RefusedJob>, Vec<Order>) {
        let (reply, answer) = mpsc::channel();
        let orders = self.turn(vec![Message::Submit { specs, reply }]);
        (answer.recv().unwrap(), orders)
    }

    fn kill(&mut self, job: u64) -> (Option<Job>, Vec<Order>) {
        let (reply, answer) = mpsc::channel();
        let orders = self.turn(vec![Message::Kill { job: JobId(job), reply }]);
        (answer.recv().unwrap(), orders)
    }

    fn job(&mut self, id: u64) -> Job {
        self.owner().store.job(JobId(id)).unwrap().unwrap().job
    }

    fn holds(&mut self, job: u64) -> Holds {
        let (reply, answer) = mpsc::channel();
        self.turn(vec![Message::Why { job: JobId(job), reply }]);
        answer.recv().unwrap()
    }

    fn nodes_shown(&mut self) -> Vec<Node> {
        let (reply, answer) = mpsc::channel();
        self.turn(vec![Message::Nodes { reply }]);
        answer.recv().unwrap()
    }
}

impl Owner {
    /// What must be true between any two turns.
    fn check_sanity(&self) {
        let kept: BTreeMap<JobId, Kept> =
            self.store.active().unwrap().into_iter().map(|kept| (kept.job.id, kept)).collect();
        assert_eq!(kept.keys().collect::<Vec<_>>(), self.active.keys().collect::<Vec<_>>());
        for (id, active) in &self.active {
            assert_eq!((&kept[id].job, kept[id].kill_asked), (&active.job, active.kill_asked));
            let holders: Vec<NodeId> = self
                .members
                .iter()
                .filter(|(_, member)| member.jobs().any(|job| job == *id))
                .map(|(node, _)| *node)
                .collect();
            // What was on a node that is no longer there is held by none.
            let placed = active.job.placed.iter().map(|placed| placed.node);
            assert_eq!(holders, placed.filter(|node| self.members.contains_key(node)).collect::<Vec<_>>());
        }
        for member in self.members.values() {
            assert!(member.jobs().all(|job| self.active.contains_key(&job)));
        }
    }
}

fn spec(mem: u64) -> JobSpec {
    let mut spec = crate::job::tests::spec();
    spec.resource.mem = mem;
    spec
}

fn node() -> NodeResource {
    resource(0, 4, 1000)
}

fn created(task: u64) -> Answer<Created> {
    Answer::done(Created { task_id: TaskId(task) })
}

fn refused(code: RefusalCode) -> Answer<Created> {
    Answer::refused(Refusal::new(code, "says the node"))
}

fn answer(job: u64, attempt: u32, answer: Answer<Created>) -> Said {
    Said::Created { tasks: vec![(JobId(job), Attempt(attempt))], unheard: false, answer: Ok(vec![answer]) }
}

fn creates(orders: &[Order]) -> Vec<(u64, u32)> {
    let tasks = orders.iter().filter_map(|order| match order {
        Order::Create { tasks, .. } => Some(tasks),
        _ => None,
    });
    tasks.flatten().map(|task| (task.job_id.unwrap().0, task.attempt.unwrap().0)).collect()
}

fn kills(orders: &[Order]) -> Vec<u64> {
    let kill = |order: &Order| match order {
        Order::Kill { task, .. } => Some(task.0),
        _ => None,
    };
    orders.iter().filter_map(kill).collect()
}

fn polls(orders: &[Order]) -> Vec<(u64, bool)> {
    let poll = |order: &Order| match order {
        Order::Poll { after, wait, .. } => Some((after.0, *wait > Duration::ZERO)),
        _ => None,
    };
    orders.iter().filter_map(poll).collect()
}

fn said(job: u64, task: u64, status: State) -> TaskReport {
    report(JobId(job), Attempt(1), TaskId(task), status)
}

/// A master whose only node is ready and has job 1 as task 8, running.
fn running() -> Master {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.says(0, answer(1, 1, created(8)));
    master.tells(node(), 0, 2, vec![said(1, 8, State::Running)]);
    assert_eq!(master.job(1).status, State::Running);
    master
}

#[test]
fn a_submission_is_stored_placed_and_sent_in_one_turn() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    let (jobs, orders) = master.submit(vec![spec(64), spec(64)]);
    let jobs = jobs.unwrap();
    assert_eq!(
        jobs.iter().map(|job| (job.id.0, job.status)).collect::<Vec<_>>(),
        [(1, State::Assigned), (2, State::Assigned)]
    );
    assert_eq!(creates(&orders), [(1, 1), (2, 1)], "one create for all of a turn");
    assert_eq!(orders.len(), 1);
    assert_eq!(master.job(1), jobs[0]);
}

#[test]
fn a_job_ends_as_its_node_says() {
    let mut master = running();
    let orders = master.tells(node(), 2, 5, vec![said(1, 8, State::Failed)]);
    let job = master.job(1);
    assert_eq!((job.status, job.reason()), (State::Failed, Some("exit code 3".into())));
    assert_eq!(polls(&orders), [(5, true)], "what is written is acknowledged with the next poll");
}

#[test]
fn events_of_other_masters_are_not_ours() {
    let mut master = running();
    let other = said(1, 8, State::Killed);
    let events = Events { last: EventNumber(3), events: vec![other], resource: node(), remembered: None };
    master.says(0, Said::Events { after: EventNumber(2), answer: Ok(events) });
    assert_eq!(master.job(1).status, State::Running);
}

#[test]
fn a_node_that_takes_nothing_gets_nothing_is_asked_again_and_its_reason_is_the_jobs() {
    let closed = || NodeResource { closed: Some("the disk is full".into()), ..node() };
    let mut master = Master::new(1);
    let ask = Order::Ask { node: NodeId(0), delay: CLOSED_UNTIL_ASKED };
    assert!(master.tells(closed(), 0, 0, vec![]).contains(&ask));
    let (_, orders) = master.submit(vec![spec(64)]);
    assert_eq!(orders, [], "no attempt is made");
    assert_eq!(master.holds(1).waits.unwrap(), "node 0 takes nothing new: the disk is full");
    assert_eq!(master.says(0, Said::Free { answer: Ok(closed()) }), [ask]);
    assert_eq!(creates(&master.says(0, Said::Free { answer: Ok(node()) })), [(1, 1)]);
}

#[test]
fn what_a_job_is_stuck_on_is_shown_until_its_node_says_otherwise() {
    let mut master = running();
    let stuck = TaskReport { stuck: Some("waits for a server".into()), ..said(1, 8, State::Running) };
    master.tells(node(), 2, 3, vec![stuck.clone()]);
    assert_eq!(master.holds(1).stuck.unwrap(), "waits for a server");
    // Late news of another attempt says nothing of this one.
    let other = TaskReport { stuck: None, ..report(JobId(1), Attempt(7), TaskId(8), State::Running) };
    master.tells(node(), 3, 4, vec![other]);
    assert!(master.holds(1).stuck.is_some());
    master.tells(node(), 4, 5, vec![said(1, 8, State::Running)]);
    assert_eq!(master.holds(1), Holds::default());
}

#[test]
fn no_room_puts_the_job_back_and_the_node_is_asked_before_it_gets_more() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    let orders = master.says(0, answer(1, 1, refused(RefusalCode::NoRoom)));
    assert_eq!(orders, [Order::Ask { node: NodeId(0), delay: AFTER_NO_ROOM }]);
    assert_eq!((master.job(1).status, master.job(1).placed), (State::Pending, None));
    assert_eq!(creates(&master.says(0, Said::Free { answer: Ok(node()) })), [(1, 2)], "the next attempt");
}

#[test]
fn a_busy_node_has_not_taken_the_job_and_another_gets_it() {
    let mut master = Master::new(2);
    master.tells(resource(0, 4, 2000), 0, 0, vec![]);
    master.tells(resource(1, 4, 1000), 0, 0, vec![]);
    assert_eq!(creates(&master.submit(vec![spec(64)]).1), [(1, 1)]);
    let orders = master.says(0, answer(1, 1, refused(RefusalCode::Busy)));
    assert!(orders.contains(&Order::Ask { node: NodeId(0), delay: AFTER_NO_ROOM }), "{orders:?}");
    assert_eq!(creates(&orders), [(1, 2)]);
    assert_eq!(master.job(1).placed.unwrap().node, NodeId(1));
}

#[test]
fn a_busy_node_that_may_still_take_an_earlier_create_keeps_the_job_and_its_words_are_shown() {
    let unanswered = || {
        let mut master = Master::new(2);
        master.tells(resource(0, 4, 2000), 0, 0, vec![]);
        master.tells(resource(1, 4, 1000), 0, 0, vec![]);
        master.submit(vec![spec(64)]).0.unwrap();
        master
    };
    let mut cut = unanswered();
    let nothing = Said::Created { tasks: vec![(JobId(1), Attempt(1))], unheard: true, answer: Err("reset".into()) };
    cut.says(0, nothing);
    cut.says(0, Said::Free { answer: Ok(resource(0, 4, 2000)) });
    let mut anew = unanswered();
    anew.start();
    anew.tells(resource(0, 4, 2000), 0, 0, vec![]);
    for mut master in [cut, anew] {
        let orders = master.says(0, answer(1, 1, refused(RefusalCode::Busy)));
        assert_eq!(orders, [Order::Ask { node: NodeId(0), delay: AFTER_A_FAILED_CALL }]);
        assert_eq!(master.holds(1).stuck.unwrap(), "node 0 does not take it: says the node");
        assert_eq!(creates(&master.says(0, Said::Free { answer: Ok(resource(0, 4, 2000)) })), [(1, 1)]);
        master.says(0, answer(1, 1, refused(RefusalCode::NoRoom)));
        assert_eq!(master.holds(1).stuck, None, "it waits for another node");
    }
}

#[test]
fn a_job_that_was_turned_away_or_found_elsewhere_is_no_longer_counted_beside_one_that_a_node_is_kept_for() {
    for turned_away in [true, false] {
        let mut master = Master::new(2);
        let half = || NodeResource { mem: 500, ..node() };
        master.tells(half(), 0, 0, vec![]);
        let (_, orders) = master.submit(vec![spec(900), spec(60)]);
        assert_eq!(creates(&orders), [(2, 1)], "beside the first");
        if turned_away {
            master.tells(resource(1, 4, 100), 0, 0, vec![]);
            let orders = master.says(0, answer(2, 1, refused(RefusalCode::NoRoom)));
            assert_eq!(creates(&orders), [(2, 2)], "on node 1");
        } else {
            let owner = master.owner();
            (owner.first_new, owner.is_older) = (JobId(3), true);
            owner.active.get_mut(&JobId(2)).unwrap().inherited = true;
            let full = NodeResource { mem: 0, ..resource(1, 4, 1000) };
            master.tells(full, 0, 3, vec![report(JobId(2), Attempt(2), TaskId(8), State::Running)]);
            assert_eq!(master.job(2).placed.unwrap().node, NodeId(1));
        }
        let mut orders = master.submit(vec![spec(60)]).1;
        orders.extend(master.says(0, Said::Free { answer: Ok(half()) }));
        assert_eq!(creates(&orders), [(3, 1)]);
    }
}

#[test]
fn a_node_that_missed_a_poll_stays_kept_for_the_job_at_the_head_and_one_that_is_lost_does_not() {
    let mut master = Master::new(2);
    for id in [0, 1] {
        master.tells(NodeResource { mem: 500, ..resource(id, 4, 1000) }, 0, 0, vec![]);
    }
    assert_eq!(creates(&master.submit(vec![spec(900)]).1), [], "node 0 is kept for it");
    master.says(0, silent());
    assert_eq!(creates(&master.submit(vec![spec(200)]).1), [(2, 1)], "on node 1");
    master.passes(Duration::from_secs(11));
    master.says(0, silent());
    assert_eq!(creates(&master.submit(vec![spec(200)]).1), [], "now node 1 is kept for it");
}

#[test]
fn what_a_node_calls_impossible_fails_with_its_words() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.says(0, answer(1, 1, refused(RefusalCode::Impossible)));
    assert_eq!(master.job(1).cause, Some(Reason::Refused { message: "says the node".into() }));
}

#[test]
fn a_create_nobody_answered_is_sent_again_when_the_node_answers() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    let nothing = Said::Created { tasks: vec![(JobId(1), Attempt(1))], unheard: true, answer: Err("reset".into()) };
    assert_eq!(creates(&master.says(0, nothing)), []);
    assert_eq!(creates(&master.says(0, Said::Free { answer: Ok(node()) })), [(1, 1)], "the same attempt");
    assert_eq!(creates(&master.tells(node(), 0, 0, vec![])), [], "not while it is under way");
}

#[test]
fn a_waiting_job_is_killed_at_once_and_killing_twice_is_fine() {
    let mut master = Master::new(1);
    master.submit(vec![spec(64)]).0.unwrap();
    for _ in 0..2 {
        let (job, orders) = master.kill(1);
        assert_eq!((job.unwrap().status, orders), (State::Killed, vec![]));
    }
    assert_eq!(master.kill(2).0, None);
    assert_eq!(creates(&master.tells(node(), 0, 0, vec![])), []);
}

#[test]
fn a_running_job_is_killed_by_its_node_and_the_node_says_how_it_ended() {
    let mut master = running();
    let (job, orders) = master.kill(1);
    assert_eq!((job.unwrap().status, kills(&orders)), (State::Running, vec![8]));
    assert!(kills(&master.kill(1).1).is_empty(), "it is under way");
    let failed = Said::Killed { job: JobId(1), task: TaskId(8), answer: Err("reset".into()) };
    assert!(kills(&master.says(0, failed)).is_empty());
    assert_eq!(kills(&master.says(0, Said::Free { answer: Ok(node()) })), [8], "until it is taken");
    master.says(0, Said::Killed { job: JobId(1), task: TaskId(8), answer: Ok(Ok(())) });
    assert!(kills(&master.tells(node(), 2, 2, vec![])).is_empty());
    master.tells(node(), 2, 3, vec![said(1, 8, State::Finished)]);
    assert_eq!(master.job(1).status, State::Finished, "it was done before the kill came");
}

#[test]
fn a_kill_that_comes_before_the_tasks_number_is_sent_with_it() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    assert!(kills(&master.kill(1).1).is_empty());
    assert_eq!(kills(&master.says(0, answer(1, 1, created(8)))), [8]);
}

#[test]
fn a_kill_is_not_forgotten_when_the_event_overtakes_the_answer_to_the_create() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.kill(1);
    master.tells(node(), 0, 1, vec![said(1, 8, State::Running)]);
    assert_eq!(kills(&master.says(0, answer(1, 1, created(8)))), [8]);
}

#[test]
fn a_kill_survives_the_masters_death() {
    let mut master = running();
    master.kill(1);
    assert_eq!(polls(&master.start()), [(0, false)], "first of all the roll is called");
    let orders = master.tells(node(), 0, 2, vec![said(1, 8, State::Running)]);
    assert_eq!(kills(&orders), [8]);
}

#[test]
fn after_a_restart_a_create_without_an_answer_is_sent_again_with_the_same_key() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.start();
    assert_eq!(creates(&master.tells(node(), 0, 0, vec![])), [(1, 1)]);
}

#[test]
fn after_a_restart_a_task_the_node_does_not_know_is_lost() {
    let mut master = running();
    master.start();
    master.tells(node(), 0, 2, vec![]);
    assert_eq!(master.job(1).reason(), Some("lost".into()));
}

#[test]
fn an_answer_older_than_the_create_loses_nothing() {
    let mut master = running();
    master.submit(vec![spec(64)]).0.unwrap();
    master.says(0, answer(2, 1, created(9)));
    master.tells(node(), 2, 2, vec![]);
    assert_eq!(master.job(2).status, State::Assigned);
}

#[test]
fn a_node_with_another_state_dir_has_lost_its_tasks_and_is_read_from_the_start() {
    let mut master = running();
    let wiped = || NodeResource { instance: InstanceId("f".repeat(32)), ..node() };
    let orders = master.tells(wiped(), 2, 9, vec![said(1, 8, State::Finished)]);
    assert_eq!(master.job(1).reason(), Some("lost".into()), "task 8 of the new state dir is not ours");
    assert_eq!(polls(&orders), [(0, false)]);
    let orders = master.tells(wiped(), 0, 9, vec![]);
    assert_eq!(polls(&orders), [(9, true)]);
    let meant_for =
        |order: &Order| matches!(order, Order::Poll { instance, .. } if *instance == Some(wiped().instance));
    assert!(orders.iter().any(meant_for), "{orders:?}");
}

#[test]
fn the_new_state_dir_of_a_node_is_remembered_over_a_restart() {
    let mut master = running();
    let wiped = || NodeResource { instance: InstanceId("f".repeat(32)), ..node() };
    master.tells(wiped(), 2, 0, vec![]);
    master.tells(wiped(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.says(0, answer(2, 1, created(1)));
    master.start();
    master.tells(wiped(), 0, 1, vec![said(2, 1, State::Running)]);
    assert_eq!(master.job(2).status, State::Running);
}

#[test]
fn a_node_whose_history_went_back_is_asked_for_all_it_knows() {
    let mut master = running();
    assert_eq!(polls(&master.tells(node(), 2, 1, vec![])), [(0, false)]);
    master.tells(node(), 0, 1, vec![]);
    assert_eq!(master.job(1).reason(), Some("lost".into()));
}

#[test]
fn a_silent_node_gets_nothing_new_and_what_it_has_stays() {
    let mut master = running();
    let silent = || Said::Events { after: EventNumber(2), answer: Err("connection refused".into()) };
    let orders = master.says(0, silent());
    assert_eq!(polls(&orders), [(2, false)], "a sign of life is wanted at once");
    let (jobs, orders) = master.submit(vec![spec(64)]);
    assert_eq!((jobs.unwrap()[0].status, creates(&orders)), (State::Pending, vec![]));
    master.now.clock += Duration::from_secs(11);
    master.says(0, silent());
    assert_eq!(master.nodes_shown()[0].state.as_str(), "lost");
    assert_eq!(master.job(1).status, State::Running);
    let orders = master.tells(node(), 2, 2, vec![]);
    assert_eq!((creates(&orders), polls(&orders)), (vec![], vec![(0, false)]), "it is asked for all it has first");
    let orders = master.tells(node(), 0, 2, vec![said(1, 8, State::Running)]);
    assert_eq!((creates(&orders), master.job(1).status), (vec![(2, 1)], State::Running));
}

#[test]
fn a_kill_asked_while_a_node_is_silent_is_sent_once_when_it_has_spoken_by_whichever_call() {
    let silent = || Said::Events { after: EventNumber(2), answer: Err("no answer in time".into()) };
    for lost in [false, true] {
        let mut master = running();
        master.now.clock += Duration::from_secs(if lost { 11 } else { 3 });
        master.says(0, silent());
        let (job, orders) = master.kill(1);
        assert_eq!((job.unwrap().status, orders), (State::Running, vec![]));
        assert!(kills(&master.says(0, silent())).is_empty());
        if lost {
            assert_eq!(polls(&master.tells(node(), 2, 2, vec![])), [(0, false)]);
        }
        let after = if lost { 0 } else { 2 };
        assert_eq!(kills(&master.tells(node(), after, 2, vec![said(1, 8, State::Running)])), [8]);
        assert!(kills(&master.says(0, Said::Free { answer: Ok(node()) })).is_empty(), "it is under way");
    }
    for silence in unanswered() {
        let mut master = running();
        master.submit(vec![spec(64)]).0.unwrap();
        let asked = master.says(0, silence);
        assert!(matches!(asked[..], [Order::Ask { .. }]), "{asked:?}");
        assert_eq!(master.kill(1).1, []);
        assert_eq!(kills(&master.says(0, Said::Free { answer: Ok(node()) })), [8]);
    }
}

#[test]
fn of_a_job_whose_end_a_node_forgot_while_it_was_lost_nobody_waits_for_news_without_end() {
    let silent = || Said::Events { after: EventNumber(2), answer: Err("no route".into()) };
    for heard_by_an_ask in [false, true] {
        let mut master = running();
        master.now.clock += Duration::from_secs(11);
        master.says(0, silent());
        let orders = if heard_by_an_ask {
            master.says(0, Said::Free { answer: Ok(node()) })
        } else {
            // Ends of another master's have pushed ours out.
            master.tells(node(), 2, 20_000, vec![])
        };
        assert_eq!(polls(&orders), [(0, false)]);
        assert!(polls(&master.says(0, Said::Free { answer: Ok(node()) })).is_empty(), "it is under way");
        master.tells(node(), 0, 20_000, vec![]);
        assert_eq!(master.job(1).reason().as_deref(), Some("lost"));
    }
    // One that was lost before it had answered is asked for that already.
    let mut master = running();
    master.start();
    master.now.clock += Duration::from_secs(11);
    assert_eq!(polls(&master.says(0, silent())), [(0, false)]);
    assert_eq!(polls(&master.says(0, Said::Free { answer: Ok(node()) })), []);
}

/// What a node does not answer, and the job that goes with it.
fn unanswered() -> [Said; 3] {
    let late = || "no answer in time".to_owned();
    [
        Said::Created { tasks: vec![(JobId(2), Attempt(1))], unheard: true, answer: Err(late()) },
        Said::Killed { job: JobId(1), task: TaskId(8), answer: Err(late()) },
        Said::Free { answer: Err(late()) },
    ]
}

#[test]
fn whatever_call_a_node_does_not_answer_it_gets_no_new_job_until_it_has_spoken() {
    for silence in unanswered() {
        let mut master = running();
        master.submit(vec![spec(64)]).0.unwrap();
        let orders = master.says(0, silence);
        assert!(matches!(orders[..], [Order::Ask { .. }]), "it is asked how it is: {orders:?}");
        assert_eq!(creates(&master.submit(vec![spec(64)]).1), []);
        assert!(creates(&master.says(0, Said::Free { answer: Ok(node()) })).contains(&(3, 1)));
    }
}

#[test]
fn calls_that_go_unanswered_for_the_time_out_are_enough_to_call_a_node_lost() {
    for silence in unanswered() {
        let mut master = running();
        master.now.clock += Duration::from_secs(10);
        master.says(0, silence);
        assert_eq!(master.nodes_shown()[0].state.as_str(), "lost");
        let silent = Said::Free { answer: Err("no answer in time".into()) };
        assert_eq!(master.says(0, silent), [], "from here on the polls find out");
    }
}

#[test]
fn a_node_with_jobs_is_polled_often_enough_to_miss_it_within_the_time_out_and_one_without_is_left_asleep() {
    for (time_out, wait) in [(10_000, 5_000), (1_500, 1_000), (100, 1_000), (300_000, 55_000)] {
        let mut master = Master::new(1);
        master.nodes.time_out = Duration::from_millis(time_out);
        master.start();
        let poll = |after, ms, jobs| {
            let (after, wait) = (EventNumber(after), Duration::from_millis(ms));
            let (instance, jobs) = (Some(node().instance), JobId(jobs));
            Order::Poll { node: NodeId(0), after, instance, heard: None, wait, delay: Duration::ZERO, jobs }
        };
        assert_eq!(master.tells(node(), 0, 3, vec![]), [poll(3, 55_000, 0)]);
        master.submit(vec![spec(64)]).0.unwrap();
        assert_eq!(master.tells(node(), 3, 4, vec![]), [poll(4, wait, 1)]);
    }
}

#[test]
fn a_node_that_calls_itself_by_another_number_is_not_used() {
    let mut master = Master::new(1);
    let other = Events { last: EventNumber(0), events: vec![], resource: resource(5, 4, 1000), remembered: None };
    master.says(0, Said::Events { after: EventNumber(0), answer: Ok(other) });
    let (jobs, _) = master.submit(vec![spec(64)]);
    assert_eq!(jobs.unwrap()[0].status, State::Pending);
}

#[test]
fn a_list_with_a_job_that_no_node_could_ever_run_is_refused_whole() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    let refused = master.submit(vec![spec(64), spec(9999)]).0.unwrap_err();
    assert_eq!((refused.index, refused.bad.field.as_str()), (1, "resource.mem"));
    assert!(master.owner().store.job(JobId(1)).unwrap().is_none());
}

#[test]
fn an_image_that_no_node_had_is_asked_for_once_more_before_the_job_is_refused() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    let mut late = spec(64);
    late.image_id = "late".parse().unwrap();
    for (images, taken) in [("busybox", false), ("late", true)] {
        let (reply, answer) = mpsc::channel();
        let orders = master.turn(vec![Message::Submit { specs: vec![late.clone()], reply }]);
        assert_eq!(orders, [Order::Ask { node: NodeId(0), delay: Duration::ZERO }]);
        assert!(answer.try_recv().is_err());
        let said = NodeResource { images: vec![images.parse().unwrap()], ..node() };
        let orders = master.says(0, Said::Free { answer: Ok(said) });
        assert_eq!(answer.recv().unwrap().map_err(|refused| refused.bad.field).is_ok(), taken);
        assert_eq!(creates(&orders).len(), usize::from(taken));
    }
}

fn with_image(image: &str) -> JobSpec {
    JobSpec { image_id: image.parse().unwrap(), ..spec(64) }
}

#[test]
fn a_full_node_and_one_that_missed_a_call_are_asked_for_a_new_image_too() {
    let mut master = Master::new(2);
    master.tells(node(), 0, 0, vec![]);
    master.tells(resource(1, 4, 900), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.says(0, answer(1, 1, refused(RefusalCode::NoRoom)));
    master.says(1, Said::Free { answer: Err("reset".into()) });
    let (reply, _answer) = mpsc::channel();
    let orders = master.turn(vec![Message::Submit { specs: vec![with_image("late")], reply }]);
    let ask = |node| Order::Ask { node: NodeId(node), delay: Duration::ZERO };
    assert_eq!(orders, [ask(0), ask(1)]);
    // Both are also asked for another reason; as long as one of two asks is under way, no third is made.
    let again = |master: &mut Master| master.says(1, Said::Free { answer: Err("reset".into()) });
    assert_eq!(again(&mut master), []);
    assert!(matches!(again(&mut master)[..], [Order::Ask { .. }]));
}

#[test]
fn a_doubted_submission_waits_for_a_hung_node_no_longer_than_a_moment() {
    let mut master = Master::new(2);
    master.tells(node(), 0, 0, vec![]);
    master.tells(resource(1, 4, 900), 0, 0, vec![]);
    let (reply, answer) = mpsc::channel();
    master.turn(vec![Message::Submit { specs: vec![with_image("late")], reply }]);
    master.says(0, Said::Free { answer: Ok(node()) });
    assert!(answer.try_recv().is_err());
    assert_eq!(master.owner().next_deadline(), Some(master.now.clock + DOUBT));
    master.now.clock += DOUBT;
    master.turn(vec![]);
    assert_eq!(answer.try_recv().unwrap().unwrap_err().bad.field, "imageId");
    assert_eq!(master.owner().next_deadline(), None);
}

#[test]
fn while_a_node_has_not_spoken_nothing_is_called_impossible_and_the_job_says_why_it_waits() {
    let mut master = Master::new(2);
    master.tells(node(), 0, 0, vec![]);
    let (jobs, _) = master.submit(vec![spec(9999)]);
    assert_eq!(jobs.unwrap()[0].status, State::Pending);
    let why = master.holds(1).waits.unwrap();
    assert!(why.starts_with("needs 9999 MiB; the largest node 0 has 1000 MiB in all (no answer from node 1"), "{why}");
}

/// Two nodes; job 1, which is to be so treated, runs on node 0 as task 8.
fn under_a_lease(choice: OnNodeLoss) -> Master {
    let mut master = Master::new(2);
    master.tells(stamped(0, "s1"), 0, 0, vec![]);
    let (jobs, orders) = master.submit(vec![JobSpec { on_node_loss: choice, ..spec(64) }]);
    assert_eq!(jobs.unwrap()[0].lease.map(|lease| lease.length), Some(LEASE));
    assert_eq!(leases(&orders), [Some(TaskLease::new(LEASE, Stamp("s1".into())))]);
    master.says(0, answer(1, 1, created(8)));
    let orders = master.tells(stamped(0, "s2"), 0, 2, vec![said(1, 8, State::Running)]);
    assert_eq!(given_back(&orders), [Some("s2".to_owned())]);
    master
}

fn stamped(id: u32, stamp: &str) -> NodeResource {
    NodeResource { stamp: Some(Stamp(stamp.into())), ..resource(id, 4, 1000) }
}

fn leases(orders: &[Order]) -> Vec<Option<TaskLease>> {
    let tasks = orders.iter().filter_map(|order| match order {
        Order::Create { tasks, .. } => Some(tasks),
        _ => None,
    });
    tasks.flatten().map(|task| task.lease.clone()).collect()
}

fn given_back(orders: &[Order]) -> Vec<Option<String>> {
    let heard = |order: &Order| match order {
        Order::Poll { heard, .. } => Some(heard.as_ref().map(|stamp| stamp.0.clone())),
        _ => None,
    };
    orders.iter().filter_map(heard).collect()
}

fn silent() -> Said {
    Said::Events { after: EventNumber(2), answer: Err("no route".into()) }
}

impl Master {
    fn passes(&mut self, time: Duration) {
        self.now.clock += time;
        self.now.wall += jiff::SignedDuration::try_from(time).unwrap();
    }

    /// Node 0 is silent until a moment before nothing of its lease can be alive.
    fn cut_until_just_before_the_end(&mut self) {
        let over = crate::lease::certainly_over(self.now.clock, LEASE) - self.now.clock;
        self.passes(Duration::from_secs(11));
        self.says(0, silent());
        assert_eq!(self.nodes_shown()[0].state.as_str(), "lost");
        self.passes(over - Duration::from_secs(11) - Duration::from_millis(1));
        self.says(0, silent());
        // Somewhere else to go.
        self.tells(stamped(1, "t1"), 0, 0, vec![]);
        assert_eq!(self.job(1).attempt, Attempt(1), "something of it may be alive");
    }

    fn why(&mut self, job: u64) -> String {
        let (reply, answer) = mpsc::channel();
        self.turn(vec![Message::Why { job: JobId(job), reply }]);
        answer.recv().unwrap().waits.unwrap_or_default()
    }
}

#[test]
fn a_job_to_be_retried_goes_elsewhere_once_nothing_of_it_can_be_alive_and_no_sooner() {
    let mut master = under_a_lease(OnNodeLoss::Retry);
    master.cut_until_just_before_the_end();
    let why = master.why(1);
    assert!(why.starts_with("node 0 at 127.0.0.1:5000 has not answered since ") && why.ends_with("is tried elsewhere"));
    master.passes(Duration::from_millis(1));
    let due = master.owner().next_deadline().unwrap();
    assert!(due <= master.now.clock, "it wakes up by itself");
    let orders = master.turn(vec![]);
    assert_eq!((creates(&orders), master.job(1).placed.unwrap().node), (vec![(1, 2)], NodeId(1)));
    assert_eq!(leases(&orders)[0].as_ref().unwrap().heard.0, "t1");
    assert_eq!(master.job(1).lost_attempts, 1);
    assert_eq!(master.owner().next_deadline(), None);
}

#[test]
fn a_job_to_fail_fails_then_and_one_to_wait_stays() {
    let mut master = under_a_lease(OnNodeLoss::Fail);
    master.submit(vec![spec(64)]).0.unwrap();
    master.cut_until_just_before_the_end();
    master.passes(Duration::from_millis(1));
    master.turn(vec![]);
    assert_eq!(master.job(1).reason().as_deref(), Some("node lost"));
    assert_eq!(master.job(2).status, State::Assigned);
    assert!(master.why(2).contains("the job stays as it is until the node is back"), "{}", master.why(2));
}

#[test]
fn a_stamp_heard_meanwhile_puts_the_end_off() {
    let mut master = under_a_lease(OnNodeLoss::Retry);
    master.passes(Duration::from_secs(50));
    let orders = master.tells(stamped(0, "s3"), 2, 2, vec![]);
    assert_eq!(given_back(&orders), [Some("s3".to_owned())]);
    master.cut_until_just_before_the_end();
}

#[test]
fn a_node_that_was_only_not_asked_is_asked_before_its_jobs_are_given_up() {
    let mut master = under_a_lease(OnNodeLoss::Retry);
    // This master was stopped for an hour.
    master.passes(Duration::from_secs(3600));
    master.turn(vec![]);
    assert_eq!(master.job(1).status, State::Running);
    master.tells(stamped(0, "s3"), 2, 3, vec![said(1, 8, State::Finished)]);
    assert_eq!(master.job(1).status, State::Finished);
}

#[test]
fn a_master_that_was_started_anew_counts_from_its_start() {
    let mut master = under_a_lease(OnNodeLoss::Retry);
    master.passes(Duration::from_secs(3600));
    master.start();
    master.cut_until_just_before_the_end();
    master.passes(Duration::from_millis(1));
    assert_eq!(creates(&master.turn(vec![])), [(1, 2)]);
}

#[test]
fn a_node_that_is_lost_by_another_call_is_polled_anew_at_once_and_not_when_its_long_poll_ends() {
    let mut master = Master::new(1);
    assert_eq!(polls(&master.tells(stamped(0, "s1"), 0, 0, vec![])), [(0, true)]);
    master.passes(Duration::from_secs(30));
    let orders = master.says(0, Said::Free { answer: Err("no route".into()) });
    assert_eq!(polls(&orders), [(0, false)]);
    let orders = master.says(0, Said::Free { answer: Err("no route".into()) });
    assert_eq!(polls(&orders), [], "it is under way");
    assert_eq!(polls(&master.says(0, silent())), [(0, false)]);
}

#[test]
fn a_create_that_was_ordered_before_its_node_was_found_to_have_another_state_dir_is_not_sent() {
    let mut master = Master::new(1);
    master.tells(stamped(0, "s1"), 0, 0, vec![]);
    master.submit(vec![JobSpec { on_node_loss: OnNodeLoss::Retry, ..spec(64) }]).0.unwrap();
    master.says(0, Said::Created { tasks: vec![(JobId(1), Attempt(1))], unheard: true, answer: Err("reset".into()) });
    let wiped = NodeResource { instance: InstanceId("f".repeat(32)), ..stamped(0, "w1") };
    let events = Events { last: EventNumber(0), events: vec![], resource: wiped, remembered: None };
    let said =
        [Said::Free { answer: Ok(stamped(0, "s2")) }, Said::Events { after: EventNumber(0), answer: Ok(events) }];
    let heard = said.map(|said| Message::Heard(Box::new(Heard { node: NodeId(0), said })));
    let orders = master.turn(heard.into());
    assert!(!orders.iter().any(|order| matches!(order, Order::Create { .. })), "{orders:?}");
    assert!(master.job(1).is_abandoned(), "it may run in the other");
}

#[test]
fn a_create_with_a_stale_stamp_is_sent_again_with_a_new_one() {
    let mut master = Master::new(1);
    master.tells(stamped(0, "s1"), 0, 0, vec![]);
    master.submit(vec![JobSpec { on_node_loss: OnNodeLoss::Retry, ..spec(64) }]).0.unwrap();
    let orders = master.says(0, answer(1, 1, refused(RefusalCode::Stale)));
    assert_eq!(orders, [Order::Ask { node: NodeId(0), delay: Duration::ZERO }]);
    let orders = master.says(0, Said::Free { answer: Ok(stamped(0, "s2")) });
    assert_eq!((creates(&orders), leases(&orders)[0].as_ref().unwrap().heard.0.as_str()), (vec![(1, 1)], "s2"));
}

#[test]
fn an_older_node_that_stamps_nothing_is_trusted_with_no_lease() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    let (_, orders) = master.submit(vec![JobSpec { on_node_loss: OnNodeLoss::Retry, ..spec(64) }]);
    assert_eq!((leases(&orders), master.job(1).lease), (vec![None], None));
}

#[test]
fn an_attempt_that_was_given_up_is_killed_when_its_node_is_back_and_disturbs_nothing() {
    let mut master = under_a_lease(OnNodeLoss::Retry);
    master.cut_until_just_before_the_end();
    master.passes(Duration::from_millis(1));
    master.turn(vec![]);
    master.says(1, answer(1, 2, created(5)));
    let alive = || vec![said(1, 8, State::Running)];
    assert_eq!(polls(&master.tells(stamped(0, "s3"), 2, 2, vec![])), [(0, false)], "no event need tell of it");
    let orders = master.tells(stamped(0, "s3"), 0, 3, alive());
    assert_eq!(kills(&orders), [8]);
    assert!(kills(&master.tells(stamped(0, "s4"), 3, 3, alive())).is_empty(), "it is under way");
    master.says(0, Said::Killed { job: JobId(1), task: TaskId(8), answer: Err("reset".into()) });
    assert_eq!(kills(&master.tells(stamped(0, "s5"), 3, 3, vec![])), [8], "until it is taken");
    master.says(0, Said::Killed { job: JobId(1), task: TaskId(8), answer: Ok(Ok(())) });
    assert!(kills(&master.tells(stamped(0, "s6"), 3, 4, vec![said(1, 8, State::Killed)])).is_empty());
    assert_eq!((master.job(1).status, master.job(1).attempt), (State::Assigned, Attempt(2)));
}

#[test]
fn what_was_given_to_a_node_with_another_state_dir_now_is_tried_elsewhere_after_its_lease() {
    let mut master = under_a_lease(OnNodeLoss::Retry);
    let over = crate::lease::certainly_over(master.now.clock, LEASE) - master.now.clock;
    let wiped = || NodeResource { instance: InstanceId("f".repeat(32)), ..stamped(0, "w1") };
    master.passes(Duration::from_secs(1));
    master.tells(wiped(), 2, 0, vec![]);
    master.tells(wiped(), 0, 0, vec![]);
    assert!(master.job(1).is_abandoned() && master.why(1).contains("another state dir"), "{}", master.why(1));
    master.passes(over - Duration::from_millis(1001));
    master.tells(wiped(), 0, 0, vec![]);
    assert_eq!(master.job(1).status, State::Running);
    master.passes(Duration::from_millis(1));
    assert_eq!(creates(&master.turn(vec![])), [(1, 2)]);
}

#[test]
fn what_was_on_a_node_the_operator_removed_is_tried_elsewhere_after_its_lease() {
    let mut master = under_a_lease(OnNodeLoss::Retry);
    master.nodes.addrs.remove(0);
    master.start();
    master.tells(stamped(1, "t1"), 0, 0, vec![]);
    assert!(master.job(1).is_abandoned() && master.why(1).contains("taken out"), "{}", master.why(1));
    let due = master.owner().next_deadline().unwrap();
    assert_eq!(due, crate::lease::certainly_over(master.now.clock, LEASE));
    master.passes(due - master.now.clock);
    assert_eq!(creates(&master.turn(vec![])), [(1, 2)]);
}

#[test]
fn the_jobs_of_a_node_the_operator_removed_are_lost_with_it_and_nothing_else_is() {
    let mut master = Master::new(2);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64), spec(64), spec(64)]).0.unwrap();
    master.says(0, answer(1, 1, created(8)));
    master.tells(node(), 0, 2, vec![said(1, 8, State::Running)]);
    master.kill(1);
    master.submit(vec![spec(9999)]).0.unwrap();
    master.nodes.addrs.remove(0);
    assert_eq!(polls(&master.start()), [(0, false)], "node 1 is asked for what it has");
    for job in [1, 2, 3] {
        let job = master.job(job);
        assert_eq!(
            (job.status, job.cause, job.ended_at.is_some()),
            (State::Failed, Some(Reason::NodeLost { attempts: 1 }), true)
        );
    }
    assert_eq!(master.job(4).status, State::Pending);
    assert_eq!(master.nodes_shown().len(), 1);
}

#[test]
fn what_could_not_be_committed_never_was_and_the_next_turn_works() {
    let mut master = running();
    master.owner().store.forbid_writes(true);
    let (reply, answer) = mpsc::channel();
    let instance = master.owner().instance.clone();
    let mut ended = said(1, 8, State::Finished);
    ended.key.master = Some(instance);
    let events = Events { last: EventNumber(3), events: vec![ended], resource: node(), remembered: None };
    let heard = Heard { node: NodeId(0), said: Said::Events { after: EventNumber(2), answer: Ok(events) } };
    let orders = master.turn(vec![Message::Submit { specs: vec![spec(64)], reply }, Message::Heard(Box::new(heard))]);
    assert!(answer.recv().is_err(), "the submitter hears of an error");
    assert_eq!(polls(&orders), [(0, false)], "the node is asked to say it again");
    assert_eq!(master.job(1).status, State::Running);
    master.owner().store.forbid_writes(false);
    master.tells(node(), 0, 3, vec![said(1, 8, State::Finished)]);
    assert_eq!(master.job(1).status, State::Finished);
    assert_eq!(master.submit(vec![spec(64)]).0.unwrap()[0].id, JobId(2));
}

#[test]
fn a_node_that_was_first_heard_in_a_turn_that_was_not_kept_is_written_down_with_its_next_word() {
    let mut master = Master::new(1);
    master.owner().store.forbid_writes(true);
    assert_eq!(polls(&master.tells(node(), 0, 0, vec![])), [(0, false)]);
    assert_eq!(master.owner().store.nodes().unwrap(), []);
    master.owner().store.forbid_writes(false);
    master.tells(node(), 0, 0, vec![]);
    let (instance, boot) = (node().instance, Some(node().boot_id));
    let kept = KeptNode { id: NodeId(0), instance, boot, acknowledged: EventNumber(0) };
    assert_eq!(master.owner().store.nodes().unwrap(), [kept]);
}

#[test]
fn what_is_due_by_the_clock_and_could_not_be_committed_is_tried_again_after_a_pause() {
    let mut master = under_a_lease(OnNodeLoss::Retry);
    master.cut_until_just_before_the_end();
    master.passes(Duration::from_millis(1));
    master.owner().store.forbid_writes(true);
    for _ in 0..2 {
        assert_eq!(master.turn(vec![]), []);
        let due = master.owner().next_deadline().unwrap();
        assert_eq!(due, master.now.clock + AFTER_A_FAILED_COMMIT);
        master.passes(AFTER_A_FAILED_COMMIT);
    }
    master.owner().store.forbid_writes(false);
    assert_eq!(creates(&master.turn(vec![])), [(1, 2)], "the lease is over, and nobody else would say so");
    assert_eq!(master.owner().next_deadline(), None);
}

#[test]
fn a_roll_call_that_was_ordered_in_a_turn_that_was_not_kept_is_ordered_again() {
    let not_found = Err(Refusal::new(RefusalCode::NotFound, "no such task"));
    let unknown = Said::Killed { job: JobId(1), task: TaskId(8), answer: Ok(not_found) };
    let booted = Said::Free { answer: Ok(booted_anew(Duration::ZERO)) };
    for said in [unknown, booted] {
        let mut master = running();
        master.kill(1);
        master.owner().store.forbid_writes(true);
        let (reply, _) = mpsc::channel();
        let heard = Message::Heard(Box::new(Heard { node: NodeId(0), said }));
        let orders = master.turn(vec![Message::Submit { specs: vec![spec(64)], reply }, heard]);
        assert_eq!(polls(&orders), [(0, false)], "nothing is given to the node until it has answered one");
        master.owner().store.forbid_writes(false);
    }
}

/// The node after a boot of its machine some time ago.
fn booted_anew(ago: Duration) -> NodeResource {
    NodeResource { boot_id: BootId("another".into()), uptime_ms: u64::try_from(ago.as_millis()).ok(), ..node() }
}

#[test]
fn a_node_that_was_booted_anew_is_asked_for_all_it_has_and_what_the_power_cut_took_has_failed() {
    for restart in [false, true] {
        let mut master = running();
        master.submit(vec![spec(64)]).0.unwrap();
        master.says(0, answer(2, 1, created(9)));
        master.tells(node(), 2, 3, vec![said(2, 9, State::Assigned)]);
        master.passes(Duration::from_secs(20));
        let orders = if restart { master.start() } else { master.tells(booted_anew(LEASE), 3, 1003, vec![]) };
        assert_eq!(polls(&orders), [(0, false)], "no event tells of what was taken");
        if restart {
            assert_eq!(polls(&master.tells(booted_anew(LEASE), 0, 1003, vec![])), [(0, false)]);
        }
        let rebooted = TaskReport { cause: Some(Reason::NodeRebooted), ..said(2, 9, State::Failed) };
        assert_eq!(polls(&master.tells(booted_anew(LEASE), 0, 1004, vec![rebooted])), [(1004, true)]);
        for job in [1, 2] {
            assert_eq!(master.job(job).reason().as_deref(), Some("node rebooted"));
        }
        master.start();
        assert_eq!(polls(&master.tells(booted_anew(LEASE), 0, 1004, vec![])), [(1004, true)], "that boot is known");
    }
}

#[test]
fn a_create_of_before_the_boot_is_not_sent_again_and_one_that_cannot_have_been_taken_is_once_all_was_heard() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64), spec(64), spec(64)]).0.unwrap();
    master.passes(Duration::from_secs(20));
    let (_, orders) = master.submit(vec![spec(64)]);
    let booted = Some(BootId("boot".into()));
    assert!(matches!(&orders[..], [Order::Create { boot, .. }] if *boot == booted), "{orders:?}");
    let cut = |job, unheard| Said::Created {
        tasks: vec![(JobId(job), Attempt(1))],
        unheard,
        answer: Err("no connection, or none any more".into()),
    };
    master.says(0, cut(1, true));
    master.says(0, cut(2, false));
    let stale_connection = Said::Created {
        tasks: vec![(JobId(4), Attempt(1))],
        unheard: true,
        answer: Ok(vec![refused(RefusalCode::Stale)]),
    };
    master.says(0, stale_connection);
    let uptime = Duration::from_secs(10);
    let orders = master.says(0, Said::Free { answer: Ok(booted_anew(uptime)) });
    assert_eq!((creates(&orders), polls(&orders)), (vec![], vec![(0, false)]));
    assert_eq!(
        creates(&master.submit(vec![spec(64)]).1),
        [],
        "what is given to it now could not be told from what it lost"
    );
    let orders = master.tells(booted_anew(uptime), 0, 1000, vec![]);
    assert_eq!((creates(&orders), polls(&orders)), (vec![], vec![(0, false)]), "a create is under way");
    master.says(0, cut(3, true));
    let orders = master.tells(booted_anew(uptime), 0, 1000, vec![]);
    for job in [1, 3] {
        assert_eq!(master.job(job).reason().as_deref(), Some("node rebooted"), "it may have begun");
    }
    let mut sent = creates(&orders);
    sent.sort_unstable();
    assert_eq!(sent, [(2, 1), (4, 1), (5, 1)]);
}

#[test]
fn a_create_of_before_the_boot_is_not_sent_again_though_our_clock_slept_or_ran_slow_meanwhile() {
    let minute = Duration::from_secs(60);
    for (slept, uptime) in [(minute, minute), (Duration::ZERO, minute + minute / 8)] {
        let mut master = Master::new(1);
        master.tells(node(), 0, 0, vec![]);
        master.submit(vec![spec(64)]).0.unwrap();
        let cut = Said::Created { tasks: vec![(JobId(1), Attempt(1))], unheard: true, answer: Err("reset".into()) };
        master.says(0, cut);
        master.passes(minute - slept);
        master.now.wall += slept;
        master.says(0, Said::Free { answer: Ok(booted_anew(uptime)) });
        assert_eq!(creates(&master.tells(booted_anew(uptime), 0, 1000, vec![])), [], "it may have begun");
        assert_eq!(master.job(1).reason().as_deref(), Some("node rebooted"));
    }
}

#[test]
fn a_late_answer_to_the_roll_call_before_does_not_lose_what_was_taken_since() {
    let mut master = running();
    let (_, orders) = master.submit(vec![spec(64)]);
    assert_eq!(creates(&orders), [(2, 1)]);
    let unknown = || {
        let not_found = Err(Refusal::new(RefusalCode::NotFound, "no such task"));
        Said::Killed { job: JobId(1), task: TaskId(8), answer: Ok(not_found) }
    };
    assert_eq!(polls(&master.says(0, unknown())), [(0, false)]);
    master.says(0, answer(2, 1, created(9)));
    assert_eq!(polls(&master.says(0, unknown())), [(0, false)]);
    master.tells(node(), 0, 2, vec![]);
    assert_eq!(master.job(1).reason().as_deref(), Some("lost"));
    assert_eq!(master.job(2).status, State::Assigned, "the first answer was given before it was taken");
    master.tells(node(), 2, 3, vec![said(2, 9, State::Running)]);
    assert_eq!(master.job(2).status, State::Running);
}

#[test]
fn what_was_taken_between_two_roll_calls_and_lost_in_a_boot_is_not_waited_for() {
    let mut master = running();
    master.submit(vec![spec(64)]).0.unwrap();
    let not_found = Err(Refusal::new(RefusalCode::NotFound, "no such task"));
    master.says(0, Said::Killed { job: JobId(1), task: TaskId(8), answer: Ok(not_found) });
    master.says(0, answer(2, 1, created(9)));
    master.passes(Duration::from_secs(20));
    let booted = || booted_anew(Duration::from_secs(10));
    assert_eq!(polls(&master.says(0, Said::Free { answer: Ok(booted()) })), [(0, false)]);
    master.tells(booted(), 0, 1003, vec![]);
    for job in [1, 2] {
        assert_eq!(master.job(job).reason().as_deref(), Some("node rebooted"));
    }
}

#[test]
fn a_kill_of_a_task_that_the_node_does_not_know_asks_for_all_it_has() {
    let mut master = running();
    assert_eq!(kills(&master.kill(1).1), [8]);
    let not_found = Err(Refusal::new(RefusalCode::NotFound, "no such task"));
    let orders = master.says(0, Said::Killed { job: JobId(1), task: TaskId(8), answer: Ok(not_found) });
    assert_eq!(polls(&orders), [(0, false)]);
    let late = master.tells(node(), 2, 2, vec![]);
    assert_eq!((polls(&late), master.job(1).status), (vec![(0, false)], State::Running), "that is no answer to it");
    master.tells(node(), 0, 2, vec![]);
    assert_eq!(master.job(1).reason().as_deref(), Some("lost"));
}

/// A node that is played: it keeps its tasks over every death of the master.
struct PlayedNode {
    /// Which boot of its machine it is, and when that was.
    boot: u32,
    booted: Instant,
    now: Instant,
    next_task: u64,
    last: u64,
    /// By key: the task, its report, how often it was started.
    tasks: BTreeMap<(u64, u32), TaskReport>,
    started: BTreeMap<(u64, u32), u32>,
    /// What has ended, and the master has heard of it.
    over: BTreeSet<(u64, u32)>,
}

impl PlayedNode {
    fn stamp(&mut self, key: (u64, u32), status: State) {
        self.last += 1;
        if let Some(task) = self.tasks.get_mut(&key) {
            let mut new = report(JobId(key.0), Attempt(key.1), task.task_id, status);
            new.key.master = task.key.master.clone();
            new.event = EventNumber(self.last);
            *task = new;
        }
    }

    fn create(&mut self, request: &TaskRequest) -> Answer<Created> {
        let key = (request.job_id.unwrap().0, request.attempt.unwrap().0);
        if self.over.contains(&key) {
            return refused(RefusalCode::AlreadyRun);
        }
        if !self.tasks.contains_key(&key) {
            let busy = self.tasks.values().filter(|task| !task.status.is_final()).count();
            if busy >= 3 {
                return refused(RefusalCode::NoRoom);
            }
            self.next_task += 1;
            let mut new = report(JobId(key.0), Attempt(key.1), TaskId(self.next_task), State::Assigned);
            new.key.master.clone_from(&request.master);
            self.tasks.insert(key, new);
            *self.started.entry(key).or_default() += 1;
            self.stamp(key, State::Assigned);
        }
        created(self.tasks[&key].task_id.0)
    }

    /// One step of one task that has not ended.
    fn go_on(&mut self, how: State) {
        let next = self.tasks.iter().find(|(_, task)| !task.status.is_final()).map(|(key, task)| (*key, task.status));
        match next {
            Some((key, State::Assigned)) => self.stamp(key, State::Running),
            Some((key, _)) => self.stamp(key, how),
            None => {}
        }
    }

    /// Its machine loses its power: what it wrote last is gone with all that ran, and the numbers skip ahead.
    fn loses_power(&mut self, unsynced: u64) {
        let kept = self.last.saturating_sub(unsynced);
        self.tasks.retain(|_, task| task.event.0 <= kept);
        (self.last, self.next_task) = (self.last + 1000, self.next_task + 1000);
        let cut_off: Vec<_> =
            self.tasks.iter().filter(|(_, task)| !task.status.is_final()).map(|(key, _)| *key).collect();
        for key in cut_off {
            self.stamp(key, State::Failed);
        }
        self.boot += 1;
        self.booted = self.now;
    }

    fn events(&mut self, after: u64) -> Events {
        let is_over = |_: &(u64, u32), task: &mut TaskReport| task.status.is_final() && task.event.0 <= after;
        self.over.extend(self.tasks.extract_if(.., is_over).map(|(key, _)| key));
        let events = self.tasks.values().filter(|task| task.event.0 > after).cloned().collect();
        let busy = self.tasks.values().filter(|task| !task.status.is_final()).count() as u32;
        let free =
            NodeResource { cpu: CpuAmount::whole(4 - busy), mem: 1000 - 64 * u64::from(busy), ..self.says_of_itself() };
        Events { last: EventNumber(self.last), events, resource: free, remembered: None }
    }

    fn says_of_itself(&self) -> NodeResource {
        let uptime = self.now - self.booted;
        let boot_id = BootId(format!("boot {}", self.boot));
        NodeResource { boot_id, uptime_ms: u64::try_from(uptime.as_millis()).ok(), ..node() }
    }

    fn carry_out(&mut self, order: Order) -> Said {
        match order {
            Order::Poll { after, .. } => Said::Events { after, answer: Ok(self.events(after.0)) },
            Order::Create { tasks, boot, .. } => {
                let keys = tasks.iter().map(|task| (task.job_id.unwrap(), task.attempt.unwrap())).collect();
                let stale = boot != Some(self.says_of_itself().boot_id);
                let answer = |task| if stale { refused(RefusalCode::Stale) } else { self.create(task) };
                let answers = tasks.iter().map(answer).collect();
                Said::Created { tasks: keys, unheard: false, answer: Ok(answers) }
            }
            Order::Kill { job, task, .. } => {
                let key = self.tasks.iter().find(|(_, known)| known.task_id == task).map(|(key, _)| *key);
                let answer = match key {
                    Some(key) if !self.tasks[&key].status.is_final() => {
                        self.stamp(key, State::Killed);
                        Ok(())
                    }
                    Some(_) => Ok(()),
                    None => Err(Refusal::new(RefusalCode::NotFound, "no such task")),
                };
                Said::Killed { job, task, answer: Ok(answer) }
            }
            Order::Ask { .. } => Said::Free { answer: Ok(self.events(0).resource) },
        }
    }
}

/// What the node would have said, had the connection held.
fn cut(said: Said) -> Said {
    let cut = || "connection reset".to_owned();
    match said {
        Said::Events { after, .. } => Said::Events { after, answer: Err(cut()) },
        Said::Created { tasks, .. } => Said::Created { tasks, unheard: true, answer: Err(cut()) },
        Said::Killed { job, task, .. } => Said::Killed { job, task, answer: Err(cut()) },
        Said::Free { .. } => Said::Free { answer: Err(cut()) },
    }
}

/// What comes of an order that never reaches the node.
fn unreached(order: Order) -> Said {
    let unreached = || "no connection".to_owned();
    match order {
        Order::Poll { after, .. } => Said::Events { after, answer: Err(unreached()) },
        Order::Create { tasks, .. } => {
            let tasks = tasks.iter().map(|task| (task.job_id.unwrap(), task.attempt.unwrap())).collect();
            Said::Created { tasks, unheard: false, answer: Err(unreached()) }
        }
        Order::Kill { job, task, .. } => Said::Killed { job, task, answer: Err(unreached()) },
        Order::Ask { .. } => Said::Free { answer: Err(unreached()) },
    }
}

#[test]
fn whatever_is_cut_reordered_or_killed_every_job_ends_once_with_its_true_state() {
    for seed in 0..200_u64 {
        play(seed);
    }
}

/// Numbers that look random (Marsaglia's xorshift), the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (bound as u64)).unwrap()
    }
}

fn play(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut master = Master::new(1);
    let now = master.now.clock;
    let (tasks, started, over) = Default::default();
    let mut played = PlayedNode { boot: 0, booted: now, now, next_task: 0, last: 0, tasks, started, over };
    let mut truth: BTreeMap<u64, State> = BTreeMap::new();
    let mut cut_off: BTreeSet<u64> = BTreeSet::new();
    let mut orders = master.start();
    let mut answers: Vec<Said> = Vec::new();
    for step in 0..400 {
        let calm = step > 150;
        master.passes(Duration::from_millis(1));
        played.now = master.now.clock;
        match dice.below(if calm { 6 } else { 11 }) {
            0 | 1 if !orders.is_empty() => {
                let order = orders.swap_remove(dice.below(orders.len()));
                let said = played.carry_out(order);
                answers.push(if !calm && dice.below(5) == 0 { cut(said) } else { said });
            }
            2 | 3 if !answers.is_empty() => {
                let said = answers.swap_remove(dice.below(answers.len()));
                orders.extend(master.says(0, said));
            }
            4 | 5 => played.go_on([State::Finished, State::Failed, State::Timeout][dice.below(3)]),
            6 if step < 100 => {
                let (jobs, more) = master.submit(vec![spec(64); 1 + dice.below(3)]);
                truth.extend(jobs.unwrap().iter().map(|job| (job.id.0, State::Pending)));
                orders.extend(more);
            }
            7 if !truth.is_empty() => {
                let (_, more) = master.kill(1 + dice.below(truth.len()) as u64);
                orders.extend(more);
            }
            // The master dies: what it was about to say or to hear is gone. The node may still act on some of it.
            8 => {
                for order in orders.drain(..).filter(|order| matches!(order, Order::Create { .. })) {
                    played.carry_out(order);
                }
                answers.clear();
                orders = master.start();
            }
            // The power goes: of what was on its way the node has taken some, and none is answered.
            9 if dice.below(4) == 0 => {
                for order in orders.drain(..) {
                    answers.push(if dice.below(3) == 0 { unreached(order) } else { cut(played.carry_out(order)) });
                }
                cut_off.extend(played.started.keys().map(|(job, _)| *job));
                played.loses_power(dice.below(12) as u64);
                master.passes(Duration::from_millis(1));
            }
            _ => {}
        }
        for ((job, _), task) in played.tasks.iter().filter(|(_, task)| task.status.is_final()) {
            truth.insert(*job, task.status);
        }
        // Until it has heard all since the boot, the master does not know what may have begun before.
        if master.owner().members[&NodeId(0)].boot() != Some(&played.says_of_itself().boot_id) {
            let placed = master.owner().active.values().filter(|active| active.job.placed.is_some());
            cut_off.extend(placed.map(|active| active.job.id.0));
        }
    }
    finish(&mut master, &mut played, orders, answers, &mut truth);
    assert!(played.started.values().all(|times| *times == 1), "seed {seed}: an attempt ran twice");
    for (job, ended) in truth {
        let shown = master.job(job);
        let tasks = played.started.keys().filter(|(id, _)| *id == job).count();
        assert!(tasks <= 1, "seed {seed}: job {job} ran as {tasks} tasks");
        let ended = if tasks == 0 { State::Killed } else { ended };
        let rebooted = cut_off.contains(&job) && shown.status == State::Failed;
        assert!(shown.status == ended || rebooted, "seed {seed}: job {job} is {}, not {ended}", shown.status);
    }
}

/// From here on nothing fails: all must come to its end.
fn finish(
    master: &mut Master,
    played: &mut PlayedNode,
    mut orders: Vec<Order>,
    mut answers: Vec<Said>,
    truth: &mut BTreeMap<u64, State>,
) {
    for _ in 0..1000 {
        if master.owner().active.is_empty() {
            return;
        }
        played.go_on(State::Finished);
        for ((job, _), task) in played.tasks.iter().filter(|(_, task)| task.status.is_final()) {
            truth.insert(*job, task.status);
        }
        answers.extend(orders.drain(..).map(|order| played.carry_out(order)));
        for said in std::mem::take(&mut answers) {
            orders.extend(master.says(0, said));
        }
    }
    panic!("jobs are left: {:?}", master.owner().active.keys().collect::<Vec<_>>());
}
