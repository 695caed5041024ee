//! Files and rows together: uploads stored, and everything deleted that nobody can name any more.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use super::pictures::Files;
use super::{ImageStore, ImageStoreError, Retention, StoreError, Swept, TaskStore};
use crate::task::BlobId;

/// Files that are deleted at the same time.
const AT_ONCE: usize = 8;

/// Why a clean-up ended early. What it had given up by then goes with the next one.
#[derive(Debug, thiserror::Error)]
pub enum CleanUpError {
    /// The database.
    #[error(transparent)]
    Tasks(#[from] StoreError),
    /// The files.
    #[error(transparent)]
    Images(#[from] ImageStoreError),
}

/// What a clean-up took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CleanedUp {
    /// Tasks and bank entries.
    pub swept: Swept,
    /// Files of pictures.
    pub images: u64,
    /// Files of uploads.
    pub blobs: u64,
}

/// Stores an upload, file and row, so that tasks may start from it. The caller has checked that it is a picture.
pub async fn keep_blob(
    tasks: &TaskStore,
    images: &ImageStore,
    bytes: Bytes,
    now: Timestamp,
) -> Result<BlobId, CleanUpError> {
    let id = BlobId::of(&bytes);
    let length = bytes.len() as u64;
    let _no_deleting = tasks.inner.blobs.read().await;
    images.put_blob(&id, bytes).await?;
    tasks.note_blob(&id, length, now).await?;
    Ok(id)
}

/// Gives up what is beyond the limits, then deletes the files of everything that nothing names any more.
pub async fn clean_up(
    tasks: &TaskStore,
    images: &ImageStore,
    now: Timestamp,
    limits: &Retention,
) -> Result<CleanedUp, CleanUpError> {
    let mut cleaned = CleanedUp { swept: tasks.sweep(now, limits).await?, ..CleanedUp::default() };
    loop {
        let doomed = tasks.doomed_images().await?;
        if doomed.is_empty() {
            break;
        }
        // A loop, as a closure here would keep the whole future from being sent to another thread.
        let mut deletions = Vec::with_capacity(doomed.len());
        for (id, format) in &doomed {
            deletions.push(images.delete_image(id, *format));
        }
        stream::iter(deletions).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        cleaned.images += doomed.len() as u64;
        tasks.forget_images(doomed).await?;
    }
    loop {
        // The same upload may come again at this moment: it waits, and is stored anew.
        let _no_storing = tasks.inner.blobs.write().await;
        tasks.doom_blobs(now).await?;
        let doomed = tasks.doomed_blobs().await?;
        if doomed.is_empty() {
            break;
        }
        let mut deletions = Vec::with_capacity(doomed.len());
        for id in &doomed {
            deletions.push(images.delete_blob(id));
        }
        stream::iter(deletions).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        cleaned.blobs += doomed.len() as u64;
        tasks.forget_blobs(doomed).await?;
    }
    Ok(cleaned)
}

/// Deletes files that no row speaks of: what a crash left between a file and its row, and pictures that were drawn
/// for a task already cancelled. Lists every file, so this is for a server's start and quiet hours. Returns how many.
pub async fn remove_orphans(tasks: &TaskStore, images: &ImageStore) -> Result<u64, CleanUpError> {
    let mut removed = 0;
    for prefix in (0..=u8::MAX).map(|byte| format!("{byte:02x}")) {
        let mut files = images.list_images(&prefix).await?;
        if !files.is_empty() {
            let known = tasks.ids_with_prefix(Files::Images, &prefix).await?;
            files.retain(|(id, _)| !known.contains(id.as_str()));
        }
        if !files.is_empty() {
            // In this order: what stops being expected because it was stored has its row by then.
            let expected = tasks.expected_images().await?;
            for (id, format) in files {
                if !expected.contains(&id) && tasks.is_unknown(Files::Images, id.as_str()).await? {
                    images.delete_listed_image(&id, &format).await?;
                    removed += 1;
                }
            }
        }
        let mut files = images.list_blobs(&prefix).await?;
        if !files.is_empty() {
            let known = tasks.ids_with_prefix(Files::Blobs, &prefix).await?;
            files.retain(|id| !known.contains(id.as_str()));
        }
        for id in files {
            let _no_storing = tasks.inner.blobs.write().await;
            if tasks.is_unknown(Files::Blobs, id.as_str()).await? {
                images.delete_blob(&id).await?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}
