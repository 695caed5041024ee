//! What happens to a task, as its listeners hear it.

use std::sync::Arc;

use bytes::Bytes;

use super::{DrawnImage, TaskError, TaskId, TaskStatus};

/// Something happened to a task. Sent to those who listen to it; whoever falls behind asks for the task's state
/// instead, which always tells everything but past previews.
#[derive(Debug, Clone)]
pub struct Event {
    /// The task.
    pub task: TaskId,
    /// Counts up within a task, so that a listener can tell what it has seen.
    pub sequence: u64,
    /// What happened.
    pub change: Change,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Change {
    /// Its status changed; the last one of a task is final.
    Status {
        /// The new status.
        status: TaskStatus,
        /// Why it failed.
        error: Option<TaskError>,
    },
    /// Steps were made.
    Progress {
        /// Steps done of all the task's pictures.
        steps_done: usize,
        /// Steps of all the task's pictures.
        steps_total: usize,
        /// A line for people: `Generating variant 3/4`.
        current_step: Arc<str>,
        /// Seconds until the task is done, from measured step times.
        eta_seconds: Option<f64>,
    },
    /// What a picture looks like so far.
    Preview(Preview),
    /// A picture is stored and can be fetched.
    Image(DrawnImage),
}

/// A rough picture of a latent.
#[derive(Debug, Clone)]
pub struct Preview {
    /// Which of the task's pictures.
    pub index: usize,
    /// A small JPEG.
    pub jpeg: Bytes,
}
