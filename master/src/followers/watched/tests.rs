use jiff::Timestamp;
use wire::{NodeId, TaskId};

use super::*;
use crate::job::Placed;

const NODE: NodeId = NodeId(3);
const TASK: TaskId = TaskId(9);
const STDOUT: LogOf = LogOf { node: NODE, task: TASK, log: Log::Stdout };

fn job(status: State, attempt: u32, task: Option<TaskId>) -> Job {
    let placed = (attempt > 0).then_some(Placed { node: NODE, task });
    let job = Job::submitted(JobId(1), crate::job::tests::spec(), Timestamp::UNIX_EPOCH);
    Job { status, attempt: Attempt(attempt), placed, ..job }
}

fn running() -> Job {
    job(State::Running, 1, Some(TASK))
}

fn ended() -> Job {
    job(State::Finished, 1, Some(TASK))
}

fn found(bytes: &str, total: u64) -> Result<Piece, LogError> {
    Ok(Piece { bytes: bytes.as_bytes().to_vec(), total })
}

/// A log, its file, and a clock.
struct Scene {
    watched: Watched<u32>,
    now: Instant,
}

impl Scene {
    fn of(job: &Job) -> Scene {
        let now = Instant::now();
        Scene { watched: Watched::new(job, Log::Stdout, now), now }
    }

    fn join(&mut self, client: u32, at: u64) {
        self.watched.join(client, at, self.now);
    }

    fn heard(&mut self, job: &Job) {
        self.watched.heard(job, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// How long until it wants to be looked at.
    fn due(&self) -> Option<Duration> {
        self.watched.due(self.now).map(|due| due.saturating_duration_since(self.now))
    }

    /// The look that is due now.
    fn look(&mut self) -> Look {
        assert_eq!(self.due(), Some(Duration::ZERO));
        self.watched.look(self.now).unwrap()
    }

    /// What follows from the look that is due, if it finds this.
    fn find(&mut self, result: Result<Piece, LogError>) -> Vec<Deed<u32>> {
        let look = self.look();
        self.finish(look, result)
    }

    fn finish(&mut self, look: Look, result: Result<Piece, LogError>) -> Vec<Deed<u32>> {
        let mut deeds = self.watched.looked(look, result, self.now, self.now);
        deeds.extend(self.watched.dismiss(self.now));
        deeds
    }
}

fn send(client: u32, bytes: &str, skipped: usize) -> Deed<u32> {
    Deed::Send(client, Arc::new(bytes.as_bytes().to_vec()), skipped)
}

#[test]
fn a_job_without_a_node_is_not_looked_at_and_ends_its_followers_with_it() {
    let mut scene = Scene::of(&job(State::Pending, 0, None));
    scene.join(1, 0);
    assert_eq!(scene.due(), None);
    scene.heard(&job(State::Killed, 0, None));
    assert_eq!((scene.due(), scene.watched.dismiss(scene.now)), (None, vec![Deed::End(1)]));
    assert!(scene.watched.is_deserted());
}

#[test]
fn what_lies_under_its_number_before_it_runs_is_somebody_elses() {
    let mut scene = Scene::of(&job(State::Assigned, 1, Some(TASK)));
    scene.join(1, 0);
    assert_eq!(scene.due(), None);
    scene.heard(&running());
    assert_eq!(scene.look(), Look { log: STDOUT, from: 0, whence: Whence::Anywhere, certain: false });
    let mut monitor = Watched::new(&job(State::Assigned, 1, Some(TASK)), Log::Monitor, scene.now);
    monitor.join(1, 0, scene.now);
    assert_eq!(monitor.due(scene.now), Some(scene.now), "what its init did is there before it runs");
}

#[test]
fn one_look_serves_all_who_wait_for_the_same_bytes() {
    let mut scene = Scene::of(&running());
    for (client, at) in [(1, 0), (2, 2), (3, 0), (4, 4)] {
        scene.join(client, at);
    }
    assert_eq!(scene.find(found("abcd", 4)), [send(1, "abcd", 0), send(2, "abcd", 2), send(3, "abcd", 0)]);
    assert_eq!(scene.due(), Some(Duration::from_millis(50)));
}

#[test]
fn who_has_no_room_waits_and_holds_up_nobody() {
    let mut scene = Scene::of(&running());
    scene.join(1, 0);
    scene.join(2, 0);
    scene.find(found("ab", 2));
    assert_eq!(scene.due(), None, "nobody could take anything");
    scene.watched.ready(2);
    scene.pass(Duration::from_secs(1));
    assert_eq!(scene.find(found("c", 3)), [send(2, "c", 0)]);
    scene.watched.ready(1);
    assert_eq!(scene.look().from, 2, "it goes on where it was, at once");
}

#[test]
fn who_reads_much_and_who_waits_for_the_end_take_turns() {
    let mut scene = Scene::of(&running());
    scene.join(1, 0);
    scene.join(2, 0);
    scene.watched.leave(2);
    scene.join(3, 5);
    assert_eq!(scene.find(found("a", 9)), [send(1, "a", 0)]);
    scene.watched.ready(1);
    let look = scene.look();
    assert_eq!(look.from, 5, "it was not served yet");
    assert_eq!(scene.finish(look, found("f", 9)), [send(3, "f", 0)]);
    assert_eq!(scene.look().from, 1);
}

#[test]
fn an_end_is_said_once_a_look_begun_after_it_found_nothing_more() {
    let mut scene = Scene::of(&running());
    scene.join(1, 0);
    let before = scene.look();
    scene.heard(&ended());
    assert_eq!(scene.due(), None, "one look at a time");
    assert_eq!(scene.finish(before, found("a", 1)), [send(1, "a", 0)], "it began before the end: there may be more");
    scene.watched.ready(1);
    let after = scene.look();
    assert_eq!((after.from, after.whence), (1, Whence::Node));
    assert_eq!(scene.finish(after, found("b", 2)), [send(1, "b", 0)]);
    scene.watched.ready(1);
    assert_eq!((scene.due(), scene.watched.dismiss(scene.now)), (None, vec![Deed::End(1)]));
}

#[test]
fn a_slow_reader_gets_the_rest_after_the_end_and_its_end_then() {
    let mut scene = Scene::of(&ended());
    scene.join(1, 0);
    assert_eq!(scene.find(found("ab", 4)), [send(1, "ab", 0)]);
    scene.watched.ready(1);
    assert_eq!(scene.find(found("cd", 4)), [send(1, "cd", 0)]);
    assert!(scene.watched.dismiss(scene.now).is_empty(), "it has not got it yet");
    scene.watched.ready(1);
    assert_eq!(scene.watched.dismiss(scene.now), [Deed::End(1)]);
}

#[test]
fn what_a_share_shows_is_taken_for_all_only_a_while_after_the_end() {
    let mut scene = Scene::of(&ended());
    scene.join(1, 0);
    assert!(scene.find(Err(LogError::Unreadable("node 3 is down".into()))).is_empty());
    let share = scene.look();
    assert_eq!(share.whence, Whence::Anywhere);
    assert!(scene.finish(share, found("", 0)).is_empty());
    assert_eq!(scene.due(), Some(SETTLED));
    scene.pass(SETTLED);
    assert_eq!(scene.find(found("a", 1)), [send(1, "a", 0)]);
    scene.watched.ready(1);
    assert_eq!(scene.watched.dismiss(scene.now), [Deed::End(1)]);
}

#[test]
fn a_rest_that_cannot_be_had_is_cut_off_and_never_an_end() {
    let mut scene = Scene::of(&ended());
    scene.join(1, 0);
    let mut deeds = scene.find(Err(LogError::TooSlow));
    while deeds.is_empty() {
        let due = scene.due().expect("it gave up without a word");
        scene.pass(due);
        deeds = scene.find(Err(LogError::TooSlow));
    }
    assert_eq!(deeds, [Deed::Cut(1, LogError::TooSlow.to_string())]);
}

#[test]
fn a_log_that_never_was_ends_and_one_that_is_gone_is_cut() {
    let mut scene = Scene::of(&ended());
    scene.join(1, 0);
    scene.find(Err(LogError::Missing));
    scene.pass(SETTLED);
    assert_eq!(scene.find(Err(LogError::Missing)), [Deed::End(1)]);
    let mut scene = Scene::of(&running());
    scene.join(1, 0);
    scene.find(found("ab", 4));
    scene.heard(&ended());
    scene.watched.ready(1);
    scene.find(Err(LogError::Missing));
    scene.pass(SETTLED);
    assert!(matches!(scene.find(Err(LogError::Missing))[..], [Deed::Cut(1, _)]));
}

#[test]
fn another_attempt_is_another_log() {
    let mut scene = Scene::of(&running());
    scene.join(1, 0);
    scene.find(found("ab", 2));
    scene.watched.ready(1);
    let again = job(State::Assigned, 2, None);
    assert!(!scene.watched.is(&again, Log::Stdout));
    scene.heard(&again);
    let last = scene.look();
    assert_eq!((last.log, last.from, last.whence), (STDOUT, 2, Whence::Node), "the rest of the attempt it followed");
    assert_eq!(scene.finish(last, found("", 2)), [Deed::End(1)]);
}

#[test]
fn who_follows_a_job_before_it_was_placed_follows_the_first_attempt_that_has_a_log() {
    let mut scene = Scene::of(&job(State::Assigned, 1, None));
    scene.join(1, 0);
    // The node had no room after all.
    scene.heard(&job(State::Assigned, 2, None));
    scene.heard(&job(State::Running, 2, Some(TASK)));
    assert_eq!(scene.look().log, STDOUT);
}

#[test]
fn a_log_cut_to_its_cap_ends_and_one_written_anew_is_cut_off() {
    let mut scene = Scene::of(&running());
    scene.join(1, 0);
    scene.find(found("abcd", 4));
    scene.watched.ready(1);
    scene.pass(Duration::from_secs(1));
    assert!(scene.find(found("", 2)).is_empty());
    scene.heard(&ended());
    assert_eq!(scene.find(found("", 2)), [Deed::End(1)]);

    let mut scene = Scene::of(&running());
    scene.join(1, 0);
    scene.find(found("abcd", 4));
    scene.watched.ready(1);
    scene.pass(Duration::from_secs(1));
    assert!(scene.find(found("", 0)).is_empty());
    scene.pass(Duration::from_secs(1));
    assert!(matches!(scene.find(found("", 2))[..], [Deed::Cut(1, _)]));
}

#[test]
fn a_look_that_failed_is_not_repeated_at_once_even_for_bytes_that_are_there() {
    let mut scene = Scene::of(&running());
    scene.join(1, 0);
    scene.find(found("ab", 9));
    scene.watched.ready(1);
    assert!(scene.find(Err(LogError::Hung)).is_empty());
    assert_eq!(scene.due(), Some(Duration::from_millis(500)));
}

#[test]
fn who_heard_nothing_for_an_hour_is_let_go() {
    let mut scene = Scene::of(&job(State::Pending, 0, None));
    scene.join(1, 0);
    scene.pass(QUIET / 2);
    scene.join(2, 0);
    assert_eq!(scene.watched.quiet_at(), Some(scene.now + QUIET / 2));
    scene.pass(QUIET / 2);
    assert!(matches!(scene.watched.dismiss(scene.now)[..], [Deed::Cut(1, _)]));
}
