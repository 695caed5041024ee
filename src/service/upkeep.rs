//! What keeps the service going: starting and stopping, recovering what was promised, watching the storage,
//! clearing away what is past its time.

use std::fmt::Display;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use darkroom_pipelines::prompt::PromptLimits;
use darkroom_pipelines::{InpaintMode, Limits, Picture, Source};
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use super::live::LiveTasks;
use super::{EngineOptions, Inner, Service, ServiceError, ServiceParts, access};
use crate::config::{Config, LimitsConfig, StorageConfig};
use crate::engine::{Engine, Sources};
use crate::outbound::Secret;
use crate::picture::{ReadLimits, cover, cover_mask, read_mask_bytes, read_picture_bytes};
use crate::store::{
    CleanUpError, CleanedUp, ImageStore, Retention, StorageError, clean_up, free_bytes, keep_blob,
    remove_orphans,
};
use crate::task::{BlobId, ImageSpec, Owner, SourceSpec, TaskError, TaskErrorKind};

/// Pause between sweeps of what is past its time.
const SWEEP: Duration = Duration::from_secs(60);
/// Pause between looks at a storage that did not answer.
const PROBE: Duration = Duration::from_secs(1);
/// How long a look at the free space is taken for true.
const SPACE_FRESH: Duration = Duration::from_millis(500);
/// Finished pictures that may wait to be written, for each place in a step batch.
const UNWRITTEN: usize = 4;

/// Whether the storage takes what is written.
#[derive(Debug, Default)]
pub(super) struct StorageHealth {
    problem: Mutex<Option<String>>,
    /// Writes that have failed and are tried again.
    waiting: AtomicUsize,
    space: Mutex<Option<(Instant, Option<u64>)>>,
}

/// A write that has failed and is tried again, until this is dropped.
pub(super) struct Waiting<'h>(&'h AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl StorageHealth {
    /// What it said when it failed last, for clients, until it takes everything again.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn failed(&self, error: &impl StorageError) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.for_clients());
    }

    /// Something was written. As long as another write waits, that one decides.
    pub(super) fn answered(&self) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            *problem = None;
        }
    }

    /// A write has failed, and will be tried again.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(&self.waiting)
    }

    /// Refuses tasks while the disk has too little left for what was accepted already.
    pub(super) fn check_room(&self, config: &StorageConfig) -> Result<(), ServiceError> {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        let free = match *space {
            Some((at, free)) if at.elapsed() < SPACE_FRESH => free,
            _ => {
                let free = free_bytes(&config.data_dir).ok().flatten();
                *space = Some((Instant::now(), free));
                free
            }
        };
        match free {
            Some(free) if free < config.min_free_bytes => Err(ServiceError::StorageUnavailable {
                message: format!(
                    "the disk of the data folder has {} MiB left, fewer than storage.min_free_bytes ({} MiB)",
                    free >> 20,
                    config.min_free_bytes >> 20
                ),
            }),
            _ => Ok(()),
        }
    }
}

impl Service {
    /// Starts the engine, queues what an earlier server left unfinished, preloads models.
    pub async fn start(parts: ServiceParts) -> Result<Self, ServiceError> {
        let ServiceParts { config, store, images, catalog, metrics, outbound, secret } = parts;
        let internal = |e: &dyn Display| ServiceError::Internal { message: e.to_string() };
        let sources = Arc::new(StoredSources {
            images: images.clone(),
            limits: source_limits(&config.limits),
            runtime: tokio::runtime::Handle::current(),
        });
        let options = engine_options(&config);
        let (engine, events) = Engine::start(options, Arc::clone(&catalog), Arc::clone(&metrics), sources)
            .map_err(|e| internal(&e))?;
        let writers = Arc::new(Semaphore::new(config.engine.image_writers.max(1)));
        let service = Self(Arc::new(Inner {
            config,
            store,
            images,
            engine: Arc::new(engine),
            catalog,
            metrics,
            outbound,
            secret,
            live: LiveTasks::default(),
            keys: access::Keys::default(),
            outlooks: Mutex::new(None),
            writers,
            webhooks: Arc::new(Notify::new()),
            storage: StorageHealth::default(),
            loading: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            stop: CancellationToken::new(),
            work: TaskTracker::new(),
        }));
        let listener = service.clone();
        tokio::spawn(async move { listener.hear(events).await });
        let unfinished = service.0.store.unfinished().await.map_err(|e| service.store_error(e))?;
        if !unfinished.is_empty() {
            tracing::info!(tasks = unfinished.len(), "going on with unfinished tasks");
        }
        for task in &unfinished {
            {
                let mut counted = service.0.keys.unfinished();
                counted.total += 1;
                *counted.by_owner.entry(task.owner.clone()).or_default() += 1;
            }
            service.begin(task);
        }
        let upkeep = service.clone();
        tokio::spawn(async move { upkeep.upkeep().await });
        let preloading = service.clone();
        tokio::spawn(async move { preloading.preload().await });
        let orphans = service.clone();
        tokio::spawn(async move {
            match remove_orphans(&orphans.0.store, &orphans.0.images).await {
                Ok(0) => {}
                Ok(files) => tracing::info!(files, "removed files that belong to no task"),
                Err(error) => tracing::warn!(%error, "cannot look for files that belong to no task"),
            }
        });
        Ok(service)
    }

    async fn preload(&self) {
        for id in &self.0.config.engine.preload {
            if let Err(error) = self.load_model(id).await {
                tracing::error!(model = id, %error, "cannot preload");
            }
        }
        self.0.loading.store(false, Ordering::Relaxed);
    }

    async fn upkeep(&self) {
        let mut sweep = tokio::time::interval(SWEEP);
        let mut probe = tokio::time::interval(PROBE);
        loop {
            tokio::select! {
                _ = sweep.tick() => self.sweep().await,
                _ = probe.tick() => self.probe().await,
                () = self.0.stop.cancelled() => return,
            }
        }
    }

    /// Asks a storage that failed whether it takes something now. Writes that wait ask for themselves.
    async fn probe(&self) {
        if self.0.storage.problem().is_none() || self.0.storage.waiting.load(Ordering::SeqCst) > 0 {
            return;
        }
        if self.0.store.ping().await.is_ok() && self.0.images.ping().await.is_ok() {
            tracing::info!("the storage answers again");
            self.0.storage.answered();
        }
    }

    async fn sweep(&self) {
        let limits = Retention::from(&self.0.config.storage);
        match clean_up(&self.0.store, &self.0.images, Timestamp::now(), &limits).await {
            Ok(cleaned) if cleaned != CleanedUp::default() => {
                tracing::info!(?cleaned, "cleared away what was past its time");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot clear away what is past its time"),
        }
    }

    /// Takes no more tasks; waits at most `patience` for those that are there, then stops. What is unfinished is
    /// stored as it is and goes on at the next start.
    pub async fn drain(&self, patience: Duration) {
        self.0.draining.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline && !self.0.live.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let left = self.0.live.lock().len();
        if left > 0 {
            tracing::info!(tasks = left, "stopping; these go on at the next start");
        }
        let service = self.clone();
        let _ = tokio::task::spawn_blocking(move || service.0.engine.stop()).await;
        self.0.stop.cancel();
        self.0.work.close();
        if tokio::time::timeout(Duration::from_secs(5), self.0.work.wait()).await.is_err() {
            tracing::warn!("pictures that were still being written are drawn again at the next start");
        }
    }

    /// Refuses what would write while the disk has too little left for what was accepted already.
    ///
    /// # Errors
    /// `StorageUnavailable`.
    pub fn check_room(&self) -> Result<(), ServiceError> {
        self.0.storage.check_room(&self.0.config.storage)
    }

    /// From now on no task is accepted; [`Self::drain`] does the rest.
    pub fn stop_accepting(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Cancelled when the server stops.
    pub fn stopping(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Told when a webhook may be due.
    pub fn webhook_bell(&self) -> Arc<Notify> {
        Arc::clone(&self.0.webhooks)
    }

    /// Keeps bytes that a task will start from. The caller has checked that they are a picture within the limits.
    pub async fn put_blob(&self, bytes: Bytes) -> Result<BlobId, ServiceError> {
        self.0.storage.check_room(&self.0.config.storage)?;
        match keep_blob(&self.0.store, &self.0.images, bytes, Timestamp::now()).await {
            Ok(id) => Ok(id),
            Err(CleanUpError::Tasks(error)) => Err(self.store_error(error)),
            Err(CleanUpError::Images(error)) => Err(self.image_error(&error)),
        }
    }

    /// Downloads a source picture, within the limits and never from a private address.
    ///
    /// # Errors
    /// `Invalid` says why not; its field is for the caller to fill.
    pub async fn fetch(&self, url: &str) -> Result<Bytes, ServiceError> {
        let most = self.0.config.limits.source_bytes;
        let url = self.check_url(url)?;
        self.0.outbound.download(&url, most).await.map_err(|e| refused_url(&e))
    }

    /// Whether the server would call this address, as far as the address itself tells.
    pub fn check_url(&self, url: &str) -> Result<Url, ServiceError> {
        self.0.outbound.check_url(url).map_err(|e| refused_url(&e))
    }

    /// What addresses of pictures are signed with.
    pub fn link_secret(&self) -> &Secret {
        &self.0.secret
    }

    /// Forgets pictures of the expression bank of this owner: all, or one character's. Returns how many.
    pub async fn invalidate_bank(&self, owner: &Owner, character: Option<&str>) -> Result<u64, ServiceError> {
        self.0.store.bank_invalidate(owner, character).await.map_err(|e| self.store_error(e))
    }
}

fn refused_url(error: &dyn Display) -> ServiceError {
    ServiceError::Invalid { field: "url".into(), message: error.to_string() }
}

/// The bounds of the configuration, as pipelines take them.
pub fn request_limits(limits: &LimitsConfig) -> Limits {
    Limits {
        side: 16..=limits.max_side,
        pixels: limits.max_pixels,
        steps: 1..=limits.max_steps,
        prompt: PromptLimits { characters: limits.prompt_characters, chunks: limits.prompt_chunks },
        ..Limits::default()
    }
}

/// The bounds of source pictures.
pub fn source_limits(limits: &LimitsConfig) -> ReadLimits {
    ReadLimits {
        bytes: limits.source_bytes as u64,
        pixels: limits.source_pixels as u64,
        ..ReadLimits::default()
    }
}

/// How the engine of this configuration works.
pub fn engine_options(config: &Config) -> EngineOptions {
    let engine = &config.engine;
    let preview_every =
        (engine.previews_per_second > 0.0).then(|| Duration::from_secs_f64(1.0 / engine.previews_per_second));
    EngineOptions {
        // Checked when the configuration was read.
        devices: engine.devices.iter().filter_map(|name| name.parse().ok()).collect(),
        compute_type: engine.precision.into(),
        limits: request_limits(&config.limits),
        memory_budget: if engine.memory_budget > 0 { engine.memory_budget } else { default_budget() },
        vram_limit: engine.vram_limit,
        max_batch: engine.max_batch.max(1),
        prompt_cache_bytes: engine.prompt_cache_bytes,
        pinned: engine.pin.clone(),
        preview_every,
        age_after: Duration::from_secs_f64(config.queue.age_after),
        max_unwritten: UNWRITTEN * engine.max_batch.max(1),
    }
}

/// Three quarters of the memory that this process may have.
pub fn default_budget() -> u64 {
    memory_limit() / 4 * 3
}

/// Bytes that the machine, or the container's limit, gives this process; 8 GiB where neither can be read.
fn memory_limit() -> u64 {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    });
    let container = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<u64>().ok());
    [machine, container].into_iter().flatten().min().unwrap_or(8 << 30)
}

/// Source pictures from the image store.
struct StoredSources {
    images: ImageStore,
    limits: ReadLimits,
    runtime: tokio::runtime::Handle,
}

impl StoredSources {
    fn blob(&self, id: &BlobId) -> Result<Bytes, TaskError> {
        self.runtime.block_on(self.images.get_blob(id)).map_err(|error| {
            tracing::warn!(blob = %id, %error, "an uploaded picture cannot be read");
            let message = format!("the uploaded picture cannot be read: {}", error.for_clients());
            TaskError { kind: TaskErrorKind::Internal, message }
        })
    }
}

impl Sources for StoredSources {
    fn picture(&self, image: &BlobId, what: &str) -> Result<Picture, TaskError> {
        let bytes = self.blob(image)?;
        let (picture, _) = read_picture_bytes(&bytes, &self.limits, what)
            .map_err(|error| TaskError { kind: TaskErrorKind::InvalidRequest, message: error.to_string() })?;
        Ok(picture)
    }

    fn open(&self, spec: &ImageSpec) -> Result<Source, TaskError> {
        let invalid = |message: String| TaskError { kind: TaskErrorKind::InvalidRequest, message };
        let SourceSpec::Image { image, inpaint } = &spec.source else {
            return Ok(Source::Empty { width: spec.width, height: spec.height });
        };
        let bytes = self.blob(image)?;
        let (picture, alpha) =
            read_picture_bytes(&bytes, &self.limits, "init_image").map_err(|e| invalid(e.to_string()))?;
        let impossible = || invalid("init_image cannot be scaled to the size asked for".to_owned());
        let (width, height) = (spec.width, spec.height);
        let scaled = cover(&picture, width, height).ok_or_else(impossible)?;
        let Some(inpaint) = inpaint else { return Ok(Source::Image(Arc::new(scaled))) };
        let mask = match &inpaint.mask {
            Some(id) => {
                let bytes = self.blob(id)?;
                read_mask_bytes(&bytes, &self.limits, "mask").map_err(|e| invalid(e.to_string()))?
            }
            None => {
                alpha.ok_or_else(|| invalid("init_image has no transparent areas to repaint".to_owned()))?
            }
        };
        let mask = cover_mask(&mask, width, height).ok_or_else(impossible)?;
        let mode = match inpaint.fill_grow {
            Some(grow) => InpaintMode::Fill { grow },
            None => InpaintMode::NoiseMask,
        };
        Ok(Source::Inpaint { picture: Arc::new(scaled), mask: Arc::new(mask), mode })
    }
}
