//! Exchanges that wait for a connection, and how many have one: a line for each address and queue. Pure.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use super::client::{ExchangeId, Queue};

/// Where an exchange stands.
pub(super) type Line = (SocketAddr, Queue);

/// All lines in which somebody stands or has a connection.
#[derive(Debug)]
pub(super) struct Lines<T> {
    waiting: HashMap<Line, VecDeque<(ExchangeId, T)>>,
    under_way: HashMap<Line, usize>,
}

impl<T> Lines<T> {
    pub(super) fn new() -> Lines<T> {
        Lines { waiting: HashMap::new(), under_way: HashMap::new() }
    }

    /// Stands behind all others of its line.
    pub(super) fn join(&mut self, line: Line, id: ExchangeId, it: T) {
        self.waiting.entry(line).or_default().push_back((id, it));
    }

    /// Stands before all others of its line: it had its turn, and it came to nothing.
    pub(super) fn join_in_front(&mut self, line: Line, id: ExchangeId, it: T) {
        self.waiting.entry(line).or_default().push_front((id, it));
    }

    /// Of the lines that may have one more under way, the one whose first was asked before those of the others.
    pub(super) fn whose_turn(&self) -> Option<Line> {
        let has_place = |line: &Line| self.under_way.get(line).is_none_or(|count| *count < line.1.at_once());
        let first = |(line, waiting): (&Line, &VecDeque<(ExchangeId, T)>)| Some((waiting.front()?.0, *line));
        let firsts = self.waiting.iter().filter(|(line, _)| has_place(line)).filter_map(first);
        firsts.min_by_key(|(id, _)| *id).map(|(_, line)| line)
    }

    /// The first of a line is under way from now on, until it [`ends`](Lines::ended).
    pub(super) fn begin(&mut self, line: Line) -> Option<T> {
        let waiting = self.waiting.get_mut(&line)?;
        let (_, it) = waiting.pop_front()?;
        if waiting.is_empty() {
            self.waiting.remove(&line);
        }
        *self.under_way.entry(line).or_default() += 1;
        Some(it)
    }

    /// One of this line is no longer under way.
    pub(super) fn ended(&mut self, line: Line) {
        if let Some(count) = self.under_way.get_mut(&line) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&line);
            }
        }
    }

    /// Takes one that waits out of its line.
    pub(super) fn leave(&mut self, line: Line, id: ExchangeId) -> Option<T> {
        let waiting = self.waiting.get_mut(&line)?;
        let index = waiting.iter().position(|(other, _)| *other == id)?;
        let (_, it) = waiting.remove(index)?;
        if waiting.is_empty() {
            self.waiting.remove(&line);
        }
        Some(it)
    }
}
