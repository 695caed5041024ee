//! The store's claims, on SQLite always and on PostgreSQL too when `DARKROOM_TEST_POSTGRES` names a server
//! (`scripts/test_services` starts one).

mod bank;
mod deliveries;
mod files;
mod keys;
mod opening;
mod progress;
mod retention;
mod submit;

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use sqlx::{ConnectOptions, Connection, Executor};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Idempotency, Inserted, StoreError, TaskStore};
use crate::config::StorageConfig;
use crate::task::{
    BankRef, BlobId, DrawnImage, ImageFormat, ImageSpec, NewTask, Owner, Priority, SourceSpec, Task, TaskId,
    TaskKind, Usage,
};

/// A store of its own for one test, and what it was opened with.
struct Fresh {
    store: TaskStore,
    config: StorageConfig,
    folder: TempDir,
}

impl Fresh {
    /// Closes the store and opens it again, as a server that starts anew.
    async fn reopened(mut self) -> Self {
        self.store.close().await;
        drop(self.store);
        self.store = TaskStore::open(&self.config).await.unwrap();
        self
    }
}

async fn sqlite() -> Fresh {
    let folder = tempfile::tempdir().unwrap();
    let config = in_folder(folder.path());
    Fresh { store: TaskStore::open(&config).await.unwrap(), config, folder }
}

fn in_folder(folder: &Path) -> StorageConfig {
    StorageConfig { data_dir: folder.to_path_buf(), ..StorageConfig::default() }
}

/// A store in a schema of its own, if there is a PostgreSQL to test with.
async fn postgres() -> Option<Fresh> {
    let server = std::env::var("DARKROOM_TEST_POSTGRES").ok()?;
    let schema = format!("test_{}", Uuid::new_v4().simple());
    sqlx::any::install_default_drivers();
    let options: sqlx::any::AnyConnectOptions = server.parse().unwrap();
    let mut connection = options.connect().await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).await.unwrap();
    connection.close().await.unwrap();
    let separator = if server.contains('?') { '&' } else { '?' };
    let folder = tempfile::tempdir().unwrap();
    let config = StorageConfig {
        database_url: Some(format!("{server}{separator}options=-csearch_path%3D{schema}")),
        ..in_folder(folder.path())
    };
    Some(Fresh { store: TaskStore::open(&config).await.unwrap(), config, folder })
}

async fn each_database() -> Vec<Fresh> {
    let mut stores = vec![sqlite().await];
    stores.extend(postgres().await);
    stores
}

/// Some seconds after a fixed moment.
fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_700_000_000 + seconds)
}

fn someone() -> Owner {
    Owner::Key("0123456789abcdef".parse().unwrap())
}

fn spec(seed: u64) -> ImageSpec {
    ImageSpec {
        model: "tiny".into(),
        prompt: "a fox, \u{0} \"quoted\" — ünïcode".into(),
        negative_prompt: String::new(),
        width: 64,
        height: 64,
        steps: 4,
        cfg: 7.5,
        sampler: "euler".into(),
        scheduler: "normal".into(),
        seed,
        denoise: 1.0,
        clip_skip: None,
        source: SourceSpec::Empty,
        loras: Vec::new(),
        controls: Vec::new(),
        speed: darkroom_pipelines::Speed::default(),
        shift: None,
        detail: None,
        background: crate::task::Background::Keep,
        format: ImageFormat::Png,
        metadata: true,
        label: None,
        bank: None,
    }
}

fn from_blob(blob: &BlobId) -> ImageSpec {
    ImageSpec { source: SourceSpec::Image { image: blob.clone(), inpaint: None }, ..spec(1) }
}

fn in_bank(key: &str, character: &str) -> ImageSpec {
    ImageSpec { bank: Some(BankRef { key: key.into(), character: character.into() }), ..spec(1) }
}

fn new_task(images: Vec<ImageSpec>, owner: Owner, created_at: Timestamp) -> NewTask {
    NewTask {
        id: TaskId::new(TaskKind::Images),
        kind: TaskKind::Images,
        owner,
        priority: Priority::Standard,
        images,
        drawn: Vec::new(),
        webhook_url: None,
        created_at,
    }
}

fn with_webhook(task: NewTask) -> NewTask {
    NewTask { webhook_url: Some("https://example.com/hook".into()), ..task }
}

fn drawn(task: &TaskId, index: usize, bytes: u64) -> DrawnImage {
    DrawnImage {
        index,
        id: task.image(index),
        format: ImageFormat::Png,
        width: 64,
        height: 64,
        bytes,
        seed: u64::MAX,
        cached: false,
        warnings: Vec::new(),
    }
}

fn idempotency(key: &str, fingerprint: &str) -> Option<Idempotency> {
    Some(Idempotency { key: key.into(), fingerprint: fingerprint.into() })
}

fn usage() -> Usage {
    Usage { steps: 4, pixels: 4096, device_seconds: 0.25 }
}

async fn insert_one(store: &TaskStore, task: NewTask) -> Task {
    let mut inserted = store.insert(vec![(task, None)]).await.unwrap();
    assert_eq!(inserted.len(), 1);
    match inserted.remove(0) {
        Inserted::New(task) => task,
        Inserted::Existing(task) => panic!("{} was there before", task.id),
    }
}

/// Stores a task and all its pictures, the last one `finished_at`.
async fn completed(store: &TaskStore, task: NewTask, bytes: u64, finished_at: Timestamp) -> Task {
    let task = insert_one(store, task).await;
    for (index, spec) in task.images.iter().enumerate() {
        let picture = drawn(&task.id, index, bytes);
        store.finish_image(&task.id, &picture, spec, &usage(), finished_at).await.unwrap();
    }
    stored(store, &task.id).await
}

async fn stored(store: &TaskStore, id: &TaskId) -> Task {
    store.task(id).await.unwrap().unwrap()
}
