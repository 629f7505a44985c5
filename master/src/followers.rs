//! The room of the followers: whoever reads a log while it grows, for as long as that takes.
//!
//! One thread for all of them. A worker has let the client in and said whose log it follows from which byte on; the gate
//! holds its connection ([`Voice`]); here is decided what it gets. A log is looked at once for all who follow it, by
//! size and offset, since a share may have no way to tell of a change: often while it grows, seldom while it does not, at
//! once when the owner of the jobs says that something has become of the job.
//!
//! ```text
//!   gate ── came, ready, left ──▶ ┌──────┐ ── look at this log from this byte on ──▶ reading threads
//!   owner ── changed ───────────▶ │ room │ ◀── bytes ─────────────────────────────── (their own pool)
//!   gate ◀── piece, end, cut ──── └──────┘
//! ```
//!
//! A follower belongs to one attempt of its job: the one that has a log first from when it came on. When that is over, and
//! all that it wrote was sent, the answer ends; if the rest cannot be had, the answer is cut off, which does not look
//! like an end. The room reads no log itself and writes to nobody: what hangs holds up its own followers, and nobody
//! else. It sleeps while nobody follows anything.

mod pace;
mod troubles;
mod watched;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use wire::http::ConnectionId;
use wire::{Attempt, BadInput, JobId, Log};

use crate::gate::{News, Say, Voice};
use crate::job::Job;
use crate::output::{LogError, Logs, Piece, READERS};
use crate::store::{Kept, Reader};
use troubles::Troubles;
use watched::{Deed, Look, PIECE_BYTES, Watched};

/// What a client follows: the worker's word to the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Follow {
    /// Whose log.
    pub job: JobId,
    /// Which of its logs.
    pub log: Log,
    /// From which byte on.
    pub offset: u64,
    /// In which attempt's log the offset counts, if that was said.
    pub attempt: Option<Attempt>,
}

impl fmt::Display for Follow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.job, self.log, self.offset)?;
        self.attempt.map_or(Ok(()), |attempt| write!(f, " {attempt}"))
    }
}

impl FromStr for Follow {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Follow, BadInput> {
        let number = |text: &str| text.parse().map_err(|_| BadInput::new("follow", format!("{text:?} is no number")));
        let words: Vec<&str> = text.split(' ').collect();
        let (job, log, offset, attempt) = match words[..] {
            [job, log, offset] => (job, log, offset, None),
            [job, log, offset, attempt] => (job, log, offset, Some(attempt)),
            _ => return Err(BadInput::new("follow", "has not three or four words")),
        };
        let attempt = attempt.map(str::parse).transpose()?;
        Ok(Follow { job: job.parse()?, log: log.parse()?, offset: number(offset)?, attempt })
    }
}

/// What the room hears.
enum Happened {
    Client(News),
    Changed(BTreeSet<JobId>),
    Looked { watched: u64, look: Look, result: Result<Piece, LogError>, began: Instant },
}

/// What others tell the room with.
#[derive(Clone)]
pub struct Bell {
    to_room: Sender<Happened>,
    /// The jobs in whose changes somebody takes an interest: about all others the room is left asleep.
    followed: Arc<Mutex<BTreeSet<JobId>>>,
}

impl Bell {
    /// These jobs are not as they were, and that is committed.
    pub fn changed(&self, jobs: &BTreeSet<JobId>) {
        let of_interest: BTreeSet<JobId> = {
            let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            if followed.is_empty() { BTreeSet::new() } else { jobs.intersection(&followed).copied().collect() }
        };
        if !of_interest.is_empty() {
            let _ = self.to_room.send(Happened::Changed(of_interest));
        }
    }

    /// The gate has news of a client.
    pub fn client(&self, news: News) {
        let _ = self.to_room.send(Happened::Client(news));
    }
}

/// The room before anybody is in it.
pub struct Empty {
    bell: Bell,
    happened: Receiver<Happened>,
}

/// A room, and what to tell it with.
pub fn room() -> (Bell, Empty) {
    let (to_room, happened) = channel();
    let bell = Bell { to_room, followed: Arc::default() };
    (bell.clone(), Empty { bell, happened })
}

impl Empty {
    /// Starts the room's thread. `reader` and `logs` are its own.
    pub fn open(self, reader: Reader, logs: Logs, voice: Voice) -> io::Result<()> {
        let Empty { bell, happened } = self;
        let (watched, clients, troubles) = (BTreeMap::new(), HashMap::new(), Troubles::new(READERS));
        let room = Room { bell, happened, reader, logs, voice, watched, clients, troubles, last: 0, last_looked: 0 };
        let thread = std::thread::Builder::new().name("followers".to_owned()).stack_size(512 << 10);
        thread.spawn(move || room.run()).map(drop)
    }
}

/// Everything the room's thread owns.
struct Room {
    bell: Bell,
    happened: Receiver<Happened>,
    reader: Reader,
    logs: Logs,
    voice: Voice,
    watched: BTreeMap<u64, Watched<ConnectionId>>,
    /// The number of the log that was watched last.
    last: u64,
    /// The number of the log that was looked at last.
    last_looked: u64,
    /// What each client follows.
    clients: HashMap<ConnectionId, u64>,
    troubles: Troubles,
}

impl Room {
    fn run(mut self) {
        while let Ok(first) = self.wait() {
            let now = Instant::now();
            let more: Vec<Happened> = self.happened.try_iter().collect();
            for happened in first.into_iter().chain(more) {
                self.take(happened, now);
            }
            self.look_around(now);
            self.dismiss(now);
        }
    }

    /// The next thing that happens; `None`: a log is due first.
    fn wait(&self) -> Result<Option<Happened>, RecvTimeoutError> {
        let now = Instant::now();
        let due = |watched: &Watched<_>| watched.due(now).and_then(|due| Some(due.max(self.may_look(watched, now)?)));
        let quiet = self.watched.values().filter_map(Watched::quiet_at);
        let Some(until) = self.watched.values().filter_map(due).chain(quiet).min() else {
            return self.happened.recv().map(Some).map_err(|_| RecvTimeoutError::Disconnected);
        };
        match self.happened.recv_timeout(until.saturating_duration_since(now)) {
            Ok(happened) => Ok(Some(happened)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn may_look(&self, watched: &Watched<ConnectionId>, now: Instant) -> Option<Instant> {
        self.troubles.may_look(watched.place()?.node, now)
    }

    fn take(&mut self, happened: Happened, now: Instant) {
        match happened {
            Happened::Client(News::Came(client, what)) => self.came(client, &what, now),
            Happened::Client(News::Ready(client)) => {
                if let Some(watched) = self.of(client) {
                    watched.ready(client);
                }
            }
            Happened::Client(News::Left(client)) => {
                if let Some(watched) = self.of(client) {
                    watched.leave(client);
                }
                self.clients.remove(&client);
            }
            Happened::Changed(jobs) => jobs.into_iter().for_each(|job| self.changed(job, now)),
            Happened::Looked { watched, look, result, began } => self.looked(watched, look, result, began, now),
        }
    }

    fn of(&mut self, client: ConnectionId) -> Option<&mut Watched<ConnectionId>> {
        self.watched.get_mut(self.clients.get(&client)?)
    }

    fn came(&mut self, client: ConnectionId, what: &str, now: Instant) {
        let follow = match what.parse::<Follow>() {
            Ok(follow) => follow,
            Err(error) => return self.turn_away(client, &format!("{what:?} is nothing to follow: {error}")),
        };
        // First, so that no change after the look into the database goes unheard.
        self.bell.followed.lock().unwrap_or_else(PoisonError::into_inner).insert(follow.job);
        match self.reader.job(follow.job) {
            Ok(Some(Kept { job, .. })) if follow.attempt.is_some_and(|attempt| attempt != job.attempt) => {
                self.turn_away(client, &format!("job {} is being tried again", job.id));
            }
            Ok(Some(kept)) => self.let_in(client, &kept.job, follow, now),
            Ok(None) => self.turn_away(client, &format!("there is no job {}", follow.job)),
            Err(error) => self.turn_away(client, &error.to_string()),
        }
    }

    /// The answer has begun, so all that can be said is that it does not end here.
    fn turn_away(&self, client: ConnectionId, why: &str) {
        log::warn!("cannot let a follower in: {why}");
        self.voice.say([Say::Cut(client)]);
    }

    fn let_in(&mut self, client: ConnectionId, job: &Job, follow: Follow, now: Instant) {
        let known = self.watched.iter_mut().find(|(_, watched)| watched.is(job, follow.log)).map(|(number, _)| *number);
        let number = known.unwrap_or_else(|| {
            self.last += 1;
            self.watched.insert(self.last, Watched::new(job, follow.log, now));
            self.last
        });
        self.clients.insert(client, number);
        if let Some(watched) = self.watched.get_mut(&number) {
            watched.heard(job, now);
            watched.join(client, follow.offset, now);
        }
    }

    fn changed(&mut self, id: JobId, now: Instant) {
        let job = match self.reader.job(id) {
            Ok(Some(kept)) => kept.job,
            Ok(None) => return,
            Err(error) => return self.give_up(id, &error.to_string()),
        };
        for watched in self.watched.values_mut().filter(|watched| watched.job() == id) {
            watched.heard(&job, now);
        }
    }

    /// What has become of the job cannot be found out: its followers may ask again.
    fn give_up(&mut self, job: JobId, why: &str) {
        log::error!("cannot follow job {job} any more: {why}");
        let of_job: Vec<u64> =
            self.watched.iter().filter(|(_, watched)| watched.job() == job).map(|(n, _)| *n).collect();
        let cut: Vec<ConnectionId> =
            self.clients.extract_if(|_, n| of_job.contains(n)).map(|(client, _)| client).collect();
        of_job.iter().for_each(|number| drop(self.watched.remove(number)));
        self.voice.say(cut.into_iter().map(Say::Cut));
    }

    fn looked(&mut self, number: u64, look: Look, result: Result<Piece, LogError>, began: Instant, now: Instant) {
        let failed = matches!(&result, Err(error) if *error != LogError::Missing);
        self.troubles.end(look.log.node, failed, now);
        if let Some(watched) = self.watched.get_mut(&number) {
            let deeds = watched.looked(look, result, began, now);
            self.carry_out(deeds);
        }
    }

    /// Begins the looks that are due, in turn: a log that always has more comes after those that waited.
    fn look_around(&mut self, now: Instant) {
        let mut due: Vec<(Instant, u64)> =
            self.watched.iter().filter_map(|(number, watched)| Some((watched.due(now)?, *number))).collect();
        due.retain(|(due, _)| *due <= now);
        due.sort_unstable_by_key(|(_, number)| (*number <= self.last_looked, *number));
        for (_, number) in due {
            self.begin_look(number, now);
        }
    }

    fn begin_look(&mut self, number: u64, now: Instant) {
        let Some(watched) = self.watched.get_mut(&number) else { return };
        let Some(place) = watched.place() else { return };
        if self.troubles.may_look(place.node, now).is_none_or(|at| at > now) {
            return;
        }
        let Some(look) = watched.look(now) else { return };
        self.last_looked = number;
        self.troubles.begin(look.log.node);
        let (to_room, began) = (self.bell.to_room.clone(), Instant::now());
        let reply = move |result| drop(to_room.send(Happened::Looked { watched: number, look, result, began }));
        if let Err(error) = self.logs.look(look.log, (look.from, PIECE_BYTES), look.whence, reply) {
            self.looked(number, look, Err(error), began, now);
        }
    }

    fn carry_out(&mut self, deeds: Vec<Deed<ConnectionId>>) {
        let said: Vec<Say> = deeds.into_iter().map(|deed| self.said(deed)).collect();
        self.voice.say(said);
    }

    fn said(&mut self, deed: Deed<ConnectionId>) -> Say {
        match deed {
            Deed::Send(client, bytes, skipped) => Say::Piece(client, bytes, skipped),
            Deed::End(client) => {
                self.clients.remove(&client);
                Say::End(client)
            }
            Deed::Cut(client, why) => {
                self.clients.remove(&client);
                log::info!("a follower was cut off: {why}");
                Say::Cut(client)
            }
        }
    }

    /// Ends what is whole, and forgets what nobody follows.
    fn dismiss(&mut self, now: Instant) {
        let deeds: Vec<Deed<ConnectionId>> =
            self.watched.values_mut().flat_map(|watched| watched.dismiss(now)).collect();
        self.carry_out(deeds);
        let deserted: Vec<u64> = self.watched.iter().filter(|(_, it)| it.is_deserted()).map(|(n, _)| *n).collect();
        if deserted.is_empty() {
            return;
        }
        deserted.iter().for_each(|number| drop(self.watched.remove(number)));
        let jobs: BTreeSet<JobId> = self.watched.values().map(Watched::job).collect();
        *self.bell.followed.lock().unwrap_or_else(PoisonError::into_inner) = jobs;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_followed_is_said_and_read_the_same_way() {
        let follow = Follow { job: JobId(7), log: Log::Monitor, offset: u64::MAX, attempt: None };
        for follow in [follow, Follow { attempt: Some(Attempt(2)), ..follow }] {
            assert_eq!(follow.to_string().parse(), Ok(follow));
        }
        for wrong in ["", "7", "7 stdout", "7 stdout -1", "x stdout 0", "7 stdin 0", "7 stdout 0 x", "7 stdout 0 1 1"] {
            assert!(wrong.parse::<Follow>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_bell_rings_for_jobs_that_somebody_follows_and_for_no_others() {
        let (bell, empty) = room();
        bell.changed(&BTreeSet::from([JobId(1)]));
        bell.followed.lock().unwrap().insert(JobId(2));
        bell.changed(&BTreeSet::from([JobId(1), JobId(3)]));
        bell.changed(&BTreeSet::from([JobId(1), JobId(2)]));
        let rung: Vec<Happened> = empty.happened.try_iter().collect();
        assert!(matches!(&rung[..], [Happened::Changed(jobs)] if *jobs == BTreeSet::from([JobId(2)])));
    }
}
