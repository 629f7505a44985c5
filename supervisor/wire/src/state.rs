//! The states of a job and of a task, spelled as the original spelled them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::BadInput;

/// Where a job or task stands.
///
/// ```text
///   Pending[ ] ──placed──▶ Pending[A] ──started──▶ Running ──▶ Finished | Timeout | Failed | Killed
///       │  ▲                  │   │                                              ▲
///       │  └──did not fit─────┘   └──launch failed, killed───────────────────────┤
///       └──killed, no node could ever run it─────────────────────────────────────┘
/// ```
///
/// The last four are final and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum State {
    /// No node yet.
    #[serde(rename = "Pending[ ]")]
    Pending,
    /// Given to a node, not started.
    #[serde(rename = "Pending[A]")]
    Assigned,
    /// The command runs.
    Running,
    /// Exit status 0.
    Finished,
    /// Stopped because its time was up.
    Timeout,
    /// Everything else that went wrong; always with a [`crate::Reason`].
    Failed,
    /// Stopped because somebody asked for it.
    Killed,
}

impl State {
    /// Every state, in the order of a job's life.
    pub const ALL: [State; 7] = [
        State::Pending,
        State::Assigned,
        State::Running,
        State::Finished,
        State::Timeout,
        State::Failed,
        State::Killed,
    ];

    /// The state as JSON and HTML show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Pending => "Pending[ ]",
            State::Assigned => "Pending[A]",
            State::Running => "Running",
            State::Finished => "Finished",
            State::Timeout => "Timeout",
            State::Failed => "Failed",
            State::Killed => "Killed",
        }
    }

    /// Whether it can never change again.
    pub const fn is_final(self) -> bool {
        match self {
            State::Pending | State::Assigned | State::Running => false,
            State::Finished | State::Timeout | State::Failed | State::Killed => true,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Self, BadInput> {
        State::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = State::ALL.iter().map(|state| state.as_str()).collect();
            BadInput::new("status", format!("{text:?} is not one of {}", known.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_text_spell_each_state_alike() {
        for state in State::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("{:?}", state.as_str()));
            assert_eq!(state.as_str().parse::<State>().unwrap(), state);
        }
        assert!("pending".parse::<State>().is_err());
    }
}
