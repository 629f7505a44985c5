//! The words both sides of berth speak.
//!
//! The supervisor carries requests out, so it owns the vocabulary; the master borrows it. Ids,
//! job and task specs, states, reasons, events and resources live here, and beside them the
//! HTTP/1.1 framing they travel in. Nothing in this crate decides, launches or stores anything.

#![forbid(unsafe_code)]

pub mod access;
pub mod cpu;
pub mod duration;
pub mod failure;
pub mod fault;
pub mod http;
pub mod ids;
pub mod job;
pub mod json;
pub mod lease;
pub mod logs;
pub mod node;
pub mod proc_text;
pub mod size;
pub mod state;
pub mod stderr_log;
pub mod task;
pub mod term;

pub use cpu::{CpuAmount, CpuRequest, CpuSet};
pub use failure::{BadInput, Reason};
pub use ids::{Attempt, BootId, ContainerId, EventNumber, ImageId, InstanceId, JobId, NodeId, TaskId, Term};
pub use job::{JobSpec, Resource};
pub use lease::{OnNodeLoss, Stamp, TaskLease};
pub use logs::Log;
pub use state::State;
