//! What a node says of itself, and the envelope of its answers.

use serde::{Deserialize, Serialize};

use crate::cpu::{CpuAmount, CpuSet};
use crate::ids::{Attempt, BootId, EventNumber, ImageId, InstanceId, JobId, NodeId, TaskId, Term};
use crate::lease::Stamp;
use crate::task::TaskReport;

/// `GET /resource`: what is free now, and what the node has and is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeResource {
    /// CPU not given to a task.
    pub cpu: CpuAmount,
    /// Memory not given to a task, in MiB.
    pub mem: u64,
    /// All the CPU it gives out.
    pub cpu_total: CpuAmount,
    /// All the memory it gives out, in MiB.
    pub mem_total: u64,
    /// The CPUs a job may pin to.
    pub cpus: CpuSet,
    /// The node's number.
    pub node_id: NodeId,
    /// Born with its state dir.
    pub instance: InstanceId,
    /// This boot of the machine.
    pub boot_id: BootId,
    /// How long ago that was, in milliseconds; an older node does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_ms: Option<u64>,
    /// Tasks that are not yet in a final state.
    pub tasks: u64,
    /// Load averages over 1, 5 and 15 minutes (proc(5), /proc/loadavg).
    pub load: [f64; 3],
    /// The images it can run.
    pub images: Vec<ImageId>,
    /// Folders packages may come from.
    pub package_roots: Vec<String>,
    /// berth's version.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
    /// How it limits: `v1`, `hybrid` or `v2`.
    pub cgroups: String,
    /// How it unites layers: `overlay` or `aufs`.
    pub union: String,
    /// Cgroups and container folders of its that no task stands behind, as last counted. 0 on a healthy node.
    #[serde(default)]
    pub leaks: u64,
    /// When it said this, by its own clock; an older node does not tell, and knows no leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// Why it is to get no task at present, however much is free: its disk is full, it cannot write its journal, or those it
    /// has wait for its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<String>,
}

/// `data` of `GET /task/events`: every task whose latest change is after N, oldest change first.
/// With `after=0` that is every task the node still remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// The number to give as `after` next time.
    pub last: EventNumber,
    /// The changes.
    pub events: Vec<TaskReport>,
    /// What is free after them.
    pub resource: NodeResource,
    /// What is remembered of the master that asks, if it has a name that was heard before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered: Option<Remembered>,
}

/// What a node remembers of a master beyond the tasks it can still tell of: a master whose database was put back from an
/// older copy learns from it what it has done since that copy was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    /// The highest number of its jobs that was ever heard of here.
    pub last_job: JobId,
    /// Acknowledged ends up to this one are not listed below, being too many.
    pub unlisted_to: EventNumber,
    /// The latest of its terms that has spoken here.
    #[serde(default)]
    pub term: Term,
    /// The latest ends it has acknowledged, oldest first; only with `after=0`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acknowledged: Vec<AcknowledgedEnd>,
}

/// A task that has ended, whose master has heard of it, and of which nothing else is known any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AcknowledgedEnd {
    /// The number of its end.
    pub event: EventNumber,
    /// The job.
    pub job_id: JobId,
    /// Which attempt.
    pub attempt: Attempt,
}

/// `data` of `POST /task/create`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Created {
    /// The task that was started, or had been by an earlier asking.
    pub task_id: TaskId,
}

/// Every answer of a node but `/resource`: `{"code":0,"data":...}` or `{"code":1,"error":...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer<T> {
    /// 0: it was done.
    pub code: u8,
    /// What was asked for.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub data: Option<T>,
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
}

impl<T> Answer<T> {
    /// It was done.
    pub fn done(data: T) -> Answer<T> {
        Answer { code: 0, data: Some(data), error: None }
    }

    /// It was not done.
    pub fn refused(error: Refusal) -> Answer<T> {
        Answer { code: 1, data: None, error: Some(error) }
    }

    /// The data, or why there is none.
    pub fn into_result(self) -> Result<T, Refusal> {
        match (self.data, self.error) {
            (Some(data), None) if self.code == 0 => Ok(data),
            (_, Some(error)) => Err(error),
            _ => Err(Refusal::new(RefusalCode::Internal, "the node answered neither data nor an error")),
        }
    }
}

/// Why something was refused, by master and node alike: `{"code", "message", "field"?}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people.
    pub message: String,
    /// Which field was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// The kinds of refusal, for programs to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// A field is wrong; asking again will not help.
    BadInput,
    /// It fits the node, but not now.
    NoRoom,
    /// It could never run on this node.
    Impossible,
    /// It was asked for by what the node said before: in another boot of its machine, or with a stamp that is too old to
    /// begin a lease with. Ask what is free, and again by what that says.
    Stale,
    /// This attempt has run here, and its master has acknowledged its end.
    AlreadyRun,
    /// A later term of the same master has spoken.
    Superseded,
    /// There is no such thing.
    NotFound,
    /// Who asks may not.
    Forbidden,
    /// Who asks did not say who they are.
    Unauthorized,
    /// This path does not take that method.
    MethodNotAllowed,
    /// Too much at once; ask again later.
    Busy,
    /// Something broke here; the log says what.
    Internal,
    /// A code a newer version knows.
    #[serde(other)]
    Unknown,
}

impl Refusal {
    /// A refusal without a field.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), field: None }
    }

    /// The HTTP status that says the same (RFC 9110, section 15).
    pub fn http_status(&self) -> u16 {
        match self.code {
            RefusalCode::BadInput | RefusalCode::Impossible => 400,
            RefusalCode::Unauthorized => 401,
            RefusalCode::Forbidden => 403,
            RefusalCode::NotFound => 404,
            RefusalCode::MethodNotAllowed => 405,
            RefusalCode::NoRoom | RefusalCode::AlreadyRun | RefusalCode::Stale | RefusalCode::Superseded => 409,
            RefusalCode::Busy => 503,
            RefusalCode::Internal | RefusalCode::Unknown => 500,
        }
    }
}

impl From<crate::failure::BadInput> for Refusal {
    fn from(bad: crate::failure::BadInput) -> Refusal {
        Refusal { code: RefusalCode::BadInput, message: bad.message, field: Some(bad.field) }
    }
}
