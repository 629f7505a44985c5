//! Which slot must be looked at when. Pure; the owner's poll sleeps to the least of them.

use std::collections::BTreeSet;
use std::time::Instant;

/// At most one deadline per slot, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Instant, usize)>,
    of_slot: Vec<Option<Instant>>,
}

impl Deadlines {
    /// Sets, moves or removes the deadline of a slot.
    pub(super) fn set(&mut self, slot: usize, deadline: Option<Instant>) {
        if self.of_slot.len() <= slot {
            self.of_slot.resize(slot + 1, None);
        }
        if self.of_slot[slot] == deadline {
            return;
        }
        if let Some(old) = self.of_slot[slot] {
            self.by_time.remove(&(old, slot));
        }
        if let Some(new) = deadline {
            self.by_time.insert((new, slot));
        }
        self.of_slot[slot] = deadline;
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(instant, _)| *instant)
    }

    /// Takes one slot whose deadline is not after `now`.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<usize> {
        let (_, slot) = self.by_time.first().copied().filter(|(instant, _)| *instant <= now)?;
        self.set(slot, None);
        Some(slot)
    }

    /// Slots by deadline, the earliest first.
    pub(super) fn slots(&self) -> impl Iterator<Item = usize> {
        self.by_time.iter().map(|(_, slot)| *slot)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_moved_deadline_is_due_once_at_its_last_place() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut deadlines = Deadlines::default();
        deadlines.set(3, Some(at(1)));
        deadlines.set(3, Some(at(5)));
        deadlines.set(1, Some(at(2)));
        assert_eq!(deadlines.next(), Some(at(2)));
        assert_eq!(deadlines.take_due(at(1)), None);
        assert_eq!((deadlines.take_due(at(9)), deadlines.take_due(at(9))), (Some(1), Some(3)));
        assert_eq!((deadlines.take_due(at(9)), deadlines.next()), (None, None));
    }
}
