//! Exchanges that wait for a connection, and how many have one: a line for each address and queue. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;

use super::client::{ExchangeId, Queue};

/// Where an exchange stands.
pub(super) type Line = (SocketAddr, Queue);

/// All lines in which somebody stands or has a connection.
#[derive(Debug)]
pub(super) struct Lines<T> {
    lines: HashMap<Line, Standing<T>>,
    /// Whose turn it may be: of each line that may have one more under way, its first. A line that may not has none here,
    /// however many lines there are.
    next: BTreeMap<ExchangeId, Line>,
}

#[derive(Debug)]
struct Standing<T> {
    waiting: VecDeque<(ExchangeId, T)>,
    under_way: usize,
}

impl<T> Lines<T> {
    pub(super) fn new() -> Lines<T> {
        Lines { lines: HashMap::new(), next: BTreeMap::new() }
    }

    /// Stands behind all others of its line.
    pub(super) fn join(&mut self, line: Line, id: ExchangeId, it: T) {
        self.at(line, |standing| standing.waiting.push_back((id, it)));
    }

    /// Stands before all others of its line: it had its turn, and it came to nothing.
    pub(super) fn join_in_front(&mut self, line: Line, id: ExchangeId, it: T) {
        self.at(line, |standing| standing.waiting.push_front((id, it)));
    }

    /// Of the lines that may have one more under way, the one whose first was asked before those of the others.
    pub(super) fn whose_turn(&self) -> Option<Line> {
        self.next.first_key_value().map(|(_, line)| *line)
    }

    /// The first of a line is under way from now on, until it [`ends`](Lines::ended).
    pub(super) fn begin(&mut self, line: Line) -> Option<T> {
        self.at(line, |standing| {
            let (_, it) = standing.waiting.pop_front()?;
            standing.under_way += 1;
            Some(it)
        })
    }

    /// One of this line is no longer under way.
    pub(super) fn ended(&mut self, line: Line) {
        self.at(line, |standing| standing.under_way = standing.under_way.saturating_sub(1));
    }

    /// Takes one that waits out of its line.
    pub(super) fn leave(&mut self, line: Line, id: ExchangeId) -> Option<T> {
        self.at(line, |standing| {
            let index = standing.waiting.iter().position(|(other, _)| *other == id)?;
            standing.waiting.remove(index).map(|(_, it)| it)
        })
    }

    /// Changes a line, and what `next` says of it.
    fn at<R>(&mut self, line: Line, change: impl FnOnce(&mut Standing<T>) -> R) -> R {
        let standing = self.lines.entry(line).or_insert_with(|| Standing { waiting: VecDeque::new(), under_way: 0 });
        if let Some((first, _)) = standing.waiting.front() {
            self.next.remove(first);
        }
        let result = change(standing);
        if standing.under_way < line.1.at_once()
            && let Some((first, _)) = standing.waiting.front()
        {
            self.next.insert(*first, line);
        }
        if standing.waiting.is_empty() && standing.under_way == 0 {
            self.lines.remove(&line);
        }
        result
    }
}
