//! Columns to values and back. Whatever a row holds that cannot be understood is a defect with the row's column in
//! its message, never a panic.

use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::StoreError;
use crate::task::{DrawnImage, Owner, Priority, Task, TaskKind, TaskStatus, Usage};

/// Selects whole tasks, each with its pictures in one column, so that one statement sees one moment.
macro_rules! select_tasks {
    ($rest:literal) => {
        concat!(
            "SELECT t.id, t.kind, t.owner, t.priority, t.status, t.images, t.webhook_url, t.error, t.steps, ",
            "t.pixels, t.device_seconds, t.created_at, t.started_at, t.finished_at, ",
            "(SELECT '[' || string_agg(d.drawn, ',') || ']' FROM task_images d WHERE d.task_id = t.id) AS drawn ",
            "FROM tasks t ",
            $rest
        )
    };
}
pub(super) use select_tasks;

/// A row of [`select_tasks`].
pub(super) fn task(row: &AnyRow) -> Result<Task, StoreError> {
    task_columns(row).map_err(|error| {
        let id = row.try_get("id").unwrap_or("?");
        StoreError::defect(format!("task {id}: {error}"))
    })
}

fn task_columns(row: &AnyRow) -> Result<Task, StoreError> {
    let mut drawn: Vec<DrawnImage> = match row.try_get::<Option<String>, _>("drawn")? {
        Some(text) => from_json("drawn", &text)?,
        None => Vec::new(),
    };
    drawn.sort_by_key(|picture| picture.index);
    let error: Option<String> = row.try_get("error")?;
    Ok(Task {
        id: parsed(row, "id")?,
        kind: named(row, "kind", &TaskKind::ALL, TaskKind::name)?,
        owner: owner(row, "owner")?,
        priority: named(row, "priority", &Priority::ALL, Priority::name)?,
        status: named(row, "status", &TaskStatus::ALL, TaskStatus::name)?,
        images: from_json("images", row.try_get("images")?)?,
        drawn,
        webhook_url: row.try_get("webhook_url")?,
        error: error.map(|text| from_json("error", &text)).transpose()?,
        usage: Usage {
            steps: row.try_get::<i64, _>("steps")?.cast_unsigned(),
            pixels: row.try_get::<i64, _>("pixels")?.cast_unsigned(),
            device_seconds: row.try_get("device_seconds")?,
        },
        created_at: instant(row.try_get("created_at")?)?,
        started_at: optional_instant(row, "started_at")?,
        finished_at: optional_instant(row, "finished_at")?,
    })
}

/// An owner as a column's value.
pub(super) fn owner_text(owner: &Owner) -> &str {
    match owner {
        Owner::Anyone => "",
        Owner::Key(id) => id.as_str(),
    }
}

pub(super) fn owner(row: &AnyRow, column: &str) -> Result<Owner, StoreError> {
    match row.try_get::<&str, _>(column)? {
        "" => Ok(Owner::Anyone),
        id => id.parse().map(Owner::Key).map_err(|_| unreadable(column)),
    }
}

/// Nanoseconds since 1970; times beyond 1677 and 2262 become those.
pub(super) fn nanoseconds(at: Timestamp) -> i64 {
    let nanoseconds = at.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

pub(super) fn instant(nanoseconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).map_err(|e| StoreError::defect(e.to_string()))
}

pub(super) fn optional_instant(row: &AnyRow, column: &str) -> Result<Option<Timestamp>, StoreError> {
    row.try_get::<Option<i64>, _>(column)?.map(instant).transpose()
}

pub(super) fn parsed<T: FromStr>(row: &AnyRow, column: &str) -> Result<T, StoreError> {
    row.try_get::<&str, _>(column)?.parse().map_err(|_| unreadable(column))
}

fn named<T: Copy>(
    row: &AnyRow,
    column: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, StoreError> {
    let text: &str = row.try_get(column)?;
    all.iter().copied().find(|&one| name(one) == text).ok_or_else(|| unreadable(column))
}

fn unreadable(column: &str) -> StoreError {
    StoreError::defect(format!("the column '{column}' holds nothing that this version knows"))
}

/// Text keys of any length and content, as something every database can index.
pub(super) fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::defect(e.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(column: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|e| StoreError::defect(format!("the column '{column}' cannot be read: {e}")))
}
