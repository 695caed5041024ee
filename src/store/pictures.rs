//! What the store knows of files: whose pictures there are, which uploads, and which of them nothing names any more.

use std::collections::HashSet;

use jiff::Timestamp;
use sqlx::{AnyConnection, Row};

use super::rows::{from_json, nanoseconds, owner, parsed};
use super::{StoreError, TaskStore};
use crate::task::{BlobId, DrawnImage, ImageId, Owner, TaskId};

impl TaskStore {
    /// A picture and whose it is. Every task and bank entry that names it is that owner's. Its `index` and `cached`
    /// are those of the task that drew it.
    pub async fn image(&self, id: &ImageId) -> Result<Option<(DrawnImage, Owner)>, StoreError> {
        let row = sqlx::query("SELECT drawn, owner FROM images WHERE id = $1 AND doomed = 0")
            .bind(id.as_str())
            .fetch_optional(self.reads())
            .await?;
        row.map(|row| Ok((from_json("drawn", row.try_get("drawn")?)?, owner(&row, "owner")?))).transpose()
    }

    /// Notes that an upload's file is there, so that tasks may start from it. Until a task names it, it is kept for
    /// [`UNNAMED_BLOB_SECONDS`](super::UNNAMED_BLOB_SECONDS) from the last note.
    ///
    /// [`keep_blob`](super::keep_blob) stores the file too, and keeps clean-up from coming between.
    pub async fn note_blob(&self, id: &BlobId, bytes: u64, now: Timestamp) -> Result<(), StoreError> {
        let id = id.clone();
        self.write(move |database| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO blobs (id, bytes, noted_at, doomed) VALUES ($1, $2, $3, 0) \
                     ON CONFLICT (id) DO UPDATE SET noted_at = excluded.noted_at, doomed = 0",
                )
                .bind(id.as_str())
                .bind(bytes.cast_signed())
                .bind(nanoseconds(now))
                .execute(database)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Pictures and uploads whose ids begin with two digits, doomed ones included.
    pub(super) async fn ids_with_prefix(
        &self,
        files: Files,
        prefix: &str,
    ) -> Result<HashSet<String>, StoreError> {
        let query = match files {
            Files::Images => "SELECT id FROM images WHERE id >= $1 AND id <= $2",
            Files::Blobs => "SELECT id FROM blobs WHERE id >= $1 AND id <= $2",
        };
        let rows = sqlx::query(query)
            .bind(format!("{prefix:0<64}"))
            .bind(format!("{prefix:f<64}"))
            .fetch_all(self.reads())
            .await?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }

    /// Whether no row speaks of this file.
    pub(super) async fn is_unknown(&self, files: Files, id: &str) -> Result<bool, StoreError> {
        let query = match files {
            Files::Images => "SELECT 1 AS there FROM images WHERE id = $1",
            Files::Blobs => "SELECT 1 AS there FROM blobs WHERE id = $1",
        };
        Ok(sqlx::query(query).bind(id.to_owned()).fetch_optional(self.reads()).await?.is_none())
    }

    /// Names of the pictures that unfinished tasks have or may come to have.
    pub(super) async fn expected_images(&self) -> Result<HashSet<ImageId>, StoreError> {
        let rows = sqlx::query("SELECT id, image_count FROM tasks WHERE finished_at IS NULL")
            .fetch_all(self.reads())
            .await?;
        let mut expected = HashSet::new();
        for row in &rows {
            let task: TaskId = parsed(row, "id")?;
            let count = usize::try_from(row.try_get::<i64, _>("image_count")?).unwrap_or(0);
            expected.extend((0..count).map(|index| task.image(index)));
        }
        Ok(expected)
    }
}

/// Which files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// Drawn pictures.
    Images,
    /// Uploads.
    Blobs,
}

/// Gives a picture up if no task and no bank entry names it. Returns its bytes then, else 0.
pub(super) async fn doom_if_unnamed(database: &mut AnyConnection, image: &str) -> Result<u64, StoreError> {
    let doomed = sqlx::query(
        "UPDATE images SET doomed = 1 WHERE id = $1 AND doomed = 0 \
         AND NOT EXISTS (SELECT 1 FROM task_images n WHERE n.image_id = images.id) \
         AND NOT EXISTS (SELECT 1 FROM bank b WHERE b.image_id = images.id)",
    )
    .bind(image.to_owned())
    .execute(&mut *database)
    .await?
    .rows_affected();
    if doomed == 0 {
        return Ok(0);
    }
    let bytes: i64 = sqlx::query("SELECT bytes FROM images WHERE id = $1")
        .bind(image.to_owned())
        .fetch_one(database)
        .await?
        .try_get("bytes")?;
    Ok(bytes.cast_unsigned())
}
