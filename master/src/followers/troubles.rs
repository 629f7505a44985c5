//! How many logs are looked at at once, and of which nodes: one that does not answer holds up its own followers alone. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use wire::NodeId;

/// How long a node whose log could not be read is left alone, at first and at most.
const LEFT_ALONE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(8)];

/// The looks under way, and the nodes in trouble.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    most: usize,
    under_way: BTreeMap<NodeId, usize>,
    troubled: BTreeMap<NodeId, Trouble>,
}

#[derive(Debug, Clone, Copy)]
struct Trouble {
    until: Instant,
    pause: Duration,
}

impl Troubles {
    /// None yet. At most so many looks at once.
    pub(super) fn new(most: usize) -> Troubles {
        Troubles { most, ..Troubles::default() }
    }

    /// When a log of this node may be looked at; `None`: when a look under way has come to its end.
    pub(super) fn may_look(&self, node: NodeId, now: Instant) -> Option<Instant> {
        if self.under_way.values().sum::<usize>() >= self.most {
            return None;
        }
        match self.troubled.get(&node) {
            // One tries for all.
            Some(_) if self.under_way.contains_key(&node) => None,
            Some(trouble) => Some(trouble.until.max(now)),
            None => Some(now),
        }
    }

    /// A look at one of its logs begins.
    pub(super) fn begin(&mut self, node: NodeId) {
        *self.under_way.entry(node).or_default() += 1;
    }

    /// It has come to its end.
    pub(super) fn end(&mut self, node: NodeId, failed: bool, now: Instant) {
        match self.under_way.get_mut(&node) {
            Some(looks) if *looks > 1 => *looks -= 1,
            _ => drop(self.under_way.remove(&node)),
        }
        if failed {
            let [first, most] = LEFT_ALONE;
            let pause = self.troubled.get(&node).map_or(first, |trouble| (trouble.pause * 2).min(most));
            self.troubled.insert(node, Trouble { until: now + pause, pause });
        } else {
            self.troubled.remove(&node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_in_trouble_is_tried_one_look_at_a_time_and_ever_less_often() {
        let now = Instant::now();
        let mut troubles = Troubles::new(4);
        let (good, bad) = (NodeId(1), NodeId(2));
        for (pause, at) in [1, 2, 4, 8, 8].into_iter().zip([0, 10, 20, 30, 40]) {
            let now = now + Duration::from_secs(at);
            assert_eq!(troubles.may_look(bad, now), Some(now));
            troubles.begin(bad);
            assert_eq!(troubles.may_look(bad, now).is_none(), at > 0, "in trouble, a second look has to wait");
            troubles.end(bad, true, now);
            assert_eq!(troubles.may_look(bad, now), Some(now + Duration::from_secs(pause)));
            assert_eq!(troubles.may_look(good, now), Some(now));
        }
        troubles.begin(bad);
        troubles.end(bad, false, now);
        assert_eq!(troubles.may_look(bad, now), Some(now));
    }

    #[test]
    fn no_more_looks_are_under_way_than_there_are_threads() {
        let now = Instant::now();
        let mut troubles = Troubles::new(2);
        troubles.begin(NodeId(1));
        troubles.begin(NodeId(2));
        assert_eq!(troubles.may_look(NodeId(3), now), None);
        troubles.end(NodeId(1), false, now);
        assert_eq!(troubles.may_look(NodeId(3), now), Some(now));
    }
}
