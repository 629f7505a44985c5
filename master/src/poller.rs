//! What the owner may ask of the nodes, and what they say.

use std::time::Duration;

use wire::node::{Answer, Created, Events, NodeResource, Refusal};
use wire::task::TaskRequest;
use wire::{Attempt, EventNumber, JobId, NodeId, TaskId};

/// What the owner wants done. Every order is answered by one [`Heard`], whatever happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Read the node's events: `GET /task/events`. There is never more than one of these per node.
    Poll {
        /// Which node.
        node: NodeId,
        /// The last event that is written down.
        after: EventNumber,
        /// How long the node may wait for something to tell.
        wait: Duration,
        /// Not before this has passed.
        delay: Duration,
    },
    /// Start these tasks: `POST /task/create`.
    Create {
        /// Which node.
        node: NodeId,
        /// In the order the jobs came.
        tasks: Vec<TaskRequest>,
    },
    /// End this task: `POST /task/kill`.
    Kill {
        /// Which node.
        node: NodeId,
        /// The job.
        job: JobId,
        /// Its task there.
        task: TaskId,
    },
    /// Ask what is free: `GET /resource`.
    Ask {
        /// Which node.
        node: NodeId,
        /// Not before this has passed.
        delay: Duration,
    },
}

/// What a node said, or that it said nothing.
#[derive(Debug)]
pub struct Heard {
    /// Which.
    pub node: NodeId,
    /// What.
    pub said: Said,
}

/// The answers to the orders; an `Err(String)` says why there is none.
#[derive(Debug)]
pub enum Said {
    /// To [`Order::Poll`].
    Events {
        /// What was asked for.
        after: EventNumber,
        /// The events.
        answer: Result<Events, String>,
    },
    /// To [`Order::Create`], or to a part of it.
    Created {
        /// The tasks of that part.
        tasks: Vec<(JobId, Attempt)>,
        /// An answer for each.
        answer: Result<Vec<Answer<Created>>, String>,
    },
    /// To [`Order::Kill`].
    Killed {
        /// The job.
        job: JobId,
        /// Its task.
        task: TaskId,
        /// Whether the node took the kill.
        answer: Result<Result<(), Refusal>, String>,
    },
    /// To [`Order::Ask`].
    Free {
        /// What the node says of itself.
        answer: Result<NodeResource, String>,
    },
}
