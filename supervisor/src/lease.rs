//! Leases as the node keeps them: its stamps, and for each master a file with the newest stamp that came back.
//!
//! The supervisor writes these files; the init of each task under a lease reads its master's, and ends the task when so
//! much time has passed since the stamp in it as the lease is long. So a supervisor that is stopped or dead renews nothing
//! and prevents nothing. All times are of CLOCK_BOOTTIME: it counts while the machine sleeps, and nobody can set it.
//!
//! A file holds two equal lines, written by one pwrite in place: whoever reads half of another sees that they differ, and
//! keeps to what it read before. It is never synced: a machine that loses it has lost the tasks as well.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FallocateFlags;
use wire::fault::Point;
use wire::lease::MAX_LEASE_MS;
use wire::node::{Refusal, RefusalCode};
use wire::{BadInput, BootId, InstanceId, Stamp, TaskLease};

use crate::fault;

/// More than a file ever holds: its room on the disk is taken when it is made.
const ROOM: usize = 256;

/// No master's name.
const PROBE: &str = ".probe";

/// Time since boot, sleep included (clock_gettime(2)).
pub fn since_boot() -> Duration {
    // It has no way to fail but a kernel without this clock. Zero would end all leases, and begin none.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// This moment as masters are told it: `<boot id>.<nanoseconds since boot>`.
pub fn stamp(boot: &BootId, at: Duration) -> Stamp {
    Stamp(format!("{boot}.{:016x}", nanoseconds(at)))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a stamp says. Of another boot, or of a time that has not come: nothing, since this node cannot have said it.
fn read_stamp(text: &str, boot: &BootId, now: Duration) -> Result<Option<Duration>, BadInput> {
    let bad = || BadInput::new("heard", format!("{text:?} is no stamp of a node"));
    let (of, digits) = text.rsplit_once('.').ok_or_else(bad)?;
    let all_hex = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let at = u64::from_str_radix(digits, 16).ok().filter(|_| all_hex).map(Duration::from_nanos).ok_or_else(bad)?;
    Ok((of == boot.0 && at <= now).then_some(at))
}

/// What a file says; `None`: nothing that can be relied on.
fn read_file(file: &File, boot: &BootId) -> Option<Duration> {
    let mut bytes = [0; ROOM];
    let length = file.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(&bytes[..length]).ok()?;
    let (first, second) = text.strip_suffix('\n')?.split_once('\n')?;
    // Whoever wrote it had looked at the clock.
    if first == second { read_stamp(first, boot, Duration::MAX).ok()? } else { None }
}

/// What an init is told of its task's lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Where the newest stamp is.
    pub file: PathBuf,
    /// What it was when the task was launched.
    pub newest: Duration,
    /// How long the task may run after the newest stamp.
    pub length: Duration,
}

/// A lease as the task's init sees it.
#[derive(Debug)]
pub struct Watched {
    file: File,
    boot: BootId,
    length: Duration,
    newest: Cell<Duration>,
}

impl Watched {
    /// Opens the file: later, in the container, there is no way to it.
    pub fn open(terms: &Terms, boot: &BootId) -> io::Result<Watched> {
        let file = File::open(&terms.file)?;
        Ok(Watched { file, boot: boot.clone(), length: terms.length, newest: Cell::new(terms.newest) })
    }

    /// When it runs out, as of now. A file that cannot be read renews nothing.
    pub fn end(&self) -> Duration {
        if let Some(newest) = read_file(&self.file, &self.boot) {
            self.newest.set(self.newest.get().max(newest));
        }
        self.newest.get().saturating_add(self.length)
    }

    /// Whether it has run out, had it not been renewed since it was last looked at.
    pub fn would_be_over(&self) -> bool {
        self.newest.get().saturating_add(self.length) <= since_boot()
    }

    /// Whether it has run out.
    pub fn is_over(&self) -> bool {
        self.end() <= since_boot()
    }
}

impl std::os::fd::AsFd for Watched {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A master with tasks under leases here.
#[derive(Debug)]
struct Book {
    file: File,
    newest: Duration,
    tasks: usize,
}

/// All masters' leases.
#[derive(Debug)]
pub struct Leases {
    folder: PathBuf,
    boot: BootId,
    books: BTreeMap<InstanceId, Book>,
}

impl Leases {
    /// Nobody's yet. Files that lie there are kept until [`Leases::remove_others`].
    pub fn open(folder: &Path, boot: &BootId) -> io::Result<Leases> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Leases { folder: folder.to_owned(), boot: boot.clone(), books: BTreeMap::new() })
    }

    /// Checks the lease that a task is asked to begin under; the stamp it begins with.
    ///
    /// A stamp that half of the lease has passed since is too old: either it was under way for long, and maybe its task
    /// was tried elsewhere meanwhile, or its master has not heard of us for long, and can ask for another.
    pub fn check(&self, lease: &TaskLease, master: Option<&InstanceId>, now: Duration) -> Result<Duration, Refusal> {
        let bad = |field: &str, message: String| Refusal::from(BadInput::new(field, message));
        if !(1..=MAX_LEASE_MS).contains(&lease.ms) {
            return Err(bad("lease.ms", format!("{} is not from 1 to {MAX_LEASE_MS}", lease.ms)));
        }
        let master =
            master.ok_or_else(|| bad("master", "is missing; a lease is renewed by its master's polls".into()))?;
        if !is_file_name(&master.0) {
            return Err(bad("master", "of a task under a lease must be letters and digits".into()));
        }
        let length = Duration::from_millis(lease.ms);
        let heard = read_stamp(&lease.heard.0, &self.boot, now).map_err(|wrong| bad("lease.heard", wrong.message))?;
        let age = heard.map(|at| now.saturating_sub(at));
        if age.is_some_and(|age| age > length) {
            log::warn!("a create of master {master} came too late: its lease has run out already");
        }
        heard.filter(|_| age.is_some_and(|age| age <= length / 2)).ok_or_else(|| {
            let message = "the lease would begin with a stamp older than half of it; ask what is free for a new one";
            Refusal::new(RefusalCode::Stale, message)
        })
    }

    /// One more task of `master`, which has given back the stamp of `heard`.
    pub fn join(&mut self, master: &InstanceId, heard: Duration) -> io::Result<()> {
        if !self.books.contains_key(master) {
            let book = self.open_book(master)?;
            self.books.insert(master.clone(), book);
        }
        let Some(book) = self.books.get_mut(master) else { return Ok(()) };
        book.tasks += 1;
        book.renew(&self.boot, heard).inspect_err(|_| self.leave(master))
    }

    /// A task of `master` that an earlier supervisor accepted. The newest stamp is what stands in the file. False: it is not
    /// counted, and must not leave.
    pub fn rejoin(&mut self, master: &InstanceId) -> bool {
        let joined = self.join(master, Duration::ZERO);
        if let Err(error) = &joined {
            log::error!("cannot open the leases of master {master}: {error}; its tasks end when theirs have run out");
        }
        joined.is_ok()
    }

    /// A task of `master` has ended. With the last of them its file goes: nobody reads it any more.
    pub fn leave(&mut self, master: &InstanceId) {
        let Some(book) = self.books.get_mut(master) else { return };
        book.tasks = book.tasks.saturating_sub(1);
        if book.tasks == 0 {
            self.books.remove(master);
            remove(&self.path(master));
        }
    }

    /// A master has given a stamp back. It renews the leases of all its tasks, if it is newer than the newest.
    pub fn hear(&mut self, master: &InstanceId, stamp: &Stamp, now: Duration) -> Result<(), BadInput> {
        let heard = read_stamp(&stamp.0, &self.boot, now)?;
        if let Some((book, heard)) = self.books.get_mut(master).zip(heard)
            && let Err(error) = book.renew(&self.boot, heard)
        {
            log::error!("cannot renew the leases of master {master}: {error}; its tasks end when theirs have run out");
        }
        Ok(())
    }

    /// What the init of a task is to be told. `begun` is the stamp the task was created with.
    pub fn terms(&self, lease: &TaskLease, master: Option<&InstanceId>) -> Option<Terms> {
        let master = master?;
        let length = Duration::from_millis(lease.ms);
        let begun = read_stamp(&lease.heard.0, &self.boot, Duration::MAX).ok().flatten().unwrap_or_default();
        let newest = self.books.get(master).map_or(begun, |book| book.newest.max(begun));
        Some(Terms { file: self.path(master), newest, length })
    }

    /// Removes the files of masters that have no task here: left by a supervisor that died, or of another boot.
    pub fn remove_others(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        let known = |name: &str| self.books.contains_key(&InstanceId(name.to_owned()));
        for entry in entries.flatten() {
            if !entry.file_name().to_str().is_some_and(known) {
                remove(&entry.path());
            }
        }
    }

    fn path(&self, master: &InstanceId) -> PathBuf {
        self.folder.join(&master.0)
    }

    /// Whether another master's file could be made and written. Leaves nothing.
    pub fn probe(&self) -> io::Result<()> {
        let path = self.folder.join(PROBE);
        let written = open_file(&path).and_then(|file| file.write_all_at(b"\n", 0));
        remove(&path);
        written
    }

    fn open_book(&self, master: &InstanceId) -> io::Result<Book> {
        let file = open_file(&self.path(master))?;
        let newest = read_file(&file, &self.boot).unwrap_or_default();
        Ok(Book { file, newest, tasks: 0 })
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path)?;
    match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, ROOM as u64) {
        // A filesystem that cannot reserve is no reason not to begin; a stamp that cannot be written renews nothing.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(file),
        Err(errno) => Err(errno.into()),
    }
}

impl Book {
    fn renew(&mut self, boot: &BootId, heard: Duration) -> io::Result<()> {
        if heard <= self.newest {
            return Ok(());
        }
        let stamp = stamp(boot, heard);
        let text = format!("{stamp}\n{stamp}\n");
        fault::halfway(Point::LeaseHalfWritten, || self.file.write_all_at(&text.as_bytes()[..text.len() / 2 - 8], 0));
        fault::call(Point::LeaseWrite)?;
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.newest = heard;
        fault::moment(Point::LeaseWritten);
        Ok(())
    }
}

/// Masters' names are 32 hex digits; whatever else somebody calls itself, it is a file of this folder and no other.
fn is_file_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("cannot remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const SECOND: Duration = Duration::from_secs(1);

    fn boot() -> BootId {
        BootId("5f0c2a3e-0000-4000-8000-000000000000".into())
    }

    fn master() -> InstanceId {
        InstanceId("a".repeat(32))
    }

    fn lease(at: Duration) -> TaskLease {
        TaskLease { ms: 60_000, heard: stamp(&boot(), at) }
    }

    fn leases(scratch: &Scratch) -> Leases {
        Leases::open(&scratch.join("leases"), &boot()).unwrap()
    }

    #[test]
    fn a_stamp_comes_back_as_the_moment_it_was_made_and_no_other_nodes_does() {
        let (at, now) = (Duration::from_nanos(1_234_567_890_123), 2000 * SECOND);
        let text = stamp(&boot(), at).0;
        assert_eq!(read_stamp(&text, &boot(), now), Ok(Some(at)));
        assert_eq!(read_stamp(&text, &BootId("another".into()), now), Ok(None));
        assert_eq!(read_stamp(&text, &boot(), 1000 * SECOND), Ok(None), "of a time that has not come");
        for bad in ["", "x", "a.b", "a.+000000000000001", "a.00000000000000001"] {
            assert_eq!(read_stamp(bad, &boot(), now).unwrap_err().field, "heard", "{bad}");
        }
    }

    #[test]
    fn a_lease_begins_only_with_a_stamp_younger_than_half_of_it() {
        let scratch = Scratch::new("lease-check");
        let leases = leases(&scratch);
        let check = |lease: TaskLease, now| leases.check(&lease, Some(&master()), now).map_err(|it| it.code);
        assert_eq!(check(lease(100 * SECOND), 130 * SECOND), Ok(100 * SECOND));
        assert_eq!(check(lease(100 * SECOND), 131 * SECOND), Err(RefusalCode::Stale));
        assert_eq!(check(lease(100 * SECOND), 99 * SECOND), Err(RefusalCode::Stale));
        let field = |lease: TaskLease, master: Option<&str>| {
            let master = master.map(|name| InstanceId(name.into()));
            leases.check(&lease, master.as_ref(), 100 * SECOND).unwrap_err().field.unwrap()
        };
        let good = lease(100 * SECOND);
        assert_eq!(field(TaskLease { ms: 0, ..good.clone() }, Some("m")), "lease.ms");
        assert_eq!(field(TaskLease { ms: u64::MAX, ..good.clone() }, Some("m")), "lease.ms");
        assert_eq!(field(TaskLease { heard: Stamp("?".into()), ..good.clone() }, Some("m")), "lease.heard");
        for name in [None, Some(""), Some("../journal"), Some("a b")] {
            assert_eq!(field(good.clone(), name), "master");
        }
    }

    #[test]
    fn only_a_newer_stamp_renews_and_the_next_supervisor_knows_the_newest() {
        let scratch = Scratch::new("lease-renew");
        let mut it = leases(&scratch);
        it.join(&master(), 100 * SECOND).unwrap();
        let watched = Watched::open(&it.terms(&lease(100 * SECOND), Some(&master())).unwrap(), &boot()).unwrap();
        assert_eq!(watched.end(), 160 * SECOND);
        let mut hear = |seconds: u32| it.hear(&master(), &stamp(&boot(), seconds * SECOND), 200 * SECOND).unwrap();
        hear(150);
        assert_eq!(watched.end(), 210 * SECOND);
        hear(120);
        hear(201);
        assert_eq!(watched.end(), 210 * SECOND, "an old stamp, and one of a time that has not come");
        let mut next = leases(&scratch);
        assert!(next.rejoin(&master()));
        next.remove_others();
        assert_eq!(next.terms(&lease(100 * SECOND), Some(&master())).unwrap().newest, 150 * SECOND);
        next.hear(&master(), &stamp(&boot(), 170 * SECOND), 200 * SECOND).unwrap();
        assert_eq!(watched.end(), 230 * SECOND);
    }

    #[test]
    fn a_file_that_is_half_written_renews_nothing_and_ends_nothing() {
        let scratch = Scratch::new("lease-half");
        let mut it = leases(&scratch);
        it.join(&master(), 100 * SECOND).unwrap();
        let terms = it.terms(&lease(100 * SECOND), Some(&master())).unwrap();
        let watched = Watched::open(&terms, &boot()).unwrap();
        let file = OpenOptions::new().write(true).open(&terms.file).unwrap();
        let new = stamp(&boot(), 150 * SECOND).0;
        for length in 0..new.len() {
            file.write_all_at(&new.as_bytes()[..length], 0).unwrap();
            assert_eq!(watched.end(), 160 * SECOND, "after {length} bytes");
        }
        file.set_len(0).unwrap();
        assert_eq!(watched.end(), 160 * SECOND);
    }

    #[test]
    fn a_file_of_another_boot_says_nothing() {
        let scratch = Scratch::new("lease-boot");
        let mut old = Leases::open(&scratch.join("leases"), &BootId("old".into())).unwrap();
        old.join(&master(), 9000 * SECOND).unwrap();
        let mut it = leases(&scratch);
        it.join(&master(), 100 * SECOND).unwrap();
        assert_eq!(it.terms(&lease(100 * SECOND), Some(&master())).unwrap().newest, 100 * SECOND);
    }

    #[test]
    fn a_file_goes_with_the_last_task_and_what_a_dead_supervisor_left_at_the_next_start() {
        let scratch = Scratch::new("lease-leave");
        let count = || std::fs::read_dir(scratch.join("leases")).unwrap().count();
        let mut it = leases(&scratch);
        it.join(&master(), SECOND).unwrap();
        it.join(&master(), SECOND).unwrap();
        it.leave(&master());
        assert_eq!(count(), 1);
        it.leave(&master());
        assert_eq!(count(), 0);
        it.join(&master(), SECOND).unwrap();
        leases(&scratch).remove_others();
        assert_eq!(count(), 0);
    }
}
