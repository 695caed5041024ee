//! The expression bank: pictures found again by what they show.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use sqlx::{AnyConnection, Row};

use super::rows::{digest, from_json, nanoseconds, owner_text};
use super::{StoreError, TaskStore, pictures};
use crate::task::{BankRef, DrawnImage, ImageId, Owner};

/// How exactly it is known when an entry was last handed out: a hit is written down at most so often, so that most
/// hits write nothing.
pub(super) const NAMED_GRAIN: SignedDuration = SignedDuration::from_secs(60);

impl TaskStore {
    /// Pictures that are kept under these keys, with `cached` set; their `index` is the caller's to set. What it
    /// hands out counts as named from now on, to within a minute.
    pub async fn bank_lookup(
        &self,
        keys: &[String],
        now: Timestamp,
    ) -> Result<HashMap<String, DrawnImage>, StoreError> {
        let mut found = HashMap::new();
        let mut stale = Vec::new();
        let fresh = nanoseconds(now.saturating_sub(NAMED_GRAIN).unwrap_or(Timestamp::MIN));
        for key in keys {
            let row = sqlx::query(
                "SELECT i.drawn, b.last_named_at FROM bank b JOIN images i ON i.id = b.image_id \
                 WHERE b.key = $1 AND i.doomed = 0",
            )
            .bind(key.as_str())
            .fetch_optional(self.reads())
            .await?;
            let Some(row) = row else { continue };
            let mut picture: DrawnImage = from_json("drawn", row.try_get("drawn")?)?;
            picture.cached = true;
            if row.try_get::<i64, _>("last_named_at")? < fresh {
                stale.push(key.clone());
            }
            found.insert(key.clone(), picture);
        }
        if !stale.is_empty() {
            self.write(move |database| Box::pin(touch(database, stale, now))).await?;
        }
        Ok(found)
    }

    /// Forgets this owner's entries: all, or one character's. Tasks that name the pictures keep them. Returns how many.
    pub async fn bank_invalidate(&self, owner: &Owner, character: Option<&str>) -> Result<u64, StoreError> {
        let owner = owner_text(owner).to_owned();
        let character = character.map(digest);
        self.write(move |database| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "SELECT key, image_id FROM bank WHERE owner = $1 AND ($2 IS NULL OR character = $2)",
                )
                .bind(owner)
                .bind(character)
                .fetch_all(&mut *database)
                .await?;
                for row in &rows {
                    drop_entry(database, row.try_get("key")?, row.try_get("image_id")?).await?;
                }
                Ok(rows.len() as u64)
            })
        })
        .await
    }
}

async fn touch(database: &mut AnyConnection, keys: Vec<String>, now: Timestamp) -> Result<(), StoreError> {
    for key in keys {
        sqlx::query("UPDATE bank SET last_named_at = $2 WHERE key = $1 AND last_named_at < $2")
            .bind(key)
            .bind(nanoseconds(now))
            .execute(&mut *database)
            .await?;
    }
    Ok(())
}

/// Puts a picture in its place; the one that was there goes, unless a task names it.
pub(super) async fn keep(
    database: &mut AnyConnection,
    place: &BankRef,
    owner: &str,
    image: &ImageId,
    at: Timestamp,
) -> Result<(), StoreError> {
    let before = sqlx::query("SELECT image_id FROM bank WHERE key = $1")
        .bind(place.key.as_str())
        .fetch_optional(&mut *database)
        .await?;
    sqlx::query(
        "INSERT INTO bank (key, owner, character, image_id, last_named_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (key) DO UPDATE SET image_id = excluded.image_id, last_named_at = excluded.last_named_at",
    )
    .bind(place.key.as_str())
    .bind(owner)
    .bind(digest(&place.character))
    .bind(image.as_str())
    .bind(nanoseconds(at))
    .execute(&mut *database)
    .await?;
    if let Some(row) = before {
        pictures::doom_if_unnamed(database, row.try_get("image_id")?).await?;
    }
    Ok(())
}

/// Takes an entry out. Returns the bytes of its picture if nothing names it any more.
pub(super) async fn drop_entry(
    database: &mut AnyConnection,
    key: &str,
    image: &str,
) -> Result<u64, StoreError> {
    sqlx::query("DELETE FROM bank WHERE key = $1").bind(key.to_owned()).execute(&mut *database).await?;
    pictures::doom_if_unnamed(database, image).await
}
