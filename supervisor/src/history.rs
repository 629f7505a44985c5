//! What the journal's records add up to: every task still remembered, and what was given out so far. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use wire::task::{TaskReport, TaskRequest};
use wire::term::Speaker;
use wire::{BootId, EventNumber, InstanceId, TaskId};

use crate::cgroup::Bases;
use crate::journal::{MAX_UNSYNCED, Record};
use crate::masters::Masters;
use crate::task::Init;

/// A stretch of the journal written by supervisors that used the same cgroups in the same boot.
#[derive(Debug, Clone, PartialEq)]
pub struct Era {
    /// The boot of the machine.
    pub boot: BootId,
    /// Where the cgroups are.
    pub bases: Bases,
}

/// A task that had not ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfinished {
    /// What was asked.
    pub request: TaskRequest,
    /// The number of its latest change.
    pub event: EventNumber,
    /// In which boot it was last heard of: an index into [`History::eras`].
    pub era: usize,
    /// Its init, if it had one.
    pub launched: Option<Init>,
    /// Whether its command had started, and when.
    pub started: Option<Option<Timestamp>>,
    /// Whether its end was asked for.
    pub kill_requested: bool,
    /// What was said to hold it up. Whoever heard that believes it until something else is said.
    pub stuck: Option<String>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The eras, oldest first.
    pub eras: Vec<Era>,
    /// Tasks without an end.
    pub unfinished: BTreeMap<TaskId, Unfinished>,
    /// Tasks whose end no master has acknowledged.
    pub ended: BTreeMap<TaskId, TaskReport>,
    /// What is known of masters beyond these.
    pub masters: Masters,
    /// The last task id given out.
    pub last_task: u64,
    /// The last event number given out.
    pub last_event: u64,
}

impl History {
    /// Adds the records up.
    pub fn replay(records: Vec<Record>) -> History {
        let mut history = History::default();
        for record in records {
            history.add(record);
        }
        history
    }

    fn add(&mut self, record: Record) {
        match record {
            Record::Start { boot, bases, last_task, last_event, .. } => {
                self.begin_era(Era { boot, bases });
                self.last_task = self.last_task.max(last_task.0);
                self.last_event = self.last_event.max(last_event.0);
            }
            Record::Accepted { task, event, request } => self.accept(task, event, *request),
            Record::Launched { task, pid, start_time } => {
                let era = self.eras.len().saturating_sub(1);
                self.change(task, |unfinished| {
                    unfinished.launched = Some(Init { pid, start_time });
                    unfinished.era = era;
                });
            }
            Record::NeverRan { task } => self.change(task, |unfinished| unfinished.launched = None),
            Record::Started { task, event, at } => {
                self.last_event = self.last_event.max(event.0);
                self.change(task, |unfinished| {
                    unfinished.event = event;
                    unfinished.started = Some(at);
                    unfinished.stuck = None;
                });
            }
            Record::Stuck { task, event, why } => {
                self.last_event = self.last_event.max(event.0);
                self.change(task, |unfinished| (unfinished.event, unfinished.stuck) = (event, why));
            }
            Record::KillRequested { task } => self.change(task, |unfinished| unfinished.kill_requested = true),
            Record::Ended { report } => self.end(*report),
            Record::Forgotten { task } => {
                self.ended.remove(&task);
            }
            Record::Acknowledged { after, master } => self.acknowledge(after, master.as_ref()),
            Record::HeardOf { master, job } => self.masters.heard_of(&master, job),
            Record::Term { master, term } => self.masters.spoke(&Speaker { master, term }),
            Record::Master { master, remembered } => self.masters.restore(&master, *remembered),
            // Counted where it was read.
            Record::Unknown => {}
        }
    }

    /// The latest era stands last, even if it is an old one come again. False: it was the last already.
    pub fn begin_era(&mut self, era: Era) -> bool {
        let new = self.eras.last() != Some(&era);
        if new {
            self.eras.push(era);
        }
        new
    }

    fn acknowledge(&mut self, after: EventNumber, master: Option<&InstanceId>) {
        let heard = |_: &TaskId, report: &mut TaskReport| report.event <= after && report.key.master.as_ref() == master;
        let mut heard: Vec<TaskReport> = self.ended.extract_if(.., heard).map(|(_, report)| report).collect();
        heard.sort_by_key(|report| report.event);
        for report in heard {
            self.masters.acknowledged(&report.key, report.event);
        }
    }

    fn accept(&mut self, task: TaskId, event: EventNumber, request: TaskRequest) {
        if let (Some(master), Some(job)) = (&request.master, request.job_id) {
            self.masters.heard_of(master, job);
        }
        self.last_task = self.last_task.max(task.0);
        self.last_event = self.last_event.max(event.0);
        let era = self.eras.len().saturating_sub(1);
        let (launched, started, kill_requested, stuck) = (None, None, false, None);
        let unfinished = Unfinished { request, event, era, launched, started, kill_requested, stuck };
        self.unfinished.insert(task, unfinished);
    }

    fn change(&mut self, task: TaskId, change: impl FnOnce(&mut Unfinished)) {
        match self.unfinished.get_mut(&task) {
            Some(unfinished) => change(unfinished),
            None => log::warn!("the journal tells of task {task}, which it never said was accepted"),
        }
    }

    fn end(&mut self, report: TaskReport) {
        self.last_task = self.last_task.max(report.task_id.0);
        self.last_event = self.last_event.max(report.event.0);
        self.unfinished.remove(&report.task_id);
        self.ended.insert(report.task_id, report);
    }

    /// After a reboot the last lines may be missing, and with them ids that were given out: skip as
    /// many as can have been lost. A supervisor that was merely killed loses nothing that it wrote.
    pub fn skip_what_a_power_cut_may_have_taken(&mut self, boot: &BootId) {
        if self.eras.last().is_some_and(|era| era.boot != *boot) {
            self.last_task += MAX_UNSYNCED;
            self.last_event += MAX_UNSYNCED;
        }
    }

    /// A journal that was lost forgets what it gave out, but what was made under those numbers may still be here:
    /// its numbers are not given out again.
    pub fn skip_what_is_still_here(&mut self, last_task: Option<TaskId>) {
        self.last_task = self.last_task.max(last_task.map_or(0, |task| task.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(boot: &str) -> Record {
        Record::Start {
            boot: BootId(boot.into()),
            bases: Bases::default(),
            version: "0".into(),
            last_task: TaskId(3),
            last_event: EventNumber(9),
        }
    }

    fn accepted(task: u64, event: u64) -> Record {
        let json = r#"{"name":"a","resource":{"cpu":1,"mem":64},"commandLine":"true","imageId":"busybox"}"#;
        let request = wire::json::from_slice(json.as_bytes()).unwrap();
        Record::Accepted { task: TaskId(task), event: EventNumber(event), request }
    }

    fn ended(task: u64, event: u64) -> Record {
        let json = format!(
            r#"{{"event":{event},"taskId":{task},"containerId":"t{task}-cont","status":"Finished","exitCode":0,
                "startedAt":null,"endedAt":null,"cpuMs":null,"memoryPeakBytes":null}}"#
        );
        Record::Ended { report: Box::new(wire::json::from_slice(json.as_bytes()).unwrap()) }
    }

    #[test]
    fn a_task_is_what_its_records_say_of_it() {
        let init = Record::Launched { task: TaskId(4), pid: 7, start_time: 8 };
        let at = Some(Timestamp::UNIX_EPOCH);
        let begun = Record::Started { task: TaskId(4), event: EventNumber(11), at };
        let history = History::replay(vec![start("a"), accepted(4, 10), init, begun]);
        let task = &history.unfinished[&TaskId(4)];
        assert_eq!((task.launched, task.started), (Some(Init { pid: 7, start_time: 8 }), Some(at)));
        assert_eq!((history.last_task, history.last_event), (4, 11));
    }

    #[test]
    fn never_ran_takes_the_launch_back() {
        let init = Record::Launched { task: TaskId(4), pid: 7, start_time: 8 };
        let history = History::replay(vec![start("a"), accepted(4, 10), init, Record::NeverRan { task: TaskId(4) }]);
        assert_eq!(history.unfinished[&TaskId(4)].launched, None);
    }

    #[test]
    fn what_was_acknowledged_or_forgotten_is_not_remembered_but_its_numbers_are() {
        let records = vec![start("a"), ended(4, 10), ended(5, 11), ended(6, 12)];
        let forget =
            vec![Record::Forgotten { task: TaskId(5) }, Record::Acknowledged { after: EventNumber(10), master: None }];
        let history = History::replay([records, forget].concat());
        assert_eq!(history.ended.keys().collect::<Vec<_>>(), [&TaskId(6)]);
        assert_eq!((history.last_task, history.last_event), (6, 12));
    }

    #[test]
    fn a_task_belongs_to_the_era_it_was_launched_in() {
        let init = Record::Launched { task: TaskId(4), pid: 7, start_time: 8 };
        let history = History::replay(vec![start("a"), accepted(4, 10), start("b"), init, start("b"), start("a")]);
        assert_eq!(history.eras.iter().map(|era| era.boot.0.as_str()).collect::<Vec<_>>(), ["a", "b", "a"]);
        assert_eq!(history.unfinished[&TaskId(4)].era, 1);
    }

    #[test]
    fn a_lost_journal_gives_no_number_out_again_whose_container_is_still_here() {
        let mut lost = History::replay(Vec::new());
        lost.skip_what_is_still_here(Some(TaskId(7)));
        assert_eq!(lost.last_task, 7);
        let mut kept = History::replay(vec![start("a"), accepted(9, 10)]);
        kept.skip_what_is_still_here(Some(TaskId(7)));
        kept.skip_what_is_still_here(None);
        assert_eq!(kept.last_task, 9);
    }

    #[test]
    fn numbers_skip_ahead_after_a_reboot_and_only_then() {
        let mut history = History::replay(vec![start("a")]);
        history.skip_what_a_power_cut_may_have_taken(&BootId("a".into()));
        assert_eq!((history.last_task, history.last_event), (3, 9));
        history.skip_what_a_power_cut_may_have_taken(&BootId("b".into()));
        assert_eq!((history.last_task, history.last_event), (3 + MAX_UNSYNCED, 9 + MAX_UNSYNCED));
    }
}
