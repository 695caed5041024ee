//! A task's way to its end: started, each picture, final. Every change is one transaction, and says whether it was
//! this call that made it.

use jiff::Timestamp;
use sqlx::{AnyConnection, Row};

use super::rows::{nanoseconds, to_json};
use super::{StoreError, TaskStore, bank, deliveries};
use crate::task::{BankRef, DrawnImage, ImageSpec, TaskError, TaskId, TaskStatus, Usage};

/// What became of a picture that was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageStored {
    /// The task names it now.
    New {
        /// Whether it was the last one: the task is completed.
        completed: bool,
    },
    /// The task had this picture already; nothing changed.
    Repeated {
        /// Whether the task is completed.
        completed: bool,
    },
    /// The task takes no more pictures, or is not kept any more. The file belongs to no one.
    TaskIsFinal,
}

impl TaskStore {
    /// Notes that a task's first picture has started. False if it had started before or is final.
    pub async fn mark_processing(&self, id: &TaskId, at: Timestamp) -> Result<bool, StoreError> {
        let id = id.clone();
        self.write(move |database| {
            Box::pin(async move {
                let changed = sqlx::query(
                    "UPDATE tasks SET status = 'processing', started_at = $2 WHERE id = $1 AND status = 'queued'",
                )
                .bind(id.as_str())
                .bind(nanoseconds(at))
                .execute(database)
                .await?;
                Ok(changed.rows_affected() == 1)
            })
        })
        .await
    }

    /// Stores that a picture is there, once its file is, and adds the work done for it. The task's last picture
    /// completes it in the same transaction; a spec with a place in the expression bank puts it there.
    pub async fn finish_image(
        &self,
        id: &TaskId,
        image: &DrawnImage,
        spec: &ImageSpec,
        usage: &Usage,
        at: Timestamp,
    ) -> Result<ImageStored, StoreError> {
        let picture = Picture {
            task: id.clone(),
            json: to_json(image)?,
            image: image.clone(),
            bank: spec.bank.clone(),
            usage: *usage,
            at,
        };
        self.write(move |database| Box::pin(async move { picture.store(database).await })).await
    }

    /// Makes a task final without its being complete. False if it was final already (or is not kept any more).
    pub async fn finish(
        &self,
        id: &TaskId,
        status: TaskStatus,
        error: Option<&TaskError>,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        if !matches!(status, TaskStatus::Failed | TaskStatus::Cancelled) {
            return Err(StoreError::defect(format!("a task cannot be made {} by itself", status.name())));
        }
        let id = id.clone();
        let error = error.map(to_json).transpose()?;
        self.write(move |database| Box::pin(async move { finalise(database, &id, status, error, at).await }))
            .await
    }
}

struct Picture {
    task: TaskId,
    image: DrawnImage,
    json: String,
    bank: Option<BankRef>,
    usage: Usage,
    at: Timestamp,
}

impl Picture {
    async fn store(self, database: &mut AnyConnection) -> Result<ImageStored, StoreError> {
        // First the task's row: whoever changes the same task waits here (PostgreSQL).
        let unfinished = sqlx::query(
            "UPDATE tasks SET status = 'processing', started_at = COALESCE(started_at, $2) \
             WHERE id = $1 AND finished_at IS NULL",
        )
        .bind(self.task.as_str())
        .bind(nanoseconds(self.at))
        .execute(&mut *database)
        .await?
        .rows_affected();
        if unfinished == 0 {
            return if self.is_there(database).await? {
                Ok(ImageStored::Repeated { completed: self.is_completed(database).await? })
            } else {
                Ok(ImageStored::TaskIsFinal)
            };
        }
        let row = sqlx::query("SELECT owner, image_count FROM tasks WHERE id = $1")
            .bind(self.task.as_str())
            .fetch_one(&mut *database)
            .await?;
        let (owner, image_count): (String, i64) = (row.try_get("owner")?, row.try_get("image_count")?);
        if self.image.index as i64 >= image_count {
            return Err(StoreError::defect(format!(
                "task {} has no picture {}",
                self.task, self.image.index
            )));
        }
        if self.is_there(database).await? {
            return Ok(ImageStored::Repeated { completed: false });
        }
        self.name(database, &owner).await?;
        if let Some(place) = &self.bank {
            bank::keep(database, place, &owner, &self.image.id, self.at).await?;
        }
        let there: i64 = sqlx::query("SELECT COUNT(*) AS there FROM task_images WHERE task_id = $1")
            .bind(self.task.as_str())
            .fetch_one(&mut *database)
            .await?
            .try_get("there")?;
        let completed = there == image_count;
        if completed {
            finalise(database, &self.task, TaskStatus::Completed, None, self.at).await?;
        }
        Ok(ImageStored::New { completed })
    }

    async fn is_there(&self, database: &mut AnyConnection) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 AS there FROM task_images WHERE task_id = $1 AND place = $2")
            .bind(self.task.as_str())
            .bind(self.image.index as i64)
            .fetch_optional(database)
            .await?;
        Ok(row.is_some())
    }

    async fn is_completed(&self, database: &mut AnyConnection) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 AS there FROM tasks WHERE id = $1 AND status = 'completed'")
            .bind(self.task.as_str())
            .fetch_optional(database)
            .await?;
        Ok(row.is_some())
    }

    async fn name(&self, database: &mut AnyConnection, owner: &str) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO images (id, owner, drawn, bytes, doomed) VALUES ($1, $2, $3, $4, 0) \
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(self.image.id.as_str())
        .bind(owner)
        .bind(self.json.as_str())
        .bind(self.image.bytes.cast_signed())
        .execute(&mut *database)
        .await?;
        sqlx::query("INSERT INTO task_images (task_id, place, image_id, drawn) VALUES ($1, $2, $3, $4)")
            .bind(self.task.as_str())
            .bind(self.image.index as i64)
            .bind(self.image.id.as_str())
            .bind(self.json.as_str())
            .execute(&mut *database)
            .await?;
        sqlx::query(
            "UPDATE tasks SET steps = steps + $2, pixels = pixels + $3, device_seconds = device_seconds + $4 \
             WHERE id = $1",
        )
        .bind(self.task.as_str())
        .bind(self.usage.steps.cast_signed())
        .bind(self.usage.pixels.cast_signed())
        .bind(self.usage.device_seconds)
        .execute(database)
        .await?;
        Ok(())
    }
}

/// Makes a task final, unless it is, and owes its webhook in the same transaction.
pub(super) async fn finalise(
    database: &mut AnyConnection,
    id: &TaskId,
    status: TaskStatus,
    error: Option<String>,
    at: Timestamp,
) -> Result<bool, StoreError> {
    let changed = sqlx::query(
        "UPDATE tasks SET status = $2, error = $3, finished_at = $4 WHERE id = $1 AND finished_at IS NULL",
    )
    .bind(id.as_str())
    .bind(status.name())
    .bind(error)
    .bind(nanoseconds(at))
    .execute(&mut *database)
    .await?
    .rows_affected();
    if changed == 0 {
        return Ok(false);
    }
    deliveries::owe(database, id, status, at).await?;
    Ok(true)
}
