//! One log of one attempt, and who follows it: when to look, and what each gets. Pure.
//!
//! ```text
//!   NotYet ──it has a log──▶ Grows ──the attempt is over──▶ Over ──its size is certain──▶ Whole
//!      └───────────────────────── ended without one ─────────────────────────────────────▶ Whole
//! ```
//!
//! - NotYet: there is nothing of this attempt to read. What may lie under its number is an earlier task's, until the
//!   command has started: init puts it aside before that.
//! - Grows: a look finds what is there by now.
//! - Over: nothing is written any more, but a share may still show less. What the node itself says is certain, and so
//!   is what the share shows a while after the end.
//! - Whole: who has got so many bytes has got all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::{Attempt, JobId, Log, State};

use super::pace::Pace;
use crate::job::Job;
use crate::output::{LogError, LogOf, Piece, Whence};

/// The most one look takes, and one follower gets at once.
pub(super) const PIECE_BYTES: u64 = 128 << 10;
/// How long after the end a share may still show less than there is: GlusterFS and NFS keep what they know of a file for
/// a second, unless told otherwise.
const SETTLED: Duration = Duration::from_secs(2);
/// For how long after the end a rest that cannot be read is tried again.
const LAST_TRY: Duration = Duration::from_secs(30);
/// A client to which nothing was said for so long may have gone without a word. If it has not, it comes again.
const QUIET: Duration = Duration::from_secs(3600);

/// One log of one attempt. `C`: a client.
#[derive(Debug)]
pub(super) struct Watched<C> {
    job: JobId,
    log: Log,
    /// Which attempt it is, once one has a log.
    attempt: Option<Attempt>,
    place: Option<LogOf>,
    stage: Stage,
    /// How many bytes the log had when it was last looked at.
    total: u64,
    pace: Pace,
    /// When to look for more.
    look_at: Instant,
    /// Not before this, even for bytes that are known to be there: the last look failed.
    rests_until: Option<Instant>,
    under_way: bool,
    followers: VecDeque<Follower<C>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    NotYet,
    Grows,
    Over { since: Instant, node_is_silent: bool },
    Whole { since: Instant, bytes: u64 },
}

#[derive(Debug)]
struct Follower<C> {
    client: C,
    /// The next byte it wants.
    at: u64,
    /// Whether it has room for a piece.
    ready: bool,
    /// The least size seen while the log was shorter than what this one has got already.
    shrunk_to: Option<u64>,
    said_at: Instant,
}

/// One look: a log, a part of it, and whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) log: LogOf,
    pub(super) from: u64,
    pub(super) whence: Whence,
    /// It began after the end, or so long after it that what is found is certain.
    certain: bool,
}

/// What a client gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Deed<C> {
    /// These bytes, but for the first so many.
    Send(C, Arc<Vec<u8>>, usize),
    /// That was all.
    End(C),
    /// There may be more, but not to be had here.
    Cut(C, String),
}

impl<C: Copy + PartialEq> Watched<C> {
    /// What is to be watched for whoever follows this log of the job as it stands.
    pub(super) fn new(job: &Job, log: Log, now: Instant) -> Watched<C> {
        let mut watched = Watched {
            job: job.id,
            log,
            attempt: None,
            place: None,
            stage: Stage::NotYet,
            total: 0,
            pace: Pace::new(),
            look_at: now,
            rests_until: None,
            under_way: false,
            followers: VecDeque::new(),
        };
        watched.heard(job, now);
        watched
    }

    pub(super) fn job(&self) -> JobId {
        self.job
    }

    /// Whether this is what a client means that follows this log of the job as it stands.
    pub(super) fn is(&self, job: &Job, log: Log) -> bool {
        self.job == job.id && self.log == log && self.attempt.is_none_or(|attempt| attempt == job.attempt)
    }

    pub(super) fn is_deserted(&self) -> bool {
        self.followers.is_empty()
    }

    /// The job may have changed.
    pub(super) fn heard(&mut self, job: &Job, now: Instant) {
        if let (None, Some(placed)) = (self.attempt, job.placed)
            && let Some(task) = placed.task
        {
            self.attempt = Some(job.attempt);
            self.place = Some(LogOf { node: placed.node, task, log: self.log });
        }
        let over = job.status.is_final() || self.attempt.is_some_and(|attempt| attempt != job.attempt);
        let has_log = self.place.is_some() && (self.log == Log::Monitor || job.status == State::Running);
        let next = match self.stage {
            Stage::NotYet | Stage::Grows if over && self.place.is_none() => Stage::Whole { since: now, bytes: 0 },
            Stage::NotYet | Stage::Grows if over => Stage::Over { since: now, node_is_silent: false },
            Stage::NotYet if has_log => Stage::Grows,
            as_it_was => as_it_was,
        };
        if next != self.stage {
            self.stage = next;
            self.look_soon(now);
        }
    }

    /// One more follows it, from this byte on.
    pub(super) fn join(&mut self, client: C, at: u64, now: Instant) {
        self.followers.push_back(Follower { client, at, ready: true, shrunk_to: None, said_at: now });
        self.look_soon(now);
    }

    fn look_soon(&mut self, now: Instant) {
        self.pace.quicken();
        self.look_at = self.look_at.min(now);
    }

    /// A follower has room for the next piece.
    pub(super) fn ready(&mut self, client: C) {
        if let Some(follower) = self.followers.iter_mut().find(|follower| follower.client == client) {
            follower.ready = true;
        }
    }

    /// A follower has gone.
    pub(super) fn leave(&mut self, client: C) {
        self.followers.retain(|follower| follower.client != client);
    }

    /// When it wants to be looked at; `None`: not until somebody says something.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let mut ready = self.followers.iter().filter(|follower| follower.ready).peekable();
        if self.under_way || self.place.is_none() || ready.peek().is_none() {
            return None;
        }
        let at = match self.stage {
            Stage::NotYet => return None,
            Stage::Whole { bytes, .. } => ready.any(|follower| follower.at < bytes).then_some(now)?,
            Stage::Grows | Stage::Over { .. } if ready.any(|follower| follower.at < self.total) => now,
            Stage::Grows | Stage::Over { .. } => self.look_at,
        };
        Some(self.rests_until.map_or(at, |until| until.max(at)))
    }

    /// Where its log is, once it has one.
    pub(super) fn place(&self) -> Option<LogOf> {
        self.place
    }

    /// The look that is due.
    pub(super) fn look(&mut self, now: Instant) -> Option<Look> {
        let log = self.place?;
        let ready = || self.followers.iter().filter(|follower| follower.ready);
        // Who waits for bytes that are there goes first, whoever was served last goes last.
        let hungry = ready().find(|follower| follower.at < self.total).map(|follower| follower.at);
        let from = hungry.or_else(|| ready().map(|follower| follower.at).min())?;
        self.under_way = true;
        Some(match self.stage {
            Stage::NotYet | Stage::Grows => Look { log, from, whence: Whence::Anywhere, certain: false },
            Stage::Over { node_is_silent: false, .. } => Look { log, from, whence: Whence::Node, certain: true },
            Stage::Over { since, .. } | Stage::Whole { since, .. } => {
                Look { log, from, whence: Whence::Anywhere, certain: now >= since + SETTLED }
            }
        })
    }

    /// What a look has found. `began`: when it did.
    pub(super) fn looked(
        &mut self,
        look: Look,
        result: Result<Piece, LogError>,
        began: Instant,
        now: Instant,
    ) -> Vec<Deed<C>> {
        self.under_way = false;
        self.rests_until = None;
        match result {
            Ok(piece) => self.found(look, piece, now.saturating_duration_since(began), now),
            Err(LogError::Missing) if look.whence == Whence::Anywhere => self.found_none(look, now),
            Err(error) => self.failed(look, &error, now),
        }
    }

    fn found(&mut self, look: Look, piece: Piece, took: Duration, now: Instant) -> Vec<Deed<C>> {
        let grew = !piece.bytes.is_empty();
        let end = look.from + piece.bytes.len() as u64;
        // Nothing found beyond the end says nothing of where that is.
        self.total = if grew { piece.total.max(end) } else { piece.total };
        let mut deeds = self.hand_out(look.from, piece.bytes, now);
        deeds.extend(self.cut_off_the_overwritten());
        self.look_at = now + self.pace.after(grew, took);
        match self.stage {
            Stage::Over { since, .. } | Stage::Whole { since, .. } if look.certain => {
                self.stage = Stage::Whole { since, bytes: self.total };
            }
            Stage::Over { .. } => self.look_at = self.last_look_at(now),
            Stage::NotYet | Stage::Grows | Stage::Whole { .. } => {}
        }
        deeds
    }

    /// When what is found after the end is certain: at once if the node says it.
    fn last_look_at(&self, now: Instant) -> Instant {
        match self.stage {
            Stage::Over { since, node_is_silent: true } => now.max(since + SETTLED),
            _ => now,
        }
    }

    /// Everybody whose next byte is among these gets what follows from there on, and waits in line again.
    fn hand_out(&mut self, from: u64, bytes: Vec<u8>, now: Instant) -> Vec<Deed<C>> {
        let end = from + bytes.len() as u64;
        let bytes = Arc::new(bytes);
        let mut deeds = Vec::new();
        let is_served = |follower: &Follower<C>| follower.ready && (from..end).contains(&follower.at);
        let (served, mut in_line): (VecDeque<_>, VecDeque<_>) = self.followers.drain(..).partition(is_served);
        for follower in served {
            let skipped = usize::try_from(follower.at - from).unwrap_or(usize::MAX);
            deeds.push(Deed::Send(follower.client, Arc::clone(&bytes), skipped));
            in_line.push_back(Follower { at: end, ready: false, said_at: now, ..follower });
        }
        self.followers = in_line;
        deeds
    }

    /// A log that became shorter than what somebody has got, and then longer again, has other bytes now.
    fn cut_off_the_overwritten(&mut self) -> Vec<Deed<C>> {
        let total = self.total;
        let overwritten = |follower: &mut Follower<C>| {
            if follower.at <= total {
                follower.shrunk_to = None;
                return false;
            }
            let least = *follower.shrunk_to.get_or_insert(total);
            follower.shrunk_to = Some(least.min(total));
            total > least
        };
        self.cut(overwritten, "the log was emptied and written anew")
    }

    fn cut(&mut self, mut which: impl FnMut(&mut Follower<C>) -> bool, why: &str) -> Vec<Deed<C>> {
        let mut deeds = Vec::new();
        self.followers.retain_mut(|follower| {
            let cut = which(follower);
            if cut {
                deeds.push(Deed::Cut(follower.client, why.to_owned()));
            }
            !cut
        });
        deeds
    }

    /// Neither the share nor the node has the log: not yet, never, or no more.
    fn found_none(&mut self, look: Look, now: Instant) -> Vec<Deed<C>> {
        self.look_at = now + self.pace.after(false, Duration::ZERO);
        match self.stage {
            Stage::Over { since, .. } | Stage::Whole { since, .. } if look.certain => {
                let total = self.total;
                self.stage = Stage::Whole { since, bytes: total };
                self.cut(|follower| follower.at < total, "the log is not there any more")
            }
            Stage::Over { .. } => {
                self.look_at = self.last_look_at(now);
                Vec::new()
            }
            Stage::NotYet | Stage::Grows | Stage::Whole { .. } => Vec::new(),
        }
    }

    fn failed(&mut self, look: Look, error: &LogError, now: Instant) -> Vec<Deed<C>> {
        match &mut self.stage {
            // The share is there to be asked instead.
            Stage::Over { node_is_silent, .. } if look.whence == Whence::Node => {
                *node_is_silent = true;
                self.look_soon(now);
                return Vec::new();
            }
            Stage::Over { since, .. } | Stage::Whole { since, .. } if now >= *since + LAST_TRY => {
                return self.cut(|_| true, &error.to_string());
            }
            Stage::NotYet | Stage::Grows | Stage::Over { .. } | Stage::Whole { .. } => {}
        }
        self.rests_until = Some(now + self.pace.after_failure());
        Vec::new()
    }

    /// Those who have got all there will ever be, and those who may have gone.
    pub(super) fn dismiss(&mut self, now: Instant) -> Vec<Deed<C>> {
        let mut deeds = Vec::new();
        if let Stage::Whole { bytes, .. } = self.stage {
            self.followers.retain(|follower| {
                let done = follower.ready && follower.at >= bytes;
                if done {
                    deeds.push(Deed::End(follower.client));
                }
                !done
            });
        }
        deeds.extend(self.cut(|follower| now >= follower.said_at + QUIET, "nothing to say for an hour"));
        deeds
    }

    /// When the first of them may have gone.
    pub(super) fn quiet_at(&self) -> Option<Instant> {
        self.followers.iter().map(|follower| follower.said_at + QUIET).min()
    }
}

#[cfg(test)]
mod tests;
