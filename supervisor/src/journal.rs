//! The journal: an append-only file of what was accepted, launched, started, ended and forgotten.
//!
//! One JSON line a change, written with one write before anyone hears of the change, so a kill of
//! the supervisor loses nothing that was told. A power cut may lose the last unsynced lines: the
//! sweeper syncs in batches off the launch path, and [`MAX_UNSYNCED`] bounds how many can wait.
//! This room writes, reads back and compacts; what the lines add up to is `history.rs`'s business.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use wire::fault::Point;
use wire::node::Remembered;
use wire::task::{TaskReport, TaskRequest};
use wire::{BootId, EventNumber, InstanceId, JobId, TaskId, Term};

use crate::cgroup::Bases;
use crate::fault;

/// The most lines that may wait for a sync. A power cut can take no more than these, so ids and
/// event numbers that skip this far ahead after a reboot cannot have been given out before.
pub const MAX_UNSYNCED: u64 = 1_000;

/// A journal smaller than this is not worth compacting.
const SMALL: u64 = 1 << 20;

/// Room is reserved in steps of this, so that few records need a system call for it.
const RESERVE_STEP: u64 = 64 << 10;

/// How many times its last compacted size it may grow to.
const GROWTH: u64 = 4;

/// One line.
///
/// A supervisor skips the kinds that it does not know, so that an older version can follow a newer one: it counts them aloud,
/// and its next compaction leaves them out. What a kind that is added says must therefore be something an older version can
/// do without, as it could without `Stuck`, `HeardOf` and `Term`: a hint, or what can be found out anew. Whether a task lives
/// its init's pidfd tells, how it ended its end record. No such thing is that something may have run, which would then be
/// run twice, or that other lines mean something else: a line of that sort says `"essential":true`, and an older version
/// does not start on it. Nor does it where the first line is unknown to it, for that says to whom all others belong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Record {
    /// A supervisor started; what follows was done by it, or was carried over by its compaction.
    Start {
        /// In which boot of the machine.
        boot: BootId,
        /// Where its tasks' cgroups are.
        bases: Bases,
        /// Which version of berth it was.
        version: String,
        /// The last task id given out before.
        last_task: TaskId,
        /// The last event number given out before.
        last_event: EventNumber,
    },
    /// A task was taken on.
    Accepted {
        /// Its number.
        task: TaskId,
        /// The number of this change.
        event: EventNumber,
        /// What was asked, in the form that forgives keys of other versions.
        request: Box<TaskRequest>,
    },
    /// Its init exists and waits for the word to go.
    Launched {
        /// The task.
        task: TaskId,
        /// Init's pid.
        pid: i32,
        /// Init's start time, field 22 of `/proc/PID/stat`.
        start_time: u64,
    },
    /// That init left without having run anything; the task waits again.
    NeverRan {
        /// The task.
        task: TaskId,
    },
    /// Its command runs.
    Started {
        /// The task.
        task: TaskId,
        /// The number of this change.
        event: EventNumber,
        /// Since when, where that was heard.
        at: Option<Timestamp>,
    },
    /// What holds it up, or that nothing does any more. Kept for its number, and for who reads this file.
    Stuck {
        /// The task.
        task: TaskId,
        /// The number of this change.
        event: EventNumber,
        /// What, in words.
        why: Option<String>,
    },
    /// Somebody wants it to end.
    KillRequested {
        /// The task.
        task: TaskId,
    },
    /// It is over; the report is the one that is told.
    Ended {
        /// All there is to say.
        report: Box<TaskReport>,
    },
    /// It was dropped from memory though no master acknowledged it.
    Forgotten {
        /// The task.
        task: TaskId,
    },
    /// A master has heard of all changes up to this one: what had ended by then is forgotten.
    Acknowledged {
        /// The last change it has heard of.
        after: EventNumber,
        /// Whose; the original's master has no name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        master: Option<InstanceId>,
    },
    /// A master says that it has given out the numbers of jobs up to this one.
    HeardOf {
        /// Which.
        master: InstanceId,
        /// The highest.
        job: JobId,
    },
    /// A master has begun a term.
    Term {
        /// Which.
        master: InstanceId,
        /// The term.
        term: Term,
    },
    /// What was known of a master when the journal was compacted.
    Master {
        /// Which.
        master: InstanceId,
        /// All of it.
        remembered: Box<Remembered>,
    },
    /// A kind of another version. Never written.
    #[serde(other, skip_serializing)]
    Unknown,
}

/// What an unknown line says of itself.
#[derive(Debug, Deserialize)]
struct UnknownLine {
    record: String,
    /// Whether the others must not be read without it.
    #[serde(default)]
    essential: bool,
}

/// What can go wrong with the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be opened or read.
    #[error("cannot open the journal {}: {cause}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A line in the middle is no record, or one of another version that must not be skipped.
    #[error(
        "cannot read line {line} of the journal {}: {cause}; hint: start the version that wrote it, restore the file, or \
         move it away to start without memory (tasks still running are then stopped and removed)", .path.display()
    )]
    Garbage {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
    /// A line could not be appended. The file is as it was before.
    #[error("cannot write to the journal {}: {cause}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// What was written may not be on disk. After that nothing more may be trusted to this file.
    #[error("cannot sync the journal {}: {cause}", .path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    /// Length of the whole records in it.
    len: u64,
    /// Whether half a line may stand behind them.
    torn: bool,
    /// Up to where the disk is known to have room.
    reserved: u64,
    /// Length after the last compaction.
    compacted_len: u64,
    /// After a compaction that failed: the length up to which it is not tried again.
    too_short_to_try: u64,
    /// Lines appended since it was opened.
    appended: u64,
    /// Of these, how many are known to be on disk.
    synced: u64,
    /// Lines in it that this version does not know.
    unknown: usize,
}

/// How far a sync reaches: everything appended before it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncMark(u64);

impl Journal {
    /// Opens `path`, makes it if need be, and reads all records. A torn last line is cut off.
    pub fn open(path: &Path) -> Result<(Journal, Vec<Record>), JournalError> {
        let open = |cause| JournalError::Open { path: path.to_owned(), cause };
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(open)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(open)?;
        let garbage = |(line, cause)| JournalError::Garbage { path: path.to_owned(), line, cause };
        let Contents { records, whole, unknown } = read_contents(&bytes).map_err(garbage)?;
        warn_of_unknown(&unknown, path);
        // The first line comes with a new file, synced before it gets its name: it cannot be torn.
        if records.is_empty() && !bytes.is_empty() {
            return Err(garbage((1, serde::de::Error::custom("not one whole record"))));
        }
        let len = whole as u64;
        if whole < bytes.len() {
            log::warn!("the journal {} ended in a torn line of {} bytes, cut off", path.display(), bytes.len() - whole);
            file.set_len(len).map_err(open)?;
        }
        let journal = Journal {
            file,
            path: path.to_owned(),
            len,
            torn: false,
            reserved: 0,
            compacted_len: len,
            too_short_to_try: 0,
            appended: 0,
            synced: 0,
            unknown: unknown.values().sum(),
        };
        Ok((journal, records))
    }

    /// Appends one record. On an error the file is as it was: a full disk leaves no half line.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let line = line_of(record).map_err(|cause| self.write_error(cause))?;
        self.append_line(record, &line)
    }

    /// Appends one record, and only if `room` more bytes can still be appended however full the disk gets: who
    /// takes a task on must be able to write down its end, or its folder could never be removed.
    pub fn append_and_reserve(&mut self, record: &Record, room: u64) -> Result<(), JournalError> {
        let line = line_of(record).map_err(|cause| self.write_error(cause))?;
        self.reserve(line.len() as u64 + room).map_err(|cause| self.write_error(cause))?;
        self.append_line(record, &line)
    }

    fn append_line(&mut self, record: &Record, line: &[u8]) -> Result<(), JournalError> {
        let points = points_of(record);
        if let Some((before, _)) = points {
            fault::moment(before);
        }
        if self.appended - self.synced >= MAX_UNSYNCED {
            self.sync()?;
        }
        self.cut_off_torn_line().map_err(|cause| self.write_error(cause))?;
        fault::halfway(Point::JournalHalfWritten, || self.file.write_all(&line[..line.len() / 2]));
        if let Err(cause) = fault::call(Point::JournalWrite).and_then(|()| self.file.write_all(line)) {
            self.torn = true;
            // Should that fail as well, the next append begins with it.
            let _ = self.cut_off_torn_line();
            return Err(self.write_error(cause));
        }
        self.len += line.len() as u64;
        // What its master says again is not worth a sync, and no sweeper is started for it: the next one takes it along.
        if !matches!(record, Record::HeardOf { .. } | Record::Term { .. }) {
            self.appended += 1;
        }
        if let Some((_, after)) = points {
            fault::moment(after);
        }
        Ok(())
    }

    /// Whether records can be written again, with `room` behind them. Leaves no line: to ask for room that is there already
    /// is refused too by a disk that went read-only or is gone.
    pub fn probe(&mut self, room: u64) -> Result<(), JournalError> {
        let probed = self.cut_off_torn_line().and_then(|()| self.reserve_to(self.reserved.max(self.len + room)));
        probed.map_err(|cause| self.write_error(cause))
    }

    fn cut_off_torn_line(&mut self) -> io::Result<()> {
        // What failed has mostly written nothing, and there is nothing to cut.
        if self.torn && self.file.metadata()?.len() > self.len {
            self.file.set_len(self.len)?;
            // That gave back what was reserved behind the cut. It is taken again before anybody else takes it; should that
            // fail, the next task is accepted only once there is room again.
            let reserved = std::mem::replace(&mut self.reserved, self.len);
            if reserved > self.len && allocate(&self.file, reserved).is_ok() {
                self.reserved = reserved;
            }
        }
        self.torn = false;
        Ok(())
    }

    /// Room on the disk behind the records (fallocate(2)).
    fn reserve(&mut self, bytes: u64) -> io::Result<()> {
        let wanted = self.len + bytes;
        if wanted <= self.reserved {
            return Ok(());
        }
        self.reserve_to(wanted + RESERVE_STEP)
    }

    fn reserve_to(&mut self, end: u64) -> io::Result<()> {
        fault::call(Point::JournalReserve)?;
        allocate(&self.file, end)?;
        self.reserved = end;
        Ok(())
    }

    /// Whether lines wait for a sync.
    pub fn wants_sync(&self) -> bool {
        self.synced < self.appended
    }

    /// What a sync that begins now will cover.
    pub fn mark(&self) -> SyncMark {
        SyncMark(self.appended)
    }

    /// A sync begun at `mark` has succeeded.
    pub fn synced(&mut self, mark: SyncMark) {
        self.synced = self.synced.max(mark.0);
    }

    /// What a sync that failed elsewhere means.
    pub fn sync_failed(&self) -> JournalError {
        self.sync_error(io::Error::other("the sweeper's fdatasync failed; the log says why"))
    }

    /// The file, for a child to sync.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether it has grown so much that most of it must be history nobody needs. After a failure it must have grown by half:
    /// each try writes down all that is remembered.
    pub fn wants_compaction(&self) -> bool {
        self.len > SMALL.max(GROWTH * self.compacted_len).max(self.too_short_to_try)
    }

    /// Replaces all records by `records`: a new file, synced, renamed over the old one. Whoever dies
    /// in between leaves either the old journal or the new.
    ///
    /// What was reserved behind the old one goes with it, so the new one must have `room` bytes before it takes its
    /// place; if it cannot, the old one stays with what it has.
    pub fn compact(&mut self, records: &[Record], room: u64) -> Result<(), JournalError> {
        let fresh = self.path.with_extension("new");
        let (file, len) = write_anew(&fresh, records, room)
            .and_then(|written| {
                fault::moment(Point::CompactionWritten);
                std::fs::rename(&fresh, &self.path).map(|()| written)
            })
            .map_err(|cause| {
                self.too_short_to_try = self.len + self.len / 2;
                // On a full disk it would be in the way of everybody.
                let _ = std::fs::remove_file(&fresh);
                self.write_error(cause)
            })?;
        fault::moment(Point::CompactionRenamed);
        // Until the folder is synced a power cut may bring the old file back, which was synced just as
        // far as it was; only then may its later lines count as safe.
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|cause| self.sync_error(cause))?;
        (self.file, self.len, self.torn, self.reserved, self.compacted_len) = (file, len, false, len + room, len);
        self.too_short_to_try = 0;
        self.synced = self.appended;
        let dropped = std::mem::take(&mut self.unknown);
        if dropped > 0 {
            log::warn!("the journal {} is rewritten without the {dropped} lines it skipped", self.path.display());
        }
        Ok(())
    }

    /// Until the opposite is said, every write fails: what a full disk does.
    #[cfg(test)]
    pub fn fail_writes(&mut self, fail: bool) {
        let mut options = OpenOptions::new();
        let options = if fail { options.read(true) } else { options.append(true) };
        if let Ok(file) = options.open(&self.path) {
            (self.file, self.reserved) = (file, 0);
        }
    }

    fn sync(&mut self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|cause| self.sync_error(cause))?;
        self.synced = self.appended;
        Ok(())
    }

    fn write_error(&self, cause: io::Error) -> JournalError {
        JournalError::Write { path: self.path.clone(), cause }
    }

    fn sync_error(&self, cause: io::Error) -> JournalError {
        JournalError::Sync { path: self.path.clone(), cause }
    }
}

/// Where a process can die before and after a record of this kind is written.
fn points_of(record: &Record) -> Option<(Point, Point)> {
    match record {
        Record::Accepted { .. } => Some((Point::AcceptedUnwritten, Point::AcceptedWritten)),
        Record::Launched { .. } => Some((Point::LaunchedUnwritten, Point::LaunchedWritten)),
        Record::Started { .. } => Some((Point::StartedUnwritten, Point::StartedWritten)),
        Record::KillRequested { .. } => Some((Point::KillUnwritten, Point::KillWritten)),
        Record::Ended { .. } => Some((Point::EndedUnwritten, Point::EndedWritten)),
        Record::Acknowledged { .. } => Some((Point::AcknowledgedUnwritten, Point::AcknowledgedWritten)),
        // What these say is found out anew.
        Record::Start { .. } | Record::NeverRan { .. } | Record::Stuck { .. } | Record::Forgotten { .. } => None,
        // A master says it again; and this one is never written alone.
        Record::HeardOf { .. } | Record::Term { .. } | Record::Master { .. } | Record::Unknown => None,
    }
}

/// Has the disk keep room up to `end` (fallocate(2)). A filesystem that cannot reserve is no reason not to work.
fn allocate(file: &File, end: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, end) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn write_anew(path: &Path, records: &[Record], room: u64) -> io::Result<(File, u64)> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend_from_slice(&line_of(record)?);
    }
    fault::call(Point::CompactionWrite)?;
    // A half-written one of an earlier try is in the way of nothing.
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().read(true).append(true).create_new(true).open(path)?;
    let len = bytes.len() as u64;
    // Nothing needs no room, and fallocate(2) refuses to reserve it.
    if len + room > 0 {
        allocate(&file, len + room)?;
    }
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok((file, len))
}

fn line_of(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

/// The whole records in the journal at `path`, beside whoever writes it; a torn line at its end is left alone.
pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(cause) => return Err(JournalError::Open { path: path.to_owned(), cause }),
    };
    let garbage = |(line, cause)| JournalError::Garbage { path: path.to_owned(), line, cause };
    let contents = read_contents(&bytes).map_err(garbage)?;
    warn_of_unknown(&contents.unknown, path);
    Ok(contents.records)
}

/// What stands in a journal.
#[derive(Debug, Default)]
struct Contents {
    records: Vec<Record>,
    /// How many bytes are whole lines.
    whole: usize,
    /// What this version does not know, by what it is called, and how often it stands there.
    unknown: BTreeMap<String, usize>,
}

impl Contents {
    fn skip(&mut self, line: &[u8]) -> serde_json::Result<()> {
        let UnknownLine { record, essential } = serde_json::from_slice(line)?;
        if essential || self.records.is_empty() {
            let message =
                format!("this version does not know the record {record:?}, and must not read the others without it");
            return Err(serde::de::Error::custom(message));
        }
        *self.unknown.entry(record).or_default() += 1;
        Ok(())
    }
}

/// Reads all lines; an error comes with the number of its line, from 1.
///
/// What stands behind the last newline is torn. So is a last line that cannot be read: after a
/// power cut the kernel may have brought only the second of a line's two pages to disk.
fn read_contents(bytes: &[u8]) -> Result<Contents, (usize, serde_json::Error)> {
    let mut contents = Contents::default();
    let mut lines = bytes.split_inclusive(|&b| b == b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        match serde_json::from_slice(line) {
            Ok(_) if !line.ends_with(b"\n") => break,
            Ok(Record::Unknown) => contents.skip(line).map_err(|cause| (index + 1, cause))?,
            Ok(record) => contents.records.push(record),
            Err(_) if lines.peek().is_none() => break,
            Err(cause) => return Err((index + 1, cause)),
        }
        contents.whole += line.len();
    }
    Ok(contents)
}

fn warn_of_unknown(unknown: &BTreeMap<String, usize>, path: &Path) {
    if !unknown.is_empty() {
        let counted: Vec<String> = unknown.iter().map(|(record, count)| format!("{count} {record:?}")).collect();
        let (counted, path) = (counted.join(", "), path.display());
        log::warn!("the journal {path} has lines of another version, and they are skipped: {counted}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use arbtest::arbitrary::{Result as Arbitrary, Unstructured};
    use wire::State;
    use wire::task::TaskOrigin;

    fn accepted(task: u64, command: &str) -> Record {
        let json = r#"{"name":"a","resource":{"cpu":1,"mem":64},"commandLine":"true","imageId":"busybox"}"#;
        let mut request: TaskRequest = wire::json::from_slice(json.as_bytes()).unwrap();
        request.command_line = command.to_owned();
        Record::Accepted { task: TaskId(task), event: EventNumber(task), request: Box::new(request) }
    }

    fn ended(task: u64) -> Record {
        let report = TaskReport {
            event: EventNumber(task),
            task_id: TaskId(task),
            container_id: wire::ContainerId(TaskId(task)),
            key: TaskOrigin::default(),
            status: State::Failed,
            cause: Some(wire::Reason::Lost),
            reason: Some("lost".into()),
            stuck: None,
            exit_code: None,
            started_at: None,
            ended_at: Some(Timestamp::from_second(1).unwrap()),
            cpu_ms: Some(1),
            memory_peak_bytes: None,
        };
        Record::Ended { report: Box::new(report) }
    }

    fn any_record(u: &mut Unstructured<'_>) -> Arbitrary<Record> {
        let task = TaskId(u.int_in_range(0..=5)?);
        Ok(match u.int_in_range(0..=7)? {
            0 => Record::Start {
                boot: BootId("b".into()),
                bases: Bases::default(),
                version: "0".into(),
                last_task: task,
                last_event: EventNumber(u.arbitrary()?),
            },
            1 => accepted(task.0, u.arbitrary()?),
            2 => Record::Launched { task, pid: u.arbitrary()?, start_time: u.arbitrary()? },
            3 => Record::Started {
                task,
                event: EventNumber(u.arbitrary()?),
                at: u.arbitrary::<bool>()?.then_some(Timestamp::UNIX_EPOCH),
            },
            4 => Record::KillRequested { task },
            5 => ended(task.0),
            6 => Record::Forgotten { task },
            _ => Record::Acknowledged { after: EventNumber(u.arbitrary()?), master: None },
        })
    }

    #[test]
    fn any_prefix_of_the_file_is_a_prefix_of_its_records() {
        arbtest::arbtest(|u| {
            let records = (0..u.int_in_range(1..=6)?).map(|_| any_record(u)).collect::<Arbitrary<Vec<Record>>>()?;
            let bytes: Vec<u8> = records.iter().flat_map(|record| line_of(record).unwrap()).collect();
            let cut = u.int_in_range(0..=bytes.len())?;
            let Contents { records: read, whole, .. } = read_contents(&bytes[..cut]).unwrap();
            assert_eq!(read, records[..read.len()]);
            assert_eq!(read.len(), bytes[..cut].iter().filter(|&&b| b == b'\n').count());
            assert!(whole <= cut && bytes[..whole].last().is_none_or(|&b| b == b'\n'));
            Ok(())
        });
    }

    #[test]
    fn what_was_appended_is_read_back_after_a_torn_line_was_cut_off() {
        let scratch = Scratch::new("torn");
        let (mut journal, records) = Journal::open(&scratch.join("journal")).unwrap();
        assert_eq!(records, []);
        journal.append(&accepted(1, "true")).unwrap();
        OpenOptions::new().append(true).open(scratch.join("journal")).unwrap().write_all(b"{\"rec").unwrap();
        let (mut journal, records) = Journal::open(&scratch.join("journal")).unwrap();
        assert_eq!(records, [accepted(1, "true")]);
        journal.append(&ended(1)).unwrap();
        assert_eq!(Journal::open(&scratch.join("journal")).unwrap().1, [accepted(1, "true"), ended(1)]);
    }

    #[test]
    fn garbage_in_the_middle_is_refused_with_file_and_line() {
        let scratch = Scratch::new("garbage");
        let lines = [line_of(&ended(1)).unwrap(), b"\0\0\0\n".to_vec(), line_of(&ended(2)).unwrap()].concat();
        std::fs::write(scratch.join("journal"), lines).unwrap();
        let said = Journal::open(&scratch.join("journal")).unwrap_err().to_string();
        assert!(said.contains("line 2 of the journal") && said.contains("hint:"), "{said}");
    }

    #[test]
    fn a_file_without_one_whole_record_is_refused_and_left_as_it_is() {
        let scratch = Scratch::new("nothing");
        let whole = line_of(&ended(1)).unwrap();
        for bytes in [&b"garbage"[..], b"\0\0\0\0\n", &whole[..whole.len() - 1], b"{\"record\":\"ofAnotherVersion\"}\n"]
        {
            std::fs::write(scratch.join("journal"), bytes).unwrap();
            let said = Journal::open(&scratch.join("journal")).unwrap_err().to_string();
            assert!(said.contains("line 1 of the journal") && said.contains("hint:"), "{said}");
            assert_eq!(std::fs::read(scratch.join("journal")).unwrap(), bytes);
        }
    }

    #[test]
    fn a_line_of_a_newer_version_is_skipped_and_counted_unless_it_is_essential_or_the_first() {
        let known = line_of(&ended(1)).unwrap();
        let newer: &[u8] = b"{\"record\":\"paused\",\"task\":1,\"at\":{\"x\":[1]}}\n";
        let essential: &[u8] = b"{\"record\":\"cloned\",\"essential\":true}\n";
        let contents = read_contents(&[&known, newer, &known, newer].concat()).unwrap();
        assert_eq!((contents.records, contents.whole), (vec![ended(1); 2], 2 * (known.len() + newer.len())));
        assert_eq!(contents.unknown, BTreeMap::from([("paused".to_owned(), 2)]));
        for (lines, number) in [([&known, essential], 2), ([newer, &known], 1)] {
            let (line, cause) = read_contents(&lines.concat()).unwrap_err();
            assert_eq!(line, number);
            assert!(cause.to_string().contains("does not know the record \""), "{cause}");
        }
    }

    #[test]
    fn a_compaction_drops_what_was_skipped_and_nothing_else_can_write_it() {
        let scratch = Scratch::new("newer");
        let lines = [line_of(&ended(1)).unwrap(), b"{\"record\":\"paused\"}\n".to_vec()].concat();
        std::fs::write(scratch.join("journal"), lines).unwrap();
        let (mut journal, records) = Journal::open(&scratch.join("journal")).unwrap();
        assert_eq!((records, journal.unknown), (vec![ended(1)], 1));
        assert!(journal.append(&Record::Unknown).is_err());
        journal.compact(&[ended(1)], 0).unwrap();
        assert_eq!(journal.unknown, 0);
        assert_eq!(std::fs::read(scratch.join("journal")).unwrap(), line_of(&ended(1)).unwrap());
    }

    #[test]
    fn a_last_line_that_lost_its_first_page_is_torn_too() {
        let bytes = [line_of(&ended(1)).unwrap(), b"\0\0\0\0\"}\n".to_vec()].concat();
        let contents = read_contents(&bytes).unwrap();
        assert_eq!((contents.records.len(), contents.whole), (1, bytes.len() - 7));
    }

    #[test]
    fn a_record_that_does_not_fit_leaves_the_file_as_it_was() {
        let scratch = Scratch::new("full");
        let (mut journal, _) = Journal::open(&scratch.join("journal")).unwrap();
        journal.append(&ended(1)).unwrap();
        journal.fail_writes(true);
        assert!(matches!(journal.append(&ended(2)), Err(JournalError::Write { .. })));
        journal.fail_writes(false);
        journal.append(&ended(3)).unwrap();
        assert_eq!(Journal::open(&scratch.join("journal")).unwrap().1, [ended(1), ended(3)]);
    }

    #[test]
    fn reserved_room_is_no_part_of_the_file() {
        let scratch = Scratch::new("reserve");
        let (mut journal, _) = Journal::open(&scratch.join("journal")).unwrap();
        journal.append_and_reserve(&ended(1), 10_000).unwrap();
        let metadata = std::fs::metadata(scratch.join("journal")).unwrap();
        assert_eq!(metadata.len(), journal.len);
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 >= 10_000);
        journal.append(&ended(2)).unwrap();
        assert_eq!(Journal::open(&scratch.join("journal")).unwrap().1, [ended(1), ended(2)]);
    }

    fn allocated(path: &Path) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
    }

    #[test]
    fn after_a_torn_line_was_cut_off_there_is_as_much_room_as_before() {
        let scratch = Scratch::new("tornroom");
        let path = scratch.join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append_and_reserve(&ended(1), 100_000).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"rec").unwrap();
        journal.torn = true;
        journal.append(&ended(2)).unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, [ended(1), ended(2)]);
        assert!(allocated(&path) >= 100_000, "{} bytes are kept", allocated(&path));
        assert!(journal.reserved >= 100_000);
    }

    #[test]
    fn a_write_that_wrote_nothing_gives_back_no_room() {
        let scratch = Scratch::new("nothingroom");
        let path = scratch.join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append_and_reserve(&ended(1), 100_000).unwrap();
        journal.fail_writes(true);
        journal.append(&ended(2)).unwrap_err();
        journal.fail_writes(false);
        journal.append(&ended(3)).unwrap();
        assert!(allocated(&path) >= 100_000, "{} bytes are kept", allocated(&path));
    }

    #[test]
    fn compaction_replaces_all_records_and_appending_goes_on() {
        let scratch = Scratch::new("compact");
        let (mut journal, _) = Journal::open(&scratch.join("journal")).unwrap();
        for task in 0..4 {
            journal.append(&ended(task)).unwrap();
        }
        journal.compact(&[ended(3)], 0).unwrap();
        journal.append(&ended(4)).unwrap();
        assert_eq!(Journal::open(&scratch.join("journal")).unwrap().1, [ended(3), ended(4)]);
        assert!(!scratch.join("journal.new").exists());
    }

    #[test]
    fn a_compaction_that_fails_leaves_no_draft_and_is_tried_again_once_the_journal_has_grown_by_half() {
        let scratch = Scratch::new("compactfails");
        let path = scratch.join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        let long = accepted(1, &"x".repeat(100_000));
        let grow = |journal: &mut Journal, lines| (0..lines).for_each(|_| journal.append(&long).unwrap());
        grow(&mut journal, 12);
        assert!(journal.wants_compaction());
        // No file can take the place of a folder.
        std::fs::rename(&path, scratch.join("moved")).unwrap();
        std::fs::create_dir(&path).unwrap();
        journal.compact(&[ended(1)], 0).unwrap_err();
        assert!(!scratch.join("journal.new").exists());
        assert!(!journal.wants_compaction());
        grow(&mut journal, 5);
        assert!(!journal.wants_compaction());
        grow(&mut journal, 2);
        assert!(journal.wants_compaction());
        std::fs::remove_dir(&path).unwrap();
        journal.compact(&[ended(1)], 0).unwrap();
        grow(&mut journal, 12);
        assert!(journal.wants_compaction(), "a success counts from its own length");
    }

    #[test]
    fn after_a_compaction_there_is_as_much_room_as_was_asked_for() {
        let scratch = Scratch::new("compactroom");
        let (mut journal, _) = Journal::open(&scratch.join("journal")).unwrap();
        journal.append_and_reserve(&ended(1), 10_000).unwrap();
        journal.compact(&[ended(1)], 100_000).unwrap();
        let metadata = std::fs::metadata(scratch.join("journal")).unwrap();
        assert_eq!(metadata.len(), journal.len);
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 >= journal.len + 100_000);
        assert_eq!(journal.reserved, journal.len + 100_000);
    }

    #[test]
    fn a_line_that_only_repeats_what_a_master_says_wants_no_sync() {
        let scratch = Scratch::new("hearsay");
        let (mut journal, _) = Journal::open(&scratch.join("journal")).unwrap();
        let heard = Record::HeardOf { master: InstanceId("m".into()), job: JobId(57) };
        journal.append(&heard).unwrap();
        assert!(!journal.wants_sync());
        journal.append(&ended(1)).unwrap();
        assert!(journal.wants_sync());
        assert_eq!(Journal::open(&scratch.join("journal")).unwrap().1, [heard, ended(1)]);
    }

    #[test]
    fn never_more_lines_wait_for_a_sync_than_ids_are_skipped_after_a_reboot() {
        let scratch = Scratch::new("unsynced");
        let (mut journal, _) = Journal::open(&scratch.join("journal")).unwrap();
        for task in 0..MAX_UNSYNCED + 1 {
            journal.append(&Record::Forgotten { task: TaskId(task) }).unwrap();
        }
        assert_eq!(journal.appended - journal.synced, 1);
        let mark = journal.mark();
        journal.append(&Record::Forgotten { task: TaskId(0) }).unwrap();
        journal.synced(mark);
        assert!(journal.wants_sync());
    }
}
