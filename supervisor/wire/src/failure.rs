//! Why something is wrong: input we refuse, and the reasons a job can fail for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::logs::Log;
use crate::size;

/// Input that was refused: which field, and why, in words the sender can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{field}: {message}")]
pub struct BadInput {
    /// The field's path as the sender wrote it, e.g. `resource.mem` or `[2].imageId`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl BadInput {
    /// `field` is wrong because of `message`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> BadInput {
        BadInput { field: field.into(), message: message.into() }
    }

    /// The same, for the entry `index` of a list.
    pub fn in_entry(self, index: usize) -> BadInput {
        BadInput { field: format!("[{index}].{}", self.field), ..self }
    }
}

/// Why a task or job is `Failed`. Typed on the wire, and a sentence when printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Reason {
    /// The command ended with a status other than 0 (wait(2), WEXITSTATUS).
    ExitCode {
        /// 1 to 255.
        code: i32,
    },
    /// The command was ended by a signal that nobody here sent (wait(2), WTERMSIG).
    Signal {
        /// The signal's number on the node.
        signal: i32,
    },
    /// The kernel's OOM killer ended processes of the task, and the command failed.
    OutOfMemory {
        /// The most memory the task ever held; where that is not counted, its limit.
        peak_mib: u64,
        /// What it was allowed.
        limit_mib: u64,
    },
    /// The container could not be made, or the command could not be executed.
    LaunchFailed {
        /// What was being done, verb and object: `mount overlay`.
        step: String,
        /// What the kernel said: `EINVAL`.
        cause: String,
    },
    /// The node was booted anew while the task ran.
    NodeRebooted,
    /// The node has been silent for longer than the task's lease, or was taken out of the cluster.
    NodeLost {
        /// How many attempts were lost with their nodes; 0 and 1: this one.
        #[serde(default)]
        attempts: u32,
    },
    /// The node ended the task because its master was not heard of for as long as its lease.
    LeaseOver,
    /// The end was seen but its status was recorded by nobody.
    Lost,
    /// It has run, or may have, since the copy was made that the master's database was put back from.
    RanUnknown,
    /// It wrote more output than the node keeps of one task.
    LogLimit {
        /// To which stream.
        stream: Log,
        /// What that may hold at most.
        limit_bytes: u64,
    },
    /// The node refused the task as impossible; the sentence is the node's.
    Refused {
        /// Why.
        message: String,
    },
    /// A reason a newer version of berth knows. Kept as it came, never made into something else.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::ExitCode { code } => write!(f, "exit code {code}"),
            Reason::Signal { signal } => match signal_name(*signal) {
                Some(name) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
            Reason::OutOfMemory { peak_mib, limit_mib } => {
                // Who never came to its own limit was killed for that of others: the machine's memory, or that of a cgroup
                // the node lives in.
                let whose = if peak_mib < limit_mib { "node " } else { "" };
                write!(f, "{whose}out of memory (peak {peak_mib} MiB of {limit_mib} MiB)")
            }
            Reason::LaunchFailed { step, cause } => write!(f, "launch failed: {step}: {cause}"),
            Reason::NodeRebooted => f.write_str("node rebooted"),
            Reason::NodeLost { attempts: 0 | 1 } => f.write_str("node lost"),
            Reason::NodeLost { attempts } => write!(f, "node lost ({attempts} attempts, each lost with its node)"),
            Reason::LeaseOver => f.write_str("lease ran out"),
            Reason::Lost => f.write_str("lost"),
            Reason::RanUnknown => f.write_str(
                "lost: it has run, or may have, since the copy was made that the master's database was put back from",
            ),
            Reason::LogLimit { stream, limit_bytes } => {
                write!(f, "log limit ({stream} is over {})", size::in_words(*limit_bytes))
            }
            Reason::Refused { message } => write!(f, "refused by the node: {message}"),
            Reason::Unknown => f.write_str("a reason this version of berth does not know"),
        }
    }
}

/// The name of a standard signal, as signal(7) lists them for x86 and ARM.
fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    usize::try_from(signal).ok().and_then(|n| NAMES.get(n.checked_sub(1)?)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_the_contract_spells_them() {
        let said = |reason: Reason| reason.to_string();
        assert_eq!(said(Reason::ExitCode { code: 3 }), "exit code 3");
        assert_eq!(said(Reason::Signal { signal: 11 }), "signal 11 (SIGSEGV)");
        assert_eq!(said(Reason::Signal { signal: 64 }), "signal 64");
        let oom = |peak_mib| said(Reason::OutOfMemory { peak_mib, limit_mib: 64 });
        assert_eq!(oom(64), "out of memory (peak 64 MiB of 64 MiB)");
        assert_eq!(oom(63), "node out of memory (peak 63 MiB of 64 MiB)");
        let launch = Reason::LaunchFailed { step: "mount overlay".into(), cause: "EINVAL".into() };
        assert_eq!(said(launch), "launch failed: mount overlay: EINVAL");
        assert_eq!(said(Reason::NodeRebooted), "node rebooted");
        assert_eq!(said(Reason::NodeLost { attempts: 1 }), "node lost");
        assert_eq!(said(Reason::NodeLost { attempts: 3 }), "node lost (3 attempts, each lost with its node)");
        assert_eq!(said(Reason::LeaseOver), "lease ran out");
        let flood = Reason::LogLimit { stream: Log::Stderr, limit_bytes: 1 << 30 };
        assert_eq!(said(flood), "log limit (stderr is over 1 GiB)");
    }

    #[test]
    fn a_lost_node_of_an_older_version_counts_no_attempts() {
        let read: Reason = serde_json::from_str(r#"{"kind":"nodeLost"}"#).unwrap();
        assert_eq!(read, Reason::NodeLost { attempts: 0 });
    }

    #[test]
    fn a_reason_is_typed_on_the_wire_and_an_unknown_one_is_not_an_error() {
        let json = serde_json::to_string(&Reason::OutOfMemory { peak_mib: 1, limit_mib: 2 }).unwrap();
        assert_eq!(json, r#"{"kind":"outOfMemory","peakMib":1,"limitMib":2}"#);
        assert_eq!(serde_json::from_str::<Reason>(r#"{"kind":"eatenByABear"}"#).unwrap(), Reason::Unknown);
    }
}
