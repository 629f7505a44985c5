//! A job as the master knows it, and a node as the master shows it: the words of this crate.

use std::time::Duration;

use jiff::Timestamp;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use wire::node::NodeResource;
use wire::{Attempt, JobId, JobSpec, NodeId, Reason, State, TaskId};

/// One job: what was asked, and what has become of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// What its user submitted.
    pub spec: JobSpec,
    /// Where it stands.
    pub status: State,
    /// Why it failed.
    pub cause: Option<Reason>,
    /// The command's exit status, if it exited.
    pub exit_code: Option<i32>,
    /// Where it was placed last.
    pub placed: Option<Placed>,
    /// How often it was placed; `Attempt(0)` before the first time.
    pub attempt: Attempt,
    /// The lease its attempt runs under, if it does.
    pub lease: Option<Lease>,
    /// How many of its attempts were lost with their nodes, and tried again.
    pub lost_attempts: u32,
    /// When it was accepted.
    pub submitted_at: Timestamp,
    /// When the command started, by the node's clock.
    pub started_at: Option<Timestamp>,
    /// When it reached its final state.
    pub ended_at: Option<Timestamp>,
    /// CPU time used, in milliseconds; known once ended.
    pub cpu_ms: Option<u64>,
    /// The most memory it held, in bytes; known once ended.
    pub memory_peak_bytes: Option<u64>,
}

/// A job's place: the node, and the task there once the node has named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The node.
    pub node: NodeId,
    /// The node's number for this attempt.
    pub task: Option<TaskId>,
}

/// The lease of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// For how long the node may run it unheard of.
    pub length: Duration,
    /// Nobody renews it: the node has another state dir, or was taken out of the cluster.
    pub abandoned: bool,
}

impl Job {
    /// A job nobody has placed yet.
    pub fn submitted(id: JobId, spec: JobSpec, submitted_at: Timestamp) -> Job {
        Job {
            id,
            spec,
            status: State::Pending,
            cause: None,
            exit_code: None,
            placed: None,
            attempt: Attempt(0),
            lease: None,
            lost_attempts: 0,
            submitted_at,
            started_at: None,
            ended_at: None,
            cpu_ms: None,
            memory_peak_bytes: None,
        }
    }

    /// Whether its node took its attempt, and has said as which task.
    pub fn is_numbered(&self) -> bool {
        self.placed.is_some_and(|placed| placed.task.is_some())
    }

    /// Whether its attempt is on a node that will not tell of it.
    pub fn is_abandoned(&self) -> bool {
        self.lease.is_some_and(|lease| lease.abandoned)
    }

    /// Why it failed, in words.
    pub fn reason(&self) -> Option<String> {
        self.cause.as_ref().map(ToString::to_string)
    }
}

impl Serialize for Job {
    /// The contract's fields: those of the job as submitted, then what became of it; `nodeId` and
    /// `taskId` are -1 before placement, as in the original.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = |id: Option<u64>| id.and_then(|id| i64::try_from(id).ok()).unwrap_or(-1);
        let mut job = serializer.serialize_struct("Job", 21)?;
        job.serialize_field("jobId", &self.id)?;
        job.serialize_field("name", &self.spec.name)?;
        job.serialize_field("resource", &self.spec.resource)?;
        job.serialize_field("commandLine", &self.spec.command_line)?;
        job.serialize_field("packagePath", &self.spec.package_path)?;
        job.serialize_field("imageId", &self.spec.image_id)?;
        job.serialize_field("timeout", &self.spec.timeout)?;
        job.serialize_field("onNodeLoss", &self.spec.on_node_loss)?;
        job.serialize_field("status", &self.status)?;
        job.serialize_field("reason", &self.reason())?;
        job.serialize_field("cause", &self.cause)?;
        job.serialize_field("nodeId", &number(self.placed.map(|placed| u64::from(placed.node.0))))?;
        job.serialize_field("taskId", &number(self.placed.and_then(|placed| placed.task).map(|task| task.0)))?;
        job.serialize_field("attempt", &self.attempt)?;
        job.serialize_field("lostAttempts", &self.lost_attempts)?;
        job.serialize_field("exitCode", &self.exit_code)?;
        job.serialize_field("submittedAt", &self.submitted_at)?;
        job.serialize_field("startedAt", &self.started_at)?;
        job.serialize_field("endedAt", &self.ended_at)?;
        job.serialize_field("cpuMs", &self.cpu_ms)?;
        job.serialize_field("memoryPeakBytes", &self.memory_peak_bytes)?;
        job.end()
    }
}

/// A node as the master shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Where it listens, as the operator wrote it.
    pub addr: String,
    /// Whether it answers.
    pub state: NodeState,
    /// What it last said of itself.
    pub resource: Option<NodeResource>,
    /// What an operator should know of it, in sentences that begin after its name.
    pub notes: Vec<String>,
}

/// Whether a node answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// Not heard of yet since this master started.
    Unknown,
    /// It answers.
    Ready,
    /// It does not; the sentence says what was seen.
    Lost {
        /// Since when.
        since: Timestamp,
        /// What was seen: `connect to 127.0.0.1:5000: connection refused`.
        why: String,
    },
}

impl NodeState {
    /// The state as JSON and HTML show it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            NodeState::Unknown => "unknown",
            NodeState::Ready => "ready",
            NodeState::Lost { .. } => "lost",
        }
    }
}

impl Serialize for Node {
    /// `cpu`, `mem` are what is free, `cpuTotal`, `memTotal` what there is; 0 before the first answer.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let said = self.resource.as_ref();
        let mut node = serializer.serialize_struct("Node", 17)?;
        node.serialize_field("nodeId", &self.id)?;
        node.serialize_field("addr", &self.addr)?;
        node.serialize_field("state", self.state.as_str())?;
        let (since, why) = match &self.state {
            NodeState::Lost { since, why } => (Some(since), Some(why)),
            NodeState::Unknown | NodeState::Ready => (None, said.and_then(|said| said.closed.as_ref())),
        };
        node.serialize_field("lostSince", &since)?;
        node.serialize_field("why", &why)?;
        node.serialize_field("notes", &self.notes)?;
        node.serialize_field("cpu", &said.map(|said| said.cpu).unwrap_or_default())?;
        node.serialize_field("mem", &said.map_or(0, |said| said.mem))?;
        node.serialize_field("cpuTotal", &said.map(|said| said.cpu_total).unwrap_or_default())?;
        node.serialize_field("memTotal", &said.map_or(0, |said| said.mem_total))?;
        node.serialize_field("tasks", &said.map_or(0, |said| said.tasks))?;
        node.serialize_field("leaks", &said.map_or(0, |said| said.leaks))?;
        node.serialize_field("load", &said.map(|said| said.load))?;
        node.serialize_field("images", &said.map(|said| &said.images))?;
        node.serialize_field("version", &said.map(|said| &said.version))?;
        node.serialize_field("kernel", &said.map(|said| &said.kernel))?;
        node.serialize_field("cgroups", &said.map(|said| &said.cgroups))?;
        node.serialize_field("union", &said.map(|said| &said.union))?;
        node.end()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A job that asks for little.
    pub fn spec() -> JobSpec {
        let text = r#"{"name":"a","resource":{"cpu":1,"mem":64},"commandLine":"sleep 5","imageId":"busybox"}"#;
        wire::json::from_slice(text.as_bytes()).unwrap()
    }

    #[test]
    fn before_placement_node_and_task_are_minus_one_and_the_rest_is_null() {
        let job = Job::submitted(JobId(7), spec(), Timestamp::UNIX_EPOCH);
        expect_test::expect![[
            r#"{"jobId":7,"name":"a","resource":{"cpu":1,"mem":64},"commandLine":"sleep 5","packagePath":"","imageId":"busybox","timeout":0,"onNodeLoss":"wait","status":"Pending[ ]","reason":null,"cause":null,"nodeId":-1,"taskId":-1,"attempt":0,"lostAttempts":0,"exitCode":null,"submittedAt":"1970-01-01T00:00:00Z","startedAt":null,"endedAt":null,"cpuMs":null,"memoryPeakBytes":null}"#
        ]]
        .assert_eq(&serde_json::to_string(&job).unwrap());
    }
}
