//! A task's logs: which there are, what they are called, and where they lie on the share.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::BadInput;
use crate::ids::{NodeId, TaskId};

/// Which of a task's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Log {
    /// What the command wrote to its standard output.
    Stdout,
    /// What it wrote to its standard error.
    Stderr,
    /// What its init did, a line a step.
    Monitor,
}

impl Log {
    /// All of them, in the order people look at them.
    pub const ALL: [Log; 3] = [Log::Stdout, Log::Stderr, Log::Monitor];

    /// Its name in addresses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Log::Stdout => "stdout",
            Log::Stderr => "stderr",
            Log::Monitor => "monitor",
        }
    }

    /// Its file in the task's folder on the share.
    pub const fn file_name(self) -> &'static str {
        match self {
            Log::Stdout => "task_stdout",
            Log::Stderr => "task_stderr",
            Log::Monitor => "monitor_out",
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Log {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Self, BadInput> {
        let named = Log::ALL.into_iter().find(|log| log.as_str() == text);
        named.ok_or_else(|| BadInput::new("stream", format!("{text:?} is not one of stdout, stderr, monitor")))
    }
}

/// The folder of a task's logs: `<share>/nodes/<nodeId>/task<taskId>`.
pub fn folder(share: &Path, node: NodeId, task: TaskId) -> PathBuf {
    share.join("nodes").join(node.to_string()).join(format!("task{task}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_lie_where_the_contract_says() {
        let folder = folder(Path::new("/mnt/share"), NodeId(3), TaskId(7));
        let files = Log::ALL.map(|log| folder.join(log.file_name()).display().to_string());
        let below = |name: &str| format!("/mnt/share/nodes/3/task7/{name}");
        assert_eq!(files, ["task_stdout", "task_stderr", "monitor_out"].map(below));
    }

    #[test]
    fn a_log_is_named_in_addresses_by_one_word() {
        for log in Log::ALL {
            assert_eq!(log.as_str().parse::<Log>().unwrap(), log);
        }
        assert_eq!("task_stdout".parse::<Log>().unwrap_err().field, "stream");
    }
}
