//! Which tasks and pictures are kept no longer. Only rows here: what is given up is marked, so that
//! [`clean_up`](super::clean_up) can delete its files, and forgotten after that.

use jiff::{SignedDuration, Timestamp};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::bank::{NAMED_GRAIN, drop_entry};
use super::rows::{from_json, nanoseconds, parsed};
use super::{StoreError, TaskStore, pictures};
use crate::config::StorageConfig;
use crate::task::{BlobId, DrawnImage, ImageFormat, ImageId};

/// Seconds that an upload is kept before a task names it.
pub const UNNAMED_BLOB_SECONDS: i64 = 3600;
/// Tasks or entries that one transaction takes: clients' writes wait for no more than these.
const CHUNK: i64 = 50;
/// Pictures whose files are deleted between two transactions.
const IMAGES_AT_ONCE: i64 = 500;
/// The same for uploads: new ones wait while they are deleted.
const BLOBS_AT_ONCE: i64 = 50;

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Seconds after which finished tasks go; 0: never.
    pub keep_seconds: u64,
    /// Bytes of pictures above which the oldest finished tasks go; 0: no limit.
    pub keep_bytes: u64,
}

impl From<&StorageConfig> for Retention {
    fn from(config: &StorageConfig) -> Self {
        Self { keep_seconds: config.keep_seconds, keep_bytes: config.keep_bytes }
    }
}

/// What a sweep took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Finished tasks.
    pub tasks: u64,
    /// Entries of the expression bank.
    pub bank_entries: u64,
    /// Bytes of the pictures that nothing names any more.
    pub bytes: u64,
}

impl TaskStore {
    /// Gives up finished tasks and bank entries beyond the limits, the oldest first. A picture goes only when no task
    /// and no bank entry that is kept names it. Tasks whose webhook is still owed stay.
    pub async fn sweep(&self, now: Timestamp, limits: &Retention) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        if limits.keep_seconds > 0 {
            self.sweep_by_age(now, limits.keep_seconds, &mut swept).await?;
        }
        if limits.keep_bytes > 0 {
            self.sweep_by_bytes(limits.keep_bytes, &mut swept).await?;
        }
        Ok(swept)
    }

    async fn sweep_by_age(&self, now: Timestamp, keep: u64, swept: &mut Swept) -> Result<(), StoreError> {
        let keep = SignedDuration::from_secs(i64::try_from(keep).unwrap_or(i64::MAX));
        let oldest = now.saturating_sub(keep).unwrap_or(Timestamp::MIN);
        // An entry may have been handed out a little later than its row says.
        let oldest_entry = oldest.saturating_sub(NAMED_GRAIN).unwrap_or(Timestamp::MIN);
        loop {
            let chunk = self
                .give_up(
                    Span {
                        tasks_before: nanoseconds(oldest),
                        entries_before: nanoseconds(oldest_entry),
                        any: true,
                    },
                    u64::MAX,
                )
                .await?;
            swept.add(&chunk);
            if chunk.is_nothing() {
                return Ok(());
            }
        }
    }

    async fn sweep_by_bytes(&self, keep: u64, swept: &mut Swept) -> Result<(), StoreError> {
        loop {
            let kept = self.picture_bytes().await?;
            if kept <= keep {
                return Ok(());
            }
            let chunk = self
                .give_up(Span { tasks_before: i64::MAX, entries_before: i64::MAX, any: false }, kept - keep)
                .await?;
            swept.add(&chunk);
            if chunk.is_nothing() {
                return Ok(());
            }
        }
    }

    /// Bytes of all pictures that are kept.
    pub async fn picture_bytes(&self) -> Result<u64, StoreError> {
        let bytes: i64 = sqlx::query(
            "SELECT CAST(COALESCE(SUM(bytes), 0) AS BIGINT) AS bytes FROM images WHERE doomed = 0",
        )
        .fetch_one(self.reads())
        .await?
        .try_get("bytes")?;
        Ok(bytes.cast_unsigned())
    }

    /// One chunk of the oldest tasks and entries of a span, until `enough` bytes are free.
    async fn give_up(&self, span: Span, enough: u64) -> Result<Swept, StoreError> {
        self.write(move |database| {
            Box::pin(async move {
                let mut swept = Swept::default();
                for candidate in candidates(database, span).await? {
                    if swept.bytes >= enough {
                        break;
                    }
                    candidate.give_up(database, &mut swept).await?;
                }
                Ok(swept)
            })
        })
        .await
    }

    /// Marks uploads that no task names and that nobody sent lately.
    pub(super) async fn doom_blobs(&self, now: Timestamp) -> Result<(), StoreError> {
        let grace = SignedDuration::from_secs(UNNAMED_BLOB_SECONDS);
        let before = nanoseconds(now.saturating_sub(grace).unwrap_or(Timestamp::MIN));
        self.write(move |database| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE blobs SET doomed = 1 WHERE id IN (SELECT b.id FROM blobs b \
                     WHERE b.doomed = 0 AND b.noted_at < $1 \
                     AND NOT EXISTS (SELECT 1 FROM task_blobs n WHERE n.blob_id = b.id) LIMIT $2)",
                )
                .bind(before)
                .bind(BLOBS_AT_ONCE)
                .execute(database)
                .await?;
                Ok(())
            })
        })
        .await
    }

    /// Pictures whose files are to be deleted, also those of a clean-up that a crash ended. A bounded number; there
    /// may be more after [`TaskStore::forget_images`].
    pub(super) async fn doomed_images(&self) -> Result<Vec<(ImageId, ImageFormat)>, StoreError> {
        let rows = sqlx::query("SELECT drawn FROM images WHERE doomed = 1 ORDER BY id LIMIT $1")
            .bind(IMAGES_AT_ONCE)
            .fetch_all(self.reads())
            .await?;
        let named = |row: &AnyRow| -> Result<_, StoreError> {
            let drawn: DrawnImage = from_json("drawn", row.try_get("drawn")?)?;
            Ok((drawn.id, drawn.format))
        };
        rows.iter().map(named).collect()
    }

    /// The same for uploads.
    pub(super) async fn doomed_blobs(&self) -> Result<Vec<BlobId>, StoreError> {
        let rows = sqlx::query("SELECT id FROM blobs WHERE doomed = 1 ORDER BY id LIMIT $1")
            .bind(BLOBS_AT_ONCE)
            .fetch_all(self.reads())
            .await?;
        rows.iter().map(|row| parsed(row, "id")).collect()
    }

    /// Forgets pictures whose files are deleted.
    pub(super) async fn forget_images(&self, deleted: Vec<(ImageId, ImageFormat)>) -> Result<(), StoreError> {
        let ids = deleted.into_iter().map(|(id, _)| id.into()).collect();
        self.forget("DELETE FROM images WHERE id = $1 AND doomed = 1", ids).await
    }

    /// Forgets uploads whose files are deleted.
    pub(super) async fn forget_blobs(&self, deleted: Vec<BlobId>) -> Result<(), StoreError> {
        let ids = deleted.into_iter().map(String::from).collect();
        self.forget("DELETE FROM blobs WHERE id = $1 AND doomed = 1", ids).await
    }

    async fn forget(&self, query: &'static str, ids: Vec<String>) -> Result<(), StoreError> {
        self.write(move |database| {
            Box::pin(async move {
                for id in ids {
                    sqlx::query(query).bind(id).execute(&mut *database).await?;
                }
                Ok(())
            })
        })
        .await
    }
}

impl Swept {
    fn add(&mut self, other: &Self) {
        self.tasks += other.tasks;
        self.bank_entries += other.bank_entries;
        self.bytes += other.bytes;
    }

    fn is_nothing(&self) -> bool {
        self.tasks == 0 && self.bank_entries == 0
    }
}

/// From where what may be given up is taken.
#[derive(Clone, Copy)]
struct Span {
    /// Tasks that were final before this.
    tasks_before: i64,
    /// Entries that were last named before this.
    entries_before: i64,
    /// Also tasks without pictures.
    any: bool,
}

/// What may be given up.
enum Candidate {
    Task(String),
    BankEntry { key: String, image: String },
}

async fn candidates(database: &mut AnyConnection, span: Span) -> Result<Vec<Candidate>, StoreError> {
    let tasks = sqlx::query(
        "SELECT t.id, t.finished_at FROM tasks t WHERE t.finished_at IS NOT NULL AND t.finished_at < $1 \
         AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.task_id = t.id AND d.outcome IS NULL) \
         AND ($2 = 1 OR EXISTS (SELECT 1 FROM task_images n WHERE n.task_id = t.id)) \
         ORDER BY t.finished_at LIMIT $3",
    )
    .bind(span.tasks_before)
    .bind(i64::from(span.any))
    .bind(CHUNK)
    .fetch_all(&mut *database)
    .await?;
    let entries = sqlx::query(
        "SELECT key, image_id, last_named_at FROM bank WHERE last_named_at < $1 ORDER BY last_named_at LIMIT $2",
    )
    .bind(span.entries_before)
    .bind(CHUNK)
    .fetch_all(database)
    .await?;
    let mut candidates = Vec::with_capacity(tasks.len() + entries.len());
    for row in &tasks {
        candidates.push((row.try_get::<i64, _>("finished_at")?, Candidate::Task(row.try_get("id")?)));
    }
    for row in &entries {
        let entry = Candidate::BankEntry { key: row.try_get("key")?, image: row.try_get("image_id")? };
        candidates.push((row.try_get("last_named_at")?, entry));
    }
    candidates.sort_by_key(|(at, _)| *at);
    Ok(candidates.into_iter().map(|(_, candidate)| candidate).collect())
}

impl Candidate {
    async fn give_up(self, database: &mut AnyConnection, swept: &mut Swept) -> Result<(), StoreError> {
        match self {
            Self::BankEntry { key, image } => {
                swept.bytes += drop_entry(database, &key, &image).await?;
                swept.bank_entries += 1;
            }
            Self::Task(id) => {
                let images = sqlx::query("SELECT DISTINCT image_id FROM task_images WHERE task_id = $1")
                    .bind(id.as_str())
                    .fetch_all(&mut *database)
                    .await?;
                // Its pictures' names, uploads' names and deliveries go with it.
                sqlx::query("DELETE FROM tasks WHERE id = $1").bind(id).execute(&mut *database).await?;
                for row in &images {
                    swept.bytes += pictures::doom_if_unnamed(database, row.try_get("image_id")?).await?;
                }
                swept.tasks += 1;
            }
        }
        Ok(())
    }
}
