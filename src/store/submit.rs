//! Storing tasks: the moment from which a task is promised.

use std::collections::BTreeSet;

use sqlx::{AnyConnection, Row};

use super::rows::{digest, nanoseconds, owner_text, select_tasks, task as read_task, to_json};
use super::{StoreError, TaskStore, progress};
use crate::task::{BlobId, DrawnImage, ImageSpec, NewTask, Owner, Task, TaskStatus, Usage};

/// Makes a repeated request the same task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// What the client calls the request; any text.
    pub key: String,
    /// SHA-256 of the request, so that another request under the same key is found out.
    pub fingerprint: String,
}

/// What became of a task that was to be stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    /// It is stored.
    New(Task),
    /// Its idempotency key named this earlier one, by the same request.
    Existing(Task),
}

impl Inserted {
    /// The task, new or earlier.
    pub fn into_task(self) -> Task {
        match self {
            Self::New(task) | Self::Existing(task) => task,
        }
    }
}

impl TaskStore {
    /// Stores the tasks of one submission, all or none. When this returns `Ok`, they are on disk.
    ///
    /// Pictures in `drawn` that are not the owner's, or not kept any more, are left out, to be drawn like the others;
    /// a task that has all of them is completed at once. An idempotency key counts for its owner and as long as its
    /// task is kept; another request under the same key is [`StoreError::IdempotencyConflict`]. Uploads must have
    /// been noted before ([`StoreError::UploadGone`]).
    pub async fn insert(
        &self,
        tasks: Vec<(NewTask, Option<Idempotency>)>,
    ) -> Result<Vec<Inserted>, StoreError> {
        let mut rows = Vec::with_capacity(tasks.len());
        for (task, idempotency) in tasks {
            rows.push(NewRow::of(task, idempotency)?);
        }
        self.write(move |database| {
            Box::pin(async move {
                let mut inserted = Vec::with_capacity(rows.len());
                for row in rows {
                    inserted.push(insert(database, row).await?);
                }
                Ok(inserted)
            })
        })
        .await
    }

    /// Whether a task of this owner, new or old, has this idempotency key.
    pub async fn has_idempotency_key(&self, owner: &Owner, key: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 FROM tasks WHERE owner = $1 AND idempotency = $2")
            .bind(owner_text(owner))
            .bind(digest(key))
            .fetch_optional(self.reads())
            .await?;
        Ok(row.is_some())
    }
}

/// A task as it is written, made before its turn comes.
struct NewRow {
    task: NewTask,
    idempotency: Option<Idempotency>,
    images: String,
    blobs: BTreeSet<BlobId>,
}

impl NewRow {
    fn of(task: NewTask, idempotency: Option<Idempotency>) -> Result<Self, StoreError> {
        if task.images.is_empty() {
            return Err(StoreError::defect("a task without pictures"));
        }
        // JSON has no word for them: the task could be written but never be read again.
        if task.images.iter().any(|spec| !spec.cfg.is_finite() || !spec.denoise.is_finite()) {
            return Err(StoreError::defect("a picture with a cfg or denoise that is no number"));
        }
        let images = to_json(&task.images)?;
        let blobs = task.images.iter().flat_map(ImageSpec::blobs).cloned().collect();
        Ok(Self { task, idempotency, images, blobs })
    }
}

async fn insert(database: &mut AnyConnection, row: NewRow) -> Result<Inserted, StoreError> {
    let NewRow { task, idempotency, images, blobs } = row;
    let key_digest = idempotency.as_ref().map(|i| digest(&i.key));
    let fingerprint = idempotency.as_ref().map(|i| i.fingerprint.clone());
    let created = sqlx::query(
        "INSERT INTO tasks (id, kind, owner, priority, status, images, image_count, webhook_url, steps, pixels, \
         device_seconds, idempotency, fingerprint, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0, 0, $9, $10, $11) \
         ON CONFLICT (owner, idempotency) DO NOTHING",
    )
    .bind(task.id.as_str())
    .bind(task.kind.name())
    .bind(owner_text(&task.owner))
    .bind(task.priority.name())
    .bind(TaskStatus::Queued.name())
    .bind(images)
    .bind(task.images.len() as i64)
    .bind(task.webhook_url.clone())
    .bind(key_digest.clone())
    .bind(fingerprint)
    .bind(nanoseconds(task.created_at))
    .execute(&mut *database)
    .await?
    .rows_affected();
    if created == 0 {
        return match (idempotency, key_digest) {
            (Some(idempotency), Some(digest)) => existing(database, &task.owner, idempotency, digest).await,
            _ => Err(StoreError::defect("a task was not stored")),
        };
    }
    for blob in &blobs {
        name_blob(database, &task, blob).await?;
    }
    let mut drawn = Vec::with_capacity(task.drawn.len());
    for picture in &task.drawn {
        if name_picture(database, &task, picture).await? {
            drawn.push(picture.clone());
        }
    }
    drawn.sort_by_key(|picture| picture.index);
    let mut stored = Task {
        id: task.id,
        kind: task.kind,
        owner: task.owner,
        priority: task.priority,
        status: TaskStatus::Queued,
        images: task.images,
        drawn,
        webhook_url: task.webhook_url,
        error: None,
        usage: Usage::default(),
        created_at: task.created_at,
        started_at: None,
        finished_at: None,
    };
    if stored.drawn.len() == stored.images.len() {
        progress::finalise(database, &stored.id, TaskStatus::Completed, None, stored.created_at).await?;
        stored.status = TaskStatus::Completed;
        stored.finished_at = Some(stored.created_at);
    }
    Ok(Inserted::New(stored))
}

async fn existing(
    database: &mut AnyConnection,
    owner: &Owner,
    idempotency: Idempotency,
    digest: String,
) -> Result<Inserted, StoreError> {
    let fingerprint: Option<String> =
        sqlx::query("SELECT fingerprint FROM tasks WHERE owner = $1 AND idempotency = $2")
            .bind(owner_text(owner))
            .bind(digest.as_str())
            .fetch_one(&mut *database)
            .await?
            .try_get("fingerprint")?;
    if fingerprint.as_ref() != Some(&idempotency.fingerprint) {
        return Err(StoreError::IdempotencyConflict { key: idempotency.key });
    }
    let row = sqlx::query(select_tasks!("WHERE t.owner = $1 AND t.idempotency = $2"))
        .bind(owner_text(owner))
        .bind(digest)
        .fetch_one(database)
        .await?;
    Ok(Inserted::Existing(read_task(&row)?))
}

async fn name_blob(database: &mut AnyConnection, task: &NewTask, blob: &BlobId) -> Result<(), StoreError> {
    let named = sqlx::query(
        "INSERT INTO task_blobs (task_id, blob_id) SELECT $1, b.id FROM blobs b WHERE b.id = $2 AND b.doomed = 0",
    )
    .bind(task.id.as_str())
    .bind(blob.as_str())
    .execute(database)
    .await?
    .rows_affected();
    if named == 0 {
        return Err(StoreError::UploadGone { blob: blob.to_string() });
    }
    Ok(())
}

/// Whether the picture is there to be named.
async fn name_picture(
    database: &mut AnyConnection,
    task: &NewTask,
    picture: &DrawnImage,
) -> Result<bool, StoreError> {
    if picture.index >= task.images.len() {
        return Ok(false);
    }
    let named = sqlx::query(
        "INSERT INTO task_images (task_id, place, image_id, drawn) \
         SELECT $1, $2, i.id, $3 FROM images i WHERE i.id = $4 AND i.owner = $5 AND i.doomed = 0 \
         ON CONFLICT (task_id, place) DO NOTHING",
    )
    .bind(task.id.as_str())
    .bind(picture.index as i64)
    .bind(to_json(picture)?)
    .bind(picture.id.as_str())
    .bind(owner_text(&task.owner))
    .execute(database)
    .await?
    .rows_affected();
    Ok(named == 1)
}
