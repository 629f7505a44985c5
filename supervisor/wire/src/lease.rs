//! Leases: what becomes of a job whose node is not heard of, and for how long a node may run a task unheard.
//!
//! A node stamps what it says with its own clock. Whoever hears the stamp gives it back with the next call, and a task
//! under a lease may run until so long after the newest stamp that came back (Gray and Cheriton, "Leases: an efficient
//! fault-tolerant mechanism for distributed file cache consistency", 1989). The node alone compares its clock with its
//! own stamps, so no two clocks have to agree, and a call that was under way for an hour brings a stamp an hour old.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::BadInput;

/// The longest lease: a week, in milliseconds.
pub const MAX_LEASE_MS: u64 = 7 * 24 * 3600 * 1000;

/// A moment on a node's own clock, which only that node can read. Letters, digits, dashes and dots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(pub String);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Until when a task may run: so long after the newest stamp that its master has given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLease {
    /// How long, in milliseconds.
    pub ms: u64,
    /// The newest stamp its master has heard.
    pub heard: Stamp,
}

impl TaskLease {
    /// One of that length.
    pub fn new(length: Duration, heard: Stamp) -> TaskLease {
        TaskLease { ms: u64::try_from(length.as_millis()).unwrap_or(MAX_LEASE_MS), heard }
    }
}

/// What becomes of a job when its node is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNodeLoss {
    /// Nothing: it stays there until the node is back, or is taken out of the cluster.
    #[default]
    Wait,
    /// It fails, once nothing of it can be alive.
    Fail,
    /// It is tried again elsewhere, once nothing of it can be alive.
    Retry,
}

impl OnNodeLoss {
    /// All of them.
    pub const ALL: [OnNodeLoss; 3] = [OnNodeLoss::Wait, OnNodeLoss::Fail, OnNodeLoss::Retry];

    /// As JSON and forms spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            OnNodeLoss::Wait => "wait",
            OnNodeLoss::Fail => "fail",
            OnNodeLoss::Retry => "retry",
        }
    }
}

impl fmt::Display for OnNodeLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for OnNodeLoss {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<OnNodeLoss, BadInput> {
        let known = OnNodeLoss::ALL.into_iter().find(|choice| choice.as_str() == text);
        known.ok_or_else(|| BadInput::new("onNodeLoss", format!("{text:?} is none of wait, fail, retry")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_forms_spell_each_choice_alike() {
        for choice in OnNodeLoss::ALL {
            assert_eq!(serde_json::to_string(&choice).unwrap(), format!("\"{choice}\""));
            assert_eq!(choice.as_str().parse(), Ok(choice));
        }
        assert_eq!("Retry".parse::<OnNodeLoss>().unwrap_err().field, "onNodeLoss");
    }
}
