//! Jobs as tests write them, and as the master must answer them.

use serde::Deserialize;
use serde_json::{Value, json};

/// A small job of the busybox image that runs `command`: one CPU anywhere, 64 MiB, no time-out.
pub fn job(command: &str) -> Value {
    json!({
        "name": "test",
        "resource": {"cpu": 1, "mem": 64},
        "commandLine": command,
        "packagePath": "",
        "imageId": "busybox",
        "timeout": 0,
    })
}

/// `job` with some of its fields set to something else; `resource.mem` reaches inside.
pub fn job_with(command: &str, fields: &[(&str, Value)]) -> Value {
    let mut job = job(command);
    for (field, value) in fields {
        match field.split_once('.') {
            Some((outer, inner)) => job[outer][inner] = value.clone(),
            None => job[*field] = value.clone(),
        }
    }
    job
}

/// A job as the contract says it is answered; reading one fails where a field is missing.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the contract's own names")]
pub struct Job {
    pub job_id: u64,
    pub name: String,
    pub resource: Value,
    pub command_line: String,
    pub package_path: String,
    pub image_id: String,
    pub timeout: u64,
    pub status: String,
    #[serde(deserialize_with = "present")]
    pub reason: Option<String>,
    pub node_id: i64,
    pub task_id: i64,
    pub attempt: u32,
    #[serde(deserialize_with = "present")]
    pub exit_code: Option<i32>,
    pub submitted_at: String,
    #[serde(deserialize_with = "present")]
    pub started_at: Option<String>,
    #[serde(deserialize_with = "present")]
    pub ended_at: Option<String>,
    pub cpu_ms: Option<u64>,
    pub memory_peak_bytes: Option<u64>,
}

/// A field that may be null but must be there: without this serde forgives its absence.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(field: D) -> Result<Option<T>, D::Error> {
    Option::deserialize(field)
}

impl Job {
    /// Reads one from JSON.
    #[track_caller]
    pub fn from_json(value: &Value) -> Job {
        Job::deserialize(value).unwrap_or_else(|error| panic!("not a job as answered ({error}): {value:#}"))
    }

    /// Whether its state can never change again.
    pub fn is_final(&self) -> bool {
        is_final(&self.status)
    }

    /// Its state, and why it failed if it did: `Failed: exit code 3`.
    pub fn outcome(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{}: {reason}", self.status),
            None => self.status.clone(),
        }
    }
}

/// What `GET /job/details/<id>` says.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the contract's own names")]
pub struct Details {
    pub job: Job,
    pub monitor_out: String,
    pub task_stdout: String,
    pub task_stderr: String,
}

/// The four states that end a job or a task.
pub fn is_final(status: &str) -> bool {
    match status {
        "Finished" | "Timeout" | "Failed" | "Killed" => true,
        "Pending[ ]" | "Pending[A]" | "Running" => false,
        other => panic!("{other:?} is no state of the contract"),
    }
}
