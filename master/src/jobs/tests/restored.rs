//! A database that was put back from an older copy, against nodes that remember what it does not.

use wire::node::{AcknowledgedEnd, Remembered};

use super::*;
use crate::job::Placed;

impl Master {
    /// A node's answer to its roll call, with what it remembers of this master beside its tasks.
    fn answers_roll_call(&mut self, id: u32, tasks: Vec<TaskReport>, remembered: Remembered) -> Vec<Order> {
        let heard = self.roll_call_answer(resource(id, 4, 1000), tasks, remembered);
        self.turn(vec![heard])
    }

    /// The same, while the database cannot be read.
    fn answers_unchecked(&mut self, id: u32, remembered: Remembered) {
        let heard = self.roll_call_answer(resource(id, 4, 1000), vec![], remembered);
        let now = self.now;
        self.owner().turn(vec![heard], now).unwrap();
    }

    fn roll_call_answer(&mut self, said: NodeResource, tasks: Vec<TaskReport>, remembered: Remembered) -> Message {
        let instance = self.owner().instance.clone();
        let mut events = tasks;
        for report in &mut events {
            report.key.master = Some(instance.clone());
        }
        let node = said.node_id;
        let answer = Ok(Events { last: EventNumber(100), events, resource: said, remembered: Some(remembered) });
        Message::Heard(Box::new(Heard { node, said: Said::Events { after: EventNumber(0), answer } }))
    }

    /// Two nodes, and job 1 was given to node 0 as its first attempt when the database was copied.
    fn with_placed(job: JobSpec, is_numbered: bool) -> Master {
        let mut master = Master::new(2);
        master.tells(node(), 0, 0, vec![]);
        master.submit(vec![job]).0.unwrap();
        if is_numbered {
            master.says(0, answer(1, 1, created(8)));
        }
        master.tells(resource(1, 4, 1000), 0, 0, vec![]);
        master.start_gathering();
        master
    }

    /// Submits while the owner may still wait for the nodes; the answer, if there is one already.
    fn submit_early(&mut self) -> Receiver<Result<Vec<Job>, RefusedJob>> {
        let (reply, answer) = mpsc::channel();
        self.turn(vec![Message::Submit { specs: vec![spec(64)], reply }]);
        answer
    }

    /// `count` jobs wait in the database, and the master has just been started.
    fn with_waiting(nodes: u32, count: usize) -> Master {
        let mut master = Master::new(nodes);
        master.submit(vec![spec(64); count]).0.unwrap();
        master.start_gathering();
        master
    }
}

fn remembers(last_job: u64, ends: &[(u64, u64, u32)]) -> Remembered {
    let end = |&(event, job, attempt): &(u64, u64, u32)| AcknowledgedEnd {
        event: EventNumber(event),
        job_id: JobId(job),
        attempt: Attempt(attempt),
    };
    let acknowledged = ends.iter().map(end).collect();
    Remembered { last_job: JobId(last_job), unlisted_to: EventNumber(0), acknowledged, ..Remembered::default() }
}

#[test]
fn no_number_is_given_out_before_every_node_has_said_which_ones_were() {
    let mut master = Master::new(2);
    master.start_gathering();
    let answer = master.submit_early();
    master.answers_roll_call(0, vec![], remembers(0, &[]));
    assert!(answer.try_recv().is_err());
    master.answers_roll_call(1, vec![], remembers(57, &[]));
    assert_eq!(answer.try_recv().unwrap().unwrap()[0].id, JobId(1058));
    assert_eq!(master.submit(vec![spec(64)]).0.unwrap()[0].id, JobId(1059));
    master.start();
    assert_eq!(master.submit(vec![spec(64)]).0.unwrap()[0].id, JobId(1060));
}

#[test]
fn a_node_that_cannot_be_reached_holds_no_submission_and_a_silent_one_for_a_second() {
    let mut master = Master::new(1);
    master.start_gathering();
    let answer = master.submit_early();
    master.says(0, Said::Events { after: EventNumber(0), answer: Err("connection refused".into()) });
    assert_eq!(answer.try_recv().unwrap().unwrap()[0].id, JobId(1));
    master.start_gathering();
    let answer = master.submit_early();
    let deadline = master.owner().next_deadline().unwrap();
    master.now.clock = deadline;
    master.turn(vec![]);
    assert_eq!(answer.try_recv().unwrap().unwrap()[0].id, JobId(2));
}

#[test]
fn what_waited_is_placed_once_every_node_has_spoken_or_is_lost() {
    let mut master = Master::with_waiting(2, 1);
    assert_eq!(creates(&master.answers_roll_call(0, vec![], remembers(1, &[]))), []);
    let (reply, why) = mpsc::channel();
    master.turn(vec![Message::Why { job: JobId(1), reply }]);
    assert!(why.recv().unwrap().waits.unwrap().contains("node 1 has said what it runs"));
    let silent = || Said::Events { after: EventNumber(0), answer: Err("no route".into()) };
    assert_eq!(creates(&master.says(1, silent())), []);
    master.now.clock += Duration::from_secs(10);
    assert_eq!(creates(&master.says(1, silent())), [(1, 1)]);
}

#[test]
fn a_waiting_job_that_a_node_has_is_not_run_again_but_followed() {
    let mut master = Master::with_waiting(1, 3);
    let tasks = vec![
        report(JobId(1), Attempt(1), TaskId(8), State::Running),
        report(JobId(2), Attempt(2), TaskId(9), State::Finished),
    ];
    let orders = master.answers_roll_call(0, tasks, remembers(3, &[]));
    assert_eq!(creates(&orders), [(3, 1)]);
    let (first, second) = (master.job(1), master.job(2));
    assert_eq!((first.status, first.attempt), (State::Running, Attempt(1)));
    assert_eq!(first.placed, Some(Placed { node: NodeId(0), task: Some(TaskId(8)) }));
    assert_eq!((second.status, second.attempt), (State::Finished, Attempt(2)));
}

#[test]
fn a_waiting_job_whose_end_was_acknowledged_in_a_time_the_database_does_not_know_is_lost() {
    let mut master = Master::with_waiting(1, 2);
    let orders = master.answers_roll_call(0, vec![], remembers(2, &[(5, 1, 1)]));
    assert_eq!(creates(&orders), [(2, 1)]);
    assert_eq!((master.job(1).status, master.job(1).cause), (State::Failed, Some(Reason::RanUnknown)));
}

#[test]
fn a_later_attempt_that_lives_on_one_node_counts_for_more_than_an_earlier_one_that_another_has_forgotten() {
    let mut master = Master::with_waiting(2, 1);
    master.answers_roll_call(0, vec![], remembers(1, &[(5, 1, 1)]));
    let running = report(JobId(1), Attempt(2), TaskId(9), State::Running);
    assert_eq!(creates(&master.answers_roll_call(1, vec![running], remembers(1, &[]))), []);
    assert_eq!((master.job(1).status, master.job(1).attempt), (State::Running, Attempt(2)));
}

#[test]
fn a_job_whose_end_was_acknowledged_is_not_tried_again_because_its_node_was_booted_since() {
    let listed = remembers(1, &[(5, 1, 1)]);
    let unlisted = Remembered { unlisted_to: EventNumber(5), ..remembers(2, &[(6, 2, 1)]) };
    for (remembered, gathers) in [(listed.clone(), true), (listed, false), (unlisted, false)] {
        let mut master = Master::new(1);
        master.tells(node(), 0, 0, vec![]);
        master.submit(vec![JobSpec { on_node_loss: OnNodeLoss::Retry, ..spec(64) }]).0.unwrap();
        master.says(0, answer(1, 1, created(8)));
        master.tells(node(), 0, 2, vec![said(1, 8, State::Running)]);
        master.start_gathering();
        if !gathers {
            master.owner().gathering = None;
        }
        for _ in 0..2 {
            let resource = booted_anew(Duration::from_secs(60));
            let remembered = Some(remembered.clone());
            let answer = Ok(Events { last: EventNumber(1100), events: vec![], resource, remembered });
            let orders = master.says(0, Said::Events { after: EventNumber(0), answer });
            assert_eq!(creates(&orders), [], "it has run to its end");
        }
        assert_eq!((master.job(1).status, master.job(1).cause), (State::Failed, Some(Reason::Lost)));
    }
}

#[test]
fn an_acknowledgement_that_is_written_down_is_no_sign_of_an_older_copy() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 7, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.start_gathering();
    let orders = master.answers_roll_call(0, vec![], remembers(1, &[(7, 1, 1)]));
    assert_eq!(creates(&orders), [(1, 1)], "it was sent before the restart, and is sent again");
    assert_ne!(master.job(1).status, State::Failed);
}

#[test]
fn if_more_was_forgotten_than_is_listed_every_waiting_job_may_have_run() {
    let mut master = Master::with_waiting(1, 2);
    let much = Remembered { unlisted_to: EventNumber(5), ..remembers(2, &[(6, 900, 1)]) };
    assert_eq!(creates(&master.answers_roll_call(0, vec![], much)), []);
    for job in [1, 2] {
        assert_eq!(master.job(job).cause, Some(Reason::RanUnknown));
    }
    let new = master.submit(vec![spec(64)]);
    assert_eq!(creates(&new.1), [(1003, 1)], "a new job has not run");
}

#[test]
fn a_node_that_is_back_with_an_old_disk_is_no_sign_of_an_older_copy() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.tells(node(), 0, 3, vec![report(JobId(1), Attempt(1), TaskId(8), State::Finished)]);
    let full = NodeResource { instance: InstanceId("a new disk".into()), mem: 0, ..node() };
    master.tells(full, 0, 1, vec![]);
    assert_eq!(creates(&master.submit(vec![spec(64)]).1), []);
    master.start_gathering();
    let old = Remembered { unlisted_to: EventNumber(2), ..remembers(1, &[(3, 1, 1)]) };
    master.answers_roll_call(0, vec![], old);
    assert_eq!((master.job(1).status, master.job(2).status), (State::Finished, State::Assigned));
    assert_eq!(master.submit(vec![spec(64)]).0.unwrap()[0].id, JobId(3));
}

#[test]
fn a_create_without_an_answer_is_not_repeated_where_more_was_forgotten_than_is_listed() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    assert_eq!(creates(&master.submit(vec![spec(64)]).1), [(1, 1)]);
    master.start_gathering();
    let much = Remembered { unlisted_to: EventNumber(5), ..remembers(1, &[(6, 900, 1)]) };
    assert_eq!(creates(&master.answers_roll_call(0, vec![], much)), []);
    assert_eq!(master.job(1).cause, Some(Reason::RanUnknown));
}

#[test]
fn a_new_job_with_the_number_of_a_forgotten_one_never_passes_for_it() {
    let mut master = Master::new(2);
    master.start_gathering();
    // Node 1, which knows of the other job 1, is away.
    master.says(1, Said::Events { after: EventNumber(0), answer: Err("connection refused".into()) });
    let answer = master.submit_early();
    master.answers_roll_call(0, vec![], remembers(0, &[]));
    assert_eq!(answer.try_recv().unwrap().unwrap()[0].id, JobId(1));
    let placed = master.job(1);
    assert_eq!(placed.placed.unwrap().node, NodeId(0));
    let old = vec![report(JobId(1), Attempt(1), TaskId(9), State::Running)];
    master.answers_roll_call(1, old, remembers(1, &[]));
    assert_eq!(master.job(1), placed);
    let notes = master.nodes_shown().remove(1).notes;
    assert!(notes[0].contains("does not know (job 1 as task 9)"), "{notes:?}");
    // Sent back, it is never given to node 1 under the attempt that is there.
    let again = master.says(0, answer_no_room());
    assert!(!creates(&again).contains(&(1, 1)), "{again:?}");
}

fn answer_no_room() -> Said {
    answer(1, 1, refused(RefusalCode::NoRoom))
}

#[test]
fn tasks_that_are_nobodys_here_are_told_by_whose_they_are() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    let ours = report(JobId(1), Attempt(1), TaskId(1), State::Running);
    let unknown = report(JobId(57), Attempt(1), TaskId(2), State::Running);
    master.tells(node(), 0, 3, vec![ours, unknown]);
    let another = report(JobId(1), Attempt(1), TaskId(3), State::Running);
    let events = Events { last: EventNumber(4), events: vec![another], resource: node(), remembered: None };
    master.says(0, Said::Events { after: EventNumber(3), answer: Ok(events) });
    let notes = master.nodes_shown().remove(0).notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("its database does not know (job 57 as task 2)"), "{notes:?}");
    assert!(notes[1].contains("of another master (job 1 as task 3)"), "{notes:?}");
    let over = report(JobId(57), Attempt(1), TaskId(2), State::Finished);
    master.tells(node(), 4, 5, vec![over]);
    assert_eq!(master.nodes_shown().remove(0).notes.len(), 1);
}

#[test]
fn a_disk_that_is_full_when_all_were_heard_is_tried_again_after_a_pause() {
    let mut master = Master::with_waiting(2, 1);
    master.answers_roll_call(0, vec![], remembers(1, &[]));
    master.now.clock += Duration::from_secs(11);
    master.owner().store.forbid_writes(true);
    assert_eq!(creates(&master.turn(vec![])), []);
    assert!(master.owner().next_deadline().unwrap() > master.now.clock);
    master.owner().store.forbid_writes(false);
    master.now.clock += AFTER_A_FAILED_COMMIT;
    assert_eq!(creates(&master.turn(vec![])), [(1, 1)]);
}

#[test]
fn a_turn_that_could_not_be_kept_is_gathered_again() {
    let mut master = Master::with_waiting(1, 1);
    master.owner().store.forbid_writes(true);
    let now = master.now;
    let said = Said::Events {
        after: EventNumber(0),
        answer: Ok(Events {
            last: EventNumber(9),
            events: vec![],
            resource: node(),
            remembered: Some(remembers(1, &[(5, 1, 1)])),
        }),
    };
    master.owner().turn(vec![Message::Heard(Box::new(Heard { node: NodeId(0), said }))], now).unwrap();
    master.owner().store.forbid_writes(false);
    assert!(master.owner().holds_placements());
    master.answers_roll_call(0, vec![], remembers(1, &[(5, 1, 1)]));
    assert_eq!(master.job(1).cause, Some(Reason::RanUnknown));
}

/// A job that is tried again when its node is lost.
fn retried() -> JobSpec {
    JobSpec { on_node_loss: OnNodeLoss::Retry, ..spec(64) }
}

/// What the node has that ran the second attempt of job 1: the task, or only the memory of its end.
fn second_attempts() -> [(Vec<TaskReport>, Remembered); 2] {
    let lives = report(JobId(1), Attempt(2), TaskId(9), State::Running);
    [(vec![lives], remembers(1, &[])), (vec![], remembers(1, &[(5, 1, 2)]))]
}

#[test]
fn a_job_that_moved_on_since_the_copy_is_not_run_again_whoever_of_its_nodes_answers_first() {
    for is_numbered in [false, true] {
        for (tasks, remembered) in second_attempts() {
            for (first_speaks_first, in_one_batch) in [(true, false), (false, false), (true, true), (false, true)] {
                let case = format!("{is_numbered} {} {first_speaks_first} {in_one_batch}", tasks.len());
                let mut master = Master::with_placed(retried(), is_numbered);
                let first = master.roll_call_answer(node(), vec![], remembers(1, &[]));
                let second = master.roll_call_answer(resource(1, 4, 1000), tasks.clone(), remembered.clone());
                let said = if first_speaks_first { vec![first, second] } else { vec![second, first] };
                let batches = if in_one_batch { vec![said] } else { said.into_iter().map(|one| vec![one]).collect() };
                let mut orders: Vec<Order> = batches.into_iter().flat_map(|batch| master.turn(batch)).collect();
                orders.extend(master.says(0, Said::Free { answer: Ok(node()) }));
                orders.extend(master.tells(node(), 100, 100, vec![]));
                assert_eq!(creates(&orders), [], "{case}");
                let job = master.job(1);
                if tasks.is_empty() {
                    let known = matches!(job.cause, Some(Reason::RanUnknown | Reason::Lost));
                    assert!(job.status == State::Failed && known, "{case}: {job:?}");
                } else {
                    let placed = Some(Placed { node: NodeId(1), task: Some(TaskId(9)) });
                    let true_one = (State::Running, Attempt(2), placed);
                    assert_eq!((job.status, job.attempt, job.placed), true_one, "{case}");
                }
            }
        }
    }
}

#[test]
fn what_no_other_node_has_is_sent_again_or_lost_once_all_were_heard() {
    for is_numbered in [false, true] {
        let mut master = Master::with_placed(spec(64), is_numbered);
        assert_eq!(creates(&master.answers_roll_call(0, vec![], remembers(1, &[]))), []);
        assert_eq!(master.job(1).status, State::Assigned);
        let orders = master.answers_roll_call(1, vec![], remembers(1, &[]));
        assert_eq!(creates(&orders), if is_numbered { vec![] } else { vec![(1, 1)] });
        let lost = is_numbered.then_some(Reason::Lost);
        assert_eq!(master.job(1).cause, lost);
    }
}

#[test]
fn a_job_that_a_boot_sent_back_is_not_tried_again_where_another_node_ran_it_since() {
    for is_numbered in [false, true] {
        for (tasks, remembered) in second_attempts() {
            for first_speaks_first in [true, false] {
                let mut master = Master::with_placed(retried(), is_numbered);
                let booted = || booted_anew(Duration::from_secs(60));
                let first = |master: &mut Master| {
                    let mut orders = Vec::new();
                    for _ in 0..2 {
                        let answer = master.roll_call_answer(booted(), vec![], remembers(1, &[]));
                        orders.extend(master.turn(vec![answer]));
                    }
                    orders
                };
                let mut orders = if first_speaks_first { first(&mut master) } else { vec![] };
                orders.extend(master.answers_roll_call(1, tasks.clone(), remembered.clone()));
                if !first_speaks_first {
                    orders.extend(first(&mut master));
                }
                assert_eq!(creates(&orders), []);
                let job = master.job(1);
                let told = (job.status, job.attempt);
                let followed = (State::Running, Attempt(2));
                assert_eq!(told, if tasks.is_empty() { (State::Failed, Attempt(1)) } else { followed });
            }
        }
    }
}

#[test]
fn a_job_that_its_node_sends_back_while_the_others_are_asked_is_not_tried_again_before_they_have_answered() {
    let rebooted = TaskReport { cause: Some(Reason::NodeRebooted), ..said(1, 8, State::Failed) };
    for (tasks, remembered) in second_attempts() {
        let mut master = Master::with_placed(retried(), true);
        let mut orders = master.answers_roll_call(0, vec![rebooted.clone()], remembers(1, &[]));
        assert_eq!(master.job(1).status, State::Pending);
        orders.extend(master.answers_roll_call(1, tasks, remembered));
        assert_eq!(creates(&orders), []);
        assert_ne!(master.job(1).status, State::Pending);
    }
}

#[test]
fn a_job_on_a_silent_node_is_not_tried_again_after_its_lease_where_a_later_attempt_has_run() {
    let unlisted = Remembered { unlisted_to: EventNumber(5), ..remembers(2, &[(6, 900, 1)]) };
    for remembered in [remembers(1, &[(5, 1, 2)]), unlisted] {
        let mut master = under_a_lease(OnNodeLoss::Retry);
        master.start_gathering();
        let silent = || Said::Events { after: EventNumber(0), answer: Err("no route".into()) };
        master.says(0, silent());
        master.answers_roll_call(1, vec![], remembered);
        master.passes(Duration::from_secs(10));
        let mut orders = master.says(0, silent());
        assert_eq!((master.job(1).status, master.job(1).cause), (State::Failed, Some(Reason::RanUnknown)));
        master.passes(10 * LEASE);
        orders.extend(master.turn(vec![]));
        assert_eq!(creates(&orders), []);
    }
}

#[test]
fn a_job_on_a_silent_node_that_is_never_tried_elsewhere_waits_for_that_node() {
    let unlisted = Remembered { unlisted_to: EventNumber(5), ..remembers(2, &[(6, 900, 1)]) };
    for remembered in [remembers(1, &[(5, 1, 2)]), unlisted] {
        let mut master = Master::with_placed(spec(64), true);
        master.answers_roll_call(1, vec![], remembered);
        master.waits_no_more();
        master.turn(vec![]);
        assert_eq!((master.job(1).status, master.job(1).attempt), (State::Assigned, Attempt(1)));
    }
}

#[test]
fn a_job_whose_node_tells_that_it_lives_has_no_later_attempt_that_ended() {
    let unlisted = Remembered { unlisted_to: EventNumber(5), ..remembers(2, &[(6, 900, 1)]) };
    for remembered in [remembers(1, &[(5, 1, 2)]), unlisted] {
        for first_speaks_first in [true, false] {
            let mut master = Master::with_placed(retried(), true);
            let lives = || vec![said(1, 8, State::Running)];
            if first_speaks_first {
                master.answers_roll_call(0, lives(), remembers(1, &[]));
            }
            master.answers_roll_call(1, vec![], remembered.clone());
            if !first_speaks_first {
                master.answers_roll_call(0, lives(), remembers(1, &[]));
            }
            assert_eq!((master.job(1).status, master.job(1).attempt), (State::Running, Attempt(1)));
        }
    }
}

#[test]
fn a_node_that_is_back_late_and_has_forgotten_much_still_has_what_it_tells_of() {
    let mut master = Master::with_placed(retried(), true);
    master.waits_no_more();
    master.turn(vec![]);
    let unlisted = Remembered { unlisted_to: EventNumber(5), ..remembers(2, &[(6, 900, 1)]) };
    master.answers_roll_call(0, vec![said(1, 8, State::Running)], unlisted);
    assert_eq!((master.job(1).status, master.job(1).attempt), (State::Running, Attempt(1)));
}

#[test]
fn a_lease_that_is_over_before_all_were_heard_gives_nothing_up_until_then() {
    let mut master = under_a_lease(OnNodeLoss::Fail);
    master.nodes.addrs.push((NodeId(2), "127.0.0.1:5002".into()));
    master.nodes.time_out = 4 * LEASE;
    master.nodes.addrs.remove(0);
    master.start_gathering();
    master.answers_roll_call(1, vec![], remembers(1, &[]));
    let over = crate::lease::certainly_over(master.now.clock, LEASE) - master.now.clock;
    master.passes(over);
    master.turn(vec![]);
    assert_eq!(master.job(1).status, State::Running);
    assert!(master.owner().next_deadline().unwrap() > master.now.clock);
    let lives = report(JobId(1), Attempt(2), TaskId(9), State::Running);
    master.answers_roll_call(2, vec![lives], remembers(1, &[]));
    assert_eq!((master.job(1).status, master.job(1).attempt), (State::Running, Attempt(2)));
}

#[test]
fn the_jobs_of_a_removed_node_are_lost_with_it_unless_a_node_has_a_later_attempt() {
    for moved_on in [false, true] {
        let mut master = Master::with_placed(spec(64), false);
        master.nodes.addrs.remove(0);
        master.start_gathering();
        assert_eq!(master.job(1).status, State::Assigned);
        let lives = report(JobId(1), Attempt(2), TaskId(9), State::Running);
        master.answers_roll_call(1, if moved_on { vec![lives] } else { vec![] }, remembers(1, &[]));
        assert_eq!(master.job(1).status, if moved_on { State::Running } else { State::Failed });
    }
}

#[test]
fn what_a_node_said_is_heard_again_after_a_death_before_all_were_heard() {
    let mut master = Master::with_waiting(2, 1);
    for _ in 0..2 {
        master.answers_roll_call(0, vec![], remembers(1, &[(5, 1, 1)]));
        master.start_gathering();
    }
    master.answers_roll_call(0, vec![], remembers(1, &[(5, 1, 1)]));
    assert_eq!(creates(&master.answers_roll_call(1, vec![], remembers(1, &[]))), []);
    assert_eq!(master.job(1).cause, Some(Reason::RanUnknown));
    // The same of what a boot took and of another state dir.
    let wiped = NodeResource { instance: InstanceId("f".repeat(32)), ..node() };
    for (said, cause) in [(booted_anew(LEASE), Reason::NodeRebooted), (wiped, Reason::Lost)] {
        let mut master = Master::with_placed(spec(64), false);
        let hear = |master: &mut Master| {
            for _ in 0..2 {
                let answer = master.roll_call_answer(said.clone(), vec![], remembers(1, &[]));
                master.turn(vec![answer]);
            }
        };
        hear(&mut master);
        master.start_gathering();
        hear(&mut master);
        assert_eq!(creates(&master.answers_roll_call(1, vec![], remembers(1, &[]))), []);
        assert_eq!(master.job(1).cause, Some(cause));
        let known = master.owner().members[&NodeId(0)].kept();
        assert_eq!(master.owner().store.nodes().unwrap().first().cloned(), known, "now it is written down");
        master.start();
        assert_eq!(creates(&master.tells(said.clone(), 0, 100, vec![])), []);
    }
}

#[test]
fn a_node_that_was_once_told_of_an_absurd_number_is_still_believed_on_the_ends_it_was_told_of() {
    let mut master = Master::with_waiting(1, 2);
    let orders = master.answers_roll_call(0, vec![], remembers(u64::MAX, &[(5, 1, 1)]));
    assert_eq!(creates(&orders), [(2, 1)]);
    assert_eq!(master.job(1).cause, Some(Reason::RanUnknown));
    assert_eq!(master.submit(vec![spec(64)]).0.unwrap()[0].id, JobId(1003));
}

#[test]
fn a_database_that_cannot_be_read_for_once_is_not_taken_for_an_older_copy() {
    let mut master = Master::new(1);
    master.tells(node(), 0, 0, vec![]);
    master.submit(vec![spec(64)]).0.unwrap();
    master.says(0, answer(1, 1, created(8)));
    master.tells(node(), 0, 1, vec![said(1, 8, State::Finished)]);
    master.start_gathering();
    master.owner().store.forbid_reads(true);
    master.answers_unchecked(0, remembers(1, &[(2, 1, 1)]));
    master.owner().store.forbid_reads(false);
    assert!(!master.owner().is_older);
    assert_eq!(master.submit(vec![spec(64)]).0.unwrap()[0].id, JobId(2));
}

#[test]
fn what_a_node_has_lost_is_not_killed_there_while_others_may_have_it() {
    let wiped = NodeResource { instance: InstanceId("f".repeat(32)), ..node() };
    let cases = [wiped, node()].into_iter().flat_map(|said| (0..3).map(move |asked| (said.clone(), asked)));
    for (said, asked) in cases {
        let mut master = Master::with_placed(spec(64), true);
        if asked == 0 {
            master.kill(1);
            master.start_gathering();
        }
        // It has not said yet that it has lost it.
        let mut orders = if asked == 1 { master.kill(1).1 } else { vec![] };
        let answer = master.roll_call_answer(said.clone(), vec![], remembers(1, &[]));
        orders.extend(master.turn(vec![answer]));
        if asked == 2 {
            orders.extend(master.kill(1).1);
        }
        orders.extend(master.tells(said, 100, 100, vec![]));
        assert!(kills(&orders).is_empty(), "asked: {asked}");
        assert_eq!(master.job(1).status, State::Assigned);
        let orders = master.answers_roll_call(1, vec![], remembers(1, &[]));
        assert_eq!((kills(&orders), master.job(1).cause), (vec![], Some(Reason::Lost)));
    }
}

#[test]
fn a_kill_goes_where_the_job_was_found_though_another_node_has_lost_it() {
    for (lost_first, asked_before) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut master = Master::with_placed(retried(), true);
        if asked_before {
            master.kill(1);
        }
        // One that is not heard.
        master.nodes.addrs.push((NodeId(2), "127.0.0.1:5002".into()));
        master.start_gathering();
        let mut orders = if lost_first { master.answers_roll_call(0, vec![], remembers(1, &[])) } else { vec![] };
        let lives = vec![report(JobId(1), Attempt(2), TaskId(9), State::Running)];
        orders.extend(master.answers_roll_call(1, lives, remembers(1, &[])));
        if !lost_first {
            orders.extend(master.answers_roll_call(0, vec![], remembers(1, &[])));
        }
        if !asked_before {
            orders.extend(master.kill(1).1);
        }
        let killed = |order: &Order| matches!(order, Order::Kill { node: NodeId(1), task: TaskId(9), .. });
        assert_eq!((kills(&orders).len(), orders.iter().filter(|order| killed(order)).count()), (1, 1));
    }
}

#[test]
fn what_was_found_as_a_later_attempt_where_an_earlier_one_was_lost_stays() {
    let mut master = Master::with_placed(spec(64), true);
    let wiped = || NodeResource { instance: InstanceId("f".repeat(32)), ..node() };
    let lives = report(JobId(1), Attempt(2), TaskId(9), State::Running);
    let answer = master.roll_call_answer(wiped(), vec![lives], remembers(1, &[]));
    master.turn(vec![answer]);
    master.answers_roll_call(1, vec![], remembers(1, &[]));
    assert_eq!((master.job(1).status, master.job(1).attempt), (State::Running, Attempt(2)));
}

#[test]
fn what_was_found_elsewhere_and_is_lost_there_before_all_were_heard_is_lost() {
    let mut master = Master::with_placed(retried(), true);
    master.nodes.addrs.push((NodeId(2), "127.0.0.1:5002".into()));
    master.start_gathering();
    master.answers_roll_call(0, vec![], remembers(1, &[]));
    let lives = report(JobId(1), Attempt(2), TaskId(9), State::Running);
    master.answers_roll_call(1, vec![lives], remembers(1, &[]));
    let wiped = NodeResource { instance: InstanceId("f".repeat(32)), ..resource(1, 4, 1000) };
    let answer = master.roll_call_answer(wiped, vec![], remembers(1, &[]));
    master.turn(vec![answer]);
    assert_eq!(master.job(1).status, State::Running);
    master.answers_roll_call(2, vec![], remembers(1, &[]));
    assert_eq!((master.job(1).status, master.job(1).cause), (State::Failed, Some(Reason::Lost)));
}

#[test]
fn a_node_that_has_told_and_is_asked_anew_still_has_what_it_told_of() {
    let mut master = Master::with_placed(retried(), true);
    master.answers_roll_call(0, vec![said(1, 8, State::Running)], remembers(1, &[]));
    master.waits_no_more();
    master.turn(vec![]);
    let silent = || Said::Events { after: EventNumber(0), answer: Err("no route".into()) };
    master.says(0, silent());
    master.now.clock += Duration::from_secs(10);
    master.says(0, silent());
    let orders = master.tells(node(), 100, 100, vec![]);
    assert_eq!(polls(&orders), [(0, false)], "back from being lost, it is asked for all it has");
    let unlisted = Remembered { unlisted_to: EventNumber(5), ..remembers(2, &[(6, 900, 1)]) };
    master.answers_roll_call(1, vec![], unlisted);
    assert_eq!((master.job(1).status, master.job(1).attempt), (State::Running, Attempt(1)));
}

#[test]
fn what_a_node_has_told_of_is_not_forgotten_in_a_turn_of_anothers_that_is_not_kept() {
    let mut master = Master::with_placed(retried(), true);
    master.answers_roll_call(0, vec![said(1, 8, State::Running)], remembers(1, &[]));
    let unlisted = || Remembered { unlisted_to: EventNumber(5), ..remembers(2, &[(6, 900, 1)]) };
    master.owner().store.forbid_writes(true);
    master.answers_unchecked(1, unlisted());
    master.owner().store.forbid_writes(false);
    master.answers_roll_call(1, vec![], unlisted());
    assert_eq!((master.job(1).status, master.job(1).attempt), (State::Running, Attempt(1)));
}

#[test]
fn a_loss_counts_if_the_later_attempt_was_found_in_a_turn_that_was_not_kept() {
    let mut master = Master::with_placed(retried(), true);
    master.answers_roll_call(0, vec![], remembers(1, &[]));
    let lives = report(JobId(1), Attempt(2), TaskId(9), State::Running);
    let found = master.roll_call_answer(resource(1, 4, 1000), vec![lives], remembers(1, &[]));
    master.owner().store.forbid_writes(true);
    let now = master.now;
    master.owner().turn(vec![found], now).unwrap();
    master.owner().store.forbid_writes(false);
    master.waits_no_more();
    master.turn(vec![]);
    assert_eq!((master.job(1).status, master.job(1).cause), (State::Failed, Some(Reason::Lost)));
}

#[test]
fn a_waiting_job_that_is_killed_before_all_were_heard_is_killed_where_it_runs() {
    let mut master = Master::with_waiting(2, 2);
    master.answers_roll_call(0, vec![], remembers(2, &[]));
    for job in [1, 2] {
        assert_eq!(master.kill(job).0.unwrap().status, State::Pending);
    }
    // What was asked for is kept.
    master.start_gathering();
    master.answers_roll_call(0, vec![], remembers(2, &[]));
    let lives = report(JobId(1), Attempt(1), TaskId(8), State::Running);
    let orders = master.answers_roll_call(1, vec![lives], remembers(2, &[]));
    assert_eq!((kills(&orders), creates(&orders)), (vec![8], vec![]));
    assert_eq!((master.job(1).status, master.job(2).status), (State::Running, State::Killed));
}

#[test]
fn a_waiting_job_that_was_killed_before_all_were_heard_is_killed_where_there_are_no_nodes_any_more() {
    let mut master = Master::with_waiting(1, 1);
    assert_eq!(master.kill(1).0.unwrap().status, State::Pending);
    master.nodes.addrs.clear();
    master.start_gathering();
    assert_eq!(master.job(1).status, State::Killed);
}

#[test]
fn a_time_out_shorter_than_submissions_are_held_drops_none() {
    let mut master = Master::new(1);
    master.nodes.time_out = Duration::from_millis(100);
    master.start_gathering();
    let answer = master.submit_early();
    master.now.clock += Duration::from_millis(100);
    master.turn(vec![]);
    assert_eq!(answer.try_recv().unwrap().unwrap()[0].id, JobId(1));
}
