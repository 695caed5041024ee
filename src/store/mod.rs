//! What survives a crash: tasks, their pictures, webhooks owed, API keys, the expression bank. [`TaskStore`] is a
//! database (SQLite in a file, or PostgreSQL), [`ImageStore`] a folder or an S3 bucket. Sits beside the engine, on
//! `task` and `config`; knows neither HTTP nor tensors.
//!
//! A picture's file is stored first and its row after it; when both go, the row is marked first, the file deleted
//! and the row forgotten last. So a row never names a file that is not there, and a crash between leaves a file that
//! the next clean-up finds.

mod bank;
mod clean_up;
mod database;
mod deliveries;
mod error;
mod files;
mod keys;
mod lock;
mod pictures;
mod progress;
mod retention;
mod rows;
mod space;
mod submit;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use sqlx::{AnyConnection, AnyPool, Row};
use tokio::sync::RwLock;

pub use clean_up::{CleanUpError, CleanedUp, clean_up, keep_blob, remove_orphans};
pub use deliveries::Delivery;
pub use error::{StorageError, StoreError};
pub use files::{ImageStore, ImageStoreError};
pub use keys::ApiKey;
pub use progress::ImageStored;
pub use retention::{Retention, Swept, UNNAMED_BLOB_SECONDS};
pub use space::free_bytes;
pub use submit::{Idempotency, Inserted};

use crate::config::StorageConfig;
use crate::task::{Owner, Task, TaskId, TaskStatus};
use database::Access;
use rows::{owner_text, select_tasks};
use writer::{Work, Writer};

/// The durable store of tasks; cheap to clone. Needs a tokio runtime as long as it is open.
#[derive(Clone)]
pub struct TaskStore {
    inner: Arc<Inner>,
}

struct Inner {
    writer: Writer,
    writes: AnyPool,
    reads: AnyPool,
    /// Held for writing while uploads' files are deleted, for reading while one is stored.
    blobs: RwLock<()>,
    // The writer's task may outlive this by the write it is at; another server's opening then waits for SQLite.
    _locks: Vec<lock::Lock>,
}

impl std::fmt::Debug for TaskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskStore").finish_non_exhaustive()
    }
}

impl TaskStore {
    /// Opens the server's store, making folder, file and tables if need be. There can be one server a data folder
    /// and SQLite file ([`StoreError::InUse`]); that a PostgreSQL database has one server is for its operator to see to.
    pub async fn open(config: &StorageConfig) -> Result<Self, StoreError> {
        Self::open_as(config, Access::Exclusive).await
    }

    /// Opens the store for a command that works beside a running server, or without one.
    pub async fn open_beside(config: &StorageConfig) -> Result<Self, StoreError> {
        Self::open_as(config, Access::Beside).await
    }

    async fn open_as(config: &StorageConfig, access: Access) -> Result<Self, StoreError> {
        let database::Database { writes, reads, begin, locks } = database::open(config, access).await?;
        let writer = Writer::start(writes.clone(), begin);
        let inner = Inner { writer, writes, reads, blobs: RwLock::new(()), _locks: locks };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Finishes what is being written and closes the database. Calls on other clones fail from then on.
    pub async fn close(&self) {
        self.inner.writer.stop().await;
        self.inner.reads.close().await;
        self.inner.writes.close().await;
    }

    /// Whether the database can be written. Reading alone says little: it goes on while a disk is full.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.write(|database| {
            Box::pin(async move {
                // A row that nobody sees, for both are one transaction.
                sqlx::query("INSERT INTO blobs (id, bytes, noted_at, doomed) VALUES ('ping', 0, 0, 0)")
                    .execute(&mut *database)
                    .await?;
                sqlx::query("DELETE FROM blobs WHERE id = 'ping'").execute(&mut *database).await?;
                Ok(())
            })
        })
        .await
    }

    /// A task, whoever asks.
    pub async fn task(&self, id: &TaskId) -> Result<Option<Task>, StoreError> {
        let row = sqlx::query(select_tasks!("WHERE t.id = $1"))
            .bind(id.as_str())
            .fetch_optional(self.reads())
            .await?;
        row.as_ref().map(rows::task).transpose()
    }

    /// An owner's tasks, newest first, from behind `after`. None when `after` is not one of them (any more).
    pub async fn list(
        &self,
        owner: &Owner,
        status: Option<TaskStatus>,
        after: Option<&TaskId>,
        limit: usize,
    ) -> Result<Vec<Task>, StoreError> {
        let (mut created_at, mut id) = (i64::MAX, String::new());
        if let Some(after) = after {
            let row = sqlx::query("SELECT created_at FROM tasks WHERE id = $1 AND owner = $2")
                .bind(after.as_str())
                .bind(owner_text(owner))
                .fetch_optional(self.reads())
                .await?;
            let Some(row) = row else { return Ok(Vec::new()) };
            (created_at, id) = (row.try_get("created_at")?, after.to_string());
        }
        let rows = sqlx::query(select_tasks!(
            "WHERE t.owner = $1 AND (t.created_at, t.id) < ($2, $3) AND ($4 IS NULL OR t.status = $4) \
             ORDER BY t.created_at DESC, t.id DESC LIMIT $5"
        ))
        .bind(owner_text(owner))
        .bind(created_at)
        .bind(id)
        .bind(status.map(TaskStatus::name))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(rows::task).collect()
    }

    /// Every task that is not final, oldest first.
    pub async fn unfinished(&self) -> Result<Vec<Task>, StoreError> {
        let rows = sqlx::query(select_tasks!("WHERE t.finished_at IS NULL ORDER BY t.created_at, t.id"))
            .fetch_all(self.reads())
            .await?;
        rows.iter().map(rows::task).collect()
    }

    /// How many tasks are not final: of one owner, or of all.
    pub async fn count_unfinished(&self, owner: Option<&Owner>) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query(
            "SELECT COUNT(*) AS unfinished FROM tasks WHERE finished_at IS NULL AND ($1 IS NULL OR owner = $1)",
        )
        .bind(owner.map(owner_text))
        .fetch_one(self.reads())
        .await?
        .try_get("unfinished")?;
        Ok(count.cast_unsigned())
    }

    fn reads(&self) -> &AnyPool {
        &self.inner.reads
    }

    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Work<'c, T> + Send + 'static,
    {
        self.inner.writer.write(work).await
    }

    fn write_if_idle<F>(&self, work: F)
    where
        F: for<'c> FnOnce(&'c mut AnyConnection) -> Work<'c, ()> + Send + 'static,
    {
        self.inner.writer.write_if_idle(work);
    }
}
