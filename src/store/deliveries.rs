//! The outbox of webhooks: what is owed to whom, written in the transaction that makes a task final. The message's
//! body is made from the task when it is sent, so rows hold ids and no pictures.

use jiff::Timestamp;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use uuid::Uuid;

use super::rows::{instant, nanoseconds, parsed};
use super::{StoreError, TaskStore};
use crate::task::{TaskId, TaskStatus};

/// A webhook to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The same at each attempt: the receiver knows repetitions by it.
    pub id: Uuid,
    /// The task that became final.
    pub task: TaskId,
    /// Where to.
    pub url: String,
    /// `task.completed`, `task.failed` or `task.cancelled`.
    pub event: String,
    /// Attempts that have failed.
    pub attempts: u32,
    /// When to try.
    pub next_at: Timestamp,
    /// When the task became final.
    pub created_at: Timestamp,
}

impl TaskStore {
    /// Deliveries whose time has come, the longest due first. They stay due until one of the calls below.
    pub async fn due_deliveries(&self, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, task_id, url, event, attempts, next_at, created_at FROM deliveries \
             WHERE outcome IS NULL AND next_at <= $1 ORDER BY next_at, id LIMIT $2",
        )
        .bind(nanoseconds(now))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(delivery).collect()
    }

    /// When the next delivery is due; `None` if none is owed.
    pub async fn next_delivery_at(&self) -> Result<Option<Timestamp>, StoreError> {
        sqlx::query("SELECT MIN(next_at) AS next_at FROM deliveries WHERE outcome IS NULL")
            .fetch_one(self.reads())
            .await?
            .try_get::<Option<i64>, _>("next_at")?
            .map(instant)
            .transpose()
    }

    /// It was received.
    pub async fn delivery_done(&self, id: &Uuid) -> Result<(), StoreError> {
        self.close_delivery(id, "delivered").await
    }

    /// It failed, and is to be tried again at `next_at`.
    pub async fn delivery_retry(&self, id: &Uuid, next_at: Timestamp) -> Result<(), StoreError> {
        let id = id.to_string();
        self.write(move |database| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE deliveries SET attempts = attempts + 1, next_at = $2 \
                     WHERE id = $1 AND outcome IS NULL",
                )
                .bind(id)
                .bind(nanoseconds(next_at))
                .execute(database)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// It failed, and is not tried again.
    pub async fn delivery_given_up(&self, id: &Uuid) -> Result<(), StoreError> {
        self.close_delivery(id, "given_up").await
    }

    /// The row stays as long as its task, so that the task is never told of twice.
    async fn close_delivery(&self, id: &Uuid, outcome: &'static str) -> Result<(), StoreError> {
        let id = id.to_string();
        self.write(move |database| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE deliveries SET attempts = attempts + 1, outcome = $2 \
                     WHERE id = $1 AND outcome IS NULL",
                )
                .bind(id)
                .bind(outcome)
                .execute(database)
                .await?;
                Ok(())
            })
        })
        .await
    }
}

/// Writes down that the owner of a task is to be told, if they asked for it.
pub(super) async fn owe(
    database: &mut AnyConnection,
    task: &TaskId,
    status: TaskStatus,
    at: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO deliveries (id, task_id, url, event, attempts, next_at, created_at) \
         SELECT $1, t.id, t.webhook_url, $2, 0, $3, $3 FROM tasks t WHERE t.id = $4 AND t.webhook_url IS NOT NULL",
    )
    .bind(Uuid::new_v4().to_string())
    .bind(format!("task.{}", status.name()))
    .bind(nanoseconds(at))
    .bind(task.as_str())
    .execute(database)
    .await?;
    Ok(())
}

fn delivery(row: &AnyRow) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        id: parsed(row, "id")?,
        task: parsed(row, "task_id")?,
        url: row.try_get("url")?,
        event: row.try_get("event")?,
        attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(u32::MAX),
        next_at: instant(row.try_get("next_at")?)?,
        created_at: instant(row.try_get("created_at")?)?,
    })
}
