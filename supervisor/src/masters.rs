//! What this node still knows of each master when it has forgotten its tasks: the highest job it has heard of, and the
//! last ends that were acknowledged. A master whose database was put back from an older copy learns from it which
//! numbers it has given out and which attempts have run; and one in whose place another has begun its term, that it is
//! over. Pure, and bounded: what is dropped is summed up in one number.

use std::collections::{BTreeMap, VecDeque};

use wire::node::{AcknowledgedEnd, Remembered};
use wire::task::{AttemptKey, MAX_MASTER, TaskOrigin};
use wire::term::Speaker;
use wire::{EventNumber, InstanceId, JobId, Term};

use crate::journal::Record;

/// How many masters are remembered. Beyond that the one not heard of for the longest is forgotten.
const MAX_MASTERS: usize = 16;
/// How many acknowledged ends are listed for each.
const MAX_LISTED: usize = 1000;

/// One master.
#[derive(Debug, Clone, Default, PartialEq)]
struct Known {
    last_job: JobId,
    unlisted_to: EventNumber,
    term: Term,
    acknowledged: VecDeque<AcknowledgedEnd>,
    /// When something new was last learnt of it, counted in such news.
    touched: u64,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Masters {
    known: BTreeMap<InstanceId, Known>,
    news: u64,
}

impl Masters {
    /// Whether it would be news that this master has given out this job's number.
    pub fn is_news(&self, master: &InstanceId, job: JobId) -> bool {
        let known = || self.known.get(master).map_or(JobId(0), |known| known.last_job);
        master.0.len() <= MAX_MASTER && job > known()
    }

    /// This master has given out this job's number.
    pub fn heard_of(&mut self, master: &InstanceId, job: JobId) {
        if self.is_news(master, job) {
            self.touch(master).last_job = job;
        }
    }

    /// The latest term of this master that has spoken here.
    pub fn term_of(&self, master: &InstanceId) -> Term {
        self.known.get(master).map_or(Term::default(), |known| known.term)
    }

    /// This master has spoken in that term.
    pub fn spoke(&mut self, speaker: &Speaker) {
        if speaker.term > self.term_of(&speaker.master) {
            self.touch(&speaker.master).term = speaker.term;
        }
    }

    /// This master knows how a task of its ended, and the task is being forgotten. In the order of the events.
    pub fn acknowledged(&mut self, origin: &TaskOrigin, event: EventNumber) {
        // The original's master has neither a name nor attempts, and would not ask.
        let (Some(master), Some(job_id), Some(attempt)) = (&origin.master, origin.job_id, origin.attempt) else {
            return;
        };
        let known = self.touch(master);
        known.last_job = known.last_job.max(job_id);
        known.acknowledged.push_back(AcknowledgedEnd { event, job_id, attempt });
        if known.acknowledged.len() > MAX_LISTED
            && let Some(dropped) = known.acknowledged.pop_front()
        {
            known.unlisted_to = known.unlisted_to.max(dropped.event);
        }
    }

    fn touch(&mut self, master: &InstanceId) -> &mut Known {
        if self.known.len() >= MAX_MASTERS && !self.known.contains_key(master) {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.touched).map(|(name, _)| name.clone());
            oldest.map(|name| self.known.remove(&name));
        }
        self.news += 1;
        let known = self.known.entry(master.clone()).or_default();
        known.touched = self.news;
        known
    }

    /// Whether this very attempt is known to have run, and its end to have been acknowledged.
    pub fn has_run(&self, key: &AttemptKey) -> bool {
        let known = key.master.as_ref().and_then(|master| self.known.get(master));
        known.is_some_and(|known| {
            known.acknowledged.iter().any(|end| (end.job_id, end.attempt) == (key.job, key.attempt))
        })
    }

    /// What is told to this master; the ends only where it asks for all.
    pub fn remembered(&self, master: &InstanceId, all: bool) -> Option<Remembered> {
        let known = self.known.get(master)?;
        let acknowledged = if all { known.acknowledged.iter().copied().collect() } else { Vec::new() };
        Some(Remembered { last_job: known.last_job, unlisted_to: known.unlisted_to, term: known.term, acknowledged })
    }

    /// The same, as records, those first that were touched first.
    pub fn records(&self) -> Vec<Record> {
        let mut names: Vec<(&InstanceId, &Known)> = self.known.iter().collect();
        names.sort_by_key(|(_, known)| known.touched);
        let record = |(master, _): (&InstanceId, _)| {
            let remembered = Box::new(self.remembered(master, true)?);
            Some(Record::Master { master: master.clone(), remembered })
        };
        names.into_iter().filter_map(record).collect()
    }

    /// Takes such a record back.
    pub fn restore(&mut self, master: &InstanceId, remembered: Remembered) {
        let known = self.touch(master);
        known.last_job = remembered.last_job;
        known.unlisted_to = remembered.unlisted_to;
        known.term = remembered.term;
        known.acknowledged = remembered.acknowledged.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Attempt;

    fn name(name: &str) -> InstanceId {
        InstanceId(name.into())
    }

    fn ended(masters: &mut Masters, job: u64) {
        let origin = TaskOrigin { job_id: Some(JobId(job)), attempt: Some(Attempt(1)), master: Some(name("m")) };
        masters.acknowledged(&origin, EventNumber(job * 2));
    }

    fn key(job: u64, attempt: u32) -> AttemptKey {
        AttemptKey { master: Some(name("m")), job: JobId(job), attempt: Attempt(attempt) }
    }

    #[test]
    fn an_attempt_whose_end_was_acknowledged_is_known_to_have_run_and_no_other() {
        let mut masters = Masters::default();
        ended(&mut masters, 7);
        assert!(masters.has_run(&key(7, 1)));
        assert!(!masters.has_run(&key(7, 2)) && !masters.has_run(&key(6, 1)));
        assert!(!masters.has_run(&AttemptKey { master: Some(name("other")), ..key(7, 1) }));
    }

    #[test]
    fn the_highest_job_only_rises_and_only_a_rise_is_news() {
        let mut masters = Masters::default();
        for job in [3, 9, 5] {
            masters.heard_of(&name("m"), JobId(job));
        }
        assert_eq!(masters.remembered(&name("m"), false).unwrap().last_job, JobId(9));
        assert!(!masters.is_news(&name("m"), JobId(9)) && masters.is_news(&name("m"), JobId(10)));
        assert!(!masters.is_news(&name(&"x".repeat(MAX_MASTER + 1)), JobId(10)));
        assert_eq!(masters.remembered(&name("other"), true), None);
    }

    #[test]
    fn ends_beyond_the_list_are_summed_up_in_one_number() {
        let mut masters = Masters::default();
        (1..=MAX_LISTED as u64 + 2).for_each(|job| ended(&mut masters, job));
        let told = masters.remembered(&name("m"), true).unwrap();
        assert_eq!((told.acknowledged.len(), told.unlisted_to), (MAX_LISTED, EventNumber(4)));
        assert_eq!(masters.remembered(&name("m"), false).unwrap().acknowledged, []);
    }

    #[test]
    fn of_too_many_masters_the_one_not_heard_of_for_the_longest_goes() {
        let mut masters = Masters::default();
        for number in 0..MAX_MASTERS {
            masters.heard_of(&name(&number.to_string()), JobId(1));
        }
        masters.heard_of(&name("0"), JobId(2));
        masters.heard_of(&name("new"), JobId(1));
        assert_eq!(masters.known.len(), MAX_MASTERS);
        let known = ["0", "1", "new"].map(|master| masters.remembered(&name(master), false).is_some());
        assert_eq!(known, [true, false, true]);
    }

    #[test]
    fn records_bring_it_all_back() {
        let mut masters = Masters::default();
        ended(&mut masters, 7);
        masters.heard_of(&name("other"), JobId(3));
        masters.spoke(&Speaker { master: name("m"), term: Term(5) });
        let mut again = Masters::default();
        for record in masters.records() {
            let Record::Master { master, remembered } = record else { panic!("{record:?}") };
            again.restore(&master, *remembered);
        }
        assert_eq!(again.records(), masters.records());
        assert!(again.has_run(&key(7, 1)));
        assert_eq!(again.term_of(&name("m")), Term(5));
    }
}
