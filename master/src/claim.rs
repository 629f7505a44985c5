//! The claim: which of the state dir's lives this process is, and whether another has begun since.
//!
//! Whoever has the lock writes the next file of `claims/`, by its number, before it opens the database, and from then on
//! looks for the one after its own: before it writes, and again before it tells anyone what it wrote. The lock says who
//! waits. The claims say who may speak, should a lock be lost: on a share a host that was cut off loses it without hearing
//! of it, and a file that is not there is never read from a cache.
//!
//! Why two never speak side by side, on a share: the later life claims first and copies the database then; the earlier one
//! commits first and looks for claims then. So either the commit is in the copy, or the claim is seen before the answer.

use std::fs::{File, FileTimes, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use wire::Term;

/// The folder's name in the state dir.
const FOLDER: &str = "claims";
/// How many old claims stay. One who slept through more of them misses its own.
const KEPT: u64 = 100;

/// Why a claim could not be made, or does not hold any more.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It could not be made, or not be looked at.
    #[error("cannot {doing} the claim {}: {cause}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The claim's file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Somebody else has the state dir now.
    #[error("this master's place is taken, and it stops: {by} has the state dir now")]
    Superseded {
        /// Who.
        by: String,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ClaimError {
    let path = path.to_owned();
    move |cause| ClaimError::Io { doing, path, cause }
}

/// What stands in a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    term: Term,
    by: String,
}

/// Our claim.
#[derive(Debug, Clone)]
pub struct Claim {
    folder: PathBuf,
    number: u64,
    term: Term,
}

impl Claim {
    /// Claims the state dir, after all who did before. `by`: who we are, for people. The term is later than theirs, and
    /// than that of any life which a state dir put back from an older copy has forgotten: it is the time in ms.
    pub fn stake(state_dir: &Path, by: &str, now: SystemTime) -> Result<Claim, ClaimError> {
        let folder = state_dir.join(FOLDER);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(failed("make a folder for", &folder))?;
        let mut numbers = numbers_in(&folder).map_err(failed("list", &folder))?;
        numbers.sort_unstable();
        let mut number = numbers.last().map_or(1, |last| last + 1);
        loop {
            let before = latest_before(&folder, number).map_or(Term::default(), |written| written.term);
            let ms = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
            let term = Term(u64::try_from(ms).unwrap_or_default().max(before.0 + 1));
            let claim = Claim { folder: folder.clone(), number, term };
            match claim.write(by) {
                Ok(()) => {
                    claim.remove_old(&numbers);
                    return Ok(claim);
                }
                // Somebody claims though we have the lock: who comes last has it.
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(cause) => return Err(failed("write", &claim.path())(cause)),
            }
        }
    }

    fn write(&self, by: &str) -> io::Result<()> {
        let text = serde_json::to_vec(&Written { term: self.term, by: by.to_owned() })?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path())?;
        file.write_all(&text)?;
        file.sync_all()?;
        File::open(&self.folder)?.sync_all()
    }

    /// What cannot be removed is left to the next life.
    fn remove_old(&self, numbers: &[u64]) {
        for old in numbers.iter().filter(|number| **number + KEPT < self.number) {
            if let Err(error) = std::fs::remove_file(self.folder.join(old.to_string())) {
                log::warn!("cannot remove the old claim {old}: {error}");
            }
        }
    }

    /// Which life this is.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What the nodes know it by.
    pub fn term(&self) -> Term {
        self.term
    }

    fn path(&self) -> PathBuf {
        self.folder.join(self.number.to_string())
    }

    /// Whether nobody has claimed after us.
    pub fn check(&self) -> Result<(), ClaimError> {
        let next = self.folder.join((self.number + 1).to_string());
        match std::fs::symlink_metadata(&next) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(ClaimError::Io { doing: "look for one after", path: self.path(), cause }),
            Ok(_) => Err(self.superseded()),
        }
    }

    /// The same, and that our own claim can be written: a host that is cut off from most of a share's disks may still
    /// read what one of them has, but not write.
    pub fn renew(&self) -> Result<(), ClaimError> {
        let times = FileTimes::new().set_modified(SystemTime::now());
        let touched = OpenOptions::new().write(true).open(self.path()).and_then(|file| file.set_times(times));
        match touched {
            Ok(()) => self.check(),
            // Removed as an old one.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Err(self.superseded()),
            Err(cause) => Err(ClaimError::Io { doing: "renew", path: self.path(), cause }),
        }
    }

    fn superseded(&self) -> ClaimError {
        let by = who_claimed_last(&self.folder).unwrap_or_else(|| "another master".to_owned());
        ClaimError::Superseded { by }
    }
}

/// Who has a state dir, by the latest claim, in words.
pub fn who_has(state_dir: &Path) -> Option<String> {
    who_claimed_last(&state_dir.join(FOLDER))
}

fn who_claimed_last(folder: &Path) -> Option<String> {
    latest_before(folder, u64::MAX).map(|written| written.by)
}

fn numbers_in(folder: &Path) -> io::Result<Vec<u64>> {
    let names = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().parse().ok()));
    names.filter_map(io::Result::transpose).collect()
}

/// The latest one that can be read: its writer may have died between making and filling it, and then never spoke.
fn latest_before(folder: &Path, number: u64) -> Option<Written> {
    let mut numbers = numbers_in(folder).ok()?;
    numbers.retain(|other| *other < number);
    numbers.sort_unstable();
    let read = |number: &u64| serde_json::from_slice(&std::fs::read(folder.join(number.to_string())).ok()?).ok();
    numbers.iter().rev().find_map(read)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::state_dir::Scratch;

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn the_later_claim_holds_and_the_earlier_one_hears_who_made_it() {
        let dir = Scratch::new();
        let first = Claim::stake(dir.path(), "one", at(1000)).unwrap();
        first.check().unwrap();
        first.renew().unwrap();
        assert_eq!(who_has(dir.path()).as_deref(), Some("one"));
        let second = Claim::stake(dir.path(), "two", at(2000)).unwrap();
        for said in [first.check(), first.renew()] {
            let said = said.unwrap_err().to_string();
            assert!(said.contains("two has the state dir now"), "{said}");
        }
        second.renew().unwrap();
    }

    #[test]
    fn terms_go_up_though_the_clock_goes_back_and_though_the_claims_are_of_an_older_copy() {
        let dir = Scratch::new();
        let terms = [5000, 4000, 9000].map(|ms| Claim::stake(dir.path(), "one", at(ms)).unwrap().term());
        assert_eq!(terms, [Term(5000), Term(5001), Term(9000)]);
        let copy = Scratch::new();
        assert_eq!(Claim::stake(copy.path(), "one", at(9500)).unwrap().term(), Term(9500));
    }

    #[test]
    fn a_claim_whose_writer_died_over_it_counts_and_says_nothing() {
        let dir = Scratch::new();
        let first = Claim::stake(dir.path(), "one", at(1000)).unwrap();
        std::fs::write(dir.path().join("claims/2"), "").unwrap();
        assert!(matches!(first.check(), Err(ClaimError::Superseded { .. })));
        let third = Claim::stake(dir.path(), "three", at(10)).unwrap();
        assert_eq!((third.number(), third.term()), (3, Term(1001)));
    }

    #[test]
    fn one_who_slept_through_a_hundred_lives_is_superseded_by_the_loss_of_its_own() {
        let dir = Scratch::new();
        let first = Claim::stake(dir.path(), "one", at(1)).unwrap();
        (0..=KEPT).for_each(|_| drop(Claim::stake(dir.path(), "later", at(2)).unwrap()));
        assert!(!dir.path().join("claims/1").exists());
        assert!(matches!(first.renew(), Err(ClaimError::Superseded { .. })));
    }
}
