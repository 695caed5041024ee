//! What clients can do, whatever API they speak: submit a task, look at it, listen to it, take it back, fetch its
//! pictures. Ties the store (what is promised), the engine (what is drawn) and the listeners together. Knows no
//! HTTP and no tensors; `http` maps its dialects to this.
//!
//! - `submit` is the way in: expression bank, room, store, engine, in this order;
//! - `progress` hears the engine and tells listeners; `write` brings finished pictures into the store;
//! - `live` is what only the running server knows of unfinished tasks; `view` puts it together for clients;
//! - `access` knows keys; `models` and `auxiliaries` the catalog; `upkeep` recovers, sweeps, watches the storage.

mod access;
mod auxiliaries;
mod live;
mod models;
mod progress;
mod submit;
mod upkeep;
mod view;
mod write;

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::store::{ApiKey, Idempotency};
pub use auxiliaries::{AuxiliaryInfo, ControlType, ModelFit};
pub use live::Subscription;
pub use models::{ModelDefaults, ModelInfo, Residency};
pub use submit::Submitted;
pub use upkeep::{default_budget, engine_options, request_limits, source_limits};

use crate::catalog::Catalog;
use crate::config::Config;
use crate::engine::{Engine, EngineOptions, Outlook};
use crate::metrics::Metrics;
use crate::outbound::{Client, Secret};
use crate::store::{ImageStore, TaskStore};
use crate::task::{DrawnImage, ImageSpec, Priority, Task, TaskId, TaskKind};
use live::LiveTasks;

/// The server's heart; cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

/// Where every unfinished task stands.
type Outlooks = Arc<HashMap<TaskId, Outlook>>;

struct Inner {
    config: Arc<Config>,
    store: TaskStore,
    images: ImageStore,
    engine: Arc<Engine>,
    catalog: Arc<Catalog>,
    metrics: Arc<Metrics>,
    outbound: Client,
    secret: Secret,
    live: LiveTasks,
    keys: access::Keys,
    outlooks: Mutex<Option<(Instant, Outlooks)>>,
    writers: Arc<Semaphore>,
    /// Told when a webhook may be due.
    webhooks: Arc<Notify>,
    storage: upkeep::StorageHealth,
    loading: AtomicBool,
    draining: AtomicBool,
    stop: CancellationToken,
    work: TaskTracker,
}

/// What a service is made of.
pub struct ServiceParts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Where tasks are kept.
    pub store: TaskStore,
    /// Where pictures are kept.
    pub images: ImageStore,
    /// Which models there are.
    pub catalog: Arc<Catalog>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How pictures are fetched by URL.
    pub outbound: Client,
    /// What addresses of pictures are signed with.
    pub secret: Secret,
}

/// A task as a client submits it, all choices made.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What sort of task.
    pub kind: TaskKind,
    /// How soon.
    pub priority: Priority,
    /// Its pictures; at least one.
    pub images: Vec<ImageSpec>,
    /// Whom to tell when it is final; checked by the caller.
    pub webhook_url: Option<String>,
    /// Do not take pictures from the expression bank (they are still put there).
    pub bypass_bank: bool,
    /// The client's `Idempotency-Key` and a digest of its whole request.
    pub idempotency: Option<Idempotency>,
}

/// A task with what only the running server knows about it.
#[derive(Debug, Clone)]
pub struct TaskView {
    /// As stored.
    pub task: Task,
    /// Steps done of all its pictures.
    pub steps_done: usize,
    /// Steps of all its pictures.
    pub steps_total: usize,
    /// `Generating variant 3/4`; `None` before it starts.
    pub current_step: Option<Arc<str>>,
    /// Tasks that will be served before it; `None` once it has started.
    pub queue_position: Option<usize>,
    /// Seconds until it is done, from measured step times; `None` before any were measured.
    pub eta_seconds: Option<f64>,
}

/// A page of tasks, newest first.
#[derive(Debug, Clone)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<TaskView>,
    /// Where the next page starts; `None` on the last.
    pub next: Option<TaskId>,
}

/// A stored picture's bytes and what they are.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// What it is.
    pub image: DrawnImage,
    /// The file.
    pub bytes: Bytes,
}

/// The queue at this moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QueueView {
    /// Unfinished tasks that have not started, by priority (standard, priority, urgent).
    pub queued: [usize; 3],
    /// Unfinished tasks that have started.
    pub processing: usize,
    /// Most unfinished tasks.
    pub capacity: usize,
    /// Pictures in the last step batch.
    pub step_batch: usize,
    /// Seconds until everything that waits now is done; `None` before any step was measured.
    pub eta_seconds: Option<f64>,
}

/// What the server can say about itself at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Serving.
    Ready,
    /// Preloading models.
    Loading,
    /// Finishing before it stops.
    Draining,
    /// The store does not answer or is full.
    StorageUnavailable,
}

/// Why the service said no.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// No such task, picture or model, or it is someone else's.
    #[error("there is no {what} '{id}'")]
    NotFound {
        /// `task`, `picture`, `model`.
        what: &'static str,
        /// What was asked for.
        id: String,
    },
    /// As many tasks are unfinished as the server, or the key, may have.
    #[error("{message}")]
    QueueFull {
        /// Which limit.
        message: String,
        /// Seconds after which there may be room.
        retry_after: u64,
    },
    /// Another request had the same idempotency key.
    #[error("the Idempotency-Key '{key}' was used for another request")]
    IdempotencyConflict {
        /// The key.
        key: String,
    },
    /// The state does not allow it (unloading a model in use, cancelling a finished task).
    #[error("{message}")]
    Conflict {
        /// What stands against it.
        message: String,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Draining,
    /// Tasks cannot be stored now, so none is accepted.
    #[error("{message}")]
    StorageUnavailable {
        /// What it said.
        message: String,
    },
    /// A value cannot be used.
    #[error("{field}: {message}")]
    Invalid {
        /// The request's field.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A defect.
    #[error("{message}")]
    Internal {
        /// What happened, for the log.
        message: String,
    },
}
