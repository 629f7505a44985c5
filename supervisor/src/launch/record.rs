//! The end record: how a task ended, in one line of under 512 bytes, written with one write by its init.
//!
//! The file is made before the clone and its block is reserved, so a full disk cannot swallow the truth. It is also
//! the mark of the living: init holds an exclusive flock(2) on it for as long as it exists, and a container folder
//! whose record can be locked has no init.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{FallocateFlags, FlockOperation};
use serde::{Deserialize, Serialize};
use wire::fault::Point;
use wire::{BootId, Log};

use super::step::StepError;
use crate::fault;

/// The file's name in the container's folder.
pub const NAME: &str = "end";
/// A record is one write of less than this, which the kernel appends whole or not at all.
const MAX_BYTES: usize = 512;
/// The longest text of a failed step that is sure to fit.
const MAX_TEXT: usize = 150;

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecord {
    /// The boot it ended in.
    pub boot_id: BootId,
    /// What happened.
    pub end: End,
    /// When the command was executed, if it was.
    pub started_at: Option<Timestamp>,
    /// When it was over.
    pub ended_at: Timestamp,
}

/// What ended a task, as its init saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The command exited by itself.
    Exited {
        /// Its exit status.
        code: i32,
    },
    /// A signal that init did not send ended it.
    Signaled {
        /// Which.
        signal: i32,
    },
    /// Init stopped it because its time was up.
    TimedOut,
    /// Init stopped it because it was asked to.
    Killed,
    /// Init killed it, or did not begin it, because its lease had run out.
    LeaseOver,
    /// Init stopped it because it wrote too much.
    LogLimit {
        /// To which stream.
        stream: Log,
        /// What that may hold.
        limit_bytes: u64,
    },
    /// Whoever launched it was gone before it said go: the command has not run, and may be launched anew.
    NeverTold,
    /// It never ran.
    LaunchFailed {
        /// What was being done.
        step: String,
        /// What the kernel said.
        cause: String,
    },
}

impl From<StepError> for End {
    fn from(failed: StepError) -> End {
        End::LaunchFailed { step: shortened(failed.step), cause: shortened(failed.cause) }
    }
}

/// No more of a text than there is room for: a sentence may quote a file.
pub fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

/// The open, locked record of a container that is being launched.
#[derive(Debug)]
pub struct RecordFile(File);

impl RecordFile {
    /// Makes and locks the record of the container in `folder`.
    pub fn make(folder: &Path) -> io::Result<RecordFile> {
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(folder.join(NAME))?;
        fault::call(Point::LaunchRecord)?;
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, MAX_BYTES as u64) {
            // A filesystem that cannot reserve is no reason not to run.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(RecordFile(file))
    }

    /// Appends the record.
    pub fn write(&self, record: &EndRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        fault::call(Point::InitRecord)?;
        fault::halfway(Point::InitHalfRecorded, || (&self.0).write_all(&line[..line.len() / 2]));
        (&self.0).write_all(&line)
    }
}

impl AsFd for RecordFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The record in a container's folder. `None`: init never came to write one.
pub fn read(folder: &Path) -> io::Result<Option<EndRecord>> {
    let mut text = Vec::new();
    match File::open(folder.join(NAME)) {
        Ok(file) => file.take(MAX_BYTES as u64 * 2).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(text.split_inclusive(|&byte| byte == b'\n').find_map(whole_line))
}

/// A line without its end was torn; it says nothing.
fn whole_line(line: &[u8]) -> Option<EndRecord> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

/// Whether an init lives in the container of `folder`.
pub fn is_held(folder: &Path) -> io::Result<bool> {
    let file = match File::open(folder.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn record(end: End) -> EndRecord {
        let boot_id = BootId("0123456789abcdef0123456789abcdef0123".into());
        EndRecord { boot_id, end, started_at: Some(Timestamp::now()), ended_at: Timestamp::now() }
    }

    #[test]
    fn the_longest_record_is_one_write_of_under_512_bytes() {
        let failed = StepError::said("é".repeat(4096), "x".repeat(4096));
        let line = serde_json::to_vec(&record(failed.into())).unwrap();
        assert!(line.len() < MAX_BYTES, "{} bytes", line.len());
    }

    #[test]
    fn a_record_is_read_back_and_a_torn_one_is_none() {
        let folder = std::env::temp_dir().join(format!("berth-record-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let file = RecordFile::make(&folder).unwrap();
        assert!(is_held(&folder).unwrap());
        assert_eq!(read(&folder).unwrap(), None);
        (&file.0).write_all(b"{\"boot_id\":").unwrap();
        assert_eq!(read(&folder).unwrap(), None);
        (&file.0).write_all(b"\n").unwrap();
        let ended = record(End::Exited { code: 3 });
        file.write(&ended).unwrap();
        assert_eq!(read(&folder).unwrap(), Some(ended));
        drop(file);
        // A child that a test beside this one has just forked holds it too, until it execs.
        let give_up = Instant::now() + Duration::from_secs(60);
        while is_held(&folder).unwrap() {
            assert!(Instant::now() < give_up, "it is held for ever");
            std::thread::yield_now();
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
