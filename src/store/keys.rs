//! API keys. A secret is shown once, when its key is made; the database has only its SHA-256. The secrets have 256
//! random bits, so that neither salt nor a slow hash would add anything.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::rows::{digest, instant, nanoseconds, optional_instant, parsed};
use super::{StoreError, TaskStore};
use crate::task::ApiKeyId;

const PREFIX: &str = "dk_";
/// Characters of a secret behind the prefix: 32 bytes in base64url.
const SECRET_CHARACTERS: usize = 43;
const NAME_CHARACTERS: usize = 100;
/// How exactly it is known when a key was last used.
const USED_GRAIN: SignedDuration = SignedDuration::from_secs(60);

/// An API key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id, which tasks are owned by.
    pub id: ApiKeyId,
    /// What people call it; unique among keys that are not revoked.
    pub name: String,
    /// Whether it may also do what changes the server for everyone.
    pub admin: bool,
    /// Requests a minute; `None`: the server's default.
    pub requests_per_minute: Option<u32>,
    /// Unfinished tasks at once; `None`: the server's default.
    pub max_tasks: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used, to within a minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

impl TaskStore {
    /// Makes a key. The secret is in the answer and nowhere else.
    pub async fn create_key(
        &self,
        name: &str,
        admin: bool,
        requests_per_minute: Option<u32>,
        max_tasks: Option<u32>,
        now: Timestamp,
    ) -> Result<(ApiKey, String), StoreError> {
        let refused = |message| StoreError::KeyName { name: name.to_owned(), message };
        if name.trim().is_empty() || name.chars().count() > NAME_CHARACTERS {
            return Err(refused("a name has 1 to 100 characters"));
        }
        if name.chars().any(char::is_control) {
            return Err(refused("a name is one line of text"));
        }
        let key = ApiKey {
            id: ApiKeyId::random(),
            name: name.to_owned(),
            admin,
            requests_per_minute,
            max_tasks,
            created_at: now,
            last_used_at: None,
            revoked_at: None,
        };
        let secret = new_secret();
        let (row, hash) = (key.clone(), digest(&secret));
        let created = self
            .write(move |database| {
                Box::pin(async move {
                    let created = sqlx::query(
                        "INSERT INTO api_keys (id, name, secret, admin, requests_per_minute, max_tasks, created_at) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING",
                    )
                    .bind(row.id.as_str())
                    .bind(row.name)
                    .bind(hash)
                    .bind(i64::from(row.admin))
                    .bind(row.requests_per_minute.map(i64::from))
                    .bind(row.max_tasks.map(i64::from))
                    .bind(nanoseconds(row.created_at))
                    .execute(database)
                    .await?;
                    Ok(created.rows_affected() == 1)
                })
            })
            .await?;
        if created { Ok((key, secret)) } else { Err(refused("another key has this name; revoke it first")) }
    }

    /// The key with this secret, unless it is revoked. Notes its use, at most once a minute.
    pub async fn key_by_secret(&self, secret: &str, now: Timestamp) -> Result<Option<ApiKey>, StoreError> {
        let plausible = secret.len() == PREFIX.len() + SECRET_CHARACTERS && secret.starts_with(PREFIX);
        if !plausible {
            return Ok(None);
        }
        // Looked up by hash: how long that takes says nothing about the secret.
        let row = sqlx::query(
            "SELECT id, name, admin, requests_per_minute, max_tasks, created_at, last_used_at, revoked_at \
             FROM api_keys WHERE secret = $1 AND revoked_at IS NULL",
        )
        .bind(digest(secret))
        .fetch_optional(self.reads())
        .await?;
        let Some(key) = row.as_ref().map(api_key).transpose()? else { return Ok(None) };
        if key.last_used_at.is_none_or(|last| now.duration_since(last) >= USED_GRAIN) {
            let id = key.id.clone();
            self.write_if_idle(move |database| {
                Box::pin(async move {
                    sqlx::query("UPDATE api_keys SET last_used_at = $2 WHERE id = $1")
                        .bind(id.as_str())
                        .bind(nanoseconds(now))
                        .execute(database)
                        .await?;
                    Ok(())
                })
            });
        }
        Ok(Some(key))
    }

    /// All keys, revoked ones too, the oldest first.
    pub async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, name, admin, requests_per_minute, max_tasks, created_at, last_used_at, revoked_at \
             FROM api_keys ORDER BY created_at, id",
        )
        .fetch_all(self.reads())
        .await?;
        rows.iter().map(api_key).collect()
    }

    /// Revokes the key with this id or, if there is none, this name. Returns it; `None` if there is none such.
    pub async fn revoke_key(&self, id_or_name: &str, now: Timestamp) -> Result<Option<ApiKey>, StoreError> {
        let named = id_or_name.to_owned();
        self.write(move |database| {
            Box::pin(async move {
                let row = sqlx::query(
                    "SELECT id, name, admin, requests_per_minute, max_tasks, created_at, last_used_at, revoked_at \
                     FROM api_keys WHERE revoked_at IS NULL AND (id = $1 OR name = $1) \
                     ORDER BY CASE WHEN id = $1 THEN 0 ELSE 1 END LIMIT 1",
                )
                .bind(named)
                .fetch_optional(&mut *database)
                .await?;
                let Some(mut key) = row.as_ref().map(api_key).transpose()? else { return Ok(None) };
                sqlx::query("UPDATE api_keys SET revoked_at = $2 WHERE id = $1")
                    .bind(key.id.as_str())
                    .bind(nanoseconds(now))
                    .execute(database)
                    .await?;
                key.revoked_at = Some(now);
                Ok(Some(key))
            })
        })
        .await
    }

    /// Whether a key was ever made, revoked ones included: revoking the last key locks everyone out, it does not let
    /// everyone in.
    pub async fn has_keys(&self) -> Result<bool, StoreError> {
        Ok(sqlx::query("SELECT 1 AS there FROM api_keys LIMIT 1")
            .fetch_optional(self.reads())
            .await?
            .is_some())
    }
}

fn new_secret() -> String {
    // A version 4 UUID has 122 random bits from the system; three of them are more than the digest can hold.
    let mut hasher = Sha256::new();
    for _ in 0..3 {
        hasher.update(Uuid::new_v4().as_bytes());
    }
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(hasher.finalize()))
}

fn api_key(row: &AnyRow) -> Result<ApiKey, StoreError> {
    let limit = |column| -> Result<Option<u32>, StoreError> {
        let value: Option<i64> = row.try_get(column)?;
        Ok(value.map(|value| u32::try_from(value).unwrap_or(u32::MAX)))
    };
    Ok(ApiKey {
        id: parsed(row, "id")?,
        name: row.try_get("name")?,
        admin: row.try_get::<i64, _>("admin")? != 0,
        requests_per_minute: limit("requests_per_minute")?,
        max_tasks: limit("max_tasks")?,
        created_at: instant(row.try_get("created_at")?)?,
        last_used_at: optional_instant(row, "last_used_at")?,
        revoked_at: optional_instant(row, "revoked_at")?,
    })
}
