//! Which of a master's lives speaks. Every start of a master on a state dir begins a term, later than all before it; a node
//! that has heard a later one takes nothing any more from an earlier. So two masters of one state dir, however that came to
//! be, never order anything side by side.

use std::fmt;
use std::str::FromStr;

use crate::failure::BadInput;
use crate::ids::{InstanceId, Term};
use crate::task::MAX_MASTER;

/// The header of a node's call in which a master says who speaks: `Berth-Master: NAME TERM`. The original's master does
/// not, and is listened to.
pub const HEADER: &str = "Berth-Master";
/// Half of what JSON's whole numbers can hold (RFC 8259, section 6): what is above it is a mistake, and would lock out
/// every later master.
const MAX_TERM: u64 = 1 << 52;

/// A master in one of its terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speaker {
    /// Its name.
    pub master: InstanceId,
    /// The term.
    pub term: Term,
}

impl fmt::Display for Speaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.master, self.term)
    }
}

impl FromStr for Speaker {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Speaker, BadInput> {
        let bad = || BadInput::new(HEADER, format!("{text:?} is not a master's name and its term, as in \"a1b2 17\""));
        let (master, term) = text.split_once(' ').ok_or_else(bad)?;
        let term: Term = term.parse().map_err(|_| bad())?;
        let sensible = (1..=MAX_MASTER).contains(&master.len()) && (1..=MAX_TERM).contains(&term.0);
        sensible.then(|| Speaker { master: InstanceId(master.to_owned()), term }).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speaker_is_read_as_it_is_written_and_an_absurd_one_is_refused() {
        let speaker = Speaker { master: InstanceId("a1b2".into()), term: Term(1_764_160_000_000) };
        assert_eq!(speaker.to_string().parse(), Ok(speaker));
        for bad in ["", "a1b2", "a1b2 ", " 7", "a1b2 0", "a1b2 -1", "a1b2 7 8", "a1b2 18446744073709551615"] {
            assert_eq!(bad.parse::<Speaker>().unwrap_err().field, HEADER, "{bad:?}");
        }
    }
}
