//! What the deliverer asks of the store: which webhooks are waiting, and what became of each.

use std::fmt::Display;
use std::future::Future;

use bytes::Bytes;
use jiff::Timestamp;

use crate::task::TaskId;

/// A webhook that is to be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id: the same at every attempt, so that receivers can tell a repetition.
    pub id: String,
    /// The task it tells about.
    pub task_id: TaskId,
    /// Where it goes.
    pub url: String,
    /// What happened: `task.completed`.
    pub event: String,
    /// Attempts that failed so far.
    pub attempts: u32,
}

/// Webhooks that wait to be delivered, kept across restarts. Whoever adds one wakes the deliverer.
pub trait Outbox: Send + Sync + 'static {
    /// Why it cannot answer.
    type Error: Display + Send;

    /// Deliveries whose time has come at `now`, those that have waited longest first, at most `limit`. Includes
    /// those that were returned before and are not yet done, put off or given up.
    fn due(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Delivery>, Self::Error>> + Send;

    /// The message about a task, JSON; `None` if the task is gone.
    fn body(&self, task: &TaskId) -> impl Future<Output = Result<Option<Bytes>, Self::Error>> + Send;

    /// It was delivered.
    fn done(&self, id: &str) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// An attempt failed: counts it, and puts the delivery off until `next_at`.
    fn retry(&self, id: &str, next_at: Timestamp) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// It will not be tried again.
    fn give_up(&self, id: &str) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
