//! Which file is the database in this life.
//!
//! On a machine's own disk always the same one. On a share every life has its own, `master-N.db` by the number of its
//! claim, copied from that of the life before: a write of an earlier life that comes late, from a host that was cut off
//! or a process that was stopped, then lands in a file that nobody reads any more. The file before is kept as a spare.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::store::{FILE, StoreError};

/// How often a file that changes under our hands is copied anew.
const COPIES: usize = 10;

/// The database of this life, whose claim has that number. Its [`settle`] comes once it was opened.
pub fn of_life(dir: &Path, number: u64, shared: bool) -> Result<PathBuf, StoreError> {
    let find_or_copy = || {
        let newest = all_in(dir)?.into_iter().filter(|(other, _)| *other < number).max();
        match (newest, shared) {
            (Some((_, path)), false) => Ok(path),
            (Some((_, path)), true) => copy(&path, &dir.join(name(number))),
            (None, false) => Ok(dir.join(FILE)),
            (None, true) => Ok(dir.join(name(number))),
        }
    };
    find_or_copy().map_err(|cause| StoreError::Make { path: dir.join(FILE), cause })
}

/// One that was just copied and cannot be used: the next start would copy it once more.
pub fn discard(dir: &Path, ours: &Path, number: u64) {
    if ours == dir.join(name(number)) {
        remove(ours);
    }
}

/// After the database was opened: removes those of lives before the last, and copies that were not finished. What cannot
/// be removed is left to the next life.
pub fn settle(dir: &Path, ours: &Path) {
    let Ok(all) = all_in(dir) else { return };
    let spare = all.iter().filter(|(_, path)| path != ours).max();
    let Ok(files) = fs::read_dir(dir) else { return };
    let names =
        files.flatten().filter_map(|file| numbered(&file.file_name().to_string_lossy()).map(|(number, _)| number));
    let mut numbers: Vec<u64> = names.collect();
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        let path = dir.join(name(number));
        if path != ours && spare.is_none_or(|(other, _)| *other != number) {
            remove(&path);
        }
    }
}

fn remove(database: &Path) {
    for file in ["", "-wal", "-shm", ".new", ".new-journal"].map(|ending| beside(database, ending)) {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove the old database {}: {error}", file.display());
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// The database without a number is that of a machine's own disk, and older than all.
fn name(number: u64) -> String {
    if number == 0 { FILE.to_owned() } else { format!("master-{number}.db") }
}

/// Which life's file that is, and what its name has after the database's.
fn numbered(file: &str) -> Option<(u64, &str)> {
    if let Some(ending) = file.strip_prefix(FILE) {
        return Some((0, ending));
    }
    let (number, ending) = file.strip_prefix("master-")?.split_once(".db")?;
    Some((number.parse().ok()?, ending))
}

/// All whole databases there are.
fn all_in(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let file = entry?.file_name();
        if let Some((number, "")) = numbered(&file.to_string_lossy()) {
            all.push((number, dir.join(file)));
        }
    }
    Ok(all)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Copies a database and its log, and only then gives the copy its name. An earlier life that has not yet seen our claim
/// may be at its last commit: then the files change meanwhile, and are copied anew.
fn copy(from: &Path, to: &Path) -> io::Result<PathBuf> {
    // What an earlier start could not finish may be what fills the disk.
    to.parent().map_or(Ok(()), remove_unfinished)?;
    // Half a copy would fill the disk for every later start as well.
    copy_whole(from, to).inspect_err(|_| remove(to))
}

/// Copies that never got their names, and logs without a database.
fn remove_unfinished(dir: &Path) -> io::Result<()> {
    let whole: Vec<u64> = all_in(dir)?.into_iter().map(|(number, _)| number).collect();
    for file in fs::read_dir(dir)?.flatten() {
        let number = numbered(&file.file_name().to_string_lossy()).map(|(number, _)| number);
        if let Some(number) = number.filter(|number| !whole.contains(number)) {
            remove(&dir.join(name(number)));
        }
    }
    Ok(())
}

fn copy_whole(from: &Path, to: &Path) -> io::Result<PathBuf> {
    let fresh = beside(to, ".new");
    for _ in 0..COPIES {
        let before = looks(from)?;
        // The log of an earlier try belongs to no other's pages.
        remove(to);
        copy_file(from, &fresh)?;
        match copy_file(&beside(from, "-wal"), &beside(to, "-wal")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        if looks(from)? == before {
            fs::rename(&fresh, to)?;
            to.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())?;
            log::info!("copied the database {} for this life", from.display());
            return Ok(to.to_owned());
        }
    }
    Err(io::Error::other(format!("{} does not hold still: another master writes it", from.display())))
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut copy = File::create(to)?;
    io::copy(&mut source, &mut copy)?;
    copy.sync_all()
}

/// Size and time of a database and of its log, if it has one.
fn looks(database: &Path) -> io::Result<[Option<(u64, SystemTime)>; 2]> {
    let look = |path: &Path| match fs::metadata(path) {
        Ok(data) => Ok(Some((data.len(), data.modified()?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    Ok([look(database)?, look(&beside(database, "-wal"))?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Claim;
    use crate::job::Job;
    use crate::job::tests::spec;
    use crate::state_dir::Scratch;
    use crate::store::{Changes, KeptRef, Store};

    fn begin(dir: &Scratch, shared: bool) -> (PathBuf, Store) {
        let claim = Claim::stake(dir.path(), "a test", SystemTime::now()).unwrap();
        let path = of_life(dir.path(), claim.number(), shared).unwrap();
        let store = Store::open(&path, claim).unwrap();
        settle(dir.path(), &path);
        (path, store)
    }

    fn add(store: &Store) -> Result<(), StoreError> {
        let job = Job::submitted(store.next_id().unwrap(), spec(), jiff::Timestamp::UNIX_EPOCH);
        let added = vec![KeptRef { job: &job, kill_asked: false }];
        store.write(&Changes { added, durable: true, ..Changes::default() })
    }

    fn jobs(store: &Store) -> usize {
        store.active().unwrap().len()
    }

    #[test]
    fn on_a_machines_own_disk_every_life_has_the_same_file() {
        let dir = Scratch::new();
        let (first, store) = begin(&dir, false);
        add(&store).unwrap();
        drop(store);
        let (second, store) = begin(&dir, false);
        assert_eq!((second, jobs(&store)), (first, 1));
    }

    #[test]
    fn on_a_share_a_life_begins_with_all_that_was_committed_and_a_late_write_of_the_one_before_is_lost_on_it() {
        let dir = Scratch::new();
        let (first, early) = begin(&dir, true);
        add(&early).unwrap();
        // The first is still there, as on a host that was cut off, and what it wrote is in its log alone.
        let (second, late) = begin(&dir, true);
        assert_eq!((jobs(&late), first != second), (1, true));
        assert!(add(&early).is_err());
        add(&late).unwrap();
        drop(early);
        drop(late);
        let (_, third) = begin(&dir, true);
        assert_eq!(jobs(&third), 2);
        assert!(!first.exists() && second.exists(), "one spare is kept");
    }

    #[test]
    fn a_state_dir_that_moves_to_a_share_and_back_keeps_its_jobs() {
        let dir = Scratch::new();
        for (shared, before) in [(false, 0), (true, 1), (false, 2), (true, 3), (true, 4)] {
            let (_, store) = begin(&dir, shared);
            assert_eq!(jobs(&store), before);
            add(&store).unwrap();
        }
    }

    #[test]
    fn a_copy_that_was_not_finished_is_not_taken_for_one() {
        let dir = Scratch::new();
        let (first, store) = begin(&dir, true);
        add(&store).unwrap();
        drop(store);
        let cut = dir.path().join("master-2.db");
        fs::write(beside(&cut, ".new"), "half a copy").unwrap();
        fs::write(beside(&cut, "-wal"), "half a log").unwrap();
        let claim = Claim::stake(dir.path(), "died while it copied", SystemTime::now()).unwrap();
        assert_eq!(claim.number(), 2);
        let (third, store) = begin(&dir, true);
        assert_eq!((jobs(&store), third.file_name().unwrap().to_str()), (1, Some("master-3.db")));
        assert!(first.exists() && !beside(&cut, ".new").exists() && !beside(&cut, "-wal").exists());
    }
}
