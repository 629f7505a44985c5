//! A task: what a master asks of a node, and what the node tells of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cpu::CpuRequest;
use crate::failure::{BadInput, Reason};
use crate::ids::{Attempt, ContainerId, EventNumber, ImageId, InstanceId, JobId, TaskId};
use crate::job::{JobSpec, Resource};
use crate::lease::{OnNodeLoss, TaskLease};
use crate::state::State;

/// The longest name of a master, in bytes: it is repeated in every report.
pub const MAX_MASTER: usize = 64;

/// The body of `POST /task/create`: a job's JSON plus which attempt of which job it is.
///
/// The original's master also sends `status`, `nodeId` and `taskId`; they are ignored, as is every
/// key this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskRequest {
    /// As in [`JobSpec`].
    #[serde(default)]
    pub name: String,
    /// As in [`JobSpec`].
    pub resource: RequestedResource,
    /// As in [`JobSpec`].
    pub command_line: String,
    /// As in [`JobSpec`].
    #[serde(default)]
    pub package_path: String,
    /// As in [`JobSpec`].
    pub image_id: ImageId,
    /// As in [`JobSpec`].
    #[serde(default)]
    pub timeout: u64,
    /// The job this is an attempt of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// Which attempt. Without it every create starts a new task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Whose job it is: two masters may both have a job 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<InstanceId>,
    /// Until when it may run unheard of; without one, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<TaskLease>,
}

/// [`Resource`], forgiving of keys this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestedResource {
    /// As in [`Resource`].
    pub cpu: CpuRequest,
    /// As in [`Resource`].
    pub mem: u64,
}

/// What makes two creates the same: asking twice starts the task once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptKey {
    /// The master that owns the job; the original's has no name.
    pub master: Option<InstanceId>,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: Attempt,
}

impl TaskRequest {
    /// What a master sends for `attempt` of job `job_id`.
    pub fn new(spec: JobSpec, job_id: JobId, attempt: Attempt, master: InstanceId) -> TaskRequest {
        let origin = TaskOrigin { job_id: Some(job_id), attempt: Some(attempt), master: Some(master) };
        TaskRequest::from_origin(spec, origin)
    }

    /// The request that asks for `spec` on behalf of `origin`.
    pub fn from_origin(spec: JobSpec, origin: TaskOrigin) -> TaskRequest {
        TaskRequest {
            name: spec.name,
            resource: RequestedResource { cpu: spec.resource.cpu, mem: spec.resource.mem },
            command_line: spec.command_line,
            package_path: spec.package_path,
            image_id: spec.image_id,
            timeout: spec.timeout,
            job_id: origin.job_id,
            attempt: origin.attempt,
            master: origin.master,
            lease: None,
        }
    }

    /// The same under a lease, or without one.
    pub fn under(self, lease: Option<TaskLease>) -> TaskRequest {
        TaskRequest { lease, ..self }
    }

    /// The idempotency key, where the request has one.
    pub fn key(&self) -> Option<AttemptKey> {
        Some(AttemptKey { master: self.master.clone(), job: self.job_id?, attempt: self.attempt? })
    }

    /// The job in it, checked as at submission.
    pub fn into_spec(self) -> Result<JobSpec, BadInput> {
        if let Some(master) = self.master.as_ref().filter(|master| master.0.len() > MAX_MASTER) {
            return Err(BadInput::new(
                "master",
                format!("is {} bytes long; at most {MAX_MASTER} are taken", master.0.len()),
            ));
        }
        let spec = self.into_known_spec();
        spec.check()?;
        Ok(spec)
    }

    /// The job in a request that was checked before, when it was accepted.
    pub fn into_known_spec(self) -> JobSpec {
        JobSpec {
            name: if self.name.is_empty() { "unnamed".to_owned() } else { self.name },
            resource: Resource { cpu: self.resource.cpu, mem: self.resource.mem },
            command_line: self.command_line,
            package_path: self.package_path,
            image_id: self.image_id,
            timeout: self.timeout,
            on_node_loss: OnNodeLoss::Wait,
        }
    }
}

/// What a node says of a task: the `data` of `/task/info`, and each entry of `/task/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskReport {
    /// The number of the task's latest state change.
    pub event: EventNumber,
    /// The task.
    pub task_id: TaskId,
    /// Its container, `t<taskId>-cont`.
    pub container_id: ContainerId,
    /// Which job it is an attempt of, if its master said so.
    #[serde(flatten)]
    pub key: TaskOrigin,
    /// `Pending[A]`, `Running` or a final state.
    pub status: State,
    /// Why it failed, typed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Reason>,
    /// Why it failed, in words; what `cause` prints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What holds it up, in words, if it should have gone on or ended and something keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<String>,
    /// The command's exit status, if it exited.
    pub exit_code: Option<i32>,
    /// When the command started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// CPU time used, user and system, in milliseconds; known once ended.
    pub cpu_ms: Option<u64>,
    /// The most memory it held, in bytes; known once ended.
    pub memory_peak_bytes: Option<u64>,
}

/// Where a task came from, as far as its master said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskOrigin {
    /// The job.
    #[serde(default)]
    pub job_id: Option<JobId>,
    /// The attempt.
    #[serde(default)]
    pub attempt: Option<Attempt>,
    /// The master.
    #[serde(default)]
    pub master: Option<InstanceId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn the_originals_create_is_taken_with_its_extra_keys_and_has_no_key() {
        let text = r#"{"jobId":3,"name":"a","resource":{"cpu":"0,1","mem":512},"commandLine":"true","packagePath":"",
            "imageId":"busybox","timeout":1000,"status":"Pending[A]","nodeId":0,"taskId":-1}"#;
        let request: TaskRequest = json::from_slice(text.as_bytes()).unwrap();
        assert_eq!(request.key(), None);
        assert_eq!(request.into_spec().unwrap().resource.mem, 512);
    }
}
